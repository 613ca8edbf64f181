"""Where modules went that had another place once: an import finds the module there, and
`python -m` says so. Notebooks and scripts of earlier versions go on as they were."""

import importlib
import importlib.abc
import importlib.util
import sys

MOVED = {
    "course.answers": "course.making.answers",
    "course.autograding": "course.teaching.nbgrader_autograde",
    "course.browser": "course.making.browser",
    "course.build": "course.making.build",
    "course.carrying": "course.checks.carrying",
    "course.checking": "course.checks.checking",
    "course.expect": "course.checks.expect",
    "course.explain": "course.checks.explain",
    "course.export": "course.teaching.nbgrader_export",
    "course.figures": "course.kit.figures",
    "course.grade": "course.teaching.grade",
    "course.grading": "course.teaching.grade_process",
    "course.limits": "course.checks.limits",
    "course.mathml": "course.teaching.mathml",
    "course.measures": "course.kit.measures",
    "course.mutants": "course.making.mutants",
    "course.notebook": "course.checks.notebook",
    "course.plugin": "course.checks.plugin",
    "course.pristine": "course.checks.pristine",
    "course.site": "course.teaching.site",
    "course.slides": "course.teaching.slides",
    "course.toy_tokenizer": "tiny_models.toy_tokenizer",
    "course.trust": "course.making.trust",
}
COMMANDS = ("browser", "build", "export", "grade", "site", "slides", "trust")


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname not in MOVED:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module):
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])

    def get_source(self, fullname):  # what `python -m` runs
        name = fullname.removeprefix("course.")
        told = f"`python -m {fullname}` is now {MOVED[fullname]}"
        if name in COMMANDS:
            told = f"`python -m {fullname}` is now `python start.py {name}`"
        return f"import sys\nsys.exit({told!r})\n"


def forward():
    """Make the old names importable."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
