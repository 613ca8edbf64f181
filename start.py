"""Sets up and runs the course. Needs nothing but Python 3.10 or newer.

    python start.py                 open the lessons in JupyterLab
    python start.py check [NN ...]  check your exercises: all, or lesson 04, or top_k
    python start.py next            what to do now, and where

For learners: check, next, hint, answer, reset, watch, doctor, update.
For teachers: teach (adds the tools that they need), grade, export, slides, site.
For maintainers: test, build, trust, browser, bench.
Each says more with --help (python start.py check --help).

The first run makes the folder .venv beside this file and installs requirements.txt
into it; later runs need no network. Nothing outside .venv is changed. On Linux without
an NVIDIA GPU it takes the small CPU build of torch; --gpu and --cpu override that.
Other options go on to JupyterLab (python start.py --no-browser) or to the command.
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
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = HERE / ".venv"
BIN = ENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STATE = ENV / "start-state.json"  # what is installed; written last, see set_up
UNFINISHED = {"python": "", "installed": {}}
LOCK = ENV / "start.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # torch's own index of that build
NVIDIA_DRIVER = ("/proc/driver/nvidia", "/dev/nvidia0")

# What course/__main__.py can do, and which of these need requirements-teach.txt.
COMMANDS = "check next hint answer reset watch doctor update grade test bench trust"
TOOLS = "export slides site build browser"
OF_LESSONS = "check hint answer reset"  # they take names of lessons and exercises
WITH_PATHS = "grade export slides site browser"  # relative to where one types them


def main(argv):
    """Run one command line (without the program's name); does not return."""
    if argv[:1] in (["-h"], ["--help"], ["help"]):
        sys.exit(print(__doc__.strip()))
    build = None
    for option in ("--cpu", "--gpu"):
        if option in argv:
            argv = [word for word in argv if word != option]
            build = option[2:]
    command = "lab"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
    known = COMMANDS.split() + TOOLS.split()
    if command not in ["lab", "teach"] + known:
        sys.exit(
            "start.py has no command '%s'. There are %s and teach; without a command "
            "it opens JupyterLab. More: python start.py --help"
            % (command, ", ".join(known))
        )
    if command == "teach" and argv:
        sys.exit("`start.py teach` takes nothing after it, got: " + " ".join(argv))

    files = ["requirements.txt"]
    if command == "teach" or command in TOOLS.split():
        files.append("requirements-teach.txt")
    try:
        if not is_ready(files, build):
            look_before(command, argv)
            if command != "doctor":
                set_up(files, build)
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run start.py again; the set-up will begin afresh.")
    except OSError as error:
        sys.exit(
            "The set-up stopped: %s. Is there room on the disk, may you write to %s, "
            "and is JupyterLab closed? Then run start.py again." % (error, HERE)
        )

    if command == "teach":
        sys.exit(say("The tools for teachers and maintainers are in .venv."))
    if command not in WITH_PATHS.split():
        os.chdir(str(HERE))
    if command == "lab":
        furnish()
        # The root is the whole course, so that solutions/ can be opened too.
        become(["-m", "jupyterlab", "--ServerApp.root_dir=" + str(HERE)] + argv)
    # `python -m course`, but of this folder: -m would take a folder named course where
    # one happens to stand.
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); " + (
        "runpy.run_module('course', run_name='__main__', alter_sys=True)"
    )
    become(["-c", code, str(HERE), command] + argv)


def look_before(command, argv):
    """Before a set-up: end here if `command` can be answered, or refused, without."""
    if "-h" in argv or "--help" in argv:
        sys.exit(print(__doc__.strip()))
    if command == "doctor":
        diagnose()
    if command not in OF_LESSONS.split():
        return
    lessons, names = sorted((HERE / "lessons").glob("[0-9][0-9]_*.ipynb")), set()
    for path in lessons:
        number, topic = path.stem.split("_", 1)
        names.update((number, number.lstrip("0"), topic, path.stem))
        # Exercises, as JSON has them: each line of a cell begins with a quote
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r'^\s*"(?:def|class) (\w+)', text, re.MULTILINE))
    for word in argv:
        if word.startswith("-"):
            break  # what follows may belong to the option
        if Path(word).stem not in names:  # lessons/04_top_k.ipynb will do as well
            there = ", ".join(path.stem for path in lessons) or "none"
            sys.exit(
                "There is no lesson and no exercise '%s'. The lessons are: %s."
                % (word, there)
            )


def diagnose():
    """Say why .venv is not ready. Ends here if `course doctor` cannot run in it."""
    state, python = read_state(), probe()
    works = python and state != UNFINISHED
    if not os.path.lexists(str(PYTHON)):
        wrong = "is not there"
    elif not python:
        wrong = "has no working Python"
    elif state == UNFINISHED:
        wrong = "was not finished"
    elif state and state["python"] != python:
        wrong, works = "belongs to another folder or another Python", False
    elif state is None:
        wrong = "was not made by start.py"
    else:
        wrong = "is older than requirements.txt"
    say(".venv    %s: `python start.py` mends that" % wrong)
    if works:
        return
    free = shutil.disk_usage(str(HERE)).free / 1e9
    say("python   %s (%s)" % (platform.python_version(), sys.executable))
    say("system   %s" % platform.platform())
    say("disk     %.1f GB free in %s" % (free, HERE))
    say("gpu      %s" % ("NVIDIA" if has_nvidia_gpu() else "no NVIDIA GPU found"))
    sys.exit(1)


def furnish():
    """JupyterLab in .venv opens on lesson 01: no news box, the list of files closed."""
    lab = ENV / "share" / "jupyter" / "lab"
    places = {
        "overrides.json": lab / "settings" / "overrides.json",
        # JupyterLab's name for its default workspace. Once it is there it is theirs.
        "workspace.json": lab / "workspaces" / "default-37a8.jupyterlab-workspace",
    }
    for name, place in places.items():
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(HERE / "course" / "jupyterlab" / name), str(place))
    os.environ.setdefault("JUPYTERLAB_WORKSPACES_DIR", str(lab / "workspaces"))


def become(words):
    """Go on as `.venv`'s Python with these words: its signals, its exit code."""
    # What `activate` does, for this program alone, so that a terminal opened inside
    # JupyterLab finds the course's python and pytest.
    os.environ["VIRTUAL_ENV"] = str(ENV)
    os.environ["PATH"] = str(BIN) + os.pathsep + os.environ.get("PATH", "")
    command = [str(PYTHON)] + words
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
    if sys.platform != "linux" or (torch or "+").split("+")[0] == torch_pin():
        return False
    if not torch_pin():
        return False
    if build or torch:
        return build == "cpu" or (not build and torch.endswith("+cpu"))
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
        say("Taking torch's CPU build from %s (--gpu takes the other) ..." % where)
        command = ["install", "--no-deps", "--index-url", CPU_INDEX, "--retries=2"]
        if pip(command + ["torch==" + torch_pin()], lock)[0] == 0:
            return
    say(
        "%s, which has torch's CPU build, cannot be used: torch comes from your usual "
        "package index, perhaps with several GB for GPUs." % where
    )


def pip_install(files, lock):
    """Have .venv's pip install `files`, or end with what to do."""
    words = ["install"]
    for name in files:
        words += ["-r", name]
    failed, lines = pip(words, lock)
    if failed:
        say("\n".join(lines[-25:]))
        sys.exit("\nThe set-up failed: %s" % why_pip_failed("\n".join(lines)))


def pip(words, lock):
    """Run .venv's pip, as `follow` does; big downloads are named as a sign of life."""
    download = re.compile(
        r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-\s]+-[^-\s]+)\S* (\(\d.*[MG]B\))"
    )

    def show(line):
        if download.match(line):
            say("  %s %s" % download.match(line).groups())
        elif line.startswith("Installing collected packages"):
            say("  unpacking %d packages" % (line.count(",") + 1))

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
            "the package index has no such package for Python %d.%d on this computer. "
            "Try another Python, or another index with PIP_INDEX_URL."
            % sys.version_info[:2]
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


if __name__ == "__main__":
    main(sys.argv[1:])
