"""Ray, for lesson 18, where it is installed."""

import importlib.util
import logging
import os

MISSING = (
    "Ray is not installed, so nothing happens here; `python start.py scale` adds it."
)


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
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    import ray
    import ray.data

    if not ray.is_initialized():
        here = {"num_cpus": max(2, os.cpu_count() or 2), "include_dashboard": False}
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else here),
        )
    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
