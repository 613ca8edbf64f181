"""Put an exercise, or a whole lesson, back as it came: from the reference, without git
and without the tools that a build needs. What was there is kept in backups/."""

from pathlib import Path

from course.learner import backups
from course.paths import COMMAND, HOME, INSTALLED, shown
from course.saved import asked, books, homes, which

RELOAD = (
    "If the notebook is open in JupyterLab: File > Reload Notebook from Disk. Asked "
    "whether to overwrite or to revert, choose Revert: what is open is the old one."
)


def reset_all(words: list[str]) -> int:
    """Reset each lesson or exercise; nothing at all where one of them is unknown."""
    tasks = [called(word) for word in words]
    for task in tasks:
        print(reset_one(task))
    if any(homes.learners(lesson_of(task)).exists() for task in tasks):
        print(RELOAD)
    return 0


def lesson_of(task: str | books.Exercise) -> str:
    return task if isinstance(task, str) else task.lesson


def called(word: str) -> str | books.Exercise:
    """The lesson or the exercise that a word names. Raises Unknown, also for a copy."""
    if lesson := books.lesson_called(word):
        return lesson
    if copy := asked.notebook_called(word):
        raise books.Unknown(
            f"{shown(copy)} is a copy of a lesson, which stays as it is. `{COMMAND} "
            f"reset {which.lesson_at(copy)[:2]}` puts the lesson itself back."
        )
    return books.exercise_called(word)


def reset_one(task: str | books.Exercise) -> str:
    """Reset the lesson of this name, or an exercise; says what was done."""
    if isinstance(task, str):
        return reset_lesson(task)
    return reset_exercise(task)


def reset_lesson(lesson: str) -> str:
    path = homes.learners(lesson)
    built = books.as_text(books.as_built(lesson, homes.language_of(path)))
    if path.exists() and path.read_bytes() == built.encode():
        return f"{shown(path)} is as it came."
    told = _kept(path)
    path.parent.mkdir(exist_ok=True)
    books.write(path, built)
    return f"{shown(path)} is as it came. {told}".rstrip()


def reset_exercise(exercise: books.Exercise) -> str:
    """Put the stub back into the exercise's cell; where that is gone, the cell too."""
    path = homes.learners(exercise.lesson)
    if INSTALLED and not path.exists():  # on a host that keeps it elsewhere
        return (
            f"{path.name} is not in this folder, {HOME}, so nothing was changed. As it "
            f"came, the cell of {exercise.name} is:\n\n{exercise.stub}\n"
        )
    book = books.read(path)
    place = books.cell_of(book, exercise)
    if place is None:
        told = "Its cell is there again"
        book["cells"].insert(_place_for(book, exercise), _built_cell(exercise))
    elif books.source_of(book["cells"][place]).strip() == exercise.stub.strip():
        return f"{exercise.name} is as it came."
    else:
        told = f"{exercise.name} is as it came"
        cell = book["cells"][place]
        cell["source"] = exercise.stub.splitlines(keepends=True)
        cell["outputs"], cell["execution_count"] = [], None
    kept = _kept(path)
    books.write(path, books.as_text(book))
    return f"{told}, in {shown(path)}. {kept}"


def _kept(path: Path) -> str:
    if not path.exists():
        return ""
    return f"What was there is kept as {shown(backups.keep(path))}."


def _built_cell(exercise) -> dict:
    book = books.as_built(exercise.lesson)
    return book["cells"][books.cell_of(book, exercise)]


def _place_for(book, exercise) -> int:
    """After the nearest cell above it that is still there; else at the end."""
    built = books.as_built(exercise.lesson)
    above = [c.get("id") for c in built["cells"][: books.cell_of(built, exercise)]]
    there = {cell.get("id"): n for n, cell in enumerate(book["cells"])}
    for name in reversed(above):
        if name in there:
            return there[name] + 1
    return len(book["cells"])
