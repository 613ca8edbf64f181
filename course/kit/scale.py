"""Ray, for lesson 18, where it is installed."""

import importlib.util
import logging
import os

MISSING = (
    "Ray is not installed, so nothing happens here; `python start.py scale` adds it."
)

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


def has_ray() -> bool:
    """Whether Ray is installed; prints one sentence where it is not."""
    if importlib.util.find_spec("ray") is None:
        print(MISSING)
        return False
    return True


def start(address: str | None = None):
    """The module `ray`, joined to the cluster at `address`.

    address: as "ray://HOST:10001" from anywhere, or "auto" on one of the cluster's own
    machines. Without it a cluster of this machine alone is started, which ends with the
    program. A program that has joined a cluster stays in it, whatever it asks for.
    Raises ModuleNotFoundError where Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(MISSING)
    # Before the import, which reads them: what Ray's own processes report goes to its
    # logs alone, and a busy machine gets more than 30 s to start them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "45")
    import ray
    import ray.data

    if not ray.is_initialized():
        if address:
            ray.init(address, **QUIET)
        else:
            _start_here(ray)
    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _start_here(ray):
    """A cluster of this machine. Ray gives up where one of its processes takes more
    than 15 s to start (github.com/ray-project/ray/issues/65983): try again then."""
    for left in (2, 1, 0):
        try:
            ray.init(
                "local",
                num_cpus=max(2, os.cpu_count() or 2),
                include_dashboard=False,
                **QUIET,
            )
            break
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
