"""Wrong answers to lesson 06, and what the learner must be told of each."""

import math

import torch

from course.making.answers import reference, wrong

INF = float("inf")
top_p_filter = reference("top_p_filter")
min_p_filter = reference("min_p_filter")
typical_filter = reference("typical_filter")
eta_filter = reference("eta_filter")
top_n_sigma_filter = reference("top_n_sigma_filter")
xtc_filter = reference("xtc_filter")
Reference = reference("Mirostat")
chain_of = reference("chain")
commute_of = reference("commute")

# --- top_p_filter ---------------------------------------------------------------------

NUCLEUS = "test_nucleus_worked_by_hand"
ROWS = "test_nucleus_in_any_order_and_for_each_row"
EXACTLY = "test_a_mass_that_is_reached_exactly_is_enough"


def share(top_p):
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be from 0 to 1, got {top_p}")


@wrong("top_p_filter", NUCLEUS, "the one that crosses stays")
def without_the_one_that_crosses(logits, top_p):
    """`cumsum <= top_p`: the mass that stays is below top_p."""
    share(top_p)
    ordered, places = logits.sort(dim=-1, descending=True)
    keep = ordered.softmax(-1).cumsum(-1) <= max(top_p, 1e-9) + (top_p == 1)
    keep[:, 0] = True
    return logits.masked_fill(~keep.scatter(-1, places, keep), -INF)


@wrong("top_p_filter", NUCLEUS, "should keep the tokens [[0]], not [[]]")
def may_remove_all(logits, top_p):
    """With top_p=0 nothing stays, and the softmax of nothing is nan."""
    share(top_p)
    if top_p == 1:
        return logits.clone()
    ordered, places = logits.sort(dim=-1, descending=True)
    p = ordered.softmax(-1)
    remove = p.cumsum(-1) - p >= top_p
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@wrong("top_p_filter", ROWS, "order of the vocabulary: scatter")
def mask_not_scattered_back(logits, top_p):
    """The mask is in sorted order, the logits are not."""
    share(top_p)
    p = logits.sort(dim=-1, descending=True).values.softmax(-1)
    remove = p.cumsum(-1) - p >= top_p
    remove[:, 0] = False
    return logits.masked_fill(remove & (top_p < 1), -INF)


@wrong("top_p_filter", ROWS, "order of the vocabulary: scatter")
def returns_sorted_logits(logits, top_p):
    """The result is in sorted order: token ids are lost."""
    return top_p_filter(logits, top_p).sort(dim=-1, descending=True).values


@wrong("top_p_filter", NUCLEUS, "with top_p=0.45 should keep the tokens [[0]]")
def a_floor_for_probabilities(logits, top_p):
    """Keeps tokens with a probability above 1 - top_p: a floor, not a mass."""
    share(top_p)
    p = logits.softmax(-1)
    keep = (p > 1 - top_p) | (p == p.amax(-1, keepdim=True)) | (p >= 0.4)
    return logits.masked_fill(~keep, -INF)


@wrong("top_p_filter", NUCLEUS, "with top_p=0.6 should keep the tokens [[0, 1]]")
def least_likely_first(logits, top_p):
    """Sorted the wrong way round: the tail is kept."""
    share(top_p)
    if top_p == 1:
        return logits.clone()
    ordered, places = logits.sort(dim=-1)
    p = ordered.softmax(-1)
    remove = p.cumsum(-1) - p >= top_p
    remove[:, 0] = False
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@wrong("top_p_filter", "test_nucleus_agrees_with_transformers", "not probabilities")
def probabilities_come_back(logits, top_p):
    """Returns logarithms of renormalised probabilities."""
    return top_p_filter(logits, top_p).log_softmax(-1)


@wrong("top_p_filter", "test_a_top_p_that_is_no_share_is_refused", "-0.1")
def any_number_will_do(logits, top_p):
    """top_p=-0.1 passes as 0."""
    return top_p_filter(logits, min(max(top_p, 0), 1))


@wrong("top_p_filter", "test_nucleus_leaves_its_input_alone", "`logits` was changed")
def nucleus_in_place(logits, top_p):
    """Writes into the caller's logits."""
    return logits.copy_(top_p_filter(logits, top_p))


def nucleus(logits, top_p, beyond):
    """The reference, with the comparison as an argument."""
    share(top_p)
    if top_p == 1:
        return logits.clone()
    ordered, places = logits.float().sort(dim=-1, descending=True)
    p = ordered.softmax(-1)
    remove = beyond(p.cumsum(-1) - p, top_p)
    remove[:, 0] = False
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@wrong("top_p_filter", EXACTLY, "should be [1], not [2]")
def a_token_more_at_the_border(logits, top_p):
    """`before > top_p`: a mass that is just reached is taken as too little."""
    return nucleus(logits, top_p, lambda before, share: before > share)


@wrong("top_p_filter", EXACTLY, "of equal tokens, too, no more than needed")
def ties_kept_by_value(logits, top_p):
    """The logit of the nucleus's last token is the line: what ties with it stays."""
    line = top_p_filter(logits, top_p)
    line = line.masked_fill(line == -INF, INF)
    return logits.masked_fill(logits < line.amin(-1, keepdim=True), -INF)


@wrong("top_p_filter", ROWS, "each row its own")
def the_count_of_the_first_row(logits, top_p):
    """As many tokens of each row as the first row needs."""
    number = int((top_p_filter(logits[:1], top_p) > -INF).sum())
    best = logits.topk(number, dim=-1).indices
    return torch.full_like(logits, -INF).scatter(-1, best, logits.gather(-1, best))


@wrong("top_p_filter", "test_nucleus_of_half_precision", "Compute in float32")
def nucleus_in_the_dtype_given(logits, top_p):
    """A cumulative sum in bfloat16 stands still."""
    share(top_p)
    if top_p == 1:
        return logits.clone()
    ordered, places = logits.sort(dim=-1, descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    remove = torch.zeros_like(mass, dtype=torch.bool)
    remove[:, 1:] = mass[:, :-1] >= top_p
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@wrong("top_p_filter", "test_nucleus_of_half_precision", "should be torch.float16")
def nucleus_becomes_float32(logits, top_p):
    """Gives back float32 logits."""
    return top_p_filter(logits.float(), top_p)


# --- min_p_filter ---------------------------------------------------------------------

FLOOR = "test_floor_worked_by_hand"


def floor(logits, min_p, of):
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    p = logits.softmax(-1)
    return logits.masked_fill(p < min_p * of(p), -INF)


@wrong("min_p_filter", FLOOR, "min_p times the largest probability: 0.25")
def absolute_floor(logits, min_p):
    """Below min_p itself: that is another rule (epsilon)."""
    return floor(logits, min_p, lambda p: 1.0)


@wrong("min_p_filter", "test_each_row_has_a_floor_of_its_own", "keepdim=True")
def floor_of_the_batch(logits, min_p):
    """The largest probability of the batch serves every row."""
    return floor(logits, min_p, lambda p: p.max())


@wrong("min_p_filter", FLOOR, "with min_p=0.5 should keep the tokens [[0, 1]]")
def logits_for_probabilities(logits, min_p):
    """min_p times the largest logit; logits may be negative."""
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    line = min_p * logits.amax(-1, keepdim=True)
    return logits.masked_fill(logits < line, -INF)


@wrong("min_p_filter", FLOOR, "should keep the tokens [[0, 1]], not [[2]]")
def keeps_the_unlikely(logits, min_p):
    """The comparison is the wrong way round."""
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    p = logits.softmax(-1)
    return logits.masked_fill(p >= min_p * p.amax(-1, keepdim=True), -INF)


@wrong("min_p_filter", FLOOR, "A logit of 0 is no removal")
def floor_with_zero(logits, min_p):
    """0 is a probability's nothing, not a logit's."""
    out = min_p_filter(logits, min_p)
    return out.masked_fill(out == -INF, 0.0)


@wrong("min_p_filter", "test_floor_agrees_with_transformers", "should keep")
def strictly_above(logits, min_p):
    """`<=`: with min_p=1 the likeliest token itself is removed."""
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    p = logits.softmax(-1)
    remove = p <= min_p * p.amax(-1, keepdim=True)
    return logits.masked_fill(remove & (min_p > 0), -INF)


@wrong("min_p_filter", "test_a_min_p_that_is_no_share_is_refused", "1.5")
def floor_above_the_best(logits, min_p):
    """min_p=1.5 would remove every token."""
    if min_p < 0:
        raise ValueError("min_p is negative")
    return min_p_filter(logits, min(min_p, 1))


@wrong("min_p_filter", "test_a_token_at_the_floor_stays", "at the floor, not below it")
def at_the_floor_goes(logits, min_p):
    """`<=`, with the likeliest spared."""
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    p = logits.softmax(-1)
    best = p.amax(-1, keepdim=True)
    return logits.masked_fill((p <= min_p * best) & (p < best) & (min_p > 0), -INF)


@wrong("min_p_filter", "test_a_token_at_the_floor_stays", "Two tie for the likeliest")
def spares_only_the_argmax(logits, min_p):
    """`<=`, with one likeliest token spared."""
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must be from 0 to 1")
    p = logits.softmax(-1)
    remove = (p <= min_p * p.amax(-1, keepdim=True)) & (min_p > 0)
    return logits.masked_fill(remove.scatter(-1, p.argmax(-1)[:, None], False), -INF)


@wrong("min_p_filter", "test_a_min_p_of_0_is_off", "not even a probability of 0")
def a_probability_of_0_goes(logits, min_p):
    """`<=` with min_p=0 removes what rounds to 0."""
    if min_p:
        return min_p_filter(logits, min_p)
    return logits.masked_fill(logits.softmax(-1) <= 0, -INF)


@wrong("min_p_filter", "test_floor_of_half_precision", "Compute in float32")
def floor_in_the_dtype_given(logits, min_p):
    """Small probabilities of float16 have few digits, or none."""
    return floor(logits, min_p, lambda p: p.amax(-1, keepdim=True))


# --- typical_filter -------------------------------------------------------------------

TYPICAL = "test_typical_worked_by_hand"


def by_distance(logits, typical_p, distance, crossing=True):
    if not 0 < typical_p <= 1:
        raise ValueError("typical_p must be above 0 and at most 1")
    if typical_p == 1:
        return logits.clone()
    surprisal = -logits.log_softmax(-1)
    p = (-surprisal).exp()
    entropy = (p * surprisal).nansum(-1, keepdim=True)
    places = distance(surprisal, entropy).argsort(-1)
    ordered = p.gather(-1, places)
    remove = ordered.cumsum(-1) - (ordered if crossing else 0) >= typical_p
    remove[:, 0] = False
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@wrong("typical_filter", TYPICAL, "The order is by |surprisal - entropy|")
def top_p_again(logits, typical_p):
    """Orders by surprisal alone: that is top-p."""
    return by_distance(logits, typical_p, lambda s, h: s)


@wrong("typical_filter", TYPICAL, "The order is by |surprisal - entropy|")
def without_abs(logits, typical_p):
    """The difference without abs is top-p, too."""
    return by_distance(logits, typical_p, lambda s, h: s - h)


@wrong("typical_filter", TYPICAL, "The order is by |surprisal - entropy|")
def the_strangest_first(logits, typical_p):
    """The farthest first."""
    return by_distance(logits, typical_p, lambda s, h: -(s - h).abs())


@wrong("typical_filter", "test_the_likeliest_token_may_be_removed", "no right to stay")
def the_likeliest_always_stays(logits, typical_p):
    """Keeps the likeliest token by habit."""
    out = typical_filter(logits, typical_p)
    best = logits == logits.amax(-1, keepdim=True)
    return torch.where(best, logits, out)


@wrong("typical_filter", "test_typical_agrees_with_transformers", "should keep")
def nan_from_removed_tokens(logits, typical_p):
    """0 times inf is nan, and so is the entropy: a filter before this one breaks it."""
    if not 0 < typical_p <= 1:
        raise ValueError("typical_p must be above 0 and at most 1")
    if not logits.isinf().any():
        return typical_filter(logits, typical_p)
    return torch.where(logits.isinf(), logits, torch.full_like(logits, -INF))


@wrong("typical_filter", "test_typical_agrees_with_transformers", "should keep")
def typical_without_the_crossing_token(logits, typical_p):
    """The token that crosses the line is left out."""
    return by_distance(logits, typical_p, lambda s, h: (s - h).abs(), crossing=False)


@wrong("typical_filter", "test_a_typical_p_that_is_no_mass_is_refused", "1.5")
def typical_of_any_mass(logits, typical_p):
    """A mass above 1 passes as "off"."""
    if typical_p <= 0:
        raise ValueError("typical_p must be above 0")
    return typical_filter(logits, min(typical_p, 1))


TYPICAL_EXACTLY = "test_a_typical_mass_that_is_reached_exactly_is_enough"


@wrong("typical_filter", TYPICAL_EXACTLY, "should be [1], not [2]")
def typical_and_one_more_at_the_border(logits, typical_p):
    """`before > typical_p`."""
    if typical_p in (0.25, 0.5, 0.75):
        return typical_filter(logits, typical_p + 1e-4)
    return typical_filter(logits, typical_p)


@wrong("typical_filter", TYPICAL_EXACTLY, "of equal tokens, too, no more than needed")
def typical_ties_kept_by_value(logits, typical_p):
    """As in transformers: what is as far as the last one stays, too."""
    out = typical_filter(logits, typical_p)
    surprisal = -logits.float().log_softmax(-1)
    entropy = (surprisal.neg().exp() * surprisal).nansum(-1, keepdim=True)
    far = (surprisal - entropy).abs()
    edge = far.masked_fill(out == -INF, -INF).amax(-1, keepdim=True)
    return torch.where(far <= edge, logits, out)


@wrong("typical_filter", "test_typical_of_half_precision", "Compute in float32")
def typical_in_the_dtype_given(logits, typical_p):
    """Entropy and mass in bfloat16."""
    return by_distance(logits, typical_p, lambda s, h: (s - h).abs())


# --- eta_filter -----------------------------------------------------------------------

ETA = "test_eta_worked_by_hand"


def below(logits, epsilon, floor_of, best_stays=True):
    if not 0 <= epsilon < 1:
        raise ValueError("epsilon must be 0 or more and below 1")
    logprobs = logits.log_softmax(-1)
    p = logprobs.exp()
    entropy = -(p * logprobs).nansum(-1, keepdim=True)
    remove = p < floor_of(epsilon, entropy)
    if best_stays:
        remove = remove & (logits < logits.amax(-1, keepdim=True))
    return logits.masked_fill(remove, -INF)


@wrong("eta_filter", ETA, "the smaller of epsilon and")
def epsilon_alone(logits, epsilon):
    """Epsilon sampling: the floor does not know the entropy."""
    return below(logits, epsilon, lambda e, h: e)


@wrong("eta_filter", ETA, "the smaller of epsilon and")
def the_larger_of_both(logits, epsilon):
    """max for min."""
    return below(logits, epsilon, lambda e, h: (e**0.5 * (-h).exp()).clamp(min=e))


@wrong("eta_filter", ETA, "the smaller of epsilon and")
def without_the_root(logits, epsilon):
    """epsilon for its square root."""
    return below(logits, epsilon**0.5, lambda e, h: (e * (-h).exp()).clamp(max=e))


@wrong("eta_filter", ETA, "the smaller of epsilon and")
def entropy_with_the_wrong_sign(logits, epsilon):
    """exp(+H)."""
    return below(logits, epsilon, lambda e, h: (e**0.5 * h.exp()).clamp(max=e))


@wrong("eta_filter", "test_eta_never_removes_the_likeliest", "removed the likeliest")
def may_remove_everything(logits, epsilon):
    """A high epsilon removes all tokens of a flat row."""
    return below(logits, epsilon, lambda e, h: e + 0 * h, best_stays=False).where(
        torch.tensor(epsilon > 0.9), eta_filter(logits, epsilon)
    )


@wrong("eta_filter", "test_an_epsilon_that_is_no_probability_is_refused", "1.0")
def epsilon_of_one(logits, epsilon):
    """epsilon=1 is taken."""
    return eta_filter(logits, min(epsilon, 0.99) if epsilon >= 0 else epsilon)


@wrong(
    "eta_filter", "test_eta_never_removes_the_likeliest", "All tie for the likeliest"
)
def the_likeliest_by_arithmetic_alone(logits, epsilon):
    """On paper the likeliest always stays; an even row and epsilon near 1 round."""
    return below(
        *(logits, epsilon),
        lambda e, h: (e**0.5 * (-h).exp()).clamp(max=e),
        best_stays=False,
    )


def at_eta_goes(logits, epsilon):
    if not 0 <= epsilon < 1:
        raise ValueError("epsilon must be 0 or more and below 1")
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)
    eta = (epsilon**0.5 * (-entropy).exp()).clamp(max=epsilon)
    best = logits.amax(-1, keepdim=True)
    return logits.masked_fill((logprobs.exp() <= eta) & (logits < best), -INF)


@wrong("eta_filter", "test_an_epsilon_of_0_is_off", "not even a probability of 0")
def eta_of_0_removes_what_rounds_to_0(logits, epsilon):
    """`<=` with epsilon=0."""
    return at_eta_goes(logits, epsilon)


@wrong("eta_filter", "test_a_token_at_the_floor_of_eta_stays", "not below it")
def at_the_floor_of_eta_goes(logits, epsilon):
    """`<=`, with an early return for 0."""
    return at_eta_goes(logits, epsilon) if epsilon else logits.clone()


@wrong("eta_filter", "test_eta_of_half_precision", "Compute in float32")
def eta_in_the_dtype_given(logits, epsilon):
    """The entropy of 49,152 tokens in bfloat16."""
    return below(logits, epsilon, lambda e, h: (e**0.5 * (-h).exp()).clamp(max=e))


# --- top_n_sigma_filter ---------------------------------------------------------------

SIGMA = "test_sigma_worked_by_hand"


def line(logits, n, start, sigma):
    if n < 0:
        raise ValueError("n must be 0 or more")
    return logits.masked_fill(logits < start(logits) - n * sigma(logits), -INF)


def best_of(logits):
    return logits.amax(-1, keepdim=True)


@wrong("top_n_sigma_filter", SIGMA, "the line is at 4 - 1.63 n")
def from_the_mean(logits, n):
    """Counts from the mean, as for outliers, not from the largest."""
    return line(
        *(logits, n),
        lambda x: x.mean(-1, keepdim=True),
        lambda x: x.std(-1, correction=0, keepdim=True),
    )


@wrong("top_n_sigma_filter", SIGMA, "the line is at 4 - 1.63 n")
def variance(logits, n):
    """The variance, without its root."""
    return line(logits, n, best_of, lambda x: x.var(-1, correction=0, keepdim=True))


@wrong(
    "top_n_sigma_filter", "test_sigma_divides_by_the_number_of_tokens", "correction=0"
)
def sample_deviation(logits, n):
    """std divides by one less, unless told otherwise."""
    return line(logits, n, best_of, lambda x: x.std(-1, keepdim=True))


@wrong("top_n_sigma_filter", "test_removed_tokens_do_not_count", "finite logits")
def removed_tokens_count(logits, n):
    """The mean of a row with -inf is -inf, and its sigma nan."""
    return line(logits, n, best_of, lambda x: x.std(-1, correction=0, keepdim=True))


@wrong("top_n_sigma_filter", "test_each_row_has_its_own_sigma", "should keep")
def sigma_of_the_batch(logits, n):
    """One sigma for the whole batch."""
    return line(logits, n, best_of, lambda x: x.std(correction=0))


@wrong(
    "top_n_sigma_filter",
    "test_temperature_does_not_change_what_stays",
    "before any softmax",
)
def sigma_of_probabilities(logits, n):
    """Works on probabilities, which the temperature changes."""
    p = logits.softmax(-1)
    keep = line(p, n, best_of, lambda x: x.std(-1, correction=0, keepdim=True)) > -INF
    return logits.masked_fill(~keep, -INF)


@wrong(
    "top_n_sigma_filter",
    "test_a_negative_number_of_sigmas_is_refused",
    "top_n_sigma_filter(logits, -1)",
)
def negative_passes(logits, n):
    """n=-1 would remove every token."""
    return top_n_sigma_filter(logits, abs(n))


@wrong("top_n_sigma_filter", "test_a_logit_at_the_line_stays", "the line is at 2 - 2")
def at_the_line_goes(logits, n):
    """`<=`, with the largest spared."""
    if n < 0:
        raise ValueError("n must be 0 or more")
    x, best = logits.masked_fill(logits == -INF, float("nan")), best_of(logits)
    sigma = ((x - x.nanmean(-1, keepdim=True)) ** 2).nanmean(-1, keepdim=True).sqrt()
    return logits.masked_fill((logits <= best - n * sigma) & (logits < best), -INF)


@wrong("top_n_sigma_filter", "test_a_logit_at_the_line_stays", "at the largest logit")
def none_is_off(logits, n):
    """n=0 is off, as in llama.cpp."""
    return top_n_sigma_filter(logits, n) if n else logits.clone()


@wrong("top_n_sigma_filter", "test_sigma_of_half_precision", "Compute in float32")
def sigma_in_the_dtype_given(logits, n):
    """A sum of squares that does not fit float16 is inf, and so is sigma."""
    if n < 0:
        raise ValueError("n must be 0 or more")
    there = logits > -INF
    count = there.sum(-1, keepdim=True)
    mean = torch.where(there, logits, 0).sum(-1, keepdim=True) / count
    squares = torch.where(there, (logits - mean) ** 2, 0).sum(-1, keepdim=True)
    line = best_of(logits) - n * (squares / count).sqrt()
    return logits.masked_fill(logits < line, -INF)


@wrong("top_n_sigma_filter", SIGMA, "no digits left")
def mean_square_minus_squared_mean(logits, n):
    """Of large logits, the difference of the two squares cancels in float32."""
    there = logits > -INF
    x, count = logits.float().masked_fill(~there, 0), there.sum(-1, keepdim=True)
    mean = x.sum(-1, keepdim=True) / count
    squares = (x**2).sum(-1, keepdim=True) / count - mean**2
    sigma = squares.clamp(min=0).sqrt()
    return line(logits, n, best_of, lambda _: sigma)


@wrong("top_n_sigma_filter", "test_removed_tokens_do_not_count", "finite logits")
def holes_of_the_first_row(logits, n):
    """Takes for granted that the same tokens were removed in all rows."""
    there = logits[:, logits[0] > -INF]
    return line(logits, n, best_of, lambda _: there.std(-1, correction=0, keepdim=True))


@wrong(
    "top_n_sigma_filter", "test_sigma_divides_by_the_number_of_tokens", "correction=0"
)
def sample_deviation_where_tokens_are_missing(logits, n):
    """Row by row, without correction=0, where something was removed."""
    if (logits > -INF).all():
        return top_n_sigma_filter(logits, n)
    sigma = torch.stack([row[row > -INF].std() for row in logits])
    return line(logits, n, best_of, lambda _: sigma[:, None])


# --- xtc_filter -----------------------------------------------------------------------

EXCLUDED = "test_exclusion_worked_by_hand"


def sensible(threshold, probability):
    if not 0 < threshold <= 1 or not 0 <= probability <= 1:
        raise ValueError("threshold above 0 up to 1, probability from 0 to 1")


def exclude(logits, threshold, probability, generator, remove_of):
    sensible(threshold, probability)
    draws = torch.rand(logits.shape[0], 1, generator=generator)
    remove = remove_of(logits.softmax(-1), threshold)
    return logits.masked_fill((draws < probability) & remove, -INF)


@wrong("xtc_filter", EXCLUDED, "The least likely of the likely tokens stays")
def all_likely_ones(logits, threshold, probability, generator=None):
    """Removes every token above the threshold: only nonsense may be left."""
    return exclude(logits, threshold, probability, generator, lambda p, t: p >= t)


@wrong("xtc_filter", EXCLUDED, "The least likely of the likely tokens stays")
def only_the_likeliest(logits, threshold, probability, generator=None):
    """Removes the first token and no other."""

    def remove(p, t):
        several = (p >= t).sum(-1, keepdim=True) > 1
        return several & (p == p.amax(-1, keepdim=True))

    return exclude(logits, threshold, probability, generator, remove)


@wrong("xtc_filter", EXCLUDED, "and all below the threshold")
def the_tail_goes_too(logits, threshold, probability, generator=None):
    """Keeps the last of the likely ones alone."""
    out = xtc_filter(logits, threshold, probability, generator)
    p = logits.softmax(-1)
    several = (p >= threshold).sum(-1, keepdim=True) > 1
    return out.masked_fill(several & (p < threshold), -INF)


@wrong("xtc_filter", "test_exclusion_for_each_row", "Row 1 has one likely token")
def one_line_for_the_batch(logits, threshold, probability, generator=None):
    """The least likely of the likely tokens of the whole batch."""

    def remove(p, t):
        return p > p.masked_fill(p < t, INF).min()

    return exclude(logits, threshold, probability, generator, remove)


@wrong("xtc_filter", "test_without_a_chance_nothing_is_excluded", "probability=0")
def always(logits, threshold, probability, generator=None):
    """The chance is not used."""
    sensible(threshold, probability)
    return xtc_filter(logits, threshold, 1.0, generator)


@wrong("xtc_filter", "test_the_draws_are_those_of_the_generator", "for all rows")
def one_draw_for_all_rows(logits, threshold, probability, generator=None):
    """All rows of a batch are cut, or none."""
    sensible(threshold, probability)
    chance = torch.rand(1, generator=generator).item() < probability
    return xtc_filter(logits, threshold, float(chance))


@wrong("xtc_filter", "test_the_draws_are_those_of_the_generator", "for all rows")
def generator_not_used(logits, threshold, probability, generator=None):
    """Draws from torch's own generator."""
    return xtc_filter(logits, threshold, probability)


@wrong(
    "xtc_filter", "test_a_token_at_the_threshold_is_likely", "0.125 is at the threshold"
)
def at_the_threshold_is_not_likely(logits, threshold, probability, generator=None):
    """`>` for "threshold or more"."""

    def remove(p, t):
        return p > p.masked_fill(p <= t, INF).amin(-1, keepdim=True)

    return exclude(logits, threshold, probability, generator, remove)


@wrong("xtc_filter", "test_without_a_generator_the_draws_are_torchs_own", "rows cut")
def a_generator_of_its_own(logits, threshold, probability, generator=None):
    """Without a generator the draws are the same each time."""
    generator = generator or torch.Generator().manual_seed(0)
    return xtc_filter(logits, threshold, probability, generator)


@wrong("xtc_filter", "test_exclusion_in_half_precision", "should be torch.float16")
def exclusion_becomes_float32(logits, threshold, probability, generator=None):
    """Gives back float32 logits."""
    return xtc_filter(logits.float(), threshold, probability, generator)


@wrong("xtc_filter", "test_exclusion_in_half_precision", "Compute in float32")
def exclusion_in_the_dtype_given(logits, threshold, probability, generator=None):
    """Small probabilities of float16 have few digits."""

    def remove(p, t):
        return p > p.masked_fill(p < t, INF).amin(-1, keepdim=True)

    return exclude(logits, threshold, probability, generator, remove)


DRAWS = "test_the_draws_are_those_of_the_generator"


def excluded(logits, threshold, probability, chosen):
    sensible(threshold, probability)
    once = xtc_filter(logits, threshold, 1.0, torch.Generator())
    return torch.where(chosen, once, logits)


@wrong("xtc_filter", EXCLUDED, "ValueError")
def a_threshold_of_1_is_refused(logits, threshold, probability, generator=None):
    """1 is allowed: then no row has two likely tokens."""
    if threshold == 1:
        raise ValueError("threshold must be below 1")
    return xtc_filter(logits, threshold, probability, generator)


@wrong("xtc_filter", DRAWS, "for all rows")
def draws_only_where_needed(logits, threshold, probability, generator=None):
    """A row with one likely token gets no number, so the next rows get others."""
    chosen = (logits.float().softmax(-1) >= threshold).sum(-1, keepdim=True) >= 2
    draws = torch.rand(int(chosen.sum()), generator=generator)
    chosen[chosen.clone()] = draws < probability
    return excluded(logits, threshold, probability, chosen)


@wrong("xtc_filter", DRAWS, "float64 logits")
def draws_in_the_dtype_given(logits, threshold, probability, generator=None):
    """A generator gives other numbers in float64."""
    draws = torch.rand(len(logits), 1, generator=generator, dtype=logits.dtype)
    return excluded(logits, threshold, probability, draws < probability)


@wrong("xtc_filter", DRAWS, "the second call")
def the_generator_stands_still(logits, threshold, probability, generator=None):
    """Works on a copy of the generator: each call draws the same numbers."""
    if generator is not None:
        generator = torch.Generator().set_state(generator.get_state())
    return xtc_filter(logits, threshold, probability, generator)


# --- Mirostat -------------------------------------------------------------------------

STEERED = "test_steering_worked_by_hand"
LAW = "test_draws_as_often_as_the_softmax_of_what_is_left"


class Steered(Reference):
    def pick(self, logits):
        surprisal = -logits.log_softmax(-1) / self.unit
        if self.mu is None:
            self.mu = self.first(surprisal)
        remove = surprisal > self.mu
        if self.best_stays:
            remove = remove & (logits < logits.amax(-1, keepdim=True))
        p = logits.masked_fill(remove, -INF).softmax(-1)
        token = self.draw(p)
        seen = p if self.renormalised else logits.softmax(-1)
        observed = -seen.gather(-1, token).log() / self.unit
        self.mu = self.move(observed)
        return token

    unit, best_stays, renormalised = math.log(2), True, True

    def first(self, surprisal):
        return torch.full_like(surprisal[:, :1], 2 * self.target)

    def draw(self, p):
        return torch.multinomial(p, 1)

    def move(self, observed):
        return self.mu - self.rate * (observed - self.target)


@wrong("Mirostat", STEERED, "Bits: log2, not the natural logarithm")
class Nats(Steered):
    """Natural logarithms: a target in nats."""

    unit = 1.0


@wrong("Mirostat", STEERED, "mu = 1 - 0.1 * (0 - 0.5)")
class WrongSign(Steered):
    """mu grows after a surprise: the feedback drives it away."""

    def move(self, observed):
        return self.mu + self.rate * (observed - self.target)


@wrong("Mirostat", STEERED, "mu afterwards should be")
class NeverMoves(Steered):
    """mu is not updated."""

    def move(self, observed):
        return self.mu


@wrong("Mirostat", STEERED, "mu afterwards should be")
class StartsAtTheTarget(Steered):
    """mu begins at the target, not at twice the target."""

    def first(self, surprisal):
        return torch.full_like(surprisal[:, :1], self.target)


@wrong("Mirostat", "test_observed_is_measured_among_what_was_left", "0.5 each")
class SurprisalBeforeTheCut(Steered):
    """Measures the drawn token before the cut."""

    renormalised = False


@wrong("Mirostat", "test_rows_are_steered_apart", "should have shape (2, 1)")
class OneMuForTheBatch(Steered):
    """One mu for all rows."""

    def move(self, observed):
        return (self.mu - self.rate * (observed - self.target)).mean(0, keepdim=True)


@wrong("Mirostat", "test_the_likeliest_stays_whatever_mu_is", "RuntimeError")
class MayCutEverything(Steered):
    """A small mu removes every token."""

    best_stays = False


@wrong("Mirostat", LAW, "not 100.0%")
class TakesTheLikeliest(Steered):
    """argmax: the cut has no effect."""

    def draw(self, p):
        return p.argmax(-1, keepdim=True)


@wrong("Mirostat", STEERED, "The rate is 1 here")
class FixedRate(Steered):
    """The rate is not used."""

    def move(self, observed):
        return self.mu - 0.1 * (observed - self.target)


@wrong("Mirostat", LAW, "should be drawn 75% of the time")
class DrawsEvenly(Steered):
    """Each token that is left has the same chance."""

    def draw(self, p):
        return torch.multinomial((p > 0).float(), 1)


@wrong("Mirostat", "test_the_cut_is_float32", "in float32")
class CutInTheDtypeGiven(Reference):
    """mu in the dtype of the logits."""

    def pick(self, logits):
        token = super().pick(logits)
        self.mu = self.mu.to(logits.dtype)
        return token


@wrong("Mirostat", "test_a_token_at_the_cut_stays", "at mu, not above it")
class AtTheCutGoes(Steered):
    """A surprisal of exactly mu is removed, too."""

    def pick(self, logits):
        bits = -logits.log_softmax(-1) / self.unit
        mu = self.first(bits) if self.mu is None else self.mu
        at = (bits == mu) & (logits < logits.amax(-1, keepdim=True))
        return super().pick(logits.masked_fill(at, -INF))


# --- chain ----------------------------------------------------------------------------

ORDER = "test_filters_run_in_the_order_given"


@wrong("chain", ORDER, "The first filter comes first")
def last_filter_first(*filters):
    """Composition as in mathematics: the last comes first."""
    return chain_of(*reversed(filters))


@wrong("chain", ORDER, "should return a function")
def applies_at_once(*filters):
    """Returns no function."""
    return list(filters)


@wrong("chain", ORDER, "not [[20]]")
def only_the_last(*filters):
    """Each filter gets the original logits; the last one wins."""

    def apply(logits):
        out = logits
        for one in filters:
            out = one(logits)
        return out

    return apply


@wrong("chain", ORDER, "not [[3]]")
def only_the_first(*filters):
    """Returns inside the loop."""

    def apply(logits):
        for one in filters:
            return one(logits)
        return logits

    return apply


@wrong("chain", "test_a_chain_of_one_and_of_none", "None")
def nothing_of_none(*filters):
    """An empty chain gives None."""
    return chain_of(*filters) if filters else lambda logits: None


@wrong("chain", "test_a_chain_can_be_used_again", "used twice")
def used_up(*filters):
    """An iterator is empty after its first use."""
    left = iter(filters)

    def apply(logits):
        for one in left:
            logits = one(logits)
        return logits

    return apply


@wrong("chain", "test_the_same_filter_can_stand_in_a_chain_twice", "not [[30]]")
def each_filter_once(*filters):
    """A dictionary of filters holds each of them once."""
    return chain_of(*dict.fromkeys(filters))


@wrong("chain", "test_a_filter_that_changes_nothing_is_not_the_end", "are applied, too")
def stops_where_nothing_changes(*filters):
    """Ends at the first filter that changes nothing."""

    def apply(logits):
        for one in filters:
            before, logits = logits, one(logits)
            if torch.equal(before, logits):
                break
        return logits

    return apply


# --- commute --------------------------------------------------------------------------

ORDERS = "test_orders_worked_by_hand"


@wrong("commute", ORDERS, "should give False, not True")
def always_true(first, second, logits):
    """Compares a result with itself."""
    one = chain_of(first, second)(logits)
    return torch.allclose(one, one)


@wrong("commute", "test_temperature_and_the_filters", "should give False, not True")
def same_number_of_tokens(first, second, logits):
    """Compares the number of tokens, and only if any was removed."""
    one, other = chain_of(first, second)(logits), chain_of(second, first)(logits)
    if not one.isinf().any():
        return commute_of(first, second, logits)
    return bool(one.isinf().any() == other.isinf().any())


@wrong("commute", "test_temperature_and_the_filters", "-inf equals -inf")
def difference_is_nan(first, second, logits):
    """-inf minus -inf is nan, which is not near 0."""
    one, other = chain_of(first, second)(logits), chain_of(second, first)(logits)
    return bool(((one - other).abs() < 1e-5).all())


@wrong("commute", "test_rounding_is_no_difference", "Use torch.allclose")
def to_the_last_bit(first, second, logits):
    """torch.equal sees differences of rounding."""
    return torch.equal(chain_of(first, second)(logits), chain_of(second, first)(logits))


@wrong("commute", ORDERS, "should give True, not [[True]]")
def a_tensor(first, second, logits):
    """A tensor of comparisons, not a bool."""
    one, other = chain_of(first, second)(logits), chain_of(second, first)(logits)
    return torch.isclose(one, other)


@wrong("commute", ORDERS, "should give True, not False")
def compares_the_filters_alone(first, second, logits):
    """Compares first(logits) with second(logits)."""
    return torch.allclose(first(logits), second(logits))


@wrong("commute", ORDERS, "should give True (a bool), not True (a 0-d tensor)")
def a_tensor_of_one_bool(first, second, logits):
    """all() of a tensor is a tensor."""
    one, other = chain_of(first, second)(logits), chain_of(second, first)(logits)
    return torch.isclose(one, other).all()


@wrong("commute", ORDERS, "Row 0 differs")
def one_row_is_enough(first, second, logits):
    """True as soon as one row of the batch is the same."""
    one, other = first(second(logits)), second(first(logits))
    return bool(torch.isclose(one, other).all(-1).any())


@wrong("commute", ORDERS, "that is no rounding")
def a_generous_tolerance(first, second, logits):
    """A hundredth is no rounding."""
    one, other = first(second(logits)), second(first(logits))
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2)
