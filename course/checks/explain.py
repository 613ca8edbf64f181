"""Turn what a check raised into a sentence for the learner."""

import builtins
import dis
import inspect
import sysconfig
import textwrap
import traceback
from dataclasses import dataclass

import pytest
import torch

from course.checks.expect import HINT, show
from course.checks.limits import TimeLimit
from course.paths import CODE, ROOT, exercise_names, lesson_names
from course.saved.states import DONE, TO_DO, WRONG

NOT_TRIED = "not tried, since an earlier check did not end"
WIDTH = 100
# In a saved notebook's names: name -> the cell that sets it and does not run.
OTHER_CELLS = "__token_by_token_other_cells__"
ENDED = " ended in "  # between a call and the error that it raised

# Code under these is not the learner's.
_OTHERS = (
    str(CODE),
    str(CODE.parent / "tiny_models"),
    str(ROOT / "tests"),
    sysconfig.get_paths()["stdlib"],
    sysconfig.get_paths()["purelib"],
    sysconfig.get_paths()["platlib"],
    "<frozen",
)


class Unwritten(NotImplementedError):
    """An earlier test has met the stub already. The message is that test's."""


@dataclass
class Verdict:
    """The outcome of one test: DONE, WRONG or TO_DO, and a sentence unless DONE."""

    state: str
    text: str = ""
    note: str = ""  # what the failure is about, where that could be misunderstood


def verdict(exercise: str, error: BaseException | None, answer=None) -> Verdict:
    """What `error`, raised by a test of `exercise`, means for the learner. `answer` is
    what was tested: then the call that ended in the error can be named."""
    if error is None:
        return Verdict(DONE)
    frame = learners_frame(error)
    if isinstance(error, Unwritten):
        return Verdict(TO_DO, str(error))
    if isinstance(error, NotImplementedError) and _raised_by_a_line(error):
        return Verdict(TO_DO, _unwritten(exercise, error))
    if isinstance(error, TimeLimit):
        text = f"still running after {error.seconds:g} s, so it was stopped. Does the "
        text += "loop end?"
    elif isinstance(error, pytest.fail.Exception) or _is_ours(error):
        return Verdict(WRONG, _first_part(error))
    elif isinstance(error, SystemExit):
        text = "it calls exit(), which would end the notebook: return or raise instead"
    elif isinstance(error, MemoryError) or "t allocate memory" in safe_text(error):
        text = "it asks for more memory than there is"
    elif isinstance(error, RecursionError):
        text = "it calls itself without an end (RecursionError)"
    else:
        name_alone = isinstance(error, NameError)  # whatever the arguments were
        call = "" if name_alone else shown_call(exercise, answer, error)
        text = f"{call}{ENDED if call else ''}{type(error).__name__}: "
        text += safe_text(error) + _shadowed(error)
        if hint := getattr(error, HINT, ""):
            text = f"{text.rstrip('.')}. {hint}"
        if isinstance(error, NameError) and frame and ".ipynb[" in frame.filename:
            text += where_it_is(error.name, _innermost(error).f_globals)
        elif isinstance(error, NameError) and (line := _way_round(error.name or "")):
            text += f". Its cell has not run, or has failed: run it first.{line}"
    if frame is not None:
        text += f"\n    at line {frame.lineno} of {frame.name}: {frame.line}"
    return Verdict(WRONG, text)


def where_it_is(name: str, namespace: dict) -> str:
    """What to add to a NameError in a saved notebook."""
    if name in (cells := namespace.get(OTHER_CELLS, {})):
        return (
            f". {cells[name]} of the notebook sets `{name}`, and does not run when the "
            "saved notebook is checked: put what the exercise needs into its own cell."
        )
    return (
        ". A check of the saved notebook runs only the cells for set-up and exercises: "
        "put imports and helpers of your own in the exercise's cell."
    )


def _innermost(error):
    tb = error.__traceback__
    while tb.tb_next is not None:
        tb = tb.tb_next
    return tb.tb_frame


def learners_frame(error: BaseException):
    """The innermost line of the learner's own code in a traceback, or None."""
    try:
        frames = traceback.extract_tb(error.__traceback__)
    except Exception:
        return None
    mine = [f for f in frames if f.line and not f.filename.startswith(_OTHERS)]
    return mine[-1] if mine else None


def _shadowed(error) -> str:
    """Where a variable of the learner's hides a builtin: `sum = 3`, then `sum(x)`."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if not isinstance(error, TypeError) or "not callable" not in str(error) or not tb:
        return ""
    code, names = tb.tb_frame.f_code, tb.tb_frame.f_globals
    hidden = [n for n in code.co_names if n in names and hasattr(builtins, n)]
    return "".join(
        f". A variable of yours called `{name}` hides Python's own: `del {name}`"
        for name in hidden
        if not callable(names[name])
    )


def safe_text(error: BaseException, limit: int = 600) -> str:
    """str(error), even where that itself raises, cut to a readable length."""
    try:
        text = str(error)
    except BaseException as broken:
        return f"(its message cannot be shown: {type(broken).__name__})"
    return text if len(text) <= limit else text[:limit] + " ..."


def _raised_by_a_line(error) -> bool:
    """Raised by a `raise`, as in a stub. torch raises NotImplementedError from C, for
    what it cannot do with a dtype or a device."""
    frames = traceback.extract_tb(error.__traceback__)
    line = frames[-1].line if frames else ""
    return not line or line.startswith("raise")


def _is_ours(error) -> bool:
    """An assertion of the check, not one in the learner's own code."""
    if not isinstance(error, AssertionError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or frames[-1].filename.startswith(_OTHERS)


def _first_part(error) -> str:
    """Our sentence, without pytest's own rendering of the assert statement."""
    return safe_text(error, 4000).split("\nassert ")[0].strip()


def _unwritten(exercise: str, error) -> str:
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    code = tb.tb_frame.f_code if tb is not None else None
    name = code.co_name if code is not None else exercise
    if name == exercise or name.startswith("<"):
        return f"{exercise} is not written yet"
    if code is not None and _is_method(tb.tb_frame):
        return f"{exercise}.{name} is not written yet"
    return f"{name} is not written yet, and {exercise} calls it: write {name} first"


def _is_method(frame) -> bool:
    return "self" in frame.f_locals or "cls" in frame.f_locals


# --- the call that ended in an error --------------------------------------------------

# Nothing is recorded while the tests run: an argument is read off the traceback, if the
# code leaves it as it came. Else it has its name alone.
LENGTH = 90  # characters of one argument
_STORES = ("STORE_FAST", "DELETE_FAST", "STORE_DEREF", "DELETE_DEREF")
_CHANGES = {"STORE_SUBSCR", "DELETE_SUBSCR"}
_CHANGERS = {"append", "extend", "insert", "pop", "remove", "sort", "reverse", "clear"}
_CHANGERS |= {"update", "setdefault", "popitem", "popleft", "appendleft"}


def shown_call(name: str, answer, error: BaseException) -> str:
    """`name(...)` of the call of `answer`, a function or class, that raised `error`;
    "" where its traceback does not hold that call."""
    codes = _codes(answer)
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code not in codes:
        tb = tb.tb_next
    if tb is None:
        return ""
    frame, method = tb.tb_frame, codes[tb.tb_frame.f_code]
    if method not in ("", "__init__"):
        name += f".{method}"
    return f"{name}({', '.join(_arguments(frame, skip=bool(method)))})"


def _codes(answer) -> dict:
    """code -> the method's name, "" for a function."""
    if not inspect.isclass(answer):
        code = getattr(inspect.unwrap(answer), "__code__", None)
        return {code: ""} if code else {}
    found = {}
    for one in reversed(answer.__mro__):
        if one.__module__.partition(".")[0] in ("builtins", "torch", "transformers"):
            continue
        for name, value in vars(one).items():
            code = getattr(value, "__code__", None)
            if code is not None:
                found[inspect.unwrap(value).__code__] = name
    return found


def _arguments(frame, skip: bool) -> list[str]:
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames
    by_place = names[skip : code.co_argcount]
    by_name = names[code.co_argcount :][: code.co_kwonlyargcount]
    rest = names[code.co_argcount + code.co_kwonlyargcount :]
    done = list(dis.get_instructions(code))
    # From Python 3.13 on an instruction may store two, as STORE_FAST_STORE_FAST does
    stores = [x.argval for x in done if x.opname.startswith(_STORES)]
    bound = {n for x in stores for n in (x if isinstance(x, tuple) else (x,))}
    change = any(x.opname in _CHANGES for x in done)
    change = change or any(_changes(name) for name in code.co_names)

    def told(name):
        return name if name in bound else _argument(values.get(name), change, name)

    parts = [told(name) for name in by_place]
    if code.co_flags & inspect.CO_VARARGS:
        name, rest = rest[0], rest[1:]
        given = () if name in bound else values.get(name, ())
        parts += [_argument(x, change, "...") for x in given]
    parts += [f"{name}={told(name)}" for name in by_name]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        given = {} if rest[0] in bound or change else values.get(rest[0], {})
        parts += [f"{k}={_argument(x, change, '...')}" for k, x in given.items()]
    return parts


def _changes(name: str) -> bool:
    """Whether a method of this name may change what it is called on."""
    return name in _CHANGERS or (name.endswith("_") and not name.endswith("__"))


def _argument(value, changed: bool, name: str) -> str:
    """A value that is plain and short, else the argument's name."""
    if isinstance(value, torch.Tensor):
        if changed:
            return name
        text = show(value)
        return text.replace("a tensor", name) if text.startswith("a ") else text
    if not _plain(value) or (changed and isinstance(value, (list, dict))):
        return name
    text = show(value)
    return text if len(text) <= LENGTH else name


def _plain(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


# --- the report on an exercise --------------------------------------------------------


def by_title(results: list[tuple[str, Verdict]]) -> dict[str, list[Verdict]]:
    """The verdicts of each check: the cases of a test share a title."""
    cases = {}
    for title, verdict in results:
        cases.setdefault(title, []).append(verdict)
    return cases


def report(results: list[tuple[str, Verdict]]) -> tuple[str, str]:
    """What a learner reads of one exercise's tests, (title, verdict) each, and its
    state: TO_DO if any part is not written, else WRONG if any test fails."""
    for _, verdict in results:
        if verdict.state == TO_DO:
            advice = "fill in its cell, run it, then run this cell again."
            text = f"… {verdict.text}: {advice}{_way_round(verdict.text)}"
            return "\n".join(map(_wrapped, text.splitlines())), TO_DO
    lines, told, again = [], set(), []
    for title, verdicts in by_title(results).items():
        wrong = next((v for v in verdicts if v.state == WRONG), None)
        if wrong is None:
            lines.append(f"✓ {title}")
        elif _cause(wrong.text) in told:
            again.append(title)
        else:
            lines.append(f"✗ {title}: {wrong.text}")
            told.add(_cause(wrong.text))
    if again:
        lines.append(f"✗ and, for the same reason: {', '.join(again)}")
    lines += dict.fromkeys(f"({v.note})" for _, v in results if v.note)
    text = "\n".join(_wrapped(line) for line in "\n".join(lines).splitlines())
    return text, WRONG if told else DONE


def _way_round(text: str) -> str:
    """The line that brings our answer, for a sentence that begins with its name."""
    name = text.partition(" ")[0].partition(".")[0]
    if not any(name in exercise_names(lesson) for lesson in lesson_names()):
        return ""
    line = f'from course import carry; {name} = carry("{name}")'
    return f"\n  To go on with ours until then, run in a new cell:\n  {line}"


def _cause(text: str) -> str:
    """What two failures have in common when one mistake explains both: an error is the
    same after any call."""
    text = text.rpartition(ENDED)[2]
    if "returned None" in text:
        return "returned None"
    if text == NOT_TRIED or text.startswith("still running"):
        return "still running"
    return text


def _wrapped(line: str) -> str:
    """A line broken between words: JupyterLab breaks long ones inside them."""
    if len(line) <= WIDTH:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
