"""Right answers to lesson 14 in another style: each must pass all checks."""

import numba
import numpy as np
import torch
from numba import njit, prange

from course.making.answers import reference, right
from tiny_models.kernels import new_cache

bytes_of = reference("bytes_per_token")
matvec = reference("matvec")
rms_norm = reference("rms_norm")
rotate = reference("rotate")
attend = reference("attend")
step = reference("step_by_hand")
quantised = reference("quantise_int8")
unpacked = reference("unpack_q4_1")
q4_reference = reference("q4_matvec")


@right("bytes_per_token")
def shapes_in_a_list(config, bits):
    """A list of shapes."""
    c, d = config, getattr(config, "head_dim", None)
    d = d or c.hidden_size // c.num_attention_heads
    rows = [c.num_attention_heads * d] * 2 + [c.num_key_value_heads * d] * 2
    rows += [c.intermediate_size] * 3
    weights = (sum(rows) * c.num_hidden_layers + c.vocab_size) * c.hidden_size
    return int(weights * bits) // 8


@right("bytes_per_token")
def rounded(config, bits):
    """Rounds with round."""
    return round(bytes_of(config, 8) * bits / 8)


@right("bytes_per_token")
def by_layers(config, bits):
    """Adds up layer by layer."""
    total = config.vocab_size * config.hidden_size
    for _ in range(config.num_hidden_layers):
        d = vars(config).get("head_dim")
        d = d or config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads + config.num_key_value_heads
        total += 2 * d * heads * config.hidden_size
        total += 3 * config.intermediate_size * config.hidden_size
    return int(total * bits / 8)


@right("matvec")
def by_rows(weight, x):
    """numpy inside the loop."""
    out = np.zeros(len(weight), np.float32)
    for i in range(len(weight)):
        out[i] = np.sum(weight[i] * x)
    return out


@right("matvec")
def by_columns(weight, x):
    """Column by column."""
    out = np.zeros(weight.shape[0], np.float32)
    for j in range(weight.shape[1]):
        out += weight[:, j] * x[j]
    return out


compiled_matvec = njit(matvec)
compiled_matvec.__doc__ = "Already compiled by numba."
compiled_matvec = right("matvec")(compiled_matvec)


@right("parallel_matvec")
def shared_rows(weight, x):
    """numpy inside the shared loop."""
    out = np.zeros(weight.shape[0], np.float32)
    for i in prange(weight.shape[0]):
        out[i] = np.sum(weight[i] * x)
    return out


@right("parallel_matvec")
def with_the_modules_name(weight, x):
    """numba.prange by its full name."""
    out = np.zeros(weight.shape[0], np.float32)
    for i in numba.prange(len(out)):
        for j in range(len(x)):
            out[i] += weight[i, j] * x[j]
    return out


@right("parallel_matvec")
def from_the_first_to_the_last(weight, x):
    """prange with both bounds."""
    out = np.empty(weight.shape[0], np.float32)
    for i in prange(0, weight.shape[0]):
        total = np.float32(0)
        for w, value in zip(weight[i], x):  # noqa: B905
            total += w * value
        out[i] = total
    return out


@right("rms_norm")
def norm_in_a_loop(x, weight, eps):
    """A loop for the sum."""
    total = np.float32(0)
    for value in x:
        total += value * value
    return x * weight / np.float32(np.sqrt(total / len(x) + eps))


@right("rms_norm")
def norm_in_float64(x, weight, eps):
    """Computes in float64, returns float32."""
    wide = x.astype(np.float64)
    root = np.sqrt((wide**2).mean() + eps)
    return (wide / root * weight).astype(np.float32)


@right("rms_norm")
def norm_with_dot(x, weight, eps):
    """A dot product, and a power."""
    out = np.empty_like(x)
    out[:] = x * weight * (np.dot(x, x) / x.size + eps) ** -0.5
    return out


@right("rotate")
def as_complex_numbers(q, k, position, theta):
    """A pair is a complex number, and a turn a multiplication."""
    half = q.shape[1] // 2
    turn = np.exp(1j * position * theta ** (-np.arange(half) / half))

    def turned(x):
        z = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate((z.real, z.imag), axis=1).astype(np.float32)

    return turned(q), turned(k)


@right("rotate")
def with_half_turned(q, k, position, theta):
    """x cos + rotate_half(x) sin, as transformers writes it."""
    d = q.shape[1]
    angle = position / theta ** (np.arange(0, d, 2) / d)
    angle = np.concatenate((angle, angle))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out = []
    for x in (q, k):
        other = np.concatenate((-x[:, d // 2 :], x[:, : d // 2]), axis=1)
        out.append(x * cos + other * sin)
    return tuple(out)


@right("rotate")
def pair_by_pair(q, k, position, theta):
    """A loop over pairs."""
    out_q, out_k = q.copy(), k.copy()
    half = q.shape[1] // 2
    for i in range(half):
        angle = position * theta ** (-2.0 * i / q.shape[1])
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        for x, out in ((q, out_q), (k, out_k)):
            out[:, i] = x[:, i] * c - x[:, i + half] * s
            out[:, i + half] = x[:, i + half] * c + x[:, i] * s
    return out_q, out_k


@right("attend")
def with_einsum(q, keys, values):
    """einsum over groups."""
    groups = q.reshape(len(keys), -1, q.shape[1]) / np.float32(np.sqrt(q.shape[1]))
    scores = np.einsum("ghd,gnd->ghn", groups, keys)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("ghn,gnd->ghd", shares, values).reshape(q.shape)


@right("attend")
def through_torch(q, keys, values):
    """torch's softmax, keys repeated."""
    times = len(q) // len(keys)
    k, v = np.repeat(keys, times, axis=0), np.repeat(values, times, axis=0)
    scores = torch.from_numpy((k @ q[:, :, None])[..., 0]) / q.shape[1] ** 0.5
    return (scores.softmax(-1)[:, None].numpy() @ v)[:, 0]


@right("attend")
def as_it_comes(q, keys, values):
    """One pass over the positions with a running maximum."""
    out = np.zeros_like(q)
    for h, query in enumerate(q):
        g = h * len(keys) // len(q)
        top, total, mean = -np.inf, 0.0, np.zeros(q.shape[1])
        for key, value in zip(keys[g], values[g], strict=True):
            score = float(query @ key) / np.sqrt(q.shape[1])
            new = max(top, score)
            keep, add = np.exp(top - new), np.exp(score - new)
            total, mean, top = total * keep + add, mean * keep + add * value, new
        out[h] = mean / total
    return out


@right("step_by_hand")
def split_by_hand(weights, token, cache):
    """np.split, and numpy throughout."""
    s, n = weights.shape, int(cache.length[0])
    x = np.array(weights.embed[token])
    ends = np.cumsum([s.heads, s.kv_heads])
    for i in range(s.layers):
        qkv = weights.qkv[i] @ rms_norm(x, weights.norm1[i], s.eps)
        q, k, v = np.split(qkv.reshape(-1, s.head_size), ends)
        q, cache.keys[i, :, n] = rotate(q, k, n, s.theta)
        cache.values[i, :, n] = v
        seen = attend(q, cache.keys[i][:, : n + 1], cache.values[i][:, : n + 1])
        x = x + weights.o[i] @ seen.ravel()
        h = rms_norm(x, weights.norm2[i], s.eps)
        gate, up = np.split(weights.gate_up[i] @ h, 2)
        x = x + weights.down[i] @ (gate / (1 + np.exp(-gate)) * up)
    cache.length[0] += 1
    return weights.head[0] @ rms_norm(x, weights.norm, s.eps)


@right("step_by_hand")
def layer_by_layer(weights, token, cache):
    """A function for each half of a layer."""
    s, n = weights.shape, cache.length[0]

    def attention(x, i):
        heads = weights.qkv[i] @ rms_norm(x, weights.norm1[i], s.eps)
        heads = heads.reshape(s.heads + 2 * s.kv_heads, s.head_size)
        q, k = rotate(heads[: s.heads], heads[s.heads : -s.kv_heads], n, s.theta)
        cache.keys[i, :, n], cache.values[i, :, n] = k, heads[-s.kv_heads :]
        seen = attend(q, cache.keys[i, :, : n + 1], cache.values[i, :, : n + 1])
        return weights.o[i] @ seen.flatten()

    def network(x, i):
        both = weights.gate_up[i] @ rms_norm(x, weights.norm2[i], s.eps)
        gate, up = both[: s.inner], both[s.inner :]
        return weights.down[i] @ (up * gate * (1 / (1 + np.exp(-gate))))

    x = weights.embed[token]
    for i in range(s.layers):
        x = x + attention(x, i)
        x = x + network(x, i)
    cache.length[:] = n + 1
    return weights.head[0] @ rms_norm(x, weights.norm, s.eps)


@right("step_by_hand")
def matrices_by_loops(weights, token, cache):
    """Products by the loops of 14.2 for the last matrix."""
    kept = weights._replace(head=np.eye(weights.shape.hidden, dtype=np.float32)[None])
    return matvec(weights.head[0], step(kept, token, cache))


@right("decode_fast")
def with_a_generator(weights, ids, max_new_tokens, eos_ids):
    """Picks in a generator."""

    def picks():
        cache = new_cache(weights, ids.shape[1] + max_new_tokens)
        token = None
        for token in ids[0].tolist():
            logits = step(weights, token, cache)
        while True:
            token = int(np.argmax(logits))
            yield token
            logits = step(weights, token, cache)

    new, source = [], picks()
    while len(new) < max_new_tokens and (not new or new[-1] not in eos_ids):
        new.append(next(source))
    return torch.cat([ids, torch.tensor([new], dtype=torch.long)], dim=-1)


@right("decode_fast")
def one_loop(weights, ids, max_new_tokens, eos_ids):
    """Prompt and new tokens in one loop."""
    text, start = list(ids[0].tolist()), ids.shape[1]
    cache, n = new_cache(weights, start + max_new_tokens), 0
    while n < len(text) and len(text) < start + max_new_tokens:
        logits = step(weights, text[n], cache)
        n += 1
        if n == len(text):
            text.append(int(logits.argmax()))
            if text[-1] in set(eos_ids):
                break
    return torch.LongTensor([text])


@right("decode_fast")
def appended_with_cat(weights, ids, max_new_tokens, eos_ids):
    """Grows a tensor."""
    cache = new_cache(weights, ids.shape[1] + max_new_tokens + 1)
    out = ids
    for token in ids[0, :-1]:
        step(weights, int(token), cache)
    for _ in range(max_new_tokens):
        logits = step(weights, int(out[0, -1]), cache)
        out = torch.cat([out, torch.tensor([[logits.argmax()]])], dim=1)
        if int(out[0, -1]) in eos_ids:
            break
    return out


@right("quantise_int8")
def quantised_row_by_row(weight):
    """A loop over rows."""
    q, scale = np.zeros(weight.shape, np.int8), np.ones(len(weight), np.float32)
    for i, row in enumerate(weight):
        if row.any():
            scale[i] = max(row.max(), -row.min()) / np.float32(127)
            q[i] = np.round(row / scale[i])
    return q, scale


@right("quantise_int8")
def with_torch(weight):
    """torch's amax and round."""
    w = torch.from_numpy(weight)
    scale = w.abs().amax(1) / 127
    scale[scale == 0] = 1
    return (w / scale[:, None]).round().to(torch.int8).numpy(), scale.numpy()


@right("quantise_int8")
def by_multiplying(weight):
    """127 / largest as a factor."""
    largest = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64)
    largest[largest == 0] = 127
    q = np.rint(weight * (127 / largest)).astype(np.int8)
    return q, (largest[:, 0] / 127).astype(np.float32)


@right("unpack_q4_1")
def block_by_block(blocks):
    """A loop over blocks, struct for the scales."""
    import struct

    if isinstance(blocks, bytes):
        blocks = np.frombuffer(blocks, np.uint8).reshape(1, -1)
    out = np.empty((len(blocks), blocks.shape[1] // 20 * 32), np.float32)
    for i, row in enumerate(blocks):
        for b in range(len(row) // 20):
            part = row[20 * b : 20 * b + 20]
            d, m = struct.unpack("<ee", part[:4].tobytes())
            for j, byte in enumerate(part[4:].tolist()):
                out[i, 32 * b + j] = np.float32(d) * (byte % 16) + np.float32(m)
                out[i, 32 * b + j + 16] = np.float32(d) * (byte // 16) + np.float32(m)
    return out


BLOCK = np.dtype([("d", "<f2"), ("m", "<f2"), ("bytes", "u1", 16)])


@right("unpack_q4_1")
def with_a_structured_type(blocks):
    """A structured dtype reads a block."""
    rows = 1 if isinstance(blocks, bytes) else len(blocks)
    raw = blocks if isinstance(blocks, bytes) else blocks.tobytes()
    parts = np.frombuffer(raw, BLOCK).reshape(rows, -1)
    d, m = (parts[name].astype(np.float32)[..., None] for name in "dm")
    low, high = parts["bytes"] & 15, parts["bytes"] >> 4
    return np.concatenate((d * low + m, d * high + m), axis=-1).reshape(rows, -1)


@right("unpack_q4_1")
def by_the_gguf_library(blocks):
    """The gguf library's own."""
    import gguf

    if isinstance(blocks, bytes):
        blocks = np.frombuffer(blocks, np.uint8)[None]
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)


@right("q4_matvec")
def unpacked_row_by_row(blocks, x):
    """Unpacks a row at a time."""
    out = np.empty(len(blocks), np.float32)
    for i in range(len(blocks)):
        out[i] = unpacked(blocks[i : i + 1])[0] @ x
    return out


@right("q4_matvec")
def scales_at_the_end(blocks, x):
    """d and m once a block."""
    out = np.zeros(len(blocks), np.float32)
    for i, row in enumerate(blocks):
        for b in range(len(row) // 20):
            d, m = row[20 * b : 20 * b + 4].copy().view("<f2").astype(np.float32)
            part, numbers = x[32 * b : 32 * b + 32], row[20 * b + 4 : 20 * b + 20]
            sums = (numbers & 15) @ part[:16] + (numbers >> 4) @ part[16:]
            out[i] += d * np.float32(sums) + m * part.sum()
    return out


@right("q4_matvec")
def from_the_end(blocks, x):
    """Adds the blocks in another order."""
    out = np.zeros(len(blocks), np.float32)
    for b in reversed(range(blocks.shape[1] // 20)):
        part = np.ascontiguousarray(blocks[:, 20 * b : 20 * b + 20])
        out += q4_reference(part, np.ascontiguousarray(x[32 * b : 32 * b + 32]))
    return out
