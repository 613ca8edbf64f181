"""Checks of lesson 02. Oracles: cases worked by hand, slow specifications, generate."""

import contextlib
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import ScriptedModel, random_gpt2, random_llama
from tiny_models.toy_tokenizer import CHAT_TEMPLATE, toy_tokenizer

build_prompt = exercise("build_prompt")
new_text = exercise("new_text")
reply = exercise("reply")
reply_batch = exercise("reply_batch")
token_logprobs = exercise("token_logprobs")
attention_map = exercise("attention_map")

HI_TEXT = "<user>hi</s><assistant>"
TALK_TEXT = (
    "<system>Be kind.</s><user>hi</s><assistant> hello\n</s>"
    "<user>a longer question, with é</s><assistant>"
)
GRADIENTS_OFF = (
    "after the call gradients were off for the whole program: use "
    "`with torch.no_grad():` around the model's call"
)
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


# New lists for each test: an answer that appends to one must not spoil the next test.
def hi():
    return [{"role": "user", "content": "hi"}]


def talk():
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": " hello\n"},
        {"role": "user", "content": "a longer question, with é"},
    ]


def after_a_tool():
    return [*hi(), {"role": "tool", "content": "42"}]


def ids_of(text):
    """Token ids (1, seq) of a prompt that is written out by hand."""
    tokenizer = toy_tokenizer()
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def toy_model(make=random_llama):
    return make(vocab_size=len(toy_tokenizer()), eos_token_id=None)


def prompt_is(ids, text, call):
    """The token ids (seq,) of a prompt are those of `text`."""
    read = toy_tokenizer().decode(ids)
    hint = misread_prompt(read, text)
    assert read == text, f"{call} should read {text!r}, not {read!r}.{hint}"


def misread_prompt(read, text):
    """What a wrong prompt is, where we can tell."""
    if text == read + "<assistant>" and "<tool>" in text:
        return (
            " The generation prompt is missing: it is the model's turn whichever role "
            "spoke last."
        )
    if text == read + "<assistant>":
        return " The generation prompt is missing: add_generation_prompt=True."
    if text == read + "</s><assistant>":
        return (
            " The last message is left open, so the model would go on with it: "
            "add_generation_prompt=True, and no continue_final_message."
        )
    if read == text + "</s>":
        return (
            " The model's turn is there as an empty message, and closed already: "
            "add_generation_prompt=True opens it."
        )
    if "<user>" not in read:
        return " The chat template was not used: tokenizer.apply_chat_template."
    if "".join(read.split()) == "".join(text.split()):
        return " The spaces of a message belong to it: no strip()."
    if text.endswith(read):
        return " Only the last message is in it: a model remembers no other."
    if text.startswith(read):
        return " The end was cut off."
    if read.endswith(text):
        return " Something stands before the messages that is not in them."
    return ""


def misread_answer(got, text):
    """What a wrong answer of a model that said `text` is, where we can tell."""
    if isinstance(got, torch.Tensor):
        return "These are token ids: decode them."
    if isinstance(got, list):
        return "One text, not a list of texts."
    if not isinstance(got, str):
        return ""
    if any(special in got for special in ("<s>", "</s>", "<pad>")):
        return "Special tokens are not for users: skip_special_tokens=True."
    if got != text and got == text.strip():
        return "The spaces belong to the text: no strip()."
    if got != text and got.endswith(text):
        return "The prompt is still in it: generate returns prompt and answer."
    if got != text and got.startswith(text):
        return "It goes on after the end: does generate get all options?"
    return ""


def pads_with_eos():
    """A tokenizer whose pad token is its EOS token, as those of many models."""
    tokenizer = toy_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def options_are(model, wanted, call):
    """`model.generate` got the options `wanted`, and no others."""
    given = dict(model.call)
    del given["input_ids"]
    given.pop("attention_mask", None)
    text = f"{call} should give generate just these options."
    if missing := sorted(set(wanted) - set(given)):
        text += f" Missing: {', '.join(missing)}."
    if more := sorted(set(given) - set(wanted)):
        text += f" Nobody asked for {', '.join(more)}."
        if any(isinstance(given[name], dict) for name in more):
            text += " Unpack it: **generation."
    if "max_length" in given:
        text += " max_length counts the prompt, too: max_new_tokens is meant."
    assert set(given) == set(wanted), text
    for name, value in wanted.items():
        expect.value(given[name], value, f"{call}: generate's {name}")


def written(options):
    """Options as in a call."""
    return "".join(f", {name}={value}" for name, value in options.items())


def fails(function, error) -> bool:
    """Whether `function()` raises `error`; what a stub raises goes through."""
    try:
        function()
    except NotImplementedError:
        raise
    except error:
        return True
    return False


class Arrived(Exception):
    """The prompt has reached a model on another device."""


@contextlib.contextmanager
def up_to_the_device():
    """The body, until it looks at what is on a device without numbers."""
    try:
        yield
    except Arrived:
        pass
    except RuntimeError as error:
        if "meta" not in str(error):
            raise


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
            f"a call of generate got {counted(len(ids), 'prompt')}, not "
            f"{len(self.texts)}: one call for all conversations"
        )
        for name, given in (("prompt", ids), ("mask", options.get("attention_mask"))):
            assert given is None or given.device == self.device, (
                f"the model is on the device {self.device}, which stands for a GPU "
                f"here, and its {name} is on {given.device}: prompt.to(model.device)"
            )
        if self.device.type == "meta":
            raise Arrived  # a device without numbers, so there is nothing to answer
        self.calls.append({**options, "input_ids": ids})
        eos = toy_tokenizer().eos_token_id
        new = [[*ids_of(text)[0].tolist(), eos] for text in self.texts]
        width = max(map(len, new))
        rows = [row + [0] * (width - len(row)) for row in new]
        return torch.cat([ids, torch.tensor(rows)], dim=-1)

    def eval(self):
        return self

    def parameters(self):
        """One parameter, for code that asks it for the device."""
        return iter([torch.empty(1, device=self.device)])

    @property
    def call(self):
        """What the only call was given."""
        n = len(self.calls)
        assert n == 1, f"generate was called {n} times: one call gives all answers"
        return self.calls[0]


# --- build_prompt ---------------------------------------------------------------------


def input_ids(got, call):
    assert type(got) is not dict, (
        f"{call} should return a BatchEncoding, not a dict, which has no .to(device)"
    )
    expect.returned(got, BatchEncoding, call)
    assert "attention_mask" in got, f"{call} has no attention_mask"
    assert not isinstance(got["input_ids"], list), (
        f'{call}: input_ids should be a tensor, not a list: return_tensors="pt"'
    )
    return expect.returned(got["input_ids"], torch.Tensor, f"{call}: input_ids")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (hi, HI_TEXT),
        (talk, TALK_TEXT),
        (after_a_tool, "<user>hi</s><tool>42</s><assistant>"),
    ],
)
def test_the_prompt_worked_by_hand(build_prompt, messages, text):
    number = len(messages())
    call = f"build_prompt of {number} message{'s' * (number > 1)}"
    got = input_ids(build_prompt(toy_tokenizer(), messages()), call)
    assert got.dim() == 2, (
        f"{call}: input_ids should be (1, seq), not {tuple(got.shape)}"
    )
    prompt_is(got[0], text, call)
    expect.same_ids(got, ids_of(text), call)
    expect.tensor(got, ids_of(text).shape, f"{call}: input_ids", torch.int64)


def test_the_attention_mask_of_a_prompt(build_prompt):
    call = "build_prompt"
    prompt = build_prompt(pads_with_eos(), hi())
    ids = input_ids(prompt, call)
    mask = prompt["attention_mask"]
    expect.tensor(mask, ids.shape, f"{call}: attention_mask", torch.int64)
    hides_eos = torch.equal(mask == 0, ids == toy_tokenizer().eos_token_id)
    hint = ". The EOS of a message is text, even where it is the pad token"
    assert (mask == 1).all(), (
        f"all tokens are real; the mask is {expect.show(mask)}{hides_eos * hint}"
    )


def test_a_long_conversation_is_not_cut(build_prompt):
    said = [{"role": "user", "content": "so " * 3000}]
    ids = input_ids(
        build_prompt(toy_tokenizer(), said), "build_prompt of a long message"
    )
    wanted = ids_of(f"<user>{'so ' * 3000}</s><assistant>").shape[1]
    hint = "Cut from the end, the generation prompt is lost: no truncation."
    call = "the number of tokens in build_prompt of 3000 words"
    expect.value(ids.shape[1], wanted, call, hint)


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
    elif read == HI_TEXT:
        hint = "The BOS of the template is missing: is it the tokenizer's template?"
    expect.value(read, "<s>" + HI_TEXT, call, hint)


def test_the_template_is_that_of_the_tokenizer(build_prompt):
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    tokenizer = toy_tokenizer(chat_template=template)
    call = "build_prompt with a template that writes [content] and then >"
    got = input_ids(build_prompt(tokenizer, hi()), call)
    read = tokenizer.decode(got[0])
    hint = "Do not write out the roles yourself." if "user" in read else ""
    if read.startswith("[hi]["):
        hint = "It should end in the template's generation prompt, not in a message "
        hint += "that was begun: add_generation_prompt=True."
    expect.value(read, "[hi]>", call, hint)


# --- new_text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "output", "text"),
    [
        ("abc", "abcde</s>", "de"),
        ("ab", "abcd</s>", "cd"),
        ("<user>hi</s><assistant>", "<user>hi</s><assistant>yo</s>", "yo"),
        ("ab", "ab</s>", ""),
        ("ab", "ab", ""),
        ("ab", "ababab", "abab"),
        ("né", "né é!", " é!"),
        ("ab", "ab<s>cd</s><pad>", "cd"),
        ("<s>", "<s>cd</s>", "cd"),
    ],
)
def test_new_text_worked_by_hand(new_text, prompt, output, text):
    hint = f"The text of the prompt {prompt!r} is empty: cut the ids, not the text."
    with expect.hinting(hint, ValueError, says="empty separator"):
        got = new_text(toy_tokenizer(), ids_of(prompt), ids_of(output))
    hint = misread_text(got, text, ids_of(prompt)[0], ids_of(output)[0])
    expect.value(got, text, f"new_text of prompt {prompt!r}, output {output!r}", hint)


def misread_text(got, text, prompt, output):
    """What a wrong new text is, where we can tell. prompt, output: ids (seq,)."""
    n = len(prompt)

    def read(ids, skip=True):
        return toy_tokenizer().decode(ids, skip_special_tokens=skip)

    whole, before = read(output), read(prompt)
    rows = "The prompt has input_ids.shape[1] tokens, and len(input_ids) is its number "
    rows += "of rows."
    early = "The last token of the prompt is still in it: the first new token is at "
    early += "position input_ids.shape[1]."
    if len(output) == n:
        early = "Nothing is new here. Counted from the end, [-0:] is everything: count "
        early += "from the beginning."
    cut = "Cut the ids, not the text: special tokens are not in the text, and an "
    cut += "answer may repeat the prompt."
    halves = "A letter may take several tokens: decode them together."
    readings = [
        (early if len(output) == n else "The prompt is still in it.", whole),
        (early, read(output[n - 1 :]) if n > 2 else None),
        (rows, read(output[1:]) if n > 1 else None),
        ("The spaces belong to the text: no strip().", text.strip()),
        ("The first new token is missing.", read(output[n + 1 :])),
        ("The last token is not always EOS.", read(output[n:-1])),
        (halves, "".join(read([token]) for token in output[n:])),
        (cut, whole[len(read(prompt, skip=False)) :]),
        (cut, whole.replace(before, "")),
        (cut, whole.split(before)[-1] if before else None),
        (cut, whole.lstrip(before)),
    ]
    if isinstance(got, str):
        says = [says for says, wrong in readings if got == wrong]
        return says[0] if says else misread_answer(got, text)
    return misread_answer(got, text)


# --- reply ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "prompt", "text"),
    [
        (hi, HI_TEXT, "yes"),
        (talk, TALK_TEXT, " yes\n"),
    ],
)
def test_reply_worked_by_hand(reply, messages, prompt, text):
    model = FakeGenerate(text)
    got = reply(model, pads_with_eos(), messages(), max_new_tokens=7)
    prompt_is(model.call["input_ids"][0], prompt, "the prompt that generate got")
    mask = model.call.get("attention_mask")
    assert mask is not None, (
        "generate got no attention_mask: pass ids and mask, **prompt"
    )
    assert (mask == 1).all(), (
        f"all tokens are real; generate got the mask {expect.show(mask)}. The EOS "
        "inside a prompt is text, even where it is the pad token: take the mask "
        "of build_prompt"
    )
    call = f"reply with a model that says {text!r} and EOS"
    expect.value(got, text, call, misread_answer(got, text))


def test_generation_options_go_through_unchanged(reply):
    sampling = {"do_sample": True, "temperature": 0.5}
    for options in ({"max_new_tokens": 3}, {"max_new_tokens": 5000}, sampling, {}):
        model = FakeGenerate("ok")
        reply(model, toy_tokenizer(), hi(), **options)
        options_are(model, options, f"reply(...{written(options)})")


def test_the_prompt_goes_to_the_device_of_the_model(reply):
    model = FakeGenerate("yes")
    model.device = torch.device("meta")
    with up_to_the_device():
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
        torch.manual_seed(8)
        again = reply(model, tokenizer, hi(), max_new_tokens=9, **options)
        hint = misread_answer(got, oracle)
        if options["do_sample"] and isinstance(got, str):
            assert got == oracle or got != again, (
                f"reply(...{written(options)}) says the same with seeds 7 and 8: leave "
                "the seed to the caller"
            )
        expect.value(got, oracle, f"reply(...{written(options)})", hint)


def test_the_conversation_is_left_alone(reply):
    messages = talk()
    hint = "the answer is returned, not appended"
    with expect.unchanged(hint, messages=messages):
        reply(FakeGenerate("yes"), toy_tokenizer(), messages)


# --- reply_batch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "pad"), [("left", "<pad>"), ("right", "<pad>"), ("right", "</s>")]
)
def test_a_batch_of_two_conversations(reply_batch, side, pad):
    texts = ["yes", " maybe\n"]
    model = FakeGenerate(*texts)
    tokenizer = toy_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = side, pad
    lengths = [ids_of(text).shape[1] for text in (HI_TEXT, TALK_TEXT)]
    hint = (
        f"The prompts have {lengths[0]} and {lengths[1]} tokens, and rows of a tensor "
    )
    hint += "are equally long: padding, no truncation."
    with expect.hinting(hint, ValueError, says="padding"):
        got = reply_batch(model, tokenizer, [hi(), talk()])
    ids, mask = model.call["input_ids"], model.call.get("attention_mask")
    assert mask is not None, "generate got no attention_mask: padding looks like text"
    pad_id = toy_tokenizer().convert_tokens_to_ids(pad)
    short = ids_of(HI_TEXT).shape[1]
    hint = ""
    if (ids[:, -1] == pad_id).any():
        hint = "Pad on the left."
    elif (mask == 1).all():
        hint = "The mask is 0 where there is padding."
    elif torch.equal(mask == 0, ids == pad_id):
        hint = "The EOS inside a prompt is text, even where it is the pad token: "
        hint += "take the mask that the tokenizer gives."
    # An answer may sort its rows, as long as it puts the texts back in order.
    rows = (1, 0) if toy_tokenizer().decode(ids[0]) == TALK_TEXT else (0, 1)
    prompt_is(ids[rows[1]], TALK_TEXT, "the longer of two prompts")
    for row, zeros in zip(rows, (ids.shape[1] - short, 0), strict=True):
        wanted = [0] * zeros + [1] * (ids.shape[1] - zeros)
        assert mask[row].tolist() == wanted, (
            f"with a tokenizer that pads on the {side} with {pad}: the mask of row "
            f"{row} should be {zeros} zeros and then ones. {hint}"
        )
    shorter = ids[rows[0], -short:]
    prompt_is(shorter, HI_TEXT, "the shorter of two prompts, without padding,")
    said = [texts[row] for row in rows]
    call = f"reply_batch, where the model says {said[0]!r} and {said[1]!r},"
    expect.value(got, said, call, misread_batch(got, said))
    for name, was in (("padding_side", side), ("pad_token", pad)):
        now = getattr(tokenizer, name)
        way = "it has a pad token, so set no other"
        if name == "padding_side":
            way = "put it back, or pass the side in the call"
        assert now == was, (
            f"the tokenizer came with {name}={was!r} and left with {now!r}: {way}"
        )


def misread_batch(got, expected):
    """What a wrong list of answers is, where we can tell."""
    if not isinstance(got, list) or len(got) != len(expected):
        return f"A list of {len(expected)} texts is asked for."
    if not all(isinstance(x, str) for x in got):
        return ""
    if sorted(got) == sorted(expected):
        return "These are the right answers in another order."
    pairs = list(zip(got, expected, strict=True))
    if all(a.endswith(b) for a, b in pairs):
        return "The prompt is still in it: the new tokens begin after the padded width."
    return next(filter(None, (misread_answer(a, b) for a, b in pairs)), "")


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
    hint = misread_batch(got, oracle)
    if isinstance(got, list) and len(got) == 3 and got[1] == oracle[1] and not hint:
        hint = "The longest is right, a padded one is not: is the padding on the left "
        hint += "and masked?"
    expect.value(got, oracle, "reply_batch of 3 conversations", hint)


def test_options_of_a_batch_go_through_unchanged(reply_batch):
    model = FakeGenerate("yes", "no")
    options = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5}
    reply_batch(model, toy_tokenizer(), [hi(), hi()], **options)
    options_are(model, options, f"reply_batch(...{written(options)})")


def test_the_batch_goes_to_the_device_of_the_model(reply_batch):
    model = FakeGenerate("yes", "no")
    model.device = torch.device("meta")
    with up_to_the_device():
        reply_batch(model, toy_tokenizer(), [hi(), hi()])


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizer_is_as_it_was_after_an_error(reply_batch, side, error):
    class Full(FakeGenerate):
        def generate(self, inputs=None, **options):
            raise error

    tokenizer = toy_tokenizer()
    tokenizer.padding_side = side
    model = Full("yes", "no")
    failed = fails(lambda: reply_batch(model, tokenizer, [hi(), talk()]), error)
    assert tokenizer.padding_side == side, (
        f"generate failed ({error.__name__}), and the tokenizer, which padded on the "
        f"{side}, was left with padding_side={tokenizer.padding_side!r}: pass the side "
        "in the call, or restore it in a `finally`"
    )
    assert failed, (
        f"generate failed ({error.__name__}), and reply_batch returned as if nothing "
        "had happened: the error must not be swallowed"
    )


def test_a_batch_of_one(reply_batch):
    got = reply_batch(FakeGenerate("yes"), toy_tokenizer(), [hi()])
    expect.value(got, ["yes"], "reply_batch of one conversation")


def test_each_of_many_has_its_answer(reply_batch):
    texts = ["yes", "", "no", "", " maybe\n", "yes"] * 3
    got = reply_batch(FakeGenerate(*texts), toy_tokenizer(), [hi()] * len(texts))
    expect.returned(got, list, "reply_batch")
    hint = "An empty answer is one, too." if len(got) < len(texts) else ""
    call = f"reply_batch, where the model says {expect.show(texts)},"
    expect.value(got, texts, call, hint)


def test_the_conversations_are_left_alone(reply_batch):
    conversations = [hi(), talk()]
    with expect.unchanged("work on copies", conversations=conversations):
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
        ("That is the likeliest token, not the one that came.", right.amax(-1)),
        ("These are logits: log_softmax comes first.", of_token(used)),
        ("That is the probability; its logarithm is asked for.", of_token(right).exp()),
        ("Log-probabilities are below 0.", -of_token(right)),
        ("The natural logarithm is asked for.", of_token(right) / math.log(2)),
        (
            "The tokens of the first row are looked up in every row.",
            of_token(right, ids[:1, 1:, None].expand_as(tokens)),
        ),
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
    assert got.shape != (*oracle.shape, 1), (
        f"{call} should have shape {tuple(oracle.shape)}, not {tuple(got.shape)}: "
        "gather keeps the dimension along which it looks, [..., 0] takes it away"
    )
    hint = ""
    if got.shape == oracle.shape:
        found = [
            says
            for says, values in misread(logits, ids)
            if torch.allclose(got.detach().float(), values, atol=1e-3)
        ]
        hint = found[0] if found else ""
        if not got.isfinite().all():
            hint = "The exp of a logit may be 0 or inf: log_softmax in one step."
    expect.same(got, oracle, call, hint, tolerance)


@pytest.mark.parametrize(
    ("first", "token", "logprob"),
    [
        ([math.log(1), math.log(3)], 1, math.log(0.75)),
        ([100.0, 300.0], 0, -200.0),
    ],
)
def test_logprobs_worked_by_hand(token_logprobs, first, token, logprob):
    logits = torch.tensor([[first, [2.0, 0.0]]])
    model = ScriptedModel(lambda ids: logits[:, : ids.shape[1]], vocab_size=2)
    ids = torch.tensor([[0, token]])
    got = token_logprobs(model, ids)
    oracle = torch.tensor([[logprob]])
    call = f"token_logprobs of {ids.tolist()} with the logits {expect.show(first)}"
    logprobs_are(got, oracle, call, logits, ids, 1e-5)


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
    logprobs_are(got, oracle, "token_logprobs of ids of shape (2, 6)", logits, ids)


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
    assert torch.is_grad_enabled(), GRADIENTS_OFF
    assert model.dtype == torch.bfloat16, (
        "the caller's model was bfloat16 and is float32 now: model.float() changes the "
        "model itself, model(ids).logits.float() only what it returned"
    )
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
    except TypeError as error:
        if "NoneType" not in str(error):
            raise
        raise AssertionError(
            f"attention_map(model, ids, {layer}) ends in TypeError: {error}. Is "
            "`attentions` None? The model gives it if asked: output_attentions=True."
        ) from error
    except IndexError as error:
        raise AssertionError(
            f"attention_map(model, ids, {layer}) ends in IndexError: {error}. Is "
            "`attentions` empty? Only eager attention hands out its weights: "
            'model.set_attn_implementation("eager") before the call.'
        ) from error


def map_shape(got, seq, call):
    """`got` is a map of 4 heads."""
    expect.returned(got, torch.Tensor, call)
    shape = tuple(got.shape)
    hint = ""
    if len(shape) == 4:
        hint = ". The first row of the batch is asked for"
    elif shape == (seq, seq):
        hint = ". One map for each head is asked for"
    elif shape == (4, seq):
        hint = ". Where each position looks is asked for, not only the last"
    elif shape == (seq, 32):
        hint = ". These are hidden states; the weights are in `attentions`"
    assert shape == (4, seq, seq), (
        f"{call} should have shape {(4, seq, seq)}, not {shape}{hint}"
    )


def same_map(got, oracle, call, hint):
    """Equal maps, or the first place where they differ: the whole is a page long."""
    map_shape(got, oracle.shape[-1], call)
    off = ~((got - oracle).abs().amax(-1) <= 1e-5)  # (heads, seq)
    if off.any():
        head, row = off.nonzero()[0].tolist()
        place = f"{call}[{head}, {row}], where head {head} looks from position {row},"
        expect.same(got[head, row], oracle[head, row], place, hint, 1e-5)


@MODELS
def test_the_map_of_each_layer(attention_map, make):
    ids = torch.tensor([[5, 17, 40, 8, 9], [1, 2, 3, 4, 5]])
    for layer in (0, 1):
        call = f"attention_map(model, ids, {layer})"
        got = map_of(attention_map, make(), ids, layer)
        map_shape(got, 5, call)
        assert not got.requires_grad, "call the model inside `with torch.no_grad():`"
        ones = torch.ones(4, 5)
        hint = ""
        if torch.allclose(got.sum(-2), ones, atol=1e-5):
            hint = "Rows and columns are swapped."
        elif all(x == 0 or abs(x - 1 / 0.9) < 1e-5 for x in got[:, 0, 0].tolist()):
            hint = "Is the model in training mode? Its dropout removes a tenth of the "
            hint += "weights at random and makes up for it with the others."
        off = (got.sum(-1) - ones).abs() > 1e-5
        if off.any():
            head, row = off.nonzero()[0].tolist()
            raise AssertionError(
                f"{call}: each row of a head should sum to 1; row {row} of head {head} "
                f"sums to {expect.show(got[head, row].sum().item())}. {hint}".rstrip()
            )
        future = got.triu(diagonal=1).abs().max().item()
        assert future == 0, f"{call}: a position attends to a later one: {future:.3f}"
        one = attention_map(make(), torch.tensor([[9]]), layer)
        expect.same(one, [[[1.0]]] * 4, f"attention_map of one token, layer {layer}")


@MODELS
def test_the_layer_and_the_row_are_the_ones_asked_for(attention_map, make):
    ids = torch.tensor([[5, 17, 40, 8, 9], [1, 2, 3, 4, 5]])
    layers = {"num_hidden_layers": 3}
    model = make(**layers)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        oracle = model(ids, output_attentions=True).attentions
    # Not 0 first: from there a number from 1 and the last layer are the same.
    for layer in (1, 0, 2):
        got = map_of(attention_map, make(**layers), ids, layer)
        call = f"attention_map(model, ids, {layer}) of a model of 3 layers"
        named = ("0: layers are counted from 0", "1", "2, the last one")
        readings = [
            *((f"That is layer {named[n]}.", oracle[n][0]) for n in range(3)),
            ("That is the second row of the batch.", oracle[layer][1]),
            ("That is the mean of the rows.", oracle[layer].mean(0)),
            ("That is the mean of all layers.", torch.stack(oracle).mean(0)[0]),
        ]
        hint = ""
        if isinstance(got, torch.Tensor) and got.shape == (4, 5, 5):
            found = [s for s, x in readings if torch.allclose(got, x, atol=1e-5)]
            hint = found[0] if found else ""
        same_map(got, oracle[layer][0], call, hint)


@MODELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_asked_as_it_is(attention_map, make, dtype):
    ids = torch.tensor([[5, 17, 40, 8, 9]])
    model, other = make().to(dtype), make().to(dtype)
    other.set_attn_implementation("eager")
    with torch.no_grad():
        oracle = other(ids, output_attentions=True).attentions[1][0]
    call = f"attention_map(a model in {dtype}, ids, 1)"
    got = map_of(attention_map, model, ids, 1)
    map_shape(got, 5, call)
    now = next(model.parameters()).dtype
    assert now == dtype, f"{call} left the model in {now}: others still use it"
    # Wide enough for a copy of the model in float32.
    expect.same(got.float(), oracle.float(), call, "", 0.05)


def state_of(model):
    """What a call may change in a model, by name."""
    state = {f"config.{name}": x for name, x in model.config.to_dict().items()}
    state |= {f"{n or 'model'}.training": m.training for n, m in model.named_modules()}
    for name, parameter in model.named_parameters():
        state[f"{name}.requires_grad"] = parameter.requires_grad
    return state


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was(attention_map, training):
    for before in ("sdpa", "eager"):
        model = random_llama().train(training)
        model.set_attn_implementation(before)
        next(model.parameters()).requires_grad_(False)
        was = state_of(model)
        map_of(attention_map, model, torch.tensor([[5, 6]]), 0)
        now = model.config._attn_implementation
        assert now == before, (
            f"the model came with {before!r} attention and was left with {now!r}: put "
            "back what was set before the call"
        )
        for name, value in state_of(model).items():
            old = was.get(name)
            weights = name.endswith(".requires_grad") and old
            assert value == old or not weights, (
                "the model's weights take no gradients any more: use `with "
                "torch.no_grad():` instead of requires_grad_(False)"
            )
            assert value == old, f"{name} was {old} and was left as {value}"
        assert torch.is_grad_enabled(), GRADIENTS_OFF


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [Exception, KeyboardInterrupt])
def test_the_model_is_as_it_was_after_an_error(attention_map, error):
    model, ids, what = random_llama(), torch.tensor([[5, 6]]), "there is no token 600"
    if error is KeyboardInterrupt:
        model.lm_head.register_forward_pre_hook(interrupted)
        what = "Ctrl-C came"
    else:
        ids[0, 1] = 600
    failed = fails(lambda: attention_map(model, ids, 0), error)
    now = model.config._attn_implementation
    assert now == "sdpa", (
        f"{what}, so the model's call failed, and the model was left with {now!r} "
        "attention: restore it in a `finally`"
    )
    assert failed, (
        f"{what}, so the model's call failed, and attention_map returned as if nothing "
        "had happened: the error must not be swallowed"
    )
