"""What a lesson's notebooks hold, read as plain JSON: at once, and nothing is run.

The exercises of a lesson, their cards and stubs come from the reference in solutions/;
what the learner wrote comes from the saved notebook in lessons/, or in the folder there
of another language (see course.saved.homes).
"""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from course.paths import SOLUTIONS, lesson_names, shown
from course.saved import languages

STUB = 'raise NotImplementedError("to be written by you")'
STAMP = "token_by_token"
GO_ON = "raises-exception"  # Jupyter's tag: Run All goes on after an error here
_ANSWER = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.M | re.S)


class Unreadable(ValueError):
    """The file is not there or is no notebook. The message is for the learner."""


class Unknown(LookupError):
    """There is no such lesson or exercise. The message is for the learner."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, as the course gives it."""

    lesson: str  # "04_top_k"
    number: str  # "04.2"
    name: str
    section: str  # the heading above it
    hints: tuple[str, ...]
    stub: str  # what its cell holds at first
    answer: str  # ours


# --- notebooks ------------------------------------------------------------------------


def read(path: Path) -> dict:
    """The notebook at `path`. Raises Unreadable."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        for cell in data["cells"]:
            source_of(cell)
            tags_of(cell)
        return data
    except FileNotFoundError:
        raise Unreadable(f"there is no notebook {shown(path)}") from None
    except OSError as error:
        raise Unreadable(f"{shown(path)} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Unreadable(f"{shown(path)} is not a valid notebook") from None


def as_text(book: dict) -> str:
    """The notebook as Jupyter and the build write it."""
    options = {"indent": 1, "sort_keys": True, "ensure_ascii": False}
    return json.dumps(book, separators=(",", ": "), **options) + "\n"


def write(path: Path, text: str):
    """Write whole or not at all."""
    part = write_beside(path, text)
    try:
        os.replace(part, path)
    except BaseException:
        part.unlink()
        raise


def write_beside(path: Path, text: str) -> Path:
    """A new file in the folder of `path`, to be moved there once all is well."""
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(part, 0o644)
    except BaseException:
        os.unlink(part)
        raise
    return Path(part)


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def tags_of(cell: dict) -> set[str]:
    found = cell.get("metadata", {}).get("tags") or ()
    return {tag for tag in found if isinstance(tag, str)}


def defines(cell: dict, name: str) -> bool:
    """Whether a cell holds the exercise `name`; it need not be valid Python."""
    if cell["cell_type"] != "code":
        return False
    pattern = rf"^(?:(?:async +)?def|class)\s+{name}\b|^{name} *="
    return bool(re.search(pattern, source_of(cell), re.MULTILINE))


def cell_of(book: dict, exercise: Exercise) -> int | None:
    """The place of the exercise's cell in a notebook: by its id, else by its tag, else
    by what it defines; None where there is none."""
    cells = list(enumerate(book["cells"]))
    by_id = [
        n
        for n, c in cells
        if c.get("id") == f"{exercise.lesson[:2]}-exercise-{exercise.name}"
    ]
    holding = [n for n, c in cells if defines(c, exercise.name)]
    tagged = [n for n in holding if "exercise" in tags_of(book["cells"][n])]
    return next(iter(by_id or tagged or holding), None)


# --- the course's side ----------------------------------------------------------------


def as_built(lesson: str, language: str = "") -> dict:
    """The learner's notebook as it came, made from the reference: the same bytes as the
    build writes (tests/learner/test_reset.py)."""
    book = with_stubs(read(SOLUTIONS / f"{lesson}.ipynb"))
    if language:
        languages.translate(book, lesson, language)
    for cell in book["cells"]:
        cell["source"] = source_of(cell).splitlines(keepends=True)
    stamp = book["metadata"][STAMP]
    del stamp["content"]
    if language:
        stamp["language"] = language
        stamp["source"] = languages.digest(stamp["source"], lesson, language)
    plain = json.dumps(book, sort_keys=True)
    stamp["content"] = hashlib.sha256(plain.encode()).hexdigest()
    return book


def with_stubs(book: dict) -> dict:
    """The learner's notebook, made in place of the reference: stubs where the answers
    were (as nbgrader makes them), no outputs.

    From the first exercise on its code cells carry the tag at which Jupyter goes on
    after an error, so that Run All reaches all that does not need what is not written.
    """
    started = False
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["source"] = stub_of(source_of(cell))
        cell["outputs"], cell["execution_count"] = [], None
        started = started or "exercise" in tags_of(cell)
        if started:
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), GO_ON]
    return book


def stub_of(source: str) -> str:
    return _ANSWER.sub(rf"\1{STUB}", source)


def answer_of(source: str) -> str:
    lines = source.splitlines()
    marks = ("### BEGIN SOLUTION", "### END SOLUTION")
    return "\n".join(line for line in lines if line.strip() not in marks)


@lru_cache(maxsize=64)
def exercises(lesson: str, language: str = "") -> tuple[Exercise, ...]:
    """The exercises of a lesson, in the order of its notebook. language: of their hints
    and sections."""
    found, section, before = [], "", None
    book = read(SOLUTIONS / f"{lesson}.ipynb")
    if language:
        languages.translate(book, lesson, language)
    for cell in book["cells"]:
        source = source_of(cell)
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^## (.+)$", source, re.MULTILINE)
            section = headings[-1] if headings else section
        elif "exercise" in tags_of(cell):
            name = cell["id"].split("-exercise-")[-1]
            number = f"{lesson[:2]}.{len(found) + 1}"
            hints = _hints(source_of(before)) if before else ()
            stub, answer = stub_of(source), answer_of(source)
            found.append(Exercise(lesson, number, name, section, hints, stub, answer))
        before = cell
    return tuple(found)


def _hints(card: str) -> tuple[str, ...]:
    pattern = r"<details><summary>[^<]*</summary>(.*?)</details>"
    return tuple(_plain(x) for x in re.findall(pattern, card, re.DOTALL))


def _plain(hint: str) -> str:
    """A hint without its HTML, as one reads it in a terminal."""
    import html

    text = re.sub(r"</?code>", "`", hint)
    text = html.unescape(re.sub(r"</?(?:em|b|i|strong|p|sub|sup|br)\b[^>]*>", "", text))
    return text.strip()


# --- what was asked for ---------------------------------------------------------------


def lesson_called(word: str) -> str | None:
    """The lesson that "4", "04", "top_k", "04_top_k" or a path to it names. Not that of
    a copy: see course.saved.asked."""
    stem = Path(word).name.removesuffix(".ipynb")
    for lesson in lesson_names():
        number, topic = lesson.split("_", 1)
        if stem in (lesson, number, number.lstrip("0"), topic):
            return lesson
    return None


def exercise_called(word: str) -> Exercise:
    """The exercise of this name or number ("kept_mass", "04.2"). Raises Unknown."""
    everything = [x for lesson in lesson_names() for x in exercises(lesson)]
    for exercise in everything:
        if word in (exercise.name, exercise.number):
            return exercise
    close = near(word, [x.name for x in everything])
    raise Unknown(f"There is no exercise '{word}'.{close}")


def near(word: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""
