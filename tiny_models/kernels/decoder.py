"""`Decoder`: what Python calls. It checks what it is given, and shares the work out."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import numpy as np

from tiny_models.kernels.caches import new_blocks
from tiny_models.kernels.compiling import announced
from tiny_models.kernels.matrices import padded
from tiny_models.kernels.reading import Weights
from tiny_models.kernels.step import Own, Parts, Shared, step
from tiny_models.kernels.threads import STOPPED, new_barrier
from tiny_models.kernels.vectors import AVAILABLE, N

f4 = np.float32


def _work(barrier, *arguments):
    """`step`; whatever ends it sets the other threads free."""
    try:
        step(*arguments)
    except BaseException:
        barrier[STOPPED] = 1
        raise


class Decoder:
    """A Llama with room for several sequences.

    weights: of `read_gguf` or `read_model`. threads: how many work on a call, at most
    as many as there are processors. slots: sequences at once. positions: tokens of the
    longest. tokens: the most in one call. plain: plain loops instead of vectors, as on
    processors that are too old for these.

    The logits are the same bits for every way of cutting a text into calls, whatever
    else is in the call, and for every number of threads.
    """

    def __init__(
        self,
        weights: Weights,
        threads=2,
        slots=1,
        positions=1024,
        tokens=64,
        plain=False,
    ):
        s = weights.shape
        for name, number in {
            "threads": threads,
            "slots": slots,
            "positions": positions,
            "tokens": tokens,
        }.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if s.heads % s.kv_heads:
            raise ValueError(f"{s.heads} heads cannot share {s.kv_heads} evenly")
        self.shape, self.slots, self.positions = s, slots, positions
        self.threads, self.tokens = min(threads, _processors()), tokens
        self._plain = plain or not AVAILABLE
        angle = np.arange(positions, dtype=f4)[:, None] * weights.frequencies
        self._parts = Parts(
            *weights[1:10],
            np.cos(angle),
            np.sin(angle),
            s.heads,
            s.kv_heads,
            s.vocab,
            s.eps,
        )

        def room(*shape):
            return np.zeros(shape, f4)

        blocks, wide = -(-positions // N), -(-s.head_size // N) * N
        self._cache = new_blocks(s, slots, positions)
        n, group = tokens + 8, s.heads // s.kv_heads
        blocks, wide = self._cache.k.shape[3], self._cache.v.shape[4]
        self._shared = Shared(
            room(n, padded((s.heads + 2 * s.kv_heads) * s.head_size)),
            room(n, s.heads * s.head_size),
            room(n, padded(s.hidden)),
            room(n, padded(2 * s.inner)),
            room(n, padded(s.vocab)),
            np.zeros((self.threads, n), np.int64),
        )
        self._own = [
            Own(
                *(room(n, s.hidden), room(n, s.hidden), room(n, s.inner)),
                *(room(group, s.head_size), room(1, s.head_size)),
                *(room(group, blocks * N), room(group, wide)),
            )
            for _ in range(self.threads)
        ]
        self._group = () if self._plain else (0,) * group
        self._filled = [0] * slots  # tokens of each sequence that are in the cache
        self._lock, self._pool, self._process = threading.Lock(), None, None
        self._asked = 0

    def __call__(self, ids, places, slots=None, first: int = 0) -> np.ndarray:
        """Run tokens through the model; the likeliest token after each from `first` on.

        ids, places, slots: (tokens,) integers. Token t stands at places[t] of sequence
        slots[t] (0 without slots). A place that is taken is written anew, and what
        stood behind it is forgotten: that is how a sequence is rolled back.
        Returns (tokens - first,) int64; `logits` holds the logits of the same tokens.
        Raises ValueError for what does not fit.
        """
        ids, places = np.asarray(ids, np.int64), np.asarray(places, np.int64)
        slots = np.zeros_like(ids) if slots is None else np.asarray(slots, np.int64)
        with self._lock:
            filled = self._checked(ids, places, slots, first)
            self._run(ids, slots, places, first)
            self._filled = filled
            count = self._asked = len(ids) - first
            rows, best = np.arange(count), self._shared.best[:, :count]
            return best[self._shared.logits[rows, best].argmax(0), rows]

    @property
    def logits(self) -> np.ndarray:
        """The last call's logits, (tokens - first, vocab) float32. The next call
        overwrites them."""
        return self._shared.logits[: self._asked, : self.shape.vocab]

    def prefill(self, ids, slot: int = 0, start: int = 0) -> int:
        """Run a prompt (a list of ids) from place `start` on; the likeliest next
        token. Its logits are `logits[-1]`."""
        if not len(ids):
            raise ValueError("a prompt has at least one token")
        for begin in range(0, len(ids), self.tokens):
            part = ids[begin : begin + self.tokens]
            count, last = len(part), begin + self.tokens >= len(ids)
            places = np.arange(start + begin, start + begin + count)
            first = count - 1 if last else count
            best = self(part, places, np.full(count, slot), first)
        return int(best[0])

    def generate(self, ids, max_new_tokens: int, eos_ids=()) -> list[int]:
        """The greedy continuation of a prompt (a list of ids): the new ids, with the
        EOS token if one comes."""
        new = [self.prefill(ids)] if max_new_tokens > 0 else []
        while 0 < len(new) < max_new_tokens and new[-1] not in eos_ids:
            new.append(int(self(new[-1:], [len(ids) + len(new) - 1])[0]))
        return new

    def _checked(self, ids, places, slots, first) -> list[int]:
        """How full each sequence will be. Compiled code checks no bounds: we do."""
        count = len(ids)
        if not (ids.ndim == 1 and ids.shape == places.shape == slots.shape):
            raise ValueError(
                f"ids, places and slots should be (tokens,), not {ids.shape}, "
                f"{places.shape} and {slots.shape}"
            )
        if not 1 <= count <= self.tokens:
            raise ValueError(f"a call takes 1 to {self.tokens} tokens, not {count}")
        if not 0 <= first <= count:
            raise ValueError(f"first must be from 0 to {count}, got {first}")
        if ids.min() < 0 or ids.max() >= self.shape.vocab:
            raise ValueError(f"ids must be from 0 to {self.shape.vocab - 1}")
        filled, seen = list(self._filled), set()
        for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
            if not 0 <= slot < self.slots:
                raise ValueError(f"there are {self.slots} sequences, no slot {slot}")
            if not 0 <= place < self.positions:
                raise ValueError(
                    f"place {place}: a sequence has room for {self.positions} tokens"
                )
            if place > filled[slot] or slot in seen and place != filled[slot]:
                raise ValueError(
                    f"place {place} of sequence {slot} does not follow its "
                    f"{filled[slot]} tokens"
                )
            seen.add(slot)
            filled[slot] = place + 1
        return filled

    def _run(self, ids, slots, places, first):
        count = len(ids)
        wide = count if count <= 2 else 4 if count <= 4 or N < 16 else 8
        like = () if self._plain else (0,) * wide
        barrier = new_barrier()

        def arguments(i):
            return (
                *(i, self.threads, self._parts, self._cache, self._shared),
                *(self._own[i], barrier, ids, slots, places, first, like, self._group),
            )

        others = []
        kind = type(self._parts.qkv).__name__
        what = "plain loops" if self._plain else f"{kind}, {wide} at once"
        with announced(what):
            try:
                for i in range(1, self.threads):
                    work = self._workers().submit(_work, barrier, *arguments(i))
                    others.append(work)
                step(*arguments(0))
                for other in others:
                    other.result()
            except BaseException:
                # An interrupt, or a thread that failed: the rest must not wait for it,
                # and no call may begin while one of them still runs.
                barrier[STOPPED] = 1
                wait_for(others)
                raise

    def _workers(self) -> ThreadPoolExecutor:
        if self._process != os.getpid():  # a fork has none of our threads
            self._pool = ThreadPoolExecutor(max(1, self.threads - 1))
            self._process = os.getpid()
        return self._pool


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
