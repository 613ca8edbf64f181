"""Checks of lesson 04. Oracles: cases worked by hand, properties, transformers."""

import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import random_gpt2, random_llama

top_k_filter = exercise("top_k_filter")
kept_mass = exercise("kept_mass")
top_k_exact = exercise("top_k_exact")
sample_top_k = exercise("sample_top_k")
TopK = exercise("TopK")

INF = float("inf")
# Two rows whose k-th largest logits differ, so that one threshold cannot serve both.
TWO_ROWS = [[1.0, 3.0, 2.0, 0.0], [10.0, 12.0, 9.0, 11.0]]


def random_logits(batch=4, vocab=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vocab, generator=generator) * 3


def kept(logits):
    return (logits > -INF).sum(-1).tolist()


# --- top_k_filter ---------------------------------------------------------------------


def test_the_case_worked_by_hand(top_k_filter):
    got = top_k_filter(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    hint = ""
    if isinstance(got, torch.Tensor) and bool((got == 0).any()):
        hint = "A logit of 0 is no removal: its probability is exp(0) / sum, not 0."
    elif isinstance(got, torch.Tensor) and bool(
        ((got < -999) & (got > -INF)).any()  # -inf itself is none
    ):
        hint = "-inf itself, not a large negative number, gives probability 0."
    expect.same(got, [[-INF, 3.0, 2.0]], "top_k_filter([[1, 3, 2]], 2)", hint)


def test_each_row_has_its_own_threshold(top_k_filter):
    hint = "Does your threshold have shape (batch, 1)?"
    with expect.hinting(hint, RuntimeError, says="must match the size"):
        got = top_k_filter(torch.tensor(TWO_ROWS), 2)
    expect.tensor(got, (2, 4), "top_k_filter of 2 rows")
    numbers = kept(got)
    hint = ""
    if numbers in ([2, 4], [0, 2], [2, 0]):  # one row right, the other all or nothing
        hint = ": does your threshold have shape (batch, 1)?"
    for row, number in enumerate(numbers):
        assert number == 2, (
            f"given {expect.show(TWO_ROWS)} with top_k=2, row {row} kept "
            f"{counted(number, 'token')}, not 2{hint}"
        )
    wanted = [[-INF, 3.0, 2.0, -INF], [-INF, 12.0, -INF, 11.0]]
    expect.same(got, wanted, f"top_k_filter({expect.show(TWO_ROWS)}, 2)")


@pytest.mark.parametrize("k", [1, 2, 50, 199])
def test_agrees_with_transformers(top_k_filter, k):
    logits = random_logits()
    oracle = TopKLogitsWarper(top_k=k)(None, logits.clone())
    got = expect.tensor(
        top_k_filter(logits.clone(), k), (4, 200), f"top_k_filter(logits, {k})"
    )
    assert kept(got) == kept(oracle), (
        f"with top_k={k} the rows should keep {kept(oracle)} tokens, not {kept(got)}"
    )
    assert torch.equal(got, oracle), (
        f"with top_k={k} the right number of tokens stays, but not the same ones, or "
        "with other values, as with transformers' TopKLogitsWarper"
    )


def test_top_k_of_0_is_off(top_k_filter):
    logits = random_logits()
    off = "0 turns the filter off."
    with expect.hinting(off, IndexError, RuntimeError, says="range"):
        got = top_k_filter(logits.clone(), 0)
    hint = ""
    if isinstance(got, torch.Tensor) and bool((got == -INF).all()):
        hint = "0 turns the filter off: it keeps every token."
    expect.same(got, logits, "top_k_filter(logits, 0)", hint)


@pytest.mark.parametrize("k", [3, 4, 1000])
def test_top_k_above_the_vocabulary_keeps_all(top_k_filter, k):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    hint = "A top_k above the number of tokens keeps all."
    with expect.hinting(hint, IndexError, RuntimeError, says="range"):
        got = top_k_filter(logits.clone(), k)
    expect.same(got, logits, f"top_k_filter of 3 logits with top_k={k}")


def test_a_negative_top_k_is_refused(top_k_filter):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    expect.rejects(ValueError, lambda: top_k_filter(logits, -1), "top_k=-1")


def test_ties_with_the_kth_all_stay(top_k_filter):
    got = top_k_filter(torch.tensor([[2.0, 2.0, 2.0, 0.0]]), 1)
    hint = ""
    if isinstance(got, torch.Tensor) and kept(got) == [1]:
        hint = "Remove what is below the threshold, not what is outside topk's indices."
    call = "top_k_filter([[2, 2, 2, 0]], 1)"
    expect.same(got, [[2.0, 2.0, 2.0, -INF]], call, hint)


def test_ties_above_the_kth_count_one_by_one(top_k_filter):
    got = top_k_filter(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), 2)
    call = "top_k_filter([[3, 1, 3, 2]], 2)"
    hint = "The two 3s are two tokens, though one value."
    expect.same(got, [[3.0, -INF, 3.0, -INF]], call, hint)


def test_near_ties_are_no_ties(top_k_filter):
    # A row each: a threshold that rows share is another mistake than a tolerance.
    for row, best in (([1.0, 1.000001, 0.0], 1), ([1e-9, 0.0, -1.0], 0)):
        logits = torch.tensor([row])
        wanted = torch.full((1, 3), -INF)
        wanted[0, best] = logits[0, best]
        call = f"top_k_filter([{row}], 1)"
        expect.same(
            top_k_filter(logits.clone(), 1), wanted, call, "Only equal logits tie."
        )


def test_leaves_its_input_alone(top_k_filter):
    for k in (2, 0, 99):
        logits = torch.tensor(TWO_ROWS)
        with expect.unchanged(logits=logits):
            got = top_k_filter(logits, k)
        expect.a_copy(got, logits, f"top_k_filter(logits, {k})")


def test_keeps_the_dtype(top_k_filter):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        got = top_k_filter(torch.tensor(TWO_ROWS, dtype=dtype), 2)
        expect.tensor(got, (2, 4), f"top_k_filter of {dtype} logits", dtype)


def test_respects_tokens_already_removed(top_k_filter):
    logits = torch.tensor([[-INF, 3.0, -INF, 1.0]])
    got = top_k_filter(logits.clone(), 3)
    hint = ""
    if isinstance(got, torch.Tensor) and (got[:, [0, 2]] != -INF).any():
        hint = "A logit of -inf is a token that an earlier filter removed."
    call = "top_k_filter([[-inf, 3, -inf, 1]], 3)"
    expect.same(got, [[-INF, 3.0, -INF, 1.0]], call, hint)


# --- kept_mass ------------------------------------------------------------------------

SIX_THREE_ONE = [math.log(6), math.log(3), math.log(1)]


@pytest.mark.parametrize(("k", "mass"), [(1, 0.6), (2, 0.9), (3, 1.0), (0, 1.0)])
def test_mass_worked_by_hand(kept_mass, k, mass):
    got = kept_mass(torch.tensor([SIX_THREE_ONE]), k)
    hint = ""
    if (
        k in (1, 2)
        and isinstance(got, torch.Tensor)
        and got.numel() == 1
        and got > 0.99
    ):
        hint = "The softmax of filtered logits always sums to 1: softmax before it."
    call = f"kept_mass([[ln 6, ln 3, ln 1]], {k})"
    expect.same(got, [mass], call, hint, tolerance=1e-5)


def test_mass_of_each_row_of_a_batch(kept_mass):
    rows = [SIX_THREE_ONE, [0.0, 0.0, 0.0]]
    got = kept_mass(torch.tensor(rows), 1)
    hint = ""
    fits = isinstance(got, torch.Tensor) and got.shape == (2,)
    if fits and torch.allclose(got.float(), torch.tensor([0.6, 1 / 3]), atol=1e-4):
        hint = "In row 1 all three tokens tie, so top_k_filter keeps them all."
    kept_columns = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    down = (torch.tensor(rows).softmax(0) * kept_columns).sum(-1)
    if fits and torch.allclose(got.float(), down, atol=1e-4):
        hint = "softmax runs over the vocabulary, the last dimension."
    call = "kept_mass([[ln 6, ln 3, ln 1], [0, 0, 0]], 1)"
    expect.same(got, [0.6, 1.0], call, hint, tolerance=1e-5)


def test_mass_agrees_with_a_sum_over_sorted_probabilities(kept_mass):
    logits = random_logits()
    for k in (1, 7, 150):
        probabilities = logits.double().softmax(-1)
        expected = [
            sum(sorted(row, reverse=True)[:k]) for row in probabilities.tolist()
        ]
        expect.same(
            kept_mass(logits.clone(), k),
            torch.tensor(expected),
            f"kept_mass(logits, {k})",
            tolerance=1e-4,
        )


def test_mass_of_large_logits(kept_mass):
    got = kept_mass(torch.tensor([SIX_THREE_ONE]) + 200, 2)
    hint = ""
    if isinstance(got, torch.Tensor) and not got.isfinite().all():
        hint = "exp(200) is no float32 number: softmax knows how to avoid it."
    call = "kept_mass([[200 + ln 6, 200 + ln 3, 200 + ln 1]], 2)"
    expect.same(got, [0.9], call, hint, tolerance=1e-3)


def test_mass_of_near_ties(kept_mass):
    """1e-9 apart, two logits differ; their float32 probabilities are the same."""
    got = kept_mass(torch.tensor([[1e-9, 0.0, -1.0]]), 1)
    hint = "Which tokens stay is decided by the logits, not by the probabilities."
    call = "kept_mass([[1e-9, 0, -1]], 1)"
    expect.same(got, [1 / (2 + math.exp(-1))], call, hint, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mass_of_half_precision_logits(kept_mass, dtype):
    """300 logits of about 10: a sum of their exponentials is no float16 number."""
    logits = (10 + random_logits(batch=2, vocab=300) / 10).to(dtype)
    got = expect.returned(kept_mass(logits.clone(), 30), torch.Tensor, "kept_mass")
    rows = logits.double().softmax(-1)
    lowest = logits.topk(30).values[:, -1:]
    oracle = (rows * (logits >= lowest)).sum(-1)
    call = f"kept_mass of {dtype} logits, top_k=30,"
    hint = ""
    if dtype == torch.float16 and not got.isfinite().all():
        hint = "The sum of 300 exp(10) is above the largest float16 number: softmax "
        hint += "knows how to avoid it."
    expect.same(got.float(), oracle.float(), call, hint, tolerance=0.05)


def test_mass_leaves_its_input_alone(kept_mass):
    logits = torch.tensor(TWO_ROWS)
    with expect.unchanged(logits=logits):
        kept_mass(logits, 2)


# --- top_k_exact ----------------------------------------------------------------------


def test_exact_without_ties_is_top_k_filter(top_k_exact):
    got = top_k_exact(torch.tensor(TWO_ROWS), 2)
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (2, 4):
        stay = (got > -INF).tolist()
        hint = "Row 1 kept the places of row 0." if stay[0] == stay[1] else ""
    wanted = [[-INF, 3.0, 2.0, -INF], [-INF, 12.0, -INF, 11.0]]
    expect.same(got, wanted, f"top_k_exact({expect.show(TWO_ROWS)}, 2)", hint)
    logits = random_logits()
    for k in (1, 5, 200, 999):
        oracle = TopKLogitsWarper(top_k=k)(None, logits.clone())
        expect.same(top_k_exact(logits.clone(), k), oracle, f"top_k_exact(logits, {k})")


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exactly_k_tokens_stay_where_many_tie(top_k_exact, k):
    logits = torch.tensor(
        [
            [2.0, 2.0, 2.0, 0.0, 2.0],
            [5.0, 1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 5.0],
            [100.0, 100.0, 100.0, 100.0, 100.0],
        ]
    )
    got = expect.tensor(top_k_exact(logits.clone(), k), (4, 5), "top_k_exact")
    given = f"given {expect.show(logits)} with top_k={k}"
    for row, number in enumerate(kept(got)):
        lowest = logits[row].topk(k).values[-1]
        cuts = (logits[row] >= lowest).sum(), (logits[row] > lowest).sum()
        hint = ": a threshold keeps all that tie or none of them, so choose by place"
        if number not in cuts:
            hint = f", not {k}. What is added to break ties may be lost in rounding: "
            hint += "choose by place, topk returns indices"
        assert number == k, f"{given}, row {row} kept {counted(number, 'token')}{hint}"
    stay = got > -INF
    changed = stay & (got != logits)
    if changed.any():
        row, column = changed.nonzero()[0].tolist()
        raise AssertionError(
            f"with top_k={k}, row {row} {expect.show(logits[row])}: a logit that was "
            f"kept is {got[row, column].item()!r}, not {logits[row, column].item():g}: "
            "what breaks ties must not stay in the result"
        )
    assert not stay[0, 3] or k == 5, f"{given}, the 0 stayed and a 2 had to go"
    assert stay[1, 0], f"{given}, the largest logit of row 1 was removed"
    assert stay[2, 4], f"{given}, the largest logit of row 2 was removed"


def test_exact_keeps_logits_of_0_and_tells_near_ties_apart(top_k_exact):
    got = top_k_exact(torch.tensor([[1.0, 0.0, -1.0], [-2.0, 0.0, -1.0]]), 2)
    call = "top_k_exact([[1, 0, -1], [-2, 0, -1]], 2)"
    hint = "A logit of 0 is a logit like any other."
    expect.same(got, [[1.0, 0.0, -INF], [-INF, 0.0, -1.0]], call, hint)
    got = top_k_exact(torch.tensor([[0.0, 0.0, 1e-9], [0.0, 1e-9, 0.0]]), 1)
    call = "top_k_exact([[0, 0, 1e-9], [0, 1e-9, 0]], 1)"
    wanted = [[-INF, -INF, 1e-9], [-INF, 1e-9, -INF]]
    expect.same(got, wanted, call, "Only equal logits tie.")


def test_exactly_k_of_many_ties_in_bfloat16(top_k_exact):
    logits = random_logits(batch=4, vocab=5000).to(torch.bfloat16)
    before = torch.get_rng_state()
    for k in (300, 400):  # in each row the k-th logit is one of several equal ones
        got = expect.tensor(top_k_exact(logits.clone(), k), (4, 5000), "top_k_exact")
        assert kept(got) == [k] * 4, (
            f"of 5,000 bfloat16 logits with top_k={k} the rows kept {kept(got)} tokens"
        )
    assert torch.equal(torch.get_rng_state(), before), (
        "random numbers were drawn: a filter that does so changes the tokens of all "
        "later draws"
    )


def test_exact_treats_0_and_negative_as_top_k_filter_does(top_k_exact):
    logits = torch.tensor([[2.0, 2.0, 0.0]])
    expect.same(top_k_exact(logits.clone(), 0), logits, "top_k_exact(logits, 0)")
    for k in (-1, -3):
        expect.rejects(ValueError, lambda k=k: top_k_exact(logits, k), f"top_k={k}")


def test_exact_leaves_its_input_alone_and_keeps_the_dtype(top_k_exact):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for k in (2, 0, 99):
            logits = torch.tensor(TWO_ROWS, dtype=dtype)
            with expect.unchanged(logits=logits):
                got = top_k_exact(logits, k)
            expect.tensor(got, (2, 4), f"top_k_exact of {dtype} logits", dtype)
            expect.a_copy(got, logits, f"top_k_exact(logits, {k})")


# --- sample_top_k ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("k", [0, 1, 5, 5000])
def test_draws_the_tokens_of_transformers_for_the_same_seed(
    sample_top_k, k, temperature
):
    logits = random_logits(batch=3)
    scores = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if k:
        scores = TopKLogitsWarper(top_k=k)(None, scores)
    for seed in range(5):
        torch.manual_seed(seed)
        oracle = torch.multinomial(scores.softmax(-1), num_samples=1)
        torch.manual_seed(seed)
        got = sample_top_k(logits.clone(), k, temperature)
        call = f"sample_top_k(logits, {k}, temperature={temperature}), seed {seed},"
        expect.tensor(got, (3, 1), call, torch.int64)
        hint = (
            "Divide by the temperature, filter, softmax, and draw once for the whole "
        )
        hint += "batch with torch.multinomial."
        best_first = scores.argsort(-1, descending=True)
        if torch.equal(best_first.gather(-1, got.clamp(0, 199)), oracle):
            hint = "That is a place among the likeliest: look up the id of the token "
            hint += "there."
        expect.same_ids(got, oracle, call, hint=hint)


@pytest.mark.parametrize("k", [1, 2])
def test_tied_tokens_are_all_drawn(sample_top_k, k):
    logits = torch.tensor([[2.0, 5.0, 5.0, 5.0, 0.0]]).repeat(30, 1)
    torch.manual_seed(0)
    kept = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]).repeat(30, 1) / 3
    oracle = torch.multinomial(kept, 1)
    torch.manual_seed(0)
    got = sample_top_k(logits.clone(), k)
    call = f"sample_top_k of 30 rows [2, 5, 5, 5, 0], top_k={k}, seed 0"
    hint = "Ties with the k-th largest stay, as in top_k_filter: three tokens here."
    expect.same_ids(got, oracle, call, hint=hint)


@pytest.mark.parametrize("k", [1, 5])
def test_a_second_draw_goes_on_where_the_first_ended(sample_top_k, k):
    logits = random_logits(batch=20)
    scores = TopKLogitsWarper(top_k=5)(None, logits.clone())
    torch.manual_seed(0)
    torch.multinomial(scores.softmax(-1), 1)
    oracle = torch.multinomial(scores.softmax(-1), 1)
    torch.manual_seed(0)
    sample_top_k(logits.clone(), k)
    got = sample_top_k(logits.clone(), 5)
    call = f"sample_top_k(logits, 5), after sample_top_k(logits, {k})"
    hint = "Each call draws once with torch.multinomial, also where one token is left."
    expect.same_ids(got, oracle, call, hint=hint)


@pytest.mark.draws(false_alarm=6.5e-9, smallest_error=0.08)
def test_draws_as_often_as_worked_by_hand(sample_top_k, seed):
    """4,000 draws with p = 0.75 and p = 0.9, which may be 6 standard deviations off."""
    for temperature, p in ((1.0, 0.75), (0.5, 0.9)):
        rows = torch.tensor([[0.0, math.log(3), -5.0]]).expand(4000, 3).clone()
        torch.manual_seed(seed)
        got = sample_top_k(rows, 2, temperature)
        expect.tensor(got, (4000, 1), "sample_top_k of 4,000 rows", torch.int64)
        assert not (got == 2).any(), "the third token was drawn, though top_k=2"
        share = (got == 1).double().mean().item()
        allowed = 6 * math.sqrt(p * (1 - p) / 4000)
        assert abs(share - p) < allowed, (
            f"at temperature {temperature} the second token should be drawn {p:.0%} of "
            f"the time, not {share:.1%}"
        )


def test_the_default_temperature_is_1(sample_top_k):
    logits = random_logits(batch=50)
    torch.manual_seed(0)
    got = sample_top_k(logits.clone(), 20)
    torch.manual_seed(0)
    oracle = TopKLogitsWarper(top_k=20)(None, random_logits(batch=50)).softmax(-1)
    oracle = torch.multinomial(oracle, num_samples=1)
    expect.same_ids(got, oracle, "sample_top_k without one")


def test_sampling_refuses_what_makes_no_sense(sample_top_k):
    logits = torch.tensor([[1.0, 2.0]])
    for temperature in (0, 0.0, -1.0, math.nan):
        expect.rejects(
            ValueError,
            lambda t=temperature: sample_top_k(logits, 2, t),
            f"temperature={temperature}",
        )
    expect.rejects(ValueError, lambda: sample_top_k(logits, -1), "top_k=-1")


def test_sampling_leaves_its_input_alone(sample_top_k):
    logits, first = torch.tensor(TWO_ROWS), torch.tensor(TWO_ROWS)
    sample_top_k(first, 2, 0.5)
    hint = "work on a copy, for example with masked_fill"
    if torch.equal(first, logits / 0.5):
        hint = "`logits /= temperature` changes it, `logits / temperature` does not"
    with expect.unchanged(hint, logits=logits):
        sample_top_k(logits, 2, 0.5)


# --- TopK -----------------------------------------------------------------------------


def test_processor_worked_by_hand(TopK):
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    for ids in (torch.tensor([[5]]), torch.tensor([[7, 8, 9]])):
        with expect.unchanged(scores=scores, ids=ids):
            got = TopK(2)(ids, scores)
        expect.same(got, [[-INF, 3.0, 2.0]], "TopK(2)(ids, [[1, 3, 2]])")


def test_processor_keeps_nothing_of_earlier_calls(TopK):
    """Longer ids and a smaller vocabulary first, as where it serves two models."""
    processor = TopK(3)
    first = processor(torch.tensor([[7, 8, 9]]), torch.tensor([[1.0, 3.0]]))
    expect.same(first, [[1.0, 3.0]], "TopK(3)(ids, [[1, 3]])")
    got = processor(torch.tensor([[5]]), torch.tensor([[1.0, 3.0, 2.0, 0.0]]))
    call = "TopK(3), called with [[1, 3]] and then with [[1, 3, 2, 0]],"
    hint = "It should keep nothing of the first call."
    expect.same(got, [[1.0, 3.0, 2.0, -INF]], call, hint)


def test_processor_refuses_a_negative_top_k_at_once(TopK):
    expect.rejects(ValueError, lambda: TopK(-1), "making TopK(-1)")


def test_two_processors_do_not_share_their_top_k(TopK):
    one, two = TopK(1), TopK(2)
    ids, scores = torch.tensor([[5]]), torch.tensor([[1.0, 3.0, 2.0]])
    expect.same(one(ids, scores), [[-INF, 3.0, -INF]], "TopK(1), beside a TopK(2),")
    expect.same(two(ids, scores), [[-INF, 3.0, 2.0]], "TopK(2), beside a TopK(1),")


@pytest.mark.parametrize("k", [1, 5, 0, 1000])
@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_inside_generate_it_equals_top_k_of_generate(TopK, make, k):
    model = make()
    ids = torch.tensor([[5, 17, 40], [60, 61, 62]])
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 0}
    mask = torch.ones_like(ids)
    torch.manual_seed(1)
    oracle = model.generate(ids, attention_mask=mask, **{**options, "top_k": k})
    torch.manual_seed(1)
    got = model.generate(
        ids, attention_mask=mask, logits_processor=[TopK(k)], **options
    )
    expect.same_ids(got, oracle, f"generate with TopK({k}), same seed,")
