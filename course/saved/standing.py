"""Where a learner stands, at no cost: what has passed is remembered, with the very text
of the cell that passed, and nothing is run to look it up.

An answer counts as done while its cell, as it is saved or as this kernel runs it, has
the text that has passed, and the lesson's checks are those that it passed. The memory
is the file lessons/.progress.json, which git ignores (with the course installed by pip,
.token_by_token.json where one works); where it cannot be written, a
kernel still knows what it has checked itself.
"""

import hashlib
import json
import linecache
import sys
import types
from functools import lru_cache
from pathlib import Path

from course.paths import INSTALLED, LESSONS, lesson_names, tests_of
from course.saved import books, homes
from course.saved.states import BEGUN, DONE, TO_DO

FILE = ".token_by_token.json" if INSTALLED else ".progress.json"
_passed_here = {}  # (lesson, exercise) -> the text that passed, in this process


def states(lesson: str) -> dict[str, str]:
    """{exercise: DONE, BEGUN or TO_DO} of a lesson, from the saved notebook."""
    exercises = books.exercises(lesson)
    try:
        book = books.read(homes.learners(lesson))
    except books.Unreadable:
        return dict.fromkeys((x.name for x in exercises), TO_DO)
    passed = _read().get("passed", {})
    found = {}
    for exercise in exercises:
        place = books.cell_of(book, exercise)
        text = books.source_of(book["cells"][place]) if place is not None else ""
        found[exercise.name] = _state(exercise, text, passed)
    return found


def _state(exercise: books.Exercise, text: str, passed: dict | None = None) -> str:
    if not text.strip() or is_stub(text, exercise):
        return TO_DO
    passed = _read().get("passed", {}) if passed is None else passed
    key = (exercise.lesson, exercise.name)
    known = (passed.get("/".join(key)), _passed_here.get(key))
    return DONE if _mark(exercise.lesson, text) in known else BEGUN


def is_stub(text: str, exercise: books.Exercise) -> bool:
    """Whether a cell is as it came: then it need not be run to be called to do."""
    return text.strip() == exercise.stub.strip()


def remember(lesson: str, name: str, text: str, passed: bool):
    """Keep that this text of an exercise's cell has passed its checks, or has not."""
    key, mark = f"{lesson}/{name}", _mark(lesson, text)
    kept = _read()
    if passed:
        _passed_here[lesson, name] = mark
        if kept.get("passed", {}).get(key) != mark:
            kept.setdefault("passed", {})[key] = mark
            _write(kept)
        return
    if _passed_here.get((lesson, name)) == mark:
        del _passed_here[lesson, name]
    if kept.get("passed", {}).get(key) == mark:
        del kept["passed"][key]
        _write(kept)


def next_exercise(after: str = "") -> books.Exercise | None:
    """The first exercise that is not done; of lesson `after` if it has one."""
    lessons = homes.here()
    if after in lessons:
        start = lessons.index(after)
        lessons = lessons[start:] + lessons[:start]
    for lesson in lessons:
        now = states(lesson)
        for exercise in books.exercises(lesson):
            if now[exercise.name] != DONE:
                return exercise
    return None


# --- after a check in a notebook ------------------------------------------------------


def after_check(name: str, exercise, passed: bool) -> str:
    """Remember a check of a live object; the sentence that says where one stands, ""
    where that is not known. Only where lessons are learnt: elsewhere it is nobody's
    progress."""
    if not homes.is_home(Path.cwd()):
        return ""
    lesson = next(
        (n for n in lesson_names() if name in {x.name for x in books.exercises(n)}), ""
    )
    text = cell_text(exercise)
    if not lesson or not text:
        return ""
    remember(lesson, name, text, passed)
    return said(lesson, name) if passed else ""


def said(lesson: str, name: str) -> str:
    """ "done, 2 of 5 in this lesson; next: kept_mass"."""
    now = live_states(lesson)
    now[name] = DONE
    left = [x for x, state in now.items() if state != DONE]
    done = f"done, {len(now) - len(left)} of {len(now)} in this lesson"
    if left:
        return f"{done}; next: {left[0]}"
    return f"{done}: all of it"


def live_states(lesson: str) -> dict[str, str]:
    """As `states`; what runs in this kernel may not be saved yet, and comes first."""
    now = states(lesson)
    for exercise in books.exercises(lesson):
        live = vars(sys.modules["__main__"]).get(exercise.name)
        if text := cell_text(live):
            now[exercise.name] = _state(exercise, text)
    return now


def passed_here() -> set[str]:
    """The lessons of which an exercise has passed in this process."""
    return {lesson for lesson, _ in _passed_here}


def cell_text(exercise) -> str:
    """The text of the cell that has made a function or class; "" where unknown."""
    found = exercise
    if isinstance(exercise, type):
        made = [x for x in vars(exercise).values() if hasattr(x, "__code__")]
        found = next(iter(made), None)
    code = getattr(found, "__code__", None)
    if not isinstance(code, types.CodeType):
        return ""
    return "".join(linecache.getlines(code.co_filename))


# --- the memory -----------------------------------------------------------------------


def hints_seen(exercise: books.Exercise, seen: int | None = None) -> int:
    """How many hints of an exercise were shown; with `seen`, that is kept."""
    kept, key = _read(), f"{exercise.lesson}/{exercise.name}"
    if seen is not None:
        kept.setdefault("hints", {})[key] = seen
        _write(kept)
    found = kept.get("hints", {}).get(key, 0)
    return found if isinstance(found, int) else 0


def _mark(lesson: str, text: str) -> str:
    return hashlib.sha256((_checks(lesson) + text.strip()).encode()).hexdigest()[:20]


@lru_cache(maxsize=64)
def _checks(lesson: str) -> str:
    path = tests_of(lesson)
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def _read() -> dict:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        kept = json.loads((LESSONS / FILE).read_text(encoding="utf-8"))
        parts = {key: kept.get(key, {}) for key in ("passed", "hints")}
        return parts if all(isinstance(x, dict) for x in parts.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(kept: dict):
    try:
        books.write(LESSONS / FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    except OSError:
        return  # a folder that cannot be written to costs the memory, not the check
