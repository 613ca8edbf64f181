# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · Looking inside
#
# **After this lesson you can say how sure a model is, whether it should be, in which layer an
# answer appears, and which of the usual pictures of it prove nothing.**
#
# You write: `entropy`, `fork_points`, `reliability`, `expected_calibration_error`,
# `fit_temperature`, `logit_lens`, `attention_rollout` and `token_ranks`. About 150 minutes.
# Builds on lessons 02, 03 and 10: their functions come along in the first cell.

# %% tags=["setup"]
import math

import torch

from course import carry

pick_sample = carry("pick_sample")
sample_many = carry("sample_many")
token_logprobs = carry("token_logprobs")


def final_norm(model):
    """The norm between a model's last layer and its head, which has another name in
    each kind of model: `norm` in a Llama, `ln_f` in a GPT-2."""
    body = model.base_model
    return body.norm if hasattr(body, "norm") else body.ln_f


# %%
import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from course.kit.measures import human_texts
from tiny_models import load

model, tokenizer = load()
pad = tokenizer.pad_token_id


# %%
def ids_of(text):
    return tokenizer(text, return_tensors="pt").input_ids.to(model.device)


def labels_of(ids):
    return [figures.token_label(tokenizer, i) for i in ids]


# %% [markdown]
# ## 1. How sure is it?
#
# At each place the model gives a distribution over 49,152 tokens. The *surprisal* of lesson 02
# says how unlikely the token was that came. Before it comes, one can say how unlikely the next
# one will be on average: the *entropy* of the distribution.
#
# **Predict:** two tokens with the probability ½ each have the entropy ln 2 = 0.69 nats. How
# large can the entropy of 49,152 tokens be? And what is it for one token that is certain?

# %% [markdown]
# ### Exercise 15.1 · `entropy`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 2 lines
#
# H = -Σ p · ln p over the vocabulary, in nats, of each distribution that the logits give. A
# token that a filter took out (its logit is -inf, its probability 0) adds nothing.
#
# By hand: four tokens with the probabilities ½, ¼, ¼ and 0: ½ ln 2 + ¼ ln 4 + ¼ ln 4 = 1.5 ln 2
# = 1.04. One token that is certain: 0.
#
# <details><summary>Hint 1</summary><code>softmax</code> along the last dimension in float32, then
# the sum along the same dimension.</details>
# <details><summary>Hint 2</summary>0 · ln 0 is 0 · (-inf), and that is nan.
# <code>torch.special.entr(p)</code> is -p · ln p, and 0 where p is 0.</details>


# %% tags=["exercise"]
def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy in nats of each distribution.

    logits: (..., vocab) of any float dtype, mostly (batch, vocab); -inf for a token that
    cannot come. Returns (...) float32, so (batch,) for (batch, vocab).
    """
    ### BEGIN SOLUTION
    probs = logits.float().softmax(-1)
    return torch.special.entr(probs).sum(-1)
    ### END SOLUTION


# %% tags=["check"]
check(entropy)

# %% [markdown]
# At most ln 49,152 = 10.8 nats. Four short reviews with a verdict, and a fifth one that the model
# begins with its likeliest tokens. How sure was it at each place?

# %%
REVIEWS = """The room was small, but the view was great: positive
The food was cold, and the staff was rude: negative
The bus was late, but the driver was kind: positive
The soup was hot, but the bread was old: negative
The film was"""
prompt = ids_of(REVIEWS)
start = prompt.shape[1]
options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": pad}
ids = model.generate(prompt, **options)
with torch.no_grad():
    uncertain = entropy(model(ids).logits[0, start - 1 : -1])  # of each new token
tokens = labels_of(ids[0, start:])
shown = [f"{t}\n{h:.1f}" for t, h in zip(tokens, uncertain.tolist(), strict=True)]
fig, ax = plt.subplots(figsize=(8, 1.1))
values = uncertain.tolist()
figures.token_strip(ax, shown, values, per_row=9, label="entropy (nats)")
plt.show()

# %% [markdown]
# What a review says is open; that a colon follows its last word is not. Entropy knows nothing of
# meaning, though: it is as high where many words would do as where different things could be
# said.
#
# ## 2. Forks
#
# A place with high entropy is often called a *fork*: the text could have gone another way.
# (Wang et al., 2025, call such tokens forking tokens, and train a model on them alone.)

# %% [markdown]
# ### Exercise 15.2 · `fork_points`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 4 lines
#
# Which tokens of a text were chosen with an entropy *above* the threshold? Token t was chosen
# from the distribution that the model gives behind token t - 1. Nothing chose the first token,
# so it is never a fork.
#
# By hand: three tokens. The logits behind the first have the entropy 0.2, those behind the second
# 1.5, those behind the third 3. With the threshold 1 there is one fork, `[2]`: the third token.
# (The 3 nats belong to a token that has not been chosen yet.)
#
# <details><summary>Hint 1</summary>One call of the model gives the logits of all places. Those at
# place t - 1 belong to token t.</details>
# <details><summary>Hint 2</summary><code>entropy</code> takes (seq, vocab), too.
# <code>(h > threshold).nonzero()</code> gives places; how far are they from those of the
# tokens?</details>


# %% tags=["exercise"]
def fork_points(model, ids: torch.Tensor, threshold: float) -> list[int]:
    """The places of the tokens that were chosen with an entropy above threshold.

    ids: (1, seq) int64. The model is called once, without gradients. Returns places in
    ids, from 1 to seq - 1, in order. An entropy equal to the threshold is no fork.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]  # (seq - 1, vocab)
    above = entropy(logits) > threshold
    return (above.nonzero()[:, 0] + 1).tolist()
    ### END SOLUTION


# %% tags=["check"]
check(fork_points)

# %%
forks = [place for place in fork_points(model, ids, 0.8) if place >= start]
for place in forks:
    print(place, f"{uncertain[place - start]:.2f}", repr(tokenizer.decode(ids[0, place])))

# %% [markdown]
# Does it matter which way the text goes? That is another question. To answer it, change the one
# token, let the model go on, many times, and look at the *outcome*: here, is the verdict positive?
# Bigelow et al. (2025) do this at every place of a text.
#
# **Predict:** we take the two forks with the least and with the most entropy, the comma and the
# last word of the review. At which one does the outcome depend on the token?

# %%
N, STEPS = 32, 10
VERDICTS = {ids_of(f" {name}")[0, 0].item(): name for name in ("positive", "negative")}
ends = [*VERDICTS, ids_of("\n")[0, 0].item(), tokenizer.eos_token_id]


def outcomes_after(prefix, tokens):
    """{token: [1.0 or 0.0 for each sample, for a positive or negative verdict]}"""
    forced = torch.tensor(tokens, device=model.device).repeat_interleave(N)[:, None]
    steps = []

    def pick(logits):
        steps.append(forced if not steps else pick_sample(logits))
        return steps[-1]

    out = sample_many(model, prefix, N * len(tokens), STEPS, pick, ends, pad)
    found = {token: [] for token in tokens}
    for row in out[:, prefix.shape[1] :].tolist():
        verdict = next((VERDICTS[i] for i in row if i in VERDICTS), None)
        if verdict:  # others ended without one, or not within STEPS tokens
            found[row[0]].append(float(verdict == "positive"))
    return found


# %% [markdown]
# Few samples make a share uncertain. As in lesson 08 the *bootstrap* says how much: draw as many of
# the samples with replacement, again and again, and look between which limits 95% of the shares
# lie.


# %%
def interval(values, generator, resamples=2000):
    """(share, low, high): a share and its 95% bootstrap interval."""
    values = torch.tensor(values)
    shape = (resamples, len(values))
    drawn = values[torch.randint(len(values), shape, generator=generator)].mean(-1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return values.mean().item(), low, high


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
by_entropy = sorted(forks, key=lambda place: uncertain[place - start])
branches = []  # (place, token, entropy, number, share, low, high)
for place in (by_entropy[0], by_entropy[-1]):
    with torch.no_grad():
        tokens = model(ids[:, :place]).logits[0, -1].topk(3).indices.tolist()
    for token, values in outcomes_after(ids[:, :place], tokens).items():
        h = uncertain[place - start].item()
        branches.append((place, token, h, len(values), *interval(values, generator)))
for place, token, h, number, share, low, high in branches:
    print(f"{place} ({h:.2f} nats)  {tokenizer.decode([token])!r:12}", end="")
    print(f"positive {share:.2f} [{low:.2f}, {high:.2f}] of {number}")
