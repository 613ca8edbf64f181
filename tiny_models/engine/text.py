"""From an answer's tokens to its text."""

from collections.abc import Iterable

import torch

from tiny_models.detokenizer import Detokenizer
from tiny_models.engine.logprobs import logprob_entry
from tiny_models.engine.sampling import Sampling


class Writer:
    """The text of one answer, from its tokens, and what is said of each.

    Text waits while it may be half a character or the start of a stop string, so
    `write` may return none, and a later call several tokens' worth. A token's logprobs
    come with its first character. EOS has none, nor has a token of which a stop string
    left nothing. Special tokens are not part of the text.
    """

    def __init__(self, tokenizer, eos_ids: set[int], sampling: Sampling):
        self._tokenizer, self._eos_ids, self._sampling = tokenizer, eos_ids, sampling
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(sampling.stop)
        self._tokens = 0
        self._decoded = 0  # characters that the detokenizer has given
        self._released = 0  # characters that the caller has been given
        self._held_logprobs: list[tuple[int, dict]] = []  # (first character, entry)

    def write(
        self, token: int, logits: torch.Tensor
    ) -> tuple[str, list[dict], str | None]:
        """logits: (vocab,) float32, as the model gave them.

        Returns the text that has become certain, its logprobs, and the finish reason:
        "stop" after EOS or a stop string, "length" after max_tokens, else None.
        """
        self._tokens += 1
        ended = token in self._eos_ids
        piece = ""
        if not ended:
            if (top := self._sampling.top_logprobs) is not None:
                entry = logprob_entry(self._tokenizer, logits, token, top)
                self._held_logprobs.append((self._decoded, entry))
            piece = self._detokenizer.push(token)
        finished = ended or self._tokens == self._sampling.max_tokens
        if finished:
            piece += self._detokenizer.flush()
        self._decoded += len(piece)
        text, stopped = self._stops.push(piece)
        if finished and not stopped:
            text += self._stops.flush()
        self._released += len(text)
        reason = "stop" if ended or stopped else "length" if finished else None
        return text, self._release_logprobs(finished and not stopped), reason

    def _release_logprobs(self, everything: bool) -> list[dict]:
        released = [
            (start, entry)
            for start, entry in self._held_logprobs
            if everything or start < self._released
        ]
        del self._held_logprobs[: len(released)]
        return [entry for _, entry in released]


class StopStrings:
    """Cuts a text, given in pieces, before the first stop string to become complete.

    How the text is cut into pieces makes no difference to the result. Nothing is held
    back but what may be the start of a stop string.
    """

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Returns the text that is certain, and whether a stop string was found."""
        text = self._held + piece
        found = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if found:
            _, start = min(found)
            self._held = ""
            return text[:start], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of text that is a start of stop, in characters."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
