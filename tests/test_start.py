"""start.py, run as a learner runs it, on copies of the course with stand-in packages.

The stand-ins for pytest and jupyterlab only print how they were called, so what is
compared comes from the new .venv itself and not from what start.py says of it.
"""

import ast
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

START = Path(__file__).resolve().parents[1] / "start.py"
STAND_IN = """\
import json, os, sys
print("CALLED", json.dumps([__spec__.name, sys.argv[1:], sys.prefix, os.getcwd()]))
sys.exit(int(os.environ.get("STAND_IN_EXIT", 0)))
"""


def write_wheel(folder, name, **modules):
    """A wheel of version 1.0 with these modules, made by hand. Returns its name."""
    info = f"{name}-1.0.dist-info"
    files = {f"{module}.py": source for module, source in modules.items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: hand\n" + (
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/x"])
    wheel = f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def make_course(folder):
    """A small course: start.py, one lesson, and requirements that need no network."""
    (folder / "lessons").mkdir(parents=True)
    (folder / "lessons/04_top_k.ipynb").write_text("{}")
    (folder / "lessons/11_contrast.ipynb").write_text("{}")
    shutil.copy(START, folder)
    tools = write_wheel(folder, "tools", pytest=STAND_IN, jupyterlab=STAND_IN)
    (folder / "requirements.txt").write_text(f"./{tools}\n")
    return folder


def environment(**extra):
    """This process's environment without its pip settings; `extra` on top."""
    kept = {name: text for name, text in os.environ.items() if "PIP_" not in name}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", **extra}


def spawn(folder, *words, **extra):
    return subprocess.Popen(
        [sys.executable, str(folder / "start.py"), *words],
        env=environment(**extra),
        cwd=Path(sys.prefix),  # anywhere but the course
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, *words, **extra):
    """Run start.py to its end. Returns (exit code, what it printed)."""
    process = spawn(folder, *words, **extra)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


def called(output):
    """(module, arguments, sys.prefix, folder) of the stand-in that was started."""
    line = next(line for line in output.splitlines() if line.startswith("CALLED"))
    return json.loads(line.removeprefix("CALLED"))


def load(folder):
    """`folder`'s start.py as a module."""
    spec = importlib.util.spec_from_file_location("start_copy", folder / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make_course(tmp_path_factory.mktemp("start") / "the course")


@pytest.fixture
def course(shared):
    """A course that is set up (again, if the test before left it unfinished)."""
    code, output = run(shared, "test")
    assert code == 0, output
    return shared


@pytest.fixture
def bare(tmp_path):
    """A course that is not set up."""
    return make_course(tmp_path / "course")


# ----------------------------------------------------------------- what it runs


def test_sets_up_and_runs_pytest_in_its_own_environment(course):
    code, output = run(course, "test", "-x", "-k", "ties")
    assert code == 0
    spread = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    arguments = [*spread, "-x", "-k", "ties"]
    assert called(output) == ["pytest", arguments, str(course / ".venv"), str(course)]


def test_once_ready_it_needs_neither_network_nor_packages(course):
    wheel = course / "tools-1.0-py3-none-any.whl"
    hidden = wheel.rename(wheel.with_suffix(".hidden"))
    try:
        code, output = run(course, "test", PIP_INDEX_URL="http://127.0.0.1:1/simple")
    finally:
        hidden.rename(wheel)
    assert code == 0
    assert len(output.splitlines()) == 1, output  # the stand-in's line and no other


@pytest.mark.parametrize("code", [1, 5])
def test_the_exit_code_passes_through(course, code):
    assert run(course, "test", STAND_IN_EXIT=str(code))[0] == code


@pytest.mark.parametrize(
    "name", ["04", "4", "top_k", "04_top_k", "lessons/04_top_k.ipynb"]
)
def test_check_finds_a_lesson_by_number_and_by_name(course, name):
    _, output = run(course, "check", name, "-k", "ties")
    assert called(output)[:2] == ["pytest", ["lessons/04_top_k.ipynb", "-k", "ties"]]


def test_check_without_a_lesson_checks_all(course):
    assert called(run(course, "check", "-x")[1])[1] == ["lessons", "-x"]


def test_without_a_command_jupyterlab_opens_on_the_lessons(course):
    module, arguments, prefix, _ = called(run(course, "--no-browser")[1])
    assert (module, prefix) == ("jupyterlab", str(course / ".venv"))
    assert arguments == [
        f"--ServerApp.root_dir={course}",
        "--LabApp.default_url=/lab/tree/lessons",
        "--no-browser",
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tset"], ["tset", "check", "test", "teach"]),
        (["check", "42"], ["42", "04_top_k", "11_contrast"]),
        (["check", "top_p", "-x"], ["top_p", "04_top_k", "11_contrast"]),
        (["teach", "me"], ["teach", "me"]),
    ],
)
def test_a_wrong_word_is_named_with_what_exists_and_nothing_is_set_up(
    bare, words, named
):
    code, output = run(bare, *words)
    assert code == 1
    assert len(output.splitlines()) == 1
    assert [word for word in named if word not in output] == []
    assert not (bare / ".venv").exists()


def test_help_names_every_command(bare):
    code, output = run(bare, "--help")
    assert code == 0
    for command in ("start.py check", "start.py test", "start.py teach"):
        assert command in output
    assert not (bare / ".venv").exists()


# ------------------------------------------------------------- what can be wrong


def test_an_old_python_gets_one_sentence(bare):
    code = (
        "import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0);"
        "runpy.run_path('start.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bare, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "needs Python 3.10 or newer; this is Python 3.9" in done.stderr


def test_python_2_can_parse_it():
    tree = ast.parse(START.read_bytes().decode("ascii"), feature_version=(3, 4))
    newer = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Nonlocal, ast.YieldFrom)
    for node in ast.walk(tree):
        assert not isinstance(node, newer), f"line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            hints = [node.returns, *(arg.annotation for arg in node.args.args)]
            assert hints == [None] * len(hints), f"line {node.lineno}"
            assert not node.args.kwonlyargs, f"line {node.lineno}"


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_what_to_install(bare, monkeypatch, missing):
    start = load(bare)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == missing else find(name),
    )
    monkeypatch.chdir(bare)
    with pytest.raises(SystemExit, match="sudo apt install python3-venv") as stop:
        start.main(["test"])
    assert missing in stop.value.code
    assert not start.PYTHON.exists()


def test_an_unreachable_index_is_explained_and_nothing_counts_as_ready(course):
    (course / "requirements.txt").rename(course / "good.txt")
    (course / "requirements.txt").write_text("no-such-package-of-the-course==1\n")
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "1"}
    try:
        code, output = run(course, "test", **offline, PIP_NO_INDEX="0")
    finally:
        os.replace(course / "good.txt", course / "requirements.txt")
    assert code == 1
    assert "CALLED" not in output
    assert "no-such-package-of-the-course" in output  # pip's own words are shown
    last = output.splitlines()[-1]
    assert "cannot reach the package index" in last
    assert "PIP_INDEX_URL" in last
    # The packages of before are still good, but nobody can know: it starts afresh.
    code, output = run(course, "test")
    assert (code, called(output)[0]) == (0, "pytest")
    assert "Making a new .venv" in output


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space "
         "left on device", "disk is full"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError'\n"
         "ERROR: No matching distribution found for torch", "HTTPS_PROXY"),
        ("ERROR: No matching distribution found for torch==2.13.0", "another Python"),
        ("ERROR: something new", "pip's last lines"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failed_install_is_told(said, advice):
    assert advice in load(START.parent).why_pip_failed(said)


def test_a_folder_that_cannot_be_written_is_named(bare):
    (bare / ".venv").write_text("a file where the folder should be")
    code, output = run(bare, "test")
    assert code == 1
    assert len(output.splitlines()) == 1
    assert str(bare) in output


# -------------------------------------------------- interrupted, changed, moved


@contextlib.contextmanager
def silent_index():
    """An index that takes connections and never answers. Gives (URL, accept)."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        try:
            yield (
                f"http://127.0.0.1:{port}/simple",
                lambda: connections.append(server.accept()[0]),
            )
        finally:
            for connection in connections:
                connection.close()


def test_a_killed_set_up_is_never_used_and_the_next_run_mends_it(course):
    good = (course / "requirements.txt").read_text()
    (course / "requirements.txt").write_text(good + "never-arrives==1\n")
    # 1. Kill start.py while pip is at work. Its orphaned pip may go on for a while.
    with silent_index() as (url, wait_for_pip):
        slow = {"PIP_INDEX_URL": url, "PIP_NO_INDEX": "0", "PIP_RETRIES": "0"}
        killed = spawn(course, "test", **slow)
        wait_for_pip()
        killed.kill()
        killed.wait()
        (course / "requirements.txt").write_text(good)
        # 2. The next run may not write into .venv beside it.
        second = spawn(course, "test")
        printed = second.stdout.readline()
    # 3. The orphan is gone: now the second run makes everything anew.
    printed += second.communicate(timeout=120)[0]
    assert second.returncode == 0, printed
    if os.name != "nt":
        assert printed.startswith("Another start.py is setting up")
    assert "Making a new .venv" in printed
    assert called(printed)[0] == "pytest"


def test_changed_requirements_are_installed_before_anything_runs(course):
    good = (course / "requirements.txt").read_text()
    extra = write_wheel(course, "extra", extra_of_the_course="")
    (course / "requirements.txt").write_text(f"{good}./{extra}\n")
    python = load(course).PYTHON
    find = [str(python), "-c", "import extra_of_the_course"]
    try:
        assert subprocess.run(find, capture_output=True).returncode != 0
        code, output = run(course, "test")
        assert (code, called(output)[0]) == (0, "pytest")
        assert subprocess.run(find, capture_output=True).returncode == 0
        assert "Making a new .venv" not in output
    finally:
        (course / "requirements.txt").write_text(good)


def test_teach_installs_both_files_and_leaves_the_learner_ready(course):
    good = (course / "requirements.txt").read_text()
    tool = write_wheel(course, "teachtool", teachtool_of_the_course="")
    (course / "requirements-teach.txt").write_text(f"./{tool}\n")
    (course / "requirements.txt").write_text(good + "# a newer version\n")
    try:
        assert run(course, "teach")[0] == 0
        find = [str(load(course).PYTHON), "-c", "import teachtool_of_the_course"]
        assert subprocess.run(find).returncode == 0
        assert len(run(course, "test")[1].splitlines()) == 1  # no second set-up
    finally:
        (course / "requirements.txt").write_text(good)


def test_a_moved_folder_is_set_up_anew_and_once_by_two_at_once(course, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(course, moved, symlinks=True)
    both = [spawn(moved, "test"), spawn(moved, "test")]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [called(output)[2] for output in outputs] == [str(moved / ".venv")] * 2
    assert "".join(outputs).count("Making a new .venv") == 1
    assert "".join(outputs).count("belongs to another folder") == 1
    assert "up to date" not in "".join(outputs)  # the second had nothing to do


def test_an_environment_made_by_hand_is_completed_and_not_emptied(course):
    start = load(course)
    start.STATE.unlink()
    mine = start.ENV / "mine.txt"
    mine.write_text("keep")
    good = (course / "requirements.txt").read_text()
    (course / "requirements.txt").write_text("no-such-package-of-the-course==1\n")
    assert run(course, "test")[0] == 1  # nor after a failure
    (course / "requirements.txt").write_text(good)
    code, output = run(course, "test")
    assert (code, called(output)[0]) == (0, "pytest")
    assert mine.read_text() == "keep"
    assert len(run(course, "test")[1].splitlines()) == 1  # and is ready from then on


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"python": "3"}'])
def test_a_damaged_state_file_counts_as_unfinished(bare, text):
    start = load(bare)
    start.ENV.mkdir()
    start.STATE.write_text(text)
    assert start.read_state() == start.UNFINISHED
    assert not start.is_ready({})


@pytest.mark.skipif(os.name == "nt", reason="venv copies Python on Windows")
def test_an_environment_whose_python_is_gone_is_not_ready(course, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(course, copy, symlinks=True)
    start = load(copy)
    start.write_state({"python": start.probe(), "installed": {}})
    assert start.is_ready({})
    start.PYTHON.unlink()
    start.PYTHON.symlink_to(tmp_path / "uninstalled" / "python3")
    assert not start.is_ready({})
