"""A Llama's weights, from a GGUF file or a model in memory, packed for the kernels.

Here a matrix is packed for the kernels, unless `pack=as_they_are` asks for it as the
file or the model holds it:

    read_gguf(path)     the file's own 4-bit blocks
    read_model(model)   float32
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tiny_models.kernels.matrices import pack
from tiny_models.weights import NAME, gguf_path


class Shape(NamedTuple):
    """The numbers that make one Llama different from another."""

    vocab: int
    hidden: int  # numbers in a token's vector
    inner: int  # numbers inside the feed-forward network
    layers: int
    heads: int  # that ask
    kv_heads: int  # that are asked; each serves heads // kv_heads of the former
    head_size: int
    eps: float
    theta: float  # of the rotary embedding


class Weights(NamedTuple):
    """shape; four matrices a layer and the head, packed (see matrices.py); embedding
    (vocab, hidden), norms (layers, hidden) and (hidden,), and the frequencies of the
    rotary embedding (head_size // 2,), all float32."""

    shape: Shape
    qkv: tuple
    o: tuple
    gate_up: tuple
    down: tuple
    head: tuple
    embed: np.ndarray
    norm1: np.ndarray
    norm2: np.ndarray
    norm: np.ndarray
    frequencies: np.ndarray


class NotSupported(ValueError):
    """The kernels do not know this model. The message says what they know."""


KNOWN = "The kernels of lesson 14 know Llama models with plain rotary positions"


def as_they_are(rows: np.ndarray, kind: str) -> np.ndarray:
    """Instead of `pack`: (layers, rows, columns) float32, or bytes of the blocks."""
    return rows


def weights_of(model) -> Weights:
    """The 4-bit blocks of the course's own model, of any other its float32 weights.

    A model with that name whose numbers were changed is another one. Raises
    NotSupported for one that the kernels do not know.
    """
    if model.config._name_or_path == NAME:
        with contextlib.suppress(_Differs):
            return _checked(model, gguf_path())
    return read_model(model)


class _Differs(Exception):
    pass


def _checked(model, path: Path) -> Weights:
    """The file's weights. Raises _Differs if the model's are others, by one bit."""
    from gguf import GGMLQuantizationType, dequantize

    ours = read_model(model, pack=as_they_are)
    matrices = iter(ours[1:6])  # in the order in which they are read

    def pack_if_same(rows, kind):
        mine, kind_ = next(matrices), GGMLQuantizationType[kind]
        for layer, theirs in zip(mine, rows, strict=True):
            if not np.array_equal(layer, dequantize(theirs, kind_)):
                raise _Differs
        return pack(rows, kind)

    found = read_gguf(path, pack=pack_if_same)
    if found.shape != ours.shape or not all(
        np.array_equal(a, b) for a, b in zip(found[6:], ours[6:], strict=True)
    ):
        raise _Differs
    return found


def read_model(model, pack=pack) -> Weights:
    """The float32 weights of a LlamaForCausalLM. Raises NotSupported."""
    c = model.config
    rope = getattr(c, "rope_parameters", None) or {}
    unknown = [
        (getattr(c, "model_type", None) != "llama", f"this is a {c.model_type}"),
        (getattr(c, "hidden_act", "silu") != "silu", "this one has no SiLU"),
        (getattr(c, "attention_bias", False), "this one has biases"),
        (getattr(c, "mlp_bias", False), "this one has biases"),
        (rope.get("rope_type", "default") != "default", "this one scales them"),
    ]
    for wrong, what in unknown:
        if wrong:
            raise NotSupported(f"{KNOWN}; {what}.")
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    shape = Shape(
        *(c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers),
        *(c.num_attention_heads, c.num_key_value_heads, size, c.rms_norm_eps),
        float(rope.get("rope_theta", 10000.0)),
    )

    def array(parameter):
        return parameter.detach().float().cpu().numpy()

    def matrix(*names):
        layers = []
        for layer in model.model.layers:
            parts = [layer.get_submodule(name).weight for name in names]
            layers.append(np.concatenate([array(part) for part in parts]))
        return pack(np.stack(layers), "F32")

    def norms(name):
        layers = model.model.layers
        return np.stack([array(layer.get_submodule(name).weight) for layer in layers])

    return Weights(
        shape,
        matrix("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        matrix("self_attn.o_proj"),
        matrix("mlp.gate_proj", "mlp.up_proj"),
        matrix("mlp.down_proj"),
        pack(array(model.lm_head.weight)[None], "F32"),
        np.ascontiguousarray(array(model.model.embed_tokens.weight)),
        norms("input_layernorm"),
        norms("post_attention_layernorm"),
        array(model.model.norm.weight),
        rotary_frequencies(size, shape.theta),
    )


def read_gguf(path: str | Path, pack=pack) -> Weights:
    """The weights of a GGUF file, its matrices as they are: Q4_1, Q8_0 or F32.

    Raises NotSupported for another architecture or another kind of matrix.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(name, default=None):
        found = reader.fields.get(name)
        return default if found is None else found.contents()

    kind = field("general.architecture")
    if kind != "llama":
        raise NotSupported(f"{KNOWN}; {Path(path).name} is a {kind}.")
    if field("llama.rope.scaling.type", "none") != "none":
        raise NotSupported(f"{KNOWN}; {Path(path).name} scales them.")
    heads = field("llama.attention.head_count")
    hidden = field("llama.embedding_length")
    embed = tensors["token_embd.weight"]
    shape = Shape(
        *(len(embed.data), hidden, field("llama.feed_forward_length")),
        *(field("llama.block_count"), heads),
        field("llama.attention.head_count_kv", heads),
        field("llama.attention.key_length", hidden // heads),
        field("llama.attention.layer_norm_rms_epsilon"),
        float(field("llama.rope.freq_base", 10000.0)),
    )

    def rows(name):
        """(rows, bytes of a row), of queries and keys in transformers' order: a GGUF
        file interleaves the two halves of each head."""
        data = np.asarray(tensors[name].data)
        for part, count in ((".attn_q.", shape.heads), (".attn_k.", shape.kv_heads)):
            if part in name:
                halves = data.reshape(count, shape.head_size // 2, 2, -1)
                data = halves.swapaxes(1, 2).reshape(data.shape)
        return data

    def matrix(*names):
        whole = [[name.format(n) for name in names] for n in range(shape.layers)]
        kinds = {tensors[name].tensor_type.name for layer in whole for name in layer}
        if len(kinds) > 1 or not kinds <= {"Q4_1", "Q8_0", "F32"}:
            raise NotSupported(
                f"The kernels of lesson 14 read matrices in Q4_1, Q8_0 or F32, all of "
                f"one kind; {', '.join(names)} of {Path(path).name} are "
                f"{' and '.join(sorted(kinds))}."
            )
        layers = [np.concatenate([rows(name) for name in layer]) for layer in whole]
        return pack(np.stack(layers), kinds.pop())

    def norms(name):
        return np.stack([rows(name.format(n)) for n in range(shape.layers)])

    block = "blk.{}."
    last = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    if tensors[last].tensor_type.name not in ("Q4_1", "Q8_0", "F32"):
        raise NotSupported(
            f"The kernels of lesson 14 read matrices in Q4_1, Q8_0 or F32; {last} of "
            f"{Path(path).name} is {tensors[last].tensor_type.name}."
        )
    return Weights(
        shape,
        matrix(*(f"{block}attn_{x}.weight" for x in "qkv")),
        matrix(f"{block}attn_output.weight"),
        matrix(f"{block}ffn_gate.weight", f"{block}ffn_up.weight"),
        matrix(f"{block}ffn_down.weight"),
        pack(np.asarray(tensors[last].data)[None], tensors[last].tensor_type.name),
        dequantize(embed.data, embed.tensor_type),
        norms(f"{block}attn_norm.weight"),
        norms(f"{block}ffn_norm.weight"),
        np.array(tensors["output_norm.weight"].data),
        rotary_frequencies(shape.head_size, shape.theta),
    )


def rotary_frequencies(head_size: int, theta: float) -> np.ndarray:
    """1 / theta^(2 i / head_size), as transformers computes it: by torch, float32."""
    steps = torch.arange(0, head_size, 2, dtype=torch.int64).float()
    return (1.0 / theta ** (steps / head_size)).numpy()
