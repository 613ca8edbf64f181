"""`Decoder`: what Python calls. It checks what it is given, and decodes greedily."""

import threading

import numpy as np

from tiny_models.kernels.forward import Forward
from tiny_models.kernels.reading import Weights


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
        for name, number in {
            "threads": threads,
            "slots": slots,
            "positions": positions,
            "tokens": tokens,
        }.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        self.slots, self.positions, self.tokens = slots, positions, tokens
        # A sequence is one block, as long as the longest may be.
        self._forward = Forward(
            weights, threads, slots, positions, positions, tokens, plain
        )
        self._tables = np.arange(slots)[:, None]
        self.shape, self.threads = self._forward.shape, self._forward.threads
        self._filled = [0] * slots  # tokens of each sequence that are in the cache
        self._lock = threading.Lock()

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
            self._forward(ids, slots, places, self._tables, first)
            self._filled = filled
            return self._forward.best

    @property
    def logits(self) -> np.ndarray:
        """The last call's logits, (tokens - first, vocab) float32. The next call
        overwrites them."""
        return self._forward.logits

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
