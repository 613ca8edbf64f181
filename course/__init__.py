"""Machinery of the course. Learners call `check` and `carry`; nothing else here is
needed to follow a lesson."""

from course import moved

moved.forward()

from course.checks.carrying import carry  # noqa: E402
from course.checks.checking import check  # noqa: E402

__all__ = ["carry", "check"]
