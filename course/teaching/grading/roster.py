"""The list of the class: `--roster names.csv`, and who of it an owner is.

Read are Moodle's grading worksheet and list of participants, Canvas's gradebook, and
any table with a column for the name (or two) and, if there is one, for a number. A file
without a head is a list of names.
"""

import csv
import io
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from course.saved.which import text_of
from course.teaching.grading.owners import Owner, plain

# What a column is called, in the order in which it is preferred.
WHOLE = ("full name", "name", "student", "student name", "姓名")
FIRST = ("first name", "firstname", "given name", "forename")
LAST = ("last name", "lastname", "surname", "family name")
NUMBERS = (
    *("identifier", "id", "id number", "student id", "student number", "number"),
    *("sis user id", "matriculation number", "学号", "sis login id", "login id"),
    *("username", "user name", "login", "email address", "email", "e-mail"),
)
HIDDEN = "Participant"  # what Moodle writes before a number, or for a hidden name


@dataclass(frozen=True)
class Person:
    """One of the class. number: as the platform writes it, "" if the list has none;
    numbers: all by which a file may name this person."""

    name: str
    number: str = ""
    numbers: frozenset = frozenset()
    names: frozenset = frozenset()


def read(path: Path) -> list[Person]:
    """All persons of the list. Ends the program with a sentence where it is none."""
    try:
        text = _text(path.read_bytes())
    except OSError as error:
        sys.exit(f"the roster {path} cannot be read: {error.strerror}")
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [row for line in cells if any(row := [x.strip() for x in line])]
    if not rows:
        sys.exit(f"the roster {path} is empty")
    named = [" ".join(x.casefold().split()) for x in rows[0]]
    whole, first, last = (_place(named, x) for x in (WHOLE, FIRST, LAST))
    numbers = [n for x in NUMBERS for n, name in enumerate(named) if name == x]
    if whole is None and (first is None or last is None) and numbers:
        whole = numbers[0]  # the platform hides the names
    if whole is None and (first is None or last is None):
        if len(rows[0]) > 1:
            sys.exit(
                f"the roster {path} has no column for names. Its first row should name "
                f"one of these: {', '.join(WHOLE)}; or two: {FIRST[0]}, {LAST[0]}"
            )
        return [_person((row[0],), []) for row in rows]
    people = []
    for row in rows[1:]:
        row += [""] * (len(named) - len(row))
        parts = (row[whole],) if whole is not None else (row[first], row[last])
        if any(parts) and parts[0] != "Points Possible":  # Canvas's second row
            people.append(_person(parts, [row[n] for n in numbers if row[n]]))
    return people


def _text(data: bytes) -> str:
    """As a spreadsheet may save it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return text_of(data) if marked else data.decode("cp1252", "replace")


def _place(named: list[str], known) -> int | None:
    return next((named.index(x) for x in known if x in named), None)


def _person(parts: tuple, numbers: list[str]) -> Person:
    """parts: the whole name, or the first and the last one."""
    names = {" ".join(parts), " ".join(parts[::-1])}
    if len(parts) == 1 and "," in parts[0]:  # Lovelace, Ada
        names.add(" ".join(parts[0].split(",", 1)[::-1]))
    elif len(parts) == 1 and " " in parts[0]:  # Canvas puts the last name first
        words = parts[0].split()
        names |= {" ".join(words[n:] + words[:n]) for n in range(1, len(words))}
    known = {x.removeprefix(HIDDEN).strip() for x in numbers}
    known |= {x.partition("@")[0] for x in known}
    return Person(
        " ".join(parts),
        numbers[0] if numbers else "",
        frozenset(map(plain, known)),
        frozenset(map(plain, names)),
    )


class Roster:
    """Finds the person that a file belongs to."""

    def __init__(self, people: list[Person]):
        self.people = people
        self.by_name, self.by_number = defaultdict(list), defaultdict(list)
        for person in people:
            for name in person.names:
                self.by_name[name].append(person)
            for number in person.numbers:
                self.by_number[number].append(person)

    def person_of(self, owner: Owner) -> Person | None:
        """By the name; where two have it, or nobody, by the number. None where that
        leaves no one, or several."""
        named = self.by_name[plain(owner.name)]
        numbered = self.by_number[plain(owner.number or owner.name)]
        if len(named) == 1:
            return named[0]
        if named:
            numbered = [x for x in numbered if x in named]
        return numbered[0] if len(numbered) == 1 else None
