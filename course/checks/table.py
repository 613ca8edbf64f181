"""The progress table: what checks of saved notebooks have found, in a terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from course.kit.words import counted
from course.paths import LESSONS, shown
from course.saved.states import DONE, TO_DO, WRONG

COLOURS = {DONE: "green", WRONG: "red", TO_DO: "yellow"}
SIGNS = {DONE: "✓", WRONG: "✗", TO_DO: "…"}
SAVED = "(read from the saved notebooks: save before you check)"


@dataclass
class Row:
    """One exercise of a notebook, and how its checks went."""

    name: str
    state: str
    passed: int = 0
    checks: int = 0
    wrong: tuple[str, ...] = ()  # the lines that say what is wrong


def row(name: str, results: list) -> Row:
    """The row of an exercise's tests, (title, verdict) each."""
    from course.checks import explain  # with torch: not needed for stubs

    text, state = explain.report(results)
    checks = explain.by_title(results).values()
    passed = sum(all(v.state == DONE for v in cases) for cases in checks)
    wrong = [x for x in text.splitlines() if not x.startswith("✓")]
    return Row(name, state, passed, len(checks), tuple(wrong if state == WRONG else ()))


def write(rows: dict[Path, list[Row]], write_line: Callable):
    """The table, a line for each exercise; write_line(text, **colour)."""
    totals = dict.fromkeys((DONE, WRONG, TO_DO), 0)
    width = max(len(r.name) for of_book in rows.values() for r in of_book)
    for path in sorted(rows, key=lambda path: (path.name, path)):
        write_line(shown(path))
        for found in rows[path]:
            totals[found.state] += 1
            line = f"  {SIGNS[found.state]} {found.name:<{width}}  {found.state:<5}  "
            if found.state != TO_DO:
                verb = "passes" if found.checks == 1 else "pass"
                line += f"{found.passed} of {counted(found.checks, 'check')} {verb}"
            write_line(line.rstrip(), **{COLOURS[found.state]: True})
            if found.wrong:
                write_line("\n".join(f"      {x}" for x in found.wrong))
    told = ", ".join(f"{n} {state}" for state, n in totals.items())
    write_line(f"{counted(sum(totals.values()), 'exercise')}: {told}")
    if any(path.is_relative_to(LESSONS) for path in rows):
        write_line(SAVED)


def write_sums(rows: dict[Path, list[Row]], write_line: Callable):
    """A line for each lesson, and the names of what is wrong."""
    width = max(len(path.stem) for path in rows)
    most = max(len(of_book) for of_book in rows.values())
    for path in sorted(rows, key=lambda path: (path.name, path)):
        states = [found.state for found in rows[path]]
        done, of = states.count(DONE), len(states)
        line = f"{path.stem:<{width}}  {bar(states):<{most}}  {done:>2} of {of:>2} done"
        wrong = [found.name for found in rows[path] if found.state == WRONG]
        line += f"; wrong: {', '.join(wrong)}" if wrong else ""
        state = DONE if done == of else WRONG if wrong else TO_DO
        write_line(line, **{COLOURS[state]: True})


def bar(states: list[str]) -> str:
    """One sign for each exercise."""
    return "".join(SIGNS.get(state, "·") for state in states)
