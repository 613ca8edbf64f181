"""Mechanical mutants of the reference answers: one small change each.

A mutant that passes every check is a mistake that the checks would not see, unless it
computes the same. Those that do are listed, with the reason, in
tests/lessons/equivalent_mutants.py.
"""

import ast
import copy
import re
import runpy
from collections import Counter
from dataclasses import dataclass

from course.checks import checking, explain, plugin
from course.paths import SOLUTIONS, TESTS, tests_of

AROUND = 6  # words and signs of context in the name of a change
SECONDS = 3.0  # for each check of a mutant; most that take so long have no end
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = {"min": "max", "argmin": "argmax", "any": "all", "startswith": "endswith"}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}


@dataclass(frozen=True)
class Mutant:
    """One changed answer. `change` tells the statement before and after."""

    exercise: str
    change: str
    source: str


def mutants(name: str, source: str) -> list[Mutant]:
    """All mutants of the cell `source` that defines the exercise `name`."""
    times, made = Counter(), []
    for change, text in _changed(source):
        times[change] += 1
        number = f" (no. {times[change]})" if times[change] > 1 else ""
        made.append(Mutant(name, change + number, text))
    return made


def survives(mutant: Mutant, lesson: str) -> bool:
    """True if every check accepts the mutant."""
    names = dict(plugin.loaded(SOLUTIONS / f"{lesson}.ipynb").namespace)
    try:
        exec(compile(mutant.source, f"<mutant of {mutant.exercise}>", "exec"), names)
    except Exception:
        return False
    before, plugin.SECONDS = plugin.SECONDS, SECONDS
    try:
        files = [tests_of(lesson)]
        found = checking.run(mutant.exercise, names[mutant.exercise], files, stop=True)
    finally:
        plugin.SECONDS = before
    return all(verdict.state == explain.DONE for _, verdict in found)


def equivalent() -> dict[str, dict[str, str]]:
    """exercise -> {change: why it computes the same}"""
    return runpy.run_path(str(TESTS / "equivalent_mutants.py"))["EQUIVALENT"]


# --- making them ----------------------------------------------------------------------


def _changed(source: str):
    """(change, source) of each mutant, in the order of the source."""
    tree = ast.parse(source)
    for owner, field, index in _places(tree):
        for new in _replacements(_get(owner, field, index)):
            before = _get(owner, field, index)
            _put(owner, field, index, new)
            try:
                text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
            finally:
                _put(owner, field, index, before)
            yield _told(ast.unparse(tree), text), text


def _places(tree):
    """(owner, field, index) of every node that may be changed."""
    stack = [tree]
    while stack:
        node = stack.pop(0)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "ctx", "op", "ops"):
                continue
            if isinstance(node, ast.Raise) or _is_docstring(node, field):
                continue  # whether it is raised counts, not its words
            items = value if isinstance(value, list) else [value]
            for n, item in enumerate(items):
                if isinstance(item, ast.AST) and not _is_docstring(item, "value"):
                    yield node, field, n if isinstance(value, list) else None
                    if not _is_negative(item):
                        stack.append(item)


def _is_negative(node) -> bool:
    """-1 and its like."""
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and isinstance(node.operand.value, int)
    )


def _is_docstring(node, field) -> bool:
    return (
        isinstance(node, ast.Expr)
        and field == "value"
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _get(owner, field, index):
    value = getattr(owner, field)
    return value if index is None else value[index]


def _put(owner, field, index, node):
    if index is None:
        setattr(owner, field, node)
    else:
        getattr(owner, field)[index] = node


def _replacements(node):
    """What may stand in the place of `node`: each a plausible slip."""
    if _is_negative(node):
        # Not -1 -> 1: the last of two dimensions is the same one.
        number = node.operand.value
        yield from (ast.Constant(0), ast.Constant(-number - 1))
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _other_values(node.value))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in COMPARISONS[type(node.ops[0])]:
            yield ast.Compare(node.left, [op()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(other, node.values)
        yield from node.values
    elif isinstance(node, ast.Slice):
        if node.lower is not None:
            yield ast.Slice(None, node.upper, node.step)
        if node.upper is not None:
            yield ast.Slice(node.lower, None, node.step)
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, (ast.If, ast.While)):
        yield from (_with(node, test=ast.Constant(x)) for x in (True, False))
    elif isinstance(node, ast.With):
        yield ast.If(ast.Constant(True), node.body, [])
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(
        node,
        (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Break, ast.Continue),
    ):
        yield ast.Pass()


def _other_values(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2, value + 1] if value else [1.0]
    return [value + "x"] if isinstance(value, str) and value else []


def _other_calls(node):
    for n in range(len(node.keywords)):
        kept = node.keywords[:n] + node.keywords[n + 1 :]
        yield ast.Call(node.func, node.args, kept)
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in OPPOSITES:
            name = OPPOSITES[node.func.attr]
            func = ast.Attribute(node.func.value, name, ast.Load())
            yield ast.Call(func, node.args, node.keywords)
        if not isinstance(node.func.value, ast.Name) or not node.args:
            yield node.func.value  # x.float() -> x
    elif isinstance(node.func, ast.Name) and node.func.id == "range":
        for op in (ast.Add(), ast.Sub()):
            end = ast.BinOp(node.args[-1], op, ast.Constant(1))
            yield ast.Call(node.func, [*node.args[:-1], end], [])
    elif isinstance(node.func, ast.Name) and node.func.id in OPPOSITES:
        func = ast.Name(OPPOSITES[node.func.id], ast.Load())
        yield ast.Call(func, node.args, node.keywords)


def _with(node, **fields):
    new = copy.copy(node)
    for field, value in fields.items():
        setattr(new, field, value)
    return new


def _told(before: str, after: str) -> str:
    """What differs, with a little of what stands around it: "old → new"."""
    old, new = _words(before), _words(after)
    start = next((n for n, (a, b) in enumerate(zip(old, new)) if a != b), len(new))  # noqa: B905
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    head = "".join(old[max(0, start - AROUND) : start]).lstrip()
    tail = "".join(old[len(old) - end : len(old) - end + AROUND]).rstrip()
    parts = ("".join(x[start : len(x) - end]) for x in (old, new))
    return " → ".join(f"{head}{part}{tail}" for part in parts)


def _words(source: str) -> list[str]:
    """The parts of a source text, line ends and indents as single spaces."""
    return re.findall(r"\w+|\s|[^\w\s]", re.sub(r"\s*\n\s*", " ", source))
