"""Grading, nbgrader, slides, the site and the guide."""
