"""Right answers to lesson 16 in another style: each must pass all checks."""

import bisect
import itertools
import math
from fractions import Fraction

import numpy as np
import torch
from transformers import LogitsProcessor, WatermarkLogitsProcessor

from course.making.answers import reference, right

green_ids = reference("green_ids")
z_score = reference("z_score")
multinomial_from_scratch = reference("multinomial_from_scratch")
seed_of = reference("gumbel_pick").__globals__["seed_of"]


# --- green_ids ------------------------------------------------------------------------


@right("green_ids")
def with_pow_and_narrow(previous_id, key, vocab_size, gamma):
    """Another way to write the modulus and the slice."""
    if gamma <= 0 or gamma >= 1:
        raise ValueError("gamma is a share")
    rng = torch.Generator(device="cpu")
    rng.manual_seed((key * previous_id) % (pow(2, 64) - 1))
    shuffled = torch.randperm(vocab_size, generator=rng, dtype=torch.int64)
    return shuffled.narrow(0, 0, math.floor(vocab_size * gamma)).clone()


@right("green_ids")
def from_the_global_generator_put_back(previous_id, key, vocab_size, gamma):
    """Forks the global generator."""
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"{gamma=}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key * previous_id % (2**64 - 1))
        shuffled = torch.randperm(vocab_size)
    return shuffled[torch.arange(vocab_size) < int(gamma * vocab_size)]


KEPT = {}


@right("green_ids")
def remembered(previous_id, key, vocab_size, gamma):
    """Keeps the lists that it made."""
    if not 0 < gamma < 1:
        raise ValueError("share")
    place = (previous_id, key, vocab_size, gamma)
    if place not in KEPT:
        KEPT[place] = green_ids(*place)
    return KEPT[place].clone()


# --- Watermark ------------------------------------------------------------------------


@right("Watermark")
class WithAMask(LogitsProcessor):
    """A sum of the logits and a mask."""

    def __init__(self, bias=2.0, gamma=0.25, key=15485863):
        self.settings = {"key": key, "gamma": gamma}
        self.bias = bias

    def __call__(self, input_ids, scores):
        mask = torch.zeros_like(scores)
        for row in range(len(scores)):
            last = input_ids[row, -1].item()
            mask[row, green_ids(last, vocab_size=scores.shape[1], **self.settings)] = 1
        return scores + self.bias * mask


@right("Watermark")
class WithScatter(LogitsProcessor):
    """One scatter_add for all rows."""

    def __init__(self, bias: float = 2.0, gamma: float = 0.25, key: int = 15485863):
        super().__init__()
        self.bias, self.gamma, self.key = bias, gamma, key

    def __call__(self, input_ids, scores):
        vocab = scores.size(-1)
        green = [
            green_ids(i, self.key, vocab, self.gamma) for i in input_ids.T[-1].tolist()
        ]
        green = torch.stack(green).to(scores.device)
        added = torch.full_like(green, 1).to(scores.dtype) * self.bias
        return scores.scatter_add(-1, green, added)


@right("Watermark")
class TheirOwn(LogitsProcessor):
    """transformers' processor inside, made when the vocabulary is known."""

    made = None

    def __init__(self, bias=2.0, gamma=0.25, key=15485863):
        self.arguments = (gamma, bias, key)

    def __call__(self, input_ids, scores):
        if self.made is None or self.made.vocab_size != scores.shape[-1]:
            self.made = WatermarkLogitsProcessor(
                scores.shape[-1], "cpu", *self.arguments
            )
        return self.made(input_ids, scores)


# --- z_score --------------------------------------------------------------------------


@right("z_score")
def from_the_share(green, total, gamma):
    """With the share of green tokens."""
    if total <= 0 or green < 0 or green > total or gamma <= 0 or gamma >= 1:
        raise ValueError("no score")
    return (green / total - gamma) * math.sqrt(total / (gamma * (1.0 - gamma)))


@right("z_score")
def with_numpy(green, total, gamma):
    """numpy, made a float at the end."""
    if not (0 < gamma < 1 and total >= 1 and total >= green >= 0):
        raise ValueError((green, total, gamma))
    spread = np.sqrt(np.float64(total) * gamma * (1 - gamma))
    return float((green - total * gamma) / spread)


@right("z_score")
def by_the_red_ones(green, total, gamma):
    """Counts how many red tokens are missing."""
    red = total - green
    if min(green, red) < 0 or not total or not 0 < gamma < 1:
        raise ValueError("no score")
    return ((1 - gamma) * total - red) / (total * gamma * (1 - gamma)) ** 0.5


@right("z_score")
def in_float32(green, total, gamma):
    """With float32 tensors."""
    if not 0 < gamma < 1 or total < 1 or not 0 <= green <= total:
        raise ValueError("nothing to score")
    share = torch.tensor(gamma)
    return ((green - share * total) / (total * share * (1 - share)).sqrt()).item()


# --- detect ---------------------------------------------------------------------------


@right("detect")
def with_unfold(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Windows of a tensor, and unique."""
    answer = ids.reshape(-1)[prompt_length:]
    if prompt_length < 0 or len(answer) < 2:
        raise ValueError("no pair")
    pairs = answer.unfold(0, 2, 1)
    times = torch.ones(len(pairs), dtype=torch.int64)
    if ignore_repeated:
        pairs = pairs.unique(dim=0)
        times = times[: len(pairs)]
    green = [b in green_ids(int(a), key, vocab_size, gamma) for a, b in pairs]
    return z_score(sum(map(bool, green)), int(times.sum()), gamma)


@right("detect")
def by_previous_id(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """One list for each previous id."""
    if prompt_length < 0:
        raise ValueError(prompt_length)
    answer = ids.view(-1).tolist()[prompt_length:]
    behind = {}
    for a, b in itertools.pairwise(answer):
        behind.setdefault(a, []).append(b)
    green = total = 0
    for a, tokens in behind.items():
        tokens = list(dict.fromkeys(tokens)) if ignore_repeated else tokens
        allowed = set(green_ids(a, key, vocab_size, gamma).tolist())
        green += sum(b in allowed for b in tokens)
        total += len(tokens)
    return z_score(green, total, gamma)


@right("detect")
def with_isin(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """torch.isin, pair by pair, with a set of those that were seen."""
    if prompt_length not in range(max(0, ids.numel() - 1)):
        raise ValueError("no pair behind the prompt")
    ids, seen, marks = ids.flatten(), set(), []
    for place in range(prompt_length + 1, len(ids)):
        pair = (ids[place - 1].item(), ids[place].item())
        if ignore_repeated and pair in seen:
            continue
        seen.add(pair)
        marks.append(torch.isin(ids[place], green_ids(pair[0], key, vocab_size, gamma)))
    return z_score(int(torch.stack(marks).sum()), len(marks), gamma)


# --- p_value --------------------------------------------------------------------------


@right("p_value")
def with_bisect(score, null_scores):
    """Sorted, and looked up."""
    if any(x != x for x in (*null_scores, score)):
        raise ValueError("NaN")
    ordered = sorted([*null_scores, score])
    return (len(ordered) - bisect.bisect_left(ordered, score)) / len(ordered)


@right("p_value")
def with_torch(score, null_scores):
    """A tensor in float64."""
    everything = torch.tensor([score, *null_scores], dtype=torch.float64)
    if everything.isnan().any():
        raise ValueError("NaN")
    return (everything >= everything[0]).double().mean().item()


@right("p_value")
def as_a_fraction(score, null_scores):
    """Exact, and then a float."""
    scores = [score] + list(null_scores)
    if sum(map(math.isnan, scores)):
        raise ValueError("NaN")
    below = len([x for x in scores if x < score])
    return float(1 - Fraction(below, len(scores)))


@right("p_value")
def a_mean_in_float32(score, null_scores):
    """The mean of a float32 tensor, with the score as one of them."""
    all_of_them = torch.tensor([score, *null_scores], dtype=torch.float64)
    if all_of_them.isnan().any():
        raise ValueError("NaN")
    return (all_of_them >= score).float().mean().item()


# --- gumbel_pick ----------------------------------------------------------------------


@right("gumbel_pick")
def with_own_generators(logits, context, key):
    """The race itself, from a generator of its own."""
    picked = torch.empty(len(logits), 1, dtype=torch.int64)
    for row in range(len(logits)):
        generator = torch.Generator().manual_seed(seed_of(key, context[row].tolist()))
        p = torch.softmax(logits[row].cpu().to(torch.float32), dim=0)
        picked[row] = p.div(
            p.new_empty(p.shape).exponential_(generator=generator)
        ).argmax()
    return picked.to(logits.device)


@right("gumbel_pick")
def with_multinomial(logits, context, key):
    """torch.multinomial is the same race."""

    def one(row, seen):
        generator = torch.Generator().manual_seed(seed_of(key, [int(i) for i in seen]))
        p = row.float().softmax(-1).cpu()
        return torch.multinomial(p, 1, generator=generator)

    rows = [one(*both) for both in zip(logits, context, strict=True)]
    return torch.stack(rows).to(logits.device)


@right("gumbel_pick")
def with_the_state_put_back(logits, context, key):
    """Saves the global generator's state by hand."""
    state = torch.get_rng_state()
    try:
        rows = []
        for i, seen in enumerate(context.tolist()):
            torch.manual_seed(seed_of(key, seen))
            p = logits[i : i + 1].float().cpu().softmax(-1)
            rows.append(multinomial_from_scratch(p))
        return torch.vstack(rows).to(logits.device)
    finally:
        torch.set_rng_state(state)


@right("gumbel_pick")
def in_logarithms(logits, context, key):
    """The race in logarithms, with generators of its own."""
    draws = torch.stack(
        [
            torch.empty(logits.shape[-1]).exponential_(
                generator=torch.Generator().manual_seed(seed_of(key, seen))
            )
            for seen in context.tolist()
        ]
    )
    scores = logits.float().cpu().log_softmax(-1) - draws.log()
    return scores.argmax(-1, keepdim=True).to(logits.device)


# --- gumbel_score ---------------------------------------------------------------------


def all_draws(key, context, vocab_size):
    generator = torch.Generator().manual_seed(seed_of(key, context))
    return torch.empty(1, vocab_size).exponential_(generator=generator)[0]


@right("gumbel_score")
def with_log1p(ids, key, width, vocab_size):
    """log1p of -e^(-E), in float64."""
    windows = torch.as_tensor(ids).flatten()
    if width < 1 or len(windows) <= width:
        raise ValueError("too short")
    windows = windows.unfold(0, width + 1, 1).unique(dim=0).tolist()
    e = [all_draws(key, w[:-1], vocab_size)[w[-1]].double() for w in windows]
    return -torch.log1p(-torch.stack(e).neg().exp()).mean().item()


@right("gumbel_score")
def by_context(ids, key, width, vocab_size):
    """The draws once for each context."""
    text = ids.reshape(-1).tolist()
    if width <= 0 or not text[width:]:
        raise ValueError("too short")
    behind = {}
    for end in range(width, len(text)):
        behind.setdefault(tuple(text[end - width : end]), set()).add(text[end])
    scores = []
    for context, tokens in behind.items():
        e = all_draws(key, list(context), vocab_size)
        scores += [math.log(1 / -math.expm1(-e[token].item())) for token in tokens]
    return math.fsum(scores) / len(scores)


@right("gumbel_score")
def in_order(ids, key, width, vocab_size):
    """Place by place, with a set of those that were seen."""
    text, seen, scores = ids.flatten().tolist(), set(), []
    if width < 1:
        raise ValueError("no context")
    for end, token in enumerate(text):
        window = (*text[max(0, end - width) : end], token)
        if end < width or window in seen:
            continue
        seen.add(window)
        u = -np.expm1(-float(all_draws(key, list(window[:-1]), vocab_size)[token]))
        scores.append(-np.log(u))
    if not scores:
        raise ValueError("too short")
    return float(np.mean(scores))


# --- tournament -----------------------------------------------------------------------


def zeros_and_ones(g):
    if (g.bool().to(g.dtype) != g).any():
        raise ValueError("g")


@right("tournament")
def by_all_pairs(probs, g):
    """A matrix of all matches. The sum must be 1 exactly: it is squared."""
    zeros_and_ones(g)
    p = probs.double() / probs.double().sum()
    for layer in g.double():
        wins = 1 + layer[:, None] - layer[None, :]  # twice the chance that i beats j
        p = p * (wins * p).sum(-1)
    return p.to(probs.dtype, copy=True)


@right("tournament")
def with_where(probs, g):
    """Two cases."""
    if not torch.isin(g.double(), torch.tensor([0.0, 1.0]).double()).all():
        raise ValueError("g")
    p = probs.clone()
    for one in g.bool():
        m = p[one].sum().clamp(max=1)
        p = torch.where(one, p * (2 - m), p * (1 - m))
    return p


@right("tournament")
def recursive(probs, g):
    """The last layer of a shorter tournament."""
    zeros_and_ones(g)
    if len(g) == 0:
        return probs + 0
    before = recursive.value(probs, g[:-1])
    last = g[-1].to(probs.dtype)
    return torch.relu(before * (1 - torch.dot(before, last)) + before * last)


@right("tournament")
def clamped_at_the_end(probs, g):
    """What rounding pushed below 0 stays there until the end."""
    zeros_and_ones(g)
    new = probs.clone()
    for layer in g.to(probs.dtype):
        new = new * (1 + layer - new @ layer)
    return new.clamp(min=0)
