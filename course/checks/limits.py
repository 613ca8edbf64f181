"""Run a learner's code so that its accidents stay its own: a time limit, a bound on
what it prints, and the global state put back afterwards.

What cannot be stopped: a single call into C that never returns to the interpreter, on
Windows or off the main thread (elsewhere a signal interrupts it if it can be
interrupted at all); a process that ends itself (`os._exit`, a crash in C, more memory
than the system has). In a terminal pytest ends such a run after five minutes, with the
line where it stood (see pyproject.toml); in a notebook, restart the kernel.
"""

import builtins
import contextlib
import ctypes
import io
import signal
import threading

from transformers.utils import logging

from course.checks.pristine import state_put_back

SECONDS = 10.0
PRINTED_LINES = 200
LINE = 100  # characters


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
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # where it rings at this very moment, too
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
        try:
            with lock:
                ended.set()
            # One that was set but not yet raised comes here. To take it back instead
            # would leave Python 3.11 looking for it ever after: slower, and without an
            # end where a profiler is set.
            for _ in range(3):
                pass
        except TimeLimit:
            with lock:
                ended.set()


@contextlib.contextmanager
def contained(seconds: float = SECONDS):
    """Time limit; no `input()`; the program's state put back afterwards."""
    with state_put_back():
        builtins.input = _no_input
        logging.set_verbosity_error()  # warnings about the tests' tiny models
        with time_limit(seconds):
            yield


def _no_input(prompt="", /):
    raise RuntimeError("input() cannot be answered while a check runs: remove it")


class Bounded(io.TextIOBase):
    """A text stream that passes on the first lines and drops the rest."""

    def __init__(self, stream, lines: int = PRINTED_LINES):
        self.stream, self.left = stream, lines * LINE  # characters

    def write(self, text: str) -> int:
        if self.left > 0:
            kept = text[: self.left].splitlines(keepends=True)[: 1 + self.left // LINE]
            # A line costs as much as a full one, so that there are not too many.
            self.left -= sum(max(len(line), LINE) for line in kept if line.strip(" "))
            self.stream.write("".join(kept))
            if self.left <= 0:
                self.stream.write("... (the rest of what was printed is not shown)\n")
        return len(text)

    def flush(self):
        self.stream.flush()
