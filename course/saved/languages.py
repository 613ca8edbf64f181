"""The prose of a lesson in another language: the same notebook, cell for cell, with its
text taken from a catalog, course/translations/zh_CN/NN_topic.po.

A message is what an editor changes at once: a heading, a paragraph, an item of a list,
a row of a table, a hint. How its lines are broken does not matter. Code, formulas and
what is not translated, or has changed since ("fuzzy"), stay as they are in the source.

So do the docstrings of the exercises, since they are code. But they promise what no
card says, an error or a shape: the card quotes them in its own language.
"""

import ast
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from course.paths import CODE, LANGUAGES
from course.saved import note

CATALOGS = CODE / "translations"
IN_CODE = {"zh_CN": "**代码里的英文说明**，意思是："}  # above a docstring in a card

_FENCE = re.compile(r" *(```|~~~)")
_MARK = re.compile(r" *(?:#{1,6} +|(?:[-*+]|\d+\.) +)?")  # of headings and of items
_ALONE = re.compile(r" *\||#{1,6} ")  # a line that no other goes on
_OPENS = re.compile(r" *(?:[-*+] |\d+\. |<details>)|" + _ALONE.pattern)
_WORDS = re.compile(r"[^\W\d_]")
_DOCUMENTED = (ast.FunctionDef, ast.ClassDef)
_RULE = re.compile(r"[ |:-]+$")  # below the head of a table


@dataclass(frozen=True)
class Piece:
    """Some lines of a cell. With `message`: they are `mark` and that text."""

    raw: str
    mark: str = ""
    message: str = ""


# --- catalogs -------------------------------------------------------------------------


def catalog_path(lesson: str, language: str) -> Path:
    return CATALOGS / language / f"{lesson}.po"


def languages_of(lesson: str) -> list[str]:
    """The languages in which a lesson's prose can be had, besides its own."""
    return [x for x in LANGUAGES if catalog_path(lesson, x).exists()]


def read_catalog(path: Path, language: str):
    """A babel catalog, fuzzy and obsolete messages included."""
    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        return read_po(file, locale=language)


@lru_cache(maxsize=64)
def _in_force(path: Path, language: str, stamp) -> dict[str, str]:
    catalog = read_catalog(path, language)
    return {x.id: x.string for x in catalog if x.id and x.string and not x.fuzzy}


def translations(lesson: str, language: str) -> dict[str, str]:
    """{message: its translation} of those that hold."""
    path = catalog_path(lesson, language)
    seen = path.stat()
    return _in_force(path, language, (seen.st_mtime_ns, seen.st_size))


def digest(source_digest: str, lesson: str, language: str) -> str:
    """Of what a notebook in another language is made from."""
    text = catalog_path(lesson, language).read_text(encoding="utf-8")
    return hashlib.sha256((source_digest + text).encode()).hexdigest()


# --- cells ----------------------------------------------------------------------------


def translate(book, lesson: str, language: str):
    """Put the translated prose into a notebook (plain JSON, or nbformat's), in place.
    Ids, tags, code and outputs stay as they are."""
    known, card = translations(lesson, language), None
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            plain = note.without(source)
            cell["source"] = deeper(in_language(plain, known), language)
            if plain != source:
                cell["source"] = note.below(cell["source"], language)
        elif card and "exercise" in cell["metadata"].get("tags", ()):
            card["source"] = with_quote(card["source"], quoted(source, known, language))
        card = cell if cell["cell_type"] == "markdown" else None
    return book


def in_language(source: str, known: dict[str, str]) -> str:
    """The text of a cell, as far as its messages are known."""
    lines = []
    for piece in pieces(source):
        text = known.get(piece.message) if piece.message else None
        lines.append(piece.raw if text is None else piece.mark + text)
    return "\n".join(lines)


def messages(source: str) -> list[str]:
    """What there is to translate in a cell, in order."""
    return [piece.message for piece in pieces(source) if piece.message]


def documented(source: str) -> list[tuple[str, str]]:
    """The docstrings of an exercise: (name, text), of the function or class and, under
    their own names, of a class's methods."""
    first = next(x for x in ast.parse(source).body if isinstance(x, _DOCUMENTED))
    inside = first.body if isinstance(first, ast.ClassDef) else []
    nodes = [x for x in (first, *inside) if isinstance(x, _DOCUMENTED)]
    return [(x.name, text) for x in nodes if (text := ast.get_docstring(x))]


def quoted(source: str, known: dict[str, str], language: str) -> str:
    """An exercise's docstrings as a quotation for its card; "" where nothing of them is
    translated."""
    texts = documented(source)
    if not any(message in known for _, text in texts for message in messages(text)):
        return ""
    parts = [IN_CODE[language]]
    for n, (name, text) in enumerate(texts):
        parts.append((f"`{name}` · " if n else "") + in_language(text, known))
    return "\n".join(f"> {line}".rstrip() for line in "\n\n".join(parts).split("\n"))


def with_quote(card: str, quote: str) -> str:
    """The text of a card with a quotation before its hints."""
    if not quote:
        return card
    body, hint, hints = card.partition("\n\n<details>")
    return f"{body}\n\n{quote}{hint}{hints}"


def pieces(source: str) -> list[Piece]:
    """A cell cut into messages and what lies between; the raw texts, joined by line
    ends, are the cell."""
    found, lines = [], source.split("\n")
    while lines:
        taken = _first(lines)
        found.append(_piece(lines[:taken]))
        del lines[:taken]
    return found


def _first(lines: list[str]) -> int:
    """How many lines the first piece has."""
    line = lines[0]
    if fence := _FENCE.match(line):
        return _through(1, lines, lambda x: x.strip() == fence[1])
    if line.startswith("$$"):
        return _through(0, [line[2:], *lines[1:]], lambda x: "$$" in x)
    if not line.strip() or _ALONE.match(line):
        return 1
    for n, later in enumerate(lines[1:], 1):
        if not later.strip() or _OPENS.match(later) or _FENCE.match(later):
            return n
        if later.startswith("$$"):
            return n
    return len(lines)


def _through(first: int, lines: list[str], ends) -> int:
    places = (n for n in range(first, len(lines)) if ends(lines[n]))
    return next(places, len(lines) - 1) + 1


def _piece(lines: list[str]) -> Piece:
    raw = "\n".join(lines)
    verbatim = _FENCE.match(raw) or raw.startswith("$$") or _RULE.match(raw)
    text = " ".join(line.strip() for line in lines)
    if verbatim or not _WORDS.search(re.sub(r"<[^>]*>", "", text)):
        return Piece(raw)
    mark = _MARK.match(lines[0])[0]
    return Piece(raw, mark, text.removeprefix(mark.strip()).strip())


def deeper(text: str, language: str) -> str:
    """A cell's text with its relative links as they are one folder further down. A
    lesson that is there in the language, too, is linked there."""

    def link(found):
        before, goal = found["before"], found["goal"]
        if before is None or re.match(r"[a-z][a-z0-9+.-]*:|[#/]", goal):
            return found[0]
        lesson = Path(goal.partition("#")[0]).stem
        near = "/" not in goal and language in languages_of(lesson)
        return before + goal if near else f"{before}../{goal}"

    code = r"^ *```.*?^ *```|`[^`\n]+`"
    places = r"(?P<before>\]\(|(?:src|href)=[\"'])(?P<goal>[^)\s\"']+)"
    return re.sub(rf"{code}|{places}", link, text, flags=re.DOTALL | re.MULTILINE)
