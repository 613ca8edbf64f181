"""Checks of lesson 17. Oracles: cases worked by hand, generate, and the course's own
engine with one part replaced."""

import functools
import random
import re
from collections import Counter
from functools import partial

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from course.kit import planted
from tiny_models import engine as parts
from tiny_models import random_gpt2, random_llama
from tiny_models.engine import invariants
from tiny_models.engine.memory import Row
from tiny_models.toy_tokenizer import toy_tokenizer

mixed_batch = exercise("mixed_batch")
BlockAllocator = exercise("BlockAllocator")
PrefixCache = exercise("PrefixCache")
share_budget = exercise("share_budget")
Scheduler = exercise("Scheduler")
Engine = exercise("Engine")
broken = exercise("broken")
changed_by_company = exercise("changed_by_company")


@functools.cache
def of_generate():
    """Each answer to the traffic, by generate."""
    model, answers = random_llama(), {}
    for n, (prompt, sampling) in enumerate(planted.traffic()):
        ids = torch.tensor([prompt])
        for choice in range(sampling.n):
            with torch.random.fork_rng():
                torch.manual_seed(sampling.seed + choice)
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=sampling.max_tokens,
                    do_sample=True,
                    top_k=0,
                    sequence_bias={(2,): -100.0},
                )
            answers[n, choice] = tuple(out[0, len(prompt) :].tolist())
    return answers


def serve_all(call, **replaced):
    """An engine with these parts answers the traffic as generate does, and nothing is
    broken between two steps."""
    kind = type("Mixed", (parts.Engine,), replaced)
    serve_traffic(call, planted.make(kind, random_llama(), toy_tokenizer()))


def serve_traffic(call, engine):
    asked = {engine.add(*one): n for n, one in enumerate(planted.traffic())}
    got = {}
    for step in range(300):
        if engine.idle:
            break
        for output in engine.step():
            key = asked[output.request_id], output.choice
            got.setdefault(key, []).append(output.token)
        wrong = invariants.broken(engine)
        assert not wrong, f"{call}: after step {step} {wrong[0]}"
    assert engine.idle, f"{call}: after 300 steps some requests have not ended"
    for key, wanted in of_generate().items():
        n, choice = key
        mine = tuple(got.get(key, ()))
        place = next((i for i, (a, b) in enumerate(zip(mine, wanted)) if a != b), None)  # noqa: B905
        assert mine == wanted, (
            f"{call}: answer {choice} of request {n} got {expect.show(list(mine))}, "
            f"and generate gives {expect.show(list(wanted))}; they differ from token "
            f"{place} on"
        )


# --- mixed_batch ----------------------------------------------------------------------


def three_tensors(got, call):
    expect.returned(got, (tuple, list), call)
    assert len(got) == 3, f"{call} should return ids, positions and mask"
    return got


def test_a_batch_worked_by_hand(mixed_batch):
    call = "mixed_batch([([7, 8, 9], 0), ([5], 2)])"
    got = mixed_batch([([7, 8, 9], 0), ([5], 2)])
    ids, positions, mask = three_tensors(got, call)
    expect.tensor(ids, (2, 3), f"{call}: ids", torch.int64)
    hint = ""
    if ids[1].tolist() == [0, 0, 5]:
        hint = "Padding stands on the right."
    expect.same(ids, [[7, 8, 9], [5, 0, 0]], f"{call}: ids", hint)
    expect.tensor(positions, (2, 3), f"{call}: positions", torch.int64)
    hint = ""
    if positions[1].tolist() == [2, 3, 4]:
        hint = "Padding takes the position of the row's last token."
    elif positions[1, 0] == 0:
        hint = "The new id of row 1 stands behind two others."
    expect.same(positions, [[0, 1, 2], [2, 2, 2]], f"{call}: positions", hint)
    expect.tensor(mask, (2, 1, 3, 3), f"{call}: mask", torch.bool)
    wanted = [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 1]] * 3]
    hint = ""
    if torch.equal(mask, ~torch.tensor(wanted, dtype=torch.bool)[:, None]):
        hint = "True means that a token may look."
    elif not mask[0, 0, 0, 0]:
        hint = "A token may look at itself."
    wanted = torch.tensor(wanted, dtype=torch.bool)[:, None]
    expect.same(mask.int(), wanted.int(), f"{call}: mask", hint)


def test_the_mask_has_a_column_for_each_position_of_the_longest_row(mixed_batch):
    call = "mixed_batch([([5, 6], 1), ([7], 5), ([8, 9], 2)])"
    got = mixed_batch([([5, 6], 1), ([7], 5), ([8, 9], 2)])
    _, positions, mask = three_tensors(got, call)
    expect.same(positions, [[1, 2], [5, 5], [2, 3]], f"{call}: positions")
    hint = "The longest row has 5 tokens before, and 1 new one."
    assert tuple(mask.shape) == (3, 1, 2, 6), (
        f"{call}: the mask should have shape (3, 1, 2, 6), not {tuple(mask.shape)}. "
        f"{hint}"
    )
    wanted = torch.tensor(
        [
            [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]],
            [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
            [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]],
        ]
    )
    expect.same(mask.int(), wanted[:, None].int(), f"{call}: mask")


@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_rows_of_a_mixed_batch_get_the_logits_that_they_get_alone(mixed_batch, make):
    model = make()
    texts = [[5, 17, 40, 8, 9, 60], [61, 62, 33], [34, 35, 7, 41]]
    before = [4, 0, 3]
    rows = [(text[n:], n) for text, n in zip(texts, before, strict=True)]
    call = "mixed_batch of 2, 3 and 1 new ids behind 4, 0 and 3"
    given = [(list(new), n) for new, n in rows]
    ids, positions, mask = three_tensors(mixed_batch(given), call)
    # Rows whose keys and values stand in one store, as in the engine.
    store = parts.memory.KeyValueStore(3, 8)
    for n, text in enumerate(texts):
        if before[n]:
            parts.memory.run(model, store, [Row(text[: before[n]], 0, [n], False)])
    cache = parts.memory.StepCache(
        store, [Row(new, n, [i], True) for i, (new, n) in enumerate(rows)]
    )
    with torch.no_grad():
        logits = model(
            ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).logits
        for n, text in enumerate(texts):
            alone = model(torch.tensor([text])).logits[0, -1]
            mine = logits[n, len(rows[n][0]) - 1]
            expect.same(mine, alone, f"{call}: the last logits of row {n}", "", 1e-4)


def test_the_new_ids_that_were_given_stay(mixed_batch):
    rows = [([7, 8, 9], 0), ([5], 2)]
    mixed_batch(rows)
    wanted = [([7, 8, 9], 0), ([5], 2)]
    assert rows == wanted, f"mixed_batch changed its argument: {rows}, not {wanted}"


# --- BlockAllocator -------------------------------------------------------------------


def test_blocks_worked_by_hand(BlockAllocator):
    blocks = BlockAllocator(2, 4)
    expect.value(blocks.free, 2, "free of BlockAllocator(2, 4)")
    taken = [blocks.take(), blocks.take()]
    assert sorted(taken) == [0, 1], f"two blocks are 0 and 1, not {taken}"
    expect.value(blocks.free, 0, "free after two of two were taken")
    expect.rejects(parts.OutOfBlocks, blocks.take, "a third take")
    expect.value(blocks.references(0), 1, "references of a block that was taken")
    blocks.share(0)
    expect.value(blocks.references(0), 2, "references after share")
    blocks.give_back(0)
    expect.value(blocks.references(0), 1, "references after share and give_back")
    hint = "A block is free when nobody refers to it."
    expect.value(blocks.free, 0, "free after share and give_back", hint)
    blocks.give_back(0)
    expect.value(blocks.references(0), 0, "references after the last give_back")
    expect.value(blocks.free, 1, "free after the last give_back")
    again = blocks.take()
    expect.value(again, 0, "take where block 0 alone is free")
    expect.value(blocks.references(0), 1, "references of a block that was taken again")


def test_a_free_block_is_neither_shared_nor_given_back(BlockAllocator):
    blocks = BlockAllocator(3, 4)
    one = blocks.take()
    free = next(n for n in range(3) if n != one)
    for name in ("share", "give_back"):
        call = f"{name}({free}) of a block that is free"
        expect.rejects(ValueError, partial(getattr(blocks, name), free), call)
        expect.value(blocks.references(free), 0, f"references after {call}")
        expect.value(blocks.free, 2, f"free after {call}")


def test_each_allocator_counts_for_itself(BlockAllocator):
    one, other = BlockAllocator(2, 4), BlockAllocator(3, 8)
    one.take()
    expect.value(other.free, 3, "free of an allocator, after take of another one")
    expect.value((other.number, other.size), (3, 8), "number and size")


def test_how_many_blocks_are_needed(BlockAllocator):
    blocks = BlockAllocator(9, 4)
    for tokens, wanted in ((0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        call = f"needed({tokens}) with blocks of 4"
        expect.value(blocks.needed(tokens), wanted, call)


def test_no_block_is_handed_out_twice(BlockAllocator):
    dice, blocks, held = random.Random(0), BlockAllocator(6, 4), Counter()
    for _ in range(400):
        what = dice.choice(["take", "share", "give_back", "give_back"])
        if what == "take" and blocks.free:
            block = blocks.take()
            assert not held[block], f"take returned block {block}, which is in use"
            held[block] = 1
        elif what != "take" and +held:
            block = dice.choice(sorted(+held))
            getattr(blocks, what)(block)
            held[block] += 1 if what == "share" else -1
        count = [blocks.references(n) for n in range(6)]
        wanted = [held[n] for n in range(6)]
        assert count == wanted, f"the references are {count}, and should be {wanted}"
        assert blocks.free == wanted.count(0), (
            f"free is {blocks.free}, where {wanted.count(0)} blocks have no reference"
        )


def test_an_engine_with_these_blocks_serves_all(BlockAllocator):
    serve_all("an engine with your BlockAllocator", BlockAllocator=BlockAllocator)


# --- PrefixCache ----------------------------------------------------------------------


def filled(PrefixCache, **options):
    """(allocator, cache, a, b): 1 2 in block a, 3 4 behind them in b; size 2."""
    allocator = parts.BlockAllocator(8, 2)
    cache = PrefixCache(allocator, **options)
    a = an_entry(cache.register(None, (1, 2), allocator.take()))
    b = an_entry(cache.register(a, (3, 4), allocator.take()))
    return allocator, cache, a, b


def an_entry(got):
    return expect.returned(got, parts.Entry, "register")


def named(entries, **names):
    """Entries as their names, for a sentence."""
    known = {id(entry): name for name, entry in names.items()}
    return [known.get(id(entry), "another entry") for entry in entries]


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1, 2, 3, 4, 9], ["a", "b"]),
        ([1, 2, 3, 4, 3, 4, 9], ["a", "b"]),
        ([1, 2, 3, 4], ["a"]),
        ([1, 2, 3], ["a"]),
        ([1, 2], []),
        ([1], []),
        ([3, 4, 9], []),
        ([3, 4, 1, 2, 9], []),
        ([1, 2, 9, 9, 3, 4, 9], ["a"]),
    ],
)
def test_beginnings_worked_by_hand(PrefixCache, ids, wanted):
    allocator, cache, a, b = filled(PrefixCache)
    call = f"match({ids}) after a = 1 2 and b = 3 4 behind it"
    got = expect.returned(cache.match(list(ids)), list, call)
    found, hint = named(got, a=a, b=b), ""
    if len(ids) in (2, 4) and len(found) > len(wanted):
        hint = " The last token has to run: never match the whole prompt."
    elif ids[0] == 3 and "b" in found:
        hint = " b is 3 4 behind 1 2: look at the parent."
    elif ids[0] == 3 and found:
        hint = " 3 4 is not known as a beginning: stop there."
    assert found == wanted, f"{call} should be {wanted}, not {found}.{hint}"
    for name, entry in (("a", a), ("b", b)):
        count = allocator.references(entry.block)
        right = 2 + wanted.count(name)  # the one who took it, the cache, the match
        assert count == right, (
            f"{call}: the block of {name} should have {right} references, not {count}"
        )


def test_a_hash_that_lies_is_not_believed(PrefixCache):
    for told, key in (
        ("one key for all", lambda key: 7),
        ("keys that leave out the parent", lambda key: hash(key[1])),
        ("keys that leave out the tokens", lambda key: hash(key[0] is None)),
    ):
        allocator = parts.BlockAllocator(8, 2)
        cache = PrefixCache(allocator, hash=key)
        block = allocator.take()
        a = an_entry(cache.register(None, (1, 2), block))
        call = f"with {told}, and 1 2 registered"
        found = named(cache.match([1, 2, 9]), a=a)
        assert found == ["a"], f"{call}, match([1, 2, 9]) should be ['a'], not {found}"
        wrong = named(cache.match([3, 4, 9]), a=a)
        assert not wrong, f"{call}, match([3, 4, 9]) is {wrong}: compare the tokens"
        b = an_entry(cache.register(a, (1, 2), allocator.take()))
        assert b is not a, f"{call}, 1 2 behind 1 2 is another text: compare the parent"
        assert b.parent is a, f"{call}, the parent of 1 2 behind 1 2 should be a"
        wrong = named(cache.match([1, 2, 1, 2, 9])[1:], a=a, b=b)
        assert wrong in ([], ["b"]), f"{call}, 1 2 behind 1 2 is found as {wrong}"


def test_who_has_the_same_key_makes_room(PrefixCache):
    allocator = parts.BlockAllocator(8, 2)
    cache = PrefixCache(allocator, hash=lambda key: 7)
    old, new = allocator.take(), allocator.take()
    cache.register(None, (1, 2), old)
    cache.register(None, (3, 4), new)
    call = "after 1 2 and then 3 4 were registered with the same key"
    count = allocator.references(old)
    assert count == 1, (
        f"{call}, the block of 1 2 should have 1 reference, of who took it, not "
        f"{count}: forget an entry before another takes its place"
    )
    hint = "Forget the old entry before the new one takes its place."
    expect.value(cache.blocks, [new], f"{call}, the cache's blocks", hint)
    assert len(cache.match([3, 4, 9])) == 1, f"{call}, 3 4 should be found"


def test_a_parent_is_an_entry_not_its_tokens(PrefixCache):
    """1 2 is evicted, and registered again: what stands behind the old one stands
    behind other keys and values."""
    allocator, cache, a, b = filled(PrefixCache)
    cache.forget(a)
    again = an_entry(cache.register(None, (1, 2), allocator.take()))
    call = "1 2 was forgotten and registered again: match([1, 2, 3, 4, 9])"
    found = named(cache.match([1, 2, 3, 4, 9]), a=again, b=b, old_a=a)
    hint = "The parent of b is the old entry: compare with `is`."
    assert found == ["a"], f"{call} should be ['a'], not {found}. {hint}"


def test_the_same_text_in_another_block_is_known_already(PrefixCache):
    allocator, cache, a, b = filled(PrefixCache)
    other = allocator.take()
    got = cache.register(a, (3, 4), other)
    call = "register of 3 4 behind 1 2, which is known, in another block"
    assert got is b, f"{call} should return the entry that is known"
    count = allocator.references(other)
    assert count == 1, f"{call}: the other block should keep 1 reference, not {count}"
    expect.value(sorted(cache.blocks), sorted([a.block, b.block]), f"{call}: blocks")


def test_an_entry_says_what_it_is(PrefixCache):
    _, cache, a, b = filled(PrefixCache)
    expect.value(b.tokens, (3, 4), "the tokens of an entry")
    assert a.parent is None, "an entry at the beginning has the parent None"
    assert b.parent is a, "the parent of b should be a"
    expect.value(b.key, cache.key(a, (3, 4)), "the key of b")
    assert cache.entries.get(b.key) is b, "entries[b.key] should be b"


def test_what_was_found_last_is_evicted_last(PrefixCache):
    allocator, cache, a, b = filled(PrefixCache)
    c = cache.register(None, (5, 6), allocator.take())
    for entry in cache.match([1, 2, 3, 4, 9]):
        allocator.give_back(entry.block)
    for entry in (a, b, c):
        allocator.give_back(entry.block)
    cache.evict()
    left = sorted(cache.blocks)
    assert left == sorted([a.block, b.block]), (
        "1 2 3 4 was found after 5 6 was registered; the first to be evicted should "
        f"be 5 6 in block {c.block}, and blocks {left} are left: touch what was found"
    )


def test_an_engine_with_this_cache_serves_all(PrefixCache):
    serve_all("an engine with your PrefixCache", PrefixCache=PrefixCache)


# --- share_budget ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "budget", "wanted"),
    [
        ([2000, 10], 256, [246, 10]),
        ([10, 2000], 256, [10, 246]),
        ([9, 9], 6, [3, 3]),
        ([9, 2, 9], 12, [5, 2, 5]),
        ([1, 2, 90, 3, 90], 26, [1, 2, 10, 3, 10]),
        ([3, 1], 9, [3, 1]),
        ([3, 1], 4, [3, 1]),
        ([7], 4, [4]),
        ([7, 5], 0, [0, 0]),
        ([], 4, []),
    ],
)
def test_shares_worked_by_hand(share_budget, left, budget, wanted):
    given = list(left)
    got = share_budget(given, budget)
    call = f"share_budget({left}, {budget})"
    expect.value(got, wanted, call)
    assert given == left, f"{call} changed `left` to {given}"


def test_shares_are_fair_and_none_is_lost(share_budget):
    dice = random.Random(0)
    for _ in range(200):
        left = [dice.randrange(1, 40) for _ in range(dice.randrange(1, 7))]
        budget = dice.randrange(80)
        got = share_budget(list(left), budget)
        call = f"share_budget({left}, {budget}) is {got}"
        assert len(got) == len(left), f"{call}: one share for each"
        assert sum(got) == min(budget, sum(left)), f"{call}: tokens are lost, or made"
        pairs = list(zip(got, left, strict=True))
        assert all(0 <= mine <= needed for mine, needed in pairs), (
            f"{call}: nobody gets less than none, or more than is left"
        )
        short = [mine for mine, needed in pairs if mine < needed]
        assert not short or max(got) <= min(short) + 1, (
            f"{call}: who needs more gets {min(short)}, and another {max(got)}"
        )


# --- Scheduler ------------------------------------------------------------------------


def a_request(number, tokens, blocks=(), computed=0, choice=0):
    """A request with so many ids, in these blocks."""
    return parts.Request(
        id=number,
        choice=choice,
        ids=list(range(3, 3 + tokens)),
        sampling=parts.Sampling(9),
        sampler=None,
        writer=None,
        prompt_tokens=tokens,
        computed=computed,
        blocks=list(blocks),
        state=parts.State.RUNNING if blocks else parts.State.WAITING,
    )


def scheduler_of(Scheduler, blocks):
    """A scheduler with so many blocks of 4, all of them free."""
    allocator = parts.BlockAllocator(blocks, 4)
    cache = parts.PrefixCache(allocator)
    return Scheduler(allocator, cache, token_budget=16, max_batch=4)


def running(scheduler, number, computed, tokens=None):
    """A request that runs, in blocks of its own, with one token left."""
    needed = scheduler.allocator.needed(computed)
    blocks = [scheduler.allocator.take() for _ in range(needed)]
    request = a_request(number, computed + 1, blocks, computed)
    scheduler.running.append(request)
    return request


def reserved(scheduler, request, call):
    """(what reserve returned, the copies of its plan)"""
    plan = parts.Plan()
    return expect.returned(scheduler.reserve(request, plan), bool, call), plan.copies


def test_a_full_table_grows_by_one_block(Scheduler):
    scheduler = scheduler_of(Scheduler, 5)
    request = running(scheduler, 0, computed=4)
    (first,) = request.blocks
    call = "reserve with blocks of 4, computed 4 and one block"
    got, copies = reserved(scheduler, request, call)
    assert got is True, f"{call} should be True: there are free blocks"
    assert len(request.blocks) == 2, f"{call}: the table is {request.blocks} afterwards"
    assert request.blocks[0] == first, f"{call}: the first block should stay"
    expect.value(scheduler.allocator.references(request.blocks[1]), 1, "its references")
    expect.value(scheduler.allocator.free, 3, f"{call}: the free blocks")
    expect.value(copies, [], f"{call}: plan.copies", "There is nothing to copy.")


def test_a_place_in_a_block_of_its_own_is_enough(Scheduler):
    for computed in (5, 7):
        scheduler = scheduler_of(Scheduler, 2)
        request = running(scheduler, 0, computed)
        before = list(request.blocks)
        call = f"reserve with blocks of 4, computed {computed} and two own blocks"
        got, copies = reserved(scheduler, request, call)
        assert got is True, f"{call} should be True"
        expect.value(request.blocks, before, f"{call}: the table")
        expect.value(copies, [], f"{call}: plan.copies")
        expect.value(scheduler.preemptions, 0, f"{call}: preemptions")


def test_a_shared_block_is_copied_before_it_is_written(Scheduler):
    scheduler = scheduler_of(Scheduler, 5)
    request = running(scheduler, 0, computed=5)
    full, old = request.blocks
    for block in request.blocks:  # another answer to the same prompt
        scheduler.allocator.share(block)
    twin = a_request(0, 6, request.blocks, 5, choice=1)
    scheduler.running.append(twin)
    call = "reserve with computed 5, where the second block has two references"
    got, copies = reserved(scheduler, request, call)
    assert got is True, f"{call} should be True"
    assert request.blocks[0] == full, f"{call}: the full block may stay shared"
    new = request.blocks[1]
    assert new != old, f"{call}: the request needs a block of its own"
    assert len(request.blocks) == 2, f"{call}: the table is {request.blocks}"
    expect.value(copies, [(old, new)], f"{call}: plan.copies")
    count = scheduler.allocator.references(old)
    assert count == 1, f"{call}: block {old} has {count} references, and one holder"
    expect.value(twin.blocks, [full, old], f"{call}: the other one's table")
    call = "reserve of the other one then, whose block has one reference by now"
    got, copies = reserved(scheduler, twin, call)
    expect.value((got, copies), (True, []), f"{call}: the result and plan.copies")


def test_what_is_only_cached_goes_before_anybody_is_stopped(Scheduler):
    scheduler = scheduler_of(Scheduler, 3)
    block = scheduler.allocator.take()
    scheduler.prefix_cache.register(None, (9, 9, 9, 9), block)
    scheduler.allocator.give_back(block)
    first = running(scheduler, 0, computed=4)
    running(scheduler, 1, computed=4)
    call = "reserve with no free block, one that is cached, and two that run"
    got, _ = reserved(scheduler, first, call)
    assert got is True, f"{call} should be True"
    hint = "Evict first."
    expect.value(scheduler.preemptions, 0, f"{call}: preemptions", hint)
    expect.value(first.blocks[1:], [block], f"{call}: the new block")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_who_is_stopped_gives_all_back_and_waits_in_its_place(Scheduler, which):
    """Others wait already: who came before all of them, and who came last."""
    scheduler = scheduler_of(Scheduler, 6)
    requests = [running(scheduler, n, computed=4) for n in (1, 3, 5)]
    one, others = requests[which], [n for n in (1, 3, 5) if n != requests[which].id]
    for n in (0, 2, 4, 6):
        scheduler.waiting.append(a_request(n, 3))
    ids = list(one.ids)
    scheduler.preempt(one)
    call = f"preempt of request {one.id}, where 1, 3 and 5 run and 0, 2, 4, 6 wait"
    left = [request.id for request in scheduler.running]
    assert left == others, f"{call}: {left} run afterwards, and should {others}"
    expect.value(one.blocks, [], f"{call}: its blocks")
    expect.value(scheduler.allocator.free, 4, f"{call}: the free blocks")
    expect.value(one.computed, 0, f"{call}: computed")
    assert one.ids == ids, f"{call}: its ids should not change"
    assert one.state is parts.State.WAITING, f"{call}: its state is {one.state}"
    waiting = [request.id for request in scheduler.waiting]
    wanted = sorted([0, 2, 4, 6, one.id])
    assert waiting == wanted, (
        f"{call}: {waiting} wait afterwards, and should {wanted}, who came first at "
        "the head"
    )
    expect.value(scheduler.preemptions, 1, f"{call}: preemptions")


def test_who_came_last_is_stopped(Scheduler):
    scheduler = scheduler_of(Scheduler, 3)
    first, second, third = (running(scheduler, n, computed=4) for n in range(3))
    call = "reserve of request 1, where 0, 1 and 2 have all blocks"
    got, _ = reserved(scheduler, second, call)
    left = [request.id for request in scheduler.running]
    assert left == [0, 1], f"{call}: {left} run afterwards, and 2 should be stopped"
    assert got is True, f"{call} should be True: request 2 has given back a block"
    assert len(second.blocks) == 2, f"{call}: its table is {second.blocks}"
    waiting = [request.id for request in scheduler.waiting]
    assert waiting == [2], f"{call}: {waiting} wait afterwards, and 2 should"
    assert third.state is parts.State.WAITING, f"{call}: the state is {third.state}"
    expect.value(third.blocks, [], f"{call}: the blocks of request 2")
    expect.value(third.computed, 0, f"{call}: computed of request 2")
    expect.value(scheduler.preemptions, 1, f"{call}: preemptions")


def test_who_came_last_stops_itself(Scheduler):
    scheduler = scheduler_of(Scheduler, 2)
    running(scheduler, 0, computed=4)
    last = running(scheduler, 1, computed=4)
    call = "reserve of request 1, where 0 and 1 have all blocks"
    got, copies = reserved(scheduler, last, call)
    left = [request.id for request in scheduler.running]
    hint = "the first is never stopped"
    if left == [0, 1]:
        hint = "1 came last, so it is stopped itself"
    assert left == [0], f"{call}: {left} run afterwards; {hint}"
    assert got is False, f"{call} should be False: it was preempted itself"
    expect.value(last.blocks, [], f"{call}: its blocks")
    expect.value(copies, [], f"{call}: plan.copies")


def test_several_are_stopped_if_one_is_not_enough(Scheduler):
    """The last two hold the same block: the first of them frees nothing."""
    scheduler = scheduler_of(Scheduler, 2)
    first = running(scheduler, 0, computed=4)
    one = running(scheduler, 1, computed=3)
    scheduler.allocator.share(one.blocks[0])
    scheduler.running.append(a_request(1, 4, one.blocks, 3, choice=1))
    call = "reserve of request 0, where two answers of request 1 share the other block"
    got, _ = reserved(scheduler, first, call)
    left = [request.id for request in scheduler.running]
    assert (got, left) == (True, [0]), f"{call}: it is {got}, and {left} run afterwards"
    expect.value(scheduler.preemptions, 2, f"{call}: preemptions")


def test_who_shares_with_none_but_the_stopped_needs_no_copy(Scheduler):
    scheduler = scheduler_of(Scheduler, 1)
    first = running(scheduler, 0, computed=3)
    scheduler.allocator.share(first.blocks[0])
    scheduler.running.append(a_request(0, 4, first.blocks, 3, choice=1))
    call = "reserve of a request that shares the only block with one that came later"
    got, copies = reserved(scheduler, first, call)
    assert got is True, f"{call} should be True: when the other is stopped, it is alone"
    expect.value(copies, [], f"{call}: plan.copies")
    expect.value(scheduler.allocator.references(first.blocks[0]), 1, "its references")


def test_an_engine_with_this_scheduler_serves_all(Scheduler):
    serve_all("an engine with your Scheduler", Scheduler=Scheduler)


# --- Engine ---------------------------------------------------------------------------


def engine_of(Engine, **settings):
    """The learner's methods with the course's parts."""
    names = ("BlockAllocator", "PrefixCache", "Scheduler")
    kind = type("Mine", (Engine,), {name: getattr(parts, name) for name in names})
    return planted.make(kind, random_llama(), toy_tokenizer(), **settings)


def test_rows_worked_by_hand(Engine):
    engine = engine_of(Engine)
    one, two = a_request(0, 20, [4, 7, 1, 0, 9], 16), a_request(1, 6, [2, 3], 5)
    for tokens, wanted in ((3, False), (4, True)):
        plan = parts.Plan([(one, tokens), (two, 1)])
        call = f"rows: 16 of 20 ids are computed, and the plan gives {tokens}; then 1"
        got = expect.returned(engine.rows(plan), list, call)
        assert len(got) == 2, f"{call}: there should be 2 rows, not {len(got)}"
        ids = list(range(19, 19 + tokens))
        right = [Row(ids, 16, [4, 7, 1, 0, 9], wanted), Row([8], 5, [2, 3], True)]
        for n, (mine, theirs) in enumerate(zip(got, right, strict=True)):
            expect.returned(mine, Row, f"{call}: row {n}")
            for name in ("ids", "computed", "blocks", "wanted"):
                told = f"{call}: {name} of row {n}"
                value, should = getattr(mine, name), getattr(theirs, name)
                if name in ("ids", "blocks"):  # any sequence will do
                    value = list(expect.returned(value, (list, tuple), told))
                elif name == "wanted" and type(value) is int:  # 1 is True
                    should = int(should)
                expect.value(value, should, told)


def test_a_step_counts_registers_and_then_samples(Engine):
    engine = engine_of(Engine)
    seen = []
    engine.register = lambda one: seen.append(("register", one.id, one.computed))
    twin = a_request(0, 6, [0], 6, choice=1)
    engine.fork = lambda one: [one, twin] if one.id == 0 else [one]
    engine.sample = lambda one, logits: (
        seen.append(("sample", one.id, one.choice)) or len(seen)
    )
    requests = [a_request(n, 6, [n], 2) for n in range(3)]
    plan = parts.Plan(list(zip(requests, (4, 3, 4), strict=True)))
    logits = [torch.zeros(97), None, torch.zeros(97)]
    got = engine.postprocess(plan, logits)
    call = "postprocess of requests 0 (4 tokens, forks in two), 1 (3 tokens), 2 (4)"
    computed = [request.computed for request in requests]
    assert computed == [6, 5, 6], f"{call}: computed is {computed}, not [6, 5, 6]"
    samples = [entry[1:] for entry in seen if entry[0] == "sample"]
    assert samples == [(0, 0), (0, 1), (2, 0)], (
        f"{call}: sampled for (request, choice) {samples}, and should for "
        "[(0, 0), (0, 1), (2, 0)]: once for each that fork returns, and not where the "
        "logits are None"
    )
    registered = [entry[1:] for entry in seen if entry[0] == "register"]
    assert sorted(registered) == [(0, 6), (1, 5), (2, 6)], (
        f"{call}: registered (request, computed) {registered}: each once, and after "
        "its tokens were counted"
    )
    for number in (0, 2):
        first = seen.index(("sample", number, 0))
        assert ("register", number, 6) in seen[:first], (
            f"{call}: request {number} was sampled before it was registered; if that "
            "ends it, its blocks are gone"
        )
    places = [n + 1 for n, entry in enumerate(seen) if entry[0] == "sample"]
    expect.value(got, places, f"{call}: the result, what sample returned each time,")


def test_blocks_are_known_after_they_are_written(Engine):
    engine = engine_of(Engine)
    engine.add(list(range(5, 25)), parts.Sampling(1))
    for step, wanted in ((1, 3), (2, 5)):  # the budget is 12 tokens, a block 4
        engine.step()
        known = len(engine.prefix_cache.blocks)
        assert known == wanted, (
            f"a prompt of 20, read in steps of 12: after step {step} the prefix cache "
            f"should know {wanted} blocks, not {known}"
        )


def test_this_engine_serves_all(Engine):
    serve_traffic("your Engine", engine_of(Engine))


def test_greedy_and_alone_it_is_generate(Engine):
    model = random_llama(eos_token_id=None)
    prompt = list(range(5, 19))
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    options = {"do_sample": False, "sequence_bias": {(2,): -100.0}}
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=9, **options)
    engine = engine_of(Engine)
    engine.add(prompt, parts.Sampling(9, temperature=0, logit_bias={2: -100.0}))
    got = []
    for _ in range(30):
        got += [output.token for output in engine.step()]
    expect.value(got, wanted[0, 14:].tolist(), "your Engine, one greedy request")


# --- broken ---------------------------------------------------------------------------


def busy(kind=parts.Engine, steps=3):
    """An engine in the middle of its work: some run, some wait, some end."""
    engine = planted.make(kind, random_llama(), toy_tokenizer())
    for prompt, sampling in planted.traffic():
        engine.add(prompt, sampling)
    for _ in range(steps):
        engine.step()
    return engine


def sentences(got, call):
    expect.returned(got, list, call)
    for one in got:
        expect.returned(one, str, f"{call}: an element")
    return got


def test_an_engine_in_order_is_not_accused(broken):
    fresh = planted.make(parts.Engine, random_llama(), toy_tokenizer())
    got = sentences(broken(fresh), "broken of a new engine")
    assert not got, f"broken of a new engine: {got[0]}"
    engine = busy(steps=0)
    for step in range(70):
        engine.step()
        call = f"broken of an engine in order, after step {step}"
        got = sentences(broken(engine), call)
        assert not got, f"{call}: {got[0]}"
    assert engine.idle, "after 70 steps the engine of this check is still at work"


def numbers_in(sentence):
    return [int(number) for number in re.findall(r"\d+", sentence)]


def accused(broken, engine, number, call):
    """There is one sentence, and the number is in it."""
    before = state_of(engine)
    got = sentences(broken(engine), call)
    assert state_of(engine) == before, f"{call}: broken changed the engine"
    assert got, f"{call}: nothing was found"
    assert len(got) == 1, f"{call}: one thing is wrong, and the sentences are {got}"
    assert number in numbers_in(got[0]), f"{call}: there is no {number} in {got[0]!r}"


def state_of(engine):
    """All that `broken` reads."""
    blocks, scheduler = engine.allocator, engine.scheduler
    count = [blocks.references(n) for n in range(blocks.number)]
    requests = [
        [(one.id, one.choice, one.computed, list(one.ids), list(one.blocks))]
        for one in (*scheduler.running, *scheduler.waiting)
    ]
    known = list(engine.prefix_cache.blocks)
    return count, blocks.free, known, requests, len(scheduler.running)


def test_a_reference_too_many_or_too_few_is_found(broken):
    for how in ("share", "give_back"):
        engine = busy()
        block = engine.scheduler.running[0].blocks[0]
        getattr(engine.allocator, how)(block)
        more = {"share": "one reference too many", "give_back": "one too few"}[how]
        accused(broken, engine, block, f"broken, where block {block} has {more}")


def test_a_block_that_nobody_holds_is_found(broken):
    for which in (-1, 0):
        engine = planted.make(parts.Engine, random_llama(), toy_tokenizer())
        taken = [engine.allocator.take() for _ in range(12)]
        block = sorted(taken)[which]
        for other in taken:
            if other != block:
                engine.allocator.give_back(other)
        call = f"broken, where block {block} of 12 has a reference and no holder"
        accused(broken, engine, block, call)


def test_what_only_the_prefix_cache_holds_is_in_order(broken):
    engine = planted.make(parts.Engine, random_llama(), toy_tokenizer())
    engine.add(list(range(5, 25)), parts.Sampling(1))
    while not engine.idle:
        engine.step()
    got = sentences(broken(engine), "broken of an idle engine with cached blocks")
    assert not got, f"broken, where only the prefix cache holds blocks: {got[0]}"
    (block, *_) = engine.prefix_cache.blocks
    engine.allocator.give_back(block)
    call = f"broken, where the cached block {block} is counted as free"
    accused(broken, engine, block, call)


def test_a_request_with_nothing_left_is_found(broken):
    for more, told in ((0, "all is computed"), (1, "more than all is computed")):
        engine = busy()
        request = engine.scheduler.running[0]
        room = 4 * len(request.blocks)  # what is computed has a place
        del request.ids[room - 1 :]
        request.computed = len(request.ids) + more
        call = f"broken, where request {request.id} runs and {told}"
        accused(broken, engine, request.id, call)


def test_a_request_that_waits_with_blocks_is_found(broken):
    """It is no holder of them: who runs is, and the prefix cache."""
    engine = busy()
    request = engine.scheduler.waiting[-1]
    block = engine.allocator.take()
    request.blocks = [block]
    call = f"broken, where request {request.id} waits and holds block {block}, counted"
    before = state_of(engine)
    got = sentences(broken(engine), call)
    assert state_of(engine) == before, f"{call}: broken changed the engine"
    found = [numbers_in(one) for one in got]
    assert any(request.id in one for one in found), f"{call}: the sentences are {got}"
    named = len(got) > 1 and any(block in one for one in found)
    assert named, (
        f"{call}: block {block} has a reference, and is in no table of a request that "
        f"runs; the sentences are {got}"
    )


def test_each_that_does_not_hold_is_named(broken):
    engine = busy()
    request, wrong = engine.scheduler.waiting[-1], engine.scheduler.running[0].blocks
    for block in wrong[:2]:
        engine.allocator.share(block)
    request.blocks = [wrong[0]]
    call = (
        f"broken, where blocks {wrong[0]} and {wrong[1]} have one reference too many, "
        f"and request {request.id} waits with a block"
    )
    found = [numbers_in(one) for one in sentences(broken(engine), call)]
    for number in (*wrong[:2], request.id):
        assert any(number in one for one in found), f"{call}: {number} is not named"
    assert len(found) > 2, f"{call}: there are {len(found)} sentences"


def test_each_entry_of_the_prefix_cache_is_a_holder(broken):
    engine = planted.make(parts.Engine, random_llama(), toy_tokenizer())
    block = engine.allocator.take()
    for tokens in ((5, 6, 7, 8), (9, 10, 11, 12)):
        engine.prefix_cache.register(None, tokens, block)
    engine.allocator.give_back(block)
    got = sentences(broken(engine), "broken, where two entries name one block")
    assert not got, f"broken, where two entries name block {block}: {got[0]}"


def test_the_engine_is_left_as_it_is(broken):
    engine = busy()
    before = state_of(engine)
    broken(engine)
    assert state_of(engine) == before, "broken changed the engine that it was given"


# --- changed_by_company ---------------------------------------------------------------


class Fake:
    """An engine that answers as it is told: `tell(company, prompt, seed)` gives the
    tokens of an answer; company is whether there are other requests. In company it
    crashes at the step `crash`."""

    def __init__(self, tell, crash=None, endless=False, start=0):
        self.tell, self.crash, self.endless = tell, crash, endless
        self.asked, self.done, self.steps, self.start = [], 0, 0, start

    def add(self, prompt, sampling):
        self.asked.append((prompt, sampling))
        return self.start - len(self.asked)  # an id says nothing of the order

    def answers(self):
        """(request id, choice, tokens) of each, the last first."""
        found = []
        for n, (prompt, sampling) in enumerate(self.asked):
            for choice in range(sampling.n):
                seed = 0 if sampling.seed is None else sampling.seed + choice
                company = len(self.asked) > 1 or sampling.n > 1
                tokens = self.tell(company, prompt[0], seed)
                found.append((self.start - n - 1, choice, tokens))
        return found[::-1]

    @property
    def idle(self):
        longest = max(len(tokens) for _, _, tokens in self.answers())
        return self.done >= longest and not self.endless

    def step(self):
        self.steps += 1
        if self.steps == self.crash and len(self.asked) > 1:
            raise RuntimeError("out of memory")
        outputs = [
            parts.Output(number, choice, tokens[self.done], "", [], None)
            for number, choice, tokens in self.answers()
            if self.done < len(tokens)
        ]
        self.done += 1
        return outputs


def three(n=1, seed=0):
    return [([x], parts.Sampling(3, seed=seed, n=n)) for x in (5, 6, 7)]


@pytest.mark.parametrize("changed", [[], [1], [0, 2], [0, 1, 2]])
def test_company_worked_by_hand(changed_by_company, changed):
    def tell(company, prompt, seed):
        return [prompt + 10, 4, 9 if company and prompt - 5 in changed else 7]

    made = []

    def make():
        made.append(Fake(tell, start=100 * len(made)))
        return made[-1]

    who = f"requests {changed} get" if changed else "no request gets"
    call = f"changed_by_company, where {who} another last token"
    got = changed_by_company(make, three())
    expect.value(got, changed, call)
    sizes = sorted(len(engine.asked) for engine in made)
    assert sizes == [1, 1, 1, 3], (
        f"three requests need an engine for all and one for each; yours were given "
        f"{sizes} requests"
    )
    steps = [engine.steps for engine in made]
    assert set(steps) == {3}, (
        f"{call}: each is idle after 3 steps, and yours did {steps}: stop there"
    )


def test_greedy_requests_have_no_seed(changed_by_company):
    def tell(company, prompt, seed):
        return [prompt + 10, 9 if company and prompt == 6 else 7]

    got = changed_by_company(lambda: Fake(tell), three(seed=None))
    call = "changed_by_company of requests without a seed, where request 1 changes"
    expect.value(got, [1], call)


def test_any_of_n_answers_counts_and_the_request_counts_once(changed_by_company):
    for bad in ([], [3], [4], [3, 4]):

        def tell(company, prompt, seed, bad=bad):
            return [4, 7 + seed + 10 * (company and prompt == 6 and seed in bad)]

        asked = three(n=2, seed=3)
        got = changed_by_company(lambda tell=tell: Fake(tell), asked)
        who = f"the answers with the seeds {bad} of request 1 change"
        who = who if bad else "no answer changes"
        call = f"changed_by_company of requests with n=2 and seed=3, where {who}"
        expect.value(got, [1] if bad else [], call)
        wanted = three(n=2, seed=3)
        assert asked == wanted, f"{call}: what was asked is {asked} afterwards"


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        ("another first token", [9, 7, 8]),
        ("another token in the middle", [4, 9, 8]),
        ("the same tokens in another order", [7, 4, 8]),
    ],
)
def test_all_tokens_are_compared_in_their_order(changed_by_company, told, tokens):
    def tell(company, prompt, seed):
        return tokens if company and prompt == 6 else [4, 7, 8]

    got = changed_by_company(lambda: Fake(tell), three())
    expect.value(got, [1], f"changed_by_company, where request 1 gets {told}")


def test_an_answer_is_compared_with_its_own(changed_by_company):
    """The two answers of request 1 change places."""

    def tell(company, prompt, seed):
        return [4, 7 + (1 - seed if company and prompt == 6 else seed)]

    got = changed_by_company(lambda: Fake(tell), three(n=2))
    call = "changed_by_company, where the two answers of request 1 are exchanged"
    expect.value(got, [1], call)


def test_what_is_missing_counts(changed_by_company):
    def tell(company, prompt, seed):
        return [4, 7] if company and prompt == 7 else [4, 7, 9]

    got = changed_by_company(lambda: Fake(tell), three())
    call = "changed_by_company, where request 2 gets two of three tokens in company"
    expect.value(got, [2], call)


def test_a_crash_is_a_change_for_all_that_have_not_ended(changed_by_company):
    def tell(company, prompt, seed):
        return [4] if prompt == 5 else [4, 7, 9]

    got = changed_by_company(lambda: Fake(tell, crash=3), three())
    call = "changed_by_company, where the engine for all crashes at its third step"
    expect.value(got, [1, 2], call, "Request 0 had its only token before.")
    got = changed_by_company(lambda: Fake(tell, crash=1), three())
    call = "changed_by_company, where the engine for all crashes at its first step"
    expect.value(got, [0, 1, 2], call, "No answer came at all.")


def test_an_engine_without_an_end_is_left_alone(changed_by_company):
    made = []

    def make():
        made.append(Fake(lambda company, prompt, seed: [4, 7, 9], endless=True))
        return made[-1]

    for options, limit in (({"steps": 5}, 5), ({}, 500)):
        made.clear()
        got = changed_by_company(make, three(), **options)
        call = f"changed_by_company with steps={limit}, where no engine is ever idle"
        expect.value(got, [], call, "All tokens were the same.")
        steps = [engine.steps for engine in made]
        assert set(steps) == {limit}, f"{call}: the engines did {steps} steps"


def test_a_real_engine_is_right_and_a_bug_is_found(changed_by_company):
    model, tokenizer = random_llama(), toy_tokenizer()
    for kind, wanted in ((parts.Engine, False), (planted.Shared, True)):
        got = changed_by_company(
            lambda kind=kind: planted.make(kind, model, tokenizer), planted.traffic()
        )
        call = f"changed_by_company of the traffic on {kind.__name__}"
        expect.returned(got, list, call)
        assert bool(got) == wanted, f"{call} is {got}"
