"""Where to go on, a hint, our answer: what a learner may ask of an exercise."""

from course.learner import check
from course.paths import COMMAND
from course.saved import books, homes, standing
from course.saved.states import BEGUN, DONE

ALL_DONE = "All exercises of all lessons have passed."


def print_next() -> int:
    print(next_text())
    return 0


def next_text() -> str:
    """What to do now, and where."""
    if not homes.here():
        return homes.NONE_HERE
    exercise = standing.next_exercise()
    if exercise is None:
        return ALL_DONE
    exercise = _as_read(exercise)
    state = standing.states(exercise.lesson)[exercise.name]
    lines = [f"Exercise {exercise.number} · {exercise.name}"]
    lines.append(f"    notebook  {books.shown(homes.learners(exercise.lesson))}")
    if exercise.section:
        lines.append(f"    section   {exercise.section}")
    if state == BEGUN:
        lines.append(
            "You have written something there that has not passed yet. Run the "
            f"`check({exercise.name})` below it, or `{COMMAND} check {exercise.name}` "
            "when it is saved."
        )
    else:
        lines.append(
            f"Fill in its cell, then run the `check({exercise.name})` below it. Stuck: "
            f"`{COMMAND} hint {exercise.name}`."
        )
    return "\n".join(lines)


def _as_read(exercise: books.Exercise) -> books.Exercise:
    """The exercise with its card in the language of the learner's notebook."""
    language = homes.language_of(homes.learners(exercise.lesson))
    there = books.exercises(exercise.lesson, language)
    return next(x for x in there if x.name == exercise.name)


# --- hints ----------------------------------------------------------------------------


def print_hint(word: str, all_of_them: bool = False) -> int:
    print(hint_text(word, all_of_them))
    return 0


def hint_text(word: str, all_of_them: bool = False) -> str:
    """One more hint each time, with those before it; after the last, all of them."""
    exercise = _as_read(books.exercise_called(word))
    number = len(exercise.hints)
    if not number:
        return f"{exercise.name} has no hint."
    seen = number if all_of_them else min(standing.hints_seen(exercise) + 1, number)
    standing.hints_seen(exercise, seen)
    lines = [
        f"{exercise.name}, hint {n} of {number}: {hint}"
        for n, hint in enumerate(exercise.hints[:seen], 1)
    ]
    if seen == number:
        lines.append(
            f"That was the last. Ours, if you want to see it: `{COMMAND} answer "
            f"{exercise.name} --give-up`. To go on without: the next lesson takes ours "
            "where yours does not pass."
        )
    return "\n".join(lines)


# --- our answer -----------------------------------------------------------------------


def print_answer(word: str, give_up: bool = False) -> int:
    exercise = books.exercise_called(word)
    if not give_up and not _passes(exercise):
        print(
            f"Yours does not pass yet. `{COMMAND} hint {exercise.name}` helps; "
            f"`{COMMAND} answer {exercise.name} --give-up` shows ours all the same."
        )
        return 1
    print(exercise.answer)
    return 0


def _passes(exercise) -> bool:
    """What is remembered, else what its checks say now."""
    state = standing.states(exercise.lesson)[exercise.name]
    if state != BEGUN:
        return state == DONE
    path = homes.learners(exercise.lesson)
    rows, _ = check.rows_of({path: [exercise.name]})
    return [row.state for of_book in rows.values() for row in of_book] == [DONE]
