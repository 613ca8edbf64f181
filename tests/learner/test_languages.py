"""A learner's notebook is found in the folder of the language they learn in, too."""

import os
import shutil
import subprocess
import sys

import pytest

from course import __main__ as cli
from course.checks import carrying
from course.learner import asking, in_notebooks, resetting
from course.paths import ROOT
from course.saved import books, homes, languages, standing

LESSONS = ("03_your_own_loop", "04_top_k")
GREEDY = "def pick_greedy(logits):\n    return logits.argmax(dim=-1, keepdim=True)\n"


class Two:
    """The learner's lessons, in English and in Chinese."""

    def __init__(self, course):
        self.course, self.clock = course, 1_000_000_000
        self.chinese = course.lessons / "zh_CN"
        shutil.copytree(course.lessons, self.chinese)

    def path(self, language, lesson="04_top_k"):
        return self.course.lessons / language / f"{lesson}.ipynb"

    def write(self, language, name, text):
        """As if written and saved, a second after all that was saved before."""
        exercise = books.exercise_called(name)
        path = self.path(language, exercise.lesson)
        book = books.read(path)
        cell = book["cells"][books.cell_of(book, exercise)]
        cell["source"] = text.splitlines(keepends=True)
        books.write(path, books.as_text(book))
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    def text(self, language, name):
        exercise = books.exercise_called(name)
        book = books.read(self.path(language, exercise.lesson))
        return books.source_of(book["cells"][books.cell_of(book, exercise)])


@pytest.fixture
def two(course):
    return Two(course)


# --- which one it is ------------------------------------------------------------------


def test_where_nothing_is_written_it_is_the_english_one(two):
    for lesson in LESSONS:
        assert homes.learners(lesson) == two.path("", lesson)


def test_it_is_the_one_that_holds_work_and_the_other_lessons_follow(two):
    two.write("zh_CN", "pick_greedy", GREEDY)
    assert homes.learners("03_your_own_loop") == two.path("zh_CN", "03_your_own_loop")
    assert homes.learners("04_top_k") == two.path("zh_CN")
    two.write("", "top_k_filter", two.course.RIGHT)
    assert homes.learners("04_top_k") == two.path("")
    assert homes.learners("03_your_own_loop") == two.path("zh_CN", "03_your_own_loop")


def test_before_the_first_answer_it_is_the_one_that_was_run(two):
    path = two.path("zh_CN", "03_your_own_loop")
    book = books.read(path)
    next(c for c in book["cells"] if c["cell_type"] == "code")["execution_count"] = 1
    books.write(path, books.as_text(book))
    assert homes.learners("03_your_own_loop") == path
    assert homes.learners("04_top_k") == two.path("zh_CN")
    assert "over the vocabulary" not in asking.hint_text("pick_greedy")
    two.write("", "top_k_filter", two.course.RIGHT)
    assert homes.learners("03_your_own_loop") == two.path("", "03_your_own_loop")


def test_of_two_that_hold_work_it_is_the_one_saved_last(two):
    two.write("zh_CN", "top_k_filter", two.course.RIGHT)
    two.write("", "top_k_filter", two.course.WRONG)
    assert homes.learners("04_top_k") == two.path("")
    two.write("zh_CN", "kept_mass", "def kept_mass(logits, top_k): ...")
    assert homes.learners("04_top_k") == two.path("zh_CN")


def test_beside_a_kernel_it_is_the_one_that_the_kernel_runs(two, monkeypatch):
    monkeypatch.chdir(two.chinese)
    assert homes.learners("04_top_k") == two.path("zh_CN")
    two.write("", "top_k_filter", two.course.RIGHT)
    assert homes.learners("04_top_k") == two.path("")  # the only one with work
    two.write("zh_CN", "top_k_filter", two.course.WRONG)
    two.write("", "top_k_filter", two.course.RIGHT)
    assert homes.learners("04_top_k") == two.path("zh_CN")


def test_a_lesson_that_is_not_translated_is_the_english_one(two):
    two.write("zh_CN", "pick_greedy", GREEDY)
    two.path("zh_CN").unlink()
    assert homes.learners("04_top_k") == two.path("")
    two.path("").unlink()
    assert homes.learners("04_top_k") == two.path("")


# --- what goes by it ------------------------------------------------------------------


def test_check_finds_work_in_chinese_and_a_path_names_the_one_meant(two, capsys):
    two.write("zh_CN", "top_k_filter", two.course.RIGHT)
    assert cli.main(["check", "top_k_filter"]) == 0
    assert "✓ top_k_filter" in capsys.readouterr().out
    assert standing.states("04_top_k")["top_k_filter"] == "done"
    assert "04_top_k.ipynb" in asking.next_text() or "03_your" in asking.next_text()
    assert cli.main(["check", str(two.path(""))]) == 1
    assert "0 done, 0 wrong, 5 to do" in capsys.readouterr().out


def test_hints_and_sections_are_in_the_language_of_the_notebook(two):
    english = asking.hint_text("pick_greedy"), asking.next_text()
    two.write("zh_CN", "pick_greedy", "def pick_greedy(logits): ...")
    assert "argmax" in asking.hint_text("pick_greedy")
    known = languages.translations("03_your_own_loop", "zh_CN")
    assert known["1. What the model returns"] in asking.next_text()
    assert "1. What the model returns" in english[1]
    assert "over the vocabulary" in english[0]
    assert "over the vocabulary" not in asking.hint_text("pick_greedy")


def test_reset_brings_back_the_chinese_text(two):
    two.write("zh_CN", "top_k_filter", two.course.RIGHT)
    assert "is as it came" in resetting.reset_lesson("04_top_k")
    built = books.as_text(books.as_built("04_top_k", "zh_CN"))
    assert two.path("zh_CN").read_text("utf-8") == built
    assert len(two.course.backups()) == 1


def test_reset_in_a_notebook_resets_that_notebook(two, monkeypatch, capsys):
    two.write("zh_CN", "top_k_filter", two.course.RIGHT)
    two.write("", "top_k_filter", two.course.RIGHT)
    monkeypatch.chdir(two.chinese)
    in_notebooks.reset("top_k_filter")
    assert books.STUB in two.text("zh_CN", "top_k_filter")
    assert two.text("", "top_k_filter") == two.course.RIGHT


def test_carry_brings_an_answer_written_in_chinese(two, monkeypatch, capsys):
    two.write("zh_CN", "pick_greedy", GREEDY)
    monkeypatch.chdir(two.chinese)
    assert carrying.carry("pick_greedy").__code__.co_filename
    assert "pick_greedy: your own, from" in capsys.readouterr().out


def test_a_check_in_a_chinese_notebook_is_remembered(two, monkeypatch):
    monkeypatch.chdir(two.chinese)
    monkeypatch.setattr(standing, "cell_text", lambda x: GREEDY if x else "")
    assert standing.after_check("pick_greedy", 1, True).startswith("done, 1 of")
    monkeypatch.chdir(two.course.folder)
    assert standing.after_check("pick_greedy", 1, True) == ""


COLLECT = """
import sys
from pathlib import Path
import pytest
from course.checks import plugin
from course.saved import homes

class Books:
    def pytest_collection_finish(self, session):
        self.found = {x.getparent(plugin.Notebook).path for x in session.items}

lessons = homes.LESSONS = Path(sys.argv[1])
options = ["-qq", "--disable-plugin-autoload", "-p", "no:cacheprovider"]
options += ["-c", sys.argv[2], "--collect-only", "-k", "by_hand"]
for asked in sys.argv[3:]:
    books = Books()
    pytest.main([*options, str(lessons / asked)], plugins=[books])
    names = sorted(x.relative_to(lessons).as_posix() for x in books.found)
    print("\\n>", *[x for x in names if "04" in x])
"""


def collected(two, *asked) -> list[str]:
    command = [sys.executable, "-c", COLLECT, str(two.course.lessons)]
    command += [str(ROOT / "pyproject.toml"), *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [x[2:] for x in done.stdout.splitlines() if x.startswith("> ")]


def test_pytest_on_the_folder_takes_each_lesson_once(two):
    english, chinese = "04_top_k.ipynb", "zh_CN/04_top_k.ipynb"
    found = collected(two, ".", "zh_CN", chinese)
    assert found == [english, chinese, chinese]
    two.write("zh_CN", "top_k_filter", two.course.RIGHT)
    assert collected(two, ".", english) == [chinese, english]
