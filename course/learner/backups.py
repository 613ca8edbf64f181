"""Copies of notebooks, before anything is done to them: one way for all commands."""

import datetime
import shutil
from pathlib import Path

from course.paths import HOME

BACKUPS = HOME / "backups"


def keep(path: Path, folder: Path | None = None) -> Path:
    """Copy the file at `path` into backups/, or into `folder`, under a new name, which
    is returned."""
    folder = folder or BACKUPS
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    number, kept = 1, folder / f"{path.stem}-{now}{path.suffix}"
    while kept.exists():
        number += 1
        kept = folder / f"{path.stem}-{now}-{number}{path.suffix}"
    shutil.copy2(path, kept)
    if kept.read_bytes() != path.read_bytes():  # a full disk, a save at this moment
        raise OSError(f"the copy {kept.name} is not what {path.name} holds")
    return kept
