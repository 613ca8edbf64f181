"""Read a saved notebook and run the cells that define its exercises.

Only cells tagged `setup` or `exercise` run: the demos between them may be slow, may
load the real model, and are not needed to check an answer.
"""

import ast
import contextlib
import contextvars
import linecache
import re
from dataclasses import dataclass, field
from pathlib import Path

from course.checks.limits import TimeLimit, time_limit
from course.checks.pristine import state_put_back
from course.kit.quickly import nbformat
from course.paths import shown

# True while a notebook is being loaded: `carry` then hands out references, so that an
# answer is never blamed for an earlier lesson's.
loading = contextvars.ContextVar("loading", default=False)


class NotebookProblem(AssertionError):
    """The notebook itself cannot be used. The message is for the learner."""


@dataclass
class Loaded:
    """What a notebook's tagged cells define, and what went wrong in which cell."""

    path: Path
    namespace: dict = field(default_factory=dict)
    exercises: dict = field(default_factory=dict)  # name -> the learner's object
    sources: dict = field(default_factory=dict)  # name -> source of its cell
    broken: list = field(default_factory=list)  # (cell source, cell name, exception)

    def get(self, name: str):
        """The exercise `name`, or a NotebookProblem that says why it is not there."""
        for source, cell, error in self.broken:
            if re.search(rf"^\s*(def|class)\s+{name}\b", source, re.MULTILINE):
                raise NotebookProblem(_cell_failed(self.path, cell, error)) from error
        if name in self.exercises:
            return self.exercises[name]
        for _, cell, error in self.broken:
            raise NotebookProblem(_cell_failed(self.path, cell, error)) from error
        where = shown(self.path)
        raise NotebookProblem(
            f"{where} does not define {name} in a cell tagged `exercise`. Was its cell "
            f"deleted, renamed or retyped? `git checkout {where}` brings the original "
            "back (and undoes your other edits in that file: copy them first)."
        )


def read(path: Path):
    """A notebook as nbformat v4. Raises NotebookProblem when it is not one."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotebookProblem(f"there is no notebook {shown(path)}") from None
    except UnicodeDecodeError as error:
        raise NotebookProblem(f"{shown(path)} is not UTF-8 text: {error}") from None
    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:
        reason = str(error).splitlines()[0][:150] if str(error) else repr(error)
        raise NotebookProblem(
            f"{shown(path)} is not a valid notebook ({reason}). Was it saved halfway, "
            "or edited as text? Save it again from Jupyter, or get the original back "
            f"with `git checkout {shown(path)}`."
        ) from None


def tags(cell) -> set:
    return set(cell.metadata.get("tags", ()))


def defined_names(source: str) -> list[str]:
    """Names that a cell defines at top level; none when it does not parse."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    names = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name)]
    return names


def load(path: Path, seconds: float = 60.0) -> Loaded:
    """Run the tagged cells of a saved notebook, each on its own account: a cell that
    fails costs its own exercise and no other."""
    path = Path(path)
    loaded = Loaded(path, namespace={"__name__": path.stem})
    token = loading.set(True)
    try:
        for n, cell in enumerate(read(path).cells):
            if cell.cell_type != "code" or not tags(cell) & {"setup", "exercise"}:
                continue
            name = f"{shown(path)}[cell {n}]"
            lines = cell.source.splitlines(True)
            linecache.cache[name] = (len(cell.source), None, lines, name)
            try:
                code = compile(cell.source, name, "exec")
                with time_limit(seconds), _no_exit(), state_put_back():
                    exec(code, loaded.namespace)
            except (Exception, TimeLimit) as error:
                loaded.broken.append((cell.source, name, error))
            else:
                if "exercise" in tags(cell):
                    for defined in defined_names(cell.source):
                        loaded.exercises[defined] = loaded.namespace[defined]
                        loaded.sources[defined] = cell.source
    finally:
        loading.reset(token)
    return loaded


@contextlib.contextmanager
def _no_exit():
    try:
        yield
    except SystemExit as error:
        raise RuntimeError("the cell calls exit(): remove that") from error


def _cell_failed(path, cell, error) -> str:
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
        hint = (
            " (a magic or shell command cannot stand in this cell)"
            if line[:1] in ("%", "!")
            else ""
        )
        return f"{cell}, line {error.lineno}: {error.msg}: {line}{hint}"
    if isinstance(error, TimeLimit):
        return f"{cell} was still running after {error.seconds:.0f} s and was stopped"
    return f"{cell} fails when it is run: {type(error).__name__}: {error}"
