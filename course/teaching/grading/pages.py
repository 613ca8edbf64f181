"""HTML pages: what a student is told, and equal answers side by side. All that comes
from students is escaped; nothing is loaded from elsewhere."""

from collections import defaultdict
from html import escape

from course.checks.explain import TO_DO
from course.teaching.grading import equals, standings

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
pre { font: 14px/1.4 monospace; white-space: pre-wrap; background: #f5f5f5;
      padding: .75rem; margin: 0; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left;
         vertical-align: top }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
h2 { margin-top: 2.5rem }
"""


def page(title: str, body: list[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>'
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head>{head}<style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        *body,
        "</body></html>",
    ]
    text = "\n".join(lines) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # half characters


def table(head: list[str], rows) -> str:
    def line(cells, kind):
        inner = "".join(f"<{kind}>{escape(str(x))}</{kind}>" for x in cells)
        return f"<tr>{inner}</tr>"

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


# --- a student ------------------------------------------------------------------------


def feedback(name: str, path: str, rows: list[dict], reports: dict[str, str]) -> str:
    """What was said of the notebook at `path`. rows: its rows of the table; reports:
    {exercise: the whole report}."""
    lesson = rows[0]["lesson"]
    points = standings.points(rows)
    of = sum(int(row["of"]) for row in rows)
    body = [
        f"<p>{escape(name)}: {points:g} of {of} points, for <code>{escape(path)}</code>"
        "</p>",
        table(
            ["exercise", "state", "points", "of"],
            [[r["exercise"], r["state"], r["points"], r["of"]] for r in rows],
        ),
    ]
    for row in rows:
        whole = reports.get(row["exercise"]) if row["state"] != TO_DO else ""
        said = whole or row["said"]
        if said:
            body.append(f"<h2>{escape(row['exercise'])}: {escape(row['state'])}</h2>")
            body.append(f"<pre>{escape(said)}</pre>")
    return page(f"Lesson {lesson}", body)


def not_graded(name: str, reasons: dict[str, str]) -> str:
    """For a student of whom nothing was graded."""
    return page(
        "Not graded",
        [f"<p>{escape(name)}</p>", table(["file", "why"], list(reasons.items()))],
    )


# --- equal answers --------------------------------------------------------------------

HINT = (
    "A hint, and no verdict. Compared are answers without comments, docstrings, "
    "annotations and layout, their own names replaced by numbers. Short answers and "
    "stubs are left out. Two students may have worked together, had one source, or "
    "come to the plainest form by themselves. The more students share one answer, the "
    "likelier that is; the more answers the same few share, the less."
)


def equal_answers(groups: list[equals.Group]) -> str:
    body = [f"<p>{HINT}</p>"]
    theirs, ours = equals.together(groups), [x for x in groups if x.ours]
    if not theirs:
        body.append("<p>No two students share an answer.</p>")
    else:
        rows = [
            [", ".join(students), len(shared), _exact(shared), _exercises(shared)]
            for students, shared in theirs
        ]
        head = ["students", "exercises", equals.EXACT, "which"]
        body.append(table(head, rows))
    if ours:
        body += [
            "<h2>Our own answers</h2>",
            "<p>Anybody gets them with <code>python start.py answer</code>. A short "
            "way to write something is often ours by itself: only the same names, too, "
            "speak for a copy.</p>",
            table(
                ["exercise", "how", "students"],
                [[_title(x), x.ours, ", ".join(x.students)] for x in ours],
            ),
        ]
    for students, shared in theirs:
        body.append(f"<h2>{escape(', '.join(students))}</h2>")
        for group in shared:
            body += _side_by_side(group)
    return page("Equal answers", body)


def _exact(shared) -> int:
    return sum(x.how == equals.EXACT for x in shared)


def _title(group) -> str:
    return f"{group.lesson[:2]} {group.exercise}"


def _exercises(shared) -> str:
    return ", ".join(map(_title, shared))


def _side_by_side(group: equals.Group) -> list[str]:
    """What was written, each source once, with the names of all who wrote it so."""
    names = defaultdict(list)
    for one in sorted(group.answers, key=lambda x: x.student):
        names[one.source].append(one.student)
    number = f"{len(group.answers)} of the {group.of} who wrote a long one"
    lines = [f"<h3>{escape(_title(group))}: equal {group.how}; {number}</h3>"]
    lines.append('<div class="two">')
    for source, students in names.items():
        lines.append(f"<div><b>{escape(', '.join(students))}</b>")
        lines.append(f"<pre>{escape(source)}</pre></div>")
    return [*lines, "</div>"]
