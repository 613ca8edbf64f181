"""A learner's course: copies of two lessons in a folder of their own."""

import pytest

from course.checks import table
from course.learner import backups
from course.paths import LESSONS, SOLUTIONS
from course.saved import asked, books, homes, standing

RIGHT = """def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError(top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
"""
WRONG = RIGHT.replace("<", "<=")


class Course:
    """The learner's lessons, and what a test does in them."""

    RIGHT, WRONG = RIGHT, WRONG  # answers to top_k_filter

    def __init__(self, folder):
        self.folder, self.lessons = folder, folder / "lessons"

    def path(self, lesson="04_top_k"):
        return self.lessons / f"{lesson}.ipynb"

    def write(self, name, text, lesson="04_top_k"):
        """As if the learner had written and saved this in the exercise's cell."""
        book = books.read(self.path(lesson))
        cell = book["cells"][books.cell_of(book, books.exercise_called(name))]
        cell["source"] = text.splitlines(keepends=True)
        books.write(self.path(lesson), books.as_text(book))

    def cell(self, name, lesson="04_top_k"):
        book = books.read(self.path(lesson))
        return book["cells"][books.cell_of(book, books.exercise_called(name))]

    def cell_text(self, name):
        return books.source_of(self.cell(name))

    def backups(self):
        return sorted((self.folder / "backups").glob("*"))


@pytest.fixture
def course(tmp_path, monkeypatch):
    made = Course(tmp_path)
    made.lessons.mkdir()
    for lesson in ("03_your_own_loop", "04_top_k"):
        fresh = books.as_text(books.as_built(lesson))
        made.path(lesson).write_text(fresh, encoding="utf-8")
    for module in (asked, homes, standing, table):
        monkeypatch.setattr(module, "LESSONS", made.lessons)
    monkeypatch.setattr(backups, "BACKUPS", tmp_path / "backups")
    monkeypatch.setattr(standing, "_passed_here", {})
    monkeypatch.setattr(books, "lesson_names", lambda: ["03_your_own_loop", "04_top_k"])
    for module in (asked, homes, standing):
        monkeypatch.setattr(module, "lesson_names", books.lesson_names)
    monkeypatch.setattr(homes, "_named", {})
    assert made.lessons not in (LESSONS, SOLUTIONS)
    return made
