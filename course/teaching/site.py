"""The web site: all lessons with their outputs, and the teacher's guide.

    python start.py site [OUT]     default: _site, in the repository

Made by Sphinx from README.md, solutions/*.ipynb (as saved, nothing is run) and
course/teaching/guide/*.md; zh_CN/ has the front page and the lessons that are there in
Chinese, and each page of a lesson leads to the other language. Any warning is an error.
The site needs no network and no server: OUT/index.html can be opened as it is. The same
sources give the same bytes. Needs requirements-teach.txt.
"""

import argparse
import copy
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat

from course.checks.notebook import read, tags
from course.making.build import lesson as with_stubs
from course.paths import ROOT, SOLUTIONS, lesson_names
from course.saved.languages import languages_of, translate
from course.teaching.slides import alt_text, has_figure

CONF = ROOT / "course" / "teaching" / "web"
GUIDE = ROOT / "course" / "teaching" / "guide"
MARK = ".token-by-token-site"  # in a folder that this program may replace
SLIDES = '<a href="../slides/{name}.html">Slides of this lesson</a>'
SWITCH = '<a href="../{folder}/{name}.html" lang="{lang}">{words}</a>'
CHINESE = "course/translations/zh_CN"
OURS = {"": ("Our answer", "Fold our answer"), "zh_CN": ("参考答案", "收起参考答案")}
TREE = """

```{{toctree}}
:hidden:
:caption: {caption}
:maxdepth: 1

{pages}
```
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python start.py site", description="Build the web site."
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "_site")
    out = parser.parse_args(arguments).out.resolve()
    ours = not out.exists() or (out / MARK).exists()
    if not ours and not (out.is_dir() and not any(out.iterdir())):
        sys.exit(f"{out} is not empty and not a site made by this program: left alone")
    if not build(out):
        sys.exit("The site was not built: Sphinx's warnings are above.")
    print(f"open {out / 'index.html'}")


def build(out: Path) -> bool:
    """Build into `out`, which is replaced as a whole; left alone if Sphinx warns."""
    from sphinx.cmd.build import build_main

    from course.teaching import slides

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=out.parent) as temporary:
        home = Path(temporary)
        gather(home / "source")
        command = ["-b", "html", "-E", "-q", "-W", "--keep-going"]
        command += ["-c", str(CONF), "-d", str(home / "trees")]
        made = home / "site" / "html"  # the parent takes what myst-nb leaves behind
        if build_main([*command, str(home / "source"), str(made)]):
            return False
        for name in lesson_names():
            slides.write(name, made / "slides")
        (made / MARK).touch()
        if out.exists():
            out.rename(home / "old")
        made.rename(out)
    return True


# --- what Sphinx reads ----------------------------------------------------------------


def gather(target: Path):
    """Write Sphinx's source folder: the front page, the lessons, the guide."""
    lessons = [f"lessons/{name}" for name in lesson_names()]
    chinese = [name for name in lesson_names() if "zh_CN" in languages_of(name)]
    guide = [f"guide/{path.stem}" for path in sorted(GUIDE.glob("*.md"))]
    guide.sort(key=lambda page: page != "guide/index")  # the guide's own front page
    pages = {"README.md": "index.md"}
    for name in lesson_names():
        for folder in ("lessons", "solutions"):
            pages[f"{folder}/{name}.ipynb"] = f"lessons/{name}.ipynb"
    for page in guide:
        pages[f"course/teaching/{page}.md"] = f"{page}.md"
    pages["README.zh-CN.md"] = "zh_CN/index.md"
    pages[f"{CHINESE}/glossary.md"] = "zh_CN/glossary.md"
    pages |= {f"lessons/zh_CN/{x}.ipynb": f"zh_CN/{x}.ipynb" for x in chinese}

    for source, page in pages.items():
        if not source.endswith(".md"):
            continue
        text = (ROOT / source).read_text(encoding="utf-8")
        text = relinked(text, source, page, pages, target)
        if page == "index.md":
            text += tree("Lessons", lessons)
            of_chinese = ["简介 <zh_CN/index>", *(f"zh_CN/{x}" for x in chinese)]
            text += tree("中文", [*of_chinese, "zh_CN/glossary"])
            text += tree("For teachers", guide) if guide else ""
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(text, encoding="utf-8")
    (target / "lessons").mkdir()
    for name in lesson_names():
        for language in ("", *languages_of(name)):
            notebook = shown_lesson(read(SOLUTIONS / f"{name}.ipynb"), name, language)
            folder = target / (language or "lessons")
            nbformat.write(notebook, folder / f"{name}.ipynb")


def tree(caption: str, pages: list[str]) -> str:
    return TREE.format(caption=caption, pages="\n".join(pages))


def relinked(text: str, source: str, page: str, pages: dict, target: Path) -> str:
    """The text of the repository's file `source` with its links as those of `page`.

    A link to a file that has a page leads there, a picture is copied beside, a link to
    any other file of the repository becomes its text. Raises FileNotFoundError for a
    link that leads nowhere.
    """

    def link(found):
        picture, words, goal = found.groups()
        if goal is None:
            return found[0]
        path, _, anchor = goal.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        file = (ROOT / source).parent.joinpath(path).resolve()
        if not file.exists():
            raise FileNotFoundError(f"{source} links to {goal}, which is not there")
        known = file.relative_to(ROOT).as_posix()
        here = Path(page).parent
        if picture:
            (target / here).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / here / file.name)
            return f"![{words}]({file.name})"
        if known not in pages:
            return words
        there = Path(os.path.relpath(pages[known], here)).as_posix()
        return f"[{words}]({there}{'#' + anchor if anchor else ''})"

    # Code, in a block or in a line, stays as it is (but may stand in a link's words).
    code = r"(?:^```.*?^```|`[^`\n]+`)"
    words = r"((?:`[^`\n]*`|[^\[\]`])*)"
    pattern = re.compile(
        rf"{code}|(!?)\[{words}\]\(([^()\s]+)\)", re.DOTALL | re.MULTILINE
    )
    return pattern.sub(link, text)


def ways(name: str, language: str) -> str:
    """The line below a lesson's title: its slides, and the lesson in the other
    language."""
    links = [] if language else [SLIDES.format(name=name)]
    if language:
        other = {"folder": "lessons", "lang": "en", "words": "English"}
        links.append(SWITCH.format(name=name, **other))
    elif "zh_CN" in languages_of(name):
        other = {"folder": "zh_CN", "lang": "zh-CN", "words": "中文"}
        links.append(SWITCH.format(name=name, **other))
    return f'<p class="slides">{" · ".join(links)}</p>'


def shown_lesson(notebook, name: str, language: str = ""):
    """The reference as a reader should meet it: each exercise as its stub, with our
    answer folded below it, and words for those who cannot see the figures."""
    if language:
        translate(notebook, name, language)
    stubs = {cell.id: cell for cell in with_stubs(copy.deepcopy(notebook)).cells}
    cells, heading = [], ""
    for n, cell in enumerate(notebook.cells):
        cell.metadata.pop("lines_to_next_cell", None)
        if cell.cell_type == "markdown":
            titles = re.findall(r"^## (.*)", cell.source, re.MULTILINE)
            heading = titles[-1] if titles else heading
            cells.append(cell)
            if n == 0:
                cells.append(nbformat.v4.new_markdown_cell(ways(name, language)))
                cells[-1].id = f"{cell.id}-slides"
            continue
        if "exercise" in tags(cell):
            stub = stubs[cell.id]
            stub.id = f"{cell.id}-stub"
            cells.append(stub)
            cell.source = re.sub(
                r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M
            )
            cell.metadata["tags"] = ["hide-input"]
            show, fold = OURS[language]
            cell.metadata["mystnb"] = {
                "code_prompt_show": show,
                "code_prompt_hide": fold,
            }
        if has_figure(cell):
            cell.metadata["mystnb"] = {"image": {"alt": alt_text(cell.source, heading)}}
        cells.append(cell)
    notebook.cells = cells
    return notebook


if __name__ == "__main__":
    main()
