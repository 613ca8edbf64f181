"""Checks of lesson 15. Oracles: cases worked by hand, the model with its later layers
taken out, sums over all paths, exact optima, a fine grid, and slow obvious loops."""

import copy
import itertools
import math
import random

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
    rows = torch.tensor([[0.0, -200.0, -400.0], [300.0, 300.0, -300.0]])
    expect.same(
        entropy(rows),
        [0.0, math.log(2)],
        "entropy of the logits (0, -200, -400) and (300, 300, -300)",
        "A probability may be 0 in float32 though its logit is finite.",
        1e-4,
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
    for n in (5, 500):
        row = torch.linspace(0, 3, n)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            given = row.to(dtype)[None]
            p = given[0].double().softmax(0)
            call = f"entropy of {n} {dtype} logits"
            got = entropy(given)
            expect.tensor(got, (1,), call, torch.float32)
            wanted = [-(p * p.log()).sum().item()]
            expect.same(got, wanted, call, "float() before the softmax.", 5e-5)


def test_entropy_leaves_its_argument_alone(entropy):
    logits = logits_of([0.5, 0.25, 0.25])
    with expect.unchanged(logits=logits):
        entropy(logits)


# --- fork_points ----------------------------------------------------------------------

SURE, COIN, OPEN = [9.0, -INF, -INF, -INF], [4.0, 4.0, -INF, -INF], [1.0] * 4
LIKELY, LEANING = ([math.log(p) for p in ps] for ps in ((9, 1), (2, 1, 1, 1)))
LIKELY += [-INF, -INF]  # 0.9, 0.1, 0, 0: 0.33 nats; LEANING is 0.4, 0.2, 0.2, 0.2: 1.33


def test_forks_worked_by_hand(fork_points):
    model = scripted([LIKELY, LEANING, COIN, SURE, OPEN, OPEN])
    got = fork_points(model, torch.tensor([[0, 1, 0, 1, 0, 2]]), 1.0)
    call = (
        "fork_points of 6 tokens, threshold 1, where the entropies behind them are "
        "0.33, 1.33, 0.69, 0, 1.39 and 1.39,"
    )
    hint = ""
    if got in ([1, 4], [1, 4, 5]):
        hint = "The logits behind token t - 1 chose token t."
    elif got == [2, 5, 6]:
        hint = "Nothing has been chosen behind the last token yet."
    elif got == [1, 3, 4]:
        hint = "Above the threshold, not below it."
    elif got == [1, 5]:
        hint = "How open the choice was, not how surprising the token is."
    expect.returned(got, list, call)
    expect.value(got, [2, 5], call, hint)


def test_an_entropy_equal_to_the_threshold_is_no_fork(fork_points):
    model = scripted([SURE, COIN, SURE, OPEN])
    got = fork_points(model, torch.tensor([[0, 0, 1, 0]]), 0.0)
    call = "fork_points with the threshold 0, where the entropies are 0, 0.69 and 0,"
    expect.returned(got, list, call)
    hint = "Above the threshold, not at it." if got == [1, 2, 3] else ""
    expect.value(got, [2], call, hint)


def test_the_threshold_is_in_nats(fork_points):
    model = scripted([COIN, OPEN, COIN])
    got = fork_points(model, torch.tensor([[0, 0, 1]]), 0.9)
    call = "fork_points with the threshold 0.9, where the entropies are 0.69 and 1.39,"
    hint = "ln 2 is 0.69 nats, though it is 1 bit." if got == [1, 2] else ""
    expect.value(got, [2], call, hint)


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
    if isinstance(got, tuple) and len(got) == 3:
        first = [expect.show(part)[1:].split(",")[0] for part in got]
        if first[0] == "0.375" and first[2] == "2":
            hint = "0.5 belongs to the bin that begins with it."
        elif first[0] == "0.625" and first[2] == "2":
            hint = "1 belongs to the last bin."
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
    expect.value(
        got, 0.7, call, "Each bin has its distance: none pays for another.", 1e-6
    )
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


# --- fit_temperature ------------------------------------------------------------------


def two_tokens(odds, right, wrong):
    """Rows whose first token is `odds` times as likely as the second; how many are
    right and wrong."""
    logits = torch.tensor([[math.log(odds), 0.0]] * (right + wrong))
    return logits, torch.tensor([0] * right + [1] * wrong)


@pytest.mark.parametrize(
    ("odds", "right", "wrong", "wanted"),
    [(9, 3, 1, 2.0), (3, 9, 1, 0.5), (4, 4, 1, 1.0), (2, 32, 1, 0.2), (32, 2, 1, 5.0)],
)
def test_the_temperature_worked_by_hand(fit_temperature, odds, right, wrong, wanted):
    logits, targets = two_tokens(odds, right, wrong)
    with expect.unchanged(logits=logits, targets=targets):
        got = fit_temperature(logits, targets)
    call = (
        f"fit_temperature of {right + wrong} rows with the logits (ln {odds}, 0), of "
        f"which the first token is right in {right},"
    )
    hint = ""
    if isinstance(got, float) and wanted != 1:
        if abs(got * wanted - 1) < 0.02:
            hint = "That is 1/T: logits are divided by the temperature."
        elif wanted > 1 > got or wanted < 1 < got:
            hint = "A model that is too sure needs a higher temperature."
    expect.value(got, wanted, call, hint, 0.006 * wanted)
    expect.returned(got, float, call)


def test_a_best_temperature_beyond_the_limits_gives_the_limit(fit_temperature):
    # so close that their loss is not yet 0 in float32 at the lower limit
    logits = torch.tensor([[0.25, 0.0, -0.25], [0.0, 0.5, 0.25]])
    got = fit_temperature(logits, torch.tensor([0, 1]))
    call = "fit_temperature where the likeliest token is always right"
    expect.value(got, 0.05, call, "The lower limit is 0.05.", 0.0003)
    got = fit_temperature(logits, torch.tensor([2, 0]))
    call = "fit_temperature where the unlikeliest token is always right"
    expect.value(got, 20.0, call, "The upper limit is 20.", 0.12)


def rows_of_logits(seed, temperature, n=400, vocab=30):
    """Random logits, and targets drawn from them at this temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocab, generator=generator) * 3
    probs = (logits / temperature).softmax(-1)
    return logits, torch.multinomial(probs, 1, generator=generator)[:, 0]


def best_on_a_grid(logits, targets):
    """The T of the least loss among temperatures that are 0.1% apart."""
    grid = torch.exp(torch.arange(math.log(0.05), math.log(20), 0.001)).double()
    z = logits.double()
    best = []
    for part in grid.split(500):
        scaled = z / part[:, None, None]  # (temperatures, n, vocab)
        index = targets[None, :, None].expand(len(part), -1, 1)
        loss = scaled.logsumexp(-1) - scaled.gather(-1, index)[..., 0]
        best.append(loss.mean(-1))
    return grid[torch.cat(best).argmin()].item()


@pytest.mark.parametrize("temperature", [0.3, 1.7, 6.0])
def test_the_temperature_is_the_best_on_a_fine_grid(fit_temperature, temperature):
    logits, targets = rows_of_logits(1, temperature, n=60, vocab=12)
    wanted = best_on_a_grid(logits, targets)
    got = fit_temperature(logits, targets)
    call = f"fit_temperature of targets that were drawn at T = {temperature}"
    hint = f"The loss is least at {wanted:.3f}."
    expect.value(got, wanted, call, hint, 0.007 * wanted)


def test_at_the_fitted_temperature_entropy_and_surprisal_are_equal(fit_temperature):
    logits, targets = rows_of_logits(2, 2.5)
    logprobs = (logits.double() / fit_temperature(logits, targets)).log_softmax(-1)
    expected = -(logprobs.exp() * logprobs).sum(-1).mean().item()
    found = -logprobs.gather(-1, targets[:, None]).mean().item()
    call = "the mean entropy at the temperature of fit_temperature"
    hint = "That is the mean surprisal there; the two are equal at the best T."
    expect.value(expected, found, call, hint, 0.02)


def test_divided_logits_have_a_divided_temperature(fit_temperature):
    logits, targets = rows_of_logits(3, 1.5, n=100)
    whole, parts = (
        fit_temperature(logits, targets),
        fit_temperature(logits / 4, targets),
    )
    call = f"fit_temperature of logits / 4, where that of the logits is {whole:.3f},"
    expect.value(parts, whole / 4, call, "", 0.01 * whole / 4)


def test_a_constant_on_all_logits_changes_no_temperature(fit_temperature):
    logits, targets = two_tokens(9, 3, 1)
    got = fit_temperature(
        logits + torch.tensor([[50.0], [-50.0], [7.0], [0.0]]), targets
    )
    expect.value(got, 2.0, "fit_temperature of shifted logits", "", 0.012)


def test_logits_of_any_dtype_are_fitted(fit_temperature):
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        logits, targets = two_tokens(16, 4, 1)
        got = fit_temperature(logits.to(dtype), targets)
        call = f"fit_temperature of {dtype} logits (ln 16, 0), right in 4 of 5,"
        expect.value(got, 2.0, call, "", 0.02)
    logits, targets = rows_of_logits(4, 1.7, n=60, vocab=12)
    logits = (logits + 100).bfloat16()  # products with them are coarse
    wanted = best_on_a_grid(logits, targets)
    got = fit_temperature(logits, targets)
    call = "fit_temperature of random bfloat16 logits"
    expect.value(got, wanted, call, "float() first.", 0.007 * wanted)


# --- logit_lens -----------------------------------------------------------------------


def two_rows():
    return torch.tensor([[5, 17, 40, 8, 61], [33, 90, 12, 7, 55]])


def trained(make, **config):
    """A random model of 3 layers, its norms no longer those of a new one: with a weight
    of 1 norming twice would change nothing."""
    layers = {"num_hidden_layers" if make is random_llama else "n_layer": 3}
    model = make(**layers, **config)
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += torch.randn(len(weight), generator=generator) * 0.4
    return model


def cut(model, layers):
    """The same model without the layers behind the first few."""
    shorter = copy.deepcopy(model)
    body = shorter.base_model
    name = "layers" if hasattr(body, "layers") else "h"
    setattr(body, name, getattr(body, name)[:layers])
    shorter.config.num_hidden_layers = layers
    return shorter


def norm_of(model):
    body = model.base_model
    return body.norm if hasattr(body, "norm") else body.ln_f


def parallel(a, b):
    """Whether one is the other times a number."""
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9999


@MODELS
def test_the_last_row_is_what_the_model_says(logit_lens, make):
    model = trained(make)
    got = logit_lens(model, two_rows())
    call = f"logit_lens of a {make.__name__} of 3 layers and ids (2, 5)"
    expect.tensor(got, (4, 2, 5, 97), call)
    with torch.no_grad():
        output = model(two_rows(), output_hidden_states=True)
        head, norm = model.get_output_embeddings(), norm_of(model)
        last, before = output.hidden_states[-1], output.hidden_states[-2]
        if torch.allclose(got[-1], head(norm(last)), atol=1e-3):
            hint = "The last of hidden_states is normed already: not twice."
        elif torch.allclose(got[-1], head(norm(before)), atol=1e-3):
            hint = "That is the state behind the last layer but one."
        elif torch.allclose(got[0], output.logits, atol=1e-3):
            hint = "The first row is that of the embeddings."
        else:
            hint = ""
    expect.same(got[-1], output.logits, f"{call}: the last row", hint, 1e-4)


@MODELS
def test_a_row_is_what_the_model_says_without_its_later_layers(logit_lens, make):
    model = trained(make)
    got = logit_lens(model, two_rows())
    call = f"logit_lens of a {make.__name__}"
    expect.tensor(got, (4, 2, 5, 97), call)
    with torch.no_grad():
        states = model(two_rows(), output_hidden_states=True).hidden_states
        head, norm = model.get_output_embeddings(), norm_of(model)
        for layers in range(3):
            wanted = cut(model, layers)(two_rows()).logits
            hint = f"A model of {layers} layers with the same weights says that."
            if torch.allclose(got[layers], head(states[layers]), atol=1e-3):
                hint = "The norm is missing: it stands before the head."
            elif torch.allclose(
                got[layers], head(norm(norm(states[layers]))), atol=1e-3
            ):
                hint = "Norm each state once."
            elif make is random_llama and parallel(got[layers][0, 1], wanted[0, 1]):
                hint = "Right but for a factor: each state has statistics of its own."
            expect.same(got[layers], wanted, f"{call}: row {layers}", hint, 1e-4)


@MODELS
def test_the_lens_of_one_row_and_one_token(logit_lens, make):
    model, ids = trained(make), torch.tensor([[9]])
    got = logit_lens(model, ids)
    call = "logit_lens of one token"
    expect.tensor(got, (4, 1, 1, 97), call)
    with torch.no_grad():
        for layers in (0, 2, 3):
            wanted = cut(model, layers)(ids).logits
            expect.same(got[layers], wanted, f"{call}: row {layers}", "", 1e-4)


@MODELS
def test_the_lens_of_a_bfloat16_model_is_float32(logit_lens, make):
    model = trained(make).to(torch.bfloat16)
    got = logit_lens(model, two_rows())
    call = "logit_lens of a bfloat16 model"
    expect.tensor(got, (4, 2, 5, 97), call, torch.float32)
    with torch.no_grad():
        wanted = model(two_rows()).logits.float()
    expect.same(got[-1], wanted, f"{call}: the last row", "", 0.1)


@MODELS
def test_the_lens_runs_the_model_once_without_gradients(logit_lens, make):
    model, seen = trained(make), []
    model.base_model.register_forward_pre_hook(
        lambda *_: seen.append(torch.is_grad_enabled())
    )
    ids = two_rows()
    with expect.unchanged(ids=ids):
        got = logit_lens(model, ids)
    expect.returned(got, torch.Tensor, "logit_lens")
    assert len(seen) == 1, (
        f"logit_lens should run the model once, not {len(seen)} times: one call with "
        "output_hidden_states=True gives the states of all layers"
    )
    gradients = seen[0] or got.requires_grad
    assert not gradients, "logit_lens should use torch.no_grad()"


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


@MODELS
def test_the_lens_leaves_the_model_as_it_was(logit_lens, make):
    model = trained(make).to(torch.bfloat16)
    with torch.no_grad():
        model(
            two_rows(), output_hidden_states=True
        )  # transformers sets hooks of its own
    config, hooks = model.config.to_dict(), hooks_of(model)
    logit_lens(model, two_rows())
    assert hooks_of(model) == hooks, (
        "logit_lens left a hook on the model: remove() it, in a finally"
    )
    assert model.dtype == torch.bfloat16, (
        f"logit_lens made a {model.dtype} model of a bfloat16 one: float() of the "
        "result, not of the model"
    )
    changed = [k for k, v in model.config.to_dict().items() if config.get(k) != v]
    assert not changed, (
        f"logit_lens changed {', '.join(changed)} in the config of the model: give it "
        "to the call"
    )


# --- attention_rollout ----------------------------------------------------------------


def layer(*heads):
    """Attention (1, heads, seq, seq)."""
    return torch.tensor([heads])


def test_rollout_worked_by_hand(attention_rollout):
    one = layer([[1.0, 0.0], [0.5, 0.5]])
    got = attention_rollout((one,))
    call = "attention_rollout of one layer [[1, 0], [0.5, 0.5]]"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (1, 2, 2):
        if got[0, 0, 0].item() > 1.5:
            hint = "The rows of A + I add up to 2."
        elif abs(got[0, 1, 0].item() - 0.5) < 1e-6:
            hint = "Half of each place is the place itself: M = A/2 + I/2."
    expect.same(got, [[[1.0, 0.0], [0.25, 0.75]]], call, hint, 1e-6)
    expect.tensor(got, (1, 2, 2), call, torch.float32)
    got = attention_rollout((one, one))
    call = "attention_rollout of two layers [[1, 0], [0.5, 0.5]]"
    expect.same(got, [[[1.0, 0.0], [0.4375, 0.5625]]], call, "", 1e-6)


def test_later_layers_multiply_from_the_left(attention_rollout):
    first = layer([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])  # place 1 reads place 0
    second = layer([[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]])  # then 2 reads place 1
    got = attention_rollout((first, second))
    call = (
        "attention_rollout where place 1 reads place 0 in the first layer, and place 2 "
        "reads place 1 in the second,"
    )
    wanted = [[[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]]
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (1, 3, 3) and not got[0, 2, 0]:
        hint = "The second layer reads what the first has mixed: M2 @ M1, not M1 @ M2."
    expect.same(got, wanted, call, hint, 1e-6)


def test_rollout_takes_the_mean_of_the_heads(attention_rollout):
    got = attention_rollout([layer([[1.0, 0], [1.0, 0]], [[1.0, 0], [0, 1.0]])])
    call = "attention_rollout of one layer whose two heads read 1 and 0 of place 0"
    expect.same(got, [[[1.0, 0.0], [0.25, 0.75]]], call, "The mean of the heads.", 1e-6)


def random_attentions(layers, batch, heads, seq, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, batch, heads, seq, seq, generator=generator) * 2
    future = torch.ones(seq, seq).triu(1).bool()
    return scores.masked_fill(future, -INF).softmax(-1).unbind(0)


def sum_over_paths(attentions, row, end, start):
    """What comes from token `start` into place `end`, path by path."""
    means = [a[row].double().mean(0).tolist() for a in attentions]
    total, seq = 0.0, len(means[0])
    for middle in itertools.product(range(seq), repeat=len(means) - 1):
        steps = itertools.pairwise([start, *middle, end])  # from the embeddings up
        share = 1.0
        for mean, (below, above) in zip(means, steps, strict=True):
            share *= (mean[above][below] + (above == below)) / 2
        total += share
    return total


def test_rollout_is_the_sum_over_all_paths(attention_rollout):
    attentions = random_attentions(3, 2, 2, 4, seed=0)
    got = attention_rollout(attentions)
    call = "attention_rollout of 3 random causal layers, 2 rows, 2 heads, 4 tokens,"
    wanted = [
        [[sum_over_paths(attentions, b, i, j) for j in range(4)] for i in range(4)]
        for b in range(2)
    ]
    expect.same(got, wanted, call, "", 1e-5)


def test_the_rollout_of_each_place_adds_up_to_1(attention_rollout):
    for dtype in (torch.float32, torch.bfloat16):
        attentions = [a.to(dtype) for a in random_attentions(6, 1, 3, 7, seed=1)]
        kept = [a.clone() for a in attentions]
        got = attention_rollout(attentions)
        call = f"attention_rollout of 6 {dtype} layers"
        expect.tensor(got, (1, 7, 7), call, torch.float32)
        expect.same(got.sum(-1), [[1.0] * 7], f"{call}: the sum of each row", "", 0.02)
        for was, now in zip(kept, attentions, strict=True):
            assert torch.equal(was, now), f"{call} changed its argument: work on a copy"


def eighths(layers, heads, seq, seed):
    """Causal attention in eighths, which bfloat16 holds exactly: each row of it still
    adds up to 1."""
    bits, made = random.Random(seed), []
    for _ in range(layers):
        attention = torch.zeros(1, heads, seq, seq)
        for head, place in itertools.product(range(heads), range(seq)):
            for _ in range(8):
                attention[0, head, place, bits.randrange(place + 1)] += 1 / 8
        made.append(attention.bfloat16())
    return made


def test_half_precision_attention_is_multiplied_in_float32(attention_rollout):
    attentions = eighths(8, 3, 6, seed=2)
    identity = torch.eye(6, dtype=torch.float64)
    exact = identity
    for attention in attentions:
        mean = sum(attention[0].double().unbind(0)) / 3
        exact = (mean + identity) / 2 @ exact
    got = attention_rollout(tuple(attentions))
    call = "attention_rollout of 8 bfloat16 layers"
    expect.same(got, exact[None].float(), call, "float() first.", 1e-4)


def test_no_layer_is_refused(attention_rollout):
    for none in ((), []):
        expect.rejects(
            ValueError,
            lambda none=none: attention_rollout(none),
            f"attention_rollout({none})",
        )


# --- token_ranks ----------------------------------------------------------------------


def test_ranks_worked_by_hand(token_ranks):
    for token, wanted in ((3, 1), (1, 2), (2, 2), (0, 4)):
        model = scripted([[2.0, 5.0, 5.0, 9.0], [5.0, 9.0, 2.0, 5.0]])
        got = token_ranks(model, torch.tensor([[1, token]]))
        call = (
            f"token_ranks of [1, {token}], the logits behind the 1 being [2, 5, 5, 9],"
        )
        hint = ""
        if isinstance(got, torch.Tensor) and got.shape == (1, 1):
            n = got.item()
            if (wanted, n) == (1, 0):
                hint = "The likeliest token has rank 1."
            elif wanted == 2 and n == 3:
                hint = "Equal tokens share the better rank: count what is larger."
            elif (wanted, n) == (4, 3):
                hint = "Three tokens are more probable, two of them equally so."
            elif (wanted, n) == (1, 2):
                hint = "The logits behind token t - 1 are those for token t."
            elif (wanted, n) in ((1, 4), (4, 1)):
                hint = "The likeliest token has rank 1, not the unlikeliest."
        expect.same(got, [[wanted]], call, hint)
        expect.tensor(got, (1, 1), call, torch.int64)


def test_each_row_and_place_has_its_own_rank(token_ranks):
    table = [[9.0, 8, 7, 6], [1.0, 2, 3, 4], [5.0, 7, 6, 8], [0.0, 0, 0, 0]]
    ids = torch.tensor([[2, 0, 0, 0], [1, 3, 2, 1], [0, 1, 3, 3]])
    with expect.unchanged(ids=ids):
        got = token_ranks(scripted(table), ids)
    call = f"token_ranks of {ids.tolist()} with the logits {table}"
    expect.same(got, [[1, 4, 4], [4, 2, 2], [2, 1, 1]], call)


def test_tokens_that_are_all_equal_have_rank_1(token_ranks):
    got = token_ranks(scripted([[3.0] * 5] * 3), torch.tensor([[0, 2, 4]]))
    call = "token_ranks where all logits are equal"
    expect.same(got, [[1, 1]], call, "No token is more probable than another.")


def test_ranks_reach_into_the_tail(token_ranks):
    logits = [0.0, -150.0, -200.0, -300.0, -INF]
    for dtype in (torch.float32, torch.float16):
        for token in range(5):
            model = scripted([logits, logits], dtype)
            got = token_ranks(model, torch.tensor([[0, token]]))
            call = f"token_ranks of [0, {token}] with {dtype} logits {logits}"
            hint = "Compare logits: these probabilities are 0 in float32."
            expect.same(got, [[token + 1]], call, hint)


def test_near_logits_are_not_equal(token_ranks):
    logits = [30.0, 30.0003, 30.0006, 30.0009]
    for token in range(4):
        got = token_ranks(scripted([logits, logits]), torch.tensor([[0, token]]))
        call = f"token_ranks of [0, {token}] with the logits {logits}"
        hint = "Compare them as they are: in half precision they are equal."
        expect.same(got, [[4 - token]], call, hint)


def test_one_token_has_no_rank(token_ranks):
    got = token_ranks(scripted([[1.0, 2.0]]), torch.tensor([[0], [1]]))
    expect.tensor(got, (2, 0), "token_ranks of two rows of one token", torch.int64)


@MODELS
def test_ranks_of_a_model_are_those_of_a_sorted_list(token_ranks, make):
    model = make(seed=2)
    got = token_ranks(model, two_rows())
    call = f"token_ranks of a {make.__name__}"
    wanted = []
    for row in two_rows().tolist():
        ranks = []
        for place in range(1, len(row)):
            with torch.no_grad():
                logits = model(torch.tensor([row[:place]])).logits[0, -1].tolist()
            order = sorted(range(97), key=lambda i, z=logits: -z[i])
            ranks.append(order.index(row[place]) + 1)
        wanted.append(ranks)
    expect.same(got, wanted, call)


def test_ranks_come_from_one_call_without_gradients(token_ranks):
    model = scripted([[1.0, 2, 3], [3.0, 2, 1], [0.0, 1, 0]])
    token_ranks(model, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    called_once(model, "token_ranks")
