"""Right answers to lesson 04 in another style: each must pass all checks."""

import torch
from transformers import LogitsProcessor, TopKLogitsWarper

from course.making.answers import reference, right

INF = float("inf")
filter_ = reference("top_k_filter")


def checked(top_k):
    if top_k < 0:
        raise ValueError(f"top_k must be 0 or more, got {top_k}")
    return top_k


@right("top_k_filter")
def by_sorting(logits, top_k):
    """The k-th of the sorted logits is the threshold."""
    vocab = logits.shape[-1]
    k = min(checked(top_k) or vocab, vocab)
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.where(logits >= lowest, logits, -INF)


@right("top_k_filter")
def by_kthvalue(logits, top_k):
    """kthvalue counts from the smallest."""
    vocab = logits.shape[-1]
    if checked(top_k) == 0 or top_k >= vocab:
        return logits.clone()
    lowest = logits.kthvalue(vocab - top_k + 1, dim=-1, keepdim=True).values
    return logits.masked_fill(logits < lowest, -INF)


@right("top_k_filter")
def row_by_row_in_python(logits, top_k):
    """Lists and a loop over rows."""
    k = checked(top_k) or logits.shape[-1]
    rows = []
    for row in logits:
        lowest = sorted(row.tolist(), reverse=True)[:k][-1]
        rows.append(torch.tensor([x if x >= lowest else -INF for x in row.tolist()]))
    return torch.stack(rows).to(logits.dtype)


@right("top_k_filter")
def in_place_on_a_clone(logits, top_k):
    """Writes into a copy by a boolean mask."""
    out = logits.clone()
    if checked(top_k):
        best = torch.topk(logits, k=min(top_k, logits.size(-1)), dim=-1)
        out[out < best.values.min(dim=-1).values.unsqueeze(-1)] = -INF
    return out


@right("top_k_filter")
def by_adding_minus_infinity(logits, top_k):
    """A mask of 0 and -inf is added."""
    if checked(top_k) == 0:
        return logits + 0
    lowest = logits.topk(min(top_k, logits.shape[1])).values[:, [-1]]
    mask = torch.zeros_like(logits).masked_fill_(logits < lowest, -INF)
    return logits + mask


@right("kept_mass")
def sum_of_kept_probabilities(logits, top_k):
    """Softmax first, then the probabilities of what the filter keeps."""
    kept = filter_(logits, top_k) > -INF
    return (logits.softmax(-1) * kept).sum(-1)


@right("kept_mass")
def in_float64(logits, top_k):
    """Everything in double precision."""
    kept = filter_(logits, top_k).isfinite()
    return logits.double().softmax(-1).masked_fill(~kept, 0).sum(dim=1)


@right("kept_mass")
def ratio_of_two_logsumexps(logits, top_k):
    """The mass is exp of a difference of log-sums."""
    kept = filter_(logits, top_k).logsumexp(-1)
    return (kept - logits.logsumexp(-1)).exp()


@right("kept_mass")
def row_sums_in_python(logits, top_k):
    """A list with one number for each row."""
    kept = filter_(logits, top_k)
    masses = [p[k > -INF].sum().item() for p, k in zip(logits.softmax(-1), kept)]  # noqa: B905
    return torch.tensor(masses)


@right("top_k_exact")
def by_scatter(logits, top_k):
    """topk's own indices, written into a tensor of -inf."""
    if checked(top_k) == 0:
        return logits.clone()
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -INF).scatter_(-1, best.indices, best.values)


@right("top_k_exact")
def by_stable_argsort(logits, top_k):
    """Ranks: the first of equals is kept."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    k = checked(top_k) or logits.shape[-1]
    return logits.masked_fill(rank >= k, -INF)


@right("top_k_exact")
def the_last_of_equals(logits, top_k):
    """Keeps the last of equals, which is as good as the first."""
    order = logits.flip(-1).argsort(dim=-1, descending=True, stable=True)
    k = checked(top_k) or logits.shape[-1]
    keep = torch.zeros_like(logits, dtype=torch.bool)
    keep.scatter_(-1, logits.shape[-1] - 1 - order[:, :k], True)
    return torch.where(keep, logits, -INF)


@right("top_k_exact")
def one_row_at_a_time(logits, top_k):
    """Python's own stable sort for each row."""
    checked(top_k)
    out = torch.full_like(logits, -INF)
    for row, values in enumerate(logits.tolist()):
        places = sorted(range(len(values)), key=lambda i: -values[i])  # noqa: B023
        for place in places[: top_k or None]:
            out[row, place] = logits[row, place]
    return out


@right("sample_top_k")
def filter_before_the_temperature(logits, top_k, temperature=1.0):
    """A positive temperature keeps the order, so the filter may come first."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    probabilities = (filter_(logits, top_k) / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1)


@right("sample_top_k")
def by_the_race(logits, top_k, temperature=1.0):
    """The exponential race instead of torch.multinomial: the same random numbers."""
    if not temperature > 0:
        raise ValueError("temperature must be above 0")
    probabilities = filter_(logits / temperature, top_k).softmax(-1)
    noise = torch.empty_like(probabilities).exponential_()
    return (probabilities / noise).argmax(-1, keepdim=True)


@right("sample_top_k")
def through_transformers(logits, top_k, temperature=1.0):
    """The library's processor, and unnormalised weights: multinomial rescales them."""
    checked(top_k)
    if not temperature > 0:
        raise ValueError("temperature must be above 0")
    scores = logits / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = scores - scores.amax(-1, keepdim=True)
    return torch.multinomial(scores.exp(), num_samples=1)


@right("TopK")
class NotALogitsProcessor:
    """generate asks for a callable, not for the base class."""

    def __init__(self, top_k):
        self.top_k = checked(top_k)

    def __call__(self, input_ids, scores):
        return filter_(scores, self.top_k)


@right("TopK")
class WithTheLibraryInside(LogitsProcessor):
    """Wraps the library's own processor."""

    def __init__(self, top_k: int):
        checked(top_k)
        self.inner = TopKLogitsWarper(top_k) if top_k else lambda ids, scores: scores

    def __call__(self, input_ids, scores):
        return self.inner(input_ids, scores)


@right("TopK")
class KeepsAFunction(LogitsProcessor):
    """The number is kept in a closure."""

    def __init__(self, top_k: int):
        checked(top_k)
        self.apply = lambda scores: filter_(scores, top_k)

    def __call__(self, input_ids, scores):
        return self.apply(scores)
