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
# `proxy_tune`, `js_divergence`, `dola` and `contrastive_search_pick`. About 150 minutes.
# Builds on lessons 03, 06, 07 and 08: their functions come along in the first cell.

# %% tags=["setup"]
from collections.abc import Callable

import torch

from course import carry

cached_step = carry("cached_step")
pick_greedy = carry("pick_greedy")
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
# By hand: with the condition two tokens have 0.6 and 0.4, without it 0.8 and 0.2. With
# scale 2 the scores are ln 0.8 + 2 · (ln 0.6 - ln 0.8) = ln 0.45 = -0.799, and ln 0.8 =
# -0.223. Their softmax is 0.36 and 0.64.
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
#
# ## 2. Two texts, side by side

# %% [markdown]
# ### Exercise 11.2 · `cfg_decode`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 11 lines
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
# The proof on the real model:

# %% tags=["nbval-check-output"]
mine = cfg_decode(model, told, untold, 2.0, 7, pick_greedy, [EOS])
options = {"guidance_scale": 2.0, "do_sample": False, "max_new_tokens": 7}
theirs = model.generate(told, negative_prompt_ids=untold, **options)
print("the same ids as generate:", torch.equal(mine, theirs))
print(new_text(told, mine))

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
# What does more guidance do to the text? A sweep: four conditions, two questions, five
# scales, greedy. A helper runs all 40 texts as rows of one batch; their scores come
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
SCALES = [0, 1, 2, 3, 5]


# %%
@torch.no_grad()
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
@torch.no_grad()
def stepped(token, cache, mask):
    mask = torch.cat([mask, torch.ones_like(token)], -1)
    out = model(
        token,
        past_key_values=cache,
        attention_mask=mask,
        position_ids=position_ids(mask)[:, -1:],
    )
    return out.logits[:, -1], out.past_key_values, mask


# %%
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
    10,
)
ended = (tokens == EOS).cumsum(-1) - (tokens == EOS).long() > 0  # behind an EOS
lengths = (~ended).sum(-1)
texts = [
    [tokenizer.decode(t[~e].long(), skip_special_tokens=True) for t, e in rows]
    for rows in (zip(ts, es, strict=True) for ts, es in zip(tokens, ended, strict=True))
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
curves = {  # for each text and scale, and the middle of the texts
    "perplexity, plain model": (-mean_logprob).exp().cpu(),
    "gain in nats a token": mean_gain.cpu(),
}
middles = {name: values.median(0).values for name, values in curves.items()}
middles["share with a telling word"] = shown.double().mean(0)

# %%
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.7))
for ax, (name, middle) in zip(axes, middles.items(), strict=True):
    if name in curves:
        ax.plot(SCALES, curves[name].T, color=figures.SKY, linewidth=0.7, alpha=0.6)
    ax.plot(SCALES, middle, "o-", color=figures.BLUE)
    ax.axvline(1, color=figures.GREY, linestyle=":")
    ax.set(title=name, xlabel="guidance scale")
axes[0].set(yscale="log")
axes[2].set(ylim=(0, 1.05))
plt.show()

# %%
for name, middle in middles.items():
    row = (f"{scale}: {value:.2f}" for scale, value in zip(SCALES, middle, strict=True))
    print(f"{name:26}", "   ".join(row))

# %% [markdown]
# Thin lines are texts, the thick one is their median. From left to right: how surprised
# the plain model is by the text; how much likelier the condition makes it; and how many
# of the eight texts have a word that shows the condition.
#
# Between 0 and 1 the condition does its work, without guidance. (At 0 the text knows
# nothing of it, so the plain model, which does, is a little surprised.) Beyond 1 the
# gain goes on rising: the text is more and more one that only the condition explains.
# The first panel has the price. At scale 2 the perplexity is not yet twice that of
# plain greedy text, at 5 it is more than ten times as high, and the texts fall apart.
# The words that a reader looks for are most frequent at 2; far beyond it pirates write
# "Barn storm be lookin'". (Eight texts of ten tokens are few: 6 of them against 4 is no
# proof.) text-generation-webui's manual, with reference to the paper, calls 1.5 a good
# value.
#
# The cost is two calls for each token, and two caches. It is the same loop that users
# of an engine once wrote with *one* cache: the second text then read the keys of the
# first, and the model "[turned quite
# wonky](https://github.com/turboderp/exllama/issues/129)".

# %% [markdown]
# ## 3. Trust the text, not the memory
#
# The same line, another pair. A model reads a text that contradicts what it has learned
# (an update, a story, the documents of a search), and its memory still has a say.
# *Context-aware decoding* (Shi et al., 2024) moves the answer further in the direction
# that the context has pushed it: *a* and *b* are the model with the context, *c* is the
# model without.

# %% [markdown]
# ### Exercise 11.3 · `context_aware`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 1 line
#
# with + weight · (with - without), in log-probabilities. So a weight of 0 is the model
# with the context: this is the other convention. Write it out, or find the scale for
# which `guide` does it.
#
# By hand: with the context two tokens have 0.6 and 0.4, without it 0.8 and 0.2. With
# weight 1 the softmax of the scores is 0.36 and 0.64, with weight 0 it is 0.6 and 0.4.
#
# <details><summary>Hint 1</summary>with + w · (with - without) = without + (w + 1) ·
# (with - without).</details>


# %% tags=["exercise"]
def context_aware(
    with_context: torch.Tensor, without: torch.Tensor, weight: float
) -> torch.Tensor:
    """Scores that trust the context more: with + weight * (with - without).

    with_context, without: (batch, vocab) logits of any float dtype. weight: 0 is the
    model with the context. Returns a new (batch, vocab) tensor, float32: log-
    probabilities up to a constant for each row. Shi et al., 2024.
    """
    ### BEGIN SOLUTION
    return guide(with_context, without, 1 + weight)
    ### END SOLUTION


# %% tags=["check"]
check(context_aware)

# %% [markdown]
# Four texts that contradict what everybody knows. The figure begins at weight -1, which
# is the model without the text: with - (with - without). **Predict:** does more weight
# always make the answer of the text more likely?

# %%
STORIES = (  # context | question | its answer | the usual answer
    "In this game, one plus one is seven.|One plus one is|seven|two\n"
    "This year the winter Olympics begin in July."
    "|The winter Olympics begin in|July|February\n"
    "In Wonderland, the opposite of hot is tall.|The opposite of hot is|tall|cold\n"
    "In this story, the capital of France is Madrid."
    "|The capital of France is|Madrid|Paris"
)
weights = [-1, 0, 0.5, 1, 1.5, 2, 3]
fig, axes = plt.subplots(1, 4, figsize=(8.6, 2.5), sharey=True)
for ax, story in zip(axes, STORIES.splitlines(), strict=True):
    context, question, *answers = story.split("|")
    both, _ = cached_step(model, ids_of(f"{context} {question}"), None)
    alone, _ = cached_step(model, ids_of(question), None)
    scores = [context_aware(both, alone, weight) for weight in weights]
    answers.append(tokenizer.decode([scores[-1].argmax().item()]).strip())
    for answer in dict.fromkeys(answers):
        place = tokenizer(" " + answer)["input_ids"][0]
        ax.plot(weights, [s.softmax(-1)[0, place].item() for s in scores], label=answer)
    ax.axvline(0, color=figures.GREY, linestyle=":")
    ax.set(xlabel="weight", ylim=(0, 1))
    ax.legend(fontsize=8, loc="center right")
axes[0].set(ylabel="probability")
plt.show()

# %% [markdown]
# Without the text (-1) the model is sure of "cold" and "Paris"; to the other questions
# it has no answer. With it (0) the text's answer comes first, but has only 18% to 43%,
# and "Paris" is close behind "Madrid". In three of four the answer wins with a weight
# of ½. In the fourth it gains at first and then loses to "Spain": Madrid and Spain were
# both made likelier by the text, Spain was nearly impossible without it, and a large
# weight rewards exactly that. Extrapolating goes in the right direction, and then too
# far. The price: both texts are run, so two calls for each token.
#
# ## 4. An expert and an amateur
#
# Greedy text is dull, and it repeats itself (lesson 08). *Contrastive decoding* (Li et
# al., 2023) has an idea why: what is dull is what even a *bad* model would write. So
# take a good model, the expert, and move away from a bad one, the amateur. Li et al.
# used OPT-13B and OPT-125M.
#
# There is one model in this course, so the amateur must be made of it. Ours is
# nearsighted: the same model, but it sees only the last token of the text. It still
# knows which word often follows which, and nothing else.


# %%
@torch.no_grad()
def nearsighted(ids, sees=1):
    """The amateur: the same model, given the last tokens of the text only."""
    return model(ids[:, -sees:], logits_to_keep=1).logits[:, -1]


def steered(prompt, new, score):
    """Greedy decoding of score(logits, ids), without the prompt: ids, and as text."""
    out = fed = ids_of(prompt)
    start, cache = out.shape[1], None
    for _ in range(new):
        logits, cache = cached_step(model, fed, cache)
        fed = pick_greedy(score(logits, out))
        out = torch.cat([out, fed], -1)
        if fed.item() == EOS:
            break
    return out[0, start:].tolist(), tokenizer.decode(out[0, start:])


NIGHT = "It was a dark and stormy night."
greedy_ids, text = steered(NIGHT, 18, lambda logits, ids: logits)
print(f"rep-3 {rep_n(greedy_ids, 3):.2f}: {text!r}")

# %% [markdown]
# **Predict:** the formula as it stands, expert + ½ · (expert - amateur), for the first
# token. Which token wins?

# %%
expert, _ = cached_step(model, ids_of(NIGHT), None)
amateur = nearsighted(ids_of(NIGHT))
unmasked = guide(expert, amateur, 1.5)  # expert + 0.5 * (expert - amateur)
ratio = expert.log_softmax(-1) - amateur.log_softmax(-1)
for name, scores in (("expert", expert), ("amateur", amateur), ("unmasked", unmasked)):
    print(f"{name:9}", best(scores))
print("ratio    ", best(ratio))
winner = unmasked.argmax(-1, keepdim=True)
for name, logits in (("expert", expert), ("amateur", amateur)):
    p = logits.softmax(-1).gather(-1, winner).item()
    print(f"p of the winner, {name}: {p:.1e}")

# %% [markdown]
# The text would end at once. The expert gives its EOS a chance of 1 in 80, but the
# amateur gives it 1 in 60 million, and the *ratio* is what counts. (The ratio alone,
# the last list, knows no end of strange tokens.) Where the amateur finds something
# impossible, the contrast rewards it, however unlikely it is for the expert. So only
# tokens that the expert itself finds plausible may take part.

# %% [markdown]
# ### Exercise 11.4 · `plausible`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 4 lines
#
# Which tokens are plausible: those with at least `alpha` times the probability of the
# likeliest token of their row. (You know this rule. Lesson 06 calls it min-p. Here it
# is a mask.)
#
# By hand: with the probabilities 0.6, 0.3, 0.1 and `alpha=0.25` the floor is 0.15: `[[
# True, True, False]]`. With `alpha=0` all are plausible, with 1 the likeliest and what
# ties with it.
#
# <details><summary>Hint 1</summary><code>amax(-1, keepdim=True)</code> has shape
# <code>(batch, 1)</code>: a floor for each row.</details>


# %% tags=["exercise"]
def plausible(logits: torch.Tensor, alpha: float) -> torch.Tensor:
    """True for tokens with at least alpha times the probability of the likeliest.

    logits: (batch, vocab) of any float dtype, left unchanged. alpha: 0 to 1; 0 is True
    for all. Returns bool (batch, vocab). Raises ValueError for alpha outside 0 to 1.
    Li et al., 2023.
    """
    ### BEGIN SOLUTION
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    probs = logits.float().softmax(-1)
    return probs >= alpha * probs.amax(-1, keepdim=True)
    ### END SOLUTION


# %% tags=["check"]
check(plausible)

# %% tags=["nbval-check-output"]
for alpha in (0, 0.001, 0.01, 0.1, 0.5):
    mask = plausible(expert, alpha)
    print(f"alpha {alpha:5}: {mask.sum().item():6} plausible", end="   best of them: ")
    print(best(unmasked.masked_fill(~mask, -torch.inf), min(4, mask.sum().item())))

# %% [markdown]
# ### Exercise 11.5 · `contrastive`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 3 lines
#
# expert + beta · (expert - amateur) in log-probabilities, for tokens that are plausible
# for the *expert*; -inf for all others. With `beta=0` the best token is the expert's.
# (This is the form of O'Brien and Lewis, 2023. Li et al. rank by expert - amateur
# alone: what a large beta comes to.)
#
# By hand: expert 0.6, 0.3, 0.1, amateur 0.8, 0.1, 0.1, `alpha=0.25`, `beta=1`. The
# third token is not plausible: -inf. The others have 0.6² / 0.8 = 0.45 and 0.3² / 0.1 =
# 0.9, and so the second one wins with 2/3.
#
# <details><summary>Hint 1</summary>The sum is <code>guide</code> with the scale 1 +
# beta, or <code>context_aware</code> with the weight beta. Then
# <code>masked_fill</code> where it is <em>not</em> plausible: <code>~</code>.</details>


# %% tags=["exercise"]
def contrastive(
    expert: torch.Tensor, amateur: torch.Tensor, alpha: float, beta: float
) -> torch.Tensor:
    """expert + beta * (expert - amateur) for tokens that the expert finds plausible.

    expert, amateur: (batch, vocab) logits of any float dtype. alpha: as in `plausible`.
    Returns a new (batch, vocab) tensor, float32: log-probabilities up to a constant for
    each row, -inf for tokens that are not plausible, whatever the amateur says.
    Raises ValueError for alpha outside 0 to 1. Li et al., 2023.
    """
    ### BEGIN SOLUTION
    mask = plausible(expert, alpha)
    scores = guide(expert, amateur, 1 + beta)
    return scores.masked_fill(~mask, -torch.inf)
    ### END SOLUTION


# %% tags=["check"]
check(contrastive)

# %% [markdown]
# The same beginning, with and without the mask:


# %%
for alpha in (0, 0.1):
    ids, text = steered(
        NIGHT,
        18,
        lambda logits, ids, a=alpha: contrastive(logits, nearsighted(ids), a, 0.5),
    )
    print(f"alpha {alpha}: rep-3 {rep_n(ids, 3):.2f} {text!r}")

# %% [markdown]
# No mask, no text. With it the ghosts are gone. One beginning shows what can happen, not
# how often. And be clear about the amateur: it is no small model, and it costs as much
# for each token as any other call of the same model (a small model is cheaper, and that
# is why the paper uses one; it tries a nearsighted one as well).
#
# ## 5. Tuning by proxy
#
# Take *a*, *b* and *c* from three different models: the model to steer; a small model
# that was trained for the style that is wanted; and the same small model from before
# that training. The difference of the two small ones is what the training did, and it
# is added to the large one, whose weights nobody touches. That is *proxy-tuning* (Liu
# et al., 2024); with an expert and an "anti-expert" it was known as DExperts (Liu et
# al., 2021). With proxies of 7B parameters, Liu et al. close 88% of the gap between
# Llama2-70B and its chat version.

# %% [markdown]
# ### Exercise 11.6 · `proxy_tune`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 2 lines
#
# base + weight · (tuned - untuned), in log-probabilities.
#
# By hand: base 0.5, 0.5; tuned 0.6, 0.4; untuned 0.2, 0.8. The tuning made the first
# token 3 times as likely and the second half as likely: 1.5 against 0.25, so the first
# has 6/7. With weight 2 it is 4.5 against 0.125: 36/37.
#
# <details><summary>Hint 1</summary><code>guide</code> does not fit: here <em>a</em> and
# <em>c</em> are different models. Three times
# <code>.float().log_softmax(-1)</code>.</details>


# %% tags=["exercise"]
def proxy_tune(
    base: torch.Tensor,
    tuned: torch.Tensor,
    untuned: torch.Tensor,
    weight: float = 1.0,
) -> torch.Tensor:
    """The base model, moved by what tuning did to a small one.

    base, tuned, untuned: (batch, vocab) logits of any float dtype, over one vocabulary.
    Returns a new (batch, vocab) tensor, float32: log-probabilities up to a constant for
    each row. weight: 0 is the base model. Liu et al., 2024.
    """
    ### BEGIN SOLUTION
    base, tuned, untuned = (x.float().log_softmax(-1) for x in (base, tuned, untuned))
    return base + weight * (tuned - untuned)
    ### END SOLUTION


# %% tags=["check"]
check(proxy_tune)

# %% [markdown]
# How small may the small model be? All it needs is logits over the same vocabulary. Our
# two are tables: how often does one token follow another, counted in a few lines of
# text (a Markov chain). The untuned one has read the plain lines, the tuned one
# has gone on with old-fashioned ones.

# %%
PLAIN = (
    "My friend, you are late again. Where have you been all night? Your mother has "
    "asked for you, and I do not know what you would have me say. Have you no shame? "
    "If you had told me, I would have come to you. You know that I love you. Now go, "
    "and may your journey be short. You must not stay here before the evening comes. "
    "Perhaps you will find what you seek."
)
OLD = (
    "My friend, thou art late again. Where hast thou been all night? Thy mother hath "
    "asked for thee, and I know not what thou wouldst have me say. Hast thou no shame? "
    "If thou hadst told me, I would have come to thee. Thou knowest that I love thee. "
    "Now go, and may thy journey be short. Thou must not stay here ere the evening "
    "cometh. Perchance thou wilt find what thou seekest."
)


# %%
class Counts:
    """A language model that is a table: which token follows which, and how often."""

    def __init__(self, *texts):
        self.alone, self.after = torch.full((len(tokenizer),), 0.05), {}
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            for before, after in zip(ids, ids[1:], strict=False):
                row = self.after.setdefault(before, torch.zeros(len(tokenizer)))
                for counts in (self.alone, row):
                    counts[after] += 1

    def logits(self, ids):
        """What follows the last token; where it is unknown, what is frequent."""
        usual = self.alone / self.alone.sum()
        counts = self.after.get(ids[0, -1].item(), torch.zeros(1))
        return (counts + 2 * usual).log()[None].to(ids.device)


untuned, tuned = Counts(PLAIN), Counts(PLAIN, OLD, OLD)

# %%
SISTER = "My dear sister,"
for weight in (0, 0.5, 1):
    ids, text = steered(
        SISTER,
        12,
        lambda logits, ids, w=weight: proxy_tune(
            logits, tuned.logits(ids), untuned.logits(ids), w
        ),
    )
    print(f"weight {weight}: {text!r}")

# %% [markdown]
# Two tables from a dozen lines of text make a model of 135 million parameters say "thou",
# with its grammar ("hath"). With weight 1 it is stuck in the tables' few phrases: a
# small model hands on its ignorance, too. The price is two calls of a small model for
# each token; here, two look-ups. The three vocabularies must be the same: token 1,000
# has to mean the same piece of text in all of them.
#
# ## 6. The model against its own youth
#
# An amateur that costs no second call: the model's own earlier layers. *DoLa* (decoding
# by contrasting layers; Chuang et al., 2024) reads a prediction from the middle of the
# model, as if the last layers did not exist, and moves away from it. The idea: grammar
# is settled early, facts late, so the difference holds the facts.
#
# Which layer? The one that disagrees most with the last one. *Disagree* is measured with
# the Jensen–Shannon divergence, which is symmetric and never infinite.

# %% [markdown]
# ### Exercise 11.7 · `js_divergence`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 5 lines
#
# Let m = (p + q) / 2 be the mean of the two distributions. The divergence is the mean
# of two Kullback–Leibler divergences, ½ KL(p ‖ m) + ½ KL(q ‖ m), where KL(p ‖ m) = Σ p
# · ln(p / m), in nats. A token with p = 0 adds nothing to KL(p ‖ m), also where a logit
# is -inf.
#
# By hand: p = 1, 0 and q = ½, ½ have m = ¾, ¼. KL(p ‖ m) = ln 4/3 = 0.288; KL(q ‖ m) =
# ½ ln 2/3 + ½ ln 2 = 0.144; the mean is 0.216. Equal distributions have 0, those that
# share no token have ln 2 = 0.693: the largest there is.
#
# <details><summary>Hint 1</summary>0 · ln 0 is nan for floats, though not for you.
# <code>torch.special.xlogy(p, p / m)</code> is p · ln(p / m), and 0 where p is 0 (m
# must not be 0 there, or it is nan: a floor such as <code>m.clamp(min=1e-30)</code>
# helps).</details>
# <details><summary>Hint 2</summary><code>torch.nn.functional.kl_div(a, b)</code> is KL(b
# ‖ exp a): its <em>first</em> argument is the logarithm of the distribution that comes
# second in KL.</details>


# %% tags=["exercise"]
def js_divergence(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """The Jensen–Shannon divergence of each row, in nats: 0 to ln 2.

    p_logits, q_logits: (batch, vocab) logits of any float dtype; -inf is probability 0.
    Returns (batch,) float32, the same if the two are exchanged.
    """
    ### BEGIN SOLUTION
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    m = ((p + q) / 2).clamp(min=1e-30)
    from_p = torch.special.xlogy(p, p / m).sum(-1)
    from_q = torch.special.xlogy(q, q / m).sum(-1)
    return (from_p + from_q) / 2
    ### END SOLUTION


# %% tags=["check"]
check(js_divergence)

# %% [markdown]
# Two distributions that hardly share a token, and what comes out if the arguments of
# `kl_div` are taken the wrong way round: KL(m ‖ p). **Predict:** can it be above ln 2?

# %% tags=["nbval-check-output"]
p, q = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[0.0, 20.0, 0.0]])
print(f"Jensen–Shannon: {js_divergence(p, q).item():.3f} (ln 2 = 0.693)")
m = (p.softmax(-1) + q.softmax(-1)) / 2
kl_div = torch.nn.functional.kl_div
wrong = sum(kl_div(x.log_softmax(-1), m, reduction="sum") for x in (p, q)) / 2
print(f"the wrong way round: {wrong.item():.3f}")

# %% [markdown]
# This is no invented mistake. DoLa's published code has it, and the one in
# `transformers` was made from that; a reader noticed because the number [was above ln
# 2](https://github.com/Jeryi-Sun/ReDEeP-ICLR/issues/2). It may choose another layer.
#
# Now the map: for each token of a text, how far is each layer from the last? A layer's
# prediction is read with the model's own last steps, its final norm and its head. (This
# is the *logit lens*; more of it in lesson 15.)


# %%
@torch.no_grad()
def hidden_states(text):
    """Of each layer but the last (layers, seq, dim), and the logits (seq, vocab)."""
    out = model(ids_of(text), output_hidden_states=True)
    return torch.cat(out.hidden_states[:-1]), out.logits[0]


@torch.no_grad()
def lens(states):
    """The logits that the model would give if it ended here."""
    core = model.base_model
    norm = core.norm if hasattr(core, "norm") else core.ln_f
    return model.get_output_embeddings()(norm(states))


TEXT = "The author of Hamlet was William Shakespeare, who was born in England"
states, final = hidden_states(TEXT)
far = torch.stack([js_divergence(final, lens(layer)) for layer in states]).cpu()
head = model.get_output_embeddings()
with torch.no_grad():
    bare = torch.stack([js_divergence(final, head(layer)) for layer in states]).cpu()

# %%
first = min(2, len(states) - 1)  # the layers below are no candidates
told_ids = ids_of(TEXT)[0]
labels = [
    f"{figures.token_label(tokenizer, i)} → {figures.token_label(tokenizer, best_id)}"
    for i, best_id in zip(told_ids, final.argmax(-1), strict=True)
]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True)
for ax, values, title in (
    (left, far, "with the final norm"),
    (right, bare, "without it"),
):
    image = ax.imshow(values, aspect="auto", origin="lower", vmin=0, vmax=0.7)
    ax.plot(values[first:].argmax(0) + first, "o", color="white", markersize=3)
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    ax.set(title=title)
left.set(ylabel="layer")
fig.colorbar(image, ax=right, label="divergence from the last layer, nats")
plt.show()

# %% [markdown]
# Below stands the token that was read → the likeliest next one. Read a column of the
# left map from the bottom up. Where the next token is easy, as after " Shakespeare" and
# " in", upper layers hardly differ from the last (dark). " Shakespeare" after "
# William" is a fact: yellow up to the last two or three layers. It is the picture that
# the idea of DoLa comes from.
#
# White dots are the layers that differ most, from layer 2 on. (Layer 0, the embeddings,
# would win nearly always, and for no good reason: this model's head is its embedding
# table, so layer 0 predicts the token that was just read. The version for
# `transformers` begins at layer 2 for such models, too.)
#
# On the right the head is applied to the bare states, without the norm, as DoLa's code
# and that for `transformers` do. In this model nearly everything is at ln 2 then, and
# which layer is the farthest is rounding: the dots are anywhere. What is read from the
# middle of a model depends on how it is read.

# %% [markdown]
# ### Exercise 11.8 · `dola`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 7 lines
#
# For each row choose the early layer with the largest `js_divergence` from the final
# one (of equal ones the first). The scores are ln p(final) - ln p(chosen layer) for
# tokens that are plausible for the *final* layer, -inf for the others. Each row has a
# layer of its own.
#
# By hand: final 0.5, 0.25, 0.25. Layer 0 has the same, layer 1 has 0.25, 0.5, 0.25:
# layer 1 is chosen. The ratios are 2, ½ and 1, and with `alpha=0.1` all three are
# plausible: scores 0.693, -0.693 and 0. With `alpha=0.8` only the first is.
#
# <details><summary>Hint 1</summary>One divergence for each layer and row:
# <code>torch.stack([js_divergence(final, layer) for layer in early])</code> has shape
# <code>(layers, batch)</code>. <code>argmax(0)</code> gives a layer for each
# row.</details>
# <details><summary>Hint 2</summary>Row i of its chosen layer: <code>early[chosen,
# torch.arange(batch)]</code> has shape <code>(batch, vocab)</code>.</details>


# %% tags=["exercise"]
def dola(final: torch.Tensor, early: torch.Tensor, alpha: float) -> torch.Tensor:
    """Scores that contrast the final layer with the early one that differs most.

    final: (batch, vocab) logits; early: (layers, batch, vocab) logits, one layer or
    more; any float dtype. alpha: as in `plausible`. Returns a new (batch, vocab)
    tensor, float32: ln p(final) - ln p(early) up to a constant for each row, -inf for
    tokens that are not plausible. Raises ValueError for alpha outside 0 to 1. Chuang
    et al., 2024.
    """
    ### BEGIN SOLUTION
    mask = plausible(final, alpha)
    far = torch.stack([js_divergence(final, layer) for layer in early])
    chosen = far.argmax(0)  # (batch,)
    rows = torch.arange(len(final), device=final.device)
    amateur = early[chosen, rows].float().log_softmax(-1)  # (batch, vocab)
    scores = final.float().log_softmax(-1) - amateur
    return scores.masked_fill(~mask, -torch.inf)
    ### END SOLUTION


# %% tags=["check"]
check(dola)

# %% [markdown]
# Does it help with facts? Sixteen of them, three sets of early layers. (`low` and
# `high` are the sets of `transformers`: every second layer of the lower or upper half.)

# %%
FACTS = (  # question | answer
    "The capital of Italy is| Rome\nThe capital of Japan is| Tokyo\n"
    "The capital of Egypt is| Cairo\nThe chemical symbol for gold is| Au\n"
    "The largest planet in the solar system is| Jupiter\n"
    "The author of Hamlet is William| Shakespeare\n"
    "Water freezes at zero degrees| Celsius\nThe currency of Japan is the| yen\n"
    "The first president of the United States was George| Washington\n"
    "The language spoken in Brazil is| Portuguese\nThe opposite of hot is| cold\n"
    "Albert Einstein developed the theory of| relativity\n"
    "The Great Wall is a landmark in| China\nBees make| honey\n"
    "The Eiffel Tower is in the city of| Paris\nThe heart pumps| blood"
)
depth = len(states)  # 30 early layers, with the embeddings
SETS = {
    "low": [*range(2, depth // 2, 2)] or [0],
    "high": [*range(depth // 2, depth, 2)],
    "the last": [depth - 1],
}

# %%
facts = [line.split("|") for line in FACTS.splitlines()]
wins = dict.fromkeys(["greedy", *SETS], 0)
for question, answer in facts:
    states, final = hidden_states(question)
    scores = {"greedy": final[-1:]}
    for name, layers in SETS.items():
        early = lens(states[layers, -1:])  # (layers, 1, vocab)
        scores[name] = dola(final[-1:], early, 0.1)
    said = {k: tokenizer.decode([s.argmax().item()]) for k, s in scores.items()}
    for name in wins:
        wins[name] += said[name] == answer
    if len(set(said.values())) > 1:
        print(f"{question}:", "  ".join(f"{k}{said[k]}" for k in wins))
print("right of 16:", wins)

# %% [markdown]
# On this model DoLa *loses*. Look at what it says: mostly no nonsense, but what the
# early layers did not expect, rarer words such as "Europa" for "Jupiter" or "Beijing"
# for "China". The page of the `transformers` version warns that for small models such
# as GPT-2 it is not recommended, since the improvement may be negligible. Here it is
# negative, whichever layers it may choose from. (Sixteen questions are few, but all
# three differences have one sign. And an answer counts only word for word: "Beijing" is
# no lie.)
#
# The price: no further call, but the head once more for each early layer. In this model
# the head is a large part of a call:

# %% tags=["nbval-check-output"]
head_weights = head.weight.numel()
body = sum(p.numel() for p in model.parameters())  # the head is counted once: tied
print(f"the head is {head_weights / body:.0%} of the weights", end=": ")
print(f"7 early layers cost {7 * head_weights / body:.1f} calls' worth")

# %% [markdown]
# ## 7. Contrast of another kind
#
# *Contrastive search* (Su et al., 2022) shares the word and half of the form. It
# contrasts not two distributions, but a token with the text so far: of the k likeliest
# tokens it takes the one with the best
#
# $$(1 - \alpha) \cdot p(v) - \alpha \cdot \max_j \cos(h_v, h_j)$$
#
# where h_v is the model's last hidden state after reading v, and h_j are those of all
# tokens before. A token whose state is nearly that of an earlier place is a repetition,
# and pays for it. Note p, not ln p: this is the one score of the lesson in
# probabilities, and its k is what keeps it plausible.

# %% [markdown]
# ### Exercise 11.9 · `contrastive_search_pick`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 10 lines
#
# One pick. `probs` are probabilities. `candidate_states` holds the states of the k
# likeliest tokens, likeliest first, in the order of `probs.topk(k)`; `past_states`
# those of the text. The penalty of a candidate is its *largest* cosine similarity with
# any place of the past. Of equal scores the first.
#
# By hand: probs 0.6, 0.3, 0.1; k = 2; the candidates' states are (2, 0) and (0, 1), the
# only past state is (1, 0). The cosines are 1 and 0. α = 0.5: 0.3 - 0.5 = -0.2 against
# 0.15 - 0 = 0.15, so token 1. α = 0.1: 0.54 - 0.1 = 0.44 against 0.27, token 0. With α =
# 0 or k = 1 it is greedy.
#
# <details><summary>Hint 1</summary><code>torch.nn.functional.normalize(x, dim=-1)</code>
# makes all vectors one long; then their dot product is the cosine.</details>
# <details><summary>Hint 2</summary>All pairs at once: <code>candidates @
# past.transpose(1, 2)</code> has shape <code>(batch, k, seq)</code>; then the largest
# over the last dimension.</details>
# <details><summary>Hint 3</summary>The place among the candidates is not the token:
# <code>indices.gather(-1, place)</code>.</details>


# %% tags=["exercise"]
def contrastive_search_pick(
    probs: torch.Tensor,
    candidate_states: torch.Tensor,
    past_states: torch.Tensor,
    k: int,
    alpha: float,
) -> torch.Tensor:
    """Of the k likeliest tokens the one with the best (1 - alpha) p - alpha max cos.

    probs: (batch, vocab), probabilities. candidate_states: (batch, k, dim), in the
    order of probs.topk(k). past_states: (batch, seq, dim). Of equal scores the first.
    Returns ids (batch, 1) int64. Raises ValueError where there are not k candidates.
    Su et al., 2022.
    """
    ### BEGIN SOLUTION
    if candidate_states.shape[1] != k:
        raise ValueError(f"k={k}, but {candidate_states.shape[1]} candidates")
    top = probs.topk(k)
    normalize = torch.nn.functional.normalize
    candidates = normalize(candidate_states, dim=-1)
    past = normalize(past_states, dim=-1)
    cosines = candidates @ past.transpose(1, 2)  # (batch, k, seq)
    scores = (1 - alpha) * top.values - alpha * cosines.amax(-1)
    place = scores.argmax(-1, keepdim=True)
    return top.indices.gather(-1, place)
    ### END SOLUTION


# %% tags=["check"]
check(contrastive_search_pick)

# %% [markdown]
# The loop around it is lesson 07's, with k rows: each candidate is run before one is
# chosen, and the cache keeps the row of the chosen one. **Predict:** α = 0 is greedy,
# and repeats itself. What is α = 0.9?


# %%
@torch.no_grad()
def contrastive_search(prompt, k, alpha, new):
    ids = ids_of(prompt)
    out = model(ids, use_cache=True, output_hidden_states=True)
    past, logits = out.hidden_states[-1], out.logits[:, -1]
    cache, chosen = out.past_key_values, []
    for _ in range(new):
        probs = logits.softmax(-1)
        candidates = probs.topk(k).indices  # (1, k)
        cache.batch_repeat_interleave(k)
        out = model(candidates.T, past_key_values=cache, output_hidden_states=True)
        states = out.hidden_states[-1].transpose(0, 1)  # (1, k, dim)
        token = contrastive_search_pick(probs, states, past, k, alpha)
        row = (candidates == token).nonzero()[0, 1:]
        cache.batch_select_indices(row)
        past, logits = torch.cat([past, states[:, row]], 1), out.logits[row, -1]
        chosen.append(token.item())
    return chosen


# %%
chosen = {0: greedy_ids}  # from section 4
for alpha, new in ((0.6, 18), (0.9, 11)):
    chosen[alpha] = contrastive_search(NIGHT, 4, alpha, new)
for alpha, ids in chosen.items():
    print(f"alpha {alpha}: rep-3 {rep_n(ids, 3):.2f} {tokenizer.decode(ids)!r}")

# %% [markdown]
# With α = 0.6 the loop is gone, and the text is good; with 0.9 the fear of repetition
# makes up words. The price: k rows in each call (here 4), and hidden
# states of all that was read.
#
# ## The price list
#
# Two new tokens behind a prompt of 8, counted at the model:


# %%
def counted(run):
    """How often the model is called, and with how many tokens in all."""
    calls = []
    hook = model.register_forward_pre_hook(
        lambda _, args, options: calls.append(
            (args[0] if args else options["input_ids"]).numel()
        ),
        with_kwargs=True,
    )
    run()
    hook.remove()
    return len(calls), sum(calls)


night = ids_of(NIGHT)
runs = {
    "greedy": lambda: steered(NIGHT, 2, lambda logits, ids: logits),
    "guidance": lambda: cfg_decode(model, night, night, 1.5, 2, pick_greedy, []),
    "contrastive": lambda: steered(
        NIGHT, 2, lambda logits, ids: contrastive(logits, nearsighted(ids), 0.1, 0.5)
    ),
    "contrastive search, k=4": lambda: contrastive_search(NIGHT, 4, 0.6, 2),
}
for name, run in runs.items():
    calls, tokens = counted(run)
    print(f"{name:24} {calls} calls   {tokens:2} tokens")

# %% [markdown]
# | method | *a*, *b*, *c* | for each new token |
# |---|---|---|
# | guidance | without, with, without | 2 calls, 2 caches |
# | context-aware | with, with, without | 2 calls, 2 caches |
# | contrastive decoding | expert, expert, amateur | 1 call, and 1 of the amateur |
# | proxy-tuning | base, tuned, untuned | 1 call, and 2 of a small model |
# | DoLa | none, last layer, early layer | 1 call, and 1 head for each early layer |
# | contrastive search | (another formula) | 1 call of k rows |
#
# DoLa and Li et al.'s contrastive decoding have no *a*: they rank by *b* - *c* alone,
# so that all depends on the mask. Two calls for one token halve the speed; whoever can
# run both texts as two rows of one batch pays less (lesson 07: a second row is nearly
# free where memory is the limit).
#
# ## Questions
#
# 1. `guide` with scale 1.5: what is its weight in the other convention? And a negative
#    scale?
# 2. A prompt and a negative prompt that are equal: what does any scale give?
# 3. Contrastive decoding with an amateur that is equally unsure of all tokens: what
#    does it choose?
# 4. Why does `plausible` look at the expert and not at the contrasted scores?
#
# <details><summary>Answers</summary>
#
# 1. 0.5. A negative scale moves away from the condition: the negative prompt becomes
#    the positive one, and more than that.
# 2. cond - uncond is 0: the plain model, whatever the scale.
# 3. The amateur subtracts the same from all tokens: (1 + beta) · ln p ranks as ln p,
#    greedy. (Sampled, it is a temperature of 1 / (1 + beta).)
# 4. The contrast is what lifts implausible tokens. After it they cannot be told from
#    good ones.
#
# </details>
#
# ## In the wild
#
# | what | `transformers` | llama.cpp | vLLM | text-generation-webui |
# |---|---|---|---|---|
# | guidance | `guidance_scale` (1 is off) | `--cfg-scale` until 2024, removed | none; asked for since 2023 | `guidance_scale` |
# | the other text | `negative_prompt_ids` | `--cfg-negative-prompt`, removed | | "Negative prompt" |
# | DoLa | `custom_generate="transformers-community/dola"`, `dola_layers` | | | |
# | contrastive search | `custom_generate="transformers-community/contrastive-search"`, `penalty_alpha`, `top_k` | | | |
#
# OpenAI's API has none of them: they need logits, and a second prompt. Context-aware
# decoding, contrastive decoding and proxy-tuning live in the code of their papers. In
# `transformers`, DoLa and contrastive search were built in until 2025; now they are
# fetched from the hub when they are used. Its DoLa takes one layer for all rows of a
# batch (by the mean of their divergences); the authors say that they [always used a
# batch of one](https://github.com/voidism/DoLa/issues/13).
#
# ## To read
#
# - Sanchez et al.: *Stay on topic with Classifier-Free Guidance*, ICML 2024,
#   [arXiv:2306.17806](https://arxiv.org/abs/2306.17806).
# - Shi et al.: *Trusting Your Evidence: Hallucinate Less with Context-aware Decoding*,
#   NAACL 2024, [arXiv:2305.14739](https://arxiv.org/abs/2305.14739).
# - Li et al.: *Contrastive Decoding: Open-ended Text Generation as Optimization*, ACL
#   2023, [arXiv:2210.15097](https://arxiv.org/abs/2210.15097). With the mask, and the
#   nearsighted amateur in section 3.4.
# - O'Brien, Lewis: *Contrastive Decoding Improves Reasoning in Large Language Models*,
#   2023, [arXiv:2309.09117](https://arxiv.org/abs/2309.09117).
# - Liu et al.: *DExperts: Decoding-Time Controlled Text Generation with Experts and
#   Anti-Experts*, ACL 2021, [arXiv:2105.03023](https://arxiv.org/abs/2105.03023).
# - Liu et al.: *Tuning Language Models by Proxy*, 2024,
#   [arXiv:2401.08565](https://arxiv.org/abs/2401.08565).
# - Chuang et al.: *DoLa: Decoding by Contrasting Layers Improves Factuality in Large
#   Language Models*, ICLR 2024, [arXiv:2309.03883](https://arxiv.org/abs/2309.03883).
# - Su et al.: *A Contrastive Framework for Neural Text Generation*, NeurIPS 2022,
#   [arXiv:2202.06417](https://arxiv.org/abs/2202.06417).
