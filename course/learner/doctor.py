"""`python start.py doctor`: all that a report of a problem needs, in one block. It
looks and changes nothing; what is broken is said, and the other lines still come."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from course.paths import CODE, COMMAND, HOME, INSTALLED, PIP, ROOT

PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "accelerate", "gguf", "openai"),
    *("fastapi", "uvicorn", "matplotlib", "ipykernel", "nbformat", "pytest"),
    *("sacrebleu", *(() if INSTALLED else ("jupyterlab", "nbval"))),
)
VARIABLES = (
    *("COURSE_MODEL", "COURSE_CACHE", "OPENAI_BASE_URL", "OPENAI_MODEL", "HF_HOME"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VIRTUAL_ENV", "PYTHONPATH"),
)
MENDS = f"`{PIP}`" if INSTALLED else "`python start.py`"
MENDS += " installs what is missing"
ANEW = "make a new environment" if INSTALLED else "delete .venv and run start.py again"
PORTS = {8888: "JupyterLab", 8000: "the model's server, when started by hand"}
PROBE_SECONDS = 120

# Run by themselves, since an import of what is broken may end the process.
TORCH = """
import torch
print(f"works, {torch.get_num_threads()} threads")
found = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
mps = torch.backends.mps.is_available()
print(", ".join(names) if found else "Apple MPS" if mps else "none, so the CPU is used")
"""
MODEL = """
from tiny_models import weights
folder = weights.cache_folder() / weights.NAME
state = "whole" if weights.is_whole(folder) else "damaged: load() makes it anew"
print(folder, state if folder.exists() else "not there: the first load() fetches it",
      sep="\\n")
"""


def main() -> int:
    """Print the report. Returns 0 if nothing that lessons need is broken, else 1."""
    broken = []
    print("--- token by token: doctor ---")
    for title, look in SECTIONS.items():
        print(f"{title + ':':<12}{_safely(look, broken)}")
    print("--- end ---")
    for problem in broken:
        print(f"! {problem}")
    if not broken:
        print("Nothing is broken that lessons need.")
    return int(bool(broken))


def _safely(look: Callable, broken: list[str]) -> str:
    try:
        found = look(broken)
    except Exception as error:
        found = f"cannot be told ({type(error).__name__}: {error})"
        broken.append(f"{look.__name__.strip('_')}: {found}")
    lines = _without_home(str(found)).splitlines() or [""]
    return ("\n" + " " * 12).join(lines)


def _without_home(text: str) -> str:
    """A report is made public: the name of the user need not be in it."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 3 else text


# --- what is looked at ----------------------------------------------------------------


def _course(broken) -> str:
    if INSTALLED:
        version = importlib.metadata.version("token-by-token")
        return f"token-by-token {version}, in {CODE.parent}"
    try:
        git = ["git", "-C", str(ROOT), "log", "-1", "--format=%h of %cs"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=20)
        commit = done.stdout.strip() or "no git history"
    except (OSError, subprocess.TimeoutExpired):
        commit = "git is not installed"
    return f"{commit}, in {ROOT}"


def _python(broken) -> str:
    inside = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    where = "of .venv" if inside else f"not of .venv: {sys.executable}"
    if INSTALLED:
        where = sys.executable
    return f"{platform.python_version()} {platform.machine()}, {where}"


def _system(broken) -> str:
    return f"{platform.platform()}, {os.cpu_count()} cores{_memory()}"


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return ""  # Windows has no sysconf
    return f", {pages * size / 1e9:.0f} GB memory"


def _packages(broken) -> str:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    lines = [", ".join(found[n : n + 6]) for n in range(0, len(found), 6)]
    if missing:
        lines.append(f"MISSING: {', '.join(missing)}")
        broken.append(
            f"not installed: {', '.join(missing)}. {MENDS}; if it does not, {ANEW}."
        )
    return "\n".join(lines)


def _torch(broken) -> str:
    lines = _probe(TORCH)
    if len(lines) != 2:
        broken.append(f"torch cannot be used: {ANEW}")
        return f"BROKEN: {' '.join(lines)}"
    return f"{lines[0]}\nGPU: {lines[1]}"


def _model(broken) -> str:
    lines = _probe(MODEL)
    if len(lines) != 2:
        broken.append("tiny_models cannot be imported, see the line `model`")
        return f"cannot be told: {' '.join(lines)}"
    free = _free(Path(lines[0]))
    return f"{lines[1]}\nin {lines[0]} ({free} free)"


def _probe(code: str) -> list[str]:
    """The lines that `code` prints; where it fails, its last line alone."""
    options = {"capture_output": True, "text": True, "cwd": ROOT, "errors": "replace"}
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, timeout=PROBE_SECONDS, **options)
    except subprocess.TimeoutExpired:
        return [f"no answer in {PROBE_SECONDS} s"]
    if done.returncode == 0:
        return done.stdout.strip().splitlines()
    said = done.stderr.strip().splitlines()
    return [said[-1] if said else f"it ended with {done.returncode}"]


def _disk(broken) -> str:
    return f"{_free(HOME)} free where {'you work' if INSTALLED else 'the course is'}"


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free / 1e9:.1f} GB"


def _ports(broken) -> str:
    lines = []
    try:
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
        lines.append("a server can be started on this machine")
    except OSError as error:
        lines.append(f"NO server can be started on this machine: {error}")
        broken.append("lessons 01 and 02 start a server on 127.0.0.1, which is refused")
    for port, whose in PORTS.items():
        with socket.socket() as one:
            one.settimeout(1)
            taken = one.connect_ex(("127.0.0.1", port)) == 0
        lines.append(f"{port} ({whose}): {'in use' if taken else 'free'}")
    return "\n".join(lines)


def _settings(broken) -> str:
    told = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if "OPENAI_API_KEY" in os.environ:
        told.append("OPENAI_API_KEY is set")
    proxies = [x for x in ("HTTPS_PROXY", "https_proxy") if os.environ.get(x)]
    mirrors = [x for x in ("PIP_INDEX_URL",) if os.environ.get(x)]
    told += [f"{name} is set" for name in proxies + mirrors]  # they may hold passwords
    return ", ".join(told) or "none of the course's variables is set"


def _lessons(broken) -> str:
    from course.checks import table
    from course.saved import books, homes, standing

    lines = []
    for lesson in homes.here():
        try:
            books.read(homes.learners(lesson))
            states = standing.states(lesson).values()
            lines.append(f"{lesson:<24}{table.bar(list(states))}")
        except books.Unreadable as error:
            lines.append(f"{lesson:<24}{error}")
            broken.append(f"{error}: `{COMMAND} reset {lesson[:2]}` mends that")
    return "\n".join(lines) or homes.NONE_HERE


SECTIONS = {
    "course": _course,
    "python": _python,
    "system": _system,
    "packages": _packages,
    "torch": _torch,
    "model": _model,
    "disk": _disk,
    "ports": _ports,
    "settings": _settings,
    "lessons": _lessons,
}
