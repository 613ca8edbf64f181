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
# Builds on lessons 03, 04 and 10: their functions come along in the first cell.

# %% tags=["setup"]
import math
from collections.abc import Sequence

import torch

from course import carry

pick_sample = carry("pick_sample")
sample_many = carry("sample_many")
top_k_filter = carry("top_k_filter")


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

    logits: (..., vocab) of any float dtype, mostly (batch, vocab); -inf for a token
    that cannot come. Returns (...) float32, so (batch,) for (batch, vocab).
    """
    ### BEGIN SOLUTION
    probs = logits.float().softmax(-1)
    return torch.special.entr(probs).sum(-1)
    ### END SOLUTION


# %% tags=["check"]
check(entropy)

# %% [markdown]
# At most ln 49,152 = 10.8 nats. Four questions with answers, and a fifth one that the model answers
# with its likeliest tokens. How sure was it at each place?

# %%
QUESTIONS = """Can a penguin fly? A penguin is a bird, but its wings are small, so no.
Can a duck fly? A duck is a bird, and its wings are strong, so yes.
Can a cow fly? A cow is an animal, but it has no wings, so no.
Can a bee fly? A bee is an insect, and it has wings, so yes.
Can a chicken fly? A chicken is"""
prompt = ids_of(QUESTIONS)
start = prompt.shape[1]
options = {"do_sample": False, "max_new_tokens": 11, "pad_token_id": pad}
ids = model.generate(prompt, **options)
with torch.no_grad():
    uncertain = entropy(model(ids).logits[0, start - 1 : -1])  # of each new token
tokens = labels_of(ids[0, start:])
shown = [f"{t}\n{h:.1f}" for t, h in zip(tokens, uncertain.tolist(), strict=True)]
fig, ax = plt.subplots(figsize=(8, 1.1))
values = uncertain.tolist()
figures.token_strip(ax, shown, values, per_row=11, label="entropy (nats)")
plt.show()

# %% [markdown]
# What it says of a chicken is open; that a full stop ends the answer is not. Entropy knows nothing
# of meaning: it is as high where many words would do as where different things could be said.
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
forks = [place for place in fork_points(model, ids, 1.0) if place >= start]
for place in forks:
    print(
        place, f"{uncertain[place - start]:.2f}", repr(tokenizer.decode(ids[0, place]))
    )

# %% [markdown]
# Does it matter which way the text goes? That is another question. To answer it, change the one
# token, let the model go on, many times, and look at the *outcome*: here, does the answer end with
# "yes"? Bigelow et al. (2024) do this at every place of a text.
#
# **Predict:** two of these forks have about the same entropy, " it" and " wings". At which one
# does the outcome depend on the token?

# %%
N, STEPS = 20, 11
VERDICTS = {ids_of(f" {word}")[0, 0].item(): word for word in ("yes", "no")}
BREAK = ids_of("\n")[0, 0].item()
IT, WINGS = (ids_of(f" {word}")[0, 0].item() for word in ("it", "wings"))


def outcomes_after(prefix, tokens):
    """{token: [1.0 for each sample that says yes, 0.0 for each that says no]}"""
    forced = torch.tensor(tokens, device=model.device).repeat_interleave(N)[:, None]
    steps = []

    def pick(logits):
        steps.append(forced if not steps else pick_sample(logits))
        return steps[-1]

    ends = [BREAK, tokenizer.eos_token_id]
    out = sample_many(model, prefix, N * len(tokens), STEPS, pick, ends, pad)
    found = {token: [] for token in tokens}
    for token, *row in out[:, prefix.shape[1] :].tolist():
        said = [VERDICTS[i] for i in row if i in VERDICTS]
        if said:  # others ended without a verdict, or not within STEPS tokens
            found[token].append(float(said[-1] == "yes"))
    return found


# %% [markdown]
# Few samples make a share uncertain. As in lesson 08 the *bootstrap* says how much: draw as many of
# the samples with replacement, again and again, and look between which limits 95% of the shares
# lie.


# %%
def interval(values, generator, resamples=2000):
    """(share, low, high): a share and its 95% bootstrap interval."""
    values = torch.tensor(values or [math.nan])
    shape = (resamples, len(values))
    drawn = values[torch.randint(len(values), shape, generator=generator)].mean(-1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return values.mean().item(), low, high


# %%
chosen = [place for place in forks if ids[0, place] in (IT, WINGS)]
chosen = chosen if len(chosen) == 2 else forks[:2]  # with another model
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
branches = []  # (place, token, share of yes, low, high)
for place in chosen:
    with torch.no_grad():
        probs = model(ids[:, :place]).logits[0, -1].softmax(-1)
    found = outcomes_after(ids[:, :place], probs.topk(3).indices.tolist())
    for token, values in found.items():
        share, low, high = interval(values, generator)
        branches.append((place, token, share, low, high))
        print(
            f"{place}  p = {probs[token]:.2f}  {tokenizer.decode([token])!r:12}", end=""
        )
        print(f"yes {share:.2f} [{low:.2f}, {high:.2f}] of {len(values)}")

# %% [markdown]
# The same as a tree. Blue is the text as it was written; each fork has three ways to go, and the bar
# behind each is the share of answers that say yes, with its interval:

# %%
ROWS = (1, 0, 2, 4, 3, 5)  # where a branch stands: the one that was written in between


def draw(tree, bars, n, place, token, share, low, high):
    """Branch n: a line from its fork, its token, and the bar of its outcome."""
    x, y, middle = (3.4, 7.4)[n // 3], ROWS[n], ROWS[n - n % 3]
    colour = figures.BLUE if token == ids[0, place] else figures.GREY
    tree.plot([x, x + 0.8], [middle, y], color=colour, zorder=1)
    tree.text(x + 0.9, y, figures.token_label(tokenizer, token), va="center")
    bars.barh(y, share, color=colour, height=0.6)
    bars.plot([low, high], [y, y], color=figures.BLACK)
    if y == middle:
        tree.scatter(x, y, color=figures.RED, zorder=2)
        nats = f"{uncertain[place - start]:.1f} nats"
        tree.text(x - 0.2, y + 0.5, nats, color=figures.RED, ha="right")


# %%
shape = {"figsize": (8.5, 3.4), "sharey": True, "width_ratios": [3, 2]}
fig, (tree, bars) = plt.subplots(1, 2, **shape)
for n, branch in enumerate(branches):
    draw(tree, bars, n, *branch)
first, second = branches[0][0], branches[3][0]
before = "A chicken is" + tokenizer.decode(ids[0, start:first])
between = tokenizer.decode(ids[0, first + 1 : second])
tree.plot([0, 3.4], [1, 1], color=figures.BLUE, zorder=0)
tree.text(1.6, 0.7, before, ha="center", fontsize=9)
tree.plot([4.9, 5.4, 7.4], [1, 4, 4], color=figures.BLUE, zorder=0)
tree.text(6.3, 3.7, between, ha="center", fontsize=9)
tree.set(xlim=(-0.2, 10), ylim=(5.6, -0.6))
tree.axis("off")
bars.set(xlabel="share of answers that say yes", xlim=(0, 1))
bars.tick_params(left=False)
plt.show()

# %% [markdown]
# Two places of about the same entropy. (Of 20 samples those count that came to a verdict.) At the
# first, the three intervals lie on top of each other: we see no difference. At the second, one
# token turns most answers around, though the model takes it only one time in seven. Entropy
# says that the text can part here. What hangs on it, only the other ways can tell: they have to
# be walked.
#
# ## 3. Is it as sure as it should be?
#
# A model that gives its best token 0.8 should be right in 8 of 10 such cases: then it is
# *calibrated*. Collect many predictions, sort them into bins by their confidence, and compare the
# mean confidence of each bin with the share that was right.

# %% [markdown]
# ### Exercise 15.3 · `reliability`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 10 lines
#
# Cut the range from 0 to 1 into `bins` equal parts. Bin i takes the confidences from i/bins up to,
# but not including, (i+1)/bins; the last one takes 1 as well. Return for each bin the mean
# confidence, the share that is correct, and how many predictions it holds. An empty bin has no
# mean and no share: both are nan there, and its count is 0.
#
# By hand: confidences 0.25, 0.75, 0.5 and 1, of which the first two are wrong and the others right,
# in two bins. Bin 0 holds 0.25: (0.25, 0, 1). Bin 1 holds three: (0.75, ⅔, 3).
#
# <details><summary>Hint 1</summary>The number of the bin is the whole part of confidence ·
# bins, but a confidence of 1 would come into a bin that is not there.</details>
# <details><summary>Hint 2</summary><code>torch.bincount(place, minlength=bins)</code> counts, and
# with <code>weights=</code> it adds up. 0 / 0 is nan, as wanted.</details>


# %% tags=["exercise"]
def reliability(
    confidence: torch.Tensor, correct: torch.Tensor, bins: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean confidence, the accuracy and the number of predictions of each bin.

    confidence: (n,) of any float dtype, from 0 to 1; n may be 0. correct: (n,) bool.
    Returns three tensors (bins,): float32, float32, int64; nan, nan and 0 for an empty
    bin (without predictions each bin is). Raises ValueError for bins below 1, for a
    confidence outside of 0 to 1 (NaN included), and if there are not as many of the one
    as of the other.
    """
    ### BEGIN SOLUTION
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if len(confidence) != len(correct):
        raise ValueError(f"{len(confidence)} confidences, but {len(correct)} answers")
    if not ((confidence >= 0) & (confidence <= 1)).all():  # NaN is not, either
        raise ValueError("a confidence must be from 0 to 1")
    confidence = confidence.double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    total = torch.bincount(place, weights=confidence, minlength=bins)
    right = torch.bincount(place, weights=correct.double(), minlength=bins)
    return (total / count).float(), (right / count).float(), count
    ### END SOLUTION


# %% tags=["check"]
check(reliability)

# %% [markdown]
# The predictions: the first 64 tokens of eight texts that eight authors wrote before 1911, in one
# call. The likeliest token is the prediction, its probability the confidence.

# %%
human = torch.cat([ids_of(text)[:, :64] for text in human_texts()])
with torch.no_grad():
    human_logits = model(human).logits[:, :-1]  # (8, 63, vocab)
flat, targets = human_logits.flatten(0, 1), human[:, 1:].flatten()


def judged(logits, targets):
    """(confidence, correct) of the likeliest token of each row."""
    best = logits.softmax(-1).max(-1)
    return best.values, best.indices == targets


confidence, correct = judged(flat, targets)
print(f"confidence {confidence.mean():.3f}, right {correct.float().mean():.3f}")
for mean, share, count in zip(*reliability(confidence, correct, 5), strict=True):
    print(f"{count:4} predictions: confidence {mean:.2f}, right {share:.2f}")

# %% [markdown]
# One number for all bins: the *expected calibration error*.

# %% [markdown]
# ### Exercise 15.4 · `expected_calibration_error`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# The mean distance between confidence and accuracy, |accuracy - mean confidence|, over the bins of
# `reliability`, each bin weighted with the share of all predictions that it holds.
#
# By hand: the case above has the distances 0.25 in bin 0, with 1 prediction of 4, and |⅔ - 0.75| =
# 1/12 in bin 1, with 3 of 4. ECE = ¼ · 0.25 + ¾ · 1/12 = 0.125.
#
# <details><summary>Hint 1</summary>An empty bin has the weight 0, but 0 · nan is nan: leave it
# out.</details>
# <details><summary>Hint 2</summary>A mean over bins would give a bin of one prediction as much
# weight as one of a hundred.</details>


# %% tags=["exercise"]
def expected_calibration_error(
    confidence: torch.Tensor, correct: torch.Tensor, bins: int
) -> float:
    """The mean of |accuracy - mean confidence| over the bins, weighted by their counts.

    Arguments, bins and errors are those of `reliability`. Also raises ValueError where
    there are no predictions.
    """
    ### BEGIN SOLUTION
    mean, accuracy, count = reliability(confidence, correct, bins)
    if not count.any():
        raise ValueError("no predictions, no error")
    held = count > 0
    distance = (accuracy - mean).abs()[held]
    return ((count[held] * distance).sum() / count.sum()).item()
    ### END SOLUTION


# %% tags=["check"]
check(expected_calibration_error)

# %% [markdown]
# **Predict:** a model that is calibrated *perfectly* makes 504 predictions. What ECE will be
# measured? And with more bins?

# %%
generator = torch.Generator().manual_seed(0)
lucky = torch.rand(len(confidence), generator=generator) < confidence.cpu()
for bins in (1, 5, 10, 50):
    mine = expected_calibration_error(confidence, correct, bins)
    perfect = expected_calibration_error(confidence.cpu(), lucky, bins)
    print(f"{bins:3} bins: the model {mine:.3f}, a perfect one {perfect:.3f}")

# %% [markdown]
# Not 0. In `lucky` each prediction is right with exactly the probability that it claims, and still
# chance makes a distance in each bin, which the absolute value never pays back: the more bins, the
# more. (With one bin, errors of different signs would cancel; this model errs to one side.) An ECE
# without its bins and its number of predictions says little.
#
# Can it be mended? *Temperature scaling* (Guo et al., 2017) divides all logits by one number. It
# changes no ranking, only how sure the model sounds.

# %% [markdown]
# ### Exercise 15.5 · `fit_temperature`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 9 lines
#
# The temperature T at which the true tokens have the largest log-probability on average under
# softmax(logits / T). With z for the logits of a row, and p for softmax(z / T), the derivative of
# the mean log-probability is 0 exactly where, on average over the rows,
#
# Σ p · z = z of the true token.
#
# If the left side is larger, the model is too sure, and T must be raised. Look between 0.05 and 20;
# if the best T lies beyond, the nearer limit is the answer. Find it to within half a percent.
#
# By hand: four rows, each with two tokens and the logits (ln 9, 0): the model gives the first token
# 0.9. It is right in three rows of four. T = 2 turns ln 9 into ½ ln 9 = ln 3, and 3 : 1 is
# 0.75. So T = 2.
#
# <details><summary>Hint 1</summary>The left side falls as T grows: there is one crossing.
# Bisection: try the middle, and keep the half in which the crossing lies.</details>
# <details><summary>Hint 2</summary>The middle of the logarithms, <code>math.sqrt(low *
# high)</code>, is as precise for a T of 0.1 as for one of 10.</details>
# <details><summary>Hint 3</summary>From 0.05 to 20 is a factor of 400. Each step halves its
# logarithm: 12 steps leave 0.15%.</details>


# %% tags=["exercise"]
def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature at which the mean log-probability of the targets is largest.

    logits: (n, vocab) of any float dtype, finite. targets: (n,) int64. Returns T from
    0.05 to 20, to within half a percent; a limit where the best T lies beyond.
    """
    ### BEGIN SOLUTION
    logits = logits.float()
    true = logits.gather(-1, targets[:, None])[:, 0]
    low, high = 0.05, 20.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        probs = (logits / middle).softmax(-1)
        too_sure = ((probs * logits).sum(-1) - true).mean() > 0
        low, high = (middle, high) if too_sure else (low, middle)
    return math.sqrt(low * high)
    ### END SOLUTION


# %% tags=["check"]
check(fit_temperature)

# %% [markdown]
# Fitted on four authors, tried on the four others. As a third case, the probabilities from which a
# sampler with `temperature=0.5` draws: what if somebody takes *those* for the model's confidence?

# %%
half = len(flat) // 2
T = fit_temperature(flat[:half], targets[:half])
others, true = flat[half:], targets[half:]
cases = {"temperature 0.5": 0.5, "the model's own": 1.0, f"fitted, {T:.2f}": T}
for name, temperature in cases.items():
    scaled = others / temperature
    loss = torch.nn.functional.cross_entropy(scaled, true).item()
    ece = expected_calibration_error(*judged(scaled, true), 5)
    print(f"{name:16} mean surprisal {loss:.3f}   entropy ", end="")
    print(f"{entropy(scaled).mean():.3f}   ECE in 5 bins {ece:.3f}")

# %%
fig, ax = plt.subplots(figsize=(4.6, 4.2))
ax.plot([0, 1], [0, 1], color=figures.GREY, linestyle=":", label="calibrated")
for name, temperature in cases.items():
    mean, share, count = reliability(*judged(others / temperature, true), 5)
    ax.plot(mean.cpu(), share.cpu(), marker="o", label=name)
    if temperature == 1.0:
        for x, y, n in zip(mean.tolist(), share.tolist(), count.tolist(), strict=True):
            ax.annotate(n, (x, y), xytext=(5, -9), textcoords="offset points")
ax.set(xlabel="mean confidence", ylabel="share that is right")
ax.set(xlim=(0, 1), ylim=(-0.05, 1.02))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The model is a little too sure of these old books. With one number, fitted on other authors, the
# ECE falls to half: about as low as that of the perfect model above, so nothing more can be seen with
# so few predictions. The points say less. The green line is above the diagonal where the orange one
# is below it, and both are chance in part: a share of 47 predictions is known to within 0.14, one of
# 14 to within 0.25. The blue line is far off. What a sampler draws from at a low temperature is no
# confidence: where an API has both, ask whether its log-probabilities are those before the
# temperature or after.
#
# The fit has a second meaning. At the T that it finds, the mean entropy of the rows on which it was
# found equals their mean surprisal: the model is on average as surprised as it expects to be.

# %%
scaled = flat[:half] / T
loss = torch.nn.functional.cross_entropy(scaled, targets[:half]).item()
print(f"entropy {entropy(scaled).mean():.3f}, surprisal {loss:.3f}")

# %% [markdown]
# ## 4. In which layer does it know?
#
# Each layer adds something to a vector of 576 numbers, the *hidden state* of a place. The last one
# goes through a norm and then through the head, which makes logits of it. The *logit lens*
# (nostalgebraist, 2020) sends the state behind *every* layer through the same norm and head: what
# would the model say if it ended here?
#
# Three things go wrong with it: no norm, a norm too many, and the statistics of one layer for all.
# **Predict:** `transformers` returns one state for the embeddings and one behind each layer. Is
# the last one already normed?

# %% [markdown]
# ### Exercise 15.6 · `logit_lens`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 6 lines
#
# The logits that the norm and the head make of each state: row 0 of the embeddings, row n of the
# state behind layer n. Each state is normed with *its own* statistics, as the norm does when you
# call it. `final_norm(model)` from the first cell gives the norm, and
# `model.get_output_embeddings()` the head.
#
# The last row must be what the model itself says: `logit_lens(model, ids)[-1]` equals
# `model(ids).logits`. That catches a norm too many. The other rows need a test of their own: row n is
# what the model says when the layers behind layer n are taken out.
#
# By hand: a model of two layers, one row of 5 tokens, 97 tokens in the vocabulary. The result has
# the shape (3, 1, 5, 97). Its row 1 is what the model says if its second layer is taken out.
#
# <details><summary>Hint 1</summary><code>output_hidden_states=True</code> gives
# <code>hidden_states</code>, a tuple of layers + 1 tensors (batch, seq, d).</details>
# <details><summary>Hint 2</summary>Ask the model: which of
# <code>head(hidden_states[-1])</code> and <code>head(norm(hidden_states[-1]))</code> are its
# logits?</details>
# <details><summary>Hint 3</summary>With norm weights of 1, as in a new model, norming twice changes
# next to nothing. In a trained model it does.</details>


# %% tags=["exercise"]
def logit_lens(model, ids: torch.Tensor) -> torch.Tensor:
    """The logits that the final norm and the head make of the state behind each layer.

    ids: (batch, seq) int64, without padding. model: a Llama or a GPT-2 of transformers,
    in any float dtype. It is called once, without gradients, and left as it was.
    Returns (layers + 1, batch, seq, vocab) float32: row 0 for the embeddings; the last
    row is model(ids).logits.
    """
    ### BEGIN SOLUTION
    norm, head = final_norm(model), model.get_output_embeddings()
    with torch.no_grad():
        *inner, last = model(ids, output_hidden_states=True).hidden_states
        states = [norm(state) for state in inner] + [last]  # the last is normed already
        return torch.stack([head(state).float() for state in states])
    ### END SOLUTION


# %% tags=["check"]
check(logit_lens)

# %%
FRANCE = ids_of("The capital of France is")
depth = model.config.num_hidden_layers
lens = logit_lens(model, FRANCE)
with torch.no_grad():
    print("last row = logits:", torch.equal(lens[-1], model(FRANCE).logits))
    hidden = model(FRANCE, output_hidden_states=True).hidden_states
    head, norm = model.get_output_embeddings(), final_norm(model)
    scale = hidden[-2][0, -1].norm()  # as if kept from the last layer but one
    for layer in (depth // 6, depth // 2, depth - depth // 6, depth - 1):
        state = hidden[layer][0, -1]
        shared = head(norm.weight * state * len(state) ** 0.5 / scale)
        kinds = {"own": lens[layer, 0, -1], "shared": shared, "none": head(state)}
        print(f"layer {layer:2}", end="")
        for name, logits in kinds.items():
            word = tokenizer.decode(logits.argmax())
            print(f"   {name} norm: {entropy(logits):5.2f} nats {word!r:9}", end="")
        print()

# %% [markdown]
# The own norm is the lens. With a scale that was kept from a late layer (here layer 29's), early
# layers look as if they knew nothing: their states are small, and small logits are a nearly uniform
# distribution. A well-known library did that until 2026 (TransformerLens, issue 1076). Without a
# norm the tokens are nonsense, and the model seems certain of them. Both are artefacts, and a last
# row that equals the logits does not rule them out: the last state that `transformers` returns is
# normed already, so that row needs no norm of yours. The check compares the other rows with
# models that were cut short.
#
# The picture that the lens is known for: what each place would say behind each layer.

# %%
tokens = labels_of(FRANCE[0])
best = lens[:, 0].argmax(-1)  # (layers + 1, seq)
doubt = entropy(lens[:, 0]).cpu()
fig, ax = plt.subplots(figsize=(6.4, 7.5))
image = ax.imshow(doubt, aspect="auto", vmin=0, vmax=8)
for layer, row in enumerate(best.tolist()):
    for place, token in enumerate(row):
        colour = "black" if doubt[layer, place] > 4 else "white"
        text = figures.token_label(tokenizer, token)
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        ax.text(place, layer, text, **style)
ax.set_xticks(range(len(tokens)), tokens)
ax.set(ylabel="behind layer", title="the likeliest next token, by the logit lens")
fig.colorbar(image, label="entropy (nats)")
plt.show()

# %% [markdown]
# In row 0 nearly each place says the token itself: this model has one matrix for its embeddings and
# its head. Then come twenty layers of commas and spaces. " Paris" appears in the very last row.
# So does the model find the answer only there?
#
# That can be tried. Run the same prompt with Italy. Take *its* state of the last place, behind
# layer n, put it in the place of France's, and let the layers after it run. If the answer becomes
# Rome, then the state behind layer n had it, whatever the lens shows. This is called *patching*.
#
# **Predict:** from which layer on?


# %%
def layers_of(model):
    """The layers of a Llama or a GPT-2."""
    body = model.base_model
    return body.layers if hasattr(body, "layers") else body.h


def patched(ids, layer, state):
    """Next-token probabilities of ids, with another last state behind a layer."""

    def put(module, arguments, output):
        output = output.clone()
        output[:, -1] = state
        return output

    hook = layers_of(model)[layer - 1].register_forward_hook(put)
    try:
        with torch.no_grad():
            return model(ids).logits[0, -1].softmax(-1)
    finally:
        hook.remove()


# %%
ITALY = ids_of("The capital of Italy is")
rome = ids_of(" Rome")[0, 0]
lens = logit_lens(model, ITALY)[:, 0, -1]  # (layers + 1, vocab)
with torch.no_grad():
    states = model(ITALY, output_hidden_states=True).hidden_states
swapped = {}
for n in (1, 5, 10, 15, 20, 22, 23, 24, 25, 27, 29):
    if n < depth:
        swapped[n] = patched(FRANCE, n, states[n][0, -1])[rome].item()
for n in sorted({22, 23, 24, 27} & swapped.keys()):
    rank = (lens[n] > lens[n, rome]).sum() + 1
    print(f"behind layer {n}: patched, p(Rome) = {swapped[n]:.2f}", end="")
    print(f"; the lens ranks it {rank:,}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.8))
label = "after patching France with Italy"
ax.plot(swapped.keys(), swapped.values(), marker="o", label=label)
shown = lens.softmax(-1)[:, rome].cpu()
ax.plot(range(len(shown)), shown, marker="o", label="the lens, for Italy")
ax.set(xlabel="behind layer", ylabel="p(Rome)", ylim=(-0.02, 0.5))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# From one layer to the next. Layer 24 brings Italy to the last place, and from there on the answer is
# settled, nearly in full. The lens ranks " Rome" behind a thousand other tokens there, and shows
# it six layers later. It answers one question: what would *this* norm and *this* head make of a
# state? They were trained for the last one. What the lens does not show may be there all the
# same. (The *tuned lens* of Belrose et al., 2023, trains a small map for each layer, to see more.)
#
# ## 5. Where does it look?
#
# Layer 24 moved the country to the last place, and it is attention that moves things between
# places. So one could ask the attention weights. Here are those of all layers:


# %%
def attentions_of(ids):
    """A tensor (batch, heads, seq, seq) for each layer, as in lesson 02."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(ids, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)


attentions = attentions_of(FRANCE)
last = torch.stack(attentions)[:, 0, :, -1]  # (layers, heads, seq), of the last place
for token, share in zip(tokens, last.mean((0, 1)).tolist(), strict=True):
    print(f"{token:9} {share:.2f}")

# %% [markdown]
# On average over layers and heads the last place gives two thirds of its attention to "The", which
# says nothing.
# The first token is an *attention sink* (Xiao et al., 2024): where a head has nothing to look for, it
# looks there, since its weights must add up to 1.
#
# A mean over layers is naive for another reason: a later layer looks at states in which earlier
# layers have mixed others. *Attention rollout* (Abnar and Zuidema, 2020) follows the mixtures
# down to the tokens.

# %% [markdown]
# ### Exercise 15.7 · `attention_rollout`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 8 lines
#
# Take for each layer the mean A of its heads. The state of a place goes on beside the attention,
# so half is attention and half the place itself: M = ½ A + ½ I, with the identity I. Then
# multiply the layers: the first layer's M is the rollout behind layer 1, and each later layer
# multiplies *from the left*, R ← M · R. Row i of the result says how much of each token there is
# in place i.
#
# By hand: two tokens and one layer with one head, A = [[1, 0], [0.5, 0.5]]. M = [[1, 0], [0.25,
# 0.75]] is the result. With a second layer that is the same: [[1, 0], [0.4375, 0.5625]], since
# 0.25 + 0.75 · 0.25 = 0.4375.
#
# <details><summary>Hint 1</summary><code>attention.mean(1)</code> is the mean of the heads,
# <code>torch.eye(seq)</code> the identity.</details>
# <details><summary>Hint 2</summary><code>@</code> multiplies the matrices of all rows of a batch
# at once. Which of the two stands on the left?</details>


# %% tags=["exercise"]
def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much of each token there is in each place behind the last of these layers.

    attentions: (batch, heads, seq, seq) for each layer, the first layer first, in any
    float dtype; each row adds up to 1. Returns (batch, seq, seq) float32; [b, i, j] is
    the share of token j in place i. Raises ValueError if there is no layer.
    """
    ### BEGIN SOLUTION
    if len(attentions) == 0:
        raise ValueError("a rollout needs at least one layer")
    seq, device = attentions[0].shape[-1], attentions[0].device
    identity = torch.eye(seq, device=device)
    rollout = identity.repeat(len(attentions[0]), 1, 1)  # (batch, seq, seq)
    for attention in attentions:
        mixed = attention.float().mean(1) / 2 + identity / 2
        rollout = mixed @ rollout
    return rollout
    ### END SOLUTION


# %% tags=["check"]
check(attention_rollout)

# %% [markdown]
# And an independent question: what happens to the next token if a token is replaced by another?
# The Kullback–Leibler divergence from the old distribution to the new one, as a mean over five
# replacements:


# %%
def effects(ids, replacements=(" the", " a", ",", " blue", " seven")):
    """For each place: how far the next-token distribution moves, in nats."""
    others = [ids_of(word)[0, 0] for word in replacements]
    changed = ids.repeat(ids.shape[1] * len(others), 1)
    for n in range(len(changed)):
        place, other = divmod(n, len(others))
        changed[n, place] = others[other]
    with torch.no_grad():
        old = model(ids).logits[0, -1].log_softmax(-1)
        new = model(changed).logits[:, -1].log_softmax(-1)
    moved = (old.exp() * (old - new)).sum(-1)  # (places * replacements,)
    return moved.reshape(ids.shape[1], -1).mean(-1)


# %%
columns = {
    "mean attention of the last place": last.mean((0, 1)),
    "attention rollout": attention_rollout(attentions)[0, -1],
    "effect of another token, nats": effects(FRANCE),
}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.4))
for ax, (name, column) in zip(axes, columns.items(), strict=True):
    figures.token_bars(ax, tokens, column.tolist())
    ax.set_title(name, fontsize=10)
plt.show()

# %%
for n in (1, 2, 5, 10, 30):
    share = attention_rollout(attentions[:n])[0, -1, 0]
    print(f"rollout behind layer {n:2}: {share:.3f} of the last place is {tokens[0]!r}")

# %% [markdown]
# The rollout says that all of the last place comes from "The". Replacing tokens says that "France"
# matters most, and "The" least. The rollout of a causal model with many layers is bound to say so,
# whatever the text is: the first place looks at nothing but itself, so it stays all "The". Each other
# place takes some of it in each layer and gives nothing back, so with each layer more of the
# product ends in column 0.
#
# And single heads? Layer 24 brought the country to the last place. **Predict:** does one of its
# heads look at it?


# %%
def without_head(ids, layer, head):
    """Next-token probabilities when one head gives nothing to the last place."""
    size = model.config.hidden_size // model.config.num_attention_heads
    block = layers_of(model)[layer - 1]
    llama = hasattr(block, "self_attn")
    module = block.self_attn.o_proj if llama else block.attn.c_proj

    def silence(module, arguments):
        mixed = arguments[0].clone()
        mixed[:, -1, head * size : (head + 1) * size] = 0.0
        return (mixed,)

    hook = module.register_forward_pre_hook(silence)
    try:
        with torch.no_grad():
            return model(ids).logits[0, -1].softmax(-1)
    finally:
        hook.remove()


# %%
paris = ids_of(" Paris")[0, 0]
brings = min(24, depth)
with torch.no_grad():
    untouched = model(FRANCE).logits[0, -1].softmax(-1)[paris]
print(f"with all heads, p(Paris) = {untouched:.2f}")
for head in range(model.config.num_attention_heads):
    left = without_head(FRANCE, brings, head)[paris].item()
    weight = last[brings - 1, head, 3].item()
    print(
        f"layer {brings}, head {head}: {weight:.2f} of its attention to {tokens[3]}",
        end="",
    )
    print(f"; without the head, p(Paris) = {left:.2f}")

# %% [markdown]
# One does, with 0.90 of its attention, and without it most of " Paris" is gone. The others make hardly
# a difference, though some of them look at France, too. The weights gave the idea where to look;
# what showed that it is so was taking the head away.
#
# Attention weights are a good place to get an idea, and no evidence for it. A weight says how much
# of a state is read, not what is read, nor what becomes of it. The evidence is what changes when
# you change something. (Jain and Wallace, 2019, and Wiegreffe and Pinter, 2019, are the two sides
# of that debate.)
#
# ## 6. Who wrote it?
#
# The model ranks all tokens at each place. A program that cuts the tail off takes tokens from the top
# of this ranking more often than people do. GLTR (Gehrmann, Strobelt and Rush, 2019) colours each
# word of a text by its rank, to show who wrote it.

# %% [markdown]
# ### Exercise 15.8 · `token_ranks`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 5 lines
#
# For each token but the first: its rank among all tokens that could have come in its place. The
# likeliest has rank 1. The rank is one more than the number of tokens that are *more* probable, so
# equal ones share the better rank.
#
# By hand: the logits behind the first token are `[2, 5, 5, 9]`. If the second token is 3, its rank
# is 1; if it is 1 or 2, its rank is 2; if it is 0, its rank is 4.
#
# <details><summary>Hint 1</summary>As in <code>token_logprobs</code>: <code>gather</code> the
# logit of the token that came. Then count along the vocabulary.</details>
# <details><summary>Hint 2</summary>Compare logits, not probabilities: in float32 the softmax of two
# different logits may both be 0.</details>


# %% tags=["exercise"]
def token_ranks(model, ids: torch.Tensor) -> torch.Tensor:
    """The rank of each token among all that the model could have had in its place.

    ids: (batch, seq) int64, without padding. The model is called once, without
    gradients. Returns (batch, seq - 1) int64; entry t belongs to the token ids[:, t +
    1], and is 1 plus the number of tokens with a larger logit.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]  # (batch, seq - 1, vocab)
    came = logits.gather(-1, ids[:, 1:, None])  # (batch, seq - 1, 1)
    return (logits > came).sum(-1) + 1
    ### END SOLUTION


# %% tags=["check"]
check(token_ranks)

# %% [markdown]
# The model goes on with the first 12 tokens of five of the old texts, in two ways at once: with top-k
# 40, and without any filter. Then 24 tokens of each text are ranked, those of the authors as well,
# and three texts that everybody knows (the Declaration of Independence, Genesis, and Jane
# Austen).

# %%
HEAD, NEW, TEXTS = 12, 24, 5
KNOWN = (
    "We hold these truths to be self-evident, that all men are created equal, that "
    "they are endowed by their Creator with certain unalienable Rights, that among "
    "these are Life, Liberty and the pursuit of Happiness.",
    "In the beginning God created the heaven and the earth. And the earth was without "
    "form, and void; and darkness was upon the face of the deep. And the Spirit of God "
    "moved upon the face of the waters.",
    "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife.",
)


# %%
def half(ids, logits):
    """Top-k for the first rows only."""
    return torch.cat([top_k_filter(logits[:TEXTS], 40), logits[TEXTS:]])


begun = human[:TEXTS, :HEAD].repeat(2, 1)
options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": pad}
options |= {"do_sample": True, "top_k": 0, "logits_processor": [half]}
torch.manual_seed(0)
made = model.generate(begun, attention_mask=torch.ones_like(begun), **options)
kinds = {"people": human[:TEXTS, : HEAD + NEW]}
kinds |= {"top-k 40": made[:TEXTS], "no filter": made[TEXTS:]}

# %%
ranks = {}  # (kind, number) -> the ranks of one text
for name, texts in kinds.items():
    for n, row in enumerate(token_ranks(model, texts)[:, HEAD - 1 :]):
        ranks[name, n] = row
for n, text in enumerate(KNOWN):
    ranks["people, known", n] = token_ranks(model, ids_of(text))[0]

# %%
BUCKETS = {"1 to 10": 10, "11 to 100": 100, "101 to 1,000": 1000, "above": math.inf}
COLOURS = (figures.GREEN, figures.YELLOW, figures.RED, figures.PURPLE)
names = list(dict.fromkeys(name for name, _ in ranks))
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
for y, name in enumerate(names):
    mine = [row for (kind, _), row in ranks.items() if kind == name]
    together, begin, below = torch.cat(mine), 0.0, 0
    for (label, top), colour in zip(BUCKETS.items(), COLOURS, strict=True):
        inside = (together > below) & (together <= top)
        share = inside.float().mean().item()
        left.barh(y, share, left=begin, color=colour, label=label if y == 0 else None)
        begin, below = begin + share, top
    scores = [row.double().log().mean().item() for row in mine]
    right.plot(scores, [y] * len(scores), "o", color=figures.BLUE)
left.set_yticks(range(len(names)), names)
left.set(xlabel="share of tokens with this rank", xlim=(0, 1))
left.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.2))
right.axvline(1.4, color=figures.GREY, linestyle=":")
right.set_yticks(range(len(names)), [])
right.set(xlabel="mean logarithm of the rank, for each text")
for ax in (left, right):
    ax.invert_yaxis()
plt.show()

# %% [markdown]
# Each dot on the right is a text, and left of the dotted line a detector would say "machine". (We put
# the line where it parts the first two rows: this detector has seen its exam.) In our run it finds
# all texts that were made with top-k 40, whose ranks end at 40. Of those made without a filter it
# finds one in five: these are draws from the very distribution that it measures with. And it
# accuses all three of the known texts. They are likely not because a machine wrote them, but
# because the machine has read them.
#
# So the method tells *likely* from *unlikely*, for one model, and nothing else. With it, readers
# found 72% of the generated texts in a study of 2019, instead of 54% (Gehrmann et al.). Since
# then Liang et al. (2023) have shown whom such detectors accuse: of essays by people who write English
# as a foreign language, and so with more common words, more than half. What can be
# detected by design is the subject of lesson 16.
#
# ## Questions
#
# 1. A model gives each of 8 tokens the same probability at each place. What is its entropy, and what
#    is its calibration error if one token in 8 is right?
# 2. Dividing all logits by 3 changes which of these: the ranks, the entropy, greedy decoding, the
#    ECE?
# 3. The lens of a model agrees with its output from layer 20 of 30 on. May one leave out the last
#    ten layers?
# 4. The first token gets 70% of the attention. Is it important?
# 5. A detector flags 1% of the texts that people write. Of 1,000 essays 20 were written by a machine,
#    and it finds all of these. How many of the flagged ones were written by people?
#
# <details><summary>Answers</summary>
#
# 1. ln 8 = 2.08 nats at each place, and 0: it knows nothing, and says so. Calibrated is not the same
#    as good.
# 2. The entropy and the ECE. Ranks and greedy decoding stay.
# 3. If it agrees on the likeliest token, greedy decoding would give the same text. The
#    probabilities may still differ, and with them everything that is sampled.
# 4. Not by that. A sink is looked at because there is nothing to look for.
# 5. About 10 of 30: 1% of 980 are 9.8. "99% right on people" can mean that a third of the accused
#    are innocent.
#
# </details>
#
# ## In the wild
#
# | | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | log-probabilities of the answer | `logprobs`, `top_logprobs` (at most 20) | `output_logits`, `output_scores` | `logprobs` | `return_logprob`, `top_logprobs_num` | `n_probs` |
# | of the prompt | none | a call of the model | `prompt_logprobs` | `logprob_start_len` | |
# | before or after temperature and filters | | `output_logits`: before, `output_scores`: after | `logprobs_mode`: `raw_logprobs` or `processed_logprobs` | | `post_sampling_probs`: before if false |
# | hidden states | none | `output_hidden_states` | | `return_hidden_states` | |
# | attention weights | none | `output_attentions`, with `attn_implementation="eager"` | | | |
#
# An API that gives at most 20 alternatives gives no entropy, only a bound for it. And not all
# models end with norm and head: Gemma 2 caps its logits (`final_logit_softcapping`), Cohere's
# models scale them (`logit_scale`). There the lens needs that step, too, and its last row says
# so.
#
# ## To read
#
# - Wang et al.: *Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement
#   Learning for LLM Reasoning*, 2025, [arXiv:2506.01939](https://arxiv.org/abs/2506.01939).
# - Bigelow, Holtzman, Tanaka, Ullman: *Forking Paths in Neural Text Generation*, 2024,
#   [arXiv:2412.07961](https://arxiv.org/abs/2412.07961).
# - Guo, Pleiss, Sun, Weinberger: *On Calibration of Modern Neural Networks*, ICML 2017,
#   [arXiv:1706.04599](https://arxiv.org/abs/1706.04599). ECE and temperature scaling.
# - nostalgebraist: *interpreting GPT: the logit lens*, 2020,
#   [LessWrong](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).
# - Belrose et al.: *Eliciting Latent Predictions from Transformers with the Tuned Lens*, 2023,
#   [arXiv:2303.08112](https://arxiv.org/abs/2303.08112).
# - Abnar, Zuidema: *Quantifying Attention Flow in Transformers*, ACL 2020,
#   [arXiv:2005.00928](https://arxiv.org/abs/2005.00928). Rollout.
# - Xiao et al.: *Efficient Streaming Language Models with Attention Sinks*, ICLR 2024,
#   [arXiv:2309.17453](https://arxiv.org/abs/2309.17453).
# - Jain, Wallace: *Attention is not Explanation*, NAACL 2019,
#   [arXiv:1902.10186](https://arxiv.org/abs/1902.10186); Wiegreffe, Pinter: *Attention is not not
#   Explanation*, EMNLP 2019, [arXiv:1908.04626](https://arxiv.org/abs/1908.04626).
# - Gehrmann, Strobelt, Rush: *GLTR: Statistical Detection and Visualization of Generated Text*,
#   ACL 2019, [arXiv:1906.04043](https://arxiv.org/abs/1906.04043).
# - Liang et al.: *GPT detectors are biased against non-native English writers*, Patterns, 2023,
#   [arXiv:2304.02819](https://arxiv.org/abs/2304.02819).
