"""`python start.py export nbgrader`, and nbgrader's whole cycle on what it makes: the
points are what they should be, and a cheat earns nothing."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from course.checks import notebook
from course.making import build
from course.paths import LESSONS, ROOT, SOLUTIONS, lesson_names
from course.saved import books
from course.teaching import grade_process, nbgrader_export

LESSON = "04_top_k"
POINTS = {"top_k_filter": 2, "kept_mass": 1, "top_k_exact": 2, "sample_top_k": 2}
POINTS["TopK"] = 1

# nbgrader's commands, a line each, one after the other in one process.
COMMANDS = """
import json, sys
from course.checks import plugin
from jupyter_core.application import NoStart
from nbgrader.apps.nbgraderapp import NbGraderApp
plugin.SECONDS = 3.0  # of a time limit
for line in sys.stdin:
    app = NbGraderApp.instance()
    code = 0
    try:
        app.initialize(json.loads(line))
        app.start()
    except NoStart:  # the usual end of a subcommand
        pass
    except SystemExit as error:
        code = error.code or 0
    app.subapp.clear_instance()
    print("EXIT", code, flush=True)
"""


@pytest.fixture(scope="module")
def nbgrader_is_here():
    missing = importlib.util.find_spec("nbgrader") is None
    if missing and os.environ.get("CI") == "true":
        pytest.fail("nbgrader is not installed; with CI=true this test must run")
    if missing:
        pytest.skip("nbgrader is not installed (python start.py teach installs it)")


@pytest.fixture(scope="module")
def nbgrader(classroom, nbgrader_is_here):
    """Runs one of nbgrader's commands in the class folder: (exit code, output)."""
    running = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        cwd=classroom,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )

    def run(*arguments):
        print(json.dumps(arguments), file=running.stdin, flush=True)
        said = ""
        for line in running.stdout:
            if line.startswith("EXIT "):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(said)

    yield run
    running.stdin.close()
    running.stdout.read()
    running.wait()


# --- the class folder -----------------------------------------------------------------


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "course"
    nbgrader_export.main(["nbgrader", str(folder)])
    return folder


@pytest.fixture(scope="module")
def released(classroom, nbgrader):
    for lesson in lesson_names():
        code, said = nbgrader("generate_assignment", lesson)
        assert code == 0, said
    return classroom / "release"


def answers(lesson) -> dict[str, str]:
    """exercise -> the source of the cell with our answer"""
    cells = notebook.read(SOLUTIONS / f"{lesson}.ipynb").cells
    cells = [c for c in cells if "exercise" in notebook.tags(c)]
    return {notebook.defined_names(c.source)[0]: c.source for c in cells}


def test_a_folder_in_the_repository_is_refused():
    for folder in (ROOT, ROOT / "class", LESSONS):
        with pytest.raises(SystemExit, match="outside"):
            nbgrader_export.main(["nbgrader", str(folder)])
    assert not (ROOT / "class").exists()
    assert not (ROOT / "nbgrader_config.py").exists()


def test_what_a_teacher_has_changed_is_kept(tmp_path, capsys):
    folder = tmp_path / "new" / "class"
    nbgrader_export.main(["nbgrader", str(folder), "04"])
    mine = [folder / "nbgrader_config.py", folder / f"source/{LESSON}/{LESSON}.ipynb"]
    first = [path.read_bytes() for path in mine]
    for path in mine:
        path.write_text("mine")
    nbgrader_export.main(["nbgrader", str(folder), "04", "05"])
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert "left, since it was there" in capsys.readouterr().out
    assert not (folder / "backups").exists()
    assert sorted(p.name for p in (folder / "source").iterdir()) == lesson_names()[3:5]
    for n, work in enumerate(["mine", "mine again"], 1):
        for path in mine:
            path.write_text(work)
        for _ in range(2):  # the second finds nothing to keep
            nbgrader_export.main(["nbgrader", str(folder), "04", "--force"])
        assert [path.read_bytes() for path in mine] == first, "two exports differ"
        kept = sorted((folder / "backups").iterdir())
        assert [path.suffix for path in kept].count(".py") == n
        assert [path.suffix for path in kept].count(".ipynb") == n
        assert [path.read_text() for path in kept].count(work) == 2
        said = capsys.readouterr().out
        assert sum(str(path) in said for path in kept) == 2
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("lesson", lesson_names())
def test_the_release_has_no_answer(released, lesson):
    assert [p.name for p in (released / lesson).iterdir()] == [f"{lesson}.ipynb"]
    text = (released / lesson / f"{lesson}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in text
    cells = nbformat.reads(text, as_version=4).cells
    everything = "\n".join(cell.source for cell in cells)
    found = 0
    for source in answers(lesson).values():
        for answer in re.findall(r"BEGIN SOLUTION\n(.*?)### END", source, re.DOTALL):
            found += 1
            assert answer.strip() not in everything, answer
    assert found >= 5
    assert everything.count(books.STUB) == found
    assert all(c.cell_type != "code" or c.outputs == [] for c in cells)


@pytest.mark.parametrize("lesson", lesson_names())
def test_the_release_is_the_lesson_with_check_cells_that_stand_alone(released, lesson):
    theirs = notebook.read(released / lesson / f"{lesson}.ipynb").cells
    ours = build.as_built(lesson).cells
    assert [c.id for c in theirs] == [c.id for c in ours]
    points = {}
    for cell, our in zip(theirs, ours, strict=True):
        about = cell.metadata.get("nbgrader")
        if "check" in notebook.tags(our):
            assert cell.source == f"from course import check\n\n{our.source}"
            assert (about.grade, about.locked, about.solution) == (True, True, False)
            assert cell.metadata.editable is False
            points[about.grade_id.removeprefix("check-")] = about.points
        else:
            assert cell.source == our.source
            exercise = "exercise" in notebook.tags(our)
            assert (about is not None) == exercise
            assert not exercise or (about.solution, about.locked) == (True, False)
    assert points == grade_process.points_of(lesson)
    if lesson == LESSON:
        assert points == POINTS


# --- the cycle ------------------------------------------------------------------------


class Submission:
    """The released notebook, as a student changes it."""

    def __init__(self, path):
        self.book = notebook.read(path)

    def exercise(self, name):
        return self._cell(name)

    def check(self, name):
        return self._cell(f"check-{name}")

    def _cell(self, grade_id):
        about = [
            c.metadata.get("nbgrader", {}).get("grade_id") for c in self.book.cells
        ]
        return self.book.cells[about.index(grade_id)]

    def solve(self, *names):
        for name in names or POINTS:
            self.exercise(name).source = answers(LESSON)[name]
        return self


def first_two(s):
    s.solve("top_k_filter", "kept_mass")


def untouched(s):
    pass


def all_right(s):
    s.solve()


def redefines_check(s):
    cheat = "check = lambda f: None\nimport course\ncourse.check = check\n"
    cheat += "import course.checks.checking\ncourse.checks.checking.check = check\n"
    for name in POINTS:
        s.exercise(name).source = cheat + s.exercise(name).source


def catches_the_error(s):
    for name in POINTS:
        s.check(name).source = f"try:\n    check({name})\nexcept Exception:\n    8"


def patches_the_machinery(s):
    s.exercise("top_k_filter").source += (
        "\nfrom course.checks import explain\nexplain.report = lambda _: ('', 'done')\n"
        "import IPython, _pytest.python\n"
        "_pytest.python.Function.runtest = lambda self: None\n"
        "from nbgrader import utils\nutils.determine_grade = lambda *_: (8, 8)\n"
    )


def unlocks_the_checks(s):
    for name in POINTS:
        about = s.check(name).metadata.nbgrader
        about.update(solution=True, locked=False, points=100)
        s.check(name).source = "100"


def says_that_exercises_are_graded(s):
    s.solve("kept_mass")
    for name in POINTS:
        s.exercise(name).metadata.nbgrader.update(grade=True, points=100)
        s.check(name).metadata.nbgrader.update(grade=False)


def turns_checks_into_text(s):
    s.solve("TopK")
    for name in POINTS:
        cell = s.check(name)
        cell.cell_type = "markdown"
        del cell["outputs"], cell["execution_count"]


def checks_deleted(s):
    s.solve("top_k_filter", "top_k_exact")
    for name in ("top_k_filter", "TopK"):
        s.book.cells.remove(s.check(name))


def exercise_deleted(s):
    s.solve("top_k_filter", "top_k_exact", "kept_mass")
    s.book.cells.remove(s.exercise("top_k_exact"))
    s.book.cells.remove(s.check("top_k_exact"))


def cells_copied(s):
    s.solve("kept_mass")
    for cell in (s.exercise("kept_mass"), s.check("kept_mass")):
        copy = nbformat.from_dict(json.loads(json.dumps(cell)))
        copy.id = cell.id[::-1]
        s.book.cells.append(copy)


def endless(s):
    s.solve("top_k_filter")
    s.exercise(
        "top_k_exact"
    ).source = "def top_k_exact(logits, top_k):\n    while True: pass"


def ends_the_process(s):
    s.solve("kept_mass", "TopK")
    s.exercise(
        "sample_top_k"
    ).source = "def sample_top_k(*_, **__):\n    import os\n    os._exit(0)"


def runs_a_demo(s):
    s.solve("kept_mass")
    for cell in s.book.cells:
        if cell.cell_type == "code" and not cell.metadata.get("tags"):
            cell.source = "open('a_demo_ran', 'w').close()\n1 / 0"


def has_habits(s):
    s.solve("kept_mass", "sample_top_k")
    s.exercise("kept_mass").source = (
        "%%time\ndisplay(1)\n" + answers(LESSON)["kept_mass"]
    )
    answer = answers(LESSON)["top_k_exact"].replace("top_k_exact", "top_k_exactly")
    s.exercise("top_k_exact").source = answer  # renamed
    helper = nbformat.v4.new_code_cell("import math\nLOWEST = -math.inf")
    answer = answers(LESSON)["top_k_filter"].replace('float("-inf")', "LOWEST")
    s.book.cells += [helper, nbformat.v4.new_code_cell(answer)]  # below the stub


def half_an_emoji(s):
    s.solve("top_k_filter", "TopK")
    s.exercise("TopK").source += "\n# \ud83d"
    s.check("TopK").outputs = [nbformat.v4.new_output("stream", text="\ud83d")]


def strips_all_nbgrader_data(s):
    s.solve("top_k_filter")
    for cell in s.book.cells:
        cell.metadata.pop("nbgrader", None)


# The student's way, and the points that it is worth of 8.
STUDENTS = {
    all_right: 8,
    first_two: 3,
    untouched: 0,
    redefines_check: 0,
    catches_the_error: 0,
    patches_the_machinery: 0,
    unlocks_the_checks: 0,
    says_that_exercises_are_graded: 1,
    turns_checks_into_text: 1,
    checks_deleted: 4,
    exercise_deleted: 3,
    cells_copied: 1,
    endless: 2,
    ends_the_process: 2,
    runs_a_demo: 1,
    has_habits: 5,
    half_an_emoji: 3,
    strips_all_nbgrader_data: 2,
}


@pytest.fixture(scope="module")
def graded(classroom, released, nbgrader):
    if sys.platform != "linux":
        pytest.skip("takes minutes where processes cannot be forked")
    for way in STUDENTS:
        submission = Submission(released / LESSON / f"{LESSON}.ipynb")
        way(submission)
        folder = classroom / "submitted" / way.__name__ / LESSON
        folder.mkdir(parents=True)
        # With a byte-order mark, and half characters, as some editors leave them.
        mark = "utf-8-sig" if way is first_two else "utf-8"
        (folder / f"{LESSON}.ipynb").write_text(json.dumps(submission.book), mark)
    broken = classroom / "submitted" / "broken" / LESSON
    broken.mkdir(parents=True)
    (broken / f"{LESSON}.ipynb").write_text("{")
    code, said = nbgrader("autograde", LESSON)
    assert code == 1, "the broken submission must be told"
    assert "for student 'broken'" in said
    assert said.count("There was an error processing assignment '") == 1
    for way in (first_two, endless, ends_the_process):
        assert nbgrader("generate_feedback", LESSON, "--student", way.__name__)[0] == 0
    assert nbgrader("export")[0] == 0
    with open(classroom / "grades.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["assignment"] == LESSON]
    return classroom, {row["student_id"]: row for row in rows}


@pytest.mark.parametrize("way", STUDENTS, ids=lambda way: way.__name__)
def test_a_submission_gets_the_points_that_it_is_worth(graded, way):
    row = graded[1][way.__name__]
    assert (float(row["score"]), float(row["max_score"])) == (STUDENTS[way], 8)


def test_a_broken_submission_costs_no_other_one(graded):
    assert float(graded[1]["broken"]["score"] or 0) == 0
    assert set(graded[1]) == {way.__name__ for way in STUDENTS} | {"broken"}


def test_the_feedback_says_what_is_wrong(graded):
    def feedback(way):
        path = graded[0] / "feedback" / way.__name__ / LESSON / f"{LESSON}.html"
        return path.read_text(encoding="utf-8")

    assert "✓ the case worked by hand" in feedback(first_two)
    assert "top_k_exact is not written yet" in feedback(first_two)
    assert "still running after 3 s" in feedback(endless)
    assert "the process ended" in feedback(ends_the_process)


def test_demos_do_not_run(graded):
    assert not list(graded[0].rglob("a_demo_ran"))
    page = graded[0] / "autograded" / "runs_a_demo" / LESSON / f"{LESSON}.ipynb"
    cells = notebook.read(page).cells
    ran = [c for c in cells if c.cell_type == "code" and c.outputs]
    assert [c.metadata.nbgrader.grade_id for c in ran] == [f"check-{n}" for n in POINTS]


def test_cells_that_a_teacher_has_added_run_after_the_exercises(
    nbgrader_is_here, monkeypatch, tmp_path
):
    from course.teaching import nbgrader_autograde

    def graded_as_done(jobs):
        for job in jobs:
            done = grade_process.Result("done", "", "✓ all")
            yield grade_process.Job(
                job.name, job.lesson, "", dict.fromkeys(POINTS, done)
            )

    def cell(source, tag="", **about):
        metadata = {"tags": [tag]} if tag else {}
        metadata |= {"nbgrader": nbgrader_export._about(**about)} if about else {}
        return nbformat.v4.new_code_cell(source, metadata=metadata)

    monkeypatch.setattr(grade_process, "grade", graded_as_done)
    check = {"grade": True, "locked": True, "points": 1}
    cells = [
        cell("one = 1", "setup"),
        cell("1 / 0"),
        cell("two = one + 1", "exercise", grade_id="two", solution=True),
        cell("1 / 0", "check", grade_id="check-top_k_filter", **check),
        cell("assert two == 2", grade_id="mine", **check),
        cell("assert two == 3", grade_id="check-of-mine", **check),
    ]
    book = nbformat.v4.new_notebook(cells=cells)
    resources = {"nbgrader": {"notebook": LESSON}, "metadata": {"path": str(tmp_path)}}
    book, _ = nbgrader_autograde.Check().preprocess(book, resources)
    kinds = [[o.output_type for o in c.outputs] for c in book.cells]
    assert kinds == [[], [], [], ["stream"], [], ["error"]]
    assert book.cells[5].outputs[0].ename == "AssertionError"
