"""`python start.py check`: the exercises of the saved notebooks, in a terminal.

An exercise that is still as it came is to do: that is read, not run. So a check of an
untouched lesson takes no time, and one of a lesson that is half written runs only the
tests of what is written.
"""

import os
import sys
from pathlib import Path

from course.checks import table
from course.paths import COMMAND, ROOT, lesson_names, shown
from course.saved import asked, books, homes, standing, which
from course.saved.states import DONE, TO_DO

HINT = f"More of one: `{COMMAND} check 04`, of all: `{COMMAND} check --long`"


def check(words: list[str], options: list[str] = (), long: bool = False) -> int:
    """Check what `words` name (see asked.chosen), print how it stands. Returns the exit
    code: 0 if all that was asked for is done, 1 if not, else pytest's.

    options: handed on to pytest, which then runs everything and prints as it does.
    """
    picked = asked.chosen(words)
    if options:
        return _by_pytest(picked, list(options))
    rows, code = rows_of(picked)
    if not rows:
        return code or 1
    if words or long:
        table.write(rows, _write_line)
    else:
        table.write_sums(rows, _write_line)
    everything = {row.state for of_book in rows.values() for row in of_book}
    lesson = which.lesson_at(next(iter(picked))) if words else ""
    first = standing.next_exercise(lesson)
    if first and all(map(_is_own, picked)):
        print(f"next: {described(first)}")
    if not words and not long:
        print(table.SAVED)
        print(HINT)
    return code if code > 1 else int(everything != {DONE})


def described(exercise: books.Exercise) -> str:
    """Which exercise it is, and where."""
    where = shown(homes.learners(exercise.lesson))
    return f"{exercise.name}, exercise {exercise.number} in {where}"


def _is_own(path: Path) -> bool:
    """Whether it is the learner's notebook of its lesson, and not a copy."""
    return path == homes.learners(which.lesson_at(path))


def rows_of(picked: dict[Path, list[str]]) -> tuple[dict, int]:
    """({notebook: rows}, pytest's exit code) of exercises {notebook: names}."""
    written = {path: _written(path, names) for path, names in picked.items()}
    written = {path: names for path, names in written.items() if names}
    found, code = _run(written) if written else ({}, 0)
    rows = {}
    for path, names in picked.items():
        checked = {row.name: row for row in found.get(path, ())}
        made = [checked.get(name) or _unrun(path, name, written) for name in names]
        rows[path] = [row for row in made if row]
    return {path: of_book for path, of_book in rows.items() if of_book}, code


def _unrun(path, name, written):
    """The row of a stub. What should have been run and was not has none."""
    if name in written.get(path, ()):
        return None
    return table.Row(name, TO_DO)


def _written(path: Path, names: list[str]) -> list[str]:
    """Those exercises of a saved notebook that are not as they came."""
    lesson = which.lesson_at(path)
    try:
        book = books.read(path)
    except books.Unreadable:
        return names  # the checks say what is the matter with it
    came = {books.source_of(c).strip() for c in books.as_built(lesson)["cells"]}
    own = [c for c in book["cells"] if books.source_of(c).strip() not in came]
    written = []
    for exercise in books.exercises(lesson):
        elsewhere = any(books.defines(cell, exercise.name) for cell in own)
        if exercise.name in names and (elsewhere or not _is_stub(book, exercise)):
            written.append(exercise.name)
    return written


def _is_stub(book, exercise):
    place = books.cell_of(book, exercise)
    if place is None:
        return False  # deleted: its checks say so
    return standing.is_stub(books.source_of(book["cells"][place]), exercise)


def _run(written: dict[Path, list[str]]) -> tuple[dict, int]:
    import pytest

    missing = [path for path in written if not path.exists()]
    for path in missing:
        print(f"There is no notebook {shown(path)}.")
        print(f"`{COMMAND} reset {path.stem[:2]}` brings it back.")
    paths = [str(path) for path in written if path not in missing]
    if not paths:
        return {}, 1
    keep = _Keep({str(path): names for path, names in written.items()})
    quiet = ["-qq", "--no-header", "-p", "no:cacheprovider", "-W", "ignore"]
    # Plugins of other packages cost seconds to load, and do nothing here.
    quiet += ["--disable-plugin-autoload", *_config()]
    # It collects garbage twice at the end, a third of the time of a quick check.
    quiet += ["-p", "no:unraisableexception"]
    code = int(pytest.main([*quiet, *paths], plugins=[keep]))
    print()
    for path in filter(_is_own, written):
        _remember(which.lesson_at(path), keep.rows.get(path, ()), written[path])
    if missing and code == 0:
        code = 1
    return keep.rows, code


def _remember(lesson, rows, names):
    try:
        book = books.read(homes.learners(lesson))
    except books.Unreadable:
        return
    states = {row.name: row.state for row in rows}
    for exercise in books.exercises(lesson):
        place = books.cell_of(book, exercise)
        if exercise.name in names and exercise.name in states and place is not None:
            text = books.source_of(book["cells"][place])
            passed = states[exercise.name] == DONE
            standing.remember(lesson, exercise.name, text, passed)


class _Keep:
    """pytest plugin: keeps the tests of the exercises {notebook: names}, and their
    rows."""

    def __init__(self, wanted):
        self.wanted, self.rows = wanted, {}

    def pytest_configure(self, config):
        from course.checks import plugin

        config.stash[plugin.QUIET] = True

    def pytest_collection_modifyitems(self, items):
        from course.checks import plugin

        items[:] = [item for item in items if self._keeps(item, plugin)]

    def _keeps(self, item, plugin):
        book = item.getparent(plugin.Notebook)
        names = self.wanted.get(str(book.path), ()) if book else ()
        return bool(set(names) & set(plugin.exercises_asked_for(item)))

    def pytest_sessionfinish(self, session):
        from course.checks import plugin

        found = plugin.rows_of(session.config)
        for path, rows in found.items():
            names = self.wanted.get(str(path), ())
            self.rows[path] = [row for row in rows if row.name in names]


def _by_pytest(picked, options) -> int:
    """As `pytest` would, for those who give it options of its own."""
    import pytest

    everything = list(picked) == [homes.learners(x) for x in lesson_names()]
    names = [name for of_lesson in picked.values() for name in of_lesson]
    lessons = [which.lesson_at(path) for path in picked]
    of_lessons = [x.name for lesson in lessons for x in books.exercises(lesson)]
    chosen = [] if everything or names == of_lessons else ["-k", " or ".join(names)]
    return int(pytest.main([*_config(), *chosen, *options, *map(str, picked)]))


def _config():
    return ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}"]


def _write_line(text, **colour):
    codes = {"green": 32, "red": 31, "yellow": 33}
    wanted = next((codes[name] for name in colour if colour[name]), None)
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or wanted is None
    print(text if plain else f"\033[{wanted}m{text}\033[0m")
