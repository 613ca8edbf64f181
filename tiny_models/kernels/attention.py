"""Attention of the query heads that share a key-value head."""

import numpy as np
from numba.extending import overload

from tiny_models.kernels.compiling import OPTIONS, inner
from tiny_models.kernels.layers import exp, largest, total
from tiny_models.kernels.vectors import N, add_products, load, plus, store, zeros

f4 = np.float32


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
