"""All that a teacher hands on, in one folder: `--report FOLDER`.

totals.csv       a row for each student, with the platform's number
missing.csv      who handed in nothing that could be graded, and why
not_graded.csv   every file that was not graded, and why
mistakes.csv     the ten commonest sentences for each exercise, counted
mistakes/        the same as figures, one a slide
equal.csv, .html answers that are the same but for names and comments
feedback/, .zip  a page for each student, under a name that the platform knows
"""

import re
import zipfile
from pathlib import Path

from course.teaching.grading import equals, mistakes, pages, standings
from course.teaching.grading.standings import Student, counting
from course.teaching.grading.table import NOT_GRADED, write_rows, write_whole

MISSING = ["student", "id", "lesson", "why"]


def write(folder: Path, found: list[Student], rows, reports, handed, owners, text_of):
    """found: the students; rows: the table; reports: as table.read_reports; handed: the
    files; owners: whose each is; text_of(path): a notebook's text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "missing.csv", standings.missing(found, rows), MISSING)
    write_rows(folder / "not_graded.csv", not_graded(handed, rows), ["file", "why"])
    write_mistakes(folder, mistakes.counted_rows(found, rows))
    equal = equals.groups(found, rows, text_of)
    write_rows(folder / "equal.csv", equals.as_rows(equal), equals.COLUMNS)
    write_whole(folder / "equal.html", pages.equal_answers(equal))
    write_feedback(folder, feedback(found, rows, reports, owners))


def not_graded(handed, rows) -> list[dict]:
    made = [{"file": x.name, "why": x.why_not} for x in handed if x.why_not]
    for path, mine in standings.by_path(rows).items():
        if mine[0]["state"] == NOT_GRADED:
            made.append({"file": path, "why": mine[0]["said"]})
        elif standings.broken(mine):
            made.append({"file": path, "why": standings.CANNOT_BE_READ})
    return sorted(made, key=lambda row: row["file"])


def write_mistakes(folder: Path, rows: list[dict]):
    from course.teaching.grading import pictures  # matplotlib takes its time

    write_rows(folder / "mistakes.csv", mistakes.as_rows(rows), mistakes.COLUMNS)
    figures = folder / "mistakes"
    figures.mkdir(exist_ok=True)
    made = {
        path
        for lesson in standings.lessons_of(rows)
        for path in pictures.write(rows, lesson, figures)
    }
    for old in set(figures.glob("[0-9][0-9]_*.png")) - made:
        old.unlink()


def feedback(found, rows, reports, owners) -> dict[str, str]:
    """{file name: page}: one for each student and lesson, and one of what was not
    graded where a lesson is missing."""
    graded, made, lessons = standings.by_path(rows), {}, standings.lessons_of(rows)
    for student in found:
        for lesson in student.books:
            path = counting(student, lesson)
            mine = graded[path]
            said = reports.get((mine[0]["file"], lesson), {})
            text = pages.feedback(student.name, path, mine, said)
            made[_free(f"{_start(owners[path])}feedback_{lesson}", made)] = text
        if student.other and standings.lacks(student, lessons):
            owner = owners[next(iter(student.other))]
            text = pages.not_graded(student.name, student.other)
            made[_free(f"{_start(owner)}feedback", made)] = text
    return made


def _start(owner) -> str:
    return owner.prefix or f"{owner.name}_"


def _free(name: str, taken) -> str:
    """A name of a file that no other has, on any system."""
    name = re.sub(r"[^\w .()+-]", "_", name)
    numbered = [f"{name}.html", *(f"{name}_{n}.html" for n in range(2, len(taken) + 3))]
    return next(x for x in numbered if x not in taken)


def write_feedback(folder: Path, texts: dict[str, str]):
    place = folder / "feedback"
    place.mkdir(exist_ok=True)
    for old in place.glob("*feedback*.html"):
        if old.name not in texts:
            old.unlink()
    packed = folder / "feedback.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            write_whole(place / name, text)
            archive.writestr(name, text)
