"""The folded note below the title of each lesson: how one gets the course to where this
notebook lies alone. The build adds it; it is no part of a lesson's source."""

import re

from course.paths import PIP

_SAYS = {
    "": (
        "This notebook alone, on Colab, Kaggle or a hub?",
        "Then run this in a new cell first, once:",
    ),
    "zh_CN": (
        "只有这一个笔记本（在 Colab、Kaggle 或学校的服务器上）？",
        "请先在新的单元格里运行一次：",
    ),
}
_NOTE = re.compile(r'\n\n<details class="alone">.*?</details>', re.DOTALL)


def below(source: str, language: str = "") -> str:
    """The text of a cell with the note below it."""
    title, says = _SAYS[language]
    return (
        f'{without(source)}\n\n<details class="alone"><summary>{title}</summary>'
        f"{says}\n<code>%{PIP}</code></details>"
    )


def without(source: str) -> str:
    return _NOTE.sub("", source)
