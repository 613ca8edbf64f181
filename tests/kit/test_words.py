"""Sentences agree with their numbers."""

from course.kit.words import counted


def test_one_is_singular_and_all_else_plural():
    assert counted(1, "check") == "1 check"
    assert [counted(n, "call") for n in (0, 2)] == ["0 calls", "2 calls"]
