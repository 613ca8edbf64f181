"""The machine that the numbers come from."""

import os
import platform
from importlib.util import find_spec


def described(threads: int) -> str:
    """The processor, the threads, the system and the versions, in one line."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        known = {key.strip(): value.strip() for key, value in fields.items()}
        name = known.get("model name", name)
        if "cpu family" in known:
            name += f" (family {known['cpu family']}, model {known.get('model', '?')})"
    return (
        f"{name}, {processors()} processors, {threads} threads, {platform.system()}, "
        f"Python {platform.python_version()}, {versions()}"
    )


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", "transformers", "numba", "llama-cpp-python"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float:
    """How many processes wanted a processor in the last minute; NaN on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def importable(name: str) -> bool:
    return find_spec(name) is not None
