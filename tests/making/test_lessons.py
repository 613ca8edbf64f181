"""What every lesson must have, and that its notebooks are what its source builds."""

import ast
import os
import re
import shutil

import nbformat
import pytest

from course import paths
from course.checks import notebook
from course.learner import backups
from course.making import build
from course.paths import LESSONS, ROOT, SOLUTIONS, lesson_names, shown
from course.saved import books, note

NAMES = lesson_names()
every_lesson = pytest.mark.parametrize("name", NAMES)
NOTEBOOKS = [folder / f"{n}.ipynb" for n in NAMES for folder in (LESSONS, SOLUTIONS)]
every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}"
)


# A learner's work in lessons/ is fine. Where nobody learns, it is a mistake.
WORK_IS_FINE = os.environ.get("CI") != "true"


def has_work(path) -> bool:
    return path.parent == LESSONS and WORK_IS_FINE and build.has_work(path)


def book(path):
    """A notebook as it is built, whatever a learner has done with it by now."""
    return build.as_built(path.stem) if has_work(path) else notebook.read(path)


def exercise_cells(cells):
    return [c for c in cells if "exercise" in notebook.tags(c)]


def exercises(name) -> list[str]:
    cells = exercise_cells(notebook.read(SOLUTIONS / f"{name}.ipynb").cells)
    return [notebook.defined_names(cell.source)[0] for cell in cells]


# --- in step with the source ----------------------------------------------------------


@every_notebook
def test_the_notebook_is_what_its_source_builds(path):
    """Work in a lesson is fine: `python start.py check` is what checks it."""
    if has_work(path):
        pytest.skip(f"{shown(path)} has work in it, which is fine")
    advice = f"run `python start.py build {path.stem[:2]}`"
    if build.has_work(path):
        advice = advice[:-1] + " --force`, which keeps a copy of what is there"
    assert build.drift(path) == "", advice


def test_a_change_of_any_one_character_is_noticed(tmp_path, monkeypatch):
    name = NAMES[0]
    for file in (f"{name}.py", f"{name}.ipynb"):
        shutil.copy(SOLUTIONS / file, tmp_path / file)
    monkeypatch.setattr(build, "SOLUTIONS", tmp_path)
    path = tmp_path / f"{name}.ipynb"
    whole = path.read_text(encoding="utf-8")
    assert build.drift(path) == ""
    for place in range(7, len(whole), len(whole) // 40):
        other = "x" if whole[place] != "x" else "y"
        path.write_text(whole[:place] + other + whole[place + 1 :], encoding="utf-8")
        assert build.drift(path), f"a changed character at {place} was not noticed"
    path.write_text(whole, encoding="utf-8")
    source = tmp_path / f"{name}.py"
    source.write_text(source.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert "has changed since" in build.drift(path)


@every_lesson
def test_building_the_learners_notebook_again_gives_the_same_bytes(name):
    pytest.importorskip("jupytext", reason="needs requirements-teach.txt")
    source = SOLUTIONS / f"{name}.py"
    for folder, make in ((LESSONS, build.lesson), (SOLUTIONS, lambda x: x)):
        made = make(build.read_source(source))
        saved = book(folder / f"{name}.ipynb")
        for ours, theirs in zip(made.cells, saved.cells, strict=True):
            assert (ours.id, ours.source) == (theirs.id, theirs.source)
            assert ours.metadata == theirs.metadata
        if folder == LESSONS:
            text = build.as_text(build.stamped(made, source))
            assert text == build.as_text(saved)
            assert text == build.as_text(build.as_built(name))


@every_notebook
def test_the_first_cell_says_how_to_get_the_course_for_this_notebook_alone(path):
    first = book(path).cells[0].source
    assert first.count('<details class="alone">') == 1
    assert first.endswith(f"<code>%{paths.PIP}</code></details>")
    assert re.fullmatch(r"pip install token-by-token@git\+https://\S+", paths.PIP)
    text = (SOLUTIONS / f"{path.stem}.py").read_text(encoding="utf-8")
    prose = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    assert note.without(first) in prose, "the rest is what the source has"


TINY = (
    '# %% [markdown]\n# A title\n\n# %% tags=["exercise"]\ndef f():\n'
    "    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\n"
    "# %%\nimport matplotlib.pyplot as plt\n\nplt.plot([1, 2])\nplt.show()\n\n"
    "# %%\nimport sys\n\nprint(f())\nprint('err', file=sys.stderr)\nprint(2)\n"
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder of a course with one lesson, 00_tiny, which is not built yet."""
    pytest.importorskip("jupytext", reason="needs requirements-teach.txt")
    head = (SOLUTIONS / f"{NAMES[0]}.py").read_text(encoding="utf-8").split("# %%")[0]
    for folder in ("solutions", "lessons"):
        (tmp_path / folder).mkdir()
    (tmp_path / "solutions" / "00_tiny.py").write_text(head + TINY, encoding="utf-8")
    (tmp_path / "test_00_tiny.py").write_text('f = exercise("f")\n')
    monkeypatch.setattr(build, "SOLUTIONS", tmp_path / "solutions")
    monkeypatch.setattr(build, "LESSONS", tmp_path / "lessons")
    monkeypatch.setattr(build, "lesson_names", lambda: ["00_tiny"])
    monkeypatch.setattr(backups, "BACKUPS", tmp_path / "backups")
    monkeypatch.setattr(build, "tests_of", lambda name: tmp_path / f"test_{name}.py")
    return tmp_path


def test_a_build_executes_deterministically(tiny):
    made = []
    for _ in range(2):
        build.build("00_tiny", force=True)
        files = sorted(tiny.glob("*/*.ipynb"))
        made.append([f.read_bytes() for f in files])
    assert made[0] == made[1]
    assert [f.parent.name for f in files] == ["lessons", "solutions"]
    learners = exercise_cells(notebook.read(files[0]).cells)[0].source
    assert "SOLUTION" not in learners
    assert books.STUB in learners
    assert "return 1" not in learners
    assert "return 1" in files[1].read_text(encoding="utf-8")
    assert not list(tiny.glob("*/*.part"))


def test_run_all_reaches_what_does_not_need_an_unsolved_exercise(tiny):
    client = pytest.importorskip("nbclient")
    source = tiny / "solutions" / "00_tiny.py"
    more = '\n# %% tags=["check"]\ncheck(f)\n\n# %%\nprint("reached")\n'
    source.write_text(source.read_text(encoding="utf-8") + more, encoding="utf-8")
    made = build.lesson(build.read_source(source))
    client.NotebookClient(made, kernel_name="python3").execute()
    kinds = [[o.output_type for o in c.outputs] for c in made.cells if "outputs" in c]
    assert kinds[0] == []
    assert kinds[-3:] == [["error"], ["error"], ["stream"]]
    for cell in build.read_source(source).cells:
        assert books.GO_ON not in notebook.tags(cell), "the reference must stop"
    first = made.cells[1]
    made.cells[:0] = [nbformat.v4.new_code_cell("import no_such_thing")]
    assert books.GO_ON in notebook.tags(first)
    with pytest.raises(client.exceptions.CellExecutionError, match="no_such_thing"):
        client.NotebookClient(made, kernel_name="python3").execute()


# --- nothing that somebody has written is lost ----------------------------------------


def solve(path):
    """As a learner does: an answer and an output. The text of the file."""
    mine = notebook.read(path)
    mine.cells[1].source = "def f():\n    return 'my own work'"
    mine.cells[1].outputs = [nbformat.v4.new_output("stream", text="mine")]
    nbformat.write(mine, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def quick(tiny, monkeypatch):
    """`tiny`, built, without the seconds that a kernel takes."""
    monkeypatch.setattr(build, "executed", lambda notebook: notebook)
    build.main([])
    return tiny


def test_a_build_leaves_work_alone_also_where_its_source_is_newer(quick, capsys):
    path, source = quick / "lessons" / "00_tiny.ipynb", quick / "solutions/00_tiny.py"
    mine = solve(path)
    build.main([])
    build.main(["00"])
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\nf()\n")
    capsys.readouterr()
    build.main([])  # after `git pull`
    said = capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == mine
    assert "00_tiny.ipynb was changed after it was built: it stays as it is" in said
    assert "build --force 00`" in said
    assert build.drift(quick / "solutions" / "00_tiny.ipynb") == ""


def test_a_forced_build_keeps_copies_of_work_and_names_them(quick, capsys):
    path = quick / "lessons" / "00_tiny.ipynb"
    built = path.read_text(encoding="utf-8")
    build.main(["--force"])
    assert not backups.BACKUPS.exists(), "nothing was lost, nothing is kept"
    for n in (1, 2):
        mine = solve(path)
        capsys.readouterr()
        build.main(["--force", "00"])
        assert path.read_text(encoding="utf-8") == built
        assert len(list(backups.BACKUPS.iterdir())) == n
        said = capsys.readouterr().out
        (name,) = re.findall(r"^kept 00_tiny.ipynb as (\S+)$", said, re.MULTILINE)
        kept = backups.BACKUPS / name
        assert kept.read_text(encoding="utf-8") == mine
    path.write_text("cut off", encoding="utf-8")
    build.main([])
    assert path.read_text(encoding="utf-8") == "cut off"


def test_prose_is_built_without_running_code_and_code_is_not(quick, monkeypatch):
    source, path = quick / "solutions/00_tiny.py", quick / "solutions/00_tiny.ipynb"
    ran = notebook.read(path)
    ran.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen once")]
    build.write(build.stamped(ran, source), path)
    text = source.read_text(encoding="utf-8")

    def run(_):
        raise AssertionError("code was run")

    monkeypatch.setattr(build, "executed", run)
    source.write_text(text.replace("A title", "# 00 · A title"), encoding="utf-8")
    build.main(["--prose"])
    made = notebook.read(path)
    assert made.cells[0].source == note.below("# 00 · A title")
    assert made.cells[2].outputs[0].text == "seen once"
    assert build.drift(path) == build.drift(quick / "lessons/00_tiny.ipynb") == ""
    before = path.read_bytes()
    source.write_text(text + "\n# %%\nf()\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has other code than its source"):
        build.main(["--prose"])
    assert path.read_bytes() == before


def test_work_that_is_saved_during_a_build_stays(quick, monkeypatch):
    path, mine = quick / "lessons" / "00_tiny.ipynb", []
    source = quick / "solutions" / "00_tiny.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\nf()\n")

    def slow(notebook):
        mine.append(solve(path))
        return notebook

    monkeypatch.setattr(build, "executed", slow)
    build.main([])
    assert [path.read_text(encoding="utf-8")] == mine


@pytest.mark.parametrize("where", ["executed", "replace"])
def test_a_build_that_fails_halfway_leaves_both_notebooks(quick, monkeypatch, where):
    def all_files():
        return {p: p.read_bytes() for p in quick.rglob("*.*")}

    source = quick / "solutions" / "00_tiny.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\nf()\n")
    before = all_files()
    if where == "executed":
        monkeypatch.setattr(build, "executed", lambda _: 1 / 0)
    else:
        replace = build.os.replace

        def full(part, target):
            if target.parent.name == "solutions":
                raise OSError("the disk is full")
            replace(part, target)

        monkeypatch.setattr(build.os, "replace", full)
    with pytest.raises((ZeroDivisionError, OSError)):
        build.build("00_tiny")
    assert all_files() == before


def test_a_failed_write_leaves_the_old_notebook(tmp_path, monkeypatch):
    target = tmp_path / "x.ipynb"
    target.write_text("old", encoding="utf-8")
    monkeypatch.setattr(build, "as_text", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.write(nbformat.v4.new_notebook(), target)
    assert target.read_text(encoding="utf-8") == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["x.ipynb"]


def test_an_exercise_without_checks_ends_in_a_sentence_that_names_the_file(quick):
    (quick / "test_00_tiny.py").write_text('g = exercise("g")\n')
    with pytest.raises(SystemExit, match=r"exercise f, .*test_00_tiny.py has no check"):
        build.main([])
    (quick / "test_00_tiny.py").unlink()
    with pytest.raises(SystemExit, match="test_00_tiny.py"):
        build.main([])


@every_lesson
def test_work_in_a_lesson_fails_none_of_these_tests(name, tmp_path, monkeypatch):
    path = tmp_path / f"{name}.ipynb"
    mine = build.as_built(name)
    for cell in exercise_cells(mine.cells):
        cell.source = "%%time\n" + cell.source.replace(books.STUB, "return 1")
        cell.outputs = [nbformat.v4.new_output("stream", text="/tmp/x")]
    nbformat.write(mine, path)
    monkeypatch.setattr("test_lessons.LESSONS", tmp_path)
    monkeypatch.setattr("test_lessons.WORK_IS_FINE", True)
    with pytest.raises(pytest.skip.Exception, match="work in it, which is fine"):
        test_the_notebook_is_what_its_source_builds(path)
    test_each_stub_documents_itself_and_says_that_it_is_one(name)
    test_outputs_show_no_errors_no_warnings_and_no_paths(path)
    test_tagged_cells_hold_plain_python_without_the_model(name)
    monkeypatch.setattr("test_lessons.WORK_IS_FINE", False)
    with pytest.raises(AssertionError, match="build .* --force`, which keeps a copy"):
        test_the_notebook_is_what_its_source_builds(path)


# --- what a lesson consists of --------------------------------------------------------


@every_lesson
def test_each_exercise_has_a_card_hints_a_check_and_tests(name):
    cells = notebook.read(SOLUTIONS / f"{name}.ipynb").cells
    tests = paths.tests_of(name).read_text(encoding="utf-8")
    number = 0
    for n, cell in enumerate(cells):
        if "exercise" not in notebook.tags(cell):
            continue
        number += 1
        exercise = notebook.defined_names(cell.source)[0]
        card = cells[n - 1].source
        head = f"### Exercise {name[:2]}.{number} · `{exercise}`"
        assert card.splitlines()[0] == head, f"the card above {exercise}"
        facts = re.search(
            r"^difficulty [★☆]{3} · importance [★☆]{3} · \d+ min · "
            r"our answer: \d+ lines?$",
            card,
            re.MULTILINE,
        )
        assert facts, f"difficulty, importance, minutes and lines of {exercise}"
        assert "By hand" in card, f"the example worked by hand of {exercise}"
        assert card.count("<details><summary>Hint") >= 1, f"a hint for {exercise}"
        assert card.count("<details>") == card.count("</details>")
        check = cells[n + 1]
        assert notebook.tags(check) >= {"check"}, f"the check cell of {exercise}"
        assert f"check({exercise})" in check.source
        assert f'\n{exercise} = exercise("{exercise}")\n' in tests, (
            f'{paths.tests_of(name)} has no line `{exercise} = exercise("{exercise}")`'
        )
    assert number >= 5
    assert number == len(re.findall(r" = exercise\(", tests)), "tests without a card"


@every_lesson
def test_readme_and_the_lesson_name_the_exercises_that_it_has(name):
    rows = (ROOT / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\|.*\(lessons/{name}\.ipynb\).*\|$", rows, re.MULTILINE)
    assert row, f"README's table has no row for {name}"
    you_write = row[0].split("|")[3]
    assert re.findall(r"`(\w+)`", you_write) == exercises(name), "README's table"
    opening = notebook.read(SOLUTIONS / f"{name}.ipynb").cells[0].source
    told = re.search(r"You write: (.*?)About\s+(\d+) minutes", opening, re.DOTALL)
    assert told, "the first cell says what you write, and how long it takes"
    named = set(re.findall(r"`(\w+)`", told[1])) - {"generate"}
    assert named == set(exercises(name)), "the lesson's `You write`"
    assert told[2] == row[0].split("|")[4].strip(), "README's minutes"


@every_lesson
def test_each_stub_documents_itself_and_says_that_it_is_one(name):
    for cell in exercise_cells(book(LESSONS / f"{name}.ipynb").cells):
        assert books.STUB in cell.source
        assert "SOLUTION" not in cell.source
        node = next(
            n
            for n in ast.parse(cell.source).body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        )
        assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{node.name}: the return type"
            for argument in node.args.args:
                assert argument.annotation is not None or argument.arg in (
                    "model",
                    "tokenizer",
                    "client",
                ), f"{node.name}: the type of {argument.arg}"


@every_lesson
def test_the_lesson_has_its_parts_in_order(name):
    text = "\n".join(
        c.source
        for c in book(LESSONS / f"{name}.ipynb").cells
        if c.cell_type == "markdown"
    )
    assert text.startswith(f"# {name[:2]} · ")
    opening = text[:1500]
    assert "**After this lesson" in opening
    assert re.search(r"\d+ minutes", opening)
    places = [text.find(f"\n## {t}") for t in ("Questions", "In the wild", "To read")]
    assert places == sorted(places), "questions, in the wild, to read"
    assert min(places) > 0, "questions, in the wild, to read"
    assert "<summary>Answers</summary>" in text
    assert "**Predict" in text


@every_lesson
def test_cells_fit_a_laptop_screen(name):
    for cell in notebook.read(SOLUTIONS / f"{name}.ipynb").cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            longest = max(lines, key=len)
            assert len(longest) <= 88, longest
            answer = "BEGIN SOLUTION" in cell.source
            assert answer or len(lines) <= 26, f"{len(lines)} lines: {lines[0]}"


@every_notebook
def test_outputs_show_no_errors_no_warnings_and_no_paths(path):
    for cell in book(path).cells:
        for output in cell.get("outputs", []):
            assert path.parent == SOLUTIONS, "a learner's notebook has no outputs"
            text = str(output)
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.get("text")
            assert "had been replaced" not in text, cell.source
            for trace in (str(ROOT), "/home/", "site-packages", "127.0.0.1", "/tmp/"):
                assert trace not in text, f"{trace} in the output of {cell.source}"


@every_lesson
def test_tagged_cells_hold_plain_python_without_the_model(name):
    for cell in book(LESSONS / f"{name}.ipynb").cells:
        if notebook.tags(cell) & {"setup", "exercise", "check"}:
            ast.parse(cell.source)  # magics are a SyntaxError
            assert "load()" not in cell.source


@every_lesson
def test_each_figure_ends_in_show(name):
    for cell in book(LESSONS / f"{name}.ipynb").cells:
        if cell.cell_type == "code" and "plt.subplots" in cell.source:
            assert cell.source.rstrip().endswith("plt.show()")


@every_lesson
def test_links_lead_somewhere(name):
    source = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    numbers = {n[:2] for n in NAMES} | {f"{n:02d}" for n in range(1, 19)}
    for lesson in re.findall(r"\b[Ll]essons? (\d\d)\b", source):
        assert lesson in numbers
    for text, link in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", source):
        if link.startswith("http"):
            assert link.startswith("https://"), link
            if "arxiv.org" in link:
                assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link)
                assert link.rsplit("/", 1)[1] in text, f"{text} links to {link}"
        elif not link.startswith("#"):
            assert (LESSONS / link).exists(), f"{name} links to {link}"


@every_lesson
def test_every_assert_of_a_check_speaks_to_the_learner(name):
    tree = ast.parse(paths.tests_of(name).read_text(encoding="utf-8"))
    silent = [
        n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert) and not n.msg
    ]
    assert not silent, (
        f"{paths.tests_of(name).name}: asserts without a message at {silent}"
    )


@every_lesson
def test_each_exercise_asks_for_at_least_three_kinds_of_check(name):
    tree = ast.parse(paths.tests_of(name).read_text(encoding="utf-8"))
    tests = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    for exercise in exercises(name):
        mine = [
            t
            for t in tests
            if t.name.startswith("test_")
            and exercise in [argument.arg for argument in t.args.args]
        ]
        cases = sum(
            len(d.args[1].elts)
            for t in mine
            for d in t.decorator_list
            if isinstance(d, ast.Call)
            and "parametrize" in ast.unparse(d.func)
            and isinstance(d.args[1], ast.List)
        )
        assert len(mine) + cases >= 3, f"{exercise} has {len(mine)} tests"
