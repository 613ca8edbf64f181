"""One notebook alone: the wheel that pip builds, in an empty folder, with no repository
around. The packages that it needs are those of this environment; the course in it is
hidden.

Demos of the references run elsewhere (nbval); here run the cells of each lesson that
define and check its exercises, and one notebook from its first cell to its last.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from course.paths import LANGUAGES, ROOT, exercise_names, lesson_names
from course.saved import books, languages

pytest.importorskip("setuptools")

SOURCES = ("course", "tiny_models", "solutions", "tests/lessons")
# An editable install finds what a wheel does not have.
HIDE = """import sys
def ours(x): return "__editable__" in getattr(x, "__module__", "")
for places in (sys.meta_path, sys.path_hooks):
    places[:] = [x for x in places if not ours(x)]
sys.path[:] = [x for x in sys.path if "__editable__" not in x]
"""
FILLED = """
from course.saved import books
def filled(lesson):
    book = books.as_built(lesson)
    for exercise in books.exercises(lesson):
        cell = book["cells"][books.cell_of(book, exercise)]
        cell["source"] = exercise.answer.splitlines(keepends=True)
    return book
def save(lesson, name=""):
    with open(f"{name or lesson}.ipynb", "w", encoding="utf-8") as file:
        file.write(books.as_text(filled(lesson)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from what the repository holds, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run(
        [*command, str(folder / "source")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Where pip would have put the wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "sitecustomize.py").write_text(HIDE)
    return folder


@pytest.fixture
def alone(site, tmp_path):
    """Run a Python program in an empty folder. It has what the wheel has."""

    def run(code, *words, code_expected=0):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=environment(site),
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == code_expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder = tmp_path
    return run


def environment(site):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    ours = {
        "PYTHONPATH": str(site),
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
    }
    return {**kept, **ours}


def command(*words):
    """The program that types `python -m course WORDS`."""
    return f"import sys; from course.__main__ import main; sys.exit(main({[*words]!r}))"


# --- what is in it --------------------------------------------------------------------


def test_the_wheel_holds_what_lessons_need_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for lesson in lesson_names():
        assert f"course/_data/solutions/{lesson}.py" in names
        assert f"course/_data/solutions/{lesson}.ipynb" in names
        assert f"course/_data/tests/lessons/test_{lesson}.py" in names
        for language in languages.languages_of(lesson):
            assert f"course/translations/{language}/{lesson}.po" in names
    assert {"course/_data/pyproject.toml", "course/kit/human_texts.txt"} <= names
    loose = [x for x in names if re.match(r"course/(making|teaching|jupyterlab)/", x)]
    assert not loose
    assert not [x for x in names if "wrong_answers" in x or "/build/" in x]
    assert wheel.stat().st_size < 3e6


def test_the_course_is_found_where_pip_has_put_it(alone, site):
    code = "import course.paths as p; print(p.INSTALLED, p.ROOT, p.HOME, p.COMMAND)"
    data = site / "course" / "_data"
    assert alone(code) == f"True {data} {alone.folder} python -m course\n"
    assert "No module named" in alone("import course.making", code_expected=1)


def test_it_asks_for_the_pinned_packages_in_ranges(wheel):
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [x for x in archive.namelist() if x.endswith("/METADATA")]
        asked = archive.read(name).decode()
    wanted = re.findall(r"^Requires-Dist: ([\w-]+)(.*?)(?:;|$)", asked, re.MULTILINE)
    assert {"torch", "transformers", "pytest"} <= {package for package, _ in wanted}
    for package, bounds in wanted:
        assert re.search(rf"^{package}==", pins, re.MULTILINE), package
        assert ">=" in bounds, package
        assert "==" not in bounds, package


# --- the lessons ----------------------------------------------------------------------

EVERY_LESSON = f"""{FILLED}
import os, sys
from course import check
for lesson in sys.argv[1:]:
    print("===", lesson, flush=True)
    save(lesson)
    names = {{"__name__": "__main__", "check": check}}
    for n, cell in enumerate(filled(lesson)["cells"]):
        if {{"setup", "exercise", "check"}} & books.tags_of(cell):
            source = books.source_of(cell)
            exec(compile(source, f"{{lesson}}[{{n}}]", "exec"), names)
    os.unlink(f"{{lesson}}.ipynb")
"""


@pytest.mark.parametrize("part", range(4))
def test_each_lesson_passes_its_checks_alone(alone, part):
    lessons = lesson_names()[part::4]
    told = alone(EVERY_LESSON, *lessons)
    told = dict(re.findall(r"=== (\w+)\n(.*?)(?==== |\Z)", told, re.DOTALL))
    assert list(told) == lessons
    for lesson, text in told.items():
        assert "✗" not in text, f"{lesson}: {text}"
        checks = (ROOT / "tests" / "lessons" / f"test_{lesson}.py").read_text("utf-8")
        titles = set(re.findall(r"^def test_(\w+)\(", checks, re.MULTILINE))
        passed = set(re.findall(r"^✓ (.*)$", text, re.MULTILINE))
        assert len(passed) >= len(titles) - 2, f"{lesson}: {titles ^ passed}"
        assert "your own" not in text


def test_a_whole_notebook_runs_to_its_end_alone(alone, site, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    alone(f"{FILLED}\nsave('04_top_k')")
    path = alone.folder / "04_top_k.ipynb"
    book = nbformat.read(path, as_version=4)
    for name, value in environment(site).items():
        monkeypatch.setenv(name, value)
    resources = {"metadata": {"path": str(alone.folder)}}
    nbclient.NotebookClient(book, timeout=240, resources=resources).execute()
    out = [x for cell in book.cells for x in cell.get("outputs", ())]
    assert not [x for x in out if x.output_type == "error"]
    text = "".join(x.get("text", "") for x in out)
    assert text.count("in this lesson") == len(exercise_names("04_top_k"))
    assert "done, 5 of 5 in this lesson: all of it" in text
    assert "decode: the reference, since 03_your_own_loop.ipynb is not in this" in text
    memory = json.loads((alone.folder / ".token_by_token.json").read_text("utf-8"))
    assert len(memory["passed"]) == 5


# --- what a learner may ask -----------------------------------------------------------


def test_carry_takes_the_learners_own_under_the_name_that_a_host_gives_it(alone):
    save = f"{FILLED}\nsave('03_your_own_loop', 'Copy of 03_your_own_loop (1)')\n"
    told = alone(
        f"{save}\nfrom course import carry; carry('pick_greedy'); carry('ask')"
    )
    assert "pick_greedy: your own, from Copy of 03_your_own_loop (1).ipynb" in told
    assert "ask: the reference, since 01_calling_a_model.ipynb is not in this" in told


def test_commands_say_that_a_notebook_is_not_in_the_folder(alone):
    none = f"No lesson's notebook is in this folder, {alone.folder}."
    assert none in alone(command("check"), code_expected=2)
    assert none in alone(command("next"))
    assert none in alone("from course import progress; print(progress())")
    told = alone("from course import reset; reset('kept_mass')")
    assert f"is not in this folder, {alone.folder}, so nothing was changed" in told
    assert "def kept_mass(" in told
    assert "This changed the file" not in told
    assert "hint 1 of" in alone("from course import hint; hint('kept_mass')")
    assert [x.name for x in alone.folder.iterdir()] == [".token_by_token.json"]


def test_a_lesson_is_begun_checked_and_put_back_in_an_empty_folder(alone):
    assert "04_top_k.ipynb is as it came" in alone(command("reset", "04"))
    came = (alone.folder / "04_top_k.ipynb").read_bytes()
    assert "exercise 04.1 in 04_top_k.ipynb" in alone(command("check"), code_expected=1)
    alone(f"{FILLED}\nsave('04_top_k')")
    checked = alone(command("check", "kept_mass"))
    assert "1 exercise: 1 done" in checked
    assert "start.py" not in checked
    told = alone(command("reset", "04"))
    assert "kept as backups/04_top_k-" in told
    assert (alone.folder / "04_top_k.ipynb").read_bytes() == came


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translated_notebook_is_put_back_in_its_language(alone, language):
    lesson = next(x for x in lesson_names() if languages.languages_of(x))
    built = books.as_text(books.as_built(lesson, language))
    path = alone.folder / f"{lesson}.ipynb"
    name = exercise_names(lesson)[0]
    path.write_text(built.replace(f"def {name}", f"def  {name}"), encoding="utf-8")
    alone(command("reset", lesson))
    assert path.read_text("utf-8") == built


def test_update_and_doctor_know_that_pip_brought_the_course(alone):
    assert "pip install" in alone(command("update"), code_expected=1)
    report = alone(command("doctor"))
    assert "token-by-token 0" in report
    assert "start.py" not in report
    assert "MISSING" not in report


def test_no_sentence_for_a_learner_names_a_command_that_is_not_there():
    """`python start.py` is there in the repository alone: see paths.COMMAND."""
    for room in ("checks", "learner", "saved", "kit"):
        for path in sorted((ROOT / "course" / room).glob("*.py")):
            code = re.sub(r'^"""(.*?)"""', "", path.read_text("utf-8"), flags=16)
            named = re.findall(r".*start\.py.*", code)
            allowed = ("doctor.py", "updating.py")
            assert not named or path.name in allowed, (path.name, named)


def test_where_the_course_lies_in_the_repository_nothing_is_copied():
    assert not (Path(ROOT) / "course" / "_data").exists()
