"""Find what was handed in: notebooks in a folder or in zip archives, archives in
archives among them, under whatever name a browser or a platform has given them. Each
other file is named, with the reason why it is left out.

Nothing is unpacked to the disk: a member of an archive is read into memory, one at a
time, and no further than the limits below.
"""

import contextlib
import datetime
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from course.saved import which

NOTEBOOK_MB = 50
ARCHIVE_MB = 500  # of an archive within an archive
UNPACKED_MB = 10_000  # of all files in an archive and in those within
MEMBERS = 20_000
DEPTH = 3  # archives in archives

CANNOT_READ = (
    *(OSError, EOFError, RuntimeError, NotImplementedError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
_OF_PROGRAMS = {".ipynb_checkpoints", "__MACOSX", ".DS_Store", "Thumbs.db"}


@dataclass
class _Room:
    """What may still be read of one archive and all that are in it."""

    files: int = MEMBERS
    mb: float = UNPACKED_MB
    depth: int = DEPTH


@dataclass(frozen=True)
class Handed:
    """A file that was handed in. `name`: its path as a teacher sees it, archives
    included; `why_not`: why it is left out, "" where it is to be graded; `when`: its
    time, in seconds, as its folder or its archive has it."""

    name: str
    size: int = 0
    read: Callable[[], bytes] = bytes
    why_not: str = ""
    when: float = 0.0


def find(source: Path, besides: set[Path] = frozenset()) -> list[Handed]:
    """All files of a folder, or of a zip archive, in order; each under its own name.
    besides: files and folders that are not the students'."""
    if source.is_dir():
        handed = _of_folder(source, besides)
    else:
        handed = _of_archive("", lambda: source.open("rb"), _Room())
    found, seen = [], {}
    for one in handed:
        seen[one.name] = seen.get(one.name, 0) + 1
        if seen[one.name] > 1:  # an archive can hold two files of one name
            number = f"{one.name} ({seen[one.name]})"
            one = replace(one, name=number)
        found.append(one)
    return sorted(found, key=lambda one: one.name)


def _of_folder(folder: Path, besides) -> Iterator[Handed]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield Handed(name, why_not="it is a link")
        elif path.is_file() and not besides & {path.resolve(), *path.resolve().parents}:
            about = path.stat()
            opened = lambda p=path: p.open("rb")  # noqa: E731
            yield from _files(name, about.st_size, opened, _Room(), about.st_mtime)


def _files(name: str, size: int, opened, room, when: float) -> Iterator[Handed]:
    """A file, or those in it if it is an archive. opened(): the file, to be read."""
    parts = PurePosixPath(name).parts
    if _OF_PROGRAMS & set(parts) or parts[-1].startswith("._"):
        yield Handed(name, why_not="it is Jupyter's or the system's, nobody's work")
    elif name.lower().endswith(".zip"):
        yield from _of_archive(name, opened, room)
    elif re.search(r"\.ipynb(\.json|\.txt)?$", name, re.IGNORECASE) or _is_notebook(
        size, opened
    ):
        yield Handed(name, size, lambda: _content(opened), when=when)
    else:
        yield Handed(name, why_not="it is neither a notebook nor a zip archive")


def _content(opened) -> bytes:
    with opened() as file:
        return file.read(NOTEBOOK_MB * 1_000_000 + 1)


def _is_notebook(size: int, opened) -> bool:
    """Whether a file of any name holds a notebook."""
    if not 0 < size <= NOTEBOOK_MB * 1_000_000:
        return False
    try:
        with opened() as file:
            if not which.text_of(file.read(200)).lstrip().startswith("{"):
                return False
        data = json.loads(which.text_of(_content(opened)))
        return isinstance(data, dict) and "nbformat" in data
    except (*CANNOT_READ, RecursionError):
        return False


def _of_archive(name: str, opened, room: _Room) -> Iterator[Handed]:
    """The files of the zip archive `name`, or the one line that says why not."""
    if room.depth == 0:
        yield Handed(name, why_not="it is too deep in other archives: unpack them")
        return
    try:
        with opened() as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except CANNOT_READ as error:
        yield Handed(name, why_not=f"the archive cannot be read ({error})")
        return
    unpacked = sum(info.file_size for info in members) / 1e6
    if len(members) > room.files or unpacked > room.mb:
        yield Handed(
            name,
            why_not=f"{len(members)} files of {unpacked:,.0f} MB are in this archive: "
            "unpack it yourself if you trust it",
        )
    else:
        room.files, room.mb = room.files - len(members), room.mb - unpacked
        room.depth -= 1
        for info in members:
            inside = f"{name}/{info.filename}".lstrip("/") if name else info.filename
            yield from _member(inside, info, opened, room)
        room.depth += 1


def _member(name: str, info: zipfile.ZipInfo, opened, room) -> Iterator[Handed]:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", str(path)):
        yield Handed(name, why_not="its path leads out of the archive")
    elif info.flag_bits & 1:
        yield Handed(name, why_not="it is locked with a password")
    elif stat.S_ISLNK(info.external_attr >> 16):
        yield Handed(name, why_not="it is a link")
    elif info.file_size > ARCHIVE_MB * 1_000_000:
        yield Handed(name, why_not=f"it is larger than {ARCHIVE_MB} MB")
    else:
        yield from _files(
            *(name, info.file_size, lambda: _opened_member(info, opened), room),
            when=_when(info),
        )


def _when(info: zipfile.ZipInfo) -> float:
    """An archive has no time zone: only its own files can be compared."""
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.datetime(*info.date_time).timestamp()
    return 0.0


def _opened_member(info: zipfile.ZipInfo, opened) -> io.BytesIO:
    most = ARCHIVE_MB * 1_000_000
    with (
        opened() as file,
        zipfile.ZipFile(file) as archive,
        archive.open(info) as member,
    ):
        return io.BytesIO(member.read(most))
