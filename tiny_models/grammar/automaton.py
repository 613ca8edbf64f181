"""A regex as an automaton: numbered states, and a row of next states for each."""

import numpy as np

from tiny_models.grammar.regex import (
    EMPTY,
    NOTHING,
    Either,
    Empty,
    Many,
    OneOf,
    Regex,
    Then,
    either,
    then,
)

DEAD = -1


def accepts_empty(regex: Regex) -> bool:
    """Whether the regex matches the empty text."""
    if isinstance(regex, Then):
        return accepts_empty(regex.first) and accepts_empty(regex.second)
    if isinstance(regex, Either):
        return any(accepts_empty(option) for option in regex.options)
    return isinstance(regex, (Empty, Many))


def derive(regex: Regex, byte: int) -> Regex:
    """Brzozowski's derivative: what may follow `byte`."""
    if isinstance(regex, OneOf):
        return EMPTY if byte in regex.bytes else NOTHING
    if isinstance(regex, Either):
        return either(*[derive(option, byte) for option in regex.options])
    if isinstance(regex, Many):
        return then(derive(regex.inner, byte), regex)
    if isinstance(regex, Then):
        rest = then(derive(regex.first, byte), regex.second)
        if accepts_empty(regex.first):
            rest = either(rest, derive(regex.second, byte))
        return rest
    return NOTHING


def first_bytes(regex: Regex) -> frozenset[int]:
    """The bytes with which a text of the regex may begin."""
    if isinstance(regex, OneOf):
        return regex.bytes
    if isinstance(regex, Either):
        return frozenset().union(*map(first_bytes, regex.options))
    if isinstance(regex, Many):
        return first_bytes(regex.inner)
    if isinstance(regex, Then):
        first = first_bytes(regex.first)
        if accepts_empty(regex.first):
            first |= first_bytes(regex.second)
        return first
    return frozenset()


class Automaton:
    """States are numbers from 0, the start, upwards; DEAD is none of them."""

    start = 0

    def __init__(self, regex: Regex):
        self._regexes = [regex]
        self._numbers = {regex: 0}
        self._rows: dict[int, np.ndarray] = {}

    def row(self, state: int) -> np.ndarray:
        """The states after each of the 256 bytes: (256,) int32."""
        if state not in self._rows:
            regex = self._regexes[state]
            row = np.full(256, DEAD, dtype=np.int32)
            for byte in first_bytes(regex):
                row[byte] = self._number(derive(regex, byte))
            self._rows[state] = row
        return self._rows[state]

    def read(self, state: int, text: bytes) -> int:
        """The state behind a text."""
        for byte in text:
            if state == DEAD:
                return DEAD
            state = int(self.row(state)[byte])
        return state

    def accepting(self, state: int) -> bool:
        """Whether a text may end in this state."""
        return state != DEAD and accepts_empty(self._regexes[state])

    def _number(self, regex: Regex) -> int:
        if regex == NOTHING:
            return DEAD
        if regex not in self._numbers:
            self._numbers[regex] = len(self._regexes)
            self._regexes.append(regex)
        return self._numbers[regex]
