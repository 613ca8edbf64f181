"""Read a saved notebook and run the cells that define its exercises.

Only set-up cells and exercises run: the demos between them may be slow, may load the
real model, and are not needed to check an answer. Cells are known by their tags, and
where an editor has lost these, by their ids and by what they define. The terminal,
`carry`, grading and nbgrader all come this way, so that they say the same.
"""

import ast
import builtins
import contextlib
import contextvars
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nbformat

from course.checks import cells, explain
from course.checks.limits import TimeLimit, time_limit
from course.checks.pristine import state_put_back
from course.paths import SOLUTIONS, exercise_names, lesson_names, shown

# The lesson whose saved notebook is being run or checked, else "". `carry` then gives
# references, of earlier lessons only: an answer is blamed for nothing but itself.
loading = contextvars.ContextVar("loading", default="")


class NotebookProblem(AssertionError):
    """The notebook itself cannot be used. The message is for the learner."""


# --- reading --------------------------------------------------------------------------


def text_of(data: bytes) -> str:
    """The text of a notebook's file, whatever mark an editor has put before it."""
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def read(path: Path):
    """A notebook as nbformat v4. Raises NotebookProblem when it is not one."""
    path = Path(path)
    try:
        text = text_of(path.read_bytes())
    except FileNotFoundError:
        raise NotebookProblem(f"there is no notebook {shown(path)}") from None
    try:
        return parse(text)
    except Exception as error:
        reason = str(error).splitlines()[0][:150] if str(error) else repr(error)
        raise NotebookProblem(
            f"{shown(path)} is not a valid notebook ({reason}). Was it saved halfway, "
            "or edited as text? Save it again from Jupyter, or get the original back: "
            f"keep a copy of the file, then `git checkout {shown(path)}`."
        ) from None


def parse(text: str):
    """A notebook's text as nbformat v4, as far as it can be read. Raises, in nbformat's
    words, where it cannot."""
    text = text.removeprefix("\ufeff")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        text = json.dumps(_whole(json.loads(text)))
    try:
        book = nbformat.reads(text, as_version=4)
        if all(isinstance(c.source + c.cell_type, str) for c in book.cells):
            [dict(cell.metadata) for cell in book.cells]
            return book
    except Exception:
        # What is wrong may stand in an output or in metadata, which nobody needs.
        with contextlib.suppress(Exception):
            return _bare(json.loads(text))
        raise
    return _bare(json.loads(text))


def _whole(value):
    """JSON without half characters, as a cut through an emoji leaves them: no file can
    hold them, and Python will not compile them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_whole(x) for x in value]
    if isinstance(value, dict):
        return {_whole(k): _whole(v) for k, v in value.items()}
    return value


def _bare(data: dict):
    """The notebook with nothing but the sources and the tags of its cells, as far as
    they can be read. Raises where none can."""
    book = nbformat.v4.new_notebook()
    for cell in data["cells"]:
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            code = cell["cell_type"] == "code"
            make = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
            source, about = cell["source"], cell.get("metadata")
            tagged = about.get("tags") if isinstance(about, dict) else None
            kept = [tag for tag in tagged or () if isinstance(tag, str)]
            named = {"id": cell["id"]} if isinstance(cell.get("id"), str) else {}
            book.cells.append(make("".join(source), metadata={"tags": kept}, **named))
    if not book.cells:
        raise ValueError("none of its cells can be read")
    return book


def tags(cell) -> set:
    found = cell.metadata.get("tags", ())
    return {tag for tag in found if isinstance(tag, str)} if found else set()


def defined_names(source: str) -> list[str]:
    """Names that a cell defines at top level; none when it does not parse."""
    return cells.bound_names(source)


# --- which lesson is it? --------------------------------------------------------------


def lesson_at(path: Path) -> str:
    """The lesson of the notebook at `path`, also where it is a copy of another name;
    "" where it is none."""
    path = Path(path)
    if named := _named_in(path.stem):
        return named
    with contextlib.suppress(OSError):
        return lesson_of(path.name, text_of(path.read_bytes()))
    return ""


def lesson_of(name: str, text: str) -> str:
    """The lesson that a notebook's file name holds; else the one most of whose
    exercises it defines; else the one in the name of a folder; else ""."""
    folders, _, file = name.rpartition("/")
    return _named_in(file) or _defined_in(text) or _named_in(folders)


def _named_in(name: str) -> str:
    words = f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_"
    found = [lesson for lesson in lesson_names() if f"_{lesson}_" in words]
    return max(found, key=len, default="")


def _defined_in(text: str) -> str:
    try:
        sources = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    defined = set(re.findall(r"^(?:def|class) (\w+)", sources, re.MULTILINE))
    found = {x: len(defined & set(exercise_names(x))) for x in lesson_names()}
    best = max(found, key=found.get)
    return best if found[best] else ""


# --- which cells count? ---------------------------------------------------------------


@dataclass
class Plan:
    """The cells of a notebook that a check needs, by their places."""

    setup: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)  # set-up and exercises
    answer: dict[str, int] = field(default_factory=dict)  # exercise -> its cell
    several: dict[str, list[int]] = field(default_factory=dict)  # all that define it
    setup_is_lost: bool = False


@lru_cache(maxsize=64)
def _ours(lesson: str) -> list[tuple[str, frozenset, str]]:
    """(id, tags, source) of each code cell of our notebook."""
    path = SOLUTIONS / f"{lesson}.ipynb"
    if not path.exists():  # a new lesson, not built yet
        return []
    book = _bare(json.loads(path.read_text(encoding="utf-8")))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    return [(cell.id, frozenset(tags(cell)), cell.source) for cell in code]


def plan(book, lesson: str = "") -> Plan:
    """Which cells of a notebook are set-up, and which hold the answers to the lesson's
    exercises: the tagged one; where that is still a stub, another that defines it."""
    made, exercise_cells, definitions = Plan(), set(), {}
    ours = _ours(lesson) if lesson else []
    known = {name: kinds for name, kinds, _ in ours}
    kinds_of = {source: kinds for _, kinds, source in ours}
    names = exercise_names(lesson)
    for n, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        own = tags(cell) & {"setup", "exercise"}
        first = known.get(cell.get("id"), kinds_of.get(cell.source))
        kinds = own or (first or set()) & {"setup", "exercise"}
        if "setup" in kinds:
            made.setup.append(n)
        elif "exercise" in kinds:
            exercise_cells.add(n)
        elif first is not None:
            continue  # a demo or a check of ours
        for name in set(names) & set(bound_or_meant(cell.source)):
            definitions.setdefault(name, []).append(n)
    for name, places in definitions.items():
        written = [n for n in places if not is_stub(book.cells[n].source, name)]
        # Run All checks what the last cell before the check has defined.
        before = [n for n in written if n <= _place_of_check(book, name)]
        tagged = [n for n in places if n in exercise_cells] or places
        made.answer[name] = (before or written or tagged)[-1]
        made.several[name] = written
    made.setup_is_lost = bool(lesson) and not made.setup
    made.run = sorted({*made.setup, *exercise_cells, *made.answer.values()})
    return made


def bound_or_meant(source: str) -> list[str]:
    """The names that a cell defines, or would if it were valid Python."""
    return defined_names(source) or re.findall(
        r"^(?:async\s+def|def|class)\s+(\w+)", source, re.MULTILINE
    )


def _place_of_check(book, name: str) -> float:
    call = re.compile(rf"^check\({name}\)", re.MULTILINE)
    for n, cell in enumerate(book.cells):
        if cell.cell_type == "code" and call.search(cell.source):
            return n
    return float("inf")


def is_stub(source: str, name: str = "") -> bool:
    """Whether a cell's answer is not written yet, or is ours, brought by `carry`."""
    return "raise NotImplementedError" in source or name in _carried(source)


def _carried(source: str) -> set[str]:
    try:
        return {cells.carries(x) for x in cells.tree(source).body} - {""}
    except SyntaxError:
        return set()


# --- running --------------------------------------------------------------------------


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
        raise NotebookProblem(
            f"the notebook {where} does not define {name}. Was its cell deleted or "
            f"renamed? Keep a copy of your file; `git checkout {where}` then brings "
            "the original back."
        )

    def usable(self, name: str) -> bool:
        """Whether another exercise can build on this one."""
        return name not in self.stubs and callable(self.exercises.get(name))


def load(path: Path, seconds: float = 60.0) -> Loaded:
    """Run the cells of a saved notebook that a check needs, each on its own account: a
    cell that fails costs its own exercise and no other."""
    path = Path(path)
    book = read(path)
    reference = path.parent == SOLUTIONS
    lesson = lesson_at(path)
    loaded = Loaded(path, lesson, cells.names(check=lambda *_, **__: None))
    made = plan(book, "" if reference else lesson)
    if reference:
        for n in made.run:
            for name in set(exercise_names(lesson)) & set(
                defined_names(book.cells[n].source)
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
            name: _cell_shown(book, places[0][0])
            for name, places in self.elsewhere.items()
        }

    def _bound(self, n):
        return defined_names(self.book.cells[n].source)

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
                shown_cells = " and ".join(_cell_shown(self.book, n) for n in several)
                self.loaded.notes[name] = (
                    f"{name} is defined more than once, in {shown_cells}; this is "
                    f"about {_cell_shown(self.book, self.plan.answer[name])}"
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
                if is_stub(source):
                    self.loaded.stubs.add(x)
            elif error is not None:
                told = _cell_failed(name, error, self.shell.not_run, self.namespace)
                self.loaded.problems[x] = NotebookProblem(told)
            elif x in carried:
                told = f"{x} is ours, brought by carry: yours is not written yet"
                self.loaded.problems[x] = explain.Unwritten(told)

    def _name(self, n):
        return f"{shown(self.loaded.path)}[cell {n}]"

    def _run_our_setup(self):
        for _, kinds, source in _ours(self.loaded.lesson) if self.loaded.lesson else ():
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
                f"{_cell_shown(book, text[-1])} of {where} holds {name} as text: "
                "select it and press Esc, then Y, to make it code again."
            )
        elif renamed:
            found = " and ".join(f"{x} in {_cell_shown(book, n)}" for n, x in renamed)
            told = (
                f"{where} does not define {name}. It defines {found}: was {name} "
                "renamed?"
            )
        if told:
            self.loaded.problems[name] = NotebookProblem(told)


def _definitions(book, made: Plan) -> dict[str, list[tuple[int, ast.stmt]]]:
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


def _cell_shown(book, n: int) -> str:
    """A cell, so that a reader finds it: its place and its first line."""
    lines = [x.strip() for x in book.cells[n].source.splitlines() if x.strip()]
    first = lines[0] if lines else ""
    return f"cell {n} (`{first[:50]}{' ...' if len(first) > 50 else ''}`)"


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
