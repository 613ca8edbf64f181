"""A class of forty, graded with one command: each student has a row, a page and the
points of one notebook; nobody is lost; and who has copied is shown beside the other."""

import csv
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import made_up_class
import pytest

from course.paths import ROOT

LESSON = made_up_class.LESSON


def rows(path, by=None):
    with open(path, encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    return {row[by]: row for row in found} if by else found


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "course", "grade", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("takes minutes where processes cannot be forked")
    folder = tmp_path_factory.mktemp("class")
    bulk, names = made_up_class.write(folder)
    options = (bulk, "--out", folder / "grades.csv", "--roster", names)
    said = command(*options, "--report", folder / "report")
    # Nothing is graded again.
    best = folder / "best.csv"
    again = command(*options, "--totals", best, "--resubmissions", "best")
    return SimpleNamespace(
        folder=folder,
        report=folder / "report",
        said=said,
        again=again,
        totals=rows(folder / "report" / "totals.csv", "student"),
        best=rows(best, "student"),
    )


# Worked out by hand from the stars of the exercises: 2, 1, 2, 2 and 1.
POINTS = {
    "Ada Lovelace": "6",  # without top_k_exact
    "Bela Bartok": "6",
    "Carl Gauss": "6",
    "Dora Maar": "7",  # without kept_mass
    "Emil O'Neil": "8",
    "Fay Wray": "8",
    "Gül Öztürk": "2",  # kept_mass and TopK
    "王小明": "8",
    "Ina Miller": "0",
    "Ole Miller": "0",
    "Cem Miller": "0",
    "Eva Cut": "0",
    "Gil Zipped": "6",
    "Eve Zipped": "7",
    "Jo Stranger": "2",
    "Finn Essay": "",
    "Kai Missing": "",
}


@pytest.mark.parametrize("student", POINTS)
def test_each_student_has_the_points_of_the_notebook(graded, student):
    row = graded.totals[student]
    assert (row[LESSON], row["of"]) == (POINTS[student], "8")
    assert row["points"] == (POINTS[student] or "0")


def test_the_totals_hold_the_whole_class_with_the_numbers_of_the_platform(graded):
    people = rows(graded.folder / "names.csv")
    found = list(graded.totals.values())
    assert [r["student"] for r in found[:-1]] == [p["Full name"] for p in people]
    assert [r["id"] for r in found[:-1]] == [p["Identifier"] for p in people]
    assert found[-1]["student"] == "Jo Stranger"
    assert found[-1]["note"] == "not in the roster"


def test_the_last_notebook_counts_or_the_best(graded):
    def counted(name, which):
        return which[name][LESSON]

    assert [counted(f"{x} Twice", graded.totals) for x in ("Hal", "Ida")] == ["6", "0"]
    assert [counted(f"{x} Twice", graded.best) for x in ("Hal", "Ida")] == ["6", "6"]
    assert "04_top_k-1.ipynb, not" in graded.totals["Hal Twice"]["note"]
    others = set(graded.totals) - {"Ida Twice"}
    assert all(graded.totals[x] == graded.best[x] for x in others)


def test_who_is_missing_is_said_and_why(graded):
    missing = rows(graded.report / "missing.csv", "student")
    assert list(missing) == ["Finn Essay", "Kai Missing", "Liv Missing"]
    assert "essay.pdf: it is neither a notebook" in missing["Finn Essay"]["why"]
    assert missing["Kai Missing"]["why"] == "nothing was handed in"
    for name in missing:
        assert f"missing: {name} Participant 500" in graded.said


def test_each_file_that_was_not_graded_is_listed_with_the_reason(graded):
    why = {
        row["file"].split("/")[-1]: row["why"]
        for row in rows(graded.report / "not_graded.csv")
    }
    assert set(why) == {"essay.pdf", "notes.txt", f"{LESSON}.ipynb"}
    assert "cannot be read" in why[f"{LESSON}.ipynb"]  # Eva's was cut off
    assert "cannot be read" in graded.totals["Eva Cut"]["note"]


def test_the_commonest_mistakes_are_counted_one_a_student(graded):
    found = rows(graded.report / "mistakes.csv")
    mine = [r for r in found if r["exercise"] == "top_k_filter"]
    told = [(r["students"], r["sentence"]) for r in mine]
    assert [n for n, _ in told] == ["8", "4", "3", "2", "1", "1"]
    assert "not [[-inf, 3, -inf]]" in told[0][1]  # <= for <
    assert "Is a `return` missing?" in told[1][1]
    assert "was never closed" in told[3][1]
    assert {r["of"] for r in found} == {"39"}
    others = [r for r in found if r["exercise"] != "top_k_filter"]
    assert {r["students"] for r in others} == {"1"}  # of the file that was cut off


def test_each_exercise_with_mistakes_has_a_figure(graded):
    figures = sorted((graded.report / "mistakes").iterdir())
    assert [x.name for x in figures][:2] == [
        f"{LESSON}_0_overview.png",
        f"{LESSON}_1_top_k_filter.png",
    ]
    assert all(x.read_bytes()[:4] == b"\x89PNG" for x in figures)


def test_equal_answers_are_shown_and_ours_are_named(graded):
    found = rows(graded.report / "equal.csv")
    groups = {r["students"]: r for r in found if r["exercise"] == "top_k_filter"}
    copied = "Ada Lovelace, Bela Bartok, Carl Gauss, Gil Zipped, Hal Twice"
    assert groups[copied]["equal"] == "but for names, comments and layout"
    ours = groups["Emil O'Neil, Fay Wray, 王小明"]
    assert (ours["equal"], ours["note"]) == ("", "our own answer, with our names")
    never = ("Ina Miller", "Gül Öztürk")  # stubs, and what is short
    assert not [x for x in never if any(x in group for group in groups)]
    page = (graded.report / "equal.html").read_text(encoding="utf-8")
    assert "no verdict" in page
    assert "sort, then look up the border" in page
    assert "my own idea" in page


def test_each_student_has_a_page_under_the_name_that_the_platform_gave(graded):
    place = graded.report / "feedback"
    pages = {x.name: x.read_text(encoding="utf-8") for x in place.iterdir()}
    assert len(pages) == 40  # of each who handed in something
    ben = "Ben Miller_500130_assignsubmission_file_feedback_04_top_k.html"
    assert "The caller still needs it" in pages[ben]
    assert "kept_mass is not written yet" in pages[ben]
    assert "0 of 8 points" in pages[ben]
    (finn,) = [text for name, text in pages.items() if "Finn" in name]
    assert "neither a notebook nor a zip archive" in finn
    with zipfile.ZipFile(graded.report / "feedback.zip") as archive:
        assert set(archive.namelist()) == set(pages)
        assert archive.read(ben).decode() == pages[ben]


def test_a_notebook_in_chinese_is_graded_as_its_english_one(graded):
    mine = {"王小明": [], "Emil ONeil": []}
    for row in rows(graded.folder / "grades.csv"):
        name = row["student"].split("_")[0]
        if name in mine:
            mine[name].append((row["exercise"], row["state"], row["points"]))
    assert mine["王小明"] == mine["Emil ONeil"]
    assert len(mine["王小明"]) == 5
