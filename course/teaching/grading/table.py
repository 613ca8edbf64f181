"""The table of grades: a row for each notebook and exercise, all values texts.

Beside the CSV, in a file of its own, stand the whole reports that a student is to read:
they have many lines, and a spreadsheet none for them.
"""

import csv
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

from course.checks.explain import DONE, TO_DO, WRONG
from course.teaching.grade_process import Job, points_of

NOT_GRADED = "not graded"
COLUMNS = ["student", "lesson", "exercise", "state", "points", "of", "said", "file"]


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
            "said": on_one_line(result.said),
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


def as_csv(rows: list[dict], columns=COLUMNS, head: bool = False) -> str:
    """Rows as text; head: with the names of the columns above them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows({k: _to_cell(str(v)) for k, v in row.items()} for row in rows)
    return text.getvalue()


_FORMULA = tuple("=+-@'")


def _to_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, on one line, valid in UTF-8."""
    text = on_one_line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _from_cell(text: str) -> str:
    return text[1:] if text[:1] == "'" else text


def write_rows(out: Path, rows: list[dict], columns=COLUMNS):
    """The whole file, or nothing of it. It begins with the mark by which Excel knows
    UTF-8."""
    write_whole(out, as_csv(rows, columns, head=True), "utf-8-sig")


def write_whole(out: Path, text: str, encoding: str = "utf-8"):
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding=encoding, newline="") as file:
        file.write(text)
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


# --- the whole reports ----------------------------------------------------------------


def reports_beside(out: Path) -> Path:
    return out.with_suffix(".reports.jsonl")


def reports_line(job: Job, mark: str) -> str:
    """What is said of a notebook's exercises, on one line."""
    said = {name: result.report for name, result in job.results.items()}
    return json.dumps({"file": mark, "lesson": job.lesson, "said": said}) + "\n"


def keep_reports(path: Path, wanted: set[tuple[str, str]]):
    """Leave out what is said of notebooks that are no longer there."""
    lines = [
        json.dumps({"file": mark, "lesson": lesson, "said": said}) + "\n"
        for (mark, lesson), said in read_reports(path).items()
        if (mark, lesson) in wanted
    ]
    write_whole(path, "".join(lines))


def read_reports(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """{(mark, lesson): {exercise: report}}; a line that was cut off is no report."""
    found = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
                found[one["file"], one["lesson"]] = dict(one["said"])
            except (ValueError, LookupError, TypeError):
                continue
    return found
