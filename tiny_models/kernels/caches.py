"""Keys and values of the tokens so far: as a step by hand takes them, and in blocks."""

from typing import NamedTuple

import numpy as np

from tiny_models.kernels.reading import Shape, Weights
from tiny_models.kernels.vectors import N


class Cache(NamedTuple):
    """The cache of one sequence, for a step by hand. keys, values: (layers, kv_heads,
    positions, head_size) float32; length: (1,) int64, how many positions are taken."""

    keys: np.ndarray
    values: np.ndarray
    length: np.ndarray


def new_cache(weights: Weights, positions: int) -> Cache:
    """An empty cache."""
    s = weights.shape
    room = (s.layers, s.kv_heads, positions, s.head_size)
    zeros = np.zeros(room, np.float32), np.zeros(room, np.float32)
    return Cache(*zeros, np.zeros(1, np.int64))


class Blocks(NamedTuple):
    """Keys and values in blocks of `size` positions, for `step`.

    k (layers, blocks, kv_heads, size / N, head_size, N): a vector holds one number of
    the keys at N neighbouring positions. v (layers, blocks, kv_heads, size, head_size
    rounded up to a multiple of N).
    """

    k: np.ndarray
    v: np.ndarray


def new_blocks(shape: Shape, number: int, size: int) -> Blocks:
    """Empty ones."""
    vectors, wide = -(-size // N), -(-shape.head_size // N) * N
    rows = shape.layers, number, shape.kv_heads
    return Blocks(
        np.zeros((*rows, vectors, shape.head_size, N), np.float32),
        np.zeros((*rows, size, wide), np.float32),
    )
