"""A Llama's forward pass as one compiled function, `step`.

Every thread runs it on its share of the rows and of the heads, and they wait for each
other five times a layer. What is small (norms, SiLU, sums) each of them does for
itself, which costs less than a wait.
"""

from typing import NamedTuple

import numpy as np

from tiny_models.kernels.attention import attend
from tiny_models.kernels.compiling import outer
from tiny_models.kernels.layers import add, argmax, rms_norm, rotate, swiglu
from tiny_models.kernels.matrices import R, matmul
from tiny_models.kernels.threads import wait
from tiny_models.kernels.vectors import N


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


@outer
def step(
    me,
    threads,
    w,
    cache,
    b,
    own,
    barrier,
    ids,
    slots,
    places,
    tables,
    first,
    like,
    group,
):
    """Tokens ids go through the model, token t at places[t] of sequence slots[t].

    The keys and values of a sequence are in the blocks tables[slot] of the cache.

    The logits of tokens first, first + 1, ... are in b.logits afterwards, and the place
    of the largest in each thread's share of them in b.best. like and group: tuples of
    as many integers as tokens done at once, and as query heads of a key-value head.
    """
    tokens, kv = len(ids), w.kv_heads
    group_size = w.heads // kv
    size, room = 2 * w.cos.shape[1], cache.v.shape[3]
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
            place = places[t]
            block, here = tables[slots[t], place // room], place % room
            at = (w.heads + g) * size
            rotate(qkv[t, at : at + size], w.cos[place], w.sin[place], own.k[0])
            k = cache.k[layer, block, g, here // N]
            for j in range(size):
                k[j, here % N] = own.k[0, j]
            at = (w.heads + kv + g) * size
            cache.v[layer, block, g, here, :size] = qkv[t, at : at + size]
        if tokens > 1:  # they may look at each other
            turn = wait(barrier, turn, threads)
        # 3. Attention
        for i in mine:
            t, g = i // kv, i % kv
            place, table = places[t], tables[slots[t]]
            for n in range(group_size):
                at = (g * group_size + n) * size
                rotate(qkv[t, at : at + size], w.cos[place], w.sin[place], own.q[n])
            keys, values = cache.k[layer], cache.v[layer]
            attend(own.q, keys, values, g, table, place + 1, own.scores, own.out, group)
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
