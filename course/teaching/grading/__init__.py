"""From graded notebooks to what a teacher hands on.

owners      whose notebook a file is, by the names that learning platforms give
roster      the list of the class, and who of it an owner is
table       a row for each notebook and exercise: the CSV that grading goes on from
standings   which notebook of a student counts, the totals, who is missing
mistakes    the commonest sentences, as a table
pictures    the same, as figures
equals      answers that are the same but for names and comments
pages       HTML: feedback for a student, equal answers side by side
folder      all of it, written into one folder
"""
