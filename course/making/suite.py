"""The suite of tests.

    python start.py test          what proves an installation, and a lesson
    python start.py test --all    everything, as CI runs it

`test` runs the checks of every lesson on our answers, the wrong and right answers that
try them, and each reference notebook from top to bottom. `test --all` adds the
machinery around it, see MACHINERY. Options go on to pytest:
`python start.py test -x -k top_k`.
"""

import argparse

import pytest

from course.paths import ROOT, SOLUTIONS, lesson_names

# Notebooks and test files side by side; each stays whole, its cells in order.
SPREAD = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
SPREAD += ["--no-loadscope-reorder"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "240"]
# What takes longest begins first, so that no process waits at the end for another.
LONG = [
    "tests/making/test_wrong_answers.py",
    "tests/making/test_right_answers.py",
    "solutions/08_degeneration.ipynb",
    "solutions/09_beam_search.ipynb",
    "solutions/13_speculative_decoding.ipynb",
    "solutions/14_as_fast_as_memory_allows.ipynb",
]
# What `test` leaves out.
MACHINERY = {
    "tests/teaching": "grading, nbgrader, the site, the guide",
    "tests/models": "the server and the models' files",
    "tests/making/test_wheel.py": "one notebook alone, from the wheel",
    "tests/making/test_any_model.py": "the lessons with another model",
    "tests/making/test_browser.py": "JupyterLab in a browser",
    "tests/making/test_statistics.py": "how often statistical checks err",
    "tests/lessons/test_constrained_fuzz.py": "texts of 500 random JSON schemas",
    "tests/checks": "what a check does with hostile code and broken notebooks",
    "tests/learner": "the commands for learners",
    "tests/test_start.py": "the set-up",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the suite. Returns pytest's exit code."""
    parser = argparse.ArgumentParser(
        prog="python start.py test",
        description="Run the course's own tests. Other options go on to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="everything, as CI runs it")
    options, rest = parser.parse_known_args(arguments)
    if options.all:
        print("Nothing is left out.", flush=True)
    else:
        told = "; ".join(MACHINERY.values())
        print(f"Left out, and run by `test --all`: {told}.", flush=True)
    return int(
        pytest.main([f"--rootdir={ROOT}", *SPREAD, *NBVAL, *paths(options.all), *rest])
    )


def paths(everything: bool) -> list[str]:
    """What pytest is given, in the order in which it should begin."""
    long = [str(ROOT / path) for path in LONG]
    notebooks = [str(SOLUTIONS / f"{name}.ipynb") for name in lesson_names()]
    machinery = [str(ROOT / path) for path in MACHINERY]
    if everything:
        return [*long, *machinery, *notebooks, str(ROOT / "tests")]
    ignored = [f"--ignore={path}" for path in machinery]
    return [*long, *notebooks, str(ROOT / "tests"), *ignored]
