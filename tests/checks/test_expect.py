"""What a failing line says: a difference that a reader can see, and not too much."""

import json
import re

import pytest
import torch

from course.checks import expect


def said(check, *arguments, **options) -> str:
    with pytest.raises(AssertionError) as error:
        check(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("got", "expected", "wish", "given"),
    [
        (torch.tensor(True), True, "True (a bool)", "True (a 0-d tensor)"),
        (15360.0, 15360, "15360 (an int)", "15360 (a float)"),
        ((1, 2), [1, 2], "[1, 2]", "(1, 2)"),
        ([1, 2.0000001], [1, 2.0], "2.0 at place 1", "2.0000001"),
        ([*range(20), 7], [*range(21)], "20 at place 20", "7"),
        ([*range(20)], [*range(21)], "21 values", "20"),
        ([["a"] * 13 + ["b"]], [["a"] * 14], "'a' at place 13 at place 0", "'b'"),
        (0.1 + 0.2, 0.3, "0.3", "0.30000000000000004"),
        (1, True, "True", "1"),
    ],
)
def test_values_that_differ_look_different(got, expected, wish, given):
    assert said(expect.value, got, expected, "f()") == (
        f"f() should give {wish}, not {given}."
    )


@pytest.mark.parametrize("shape", [(), (2,), (3, 40)])
def test_tensors_that_differ_look_different(shape):
    got, wanted = torch.full(shape, 1 / 3 + 1e-7), torch.full(shape, 1 / 3)
    text = said(expect.same, got, wanted, "f()")
    wish, given = re.fullmatch(
        r"f\(\) should be (.+?)(?: at .*)?, not (.+?)\.?", text.split(" (")[0]
    ).groups()
    assert json.loads(wish) != json.loads(given)


def test_a_row_of_near_ties_is_shown_with_the_digits_that_tell_them_apart():
    got = torch.tensor([[1.0, 1.000001, -1.0]])
    wanted = torch.tensor([[-1.0, 1.000001, -1.0]])
    assert said(expect.same, got, wanted, "f()") == (
        "f() should be [[-1, 1.000001, -1]], not [[1, 1.000001, -1]]."
    )


def test_of_several_long_rows_the_first_that_differs_is_shown():
    wanted = torch.zeros(2, 8)
    got = wanted.clone()
    got[1, 3] = 5
    assert said(expect.same, got, wanted, "f()") == (
        "f() should be [0, 0, 0, 0, 0, 0, 0, 0] in row 1, not [0, 0, 0, 5, 0, 0, 0, 0]."
    )


def test_what_has_a_name_is_something_and_a_call_gives_something():
    assert said(expect.value, 1, 2, "f()") == "f() should give 2, not 1."
    told = "f(): the reply should be 2, not 1."
    assert said(expect.value, 1, 2, "f(): the reply") == told


def test_of_what_is_long_or_no_value_the_type_is_told():
    ids = {"input_ids": torch.zeros(2, 9), "attention_mask": torch.zeros(2, 9)}
    text = said(expect.returned, ids, list, "f()")
    assert text == "f() should return a list, not a dict"
    text = said(expect.rejects, ValueError, lambda: object(), "f()")
    assert text == "f() should raise ValueError; it returned an object."
    text = said(expect.rejects, ValueError, lambda: None, "f()")
    assert text == "f() should raise ValueError; it returned None."


def test_ids_that_agree_and_are_too_few_or_too_many_say_of_what():
    ids = torch.arange(12).reshape(3, 4)
    two = "3 rows are asked for, yours are 2"
    six = "3 rows are asked for, yours are 6"
    early, late = "yours stops too early", "yours goes on for too long"
    for got, told in (
        (ids[:2], two),
        (torch.cat([ids, ids]), six),
        (ids[:, :2], early),
        (torch.cat([ids, ids], -1), late),
        (ids[:2, :2], f"{early}; {two}"),
    ):
        text = said(expect.same_ids, got, ids, "f()")
        assert text.endswith(f". The tokens that both have agree; {told}."), text


@pytest.mark.parametrize("step", [0, 11, 12, 30, 39])
def test_the_id_that_differs_first_is_among_those_shown(step):
    ids = torch.arange(40)[None]
    other = ids.clone()
    other[0, step] = 99
    text = said(expect.same_ids, other, ids, "f()")
    _, yours, expected = text.splitlines()
    assert " 99" in yours.replace("[", " ")
    assert f" {step}" in expected.replace("[", " ")


def test_an_object_is_shown_without_its_address():
    assert expect.show([object()]) == "[<object object>]"


def test_no_line_lists_more_than_some_dozens_of_numbers():
    rows = [list(range(500)) for _ in range(50)]
    texts = [
        said(expect.value, rows, [[1]], "f()"),
        said(expect.value, rows[0], [1], "f()"),
        said(expect.same, torch.tensor(rows), torch.tensor(rows) + 1, "f()"),
        said(expect.same_ids, torch.tensor(rows), torch.tensor(rows) + 1, "f()"),
        said(expect.returned, rows, str, "f()"),
    ]
    assert max(len(re.findall(r"\d+", text)) for text in texts) < 80
