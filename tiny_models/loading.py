"""`load`: a model and its tokenizer, ready for decoding."""

import contextlib
import os
from pathlib import Path

import torch

from tiny_models.weights import NAME, ModelNotAvailable, default_model

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = name or os.environ.get("COURSE_MODEL") or NAME
    source = str(default_model()) if name == NAME else _known(name)
    try:
        with _without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except Exception as error:
        raise ModelNotAvailable(_cannot_load(name, error)) from error
    model.config._name_or_path = model.name_or_path = (
        Path(name).name if (Path(name).exists()) else name
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
        print(
            f"{model.name_or_path} has no chat template: a message becomes a line "
            "'role: content', and the prompt ends in 'assistant:'."
        )
    return model.eval().to(best_device()), tokenizer


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _known(name: str) -> str:
    """`name` as a folder, if it is one or can only be one; else a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotAvailable(
                f"The folder {name!r} holds no model: there is no config.json in it. "
                "COURSE_MODEL should be a folder written by save_pretrained, or a hub "
                "id such as gpt2."
            )
        return str(path)
    if path.is_absolute() or name.startswith(("~", ".")) or name.count("/") > 1:
        raise ModelNotAvailable(
            f"There is no folder {name!r}. COURSE_MODEL should be an existing folder "
            "or a hub id such as gpt2; unset it for the course's own model."
        )
    return name


def _cannot_load(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"The model {name!r} could not be loaded: {reason}\n"
        "If it is an id on the Hugging Face hub: is it spelled right, and are you "
        "online? If it is a folder: was it written by save_pretrained, model and "
        "tokenizer both? Unset COURSE_MODEL for the course's own model."
    )


@contextlib.contextmanager
def _without_progress_bars():
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
