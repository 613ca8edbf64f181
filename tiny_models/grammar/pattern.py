"""From a pattern to a regex.

    literals   . [abc] [a-z] [^abc]   \\d \\w \\s \\D \\W \\S   \\n \\t \\x41 \\u00e9
    ( ) (?: )   |   * + ? {3} {3,} {3,5}

They mean what they mean to `re.fullmatch` with the flag re.ASCII. What stands for a
character matches its bytes in UTF-8. There are no anchors, no lookaround, no
backreferences, no lazy repeats: each is a ValueError.
"""

import re
import string

from tiny_models.grammar.regex import (
    EMPTY,
    NOTHING,
    Regex,
    either,
    many,
    one_of,
    repeat,
    then,
)

LAST = 0x10FFFF
MOST = 1000  # repeats in one pair of braces
# Code points by the length of their UTF-8, without the surrogates, which have none.
SAME_LENGTH = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF))
SAME_LENGTH += ((0x10000, LAST),)
DIGIT = [(48, 57)]
WORD = [*DIGIT, (65, 90), (95, 95), (97, 122)]
SPACE = [(9, 13), (32, 32)]
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
CONTROL = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}
BRACES = re.compile(r"\{(?!\})(\d*)(?:(,)(\d*))?\}", re.ASCII)


def parse(pattern: str) -> Regex:
    """The regex of a pattern. Raises ValueError for what it does not know."""
    reader = _Reader(pattern)
    regex = _choice(reader)
    if reader.rest():
        raise reader.problem("a ) that closes nothing")
    return regex


class _Reader:
    def __init__(self, pattern: str):
        self.pattern, self.place = pattern, 0

    def rest(self) -> str:
        return self.pattern[self.place :]

    def next(self) -> str:
        """The next character; "" at the end."""
        return self.pattern[self.place : self.place + 1]

    def take(self) -> str:
        character = self.next()
        if not character:
            raise self.problem("it ends too early")
        self.place += 1
        return character

    def skip(self, text: str) -> bool:
        """Whether `text` comes next; if so, it is behind us now."""
        found = self.pattern.startswith(text, self.place)
        self.place += len(text) * found
        return found

    def problem(self, what: str) -> ValueError:
        return ValueError(f"pattern {self.pattern!r}, place {self.place}: {what}")


def _choice(reader) -> Regex:
    options = [_sequence(reader)]
    while reader.skip("|"):
        options.append(_sequence(reader))
    return either(*options)


def _sequence(reader) -> Regex:
    parts = []
    while reader.next() not in ("", "|", ")"):
        parts.append(_repeated(reader))
    return then(*parts)


def _repeated(reader) -> Regex:
    one = _one(reader)
    times = _times(reader)
    if times is None:
        return one
    if _times(reader) is not None:
        raise reader.problem("a repeat of a repeat: put the inner one into ( )")
    least, most = times
    if (least, most) == (0, None):
        return many(one)
    if max(least, most or 0) > MOST:
        raise reader.problem(f"more than {MOST} repeats")
    if most is not None and most < least:
        raise reader.problem("more repeats at least than at most")
    return repeat(one, least, most)


def _times(reader) -> tuple[int, int | None] | None:
    """How often, if a repeat comes next."""
    for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
        if reader.skip(sign):
            return times
    braces = BRACES.match(reader.pattern, reader.place)
    if not braces:
        return None  # as for `re`, other braces are characters
    reader.skip(braces[0])
    least = int(braces[1] or 0)
    if not braces[2]:
        return least, least
    return least, int(braces[3]) if braces[3] else None


def _one(reader) -> Regex:
    character = reader.take()
    if character == "(":
        if reader.skip("?") and not reader.skip(":"):
            raise reader.problem("of the groups with ? there is (?: ) alone")
        inner = _choice(reader)
        if not reader.skip(")"):
            raise reader.problem("a ( that is never closed")
        return inner
    if character == ".":
        return _characters(_all_but([(10, 10)]))
    if character == "[":
        return _characters(_class(reader))
    if character == "\\":
        return _characters(_escaped(reader))
    if character in "*+?^$" or BRACES.match(reader.pattern, reader.place - 1):
        raise reader.problem(f"{character!r} needs a \\ here, or is not supported")
    return _literal(reader, character)


def _literal(reader, character) -> Regex:
    try:
        return then(*[one_of({byte}) for byte in character.encode()])
    except UnicodeEncodeError:
        raise reader.problem("half a surrogate pair is no character") from None


def _class(reader) -> list[tuple[int, int]]:
    """What [ ... ] holds, as ranges of code points; the [ is behind us."""
    inverse = reader.skip("^")
    ranges, first = [], True
    while first or reader.next() != "]":
        first = False
        low = _member(reader)
        if reader.rest().startswith("-") and not reader.rest().startswith("-]"):
            reader.take()
            high = _member(reader)
            if len(low + high) != 2 or low[0][0] != low[0][1] or high[0] < low[0]:
                raise reader.problem("not a range of characters")
            low = [(low[0][0], high[0][1])]
        ranges += low
    reader.take()
    return _all_but(ranges) if inverse else ranges


def _member(reader) -> list[tuple[int, int]]:
    character = reader.take()
    return _escaped(reader) if character == "\\" else [(ord(character),) * 2]


def _escaped(reader) -> list[tuple[int, int]]:
    """What stands for \\x, as ranges of code points; the \\ is behind us."""
    character = reader.take()
    if character in CLASSES:
        return CLASSES[character]
    if character.lower() in CLASSES:
        return _all_but(CLASSES[character.lower()])
    if character in CONTROL:
        return [(CONTROL[character],) * 2]
    if character in "xu":
        digits = "".join(reader.take() for _ in range(2 if character == "x" else 4))
        if not set(digits) <= set(string.hexdigits):
            raise reader.problem("not a hexadecimal number")
        return [(int(digits, 16),) * 2]
    if character.isascii() and character.isalnum():
        raise reader.problem(f"\\{character} is not supported")
    return [(ord(character),) * 2]


def _all_but(ranges) -> list[tuple[int, int]]:
    inverse, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            inverse.append((start, low - 1))
        start = max(start, high + 1)
    return [*inverse, (start, LAST)] if start <= LAST else inverse


def _characters(ranges) -> Regex:
    """One character of these code points, as its bytes."""
    found = NOTHING
    for low, high in ranges:
        for shortest, longest in SAME_LENGTH:
            first, last = max(low, shortest), min(high, longest)
            if first <= last:
                found = either(found, _between(chr(first).encode(), chr(last).encode()))
    return found


def _between(first: bytes, last: bytes) -> Regex:
    """The characters from `first` to `last`, of as many bytes. All but the first byte
    run from 0x80 to 0xBF."""
    if not first:
        return EMPTY
    low, high = first[0], last[0]
    if low == high:
        return then(one_of({low}), _between(first[1:], last[1:]))
    lowest, highest = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
    options = []
    if first[1:] != lowest:  # not all that begin with the first byte
        options.append(then(one_of({low}), _between(first[1:], highest)))
        low += 1
    if last[1:] != highest:
        options.append(then(one_of({high}), _between(lowest, last[1:])))
        high -= 1
    middle = range(low, high + 1)
    if middle:
        options.append(then(one_of(middle), _between(lowest, highest)))
    return either(*options)
