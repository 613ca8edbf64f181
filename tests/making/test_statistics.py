"""Statistical checks: how often they would fail a right answer, and what they see."""

import ast
import importlib.util
import inspect
import math
from functools import lru_cache

import pytest
import torch

from course import paths
from course.checks import plugin
from course.making.answers import reference

SAMPLERS = {"pick_sample", "sample_top_k", "multinomial_from_scratch"}


@lru_cache
def module_of(lesson):
    path = paths.tests_of(lesson)
    spec = importlib.util.spec_from_file_location(f"checks_{lesson}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def statistical_tests():
    """(function, its mark, the exercise it asks for)"""
    for lesson in paths.lesson_names():
        module = module_of(lesson)
        names = plugin.exercises_of(module)
        for function in vars(module).values():
            for mark in getattr(function, "pytestmark", ()):
                if mark.name == "draws":
                    arguments = function.__code__.co_varnames[:2]
                    name = next(n for n in arguments if n in names)
                    yield pytest.param(function, mark, name, id=f"{name}-{lesson[:2]}")


ALL = list(statistical_tests())
every_test = pytest.mark.parametrize(("function", "mark", "name"), ALL)


def probability(n, k, p):
    """Of k successes in n draws, computed exactly."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log(1 - p))


@every_test
def test_a_thousand_runs_on_the_reference_see_no_false_alarm(function, mark, name):
    answer = reference(name)
    for seed in range(1000):
        function(**{name: answer}, seed=seed)


@every_test
def test_the_rates_are_stated_and_true(function, mark, name):
    """By the binomial distribution, for the numbers of draws in the tests."""
    assert set(mark.kwargs) == {"false_alarm", "smallest_error"}
    alarm, error = mark.kwargs["false_alarm"], mark.kwargs["smallest_error"]
    assert alarm <= 1e-6
    body = inspect.getsource(function)
    if "6 * math.sqrt(p * (1 - p) / 4000)" in body:
        alarms, missed = 0.0, 0.0
        for p in (0.75, 0.9):
            allowed = 6 * math.sqrt(p * (1 - p) / 4000)
            passes = [abs(k / 4000 - p) < allowed for k in range(4001)]
            alarms += sum(probability(4000, k, p) for k in range(4001) if not passes[k])
            for wrong in (p - error, p + error):
                total = sum(
                    probability(4000, k, wrong) for k in range(4001) if passes[k]
                )
                missed = max(missed, total)
        assert alarms <= alarm
        assert missed < 1e-6
    else:
        assert "500" in body, "another number of draws needs its own arithmetic here"
        assert alarm == 0
        assert (1 - error) ** 500 < 1e-6


@every_test
def test_an_error_of_the_stated_size_is_seen(function, mark, name):
    """An answer that draws some token too often, by the stated probability."""
    answer, error = reference(name), mark.kwargs["smallest_error"]

    def too_often(x, got):
        # Tests with four tokens give token 0 no chance; in the others token 1 has a
        # chance of 0.75 or more.
        token, share = (0, error) if x.shape[1] == 4 else (1, error / 0.25)
        return torch.where(torch.rand(got.shape) < share, token, got)

    def spoilt(x, *options):
        return too_often(x, answer(x, *options))

    if isinstance(answer, type):

        class spoilt(answer):  # noqa: N801
            def pick(self, x):
                return too_often(x, super().pick(x))

    for seed in range(20):
        with pytest.raises(AssertionError):
            function(**{name: spoilt}, seed=seed)


@pytest.mark.parametrize("lesson", paths.lesson_names())
def test_a_check_that_draws_without_an_oracle_states_its_rates(lesson):
    """A test of a sampler either compares with an oracle for the same seed, looks at
    something other than what was drawn, or is marked `draws`."""
    marked = {p.values[0].__name__ for p in ALL}
    tree = ast.parse(paths.tests_of(lesson).read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        asked = {a.arg for a in node.args.args}
        if asked & SAMPLERS and node.name not in marked:
            text = ast.unparse(node)
            assert "seed" not in asked
            assert any(
                word in text for word in ("same_ids", "rejects", "unchanged", "refused")
            ) or ("torch.equal(torch.rand(1), oracle)" in text), node.name


# --- power_sample, whose checks compare counts with exact binomial bounds -------------

WALKS = module_of("10_many_samples")


def cases_of(function):
    """The arguments of each case of a parametrized check, as a dict."""
    marks = [m for m in getattr(function, "pytestmark", ()) if m.name == "parametrize"]
    if not marks:
        return [{}]
    names, rows = marks[0].args
    if isinstance(names, str):
        return [{names: row} for row in rows]
    return [dict(zip(names, row, strict=True)) for row in rows]


WALKED = (
    WALKS.test_acceptance_worked_by_hand,
    WALKS.test_each_step_draws_a_number_of_its_own,
    WALKS.test_texts_are_drawn_from_p_to_the_power_of_alpha,
)


@pytest.mark.parametrize("p", [0.004, 0.05, 0.1875, 0.25, 0.5, 0.75, 0.97])
@pytest.mark.parametrize("n", [600, 1500])
def test_a_count_is_out_of_bounds_as_seldom_as_stated(n, p):
    low, high = WALKS.bounds(n, p)
    outside = [k for k in range(n + 1) if not low <= k <= high]
    assert sum(probability(n, k, p) for k in outside) < WALKS.ALARM
    just = sum(probability(n, k, p) for k in (low, high))
    assert sum(probability(n, k, p) for k in outside) + just > WALKS.ALARM / 2


def test_all_counts_together_fail_a_right_answer_less_than_once_in_a_million():
    acceptance, _, texts = WALKED
    counts = len(cases_of(acceptance)) + 1 + len(cases_of(texts)) * len(WALKS.TEXTS)
    assert counts * WALKS.ALARM < 1e-6


def test_an_acceptance_off_by_14_percent_is_missed_less_than_once_in_a_million():
    n = WALKS.DRAWS
    for case in cases_of(WALKS.test_acceptance_worked_by_hand):
        low, high = WALKS.bounds(n, case["wanted"])
        for wrong in (case["wanted"] - 0.14, case["wanted"] + 0.14):
            if 0 < wrong < 1:
                passes = sum(probability(n, k, wrong) for k in range(low, high + 1))
                assert passes < 1e-6


@pytest.mark.parametrize("function", WALKED)
def test_other_seeds_see_no_false_alarm(function):
    answer = reference("power_sample")
    for seed in range(1, 11):
        for case in cases_of(function):
            function(power_sample=answer, seed=seed, **case)
