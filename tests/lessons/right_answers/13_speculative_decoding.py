"""Right answers to lesson 13 in another style: each must pass all checks."""

from collections import Counter, defaultdict
from itertools import takewhile

import torch
from transformers import DynamicCache

from course.making.answers import reference, right

cached_step = reference("cached_step")
rollback = reference("rollback")
verify_greedy = reference("verify_greedy")
verify_sampled = reference("verify_sampled")
residual = reference("residual")
expected_tokens = reference("expected_tokens")
best_k = reference("best_k")


@right("ngram_draft")
def through_text(ids, n, k):
    """Finds the ids as a string in a string."""
    if n <= 0 or k < 0:
        raise ValueError("nothing to match")
    whole = "," + ",".join(map(str, ids)) + ","
    for size in range(n, 0, -1):
        if size >= len(ids):
            continue
        wanted = "," + ",".join(map(str, ids[-size:])) + ","
        at = whole.find(wanted)
        start = whole[: at + 1].count(",") - 1 + size
        if start < len(ids):
            return ids[start:][:k]
    return []


@right("ngram_draft")
def with_tensors(ids, n, k):
    """Windows of a tensor, as transformers does it."""
    if n < 1 or k < 0:
        raise ValueError("n is 1 or more, k is 0 or more")
    text = torch.tensor(ids, dtype=torch.long)
    for size in reversed(range(1, n + 1)):
        if len(ids) <= size:
            continue
        same = (text[:-1].unfold(0, size, 1) == text[-size:]).all(-1)
        if same.any():
            start = int(same.nonzero()[0]) + size
            return text[start : start + k].tolist()
    return []


@right("ngram_draft")
def with_a_generator(ids, n, k):
    """One expression."""
    if not (n >= 1 and k >= 0):
        raise ValueError((n, k))
    found = (
        ids[end : end + k]
        for size in range(n, 0, -1)
        for end in range(size, len(ids))
        if ids[end - size : end] == ids[len(ids) - size :]
    )
    return next(found, [])


@right("verify_greedy")
def with_a_cumulative_product(draft, logits):
    """Counts with cumprod."""
    if logits.shape[0] - 1 != len(draft):
        raise ValueError("rows")
    best = logits.argmax(dim=-1)
    same = best[:-1].cpu() == torch.tensor(draft, dtype=torch.long)
    return best[: int(same.long().cumprod(0).sum()) + 1].tolist()


@right("verify_greedy")
def token_by_token(draft, logits):
    """A loop that stops at the first difference."""
    if len(draft) != logits.shape[0] - 1:
        raise ValueError("rows")
    kept = []
    for n in range(len(draft) + 1):
        kept.append(int(logits[n].max(-1).indices))
        if n == len(draft) or kept[-1] != draft[n]:
            break
    return kept


@right("verify_greedy")
def takes_while_equal(draft, logits):
    """itertools."""
    if len(logits) - len(draft) != 1:
        raise ValueError("rows")
    best = logits.float().argmax(1).tolist()
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(draft, best, strict=False))
    n = len(list(pairs))
    return draft[:n] + best[n : n + 1]


@right("speculate_greedy")
def with_rollback(model, ids, draft, max_new_tokens, eos_ids):
    """Tensors, and a copy of the cache in each round: lesson 07's rollback."""
    start, calls, cache = ids.shape[1], 0, None
    while (left := start + max_new_tokens - ids.shape[1]) > 0:
        guess = draft(ids[0].tolist())[: left - 1]
        known = takewhile(lambda x: 0 <= x < model.config.vocab_size, guess)
        guess = torch.tensor([list(known)], dtype=torch.long)
        held = 0 if cache is None else cache.get_seq_length()
        with torch.no_grad():
            output = model(
                torch.cat([ids[:, held:], guess], dim=-1),
                past_key_values=cache,
                use_cache=True,
            )
        calls += 1
        logits = output.logits[0, -guess.shape[1] - 1 :]
        kept = verify_greedy(guess[0].tolist(), logits)
        rejected = guess.shape[1] - len(kept) + 1
        cache = rollback(output.past_key_values, rejected)
        ends = [n for n, x in enumerate(kept) if x in eos_ids]
        kept = kept[: ends[0] + 1] if ends else kept
        ids = torch.cat([ids, torch.tensor([kept])], dim=-1)
        if ends:
            break
    return ids.clone(), calls


@right("speculate_greedy")
def with_a_cache_of_its_own(model, ids, draft, max_new_tokens, eos_ids):
    """Makes the cache itself, passes mask and positions, cuts at the next round."""
    prompt, new, calls = ids[0].tolist(), [], 0
    cache = DynamicCache()
    done = False
    while len(new) < max_new_tokens and not done:
        text = prompt + new
        spare = cache.get_seq_length() - (len(text) - 1)
        if spare > 0:
            cache.crop(-spare)
        guess = []
        for token in draft(text):
            inside = token >= 0 and token < model.config.vocab_size
            if not inside or len(guess) + 1 >= max_new_tokens - len(new):
                break
            guess.append(token)
        held = cache.get_seq_length()
        row = torch.tensor(text[held:] + guess).unsqueeze(0)
        with torch.inference_mode():
            logits = model(
                input_ids=row,
                attention_mask=torch.ones(1, held + row.shape[1], dtype=torch.long),
                position_ids=torch.arange(held, held + row.shape[1])[None],
                past_key_values=cache,
                use_cache=True,
            ).logits
        calls += 1
        for token in verify_greedy(guess, logits[0, row.shape[1] - len(guess) - 1 :]):
            new.append(token)
            done = token in eos_ids
            if done:
                break
    return torch.tensor([prompt + new], dtype=torch.long), calls


@right("speculate_greedy")
def without_the_verifier(model, ids, draft, max_new_tokens, eos_ids):
    """Compares while it appends."""
    text = [int(x) for x in ids[0]]
    limit, cache, calls = len(text) + max_new_tokens, None, 0
    held = 0
    while len(text) < limit:
        guess = draft(text[:])
        guess = guess[: limit - len(text) - 1]
        for n, token in enumerate(guess):
            if not 0 <= token < model.config.vocab_size:
                guess = guess[:n]
                break
        begin = len(text)
        with torch.no_grad():
            out = model(
                torch.tensor([text[held:] + guess]),
                past_key_values=cache,
                use_cache=True,
            )
        cache, calls = out.past_key_values, calls + 1
        best = out.logits[0].argmax(-1).tolist()[-len(guess) - 1 :]
        for n, token in enumerate(best):
            text.append(token)
            if token in eos_ids:
                return torch.tensor([text]), calls
            if n < len(guess) and guess[n] != token:
                break
        held = len(text) - 1
        if begin + len(guess) > held:
            cache.crop(held - begin - len(guess))
    return torch.tensor([text]), calls


@right("speculate_greedy")
def with_one_list_that_grows(model, ids, draft, max_new_tokens, eos_ids):
    """Gives the draft its own list, and drops only the ids that the model lacks."""
    text = ids[0].tolist()
    limit, calls, cache, held = len(text) + max_new_tokens, 0, None, 0
    while len(text) < limit:
        room = limit - len(text) - 1
        guess = [x for x in draft(text) if 0 <= x < model.config.vocab_size][:room]
        with torch.no_grad():
            out = model(torch.tensor([text[held:] + guess]), past_key_values=cache)
        calls, cache = calls + 1, out.past_key_values
        kept = verify_greedy(guess, out.logits[0, -len(guess) - 1 :])
        cache.crop(-(len(guess) + 1 - len(kept)))
        held = len(text) + len(kept) - 1
        for token in kept:
            text.append(token)
            if token in eos_ids:
                return torch.tensor([text]), calls
    return torch.tensor([text]), calls


@right("residual")
def with_where(p, q):
    """torch.where, and a test of equality."""
    left = torch.where(p > q, p - q, torch.zeros_like(p))
    total = left.sum()
    return left.div(total) if total > 0 else p.detach().clone()


@right("residual")
def by_the_overlap(p, q):
    """p - min(p, q), divided by 1 - the overlap that the sum gives."""
    shared = torch.minimum(p, q)
    if bool((shared == p).all()):
        return p + 0
    left = p - shared
    return torch.nn.functional.normalize(left, p=1, dim=-1)


@right("residual")
def with_relu(p, q):
    """relu."""
    left = torch.relu(p - q)
    return p.clone() if not left.any() else left / left.sum(-1, keepdim=True)


@right("verify_sampled")
def from_the_first_rejection(p, q, draft, generator=None):
    """Tensors and cumprod."""
    if list(p.shape) != [len(draft) + 1, p.shape[1]] or q.shape != p[:-1].shape:
        raise ValueError("shapes")
    x = torch.tensor(draft, dtype=torch.long)[:, None]
    ratio = (p[:-1].gather(1, x) / q.gather(1, x))[:, 0]
    good = torch.rand(len(draft), generator=generator) <= ratio.clamp(max=1)
    n = int(good.long().cumprod(0).sum())
    row = residual(p[n], q[n]) if n < len(draft) else p[n]
    return list(draft[:n]) + torch.multinomial(row, 1, generator=generator).tolist()


@right("verify_sampled")
def without_a_division(p, q, draft, generator=None):
    """u · q < p, and a residual that multinomial rescales by itself."""
    k = len(draft)
    if p.dim() != 2 or p.shape[0] != k + 1 or tuple(q.shape) != (k, p.shape[1]):
        raise ValueError("shapes")
    u, kept = torch.rand((k,), generator=generator), []
    for n in range(k):
        if u[n] * q[n][draft[n]] >= p[n][draft[n]]:
            left = torch.clamp_min(p[n] - q[n], 0)
            return [*kept, int(torch.multinomial(left, 1, generator=generator))]
        kept.append(draft[n])
    return [*kept, int(torch.multinomial(p[k], 1, generator=generator)[0])]


@right("verify_sampled")
def with_a_row_of_zeros(p, q, draft, generator=None):
    """A row of zeros behind q makes the bonus a residual, too."""
    if len(p) != len(draft) + 1 or q.shape != (len(draft), p.shape[1]):
        raise ValueError("shapes")
    q = torch.cat([q, torch.zeros_like(p[:1])])
    numbers = torch.rand(len(draft), generator=generator).tolist()
    n = 0
    for n, (token, u) in enumerate(zip(draft, numbers, strict=True)):
        if not u < float(p[n, token]) / float(q[n, token]):
            break
    else:
        n = len(draft)
    row = residual(p[n], q[n])
    return draft[:n] + [torch.multinomial(row, 1, generator=generator).item()]


@right("speculate_sampled")
def with_two_copies(model, draft_model, ids, k, max_new_tokens, temperature, eos_ids):
    """Tensors, and lesson 07's rollback on both caches at the beginning of a round."""
    if not temperature > 0:
        raise ValueError("temperature")
    if model.config.vocab_size != draft_model.config.vocab_size:
        raise ValueError("vocabularies")
    caches, calls, limit = [None, None], 0, ids.shape[1] + max_new_tokens

    def step(which, one, text, last):
        held = 0 if caches[which] is None else caches[which].get_seq_length()
        with torch.no_grad():
            output = one(text[:, held:], past_key_values=caches[which], use_cache=True)
        caches[which] = output.past_key_values
        return (output.logits[0, -last:].float() / temperature).softmax(-1)

    while ids.shape[1] < limit:
        for n in (0, 1):
            if caches[n] is not None:
                extra = caches[n].get_seq_length() - (ids.shape[1] - 1)
                caches[n] = rollback(caches[n], max(0, extra))
        text, q = ids, []
        for _ in range(min(k, limit - ids.shape[1] - 1)):
            q.append(step(1, draft_model, text, 1)[0])
            text = torch.cat([text, torch.multinomial(q[-1], 1)[None]], dim=-1)
            if text[0, -1].item() in eos_ids:
                break
        p = step(0, model, text, len(q) + 1)
        calls += 1
        q = torch.stack(q) if q else p.new_zeros(0, p.shape[1])
        kept = verify_sampled(p, q, text[0, ids.shape[1] :].tolist())
        ends = [n for n, token in enumerate(kept) if token in eos_ids]
        if ends:
            kept = kept[: ends[0] + 1]
        ids = torch.cat([ids, torch.tensor([kept])], dim=-1)
        if ends:
            break
    return ids, calls


@right("speculate_sampled")
def one_behind(model, draft_model, ids, k, max_new_tokens, temperature, eos_ids):
    """The draft model is fed the last two ids in each round, as transformers does."""
    if temperature <= 0 or model.config.vocab_size != draft_model.config.vocab_size:
        raise ValueError("temperature, or vocabularies")
    text, limit = ids[0].tolist(), ids.shape[1] + max_new_tokens
    cache = draft_cache = None
    calls = 0
    while len(text) < limit:
        draft, q = [], []
        if draft_cache is not None:
            draft_cache.crop(-max(0, draft_cache.get_seq_length() - len(text) + 2))
        for _ in range(k):
            if len(text) + len(draft) + 1 >= limit or (draft and draft[-1] in eos_ids):
                break
            held = 0 if draft_cache is None else draft_cache.get_seq_length()
            row = torch.tensor([(text + draft)[held:]])
            logits, draft_cache = cached_step(draft_model, row, draft_cache)
            q.append(torch.softmax(logits / temperature, dim=-1))
            draft.append(int(torch.multinomial(q[-1], 1)))
        held = 0 if cache is None else cache.get_seq_length()
        with torch.no_grad():
            output = model(
                torch.tensor([text[held:] + draft]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=len(draft) + 1,
            )
        cache, calls = output.past_key_values, calls + 1
        p = torch.softmax(output.logits[0].float() / temperature, dim=-1)
        q = torch.cat(q) if q else torch.empty(0, p.shape[-1])
        for token in verify_sampled(p, q, draft):
            text.append(token)
            if token in eos_ids:
                return torch.tensor([text]), calls
        cache.crop(-max(0, cache.get_seq_length() - len(text) + 1))
    return torch.tensor([text]), calls


@right("speculate_sampled")
def plain_where_nothing_is_drafted(
    model, draft_model, ids, k, max_new_tokens, temperature, eos_ids
):
    """A branch of its own for rounds without a draft."""
    if temperature <= 0:
        raise ValueError("temperature must be above 0")
    if draft_model.config.vocab_size - model.config.vocab_size:
        raise ValueError("these models do not go together")
    text, start = ids[0].tolist(), ids.shape[1]
    cache, draft_cache, calls, in_draft = None, None, 0, 0
    while len(text) - start < max_new_tokens:
        left = max_new_tokens - (len(text) - start)
        held = 0 if cache is None else cache.get_seq_length()
        length = min(k, left - 1)
        draft, q = [], []
        fed = text[in_draft:]
        for _ in range(length):
            logits, draft_cache = cached_step(
                draft_model, torch.tensor([fed]), draft_cache
            )
            q.append((logits / temperature).softmax(-1))
            draft.append(torch.multinomial(q[-1][0], num_samples=1).item())
            fed = [draft[-1]]
            if draft[-1] in eos_ids:
                break
        with torch.no_grad():
            output = model(
                torch.tensor([text[held:] + draft]),
                past_key_values=cache,
                use_cache=True,
            )
        cache, calls = output.past_key_values, calls + 1
        p = (output.logits[0, -len(draft) - 1 :].float() / temperature).softmax(-1)
        if draft:
            kept = verify_sampled(p, torch.cat(q), draft)
        else:
            kept = [torch.multinomial(p[0], 1).item()]
        kept = kept[: next((n for n, x in enumerate(kept) if x in eos_ids), 99) + 1]
        text = text + kept
        if kept[-1] in eos_ids:
            break
        for one in (cache, draft_cache):
            if one is not None and one.get_seq_length() > len(text) - 1:
                one.crop(len(text) - 1 - one.get_seq_length())
        in_draft = 0 if draft_cache is None else draft_cache.get_seq_length()
    return torch.tensor([text]), calls


@right("expected_tokens")
def in_closed_form(alpha, k):
    """The closed form, with its border."""
    if alpha < 0 or alpha > 1 or k < 0:
        raise ValueError("outside")
    if alpha == 1:
        return k + 1.0
    return (1.0 - alpha ** (k + 1)) / (1.0 - alpha)


@right("expected_tokens")
def by_horner(alpha, k):
    """1 + α(1 + α(1 + ...))"""
    if not (0 <= alpha <= 1 and k >= 0):
        raise ValueError("outside")
    total = 1.0
    for _ in range(k):
        total = 1.0 + alpha * total
    return total


@right("expected_tokens")
def over_the_outcomes(alpha, k):
    """The mean over where the first rejection is."""
    if alpha != min(max(alpha, 0), 1) or k < 0:
        raise ValueError("outside")
    mean = sum((n + 1) * alpha**n * (1 - alpha) for n in range(k))
    return float(mean + (k + 1) * alpha**k)


@right("best_k")
def keeps_the_best(alpha, cost):
    """A loop with strict improvement."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    if cost < 0:
        raise ValueError("cost")
    best, speed = 0, 1.0
    for k in range(1, 65):
        now = expected_tokens(alpha, k) / (1 + cost * k)
        if now > speed:
            best, speed = k, now
    return best


@right("best_k")
def with_numbers_of_its_own(alpha, cost):
    """Does not use expected_tokens."""
    if alpha < 0 or alpha > 1 or cost < 0:
        raise ValueError("outside")
    total, speeds = 0.0, []
    for k in range(65):
        total += alpha**k
        speeds.append(total / (1 + k * cost))
    return speeds.index(max(speeds))


@right("best_k")
def by_tensor(alpha, cost):
    """argmax in float64 takes the first of several."""
    if not 0 <= alpha <= 1 or not cost >= 0:
        raise ValueError("outside")
    k = torch.arange(65, dtype=torch.float64)
    tokens = (alpha**k).cumsum(0)
    speed = (tokens / (1 + k * cost)).tolist()
    return max(range(65), key=speed.__getitem__)


@right("SuffixDraft")
class CountersOfCounters:
    """A Counter for each suffix; most_common keeps the order of the first coming."""

    def __init__(self, longest=8, factor=2):
        self.longest, self.factor = longest, factor
        self.counts = defaultdict(Counter)
        self.last = ()

    def __call__(self, ids):
        ids = tuple(ids)
        begin = len(self.last) if ids[: len(self.last)] == self.last else 0
        for place in range(max(begin, 1), len(ids)):
            for size in range(1, self.longest + 1):
                if size <= place:
                    self.counts[ids[place - size : place]][ids[place]] += 1
        self.last = ids
        first, out = 0, []
        while True:
            text = ids + tuple(out)
            match = next(
                (
                    text[len(text) - n :]
                    for n in range(min(self.longest, len(text)), 0, -1)
                    if text[len(text) - n :] in self.counts
                ),
                None,
            )
            if match is None:
                return out
            first = first or len(match)
            if len(out) == first * self.factor:
                return out
            out.append(self.counts[match].most_common(1)[0][0])


@right("SuffixDraft")
class ATree:
    """A tree of suffixes read backwards."""

    def __init__(self, longest=8, factor=2):
        self.longest, self.factor = longest, factor
        self.root, self.old = [{}, {}], []

    def _add(self, ids, place):
        node = self.root
        for back in range(1, min(self.longest, place) + 1):
            node = node[0].setdefault(ids[place - back], [{}, {}])
            node[1][ids[place]] = node[1].get(ids[place], 0) + 1

    def _best(self, text):
        node, depth = self.root, 0
        while depth < min(self.longest, len(text)):
            following = node[0].get(text[-1 - depth])
            if following is None:
                break
            node, depth = following, depth + 1
        if depth == 0:
            return None, 0
        top = max(node[1].values())
        return next(x for x, n in node[1].items() if n == top), depth

    def __call__(self, ids):
        if self.old != ids[: len(self.old)]:
            self.old = []
        for place in range(len(self.old), len(ids)):
            self._add(ids, place)
        self.old = ids[:]
        text = ids[:]
        token, depth = self._best(text)
        for _ in range(self.factor * depth):
            if token is None:
                break
            text.append(token)
            token, _ = self._best(text)
        return text[len(ids) :]


@right("SuffixDraft")
class AllTexts:
    """Keeps the texts and searches them, without any counts."""

    def __init__(self, longest: int = 8, factor: int = 2):
        self.longest = longest
        self.factor = factor
        self.texts = []

    def _followers(self, suffix):
        n = len(suffix)
        return [
            text[i + n]
            for text in self.texts
            for i in range(len(text) - n)
            if text[i : i + n] == suffix
        ]

    def __call__(self, ids):
        if self.texts and ids[: len(self.texts[-1])] == self.texts[-1]:
            self.texts.pop()
        self.texts.append(list(ids))
        guess, limit = [], None
        while limit is None or len(guess) < limit:
            text = list(ids) + guess
            for n in range(min(self.longest, len(text)), 0, -1):
                found = self._followers(text[-n:])
                if found:
                    break
            else:
                break
            limit = self.factor * n if limit is None else limit
            guess.append(max(found, key=found.count))
        return guess


@right("AdaptiveLength")
class WithProperties:
    """alpha and k are computed when they are asked for."""

    def __init__(self, cost=0.1, decay=0.8):
        self.cost, self.decay, self.sums = cost, decay, [1.0, 1.0]

    @property
    def alpha(self):
        return self.sums[0] / sum(self.sums)

    @property
    def k(self):
        return best_k(self.alpha, self.cost) or 1

    def update(self, drafted, accepted):
        if accepted < 0 or accepted > drafted:
            raise ValueError("more accepted than drafted")
        if drafted > 0:
            new = (accepted, int(accepted != drafted))
            self.sums = [
                s * self.decay + x for s, x in zip(self.sums, new, strict=True)
            ]


@right("AdaptiveLength")
class FromAllRounds:
    """Keeps the rounds, and weighs them when a new one comes."""

    def __init__(self, cost=0.1, decay=0.8):
        self.cost, self.decay = cost, decay
        self.rounds = [(1, 1)]
        self._set()

    def _set(self):
        good = bad = 0.0
        for n, (a, r) in enumerate(reversed(self.rounds)):
            good += a * self.decay**n
            bad += r * self.decay**n
        self.alpha = good / (good + bad)
        speed = [
            expected_tokens(self.alpha, k) / (1 + k * self.cost) for k in range(1, 65)
        ]
        self.k = speed.index(max(speed)) + 1

    def update(self, drafted, accepted):
        if not (accepted >= 0 and accepted <= drafted):
            raise ValueError((drafted, accepted))
        if not drafted:
            return
        self.rounds.append((accepted, 1 if accepted < drafted else 0))
        self._set()


@right("AdaptiveLength")
class InTensors:
    """The sums are a tensor of float64."""

    def __init__(self, cost: float = 0.1, decay: float = 0.8):
        self.cost, self.decay = cost, decay
        self._sums = torch.ones(2, dtype=torch.float64)
        self._read()

    def _read(self):
        self.alpha = (self._sums[0] / self._sums.sum()).item()
        self.k = max([1, best_k(self.alpha, self.cost)])

    def update(self, drafted, accepted):
        if not 0 <= accepted <= drafted:
            raise ValueError(f"{accepted} of {drafted}")
        if drafted != 0:
            new = torch.tensor([accepted, min(1, drafted - accepted)])
            self._sums = self._sums * self.decay + new
            self._read()
