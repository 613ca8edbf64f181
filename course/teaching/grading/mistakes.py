"""The commonest mistakes of a class: the sentences that students were told, counted."""

import re
from collections import Counter

from course.checks.explain import DONE, TO_DO, WRONG
from course.teaching.grade_process import points_of
from course.teaching.grading import standings
from course.teaching.grading.standings import by_path, counting, lessons_of

MOST = 10  # for each exercise
COLUMNS = ["lesson", "exercise", "students", "of", "sentence"]
# A failing sentence may end with the student's own line, and quote an address.
_PLACE = re.compile(r" at line \d+ of .*$")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_CELL = re.compile(r"\S+\.ipynb\[cell \d+\](, line \d+)?: ")


def sentence(said: str) -> str:
    """What two students have in common who made the same mistake."""
    if standings.BROKEN in said:
        return standings.CANNOT_BE_READ
    return _ADDRESS.sub("", _CELL.sub("", _PLACE.sub("", said))).strip()


def counted_rows(found, rows: list[dict]) -> list[dict]:
    """The rows of the notebooks that count, one a student and lesson."""
    graded = by_path(rows)
    paths = [counting(x, lesson) for x in found for lesson in lessons_of(rows)]
    return [row for path in paths if path for row in graded[path]]


def states(rows: list[dict], lesson: str) -> dict[str, Counter]:
    """{exercise: how many students are in each state}, in the lesson's order."""
    made = {name: Counter({DONE: 0, WRONG: 0, TO_DO: 0}) for name in points_of(lesson)}
    for row in rows:
        if row["lesson"] == lesson and row["exercise"] in made:
            made[row["exercise"]][row["state"]] += 1
    return made


def commonest(rows: list[dict], lesson: str, exercise: str) -> list[tuple[str, int]]:
    """(sentence, how many students were told it first), the commonest first."""
    told = Counter(
        sentence(row["said"])
        for row in rows
        if (row["lesson"], row["exercise"], row["state"]) == (lesson, exercise, WRONG)
    )
    return sorted(told.items(), key=lambda x: (-x[1], x[0]))[:MOST]


def as_rows(rows: list[dict]) -> list[dict]:
    """The table, for all lessons."""
    made = []
    for lesson in lessons_of(rows):
        for exercise, state in states(rows, lesson).items():
            for text, number in commonest(rows, lesson, exercise):
                values = (lesson, exercise, number, sum(state.values()), text)
                made.append(dict(zip(COLUMNS, values, strict=True)))
    return made
