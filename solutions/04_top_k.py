# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Top-k
#
# **After this lesson you can cut the tail off a distribution exactly as `generate` does,
# and say what the cut costs.**
#
# You write: `top_k_filter`, `kept_mass`, `top_k_exact`, `sample_top_k`, and `TopK`, a
# processor that runs inside `generate`. About 60 minutes. Builds on lesson 03: its loop
# comes along in the first cell.

# %% tags=["setup"]
import torch
from transformers import LogitsProcessor

from course import carry

decode = carry("decode")
next_token_logits = carry("next_token_logits")
pick_sample = carry("pick_sample")

# %%
import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()

# %% [markdown]
# ## 1. The tail
#
# Two prompts. Here are the model's five favourites for the next token, and their
# probabilities.

# %%
prompts = ("The capital of France is", "Once upon a time there was a")


def logits_after(prompt):
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    return next_token_logits(model, ids)  # (1, vocab)


for prompt in prompts:
    best = logits_after(prompt)[0].softmax(-1).topk(5)
    row = zip(best.indices, best.values, strict=True)
    told = "  ".join(f"{tokenizer.decode(i)!r} {p:.2f}" for i, p in row)
    print(f"{prompt:30} {told}")

# %% [markdown]
# The first distribution is *peaked*, the second is *flat*. Below them, out of sight, lie
# some 49,000 more tokens. Lesson 03 measured that *tail* for the second prompt: 5.9% of the
# probability lies outside the 1,000 likeliest tokens.
#
# **Predict.** If each step were as flat as this one: how likely is it that 30 tokens in a row
# all come from the top 1,000?

# %% tags=["nbval-check-output"]
ordered = logits_after(prompts[1])[0].softmax(-1).sort(descending=True).values
tail = 1 - ordered[:1000].sum().item()
print(f"outside the top 1,000: {tail:.1%} at one step")
print(f"30 steps, none of them in the tail: {(1 - tail) ** 30:.0%}")

# %% [markdown]
# Not all steps are as flat, so this is the worst case. But no text is safe: the tail as a
# whole is drawn from sooner or later, and one bad token is then part of the context of all
# that follow. Read what pure sampling makes of it, towards the end of the lines:


# %%
def continue_text(prompt, pick, seed, new=20):
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    torch.manual_seed(seed)
    return tokenizer.decode(decode(model, ids, new, pick)[0, ids.shape[1] :])


for seed in range(3):
    print(seed, repr(continue_text(prompts[1], pick_sample, seed)))

# %% [markdown]
# *Top-k* (Fan, Lewis and Dauphin, 2018) is the bluntest cure: before each draw, give
# every token but the `k` likeliest the probability zero.

# %% [markdown]
# ### Exercise 04.1 · `top_k_filter`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 6 lines
#
# Return the logits with all but the `top_k` largest of each row set to `-inf`. The
# softmax turns `-inf` into a probability of exactly 0.
#
# By hand: `[[1., 3., 2.]]` with `top_k=2` becomes `[[-inf, 3., 2.]]`.
#
# The rules are those of `transformers`:
#
# - `top_k=0` turns the filter off, and `top_k` above the vocabulary keeps everything;
# - a negative `top_k` is a `ValueError`;
# - tokens that *tie* with the k-th largest all stay: `[[2., 2., 2., 0.]]` with `top_k=1`
#   becomes `[[2., 2., 2., -inf]]`;
# - the result is a new tensor. The caller still needs the old one.
#
# <details><summary>Hint 1</summary>Find, for each row, the k-th largest value. A token
# goes if its logit is below that.</details>
# <details><summary>Hint 2</summary><code>logits.topk(k).values</code> is sorted from
# large to small. Keep its last column as a column, shape (batch, 1), so that each row is
# compared with its own threshold.</details>
# <details><summary>Hint 3</summary><code>logits.masked_fill(logits &lt; threshold,
# float("-inf"))</code> makes a new tensor. <code>topk</code> refuses a k above the size
# of the row: what is <code>min</code> for?</details>


# %% tags=["exercise"]
def top_k_filter(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Set all but the `top_k` largest logits of each row to -inf.

    logits: (batch, vocab) float. Returns a new tensor of the same shape and dtype.
    top_k: 0 means off; more than vocab means all. Ties with the k-th largest stay.
    Raises ValueError if top_k is negative.
    """
    ### BEGIN SOLUTION
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or more, got {top_k}")
    if top_k == 0:
        return logits.clone()
    k = min(top_k, logits.shape[-1])
    threshold = logits.topk(k).values[:, -1:]  # (batch, 1)
    return logits.masked_fill(logits < threshold, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(top_k_filter)

# %% [markdown]
# The same three seeds, through your filter:


# %% tags=["nbval-check-output"]
def pick_top_50(logits):
    return pick_sample(top_k_filter(logits, 50))


for seed in range(3):
    print(seed, repr(continue_text(prompts[1], pick_top_50, seed)))

# %% [markdown]
# ## 2. What the cut costs
#
# A fixed `k` is a different cut at every step. **Predict:** with `k=50`, how much of the
# probability survives after each of the two prompts?

# %% [markdown]
# ### Exercise 04.2 · `kept_mass`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 2 lines
#
# The share of each row's probability that belongs to the tokens `top_k_filter` keeps.
#
# By hand: logits `[[ln 6, ln 3, ln 1]]` have the probabilities `[0.6, 0.3, 0.1]`. With
# `top_k=2` the kept mass is `0.9`; with `top_k=0`, the filter being off, it is `1.0`.
#
# <details><summary>Hint 1</summary>Softmax first, over <em>all</em> the logits. After the
# filter it is too late: what remains always sums to 1.</details>
# <details><summary>Hint 2</summary>The kept tokens are those where the filtered logits
# are above <code>-inf</code>.</details>


# %% tags=["exercise"]
def kept_mass(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The probability mass of the tokens that `top_k_filter(logits, top_k)` keeps.

    logits: (batch, vocab) float. Returns (batch,) float, between 0 and 1.
    """
    ### BEGIN SOLUTION
    kept = top_k_filter(logits, top_k) > float("-inf")  # (batch, vocab)
    return (logits.float().softmax(-1) * kept).sum(-1)  # (batch,)
    ### END SOLUTION


# %% tags=["check"]
check(kept_mass)

# %%
ks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000]
fig, ax = plt.subplots(figsize=(6.4, 3.2))
for prompt, marker in zip(prompts, "os", strict=True):
    logits = logits_after(prompt)
    ax.plot(ks, [kept_mass(logits, k).item() for k in ks], marker=marker, label=prompt)
ax.axvline(50, color=figures.GREY, linestyle="--", linewidth=1)
ax.set(xscale="log", xlabel="k", ylabel="kept probability mass", ylim=(0, 1.02))
ax.annotate("k = 50", (50, 0.03), xytext=(4, 0), textcoords="offset points")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# The dashed line is `generate`'s default. After the peaked prompt, 50 tokens hold 95% of
# the probability, nearly all of it on the first few. After the flat one they hold two
# thirds, and the other third is thrown away. What is thrown away there?

# %% tags=["nbval-check-output"]
for prompt in prompts:
    order = logits_after(prompt)[0].sort(descending=True).indices
    print(prompt)
    print("   ranks 6 to 13:  ", [tokenizer.decode(i) for i in order[5:13]])
    print("   ranks 51 to 58: ", [tokenizer.decode(i) for i in order[50:58]])

# %% [markdown]
# After "France is", rank 10 is already a poor answer, and `k=50` keeps it. After "there was
# a", rank 55 would be a fine next word, and `k=50` removes it. No single `k` fits both.
# That is the weakness of top-k, and why lesson 06 has cuts that adapt.
#
# ## 3. Ties
#
# The threshold rule keeps every token that ties with the k-th. In float32 two of 49,152
# logits are seldom equal. In bfloat16, which keeps
# 8 significant bits, between two and three decimal digits, they often are.
#
# **Predict:** 50 tokens asked for, in bfloat16. How many stay?

# %% tags=["nbval-check-output"]
for prompt in (*prompts, "The recipe needs", "She opened the door and"):
    logits = logits_after(prompt)
    kept = [
        int((top_k_filter(logits.to(dtype), 50) > float("-inf")).sum())
        for dtype in (torch.float32, torch.bfloat16)
    ]
    print(f"{prompt:30} float32: {kept[0]}   bfloat16: {kept[1]}")

# %% [markdown]
# A few tokens more do no harm to a text. They do harm to code that counts on exactly
# `k`, such as beam search (lesson 09).

# %% [markdown]
# ### Exercise 04.3 · `top_k_exact`
#
# difficulty ★★☆ · importance ★☆☆ · 10 min · our answer: 6 lines
#
# As `top_k_filter`, but exactly `top_k` tokens of each row stay (all, if the row has
# fewer). Which of the tied tokens stay is up to you.
#
# By hand: `[[2., 2., 2., 0.]]` with `top_k=2` keeps two of the three `2.`s, and of course
# not the `0.`
#
# <details><summary>Hint 1</summary>A threshold cannot tell tied tokens apart. Their
# <em>places</em> can: <code>topk</code> returns indices, too.</details>
# <details><summary>Hint 2</summary>Start from a tensor full of <code>-inf</code> and
# write the k values back where they came from: <code>scatter</code>.</details>


# %% tags=["exercise"]
def top_k_exact(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Set all but exactly `top_k` of the largest logits of each row to -inf.

    logits: (batch, vocab) float. Returns a new tensor of the same shape and dtype.
    top_k: 0 means off; more than vocab means all. Raises ValueError if negative.
    """
    ### BEGIN SOLUTION
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or more, got {top_k}")
    if top_k == 0:
        return logits.clone()
    values, places = logits.topk(min(top_k, logits.shape[-1]))  # (batch, k)
    nothing = torch.full_like(logits, float("-inf"))  # (batch, vocab)
    return nothing.scatter(-1, places, values)
    ### END SOLUTION


# %% tags=["check"]
check(top_k_exact)

# %% [markdown]
# ## 4. Filter, then draw
#
# Temperature and top-k are nearly always used together. Does it matter which comes
# first? **Predict**, for the tokens that can be drawn and for their probabilities, then
# write the function.

# %% [markdown]
# ### Exercise 04.4 · `sample_top_k`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 4 lines
#
# Draw one token for each row: temperature, top-k, softmax, draw. With the same seed it
# draws the token that `generate` draws, so use `torch.multinomial` and torch's global
# random generator, as in lesson 03.
#
# By hand: logits `[[0., ln 3, -5.]]`, `top_k=2`. At temperature 1 the second token is
# drawn 3 times in 4; at temperature 0.5, 9 times in 10; the third one, never.
#
# <details><summary>Hint 1</summary>You have written all the parts, here and in lesson
# 03.</details>
# <details><summary>Hint 2</summary>Dividing by a positive number does not change which
# logits are the largest.</details>


# %% tags=["exercise"]
def sample_top_k(
    logits: torch.Tensor, top_k: int, temperature: float = 1.0
) -> torch.Tensor:
    """Draw one token per row from the `top_k` likeliest, at this temperature.

    logits: (batch, vocab) float. Returns (batch, 1) int64.
    Uses torch's global random generator. Raises ValueError unless temperature > 0,
    and for a negative top_k.
    """
    ### BEGIN SOLUTION
    if not temperature > 0:  # NaN is not above 0 either
        raise ValueError(f"temperature must be above 0, got {temperature}")
    filtered = top_k_filter(logits.float() / temperature, top_k)  # (batch, vocab)
    return torch.multinomial(filtered.softmax(-1), num_samples=1)  # (batch, 1)
    ### END SOLUTION


# %% tags=["check"]
check(sample_top_k)

# %% [markdown]
# Now the proof, on the real model: your loop with your `sample_top_k`, against
# `generate` with the same parameters and the same seed.

# %% tags=["nbval-check-output"]
ids = tokenizer(prompts[1], return_tensors="pt").input_ids.to(model.device)
for seed, (k, temperature) in enumerate([(50, 1.0), (5, 0.7), (1000, 1.3)]):
    torch.manual_seed(seed)
    mine = decode(model, ids, 10, lambda x: sample_top_k(x, k, temperature))
    torch.manual_seed(seed)
    theirs = model.generate(
        ids, max_new_tokens=10, do_sample=True, top_k=k, temperature=temperature
    )
    text = tokenizer.decode(mine[0, ids.shape[1] :])
    print(f"k={k:<4} T={temperature}", torch.equal(mine, theirs), repr(text))

# %% [markdown]
# And the order? Swap the two steps:

# %% tags=["nbval-check-output"]
logits = logits_after(prompts[1])
first = top_k_filter(logits / 0.7, 20).softmax(-1)
second = (top_k_filter(logits, 20) / 0.7).softmax(-1)
print("largest difference in probability:", (first - second).abs().max().item())

# %% [markdown]
# None. Temperature keeps the order of the logits, and top-k looks at nothing but the
# order. Top-k is lucky: for the filters of lesson 06, which look at
# probabilities, the order matters.
#
# ## 5. Inside `generate`
#
# `generate` lets you hook in. A `LogitsProcessor` is an object that it calls at every
# step with all the ids so far and the logits (it calls them `scores`), before its own
# temperature, top-k and top-p.

# %% [markdown]
# ### Exercise 04.5 · `TopK`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# Make `top_k_filter` a `LogitsProcessor`: `TopK(5)` can then be given to `generate`. A
# negative `top_k` is refused when the object is made, not at the first step.
#
# By hand: `TopK(2)(ids, torch.tensor([[1., 3., 2.]]))` is `[[-inf, 3., 2.]]`, whatever
# the `ids`.
#
# <details><summary>Hint 1</summary>Two methods: <code>__init__</code> keeps the number,
# <code>__call__(input_ids, scores)</code> filters.</details>
# <details><summary>Hint 2</summary><code>__call__</code> <em>returns</em> the new scores.
# Never change <code>scores</code> in place: <code>generate</code> may be keeping that
# tensor as the raw logits that it was asked for.</details>


# %% tags=["exercise"]
class TopK(LogitsProcessor):
    """Top-k filtering inside `generate`. Follows transformers' TopKLogitsWarper."""

    def __init__(self, top_k: int):
        """top_k as in `top_k_filter`. Raises ValueError if it is negative."""
        ### BEGIN SOLUTION
        if top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {top_k}")
        self.top_k = top_k
        ### END SOLUTION

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        """input_ids: (batch, seq). scores: (batch, vocab). Returns (batch, vocab)."""
        ### BEGIN SOLUTION
        return top_k_filter(scores, self.top_k)
        ### END SOLUTION


# %% tags=["check"]
check(TopK)

# %% [markdown]
# **Predict:** `generate` gets your `TopK(200)` and `do_sample=True`, no more. From how
# many tokens can it draw?

# %% tags=["nbval-check-output"]
for options in ({}, {"top_k": 0}):
    out = model.generate(
        ids,
        max_new_tokens=1,
        do_sample=True,
        logits_processor=[TopK(200)],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    print(options, int((out.scores[0] > float("-inf")).sum()), "tokens left")

# %% [markdown]
# Fifty. `generate`'s own top-k, with its default of 50, still ran, after yours. It is
# easy to compare samplers "without truncation" while it is still on. To switch it off, say
# `top_k=0`.
#
# ## Questions
#
# 1. Why is `top_k=1` the same as greedy decoding, whatever the temperature? When is it
#    not?
# 2. Somebody writes the filter with `-1e4` in place of `-inf`. Which texts does that
#    change?
# 3. Does top-k make the likely tokens less likely, more likely, or neither?
#
# <details><summary>Answers</summary>
#
# 1. One token is left, with probability 1. Temperature keeps the order, so it is always
#    the argmax. Not so with ties: all tied tokens stay, and the draw is between them.
# 2. After the softmax, `exp(-1e4)` is 0 in every float format, as long as the kept
#    logits are of the usual size. Code that looks for removed tokens with `isinf`, or
#    adds a bias to them afterwards, goes wrong; and in float16 `-1e5` would not fit.
# 3. More likely: the mass of the removed tokens is shared out among the kept ones, in
#    proportion. Dividing by `kept_mass` is what the second softmax does.
#
# </details>
#
# ## In the wild
#
# | where | name | off | default |
# |---|---|---|---|
# | OpenAI chat API | none | | |
# | `transformers` | `top_k` | 0 (`None` too, as an argument of `generate`) | 50 |
# | vLLM | `top_k` | 0 or -1 | off |
# | SGLang | `top_k` | -1 | off |
# | llama.cpp | `--top-k` | 0 | 40 |
#
# ## To read
#
# - Fan, Lewis, Dauphin: *Hierarchical Neural Story Generation*, ACL 2018,
#   [arXiv:1805.04833](https://arxiv.org/abs/1805.04833). Where top-k sampling comes from.
# - Holtzman et al.: *The Curious Case of Neural Text Degeneration*, ICLR 2020,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751). Why the tail has to go, and why
#   a fixed `k` is not the best way.
