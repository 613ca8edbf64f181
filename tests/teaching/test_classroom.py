"""The ways in without set-up: their files parse, and point at what is there."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from course.paths import ROOT
from tiny_models import random_llama, weights
from tiny_models.toy_tokenizer import toy_tokenizer

CONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
BINDER = ROOT / ".binder"


def test_the_binder_folder_asks_for_the_packages_of_requirements_txt_and_no_others():
    lines = (BINDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    options = [shlex.split(line) for line in lines if line and line[0] != "#"]
    assert {words[0] for words in options} == {"--extra-index-url", "-r"}
    (included,) = [words[1] for words in options if words[0] == "-r"]
    assert (BINDER / included).resolve() == ROOT / "requirements.txt"


def test_binder_takes_a_python_that_the_course_supports():
    version = (BINDER / "runtime.txt").read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"python-3\.1[0-9]", version)
    assert int(version.rpartition(".")[2]) >= 10


def test_what_binder_runs_is_a_program():
    script = BINDER / "postBuild"
    assert script.read_bytes().startswith(b"#!/usr/bin/env bash\n")
    listed = subprocess.run(
        ["git", "ls-files", "--stage", ".binder/postBuild"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if listed:  # in a clone git knows, on Windows too
        assert listed.startswith("100755")
    elif os.name != "nt":
        assert script.stat().st_mode & stat.S_IXUSR


def test_the_dev_container_parses_and_names_files_that_are_there():
    container = json.loads(CONTAINER.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[\w./-]+/python:3\.1[0-9]", container["image"])
    words = shlex.split(container["onCreateCommand"])
    named = [words[n + 1] for n, word in enumerate(words) if word == "-r"]
    assert named == [".binder/requirements.txt"]
    assert all((ROOT / name).is_file() for name in named)
    chosen = container["customizations"]["vscode"]["settings"]
    made = words[words.index("venv") + 1]  # python -m venv .venv
    interpreter = chosen["python.defaultInterpreterPath"]
    assert interpreter == f"${{containerWorkspaceFolder}}/{made}/bin/python"


READ_ONLY = """
import os, sys
import torch, transformers
from tiny_models import load, random_llama, weights
random_llama()  # imports what others may not be able to read
if os.geteuid() == 0:  # root may write anywhere
    os.setgid(65534); os.setuid(65534)
folder = weights.cache_folder()
for place in (folder, folder / weights.NAME):
    try:
        (place / "probe").touch()
    except PermissionError:
        continue
    sys.exit(f"{place} can be written to: this test would prove nothing")
model, tokenizer = load()
ids = tokenizer("hello", return_tensors="pt").input_ids
print(model.generate(ids, max_new_tokens=2, min_new_tokens=2).shape[1] - ids.shape[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_class_can_share_one_copy_of_the_model_that_nobody_may_write_to():
    with tempfile.TemporaryDirectory() as temporary:
        # A small model in the place of the default one, complete as `convert` leaves it
        folder = Path(temporary) / weights.NAME
        random_llama(vocab_size=259).save_pretrained(folder)
        toy_tokenizer().save_pretrained(folder)
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        manifest = {"gguf_sha256": weights.GGUF_SHA256, "sizes": sizes}
        manifest["conversion"] = weights.CONVERSION
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o444)
        for place in (folder, folder.parent):
            place.chmod(0o555)
        env = {**os.environ, "COURSE_CACHE": temporary, "PYTHONPATH": str(ROOT)}
        env.pop("COURSE_MODEL", None)
        env["HF_HOME"] = str(Path(temporary) / "hub")  # not to be made, either
        try:
            done = subprocess.run(
                [sys.executable, "-c", READ_ONLY],
                env=env,
                cwd=temporary,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            for place in (folder.parent, folder):
                place.chmod(0o755)
        assert (done.returncode, done.stdout.split()[-1:]) == (0, ["2"]), done.stderr
        assert sorted(path.name for path in folder.parent.iterdir()) == [weights.NAME]
