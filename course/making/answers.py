"""Answers on which the checks themselves are tried.

tests/lessons/wrong_answers/NN_topic.py holds plausible mistakes of a lesson's learners,
and tests/lessons/right_answers/NN_topic.py correct answers in another style than ours.
Each answer is a function or class, named for what it does; its docstring is a sentence
on the misconception, or on the style:

    @wrong("top_k_filter", "test_each_row_has_its_own_threshold", "have shape")
    def one_threshold_for_all_rows(logits, top_k):
        "The smallest of all rows' best logits serves every row."
        ...
"""

import functools
import runpy
from dataclasses import dataclass

from course.checks import checking, explain, plugin
from course.paths import SOLUTIONS, TESTS, lesson_names, tests_of


@dataclass(frozen=True)
class Answer:
    """One answer to an exercise, and for a wrong one the check that must reject it."""

    exercise: str
    name: str
    why: str
    value: object
    by: str = ""
    says: str = ""


def wrong(exercise: str, by: str, says: str):
    """Marks a wrong answer. `by`: the test that must fail; `says`: a phrase of the
    sentence that the learner must then be shown."""
    return lambda value: _answer(exercise, value, by, says)


def right(exercise: str):
    """Marks a right answer: every check must accept it."""
    return lambda value: _answer(exercise, value)


def _answer(exercise, value, by="", says=""):
    why = " ".join((value.__doc__ or "").split())
    return Answer(exercise, value.__name__, why, value, by, says)


def reference(name: str):
    """Our own answer to the exercise `name`, for answers that build on another one."""
    return plugin.loaded(SOLUTIONS / f"{lesson_of(name)}.ipynb").exercises[name]


@functools.cache
def lesson_of(name: str) -> str:
    """The lesson that has the exercise `name`."""
    return next(x for x in lesson_names() if tests_of(x) in checking.test_files(name))


def answers(kind: str, lesson: str) -> list[Answer]:
    """The answers of tests/<kind>/<lesson>.py, in the order of the file; kind is
    "wrong_answers" or "right_answers"."""
    path = TESTS / kind / f"{lesson}.py"
    if not path.exists():
        return []
    return [x for x in runpy.run_path(str(path)).values() if isinstance(x, Answer)]


def verdicts(answer: Answer) -> list[tuple[str, explain.Verdict]]:
    """(title, verdict) of each check: of `answer.by` alone if there is one."""
    files = [tests_of(lesson_of(answer.exercise))]
    return checking.run(answer.exercise, answer.value, files, only=answer.by)


def is_caught(answer: Answer) -> str:
    """Why a wrong answer is not caught as it should be; "" if it is."""
    told = [v.text for _, v in verdicts(answer) if v.state == explain.WRONG]
    if not told:
        return f"{answer.by} accepts it"
    shown = " ".join(" ".join(told).split())
    return "" if answer.says in shown else f"{answer.says!r} is not in: {shown}"


def is_accepted(answer: Answer) -> str:
    """Why a right answer is not accepted by every check; "" if it is."""
    told = [f"{t}: {v.text}" for t, v in verdicts(answer) if v.state != explain.DONE]
    return "\n".join(told)
