# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 17 · Serve it
#
# **After this lesson the client of lesson 01 talks to an engine whose scheduler, memory and
# bookkeeping you wrote, and does not notice.**
#
# You write: `mixed_batch`, `BlockAllocator`, `PrefixCache`, `share_budget`, `Scheduler`,
# `Engine`, `broken` and `changed_by_company`. About 160 minutes. Builds on lessons 01, 05
# and 07; two sections use lessons 12 to 14.

# %% tags=["setup"]
import dataclasses
from collections import Counter
from collections.abc import Callable

import torch

from tiny_models import engine as parts
from tiny_models.engine import Entry, Output, Plan, Request, Sampling
from tiny_models.engine.memory import Row

# %%
import time

import matplotlib.pyplot as plt
from openai import OpenAI

from course import carry, check
from course.kit import figures, planted
from tiny_models import load, random_llama
from tiny_models.grammar import parse, token_bytes
from tiny_models.server import ModelEngine, serve_engine

ask = carry("ask")
model, tokenizer = load()
tiny = random_llama()

# %% [markdown]
# ## 1. A request and its life
#
# A server gets requests whenever clients send them, each with its own options and its own
# length. An *engine* answers them with one model. What it must remember of each is little:
#
# - its `ids`: the prompt, then what has been sampled;
# - `computed`: of how many of them the keys and values are in the cache. `left` is the rest,
#   which has to run before the next token can be sampled. While the prompt is read it is
#   large; then it is 1 at each step;
# - `blocks`: where in the cache they are (section 3);
# - its `Sampling`, a random stream of its own, and the text that may be shown already.
#
# An engine has four names: `add` takes a request in, `cancel` forgets one, `step` runs the
# model once and returns a token for each request whose turn it was, `idle` says that nothing
# is left. This is one that you will write. For now it is the course's:

# %% tags=["nbval-check-output"]
engine = parts.Engine(model, tokenizer, blocks=64)
prompt = tokenizer("The capital of France is").input_ids
engine.add(prompt, Sampling(max_tokens=4, temperature=0))
while not engine.idle:
    print(engine.step())

# %% [markdown]
# A step has three parts: *schedule* (who runs, with how many tokens?), *run* the model, and
# *postprocess* (sample, make text, let those go who have ended).
#
# ## 2. Many requests in one pass
#
# Lesson 07 found that a decode step mostly reads weights. They are read once, for one request
# or for many. **Predict:** how much longer does a step for eight requests take than for one?

# %%
for many in (1, 8):
    engine = parts.Engine(model, tokenizer, blocks=64)
    for _ in range(many):
        engine.add(prompt, Sampling(max_tokens=12, temperature=0))
    engine.step()
    tries = []
    for _ in range(8):
        start = time.perf_counter()
        engine.step()
        tries.append(time.perf_counter() - start)
    step = min(tries)
    print(f"{many} at once: {step:.3f} s a step, {many / step:4.0f} tokens a second")

# %% [markdown]
# Eight take longer than one, but far less than eight times as long.
#
# Lesson 05 put prompts of different lengths into one batch, and all of them started together.
# Here they do not. One request is at its 500th token, another at its third, a third has 20
# tokens of its prompt to run. That is no obstacle: a row has its own positions, and a mask
# says what each new token may look at. Decoding in which requests join and leave the batch at
# any step is called *continuous batching*.

# %% [markdown]
# ### Exercise 17.1 · `mixed_batch`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 12 lines
#
# The tensors of one pass. Of each request you get its new ids, and how many tokens stand
# before them in its cache. New ids stand on the left, padding of 0 on the right. Padding takes
# the position of the row's last token, so that no position is beyond the model's context.
#
# By hand: one row has the new ids 7, 8, 9 and nothing before, another has 5 after two tokens.
#
# | | row 0 | row 1 |
# |---|---|---|
# | ids | 7 8 9 | 5 0 0 |
# | positions | 0 1 2 | 2 2 2 |
# | mask | 100, 110, 111 | 111, 111, 111 |
#
# The mask has a column for each position of the longest row. A token at position p may look
# at the positions 0 to p.
#
# <details><summary>Hint 1</summary>Make the positions first. The mask is a comparison of
# <code>torch.arange(seen)</code> with them.</details>
# <details><summary>Hint 2</summary>A row of a list is padded by
# <code>new + [0] * (width - len(new))</code>.</details>
# <details><summary>Hint 3</summary>The mask has four dimensions, (batch, 1, width, seen):
# compare with <code>positions[:, None, :, None]</code>.</details>


# %% tags=["exercise"]
def mixed_batch(
    rows: list[tuple[list[int], int]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the model is given for requests in different states.

    rows: (new ids, number of tokens before them) of each request.
    Returns ids and positions, (batch, width) int64, and the mask,
    (batch, 1, width, seen) bool, True where a token may look; seen is the number of
    tokens of the longest request, new ones included.
    """
    ### BEGIN SOLUTION
    width = max(len(new) for new, _ in rows)
    seen = max(before + len(new) for new, before in rows)
    ids, positions = [], []
    for new, before in rows:
        padding = width - len(new)
        ids.append(new + [0] * padding)
        last = before + len(new) - 1
        positions.append([*range(before, last + 1), *[last] * padding])
    ids, positions = torch.tensor(ids), torch.tensor(positions)
    mask = torch.arange(seen) <= positions[:, None, :, None]
    return ids, positions, mask
    ### END SOLUTION


# %% tags=["check"]
check(mixed_batch)

# %% [markdown]
# ## 3. Blocks
#
# Each request has a cache that grows. To reserve room for the longest possible answer would
# waste most of the memory; to move caches around as they grow costs time. vLLM's answer
# (PagedAttention, 2023) is that of operating systems: memory is cut into *blocks* of, say, 16
# tokens. A request holds a table of block numbers, in order, and takes one more when the last
# is full.
#
# Two requests may have the same block in their tables, if they begin alike. So a block counts
# who refers to it, and is free when nobody does.

# %% [markdown]
# ### Exercise 17.2 · `BlockAllocator`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 16 lines
#
# Hand out block numbers and count the references to each.
#
# By hand: of two blocks you `take` both. A third `take` raises `OutOfBlocks`. After `share(0)`
# block 0 has two references; the first `give_back(0)` leaves one, the second frees it. Which
# of the free blocks comes next does not matter.
#
# <details><summary>Hint 1</summary>A list of the free numbers and a list of counts are all
# that it needs.</details>
# <details><summary>Hint 2</summary>A block that is given back once too often would be handed
# out twice. So look at the count before you change it, and raise.</details>


# %% tags=["exercise"]
class BlockAllocator:
    """Hands out blocks and counts who refers to each.

    number: of blocks, numbered from 0. size: tokens in each.
    """

    def __init__(self, number: int, size: int):
        self.number, self.size = number, size
        ### BEGIN SOLUTION
        self._free = list(range(number))
        self._references = [0] * number
        ### END SOLUTION

    @property
    def free(self) -> int:
        """How many blocks nobody refers to."""
        ### BEGIN SOLUTION
        return len(self._free)
        ### END SOLUTION

    def references(self, block: int) -> int:
        """How many refer to a block; 0 if it is free."""
        ### BEGIN SOLUTION
        return self._references[block]
        ### END SOLUTION

    def take(self) -> int:
        """A free block, from now on with one reference. Raises parts.OutOfBlocks."""
        ### BEGIN SOLUTION
        if not self._free:
            raise parts.OutOfBlocks("no block is free")
        block = self._free.pop()
        self._references[block] = 1
        return block
        ### END SOLUTION

    def share(self, block: int) -> None:
        """One reference more. Raises ValueError for a block that is free."""
        ### BEGIN SOLUTION
        if not self._references[block]:
            raise ValueError(f"block {block} is free")
        self._references[block] += 1
        ### END SOLUTION

    def give_back(self, block: int) -> None:
        """One reference less; without any it is free. Raises ValueError if it is."""
        ### BEGIN SOLUTION
        if not self._references[block]:
            raise ValueError(f"block {block} is free already")
        self._references[block] -= 1
        if not self._references[block]:
            self._free.append(block)
        ### END SOLUTION

    def needed(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        ### BEGIN SOLUTION
        return -(-tokens // self.size)
        ### END SOLUTION


# %% tags=["check"]
check(BlockAllocator)

# %% [markdown]
# ## 4. Beginnings that are known
#
# Lesson 07 reused a prefix that you named. A server is not told what its clients' prompts
# share: a system message, a document, the chat so far. It finds out. When a block is full, it
# is registered under a *hash* of its tokens and of all that stands before them. The hash of
# what stands before is the hash of the block before, its *parent*: so hashes form a chain, and
# each is computed from `size` tokens only.
#
# Four rules, each of which has been a bug:
#
# 1. The same tokens behind other tokens are another block.
# 2. A hash may be the same by chance, or because somebody wants it to be. Compare tokens and
#    parent before you believe it.
# 3. Never match the whole prompt. Its last token has to run, or there are no logits.
# 4. Register a block after its keys and values are written, not before.

# %% [markdown]
# ### Exercise 17.3 · `PrefixCache`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 24 lines
#
# Find blocks, and make them known. `parts.PrefixCache` has the rest: `self.entries` is a dict
# from key to `Entry(block, tokens, parent, key)`, `self.key(parent, tokens)` is the hash,
# `self.touch(chain)` notes that entries were used just now, `self.forget(entry)` drops one,
# `self.allocator` counts references and knows the `size` of a block.
#
# By hand, with blocks of 2 tokens: after `a = register(None, (1, 2), 0)` and
# `b = register(a, (3, 4), 1)`, `match([1, 2, 3, 4, 9])` is `[a, b]`, `match([1, 2, 3, 4])` is
# `[a]`, and `match([3, 4, 9])` is `[]`. Blocks 0 and 1 have a reference more for each match in
# which they are.
#
# <details><summary>Hint 1</summary>An entry fits if its <code>tokens</code> are equal and its
# <code>parent</code> <b>is</b> the one given, not one that looks like it.</details>
# <details><summary>Hint 2</summary>Of n tokens at most (n - 1) // size whole blocks can be
# matched. Stop at the first that is not known.</details>
# <details><summary>Hint 3</summary>The cache itself refers to each block that it knows:
# <code>share</code> it when you register it.</details>
# <details><summary>Hint 4</summary>Another text with the same key? Forget its entry, so that
# its reference is given back, and take its place.</details>


# %% tags=["exercise"]
class PrefixCache(parts.PrefixCache):
    """Finds blocks whose keys and values are those of a text's beginning."""

    def find(self, parent: Entry | None, tokens: tuple[int, ...]) -> Entry | None:
        """The entry of these tokens behind those of parent; None if there is none."""
        ### BEGIN SOLUTION
        entry = self.entries.get(self.key(parent, tokens))
        if entry is None or entry.tokens != tokens or entry.parent is not parent:
            return None
        return entry
        ### END SOLUTION

    def match(self, ids: list[int]) -> list[Entry]:
        """The longest known beginning, in whole blocks, and never all of ids.

        Adds a reference to each of the blocks, and touches the entries.
        """
        ### BEGIN SOLUTION
        size, found = self.allocator.size, []
        for start in range(0, (len(ids) - 1) // size * size, size):
            parent = found[-1] if found else None
            entry = self.find(parent, tuple(ids[start : start + size]))
            if entry is None:
                break
            self.allocator.share(entry.block)
            found.append(entry)
        self.touch(found)
        return found
        ### END SOLUTION

    def register(
        self, parent: Entry | None, tokens: tuple[int, ...], block: int
    ) -> Entry:
        """Make a full block known, with a reference of the cache's own.

        Returns its entry. Where another block is known for the same text, nothing
        changes, and that one's entry is returned. An entry of another text with the
        same key is forgotten.
        """
        ### BEGIN SOLUTION
        if (same := self.find(parent, tokens)) is not None:
            return same
        entry = Entry(block, tokens, parent, self.key(parent, tokens))
        if entry.key in self.entries:
            self.forget(self.entries[entry.key])
        self.allocator.share(block)
        self.entries[entry.key] = entry
        return entry
        ### END SOLUTION


# %% tags=["check"]
check(PrefixCache)

# %% tags=["nbval-check-output"]
with_cache = type("WithCache", (parts.Engine,), {"PrefixCache": PrefixCache})
engine = with_cache(model, tokenizer, blocks=64)
story = tokenizer("It was a dark and stormy night. " * 6).input_ids
for end in (" Then", " Then", " But"):
    engine.add(story + tokenizer(end).input_ids, Sampling(max_tokens=1, temperature=0))
    ((request, _),) = engine.scheduler.schedule().work
    print(f"{len(request.ids)} tokens, {request.computed} of them known")
    while not engine.idle:
        engine.step()

# %% [markdown]
# The second and the third request run 2 tokens, not 50: three blocks of 16 are known. Other
# than in lesson 07, nobody had to say what they share.
#
# ## 5. A long prompt among short ones
#
# A prompt of 2,000 tokens takes seconds to read. If it is read in one pass, everybody else's
# text stands still for so long. So a step has a *budget* of tokens (Sarathi, 2024). Those
# that decode get one each, at once. What is left goes to prompts, which are read piece by
# piece: *chunked prefill*.
#
# **Predict:** the first prompt has 2,000 tokens left, a second one with 10 comes. The budget
# is 256. If who came first is served first, when does the second get its first token?

# %% [markdown]
# ### Exercise 17.4 · `share_budget`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 6 lines
#
# Divide the budget of a step among prompts. Nobody gets more than is left of the prompt. Who
# needs less than an equal share gets all of it, and the others share the rest equally, up to
# one token. As long as somebody needs tokens, none are lost.
#
# By hand: `share_budget([2000, 10], 256)` is `[246, 10]`: the second prompt is read in one
# step. `share_budget([9, 9], 6)` is `[3, 3]`.
#
# <details><summary>Hint 1</summary>Serve the smallest first: what it does not need is there
# for the others.</details>
# <details><summary>Hint 2</summary>The share of the next one is what is left of the budget,
# divided by the number of those who have none yet, rounded up.</details>


# %% tags=["exercise"]
def share_budget(left: list[int], budget: int) -> list[int]:
    """How many tokens each prompt gets in this step, in the order of `left`.

    left: how many tokens of each prompt are not computed; not changed. budget: 0 or
    more tokens for all together.
    """
    ### BEGIN SOLUTION
    shares = [0] * len(left)
    order = sorted(range(len(left)), key=lambda i: left[i])
    for done, i in enumerate(order):
        shares[i] = min(left[i], -(-budget // (len(left) - done)))
        budget -= shares[i]
    return shares
    ### END SOLUTION


# %% tags=["check"]
check(share_budget)

# %% tags=["nbval-check-output"]
left = [2000, 10, 300, 40]
step = 0
while any(left):
    shares = share_budget(left, 256)
    left = [one - share for one, share in zip(left, shares, strict=True)]
    step += 1
    if step <= 4 or not any(left):
        print(f"step {step}: reads {shares}, leaves {left}")

# %% [markdown]
# The second prompt has its first token in step 1. If who came first were served first, it
# would in step 8: seven steps would go to the first one alone. (Where somebody decodes, the
# course's scheduler gives prompts a quarter of the budget at most, so that a step stays
# short.)
#
# ## 6. When memory runs out
#
# Nobody knows how long an answer will be, so the engine lets in more requests than it could
# hold if all of them grew to their limits. Now and then a request needs a block, and none is
# free. In this order:
#
# 1. Blocks that only the prefix cache refers to are memory kept for luck: `evict` one.
# 2. Else *preempt* a request: it gives back all blocks and waits. Later it is computed again,
#    its own answer so far included, since the next token depends on it. Its ids do not change.
#
# Who? The one that came last, even if that is the one who asks. Then the first always gets
# on, ends, and frees its blocks, so every request ends. If the one who asks were always
# spared, two could stop each other for ever.
#
# And one thing more. With `n=3` the prompt is read once, and three requests go on from it
# with the same blocks in their tables. The last block is not full. Each would write its own
# token to the same place. So before it writes into a block to which others refer, a request
# takes a new one and has the old one copied: *copy on write*.

# %% [markdown]
# ### Exercise 17.5 · `Scheduler`
#
# difficulty ★★★ · importance ★★★ · 30 min · our answer: 22 lines
#
# The two methods in which a request gets a place, or loses its own. `parts.Scheduler` has the
# rest. `parts.Scheduler.schedule??` in a cell shows who calls yours. You need: `self.running` and `self.waiting`,
# lists in the order of arrival; `self.allocator`, `self.prefix_cache` (with `evict()`, False
# if there was nothing to evict); `self.add(request)` puts a request where it belongs in
# `waiting`; `self.give_back(request)` gives its blocks back and sets `computed` to 0;
# `plan.copies`, a list of (from, to); `self.preemptions`, a number.
#
# By hand, with blocks of 4: a request with `computed` 4 and `blocks` [7] needs a second
# block. With `computed` 5 and `blocks` [7, 2] it has a place, if block 2 has one reference.
# If it has two, the request takes a block, say 9: its table is [7, 9], block 2 has lost a
# reference, and `(2, 9)` is in `plan.copies`.
#
# <details><summary>Hint 1</summary>The next token goes into block number
# <code>request.computed // size</code> of the table.</details>
# <details><summary>Hint 2</summary>A loop: has it a block of its own by now? Is one free, or
# can one be evicted? Else preempt <code>self.running[-1]</code>, and look whether that was
# the request itself.</details>
# <details><summary>Hint 3</summary>Look at the references again after each preemption: if the
# other one is gone, the block is the request's own, and nothing has to be
# copied.</details>


# %% tags=["exercise"]
class Scheduler(parts.Scheduler):
    """Requests that wait and requests that run."""

    def reserve(self, request: Request, plan: Plan) -> bool:
        """Make sure of a place for the next token, in a block of the request's own.

        request: runs. False: there was no place, and the request itself was preempted.
        """
        ### BEGIN SOLUTION
        place = request.computed // self.allocator.size
        while True:
            old = request.blocks[place] if place < len(request.blocks) else None
            if old is not None and self.allocator.references(old) == 1:
                return True
            if self.allocator.free or self.prefix_cache.evict():
                break
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
        ### END SOLUTION

    def preempt(self, request: Request) -> None:
        """Stop a request that runs: it gives all blocks back, and waits again.

        Its state becomes parts.State.WAITING, and self.preemptions grows by 1.
        """
        ### BEGIN SOLUTION
        self.running.remove(request)
        self.give_back(request)
        request.state = parts.State.WAITING
        self.add(request)
        self.preemptions += 1
        ### END SOLUTION


# %% tags=["check"]
check(Scheduler)

# %% [markdown]
# ## 7. The step
#
# The parts are there. `step` in `parts.Engine` puts them together: schedule, run the rows,
# postprocess.

# %% [markdown]
# ### Exercise 17.6 · `Engine`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 19 lines
#
# What stands between the plan and the model, and between the model and the outputs.
# `parts.Engine` has, besides `add`, `cancel`, `step` and `idle`: `self.register(request)`,
# which makes full blocks known; `self.fork(request)`, which returns the requests that are to
# take a token from these logits (more than one only after a prompt with n above 1);
# `self.sample(request, logits)`, which returns an `Output`.
#
# By hand: a request has 20 ids, 16 of them computed, and the plan gives it 3. Its row is
# `Row(ids[16:19], 16, blocks, wanted=False)`: after 3 more tokens one is still left, so nobody
# wants the logits. With 4 they are wanted. Afterwards `computed` is 19, or 20 and a token is
# sampled.
#
# <details><summary>Hint 1</summary><code>plan.work</code> is a list of
# <code>(request, tokens)</code>, and <code>logits</code> a list in the same order, with None
# where they were not wanted.</details>
# <details><summary>Hint 2</summary>The order matters: count what is computed, register it,
# then sample, since a sampled token may end the request and give its blocks
# back.</details>


# %% tags=["exercise"]
class Engine(parts.Engine):
    """Answers many requests with one model, a token for each at every step."""

    def rows(self, plan: Plan) -> list[Row]:
        """What the model has to run: a Row for each part of the plan, in order."""
        ### BEGIN SOLUTION
        rows = []
        for request, tokens in plan.work:
            end = request.computed + tokens
            ids = request.ids[request.computed : end]
            wanted = end == len(request.ids)
            rows.append(Row(ids, request.computed, request.blocks, wanted))
        return rows
        ### END SOLUTION

    def postprocess(
        self, plan: Plan, logits: list[torch.Tensor | None]
    ) -> list[Output]:
        """After the rows have run: count, register, sample where there are logits.

        logits: (vocab,) float32 or None, for each row. Returns an Output for each
        token that was sampled.
        """
        ### BEGIN SOLUTION
        outputs = []
        for (request, tokens), last in zip(plan.work, logits, strict=True):
            request.computed += tokens
            self.register(request)
            if last is not None:
                for one in self.fork(request):
                    outputs.append(self.sample(one, last))
        return outputs
        ### END SOLUTION


# %% tags=["check"]
check(Engine)

# %% [markdown]
# The parts are yours now. (The runner makes the tensors of `mixed_batch` itself: for models
# with a sliding window, and so that no row is padded too far.) Eight requests, greedy and sampled, with so few blocks that some
# have to wait and some are preempted, against `generate`, one by one:


# %%
class Mine(Engine):
    BlockAllocator = BlockAllocator
    PrefixCache = PrefixCache
    Scheduler = Scheduler


Scheduler.share_budget = staticmethod(share_budget)

# %% tags=["nbval-check-output"]
mine = Mine(tiny, tokenizer, blocks=12, block_size=4, token_budget=16, max_batch=6)
asked, got = {}, {}
for n in range(8):
    wish = Sampling(12, temperature=n % 2, seed=n, logit_bias={2: -100.0})
    asked[mine.add([5, 6, 7, 8, 9 + n // 2], wish)] = n
while not mine.idle:
    for output in mine.step():
        got.setdefault(output.request_id, []).append(output.token)
right = 0
for request_id, n in asked.items():
    ids = torch.tensor([[5, 6, 7, 8, 9 + n // 2]])
    torch.manual_seed(n)
    options = {"do_sample": True, "top_k": 0} if n % 2 else {"do_sample": False}
    options |= {"sequence_bias": {(2,): -100.0}, "attention_mask": torch.ones_like(ids)}
    theirs = tiny.generate(ids, max_new_tokens=12, **options)[0, 5:].tolist()
    right += theirs == got[request_id]
print(f"{right} of 8 as generate, {mine.scheduler.preemptions} preemptions")

# %% [markdown]
# Whoever else is there, and whatever happens to it, a request gets the tokens that it would
# get alone: with its own seed from its own random stream.
#
# (Up to rounding, as in lesson 07: a pass for many adds in another order than a pass for one.
# In float32 that changes a token about never, in bfloat16 now and then.)

# %% [markdown]
# What does it bring that requests may join the batch at any step? Eight requests with answers of
# different lengths, and room for four at once. *Static* batching lets the next four in when
# the last of the first four has ended.

# %%
lengths = [12, 3, 25, 6, 9, 20, 4, 14]
four = {"blocks": 64, "token_budget": 64, "max_batch": 4}


def timeline(static):
    """The steps at which each of the eight requests got a token."""
    engine, tokens, step = Mine(tiny, tokenizer, **four), {}, 0
    waiting = list(enumerate(lengths))
    while waiting or not engine.idle:
        if engine.idle or not static:
            for n, length in waiting[: 4 if static else None]:
                wish = Sampling(length, seed=n, logit_bias={2: -100.0})
                tokens[engine.add([5 + n, 6, 7], wish)] = []
            waiting = waiting[4:] if static else []
        for output in engine.step():
            tokens[output.request_id].append(step)
        step += 1
    return list(tokens.values())


# %%
fig, axes = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True)
for ax, static in zip(axes, (True, False), strict=True):
    steps = timeline(static)
    for n, at in enumerate(steps):
        ax.barh(n, at[0], color="#DDDDDD", height=0.6)
        ax.barh(n, len(at), left=at[0], color=figures.BLUE, height=0.6)
    name = "static" if static else "continuous"
    first = sum(at[0] for at in steps) / len(steps)
    total = max(at[-1] for at in steps) + 1
    ax.set_title(f"{name}: {total} steps, the first token after {first:.1f} steps")
    ax.set(ylabel="request", yticks=range(8))
    ax.invert_yaxis()
axes[1].set_xlabel("step of the engine (grey: waits, blue: gets a token at each step)")
plt.show()

# %% [markdown]
# Above, requests 4 to 7 wait until request 2, the longest of the first four, has ended. Below,
# a place that is free is taken at the next step.

# %% [markdown]
# ### What lessons 12 and 13 can do, too
#
# Two more options of a request come from earlier lessons. `format` is a regular expression
# that the text must match: a mask before all other filters. `guesses` is the most tokens to
# guess in a step. What a guess needs is a place for its keys and values. It gets one only
# where the request's last block has room, and only from what others left of the budget: no
# guess takes a block, or a turn, from anybody.
#
# Below, three requests share the batch. The first is forced into JSON by a schema, the second
# copies a list, and guesses with your function of lesson 13, the third asks for nothing.

# %%
ngram_draft, schema_to_regex = carry("ngram_draft"), carry("schema_to_regex")
Automaton, constrained_decode = carry("Automaton"), carry("constrained_decode")
pick_greedy = carry("pick_greedy")

# %%
both = Mine(model, tokenizer, blocks=64)
both.draft = lambda ids, most: ngram_draft(ids, 3, most)
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
pattern = schema_to_regex(schema)
weekdays = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. "
wishes = {
    "Where is the Eiffel Tower? As JSON:": {"format": parse(pattern)},
    f"{weekdays * 2}Monday,": {"guesses": 7},
    "The capital of France is": {},
}

# %% tags=["nbval-check-output"]
asked, steps = {}, Counter()
for text, wish in wishes.items():
    request = Sampling(21, temperature=0, **wish)
    asked[both.add(tokenizer(text).input_ids, request)] = text
got = {text: [] for text in wishes}
while not both.idle:
    outputs = both.step()
    for output in outputs:
        got[asked[output.request_id]].append(output.token)
    steps.update({asked[output.request_id] for output in outputs})
for text, ids in got.items():
    print(f"{len(ids)} tokens in {steps[text]} steps: {tokenizer.decode(ids)!r}")

# %% [markdown]
# The second got its tokens in a fraction of as many steps. Are they those that each would get
# alone? The second and the third by `generate`, the first by your loop of lesson 12:

# %% tags=["nbval-check-output"]
eos = tokenizer.eos_token_id
for text, ids in got.items():
    start = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    if "JSON" in text:
        rest = Automaton(pattern), token_bytes(tokenizer), 21, pick_greedy, eos
        longer, _ = constrained_decode(model, start, *rest)
    else:
        options = {"max_new_tokens": 21, "do_sample": False}
        mask = torch.ones_like(start)
        longer = model.generate(start, attention_mask=mask, **options)
    print(longer[0, start.shape[1] :].tolist() == ids)

# %% [markdown]
# ## 8. The bug hunt
#
# `planted.PLANTED` holds twelve engines with one bug each. Seven bugs were in engines that
# people use: the repository and the change that mended them stand in brackets. Five break
# rules that such engines keep. On a good day the text of each is right:

# %% tags=["nbval-check-output"]
for n, told in enumerate(planted.PLANTED):
    print(n, told)

# %% [markdown]
# Nobody finds these by reading outputs. Two kinds of test do: *invariants*, sentences that are
# true between any two steps, and *an oracle*, the same request alone.

# %% [markdown]
# ### Exercise 17.7 · `broken`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 14 lines
#
# Say which invariants an engine does not hold now. At least these:
#
# 1. a block has as many references as there are tables of running requests
#    (`engine.scheduler.running`, `request.blocks`) and entries of the prefix cache
#    (`engine.prefix_cache.blocks`) in which it is;
# 2. a request that runs has something left to compute: `left` is 1 or more;
# 3. a request that waits holds no blocks.
#
# By hand: block 3 is in one table, the prefix cache does not know it, and
# `engine.allocator.references(3)` is 2: one sentence, in which there is a 3. For an engine in
# order the list is empty.
#
# <details><summary>Hint 1</summary>A <code>Counter</code> of all blocks in all tables counts
# the first kind of holders.</details>
# <details><summary>Hint 2</summary>Blocks have the numbers 0 to
# <code>engine.allocator.number - 1</code>. Look at all of them: one that nobody holds may
# have a reference, too.</details>


# %% tags=["exercise"]
def broken(engine: parts.Engine) -> list[str]:
    """The invariants that do not hold, each as a sentence that names the block or the
    request's id. The engine is left as it is."""
    ### BEGIN SOLUTION
    running, waiting = engine.scheduler.running, engine.scheduler.waiting
    holders = Counter(block for request in running for block in request.blocks)
    holders.update(engine.prefix_cache.blocks)
    found = []
    for block in range(engine.allocator.number):
        counted = engine.allocator.references(block)
        if counted != holders[block]:
            held = f"{holders[block]} holders and {counted} references"
            found.append(f"block {block} has {held}")
    for request in running:
        if request.left < 1:
            found.append(f"request {request.id} has nothing left to compute")
    for request in waiting:
        if request.blocks:
            found.append(f"request {request.id} waits with {request.blocks}")
    return found
    ### END SOLUTION


# %% tags=["check"]
check(broken)

# %% [markdown]
# ### Exercise 17.8 · `changed_by_company`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 22 lines
#
# The oracle. Give all requests to one engine, and step until it is idle. Then give each
# answer to a new engine, alone. Which requests got other tokens?
#
# A request with n answers is n requests of one answer each when it is alone: answer i has
# `n=1` and the seed + i. It counts if any of its answers differs.
#
# By hand: of three requests the second got `[4, 9]` in company and `[4, 7]` alone:
# the result is `[1]`.
#
# A broken engine may also crash, or never end. It gets a limit of steps; what has not come
# until then, or until an exception, is missing.
#
# <details><summary>Hint 1</summary>Write a function that takes some requests, makes an
# engine, and returns the tokens of each answer, as a dict with the keys
# <code>(number of the request, choice)</code>.</details>
# <details><summary>Hint 2</summary><code>add</code> returns an id, which is another number
# in another engine: remember which request it belongs to.</details>
# <details><summary>Hint 3</summary><code>dataclasses.replace(sampling, n=1, seed=seed)</code>
# makes the sampling of one answer. A greedy request may have the seed None.</details>


# %% tags=["exercise"]
def changed_by_company(
    make_engine: Callable[[], parts.Engine],
    asked: list[tuple[list[int], Sampling]],
    steps: int = 500,
) -> list[int]:
    """The numbers of the requests, from 0 and in order, whose tokens depend on company.

    make_engine: makes a new engine. asked: (prompt ids, sampling) of each request; a
    sampled one has a seed. steps: after so many an engine is left alone.
    """

    ### BEGIN SOLUTION
    def tokens_of(requests):
        engine, tokens = make_engine(), {}
        try:
            number_of = {engine.add(*one): n for n, one in enumerate(requests)}
            for _ in range(steps):
                if engine.idle:
                    break
                for out in engine.step():
                    answer = number_of[out.request_id], out.choice
                    tokens.setdefault(answer, []).append(out.token)
        except Exception:
            pass  # what is missing will be noticed
        return tokens

    together, changed = tokens_of(asked), []
    for n, (prompt, sampling) in enumerate(asked):
        for choice in range(sampling.n):
            seed = None if sampling.seed is None else sampling.seed + choice
            one = dataclasses.replace(sampling, n=1, seed=seed)
            alone = tokens_of([(prompt, one)]).get((0, 0))
            if together.get((n, choice)) != alone and n not in changed:
                changed.append(n)
    return changed
    ### END SOLUTION


# %% tags=["check"]
check(changed_by_company)

# %% [markdown]
# Both, on all twelve, and on yours. The traffic: prompts that begin alike, one that comes
# again, several answers, too few blocks; for `broken` one client hangs up.


# %%
def first_broken(engine):
    """The first invariant that fails while some requests run and one goes."""
    try:
        for prompt_ids, wish in planted.traffic():
            engine.add(prompt_ids, wish)
        for step in range(100):
            engine.step()
            if step == 0:
                engine.cancel(1)
            if found := broken(engine):
                return found[0]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "-"


# %% tags=["nbval-check-output"]
kinds = {"yours": Mine, **dict(enumerate(planted.PLANTED.values()))}
for name, kind in kinds.items():
    changed = changed_by_company(
        lambda: planted.make(kind, tiny, tokenizer), planted.traffic()
    )
    engine = planted.make(kind, tiny, tokenizer)
    print(f"{name!s:6} changed {changed!s:26} {first_broken(engine)[:50]}")

# %% [markdown]
# Bookkeeping that is wrong shows in the invariants, often long before a text is wrong. Keys
# and values that are wrong show only in the tokens. Bug 10 is seen by the first kind alone: a
# leak changes no text. It only makes the server slower, day by day.
#
# ## 9. Behind the API
#
# The server of lesson 01 knows an engine by four methods. It does not ask who wrote it.

# %%
mine = Mine(model, tokenizer, blocks=128, block_size=16, token_budget=256, max_batch=8)
server = serve_engine(ModelEngine(model, tokenizer, engine=mine))
client = OpenAI(base_url=server.base_url, api_key="unused")
question = [{"role": "user", "content": "What is the capital of France?"}]
print(ask(client, server.model, question, temperature=0, max_tokens=20))

# %% [markdown]
# Eight clients at once, each in a thread, and what the server says of itself while nobody
# asks: `/metrics`, in the format that Prometheus collects.

# %%
from concurrent.futures import ThreadPoolExecutor

import httpx


def one_client(n):
    return ask(client, server.model, question, seed=n, max_tokens=12)


start = time.perf_counter()
with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(one_client, range(8)))
print(
    f"eight answers in {time.perf_counter() - start:.1f} s, the first: {answers[0]!r}"
)
page = httpx.get(server.base_url.removesuffix("/v1") + "/metrics").text
for line in page.splitlines():
    if line.startswith(("generation_tokens_total", "blocks", "requests_total")):
        print(line)

# %%
server.close()

# %% [markdown]
# Who schedules does not care who calculates. With `kernels=True` the rows run on the kernels
# of lesson 14, which read the 4-bit blocks of the course's model, instead of on torch. All that
# you wrote stays as it is. (The first time they are compiled, which takes some seconds.)

# %%
ids_of = {}
llama = model.config.model_type == "llama"  # the kernels know no other
for kernels in (False, True)[: 1 + llama]:
    mine = Mine(model, tokenizer, blocks=64, kernels=kernels)
    for _ in range(8):
        mine.add(prompt, Sampling(max_tokens=12, temperature=0))
    mine.step()
    start = time.perf_counter()
    ids_of[kernels] = [output.token for _ in range(11) for output in mine.step()]
    speed = len(ids_of[kernels]) / (time.perf_counter() - start)
    name = "lesson 14's kernels" if kernels else "torch"
    print(f"{name}: {speed:.0f} tokens a second for eight requests")
if llama:
    print("the same tokens:", ids_of[True] == ids_of[False])

# %% [markdown]
# Two histograms are on the page of `/metrics`, too: *time to first token* and the time from one token to
# the next, *inter-token latency*. The first is what a long prompt of somebody else makes
# worse, if it is read at once; the second what a batch that is too large makes worse.
#
# ## Questions
#
# 1. A request is preempted after 50 of its own tokens. What does it cost, and what softens
#    it?
# 2. Two clients send the same prompt of 100 tokens at the same moment. Is it computed once?
# 3. Why does a token budget below the number of running requests make no sense?
#
# <details><summary>Answers</summary>
#
# 1. Its prompt and its 50 tokens are computed again, in a prefill. Its full blocks were
#    registered: those that have not been evicted meanwhile are found again.
# 2. No. Blocks are registered after they are written, and both are read in the same step.
#    From the next step on a third one would find them. (With `n=2` in one request: once.)
# 3. Each that decodes needs a token of it at every step. Some would stand still.
#
# </details>
#
# ## In the wild
#
# | what | here | vLLM | mini-sglang | `transformers` `generate_batch` |
# |---|---|---|---|---|
# | requests at once | `max_batch` | `max_num_seqs` | – | `max_requests_per_batch` |
# | tokens in a step | `token_budget` | `max_num_batched_tokens` | `--max-prefill-length` | `max_batch_tokens` |
# | memory | `blocks`, `block_size` | `gpu_memory_utilization` | `--page-size` | `num_blocks`, `page_size` |
# | known beginnings | always on | `enable_prefix_caching` | `--cache radix` or `naive` | `allow_block_sharing` |
#
# ## To read
#
# - Kwon et al.: *PagedAttention*, SOSP 2023,
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180). Blocks, copy on write, preemption.
# - Zheng et al.: *SGLang*, 2023, [arXiv:2312.07104](https://arxiv.org/abs/2312.07104). A tree
#   instead of a chain of hashes.
# - Agrawal et al.: *Sarathi-Serve*, 2024,
#   [arXiv:2403.02310](https://arxiv.org/abs/2403.02310). Chunked prefill under a budget.
