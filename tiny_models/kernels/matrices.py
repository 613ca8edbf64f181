"""A matrix times vectors, straight from the blocks of a GGUF file, in float32.

What is read from memory limits the speed, so the weights stay as small as they are in
the file. Only their order differs: R neighbouring rows are a tile, in which the numbers
of one column lie side by side, so that a vector is a column of N rows and no sum runs
across a vector.

    Q4_1   q (layers, tiles, blocks, 16, R) uint8: column j of a block of 32 is in the
           lower four bits of q[..., j, :], column j + 16 in the upper ones;
           d, m (layers, tiles, blocks, R) float16, as uint16; a weight is d * q + m
    Q8_0   q (layers, tiles, blocks, 32, R) int8, d as above; a weight is d * q
    F32    w (layers, tiles, columns, R) float32

d * q + m is rounded once, so a weight is bit for bit that of the float32 model. Each
result is a sum in one fixed order, however many tokens come together and however many
threads share the rows: it does not depend on them, not even in its last bit.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from tiny_models.kernels.compiling import OPTIONS, inner
from tiny_models.kernels.vectors import (
    N,
    add_products,
    fma,
    high,
    load,
    load_bytes,
    load_half,
    load_int8,
    low,
    mul,
    plus,
    prefetch,
    store,
    zeros,
)

R = 2 * N  # rows of a tile


class Q4_1(NamedTuple):
    q: np.ndarray
    d: np.ndarray
    m: np.ndarray


class Q8_0(NamedTuple):
    q: np.ndarray
    d: np.ndarray


class F32(NamedTuple):
    w: np.ndarray


# --- packing --------------------------------------------------------------------------


def pack(rows: np.ndarray, kind: str):
    """A matrix of each layer, as a GGUF file holds it, as Q4_1, Q8_0 or F32.

    rows: (layers, rows, bytes of a row) uint8 for the kinds "Q4_1" and "Q8_0",
    (layers, rows, columns) float32 for "F32". Rows of zeros fill the last tile.
    Raises ValueError for another kind.
    """
    if kind == "F32":
        return F32(_tiles(rows.astype(np.float32, copy=False)))
    if kind == "Q4_1":
        blocks = rows.reshape(*rows.shape[:2], -1, 20)
        d, m = _half(blocks, 0), _half(blocks, 2)
        return Q4_1(_tiles(blocks[..., 4:]), _tiles(d), _tiles(m))
    if kind == "Q8_0":
        blocks = rows.reshape(*rows.shape[:2], -1, 34)
        return Q8_0(_tiles(blocks[..., 2:].view(np.int8)), _tiles(_half(blocks, 0)))
    raise ValueError(f"the kernels know Q4_1, Q8_0 and F32, not {kind}")


def _half(blocks, at):
    """Two bytes of each block as the bits of a float16: (...) uint16."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<u2")[..., 0]


def _tiles(a):
    """(layers, rows, ...) -> (layers, tiles, ..., R)"""
    layers, rows = a.shape[:2]
    missing = -rows % R
    if missing:
        a = np.concatenate([a, np.zeros((layers, missing, *a.shape[2:]), a.dtype)], 1)
    a = a.reshape(layers, -1, R, *a.shape[2:])
    return np.ascontiguousarray(np.moveaxis(a, 2, -1))


def padded(rows: int) -> int:
    """The number of rows with those that fill the last tile."""
    return -(-rows // R) * R


# --- multiplying ----------------------------------------------------------------------


@inner
def matmul(me, threads, w, layer, x, like, out):
    """out = x times the layer's matrix, this thread's share of the rows.

    x (tokens, columns) and out (tokens, padded rows) are float32 and have room for the
    number of tokens rounded up to a multiple of P. like: a tuple of P integers: P
    tokens are done at once. An empty tuple takes the plain loops, one token at a time.
    """
    tiles = out.shape[1] // R
    _share(tiles * me // threads, tiles * (me + 1) // threads, w, layer, x, like, out)


def _share(first, last, w, layer, x, like, out):
    """Tiles first to last - 1 of the product."""


@overload(_share, jit_options=OPTIONS)
def _share_of(first, last, w, layer, x, like, out):
    if like.count == 0:
        return _plain_share

    def share(first, last, w, layer, x, like, out):
        rows, p = out.shape[1], len(like)
        for i in range(first, last):
            for t in range(0, x.shape[0], p):
                a, b = _tile(w, layer, i, x[t:], like)
                store(out, t * rows + i * R, rows, a)
                store(out, t * rows + i * R + N, rows, b)

    return share


def _tile(w, layer, i, x, like):
    """Rows i * R to i * R + R - 1, for P tokens: two tuples of P vectors."""


@overload(_tile, jit_options=OPTIONS)
def _tile_of(w, layer, i, x, like):
    return {"Q4_1": _q4, "Q8_0": _q8, "F32": _f32}[w.instance_class.__name__]


@inner
def _ahead4(w, block):
    """Ask for a block of the next tile: the processor itself looks less far ahead."""
    for line in range(R * 16 // 64):
        prefetch(w.q, block * R * 16 + line * 64)
    prefetch(w.d, block * R)
    prefetch(w.m, block * R)


@inner
def _ahead8(w, block):
    for line in range(R * 32 // 64):
        prefetch(w.q, block * R * 32 + line * 64)
    prefetch(w.d, block * R)


def _q4(w, layer, i, x, like):
    blocks = w.q.shape[2]
    first = (layer * w.q.shape[1] + i) * blocks
    if len(like) >= 4:
        a = _q4_half(w, first, blocks, x, like, 0)
        return a, _q4_half(w, first, blocks, x, like, N)
    # Few tokens: all R rows together, so that there are sums enough that need not wait
    # for each other
    a, b, c, e = zeros(like), zeros(like), zeros(like), zeros(like)
    for block in range(first, first + blocks):
        s, k = block * R, (block - first) * 32
        d0, m0 = load_half(w.d, s), load_half(w.m, s)
        d1, m1 = load_half(w.d, s + N), load_half(w.m, s + N)
        _ahead4(w, block + blocks)
        for j in range(block * 16, block * 16 + 16):
            v, u = load_bytes(w.q, j * R), load_bytes(w.q, j * R + N)
            a = add_products(a, fma(low(v), d0, m0), x, k)
            b = add_products(b, fma(high(v), d0, m0), x, k + 16)
            c = add_products(c, fma(low(u), d1, m1), x, k)
            e = add_products(e, fma(high(u), d1, m1), x, k + 16)
            k += 1
    return plus(a, b), plus(c, e)


@inner
def _q4_half(w, first, blocks, x, like, row):
    a, b = zeros(like), zeros(like)
    for block in range(first, first + blocks):
        k = (block - first) * 32
        d, m = load_half(w.d, block * R + row), load_half(w.m, block * R + row)
        if row == 0:
            _ahead4(w, block + blocks)
        for j in range(block * 16, block * 16 + 16):
            v = load_bytes(w.q, j * R + row)
            a = add_products(a, fma(low(v), d, m), x, k)
            b = add_products(b, fma(high(v), d, m), x, k + 16)
            k += 1
    return plus(a, b)


def _q8(w, layer, i, x, like):
    blocks = w.q.shape[2]
    first = (layer * w.q.shape[1] + i) * blocks
    if len(like) >= 4:
        a = _q8_half(w, first, blocks, x, like, 0)
        return a, _q8_half(w, first, blocks, x, like, N)
    a, b, c, e = zeros(like), zeros(like), zeros(like), zeros(like)
    for block in range(first, first + blocks):
        k = (block - first) * 32
        d0, d1 = load_half(w.d, block * R), load_half(w.d, block * R + N)
        _ahead8(w, block + blocks)
        for j in range(block * 32, block * 32 + 32, 2):
            a = add_products(a, mul(load_int8(w.q, j * R), d0), x, k)
            b = add_products(b, mul(load_int8(w.q, j * R + R), d0), x, k + 1)
            c = add_products(c, mul(load_int8(w.q, j * R + N), d1), x, k)
            e = add_products(e, mul(load_int8(w.q, j * R + R + N), d1), x, k + 1)
            k += 2
    return plus(a, b), plus(c, e)


@inner
def _q8_half(w, first, blocks, x, like, row):
    a, b = zeros(like), zeros(like)
    for block in range(first, first + blocks):
        k = (block - first) * 32
        d = load_half(w.d, block * R + row)
        if row == 0:
            _ahead8(w, block + blocks)
        for j in range(block * 32, block * 32 + 32, 2):
            a = add_products(a, mul(load_int8(w.q, j * R + row), d), x, k)
            b = add_products(b, mul(load_int8(w.q, j * R + R + row), d), x, k + 1)
            k += 2
    return plus(a, b)


def _f32(w, layer, i, x, like):
    columns = w.w.shape[2]
    first = (layer * w.w.shape[1] + i) * columns
    a, b = zeros(like), zeros(like)
    for j in range(first, first + columns):
        prefetch(w.w, (j + 64) * R)
        prefetch(w.w, (j + 64) * R + N)
        a = add_products(a, load(w.w, j * R), x, j - first)
        b = add_products(b, load(w.w, j * R + N), x, j - first)
    return a, b


# --- the same in plain loops ----------------------------------------------------------


@inner
def half(bits):
    """A float16, given as the uint16 with its bits, as float32."""
    size = np.uint32((bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    return -size if bits & 0x8000 else size


def _plain_share(first, last, w, layer, x, like, out):
    for i in range(first, last):
        for t in range(x.shape[0]):
            _plain_tile(w, layer, i, x[t], out[t, i * R : i * R + R])


def _plain_tile(w, layer, i, x, y):
    """y (R,) = rows i * R to i * R + R - 1 times x (columns,)"""


@overload(_plain_tile, jit_options=OPTIONS)
def _plain_tile_of(w, layer, i, x, y):
    kinds = {"Q4_1": _plain_q4, "Q8_0": _plain_q8, "F32": _plain_f32}
    return kinds[w.instance_class.__name__]


# Each block has a sum of its own: a chain of hundreds of additions rounds more.


def _plain_q4(w, layer, i, x, y):
    y[:] = np.float32(0)
    scale, least = np.empty(R, np.float32), np.empty(R, np.float32)
    part = np.empty(R, np.float32)
    for block in range(w.q.shape[2]):
        q, d, m = w.q[layer, i, block], w.d[layer, i, block], w.m[layer, i, block]
        for r in range(R):
            scale[r], least[r], part[r] = half(d[r]), half(m[r]), np.float32(0)
        for j in range(16):
            one, other = x[block * 32 + j], x[block * 32 + j + 16]
            for r in range(R):
                low_bits = np.float32(np.uint8(q[j, r] & 15))
                high_bits = np.float32(np.uint8(q[j, r] >> 4))
                part[r] += (scale[r] * low_bits + least[r]) * one
                part[r] += (scale[r] * high_bits + least[r]) * other
        for r in range(R):
            y[r] += part[r]


def _plain_q8(w, layer, i, x, y):
    y[:] = np.float32(0)
    scale, part = np.empty(R, np.float32), np.empty(R, np.float32)
    for block in range(w.q.shape[2]):
        q, d = w.q[layer, i, block], w.d[layer, i, block]
        for r in range(R):
            scale[r], part[r] = half(d[r]), np.float32(0)
        for j in range(32):
            one = x[block * 32 + j]
            for r in range(R):
                part[r] += scale[r] * np.float32(q[j, r]) * one
        for r in range(R):
            y[r] += part[r]


def _plain_f32(w, layer, i, x, y):
    y[:] = np.float32(0)
    part = np.zeros(R, np.float32)
    columns = w.w.shape[2]
    for j in range(columns):
        column = w.w[layer, i, j]
        for r in range(R):
            part[r] += column[r] * x[j]
        if j % 32 == 31 or j == columns - 1:
            for r in range(R):
                y[r] += part[r]
                part[r] = np.float32(0)
