"""Run a cell of a saved notebook as IPython would: its magics, its names, its `await`.

What only shows or measures something does its harmless part: `%%time` runs its cell,
`%timeit` and `name?` do nothing. Shell commands are not run.
"""

import __future__

import ast
import asyncio
import contextvars
import inspect
import linecache
import re
import threading

AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
FUTURE = sum(
    getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
)
# Magics that run what they are given in the notebook's own names. (`%%timeit` does not:
# what it defines is gone afterwards, in a notebook, too.)
RUN = ("time", "capture", "prun")
SHELL = "get_ipython"


def plain(source: str) -> str:
    """The Python of a cell, line for line: magics become calls, or go."""
    magic = re.match(r"\s*%%(\w+).*\n?", source)
    if magic:
        body = source[magic.end() :]
        return "\n" * magic[0].count("\n") + (plain(body) if magic[1] in RUN else "")
    try:
        compile(source, "", "exec", AWAIT | ast.PyCF_ONLY_AST, dont_inherit=True)
        return source
    except (SyntaxError, ValueError):
        pass
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        text = TransformerManager().transform_cell(source)
    except SyntaxError:
        return source
    blank = len(source) - len(source.lstrip("\n"))  # which it takes away
    return "\n" * blank + text


def tree(source: str, name: str = "", future: int = 0) -> ast.Module:
    """A cell's syntax tree. Raises SyntaxError, in the words of the cell."""
    flags = AWAIT | future | ast.PyCF_ONLY_AST
    try:
        return compile(plain(source), name, "exec", flags, dont_inherit=True)
    except ValueError as error:  # a null byte
        raise SyntaxError(str(error)) from None


def run(module: ast.Module, name: str, namespace: dict, future: int = 0) -> int:
    """Run a cell's tree; the `from __future__` features that hold from here on."""
    code = compile(module, name, "exec", AWAIT | future, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        _wait_for(eval(code, namespace))
    else:
        exec(code, namespace)
    return future | code.co_flags & FUTURE


def _wait_for(coroutine):
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # In a notebook's kernel, whose own loop is busy running this.
    failed, context = [], contextvars.copy_context()

    def wait():
        try:
            context.run(asyncio.run, coroutine)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return None


def remember(source: str, name: str):
    """Let tracebacks show the lines of a cell."""
    linecache.cache[name] = len(source), None, source.splitlines(True), name


def names(check) -> dict:
    """What a notebook's code finds defined before its first cell has run. `check` is
    what a check in an exercise's own cell does."""
    namespace = {"__name__": "__main__", "display": display, "check": check}
    namespace |= {"In": [""], "Out": {}, "_": "", "__": "", "___": ""}
    shell = ZMQInteractiveShell(namespace)
    namespace[SHELL] = lambda: shell
    return namespace


def display(*objects, **options):
    """As IPython's, where nothing but text can be shown."""
    for one in objects:
        print(one)


class ZMQInteractiveShell:
    """What `get_ipython()` gives to a saved notebook: under the name by which code
    knows Jupyter, and with what does no harm."""

    def __init__(self, namespace: dict):
        self.user_ns = self.user_global_ns = namespace
        self.not_run = []  # shell commands

    def run_line_magic(self, name, line="", *_, **__):
        if name not in RUN:
            return None
        try:
            code = compile(line, f"%{name}", "eval")
        except SyntaxError:
            return exec(compile(line, f"%{name}", "exec"), self.user_ns)
        return eval(code, self.user_ns)

    def run_cell_magic(self, name, line="", cell=""):
        if name in RUN:
            run(tree(cell), f"%%{name}", self.user_ns)

    def system(self, command):
        self.not_run.append(f"!{command}")

    def getoutput(self, command, *_, **__):
        self.system(command)
        return []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Nothing:
    """Every part of IPython that a saved notebook does not have."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_, **__):
        return None


# --- what a cell defines and what it needs, without running it ------------------------


def bound_names(source: str) -> list[str]:
    """Names that a cell sets at top level, in order; none when it does not parse."""
    try:
        return list(dict.fromkeys(_bound(tree(source).body)))
    except SyntaxError:
        return []


def _bound(body):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0]
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    yield from _bound([child])
                elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                    yield from _bound(child.body)
                else:
                    yield from _set_in(child)


def _set_in(expression):
    for node in ast.walk(expression):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def needed_names(node: ast.AST) -> set[str]:
    """Names that a piece of code reads (its own variables among them)."""
    return {
        n.id
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }


# Builtins that an assignment may call and still be nothing but a constant.
_QUICK = {
    *(abs, bool, bytes, complex, dict, enumerate, float, frozenset, int, len, list),
    *(map, max, min, pow, range, repr, reversed, round, set, slice, sorted, str, sum),
    *(tuple, zip),
}
_QUICK_NAMES = {"carry", *(x.__name__ for x in _QUICK)}
_QUICK_MODULES = {"math", "np", "numpy", "torch"}


def is_definition(statement: ast.stmt) -> bool:
    """Whether a statement does no more than define something: an import, a function, a
    class, a constant. It loads no model and takes no time."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        calls = [n.func for n in ast.walk(statement) if isinstance(n, ast.Call)]
        waits = any(isinstance(n, ast.Await) for n in ast.walk(statement))
        return not waits and all(_is_quick(call) for call in calls)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(statement, (ast.Import, ast.ImportFrom, *definitions))


def _is_quick(called) -> bool:
    if isinstance(called, ast.Name):
        return called.id in _QUICK_NAMES
    while isinstance(called, ast.Attribute):
        if called.attr in ("load", "hub"):
            return False
        called = called.value
    return isinstance(called, ast.Name) and called.id in _QUICK_MODULES


def carries(statement: ast.stmt) -> str:
    """The exercise of `name = carry("name")`, which takes ours; else ""."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ""
    target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Name) or not isinstance(value, ast.Call):
        return ""
    called = getattr(value.func, "id", getattr(value.func, "attr", ""))
    same = [getattr(a, "value", None) for a in value.args] == [target.id]
    return target.id if called == "carry" and same else ""
