"""Forty made-up submissions to lesson 04, as Moodle hands them over: one zip archive,
with a folder for each student. `python -m tests.teaching.made_up_class FOLDER` writes
it, and the list of the class."""

import csv
import io
import json
import sys
import zipfile
from pathlib import Path

from course.saved import books

LESSON = "04_top_k"
FILTER = """\
def top_k_filter(logits, top_k):
    # sort, then look up the border of each row
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}")
    if top_k == 0:
        return logits.clone()
    ordered = logits.sort(dim=-1, descending=True).values
    place = min(top_k, ordered.shape[-1]) - 1
    border = ordered[:, place].unsqueeze(-1)
    return torch.where(logits < border, -torch.inf, logits)
"""
RENAMED = (  # the same in other words
    FILTER.replace("sort, then look up the border of each row", "my own idea")
    .replace("ordered", "s")
    .replace("place", "i")
    .replace("border", "t")
)
MASKED = """\
def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError("top_k must be 0 or more")
    vocab = logits.size(-1)
    keep = vocab if top_k == 0 else min(top_k, vocab)
    smallest = logits.topk(keep, dim=-1).values.amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < smallest, float("-inf"))
"""
KEPT = """\
def kept_mass(logits, top_k):
    probabilities = logits.softmax(dim=-1)
    left = top_k_filter(logits, top_k).isfinite()
    return (probabilities * left).sum(dim=-1)
"""
EXACT = """\
def top_k_exact(logits, top_k):
    if top_k < 0:
        raise ValueError("negative")
    if top_k == 0:
        return logits.clone()
    vocab = logits.shape[-1]
    chosen = logits.topk(min(top_k, vocab), dim=-1).indices
    removed = torch.ones_like(logits, dtype=torch.bool)
    removed.scatter_(-1, chosen, False)
    return logits.masked_fill(removed, -torch.inf)
"""
TOO_MANY = MASKED.replace("logits < smallest", "logits <= smallest")
NO_RETURN = MASKED.replace("return logits.masked", "logits.masked")
FLIPPED = MASKED.replace("logits < smallest", "logits > smallest")
IN_PLACE = MASKED.replace("masked_fill(", "masked_fill_(")
NOT_PYTHON = "def top_k_filter(logits, top_k:\n    return logits\n"
FIVE = ("top_k_filter", "kept_mass", "top_k_exact", "sample_top_k", "TopK")


def notebook(language: str = "", **answers: str) -> str:
    """The lesson as it came, with these answers in the cells of its exercises."""
    book = books.as_built(LESSON, language)
    for cell in book["cells"]:
        name = cell["id"].split("-exercise-")[-1]
        if name in answers:
            cell["source"] = answers[name].splitlines(keepends=True)
    return json.dumps(book, ensure_ascii=False)


def solved(*names: str) -> dict[str, str]:
    """Our own answers, without the marks around them."""
    return {x.name: x.answer for x in books.exercises(LESSON) if x.name in names}


def with_(answer: str, *others: str) -> str:
    return notebook(**{**solved(*others), "top_k_filter": answer})


def the_class() -> tuple[dict[str, str | bytes], list[tuple[str, str]]]:
    """({path in the archive: content}, [(name, number)] of the whole class)."""
    rest = FIVE[3:]
    own = notebook(**solved(*rest), top_k_filter=FILTER, kept_mass=KEPT)
    copied = notebook(**solved(*rest), top_k_filter=RENAMED, kept_mass=KEPT)
    other = notebook(**solved(*rest), top_k_filter=MASKED, top_k_exact=EXACT)
    books_of = {
        "Ada Lovelace": own,
        "Bela Bartok": own,  # the same file
        "Carl Gauss": copied,  # with other names
        "Dora Maar": other,
        "Emil O'Neil": notebook(**solved(*FIVE)),
        "Fay Wray": notebook(**solved(*FIVE)),
        "Gül Öztürk": notebook(**solved("kept_mass", "TopK")),  # half of it
        "Hanna Arendt": notebook(**solved("kept_mass", "TopK")),
        "王小明": notebook("zh_CN", **solved(*FIVE)),
    }
    many = {
        notebook(): ("Ina", "Jan", "Kim", "Lea", "Max", "Nia", "Oz"),  # untouched
        with_(TOO_MANY): ("Ole", "Pia", "Quin", "Rosa", "Sam", "Tim", "Uma", "Una"),
        with_(NO_RETURN): ("Vic", "Wim", "Xia", "Yan"),
        with_(FLIPPED): ("Zoe", "Abe"),
        with_(IN_PLACE): ("Ben",),
        with_(NOT_PYTHON): ("Cem", "Dan"),
    }
    for text, names in many.items():
        books_of |= {f"{name} Miller": text for name in names}
    people = [(name, str(500100 + n)) for n, name in enumerate(books_of)]
    file, folder = f"{LESSON}.ipynb", "{}_{}_assignsubmission_file_"
    files = {
        f"{folder.format(name.replace(chr(39), ''), number)}/{file}": books_of[name]
        for name, number in people
    }

    def more(name, content, path=file):
        people.append((name, str(500100 + len(people))))
        files[f"{folder.format(*people[-1])}/{path}"] = content
        return folder.format(*people[-1])

    more("Eve Zipped", zipped("04_top_k.ipynb", other), "04_top_k.zip")
    more("Eva Cut", notebook()[:3000])
    more("Finn Essay", b"%PDF-1.7", "essay.pdf")
    more("Gil Zipped", zipped("work/my answers.ipynb", own), "work.zip")
    place = more("Hal Twice", with_(FLIPPED))
    files[f"{place}/{LESSON}-1.ipynb"] = own  # the later one is the better one
    place = more("Ida Twice", own)
    files[f"{place}/{LESSON} (1).ipynb"] = with_(FLIPPED)  # the later one is worse
    place = more("Jo Stranger", notebook(**solved("kept_mass", "TopK")))
    people.pop()  # is in no list
    people += [("Kai Missing", "500900"), ("Liv Missing", "500901")]
    files["notes.txt"] = b"of the platform"
    students = {path.split("/")[0] for path in files if "/" in path}
    assert len(students) == 40
    return files, people


def zipped(name: str, text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return file.getvalue()


def write(folder: Path) -> tuple[Path, Path]:
    """The archive and the list, as Moodle's grading worksheet has it."""
    files, people = the_class()
    bulk, names = folder / "top k-1234.zip", folder / "names.csv"
    with zipfile.ZipFile(bulk, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            info = zipfile.ZipInfo(path, (2026, 11, 20, 12, 0, 0))  # one for all
            archive.writestr(info, content)
    with names.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Identifier", "Full name", "Email address", "Status", "Grade"])
        for name, number in people:
            table.writerow([f"Participant {number}", name, "", "", ""])
    return bulk, names


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])))
