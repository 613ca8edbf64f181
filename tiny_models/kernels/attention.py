"""Attention of the query heads that share a key-value head."""

import numpy as np
from numba.extending import overload

from tiny_models.kernels.compiling import OPTIONS, inner
from tiny_models.kernels.layers import exp, largest, total
from tiny_models.kernels.vectors import N, add_products, load, plus, store, zeros

f4 = np.float32


@inner
def attend(q, k, v, g, table, n, scores, out, like):
    """out (heads, ...) = attention of the queries of key-value head g.

    q (heads, head_size); k (blocks, kv_heads, size / N, head_size, N) and v (blocks,
    kv_heads, size, ...), of whose blocks a sequence has those in its table, in order,
    and there the first n positions count; scores (heads, positions) is overwritten.
    like: a tuple of as many integers as heads, or an empty one for the plain loops. A
    size is a multiple of N, or a table is one block.
    """
    _scores(q, k, g, table, n, scores, like)
    scale = f4(1) / np.sqrt(f4(q.shape[1]))
    for h in range(q.shape[0]):
        s = scores[h, :n]
        top = largest(s)
        for i in range(n):
            s[i] = exp((s[i] - top) * scale)
        one = f4(1) / total(s)
        for i in range(n):
            s[i] *= one
    _mean(scores, v, g, table, n, out, like)


def _scores(q, k, g, table, n, scores, like):
    """scores[h, i] = q[h] · key i, for the first n positions."""


def _mean(scores, v, g, table, n, out, like):
    """out[h] = the sum over i of scores[h, i] * v[i]."""


@overload(_scores, jit_options=OPTIONS)
def _scores_of(q, k, g, table, n, scores, like):
    if like.count == 0:

        def plain(q, k, g, table, n, scores, like):
            size = k.shape[2] * N
            for h in range(q.shape[0]):
                for i in range(n):
                    block, at = table[i // size], i % size
                    s = f4(0)
                    for j in range(q.shape[1]):
                        s += q[h, j] * k[block, g, at // N, j, at % N]
                    scores[h, i] = s

        return plain

    def vectors(q, k, g, table, n, scores, like):
        many, size = k.shape[2], q.shape[1]
        for x in range((n + N - 1) // N):  # a vector is N positions
            start = ((table[x // many] * k.shape[1] + g) * many + x % many) * size
            a, b = zeros(like), zeros(like)
            for j in range(0, size, 2):
                at = (start + j) * N
                a = add_products(a, load(k, at), q, j)
                b = add_products(b, load(k, at + N), q, j + 1)
            store(scores, x * N, scores.shape[1], plus(a, b))

    return vectors


@overload(_mean, jit_options=OPTIONS)
def _mean_of(scores, v, g, table, n, out, like):
    if like.count == 0:

        def plain(scores, v, g, table, n, out, like):
            size = v.shape[2]
            for h in range(out.shape[0]):
                for j in range(out.shape[1]):
                    out[h, j] = f4(0)
                for i in range(n):
                    value = v[table[i // size], g, i % size]
                    for j in range(out.shape[1]):
                        out[h, j] += scores[h, i] * value[j]

        return plain

    def vectors(scores, v, g, table, n, out, like):
        size, wide = v.shape[2], v.shape[3]
        for j in range(0, wide, N):  # a vector is N numbers of a value
            a, b, c, d = zeros(like), zeros(like), zeros(like), zeros(like)
            for first in range(0, n, size):
                start = (table[first // size] * v.shape[1] + g) * size - first
                end = min(n, first + size)
                last = end - (end - first) % 4
                for i in range(first, last, 4):
                    at = (start + i) * wide + j
                    a = add_products(a, load(v, at), scores, i)
                    b = add_products(b, load(v, at + wide), scores, i + 1)
                    c = add_products(c, load(v, at + 2 * wide), scores, i + 2)
                    d = add_products(d, load(v, at + 3 * wide), scores, i + 3)
                for i in range(last, end):
                    a = add_products(a, load(v, (start + i) * wide + j), scores, i)
            store(out, j, wide, plus(plus(a, b), plus(c, d)))

    return vectors
