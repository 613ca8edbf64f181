"""The three ways to run a lesson's checks, from both sides: what is unsolved, wrong or
broken does not pass, what is right does, and each is told apart in words."""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from course.checks import notebook
from course.paths import LESSONS, ROOT, SOLUTIONS, lesson_names

NAMES = lesson_names()

# Runs pytest once on all that it is given and prints the progress table as JSON.
RUN = """
import json, sys, pytest
from course.checks import explain, plugin
class Keep:
    def pytest_sessionfinish(self, session):
        self.table = [
            [str(path), name, explain.report(results)[1],
             all(v.state == "done" for _, v in results),
             "\\n".join(v.text for _, v in results)]
            for path, rows in session.config.stash[plugin.TABLE].items()
            for name, results in rows.items()
        ]
keep = Keep()
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[keep])
print("\\nTABLE" + json.dumps([int(code), keep.table]))
"""


def run_pytest(*arguments):
    """(exit code, {(path, exercise): (state, all passed, sentence)}, the output)"""
    config = ["-c", ROOT / "pyproject.toml", f"--rootdir={ROOT}"]
    command = [sys.executable, "-c", RUN, *map(str, [*config, *arguments])]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = re.search(r"^TABLE(.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    code, rows = json.loads(found[1])
    return code, {(row[0], row[1]): tuple(row[2:]) for row in rows}, done.stdout


def fresh(name):
    """The learner's notebook as it is built, whatever a learner has written by now."""
    book = notebook.read(SOLUTIONS / f"{name}.ipynb")
    stub = '    raise NotImplementedError("to be written by you")'
    for cell in book.cells:
        if "exercise" in notebook.tags(cell):
            cell.source = re.sub(
                r"( *)### BEGIN SOLUTION.*?### END SOLUTION",
                lambda found: found[1] + stub.strip(),
                cell.source,
                flags=re.DOTALL,
            )
    return book


def exercise_cell(book, name):
    return next(
        c
        for c in book.cells
        if "exercise" in notebook.tags(c) and name in notebook.defined_names(c.source)
    )


def saved(book, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


# --- both sides -----------------------------------------------------------------------


def test_a_notebook_of_references_passes_whole():
    book = SOLUTIONS / "04_top_k.ipynb"
    code, table, out = run_pytest(book)
    assert code == 0, out
    assert {path for path, _ in table} == {str(book)}
    assert {row[:2] for row in table.values()} == {("done", True)}, out


def test_every_stub_is_to_do_and_solved_exercises_turn_green_without_the_others(
    tmp_path,
):
    solved = set()
    for name in NAMES:
        cells = notebook.read(SOLUTIONS / f"{name}.ipynb").cells
        answers = [cell for cell in cells if "exercise" in notebook.tags(cell)]
        # Every second exercise, so that each is once solved among neighbours that are
        # not, and once the other way round.
        for start in (0, 1):
            book, path = fresh(name), tmp_path / str(start) / f"{name}.ipynb"
            for cell in answers[start::2]:
                exercise = notebook.defined_names(cell.source)[0]
                exercise_cell(book, exercise).source = cell.source
                solved.add((str(path), exercise))
            saved(book, path)
    code, table, out = run_pytest(tmp_path)
    assert code == 1
    assert {key for key, row in table.items() if row[0] == "done"} == solved
    assert {row[0] for key, row in table.items() if key not in solved} == {"to do"}
    assert {row[1] for key, row in table.items() if key in solved} == {True}
    assert "Traceback" not in out
    assert "FAILURES" not in out


# --- an edited notebook in the terminal -----------------------------------------------


def delete_the_cell(book):
    book.cells.remove(exercise_cell(book, "top_k_filter"))


HEAD = "def top_k_filter(logits, top_k):\n    "
EDITED = {
    "wrong": (HEAD + "return logits * 0\n", "2) should be [[-inf, 3, 2]], not [[0, 0"),
    "crash": (HEAD + "return logits.topkk(3)", "top_k_filter: return logits.topkk(3)"),
    "syntax": ("def top_k_filter(logits)\n    pass", "line 1: expected ':'"),
    "magic": ("%time\n" + HEAD + "pass", "returned None. Is a `return` missing?"),
    "deleted": (delete_the_cell, "Was its cell deleted"),
    "helper": (HEAD + "return helper(logits)", "put imports and helpers of your own"),
    "exit": ("exit()\n" + HEAD + "pass", "the cell calls exit()"),
    "patches": ("torch.topk = None\n" + HEAD + "return logits * 0", "not [[0, 0"),
    "own exception": (HEAD + "raise type('E', (BaseException,), {})('x')", "E: x"),
    "raises": ("1 / 0\n" + HEAD + "pass", "fails when it is run: ZeroDivisionError"),
}
NO_NOTEBOOKS = {"half": 0.5, "empty": 0, "list": "[]", "text": "not JSON"}


def test_an_edited_notebook_is_told_what_is_the_matter(tmp_path):
    name, exercise = "04_top_k", "top_k_filter"
    for case, (edit, _) in EDITED.items():
        book = fresh(name)
        if callable(edit):
            edit(book)
        else:
            exercise_cell(book, exercise).source = edit
        saved(book, tmp_path / case / f"{name}.ipynb")
    whole = json.dumps(fresh(name))
    for case, content in NO_NOTEBOOKS.items():
        path = tmp_path / case / f"{name}.ipynb"
        path.parent.mkdir()
        cut = whole[: int(len(whole) * content)] if content in (0, 0.5) else content
        path.write_text(cut, encoding="utf-8")
    code, table, out = run_pytest(tmp_path, "-k", "top_k_filter or TopK")
    assert code == 1
    assert "top_k_filter: return logits.topkk(3)" in out
    assert "Traceback" not in out
    says = {case: phrase for case, (_, phrase) in EDITED.items()}
    says |= dict.fromkeys(NO_NOTEBOOKS, "is not a valid notebook")
    for case, phrase in says.items():
        path = str(tmp_path / case / f"{name}.ipynb")
        state, passed, text = table[path, exercise]
        assert (state, passed) == ("wrong", False), case
        assert phrase in text, f"{case}: {text}"
        # One exercise's trouble is not another's.
        other = "wrong" if case in NO_NOTEBOOKS else "to do"
        assert table[path, "TopK"][0] == other, case


# --- carry ----------------------------------------------------------------------------

RIGHT = """def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError(top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
"""

CARRY = """
import sys
from pathlib import Path
from course.checks import carrying
from course.saved import homes
for folder in sys.argv[1:]:
    homes.LESSONS = Path(folder)
    print(carrying.carry("top_k_filter").__code__.co_filename)
    print("-----")
"""


def test_carry_gives_the_learners_own_if_it_passes_else_the_reference(tmp_path):
    answers = {"own": RIGHT, "wrong": RIGHT.replace("<", "<="), "stub": None}
    for case, answer in answers.items():
        book = fresh("04_top_k")
        if answer:
            exercise_cell(book, "top_k_filter").source = answer
        saved(book, tmp_path / case / "04_top_k.ipynb")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "04_top_k.ipynb").write_text("{", encoding="utf-8")
    cases = ["own", "wrong", "stub", "broken", "missing"]
    done = subprocess.run(
        [sys.executable, "-c", CARRY, *[str(tmp_path / case) for case in cases]],
        cwd=LESSONS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own, wrong, stub, broken, missing = done.stdout.split("-----\n")[:5]
    assert "top_k_filter: your own" in own
    assert "solutions" not in own
    assert "the reference, since yours does not pass its checks" in wrong
    assert "the reference, since you have not written yours" in stub
    assert "is not a valid notebook" in broken
    assert "there is no notebook" in missing
    for other in (wrong, stub, broken, missing):
        assert "solutions/04_top_k.ipynb[cell" in other


def test_carry_of_an_unknown_name_is_an_error():
    from course import carry

    with pytest.raises(LookupError, match="no_such"):
        carry("no_such")
