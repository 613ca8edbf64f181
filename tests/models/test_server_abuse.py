"""The server under load and abuse: no 500, no wrong text, no thread left behind."""

import json
import os
import random
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

import tiny_models.loading
import tiny_models.server
from tiny_models import random_llama, serve
from tiny_models.grammar.schema import regex_of_schema
from tiny_models.server import ChatRequest
from tiny_models.toy_tokenizer import toy_tokenizer

try:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.specs.openapi.checks import positive_data_acceptance
except ImportError:
    if os.environ.get("CI"):
        raise
    schemathesis = None

torch.set_num_threads(1)
HI = [{"role": "user", "content": "Hi"}]
CONTEXT = 96


def endless_model(context):
    """No token is EOS, so that an answer has as many tokens as it was allowed."""
    model = random_llama(
        vocab_size=len(toy_tokenizer()),
        eos_token_id=None,
        max_position_embeddings=context,
    )
    model.generation_config.eos_token_id = len(toy_tokenizer())
    return model


@pytest.fixture(scope="module")
def model():
    return endless_model(CONTEXT)


@pytest.fixture(scope="module")
def server(model):
    with serve(model, toy_tokenizer(), name="tiny") as server:
        yield server


class Slow:
    """The model, counted, with a pause before each call."""

    def __init__(self, model, seconds=0.0):
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


def streamed(server, **fields):
    request = body(stream=True, **fields)
    with httpx.stream("POST", url(server), json=request, timeout=60) as response:
        return "".join(pieces(response))


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
    return sorted(t.name for t in threading.enumerate())


def connect(server, request, promised=None, buffer=None):
    """A connection that has sent a request with bare sockets, and has read nothing.

    promised: the Content-Length, if it is not the truth. buffer: bytes to receive.
    """
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(60)
    client.connect(("127.0.0.1", server.port))
    content = json.dumps(request).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: "
        f"{promised or len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client


def reset(client):
    """Hang up as a process does that is killed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def eventually(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.01)


def connections(server):
    return server._uvicorn.server_state.connections


# --- any request ----------------------------------------------------------------------

needs_schemathesis = pytest.mark.skipif(
    schemathesis is None, reason="needs schemathesis, from requirements-teach.txt"
)


def operations(server):
    root = server.base_url.removesuffix("/v1")
    schema = schemathesis.openapi.from_url(f"{root}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


def try_all(operation, mode, try_one):
    """Call try_one with 100 requests to this operation, the same ones each time."""

    @settings(
        max_examples=100,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def run(case):
        try_one(case)

    run()


def supported(schema):
    try:
        return bool(regex_of_schema(schema))
    except ValueError:
        return False


def contradictions(request):
    """The fields of a request of which each fits its description but not the rest."""

    def given_(name):
        return request.get(name) is not None

    fields = set()
    if request.get("top_logprobs") and not request.get("logprobs"):
        fields.add("top_logprobs")
    options = request.get("stream_options") or {}
    if options.get("include_usage") and not request.get("stream"):
        fields.add("stream_options")
    limits = ("max_tokens", "max_completion_tokens")  # two names for one thing
    if all(map(given_, limits)) and len({request[name] for name in limits}) == 2:
        fields.add("max_tokens")
    if any(int(token) >= len(toy_tokenizer()) for token in request["logit_bias"]):
        fields.add("logit_bias")
    if asked := request.get("response_format"):
        schema = asked.get("json_schema")
        if (asked["type"] == "json_schema") != bool(schema):
            fields.add("response_format.json_schema")
        elif schema and not supported(schema["schema"]):
            fields.add("response_format.json_schema.schema")
    return fields


def tokens_wanted(request):
    """Of prompt and answer, for the toy tokenizer's template: a token for each byte."""
    prompt = len("<assistant>")
    for message in request["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        role = message["role"].replace("developer", "system")
        # </s> is one token; so it would be in a content, which no example has.
        assert not any(token in content for token in ("<s>", "</s>", "<pad>"))
        prompt += len(f"<{role}>") + len(content.encode()) + 1
    return prompt + (request["max_tokens"] or request["max_completion_tokens"])


def texts_of(server, request):
    """The text of each choice."""
    response = httpx.post(url(server), json=request, timeout=60)
    assert response.status_code == 200, response.text
    if not request["stream"]:
        return [choice["message"]["content"] for choice in response.json()["choices"]]
    *events, end, nothing = response.text.split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    texts = [""] * int(request.get("n") or 1)
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    return texts


@needs_schemathesis
def test_what_fits_the_description_is_answered_whole_and_streamed_alike():
    """Unless its fields contradict each other, or it is too long."""
    context = 1024
    counts = dict.fromkeys(("answered", "contradictory", "too long"), 0)
    unaware = [positive_data_acceptance]  # of the two reasons to refuse

    def try_one(case):
        if case.operation.label.startswith("GET"):
            assert case.call_and_validate().status_code == 200
            return
        request = case.body
        request["seed"] = request.get("seed") or 0
        request["logit_bias"] = request.get("logit_bias") or {}
        limits = ("max_tokens", "max_completion_tokens")
        for name in limits:  # what could be a long answer is made a short one
            limit = request.get(name)
            request[name] = min(limit, 5) if limit and limit < 500 else limit
        if not any(request[name] for name in limits):
            request["max_tokens"] = 4
        answer = case.call_and_validate(excluded_checks=unaware)
        if fields := contradictions(request):
            counts["contradictory"] += 1
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] in fields
        elif tokens_wanted(request) > context:
            counts["too long"] += 1
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"
        else:
            counts["answered"] += 1
            assert answer.status_code == 200, answer.text
            request |= {"stream": not request.get("stream"), "stream_options": None}
            case.call_and_validate(excluded_checks=unaware)
            again = {**request, "stream": not request["stream"]}
            assert texts_of(server, request) == texts_of(server, again)

    model = endless_model(context)  # but one that can end what has a format
    model.generation_config.eos_token_id = toy_tokenizer().eos_token_id
    with serve(model, toy_tokenizer(), name="tiny") as server:
        for operation in operations(server):
            try_all(operation, "positive", try_one)
    assert counts["answered"] >= 50
    assert sum(counts.values()) == 100


@needs_schemathesis
def test_what_does_not_fit_the_description_is_refused(server):
    codes = []

    def try_one(case):
        codes.append(case.call_and_validate().status_code)

    for operation in operations(server):
        if operation.label == "GET /v1/models":  # takes nothing that could be wrong
            with pytest.raises(Unsatisfiable):
                try_all(operation, "negative", try_one)
        else:
            try_all(operation, "negative", try_one)
    assert len(codes) == 200
    assert set(codes) == {400, 404}


def test_a_whole_number_may_be_written_with_a_point(server):
    # JSON makes no difference, nor does its schema's "integer".
    wanted = whole(server, seed=3, new=5, top_k=4)
    assert whole(server, seed=3.0, new=5.0, top_k=4.0, n=1.0) == wanted


MANY = 10_000
FLOODS = {
    "messages that are none": {"messages": [1] * MANY},
    "messages without fields": {"messages": [{}] * MANY},
    "unknown fields": {f"field {i}": 1 for i in range(MANY)},
    "unknown fields of a message": {
        "messages": [{**HI[0], **{f"field {i}": 1 for i in range(MANY)}}]
    },
    "unknown stream options": {
        "stream_options": {f"field {i}": 1 for i in range(MANY)}
    },
    "biases that are none": {"logit_bias": {str(i): "x" for i in range(MANY)}},
    "stop strings": {"stop": [1] * MANY},
}


@pytest.mark.parametrize("flood", FLOODS)
def test_of_thousands_of_mistakes_only_the_first_are_explained(server, flood):
    """Four megabytes of them took a minute, in which no other client was served."""
    request = body(**FLOODS[flood])
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(request)
    assert caught.value.error_count() <= 2
    response = httpx.post(url(server), json=request, timeout=60)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 1000


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


@pytest.mark.parametrize("letters", [CONTEXT, 500, 10_000, 4_000_000])
def test_an_enormous_prompt_is_a_context_length_error(server, letters):
    messages = [{"role": "user", "content": "a" * letters}]
    request = {"model": "tiny", "messages": messages}
    response = httpx.post(url(server), json=request, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages"
    assert f"context holds {CONTEXT} tokens" in error["message"]
    around = "<user></s><assistant>"
    # What cannot fit is measured in characters; the rest in tokens, </s> being one.
    assert any(
        f"messages take {letters + n}" in error["message"]
        for n in (len(around), len(around) - len("</s>") + 1)
    )


def test_a_text_that_cannot_fit_is_not_encoded_and_one_that_can_is(model):
    encoded = []

    class Spy(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            encoded.append(len(text))
            return super().__call__(text, **options)

    toy = toy_tokenizer()
    tokenizer = Spy(tokenizer_object=toy.backend_tokenizer, pad_token="<pad>")
    # 60 letters are one token, so that a long text may be a short prompt.
    tokenizer.add_tokens(["z" * 60])
    tokenizer.chat_template = toy.chat_template
    model = random_llama(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    with serve(model, tokenizer, name="tiny") as server:
        for letters, status in ((3000, 200), (60 * CONTEXT, 400), (4_000_000, 400)):
            messages = [{"role": "user", "content": "z" * letters}]
            request = body(messages=messages, new=1)
            response = httpx.post(url(server), json=request, timeout=60)
            assert response.status_code == status, response.text
    assert encoded == [3000 + len("<user></s><assistant>")]


# --- many clients ---------------------------------------------------------------------


def test_fifty_clients_each_get_the_text_that_they_would_get_alone(server, model):
    whole(server, new=1)  # starts the engine's thread
    before = threads()
    expected = [alone(model, seed) for seed in range(50)]
    assert len(set(expected)) > 45

    def ask(seed):
        return (streamed if seed % 2 else whole)(server, seed=seed)

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == expected
    assert threads() == before


def test_clients_that_hang_up_do_not_change_the_others_texts(model):
    expected = [alone(model, seed, 40) for seed in range(6)]
    slow = Slow(model, 0.001)
    with serve(slow, toy_tokenizer(), name="tiny") as server:
        whole(server, new=1)
        before = threads()

        def hang_up(number):
            """After the request, a part of it, or some of the answer; politely or not;
            a stream and a whole answer."""
            chance = random.Random(number)
            request = body(seed=100 + number, new=70, stream=number % 3 > 0)
            promised = 10_000 if number % 6 == 5 else None
            client = connect(server, request, promised)
            if number % 3 and not promised:
                lines = client.makefile("rb")
                for _ in range(chance.randrange(1, 60)):
                    assert b"HTTP/1.1 4" not in lines.readline()
                lines.close()
            else:
                time.sleep(chance.random() / 10)
            (reset if chance.random() < 0.5 else socket.socket.close)(client)

        def ask(seed):
            return (streamed if seed % 2 else whole)(server, seed=seed, new=40)

        with ThreadPoolExecutor(24) as pool:
            leaving = [pool.submit(hang_up, number) for number in range(18)]
            assert list(pool.map(ask, range(6))) == expected
            for future in leaving:
                future.result()
        assert threads() == before
        eventually(lambda: not connections(server))
        # All that was left to do for those who went: nothing.
        done = slow.calls
        assert done < 1 + 6 * 40 + 18 * 70
        whole(server, new=20)
        assert slow.calls == done + 20


def test_a_slow_reader_loses_nothing_and_holds_up_nobody(server, model):
    request = body(seed=1, new=40, stream=True)
    with httpx.stream("POST", url(server), json=request, timeout=60) as response:
        slow = pieces(response)
        start = [next(slow) for _ in range(3)]
        assert streamed(server, seed=2, new=40) == alone(model, 2, 40)
        assert "".join([*start, *slow]) == alone(model, 1, 40)


def test_a_client_that_never_reads_costs_no_more_than_its_buffers(model):
    long = Slow(endless_model(100_000))
    before = threads()
    server = serve(long, toy_tokenizer(), name="tiny")
    with server:
        # Else a test fills megabytes that the system keeps for each connection.
        (listener,) = server._uvicorn.servers[0].sockets
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        endless = body(new=90_000, stream=True, logprobs=True, top_logprobs=20)
        deaf, leaving = (connect(server, endless, buffer=4096) for _ in range(2))
        expected = alone(long.model, 3)

        def waiting():
            """Whether only the answer that is read has grown meanwhile."""
            done = long.calls
            assert whole(server, seed=3) == expected
            return long.calls == done + 12

        eventually(waiting)
        assert long.calls < 90_000
        reset(leaving)
        eventually(lambda: len(connections(server)) == 1)
        # One that still owes the rest of its question gets an answer on closing.
        silent = connect(server, body(), promised=10_000)
        eventually(lambda: len(connections(server)) == 2)
    answer = silent.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "shutting_down"
    silent.close()
    deaf.close()
    assert not connections(server)
    assert threads() == before


def test_close_in_the_middle_of_streams_leaves_nothing_behind(model):
    before = threads()
    slow = Slow(model, 0.01)
    server = serve(slow, toy_tokenizer(), name="tiny")
    started = threading.Barrier(8)
    ends, refusals = [], []

    def listen(seed):
        request = body(seed=seed, new=70, stream=True)
        with httpx.stream("POST", url(server), json=request, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            started.wait(60)
            ends.append(list(lines)[-2:])

    def wait(seed):
        started.wait(60)
        refusals.append(httpx.post(url(server), json=body(seed, 70), timeout=60))

    clients = [threading.Thread(target=listen, args=(n,)) for n in range(5)]
    clients += [threading.Thread(target=wait, args=(n,)) for n in range(2)]
    for client in clients:
        client.start()
    started.wait(60)
    eventually(lambda: len(connections(server)) == 7)
    server.close()
    done = slow.calls
    for client in clients:
        client.join(60)
    assert threads() == before
    assert not connections(server)
    assert slow.calls == done
    assert [response.status_code for response in refusals] == [503, 503]
    assert {r.json()["error"]["code"] for r in refusals} == {"shutting_down"}
    assert len(ends) == 5
    assert all("shutting down" in end[0] for end in ends)


def bound_to(server):
    (listener,) = server._uvicorn.servers[0].sockets
    return listener.getsockname()[0]


def test_only_this_machine_can_connect_unless_told_otherwise(server, model):
    assert bound_to(server) == "127.0.0.1"
    with serve(model, toy_tokenizer(), host="0.0.0.0") as other:
        assert bound_to(other) == "0.0.0.0"


@pytest.mark.parametrize(
    ("options", "address"), [([], "127.0.0.1"), (["--host", "0.0.0.0"], "0.0.0.0")]
)
def test_the_command_too_serves_only_this_machine_unless_told_otherwise(
    monkeypatch, model, options, address
):
    addresses = []

    def serve_and_stop(*args, **kwargs):
        server = serve(*args, **kwargs)
        addresses.append(bound_to(server))
        server.close()
        return server

    loaded = (model, toy_tokenizer())
    monkeypatch.setattr(tiny_models.loading, "load", lambda name: loaded)
    monkeypatch.setattr(tiny_models.server.running, "serve", serve_and_stop)
    monkeypatch.setattr(sys, "argv", ["server", "--port", "0", *options])
    tiny_models.server.main()
    assert addresses == [address]
