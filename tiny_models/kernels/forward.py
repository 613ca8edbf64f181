"""`Forward`: the compiled step, its threads and the room that it works in."""

import os
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import numpy as np

from tiny_models.kernels.caches import new_blocks
from tiny_models.kernels.compiling import announced
from tiny_models.kernels.matrices import padded
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


class Forward:
    """A Llama's forward pass, over sequences whose keys and values stand in blocks.

    weights: of `read_gguf` or `read_model`. threads: how many work on a call, at most
    as many as there are processors. blocks, size: of the cache; size is a multiple of
    N, or each sequence has one block. positions: tokens of the longest sequence.
    tokens: the most in one call. plain: plain loops instead of vectors, as on
    processors that are too old for these.

    Not for use by two threads at once. What is called is compiled code, and checks
    nothing: the callers do.
    """

    def __init__(self, weights, threads, blocks, size, positions, tokens, plain=False):
        s = weights.shape
        if s.heads % s.kv_heads:
            raise ValueError(f"{s.heads} heads cannot share {s.kv_heads} evenly")
        self.shape, self.threads = s, min(threads, _processors())
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
        self.cache = new_blocks(s, blocks, size)
        # Matrices work on up to 8 tokens at once, and write as many rows.
        n, group = tokens + 8, s.heads // s.kv_heads
        scores, wide = -(-positions // N) * N, self.cache.v.shape[4]

        def room(*shape):
            return np.zeros(shape, f4)

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
                *(room(group, scores), room(group, wide)),
            )
            for _ in range(self.threads)
        ]
        self._group = () if self._plain else (0,) * group
        self._pool, self._process = None, None
        self._wanted = 0

    @property
    def logits(self) -> np.ndarray:
        """The last call's logits, (tokens - first, vocab) float32. The next call
        overwrites them."""
        return self._shared.logits[: self._wanted, : self.shape.vocab]

    @property
    def best(self) -> np.ndarray:
        """The place of the largest of each of these, (tokens - first,) int64."""
        rows, best = np.arange(self._wanted), self._shared.best[:, : self._wanted]
        return best[self._shared.logits[rows, best].argmax(0), rows]

    def __call__(self, ids, slots, places, tables, first: int) -> None:
        """Run tokens, and keep the logits from token `first` on.

        ids, slots, places: (tokens,) int64. Token t stands at places[t] of sequence
        slots[t]; tables (sequences, blocks) int64 names the blocks of each.
        """
        count = len(ids)
        wide = count if count <= 2 else 4 if count <= 4 or N < 16 else 8
        like = () if self._plain else (0,) * wide
        barrier = new_barrier()

        def arguments(i):
            return (
                *(i, self.threads, self._parts, self.cache, self._shared),
                *(self._own[i], barrier, ids, slots, places),
                *(tables, first, like, self._group),
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
        self._wanted = count - first

    def _workers(self) -> ThreadPoolExecutor:
        if self._process != os.getpid():  # a fork has none of our threads
            self._pool = ThreadPoolExecutor(max(1, self.threads - 1))
            self._process = os.getpid()
        return self._pool


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
