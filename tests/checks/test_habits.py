"""What people do in notebooks: magics, cells of their own, lost tags, copies. A right
answer passes in the notebook and once saved, or a sentence says exactly why not."""

import contextlib
import io
import json
import os
import subprocess
import sys

import nbformat
import pytest
import torch
from test_checking import exercise_cell

import course
from course import paths
from course.checks import checking, explain, notebook, plugin
from course.making import build
from course.paths import ROOT, SOLUTIONS, lesson_names
from course.saved import homes, which

RIGHT = """\
def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError(top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
"""
WRONG = "def top_k_filter(logits, top_k):\n    return logits\n"
STUB = "def top_k_filter(logits, top_k):\n    raise NotImplementedError('not yet')\n"
KEPT_MASS = """\
def kept_mass(logits, top_k):
    return (logits.softmax(-1) * (top_k_filter(logits, top_k) > -torch.inf)).sum(-1)
"""
SETUP = "import torch\nfrom course import carry"
CHECK = "from course import check"
# In a cell of its own, with what it needs in other cells
HELPERS = [
    ("", "import math\nLOWEST = -math.inf\nSORTED = {'descending': True}"),
    ("", "def lowest_of(logits, k):\n    return SORT(logits)[:, k - 1, None]"),
    ("", "def SORT(logits):\n    return logits.sort(dim=-1, **SORTED).values"),
    (
        "exercise",
        RIGHT.replace(
            "logits.sort(dim=-1, descending=True).values[:, k - 1, None]",
            "lowest_of(logits, k)",
        ).replace("-torch.inf", "LOWEST"),
    ),
]


def with_line(line: str) -> list:
    return [("exercise", f"{line}\n{RIGHT}")]


# habit -> the cells that hold the answer. All pass, live and saved.
HABITS = {
    "plain": with_line(""),
    "%%time": with_line("%%time"),
    "blank lines and %%time": with_line("\n\n%%time"),
    "%%capture": with_line("%%capture out"),
    "%time": with_line("%time start = 1"),
    "%timeit": with_line("%timeit -n 1 -r 1 1 + 1"),
    "%precision": with_line("%precision 3"),
    "!": with_line("!echo hello"),
    "= !": with_line("files = !echo hello"),
    "?": with_line("torch.topk?"),
    "??": with_line("?torch.topk"),
    "display": with_line("display('hello', torch.ones(2))"),
    "get_ipython": with_line("assert 'Shell' in get_ipython().__class__.__name__"),
    "a magic by hand": with_line("get_ipython().run_line_magic('precision', '3')"),
    "await": with_line("import asyncio\nawait asyncio.sleep(0)\nx = 1"),
    "main": with_line("assert __name__ == '__main__'"),
    "annotations": [
        ("", "from __future__ import annotations"),
        *with_line(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass K:\n    n: int\n    of: Later = 3\nassert K(2).n == 2"
        ),
    ],
    "history": with_line("assert isinstance(Out, dict) and isinstance(In, list)"),
    "check in its cell": [("exercise", f"{CHECK}\n{RIGHT}\ncheck(top_k_filter)")],
    "check as elsewhere": [("", CHECK), ("exercise", f"{RIGHT}\ncheck(top_k_filter)")],
    "helpers in other cells": HELPERS,
    "helpers below": [HELPERS[-1], *HELPERS[:-1]],
    "default from another cell": [
        ("", "LOWEST = float('-inf')"),
        ("exercise", RIGHT.replace("top_k):", "top_k, low=LOWEST):", 1)),
    ],
    "answer below the stub": [("exercise", STUB), ("", RIGHT)],
    "answer above the stub, tag gone": [("", RIGHT)],
    "a demo after it fails": [("exercise", RIGHT + "\nprint(top_k_filter(model))")],
    "defined in a branch": [
        ("exercise", "if True:\n" + "\n".join("    " + x for x in RIGHT.splitlines()))
    ],
    "the later of two": [("exercise", WRONG), ("", RIGHT)],
    "ours is brought below": [
        ("exercise", RIGHT),
        ("late", "top_k_filter = carry('top_k_filter')"),
    ],
    "half an emoji": with_line("# \ud83d"),
}


def book_of(answer):
    """A small lesson 04: a set-up, these cells, the check, `kept_mass`."""
    made = [("setup", SETUP), *(cell for cell in answer if cell[0] != "late")]
    made += [("check", f"{CHECK}\ncheck(top_k_filter)"), ("exercise", KEPT_MASS)]
    made += [("", source) for tag, source in answer if tag == "late"]
    book = nbformat.v4.new_notebook()
    for tag, source in made:
        tags = {"tags": [tag]} if tag else {}
        book.cells.append(nbformat.v4.new_code_cell(source, metadata=tags))
    return book


def save(book, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(book), encoding="utf-8")  # half characters, too
    return path


class Keep:
    """pytest plugin: keeps the progress table."""

    def pytest_sessionfinish(self, session):
        self.table = session.config.stash[plugin.TABLE]


def run_pytest(*arguments):
    """Checks saved notebooks: {(path, exercise): (state, the report)}, all output."""
    keep, out = Keep(), io.StringIO()
    options = [
        *("-q", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-o"),
        *("addopts=", "-p", "course.checks.plugin", "--disable-plugin-autoload"),
        *("-p", "no:cacheprovider", "--capture=no"),
    ]
    with contextlib.redirect_stdout(out):
        pytest.main([*options, *map(str, arguments)], plugins=[keep])
    table = {
        (str(path), name): explain.report(results)[::-1]
        for path, rows in keep.table.items()
        for name, results in rows.items()
    }
    return table, out.getvalue()


# Runs the cells of each notebook as a kernel does, up to the check: does that pass?
LIVE = """
import asyncio, json, os, sys
from IPython.core.interactiveshell import InteractiveShell
from course.checks import checking
run = checking.run
checking.run = lambda *given: run(*given, only="test_the_case_worked_by_hand")
sys.path.insert(0, os.getcwd())
shell, real = InteractiveShell.instance(), os.dup(1)
for path in json.load(sys.stdin):
    shell.reset()
    shell.compile.flags = type(shell.compile)().flags
    for cell in json.load(open(path, encoding="utf-8"))["cells"]:
        source = cell["source"].encode("utf-8", "replace").decode()
        ran = shell.run_cell(source, silent=True)
        if "check" in cell["metadata"].get("tags", ()):
            break
    print("\\nLIVE", json.dumps([path, ran.success]), flush=True)
"""


@pytest.fixture(scope="module")
def live_and_saved(tmp_path_factory):
    """habit -> (passed live, the row of the saved notebook's table)"""
    folder = tmp_path_factory.mktemp("habits")
    paths = {
        habit: save(book_of(answer), folder / str(n) / "04_top_k.ipynb")
        for n, (habit, answer) in enumerate(HABITS.items())
    }
    done = subprocess.run(
        [sys.executable, "-c", LIVE],
        input=json.dumps([str(path) for path in paths.values()]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    told = [x[5:] for x in done.stdout.splitlines() if x.startswith("LIVE ")]
    live = dict(map(json.loads, told))
    assert len(live) == len(paths), done.stderr
    table, out = run_pytest(folder, "-k", "the_case_worked_by_hand")
    return {
        habit: (live[str(path)], table[str(path), "top_k_filter"])
        for habit, path in paths.items()
    }


@pytest.mark.parametrize("habit", HABITS)
def test_a_right_answer_passes_live_and_saved_whatever_the_habit(live_and_saved, habit):
    live, (state, said) = live_and_saved[habit]
    assert live, "not a habit that works in a notebook"
    assert state == "done", said


# --- what does not pass, and what is said of it ---------------------------------------

LESSON = "04_top_k"


def solved():
    return notebook.read(SOLUTIONS / f"{LESSON}.ipynb")


def edited(edit, book=None):
    book = book or solved()
    edit(book)
    return book


def answer_is(source):
    def edit(book):
        exercise_cell(book, "top_k_filter").source = source

    return edit


def moved_to_text(book):
    place = book.cells.index(exercise_cell(book, "top_k_filter"))
    book.cells[place] = nbformat.v4.new_markdown_cell(book.cells[place].source)


def deleted(book):
    book.cells.remove(exercise_cell(book, "top_k_filter"))


def renamed(book):
    cell = exercise_cell(book, "top_k_filter")
    cell.source = cell.source.replace("def top_k_filter", "def top_k_filtre")


def needs_the_model(book):
    answer = RIGHT.replace("    k =", "    model.eval()\n    k =")
    exercise_cell(book, "top_k_filter").source = answer


def needs_the_model_at_once(book):
    answer_is("VOCAB = tokenizer.vocab_size\n" + RIGHT)(book)


def two_wrong_answers(book):
    answer_is(WRONG)(book)
    place = book.cells.index(exercise_cell(book, "top_k_filter"))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(WRONG + "# again\n"))


# case -> (what is done to a solved lesson, state of top_k_filter, a phrase of its text)
BROKEN = {
    "syntax": (answer_is("def top_k_filter(logits\n    pass"), "wrong", "line 1: "),
    "raises": (answer_is("1 / 0\n" + RIGHT), "wrong", "ZeroDivisionError"),
    "renamed": (renamed, "wrong", "It defines top_k_filtre in cell 11 (`def top_k_"),
    "deleted": (deleted, "wrong", "Was its cell deleted"),
    "text": (moved_to_text, "wrong", "holds top_k_filter as text"),
    "a number": (answer_is("top_k_filter = 5"), "wrong", "not callable"),
    "stub": (answer_is(STUB), "to do", "top_k_filter is not written yet"),
    "ours": (
        answer_is("top_k_filter = carry('top_k_filter')"),
        "to do",
        "top_k_filter is ours, brought by carry",
    ),
    "ours in disguise": (
        answer_is("f = carry('top_k_filter')\ndef top_k_filter(*a):\n    return f(*a)"),
        "wrong",
        "carry('top_k_filter') is for later lessons: write your own",
    ),
    "model": (needs_the_model, "wrong", "`import matplotlib.pyplot as plt`) of the"),
    "model at once": (needs_the_model_at_once, "wrong", "sets `tokenizer`, and does"),
    "a package": (
        answer_is("!pip install nothing\nimport no_such_thing\n" + RIGHT),
        "wrong",
        "`!pip install nothing` is not run when a saved notebook is checked",
    ),
    "%%timeit": (answer_is("%%timeit\n" + RIGHT), "wrong", "does not define top_k"),
}
DEPENDANTS = ["kept_mass", "sample_top_k", "TopK"]


def without_tags(book):
    for cell in book.cells:
        cell.metadata = {}


def without_tags_and_ids(book):
    without_tags(book)
    for n, cell in enumerate(book.cells):
        cell.id = f"cell-{n}"


def without_set_up(book):
    without_tags_and_ids(book)
    book.cells = [c for c in book.cells if "carry" not in c.source]


# Each done to a solved lesson: every exercise still passes.
STRIPPED = {"tags": without_tags, "tags, ids and set-up": without_set_up}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(case, exercise) -> the row of its table"""
    folder = tmp_path_factory.mktemp("broken")
    paths = {}
    for case, (edit, _, _) in BROKEN.items():
        paths[case] = save(edited(edit), folder / case / f"{LESSON}.ipynb")
    for case, edit in STRIPPED.items():
        paths[case] = save(edited(edit), folder / case / f"{LESSON}.ipynb")
    paths["copy"] = save(solved(), folder / "my 04.ipynb")
    paths["two"] = save(edited(two_wrong_answers), folder / "2" / f"{LESSON}.ipynb")
    (folder / "bom").mkdir()
    paths["mark"] = folder / "bom" / f"{LESSON}.ipynb"
    paths["mark"].write_text(json.dumps(solved()), encoding="utf-8-sig")
    rows, out = run_pytest(folder, "-k", "by_hand or many_tie")
    assert "Traceback" not in out
    cases = {str(path): case for case, path in paths.items()}
    return {(cases[path], name): row for (path, name), row in rows.items()}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_exercise_says_why_and_takes_no_other_down(table, case):
    _, state, phrase = BROKEN[case]
    found, said = table[case, "top_k_filter"]
    assert found == state
    assert phrase in " ".join(said.split()), said
    for name in DEPENDANTS:
        # An answer that is there and fails when it is called is not replaced.
        expected = "wrong" if case == "model" else "done"
        assert table[case, name][0] == expected, table[case, name]


@pytest.mark.parametrize("case", [*STRIPPED, "copy", "mark"])
def test_a_solved_notebook_passes_without_tags_and_under_any_name(table, case):
    states = {name: row[0] for (c, name), row in table.items() if c == case}
    assert states == dict.fromkeys(["top_k_filter", "top_k_exact", *DEPENDANTS], "done")


def test_of_two_wrong_answers_it_is_said_which_one_was_checked(table):
    told = " ".join(table["two", "top_k_filter"][1].split())
    assert "(top_k_filter is defined more than once, in cell 11" in told
    assert "this is about cell 12" in told


def test_checkpoints_and_other_notebooks_are_no_lessons(tmp_path):
    poem = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("def ode(): 1")])
    assert which.lesson_at(save(poem, tmp_path / "poem.ipynb")) == ""
    assert which.lesson_at(tmp_path / "missing.ipynb") == ""
    for lesson in lesson_names():
        path = tmp_path / "Untitled1.ipynb"
        save(build.as_built(lesson), path)  # its stubs tell which it is
        assert which.lesson_at(path) == lesson
    for name in ("04_top_k-Copy1", "04-Top-K (1)", "anna 04_top_k", "04_top_k.kept-1"):
        assert which.lesson_at(tmp_path / f"{name}.ipynb") == LESSON


# --- choosing and carrying ------------------------------------------------------------


def test_the_name_of_an_exercise_chooses_its_tests_and_no_others():
    book = SOLUTIONS / f"{LESSON}.ipynb"
    for name in ("top_k_filter", "TopK", "topk", "top_k_exact or TopK"):
        asked = [x.lower() for x in name.split(" or ")]
        table, _ = run_pytest(book, "-k", name)
        assert [x.lower() for _, x in table] == asked
    table, _ = run_pytest(book, "-k", "by_hand and not (TopK or kept_mass)")
    assert [x for _, x in table] == ["top_k_filter", "sample_top_k"]


def test_what_is_not_written_names_the_line_that_brings_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(homes, "LESSONS", tmp_path)
    save(build.as_built(LESSON), tmp_path / f"{LESSON}.ipynb")
    names = {"torch": torch, "check": course.check}
    exec(KEPT_MASS, names)
    with pytest.raises(checking.NotPassed) as told:
        exec("check(kept_mass)", names)  # its neighbour's cell has not run
    assert "'top_k_filter' is not defined. Its cell has not run" in str(told.value)
    assert '; top_k_filter = carry("top_k_filter")' in str(told.value)
    exec(STUB, names)
    with pytest.raises(checking.NotPassed) as told:
        exec("check(top_k_filter)", names)
    assert "… top_k_filter is not written yet: fill in its cell" in str(told.value)
    line = str(told.value).splitlines()[-1].strip()
    assert line == ('from course import carry; top_k_filter = carry("top_k_filter")')
    exec(line, names)
    assert names["top_k_filter"](torch.tensor([[1.0, 3.0, 2.0]]), 1).isinf().sum() == 2
    with pytest.raises(checking.NotPassed, match="is ours, brought by carry: yours"):
        exec("check(top_k_filter)", names)
    exec(RIGHT, names)
    exec("check(top_k_filter)", names)


def test_carry_says_honestly_whose_answer_it_gives(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(homes, "LESSONS", tmp_path / "lessons")
    monkeypatch.setattr(paths, "HOME", tmp_path)
    (tmp_path / "lessons").mkdir()
    says = {
        "stub": ("the reference, since you have not written yours yet", STUB),
        "ours": (
            "the reference, since you have not written yours yet",
            "top_k_filter = carry('top_k_filter')",
        ),
        "own": ("your own, from lessons/04_top_k.ipynb", "%%time\n" + RIGHT),
    }
    for n, (phrase, answer) in enumerate(says.values()):
        path = tmp_path / "lessons" / f"{LESSON}.ipynb"
        save(edited(answer_is(answer)), path)
        os.utime(path, (n, n))  # of one second, else
        course.carry("top_k_filter")
        assert f"top_k_filter: {phrase}\n" in capsys.readouterr().out
