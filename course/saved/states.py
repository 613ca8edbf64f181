"""What an exercise can be. (A module of its own, so that those who only read what is
saved need not wait for torch.)"""

DONE, WRONG, TO_DO = "done", "wrong", "to do"
BEGUN = "begun"  # written, and not known to pass: checked it would be one of the above
