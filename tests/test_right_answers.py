"""Correct answers in other styles than ours pass every check."""

import pytest

from course.answers import answers, is_accepted
from course.paths import lesson_names

ALL = [
    pytest.param(answer, id=f"{answer.exercise}-{answer.name}")
    for lesson in lesson_names()
    for answer in answers("right_answers", lesson)
]


@pytest.mark.parametrize("answer", ALL)
def test_a_right_answer_passes_every_check(answer):
    assert answer.why, "a docstring should say what is unusual"
    assert is_accepted(answer) == ""
