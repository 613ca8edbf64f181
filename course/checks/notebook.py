"""Read a saved notebook: which of its cells hold the answers.

Cells are known by their tags, and where an editor has lost these, by their ids and by
what they define.
"""

import contextlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from course.checks import cells
from course.kit.quickly import nbformat
from course.paths import COMMAND, SOLUTIONS, exercise_names, shown
from course.saved.which import text_of


class NotebookProblem(AssertionError):
    """The notebook itself cannot be used. The message is for the learner."""


# --- reading --------------------------------------------------------------------------


def read(path: Path):
    """A notebook as nbformat v4. Raises NotebookProblem when it is not one."""
    path = Path(path)
    try:
        text = text_of(path.read_bytes())
    except FileNotFoundError:
        raise NotebookProblem(f"there is no notebook {shown(path)}") from None
    try:
        return parse(text)
    except Exception as error:
        reason = str(error).splitlines()[0][:150] if str(error) else repr(error)
        raise NotebookProblem(
            f"{shown(path)} is not a valid notebook ({reason}). Was it saved halfway, "
            "or edited as text? Save it again from Jupyter, or get the lesson back as "
            f"it came: `{COMMAND} reset {path.stem[:2]}`, which keeps a backup."
        ) from None


def parse(text: str):
    """A notebook's text as nbformat v4, as far as it can be read. Raises, in nbformat's
    words, where it cannot."""
    text = text.removeprefix("\ufeff")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        text = json.dumps(_whole(json.loads(text)))
    try:
        book = nbformat.reads(text, as_version=4)
        if all(isinstance(c.source + c.cell_type, str) for c in book.cells):
            [dict(cell.metadata) for cell in book.cells]
            return book
    except Exception:
        # What is wrong may stand in an output or in metadata, which nobody needs.
        with contextlib.suppress(Exception):
            return _bare(json.loads(text))
        raise
    return _bare(json.loads(text))


def _whole(value):
    """JSON without half characters, as a cut through an emoji leaves them: no file can
    hold them, and Python will not compile them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_whole(x) for x in value]
    if isinstance(value, dict):
        return {_whole(k): _whole(v) for k, v in value.items()}
    return value


def _bare(data: dict):
    """The notebook with nothing but the sources and the tags of its cells, as far as
    they can be read. Raises where none can."""
    book = nbformat.v4.new_notebook()
    for cell in data["cells"]:
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            code = cell["cell_type"] == "code"
            make = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
            source, about = cell["source"], cell.get("metadata")
            tagged = about.get("tags") if isinstance(about, dict) else None
            kept = [tag for tag in tagged or () if isinstance(tag, str)]
            named = {"id": cell["id"]} if isinstance(cell.get("id"), str) else {}
            book.cells.append(make("".join(source), metadata={"tags": kept}, **named))
    if not book.cells:
        raise ValueError("none of its cells can be read")
    return book


def tags(cell) -> set:
    found = cell.metadata.get("tags", ())
    return {tag for tag in found if isinstance(tag, str)} if found else set()


def defined_names(source: str) -> list[str]:
    """Names that a cell defines at top level; none when it does not parse."""
    return cells.bound_names(source)


# --- which cells count? ---------------------------------------------------------------


@dataclass
class Plan:
    """The cells of a notebook that a check needs, by their places."""

    setup: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)  # set-up and exercises
    answer: dict[str, int] = field(default_factory=dict)  # exercise -> its cell
    several: dict[str, list[int]] = field(default_factory=dict)  # all that define it
    setup_is_lost: bool = False


@lru_cache(maxsize=64)
def ours_of(lesson: str) -> list[tuple[str, frozenset, str]]:
    """(id, tags, source) of each code cell of our notebook."""
    path = SOLUTIONS / f"{lesson}.ipynb"
    if not path.exists():  # a new lesson, not built yet
        return []
    book = _bare(json.loads(path.read_text(encoding="utf-8")))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    return [(cell.id, frozenset(tags(cell)), cell.source) for cell in code]


def plan(book, lesson: str = "") -> Plan:
    """Which cells of a notebook are set-up, and which hold the answers to the lesson's
    exercises: the tagged one; where that is still a stub, another that defines it."""
    made, exercise_cells, definitions = Plan(), set(), {}
    ours = ours_of(lesson) if lesson else []
    known = {name: kinds for name, kinds, _ in ours}
    kinds_of = {source: kinds for _, kinds, source in ours}
    names = exercise_names(lesson)
    for n, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        own = tags(cell) & {"setup", "exercise"}
        first = known.get(cell.get("id"), kinds_of.get(cell.source))
        kinds = own or (first or set()) & {"setup", "exercise"}
        if "setup" in kinds:
            made.setup.append(n)
        elif "exercise" in kinds:
            exercise_cells.add(n)
        elif first is not None:
            continue  # a demo or a check of ours
        for name in set(names) & set(bound_or_meant(cell.source)):
            definitions.setdefault(name, []).append(n)
    for name, places in definitions.items():
        written = [n for n in places if not is_stub(book.cells[n].source, name)]
        # Run All checks what the last cell before the check has defined.
        before = [n for n in written if n <= _place_of_check(book, name)]
        tagged = [n for n in places if n in exercise_cells] or places
        made.answer[name] = (before or written or tagged)[-1]
        made.several[name] = written
    made.setup_is_lost = bool(lesson) and not made.setup
    made.run = sorted({*made.setup, *exercise_cells, *made.answer.values()})
    return made


def bound_or_meant(source: str) -> list[str]:
    """The names that a cell defines, or would if it were valid Python."""
    return defined_names(source) or re.findall(
        r"^(?:async\s+def|def|class)\s+(\w+)", source, re.MULTILINE
    )


def _place_of_check(book, name: str) -> float:
    call = re.compile(rf"^check\({name}\)", re.MULTILINE)
    for n, cell in enumerate(book.cells):
        if cell.cell_type == "code" and call.search(cell.source):
            return n
    return float("inf")


def is_stub(source: str, name: str = "") -> bool:
    """Whether a cell's answer is not written yet, or is ours, brought by `carry`."""
    return "raise NotImplementedError" in source or name in _carried(source)


def _carried(source: str) -> set[str]:
    try:
        return {cells.carries(x) for x in cells.tree(source).body} - {""}
    except SyntaxError:
        return set()


def cell_shown(book, n: int) -> str:
    """A cell, so that a reader finds it: its place and its first line."""
    lines = [x.strip() for x in book.cells[n].source.splitlines() if x.strip()]
    first = lines[0] if lines else ""
    return f"cell {n} (`{first[:50]}{' ...' if len(first) > 50 else ''}`)"
