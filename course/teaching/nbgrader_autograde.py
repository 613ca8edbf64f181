"""How nbgrader grades the lessons: nbgrader_config.py, as `start.py export` writes it,
names the two lists at the end. Needs requirements-teach.txt.

nbgrader's own way is to run a student's notebook from top to bottom, slow demos and
all, and to look for errors in the cells that carry points. In that process the
student's code can make any check pass. Here the checks run in processes of their own
(see `course.teaching.grade_process`), and what they say becomes the output of the check
cells. Cells with points that a teacher has added run in the notebook, as ever, after
its set-up and its exercises.
"""

import nbformat
from nbconvert.exporters import NotebookExporter
from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    Execute,
    IgnorePattern,
    LimitOutput,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)

from course.checks import notebook
from course.checks.explain import DONE
from course.paths import lesson_names
from course.teaching import grade_process

CHECK = "check-"


class Submitted(NotebookExporter):
    """Reads what can be read of a submitted file, as `course.checks` does: nbgrader by
    itself gives up at a byte-order mark or half a character."""

    def from_file(self, file_stream, resources=None, **kw):
        book = notebook.parse(file_stream.read())
        return self.from_notebook_node(book, resources=resources, **kw)


class RestoreCells(NbGraderPreprocessor):
    """Puts nbgrader's data back on cells where the student has changed it, and cells
    that only grade back into the notebook where they were deleted. Of several copies
    of a cell the last counts. (nbgrader by itself stops grading the whole class where
    one student's notebook has bad data.)"""

    def preprocess(self, nb, resources):
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as gradebook:
            book = gradebook.find_notebook(about["notebook"], about["assignment"])
            sources = {cell.name: cell for cell in book.source_cells}
            points = {cell.name: cell.max_score for cell in book.grade_cells}
            points |= {cell.name: cell.max_score for cell in book.task_cells}
            solutions = {cell.name for cell in book.solution_cells}
            tasks = {cell.name for cell in book.task_cells}
            known = {
                name: {
                    "schema_version": 3,
                    "grade_id": name,
                    "cell_type": cell.cell_type,
                    "checksum": cell.checksum,
                    "locked": cell.locked,
                    "grade": name in points and name not in tasks,
                    "solution": name in solutions,
                    "task": name in tasks,
                    **({"points": points[name]} if name in points else {}),
                }
                for name, cell in sources.items()
            }
            lost = [n for n in points if n not in solutions | tasks]
            for cell in reversed(nb.cells):
                name = _grade_id(cell)
                cell.metadata.pop("nbgrader", None)
                if name in known:
                    cell.metadata["nbgrader"] = nbformat.from_dict(known.pop(name))
                    if sources[name].cell_type == "code" != cell.cell_type:
                        cell.update(cell_type="code", outputs=[], execution_count=None)
                        cell.pop("attachments", None)
                    if name in lost:
                        lost.remove(name)
            for name in lost:  # and so still in `known`
                self.log.warning("The cell %s was deleted; it is put back", name)
                cell = nbformat.v4.new_code_cell(sources[name].source)
                cell.metadata["nbgrader"] = nbformat.from_dict(known[name])
                if nb.nbformat_minor < 5:
                    del cell["id"]
                nb.cells.append(cell)
        return nb, resources


def _grade_id(cell) -> str:
    about = cell.metadata.get("nbgrader")
    name = about.get("grade_id") if isinstance(about, dict) else None
    return name if isinstance(name, str) else ""


class Check(Execute):
    """Runs the checks of a lesson, and of its cells only those that they need."""

    def preprocess(self, nb, resources):
        lesson = resources["nbgrader"]["notebook"]
        if lesson not in lesson_names():
            return super().preprocess(nb, resources)
        self.needed = set(notebook.plan(nb, lesson).run)
        if any(_is_the_teachers(cell) for cell in nb.cells):
            nb, resources = super().preprocess(nb, resources)
        job = grade_process.Job(lesson, lesson, nbformat.writes(nb))
        (job,) = grade_process.grade([job])
        for cell in nb.cells:
            if _is_a_check(cell):
                result = job.results[_grade_id(cell).removeprefix(CHECK)]
                cell.outputs, cell.execution_count = [_output(result)], None
        return nb, resources

    def preprocess_cell(self, cell, resources, index):
        lesson = resources["nbgrader"]["notebook"] in lesson_names()
        if not lesson or index in self.needed or _is_the_teachers(cell):
            return super().preprocess_cell(cell, resources, index)
        return cell, resources


def _is_a_check(cell) -> bool:
    names = {
        f"{CHECK}{name}" for x in lesson_names() for name in grade_process.points_of(x)
    }
    return utils.is_grade(cell) and _grade_id(cell) in names


def _is_the_teachers(cell) -> bool:
    """A cell of code with points that is none of our checks."""
    code = cell.cell_type == "code" and utils.is_grade(cell)
    return code and not utils.is_solution(cell) and not _is_a_check(cell)


def _output(result: grade_process.Result):
    """As Jupyter would show it; nbgrader gives no points for an error."""
    if result.state == DONE:
        return nbformat.v4.new_output("stream", name="stdout", text=result.report)
    return nbformat.v4.new_output(
        "error",
        ename="NotPassed",
        evalue=result.said,
        traceback=result.report.splitlines(),
    )


SANITIZE = [
    ClearOutput,
    RestoreCells,
    OverwriteKernelspec,
    OverwriteCells,
    CheckCellMetadata,
]
AUTOGRADE = [
    Check,
    IgnorePattern,
    ClearMetadataPreprocessor,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
