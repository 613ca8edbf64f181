"""`carry("decode")`: an earlier lesson's exercise, to build on."""

from pathlib import Path

from course.checks import checking, explain, notebook, plugin, running
from course.paths import INSTALLED, SOLUTIONS, lesson_names, shown, tests_of
from course.saved import homes

REASONS = {
    explain.DONE: None,
    explain.WRONG: "yours does not pass its checks yet",
    explain.TO_DO: "you have not written yours yet",
}


def carry(name: str):
    """Your own `name` from its lesson's saved notebook if it passes its checks, else
    the course's reference; prints which.

    Always the reference in solutions/, and while a saved notebook is being checked,
    which then gets those of earlier lessons only. Raises LookupError when no lesson has
    an exercise of that name, or a later one has it.
    """
    lesson = _lesson_of(name)
    checked = running.loading.get()
    if checked and lesson >= checked:
        raise LookupError(f"carry({name!r}) is for later lessons: write your own")
    reference = plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").get(name)
    if checked:
        return reference
    plugin.CARRIED.append(reference)
    if Path.cwd().resolve() == SOLUTIONS.resolve():
        print(f"{name}: the reference, from lesson {lesson[:2]}")
        return reference
    saved = homes.learners(lesson)
    try:
        mine = plugin.exercise_of(saved, name)
        why = REASONS[checking.state_of(name, mine)]
    except explain.Unwritten:
        mine, why = None, REASONS[explain.TO_DO]
    except notebook.NotebookProblem as problem:
        mine, why = None, str(problem)
        if INSTALLED and not saved.exists():
            why = f"{saved.name} is not in this folder"
    if why is None:
        print(f"{name}: your own, from {shown(saved)}")
        return mine
    print(f"{name}: the reference, since {why}")
    return reference


def _lesson_of(name: str) -> str:
    for lesson in lesson_names():
        if tests_of(lesson) in checking.test_files(name):
            return lesson
    raise LookupError(f"no lesson has an exercise called {name!r}")
