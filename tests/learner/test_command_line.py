"""One command line: each command is listed once, says what it takes, and ends with a
code and a sentence when it is given nonsense."""

import subprocess
import sys
import types

import pytest

from course import __main__ as cli
from course.learner import check
from course.paths import ROOT

EVERY = [*cli.LEARNERS, *cli.others()]


def run(*arguments):
    """(exit code) of one command line in this process."""
    try:
        return cli.main(list(arguments))
    except SystemExit as ended:
        return ended.code


def test_help_lists_every_command_once(capsys):
    assert run("--help") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    for command in [*EVERY, "teach"]:
        assert listed.count(command) == 1, command


@pytest.mark.parametrize("command", cli.LEARNERS)
def test_each_command_of_a_learner_says_what_it_takes(command, capsys):
    assert run(command, "--help") == 0
    assert f"usage: python start.py {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in cli.others() if c != "test"])
def test_each_command_of_a_maintainer_says_what_it_takes(command, capsys):
    needed = {"slides": "docutils", "export": "nbgrader", "browser": "websocket"}
    if command in needed:
        pytest.importorskip(needed[command], reason="needs requirements-teach.txt")
    assert run(command, "--help") == 0
    assert f"usage: python start.py {command}" in capsys.readouterr().out


def test_a_command_is_named_for_the_module_that_serves_it():
    for command, (module, _) in cli.others().items():
        path = ROOT / (module.replace(".", "/") + ".py")
        assert "def main(" in path.read_text(encoding="utf-8"), command
    assert ("bench" in cli.others()) == (ROOT / "course/making/bench.py").exists()


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["chekc"], "invalid choice: 'chekc'"),
        ([], "required: COMMAND"),
        (["hint"], "required: exercise"),
        (["hint", "kept_mas"], "no exercise 'kept_mas'. Did you mean kept_mass?"),
        (["answer", "04"], "no exercise '04'"),
        (["reset", "nonsense"], "no exercise 'nonsense'"),
        (["check", "99"], "no lesson and no exercise '99'"),
        (["watch", "99"], "no lesson and no exercise '99'"),
        (["next", "now"], "unrecognized arguments: now"),
    ],
)
def test_nonsense_gets_a_sentence_and_a_code(arguments, phrase, course, capsys):
    assert run(*arguments) == 2
    assert phrase in capsys.readouterr().err


def test_a_tool_that_is_not_installed_is_named(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'docutils'", name="docutils")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    assert run("slides") == 2
    assert "needs docutils" in capsys.readouterr().err


def test_arguments_and_code_of_a_tool_are_handed_on(monkeypatch):
    given = []
    tool = types.SimpleNamespace(main=lambda arguments: given.append(arguments) or 3)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: tool)
    assert run("grade", "folder", "--out", "x.csv") == 3
    assert given == [["folder", "--out", "x.csv"]]


def test_what_pytest_is_told_reaches_it_unchanged(monkeypatch):
    given = []
    monkeypatch.setattr(check, "check", lambda *a: given.append(a) or 0)
    assert run("check", "04", "--long") == 0
    assert run("check", "04", "-k", "row", "-x") == 0
    assert run("check", "-v") == 0
    assert given == [
        (["04"], [], True),
        (["04"], ["-k", "row", "-x"], False),
        ([], ["-v"], False),
    ]


def test_the_suite_is_spread_over_processes_file_by_file(monkeypatch):
    from course.making import suite

    given = []
    monkeypatch.setattr(suite.pytest, "main", lambda a: given.append(a) or 0)
    assert run("test", "-x") == 0
    assert "--dist loadfile" in " ".join(given[0])
    assert given[0][-1] == "-x"


UNTOUCHED = """
import sys
from pathlib import Path
from course import __main__ as cli
from course.saved import homes, standing
homes.LESSONS = standing.LESSONS = Path(sys.argv[1])
print([cli.main(words.split()) for words in ("check 04", "next", "hint decode")])
print(sorted({"torch", "transformers", "pytest", "nbformat"} & set(sys.modules)))
"""


def test_an_untouched_lesson_is_checked_without_torch(course):
    command = [sys.executable, "-c", UNTOUCHED, str(course.lessons)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["[1, 0, 0]", "[]"], done.stderr
    assert "5 exercises: 0 done, 0 wrong, 5 to do" in done.stdout
