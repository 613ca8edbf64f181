"""Each planted wrong answer is rejected, by the check that names its mistake."""

import pytest

from course import paths
from course.checks import plugin
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
