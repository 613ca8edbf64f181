"""A Llama decoder as one compiled function.

Every thread runs `step` on its share of the rows and of the heads, and they wait for
each other five times a layer. What is small (norms, SiLU, sums) each of them does for
itself, which costs less than a wait.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from tiny_models.kernels.compiling import OPTIONS, inner, outer, reduction
from tiny_models.kernels.matrices import R, matmul, padded
from tiny_models.kernels.reading import Weights
from tiny_models.kernels.threads import STOPPED, new_barrier, wait
from tiny_models.kernels.vectors import (
    AVAILABLE,
    N,
    add_products,
    load,
    plus,
    store,
    zeros,
)

f4, i4, u4 = np.float32, np.int32, np.uint32


class Parts(NamedTuple):
    """Weights as `step` takes them; cos, sin (positions, head_size // 2)."""

    qkv: tuple
    o: tuple
    gate_up: tuple
    down: tuple
    head: tuple
    embed: np.ndarray
    norm1: np.ndarray
    norm2: np.ndarray
    norm: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    heads: int
    kv_heads: int
    vocab: int
    eps: float


class Cache(NamedTuple):
    """k (layers, slots, kv_heads, positions / N, head_size, N): a vector holds one
    number of the keys at N neighbouring positions. v (layers, slots, kv_heads,
    positions, head_size rounded up to a multiple of N)."""

    k: np.ndarray
    v: np.ndarray


class Shared(NamedTuple):
    """What all threads write: (tokens, rows) float32, rows as the matrices pad them."""

    qkv: np.ndarray
    attended: np.ndarray
    y: np.ndarray
    gate_up: np.ndarray
    logits: np.ndarray
    best: np.ndarray  # (threads, tokens) int64


class Own(NamedTuple):
    """What one thread needs for itself."""

    x: np.ndarray
    h: np.ndarray
    act: np.ndarray
    q: np.ndarray  # (heads / kv_heads, head_size)
    k: np.ndarray  # (1, head_size)
    scores: np.ndarray  # (heads / kv_heads, positions)
    out: np.ndarray  # (heads / kv_heads, head_size rounded up)


# --- the small things -----------------------------------------------------------------


@inner
def exp(x):
    """e to the x. In a loop LLVM does many at once, unlike the C library's."""
    x = min(max(x, f4(-87)), f4(88))
    n = np.floor(x * f4(1.44269504) + f4(0.5))
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)
    y = f4(1.9875691500e-4)
    for c in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        y = y * r + f4(c)
    return (y * r * r + r + f4(1)) * u4((i4(n) + 127) << 23).view(np.float32)


@reduction
def sum_of_squares(x):
    s = f4(0)
    for i in range(x.shape[0]):
        s += x[i] * x[i]
    return s


@reduction
def total(x):
    s = f4(0)
    for i in range(x.shape[0]):
        s += x[i]
    return s


@reduction
def largest(x):
    top = f4(-np.inf)
    for i in range(x.shape[0]):
        top = max(top, x[i])
    return top


@inner
def rms_norm(x, w, eps, out):
    for t in range(x.shape[0]):
        row, o = x[t], out[t]
        s = sum_of_squares(row)
        r = f4(1) / np.sqrt(s / f4(w.shape[0]) + f4(eps))
        for i in range(w.shape[0]):
            o[i] = w[i] * (row[i] * r)


@inner
def swiglu(gate_up, out):
    """out (tokens, inner) = SiLU(gate) * up."""
    size = out.shape[1]
    for t in range(gate_up.shape[0]):
        gate, up, o = gate_up[t, :size], gate_up[t, size : 2 * size], out[t]
        for i in range(size):
            o[i] = gate[i] / (f4(1) + exp(-gate[i])) * up[i]


@inner
def add(x, y):
    for t in range(x.shape[0]):
        a, b = x[t], y[t]
        for i in range(a.shape[0]):
            a[i] += b[i]


@inner
def argmax(x):
    """The first place of the largest number."""
    top = largest(x)
    for i in range(x.shape[0]):
        if x[i] == top:
            return i
    return 0


@inner
def rotate(x, cos, sin, out):
    """The rotary embedding of one head: x and out (head_size,)."""
    half = cos.shape[0]
    a, b, o, p = x[:half], x[half : 2 * half], out[:half], out[half : 2 * half]
    for i in range(half):
        o[i] = a[i] * cos[i] - b[i] * sin[i]
        p[i] = b[i] * cos[i] + a[i] * sin[i]


# --- attention ------------------------------------------------------------------------


@inner
def attend(q, k, v, n, scores, out, like):
    """out (heads, ...) = attention of the queries of one key-value head.

    q (heads, head_size); k (positions / N, head_size, N) and v (positions, ...) of
    which the first n positions count; scores (heads, positions) is overwritten. like: a
    tuple of as many integers as heads, or an empty one for the plain loops.
    """
    _scores(q, k, n, scores, like)
    scale = f4(1) / np.sqrt(f4(q.shape[1]))
    for h in range(q.shape[0]):
        s = scores[h, :n]
        top = largest(s)
        for i in range(n):
            s[i] = exp((s[i] - top) * scale)
        one = f4(1) / total(s)
        for i in range(n):
            s[i] *= one
    _mean(scores, v, n, out, like)


def _scores(q, k, n, scores, like):
    """scores[h, i] = q[h] · key i, for the first n positions."""


def _mean(scores, v, n, out, like):
    """out[h] = the sum over i of scores[h, i] * v[i]."""


@overload(_scores, jit_options=OPTIONS)
def _scores_of(q, k, n, scores, like):
    if like.count == 0:

        def plain(q, k, n, scores, like):
            for h in range(q.shape[0]):
                for i in range(n):
                    s = f4(0)
                    for j in range(q.shape[1]):
                        s += q[h, j] * k[i // N, j, i % N]
                    scores[h, i] = s

        return plain

    def vectors(q, k, n, scores, like):
        size = q.shape[1]
        for block in range((n + N - 1) // N):  # a vector is N positions
            a, b = zeros(like), zeros(like)
            for j in range(0, size, 2):
                at = (block * size + j) * N
                a = add_products(a, load(k, at), q, j)
                b = add_products(b, load(k, at + N), q, j + 1)
            store(scores, block * N, scores.shape[1], plus(a, b))

    return vectors


@overload(_mean, jit_options=OPTIONS)
def _mean_of(scores, v, n, out, like):
    if like.count == 0:

        def plain(scores, v, n, out, like):
            for h in range(out.shape[0]):
                for j in range(out.shape[1]):
                    out[h, j] = f4(0)
                for i in range(n):
                    for j in range(out.shape[1]):
                        out[h, j] += scores[h, i] * v[i, j]

        return plain

    def vectors(scores, v, n, out, like):
        size = v.shape[1]
        for j in range(0, size, N):  # a vector is N numbers of a value
            a, b, c, d = zeros(like), zeros(like), zeros(like), zeros(like)
            for i in range(0, n - 3, 4):
                a = add_products(a, load(v, i * size + j), scores, i)
                b = add_products(b, load(v, (i + 1) * size + j), scores, i + 1)
                c = add_products(c, load(v, (i + 2) * size + j), scores, i + 2)
                d = add_products(d, load(v, (i + 3) * size + j), scores, i + 3)
            for i in range(n - n % 4, n):
                a = add_products(a, load(v, i * size + j), scores, i)
            store(out, j, size, plus(plus(a, b), plus(c, d)))

    return vectors


# --- one call of the model ------------------------------------------------------------


@outer
def step(
    me, threads, w, cache, b, own, barrier, ids, slots, places, first, like, group
):
    """Tokens ids go through the model, token t at places[t] of sequence slots[t].

    The logits of tokens first, first + 1, ... are in b.logits afterwards, and the place
    of the largest in each thread's share of them in b.best. like and group: tuples of
    as many integers as tokens done at once, and as query heads of a key-value head.
    """
    tokens, kv = len(ids), w.kv_heads
    group_size = w.heads // kv
    size = 2 * w.cos.shape[1]
    x, h, act = own.x[:tokens], own.h[:tokens], own.act[:tokens]
    y, qkv, gate_up = b.y[:tokens], b.qkv[:tokens], b.gate_up[:tokens]
    attended = b.attended[:tokens]
    turn = 1
    for t in range(tokens):
        x[t] = w.embed[ids[t]]
    for layer in range(w.norm1.shape[0]):
        # 1. Queries, keys and values
        rms_norm(x, w.norm1[layer], w.eps, h)
        matmul(me, threads, w.qkv, layer, h, like, qkv)
        turn = wait(barrier, turn, threads)
        # 2. Keys and values into the cache. One thread alone writes those of a head
        mine = range(tokens * kv * me // threads, tokens * kv * (me + 1) // threads)
        for i in mine:
            t, g = i // kv, i % kv
            place, slot = places[t], slots[t]
            at = (w.heads + g) * size
            rotate(qkv[t, at : at + size], w.cos[place], w.sin[place], own.k[0])
            k = cache.k[layer, slot, g, place // N]
            for j in range(size):
                k[j, place % N] = own.k[0, j]
            at = (w.heads + kv + g) * size
            cache.v[layer, slot, g, place, :size] = qkv[t, at : at + size]
        if tokens > 1:  # they may look at each other
            turn = wait(barrier, turn, threads)
        # 3. Attention
        for i in mine:
            t, g = i // kv, i % kv
            place, slot = places[t], slots[t]
            for n in range(group_size):
                at = (g * group_size + n) * size
                rotate(qkv[t, at : at + size], w.cos[place], w.sin[place], own.q[n])
            keys, values = cache.k[layer, slot, g], cache.v[layer, slot, g]
            attend(own.q, keys, values, place + 1, own.scores, own.out, group)
            for n in range(group_size):
                at = (g * group_size + n) * size
                attended[t, at : at + size] = own.out[n, :size]
        turn = wait(barrier, turn, threads)
        matmul(me, threads, w.o, layer, attended, like, y)
        turn = wait(barrier, turn, threads)
        add(x, y)
        # 4. The feed-forward network
        rms_norm(x, w.norm2[layer], w.eps, h)
        matmul(me, threads, w.gate_up, layer, h, like, gate_up)
        turn = wait(barrier, turn, threads)
        swiglu(gate_up, act)
        matmul(me, threads, w.down, layer, act, like, y)
        turn = wait(barrier, turn, threads)
        add(x, y)
    # 5. Logits, of the tokens that are asked for
    if first < tokens:
        rms_norm(x[first:], w.norm, w.eps, h)
        logits = b.logits[: tokens - first]
        matmul(me, threads, w.head, 0, h[: tokens - first], like, logits)
        tiles = logits.shape[1] // R
        begin = tiles * me // threads * R
        end = min(tiles * (me + 1) // threads * R, w.vocab)
        for t in range(tokens - first):
            b.best[me, t] = begin
            if begin < end:
                b.best[me, t] += argmax(logits[t, begin:end])


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
        self._cache = Cache(
            room(s.layers, slots, s.kv_heads, blocks, s.head_size, N),
            room(s.layers, slots, s.kv_heads, positions, wide),
        )
        n, group = tokens + 8, s.heads // s.kv_heads
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
        with _announced(what):
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


_compiled = set()


class _announced:
    """Says that kernels are being compiled, where a first call takes over a second."""

    def __init__(self, what):
        self.what, self.timer = what, None

    def __enter__(self):
        if self.what not in _compiled:
            said = f"Compiling the kernels for {self.what} (the first time, seconds)."
            self.timer = threading.Timer(1.0, print, [said])
            self.timer.daemon = True
            self.timer.start()

    def __exit__(self, *_):
        if self.timer is not None:
            self.timer.cancel()
            _compiled.add(self.what)
