"""Which tokens may come next."""

from functools import lru_cache

import numpy as np
import torch

from tiny_models.grammar.automaton import DEAD, Automaton
from tiny_models.grammar.regex import Regex
from tiny_models.grammar.vocabulary import token_bytes

REMEMBERED = 8  # formats of which the states and masks are kept


class TokenTrie:
    """The vocabulary as a tree of bytes, level by level.

    vocabulary: the bytes of each token; b"" is never allowed.
    """

    def __init__(self, vocabulary: list[bytes]):
        self.vocabulary = vocabulary
        # Of each level: the parents (places in the level above), the bytes, and the
        # tokens that end there with their places.
        self._levels = []
        alive, places = [i for i, t in enumerate(vocabulary) if t], {b"": 0}
        depth = 0
        while alive:
            depth += 1
            starts = sorted({vocabulary[i][:depth] for i in alive})
            parents = [places[start[:-1]] for start in starts]
            places = {start: n for n, start in enumerate(starts)}
            ends = [i for i in alive if len(vocabulary[i]) == depth]
            self._levels.append(
                (
                    np.array(parents),
                    np.array([start[-1] for start in starts]),
                    np.array(ends, dtype=np.int64),
                    np.array([places[vocabulary[i]] for i in ends], dtype=np.int64),
                )
            )
            alive = [i for i in alive if len(vocabulary[i]) > depth]

    def mask(self, automaton: Automaton, state: int) -> torch.Tensor:
        """The tokens that the automaton reads from `state` on: (vocab,) bool."""
        allowed = np.zeros(len(self.vocabulary), dtype=bool)
        states = np.array([state])
        for parents, letters, tokens, ends in self._levels:
            before = states[parents]
            live = np.flatnonzero(before != DEAD)
            if not len(live):
                break
            known, which = np.unique(before[live], return_inverse=True)
            rows = np.stack([automaton.row(int(one)) for one in known])
            states = np.full(len(parents), DEAD, dtype=np.int32)
            states[live] = rows[which, letters[live]]
            allowed[tokens[states[ends] != DEAD]] = True
        return torch.from_numpy(allowed)


@lru_cache(maxsize=2)
def trie_of(tokenizer) -> TokenTrie:
    """The trie of a tokenizer, made once."""
    return TokenTrie(token_bytes(tokenizer))


class Format:
    """A regex for the tokens of one vocabulary, with all masks that were needed."""

    def __init__(self, regex: Regex, trie: TokenTrie):
        self._trie, self._automaton = trie, Automaton(regex)
        self._masks: dict[int, torch.Tensor] = {}

    def allowed(self, new_ids: list[int], eos_ids: set[int]) -> torch.Tensor:
        """The tokens that may follow these: (vocab,) bool.

        Raises ValueError where the vocabulary has none for what must follow.
        """
        text = b"".join(self._trie.vocabulary[i] for i in new_ids)
        state = self._automaton.read(self._automaton.start, text)
        if state not in self._masks:
            mask = self._trie.mask(self._automaton, state)
            own = [i for i in eos_ids if i < len(mask)]  # a config may name others
            mask[own] = self._automaton.accepting(state)
            if not mask.any():
                raise ValueError(f"no token may follow {text[-40:]!r}")
            self._masks[state] = mask
        return self._masks[state]


@lru_cache(maxsize=REMEMBERED)
def format_of(regex: Regex, tokenizer) -> Format:
    """The Format of a regex and a tokenizer, which later answers share."""
    return Format(regex, trie_of(tokenizer))


class Constraint:
    """A logits processor: of the new tokens and logits, what the format allows.

    Call with the new token ids (1, new), without EOS, and the logits (1, vocab).
    """

    def __init__(self, regex: Regex, tokenizer, eos_ids: set[int]):
        self._format = format_of(regex, tokenizer)
        self._eos_ids = eos_ids

    def __call__(self, new_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = self._format.allowed(new_ids[0].tolist(), self._eos_ids)
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[0, : len(mask)] = mask.to(scores.device)
        return scores.masked_fill(~allowed, float("-inf"))
