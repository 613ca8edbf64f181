"""Checks of lesson 05. Oracles: cases worked by hand, slow specifications, generate."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import ScriptedModel, random_gpt2, random_llama
from tiny_models.toy_tokenizer import toy_tokenizer

eos_token_ids = exercise("eos_token_ids")
is_finished = exercise("is_finished")
suppress_eos = exercise("suppress_eos")
decode_batch = exercise("decode_batch")
stream_tokens = exercise("stream_tokens")
stop_at = exercise("stop_at")
CustomDecoder = exercise("CustomDecoder")

INF = float("inf")


# New tensors for each call: an answer that changes one must not spoil the next test.
def one():
    """ids and mask (1, 4)"""
    return torch.tensor([[5, 17, 40, 8]]), torch.ones(1, 4, dtype=torch.long)


def three():
    """ids and mask (3, 5): prompts of 2, 5 and 3 tokens, padded on the left with 0."""
    ids = torch.tensor([[0, 0, 0, 60, 61], [5, 17, 40, 8, 9], [0, 0, 33, 34, 35]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    return ids, mask


MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])
BATCHES = pytest.mark.parametrize("batch", [one, three])


def greedy(logits):
    """Ours, so that a check of `decode_batch` depends on `decode_batch` alone."""
    return logits.max(dim=-1, keepdim=True).indices


def sample(logits):
    return torch.multinomial(logits.softmax(-1), 1)


def frequent_tokens(model, count):
    """Tokens that the model generates soon, to serve as its EOS."""
    ids, mask = three()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=None)
    return [out[row, column].item() for row, column in ((0, 6), (1, 8), (2, 9))][:count]


# --- eos_token_ids --------------------------------------------------------------------


def model_with_eos(eos):
    model = ScriptedModel.of_tokens([[1]], vocab_size=10, eos_token_id=9)
    model.generation_config = SimpleNamespace(eos_token_id=eos)
    return model


@pytest.mark.parametrize(
    ("eos", "wanted"),
    [(2, [2]), ([2, 7], [2, 7]), (None, []), ([7, 0, 2], [7, 0, 2])],
)
def test_one_id_several_or_none(eos_token_ids, eos, wanted):
    call = f"eos_token_ids with generation_config.eos_token_id={eos}"
    got = eos_token_ids(model_with_eos(eos))
    hint = ""
    if got == [9]:
        hint = "9 is the one in model.config: ask model.generation_config."
    expect.value(got, wanted, call, hint)


def test_id_0_is_an_id(eos_token_ids):
    call = "eos_token_ids with generation_config.eos_token_id=0"
    got = eos_token_ids(model_with_eos(0))
    expect.value(got, [0], call, "0 counts as false." if got == [] else "")


def test_the_list_of_the_model_is_not_handed_out(eos_token_ids):
    model = model_with_eos([2, 7])
    expect.returned(eos_token_ids(model), list, "eos_token_ids").append(5)
    assert model.generation_config.eos_token_id == [2, 7], (
        "appending to the returned list changed the model's configuration: copy it"
    )


# --- is_finished ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "eos", "wanted"),
    [
        ([[5], [2], [7]], [2, 7], [False, True, True]),
        ([[5], [2], [7]], [2], [False, True, False]),
        ([[5], [2]], [], [False, False]),
        ([[3]], [3], [True]),
        ([[5, 2, 9], [5, 6, 9]], [2], [True, False]),
        ([[2, 5], [5, 2], [2, 2], [2, 7], [5, 6]], [2, 7], [True] * 4 + [False]),
        ([[0], [5]], [0], [True, False]),
        ([[4] * 70], [2], [False]),
    ],
)
def test_an_eos_among_the_new_tokens_of_each_row(is_finished, tokens, eos, wanted):
    new = torch.tensor(tokens)
    eos_ids = list(eos)
    with expect.unchanged(new_tokens=new, eos_ids=eos_ids):
        got = is_finished(new, eos_ids)
    call = f"is_finished({expect.show(tokens)}, {eos})"
    many = len(tokens[0]) > 12
    if many:
        call = f"is_finished of one row of {len(tokens[0])} fours, EOS {eos},"
    hint = ""
    if isinstance(got, torch.Tensor) and got.dim() == 0:
        hint = " One answer for each row: any(dim=-1)."
    expect.returned(got, torch.Tensor, call)
    assert got.shape == (len(tokens),), (
        f"{call} should have shape ({len(tokens)},), not {tuple(got.shape)}.{hint}"
    )
    expect.tensor(got, (len(tokens),), call, torch.bool)
    hint = ". A product of many numbers overflows: it is 0 in the end" * many
    assert got.tolist() == wanted, (
        f"{call} should be {wanted}, not {got.tolist()}{hint}"
    )


# --- suppress_eos ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("so_far", "wanted"), [(0, -INF), (3, -INF), (4, 3.0), (5, 3.0)]
)
def test_suppression_worked_by_hand(suppress_eos, so_far, wanted):
    got = suppress_eos(torch.tensor([[1.0, 2.0, 3.0]]), [2], so_far, 4)
    call = f"suppress_eos([[1, 2, 3]], [2], new_so_far={so_far}, min_new_tokens=4)"
    hint = "With 4 so far the minimum is reached." if so_far == 4 else ""
    expect.same(got, [[1.0, 2.0, wanted]], call, hint)


def test_suppresses_every_eos_in_every_row(suppress_eos):
    got = suppress_eos(torch.ones(3, 6), [1, 4], 0, 1)
    row = [1.0, -INF, 1.0, 1.0, -INF, 1.0]
    expect.same(got, [row] * 3, "suppress_eos(ones(3, 6), [1, 4], 0, 1)")


def test_suppression_agrees_with_transformers(suppress_eos):
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    for so_far in range(6):
        ids = torch.zeros(3, 7 + so_far, dtype=torch.long)
        oracle = MinNewTokensLengthLogitsProcessor(7, 4, [2, 11])(ids, logits.clone())
        got = suppress_eos(logits.clone(), [2, 11], so_far, 4)
        call = f"suppress_eos with {so_far} new tokens so far and a minimum of 4"
        expect.same(got, oracle, call)


def test_suppression_leaves_its_input_alone(suppress_eos):
    for so_far in (0, 9):
        logits = torch.ones(2, 5)
        with expect.unchanged("clone it first", logits=logits):
            got = suppress_eos(logits, [2], so_far, 4)
        call = f"suppress_eos with {so_far} new tokens so far and a minimum of 4"
        expect.a_copy(got, logits, call)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_suppression_keeps_the_dtype(suppress_eos, dtype):
    call = f"suppress_eos([[1, 2, 3]], [2], 0, 4) of {dtype} logits"
    got = suppress_eos(torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype), [2], 0, 4)
    expect.tensor(got, (1, 3), call, dtype)
    expect.same(got, torch.tensor([[1.0, 2.0, -INF]], dtype=dtype), call)


def test_no_minimum_forbids_nothing(suppress_eos):
    got = suppress_eos(torch.tensor([[1.0, 2.0, 3.0]]), [2], 0, 0)
    call = "suppress_eos([[1, 2, 3]], [2], new_so_far=0, min_new_tokens=0)"
    expect.same(got, [[1.0, 2.0, 3.0]], call)


def test_the_list_of_eos_ids_is_left_alone(suppress_eos):
    eos_ids = [1, 2]
    with expect.unchanged("work on a copy", eos_ids=eos_ids):
        suppress_eos(torch.ones(1, 4), eos_ids, 0, 1)


def test_a_model_without_eos_is_left_as_it_is(suppress_eos):
    logits = torch.ones(2, 5)
    got = suppress_eos(logits, [], 0, 3)
    expect.same(got, torch.ones(2, 5), "suppress_eos with eos_ids=[]")
    expect.a_copy(got, logits, "suppress_eos with eos_ids=[]")


# --- decode_batch ---------------------------------------------------------------------


def test_finished_rows_are_padded_and_the_batch_stops(decode_batch):
    model = ScriptedModel.of_tokens([[5, 2, 6, 6], [3, 4, 2, 6]], vocab_size=10)
    ids = torch.tensor([[0, 8], [7, 8]])
    mask = torch.tensor([[0, 1], [1, 1]])
    got = decode_batch(model, ids, mask, 4, greedy, [2], 0)
    wanted = torch.tensor([[0, 8, 5, 2, 0], [7, 8, 3, 4, 2]])
    call = "decode_batch where row 0 picks 5, 2, 6 and row 1 picks 3, 4, 2 (EOS is 2)"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (2, 6):
        hint = "All rows had finished after 3 steps."
    elif isinstance(got, torch.Tensor) and got.shape == wanted.shape:
        if got[0, 4] == 6:
            hint = "A row that has finished goes on talking: give it pad_id."
        elif got[0, 3] == 0 or got[1, 4] == 0:
            hint = "A row's EOS itself belongs to its text: pad from the next step on."
    expect.same_ids(got, wanted, call, hint=hint)
    assert len(model.calls) == 3, f"3 steps need 3 calls, not {len(model.calls)}"


def test_what_the_model_is_given_at_each_step(decode_batch):
    # Row 0 finishes at once, and row 1 holds the pad id as a real token.
    model = ScriptedModel.of_tokens([[2, 6, 7], [3, 4, 5]], vocab_size=10)
    ids = torch.tensor([[0, 0, 8, 9], [6, 0, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    decode_batch(model, ids, mask, 3, greedy, [2], 0)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])  # as it was
    for step, call in enumerate(model.calls):
        wanted = torch.cat([mask, torch.ones(2, step, dtype=torch.long)], dim=-1)
        assert call.attention_mask is not None, "the model was given no attention_mask"
        if step == 0:
            assert torch.equal(call.attention_mask.long(), wanted), (
                "at step 0 the attention_mask should be the one that was given, "
                f"{expect.show(wanted)}, not {expect.show(call.attention_mask)}: a "
                "prompt may hold pad_id as a real token"
            )
        assert torch.equal(call.attention_mask.long(), wanted), (
            f"at step {step} the attention_mask should be {expect.show(wanted)}, not "
            f"{expect.show(call.attention_mask)}: each new token adds a 1, that of a "
            "finished row, too"
        )
        assert call.position_ids is not None, (
            "the model was given no position_ids: GPT-2 then counts the padding as text"
        )
        real = wanted.bool()
        places = [list(range(int(row.sum()))) for row in wanted]
        got = [p[m].tolist() for p, m in zip(call.position_ids, real, strict=True)]
        assert got == places, (
            f"at step {step}, mask {expect.show(wanted)}: the real tokens should be at "
            f"positions {places}, not {got}. Count the ones of the mask."
        )
        assert (call.position_ids >= 0).all(), (
            f"at step {step} a position is negative: {expect.show(call.position_ids)}"
        )
        assert not call.grad_enabled, "the model was called outside torch.no_grad()"


def test_an_eos_in_the_prompt_stops_nothing(decode_batch):
    model = ScriptedModel.of_tokens([[5, 6, 2]], vocab_size=10)
    ids = torch.tensor([[2, 8, 2]])
    got = decode_batch(model, ids, torch.ones_like(ids), 5, greedy, [2], 0)
    call = "decode_batch of the prompt [[2, 8, 2]] with EOS 2"
    early = isinstance(got, torch.Tensor) and got.shape[-1] < 6
    hint = "Look for EOS in the new tokens only." if early else ""
    expect.same_ids(got, torch.tensor([[2, 8, 2, 5, 6, 2]]), call, hint=hint)


def test_no_new_tokens_is_the_prompt(decode_batch):
    model = ScriptedModel.of_tokens([[5]], vocab_size=10)
    ids = torch.tensor([[7, 8]])
    got = decode_batch(model, ids.clone(), torch.ones_like(ids), 0, greedy, [2], 0)
    expect.same_ids(got, ids, "decode_batch with max_new_tokens=0")
    assert not model.calls, "with max_new_tokens=0 the model was called for nothing"


def test_stops_at_max_new_tokens_without_an_eos(decode_batch):
    for eos_ids in ([2], []):
        model = ScriptedModel.of_tokens([[5, 6, 7, 8]], vocab_size=10)
        ids = torch.tensor([[8]])
        got = decode_batch(model, ids, torch.ones_like(ids), 3, greedy, eos_ids, 0)
        wanted = torch.tensor([[8, 5, 6, 7]])
        expect.same_ids(got, wanted, f"decode_batch, 3 new tokens, EOS {eos_ids},")
        assert len(model.calls) == 3, (
            f"the model was called {len(model.calls)} times, where 3 calls are enough: "
            "what comes after the last token is never used"
        )


def test_pick_gets_float32_logits(decode_batch):
    seen = []

    def pick(logits):
        seen.append(logits.dtype)
        return greedy(logits)

    model = random_llama().to(torch.bfloat16)
    ids, mask = one()
    decode_batch(model, ids, mask, 2, pick, [], 0)
    assert set(seen) == {torch.float32}, (
        f"the model computes in bfloat16, and pick was given {seen[0]} logits: make "
        "them float32, as in lesson 03"
    )


def test_padding_is_not_left_to_pick(decode_batch):
    """A pick that has its own idea; EOS is 0 here, which counts as false."""
    tokens, seen = torch.tensor([[0, 6, 8], [3, 4, 0]]), []

    def pick(logits):
        seen.append(logits.clone())
        return tokens[:, len(seen) - 1 : len(seen)].clone()

    model = ScriptedModel.of_tokens([[5, 5, 5], [6, 6, 6]], vocab_size=10)
    ids = torch.tensor([[7], [8]])
    got = decode_batch(model, ids, torch.ones_like(ids), 3, pick, [0], 9)
    call = "decode_batch, EOS 0, pad 9, with a pick that says 0, 6, 8 and 3, 4, 0,"
    hint = "Whatever pick says for a row that has finished, the row gets pad_id."
    expect.same_ids(got, torch.tensor([[7, 0, 9, 9], [8, 3, 4, 0]]), call, hint=hint)
    said = torch.zeros(2, 10)
    said[0, 5] = said[1, 6] = 5.0
    for step, logits in enumerate(seen):
        expect.same(logits, said, f"what pick is given at step {step}")


def test_padding_that_is_also_eos(decode_batch):
    model = ScriptedModel.of_tokens([[5, 2, 6], [3, 4, 2]], vocab_size=10)
    ids = torch.tensor([[7], [8]])
    got = decode_batch(model, ids, torch.ones_like(ids), 9, greedy, [2], 2)
    wanted = torch.tensor([[7, 5, 2, 2], [8, 3, 4, 2]])
    expect.same_ids(got, wanted, "decode_batch with pad_id = EOS = 2")


def test_prompt_and_mask_are_left_alone(decode_batch):
    model = ScriptedModel.of_tokens([[5, 2]], vocab_size=10)
    ids, mask = torch.tensor([[7]]), torch.tensor([[1]])
    with expect.unchanged("append with torch.cat", ids=ids, mask=mask):
        decode_batch(model, ids, mask, 2, greedy, [2], 0)


@MODELS
@BATCHES
@pytest.mark.parametrize("eos_count", [0, 1, 3])
@pytest.mark.parametrize("pick", [greedy, sample])
def test_tokens_are_those_of_generate(decode_batch, make, batch, eos_count, pick):
    model = make()
    eos_ids = frequent_tokens(model, eos_count) if eos_count else []
    ids, mask = batch()
    torch.manual_seed(0)
    oracle = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=pick is sample,
        top_k=0,
        eos_token_id=eos_ids or None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    got = decode_batch(model, ids.clone(), mask.clone(), 10, pick, eos_ids, 0)
    name = type(model).__name__
    call = f"decode_batch on {name}, batch of {len(ids)}, EOS {eos_ids}"
    hint = ""
    if isinstance(got, torch.Tensor) and len(ids) > 1 and "GPT2" in name:
        hint = "GPT-2 needs the right position_ids for padded rows."
    expect.same_ids(got, oracle, call, hint=hint)


# --- stream_tokens --------------------------------------------------------------------


def bytes_of(text):
    """Token ids of the toy tokenizer, one for each byte of the text."""
    return toy_tokenizer()(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hi!", ["h", "i", "!"]),
        ("né!", ["n", "é", "!"]),
        ("🙂a", ["🙂", "a"]),
        ("東京", ["東", "京"]),
        ("", []),
    ],
)
def test_pieces_worked_by_hand(stream_tokens, text, wanted):
    got = list(stream_tokens(toy_tokenizer(), bytes_of(text)))
    hint = ""
    if any("\ufffd" in piece for piece in got):
        hint = "A piece holds half a character: decode all tokens so far, not one."
    elif "" in got:
        hint = "Empty pieces help nobody."
    expect.value(got, wanted, f"the pieces of {text!r}, a token for each byte,", hint)


def test_what_is_left_at_the_end_comes_out(stream_tokens):
    ids = bytes_of("né")[:2]
    got = list(stream_tokens(toy_tokenizer(), iter(ids)))  # can be read once
    call = "the pieces of 'n' and the first byte of 'é'"
    hint = ""
    if got == ["n"]:
        hint = (
            "After the last token hand out the rest. token_ids may be an iterator, as "
        )
        hint += "it is here: it can be read only once, so keep the tokens as they come."
    expect.value(got, ["n", "\ufffd"], call, hint)


def test_special_tokens_give_no_text(stream_tokens):
    tokenizer = toy_tokenizer()
    ids = [*bytes_of("a"), tokenizer.eos_token_id, *bytes_of("b")]
    got = list(stream_tokens(tokenizer, ids))
    hint = "Nor an empty piece." if "" in got else ""
    if "</s>" in "".join(got):
        hint = "Special tokens are not for users: skip_special_tokens=True."
    expect.value(got, ["a", "b"], "the pieces of 'a', EOS, 'b'", hint)


def test_pieces_join_to_the_decoded_text(stream_tokens):
    tokenizer = toy_tokenizer()
    texts = ["two  spaces\n\nand lines", " leading", "mixed é東🙂 text", "a,b . c 's"]
    for text in texts:
        ids = bytes_of(text)
        oracle = tokenizer.decode(ids, skip_special_tokens=True)
        got = "".join(stream_tokens(tokenizer, ids))
        expect.value(got, oracle, f"the joined pieces of {text!r}")


def test_bytes_that_are_no_text_do_not_block_the_rest(stream_tokens):
    broken = [bytes_of("é")[0], *bytes_of("abc")]
    tokenizer = toy_tokenizer()
    got = list(stream_tokens(tokenizer, broken))
    oracle = tokenizer.decode(broken, skip_special_tokens=True)
    expect.value("".join(got), oracle, "the joined pieces of half an 'é', then 'abc',")
    assert len(got) >= 3, (
        f"half an 'é', then 'a', 'b', 'c', came out as {got}. Hand the \ufffd out as "
        "soon as other text follows it: only one at the end can become a character"
    )


def test_half_a_character_before_a_whole_one(stream_tokens):
    tokenizer = toy_tokenizer()
    ids = [bytes_of("é")[0], *bytes_of("é"), *bytes_of("a")]
    oracle = tokenizer.decode(ids, skip_special_tokens=True)
    got = "".join(stream_tokens(tokenizer, iter(ids)))
    expect.value(got, oracle, "the joined pieces of half an 'é', then 'éa',")


def test_token_0_may_be_text(stream_tokens):
    """As in the vocabulary of GPT-2, where 0 is '!'."""
    tokenizer = toy_tokenizer(specials_last=True)
    text = tokenizer.decode([0, 1, 0])
    got = list(stream_tokens(tokenizer, [0, 1, 0]))
    expect.value(got, list(text), f"the pieces of tokens 0, 1, 0, which are {text!r},")


def test_asks_for_a_token_only_when_it_needs_one(stream_tokens):
    asked = []

    def tokens():
        for token in bytes_of("abc"):
            asked.append(token)
            yield token

    pieces = iter(stream_tokens(toy_tokenizer(), tokens()))
    expect.value(next(pieces), "a", "the first piece of 'abc'")
    assert len(asked) == 1, (
        f"{len(asked)} tokens were asked for before the first piece came out: the "
        "reader waits for the whole text. Yield inside the loop."
    )


# --- stop_at --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "stops", "wanted"),
    [
        (["a", "bE", "N", "x"], ["END"], ["a", "b", "ENx"]),
        (["a", "bE", "ND", "x"], ["END"], ["a", "b"]),
        (["a", "E"], ["END"], ["a", "E"]),
        (["END"], ["END"], []),
        (["ab", "cd"], [], ["ab", "cd"]),
        (["one\n", "\ntwo"], ["\n\n"], ["one"]),
        (["aab"], ["ab"], ["a"]),
        (["aa", "ab"], ["aab"], ["a"]),
        (["ab"], ["b", "ab"], []),
        (["ab"], ["ab", "b"], []),
        (["xa", "b"], ["b", "ab"], ["x"]),
        (["", "a", "", "b"], ["ab"], []),
        (["ab", "ab"], ["aba"], []),
        ([], ["ab"], []),
        (["END"], ["end"], ["END"]),
        (["ab", "c.d"], ["."], ["ab", "c"]),
        (["a[b", "(c"], ["(", ".*"], ["a[b"]),
        (["ax", "y"], ["abc"], ["ax", "y"]),
        (["xaab", "c"], ["aac"], ["xaab", "c"]),
    ],
)
def test_stops_worked_by_hand(stop_at, pieces, stops, wanted):
    read, came = [], []  # came: how many pieces had been read, and the text so far

    def given():
        for piece in pieces:
            read.append(piece)
            yield piece

    got = []
    for piece in stop_at(given(), list(stops)):
        got.append(piece)
        came.append((len(read), "".join(got)))
    call = f"stop_at({pieces}, {stops})"
    text, whole = "".join(got), "".join(wanted)
    hint = ""
    if any(stop in text for stop in stops):
        hint = "The stop string is in the output."
    elif "" in got:
        hint = "Empty pieces help nobody."
    elif text == whole:
        hint = early_or_late(pieces, stops, came)
    elif stops in (["b", "ab"], ["ab", "b"]) and text == whole + "a":
        hint = "Of two stop strings that end together the longer counts."
    elif {".", "("} & set(stops):
        hint = "A stop string is plain text, not a regular expression."
    elif whole.startswith(text):
        hint = "Text was lost: hand out what is held back when the pieces end."
    expect.value(got, wanted, call, hint)


def early_or_late(pieces, stops, came):
    """What to say where the text is right, and its pieces are not."""
    for number, text in came:
        so_far = "".join(pieces[:number])
        begun = [
            so_far[at:]
            for at in range(len(so_far))
            if any(stop.startswith(so_far[at:]) for stop in stops)
        ]
        held = begun[0] if begun else ""
        if number < len(pieces) and held and len(text) > len(so_far) - len(held):
            return f"{held!r} came out early, though it may begin a stop string."
    return "Text came out late: hold back only what may begin a stop string."


def first_complete(text, stops):
    """The specification: cut at the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def test_the_result_does_not_depend_on_how_the_text_is_cut(stop_at):
    draw = random.Random(0)
    several = (["aab", "b"], ["b", "ab"], ["abc", "b"], ["aa", "aaa"], ["aba", "bab"])
    for stops in (["ab"], *several, *(stops[::-1] for stops in several)):
        for _ in range(40):
            text = "".join(draw.choice("abc") for _ in range(draw.randint(0, 9)))
            cuts = sorted(draw.sample(range(len(text) + 1), min(3, len(text))))
            edges = [0, *cuts, len(text)]
            pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
            got = "".join(stop_at(iter(pieces), list(stops)))
            call = f"the joined output of stop_at({pieces}, {stops})"
            found = [stop for stop in stops if stop in text]
            others = [text[: text.find(stop)] for stop in found]
            hint = ""
            if len(found) > 1 and got in others:
                hint = "The stop string that is complete first counts, wherever it "
                hint += "began; of two that end together, the longer."
            expect.value(got, first_complete(text, stops), call, hint)


def test_holds_back_no_more_than_needed(stop_at):
    given = []

    def pieces():
        for piece in ("abc", "dEN", "x"):
            given.append(piece)
            yield piece

    out = stop_at(pieces(), ["END"])
    for number, wanted in enumerate(("abc", "d", "ENx"), start=1):
        got = next(out, None)
        place = ("first", "second", "third")[number - 1]
        call = f"stop_at(['abc', 'dEN', 'x'], ['END']): the {place} piece"
        hint = ""
        if isinstance(got, str) and number == 2:
            hint = "Only 'EN' may begin the stop string."
        expect.value(got, wanted, call, hint)
        assert len(given) == number, (
            f"{wanted!r} could have come out after {number} pieces; {len(given)} were "
            "read first"
        )


def test_asks_for_nothing_after_a_stop(stop_at):
    def pieces():
        yield from ("a", "END")
        raise AssertionError(
            "another piece was asked for after the stop string: the model would "
            "generate a token that nobody reads"
        )

    expect.value(list(stop_at(pieces(), ["END"])), ["a"], "stop_at(['a', 'END', ...])")


def test_an_empty_stop_string_is_refused(stop_at):
    call = "stop_at(['a'], [''])"
    expect.rejects(ValueError, lambda: list(stop_at(iter(["a"]), [""])), call)
    call = "stop_at([], ['a', ''])"
    expect.rejects(ValueError, lambda: list(stop_at(iter([]), ["a", ""])), call)


# --- CustomDecoder --------------------------------------------------------------------


def run(CustomDecoder, model, ids, mask=None, **options):
    """One call, with the sentence that an unknown argument or a swallowed one needs."""
    decoder = CustomDecoder(model, toy_tokenizer())
    if mask is not None:
        options["attention_mask"] = mask
    hint = "The model has it: self.model.generation_config. The generate of "
    hint += "GenerationMixin itself needs a model: write the call of decode_batch."
    with expect.hinting(hint, AttributeError, says="generation_config"):
        return decoder.generate(ids, **options)


def same_as_generate(CustomDecoder, model, ids, mask, call, hint="", **options):
    torch.manual_seed(0)
    oracle = model.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(0)
    got = run(CustomDecoder, model, ids.clone(), mask.clone(), **options)
    if callable(hint):
        hint = hint(got, oracle)
    expect.same_ids(got, oracle, call, hint=hint)


def other_rows(got, oracle):
    """What to say of a padded batch, by the first tokens that differ."""
    hint = "Rows need their mask and their positions; finished ones get padding."
    if not isinstance(got, torch.Tensor) or got.dim() != 2 or len(got) != len(oracle):
        return hint
    width = min(got.shape[1], oracle.shape[1])
    columns = (got[:, :width] != oracle[:, :width]).any(0).nonzero().flatten().tolist()
    if not columns or columns[0] < 5:
        return hint
    wrong = got[:, columns[0]] != oracle[:, columns[0]]
    mine, theirs = got[wrong, columns[0]], oracle[wrong, columns[0]]
    if (theirs == 0).all() and (mine == 2).all():
        return (
            "After its EOS, 2, a row gets pad_token_id, which is 0 for this model: 0 "
            "counts as false, so ask `is None`."
        )
    if (theirs == 0).all():
        return "After its EOS a row gets pad_token_id."
    return "Rows need their mask and their positions."


def drawn_alike(got, oracle):
    """What to say where all rows of a batch got the tokens of one draw."""
    if isinstance(got, torch.Tensor) and got.shape[0] == len(oracle) > 1:
        new = got[:, 5:6]
        if (new == new[:1]).all() and not (oracle[:, 5:6] == oracle[:1, 5:6]).all():
            return (
                "Each row gets a draw of its own: torch.multinomial on (batch, vocab)."
            )
    return ""


def other_ends(got, oracle):
    """What to say where all is the same but where rows end."""
    if not isinstance(got, torch.Tensor) or got.dim() != 2 or len(got) != len(oracle):
        return ""
    width = min(got.shape[1], oracle.shape[1])
    columns = (got[:, :width] != oracle[:, :width]).any(0).nonzero().flatten().tolist()
    if columns:  # is a row that has ended going on, or the other way round?
        first = columns[0]
        wrong = got[:, first] != oracle[:, first]
        if not (oracle[wrong, first] == 0).all() and not (got[wrong, first] == 0).all():
            return ""
    return "Ask model.generation_config, which may hold a list; not the tokenizer."


def test_a_text_that_ends_with_eos(CustomDecoder):
    model = ScriptedModel.of_tokens([[6, 2, 7, 7]], vocab_size=10)
    got = run(CustomDecoder, model, torch.tensor([[3, 5]]), max_new_tokens=4)
    call = "generate([[3, 5]], max_new_tokens=4) with a model that says 6, then EOS 2,"
    expect.same_ids(got, torch.tensor([[3, 5, 6, 2]]), call)


def test_max_new_tokens_counts_new_tokens(CustomDecoder):
    model = random_llama(eos_token_id=None)
    ids = torch.tensor([[5, 17, 40, 8]])
    for wanted in (3, 1):
        got = run(CustomDecoder, model, ids.clone(), max_new_tokens=wanted)
        expect.returned(got, torch.Tensor, "generate")
        new = got.shape[1] - 4
        hint = "" if new < wanted else " Was it swallowed by **kwargs?"
        if new in (0, wanted - 4):
            hint = " Does it count the prompt?"
        assert new == wanted, (
            f"max_new_tokens={wanted} gave {counted(new, 'new token')} after a prompt "
            f"of 4.{hint}"
        )


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_defaults_are_those_of_generate(CustomDecoder):
    model = random_llama(eos_token_id=None)
    ids, mask = one()
    oracle = model.generate(ids, attention_mask=mask)
    hint = "By default: greedy, 20 new tokens."
    for seed in (0, 1):
        torch.manual_seed(seed)
        got = run(CustomDecoder, model, ids.clone())
        expect.same_ids(got, oracle, "generate(ids) without arguments", hint=hint)


@MODELS
def test_greedy_on_one_prompt(CustomDecoder, make):
    call = "generate, greedy, one prompt"
    options = {"max_new_tokens": 10, "do_sample": False}
    same_as_generate(CustomDecoder, make(), *one(), call, **options)
    ids, mask = three()
    call = "generate, greedy, one prompt with padding and its mask"
    same_as_generate(CustomDecoder, make(), ids[:1], mask[:1], call, **options)


@MODELS
def test_greedy_on_a_left_padded_batch(CustomDecoder, make):
    call = "generate, greedy, 3 padded prompts"
    options = {"max_new_tokens": 10, "do_sample": False}
    same_as_generate(CustomDecoder, make(), *three(), call, other_rows, **options)


@MODELS
@BATCHES
@pytest.mark.parametrize("top_k", [0, 1, 50, 1000])
def test_sampling_with_top_k(CustomDecoder, make, batch, top_k):
    for temperature in (1.0, 0.6):
        same_as_generate(
            CustomDecoder,
            make(),
            *batch(),
            f"generate, do_sample, {counted(len(batch()[0]), 'prompt')}, "
            f"top_k={top_k}, temperature={temperature},",
            "Temperature, top-k, softmax, then torch.multinomial on (batch, vocab), "
            "and no other draw."
            if batch is one
            else drawn_alike,
            max_new_tokens=8,
            do_sample=True,
            top_k=top_k,
            temperature=temperature,
        )


def test_tied_tokens_are_all_sampled(CustomDecoder):
    model = random_llama(eos_token_id=None)
    model.lm_head.weight.data.zero_()  # all logits are 0, so all tokens tie
    for top_k in (1, 3):
        same_as_generate(
            CustomDecoder,
            model,
            *three(),
            f"generate, do_sample, top_k={top_k}, where all tokens tie,",
            "Ties with the k-th largest stay, as in top_k_filter.",
            max_new_tokens=6,
            do_sample=True,
            top_k=top_k,
        )


def test_a_second_call_goes_on_where_the_first_ended(CustomDecoder):
    model = random_llama(eos_token_id=None)
    ids, mask = three()
    options = {"max_new_tokens": 4, "do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    oracle = [model.generate(ids, attention_mask=mask, **options) for _ in range(2)][1]
    torch.manual_seed(0)
    got = [
        run(CustomDecoder, model, ids.clone(), mask.clone(), **options)
        for _ in range(2)
    ][1]
    hint = "Leave torch's random generator where the draws leave it."
    call = "generate, do_sample, the second call after one seed,"
    expect.same_ids(got, oracle, call, hint=hint)


def test_sampling_with_the_default_top_k(CustomDecoder):
    model = random_llama(eos_token_id=None)
    model.lm_head.weight.data.mul_(0.02)  # nearly flat: the 50th token often comes
    ids = torch.arange(3, 93).reshape(30, 3)
    mask, options = torch.ones_like(ids), {"max_new_tokens": 12, "do_sample": True}
    torch.manual_seed(0)
    of_all = model.generate(ids, attention_mask=mask, top_k=0, **options)

    def hint(got, oracle):
        if isinstance(got, torch.Tensor) and torch.equal(got, of_all):
            return "The default of generate is 50."
        return ""

    same_as_generate(
        CustomDecoder,
        model,
        ids,
        mask,
        "generate, do_sample, no top_k given,",
        hint,
        **options,
    )


@MODELS
@BATCHES
def test_the_eos_ids_are_those_of_the_model(CustomDecoder, make, batch):
    model = make()
    for count in (1, 2, 3):
        model.generation_config.eos_token_id = frequent_tokens(model, count)
        same_as_generate(
            CustomDecoder,
            model,
            *batch(),
            f"generate, EOS ids {model.generation_config.eos_token_id},",
            other_ends,
            max_new_tokens=12,
        )


def test_a_model_without_a_pad_token_pads_with_eos(CustomDecoder):
    model = random_llama()
    model.generation_config.eos_token_id = frequent_tokens(model, 2)
    model.generation_config.pad_token_id = None
    same_as_generate(
        CustomDecoder, model, *three(), "generate, no pad_token_id,", max_new_tokens=12
    )


def test_a_vocabulary_smaller_than_top_k(CustomDecoder):
    model = random_llama(vocab_size=40)
    ids = torch.tensor([[5, 17, 30]])
    hint = (
        "The default top_k of 50 is above the 40 tokens of this model, and keeps all: "
    )
    hint += "is top_k_filter used?"
    for do_sample in (False, True):
        with expect.hinting(hint, RuntimeError, IndexError, says="out of range"):
            same_as_generate(
                CustomDecoder,
                model,
                ids,
                torch.ones_like(ids),
                f"generate, 40 tokens in the vocabulary, do_sample={do_sample},",
                max_new_tokens=5,
                do_sample=do_sample,
            )


def test_without_a_mask_all_tokens_are_real(CustomDecoder):
    model = random_gpt2()
    for rows in ([[5, 17, 40], [60, 61, 62]], [[0, 17, 40]], [[2, 17, 2]]):
        ids = torch.tensor(rows)
        ones = torch.ones_like(ids)
        oracle = model.generate(ids, attention_mask=ones, max_new_tokens=6)
        with expect.unchanged("work on copies", input_ids=ids):
            got = run(CustomDecoder, model, ids, max_new_tokens=6)
        call = f"generate({rows}) without an attention_mask (pad is 0, EOS is 2)"
        hint = "A prompt may hold the pad token: nobody but the caller knows the mask."
        hint = hint if {0, 2} & set(rows[0]) else ""
        expect.same_ids(got, oracle, call, hint=hint)


def test_a_model_with_neither_eos_nor_pad(CustomDecoder):
    model = random_llama(eos_token_id=None)
    model.generation_config.pad_token_id = None
    same_as_generate(
        CustomDecoder, model, *three(), "no EOS and no pad token", max_new_tokens=5
    )


def test_greedy_asks_for_no_temperature_and_no_top_k(CustomDecoder):
    ids, mask = one()
    model = random_llama()
    oracle = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    for options in ({"temperature": 0}, {"temperature": -1.0}, {"top_k": -1}):
        hint = (
            "Greedy uses neither temperature nor top_k: check them only when sampling."
        )
        with expect.hinting(hint, ValueError):
            got = run(CustomDecoder, model, ids.clone(), max_new_tokens=5, **options)
        ((name, value),) = options.items()
        call = f"generate(ids, do_sample=False, {name}={value})"
        expect.same_ids(got, oracle, call)


def test_values_that_make_no_sense_are_refused(CustomDecoder):
    ids = torch.tensor([[5, 17]])
    for name, options in (
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("temperature", {"do_sample": True, "temperature": 0.0}),
        ("temperature", {"do_sample": True, "temperature": float("nan")}),
        ("top_k", {"do_sample": True, "top_k": -1}),
    ):
        model = ScriptedModel.of_tokens([[6]], vocab_size=10)
        call = f"generate(ids, {', '.join(f'{k}={v}' for k, v in options.items())})"
        expect.rejects(
            ValueError, lambda m=model, o=options: run(CustomDecoder, m, ids, **o), call
        )
        assert not model.calls, (
            f"{call} raised ValueError only after the model was called: check {name} "
            "at the beginning"
        )
    flat = torch.tensor([5, 17])
    for bad in (flat, flat[None, None]):
        model = ScriptedModel.of_tokens([[6] * 20], vocab_size=20)
        call = f"generate of ids of shape {tuple(bad.shape)}, not (batch, seq),"
        expect.rejects(
            ValueError, lambda m=model, b=bad: run(CustomDecoder, m, b), call
        )
        assert not model.calls, (
            f"{call} raised ValueError only after the model was called: check it at "
            "the beginning"
        )


def test_an_unknown_argument_is_an_error(CustomDecoder):
    decoder = CustomDecoder(random_llama(), toy_tokenizer())
    ids = torch.tensor([[5, 17]])
    decoder.generate(ids, max_new_tokens=2)
    expect.rejects(
        TypeError,
        lambda: decoder.generate(ids, max_new_tokens=2, temprature=0.1),
        "generate(ids, temprature=0.1), a misspelling,",
        "temprature",
    )
