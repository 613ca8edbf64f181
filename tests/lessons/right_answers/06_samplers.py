"""Right answers to lesson 06 in another style: each must pass all checks."""

import functools
import math

import torch
from transformers import EtaLogitsWarper, MinPLogitsWarper

from course.making.answers import right

INF = float("inf")


def between(value, low, high, name):
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")


def on_float32(answer):
    """The tokens that `answer` keeps of float32 logits, in the dtype given."""

    @functools.wraps(answer)
    def filtered(logits, *rest, **named):
        out = answer(logits.float(), *rest, **named)
        return logits.masked_fill(out == -INF, -INF)

    return filtered


@right("top_p_filter")
@on_float32
def from_the_tail(logits, top_p):
    """Ascending: remove while the mass so far is at most 1 - top_p."""
    between(top_p, 0, 1, "top_p")
    ordered, places = torch.sort(logits, dim=-1)
    remove = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    remove[:, -1] = False
    remove = remove & (top_p < 1)
    return logits.masked_fill(remove.scatter(1, places, remove), -INF)


@right("top_p_filter")
@on_float32
def token_by_token_in_python(logits, top_p):
    """A loop over the sorted tokens of each row."""
    between(top_p, 0, 1, "top_p")
    out = torch.full_like(logits, -INF)
    for row, p in enumerate(logits.softmax(-1)):
        mass = 0.0
        for place in p.argsort(descending=True).tolist():
            if mass >= top_p and mass > 0:
                break
            out[row, place] = logits[row, place]
            mass += p[place].item()
    return out if top_p < 1 else logits.clone()


@right("top_p_filter")
def the_number_that_stays(logits, top_p):
    """topk of each row, as many as its mass in float64 needs."""
    between(top_p, 0, 1, "top_p")
    out = logits.clone()
    for row, p in zip(out, logits.double().softmax(-1), strict=True):
        ordered, places = p.sort(descending=True)
        number = int((ordered.cumsum(-1) < top_p).sum()) + 1
        row[places[number:] if top_p < 1 else []] = -INF
    return out


@right("min_p_filter")
@on_float32
def with_logits_alone(logits, min_p):
    """A fixed distance below the best logit."""
    between(min_p, 0, 1, "min_p")
    if min_p == 0:
        return logits.clone()
    line = logits.max(-1, keepdim=True).values + math.log(min_p)
    return torch.where(logits < line - 1e-6, -INF, logits)


@right("min_p_filter")
@on_float32
def floor_of_the_library(logits, min_p):
    """The library's processor."""
    between(min_p, 0, 1, "min_p")
    return MinPLogitsWarper(min_p)(None, logits)


@right("min_p_filter")
@on_float32
def relative_probabilities(logits, min_p):
    """Divides by the largest probability first."""
    between(min_p, 0, 1, "min_p")
    relative = (logits - logits.amax(-1, keepdim=True)).exp()
    out = logits.clone()
    out[relative < min_p * (1 - 1e-6)] = -INF
    return out


@right("typical_filter")
def from_the_farthest(logits, typical_p):
    """The farthest first: all go while what would be left holds the mass."""
    if typical_p <= 0 or typical_p > 1:
        raise ValueError("typical_p must be above 0 and at most 1")
    p = logits.double().softmax(-1)
    surprisal = -logits.double().log_softmax(-1)
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    places = (surprisal - entropy).abs().argsort(-1, descending=True)
    left = 1 - p.gather(-1, places).cumsum(-1)  # without this one and those before
    remove = (left >= typical_p - 1e-9) & (typical_p < 1)
    return logits.masked_fill(remove.scatter(-1, places, remove), -INF)


@right("typical_filter")
@on_float32
def with_a_categorical(logits, typical_p):
    """Entropy from torch.distributions; a sorted mask."""
    if not 0 < typical_p <= 1:
        raise ValueError("typical_p must be above 0 and at most 1")
    p = logits.softmax(-1)
    entropy = torch.distributions.Categorical(probs=p).entropy()[:, None]
    distance = (-logits.log_softmax(-1) - entropy).abs()
    order = distance.sort(dim=-1).indices
    mass = torch.take_along_dim(p, order, -1).cumsum(-1)
    number = (mass < typical_p).sum(-1, keepdim=True) + 1
    rank = order.argsort(-1)
    return torch.where((rank < number) | (typical_p == 1), logits, -INF)


@right("typical_filter")
@on_float32
def typical_in_python(logits, typical_p):
    """Lists and sums."""
    if not 0 < typical_p <= 1:
        raise ValueError("typical_p must be above 0 and at most 1")
    out = torch.full_like(logits, -INF)
    for row, p in enumerate(logits.softmax(-1).tolist()):
        surprisal = [-math.log(x) if x > 0 else INF for x in p]
        entropy = sum(x * s for x, s in zip(p, surprisal, strict=True) if x > 0)
        mass = 0.0
        for n in sorted(range(len(p)), key=lambda n: abs(surprisal[n] - entropy)):  # noqa: B023
            if mass >= typical_p and typical_p < 1:
                break
            out[row, n] = logits[row, n]
            mass += p[n]
    return out


@right("eta_filter")
@on_float32
def eta_of_the_library(logits, epsilon):
    """The library's processor, which does not take 0."""
    if not 0 <= epsilon < 1:
        raise ValueError("epsilon must be 0 or more and below 1")
    return EtaLogitsWarper(epsilon)(None, logits) if epsilon else logits.clone()


@right("eta_filter")
@on_float32
def in_logarithms(logits, epsilon):
    """Compares log-probabilities with ln eta."""
    if not 0 <= epsilon < 1:
        raise ValueError("epsilon must be 0 or more and below 1")
    if epsilon == 0:
        return logits.clone()
    logprobs = logits.log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1, keepdim=True)
    eta = torch.minimum(
        torch.full_like(entropy, math.log(epsilon)), math.log(epsilon) / 2 - entropy
    )
    keep = (logprobs >= eta - 1e-6) | (logits == logits.amax(-1, keepdim=True))
    return torch.where(keep, logits, -INF)


@right("eta_filter")
@on_float32
def eta_row_by_row(logits, epsilon):
    """A loop over rows."""
    if epsilon < 0 or epsilon >= 1:
        raise ValueError("epsilon must be 0 or more and below 1")
    rows = []
    for row in logits:
        p = row.softmax(0)
        entropy = -sum(x * math.log(x) for x in p.tolist() if x > 0)
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        rows.append(row.masked_fill((p < eta) & (row < row.max()), -INF))
    return torch.stack(rows)


@right("top_n_sigma_filter")
@on_float32
def with_nan(logits, n):
    """Removed tokens become nan, which nanmean leaves out."""
    if n < 0:
        raise ValueError("n must be 0 or more")
    there = logits.masked_fill(logits == -INF, float("nan"))
    mean = there.nanmean(-1, keepdim=True)
    sigma = ((there - mean) ** 2).nanmean(-1, keepdim=True).sqrt()
    line = logits.amax(-1, keepdim=True) - n * sigma
    return torch.where(logits >= line, logits, -INF)


@right("top_n_sigma_filter")
@on_float32
def sigma_row_by_row(logits, n):
    """std of the finite logits of each row."""
    if n < 0:
        raise ValueError("n must be 0 or more")
    rows = []
    for row in logits:
        sigma = row[row > -INF].std(correction=0)
        rows.append(row.masked_fill(row < row.max() - n * sigma, -INF))
    return torch.stack(rows)


@right("top_n_sigma_filter")
def in_float64(logits, n):
    """The mean of squares minus the square of the mean, in double precision."""
    if n < 0:
        raise ValueError("n must be 0 or more")
    there = logits.isfinite()
    x = logits.double().masked_fill(~there, 0)
    count = there.sum(-1, keepdim=True)
    mean = x.sum(-1, keepdim=True) / count
    sigma = ((x * x).sum(-1, keepdim=True) / count - mean**2).clamp(min=0).sqrt()
    return logits.masked_fill(
        logits < logits.double().amax(-1, keepdim=True) - n * sigma - 1e-9, -INF
    )


def sensible(threshold, probability):
    if not 0 < threshold <= 1:
        raise ValueError("threshold must be above 0 and at most 1")
    between(probability, 0, 1, "probability")


@right("xtc_filter")
@on_float32
def by_sorting(logits, threshold, probability, generator=None):
    """The number of likely tokens less one, from the top of the sorted row."""
    sensible(threshold, probability)
    p, places = logits.softmax(-1).sort(dim=-1, descending=True)
    number = (p >= threshold).sum(-1, keepdim=True) - 1
    cut = torch.arange(p.shape[-1]) < number
    cut = cut & (torch.rand(len(logits), 1, generator=generator) < probability)
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, places, cut), -INF)


@right("xtc_filter")
@on_float32
def rows_in_python(logits, threshold, probability, generator=None):
    """A list of likely tokens for each row."""
    sensible(threshold, probability)
    out = logits.clone()
    draws = torch.rand(len(logits), 1, generator=generator)
    for n, p in enumerate(logits.softmax(-1).tolist()):
        likely = [i for i, x in enumerate(p) if x >= threshold]
        if draws[n] < probability and len(likely) > 1:
            likely.remove(min(likely, key=lambda i: p[i]))  # noqa: B023
            out[n, likely] = -INF
    return out


@right("xtc_filter")
@on_float32
def with_where(logits, threshold, probability, generator=None):
    """where in place of masked_fill."""
    sensible(threshold, probability)
    chosen = torch.rand(logits.size(0), 1, generator=generator).lt(probability)
    p = logits.softmax(dim=1)
    last = torch.where(p >= threshold, p, 2.0).min(dim=1, keepdim=True).values
    return torch.where(chosen & (p > last), torch.full_like(logits, -INF), logits)


class Common:
    def __init__(self, target, rate=0.1):
        self.target, self.rate, self.mu = target, rate, None


@right("Mirostat")
class WithLog2(Common):
    """log2 of probabilities; the race in place of multinomial."""

    def pick(self, logits):
        p = (logits := logits.float()).softmax(-1)
        if self.mu is None:
            self.mu = logits.new_full((logits.shape[0], 1), 2.0 * self.target)
        keep = (-p.log2() <= self.mu) | (p == p.amax(-1, keepdim=True))
        q = torch.where(keep, p, 0)
        q = q / q.sum(-1, keepdim=True)
        token = (q / torch.empty_like(q).exponential_()).argmax(-1, keepdim=True)
        error = -torch.log2(q.gather(1, token)) - self.target
        self.mu = self.mu - self.rate * error
        return token


@right("Mirostat")
class CutByProbability(Common):
    """A surprisal of mu bits is a probability of 2 ** -mu."""

    def pick(self, logits):
        if self.mu is None:
            self.mu = torch.ones(len(logits), 1) * 2 * self.target
        logits = logits.float()
        p = logits.softmax(dim=-1)
        floor = torch.minimum(2.0**-self.mu, p.max(-1, keepdim=True).values)
        left = logits.masked_fill(p < floor * (1 - 1e-6), -INF).softmax(-1)
        token = torch.multinomial(left, 1)
        bits = -left.gather(-1, token).log() / math.log(2)
        self.mu = self.mu + self.rate * (self.target - bits)
        return token


@right("Mirostat")
class WithUnnormalisedWeights(Common):
    """multinomial takes weights; the sum is needed for the surprisal alone."""

    def pick(self, logits):
        logits = logits.float()
        logprobs = logits.log_softmax(-1)
        if self.mu is None:
            self.mu = torch.full((logits.shape[0], 1), 2.0 * self.target)
        keep = logprobs / math.log(2) >= -self.mu
        keep |= logits == logits.amax(-1, keepdim=True)
        weights = logprobs.exp() * keep
        token = torch.multinomial(weights, num_samples=1)
        share = weights.gather(-1, token) / weights.sum(-1, keepdim=True)
        self.mu = self.mu - self.rate * (-share.log2() - self.target)
        return token


@right("Mirostat")
class AmongTheTokensLeft(Common):
    """Sorts, and draws among the tokens left: other tokens for a seed, the same law."""

    def pick(self, logits):
        ordered, places = logits.float().sort(dim=-1, descending=True)
        if self.mu is None:
            self.mu = ordered.new_full((len(logits), 1), 2.0 * self.target)
        bits = -ordered.log_softmax(-1) / math.log(2)
        keep = (bits <= self.mu) | (ordered == ordered[:, :1])
        left = ordered[:, : int(keep.sum(-1).max())].masked_fill(
            ~keep[:, : int(keep.sum(-1).max())], -INF
        )
        drawn = torch.multinomial(left.softmax(-1), 1)
        observed = -left.log_softmax(-1).gather(-1, drawn) / math.log(2)
        self.mu = self.mu - self.rate * (observed - self.target)
        return places.gather(-1, drawn)


@right("chain")
def by_reduce(*filters):
    """functools.reduce."""
    return lambda logits: functools.reduce(lambda x, one: one(x), filters, logits)


@right("chain")
class ChainAsAnObject:
    """An object that can be called."""

    def __init__(self, *filters):
        self.filters = filters

    def __call__(self, logits):
        for one in self.filters:
            logits = one(logits)
        return logits


@right("chain")
def by_recursion(*filters):
    """The first filter, then the chain of the rest."""
    if not filters:
        return lambda logits: logits
    first, *rest = filters
    return lambda logits: by_recursion.value(*rest)(first(logits))


@right("commute")
def with_isclose(first, second, logits):
    """Elementwise, then all."""
    return bool(torch.isclose(second(first(logits)), first(second(logits))).all())


@right("commute")
def with_the_testing_module(first, second, logits):
    """assert_close raises where they differ."""
    try:
        torch.testing.assert_close(second(first(logits)), first(second(logits)))
    except AssertionError:
        return False
    return True


@right("commute")
def same_tokens_and_near_values(first, second, logits):
    """The same tokens stay, and their logits are near."""
    one, other = second(first(logits)), first(second(logits))
    there = one > -INF
    if not torch.equal(there, other > -INF):
        return False
    return (one[there] - other[there]).abs().max().item() < 1e-5
