"""An engine's arithmetic on the kernels of lesson 14."""

import numpy as np
import torch

from tiny_models.engine.memory import Row
from tiny_models.kernels import Forward, Weights

MULTIPLE = 16  # positions that a vector holds, on every processor


class KernelRunner:
    """A Llama on the kernels of `tiny_models.kernels`; as `memory.TorchRunner`.

    weights: of `kernels.weights_of`. blocks, size: of the cache; size is a multiple of
    16. tokens: the most in all rows of a call. Raises ValueError for another size.

    The logits of a row are the same bits whatever else is in the call, and however its
    tokens were cut into calls.
    """

    device = torch.device("cpu")

    def __init__(self, weights: Weights, blocks: int, size: int, tokens: int):
        if size % MULTIPLE:
            raise ValueError(
                f"on the kernels {MULTIPLE} must divide the size of a block: {size}"
            )
        threads, positions = torch.get_num_threads(), blocks * size
        self._forward = Forward(weights, threads, blocks, size, positions, tokens)
        self._blocks, self._size, self._tokens = blocks, size, tokens

    def run(self, rows: list[Row]) -> list[torch.Tensor | None]:
        """The logits of each row that are wanted, float32: (vocab,) of one token,
        (wanted, vocab) of more, None of none. They are valid until the next call."""
        if not rows:
            return []
        self._check(rows)
        # Those whose logits are wanted stand at the end. The order is of no other
        # importance: a token finds what it may look at by its place.
        tokens = [
            (n >= len(row.ids) - row.wanted, token, i, row.computed + n)
            for i, row in enumerate(rows)
            for n, token in enumerate(row.ids)
        ]
        tokens.sort(key=lambda one: one[0])
        wanted, ids, slots, places = np.array(tokens, np.int64).T.copy()
        tables = np.zeros((len(rows), max(len(row.blocks) for row in rows)), np.int64)
        for i, row in enumerate(rows):
            tables[i, : len(row.blocks)] = row.blocks
        self._forward(ids, slots, places, tables, len(ids) - int(wanted.sum()))
        logits = torch.from_numpy(self._forward.logits)
        parts = logits.split([int(row.wanted) for row in rows])
        return [
            (part[0] if row.wanted == 1 else part) if row.wanted else None
            for row, part in zip(rows, parts, strict=True)
        ]

    def _check(self, rows: list[Row]) -> None:
        """Compiled code would read and write beyond its arrays."""
        if (count := sum(len(row.ids) for row in rows)) > self._tokens:
            raise ValueError(f"a call takes {self._tokens} tokens, not {count}")
        vocab = self._forward.shape.vocab
        for row in rows:
            if not all(0 <= token < vocab for token in row.ids):
                raise ValueError(f"token ids must be from 0 to {vocab - 1}: {row.ids}")
            end = row.computed + len(row.ids)
            if row.computed < 0 or end > len(row.blocks) * self._size:
                raise ValueError(f"{end} tokens do not fit into blocks {row.blocks}")
            if not all(0 <= block < self._blocks for block in row.blocks):
                raise ValueError(f"there are {self._blocks} blocks, not {row.blocks}")

    def copy(self, old: int, new: int) -> None:
        """Block `new` gets what is in block `old`."""
        for kept in self._forward.cache:
            kept[:, new] = kept[:, old]
