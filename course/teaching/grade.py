"""Grade a folder of notebooks, without nbgrader.

    python start.py grade submissions.zip --out grades.csv
    python start.py grade submissions.zip --roster names.csv --report report

The folder, or the zip archive that a learning platform exports, may hold notebooks of
several lessons at any depth, and archives of them: `alice/04_top_k.ipynb`,
`bob_04_top_k.ipynb.txt`, `04_top_k/carol.zip`. The file's name says which lesson it is,
else the exercises in it do. What is no notebook is named at the end, with the reason
why it was left out. The CSV has a row for each notebook and exercise:

    student      the notebook's path in the folder
    state        done, wrong or to do; `not graded` where the file is no lesson
    points, of   the stars of the exercise's difficulty, if it is done, of how many
    said         the first sentence of the checks that failed

`--report FOLDER` writes what else a teacher of many needs: totals, who is missing, the
commonest mistakes as a table and as figures, equal answers, and feedback for each
student (see `course.teaching.grading`). Moodle's and Canvas's names of files tell whose
a notebook is; a student of several notebooks of a lesson has the last one counted, or
the best: `--resubmissions best`.

Rows are written as soon as a notebook is graded. Run the command again, after a stop or
when more has come in, and only new and changed notebooks are graded.

Each notebook runs in a process of its own, several at once. Of its cells only those run
that are tagged `setup` or `exercise`; the checks come from this repository. A broken
notebook costs its own rows only, and code that crashes or hangs its own exercise only.
Two notebooks with the same code are graded once.
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
import hashlib
import json
import os
import signal
import sys
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

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
)
from course.teaching.grading import folder as reports
from course.teaching.grading import roster, standings, table
from course.teaching.grading.owners import owners
from course.teaching.submissions import CANNOT_READ, NOTEBOOK_MB, Handed, find


def main(arguments=None) -> int:
    options = parsed(arguments)
    people = roster.Roster(roster.read(options.roster)) if options.roster else None
    limits = Limits(options.seconds, options.memory)
    besides = not_theirs(options)
    # So that no process is left running, also where a shell has Ctrl-C ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        handed = find(options.folder, besides)
        rows = grade_all(handed, options.out, options.jobs, limits)
    except CannotGrade as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from what is in {options.out}")
    table.print_summary(rows)
    books = len({row["student"] for row in rows})
    print(f"{counted(books, 'notebook')}, in {options.out}")
    if people or options.totals or options.report:
        hand_on(handed, rows, people, options)
    return 0


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="python start.py grade")
    parser.add_argument(
        "folder", type=Path, help="or zip archive: holds the notebooks, at any depth"
    )
    parser.add_argument("--out", type=Path, default=Path("grades.csv"))
    parser.add_argument(
        "--roster", type=Path, metavar="CSV", help="the class: says who is missing"
    )
    parser.add_argument(
        "--totals", type=Path, metavar="CSV", help="a row for each student"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="totals, who is missing, commonest mistakes, equal answers, feedback",
    )
    parser.add_argument(
        "--resubmissions",
        choices=[standings.LAST, standings.BEST],
        default=standings.LAST,
        help="which notebook of a student counts (%(default)s)",
    )
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
    if options.report and options.report.resolve() == options.folder.resolve():
        parser.error("--report needs a folder of its own")
    return options


def not_theirs(options) -> set[Path]:
    """What this command writes, and the roster: no student's work, wherever it is."""
    written = {options.out, table.reports_beside(options.out), options.roster}
    written |= {options.totals, options.report}
    found = {path.resolve() for path in written if path}
    return found - set(options.folder.resolve().parents)  # --report .


# --- grading --------------------------------------------------------------------------


def grade_folder(
    folder: Path, out: Path, jobs: int = 1, limits: Limits | None = None
) -> list[dict]:
    """Grade what is new or changed in `folder`, `jobs` notebooks at a time; all rows,
    which are also in `out`. All values are texts."""
    besides = {out.resolve(), table.reports_beside(out).resolve()}
    return grade_all(find(folder, besides), out, jobs, limits)


def grade_all(
    handed: list[Handed], out: Path, jobs: int = 1, limits: Limits | None = None
) -> list[dict]:
    """The same, of the files that were found."""
    found = {one.name: one for one in handed if not one.why_not}
    marks = {name: mark_of(one) for name, one in found.items()}
    rows = table.rows_to_keep(out, marks)
    table.write_rows(out, rows)
    graded = {row["student"] for row in rows}
    waiting = [name for name in found if name not in graded]
    tqdm.monitor_interval = 0  # no thread of its own: threads and forks do not mix
    often = 0.2 if sys.stderr.isatty() else 20
    bar = tqdm(total=len(waiting), unit=" notebooks", mininterval=often)
    asked = (submission(found[name]) for name in waiting)
    beside = table.reports_beside(out)
    with (
        bar,
        out.open("a", encoding="utf-8", newline="") as file,
        beside.open("a", encoding="utf-8") as said,
    ):
        for job in each_once(asked, jobs, limits):
            new = table.rows_of(job, marks[job.name])
            said.write(table.reports_line(job, marks[job.name]))
            said.flush()
            file.write(table.as_csv(new))  # all rows of a notebook at once
            file.flush()
            rows += new
            bar.update()
    order = {name: n for n, name in enumerate(found)}
    rows.sort(key=lambda row: order[row["student"]])  # stable: exercises keep theirs
    table.write_rows(out, rows)
    table.keep_reports(beside, {(row["file"], row["lesson"]) for row in rows})
    for one in handed:
        if one.why_not:
            print(table.on_one_line(f"left out: {one.name}: {one.why_not}"))
    return rows


def each_once(asked, jobs: int, limits: Limits | None):
    """Yield each job when it is graded. One with the same cells as an earlier one waits
    for that, and gets its results."""
    twins, done = {}, {}

    def first_ones():
        for job in asked:
            same = (job.lesson, _cells(job.text)) if job.left() else job.name
            if same not in twins:
                twins[same] = []
                done[job.name] = same
                yield job
            elif isinstance(twins[same], dict):  # its results
                job.results = dict(twins[same])
                yield job
            else:
                twins[same].append(job)

    for job in grade(first_ones(), jobs, limits):
        yield job
        same = done.get(job.name)
        if same is not None:
            waiting, twins[same] = twins[same], job.results
            for twin in waiting:
                twin.results = dict(job.results)
                yield twin


def _cells(text: str) -> str:
    """A digest of what matters to the checks: what stands in the cells, their tags."""
    broken = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    with contextlib.suppress(*broken):
        book = json.loads(text)
        cells = [
            (
                x["cell_type"],
                x.get("id"),
                "".join(x["source"]),
                x["metadata"].get("tags"),
            )
            for x in book["cells"]
        ]
        text = json.dumps([book.get("nbformat"), cells])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
    return Job(handed.name, results={"": Result(table.NOT_GRADED, problem)})


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


# --- what is handed on ----------------------------------------------------------------


def hand_on(handed: list[Handed], rows: list[dict], people, options):
    """Write the totals and the report, and say who is missing."""
    whose = owners([one.name for one in handed])
    found = standings.students(handed, whose, rows, people, options.resubmissions)
    columns, totals = standings.totals(found, rows, bool(people))
    places = [options.totals, options.report and options.report / "totals.csv"]
    for place in filter(None, places):
        table.write_rows(place, totals, columns)
    if options.report:
        files = {one.name: one for one in handed}
        said = table.read_reports(table.reports_beside(options.out))

        def text_of(path):
            return which.text_of(files[path].read())

        reports.write(options.report, found, rows, said, handed, whose, text_of)
    print(", ".join([counted(len(found), "student"), *map(str, filter(None, places))]))
    for row in standings.missing(found, rows):
        told = f"missing: {row['student']} {row['id']}".rstrip()
        print(table.on_one_line(f"{told}: {row['lesson']}: {row['why']}"))


if __name__ == "__main__":
    sys.exit(main())
