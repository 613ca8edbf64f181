"""The folder .venv: made, kept up to date, and never used when it is half made.

For start.py, which runs before anything is installed: nothing but the standard library
here, and no import of other parts of the course.

One rule keeps a half-made .venv from being used: STATE says "unfinished" from before
the first change until after the last, and a set-up that finds it so starts from nothing
(what was downloaded is still in pip's cache). A .venv without STATE was made by someone
else: it is completed, and never emptied if it works.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ENV = HERE / ".venv"
BIN = ENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STATE = ENV / "start-state.json"  # what is installed; written last, see set_up
UNFINISHED = {"python": "", "installed": {}}
LOCK = ENV / "start.lock"
# Of torch's CPU build for Linux, and what shows that another one is wanted
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NVIDIA_DRIVER = ("/proc/driver/nvidia", "/dev/nvidia0")


def say(text):
    print(text)
    sys.stdout.flush()


def set_up(files, build=None):
    """Make .venv hold what `files`, names of requirements files, ask for.

    build: "cpu" or "gpu" to have that build of torch (on Linux, where there are two).
    """
    ENV.mkdir(exist_ok=True)
    with locked() as lock:
        if is_ready(files, build):  # another start.py did it while this one waited
            return

        # 1. A virtual environment to install into: the one that is there, or a new one
        state, python = read_state(), probe()
        ours = state is None or state["python"] == python
        keep = python and ours and (state is None or torch_fits(build))
        cpu_index = None
        if wants_cpu_torch(build, torch_version() if keep else None):
            cpu_index = ask_cpu_index()  # answers while .venv is made
        if keep:
            say("Bringing .venv up to date ...")
        else:
            if state == UNFINISHED:
                say("The last set-up was not finished.")
            elif python and ours:
                say("The .venv here has the other build of torch.")
            elif state or os.path.lexists(str(PYTHON)):
                say("The .venv here belongs to another folder or another Python.")
            say("Making a new .venv ...")
            write_state(UNFINISHED)
            make_env(lock)
            state, python = UNFINISHED, probe()
            say("Installing packages: 2 to 10 minutes, only this once.")

        # 2. The packages. Once a torch is there that the pin allows, pip leaves it so.
        if state:
            write_state(UNFINISHED)
        if cpu_index:
            install_cpu_torch(cpu_index, lock)
        pip_install(files, lock)
        installed = dict(state["installed"] if state else {}, **digests(files))
        write_state({"python": python, "installed": installed})
        torch = torch_version()
        say("The set-up is done%s." % (", with torch " + torch if torch else ""))


def digests(files):
    """SHA-256 of each of these requirements files, by name."""
    return {
        name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in files
    }


def is_ready(files, build=None):
    """True if .venv works, stands where it was made, and `files` were installed."""
    state = read_state()
    if state is None or not torch_fits(build):
        return False
    installed = {name: state["installed"].get(name) for name in files}
    return installed == digests(files) and state["python"] == probe()


def read_state():
    """The contents of STATE: None if there is none, UNFINISHED if it is damaged."""
    try:
        state = json.loads(STATE.read_text(encoding="utf-8"))
        return {"python": state["python"], "installed": dict(state["installed"])}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return UNFINISHED


def write_state(state):
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(state), encoding="utf-8")
    os.replace(str(new), str(STATE))


def probe():
    """Version and place of .venv's Python; None if missing, broken or too old."""
    code = (
        "import sys; assert sys.version_info >= (3, 10);"
        "print(sys.version_info[:2], ascii(sys.prefix))"
    )
    command = [str(PYTHON), "-I", "-c", code]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode()
    except (OSError, subprocess.CalledProcessError):
        return None


def make_env(lock):
    """Empty .venv, all but STATE and LOCK, and fill it with a Python that has pip."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"This Python ({sys.executable}) has no '{module}' module, "
                "needed to make .venv. On Debian or Ubuntu: "
                "sudo apt install python3-venv"
            )
    for path in ENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        elif path not in (STATE, LOCK):
            path.unlink()
    # If .venv is activated, sys.executable was in it and is gone now.
    inside = Path(sys.prefix).resolve() == ENV
    maker = sys._base_executable if inside else sys.executable
    failed, lines = follow([maker, "-m", "venv", str(ENV)], lock)
    if failed or not probe():
        say("\n".join(lines[-25:]))
        sys.exit(f"The set-up failed: {maker} could not make {ENV}.")


# On Linux there are two builds of torch, and the package index has the one for NVIDIA
# GPUs, of several GB. The other's version ends in +cpu, which `torch==...` allows too.


def torch_pin():
    """The version of torch that requirements.txt asks for; None if it asks for none."""
    text = (HERE / "requirements.txt").read_text(encoding="utf-8")
    pin = re.search(r"^torch==([\w.]+)", text, re.MULTILINE)
    return pin and pin.group(1)


def torch_version():
    """The version of torch in .venv, with its build: "2.13.0+cpu". None without one."""
    found = list(ENV.glob("lib/python*/site-packages/torch-*.dist-info"))
    return found[0].name[len("torch-") : -len(".dist-info")] if found else None


def torch_fits(build):
    """False if .venv has another build of torch than this one ("cpu", "gpu", None)."""
    torch = torch_version()
    return not (build and torch) or torch.endswith("+cpu") == (build == "cpu")


def wants_cpu_torch(build, torch):
    """Is the CPU build to be fetched? `torch` is the version that is there, or None."""
    pin = torch_pin()
    if sys.platform != "linux" or not pin or (torch and torch.split("+")[0] == pin):
        return False
    if build or torch:  # an update keeps the build that is there
        return build == "cpu" or (torch or "").endswith("+cpu")
    return not has_nvidia_gpu()


def has_nvidia_gpu():
    if any(os.path.exists(path) for path in NVIDIA_DRIVER):
        return True
    try:  # in a container or under WSL only this may be there, and it may find nothing
        command = [shutil.which("nvidia-smi") or "nvidia-smi", "-L"]
        return b"GPU " in subprocess.check_output(
            command, stderr=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return False


def ask_cpu_index():
    """Ask CPU_INDEX whether it is there. Returns a function that says so, in 5 s."""
    answers, deadline = [], time.monotonic() + 5

    def ask():
        with contextlib.suppress(Exception):  # whatever it is, the usual index is next
            urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=5).close()
            answers.append(True)

    # In a thread, since a time limit of urllib holds for a step, not for all of them.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return lambda: thread.join(max(0, deadline - time.monotonic())) or bool(answers)


def install_cpu_torch(is_there, lock):
    """Install the CPU build of torch alone; without success leave it to the next pip.

    Whoever has an index of their own loses nothing if this one is out of reach.
    """
    where = CPU_INDEX.split("/")[2]
    if is_there():
        say(f"Taking torch's CPU build from {where} (--gpu takes the other) ...")
        command = ["install", "--no-deps", "--index-url", CPU_INDEX, "--retries=2"]
        if pip(command + [f"torch=={torch_pin()}+cpu"], lock)[0] == 0:
            return
    say(
        f"{where}, which has torch's CPU build, cannot be used: torch comes from your "
        "usual package index, perhaps with several GB for GPUs."
    )


def pip_install(files, lock):
    """Have .venv's pip install `files`, or end with what to do."""
    words = ["install"]
    for name in files:
        words += ["-r", name]
    failed, lines = pip(words, lock)
    if failed:
        say("\n".join(lines[-25:]))
        sys.exit("\nThe set-up failed: {}".format(why_pip_failed("\n".join(lines))))


def pip(words, lock):
    """Run .venv's pip, as `follow` does; big downloads are named as a sign of life."""
    download = re.compile(
        r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-\s]+-[^-\s]+)\S* (\(\d.*[MG]B\))"
    )

    def show(line):
        if download.match(line):
            say("  {} {}".format(*download.match(line).groups()))
        elif line.startswith("Installing collected packages"):
            say(f"  unpacking {line.count(',') + 1} packages")

    command = [str(PYTHON), "-m", "pip"] + words
    return follow(command + ["--no-input", "--progress-bar=off"], lock, show)


def why_pip_failed(output):
    """One or two sentences on what to do, from what pip printed."""
    if re.search(r"No space left|Errno 28|not enough space", output):
        return "the disk is full. Make room (about 3 GB), then run start.py again."
    if re.search(r"(?i)Retrying \(|connection (error|broken)|timed out", output):
        return (
            "pip cannot reach the package index. Are you online? Behind a proxy set "
            "HTTPS_PROXY, for a mirror PIP_INDEX_URL; then run start.py again."
        )
    if "No matching distribution" in output:
        return (
            "the package index has no such package for this Python "
            f"({platform.python_version()}) on this computer. Try another Python, or "
            "another index with PIP_INDEX_URL."
        )
    return "pip's last lines are above. Mend what they name, run start.py again."


def follow(command, lock, show=lambda line: None):
    """Run `command` and `show` each line as it comes. Returns (exit code, lines)."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    options.update(stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    options["cwd"] = str(HERE)  # requirements files name `.`
    options["env"] = dict(os.environ, PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1")
    if os.name != "nt":
        # If only this process is killed, its child goes on writing to .venv: let the
        # child hold the lock too, so that the next start.py waits for it.
        options["pass_fds"] = [lock.fileno()]
    lines = []
    with subprocess.Popen(command, **options) as child:
        for line in child.stdout:
            lines.append(line.rstrip())
            show(lines[-1])
    return child.returncode, lines


@contextlib.contextmanager
def locked():
    """Hold LOCK; wait if another start.py does. It ends with the process holding it."""
    with LOCK.open("a") as lock:
        if not try_lock(lock):
            say("Another start.py is setting up .venv. Waiting for it ...")
            while not try_lock(lock):
                time.sleep(0.2)
        yield lock


def try_lock(lock):
    """Take the lock on an open file; False if another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks says something else: go on without one.
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True
