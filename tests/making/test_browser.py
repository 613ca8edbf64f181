"""Lessons in a real JupyterLab, in a real browser: a reference, then a learner."""

import importlib.util
import os

import pytest

from course.making import browser
from course.paths import exercise_names

MISSING = None
if importlib.util.find_spec("playwright") is None:
    MISSING = "Playwright is not installed (python start.py teach installs it)"
elif browser.find_browser() is None:
    MISSING = "no Chromium or Chrome found (install one, or set CHROMIUM to its path)"

# Written for this test: a learner's way, by sorting, unlike the reference's.
ANSWER = """\
def top_k_filter(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    if top_k < 0:
        raise ValueError(f"top_k must not be negative, got {top_k}")
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.where(logits >= lowest, logits, -float("inf"))
"""


@pytest.fixture(scope="module")
def lab():
    if MISSING and os.environ.get("CI") == "true":
        pytest.fail(f"{MISSING}; with CI=true this test must run", pytrace=False)
    if MISSING:
        pytest.skip(MISSING)
    with browser.lab() as running:
        yield running


def test_the_reference_runs_to_its_end(lab):
    notebook = lab.open("solutions/01_calling_a_model.ipynb")
    notebook.clear()
    notebook.run_all()
    assert notebook.errors() == []
    assert notebook.not_run() == []
    assert "✓" in notebook.shown(notebook.cell("check(ask)"))


def test_a_learner_sees_not_written_yet_then_types_an_answer_and_sees_it_pass(lab):
    notebook = lab.open("lessons/04_top_k.ipynb")
    setup = notebook.cell("import torch")
    stub = notebook.cell("def top_k_filter")
    check = notebook.cell("check(top_k_filter)")

    notebook.run_all()
    unwritten = [error for error in notebook.errors() if "not written yet" in error]
    assert len(unwritten) == len(exercise_names("04_top_k"))
    assert notebook.not_run() == []  # Run All goes on after a red check
    shown = notebook.shown(check)
    assert "top_k_filter is not written yet" in shown
    assert "Traceback" not in shown

    notebook.type_into(stub, ANSWER)
    for cell in (setup, stub, check):
        notebook.run_cell(cell)
    shown = notebook.shown(check)
    assert "✓" in shown
    assert "✗" not in shown
    assert "not written" not in shown

    # A wrong answer, typed over the right one, is told apart.
    notebook.type_into(stub, ANSWER.replace("logits >= lowest", "logits > lowest"))
    for cell in (stub, check):
        notebook.run_cell(cell)
    assert "✗" in notebook.shown(check)


def test_the_repository_is_not_touched(lab):
    assert browser.ROOT not in lab.root.parents
    notebook = lab.open("lessons/04_top_k.ipynb")
    before = (browser.ROOT / "lessons/04_top_k.ipynb").read_bytes()
    notebook.type_into(notebook.cell("def top_k_filter"), "saved = 'in the copy'")
    notebook.save()
    assert "in the copy" in (lab.root / "lessons/04_top_k.ipynb").read_text("utf-8")
    assert (browser.ROOT / "lessons/04_top_k.ipynb").read_bytes() == before
