"""Checks of lesson 02. Oracles: cases worked by hand, slow specifications, generate."""

import contextlib
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from course import expect
from course.plugin import exercise
from course.toy_tokenizer import CHAT_TEMPLATE, toy_tokenizer
from tiny_models import ScriptedModel, random_gpt2, random_llama

build_prompt = exercise("build_prompt")
new_text = exercise("new_text")
reply = exercise("reply")
reply_batch = exercise("reply_batch")
token_logprobs = exercise("token_logprobs")
attention_map = exercise("attention_map")

HI_TEXT = "<user>hi</s><assistant>"
TALK_TEXT = (
    "<system>Be kind.</s><user>hi</s><assistant>hello</s>"
    "<user>a longer question, with é</s><assistant>"
)
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


# New lists for each test: an answer that appends to one must not spoil the next test.
def hi():
    return [{"role": "user", "content": "hi"}]


def talk():
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "a longer question, with é"},
    ]


def ids_of(text):
    """Token ids (1, seq) of a prompt that is written out by hand."""
    tokenizer = toy_tokenizer()
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def toy_model(make=random_llama):
    return make(vocab_size=len(toy_tokenizer()), eos_token_id=None)


def prompt_is(ids, text, call):
    """The token ids (seq,) of a prompt are those of `text`."""
    read = toy_tokenizer().decode(ids)
    hint = ""
    if text == read + "<assistant>":
        hint = " The generation prompt is missing: add_generation_prompt=True."
    assert read == text, f"{call} should read {text!r}, not {read!r}.{hint}"


class Arrived(Exception):
    """The prompt has reached a model on another device."""


class FakeGenerate:
    """A model whose `generate` continues with a text for each row, and records how it
    was called."""

    def __init__(self, *texts):
        self.device = torch.device("cpu")
        self.texts, self.calls = texts, []

    def generate(self, inputs=None, **options):
        ids = options.get("input_ids", inputs)
        if isinstance(ids, BatchEncoding):
            raise AssertionError(
                "generate was given the BatchEncoding itself: unpack it, **prompt"
            )
        assert len(ids) == len(self.texts), (
            f"generate was given {len(ids)} prompt(s), not {len(self.texts)}: one call "
            "for all that were asked for"
        )
        assert ids.device == self.device, (
            f"the model is on the device {self.device}, and its prompt is on "
            f"{ids.device}: prompt.to(model.device)"
        )
        if self.device.type == "meta":
            raise Arrived  # a device without numbers, so there is nothing to answer
        self.calls.append({**options, "input_ids": ids})
        eos = toy_tokenizer().eos_token_id
        new = [[*ids_of(text)[0].tolist(), eos] for text in self.texts]
        width = max(map(len, new))
        rows = [row + [0] * (width - len(row)) for row in new]
        return torch.cat([ids, torch.tensor(rows)], dim=-1)

    @property
    def call(self):
        """What the only call was given."""
        n = len(self.calls)
        assert n == 1, f"generate was called {n} times: one call gives all answers"
        return self.calls[0]


# --- build_prompt ---------------------------------------------------------------------


def input_ids(got, call):
    expect.returned(got, BatchEncoding, call)
    assert "attention_mask" in got, f"{call} has no attention_mask"
    return expect.returned(got["input_ids"], torch.Tensor, f"{call}['input_ids']")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (hi, HI_TEXT),
        (talk, TALK_TEXT),
    ],
)
def test_the_prompt_worked_by_hand(build_prompt, messages, text):
    call = f"build_prompt of {len(messages())} message(s)"
    got = input_ids(build_prompt(toy_tokenizer(), messages()), call)
    assert got.dim() == 2, (
        f"{call}: input_ids should be (1, seq), not {tuple(got.shape)}"
    )
    prompt_is(got[0], text, call)
    expect.same_ids(got, ids_of(text), call)


def test_the_mask_is_ones(build_prompt):
    call = "build_prompt"
    prompt = build_prompt(toy_tokenizer(), hi())
    ids = input_ids(prompt, call)
    mask = expect.tensor(prompt["attention_mask"], ids.shape, f"{call}: attention_mask")
    assert (mask == 1).all(), f"all tokens are real; the mask is {expect.show(mask)}"


def test_the_messages_are_left_alone(build_prompt):
    messages = talk()
    with expect.unchanged("do not append to it", messages=messages):
        build_prompt(toy_tokenizer(), messages)


def test_no_second_bos_is_added(build_prompt):
    tokenizer = toy_tokenizer(chat_template="{{ bos_token }}" + CHAT_TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    call = "build_prompt with a template that begins with BOS"
    got = input_ids(build_prompt(tokenizer, hi()), call)
    read = tokenizer.decode(got[0])
    hint = ""
    if read == "<s><s>" + HI_TEXT:
        hint = "This tokenizer puts a BOS before each text, and the template has one "
        hint += "already: let apply_chat_template do the tokenising."
    expect.value(read, "<s>" + HI_TEXT, call, hint)


def test_the_template_is_that_of_the_tokenizer(build_prompt):
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    tokenizer = toy_tokenizer(chat_template=template)
    call = "build_prompt with a template that writes [content] and then >"
    got = input_ids(build_prompt(tokenizer, hi()), call)
    read = tokenizer.decode(got[0])
    hint = "Do not write out the roles yourself." if "user" in read else ""
    expect.value(read, "[hi]>", call, hint)


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
    got = reply(model, toy_tokenizer(), hi(), max_new_tokens=7)
    prompt_is(model.call["input_ids"][0], HI_TEXT, "the prompt that generate got")
    assert model.call.get("attention_mask") is not None, (
        "generate got no attention_mask: pass ids and mask, **prompt"
    )
    hint = ""
    if isinstance(got, str) and got != "yes" and got.endswith("yes"):
        hint = "The prompt is still in it: generate returns prompt and answer."
    expect.value(got, "yes", "reply with a model that says 'yes' and EOS", hint)


def test_generation_options_go_through_unchanged(reply):
    for options in ({"max_new_tokens": 3}, {"do_sample": True, "temperature": 0.5}, {}):
        model = FakeGenerate("ok")
        reply(model, toy_tokenizer(), hi(), **options)
        given = set(model.call) - {"input_ids", "attention_mask"}
        hint = ""
        if "max_length" in given:
            hint = ". max_length counts the prompt, too: max_new_tokens is meant"
        assert given == set(options), (
            f"reply(..., **{options}) should pass just these to generate; it got "
            f"{sorted(given)}{hint}"
        )
        for name, wanted in options.items():
            expect.value(model.call[name], wanted, f"generate's {name}")


def test_the_prompt_goes_to_the_device_of_the_model(reply):
    model = FakeGenerate("yes")
    model.device = torch.device("meta")
    with contextlib.suppress(Arrived):
        reply(model, toy_tokenizer(), hi())


@MODELS
def test_reply_is_what_generate_says(reply, make):
    model, tokenizer = toy_model(make), toy_tokenizer()
    prompt = ids_of(HI_TEXT)
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(7)
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=9,
            **options,
        )
        oracle = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
        torch.manual_seed(7)
        got = reply(model, tokenizer, hi(), max_new_tokens=9, **options)
        expect.value(got, oracle, f"reply with {options}")


def test_the_conversation_is_left_alone(reply):
    messages = talk()
    hint = "the answer is returned, not appended"
    with expect.unchanged(hint, messages=messages):
        reply(FakeGenerate("yes"), toy_tokenizer(), messages)


# --- reply_batch ----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_batch_is_padded_on_the_left(reply_batch, side):
    model = FakeGenerate("yes", "maybe")
    tokenizer = toy_tokenizer()
    tokenizer.padding_side = side
    got = reply_batch(model, tokenizer, [hi(), talk()])
    ids, mask = model.call["input_ids"], model.call.get("attention_mask")
    assert mask is not None, "generate got no attention_mask: padding looks like text"
    prompt_is(ids[1], TALK_TEXT, "the longer of two prompts")
    short = ids_of(HI_TEXT).shape[1]
    wanted = [0] * (ids.shape[1] - short) + [1] * short
    right = ids[0, -1] == tokenizer.pad_token_id
    assert mask[0].tolist() == wanted, (
        f"with a tokenizer that pads on the {side}: the mask of the shorter prompt "
        f"should be {expect.show(wanted)}, not {expect.show(mask[0])}. "
        + ("Pad on the left." if right else "The mask is 0 where there is padding.")
    )
    prompt_is(ids[0, -short:], HI_TEXT, "the shorter of two prompts, without padding,")
    texts = "reply_batch with a model that says these"
    expect.value(got, ["yes", "maybe"], texts, batch_hint(got, ["yes", "maybe"]))
    assert tokenizer.padding_side == side, (
        f"the tokenizer came with padding_side={side!r} and left with "
        f"{tokenizer.padding_side!r}: put it back, or pass the side in the call"
    )


def batch_hint(got, expected):
    """What a wrong list of answers is, where we can tell."""
    if not isinstance(got, list) or not all(isinstance(x, str) for x in got):
        return ""
    ends = [a.endswith(b) for a, b in zip(got, expected, strict=False)]
    if len(got) == len(expected) and all(ends) and got != expected:
        return "The prompt is still in it: the new tokens begin after the padded width."
    if any("<pad>" in x or "</s>" in x for x in got):
        return "Special tokens are not for users: skip_special_tokens=True."
    return ""


@MODELS
def test_each_answer_is_that_of_the_conversation_alone(reply_batch, make):
    model, tokenizer = toy_model(make), toy_tokenizer()
    conversations = [hi(), talk(), [{"role": "user", "content": "what?"}]]
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
    hint = batch_hint(got, oracle)
    if isinstance(got, list) and len(got) == 3 and got[1] == oracle[1] and not hint:
        hint = "The longest is right, a padded one is not: is the padding on the left "
        hint += "and masked?"
    expect.value(got, oracle, "reply_batch of 3 conversations", hint)


def test_options_of_a_batch_go_through_unchanged(reply_batch):
    model = FakeGenerate("yes", "no")
    options = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5}
    reply_batch(model, toy_tokenizer(), [hi(), hi()], **options)
    inputs = {"input_ids", "attention_mask"}
    given = {k: v for k, v in model.call.items() if k not in inputs}
    expect.value(given, options, "the options of generate")


def test_the_batch_goes_to_the_device_of_the_model(reply_batch):
    model = FakeGenerate("yes", "no")
    model.device = torch.device("meta")
    with contextlib.suppress(Arrived):
        reply_batch(model, toy_tokenizer(), [hi(), hi()])


def test_a_batch_of_one(reply_batch):
    got = reply_batch(FakeGenerate("yes"), toy_tokenizer(), [hi()])
    expect.value(got, ["yes"], "reply_batch of one conversation")


def test_the_conversations_are_left_alone(reply_batch):
    conversations = [hi(), talk()]
    with expect.unchanged("work on copies", first=conversations[0]):
        reply_batch(FakeGenerate("yes", "no"), toy_tokenizer(), conversations)


# --- token_logprobs -------------------------------------------------------------------


def misread(logits, ids):
    """(what went wrong, the values that come of it) for the usual wrong answers."""
    used, tokens = logits[:, :-1], ids[:, 1:, None]

    def of_token(values, wanted=tokens):
        return values.gather(-1, wanted)[..., 0]

    right = used.log_softmax(-1)
    shifted = "Position t of the logits predicts the token at position t + 1."
    axis = "log_softmax runs over the vocabulary, the last dimension."
    return [
        ("These are logits: log_softmax comes first.", of_token(used)),
        ("That is the probability; its logarithm is asked for.", of_token(right).exp()),
        ("Log-probabilities are below 0.", -of_token(right)),
        ("The natural logarithm is asked for.", of_token(right) / math.log(2)),
        ("That is the likeliest token, not the one that came.", right.amax(-1)),
        (shifted, of_token(logits[:, 1:].log_softmax(-1))),
        (shifted, of_token(right, ids[:, :-1, None])),
        (shifted, of_token(logits[:, 1:].log_softmax(-1), ids[:, :-1, None])),
        (axis, of_token(used.log_softmax(1))),
        (axis, of_token(logits.log_softmax(1)[:, :-1])),
        (axis, of_token(used.log_softmax(0))),
    ]


def logprobs_are(got, oracle, call, logits, ids, tolerance=1e-3):
    expect.returned(got, torch.Tensor, call)
    wide = got.shape == ids.shape
    assert not wide, (
        f"{call} should have shape {tuple(oracle.shape)}, not {tuple(got.shape)}: the "
        "first token has no prediction"
    )
    hint = ""
    if got.shape == oracle.shape:
        found = {
            says
            for says, values in misread(logits, ids)
            if torch.allclose(got.detach().float(), values, atol=1e-3)
        }
        hint = found.pop() if len(found) == 1 else ""
    expect.same(got, oracle, call, hint, tolerance)


def test_logprobs_worked_by_hand(token_logprobs):
    logits = torch.tensor([[[math.log(1), math.log(3)], [50.0, 0.0]]])
    model = ScriptedModel(lambda ids: logits, vocab_size=2)
    ids = torch.tensor([[0, 1]])
    got = token_logprobs(model, ids)
    oracle = torch.tensor([[math.log(0.75)]])
    logprobs_are(got, oracle, "token_logprobs of [[0, 1]]", logits, ids, 1e-5)


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
        logits = model(ids).logits
    got = token_logprobs(model, ids)
    logprobs_are(got, oracle, "token_logprobs of a random model", logits, ids)


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
    model = random_llama().to(torch.bfloat16)
    with expect.unchanged(ids=ids):
        got = token_logprobs(model, ids)
    call = "token_logprobs of a bfloat16 model"
    expect.tensor(got, (1, 2), call, torch.float32)
    assert not got.requires_grad, "call the model inside `with torch.no_grad():`"
    with torch.no_grad():
        rows = model(ids).logits[0].double()
    oracle = [
        rows[n, token].item() - math.log(rows[n].exp().sum().item())
        for n, token in enumerate(ids[0, 1:].tolist())
    ]
    hint = ""
    if torch.allclose(got, torch.tensor([oracle]), atol=0.1):
        hint = "Make the logits float32 before log_softmax: bfloat16 has few digits."
    expect.same(got, [oracle], call, hint, 1e-3)


# --- attention_map --------------------------------------------------------------------


def map_of(attention_map, model, ids, layer):
    """The map, or what an empty tuple of attentions means."""
    try:
        return attention_map(model, ids, layer)
    except IndexError as error:
        raise AssertionError(
            f"attention_map(model, ids, {layer}) ends in IndexError: {error}. Is "
            "`attentions` empty? Only eager attention hands out its weights: "
            'model.set_attn_implementation("eager") before the call.'
        ) from error


def same_map(got, oracle, call, hint):
    """Equal maps, or the first place where they differ: the whole is a page long."""
    expect.tensor(got, oracle.shape, call)
    off = ~((got - oracle).abs().amax(-1) <= 1e-5)  # (heads, seq)
    if off.any():
        head, row = off.nonzero()[0].tolist()
        place = f"{call}[{head}, {row}], where head {head} looks from position {row},"
        expect.same(got[head, row], oracle[head, row], place, hint, 1e-5)


@MODELS
def test_each_position_looks_only_back(attention_map, make):
    ids = torch.tensor([[5, 17, 40, 8], [1, 2, 3, 4]])
    for layer in (0, 1):
        call = f"attention_map(model, ids, {layer})"
        got = map_of(attention_map, make(), ids, layer)
        expect.tensor(got, (4, 4, 4), call)
        assert not got.requires_grad, "call the model inside `with torch.no_grad():`"
        ones = torch.ones(4, 4)
        hint = ""
        if torch.allclose(got.sum(-2), ones, atol=1e-5):
            hint = "Rows and columns are swapped."
        expect.same(got.sum(-1), ones, f"the sums over columns of {call}", hint, 1e-5)
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
        got = map_of(attention_map, make(), ids, layer)
        call = f"attention_map(model, ids, {layer})"
        hint = ""
        if isinstance(got, torch.Tensor) and got.shape == (4, 4, 4):
            for other in (0, 1):
                if other != layer and torch.allclose(got, oracle[other][0], atol=1e-5):
                    hint = f"That is layer {other}."
            if torch.allclose(got, oracle[layer][1], atol=1e-5):
                hint = "That is the second row of the batch."
        same_map(got, oracle[layer][0], call, hint)


def test_the_model_is_as_it_was(attention_map):
    for before in ("sdpa", "eager"):
        model = random_llama()
        model.set_attn_implementation(before)
        map_of(attention_map, model, torch.tensor([[5, 6]]), 0)
        now = model.config._attn_implementation
        assert now == before, (
            f"the model came with {before!r} attention and was left with {now!r}: put "
            "it back"
        )


def test_the_model_is_as_it_was_after_an_error(attention_map):
    model = random_llama()
    try:
        attention_map(model, torch.tensor([[5, 600]]), 0)  # no such token
    except NotImplementedError:  # a RuntimeError, and what a stub raises
        raise
    except (IndexError, RuntimeError):
        pass
    now = model.config._attn_implementation
    assert now == "sdpa", (
        f"the model's call failed, and the model was left with {now!r} attention: "
        "restore it in a `finally`"
    )
