"""Checks of lesson 01. Oracles: cases worked by hand, and the real `openai` client on
the course's own server, with a tiny random model whose logits are known."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from course.checks import expect
from course.checks.plugin import exercise
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
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]


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
    body = {**BASE, "object": "chat.completion", "choices": choices}
    return ChatCompletion.model_validate(body)


def chunk(content=None, choices=1):
    delta = {"content": content}
    choice = {"index": 0, "finish_reason": None, "delta": delta}
    body = {**BASE, "object": "chat.completion.chunk", "choices": [choice] * choices}
    return ChatCompletionChunk.model_validate(body)


class FakeClient:
    """Answers with what it was given, one answer for each call, and records calls."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **fields):
        self.calls.append(json.loads(json.dumps(fields)))
        assert self.answers, f"the API was called {len(self.calls)} times: too often"
        answer = self.answers.pop(0)
        if isinstance(answer, ChatCompletion) or fields.get("stream"):
            return answer
        return completion("Not streamed: the request has no stream=True.")


def only_call(client, name):
    assert len(client.calls) == 1, f"{name} called the API {len(client.calls)} times"
    return client.calls[0]


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


def same_text(got, oracle, call):
    """What a random model writes cannot be read: say only where the two part."""
    expect.returned(got, str, call)
    if got != oracle:
        part = len(os.path.commonprefix([got, oracle]))
        raise AssertionError(
            f"{call}: {len(got)} characters; those of `generate` differ from "
            f"character {part} on. Is each option passed on, and the text left alone?"
        )


# --- ask ------------------------------------------------------------------------------


def test_the_text_of_the_first_choice(ask):
    got = ask(FakeClient(completion("Hi!", "Bye!")), "tiny", hi())
    hint = ""
    if isinstance(got, ChatCompletion):
        hint = " That is the whole response; the text is in choices[0].message.content."
    elif hasattr(got, "content"):
        hint = " That is the message; its text is in .content."
    kind = type(got).__name__
    assert isinstance(got, str), f"ask should return a str, not a {kind}.{hint}"
    expect.value(got, "Hi!", "ask with an API that gives the choices 'Hi!' and 'Bye!'")


def test_the_request_is_what_was_asked_for(ask):
    client = FakeClient(completion("Hi!"))
    messages = talk()
    options = {"temperature": 0.5, "max_tokens": 7, "stop": ["x"], "seed": 3}
    with expect.unchanged("pass it on as it is", messages=messages):
        ask(client, "tiny", messages, **options)
    wanted = {"model": "tiny", "messages": talk(), **options}
    got = only_call(client, "ask")
    for field, value in wanted.items():
        assert field in got, f"the request has no {field!r}: are **options passed on?"
        expect.value(got[field], value, f"the request's {field}")
    extra = set(got) - set(wanted)
    assert extra <= {"stream"}, f"nobody asked for {sorted(extra)} in the request"


def test_without_options_the_request_has_none(ask):
    client = FakeClient(completion("Hi!"))
    ask(client, "tiny", hi())
    extra = set(only_call(client, "ask")) - {"model", "messages", "stream"}
    assert not extra, f"ask without options put {sorted(extra)} in the request"


def test_ask_says_what_generate_says(ask, real):
    prompt = "<user>Hi</s><assistant>"
    options = {"max_tokens": 8}
    for seed in (0, 1):
        got = ask(real.client, "tiny", hi(), temperature=0.8, seed=seed, **options)
        sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0}
        oracle = generated(real, prompt, 8, seed, **sampling)
        same_text(got, oracle, f"ask of the real server, seed {seed}")
    greedy = generated(real, prompt, 8, do_sample=False)
    got = ask(real.client, "tiny", hi(), temperature=0, **options)
    same_text(got, greedy, "ask of the real server, temperature 0")


# --- stream_text ----------------------------------------------------------------------


def test_pieces_worked_by_hand(stream_text):
    chunks = [chunk(""), chunk("Pa"), chunk(None), chunk("ris"), chunk(choices=0)]
    client = FakeClient(iter(chunks))
    got = stream_text(client, "tiny", hi())
    assert not isinstance(got, str), (
        "stream_text returned one str: yield each piece, so that it can be shown early"
    )
    pieces = list(got)
    call = "stream_text of '', 'Pa', None, 'ris' and a chunk without choices"
    expect.value(pieces, ["Pa", "ris"], call)


def test_a_chunk_without_choices_may_come_at_any_place(stream_text):
    chunks = [chunk(choices=0), chunk("Pa"), chunk(choices=0), chunk("ris")]
    got = list(stream_text(FakeClient(iter(chunks)), "tiny", hi()))
    hint = "Skip a chunk without choices; the stream is not over."
    call = "stream_text with chunks without choices before and between the pieces"
    expect.value(got, ["Pa", "ris"], call, hint)


def test_the_request_asks_for_a_stream(stream_text):
    client = FakeClient(iter([chunk("Hi")]))
    list(stream_text(client, "tiny", talk(), temperature=0.5, seed=3))
    got = only_call(client, "stream_text")
    wanted = {"model": "tiny", "messages": talk(), "temperature": 0.5, "seed": 3}
    for field, value in {**wanted, "stream": True}.items():
        assert field in got, f"the request has no {field!r}"
        expect.value(got[field], value, f"the request's {field}")


def test_a_piece_comes_out_before_the_next_chunk_is_there(stream_text):
    given = []

    def chunks():
        for text in ("Pa", "ris"):
            given.append(text)
            yield chunk(text)

    pieces = iter(stream_text(FakeClient(chunks()), "tiny", hi()))
    expect.value(next(pieces), "Pa", "the first piece")
    assert given == ["Pa"], (
        "the second chunk was waited for before the first piece came out: yield inside "
        "the loop, without collecting"
    )


def test_the_stream_joins_to_what_generate_says(stream_text, real):
    options = {"temperature": 0.8, "seed": 1, "max_tokens": 8}
    got = "".join(stream_text(real.client, "tiny", hi(), **options))
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0}
    oracle = generated(real, "<user>Hi</s><assistant>", 8, 1, **sampling)
    same_text(got, oracle, "the joined pieces from the real server")


def test_a_usage_chunk_is_no_text(stream_text, real):
    options = {"max_tokens": 3, "temperature": 0}
    usage = {"include_usage": True}
    plain = list(stream_text(real.client, "tiny", hi(), **options))
    got = list(stream_text(real.client, "tiny", hi(), stream_options=usage, **options))
    expect.value(got, plain, "the pieces with include_usage")


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
    ],
)
def test_events_worked_by_hand(read_sse, lines, wanted):
    try:
        got = list(read_sse(iter(lines)))
    except json.JSONDecodeError as error:
        raise AssertionError(
            f"read_sse({lines}): json.loads was given {error.doc!r}. An event ends at "
            "a blank line; [DONE] and comments are not JSON."
        ) from None
    expect.value(got, wanted, f"read_sse({lines})")


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

    expect.value(list(read_sse(lines())), [{"a": 1}], "read_sse up to [DONE]")


def test_an_event_comes_out_before_the_next_one_is_there(read_sse):
    read = []

    def lines():
        for line in ('data: {"a": 1}', "", 'data: {"b": 2}', ""):
            read.append(line)
            yield line

    events = iter(read_sse(lines()))
    expect.value(next(events), {"a": 1}, "the first event")
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
        events = list(read_sse(answer.iter_lines()))
    got = [e["choices"][0]["delta"].get("content", "") for e in events]
    expect.value(got, oracle, "the contents of the server's events")


# --- continue_chat --------------------------------------------------------------------


def test_a_turn_worked_by_hand(continue_chat):
    client = FakeClient(completion("Hello!"))
    got = continue_chat(client, "tiny", [], "Hi")
    call = "continue_chat with history [], message 'Hi' and the reply 'Hello!'"
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (reply, new history)"
    expect.value(got[0], "Hello!", f"{call}: the reply")
    answer = {"role": "assistant", "content": "Hello!"}
    expect.value(got[1], [*hi(), answer], f"{call}: the new history")


def test_the_reply_goes_into_the_history_as_it_came(continue_chat):
    client = FakeClient(completion(" Hello!\n"))
    reply, new = continue_chat(client, "tiny", [], "Hi")
    expect.value(reply, " Hello!\n", "the reply ' Hello!\n'")
    expect.value(new[-1]["content"], " Hello!\n", "its content in the new history")


def test_options_go_through(continue_chat):
    client = FakeClient(completion("Hello!"))
    continue_chat(client, "tiny", [], "Hi", temperature=0, max_tokens=5)
    got = only_call(client, "continue_chat")
    for field, wanted in (("temperature", 0), ("max_tokens", 5)):
        assert field in got, f"the request has no {field!r}: are **options passed on?"
        expect.value(got[field], wanted, f"the request's {field}")


def test_the_whole_history_is_sent(continue_chat):
    client = FakeClient(completion("Fine."))
    history = talk()
    _, new = continue_chat(client, "tiny", history, "And you?")
    question = {"role": "user", "content": "And you?"}
    sent = only_call(client, "continue_chat")["messages"]
    hint = "The API is stateless: it knows only what you send."
    expect.value(sent, [*talk(), question], "the messages of the request", hint)
    answer = {"role": "assistant", "content": "Fine."}
    expect.value(new, [*talk(), question, answer], "the new history")


def test_the_history_is_left_alone(continue_chat):
    history = talk()
    client = FakeClient(completion("Fine."), completion("Well."))
    with expect.unchanged("history + [message] makes a new list", history=history):
        _, new = continue_chat(client, "tiny", history, "And you?")
    assert new is not history, "the new history is the old list itself"
    _, other = continue_chat(client, "tiny", history, "Bye")
    assert [m["content"] for m in other[3:]] == ["Bye", "Well."], (
        f"a second turn from the same history should not see the first: {other}"
    )


def test_two_turns_say_what_generate_says(continue_chat, real):
    options = {"temperature": 0, "max_tokens": 5}
    reply, history = continue_chat(real.client, "tiny", [], "Hi", **options)
    oracle = generated(real, "<user>Hi</s><assistant>", 5, do_sample=False)
    same_text(reply, oracle, "the first reply of the real server")
    reply, _ = continue_chat(real.client, "tiny", history, "More?", **options)
    prompt = f"<user>Hi</s><assistant>{oracle}</s><user>More?</s><assistant>"
    oracle = generated(real, prompt, 5, do_sample=False)
    same_text(reply, oracle, "the second reply of the real server")


# --- top_alternatives -----------------------------------------------------------------


def entry(token, logprob, top=()):
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}


def yes_or_no():
    top = [entry("Yes", -0.6931), entry("No", -1.3863)]
    for one in top:
        del one["top_logprobs"]
    content = [entry("Yes", -0.6931, top), entry(".", -0.1, [])]
    return completion("Yes.", logprobs={"content": content, "refusal": None})


def pairs(got, call):
    expect.returned(got, list, call)
    for pair in got:
        assert isinstance(pair, tuple), f"{call}: {pair!r} is no (token, probability)"
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


def test_no_more_is_asked_for_than_needed(top_alternatives):
    client = FakeClient(yes_or_no())
    top_alternatives(client, "tiny", hi(), 2)
    got = only_call(client, "top_alternatives")
    limit = got.get("max_tokens", got.get("max_completion_tokens"))
    assert limit == 1, f"one token is enough; the request has max_tokens={limit}"
    for field, value in {"logprobs": True, "top_logprobs": 2, "messages": hi()}.items():
        assert field in got, f"the request has no {field!r}"
        expect.value(got[field], value, f"the request's {field}")


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
