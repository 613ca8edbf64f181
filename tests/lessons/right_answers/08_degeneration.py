"""Right answers to lesson 08 in another style: each must pass all checks."""

import itertools
import math
from collections import Counter

import numpy
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from course.kit.measures import clusters
from course.making.answers import reference, right

INF = float("inf")
position_ids = reference("position_ids")


def at_least(value, low, name):
    if value < low:
        raise ValueError(f"{name} must be {low} or more, got {value}")


# --- perplexity -----------------------------------------------------------------------


@right("perplexity")
def with_cross_entropy(model, ids, mask, start=1):
    """torch's cross-entropy leaves out what has the label -100."""
    at_least(start, 1, "start")
    with torch.inference_mode():
        out = model(ids, attention_mask=mask, position_ids=position_ids(mask))
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 1:][mask[:, :-1] == 0] = -100
    labels[:, :start] = -100
    rows = zip(out.logits.float(), labels, strict=True)
    return torch.stack(
        [cross_entropy(row[:-1], label[1:]).exp() for row, label in rows]
    )


@right("perplexity")
@torch.no_grad()
def with_probabilities(model, ids, mask, start=1):
    """The product of the probabilities to the power of -1/n, as a decorator."""
    at_least(start, 1, "start")
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=places
    ).logits.float()
    p = logits.softmax(-1)[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    counts = ((mask[:, 1:] == 1) & (mask[:, :-1] == 1)).float()
    counts[:, : start - 1] = 0
    return torch.exp(-(p**counts).log().sum(1) / counts.sum(1))  # 0 ** 0 is 1


@right("perplexity")
def row_by_row_after_one_call(model, ids, mask, start=1):
    """A loop over rows and tokens."""
    at_least(start, 1, "start")
    with torch.no_grad():
        logprobs = (
            model(ids, attention_mask=mask, position_ids=position_ids(mask))
            .logits.float()
            .log_softmax(-1)
        )
    found = []
    for row, text in enumerate(ids.tolist()):
        said = [
            -logprobs[row, i - 1, text[i]].item()
            for i in range(start, len(text))
            if mask[row, i] and mask[row, i - 1]
        ]
        found.append(math.exp(sum(said) / len(said)))
    return torch.tensor(found)


# --- rep_n ----------------------------------------------------------------------------


def a_list(ids):
    if torch.is_tensor(ids):
        raise TypeError("a list, please")


@right("rep_n")
def with_zip(ids, n):
    """n lists, each one place later."""
    a_list(ids)
    at_least(n, 1, "n")
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return (len(grams) - len(set(grams))) / max(len(grams), 1)


@right("rep_n")
def with_a_counter(ids, n):
    """All that are there more than once, less one."""
    a_list(ids)
    at_least(n, 1, "n")
    counts = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    total = sum(counts.values())
    return sum(c - 1 for c in counts.values()) / total if total else 0.0


@right("rep_n")
def with_numpy(ids, n):
    """Windows, and unique rows; numpy's own float is a float."""
    a_list(ids)
    at_least(n, 1, "n")
    if len(ids) < n:
        return 0.0
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.array(ids), n)
    return float(1 - len(numpy.unique(windows, axis=0)) / len(windows))


# --- repetition_penalty ---------------------------------------------------------------


@right("repetition_penalty")
def by_the_library(logits, ids, penalty):
    """transformers' processor, which knows floats only and works in place."""
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    return RepetitionPenaltyLogitsProcessor(float(penalty))(ids, logits.clone())


@right("repetition_penalty")
def with_a_mask(logits, ids, penalty):
    """Where a token is there, and what it would become."""
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    there = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(there, changed, logits)


@right("repetition_penalty")
def token_by_token(logits, ids, penalty):
    """A loop over the set of each row."""
    if not penalty > 0:
        raise ValueError(penalty)
    out = logits.clone()
    for row, text in enumerate(ids.tolist()):
        for token in set(text):
            out[row, token] *= 1 / penalty if out[row, token] > 0 else penalty
    return out


# --- frequency_presence ---------------------------------------------------------------


@right("frequency_presence")
def with_one_hot(logits, ids, frequency, presence):
    """The sum of one-hot rows."""
    counts = torch.nn.functional.one_hot(ids, logits.shape[-1]).sum(1)
    found = logits - frequency * counts.float() - presence * counts.clamp(max=1)
    return found.to(logits)


@right("frequency_presence")
def with_bincount(logits, ids, frequency, presence):
    """Row by row."""
    counts = [torch.bincount(row, minlength=logits.shape[-1]) for row in ids]
    counts = torch.stack(counts).to(logits.dtype)
    return logits - (frequency * counts + presence * counts.sign())


@right("frequency_presence")
def with_counters(logits, ids, frequency, presence):
    """Python alone."""
    out = logits.clone()
    for row, text in enumerate(ids.tolist()):
        for token, count in Counter(text).items():
            out[row, token] -= frequency * count + presence
    return out


# --- no_repeat_ngram ------------------------------------------------------------------


@right("no_repeat_ngram")
def bans_by_the_library(logits, ids, n):
    """transformers' processor."""
    at_least(n, 1, "n")
    return NoRepeatNGramLogitsProcessor(n)(ids, logits.clone())


@right("no_repeat_ngram")
def with_unfold(logits, ids, n):
    """All n-grams at once, compared with the end."""
    at_least(n, 1, "n")
    if ids.shape[1] < n:
        return logits.clone()
    grams = ids.unfold(1, n, 1)  # (batch, places, n)
    begin = ids[:, ids.shape[1] - n + 1 :]  # (batch, n - 1)
    same = (grams[..., :-1] == begin[:, None]).all(-1)  # (batch, places)
    banned = torch.zeros(logits.shape).scatter_add(-1, grams[..., -1], same.float())
    return logits.masked_fill(banned > 0, -INF)


@right("no_repeat_ngram")
def with_a_dict(logits, ids, n):
    """What followed each beginning."""
    at_least(n, 1, "n")
    out = logits.clone()
    for row, text in enumerate(ids.tolist()):
        after = {}
        for *begin, last in zip(*(text[i:] for i in range(n)), strict=False):
            after.setdefault(tuple(begin), []).append(last)
        end = tuple(text[len(text) - n + 1 :]) if len(text) >= n - 1 else None
        out[row, after.get(end, [])] = -INF
    return out


# --- dry ------------------------------------------------------------------------------


def known(multiplier, base, allowed_length):
    if multiplier < 0 or base < 1 or allowed_length < 1:
        raise ValueError(f"got {multiplier}, {base}, {allowed_length}")


def price(multiplier, base, exponent):
    return multiplier * math.exp(min(exponent * math.log(base), 88))


@right("dry")
def reversed_text(logits, ids, multiplier, base, allowed_length):
    """Common beginnings of the reversed text and its ends."""
    known(multiplier, base, allowed_length)
    out = logits.clone()
    for row, text in enumerate(ids.tolist()):
        back = text[::-1]
        match = Counter()
        for i in range(1, len(back)):
            pairs = zip(back, back[i:], strict=False)
            length = sum(
                1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs)
            )
            match[back[i - 1]] = max(match[back[i - 1]], length)
        for token, length in match.items():
            if length >= allowed_length:
                out[row, token] -= price(multiplier, base, length - allowed_length)
    return out


@right("dry")
def from_its_definition(logits, ids, multiplier, base, allowed_length):
    """Longer and longer ends, until none occurs earlier."""
    known(multiplier, base, allowed_length)
    out = logits.clone()
    for row, text in enumerate(ids.tolist()):
        match = {}
        for length in range(1, len(text)):
            for i in range(len(text) - length):
                if text[i : i + length] == text[len(text) - length :]:
                    match[text[i + length]] = length
        for token, length in match.items():
            if length >= allowed_length:
                out[row, token] -= price(multiplier, base, length - allowed_length)
    return out


@right("dry")
def with_a_table(logits, ids, multiplier, base, allowed_length):
    """Dynamic programming: the match at i is one more than that at i - 1, shifted."""
    known(multiplier, base, allowed_length)
    penalty = torch.zeros_like(logits)
    for row, text in enumerate(ids.tolist()):
        size = len(text)
        table = [[0] * (size + 1) for _ in range(size + 1)]
        for i in range(size):
            for j in range(size):
                table[i + 1][j + 1] = table[i][j] + 1 if text[i] == text[j] else 0
        for i in range(size - 1):
            length = table[i + 1][size]
            if length >= allowed_length:
                cost = price(multiplier, base, length - allowed_length)
                token = text[i + 1]
                penalty[row, token] = max(penalty[row, token].item(), cost)
    return logits - penalty


# --- distinct_n -----------------------------------------------------------------------


def no_string(texts):
    if isinstance(texts, str):
        raise TypeError("a list of texts, please")


@right("distinct_n")
def with_counters_of_grams(texts, n):
    """One Counter for all texts."""
    no_string(texts)
    at_least(n, 1, "n")
    counts = Counter()
    for text in texts:
        words = text.split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(counts) / max(1, sum(counts.values()))


@right("distinct_n")
def with_strings(texts, n):
    """n-grams as strings."""
    no_string(texts)
    at_least(n, 1, "n")
    lists = [text.split() for text in texts]
    grams = [" ".join(w[i : i + n]) for w in lists for i in range(len(w) - n + 1)]
    return 0.0 if not grams else len(set(grams)) / len(grams)


@right("distinct_n")
def counting_as_it_goes(texts, n):
    """A set and a number."""
    no_string(texts)
    at_least(n, 1, "n")
    different, number = set(), 0
    for words in map(str.split, texts):
        for end in range(n, len(words) + 1):
            different.add(tuple(words[end - n : end]))
            number += 1
    return len(different) / number if number else 0.0


# --- self_bleu ------------------------------------------------------------------------


def two_or_more(texts):
    no_string(texts)
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got {len(texts)}")


@right("self_bleu")
def with_sacrebleu(texts):
    """The library, without smoothing."""
    import sacrebleu

    two_or_more(texts)
    options = {
        "smooth_method": "none",
        "tokenize": "none",
        "use_effective_order": False,
    }
    scores = [
        sacrebleu.sentence_bleu(text, [*texts[:i], *texts[i + 1 :]], **options).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores) / 100


def logs_of_precisions(words, others):
    for n in range(1, 5):
        mine = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        theirs = [
            Counter(zip(*(o[i:] for i in range(n)), strict=False)) for o in others
        ]
        matched = sum(
            min(count, max(other[gram] for other in theirs))
            for gram, count in mine.items()
        )
        yield math.log(matched / sum(mine.values())) if matched else -INF


@right("self_bleu")
def with_logarithms(texts):
    """The mean of the logarithms of the precisions."""
    two_or_more(texts)
    total = 0.0
    for i, text in enumerate(texts):
        words = text.split()
        others = [other.split() for n, other in enumerate(texts) if n != i]
        if len(words) < 4:
            continue
        nearest = sorted(map(len, others), key=lambda r: (abs(r - len(words)), r))[0]
        brevity = min(0.0, 1 - nearest / len(words))
        total += math.exp(sum(logs_of_precisions(words, others)) / 4 + brevity)
    return total / len(texts)


@right("self_bleu")
def with_numpy_mean(texts):
    """numpy's geometric and arithmetic means."""
    two_or_more(texts)

    def score(i):
        words = texts[i].split()
        others = [t.split() for t in texts[:i] + texts[i + 1 :]]
        if not words:
            return 0.0
        precisions = numpy.exp(list(logs_of_precisions(words, others)))
        distances = [(abs(len(o) - len(words)), len(o)) for o in others]
        r = min(distances)[1]
        factor = 1.0 if len(words) >= r else numpy.exp(1 - r / len(words))
        return factor * numpy.prod(precisions) ** 0.25

    return float(numpy.mean([score(i) for i in range(len(texts))]))


# --- mauve_small ----------------------------------------------------------------------


def histograms(p_features, q_features):
    n, m = len(p_features), len(q_features)
    k = max(2, round(min(n, m) / 10))
    labels = clusters(torch.cat([p_features, q_features]), k).cpu().numpy()
    p = numpy.bincount(labels[:n], minlength=k) / n
    q = numpy.bincount(labels[n:], minlength=k) / m
    return p, q


@right("mauve_small")
def in_python(p_features, q_features):
    """Loops, and no tensor."""
    p, q = histograms(p_features, q_features)

    def divergence(a, b):
        pairs = zip(a, b, strict=True)
        return sum(x * math.log(x / y) if y else INF for x, y in pairs if x > 0)

    points = [(1.0, 0.0)]
    for step in range(101):
        mixed = step / 100 * p + (1 - step / 100) * q
        points.append(
            (math.exp(-5 * divergence(q, mixed)), math.exp(-5 * divergence(p, mixed)))
        )
    points.append((0.0, 1.0))
    return sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


@right("mauve_small")
def with_numpy_sorted(p_features, q_features):
    """Sorted points; numpy's trapezoids."""
    p, q = histograms(p_features, q_features)
    weight = numpy.linspace(1e-6, 1 - 1e-6, 101)[:, None]
    mixed = weight * p + (1 - weight) * q
    with numpy.errstate(divide="ignore", invalid="ignore"):
        x = numpy.exp(-5 * numpy.nansum(q * numpy.log(q / mixed), -1))
        y = numpy.exp(-5 * numpy.nansum(p * numpy.log(p / mixed), -1))
    x, y = numpy.r_[1, x, 0], numpy.r_[0, y, 1]
    order = numpy.lexsort((-y, x))
    x, y = x[order], y[order]
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


@right("mauve_small")
def with_xlogy(p_features, q_features):
    """torch.xlogy knows that 0 times ln 0 is 0."""
    p, q = map(torch.tensor, histograms(p_features, q_features))
    w = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    r = w * p + (1 - w) * q

    def toward(a):
        return torch.exp(-5 * (torch.xlogy(a, a) - torch.xlogy(a, r)).sum(-1))

    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.cat([ends[:1, 0], toward(q), ends[1:, 0]])
    y = torch.cat([ends[:1, 1], toward(p), ends[1:, 1]])
    return float(torch.trapz(y.flip(0), x.flip(0)))
