"""Other processes of this machine, for lesson 18: one a core, and a group of all."""

import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.distributed as dist
from numba import cloudpickle  # which also takes what a notebook defines


class Processes:
    """So many processes, each with one thread for torch, and a gloo group of all.

    Starting takes as long as importing torch does. They stay until `close`, so that a
    model that one of them has loaded is there for the next call. Use as a context
    manager, or close it.
    """

    def __init__(self, number: int):
        self._folder = tempfile.TemporaryDirectory()
        meeting = os.path.join(self._folder.name, "meeting")
        # A pool for each, so that it is known which one gets what.
        self._pools = [
            ProcessPoolExecutor(
                1, _context(), _join, (f"file://{meeting}", rank, number)
            )
            for rank in range(number)
        ]
        for ready in [pool.submit(os.getpid) for pool in self._pools]:
            ready.result()

    def run(self, function: Callable, arguments: list[tuple]) -> list:
        """function(*arguments[n]) in the n-th process, all at once; what they return.

        An error in one of them is raised here.
        """
        started = [
            _start(pool, function, given)
            for pool, given in zip(self._pools, arguments, strict=False)
        ]
        return [cloudpickle.loads(future.result()) for future in started]

    def close(self):
        for pool in self._pools:
            pool.shutdown()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _context():
    """How processes start. On Linux they are copies of one that has imported all."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    model = "transformers.models.llama.modeling_llama"
    context.set_forkserver_preload([__name__, "tiny_models", model])
    return context


def _start(pool, function, arguments) -> Future:
    return pool.submit(_call, cloudpickle.dumps((function, arguments)))


def _call(pickled: bytes) -> bytes:
    function, arguments = cloudpickle.loads(pickled)
    return cloudpickle.dumps(function(*arguments))


def _join(meeting: str, rank: int, number: int):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=number)
