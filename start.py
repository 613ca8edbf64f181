"""Sets up and runs the course. Needs nothing but Python 3.10 or newer.

    python start.py                 open the lessons in JupyterLab
    python start.py check [NN ...]  check your exercises: all, or lesson 04, or top_k
    python start.py test            run the course's own tests
    python start.py teach           add the tools that teachers and maintainers need

The first run makes the folder .venv beside this file and installs requirements.txt
into it; later runs need no network. Nothing outside .venv is changed. Options go on to
JupyterLab (python start.py --no-browser) or pytest (python start.py check 04 -x).
"""
# ruff: noqa: E402, UP010, UP031, UP036

# An old Python must get as far as the sentence below. That is why this file keeps to
# syntax that even Python 2 can parse: no f-strings, no annotations, ASCII only.
from __future__ import print_function

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "This course needs Python 3.10 or newer; this is Python %d.%d (%s). Install a "
        "newer one and call it by its name, for example: python3.12 start.py"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = HERE / ".venv"
BIN = ENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STATE = ENV / "start-state.json"  # what is installed; written last, see set_up
UNFINISHED = {"python": "", "installed": {}}
LOCK = ENV / "start.lock"


def main(argv):
    """Run one command line (without the program's name); does not return."""
    if argv[:1] in (["-h"], ["--help"], ["help"]):
        sys.exit(print(__doc__.strip()))
    command = "lab"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
    if command not in ("lab", "check", "test", "teach"):
        sys.exit(
            "start.py has no command '%s'. There are check, test and teach; without a "
            "command it opens JupyterLab. More: python start.py --help" % command
        )
    if command == "teach" and argv:
        sys.exit("`start.py teach` takes nothing after it, got: " + " ".join(argv))
    if command == "check":
        argv = find_lessons(argv)  # before the set-up: a typo must not cost minutes

    files = ["requirements.txt"]
    if command == "teach":
        files.append("requirements-teach.txt")
    os.chdir(str(HERE))
    try:
        set_up(files)
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run start.py again; the set-up will begin afresh.")
    except OSError as error:
        sys.exit(
            "The set-up stopped: %s. Is there room on the disk, may you write to %s, "
            "and is JupyterLab closed? Then run start.py again." % (error, HERE)
        )

    if command == "teach":
        sys.exit(say("The tools for teachers and maintainers are in .venv."))
    if command == "lab":
        # The root is the whole course, so that solutions/ can be opened too.
        root = "--ServerApp.root_dir=" + str(HERE)
        become(["jupyterlab", root, "--LabApp.default_url=/lab/tree/lessons"] + argv)
    # Notebooks and test files side by side; each stays whole, its cells in order.
    spread = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    become(["pytest"] + (spread if command == "test" else []) + argv)


def find_lessons(words):
    """Turn the lessons in `words` (4, 04, top_k, 04_top_k) into pytest's arguments.

    Lessons come first, then pytest's options. No lesson means all of them; an unknown
    one ends the program with a sentence.
    """
    notebooks = sorted((HERE / "lessons").glob("[0-9][0-9]_*.ipynb"))
    names = {}
    for path in notebooks:
        number, topic = path.stem.split("_", 1)
        for name in (number, number.lstrip("0"), topic, path.stem):
            names[name] = "lessons/" + path.name
    found = []
    while words and not words[0].startswith("-"):
        name = Path(words[0]).stem  # lessons/04_top_k.ipynb will do as well
        if name not in names:
            there = ", ".join(path.stem for path in notebooks) or "none"
            sys.exit("There is no lesson '%s'. There are: %s." % (words[0], there))
        found.append(names[name])
        words = words[1:]
    return (found or ["lessons"]) + words


def become(module):
    """Go on as `.venv`'s `python -m module`: its signals, its exit code."""
    # What `activate` does, for this program alone, so that a terminal opened inside
    # JupyterLab finds the course's python and pytest.
    os.environ["VIRTUAL_ENV"] = str(ENV)
    os.environ["PATH"] = str(BIN) + os.pathsep + os.environ.get("PATH", "")
    command = [str(PYTHON), "-m"] + module
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows has no exec. Ctrl-C is JupyterLab's, which asks before it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call(command))


def say(text):
    print(text)
    sys.stdout.flush()


# ------------------------------------------------------------------------------------
# The set-up. One rule keeps a half-made .venv from being used: STATE says "unfinished"
# from before the first change until after the last, and a set-up that finds it so
# starts from nothing (what was downloaded is still in pip's cache). A .venv without
# STATE was made by someone else: it is completed, and never emptied if it works.


def set_up(files):
    """Make .venv hold what `files`, names of requirements files, ask for."""
    wanted = {}
    for name in files:
        wanted[name] = hashlib.sha256((HERE / name).read_bytes()).hexdigest()
    if is_ready(wanted):
        return
    ENV.mkdir(exist_ok=True)
    with locked() as lock:
        if is_ready(wanted):  # another start.py did it while this one waited
            return

        # 1. A virtual environment to install into: the one that is there, or a new one
        state, python = read_state(), probe()
        if python and (state is None or state["python"] == python):
            say("Bringing .venv up to date ...")
        else:
            if state == UNFINISHED:
                say("The last set-up was not finished.")
            elif state or os.path.lexists(str(PYTHON)):
                say("The .venv here belongs to another folder or another Python.")
            say("Making a new .venv ...")
            write_state(UNFINISHED)
            make_env(lock)
            state, python = UNFINISHED, probe()
            say("Installing packages: 2 to 10 minutes, about 1.5 GB, only this once.")
            if sys.platform == "linux":
                say("(Much smaller on a Linux without GPU if you follow README.md.)")

        # 2. The packages
        if state:
            write_state(UNFINISHED)
        pip_install(files, lock)
        installed = dict(state["installed"] if state else {}, **wanted)
        write_state({"python": python, "installed": installed})
        say("The set-up is done.")


def is_ready(wanted):
    """True if .venv works, stands where it was made, and `wanted` was installed."""
    state = read_state()
    if state is None:
        return False
    installed = {name: state["installed"].get(name) for name in wanted}
    return installed == wanted and state["python"] == probe()


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
                "This Python (%s) has no '%s' module, needed to make .venv. On Debian "
                "or Ubuntu: sudo apt install python3-venv" % (sys.executable, module)
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
        sys.exit("The set-up failed: %s could not make %s." % (maker, ENV))


def pip_install(files, lock):
    """Have .venv's pip install `files`; big downloads are named as a sign of life."""
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    for name in files:
        command += ["-r", name]
    download = re.compile(
        r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-\s]+-[^-\s]+)\S* (\(\d.*[MG]B\))"
    )

    def show(line):
        if download.match(line):
            say("  %s %s" % download.match(line).groups())
        elif line.startswith("Installing collected packages"):
            say("  unpacking %d packages" % (line.count(",") + 1))

    failed, lines = follow(command, lock, show)
    if failed:
        say("\n".join(lines[-25:]))
        sys.exit("\nThe set-up failed: %s" % why_pip_failed("\n".join(lines)))


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
            "the package index has no such package for Python %d.%d on this computer. "
            "Try another Python, or another index with PIP_INDEX_URL."
            % sys.version_info[:2]
        )
    return "pip's last lines are above. Mend what they name, run start.py again."


def follow(command, lock, show=lambda line: None):
    """Run `command` and `show` each line as it comes. Returns (exit code, lines)."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    options.update(stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
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


if __name__ == "__main__":
    main(sys.argv[1:])
