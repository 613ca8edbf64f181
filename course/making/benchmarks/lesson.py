"""Lesson 14's own step, compiled, reading 4-bit blocks: the reference's cells that
define something, without those that measure and draw."""

import base64

from course.paths import ROOT, SOLUTIONS
from course.saved import books

LESSON = "14_as_fast_as_memory_allows"
TAGS = {"setup", "exercise", "kernels"}
PICTURE = ROOT / "course" / "speed.png"  # which README.md shows


def definitions(lesson: str = LESSON) -> dict:
    """The names that the reference's cells with one of TAGS define, in their order.
    They print and measure nothing."""
    space = {"__name__": "lesson"}
    for cell in books.read(SOLUTIONS / f"{lesson}.ipynb")["cells"]:
        if cell["cell_type"] == "code" and books.tags_of(cell) & TAGS:
            source = books.answer_of(books.source_of(cell))
            exec(compile(source, f"lesson {lesson[:2]}", "exec"), space)
    return space


def step_and_weights():
    """(step_by_hand, its weights in 4-bit blocks)"""
    from tiny_models import gguf_path
    from tiny_models.kernels import as_they_are, read_gguf

    space = definitions()
    return space["step_by_hand"], space["packed"](
        read_gguf(gguf_path(), pack=as_they_are)
    )


def figure(lesson: str = LESSON) -> bytes:
    """The last figure of the executed reference, a PNG. Raises LookupError."""
    found = [
        output["data"]["image/png"]
        for cell in books.read(SOLUTIONS / f"{lesson}.ipynb")["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    if not found:
        raise LookupError(f"solutions/{lesson}.ipynb has no figure")
    return base64.b64decode("".join(found[-1]))
