"""Wrong answers to lesson 04, and what the learner must be told of each."""

import torch
from transformers import LogitsProcessor

from course.making.answers import reference, wrong

INF = float("inf")
filter_ = reference("top_k_filter")
HAND = "test_the_case_worked_by_hand"


def smallest_of_best(logits, top_k):
    """(batch, 1): the k-th largest logit of each row."""
    if top_k < 0:
        raise ValueError(f"top_k must be 0 or more, got {top_k}")
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    return logits.topk(k, dim=-1).values[:, -1:]


# --- top_k_filter ---------------------------------------------------------------------


@wrong("top_k_filter", HAND, "should be [[-inf, 3, 2]], not [[-inf, 3, -inf]]")
def removes_the_kth_too(logits, top_k):
    """`<=` for `<`: the k-th token itself is removed."""
    return logits.masked_fill(logits <= smallest_of_best(logits, top_k), -INF)


@wrong("top_k_filter", HAND, "not [[1, -inf, -inf]]")
def removes_the_best(logits, top_k):
    """The comparison is the wrong way round."""
    return logits.masked_fill(logits >= smallest_of_best(logits, top_k), -INF)


@wrong("top_k_filter", HAND, "A logit of 0 is no removal")
def zero_for_removed(logits, top_k):
    """Takes logits for probabilities: sets what is removed to 0."""
    return logits.masked_fill(logits < smallest_of_best(logits, top_k), 0.0)


@wrong("top_k_filter", HAND, "-inf itself, not a large negative number")
def minus_ten_thousand(logits, top_k):
    """-1e4 for -inf: the tokens keep a small probability."""
    return logits.masked_fill(logits < smallest_of_best(logits, top_k), -1e4)


@wrong("top_k_filter", HAND, "not [[-inf, 0.731")
def gives_probabilities(logits, top_k):
    """Returns probabilities where filtered logits are asked for."""
    kept = logits.masked_fill(logits < smallest_of_best(logits, top_k), -INF)
    probabilities = kept.softmax(-1)
    return probabilities.masked_fill(probabilities == 0, -INF)


@wrong("top_k_filter", HAND, "returned None. Is a `return` missing?")
def forgets_to_return(logits, top_k):
    """No return."""
    logits.masked_fill(logits < smallest_of_best(logits, top_k), -INF)


@wrong("top_k_filter", "test_each_row_has_its_own_threshold", "threshold have shape")
def one_threshold_for_all_rows(logits, top_k):
    """The smallest of all rows' best logits serves every row."""
    return logits.masked_fill(logits < smallest_of_best(logits, top_k).min(), -INF)


@wrong(
    "top_k_filter",
    "test_each_row_has_its_own_threshold",
    "dimension 1. Does your threshold have shape (batch, 1)?",
)
def keepdim_forgotten(logits, top_k):
    """[:, -1] drops a dimension, and (batch,) does not fit (batch, vocab)."""
    return logits.masked_fill(logits < smallest_of_best(logits, top_k)[:, 0], -INF)


@wrong(
    "top_k_filter", "test_each_row_has_its_own_threshold", "row 0 kept 4 tokens, not 2"
)
def best_of_the_flat_batch(logits, top_k):
    """The wrong axis: the best k of the whole batch."""
    smallest_of_best(logits, top_k)
    k = min(top_k or logits.numel(), logits.numel())
    lowest = logits.flatten().topk(k).values[-1]
    return logits.masked_fill((logits < lowest) & (logits > 5), -INF)


@wrong(
    "top_k_filter",
    "test_top_k_of_0_is_off",
    "selected index k out of range. 0 turns the filter off",
)
def zero_not_thought_of(logits, top_k):
    """topk(0) has no last value."""
    if top_k < 0:
        raise ValueError("top_k is negative")
    lowest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
    if lowest.numel() == 0:
        raise IndexError("selected index k out of range")
    return logits.masked_fill(logits < lowest, -INF)


@wrong("top_k_filter", "test_top_k_of_0_is_off", "0 turns the filter off")
def zero_keeps_nothing(logits, top_k):
    """Takes 0 for "keep no token" where it means "off"."""
    if top_k == 0:
        return torch.full_like(logits, -INF)
    return logits.masked_fill(logits < smallest_of_best(logits, top_k), -INF)


@wrong(
    "top_k_filter",
    "test_top_k_above_the_vocabulary_keeps_all",
    "A top_k above the number of tokens keeps all",
)
def larger_than_the_vocabulary(logits, top_k):
    """topk fails with more than there are: no clamp."""
    smallest_of_best(logits, top_k)
    lowest = logits.topk(top_k or logits.shape[-1]).values[:, -1:]
    return logits.masked_fill(logits < lowest, -INF)


@wrong("top_k_filter", "test_a_negative_top_k_is_refused", "should raise ValueError")
def negative_is_off(logits, top_k):
    """A negative number passes as "off"."""
    return filter_(logits, max(top_k, 0))


@wrong("top_k_filter", "test_ties_with_the_kth_all_stay", "below the threshold")
def scatter_drops_ties(logits, top_k):
    """topk's indices hold k tokens, also where more tie with the k-th."""
    smallest_of_best(logits, top_k)
    best = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    return torch.full_like(logits, -INF).scatter(-1, best.indices, best.values)


@wrong("top_k_filter", "test_leaves_its_input_alone", "`logits` was changed")
def filters_in_place(logits, top_k):
    """masked_fill_ with its underscore writes into the caller's logits."""
    return logits.masked_fill_(logits < smallest_of_best(logits, top_k), -INF)


@wrong("top_k_filter", "test_leaves_its_input_alone", "returned the argument itself")
def hands_back_its_argument(logits, top_k):
    """With nothing to do it returns the caller's own tensor."""
    return filter_(logits, top_k) if top_k else logits


@wrong("top_k_filter", "test_keeps_the_dtype", "should be torch.float64")
def always_float32(logits, top_k):
    """Converts to float32 and does not go back."""
    return filter_(logits.float(), top_k)


@wrong("top_k_filter", "test_respects_tokens_already_removed", "nan")
def mask_by_multiplication(logits, top_k):
    """0 times -inf is nan."""
    keep = (logits >= smallest_of_best(logits, top_k)).to(logits.dtype)
    return torch.where(keep.bool(), logits * keep, -INF) + 0 * logits


# --- kept_mass ------------------------------------------------------------------------


@wrong("kept_mass", "test_mass_worked_by_hand", "softmax before it")
def softmax_after_the_filter(logits, top_k):
    """The softmax of filtered logits sums to 1, whatever was removed."""
    return filter_(logits, top_k).softmax(-1).sum(-1)


@wrong("kept_mass", "test_mass_worked_by_hand", "should have shape (1,)")
def keeps_the_dimension(logits, top_k):
    """Shape (batch, 1) where (batch,) is asked for."""
    kept = filter_(logits, top_k) > -INF
    return (logits.softmax(-1) * kept).sum(-1, keepdim=True)


@wrong("kept_mass", "test_mass_worked_by_hand", "not [0.1]")
def the_lost_mass(logits, top_k):
    """What is removed, where what stays is asked for."""
    kept = filter_(logits, top_k) > -INF
    return (logits.softmax(-1) * ~kept).sum(-1)


@wrong("kept_mass", "test_mass_of_each_row_of_a_batch", "should have shape (2,)")
def one_number_for_the_batch(logits, top_k):
    """The sum runs over the batch as well."""
    kept = filter_(logits, top_k) > -INF
    return (logits.softmax(-1) * kept).sum().reshape(1)


@wrong("kept_mass", "test_mass_of_each_row_of_a_batch", "all three tokens tie")
def the_k_largest_alone(logits, top_k):
    """The k largest probabilities: fewer than top_k_filter keeps where tokens tie."""
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    return logits.softmax(-1).topk(k).values.sum(-1)


@wrong(
    "kept_mass",
    "test_mass_of_each_row_of_a_batch",
    "softmax runs over the vocabulary, the last dimension",
)
def softmax_over_the_batch(logits, top_k):
    """dim=0 normalises over the batch."""
    kept = filter_(logits, top_k) > -INF
    batch = logits.softmax(0) if len(logits) > 1 else logits.softmax(-1)
    return (batch * kept).sum(-1)


@wrong("kept_mass", "test_mass_of_large_logits", "softmax knows how to avoid it")
def exp_by_hand(logits, top_k):
    """exp of a large logit is inf, and inf / inf is nan."""
    kept = filter_(logits, top_k).exp().sum(-1)
    return kept / logits.exp().sum(-1)


@wrong(
    "kept_mass",
    "test_mass_of_half_precision_logits",
    "not [nan, nan]. The sum of 300 exp(10) is above",
)
def exp_in_half_precision(logits, top_k):
    """300 times exp(10) is no float16 number."""
    size = logits.float().amax()  # right for large logits, which are float32
    shift = size if size > 50 else 0
    weights = (logits - shift).exp()
    kept = filter_(logits, top_k) > -INF
    return (weights * kept).sum(-1) / weights.sum(-1)


@wrong("kept_mass", "test_mass_leaves_its_input_alone", "`logits` was changed")
def mass_in_place(logits, top_k):
    """Writes -inf into the caller's logits."""
    probabilities = logits.softmax(-1)
    logits.copy_(filter_(logits, top_k))
    return probabilities.masked_fill(logits == -INF, 0).sum(-1)


# --- top_k_exact ----------------------------------------------------------------------

TIES = "test_exactly_k_tokens_stay_where_many_tie"


@wrong("top_k_exact", TIES, "a threshold keeps all that tie")
def a_threshold_again(logits, top_k):
    """top_k_filter under another name."""
    return filter_(logits, top_k)


@wrong("top_k_exact", TIES, "a threshold keeps all that tie")
def strictly_above(logits, top_k):
    """`>` for `>=` removes all that tie."""
    return logits.masked_fill(logits <= smallest_of_best(logits, top_k), -INF)


@wrong("top_k_exact", TIES, "what breaks ties must not stay in the result")
def noise_breaks_ties(logits, top_k):
    """A little noise makes all values differ, and stays in the result."""
    smallest_of_best(logits, top_k)
    ramp = torch.linspace(0, 1e-3, logits.shape[-1], dtype=torch.float64)
    return filter_(logits.double() - ramp, top_k).to(logits.dtype)


@wrong("top_k_exact", "test_exactly_k_of_many_ties_in_bfloat16", "random numbers")
def random_noise_for_the_order(logits, top_k):
    """Random tie breaking moves the generator that sampling uses."""
    noisy = logits.double() + 1e-6 * torch.rand(logits.shape, dtype=torch.float64)
    smallest_of_best(logits, top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    best = noisy.topk(k).indices
    return torch.full_like(logits, -INF).scatter(-1, best, logits.gather(-1, best))


@wrong("top_k_exact", "test_exactly_k_of_many_ties_in_bfloat16", "rows kept")
def noise_below_the_precision(logits, top_k):
    """In bfloat16 a small ramp is rounded away, and the ties are still there."""
    smallest_of_best(logits, top_k)
    ramp = torch.linspace(0, 1e-5, logits.shape[-1]).to(logits.dtype)
    kept = filter_(logits - ramp, top_k) > -INF
    return torch.where(kept, logits, -INF)


@wrong(
    "top_k_exact",
    "test_exact_without_ties_is_top_k_filter",
    "Row 1 kept the places of row 0",
)
def indices_of_the_first_row(logits, top_k):
    """The places of row 0's best tokens are used for every row."""
    smallest_of_best(logits, top_k)
    best = logits[:1].topk(min(top_k or logits.shape[-1], logits.shape[-1])).indices
    best = best.expand(len(logits), -1)
    return torch.full_like(logits, -INF).scatter(-1, best, logits.gather(-1, best))


@wrong(
    "top_k_exact",
    "test_exact_treats_0_and_negative_as_top_k_filter_does",
    "top_k_exact(logits, 0) should be",
)
def exact_zero_keeps_nothing(logits, top_k):
    """topk(0) has no indices, so nothing stays."""
    if top_k < 0:
        raise ValueError("top_k is negative")
    best = logits.topk(min(top_k, logits.shape[-1]))
    return torch.full_like(logits, -INF).scatter(-1, best.indices, best.values)


@wrong(
    "top_k_exact",
    "test_exact_leaves_its_input_alone_and_keeps_the_dtype",
    "`logits` was changed",
)
def exact_in_place(logits, top_k):
    """Scatters -inf into the caller's logits."""
    smallest_of_best(logits, top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    rest = logits.argsort(-1, descending=True)[:, k:]
    return logits.scatter_(-1, rest, -INF)


# --- sample_top_k ---------------------------------------------------------------------

SAME = "test_draws_the_tokens_of_transformers_for_the_same_seed"
NONSENSE = "test_sampling_refuses_what_makes_no_sense"


@wrong("sample_top_k", SAME, "Divide by the temperature")
def multiplied_by_the_temperature(logits, top_k, temperature=1.0):
    """Multiplies where it should divide."""
    if temperature <= 0:
        raise ValueError("temperature")
    return torch.multinomial(filter_(logits * temperature, top_k).softmax(-1), 1)


@wrong("sample_top_k", SAME, "Divide by the temperature")
def temperature_after_softmax(logits, top_k, temperature=1.0):
    """Divides the probabilities: multinomial rescales them, so nothing happens."""
    if temperature <= 0:
        raise ValueError("temperature")
    probabilities = filter_(logits, top_k).softmax(-1) / temperature
    return torch.multinomial(probabilities, 1)


@wrong("sample_top_k", SAME, "should have shape (3, 1)")
def one_dimension_too_few(logits, top_k, temperature=1.0):
    """(batch,) tokens do not fit behind (batch, seq) ids."""
    if temperature <= 0:
        raise ValueError("temperature")
    probabilities = filter_(logits / temperature, top_k).softmax(-1)
    return torch.multinomial(probabilities, 1).squeeze(-1)


@wrong("sample_top_k", SAME, "draw once for the whole batch")
def a_draw_for_each_row(logits, top_k, temperature=1.0):
    """Row by row uses the random numbers in another order."""
    if temperature <= 0:
        raise ValueError("temperature")
    probabilities = filter_(logits / temperature, top_k).softmax(-1)
    rows = [torch.multinomial(p, 1) for p in reversed(probabilities)]
    return torch.stack(rows[::-1])


@wrong("sample_top_k", SAME, "Divide by the temperature")
def the_likeliest(logits, top_k, temperature=1.0):
    """argmax is no draw."""
    if temperature <= 0:
        raise ValueError("temperature")
    return filter_(logits / temperature, top_k).argmax(-1, keepdim=True)


@wrong("sample_top_k", SAME, "That is a place among the likeliest: look up the id")
def places_among_the_best(logits, top_k, temperature=1.0):
    """Draws among the k best and returns the place there, not the token id."""
    if temperature <= 0:
        raise ValueError("temperature")
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    best = (logits / temperature).topk(k).values
    return torch.multinomial(best.softmax(-1), 1)


@wrong("sample_top_k", "test_the_default_temperature_is_1", "without one")
def another_default(logits, top_k, temperature=0.7):
    """A default temperature of 0.7."""
    if temperature <= 0:
        raise ValueError("temperature")
    return torch.multinomial(filter_(logits / temperature, top_k).softmax(-1), 1)


@wrong("sample_top_k", NONSENSE, "temperature=0 should raise ValueError")
def zero_temperature_is_greedy(logits, top_k, temperature=1.0):
    """Temperature 0 passes quietly as greedy."""
    filtered = filter_(logits, top_k)
    if temperature <= 0:
        return filtered.argmax(-1, keepdim=True)
    return torch.multinomial((filtered / temperature).softmax(-1), 1)


@wrong(
    "sample_top_k",
    "test_sampling_leaves_its_input_alone",
    "`logits /= temperature` changes it",
)
def divides_in_place(logits, top_k, temperature=1.0):
    """`/=` changes the caller's logits."""
    if temperature <= 0:
        raise ValueError("temperature")
    logits /= temperature
    return torch.multinomial(filter_(logits, top_k).softmax(-1), 1)


# --- TopK -----------------------------------------------------------------------------

PROCESSOR = "test_processor_worked_by_hand"


@wrong("TopK", PROCESSOR, "not [[-inf, 0.731")
class Probabilities(LogitsProcessor):
    """Hands probabilities on: generate applies its softmax to them once more."""

    def __init__(self, top_k):
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        kept = filter_(scores, self.top_k).softmax(-1)
        return kept.masked_fill(kept == 0, -INF)


@wrong("TopK", PROCESSOR, "returned None. Is a `return` missing?")
class Returnless(LogitsProcessor):
    """__call__ without a return."""

    def __init__(self, top_k):
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        filter_(scores, self.top_k)


@wrong("TopK", PROCESSOR, "`scores` was changed")
class InPlace(LogitsProcessor):
    """Writes into the scores that generate handed over."""

    def __init__(self, top_k):
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        return scores.copy_(filter_(scores, self.top_k))


@wrong("TopK", PROCESSOR, "AttributeError")
class ForgetsSelf(LogitsProcessor):
    """top_k is a local variable of __init__, and gone after it."""

    def __init__(self, top_k):
        top_k = top_k  # noqa: PLW0127

    def __call__(self, input_ids, scores):
        return filter_(scores, self.top_k)


@wrong(
    "TopK",
    "test_processor_refuses_a_negative_top_k_at_once",
    "making TopK(-1) should raise ValueError; it returned a RefusesLate",
)
class RefusesLate(LogitsProcessor):
    """The error comes with the first token, not when the processor is made."""

    def __init__(self, top_k):
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        return filter_(scores, self.top_k)


@wrong("TopK", "test_two_processors_do_not_share_their_top_k", "beside a TopK(2)")
class OneForAll(LogitsProcessor):
    """A class attribute is shared by all processors."""

    def __init__(self, top_k):
        if top_k < 0:
            raise ValueError("top_k is negative")
        type(self).top_k = top_k

    def __call__(self, input_ids, scores):
        return filter_(scores, self.top_k)


@wrong("TopK", "test_inside_generate_it_equals_top_k_of_generate", "same seed")
class FirstRowOnly(LogitsProcessor):
    """Filters the first row of a batch and leaves the rest."""

    def __init__(self, top_k):
        if top_k < 0:
            raise ValueError("top_k is negative")
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        return torch.cat([filter_(scores[:1], self.top_k), scores[1:]])


# --- what only rare data show ---------------------------------------------------------

KEEPS_NOTHING = "test_processor_keeps_nothing_of_earlier_calls"
exact = reference("top_k_exact")


@wrong("top_k_filter", "test_ties_above_the_kth_count_one_by_one", "two tokens")
def kth_distinct_value(logits, top_k):
    """The k-th largest different value: tied tokens count once."""
    if top_k < 0:
        raise ValueError("top_k")
    result = logits.clone()
    for row in result if top_k else ():
        values = row.unique().flip(0)
        row[row < values[min(top_k, len(values)) - 1]] = -INF
    return result


@wrong(
    "top_k_filter",
    "test_near_ties_are_no_ties",
    "should be [[-inf, 1.000001, -inf]], not [[1, 1.000001, -inf]]",
)
def near_ties_stay(logits, top_k):
    """isclose takes near ties for ties."""
    if top_k < 0:
        raise ValueError("top_k")
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.topk(k).values[:, -1:]
    keep = (logits > lowest) | torch.isclose(logits, lowest)
    return logits.masked_fill(~keep, -INF)


@wrong("kept_mass", "test_mass_of_near_ties", "decided by the logits")
def filter_of_probabilities(logits, top_k):
    """Logits that differ may have the same float32 probability."""
    kept = filter_(logits.softmax(-1), top_k)
    return kept.masked_fill(kept == -INF, 0).sum(-1)


@wrong("top_k_exact", TIES, "the largest logit of row 2 was removed")
def first_k_above_the_threshold(logits, top_k):
    """A tie on the left drives out a larger logit."""
    keep = filter_(logits, top_k) > -INF
    keep &= (keep.cumsum(-1) <= top_k) | (top_k == 0)
    return logits.masked_fill(~keep, -INF)


@wrong(
    "top_k_exact",
    TIES,
    "row 3 kept 4 tokens, not 1. What is added to break ties may be",
)
def slope_breaks_ties(logits, top_k):
    """A slope of 1e-6 is lost in rounding at logits of 100."""
    if top_k < 0:
        raise ValueError("top_k")
    if top_k == 0:
        return logits.clone()
    sloped = logits - 1e-6 * torch.arange(logits.shape[-1])
    lowest = sloped.topk(min(top_k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(sloped < lowest, -INF)


@wrong(
    "top_k_exact",
    "test_exact_keeps_logits_of_0_and_tells_near_ties_apart",
    "a logit like any other",
)
def zero_as_background(logits, top_k):
    """A kept logit of exactly 0 becomes -inf."""
    if top_k < 0:
        raise ValueError("top_k")
    if top_k == 0:
        return logits.clone()
    values, places = logits.topk(min(top_k, logits.shape[-1]))
    result = torch.zeros_like(logits).scatter(-1, places, values)
    return result.masked_fill(result == 0, -INF)


@wrong("sample_top_k", "test_tied_tokens_are_all_drawn", "three tokens here")
def tied_tokens_dropped(logits, top_k, temperature=1.0):
    """Exactly k, where generate keeps all that tie."""
    if not temperature > 0:
        raise ValueError("temperature")
    return torch.multinomial((exact(logits, top_k) / temperature).softmax(-1), 1)


@wrong(
    "sample_top_k",
    "test_a_second_draw_goes_on_where_the_first_ended",
    "also where one token is left",
)
def no_draw_for_one_token(logits, top_k, temperature=1.0):
    """Does not draw where one token is left, so the generator does not move."""
    if not temperature > 0:
        raise ValueError("temperature")
    kept = filter_(logits / temperature, top_k)
    if ((kept > -INF).sum(-1) == 1).all():
        return kept.argmax(-1, keepdim=True)
    return torch.multinomial(kept.softmax(-1), 1)


@wrong("sample_top_k", NONSENSE, "temperature=nan")
def nan_is_not_below_0(logits, top_k, temperature=1.0):
    """NaN is not <= 0, so it passes."""
    if temperature <= 0:
        raise ValueError("temperature")
    return torch.multinomial(filter_(logits / temperature, top_k).softmax(-1), 1)


@wrong(
    "TopK",
    KEEPS_NOTHING,
    "TopK(3), called with [[1, 3]] and then with [[1, 3, 2, 0]], should be",
)
class RemembersTheVocabulary(LogitsProcessor):
    """Clamps top_k once and for all to the smaller vocabulary of the first call."""

    def __init__(self, top_k):
        if top_k < 0:
            raise ValueError("top_k")
        self.top_k = top_k

    def __call__(self, input_ids, scores):
        self.top_k = min(self.top_k, scores.shape[-1])
        return filter_(scores, self.top_k)
