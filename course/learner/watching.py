"""`python start.py watch`: check a lesson again whenever its notebook is saved."""

import time

from course.learner import check
from course.paths import shown
from course.saved import books

SECONDS = 0.5  # between two looks


def watch(words: list[str] = (), looks: int | None = None) -> int:
    """Look at the notebooks of these lessons, or of all, until Ctrl-C.

    looks: stop after so many (for tests).
    """
    paths = list(books.chosen(list(words)))
    told = "all lessons" if not words else ", ".join(shown(path) for path in paths)
    print(f"Watching {told}. Save a notebook, and it is checked. Ctrl-C ends this.")
    before = {path: _stamp(path) for path in paths}
    try:
        while looks is None or looks > 0:
            time.sleep(SECONDS)
            looks = None if looks is None else looks - 1
            for path in paths:
                now = _stamp(path)
                if now not in (before[path], None):
                    _check(path)
                before[path] = now
    except KeyboardInterrupt:
        print("\nNo longer watching.")
    return 0


def _stamp(path):
    """Of the file as it is; None while it is not there, as in the midst of a save."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _check(path):
    print(f"\n{time.strftime('%H:%M:%S')} {shown(path)} was saved")
    try:
        check.check([str(path)])
    except Exception as error:  # it goes on: the next save may mend it
        print(f"The check could not be run: {type(error).__name__}: {error}")
