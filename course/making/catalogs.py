"""The catalogs of translated prose, course/translations/zh_CN/NN_topic.po, kept in step
with the sources, and what a translation must have in common with its source.

A message that has changed keeps its old translation, marked `fuzzy`, with the text that
it was made from; one that is gone is kept at the end (`#~`). Neither is shown to
learners. To mend one: put the translation right, delete `#, fuzzy` and the lines with
`#|`, and build again.
"""

import io
import re
from collections import Counter
from pathlib import Path

from course.saved import languages, note

WIDTH = 88


def sync(plain, lesson: str, language: str) -> str:
    """Bring a lesson's catalog in step with its source, and say how it stands."""
    path = languages.catalog_path(lesson, language)
    catalog = in_step(plain, lesson, language)
    text = as_text(catalog, language)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return told(catalog)


def in_step(plain, lesson: str, language: str):
    """The catalog with exactly the messages of the source, in its order."""
    from babel.messages import Catalog

    path = languages.catalog_path(lesson, language)
    catalog = Catalog(locale=language)
    if path.exists():
        catalog = languages.read_catalog(path, language)
    current = Catalog(locale=language)
    for message in source_messages(plain):
        current.add(message)
    catalog.update(current, update_creation_date=False)
    return catalog


def source_messages(plain) -> list[str]:
    """All messages of a lesson, in order, each once: of its prose and of its exercises'
    docstrings."""
    texts = []
    for cell in plain["cells"]:
        if cell["cell_type"] == "markdown":
            texts.append(note.without(cell["source"]))
        elif "exercise" in cell["metadata"].get("tags", ()):
            texts += [text for _, text in languages.documented(cell["source"])]
    return list(dict.fromkeys(m for text in texts for m in languages.messages(text)))


def as_text(catalog, language: str) -> str:
    """The catalog as its file has it."""
    from babel.messages.pofile import write_po

    file = io.BytesIO()
    options = {"width": WIDTH, "no_location": True, "include_previous": True}
    write_po(file, catalog, omit_header=True, **options)
    return f"{header(language)}\n{file.getvalue().decode()}".rstrip() + "\n"


def header(language: str) -> str:
    """Without a date and a program's version: what is built is the same each time."""
    lines = (
        f"Language: {language}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
    )
    return 'msgid ""\nmsgstr ""\n' + "".join(f'"{line}\\n"\n' for line in lines)


def told(catalog) -> str:
    """How a catalog stands, in a line."""
    held = [message for message in catalog if message.id]
    done = sum(bool(message.string) and not message.fuzzy for message in held)
    changed = sum(message.fuzzy for message in held)
    return (
        f"{done} of {len(held)} messages are translated; in English: {changed} changed "
        f"since, {len(held) - done - changed} new; no longer needed: "
        f"{len(catalog.obsolete)}"
    )


# --- what a translation must keep -----------------------------------------------------


def faults(message: str, translation: str) -> list[str]:
    """What a translation has lost, added or broken of its message; [] if nothing."""
    found = []
    before, after = parts(message), parts(translation)
    for kind in before:
        lost, added = before[kind] - after[kind], after[kind] - before[kind]
        if lost or added:
            found.append(f"{kind}: lost {sorted(lost)}, added {sorted(added)}")
    return found


def parts(text: str) -> dict[str, Counter]:
    """What must be the same in a message and in its translation, as it is rendered."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    tokens = parser.parseInline(text)[0].children
    plain = "".join(x.content for x in tokens if x.type == "text")
    links = [t.attrs.get("href") for t in tokens if t.type == "link_open"]
    # Slanted Chinese is hard to read: <b> may stand for <em>.
    tags = [t.content.replace("em>", "b>") for t in tokens if t.type == "html_inline"]
    emphasis = sum(t.type in ("strong_open", "em_open") for t in tokens)
    return {
        "code": Counter(t.content for t in tokens if t.type == "code_inline"),
        "code in HTML": Counter(re.findall(r"<code>.*?</code>", text)),
        "tags": Counter(tags),
        "links": Counter(links),
        "emphasis": Counter({"marked": emphasis}),
        "loose marks": Counter(re.findall(r"\*+", re.sub(r"\$[^$]*\$", "", plain))),
        "formulas": Counter(re.findall(r"\$[^$]+\$", text)),
        "columns": Counter({"|": len(re.findall(r"(?<!\\)\|", text))}),
        "stars": Counter(re.findall(r"[★☆]{3}", text)),
        "numbers": Counter(re.findall(r"\d+(?:[.,]\d+)*", plain)),
        "line ends": Counter({"\\n": text.count("\n")}),
    }


def faults_of(path: Path, language: str) -> dict[str, list[str]]:
    """{message: faults} of the translations in force."""
    catalog = languages.read_catalog(path, language)
    held = {m.id: m.string for m in catalog if m.id and m.string and not m.fuzzy}
    found = {message: faults(message, text) for message, text in held.items()}
    return {message: what for message, what in found.items() if what}
