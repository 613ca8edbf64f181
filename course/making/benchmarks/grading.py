"""How long `python start.py grade` takes for a class, and how much memory.

    python -m course.making.benchmarks.grading                   300 of each lesson
    python -m course.making.benchmarks.grading --students 30 04 09

No two of the made-up notebooks are the same, so none is graded for another one. Of each
ten, six have all our answers, two the first half of them, and in two one function
returns nothing: a right answer takes longest, since all of its checks run to the end.
Feedback, figures and the other files of `--report` are written, too.

The memory is that of all processes together at its highest, shared pages counted once;
it is read from /proc, on Linux only.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from course.making.benchmarks.machine import described, load_average, processors
from course.paths import ROOT, lesson_names
from course.saved import books


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lessons", nargs="*", help="04, 09, ...; none means all")
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=processors())
    options = parser.parse_args(arguments)
    print(described(1))
    print(f"{options.students} notebooks of each lesson, {options.jobs} at a time")
    print(f"{'lesson':32} {'minutes':>8} {'CPU min':>8} {'GB':>6} {'load':>6}  done")
    for lesson in lesson_names():
        if not options.lessons or lesson[:2] in options.lessons:
            measure(lesson, options.students, options.jobs)
    return 0


def measure(lesson: str, students: int, jobs: int):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(students):
            path = folder / "in" / f"student {number}_{lesson}.ipynb"
            path.write_text(notebook(lesson, number), encoding="utf-8")
        out = ["--out", str(folder / "g.csv"), "--report", str(folder / "report")]
        before, began, load = cpu_seconds(), time.monotonic(), load_average()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "course", "grade", str(folder / "in"), *out),
                *("--jobs", str(jobs)),
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        most = 0.0
        while process.poll() is None:
            most = max(most, memory_gb(process.pid))
            time.sleep(0.5)
        minutes = (time.monotonic() - began) / 60
        text = (folder / "g.csv").read_text(encoding="utf-8-sig")
        done, rows = text.count(",done,"), len(text.splitlines()) - 1
    cpu = (cpu_seconds() - before) / 60
    told = f"{done}/{rows}" if process.returncode == 0 else "FAILED"
    print(
        f"{lesson:32} {minutes:8.2f} {cpu:8.2f} {most:6.2f} {load:6.1f}  {told}",
        flush=True,
    )


def notebook(lesson: str, number: int) -> str:
    """Student `number`'s work."""
    book = books.as_built(lesson)
    answers = {x.name: x.answer for x in books.exercises(lesson)}
    names, kind = list(answers), number % 10
    if 6 <= kind < 8:
        answers = {name: answers[name] for name in names[: len(names) // 2]}
    for cell in book["cells"]:
        name = cell["id"].split("-exercise-")[-1]
        if name in answers:
            cell["source"] = f"# student {number}\n{answers[name]}"
            if kind >= 8 and name == names[number // 10 % len(names)]:
                cell["source"] = without_returns(cell["source"])
    return books.as_text(book)


def without_returns(source: str) -> str:
    return re.sub(r"^( *)return .*$", r"\1return None", source, flags=re.MULTILINE)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_gb(root: int) -> float:
    """Of a process and all that it has started, in proportion to what they share."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children.setdefault(parent, []).append(int(path.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss: +(\d+)", text, re.MULTILINE)[1])
    return total / 1e6


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
