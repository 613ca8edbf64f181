"""The server under load and abuse: no 500, no wrong text, no thread left behind."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from course.toy_tokenizer import toy_tokenizer
from tiny_models import random_llama, serve

try:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
except ImportError:
    if os.environ.get("CI"):
        raise
    schemathesis = None

torch.set_num_threads(1)
HI = [{"role": "user", "content": "Hi"}]
CONTEXT = 96


@pytest.fixture(scope="module")
def model():
    model = random_llama(
        vocab_size=len(toy_tokenizer()),
        eos_token_id=None,
        max_position_embeddings=CONTEXT,
    )
    # No token is EOS, so that an answer has as many tokens as it was allowed.
    model.generation_config.eos_token_id = len(toy_tokenizer())
    return model


@pytest.fixture(scope="module")
def server(model):
    with serve(model, toy_tokenizer(), name="tiny") as server:
        yield server


class Slow:
    """The model, with a pause before each call."""

    def __init__(self, model, seconds):
        self.model, self.seconds, self.calls = model, seconds, 0

    def __call__(self, **inputs):
        self.calls += 1
        time.sleep(self.seconds)
        return self.model(**inputs)

    def __getattr__(self, name):
        return getattr(self.model, name)


def body(seed=0, new=12, **fields):
    request = {"model": "tiny", "messages": HI, "seed": seed, "max_tokens": new}
    return {**request, **fields}


def url(server):
    return f"{server.base_url}/chat/completions"


def whole(server, **fields):
    response = httpx.post(url(server), json=body(**fields), timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def pieces(response):
    """The texts of a stream, one for each chunk."""
    for line in response.iter_lines():
        if line.startswith("data: {"):
            event = httpx.Response(200, content=line[6:]).json()
            assert "error" not in event, event
            yield event["choices"][0]["delta"].get("content", "")


def streamed(server, pause=0.0, **fields):
    request = body(stream=True, **fields)
    with httpx.stream("POST", url(server), json=request, timeout=60) as response:
        texts = []
        for text in pieces(response):
            texts.append(text)
            time.sleep(pause)
    return "".join(texts)


def alone(model, seed, new=12):
    """What `generate` says for this seed: the oracle."""
    tokenizer = toy_tokenizer()
    ids = tokenizer("<user>Hi</s><assistant>", return_tensors="pt").input_ids
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=True,
            top_k=0,
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def threads():
    return sorted(t.name for t in threading.enumerate() if "tiny-models" in t.name)


# --- any request ----------------------------------------------------------------------

needs_schemathesis = pytest.mark.skipif(
    schemathesis is None, reason="needs schemathesis, from requirements-teach.txt"
)


@needs_schemathesis
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_breaks_the_description(server, mode):
    """Requests that fit the description and requests that do not: no 5xx, each answer
    as described, and what does not fit is refused."""
    root = server.base_url.removesuffix("/v1")
    schema = schemathesis.openapi.from_url(f"{root}/openapi.json")
    mode = schemathesis.GenerationMode(mode)
    # A request that fits the description may still be too long for the context.
    too_strict = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    tried = []
    for operation in [result.ok() for result in schema.get_all_operations()]:

        @settings(
            max_examples=150,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def try_it(case):
            answer = case.call_and_validate(excluded_checks=too_strict)
            tried.append((case.operation.label, answer.status_code))

        try:
            try_it()
        except Unsatisfiable:
            assert mode == schemathesis.GenerationMode.NEGATIVE
    codes = {code for label, code in tried if "completions" in label}
    assert len(tried) >= 150
    assert codes >= {200} if mode == schemathesis.GenerationMode.POSITIVE else {400}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b'{"model": "tiny", "messages": ' + b"[" * 50_000,
        b'{"model": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
    ids=range(10),
)
def test_a_body_that_is_no_request_is_refused_in_the_shape_of_the_api(server, content):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(url(server), content=content, headers=headers, timeout=60)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert whole(server) == whole(server)


@pytest.mark.parametrize("letters", [CONTEXT, 10_000, 1_000_000])
def test_an_enormous_prompt_is_a_context_length_error(server, letters):
    messages = [{"role": "user", "content": "a" * letters}]
    request = {"model": "tiny", "messages": messages}
    response = httpx.post(url(server), json=request, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"context holds {CONTEXT} tokens" in error["message"]
    assert str(letters)[:3] in error["message"] or str(letters + 19) in error["message"]


# --- many clients ---------------------------------------------------------------------


def test_fifty_clients_each_get_the_text_that_they_would_get_alone(server, model):
    before = threads()
    expected = [alone(model, seed) for seed in range(50)]
    assert len(set(expected)) > 45

    def ask(seed):
        return (streamed if seed % 2 else whole)(server, seed=seed)

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == expected
    assert threads() == before


def test_clients_that_hang_up_do_not_change_the_others_texts(model):
    expected = [alone(model, seed, 40) for seed in range(5)]
    slow = Slow(model, 0.001)
    with serve(slow, toy_tokenizer(), name="tiny") as server:
        whole(server, new=1)
        before = threads()

        def hang_up(number):
            request = body(seed=100 + number, new=70, stream=True)
            with httpx.stream("POST", url(server), json=request, timeout=60) as answer:
                texts = pieces(answer)
                for _ in range(1 + number):
                    next(texts)

        def ask(seed):
            return streamed(server, seed=seed, new=40)

        with ThreadPoolExecutor(20) as pool:
            leaving = [pool.submit(hang_up, number) for number in range(15)]
            assert list(pool.map(ask, range(5))) == expected
            for future in leaving:
                future.result()
        assert threads() == before
        # All that was left to do for those who went: nothing.
        done = slow.calls
        whole(server, new=20)
        assert slow.calls <= done + 20 + 15


def test_a_slow_reader_loses_nothing_and_holds_up_nobody(model):
    server = serve(Slow(model, 0.002), toy_tokenizer(), name="tiny")
    with server, ThreadPoolExecutor(2) as pool:
        slow = pool.submit(streamed, server, pause=0.05, seed=1, new=40)
        quick = pool.submit(streamed, server, seed=2, new=40)
        assert quick.result() == alone(model, 2, 40)
        assert not slow.done(), "the quick client waited for the slow one"
        assert slow.result() == alone(model, 1, 40)


def test_a_client_that_never_reads_does_not_stop_the_others(server, model):
    host, port = server.base_url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as deaf:
        data = httpx.Request("POST", url(server), json=body(new=60, stream=True))
        head = "".join(f"{k}: {v}\r\n" for k, v in data.headers.items())
        deaf.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + data.read()
        )
        assert whole(server, seed=3) == alone(model, 3)


def test_close_in_the_middle_of_streams_leaves_nothing_behind(model):
    before = threads()
    server = serve(Slow(model, 0.01), toy_tokenizer(), name="tiny")
    started = threading.Barrier(6)
    ends = []

    def listen(seed):
        request = body(seed=seed, new=70, stream=True)
        with httpx.stream("POST", url(server), json=request, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            started.wait(60)
            ends.append(list(lines)[-2:])

    clients = [threading.Thread(target=listen, args=(n,)) for n in range(5)]
    for client in clients:
        client.start()
    started.wait(60)
    server.close()
    for client in clients:
        client.join(60)
    assert threads() == before
    assert len(ends) == 5
    assert all("shutting down" in end[0] for end in ends)


def test_only_this_machine_can_connect_unless_told_otherwise(server, model):
    def bound_to(server):
        return server._uvicorn.servers[0].sockets[0].getsockname()[0]

    assert bound_to(server) == "127.0.0.1"
    with serve(model, toy_tokenizer(), host="127.0.0.2") as other:
        assert bound_to(other) == "127.0.0.2"
