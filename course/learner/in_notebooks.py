"""`hint`, `reset` and `progress`, as one calls them in a notebook."""

import html
import itertools
from pathlib import Path

from course.checks import table
from course.learner import asking, resetting
from course.paths import SOLUTIONS, lesson_names
from course.saved import books, homes, standing
from course.saved.states import BEGUN, DONE, TO_DO

_SHADES = {DONE: "#2e7d32", BEGUN: "#f9a825", TO_DO: "#bdbdbd"}


def hint(exercise, all: bool = False) -> None:
    """Print one more hint for an exercise each time; `exercise`: it, or its name.

    Raises LookupError if there is none of that name.
    """
    print(asking.hint_text(_name(exercise), all))


def reset(exercise) -> None:
    """Put an exercise ("kept_mass", or the function) or a lesson ("04") back as it
    came, in the saved notebook. What was saved is kept in backups/.

    Raises LookupError if there is none of that name.
    """
    word = _name(exercise)
    task = resetting.called(word)
    lesson = resetting.lesson_of(task)
    homes.name([f"{lesson}.ipynb"])  # the one beside which this kernel runs
    print(resetting.reset_one(task))
    if not homes.learners(lesson).exists():
        return
    print(
        "This changed the file, not what you have open. Now: File > Reload Notebook "
        "from Disk. (Asked whether to overwrite or to revert, choose Revert. What was "
        "not saved is in no backup.)"
    )


def progress() -> "Progress":
    """A bar for each lesson: done, begun, to do; from the saved notebooks and from what
    has passed, without running anything. In solutions/ all is done."""
    names = lesson_names()
    if Path.cwd().resolve() == SOLUTIONS.resolve():  # where all is written, by us
        ours = {n: [x.name for x in books.exercises(n)] for n in names}
        return Progress({n: dict.fromkeys(found, DONE) for n, found in ours.items()})
    states = {lesson: standing.states(lesson) for lesson in homes.here()}
    for lesson in standing.passed_here() - set(states):  # open, and not in this folder
        states[lesson] = standing.live_states(lesson)
    return Progress(dict(sorted(states.items())))


class Progress:
    """Shown as bars in JupyterLab, as text elsewhere."""

    def __init__(self, states: dict[str, dict[str, str]]):
        self.states = states

    def _rows(self):
        for lesson, states in self.states.items():
            number, topic = lesson.split("_", 1)
            done = sum(state == DONE for state in states.values())
            yield f"{number} {topic.replace('_', ' ')}", states, done

    def __repr__(self):
        rows = list(self._rows())
        if not rows:
            return homes.NONE_HERE
        width = max((len(title) for title, _, _ in rows), default=0)
        most = max((len(states) for _, states, _ in rows), default=0)
        return "\n".join(
            f"{title:<{width}}  {table.bar(states.values()):<{most}}  "
            f"{done} of {len(states)}"
            for title, states, done in rows
        )

    def _repr_html_(self):
        lines = []
        for title, states, done in self._rows():
            bars = "".join(
                _bar_html(state, list(names))
                for state, names in itertools.groupby(states, states.get)
            )
            lines.append(
                f'<tr><td style="text-align:left">{html.escape(title)}</td>'
                f'<td style="text-align:left;white-space:nowrap">{bars}</td>'
                f"<td>{done} of {len(states)}</td></tr>"
            )
        legend = " ".join(
            f'<span style="color:{shade}">■</span> {state}'
            for state, shade in _SHADES.items()
        )
        return f"<table>{''.join(lines)}</table><small>{legend}</small>"


def _bar_html(state: str, names: list[str]) -> str:
    """Neighbours of one state as one bar, as long as they are many."""
    told = html.escape(f"{state}: {', '.join(names)}")
    style = f"display:inline-block;width:{18 * len(names)}px;height:12px"
    return f'<span title="{told}" style="{style};background:{_SHADES[state]}"></span>'


def _name(exercise) -> str:
    if isinstance(exercise, str):
        return exercise
    name = getattr(exercise, "__name__", None)
    if not isinstance(name, str):
        raise books.Unknown(
            f"Give it an exercise or its name, not a {type(exercise).__name__}."
        )
    return name
