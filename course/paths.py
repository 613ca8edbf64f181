"""Where things are: in the repository, or where pip has put the course.

A wheel has the packages, and in course/_data what else of the repository a lesson needs
(see course.making.wheel). There is no folder lessons/ then: the learner's notebooks lie
where they work, in the folder in which Python was started.
"""

import re
from functools import lru_cache
from pathlib import Path

CODE = Path(__file__).resolve().parent  # the package `course`
DATA = CODE / "_data"
INSTALLED = DATA.is_dir()
ROOT = DATA if INSTALLED else CODE.parent
HOME = Path.cwd() if INSTALLED else ROOT  # where the learner's files are
LESSONS = HOME if INSTALLED else ROOT / "lessons"
COMMAND = "python -m course" if INSTALLED else "python start.py"
SOLUTIONS = ROOT / "solutions"
TESTS = ROOT / "tests" / "lessons"
# Where the project is published. `update` and each notebook's first cell name it: after
# a change, `python start.py build --prose`.
ADDRESS = "https://github.com/OWNER/token-by-token"
PIP = f"pip install token-by-token@git+{ADDRESS}"
LANGUAGES = ("zh_CN",)  # besides English; their notebooks are in lessons/zh_CN/


def tests_of(lesson: str) -> Path:
    """The test file of a lesson: "04_top_k" -> tests/lessons/test_04_top_k.py."""
    return TESTS / f"test_{lesson}.py"


def lesson_names() -> list[str]:
    """All lessons that have a source, in order."""
    return sorted(path.stem for path in SOLUTIONS.glob("[0-9][0-9]_*.py"))


@lru_cache(maxsize=64)
def exercise_names(lesson: str) -> tuple[str, ...]:
    """The exercises of a lesson that have tests, in the order of its test file."""
    if not lesson or not tests_of(lesson).exists():
        return ()
    text = tests_of(lesson).read_text(encoding="utf-8")
    return tuple(re.findall(r'^(\w+) = exercise\("\1"\)', text, re.MULTILINE))


def shown(path: Path) -> str:
    """A path as a reader should see it: relative to the repository, or to the folder in
    which one works with the course installed, where possible."""
    path = Path(path)
    if path.is_relative_to(HOME):
        return path.relative_to(HOME).as_posix()
    return path.name
