"""`check(f)`: the tests of one exercise, on the object as it stands in the notebook."""

import contextlib
import inspect
import os
import sys

import pytest

from course.checks import explain, plugin, running
from course.checks.limits import Bounded
from course.checks.pristine import mend, standard_state
from course.paths import ROOT, TESTS
from course.saved import standing

# Plugins that no check needs: half of the time of a quick one. unraisableexception
# collects garbage twice at the end. The terminal's reports are explain's here.
UNUSED = [
    "cacheprovider",
    "debugging",
    "doctest",
    "faulthandler",
    "junitxml",
    "legacypath",
    "logging",
    "nbval",
    "pastebin",
    "recwarn",
    "setuponly",
    "setupplan",
    "stepwise",
    "subtests",
    "terminal",
    "threadexception",
    "unittest",
    "unraisableexception",
]


class NotPassed(AssertionError):
    """A check that did not pass. IPython shows the message alone, without a traceback;
    it is still an error, so Run All stops here and an autograder gives no points."""

    def _render_traceback_(self):
        return str(self).splitlines()


def check(exercise) -> None:
    """Run the tests of `exercise` on it, and print a line for each invariant.

    Raises NotPassed, which Jupyter shows as a short report, unless all pass.
    """
    __tracebackhide__ = True
    if running.loading.get():
        return  # in an exercise's own cell, whose saved notebook is being checked
    name = _name_of(exercise, sys._getframe(1).f_globals)
    files = test_files(name)
    if not files:
        raise NotPassed(
            f"check was given {name}, which is no exercise. Give it the function "
            "itself, under its own name, for example check(top_k_filter)."
        )
    if any(exercise is ours for ours in plugin.CARRIED):
        raise NotPassed(
            f"… {name} is ours, brought by carry: yours is not written yet. Write it "
            "in its cell and run that; then run this cell again."
        )
    for replaced in mend():
        print(f"({replaced} had been replaced in this notebook; it is put back now.)")
    text, state = explain.report(run(name, exercise, files))
    where = standing.after_check(name, exercise, state == explain.DONE)
    if state != explain.DONE:
        raise NotPassed(text)
    print(f"{text}\n{where}" if where else text)


def state_of(name: str, exercise) -> str:
    """DONE, WRONG or TO_DO: what the tests of `name` say of this object, in silence."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return explain.report(run(name, exercise, test_files(name)))[1]


def run(
    name: str, exercise, files, only: str = "", stop: bool = False
) -> list[tuple[str, explain.Verdict]]:
    """(title, verdict) of each test of the exercise `name`, run on `exercise`.

    only: the name of a test function, to run it alone; stop: at the first failure.
    """
    live = _Live(name, exercise, only)
    arguments = [
        *("-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-o", "addopts="),
        *("--disable-plugin-autoload", "--capture=no"),
        *(f"-pno:{name}" for name in UNUSED),
        *(["--exitfirst"] if stop else []),
        *map(str, files),
    ]
    out, err = Bounded(sys.stdout), Bounded(sys.stderr)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        standard_state(),
        pytest.MonkeyPatch.context() as patch,
    ):
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):  # for runs by hand
            patch.delenv(variable, raising=False)
        # By its name pytest would look for it among all packages that are installed.
        code = pytest.main(arguments, plugins=[plugin, live])
    if code == pytest.ExitCode.INTERRUPTED and not live.errors:
        raise KeyboardInterrupt
    if not live.results:
        raise NotPassed(f"the tests of {name} could not be run: {live.errors or code}")
    return live.results


def _name_of(exercise, names) -> str:
    """The exercise's name: its own, or the variable that holds it (a lambda)."""
    name = getattr(exercise, "__name__", None)
    if isinstance(name, str) and test_files(name):
        return name
    held = [n for n, value in names.items() if value is exercise and test_files(n)]
    if held:
        return held[0]
    return name if isinstance(name, str) else f"a {type(exercise).__name__}"


def test_files(name: str):
    """The test files that ask for the exercise `name`."""
    asked = f'exercise("{name}")'
    return [
        path
        for path in sorted(TESTS.glob("test_[0-9][0-9]_*.py"))
        if asked in path.read_text(encoding="utf-8")
    ]


class _Live:
    """pytest plugin: hands over one object, keeps its tests, collects the verdicts."""

    def __init__(self, name, exercise, only):
        self.name, self.exercise, self.only = name, exercise, only
        self.results, self.errors = [], ""

    def pytest_configure(self, config):
        config.stash[plugin.LIVE] = {self.name: self.exercise}

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector, name, obj):
        """No item for a test that is known not to be asked for: most of them."""
        if not name.startswith("test") or not inspect.isfunction(obj):
            return None
        if self.only and name != self.only:
            return []
        asked = obj.__code__.co_varnames[: obj.__code__.co_argcount]
        others = set(plugin.exercises_of(collector.module)).intersection(asked)
        return [] if others and self.name not in others else None

    def pytest_collection_modifyitems(self, items):
        items[:] = [x for x in items if self.name in plugin.exercises_asked_for(x)]

    def pytest_collectreport(self, report):
        if report.failed:
            self.errors += str(report.longrepr)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" or call.excinfo is not None:
            self.results.append((plugin.title(item), item.stash[plugin.VERDICT]))
        return report
