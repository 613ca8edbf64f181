"""Checks of lesson 08. Oracles: cases worked by hand, slow specifications in Python,
transformers' processors and losses, sacrebleu, and the mauve-text package."""

import itertools
import math
import random

import pytest
import sacrebleu
import torch
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import random_gpt2, random_llama

perplexity = exercise("perplexity")
rep_n = exercise("rep_n")
repetition_penalty = exercise("repetition_penalty")
frequency_presence = exercise("frequency_presence")
no_repeat_ngram = exercise("no_repeat_ngram")
dry = exercise("dry")
distinct_n = exercise("distinct_n")
self_bleu = exercise("self_bleu")
mauve_small = exercise("mauve_small")

INF = float("inf")
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


def random_logits(batch=3, vocab=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vocab, generator=generator) * 3


def random_ids(batch=3, length=25, below=6, seed=0):
    """Few different tokens, so that there is much to repeat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, (batch, length), generator=generator)


def unchanged_and_new(function, call):
    logits, ids = random_logits(), random_ids()
    hint = "work on a copy: clone(), or scatter without an underscore"
    with expect.unchanged(hint, logits=logits, ids=ids):
        got = function(logits, ids)
    expect.a_copy(got, logits, call)


# --- perplexity -----------------------------------------------------------------------


class Fixed:
    """A model that gives the same probabilities at each place, whatever it reads."""

    def __init__(self, *rows):
        self.logits = torch.tensor(rows).log()[None]  # (1, seq, vocab)
        self.given = []

    def __call__(self, input_ids, **options):
        self.given.append({**options, "grad": torch.is_grad_enabled()})
        logits = self.logits.expand(input_ids.shape[0], -1, -1)
        return type("Output", (), {"logits": logits})()


# The token at place i + 1 has these probabilities after place i.
FIXED = ([0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.1, 0.4, 0.5], [0.8, 0.1, 0.1])


def fixed_row():
    """New ids and a new mask: an answer may spoil those that it was given."""
    ids = torch.tensor([[1, 0, 1, 2]])  # 0.5, then 0.25, then 0.5
    return ids, torch.ones_like(ids)


SHIFTED = "The logits at place i predict the token at place i + 1, not at place i."
START = (
    "The token at place start counts, and the sum is divided by the number of tokens "
    "that count."
)


@pytest.mark.parametrize(("start", "wanted"), [(1, 2.51984), (2, 2.82843), (3, 2.0)])
def test_perplexity_worked_by_hand(perplexity, start, wanted):
    got = perplexity(Fixed(*FIXED), *fixed_row(), start)
    call = f"perplexity of tokens with the probabilities 0.5, 0.25, 0.5, start={start}"
    expect.tensor(got, (1,), call)
    hint = ""
    for value, said in (
        ({1: 4.64159, 2: 5.0, 3: 10.0}, SHIFTED),
        ({1: 0.9242, 2: 1.0397, 3: 0.6931}, "Take exp of the mean surprisal."),
        ({1: 0.3969, 2: 0.3536, 3: 0.5}, "The sign: surprisal is minus ln p."),
        ({1: 16.0, 2: 8.0}, "The mean of -ln p, not the sum."),
        ({1: 2.6667, 2: 3.0}, "The mean of -ln p, then exp: not the mean of 1 / p."),
        ({2: 2.5198, 3: 2.8284}, "The token at place start - 1 does not count."),
        ({1: 2.8284, 2: 2.0, 3: 1.2599}, START),
    ):
        if abs(got.item() - value.get(start, INF)) < 2e-3:
            hint = said
    expect.same(got, [wanted], call, hint, 1e-3)


def test_start_is_1_if_nothing_is_said(perplexity):
    call = "perplexity(model, ids, mask) without start"
    expect.same(perplexity(Fixed(*FIXED), *fixed_row()), [2.51984], call, "", 1e-3)


@MODELS
def test_perplexity_is_exp_of_the_loss_of_transformers(perplexity, make):
    model = make()
    ids = random_ids(3, 9, 60)
    with torch.no_grad():
        wanted = [model(row[None], labels=row[None]).loss.exp() for row in ids]
    wanted, mask = torch.stack(wanted), torch.ones_like(ids)
    alone = perplexity(model, ids[:1], mask[:1])
    expect.same(alone, wanted[:1], "perplexity of a row of a random model", "", 0.05)
    got = perplexity(model, ids, mask)
    hint = "Each row has a perplexity of its own."
    expect.same(got, wanted, "perplexity of three rows of 9 tokens", hint, 0.05)


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(perplexity, make, side):
    model = make()
    rows = [row[: 4 + 2 * n] for n, row in enumerate(random_ids(3, 8, 60, seed=1))]
    with torch.no_grad():
        wanted = [model(row[None], labels=row[None]).loss.exp() for row in rows]
    ids = torch.full((3, 8), 3)
    mask = torch.zeros(3, 8, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(8 - len(row), None) if side == "left" else slice(len(row))
        ids[n, place], mask[n, place] = row, 1
    got = perplexity(model, ids, mask)
    hint = (
        "What is padding, or stands behind padding alone, does not count; the model is "
        "given attention_mask and position_ids."
    )
    call = f"perplexity of three rows padded on the {side}"
    expect.same(got, torch.stack(wanted), call, hint, 0.05)


@pytest.mark.parametrize(
    ("what", "place", "mask", "start"),
    [
        ("behind padding on the left", 0, [0, 1, 1, 1], 1),
        ("that is padding on the right", 2, [1, 1, 1, 0], 1),
        ("in front of start=2", 0, [1, 1, 1, 1], 2),
    ],
)
def test_what_does_not_count_may_be_impossible(perplexity, what, place, mask, start):
    rows = [[0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.1, 0.4, 0.5], [0.8, 0.1, 0.1]]
    ids = torch.tensor([[1, 0, 1, 2]])
    rows[place][ids[0, place + 1]] = 0.0  # the softmax makes the others add up to 1
    wanted = {0: 0.25 * 0.5, 2: 0.5 * 0.25}[place] ** -0.5
    got = perplexity(Fixed(*rows), ids, torch.tensor([mask]), start)
    call = f"perplexity where a token {what} has the probability 0"
    hint = "It does not count: 0 times infinity is nan, torch.where gives a 0."
    expect.same(got, [wanted], call, hint, 1e-3)


@MODELS
def test_start_counts_places_of_the_padded_batch(perplexity, make):
    model = make()
    ids, mask = random_ids(3, 9, 60, seed=2), torch.zeros(3, 9, dtype=torch.long)
    wanted = []
    for row, place in enumerate((slice(9), slice(3, 9), slice(7))):
        mask[row, place] = 1
        labels = ids[row].clone()
        labels[:5] = -100  # transformers' way to say: does not count
        with torch.no_grad():
            output = model(ids[row : row + 1, place], labels=labels[None, place])
        wanted.append(output.loss.exp())
    got = perplexity(model, ids, mask, 5)
    wanted = torch.stack(wanted)
    call = (
        "perplexity with start=5 of a full row, of one with 3 places of padding on the "
        "left, and of one with 2 on the right"
    )
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == wanted.shape:
        wrong = ((got - wanted).abs() > 0.05).tolist()
        if wrong == [False, True, False]:
            hint = (
                "Row 1 is padded on the left: start is a place in the padded row, not "
            )
            hint += "in its text."
        elif wrong == [False, False, True]:
            hint = "Row 2 ends in padding, which never counts: the mask holds with "
            hint += "start, too."
    expect.same(got, wanted, call, hint, 0.05)


def test_a_long_text_is_no_problem(perplexity):
    call = "perplexity of 100 tokens with the probability 0.1 each"
    ids = torch.zeros(1, 101, dtype=torch.long)
    got = perplexity(Fixed(*[[0.1] * 10] * 101), ids, torch.ones_like(ids))
    hint = "A product of 100 probabilities is 0 in float32: add logarithms."
    expect.same(got, [10.0], call, hint, 1e-3)


def test_one_call_with_mask_and_positions_and_no_gradient(perplexity):
    model, mask = Fixed(*FIXED), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    perplexity(model, fixed_row()[0].repeat(2, 1), mask.clone())
    given = model.given
    assert len(given) == 1, (
        f"perplexity of two rows called the model {len(given)} times, not once"
    )
    positions = [[0, 0, 1, 2], [0, 1, 2, 3]]
    for name, wanted in (("attention_mask", mask), ("position_ids", positions)):
        assert name in given[0], f"perplexity should give the model {name}"
        expect.same(given[0][name], wanted, f"the {name} that the model was given")
    assert not given[0]["grad"], "perplexity should run the model in torch.no_grad()"


def test_perplexity_is_float32_even_of_half_precision(perplexity):
    model = Fixed(*FIXED)
    model.logits = model.logits.bfloat16()
    got = perplexity(model, *fixed_row())
    call = "perplexity with logits in bfloat16"
    expect.tensor(got, (1,), call, torch.float32)
    logprobs = model.logits[0].double().log_softmax(-1)
    wanted = sum(-logprobs[i, token] for i, token in enumerate([0, 1, 2])) / 3
    hint = "Make the logits float32 before the softmax."
    expect.same(got, [wanted.exp().item()], call, hint, 1e-3)


def test_a_start_below_1_is_refused(perplexity):
    for start in (0, -1):
        call = f"perplexity(..., start={start})"
        expect.rejects(
            ValueError, lambda s=start: perplexity(Fixed(*FIXED), *fixed_row(), s), call
        )


def test_perplexity_leaves_its_arguments_alone(perplexity):
    ids, mask = fixed_row()[0], torch.tensor([[0, 1, 1, 1]])
    with expect.unchanged(ids=ids, mask=mask):
        perplexity(Fixed(*FIXED), ids, mask, 2)


# --- rep_n ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "n", "wanted"),
    [
        ([1, 2, 1, 2, 1], 2, 0.5),
        ([1, 2, 1, 2, 1], 1, 0.6),
        ([1, 2, 1, 2, 1], 3, 1 / 3),
        ([7] * 10, 4, 6 / 7),
        ([1, 11, 11, 1, 111], 2, 0.0),
        # Numbers to the base of a vocabulary (GPT-2's, or another) would be equal.
        ([0, 50_257, 1, 0], 2, 0.0),
        ([0, 65_536, 1, 0], 2, 0.0),
        ([0, 262_144, 1, 0], 2, 0.0),
        ([1, 2, 3, 4], 2, 0.0),
    ],
)
def test_repetition_worked_by_hand(rep_n, ids, n, wanted):
    got = rep_n(list(ids), n)
    hint = ""
    if isinstance(got, float) and abs(got - (1 - wanted)) < 1e-9 and wanted != 0.5:
        hint = "That is the share of different n-grams: repetition is 1 minus that."
    elif 111 in ids and isinstance(got, float) and abs(got - 1 / 2) < 1e-9:
        hint = "1 11 and 11 1 are different, though both look like 111: use tuples."
    elif isinstance(got, float) and max(ids) > 50_000:
        hint = f"0 {ids[1]} and 1 0 are different: tuples, not one number for both."
    elif isinstance(got, float):
        different = round((1 - wanted) * (len(ids) - n + 1))
        hint = f"It has {len(ids) - n + 1} {n}-grams, {different} of them different."
    expect.value(got, wanted, f"rep_n({ids}, {n})", hint, 1e-9)


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3]])
def test_a_text_shorter_than_n_does_not_repeat(rep_n, ids):
    hint = "Without any n-gram the result is 0."
    call = f"rep_n({ids}, 4)"
    try:
        got = rep_n(list(ids), 4)
    except ZeroDivisionError:
        raise AssertionError(f"{call} raised ZeroDivisionError. {hint}") from None
    expect.value(got, 0.0, call, hint, 1e-9)


def test_repetition_agrees_with_a_slow_count(rep_n):
    rng = random.Random(0)
    for _ in range(30):
        ids = [rng.randrange(3) for _ in range(rng.randrange(5, 30))]
        n = rng.randrange(1, 5)
        grams = [str(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        again = sum(gram in grams[:i] for i, gram in enumerate(grams))
        call = f"rep_n({ids}, {n})"
        expect.value(rep_n(list(ids), n), again / len(grams), call, "", 1e-9)


def test_the_list_stays_as_it_is(rep_n):
    ids = [1, 2, 1, 2, 1]
    with expect.unchanged("slice it, or make another list", ids=ids):
        rep_n(ids, 2)


def test_a_tensor_in_place_of_a_list_is_refused(rep_n):
    for ids in (torch.tensor([1, 2, 1, 2, 1]), torch.tensor([1])):
        call = f"rep_n(a tensor of length {len(ids)}, 2)"
        expect.rejects(TypeError, lambda i=ids: rep_n(i, 2), call)


def test_an_n_of_0_or_less_is_refused_for_an_empty_text_too(rep_n):
    for n in (0, -1):
        for ids in ([1, 2, 3], []):
            call = f"rep_n({ids}, {n})"
            expect.rejects(ValueError, lambda i=ids, n=n: rep_n(list(i), n), call)


# --- repetition_penalty ---------------------------------------------------------------


def test_penalty_worked_by_hand(repetition_penalty):
    logits, ids = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[0, 1, 0]])
    got = repetition_penalty(logits, ids, 2.0)
    call = "repetition_penalty([[2, -2, 1]], [[0, 1, 0]], 2)"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == logits.shape:
        hint = {
            -1.0: "A negative logit that is divided becomes likelier: multiply it.",
            -2.0: "Token 1 is in ids, and its logit stayed as it was.",
            -4.0: "Divide a positive logit: 2 / 2." if got[0, 0] == 0 else "",
        }.get(got[0, 1].item(), "")
        if got[0, 0] == 0.5:
            hint = "Once, however often the token is there."
        elif got[0, 2] != 1:
            hint = "Token 2 is not in ids."
    expect.same(got, [[1.0, -4.0, 1.0]], call, hint)


@pytest.mark.parametrize("penalty", [1.2, 2.0, 0.5, 1.0])
def test_penalty_agrees_with_transformers(repetition_penalty, penalty):
    oracle = RepetitionPenaltyLogitsProcessor(penalty)
    for seed in range(4):
        logits, ids = random_logits(seed=seed), random_ids(seed=seed)
        if seed == 3:
            logits[:, ::4] = -INF
        got = repetition_penalty(logits.clone(), ids, penalty)
        call = f"repetition_penalty of random rows with penalty {penalty}"
        expect.same(got, oracle(ids, logits.clone()), call, "", 1e-5)


def test_each_row_is_punished_for_its_own_tokens(repetition_penalty):
    logits, ids = torch.ones(2, 3), torch.tensor([[0, 0], [2, 1]])
    got = repetition_penalty(logits, ids, 2.0)
    call = "repetition_penalty of two rows with ids 0 0 and 2 1"
    hint = "Each row has a text of its own."
    expect.same(got, [[0.5, 1.0, 1.0], [1.0, 0.5, 0.5]], call, hint)


def test_greedy_with_the_penalty_equals_generate(repetition_penalty):
    model = random_llama(eos_token_id=None)
    prompt = torch.tensor([[5, 17, 40]])
    oracle = model.generate(prompt, max_new_tokens=12, repetition_penalty=1.5)
    ids = prompt
    for _ in range(12):
        with torch.no_grad():
            logits = model(ids).logits[:, -1].float()
        token = repetition_penalty(logits, ids, 1.5).argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=-1)
    expect.same_ids(ids, oracle, "greedy decoding with repetition_penalty 1.5")


def test_the_penalty_knows_the_whole_text(repetition_penalty):
    ids = torch.tensor([[1] + [0] * 1024])
    got = repetition_penalty(torch.tensor([[2.0, 2.0, 2.0]]), ids, 2.0)
    call = "repetition_penalty([[2, 2, 2]], one token 1 and then 1,024 tokens 0, 2)"
    hint = "The whole of ids counts."
    if isinstance(got, torch.Tensor) and got.flatten()[0] == 2:
        hint = "1,024 in 8 bits is 0: do not count, or count in int64."
    expect.same(got, [[1.0, 1.0, 2.0]], call, hint)


def keeps_the_dtype(function, call):
    for dtype in (torch.float16, torch.bfloat16):
        logits, ids = random_logits().to(dtype), random_ids()
        got = function(logits, ids)
        expect.tensor(got, (3, 40), f"{call} of {dtype} logits", dtype)


def test_the_penalty_keeps_the_dtype(repetition_penalty):
    keeps_the_dtype(lambda x, ids: repetition_penalty(x, ids, 1.5), "the penalty")


def test_a_penalty_of_0_or_less_is_refused(repetition_penalty):
    for penalty in (0, -1.2):
        call = f"repetition_penalty(logits, ids, {penalty})"
        expect.rejects(
            ValueError,
            lambda p=penalty: repetition_penalty(random_logits(), random_ids(), p),
            call,
        )


def test_penalty_leaves_its_input_alone(repetition_penalty):
    for penalty in (1.3, 1.0):
        call = f"repetition_penalty(logits, ids, {penalty})"
        unchanged_and_new(lambda x, ids, p=penalty: repetition_penalty(x, ids, p), call)


# --- frequency_presence ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("frequency", "presence", "wanted", "hint"),
    [
        (0.5, 0.0, [-1.0, -0.5, 0.0], "Frequency: once for each time it is there."),
        (0.0, 0.25, [-0.25, -0.25, 0.0], "Presence: once, however often it is there."),
        (0.5, 0.25, [-1.25, -0.75, 0.0], "Both are subtracted."),
        (-1.0, 0.0, [2.0, 1.0, 0.0], "A negative penalty is a reward."),
    ],
)
def test_counts_worked_by_hand(frequency_presence, frequency, presence, wanted, hint):
    logits, ids = torch.zeros(1, 3), torch.tensor([[0, 1, 0]])
    got = frequency_presence(logits, ids, frequency, presence)
    call = f"frequency_presence([[0, 0, 0]], [[0, 1, 0]], {frequency}, {presence})"
    if isinstance(got, torch.Tensor) and got.shape == logits.shape:
        shares = torch.tensor([[2 / 3, 1 / 3, 0]]) * frequency
        shares += torch.tensor([[1.0, 1.0, 0.0]]) * presence
        if got.allclose(-shares):
            hint = "The count itself, not divided by the length of the text."
        elif got[0].tolist() == [-x for x in wanted]:
            hint = "The penalties are subtracted."
        elif got[0, 2] != 0:
            hint = "Token 2 is not in ids."
    expect.same(got, [wanted], call, hint, 1e-6)


def test_the_length_of_the_text_plays_no_part(frequency_presence):
    logits, ids = torch.zeros(1, 4), torch.tensor([[0, 1, 0, 2, 0, 0]])
    got = frequency_presence(logits, ids, 0.5, 0.0)
    call = "frequency_presence([[0, 0, 0, 0]], [[0, 1, 0, 2, 0, 0]], 0.5, 0)"
    wanted = torch.tensor([[-2.0, -0.5, -0.5, 0.0]])  # four times, once, once, never
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == wanted.shape:
        part = (got[0, 0] / wanted[0, 0]).item()
        if 0 < part < 0.99 and got.allclose(part * wanted):
            hint = "The count itself, not divided by the length of the text."
    expect.same(got, wanted, call, hint, 1e-6)


def test_counts_agree_with_a_loop(frequency_presence):
    for seed in range(3):
        logits, ids = random_logits(seed=seed), random_ids(seed=seed)
        wanted = logits.clone()
        for row, text in enumerate(ids.tolist()):
            for token in set(text):
                wanted[row, token] -= 0.3 * text.count(token) + 0.8
        call = "frequency_presence of random rows"
        got = frequency_presence(logits[:1].clone(), ids[:1].clone(), 0.3, 0.8)
        expect.same(got, wanted[:1], f"{call}, the first alone,", "", 1e-4)
        got = frequency_presence(logits.clone(), ids.clone(), 0.3, 0.8)
        expect.same(got, wanted, call, "Each row has a text of its own.", 1e-4)


def test_a_shift_of_all_logits_shifts_the_result(frequency_presence):
    logits, ids = random_logits(), random_ids()
    one = frequency_presence(logits.clone(), ids.clone(), 0.3, 0.8)
    other = frequency_presence(logits + 10, ids.clone(), 0.3, 0.8)
    call = "frequency_presence(logits + 10, ...) - 10"
    expect.same(other - 10, one, call, "Subtract: do not divide.", 1e-4)


def test_before_the_first_token_nothing_is_punished(frequency_presence):
    logits, ids = random_logits(), torch.zeros(3, 0, dtype=torch.long)
    call = "frequency_presence with ids of shape (3, 0)"
    got = frequency_presence(logits, ids, 0.5, 0.5)
    expect.same(got, logits, call)
    expect.a_copy(got, logits, call)


def test_the_whole_text_is_counted(frequency_presence):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.zeros(1, 3, dtype=dtype)
        ids = torch.tensor([[1] + [0] * 1024])
        got = frequency_presence(logits, ids, 0.25, 0.5)
        call = (
            "frequency_presence of three zeros, one token 1 and then 1,024 tokens 0, "
        )
        call += f"frequency 0.25, presence 0.5, in {dtype},"
        expect.tensor(got, (1, 3), call, dtype)
        hint = ""
        if got[0, 1] == 0:
            hint = "The whole of ids counts, from its first token on."
        elif dtype == torch.bfloat16 and got[0, 0] == -64.5:
            hint = "bfloat16 cannot count beyond 256: count in float32."
        wanted = torch.tensor([[-256.5, -0.75, 0.0]], dtype=dtype)
        expect.same(got, wanted, call, hint, 1e-3)


def test_removed_tokens_stay_removed(frequency_presence):
    logits = torch.tensor([[-INF, 1.0, -INF]])
    got = frequency_presence(logits, torch.tensor([[0, 1]]), 0.5, 0.0)
    call = "frequency_presence([[-inf, 1, -inf]], [[0, 1]], 0.5, 0)"
    expect.same(got, [[-INF, 0.5, -INF]], call)


def test_counting_leaves_its_input_alone(frequency_presence):
    for penalties in ((0.5, 0.5), (0.0, 0.0)):
        call = f"frequency_presence(logits, ids, {penalties[0]}, {penalties[1]})"
        unchanged_and_new(
            lambda x, ids, p=penalties: frequency_presence(x, ids, *p), call
        )


# --- no_repeat_ngram ------------------------------------------------------------------


def forbidden(got):
    return [row.nonzero()[:, 0].tolist() for row in got == -INF]


@pytest.mark.parametrize(
    ("text", "n", "wanted", "hint"),
    [
        ([5, 6, 7, 5, 6], 3, [7], "The text ends with 5 6, and 5 6 7 was there."),
        ([5, 6, 7, 5, 6], 2, [7], "The text ends with 6, and 6 7 was there."),
        ([5, 6, 7, 5, 6], 1, [5, 6, 7], "With n = 1 each token was there."),
        ([5, 6, 7, 5, 6], 4, [], "7 5 6 was there only at the end."),
        ([5, 6, 7, 5, 6], 9, [], "The text is shorter than n."),
        ([5, 5], 2, [5], "The text ends with 5, and 5 5 was there: they may overlap."),
        ([5, 6, 5, 7, 5], 2, [6, 7], "5 6 was there, and 5 7: both are forbidden."),
    ],
)
def test_bans_worked_by_hand(no_repeat_ngram, text, n, wanted, hint):
    ids = torch.tensor([text])
    call = f"no_repeat_ngram(logits, [{text}], {n})"
    got = expect.tensor(no_repeat_ngram(torch.ones(1, 10), ids, n), (1, 10), call)
    low = got[(got != 1) & (got > -INF)]
    assert not len(low), (
        f"{call} made a logit {low[0].item():g}: what is forbidden gets -inf, the rest "
        "stays as it is"
    )
    said = f"the tokens that {call} forbids"
    expect.value(forbidden(got)[0], wanted, said, hint)


def test_bans_reach_back_to_the_beginning(no_repeat_ngram):
    ids = torch.tensor([[5, 6, 7] + [1] * 1100 + [5, 6]])
    got = no_repeat_ngram(torch.zeros(1, 10), ids, 3)
    call = "no_repeat_ngram(logits, [[5, 6, 7, 1, 1, ..., 1, 5, 6]], 3)"
    said = f"the tokens that {call} forbids"
    expect.value(forbidden(got)[0], [7], said, "The whole of ids counts.")


def test_bans_keep_the_dtype(no_repeat_ngram):
    keeps_the_dtype(lambda x, ids: no_repeat_ngram(x, ids, 2), "no_repeat_ngram")


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_bans_agree_with_transformers(no_repeat_ngram, n):
    oracle = NoRepeatNGramLogitsProcessor(n)
    for seed in range(6):
        length = (2, 25, 40)[seed % 3]
        logits, ids = random_logits(seed=seed), random_ids(3, length, 3, seed)
        wanted = oracle(ids, logits.clone())
        call = f"no_repeat_ngram of three random rows of {length} tokens with n={n}"
        got = no_repeat_ngram(logits[:1].clone(), ids[:1].clone(), n)
        expect.same(got, wanted[:1], f"{call}, the first row alone,")
        got = no_repeat_ngram(logits.clone(), ids.clone(), n)
        expect.same(got, wanted, call, "Each row has a text of its own.")


def test_nothing_that_is_written_with_it_repeats(no_repeat_ngram):
    ids = torch.tensor([[1, 2]])
    for step in range(40):
        logits = random_logits(1, 5, seed=step)
        ids = torch.cat([ids, no_repeat_ngram(logits, ids, 3).argmax(-1)[:, None]], -1)
        text = ids[0].tolist()
        grams = [tuple(text[i : i + 3]) for i in range(len(text) - 2)]
        assert len(grams) == len(set(grams)), f"a 3-gram is twice in {text}"


def test_an_n_below_1_is_refused(no_repeat_ngram):
    for n in (0, -2):
        call = f"no_repeat_ngram(logits, ids, {n})"
        expect.rejects(
            ValueError,
            lambda n=n: no_repeat_ngram(random_logits(), random_ids(), n),
            call,
        )


def test_bans_leave_their_input_alone(no_repeat_ngram):
    for n in (2, 30):
        call = f"no_repeat_ngram(logits, ids, {n})"
        unchanged_and_new(lambda x, ids, n=n: no_repeat_ngram(x, ids, n), call)


# --- dry ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "allowed", "wanted", "hint"),
    [
        ([1, 2, 3, 1, 2], 1, {3: -2.0}, "The end 1 2 was there with 3 behind it."),
        (
            [1, 2, 3, 1, 2],
            2,
            {3: -1.0},
            "A match of exactly allowed_length costs something, too: base ** 0 is 1.",
        ),
        ([1, 2, 3, 1, 2], 3, {}, "A match of 2 is below the allowed length."),
        ([7, 7, 7, 7], 1, {7: -4.0}, "The match of 7 is 3: the places may overlap."),
        ([1, 2, 3], 1, {}, "3 was never there before."),
        ([7, 8, 5, 7, 7], 1, {7: -1.0, 8: -1.0}, "A walk ends where the text begins."),
        ([4, 1, 9, 1, 8, 4, 1], 1, {9: -2.0, 8: -1.0}, "9 has a match of 2, 8 of 1."),
        ([1, 5, 2, 1, 5, 2, 3, 2, 1, 5], 1, {2: -4.0}, "The longest match counts."),
        (
            [4, 1, 5, 1, 5, 4, 1],
            1,
            {5: -2.0},
            "The longest match counts, not the last.",
        ),
    ],
)
def test_matches_worked_by_hand(dry, text, allowed, wanted, hint):
    got = dry(torch.zeros(1, 10), torch.tensor([text]), 1.0, 2.0, allowed)
    expect.returned(got, torch.Tensor, "dry")
    expected = torch.zeros(1, 10)
    for token, value in wanted.items():
        expected[0, token] = value
    call = f"dry(zeros, [{text}], multiplier=1, base=2, allowed_length={allowed})"
    if text == [1, 2, 3, 1, 2] and allowed == 1 and got.flatten()[3] < 0:
        hint = "The match of 3 is 2: it costs 2 ** (2 - 1)."
    if text == [7, 7, 7, 7] and got.flatten()[7] == -7:
        hint = "Matches of 1, 2 and 3: the longest alone costs something."
    expect.same(got, expected, call, hint, 1e-5)


def slow_match(text, token):
    """The longest end of `text` that occurs earlier with `token` behind it."""
    return max(
        (
            length
            for length in range(1, len(text))
            for i in range(len(text) - length)
            if text[i : i + length] == text[-length:] and text[i + length] == token
        ),
        default=0,
    )


def test_matches_agree_with_their_definition(dry):
    for seed in range(4):
        logits, ids = random_logits(2, 12, seed), random_ids(2, 16, 2 + seed % 2, seed)
        for allowed, base in ((1, 1.75), (3, 1.2)):
            wanted = logits.clone()
            for row, text in enumerate(ids.tolist()):
                for token in range(12):
                    match = slow_match(text, token)
                    if match >= allowed:
                        wanted[row, token] -= 0.8 * base ** (match - allowed)
            call = f"dry of {ids[:1].tolist()} with 0.8, {base}, {allowed}"
            got = dry(logits[:1].clone(), ids[:1].clone(), 0.8, base, allowed)
            expect.same(got, wanted[:1], call, "", 1e-3)
            call = f"dry of {ids.tolist()} with 0.8, {base}, {allowed}"
            got = dry(logits.clone(), ids.clone(), 0.8, base, allowed)
            expect.same(got, wanted, call, "Each row has a text of its own.", 1e-3)


def test_with_a_base_of_1_every_match_costs_the_same(dry):
    for text in ([1, 2, 3, 1, 2], [3, 9, 3]):
        got = dry(torch.zeros(1, 10), torch.tensor([text]), 0.5, 1.0, 1)
        wanted = torch.zeros(1, 10)
        wanted[0, text[2 if text[0] == 1 else 1]] = -0.5
        call = f"dry(zeros, [{text}], multiplier=0.5, base=1, allowed_length=1)"
        expect.same(got, wanted, call)


def test_a_multiplier_of_0_is_off(dry):
    logits = random_logits()
    got = dry(logits, random_ids(), 0.0, 1.75, 1)
    expect.same(got, logits, "dry(logits, ids, multiplier=0, ...)")


def test_off_is_off_for_a_long_repetition_too(dry):
    call = "dry(zeros, [[7, 7, ..., 7]] (120 times), multiplier=0, base=10,000)"
    try:
        got = dry(torch.zeros(1, 10), torch.tensor([[7] * 120]), 0.0, 1e4, 1)
    except OverflowError as error:
        raise AssertionError(
            f"{call} raised OverflowError {error}: cap the exponent, or return a copy "
            "where the multiplier is 0"
        ) from None
    expect.same(got, torch.zeros(1, 10), call, "With multiplier 0 nothing is to do.")


# The least that a cap which is rounded down to a whole number allows
@pytest.mark.parametrize(
    ("base", "length", "least"), [(1.75, 300, 1e38), (1e4, 120, 7e35)]
)
def test_a_long_repetition_costs_a_finite_number(dry, base, length, least):
    got = dry(torch.zeros(1, 10), torch.tensor([[7] * length]), 0.8, base, 2)
    call = f"dry(zeros, [[7, 7, ..., 7]] ({length} times), 0.8, {base:g}, 2)"
    expect.tensor(got, (1, 10), call)
    cost = got[0, 7].item()
    assert -3.4e38 < cost < -least, (
        f"{call} should give 7 a logit near -1.3e38, not {cost:g}: the exponent is "
        "min(match - allowed_length, 88 / ln(base))"
    )


def test_matches_reach_back_to_the_beginning(dry):
    ids = torch.tensor([[5, 6, 7] + [1] * 1100 + [5, 6]])
    got = dry(torch.zeros(1, 10), ids, 1.0, 2.0, 1)
    call = "dry(zeros, [[5, 6, 7, 1, 1, ..., 1, 5, 6]], 1, 2, 1)"
    expect.same(got, [[0.0] * 7 + [-2.0, 0.0, 0.0]], call, "The whole of ids counts.")


def test_dry_keeps_the_dtype(dry):
    keeps_the_dtype(lambda x, ids: dry(x, ids, 0.8, 1.75, 1), "dry")


def test_a_base_or_a_length_below_1_and_a_negative_multiplier_are_refused(dry):
    others = [(m, *rest) for m in (0.8, 0.0) for rest in ((0.5, 2), (1.75, 0))]
    for bad in ((-1.0, 1.75, 2), *others):
        call = f"dry(logits, ids, multiplier={bad[0]}, base={bad[1]}, "
        call += f"allowed_length={bad[2]})"
        expect.rejects(
            ValueError, lambda b=bad: dry(random_logits(), random_ids(), *b), call
        )


def test_dry_leaves_its_input_alone(dry):
    for multiplier in (0.8, 0.0):
        call = f"dry(logits, ids, {multiplier}, 1.75, 1)"
        unchanged_and_new(lambda x, ids, m=multiplier: dry(x, ids, m, 1.75, 1), call)


# --- distinct_n -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "n", "wanted", "hint"),
    [
        (["a b", "a b c"], 2, 2 / 3, "ab, ab, bc: two of three are different."),
        (["a b", "c d"], 2, 1.0, "No 2-gram reaches from one text into the next."),
        (["a b", "a b c"], 1, 3 / 5, "a, b, a, b, c: three of five."),
        (["a a a a"], 2, 1 / 3, ""),
        (
            ["one  two\nthree", "one two three"],
            3,
            1 / 2,
            "Words are what split() gives.",
        ),
        (["b a", "a b"], 2, 1.0, "Texts have an order: ba is not ab."),
        (["ab c", "a bc"], 2, 1.0, "ab c and a bc are different: use tuples."),
        (["A a"], 1, 1.0, "A and a are different words."),
        (["a. a, a"], 1, 1.0, "split() leaves a comma with its word."),
    ],
)
def test_distinct_worked_by_hand(distinct_n, texts, n, wanted, hint):
    call = f"distinct_n({texts}, {n})"
    expect.value(distinct_n(list(texts), n), wanted, call, hint, 1e-9)


@pytest.mark.parametrize("texts", [[], [""], ["one", "two"]])
def test_texts_without_n_grams_have_none_that_differ(distinct_n, texts):
    hint = "Without any n-gram the result is 0."
    call = f"distinct_n({texts}, 2)"
    try:
        got = distinct_n(list(texts), 2)
    except ZeroDivisionError:
        raise AssertionError(f"{call} raised ZeroDivisionError. {hint}") from None
    expect.value(got, 0.0, call, hint, 1e-9)


def test_a_copy_of_all_texts_halves_it(distinct_n):
    texts = ["the cat sat", "on the mat today", "a b"]
    for n in (1, 2):
        wanted = distinct_n(texts, n) / 2
        call = f"distinct_n of the same texts twice, n={n}"
        expect.value(distinct_n(texts + texts, n), wanted, call, "", 1e-9)


def test_the_texts_stay_as_they_are(distinct_n):
    texts = ["a b", "a b c"]
    with expect.unchanged("make a list of your own", texts=texts):
        distinct_n(texts, 2)


def test_an_n_of_0_or_less_is_refused_without_texts_too(distinct_n):
    for n in (0, -1):
        for texts in (["a b"], [""], []):
            call = f"distinct_n({texts}, {n})"
            expect.rejects(
                ValueError, lambda t=texts, n=n: distinct_n(list(t), n), call
            )


def test_one_string_is_no_list_of_texts(distinct_n):
    for text in ("a b c", ""):
        call = f"distinct_n({text!r}, 1)"
        expect.rejects(TypeError, lambda t=text: distinct_n(t, 1), call)


# --- self_bleu ------------------------------------------------------------------------


def bleu_of_sacrebleu(texts):
    scores = [
        sacrebleu.sentence_bleu(
            text,
            texts[:i] + texts[i + 1 :],
            smooth_method="none",
            tokenize="none",
            use_effective_order=False,
        ).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores) / 100


@pytest.mark.parametrize(
    ("texts", "wanted", "hint"),
    [
        (["a b c d", "a b c d"], 1.0, ""),
        (["a b c d", "e f g h"], 0.0, "No word in common: 0."),
        (["a b c", "a b c"], 0.0, "A text of 3 words has no 4-gram: 0."),
        # Precisions 5/6, 4/5, 3/4, 2/3 = 1/3; of the shorter one all 1.
        (
            ["a b c d e f", "a b c d e"],
            ((1 / 3) ** 0.25 + math.exp(1 - 6 / 5)) / 2,
            "The precisions of the longer one are 5/6, 4/5, 3/4, 2/3; the shorter one "
            "has all 1, and the brevity penalty exp(1 - 6/5).",
        ),
        # 4/8, 3/7, 2/6, 1/5; and all 1, with exp(1 - 8/4).
        (
            ["a b c d a b c d", "a b c d"],
            ((4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25 + math.exp(-1)) / 2,
            "An n-gram matches at most as often as the reference has it.",
        ),
    ],
)
def test_bleu_worked_by_hand(self_bleu, texts, wanted, hint):
    expect.value(self_bleu(list(texts)), wanted, f"self_bleu({texts})", hint, 1e-5)


CLIPPED_BY_THE_SUM = 0.626894  # of the texts below, worked out apart


def test_the_most_of_one_reference_counts(self_bleu):
    # All have 8 words, so that the brevity penalty plays no part.
    texts = ["a a b c a a b d", "a a b c b d c b", "b d a a b c a b", "c a a b c c d d"]
    call, got = f"self_bleu({texts})", self_bleu(list(texts))
    hint = ""
    if isinstance(got, float) and abs(got - CLIPPED_BY_THE_SUM) < 1e-5:
        hint = "Clip by the one reference that has an n-gram most often, not by their "
        hint += "sum."
    expect.value(got, bleu_of_sacrebleu(texts), call, hint, 1e-5)


def test_words_of_bleu_are_what_split_gives(self_bleu):
    for texts in (
        ["a  b c d", "a b c d"],
        ["a b\nc d", "a b c d"],
        ["A b c d e", "a b c d e"],
        ["a b c d.", "a b c d ."],
        ["a-b c d e f", "a b c d e f"],
    ):
        words = [" ".join(text.split()) for text in texts]
        hint = "Words are what split() gives: nothing else is changed or taken apart."
        call = f"self_bleu({texts})"
        got = self_bleu(list(texts))
        expect.value(got, bleu_of_sacrebleu(words), call, hint, 1e-5)


def test_bleu_leaves_the_texts_as_they_are(self_bleu):
    texts = ["a b c d", "a b c e", "a b"]
    with expect.unchanged("make a list of your own", texts=texts):
        self_bleu(texts)


OTHER_LENGTHS = {
    "the longer of two equally near": lambda c, lengths: min(
        lengths, key=lambda r: (abs(r - c), -r)
    ),
    "the first of two equally near": lambda c, lengths: min(
        lengths, key=lambda r: abs(r - c)
    ),
    "the shortest": lambda c, lengths: min(lengths),
    "the longest": lambda c, lengths: max(lengths),
    "the mean": lambda c, lengths: sum(lengths) / len(lengths),
}


def with_another_length(texts, length):
    """Self-BLEU by sacrebleu, with another choice of r in its brevity penalty."""
    total = 0.0
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        found = sacrebleu.sentence_bleu(
            text,
            others,
            smooth_method="none",
            tokenize="none",
            use_effective_order=False,
        )
        c = len(text.split())
        r = length(c, [len(other.split()) for other in others])
        total += found.score / 100 / found.bp * (math.exp(1 - r / c) if c < r else 1.0)
    return total / len(texts)


def test_the_nearest_length_counts(self_bleu):
    # For the first, references of 6 and of 10 words are equally near to 8.
    for texts in (
        ["a b c d e f g h", "a b c d e f", "a b c d e f g h i j"],
        ["a b c d e f g h", "a b c d e f g h i j", "a b c d e f"],
        ["a b c d", "a b c d e", "a b c d e f g h i j k"],
        ["a b c d e f", "a b d", "a b c d e f g"],
    ):
        call, got = f"self_bleu({texts})", self_bleu(list(texts))
        taken = [
            name
            for name, length in OTHER_LENGTHS.items()
            if isinstance(got, float)
            and abs(got - with_another_length(texts, length)) < 1e-6
        ]
        hint = ""
        if taken:
            hint = f"Is r {' or '.join(taken)}? It is the nearest length; of two "
            hint += "equally near the shorter one."
        expect.value(got, bleu_of_sacrebleu(texts), call, hint, 1e-5)


def test_short_texts_are_references_too(self_bleu):
    texts = ["a b c d", "a b d", "a b c d e f g"]
    hint = "A text of 3 words scores 0, but it is a reference for the others."
    call = f"self_bleu({texts})"
    expect.value(self_bleu(list(texts)), bleu_of_sacrebleu(texts), call, hint, 1e-5)


def test_self_bleu_agrees_with_sacrebleu(self_bleu):
    rng = random.Random(0)
    for _ in range(25):
        texts = [
            " ".join(rng.choices("abc", k=rng.randrange(4, 13)))
            for _ in range(rng.randrange(2, 5))
        ]
        call = f"self_bleu({texts})"
        wanted = bleu_of_sacrebleu(texts)
        expect.value(self_bleu(list(texts)), wanted, call, "", 1e-5)


def test_an_empty_text_scores_0(self_bleu):
    texts = ["", "a b c d e", "a b c d e"]
    expect.value(self_bleu(list(texts)), 2 / 3, f"self_bleu({texts})", "", 1e-5)


def test_one_string_is_no_list(self_bleu):
    for text in ("a b c d", ""):
        call = f"self_bleu({text!r})"
        expect.rejects(TypeError, lambda t=text: self_bleu(t), call)


def test_one_text_has_nothing_to_be_compared_with(self_bleu):
    for texts in ([], ["a b c d"]):
        call = f"self_bleu({texts})"
        expect.rejects(ValueError, lambda t=texts: self_bleu(list(t)), call)


# --- mauve_small ----------------------------------------------------------------------


def at_corners(*counts):
    """Features in groups far from one another: counts[i] of them in group i."""
    generator = torch.Generator().manual_seed(sum(counts))
    groups = [
        torch.randn(count, 4, generator=generator) * 0.01 + 100 * torch.eye(4)[group]
        for group, count in enumerate(counts)
    ]
    return torch.cat(groups)


def test_equal_sets_are_alike(mauve_small):
    got = mauve_small(at_corners(15, 15), at_corners(15, 15))
    hint = "With P = Q all points are (1, 1): the area between (1, 0) and (0, 1) is 1."
    if isinstance(got, float):
        got += 0.0  # no -0
        if abs(got + 1) < 0.01:
            hint = "x falls along the curve: that is minus the area."
    expect.value(got, 1.0, "mauve_small of two equal sets", hint, 0.01)


def test_disjoint_sets_are_not_alike(mauve_small):
    got = mauve_small(at_corners(12, 0), at_corners(0, 12))
    hint = "The area under x = (1 - λ)⁵, y = λ⁵ is 1/252."
    got = got + 0.0 if isinstance(got, float) else got  # no -0
    expect.value(got, 1 / 252, "mauve_small of two disjoint sets", hint, 5e-4)


# Computed with mauve-text 0.4.0 (get_divergence_curve_for_multinomials, c = 5, 1001
# mixtures) for these shares.
PUBLISHED = [
    ((15, 9, 6), (6, 9, 15), 0.82165),
    ((21, 9, 0), (3, 12, 15), 0.13780),
    ((10, 10), (20, 0), 0.27748),
    ((20, 0), (10, 10), 0.27748),
]


@pytest.mark.parametrize(("p", "q", "wanted"), PUBLISHED)
def test_mauve_agrees_with_the_program_of_its_authors(mauve_small, p, q, wanted):
    got = mauve_small(at_corners(*p), at_corners(*q))
    call = f"mauve_small of sets with {p} and {q} features in three groups"
    hint = "It is the area under the curve of the points of 101 mixtures."
    expect.value(got, wanted, call, hint, 0.004)


def slow_mauve(p, q):
    """By its definition, with 101 mixtures, of two histograms."""

    def kl(a, b):
        terms = [
            x * math.log(x / y) if y else INF for x, y in zip(a, b, strict=True) if x
        ]
        return sum(terms)

    points = [(1.0, 0.0)]
    for step in range(101):
        part = step / 100
        r = [part * a + (1 - part) * b for a, b in zip(p, q, strict=True)]
        points.append((math.exp(-5 * kl(q, r)), math.exp(-5 * kl(p, r))))
    points.append((0.0, 1.0))
    return sum(
        (x - x_next) * (y + y_next) / 2
        for (x, y), (x_next, y_next) in itertools.pairwise(points)
    )


def test_there_are_101_mixtures_from_0_to_1(mauve_small):
    for p, q in (((15, 9, 6), (3, 3, 24)), ((20, 9, 1), (10, 11, 9))):
        wanted = slow_mauve([n / 30 for n in p], [n / 30 for n in q])
        got = mauve_small(at_corners(*p), at_corners(*q))
        call = f"mauve_small of sets with {p} and {q} features in three groups"
        hint = ""
        if isinstance(got, float) and abs(got - wanted) < 0.01:
            hint = "That is close: are there 101 values of λ, 0 and 1 among them?"
        expect.value(got, wanted, call, hint, 1e-6)


def test_either_set_may_come_first(mauve_small):
    one, other = at_corners(20, 10), at_corners(5, 15)
    forth, back = mauve_small(one, other), mauve_small(other, one)
    expect.value(forth, back, "mauve_small(p, q) and mauve_small(q, p)", "", 0.005)


def test_the_number_of_clusters_follows_the_smaller_set(mauve_small):
    # Two groups are close together, a third far away: with two clusters both sets have
    # one half in each, with more they differ.
    near = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    far = torch.tensor([[100.0, 100.0]])
    p = torch.cat([near[:1].expand(10, 2), far.expand(10, 2)])
    q = torch.cat([near[1:].expand(50, 2), far.expand(50, 2)])
    hint = "k is a tenth of the size of the smaller set: here 2."
    call = "mauve_small of 20 and 100 features"
    expect.value(mauve_small(p, q), 1.0, call, hint, 0.01)
    expect.value(mauve_small(q, p), 1.0, "mauve_small of 100 and 20", hint, 0.01)
    for half, wanted in ((12, 1.0), (13, 0.0920)):  # k = 2.4 and 2.6, rounded
        p = torch.cat([near[:1].expand(half, 2), far.expand(half, 2)])
        q = torch.cat([near[1:].expand(half, 2), far.expand(half, 2)])
        call = f"mauve_small of {2 * half} and {2 * half} features"
        hint = f"k is {2 * half / 10}, rounded."
        expect.value(mauve_small(p, q), wanted, call, hint, 0.01)


def test_there_are_at_least_two_clusters(mauve_small):
    few = mauve_small(at_corners(2, 1), at_corners(1, 2))
    many = mauve_small(at_corners(14, 7), at_corners(7, 14))
    hint = "k is at least 2, even for three features."
    call = "mauve_small of three features each, in two groups"
    expect.value(few, many, call, hint, 0.01)
