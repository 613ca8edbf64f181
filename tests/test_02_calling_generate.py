"""Checks of lesson 02. Oracles: cases worked by hand, slow specifications, generate."""

import contextlib
import math

import pytest
import torch
from transformers import BatchEncoding

from course import expect
from course.plugin import exercise
from course.toy_tokenizer import toy_tokenizer
from tiny_models import ScriptedModel, random_gpt2, random_llama

build_prompt = exercise("build_prompt")
new_text = exercise("new_text")
reply = exercise("reply")
reply_batch = exercise("reply_batch")
token_logprobs = exercise("token_logprobs")
attention_map = exercise("attention_map")

HI = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "a longer question, with é"},
]
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


def ids_of(text):
    """Token ids (1, seq) of a prompt that is written out by hand."""
    tokenizer = toy_tokenizer()
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def toy_model(make=random_llama):
    return make(vocab_size=len(toy_tokenizer()), eos_token_id=None)


class FakeGenerate:
    """A model whose `generate` continues with a text, and records how it was called."""

    def __init__(self, *texts):
        self.device = torch.device("cpu")
        self.texts, self.calls = texts, []

    def generate(self, inputs=None, **options):
        ids = options.get("input_ids", inputs)
        if isinstance(ids, BatchEncoding):
            raise AssertionError(
                "generate was given the BatchEncoding itself: unpack it, **prompt"
            )
        self.calls.append({**options, "input_ids": ids})
        eos = toy_tokenizer().eos_token_id
        new = [[*ids_of(text)[0].tolist(), eos] for text in self.texts]
        width = max(map(len, new))
        rows = [row + [0] * (width - len(row)) for row in new]
        return torch.cat([ids, torch.tensor(rows)], dim=-1)


# --- build_prompt ---------------------------------------------------------------------


def input_ids(got, call):
    expect.returned(got, BatchEncoding, call)
    assert "attention_mask" in got, f"{call} has no attention_mask"
    return expect.returned(got["input_ids"], torch.Tensor, f"{call}['input_ids']")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (HI, "<user>hi</s><assistant>"),
        (
            TALK,
            "<system>Be kind.</s><user>hi</s><assistant>hello</s>"
            "<user>a longer question, with é</s><assistant>",
        ),
    ],
)
def test_the_prompt_worked_by_hand(build_prompt, messages, text):
    call = f"build_prompt of {len(messages)} message(s)"
    got = input_ids(build_prompt(toy_tokenizer(), messages), call)
    assert got.dim() == 2, f"{call}: input_ids should be (1, seq), not {got.shape}"
    read = toy_tokenizer().decode(got[0])
    hint = ""
    if text == read + "<assistant>":
        hint = " The generation prompt is missing: add_generation_prompt=True."
    assert read == text, f"{call} should read {text!r}, not {read!r}.{hint}"
    expect.same_ids(got, ids_of(text), call)


def test_the_mask_is_ones(build_prompt):
    call = "build_prompt"
    prompt = build_prompt(toy_tokenizer(), HI)
    ids = input_ids(prompt, call)
    mask = expect.tensor(prompt["attention_mask"], ids.shape, f"{call}: attention_mask")
    assert (mask == 1).all(), f"all tokens are real; the mask is {expect.show(mask)}"


def test_the_messages_are_left_alone(build_prompt):
    messages = [dict(message) for message in TALK]
    with expect.unchanged("do not append to it", messages=messages):
        build_prompt(toy_tokenizer(), messages)


def test_the_template_is_the_tokenizers(build_prompt):
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    tokenizer = toy_tokenizer(chat_template=template)
    call = "build_prompt with a template that writes [content] and then >"
    got = input_ids(build_prompt(tokenizer, HI), call)
    expect.value(tokenizer.decode(got[0]), "[hi]>", call, "Do not write out the roles.")


# --- new_text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "output", "text"),
    [
        ("ab", "abcd</s>", "cd"),
        ("<user>hi</s><assistant>", "<user>hi</s><assistant>yo</s>", "yo"),
        ("ab", "ab</s>", ""),
        ("ab", "ababab", "abab"),
        ("né", "né é!", " é!"),
    ],
)
def test_new_text_worked_by_hand(new_text, prompt, output, text):
    got = new_text(toy_tokenizer(), ids_of(prompt), ids_of(output))
    hint = ""
    if (
        isinstance(got, str)
        and got.startswith(prompt[:2])
        and not text.startswith("ab")
    ):
        hint = "The prompt is still in it."
    elif isinstance(got, str) and "</s>" in got:
        hint = "Special tokens are not for users: skip_special_tokens=True."
    expect.value(got, text, f"new_text of prompt {prompt!r}, output {output!r}", hint)


# --- reply ----------------------------------------------------------------------------


def test_reply_worked_by_hand(reply):
    model = FakeGenerate("yes")
    got = reply(model, toy_tokenizer(), HI, max_new_tokens=7)
    expect.value(got, "yes", "reply with a model that says 'yes' and EOS")
    assert len(model.calls) == 1, f"generate was called {len(model.calls)} times"
    call = model.calls[0]
    expect.same_ids(
        call["input_ids"], ids_of("<user>hi</s><assistant>"), "the prompt of generate"
    )
    assert call.get("attention_mask") is not None, "generate got no attention_mask"


def test_generation_options_go_through_unchanged(reply):
    for options in ({"max_new_tokens": 3}, {"do_sample": True, "temperature": 0.5}, {}):
        model = FakeGenerate("ok")
        reply(model, toy_tokenizer(), HI, **options)
        given = set(model.calls[0]) - {"input_ids", "attention_mask"}
        assert given == set(options), (
            f"reply(..., **{options}) should pass just these to generate; it got "
            f"{sorted(given)}"
        )
        for name, wanted in options.items():
            expect.value(model.calls[0][name], wanted, f"generate's {name}")


@MODELS
def test_reply_is_what_generate_says(reply, make):
    model, tokenizer = toy_model(make), toy_tokenizer()
    prompt = ids_of("<user>hi</s><assistant>")
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(0)
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=9,
            **options,
        )
        oracle = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
        torch.manual_seed(0)
        got = reply(model, tokenizer, HI, max_new_tokens=9, **options)
        expect.value(got, oracle, f"reply with {options}")


# --- reply_batch ----------------------------------------------------------------------


@contextlib.contextmanager
def padding_side(side):
    tokenizer = toy_tokenizer()
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        yield tokenizer
        assert tokenizer.padding_side == side, (
            f"the tokenizer came with padding_side={side!r} and left with "
            f"{tokenizer.padding_side!r}: put it back, or pass the side in the call"
        )
    finally:
        tokenizer.padding_side = before


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_batch_is_padded_on_the_left(reply_batch, side):
    model = FakeGenerate("yes", "maybe")
    with padding_side(side) as tokenizer:
        got = reply_batch(model, tokenizer, [HI, TALK])
    expect.value(got, ["yes", "maybe"], "reply_batch with a model that says these")
    assert len(model.calls) == 1, (
        f"generate was called {len(model.calls)} times: one call for the whole batch"
    )
    ids, mask = model.calls[0]["input_ids"], model.calls[0].get("attention_mask")
    assert mask is not None, "generate got no attention_mask: padding looks like text"
    short = ids_of("<user>hi</s><assistant>").shape[1]
    assert ids.shape[0] == 2, f"the batch should have 2 rows, not {ids.shape[0]}"
    wanted = [0] * (ids.shape[1] - short) + [1] * short
    assert mask[0].tolist() == wanted, (
        f"with a tokenizer that pads on the {side}: the mask of the shorter prompt "
        f"should be {expect.show(wanted)}, not {expect.show(mask[0])}. Pad on the left."
    )


@MODELS
def test_each_answer_is_that_of_the_conversation_alone(reply_batch, make):
    model, tokenizer = toy_model(make), toy_tokenizer()
    conversations = [HI, TALK, [{"role": "user", "content": "what?"}]]
    oracle = []
    for messages in conversations:
        parts = [f"<{m['role']}>{m['content']}</s>" for m in messages]
        ids = ids_of("".join(parts) + "<assistant>")
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        new = out[0, ids.shape[1] :]
        oracle.append(tokenizer.decode(new, skip_special_tokens=True))
    got = reply_batch(
        model, tokenizer, conversations, max_new_tokens=8, do_sample=False
    )
    expect.value(got, oracle, "reply_batch of 3 conversations")


def test_a_batch_of_one(reply_batch):
    got = reply_batch(FakeGenerate("yes"), toy_tokenizer(), [HI])
    expect.value(got, ["yes"], "reply_batch of one conversation")


# --- token_logprobs -------------------------------------------------------------------


def test_logprobs_worked_by_hand(token_logprobs):
    logits = torch.tensor([[[math.log(1), math.log(3)], [50.0, 0.0]]])
    model = ScriptedModel(lambda ids: logits, vocab_size=2)
    got = token_logprobs(model, torch.tensor([[0, 1]]))
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (1, 1):
        hint = {
            0.75: "That is the probability; its natural logarithm is asked for.",
            round(math.log(3), 2): "That is the logit: log_softmax comes first.",
            0.29: "Log-probabilities are below 0.",
            -50.0: "Position 0 of the logits predicts the token at position 1.",
        }.get(round(got.item(), 2), "")
    expect.same(got, [[math.log(0.75)]], "token_logprobs of [[0, 1]]", hint, 1e-5)


@MODELS
def test_logprobs_agree_with_one_prefix_at_a_time(token_logprobs, make):
    model = make()
    ids = torch.tensor([[5, 17, 40, 8, 9, 10], [60, 61, 62, 5, 5, 96]])
    oracle = torch.empty(2, 5)
    with torch.no_grad():
        for row in range(2):
            for end in range(1, 6):
                logits = model(ids[row : row + 1, :end]).logits[0, -1]
                probabilities = torch.exp(logits) / torch.exp(logits).sum()
                oracle[row, end - 1] = probabilities[ids[row, end]].log()
    got = token_logprobs(model, ids)
    hint = "Entry t is for the token at t + 1: shift logits and ids by one."
    expect.same(got, oracle, "token_logprobs of a random model", hint, 1e-3)


def test_logprobs_agree_with_transition_scores_of_generate(token_logprobs):
    model = random_llama(eos_token_id=None)
    ids = torch.tensor([[5, 17, 40]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    oracle = model.compute_transition_scores(
        out.sequences, out.scores, normalize_logits=True
    )
    got = token_logprobs(model, out.sequences)
    expect.tensor(got, (1, 8), "token_logprobs of 9 tokens", torch.float32)
    expect.same(got[:, 2:], oracle, "the log-probabilities of 6 new tokens", "", 1e-3)


def test_logprobs_carry_no_gradients_and_are_float32(token_logprobs):
    ids = torch.tensor([[5, 17, 40]])
    with expect.unchanged(ids=ids):
        got = token_logprobs(random_llama().to(torch.bfloat16), ids)
    expect.tensor(got, (1, 2), "token_logprobs of a bfloat16 model", torch.float32)
    assert not got.requires_grad, "call the model inside `with torch.no_grad():`"


# --- attention_map --------------------------------------------------------------------


@MODELS
def test_each_position_looks_only_back(attention_map, make):
    ids = torch.tensor([[5, 17, 40, 8], [1, 2, 3, 4]])
    for layer in (0, 1):
        call = f"attention_map(model, ids, {layer})"
        got = expect.tensor(attention_map(make(), ids, layer), (4, 4, 4), call)
        assert not got.requires_grad, "call the model inside `with torch.no_grad():`"
        ones = torch.ones(4, 4)
        expect.same(got.sum(-1), ones, f"the sums over columns of {call}", "", 1e-5)
        future = got.triu(diagonal=1).abs().max().item()
        assert future == 0, f"{call}: a position attends to a later one: {future:.3f}"
        one = attention_map(make(), torch.tensor([[9]]), layer)
        expect.same(one, [[[1.0]]] * 4, f"attention_map of one token, layer {layer}")


@MODELS
def test_the_layer_and_the_row_are_the_ones_asked_for(attention_map, make):
    ids = torch.tensor([[5, 17, 40, 8], [1, 2, 3, 4]])
    model = make()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        oracle = model(ids, output_attentions=True).attentions
    for layer in (0, 1):
        got = attention_map(make(), ids, layer)
        call = f"attention_map(model, ids, {layer})"
        hint = ""
        if isinstance(got, torch.Tensor) and got.shape == (4, 4, 4):
            for other in (0, 1):
                if other != layer and torch.allclose(got, oracle[other][0], atol=1e-5):
                    hint = f"That is layer {other}."
            if torch.allclose(got, oracle[layer][1], atol=1e-5):
                hint = "That is the second row of the batch."
        expect.same(got, oracle[layer][0], call, hint, 1e-5)


def test_the_model_is_as_it_was(attention_map):
    for before in ("sdpa", "eager"):
        model = random_llama()
        model.set_attn_implementation(before)
        attention_map(model, torch.tensor([[5, 6]]), 0)
        now = model.config._attn_implementation
        assert now == before, (
            f"the model came with {before!r} attention and was left with {now!r}: put "
            "it back"
        )


def test_the_model_is_as_it_was_after_an_error(attention_map):
    model = random_llama()
    with contextlib.suppress(IndexError, RuntimeError):
        attention_map(model, torch.tensor([[5, 600]]), 0)  # no such token
    now = model.config._attn_implementation
    assert now == "sdpa", (
        f"the model's call failed, and the model was left with {now!r} attention: "
        "restore it in a `finally`"
    )
