"""Figures for the lecture: how far the class is, and its commonest mistakes."""

import re
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from course.checks.explain import DONE, TO_DO, WRONG
from course.kit.figures import BLUE, GREY, RED
from course.teaching.grading import mistakes

WIDE = (12, 6.75)  # inches: a slide of 16:9
COLOURS = {DONE: BLUE, WRONG: RED, TO_DO: GREY}
LETTERS = 135  # of a sentence, on a line
LINES = 2
# What came back token for token: the table has it, and the hint behind it says more.
_TOKENS = re.compile(r" yours \[[^]]*\] expected \[[^]]*\]\.?")


def write(rows: list[dict], lesson: str, folder: Path) -> list[Path]:
    """One figure of all exercises, one of each that somebody got wrong."""
    made = []

    def save(figure, name):
        made.append(folder / f"{lesson}_{name}.png")
        figure.savefig(made[-1], dpi=120)

    state = mistakes.states(rows, lesson)
    save(overview(state, lesson), "0_overview")
    for number, exercise in enumerate(state, 1):
        if told := mistakes.commonest(rows, lesson, exercise):
            name = f"{lesson[:2]}.{number} {exercise}"
            save(bars(told, state[exercise], name), f"{number}_{exercise}")
    return made


def overview(state: dict, lesson: str) -> Figure:
    """Each exercise a bar: done, wrong, to do."""
    figure = Figure(figsize=WIDE)
    ax = figure.add_subplot()
    places = range(len(state))
    left = [0] * len(state)
    for kind, colour in COLOURS.items():
        numbers = [counts[kind] for counts in state.values()]
        ax.barh(places, numbers, left=left, color=colour, label=kind)
        for place, start, number in zip(places, left, numbers, strict=True):
            if number:
                middle = start + number / 2
                style = {"color": "white", "ha": "center", "va": "center"}
                ax.text(middle, place, str(number), **style)
        left = [a + b for a, b in zip(left, numbers, strict=True)]
    ax.set_yticks(places, [f"{lesson[:2]}.{n} {x}" for n, x in enumerate(state, 1)])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="students", xlim=(0, max(left, default=0) or 1))
    figure.suptitle(f"Lesson {lesson}: {max(left, default=0)} students", fontsize=14)
    figure.legend(loc="outside lower right", ncols=3)
    return figure


def bars(told: list[tuple[str, int]], counts, name: str) -> Figure:
    """A bar for each sentence, which stands above it."""
    figure = Figure(figsize=WIDE)
    ax = figure.add_subplot()
    ax.barh(range(len(told)), [n for _, n in told], height=0.22, color=RED)
    for place, (text, number) in enumerate(told):
        text = _TOKENS.sub("", text)
        lines = textwrap.wrap(text, LETTERS, max_lines=LINES, placeholder=" ...")
        style = {"fontsize": 11, "parse_math": False, "in_layout": False}
        ax.text(0, place - 0.16, "\n".join(lines), va="bottom", **style)
        ax.text(number, place, f" {number}", va="center", weight="bold", **style)
    ax.set(ylim=(mistakes.MOST - 0.5, -0.75), xlim=(0, max(n for _, n in told) * 1.05))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("students who were told this first")
    state = ", ".join(f"{counts[x]} {x}" for x in COLOURS)
    figure.suptitle(f"{name}: {state}", fontsize=14)
    return figure
