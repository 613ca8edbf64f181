"""`check` in a terminal: what is written is run, what is as it came is not, and both
are told as pytest alone would tell them."""

import json

import pytest

from course.learner import check, watching
from course.saved import asked, books, standing
from course.saved.states import BEGUN, DONE, TO_DO


def test_what_is_done_wrong_and_to_do_is_told_apart(course, capfd):
    course.write("top_k_filter", course.RIGHT)
    course.write("kept_mass", "def kept_mass(logits, top_k):\n    return None\n")
    assert check.check(["04"]) == 1
    out = capfd.readouterr().out
    assert "✓ top_k_filter  done" in out
    assert "✗ kept_mass     wrong" in out
    assert "returned None" in out
    assert "… TopK          to do" in out
    assert "5 exercises: 1 done, 1 wrong, 3 to do" in out
    assert "next: kept_mass, exercise 04.2 in" in out
    assert "Traceback" not in out
    # What has passed is remembered, what has not is not.
    states = standing.states("04_top_k")
    assert states["top_k_filter"] == DONE
    assert states["kept_mass"] == BEGUN
    assert states["TopK"] == TO_DO
    # The names of exercises, and the exit code for what was asked.
    assert check.check(["top_k_filter"]) == 0
    out = capfd.readouterr().out
    assert "1 exercise: 1 done" in out
    assert "kept_mass     " not in out
    # All of them: a line for each lesson.
    assert check.check([]) == 1
    out = capfd.readouterr().out
    assert "04_top_k          ✓✗………   1 of  5 done; wrong: kept_mass" in out
    assert "03_your_own_loop  ……………   0 of  5 done" in out
    assert "next: next_token_logits, exercise 03.1" in out
    # --long: the table
    assert check.check([], long=True) == 1
    assert "10 exercises: 1 done, 1 wrong, 8 to do" in capfd.readouterr().out


def test_a_stub_is_run_by_no_one(course, monkeypatch, capsys):
    monkeypatch.setattr(check, "_run", lambda written: 1 / 0)
    assert check.check([]) == 1
    assert check.check(["04"]) == 1
    assert check.check(["decode", "TopK"]) == 1
    assert "2 exercises: 0 done, 0 wrong, 2 to do" in capsys.readouterr().out


def test_an_answer_in_another_cell_is_not_called_a_stub(course):
    book = books.read(course.path())
    own = {"cell_type": "code", "id": "x", "metadata": {}, "outputs": []}
    own |= {"execution_count": None, "source": course.RIGHT.splitlines(keepends=True)}
    book["cells"].append(own)
    books.write(course.path(), books.as_text(book))
    exercises = [x.name for x in books.exercises("04_top_k")]
    assert check._written(course.path(), exercises) == ["top_k_filter"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', None])
def test_a_notebook_that_is_none_is_no_pass(course, content, capfd):
    if content is None:
        course.path().unlink()
    else:
        course.path().write_text(content, encoding="utf-8")
    assert check.check(["top_k_filter"]) != 0
    out = capfd.readouterr().out
    said = "There is no notebook" if content is None else "is not a valid notebook"
    assert said in " ".join(out.split())


def test_options_of_pytest_run_all_that_was_named(course, monkeypatch):
    given = []
    monkeypatch.setattr(pytest, "main", lambda a, **_: given.append(a) or 0)
    check.check(["kept_mass"], ["-x"])
    check.check(["04"], ["-x"])
    check.check([], ["-x"])
    by_name, lesson, everything = given
    assert by_name[by_name.index("-k") + 1] == "kept_mass"
    assert by_name[-1] == lesson[-1] == str(course.path())
    assert "-k" not in [*lesson, *everything]
    assert everything[-2:] == [str(course.path("03_your_own_loop")), str(course.path())]


def test_what_is_called_by_number_name_or_file_is_found(course, monkeypatch):
    monkeypatch.chdir(course.folder)
    everything = [x.name for x in books.exercises("04_top_k")]
    for word in ("4", "04", "top_k", "04_top_k", "lessons/04_top_k.ipynb"):
        assert asked.chosen([word]) == {course.path(): everything}, word
    assert asked.chosen(["04.2", "decode"]) == {
        course.path("03_your_own_loop"): ["decode"],
        course.path(): ["kept_mass"],
    }
    with pytest.raises(books.Unknown, match="Did you mean kept_mass"):
        asked.chosen(["04", "kept_mas"])


COPIES = ("my 04.ipynb", "04_top_k-Copy1.ipynb", "04_top_k (1).ipynb", "04.ipynb")


def test_a_copy_is_found_by_the_name_that_it_has(course, monkeypatch):
    everything = [x.name for x in books.exercises("04_top_k")]
    elsewhere = course.folder / "downloads"
    elsewhere.mkdir()
    for folder in (course.lessons, elsewhere):
        monkeypatch.chdir(folder)
        for name in COPIES:
            (folder / name).write_bytes(course.path().read_bytes())
            for word in (name, str(folder / name)):
                assert asked.chosen([word]) == {folder / name: everything}, word
    # From anywhere, one in lessons/; without its ending, where that names no lesson.
    monkeypatch.chdir(course.folder)
    for word in ("my 04.ipynb", "my 04", "04_top_k-Copy1"):
        assert list(asked.chosen([word])) == [
            course.lessons / f"{word.removesuffix('.ipynb')}.ipynb"
        ]
    assert list(asked.chosen(["04"])) == [course.path()]
    # The same name elsewhere is another file; lessons/ is known by any way to it.
    (elsewhere / "04_top_k.ipynb").write_bytes(course.path().read_bytes())
    found = list(asked.chosen(["downloads/04_top_k.ipynb"]))
    assert found == [elsewhere / "04_top_k.ipynb"]
    assert list(asked.chosen(["downloads/../lessons/04_top_k.ipynb"])) == [
        course.path()
    ]


def test_a_notebook_of_no_lesson_is_refused_by_its_name(course):
    (course.lessons / "poem.ipynb").write_text('{"cells": []}', encoding="utf-8")
    for word in ("poem.ipynb", "poem"):
        with pytest.raises(books.Unknown, match="poem.ipynb is of no lesson"):
            asked.chosen([word])
    with pytest.raises(books.Unknown, match="There is no lesson and no exercise 'ode"):
        asked.chosen(["ode.ipynb"])


def test_a_copy_is_checked_itself_and_is_nobodys_progress(course, capfd):
    course.write("top_k_filter", course.RIGHT)
    copy = course.lessons / "my 04.ipynb"
    course.path().rename(copy)
    course.path().write_text(books.as_text(books.as_built("04_top_k")), "utf-8")
    assert check.check(["my 04.ipynb"]) == 1
    out = capfd.readouterr().out
    assert "my 04.ipynb" in out
    assert "✓ top_k_filter  done" in out
    assert "5 exercises: 1 done, 0 wrong, 4 to do" in out
    assert "next:" not in out, "that would speak of the lesson itself"
    assert standing.states("04_top_k")["top_k_filter"] == TO_DO
    assert not (course.lessons / standing.FILE).exists()
    assert check.check(["04"]) == 1
    assert "5 exercises: 0 done, 0 wrong, 5 to do" in capfd.readouterr().out


def test_pytest_gets_a_copy_as_it_is(course, monkeypatch):
    given = []
    monkeypatch.setattr(pytest, "main", lambda a, **_: given.append(a) or 0)
    copy = course.lessons / "my 04.ipynb"
    copy.write_bytes(course.path().read_bytes())
    check.check(["my 04.ipynb"], ["-x"])
    assert given[0][-2:] == ["-x", str(copy)]
    assert "-k" not in given[0]


def test_watch_takes_a_copy_too(course, monkeypatch, capsys):
    copy = course.lessons / "my 04.ipynb"
    copy.write_bytes(course.path().read_bytes())
    checked = []
    monkeypatch.setattr(watching.time, "sleep", lambda _: copy.write_bytes(b"{}"))
    monkeypatch.setattr(watching.check, "check", lambda words: checked.append(words))
    watching.watch(["my 04.ipynb"], looks=1)
    assert checked == [[str(copy)]]


# --- watch ----------------------------------------------------------------------------


def test_watch_checks_what_was_saved_and_nothing_else(course, monkeypatch, capsys):
    checked, saves = [], [None, "top_k_filter", None]

    def sleep(_):
        if name := saves.pop(0):
            course.write(name, course.WRONG + "# longer")

    monkeypatch.setattr(watching.time, "sleep", sleep)
    monkeypatch.setattr(watching.check, "check", lambda words: checked.append(words))
    assert watching.watch([], looks=3) == 0
    assert checked == [[str(course.path())]]
    assert "Watching all lessons" in capsys.readouterr().out


def test_watch_goes_on_after_trouble_and_ends_with_ctrl_c(course, monkeypatch, capsys):
    looks = iter(["save", "gone", "back", "stop"])

    def sleep(_):
        look = next(looks)
        if look == "save":
            course.write("top_k_filter", course.WRONG)
        elif look == "gone":
            course.path().rename(course.path().with_suffix(".part"))
        elif look == "back":
            course.path().with_suffix(".part").rename(course.path())
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", sleep)
    monkeypatch.setattr(watching.check, "check", lambda words: 1 / 0)
    assert watching.watch(["04"]) == 0
    out = capsys.readouterr().out
    assert "could not be run: ZeroDivisionError" in out
    assert out.endswith("No longer watching.\n")


# --- what is remembered ---------------------------------------------------------------


def test_what_has_passed_counts_for_that_text_and_those_checks_only(
    course, monkeypatch
):
    course.write("top_k_filter", course.RIGHT)
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=True)
    assert standing.states("04_top_k")["top_k_filter"] == DONE
    course.write("top_k_filter", course.WRONG)
    assert standing.states("04_top_k")["top_k_filter"] == BEGUN
    course.write("top_k_filter", course.RIGHT)
    with monkeypatch.context() as changed:
        changed.setattr(standing, "_checks", lambda lesson: "other checks")
        assert standing.states("04_top_k")["top_k_filter"] == BEGUN
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=False)
    assert standing.states("04_top_k")["top_k_filter"] == BEGUN


@pytest.mark.parametrize("content", ["", "[]", '{"passed": 3}', "\0", "{" * 10])
def test_a_damaged_memory_is_an_empty_one(course, content):
    (course.lessons / standing.FILE).write_text(content, encoding="utf-8")
    assert set(standing.states("04_top_k").values()) == {TO_DO}
    course.write("top_k_filter", course.RIGHT)
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=True)
    assert standing.states("04_top_k")["top_k_filter"] == DONE
    assert json.loads((course.lessons / standing.FILE).read_text())["passed"]


def test_a_folder_that_cannot_be_written_to_costs_the_memory_alone(course, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(books, "write", refuse)
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=True)
    mark = standing._mark("04_top_k", course.RIGHT)
    assert standing._passed_here["04_top_k", "top_k_filter"] == mark
