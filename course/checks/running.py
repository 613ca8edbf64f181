"""Run the cells of a saved notebook that define its exercises.

Only set-up cells and exercises run: the demos between them may be slow, may load the
real model, and are not needed to check an answer. The terminal, `carry`, grading and
nbgrader all come this way, so that they say the same.
"""

import ast
import builtins
import contextlib
import contextvars
import re
from dataclasses import dataclass, field
from pathlib import Path

from course.checks import cells, explain, notebook
from course.checks.limits import TimeLimit, time_limit
from course.checks.notebook import cell_shown
from course.checks.pristine import state_put_back
from course.paths import COMMAND, SOLUTIONS, exercise_names, shown
from course.saved import which

# The lesson whose saved notebook is being run or checked, else "". `carry` then gives
# references, of earlier lessons only: an answer is blamed for nothing but itself.
loading = contextvars.ContextVar("loading", default="")


@dataclass
class Loaded:
    """What a notebook's cells define, and what went wrong in which cell."""

    path: Path
    lesson: str = ""
    namespace: dict = field(default_factory=dict)
    exercises: dict = field(default_factory=dict)  # name -> the learner's object
    sources: dict = field(default_factory=dict)  # name -> source of its cell
    stubs: set = field(default_factory=set)  # exercises that are not written yet
    problems: dict = field(default_factory=dict)  # name -> what to raise for it
    notes: dict = field(default_factory=dict)  # name -> what to say with a failure

    def get(self, name: str):
        """The exercise `name`; else raises NotebookProblem, which says why it is not
        there, or explain.Unwritten where it is ours."""
        if name in self.exercises:
            return self.exercises[name]
        if name in self.problems:
            raise self.problems[name].with_traceback(None)
        where = shown(self.path)
        raise notebook.NotebookProblem(
            f"the notebook {where} does not define {name}. Was its cell deleted or "
            f"renamed? `{COMMAND} reset {name}` brings it back, and keeps a backup."
        )

    def usable(self, name: str) -> bool:
        """Whether another exercise can build on this one."""
        return name not in self.stubs and callable(self.exercises.get(name))


def load(path: Path, seconds: float = 60.0) -> Loaded:
    """Run the cells of a saved notebook that a check needs, each on its own account: a
    cell that fails costs its own exercise and no other."""
    path = Path(path)
    book = notebook.read(path)
    reference = path.parent == SOLUTIONS
    lesson = which.lesson_at(path)
    loaded = Loaded(path, lesson, cells.names(check=lambda *_, **__: None))
    made = notebook.plan(book, "" if reference else lesson)
    if reference:
        for n in made.run:
            for name in set(exercise_names(lesson)) & set(
                notebook.defined_names(book.cells[n].source)
            ):
                made.answer[name] = n
    token = loading.set(lesson or "none")
    try:
        _Loading(loaded, book, made, seconds, helpers=not reference).all()
    finally:
        loading.reset(token)
    return loaded


class _Loading:
    """Runs the cells of a plan into a Loaded."""

    def __init__(self, loaded, book, made, seconds, helpers):
        self.loaded, self.book, self.plan, self.seconds = loaded, book, made, seconds
        self.namespace, self.future = loaded.namespace, 0
        self.shell = self.namespace[cells.SHELL]()
        self.elsewhere = _definitions(book, made) if helpers else {}
        self.coming = {x for n in made.run for x in self._bound(n)}
        self.namespace[explain.OTHER_CELLS] = {
            name: cell_shown(book, places[0][0])
            for name, places in self.elsewhere.items()
        }

    def _bound(self, n):
        return notebook.defined_names(self.book.cells[n].source)

    def all(self):
        if self.plan.setup_is_lost:
            self._run_our_setup()
        for n in self.plan.run:
            self._cell(n)
        for name in exercise_names(self.loaded.lesson):
            if name not in self.loaded.exercises and name not in self.loaded.problems:
                self._say_where_it_went(name)
            several = self.plan.several.get(name, [])
            if len(several) > 1:
                shown_cells = " and ".join(cell_shown(self.book, n) for n in several)
                self.loaded.notes[name] = (
                    f"{name} is defined more than once, in {shown_cells}; this is "
                    f"about {cell_shown(self.book, self.plan.answer[name])}"
                )

    def _cell(self, n):
        source, name = self.book.cells[n].source, self._name(n)
        mine = [x for x, place in self.plan.answer.items() if place == n]
        before = {x: self.namespace.get(x) for x in mine}
        cells.remember(source, name)
        carried, error = set(), None
        try:
            module = cells.tree(source, name, self.future)
            carried = {cells.carries(x) for x in module.body} & {*mine}
            module.body = [x for x in module.body if cells.carries(x) not in carried]
            self._find_helpers(module, n)
            self.shell.not_run.clear()
            with time_limit(self.seconds), _no_exit(), state_put_back():
                self.future = cells.run(module, name, self.namespace, self.future)
        except (Exception, TimeLimit) as problem:
            error = problem
            if n in self.plan.setup:
                self._run_our_setup()
        for x in mine:
            # As in a notebook, what stood before the line that failed is there.
            made = self.namespace.get(x) is not before[x]
            if made and not isinstance(error, TimeLimit):
                self.loaded.exercises[x] = self.namespace[x]
                self.loaded.sources[x] = source
                if notebook.is_stub(source):
                    self.loaded.stubs.add(x)
            elif error is not None:
                told = _cell_failed(name, error, self.shell.not_run, self.namespace)
                self.loaded.problems[x] = notebook.NotebookProblem(told)
            elif x in carried:
                told = f"{x} is ours, brought by carry: yours is not written yet"
                self.loaded.problems[x] = explain.Unwritten(told)

    def _name(self, n):
        return f"{shown(self.loaded.path)}[cell {n}]"

    def _run_our_setup(self):
        for _, kinds, source in notebook.ours_of(self.loaded.lesson):
            if "setup" in kinds:
                with contextlib.suppress(Exception), state_put_back():
                    cells.run(cells.tree(source), "<set-up>", self.namespace)

    def _find_helpers(self, module, n, seen=()):
        """Run the definitions in other cells that this code needs and that do nothing
        but define: what is above comes before what is below."""
        needed = cells.needed_names(module) - self.coming - set(seen)
        for x in sorted(needed & set(self.elsewhere)):
            if x in self.namespace or hasattr(builtins, x):
                continue
            places = self.elsewhere[x]
            above = [place for place in places if place[0] < n]
            place, statement = above[-1] if above else places[0]
            if not cells.is_definition(statement):
                continue
            self._find_helpers(statement, n, (*seen, x))
            one = ast.Module([statement], [])
            name = self._name(place)
            cells.remember(self.book.cells[place].source, name)
            with (
                contextlib.suppress(Exception, TimeLimit),  # then it is missing
                time_limit(self.seconds),
                _no_exit(),
                state_put_back(),
            ):
                cells.run(one, name, self.namespace)

    def _say_where_it_went(self, name):
        where, book = shown(self.loaded.path), self.book
        head = re.compile(rf"^\s*(def|class)\s+{name}\b", re.MULTILINE)
        text = [
            n
            for n, cell in enumerate(book.cells)
            if cell.cell_type != "code" and head.search(cell.source)
        ]
        known = {*exercise_names(self.loaded.lesson)}
        renamed = [
            (n, x)
            for n in self.plan.run
            if n not in self.plan.setup and not known & set(self._bound(n))
            for x in self._bound(n)[:1]
        ]
        told = ""
        if text:
            told = (
                f"{cell_shown(book, text[-1])} of {where} holds {name} as text: "
                "select it and press Esc, then Y, to make it code again."
            )
        elif renamed:
            found = " and ".join(f"{x} in {cell_shown(book, n)}" for n, x in renamed)
            told = (
                f"{where} does not define {name}. It defines {found}: was {name} "
                "renamed?"
            )
        if told:
            self.loaded.problems[name] = notebook.NotebookProblem(told)


def _definitions(book, made: notebook.Plan) -> dict[str, list[tuple[int, ast.stmt]]]:
    """name -> (cell, statement) of all that the cells outside the plan define."""
    found = {}
    for n, cell in enumerate(book.cells):
        if cell.cell_type != "code" or n in made.run:
            continue
        with contextlib.suppress(SyntaxError):
            for statement in cells.tree(cell.source).body:
                for name in dict.fromkeys(cells._bound([statement])):
                    if name not in made.answer:
                        found.setdefault(name, []).append((n, statement))
    return found


@contextlib.contextmanager
def _no_exit():
    try:
        yield
    except SystemExit as error:
        raise RuntimeError("the cell calls exit(): remove that") from error


def _cell_failed(cell, error, not_run, namespace) -> str:
    if isinstance(error, SyntaxError):
        return f"{cell}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    if isinstance(error, TimeLimit):
        return f"{cell} was still running after {error.seconds:.0f} s and was stopped"
    told = f"{cell} fails when it is run: {type(error).__name__}: {error}"
    if isinstance(error, NameError):
        told += explain.where_it_is(error.name, namespace)
    if not_run:
        told += f" (`{not_run[0]}` is not run when a saved notebook is checked)"
    return told
