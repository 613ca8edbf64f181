"""Checks of lesson 06. Oracles: cases worked by hand, slow specifications, the library;
where transformers has no such rule, its published formula."""

import math

import pytest
import torch
from transformers import (
    EtaLogitsWarper,
    MinPLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import random_llama

top_p_filter = exercise("top_p_filter")
min_p_filter = exercise("min_p_filter")
typical_filter = exercise("typical_filter")
eta_filter = exercise("eta_filter")
top_n_sigma_filter = exercise("top_n_sigma_filter")
xtc_filter = exercise("xtc_filter")
Mirostat = exercise("Mirostat")
chain = exercise("chain")
commute = exercise("commute")

INF = float("inf")


def random_logits(batch=4, vocab=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vocab, generator=generator) * 3


def logits_of(*rows):
    """Logits whose softmax is these probabilities; a probability of 0 is -inf."""
    return torch.tensor(rows).log()


def kept(logits):
    return (logits > -INF).sum(-1).tolist()


def places(logits):
    """For each row the places of the tokens that stay."""
    return [row.nonzero()[:, 0].tolist() for row in logits > -INF]


def stays(got, logits, wanted, call, hint=""):
    """Exactly the tokens `wanted` stay, a list of places a row, with their logits."""
    expect.tensor(got, logits.shape, call, logits.dtype)
    if bool((got == 0).any()) and not bool((logits == 0).any()):
        hint = "A logit of 0 is no removal: -inf is."
    elif got.dtype.is_floating_point and bool(got.isnan().any()):
        hint = "There is a nan: 0 times inf, or inf minus inf?"
    found = places(got)
    assert found == wanted, f"{call} should keep the tokens {wanted}, not {found}." + (
        f" {hint}" if hint else ""
    )
    there = got > -INF
    assert torch.equal(got[there], logits[there]), (
        f"{call} changed the logits of tokens that stay: return filtered logits, not "
        "probabilities"
    )


def like(processor, function, call):
    """As transformers' processor, on random logits and on some with removed tokens."""
    for seed in range(3):
        logits = random_logits(seed=seed)
        if seed == 2:
            logits[:, ::3] = -INF
        oracle = processor(None, logits.clone())
        got = expect.tensor(function(logits.clone()), (4, 200), call)
        said = f"the numbers of tokens kept by {call}"
        hint = ""
        if seed == 2:
            said += ", where every third token was removed before"
            hint = (
                "Of a removed token p is 0 and the surprisal inf: 0 times inf is nan."
            )
        expect.value(kept(got), kept(oracle), said, hint)
        assert torch.equal(got, oracle), f"{call} keeps other tokens than transformers"


def leaves_input_alone(function, call):
    logits = random_logits(2, 12)
    with expect.unchanged(logits=logits):
        got = function(logits)
    expect.a_copy(got, logits, call)


# --- top_p_filter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_p", "wanted"),
    [(0.6, [0, 1]), (0.45, [0]), (0.95, [0, 1, 2]), (0.0, [0]), (1.0, [0, 1, 2])],
)
def test_nucleus_worked_by_hand(top_p_filter, top_p, wanted):
    logits = logits_of([0.5, 0.4, 0.1])
    got = top_p_filter(logits, top_p)
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (1, 3):
        if top_p == 0.6 and kept(got) == [1]:
            hint = "One token holds 0.5, less than 0.6: the one that crosses stays."
        elif kept(got) == [0]:
            hint = "At least one token stays."
    call = f"top_p_filter of the probabilities 0.5, 0.4, 0.1 with top_p={top_p}"
    stays(got, logits, [wanted], call, hint)


def test_nucleus_in_any_order_and_for_each_row(top_p_filter):
    logits = logits_of([0.1, 0.5, 0.4], [0.9, 0.06, 0.04])
    call = "top_p_filter of [0.1, 0.5, 0.4] and [0.9, 0.06, 0.04] with top_p=0.6"
    hint = "Bring the mask back into the order of the vocabulary: scatter."
    stays(top_p_filter(logits, 0.6), logits, [[1, 2], [0]], call, hint)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_nucleus_agrees_with_transformers(top_p_filter, top_p):
    call = f"top_p_filter(logits, {top_p})"
    like(TopPLogitsWarper(top_p), lambda x: top_p_filter(x, top_p), call)


def test_nucleus_is_the_smallest_set_with_that_mass(top_p_filter):
    logits = random_logits(8, 50, seed=3)
    probabilities = logits.double().softmax(-1)
    for top_p in (0.3, 0.8):
        call = f"top_p_filter(logits, {top_p})"
        got = expect.tensor(top_p_filter(logits, top_p), (8, 50), call)
        for row, p in zip(got, probabilities, strict=True):
            mine = sorted((p[row > -INF]).tolist(), reverse=True)
            assert sum(mine) >= top_p - 1e-6, f"{call} kept a mass of {sum(mine):.3f}"
            assert sum(mine[:-1]) < top_p + 1e-6, f"{call} kept more than needed"


def test_a_top_p_of_1_is_off(top_p_filter):
    logits = torch.tensor([[50.0, 0.0, -5.0]])
    hint = "The first probability rounds to 1: only leaving early keeps the others."
    call = "top_p_filter([[50, 0, -5]], 1)"
    stays(top_p_filter(logits, 1.0), logits, [[0, 1, 2]], call, hint)


def test_a_top_p_that_is_no_share_is_refused(top_p_filter):
    for top_p in (-0.1, 1.5):
        call = f"top_p_filter(logits, {top_p})"
        expect.rejects(
            ValueError, lambda p=top_p: top_p_filter(random_logits(), p), call
        )


def test_nucleus_leaves_its_input_alone(top_p_filter):
    for top_p in (0.5, 1.0):
        call = f"top_p_filter(logits, {top_p})"
        leaves_input_alone(lambda x, p=top_p: top_p_filter(x, p), call)


# --- min_p_filter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_p", "wanted"), [(0.5, [0, 1]), (0.1, [0, 1, 2]), (0.9, [0]), (0, [0, 1, 2])]
)
def test_floor_worked_by_hand(min_p_filter, min_p, wanted):
    logits = logits_of([0.5, 0.4, 0.1])
    got = min_p_filter(logits, min_p)
    hint = ""
    if isinstance(got, torch.Tensor) and min_p == 0.5 and kept(got) in ([1], [0]):
        hint = "The floor is min_p times the largest probability: 0.25."
    call = f"min_p_filter of the probabilities 0.5, 0.4, 0.1 with min_p={min_p}"
    stays(got, logits, [wanted], call, hint)


def test_each_row_has_a_floor_of_its_own(min_p_filter):
    logits = logits_of([0.25, 0.25, 0.25, 0.25], [0.85, 0.05, 0.05, 0.05])
    call = "min_p_filter of a flat and a peaked row with min_p=0.5"
    hint = "amax(-1, keepdim=True): the largest of each row."
    stays(min_p_filter(logits, 0.5), logits, [[0, 1, 2, 3], [0]], call, hint)


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
def test_floor_agrees_with_transformers(min_p_filter, min_p):
    call = f"min_p_filter(logits, {min_p})"
    like(MinPLogitsWarper(min_p), lambda x: min_p_filter(x, min_p), call)


def test_floor_is_a_distance_between_logits(min_p_filter):
    """p < m * p_max says logit < logit_max + ln m."""
    logits = random_logits(seed=5)
    line = logits.amax(-1, keepdim=True) + math.log(0.1)
    wanted = [row.nonzero()[:, 0].tolist() for row in logits >= line]
    call = "min_p_filter(logits, 0.1)"
    stays(min_p_filter(logits, 0.1), logits, wanted, call)


def test_a_min_p_that_is_no_share_is_refused(min_p_filter):
    for min_p in (-0.1, 1.5):
        call = f"min_p_filter(logits, {min_p})"
        expect.rejects(
            ValueError, lambda p=min_p: min_p_filter(random_logits(), p), call
        )


def test_floor_leaves_its_input_alone(min_p_filter):
    for min_p in (0.5, 0.0):
        call = f"min_p_filter(logits, {min_p})"
        leaves_input_alone(lambda x, p=min_p: min_p_filter(x, p), call)


# --- typical_filter -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "typical_p", "wanted"),
    [
        ([0.6, 0.2, 0.2], 0.5, [0]),
        # Entropy 1.14; surprisals 0.69, 1.2, 1.9, 3.0: the second is the nearest.
        ([0.5, 0.3, 0.15, 0.05], 0.25, [1]),
        ([0.6, 0.2, 0.2], 1.0, [0, 1, 2]),
    ],
)
def test_typical_worked_by_hand(typical_filter, probabilities, typical_p, wanted):
    logits = logits_of(probabilities)
    got = typical_filter(logits, typical_p)
    hint = "The order is by |surprisal - entropy|, the nearest first."
    call = f"typical_filter of the probabilities {probabilities}, typical_p={typical_p}"
    stays(got, logits, [wanted], call, hint)


def test_the_likeliest_token_may_be_removed(typical_filter):
    # Entropy 2.05: the surprisal of the first is 1.13 below it, that of the second 0.44
    # below, that of the others 1.35 above.
    logits = logits_of([0.4, 0.2] + [0.0333] * 12)
    got = typical_filter(logits, 0.15)
    call = "typical_filter of 0.4, 0.2 and twelve times 0.033, typical_p=0.15"
    hint = "The likeliest says less than one would expect: it has no right to stay."
    stays(got, logits, [[1]], call, hint)


@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.95])
def test_typical_agrees_with_transformers(typical_filter, typical_p):
    call = f"typical_filter(logits, {typical_p})"
    like(TypicalLogitsWarper(typical_p), lambda x: typical_filter(x, typical_p), call)


def test_a_typical_p_of_1_is_off(typical_filter):
    logits = torch.tensor([[50.0, 0.0, -5.0]])
    hint = "The first probability rounds to 1: only leaving early keeps the others."
    call = "typical_filter([[50, 0, -5]], 1)"
    stays(typical_filter(logits, 1.0), logits, [[0, 1, 2]], call, hint)


def test_a_typical_p_that_is_no_mass_is_refused(typical_filter):
    for typical_p in (0, -0.5, 1.5):
        call = f"typical_filter(logits, {typical_p})"
        expect.rejects(
            ValueError, lambda p=typical_p: typical_filter(random_logits(), p), call
        )


def test_typical_leaves_its_input_alone(typical_filter):
    for typical_p in (0.5, 1.0):
        call = f"typical_filter(logits, {typical_p})"
        leaves_input_alone(lambda x, p=typical_p: typical_filter(x, p), call)


# --- eta_filter -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "epsilon", "wanted"),
    [
        ([0.25, 0.25, 0.25, 0.25], 0.64, [0, 1, 2, 3]),
        # Entropy 1.06, floor min(0.16, 0.4 * 0.345) = 0.138.
        ([0.6, 0.2, 0.15, 0.05], 0.16, [0, 1, 2]),
        # Entropy 0.39: exp(-H) is 0.67, so the floor is epsilon itself.
        ([0.9, 0.06, 0.04], 0.05, [0, 1]),
        ([0.9, 0.06, 0.04], 0, [0, 1, 2]),
    ],
)
def test_eta_worked_by_hand(eta_filter, probabilities, epsilon, wanted):
    logits = logits_of(probabilities)
    got = eta_filter(logits, epsilon)
    hint = "The floor is the smaller of epsilon and sqrt(epsilon) * exp(-entropy)."
    call = f"eta_filter of the probabilities {probabilities}, epsilon={epsilon}"
    stays(got, logits, [wanted], call, hint)


def test_eta_never_removes_the_likeliest(eta_filter):
    logits = logits_of([0.3, 0.28, 0.22, 0.2], [0.2, 0.2, 0.3, 0.3])
    got = eta_filter(logits, 0.99)
    call = "eta_filter with epsilon=0.99"
    expect.tensor(got, (2, 4), call)
    for row, best in ((0, [0]), (1, [2, 3])):
        for place in best:
            assert got[row, place] > -INF, f"{call} removed the likeliest of row {row}"


@pytest.mark.parametrize("epsilon", [0.0006, 0.01, 0.2])
def test_eta_agrees_with_transformers(eta_filter, epsilon):
    call = f"eta_filter(logits, {epsilon})"
    like(EtaLogitsWarper(epsilon), lambda x: eta_filter(x, epsilon), call)


def test_an_epsilon_that_is_no_probability_is_refused(eta_filter):
    for epsilon in (-0.1, 1.0):
        call = f"eta_filter(logits, {epsilon})"
        expect.rejects(
            ValueError, lambda e=epsilon: eta_filter(random_logits(), e), call
        )


def test_eta_leaves_its_input_alone(eta_filter):
    for epsilon in (0.1, 0.0):
        call = f"eta_filter(logits, {epsilon})"
        leaves_input_alone(lambda x, e=epsilon: eta_filter(x, e), call)


# --- top_n_sigma_filter ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "wanted"), [(0, [2]), (0.5, [2]), (1, [2]), (2, [1, 2]), (3, [0, 1, 2])]
)
def test_sigma_worked_by_hand(top_n_sigma_filter, n, wanted):
    logits = torch.tensor([[0.0, 2.0, 4.0]])
    got = top_n_sigma_filter(logits, n)
    hint = "Sigma is 1.63 (dividing by 3), so the line is at 4 - 1.63 n."
    stays(got, logits, [wanted], f"top_n_sigma_filter([[0, 2, 4]], {n})", hint)


def test_sigma_divides_by_the_number_of_tokens(top_n_sigma_filter):
    # Population sigma 1, sample sigma 1.41: 0 is below the line only for the first.
    logits = torch.tensor([[0.0, 2.0]])
    got = top_n_sigma_filter(logits, 1.9)
    hint = "Divide the squares by the number of tokens: correction=0."
    stays(got, logits, [[1]], "top_n_sigma_filter([[0, 2]], 1.9)", hint)


@pytest.mark.parametrize("n", [0.3, 1.0, 1.7])
def test_sigma_is_that_of_torch(top_n_sigma_filter, n):
    logits = random_logits(seed=1) + 5
    sigma = logits.std(-1, correction=0, keepdim=True)
    wanted = places(
        logits.masked_fill(logits < logits.amax(-1)[:, None] - n * sigma, -INF)
    )
    call = f"top_n_sigma_filter of random logits with n={n}"
    stays(top_n_sigma_filter(logits, n), logits, wanted, call)


@pytest.mark.parametrize("n", [0.3, 1.0, 1.7])
def test_removed_tokens_do_not_count(top_n_sigma_filter, n):
    whole = random_logits(2, 30, seed=1) + 5
    sigma = whole.std(-1, correction=0, keepdim=True)
    wanted = places(
        whole.masked_fill(whole < whole.amax(-1)[:, None] - n * sigma, -INF)
    )
    holes = torch.cat([whole, torch.full((2, 90), -INF)], dim=-1)
    got = top_n_sigma_filter(holes, n)
    call = f"top_n_sigma_filter of rows with 90 removed tokens more, n={n}"
    hint = "Mean and sigma are those of the finite logits."
    stays(got, holes, wanted, call, hint)


def test_each_row_has_its_own_sigma(top_n_sigma_filter):
    logits = torch.tensor([[0.0, 2.0, 4.0], [0.0, 20.0, 24.0]])
    call = "top_n_sigma_filter([[0, 2, 4], [0, 20, 24]], 1)"
    stays(top_n_sigma_filter(logits, 1), logits, [[2], [1, 2]], call)


def test_temperature_does_not_change_what_stays(top_n_sigma_filter):
    logits = random_logits(seed=7)
    wanted = kept(top_n_sigma_filter(logits, 1.0))
    assert all(1 <= number < 200 for number in wanted), (
        f"top_n_sigma_filter(logits, 1) kept {wanted} of 200 tokens"
    )
    for temperature in (0.5, 2.0, 10.0):
        got = kept(top_n_sigma_filter(logits / temperature, 1.0))
        call = f"the numbers of tokens kept at temperature {temperature}"
        expect.value(got, wanted, call, "Work on logits, before any softmax.")


def test_a_negative_number_of_sigmas_is_refused(top_n_sigma_filter):
    call = "top_n_sigma_filter(logits, -1)"
    expect.rejects(ValueError, lambda: top_n_sigma_filter(random_logits(), -1), call)


def test_sigma_leaves_its_input_alone(top_n_sigma_filter):
    call = "top_n_sigma_filter(logits, 1)"
    leaves_input_alone(lambda x: top_n_sigma_filter(x, 1), call)


# --- xtc_filter -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [(0.1, [2, 3]), (0.2, [1, 2, 3]), (0.4, [0, 1, 2, 3]), (0.9, [0, 1, 2, 3])],
)
def test_exclusion_worked_by_hand(xtc_filter, threshold, wanted):
    logits = logits_of([0.5, 0.3, 0.15, 0.05])
    got = xtc_filter(logits, threshold, 1.0)
    hint = "The least likely of the likely tokens stays, and all below the threshold."
    call = f"xtc_filter of 0.5, 0.3, 0.15, 0.05 with threshold={threshold}, chance 1"
    stays(got, logits, [wanted], call, hint)


def test_exclusion_for_each_row(xtc_filter):
    logits = logits_of([0.05, 0.5, 0.3, 0.15], [0.94, 0.02, 0.02, 0.02])
    got = xtc_filter(logits, 0.1, 1.0)
    call = "xtc_filter of two rows with threshold=0.1, chance 1"
    stays(got, logits, [[0, 3], [0, 1, 2, 3]], call, "Row 1 has one likely token.")


def test_without_a_chance_nothing_is_excluded(xtc_filter):
    logits = random_logits()
    got = xtc_filter(logits.clone(), 0.1, 0.0)
    expect.same(got, logits, "xtc_filter(logits, 0.1, probability=0)")


def test_the_draws_are_those_of_the_generator(xtc_filter):
    logits = logits_of([0.5, 0.3, 0.2]).expand(64, 3).clone()
    for chance in (0.3, 0.8):
        draws = torch.rand(64, 1, generator=torch.Generator().manual_seed(5))
        oracle = (draws[:, 0] < chance).tolist()
        got = xtc_filter(logits, 0.1, chance, torch.Generator().manual_seed(5))
        call = f"xtc_filter with probability={chance} and a generator"
        expect.tensor(got, (64, 3), call)
        hint = "One torch.rand(batch, 1, generator=generator) for all rows."
        expect.value((got[:, 0] == -INF).tolist(), oracle, f"{call}: rows cut", hint)


def test_values_of_xtc_that_make_no_sense_are_refused(xtc_filter):
    for threshold, chance in ((0, 0.5), (1.5, 0.5), (0.1, -0.1), (0.1, 1.1)):
        call = f"xtc_filter(logits, {threshold}, {chance})"
        expect.rejects(
            ValueError,
            lambda t=threshold, c=chance: xtc_filter(random_logits(), t, c),
            call,
        )


def test_exclusion_leaves_its_input_alone(xtc_filter):
    for chance in (1.0, 0.0):
        call = f"xtc_filter(logits, 0.1, {chance})"
        leaves_input_alone(lambda x, c=chance: xtc_filter(x, 0.1, c), call)


# --- Mirostat -------------------------------------------------------------------------


def test_steering_worked_by_hand(Mirostat):
    sampler = Mirostat(0.5)
    logits = logits_of([0.5, 0.25, 0.25])
    got = sampler.pick(logits)
    call = "Mirostat(0.5).pick of 0.5, 0.25, 0.25"
    expect.tensor(got, (1, 1), call, torch.int64)
    assert got.item() == 0, f"{call}: mu is 1 bit, so only token 0 can be drawn"
    hint = "Observed is 0 bits: mu = 1 - 0.1 * (0 - 0.5)."
    expect.same(sampler.mu, [[1.05]], f"{call}: mu afterwards", hint, 1e-4)
    hot = Mirostat(1.5, 1.0)  # mu is 3 bits: all stay
    token = hot.pick(logits).item()
    observed = 1.0 if token == 0 else 2.0
    call = f"mu after Mirostat(1.5, rate=1) drew token {token}, {observed:.0f} bit(s)"
    hint = "Bits: log2, not the natural logarithm."
    expect.same(hot.mu, [[3 - (observed - 1.5)]], call, hint, 1e-4)


def test_observed_is_measured_among_what_was_left(Mirostat):
    sampler = Mirostat(1.1, 1.0)  # mu is 2.2 bits
    logits = logits_of([0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1])
    token = sampler.pick(logits)
    call = "Mirostat(1.1).pick of two tokens with 0.25 and five with 0.1"
    expect.tensor(token, (1, 1), call, torch.int64)
    assert token.item() < 2, f"{call}: tokens of 3.3 bits are above mu = 2.2"
    hint = "Two tokens were left with 0.5 each: observed is 1 bit."
    expect.same(sampler.mu, [[2.3]], f"{call}: mu afterwards", hint, 1e-4)


def test_rows_are_steered_apart(Mirostat):
    sampler = Mirostat(0.5, 1.0)
    logits = logits_of([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25])
    got = sampler.pick(logits)
    expect.tensor(got, (2, 1), "Mirostat(0.5).pick of two rows", torch.int64)
    mu = expect.tensor(sampler.mu, (2, 1), "mu after two rows")
    expect.same(mu[:1], [[1.5]], "mu of row 0", "", 1e-4)
    expect.same(
        mu[1:],
        [[1 - (2.0 - 0.5)]],
        "mu of row 1, four tokens of 2 bits",
        "All four tie for the likeliest, so none is removed.",
        1e-4,
    )


def test_the_likeliest_stays_whatever_mu_is(Mirostat):
    sampler = Mirostat(0.01, 0.1)
    logits = random_logits(3, 50)
    for _ in range(5):
        got = sampler.pick(logits)
        call = "Mirostat(0.01).pick, where mu is below the surprisal of every token,"
        expect.same_ids(got, logits.argmax(-1, keepdim=True), call)


def test_draws_are_those_of_multinomial(Mirostat):
    logits = random_logits(3, 50)
    surprisal = -logits.log_softmax(-1) / math.log(2)
    for seed in range(5):
        kept_logits = logits.masked_fill(surprisal > 6.0, -INF)
        torch.manual_seed(seed)
        oracle = torch.multinomial(kept_logits.softmax(-1), 1)
        torch.manual_seed(seed)
        got = Mirostat(3.0).pick(logits)
        hint = "Cut at mu = 2 * target, softmax, one torch.multinomial for the batch."
        expect.same_ids(got, oracle, f"Mirostat(3).pick, seed {seed},", hint=hint)


def test_the_mean_surprisal_comes_to_the_target(Mirostat):
    """300 picks from one distribution, each measured here. In sum, the errors are what
    mu has moved, divided by the rate: the mean is off by at most 10 bits / (0.1 * 300),
    so 0.5 is never reached, whatever is drawn."""
    sampler, total = Mirostat(2.0, 0.1), 0.0
    logits = random_logits(1, 100, seed=2) / 3
    surprisal = -logits.log_softmax(-1) / math.log(2)
    mu = 4.0
    for _ in range(300):
        left = logits.masked_fill(surprisal > max(mu, surprisal.min().item()), -INF)
        token = sampler.pick(logits)
        expect.tensor(token, (1, 1), "Mirostat(2).pick", torch.int64)
        total += -left.log_softmax(-1)[0, token.item()].item() / math.log(2)
        mu = sampler.mu.item()
    assert abs(total / 300 - 2.0) < 0.5, (
        f"after 300 picks with target 2 bits the mean is {total / 300:.2f} bits"
    )


# --- chain ----------------------------------------------------------------------------


def test_filters_run_in_the_order_given(chain):
    one = chain(lambda x: x + 1, lambda x: x * 10)
    assert callable(one), "chain(a, b) should return a function"
    got = one(torch.tensor([[2.0]]))
    hint = "The first filter comes first: (2 + 1) * 10."
    expect.same(got, [[30.0]], "chain(x + 1, x * 10) of [[2]]", hint)


def test_a_chain_of_one_and_of_none(chain):
    logits = random_logits()
    expect.same(chain()(logits), logits, "chain()(logits)")
    expect.same(chain(lambda x: x / 2)(logits), logits / 2, "chain(x / 2)(logits)")


def test_a_chain_can_be_used_again(chain):
    one = chain(lambda x: x + 1, lambda x: x + 2, lambda x: x + 3)
    for _ in range(2):
        got = one(torch.tensor([[0.0]]))
        expect.same(got, [[6.0]], "chain of +1, +2, +3, used twice, of [[0]]")


def test_a_chain_equals_generate(chain):
    model = random_llama(eos_token_id=None)
    ids = torch.tensor([[5, 17, 40], [60, 61, 62]])
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    cut = chain(
        lambda x: x / 0.7,
        lambda x: TopPLogitsWarper(0.8)(None, x),
        lambda x: MinPLogitsWarper(0.2)(None, x),
    )
    for seed in range(5):
        torch.manual_seed(seed)
        oracle = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=True,
            temperature=0.7,
            top_k=0,
            top_p=0.8,
            min_p=0.2,
        )[:, -1:]
        torch.manual_seed(seed)
        got = torch.multinomial(cut(logits).softmax(-1), 1)
        call = f"a draw after chain(temperature, top-p, min-p), seed {seed},"
        expect.same_ids(got, oracle, call)


# --- commute --------------------------------------------------------------------------


def half(x):
    return x / 2


def test_orders_worked_by_hand(commute):
    cases = (
        (half, lambda x: x + 0, True),
        (half, lambda x: x.clamp(max=3), False),
        (lambda x: x.clamp(max=3), half, False),
    )
    for first, second, wanted in cases:
        got = commute(first, second, torch.tensor([[4.0]]))
        call = "commute of x / 2 and " + ("x + 0" if wanted else "x.clamp(max=3)")
        expect.value(got, wanted, f"{call} for [[4]]")


def test_temperature_and_the_filters(commute):
    logits = random_logits(seed=1)

    def top_p(x):
        return TopPLogitsWarper(0.9)(None, x)

    def fixed(x):
        lowest = x.topk(5).values[:, -1:]
        return x.masked_fill(x < lowest, -INF)

    expect.value(
        commute(half, top_p, logits), False, "commute of temperature and top-p"
    )
    hint = "-inf equals -inf; torch.allclose knows that."
    call = "commute of temperature and top-k"
    expect.value(commute(half, fixed, logits), True, call, hint)


def test_rounding_is_no_difference(commute):
    logits = random_logits()
    got = commute(lambda x: x / 3, lambda x: x * 7, logits)
    expect.value(got, True, "commute of x / 3 and x * 7", "Use torch.allclose.")
