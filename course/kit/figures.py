"""The look that the lessons' figures share, and labels for tokens.

Importing this module sets matplotlib's defaults for the session: Okabe and Ito's eight
colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/).
"""

import logging

import matplotlib as mpl
from cycler import cycler

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY = "#7F7F7F"
SEQUENTIAL = "viridis"

mpl.rcParams.update(
    {
        "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
        "font.size": 10,
        "image.cmap": SEQUENTIAL,
        "legend.frameon": False,
        "lines.markersize": 4,
    }
)
# A token may be in a script that the font lacks. That is no news to a reader.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def token_label(tokenizer, token_id: int) -> str:
    """A token's text with its spaces and line ends made visible, for a figure."""
    return visible(tokenizer.decode([int(token_id)]))


def visible(text: str) -> str:
    """Spaces as ␣, line ends as ⏎, tabs as →; a $ that matplotlib leaves alone."""
    for character, shown in ((" ", "␣"), ("\n", "⏎"), ("\t", "→"), ("$", r"\$")):
        text = text.replace(character, shown)
    return text


def token_bars(ax, labels, values, colours=None, fmt="{:.2f}"):
    """Horizontal bars, the first on top, each with its value written beside it."""
    places = range(len(labels))
    ax.barh(places, values, color=colours or BLUE)
    ax.set_yticks(places, labels)
    ax.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        ax.annotate(
            fmt.format(value),
            (value, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    ax.set_xlim(0, max(values) * 1.15)
    ax.tick_params(axis="y", length=0)
    return ax


def token_strip(ax, labels, values, per_row=12, cmap=SEQUENTIAL, label="", vmax=None):
    """A text as rows of boxes, one for each token, coloured by its value."""
    top = vmax or max(values)
    rows = -(-len(labels) // per_row)
    colours = mpl.colormaps[cmap]
    for n, (text, value) in enumerate(zip(labels, values, strict=True)):
        row, column = divmod(n, per_row)
        shade = colours(min(value / top, 1.0))
        ax.add_patch(
            mpl.patches.Rectangle((column, row), 0.97, 0.8, color=shade, linewidth=0)
        )
        dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
        ax.text(
            column + 0.485,
            row + 0.4,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    ax.set(xlim=(0, per_row), ylim=(rows, -0.1))
    ax.axis("off")
    norm = mpl.colors.Normalize(0, top)
    mappable = mpl.cm.ScalarMappable(norm, colours)
    ax.figure.colorbar(mappable, ax=ax, label=label, fraction=0.025, pad=0.01)
    return ax
