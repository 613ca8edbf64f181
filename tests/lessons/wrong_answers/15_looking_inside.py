"""Wrong answers to lesson 15, and what the learner must be told of each."""

import math

import torch

from course.making.answers import reference, wrong

entropy_ = reference("entropy")
bins_ = reference("reliability")
fit_ = reference("fit_temperature")
ranks_ = reference("token_ranks")

INF = float("inf")


def final_norm(model):
    body = model.base_model
    return body.norm if hasattr(body, "norm") else body.ln_f


# --- entropy --------------------------------------------------------------------------

HAND = "test_entropy_worked_by_hand"
NOTHING = "test_a_token_that_cannot_come_adds_nothing"


@wrong("entropy", HAND, "Those are bits")
def in_bits(logits):
    """The logarithm to the base 2."""
    return entropy_(logits) / math.log(2)


@wrong("entropy", HAND, "a minus is missing")
def negative_entropy(logits):
    """Forgets the sign."""
    return -entropy_(logits)


@wrong("entropy", HAND, "not the mean")
def mean_over_the_vocabulary(logits):
    """mean for sum."""
    p = logits.float().softmax(-1)
    return torch.special.entr(p).mean(-1)


@wrong("entropy", NOTHING, "which is nan")
def nan_of_minus_infinity(logits):
    """0 * -inf."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


@wrong("entropy", "test_logits_that_are_far_apart_give_no_nan", "may be 0 in float32")
def logarithm_of_a_softmax(logits):
    """Masks what has no finite logit, and takes the logarithm of probabilities of 0."""
    p = logits.float().softmax(-1)
    terms = (p * p.log()).masked_fill(logits == -INF, 0.0)
    return -terms.sum(-1)


@wrong("entropy", "test_entropy_of_half_precision_is_computed_in_float32", "float32")
def in_the_dtype_of_the_logits(logits):
    """No float()."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


@wrong("entropy", "test_entropy_of_half_precision_is_computed_in_float32", "float() bef")
def float_too_late(logits):
    """Rounds the probabilities to half precision first."""
    return torch.special.entr(logits.softmax(-1).float()).sum(-1)


@wrong("entropy", HAND, "should be [1.03972, 1.09861]")
def of_the_wrong_dimension(logits):
    """The softmax over the batch."""
    return torch.special.entr(logits.float().softmax(0)).sum(-1)


@wrong("entropy", "test_entropy_keeps_all_dimensions_but_the_last", "shape (2, 3)")
def of_the_sum_over_rows(logits):
    """Sums over all dimensions but the first."""
    terms = torch.special.entr(logits.float().softmax(-1))
    return terms.flatten(1).sum(-1) if terms.dim() > 1 else terms.sum()


@wrong("entropy", "test_entropy_leaves_its_argument_alone", "was changed")
def works_in_place(logits):
    """Shifts the logits it was given."""
    if logits.dim() == 2:
        logits -= logits.amax(-1, keepdim=True)
    return entropy_(logits)


# --- fork_points ----------------------------------------------------------------------

FORKS = "test_forks_worked_by_hand"


def entropies(model, ids):
    with torch.no_grad():
        return entropy_(model(ids).logits[0])


@wrong("fork_points", FORKS, "chose token t")
def places_of_the_logits(model, ids, threshold):
    """Off by one: where the distribution stands, not what was chosen from it."""
    return (entropies(model, ids)[:-1] > threshold).nonzero()[:, 0].tolist()


@wrong("fork_points", FORKS, "chosen behind the last token yet")
def the_next_token_too(model, ids, threshold):
    """Counts the place behind the text."""
    return ((entropies(model, ids) > threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", FORKS, "not below it")
def below_the_threshold(model, ids, threshold):
    """The wrong way round."""
    return ((entropies(model, ids)[:-1] <= threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", FORKS, "not below")
def sure_places(model, ids, threshold):
    """< for >."""
    return ((entropies(model, ids)[:-1] < threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", "test_an_entropy_equal_to_the_threshold_is_no_fork", "not at it")
def at_the_threshold(model, ids, threshold):
    """>= for >."""
    return ((entropies(model, ids)[:-1] >= threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", "test_the_threshold_is_in_nats", "1 bit")
def threshold_in_bits(model, ids, threshold):
    """Bits."""
    bits = entropies(model, ids)[:-1] / math.log(2)
    return ((bits > threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", FORKS, "should give [2, 4]")
def by_surprisal(model, ids, threshold):
    """What was surprising, not what was open."""
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    surprisal = -logprobs.gather(-1, ids[0, 1:, None])[:, 0]
    return ((surprisal > threshold).nonzero()[:, 0] + 1).tolist()


@wrong("fork_points", FORKS, "should return a list, not a Tensor")
def a_tensor_of_places(model, ids, threshold):
    """No tolist()."""
    return (entropies(model, ids)[:-1] > threshold).nonzero()[:, 0] + 1


@wrong("fork_points", FORKS, "not [[2], [4]]")
def nested_places(model, ids, threshold):
    """nonzero() has two dimensions."""
    return ((entropies(model, ids)[:-1] > threshold).nonzero() + 1).tolist()


@wrong("fork_points", "test_forks_are_plain_numbers_from_one_call", "once")
def a_call_for_each_place(model, ids, threshold):
    """The text again for each token."""
    places = range(1, ids.shape[1])
    with torch.no_grad():
        return [
            n
            for n in places
            if entropy_(model(ids[:, :n]).logits[0, -1]).item() > threshold
        ]


@wrong("fork_points", "test_forks_are_plain_numbers_from_one_call", "no_grad")
def forks_with_gradients(model, ids, threshold):
    """Keeps what a backward pass would need."""
    return (
        (entropy_(model(ids).logits[0, :-1]) > threshold).nonzero()[:, 0] + 1
    ).tolist()


# --- reliability ----------------------------------------------------------------------

BORDER = "test_each_border_belongs_to_the_bin_above_it"
EMPTY = "test_an_empty_bin_has_no_mean"
BINS = "test_reliability_worked_by_hand"
REFUSED = "test_what_is_no_confidence_is_refused"


def checked(confidence, correct, bins):
    if bins < 1 or len(confidence) != len(correct):
        raise ValueError("bins, or lengths")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("no confidence")
    return confidence.double(), correct.double()


def summed(confidence, correct, bins, place):
    count = torch.bincount(place, minlength=bins)
    total = torch.bincount(place, weights=confidence, minlength=bins)
    right = torch.bincount(place, weights=correct, minlength=bins)
    return total, right, count


@wrong("reliability", BORDER, "1 is in the last")
def borders_belong_below(confidence, correct, bins):
    """(i/bins, (i+1)/bins], as in many plots."""
    confidence, correct = checked(confidence, correct, bins)
    place = ((confidence * bins).ceil().long() - 1).clamp(min=0)
    total, right, count = summed(confidence, correct, bins, place)
    return (total / count).float(), (right / count).float(), count


@wrong("reliability", BINS, "should have shape (2,)")
def one_has_a_bin_of_its_own(confidence, correct, bins):
    """No clamp: a confidence of 1 makes one bin more."""
    confidence, correct = checked(confidence, correct, bins)
    place = (confidence * bins).long()
    total, right, count = summed(confidence, correct, bins, place)
    return (total / count).float(), (right / count).float(), count


@wrong("reliability", EMPTY, "nan for an empty bin")
def empty_bins_are_0(confidence, correct, bins):
    """0 where nothing is known."""
    mean, share, count = bins_(confidence, correct, bins)
    return mean.nan_to_num(), share.nan_to_num(), count


@wrong("reliability", EMPTY, "should have shape (4,)")
def empty_bins_are_left_out(confidence, correct, bins):
    """Only the bins that hold something."""
    mean, share, count = bins_(confidence, correct, bins)
    held = count > 0
    return mean[held], share[held], count[held]


@wrong("reliability", "test_the_mean_confidence_is_not_the_middle_of_the_bin", "0.52")
def middle_of_the_bin(confidence, correct, bins):
    """The middle for the mean."""
    mean, share, count = bins_(confidence, correct, bins)
    middle = (torch.arange(bins) + 0.5) / bins
    return middle.where(count > 0, mean), share, count


@wrong("reliability", BINS, "the counts should be [1, 3]")
def bins_of_equal_size(confidence, correct, bins):
    """As many predictions in each bin."""
    confidence, correct = checked(confidence, correct, bins)
    order = confidence.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) * bins // max(len(order), 1)
    total, right, count = summed(confidence, correct, bins, place)
    return (total / count).float(), (right / count).float(), count


@wrong("reliability", BINS, "should be [0, 0.666667]")
def numbers_of_right_answers(confidence, correct, bins):
    """Sums in place of shares."""
    mean, share, count = bins_(confidence, correct, bins)
    return mean, share * count, count


@wrong("reliability", BINS, "the counts should be torch.int64")
def counts_as_floats(confidence, correct, bins):
    """Adds ones up."""
    mean, share, count = bins_(confidence, correct, bins)
    return mean, share, count.float()


@wrong("reliability", REFUSED, "should raise ValueError")
def nan_gets_through(confidence, correct, bins):
    """x < 0 or x > 1 is false for NaN."""
    if bins < 1 or len(confidence) != len(correct):
        raise ValueError("bins, or lengths")
    if (confidence < 0).any() or (confidence > 1).any():
        raise ValueError("no confidence")
    return bins_(confidence.nan_to_num(), correct, bins)


@wrong("reliability", REFUSED, "should raise ValueError")
def any_number_of_answers(confidence, correct, bins):
    """Cuts the longer one."""
    n = min(len(confidence), len(correct))
    return bins_(confidence[:n], correct[:n], bins)


@wrong("reliability", BINS, "should be [0.25, 0.75]")
def accuracy_first(confidence, correct, bins):
    """The order of the results."""
    mean, share, count = bins_(confidence, correct, bins)
    return share, mean, count
