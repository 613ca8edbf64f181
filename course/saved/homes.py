"""Where the learner's notebook of a lesson is: in lessons/, or in lessons/zh_CN/ for
those who learn in that language.

It is the one that they have worked in. Where both hold work, it is the one beside which
the kernel runs, else the one saved last. Where neither does, it is the one beside which
the kernel runs, else the one in the language in which they have worked last, or have
run a cell, else that in lessons/. A notebook named by its path is always the one meant.

With the course installed by pip, the folder in which one works stands for lessons/. It
may hold a few lessons, or none.
"""

from functools import lru_cache
from pathlib import Path

from course.paths import INSTALLED, LANGUAGES, LESSONS, lesson_names
from course.saved import books, languages, which

NONE_HERE = f"No lesson's notebook is in this folder, {LESSONS}."

_named = {}  # lesson -> its notebook, as named on the command line


def learners(lesson: str) -> Path:
    """The learner's notebook of a lesson; it need not be there."""
    if lesson in _named:
        return _named[lesson]
    there = [p for p in _copies(lesson) if p.exists()]
    if len(there) < 2:
        return there[0] if there else LESSONS / f"{lesson}.ipynb"
    here, worked = Path.cwd().resolve(), [p for p in there if _has_answers(p)]
    for path in worked or there:
        if path.parent.resolve() == here:
            return path
    if worked:
        return max(worked, key=lambda p: p.stat().st_mtime_ns)
    home = _worked_in_last()
    return next((path for path in there if path.parent == home), there[0])


def here() -> list[str]:
    """The lessons that a learner has: all; with the course installed, those whose
    notebooks are in the folder in which they work."""
    names = lesson_names()
    return [x for x in names if learners(x).exists()] if INSTALLED else names


def name(words: list[str]):
    """Take each of `words` that is the path of a learner's notebook as the one that is
    meant from now on."""
    for word in words:
        lesson = books.lesson_called(word)
        for path in _copies(lesson) if lesson else ():
            if path.resolve() == Path(word).resolve():
                _named[lesson] = path


def is_home(folder: Path) -> bool:
    """Whether learners' notebooks lie in this folder."""
    return folder.resolve() in [home.resolve() for home in _homes()]


def language_of(path: Path) -> str:
    """The language in which a notebook was built; "" for the course's own."""
    language, lesson = path.parent.name, path.stem
    if INSTALLED:
        language, lesson = _stamped(path), which.lesson_at(path)
    return language if language in languages.languages_of(lesson) else ""


def _stamped(path: Path) -> str:
    try:
        return books.read(path)["metadata"][books.STAMP]["language"]
    except (books.Unreadable, LookupError, TypeError):
        return ""


def _homes() -> list[Path]:
    return [LESSONS, *(LESSONS / language for language in LANGUAGES)]


def _copies(lesson: str) -> list[Path]:
    named = [home / f"{lesson}.ipynb" for home in _homes()]
    if INSTALLED and not any(path.exists() for path in named):
        # As browsers and hosts name it: "04_top_k (1).ipynb", "Copy of 04_top_k.ipynb"
        there = sorted(LESSONS.glob("*.ipynb"))
        named += [p for p in there if which.named_in(p.stem) == lesson]
    return named


def _has_answers(path: Path) -> bool:
    seen = path.stat()
    return _some_answer(path, (seen.st_mtime_ns, seen.st_size))


@lru_cache(maxsize=128)
def _some_answer(path: Path, stamp) -> bool:
    """Whether an exercise's cell is not as it came; so is a notebook not to be read."""
    try:
        book = books.read(path)
    except books.Unreadable:
        return True
    for exercise in books.exercises(which.lesson_at(path)):
        place = books.cell_of(book, exercise)
        text = books.source_of(book["cells"][place]) if place is not None else ""
        if text.strip() != exercise.stub.strip():
            return True
    return False


def _worked_in_last() -> Path:
    """The folder of the notebook with answers that was saved last; where there are none
    yet, of the one with a cell that was run."""
    there = [p for lesson in lesson_names() for p in _copies(lesson) if p.exists()]
    found = [p for p in there if _has_answers(p)] or [p for p in there if _was_run(p)]
    return max(found, key=lambda p: p.stat().st_mtime_ns).parent if found else LESSONS


def _was_run(path: Path) -> bool:
    try:
        return any(c.get("execution_count") for c in books.read(path)["cells"])
    except books.Unreadable:
        return False
