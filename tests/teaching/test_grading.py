"""Whose a file is, who that is in the class, what is counted, and what is equal."""

import datetime

import made_up_class
import pytest

from course.checks.explain import DONE, WRONG
from course.saved import books
from course.teaching import grade, grade_process
from course.teaching.grading import equals, mistakes, pages, roster, standings, table
from course.teaching.grading.owners import owners
from course.teaching.submissions import Handed

LESSON = "04_top_k"

# path -> (name, the platform's number, what a feedback file begins with)
PATHS = {
    # Moodle: folders, as before 4.1 and since; files; hidden; teams
    "Ada Lovelace_123_assignsubmission_file_/04_top_k.ipynb": (
        *("Ada Lovelace", "123"),
        "Ada Lovelace_123_assignsubmission_file_",
    ),
    "Bo Li_124_assignsubmission_file/a/04_top_k.ipynb": (
        *("Bo Li", "124"),
        "Bo Li_124_assignsubmission_file_",
    ),
    "Cy_125_assignsubmission_file_04_top_k.ipynb": (
        *("Cy", "125"),
        "Cy_125_assignsubmission_file_",
    ),
    "Participant_126_assignsubmission_file_/w.zip/x.ipynb": (
        *("Participant", "126"),
        "Participant_126_assignsubmission_file_",
    ),
    "Default group_assignsubmission_file/04_top_k.ipynb": (
        *("Default group", ""),
        "Default group_assignsubmission_file_",
    ),
    # Canvas: on time, late, hidden, in another script
    "lovelaceada_12345_67890_04_top_k.ipynb": (
        *("lovelaceada", "12345"),
        "lovelaceada_12345_67890_",
    ),
    "turingalan_LATE_12346_67891_04_top_k-1.ipynb": (
        *("turingalan", "12346"),
        "turingalan_LATE_12346_67891_",
    ),
    "anon_Xy1Zw_67892_04_top_k.ipynb": (
        *("anon_Xy1Zw", "anon_Xy1Zw"),
        "anon_Xy1Zw_67892_",
    ),
    "LATE_anon_Ab1Cd_67893_work.zip/04_top_k.ipynb": (
        *("anon_Ab1Cd", "anon_Ab1Cd"),
        "LATE_anon_Ab1Cd_67893_",
    ),
    "王小明_12347_67894_04_top_k.ipynb": ("王小明", "12347", "王小明_12347_67894_"),
    # By hand
    "alice/04_top_k.ipynb": ("alice", "", ""),
    "bob_04_top_k.ipynb.txt": ("bob", "", ""),
    "04_top_k/carol.zip/homework/04_top_k.ipynb": ("carol", "", ""),
    "04-Top-K (1) dora.ipynb": ("dora", "", ""),
    "erin_04_10_many_samples.ipynb": ("erin_04", "", ""),
    "submitted/finn/04_top_k/04_top_k.ipynb": ("finn", "", ""),
    "04_top_k.ipynb": ("04_top_k.ipynb", "", ""),
}


def test_the_names_of_platforms_say_whose_a_file_is():
    found = owners(list(PATHS))
    assert {p: (o.name, o.number, o.prefix) for p, o in found.items()} == PATHS
    copies = {p: o.copy for p, o in found.items() if o.copy}
    assert copies == {"turingalan_LATE_12346_67891_04_top_k-1.ipynb": 1}


def test_a_folder_around_all_is_nobodys_name_and_a_students_own_is():
    both = owners(["class/alice/04_top_k.ipynb", "class/bob/04_top_k.ipynb"])
    assert [x.name for x in both.values()] == ["alice", "bob"]
    one = owners(["alice/04_top_k.ipynb", "alice/06_samplers.ipynb"])
    assert {x.key for x in one.values()} == {("alice", "")}


# --- the list of the class ------------------------------------------------------------

MOODLE = """\
Identifier,Full name,Email address,Grade
Participant 123,Ada Lovelace,ada@x.org,
Participant 124,Alan Turing,alan@x.org,
"""
CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section
    Points Possible,,,,
"Lovelace, Ada",12345,s1,al12,A
"Turing, Alan",12346,s2,at12,A
"""
OWN = "First name;Last name;Matriculation number\nAda;Lovelace;0815\nAlan;Turing;4711\n"
NAMES = "Ada Lovelace\nAlan Turing\n"
LISTS = {"moodle": MOODLE, "canvas": CANVAS, "own": OWN, "names": NAMES}


def the_class(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "names.csv"
    path.write_bytes(text.encode(encoding))
    return roster.Roster(roster.read(path))


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    "path",
    [
        "Ada Lovelace_999_assignsubmission_file_/04_top_k.ipynb",
        "lovelaceada_777_67890_04_top_k.ipynb",
        "Lovelace Ada/04_top_k.ipynb",
        "ada_lovelace_04_top_k.ipynb",
    ],
)
def test_a_student_is_found_in_the_list_by_name(tmp_path, kind, path):
    people = the_class(tmp_path, LISTS[kind])
    assert len(people.people) == 2
    person = people.person_of(owners([path])[path])
    assert person is people.people[0]


@pytest.mark.parametrize(
    ("kind", "path", "number"),
    [
        (
            "moodle",
            "Participant_124_assignsubmission_file_/x.ipynb",
            "Participant 124",
        ),
        ("moodle", "alan/04_top_k.ipynb", "Participant 124"),  # before the @
        ("canvas", "other_12346_67890_04_top_k.ipynb", "12346"),
        ("canvas", "at12_04_top_k.ipynb", "12346"),
        ("own", "4711/04_top_k.ipynb", "4711"),
    ],
)
def test_a_student_is_found_in_the_list_by_number(tmp_path, kind, path, number):
    person = the_class(tmp_path, LISTS[kind]).person_of(owners([path])[path])
    assert "Turing" in person.name
    assert person.number == number


def test_where_names_are_hidden_numbers_stand_for_them(tmp_path):
    people = the_class(
        tmp_path, "Identifier,Status\nParticipant 7,x\nParticipant 8,x\n"
    )
    path = "Participant_8_assignsubmission_file_/x.ipynb"
    person = people.person_of(owners([path])[path])
    assert (person.name, person.number) == ("Participant 8", "Participant 8")


def test_two_of_one_name_are_told_apart_by_number_or_not_at_all(tmp_path):
    text = "name,id\nKim Lee,1001\nKim Lee,1002\n"
    people = the_class(tmp_path, text)
    paths = [f"Kim Lee_{n}_assignsubmission_file/x.ipynb" for n in (1002, 5)]
    found = [people.person_of(x) for x in owners(paths).values()]
    assert found[0] is people.people[1]
    assert found[1] is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_list_is_read_as_a_spreadsheet_saves_it(tmp_path, encoding):
    people = the_class(tmp_path, "Name;ID\r\nGül Öztürk;7\r\n", encoding)
    assert [(x.name, x.number) for x in people.people] == [("Gül Öztürk", "7")]


def test_what_is_no_list_is_refused_with_a_sentence(tmp_path):
    for text, phrase in (("a,b\n1,2\n", "no column for names"), ("", "is empty")):
        with pytest.raises(SystemExit, match=phrase):
            the_class(tmp_path, text)
    with pytest.raises(SystemExit, match="cannot be read"):
        roster.read(tmp_path / "none.csv")


# --- which notebook counts ------------------------------------------------------------


def row(path, points, state=DONE, lesson=LESSON):
    values = (path, lesson, "top_k_filter", state, str(points), "2", "", "mark")
    return dict(zip(table.COLUMNS, values, strict=True))


def at(path, minute=0):
    when = datetime.datetime(2026, 1, 1, 12, minute).timestamp()
    return Handed(path, 1, bytes, "", when)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # Canvas: the number of the file, whatever its time
        (at("a_12_900_04_top_k-2.ipynb", 9), at("a_12_901_04_top_k.ipynb", 1)),
        (at("a/04_top_k (2).ipynb", 1), at("a/04_top_k.ipynb", 2)),  # its time
        (at("a/04_top_k.ipynb"), at("a/04_top_k (1).ipynb")),  # its number
        (at("a/04_top_k-2.ipynb"), at("a/04_top_k-10.ipynb")),
    ],
)
def test_the_later_notebook_is_the_last(first, second):
    handed = [second, first]
    whose = owners([x.name for x in handed])
    rows = [row(first.name, 2), row(second.name, 0)]
    for which, path in (("last", second.name), ("best", first.name)):
        (student,) = standings.students(handed, whose, rows, None, which)
        assert standings.counting(student, LESSON) == path
    rows = [row(first.name, 1), row(second.name, 1)]  # as good: then the last
    (student,) = standings.students(handed, whose, rows, None, "best")
    assert standings.counting(student, LESSON) == second.name


def test_two_students_of_one_name_are_not_taken_for_one_unsaid():
    paths = [f"Kim Lee_{n}_assignsubmission_file/04_top_k.ipynb" for n in (1001, 1002)]
    people = roster.Roster([roster.Person("Kim Lee", "", {"x"}, {"kimlee"})])
    rows, whose = [row(x, 2) for x in paths], owners(paths)
    found = standings.students([at(x) for x in paths], whose, rows, people, "last")
    (total,) = standings.totals(found, rows, True)[1]
    assert "several students of this name? ['1001', '1002']" in total["note"]


def test_points_that_a_teacher_has_set_by_hand_are_summed():
    handed = [at("a/04_top_k.ipynb")]
    rows = [row("a/04_top_k.ipynb", 0.5), row("a/04_top_k.ipynb", "1,0")]
    whose = owners([x.name for x in handed])
    found = standings.students(handed, whose, rows, None, "last")
    (total,) = standings.totals(found, rows, False)[1]
    assert (total["student"], total[LESSON], total["of"]) == ("a", "1.5", "8")
    rows[0]["points"] = "one"
    with pytest.raises(SystemExit, match="the points of a/04_top_k.ipynb for"):
        standings.totals(found, rows, False)


def test_a_lesson_of_which_there_is_nothing_is_left_empty_and_said_to_be_missing():
    other = "06_samplers"
    handed = [at("a/04_top_k.ipynb"), at("a/06_samplers.ipynb"), at("b/04_top_k.ipynb")]
    handed += [Handed("b/06.rar", why_not="it is no archive")]
    rows = [row(x.name, 2) for x in handed[:3]]
    rows[1]["lesson"] = other
    whose = owners([x.name for x in handed])
    people = roster.Roster([roster.Person(x, "", {x}, {x}) for x in "abc"])
    found = standings.students(handed, whose, rows, people, "last")
    columns, totals = standings.totals(found, rows, True)
    assert columns[2:4] == [LESSON, other]
    cells = [(x["student"], x[LESSON], x[other], x["points"]) for x in totals]
    assert cells == [("a", "2", "2", "4"), ("b", "2", "", "2"), ("c", "", "", "0")]
    missing = standings.missing(found, rows)
    assert [(x["student"], x["lesson"], x["why"]) for x in missing] == [
        ("b", other, "b/06.rar: it is no archive"),
        ("c", LESSON, "nothing was handed in"),
        ("c", other, "nothing was handed in"),
    ]


def test_an_empty_folder_has_an_empty_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    assert grade.main(["none", "--report", "report"]) == 0
    made = {x.name for x in (tmp_path / "report").iterdir()}
    assert made == {
        *("totals.csv", "missing.csv", "not_graded.csv", "mistakes.csv", "mistakes"),
        *("equal.csv", "equal.html", "feedback", "feedback.zip"),
    }


def test_a_report_beside_the_submissions_hides_none_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "essay.pdf").write_bytes(b"%PDF")
    assert grade.main(["in", "--report", "."]) == 0
    text = (tmp_path / "not_graded.csv").read_text(encoding="utf-8-sig")
    assert "essay.pdf" in text
    with pytest.raises(SystemExit):
        grade.main(["in", "--report", "in"])


def test_what_the_command_writes_is_no_submission(tmp_path, monkeypatch):
    """Also where it is put into the folder that is graded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.csv").write_text("name\nada\n", encoding="utf-8")
    options = ["--roster", "names.csv", "--report", "report", "--totals", "t.csv"]
    for _ in range(2):
        assert grade.main([".", *options]) == 0
    assert table.read_reports(tmp_path / "grades.reports.jsonl") == {}
    text = (tmp_path / "report" / "not_graded.csv").read_text(encoding="utf-8-sig")
    assert text == "file,why\n"
    assert "ada" in (tmp_path / "t.csv").read_text(encoding="utf-8-sig")


# --- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ("a: KeyError: 3 at line 2 of f: x[3]", "a: KeyError: 3"),
        ("it returned <object object at 0x7f00a1>.", "it returned <object object>."),
        (
            "a: 04.ipynb[cell 11], line 1: '(' was never closed",
            "a: '(' was never closed",
        ),
        ("a: 04.ipynb is not a valid notebook (x). Was", standings.CANNOT_BE_READ),
    ],
)
def test_one_mistake_of_two_students_is_one_sentence(said, counted):
    assert mistakes.sentence(said) == counted


def test_no_more_than_ten_sentences_are_counted_and_only_of_wrong_answers():
    rows = [
        {**row(f"{n}.ipynb", 0, WRONG), "said": f"sentence {n % 12:02}"}
        for n in range(25)
    ]
    rows.append({**row("x.ipynb", 2), "said": "sentence 05"})
    told = mistakes.commonest(rows, LESSON, "top_k_filter")
    assert told[0] == ("sentence 00", 3)
    assert told[1:] == [(f"sentence {n:02}", 2) for n in range(1, 10)]


# --- equal answers --------------------------------------------------------------------

SOURCE = '''\
def top_k_filter(logits, top_k):
    """What it does."""
    if top_k < 0:
        raise ValueError("negative")
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
'''
SAME = [
    SOURCE.replace("lowest", "t").replace("k)", "k) "),
    SOURCE.replace("What it does.", "Something else."),
    SOURCE.replace("(logits, top_k)", "(logits: torch.Tensor, top_k: int) -> None"),
    SOURCE.replace("    k = ", "    # a comment\n\n    k: int = "),
    "import math\nprint(1)\n\n" + SOURCE,
    "%timeit 1\n" + SOURCE,
]
OTHER = [
    SOURCE.replace("<", "<="),
    SOURCE.replace("-torch.inf", "-1e9"),
    SOURCE.replace("sort", "topk"),
    SOURCE.replace("logits < lowest", "lowest < logits"),
]


def test_names_comments_and_layout_make_no_other_answer():
    form = equals.answer("a", SOURCE, "top_k_filter").form
    for source in SAME:
        assert equals.answer("b", source, "top_k_filter").form == form, source
    for source in OTHER:
        assert equals.answer("b", source, "top_k_filter").form != form, source


def test_what_is_short_broken_or_a_stub_is_not_compared():
    deep = [f"def f(x):\n    return {x * 50_000}1" for x in ("-", "1+", "(", "not ")]
    for source in ("def f(x):\n    return x.sort()\n", "def f(x:\n", *deep):
        assert equals.answer("a", source, "f") is None
    assert equals.written(made_up_class.notebook(), LESSON) == {}
    assert equals.written("[" * 100_000, LESSON) == {}


def test_students_of_one_name_are_told_apart():
    """As where a platform hides their names."""
    paths = [f"Participant_{n}_assignsubmission_file/04_top_k.ipynb" for n in (1, 2)]
    text = made_up_class.notebook(top_k_filter=SOURCE)
    found = standings.students(
        [at(x) for x in paths], owners(paths), [row(x, 2) for x in paths], None, "last"
    )
    groups = equals.groups(found, [row(x, 2) for x in paths], lambda _: text)
    assert [x.students for x in groups] == [("Participant (1)", "Participant (2)")]


def test_our_own_answer_is_named_with_our_names_and_without():
    (exercise,) = [x for x in books.exercises(LESSON) if x.name == "top_k_filter"]
    other = exercise.answer.replace("threshold", "t").replace("logits", "scores")
    assert other != exercise.answer
    made = [
        equals.answer(name, source, exercise.name)
        for name, source in (("a", exercise.answer), ("b", other), ("c", SOURCE))
    ]
    found = {x.students: x.ours for x in equals._groups_of(exercise, made)}
    assert found == {("a",): equals.OURS, ("b",): equals.OUR_FORM}


def test_nothing_of_a_students_text_is_html():
    evil = "</pre><script>alert(1)</script>"
    mine = [{**row("a.ipynb", 0, WRONG), "said": evil, "exercise": evil}]
    text = pages.feedback(evil, evil, mine, {})
    one = equals.Answer(evil, evil, evil, evil)
    group = equals.Group(LESSON, evil, equals.EXACT, "", (one, one), 2)
    text += pages.equal_answers([group]) + pages.not_graded(evil, {evil: evil})
    assert "<script" not in text


def test_half_a_character_of_a_student_spoils_no_page_and_no_table():
    half = "\ud83d"
    mine = [{**row("a.ipynb", 0, WRONG), "said": half}]
    pages.feedback(half, half, mine, {"top_k_filter": half}).encode()
    job = grade.Job("a", LESSON, "", {"kept_mass": grade.Result(WRONG, half, half)})
    assert table.rows_of(job, "mark")[0]["said"] == "?"
    table.reports_line(job, "mark").encode()


# --- the work is shared ---------------------------------------------------------------


def test_notebooks_with_the_same_cells_are_graded_once(monkeypatch):
    taken = []

    def quick(asked, *_):
        waiting = []
        for job in asked:
            taken.append(job.name)
            waiting.append(job)
            if len(waiting) == 2:  # as two processes would
                yield graded(waiting.pop(0))
        yield from map(graded, waiting)

    def graded(job):
        if job.left():
            result = grade_process.Result(DONE, "", job.name)
            job.results = dict.fromkeys(job.left(), result)
        return job

    def text(source, number=1):
        cell = {"cell_type": "code", "id": "x", "source": source, "metadata": {}}
        return grade.json.dumps({"cells": [{**cell, "execution_count": number}]})

    monkeypatch.setattr(grade, "grade", quick)
    jobs = [
        grade.Job("a", LESSON, text("1")),
        grade.Job("b", LESSON, text("1", 2)),  # while a is graded
        grade.Job("c", LESSON, text("2")),
        grade.Job("d", LESSON, text(["1"])),  # after it
        grade.Job("e", "06_samplers", text("1")),
        grade.Job("f", LESSON, "broken"),
        grade.Job("g", LESSON, "broken"),
    ]
    done = {job.name: job for job in grade.each_once(iter(jobs), 2, None)}
    assert set(done) == set("abcdefg")
    said = {n: {r.report for r in job.results.values()} for n, job in done.items()}
    first = {n: x for n, (x,) in said.items()}
    assert first == dict(zip("abcdefg", "aacaeff", strict=True))
    assert [n for n in taken if first[n] != n] == ["d"]  # handed through
