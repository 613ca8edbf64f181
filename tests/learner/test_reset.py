"""`reset`: what comes back is what the build writes, and what was there is kept."""

import pytest

from course.learner import backups, resetting
from course.making import build
from course.paths import LESSONS, SOLUTIONS, lesson_names
from course.saved import books


@pytest.mark.parametrize("lesson", lesson_names())
def test_a_lesson_comes_back_with_the_bytes_that_the_build_writes(lesson):
    pytest.importorskip("jupytext", reason="needs requirements-teach.txt")
    pytest.importorskip("nbgrader", reason="needs requirements-teach.txt")
    source = SOLUTIONS / f"{lesson}.py"
    built = build.as_text(
        build.stamped(build.lesson(build.read_source(source)), source)
    )
    assert books.as_text(books.as_built(lesson)) == built


def test_a_whole_lesson_is_put_back_and_the_old_one_kept(course, capsys):
    fresh = course.path().read_bytes()
    course.write("top_k_filter", course.RIGHT)
    mine = course.path().read_bytes()
    assert resetting.reset_all(["04"]) == 0
    out = capsys.readouterr().out
    assert course.path().read_bytes() == fresh
    (kept,) = course.backups()
    assert kept.read_bytes() == mine
    assert kept.name in out
    assert "Reload Notebook from Disk" in out
    # As it came: nothing to do, no second backup.
    resetting.reset_all(["04"])
    assert course.backups() == [kept]
    # One that was deleted, and one that is no notebook any more, come back as well.
    course.path().unlink()
    resetting.reset_all(["top_k"])
    assert course.path().read_bytes() == fresh
    course.path().write_bytes(b"\xff{")
    resetting.reset_all(["04"])
    assert course.path().read_bytes() == fresh
    assert b"\xff{" in [path.read_bytes() for path in course.backups()]


def test_a_copy_is_not_reset_nor_is_the_lesson_in_its_place(course):
    course.write("top_k_filter", course.RIGHT)
    copy, mine = course.lessons / "04_top_k-Copy1.ipynb", course.path().read_bytes()
    copy.write_bytes(mine)
    with pytest.raises(books.Unknown, match="is a copy of a lesson.*reset 04`"):
        resetting.reset_all(["04_top_k-Copy1.ipynb"])
    assert copy.read_bytes() == course.path().read_bytes() == mine
    assert not course.backups()


def test_one_exercise_is_put_back_and_all_else_stays(course):
    course.write("kept_mass", "mine = 1\n")
    only_mass = course.path().read_bytes()
    course.write("top_k_filter", course.RIGHT)
    resetting.reset_all(["top_k_filter"])
    assert course.path().read_bytes() == only_mass
    assert len(course.backups()) == 1
    resetting.reset_all(["04.1"])
    assert len(course.backups()) == 1, "it was as it came already"


def test_an_exercise_whose_cell_is_gone_comes_back_in_its_place(course):
    fresh = course.path().read_bytes()
    book = books.read(course.path())
    place = books.cell_of(book, books.exercise_called("kept_mass"))
    del book["cells"][place]
    books.write(course.path(), books.as_text(book))
    resetting.reset_all(["kept_mass"])
    assert course.path().read_bytes() == fresh


def test_an_unknown_word_among_others_resets_nothing(course):
    course.write("top_k_filter", course.RIGHT)
    mine = course.path().read_bytes()
    with pytest.raises(books.Unknown, match="nonsense"):
        resetting.reset_all(["04", "nonsense"])
    assert course.path().read_bytes() == mine
    assert course.backups() == []


def test_an_exercise_of_a_notebook_that_is_none_is_left_alone(course):
    course.path().write_text("{", encoding="utf-8")
    with pytest.raises(books.Unreadable, match="not a valid notebook"):
        resetting.reset_all(["top_k_filter"])
    assert course.path().read_text(encoding="utf-8") == "{"


def test_without_a_backup_nothing_is_reset(course, monkeypatch):
    course.write("top_k_filter", course.RIGHT)
    mine = course.path().read_bytes()
    monkeypatch.setattr(
        backups.shutil, "copy2", lambda a, b: b.write_bytes(b"half of it")
    )
    with pytest.raises(OSError, match="is not what"):
        resetting.reset_all(["04"])
    assert course.path().read_bytes() == mine


def test_no_backup_replaces_another(course):
    kept = {backups.keep(course.path()) for _ in range(3)}
    assert len(kept) == len(course.backups()) == 3


def test_lessons_here_are_not_those_of_the_learner(course):
    assert not course.path().is_relative_to(LESSONS)
