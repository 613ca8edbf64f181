"""Checks of lesson 01. Oracles: cases worked by hand, and the course's own server with
a tiny random model whose logits are known. The client is the real one of `openai`:
where the API's words are given, only the network is replaced."""

import contextlib
import json
import os
from types import SimpleNamespace

import httpx
import pytest
import torch
from openai import APIError, OpenAI
from openai.types.chat import ChatCompletion

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import random_llama, serve
from tiny_models.toy_tokenizer import toy_tokenizer

ask = exercise("ask")
stream_text = exercise("stream_text")
read_sse = exercise("read_sse")
continue_chat = exercise("continue_chat")
top_alternatives = exercise("top_alternatives")

BASE = {"id": "chatcmpl-1", "created": 1, "model": "tiny"}


def hi():
    """New for each use: a wrong answer may change what it is given."""
    return [{"role": "user", "content": "Hi"}]


def talk():
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi\n", "name": "Ann"},
        {"role": "assistant", "content": "Hello!"},
    ]


def long_talk():
    """With empty contents, a late system message, and two users in a row at its end."""
    turns = [("user", "One?"), ("assistant", "One."), ("user", ""), ("assistant", "")]
    turns += [("system", "Be brief."), *turns[:2] * 3, ("user", "Two?")]
    return talk() + [{"role": role, "content": text} for role, text in turns]


def completion(*texts, logprobs=None):
    choices = [
        {
            "index": n,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
        }
        for n, text in enumerate(texts)
    ]
    return {**BASE, "object": "chat.completion", "choices": choices}


def chunk(content=None, choices=1, index=0, end=None, **delta):
    choice = {"index": index, "finish_reason": end}
    choice["delta"] = {**delta, "content": content}
    body = {**BASE, "object": "chat.completion.chunk"}
    return {**body, "choices": [choice] * choices}


class Events(httpx.SyncByteStream):
    """Server-sent events, each made when it is asked for."""

    def __init__(self, documents):
        self.documents = documents

    def __iter__(self):
        for document in self.documents:
            yield f"data: {json.dumps(document)}\n\n".encode()
        yield b"data: [DONE]\n\n"


class FakeClient(OpenAI):
    """The real client, to which the API says what it was told, one answer for each
    call: a completion, or the chunks of a stream. `calls` holds the requests."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []
        network = httpx.Client(transport=httpx.MockTransport(self.answer))
        url = "http://api.invalid/v1"
        super().__init__(
            api_key="none", base_url=url, max_retries=0, http_client=network
        )

    def answer(self, request):
        fields = json.loads(request.content)
        self.calls.append(fields)
        if not self.answers:
            told = f"the API was called {counted(len(self.calls), 'time')}: too often"
            return httpx.Response(400, json={"error": {"message": told}})
        answer = self.answers.pop(0)
        if not fields.get("stream"):
            if not isinstance(answer, dict):
                answer = completion("Not streamed: the request has no stream=True.")
            return httpx.Response(200, json=answer)
        if isinstance(answer, dict):
            answer = [chunk("Streamed: the request has stream=True.")]
        kind = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=kind, stream=Events(answer))


def only_call(client, name):
    assert len(client.calls) == 1, f"{name} called the API {len(client.calls)} times"
    return client.calls[0]


def has_fields(request, wanted):
    """A request has these fields; None is one of JSON's values, null."""
    for field, value in wanted.items():
        assert field in request, (
            f"the request has no {field!r}{missing_field(field, request, wanted)}"
        )
        got = request[field]
        if field == "messages":
            same_messages(got, value, "the request")
            continue
        if got is None or value is None:
            assert got is value, f"the request's {field} should be {value}, not {got}"
        else:
            expect.value(got, value, f"the request's {field}")


def missing_field(field, request, wanted):
    """Why a request has no such field, where we can tell."""
    if field == "stream":
        return ": ask for a stream with stream=True."
    if field == "logprobs":
        return ": top_logprobs needs logprobs=True."
    if field in ("model", "messages"):
        return "."
    others = [x for x, value in wanted.items() if value is not None]
    if wanted[field] is None and all(x in request for x in others):
        return f", and {field}=None was given: None is handed on like any other value."
    return ": are **options passed on?"


def names(fields):
    """Their names as a learner writes them."""
    return ", ".join(map(repr, sorted(fields)))


def same_messages(got, expected, holder, hint=""):
    """`holder`, a request or a history, has the messages that are expected. Where not:
    the first that differs, numbered from 1."""
    hint = f" {hint}" if hint else ""
    if not isinstance(got, list):
        expect.value(got, expected, f"{holder}: the messages")
    pairs = enumerate(zip(got, expected, strict=False))
    short = min(len(got), len(expected))
    first = next((n for n, (a, b) in pairs if a != b), short)
    if len(got) != len(expected):
        text = f"{holder} should have {counted(len(expected), 'message')}, not "
        text += f"{len(got)}.{hint}"
        missing = len(expected) - len(got)
        if got == expected[missing:] and missing > 0:
            some = "first is" if missing == 1 else f"first {missing} are"
            raise AssertionError(f"{text} The {some} missing.")
        if first < len(expected):
            text += f" The first that differs is message {first + 1}, "
            text += f"{expected[first]}."
            roles = [m["role"] for m in expected[first:][:2]]
            if not expected[first]["content"] or roles == ["user", "user"]:
                text += " Keep each message as it is, empty ones and two in a row of "
                text += "one role, too."
        raise AssertionError(text)
    if got == expected:
        return
    a, b = got[first], expected[first]
    lost = [x for x in b if isinstance(a, dict) and x not in a]
    if lost and a.items() <= b.items():
        text = f"{holder}: message {first + 1} lacks {names(lost)}"
        raise AssertionError(f"{text}: keep the messages as they are.")
    if sorted(map(str, got)) == sorted(map(str, expected)):
        hint = " Keep the order."
    raise AssertionError(
        f"{holder}: message {first + 1} should be {b}, not {expect.show(a)}.{hint}"
    )


@pytest.fixture(scope="module")
def real():
    """The real client, the server's name for its model, the model and its tokenizer."""
    # An EOS that is no token: else a sampled answer may end before its first token.
    vocab = len(toy_tokenizer())
    model = random_llama(vocab_size=vocab, eos_token_id=None)
    model.generation_config.eos_token_id = vocab
    with serve(model, toy_tokenizer(), name="tiny") as server:
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        yield SimpleNamespace(client=client, model=model, tokenizer=toy_tokenizer())
        client.close()


def generated(real, text, new, seed=None, **options):
    """What `generate` says to a prompt that is written out by hand."""
    ids = real.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    if seed is not None:
        torch.manual_seed(seed)
    out = real.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options
    )
    return real.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


PASSED_ON = "Is each option passed on, and the text left alone?"


def a_str(got, call):
    """`got`, if it is a str. What a random model writes looks like a crash: it is not
    shown."""
    hint = ""
    if got is None:
        hint = " Is a `return` missing?"
    elif isinstance(got, ChatCompletion):
        hint = " That is the whole response; the text is in choices[0].message.content."
    elif hasattr(got, "content"):
        hint = " That is the message; its text is in .content."
    kind = "None" if got is None else f"a {type(got).__name__}"
    assert isinstance(got, str), f"{call} should return a str, not {kind}.{hint}"
    return got


def same_text(got, oracle, call, hint=PASSED_ON):
    """What a random model writes cannot be read: say only where the two part."""
    a_str(got, call)
    if got != oracle:
        part = len(os.path.commonprefix([got, oracle]))
        text = f"{call} gave {counted(len(got), 'character')}"
        if oracle.startswith(got) and got:
            text += f"; `generate` gives {len(oracle)}: those that came are right, and "
            raise AssertionError(text + "the end is missing.")
        if got.startswith(oracle):
            text += f"; `generate` gives {len(oracle)}: yours goes on after them."
            raise AssertionError(text)
        there = [ascii(x[part : part + 3]) for x in (got, oracle)]
        raise AssertionError(
            f"{text}. From character {part} on they are {there[0]}, those of "
            f"`generate` {there[1]}. {hint}".rstrip()
        )


# --- ask ------------------------------------------------------------------------------


def test_the_text_of_the_first_choice(ask):
    for text, hint in (("Hi!", ""), (" Hi!\n", "Its spaces belong to it: no strip().")):
        got = ask(FakeClient(completion(text, "Bye!")), "tiny", hi())
        a_str(got, "ask")
        call = f"ask with an API that gives the choices {text!r} and 'Bye!'"
        expect.value(got, text, call, hint)


def test_the_request_is_what_was_asked_for(ask):
    client = FakeClient(completion("Hi!"))
    messages = talk()
    options = {"temperature": 0.5, "max_tokens": 7, "stop": "x", "seed": None}
    with expect.unchanged("pass it on as it is", messages=messages):
        ask(client, "tiny", messages, **options)
    wanted = {"model": "tiny", "messages": talk(), **options}
    got = only_call(client, "ask")
    has_fields(got, wanted)
    extra = set(got) - set(wanted)
    assert extra <= {"stream"}, f"nobody asked for {names(extra)} in the request."


def test_without_options_the_request_has_none(ask):
    client = FakeClient(completion("Hi!"))
    ask(client, "tiny", hi())
    extra = set(only_call(client, "ask")) - {"model", "messages", "stream"}
    assert not extra, (
        f"ask without options put {names(extra)} in the request: only what is in "
        "options goes there."
    )


def test_each_call_is_a_request_of_its_own(ask):
    client = FakeClient(completion("Hi!"), completion("Bye!"))
    got = [ask(client, "tiny", hi()) for _ in range(2)]
    call = "ask, twice, with an API that says 'Hi!' and then 'Bye!'"
    expect.value(got, ["Hi!", "Bye!"], call)


def test_ask_says_what_generate_says(ask, real):
    prompt = "<user>Hi</s><assistant>"
    options = {"max_tokens": 8}
    for seed in (0, 1):
        got = ask(real.client, "tiny", hi(), temperature=0.8, seed=seed, **options)
        sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0}
        oracle = generated(real, prompt, 8, seed, **sampling)
        same_text(got, oracle, f"ask of the real server, seed {seed},")
    greedy = generated(real, prompt, 8, do_sample=False)
    got = ask(real.client, "tiny", hi(), temperature=0, **options)
    same_text(got, greedy, "ask of the real server, temperature 0,")


# --- stream_text ----------------------------------------------------------------------


def pieces_of(stream_text, client, **options):
    """All pieces, if they are pieces."""
    got = stream_text(client, "tiny", hi(), **options)
    assert not isinstance(got, str), (
        "stream_text returned one str: yield each piece, so that it can be shown early"
    )
    assert got is not None, "stream_text returned None: yield each piece"
    with (
        expect.hinting("Is it a chunk without choices? Skip it.", IndexError),
        expect.hinting("yield inside the `with`.", httpx.StreamClosed),
    ):
        return list(got)


def test_pieces_worked_by_hand(stream_text):
    chunks = [chunk(""), chunk("Pa"), chunk(None), chunk("ris"), chunk(choices=0)]
    pieces = pieces_of(stream_text, FakeClient(chunks))
    call = "stream_text of '', 'Pa', None, 'ris' and a chunk without choices"
    expect.value(pieces, ["Pa", "ris"], call)


def test_a_chunk_without_choices_may_come_at_any_place(stream_text):
    chunks = [chunk(choices=0), chunk("Pa"), chunk(choices=0), chunk("ris")]
    client = FakeClient(chunks)
    got = pieces_of(stream_text, client)
    hint = ""
    if got in ([], ["Pa"]) and client.calls and client.calls[0].get("stream"):
        hint = "Skip a chunk without choices; the stream is not over."
    call = "stream_text with chunks without choices before and between the pieces"
    expect.value(got, ["Pa", "ris"], call, hint)


def test_every_piece_of_text_comes_out(stream_text):
    texts = ["Oh", "Ha", "Ha", " ", "\n", "!"]
    chunks = [chunk("Oh", role="assistant"), *map(chunk, texts[1:-1])]
    got = pieces_of(stream_text, FakeClient([*chunks, chunk("!", end="stop")]))
    call = "stream_text of 'Oh' (with the role), 'Ha', 'Ha', ' ', '\\n' and '!' (with "
    hint = "A piece is left out only if it is None or empty."
    expect.value(got, texts, call + "the finish reason)", hint)


def test_of_two_answers_the_first_is_streamed(stream_text):
    both = chunk("ris")
    both["choices"] += chunk("lin", index=1)["choices"]
    chunks = [chunk("Pa"), chunk("Ber", index=1), both, chunk("!", index=1)]
    got = pieces_of(stream_text, FakeClient(chunks), n=2)
    call = "stream_text, n=2, of 'Pa', 'ris' and, mixed in, 'Ber', 'lin', '!'"
    hint = "`ask` returns the first of several answers: that with choice.index 0."
    expect.value(got, ["Pa", "ris"], call, hint)


def test_no_text_gives_no_piece(stream_text):
    for chunks in ([], [chunk("")], [chunk(choices=0)]):
        got = pieces_of(stream_text, FakeClient(chunks))
        expect.value(got, [], f"stream_text of {len(chunks)} chunks without text")


def test_the_request_of_a_stream(stream_text):
    client, messages = FakeClient([chunk("Hi")]), talk()
    options = {"temperature": 0.5, "seed": None, "max_tokens": 7, "stop": "x"}
    with expect.unchanged("pass it on as it is", messages=messages):
        list(stream_text(client, "tiny", messages, **options))
    got = only_call(client, "stream_text")
    wanted = {"model": "tiny", "messages": talk(), **options, "stream": True}
    has_fields(got, wanted)
    extra = set(got) - set(wanted)
    assert not extra, f"nobody asked for {names(extra)} in the request."


def test_a_piece_comes_out_before_the_next_chunk_is_there(stream_text):
    given = []

    def chunks():
        for text in ("Pa", "ris"):
            given.append(text)
            yield chunk(text)

    pieces = iter(stream_text(FakeClient(chunks()), "tiny", hi()))
    first = next(pieces, None)
    assert first is not None, "no piece came out of a stream of 'Pa' and 'ris'"
    expect.value(first, "Pa", "the first piece")
    assert given == ["Pa"], (
        "the second chunk was waited for before the first piece came out: yield inside "
        "the loop, without collecting"
    )


def test_the_stream_joins_to_what_generate_says(stream_text, real):
    options = {"temperature": 0.8, "seed": 1, "max_tokens": 8}
    pieces = pieces_of(stream_text, real.client, **options)
    got = "".join(a_str(piece, "each piece of stream_text") for piece in pieces)
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0}
    oracle = generated(real, "<user>Hi</s><assistant>", 8, 1, **sampling)
    same_text(got, oracle, "the joined pieces from the real server")


def test_a_usage_chunk_is_no_text(stream_text, real):
    options = {"max_tokens": 3, "temperature": 0}
    usage = {"include_usage": True}
    plain = pieces_of(stream_text, real.client, **options)
    got = pieces_of(stream_text, real.client, stream_options=usage, **options)
    assert got == plain, (
        "with temperature=0 the pieces should be the same with and without "
        "stream_options={'include_usage': True}: a chunk with the usage has no text"
    )


# --- read_sse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (
            [": ping", 'data: {"a": 1}', "", 'data:{"b": 2}', "", "data: [DONE]", ""],
            [{"a": 1}, {"b": 2}],
        ),
        (["data: [DONE]", ""], []),
        (['data: {"a": 1}', "", "", ": x", "", "data: [DONE]", ""], [{"a": 1}]),
        (['data: {"a":', 'data: "1"}', "", "data: [DONE]", ""], [{"a": "1"}]),
        (["event: x", "id: 7", 'data: {"a": 1}', "", "data: [DONE]", ""], [{"a": 1}]),
        (['data: {"a": 1}', ""], [{"a": 1}]),
        (['data: {"a": "x: y, data: z"}', ""], [{"a": "x: y, data: z"}]),
        (
            ['data: {"t": "[DONE]"}', "", 'data: {"a": 1}', "", "data: [DONE]", ""],
            [{"t": "[DONE]"}, {"a": 1}],
        ),
        (['data: {"a": 1}', "", 'data: {"b": 2}'], [{"a": 1}]),
        (["retry", 'data: {"a": 1}', ":", "", "data: [DONE]", ""], [{"a": 1}]),
        ([], []),
        (["data: {}", ""], [{}]),
        # Fields with other names, and a comment.
        (["dataset: 1", "Data: 2", "data : 3", " data: 4", "data: {}", ""], [{}]),
        ([": data: 1", 'data: {"a": 1}', ""], [{"a": 1}]),
        (['data: {"a":', " ", "data: true}", "", "data: [DONE]", ""], [{"a": True}]),
        (['data: {"a": 1}', "", "data:[DONE]", "", "data: {}", ""], [{"a": 1}]),
    ],
)
def test_events_worked_by_hand(read_sse, lines, wanted):
    call = f"read_sse({lines})"
    got = events_of(read_sse, list(lines), call)
    hint = "An empty document is one, too." if (got, wanted) == ([], [{}]) else ""
    expect.value(got, wanted, call, hint)


def events_of(read_sse, lines, call):
    """All events; where json.loads fails, what it was given."""
    got = read_sse(lines)
    assert got is not None, f"{call} returned None: yield each document"
    kind = type(lines).__name__
    hint = f"lines is a {kind} here: use a for loop, which takes any iterable."
    try:
        with expect.hinting(hint, TypeError, says="not an iterator"):
            return list(got)
    except json.JSONDecodeError as error:
        told = misread_event(error.doc, lines if isinstance(lines, list) else [])
        raise AssertionError(
            f"{call}: json.loads was given {error.doc!r}.{told}"
        ) from None


def misread_event(text, lines):
    """What a text that is no JSON is, where we can tell."""
    if " " in lines and text == '{"a":':
        return " The line ' ' ended the event: only '' is a blank line, so no strip()."
    if text == '{"a":\nrue}':
        return (
            " It should be '{\"a\":\\ntrue}': lstrip and strip remove letters, not a "
            "word; removeprefix or partition does."
        )
    if "dataset: 1" in lines and text.endswith("{}"):
        return (
            " It should be '{}': only a field named exactly 'data' counts, not "
            "'dataset', 'Data', 'data ' or ' data'."
        )
    if ": data: 1" in lines and text.startswith("1"):
        return " A line that begins with a colon is a comment, whatever follows."
    if text == "[DONE]" and "data:[DONE]" in lines:
        return " The space after the colon may be missing before [DONE], too."
    if text == "":
        return " A blank line with no data before it is no event."
    if text.strip() == "[DONE]" or text.startswith(":"):
        return " [DONE] and comments are not JSON."
    if text.startswith("data"):
        return " The field's name is no part of its value."
    if text in ('{"a":', '"1"}', '"1"'):
        return " An event ends at a blank line: join its data lines first."
    if text in ('"b": 2}', '{"b": 2'):
        return " One space after the colon is no part of the value, if it is there."
    return ""


def test_the_lines_of_an_event_do_not_run_into_one(read_sse):
    try:
        got = list(read_sse(iter(["data: 1", "data: 2", ""])))
    except json.JSONDecodeError:
        return  # 1 and 2 on two lines are not JSON, and whoever called can know it
    assert got != [12], (
        "read_sse read the event of the lines 'data: 1' and 'data: 2' as 12: the lines "
        "of an event are joined by line ends"
    )


def test_nothing_after_done_is_read(read_sse):
    def lines():
        yield from ('data: {"a": 1}', "", "data: [DONE]", "")
        raise AssertionError("another line was asked for after [DONE]")

    call = "read_sse up to [DONE]"
    expect.value(events_of(read_sse, lines(), call), [{"a": 1}], call)


def test_an_event_comes_out_before_the_next_one_is_there(read_sse):
    read = []

    def lines():
        for line in ('data: {"a": 1}', "", 'data: {"b": 2}', ""):
            read.append(line)
            yield line

    events = iter(read_sse(lines()))
    first = next(events, None)
    assert first is not None, "no event came out of the lines of two events"
    expect.value(first, {"a": 1}, "the first event")
    assert len(read) >= 2, "the first event came out before its blank line"
    assert len(read) == 2, (
        f"{len(read)} lines were read before the first event came out: yield it at its "
        "blank line"
    )


def test_a_stream_of_the_real_server_is_read(read_sse, real):
    request = {"model": "tiny", "messages": hi(), "temperature": 0, "max_tokens": 5}
    chunks = real.client.chat.completions.create(**request, stream=True)
    oracle = [c.choices[0].delta.content or "" for c in chunks]
    create = real.client.chat.completions.with_streaming_response.create
    with create(**request, stream=True) as answer:
        events = events_of(read_sse, answer.iter_lines(), "read_sse of a real stream")
    for event in events:
        expect.returned(event, dict, "each event of a real stream")
    got = [e["choices"][0]["delta"].get("content", "") for e in events]
    expect.value(got, oracle, "the contents of the server's events")


# --- continue_chat --------------------------------------------------------------------


def turn(continue_chat, client, history, message, **options):
    """(reply, new history), if that is what came back."""
    got = continue_chat(client, "tiny", history, message, **options)
    many = counted(len(history), "message")
    call = f"continue_chat with a history of {many} and the message {message!r}"
    kind = type(got).__name__
    assert isinstance(got, tuple), (
        f"{call} should return a tuple, not a {kind}: (reply, new history)"
    )
    assert len(got) == 2, f"{call} should return (reply, new history)"
    kinds = [type(part).__name__ for part in got]
    assert kinds == ["str", "list"], (
        f"{call}: the pair should be (reply, new history), a str and a list; it is "
        f"({', '.join(kinds)})"
    )
    return got


def test_a_turn_worked_by_hand(continue_chat):
    client = FakeClient(completion("Hello!"))
    got = continue_chat(client, "tiny", [], "Hi")
    call = "continue_chat with history [], message 'Hi' and the reply 'Hello!'"
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (reply, new history)"
    expect.value(got[0], "Hello!", f"{call}: the reply")
    answer = {"role": "assistant", "content": "Hello!"}
    same_messages(got[1], [*hi(), answer], f"{call}: the new history")


def test_the_reply_goes_into_the_history_as_it_came(continue_chat):
    client = FakeClient(completion(" Hello!\n"))
    reply, new = turn(continue_chat, client, [], "Hi")
    expect.value(reply, " Hello!\n", r"the reply ' Hello!\n'")
    last = new[-1] if new else None
    answer = {"role": "assistant", "content": " Hello!\n"}
    hint = ""
    if isinstance(last, dict) and last.get("content") == "Hello!":
        hint = " Its spaces belong to it: no strip()."
    assert last == answer, (
        rf"with the reply ' Hello!\n' the new history should end with {answer}, not "
        f"{expect.show(last)}.{hint}"
    )


def test_options_go_through(continue_chat):
    client = FakeClient(completion("Hello!"))
    options = {"temperature": 0, "max_completion_tokens": 5, "stop": ["x"], "seed": 3}
    turn(continue_chat, client, [], "Hi", **options)
    got = only_call(client, "continue_chat")
    has_fields(got, options)


@pytest.mark.parametrize(
    ("history", "message", "text"), [(talk, "And you?", "Fine."), (long_talk, "", "")]
)
def test_the_whole_history_is_sent(continue_chat, history, message, text):
    client = FakeClient(completion(text))
    given = history()
    with expect.unchanged("history + [message] makes a new list", history=given):
        _, new = turn(continue_chat, client, given, message)
    question = {"role": "user", "content": message}
    sent = only_call(client, "continue_chat")["messages"]
    hint = ""
    if not any(m["role"] == "assistant" for m in sent):
        hint = "The API is stateless: it knows only what you send."
    given = f"a history of {len(history())} messages and a new one"
    wanted = [*history(), question]
    same_messages(sent, wanted, f"{given}: the request", hint)
    answer = {"role": "assistant", "content": text}
    assert text or new != wanted, (
        f"the API replied '': the new history should end with {answer}. An empty reply "
        "is one, too."
    )
    same_messages(new, [*wanted, answer], f"{given}: the new history")


def test_the_history_is_left_alone(continue_chat):
    history = talk()
    client = FakeClient(completion("Fine."), completion("Well."))
    with expect.unchanged("history + [message] makes a new list", history=history):
        _, new = turn(continue_chat, client, history, "And you?")
    assert new is not history, "the new history is the old list itself"
    turn(continue_chat, client, history, "Bye")
    question = {"role": "user", "content": "Bye"}
    call = (
        "the request of a second turn from the same history, which never saw the first,"
    )
    same_messages(client.calls[1]["messages"], [*talk(), question], call)


def test_the_history_is_left_alone_where_the_api_fails(continue_chat):
    history = talk()
    hint = "append changes it, and an error comes before it is put back"
    with expect.unchanged(hint, history=history), contextlib.suppress(APIError):
        continue_chat(FakeClient(), "tiny", history, "And you?")


def test_two_turns_say_what_generate_says(continue_chat, real):
    options = {"temperature": 0, "max_tokens": 5}
    reply, history = turn(continue_chat, real.client, [], "Hi", **options)
    oracle = generated(real, "<user>Hi</s><assistant>", 5, do_sample=False)
    same_text(reply, oracle, "the first reply of the real server")
    reply, _ = turn(continue_chat, real.client, history, "More?", **options)
    prompt = f"<user>Hi</s><assistant>{oracle}</s><user>More?</s><assistant>"
    oracle = generated(real, prompt, 5, do_sample=False)
    hint = "The model answers another conversation than the one that went before."
    same_text(reply, oracle, "the second reply of the real server", hint)


# --- top_alternatives -----------------------------------------------------------------


def entry(token, logprob, top=()):
    top = list(top)
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}


def first_token(drawn, *top):
    """A completion whose first token is `drawn`. top: (token, logprob) pairs."""
    top = [{"token": x, "logprob": logprob, "bytes": None} for x, logprob in top]
    content = [entry(*drawn, top), entry(".", -0.1, [])]
    return completion("Yes.", logprobs={"content": content, "refusal": None})


def yes_or_no():
    return first_token(("Yes", -0.6931), ("Yes", -0.6931), ("No", -1.3863))


def pairs(got, call):
    expect.returned(got, list, call)
    for pair in got:
        assert isinstance(pair, tuple), (
            f"{call}: each entry should be a tuple, (token, probability), not a "
            f"{type(pair).__name__}: {pair!r}"
        )
        assert len(pair) == 2, f"{call}: {pair!r} should be (token, probability)"
        assert isinstance(pair[1], float), f"{call}: {pair[1]!r} is no float"
    return got


def test_alternatives_worked_by_hand(top_alternatives):
    call = "top_alternatives with logprobs -0.6931 and -1.3863"
    got = pairs(top_alternatives(FakeClient(yes_or_no()), "tiny", hi(), 2), call)
    expect.value([token for token, _ in got], ["Yes", "No"], f"{call}: the tokens")
    rounded = [round(p, 3) for _, p in got]
    hint = ""
    if rounded == [-0.693, -1.386]:
        hint = "These are logarithms: exp takes them back."
    expect.value(rounded, [0.5, 0.25], f"{call}: the probabilities", hint)


def test_the_alternatives_are_those_of_the_api(top_alternatives):
    # Two tokens that are each a part of a letter have the same text.
    logprobs = [-0.6931, -1.3863, -2.0794, -9999.0]
    top = list(zip([" Yes", "\ufffd", "\ufffd", "Yes"], logprobs, strict=True))
    for n, drawn in ((4, top[1]), (1, ("No", -3.0))):
        call = f"top_alternatives, n={n}, of {top[:n]}, where {drawn[0]!r} was drawn,"
        client = FakeClient(first_token(drawn, *top[:n]))
        got = pairs(top_alternatives(client, "tiny", hi(), n), call)
        rounded = [(token, round(p, 3)) for token, p in got]
        wanted = [(" Yes", 0.5), ("\ufffd", 0.25), ("\ufffd", 0.125), ("Yes", 0.0)]
        expect.value(rounded, wanted[:n], call, misread_entries(rounded, wanted[:n]))


def misread_entries(got, wanted):
    """What wrong pairs are, where we can tell."""
    if got == [(token.strip(), p) for token, p in wanted]:
        return "' Yes' and 'Yes' are two tokens: no strip()."
    if got == [pair for pair in wanted if pair[1]]:
        return "An entry whose probability is rounded to 0 is one, too."
    if len(got) == len(dict(wanted)) < len(wanted):
        return "Two tokens may have the same text: each entry counts."
    if sorted(got) == sorted(wanted):
        return "Keep the order: the drawn token has no place of its own."
    if got == [("No", 0.05)]:
        return "That is the drawn token, which need not be among the likeliest."
    return ""


def test_the_messages_are_left_alone(top_alternatives):
    client, messages = FakeClient(yes_or_no()), talk()
    with expect.unchanged("pass it on as it is", messages=messages):
        top_alternatives(client, "tiny", messages, 2)
    sent = only_call(client, "top_alternatives")["messages"]
    same_messages(sent, talk(), "the request")


def test_no_more_is_asked_for_than_needed(top_alternatives):
    client = FakeClient(yes_or_no())
    top_alternatives(client, "tiny", hi(), 2)
    got = only_call(client, "top_alternatives")
    limit = got.get("max_tokens", got.get("max_completion_tokens"))
    has = "no limit" if limit is None else f"a limit of {limit}"
    assert limit == 1, (
        f"the request has {has}: one token is enough, max_completion_tokens=1."
    )
    has_fields(got, {"logprobs": True, "messages": hi()})
    asked = got.get("top_logprobs", 0)
    assert 2 <= asked <= 20, f"for n=2 the request's top_logprobs is {asked}"


@pytest.mark.parametrize("n", [1, 5, 20])
def test_probabilities_are_the_softmax_of_the_logits(top_alternatives, real, n):
    prompt = "<user>Hi</s><assistant>"
    ids = real.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        logits = real.model(ids["input_ids"]).logits[0, -1]
    oracle = logits.softmax(-1).topk(n).values.tolist()
    call = f"top_alternatives of the real server, n={n}"
    got = pairs(top_alternatives(real.client, "tiny", hi(), n), call)
    assert len(got) == n, f"{call} should give {n} pairs, not {len(got)}"
    probabilities = torch.tensor([p for _, p in got])
    expect.same(probabilities, oracle, f"{call}: probabilities", tolerance=1e-4)
