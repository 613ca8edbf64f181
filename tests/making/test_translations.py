"""Lessons in another language: the catalogs are well formed and in step, and a notebook
differs from the English one in its prose alone.

(The Chinese references need not be executed: their code cells are, byte for byte, those
of the English ones, which nbval runs.)
"""

import itertools
import json
import re

import nbformat
import pytest

from course.making import build, catalogs
from course.paths import LANGUAGES, LESSONS, ROOT, SOLUTIONS, lesson_names
from course.saved import books, languages

pytest.importorskip("jupytext", reason="needs requirements-teach.txt")
pytest.importorskip("markdown_it", reason="needs requirements-teach.txt")

THERE = [
    (name, language)
    for name in lesson_names()
    for language in languages.languages_of(name)
]
each = pytest.mark.parametrize(("name", "language"), THERE)
LEAST = 0.8  # of a lesson's messages: below that it is no lesson in that language
HEAD = (SOLUTIONS / f"{lesson_names()[0]}.py").read_text("utf-8").split("# %%")[0]


def source(name):
    return build.read_source(SOLUTIONS / f"{name}.py")


# --- the catalogs ---------------------------------------------------------------------


@each
def test_a_catalog_holds_the_messages_of_its_source_in_order(name, language):
    catalog = catalogs.in_step(source(name), name, language)
    path = languages.catalog_path(name, language)
    advice = f"run `python start.py build --lang {language} {name[:2]}`"
    assert path.read_text("utf-8") == catalogs.as_text(catalog, language), advice
    assert [m.id for m in catalog if m.id] == catalogs.source_messages(source(name))


@each
def test_no_message_stands_in_a_catalog_twice(name, language):
    text = languages.catalog_path(name, language).read_text("utf-8")
    held = re.findall(r'^msgid ((?:".*"\n)+)', text, re.MULTILINE)
    joined = ["".join(re.findall(r'"(.*)"', x)) for x in held]
    assert len(joined) == len(set(joined))


@each
def test_a_translation_keeps_code_links_tags_numbers_and_columns(name, language):
    path = languages.catalog_path(name, language)
    assert catalogs.faults_of(path, language) == {}


@each
def test_nearly_all_of_a_lesson_is_translated(name, language, record_property):
    known = languages.translations(name, language)
    wanted = catalogs.source_messages(source(name))
    coverage = sum(message in known for message in wanted) / len(wanted)
    record_property("coverage", coverage)
    assert coverage >= LEAST, f"{coverage:.0%} of {name} is in {language}"


@pytest.mark.parametrize(
    ("message", "translation", "kind"),
    [
        ("Call `f(x)`.", "调用 `f(y)`。", "code"),
        ("See [this](https://a.org).", "见[此处](https://b.org)。", "links"),
        ("<details><summary>Hint 1</summary>No.", "<details>提示 1：不。", "tags"),
        ("<em>Not</em> one.", "<i>不是</i>一个。", "tags"),
        ("Try <code>f</code>.", "试试 <code>g</code>。", "code in HTML"),
        ("A **big** one.", "一个大的。", "emphasis"),
        ("**Predict:** which?", "**预测：**哪个？", "loose marks"),
        ("With $p_i$.", "用 $p_j$。", "formulas"),
        ("| a | b |", "| 甲 | 乙", "columns"),
        ("Exercise 04.1 · `f`", "练习 04.2 · `f`", "numbers"),
        ("difficulty ★☆☆", "难度 ★★☆", "stars"),
        ("One line.", "一\n行。", "line ends"),
    ],
)
def test_what_a_translation_has_lost_is_named(message, translation, kind):
    told = " ".join(catalogs.faults(message, translation))
    assert f"{kind}:" in told
    assert catalogs.faults(message, message) == []
    assert catalogs.faults("<em>Not</em> one.", "<b>不是</b>一个。") == []


# --- the notebooks --------------------------------------------------------------------


@each
def test_the_notebook_differs_from_the_english_one_in_its_prose_alone(name, language):
    ours, theirs = build.as_built(name), build.as_built(name, language)
    for cell, other in zip(ours.cells, theirs.cells, strict=True):
        if cell.cell_type == "markdown":
            headings = [re.findall(r"^#+ ", x.source, re.M) for x in (cell, other)]
            assert headings[0] == headings[1]
            cell.source = other.source
        assert cell == other


@each
def test_a_translated_notebook_is_what_its_source_and_catalog_build(name, language):
    path = LESSONS / language / f"{name}.ipynb"
    made = build.translated(source(name), SOLUTIONS / f"{name}.py", language)
    text = build.as_text(made)
    assert text == build.as_text(build.as_built(name, language)), "what `reset` makes"
    if build.has_work(path):
        pytest.skip("it has work in it, which is fine")
    advice = f"run `python start.py build --lang {language} {name[:2]}`"
    assert path.read_text("utf-8") == text, advice
    assert build.drift(path) == "", advice


def test_each_translated_notebook_has_a_catalog():
    found = {(p.stem, p.parent.name) for p in LESSONS.glob("*/[0-9][0-9]_*.ipynb")}
    assert {x for x in found if x[1] in LANGUAGES} == set(THERE)


@each
def test_each_card_tells_what_the_docstring_below_it_promises(name, language):
    known = languages.translations(name, language)
    made = build.as_built(name, language).cells
    for card, cell in itertools.pairwise(made):
        if "exercise" in cell.metadata.get("tags", ()):
            texts = [text for _, text in languages.documented(cell.source)]
            for message in (m for text in texts for m in languages.messages(text)):
                assert known[message] in card.source, message


@pytest.mark.parametrize("name", lesson_names())
def test_the_docstrings_of_an_exercise_are_those_that_the_learner_sees(name):
    for cell in source(name).cells:
        if "exercise" in cell.metadata.get("tags", ()):
            seen = languages.documented(books.stub_of(cell.source))
            assert seen
            assert languages.documented(cell.source) == seen


# --- the mechanism, on a lesson of its own --------------------------------------------

TINY = """# %% [markdown]
# # A title
#
# One sentence. Another
# one, with `code`.
#
# - first
# - second,
#   longer
#
# ```
# not me
# ```
#
# | a | b |
# |---|---|
# | c | d |
# <details><summary>Hint 1</summary>Think.</details>
# <details><summary>Hint 2</summary>Think
# again.</details>
#
# $$x = 1$$
#
# $$a
# = b$$

# %% tags=["setup"]
x = 1  # A title
"""
MESSAGES = [
    *("A title", "One sentence. Another one, with `code`.", "first"),
    *("second, longer", "| a | b |", "| c | d |"),
    "<details><summary>Hint 1</summary>Think.</details>",
    "<details><summary>Hint 2</summary>Think again.</details>",
]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A course with the lesson 00_tiny; gives a function that writes its source."""
    for folder in ("solutions", "lessons"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(build, "SOLUTIONS", tmp_path / "solutions")
    monkeypatch.setattr(build, "LESSONS", tmp_path / "lessons")
    monkeypatch.setattr(build, "lesson_names", lambda: ["00_tiny"])
    monkeypatch.setattr(languages, "CATALOGS", tmp_path / "translations")

    def write(text):
        path = tmp_path / "solutions" / "00_tiny.py"
        path.write_text(HEAD + text, encoding="utf-8")
        return tmp_path

    return write


def built(folder) -> list[str]:
    book = books.read(folder / "lessons" / "zh_CN" / "00_tiny.ipynb")
    return [books.source_of(cell) for cell in book["cells"]]


def fill(folder, translated):
    path = folder / "translations" / "zh_CN" / "00_tiny.po"
    catalog = languages.read_catalog(path, "zh_CN")
    for message, text in translated.items():
        catalog[message].string = text
    path.write_text(catalogs.as_text(catalog, "zh_CN"), encoding="utf-8")


@pytest.mark.parametrize("name", lesson_names())
def test_the_pieces_of_a_cell_are_the_cell(name):
    for cell in source(name).cells:
        if cell.cell_type == "markdown":
            pieces = languages.pieces(cell.source)
            assert "\n".join(piece.raw for piece in pieces) == cell.source


def test_messages_are_what_an_editor_changes_at_once(tiny, capsys):
    folder = tiny(TINY)
    build.main(["--lang", "zh_CN", "00"])
    path = folder / "translations" / "zh_CN" / "00_tiny.po"
    catalog = languages.read_catalog(path, "zh_CN")
    assert [m.id for m in catalog if m.id] == MESSAGES
    assert "0 of 8 messages are translated" in capsys.readouterr().out
    english = build.read_source(folder / "solutions" / "00_tiny.py")
    assert built(folder) == [cell.source for cell in english.cells]


EXERCISE = (
    TINY.partition("# ```")[0]
    + """
# <details><summary>Hint 1</summary>Think.</details>

# %% tags=["exercise"]
class Two:
    \"\"\"A pair.\"\"\"

    def swap(self):
        \"\"\"The other way
        round.

        Raises TypeError.
        \"\"\"
        ### BEGIN SOLUTION
        def inner():
            \"\"\"Ours alone.\"\"\"
        ### END SOLUTION
"""
)


def test_a_card_quotes_the_docstrings_of_its_exercise_before_the_hints(
    tiny, monkeypatch
):
    monkeypatch.setattr(build, "_require_tests", lambda name, notebook: None)
    folder = tiny(EXERCISE)
    build.main(["--lang", "zh_CN", "00"])
    card, stub = built(folder)
    assert ">" not in card.partition("<details>")[0], "nothing is translated yet"
    told = {"A pair.": "一对。", "The other way round.": "对调。"}
    fill(folder, told)
    build.main(["--lang", "zh_CN", "00"])
    card, same = built(folder)
    quote = "> 一对。\n>\n> `swap` · 对调。\n>\n> Raises TypeError.\n\n<details>"
    assert quote in card
    assert languages.IN_CODE["zh_CN"] in card
    assert same == stub
    path = folder / "translations" / "zh_CN" / "00_tiny.po"
    assert "Ours alone" not in path.read_text("utf-8")


def test_what_has_changed_since_stays_english_and_is_counted(tiny, capsys):
    folder = tiny(TINY)
    build.main(["--lang", "zh_CN", "00"])
    fill(folder, dict.fromkeys(MESSAGES, "译文"))
    build.main(["--lang", "zh_CN", "00"])
    assert "8 of 8 messages" in capsys.readouterr().out
    assert "One sentence" not in built(folder)[0]
    changed = TINY.replace("One sentence.", "A sentence.").replace("# - first\n", "")
    changed = changed.replace(
        "Another\n# one, with", "Another one,\n# with"
    )  # no change
    tiny(changed.replace("| c | d |", "| c | d |\n# | quite another | row |"))
    build.main(["--lang", "zh_CN", "00"])
    told = capsys.readouterr().out
    assert "6 of 8 messages" in told
    assert "1 changed since, 1 new; no longer needed: 1" in told
    cell, code = built(folder)
    assert "A sentence. Another one,\nwith `code`." in cell
    assert "# 译文\n" in cell
    assert "- 译文\n\n```\nnot me\n```" in cell
    assert "| quite another | row |" in cell
    assert cell.endswith("$$x = 1$$\n\n$$a\n= b$$")
    assert code == "x = 1  # A title"
    text = (folder / "translations" / "zh_CN" / "00_tiny.po").read_text("utf-8")
    assert '#| msgid "One sentence. Another one, with `code`."' in text
    assert '#~ msgid "first"' in text


def test_a_second_build_changes_nothing_and_work_stays(tiny, capsys):
    folder = tiny(TINY)
    build.main(["--lang", "zh_CN", "00"])
    fill(folder, {"A title": "标题"})
    build.main(["--lang", "zh_CN", "00"])
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    before = [path.read_bytes() for path in files]
    build.main(["--lang", "zh_CN"])
    assert [path.read_bytes() for path in files] == before
    assert "is in step" in capsys.readouterr().out
    path = folder / "lessons" / "zh_CN" / "00_tiny.ipynb"
    book = json.loads(path.read_text("utf-8"))
    book["cells"][1]["source"] = ["mine"]
    path.write_text(json.dumps(book), encoding="utf-8")
    fill(folder, {"first": "第一"})
    build.main(["--lang", "zh_CN"])
    assert "it stays as it is" in capsys.readouterr().out
    assert nbformat.read(path, 4).cells[1].source == "mine"


def test_a_build_of_a_lesson_brings_its_translations_in_step(tiny, monkeypatch):
    monkeypatch.setattr(build, "executed", lambda notebook: notebook)
    folder = tiny(TINY)
    build.main(["--lang", "zh_CN", "00"])
    fill(folder, {"A title": "标题", "first": "第一"})
    tiny(TINY.replace("A title", "The title"))
    build.main(["00"])
    assert "# The title" in built(folder)[0]
    assert "- 第一" in built(folder)[0]
    book = folder / "lessons" / "zh_CN" / "00_tiny.ipynb"
    assert build.drift(book) == ""
    path = folder / "translations" / "zh_CN" / "00_tiny.po"
    assert languages.read_catalog(path, "zh_CN")["The title"].fuzzy


def test_a_lesson_is_not_begun_in_a_language_unless_it_is_asked_for(tiny):
    folder = tiny(TINY)
    build.main(["--lang", "zh_CN"])
    assert not (folder / "translations").exists()


def test_relative_links_lead_to_the_same_file_from_one_folder_deeper(monkeypatch):
    monkeypatch.setattr(
        languages, "languages_of", lambda x: ["zh_CN"] if x == "01_a" else []
    )
    text = (
        "[a](01_a.ipynb#x) [b](02_b.ipynb) [c](../README.md) [d](https://x.org) "
        '[e](#here) `[f](g.md)` ![h](i.png) <img src="j.png">'
    )
    assert languages.deeper(text, "zh_CN") == (
        "[a](01_a.ipynb#x) [b](../02_b.ipynb) [c](../../README.md) [d](https://x.org) "
        '[e](#here) `[f](g.md)` ![h](../i.png) <img src="../j.png">'
    )


# --- the front page -------------------------------------------------------------------


@pytest.mark.skipif(not THERE, reason="no lesson is translated")
def test_the_chinese_front_page_lists_the_lessons_and_its_links_lead_somewhere():
    text = (ROOT / "README.zh-CN.md").read_text("utf-8")
    links = re.findall(r"\]\(([^)\s#]+)", text)
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
    english = (ROOT / "README.md").read_text("utf-8")
    assert "(README.zh-CN.md)" in english
    for name, _ in THERE:
        row = re.search(rf"^\|.*\(lessons/zh_CN/{name}\.ipynb\).*\|$", text, re.M)
        same = re.search(rf"^\|.*\(lessons/{name}\.ipynb\).*\|$", english, re.M)
        assert row, name
        assert row[0].split("|")[3:] == same[0].split("|")[3:], "names and minutes"
