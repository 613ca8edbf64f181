"""What is handed in is found, in folders and archives and under any name; of each other
file it is said why it is left out; and no archive does harm."""

import io
import json
import stat
import zipfile

import pytest

from course.making import build
from course.teaching import grade, submissions

LESSON = "04_top_k"
NOTEBOOK = json.dumps(build.as_built(LESSON))


def archive(members: dict) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def locked() -> bytes:
    """An archive whose one file says that it needs a password."""
    data = bytearray(archive({"04_top_k.ipynb": NOTEBOOK}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    return bytes(data)


NOTEBOOKS = [
    "alice/04_top_k.ipynb",
    "bob_04_top_k.ipynb.txt",
    "carl/04_top_k (1).ipynb.json",
    "dora/answers.json",
    "eve/04_TOP_K.IPYNB",
    "fay/no suffix",
]
NO_NOTEBOOKS = {
    "alice/essay.pdf": (b"%PDF", "neither a notebook nor a zip archive"),
    "alice/settings.json": (b'{"nbformat', "neither a notebook"),
    "bob/04_top_k.py": (b"def top_k_filter(): pass", "neither a notebook"),
    "bob/work.rar": (b"Rar!", "neither a notebook nor a zip archive"),
    "carl/.ipynb_checkpoints/04_top_k.ipynb": (NOTEBOOK, "nobody's work"),
    "carl/__MACOSX/04_top_k.ipynb": (NOTEBOOK, "nobody's work"),
    "carl/._04_top_k.ipynb": (b"", "nobody's work"),
    "dora/broken.zip": (b"PK\x03\x04", "the archive cannot be read"),
    "dora/locked.zip/04_top_k.ipynb": (locked(), "locked with a password"),
}


def put(folder, name, content):
    path = folder / name.split(".zip/")[0]
    path = path.with_name(path.name + ".zip") if ".zip/" in name else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed in")
    for name in NOTEBOOKS:
        put(folder, name, NOTEBOOK)
    for name, (content, _) in NO_NOTEBOOKS.items():
        put(folder, name, content)
    return folder


def outcome(source) -> tuple[list[str], dict[str, str]]:
    handed = submissions.find(source)
    left = {one.name: one.why_not for one in handed if one.why_not}
    return [one.name for one in handed if not one.why_not], left


def test_each_file_is_a_notebook_or_said_to_be_left_out(folder):
    found, left = outcome(folder)
    assert found == NOTEBOOKS
    assert set(left) == set(NO_NOTEBOOKS)
    for name, (_, why) in NO_NOTEBOOKS.items():
        assert why in left[name], (name, left[name])


def test_an_archive_is_read_as_its_folder_is(folder, tmp_path):
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }
    bulk = tmp_path / "bulk.ZIP"
    bulk.write_bytes(archive(files))
    assert outcome(bulk) == outcome(folder)
    inside = tmp_path / "inside"
    put(inside, "x/all.zip/", archive({"one.zip": archive(files)}))
    found, left = outcome(inside)
    assert found == [f"x/all.zip/one.zip/{name}" for name in NOTEBOOKS]
    assert len(left) == len(NO_NOTEBOOKS)
    for one in submissions.find(inside):
        if not one.why_not:
            assert one.read().decode() == NOTEBOOK


def test_no_archive_does_harm(tmp_path, monkeypatch):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    out = "its path leads out of the archive"
    members = {
        "../04_top_k.ipynb": out,
        "a/../../04_top_k.ipynb": out,
        "/etc/04_top_k.ipynb": out,
        "..\\04_top_k.ipynb": out,
        "C:/04_top_k.ipynb": out,
    }
    evil = {**dict.fromkeys(members, NOTEBOOK), link("04_top_k.ipynb"): "/etc/passwd"}
    (folder / "slip.zip").write_bytes(archive(evil))
    found, left = outcome(folder)
    assert found == []
    assert sorted(left.values()) == ["it is a link", *[out] * 5]
    assert [p.name for p in tmp_path.rglob("*.*")] == ["slip.zip"]

    monkeypatch.setattr(submissions._Room, "__init__", _small_room)
    zeros = {f"{n}.txt": bytes(2_000_000) for n in range(6)}  # 12 MB in a few kB
    for name, content in (
        ("bomb", archive(zeros)),
        ("many", archive(dict.fromkeys(map(str, range(30)), ""))),
        ("nested", archive({"a.zip": archive({f"{n}.txt": "" for n in range(20)})})),
        ("deep", archive({"a.zip": archive({"b.zip": archive({"c.zip": b""})})})),
    ):
        (folder / "slip.zip").write_bytes(content)
        found, left = outcome(folder)
        assert found == []
        told = " ".join(left.values())
        assert ("too deep" if name == "deep" else "unpack it yourself") in told, name


def _small_room(self):
    self.files, self.mb, self.depth = 20, 10, 3


def test_too_large_and_unreadable_files_get_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "NOTEBOOK_MB", 0.001)
    big = submissions.Handed("a.ipynb", 2000, lambda: 1 / 0)
    assert "clear its outputs" in grade.submission(big).results[""].said

    def broken():
        raise zipfile.BadZipFile("Bad CRC-32")

    bad = submissions.Handed("b.ipynb", 10, broken)
    assert "cannot be read: Bad CRC-32" in grade.submission(bad).results[""].said
    assert grade.mark_of(bad) != grade.mark_of(big)


def test_two_files_of_one_name_in_an_archive_have_rows_of_their_own(tmp_path):
    file = tmp_path / "twice.zip"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("04_top_k.ipynb", NOTEBOOK)
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("04_top_k.ipynb", NOTEBOOK + " ")
    found = [(one.name, len(one.read())) for one in submissions.find(file)]
    size = len(NOTEBOOK)
    assert found == [("04_top_k.ipynb", size), ("04_top_k.ipynb (2)", size + 1)]


def test_the_command_grades_an_archive_and_names_what_it_left_out(
    tmp_path, monkeypatch, capsys
):
    taken = []

    def quick(asked, *_):
        for job in asked:
            taken.append((job.name, job.lesson))
            job.results = dict.fromkeys(job.left(), grade.Result("done"))
            yield job

    monkeypatch.setattr(grade, "grade", quick)
    bulk, out = tmp_path / "bulk.zip", tmp_path / "grades.csv"
    bulk.write_bytes(archive({"a/04_top_k.ipynb": NOTEBOOK, "a/essay.pdf": b"%PDF"}))
    assert grade.main([str(bulk), "--out", str(out)]) == 0
    assert taken == [("a/04_top_k.ipynb", LESSON)]
    said = capsys.readouterr().out
    assert "left out: a/essay.pdf: it is neither a notebook nor a zip archive" in said
    with pytest.raises(SystemExit):
        grade.main([str(tmp_path / "no.zip")])
