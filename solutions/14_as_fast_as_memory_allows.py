# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · As fast as memory allows
#
# **After this lesson a model's step that you have written in Python runs several times as
# fast as `generate`, with the same tokens, and you can say which limit it has reached.**
#
# You write: `bytes_per_token`, `matvec`, `parallel_matvec`, `rms_norm`, `rotate`, `attend`,
# `step_by_hand`, `decode_fast`, `quantise_int8`, `unpack_q4_1` and `q4_matvec`.
# About 180 minutes. Builds on lesson 07 (the cache).

# %% tags=["setup"]
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload
from transformers import PreTrainedConfig

from tiny_models.kernels import Cache, Weights, new_cache


# %% tags=["setup"]
def product(matrix, layer, x):
    """A layer's matrix (layers, rows, columns) times x (columns,): (rows,) float32."""
    return matrix[layer] @ x


def swiglu(gate_up):
    """(2 n,) float32, the gates and what they gate. Returns (n,): SiLU(gate) * up."""
    n = len(gate_up) // 2
    out = np.empty(n, np.float32)
    for i in range(n):
        out[i] = gate_up[i] / (1 + np.exp(-gate_up[i])) * gate_up[n + i]
    return out


# %% tags=["setup"]
POWERS = 2.0 ** np.arange(-25, 7)


def half(low, high):
    """The float16 with these two bytes, as a float32."""
    low, high = int(low), int(high)
    exponent, fraction = (high >> 2) & 31, (high & 3) * 256 + low
    if exponent > 0:
        fraction += 1024
    size = np.float32(fraction * POWERS[max(exponent, 1)])
    return -size if high > 127 else size


# %%
import copy
import time
import warnings

import matplotlib.pyplot as plt
import numba

from course import check
from course.kit import figures
from tiny_models import gguf_path, load
from tiny_models.kernels import (
    Decoder,
    as_they_are,
    generate_with_lookup,
    read_gguf,
    read_model,
)

# %%
model, tokenizer = load("SmolLM2-135M-Instruct")  # whose file section 4 reads
model = model.cpu()
cores = min(torch.get_num_threads(), 4)
numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))


# %%
def fastest(function, tries=5):
    """The shortest time of a call, in seconds: what else runs only makes it longer."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


# %% [markdown]
# ## 1. What limits a step
#
# Each step of greedy decoding multiplies one vector with every matrix of the model. Each
# weight is read from memory, used for one multiplication and one addition, and not needed
# again until the next token. **Predict:** how many bytes does a step read, for a model of
# 135 million weights in float32, and how long does memory take to deliver them?

# %% [markdown]
# ### Exercise 14.1 · `bytes_per_token`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 9 lines
#
# The bytes of all matrices that multiply a token's vector: of each layer q, k, v and o,
# gate, up and down; and the head at the end. Of the embedding only one row is read, and the
# norms are small: leave both out. (This model's head *is* its embedding; it counts once, as
# the head.)
#
# By hand: hidden size 4, one layer with 2 heads and 1 key-value head of size 2,
# intermediate size 8, vocabulary 10. q and o have 4 · 4 weights each, k and v 2 · 4 each,
# gate, up and down 8 · 4 each, the head 10 · 4: together 184. In float32 (32 bits) that
# is 736 bytes, with 5 bits a weight 115.
#
# <details><summary>Hint 1</summary>With <code>d</code> the size of a head, q is
# <code>heads * d</code> rows of <code>hidden_size</code>; k and v have
# <code>kv_heads * d</code> rows.</details>
# <details><summary>Hint 2</summary>Where the config has no <code>head_dim</code>, a head has
# <code>hidden_size // num_attention_heads</code> numbers, as in lesson 07.</details>


# %% tags=["exercise"]
def bytes_per_token(config: PreTrainedConfig, bits: float) -> int:
    """The bytes that one decode step reads of a Llama's matrices.

    config: with the fields of a LlamaConfig; head_dim may be missing or None.
    bits: of one weight, scales included. Returns a whole number of bytes.
    """
    ### BEGIN SOLUTION
    hidden, heads = config.hidden_size, config.num_attention_heads
    d = getattr(config, "head_dim", None) or hidden // heads
    q_and_o = 2 * heads * d * hidden
    k_and_v = 2 * config.num_key_value_heads * d * hidden
    feed_forward = 3 * config.intermediate_size * hidden
    layers = config.num_hidden_layers * (q_and_o + k_and_v + feed_forward)
    head = config.vocab_size * hidden
    return int((layers + head) * bits / 8)
    ### END SOLUTION


# %% tags=["check"]
check(bytes_per_token)

# %% tags=["nbval-check-output"]
for name, bits in (("float32", 32), ("bfloat16", 16), ("int8", 8), ("4-bit blocks", 5)):
    print(f"{name:12} {bytes_per_token(model.config, bits) / 1e6:6.1f} MB a token")

# %% [markdown]
# How fast can this machine read? A sum over an array that is far larger than the caches
# does nothing but read. This is also our first use of **numba**: it translates a Python
# function into machine code when it is called for the first time. `prange` shares a loop
# among the processor's cores.


# %% tags=["kernels"]
def compiled(function, **options):
    """By numba; `py_func` is the Python function of one that is compiled already."""
    python = getattr(function, "py_func", function)
    return njit(fastmath=True, error_model="numpy", nogil=True, **options)(python)


def parallel(function):
    return compiled(function, parallel=True)


# %%
@parallel
def read_all(a):
    """a (pieces, n): the sum of each piece, the pieces shared among the cores."""
    out = np.empty(len(a), np.float32)
    for i in prange(len(a)):
        total = np.float32(0)
        for j in range(a.shape[1]):
            total += a[i, j]
        out[i] = total
    return out


def read_limit():
    """Bytes a second, of an array of 268 MB."""
    large = np.ones((64, 1 << 20), np.float32)
    read_all(large)  # compiles, the first time
    return large.nbytes / fastest(lambda: read_all(large), 20)


torch.set_num_threads(1)
limit = read_limit()
print(f"{numba.get_num_threads()} threads ({numba.threading_layer()})", end=" ")
print(f"read {limit / 1e9:.1f} GB/s")

# %% [markdown]
# Two libraries with threads of their own share your cores now, and they must not fight.
# The threads of a pool stay awake for a moment after each piece of work, in case more
# comes: torch's, too, and then numba's wait for a core. So torch has all cores while
# `generate` is timed, and one thread while numba works. The word in brackets is numba's
# *threading layer*, which starts its threads: `omp` (OpenMP) and `tbb` begin a `prange`
# in microseconds; `workqueue`, where numba finds neither, takes longer, and a step has
# four of them a layer, and one for the head.
#
# Divide, and you have the shortest possible step, whatever the code does. Where is
# `generate`? (The limit is that of this many threads, and of a machine that does nothing
# else; where it was busy, a later cell measures more.)

# %%
prompt = "The history of the city begins in the year"
ids = tokenizer(prompt, return_tensors="pt").input_ids
NEW = 16
torch.set_num_threads(cores)


def generate(new=NEW, one=None):
    one = one or model
    return one.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
    )


# %%
reference = generate()
step = (fastest(generate, 2) - fastest(lambda: generate(1), 2)) / (NEW - 1)
torch.set_num_threads(1)
floor = bytes_per_token(model.config, 32) / limit
seconds = {"generate": step}
print(f"the floor in float32  {floor * 1000:5.1f} ms a token")
print(f"generate              {step * 1000:5.1f} ms a token: {floor / step:.0%} of it")

# %% [markdown]
# `generate` is slow not only because Python is slow. Its matrix products were made for
# matrices times *matrices*: one row at a time they read more slowly than the memory
# delivers, as section 2 will show. (How much more depends on the processor, and on the
# library that torch was built with.) Whatever reads at the machine's full speed is faster.
#
# ## 2. One kernel
#
# A small function that does one thing to whole arrays is called a *kernel*. Write the most
# important one as you would explain it: with two loops.

# %% [markdown]
# ### Exercise 14.2 · `matvec`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 6 lines
#
# A matrix times a vector, in loops, in plain Python. Numba will compile it: use numbers,
# arrays, `range`; no lists.
#
# By hand: [[1, 2], [3, 4]] times [10, 1] is [12, 34].
#
# <details><summary>Hint 1</summary><code>out = np.empty(rows, np.float32)</code>, and for
# each row a sum that begins with <code>np.float32(0)</code>: with a Python <code>0.0</code>
# numba would add in float64.</details>


# %% tags=["exercise"]
def matvec(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight (rows, columns), x (columns,), both float32. Returns (rows,) float32."""
    ### BEGIN SOLUTION
    out = np.empty(weight.shape[0], np.float32)
    for i in range(weight.shape[0]):
        total = np.float32(0)
        for j in range(weight.shape[1]):
            total += weight[i, j] * x[j]
        out[i] = total
    return out
    ### END SOLUTION


# %% tags=["check"]
check(matvec)

# %% [markdown]
# ### Exercise 14.3 · `parallel_matvec`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 6 lines
#
# The same, with the rows shared among the cores: `prange` in place of `range`, once.
# (Without numba `prange` is a `range`.)
#
# By hand: as above. Each row writes one place of the result, so no two cores meet.
#
# <details><summary>Hint 1</summary>Share the outer loop: sharing has a price each time, and
# the inner loop is one sum.</details>


# %% tags=["exercise"]
def parallel_matvec(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As `matvec`, the rows shared by one `prange`."""
    ### BEGIN SOLUTION
    out = np.empty(weight.shape[0], np.float32)
    for i in prange(weight.shape[0]):
        total = np.float32(0)
        for j in range(weight.shape[1]):
            total += weight[i, j] * x[j]
        out[i] = total
    return out
    ### END SOLUTION


# %% tags=["check"]
check(parallel_matvec)

# %% [markdown]
# Now compile, in three steps. `fastmath` allows the compiler to add in another order:
# only then can it use the processor's vector instructions for a sum. **Predict** the GB/s
# of each on the largest matrix of the model, the head (49,152 × 576).

# %% tags=["kernels"]
plain_matvec = njit(matvec)
vector_matvec = compiled(matvec)
shared_matvec = parallel(parallel_matvec)

# %%
weights = read_model(model, pack=as_they_are)
matrix, x = weights.head[0], np.ones(weights.shape.hidden, np.float32)
rate = {}
rate["Python"] = matrix[:8].nbytes / fastest(lambda: matvec(matrix[:8], x), 1)
for name, function in (
    ("numba", plain_matvec),
    ("numba, vectors", vector_matvec),
    ("numba, vectors, all cores", shared_matvec),
):
    function(matrix, x)  # compiles
    rate[name] = matrix.nbytes / fastest(lambda: function(matrix, x), 4)
torch_matrix, torch_x = torch.from_numpy(matrix), torch.from_numpy(x)[None]
linear = torch.nn.functional.linear
torch.set_num_threads(cores)
rate["torch, one row"] = matrix.nbytes / fastest(lambda: linear(torch_x, torch_matrix))
torch.set_num_threads(1)
limit = max(limit, *rate.values(), read_limit())
for name, value in rate.items():
    print(f"{name:26} {value / 1e9:8.3f} GB/s  {value / limit:6.1%} of the limit")

# %% [markdown]
# Five lines of Python read as fast as the machine can. That is all there is to it: a kernel
# that is limited by memory needs no clever arithmetic, only to keep the memory busy. (Is
# yours far below? The inner loop should go along a row: its numbers lie side by side.)
#
# ## 3. A whole step by hand
#
# What else is in a Llama? Little. Four small functions and a loop over the layers.

# %% [markdown]
# ### Exercise 14.4 · `rms_norm`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 2 lines
#
# Scale a vector to a mean square of 1, then number by number with the weights:
# x / √(mean(x²) + eps) · weight.
#
# By hand: x = [3, 4] with weights 1 and eps 0: the mean square is 12.5, its root 3.5355,
# so [0.8485, 1.1314].
#
# <details><summary>Hint 1</summary>Make the factor a <code>np.float32</code> before you
# multiply: then all stays float32, in numba, too.</details>


# %% tags=["exercise"]
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x, weight: (n,) float32. Returns a new (n,) float32 array."""
    ### BEGIN SOLUTION
    scale = np.float32(1 / np.sqrt(np.mean(x * x) + eps))
    return weight * (x * scale)
    ### END SOLUTION


# %% tags=["check"]
check(rms_norm)

# %% [markdown]
# ### Exercise 14.5 · `rotate`
#
# difficulty ★★☆ · importance ★★☆ · 20 min · our answer: 9 lines
#
# The rotary embedding tells queries and keys where they stand. It takes the numbers of a
# head in pairs: number i of the first half with number i of the second half. Each pair is a
# point in the plane, and is turned by the angle position / theta^(i / half):
# a' = a cos − b sin, b' = b cos + a sin.
#
# By hand: a head of size 2 (half = 1, so i = 0 and the angle is the position). At position
# 0 nothing moves. At π/2 (if there were such a position) [1, 0] becomes [0, 1].
#
# <details><summary>Hint 1</summary><code>np.arange(half) / half</code> are the exponents;
# <code>cos</code> and <code>sin</code> are (half,) and fit every head.</details>
# <details><summary>Hint 2</summary><code>both = np.concatenate((q, k))</code> turns queries
# and keys at once; cut the result in two at the end.</details>


# %% tags=["exercise"]
def rotate(
    q: np.ndarray, k: np.ndarray, position: float, theta: float
) -> tuple[np.ndarray, np.ndarray]:
    """q: (heads, d) float32. k: (kv_heads, d) float32. Returns both turned, as new
    float32 arrays."""
    ### BEGIN SOLUTION
    half = q.shape[1] // 2
    angle = position / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    both = np.concatenate((q, k))
    a, b = both[:, :half], both[:, half:]
    turned = np.empty_like(both)
    turned[:, :half] = a * cos - b * sin
    turned[:, half:] = b * cos + a * sin
    return turned[: len(q)], turned[len(q) :]
    ### END SOLUTION


# %% tags=["check"]
check(rotate)

# %% [markdown]
# ### Exercise 14.6 · `attend`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 17 lines
#
# Attention of one token to all that is in the cache, its own key and value included: no
# mask is needed. Each key-value head serves heads / kv_heads query heads that stand side by
# side. For numba write the sums as loops (its `@` asks for another package).
#
# By hand: one head of size 1, query 0, keys [5, 7], values [10, 20]: both scores are 0, so
# the result is 15. With two query heads and two key-value heads, head 1 looks at
# key-value head 1; with four query heads, heads 0 and 1 look at key-value head 0.
#
# <details><summary>Hint 1</summary>Query head h uses key-value head
# <code>h // (heads // kv_heads)</code>.</details>
# <details><summary>Hint 2</summary>Softmax: subtract the largest score before
# <code>np.exp</code>, and divide by the sum.</details>
# <details><summary>Hint 3</summary>Later <code>keys</code> will be a slice of the cache: its
# heads do not lie side by side in memory. <code>np.ascontiguousarray(keys)</code> puts them
# there, and the compiled loop becomes twice as fast.</details>


# %% tags=["exercise"]
def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """q: (heads, d). keys, values: (kv_heads, length, d), all float32.

    Returns (heads, d) float32.
    """
    ### BEGIN SOLUTION
    heads, d = q.shape
    kv_heads, length, _ = keys.shape
    scale = np.float32(1 / np.sqrt(d))
    scores = np.empty(length, np.float32)
    out = np.zeros((heads, d), np.float32)
    # Part of a larger array has gaps, and numba's vectors want neighbours: a copy
    keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
    for h in range(heads):
        g = h // (heads // kv_heads)
        for i in range(length):
            total = np.float32(0)
            for j in range(d):
                total += q[h, j] * keys[g, i, j]
            scores[i] = total * scale
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        for i in range(length):
            for j in range(d):
                out[h, j] += shares[i] * values[g, i, j]
    return out
    ### END SOLUTION


# %% tags=["check"]
check(attend)

# %% [markdown]
# Now the loop over the layers. `weights` holds the arrays of the model
# (`tiny_models.kernels.Weights`): `qkv`, `o`, `gate_up`, `down`, each
# (layers, rows, columns), where q, k and v stand below each other in one matrix, and gate
# and up in another; `head`, (1, vocab, hidden); `embed`, `norm1`, `norm2` (layers, hidden)
# and `norm`; and in `weights.shape` the numbers `layers`, `heads`, `kv_heads`,
# `head_size`, `eps`, `theta`. Two helpers are there: `product(matrix, layer, x)` and
# `swiglu(gate_up)`. Multiply with `product` only, and take the number of layers from
# `weights.shape`: in section 4 the matrices will be no arrays.

# %% [markdown]
# ### Exercise 14.7 · `step_by_hand`
#
# difficulty ★★★ · importance ★★★ · 35 min · our answer: 21 lines
#
# One token through the model. In each layer:
#
# 1. x normed with `norm1` times `qkv`: rows for q, then k, then v, `head_size` each;
# 2. `rotate` q and k to the token's position, which is the cache's length so far; write k
#    and v there;
# 3. `attend` to all positions up to this one; the result times `o` is added to x;
# 4. x normed with `norm2` times `gate_up`, through `swiglu`, times `down`, is added to x.
#
# At the end x, normed with `norm`, times the head, gives the logits.
#
# By hand: with an empty cache the token stands at position 0, and attention returns its own
# value. Afterwards `cache.length[0]` is 1.
#
# <details><summary>Hint 1</summary><code>qkv.reshape(-1, head_size)</code> is one head a
# row: <code>heads</code> rows of q, <code>kv_heads</code> of k, <code>kv_heads</code> of
# v.</details>
# <details><summary>Hint 2</summary><code>cache.keys[layer, :, n] = k</code> writes;
# <code>cache.keys[layer, :, : n + 1]</code> is what attention sees.</details>
# <details><summary>Hint 3</summary><code>x = weights.embed[token].copy()</code>: without a
# copy you would add to the embedding itself.</details>


# %% tags=["exercise"]
def step_by_hand(weights: Weights, token: int, cache: Cache) -> np.ndarray:
    """The logits after `token`, given the tokens in the cache: (vocab,) float32.

    cache: keys, values (layers, kv_heads, positions, head_size) float32; length (1,)
    int64; the token is added to it in place.
    """
    ### BEGIN SOLUTION
    s, n = weights.shape, cache.length[0]
    x = weights.embed[token].copy()
    for layer in range(s.layers):
        # 1. Queries, keys, values
        h = rms_norm(x, weights.norm1[layer], s.eps)
        qkv = product(weights.qkv, layer, h).reshape(-1, s.head_size)
        q, k = qkv[: s.heads], qkv[s.heads : s.heads + s.kv_heads]
        # 2. Positions, and into the cache
        q, k = rotate(q, k, n, s.theta)
        cache.keys[layer, :, n] = k
        cache.values[layer, :, n] = qkv[s.heads + s.kv_heads :]
        # 3. Attention
        keys, values = cache.keys[layer, :, : n + 1], cache.values[layer, :, : n + 1]
        x += product(weights.o, layer, attend(q, keys, values).reshape(-1))
        # 4. The feed-forward network
        h = rms_norm(x, weights.norm2[layer], s.eps)
        inner = swiglu(product(weights.gate_up, layer, h))
        x += product(weights.down, layer, inner)
    cache.length[0] = n + 1
    return product(weights.head, 0, rms_norm(x, weights.norm, s.eps))
    ### END SOLUTION


# %% tags=["check"]
check(step_by_hand)

# %% [markdown]
# ### Exercise 14.8 · `decode_fast`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 12 lines
#
# Greedy decoding with `step_by_hand`: feed the prompt token by token, then what was picked.
# `new_cache(weights, positions)` makes an empty cache.
#
# By hand: a prompt of 3 tokens and 2 new ones take 4 steps: the last token is not fed.
#
# <details><summary>Hint 1</summary><code>ids[0].tolist()</code> are the prompt's ids as
# integers; <code>logits.argmax()</code> picks.</details>


# %% tags=["exercise"]
def decode_fast(
    weights: Weights, ids: torch.Tensor, max_new_tokens: int, eos_ids: list[int]
) -> torch.Tensor:
    """ids: (1, seq) int64, not empty. Returns (1, seq + new) int64.

    Stops after max_new_tokens, or after one of eos_ids, which is kept.
    """
    ### BEGIN SOLUTION
    text = ids[0].tolist()
    cache = new_cache(weights, len(text) + max_new_tokens)
    if max_new_tokens == 0:
        return ids.clone()
    for token in text:
        logits = step_by_hand(weights, token, cache)
    for n in range(max_new_tokens):
        text.append(int(logits.argmax()))
        if text[-1] in eos_ids or n + 1 == max_new_tokens:
            break
        logits = step_by_hand(weights, text[-1], cache)
    return torch.tensor([text])
    ### END SOLUTION


# %% tags=["check"]
check(decode_fast)

# %% [markdown]
# First with numpy's products, as it stands. The four small functions are compiled: from
# here on their names stand for the compiled ones. The step itself is your Python.

# %% tags=["kernels"]
rms_norm, rotate, attend, swiglu = map(compiled, (rms_norm, rotate, attend, swiglu))


# %%
def measure(name, weights, new=NEW):
    """Decode, compare with generate, and keep the seconds a token."""
    out = decode_fast(weights, ids, new, [])
    same = torch.equal(out, reference)
    cache = new_cache(weights, ids.shape[1] + new)
    for token in out[0].tolist()[:-4]:
        step_by_hand(weights, token, cache)
    last = cache.length[0]

    def four_steps():
        cache.length[0] = last
        for token in out[0].tolist()[-4:]:
            step_by_hand(weights, token, cache)

    seconds[name] = fastest(four_steps, 3) / 4
    ratio = seconds["generate"] / seconds[name]
    print(f"{name:34} {seconds[name] * 1000:6.2f} ms {ratio:5.1f} x   same: {same}")


# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", numba.NumbaPerformanceWarning)
    measure("by hand, numpy", weights)

# %% [markdown]
# The same tokens as `generate`. Now your whole step compiled. `overload` tells numba what to
# put in place of `product`, for which kind of matrix. (The step must be Python that numba
# knows: arrays, slices, loops; no `@` or `np.dot`, for which it asks for another package,
# and no `einsum`. Where it refuses yours, change the function, and run the cells from
# "First with numpy's products" on again.)


# %% tags=["kernels"]
@overload(product)
def product_of(matrix, layer, x):
    if isinstance(matrix, types.Array):  # float32
        return lambda matrix, layer, x: shared_matvec(matrix[layer], x)
    if matrix.count == 3:  # Q4 of section 4 has 3 fields, Q8 has 2
        return lambda matrix, layer, x: q4_tiles(matrix.q, matrix.d, matrix.m, layer, x)
    return lambda matrix, layer, x: q8_tiles(matrix.q, matrix.d, layer, x)


step_by_hand = compiled(step_by_hand)

# %%
start = time.perf_counter()
step_by_hand(weights, 0, new_cache(weights, 1))
print(f"compiled in {time.perf_counter() - start:.1f} s")
measure("by hand, compiled, float32", weights)

# %% [markdown]
# That is the memory's limit in float32, and your own code has reached most of it. From here
# on only one thing helps a single text: fewer bytes.
#
# ## 4. Fewer bytes
#
# The usual way is to round the weights. With 8 bits each row gets a scale, and each weight
# becomes the nearest of 255 values, −127 to 127.

# %% [markdown]
# ### Exercise 14.9 · `quantise_int8`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# For each row the scale that maps its largest absolute weight to 127, and the weights
# divided by it, rounded to the nearest integer.
#
# By hand: the row [1.0, −0.5, 0.25] has the scale 1/127, and becomes [127, −64, 32]
# (−63.5 and 31.75 are rounded; halves go to the even neighbour). A row of zeros has the
# scale 1 and stays zeros.
#
# <details><summary>Hint 1</summary><code>np.abs(weight).max(axis=1)</code>,
# <code>np.rint</code>.</details>
# <details><summary>Hint 2</summary>Where the largest is 0, dividing by the scale gives NaN:
# <code>np.where(largest == 0, ...)</code> first.</details>


# %% tags=["exercise"]
def quantise_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight: (rows, columns) float32. Returns int8 (rows, columns), float32 (rows,).

    The integers times their row's scale are within half a scale of the weights.
    """
    ### BEGIN SOLUTION
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest == 0, 1, largest / np.float32(127)).astype(np.float32)
    rounded = np.rint(weight / scale[:, None])
    return rounded.astype(np.int8), scale
    ### END SOLUTION


# %% tags=["check"]
check(quantise_int8)

# %% [markdown]
# What does the rounding cost? A model with rounded weights, and the perplexity (lesson 08)
# of a text that it did not write:

# %%
TEXT = (
    "The lighthouse at the end of the long grey harbour wall had been dark for eleven "
    "years when the town council, after many arguments about money and one about "
    "seagulls, decided to light it again. Nobody could find the key. The last keeper "
    "had moved inland to live with his daughter, and he wrote back on a postcard."
)


def perplexity_of(one):
    text = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = one(text, labels=text).loss
    return loss.exp().item()


# %%
rounded = copy.deepcopy(model)
for layer in rounded.model.layers:
    for linear_layer in layer.modules():
        if isinstance(linear_layer, torch.nn.Linear):
            w = linear_layer.weight.data
            q, scale = quantise_int8(w.numpy())
            w.copy_(torch.from_numpy(q * scale[:, None]))
print(f"float32 {perplexity_of(model):.3f}   int8 {perplexity_of(rounded):.3f}")
out = generate(one=rounded)
print("the same tokens as before:", torch.equal(out, reference))

# %% [markdown]
# The text is as likely as before, and yet the tokens may differ: rounding moves every logit
# a little, and now and then the two best change places. (Here only the layers are rounded,
# and the arithmetic is still float32.)
#
# But these weights are special. Where do they come from? The file that the course fetched
# holds them in 4-bit blocks (`Q4_1`): the float32 model *is* this file, written out. So
# reading the blocks themselves loses nothing at all. A block is 20 bytes for 32 weights:
#
# | bytes | what |
# |---|---|
# | 0, 1 | d, a float16: the step between two neighbouring values |
# | 2, 3 | m, a float16: the smallest value |
# | 4 to 19 | 32 numbers from 0 to 15: byte 4 + j holds number j in its lower four bits, and number j + 16 in its upper ones |
#
# A weight is d · number + m.

# %% [markdown]
# ### Exercise 14.10 · `unpack_q4_1`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 10 lines
#
# The weights of rows of such blocks, in float32.
#
# By hand: a block with d = 0.5, m = −1, whose first byte of numbers is 0x2F (lower four
# bits 15, upper four 2), the others 0: weight 0 is 0.5 · 15 − 1 = 6.5, weight 16 is
# 0.5 · 2 − 1 = 0, all others are −1.
#
# <details><summary>Hint 1</summary><code>.reshape(rows, -1, 20)</code>: one block a row of
# the last axis.</details>
# <details><summary>Hint 2</summary>Two bytes as a float16:
# <code>np.ascontiguousarray(blocks[..., :2]).view("&lt;f2")</code>.</details>
# <details><summary>Hint 3</summary><code>bytes &amp; 15</code> and
# <code>bytes &gt;&gt; 4</code>; first all the lower ones, then the upper ones.</details>


# %% tags=["exercise"]
def unpack_q4_1(blocks: np.ndarray | bytes) -> np.ndarray:
    """blocks: (rows, 20 n) uint8, n blocks a row; bytes are one row.

    Returns (rows, 32 n) float32.
    """
    ### BEGIN SOLUTION
    if isinstance(blocks, bytes):
        blocks = np.frombuffer(blocks, np.uint8)[None]
    split = blocks.reshape(len(blocks), -1, 20)
    d = np.ascontiguousarray(split[..., 0:2]).view("<f2").astype(np.float32)
    m = np.ascontiguousarray(split[..., 2:4]).view("<f2").astype(np.float32)
    numbers = np.concatenate((split[..., 4:] & 15, split[..., 4:] >> 4), axis=-1)
    return (d * numbers + m).reshape(len(blocks), -1)
    ### END SOLUTION


# %% tags=["check"]
check(unpack_q4_1)

# %% tags=["nbval-check-output"]
raw = read_gguf(gguf_path(), pack=as_they_are)
equal = [np.array_equal(unpack_q4_1(raw.o[n]), weights.o[n]) for n in range(30)]
print("bit for bit the float32 weights, in", sum(equal), "of 30 layers")

# %% [markdown]
# ### Exercise 14.11 · `q4_matvec`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 14 lines
#
# The product with a matrix that stays in its blocks: no array of unpacked weights is made.
# Loops again, for numba, and the rows shared by `prange`.
#
# By hand: the block above times a vector of ones: 6.5 + 0 − 30 = −23.5.
#
# <details><summary>Hint 1</summary>For block b of row i: <code>at = 20 * b</code>; bytes
# <code>blocks[i, at + 4 + j]</code> with <code>x[32 * b + j]</code> (lower) and
# <code>x[32 * b + j + 16]</code> (upper).</details>
# <details><summary>Hint 2</summary>numba cannot make a float16 of two bytes; the helper
# <code>half(low, high)</code> can: d is
# <code>half(blocks[i, at], blocks[i, at + 1])</code>.</details>
# <details><summary>Hint 3</summary>d and m are the same for a whole block: add up number · x
# and x alone, and use d and m once at its end. (Or make each weight: both are
# right.)</details>


# %% tags=["exercise"]
def q4_matvec(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """blocks: (rows, 20 n) uint8. x: (32 n,) float32. Returns (rows,) float32."""
    ### BEGIN SOLUTION
    rows, length = blocks.shape
    out = np.empty(rows, np.float32)
    for i in prange(rows):
        total = np.float32(0)
        for b in range(length // 20):
            at, column = 20 * b, 32 * b
            d = half(blocks[i, at], blocks[i, at + 1])
            m = half(blocks[i, at + 2], blocks[i, at + 3])
            for j in range(16):
                byte = blocks[i, at + 4 + j]
                total += (d * (byte & 15) + m) * x[column + j]
                total += (d * (byte >> 4) + m) * x[column + j + 16]
        out[i] = total
    return out
    ### END SOLUTION


# %% tags=["check"]
check(q4_matvec)

# %%
half = compiled(half)
file_matvec = parallel(q4_matvec)
blocks = raw.gate_up[0]  # (3072, 360)
h = np.ones(weights.shape.hidden, np.float32)
wanted = weights.gate_up[0] @ h
print("largest difference", np.abs(file_matvec(blocks, h) - wanted).max())
took = fastest(lambda: file_matvec(blocks, h), 20)
print(f"{took * 1e6:6.0f} µs for {blocks.size:,} bytes of blocks")
took = weights.gate_up[0].nbytes / limit
print(f"{took * 1e6:6.0f} µs for the same in float32, as fast as memory allows")

# %% [markdown]
# Exact, from a sixth of the bytes, and yet no faster than float32: now the arithmetic is
# the limit. In the file's order there is little for long vectors to do: every 32 numbers
# come new scales, the bytes have to be taken apart, and the products of neighbours, which
# belong to the same row, have to be added up across the vector. **Change the order, not the
# values.** Put the same number of R neighbouring rows side by side: then one instruction
# works on many rows, and sums never run across a vector.

# %% tags=["kernels"]
R = 48  # rows of a tile: a multiple of 16, the numbers in the largest vectors


def tiles(a):
    """(layers, rows, ...) -> (layers, rows / R, ..., R): same values, other order."""
    layers, rows = a.shape[:2]
    a = a.reshape(layers, rows // R, R, *a.shape[2:])
    return np.ascontiguousarray(np.moveaxis(a, 2, -1))


# %% tags=["kernels"]
def tiles_of_q4(blocks):
    """(layers, rows, 20 n) -> numbers (layers, tiles, n, 16 R), d and m."""
    split = blocks.reshape(*blocks.shape[:2], -1, 20)
    d, m = (np.ascontiguousarray(split[..., i : i + 2]).view("<f2") for i in (0, 2))
    scales = (tiles(a[..., 0].astype(np.float32)) for a in (d, m))
    q = tiles(split[..., 4:])
    return Q4(q.reshape(*q.shape[:3], -1), *scales)


class Q4(NamedTuple):
    q: np.ndarray  # (layers, tiles, blocks, 16 R) uint8
    d: np.ndarray  # (layers, tiles, blocks, R) float32
    m: np.ndarray


# %% tags=["kernels"]
@compiled
def q4_tile(q, d, m, x, sums, y):
    """R rows times x (blocks, 32): byte j of row r is number j * R + r of a block."""
    y[:] = np.float32(0)
    for b in range(len(q)):
        numbers, part, d_b, m_b = q[b], x[b], d[b], m[b]
        for r in range(R):
            s = np.float32(0)
            for j in range(16):
                byte = numbers[j * R + r]
                s += np.float32(np.uint8(byte & 15)) * part[j]
                s += np.float32(np.uint8(byte >> 4)) * part[16 + j]
            y[r] += d_b[r] * s + m_b[r] * sums[b]


# %% tags=["kernels"]
@parallel
def q4_tiles(q, d, m, layer, x):
    out = np.empty(q.shape[1] * R, np.float32)
    x = x.reshape(-1, 32)
    sums = np.zeros(len(x), np.float32)  # what m is multiplied with
    for b in range(len(x)):
        for j in range(32):
            sums[b] += x[b, j]
    for i in prange(q.shape[1]):
        place = out[i * R : i * R + R]
        q4_tile(q[layer, i], d[layer, i], m[layer, i], x, sums, place)
    return out


# %% [markdown]
# The embedding, which is the head, too, is stored with 8 bits (`Q8_0`: a float16 d and 32
# signed bytes; a weight is d · number). The same idea:


# %% tags=["kernels"]
class Q8(NamedTuple):
    q: np.ndarray  # (layers, tiles, blocks, 32 R) int8
    d: np.ndarray  # (layers, tiles, blocks, R) float32


def tiles_of_q8(blocks):
    split = blocks.reshape(*blocks.shape[:2], -1, 34)
    d = np.ascontiguousarray(split[..., :2]).view("<f2")[..., 0].astype(np.float32)
    q = tiles(split[..., 2:].view(np.int8))
    return Q8(q.reshape(*q.shape[:3], -1), tiles(d))


# %% tags=["kernels"]
@compiled
def q8_tile(q, d, x, y):
    y[:] = np.float32(0)
    for b in range(len(q)):
        numbers, part, d_b = q[b], x[b], d[b]
        for r in range(R):
            s = np.float32(0)
            for j in range(32):
                s += np.float32(numbers[j * R + r]) * part[j]
            y[r] += d_b[r] * s


@parallel
def q8_tiles(q, d, layer, x):
    out = np.empty(q.shape[1] * R, np.float32)
    x = x.reshape(-1, 32)
    for i in prange(q.shape[1]):
        q8_tile(q[layer, i], d[layer, i], x, out[i * R : i * R + R])
    return out


# %% tags=["kernels"]
def packed(raw):
    """The weights of a Q4_1 file, as they are there, in tiles."""
    layers = {n: tiles_of_q4(getattr(raw, n)) for n in ("qkv", "o", "gate_up", "down")}
    return raw._replace(**layers, head=tiles_of_q8(raw.head))


# %%
bits = packed(raw)
q4_tiles(*bits.gate_up, 0, h)  # compiles
took = {"in blocks": fastest(lambda: file_matvec(blocks, h), 20)}
took["in tiles"] = fastest(lambda: q4_tiles(*bits.gate_up, 0, h), 20)
for name, seconds_taken in took.items():
    print(f"{seconds_taken * 1e6:6.0f} µs {name}")

# %%
raw = weights = None  # room for others
start = time.perf_counter()
step_by_hand(bits, 0, new_cache(bits, 1))
print(f"compiled in {time.perf_counter() - start:.1f} s")
measure("by hand, compiled, 4 bits", bits)

# %% [markdown]
# Layout alone makes the kernel many times as fast. The same Python step, the same tokens,
# from a sixth of the bytes. `tiny_models.kernels`
# holds the same idea carried to its end: explicit vectors, a request for the next tile's
# bytes before they are needed, and threads that stay awake for the whole step (so it needs
# no threading layer). Its `Decoder` is what lessons 13 and 17 build on. `python start.py
# bench` compares all of them with more care than this notebook can: in turns, many rounds.

# %%
text = reference[0].tolist()


def measure_module(name, decoder):
    new = decoder.generate(text[: ids.shape[1]], NEW)
    seconds[name] = fastest(lambda: decoder(text[-2:-1], [len(text) - 2]), 30)
    print(f"{name:34} same: {new == text[ids.shape[1] :]}")


measure_module("our module, float32", Decoder(read_model(model), threads=cores))
decoder = Decoder(read_gguf(gguf_path()), threads=cores, slots=2)
measure_module("our module, 4 bits", decoder)

# %%
four_bits = bytes_per_token(model.config, 5)
head = model.config.vocab_size * model.config.hidden_size
four_bits += head * (8.5 - 5) / 8  # Q8_0: 34 bytes for 32 weights of the head
limit = max(limit, read_limit())
for name, took in seconds.items():
    size = four_bits if "4 bits" in name else bytes_per_token(model.config, 32)
    share = size / took / limit
    print(f"{name:30} {seconds['generate'] / took:5.1f} x, {share:4.0%} of the limit")

# %% [markdown]
# The picture of this lesson, from your own run:

# %%
fig, ax = plt.subplots(figsize=(7.5, 3))
quickest_last = sorted(seconds, key=seconds.get, reverse=True)
colour = {"generate": figures.GREY, "our m": figures.GREEN, "by ha": figures.BLUE}
figures.token_bars(
    ax,
    quickest_last,
    [seconds["generate"] / seconds[name] for name in quickest_last],
    colours=[colour.get(name[:5], figures.GREY) for name in quickest_last],
    fmt="{:.1f} x",
)
ax.set_title("The same tokens, times as many a second as generate")
plt.show()

# %% [markdown]
# ## 5. Several rows at once
#
# A step is limited by memory: the arithmetic waits. So what does it cost to run two tokens
# at once, each weight read once for both? **Predict:** the time of a call with 1, 2, 4 and 8
# tokens.

# %%
cost, start = {}, len(text) - 9
for width in (1, 2, 4, 8):
    part, places = text[start : start + width], range(start, start + width)
    decoder(part, places)  # compiles
    cost[width] = fastest(lambda part=part, places=places: decoder(part, places), 20)
print("tokens in a call   ms   of one   tokens a second")
for width, took in cost.items():
    print(f"{width:16} {took * 1000:5.2f} {took / cost[1]:7.2f} {width / took:15.0f}")

# %% [markdown]
# The second token costs little. Two things live on that: a *batch* (the tokens belong to
# different texts, lesson 17), and *speculation* (they are guesses of one text's
# continuation, all checked in one call, lesson 13). With 4-bit blocks the arithmetic soon
# becomes the limit, and guesses must be right more often to pay. The module's own
# speculation looks the guesses up in the text itself. **Predict** the number of calls for
# 48 tokens of a text that repeats itself:

# %%
given = tokenizer(f"{TEXT}\n\n{TEXT}\n\n{TEXT[:60]}")["input_ids"]
new, calls = generate_with_lookup(decoder, given, 48)
print(f"{len(new)} tokens in {calls} calls after the prompt")
print("same:", new == decoder.generate(given, 48))
cost = {"one by one": fastest(lambda: decoder.generate(given, 48), 3)}
cost["by lookup"] = fastest(lambda: generate_with_lookup(decoder, given, 48), 3)
print(f"{cost['one by one'] / cost['by lookup']:.1f} times as fast, prompt included")

# %% [markdown]
# ## 6. The same tokens?
#
# "At temperature 0 the model is deterministic." Test it: is a row's result the same alone
# and in a batch, to the last bit?

# %%
half_model = copy.deepcopy(model).to(torch.bfloat16)
batch = ids[0, :8, None]  # the first tokens of 8 texts, one row each
with torch.no_grad():
    for one in (model, half_model):
        alone, together = one(batch[:1]).logits[0, -1], one(batch).logits[0, -1]
        difference = (alone - together).abs().max().item()
        print(f"{str(one.dtype):15} alone and in a batch differ by {difference:.2g}")

# %%
prompt_ids = text[: ids.shape[1]]
decoder.prefill(prompt_ids)
alone = decoder.logits[-1].copy()
decoder.prefill(prompt_ids[:-1])
decoder.prefill(prompt_ids[::-1], slot=1)
n = len(prompt_ids)
decoder([prompt_ids[-1], 50], [n - 1, n], [0, 1])
difference = np.abs(alone - decoder.logits[0]).max()
print(f"our module      alone and in a batch differ by {difference}")

# %% [markdown]
# Where the first two are not 0, the library has chosen another kernel for another number of
# rows, and it adds in another order. (Which numbers of rows share a kernel depends on the
# machine.) He (2025) shows what it does on GPUs in bfloat16, with its 8 significant bits:
# there it is enough to change tokens, so the answer at temperature 0 depends on who else is
# being served at that moment, and each run of the server may give another one. So
# "deterministic" holds for the same program, on the same machine, with the same calls, and
# for no more than that. Ours adds in one order whatever the batch: the bits are the same.
#
# How often does rounding change a text? Greedy tokens, compared with float32 `generate`:

# %%
prompts = [
    "The capital of France is",
    "Once upon a time there was a",
    "import numpy as np",
    "The three largest cities are",
    "Water boils when",
    "Dear Sir or Madam,",
    "def is_prime(n):",
    "The best way to learn is",
    "In the beginning",
    "A recipe for bread:",
    "To be or not to be",
    "The history of the city begins in the year",
]


# %%
def continued(one, prompt, new=6):
    given = tokenizer(prompt, return_tensors="pt").input_ids
    out = one.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
    )
    return out[0].tolist()


# %%
torch.set_num_threads(cores)
oracle = [continued(model, prompt) for prompt in prompts]
variants = {"bfloat16": half_model, "int8 layers": rounded}
variants["float16"] = copy.deepcopy(model).half()
for name, one in variants.items():
    same = sum(continued(one, p) == o for p, o in zip(prompts, oracle, strict=True))
    print(f"{name:12} {same:2} of {len(prompts)} continuations of 6 tokens are equal")
torch.set_num_threads(1)
same = sum(decoder.generate(o[:-6], 6) == o[-6:] for o in oracle)
print(f"4-bit blocks {same:2} of {len(prompts)}, by our module")

# %% [markdown]
# ## Questions
#
# 1. A model of 8 billion weights in bfloat16 runs on a machine that reads 1,000 GB/s. How
#    many tokens a second at most, for one user? For 32 users at once?
# 2. Why does `fastmath` help a sum over a row, and not the tile kernel?
# 3. Someone reports that 4-bit weights "make the model worse". Why not here?
#
# <details><summary>Answers</summary>
#
# 1. 16 GB a token: 62 tokens a second. With 32 users the weights are read once for all of
#    them: up to 2,000 in total, as long as the arithmetic keeps up and the caches of all
#    users fit (they have to be read, too, by each).
# 2. A sum over a row is one chain of additions: only in another order can several go on at
#    once. In a tile each row has a chain of its own.
# 3. The loss came when the file was made. The course's float32 weights are that file, written
#    out: reading its blocks gives the same numbers.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | llama.cpp |
# |---|---|---|---|---|
# | smaller weights | not published | `quantization_config` | `quantization` | the file's type, `Q4_1` |
# | the step as one program | not published | `torch.compile`, `cache_implementation="static"` | CUDA graphs, on | always |
# | threads | – | `torch.set_num_threads` | – | `--threads` |
# | the same bits in every batch | no: `seed` is "best effort" | no | `VLLM_BATCH_INVARIANT=1` | no |
#
# llama.cpp reads the same blocks, and rounds the activations to 8 bits as well: faster
# arithmetic, other tokens.
#
# ## To read
#
# - Williams, Waterman, Patterson: *Roofline*, 2009,
#   [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785). Which limit a
#   program has reached.
# - Pope et al.: *Efficiently Scaling Transformer Inference*, 2022,
#   [arXiv:2211.05102](https://arxiv.org/abs/2211.05102). What a decode step reads.
# - Dettmers et al.: *LLM.int8()*, 2022,
#   [arXiv:2208.07339](https://arxiv.org/abs/2208.07339). Eight bits, a scale a row.
# - He and Thinking Machines Lab: *Defeating Nondeterminism in LLM Inference*, 2025,
#   [thinkingmachines.ai](https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/).
#   Why the batch changes the answer.
