"""Where things are in the repository."""

import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ROOT / "lessons"
SOLUTIONS = ROOT / "solutions"
TESTS = ROOT / "tests" / "lessons"
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
    """A path as a reader should see it: relative to the repository where possible."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name
