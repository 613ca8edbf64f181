"""Put back what code may change for the whole program: torch's functions and settings,
random states, the working folder.

A check compares a learner's answer with torch and transformers. If an earlier cell has
replaced `torch.softmax`, by accident or in play, both sides of that are wrong.
"""

import builtins
import contextlib
import os
import pickle
import random
import sys

import numpy
import torch
from transformers.utils import logging

# What checks rely on, as it was when the course was imported. (Of the builtins only
# Python's own: Jupyter sets some, such as `input`, anew for each cell.)
_ORIGINALS = {
    owner: {name: value for name, value in vars(owner).items() if callable(value)}
    for owner in (torch, torch.Tensor, torch.nn.functional, torch.nn.Module)
}
_ORIGINALS[builtins] = {
    name: value
    for name, value in vars(builtins).items()
    if type(value) in (type, type(len)) and name != "input"
}
_TENSORS_OWN = frozenset(vars(torch.Tensor))


def mend() -> list[str]:
    """Put back torch's and Python's own functions; the names of those replaced."""
    mended = []
    for owner, originals in _ORIGINALS.items():
        now = vars(owner)
        for name, value in originals.items():
            found = now.get(name)
            if found is not value and not _wraps(found, value):
                setattr(owner, name, value)
                mended.append(f"{owner.__name__}.{name}")
    # torch.Tensor inherits most methods: a new one of the same name hides them.
    inherited = dir(torch._C.TensorBase)
    for name in [n for n in vars(torch.Tensor) if n in inherited]:
        if name not in _TENSORS_OWN:
            delattr(torch.Tensor, name)
            mended.append(f"Tensor.{name}")
    return mended


def _wraps(now, original) -> bool:
    """torch wraps some functions of its own, when it compiles: that is no accident."""
    while now is not original and hasattr(now, "__wrapped__"):
        now = now.__wrapped__
    return now is original


# What a program sets for itself: how to read it, and how to set it again.
_STATES = (
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (  # pickled, since states with arrays in them cannot be compared
        lambda: pickle.dumps(numpy.random.get_state()),
        lambda state: numpy.random.set_state(pickle.loads(state)),
    ),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (logging.get_verbosity, logging.set_verbosity),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (os.getcwd, os.chdir),
    (lambda: builtins.input, lambda own: setattr(builtins, "input", own)),
    (lambda: dict(os.environ), lambda e: (os.environ.clear(), os.environ.update(e))),
)


@contextlib.contextmanager
def state_put_back():
    """The program's settings and random states are afterwards what they were before."""
    before = [get() for get, _ in _STATES]
    try:
        yield
    finally:
        for (get, put), was in zip(_STATES, before, strict=True):
            if not _equal(get(), was):
                put(was)
        mend()


@contextlib.contextmanager
def standard_state():
    """torch as it is when it has just been imported, whatever a notebook has set; what
    it has set is there again afterwards."""
    with state_put_back():
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        if torch.are_deterministic_algorithms_enabled():  # to set it imports a compiler
            torch.use_deterministic_algorithms(False)
        yield


def _equal(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
