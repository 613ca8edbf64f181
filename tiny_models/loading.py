"""`load`: a model and its tokenizer, ready for decoding."""

import contextlib
import os
from pathlib import Path

import torch
from huggingface_hub import model_info
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tiny_models.weights import NAME, ModelNotAvailable, default_model

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
WANTED = (
    "COURSE_MODEL should be a folder written by save_pretrained, or a hub id such as "
    "gpt2; unset it for the course's own model."
)
AGAIN = "Delete {folder} and try again: the model is then made anew."
WRITTEN = (
    "Model and tokenizer should both be written there with save_pretrained. Unset "
    "COURSE_MODEL for the course's own model."
)


def load(name: str | None = None):
    """A causal language model and its tokenizer: (model, tokenizer).

    name: the folder of a model or its id on the Hugging Face hub. Without it,
    $COURSE_MODEL; without that, SmolLM2-135M-Instruct, whose weights come from the
    package index (see tiny_models/weights.py).

    The model is on the GPU (CUDA or MPS) if there is one, in eval mode and in float32
    on every device, since exact comparisons need it. The tokenizer pads on the left and
    always has a pad token and a chat template; where the model has none, a plain one is
    set and a line is printed that says so.
    Raises ModelNotAvailable, with what to do.
    """
    # 1. Read it, from a folder or from the hub
    name = name or os.environ.get("COURSE_MODEL") or NAME
    if name == NAME:
        folder = default_model()
        model, tokenizer = _from_folder(folder, AGAIN.format(folder=folder))
    elif (folder := _folder(name)) is not None:
        model, tokenizer = _from_folder(folder, WRITTEN)
    else:
        model, tokenizer = _from_hub(name)
    title = folder.resolve().name if folder else name
    model.config._name_or_path = model.name_or_path = title
    # 2. Padding: on the left, with any token, since it is masked
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        first = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = tokenizer.eos_token or first
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    # 3. A chat template
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
        print(
            f"{title} has no chat template: a message becomes a line 'role: content', "
            "and the prompt ends in 'assistant:'."
        )
    return model.eval().to(best_device()), tokenizer


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _folder(name: str) -> Path | None:
    """`name` as the folder of a model, or None where it can only be a hub id."""
    path = Path(name).expanduser()
    if (path / "config.json").exists():
        return path
    if path.is_dir():
        raise ModelNotAvailable(
            f"The folder {path.absolute()} holds no model: there is no config.json in "
            f"it. {WANTED}"
        )
    if path.is_file():
        raise ModelNotAvailable(f"{path.absolute()} is a file. {WANTED}")
    # A hub id is "name" or "owner/name".
    written_as_path = path.is_absolute() or name.startswith(("~", ".")) or "\\" in name
    if written_as_path or name.count("/") > 1:
        raise ModelNotAvailable(f"There is no folder {path.absolute()}. {WANTED}")
    return None


def _from_folder(folder: Path, advice: str):
    try:
        with _without_progress_bars():
            return _read(str(folder), local_files_only=True)
    except Exception as error:
        raise ModelNotAvailable(
            f"The model in {folder} could not be read: {_reason(error)}\n{advice}"
        ) from error


def _from_hub(name: str):
    with contextlib.suppress(Exception), _without_progress_bars():
        return _read(name, local_files_only=True)  # downloaded before, perhaps
    try:
        # Fails at once, where from_pretrained retries for most of a minute.
        model_info(name, timeout=10)
        return _read(name)
    except Exception as error:
        raise ModelNotAvailable(
            f"The model {name!r} is no folder here ({Path.cwd()}), and as an id on the "
            f"Hugging Face hub it could not be loaded: {_reason(error)}\n"
            "Is it spelled right, and are you online? Unset COURSE_MODEL for the "
            "course's own model, which comes from the package index."
        ) from error


def _read(source: str, **options):
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes an empty tokenizer where it finds no files for one.
        raise ValueError("it has no tokenizer, or an empty one")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    return model, tokenizer


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _without_progress_bars():
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
