"""Grade a folder of notebooks, without nbgrader.

    python start.py grade submissions --out grades.csv

The folder, or the zip archive that a learning platform exports, may hold notebooks of
several lessons at any depth, and archives of them: `alice/04_top_k.ipynb`,
`bob_04_top_k.ipynb.txt`, `04_top_k/carol.zip`. The file's name says which lesson it is,
else the exercises in it do. What is no notebook is named at the end, with the reason
why it was left out. The CSV has a row for each notebook and exercise:

    student      the notebook's path in the folder
    state        done, wrong or to do; `not graded` where the file is no lesson
    points, of   the stars of the exercise's difficulty, if it is done, of how many
    said         the first sentence of the checks that failed

Rows are written as soon as a notebook is graded. Run the command again, after a stop or
when more has come in, and only new and changed notebooks are graded.

Each notebook runs in a process of its own, several at once. Of its cells only those run
that are tagged `setup` or `exercise`; the checks come from this repository. A broken
notebook costs its own rows only, and code that crashes or hangs its own exercise only.
On Linux torch is loaded once for all; elsewhere each process takes some seconds more,
and only its time is limited, not its memory.

Students' code does not pass by printing, by ending the process, or by replacing `check`
or what the checks are made of (this package, pytest, torch, transformers): that is put
back after each step, and a check during which it happens has failed. `carry` refuses
the exercises of the lesson itself. **It is no sandbox.** The code runs as you: it can
read and change your files, use the network, copy our answers from the disk, and, with
enough effort, forge the report of its own process. Grade the work of people whom you do
not trust in a container without a network, for example

    docker run --rm --network none -v "$PWD:/work" -w /work IMAGE \\
        python start.py grade submissions --out grades.csv
"""

import argparse
import contextlib
import csv
import hashlib
import io
import os
import signal
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from course.checks.explain import DONE, TO_DO, WRONG
from course.kit.words import counted
from course.paths import lesson_names, tests_of
from course.saved import which
from course.teaching.grade_process import (
    MEMORY_GB,
    SECONDS,
    CannotGrade,
    Job,
    Limits,
    Result,
    grade,
    points_of,
)
from course.teaching.submissions import CANNOT_READ, NOTEBOOK_MB, Handed, find

NOT_GRADED = "not graded"
COLUMNS = ["student", "lesson", "exercise", "state", "points", "of", "said", "file"]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python start.py grade")
    parser.add_argument(
        "folder", type=Path, help="or zip archive: holds the notebooks, at any depth"
    )
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
    archive = options.folder.suffix.lower() == ".zip" and options.folder.is_file()
    if not archive and not options.folder.is_dir():
        parser.error(f"there is no folder and no zip archive {options.folder}")
    if min(options.jobs, options.seconds, options.memory) <= 0:
        parser.error("--jobs, --seconds and --memory must be above 0")
    limits = Limits(options.seconds, options.memory)
    # So that no process is left running.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        rows = grade_folder(options.folder, options.out, options.jobs, limits)
    except CannotGrade as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from what is in {options.out}")
    print_summary(rows)
    books = len({row["student"] for row in rows})
    print(f"{counted(books, 'notebook')}, in {options.out}")
    return 0


# --- a folder -------------------------------------------------------------------------


def grade_folder(
    folder: Path, out: Path, jobs: int = 1, limits: Limits | None = None
) -> list[dict]:
    """Grade what is new or changed in `folder`, `jobs` notebooks at a time; all rows,
    which are also in `out`. All values are texts."""
    handed = find(folder, besides={out.resolve()})
    found = {one.name: one for one in handed if not one.why_not}
    marks = {name: mark_of(one) for name, one in found.items()}
    rows = rows_to_keep(out, marks)
    write_rows(out, rows)
    graded = {row["student"] for row in rows}
    waiting = [name for name in found if name not in graded]
    tqdm.monitor_interval = 0  # no thread of its own: threads and forks do not mix
    often = 0.2 if sys.stderr.isatty() else 20
    bar = tqdm(total=len(waiting), unit=" notebooks", mininterval=often)
    asked = (submission(found[name]) for name in waiting)
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
    for one in handed:
        if one.why_not:
            print(_on_one_line(f"left out: {one.name}: {one.why_not}"))
    return rows


def submission(handed: Handed) -> Job:
    """A file, ready to be graded; or with a result that says why it cannot be."""
    problem = "neither its name nor the exercises in it say which lesson this is"
    if handed.size > NOTEBOOK_MB * 1_000_000:
        problem = f"the file has over {NOTEBOOK_MB} MB: clear its outputs"
    else:
        try:
            text = which.text_of(handed.read())
            if lesson := which.lesson_of(handed.name, text):
                return Job(handed.name, lesson, text)
        except CANNOT_READ as error:
            problem = f"the file cannot be read: {error}"
    return Job(handed.name, results={"": Result(NOT_GRADED, problem)})


# --- the table ------------------------------------------------------------------------


@lru_cache
def _digest_of_checks() -> bytes:
    files = [tests_of(lesson).read_bytes() for lesson in lesson_names()]
    return hashlib.sha256(b"".join(files)).digest()


def mark_of(handed: Handed) -> str:
    """Of a notebook's contents and the checks: when either changes, this does."""
    digest = hashlib.sha256(_digest_of_checks() + str(handed.size).encode())
    if handed.size <= NOTEBOOK_MB * 1_000_000:
        with contextlib.suppress(*CANNOT_READ):
            digest.update(handed.read())
    return digest.hexdigest()[:16]


def rows_of(job: Job, mark: str) -> list[dict]:
    points = points_of(job.lesson)
    return [
        {
            "student": job.name,
            "lesson": job.lesson,
            "exercise": name,
            "state": result.state,
            "points": str(points[name] if result.state == DONE else 0),
            "of": str(points.get(name, 0)),
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
        row
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


def _to_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, on one line, valid in UTF-8."""
    text = _on_one_line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


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


if __name__ == "__main__":
    sys.exit(main())
