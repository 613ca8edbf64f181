"""Slides: what a room needs to see of a lesson, in one HTML file that works offline.

    python start.py slides [OUT] [NN ...]     default: all lessons, into _slides

Shown are the title, the beginning of each section and a demo that follows it at once,
each question to predict, then its demo (the code, one click later what it prints, and
one later what to say of it), each figure, each exercise without its hints, and what
stands at the end: questions, the names in the wild, what to read. The rule
reads the notebooks in solutions/ as saved: there is no list of slides to keep.

In the browser: arrow keys, space or a clicker; F for the full screen, Esc for an
overview. Print it from FILE?print-pdf for a PDF. Made with reveal.js, which is copied
into the file. Needs requirements-teach.txt.
"""

import argparse
import ast
import html
import re
import sys
from importlib.resources import files
from pathlib import Path

from course.checks.notebook import read, tags
from course.paths import ROOT, SOLUTIONS
from course.teaching.mathml import mathml

WEB = ROOT / "course" / "teaching" / "web"
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{styles}
</style>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script>
{reveal}
</script>
<script>
{script}
</script>
</body>
</html>
"""
LINES = 20  # of code and output together, on one slide
# Where the code of a figure says what the figure shows.
SAID = {"title": "title", "suptitle": "title", "xlabel": "x", "ylabel": "y"}
SAID |= {"label": "shows"}


def main(arguments=None):
    from course.making.build import chosen

    parser = argparse.ArgumentParser(
        prog="python start.py slides", description="Make slides of the lessons."
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "_slides")
    parser.add_argument("lessons", nargs="*", help="numbers or names; none means all")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.out.is_dir():
        sys.exit(f"{options.out} is a file: the slides need a folder")
    for name in chosen(options.lessons):
        print(write(name, options.out))


def write(name: str, folder: Path) -> Path:
    """Write folder/<name>.html, the slides of a lesson."""
    from pygments.formatters import HtmlFormatter

    notebook = read(SOLUTIONS / f"{name}.ipynb")
    reveal = files("sphinx_revealjs") / "_static" / "revealjs" / "dist"
    styles = [
        (reveal / "reveal.css").read_text(encoding="utf-8"),
        HtmlFormatter(style="a11y-light").get_style_defs("pre.input"),
        (WEB / "slides.css").read_text(encoding="utf-8"),
    ]
    made = slides(notebook)
    page = PAGE.format(
        title=html.escape(notebook.cells[0].source.splitlines()[0].lstrip("# ")),
        styles="\n".join(styles),
        slides="\n".join(f"<section>\n{slide}\n</section>" for slide in made),
        reveal=(reveal / "reveal.js").read_text(encoding="utf-8"),
        script=(WEB / "slides.js").read_text(encoding="utf-8"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.html"
    target.write_text(page, encoding="utf-8", newline="\n")
    return target


# --- what goes on which slide ---------------------------------------------------------


def slides(notebook) -> list[str]:
    """The slides of an executed lesson, each as HTML."""
    made, section = [], ""
    predicted = False  # a question is open: the next demo answers it
    begun = False  # the cell before begins a section: a demo that follows belongs to it
    answered = False  # the last slide is a demo, and nothing has been said of it yet
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for block in blocks(cell.source):
                title = re.match(r"(#+) (.*)", block)
                if title and title[1] == "##":
                    section = title[2]
                begun = bool(title) and title[1] == "##"
                predicted = predicted or "**Predict" in block
                if title or "**Predict" in block:
                    made.append(text_slide(block))
                elif answered:
                    made[-1] += fragment(rendered(first_words(block)))
                answered = False
        elif not tags(cell) & {"setup", "exercise", "check"}:
            answered = begun or has_figure(cell) or bool(predicted and cell.outputs)
            if answered:
                made += demo_slides(cell, section)
                predicted = False
            begun = False
        else:
            begun = answered = False
    return made


def blocks(text: str) -> list[str]:
    """A cell's text, cut before each heading, without what is folded."""
    text = re.sub(r"<details\b.*?</details>\s*", "", text, flags=re.DOTALL)
    pieces = re.split(r"^(?=#{1,3} )", text, flags=re.MULTILINE)
    return [piece.strip() for piece in pieces if piece.strip()]


def text_slide(block: str) -> str:
    """Of a section's text the beginning, and the question; of anything else all."""
    paragraphs = block.split("\n\n")
    if re.match(r"## \d", block):
        paragraphs = paragraphs[:2] + [p for p in paragraphs[2:] if "**Predict" in p]
    made = [
        f'<div class="question">{rendered(paragraph)}</div>'
        if "**Predict" in paragraph
        else rendered(paragraph)
        for paragraph in paragraphs
    ]
    return '<div class="text">' + "\n".join(made) + "</div>"


def first_words(block: str) -> str:
    """The first paragraph, without a last sentence that leads on to the next cell."""
    sentences = re.split(r"(?<=[.?!])\s+", block.split("\n\n")[0])
    return " ".join(sentences[:-1] if sentences[-1].endswith(":") else sentences)


def demo_slides(cell, section: str) -> list[str]:
    """Code and, a click later, what it prints; of a figure the figure alone. What is
    too long for one slide takes two."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    shown = "\n".join(output(out, cell, section) for out in cell.outputs)
    if has_figure(cell):
        return [shown]
    code = highlight(cell.source, PythonLexer(), HtmlFormatter(nowrap=True))
    code = f'<pre class="input">{code}</pre>'
    if not shown:
        return [code]
    if cell.source.count("\n") + shown.count("\n") > LINES:
        return [code, shown]
    return [code + fragment(shown)]


def fragment(text: str) -> str:
    """What appears with the next click."""
    return f'\n<div class="fragment">{text}</div>' if text else ""


def output(out, cell, section: str) -> str:
    """One output of a cell: a picture, or text."""
    data = out.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        alt = html.escape(alt_text(cell.source, section))
        return f'<img src="data:image/png;base64,{picture}" alt="{alt}">'
    text = out.get("text") or data.get("text/plain") or out.get("evalue", "")
    return f'<pre class="output">{html.escape(text.rstrip())}</pre>'


def rendered(text: str) -> str:
    """Markdown as HTML, as the web site's parser reads it."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(tex, options):
        return mathml(tex, block=options["display_mode"])

    parser = MarkdownIt("commonmark").enable("table")
    parser.use(dollarmath_plugin, allow_space=False, renderer=formula)
    return parser.render(text).strip()


# --- figures in words -----------------------------------------------------------------


def has_figure(cell) -> bool:
    return any("image/png" in out.get("data", {}) for out in cell.get("outputs", ()))


def alt_text(source: str, section: str) -> str:
    """What the code that draws a figure says of it: its titles and axis labels."""
    said = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = [(k.arg, k.value) for k in node.keywords]
        if isinstance(node.func, ast.Attribute) and node.args:
            named.append((node.func.attr.removeprefix("set_"), node.args[0]))
        for kind, value in named:
            if kind in SAID and isinstance(value, ast.Constant) and value.value:
                said.append(f"{SAID[kind]}: {value.value}")
    words = "; ".join(dict.fromkeys(said))
    place = "Figure in “" + re.sub(r"[`*]", "", section) + "”"
    return f"{place}. {words}" if words else place


if __name__ == "__main__":
    main()
