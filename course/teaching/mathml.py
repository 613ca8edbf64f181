"""LaTeX formulas as MathML, which browsers typeset themselves: no script, no network.

docutils converts; what it does not know is an error, so that a build finds it.
"""

import re

from docutils.utils.math.latex2mathml import tex2mathml


def mathml(tex: str, block: bool = False) -> str:
    r"""A formula, without its dollars, as a <math> element.

    Raises ValueError with the formula in it where docutils cannot read it.
    """
    try:
        return tex2mathml(grouped(tex.strip()), as_block=block)
    except Exception as error:  # MathError, and whatever its parser stumbles over
        raise ValueError(f"the formula {tex.strip()!r}: {error}") from error


def grouped(tex: str) -> str:
    r"""`a \textstyle b` as `a {\textstyle b}`: the same to TeX, needed by docutils."""
    for found in re.finditer(r"\\(?:text|display)style(?![a-z])", tex, re.IGNORECASE):
        before = tex[: found.start()]
        outermost = before.count("{") - before.count(r"\{") == (
            before.count("}") - before.count(r"\}")
        )
        if before.strip() and outermost:
            return f"{before}{{{grouped(tex[found.start() :])}}}"
    return tex
