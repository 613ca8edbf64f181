"""Mutants of the reference answers that compute the same, and why.

exercise -> {change, as `python -m course.trust` prints it: reason}
"""

EQUIVALENT = {}
