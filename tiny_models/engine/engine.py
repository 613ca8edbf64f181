"""The engine: requests in, tokens out, step by step."""

import itertools
from collections.abc import Sequence

import torch

from tiny_models.engine import guessing
from tiny_models.engine.blocks import BlockAllocator, PrefixCache
from tiny_models.engine.guessing import ngram_draft
from tiny_models.engine.memory import Row, TorchRunner, layer_kinds
from tiny_models.engine.request import Output, Request, State
from tiny_models.engine.sampling import Sampler, Sampling, eos_token_ids
from tiny_models.engine.scheduler import Plan, Scheduler
from tiny_models.engine.text import Writer
from tiny_models.grammar.masks import Constraint


class Engine:
    """Answers many requests with one model, a token for each at every step.

    model: a causal language model of `transformers` whose memory is keys and values.
    blocks, block_size: the KV cache. token_budget: tokens in a step; less of them keep
    the steps short while a prompt is read. max_batch: requests that run at once, at
    most token_budget. kernels: whether those of lesson 14 do the arithmetic, instead of
    the model: for Llama models, on a CPU, with a block_size that 16 divides. Of the
    course's own model they read the 4-bit blocks. The first time they are compiled,
    which takes seconds. Raises NotSupported, a ValueError, for a model that they do not
    know.

    The ids of a request do not depend on who else is there, but for the last digits of
    the logits: greedy they are those of `generate`, sampled those of `generate` after
    `torch.manual_seed(seed)`. Not for use by several threads at once.
    """

    # The parts of which it is made. Others with the same methods may take their places.
    BlockAllocator, PrefixCache, Scheduler = BlockAllocator, PrefixCache, Scheduler
    draft = staticmethod(ngram_draft)

    def __init__(
        self,
        model,
        tokenizer,
        *,
        blocks: int,
        block_size: int = 16,
        token_budget: int = 256,
        max_batch: int = 32,
        kernels: bool = False,
    ):
        layer_kinds(model.config)
        self._model, self._tokenizer = model, tokenizer
        self._eos_ids = eos_token_ids(model, tokenizer)
        self.allocator = self.BlockAllocator(blocks, block_size)
        self.prefix_cache = self.PrefixCache(self.allocator)
        self.scheduler = self.Scheduler(
            self.allocator, self.prefix_cache, token_budget, max_batch
        )
        if kernels:
            self._runner = self.compiled(blocks, block_size, token_budget)
        else:
            self._runner = TorchRunner(model, blocks, block_size)
        self._ids = itertools.count()
        # Each request's answers that have not ended. Before its prompt is read there is
        # one of them, whatever n is.
        self._answers: dict[int, list[Request]] = {}

    def compiled(self, blocks: int, size: int, tokens: int):
        """What runs the model on the kernels."""
        # Here, since numba takes a while, and not every machine has it.
        from tiny_models.engine.compiled import KernelRunner
        from tiny_models.kernels import weights_of

        return KernelRunner(weights_of(self._model), blocks, size, tokens)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._answers

    def add(self, prompt_ids: Sequence[int], sampling: Sampling) -> int:
        """Take a request in. Returns its id.

        Raises ValueError for one that could never end: without a prompt or tokens to
        sample, or too long for all blocks together.
        """
        if not len(prompt_ids) or sampling.max_tokens < 1 or sampling.n < 1:
            raise ValueError("a request needs a prompt, max_tokens and n of 1 or more")
        tokens = len(prompt_ids) + sampling.max_tokens - 1  # the last one is not run
        if self.allocator.needed(tokens) > self.allocator.number:
            raise ValueError(
                f"{len(prompt_ids)} tokens and {sampling.max_tokens} more need "
                f"{self.allocator.needed(tokens)} blocks of {self.allocator.size}, "
                f"but there are {self.allocator.number}"
            )
        request_id = next(self._ids)
        request = self._request(request_id, 0, list(prompt_ids), sampling)
        self._answers[request_id] = [request]
        self.scheduler.add(request)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request, wherever it is. One that has ended is no error."""
        for request in self._answers.pop(request_id, ()):
            self.scheduler.remove(request)

    def step(self) -> list[Output]:
        """Run the model once for all whose turn it is. Returns the new tokens."""
        plan = self.scheduler.schedule()
        for old, new in plan.copies:
            self._runner.copy(old, new)
        budget, size = self.scheduler.token_budget, self.allocator.size
        guesses = guessing.guesses(plan, self.draft, budget, size)
        rows = map(guessing.longer, self.rows(plan), guesses)
        logits = self._runner.run(list(rows))
        outputs = self.postprocess(plan, list(map(guessing.first, logits, guesses)))
        for (request, _), some, guess in zip(plan.work, logits, guesses, strict=True):
            outputs += self.follow(request, some, guess)
        return outputs

    def _request(
        self, request_id: int, choice: int, ids: list[int], sampling: Sampling
    ) -> Request:
        constraint = None
        if sampling.format is not None:
            constraint = Constraint(sampling.format, self._tokenizer, self._eos_ids)
        sampler = Sampler(sampling, choice, self._runner.device, constraint)
        writer = Writer(self._tokenizer, self._eos_ids, sampling)
        return Request(request_id, choice, ids, sampling, sampler, writer, len(ids))

    def rows(self, plan: Plan) -> list[Row]:
        """What the model has to run."""
        return [
            Row(
                request.ids[request.computed : request.computed + tokens],
                request.computed,
                request.blocks,
                wanted=tokens == request.left,
            )
            for request, tokens in plan.work
        ]

    def postprocess(
        self, plan: Plan, logits: list[torch.Tensor | None]
    ) -> list[Output]:
        """What has been run is computed. logits: of each row, where wanted."""
        outputs = []
        for (request, tokens), last in zip(plan.work, logits, strict=True):
            request.computed += tokens
            self.register(request)
            if last is None:
                continue  # the prompt is not read to its end
            outputs += [self.sample(one, last) for one in self.fork(request)]
        return outputs

    def register(self, request: Request) -> None:
        """Make the blocks known that have become full, now that they are written."""
        size = self.allocator.size
        for i in range(len(request.chain), request.computed // size):
            parent = request.chain[-1] if request.chain else None
            tokens = tuple(request.ids[i * size : (i + 1) * size])
            entry = self.prefix_cache.register(parent, tokens, request.blocks[i])
            request.chain.append(entry)

    def fork(self, request: Request) -> list[Request]:
        """The answers that take these logits: all n, when the prompt has been read."""
        answers = self._answers[request.id]
        if request.choice or len(request.ids) > request.prompt_tokens:
            return [request]
        for choice in range(1, request.sampling.n):
            ids = list(request.ids)
            answers.append(self._request(request.id, choice, ids, request.sampling))
            self.scheduler.fork(request, answers[-1])
        return [one for one in answers if one.state is State.RUNNING]

    def follow(self, request: Request, logits, guess: list[int]) -> list[Output]:
        """The tokens behind one that was guessed, as far as the guess was right."""
        outputs = []
        for n, token in enumerate(guess, start=1):
            if request.state is not State.RUNNING or request.ids[-1] != token:
                break  # what stands behind it in its block will be overwritten
            request.computed += 1
            self.register(request)
            outputs.append(self.sample(request, logits[n]))
        return outputs

    def sample(self, request: Request, logits: torch.Tensor) -> Output:
        """One token more. logits: (vocab,) float32."""
        new_ids = request.ids[request.prompt_tokens :]
        token = request.sampler.pick(new_ids, logits[None])
        request.ids.append(token)
        text, logprobs, request.finish_reason = request.writer.write(token, logits)
        if request.finish_reason is not None:
            self.scheduler.remove(request)
            self._answers[request.id].remove(request)
            if not self._answers[request.id]:
                del self._answers[request.id]
        return Output(
            request.id, request.choice, token, text, logprobs, request.finish_reason
        )
