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
from course.kit.words import counted
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


def stays(got, logits, wanted, call, why="", hints=()):
    """Exactly the tokens `wanted` stay, a list of places a row, with their logits.

    why: explains what is wanted. hints: (places that stay, what that comes from) for
    results that only one mistake gives.
    """
    expect.tensor(got, logits.shape, call, logits.dtype)
    found = places(got)
    if found != wanted:
        if bool((got == 0).any()) and not bool((logits == 0).any()):
            why = "A logit of 0 is no removal: -inf is."
        elif bool(got.isnan().any()):
            why = "There is a nan: 0 times inf, or inf minus inf?"
        else:
            why = dict((repr(x), hint) for x, hint in hints).get(repr(found), why)
        raise AssertionError(
            f"{call} {_in_words(wanted, found)}." + (why and f" {why}")
        )
    there = got > -INF
    changed = there & (got != logits)
    if changed.any():
        row, token = changed.nonzero()[0].tolist()
        raise AssertionError(
            f"{call}: the logit of token {token} of row {row}, which stays, should be "
            f"{logits[row, token].item():.6g} as it was given, not "
            f"{got[row, token].item():.6g}.{_whose_law(got)}"
        )


def _whose_law(got) -> str:
    """What to add where the numbers that came back are a softmax, or its logarithm."""
    for numbers, name in ((got, "probabilities"), (got.exp(), "log-probabilities")):
        if (numbers.masked_fill(got == -INF, 0).sum(-1) - 1).abs().max() < 1e-3:
            return f" These are {name}: return the logits themselves."
    return ""


def _in_words(wanted, found) -> str:
    """What should stay and what does; of long rows, the first that is wrong."""
    if max(map(len, wanted + found)) <= 12 and len(wanted) <= 4:
        return f"should keep the tokens {wanted}, not {found}"
    row = next(n for n, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
    token = min(set(wanted[row]) ^ set(found[row]))
    wish = "stay" if token in wanted[row] else "go"
    return (
        f"should keep {counted(len(wanted[row]), 'token')} of row {row}, not "
        f"{len(found[row])}; the first that is wrong is token {token}, which should "
        f"{wish}"
    )


def like(processor, function, call, nothing_left=""):
    """As transformers' processor, on random logits and on some with removed tokens.

    nothing_left: what to say where a row with removed tokens loses all others, too.
    """
    for seed in range(3):
        logits = random_logits(seed=seed)
        said, why = call, ""
        if seed == 2:
            logits[:, ::3] = -INF
            said += ", where every third token was removed before,"
            why = "Nothing but the removed tokens is new here."
        oracle = processor(None, logits.clone())
        got = expect.tensor(function(logits.clone()), (4, 200), said)
        if seed == 2 and kept(got) == [0] * 4:
            why = nothing_left or why
        elif kept(got) == [0] * 4:
            why = "At least one token stays."
        stays(got, logits, places(oracle), said, why)


HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
IN_FLOAT32 = "Compute in float32: logits.float()."


OF_NAN = "Of a removed token p is 0 and the surprisal inf: 0 times inf is nan."


def real_size(dtype):
    """As many logits as the model of the lessons has tokens, in half precision."""
    return random_logits(2, 49152, seed=11).to(dtype)


def as_in_float32(function, logits, remove, call):
    """The tokens stay that stay when the same logits are float32."""
    wanted = places(logits.masked_fill(remove, -INF))
    call = f"{call} of 49,152 {str(logits.dtype).removeprefix('torch.')} logits"
    stays(function(logits.clone()), logits, wanted, call, IN_FLOAT32)


def smallest_mass(function, logits, share, order, call):
    """The tokens that come first in `order` stay, a mass of `share`, and no more."""
    call = f"{call} of 49,152 {str(logits.dtype).removeprefix('torch.')} logits"
    got = expect.tensor(function(logits.clone()), logits.shape, call, logits.dtype)
    for row, p, last in zip(
        got > -INF, logits.double().softmax(-1), order, strict=True
    ):
        mass, edge = p[row].sum().item(), last[row].max() if row.any() else -1
        inside = p[row & (last < edge)].sum().item()
        assert share - 1e-4 <= mass < share + 1e-4 + mass - inside, (
            f"{call} kept {counted(int(row.sum()), 'token')} with a mass of "
            f"{mass:.4f}. {IN_FLOAT32}"
        )


def leaves_input_alone(function, call):
    logits = random_logits(2, 20)
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
    hints = [([[]], "At least one token stays.")]
    if top_p == 0.6:
        why = "Token 0 holds 0.5, less than 0.6: the one that crosses stays."
        hints.append(([[0]], why))
        hints.append(([[0, 1, 2]], "Tokens 0 and 1 hold 0.9: that is enough."))
    if top_p == 0.45:
        hints.append(([[0, 1]], "Token 0 holds 0.5: that is enough."))
    call = f"top_p_filter of the probabilities 0.5, 0.4, 0.1 with top_p={top_p}"
    stays(top_p_filter(logits, top_p), logits, [wanted], call, "", hints)


def test_nucleus_in_any_order_and_for_each_row(top_p_filter):
    logits = logits_of([0.1, 0.5, 0.4], [0.9, 0.06, 0.04])
    call = "top_p_filter of [0.1, 0.5, 0.4] and [0.9, 0.06, 0.04] with top_p=0.6"
    got = expect.tensor(top_p_filter(logits, 0.6), (2, 3), call)
    back = "into the order of the vocabulary: scatter."
    hint = f"Bring the mask back {back}"
    ordered = logits.sort(dim=-1, descending=True).values
    if torch.equal(got, ordered.masked_fill(got == -INF, -INF)):
        hint = f"The logits that came back are in sorted order: bring the result {back}"
    hints = [
        ([[0, 1], [0]], hint),
        ([[1, 2], [0, 1]], "Row 1 has one token that holds 0.6: each row its own."),
    ]
    stays(got, logits, [[1, 2], [0]], call, "", hints)


def _at_the_border(found, number, share) -> str:
    """What to say where `found` of four equal tokens stay, not `number`."""
    if found == number + 1:
        mass = f"With {counted(number, 'token')} the mass is {share}"
        return f"{mass}: no more is needed."
    if found == 4:
        return "The smallest set: of equal tokens, too, no more than needed."
    return ""


def test_a_mass_that_is_reached_exactly_is_enough(top_p_filter):
    for share, number in ((0.25, 1), (0.5, 2), (0.75, 3)):
        call = f"top_p_filter of four probabilities of 0.25 with top_p={share}"
        got = expect.tensor(top_p_filter(torch.zeros(1, 4), share), (1, 4), call)
        why = _at_the_border(kept(got)[0], number, share)
        expect.value(kept(got)[0], number, f"the number of tokens kept by {call}", why)


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
    stays(top_p_filter(logits, 1.0), logits, [[0, 1, 2]], call, "", [([[0]], hint)])


@HALVES
def test_nucleus_of_half_precision(top_p_filter, dtype):
    logits = real_size(dtype)
    for top_p in (0.5, 0.95):
        smallest_mass(
            lambda x, p=top_p: top_p_filter(x, p),
            *(logits, top_p, -logits.double(), f"top_p_filter(logits, {top_p})"),
        )


def test_a_top_p_outside_0_to_1_is_refused(top_p_filter):
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
    why = f"The floor is min_p times the largest probability: {min_p * 0.5:g}."
    call = f"min_p_filter of the probabilities 0.5, 0.4, 0.1 with min_p={min_p}"
    stays(min_p_filter(logits, min_p), logits, [wanted], call, why)


def test_each_row_has_a_floor_of_its_own(min_p_filter):
    logits = logits_of([0.25, 0.25, 0.25, 0.25], [0.85, 0.05, 0.05, 0.05])
    call = "min_p_filter of a flat and a peaked row with min_p=0.5"
    hint = "amax(-1, keepdim=True): the largest of each row."
    hints = [([[], [0]], hint)]
    stays(min_p_filter(logits, 0.5), logits, [[0, 1, 2, 3], [0]], call, "", hints)


def test_a_token_at_the_floor_stays(min_p_filter):
    two = torch.tensor([[1.0, 1.0, 0.0]])
    why = "Two tie for the likeliest, and neither is below the floor."
    stays(min_p_filter(two, 1), two, [[0, 1]], "min_p_filter([[1, 1, 0]], 1)", why)
    # Token 1 has 0.375 times the probability of token 0, to the last bit of float32.
    logits = torch.tensor([[0.9808292388916016, 0.0, -0.01917076110839844]])
    p = logits.softmax(-1)
    if p[0, 1] == 0.375 * p[0, 0]:
        call = "min_p_filter of 0.51, 0.1908, 0.187 with min_p=0.375"
        call = call.replace("0.51, 0.1908, 0.187", ", ".join(f"{x:.4f}" for x in p[0]))
        why = "Token 1 is at the floor, not below it."
        stays(min_p_filter(logits, 0.375), logits, [[0, 1]], call, why)


def test_a_min_p_of_0_is_off(min_p_filter):
    logits = torch.tensor([[0.0, -200.0]])
    why = "Nothing is below a floor of 0, not even a probability of 0."
    stays(
        min_p_filter(logits, 0), logits, [[0, 1]], "min_p_filter([[0, -200]], 0)", why
    )


@HALVES
def test_floor_of_half_precision(min_p_filter, dtype):
    logits = real_size(dtype)
    for min_p in (0.0001, 0.3):
        p = logits.double().softmax(-1)
        as_in_float32(
            lambda x, m=min_p: min_p_filter(x, m),
            *(logits, p < min_p * p.amax(-1, keepdim=True)),
            f"min_p_filter(logits, {min_p})",
        )


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


def test_a_min_p_outside_0_to_1_is_refused(min_p_filter):
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
        # In bits, entropy 1.75; surprisals 1, 2, 3, 3: token 1 first, then token 0.
        ([0.5, 0.25, 0.125, 0.125], 0.5, [0, 1]),
        ([0.6, 0.2, 0.2], 1.0, [0, 1, 2]),
    ],
)
def test_typical_worked_by_hand(typical_filter, probabilities, typical_p, wanted):
    logits = logits_of(probabilities)
    got = typical_filter(logits, typical_p)
    why = "The order is by |surprisal - entropy|, the nearest first."
    call = f"typical_filter of the probabilities {probabilities}, typical_p={typical_p}"
    hints = []
    if wanted == [0, 1]:
        crosses = "Token 1 comes first and holds 0.25, less than 0.5: the one that "
        hints.append(([[1]], f"{crosses}crosses stays."))
    stays(got, logits, [wanted], call, why, hints)


def test_a_typical_mass_that_is_reached_exactly_is_enough(typical_filter):
    if torch.zeros(1, 4).log_softmax(-1).exp().tolist() != [[0.25] * 4]:
        return  # this machine rounds otherwise
    for share, number in ((0.25, 1), (0.5, 2), (0.75, 3)):
        call = f"typical_filter of four probabilities of 0.25, typical_p={share}"
        got = expect.tensor(typical_filter(torch.zeros(1, 4), share), (1, 4), call)
        why = _at_the_border(kept(got)[0], number, share)
        expect.value(kept(got)[0], number, f"the number of tokens kept by {call}", why)


@HALVES
def test_typical_of_half_precision(typical_filter, dtype):
    logits = real_size(dtype)
    surprisal = -logits.double().log_softmax(-1)
    entropy = (surprisal.neg().exp() * surprisal).sum(-1, keepdim=True)
    for typical_p in (0.5, 0.95):
        smallest_mass(
            lambda x, t=typical_p: typical_filter(x, t),
            *(logits, typical_p, (surprisal - entropy).abs()),
            f"typical_filter(logits, {typical_p})",
        )


def test_the_likeliest_token_may_be_removed(typical_filter):
    # Entropy 2.05: the surprisal of the first is 1.13 below it, that of the second 0.44
    # below, that of the others 1.35 above.
    logits = logits_of([0.4, 0.2] + [0.0333] * 12)
    got = typical_filter(logits, 0.15)
    call = "typical_filter of 0.4, 0.2 and twelve times 0.033, typical_p=0.15"
    hint = "The likeliest says less than one would expect: it has no right to stay."
    hints = [([[0]], hint), ([[0, 1]], hint)]
    stays(got, logits, [[1]], call, "", hints)


@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.95])
def test_typical_agrees_with_transformers(typical_filter, typical_p):
    call = f"typical_filter(logits, {typical_p})"
    like(
        TypicalLogitsWarper(typical_p),
        lambda x: typical_filter(x, typical_p),
        call,
        OF_NAN,
    )


def test_a_typical_p_of_1_is_off(typical_filter):
    logits = torch.tensor([[50.0, 0.0, -5.0]])
    hint = "The first probability rounds to 1: only leaving early keeps the others."
    call = "typical_filter([[50, 0, -5]], 1)"
    got = typical_filter(logits, 1.0)
    stays(got, logits, [[0, 1, 2]], call, "", [([[0]], hint)])


def test_a_typical_p_of_0_or_less_or_above_1_is_refused(typical_filter):
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
    ("probabilities", "epsilon", "wanted", "floor"),
    [
        ([0.25, 0.25, 0.25, 0.25], 0.64, [0, 1, 2, 3], "min(0.64, 0.8 * 0.25) = 0.2"),
        ([0.6, 0.2, 0.15, 0.05], 0.16, [0, 1, 2], "min(0.16, 0.4 * 0.345) = 0.138"),
        ([0.9, 0.06, 0.04], 0.05, [0, 1], "min(0.05, 0.22 * 0.67) = 0.05"),
        ([0.9, 0.06, 0.04], 0, [0, 1, 2], "0"),
    ],
)
def test_eta_worked_by_hand(eta_filter, probabilities, epsilon, wanted, floor):
    logits = logits_of(probabilities)
    got = eta_filter(logits, epsilon)
    why = "The floor is the smaller of epsilon and sqrt(epsilon) * exp(-entropy): "
    call = f"eta_filter of the probabilities {probabilities}, epsilon={epsilon}"
    stays(got, logits, [wanted], call, f"{why}{floor}.")


def test_an_epsilon_of_0_is_off(eta_filter):
    logits = torch.tensor([[0.0, -200.0]])
    why = "Nothing is below a floor of 0, not even a probability of 0."
    stays(eta_filter(logits, 0), logits, [[0, 1]], "eta_filter([[0, -200]], 0)", why)


def at_an_eighth():
    """Logits of which token 1 has the probability 0.125 to the last bit of float32 (and
    no less in float64), or None on a machine that rounds otherwise."""
    logits = torch.tensor([[1.8852174282073975, 0.0, -0.8862144947052002]])
    both = logits.softmax(-1)[0, 1].item(), logits.log_softmax(-1).exp()[0, 1].item()
    return logits if both == (0.125, 0.125) else None


def test_a_token_at_the_floor_of_eta_stays(eta_filter):
    logits = at_an_eighth()
    if logits is not None:
        call = "eta_filter of 0.8235, 0.125, 0.0515 with epsilon=0.125"
        why = "Token 1 is at the floor, not below it."
        stays(eta_filter(logits, 0.125), logits, [[0, 1]], call, why)


def test_eta_never_removes_the_likeliest(eta_filter):
    for p, best in (([0.3, 0.28, 0.22, 0.2], [0]), ([0.2, 0.2, 0.3, 0.3], [2, 3])):
        call = f"eta_filter of {p}, epsilon=0.99"
        got = expect.tensor(eta_filter(logits_of(p), 0.99), (1, 4), call)
        for place in best:
            assert got[0, place] > -INF, (
                f"{call} removed token {place}, the likeliest: it stays, however high "
                "the floor is"
            )
    for epsilon in (0.9, 0.999999, 1 - 1e-9):
        call = f"eta_filter of 1,000 equal logits, epsilon={epsilon}"
        even = torch.full((1, 1000), 1.5)
        got = expect.tensor(eta_filter(even, epsilon), (1, 1000), call)
        why = "All tie for the likeliest; rounding alone puts them below the floor."
        expect.value(kept(got)[0], 1000, f"the number of tokens kept by {call}", why)


@HALVES
def test_eta_of_half_precision(eta_filter, dtype):
    logits = real_size(dtype)
    logprobs = logits.double().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1, keepdim=True)
    for epsilon in (0.0006, 0.01):
        eta = (epsilon**0.5 * (-entropy).exp()).clamp(max=epsilon)
        as_in_float32(
            lambda x, e=epsilon: eta_filter(x, e),
            *(logits, logprobs.exp() < eta, f"eta_filter(logits, {epsilon})"),
        )


@pytest.mark.parametrize("epsilon", [0.0006, 0.01, 0.2])
def test_eta_agrees_with_transformers(eta_filter, epsilon):
    call = f"eta_filter(logits, {epsilon})"
    like(EtaLogitsWarper(epsilon), lambda x: eta_filter(x, epsilon), call, OF_NAN)


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
    for start in (0, 10_000):
        logits = torch.tensor([[0.0, 2.0, 4.0]]) + start
        hint = "Sigma is 1.63 (dividing by 3), so the line is at "
        hint += f"{start + 4} - 1.63 n."
        if start:
            hint += " Square the distances from the mean, not the logits: a difference "
            hint += "of squares that large has no digits left."
        call = f"top_n_sigma_filter([[{start}, {start + 2}, {start + 4}]], {n})"
        stays(top_n_sigma_filter(logits, n), logits, [wanted], call, hint)


def test_a_logit_at_the_line_stays(top_n_sigma_filter):
    cases = (
        (([0.0, 2.0],), 2, [[0, 1]], "Sigma is 1, so the line is at 2 - 2 = 0."),
        (([3.0, 3.0, 1.0],), 0, [[0, 1]], "With n=0 the line is at the largest logit."),
        (([0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0],), 0, [[1, 7]], ""),
    )
    for rows, n, wanted, why in cases:
        logits = torch.tensor(rows)
        call = f"top_n_sigma_filter({expect.show(logits)}, {n})"
        stays(top_n_sigma_filter(logits, n), logits, wanted, call, why)


@HALVES
def test_sigma_of_half_precision(top_n_sigma_filter, dtype):
    logits = real_size(dtype)
    x = logits.double()
    for n in (0.5, 1.0):
        line = x.amax(-1, keepdim=True) - n * x.std(-1, correction=0, keepdim=True)
        call = f"top_n_sigma_filter(logits, {n})"
        as_in_float32(lambda x, n=n: top_n_sigma_filter(x, n), logits, x < line, call)


def test_sigma_divides_by_the_number_of_tokens(top_n_sigma_filter):
    # Population sigma 1, sample sigma 1.41: 0 is below the line only for the first.
    hint = "Divide the squares by the number of tokens: correction=0."
    for removed in ([], [-INF]):
        logits = torch.tensor([[0.0, 2.0, *removed]])
        call = f"top_n_sigma_filter({expect.show(logits)}, 1.9)"
        got = top_n_sigma_filter(logits, 1.9)
        stays(got, logits, [[1]], call, "", [([[0, 1]], hint)])


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
    holes[1] = holes[1].roll(20)  # each row has its holes at other places
    wanted[1] = [place + 20 for place in wanted[1]]
    got = top_n_sigma_filter(holes, n)
    call = "top_n_sigma_filter of rows to which 90 removed tokens (-inf) were added, "
    call += f"n={n},"
    hint = "Mean and sigma are those of the finite logits."
    same_shape = isinstance(got, torch.Tensor) and got.shape == holes.shape
    if same_shape and places(got)[0] == wanted[0]:
        hint = "Which logits are finite differs from row to row."
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
        p = (logits / temperature).softmax(-1)
        line = p.amax(-1) - p.std(-1, correction=0)
        of_probabilities = (p >= line[:, None]).sum(-1).tolist()
        hint = "Distances and sigma are divided by the temperature alike."
        if got == of_probabilities:
            hint = "Work on logits, before any softmax."
        expect.value(got, wanted, call, hint)


def test_a_negative_number_of_sigmas_is_refused(top_n_sigma_filter):
    call = "top_n_sigma_filter(logits, -1)"
    expect.rejects(ValueError, lambda: top_n_sigma_filter(random_logits(), -1), call)


def test_sigma_leaves_its_input_alone(top_n_sigma_filter):
    call = "top_n_sigma_filter(logits, 1)"
    leaves_input_alone(lambda x: top_n_sigma_filter(x, 1), call)


# --- xtc_filter -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [(0.1, [2, 3]), (0.2, [1, 2, 3]), (0.4, [0, 1, 2, 3]), (1, [0, 1, 2, 3])],
)
def test_exclusion_worked_by_hand(xtc_filter, threshold, wanted):
    logits = logits_of([0.5, 0.3, 0.15, 0.05])
    hint = "The least likely of the likely tokens stays, and all below the threshold."
    call = f"xtc_filter of 0.5, 0.3, 0.15, 0.05 with threshold={threshold}, chance 1"
    try:
        got = xtc_filter(logits, threshold, 1.0)
    except ValueError as error:
        if threshold != 1:
            raise
        raise AssertionError(
            f"{call} raised ValueError ({error}): a threshold of 1 is allowed, "
            "and then no row has two likely tokens"
        ) from None
    stays(got, logits, [wanted], call, hint)


def test_exclusion_for_each_row(xtc_filter):
    logits = logits_of([0.05, 0.5, 0.3, 0.15], [0.94, 0.02, 0.02, 0.02])
    got = xtc_filter(logits, 0.1, 1.0)
    call = "xtc_filter of 0.05, 0.5, 0.3, 0.15 and 0.94, 0.02, 0.02, 0.02 with "
    call += "threshold=0.1, chance 1"
    why = "Row 1 has one likely token."
    hints = [([[0, 3], x], why) for x in ([], [0], [1, 2, 3])]
    stays(got, logits, [[0, 3], [0, 1, 2, 3]], call, "", hints)


def test_a_token_at_the_threshold_is_likely(xtc_filter):
    logits = at_an_eighth()
    if logits is not None:
        call = "xtc_filter of 0.8235, 0.125, 0.0515 with threshold=0.125, chance 1"
        why = "0.125 is at the threshold, so two tokens are likely: the first one goes."
        stays(xtc_filter(logits, 0.125, 1.0), logits, [[1, 2]], call, why)


@HALVES
def test_exclusion_in_half_precision(xtc_filter, dtype):
    logits = real_size(dtype)
    p = logits.double().softmax(-1)
    for threshold in (0.001, 0.000005):
        last = p.masked_fill(p < threshold, INF).amin(-1, keepdim=True)
        call = f"xtc_filter(logits, {threshold}, 1) of 49,152 {dtype} logits"
        got = expect.tensor(
            xtc_filter(logits.clone(), threshold, 1.0), (2, 49152), call, dtype
        )
        there, ties = got > -INF, p == last  # one of these stays, or several
        for row in range(2):
            right = (there[row] == (p[row] < threshold)) | ties[row]
            wrong = counted(int((~right).sum()), "token")
            assert right.all(), f"{call} is wrong about {wrong}. {IN_FLOAT32}"
            assert (there & ties)[row].any(), f"{call} kept none of the likely tokens"


def test_without_a_chance_nothing_is_excluded(xtc_filter):
    logits = random_logits()
    got = xtc_filter(logits.clone(), 0.1, 0.0)
    expect.same(got, logits, "xtc_filter(logits, 0.1, probability=0)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_draws_are_those_of_the_generator(xtc_filter, dtype):
    """Two calls with one generator, for 64 rows of which each third has one likely
    token. Such a row stays, and has its number all the same."""
    logits = logits_of([0.5, 0.3, 0.2]).expand(64, 3).clone()
    logits[::3] = logits_of([0.94, 0.03, 0.03])
    logits = logits.to(dtype)
    name = str(dtype).removeprefix("torch.")
    for chance in (0.3, 0.8):
        generator = torch.Generator().manual_seed(5)
        mine = torch.Generator().manual_seed(5)
        before = []
        for which in ("first", "second"):
            state = generator.get_state()
            draws = torch.rand(64, 1, generator=generator)[:, 0]
            torch.manual_seed(8)
            own = torch.rand(64, 1)[:, 0]
            torch.manual_seed(8)
            got = xtc_filter(logits, 0.1, chance, mine)
            call = f"xtc_filter of 64 rows of {name} logits with probability={chance}, "
            call += f"the {which} call with a generator: the rows that are cut"
            expect.tensor(got, (64, 3), call)
            found = cut(got)
            hint = _of_draws(found, chance, state, own)
            if which == "second" and found == before:
                hint = "These are the rows of the first call again: draw from the "
                hint += (
                    "generator that was given, not from a copy, so that it moves on."
                )
            expect.value(found, _below(draws, chance), call, hint)
            before = found


def cut(got):
    """The rows whose first token went."""
    return (got[:, 0] == -INF).nonzero()[:, 0].tolist()


def _below(draws, chance):
    """The rows that these draws cut: each third has one likely token, and stays."""
    return [n for n, draw in enumerate(draws.tolist()) if draw < chance and n % 3]


def _of_draws(found, chance, state, own) -> str:
    """What to say of the rows that are cut, where only one mistake cuts just these."""

    def drawn(*size, dtype=torch.float32):
        generator = torch.Generator()
        generator.set_state(state)
        return torch.rand(*size, generator=generator, dtype=dtype).flatten()

    likely = [n for n in range(64) if n % 3]
    few = torch.ones(64)
    few[likely] = drawn(len(likely))
    if found == _below(few, chance):
        return "A row with one likely token takes a number, too, and does not use it."
    if found == _below(drawn(64, dtype=torch.float64), chance):
        return (
            "Draw in float32, whatever the logits are: a generator gives other numbers "
            "in float64."
        )
    if found == _below(own, chance):
        return "These are the draws without a generator: hand it on to torch.rand."
    if found in ([], likely):
        return (
            "Of the rows with two likely tokens all are cut, or none: each row takes a "
            "number of its own, and torch.rand(batch, 1, generator=generator) gives "
            "`batch` of them."
        )
    return ""


def test_without_a_generator_torch_draws(xtc_filter):
    logits = logits_of([0.5, 0.3, 0.2]).expand(64, 3).clone()
    for seed in (5, 6):
        torch.manual_seed(seed)
        draws = torch.rand(64, 1)[:, 0]
        torch.manual_seed(seed)
        got = xtc_filter(logits, 0.1, 0.5)
        call = f"xtc_filter with probability=0.5 after torch.manual_seed({seed})"
        expect.tensor(got, (64, 3), call)
        wanted = (draws < 0.5).nonzero()[:, 0].tolist()
        hint = "torch.rand with generator=None uses torch's own generator."
        expect.value(cut(got), wanted, f"{call}: the rows that are cut", hint)


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


def bits(number) -> str:
    return f"{number:.0f} bit{'s' * (round(number) != 1)}"


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
    call = f"mu after Mirostat(1.5, rate=1).pick of 0.5, 0.25, 0.25 drew token {token} "
    call += f"({bits(observed)})"
    hint = f"mu = 3 - 1 * ({observed:.0f} - 1.5)."
    mu = expect.tensor(hot.mu, (1, 1), call).item()
    if abs(mu - (3 - (observed * math.log(2) - 1.5))) < 1e-3:
        hint = "Bits: log2, not the natural logarithm."
    elif abs(mu - (3 - 0.1 * (observed - 1.5))) < 1e-3:
        hint = "The rate is 1 here."
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


def at_two_bits():
    """Logits of which tokens 1 and 2 have a surprisal of 2 bits to the last bit of
    float32 (and no more in float64), or None on a machine that rounds otherwise."""
    logits = torch.tensor([[0.6931471228599548, 0.0, 0.0]])
    nats = -logits.log_softmax(-1)[0, 1]
    ways = nats / math.log(2), nats / torch.tensor(2.0).log(), nats * math.log2(math.e)
    ways += (-logits.softmax(-1)[0, 1].log2(),)
    return logits if all(bits.item() == 2.0 for bits in ways) else None


def test_a_token_at_the_cut_stays(Mirostat):
    logits = at_two_bits()
    if logits is not None:
        sampler = Mirostat(1.0, 1.0)
        token = sampler.pick(logits)
        call = "Mirostat(1, rate=1).pick of 0.5, 0.25, 0.25"
        expect.tensor(token, (1, 1), call, torch.int64)
        observed = 2.0 if token.item() else 1.0
        hint = f"It drew token {token.item()} ({bits(observed)}). The tokens of 2 bits "
        hint += "are at mu, not above it."
        wanted = [[2 - (observed - 1)]]
        expect.same(sampler.mu, wanted, f"{call}: mu afterwards", hint, 1e-4)


def test_rows_are_steered_apart(Mirostat):
    sampler = Mirostat(0.5, 1.0)
    logits = logits_of([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25])
    got = sampler.pick(logits)
    expect.tensor(got, (2, 1), "Mirostat(0.5).pick of two rows", torch.int64)
    mu = expect.tensor(sampler.mu, (2, 1), "mu after two rows")
    assert mu[0] != mu[1], (
        f"row 0 drew 0 bits, row 1 drew 2, and mu is {mu[0].item():g} for both: each "
        "row has a cut of its own"
    )
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
        call = "Mirostat(0.01).pick, where mu is below the surprisal of every token,"
        try:
            got = sampler.pick(logits)
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise AssertionError(
                f"{call} raised RuntimeError ({error}): the likeliest token stays, "
                "whatever mu is"
            ) from None
        expect.same_ids(got, logits.argmax(-1, keepdim=True), call)


@pytest.mark.draws(false_alarm=6.5e-9, smallest_error=0.08)
def test_draws_as_often_as_the_softmax_of_what_is_left(Mirostat, seed):
    """4,000 draws with p = 0.75 and p = 0.9, which may be 6 standard deviations off."""
    for p, rest in ((0.75, 0.25), (0.9, 0.1)):
        rows = logits_of([0.96 * rest, 0.96 * p, 0.04]).expand(4000, 3).clone()
        torch.manual_seed(seed)
        got = Mirostat(2.2).pick(rows)
        call = f"Mirostat(2.2).pick of 4,000 rows of {0.96 * rest:g}, {0.96 * p:g}, "
        call += "0.04"
        expect.tensor(got, (4000, 1), call, torch.int64)
        out = (got == 2).sum().item()
        assert not out, f"{call}: token 2 has 4.6 bits, above mu = 4.4, and was drawn"
        share = (got == 1).double().mean().item()
        assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / 4000), (
            f"{call}: token 1 should be drawn {p:.1%} of the time, not {share:.1%}"
        )


def test_the_cut_is_float32(Mirostat):
    for dtype in (torch.float16, torch.bfloat16):
        sampler = Mirostat(0.5)
        logits = torch.tensor([[0.0, -3.0, -3.0]], dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        call = f"Mirostat(0.5).pick of the {name} logits 0, -3, -3"
        sampler.mu = torch.tensor([[0.5]])  # bits: only token 0 stays
        expect.tensor(sampler.pick(logits), (1, 1), call, torch.int64)
        hint = "0.5 - 0.1 * (0 - 0.5), in float32."
        expect.same(sampler.mu, [[0.55]], f"{call}: mu from 0.5", hint, 1e-5)
        first = Mirostat(5.025, 1.0)  # a cut of 10.05 bits is none in bfloat16
        first.pick(torch.zeros(1, 1024, dtype=dtype))
        call = f"Mirostat(5.025, 1).pick of 1,024 equal {name} logits, 10 bits: mu"
        expect.same(first.mu, [[10.05 - (10 - 5.025)]], call, IN_FLOAT32, 1e-4)


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
    hint = ""
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        hint = {
            21: "The first filter comes first: (2 + 1) * 10.",
            20: "Each filter gets what the one before gave: (2 + 1) * 10.",
            3: "The second filter was not applied. Is the `return` inside the loop?",
        }.get(got.item(), "")
    expect.same(got, [[30.0]], "chain(x + 1, x * 10) of [[2]]", hint)


def test_a_chain_of_one_and_of_none(chain):
    logits = random_logits()
    got = chain()(logits)
    assert got is not None, (
        "chain()(logits) returned None: without a filter the logits come back as they "
        "are"
    )
    expect.same(got, logits, "chain()(logits)")
    expect.same(chain(lambda x: x / 2)(logits), logits / 2, "chain(x / 2)(logits)")


def test_a_filter_that_changes_nothing_is_not_the_end(chain):
    got = chain(lambda x: x + 0, lambda x: x * 10)(torch.tensor([[2.0]]))
    hint = "The filters behind one that changes nothing are applied, too."
    expect.same(got, [[20.0]], "chain(x + 0, x * 10) of [[2]]", hint)


def test_a_chain_can_be_used_again(chain):
    one = chain(lambda x: x + 1, lambda x: x + 2, lambda x: x + 3)
    for which in ("first", "second"):
        got = one(torch.tensor([[0.0]]))
        hint = ""
        again = which == "second" and isinstance(got, torch.Tensor)
        if again and got.tolist() == [[0.0]]:
            hint = "No filter was applied. An iterator is empty after its first use."
        call = f"the {which} call of one chain of +1, +2, +3 with [[0]]"
        expect.same(got, [[6.0]], call, hint)


def test_the_same_filter_can_stand_in_a_chain_twice(chain):
    def add(x):
        return x + 1

    got = chain(add, lambda x: x * 10, add)(torch.tensor([[2.0]]))
    expect.same(got, [[31.0]], "with add = x + 1, chain(add, x * 10, add) of [[2]]")
    got = chain(add, add)(torch.tensor([[2.0]]))
    expect.same(got, [[4.0]], "with add = x + 1, chain(add, add) of [[2]]")


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
    def at_most_3(x):
        return x.clamp(max=3)

    cases = (
        (half, lambda x: x + 0, [[4.0]], True, "Both orders give 2."),
        (half, at_most_3, [[4.0]], False, "The orders give 2 and 1.5."),
        (at_most_3, half, [[4.0]], False, "The orders give 1.5 and 2."),
        (half, at_most_3, [[4.0], [1.0]], False, "Row 0 differs: 2 and 1.5."),
        (half, at_most_3, [[1.0], [4.0]], False, "Row 1 differs: 2 and 1.5."),
        (half, at_most_3, [[3.01]], False, "1.505 and 1.5: that is no rounding."),
    )
    for first, second, logits, wanted, hint in cases:
        got = commute(first, second, torch.tensor(logits))
        call = "commute of x / 2 and " + ("x + 0" if wanted else "x.clamp(max=3)")
        expect.value(got, wanted, f"{call} for {expect.show(logits)}", hint)


def test_temperature_and_the_filters(commute):
    logits = random_logits(seed=1)

    def top_p(x):
        return TopPLogitsWarper(0.9)(None, x)

    def fixed(x):
        lowest = x.topk(5).values[:, -1:]
        return x.masked_fill(x < lowest, -INF)

    one, other = kept(top_p(half(logits))), kept(half(top_p(logits)))
    hint = f"One order keeps {one} tokens of the four rows, the other {other}."
    call = "commute of temperature 2 and top-p 0.9"
    expect.value(commute(half, top_p, logits), False, call, hint)
    hint = "Both orders remove the same tokens, and -inf equals -inf."
    call = "commute of temperature 2 and top-k 5"
    expect.value(commute(half, fixed, logits), True, call, hint)


def test_rounding_is_no_difference(commute):
    logits = random_logits()
    got = commute(lambda x: x / 3, lambda x: x * 7, logits)
    expect.value(got, True, "commute of x / 3 and x * 7", "Use torch.allclose.")
