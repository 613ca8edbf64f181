"""The API server: what a client asks for is what it gets, or an error that says why.

The expected texts come from `model.generate`, from a slow loop over the same formula,
or from a scripted model, never from the server's own engine.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course.checks import running
from course.paths import SOLUTIONS
from tiny_models import ScriptedModel, random_gpt2, random_llama, serve
from tiny_models.detokenizer import Detokenizer
from tiny_models.engine.logprobs import printable, token_bytes
from tiny_models.engine.memory import KeyValueStore, Row, run
from tiny_models.engine.sampling import AdditivePenalties
from tiny_models.engine.text import StopStrings
from tiny_models.server import ChatRequest, ModelEngine, serve_engine
from tiny_models.server.command import allow_more_files, open_to_others, own_address
from tiny_models.server.idle import IDLE

try:
    import resource
except ImportError:  # on Windows
    resource = None

torch.set_num_threads(1)

HI = [{"role": "user", "content": "Hi there"}]
CONTEXT = 128
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# --- fixtures ---


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """All 256 bytes and a few merges; ids 0, 1, 2 are pad, bos and eos."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["the cat sat on the hat and said hello world"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
        padding_side="left",
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As TinyLlama's: "▁" for a space, <0xE2> for bytes, the first space dropped."""
    words = ["▁", "▁the", "▁cat", "s", "a", "t", "."]
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocab)}, [], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


class Watched:
    """A model that keeps count of its calls and may wait before each."""

    def __init__(self, model, before=lambda: None):
        self.model, self.before = model, before
        self.caches = []  # the cache of each call: tells whose step it was

    def __call__(self, **inputs):
        self.before()
        out = self.model(**inputs)
        self.caches.append(out.past_key_values)
        return out

    def __getattr__(self, name):
        return getattr(self.model, name)


class Replaced:
    """A model with another way to run."""

    def __init__(self, model, run):
        self.model, self.run = model, run

    def __call__(self, **inputs):
        return self.run(**inputs)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_llama(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module", params=["the course's engine", "that of lesson 17"])
def server(request, model, tokenizer):
    """All that is asked of a server holds whoever wrote the engine."""
    engine = None
    if request.param == "that of lesson 17":
        kind = engine_of_the_lesson()
        engine = kind(model, tokenizer, blocks=64, token_budget=64, max_batch=8)
    with serve_engine(ModelEngine(model, tokenizer, "tiny", engine)) as server:
        yield server


def engine_of_the_lesson():
    """The class that a learner has written at the end of lesson 17."""
    mine = running.load(SOLUTIONS / "17_serve_it.ipynb").exercises
    parts = {name: mine[name] for name in ("BlockAllocator", "PrefixCache")}
    return type("Mine", (mine["Engine"],), {**parts, "Scheduler": mine["Scheduler"]})


@pytest.fixture(scope="module")
def client(server):
    with openai_client(server) as client:
        yield client


def openai_client(server):
    return openai.OpenAI(
        base_url=server.base_url, api_key="x", max_retries=0, timeout=60
    )


def post(server, body=None, **request):
    url = f"{server.base_url}/chat/completions"
    if body is not None:
        request["json"] = body
    return httpx.post(url, timeout=60, **request)


def chat(server, **fields):
    """A request with raw HTTP that must succeed; returns the response's JSON."""
    body = {"model": server.model, "messages": HI, **fields}
    response = post(server, {k: v for k, v in body.items() if v != "absent"})
    assert response.status_code == 200, response.text
    return response.json()


def chunks_of(server, **fields):
    """The same, streamed: every chunk."""
    body = {"model": server.model, "messages": HI, "stream": True, **fields}
    lines = post(server, body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def text_of(completion, index=0):
    return completion["choices"][index]["message"]["content"]


def streamed_text(chunks, index=0):
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def local_ids(model, tokenizer, messages=HI, seed=None, max_new_tokens=24, **options):
    """The new ids of `generate`: the oracle. Sampled if a seed is given."""
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
            options = {"top_k": 0, **options}
        output = model.generate(
            **encoded,
            do_sample=seed is not None,
            max_new_tokens=max_new_tokens,
            **options,
        )
    return output[0, encoded["input_ids"].shape[1] :]


def local_text(model, tokenizer, **options):
    ids = local_ids(model, tokenizer, **options)
    return tokenizer.decode(ids, skip_special_tokens=True)


def always(tokenizer, word):
    """A logit_bias under which every token is this word: no EOS, no half character."""
    (token,) = tokenizer(word)["input_ids"]
    return {str(token): 100}


def scripted(tokenizer, text, eos=True):
    """A server whose model says this text, once."""
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * eos
    return serve(ScriptedModel.of_tokens([ids], len(tokenizer)), tokenizer), ids


# --- the same text as generate ---

SAMPLERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.8},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"top_k": 10_000},
]


def test_temperature_0_is_greedy_generate(server, model, tokenizer):
    expected = local_text(model, tokenizer)
    assert text_of(chat(server, temperature=0, max_tokens=24)) == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_seed_gives_the_text_of_generate(server, model, tokenizer, sampler, seed):
    expected = local_text(model, tokenizer, seed=seed, **sampler)
    request = {"seed": seed, "max_tokens": 24, **sampler}
    assert text_of(chat(server, **request)) == expected
    assert streamed_text(chunks_of(server, **request)) == expected


def test_gpt2_with_its_absolute_positions_gives_the_text_of_generate(tokenizer):
    model = random_gpt2(vocab_size=len(tokenizer))
    with serve(model, tokenizer) as server:
        for options in ({"seed": 3}, {}):
            expected = local_text(model, tokenizer, **options)
            request = options or {"temperature": 0}
            assert text_of(chat(server, max_tokens=24, **request)) == expected


def test_on_the_kernels_it_is_the_text_of_generate(model, tokenizer):
    with serve(model, tokenizer, kernels=True) as server:
        for options in ({"seed": 3}, {"seed": 4, "top_k": 5}, {}):
            expected = local_text(model, tokenizer, **options)
            request = {"max_tokens": 24, **(options or {"temperature": 0})}
            assert text_of(chat(server, **request)) == expected
            assert streamed_text(chunks_of(server, **request)) == expected


def test_the_command_says_which_model_the_kernels_do_not_know(monkeypatch, tokenizer):
    import tiny_models.loading
    from tiny_models.server import main

    gpt2 = random_gpt2(vocab_size=len(tokenizer))
    monkeypatch.setattr(tiny_models.loading, "load", lambda name: (gpt2, tokenizer))
    monkeypatch.setattr(sys, "argv", ["server", "--port", "0", "--kernels"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert "The kernels of lesson 14 know Llama models" in str(caught.value)
    assert "this is a gpt2" in str(caught.value)


def test_an_eos_sampled_in_the_middle_ends_the_text_as_in_generate(
    server, model, tokenizer
):
    endings = set()
    for bias, seed in itertools.product((-100, 3, 100), range(3)):
        eos = {(2,): float(bias)}
        ids = local_ids(model, tokenizer, seed=seed, sequence_bias=eos)
        got = chat(server, seed=seed, max_tokens=24, logit_bias={"2": bias})
        assert text_of(got) == tokenizer.decode(ids, skip_special_tokens=True)
        assert got["usage"]["completion_tokens"] == len(ids)
        ended = ids[-1].item() == 2
        assert got["choices"][0]["finish_reason"] == ("stop" if ended else "length")
        endings.add(ended)
    assert endings == {True, False}


def test_every_id_of_a_list_of_eos_ids_ends_the_text(tokenizer):
    model = random_llama(vocab_size=len(tokenizer), eos_token_id=[1, 2])
    with serve(model, tokenizer) as server:
        for eos in ("1", "2"):
            got = chat(server, logit_bias={eos: 100}, max_tokens=5)
            assert got["choices"][0]["finish_reason"] == "stop"
            assert got["usage"]["completion_tokens"] == 1


def test_the_learners_random_stream_is_not_touched(server):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    chat(server, seed=1, max_tokens=4)
    chat(server, max_tokens=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_answers_differ(server):
    fields = {"max_tokens": 24, "logit_bias": {"2": -100}}
    assert text_of(chat(server, **fields)) != text_of(chat(server, **fields))


def test_choice_i_has_the_seed_plus_i(server, model, tokenizer):
    ids = [local_ids(model, tokenizer, seed=5 + i) for i in range(3)]
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    assert len(set(expected)) == 3
    got = chat(server, seed=5, n=3, max_tokens=24)
    assert [choice["index"] for choice in got["choices"]] == [0, 1, 2]
    assert [text_of(got, i) for i in range(3)] == expected
    prompt = got["usage"]["prompt_tokens"]
    assert got["usage"]["completion_tokens"] == sum(map(len, ids))
    assert got["usage"]["total_tokens"] == prompt + sum(map(len, ids))
    chunks = chunks_of(server, seed=5, n=3, max_tokens=24)
    assert [streamed_text(chunks, i) for i in range(3)] == expected
    for i in range(3):
        of_i = [c for chunk in chunks for c in chunk["choices"] if c["index"] == i]
        reason = got["choices"][i]["finish_reason"]
        reasons = [None] * (len(of_i) - 1) + [reason]
        assert [choice["finish_reason"] for choice in of_i] == reasons
        assert of_i[0]["delta"] == {"role": "assistant", "content": ""}


def test_null_means_the_default(server):
    fields = ChatRequest.model_fields
    optional = [name for name, field in fields.items() if not field.is_required()]
    own = [name for name in optional if name not in IDLE]
    assert len(own) == 16
    nothing = {**dict.fromkeys(optional), "seed": 4, "max_tokens": 24}
    assert text_of(chat(server, **nothing)) == text_of(
        chat(server, seed=4, max_tokens=24, temperature=1, top_p=1, top_k=0)
    )


# --- messages ---


def test_developer_is_system_and_text_parts_are_their_text(server):
    system = {"role": "system", "content": "Be brief."}
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    wanted = chat(server, messages=[system, *HI], temperature=0, max_tokens=9)
    for messages in (
        [{**system, "role": "developer"}, *HI],
        [system, {"role": "user", "content": parts}],
    ):
        got = chat(server, messages=messages, temperature=0, max_tokens=9)
        assert text_of(got) == text_of(wanted)
        assert got["usage"] == wanted["usage"]


def test_an_answer_can_be_sent_back_as_it_came(client, model, tokenizer):
    ask = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    first = client.chat.completions.create(messages=HI, **ask).choices[0].message
    more = {"role": "user", "content": "Go on"}
    history = [*HI, {"role": "assistant", "content": first.content}, more]
    expected = local_text(model, tokenizer, messages=history, max_new_tokens=6)
    assert first.model_dump()["tool_calls"] is None  # as are others
    for answer in (first, first.model_dump()):
        second = client.chat.completions.create(messages=[*HI, answer, more], **ask)
        assert second.choices[0].message.content == expected


def test_a_chat_template_that_refuses_gives_400(model):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only one message, please') }}"
    with serve(model, tokenizer) as server:
        response = post(server, {"model": server.model, "messages": HI})
    assert response.status_code == 400
    assert "only one message, please" in response.json()["error"]["message"]


# --- the fields, one by one ---


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_counts_new_tokens(server, tokenizer, field):
    got = chat(server, logit_bias={"2": -100}, **{field: 3})
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True)
    prompt = len(prompt["input_ids"])
    assert got["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "total_tokens": prompt + 3,
    }
    assert got["choices"][0]["finish_reason"] == "length"


def test_both_names_of_max_tokens_may_agree(server):
    got = chat(server, max_tokens=2, max_completion_tokens=2, logit_bias={"2": -100})
    assert got["usage"]["completion_tokens"] == 2


def test_without_max_tokens_the_context_is_the_limit(server):
    got = chat(server, logit_bias={"2": -100})
    assert got["usage"]["total_tokens"] == CONTEXT
    assert got["choices"][0]["finish_reason"] == "length"


def test_the_context_can_be_filled_to_its_last_token(server):
    prompt = chat(server, max_tokens=1)["usage"]["prompt_tokens"]
    left = CONTEXT - prompt
    got = chat(server, max_tokens=left, logit_bias={"2": -100})
    assert got["usage"]["total_tokens"] == CONTEXT
    body = {"model": server.model, "messages": HI, "max_tokens": left + 1}
    assert post(server, body).json()["error"]["code"] == "context_length_exceeded"


def test_logit_bias_takes_the_ids_of_the_vocabulary(server, model):
    size = model.config.vocab_size
    chat(server, max_tokens=1, logit_bias={"0": 1, str(size - 1): 1})
    body = {"model": server.model, "messages": HI, "logit_bias": {str(size): 1}}
    response = post(server, body)
    assert response.status_code == 400
    assert f"from 0 to {size - 1}" in response.json()["error"]["message"]


def test_logit_bias_forces_and_bans(server, model, tokenizer):
    got = chat(server, seed=1, max_tokens=5, logit_bias=always(tokenizer, "the"))
    assert text_of(got) == "the" * 5

    best = local_ids(model, tokenizer, max_new_tokens=1)[0].item()
    ban = {(best,): -100.0}
    got = chat(server, temperature=0, max_tokens=9, logit_bias={str(best): -100})
    want = local_ids(model, tokenizer, max_new_tokens=9, sequence_bias=ban)
    assert best not in want
    assert text_of(got) == tokenizer.decode(want, skip_special_tokens=True)


def test_penalties_by_hand():
    # Token 1 came twice, token 3 once: 5 - 2 * 0.5 - 1, and 2 - 1 * 0.5 - 1.
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    got = AdditivePenalties(0.5, 1.0)(torch.tensor([[1, 3, 1]]), scores)
    assert got.tolist() == [[1.0, 3.0, 3.0, 0.5]]
    assert scores.tolist() == [[1.0, 5.0, 3.0, 2.0]]
    none_yet = AdditivePenalties(0.5, 1.0)(torch.zeros(1, 0, dtype=torch.long), scores)
    assert torch.equal(none_yet, scores)


@pytest.mark.parametrize(("frequency", "presence"), [(1.5, 0), (0, 2), (-1, -0.5)])
@pytest.mark.parametrize("seed", [None, 0])
def test_penalties_follow_the_formula(
    server, model, tokenizer, frequency, presence, seed
):
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True)
    prompt = len(prompt["input_ids"])

    def slow(input_ids, scores):  # the formula of the API's documentation
        scores = scores.clone()
        new = input_ids[0, prompt:].tolist()
        for token in range(scores.shape[1]):
            count = new.count(token)
            scores[0, token] -= count * frequency + (count > 0) * presence
        return scores

    options = {"logits_processor": [slow], "seed": seed}
    expected = local_text(model, tokenizer, **options)
    assert expected != local_text(model, tokenizer, seed=seed)
    sampling = {"temperature": 0} if seed is None else {"seed": seed}
    got = chat(
        server,
        frequency_penalty=frequency,
        presence_penalty=presence,
        max_tokens=24,
        **sampling,
    )
    assert text_of(got) == expected


# --- text: whole characters, stop strings ---

STORY = "the caté 🦊 sat, 日本 and saïd"


def test_streamed_pieces_hold_whole_characters(tokenizer):
    server, ids = scripted(tokenizer, STORY)
    with server:
        chunks = chunks_of(server, temperature=0)
    pieces = [c["choices"][0]["delta"].get("content") for c in chunks]
    assert "".join(p for p in pieces if p) == STORY
    assert not any("\ufffd" in p for p in pieces if p)
    assert "🦊" in " ".join(p for p in pieces if p)
    # As soon as a character is whole, it is out: one piece for each one that is.
    whole = sum(
        not tokenizer.decode(ids[: i + 1]).endswith("\ufffd")
        for i in range(len(ids) - 1)
    )
    assert len([p for p in pieces if p]) == whole


def test_half_a_character_at_the_end_is_replaced_as_decode_does(tokenizer):
    server, ids = scripted(tokenizer, "hat 🦊", eos=False)
    assert len(tokenizer("🦊")["input_ids"]) == 4
    with server:
        got = text_of(chat(server, temperature=0, max_tokens=len(ids) - 2))
    assert got == tokenizer.decode(ids[:-2]) == "hat \ufffd"


def test_detokenizer_pieces_join_to_decode(tokenizer):
    generator = torch.Generator().manual_seed(0)
    texts = [tokenizer(STORY)["input_ids"]]
    texts += torch.randint(0, len(tokenizer), (50, 40), generator=generator).tolist()
    for ids in texts:
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.push(i) for i in ids] + [detokenizer.flush()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_detokenizer_keeps_the_spaces_of_a_sentencepiece_vocabulary():
    tokenizer = sentencepiece_tokenizer()
    pieces = ["▁the", "▁cat", "s", "▁", "▁the", *(f"<0x{b:02X}>" for b in b"\xc3\xa9")]
    ids = tokenizer.convert_tokens_to_ids([*pieces, "▁", "s", "a", "t", "</s>"])
    detokenizer = Detokenizer(tokenizer)
    got = [detokenizer.push(i) for i in ids] + [detokenizer.flush()]
    assert "".join(got) == "the cats  theé sat"
    assert "".join(got) == tokenizer.decode(ids, skip_special_tokens=True)


def test_detokenizer_decodes_a_window_however_long_the_text(tokenizer):
    lengths = []

    class Spy:
        def decode(self, ids, **options):
            lengths.append(len(ids))
            return tokenizer.decode(ids, **options)

    detokenizer = Detokenizer(Spy())
    for token in tokenizer(STORY)["input_ids"] * 20:
        detokenizer.push(token)
    assert max(lengths) <= 9


def stopped_slowly(text, stops):
    """The rule, as plainly as can be: read on until the text ends with a stop string;
    cut the longest such end."""
    for end in range(len(text) + 1):
        matches = [s for s in stops if text[:end].endswith(s)]
        if matches:
            return text[: end - max(map(len, matches))], True
    return text, False


STOP_CASES = [
    ("abcabd", ["abd"]),
    ("aaab", ["aab"]),
    ("xabcdy", ["abcd", "bc"]),  # bc is complete first
    ("xabcdy", ["cd", "bcd"]),
    ("ababac", ["abac", "zz"]),
    ("nothing", ["x", "ngs"]),
    ("é🦊é", ["🦊é"]),
]


@pytest.mark.parametrize(("text", "stops"), STOP_CASES)
def test_stop_strings_however_the_text_is_cut(text, stops):
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        pieces = [text[0]]
        for character, cut in zip(text[1:], cuts, strict=True):
            if cut:
                pieces.append("")
            pieces[-1] += character
        finder, got, stopped, seen = StopStrings(stops), "", False, ""
        for piece in pieces:
            new, stopped = finder.push(piece)
            got, seen = got + new, seen + piece
            if stopped:
                break
            # What is held back could be the start of a stop string, and no more is.
            ends = [seen[len(seen) - n :] for n in range(len(seen) + 1)]
            starts = {s[:n] for s in stops for n in range(len(s))}
            assert seen == got + max((e for e in ends if e in starts), key=len)
        if not stopped:
            got += finder.flush()
        assert (got, stopped) == stopped_slowly(text, stops)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("d on the h", "hello sai"),
        (["zzz", "on"], "hello said "),
        (["hat"], "hello said on the "),
        ("hello", ""),
        (["hate"], "hello said on the hat"),  # held back, then let go
        ([], "hello said on the hat"),
    ],
)
def test_stop_cuts_before_the_stop_string(tokenizer, stop, expected):
    text = "hello said on the hat"
    for streamed in (False, True):
        server, _ = scripted(tokenizer, text)
        with server:
            if streamed:
                got = streamed_text(chunks_of(server, temperature=0, stop=stop))
            else:
                got = chat(server, temperature=0, stop=stop)
                assert got["choices"][0]["finish_reason"] == "stop"
                got = text_of(got)
        assert got == expected


def test_a_stop_string_ends_the_generation(tokenizer):
    server, ids = scripted(tokenizer, "hello said on the hat")
    with server:
        got = chat(server, temperature=0, stop=" on", logprobs=True)
    # Sampled up to the token that completes the stop string, and no further.
    last = next(i for i in range(len(ids)) if " on" in tokenizer.decode(ids[: i + 1]))
    assert got["usage"]["completion_tokens"] == last + 1
    entries = got["choices"][0]["logprobs"]["content"]
    assert "".join(e["token"] for e in entries) == "hello said"


# --- logprobs ---


def test_logprobs_are_the_models_own(server, model, tokenizer):
    fields = {"seed": 7, "temperature": 0.5, "top_k": 3, "logit_bias": {"2": -100}}
    got = chat(server, max_tokens=12, logprobs=True, top_logprobs=4, **fields)
    ids = local_ids(
        model,
        tokenizer,
        seed=7,
        temperature=0.5,
        top_k=3,
        sequence_bias={(2,): -100.0},
        max_new_tokens=12,
    )
    prompt = tokenizer.apply_chat_template(
        HI, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"][0]
    with torch.no_grad():
        logits = model(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)  # (12, vocab): before temperature and filters
    entries = got["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(ids)
    for entry, token, row in zip(entries, ids.tolist(), logprobs, strict=True):
        assert entry["logprob"] == pytest.approx(row[token].item(), abs=1e-4)
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        top = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        assert top == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)
    chunks = chunks_of(server, max_tokens=12, logprobs=True, top_logprobs=4, **fields)
    streamed = [
        entry
        for chunk in chunks
        for entry in chunk["choices"][0].get("logprobs", {"content": []})["content"]
    ]
    assert streamed == entries


def test_logprobs_without_top_logprobs_have_an_empty_list(server):
    got = chat(server, max_tokens=2, logprobs=True, logit_bias={"2": -100})
    entries = got["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in entries] == [[], []]


def test_bytes_are_the_texts_even_where_a_token_is_half_a_character(tokenizer):
    server, ids = scripted(tokenizer, STORY)
    with server:
        choice = chat(server, temperature=0, logprobs=True, top_logprobs=1)["choices"][
            0
        ]
    entries = choice["logprobs"]["content"]
    assert len(entries) == len(ids) - 1  # EOS has none
    assert b"".join(bytes(e["bytes"]) for e in entries) == STORY.encode()
    fox = next(e for e in entries if e["bytes"] == [0xF0])
    assert fox["token"] == r"\xf0"
    first = entries[0]
    assert first["top_logprobs"][0]["token"] == first["token"]


def test_bytes_of_special_and_sentencepiece_tokens(tokenizer):
    assert token_bytes(tokenizer, 2) == b"<eos>"
    assert token_bytes(tokenizer, 10**6) == b""  # a padded vocabulary
    pieces = sentencepiece_tokenizer()
    wanted = {"▁the": b" the", "<0xC3>": b"\xc3", "</s>": b"</s>"}
    for piece, raw in wanted.items():
        assert token_bytes(pieces, pieces.convert_tokens_to_ids(piece)) == raw
    assert printable(b"\xc3") == r"\xc3"


# --- the shape of answers ---


def test_a_completion_has_the_fields_of_the_api(server):
    got = chat(server, max_tokens=1, seed=0)
    assert list(got) == ["id", "object", "created", "model", "choices", "usage"]
    assert got["id"].startswith("chatcmpl-")
    assert got["object"] == "chat.completion"
    assert got["model"] == "tiny"
    (choice,) = got["choices"]
    assert list(choice) == ["index", "message", "finish_reason"]
    assert choice["message"]["role"] == "assistant"


def test_the_lines_of_a_stream(tokenizer):
    server, _ = scripted(tokenizer, "abc")
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    with server:
        body = {"model": server.model, "messages": HI, "temperature": 0, **fields}
        response = post(server, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"] == chunks[0]["id"]

    def choice(delta, reason=None):
        return [{"index": 0, "delta": delta, "finish_reason": reason}]

    assert [chunk["choices"] for chunk in chunks] == [
        choice({"role": "assistant", "content": ""}),
        choice({"content": "a"}),
        choice({"content": "b"}),
        choice({"content": "c"}),
        choice({}, "stop"),
        [],
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_without_include_usage_no_chunk_speaks_of_it(server):
    assert not any("usage" in chunk for chunk in chunks_of(server, max_tokens=2))


def test_the_openai_client_reads_it_all(client, model, tokenizer):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    ask = {"model": "tiny", "messages": HI, "seed": 3, "max_tokens": 24}
    expected = local_text(model, tokenizer, seed=3)
    got = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    assert got.choices[0].message.content == expected
    assert len(got.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == expected
    assert last.usage == got.usage


def test_serve_works_inside_a_running_event_loop(model, tokenizer):
    """As in a Jupyter kernel."""

    async def cell():
        with serve(model, tokenizer) as server:
            async with openai.AsyncOpenAI(
                base_url=server.base_url, api_key="x", max_retries=0
            ) as client:
                got = await client.chat.completions.create(
                    model=server.model, messages=HI, temperature=0, max_tokens=24
                )
                return got.choices[0].message.content

    assert asyncio.run(cell()) == local_text(model, tokenizer)


def test_a_folders_name_is_the_models_not_its_path(tmp_path, tokenizer):
    model = random_llama(vocab_size=len(tokenizer))
    (tmp_path / "my-model").mkdir()
    model.config._name_or_path = str(tmp_path / "my-model")
    with serve(model, tokenizer) as server:
        assert server.model == "my-model"


def test_a_name_with_a_slash_can_be_looked_up(model, tokenizer):
    with serve(model, tokenizer, name="org/model") as server:
        assert (
            httpx.get(f"{server.base_url}/models/org/model").json()["id"] == "org/model"
        )


# --- bad requests ---

WRONG = {"role": "user", "content": "x"}
BAD_FIELDS = [
    ({"model": "absent"}, "model", "missing"),
    ({"model": 5}, "model", "5"),
    ({"messages": "absent"}, "messages", "missing"),
    ({"messages": None}, "messages", "null"),
    ({"messages": []}, "messages", "[]"),
    ({"messages": "hello"}, "messages", '"hello"'),
    ({"messages": ["hello"]}, "messages[0]", '"hello"'),
    ({"messages": [{**WRONG, "role": "tool"}]}, "messages[0].role", '"tool"'),
    ({"messages": [{**WRONG, "content": 5}]}, "messages[0].content", "5"),
    ({"messages": [{**WRONG, "content": None}]}, "messages[0].content", "null"),
    ({"messages": [{**WRONG, "content": [{"type": "image_url"}]}]}, None, "image_url"),
    ({"messages": [{**WRONG, "name": 5}]}, "messages[0].name", "a string"),
    ({"messages": [{**WRONG, "nom": "Bo"}]}, "messages[0].nom", "role, content"),
    ({"messages": [{**WRONG, "tool_calls": [{}]}]}, "messages[0].tool_calls", "[{}]"),
    ({"messages": [*HI, {"role": "user"}]}, "messages[1].content", "missing"),
    ({"stream": "yes"}, "stream", '"yes"'),
    ({"stream": 1}, "stream", "1"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "include_usage"),
    ({"stream": True, "stream_options": 3}, "stream_options", "3"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "'stream'"),
    ({"foo": 5}, "foo", "top_logprobs"),
    ({"tools": [{}], "tool_choice": "required"}, "tools", "ask in the prompt"),
    ({"tool_choice": "required"}, "tool_choice", '"none"'),
    ({"parallel_tool_calls": True, "tools": [{}]}, "tools", "has no tools"),
    ({"tools": [{}], "messages": [{**WRONG, "role": "tool"}]}, "tools", "no tools"),
    ({"user": 5}, "user", "5"),
    ({"store": True}, "store", "keeps nothing"),
    ({"store": 0}, "store", "false"),
    ({"metadata": {"a": "b"}}, "metadata", '{"a": "b"}'),
    ({"modalities": ["text", "audio"]}, "modalities", "audio"),
    ({"service_tier": "flex"}, "service_tier", '"auto"'),
    ({"min_p": 0.1}, "min_p", "0.1"),
    ({"min_p": False}, "min_p", "false"),
    ({"repetition_penalty": 1.1}, "repetition_penalty", "1.1"),
    ({"ignore_eos": True}, "ignore_eos", "logit_bias"),
    ({"ignore_eos": 0}, "ignore_eos", "0"),
    ({"max_tokens": 10**400}, "max_tokens", "000..."),
    ({"max_tokens": 0}, "max_tokens", "0"),
    ({"max_tokens": "9"}, "max_tokens", '"9"'),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "-1"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "4"),
    ({"temperature": 2.1}, "temperature", "2.1"),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": "hot"}, "temperature", '"hot"'),
    ({"temperature": True}, "temperature", "true"),
    ({"top_p": 0}, "top_p", "0"),
    ({"top_p": 1.01}, "top_p", "1.01"),
    ({"top_k": -1}, "top_k", "-1"),
    ({"top_k": 1.5}, "top_k", "1.5"),
    ({"seed": "one"}, "seed", '"one"'),
    ({"seed": 2**63}, "seed", str(2**63)),
    ({"stop": ""}, "stop", "one character or more"),
    ({"stop": ["a", ""]}, "stop[1]", '""'),
    ({"stop": ["a", 5]}, "stop[1]", "5"),
    ({"stop": 5}, "stop", "5"),
    ({"stop": list("abcde")}, "stop", "up to 4"),
    ({"n": 0}, "n", "0"),
    ({"n": 9}, "n", "9"),
    ({"logprobs": 1}, "logprobs", "1"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "-1"),
    ({"top_logprobs": 2}, "top_logprobs", "'logprobs'"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "101"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5", '"x"'),
    ({"logit_bias": [5]}, "logit_bias", "[5]"),
    ({"logit_bias": {"cat": 1}}, "logit_bias", '"cat"'),
    ({"logit_bias": {"-1": 1}}, "logit_bias", '"-1"'),
    ({"logit_bias": {"05": 1}}, "logit_bias", '"05"'),
    ({"logit_bias": {"99999": 1}}, "logit_bias", '"99999"'),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "2.5"),
    ({"presence_penalty": -3}, "presence_penalty", "-3"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "yaml"),
]


@pytest.mark.parametrize(("fields", "param", "quoted"), BAD_FIELDS)
def test_a_bad_field_gives_400_and_is_named(server, fields, param, quoted):
    body = {"model": "tiny", "messages": HI, **fields}
    response = post(server, {k: v for k, v in body.items() if v != "absent"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert f"'{param}" in error["message"]
    assert quoted in error["message"]


def json_kinds(schema):
    """Values that fit the schema of a field that asks for nothing, for a few kinds."""
    for part in schema["anyOf"]:
        if "const" in part or "enum" in part:
            yield from part.get("enum", [part.get("const")])
        elif "$ref" in part:
            yield {"type": "text"}
        elif part["type"] == "array":
            yield ["text"] if part.get("minItems") else []
        else:
            yield {
                "object": {},
                "null": None,
                "string": "me",
                "boolean": True,
                "number": part.get("minimum"),
            }[part["type"]]


def test_what_asks_for_nothing_is_obeyed(server):
    asked = {"seed": 4, "max_tokens": 6}
    expected = text_of(chat(server, **asked))
    for fields in (
        {"user": "me", "tools": None, "store": False, "metadata": {}, "nothing": None},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"service_tier": "auto", "min_p": 0, "repetition_penalty": 1},
        {"ignore_eos": False, "top_logprobs": 0, "top_k": 0, "min_p": 0.0},
        {"stream_options": {"include_usage": False, "more": None}},
        {"messages": [{**HI[0], "name": "Bo", "tool_calls": [], "more": None}]},
    ):
        assert text_of(chat(server, **{**asked, **fields})) == expected, fields


def test_each_value_that_the_description_calls_nothing_is_obeyed(server):
    root = server.base_url.removesuffix("/v1")
    schemas = httpx.get(f"{root}/openapi.json").json()["components"]["schemas"]
    properties = schemas["ChatRequest"]["properties"]
    assert properties.keys() == ChatRequest.model_fields.keys()
    values = {name: list(json_kinds(properties[name])) for name in IDLE}
    assert values["min_p"] == [0, None]
    assert values["store"] == [False, None]
    asked = {"seed": 4, "max_tokens": 2}
    expected = text_of(chat(server, **asked))
    for place in range(3):
        fields = {
            name: options[place % len(options)] for name, options in values.items()
        }
        assert text_of(chat(server, **asked, **fields)) == expected


def test_the_name_in_a_message_reaches_the_template(model):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.name }}{% endfor %}"
    with serve(model, tokenizer) as server:
        messages = [{**HI[0], "name": "abc"}]
        assert chat(server, messages=messages, max_tokens=1)["usage"][
            "prompt_tokens"
        ] == len(tokenizer("abc")["input_ids"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "JSON object"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "cannot be read: "),
        (
            b'{"model": "tiny", "messages": ' + b"[" * 900 + b"]" * 900 + b"}",
            "messages",
        ),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', "messages"),
        (
            b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
            "\ud800",
        ),
        (b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}', "\ud800"),
    ],
)
def test_a_body_that_is_no_request_gives_an_error_that_says_so(server, content, says):
    response = post(
        server, content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == (404 if b'"model":"\\ud800' in content else 400)
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(server, value):
    messages = json.dumps(HI)
    body = f'{{"model": "tiny", "messages": {messages}, "temperature": {value}}}'
    response = post(
        server, content=body.encode(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"


def test_a_body_beyond_the_limit_gives_413(server):
    big = [{"role": "user", "content": "a" * 5_000_000}]
    response = post(server, {"model": "tiny", "messages": big})
    assert response.status_code == 413
    assert "4194304" in response.json()["error"]["message"]

    def endless():  # no Content-Length
        for _ in range(100):
            yield b" " * 100_000

    response = post(server, content=endless())
    assert response.status_code == 413


def test_a_wrong_model_gives_404_and_the_models_there_are(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HI)
    assert caught.value.code == "model_not_found"
    assert '"gpt-5"' in str(caught.value)
    assert '"tiny"' in str(caught.value)
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/completions", 404),
        ("DELETE", "/models", 405),
        ("POST", "/" + "x" * 400, 404),
    ],
)
def test_an_unknown_url_gives_an_openai_shaped_error(server, method, path, status):
    response = httpx.request(method, server.base_url + path)
    assert response.status_code == status
    assert "/v1/chat/completions" in response.json()["error"]["message"]
    assert "x" * 100 not in response.text
    assert response.headers.get("allow") == ("GET" if status == 405 else None)


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("/responses", "use_responses_api=False"),
        ("/completions", "local-chat-completions"),
        ("/embeddings", "another provider"),
    ],
)
def test_another_way_to_ask_a_model_is_told_the_way_out(server, path, way):
    response = httpx.post(server.base_url + path, json={})
    assert response.status_code == 404
    assert way in response.json()["error"]["message"]


def test_a_look_at_the_server_gives_a_line(server):
    root = server.base_url.removesuffix("/v1")
    for path in ("/", "/health", "/v1", "/v1/", "/health/"):
        response = httpx.get(root + path)
        assert (response.status_code, response.text.count("\n")) == (200, 1)
        assert "tiny" in response.text
        assert httpx.head(root + path).status_code == 200


def test_a_slash_at_the_end_changes_nothing(server):
    listed = httpx.get(f"{server.base_url}/models/")
    assert listed.json() == httpx.get(f"{server.base_url}/models").json()
    assert httpx.get(f"{server.base_url}/models/tiny/").json()["id"] == "tiny"
    body = {"model": "tiny", "messages": HI, "max_tokens": 1}
    asked = httpx.post(f"{server.base_url}/chat/completions/", json=body, timeout=60)
    assert asked.status_code == 200


def test_no_page_loads_scripts_from_elsewhere(server):
    root = server.base_url.removesuffix("/v1")
    for path in ("/docs", "/redoc"):
        response = httpx.get(root + path)
        assert response.status_code == 404
        assert "<script" not in response.text


def test_every_answer_has_a_request_id(server):
    answers = [httpx.get(f"{server.base_url}{path}") for path in ("/models", "/no")]
    answers.append(post(server, {"model": "tiny"}))
    answers.append(post(server, content=b"{", headers={"host": "example.org"}))
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 4
    named = httpx.get(f"{server.base_url}/models", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    too_long = httpx.get(
        f"{server.base_url}/models", headers={"x-request-id": "x" * 999}
    )
    assert len(too_long.headers["x-request-id"]) < 100


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8000", 200),
        ("127.0.0.1:1", 200),
        ("127.8.9.10", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("example.org", 403),
        ("example.org:8000", 403),
        ("127.0.0.1.example.org", 403),
        ("localhost.example.org", 403),
        ("192.168.0.1", 403),
        ("0.0.0.0", 403),
        ("[::2]", 403),
        ("127.1", 403),
    ],
)
def test_on_loopback_only_names_of_loopback_are_answered(server, host, status):
    for path in ("/models", "/health", "/no"):
        response = httpx.get(server.base_url + path, headers={"host": host})
        assert (response.status_code == 403) == (status == 403)
        if status == 403:
            assert "localhost" in response.json()["error"]["message"]
            assert "tiny" not in response.text


def test_a_request_without_a_host_is_answered(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def test_on_the_network_every_host_is_answered(model, tokenizer):
    with serve(model, tokenizer, host="0.0.0.0") as server:
        answer = httpx.get(f"{server.base_url}/models", headers={"host": "my-desktop"})
        assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_for_the_context_gives_400_before_the_model_runs(
    model, tokenizer, stream
):
    watched = Watched(model)
    long = [{"role": "user", "content": "z" * 2 * CONTEXT}]
    with serve(watched, tokenizer) as server:
        for fields, param in [
            ({"messages": long}, "messages"),
            ({"messages": HI, "max_tokens": CONTEXT}, "max_tokens"),
        ]:
            body = {"model": server.model, "stream": stream, **fields}
            response = post(server, body)
            assert response.status_code == 400
            error = response.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert error["param"] == param
            assert str(CONTEXT) in error["message"]
    assert watched.caches == []


def test_a_model_that_fails_gives_an_error_and_the_server_goes_on(model, tokenizer):
    failures = iter([RuntimeError("out of memory")] * 2)

    def fail():
        for error in failures:
            raise error

    with serve(Watched(model, before=fail), tokenizer) as server:
        response = post(server, {"model": server.model, "messages": HI})
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["type"] == "server_error"
        assert "out of memory" in error["message"]
        with (
            openai_client(server) as client,
            pytest.raises(openai.APIError, match="out of memory"),
        ):
            list(
                client.chat.completions.create(
                    model=server.model, messages=HI, stream=True
                )
            )
        got = chat(server, temperature=0, max_tokens=24)
    assert text_of(got) == local_text(model, tokenizer)


# --- many clients, some of which leave ---


def test_twenty_clients_at_once_each_get_their_own_text(server, model, tokenizer):
    expected = [local_text(model, tokenizer, seed=seed) for seed in range(20)]

    def ask(seed):
        if seed % 2:
            return text_of(chat(server, seed=seed, max_tokens=24))
        return streamed_text(chunks_of(server, seed=seed, max_tokens=24))

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == expected


def test_clients_get_their_tokens_in_the_same_passes_of_the_model(model, tokenizer):
    # The first is slow until the second has come, so that they overlap.
    rows = []

    def pass_of(**inputs):
        rows.append(inputs["input_ids"].shape[0])
        time.sleep(0 if max(rows) > 1 else 0.03)
        return model(**inputs)

    keep_going = {"logit_bias": {"2": -100}}
    with (
        serve(Replaced(model, pass_of), tokenizer) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        long = pool.submit(chat, server, max_tokens=100, **keep_going)
        while not rows:
            time.sleep(0.001)
        chat(server, max_tokens=20, **keep_going)
        assert not long.done()
        long.result()
    assert 18 <= rows.count(2) <= 20  # all but the prompt's, or one missed
    assert len(rows) <= 101  # a pass for each of the first's, one for the prompt


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_stops_its_generation(model, tokenizer, stream):
    gate = threading.Semaphore(0)
    watched = Watched(model, before=gate.acquire)
    with serve(watched, tokenizer) as server:
        body = {"model": server.model, "messages": HI, "stream": stream}
        body["logit_bias"] = always(tokenizer, "the")
        gate.release(3)
        try:
            url = f"{server.base_url}/chat/completions"
            if stream:
                with httpx.stream("POST", url, json=body, timeout=60) as response:
                    lines = response.iter_lines()
                    while "the" not in next(lines):
                        pass
                    # leaving the block closes the connection
            else:
                patience = httpx.Timeout(60, read=0.5)
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(url, json=body, timeout=patience)
        finally:
            gate.release(10_000)
        # If it went on, it would take a step for each of this one's.
        chat(server, max_tokens=80, logit_bias={"2": -100})
        assert len(watched.caches) <= 3 + 80 + 5


# --- prompts: read once, long ones in pieces ---

LONG = 1100  # tokens: more than four pieces


@pytest.fixture(scope="module")
def roomy(tokenizer):
    return random_llama(vocab_size=len(tokenizer), max_position_embeddings=2048)


def long_messages(tokenizer, tokens=LONG):
    """A message that makes a prompt of so many tokens."""
    messages = [{"role": "user", "content": ""}]
    empty = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    words = "z " * tokens
    ids = tokenizer(words)["input_ids"][: tokens - len(empty["input_ids"])]
    return [{"role": "user", "content": tokenizer.decode(ids)}]


@pytest.mark.parametrize(
    ("tokens", "options"), [(256, {}), (513, {"prefill_chunk_size": 256})]
)
def test_a_prompt_gives_the_text_of_generate(roomy, tokenizer, tokens, options):
    """In one pass up to 256 tokens, else as generate reads it in pieces of 256."""
    messages = long_messages(tokenizer, tokens)
    watched = Watched(roomy)
    with serve(watched, tokenizer) as server:
        for seed in (0, 1):
            expected = local_text(
                roomy, tokenizer, messages=messages, seed=seed, **options
            )
            got = chat(server, messages=messages, seed=seed, max_tokens=24)
            assert got["usage"]["prompt_tokens"] == tokens
            assert text_of(got) == expected


def test_the_logits_of_a_prompt_are_those_of_generate_bit_for_bit(roomy):
    """Where nobody else is there: in passes of 256 tokens, then token by token."""
    for tokens, options in ((256, {}), (1100, {"prefill_chunk_size": 256})):
        ids = torch.arange(tokens) % 250 + 3
        out = roomy.generate(
            ids[None],
            attention_mask=torch.ones_like(ids)[None],
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        store, blocks, done = KeyValueStore(100, 16), range(100)[::-1], 0
        new = out.sequences[0, tokens:].split(1)
        logits = []
        for piece in [*ids.split(256), *new[:-1]]:
            row = Row(piece.tolist(), done, blocks, wanted=True)
            logits += run(roomy, store, [row])
            done += len(piece)
        for mine, theirs in zip(logits[-4:], out.logits, strict=True):
            assert torch.equal(mine, theirs[0])


def test_while_a_long_prompt_is_read_others_get_their_turn(roomy, tokenizer):
    passes = []  # the widths of the model's passes

    def pass_of(**inputs):
        passes.append(inputs["input_ids"].shape[1])
        time.sleep(0.02)
        return roomy(**inputs)

    go_on = {"logit_bias": {"2": -100}}
    with (
        serve(Replaced(roomy, pass_of), tokenizer) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        other = pool.submit(chat, server, max_tokens=60, **go_on)
        while len(passes) < 3:
            time.sleep(0.001)
        chat(server, messages=long_messages(tokenizer), max_tokens=1)
        other.result()
    pieces = [i for i, width in enumerate(passes) if width > 32]
    # A quarter of the 256 tokens of a step where somebody decodes.
    assert [passes[i] for i in pieces] == [64] * (LONG // 64)
    # Between each piece and the next one a token of the other answer.
    assert all(passes[a:b] == [64, 1] for a, b in itertools.pairwise(pieces))


def test_a_hang_up_while_the_prompt_is_read_stops_the_reading(roomy, tokenizer):
    gate = threading.Semaphore(0)
    watched = Watched(roomy, before=gate.acquire)
    with serve(watched, tokenizer) as server:
        body = {"model": server.model, "messages": long_messages(tokenizer)}
        gate.release(1)
        try:
            url = f"{server.base_url}/chat/completions"
            patience = httpx.Timeout(60, read=1)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=patience)
            assert len(watched.caches) == 1
        finally:
            gate.release(10_000)
        chat(server, max_tokens=1)
        assert len(watched.caches) <= 3  # the piece under way, and this one's prompt


def test_n_choices_run_the_prompt_once_and_get_the_same_texts(model, tokenizer):
    watched = Watched(model)
    expected = [local_text(model, tokenizer, seed=5 + i) for i in range(8)]
    keep = {"logit_bias": {"2": -100}}
    with serve(watched, tokenizer) as server:
        got = chat(server, seed=5, n=8, max_tokens=24)
        assert [text_of(got, i) for i in range(8)] == expected
        calls = len(watched.caches)
        chat(server, n=8, max_tokens=4, **keep)
        assert len(watched.caches) == calls + 1 + 3  # and all answers in one pass


def test_the_role_leaves_with_the_first_token(model, tokenizer):
    gate = threading.Semaphore(0)
    watched = Watched(model, before=gate.acquire)
    with serve(watched, tokenizer) as server:
        body = {"model": server.model, "messages": HI, "stream": True, "n": 2}
        body |= {"logit_bias": always(tokenizer, "the"), "max_tokens": 2}
        url = f"{server.base_url}/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            lines, got = response.iter_lines(), []
            reader = threading.Thread(target=lambda: got.extend(lines))
            reader.start()
            reader.join(0.3)
            assert got == []  # the prompt has not been run
            gate.release(100)
            reader.join(60)
    chunks = [json.loads(line[6:]) for line in got if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    role = {"role": "assistant", "content": ""}
    assert deltas[:4] == [role, {"content": "the"}] * 2


# --- defaults of the server, not of the request ---


def test_a_servers_defaults_count_only_where_the_request_says_nothing(model, tokenizer):
    with serve(model, tokenizer, temperature=0, top_p=0.5) as server:
        greedy = local_text(model, tokenizer)
        assert text_of(chat(server, max_tokens=24)) == greedy
        assert text_of(chat(server, max_tokens=24, temperature=None)) == greedy
        expected = local_text(model, tokenizer, seed=3)
        got = chat(server, max_tokens=24, seed=3, temperature=1, top_p=1)
        assert text_of(got) == expected
        expected = local_text(model, tokenizer, seed=3, top_p=0.5)
        assert text_of(chat(server, max_tokens=24, seed=3, temperature=1)) == expected
    for wrong in ({"temperature": 3}, {"top_p": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            serve(model, tokenizer, **wrong)


# --- what the server says of itself ---


def test_metrics_count_what_was_served(model, tokenizer):
    from prometheus_client.parser import text_string_to_metric_families

    with serve(model, tokenizer) as server:
        first = chat(server, max_tokens=7, n=2, logit_bias={"2": -100})
        chat(server, max_tokens=5, logit_bias={"2": 100})
        url = server.base_url.removesuffix("/v1") + "/metrics"
        response = httpx.get(url)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    got = {
        (one.name, *one.labels.values()): one.value
        for family in families
        for one in family.samples
    }
    assert got["generation_tokens_total",] == 14 + 1
    assert got["prompt_tokens_total",] == 2 * first["usage"]["prompt_tokens"]
    assert got["requests_total", "length"] == 2
    assert got["requests_total", "stop"] == 1
    assert got["time_to_first_token_seconds_count",] == 3
    assert got["inter_token_latency_seconds_count",] == 12
    assert got["requests_waiting",] == got["requests_running",] == 0
    assert got["blocks_used",] == 0


# --- starting and stopping ---


def names_of_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("tiny-models")]


def test_close_leaves_no_thread_and_no_listener(model, tokenizer):
    before = names_of_threads()
    server = serve(model, tokenizer)
    chat(server, max_tokens=1)
    assert len(names_of_threads()) == len(before) + 2
    server.close()
    server.close()  # twice does no harm
    assert names_of_threads() == before
    assert "closed" in repr(server)
    with openai_client(server) as client, pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_close_ends_a_stream_with_an_error_that_says_why(model, tokenizer):
    watched = Watched(model, before=lambda: time.sleep(0.02))
    server = serve(watched, tokenizer)
    with openai_client(server) as client:
        stream = client.chat.completions.create(
            model=server.model,
            messages=HI,
            stream=True,
            logit_bias=always(tokenizer, "the"),
        )
        next(stream), next(stream)
        server.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert len(watched.caches) < 100


def test_a_port_in_use_gives_one_clear_error(server, model, tokenizer):
    before = names_of_threads()
    with pytest.raises(OSError, match=f"port {server.port} on 127.0.0.1 is in use"):
        serve(model, tokenizer, port=server.port)
    assert names_of_threads() == before


def test_a_bad_address_gives_a_clear_error(model, tokenizer):
    with pytest.raises(ValueError, match="port is 70000"):
        serve(model, tokenizer, port=70000)
    with pytest.raises(OSError, match="cannot serve on 203.0.113.1 port 0"):
        serve(model, tokenizer, host="203.0.113.1")


def test_a_port_that_was_closed_can_be_had_again(model, tokenizer):
    with serve(model, tokenizer) as first:
        chat(first, max_tokens=1)
    with serve(model, tokenizer, port=first.port) as second:
        assert second.base_url == first.base_url == f"http://127.0.0.1:{first.port}/v1"
        chat(second, max_tokens=1)


def test_the_server_is_quiet(model, capfd, caplog):
    tokenizer = byte_level_tokenizer()
    tokenizer.model_max_length = 4  # transformers warns of a longer prompt
    with serve(model, tokenizer) as server:
        chat(server, max_tokens=1)
        post(server, {"model": "wrong"})
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name != "httpx"] == []
    assert tokenizer.model_max_length == 4  # the owner's is as it was


def test_a_process_that_forgets_close_can_end(tmp_path):
    """As a kernel does that is restarted in the middle of an answer."""
    program = """
import sys, threading, httpx
sys.path.insert(0, sys.argv[1])
from test_server import *
tokenizer = byte_level_tokenizer()
model = random_llama(vocab_size=len(tokenizer), max_position_embeddings=10**6)
server = serve(Watched(model, before=lambda: time.sleep(0.01)), tokenizer)
body = {"model": server.model, "messages": HI, "stream": True}
client = httpx.Client()
answer = client.stream("POST", server.base_url + "/chat/completions", json=body)
lines = answer.__enter__().iter_lines()
next(lines), next(lines), next(lines)
print("bye")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent alone on Windows")
def test_the_command_ends_in_seconds_however_long_the_prompt(tmp_path, tokenizer):
    """By SIGTERM as by Ctrl-C, and a second one changes nothing. The prompt being read
    would take minutes: each piece waits 0.3 seconds."""
    model = random_llama(vocab_size=len(tokenizer), max_position_embeddings=10**6)
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    program = """
import sys, time, runpy
import tiny_models.engine.memory as memory
forward = memory.forward
def slow(*arguments):
    print("piece", flush=True)
    time.sleep(0.3)
    return forward(*arguments)
memory.forward = slow
sys.argv = ["server", "--port", "0", "--host", "0.0.0.0", "--model", sys.argv[1]]
runpy.run_module("tiny_models.server", run_name="__main__")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "small")]
    # A suite in the background ignores Ctrl-C, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    signal.signal(signal.SIGINT, before)
    try:
        for process, number in zip(
            started, (signal.SIGINT, signal.SIGTERM), strict=True
        ):
            line = process.stdout.readline()
            base_url = next(word for word in line.split() if word.startswith("http"))
            assert "Anyone on the network" in process.stdout.readline()
            assert httpx.get(f"{base_url}/models").json()["data"][0]["id"] == "small"
            body = {"model": "small", "messages": long_messages(tokenizer, 100_000)}
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(
                    httpx.post, f"{base_url}/chat/completions", json=body, timeout=60
                )
                assert process.stdout.readline() == "piece\n"
                start = time.monotonic()
                process.send_signal(number)
                time.sleep(0.05)
                process.send_signal(number)
                assert asked.result().json()["error"]["code"] == "shutting_down"
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            # The prompt would take minutes; a busy machine took 4 to 14 seconds.
            assert time.monotonic() - start < 20
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_the_command_says_who_may_use_it_and_gives_an_address_that_works(
    model, tokenizer
):
    assert open_to_others("127.0.0.1", 8000) is None
    assert open_to_others("localhost", 8000) is None
    line = open_to_others("0.0.0.0", 8000)
    assert "Anyone on the network may use this server" in line
    own = own_address(socket.AF_INET)
    if own is not None:
        assert f"http://{own}:8000/v1" in line
        with serve(model, tokenizer, host="0.0.0.0") as server:
            assert httpx.get(f"http://{own}:{server.port}/v1/models").status_code == 200


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_more_connections_than_open_files_are_waited_for_in_silence():
    """300 of them where 256 files are allowed printed 26,000 tracebacks."""
    program = """
import resource, sys
sys.path.insert(0, sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from test_server import *
from tiny_models.server.command import allow_more_files
allow_more_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256), "it may not"
tokenizer = byte_level_tokenizer()
with serve(random_llama(vocab_size=len(tokenizer)), tokenizer) as server:
    print(server.port, server.model, flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, os.path.dirname(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_more_files()
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        opened.callback(process.kill)
        port, name = process.stdout.readline().split()
        body = json.dumps({"model": name, "messages": HI, "max_tokens": 1})
        request = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        clients = []
        for _ in range(300):
            client = socket.create_connection(("127.0.0.1", int(port)), 5)
            clients.append(opened.enter_context(client))
        # The first ones are let in, which leaves room for the files that an answer
        # opens; the others as these leave.
        for client in clients:
            client.sendall(request)
        for client in clients:
            client.settimeout(60)
            with client, client.makefile("rb") as answer:
                said = answer.read()
                assert said.startswith(b"HTTP/1.1 200 OK\r\n"), said
                assert b"chat.completion" in said
        _, errors = process.communicate("", timeout=60)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_the_limit_of_open_files_is_raised_as_far_as_is_allowed(monkeypatch):
    limits, none = {}, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    for before, after in (
        ((256, none), (4096, none)),
        ((256, 1024), (1024, 1024)),
        ((256, 256), (256, 256)),
        ((10_000, none), (10_000, none)),
        ((none, none), (none, none)),
    ):
        limits[resource.RLIMIT_NOFILE] = before
        allow_more_files()
        assert limits[resource.RLIMIT_NOFILE] == after


def test_the_command_says_in_one_line_what_is_wrong(
    monkeypatch, server, model, tokenizer
):
    import tiny_models.loading
    from tiny_models.server import main

    monkeypatch.setattr(tiny_models.loading, "load", lambda name: (model, tokenizer))
    monkeypatch.setattr(sys, "argv", ["server", "--port", str(server.port)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert f"port {server.port} on 127.0.0.1 is in use" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the course's own model ---


def test_the_default_model_gives_the_text_of_generate():
    from tiny_models import ModelNotAvailable, load

    try:
        model, tokenizer = load()
    except ModelNotAvailable as error:
        pytest.skip(str(error))
    messages = [{"role": "user", "content": "Name a fox. Use an emoji."}]
    with serve(model, tokenizer) as server:
        for fields in ({"temperature": 0}, {"seed": 1, "top_k": 50, "top_p": 0.9}):
            options = {k: v for k, v in fields.items() if k != "temperature"}
            expected = local_text(
                model, tokenizer, messages=messages, max_new_tokens=10, **options
            )
            request = {"messages": messages, "max_tokens": 10, **fields}
            assert text_of(chat(server, **request)) == expected
            assert streamed_text(chunks_of(server, **request)) == expected


def test_a_proxy_in_the_environment_does_not_stand_in_the_way(
    monkeypatch, model, tokenizer
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "example.org")
    with serve(model, tokenizer) as server:
        listed = httpx.get(f"{server.base_url}/models")
        assert listed.status_code == 200
        with openai_client(server) as client:
            assert [m.id for m in client.models.list()] == [server.model]
        assert os.environ["NO_PROXY"] == "example.org,127.0.0.1"
