"""Where to go on, hints and our answer, in a terminal and in a notebook."""

import pytest

import course as face
from course.learner import asking, in_notebooks
from course.paths import SOLUTIONS, lesson_names
from course.saved import books, standing


def test_next_names_exercise_notebook_and_section(course):
    for exercise in books.exercises("03_your_own_loop"):
        text = f"def {exercise.name}(): pass"
        course.write(exercise.name, text, "03_your_own_loop")
        standing.remember("03_your_own_loop", exercise.name, text, passed=True)
    told = asking.next_text()
    assert "Exercise 04.1 · top_k_filter" in told
    assert "04_top_k.ipynb" in told
    assert "section   1. The tail" in told
    assert "Fill in its cell" in told
    course.write("top_k_filter", course.WRONG)
    assert "has not passed yet" in asking.next_text()
    standing.remember("04_top_k", "top_k_filter", course.WRONG, passed=True)
    assert "Exercise 04.2 · kept_mass" in asking.next_text()


def test_next_says_when_all_is_done(course, monkeypatch):
    monkeypatch.setattr(books, "exercises", lambda lesson: ())
    assert asking.next_text() == asking.ALL_DONE


def test_each_call_gives_one_more_hint_and_the_last_says_so(course):
    first, second, third = (asking.hint_text("kept_mass") for _ in range(3))
    assert "hint 1 of 2: Softmax first" in first
    assert "hint 2" not in first
    assert "hint 1 of 2" in second
    assert "hint 2 of 2: The kept tokens" in second
    assert "`-inf`" in second
    assert "answer kept_mass --give-up" in second
    assert third == second
    assert "hint 2 of" in asking.hint_text("top_k_exact", all_of_them=True)
    assert asking.hint_text("04.2") == second


def test_every_exercise_has_hints_without_html():
    for lesson in lesson_names():
        for exercise in books.exercises(lesson):
            assert exercise.hints, exercise.name
            for hint in exercise.hints:
                assert "<code>" not in hint, hint
                assert "</" not in hint, hint
                assert "&lt;" not in hint, hint


def test_our_answer_comes_after_theirs_or_when_they_give_up(course, capfd):
    ours = "def top_k_filter(logits: torch.Tensor, top_k: int) -> torch.Tensor:"
    assert asking.print_answer("top_k_filter") == 1
    assert ours not in (out := capfd.readouterr().out)
    assert "--give-up" in out
    assert asking.print_answer("top_k_filter", give_up=True) == 0
    assert ours in (out := capfd.readouterr().out)
    assert "SOLUTION" not in out
    assert "NotImplementedError" not in out
    course.write("top_k_filter", course.WRONG)
    assert asking.print_answer("top_k_filter") == 1
    course.write("top_k_filter", course.RIGHT)
    capfd.readouterr()
    assert asking.print_answer("top_k_filter") == 0
    assert ours in capfd.readouterr().out


# --- in a notebook --------------------------------------------------------------------


def test_the_face_of_the_course_has_what_a_learner_calls():
    for name in ("check", "carry", "hint", "reset", "progress"):
        assert callable(getattr(face, name))
        assert name in dir(face)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        face.chekc  # noqa: B018


def test_hint_and_reset_take_the_function_or_its_name(course, capsys):
    def kept_mass():
        pass

    in_notebooks.hint(kept_mass)
    assert "hint 1 of 2" in capsys.readouterr().out
    in_notebooks.hint("kept_mass")
    assert "hint 2 of 2" in capsys.readouterr().out
    course.write("kept_mass", "mine = 1\n")
    in_notebooks.reset(kept_mass)
    out = capsys.readouterr().out
    assert "File > Reload Notebook from Disk" in out
    assert "kept as" in out
    for wrong in (3, "kept_mas", len):
        with pytest.raises(LookupError):
            in_notebooks.hint(wrong)


def test_progress_shows_each_lesson_as_text_and_as_bars(course, monkeypatch):
    monkeypatch.setattr(in_notebooks, "lesson_names", books.lesson_names)
    course.write("top_k_filter", course.RIGHT)
    course.write("kept_mass", course.WRONG)
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=True)
    shown = in_notebooks.progress()
    text = repr(shown).splitlines()
    assert text == [
        "03 your own loop  ……………  0 of 5",
        "04 top k          ✓·………  1 of 5",
    ]
    bars = shown._repr_html_()
    assert bars.count('<span title="') == 4, "neighbours of one state are one bar"
    assert 'title="done: top_k_filter" style="display:inline-block;width:18px' in bars
    assert 'title="begun: kept_mass"' in bars
    assert 'title="to do: top_k_exact, sample_top_k, TopK"' in bars


def test_in_solutions_all_is_done_whatever_the_learner_has_done(course, monkeypatch):
    monkeypatch.setattr(in_notebooks, "lesson_names", books.lesson_names)
    monkeypatch.chdir(SOLUTIONS)
    text = repr(in_notebooks.progress())
    assert text.splitlines()[1] == "04 top k          ✓✓✓✓✓  5 of 5"


# --- after a check --------------------------------------------------------------------


@pytest.fixture
def kernel(course, monkeypatch):
    """Runs a cell as a kernel in lessons/ does: its source is in the linecache, its
    names are in __main__. Returns the exercise that the cell defines."""
    import linecache
    import sys

    monkeypatch.chdir(course.lessons)
    main = sys.modules["__main__"]

    def run(name, source, number=[0]):  # noqa: B006
        number[0] += 1
        file = f"<cell {number[0]}>"
        lines = source.splitlines(keepends=True)
        linecache.cache[file] = (len(source), None, lines, file)
        names = {}
        exec(compile(source, file, "exec"), names)
        monkeypatch.setattr(main, name, names[name], raising=False)
        return names[name]

    return run


def test_after_a_pass_one_reads_where_one_stands(course, kernel):
    filter_ = kernel("top_k_filter", "import torch\n" + course.RIGHT)
    told = standing.after_check("top_k_filter", filter_, True)
    assert told == "done, 1 of 5 in this lesson; next: kept_mass"
    # Not saved yet, and still counted after the next one.
    mass = kernel("kept_mass", "def kept_mass():\n    pass\n")
    told = standing.after_check("kept_mass", mass, True)
    assert told == "done, 2 of 5 in this lesson; next: top_k_exact"
    # Written anew, run, not checked: no longer known to pass.
    kernel("top_k_filter", "import torch\n" + course.WRONG)
    told = standing.after_check("kept_mass", mass, True)
    assert told == "done, 1 of 5 in this lesson; next: top_k_filter"
    # It fails: nothing is said of it, and what was remembered is forgotten.
    assert standing.after_check("kept_mass", mass, False) == ""
    told = standing.after_check("top_k_filter", filter_, True)
    assert told == "done, 1 of 5 in this lesson; next: kept_mass"


def test_after_a_restart_what_is_saved_and_has_passed_counts(course, kernel):
    course.write("kept_mass", "def kept_mass():\n    pass\n")
    standing.remember("04_top_k", "kept_mass", course.cell_text("kept_mass"), True)
    standing._passed_here.clear()
    filter_ = kernel("top_k_filter", "import torch\n" + course.RIGHT)
    told = standing.after_check("top_k_filter", filter_, True)
    assert told == "done, 2 of 5 in this lesson; next: top_k_exact"


def test_all_of_a_lesson_is_said_and_a_class_counts(course, kernel):
    for exercise in books.exercises("04_top_k"):
        source = f"def {exercise.name}():\n    pass\n"
        if exercise.name == "TopK":
            source = "class TopK:\n    def __call__(self):\n        pass\n"
        told = standing.after_check(exercise.name, kernel(exercise.name, source), True)
    assert told == "done, 5 of 5 in this lesson: all of it"


def test_elsewhere_than_in_lessons_nothing_is_said_or_kept(course, kernel, monkeypatch):
    filter_ = kernel("top_k_filter", course.RIGHT.replace("torch", "None"))
    monkeypatch.chdir(course.folder)
    assert standing.after_check("top_k_filter", filter_, True) == ""
    assert not (course.lessons / standing.FILE).exists()
    monkeypatch.chdir(course.lessons)
    assert standing.after_check("top_k_filter", len, True) == "", "source unknown"
    assert standing.after_check("other", filter_, True) == "", "no exercise"
