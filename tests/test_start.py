"""start.py, run as a learner runs it, on copies of the course with stand-in packages.

The stand-ins for course and jupyterlab only print how they were called, so what is
compared comes from the new .venv itself and not from what start.py says of it.
"""

import ast
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "start.py"
STAND_IN = """\
import json, os, sys
print("CALLED", json.dumps([__spec__.name, sys.argv[1:], sys.prefix, os.getcwd()]))
sys.exit(int(os.environ.get("STAND_IN_EXIT", 0)))
"""


def write_wheel(folder, name, version="1.0", **modules):
    """A wheel with these modules, made by hand. Returns its name."""
    info = f"{name}-{version}.dist-info"
    files = {f"{module}.py": source for module, source in modules.items()}
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: hand\n" + (
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/x"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def make_course(folder):
    """A small course: start.py, two lessons, and requirements that need no network."""
    (folder / "lessons").mkdir(parents=True)
    cell = '"source": [\n    "def top_k_filter(logits):\\n"\n]'
    (folder / "lessons/04_top_k.ipynb").write_text(cell)
    (folder / "lessons/11_contrast.ipynb").write_text("{}")
    shutil.copy(START, folder)
    shutil.copytree(ROOT / "course/jupyterlab", folder / "course/jupyterlab")
    shutil.copy(ROOT / "course/environment.py", folder / "course")
    (folder / "course/__init__.py").touch()
    (folder / "course/__main__.py").write_text(STAND_IN)
    tools = write_wheel(folder, "tools", jupyterlab=STAND_IN)
    (folder / "requirements.txt").write_text(f"./{tools}\n")
    (folder / "requirements-teach.txt").write_text(f"./{tools}\n")
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
    """`folder`'s course/environment.py as a module."""
    path = folder / "course/environment.py"
    spec = importlib.util.spec_from_file_location("environment_copy", path)
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


MAIN = "course.__main__"


def test_sets_up_and_hands_on_to_the_course_in_its_own_environment(course):
    code, output = run(course, "test", "04", "-x", "-k", "ties")
    assert code == 0
    arguments = ["test", "04", "-x", "-k", "ties"]
    assert called(output) == [MAIN, arguments, str(course / ".venv"), str(course)]


def test_paths_are_relative_to_where_one_types_and_another_course_is_not_taken(
    course, tmp_path
):
    (tmp_path / "course").mkdir()
    (tmp_path / "course/__main__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "my 04.ipynb").touch()
    for words in (["grade", "hand-ins"], ["check", "my 04.ipynb"], ["watch", "my 04"]):
        done = subprocess.run(
            [sys.executable, str(course / "start.py"), *words],
            env=environment(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        expected = [MAIN, words, str(course / ".venv"), str(tmp_path)]
        assert called(done.stdout) == expected


def test_the_commands_are_those_of_the_course():
    names = {}
    for node in ast.parse(START.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names[node.targets[0].id] = node.value.value
    known = (names["COMMANDS"] + " " + names["TOOLS"]).split()
    agreed = "check next hint answer reset watch doctor update grade export slides site"
    assert sorted(known) == sorted(f"{agreed} build trust browser test bench".split())
    assert set(names["OF_LESSONS"].split()) <= set(known)
    assert set(names["WITH_PATHS"].split()) <= set(known)
    main = importlib.import_module(MAIN)
    assert sorted([*main.LEARNERS, *main.OTHERS]) == sorted(known)


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


def test_without_a_command_jupyterlab_opens_on_the_lessons(course):
    module, arguments, prefix, _ = called(run(course, "--no-browser")[1])
    assert (module, prefix) == ("jupyterlab", str(course / ".venv"))
    assert arguments == [
        f"--ServerApp.root_dir={course}",
        "--no-browser",
    ]


def test_jupyterlab_is_furnished_inside_the_environment_and_once(course):
    run(course)
    lab = course / ".venv/share/jupyter/lab"
    settings = json.loads((lab / "settings/overrides.json").read_text())
    news = settings["@jupyterlab/apputils-extension:notification"]
    assert news["fetchNews"] == "false"
    mine = next((lab / "workspaces").iterdir())
    mine.write_text("what a learner has open")
    run(course)
    assert mine.read_text() == "what a learner has open"


def test_the_first_view_names_a_lesson_and_a_workspace_that_jupyterlab_knows():
    slugs = pytest.importorskip("jupyterlab_server.workspaces_handler")
    name = slugs.slugify("default", sign=True) + slugs.WORKSPACE_EXTENSION
    assert name in START.read_text()
    view = json.loads((ROOT / "course/jupyterlab/workspace.json").read_text())["data"]
    assert view["layout-restorer:data"]["left"]["collapsed"]
    current = view["layout-restorer:data"]["main"]["current"]
    assert (ROOT / view[current]["data"]["path"]).is_file()


@pytest.mark.parametrize("words", [["--lang", "zh_CN"], ["--lang=zh_CN"]])
def test_in_another_language_jupyterlab_opens_on_its_first_lesson(course, words):
    chinese = course / "lessons/zh_CN"
    chinese.mkdir(exist_ok=True)
    for name in ("04_top_k", "11_contrast"):
        shutil.copy(course / f"lessons/{name}.ipynb", chinese)
    arguments = called(run(course, *words, "--no-browser")[1])[1]
    first = "lessons/zh_CN/04_top_k.ipynb"
    assert arguments == [
        f"--ServerApp.root_dir={course}",
        f"--LabApp.default_url=/lab/tree/{first}",
        "--no-browser",
    ]


def test_a_first_view_in_another_language_names_no_english_lesson(course):
    chinese = course / "lessons/zh_CN"
    chinese.mkdir(exist_ok=True)
    shutil.copy(course / "lessons/04_top_k.ipynb", chinese)
    workspaces = course / ".venv/share/jupyter/lab/workspaces"
    shutil.rmtree(workspaces, ignore_errors=True)
    run(course, "--lang", "zh_CN")
    view = json.loads(next(workspaces.iterdir()).read_text())["data"]
    current = view["layout-restorer:data"]["main"]["current"]
    assert view[current]["data"]["path"] == "lessons/zh_CN/04_top_k.ipynb"
    assert view["file-browser-filebrowser:cwd"]["path"] == "lessons/zh_CN"
    assert '"lessons/01' not in json.dumps(view)


@pytest.mark.parametrize("words", [["--lang", "fr"], ["--lang"], ["--lang="]])
def test_a_language_that_is_not_there_is_named_with_those_that_are(bare, words):
    (bare / "lessons/zh_CN").mkdir()
    shutil.copy(bare / "lessons/04_top_k.ipynb", bare / "lessons/zh_CN")
    code, output = run(bare, *words)
    assert code == 1
    assert "zh_CN" in output
    assert len(output.splitlines()) == 1
    assert not (bare / ".venv").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tset"], ["tset", "check", "next", "test", "teach"]),
        (["reset", "top_k_fliter"], ["top_k_fliter", "04_top_k"]),
        (["check", "42"], ["42", "04_top_k", "11_contrast"]),
        (["check", "top_p", "-x"], ["top_p", "04_top_k", "11_contrast"]),
        (["teach", "me"], ["teach", "me"]),
        (["scale", "up"], ["scale", "up"]),
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
    for command in ("check", "next", "hint", "reset", "doctor", "update"):
        assert command in output
    for command in ("teach", "scale"):
        assert command in output
    assert run(bare, "check", "--help") == (0, output)  # no set-up for that either
    assert not (bare / ".venv").exists()


def test_doctor_says_what_is_wrong_without_a_set_up(bare):
    code, output = run(bare, "doctor")
    assert code == 1
    assert ".venv    is not there: `python start.py` mends that" in output
    assert f"({sys.executable})" in output
    assert not (bare / ".venv").exists()
    load(bare).ENV.mkdir()
    load(bare).write_state(load(bare).UNFINISHED)
    assert ".venv    was not finished" in run(bare, "doctor")[1]


def test_doctor_is_the_courses_own_where_that_can_run(course):
    assert called(run(course, "doctor")[1])[:2] == [MAIN, ["doctor"]]
    requirements = course / "requirements.txt"
    good = requirements.read_text()
    requirements.write_text(good + "no-such-package-of-the-course==1\n")
    try:
        code, output = run(course, "doctor")
    finally:
        requirements.write_text(good)
    assert "older than requirements.txt" in output
    assert called(output)[0] == MAIN


@pytest.mark.parametrize(
    "known", ["4", "top_k", "lessons/04_top_k.ipynb", "top_k_filter"]
)
def test_a_lesson_or_exercise_that_exists_is_never_refused(bare, known):
    (bare / ".venv").write_text("in the way, so that the set-up stops at once")
    output = run(bare, "check", known)[1]
    assert "The set-up stopped" in output


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
    with pytest.raises(SystemExit, match="sudo apt install python3-venv") as stop:
        start.set_up(["requirements.txt"])
    assert missing in stop.value.code
    assert not start.PYTHON.exists()


def test_an_unreachable_index_is_explained_and_nothing_counts_as_ready(course):
    ready = load(course).read_state()
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
    assert load(course).read_state() == load(course).UNFINISHED
    load(course).write_state(ready)  # spares the next test a new one


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
    assert called(printed)[0] == MAIN


def test_changed_requirements_are_installed_before_anything_runs(course):
    good = (course / "requirements.txt").read_text()
    extra = write_wheel(course, "extra", extra_of_the_course="")
    (course / "requirements.txt").write_text(f"{good}./{extra}\n")
    python = load(course).PYTHON
    find = [str(python), "-c", "import extra_of_the_course"]
    try:
        assert subprocess.run(find, capture_output=True).returncode != 0
        code, output = run(course, "test")
        assert (code, called(output)[0]) == (0, MAIN)
        assert subprocess.run(find, capture_output=True).returncode == 0
        assert "Making a new .venv" not in output
    finally:
        (course / "requirements.txt").write_text(good)


@pytest.mark.parametrize("command", ["teach", "scale"])
def test_what_comes_on_top_is_installed_and_leaves_the_learner_ready(course, command):
    good = (course / "requirements.txt").read_text()
    module = f"{command}tool_of_the_course"
    tool = write_wheel(course, f"{command}tool", **{module: ""})
    (course / f"requirements-{command}.txt").write_text(f"./{tool}\n")
    (course / "requirements.txt").write_text(f"{good}# newer, for {command}\n")
    try:
        assert run(course, command)[0] == 0
        find = [str(load(course).PYTHON), "-c", f"import {module}"]
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
    assert (code, called(output)[0]) == (0, MAIN)
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


# --------------------------------------------------------- torch, with and without GPU

linux = pytest.mark.skipif(sys.platform != "linux", reason="two builds only on Linux")


@contextlib.contextmanager
def index_of(folder):
    """A package index on loopback that serves the wheels in `folder`: gives its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def torches(course, bare, tmp_path):
    """A course that asks for torch==9.1; its own folder of wheels has the usual build,
    and `cpu` has the other one."""
    usual, cpu = tmp_path / "usual", tmp_path / "cpu"
    usual.mkdir()
    (cpu / "torch").mkdir(parents=True)
    write_wheel(usual, "torch", "9.1", torch="")
    write_wheel(cpu / "torch", "torch", "9.1+cpu", torch="")
    shutil.copytree(course / ".venv", tmp_path / "made", symlinks=True)
    with (bare / "requirements.txt").open("a") as file:
        file.write("torch==9.1\n")
    return bare


def set_up(course, monkeypatch, cpu_index, gpu=False, build=None, links=("usual",)):
    """Set `course` up with this index of the CPU build. Returns torch's version."""
    module = load(course)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    # The user's own mirror, which is the only index that the requirements need.
    places = " ".join(str(course.parent / name) for name in links)
    monkeypatch.setenv("PIP_FIND_LINKS", places)
    monkeypatch.setenv("PIP_INDEX_URL", (course.parent / "empty").as_uri())
    module.CPU_INDEX = cpu_index
    module.has_nvidia_gpu = lambda: gpu

    def make_env(lock):  # a copy, which takes a fraction of the time
        for folder in ("bin", "lib"):
            shutil.rmtree(module.ENV / folder, ignore_errors=True)
        (module.ENV / "lib64").unlink(missing_ok=True)  # a link to lib
        keep = shutil.ignore_patterns("start*")
        made = course.parent / "made"
        shutil.copytree(
            made, module.ENV, symlinks=True, ignore=keep, dirs_exist_ok=True
        )

    module.make_env = make_env
    module.set_up(["requirements.txt"], build)
    return module.torch_version()


@linux
def test_the_cpu_build_is_taken_from_its_index_and_the_pin_is_kept(
    torches, monkeypatch, capsys
):
    with index_of(torches.parent / "cpu") as url:
        torch = set_up(torches, monkeypatch, url)
        assert torch == "9.1+cpu"
        said = capsys.readouterr().out
        assert "Taking torch's CPU build from 127.0.0.1" in said
        assert "with torch 9.1+cpu" in said
        module = load(torches)
        assert module.is_ready(["requirements.txt"])
        assert module.is_ready(["requirements.txt"], "cpu")
        assert not module.is_ready(["requirements.txt"], "gpu")
        # The other build, asked for: a new .venv without what the first one left
        assert set_up(torches, monkeypatch, url, build="gpu") == "9.1"


@linux
def test_a_gpu_keeps_the_usual_build_unless_the_other_is_asked_for(
    torches, monkeypatch
):
    with index_of(torches.parent / "cpu") as url:
        assert set_up(torches, monkeypatch, url, gpu=True) == "9.1"
        assert set_up(torches, monkeypatch, url, gpu=True, build="cpu") == "9.1+cpu"


@linux
@pytest.mark.parametrize("links", [("usual",), ("usual", "cpu/torch")])
def test_without_that_index_torch_comes_from_the_users_own(
    torches, monkeypatch, capsys, links
):
    nowhere = "http://127.0.0.1:1"
    torch = set_up(torches, monkeypatch, nowhere, links=links)
    # A mirror that has both builds serves the CPU build by itself: +cpu sorts higher.
    assert torch == ("9.1" if len(links) == 1 else "9.1+cpu")
    said = capsys.readouterr().out
    assert "torch comes from your usual package index" in said
    assert f"with torch {torch}" in said


@linux
def test_an_index_that_answers_without_such_a_wheel_costs_no_error(
    torches, monkeypatch, capsys
):
    (torches.parent / "cpu/torch/torch-9.1+cpu-py3-none-any.whl").unlink()
    with index_of(torches.parent / "cpu") as url:
        assert set_up(torches, monkeypatch, url) == "9.1"
    assert "torch comes from your usual package index" in capsys.readouterr().out


def test_asking_an_index_takes_five_seconds_at_most():
    module = load(ROOT)
    for url, at_most in (("http://127.0.0.1:1", 2), (None, 7)):
        with silent_index() as (silent, _):
            module.CPU_INDEX = url or silent
            before = time.monotonic()
            assert not module.ask_cpu_index()()
            assert time.monotonic() - before < at_most


def fake_smi(folder, text, code):
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    tool.chmod(0o755)


@linux
@pytest.mark.parametrize(
    ("driver", "smi", "expected"),
    [
        (False, None, False),
        (True, None, True),
        (False, ("GPU 0: NVIDIA H100 (UUID: GPU-1)", 0), True),
        (False, ("No devices were found", 0), False),
        (False, ("NVIDIA-SMI has failed: no driver", 9), False),
    ],
)
def test_a_gpu_is_found_by_its_driver_or_by_nvidia_smi(
    tmp_path, monkeypatch, driver, smi, expected
):
    module = load(ROOT)
    assert module.NVIDIA_DRIVER == ("/proc/driver/nvidia", "/dev/nvidia0")
    module.NVIDIA_DRIVER = (str(tmp_path / "none"), str(tmp_path / "nvidia0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if driver:
        (tmp_path / "nvidia0").touch()
    if smi:
        fake_smi(tmp_path, *smi)
    assert module.has_nvidia_gpu() is expected


@linux
@pytest.mark.parametrize(
    ("there", "build", "gpu", "expected"),
    [
        (None, None, False, True),
        (None, None, True, False),
        (None, "cpu", True, True),
        (None, "gpu", False, False),
        ("9.1+cpu", None, False, False),  # nothing to do
        ("9.0+cpu", None, True, True),  # an update keeps the build that is there
        ("9.0", None, False, False),
        ("9.0+cu130", None, False, False),
    ],
)
def test_which_build_is_wanted(torches, there, build, gpu, expected):
    module = load(torches)
    module.has_nvidia_gpu = lambda: gpu
    assert module.wants_cpu_torch(build, there) is expected
