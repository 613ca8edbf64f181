"""Grade a notebook in a process of its own, with limits on time and memory.

The checks come from this repository; the notebook gives the answers alone. A process
that ends itself, hangs or runs out of memory costs the exercise at which it stood; the
others are graded in a new one. On Linux the processes are forked from this one, which
has torch in memory already; elsewhere each starts afresh, some seconds slower, and its
memory has no limit.

What `start.py grade` says of students' code and its limits holds for all of this.
"""

import contextlib
import gc
import hmac
import json
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nbformat
import pytest
import torch

import course
from course.checks import carrying, explain, notebook, plugin, pristine
from course.checks.explain import DONE, TO_DO, WRONG, Verdict
from course.paths import ROOT, SOLUTIONS
from tiny_models import random_gpt2, random_llama

SECONDS = 120.0  # for a notebook as a whole
QUIET = 30.0  # for one check, whose own limit is 10 s: after this it will never end
LOADING = 75.0  # for the cells themselves, each of which may take 60 s
MEMORY_GB = 2.0  # on top of what Python, torch and the checks take
REPORT_BYTES = 10_000_000  # more is not read
FILE_MB = 100  # the largest file that students' code may write
SAID = 300  # characters
TICK = 0.02  # seconds between two looks at the running processes

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


@dataclass(frozen=True)
class Limits:
    """For one notebook: seconds in all, and GB of memory (on Linux)."""

    seconds: float = SECONDS
    memory: float = MEMORY_GB
    quiet: float = QUIET
    loading: float = LOADING


@dataclass
class Job:
    """A notebook to be graded, and what has come of it."""

    name: str
    lesson: str = ""
    text: str = ""
    results: dict = field(default_factory=dict)  # exercise -> Result

    def left(self) -> list[str]:
        """The exercises that have no result yet."""
        return [x for x in points_of(self.lesson) if x not in self.results]


@dataclass(frozen=True)
class Result:
    """Of one exercise: its state, the first failing sentence, and the whole report."""

    state: str
    said: str = ""
    report: str = ""


@lru_cache
def points_of(lesson: str) -> dict[str, int]:
    """exercise -> points, the stars of its difficulty, in the lesson's order."""
    points = {}
    for cell in notebook.read(SOLUTIONS / f"{lesson}.ipynb").cells if lesson else ():
        card = re.match(r"### Exercise [\d.]+ · `(\w+)`\s+difficulty (★*)", cell.source)
        if card:
            points[card[1]] = len(card[2])
    return points


# --- processes ------------------------------------------------------------------------


def grade(asked, jobs: int = 1, limits: Limits | None = None):
    """Yield each Job of the iterable `asked` when it is graded, in the order in which
    they end."""
    limits, asked, running = limits or Limits(), iter(asked), []
    try:
        while True:
            while len(running) < jobs and (job := next(asked, None)):
                if not job.left():
                    yield job
                    continue
                _prove(job.lesson, limits)
                running.append(_Run(job, limits, time.monotonic() + limits.seconds))
            if not running:
                return
            time.sleep(TICK)
            for run in [run for run in running if run.has_ended()]:
                running.remove(run)
                run.collect()
                if run.job.left():
                    running.append(_Run(run.job, limits, run.deadline))
                else:
                    yield run.job
    finally:
        for run in running:
            run.stop("")
            run.clean()


@lru_cache
def _prove(lesson: str, limits: Limits):
    """Grade our own answers first. What they do not pass is not a student's fault."""
    text = (SOLUTIONS / f"{lesson}.ipynb").read_text(encoding="utf-8")
    run = _Run(Job("", lesson, text), limits, time.monotonic() + limits.seconds)
    while not run.has_ended():
        time.sleep(TICK)
    run.collect()
    failed = {n: r.said for n, r in run.job.results.items() if r.state != DONE}
    if failed or run.job.left():
        raise CannotGrade(
            f"nothing was graded: our own answers to {lesson} do not pass here "
            f"({failed or run.job.left()}). Is requirements.txt installed as it is, "
            f"and are {limits.seconds:g} s and {limits.memory:g} GB enough?"
        )


class CannotGrade(RuntimeError):
    """This installation cannot grade. The message is for the teacher."""


class _Run:
    """A process that grades those exercises of a job that are left.

    It reports line by line to a file. Each line is signed with a key that only the two
    processes know, and numbered, so that nothing printed or copied counts.
    """

    def __init__(self, job: Job, limits: Limits, deadline: float):
        _warm_up(job.lesson)
        self.job, self.limits, self.deadline = job, limits, deadline
        self.folder = Path(tempfile.mkdtemp(prefix="grade-"))
        # Not as an argument: a pipe holds 64 kB, and we would wait for the other end.
        (self.folder / "notebook").write_text(job.text, encoding="utf-8")
        self.report = (self.folder / "report").open("w+b", buffering=0)
        self.key = secrets.token_bytes(16)
        self.heard, self.told, self.why = time.monotonic(), b"", ""
        context = multiprocessing.get_context(_start_method())
        self.process = context.Process(
            target=_child,
            args=(job.lesson, job.left(), self.folder, self.key, limits),
        )
        self.process.start()

    def has_ended(self) -> bool:
        """Whether the process is over; one whose time is up is killed first."""
        if not self.process.is_alive():
            return True
        now = time.monotonic()
        self.heard = now if self.listen() else self.heard
        loading = self.told.count(b"\n") < 2  # the plan of the checks comes first
        quiet = self.limits.loading if loading else self.limits.quiet
        if now > self.deadline:
            self.stop(f"all {self.limits.seconds:g} s for a notebook were over")
        elif now > self.heard + quiet:
            self.stop(f"it did not end within {quiet:g} s, and nothing could stop it")
        else:
            return False
        return True

    def listen(self) -> bytes:
        """What is new in the report."""
        new = self.report.read(REPORT_BYTES - len(self.told))
        self.told += new
        return new

    def stop(self, why: str):
        self.why = why
        self._kill_group()
        self.process.kill()
        self.process.join()

    def _kill_group(self):
        """The process and all that the notebook has started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def collect(self):
        """Move what the process has found out into the job's results."""
        self.process.join()
        self._kill_group()
        self.listen()
        records = read_report(self.told, self.key)
        self.clean()
        status = self.process.exitcode
        why = self.why or f"the process ended (exit status {status})"
        why += " while this was checked"
        if len(records) < self.told.count(b"\n"):
            why = "something else has written to its report: does the code open files?"
        found = results_of(records, self.job.left(), why)
        if not found:  # nothing more can be learned by another try
            found = dict.fromkeys(self.job.left(), _ended(why))
        self.job.results |= found
        if time.monotonic() > self.deadline:
            late = _ended("not checked: the notebook's time was over")
            self.job.results |= dict.fromkeys(self.job.left(), late)
        if not self.job.left():  # in the lesson's order
            names = points_of(self.job.lesson)
            self.job.results = {name: self.job.results[name] for name in names}

    def clean(self):
        self.report.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _start_method() -> str:
    """fork where that is safe with torch loaded, which on macOS it is not."""
    return "fork" if sys.platform == "linux" else "spawn"


@lru_cache
def _warm_up(lesson: str):
    """Load what every forked process will need, once."""
    if _start_method() != "fork":
        return
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    plugin.loaded(SOLUTIONS / f"{lesson}.ipynb")
    ids = torch.tensor([[5]])
    for make in (random_llama, random_gpt2):
        make().generate(ids, attention_mask=ids > 0, max_new_tokens=2, do_sample=True)
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # the pages stay shared


def results_of(records: list[dict], names: list[str], why: str) -> dict[str, Result]:
    """What a report says of the exercises `names`: those whose checks have all run, and
    the one at which the process stood when it ended, for the reason `why`."""
    plan = next((r["plan"] for r in records if "plan" in r), {})
    verdicts, at = {}, []
    for record in records:
        at = record.get("begin", [] if "state" in record else at)
        for name in record.get("names", ()):
            verdict = Verdict(record["state"], record["text"])
            verdicts.setdefault(name, []).append((record["title"], verdict))
    if not any("loaded" in r for r in records):
        problem = next((r["problem"] for r in records if "problem" in r), "")
        return dict.fromkeys(names, _ended(problem or why))
    found = {}
    for name in names:
        if plan.get(name) and len(verdicts.get(name, ())) == plan[name]:
            found[name] = _result(verdicts[name])
        elif name in at:
            found[name] = _ended(why)
    return found


def _result(verdicts) -> Result:
    report, state = explain.report(verdicts)
    failed = [(t, v) for t, v in verdicts if v.state == state != DONE]
    if not failed:
        return Result(state, "", report)
    title, verdict = failed[0]
    said = verdict.text if state == TO_DO else f"{title}: {verdict.text}"
    return Result(state, _short(said), report)


def _ended(why: str) -> Result:
    return Result(WRONG, _short(why), f"✗ {why}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SAID else text[: SAID - 4] + " ..."


def read_report(told: bytes, key: bytes) -> list[dict]:
    """The records of a report, up to the first that the process did not write so."""
    records = []
    for line in told.splitlines():
        mac, _, payload = line.partition(b" ")
        if not hmac.compare_digest(mac, _mac(key, payload)):
            break
        record = json.loads(payload)
        if record["number"] != len(records):
            break
        records.append(record)
    return records


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, "sha256").hexdigest().encode()


# --- in the child process -------------------------------------------------------------


def _child(lesson, names, folder, key, limits):
    # 1. Away from the parent: its group, its terminal, its folder, its secrets
    if hasattr(os, "setsid"):
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if _start_method() == "fork":  # the table, and the reports of other notebooks
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
    _limit_memory(limits.memory)
    # 2. The checks, on the notebook
    course.carry = carrying.carry = _carry_below(lesson)
    try:
        text = (folder / "notebook").read_text(encoding="utf-8")
        path = prepared(text, lesson, work)
        config = str(ROOT / "pyproject.toml")
        arguments = ["-c", config, f"--rootdir={ROOT}", "-o", "addopts=", *OPTIONS]
        pytest.main([*arguments, str(path)], plugins=[_Told(report, names, path)])
    except BaseException as error:
        report.write(
            problem=f"the notebook could not be run: {explain.safe_text(error)}"
        )
    os._exit(0)  # and no handler of the student's


def _limit_memory(memory: float):
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MB * 1_000_000,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prepared(text: str, lesson: str, folder: Path) -> Path:
    """The notebook as a file under its lesson's name. Where an editor has lost the
    tags, cells that define an exercise get theirs back; so does the set-up."""
    path = folder / f"{lesson}.ipynb"
    path.write_text(text, encoding="utf-8")
    try:
        book = notebook.read(path)
    except notebook.NotebookProblem:
        return path  # the checks will say so
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "exercise" in notebook.tags(cell)]
    have = {name for cell in tagged for name in notebook.defined_names(cell.source)}
    for cell in code:
        if set(notebook.defined_names(cell.source)) & (set(points_of(lesson)) - have):
            cell.metadata["tags"] = ["exercise"]
    if not any("setup" in notebook.tags(cell) for cell in code):
        ours = notebook.read(SOLUTIONS / f"{lesson}.ipynb").cells
        book.cells[:0] = [cell for cell in ours if "setup" in notebook.tags(cell)]
    nbformat.write(book, path)
    return path


def _carry_below(lesson: str):
    """`carry` for a notebook of this lesson: our answers, to earlier lessons only."""
    original = carrying.carry

    def carry(name: str):
        if carrying._lesson_of(name) >= lesson:
            raise LookupError(f"carry({name!r}) is for later lessons: write your own")
        token = notebook.loading.set(True)
        try:
            return original(name)
        finally:
            notebook.loading.reset(token)

    return carry


class _Report:
    def __init__(self, path: Path, key: bytes):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.key, self.number = key, 0

    def write(self, **record):
        payload = json.dumps({"number": self.number, **record}).encode()
        os.write(self.file, _mac(self.key, payload) + b" " + payload + b"\n")
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
