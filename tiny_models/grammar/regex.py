"""Regular expressions over the bytes of UTF-8, as small trees.

A text is matched as a whole, as with `re.fullmatch`. The six kinds of node are frozen
dataclasses: they can be compared, and be keys of a dict. Build them with `then`,
`either` and `many`, which make one tree of trees that differ only in how a choice is
ordered or nested. Without that a regex would have derivatives without end. Equal trees
that they make are one object, as long as somebody holds it, so that comparing is quick.
"""

from dataclasses import dataclass
from weakref import WeakValueDictionary


class Regex:
    """A set of texts: one of the six kinds below."""

    def __post_init__(self):
        # Once, since a tree may be large and is looked up at each byte.
        object.__setattr__(self, "_hash", hash((type(self), *vars(self).values())))

    def __hash__(self):
        return self._hash


@dataclass(frozen=True)
class Nothing(Regex):
    """No text at all."""

    __hash__ = Regex.__hash__


@dataclass(frozen=True)
class Empty(Regex):
    """The empty text, and no other."""

    __hash__ = Regex.__hash__


@dataclass(frozen=True)
class OneOf(Regex):
    """One byte of a set."""

    bytes: frozenset[int]
    __hash__ = Regex.__hash__


@dataclass(frozen=True)
class Then(Regex):
    """A text of `first`, and behind it one of `second`. `first` is no Then itself."""

    first: Regex
    second: Regex
    __hash__ = Regex.__hash__


@dataclass(frozen=True)
class Either(Regex):
    """A text of any of the options."""

    options: frozenset[Regex]
    __hash__ = Regex.__hash__


@dataclass(frozen=True)
class Many(Regex):
    """Any number of texts of `inner`, one behind the other; also none."""

    inner: Regex
    __hash__ = Regex.__hash__


NOTHING, EMPTY = Nothing(), Empty()
LONGEST = 10_000  # parts of a sequence; more are a mistake, or an attack
_MADE = WeakValueDictionary()


def _one_object(regex: Regex) -> Regex:
    return _MADE.setdefault(regex, regex)


def one_of(allowed) -> Regex:
    """One byte of `allowed`, numbers from 0 to 255."""
    return _one_object(OneOf(frozenset(allowed))) if allowed else NOTHING


def then(*parts: Regex) -> Regex:
    """The parts, one behind the other. Raises ValueError above LONGEST parts."""
    flat = []
    for part in parts:
        while isinstance(part, Then):
            flat.append(part.first)
            part = part.second
        flat.append(part)
    if NOTHING in flat:
        return NOTHING
    if len(flat) > LONGEST:
        raise ValueError(f"a sequence of more than {LONGEST} parts")
    flat = [part for part in flat if part != EMPTY]
    result = flat.pop() if flat else EMPTY
    for part in reversed(flat):
        result = _one_object(Then(part, result))
    return result


def either(*options: Regex) -> Regex:
    """Any of the options; single bytes are joined to one set."""
    flat, single = set(), set()
    for option in options:
        for one in option.options if isinstance(option, Either) else [option]:
            if isinstance(one, OneOf):
                single |= one.bytes
            elif one != NOTHING:
                flat.add(one)
    if single:
        flat.add(one_of(single))
    if len(flat) > 1:
        return _one_object(Either(frozenset(flat)))
    return flat.pop() if flat else NOTHING


def many(inner: Regex) -> Regex:
    """`inner` any number of times, also never."""
    if inner in (NOTHING, EMPTY):
        return EMPTY
    return inner if isinstance(inner, Many) else _one_object(Many(inner))


def repeat(inner: Regex, least: int, most: int | None) -> Regex:
    """`inner` from `least` to `most` times; None is no limit."""
    rest = many(inner) if most is None else EMPTY
    for _ in range((most or least) - least):
        rest = either(EMPTY, then(inner, rest))
    return then(*[inner] * least, rest)


def show(regex: Regex) -> str:
    """A regex in the notation of patterns, for the eye. Nothing is ∅, Empty is ε."""
    if isinstance(regex, Nothing):
        return "∅"
    if isinstance(regex, Empty):
        return "ε"
    if isinstance(regex, OneOf):
        return _show_bytes(sorted(regex.bytes))
    if isinstance(regex, Then):
        parts = (regex.first, regex.second)
        return "".join(_grouped(x, isinstance(x, Either)) for x in parts)
    if isinstance(regex, Either):
        return "|".join(sorted(show(option) for option in regex.options))
    return _grouped(regex.inner, isinstance(regex.inner, (Either, Then))) + "*"


def _grouped(regex, needed) -> str:
    return f"({show(regex)})" if needed else show(regex)


def _show_bytes(numbers) -> str:
    runs = []  # (first, last) of bytes that follow each other
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ""
    for first, last in runs:
        told += _show_byte(first)
        if last > first:
            told += ("-" if last > first + 1 else "") + _show_byte(last)
    return told if len(numbers) == 1 else f"[{told}]"


def _show_byte(number) -> str:
    return chr(number) if 32 <= number < 127 else f"\\x{number:02x}"
