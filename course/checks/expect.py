"""What the lessons' tests expect, said so that a learner can act on it.

Each helper raises AssertionError with what was given, what came back and what was
expected. None of them computes an expected value.
"""

import contextlib
import re

import torch

from course.kit.words import counted

SHORT = 24  # numbers: what one can compare at a glance
HINT = "_course_hint"  # what a check adds to an error of the learner's code


def show(value, limit: int = 12, digits: int = 6) -> str:
    """A value as a learner would write it: [1, 3, -inf], tensors as nested lists."""
    if isinstance(value, torch.Tensor):
        if value.dim() > 1 and value.numel() > SHORT:
            return f"a tensor of shape {tuple(value.shape)}"
        return show(value.tolist(), limit, digits)
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, (list, tuple)):
        inner = limit if len(value) < 6 else limit // 2
        items = [show(v, inner, digits) for v in value[:limit]]
        items += ["..."] if len(value) > limit else []
        text = ", ".join(items)
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    try:
        text = repr(value)
    except Exception as error:
        text = f"(cannot be shown: its repr raises {type(error).__name__})"
    text = re.sub(r" at 0x[0-9a-fA-F]+>", ">", text)  # an address tells nobody anything
    return text if len(text) < 300 else text[:300] + " ..."


def returned(value, kind, call: str):
    """`value`, if it is of type `kind`."""
    if value is None:
        raise AssertionError(f"{call} returned None. Is a `return` missing?")
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds)
        shown = show(value)
        brief = len(shown) < 80 and not shown.startswith(("<", "a tensor"))
        raise AssertionError(
            f"{call} should return {_a(wanted)}, not {_a(type(value).__name__)}"
            + (f": {shown}" if brief else "")
        )
    return value


def tensor(value, shape, call: str, dtype=None):
    """`value`, if it is a tensor of this shape (and dtype, if given)."""
    returned(value, torch.Tensor, call)
    if tuple(value.shape) != tuple(shape):
        raise AssertionError(
            f"{call} should have shape {tuple(shape)}, not {tuple(value.shape)}"
        )
    if dtype is not None and value.dtype != dtype:
        raise AssertionError(f"{call} should be {dtype}, not {value.dtype}")
    return value


def same(got, expected, call: str, hint: str = "", tolerance: float = 0.0):
    """`got` equals `expected`, elementwise; infinities must match exactly."""
    wanted = expected
    if not isinstance(expected, torch.Tensor):
        wanted = torch.tensor(expected)
    tensor(got, wanted.shape, call)
    got = got.detach().cpu()
    wide = torch.promote_types(got.dtype, wanted.dtype)
    a, b = got.to(wide), wanted.cpu().to(wide)
    # inf == inf holds under isclose; nan never equals anything.
    wrong = ~torch.isclose(a, b, rtol=0.0, atol=tolerance)
    if not wrong.any():
        return
    wish, given = _at_a_glance(wrong, wanted, got)
    if wrong.numel() > SHORT:
        given += f" ({wrong.sum()} of {wrong.numel()} differ)"
    raise AssertionError(f"{call} should be {wish}, not {given}." + _hint(hint))


def value(got, expected, call: str, hint: str = "", tolerance: float = 0.0):
    """A plain value (bool, str, int, list, float) equals the expected one."""
    returned(got, object, call)
    if isinstance(expected, float) and isinstance(got, torch.Tensor):
        raise AssertionError(
            f"{call} should return a float, not a Tensor: .item() makes a float of "
            f"{show(got)}"
        )
    if isinstance(expected, float) and isinstance(got, (int, float)):
        ok = abs(got - expected) <= tolerance
    else:
        ok = type(got) is type(expected) and got == expected
    if not ok:
        wish, given = show(expected), show(got)
        if wish == given:
            wish, given = _told_apart(expected, got)
        raise AssertionError(f"{call} {_verb(call)} {wish}, not {given}." + _hint(hint))


def same_ids(got, expected, call: str, logits_at=None, hint: str = ""):
    """Token ids equal those of an oracle. Where not: the row and step that differ first
    and, given `logits_at(row, position) -> (vocab,)`, how close a call it was."""
    returned(got, torch.Tensor, call)
    if got.dtype.is_floating_point:
        raise AssertionError(f"{call} should be token ids (int64), not {got.dtype}")
    if got.dim() != expected.dim():
        raise AssertionError(
            f"{call} should have {expected.dim()} dimensions like its expected "
            f"{tuple(expected.shape)}, not shape {tuple(got.shape)}"
        )
    width = min(got.shape[-1], expected.shape[-1])
    rows = min(got.shape[0], expected.shape[0])
    a, b = got[:rows, :width].cpu(), expected[:rows, :width].cpu()
    differ = (a != b).nonzero()
    if len(differ):
        row, step = min(differ.tolist(), key=lambda place: place[1])
        text = (
            f"{call.rstrip(',')}: row {row} differs first at position {step}: token "
            f"{a[row, step].item()}, expected {b[row, step].item()}.\n"
            f"    yours    {_around(got[row], step)}\n"
            f"    expected {_around(expected[row], step)}"
        )
        if logits_at is not None:
            best = logits_at(row, step).topk(2).values
            text += f"\n    the top two logits there are {best[0] - best[1]:.2g} apart"
        raise AssertionError(text + _hint(hint, "\n    "))
    if got.shape != expected.shape:
        told = "The tokens that both have agree"
        if got.shape[-1] != expected.shape[-1]:
            longer = got.shape[-1] > expected.shape[-1]
            told += "; yours goes on for too long" if longer else ""
            told += "; yours stops too early" if not longer else ""
        if got.shape[:-1] != expected.shape[:-1]:
            told += f"; {len(expected)} rows are asked for, yours are {len(got)}"
        raise AssertionError(
            f"{call} should have shape {tuple(expected.shape)}, not "
            f"{tuple(got.shape)}. {told}." + _hint(hint)
        )


def _verb(call: str) -> str:
    """A call gives a value; what is named after it, "the reply", is one."""
    thing = call.rpartition(": ")[2]
    return (
        "should be" if thing.startswith(("the ", "each ", "what ")) else "should give"
    )


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _around(row, step: int) -> str:
    """A row of ids, so that the one at `step` is among those that are shown."""
    if step < 12:
        return show(row)
    return "[..., " + show(row[step - 6 :])[1:]


def _kind(value) -> str:
    """The type of a value in words."""
    if isinstance(value, torch.Tensor):
        return "a tensor" if value.dim() else "a 0-d tensor"
    return "None" if value is None else _a(type(value).__name__)


def _told_apart(expected, got) -> tuple[str, str]:
    """Two values that look the same, in words that differ."""
    if type(expected) is not type(got):
        return tuple(f"{show(x)} ({_kind(x)})" for x in (expected, got))
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            return counted(len(expected), "value"), f"{len(got)}"
        for n, (a, b) in enumerate(zip(expected, got, strict=True)):
            if a != b:
                wish, given = show(a), show(b)
                if wish == given:
                    wish, given = _told_apart(a, b)
                return f"{wish} at place {n}", given
    return repr(expected), repr(got)


def _at_a_glance(wrong, one, other) -> tuple[str, str]:
    """Two tensors in words; where they are long, or look the same, only what is at the
    first place where `wrong` is true."""
    if wrong.numel() <= SHORT:
        digits = _digits(one, other)
        wish, given = (show(x, digits=digits) for x in (one, other))
        if wrong.dim() == 2 and len(wrong) > 1 and wrong.numel() > SHORT // 2:
            row = wrong.any(-1).nonzero()[0].item()
            wish, given = (show(x[row], digits=digits) for x in (one, other))
            wish = f"{wish} in row {row}" if wish != given else given
        if wish != given:
            return wish, given
    place = wrong.nonzero()[0].tolist()
    at = tuple(place)
    wish, given = show(one[at]), show(other[at])
    if wish == given:
        wish, given = repr(one[at].item()), repr(other[at].item())
    return (f"{wish} at {place}" if place else wish), given


def _digits(*tensors) -> int:
    """7 where six digits show two of the numbers as one, and seven do not."""
    numbers = {x for tensor in tensors for x in tensor.flatten().tolist()}
    six, seven = ({f"{x:.{n}g}" for x in numbers} for n in (6, 7))
    return 7 if len(six) < len(seven) == len(numbers) else 6


@contextlib.contextmanager
def unchanged(hint: str = "work on a copy, for example with masked_fill", **tensors):
    """The named tensors (or plain values) are as they were when the block ends."""
    before = {k: _copy(v) for k, v in tensors.items()}
    yield
    for name, now in tensors.items():
        was = before[name]
        if isinstance(now, torch.Tensor) and now.shape == was.shape:
            wrong = torch.nan_to_num(now) != torch.nan_to_num(was)
            if not wrong.any():
                continue
            old, new = _at_a_glance(wrong, was, now)
        elif not isinstance(now, torch.Tensor) and now == was:
            continue
        else:
            old, new = show(was), show(now)
        raise AssertionError(
            f"the argument `{name}` was changed: {old} became {new}. "
            f"The caller still needs it: {hint}."
        )


def a_copy(got, original, call: str):
    """`got` does not share the memory of `original`, an argument."""
    returned(got, torch.Tensor, call)
    if got.data_ptr() == original.data_ptr():
        raise AssertionError(
            f"{call} returned the argument itself. Return a copy, also when there is "
            "nothing to change: the caller may go on to change what it got."
        )


def rejects(error, function, call: str, says: str = ""):
    """`function()` raises `error` with a message that contains `says`."""
    try:
        result = function()
    except NotImplementedError:
        raise
    except error as raised:
        text = str(raised)
        if says and says not in text:
            raise AssertionError(
                f"{call} raises {type(raised).__name__}({text!r}): good, but the "
                f"message should name what is wrong: {says!r}"
            ) from None
        return
    except Exception as raised:
        raise AssertionError(
            f"{call} should raise {error.__name__}, not {type(raised).__name__}: "
            f"{raised}"
        ) from None
    shown = show(result)
    came = _kind(result) if shown.startswith("<") or len(shown) > 80 else shown
    raise AssertionError(f"{call} should raise {error.__name__}; it returned {came}.")


@contextlib.contextmanager
def hinting(hint: str, *kinds, says: str = ""):
    """An error of the learner's code in this block, of one of `kinds` and with a text
    that contains `says`, is shown with `hint`."""
    try:
        yield
    except kinds as error:
        if says in str(error) and not isinstance(error, NotImplementedError):
            setattr(error, HINT, hint)
        raise


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_copy(v) for v in value]
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return value


def _hint(hint: str, before: str = " ") -> str:
    return before + hint if hint else ""
