"""Wrong answers to lesson 17, and what the learner must be told of each."""

import dataclasses

import torch

from course.making.answers import reference, wrong
from tiny_models import engine as parts

batch_of = reference("mixed_batch")
Blocks = reference("BlockAllocator")
Known = reference("PrefixCache")
share = reference("share_budget")
Queue = reference("Scheduler")
Served = reference("Engine")
broken_of = reference("broken")
changed_of = reference("changed_by_company")

# --- mixed_batch ----------------------------------------------------------------------

HAND = "test_a_batch_worked_by_hand"


@wrong("mixed_batch", HAND, "Padding stands on the right")
def padded_on_the_left(rows):
    """As lesson 05 padded prompts."""
    ids, positions, mask = batch_of(rows)
    width = ids.shape[1]
    ids = torch.tensor([[0] * (width - len(new)) + new for new, _ in rows])
    return ids, positions, mask


@wrong("mixed_batch", HAND, "position of the row's last token")
def positions_run_on(rows):
    """Padding takes the next positions, some beyond the context."""
    ids, _, _ = batch_of(rows)
    before = torch.tensor([n for _, n in rows])
    positions = before[:, None] + torch.arange(ids.shape[1])
    seen = max(n + len(new) for new, n in rows)
    return ids, positions, torch.arange(seen) <= positions[:, None, :, None]


@wrong("mixed_batch", HAND, "stands behind two others")
def positions_from_zero(rows):
    """What is in the cache is not counted."""
    ids, _, mask = batch_of(rows)
    return ids, batch_of([(new, 0) for new, _ in rows])[1], mask


@wrong("mixed_batch", HAND, "A token may look at itself")
def not_at_itself(rows):
    """< instead of <=."""
    ids, positions, mask = batch_of(rows)
    columns = torch.arange(mask.shape[-1])
    return ids, positions, columns < positions[:, None, :, None]


@wrong("mixed_batch", HAND, "True means that a token may look")
def true_where_hidden(rows):
    """The mask of masked_fill."""
    ids, positions, mask = batch_of(rows)
    return ids, positions, ~mask


@wrong("mixed_batch", HAND, "should have shape (2, 1, 3, 3)")
def mask_of_three_dimensions(rows):
    """No dimension for the heads."""
    ids, positions, mask = batch_of(rows)
    return ids, positions, mask[:, 0]


@wrong(
    "mixed_batch",
    "test_the_mask_has_a_column_for_each_position_of_the_longest_row",
    "5 tokens before, and 1 new one",
)
def columns_of_the_new_ones(rows):
    """As many columns as the most before and the most new together."""
    ids, positions, _ = batch_of(rows)
    seen = max(n for _, n in rows) + ids.shape[1]
    return ids, positions, torch.arange(seen) <= positions[:, None, :, None]


@wrong("mixed_batch", "test_the_new_ids_that_were_given_stay", "changed its argument")
def pads_in_place(rows):
    """+= on the lists that were given."""
    made = batch_of(rows)
    for new, _ in rows:
        new += [0] * (made[0].shape[1] - len(new))
    return made


# --- BlockAllocator -------------------------------------------------------------------

COUNT = "test_blocks_worked_by_hand"


@wrong("BlockAllocator", COUNT, "free when nobody refers to it")
class FreeAtOnce(Blocks):
    """The first to give a block back frees it for all."""

    def give_back(self, block):
        super().give_back(block)
        if block not in self._free:
            self._free.append(block)


@wrong("BlockAllocator", COUNT, "OutOfBlocks")
class ListError(Blocks):
    """An IndexError of the list."""

    def take(self):
        block = self._free.pop()
        self._references[block] = 1
        return block


@wrong("BlockAllocator", COUNT, "free after the last give_back")
class NeverFree(Blocks):
    """The count falls, and the block is lost."""

    def give_back(self, block):
        if not self._references[block]:
            raise ValueError
        self._references[block] -= 1


@wrong("BlockAllocator", COUNT, "references of a block that was taken")
class TakenByNobody(Blocks):
    """Who takes a block does not count."""

    def take(self):
        block = super().take()
        self._references[block] = 0
        return block


@wrong(
    "BlockAllocator", "test_a_free_block_is_neither_shared_nor_given_back", "give_back"
)
class FreedTwice(Blocks):
    """To give back a free block is ignored."""

    def give_back(self, block):
        if self._references[block]:
            super().give_back(block)


@wrong("BlockAllocator", "test_a_free_block_is_neither_shared_nor_given_back", "share")
class SharesWhatIsFree(Blocks):
    """A reference to a block that somebody else may take."""

    def share(self, block):
        self._references[block] += 1


@wrong("BlockAllocator", "test_how_many_blocks_are_needed", "needed(1)")
class RoundedDown(Blocks):
    """The last block that is not full is forgotten."""

    def needed(self, tokens):
        return tokens // self.size


@wrong("BlockAllocator", "test_how_many_blocks_are_needed", "needed(0)")
class OneTooMany(Blocks):
    """A full block, and one more."""

    def needed(self, tokens):
        return tokens // self.size + 1


# --- PrefixCache ----------------------------------------------------------------------

FOUND = "test_beginnings_worked_by_hand"
LIES = "test_a_hash_that_lies_is_not_believed"


@wrong("PrefixCache", FOUND, "never match the whole prompt")
class WholePrompt(Known):
    """All whole blocks, the last one too."""

    def match(self, ids):
        return super().match([*ids, -1])


@wrong("PrefixCache", FOUND, "should have 3 references")
class Unlocked(Known):
    """What was found is not counted, and may be evicted."""

    def match(self, ids):
        found = super().match(ids)
        for entry in found:
            self.allocator.give_back(entry.block)
        return found


@wrong("PrefixCache", FOUND, "should have 2 references")
class NotItsOwn(Known):
    """The cache does not refer to what it knows."""

    def register(self, parent, tokens, block):
        entry = super().register(parent, tokens, block)
        self.allocator.give_back(block)
        return entry


@wrong("PrefixCache", FOUND, "not")
class GoesOnBehindAGap(Known):
    """A block that is not known is stepped over."""

    def match(self, ids):
        size, found = self.allocator.size, []
        for start in range(0, (len(ids) - 1) // size * size, size):
            parent = found[-1] if found else None
            if entry := self.find(parent, tuple(ids[start : start + size])):
                self.allocator.share(entry.block)
                found.append(entry)
        self.touch(found)
        return found


@wrong("PrefixCache", LIES, "compare the tokens")
class BelievesTheKey(Known):
    """A key that fits is enough."""

    def find(self, parent, tokens):
        return self.entries.get(self.key(parent, tokens))


@wrong("PrefixCache", LIES, "compare the parent")
class TokensAlone(Known):
    """The tokens are compared, and not what stands before them."""

    def find(self, parent, tokens):
        entry = self.entries.get(self.key(parent, tokens))
        return entry if entry is not None and entry.tokens == tokens else None


@wrong("PrefixCache", "test_a_parent_is_an_entry_not_its_tokens", "compare with `is`")
class ParentsByTheirTokens(Known):
    """Two entries with the same tokens are taken for one."""

    def find(self, parent, tokens):
        entry = self.entries.get(self.key(parent, tokens))
        if entry is None or entry.tokens != tokens:
            return None
        mine, theirs = (x and (x.tokens, x.key) for x in (parent, entry.parent))
        return entry if mine == theirs else None


@wrong("PrefixCache", "test_who_has_the_same_key_makes_room", "forget an entry before")
class Overwrites(Known):
    """The old entry's reference is lost."""

    def register(self, parent, tokens, block):
        if (same := self.find(parent, tokens)) is not None:
            return same
        entry = parts.Entry(block, tokens, parent, self.key(parent, tokens))
        self.allocator.share(block)
        self.entries[entry.key] = entry
        return entry


@wrong(
    "PrefixCache",
    "test_the_same_text_in_another_block_is_known_already",
    "the entry that is known",
)
class AlwaysNew(Known):
    """The newest block of a text takes the place of the one that is known."""

    def register(self, parent, tokens, block):
        if (same := self.find(parent, tokens)) is not None:
            self.forget(same)
        return super().register(parent, tokens, block)


@wrong(
    "PrefixCache", "test_what_was_found_last_is_evicted_last", "touch what was found"
)
class NotTouched(Known):
    """What was registered first goes first, however often it is used."""

    def touch(self, chain):
        pass


# --- share_budget ---------------------------------------------------------------------

SHARES = "test_shares_worked_by_hand"
FAIR = "test_shares_are_fair_and_none_is_lost"


@wrong("share_budget", SHARES, "share_budget([2000, 10], 256)")
def first_come_first_served(left, budget):
    """The long prompt takes it all."""
    shares = []
    for one in left:
        shares.append(min(one, budget))
        budget -= shares[-1]
    return shares


@wrong("share_budget", SHARES, "share_budget([2000, 10], 256)")
def equal_shares(left, budget):
    """What the short one does not need is lost."""
    return [min(one, budget // len(left)) for one in left]


@wrong("share_budget", SHARES, "share_budget([9, 2, 9], 12)")
def shortest_first(left, budget):
    """The short ones take all, the long ones wait."""
    shares = [0] * len(left)
    for i in sorted(range(len(left)), key=left.__getitem__):
        shares[i] = min(left[i], budget)
        budget -= shares[i]
    return shares


@wrong("share_budget", SHARES, "share_budget([2000, 10], 256)")
def in_the_order_of_length(left, budget):
    """The shares are sorted, and nobody knows whose they are."""
    return sorted(share(left, budget))


@wrong("share_budget", SHARES, "changed `left`")
def sorts_what_was_given(left, budget):
    """The caller's list is sorted in place."""
    shares = share(left, budget)
    left.sort(reverse=True)
    return shares


@wrong("share_budget", FAIR, "tokens are lost")
def rounded_down_and_lost(left, budget):
    """The remainder of the division is given to nobody."""
    shares = [0] * len(left)
    order = sorted(range(len(left)), key=lambda i: left[i])
    for done, i in enumerate(order):
        equal = budget // (len(left) - done)
        shares[i] = min(left[i], equal)
        budget -= shares[i]
        if shares[i] == equal:
            for j in order[done:]:
                shares[j] = equal
            break
    return shares


@wrong("share_budget", FAIR, "or made")
def spends_it_all(left, budget):
    """The last one gets what nobody needs."""
    shares = share(left, budget)
    if shares:
        shares[-1] += budget - sum(shares)
    return shares


# --- Scheduler ------------------------------------------------------------------------

COPY = "test_a_shared_block_is_copied_before_it_is_written"


@wrong("Scheduler", COPY, "needs a block of its own")
class WritesIntoSharedBlocks(Queue):
    """A place in the table is enough, whoever else has the block."""

    def reserve(self, request, plan):
        if request.computed // self.allocator.size < len(request.blocks):
            return True
        return super().reserve(request, plan)


@wrong("Scheduler", COPY, "plan.copies")
class NothingCopied(Queue):
    """The new block stays empty."""

    def reserve(self, request, plan):
        return super().reserve(request, parts.Plan())


@wrong("Scheduler", COPY, "references, and one holder")
class OldOneNotGivenBack(Queue):
    """The reference to the old block is kept."""

    def reserve(self, request, plan):
        before = len(plan.copies)
        got = super().reserve(request, plan)
        for old, _ in plan.copies[before:]:
            self.allocator.share(old)
        return got


@wrong("Scheduler", COPY, "plan.copies")
class CopiedBackwards(Queue):
    """(to, from)."""

    def reserve(self, request, plan):
        mine = parts.Plan()
        got = super().reserve(request, mine)
        plan.copies += [(new, old) for old, new in mine.copies]
        return got


@wrong(
    "Scheduler",
    "test_what_is_only_cached_goes_before_anybody_is_stopped",
    "Evict first",
)
class NeverEvicts(Queue):
    """Somebody is stopped while memory is kept for luck."""

    def reserve(self, request, plan):
        evict, self.prefix_cache.evict = self.prefix_cache.evict, lambda: False
        try:
            return super().reserve(request, plan)
        finally:
            self.prefix_cache.evict = evict


LAST = "test_who_came_last_is_stopped"


@wrong("Scheduler", LAST, "2 should be stopped")
class StopsTheFirst(Queue):
    """Whoever came first makes room: no request need ever end."""

    def reserve(self, request, plan):
        while not self.allocator.free and not self.prefix_cache.evict():
            first = self.running[0]
            self.preempt(first)
            if first is request:
                return False
        return super().reserve(request, plan)


@wrong("Scheduler", "test_who_came_last_stops_itself", "the first is never stopped")
class SparesTheOneWhoAsks(Queue):
    """Who asks is never stopped: two can stop each other for ever."""

    def reserve(self, request, plan):
        while not self.allocator.free and not self.prefix_cache.evict():
            self.preempt([one for one in self.running if one is not request][-1])
        return super().reserve(request, plan)


@wrong("Scheduler", "test_who_came_last_stops_itself", "preempted itself")
class AlwaysTrue(Queue):
    """Does not say that the request was stopped."""

    def reserve(self, request, plan):
        super().reserve(request, plan)
        return True


@wrong("Scheduler", LAST, "wait afterwards")
class Dropped(Queue):
    """The stopped request waits nowhere."""

    def preempt(self, request):
        self.running.remove(request)
        self.give_back(request)
        request.state = parts.State.WAITING
        self.preemptions += 1


@wrong("Scheduler", LAST, "the blocks of request 2")
class KeepsItsTable(Queue):
    """The blocks are given back one by one, and stay in the table."""

    def preempt(self, request):
        self.running.remove(request)
        for block in request.blocks:
            self.allocator.give_back(block)
        request.state = parts.State.WAITING
        self.add(request)
        self.preemptions += 1


@wrong("Scheduler", "test_several_are_stopped_if_one_is_not_enough", "are in use")
class StopsOnlyOne(Queue):
    """`if` instead of a loop."""

    def reserve(self, request, plan):
        place = request.computed // self.allocator.size
        old = request.blocks[place] if place < len(request.blocks) else None
        if old is not None and self.allocator.references(old) == 1:
            return True
        if not self.allocator.free and not self.prefix_cache.evict():
            last = self.running[-1]
            self.preempt(last)
            if last is request:
                return False
        new = self.allocator.take()
        if old is None:
            request.blocks.append(new)
        else:
            self.allocator.give_back(old)
            request.blocks[place] = new
            plan.copies.append((old, new))
        return True


PLACE = "test_who_is_stopped_gives_all_back_and_waits_in_its_place"


@wrong("Scheduler", PLACE, "who came first at the head")
class WaitsAtTheEnd(Queue):
    """Behind others that came later."""

    def preempt(self, request):
        super().preempt(request)
        self.waiting.remove(request)
        self.waiting.append(request)


@wrong("Scheduler", PLACE, "who came first at the head")
class WaitsAtTheHead(Queue):
    """Before others that came earlier."""

    def preempt(self, request):
        super().preempt(request)
        self.waiting.remove(request)
        self.waiting.insert(0, request)


@wrong("Scheduler", PLACE, "run afterwards, and should")
class PopsTheLast(Queue):
    """Whoever is meant, the last one leaves the list."""

    def preempt(self, request):
        self.running.pop()
        self.give_back(request)
        request.state = parts.State.WAITING
        self.add(request)
        self.preemptions += 1


@wrong("Scheduler", PLACE, "its blocks should give []")
class KeepsItsBlocks(Queue):
    """Nothing is given back: the next one is stopped for nothing."""

    def preempt(self, request):
        self.running.remove(request)
        request.state = parts.State.WAITING
        self.add(request)
        self.preemptions += 1


@wrong("Scheduler", "test_who_came_last_stops_itself", "1 came last")
class GivesUp(Queue):
    """False, but the request still runs and holds its blocks."""

    def reserve(self, request, plan):
        if request is self.running[-1] and not self.allocator.free:
            return False
        return super().reserve(request, plan)


# --- Engine ---------------------------------------------------------------------------

ROWS = "test_rows_worked_by_hand"
STEP = "test_a_step_counts_registers_and_then_samples"


@wrong("Engine", ROWS, "wanted of row 0")
class WantsAll(Served):
    """A prompt that is not read to its end has no next token."""

    def rows(self, plan):
        return [dataclasses.replace(row, wanted=True) for row in super().rows(plan)]


@wrong("Engine", ROWS, "ids of row 0")
class ReadsToTheEnd(Served):
    """The plan's number of tokens is not kept."""

    def rows(self, plan):
        rows = super().rows(plan)
        return [
            dataclasses.replace(row, ids=one.ids[one.computed :])
            for row, (one, _) in zip(rows, plan.work, strict=True)
        ]


@wrong("Engine", ROWS, "computed of row 0")
class LateByOne(Served):
    """The new tokens stand one place further on."""

    def rows(self, plan):
        rows = super().rows(plan)
        return [dataclasses.replace(row, computed=row.computed + 1) for row in rows]


@wrong("Engine", ROWS, "should return a Row")
class Tuples(Served):
    """Tuples of the same values."""

    def rows(self, plan):
        return [
            (row.ids, row.computed, row.blocks, row.wanted)
            for row in super().rows(plan)
        ]


@wrong("Engine", STEP, "and after its tokens were counted")
class RegistersTooEarly(Served):
    """Blocks are registered before they are counted."""

    def postprocess(self, plan, logits):
        for one, _ in plan.work:
            self.register(one)
        register, self.register = self.register, lambda one: None
        try:
            return super().postprocess(plan, logits)
        finally:
            self.register = register


@wrong("Engine", STEP, "for each that fork returns")
class NoFork(Served):
    """One answer, whatever n is."""

    def postprocess(self, plan, logits):
        fork, self.fork = self.fork, lambda one: [one]
        try:
            return super().postprocess(plan, logits)
        finally:
            self.fork = fork


@wrong("Engine", STEP, "was sampled before it was registered")
class SamplesFirst(Served):
    """The blocks of a request that ends are gone before they are registered."""

    def postprocess(self, plan, logits):
        outputs = []
        for (one, tokens), last in zip(plan.work, logits, strict=True):
            one.computed += tokens
            if last is not None:
                outputs += [self.sample(each, last) for each in self.fork(one)]
            self.register(one)
        return outputs


@wrong("Engine", STEP, "computed is")
class NothingCounted(Served):
    """computed stays where it was."""

    def postprocess(self, plan, logits):
        return super().postprocess(
            parts.Plan([(one, 0) for one, _ in plan.work]), logits
        )


@wrong("Engine", STEP, "what sample returned each time")
class OneOutput(Served):
    """The last output alone."""

    def postprocess(self, plan, logits):
        return super().postprocess(plan, logits)[-1:]


@wrong("Engine", STEP, "once for each that fork returns")
class SamplesTheFirstAgain(Served):
    """As often as fork says, but always for the one in the plan."""

    def postprocess(self, plan, logits):
        fork = self.fork
        self.fork = lambda one: [one] * len(fork(one))
        try:
            return super().postprocess(plan, logits)
        finally:
            self.fork = fork


# --- broken ---------------------------------------------------------------------------

ORDER = "test_an_engine_in_order_is_not_accused"
COUNTED = "test_a_reference_too_many_or_too_few_is_found"


@wrong("broken", ORDER, "block")
def without_the_prefix_cache(engine):
    """The cache's own references are not counted."""
    held = [b for one in engine.scheduler.running for b in one.blocks]
    return [
        f"block {n}"
        for n in range(engine.allocator.number)
        if engine.allocator.references(n) != held.count(n)
    ]


@wrong("broken", COUNTED, "nothing was found")
def counts_kinds_of_blocks_only(engine):
    """free + cached + used = all, and no more."""
    used = {b for one in engine.scheduler.running for b in one.blocks}
    total = engine.allocator.free + engine.prefix_cache.cached + len(used)
    return [] if total == engine.allocator.number else [f"{total} blocks"]


@wrong("broken", COUNTED, "nothing was found")
def too_few_alone(engine):
    """> instead of !=: a leak is no error."""
    found = []
    for block in range(engine.allocator.number):
        held = [b for one in engine.scheduler.running for b in one.blocks]
        held += engine.prefix_cache.blocks
        if held.count(block) > engine.allocator.references(block):
            found.append(f"block {block}")
    return found


@wrong("broken", "test_a_block_that_nobody_holds_is_found", "nothing was found")
def only_blocks_that_are_held(engine):
    """What stands in no table is not looked at."""
    held = [b for one in engine.scheduler.running for b in one.blocks]
    held += engine.prefix_cache.blocks
    return [
        f"block {n}"
        for n in sorted(set(held))
        if engine.allocator.references(n) != held.count(n)
    ]


@wrong("broken", "test_a_request_with_nothing_left_is_found", "nothing was found")
def blocks_alone(engine):
    """Requests are not looked at."""
    return [one for one in broken_of(engine) if one.startswith("block")]


@wrong("broken", "test_a_request_that_waits_with_blocks_is_found", "the sentences are")
def without_those_who_wait(engine):
    """Only what runs."""
    return [one for one in broken_of(engine) if "waits" not in one]


@wrong("broken", COUNTED, "there is no")
def without_a_number(engine):
    """That something is wrong, but not where."""
    return ["a reference count is wrong" for _ in broken_of(engine)]


NOTHING_LEFT = "test_a_request_with_nothing_left_is_found"
WAITS = "test_a_request_that_waits_with_blocks_is_found"


@wrong("broken", NOTHING_LEFT, "more than all is computed: nothing was found")
def exactly_nothing_left(engine):
    """== 0 instead of < 1."""
    running = engine.scheduler.running
    found = [one for one in broken_of(engine) if "nothing left" not in one]
    return found + [f"request {one.id} ended" for one in running if one.left == 0]


@wrong("broken", WAITS, "in no table of a request that runs")
def tables_of_those_who_wait(engine):
    """A table is a table."""
    scheduler = engine.scheduler
    held = [b for one in scheduler.running for b in one.blocks]
    held += [b for one in scheduler.waiting for b in one.blocks]
    held += engine.prefix_cache.blocks
    counted = engine.allocator.references
    numbers = range(engine.allocator.number)
    found = [f"block {n}" for n in numbers if counted(n) != held.count(n)]
    found += [f"request {one.id}" for one in scheduler.running if one.left < 1]
    return found + [f"request {one.id}" for one in scheduler.waiting if one.blocks]


@wrong("broken", "test_each_that_does_not_hold_is_named", "is not named")
def the_first_alone(engine):
    """One sentence, whatever is wrong."""
    return broken_of(engine)[:1]


@wrong("broken", "test_each_entry_of_the_prefix_cache_is_a_holder", "two entries")
def kinds_of_cached_blocks(engine):
    """A set of the cache's blocks."""
    held = [b for one in engine.scheduler.running for b in one.blocks]
    held += set(engine.prefix_cache.blocks)
    counted = engine.allocator.references
    numbers = range(engine.allocator.number)
    found = [f"block {n}" for n in numbers if counted(n) != held.count(n)]
    return found + [one for one in broken_of(engine) if not one.startswith("block")]


@wrong("broken", WAITS, "broken changed the engine")
def mends_too(engine):
    """Who waits loses its blocks, so the next look finds nothing."""
    found = broken_of(engine)
    for request in engine.scheduler.waiting:
        request.blocks = []
    return found


@wrong("broken", ORDER, "should return a list")
def a_bool(engine):
    """True if something is wrong."""
    return bool(broken_of(engine))


# --- changed_by_company ---------------------------------------------------------------

COMPANY = "test_company_worked_by_hand"
ANY = "test_any_of_n_answers_counts_and_the_request_counts_once"


def tokens_of(make_engine, asked, steps):
    engine, got = make_engine(), {}
    names = {engine.add(*one): n for n, one in enumerate(asked)}
    for _ in range(steps):
        if engine.idle:
            break
        for out in engine.step():
            got.setdefault((names[out.request_id], out.choice), []).append(out.token)
    return got


@wrong("changed_by_company", COMPANY, "an engine for all and one for each")
def alone_in_one_engine(make_engine, asked, steps=500):
    """One engine answers all that are alone, one after the other."""
    engine = make_engine()
    return changed_of(lambda: engine, asked, steps)


@wrong("changed_by_company", COMPANY, "should give")
def how_many(make_engine, asked, steps=500):
    """Their number instead of their numbers."""
    return len(changed_of(make_engine, asked, steps))


@wrong("changed_by_company", COMPANY, "should give")
def the_ids_of_the_engine(make_engine, asked, steps=500):
    """What add returned, not the place in the list."""
    ids = [make_engine().add(*one) for one in asked]
    return [ids[n] for n in changed_of(make_engine, asked, steps)]


@wrong("changed_by_company", ANY, "where the answers with the seeds")
def with_its_twins(make_engine, asked, steps=500):
    """n answers are asked for together when the request is alone."""
    together = tokens_of(make_engine, asked, steps)
    changed = []
    for n, one in enumerate(asked):
        alone = tokens_of(make_engine, [one], steps)
        mine = {key[1]: ids for key, ids in together.items() if key[0] == n}
        if mine != {key[1]: ids for key, ids in alone.items()}:
            changed.append(n)
    return changed


@wrong("changed_by_company", ANY, "where the answers with the seeds")
def the_first_answer_alone(make_engine, asked, steps=500):
    """Answers 1 to n - 1 are not compared."""
    single = [(ids, dataclasses.replace(one, n=1)) for ids, one in asked]
    return changed_of(make_engine, single, steps)


@wrong("changed_by_company", ANY, "where the answers with the seeds")
def once_for_each_answer(make_engine, asked, steps=500):
    """A request is named twice if two of its answers differ."""
    changed = changed_of(make_engine, asked, steps)
    return [n for n in changed for _ in range(asked[n][1].n)]


@wrong("changed_by_company", "test_what_is_missing_counts", "should give")
def as_far_as_both_go(make_engine, asked, steps=500):
    """zip ends with the shorter one."""
    together, changed = tokens_of(make_engine, asked, steps), []
    for n, one in enumerate(asked):
        alone = tokens_of(make_engine, [one], steps)[0, 0]
        if any(a != b for a, b in zip(together[n, 0], alone)):  # noqa: B905
            changed.append(n)
    return changed


@wrong(
    "changed_by_company",
    "test_a_crash_is_a_change_for_all_that_have_not_ended",
    "out of memory",
)
def crashes_too(make_engine, asked, steps=500):
    """The engine's exception ends the hunt."""
    together, changed = tokens_of(make_engine, asked, steps), []
    for n, one in enumerate(asked):
        if tokens_of(make_engine, [one], steps)[0, 0] != together[n, 0]:
            changed.append(n)
    return changed


@wrong(
    "changed_by_company", "test_an_engine_without_an_end_is_left_alone", "the engines"
)
def steps_not_kept(make_engine, asked, steps=500):
    """A limit of its own."""
    return changed_of(make_engine, asked, 100)


@wrong("changed_by_company", "test_greedy_requests_have_no_seed", "NoneType")
def a_seed_for_all(make_engine, asked, steps=500):
    """None + 0."""
    for _, sampling in asked:
        sampling.seed + 0
    return changed_of(make_engine, asked, steps)


ALL = "test_all_tokens_are_compared_in_their_order"


def compared(how):
    """The answers alone and in company, each by `how`."""

    def changed(make_engine, asked, steps=500):
        together, found = tokens_of(make_engine, asked, steps), []
        for n, (ids, one) in enumerate(asked):
            for choice in range(one.n):
                seed = None if one.seed is None else one.seed + choice
                single = dataclasses.replace(one, n=1, seed=seed)
                alone = tokens_of(make_engine, [(ids, single)], steps).get((0, 0), [])
                if how(alone) != how(together.get((n, choice), [])):
                    found.append(n)
                    break
        return found

    return changed


@wrong("changed_by_company", ALL, "another first token")
def the_last_token(make_engine, asked, steps=500):
    """What differs early differs late, or so one thinks."""
    return compared(lambda ids: ids[-1:])(make_engine, asked, steps)


@wrong("changed_by_company", ALL, "in another order")
def as_sets(make_engine, asked, steps=500):
    """The same tokens, whatever their order."""
    return compared(sorted)(make_engine, asked, steps)


@wrong(
    "changed_by_company",
    "test_an_answer_is_compared_with_its_own",
    "are exchanged",
)
def whichever_answer(make_engine, asked, steps=500):
    """The answers of a request as a heap."""
    together, found = tokens_of(make_engine, asked, steps), []
    for n, (ids, one) in enumerate(asked):
        alone = []
        for choice in range(one.n):
            seed = None if one.seed is None else one.seed + choice
            single = dataclasses.replace(one, n=1, seed=seed)
            alone += [tokens_of(make_engine, [(ids, single)], steps).get((0, 0), [])]
        mine = [together.get((n, choice), []) for choice in range(one.n)]
        if sorted(alone) != sorted(mine):
            found.append(n)
    return found


@wrong(
    "changed_by_company",
    "test_a_crash_is_a_change_for_all_that_have_not_ended",
    "No answer came at all",
)
def only_what_came(make_engine, asked, steps=500):
    """Answers without a token are not compared."""
    if not came_in_company(make_engine, asked):
        return []
    return changed_of(make_engine, asked, steps)


def came_in_company(make_engine, asked):
    try:
        return bool(tokens_of(make_engine, asked, 1))
    except Exception:
        return False
