"""Checks of lesson 15. Oracles: cases worked by hand, the model with its later layers
taken out, sums over all paths, exact optima, a fine grid, and slow obvious loops."""

import copy
import itertools
import math

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import ScriptedModel, random_gpt2, random_llama

entropy = exercise("entropy")
fork_points = exercise("fork_points")
reliability = exercise("reliability")
expected_calibration_error = exercise("expected_calibration_error")
fit_temperature = exercise("fit_temperature")
logit_lens = exercise("logit_lens")
attention_rollout = exercise("attention_rollout")
token_ranks = exercise("token_ranks")

INF, NAN = float("inf"), float("nan")
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


def logits_of(*rows):
    """Logits whose softmax gives these probabilities, moved by 3."""
    return torch.tensor(rows).log() + 3


def scripted(rows, dtype=torch.float32):
    """A model with logits rows[t] behind the token t of each row."""
    table = torch.tensor(rows, dtype=dtype)

    def script(ids):
        return table[: ids.shape[1]].expand(len(ids), -1, -1).clone()

    return ScriptedModel(script, vocab_size=table.shape[-1])


def called_once(model, what):
    assert len(model.calls) == 1, (
        f"{what} should call the model once, not {len(model.calls)} times: one call "
        "gives the logits of all places"
    )
    assert not model.calls[0].grad_enabled, f"{what} should use torch.no_grad()"


# --- entropy --------------------------------------------------------------------------


def test_entropy_worked_by_hand(entropy):
    got = entropy(logits_of([0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]))
    call = "entropy of (1/2, 1/4, 1/4) and of three equal ones"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (2,):
        if abs(got[0].item() - 1.5) < 1e-4:
            hint = "Those are bits: with the natural logarithm it is nats."
        elif abs(got[0].item() + 1.5 * math.log(2)) < 1e-4:
            hint = "The sum of p ln p is negative: a minus is missing."
        elif abs(got[0].item() - 1.5 * math.log(2) / 3) < 1e-4:
            hint = "The sum over the vocabulary, not the mean."
    expect.same(got, [1.5 * math.log(2), math.log(3)], call, hint, 1e-5)
    expect.tensor(got, (2,), call, torch.float32)


def test_a_token_that_cannot_come_adds_nothing(entropy):
    rows = torch.tensor([[0.0, 0.0, -INF, -INF], [5.0, -INF, -INF, -INF]])
    got = entropy(rows)
    hint = ""
    if isinstance(got, torch.Tensor) and got.isnan().any():
        hint = "0 times ln 0 is 0 times -inf, which is nan."
    call = "entropy of two equal tokens beside two with logits of -inf, and of one"
    expect.same(got, [math.log(2), 0.0], call, hint, 1e-6)


def test_logits_that_are_far_apart_give_no_nan(entropy):
    rows = torch.tensor([[0.0, -200.0, -400.0], [1e4, 1e4, -1e4]])
    expect.same(
        entropy(rows),
        [0.0, math.log(2)],
        "entropy of the logits (0, -200, -400) and (10000, 10000, -10000)",
        "A probability may be 0 in float32 though its logit is finite.",
        1e-5,
    )


def test_many_equal_tokens_have_the_logarithm_of_their_number(entropy):
    for n in (1, 7, 1000, 49152):
        call = f"entropy of {n} equal tokens"
        got = entropy(torch.full((2, n), 0.5))
        expect.same(got, [math.log(n)] * 2, call, "", 1e-3)


def test_entropy_keeps_all_dimensions_but_the_last(entropy):
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0)) * 2
    for given in (logits, logits[0], logits[0, 0]):
        call = f"entropy of logits of shape {tuple(given.shape)}"
        got = entropy(given.clone())
        expect.tensor(got, given.shape[:-1], call, torch.float32)
        wanted = []
        for row in given.reshape(-1, 11).double():
            p = [math.exp(x) for x in (row - row.logsumexp(0)).tolist()]
            wanted.append(-sum(x * math.log(x) for x in p))
        wanted = torch.tensor(wanted).reshape(given.shape[:-1])
        expect.same(got, wanted, call, "", 1e-4)


def test_entropy_of_half_precision_is_computed_in_float32(entropy):
    row = torch.linspace(0, 3, 500)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given = row.to(dtype)[None]
        p = given[0].double().softmax(0)
        call = f"entropy of 500 {dtype} logits"
        got = entropy(given)
        expect.tensor(got, (1,), call, torch.float32)
        wanted = [-(p * p.log()).sum().item()]
        expect.same(got, wanted, call, "float() before the softmax.", 1e-3)


def test_entropy_leaves_its_argument_alone(entropy):
    logits = logits_of([0.5, 0.25, 0.25])
    with expect.unchanged(logits=logits):
        entropy(logits)


# --- fork_points ----------------------------------------------------------------------

SURE, COIN, OPEN = [9.0, -INF, -INF, -INF], [4.0, 4.0, -INF, -INF], [1.0] * 4


def test_forks_worked_by_hand(fork_points):
    model = scripted([SURE, OPEN, COIN, OPEN, OPEN])
    got = fork_points(model, torch.tensor([[0, 0, 3, 1, 2]]), 1.0)
    call = (
        "fork_points of 5 tokens, threshold 1, where the entropies behind them are 0, "
        "1.39, 0.69, 1.39 and 1.39,"
    )
    hint = {
        (1, 3): "The logits behind token t - 1 chose token t.",
        (1, 3, 4): "The logits behind token t - 1 chose token t.",
        (2, 4, 5): "Nothing has been chosen behind the last token yet.",
        (1, 3, 5): "",
        (3,): "Above the threshold, not below it.",
    }.get(tuple(got) if isinstance(got, list) else (), "")
    expect.returned(got, list, call)
    expect.value(got, [2, 4], call, hint)


def test_an_entropy_equal_to_the_threshold_is_no_fork(fork_points):
    model = scripted([SURE, COIN, SURE, OPEN])
    got = fork_points(model, torch.tensor([[0, 0, 1, 0]]), 0.0)
    call = "fork_points with the threshold 0, where the entropies are 0, 0.69 and 0,"
    expect.value(got, [2], call, "Above the threshold, not at it.")


def test_the_threshold_is_in_nats(fork_points):
    model = scripted([COIN, OPEN, COIN])
    got = fork_points(model, torch.tensor([[0, 0, 1]]), 0.9)
    call = "fork_points with the threshold 0.9, where the entropies are 0.69 and 1.39,"
    expect.value(got, [2], call, "ln 2 is 0.69 nats, though it is 1 bit.")


def test_the_token_that_came_makes_no_difference(fork_points):
    for token in range(4):
        model = scripted([OPEN, SURE, COIN])
        got = fork_points(model, torch.tensor([[3, token, token]]), 1.0)
        expect.value(got, [1], f"fork_points of [3, {token}, {token}]")


def test_one_token_has_no_forks(fork_points):
    got = fork_points(scripted([OPEN]), torch.tensor([[2]]), -1.0)
    expect.value(got, [], "fork_points of one token", "Nothing chose the first token.")


def test_forks_are_plain_numbers_from_one_call(fork_points):
    model, ids = scripted([OPEN, OPEN, COIN, OPEN]), torch.tensor([[0, 1, 2, 3]])
    with expect.unchanged(ids=ids):
        got = fork_points(model, ids, 0.5)
    expect.value(got, [1, 2, 3], "fork_points of 4 tokens that were all open")
    for place in got:
        expect.returned(place, int, "each place in the list of fork_points")
    called_once(model, "fork_points")


@MODELS
def test_forks_of_a_model_are_those_of_a_slow_loop(fork_points, make):
    model, ids = make(seed=3), torch.tensor([[5, 17, 40, 8, 61, 33, 90, 12, 7, 55]])
    found = []
    for place in range(1, ids.shape[1]):
        with torch.no_grad():
            p = model(ids[:, :place]).logits[0, -1].double().softmax(0)
        found.append(-(p * p.log()).sum().item())
    ordered = sorted(found)
    threshold = (ordered[4] + ordered[5]) / 2
    wanted = [n for n, h in enumerate(found, 1) if h > threshold]
    call = f"fork_points of a {make.__name__}, threshold {threshold:.3f},"
    expect.value(fork_points(model, ids, threshold), wanted, call)


# --- reliability ----------------------------------------------------------------------


def three(got, call):
    expect.returned(got, tuple, call)
    assert len(got) == 3, f"{call} should return three tensors, not {len(got)}"
    return got


def bins_are(got, mean, accuracy, count, call, hint=""):
    """Compares what `reliability` returned, nan for nan."""
    names = ("the mean confidences", "the accuracies", "the counts")
    parts = zip(names, three(got, call), (mean, accuracy, count), strict=True)
    for name, part, wanted in reversed(list(parts)):
        what = f"{call}: {name}"
        if name == "the counts":
            expect.tensor(part, (len(count),), what, torch.int64)
            expect.same(part, wanted, what, hint)
            continue
        expect.tensor(part, (len(count),), what, torch.float32)
        empty = torch.tensor(wanted).isnan()
        assert part[empty].isnan().all(), (
            f"{what} should be nan for an empty bin, not {expect.show(part)}"
        )
        filled = part.masked_fill(empty, 0.0)
        expect.same(filled, torch.tensor(wanted).nan_to_num(), what, hint, 1e-6)


def test_reliability_worked_by_hand(reliability):
    confidence = torch.tensor([0.25, 0.75, 0.5, 1.0])
    correct = torch.tensor([False, False, True, True])
    with expect.unchanged(confidence=confidence, correct=correct):
        got = reliability(confidence, correct, 2)
    call = "reliability of [0.25, 0.75, 0.5, 1], the first two wrong, in 2 bins"
    hint = ""
    if isinstance(got, tuple) and len(got) == 3 and expect.show(got[2]) == "[2, 2]":
        hint = "0.5 belongs to the bin that begins with it."
    bins_are(got, [0.25, 0.75], [0.0, 2 / 3], [1, 3], call, hint)


def test_each_border_belongs_to_the_bin_above_it(reliability):
    confidence = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    correct = torch.tensor([True, False, True, False, True])
    got = reliability(confidence, correct, 4)
    call = "reliability of [0, 0.25, 0.5, 0.75, 1] in 4 bins"
    hint = "Bin i goes from i/bins up to, not including, (i+1)/bins; 1 is in the last."
    bins_are(
        got, [0.0, 0.25, 0.5, 0.875], [1.0, 0.0, 1.0, 0.5], [1, 1, 1, 2], call, hint
    )


def test_an_empty_bin_has_no_mean(reliability):
    got = reliability(torch.tensor([0.9, 0.8]), torch.tensor([True, False]), 4)
    call = "reliability of [0.9, 0.8] in 4 bins"
    bins_are(got, [NAN, NAN, NAN, 0.85], [NAN, NAN, NAN, 0.5], [0, 0, 0, 2], call)
    got = reliability(torch.tensor([]), torch.tensor([], dtype=torch.bool), 2)
    bins_are(got, [NAN] * 2, [NAN] * 2, [0, 0], "reliability of nothing in 2 bins")


def test_one_bin_holds_everything(reliability):
    confidence = torch.tensor([0.0, 1.0, 0.5, 0.5])
    got = reliability(confidence, torch.tensor([True, True, False, True]), 1)
    bins_are(got, [0.5], [0.75], [4], "reliability of [0, 1, 0.5, 0.5] in 1 bin")


def test_the_mean_confidence_is_not_the_middle_of_the_bin(reliability):
    confidence = torch.tensor([0.51, 0.52, 0.53])
    got = reliability(confidence, torch.tensor([True] * 3), 2)
    call = "reliability of [0.51, 0.52, 0.53] in 2 bins"
    bins_are(got, [NAN, 0.52], [NAN, 1.0], [0, 3], call)


def slow_bins(confidence, correct, bins):
    held = [[] for _ in range(bins)]
    for c, r in zip(confidence.double().tolist(), correct.tolist(), strict=True):
        held[min(int(c * bins), bins - 1)].append((c, r))
    means = [sum(c for c, _ in h) / len(h) if h else NAN for h in held]
    shares = [sum(r for _, r in h) / len(h) if h else NAN for h in held]
    return means, shares, [len(h) for h in held]


def drawn(n, seed):
    """n confidences that are on no border, and answers that are too often wrong."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator).clamp(1e-4, 1 - 1e-4)
    return confidence, torch.rand(n, generator=generator) < confidence**2


def test_reliability_is_that_of_a_slow_loop(reliability):
    for n, bins, seed in ((200, 7, 0), (500, 15, 1), (30, 100, 2)):
        confidence, correct = drawn(n, seed)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            given = confidence.to(dtype)
            if dtype == torch.bfloat16:
                given = given[(given.double() * bins % 1 - 0.5).abs() < 0.499]
            wanted = slow_bins(given, correct[: len(given)], bins)
            got = reliability(given, correct[: len(given)], bins)
            bins_are(got, *wanted, f"reliability of {n} {dtype} values in {bins} bins")


def test_what_is_no_confidence_is_refused(reliability):
    yes = torch.tensor([True, True])
    for confidence, correct, bins in (
        (torch.tensor([0.5, 1.5]), yes, 2),
        (torch.tensor([-0.25, 0.5]), yes, 2),
        (torch.tensor([NAN, 0.5]), yes, 2),
        (torch.tensor([0.5, 0.5]), yes, 0),
        (torch.tensor([0.5, 0.5]), yes, -1),
        (torch.tensor([0.5, 0.5, 0.5]), yes, 2),
        (torch.tensor([0.5]), yes, 2),
    ):
        call = f"reliability({expect.show(confidence)}, {expect.show(correct)}, {bins})"
        expect.rejects(
            ValueError,
            lambda a=confidence, b=correct, c=bins: reliability(a, b, c),
            call,
        )


# --- expected_calibration_error -------------------------------------------------------


def test_ece_worked_by_hand(expected_calibration_error):
    confidence = torch.tensor([0.25, 0.75, 0.5, 1.0])
    correct = torch.tensor([False, False, True, True])
    with expect.unchanged(confidence=confidence, correct=correct):
        got = expected_calibration_error(confidence, correct, 2)
    call = "expected_calibration_error of [0.25, 0.75, 0.5, 1], the first two wrong, "
    call += "in 2 bins"
    hint = ""
    if isinstance(got, float) and abs(got - 1 / 6) < 1e-6:
        hint = "Each bin counts with the share of all predictions that it holds."
    elif isinstance(got, float) and abs(got) < 1e-6:
        hint = "The distance of each bin: no bin pays for another."
    expect.value(got, 0.125, call, hint, 1e-6)
    expect.returned(got, float, call)


def test_an_empty_bin_does_not_count(expected_calibration_error):
    confidence = torch.tensor([0.9, 0.9, 0.1, 0.1])
    correct = torch.tensor([True, False, False, False])
    got = expected_calibration_error(confidence, correct, 10)
    hint = ""
    if isinstance(got, float) and math.isnan(got):
        hint = "An empty bin has no distance, and 0 times nan is nan."
    call = "expected_calibration_error of [0.9, 0.9, 0.1, 0.1] in 10 bins"
    expect.value(got, 0.25, call, hint, 1e-6)


def test_the_distance_has_no_sign(expected_calibration_error):
    confidence = torch.tensor([0.3, 0.7])
    got = expected_calibration_error(confidence, torch.tensor([True, False]), 2)
    call = "expected_calibration_error of [0.3, 0.7], right and wrong, in 2 bins"
    expect.value(got, 0.7, call, "The absolute value of each bin.", 1e-6)
    got = expected_calibration_error(confidence, torch.tensor([True, False]), 1)
    call = "expected_calibration_error of the same in 1 bin"
    expect.value(got, 0.0, call, "", 1e-6)


def test_ece_is_that_of_a_slow_loop(expected_calibration_error):
    for n, bins, seed in ((200, 7, 3), (400, 20, 4), (50, 100, 5)):
        confidence, correct = drawn(n, seed)
        wanted = sum(
            count / n * abs(share - mean)
            for mean, share, count in zip(
                *slow_bins(confidence, correct, bins), strict=True
            )
            if count
        )
        got = expected_calibration_error(confidence, correct, bins)
        call = f"expected_calibration_error of {n} random values in {bins} bins"
        expect.value(got, wanted, call, "", 1e-5)


def test_ece_of_nothing_and_of_nonsense_is_refused(expected_calibration_error):
    none, yes = torch.tensor([], dtype=torch.bool), torch.tensor([True])
    for confidence, correct, bins in (
        (torch.tensor([]), none, 3),
        (torch.tensor([1.5]), yes, 3),
        (torch.tensor([NAN]), yes, 3),
        (torch.tensor([0.5]), yes, 0),
        (torch.tensor([0.5]), none, 3),
    ):
        call = f"expected_calibration_error({expect.show(confidence)}, "
        call += f"{expect.show(correct)}, {bins})"
        expect.rejects(
            ValueError,
            lambda a=confidence, b=correct, c=bins: expected_calibration_error(a, b, c),
            call,
        )
