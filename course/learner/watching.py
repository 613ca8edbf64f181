"""`python start.py watch`: check a lesson again whenever its notebook is saved."""

import time

from course.learner import check
from course.paths import shown
from course.saved import asked, homes, which

SECONDS = 0.5  # between two looks


def watch(words: list[str] = (), looks: int | None = None) -> int:
    """Look at the notebooks of these lessons, or of all, until Ctrl-C.

    looks: stop after so many (for tests).
    """
    places = [_place_of(path) for path in asked.chosen(list(words))]
    before = {place(): _stamp(place()) for place in places}
    told = "all lessons" if not words else ", ".join(map(shown, before))
    print(f"Watching {told}. Save a notebook, and it is checked. Ctrl-C ends this.")
    try:
        while looks is None or looks > 0:
            time.sleep(SECONDS)
            looks = None if looks is None else looks - 1
            for path in [place() for place in places]:
                now = _stamp(path)
                if now not in (before.get(path), None):
                    _check(path)
                before[path] = now
    except KeyboardInterrupt:
        print("\nNo longer watching.")
    return 0


def _place_of(path):
    """Where it is at any time: a learner may go on in another language's notebook."""
    lesson = which.lesson_at(path)
    is_own = path == homes.learners(lesson)
    return lambda: homes.learners(lesson) if is_own else path


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
