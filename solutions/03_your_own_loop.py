# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Your own loop
#
# **After this lesson you have a decoding loop of your own that gives the same tokens as
# `generate`, greedy and sampled, and you know where the randomness comes from.**
#
# You write: `next_token_logits`, `pick_greedy`, `decode`, `pick_sample` and
# `multinomial_from_scratch`. About 60 minutes. Builds on lesson 02, of which it needs
# only that `generate` exists.

# %% tags=["setup"]
from collections.abc import Callable

import torch

# %%
import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()

# %% [markdown]
# ## 1. What the model returns
#
# A language model maps token ids to logits. One call, one prompt of five tokens:

# %% tags=["nbval-check-output"]
ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
ids = ids.to(model.device)  # (batch, seq)
with torch.no_grad():
    logits = model(ids).logits
print("ids   ", tuple(ids.shape), ids.tolist())
print("logits", tuple(logits.shape))

# %% [markdown]
# One logit for each of the 49,152 tokens of the vocabulary: that is the last dimension.
# But why is there a dimension for `seq`? We asked for *one* next token.
#
# **Predict.** What do the logits at position 1, after "The capital", say?

# %% tags=["nbval-check-output"]
for position in range(ids.shape[1]):
    context = tokenizer.decode(ids[0, : position + 1])
    guess = tokenizer.decode(logits[0, position].argmax())
    print(f"{context!r:28} next: {guess!r}")

# %% [markdown]
# Each position holds the prediction for the token *after* it, made from what stands up
# to there. Training uses them all. To continue a text you need the last one only.

# %% [markdown]
# ### Exercise 03.1 · `next_token_logits`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 3 lines
#
# Call the model and return the logits that follow the last position, in float32 whatever
# the model computes in. Do it without recording gradients: nobody will train here, and
# the record costs memory at every step.
#
# By hand: the model returns logits of shape `(1, 2, 3)`, `[[[9, 8, 7], [1, 2, 3]]]`.
# The answer is `[[1., 2., 3.]]`, of shape `(1, 3)`.
#
# <details><summary>Hint 1</summary>The logits have shape (batch, seq, vocab). Which
# index on the middle dimension drops it?</details>
# <details><summary>Hint 2</summary><code>with torch.no_grad():</code> around the call,
# then <code>.logits[:, -1]</code>, then <code>.float()</code>.</details>


# %% tags=["exercise"]
def next_token_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the token that follows `ids`.

    model: a causal language model; `model(ids).logits` is (batch, seq, vocab).
    ids: (batch, seq) int64. Returns (batch, vocab) float32, without gradients.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        logits = model(ids).logits  # (batch, seq, vocab)
    return logits[:, -1].float()  # (batch, vocab)
    ### END SOLUTION


# %% tags=["check"]
check(next_token_logits)

# %%
best = next_token_logits(model, ids)[0].softmax(-1).topk(8)
labels = [figures.token_label(tokenizer, i) for i in best.indices]
fig, ax = plt.subplots(figsize=(5, 2.4))
figures.token_bars(ax, labels, best.values.tolist())
ax.set(xlabel="probability", title="The capital of France is ...")
plt.show()

# %% [markdown]
# ## 2. The loop
#
# A model gives one distribution. A text needs one *token*, then another. Three things
# repeat: ask for the logits, pick a token, append it. The simplest way to pick is
# *greedy*: the largest logit wins.

# %% [markdown]
# ### Exercise 03.2 · `pick_greedy`
#
# difficulty ★☆☆ · importance ★★★ · 3 min · our answer: 1 line
#
# The id of the largest logit of each row, as a column, so that it can be appended to the
# ids.
#
# By hand: `[[1., 5., 2.], [7., 0., 3.]]` gives `[[1], [0]]`.
#
# <details><summary>Hint 1</summary><code>argmax</code> over the vocabulary, not over the
# batch, and keep the dimension.</details>


# %% tags=["exercise"]
def pick_greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row.

    logits: (batch, vocab) float. Returns (batch, 1) int64.
    """
    ### BEGIN SOLUTION
    return logits.argmax(dim=-1, keepdim=True)
    ### END SOLUTION


# %% tags=["check"]
check(pick_greedy)

# %% [markdown]
# ### Exercise 03.3 · `decode`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 4 lines
#
# The loop. `pick` is any function from logits `(batch, vocab)` to tokens `(batch, 1)`:
# `pick_greedy` is one, and many more will come. Return the prompt and the new tokens
# together, as `generate` does.
#
# By hand: a model that always answers "the last token plus one" turns `[[3, 5]]` with
# `max_new_tokens=2` and `pick_greedy` into `[[3, 5, 6, 7]]`, and was called twice: with
# `[[3, 5]]` and with `[[3, 5, 6]]`.
#
# The loop knows nothing of the end of a text yet: it always adds `max_new_tokens`
# tokens. Lesson 05 teaches it when to stop.
#
# <details><summary>Hint 1</summary>The picked token has to be part of what the model
# sees at the next step.</details>
# <details><summary>Hint 2</summary><code>torch.cat([ids, token], dim=-1)</code> appends
# a column (batch, 1) to ids (batch, seq), as a new tensor.</details>


# %% tags=["exercise"]
def decode(
    model,
    ids: torch.Tensor,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Append `max_new_tokens` tokens to `ids`, one a step.

    model: a causal language model. ids: (batch, seq) int64, left unchanged.
    pick: maps logits (batch, vocab) to the next tokens (batch, 1).
    Returns (batch, seq + max_new_tokens) int64.
    """
    ### BEGIN SOLUTION
    for _ in range(max_new_tokens):
        token = pick(next_token_logits(model, ids))  # (batch, 1)
        ids = torch.cat([ids, token], dim=-1)  # (batch, seq + 1)
    return ids
    ### END SOLUTION


# %% tags=["check"]
check(decode)

# %% [markdown]
# The proof, on the real model: your loop and `generate`, token by token.

# %% tags=["nbval-check-output"]
mine = decode(model, ids, 20, pick_greedy)
theirs = model.generate(ids, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(mine[0]))
print("same tokens as generate:", torch.equal(mine, theirs))

# %% [markdown]
# That is all that `generate` does in its plainest mode; it only does it faster. Your loop
# feeds the whole text through the model again at each step. Lesson 07 removes that waste
# with a KV cache, and the tokens will stay the same.
#
# ## 3. Drawing lots
#
# Greedy picks the best token at every step. **Predict:** is the text then the best text?

# %% tags=["nbval-check-output"]
morning = tokenizer("In the morning I", return_tensors="pt").input_ids
out = decode(model, morning.to(model.device), 30, pick_greedy)
print(tokenizer.decode(out[0]))

# %% [markdown]
# No. Each token is the likeliest one, and together they drive in a circle: likely is not the
# same as good, and lesson 08 measures that. The alternative is to *sample*: draw the next token with the
# probabilities that the model gives. One knob is usually turned first: divide all logits
# by a *temperature*. Below 1 it makes the distribution more peaked, above 1 flatter.

# %% [markdown]
# ### Exercise 03.4 · `pick_sample`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 4 lines
#
# Draw the next token of each row at random, after dividing the logits by `temperature`.
#
# By hand: logits `[[0., ln 3]]` at temperature 1 have the probabilities `[1/4, 3/4]`. At
# temperature 0.5 the logits become `[[0., 2 ln 3]]`, so `[1/10, 9/10]`.
#
# <details><summary>Hint 1</summary>Which comes first, the division or the softmax? Try
# both on the case worked by hand.</details>
# <details><summary>Hint 2</summary><code>torch.multinomial(probabilities,
# num_samples=1)</code> draws one index for each row, from the global random
# generator.</details>


# %% tags=["exercise"]
def pick_sample(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Draw one token per row from softmax(logits / temperature).

    logits: (batch, vocab) float. Returns (batch, 1) int64.
    Uses torch's global random generator; after the same seed it draws what
    `torch.multinomial` draws, as `generate` does.
    Raises ValueError unless temperature > 0 (for greedy there is `pick_greedy`).
    """
    ### BEGIN SOLUTION
    if not temperature > 0:  # NaN is not above 0 either
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = logits.float()  # float16 would overflow at a low temperature
    probabilities = torch.softmax(logits / temperature, dim=-1)  # (batch, vocab)
    return torch.multinomial(probabilities, num_samples=1)  # (batch, 1)
    ### END SOLUTION


# %% tags=["check"]
check(pick_sample)

# %% [markdown]
# **Predict.** The same seed at three temperatures. Which of the texts will make sense?

# %% tags=["nbval-check-output"]
story = tokenizer("Once upon a time there was a", return_tensors="pt").input_ids
story = story.to(model.device)
for temperature in (0.3, 1.0, 2.0):
    torch.manual_seed(0)
    out = decode(model, story, 15, lambda x: pick_sample(x, temperature))
    print(temperature, repr(tokenizer.decode(out[0, story.shape[1] :])))

# %% [markdown]
# At 2.0 the text falls apart at once. No single bad token is likely, but there are 49,152
# tokens. How much of the probability do all but the 1,000 likeliest, the *tail*, own
# together?

# %% tags=["nbval-check-output"]
logits = next_token_logits(model, story)[0]
for temperature in (0.3, 1.0, 2.0):
    ordered = (logits / temperature).softmax(-1).sort(descending=True).values
    print(
        f"temperature {temperature}: {ordered[1000:].sum():.1%} outside the top 1,000"
    )

# %% [markdown]
# Temperature cannot tell a *rare* token from a *wrong* one. Above 1 it lifts both, below 1 it
# lowers both, and the text becomes sound and dull. Lesson 04 starts there.
#
# Now the second proof. `generate` samples with torch's global generator, and so do you.
# The same seed must give the same tokens:

# %% tags=["nbval-check-output"]
for seed in range(3):
    torch.manual_seed(seed)
    mine = decode(model, story, 10, pick_sample)
    torch.manual_seed(seed)
    theirs = model.generate(story, max_new_tokens=10, do_sample=True, top_k=0)
    print("seed", seed, "same tokens as generate:", torch.equal(mine, theirs))

# %% [markdown]
# The `top_k=0` is needed: unless you switch it off, `generate` samples from the 50
# likeliest tokens only (lesson 02 showed it, lesson 04 explains it).
#
# ## 4. What a seed is worth
#
# What does `torch.multinomial` do with its random numbers, for one draw? It holds a race.
# Each token draws $E_i$ from the exponential distribution Exp(1); its finishing time is
# $E_i/p_i$, and the first to finish wins. A token with twice the probability runs twice as
# fast. Token $i$ wins with probability exactly $p_i$:
#
# $$P\left(\tfrac{E_i}{p_i} < \tfrac{E_j}{p_j} \;\; \forall j \ne i\right)
# = p_i, \qquad E_i \sim \mathrm{Exp}(1), \quad \textstyle\sum_j p_j = 1$$
#
# The smallest $E_i/p_i$ is the largest $p_i/E_i$, which is how it is computed.

# %% [markdown]
# ### Exercise 03.5 · `multinomial_from_scratch`
#
# difficulty ★★★ · importance ★★☆ · 10 min · our answer: 2 lines
#
# Write that race, with the draws from a tensor's own method `exponential_()`, so that after the same `torch.manual_seed` it returns exactly what
# `torch.multinomial(probs, num_samples=1)` returns.
#
# By hand: `probs = [[0.2, 0.8]]` and the draws E `[[0.1, 0.5]]`. Then `p/E` is
# `[[2.0, 1.6]]`: token 0 wins, although token 1 is four times as likely.
#
# <details><summary>Hint 1</summary>One random number for each token of each row, also
# for those with probability 0. What does p/E become for those?</details>
# <details><summary>Hint 2</summary><code>torch.empty_like(probs).exponential_()</code>
# fills a tensor with draws from Exp(1).</details>


# %% tags=["exercise"]
def multinomial_from_scratch(probs: torch.Tensor) -> torch.Tensor:
    """Draw one index per row with the given probabilities, by an exponential race.

    probs: (batch, vocab), float32 or float64, each row summing to 1.
    Returns (batch, 1) int64.
    Uses torch's global random generator; after the same seed it draws what
    `torch.multinomial(probs, num_samples=1)` draws.
    """
    ### BEGIN SOLUTION
    times = torch.empty_like(probs).exponential_()  # (batch, vocab)
    return (probs / times).argmax(dim=-1, keepdim=True)  # (batch, 1)
    ### END SOLUTION


# %% tags=["check"]
check(multinomial_from_scratch)

# %% [markdown]
# Do tokens win as often as they should? Ten thousand races between two of them:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
races = multinomial_from_scratch(torch.tensor([[0.2, 0.8]]).repeat(10_000, 1))
print(f"token 1, of probability 0.8, won {(races == 1).float().mean():.3f} of them")

# %% [markdown]
# And is that all the randomness there is in `generate`? Then a loop that uses your race in
# place of `torch.multinomial` writes the same text.

# %% tags=["nbval-check-output"]


def pick_by_race(logits):
    return multinomial_from_scratch(logits.softmax(-1))


torch.manual_seed(1)
mine = decode(model, story, 15, pick_by_race)
torch.manual_seed(1)
theirs = model.generate(story, max_new_tokens=15, do_sample=True, top_k=0)
print("same tokens as generate:", torch.equal(mine, theirs))

# %% [markdown]
# "With a fixed seed the output is reproducible." **Predict:** the same seed, the same
# prompt; once alone, once as the first and once as the second row of a batch of two.
# How many different texts?

# %% tags=["nbval-check-output"]
for name, batch, row in (
    ("alone", story, 0),
    ("row 0 of 2", story.repeat(2, 1), 0),
    ("row 1 of 2", story.repeat(2, 1), 1),
):
    torch.manual_seed(0)
    out = decode(model, batch, 10, pick_sample)[row, story.shape[1] :]
    print(f"{name:10} {tokenizer.decode(out)!r}")

# %% [markdown]
# Three. The rows of a batch share one stream of random numbers. The first token of row 0
# is still the one that it draws alone; then row 1 has used up the numbers that row 0
# would have been next to use. A seed fixes the text only for the same batch. (And for
# the same number format, device and library version.)
#
# ## 5. Your loop inside `generate`
#
# `generate` does a lot before its loop starts: it reads the model's defaults, checks
# arguments, prepares masks. You can keep all that and give it your own loop:
# `custom_generate` takes a function.

# %% tags=["nbval-check-output"]


def my_loop(
    model, input_ids, logits_processor, stopping_criteria, generation_config, **_
):
    pick = pick_sample if generation_config.do_sample else pick_greedy
    new = generation_config.max_length - input_ids.shape[1]
    return decode(model, input_ids, new, lambda x: pick(logits_processor(input_ids, x)))


for options in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7}):
    torch.manual_seed(0)
    mine = model.generate(story, max_new_tokens=12, custom_generate=my_loop, **options)
    torch.manual_seed(0)
    theirs = model.generate(story, max_new_tokens=12, **options)
    print(options, torch.equal(mine, theirs))

# %% [markdown]
# `generate` handed over its `logits_processor`, the list that holds its temperature and
# its top-k of 50, and `my_loop` applied them before it picked. (Processors that look at
# the text so far would need the growing ids; temperature and top-k do not.)
#
# ## 6. The tree
#
# Greedy decoding follows one path through a tree of possibilities. Here is that path, from
# your own functions: the three likeliest tokens at each step. The thicker the line, the
# likelier the token; the branches that were not taken hang below. (␣ is a space, ⏎ a line
# end.)

# %%
fig, ax = plt.subplots(figsize=(8, 2.4))
path, box = ids, {"facecolor": "white", "edgecolor": "none", "pad": 2}
for step in range(5):
    logits = next_token_logits(model, path)
    best = logits[0].softmax(-1).topk(3)
    for n, (token, p) in enumerate(zip(best.indices, best.values, strict=True)):
        colour = figures.BLUE if n == 0 else figures.GREY
        ax.plot([step, step + 1], [0, -n], color=colour, linewidth=1 + 5 * p.item())
        label = f"{figures.token_label(tokenizer, token)}\n{p:.2f}"
        ax.text(step + 1, -n, label, ha="center", va="center", bbox=box)
    path = torch.cat([path, pick_greedy(logits)], dim=-1)
ax.text(0, 0, "... is", ha="center", va="center", bbox=box)
ax.set(xlim=(-0.2, 5.4), ylim=(-2.4, 0.4))
ax.axis("off")
plt.show()

# %% [markdown]
# ## Questions
#
# 1. `decode` calls the model `max_new_tokens` times. Would it be wrong to call it once
#    more? Would it be useful?
# 2. Greedy picks the largest logit. Is it the same as the largest probability? At any
#    temperature?
# 3. A program draws with inverse transform sampling (one uniform number, compared with
#    the cumulative sum of the probabilities) instead of the race. Are its texts worse?
#    Can its tests compare it with `generate`, seed for seed?
#
# <details><summary>Answers</summary>
#
# 1. Not wrong, but a waste: the logits after the last token are never used.
# 2. Yes, and yes: softmax and the division by a positive number keep the order.
# 3. Not worse: the distribution is the same. But it uses one random number a step where
#    the race uses one for each token, so the same seed gives another text. It has to be
#    tested by its statistics.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | llama.cpp |
# |---|---|---|---|---|
# | greedy | `temperature: 0` | `do_sample=False` | `temperature=0` | `--temp 0` |
# | temperature 0 when sampling | greedy | `ValueError` | greedy | greedy |
# | seed | `seed` (best effort) | `torch.manual_seed` | `seed` | `--seed` |
#
# ## To read
#
# - Ackley, Hinton, Sejnowski: *A Learning Algorithm for Boltzmann Machines*, Cognitive
#   Science 9, 1985. Where the temperature comes from.
# - Kool, van Hoof, Welling: *Stochastic Beams and Where to Find Them*, ICML 2019,
#   [arXiv:1903.06059](https://arxiv.org/abs/1903.06059). What else the race can do.
