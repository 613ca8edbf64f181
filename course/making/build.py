"""Build both notebooks of each lesson from its one source, solutions/NN_topic.py.

    python start.py build            what is out of step with its source
    python start.py build --force    everything
    python start.py build 04 05      these lessons
    python start.py build --lang zh_CN    the catalogs and notebooks of a language
    python start.py build --prose    where only prose has changed: no code is run

solutions/NN_topic.ipynb is the executed reference; lessons/NN_topic.ipynb has the
answers replaced by a stub and no outputs, and lessons/zh_CN/NN_topic.ipynb is the same
with its prose in Chinese, where there is a catalog of it. The same source gives the
same bytes. Needs requirements-teach.txt.

A notebook that was changed after it was built holds somebody's work. It stays as it is,
except with --force, which first puts a copy into backups/ and names it. All notebooks
of a lesson are written, or, where anything fails on the way, none.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from course.checks.notebook import defined_names, tags
from course.kit.quickly import nbformat
from course.learner import backups
from course.making import catalogs
from course.paths import LANGUAGES, LESSONS, SOLUTIONS, lesson_names, shown, tests_of
from course.saved import books, homes, languages, note
from course.saved.books import STAMP, with_stubs

CELL_SECONDS = 240


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python start.py build")
    parser.add_argument("lessons", nargs="*", help="numbers or names; none means all")
    parser.add_argument("--force", action="store_true", help="even what is in step")
    parser.add_argument(
        "--lang",
        choices=LANGUAGES,
        help="bring the catalogs of this language in step with the sources, and build "
        "its notebooks; no lesson is executed",
    )
    parser.add_argument(
        "--prose",
        action="store_true",
        help="run no code: take over the outputs of references whose code is the same",
    )
    options = parser.parse_args(arguments)
    for name in chosen(options.lessons):
        begun = options.lang in languages.languages_of(name)
        if options.lang and (begun or options.lessons):  # none is begun unasked
            build_translated(name, options.lang, force=options.force)
        elif not options.lang:
            build(name, force=options.force, prose=options.prose)


def chosen(wanted: list[str]) -> list[str]:
    names = lesson_names()
    found = [n for n in names if not wanted or n in wanted or n[:2] in wanted]
    missing = [w for w in wanted if not any(n in (w,) or n[:2] == w for n in names)]
    if missing:
        sys.exit(f"no lesson {', '.join(missing)}: there are {', '.join(names)}")
    return found


def build(name: str, force: bool = False, prose: bool = False):
    """Write lessons/<name>.ipynb, also in the languages that there are catalogs of, and
    solutions/<name>.ipynb, where out of step. prose: run no code (see `retold`)."""
    source = SOLUTIONS / f"{name}.py"
    plain = read_source(source)
    _require_tests(name, plain)
    ready = {"": stamped(lesson(copy.deepcopy(plain)), source)}
    for language in languages.languages_of(name):
        print(f"{name} in {language}: {catalogs.sync(plain, name, language)}")
        ready[language] = translated(plain, source, language)
    targets = {LESSONS / x / f"{name}.ipynb": made for x, made in ready.items()}
    reference = SOLUTIONS / f"{name}.ipynb"
    targets[reference] = stamped(retold(plain, reference), source) if prose else None
    _build(targets, lambda: stamped(executed(plain), source), force)


def build_translated(name: str, language: str, force: bool = False):
    """Bring the catalog in step with the source, and write lessons/<language>/ from
    it."""
    source = SOLUTIONS / f"{name}.py"
    plain = read_source(source)
    print(f"{name} in {language}: {catalogs.sync(plain, name, language)}")
    target = LESSONS / language / f"{name}.ipynb"
    _build({target: translated(plain, source, language)}, None, force)


def translated(plain, source: Path, language: str):
    """The learner's notebook with its prose in another language."""
    made = lesson(copy.deepcopy(plain))
    languages.translate(made, source.stem, language)
    return stamped(made, source, language)


def _build(targets: dict, make_reference, force: bool):
    """Write notebooks {target: notebook, or None for the reference}."""
    made = {}
    for target, ready in targets.items():
        in_step = not drift(target)
        if ready:  # made in no time, so that the builder counts, too
            in_step = in_step and _text_of(target) == as_text(ready)
        make = (lambda ready=ready: ready) if ready else make_reference
        if in_step and not force:
            print(f"{shown(target)} is in step with its source")
        elif has_work(target) and not force:
            print(_stays(target))
        else:
            made[target] = make
    write_all({target: make() for target, make in made.items()}, force)


def _require_tests(name, notebook):
    tests = (
        tests_of(name).read_text(encoding="utf-8") if tests_of(name).exists() else ""
    )
    for cell in notebook.cells:
        if "exercise" in tags(cell):
            exercise = defined_names(cell.source)[0]
            fixture = f'{exercise} = exercise("{exercise}")'
            if fixture not in tests:
                sys.exit(
                    f"{name} has the exercise {exercise}, but {shown(tests_of(name))} "
                    f"has no checks of it: write them, and above them `{fixture}`"
                )


def _stays(target) -> str:
    return (
        f"{shown(target)} was changed after it was built: it stays as it is "
        f"(`python start.py build --force {target.stem[:2]}` builds it anew, and keeps "
        "a copy)"
    )


def read_source(source: Path):
    """The source as a notebook with fixed cell ids and no other metadata."""
    import jupytext

    notebook = jupytext.read(source)
    prefix, seen = source.stem[:2], set()
    for n, cell in enumerate(notebook.cells):
        cell.source = cell.source.strip("\n")  # a formatter's blank lines before `def`
        cell["id"] = _cell_id(cell, prefix, n)
        if cell["id"] in seen:
            sys.exit(f"{shown(source)}: two cells have the id {cell['id']}")
        seen.add(cell["id"])
    if notebook.cells[0].source.startswith(f"# {prefix} ·"):  # the lesson's title
        notebook.cells[0].source = note.below(notebook.cells[0].source)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python"},
        }
    )
    return notebook


def _cell_id(cell, prefix, n) -> str:
    """exercise-top_k_filter, check-top_k_filter: stable when cells move. Else a hash of
    the text, so that one inserted cell does not rename all that follow."""
    if "exercise" in tags(cell):
        return f"{prefix}-exercise-{defined_names(cell.source)[0]}"
    if "check" in tags(cell):
        called = re.search(r"^check\((\w+)\)", cell.source, re.MULTILINE)
        return f"{prefix}-check-{called[1]}"
    return f"{prefix}-{hashlib.sha256(cell.source.encode()).hexdigest()[:10]}"


def lesson(notebook):
    """The learner's notebook, made in place (see books.with_stubs)."""
    for cell in with_stubs(notebook).cells:
        if cell.cell_type == "code" and "SOLUTION" in cell.source:
            sys.exit(f"BEGIN and END SOLUTION do not match in:\n{cell.source}")
    return notebook


def as_built(name: str, language: str = ""):
    """The learner's notebook as it is built, whatever stands in lessons/."""
    return nbformat.reads(books.as_text(books.as_built(name, language)), as_version=4)


def executed(notebook):
    """The reference notebook, run from top to bottom in solutions/."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(SOLUTIONS)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def retold(plain, path: Path):
    """The reference notebook with the outputs of the one at `path`, which must have the
    same code."""
    made = copy.deepcopy(plain)
    old = nbformat.reads(_text_of(path), as_version=4) if path.exists() else made
    code = [[c for c in x.cells if c.cell_type == "code"] for x in (made, old)]
    new_code, old_code = code
    if old is made or [c.source for c in new_code] != [c.source for c in old_code]:
        sys.exit(
            f"{shown(path)} has other code than its source, so it must be run: "
            f"`python start.py build {path.stem[:2]}`"
        )
    for cell, before in zip(new_code, old_code, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return made


# --- the stamp: is a notebook what its source builds? ---------------------------------


def stamped(notebook, source: Path, language: str = ""):
    notebook.metadata[STAMP] = {"source": digest_of_source(source, language)}
    if language:
        notebook.metadata[STAMP]["language"] = language
    notebook.metadata[STAMP]["content"] = digest_of_content(notebook)
    return notebook


def digest_of_source(source: Path, language: str = "") -> str:
    text = source.read_text(encoding="utf-8")  # universal newlines: the same on Windows
    digest = hashlib.sha256(text.encode()).hexdigest()
    return languages.digest(digest, source.stem, language) if language else digest


def digest_of_content(notebook) -> str:
    """Of everything in the notebook but this digest itself."""
    plain = json.loads(nbformat.writes(notebook))
    plain["metadata"].get(STAMP, {}).pop("content", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def drift(path: Path) -> str:
    """Why the notebook at `path` is not what its source builds; "" when it is."""
    source = SOLUTIONS / f"{path.stem}.py"
    if not path.exists():
        return f"{shown(path)} has not been built"
    try:
        text = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)
        content = digest_of_content(notebook)
    except Exception as error:
        return f"{shown(path)} is not a notebook: {str(error)[:100]}"
    stamp = notebook.metadata.get(STAMP, {})
    language = homes.language_of(path)
    if stamp.get("source") != digest_of_source(source, language):
        which = f"{shown(source)} or its catalog" if language else shown(source)
        return f"{which} has changed since {shown(path)} was built"
    if stamp.get("content") != content or text != as_text(notebook):
        return f"{shown(path)} was changed after it was built"
    return ""


def has_work(path: Path) -> bool:
    """Whether the notebook at `path` was changed after it was built, from whatever
    source; so is what is no notebook (any more)."""
    if not path.exists():
        return False
    try:
        notebook = nbformat.reads(_text_of(path), as_version=4)
        built = notebook.metadata[STAMP]["content"] == digest_of_content(notebook)
        return not built or _text_of(path) != as_text(notebook)
    except Exception:
        return True


# --- writing --------------------------------------------------------------------------


def as_text(notebook) -> str:
    return nbformat.writes(notebook) + "\n"


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def write_all(made: dict, force: bool = False):
    """Write the notebooks {target: notebook}, all or none. One that holds work by now
    stays as it is; with `force` it is copied first."""
    with contextlib.ExitStack() as undo:
        parts = {}
        for target, notebook in made.items():
            text = _checked(notebook, target)
            parts[target] = part = books.write_beside(target, text)
            undo.callback(part.unlink, missing_ok=True)
        for target, part in parts.items():
            if has_work(target):
                if not force:
                    print(_stays(target))
                    continue
                print(f"kept {shown(target)} as {shown(backups.keep(target))}")
            undo.callback(_put_back, target, _bytes_of(target))
            os.replace(part, target)
            print(f"wrote {shown(target)}")
        undo.pop_all()  # all went well
        for part in parts.values():
            part.unlink(missing_ok=True)


def write(notebook, target: Path):
    """Write whole or not at all, over whatever is there."""
    books.write(target, _checked(notebook, target))


def _checked(notebook, target: Path) -> str:
    """The notebook's text; there is a folder for it."""
    nbformat.validate(notebook)
    target.parent.mkdir(exist_ok=True)
    return as_text(notebook)


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _put_back(path: Path, content: bytes | None):
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)


if __name__ == "__main__":
    main()
