"""Right answers to lesson 10 in another style: each must pass all checks."""

import functools
import math
from collections import Counter, defaultdict
from fractions import Fraction

import torch
from transformers import DynamicCache

from course.making.answers import reference, right

position_ids = reference("position_ids")
vote_ = reference("vote")

# --- sample_many ----------------------------------------------------------------------


@right("sample_many")
def a_cache_of_its_own(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Makes the cache itself, and rows by indexing."""
    if n <= 0:
        raise ValueError("n")
    new, done, cache = [], [False] * n, DynamicCache()
    token = ids
    for step in range(max_new_tokens):
        with torch.inference_mode():
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1, :].to(torch.float32)
        if not step:
            cache.batch_select_indices(torch.zeros(n, dtype=torch.long))
            logits = logits[[0] * n]
        drawn = pick(logits).flatten().tolist()
        drawn = [pad_id if d else t for t, d in zip(drawn, done, strict=True)]
        new.append(drawn)
        done = [d or t in eos_ids for t, d in zip(drawn, done, strict=True)]
        if all(done):
            break
        token = torch.tensor(drawn)[:, None]
    columns = torch.tensor(new, dtype=torch.long).reshape(len(new), n).T
    return torch.cat([ids.expand(n, -1), columns], dim=1)


@right("sample_many")
def prefill_before_the_loop(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """The prefill stands alone; a full result is cut at the end."""
    assert_n = n >= 1
    if not assert_n:
        raise ValueError(f"n={n}")
    seq = ids.size(1)
    out = torch.full((n, seq + max_new_tokens), pad_id, dtype=torch.long)
    out[:, :seq] = ids
    if max_new_tokens == 0:
        return out
    eos = torch.tensor(eos_ids, dtype=torch.long)
    with torch.no_grad():
        got = model(ids, use_cache=True)
        cache, logits = got.past_key_values, got.logits[:, -1].float().repeat(n, 1)
        cache.batch_repeat_interleave(n)
        live = torch.ones(n, dtype=torch.bool)
        for place in range(seq, seq + max_new_tokens):
            token = pick(logits)[:, 0]
            out[live, place] = token[live]
            live = live & ~torch.isin(out[:, place], eos)
            if not live.any() or place == seq + max_new_tokens - 1:
                return out[:, : place + 1]
            fed = out[:, place : place + 1]
            logits = model(fed, past_key_values=cache, use_cache=True).logits
            logits = logits[:, -1].float()
    return out


@right("sample_many")
@torch.inference_mode()
def all_in_inference_mode(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """What inference mode makes cannot be changed in place outside of it."""
    if n < 1:
        raise ValueError("n")
    rows, cache, live = ids, None, torch.ones(n, dtype=torch.bool)
    rows = rows.expand(n, -1)
    fed = ids
    for _ in range(max_new_tokens):
        got = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if cache is None:
            got.past_key_values.batch_repeat_interleave(n)
        cache = got.past_key_values
        fed = pick(got.logits[:, -1].float().expand(n, -1))
        fed = torch.where(live[:, None], fed, pad_id)
        rows = torch.hstack([rows, fed])
        live = live & torch.tensor([t not in eos_ids for t in fed[:, 0].tolist()])
        if not live.any():
            break
    return rows


@right("sample_many")
def with_masks_and_positions(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Says what the model would find out by itself."""
    if n < 1:
        raise ValueError("n")
    out, mask, cache = ids.repeat(n, 1), torch.ones_like(ids), None
    fed, ended = ids, torch.zeros(n, 1, dtype=torch.bool)
    for _ in range(max_new_tokens):
        places = torch.arange(mask.shape[1])[-fed.shape[1] :].expand_as(fed)
        with torch.no_grad():
            got = model(
                fed,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache, logits = got.past_key_values, got.logits[:, -1].float()
        if len(logits) < n:
            cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat(n, 1)
        fed = pick(logits).masked_fill(ended, pad_id)
        out = torch.cat((out, fed), 1)
        mask = torch.cat((mask, torch.ones(n, 1, dtype=mask.dtype)), 1)
        for eos in eos_ids:
            ended = ended | (fed == eos)
        if bool(ended.all()):
            return out
    return out


# --- pass_at_k ------------------------------------------------------------------------


def ranges(n, c, k):
    if k < 1 or k > n or c < 0 or c > n:
        raise ValueError("n, c, k")


@right("pass_at_k")
def as_the_paper_computes_it(n, c, k):
    """The product that Chen et al. give for numpy."""
    ranges(n, c, k)
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


@right("pass_at_k")
def with_log_gamma(n, c, k):
    """Logarithms of factorials."""
    ranges(n, c, k)
    if n - c < k:
        return 1.0

    def ways(a):
        return math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)

    return -math.expm1(ways(n - c) - ways(n))


@right("pass_at_k")
def one_draw_after_the_other(n, c, k):
    """Each draw misses, given that those before missed: fractions."""
    ranges(n, c, k)
    missed = Fraction(1)
    for i in range(k):
        missed *= Fraction(max(n - c - i, 0), n - i)
    return float(1 - missed)


@right("pass_at_k")
def a_product_without_a_special_case(n, c, k):
    """With more right ones than misses one factor is 0."""
    ranges(n, c, k)
    missed = 1.0
    for i in range(n - c + 1, n + 1):
        missed *= abs(1 - k / i)
    return 1 - missed


# --- vote -----------------------------------------------------------------------------


@right("vote")
def sorted_sums(answers, weights=None):
    """Compares the first two of a sorted list."""
    weights = [1] * len(answers) if weights is None else list(weights)
    if len(weights) != len(answers) or not all(w >= 0 for w in weights):
        raise ValueError("weights")
    given = defaultdict(list)
    for a, w in zip(answers, weights, strict=True):
        if a is not None:
            given[a].append(w)
    ranked = sorted(((math.fsum(w), a) for a, w in given.items()), reverse=True)
    ranked = [(s, a) for s, a in ranked if s > 0]
    if not ranked or len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        return None
    return ranked[0][1]


@right("vote")
def exact_fractions(answers, weights=None):
    """fsum of sorted weights for each different answer."""
    if weights is None:
        weights = [1.0 for _ in answers]
    if len(weights) - len(answers):
        raise ValueError("one weight each")
    if sum(1 for w in weights if math.isnan(w) or w < 0):
        raise ValueError("negative")
    names = {a for a in answers if a is not None}
    pairs = list(zip(answers, weights, strict=True))
    sums = {n: math.fsum(sorted(w for a, w in pairs if a == n)) for n in names}
    best = [n for n in names if sums[n] > 0 and sums[n] == max(sums.values())]
    return best.pop() if len(best) == 1 else None


@right("vote")
def a_counter_where_there_are_no_weights(answers, weights=None):
    """Two ways: counts, and sums."""
    if weights is None:
        best = Counter(a for a in answers if a is not None).most_common(2)
        if len(best) == 2 and best[0][1] == best[1][1]:
            return None
        return best[0][0] if best else None
    if (
        len(answers) != len(weights)
        or min([*weights, 0]) < 0
        or any(w != w for w in weights)
    ):
        raise ValueError("weights")
    sums = {}
    for answer in answers:
        if answer is not None and answer not in sums:
            its = [w for a, w in zip(answers, weights, strict=True) if a == answer]
            sums[answer] = math.fsum(its)
    top = max(sums.values(), default=0)
    if not top or list(sums.values()).count(top) > 1:
        return None
    return max(sums, key=sums.get)


# --- early_stop_vote ------------------------------------------------------------------


@right("early_stop_vote")
def a_for_loop_that_looks_afterwards(answers, n):
    """for, and the look comes after each answer: only n = 0 needs a look before."""
    if n < 0:
        raise ValueError("n")
    votes, used, best = Counter(), 0, None
    if n == 0:
        return None, 0
    for answer in answers:
        used += 1
        if answer is not None:
            votes[answer] += 1
        ranked = votes.most_common(2) + [(None, 0), (None, 0)]
        best = ranked[0][0] if ranked[0][1] > ranked[1][1] else None
        if ranked[0][1] - ranked[1][1] > n - used or used == n:
            return best, used
    return best, used


@right("early_stop_vote")
def with_try(answers, n):
    """StopIteration, caught; the leader against each of the others."""
    if n < 0:
        raise ValueError("n")
    given, left = [], n
    while left:
        counts = Counter(a for a in given if a is not None)
        if any(
            c > left and all(c - d > left for b, d in counts.items() if b != a)
            for a, c in counts.items()
        ):
            break
        try:
            given.append(next(answers))
        except StopIteration:
            break
        left -= 1
    return vote_(given), len(given)


@right("early_stop_vote")
def by_the_worst_case(answers, n):
    """Gives all that are left to the second, and to a new one, and votes."""
    if n < 0:
        raise ValueError("n")
    given = []
    while len(given) < n:
        left = n - len(given)
        now = vote_(given)
        rivals = {a for a in given if a not in (None, now)} | {"\0 nobody's answer"}
        if now is not None and all(vote_(given + [r] * left) == now for r in rivals):
            return now, len(given)
        answer = next(answers, given)
        if answer is given:
            break
        given.append(answer)
    return vote_(given), len(given)


# --- sequence_logprob -----------------------------------------------------------------


@right("sequence_logprob")
def with_cross_entropy(model, ids, mask, start):
    """torch's cross-entropy, all places, ignored where masked."""
    if start < 1 or start > ids.shape[1]:
        raise ValueError("start")
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, position_ids=places)
    logits = out.logits.float()[:, :-1].transpose(1, 2)
    labels = ids.masked_fill(mask == 0, -100)[:, 1:].clone()
    labels[:, : start - 1] = -100
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return -loss.sum(1)


@right("sequence_logprob")
def with_logsumexp(model, ids, mask, start):
    """The chosen logit minus the logarithm of the sum."""
    if not 0 < start <= ids.shape[1]:
        raise ValueError("start")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    logits = logits[:, start - 1 : -1].float()
    chosen = logits.gather(2, ids[:, start:].unsqueeze(2)).squeeze(2)
    got = chosen - logits.logsumexp(2)
    return torch.where(mask[:, start:].bool(), got, torch.zeros_like(got)).sum(1)


@right("sequence_logprob")
def row_after_row_of_one_call(model, ids, mask, start):
    """One call, then Python; added in float64."""
    if start not in range(1, ids.shape[1] + 1):
        raise ValueError("start")
    with torch.no_grad():
        positions = mask.long().cumsum(-1) - 1
        positions.masked_fill_(mask == 0, 1)  # as generate fills padding
        logits = model(ids, attention_mask=mask, position_ids=positions).logits.float()
    sums = []
    for row in range(len(ids)):
        total = 0.0
        for place in range(start, ids.shape[1]):
            if mask[row, place]:
                logprobs = logits[row, place - 1].log_softmax(-1)
                total += logprobs[ids[row, place]].item()
        sums.append(total)
    return torch.tensor(sums)


# --- self_certainty -------------------------------------------------------------------


@right("self_certainty")
def with_logsumexp_of_logits(logits):
    """logsumexp minus the mean logit minus ln V."""
    x = logits.to(torch.float32)
    per_place = x.logsumexp(-1) - x.mean(-1) - math.log(x.shape[-1])
    return per_place.mean(1)


@right("self_certainty")
def with_kl_div(logits):
    """torch's kl_div, whose first argument is the second distribution."""
    q = torch.log_softmax(logits.double(), -1)
    uniform = torch.full_like(q, 1 / q.shape[-1])
    kl = torch.nn.functional.kl_div(q, uniform, reduction="none").sum(-1)
    return kl.mean(-1).float()


@right("self_certainty")
def both_means_at_once(logits):
    """The mean over places and tokens in one."""
    logprobs = torch.nn.functional.log_softmax(logits.float(), dim=2)
    return -(logprobs.mean(dim=(1, 2)) + math.log(logits.size(2)))


# --- best_of_n ------------------------------------------------------------------------


@right("best_of_n")
def a_loop(scores):
    """The best so far, which may be -inf."""
    best = None
    for i, score in enumerate(scores):
        if score == score and (best is None or score > scores[best]):
            best = i
    if best is None:
        raise ValueError("no score")
    return best


@right("best_of_n")
def by_pairs(scores):
    """max of pairs: a larger score, then an earlier place."""
    pairs = [(score, -i) for i, score in enumerate(scores) if not math.isnan(score)]
    return -max(pairs)[1]  # max of nothing is a ValueError


@right("best_of_n")
def sorted_places(scores):
    """sorted is stable."""
    order = sorted(
        (i for i in range(len(scores)) if not math.isnan(scores[i])),
        key=lambda i: scores[i],
        reverse=True,
    )
    if order:
        return order[0]
    raise ValueError("nothing but NaN")


# --- mbr ------------------------------------------------------------------------------


@right("mbr")
def means_of_a_matrix(candidates, utility):
    """The mean of each row, without the diagonal."""
    n = len(candidates)
    if n == 0:
        raise ValueError("empty")
    means = []
    for i in range(n):
        row = [utility(candidates[i], candidates[j]) for j in range(n) if j != i]
        means.append(math.fsum(row) / max(len(row), 1))
    return means.index(max(means))


@right("mbr")
def remembers_utilities(candidates, utility):
    """The same two texts are compared once."""
    if not len(candidates):
        raise ValueError("empty")
    known = functools.cache(utility)
    best, most = 0, None
    for i, mine in enumerate(candidates):
        total = math.fsum(
            known(mine, other) for j, other in enumerate(candidates) if j != i
        )
        if most is None or total > most:
            best, most = i, total
    return best


@right("mbr")
def counts_equal_texts(candidates, utility):
    """Different texts with their counts; one of its own is taken away."""
    if candidates == []:
        raise ValueError("empty")
    counts = Counter(candidates)

    def worth(text):
        values = []
        for other, times in counts.items():
            times -= other == text
            if times:
                values += [utility(text, other)] * times
        return math.fsum(values)

    best = max(counts, key=worth)  # in the order in which they first came
    return candidates.index(best)


# --- power_sample ---------------------------------------------------------------------


@right("power_sample")
def log_of_a_draw(logprob, propose, start, alpha, steps, generator):
    """Compares logarithms; a draw of 0 has the logarithm -inf in torch."""
    x, old = start, logprob(start)
    for _ in range(steps):
        y, there, back = propose(x, generator)
        new = logprob(y)
        u = torch.rand(1, generator=generator, dtype=torch.float64).log().item()
        if u < alpha * new - alpha * old + back - there:
            x, old = y, new
    return x


@right("power_sample")
def draws_only_where_it_must(logprob, propose, start, alpha, steps, generator):
    """No draw where the step is certain."""
    current = (start, alpha * logprob(start))
    for _ in range(steps):
        y, q_to, q_from = propose(current[0], generator)
        other = (y, alpha * logprob(y))
        gain = other[1] + q_from - (current[1] + q_to)
        if gain >= 0 or torch.bernoulli(
            torch.tensor(math.exp(gain)), generator=generator
        ):
            current = other
    return current[0]


@right("power_sample")
def exponential_clock(logprob, propose, start, alpha, steps, generator):
    """-ln u is exponential; all draws come first."""
    clocks = torch.empty(max(steps, 1)).exponential_(generator=generator).tolist()
    x, lx = start, logprob(start)
    for step in range(steps):
        y, f, b = propose(x, generator)
        ly = logprob(y)
        loss = alpha * (lx - ly) + f - b
        if loss < clocks[step]:
            x, lx = y, ly
    return x
