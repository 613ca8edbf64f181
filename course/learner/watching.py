"""`python start.py watch`: check a lesson again whenever its notebook is saved."""

import time

from course.learner import check
from course.paths import shown
from course.saved import books, homes

SECONDS = 0.5  # between two looks


def watch(words: list[str] = (), looks: int | None = None) -> int:
    """Look at the notebooks of these lessons, or of all, until Ctrl-C.

    looks: stop after so many (for tests).
    """
    lessons = list(books.chosen(list(words)))
    which = "all lessons" if not words else ", ".join(x[:2] for x in lessons)
    print(f"Watching {which}. Save a notebook, and it is checked. Ctrl-C ends this.")
    before = {lesson: _stamp(lesson) for lesson in lessons}
    try:
        while looks is None or looks > 0:
            time.sleep(SECONDS)
            looks = None if looks is None else looks - 1
            for lesson in lessons:
                now = _stamp(lesson)
                if now not in (before[lesson], None):
                    _check(lesson)
                before[lesson] = now
    except KeyboardInterrupt:
        print("\nNo longer watching.")
    return 0


def _stamp(lesson):
    """Of the file as it is; None while it is not there, as in the midst of a save."""
    try:
        found = homes.learners(lesson).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _check(lesson):
    print(f"\n{time.strftime('%H:%M:%S')} {shown(homes.learners(lesson))} was saved")
    try:
        check.check([lesson])
    except Exception as error:  # it goes on: the next save may mend it
        print(f"The check could not be run: {type(error).__name__}: {error}")
