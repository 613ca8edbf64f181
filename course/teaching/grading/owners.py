"""Whose notebook a file is, by the name that a learning platform gave it.

    Moodle   Ada Lovelace_123456_assignsubmission_file_/04_top_k.ipynb
             Ada Lovelace_123456_assignsubmission_file_04_top_k.ipynb
    Canvas   lovelaceada_LATE_12345_67890_04_top_k-1.ipynb

From Moodle 4.1 on the folder has no underscore at its end; where names are hidden it
begins with `Participant`; a team's has the number of the team. Canvas writes
`anon_Ab1Cd` for the number of a hidden student; the second number is that of the file,
and a later one is larger. `-1` is what Canvas adds to a second file of the same name.

Elsewhere the student is the first folder, archive or file that has a name of its own:
`alice/04_top_k.ipynb`, `bob_04_top_k.ipynb`, `04_top_k/carol.zip`.
"""

import re
import unicodedata
from dataclasses import dataclass

from course.paths import lesson_names

_MOODLE = re.compile(
    r"(?P<name>[^_]+)(?:_(?P<id>\d+))?_assignsubmission_[a-z]+(?:_(?P<rest>.*))?$"
)
_CANVAS = re.compile(
    r"(?:(?!LATE_)(?P<name>[^\W_]\w*?)_)?(?:LATE_)?(?P<id>anon_[^\W_]+|\d+)_"
    r"(?P<file>\d{3,})_(?P<rest>.+)$"
)
_SUFFIX = re.compile(r"(\.(ipynb|json|txt|zip|py|pdf))+$", re.IGNORECASE)
_COPY = re.compile(r"(?:-(\d{1,2})| ?\((\d{1,2})\))$")
_OF_NOBODY = {"submitted", "submissions", "lessons", "notebooks", "homework"}


@dataclass(frozen=True)
class Owner:
    """name: of the student, as it stands there; number: the platform's for the student,
    "" where there is none; file: the platform's for the file; copy: the number that a
    platform or a browser has added to the file's name; prefix: what the platform put
    before the name of a file, by which it knows a feedback file again."""

    name: str
    number: str = ""
    file: int = 0
    copy: int = 0
    prefix: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two files of one student."""
        return ("", self.number) if self.number else (plain(self.name), "")


def plain(text: str) -> str:
    """Letters and digits alone, in small: what is left of a name on every platform."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if c.isalnum())


def owners(names: list[str]) -> dict[str, Owner]:
    """{path: whose it is} of all files that were handed in together."""
    found, others = {}, {}
    for path in names:
        parts = path.split("/")
        owner = next(filter(None, map(_of_platform, parts)), None)
        if owner is None:
            others[path] = parts
        else:
            found[path] = Owner(**{**vars(owner), "copy": _copy(parts[-1])})
    common = _common(list(others.values()))
    for path, parts in others.items():
        own = list(filter(None, map(_own_name, parts[common:])))
        name = own[0] if own else path
        found[path] = Owner(name, copy=_copy(parts[-1]))
    return found


def _of_platform(part: str) -> Owner | None:
    if known := _MOODLE.match(part):
        number = known["id"] or ""
        named = f"{known['name']}_{number}" if number else known["name"]
        prefix = f"{named}_assignsubmission_file_"
        return Owner(known["name"], number, prefix=prefix)
    if known := _CANVAS.match(part):
        prefix = part[: known.start("rest")]
        name = known["name"] or known["id"]
        return Owner(name, known["id"], int(known["file"]), prefix=prefix)
    return None


def _common(paths: list[list[str]]) -> int:
    """How many folders all paths begin with that name no student: what is left of each
    path has a name still."""
    common = 0
    while len({tuple(parts[: common + 1]) for parts in paths}) == 1:
        rest = [list(filter(None, map(_own_name, x[common + 1 :]))) for x in paths]
        if len(paths) < 2 or not all(rest):
            break
        common += 1
    return common


def _own_name(part: str) -> str:
    """What of a part of a path names a student; "" if nothing does."""
    text = re.sub(r"\(\d+\)", " ", _COPY.sub("", _SUFFIX.sub("", part)))
    for lesson in lesson_names():
        words = r"[\W_]*".join(map(re.escape, lesson.split("_")))
        text = re.sub(rf"(?<![^\W_]){words}(?![^\W_])", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"^[\W_]+|[\W_]+$", "", _COPY.sub("", text.strip()))
    return "" if plain(text) in _OF_NOBODY else text


def _copy(file: str) -> int:
    found = _COPY.search(_SUFFIX.sub("", file))
    return int(found[1] or found[2]) if found else 0
