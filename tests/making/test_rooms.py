"""The house: rooms with one reason each, and imports between them that point down."""

import ast
from pathlib import Path

import pytest

from course.moved import MOVED
from course.paths import ROOT

# From the top to the bottom. A room may import from those that stand below it.
ROOMS = (
    "course.__main__",
    "course.teaching",
    "course.making",
    "course",  # the face: `from course import check, carry, hint, ...`
    "course.learner",
    "course.checks",
    "course.saved",
    "course.kit",
    "tiny_models",
    "course.moved",
    "course.paths",
)
FILES = 12  # in one room
LINES = 400  # in one file
CODE = [
    path
    for folder in ("course", "tiny_models")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room(name: str) -> str:
    """The room of a module: the longest name in ROOMS that it begins with."""
    return max((r for r in ROOMS if f"{name}.".startswith(f"{r}.")), key=len)


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).is_dir()
                is_module |= (
                    (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                )
                found.add(inner if is_module else node.module)
    return {name for name in found if name.split(".")[0] in ("course", "tiny_models")}


@pytest.mark.parametrize("path", CODE, ids=module)
def test_imports_between_rooms_point_down(path):
    here = room(module(path))
    up = [x for x in imports(path) if ROOMS.index(room(x)) < ROOMS.index(here)]
    assert not up, f"{module(path)} is in {here}, and imports from above: {up}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {module(path): imports(path) for path in CODE}
    circles = []

    def visit(name, trail):
        if name in trail:
            circles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*trail, name])
            done.add(name)

    done = set()
    for name in sorted(graph):
        visit(name, [])
    assert not circles, circles


def test_no_room_has_more_files_than_one_can_keep_in_mind():
    for folder in {path.parent for path in CODE}:
        files = [p for p in folder.glob("*.py") if not p.name.startswith("__")]
        assert len(files) <= FILES, f"{folder} has {len(files)} files: make room"


@pytest.mark.parametrize("path", [*CODE, ROOT / "start.py"], ids=lambda p: p.name)
def test_no_file_of_the_machinery_is_too_long_to_read(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{path.name} has {lines} lines: it does several things"


def test_the_tests_lie_beside_what_they_test():
    folders = {
        "lessons",
        "checks",
        "learner",
        "saved",
        "kit",
        "making",
        "teaching",
        "models",
    }
    there = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
    assert there - {"__pycache__"} <= folders
    loose = {path.name for path in (ROOT / "tests").glob("*.py")}
    assert loose == {"test_start.py"}, "each other test has a folder"


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_leads_to_the_module_that_is_now_elsewhere(old):
    assert not (ROOT / old.replace(".", "/")).with_suffix(".py").exists()
    assert (ROOT / MOVED[old].replace(".", "/")).with_suffix(".py").exists()
