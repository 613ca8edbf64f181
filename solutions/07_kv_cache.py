# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · The KV cache
#
# **After this lesson your decoder does the work of one token a step instead of the whole
# text, and you can rewind, share and size the memory that makes it possible.**
#
# You write: `attention_with_cache`, `cached_step`, `position_ids`, `decode_cached`,
# `rollback`, `reuse_prefix` and `cache_bytes`. About 100 minutes. Builds on lessons 03 and
# 05: the loops come along in the first cell.

# %% tags=["setup"]
import copy
from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedConfig

from course import carry

decode_batch = carry("decode_batch")
is_finished = carry("is_finished")
pick_greedy = carry("pick_greedy")

# %%
import time

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()


def ids_of(text):
    return tokenizer(text, return_tensors="pt").input_ids.to(model.device)


# %% [markdown]
# ## 1. What is computed again
#
# The loop of lesson 03 runs the whole text through the model at each step. How much of that
# is new? In a decoder no position looks ahead. So what the model computes at a position
# cannot change when a token is added behind it. **Predict:** by how much do the logits of
# the first five positions change when the sixth token comes?

# %% tags=["nbval-check-output"]
ids = ids_of("The capital of France is Paris")
with torch.no_grad():
    short, long = model(ids[:, :-1]).logits, model(ids).logits
print("largest change below 0.001:", bool((short - long[:, :-1]).abs().max() < 1e-3))

# %% [markdown]
# Not at all (but for rounding). Five of six positions were computed for nothing.
#
# What does the new position need of the old ones? In each attention layer every position
# makes three vectors: a *query* (what it looks for), a *key* (what it offers) and a *value*
# (what it hands over). The new position compares its query with the keys of all positions,
# and takes a weighted mean of their values. The old keys and values are the same as before.
# Keep them, and only the new token has to be computed: that is the *KV cache*.

# %% [markdown]
# ### Exercise 07.1 · `attention_with_cache`
#
# difficulty ★★★ · importance ★★★ · 20 min · our answer: 11 lines
#
# Causal attention for new positions that stand behind those in a cache. A cache is a pair
# (keys, values), or `None` at the start. Append the new keys and values, then let each new
# position look at everything in the cache and at the new ones up to itself:
# softmax(q · kᵀ / √d) · v.
#
# By hand: one head, d = 1, cache with key 0 and value 10; new query 0, key 0, value 20. Both
# scores are 0, so the weights are 1/2 each, and the result is 15. The new cache has the keys
# 0, 0 and the values 10, 20.
#
# <details><summary>Hint 1</summary><code>torch.cat([old, new], dim=-2)</code> appends along
# the positions, and makes a new tensor.</details>
# <details><summary>Hint 2</summary>Scores have the shape
# <code>(batch, heads, new, old + new)</code>. New position i may see the first old + i + 1
# columns.</details>
# <details><summary>Hint 3</summary>A mask of ones above a diagonal, on the device of
# <code>q</code>: <code>torch.ones(new, total, dtype=torch.bool,
# device=q.device).triu(old + 1)</code>.</details>
# <details><summary>Hint 4</summary>In float16 a score may be above the largest number, 65,504,
# and a "large" -1e9 does not exist: compute with <code>q.float()</code> and its like, mask with
# -inf, and give the output the dtype of <code>q</code>.</details>


# %% tags=["exercise"]
def attention_with_cache(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Causal attention of new positions to cached ones and to themselves.

    q, k_new, v_new: (batch, heads, new, d), of one float dtype, as is all that comes
    back; scores are float32. cache: (keys, values), each (batch, heads, old, d); None
    is an empty one. The arguments are left unchanged.
    Returns the output (batch, heads, new, d) and the grown cache.
    """
    ### BEGIN SOLUTION
    keys, values = k_new, v_new
    if cache is not None:
        keys = torch.cat([cache[0], k_new], dim=-2)
        values = torch.cat([cache[1], v_new], dim=-2)
    new, total = q.shape[-2], keys.shape[-2]
    scores = q.float() @ keys.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    ones = torch.ones(new, total, dtype=torch.bool, device=q.device)
    scores = scores.masked_fill(ones.triu(total - new + 1), float("-inf"))
    output = scores.softmax(-1) @ values.float()  # (batch, heads, new, d)
    return output.to(q.dtype), (keys, values)
    ### END SOLUTION


# %% tags=["check"]
check(attention_with_cache)

# %% [markdown]
# ## 2. One token a step
#
# In `transformers` a `DynamicCache` holds such a pair for each layer, and the model fills it.
# Two phases have names of their own: the *prefill* runs the whole prompt once, then each
# *decode step* runs one token.

# %% [markdown]
# ### Exercise 07.2 · `cached_step`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 3 lines
#
# Run `token` alone through the model, in one call, without gradients, and with what is in the
# cache before it. Return the float32 logits after its last position, and the cache.
#
# By hand: `cached_step(model, ids[:, :3], None)` is a prefill: it returns the logits after
# three tokens, and a cache of length 3. With that cache `cached_step(model, ids[:, 3:4],
# cache)` gives the logits after four tokens, and the model has seen one.
#
# <details><summary>Hint 1</summary>The model takes <code>past_key_values=cache</code> and
# <code>use_cache=True</code>; the output has <code>past_key_values</code>.</details>
# <details><summary>Hint 2</summary>As in lesson 03: no gradients, last position,
# <code>.float()</code>.</details>


# %% tags=["exercise"]
def cached_step(
    model, token: torch.Tensor, cache: DynamicCache | None
) -> tuple[torch.Tensor, DynamicCache]:
    """The logits after `token`, given what is in the cache, and the grown cache.

    token: (batch, n) int64, without padding: the prompt, or the n tokens behind the
    cache, mostly one. cache: of the text before, or None. Returns (batch, vocab)
    float32 logits, and the cache, which may be the same object.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        output = model(token, past_key_values=cache, use_cache=True)
    return output.logits[:, -1].float(), output.past_key_values
    ### END SOLUTION


# %% tags=["check"]
check(cached_step)

# %% tags=["nbval-check-output"]
logits, cache = cached_step(model, ids_of("The capital of France is"), None)
keys = cache.layers[0].keys
print("logits", tuple(logits.shape), "  layers", len(cache.layers))
print("keys of the first layer", tuple(keys.shape), "(batch, heads, positions, d)")
_, cache = cached_step(model, ids_of(" Paris"), cache)
print("one token later        ", tuple(cache.layers[0].keys.shape))

# %% [markdown]
# What does it save? The time of a step against the length of the text before it, on this
# machine:

# %%
lengths = [16, 64, 128, 256, 384]
text = ids_of("It was a dark and stormy night. " * 60)[:, : max(lengths) + 1]
times = {"prefill of the whole text": [], "decode step, cached": []}
for length in lengths:
    _, cache = cached_step(model, text[:, :length], None)
    for name in times:
        tries = []
        for _ in range(3):  # the fastest: what else runs only makes it slower
            start = time.perf_counter()
            if name == "decode step, cached":
                cached_step(model, text[:, length : length + 1], cache)
            else:
                cached_step(model, text[:, : length + 1], None)
            tries.append(time.perf_counter() - start)
        times[name].append(min(tries))
fig, ax = plt.subplots(figsize=(6.5, 2.8))
for name, colour in zip(times, (figures.RED, figures.BLUE), strict=True):
    ax.plot(lengths, times[name], "o-", label=name, color=colour)
ax.set(xlabel="tokens before", ylabel="seconds a token", ylim=(0, None))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Without a cache each token takes a prefill: the upper line. The lower one hardly rises: the attention of one
# query to more keys is a small part of the work. (Reading all weights is the large part:
# they are read once, for one token or for a few.)
#
# ## 3. Positions
#
# A token that arrives alone does not say where it stands. The model counts the cache:
# position 3 comes after three cached tokens. With left padding that count is wrong, as
# lesson 05 showed, since padding is in the cache, too. This model only sees distances between
# positions (*rotary* embeddings), and forgives it; GPT-2, with a vector for each position,
# does not. The checks use both.

# %% [markdown]
# ### Exercise 07.3 · `position_ids`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 1 line
#
# The position of each token, counting real tokens only; 0 for padding on the left (and in
# all of a row that is padding only).
#
# By hand: the mask `[[0, 0, 1, 1, 1]]` gives `[[0, 0, 0, 1, 2]]`.
#
# <details><summary>Hint 1</summary><code>cumsum</code>, minus 1,
# <code>clamp</code>.</details>


# %% tags=["exercise"]
def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """mask: (batch, seq) int64, 0 on padding. Returns (batch, seq) int64."""
    ### BEGIN SOLUTION
    return (mask.cumsum(-1) - 1).clamp(min=0)
    ### END SOLUTION


# %% tags=["check"]
check(position_ids)

# %% [markdown]
# ### Exercise 07.4 · `decode_cached`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 20 lines
#
# Lesson 05's `decode_batch` with a cache: the same result, and from the second step on the
# model is given one token a row. It still needs the *whole* mask (for the cached positions,
# too), and the position of the new tokens only. As before: no gradients, `pick` gets float32
# logits, and an EOS in the prompt ends nothing. The last token is not fed, since nobody asks
# for what comes after it: n tokens take n calls of the model.
#
# By hand: mask `[[0, 1, 1]]`. The prefill runs three tokens at the positions 0, 0, 1. The
# first decode step runs one token, with the mask `[[0, 1, 1, 1]]`, at position 2.
#
# <details><summary>Hint 1</summary>Begin with <code>decode_batch</code>. What changes is what
# is fed: <code>fed = ids</code> before the loop, <code>fed = token</code> in it.</details>
# <details><summary>Hint 2</summary>Of the positions of the whole mask, the last
# <code>fed.shape[1]</code> columns belong to what is fed.</details>
# <details><summary>Hint 3</summary>Rows that have finished get <code>pad_id</code> as a
# token, and a 1 in the mask: nobody looks at them any more.</details>


# %% tags=["exercise"]
def decode_cached(
    model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
    eos_ids: list[int],
    pad_id: int,
) -> torch.Tensor:
    """Continue a left-padded batch, one token a step.

    Arguments and result are those of `decode_batch`. The model is called with
    attention_mask (of all positions so far), position_ids (of the new ones),
    past_key_values and use_cache, once for each new token, without gradients.
    """
    ### BEGIN SOLUTION
    finished = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    fed, cache = ids, None
    for _ in range(max_new_tokens):
        # 1. The logits after the last position: prefill, then one token a step
        with torch.no_grad():
            output = model(
                fed,
                attention_mask=mask,
                position_ids=position_ids(mask)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        # 2. A token for each row; padding for those that finished before
        token = pick(output.logits[:, -1].float())  # (batch, 1)
        fed = torch.where(finished[:, None], pad_id, token)
        # 3. Append
        ids = torch.cat([ids, fed], dim=-1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        # 4. Stop?
        finished = finished | is_finished(fed, eos_ids)
        if finished.all():
            break
    return ids
    ### END SOLUTION


# %% tags=["check"]
check(decode_cached)

# %% tags=["nbval-check-output"]
prompts = ["The capital of France is", "Once upon a time there was a"]
batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
ids, mask = batch["input_ids"], batch["attention_mask"]
slow = decode_batch(model, ids, mask, 12, pick_greedy, [], 0)
fast = decode_cached(model, ids, mask, 12, pick_greedy, [], 0)
theirs = model.generate(**batch, max_new_tokens=12, do_sample=False)
print(
    "without a cache:",
    torch.equal(fast, slow),
    "  generate:",
    torch.equal(fast, theirs),
)
for row in fast:
    print(repr(tokenizer.decode(row, skip_special_tokens=True)))

# %%
long = text[:, :200]
for name, loop in (("without", decode_batch), ("with", decode_cached)):
    start = time.perf_counter()
    loop(model, long, torch.ones_like(long), 8, pick_greedy, [], 0)
    print(f"{name:7} a cache: {time.perf_counter() - start:4.1f} s for 8 tokens")

# %% [markdown]
# "The cache is exact." Is it? The sums are the same, but they are done in another order, and
# rounding depends on the order. **Predict:** how large is the difference of the logits in
# float32, and in bfloat16?

# %%
half = copy.deepcopy(model).to(torch.bfloat16)
ids = ids_of("Once upon a time there was a small village where all people")
for one in (model, half):
    whole, _ = cached_step(one, ids, None)
    _, cache = cached_step(one, ids[:, :-1], None)
    step, _ = cached_step(one, ids[:, -1:], cache)
    difference = (whole - step).abs().max().item()
    print(f"{one.dtype}: largest difference of a logit {difference:.6f}")

# %% [markdown]
# Neither is 0. In bfloat16 it is large enough for two nearly equal tokens to change places.
# Greedy decoding in bfloat16, with a cache and without:

# %%
new = {}
for name, loop in (("without", decode_batch), ("with", decode_cached)):
    out = loop(half, ids, torch.ones_like(ids), 24, pick_greedy, [], 0)
    new[name] = out[0, ids.shape[1] :]
    print(f"{name:7} a cache: {tokenizer.decode(new[name])!r}")
print("the same tokens:", new["with"].equal(new["without"]))

# %% [markdown]
# Neither text is the wrong one. From the first token that differs on they go their own ways
# (on other machines perhaps at another place, or not at all). So a test that compares tokens
# belongs in float32.
#
# ## 4. Back, and from the middle
#
# A cache is a record of a text, and can be cut like one. To try a continuation and take
# it back, drop the last entries.

# %% [markdown]
# ### Exercise 07.5 · `rollback`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 6 lines
#
# A copy of a cache without its last `n` tokens. The cache that was given stays as it is.
#
# By hand: of a cache of length 5, `rollback(cache, 2)` has length 3, and a step with it gives
# the logits after those three tokens and the new one. 0 is a plain copy.
#
# <details><summary>Hint 1</summary><code>copy.deepcopy(cache)</code>;
# <code>cache.get_seq_length()</code> is its length.</details>
# <details><summary>Hint 2</summary><code>crop(-n)</code> removes n tokens in
# place.</details>


# %% tags=["exercise"]
def rollback(cache: DynamicCache, n: int) -> DynamicCache:
    """A copy of the cache without its last n tokens.

    Raises ValueError for n below 0 or above the cache's length.
    """
    ### BEGIN SOLUTION
    length = cache.get_seq_length()
    if not 0 <= n <= length:
        raise ValueError(f"n must be from 0 to the cache's length {length}, got {n}")
    shorter = copy.deepcopy(cache)
    shorter.crop(-n)
    return shorter
    ### END SOLUTION


# %% tags=["check"]
check(rollback)

# %% [markdown]
# A server sees the same beginning again and again: a system message, a document with many
# questions. Its keys and values are the same each time.

# %% [markdown]
# ### Exercise 07.6 · `reuse_prefix`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# The logits after prefix + suffix, for each of several suffixes. Run the prefix through the
# model once.
#
# By hand: a prefix of 100 tokens and three suffixes of 5 cost 115 positions, not 315.
#
# <details><summary>Hint 1</summary>A step with a cache changes it. Each suffix needs a copy
# of the prefix's cache: <code>rollback(cache, 0)</code>.</details>


# %% tags=["exercise"]
def reuse_prefix(
    model, prefix_ids: torch.Tensor, suffixes: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The logits after prefix and suffix, for each suffix.

    prefix_ids: (1, seq) int64. suffixes: each (1, n) int64, n of 1 or more.
    Returns float32 logits (1, vocab) for each suffix. The prefix is computed once.
    """
    ### BEGIN SOLUTION
    _, prefix = cached_step(model, prefix_ids, None)
    logits = []
    for suffix in suffixes:
        logits.append(cached_step(model, suffix, rollback(prefix, 0))[0])
    return logits
    ### END SOLUTION


# %% tags=["check"]
check(reuse_prefix)

# %% tags=["nbval-check-output"]
prefix = ids_of("Paris is in France. Rome is in Italy. Berlin is in")
suffixes = [ids_of(text) for text in (" Germany. Madrid is in", " Germany. Oslo is in")]
for suffix, logits in zip(suffixes, reuse_prefix(model, prefix, suffixes), strict=True):
    print(repr(tokenizer.decode(suffix[0])), "->", tokenizer.decode(logits.argmax()))

# %% [markdown]
# With a long prefix, the time of three answers' first tokens:

# %%
suffixes = [ids_of(word) for word in (" What?", " Who?", " Where?")]
start = time.perf_counter()
reuse_prefix(model, text, suffixes)
print(f"prefix of {text.shape[1]}, once  {time.perf_counter() - start:.2f} s")
start = time.perf_counter()
for suffix in suffixes:
    cached_step(model, torch.cat([text, suffix], dim=-1), None)
print(f"prefix of {text.shape[1]}, thrice {time.perf_counter() - start:.2f} s")

# %% [markdown]
# ## 5. What it costs
#
# The cache trades memory for time. **Predict:** how many bytes does one token take in the
# cache of this model? It has 135 million parameters.

# %% [markdown]
# ### Exercise 07.7 · `cache_bytes`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 4 lines
#
# The bytes of keys and values of all layers. Models save here by sharing: several query heads
# use one *key-value head* (grouped-query attention, Ainslie et al., 2023).
#
# By hand: 2 layers, 4 key-value heads of dimension 8, a batch of 3 with 10 positions in
# float32: 2 (keys and values) · 2 · 4 · 8 · 3 · 10 · 4 bytes = 15,360.
#
# <details><summary>Hint 1</summary>Of the config: <code>num_hidden_layers</code>,
# <code>num_key_value_heads</code> (if there is none, <code>num_attention_heads</code>),
# <code>head_dim</code> (if there is none, <code>hidden_size</code> divided by the number of
# attention heads).</details>
# <details><summary>Hint 2</summary><code>getattr(config, name, None) or other</code>;
# <code>dtype.itemsize</code> is the bytes of a number.</details>


# %% tags=["exercise"]
def cache_bytes(
    config: PreTrainedConfig, batch: int, seq: int, dtype: torch.dtype
) -> int:
    """The size of a full KV cache in bytes, for a text model with this config."""
    ### BEGIN SOLUTION
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (
        2
        * config.num_hidden_layers
        * kv_heads
        * head_dim
        * batch
        * seq
        * dtype.itemsize
    )
    ### END SOLUTION


# %% tags=["check"]
check(cache_bytes)

# %% tags=["nbval-check-output"]
config = model.config
one = cache_bytes(config, 1, 1, torch.float32)
full = cache_bytes(config, 16, config.max_position_embeddings, torch.float32)
weights = sum(p.numel() for p in model.parameters()) * 4
print(f"one token: {one:,} bytes, the text of it about four")
print(f"16 chats of {config.max_position_embeddings} tokens: {full / 1e9:.1f} GB")
print(f"the weights: {weights / 1e9:.1f} GB")

# %% [markdown]
# The cache of a busy server is larger than its model. Hence shared heads, 8-bit caches, and
# the paged memory of vLLM.
#
# ## Questions
#
# 1. The prompt has 1,000 tokens, the answer 100. How many positions does the model compute
#    with a cache, how many without?
# 2. Why are queries not cached?
# 3. A chat server gets the whole history with each turn (lesson 01). What can it keep, and
#    when does that fail?
#
# <details><summary>Answers</summary>
#
# 1. With: 1,000 in the prefill and 99 in the decode steps (the last token is not fed).
#    Without: 1,000 + 1,001 + ... + 1,099, about 105,000.
# 2. A query is used once, at its own position. No later position asks for it.
# 3. The cache of the history, as a prefix. It fails as soon as a token early in the history
#    differs: everything after it has to be computed again.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | cache on or off | always on | `use_cache` | always on | always on | always on |
# | a prefix used again | automatic, cheaper | pass `past_key_values` | `enable_prefix_caching` | RadixAttention | `cache_prompt` (on) |
# | smaller numbers | not published | `cache_implementation="quantized"` | `kv_cache_dtype` | `kv_cache_dtype` | `--cache-type-k` |
#
# ## To read
#
# - Shazeer: *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150). Why the cache's size is the limit.
# - Ainslie et al.: *GQA*, 2023, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245).
# - Kwon et al.: *PagedAttention*, SOSP 2023,
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180). The cache in pages.
