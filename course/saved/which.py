"""Which lesson a notebook is: by its name, or by the exercises in it."""

import contextlib
import json
import re
from pathlib import Path

from course.paths import exercise_names, lesson_names


def text_of(data: bytes) -> str:
    """The text of a notebook's file, whatever mark an editor has put before it."""
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def lesson_at(path: Path) -> str:
    """The lesson of the notebook at `path`, also where it is a copy of another name;
    "" where it is none."""
    path = Path(path)
    if named := named_in(path.stem):
        return named
    with contextlib.suppress(OSError):
        return lesson_of(path.name, text_of(path.read_bytes()))
    return ""


def lesson_of(name: str, text: str) -> str:
    """The lesson that a notebook's file name holds; else the one most of whose
    exercises it defines; else the one in the name of a folder; else ""."""
    folders, _, file = name.rpartition("/")
    return named_in(file) or _defined_in(text) or named_in(folders)


def named_in(name: str) -> str:
    """The lesson whose name stands in `name`; "" where none does."""
    words = f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_"
    found = [lesson for lesson in lesson_names() if f"_{lesson}_" in words]
    return max(found, key=len, default="")


def _defined_in(text: str) -> str:
    try:
        sources = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    defined = set(re.findall(r"^(?:def|class) (\w+)", sources, re.MULTILINE))
    found = {x: len(defined & set(exercise_names(x))) for x in lesson_names()}
    best = max(found, key=found.get)
    return best if found[best] else ""
