"""Answers of different students that are the same but for names, comments and layout.

Two right answers of a few lines are often the same by themselves: what is short is not
compared, nor is a stub. What is our own answer is named as such: anybody may ask for it
with `python start.py answer`. The rest is a hint, and no verdict.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from course.checks import cells, notebook
from course.saved import books
from course.teaching.grading.standings import (
    Student,
    counting,
    labels,
    lessons_of,
)

SHORT = 50  # nodes of the syntax tree beyond the stub's: about four plain lines
EXACT, RENAMED = "to the character", "but for names, comments and layout"
OURS, OUR_FORM = "our own answer, with our names", "in the form of our own answer"


@dataclass(frozen=True)
class Answer:
    """One student's, as written, and in the forms that are compared: `own` without
    comments, docstrings and annotations, `form` also without the names."""

    student: str
    source: str
    own: str
    form: str


@dataclass(frozen=True)
class Group:
    """Answers to one exercise that have one form."""

    lesson: str
    exercise: str
    how: str  # EXACT or RENAMED
    ours: str  # "", OURS or OUR_FORM
    answers: tuple[Answer, ...]
    of: int  # how many students have written one

    @property
    def students(self) -> tuple[str, ...]:
        return tuple(sorted(x.student for x in self.answers))


# --- one answer -----------------------------------------------------------------------


def answer(student: str, source: str, name: str, given: int = 0) -> Answer | None:
    """None for what does not parse and for what is too short to say anything. given:
    the size of the stub."""
    try:
        lines, definition = _definition(source, name)
        if size(definition) - given < SHORT:
            return None
        own = ast.unparse(definition)
        form = ast.unparse(_Unnamed(definition).visit(definition))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    text = "\n".join(x.rstrip() for x in lines.splitlines() if x.strip())
    return Answer(student, text, own, form)


def _definition(source: str, name: str) -> tuple[str, ast.AST]:
    """(source, bare tree) of what defines `name`; of all where nothing does."""
    tree = cells.tree(source)
    found = [x for x in tree.body if getattr(x, "name", "") == name]
    definition = found[-1] if found else tree
    lines = found and ast.get_source_segment(source, definition)
    return lines or source, ast.fix_missing_locations(_Bare().visit(definition))


def size(definition: ast.AST) -> int:
    return sum(1 for _ in ast.walk(definition))


class _Bare(ast.NodeTransformer):
    """Without docstrings and annotations."""

    def _body(self, node):
        self.generic_visit(node)
        node.returns = None
        return self._without_docstring(node)

    def _without_docstring(self, node):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _body

    def visit_ClassDef(self, node):
        self.generic_visit(node)
        return self._without_docstring(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


class _Unnamed(ast.NodeTransformer):
    """With numbers for the names that it binds, in the order in which they come."""

    def __init__(self, definition):
        nodes = list(ast.walk(definition))
        used = {x.id for x in nodes if isinstance(x, ast.Name)}
        self.bound = {x.arg for x in nodes if isinstance(x, ast.arg)} | {
            x.id
            for x in nodes
            if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
        }
        inner = [x for x in nodes if isinstance(x, ast.FunctionDef)]
        self.bound |= {x.name for x in inner if x.name in used and x is not definition}
        self.numbers = {}

    def _new(self, name):
        if name not in self.bound:
            return name
        return self.numbers.setdefault(name, f"v{len(self.numbers)}")

    def visit_arg(self, node):
        node.arg = self._new(node.arg)
        return node

    def visit_Name(self, node):
        node.id = self._new(node.id)
        return node

    def visit_FunctionDef(self, node):
        node.name = self._new(node.name)
        return self.generic_visit(node)


# --- a class --------------------------------------------------------------------------


def written(text: str, lesson: str) -> dict[str, str]:
    """{exercise: the source of the cell that counts} of a notebook, without stubs."""
    try:
        book = notebook.parse(text)
        places = notebook.plan(book, lesson).answer
    except Exception:  # what is no notebook has been said to be none
        return {}
    sources = {name: book.cells[n].source for name, n in places.items()}
    return {n: s for n, s in sources.items() if not notebook.is_stub(s, n)}


def groups(found: list[Student], rows: list[dict], text_of) -> list[Group]:
    """All groups of equal answers. text_of(path): a notebook's text."""
    made = []
    for lesson in lessons_of(rows):
        answers, given = defaultdict(list), _given(lesson)
        for label, student in zip(labels(found), found, strict=True):
            if path := counting(student, lesson):
                for name, source in written(text_of(path), lesson).items():
                    one = answer(label, source, name, given[name])
                    answers[name] += [one] if one else []
        for exercise in books.exercises(lesson):
            made += _groups_of(exercise, answers[exercise.name])
    return made


@lru_cache
def _given(lesson: str) -> dict[str, int]:
    """{exercise: the size of its stub}"""
    stubs = {x.name: x.stub for x in books.exercises(lesson)}
    return {name: size(_definition(stub, name)[1]) for name, stub in stubs.items()}


def _groups_of(exercise: books.Exercise, answers: list[Answer]) -> list[Group]:
    given = _given(exercise.lesson)[exercise.name]
    ours = answer("", exercise.answer, exercise.name, given)
    same = defaultdict(list)
    for one in answers:
        same[one.form].append(one)
    made = []
    for form, alike in same.items():
        about = {"lesson": exercise.lesson, "exercise": exercise.name}
        about["of"] = len(answers)
        if ours and form == ours.form:
            kinds = {OURS: [], OUR_FORM: []}
            for one in alike:
                kinds[OURS if one.own == ours.own else OUR_FORM].append(one)
            made += [
                Group(**about, how=RENAMED, ours=kind, answers=tuple(mine))
                for kind, mine in kinds.items()
                if mine
            ]
        elif len(alike) > 1:
            how = EXACT if len({x.source for x in alike}) == 1 else RENAMED
            made.append(Group(**about, how=how, ours="", answers=tuple(alike)))
    return made


def together(groups: list[Group]) -> list[tuple[tuple[str, ...], list[Group]]]:
    """(students, their groups), those first who share most."""
    found = defaultdict(list)
    for group in groups:
        if not group.ours:
            found[group.students].append(group)

    def weight(item):
        students, shared = item
        exact = sum(x.how == EXACT for x in shared)
        return -len(shared), -exact, len(students), students

    return sorted(found.items(), key=weight)


COLUMNS = ["lesson", "exercise", "students", "number", "of", "equal", "note"]


def as_rows(groups: list[Group]) -> list[dict]:
    return [
        {
            "lesson": x.lesson,
            "exercise": x.exercise,
            "students": ", ".join(x.students),
            "number": len(x.answers),
            "of": x.of,
            "equal": x.how if not x.ours else "",
            "note": x.ours,
        }
        for x in groups
    ]
