"""Sets up and runs the course. Needs nothing but Python 3.10 or newer.

    python start.py                 open the lessons in JupyterLab
    python start.py check [NN ...]  check your exercises: all, or lesson 04, or top_k
    python start.py next            what to do now, and where

For learners: check, next, hint, answer, reset, watch, doctor, update; scale (adds Ray,
for two sections of lesson 18).
For teachers: teach (adds the tools that they need), grade, export, slides, site.
For maintainers: test, build, trust, browser, bench.
Each says more with --help (python start.py check --help).

The first run makes the folder .venv beside this file and installs requirements.txt
into it; later runs need no network. Nothing outside .venv is changed. On Linux without
an NVIDIA GPU it takes the small CPU build of torch; --gpu and --cpu override that.
--lang zh_CN opens the lessons in Chinese.
Other options go on to JupyterLab (python start.py --no-browser) or to the command.
"""
# ruff: noqa: E402, I001, UP010, UP031, UP036

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

import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "course"))
import environment  # not as course.environment: what `course` imports is not there yet

sys.path.pop(0)

# What course/__main__.py can do, and which of these need requirements-teach.txt.
COMMANDS = "check next hint answer reset watch doctor update grade test bench trust"
TOOLS = "export slides site build browser"
MORE = {  # commands that only install requirements-NAME.txt
    "teach": "The tools for teachers and maintainers are",
    "scale": "Ray, for lesson 18, is",
}
OF_LESSONS = "check hint answer reset watch"  # they take names of lessons and exercises
# Paths are relative to where one types them:
WITH_PATHS = "check watch grade export slides site browser"


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
    if command not in ["lab"] + sorted(MORE) + known:
        sys.exit(
            "start.py has no command '%s'. There are %s, scale and teach; without a "
            "command it opens JupyterLab. More: python start.py --help"
            % (command, ", ".join(known))
        )
    first = ""
    if command == "lab":
        first, argv = first_lesson(argv)
    if command in MORE and argv:
        sys.exit(
            "`start.py %s` takes nothing after it, got: %s" % (command, " ".join(argv))
        )

    files = ["requirements.txt"]
    if command in TOOLS.split():
        files.append("requirements-teach.txt")
    if command in MORE:
        files.append("requirements-%s.txt" % command)
    try:
        if not environment.is_ready(files, build):
            look_before(command, argv)
            if command != "doctor":
                environment.set_up(files, build)
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run start.py again; the set-up will begin afresh.")
    except OSError as error:
        sys.exit(
            "The set-up stopped: %s. Is there room on the disk, may you write to %s, "
            "and is JupyterLab closed? Then run start.py again." % (error, HERE)
        )

    if command in MORE:
        sys.exit(environment.say("%s in .venv." % MORE[command]))
    if command not in WITH_PATHS.split():
        os.chdir(str(HERE))
    if command == "lab":
        furnish(first)
        if first:  # by its address, for who has a workspace already
            argv = ["--LabApp.default_url=/lab/tree/" + first] + argv
        # The root is the whole course, so that solutions/ can be opened too.
        become(["-m", "jupyterlab", "--ServerApp.root_dir=" + str(HERE)] + argv)
    # `python -m course`, but of this folder: -m would take a folder named course where
    # one happens to stand.
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); " + (
        "runpy.run_module('course', run_name='__main__', alter_sys=True)"
    )
    become(["-c", code, str(HERE), command] + argv)


def first_lesson(argv):
    """Where the lessons of --lang begin ("" without it), and the other words."""
    for n, word in enumerate(argv):
        name, equals, language = word.partition("=")
        if name != "--lang":
            continue
        rest = argv[:n] + argv[n + 1 :]
        if not equals:
            language = "".join(argv[n + 1 : n + 2])
            rest = argv[:n] + argv[n + 2 :]
        folders = sorted(x for x in (HERE / "lessons").iterdir() if x.is_dir())
        there = {x.name: sorted(x.glob("[0-9][0-9]_*.ipynb")) for x in folders}
        there = {x: lessons for x, lessons in there.items() if lessons}
        if language not in there:
            sys.exit(
                "There are no lessons in the language '%s'; besides English there are: "
                "%s." % (language, ", ".join(there) or "none")
            )
        return "lessons/%s/%s" % (language, there[language][0].name), rest
    return "", argv


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
        files = [Path(word), HERE / "lessons" / word]  # a copy of any name
        files += [Path(word + ".ipynb"), HERE / "lessons" / (word + ".ipynb")]
        if any(path.is_file() for path in files):
            continue
        if Path(word).stem not in names:  # lessons/04_top_k.ipynb will do as well
            there = ", ".join(path.stem for path in lessons) or "none"
            sys.exit(
                "There is no lesson and no exercise '%s'. The lessons are: %s."
                % (word, there)
            )


def diagnose():
    """Say why .venv is not ready. Ends here if `course doctor` cannot run in it."""
    state, python = environment.read_state(), environment.probe()
    if state == environment.UNFINISHED:
        wrong = "was not finished"
    elif not python:
        wrong = "has no working Python" if environment.ENV.exists() else "is not there"
    elif state and state["python"] != python:
        wrong = "belongs to another folder or another Python"
    else:
        environment.say(
            "(.venv is older than requirements.txt: `python start.py` mends that.)"
        )
        return
    environment.say(".venv    %s: `python start.py` mends that" % wrong)
    free = shutil.disk_usage(str(HERE)).free / 1e9
    environment.say("python   %s (%s)" % (platform.python_version(), sys.executable))
    environment.say("system   %s" % platform.platform())
    environment.say("disk     %.1f GB free in %s" % (free, HERE))
    environment.say(
        "gpu      %s"
        % ("NVIDIA" if environment.has_nvidia_gpu() else "no NVIDIA GPU found")
    )
    sys.exit(1)


def furnish(first):
    """JupyterLab in .venv opens on lesson 01, or on `first`: no news box, the list of
    files closed."""
    lab = environment.ENV / "share" / "jupyter" / "lab"
    places = {
        "overrides.json": lab / "settings" / "overrides.json",
        # JupyterLab's name for its default workspace. Once it is there it is theirs.
        "workspace.json": lab / "workspaces" / "default-37a8.jupyterlab-workspace",
    }
    for name, place in places.items():
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            text = (HERE / "course" / "jupyterlab" / name).read_text(encoding="utf-8")
            if first:
                text = text.replace("lessons/01_calling_a_model.ipynb", first)
                text = text.replace('"lessons"', '"%s"' % os.path.dirname(first))
            place.write_text(text, encoding="utf-8")
    os.environ.setdefault("JUPYTERLAB_WORKSPACES_DIR", str(lab / "workspaces"))


def become(words):
    """Go on as `.venv`'s Python with these words: its signals, its exit code."""
    # What `activate` does, for this program alone, so that a terminal opened inside
    # JupyterLab finds the course's python and pytest.
    os.environ["VIRTUAL_ENV"] = str(environment.ENV)
    os.environ["PATH"] = str(environment.BIN) + os.pathsep + os.environ.get("PATH", "")
    command = [str(environment.PYTHON)] + words
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows has no exec. Ctrl-C is JupyterLab's, which asks before it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    main(sys.argv[1:])
