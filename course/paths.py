"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ROOT / "lessons"
SOLUTIONS = ROOT / "solutions"
TESTS = ROOT / "tests" / "lessons"


def tests_of(lesson: str) -> Path:
    """The test file of a lesson: "04_top_k" -> tests/lessons/test_04_top_k.py."""
    return TESTS / f"test_{lesson}.py"


def lesson_names() -> list[str]:
    """All lessons that have a source, in order."""
    return sorted(path.stem for path in SOLUTIONS.glob("[0-9][0-9]_*.py"))


def shown(path: Path) -> str:
    """A path as a reader should see it: relative to the repository where possible."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name
