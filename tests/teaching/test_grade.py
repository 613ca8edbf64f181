"""`python start.py grade`: each notebook gets what its answers deserve, whatever its
code does, and no notebook costs another one anything."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import nbformat
import pytest

from course.checks import notebook
from course.paths import ROOT, SOLUTIONS, lesson_names
from course.teaching import grade, grade_process

# With shorter limits, in a process in which nothing else has started threads.
GRADE = """
import sys
from pathlib import Path
from course.checks import plugin
from course.teaching import grade, grade_process
plugin.SECONDS = 3.0
grade_process.FILE_MB = 2
folder, out = map(Path, sys.argv[1:])
grade.grade_folder(folder, out, 2, grade_process.Limits(60, memory=0.3, quiet=6))
"""

RIGHT = """\
def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError(top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
"""
WRONG = "def top_k_filter(logits, top_k):\n    return logits\n"
STUB = "def top_k_filter(logits, top_k):\n    raise NotImplementedError('not yet')\n"
IN_IT = "def top_k_filter(logits, top_k):\n    "
HIDE = """\
import os, signal
def top_k_filter(logits, top_k):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        pass
"""
FORGED = """\
import json, os
for n in range(3, 64):
    for number in range(9):
        line = {"number": number, "names": ["top_k_filter"], "title": "x",
                "state": "done", "text": ""}
        try:
            os.write(n, (json.dumps(line) + "\\n").encode())
        except OSError:
            pass
"""
# The other exercise of each notebook, which stands on its own.
KEPT_MASS = """\
def kept_mass(logits, top_k):
    probabilities = logits.softmax(-1)
    return (probabilities * (_filter(logits, top_k) > -torch.inf)).sum(-1)


""" + RIGHT.replace("def top_k_filter", "def _filter")

# name -> (cell of top_k_filter, state, a phrase of the sentence)
STUDENTS = {
    "right": (RIGHT, "done", ""),
    "wrong": (WRONG, "wrong", "should be [[-inf, 3, 2]]"),
    "untouched": (STUB, "to do", "top_k_filter is not written yet"),
    # Accidents
    "endless": (IN_IT + "while True: pass", "wrong", "still running after 3 s"),
    "hangs": (HIDE, "wrong", "nothing could stop it"),
    "exits": (IN_IT + "import sys; sys.exit(0)", "wrong", "calls exit()"),
    "exits at once": ("raise SystemExit(0)\n" + RIGHT, "wrong", "calls exit()"),
    "ends": (IN_IT + "import os; os._exit(0)", "wrong", "the process ended"),
    "crashes": (IN_IT + "import ctypes; ctypes.string_at(0)", "wrong", "ended (exit"),
    "interrupts": (IN_IT + "raise KeyboardInterrupt", "wrong", "the process ended"),
    "leaves pytest": (IN_IT + "import pytest; pytest.exit('', 0)", "wrong", "ended"),
    "skips": (IN_IT + "import pytest; pytest.skip('x')", "wrong", ""),
    "eats memory": (
        IN_IT + "x = []\n    while True: x.append(torch.empty(10**7))",
        "wrong",
        "more memory than there is",
    ),
    "fills the disk": (
        IN_IT + "f = open('x', 'wb')\n    while True: f.write(bytes(10**7))",
        "wrong",
        "File too large",
    ),
    "talks": (RIGHT + "print('a\\n' * 10**6)\n", "done", ""),
    "breaks torch": ("torch.topk = torch.where = None\n" + RIGHT, "done", ""),
    "syntax": ("def top_k_filter(logits, top_k:\n", "wrong", "line 1"),
    # Cheats
    "prints": (WRONG + 'print(\'{"state": "done"}\')\n', "wrong", "should be"),
    "forges": (FORGED + WRONG, "wrong", "something else has written to its report"),
    "own check": (
        "import course\ncourse.check = print\n" + WRONG,
        "wrong",
        "should be",
    ),
    "own report": (
        "from course.checks import explain\n"
        "explain.report = lambda _: ('', 'done')\n"
        "explain.verdict = lambda *_: explain.Verdict('done')\n"
        "explain.WRONG = 'done'\n" + WRONG,
        "wrong",
        "should be",
    ),
    "own expectations": (
        "from course.checks import expect\n"
        "expect.same.__code__ = (lambda *a, **k: None).__code__\n"
        "for name in ('same', 'rejects', 'value', 'tensor', 'returned'):\n"
        "    setattr(expect, name, lambda *a, **k: None)\n" + WRONG,
        "wrong",
        "should be",
    ),
    "own oracle": (
        "from transformers import TopKLogitsWarper\n"
        "TopKLogitsWarper.__call__ = lambda self, ids, scores: scores\n" + WRONG,
        "wrong",
        "should be",
    ),
    "own equality": (
        "yes = lambda *a, **k: torch.tensor(True)\n"
        "torch.isclose = torch.equal = torch.allclose = yes\n" + WRONG,
        "wrong",
        "should be",
    ),
    "own equality, late": (
        IN_IT + "torch.isclose = lambda *a, **k: torch.tensor(True)\n"
        "    return logits.masked_fill(logits < 0, 0)\n",
        "wrong",
        "it replaced torch.isclose",
    ),
    "own tests": (
        "import sys\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('test_04'):\n"
        "        for test in [x for x in vars(module) if x.startswith('test')]:\n"
        "            setattr(module, test, lambda: None)\n" + WRONG,
        "wrong",
        "",
    ),
    "own pytest": (
        "import pytest, _pytest.python\n"
        "_pytest.python.pytest_pyfunc_call = lambda *a: True\n"
        "_pytest.python.Function.runtest = lambda self: None\n" + WRONG,
        "wrong",
        "",
    ),
    "ours": (
        "from course import carry\ntop_k_filter = carry('top_k_filter')\n",
        "to do",
        "ours, brought by carry",
    ),
    "ours in disguise": (
        "from course import carry\nours = carry('top_k_filter')\n"
        "def top_k_filter(*given):\n    return ours(*given)\n",
        "wrong",
        "write your own",
    ),
    # Habits (tests/checks/test_habits.py has all of them)
    "habits": (
        "%%time\n!pip list\n%timeit -n 1 -r 1 1\nimport asyncio\n"
        "from course import check\nawait asyncio.sleep(0)\ntorch.topk?\n"
        "display(get_ipython())  # \ud83d\n" + RIGHT + "check(top_k_filter)\n"
        "print(top_k_filter(what_is_not_there))\n",
        "done",
        "",
    ),
    "needs the model": (
        RIGHT.replace("    k =", "    model.eval()\n    k ="),
        "wrong",
        "sets `model`, and does not run when the saved notebook is checked",
    ),
    "ours, late": (
        "import course\n"
        + IN_IT
        + "return course.carry('top_k_filter')(logits, top_k)",
        "wrong",
        "write your own",
    ),
}


def lesson_with(cell: str):
    """Lesson 04 with two exercises, this cell and a right `kept_mass`."""
    book = nbformat.v4.new_notebook()
    for tag, source in (
        ("setup", "import torch"),
        ("demo", "from tiny_models import load\nmodel, tokenizer = load()"),
        ("exercise", cell),
        ("exercise", KEPT_MASS),
    ):
        book.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}))
    return book


def read(out):
    """The rows of a table, {(student, exercise): row}."""
    with open(out, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(r["student"], r["exercise"]) for r in rows}) == len(rows)
    return {(r["student"], r["exercise"]): r for r in rows}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("takes minutes where processes cannot be forked")
    folder = tmp_path_factory.mktemp("submissions")
    for name, (cell, _, _) in STUDENTS.items():
        (folder / name).mkdir()
        text = json.dumps(lesson_with(cell))  # with half characters, too
        (folder / name / "04_top_k.ipynb").write_text(text, encoding="utf-8")
    # Beside a student's notebook nothing is imported.
    (folder / "right" / "torch.py").write_text("raise SystemExit('imported')")
    (folder / "right" / "course.py").write_text("raise SystemExit('imported')")

    solved = notebook.read(SOLUTIONS / "04_top_k.ipynb")
    nbformat.write(solved, folder / "anna_04_top_k.ipynb")
    nbformat.write(lesson_with(RIGHT), folder / "04-Top-K (1) bert.ipynb")
    for cell in solved.cells:
        cell.metadata.pop("tags", None)  # as some editors do
    nbformat.write(solved, folder / "no_tags_and_no_name.ipynb")
    renamed = json.loads(
        json.dumps(solved).replace("def top_k_filter", "def my_filter")
    )
    nbformat.write(nbformat.from_dict(renamed), folder / "04_top_k_renamed.ipynb")
    below = json.loads(json.dumps(solved))
    below["cells"].append(nbformat.v4.new_code_cell(RIGHT))
    answer = next(c for c in below["cells"] if c["id"] == "04-exercise-top_k_filter")
    answer["source"] = STUB
    (folder / "04_top_k_below.ipynb").write_text(json.dumps(below), "utf-8-sig")
    with zipfile.ZipFile(folder / "zoe.zip", "w") as archive:
        archive.writestr("homework/04_top_k.ipynb.txt", json.dumps(lesson_with(RIGHT)))
    (folder / "04_top_k_cut_off.ipynb").write_text(nbformat.writes(solved)[:9999])
    (folder / "04_top_k_empty.ipynb").write_bytes(b"")
    (folder / "04_top_k_bytes.ipynb").write_bytes(b"\xff\xfe\x00")
    (folder / "04_top_k_odd.ipynb").write_text(
        json.dumps({"cells": [{"source": 7}, 3], "metadata": [], "nbformat": 4})
    )
    (folder / "04_top_k_deep.ipynb").write_text("[" * 100_000)
    (folder / "deep.ipynb").write_text("[" * 100_000)
    (folder / "=2+3, a poem.ipynb").write_text("{}")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "04_top_k.ipynb").write_text("{}")
    out = folder / "grades.csv"
    done = subprocess.run(
        [sys.executable, "-c", GRADE, str(folder), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, read(out)


def points(rows, student):
    return [int(row["points"]) for (s, _), row in rows.items() if s == student]


@pytest.mark.parametrize("student", STUDENTS)
def test_an_answer_gets_what_it_deserves(graded, student):
    _, state, phrase = STUDENTS[student]
    row = graded[1][f"{student}/04_top_k.ipynb", "top_k_filter"]
    assert (row["state"], phrase in row["said"]) == (state, True), row
    assert row["points"] == ("2" if state == "done" else "0")
    assert row["of"] == "2"
    assert (row["said"] == "") == (state == "done")


@pytest.mark.parametrize("student", [s for s in STUDENTS if s != "forges"])
def test_an_exercise_costs_no_other_exercise_anything(graded, student):
    row = graded[1][f"{student}/04_top_k.ipynb", "kept_mass"]
    assert (row["state"], row["points"]) == ("done", "1"), row


def test_a_notebook_is_found_by_its_name_or_by_its_exercises(graded):
    for name in ("anna_04_top_k", "no_tags_and_no_name"):
        assert points(graded[1], f"{name}.ipynb") == [2, 1, 2, 2, 1], name
    assert points(graded[1], "04-Top-K (1) bert.ipynb") == [2, 1, 0, 0, 0]


def test_a_notebook_in_an_archive_under_another_name_is_graded(graded):
    assert points(graded[1], "zoe.zip/homework/04_top_k.ipynb.txt") == [2, 1, 0, 0, 0]


def test_a_missing_answer_costs_only_itself_and_one_in_another_cell_counts(graded):
    assert points(graded[1], "04_top_k_renamed.ipynb") == [0, 1, 2, 2, 1]
    row = graded[1]["04_top_k_renamed.ipynb", "top_k_filter"]
    assert "It defines my_filter in cell 11" in row["said"]
    assert points(graded[1], "04_top_k_below.ipynb") == [2, 1, 2, 2, 1]


@pytest.mark.parametrize("name", ["cut_off", "empty", "bytes", "odd", "deep"])
def test_a_broken_notebook_costs_its_own_rows(graded, name):
    assert points(graded[1], f"04_top_k_{name}.ipynb") == [0, 0, 0, 0, 0]
    row = graded[1][f"04_top_k_{name}.ipynb", "top_k_filter"]
    assert row["state"] == "wrong"
    assert "notebook" in row["said"]


def test_what_is_no_lesson_is_said_to_be_none(graded):
    for name in ("'=2+3, a poem.ipynb", "deep.ipynb"):
        row = graded[1][name, ""]
        assert (row["state"], row["points"], row["of"]) == ("not graded", "0", "0")
        assert "which lesson" in row["said"]
    assert not [student for student, _ in graded[1] if "checkpoints" in student]


def test_nothing_is_left_behind(graded):
    assert not list(graded[0].rglob("*.part"))
    assert not list(graded[0].rglob("x")), "a notebook wrote beside itself"


def test_a_second_run_grades_only_what_is_new_changed_or_cut_off(tmp_path, monkeypatch):
    folder, out, taken = tmp_path / "some", tmp_path / "grades.csv", []

    def quick(asked, *_):
        for job in asked:
            taken.append(job.name)
            state = "done" if job.text.count("sort") > 1 else "wrong"
            results = dict.fromkeys(job.left(), grade_process.Result(state, "said"))
            yield dataclasses.replace(job, results={**results, **job.results})

    def run():
        taken.clear()
        grade.grade_folder(folder, out)
        return read(out)

    def save(name, cell):
        nbformat.write(lesson_with(cell), folder / name)

    monkeypatch.setattr(grade, "grade", quick)
    folder.mkdir()
    (folder / "=1.ipynb").write_text("{}")
    for name in "abc":
        save(f"{name}_04_top_k.ipynb", RIGHT)
    run()
    assert taken == ["=1.ipynb"] + [f"{n}_04_top_k.ipynb" for n in "abc"]
    whole = out.read_text(encoding="utf-8")
    for killed_at in (2, 20, 60, 250):  # before the end: in the rows of c
        edited = whole.replace(
            "a_04_top_k.ipynb,04_top_k,TopK,done,1,",
            "a_04_top_k.ipynb,04_top_k,TopK,done,0.5,",
        )
        out.write_text(edited[:-killed_at], encoding="utf-8")
        rows = run()
        assert taken == ["c_04_top_k.ipynb"]
        assert rows["a_04_top_k.ipynb", "TopK"]["points"] == "0.5", "set by hand"
        assert len(rows) == 16
    save("b_04_top_k.ipynb", WRONG)
    save("d_04_top_k.ipynb", RIGHT)
    (folder / "a_04_top_k.ipynb").unlink()
    rows = run()
    assert taken == ["b_04_top_k.ipynb", "d_04_top_k.ipynb"]
    assert [rows[f"{n}_04_top_k.ipynb", "TopK"]["state"] for n in "bcd"] == [
        "wrong",
        "done",
        "done",
    ]
    assert [s for s, _ in rows] == sorted(s for s, _ in rows)
    run()
    assert taken == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_in_the_background_it_stops_when_told_to_and_leaves_no_process(tmp_path):
    """There the shell has Ctrl-C ignored: `nohup python start.py grade ... &`."""
    (tmp_path / "in").mkdir()
    book = lesson_with(IN_IT + "while True:\n        pass")
    nbformat.write(book, tmp_path / "in" / "anna_04_top_k.ipynb")
    words = ["grade", "in", "--out", "g.csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "course", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        start_new_session=True,
    )
    while not (tmp_path / "g.csv").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.terminate()
    told, _ = process.communicate(timeout=20)
    assert "stopped; the same command goes on from what is in g.csv" in told
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_where_processes_cannot_be_forked_they_grade_the_same(monkeypatch):
    monkeypatch.setattr(grade_process, "_start_method", lambda: "spawn")
    monkeypatch.setattr(grade_process, "_prove", lambda *_: None)
    text = nbformat.writes(lesson_with(RIGHT))
    (job,) = grade_process.grade([grade_process.Job("a", "04_top_k", text)])
    states = [job.results[name].state for name in ("top_k_filter", "kept_mass", "TopK")]
    assert states == ["done", "done", "wrong"]


def test_nothing_is_graded_where_our_own_answers_do_not_pass(monkeypatch):
    def ended(self):
        self.process.kill()
        return True

    monkeypatch.setattr(grade_process, "_start_method", lambda: "spawn")
    monkeypatch.setattr(grade_process._Run, "has_ended", ended)
    with pytest.raises(grade_process.CannotGrade, match="our own answers to 04_top_k"):
        list(grade_process.grade([grade_process.Job("a", "04_top_k", "{}")]))


def test_every_exercise_has_points_by_its_stars():
    assert grade_process.points_of("04_top_k") == {
        "top_k_filter": 2,
        "kept_mass": 1,
        "top_k_exact": 2,
        "sample_top_k": 2,
        "TopK": 1,
    }
    for lesson in lesson_names():
        cells = notebook.read(SOLUTIONS / f"{lesson}.ipynb").cells
        tagged = [c for c in cells if "exercise" in notebook.tags(c)]
        names = [notebook.defined_names(c.source)[0] for c in tagged]
        assert list(grade_process.points_of(lesson)) == names
        assert set(grade_process.points_of(lesson).values()) <= {1, 2, 3}


def test_a_report_that_is_copied_changed_or_forged_is_not_believed():
    def line(key, **record):
        payload = json.dumps(record).encode()
        return grade_process._mac(key, payload) + b" " + payload + b"\n"

    one, two = line(b"key", number=0, state="done"), line(b"key", number=1, x=2)
    assert len(grade_process.read_report(one + two, b"key")) == 2
    for forged in (
        one + one,  # copied
        two + one,
        one.replace(b"done", b"good") + two,
        one[:-2] + b"\n" + two,
        line(b"other", number=0) + two,
        b"\n" + two,
    ):
        assert len(grade_process.read_report(forged, b"key")) <= 1


def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path):
    out = tmp_path / "grades.csv"
    out.write_text("name,grade\nada,5\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="did not write it"):
        grade.grade_folder(tmp_path, out)
    assert out.read_text(encoding="utf-8") == "name,grade\nada,5\n"
    for wrong in (["/no/such/folder"], [str(tmp_path), "--jobs", "0"]):
        with pytest.raises(SystemExit) as error:
            grade.main(wrong)
        assert error.value.code == 2
