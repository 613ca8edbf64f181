"""Grade a folder of notebooks, without nbgrader.

    python -m course.grade submissions --out grades.csv

The folder may hold notebooks of several lessons at any depth: `alice/04_top_k.ipynb`,
`bob_04_top_k.ipynb`, `04_top_k/carol.ipynb`. The file's name says which lesson it is,
else the exercises in it do. The CSV has a row for each notebook and exercise:

    student      the notebook's path in the folder
    state        done, wrong or to do; `not graded` where the file is no lesson
    points, of   the stars of the exercise's difficulty, if it is done, of how many
    said         the first sentence of the checks that failed

Rows are written as soon as a notebook is graded. Run the command again, after a stop or
when more has come in, and only new and changed notebooks are graded.

Each notebook runs in a process of its own, without the cells that are not tagged `setup`
or `exercise`; the checks come from this repository. A process that ends itself, hangs or
runs out of memory costs the exercise at which it stood; the others are graded in a new
one. On Linux the processes are forked from this one, which has torch in memory already;
elsewhere each starts afresh, some seconds slower, and time is the only limit, not memory.

Students' code does not pass by printing, by ending the process, by replacing `check` or
what the checks are made of (this package, pytest, torch, transformers): that is put back
after each step, and a check during which it happens has failed. `carry` refuses the
exercises of the lesson itself. **It is no sandbox.** The code runs as you: it can read
and change your files, use the network, copy our answers from the disk, and, with enough
effort, forge the report of its own process. Grade the work of people you do not trust
in a container without a network, for example

    docker run --rm --network none -v "$PWD:/work" -w /work IMAGE python -m course.grade ...
"""

import argparse
import contextlib
import csv
import gc
import hashlib
import hmac
import io
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
from multiprocessing.connection import wait
from pathlib import Path

import nbformat
import pytest
import torch
from tqdm import tqdm

import course
from course import carrying, explain, notebook, plugin, pristine
from course.explain import DONE, TO_DO, WRONG, Verdict
from course.paths import ROOT, SOLUTIONS, lesson_names, tests_of
from tiny_models import random_gpt2, random_llama

NOT_GRADED = "not graded"
COLUMNS = ["student", "lesson", "exercise", "state", "points", "of", "said", "file"]
SECONDS = 120.0  # for a notebook as a whole
QUIET = 30.0  # for one check, whose own limit is 10 s: after this it will never end
LOADING = 75.0  # for the cells themselves, each of which may take 60 s
MEMORY_GB = 2.0  # on top of what Python, torch and the checks take
FILE_MB = 100  # the largest file that students' code may write
NOTEBOOK_MB = 50
SAID = 300  # characters
TICK = 0.1  # seconds between two looks at the running processes

# What the checks are made of. Where students' code replaces a function, a class or a
# constant of these modules, the original is put back.
TRUSTED = (
    *("course", "tiny_models", "_pytest", "pytest", "pluggy", "json", "hmac", "math"),
    *("contextlib", "itertools", "types", "transformers.generation", "test_"),
)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.grade")
    parser.add_argument("folder", type=Path, help="holds the notebooks, at any depth")
    parser.add_argument("--out", type=Path, default=Path("grades.csv"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for a notebook (%(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=MEMORY_GB,
        metavar="GB",
        help="for a notebook, on Linux only (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    if min(options.jobs, options.seconds, options.memory) <= 0:
        parser.error("--jobs, --seconds and --memory must be above 0")
    limits = Limits(options.seconds, options.memory)
    try:
        rows = grade_folder(options.folder, options.out, options.jobs, limits)
    except CannotGrade as error:
        sys.exit(str(error))
    print_summary(rows)
    print(f"{len({row['student'] for row in rows})} notebooks, in {options.out}")
    return 0


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


# --- a folder -------------------------------------------------------------------------


def grade_folder(
    folder: Path, out: Path, jobs: int = 1, limits: Limits | None = None
) -> list[dict]:
    """Grade what is new or changed in `folder`, `jobs` notebooks at a time; all rows,
    which are also in `out`."""
    found = {p.relative_to(folder).as_posix(): p for p in submissions(folder)}
    marks = {name: mark_of(path) for name, path in found.items()}
    rows = rows_to_keep(out, marks)
    write_rows(out, rows)
    graded = {row["student"] for row in rows}
    waiting = [name for name in found if name not in graded]
    tqdm.monitor_interval = 0  # no thread of its own: threads and forks do not mix
    often = 0.2 if sys.stderr.isatty() else 20
    bar = tqdm(total=len(waiting), unit=" notebooks", mininterval=often)
    asked = (submission(name, found[name]) for name in waiting)
    with bar, out.open("a", encoding="utf-8", newline="") as file:
        for job in grade(asked, jobs, limits):
            new = rows_of(job, marks[job.name])
            file.write(as_csv(new))  # all rows of a notebook at once
            file.flush()
            rows += new
            bar.update()
    order = {name: n for n, name in enumerate(found)}
    rows.sort(key=lambda row: order[row["student"]])  # stable: exercises keep theirs
    write_rows(out, rows)
    return rows


def submissions(folder: Path) -> list[Path]:
    """The notebooks in a folder, without what Jupyter and macOS leave behind."""
    return sorted(
        path
        for path in folder.rglob("*.ipynb")
        if path.is_file()
        and not path.is_symlink()
        and not path.name.startswith("._")
        and not {".ipynb_checkpoints", "__MACOSX"} & set(path.parts)
    )


def submission(name: str, path: Path) -> Job:
    """A file, ready to be graded; or with a result that says why it cannot be."""
    if path.stat().st_size > NOTEBOOK_MB * 1_000_000:
        problem = f"the file has over {NOTEBOOK_MB} MB: clear its outputs"
        return Job(name, results={"": Result(NOT_GRADED, problem)})
    text = path.read_text(encoding="utf-8", errors="replace")
    if lesson := lesson_of(name, text):
        return Job(name, lesson, text)
    problem = "neither its name nor the exercises in it say which lesson this is"
    return Job(name, results={"": Result(NOT_GRADED, problem)})


def lesson_of(name: str, text: str) -> str:
    """The lesson that a notebook's file name holds; else the one most of whose
    exercises it defines; else the one in the name of a folder; else ""."""
    folders, _, file = name.rpartition("/")
    return _named_in(file) or _defined_in(text) or _named_in(folders)


def _named_in(name: str) -> str:
    words = f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_"
    found = [lesson for lesson in lesson_names() if f"_{lesson}_" in words]
    return max(found, key=len, default="")


def _defined_in(text: str) -> str:
    try:
        defined = set(re.findall(r"^(?:def|class) (\w+)", _sources(text), re.MULTILINE))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    found = {x: len(defined & set(points_of(x))) for x in lesson_names()}
    best = max(found, key=found.get)
    return best if found[best] else ""


def _sources(text: str) -> str:
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@lru_cache
def points_of(lesson: str) -> dict[str, int]:
    """exercise -> points, the stars of its difficulty, in the lesson's order."""
    points = {}
    for cell in notebook.read(SOLUTIONS / f"{lesson}.ipynb").cells if lesson else ():
        card = re.match(r"### Exercise [\d.]+ · `(\w+)`\s+difficulty (★*)", cell.source)
        if card:
            points[card[1]] = len(card[2])
    return points


# --- the table ------------------------------------------------------------------------


@lru_cache
def _digest_of_checks() -> bytes:
    files = [tests_of(lesson).read_bytes() for lesson in lesson_names()]
    return hashlib.sha256(b"".join(files)).digest()


def mark_of(path: Path) -> str:
    """Of a notebook's contents and the checks: when either changes, this does."""
    digest = hashlib.sha256(_digest_of_checks())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def rows_of(job: Job, mark: str) -> list[dict]:
    points = points_of(job.lesson)
    return [
        {
            "student": job.name,
            "lesson": job.lesson,
            "exercise": name,
            "state": result.state,
            "points": points[name] if result.state == DONE else 0,
            "of": points.get(name, 0),
            "said": result.said,
            "file": mark,
        }
        for name, result in job.results.items()
    ]


def rows_to_keep(out: Path, marks: dict[str, str]) -> list[dict]:
    """The rows of an earlier run whose notebook is there, unchanged, with all its
    exercises (the last rows of a run that was killed may be cut off)."""
    if not out.exists():
        return []
    with out.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            sys.exit(
                f"{out} is there, and this command did not write it: its columns are "
                f"{reader.fieldnames}. Give another --out, or move that file away."
            )
        rows = [{k: _from_cell(v or "") for k, v in row.items() if k} for row in reader]
    rows = [row for row in rows if marks.get(row["student"]) == row["file"]]
    counted = Counter(row["student"] for row in rows)
    return [
        {**row, "points": int(row["points"]), "of": int(row["of"])}
        for row in rows
        if counted[row["student"]] == max(1, len(points_of(row["lesson"])))
    ]


def as_csv(rows: list[dict], head: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows({k: _to_cell(v) for k, v in row.items()} for row in rows)
    return text.getvalue()


_FORMULA = tuple("=+-@'")


def _to_cell(value) -> str:
    """A text that no spreadsheet takes for a formula, on one line, valid in UTF-8."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _from_cell(text: str) -> str:
    return text[1:] if text[:1] == "'" else text


def write_rows(out: Path, rows: list[dict]):
    """The whole file, or nothing of it. It begins with the mark by which Excel knows
    UTF-8."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        file.write(as_csv(rows, head=True))
    os.replace(part, out)


def print_summary(rows: list[dict]):
    totals = {}
    for row in rows:
        counted = totals.setdefault((row["lesson"], row["exercise"]), Counter())
        counted[row["state"]] += 1
    width = max((len(" ".join(key)) for key in totals), default=0)
    for key in sorted(totals, key=lambda key: key[0]):
        told = [f"{totals[key][s]:4} {s}" for s in (DONE, WRONG, TO_DO, NOT_GRADED)]
        print(f"{' '.join(key):{width}}  " + " ".join(told[: 3 if key[1] else 4]))


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
            wait([run.process.sentinel for run in running], TICK)
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
            f"({failed or run.job.left()}). Is requirements.txt installed as it is, and "
            f"are {limits.seconds:g} s and {limits.memory:g} GB enough?"
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
        self.report = self.folder / "report"
        self.key = secrets.token_bytes(16)
        self.heard, self.size, self.why = time.monotonic(), 0, ""
        context = multiprocessing.get_context(_start_method())
        self.process = context.Process(
            target=_child,
            args=(job.lesson, job.text, job.left(), self.folder, self.key, limits),
        )
        self.process.start()

    def has_ended(self) -> bool:
        """Whether the process is over; one whose time is up is killed first."""
        if not self.process.is_alive():
            return True
        now = time.monotonic()
        size = self.report.stat().st_size if self.report.exists() else 0
        if size != self.size:
            self.heard, self.size = now, size
        said = self.report.read_bytes().count(b"\n") if size else 0
        quiet = self.limits.quiet if said > 1 else self.limits.loading
        if now > self.deadline:
            self.stop(f"all {self.limits.seconds:g} s for a notebook were over")
        elif now > self.heard + quiet:
            self.stop(f"it did not end within {quiet:g} s, and nothing could stop it")
        else:
            return False
        return True

    def stop(self, why: str):
        self.why = why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _kill_group(self.process.pid)
        self.process.kill()
        self.process.join()

    def collect(self):
        """Move what the process has found out into the job's results."""
        self.process.join()
        code = self.process.exitcode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _kill_group(self.process.pid)  # what the notebook has left running
        records = read_report(self.report, self.key)
        self.clean()
        why = self.why or f"the process ended (exit status {code})"
        why += " while this was checked"
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
        shutil.rmtree(self.folder, ignore_errors=True)


def _start_method() -> str:
    """fork where that is safe with torch loaded, which on macOS it is not."""
    return "fork" if sys.platform == "linux" else "spawn"


def _kill_group(pid: int):
    if hasattr(os, "killpg") and os.getpgid(0) != pid:
        os.killpg(pid, signal.SIGKILL)


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


def read_report(path: Path, key: bytes) -> list[dict]:
    """The records of a report, up to the first that the process did not write so."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
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


def _child(lesson, text, names, folder, key, limits):
    # 1. Away from the parent: its group, its terminal, its folder, its secrets
    if hasattr(os, "setsid"):
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
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
        path = prepared(text, lesson, work)
        arguments = [
            *(
                "-c",
                str(ROOT / "pyproject.toml"),
                f"--rootdir={ROOT}",
                "-o",
                "addopts=",
            ),
            *(
                "--disable-plugin-autoload",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:terminal",
            ),
            *(
                "-p",
                "no:nbval",
                "-p",
                "no:unraisableexception",
                "-p",
                "no:faulthandler",
            ),
            *("-p", "course.plugin", "--capture=no", "--noconftest", str(path)),
        ]
        pytest.main(arguments, plugins=[_Told(report, names, path)])
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
    """`carry` for a notebook of this lesson: references, and of earlier lessons only."""
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
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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
        report = yield
        self.originals.put_back()
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


if __name__ == "__main__":
    from course.grade import main as main_of_the_module  # so that a child can import it

    sys.exit(main_of_the_module())
