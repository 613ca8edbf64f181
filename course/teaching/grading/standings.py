"""Which notebook of a student counts, the totals, and who is missing."""

import contextlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from course.teaching.grade_process import points_of
from course.teaching.grading.owners import Owner
from course.teaching.grading.roster import Person, Roster
from course.teaching.grading.table import NOT_GRADED

LAST, BEST = "last", "best"
BROKEN = ".ipynb is not a valid notebook"  # as course.checks.notebook says it
CANNOT_BE_READ = "the notebook cannot be read, so all its exercises are wrong"
MINUTE = 60  # all files that a platform packs at once are as old as each other


@dataclass
class Student:
    """person: on the list of the class, or None; owner: as the files name them, None
    for a person without a file; books: {lesson: paths}, the one that counts at the end;
    other: {path: why it was not graded}; numbers: {lesson: the platform's, of the
    files}."""

    person: Person | None = None
    owner: Owner | None = None
    books: dict[str, list[str]] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, set[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.person.name if self.person else self.owner.name

    @property
    def number(self) -> str:
        if self.person and self.person.number:
            return self.person.number
        return self.owner.number if self.owner else ""


def labels(found: list[Student]) -> list[str]:
    """A name for each student that no other has: with the number where names are the
    same, or hidden."""
    names = Counter(x.name for x in found)
    return [
        f"{x.name} ({x.number})" if names[x.name] > 1 and x.number else x.name
        for x in found
    ]


def by_path(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each notebook."""
    found = defaultdict(list)
    for row in rows:
        found[row["student"]].append(row)
    return dict(found)


def points(rows: list[dict]) -> float:
    """The sum; a teacher may have written 0.5, or 0,5."""
    return sum(_number(row) for row in rows)


def _number(row: dict) -> float:
    with contextlib.suppress(ValueError):
        return float(row["points"].replace(",", "."))
    sys.exit(
        f"the points of {row['student']} for {row['exercise']} are no number: "
        f"{row['points']!r}"
    )


def broken(rows: list[dict]) -> bool:
    """Whether the rows of one notebook say that it cannot be read."""
    return any(BROKEN in row["said"] for row in rows)


def shown(number: float) -> str:
    return f"{number:g}"


def students(
    handed,
    owners: dict[str, Owner],
    rows: list[dict],
    roster: Roster | None,
    which=LAST,
) -> list[Student]:
    """All students: those of the list in its order, then all others.

    handed: what was found (submissions.Handed); rows: the table; which: LAST or BEST.
    """
    people = roster.people if roster else []
    found = {id(person): Student(person) for person in people}
    graded = by_path(rows)

    def student_of(name, made=True) -> Student | None:
        owner = owners[name]
        person = roster.person_of(owner) if roster else None
        key = id(person) if person else owner.key
        if made or owner.number:
            found.setdefault(key, Student())
        student = found.get(key)
        if student and not student.owner:
            student.owner = owner
        return student

    others = []
    for one in handed:
        mine = graded.get(one.name, [])
        if mine and mine[0]["state"] != NOT_GRADED:
            student, lesson = student_of(one.name), mine[0]["lesson"]
            student.books.setdefault(lesson, []).append(one.name)
            student.numbers.setdefault(lesson, set()).add(owners[one.name].number)
        else:
            others.append((one.name, mine[0]["said"] if mine else one.why_not))
    for name, why in others:
        if student := student_of(name, made=False):  # else a stray file, nobody's
            student.other[name] = why or "it was not graded"
    when = {one.name: one.when for one in handed}

    def late(path):
        owner = owners[path]
        return owner.file, when[path] // MINUTE, owner.copy, path

    def good(path):
        return points(graded[path]), late(path)

    for student in found.values():
        for books in student.books.values():
            books.sort(key=good if which == BEST else late)
    return list(found.values())


def lessons_of(rows: list[dict]) -> list[str]:
    return sorted({row["lesson"] for row in rows if row["lesson"]})


def counting(student: Student, lesson: str) -> str:
    """The path of the notebook that counts, "" if there is none."""
    return (student.books.get(lesson) or [""])[-1]


def totals(found: list[Student], rows: list[dict], roster: bool) -> tuple[list, list]:
    """(columns, a row for each student). A lesson of which a student has no notebook is
    left empty, and counts as 0 in the sum."""
    graded, lessons = by_path(rows), lessons_of(rows)
    of = sum(sum(points_of(x).values()) for x in lessons)
    made = []
    for student in found:
        each = {}
        for lesson in lessons:
            path = counting(student, lesson)
            each[lesson] = shown(points(graded[path])) if path else ""
        made.append(
            {
                "student": student.name,
                "id": student.number,
                **each,
                "points": shown(sum(float(x) for x in each.values() if x)),
                "of": str(of),
                "note": "; ".join(_notes(student, lessons, graded, roster)),
            }
        )
    return ["student", "id", *lessons, "points", "of", "note"], made


def _notes(student: Student, lessons: list[str], graded, roster: bool) -> list[str]:
    told = []
    if roster and student.person is None:
        told.append("not in the roster")
    for lesson in lessons:
        books = student.books.get(lesson, [])
        if len(books) > 1:
            others = ", ".join(books[:-1])
            told.append(f"{lesson}: counted {books[-1]}, not {others}")
        if len(numbers := sorted(student.numbers.get(lesson, set()) - {""})) > 1:
            told.append(f"{lesson}: several students of this name? {numbers}")
        if books and broken(graded[books[-1]]):
            told.append(f"{lesson}: {CANNOT_BE_READ}")
    return [*told, *_why(student, lessons)]


def lacks(student: Student, lessons: list[str]) -> bool:
    """Whether a student has no notebook of one of the lessons, or none at all."""
    return not student.books or not all(student.books.get(x) for x in lessons)


def _why(student: Student, lessons: list[str]) -> list[str]:
    """What of a student was not graded, if a lesson is missing."""
    if not lacks(student, lessons):
        return []
    if student.other:
        return [f"{path}: {why}" for path, why in student.other.items()]
    return [] if student.books else ["nothing was handed in"]


def missing(found: list[Student], rows: list[dict]) -> list[dict]:
    """A row for each student and lesson without a graded notebook."""
    made, lessons = [], lessons_of(rows)
    for student in found:
        for lesson in lessons:
            if not student.books.get(lesson):
                why = "; ".join(_why(student, lessons)) or "nothing was handed in"
                made.append(
                    {
                        "student": student.name,
                        "id": student.number,
                        "lesson": lesson,
                        "why": why,
                    }
                )
    return made
