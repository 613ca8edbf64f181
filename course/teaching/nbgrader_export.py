"""Export the lessons to other tools.

    python start.py export nbgrader FOLDER          all lessons
    python start.py export nbgrader FOLDER 04 05    these

`nbgrader` makes a course folder for nbgrader 0.9, outside this repository. Each lesson
is an assignment, and an exercise has as many points as its difficulty has stars. What
is there already stays as it is, unless you give `--force`, which first copies it into
FOLDER/backups and names the copy. Then, in FOLDER:

    nbgrader generate_assignment 04_top_k     release/ holds what students get
    nbgrader autograde 04_top_k               grades submitted/<student>/04_top_k/
    nbgrader generate_feedback 04_top_k
    nbgrader export                           grades.csv

Students and the grader need this repository installed (`pip install -r
requirements.txt` from its folder). **Autograding runs students' code on your machine**:
read what `start.py grade` says about that, and use a container for people whom you do
not trust.
"""

import argparse
import re
import sys
from pathlib import Path

from course.checks import notebook
from course.learner import backups
from course.making import build
from course.paths import ROOT, SOLUTIONS
from course.saved import books
from course.teaching.grade_process import points_of

CONFIG = '''\
"""Settings of nbgrader for Token by Token. Run nbgrader in this folder."""

import os
import sys
from pathlib import Path

from course.saved import books
from course.teaching import nbgrader_autograde

c = get_config()  # noqa: F821
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.CourseDirectory.course_id = "token-by-token"

# nbgrader looks for a program, alembic, where `activate` would have put it.
os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]

# What stands in a student's notebook where our answer was.
c.ClearSolutions.code_stub = {"python": books.STUB}

# What can be read of a file counts, check cells are put back where they were deleted or
# changed, and the checks run outside the student's notebook, with limits. Without these
# lines nbgrader runs each notebook from top to bottom.
c.Autograde.exporter_class = nbgrader_autograde.Submitted
c.Autograde.sanitize_preprocessors = nbgrader_autograde.SANITIZE
c.Autograde.autograde_preprocessors = nbgrader_autograde.AUTOGRADE
'''


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python start.py export")
    commands = parser.add_subparsers(dest="tool", required=True)
    command = commands.add_parser("nbgrader", help="a course folder for nbgrader")
    command.add_argument("folder", type=Path, help="outside this repository")
    command.add_argument("lessons", nargs="*", help="numbers or names; none means all")
    told = "replace what is there; keeps a copy"
    command.add_argument("--force", action="store_true", help=told)
    options = parser.parse_args(arguments)
    nbgrader(options.folder, build.chosen(options.lessons), options.force)


def nbgrader(folder: Path, lessons: list[str], force: bool = False):
    """Write nbgrader_config.py and source/<lesson>/<lesson>.ipynb into `folder`. With
    `force` over what is there, which is kept in backups/ in `folder`."""
    folder = folder.resolve()
    if folder.is_relative_to(ROOT):
        sys.exit(
            f"{folder} is inside the repository, where grades and students' work would "
            "be committed with it: choose a folder outside."
        )
    if folder.exists() and not folder.is_dir():
        sys.exit(f"{folder} is a file: give the name of a folder.")
    sources = [folder / "source" / lesson / f"{lesson}.ipynb" for lesson in lessons]
    for target in sources:
        if _may_write(target, force):
            target.parent.mkdir(parents=True, exist_ok=True)
            made = assignment(target.stem)
            _keep(target, build.as_text(made), folder)
            build.write(made, target)
    config = folder / "nbgrader_config.py"
    if _may_write(config, force):
        _keep(config, CONFIG, folder)
        books.write(config, CONFIG)
    print(f"Now, in {folder}: nbgrader generate_assignment {lessons[0]}")


def _may_write(target: Path, force: bool) -> bool:
    may = force or not target.exists()
    print(f"{'writing' if may else 'left, since it was there:'} {target}")
    return may


def _keep(target: Path, text: str, folder: Path):
    """A copy of what is there, unless it is what is written now."""
    if target.exists() and target.read_bytes() != text.encode():
        print(f"kept what was there as {backups.keep(target, folder / 'backups')}")


def assignment(lesson: str):
    """The lesson as nbgrader's source notebook: with our answers, which nbgrader takes
    out of what it releases, and without outputs."""
    book = notebook.read(SOLUTIONS / f"{lesson}.ipynb")
    book.metadata.pop(build.STAMP, None)
    points = points_of(lesson)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "exercise" in notebook.tags(cell):
            name = next(n for n in notebook.defined_names(cell.source) if n in points)
            cell.metadata["nbgrader"] = _about(name, solution=True)
        elif "check" in notebook.tags(cell):
            name = re.search(r"^check\((\w+)\)", cell.source, re.MULTILINE)[1]
            cell.source = f"from course import check\n\n{cell.source}"
            cell.metadata["nbgrader"] = _about(
                f"check-{name}", grade=True, locked=True, points=points[name]
            )
    return book


def _about(grade_id: str, **what) -> dict:
    nothing = {"grade": False, "locked": False, "solution": False, "task": False}
    return {"schema_version": 3, "grade_id": grade_id, **nothing, **what}


if __name__ == "__main__":
    main()
