"""Ray, for lesson 18, where it is installed."""

import contextlib
import importlib.util
import logging
import os
from pathlib import Path

from course.paths import COMMAND, INSTALLED

GET = "pip install 'ray[data]' aiohttp" if INSTALLED else f"{COMMAND} scale"
MISSING = f"Ray is not installed, so nothing happens here; `{GET}` adds it."
# Read by Ray when it is imported or started. What it reports goes to its logs alone,
# and a busy machine gets more than 30 s to start its processes.
SETTINGS = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_raylet_start_wait_time_s": "45",
}
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


def is_installed() -> bool:
    """Whether Ray is installed. A folder "ray", as Ray itself makes in /tmp, is not."""
    spec = importlib.util.find_spec("ray")
    return spec is not None and spec.origin is not None


def has_ray() -> bool:
    """Whether Ray is installed; prints one sentence where it is not."""
    if not is_installed():
        print(MISSING)
        return False
    return True


def start(address: str | None = None):
    """The module `ray`, joined to the cluster at `address`.

    address: as "HOST:6379", on one of the cluster's own machines; without it
    $RAY_ADDRESS, as for Ray itself. Without that a cluster of this machine alone is
    started, which ends with the program. A program that has joined a cluster stays in
    it, whatever it asks for.
    Raises ModuleNotFoundError where Ray is not installed, and ValueError for an
    address of Ray's client, ray://HOST:10001.
    """
    if not is_installed():
        raise ModuleNotFoundError(MISSING)
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ValueError(f"Ray Data does not work with {address}: give HOST:6379")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address and _has_token():  # which Ray shows to none that it has not started
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    import ray.data

    if not ray.is_initialized():
        with _no_stderr():
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


def _has_token() -> bool:
    """Whether there is a token for a cluster, in one of the places where Ray looks."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


@contextlib.contextmanager
def _no_stderr():
    """What C++ writes to the standard error stream in this block is not shown."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
