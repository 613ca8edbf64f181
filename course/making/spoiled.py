"""What one answer can spoil for the next: data that the tests of a lesson share.

An answer may change its arguments in place. Where a test hands over a tensor or a list
that it does not make anew, later answers are tested with what the first one has left.
"""

import functools
import os
import sys
import threading
from collections import UserDict
from importlib import import_module

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from course.checks import checking, explain


def shared_by_tests(name: str, answer, file) -> list[str]:
    """The module's data that `answer` to the exercise `name` can spoil, and the tests
    that it fails when another test has spoiled what they share; [] if there are none.

    answer: one that passes all tests in `file`, which must be importable.
    """
    if file.stem not in sys.modules:  # where pytest, too, will look first
        import_module(file.stem)
    module = sys.modules[file.stem]
    before = _data_of(module)
    kept = _Kept()
    verdicts = checking.run(name, kept.around(answer), [file])
    kept.spoil()
    after = _data_of(module)
    found = [what for what, was in before.items() if after[what] != was]
    return found + sorted({t for t, v in verdicts if v.state != explain.DONE})


class _Kept:
    """Keeps all that an answer is given in a test, and spoils it when the next begins:
    so the answer passes its test, and every later one gets what is left."""

    def __init__(self):
        self.given, self.test = [], None
        self.turn = threading.Lock()  # some tests call an answer in several threads

    def __reduce__(self):  # some send it to another process, which no lock can go to
        return _Kept, ()

    def around(self, answer):
        """The same answer, watched."""
        if not isinstance(answer, type):
            return self._function(answer)
        methods = {n: f for n, f in vars(answer).items() if callable(f)}
        watched = {n: self._function(f) for n, f in methods.items()}
        return type(answer.__name__, (answer,), watched)

    def spoil(self):
        for value in self.given:
            spoil(value)
        self.given.clear()

    def _function(self, function):
        @functools.wraps(function)
        def watched(*values, **named):
            test = os.environ.get("PYTEST_CURRENT_TEST")  # which pytest sets
            with self.turn:
                if test != self.test:
                    self.spoil()
                self.test = test
                self.given.append((values, named))
            result = function(*values, **named)
            made = callable(result) and not isinstance(result, torch.nn.Module)
            return self._function(result) if made else result

        return watched


def spoil(value):
    """Change in place what an answer could reach from `value`."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            value.fill_(_other_than(value))
    elif isinstance(value, torch.nn.Module):
        spoil(list(value.parameters()))
        value.train()
    elif isinstance(value, DynamicCache):
        spoil([[layer.keys, layer.values] for layer in value.layers])
    elif isinstance(value, PreTrainedTokenizerBase):
        value.padding_side = "right" if value.padding_side == "left" else "left"
    elif isinstance(value, tuple):
        for one in value:
            spoil(one)
    elif isinstance(value, (list, set)):
        spoil(tuple(value))
        value.clear()
    elif isinstance(value, (dict, UserDict)):
        spoil(tuple(value.values()))
        value.clear()
    elif type(value).__module__.startswith(("test_", "tiny_models")):
        spoil(tuple(getattr(value, "__dict__", {}).values()))


def _other_than(value):
    if value.dtype is torch.bool:
        return not value.all()
    return float("nan") if value.is_floating_point() else -1


def _data_of(module) -> dict:
    """The module's own data and the cases of its tests, in a form to compare."""
    shared = {n: v for n, v in vars(module).items() if not n.startswith("__")}
    for name, value in list(shared.items()):
        for mark in getattr(value, "pytestmark", ()):
            shared[f"the cases of {name}"] = mark.args
    return {name: _frozen(value) for name, value in shared.items()}


def _frozen(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.isnan().tolist(), value.nan_to_num().tolist()
    if isinstance(value, (list, tuple)):
        return [_frozen(one) for one in value]
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return set(value) if isinstance(value, set) else id(value)
