# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Contrast and guidance
#
# **After this lesson you can steer a model without training it: by what two of its
# distributions disagree on.**
#
# You write: `guide`, `cfg_decode`, `context_aware`, `plausible`, `contrastive`,
# `proxy_tune`, `js_divergence`, `dola` and `contrastive_search_pick`. About 150
# minutes. Builds on lessons 03, 06 and 07: their functions come along in the first
# cell.

# %% tags=["setup"]
from collections.abc import Callable

import torch

from course import carry

cached_step = carry("cached_step")
pick_greedy = carry("pick_greedy")
pick_sample = carry("pick_sample")
position_ids = carry("position_ids")
rep_n = carry("rep_n")

# %%
import re

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()
EOS = model.generation_config.eos_token_id
torch.set_grad_enabled(False)  # nothing is trained here


def ids_of(text):
    return tokenizer(text, return_tensors="pt").input_ids.to(model.device)


def new_text(prompt_ids, out):
    return tokenizer.decode(out[0, prompt_ids.shape[1] :], skip_special_tokens=True)


# %% [markdown]
# ## 1. What the prompt changes
#
# A small model half forgets what it was told to be. Here it is told to be a pirate, and
# asked something; and it is asked the same without having been told. (Its template then
# fills in a default: a helpful AI assistant.)


# %%
def chat(question, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    made = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return made["input_ids"].to(model.device)


PIRATE, DAY = "You are a pirate. Talk like a pirate.", "How was your day?"
told, untold = chat(DAY, PIRATE), chat(DAY)
cond, _ = cached_step(model, told, None)
uncond, _ = cached_step(model, untold, None)

# %% [markdown]
# `cond` and `uncond` are the logits of the first token of the answer, with the
# condition and without. **Predict:** is the likeliest token of a pirate's answer a
# pirate's word? And the token that being a pirate makes *more* likely, compared with
# not being one?


# %%
def best(scores, k=6):
    top = scores[0].topk(k).indices.tolist()
    return " ".join(figures.token_label(tokenizer, i) for i in top)


gain = cond.log_softmax(-1) - uncond.log_softmax(-1)
likely = cond.log_softmax(-1) > -7.0  # about one in a thousand
print("likeliest, told:  ", best(cond))
print("likeliest, untold:", best(uncond))
print("gains most, of what is likely:", best(gain.masked_fill(~likely, -torch.inf)))
print("gains most, of all tokens:    ", best(gain))

# %% [markdown]
# The difference of the two knows what a pirate is. (The last line is what the
# difference alone is worth, over all 49,152 tokens. Keep it in mind for section 4.)
#
# All of this lesson but its end is one formula, in log-probabilities:
#
# $$a + w \cdot (b - c)$$
#
# Take a distribution *a*, and move it by a weight *w* in the direction that leads from
# *c* to *b*. Here *a* and *c* are the model without the condition, *b* is the model
# with it. That is *classifier-free guidance*, known from pictures, and used for text by
# Sanchez et al. (2024).

# %% [markdown]
# ### Exercise 11.1 · `guide`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 3 lines
#
# From the logits with and without the condition make the guided scores: uncond +
# scale · (cond - uncond), where both stand for log-probabilities (`log_softmax`). So a
# scale of 0 is the model without the condition, 1 is the model with it, and more than 1
# goes beyond. It is what `generate(guidance_scale=...)` computes; the scores are not
# normalised again.
#
# By hand: with the condition two tokens have 0.5 and 0.5, without it 0.8 and 0.2. With
# scale 2 the scores are ln 0.8 + 2 · (ln 0.5 - ln 0.8) = ln 0.3125 = -1.163, and ln
# 1.25 = 0.223. Their softmax is 0.2 and 0.8.
#
# <details><summary>Hint 1</summary>Each <code>log_softmax</code> goes over the
# vocabulary: <code>dim=-1</code>.</details>
# <details><summary>Hint 2</summary>Half precision is too coarse for differences:
# <code>.float()</code> first.</details>


# %% tags=["exercise"]
def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """The guided scores: uncond + scale * (cond - uncond), in log-probabilities.

    cond, uncond: (batch, vocab) logits of any float dtype. scale: 1 is cond, 0 uncond.
    Returns a new (batch, vocab) tensor, float32. Sanchez et al., 2024.
    """
    ### BEGIN SOLUTION
    cond = cond.float().log_softmax(-1)
    uncond = uncond.float().log_softmax(-1)
    return uncond + scale * (cond - uncond)
    ### END SOLUTION


# %% tags=["check"]
check(guide)

# %% tags=["nbval-check-output"]
for scale in (0, 1, 1.5, 3, 10):
    scores = guide(cond, uncond, scale)
    print(f"scale {scale:3}: ", best(scores, 5), end="   ")
    print(f"the best has {scores.softmax(-1).max():.2f}")

# %% [markdown]
# `log_softmax` first, or the logits as they are? For each row it adds a constant to all
# tokens, and a constant changes no distribution. So sampled and greedy tokens are the
# same either way. The *values* differ, and that matters where a later step looks at
# them: lesson 08's `repetition_penalty` divides a positive logit and multiplies a
# negative one.

# %%
bare = uncond + 3 * (cond - uncond)  # on logits
scores = guide(cond, uncond, 3)
gap = (bare.softmax(-1) - scores.softmax(-1)).abs().max().item()
print(f"probabilities differ by at most {gap:.0e}; scores by", end=" ")
print(f"{(bare - scores).abs().max():.1f}")
linear = uncond.softmax(-1) + 3 * (cond.softmax(-1) - uncond.softmax(-1))
print("in probabilities, not their logarithms: smallest", f"{linear.min():.2f}")

# %% [markdown]
# The last line is a mistake that is easily made: extrapolated *probabilities* become
# negative. In log space any weight gives a distribution.

# %% [markdown]
# ### Exercise 11.2 · `cfg_decode`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 12 lines
#
# The loop around it. Two texts run side by side: the prompt, and the *negative* prompt
# (what to stay away from, here the one without the condition). In each step both are
# run, `guide` makes scores of the two logits, `pick` chooses *one* token, and this
# token is appended to *both*. Each text has a cache of its own: they are different
# texts, with different keys and values.
#
# By hand: a prompt of 40 tokens, a negative one of 30, 3 new tokens. The model is
# called 6 times: with 40 tokens, 30, then four times with one. An EOS is appended and
# ends the loop. What comes after the last token is never asked for.
#
# <details><summary>Hint 1</summary>Lesson 07's <code>logits, cache = cached_step(model,
# fed, cache)</code> does a prefill and a step. You need two variables for what is fed,
# and two for the caches.</details>
# <details><summary>Hint 2</summary>An EOS in the prompt ends nothing (a chat prompt has
# some): look at the new token alone.</details>


# %% tags=["exercise"]
def cfg_decode(
    model,
    ids: torch.Tensor,
    negative_ids: torch.Tensor,
    scale: float,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
    eos_ids: list[int],
) -> torch.Tensor:
    """Continue ids, guided away from what would follow negative_ids.

    ids: (1, seq) int64; negative_ids: (1, any length) int64; both without padding and
    left unchanged. pick: (1, vocab) float32 guided scores -> (1, 1), called once for
    each new token. The model is called without gradients, at most twice for each new
    token: once for each text, which has a cache of its own. Returns (1, seq + new)
    int64, new at most max_new_tokens; an EOS is the last token.
    """
    ### BEGIN SOLUTION
    out, fed, negative_fed = ids, ids, negative_ids
    cache, negative_cache = None, None
    for _ in range(max_new_tokens):
        cond, cache = cached_step(model, fed, cache)
        uncond, negative_cache = cached_step(model, negative_fed, negative_cache)
        token = pick(guide(cond, uncond, scale))  # (1, 1)
        out = torch.cat([out, token], dim=-1)
        if token.item() in eos_ids:
            break
        fed = negative_fed = token
    return out
    ### END SOLUTION


# %% tags=["check"]
check(cfg_decode)

# %% [markdown]
# The proof on the real model. **Predict** what scale 2 makes of the pirate, and what a
# scale of 0 is: not a mild pirate.

# %% tags=["nbval-check-output"]
for scale, new in ((0, 8), (1, 8), (2, 12)):
    mine = cfg_decode(model, told, untold, scale, new, pick_greedy, [EOS])
    print(f"scale {scale}:", new_text(told, mine))
options = {"guidance_scale": 2.0, "do_sample": False, "max_new_tokens": 12}
theirs = model.generate(told, negative_prompt_ids=untold, **options)
print("the same ids as generate:", torch.equal(mine, theirs))

# %% [markdown]
# Without `negative_prompt_ids`, `generate` takes the last token of the prompt as the
# other text: `cfg_decode(model, ids, ids[:, -1:], ...)`. That works with a plain
# prompt; for a chat it is an odd text to move away from.
#
# Two conventions of the scale are in use. `guide` is at home in `transformers`: 1 is
# off. The other one starts at the condition: cond + w · (cond - uncond), where 0 is
# off. It is the same line, with w = scale - 1. Whoever copies a number from one paper
# to the other library is off by one.
#
# What does more guidance do to the text? A sweep: four conditions, two questions, six
# scales, greedy. A helper runs all 48 texts as rows of one batch; their scores come
# from your `guide`. It notes what the *plain* model (scale 1) thinks of each token, and
# how much likelier the condition made it.

# %%
CONDITIONS = {  # a system prompt, and words that show it
    PIRATE: r"arr|matey|\bye\b|ship|sea|sail|pirate",
    "You love cheese and talk about it in every answer.": "chees",
    "You are sad and gloomy.": "sad|gloom|sigh|lonely|alas|dark|sorrow|poor",
    "Answer in French.": r"\b(le|la|les|de|est|et|un|une|je|il)\b",
}
QUESTIONS = [DAY, "What should I do today?"]
SCALES = [0, 1, 1.5, 2, 3, 5]


def prefilled(rows, copies):
    """Logits and cache of prompts with padding on the left, each row `copies` times."""
    width = max(row.shape[1] for row in rows)
    pads = [(width - row.shape[1], 0) for row in rows]
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(r, p) for r, p in zip(rows, pads, strict=True)])
    ones = [torch.ones_like(row) for row in rows]
    mask = torch.cat([pad(r, p) for r, p in zip(ones, pads, strict=True)])
    out = model(
        ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        logits_to_keep=1,
        use_cache=True,
    )
    out.past_key_values.batch_repeat_interleave(copies)
    logits = out.logits[:, -1].repeat_interleave(copies, 0)
    return logits, out.past_key_values, mask.repeat_interleave(copies, 0)


# %%
def stepped(token, cache, mask):
    mask = torch.cat([mask, torch.ones_like(token)], -1)
    out = model(
        token,
        past_key_values=cache,
        attention_mask=mask,
        position_ids=position_ids(mask)[:, -1:],
    )
    return out.logits[:, -1], out.past_key_values, mask


def sweep(conds, negatives, new):
    """Tokens, ln p of the plain model and gain, each (prompts, scales, new)."""
    branches = [prefilled(rows, len(SCALES)) for rows in (conds, negatives)]
    found = []
    for _ in range(new):
        cond, uncond = branches[0][0], branches[1][0]
        scores = torch.empty_like(cond)
        for i, scale in enumerate(SCALES):
            rows = slice(i, None, len(SCALES))
            scores[rows] = guide(cond[rows], uncond[rows], scale)
        token = scores.argmax(-1, keepdim=True)
        its, other = (x.log_softmax(-1).gather(-1, token) for x in (cond, uncond))
        found.append(torch.cat([token.double(), its, its - other], -1))
        branches = [stepped(token, *branch[1:]) for branch in branches]
    return torch.stack(found, 1).reshape(len(conds), len(SCALES), new, 3).unbind(-1)


# %%
pairs = [(system, question) for system in CONDITIONS for question in QUESTIONS]
tokens, logprobs, gains = sweep(
    [chat(question, system) for system, question in pairs],
    [chat(question) for _, question in pairs],
    18,
)
ended = (tokens == EOS).cumsum(-1) - (tokens == EOS).long() > 0  # behind an EOS
lengths = (~ended).sum(-1)
texts = [
    [tokenizer.decode(t[~e].long(), skip_special_tokens=True) for t, e in rows]
    for rows in (
        zip(ts, es, strict=True) for ts, es in zip(tokens, ended, strict=True)
    )
]
for scale, text in zip(SCALES, texts[0], strict=True):
    print(f"{scale:3}: {text!r}")

# %%
shown = torch.tensor(
    [
        [bool(re.search(CONDITIONS[system], text.lower())) for text in row]
        for (system, _), row in zip(pairs, texts, strict=True)
    ]
)
mean_logprob = logprobs.masked_fill(ended, 0).sum(-1) / lengths
mean_gain = gains.masked_fill(ended, 0).sum(-1) / lengths
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.7))
curves = [
    ("perplexity, plain model", (-mean_logprob).exp()),
    ("gain in nats a token", mean_gain),
    ("share with a telling word", shown.double()),
]
for ax, (title, values) in zip(axes, curves, strict=True):
    ax.plot(SCALES, values.T, color=figures.SKY, linewidth=0.7, alpha=0.6)
    middle = values.mean(0) if values is curves[2][1] else values.median(0).values
    ax.plot(SCALES, middle, "o-", color=figures.BLUE)
    ax.axvline(1, color=figures.GREY, linestyle=":")
    ax.set(title=title, xlabel="guidance scale")
axes[0].set(yscale="log")
for line in axes[2].lines[: len(pairs)]:
    line.remove()  # yes or no for each text: only the share tells something
plt.show()
for i, scale in enumerate(SCALES):
    print(f"scale {scale:3}:", end=" ")
    print("  ".join(f"{t}: {(v[:, i].mean() if v.unique().numel() == 2 else v[:, i].median()):.2f}" for t, v in curves))
