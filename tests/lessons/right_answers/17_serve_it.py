"""Right answers to lesson 17 in another style: each must pass all checks."""

import collections
import dataclasses
import heapq

import torch
from torch.nn.utils.rnn import pad_sequence

from course.making.answers import reference, right
from tiny_models import engine as parts
from tiny_models.engine.memory import Row

changed_of = reference("changed_by_company")

# --- mixed_batch ----------------------------------------------------------------------


@right("mixed_batch")
def with_pad_sequence(rows):
    """torch pads."""
    new = [torch.tensor(ids) for ids, _ in rows]
    length = torch.tensor([len(ids) for ids, _ in rows])
    before = torch.tensor([n for _, n in rows])
    ids = pad_sequence(new, batch_first=True)
    places = torch.arange(ids.shape[1]).expand(ids.shape)
    positions = before[:, None] + torch.minimum(places, length[:, None] - 1)
    seen = int((before + length).max())
    return ids, positions, positions[:, None, :, None] >= torch.arange(seen)


@right("mixed_batch")
def cell_by_cell(rows):
    """Filled in loops."""
    width = max(len(new) for new, _ in rows)
    seen = max(len(new) + n for new, n in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.zeros(len(rows), 1, width, seen, dtype=torch.bool)
    for row, (new, before) in enumerate(rows):
        for place in range(width):
            real = min(place, len(new) - 1)
            ids[row, place] = new[place] if place < len(new) else 0
            positions[row, place] = before + real
            mask[row, 0, place, : before + real + 1] = True
    return ids, positions, mask


@right("mixed_batch")
def with_tril(rows):
    """Rows of a triangle, and a list as the result."""
    width = max(len(new) for new, _ in rows)
    seen = max(len(new) + n for new, n in rows)
    ids = torch.tensor([list(new) + [0] * (width - len(new)) for new, _ in rows])
    positions = torch.tensor(
        [[n + min(i, len(new) - 1) for i in range(width)] for new, n in rows]
    )
    triangle = torch.ones(seen, seen, dtype=torch.bool).tril()
    return [ids, positions, triangle[positions].unsqueeze(1)]


# --- BlockAllocator -------------------------------------------------------------------


@right("BlockAllocator")
class InOneDict:
    """A dict of those in use; the rest is free."""

    def __init__(self, number, size):
        self.number, self.size, self.used = number, size, {}

    @property
    def free(self):
        return self.number - len(self.used)

    def references(self, block):
        return self.used.get(block, 0)

    def take(self):
        for block in range(self.number):
            if block not in self.used:
                self.used[block] = 1
                return block
        raise parts.OutOfBlocks

    def share(self, block):
        if block not in self.used:
            raise ValueError(block)
        self.used[block] += 1

    def give_back(self, block):
        if block not in self.used:
            raise ValueError(block)
        self.used[block] -= 1
        if self.used[block] == 0:
            del self.used[block]

    def needed(self, tokens):
        return (tokens + self.size - 1) // self.size


@right("BlockAllocator")
class TheLowestFirst:
    """A heap of free blocks, a Counter of references."""

    def __init__(self, number, size):
        self.number, self.size = number, size
        self.heap, self.counts = list(range(number)), collections.Counter()

    @property
    def free(self):
        return len(self.heap)

    def references(self, block):
        return self.counts[block]

    def take(self):
        try:
            block = heapq.heappop(self.heap)
        except IndexError:
            raise parts.OutOfBlocks("none") from None
        self.counts[block] += 1
        return block

    def share(self, block):
        self._known(block)
        self.counts[block] += 1

    def give_back(self, block):
        self._known(block)
        self.counts[block] -= 1
        if not self.counts[block]:
            heapq.heappush(self.heap, block)

    def _known(self, block):
        if not self.counts[block]:
            raise ValueError(f"{block} is free")

    def needed(self, tokens):
        whole, rest = divmod(tokens, self.size)
        return whole + (rest > 0)


@right("BlockAllocator")
class OldestFreeFirst:
    """A queue: what was freed first is taken first. Counts in a tensor."""

    def __init__(self, number, size):
        self.number, self.size = number, size
        self.queue = collections.deque(range(number))
        self.counts = torch.zeros(number, dtype=torch.long)

    @property
    def free(self):
        return int((self.counts == 0).sum())

    def references(self, block):
        return self.counts[block].item()

    def take(self):
        if self.free == 0:
            raise parts.OutOfBlocks()
        block = self.queue.popleft()
        self.counts[block] = 1
        return block

    def share(self, block):
        if self.counts[block] == 0:
            raise ValueError("free")
        self.counts[block] += 1

    def give_back(self, block):
        if self.counts[block] == 0:
            raise ValueError("free")
        self.counts[block] -= 1
        if self.counts[block] == 0:
            self.queue.append(block)

    def needed(self, tokens):
        return len(range(0, tokens, self.size))


# --- PrefixCache ----------------------------------------------------------------------


@right("PrefixCache")
class CutIntoPieces(parts.PrefixCache):
    """The pieces first, then one after the other."""

    def find(self, parent, tokens):
        entry = self.entries.get(self.key(parent, tokens))
        if entry and entry.parent is parent and entry.tokens == tokens:
            return entry
        return None

    def match(self, ids):
        size = self.allocator.size
        pieces = [tuple(ids[i : i + size]) for i in range(0, len(ids) - size, size)]
        found, parent = [], None
        for piece in pieces:
            parent = self.find(parent, piece)
            if parent is None:
                break
            found.append(parent)
        for entry in found:
            self.allocator.share(entry.block)
        self.touch(found)
        return found

    def register(self, parent, tokens, block):
        key = self.key(parent, tokens)
        if self.find(parent, tokens):
            return self.entries[key]
        if other := self.entries.get(key):
            self.forget(other)
        self.allocator.share(block)
        self.entries[key] = parts.Entry(block, tuple(tokens), parent, key)
        return self.entries[key]


@right("PrefixCache")
class Recursive(parts.PrefixCache):
    """A block, and then the rest behind it."""

    def find(self, parent, tokens):
        for entry in self.entries.values():
            if (entry.parent is parent) and (entry.tokens == tokens):
                return entry
        return None

    def match(self, ids):
        found = self._behind(None, list(ids))
        self.touch(found)
        return found

    def _behind(self, parent, ids):
        size = self.allocator.size
        if len(ids) <= size:
            return []
        entry = self.find(parent, tuple(ids[:size]))
        if entry is None:
            return []
        self.allocator.share(entry.block)
        return [entry, *self._behind(entry, ids[size:])]

    def register(self, parent, tokens, block):
        known = self.find(parent, tokens)
        if known is None:
            known = parts.Entry(block, tokens, parent, self.key(parent, tokens))
            if known.key in self.entries:
                self.forget(self.entries[known.key])
            self.entries[known.key] = known
            self.allocator.share(block)
        return known


@right("PrefixCache")
class WithAWhile(parts.PrefixCache):
    """Grows the beginning while it is known."""

    def find(self, parent, tokens):
        entry = self.entries.get(self.key(parent, tokens))
        fits = entry is not None and (entry.parent, entry.tokens) == (parent, tokens)
        return entry if fits else None

    def match(self, ids):
        size, chain = self.allocator.size, [None]
        while len(chain) * size < len(ids):
            start = (len(chain) - 1) * size
            entry = self.find(chain[-1], tuple(ids[start : start + size]))
            if entry is None:
                break
            chain.append(entry)
            self.allocator.share(entry.block)
        self.touch(chain[1:])
        return chain[1:]

    def register(self, parent, tokens, block):
        entry = self.find(parent, tokens)
        if entry is not None:
            return entry
        key = self.key(parent, tokens)
        for other in list(self.entries.values()):
            if other.key == key:
                self.forget(other)
        self.entries[key] = parts.Entry(block, tokens, parent, key)
        self.allocator.share(block)
        return self.entries[key]


# --- share_budget ---------------------------------------------------------------------


@right("share_budget")
def token_by_token(left, budget):
    """One token to who has the fewest, until all are given."""
    shares = [0] * len(left)
    for _ in range(min(budget, sum(left))):
        open_ones = [i for i in range(len(left)) if shares[i] < left[i]]
        shares[min(open_ones, key=lambda i: shares[i])] += 1
    return shares


@right("share_budget")
def in_rounds(left, budget):
    """An equal part for all in each round, until nothing is left to share."""
    shares = [0] * len(left)
    while budget and (hungry := [i for i, x in enumerate(left) if shares[i] < x]):
        equal = max(1, budget // len(hungry))
        for i in hungry:
            more = min(equal, left[i] - shares[i], budget)
            shares[i] += more
            budget -= more
    return shares


@right("share_budget")
def by_a_level(left, budget):
    """The highest level that the budget can fill; the rest to the last ones."""
    level = 0
    while level < max(left, default=0) and sum(min(x, level + 1) for x in left) <= (
        budget
    ):
        level += 1
    shares = [min(x, level) for x in left]
    rest = budget - sum(shares)
    for i in reversed(range(len(left))):
        if rest and shares[i] < left[i]:
            shares[i] += 1
            rest -= 1
    return shares


# --- Scheduler ------------------------------------------------------------------------


class Preempting(parts.Scheduler):
    def preempt(self, request):
        request.state = parts.State.WAITING
        self.preemptions = self.preemptions + 1
        self.give_back(request)
        self.running = [one for one in self.running if one is not request]
        self.add(request)


@right("Scheduler")
class AskedAgain(Preempting):
    """Asks again after each preemption, by recursion."""

    def reserve(self, request, plan):
        blocks, place = request.blocks, request.computed // self.allocator.size
        has = place < len(blocks)
        if has and self.allocator.references(blocks[place]) < 2:
            return True
        if not self.allocator.free and not self.prefix_cache.evict():
            self.preempt(self.running[-1])
            return request in self.running and self.reserve(request, plan)
        if has:
            new = self.allocator.take()
            plan.copies.append((blocks[place], new))
            self.allocator.give_back(blocks[place])
            blocks[place] = new
        else:
            blocks += [self.allocator.take()]
        return True


@right("Scheduler")
class WithTheException(Preempting):
    """Takes, and makes room where that fails."""

    def reserve(self, request, plan):
        place = request.computed // self.allocator.size
        while request.state is parts.State.RUNNING:
            shared = place < len(request.blocks)
            if shared and self.allocator.references(request.blocks[place]) == 1:
                break
            try:
                new = self.allocator.take()
            except parts.OutOfBlocks:
                if not self.prefix_cache.evict():
                    self.preempt(self.running[-1])
                continue
            if shared:
                plan.copies.append((request.blocks[place], new))
                self.allocator.give_back(request.blocks.pop())
            request.blocks.append(new)
        return request.state is parts.State.RUNNING


@right("Scheduler")
class AloneFirst(Preempting):
    """Looks from the end of the queue for somebody to stop."""

    def reserve(self, request, plan):
        index = request.computed // self.allocator.size

        def own():
            table = request.blocks[index:]
            return bool(table) and self.allocator.references(table[0]) == 1

        for last in [*reversed(self.running)]:
            if own() or self.allocator.free or self.prefix_cache.evict():
                break
            self.preempt(last)
            if last is request:
                return False
        if not own():
            fresh = self.allocator.take()
            for old in request.blocks[index:]:
                plan.copies.append((old, fresh))
                self.allocator.give_back(old)
            request.blocks[index:] = [fresh]
        return True


# --- Engine ---------------------------------------------------------------------------


@right("Engine")
class WithLeft(parts.Engine):
    """By what is left, and comprehensions."""

    def rows(self, plan):
        return [
            Row(one.ids[-one.left :][:tokens], one.computed, one.blocks, n == one.left)
            for one, tokens in plan.work
            for n in [tokens]
        ]

    def postprocess(self, plan, logits):
        for one, tokens in plan.work:
            one.computed += tokens
            self.register(one)
        pairs = zip((one for one, _ in plan.work), logits, strict=True)
        ready = [(one, last) for one, last in pairs if last is not None]
        return [self.sample(x, last) for one, last in ready for x in self.fork(one)]


@right("Engine")
class ByIndex(parts.Engine):
    """Loops over numbers."""

    def rows(self, plan):
        rows = []
        for request, tokens in plan.work:
            ids = [request.ids[request.computed + i] for i in range(tokens)]
            rows.append(
                Row(
                    blocks=list(request.blocks),
                    ids=ids,
                    computed=request.computed,
                    wanted=len(request.ids) - request.computed - tokens == 0,
                )
            )
        return rows

    def postprocess(self, plan, logits):
        outputs = []
        for n in range(len(plan.work)):
            request, tokens = plan.work[n]
            request.computed = request.computed + tokens
            self.register(request)
            if request.left == 0:
                outputs.extend(self.sample(x, logits[n]) for x in self.fork(request))
        return outputs


@right("Engine")
class Generators(parts.Engine):
    """A generator for the outputs."""

    def rows(self, plan):
        return [self._row(*work) for work in plan.work]

    def _row(self, request, tokens):
        part = slice(request.computed, request.computed + tokens)
        wanted = part.stop >= len(request.ids)
        return Row(request.ids[part], part.start, request.blocks, wanted)

    def postprocess(self, plan, logits):
        return list(self._outputs(plan, logits))

    def _outputs(self, plan, logits):
        for (request, tokens), last in zip(plan.work, logits, strict=True):
            request.computed += tokens
            self.register(request)
            if isinstance(last, torch.Tensor):
                for one in self.fork(request):
                    yield self.sample(one, last)


@right("Engine")
class RowsOfTuples(parts.Engine):
    """Tuples, wanted as a number; nothing left instead of a look at the logits."""

    def rows(self, plan):
        return [
            Row(tuple(one.ids[one.computed :][:n]), one.computed, tuple(one.blocks), w)
            for one, n in plan.work
            for w in [1 if n == one.left else 0]
        ]

    def postprocess(self, plan, logits):
        outputs = []
        for place, (one, tokens) in enumerate(plan.work):
            one.computed += tokens
            self.register(one)
            if not one.left:
                outputs += [self.sample(it, logits[place]) for it in self.fork(one)]
        return outputs


# --- broken ---------------------------------------------------------------------------


@right("broken")
def by_list_count(engine):
    """One long list of all that is held."""
    held = sum((one.blocks for one in engine.scheduler.running), [])
    held = held + list(engine.prefix_cache.blocks)
    found = [
        f"block {n}: {engine.allocator.references(n)} references, not {held.count(n)}"
        for n in range(engine.allocator.number)
        if engine.allocator.references(n) != held.count(n)
    ]
    found += [f"{x.id} has no work" for x in engine.scheduler.running if x.left <= 0]
    return found + [f"{x.id} waits" for x in engine.scheduler.waiting if x.blocks]


@right("broken")
def by_taking_away(engine):
    """From the counts down to 0."""
    number = engine.allocator.number
    counts = [engine.allocator.references(n) for n in range(number)]
    for request in engine.scheduler.running:
        for block in request.blocks:
            counts[block] -= 1
    for block in engine.prefix_cache.blocks:
        counts[block] -= 1
    found = [f"block {n} is off by one" for n, rest in enumerate(counts) if rest]
    for request in engine.scheduler.running:
        if request.computed >= len(request.ids):
            found.append(f"no work for {request.id}")
    for request in engine.scheduler.waiting:
        found += [f"{request.id} waits, holding"] * (len(request.blocks) > 0)
    return found


@right("broken")
def with_a_tensor(engine):
    """bincount."""
    tables = [one.blocks for one in engine.scheduler.running]
    held = [b for table in [*tables, engine.prefix_cache.blocks] for b in table]
    number = engine.allocator.number
    held = torch.bincount(torch.tensor(held, dtype=torch.long), minlength=number)
    counts = torch.tensor([engine.allocator.references(n) for n in range(number)])
    found = [f"block {n}" for n in (held != counts).nonzero().flatten().tolist()]
    for one in [*engine.scheduler.running, *engine.scheduler.waiting]:
        waits = one.state is parts.State.WAITING
        if (waits and one.blocks) or (not waits and one.left < 1):
            found.append(f"request {one.id}")
    return found


@right("broken")
def more_than_three(engine):
    """Other invariants, too."""
    scheduler, blocks = engine.scheduler, engine.allocator
    tables = [one.blocks for one in scheduler.running]
    found = []
    for block in range(blocks.number):
        held = sum(table.count(block) for table in tables)
        held += engine.prefix_cache.blocks.count(block)
        if held != blocks.references(block):
            found += [f"#{block}: {held} holders, {blocks.references(block)} counted"]
    for one in scheduler.running:
        if not one.left > 0:
            found.append(f"Request {one.id}/{one.choice} is done, but runs.")
        if len(one.blocks) < blocks.needed(one.computed):
            found.append(f"Request {one.id}: what is computed has no place.")
    for one in scheduler.waiting:
        if len(one.blocks):
            found.append(f"Request {one.id} waits in {len(one.blocks)} blocks.")
    for entry in engine.prefix_cache.entries.values():
        if len(entry.tokens) != blocks.size:
            found.append(f"Block {entry.block} is known, and not full.")
    return found


# --- changed_by_company ---------------------------------------------------------------


@right("changed_by_company")
def answer_by_answer(make_engine, asked, steps=500):
    """A flat list of answers, alone first."""

    def run(requests):
        engine, got = make_engine(), collections.defaultdict(list)
        ids = [engine.add(list(prompt), sampling) for prompt, sampling in requests]
        try:
            left = steps
            while left and not engine.idle:
                for out in engine.step():
                    got[ids.index(out.request_id), out.choice].append(out.token)
                left -= 1
        except RuntimeError:
            return got
        return got

    alone = {}
    for n, (prompt, sampling) in enumerate(asked):
        for i in range(sampling.n):
            seed = sampling.seed if sampling.seed is None else sampling.seed + i
            single = dataclasses.replace(sampling, seed=seed, n=1)
            alone[n, i] = run([(prompt, single)])[0, 0]
    company = run(asked)
    return sorted({key[0] for key in alone if company[key] != alone[key]})


@right("changed_by_company")
def with_copies_of_the_lists(make_engine, asked, steps=500):
    """Ours, with prompts as tuples."""
    return changed_of(make_engine, [(list(p), s) for p, s in asked], steps)


@right("changed_by_company")
def with_any(make_engine, asked, steps=500):
    """Each request is asked whether any of its answers differs."""

    def tokens(requests):
        out, engine = [], make_engine()
        try:
            ids = [engine.add(*one) for one in requests]
            for _ in range(steps):
                out += engine.step() if not engine.idle else []
        except Exception as error:
            print("the engine failed:", error)
        return lambda n, choice: [
            x.token for x in out if (x.request_id, x.choice) == (ids[n], choice)
        ]

    company = tokens(asked)

    def differs(n, i):
        prompt, one = asked[n]
        seed = one.seed + i if one.seed is not None else None
        alone = tokens([(prompt, dataclasses.replace(one, n=1, seed=seed))])
        return company(n, i) != alone(0, 0)

    return [
        n
        for n, (_, one) in enumerate(asked)
        if any(differs(n, i) for i in range(one.n))
    ]
