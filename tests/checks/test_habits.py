"""What people do in notebooks: magics, cells of their own, lost tags, copies. A right
answer passes in the notebook and once saved, or a sentence says exactly why not."""

import json
import subprocess
import sys

import nbformat
import pytest
from test_checking import run_pytest

from course.paths import ROOT

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
    "%matplotlib": with_line("%matplotlib inline"),
    "!": with_line("!echo hello"),
    "= !": with_line("files = !echo hello"),
    "?": with_line("torch.topk?"),
    "??": with_line("?torch.topk"),
    "display": with_line("display('hello', torch.ones(2))"),
    "get_ipython": with_line("assert 'Shell' in get_ipython().__class__.__name__"),
    "events": with_line("get_ipython().run_line_magic('matplotlib', 'inline')"),
    "await": with_line("import asyncio\nawait asyncio.sleep(0)\nx = 1"),
    "main": with_line("assert __name__ == '__main__'"),
    "annotations": [
        ("", "from __future__ import annotations"),
        *with_line(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass K:\n    n: int\n    of: Later = 3\nassert K(2).n == 2"
        ),
    ],
    "history": with_line("assert _ is not None and isinstance(Out, dict) and In"),
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


# Runs the cells of each notebook as a kernel does, up to the check: does that pass?
LIVE = """
import asyncio, json, os, sys
from IPython.core.interactiveshell import InteractiveShell
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
    _, table, out = run_pytest(folder, "-k", "top_k_filter")
    return {
        habit: (live[str(path)], table[str(path), "top_k_filter"])
        for habit, path in paths.items()
    }


@pytest.mark.parametrize("habit", HABITS)
def test_a_right_answer_passes_live_and_saved_whatever_the_habit(live_and_saved, habit):
    live, (state, passed, said) = live_and_saved[habit]
    assert live, "not a habit that works in a notebook"
    assert (state, passed) == ("done", True), said
