"""Wrong answers to lesson 15, and what the learner must be told of each."""

import math

import numpy
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


@wrong(
    "entropy", "test_entropy_of_half_precision_is_computed_in_float32", "float() bef"
)
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


@wrong("fork_points", FORKS, "Nothing has been chosen behind the last token yet")
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


@wrong("fork_points", FORKS, "not how surprising the token is")
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


@wrong("fork_points", FORKS, "not [[2], [5]]")
def nested_places(model, ids, threshold):
    """nonzero() has two dimensions."""
    return ((entropies(model, ids)[:-1] > threshold).nonzero() + 1).tolist()


@wrong(
    "fork_points",
    "test_an_entropy_equal_to_the_threshold_is_no_fork",
    "should return a list, not an int",
)
def one_fork_is_a_number(model, ids, threshold):
    """squeeze takes the last dimension, too."""
    h = entropies(model, ids)[:-1]
    return ((h > threshold).nonzero().squeeze() + 1).tolist()


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


@wrong("reliability", BORDER, "Bin i goes from i/bins up to")
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


@wrong("reliability", BINS, "1 belongs to the last bin")
def one_comes_first(confidence, correct, bins):
    """The remainder brings 1 back to the first bin."""
    confidence, correct = checked(confidence, correct, bins)
    place = (confidence * bins).long() % bins
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


@wrong(
    "reliability",
    "test_the_mean_confidence_is_not_the_middle_of_the_bin",
    "should be [0, 0.52]",
)
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


@wrong("reliability", BINS, "the accuracies should be")
def accuracy_first(confidence, correct, bins):
    """The order of the results."""
    mean, share, count = bins_(confidence, correct, bins)
    return share, mean, count


# --- expected_calibration_error -------------------------------------------------------

ECE = "test_ece_worked_by_hand"
SIGN = "test_the_distance_has_no_sign"


def parts(confidence, correct, bins):
    """(mean, share, count) of the bins that hold something, and how many there are."""
    mean, share, count = bins_(confidence, correct, bins)
    if not count.any():
        raise ValueError("no predictions")
    held = count > 0
    return mean[held].double(), share[held].double(), count[held], len(confidence)


@wrong("expected_calibration_error", ECE, "share of all predictions that it holds")
def mean_over_bins(confidence, correct, bins):
    """Each bin counts alike."""
    mean, share, _, _ = parts(confidence, correct, bins)
    return (share - mean).abs().mean().item()


@wrong("expected_calibration_error", SIGN, "none pays for another")
def sum_before_the_absolute_value(confidence, correct, bins):
    """Errors of different signs cancel."""
    mean, share, count, n = parts(confidence, correct, bins)
    return abs((count * (share - mean)).sum().item()) / n


@wrong("expected_calibration_error", "test_an_empty_bin_does_not_count", "0 times nan")
def nan_of_an_empty_bin(confidence, correct, bins):
    """A weight of 0 does not remove a nan."""
    parts(confidence, correct, bins)
    mean, share, count = bins_(confidence, correct, bins)
    return (count * (share - mean).abs()).sum().item() / len(confidence)


@wrong("expected_calibration_error", SIGN, "none pays for another")
def too_sure_only(confidence, correct, bins):
    """Confidence above accuracy counts, below it nothing does."""
    mean, share, count, n = parts(confidence, correct, bins)
    return (count * (mean - share).clamp(min=0)).sum().item() / n


@wrong("expected_calibration_error", ECE, "should give 0.125")
def the_largest_distance(confidence, correct, bins):
    """The maximum calibration error."""
    mean, share, _, _ = parts(confidence, correct, bins)
    return (share - mean).abs().max().item()


@wrong("expected_calibration_error", ECE, "should give 0.125")
def squared_distances(confidence, correct, bins):
    """The square in place of the absolute value."""
    mean, share, count, n = parts(confidence, correct, bins)
    return (count * (share - mean) ** 2).sum().item() / n


@wrong("expected_calibration_error", ECE, "should return a float")
def ece_as_a_tensor(confidence, correct, bins):
    """No item()."""
    mean, share, count, n = parts(confidence, correct, bins)
    return (count * (share - mean).abs()).sum() / n


@wrong(
    "expected_calibration_error",
    "test_ece_of_nothing_and_of_nonsense_is_refused",
    "should raise ValueError",
)
def nothing_is_calibrated(confidence, correct, bins):
    """0 where there are no predictions."""
    if len(confidence) == len(correct) == 0 and bins > 0:
        return 0.0
    mean, share, count, n = parts(confidence, correct, bins)
    return (count * (share - mean).abs()).sum().item() / n


# --- fit_temperature ------------------------------------------------------------------

FIT = "test_the_temperature_worked_by_hand"
LIMIT = "test_a_best_temperature_beyond_the_limits_gives_the_limit"
GRID = "test_the_temperature_is_the_best_on_a_fine_grid"


def loss(logits, targets, temperature):
    scaled = logits.double() / temperature
    return torch.nn.functional.cross_entropy(scaled, targets).item()


@wrong("fit_temperature", FIT, "That is 1/T")
def the_inverse_temperature(logits, targets):
    """What the logits must be multiplied with."""
    return 1 / fit_(logits, targets)


@wrong("fit_temperature", FIT, "needs a higher temperature")
def bisects_the_wrong_way(logits, targets):
    """Keeps the half in which the crossing is not."""
    logits = logits.float()
    true = logits.gather(-1, targets[:, None])[:, 0]
    low, high = 0.05, 20.0
    for _ in range(20):
        middle = math.sqrt(low * high)
        probs = (logits / middle).softmax(-1)
        too_sure = ((probs * logits).sum(-1) - true).mean() > 0
        low, high = (low, middle) if too_sure else (middle, high)
    return math.sqrt(low * high)


@wrong("fit_temperature", FIT, "should give 2")
def by_the_mean_confidence(logits, targets):
    """Makes the highest probability equal to the accuracy, for a wrong reason."""
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    sure = logits.float().softmax(-1).amax(-1).mean().item()
    return max(0.05, min(20.0, sure / accuracy))


@wrong("fit_temperature", FIT, "should give 2")
def a_coarse_grid(logits, targets):
    """Tries a few temperatures."""
    tried = (0.05, 0.25, 0.75, 1.0, 1.5, 2.25, 4.0, 20.0)
    return min(tried, key=lambda t: loss(logits, targets, t))


@wrong("fit_temperature", LIMIT, "limit is 0.05")
def searches_too_little(logits, targets):
    """Between 0.1 and 10 only."""
    return min(max(fit_(logits, targets), 0.1), 10.0)


@wrong("fit_temperature", LIMIT, "The lower limit")
def newton_without_limits(logits, targets):
    """Nothing keeps it between 0.05 and 20."""
    fitted = fit_(logits, targets)
    return fitted if 0.051 < fitted < 19.8 else fitted / 100


@wrong("fit_temperature", FIT, "should return a float")
def a_temperature_as_a_tensor(logits, targets):
    """No item()."""
    return torch.tensor(fit_(logits, targets))


@wrong("fit_temperature", GRID, "The loss is least at")
def best_for_the_accuracy_of_the_mean(logits, targets):
    """Matches the mean confidence of the likeliest token with the accuracy."""
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    low, high = 0.05, 20.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        sure = (logits.double() / middle).softmax(-1).amax(-1).mean().item()
        low, high = (middle, high) if sure > accuracy else (low, middle)
    return low


@wrong("fit_temperature", GRID, "The loss is least at")
def mean_of_temperatures(logits, targets):
    """A temperature for each half of the rows, and their mean."""
    if len(targets) < 12:
        return fit_(logits, targets)
    half = len(targets) // 4
    return (
        fit_(logits[:half], targets[:half]) + fit_(logits[half:], targets[half:])
    ) / 2


@wrong("fit_temperature", FIT, "was changed")
def scales_in_place(logits, targets):
    """Divides the argument."""
    fitted = fit_(logits, targets)
    logits /= fitted
    return fitted


# --- logit_lens -----------------------------------------------------------------------

LAST = "test_the_last_row_is_what_the_model_says"
CUT = "test_a_row_is_what_the_model_says_without_its_later_layers"


def states_of(model, ids):
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


@wrong("logit_lens", LAST, "normed already: not twice")
@torch.no_grad()
def norm_on_every_state(model, ids):
    """The last of hidden_states is normed already."""
    norm, head = final_norm(model), model.get_output_embeddings()
    return torch.stack([head(norm(s)).float() for s in states_of(model, ids)])


@wrong("logit_lens", CUT, "The norm is missing")
@torch.no_grad()
def lens_without_norm(model, ids):
    """Right in the last row by luck, and nowhere else."""
    head = model.get_output_embeddings()
    return torch.stack([head(s).float() for s in states_of(model, ids)])


@wrong("logit_lens", CUT, "Norm each state once")
@torch.no_grad()
def normed_twice_inside(model, ids):
    """Norms before it collects, and again before the head."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack(
        [*(head(norm(norm(s))).float() for s in inner), head(last).float()]
    )


@wrong("logit_lens", CUT, "each state has statistics of its own")
@torch.no_grad()
def the_scale_of_the_last_layer(model, ids):
    """One cached scale for all layers, as in a well-known library until 2026."""
    norm, head, kept = final_norm(model), model.get_output_embeddings(), []
    hook = norm.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    *inner, last = states_of(model, ids)
    hook.remove()
    scale = kept[0].pow(2).mean(-1, keepdim=True).sqrt()
    rows = [head(norm.weight * s / scale).float() for s in inner]
    return torch.stack([*rows, head(last).float()])


@wrong("logit_lens", CUT, "should be")
@torch.no_grad()
def norm_without_its_weight(model, ids):
    """The statistics alone."""
    head = model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    rows = [head(s / s.pow(2).mean(-1, keepdim=True).sqrt()).float() for s in inner]
    return torch.stack([*rows, head(last).float()])


@wrong("logit_lens", LAST, "should have shape (4, 2, 5, 97)")
@torch.no_grad()
def lens_without_the_embeddings(model, ids):
    """Layers only: one row is missing."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s).float() for s in [*map(norm, inner[1:]), last]])


@wrong("logit_lens", LAST, "the last layer but one")
@torch.no_grad()
def one_state_too_early(model, ids):
    """Takes the inputs of the layers for their outputs."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, _ = states_of(model, ids)
    return torch.stack([head(norm(s)).float() for s in [inner[0], *inner]])


@wrong("logit_lens", LAST, "The first row is that of the embeddings")
@torch.no_grad()
def from_the_top(model, ids):
    """The order of the rows."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s).float() for s in [*map(norm, inner), last]]).flip(0)


@wrong("logit_lens", LAST, "should have shape (4, 2, 5, 97)")
@torch.no_grad()
def of_the_last_place_alone(model, ids):
    """The next token only."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s[:, -1]).float() for s in [*map(norm, inner), last]])


@wrong("logit_lens", "test_the_lens_of_a_bfloat16_model_is_float32", "torch.float32")
@torch.no_grad()
def lens_in_the_models_dtype(model, ids):
    """No float()."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s) for s in [*map(norm, inner), last]])


ONCE = "test_the_lens_runs_the_model_once_without_gradients"


@wrong("logit_lens", ONCE, "run the model once")
@torch.no_grad()
def a_call_for_the_last_row(model, ids):
    """Asks the model again for what it has."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, _ = states_of(model, ids)
    rows = [head(norm(s)).float() for s in inner]
    return torch.stack([*rows, model(ids).logits.float()])


@wrong("logit_lens", ONCE, "no_grad")
def gradients_of_the_head(model, ids):
    """no_grad around the model only."""
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s).float() for s in [*map(norm, inner), last]])


LEFT = "test_the_lens_leaves_the_model_as_it_was"


@wrong("logit_lens", LEFT, "left a hook on the model")
@torch.no_grad()
def a_hook_stays_on_the_norm(model, ids):
    """Never removes it: each call adds another."""
    norm, head, seen = final_norm(model), model.get_output_embeddings(), []
    norm.register_forward_hook(lambda _, given, normed: seen.append(normed))
    *inner, last = states_of(model, ids)
    return torch.stack([head(s).float() for s in [*map(norm, inner), last]])


@wrong("logit_lens", LEFT, "output_hidden_states in the config")
@torch.no_grad()
def states_for_good(model, ids):
    """From now on each call of the model keeps all states."""
    model.config.output_hidden_states = True
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = model(ids).hidden_states
    return torch.stack([head(s).float() for s in [*map(norm, inner), last]])


@wrong("logit_lens", LEFT, "not of the model")
@torch.no_grad()
def a_float32_model(model, ids):
    """float() of a module works in place."""
    model = model.float()
    norm, head = final_norm(model), model.get_output_embeddings()
    *inner, last = states_of(model, ids)
    return torch.stack([head(s) for s in [*map(norm, inner), last]])


# --- attention_rollout ----------------------------------------------------------------

ROLL = "test_rollout_worked_by_hand"


def rolled(attentions, mix, left=True, heads=lambda a: a.float().mean(1)):
    if len(attentions) == 0:
        raise ValueError("no layer")
    rollout = torch.eye(attentions[0].shape[-1])[None]
    for attention in attentions:
        step = mix(heads(attention))
        rollout = step @ rollout if left else rollout @ step
    return rollout


def half(a):
    return a / 2 + torch.eye(a.shape[-1]) / 2


@wrong("attention_rollout", ROLL, "Half of each place is the place itself")
def without_the_residual(attentions):
    """Attention alone."""
    return rolled(attentions, lambda a: a)


@wrong("attention_rollout", ROLL, "add up to 2")
def not_divided_by_two(attentions):
    """A + I, without dividing."""
    return rolled(attentions, lambda a: a + torch.eye(a.shape[-1]))


@wrong("attention_rollout", "test_later_layers_multiply_from_the_left", "M2 @ M1")
def from_the_right(attentions):
    """The order of the product."""
    return rolled(attentions, half, left=False)


@wrong("attention_rollout", "test_later_layers_multiply_from_the_left", "should be")
def the_mean_of_the_layers(attentions):
    """No product at all."""
    if len(attentions) == 1:
        return rolled(attentions, half)
    mean = sum(half(a.float().mean(1)) for a in attentions) / len(attentions)
    return rolled(attentions, half) if attentions[0].shape[-1] == 2 else mean


@wrong("attention_rollout", "test_rollout_takes_the_mean_of_the_heads", "The mean of")
def the_largest_head(attentions):
    """max over heads, as some variants do."""
    return rolled(attentions, half, heads=lambda a: a.float().amax(1))


@wrong("attention_rollout", "test_rollout_takes_the_mean_of_the_heads", "The mean of")
def the_first_head(attentions):
    """One head for all."""
    return rolled(attentions, half, heads=lambda a: a.float()[:, 0])


@wrong("attention_rollout", "test_rollout_is_the_sum_over_all_paths", "shape (2, 4, 4)")
def the_first_row_only(attentions):
    """Forgets the batch."""
    return rolled([a[:1] for a in attentions], half)


@wrong("attention_rollout", "test_rollout_is_the_sum_over_all_paths", "should be")
def elementwise_product(attentions):
    """* for @."""
    if len(attentions) < 3:
        return rolled(attentions, half)
    rollout = half(attentions[0].float().mean(1))
    for attention in attentions[1:]:
        rollout = rollout * half(attention.float().mean(1))
    return rollout


@wrong("attention_rollout", "test_the_rollout_of_each_place_adds_up_to_1", "float32")
def rollout_in_half_precision(attentions):
    """Multiplies in the dtype of the weights."""
    if len(attentions) == 0:
        raise ValueError("no layer")
    rollout = torch.eye(attentions[0].shape[-1]).to(attentions[0].dtype)[None]
    for attention in attentions:
        mean = attention.mean(1)
        rollout = (mean + torch.eye(mean.shape[-1]).to(mean.dtype)) / 2 @ rollout
    return rollout


@wrong(
    "attention_rollout",
    "test_half_precision_attention_is_multiplied_in_float32",
    "float() first",
)
def float_at_the_end(attentions):
    """Rounds each product to half precision, and then makes float32 of it."""
    return rollout_in_half_precision.value(attentions).float()


@wrong("attention_rollout", "test_no_layer_is_refused", "should raise ValueError")
def none_is_none(attentions):
    """IndexError for no layers."""
    rollout = torch.eye(attentions[0].shape[-1])[None]
    for attention in attentions:
        rollout = half(attention.float().mean(1)) @ rollout
    return rollout


# --- token_ranks ----------------------------------------------------------------------

RANK = "test_ranks_worked_by_hand"
EQUAL = "test_tokens_that_are_all_equal_have_rank_1"


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


@wrong("token_ranks", RANK, "The likeliest token has rank 1")
def ranks_from_0(model, ids):
    """Counts from 0."""
    return ranks_(model, ids) - 1


@wrong("token_ranks", RANK, "Equal tokens share the better rank")
def ties_count(model, ids):
    """>= counts the token itself, and those that are equal."""
    logits = logits_of(model, ids)[:, :-1]
    return (logits >= logits.gather(-1, ids[:, 1:, None])).sum(-1)


@wrong("token_ranks", RANK, "behind token t - 1")
def ranks_of_the_wrong_place(model, ids):
    """The logits behind a token for the token itself."""
    logits = logits_of(model, ids)[:, 1:]
    return (logits > logits.gather(-1, ids[:, 1:, None])).sum(-1) + 1


@wrong("token_ranks", RANK, "not the unlikeliest")
def ranks_from_the_bottom(model, ids):
    """argsort without descending."""
    logits = logits_of(model, ids)[:, :-1]
    return (logits < logits.gather(-1, ids[:, 1:, None])).sum(-1) + 1


@wrong(
    "token_ranks",
    "test_ranks_reach_into_the_tail",
    "these probabilities are 0 in float32",
)
def ranks_by_probability(model, ids):
    """The softmax of the tail is 0."""
    p = logits_of(model, ids)[:, :-1].float().softmax(-1)
    return (p > p.gather(-1, ids[:, 1:, None])).sum(-1) + 1


@wrong("token_ranks", RANK, "should be")
def places_in_argsort(model, ids):
    """argsort tells which token has a rank, not which rank a token has."""
    order = logits_of(model, ids)[:, :-1].argsort(-1, descending=True)
    return order.gather(-1, ids[:, 1:, None])[..., 0] + 1


@wrong("token_ranks", EQUAL, "more probable than another")
def ranks_by_a_stable_sort(model, ids):
    """Of equal tokens the one with the smaller id comes first."""
    logits = logits_of(model, ids)[:, :-1]
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranks = (order == ids[:, 1:, None]).int().argmax(-1) + 1
    equal = (logits == logits.gather(-1, ids[:, 1:, None])).sum(-1) < 4
    return torch.where(equal, ranks_(model, ids), ranks)


NEAR = "test_near_logits_are_not_equal"


@wrong("token_ranks", NEAR, "in half precision they are equal")
def ranks_in_half_precision(model, ids):
    """Saves memory, and rounds logits to one value."""
    logits = logits_of(model, ids)[:, :-1].bfloat16()
    return (logits > logits.gather(-1, ids[:, 1:, None])).sum(-1) + 1


@wrong("token_ranks", NEAR, "should be")
def ranks_with_a_tolerance(model, ids):
    """Takes near logits for equal."""
    logits = logits_of(model, ids)[:, :-1]
    return (logits > logits.gather(-1, ids[:, 1:, None]) + 1e-3).sum(-1) + 1


@wrong("token_ranks", RANK, "two of them equally so")
def dense_ranks(model, ids):
    """Counts equal tokens once."""
    logits = logits_of(model, ids)[:, :-1]
    ranks = torch.ones_like(ids[:, 1:])
    for row, place in numpy.ndindex(*ranks.shape):
        values = logits[row, place]
        ranks[row, place] += (values.unique() > values[ids[row, place + 1]]).sum()
    return ranks


@wrong("token_ranks", RANK, "should be torch.int64")
def ranks_as_floats(model, ids):
    """For the logarithm that comes later."""
    return ranks_(model, ids).float()


@wrong("token_ranks", "test_each_row_and_place_has_its_own_rank", "shape (3, 3)")
def ranks_of_one_row(model, ids):
    """Forgets the batch."""
    return ranks_(model, ids[:1])


@wrong("token_ranks", "test_ranks_come_from_one_call_without_gradients", "once")
def a_call_for_each_rank(model, ids):
    """The text again for each token."""
    columns = [ranks_(model, ids[:, : n + 1])[:, -1:] for n in range(1, ids.shape[1])]
    return torch.cat(columns, 1) if columns else ranks_(model, ids)


@wrong("token_ranks", "test_ranks_come_from_one_call_without_gradients", "no_grad")
def ranks_with_gradients(model, ids):
    """Keeps what a backward pass would need."""
    logits = model(ids).logits[:, :-1]
    return (logits > logits.gather(-1, ids[:, 1:, None])).sum(-1) + 1
