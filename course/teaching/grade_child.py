"""Grade a notebook: the side that runs in a process of its own, next to the student's
code. It trusts nothing of it, and reports to `grade_process` line by line.
"""

import contextlib
import hmac
import json
import os
import shutil
import signal
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

import course
from course.checks import carrying, explain, notebook, plugin, pristine, running
from course.paths import ROOT

# What the checks are made of. Where students' code replaces a function, a class or a
# constant of these modules, the original is put back.
TRUSTED = (
    *("course", "tiny_models", "_pytest", "pytest", "pluggy", "json", "hmac", "math"),
    *("contextlib", "itertools", "types", "transformers.generation", "test_"),
)
OPTIONS = [  # of pytest
    *("-p", "course.checks.plugin", "--disable-plugin-autoload", "--capture=no"),
    *("-p", "no:cacheprovider", "-p", "no:terminal", "--noconftest"),
    *("-p", "no:unraisableexception", "-p", "no:faulthandler", "-p", "no:nbval"),
    *("-p", "no:logging"),
]


def child(lesson, names, folder, key, *, forked, memory_gb, file_mb):
    """Check the exercises `names` of folder/notebook; does not return."""
    # 1. Away from the parent: its group, its terminal, its folder, its secrets
    if hasattr(os, "setsid"):
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if forked:  # the table, and the reports of other notebooks
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    here = Path.cwd()
    sys.path[:] = [p for p in sys.path if p and (Path(p) != here or here == ROOT)]
    for name in [n for n in os.environ if n.startswith("OPENAI_")]:
        del os.environ[name]
    report = _Report(folder / "report", key)
    work = folder / "work"
    work.mkdir()
    os.chdir(work)
    _limit(memory_gb, file_mb)
    # 2. The checks, on the notebook
    course.carry = carrying.carry = _carry_below(lesson)
    try:
        path = work / f"{lesson}.ipynb"
        shutil.copyfile(folder / "notebook", path)
        config = str(ROOT / "pyproject.toml")
        arguments = ["-c", config, f"--rootdir={ROOT}", "-o", "addopts=", *OPTIONS]
        pytest.main([*arguments, str(path)], plugins=[_Told(report, names, path)])
    except BaseException as error:
        report.write(
            problem=f"the notebook could not be run: {explain.safe_text(error)}"
        )
    os._exit(0)  # and no handler of the student's


def _limit(memory_gb: float, file_mb: float):
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_mb * 1_000_000,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _carry_below(lesson: str):
    """`carry` for a notebook of this lesson: our answers, to earlier lessons only."""
    original = carrying.carry

    def carry(name: str):
        if carrying._lesson_of(name) >= lesson:
            raise LookupError(f"carry({name!r}) is for later lessons: write your own")
        token = running.loading.set(lesson)
        try:
            return original(name)
        finally:
            running.loading.reset(token)

    return carry


def mac(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, "sha256").hexdigest().encode()


class _Report:
    def __init__(self, path: Path, key: bytes):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.key, self.number = key, 0

    def write(self, **record):
        payload = json.dumps({"number": self.number, **record}).encode()
        os.write(self.file, mac(self.key, payload) + b" " + payload + b"\n")
        self.number += 1


class _Told:
    """pytest plugin: the exercises `names` only; reports each step; puts back what
    students' code replaces."""

    def __init__(self, report: _Report, names: list[str], path: Path):
        self.report, self.names, self.path = report, set(names), path

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        plan = Counter()
        items[:] = [x for x in items if self.names & set(plugin.exercises_asked_for(x))]
        for item in items:
            # Nobody reads pytest's own rendering of a failure in a fixture.
            item._repr_failure_py = lambda *_, **__: ""
            plan.update(plugin.exercises_asked_for(item))
        self.report.write(plan=plan)

    def pytest_collection_finish(self):
        # From here on code of the student's runs.
        self.originals = Originals()
        with contextlib.suppress(notebook.NotebookProblem):
            plugin.loaded(self.path)
        self.originals.put_back()
        self.report.write(loaded=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        self.report.write(begin=plugin.exercises_asked_for(item))
        return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_pyfunc_call(self):
        try:
            result = yield
        except BaseException:
            self.originals.put_back()
            raise
        if replaced := self.originals.put_back():
            raise AssertionError(
                f"it replaced {replaced[0]} while it was being checked"
            )
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)  # no late ring of a time limit
        report = yield
        if call.when == "call" or call.excinfo is not None:
            verdict = item.stash[plugin.VERDICT]
            self.report.write(
                names=plugin.exercises_asked_for(item),
                title=plugin.title(item),
                state=verdict.state,
                text=verdict.text,
            )
        return report


class Originals:
    """The functions, classes and constants of the TRUSTED modules as they are now."""

    def __init__(self):
        self.kept, self.codes = [], {}
        for name, module in list(sys.modules.items()):
            if module is None or not name.startswith(TRUSTED):
                continue
            owners = [module, *(x for x in vars(module).values() if _of(x, name))]
            self.kept += [(owner, self._originals(owner)) for owner in owners]

    def _originals(self, owner) -> dict:
        kept = {}
        for name, value in list(vars(owner).items()):
            method = isinstance(value, (staticmethod, classmethod, property))
            if callable(value) or method or name.strip("_").isupper():
                kept[name] = value
            if isinstance(value, types.FunctionType):
                self.codes[value] = value.__code__, value.__defaults__
        return kept

    def put_back(self) -> list[str]:
        """Put all of them back; the names of those that had been replaced."""
        replaced = pristine.mend()
        for owner, originals in self.kept:
            now = vars(owner)
            for name, value in originals.items():
                if now.get(name) is not value:
                    setattr(owner, name, value)
                    replaced.append(f"{owner.__name__}.{name}")
        for function, (code, defaults) in self.codes.items():
            if function.__code__ is not code or function.__defaults__ is not defaults:
                function.__code__, function.__defaults__ = code, defaults
                replaced.append(function.__qualname__)
        return replaced


def _of(value, module: str) -> bool:
    """Whether `value` is a class that this module defines."""
    return isinstance(value, type) and value.__module__ == module
