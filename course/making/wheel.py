"""What the wheel holds besides the packages: in course/_data the references of the
lessons, their tests, and pytest's settings, where course.paths finds them.

setuptools calls this, by the line `build_py` of pyproject.toml, and loads this file by
itself: it imports nothing of the course. An editable install, which start.py makes, has
no such copies: there the repository itself is used.
"""

import json
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "pyproject.toml",
    "solutions/[0-9][0-9]_*.py",
    "tests/lessons/test_[0-9][0-9]_*.py",
)


class WithLessons(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            data = Path(self.build_lib) / "course" / "_data"
            shutil.rmtree(data, ignore_errors=True)  # of an earlier build
            fill(data)


def fill(data: Path):
    """Make the folder `data`."""
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            target = data / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in sorted(ROOT.glob("solutions/[0-9][0-9]_*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            if cell["cell_type"] == "code":  # outputs are most of the bytes
                cell["outputs"], cell["execution_count"] = [], None
        text = json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        target = data / path.relative_to(ROOT)
        target.write_text(text, encoding="utf-8", newline="\n")
