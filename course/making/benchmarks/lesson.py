"""Lesson 14's own step, compiled, reading 4-bit blocks: the reference's cells that
define something, without those that measure and draw."""

from course.paths import SOLUTIONS
from course.saved import books

LESSON = "14_as_fast_as_memory_allows"
TAGS = {"setup", "exercise", "kernels"}


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
