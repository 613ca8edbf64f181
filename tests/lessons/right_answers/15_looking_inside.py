"""Right answers to lesson 15 in another style: each must pass all checks."""

import math

import numpy
import torch

from course.making.answers import reference, right

bins_ = reference("reliability")

INF = float("inf")

# --- entropy --------------------------------------------------------------------------


@right("entropy")
def categorical(logits):
    """What torch.distributions has."""
    return torch.distributions.Categorical(
        logits=logits.float(), validate_args=False
    ).entropy()


@right("entropy")
def logsumexp_minus_the_mean_logit(logits):
    """H = ln Z - E[z]."""
    z = logits.to(torch.float32)
    p = torch.softmax(z, dim=-1)
    return torch.logsumexp(z, -1) - (p * z.masked_fill(p == 0, 0.0)).sum(dim=-1)


@right("entropy")
def in_double_and_masked(logits):
    """Leaves out what cannot come."""
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    terms = torch.exp(logprobs) * logprobs
    return (
        -torch.where(logprobs == -INF, torch.zeros_like(terms), terms).sum(-1).float()
    )


@right("entropy")
def cross_entropy_with_itself(logits):
    """xlogy."""
    p = logits.float().softmax(-1)
    return torch.xlogy(p, p).sum(-1).neg()


# --- fork_points ----------------------------------------------------------------------


@right("fork_points")
def a_list_of_entropies(model, ids, threshold):
    """Python's own loop."""
    with torch.inference_mode():
        logits = model(ids).logits[0].float()
    p = logits.softmax(-1)
    h = torch.special.entr(p).sum(-1).tolist()
    return [t for t in range(1, ids.size(1)) if h[t - 1] > threshold]


@right("fork_points")
def with_where(model, ids, threshold):
    """torch.where, and the keyword for the ids."""
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False)
    h = torch.distributions.Categorical(logits=out.logits.float()[0]).entropy()
    places = torch.where(h[: ids.shape[-1] - 1] > threshold)[0]
    return [int(place) + 1 for place in places]


@right("fork_points")
def without_the_last_token(model, ids, threshold):
    """What comes behind the last token is not asked."""
    with torch.no_grad():
        p = model(ids[:, :-1]).logits[0].float().softmax(-1)
    h = torch.special.entr(p).sum(-1).tolist()
    return [place for place, nats in enumerate(h, 1) if nats > threshold]


@right("fork_points")
def shifted_mask(model, ids, threshold):
    """A flag for each token, the first one False."""
    with torch.no_grad():
        p = model(ids).logits.double().softmax(-1)[0]
    flags = [False, *(torch.special.entr(p).sum(-1) > threshold).tolist()]
    return [n for n, flag in enumerate(flags[: ids.shape[1]]) if flag]


# --- reliability ----------------------------------------------------------------------


def refused(confidence, correct, bins):
    if bins <= 0 or confidence.shape != correct.shape:
        raise ValueError("bins, or shapes")
    if bool(((confidence < 0) | (confidence > 1) | confidence.isnan()).any()):
        raise ValueError("no confidence")


@right("reliability")
def a_mask_for_each_bin(confidence, correct, bins):
    """A loop over bins."""
    refused(confidence, correct, bins)
    c, rows = confidence.double(), []
    for i in range(bins):
        inside = (c * bins >= i) & ((c * bins < i + 1) | (i == bins - 1))
        rows.append((c[inside].mean(), correct[inside].double().mean(), inside.sum()))
    mean, share, count = zip(*rows, strict=True)
    return torch.stack(mean).float(), torch.stack(share).float(), torch.stack(count)


@right("reliability")
def one_hot_bins(confidence, correct, bins):
    """A matrix of which prediction is in which bin."""
    refused(confidence, correct, bins)
    c = confidence.double()
    place = torch.floor(c * bins).clamp(0, bins - 1).long()
    member = torch.nn.functional.one_hot(place, bins).double()  # (n, bins)
    count = member.sum(0)
    total, hits = c @ member, correct.double() @ member
    return (total / count).float(), (hits / count).float(), count.long()


@right("reliability")
def numpy_histogram(confidence, correct, bins):
    """numpy's histogram, whose last bin is closed."""
    refused(confidence, correct, bins)
    c = confidence.double().numpy()
    place = numpy.minimum((c * bins).astype(int), bins - 1)
    edges = numpy.arange(bins + 1) - 0.5
    count = numpy.histogram(place, edges)[0]
    total = numpy.histogram(place, edges, weights=c)[0]
    hits = numpy.histogram(place, edges, weights=correct.double().numpy())[0]
    with numpy.errstate(invalid="ignore"):
        mean, share = total / count, hits / count
    return (
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(share, dtype=torch.float32),
        torch.from_numpy(count).long(),
    )


@right("reliability")
def scatter_into_bins(confidence, correct, bins):
    """scatter_add, and buckets by their borders."""
    refused(confidence, correct, bins)
    c = confidence.double()
    borders = torch.arange(1, bins, dtype=torch.float64) / bins
    place = torch.bucketize(c, borders, right=True)
    zeros = torch.zeros(bins, dtype=torch.float64)
    count = zeros.scatter_add(0, place, torch.ones_like(c))
    mean = zeros.scatter_add(0, place, c) / count
    share = zeros.scatter_add(0, place, correct.double()) / count
    return mean.float(), share.float(), count.to(torch.int64)


# --- expected_calibration_error -------------------------------------------------------


@right("expected_calibration_error")
def sum_in_python(confidence, correct, bins):
    """A loop over the bins that hold something."""
    mean, share, count = (x.tolist() for x in bins_(confidence, correct, bins))
    if sum(count) == 0:
        raise ValueError("nothing")
    error = 0.0
    for m, s, n in zip(mean, share, count, strict=True):
        if n:
            error += n * abs(s - m)
    return error / sum(count)


@right("expected_calibration_error")
def nan_to_num(confidence, correct, bins):
    """0 for the distance of an empty bin."""
    mean, share, count = bins_(confidence, correct, bins)
    if len(confidence) < 1:
        raise ValueError("nothing")
    weight = count / len(confidence)
    return float((weight * (mean - share).abs().nan_to_num(0.0)).sum())


@right("expected_calibration_error")
def nansum(confidence, correct, bins):
    """nansum leaves them out."""
    mean, share, count = bins_(confidence, correct, bins)
    if not len(correct):
        raise ValueError("nothing")
    total = torch.nansum(count * torch.abs(share.double() - mean.double()))
    return total.item() / len(correct)


# --- fit_temperature ------------------------------------------------------------------


@right("fit_temperature")
def lbfgs(logits, targets):
    """As in the authors' code, on the logarithm, and cut to the limits."""
    z = logits.double()
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    low, high = math.log(0.05), math.log(20)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        t = log_t.clamp(low - 1, high + 1).exp()
        loss = torch.nn.functional.cross_entropy(z / t, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return min(20.0, max(0.05, log_t.exp().item()))


@right("fit_temperature")
def golden_section(logits, targets):
    """The loss alone, no derivative."""
    z, ratio = logits.double(), (math.sqrt(5) - 1) / 2

    def loss(x):
        return torch.nn.functional.cross_entropy(z / math.exp(x), targets).item()

    a, b = math.log(0.05), math.log(20)
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    while b - a > 1e-4:
        if loss(c) <= loss(d):
            b, d = d, c
            c = b - ratio * (b - a)
        else:
            a, c = c, d
            d = a + ratio * (b - a)
    return math.exp((a + b) / 2)


@right("fit_temperature")
def a_grid_and_a_finer_one(logits, targets):
    """Twice a grid of 100."""
    z = logits.double()

    def best(grid):
        return min(
            grid, key=lambda t: torch.nn.functional.cross_entropy(z / t, targets).item()
        )

    def between(low, high):
        return numpy.geomspace(low, high, 60).tolist()

    coarse = best(between(0.05, 20.0))
    step = 400 ** (1 / 59)
    fine = best(between(max(0.05, coarse / step), min(20.0, coarse * step)))
    return float(fine)


@right("fit_temperature")
def bisect_the_inverse(logits, targets):
    """In 1/T, where the loss is convex."""
    z = logits.double()
    z = z - z.mean(-1, keepdim=True)
    true = z[torch.arange(len(z)), targets].mean()
    low, high = 1 / 20, 1 / 0.05
    for _ in range(40):
        beta = (low + high) / 2
        if ((z * beta).softmax(-1) * z).sum(-1).mean() > true:
            high = beta
        else:
            low = beta
    return 2 / (low + high)


@right("fit_temperature")
def golden_section_of_the_inverse_in_float32(logits, targets):
    """In float32 the loss of a sharp distribution is 0, here it is not yet."""
    z, ratio = logits.float(), (math.sqrt(5) - 1) / 2

    def loss(inverse):
        return torch.nn.functional.cross_entropy(z * inverse, targets).item()

    low, high = 1 / 20, 20.0
    while high - low > 1e-3 * low:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) <= loss(b) else (a, high)
    return 2 / (low + high)


@right("fit_temperature")
def bisect_with_at_least(logits, targets):
    """At equality up, not down."""
    z, low, high = logits.float(), 0.05, 20.0
    true = z.gather(-1, targets[:, None]).mean()
    for _ in range(16):
        middle = math.sqrt(low * high)
        mean = ((z / middle).softmax(-1) * z).sum(-1).mean()
        low, high = (middle, high) if mean >= true else (low, middle)
    return math.sqrt(low * high)


# --- logit_lens -----------------------------------------------------------------------


def final_norm(model):
    body = model.base_model
    return getattr(body, "norm", None) or body.ln_f


@right("logit_lens")
def with_a_hook_on_the_norm(model, ids):
    """Catches the last state before its norm, and norms all alike."""
    caught, norm = [], final_norm(model)
    hook = norm.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[:-1]
    finally:
        hook.remove()
    with torch.no_grad():
        states = torch.stack([*states, caught[0]])
        return model.lm_head(norm(states)).float()


@right("logit_lens")
def the_logits_for_the_last_row(model, ids):
    """What the model says is the last row."""
    with torch.inference_mode():
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        inner = torch.stack(out.hidden_states[:-1])
        rows = model.lm_head(final_norm(model)(inner))
        return torch.cat([rows, out.logits[None]]).to(torch.float32)


@right("logit_lens")
def the_body_alone(model, ids):
    """Runs the model without its head, and fills a tensor."""
    with torch.no_grad():
        states = model.base_model(ids, output_hidden_states=True).hidden_states
        size = (len(states), *ids.shape, model.config.vocab_size)
        lens = torch.empty(size, dtype=torch.float32)
        for n, state in enumerate(states):
            if n < len(states) - 1:
                state = final_norm(model)(state)
            lens[n] = state @ model.lm_head.weight.T
    return lens


# --- attention_rollout ----------------------------------------------------------------


@right("attention_rollout")
def einsum_rollout(attentions):
    """einsum, from the first layer on."""
    if not attentions:
        raise ValueError("no layers")
    rollout = None
    for attention in attentions:
        mean = torch.einsum("bhij->bij", attention.float()) / attention.shape[1]
        mean = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1]).unsqueeze(0)
        rollout = (
            mean if rollout is None else torch.einsum("bij,bjk->bik", mean, rollout)
        )
    return rollout


@right("attention_rollout")
def normalised_as_in_the_paper(attentions):
    """A + I, and the rows divided by their sum."""
    layers = list(attentions)
    if len(layers) < 1:
        raise ValueError("no layers")
    stack = torch.stack([a.float().mean(dim=1) for a in layers])
    stack = stack + torch.eye(stack.shape[-1])
    stack = stack / stack.sum(-1, keepdim=True)
    out = stack[0]
    for matrix in stack[1:]:
        out = torch.bmm(matrix, out)
    return out


@right("attention_rollout")
def from_the_last_layer_down(attentions):
    """The same product, from the other end."""
    if len(attentions) == 0:
        raise ValueError("no layers")
    out = None
    for attention in reversed(attentions):
        mixed = attention.double().mean(1)
        mixed = mixed.lerp(torch.eye(mixed.shape[-1]).double().expand_as(mixed), 0.5)
        out = mixed if out is None else out @ mixed
    return out.float()


@right("attention_rollout")
def multi_dot_by_row(attentions):
    """Row by row of the batch, with linalg.multi_dot."""
    if not len(attentions):
        raise ValueError("no layers")
    rows = []
    for b in range(attentions[0].shape[0]):
        identity = torch.eye(attentions[0].shape[-1])
        steps = [(a[b].float().mean(0) + identity) / 2 for a in attentions][::-1]
        rows.append(steps[0] if len(steps) == 1 else torch.linalg.multi_dot(steps))
    return torch.stack(rows)


# --- token_ranks ----------------------------------------------------------------------


@right("token_ranks")
def advanced_indexing(model, ids):
    """Indices in place of gather."""
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    batch, seq = ids.shape
    rows, places = torch.arange(batch)[:, None], torch.arange(seq - 1)[None]
    came = logits[rows, places, ids[:, 1:]]
    return torch.count_nonzero(logits[:, :-1] > came[..., None], dim=-1) + 1


@right("token_ranks")
def searchsorted_ranks(model, ids):
    """A binary search in the sorted logits."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()
    came = torch.gather(logits, -1, ids[:, 1:].unsqueeze(-1))
    ordered = (-logits).sort(-1).values.contiguous()
    return torch.searchsorted(ordered, (-came).contiguous()).squeeze(-1) + 1


@right("token_ranks")
def ranks_without_the_last_token(model, ids):
    """What comes behind the last token is not asked."""
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    return (logits > logits.gather(-1, ids[:, 1:, None])).sum(-1) + 1


@right("token_ranks")
def text_by_text(model, ids):
    """A loop over rows and places, after one call."""
    with torch.no_grad():
        logits = model(ids).logits
    ranks = torch.empty(ids.shape[0], ids.shape[1] - 1, dtype=torch.long)
    for b, row in enumerate(ids.tolist()):
        for t, token in enumerate(row[1:]):
            ranks[b, t] = 1 + int((logits[b, t] > logits[b, t, token]).sum())
    return ranks


@right("token_ranks")
def not_below(model, ids):
    """All tokens but those that are not more probable."""
    with torch.no_grad():
        logits = model(ids).logits.narrow(1, 0, ids.shape[1] - 1)
    came = logits.gather(2, ids[:, 1:].unsqueeze(2))
    return logits.shape[-1] - (logits <= came).sum(dim=2) + 1
