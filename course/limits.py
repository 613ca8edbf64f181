"""Run a learner's code so that its accidents stay its own: a time limit, a bound on
what it prints, and the global state put back afterwards.

What cannot be stopped: a single call into C that never returns to the interpreter, on
Windows or off the main thread (elsewhere a signal interrupts it if it can be
interrupted at all).
"""

import builtins
import contextlib
import ctypes
import io
import signal
import sys
import threading

import torch
from transformers.utils import logging

SECONDS = 10.0
PRINTED_LINES = 200


class TimeLimit(BaseException):
    """Raised inside code that has run for too long.

    A BaseException, so that `except Exception` in that code does not swallow it.
    """

    def __init__(self, seconds: float | None = None):
        super().__init__(seconds)
        self.seconds = seconds


@contextlib.contextmanager
def time_limit(seconds: float = SECONDS):
    """Raise TimeLimit in the body of the `with` when it runs for over `seconds`."""
    on_main = threading.current_thread() is threading.main_thread()
    limit = _by_signal if on_main and hasattr(signal, "setitimer") else _by_thread
    with limit(seconds):
        yield


@contextlib.contextmanager
def _by_signal(seconds):
    def ring(signum, frame):
        raise TimeLimit(seconds)

    before = signal.signal(signal.SIGALRM, ring)
    # It rings again, for code that caught the first with a bare `except:`.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _by_thread(seconds):
    target = ctypes.c_ulong(threading.get_ident())
    ended = threading.Event()
    lock = threading.Lock()

    def watch():
        wait = seconds
        while not ended.wait(wait):
            with lock:
                if not ended.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        target, ctypes.py_object(TimeLimit)
                    )
            wait = 0.5

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except TimeLimit:
        raise TimeLimit(seconds) from None
    finally:
        with lock:
            ended.set()
            # Takes back an exception that was set but not yet raised.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(target, None)


@contextlib.contextmanager
def contained(seconds: float = SECONDS):
    """Time limit; no `input()`; torch's global state and the RNG put back after."""
    rng = torch.get_rng_state()
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    verbosity = logging.get_verbosity()
    ask = builtins.input
    depth = sys.getrecursionlimit()
    builtins.input = _no_input
    logging.set_verbosity_error()  # warnings about the tests' tiny models
    try:
        with time_limit(seconds):
            yield
    finally:
        builtins.input = ask
        logging.set_verbosity(verbosity)
        sys.setrecursionlimit(depth)
        torch.set_rng_state(rng)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def _no_input(prompt="", /):
    raise RuntimeError("input() cannot be answered while a check runs: remove it")


class Bounded(io.TextIOBase):
    """A text stream that passes on the first lines and drops the rest."""

    def __init__(self, stream, lines: int = PRINTED_LINES):
        self.stream, self.left = stream, lines

    def write(self, text: str) -> int:
        if self.left > 0:
            kept = text.splitlines(keepends=True)[: self.left]
            self.left -= text.count("\n")
            self.stream.write("".join(kept))
            if self.left <= 0:
                self.stream.write("... (the rest of what was printed is not shown)\n")
        return len(text)

    def flush(self):
        self.stream.flush()
