"""Build both notebooks of each lesson from its one source, solutions/NN_topic.py.

    python start.py build            what is out of step with its source
    python start.py build --force    everything
    python start.py build 04 05      these lessons

solutions/NN_topic.ipynb is the executed reference; lessons/NN_topic.ipynb has the
answers replaced by a stub and no outputs. The same source gives the same bytes. Needs
requirements-teach.txt.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat

from course.checks.notebook import defined_names, tags
from course.paths import LESSONS, SOLUTIONS, lesson_names, shown

STUB = 'raise NotImplementedError("to be written by you")'
STAMP = "token_by_token"
CELL_SECONDS = 240


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python start.py build")
    parser.add_argument("lessons", nargs="*", help="numbers or names; none means all")
    parser.add_argument("--force", action="store_true", help="even what is in step")
    options = parser.parse_args(arguments)
    for name in chosen(options.lessons):
        build(name, force=options.force)


def chosen(wanted: list[str]) -> list[str]:
    names = lesson_names()
    found = [n for n in names if not wanted or n in wanted or n[:2] in wanted]
    missing = [w for w in wanted if not any(n in (w,) or n[:2] == w for n in names)]
    if missing:
        sys.exit(f"no lesson {', '.join(missing)}: there are {', '.join(names)}")
    return found


def build(name: str, force: bool = False):
    """Write lessons/<name>.ipynb and solutions/<name>.ipynb where out of step."""
    source = SOLUTIONS / f"{name}.py"
    for folder, make in ((LESSONS, lesson), (SOLUTIONS, executed)):
        target = folder / f"{name}.ipynb"
        if not force and not drift(target):
            print(f"{shown(target)} is in step with its source")
            continue
        notebook = make(read_source(source))
        write(stamped(notebook, source), target)
        print(f"wrote {shown(target)}")


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
    """The learner's notebook: nbgrader's preprocessors clear answers and outputs."""
    from nbgrader.preprocessors import ClearOutput, ClearSolutions
    from traitlets.config import Config

    config = Config(
        {
            "ClearSolutions": {
                "code_stub": {"python": STUB},
                "enforce_metadata": False,
            }
        }
    )
    for step in (ClearSolutions, ClearOutput):
        notebook, _ = step(config=config).preprocess(notebook, {})
    return notebook


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


# --- the stamp: is a notebook what its source builds? ---------------------------------


def stamped(notebook, source: Path):
    notebook.metadata[STAMP] = {"source": digest_of_source(source)}
    notebook.metadata[STAMP]["content"] = digest_of_content(notebook)
    return notebook


def digest_of_source(source: Path) -> str:
    text = source.read_text(encoding="utf-8")  # universal newlines: the same on Windows
    return hashlib.sha256(text.encode()).hexdigest()


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
    if stamp.get("source") != digest_of_source(source):
        return f"{shown(source)} has changed since {shown(path)} was built"
    if stamp.get("content") != content or text != as_text(notebook):
        return f"{shown(path)} was changed after it was built"
    return ""


def as_text(notebook) -> str:
    return nbformat.writes(notebook) + "\n"


def write(notebook, target: Path):
    """Write whole or not at all."""
    nbformat.validate(notebook)
    target.parent.mkdir(exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(as_text(notebook))
        os.chmod(part, 0o644)
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise


if __name__ == "__main__":
    main()
