"""The course's own engine behind HTTP: one model, one thread, all answers at once."""

import asyncio
import contextlib
import copy
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path

from tiny_models.engine import Engine, Output, Sampling
from tiny_models.engine.metrics import Metrics
from tiny_models.engine.sampling import eos_token_ids
from tiny_models.server.errors import APIError, shutting_down
from tiny_models.server.interface import Step

CONTEXT_IF_UNKNOWN = 2048  # tokens, for a model whose config names no limit
BLOCK = 16  # tokens
# The KV cache holds one answer as long as the model allows, and so much more.
SPARE = 4096  # tokens


class ModelEngine:
    """A model, its tokenizer and the one thread on which they work: an `Engine` of the
    server around one of `tiny_models.engine`.

    engine: one whose steps are used; by default a new one, with the arithmetic of
    lesson 14's kernels if `kernels` says so. Between two steps its thread
    does what was asked of it meanwhile. It takes the next step when one of the answers'
    readers has dealt with the last.
    """

    def __init__(
        self,
        model,
        tokenizer,
        name: str | None = None,
        engine=None,
        kernels: bool = False,
    ):
        self.name = name or model_name(model)
        # A tokenizer that encodes in two threads at once fails ("Already borrowed"), so
        # the owner keeps theirs.
        self._tokenizer = copy.deepcopy(tokenizer)
        # Else it warns of a long prompt, to which the client gets an answer anyway.
        self._tokenizer.model_max_length = sys.maxsize
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        config = model.config.get_text_config()
        self.vocab_size = config.vocab_size
        self._can_end = bool(eos_token_ids(model, self._tokenizer))
        limit = getattr(config, "max_position_embeddings", None)
        self.context = limit or CONTEXT_IF_UNKNOWN
        self._engine = engine or Engine(
            model,
            self._tokenizer,
            blocks=-(-(self.context + SPARE) // BLOCK),
            block_size=BLOCK,
            kernels=kernels,
        )
        self._metrics = Metrics(self._engine)
        self._readers: dict[int, _Reader] = {}  # by the engine's request ids
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopped, self._lock = False, threading.Lock()
        self._thread = threading.Thread(
            target=self._work, name="tiny-models-engine", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._wake()

    def close(self) -> None:
        self.stop()
        self._thread.join()

    async def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            ids = await self._run(self._encode, messages)
        except APIError:
            raise
        except Exception as error:  # a template may raise what it likes
            raise APIError(
                f"The model's chat template refused these messages: {error}",
                param="messages",
            ) from error
        if not ids:
            raise APIError(
                "The model's chat template made an empty prompt of these messages.",
                param="messages",
            )
        return ids

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        # To encode megabytes would hold up the other clients, for nothing.
        if len(text) > self.context * self._longest_token:
            raise APIError(
                f"The model's context holds {self.context} tokens. The messages "
                f"take {len(text)} characters, which no {self.context} tokens can "
                "hold. Shorten the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    async def answer(
        self, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncIterator[Step]:
        if sampling.format is not None and not self._can_end:
            raise APIError(
                "This model has no token that ends a text, so no format can be "
                "promised. Leave 'response_format' out.",
                param="response_format",
                code="unsupported_value",
            )
        reader = _Reader(asyncio.get_running_loop(), self._wake)
        try:
            await self._run(self._add, prompt_ids, sampling, reader)
            unfinished = sampling.n
            while unfinished:
                for step in await reader.next():
                    unfinished -= step.finish_reason is not None
                    yield step
        finally:
            self._jobs.put(lambda: self._forget(reader))

    async def metrics(self) -> str:
        return await self._run(self._metrics.text)

    async def _run(self, function, *args):
        """Call function in the engine's thread, between two steps."""
        done: Future = Future()

        def job():
            if not done.set_running_or_notify_cancel():
                return
            try:
                if self._stopped:
                    raise shutting_down()
                done.set_result(function(*args))
            except BaseException as error:
                done.set_exception(error)

        with self._lock:
            if self._stopped:
                raise shutting_down()
            self._jobs.put(job)
        return await asyncio.wrap_future(done)

    def _wake(self) -> None:
        self._jobs.put(lambda: None)

    # --- in the engine's thread ---

    def _work(self) -> None:
        while not self._stopped:
            try:
                # Without readers that wait there is nothing to do but jobs.
                ready = any(reader.ready for reader in self._readers.values())
                self._jobs.get(block=not ready)()
            except queue.Empty:
                self._step()
        while not self._jobs.empty():
            self._jobs.get()()
        for reader in self._readers.values():
            reader.give(shutting_down())

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:
            for reader in list(self._readers.values()):
                reader.give(error)
                self._forget(reader)
            return
        self._metrics.gave(outputs)
        # Who got nothing is told so, and can look whether its client is still there.
        steps: dict[int, list[Step]] = {request_id: [] for request_id in self._readers}
        for output in outputs:
            steps[output.request_id].append(as_step(output))
        for request_id, some in steps.items():
            self._readers[request_id].give(some or [Step()])

    def _add(
        self, prompt_ids: list[int], sampling: Sampling, reader: "_Reader"
    ) -> None:
        request_id = self._engine.add(prompt_ids, sampling)
        self._readers[request_id] = reader
        self._metrics.asked(request_id, len(prompt_ids))

    def _forget(self, reader: "_Reader") -> None:
        for request_id in [i for i, one in self._readers.items() if one is reader]:
            self._engine.cancel(request_id)
            self._metrics.forgot(request_id)
            del self._readers[request_id]


class _Reader:
    """Where the engine's thread leaves the steps of one request, and the event loop
    takes them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, taken: Callable[[], None]):
        self._loop, self._taken = loop, taken
        self._given: deque[list[Step] | Exception] = deque()
        self._some, self._reading = asyncio.Event(), False

    @property
    def ready(self) -> bool:
        """Whether all that was given has been dealt with."""
        return not self._given

    def give(self, steps: list[Step] | Exception) -> None:
        """In the engine's thread."""
        self._given.append(steps)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its readers
            self._loop.call_soon_threadsafe(self._some.set)

    async def next(self) -> list[Step]:
        """What comes next. To ask for it says that the last has been dealt with."""
        if self._reading:
            self._given.popleft()
            self._taken()
        self._reading = True
        while not self._given:
            self._some.clear()
            if not self._given:  # nor has anything come since
                await self._some.wait()
        if isinstance(self._given[0], Exception):
            raise self._given[0]
        return self._given[0]


def as_step(output: Output) -> Step:
    return Step(output.choice, 1, output.text, output.logprobs, output.finish_reason)


def model_name(model) -> str:
    name = getattr(model.config, "_name_or_path", "") or model.config.model_type
    # Of a folder the last part is enough, and tells clients nothing about the disk.
    return Path(name).resolve().name if os.path.isdir(name) else name
