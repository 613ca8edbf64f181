"""Who runs in the next step, and with how many tokens."""

from bisect import insort
from dataclasses import dataclass, field

from tiny_models.engine.blocks import BlockAllocator, PrefixCache
from tiny_models.engine.request import Request, State

# Reading makes the steps of those that decode longer: it gets this part of the budget.
WHILE_OTHERS_DECODE = 4


@dataclass
class Plan:
    """One step: requests, each with the number of its ids to run, and the blocks to
    copy before, (from, to), in this order."""

    work: list[tuple[Request, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


def share_budget(left: list[int], budget: int) -> list[int]:
    """Divide a budget of tokens among prompts of which so many are left.

    Who needs less than an equal share gets all; the others share the rest equally.
    """
    shares = [0] * len(left)
    order = sorted(range(len(left)), key=lambda i: left[i])
    for done, i in enumerate(order):
        shares[i] = min(left[i], -(-budget // (len(order) - done)))
        budget -= shares[i]
    return shares


class Scheduler:
    """Requests that wait and requests that run.

    token_budget: tokens in a step. max_batch: requests that run at once.

    Who came first is served first. Every request that decodes gets its token. Those
    whose prompts are being read share what is left of the budget, or a quarter of it
    where somebody decodes. Where blocks run out, the request that came last gives back
    all of its own, and waits to be computed again. The first is never stopped, so each
    one ends.
    """

    share_budget = staticmethod(share_budget)

    def __init__(
        self,
        allocator: BlockAllocator,
        prefix_cache: PrefixCache,
        token_budget: int,
        max_batch: int,
    ):
        if not 1 <= max_batch <= token_budget:
            raise ValueError(
                f"max_batch must be from 1 to the token_budget {token_budget}, "
                f"got {max_batch}"
            )
        self.allocator, self.prefix_cache = allocator, prefix_cache
        self.token_budget, self.max_batch = token_budget, max_batch
        self.waiting: list[Request] = []  # both by order
        self.running: list[Request] = []
        self.preemptions = 0

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        insort(self.waiting, request, key=lambda r: r.order)

    def fork(self, request: Request, copy: Request) -> None:
        """Let `copy` go on from where `request` is: in the same blocks, if one more may
        run; else it waits."""
        if len(self.running) >= self.max_batch:
            self.add(copy)
            return
        for block in request.blocks:
            self.allocator.share(block)
        copy.blocks, copy.chain = list(request.blocks), list(request.chain)
        copy.computed = request.computed
        self._run(copy)

    def remove(self, request: Request) -> None:
        """A request that has ended, in whatever state it is."""
        if request.state is State.WAITING:
            self.waiting.remove(request)
        elif request.state is State.RUNNING:
            self.running.remove(request)
            self.give_back(request)
        request.state = State.FINISHED

    def schedule(self) -> Plan:
        """The next step. Blocks for it are taken; preempted requests wait again."""
        plan, before = Plan(), self.preemptions
        decoding = [request for request in self.running if request.left == 1]
        for request in decoding:
            if request.state is State.RUNNING and self.reserve(request, plan):
                plan.work.append((request, 1))
        # Whoever was stopped just now would be let in again, for nothing.
        if self.preemptions == before:
            self.admit()
        reading = [request for request in self.running if request not in decoding]
        budget = self.token_budget - len(plan.work)
        if plan.work:
            budget = max(1, min(budget, self.token_budget // WHILE_OTHERS_DECODE))
        shares = self.share_budget([request.left for request in reading], budget)
        plan.work += [pair for pair in zip(reading, shares, strict=True) if pair[1]]
        return plan

    def reserve(self, request: Request, plan: Plan) -> bool:
        """A block of its own for the next token. False: the request was preempted."""
        index = request.computed // self.allocator.size
        while True:
            own = request.blocks[index] if index < len(request.blocks) else None
            if own is not None and self.allocator.references(own) == 1:
                return True
            if self.allocator.free or self.prefix_cache.evict():
                break
            self.preempt(self.running[-1])
            if request.state is not State.RUNNING:
                return False
        block = self.allocator.take()
        if own is None:
            request.blocks.append(block)
        else:  # others have it, too, and would find this request's token in it
            self.allocator.give_back(own)
            request.blocks[index] = block
            plan.copies.append((own, block))
        return True

    def admit(self) -> None:
        """Let in whom there is room for, in order."""
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            chain = self.prefix_cache.match(request.ids)
            needed = self.allocator.needed(len(request.ids)) - len(chain)
            # Each that runs may soon need a block; who takes the last one is stopped.
            room = self.allocator.free + self.prefix_cache.cached - len(self.running)
            if needed > room:
                for entry in chain:
                    self.allocator.give_back(entry.block)
                return
            request.blocks = [entry.block for entry in chain]
            request.chain = chain
            request.computed = len(chain) * self.allocator.size
            for _ in range(needed):
                if not self.allocator.free:
                    self.prefix_cache.evict()
                request.blocks.append(self.allocator.take())
            self.waiting.pop(0)
            self._run(request)

    def _run(self, request: Request) -> None:
        request.state = State.RUNNING
        insort(self.running, request, key=lambda r: r.order)

    def preempt(self, request: Request) -> None:
        """Stop a request. All of its ids will be computed again, its own tokens too."""
        self.running.remove(request)
        self.give_back(request)
        request.state = State.WAITING
        self.add(request)
        self.preemptions += 1

    def give_back(self, request: Request) -> None:
        self.prefix_cache.touch(request.chain)
        for block in request.blocks:
            self.allocator.give_back(block)
        request.blocks, request.chain, request.computed = [], [], 0
