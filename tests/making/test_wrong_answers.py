"""Each planted wrong answer is rejected, by the check that names its mistake."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from course import paths
from course.checks import plugin
from course.making import spoiled
from course.making.answers import answers, is_caught
from course.paths import SOLUTIONS

ALL = [
    pytest.param(answer, lesson, id=f"{answer.exercise}-{answer.name}")
    for lesson in paths.lesson_names()
    for answer in answers("wrong_answers", lesson)
]


@pytest.mark.parametrize(("answer", "lesson"), ALL)
def test_a_wrong_answer_is_rejected_by_the_check_about_its_mistake(answer, lesson):
    assert answer.why, "a docstring should say what the misconception is"
    assert f"def {answer.by}(" in paths.tests_of(lesson).read_text(encoding="utf-8")
    assert len(answer.says) >= 3, "a phrase that the learner must be shown"
    assert is_caught(answer) == ""


@pytest.mark.parametrize("lesson", paths.lesson_names())
def test_each_exercise_has_at_least_five_wrong_answers(lesson):
    exercises = list(plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").sources)
    given = [answer.exercise for answer in answers("wrong_answers", lesson)]
    counts = {name: given.count(name) for name in exercises}
    few = {name: count for name, count in counts.items() if count < 5}
    assert not few, f"write more in tests/lessons/wrong_answers/{lesson}.py: {few}"
    assert set(given) <= set(exercises), "a wrong answer to an unknown exercise"


# --- what one answer leaves behind ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        pytest.param(name, lesson, id=f"{lesson[:2]}-{name}")
        for lesson in paths.lesson_names()
        for name in plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").sources
    ],
)
def test_no_answer_can_change_what_the_next_is_tested_with(name, lesson, monkeypatch):
    """Ours, in the process in which all of the above have run, passes every check; and
    so it does when all that it was given in one test is spoiled before the next."""
    file = paths.tests_of(lesson)
    monkeypatch.syspath_prepend(str(file.parent))
    answer = plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").get(name)
    found = spoiled.shared_by_tests(name, answer, file)
    assert not found, "make these anew for each call, or hand over immutable data"


SHARING = """
import pytest
import torch

from course.checks.plugin import exercise

double = exercise("double")
ROW = torch.tensor([1])
PAIR = (1, [2])
CASES = pytest.mark.parametrize("numbers", [[1], [2, 3]])


def test_first(double):
    double(ROW)


def test_second(double):
    assert double(PAIR[1] + []) == [2, 2]
    assert ROW.tolist() == [1]


@CASES
def test_third(double, numbers):
    double(numbers)


def test_fourth(double):
    double(PAIR)
"""


def test_data_that_tests_share_are_found(tmp_path, monkeypatch):
    file = tmp_path / "test_00_sharing.py"
    file.write_text(SHARING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = spoiled.shared_by_tests("double", lambda x: x * 2, file)
    assert sorted(found) == ["PAIR", "ROW", "second", "the cases of test_third"]


def test_threads_of_one_test_do_not_spoil_each_other(monkeypatch):
    kept, calls = spoiled._Kept(), []
    double = kept.around(lambda x: x * 2)
    double(torch.ones(1))
    spoil = kept.spoil

    def slowly():
        calls.append(1)
        time.sleep(0.1 * len(calls))
        spoil()

    kept.spoil = slowly
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another")
    rows = [torch.ones(1), torch.ones(1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(double, rows))
    assert rows == [1, 1]
    assert len(calls) == 1
