"""A process for each variant, so that they share no threads and no caches of Python.

Only the one that is asked works. Jobs and answers are lines of JSON.
"""

import json
import os
import subprocess
import sys


class Failed(RuntimeError):
    """A variant's process ended. Its own message is above."""


class Workers:
    """`module` is called as `python -m MODULE NAME THREADS`, and calls `answer`."""

    def __init__(self, names, threads: int, module: str):
        self.processes = {}
        counts = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(counts, str(threads))}
        try:
            for name in names:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", module, name, str(threads)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                self._answer(name)  # loaded and compiled
                print(f"{name} is ready", file=sys.stderr, flush=True)
        except BaseException:
            self._end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _end(self):
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def ask(self, name: str, job: dict):
        """What variant `name` answers to a job. Raises Failed."""
        process = self.processes[name]
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except OSError:
            raise Failed(f"the process for {name} ended") from None
        return self._answer(name)

    def _answer(self, name):
        line = self.processes[name].stdout.readline()
        if not line:
            raise Failed(f"the process for {name} ended: its message is above")
        return json.loads(line)


def answer(make):
    """In a worker: call `make()` for the function that runs a job, then run jobs until
    the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run = make()
    print("null", file=answers, flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)
