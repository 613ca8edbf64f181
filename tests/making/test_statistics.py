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
