"""Correct answers in other styles than ours pass every check."""

import pytest

from course.checks import plugin
from course.making.answers import answers, is_accepted
from course.paths import SOLUTIONS, lesson_names

ALL = [
    pytest.param(answer, id=f"{answer.exercise}-{answer.name}")
    for lesson in lesson_names()
    for answer in answers("right_answers", lesson)
]


@pytest.mark.parametrize("answer", ALL)
def test_a_right_answer_passes_every_check(answer):
    assert answer.why, "a docstring should say what is unusual"
    assert is_accepted(answer) == ""


@pytest.mark.parametrize("lesson", lesson_names())
def test_each_exercise_has_at_least_three_right_answers(lesson):
    exercises = list(plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").sources)
    given = [answer.exercise for answer in answers("right_answers", lesson)]
    counts = {name: given.count(name) for name in exercises}
    few = {name: count for name, count in counts.items() if count < 3}
    assert not few, f"write more in tests/lessons/right_answers/{lesson}.py: {few}"
    assert set(given) <= set(exercises), "a right answer to an unknown exercise"
