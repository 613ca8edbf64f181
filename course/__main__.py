"""Every command of the course, once: `python start.py COMMAND` sets up what is needed
and hands on to `python -m course COMMAND`."""

import argparse
import importlib
import importlib.util
import os
import sys

from course.paths import COMMAND, INSTALLED

# command: (module, function, what it does). The module is imported when its command is
# called. Those of the second table parse their own arguments.
LEARNERS = {
    "check": "check your exercises: all, a lesson (04), or some (kept_mass)",
    "next": "what to do now, and where",
    "hint": "one more hint for an exercise",
    "answer": "our answer to an exercise, once yours passes",
    "reset": "put an exercise or a lesson back as it came; keeps a backup",
    "watch": "check again whenever a notebook is saved",
    "doctor": "what a report of a problem needs: versions, model, disk, GPU",
    "update": "get the newest lessons and keep your answers",
}
OTHERS = {
    "grade": ("course.teaching.grade", "grade a folder of notebooks"),
    "export": ("course.teaching.nbgrader_export", "a course folder for nbgrader"),
    "slides": ("course.teaching.slides", "slides of the lessons"),
    "site": ("course.teaching.site", "a web site of the lessons"),
    "test": ("course.making.suite", "prove that the installation works"),
    "build": ("course.making.build", "the notebooks from their sources"),
    "trust": ("course.making.trust", "how far the checks can be trusted"),
    "browser": ("course.making.browser", "screenshots of a notebook in JupyterLab"),
    "bench": ("course.making.bench", "how long things take"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # ✓ on a Windows console of old
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if arguments and arguments[0] in others():
        return _hand_on(arguments[0], arguments[1:])
    rest = []
    if arguments[:1] == ["check"]:  # from the first unknown option on: pytest's
        own = ("--long", "-h", "--help")
        places = [n for n, x in enumerate(arguments) if x[:1] == "-" and x not in own]
        first = min(places, default=len(arguments))
        arguments, rest = arguments[:first], arguments[first:]
    return _run(parser().parse_args(arguments), rest)


def others() -> dict:
    """The commands for teachers and maintainers that are there."""
    found = {}
    for command, (module, told) in OTHERS.items():
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # a wheel has nothing of their rooms
            there = False
        if there:
            found[command] = (module, told)
    return found


def _hand_on(command: str, arguments: list[str]) -> int:
    module, _ = OTHERS[command]
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("course", "tiny_models"):
            raise
        return _say(
            f"`{command}` needs {error.name}, which is not installed. "
            "`python start.py teach` installs what it needs."
        )
    return main(arguments) or 0


def _run(options, rest) -> int:
    from course.saved import homes
    from course.saved.books import Unknown, Unreadable

    homes.name(getattr(options, "what", None) or [])
    try:
        return options.run(options, rest) or 0
    except (Unknown, Unreadable) as error:
        return _say(str(error) if str(error).endswith(".") else f"{error}.")
    except OSError as error:
        return _say(f"It stopped: {error}")
    except KeyboardInterrupt:
        print()
        return 130


def _say(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


# --- what each takes ------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Of all commands. What teachers and maintainers use is listed, and parsed by its
    own module."""
    lines = [f"  {name:<10} {told}" for name, (_, told) in others().items()]
    more = (
        "for teachers and maintainers:\n  teach      add the tools that these need\n"
        + "\n".join(lines)
        + "\n\n"
    )
    whole = argparse.ArgumentParser(
        prog=COMMAND,
        description="The notebooks meant are those in this folder."
        if INSTALLED
        else "Without a command: opens the lessons in JupyterLab.",
        epilog=("" if INSTALLED else more)
        + f"Each says more with --help, for example: {COMMAND} check --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(
        dest="command", metavar="COMMAND", title="for learners", required=True
    )
    made = {
        name: commands.add_parser(
            name,
            help=told,
            description=f"{told[0].upper()}{told[1:]}.",
            prog=f"{COMMAND} {name}",
        )
        for name, told in LEARNERS.items()
    }
    for name, command in made.items():
        command.set_defaults(run=globals()[f"_{name}"])
    what = "lessons (04, top_k), exercises (kept_mass, 04.2), files; none means all"
    made["check"].add_argument("what", nargs="*", help=what)
    made["check"].add_argument(
        "--long", action="store_true", help="a line for each exercise, also of all"
    )
    made["check"].epilog = "Options of pytest go on to it: -x, -k WORDS, -v, ..."
    for name in ("hint", "answer"):
        made[name].add_argument("exercise", help="its name or number: kept_mass, 04.2")
    made["hint"].add_argument("--all", action="store_true", help="all of them at once")
    made["answer"].add_argument(
        "--give-up", action="store_true", help="even if yours does not pass"
    )
    made["reset"].add_argument(
        "what", nargs="+", help="an exercise (kept_mass) or a whole lesson (04)"
    )
    made["watch"].add_argument(
        "what", nargs="*", help="lessons or files; none means all"
    )
    return whole


def _check(options, rest):
    from course.learner.check import check

    return check(options.what, rest, options.long)


def _next(options, rest):
    from course.learner import asking

    return asking.print_next()


def _hint(options, rest):
    from course.learner import asking

    return asking.print_hint(options.exercise, options.all)


def _answer(options, rest):
    from course.learner import asking

    return asking.print_answer(options.exercise, options.give_up)


def _reset(options, rest):
    from course.learner import resetting

    return resetting.reset_all(options.what)


def _watch(options, rest):
    from course.learner import watching

    return watching.watch(options.what)


def _doctor(options, rest):
    from course.learner import doctor

    return doctor.main()


def _update(options, rest):
    from course.learner import updating

    return updating.main()


if __name__ == "__main__":
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path[0] != here:
        sys.path.insert(0, here)
    sys.exit(main())
