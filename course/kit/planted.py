"""Engines with a bug. Seven are those of engines that people use, named with the commit
that mended it or the request to; five break a rule that such engines state.

`PLANTED` maps the sentence on a bug to an `Engine` that has it and is right otherwise.
`make(kind)` builds one that is small enough for a bug to show.
"""

import random

from tiny_models import engine as right
from tiny_models.engine.memory import Row


def make(kind, model, tokenizer, **settings):
    """An engine with few blocks, a small budget and room for four."""
    sizes = {"blocks": 12, "block_size": 4, "token_budget": 12, "max_batch": 4}
    return kind(model, tokenizer, **(sizes | settings))


class LateDecode(right.Engine):
    """A decode step stands one place behind its own (nano-vllm, f5b4840)."""

    def __init__(self, model, tokenizer, **settings):
        super().__init__(_LateModel(model), tokenizer, **settings)


class _LateModel:
    """A model that is told wrong positions where each row has one new token."""

    def __init__(self, model):
        self._model = model

    def __call__(self, position_ids, **inputs):
        late = position_ids.shape[1] == 1
        return self._model(position_ids=position_ids + late, **inputs)

    def __getattr__(self, name):
        return getattr(self._model, name)


class Overcounted(right.Engine):
    """Tokens of a known beginning are counted as run, too (nano-vllm, 77dd709)."""

    class Scheduler(right.Scheduler):
        def admit(self):
            before = set(map(id, self.running))
            super().admit()
            self.new = [one for one in self.running if id(one) not in before]

        def schedule(self):
            self.new = []
            plan = super().schedule()
            plan.work = [
                (one, tokens + one.computed * (one in self.new))
                for one, tokens in plan.work
            ]
            return plan


class Unlocked(right.Engine):
    """What is found in the prefix cache is not counted (mini-sglang, 61acfdc)."""

    class PrefixCache(right.PrefixCache):
        def match(self, ids):
            found = super().match(ids)
            for entry in found:
                self.allocator.give_back(entry.block)
            return found


class LastUnlocked(right.Engine):
    """All that is found is counted, but for the last block (mini-sglang, 8827b0f)."""

    class PrefixCache(right.PrefixCache):
        def match(self, ids):
            found = super().match(ids)
            for entry in found[-1:]:
                self.allocator.give_back(entry.block)
            return found


class Aliased(right.Engine):
    """A table is kept without a copy of it (mini-sglang, 94fe255)."""

    class Scheduler(right.Scheduler):
        def fork(self, request, copy):
            super().fork(request, copy)
            if copy.blocks:
                copy.blocks = request.blocks


class Believing(right.Engine):
    """A hash that fits is taken for the text itself."""

    class PrefixCache(right.PrefixCache):
        def __init__(self, allocator):
            super().__init__(allocator, hash=lambda key: len(key[1]))

        def find(self, parent, tokens):
            return self.entries.get(self.key(parent, tokens))


class Early(right.Engine):
    """A block can be found before its keys and values are written."""

    def rows(self, plan):
        for request, _ in plan.work:
            done, request.computed = request.computed, len(request.ids)
            self.register(request)
            request.computed = done
        return super().rows(plan)


class PromptOnly(right.Engine):
    """Whoever was preempted reads its prompt again, but not its own answer (pypto-lib,
    274)."""

    def rows(self, plan):
        rows = super().rows(plan)
        for i, (request, tokens) in enumerate(plan.work):
            if tokens > 1:
                places = range(request.computed, request.computed + tokens)
                own = range(request.prompt_tokens, len(request.ids) - 1)
                ids = [0 if n in own else request.ids[n] for n in places]
                rows[i] = Row(ids, rows[i].computed, rows[i].blocks, rows[i].wanted)
        return rows


class FreedTwice(right.Engine):
    """A request that ends gives back its last block twice (mini-sglang's overlap)."""

    class Scheduler(right.Scheduler):
        def give_back(self, request):
            last = request.blocks[-1:]
            super().give_back(request)
            for block in last:
                if self.allocator.references(block):
                    self.allocator.give_back(block)


class Leaking(right.Engine):
    """Who hangs up while its prompt is read leaves its blocks behind."""

    def cancel(self, request_id):
        for request in self._answers.get(request_id, ()):
            if request.left > 1:
                request.blocks = []
        super().cancel(request_id)


class WholePrompt(right.Engine):
    """A prompt that is known to its end has nothing left to compute, so no logits."""

    class PrefixCache(right.PrefixCache):
        def match(self, ids):
            return super().match([*ids, -1])


class Shared(right.Engine):
    """Of n answers each writes into the block where the prompt ends."""

    class Scheduler(right.Scheduler):
        def reserve(self, request, plan):
            if request.computed // self.allocator.size < len(request.blocks):
                return True
            return super().reserve(request, plan)


PLANTED = {
    " ".join(kind.__doc__.split()): kind
    for kind in (
        LateDecode,
        Overcounted,
        Unlocked,
        LastUnlocked,
        Aliased,
        PromptOnly,
        FreedTwice,
        Believing,
        Early,
        WholePrompt,
        Leaking,
        Shared,
    )
}


def traffic() -> list[tuple[list[int], right.Sampling]]:
    """Requests that an engine of `make` cannot answer all at once: beginnings that are
    alike, one that comes again, several answers, and more tokens than blocks.

    For a model whose token ids go to 96, with EOS 2, which is banned.
    """
    bits = random.Random(7)

    def prompt(length):
        return [bits.randrange(3, 97) for _ in range(length)]

    def sampling(max_tokens, seed, n=1):
        return right.Sampling(max_tokens, seed=seed, n=n, logit_bias={2: -100.0})

    long, start = prompt(20), prompt(9)
    return [
        (prompt(1), sampling(1, 0)),
        (long, sampling(4, 1)),
        (prompt(6), sampling(5, 2, n=2)),
        (long, sampling(4, 3)),
        (start + prompt(2), sampling(16, 4)),
        (start + prompt(3), sampling(16, 5)),
        (start[:8], sampling(18, 6)),
        (start[:8], sampling(18, 7)),
        (long[:12], sampling(16, 8, n=2)),
    ]
