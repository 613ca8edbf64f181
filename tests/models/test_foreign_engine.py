"""The HTTP side with an engine that is no class of ours: what `interface` says is all
that it needs."""

import asyncio
import contextlib
import json
import threading
import time

import httpx
import openai
import pytest

from tiny_models.server import Step, serve_engine
from tiny_models.server.errors import APIError, shutting_down

HI = [{"role": "user", "content": "Hi there"}]


class Parrot:
    """Says a word of the prompt at a time; each character is a token. No model, no
    torch, no base class."""

    name, context, vocab_size = "parrot", 50, 256

    def __init__(self):
        self.messages, self.samplings = [], []
        self.calls, self.hung_up = [], threading.Event()
        self.stopped = threading.Event()

    async def prompt_ids(self, messages):
        self.messages.append(messages)
        return list("".join(m["content"] for m in messages).encode())

    async def answer(self, prompt_ids, sampling):
        self.samplings.append(sampling)
        text = bytes(prompt_ids).decode()
        if text == "refuse":
            raise APIError("Parrots do not refuse.", status=418, code="teapot")
        if text == "crash":
            raise ZeroDivisionError("feathers")
        try:
            for choice in range(sampling.n):
                yield Step(choice=choice)  # at work
                while text == "forever":
                    if self.stopped.is_set():
                        raise shutting_down()
                    yield Step(choice=choice, tokens=1, text="a")
                    await asyncio.sleep(0.01)
                words = text.split(" ")
                for n, word in enumerate(words):
                    last = n == len(words) - 1
                    reason = "stop" if last else None
                    yield Step(choice, len(word), f"{word} ", [], reason)
        except (GeneratorExit, asyncio.CancelledError):
            self.hung_up.set()
            raise

    async def metrics(self):
        return "parrot_words_total 3\n"

    def stop(self):
        self.calls.append("stop")
        self.stopped.set()

    def close(self):
        self.calls.append("close")


@pytest.fixture
def parrot():
    return Parrot()


@pytest.fixture
def server(parrot):
    with serve_engine(parrot) as server:
        yield server


def post(server, **fields):
    body = {"model": "parrot", "messages": HI, **fields}
    return httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=20)


def test_its_steps_become_a_whole_answer(server, parrot):
    answer = post(server, n=2, max_tokens=30, seed=5, stop="x", top_k=3).json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["Hi there "] * 2
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "stop"]
    assert answer["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 14,
        "total_tokens": 22,
    }
    assert parrot.messages == [HI]
    (asked,) = parrot.samplings
    wanted = (2, 5, 3, ("x",), 30)
    assert (asked.n, asked.seed, asked.top_k, asked.stop, asked.max_tokens) == wanted


def test_its_steps_become_a_stream_for_a_real_client(server):
    with openai.OpenAI(base_url=server.base_url, api_key="none") as client:
        stream = client.chat.completions.create(
            model="parrot", messages=HI, stream=True
        )
        deltas = [chunk.choices[0] for chunk in stream]
        assert [x.id for x in client.models.list()] == ["parrot"]
    assert [x.delta.content for x in deltas] == ["", "Hi ", "there ", None]
    assert [x.finish_reason for x in deltas] == [None, None, None, "stop"]


def test_its_metrics_are_served_as_they_are(server):
    answer = httpx.get(server.base_url.removesuffix("/v1") + "/metrics", timeout=20)
    assert (answer.status_code, answer.text) == (200, "parrot_words_total 3\n")


def test_its_context_and_its_vocabulary_bound_what_is_asked_for(server, parrot):
    post(server)
    assert parrot.samplings.pop().max_tokens == 50 - 8, "all that is left"
    for fields, code, said in (
        ({"max_tokens": 43}, "context_length_exceeded", "holds 50 tokens"),
        ({"logit_bias": {"256": 1}}, "invalid_value", "from 0 to 255"),
        ({"model": "owl"}, "model_not_found", 'has: "parrot"'),
    ):
        error = post(server, **fields).json()["error"]
        assert error["code"] == code
        assert said in error["message"]
    assert parrot.samplings == []


@pytest.mark.parametrize("stream", [False, True])
def test_its_errors_reach_the_client(server, stream):
    for content, status, code, said in (
        ("refuse", 418, "teapot", "Parrots do not refuse."),
        ("crash", 500, "internal_error", "ZeroDivisionError: feathers"),
    ):
        messages = [{"role": "user", "content": content}]
        answer = post(server, messages=messages, stream=stream)
        if stream:  # the status is out by then
            answer_of = answer.text.removeprefix("data: ")
            error = json.loads(answer_of)["error"]
        else:
            assert answer.status_code == status
            error = answer.json()["error"]
        assert error["code"] == code
        assert said in error["message"]


def test_a_hang_up_closes_its_generator_and_close_stops_it_first(parrot):
    messages = [{"role": "user", "content": "forever"}]
    with serve_engine(parrot) as server, contextlib.ExitStack() as listening:
        body = {"model": "parrot", "messages": messages, "stream": True}
        where = f"{server.base_url}/chat/completions"
        with httpx.stream("POST", where, json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        assert parrot.hung_up.wait(10)
        answer = listening.enter_context(httpx.stream("POST", where, json=body))
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert parrot.calls == []
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 5
        assert "shutting_down" in "".join(lines)
    assert parrot.calls[:2] == ["stop", "close"]
    assert parrot.calls[2:] == ["stop", "close"], "as often as the server is closed"


def test_it_is_closed_where_it_cannot_be_served(parrot, server):
    for options, error in (
        ({"port": server.port}, OSError),
        ({"temperature": 3}, ValueError),
        ({"top_p": 0}, ValueError),
    ):
        other = Parrot()
        with pytest.raises(error):
            serve_engine(other, **options)
        assert other.calls == ["close"]
    assert post(server).status_code == 200


def test_a_null_in_a_text_part_is_as_if_it_were_not_there(server, parrot):
    """As clients send it that fill in every field that they know."""
    part = {"type": "text", "text": "Hi there", "cache_control": None, "more": None}
    answer = post(server, messages=[{"role": "user", "content": [part, part]}])
    assert answer.json()["choices"][0]["message"]["content"] == "Hi thereHi there "
    assert parrot.messages == [[{"role": "user", "content": "Hi thereHi there"}]]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": None},
        {"type": None, "text": "Hi"},
        {"type": "text"},
        {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}},
        None,
    ],
)
def test_a_text_part_without_text_or_with_more_is_refused(server, parrot, part):
    for content in ([part], [{"type": "text", "text": "Hi"}, part]):
        answer = post(server, messages=[{"role": "user", "content": content}])
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("messages[0].content")
    assert parrot.messages == []
