"""How far the checks can be trusted, as a table:

    python start.py trust [NN ...]

For each exercise: how many of the planted wrong answers are caught by the check about
their mistake, how many unusual right answers are accepted, how many mechanical mutants
of our answer are killed. Ends with 1 if a wrong answer gets through, a right one does
not, or a mutant survives that tests/lessons/equivalent_mutants.py does not explain.
Takes some minutes for each lesson; for maintainers.
"""

import argparse
import sys

from course.checks import checking, plugin
from course.making import mutants
from course.making.answers import answers, is_accepted, is_caught
from course.paths import SOLUTIONS, lesson_names

HEAD = ("exercise", "wrong caught", "right accepted", "mutants killed", "equivalent")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python start.py trust", description="How far the checks can be trusted."
    )
    parser.add_argument("lessons", nargs="*", help="numbers; none means all")
    return trust(parser.parse_args(arguments).lessons)


def trust(numbers: list[str]) -> int:
    """Print the table of these lessons, or of all. Returns the exit code."""
    rows, problems = [], []
    for lesson in lesson_names():
        if numbers and lesson[:2] not in numbers:
            continue
        book = plugin.loaded(SOLUTIONS / f"{lesson}.ipynb")
        wrong, right = (
            answers("wrong_answers", lesson),
            answers("right_answers", lesson),
        )
        for name in [n for n in book.sources if checking.test_files(n)]:
            print(f"{lesson[:2]} {name} ...", file=sys.stderr, flush=True)
            tried = [
                ("wrong", is_caught, [a for a in wrong if a.exercise == name]),
                ("right", is_accepted, [a for a in right if a.exercise == name]),
            ]
            row = [f"{lesson[:2]} {name}"]
            for kind, problem_of, mine in tried:
                found = {a.name: problem for a in mine if (problem := problem_of(a))}
                row.append(f"{len(mine) - len(found)} of {len(mine)}")
                problems += [
                    f"{name}, {kind} answer {a}: {p}" for a, p in found.items()
                ]
            killed, known, strange = _mutants_of(name, lesson, book.sources[name])
            row += [f"{killed} of {killed + known + len(strange)}", str(known)]
            problems += [f"{name}, mutant survives: {change}" for change in strange]
            rows.append(row)
    _print_table([HEAD, *rows])
    print(
        "\n".join(problems) or "No wrong answer gets through, no right one is refused."
    )
    return 1 if problems else 0


def _mutants_of(name, lesson, source):
    """(killed, known to be equivalent, changes of the other survivors)"""
    known = mutants.equivalent().get(name, {})
    made = mutants.mutants(name, source)
    alive = [m.change for m in made if mutants.survives(m, lesson)]
    strange = [change for change in alive if change not in known]
    stale = set(known) - {m.change for m in made}
    strange += [f"{change} (listed, but no mutant)" for change in sorted(stale)]
    return len(made) - len(alive), len(alive) - len(strange) + len(stale), strange


def _print_table(rows):
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    for row in rows:
        cells = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
