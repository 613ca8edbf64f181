"""What the words behind a command name: notebooks, and exercises in them."""

from pathlib import Path

from course.paths import LESSONS, lesson_names, shown
from course.saved import homes, which
from course.saved.books import (
    Unknown,
    exercise_called,
    exercises,
    lesson_called,
    near,
)
from course.saved.homes import learners


def notebook_called(word: str) -> Path | None:
    """The notebook that a word names: a file, in this folder or in lessons/, of
    whatever name (which.lesson_at says which lesson it is), or else the learner's of
    the lesson that it names. Raises Unknown for a notebook of no lesson."""
    if word.endswith(".ipynb") and (found := _file_called(word)):
        return found
    if lesson := lesson_called(word):
        return learners(lesson)
    return _file_called(f"{word}.ipynb")


def _file_called(word: str) -> Path | None:
    path = next((p for p in (Path(word), LESSONS / word) if p.is_file()), None)
    if path is None:
        return None
    lesson = which.lesson_at(path)
    if not lesson:
        raise Unknown(
            f"{shown(path)} is of no lesson: neither its name nor an exercise in it "
            "says which."
        )
    return learners(lesson) if _is_learners(path, lesson) else path.resolve()


def _is_learners(path: Path, lesson: str) -> bool:
    mine = learners(lesson)
    return mine.exists() and path.samefile(mine)


def chosen(words: list[str]) -> dict[Path, list[str]]:
    """{notebook: names of exercises} that words name; no word means everything. Raises
    Unknown."""
    if not words and not homes.here():
        raise Unknown(homes.NONE_HERE)
    whole = [] if words else [learners(lesson) for lesson in homes.here()]
    picked = {}
    for word in words:
        if path := notebook_called(word):
            whole.append(path)
            continue
        try:
            exercise = exercise_called(word)
        except Unknown:
            names = [x.name for n in lesson_names() for x in exercises(n)]
            there = ", ".join(lesson_names()) or "none"
            raise Unknown(
                f"There is no lesson and no exercise '{word}'.{near(word, names)} The "
                f"lessons are: {there}."
            ) from None
        picked.setdefault(learners(exercise.lesson), []).append(exercise.name)
    for path in whole:
        picked[path] = [x.name for x in exercises(which.lesson_at(path))]
    return dict(sorted(picked.items()))
