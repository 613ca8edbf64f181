"""The pytest plugin of the course.

Three ways to run the same tests (tests/lessons/test_NN_topic.py):
  check(f)                        in a notebook, on the function as it stands there
  pytest lessons/04_top_k.ipynb   on a saved notebook, or a folder of notebooks
  pytest                          maintainers: on solutions/, and the rest of the suite
"""

import contextlib
import os
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from course.checks import explain, notebook, running, table
from course.checks.limits import SECONDS, TimeLimit, contained
from course.paths import (
    LANGUAGES,
    SOLUTIONS,
    exercise_names,
    lesson_names,
    shown,
    tests_of,
)
from course.saved import homes, which

LIVE = pytest.StashKey[dict]()  # name -> the learner's object, when `check` runs us
VERDICT = pytest.StashKey[explain.Verdict]()
TABLE = pytest.StashKey[dict]()
# (notebook, exercise) -> what to raise at once in its further tests: it is a stub, or
# did not end.
KNOWN = pytest.StashKey[dict]()
THREADS = pytest.StashKey[int]()
CARRIED = []  # references that `carry` has handed out: nobody's own answer
QUIET = pytest.StashKey[bool]()  # somebody else writes the table
EXERCISE_ATTRIBUTE = "_course_exercise"


def exercise(name: str):
    """A fixture called `name` that hands a test the learner's function or class."""

    @pytest.fixture(name=name)
    def learners(request):
        known = request.config.stash[KNOWN].get((_book_of(request.node), name))
        if known is not None:
            raise known.with_traceback(None)  # which would grow with each raise
        live = request.config.stash.get(LIVE, {})
        if name in live:
            return live[name]
        return exercise_of(_book_of(request.node), name)

    setattr(learners, EXERCISE_ATTRIBUTE, name)
    return learners


@pytest.fixture
def seed() -> int:
    """Of the draws in a statistical test, which tests/making/test_statistics.py runs
    with others. Such a test is marked `draws`."""
    return 0


def exercises_of(module) -> list[str]:
    """The names of a test module's exercises, in the order of its file."""
    values = vars(module).values()
    return [v for x in values if (v := getattr(x, EXERCISE_ATTRIBUTE, None))]


@lru_cache(maxsize=64)
def _load(path: Path, stamp: float):
    return running.load(path)


def loaded(path: Path) -> running.Loaded:
    """The notebook's namespace, run again only when its file has changed."""
    with contextlib.suppress(FileNotFoundError):
        return _load(path, path.stat().st_mtime)
    raise notebook.NotebookProblem(f"there is no notebook {shown(path)}")


def exercise_of(path: Path, name: str):
    """Exercise `name` of a saved notebook. Where it calls another exercise of the same
    lesson that is a stub, broken or missing, it gets the reference, so that each stands
    alone."""
    book = loaded(path)
    mine = book.get(name)
    if path.parent == SOLUTIONS:
        return mine
    reference = loaded(SOLUTIONS / f"{book.lesson}.ipynb")
    for other, theirs in reference.exercises.items():
        own = other == name or book.usable(other)
        book.namespace[other] = book.exercises[other] if own else theirs
    return mine


# --- notebooks as test files ----------------------------------------------------------


class Notebook(pytest.File):
    """A lesson's notebook: its tests are those of tests/lessons/test_<lesson>.py."""

    def collect(self):
        tests = tests_of(which.lesson_at(self.path))
        yield ExerciseTests.from_parent(self, path=tests, nodeid=self.nodeid)


class ExerciseTests(pytest.Module):
    pass


def pytest_configure(config):
    # Plain `pytest` also executes the reference notebooks, cell by cell.
    # One thread for kernels and other child processes: no slower with models this
    # small, and far faster when something else has the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    no_arguments = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if no_arguments and hasattr(config.option, "nbval_lax"):
        config.option.nbval_lax = True
        config.option.current_env = True
        config.option.nbval_cell_timeout = 240
    config.stash[TABLE] = {}
    config.stash[KNOWN] = {}


def pytest_sessionstart(session):
    # Tiny models are slower on several threads.
    session.config.stash[THREADS] = torch.get_num_threads()
    torch.set_num_threads(1)


def pytest_collect_file(file_path, parent):
    option = parent.config.option
    under_nbval = getattr(option, "nbval", False) or getattr(option, "nbval_lax", False)
    if file_path.suffix != ".ipynb" or under_nbval:
        return None
    if ".ipynb_checkpoints" in file_path.parts:
        return None
    lesson = which.lesson_at(file_path)
    if not lesson or not tests_of(lesson).exists():
        return None
    if _is_another_copy(file_path, lesson, parent.session):
        return None
    return Notebook.from_parent(parent, path=file_path)


def _is_another_copy(path, lesson, session) -> bool:
    """Whether the learner has this lesson in another language, and has not named this
    notebook nor its language's folder."""
    if not homes.is_home(path.parent) or session.isinitpath(path):
        return False
    if path.parent.name in LANGUAGES and session.isinitpath(path.parent):
        return False
    return path != homes.learners(lesson)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items, config):
    asked = [x for lesson in lesson_names() for x in exercise_names(lesson)]
    asked = {x.lower() for x in asked} & set(_words(config.option.keyword))
    for item in items:
        names = exercises_asked_for(item)
        # So that `-k top_k_filter` chooses the tests of one exercise, and not those of
        # others that only have its name in theirs. Elsewhere -k is as it ever was.
        chosen = names or [x for x in asked if x in item.nodeid.lower()]
        item.extra_keyword_matches.update(f"::{x}::" for x in chosen)
        if LIVE in config.stash or item.getparent(Notebook):
            # Learners read our sentence; pytest's own takes longer than most tests.
            item.repr_failure = lambda *_, **__: ""
    for name in asked:
        word = rf"(?<![\w:]){name}(?![\w:])"
        exact = re.sub(word, f"::{name}::", config.option.keyword, flags=re.IGNORECASE)
        config.option.keyword = exact


def _words(expression: str) -> list[str]:
    return re.findall(r"(?<![\w:])\w+(?![\w:])", expression.lower())


def exercises_asked_for(item) -> list[str]:
    module = getattr(item, "module", None)
    names = getattr(item, "fixturenames", ())
    return [n for n in exercises_of(module) if n in names] if module else []


def _book_of(item) -> Path:
    """The notebook that a test looks at: the one it was collected from, else the
    reference."""
    book = item.getparent(Notebook)
    if book is not None:
        return book.path
    return SOLUTIONS / f"{_lesson_of(item)}.ipynb"


def _lesson_of(item) -> str:
    return item.path.stem.removeprefix("test_")


# --- running a test of an exercise ----------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    names = exercises_asked_for(pyfuncitem)
    if not names:
        return (yield)
    marker = pyfuncitem.get_closest_marker("limit")
    seconds = marker.args[0] if marker else SECONDS
    token = running.loading.set(_lesson_of(pyfuncitem))
    try:
        with contained(seconds):
            return (yield)
    except TimeLimit as error:
        for name in names:
            failed = pytest.fail.Exception(explain.NOT_TRIED, pytrace=False)
            pyfuncitem.config.stash[KNOWN][_book_of(pyfuncitem), name] = failed
        raise _Stopped(error) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _Stopped(error) from error
    finally:
        running.loading.reset(token)


class _Stopped(Exception):
    """Carries an error that pytest would take as its own."""


def real_error(error):
    return error.__cause__ if isinstance(error, _Stopped) else error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    names = exercises_asked_for(item)
    if not names or (call.when != "call" and call.excinfo is None):
        return report
    error = real_error(call.excinfo.value) if call.excinfo else None
    answer = getattr(item, "funcargs", {}).get(names[0])
    result = explain.verdict(names[0], error, answer)
    item.stash[VERDICT] = result
    if result.state == explain.TO_DO:
        for name in names:
            unwritten = explain.Unwritten(result.text)
            item.config.stash[KNOWN].setdefault((_book_of(item), name), unwritten)
    report.state = result.state
    book = item.getparent(Notebook)
    if book is None:
        return report
    report.for_learner = True
    rows = item.config.stash[TABLE].setdefault(book.path, {})
    if result.state == explain.WRONG:
        with contextlib.suppress(notebook.NotebookProblem):
            result.note = loaded(book.path).notes.get(names[0], "")
    for name in names:
        rows.setdefault(name, []).append((title(item), result))
    if result.state == explain.TO_DO:
        report.outcome = "skipped"
        report.longrepr = (str(book.path), 0, result.text)
    return report


def title(item) -> str:
    """The invariant that a test holds, in words: its name."""
    name = getattr(item, "originalname", None) or item.name
    return name.removeprefix("test_").replace("_", " ")


def pytest_report_teststatus(report):
    """Categories of our own keep pytest from printing a section for each test; the
    table at the end says it all, once."""
    if not getattr(report, "for_learner", False) or report.passed:
        return None
    if report.state == explain.TO_DO:
        return "to do", "-", "TO DO"
    return "wrong", "F", "WRONG"


# --- the progress table ---------------------------------------------------------------


def rows_of(config) -> dict[Path, list[table.Row]]:
    """What the checks of saved notebooks have found: a row for each exercise."""
    return {
        path: [table.row(name, results) for name, results in rows.items()]
        for path, rows in config.stash[TABLE].items()
    }


def pytest_sessionfinish(session, exitstatus):
    torch.set_num_threads(session.config.stash[THREADS])
    rows = rows_of(session.config).values()
    states = {row.state for of_book in rows for row in of_book}
    if exitstatus == pytest.ExitCode.OK and states - {explain.DONE}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    rows = rows_of(config)
    if rows and not config.stash.get(QUIET, False):
        terminalreporter.section("exercises")
        table.write(rows, terminalreporter.write_line)
