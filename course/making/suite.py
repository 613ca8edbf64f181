"""The suite of tests: proves that the installation works.

python start.py test [pytest's options]
"""

import pytest

from course.paths import ROOT

# Notebooks and test files side by side; each stays whole, its cells in order.
SPREAD = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


def main(arguments: list[str] | None = None) -> int:
    """Run the suite. Returns pytest's exit code."""
    return int(pytest.main([f"--rootdir={ROOT}", *SPREAD, *(arguments or [])]))
