"""Grade a notebook in a process of its own, with limits on time and memory: the side
that starts the processes, watches them and believes no more than it must. What runs in
them is in `grade_child`.

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
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from course.checks import explain, notebook, plugin
from course.checks.explain import DONE, TO_DO, WRONG, Verdict
from course.paths import SOLUTIONS
from course.teaching.grade_child import child
from course.teaching.grade_child import mac as _mac
from tiny_models import random_gpt2, random_llama

SECONDS = 120.0  # for a notebook as a whole
QUIET = 30.0  # for one check, whose own limit is 10 s: after this it will never end
LOADING = 75.0  # for the cells themselves, each of which may take 60 s
MEMORY_GB = 2.0  # on top of what Python, torch and the checks take
REPORT_BYTES = 10_000_000  # more is not read
FILE_MB = 100  # the largest file that students' code may write
SAID = 500  # characters
TICK = 0.02  # seconds between two looks at the running processes


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
        method = _start_method()
        self.process = multiprocessing.get_context(method).Process(
            target=child,
            args=(job.lesson, job.left(), self.folder, self.key),
            kwargs={
                "forked": method == "fork",
                "memory_gb": limits.memory,
                "file_mb": FILE_MB,
            },
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
