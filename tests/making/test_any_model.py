"""The lessons run with another model, too: here a GPT-2 with random weights, a byte
tokenizer and no chat template, in a folder that $COURSE_MODEL names."""

import os
import subprocess
import sys

from course.paths import ROOT, SOLUTIONS, lesson_names
from tiny_models import random_gpt2
from tiny_models.toy_tokenizer import toy_tokenizer

# Runs the cells of all lessons in one process: a kernel each would only be slower.
RUN = """
import os, sys, matplotlib
matplotlib.use("Agg")
from course.checks import notebook
from course.paths import SOLUTIONS
os.chdir(SOLUTIONS)
for name in sys.argv[1:]:
    names = {"__name__": "__main__"}
    for n, cell in enumerate(notebook.read(SOLUTIONS / f"{name}.ipynb").cells):
        if cell.cell_type == "code" and "check" not in notebook.tags(cell):
            exec(compile(cell.source, f"{name}, cell {n}", "exec"), names)
    print("RAN", name)
"""


def test_all_lessons_run_with_a_tiny_gpt2_without_a_chat_template(tmp_path):
    tokenizer = toy_tokenizer(chat_template=None)
    model = random_gpt2(vocab_size=len(tokenizer), n_positions=2048)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # Lesson 14 reads the course's own file, and loads no other model.
    names = [name for name in lesson_names() if not name.startswith("14")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *names],
        cwd=ROOT,
        env={**os.environ, "COURSE_MODEL": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in names:
        assert f"RAN {name}" in done.stdout
        assert (SOLUTIONS / f"{name}.ipynb").exists()
    assert "has no chat template: a message becomes a line" in done.stdout
    assert "all four equal: False" not in done.stdout
    assert "same tokens as generate: False" not in done.stdout
