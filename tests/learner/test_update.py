"""`update`: the newest version comes, and nothing that the learner wrote is lost."""

import copy
import json
import subprocess

import pytest

from course.learner import backups, merging, updating
from course.saved import books

# --- merging, cell by cell ------------------------------------------------------------


def cell(name, source, *tags, kind="code"):
    made = {"cell_type": kind, "id": name, "metadata": {}, "source": [source]}
    if tags:
        made["metadata"]["tags"] = list(tags)
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def book(*cells):
    return {"cells": copy.deepcopy(list(cells)), "metadata": {"v": 1}, "nbformat": 4}


TITLE = cell("t", "# A title", kind="markdown")
SETUP = cell("s", "import torch", "setup")
F = cell("01-exercise-f", "def f():\n    raise NotImplementedError", "exercise")
CHECK = cell("01-check-f", "check(f)", "check")
DEMO = cell("d", "print(f())")
BASE = book(TITLE, SETUP, F, CHECK, DEMO)


def with_source(one, source):
    return {**copy.deepcopy(one), "source": [source]}


def sources(merged):
    return [books.source_of(c) for c in merged["cells"]]


def test_an_answer_is_kept_with_its_output_and_all_else_is_new():
    answer = with_source(F, "def f():\n    return 1")
    mine = book(TITLE, SETUP, answer, CHECK, DEMO)
    mine["cells"][4]["outputs"] = [{"text": "1"}]
    new_title = with_source(TITLE, "# A better title") | {"id": "t2"}
    theirs = book(new_title, SETUP, F, CHECK, DEMO, cell("new", "f() + 1"))
    theirs["metadata"] = {"v": 2}
    merged, notes = merging.merge(BASE, mine, theirs)
    assert sources(merged) == [
        *("# A better title", "import torch", "def f():\n    return 1"),
        *("check(f)", "print(f())", "f() + 1"),
    ]
    assert merged["cells"][4]["outputs"] == [{"text": "1"}]
    assert merged["metadata"] == {"v": 2}
    assert notes == []


def test_what_nobody_worked_in_becomes_the_new_version():
    theirs = book(with_source(TITLE, "# New"), SETUP, with_source(F, "def f(x): 1"))
    assert merging.merge(BASE, BASE, theirs) == (theirs, [])


def test_added_cells_stay_where_they_were():
    own = [cell(f"own{n}", f"mine = {n}") for n in range(3)]
    mine = book(own[0], TITLE, SETUP, F, own[1], own[2], CHECK, DEMO)
    theirs = book(TITLE, SETUP, F, cell("new", "new"), CHECK)
    merged, _ = merging.merge(BASE, mine, theirs)
    assert sources(merged) == [
        *("mine = 0", "# A title", "import torch", books.source_of(F)),
        *("mine = 1", "mine = 2", "new", "check(f)"),
    ]


def test_a_changed_exercise_that_was_answered_keeps_both_and_says_so():
    answer = with_source(F, "def f():\n    return 1")
    theirs = book(TITLE, SETUP, with_source(F, "def f(x):\n    raise N"), CHECK)
    merged, notes = merging.merge(BASE, book(TITLE, SETUP, answer, CHECK), theirs)
    assert "def f():\n    return 1" in sources(merged)
    assert any("# def f(x):\n#     raise N" in source for source in sources(merged))
    assert "the exercise f has changed" in notes[0]


def test_text_that_both_have_changed_is_kept_twice():
    mine = book(with_source(TITLE, "# Mine"), SETUP, F, CHECK, DEMO)
    theirs = book(with_source(TITLE, "# Theirs"), SETUP, F, CHECK, DEMO)
    merged, notes = merging.merge(BASE, mine, theirs)
    assert sources(merged)[:2] == ["# Theirs", "# Mine"]
    assert len({c["id"] for c in merged["cells"]}) == 6
    assert len(notes) == 1


def test_what_was_edited_stays_even_where_the_course_has_dropped_it():
    answer = with_source(F, "def f():\n    return 1")
    mine = book(TITLE, SETUP, answer, CHECK, with_source(DEMO, "print(f(), 2)"))
    merged, _ = merging.merge(BASE, mine, book(TITLE, SETUP))
    assert sources(merged)[2:] == ["def f():\n    return 1", "print(f(), 2)"]


def test_what_the_learner_deleted_stays_away_unless_it_is_needed():
    merged, _ = merging.merge(BASE, book(TITLE, F), BASE)
    assert sources(merged) == [books.source_of(c) for c in (TITLE, SETUP, F, CHECK)]


def test_tags_are_those_of_the_new_version_and_ones_own():
    answer = with_source(F, "def f():\n    return 1")
    answer["metadata"]["tags"].append("mine")
    new = copy.deepcopy(F)
    new["metadata"]["tags"] = ["exercise", "raises-exception"]
    merged, _ = merging.merge(BASE, book(answer), book(new))
    tags = merged["cells"][0]["metadata"]["tags"]
    assert tags == ["exercise", "raises-exception", "mine"]


@pytest.mark.parametrize("keep_ids", [False, "all the same"])
def test_a_notebook_without_ids_is_merged_by_its_text(keep_ids):
    mine = book(TITLE, SETUP, with_source(F, "def f():\n    return 1"), CHECK)
    mine["cells"].append(cell("own", "mine = 1"))
    for one in mine["cells"]:
        del one["id"]
        if keep_ids:
            one["id"] = "t"
    merged, _ = merging.merge(BASE, mine, BASE)
    assert sources(merged) == [
        *("# A title", "import torch", "def f():\n    return 1", "check(f)"),
        "mine = 1",
    ]


# --- with git -------------------------------------------------------------------------


def git(folder, *arguments):
    user = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *user, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def save(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else books.as_text(content)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def clones(tmp_path, monkeypatch):
    """(the course's own repository, the learner's clone of it)"""
    ours, mine = tmp_path / "ours", tmp_path / "mine"
    ours.mkdir()
    git(ours, "init", "-q", "-b", "main")
    save(ours, "lessons/01_a.ipynb", BASE)
    save(ours, "lessons/02_b.ipynb", BASE)
    save(ours, "README.md", "one\n")
    git(ours, "add", "-A")
    git(ours, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", str(ours), str(mine))
    monkeypatch.setattr(updating, "ROOT", mine)
    monkeypatch.setattr(updating, "LESSONS", mine / "lessons")
    monkeypatch.setattr(backups, "BACKUPS", tmp_path / "backups")
    return ours, mine


def new_version(ours):
    theirs = book(TITLE, SETUP, F, CHECK, DEMO, cell("new", "f() + 1"))
    save(ours, "lessons/01_a.ipynb", theirs)
    save(ours, "README.md", "two\n")
    save(ours, "requirements.txt", "torch\n")
    git(ours, "add", "-A")
    git(ours, "commit", "-qm", "two")


def answered():
    answer = with_source(F, "def f():\n    return 1")
    return book(TITLE, SETUP, answer, CHECK, DEMO, cell("own", "mine = 1"))


def everything(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_what_was_written_in_another_language_is_kept_as_well(clones):
    ours, mine = clones
    name = "lessons/zh_CN/01_a.ipynb"
    save(ours, name, book(with_source(TITLE, "标题"), SETUP, F))
    git(ours, "add", "-A")
    git(ours, "commit", "-qm", "Chinese")
    git(mine, "pull", "-q")
    answer = with_source(F, "def f():\n    return 1")
    save(mine, name, book(with_source(TITLE, "标题"), SETUP, answer))
    save(ours, name, book(with_source(TITLE, "新标题"), SETUP, F))
    git(ours, "commit", "-qam", "two")
    assert updating.main() == 0
    merged = sources(json.loads((mine / name).read_text("utf-8")))
    assert {"新标题", "def f():\n    return 1"} <= set(merged)
    assert len(list(backups.BACKUPS.iterdir())) == 1


def test_an_update_brings_what_is_new_and_keeps_what_was_written(clones, capsys):
    ours, mine = clones
    save(mine, "lessons/01_a.ipynb", answered())
    save(mine, "lessons/02_b.ipynb", answered())
    was = (mine / "lessons/01_a.ipynb").read_bytes()
    new_version(ours)
    assert updating.main() == 0
    out = capsys.readouterr().out
    merged = json.loads((mine / "lessons/01_a.ipynb").read_text())
    assert "def f():\n    return 1" in sources(merged)
    assert {"mine = 1", "f() + 1"} <= set(sources(merged))
    assert json.loads((mine / "lessons/02_b.ipynb").read_text()) == answered()
    assert (mine / "README.md").read_text() == "two\n"
    (kept,) = backups.BACKUPS.iterdir()
    assert kept.read_bytes() == was
    assert kept.name in out
    assert "3 files are new or changed" in out
    assert "Packages have changed" in out
    # Again: nothing new, and the learner's state is as before.
    before = everything(mine)
    assert updating.main() == 0
    assert "newest version" in capsys.readouterr().out
    assert everything(mine) == before


def no_repository(ours, mine):
    (mine / ".git").rename(mine / "no-git")


def no_remote(ours, mine):
    git(mine, "remote", "remove", "origin")


def remote_gone(ours, mine):
    ours.rename(ours.with_name("gone"))


def no_branch(ours, mine):
    git(mine, "checkout", "-q", "--detach")


def own_branch(ours, mine):
    git(mine, "switch", "-q", "-c", "own")


def own_commits(ours, mine):
    save(mine, "own.txt", "mine")
    git(mine, "add", "own.txt")
    git(mine, "commit", "-qm", "own")


def other_change(ours, mine):
    save(mine, "README.md", "mine\n")


def own_file_in_the_way(ours, mine):
    save(mine, "requirements.txt", "mine")


def half_a_notebook(ours, mine):
    save(mine, "lessons/01_a.ipynb", "{")


def deleted_notebook(ours, mine):
    (mine / "lessons/01_a.ipynb").unlink()


@pytest.mark.parametrize(
    ("trouble", "phrase"),
    [
        (no_repository, "was not made by `git clone`"),
        (no_remote, "no remote"),
        (remote_gone, "could not be fetched"),
        (no_branch, "on no branch"),
        (own_branch, "follows none"),
        (own_commits, "commits of your own"),
        (other_change, "You have changed README.md"),
        (own_file_in_the_way, "requirements.txt, where you have a file"),
        (half_a_notebook, "is not a valid notebook"),
        (deleted_notebook, "You have changed lessons/01_a.ipynb"),
    ],
)
def test_what_cannot_be_updated_is_said_and_nothing_is_changed(
    trouble, phrase, clones, capsys
):
    ours, mine = clones
    save(mine, "lessons/01_a.ipynb", answered())
    new_version(ours)
    trouble(ours, mine)
    before = everything(mine)
    assert updating.main() == 1
    out = capsys.readouterr().out
    assert phrase in out
    assert out.endswith("Nothing was changed.\n")
    assert everything(mine) == before
    assert not backups.BACKUPS.exists()


def test_without_git_there_is_a_sentence(clones, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert updating.main() == 1
    assert "git is not installed" in capsys.readouterr().out


def test_a_change_elsewhere_that_is_not_in_the_way_stays(clones):
    ours, mine = clones
    save(mine, "lessons/02_b.ipynb", "{ my own")
    save(mine, "notes.txt", "mine")
    new_version(ours)
    assert updating.main() == 0
    assert (mine / "lessons/02_b.ipynb").read_text() == "{ my own"
    assert (mine / "notes.txt").read_text() == "mine"


def test_where_git_fails_at_the_end_the_answers_are_there_as_before(
    clones, monkeypatch, capsys
):
    ours, mine = clones
    save(mine, "lessons/01_a.ipynb", answered())
    new_version(ours)
    before, real = everything(mine), updating._git

    def fails(*arguments):
        if arguments[0] == "merge":
            return subprocess.CompletedProcess(arguments, 1, "", "error: no space")
        return real(*arguments)

    monkeypatch.setattr(updating, "_git", fails)
    assert updating.main() == 1
    assert "error: no space" in capsys.readouterr().out
    assert everything(mine) == before


def test_a_lesson_that_is_no_more_stays_with_the_learner(clones, capsys):
    ours, mine = clones
    save(mine, "lessons/01_a.ipynb", answered())
    git(ours, "rm", "-q", "lessons/01_a.ipynb")
    git(ours, "commit", "-qm", "gone")
    assert updating.main() == 0
    assert json.loads((mine / "lessons/01_a.ipynb").read_text()) == answered()
    assert "no longer part of the course" in capsys.readouterr().out
