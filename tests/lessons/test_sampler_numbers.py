"""Numbers that a learner tries on our filters, and that only just come out in floats.

Not among the checks: in another precision log 0.5 is rounded otherwise, and another
answer is right for that.
"""

import pytest
import torch

from course.making.answers import reference


@pytest.mark.parametrize(
    ("probabilities", "top_p", "number"),
    [
        ([0.5, 0.4, 0.1], 0.5, 1),
        ([0.3, 0.1, 0.1, 0.5], 0.8, 2),
        ([0.25] * 4, 0.75, 3),
        ([0.1] * 10, 0.5, 5),
    ],
)
def test_the_smallest_set_is_that_of_the_decimal_numbers(probabilities, top_p, number):
    logits = torch.tensor([probabilities]).log()
    got = reference("top_p_filter")(logits, top_p)
    assert (got > -torch.inf).sum() == number
