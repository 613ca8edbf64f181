# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Samplers
#
# **After this lesson you can write every common rule for cutting a distribution, say what
# each is for, and predict what changes when two of them change places.**
#
# You write: `top_p_filter`, `min_p_filter`, `typical_filter`, `eta_filter`,
# `top_n_sigma_filter`, `xtc_filter`, `Mirostat`, `chain` and `commute`. About 120 minutes.
# Builds on lessons 03 and 04: the loop and top-k come along in the first cell.

# %% tags=["setup"]
from collections.abc import Callable

import torch

from course import carry

decode = carry("decode")
next_token_logits = carry("next_token_logits")
pick_sample = carry("pick_sample")
top_k_filter = carry("top_k_filter")

# %%
import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()


def logits_after(prompt):
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    return next_token_logits(model, ids)  # (1, vocab)


peaked = logits_after("The capital of France is")
flat = logits_after("Once upon a time there was a")


def kept(logits):
    return int((logits > -torch.inf).sum())


# %% [markdown]
# ## 1. A mass instead of a number
#
# Lesson 04 cut at a fixed number: too many tokens after "The capital of France is", too few
# after "Once upon a time there was a". *Top-p*, or nucleus sampling, fixes the mass instead:
# keep the likeliest tokens until they hold a share of `top_p` together.
#
# **Predict.** Three tokens have the probabilities 0.5, 0.4 and 0.1. Which stay with
# `top_p=0.6`? Here is an implementation, and the test that came with it:

# %% tags=["nbval-check-output"]
probabilities = torch.tensor([0.5, 0.4, 0.1])
keep = probabilities.cumsum(-1) <= 0.6
print(keep.tolist())
assert keep.tolist() == [True, False, False]

# %% [markdown]
# The test passes, and both are wrong: the token that stays holds 0.5, which is less than
# 0.6. The token that *crosses* the line belongs to the nucleus. A published course had
# exactly this rule for three months, since its test asserted what the code returned. A
# test needs a source of its own: the paper says "the smallest set whose mass is at least
# p", so two tokens stay.

# %% [markdown]
# ### Exercise 06.1 · `top_p_filter`
#
# difficulty ★★★ · importance ★★★ · 15 min · our answer: 8 lines
#
# Keep the smallest set of the likeliest tokens whose mass is at least `top_p`, and set all
# other logits to -inf.
#
# By hand: with the probabilities 0.5, 0.4, 0.1, `top_p=0.6` keeps two tokens, 0.45 keeps
# one, 0.95 all three. `top_p=1` is off; 0 keeps the likeliest token. Four tokens of 0.25
# with `top_p=0.5`: two stay, whichever.
#
# Logits may be float16 or bfloat16. A sum of thousands of such numbers is far off, so this
# filter and the next ones compute in float32, and give back what they were given.
#
# <details><summary>Hint 1</summary>Sort the logits (<code>.float()</code>) from large to
# small, softmax, cumsum. A token stays if the mass <em>before</em> it is less than
# <code>top_p</code>.</details>
# <details><summary>Hint 2</summary>The mass before a token is the cumulative sum of the
# token before it: shift it by one place. (Cumulative sum minus own probability is the same
# but for rounding, which shows with 0.5, 0.4, 0.1 and <code>top_p=0.5</code>.) The first
# token always stays.</details>
# <details><summary>Hint 3</summary><code>sort</code> gives the places, too:
# <code>remove.scatter(-1, places, remove_sorted)</code> brings a mask back into the order
# of the vocabulary.</details>


# %% tags=["exercise"]
def top_p_filter(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens with a mass of at least top_p.

    logits: (batch, vocab) of any float dtype. top_p: 0 to 1; 1 is off.
    Returns a new tensor of that dtype; removed tokens are -inf, at least one stays.
    Raises ValueError for top_p below 0 or above 1. Holtzman et al., 2020.
    """
    ### BEGIN SOLUTION
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be from 0 to 1, got {top_p}")
    if top_p == 1:
        return logits.clone()
    ordered, places = logits.float().sort(dim=-1, descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    remove_ordered = torch.zeros_like(mass, dtype=torch.bool)
    remove_ordered[:, 1:] = mass[:, :-1] >= top_p  # of the likelier tokens
    remove = remove_ordered.scatter(-1, places, remove_ordered)
    return logits.masked_fill(remove, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(top_p_filter)

# %% [markdown]
# **Predict:** how many of the 49,152 tokens hold 90% of the mass, after each prompt?

# %% tags=["nbval-check-output"]
for name, logits in (("peaked", peaked), ("flat", flat)):
    print(name, kept(top_p_filter(logits, 0.9)), "tokens hold 0.9")

# %% [markdown]
# A handful against hundreds: the cut adapts. But a *mass* has a weakness of its own. A high
# temperature spreads mass over the tail, and the nucleus follows it there:

# %% tags=["nbval-check-output"]
for temperature in (0.5, 1.0, 2.0):
    print(temperature, kept(top_p_filter(flat / temperature, 0.9)), "tokens")

# %% [markdown]
# ## 2. A floor below the best
#
# *Min-p* asks of each token: how likely is it compared with the likeliest? Below a fraction
# `min_p` of that, it goes. A peaked distribution has a high floor, a flat one a low floor.

# %% [markdown]
# ### Exercise 06.2 · `min_p_filter`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 4 lines
#
# Remove (set to -inf) tokens whose probability is below `min_p` times the largest
# probability of their row.
#
# By hand: with 0.5, 0.4, 0.1 and `min_p=0.5` the floor is 0.25, and two tokens stay. 0 is
# off; 1 keeps the likeliest (and what ties with it).
#
# <details><summary>Hint 1</summary><code>amax(-1, keepdim=True)</code> is the largest of
# each row, shape <code>(batch, 1)</code>.</details>


# %% tags=["exercise"]
def min_p_filter(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Remove tokens with less than min_p times the probability of the likeliest.

    logits: (batch, vocab) of any float dtype. min_p: 0 to 1; 0 is off.
    Returns a new tensor of that dtype. What ties with the likeliest stays, too.
    Raises ValueError for min_p below 0 or above 1. Nguyen et al., 2025.
    """
    ### BEGIN SOLUTION
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be from 0 to 1, got {min_p}")
    probabilities = logits.float().softmax(-1)
    floor = min_p * probabilities.amax(-1, keepdim=True)  # (batch, 1)
    return logits.masked_fill(probabilities < floor, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(min_p_filter)

# %% tags=["nbval-check-output"]
for temperature in (0.5, 1.0, 2.0):
    print(temperature, kept(min_p_filter(flat / temperature, 0.05)), "tokens")

# %% [markdown]
# It grows, too, but at temperature 2 it keeps 426 tokens where top-p keeps 11,638. (That
# min-p gives *better texts* is disputed: Schaeffer et al., 2025, found no advantage over
# top-p when both are tuned alike.)
#
# ## 3. Not too likely either
#
# Both rules take for granted that likelier is better. *Typical* sampling does not. People
# seldom say the likeliest word; what they say carries about as much information as one would
# expect. The surprisal of a token is minus the logarithm of its probability, the *entropy* H
# is the mean surprisal: keep tokens whose surprisal is near H.
#
# **Predict.** Can the likeliest token be removed by such a rule?

# %% [markdown]
# ### Exercise 06.3 · `typical_filter`
#
# difficulty ★★★ · importance ★★☆ · 15 min · our answer: 10 lines
#
# Order the tokens by the distance of their surprisal from the entropy, the nearest first,
# and keep the smallest set of them whose mass is at least `typical_p`. All other logits
# become -inf, here and in the next exercises.
#
# By hand: the probabilities 0.6, 0.2, 0.2 have the entropy 0.95. The surprisals are 0.51,
# 1.61, 1.61, so the distances are 0.44, 0.66, 0.66. With `typical_p=0.5` the first token
# stays alone. Four tokens of 0.25 with 0.5: two stay, whichever.
#
# <details><summary>Hint 1</summary><code>surprisal = -logits.log_softmax(-1)</code>; the
# entropy is the sum of p times surprisal, <code>keepdim=True</code>.</details>
# <details><summary>Hint 2</summary>A removed token has p = 0 and surprisal inf; their
# product is nan. <code>nansum</code> leaves it out.</details>
# <details><summary>Hint 3</summary>From the order on it is top-p: cumulative mass before
# each token, at least one stays, scatter back. <code>gather</code> brings the probabilities
# into the new order.</details>


# %% tags=["exercise"]
def typical_filter(logits: torch.Tensor, typical_p: float) -> torch.Tensor:
    """Keep the most typical tokens, with a mass of at least typical_p.

    logits: (batch, vocab) of any float dtype. typical_p: above 0, up to 1; 1 is off.
    Returns a new tensor of that dtype; at least one token stays, not necessarily the
    likeliest.
    Raises ValueError for other typical_p. Meister et al., 2023.
    """
    ### BEGIN SOLUTION
    if not 0 < typical_p <= 1:
        raise ValueError(f"typical_p must be above 0 and at most 1, got {typical_p}")
    if typical_p == 1:
        return logits.clone()
    surprisal = -logits.float().log_softmax(-1)  # (batch, vocab)
    probabilities = (-surprisal).exp()
    entropy = (probabilities * surprisal).nansum(-1, keepdim=True)  # (batch, 1)
    places = (surprisal - entropy).abs().argsort(dim=-1)
    mass = probabilities.gather(-1, places).cumsum(-1)
    remove_ordered = torch.zeros_like(mass, dtype=torch.bool)
    remove_ordered[:, 1:] = mass[:, :-1] >= typical_p  # of the more typical ones
    remove = remove_ordered.scatter(-1, places, remove_ordered)
    return logits.masked_fill(remove, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(typical_filter)

# %% tags=["nbval-check-output"]
for name, logits in (("peaked", peaked), ("flat", flat)):
    out = typical_filter(logits, 0.2)
    best = logits.argmax().item()
    stays = bool(out[0, best] > -torch.inf)
    word = tokenizer.decode(best)
    print(f"{name}: {kept(out)} tokens; the likeliest, {word!r}, stays: {stays}")

# %% [markdown]
# In the flat context the likeliest token goes: it says too little. Neither top-k, top-p nor
# min-p would do that.
#
# ## 4. A floor that knows the entropy
#
# *Eta* sampling begins with an absolute floor: remove what is less likely than epsilon. In a
# flat distribution all tokens are unlikely, so there the floor is lowered. exp(-H) is the
# probability that each token of an even distribution with the same entropy has, and the
# floor is the smaller of epsilon and sqrt(epsilon) · exp(-H).

# %% [markdown]
# ### Exercise 06.4 · `eta_filter`
#
# difficulty ★★☆ · importance ★☆☆ · 10 min · our answer: 8 lines
#
# Remove tokens with a probability below eta = min(ε, √ε · exp(-H)), but never the likeliest.
# H is the entropy of the row in nats: with the natural logarithm.
#
# By hand: four tokens with 0.25 each have H = ln 4, so exp(-H) is 0.25. With ε = 0.64 the
# floor is min(0.64, 0.8 · 0.25) = 0.2, and all stay. With an absolute floor of 0.64 none
# would.
#
# <details><summary>Hint 1</summary>The entropy is that of the last exercise.
# <code>clamp(max=epsilon)</code> is the smaller of two.</details>
# <details><summary>Hint 2</summary>exp(-H) is never more than the largest probability, and
# √ε is less than 1: on paper the likeliest always stays. In floats it needs code, since with
# ε near 1 and an even row both sides round. Remove only where
# <code>logits &lt; logits.amax(-1, keepdim=True)</code>.</details>


# %% tags=["exercise"]
def eta_filter(logits: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Remove tokens below eta = min(epsilon, sqrt(epsilon) * exp(-entropy)).

    logits: (batch, vocab) of any float dtype. epsilon: 0 (off) or more, below 1.
    Returns a new tensor of that dtype; the likeliest stays, and what ties with it.
    Raises ValueError for other epsilon. Hewitt et al., 2022.
    """
    ### BEGIN SOLUTION
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon must be 0 or more and below 1, got {epsilon}")
    logprobs = logits.float().log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)  # (batch, 1)
    eta = (epsilon**0.5 * torch.exp(-entropy)).clamp(max=epsilon)
    remove = (probabilities < eta) & (logits < logits.amax(-1, keepdim=True))
    return logits.masked_fill(remove, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(eta_filter)

# %% tags=["nbval-check-output"]
for name, logits in (("peaked", peaked), ("flat", flat)):
    absolute = kept(logits.masked_fill(logits.softmax(-1) < 0.01, -torch.inf))
    lowered = kept(eta_filter(logits, 0.01))
    print(f"{name:6} floor 0.01: {absolute:3}   eta 0.01: {lowered:3}")

# %% [markdown]
# After "The capital of France is" the two are the same. After "Once upon a time there was a"
# the floor of 0.01 leaves 13 tokens; eta's is lower there, and leaves 184.
#
# ## 5. Before the softmax
#
# All rules so far look at probabilities, and temperature changes those. *Top-n-sigma* looks
# at the logits: keep those within `n` standard deviations of the largest.
#
# **Predict:** what happens to the number of tokens kept when all logits are divided by 2?

# %% [markdown]
# ### Exercise 06.5 · `top_n_sigma_filter`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 8 lines
#
# Remove logits below max - n · σ. The standard deviation σ of a row is taken over the tokens
# that are still there (a logit of -inf was removed before), and divides by their number, not
# by one less.
#
# By hand: the logits 0, 2, 4 have σ = √(8/3) = 1.63. With n = 1 the line is at 2.37, and 4
# stays alone; with n = 2 it is at 0.73, and two stay.
#
# <details><summary>Hint 1</summary>Where nothing has been removed it is
# <code>logits.std(-1, correction=0, keepdim=True)</code>.</details>
# <details><summary>Hint 2</summary>With -inf in a row, take mean and squares of the finite
# logits by hand: <code>torch.where(finite, x, 0).sum(-1, keepdim=True) / count</code> with
# <code>x = logits.float()</code>. A sum of 49,152 squares does not fit float16, whose largest
# number is 65,504. Square <code>x - mean</code>, not <code>x</code>: of large logits the
# mean square minus the squared mean has no digits left.</details>


# %% tags=["exercise"]
def top_n_sigma_filter(logits: torch.Tensor, n: float) -> torch.Tensor:
    """Keep logits within n standard deviations of the largest.

    logits: (batch, vocab) of any float dtype; -inf does not count. n: 0 or more.
    Returns a new tensor of that dtype; the largest logit stays, and what ties with it.
    Raises ValueError for a negative n. Tang et al., 2025.
    """
    ### BEGIN SOLUTION
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    x, there = logits.float(), logits > float("-inf")
    count = there.sum(-1, keepdim=True)
    mean = torch.where(there, x, 0).sum(-1, keepdim=True) / count
    squares = torch.where(there, (x - mean) ** 2, 0)
    sigma = (squares.sum(-1, keepdim=True) / count).sqrt()  # (batch, 1)
    line = x.amax(-1, keepdim=True) - n * sigma
    return logits.masked_fill(x < line, float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(top_n_sigma_filter)

# %% [markdown]
# Division by the temperature shrinks the distance and σ alike, so the same tokens stay at
# every temperature. Here are all the rules at once:

# %%
rules = {
    "top-k 50": lambda x: top_k_filter(x, 50),
    "top-p 0.9": lambda x: top_p_filter(x, 0.9),
    "min-p 0.05": lambda x: min_p_filter(x, 0.05),
    "typical 0.9": lambda x: typical_filter(x, 0.9),
    "eta 0.001": lambda x: eta_filter(x, 0.001),
    "top-nσ 1": lambda x: top_n_sigma_filter(x, 1.0),
}
temperatures = [0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0]
fig, ax = plt.subplots(figsize=(6.5, 3.4))
for name, rule in rules.items():
    ax.plot(
        temperatures, [kept(rule(flat / t)) for t in temperatures], "o-", label=name
    )
ax.set(xlabel="temperature", ylabel="tokens kept", yscale="log")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Two lines are flat: top-k by its definition, top-nσ by its arithmetic. All others rise: eta,
# typical and top-p into the tens of thousands, min-p far more slowly.
#
# ## 6. The other end
#
# *XTC*, "exclude top choices", is meant for fiction: now and then it removes the likeliest
# tokens, all but the last of those that are likely enough to be sensible. It comes from a
# pull request, not from a paper.

# %% [markdown]
# ### Exercise 06.6 · `xtc_filter`
#
# difficulty ★★☆ · importance ★☆☆ · 10 min · our answer: 10 lines
#
# In each row, with the chance `probability`: of the tokens with a probability of `threshold`
# or more, remove all but the least likely one (what ties with it may stay). A row with fewer
# than two such tokens stays as it is. Draw one number for each row: `torch.rand(batch, 1,
# generator=generator)` in float32, and act where it is less than `probability`. A row that
# stays as it is has its number, too.
#
# By hand: 0.5, 0.3, 0.15, 0.05 with `threshold=0.1` and `probability=1`: three tokens are
# likely enough, the first two go, 0.15 and 0.05 stay.
#
# <details><summary>Hint 1</summary>The least likely of the likely: replace the probabilities
# of all others by inf, and take the row's minimum.</details>
# <details><summary>Hint 2</summary>Then remove what is above that minimum, in the rows that
# the draw chose. Where no token is likely enough, the minimum is inf, and nothing is above
# it.</details>


# %% tags=["exercise"]
def xtc_filter(
    logits: torch.Tensor,
    threshold: float,
    probability: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """With a chance of `probability` a row, exclude its top choices.

    logits: (batch, vocab) of any float dtype. threshold: above 0, up to 1.
    probability: 0 to 1. generator: for the draws (one a row); torch's own if None.
    Returns a new tensor of the logits' dtype.
    Raises ValueError for other threshold or probability.
    """
    ### BEGIN SOLUTION
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1, got {probability}")
    draws = torch.rand(logits.shape[0], 1, generator=generator)
    chosen = (draws < probability).to(logits.device)  # (batch, 1)
    probabilities = logits.float().softmax(-1)
    likely = probabilities.masked_fill(probabilities < threshold, float("inf"))
    last = likely.amin(-1, keepdim=True)  # (batch, 1)
    return logits.masked_fill(chosen & (probabilities > last), float("-inf"))
    ### END SOLUTION


# %% tags=["check"]
check(xtc_filter)

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
for _ in range(4):
    best = xtc_filter(flat, 0.02, 0.5, generator)[0].softmax(-1).topk(3)
    row = zip(best.indices, best.values, strict=True)
    print("  ".join(f"{figures.token_label(tokenizer, i)} {p:.2f}" for i, p in row))

# %% [markdown]
# Three of the four draws removed the top choices; in the second line they are still there.
# What is left shares the mass, so its probabilities grow. (␣ is a space.)
#
# ## 7. Steering
#
# A last idea: do not fix the cut, fix the *result*. *Mirostat* measures how surprising each
# drawn token was, and moves the cut so that the mean drifts to a target, in bits a token.

# %% [markdown]
# ### Exercise 06.7 · `Mirostat`
#
# difficulty ★★★ · importance ★☆☆ · 20 min · our answer: 15 lines
#
# A cut `mu` for each row, at first twice the target. One pick:
#
# 1. the surprisal of each token, in bits: -log2 p;
# 2. remove tokens whose surprisal is above `mu` (never the likeliest, nor what ties with it);
# 3. draw from the softmax of what is left, with `torch.multinomial` or in any other way;
# 4. *observed* is the surprisal in bits of the drawn token among what was left;
# 5. `mu` becomes `mu - rate * (observed - target)`.
#
# By hand: 0.5, 0.25, 0.25 with `target=0.5`: `mu` is 1 bit, so only the first token (1 bit)
# stays. It is drawn with probability 1, observed is 0, and with `rate=0.1` the new `mu` is
# 1 - 0.1 · (0 - 0.5) = 1.05.
#
# <details><summary>Hint 1</summary>Keep <code>self.mu</code> as a tensor
# <code>(batch, 1)</code>, made at the first pick, when you know the batch.</details>
# <details><summary>Hint 2</summary><code>probabilities.gather(-1, token)</code> is the
# probability of the drawn token of each row.</details>


# %% tags=["exercise"]
class Mirostat:
    """Sampling that aims at a mean surprisal: Basu et al., 2021, second version.

    target: bits a token. rate: how fast the cut follows. One object serves one batch
    from its first token to its last.
    """

    def __init__(self, target: float, rate: float = 0.1):
        self.target, self.rate = target, rate
        self.mu = None  # (batch, 1), bits

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: (batch, vocab) of any float dtype, the cut is float32 all the same.
        Returns (batch, 1) int64, and moves the cut."""
        ### BEGIN SOLUTION
        logits = logits.float()
        surprisal = -logits.log_softmax(-1) / torch.tensor(2.0).log()  # bits
        if self.mu is None:
            self.mu = torch.full_like(surprisal[:, :1], 2 * self.target)
        best = logits.amax(-1, keepdim=True)
        remove = (surprisal > self.mu) & (logits < best)
        probabilities = logits.masked_fill(remove, float("-inf")).softmax(-1)
        token = torch.multinomial(probabilities, num_samples=1)  # (batch, 1)
        observed = -probabilities.gather(-1, token).log2()
        self.mu = self.mu - self.rate * (observed - self.target)
        return token
        ### END SOLUTION


# %% tags=["check"]
check(Mirostat)

# %% tags=["nbval-check-output"]
story = tokenizer("Once upon a time there was a", return_tensors="pt").input_ids
story = story.to(model.device)
for target in (1.0, 4.0):
    torch.manual_seed(0)
    sampler = Mirostat(target)
    out = decode(model, story, 20, sampler.pick)
    print(target, "bits:", repr(tokenizer.decode(out[0, story.shape[1] :])))
    print(f"  the cut went from {2 * target:.1f} to {sampler.mu.item():.1f} bits")

# %% [markdown]
# The cut is still moving after 20 tokens. The mean comes to the target in the long run, not
# in a short text; a larger rate is quicker, and shakier.
#
# ## 8. In which order?
#
# Engines let you switch on several of these at once. Then somebody has to decide what comes
# first.

# %% [markdown]
# ### Exercise 06.8 · `chain`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 5 lines
#
# One filter out of several: apply them in the order given, each to the result of the one
# before.
#
# By hand: `chain(a, b)(logits)` is `b(a(logits))`; `chain()(logits)` equals `logits`.
#
# <details><summary>Hint 1</summary>Return a function that you define inside.</details>


# %% tags=["exercise"]
def chain(
    *filters: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that applies the filters one after the other, the first one first."""

    ### BEGIN SOLUTION
    def apply(logits):
        for one in filters:
            logits = one(logits)
        return logits

    return apply
    ### END SOLUTION


# %% tags=["check"]
check(chain)

# %% [markdown]
# `generate` applies temperature, top-k, top-p, min-p, typical and eta (among others) in this
# order. With your functions in the same order and the same seed, the tokens must be the
# same:

# %%
all_six = {"temperature": 1.5, "top_k": 200, "top_p": 0.9}
all_six |= {"min_p": 0.02, "typical_p": 0.8, "eta_cutoff": 0.02}
in_order = [
    lambda x: x / 1.5,
    lambda x: top_k_filter(x, 200),
    lambda x: top_p_filter(x, 0.9),
    lambda x: min_p_filter(x, 0.02),
    lambda x: typical_filter(x, 0.8),
    lambda x: eta_filter(x, 0.02),
]

# %% tags=["nbval-check-output"]
cases = {
    "top_p=0.9": ({"top_p": 0.9}, [lambda x: top_p_filter(x, 0.9)]),
    "min_p=0.1": ({"min_p": 0.1}, [lambda x: min_p_filter(x, 0.1)]),
    "typical_p=0.3": ({"typical_p": 0.3}, [lambda x: typical_filter(x, 0.3)]),
    "eta_cutoff=0.01": ({"eta_cutoff": 0.01}, [lambda x: eta_filter(x, 0.01)]),
    "all six": (all_six, in_order),
}
for name, (options, filters) in cases.items():
    cut = chain(*filters)
    torch.manual_seed(0)
    mine = decode(model, story, 8, lambda x, cut=cut: pick_sample(cut(x)))
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": 8, "top_k": 0, **options}
    theirs = model.generate(story, **options)
    print(f"{name:15} same tokens as generate: {torch.equal(mine, theirs)}")

# %% [markdown]
# llama.cpp has another order
# ([its default chain](https://github.com/ggml-org/llama.cpp/blob/master/common/common.h)):
#
# | | `transformers` | llama.cpp |
# |---|---|---|
# | 1 | penalties (lesson 08) | penalties, DRY (lesson 08) |
# | 2 | **temperature** | top-nσ |
# | 3 | top-k | top-k |
# | 4 | top-p | typical |
# | 5 | min-p | top-p |
# | 6 | typical | min-p |
# | 7 | eta | XTC |
# | 8 | | **temperature** |
#
# **Predict** for top-k, top-p, min-p and top-nσ: does it matter which comes first, the filter
# or the temperature?

# %% [markdown]
# ### Exercise 06.9 · `commute`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 3 lines
#
# Do two filters give the same result in both orders, for these logits? (Up to rounding:
# `torch.allclose`.)
#
# By hand: `x / 2` and `x + 0` commute. `x / 2` and `x.clamp(max=3)` do not for `[[4.]]`:
# 2 in one order, 1.5 in the other.
#
# <details><summary>Hint 1</summary>You have just written <code>chain</code>.</details>


# %% tags=["exercise"]
def commute(
    first: Callable[[torch.Tensor], torch.Tensor],
    second: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
) -> bool:
    """True if both orders of two filters give the same logits, up to rounding."""
    ### BEGIN SOLUTION
    one, other = chain(first, second)(logits), chain(second, first)(logits)
    return torch.allclose(one, other)
    ### END SOLUTION


# %% tags=["check"]
check(commute)


# %% tags=["nbval-check-output"]
def hot(x):
    return x / 2


for name, rule in rules.items():
    both = commute(hot, rule, flat)
    first, last = kept(chain(hot, rule)(flat)), kept(chain(rule, hot)(flat))
    print(f"{name:12} commutes: {both!s:5}  temperature first {first}, last {last}")

# %% [markdown]
# Two filters need not commute, either. **Predict:** top-k 50 and top-p 0.9, which order keeps
# fewer tokens?

# %% tags=["nbval-check-output"]
for first, second in (("top-k 50", "top-p 0.9"), ("top-p 0.9", "top-k 50")):
    both = chain(rules[first], rules[second])
    print(
        f"{first}, then {second}: peaked {kept(both(peaked))}, flat {kept(both(flat))}"
    )

# %% [markdown]
# After top-k the 50 tokens are all there is: their probabilities grow, and fewer of them hold
# 0.9.
#
# Where they do not commute, "top-p 0.9 at temperature 2" means two things. Why top-nσ
# commutes and min-p does not: temperature 2 halves all distances between logits. Top-nσ's
# limit is in σ, which halves, too; min-p's is a fixed distance from the best, ln(min_p). What
# the order does to a text:

# %%
for name, rule in {
    "temperature first": chain(hot, rules["top-p 0.9"]),
    "temperature last": chain(rules["top-p 0.9"], hot),
}.items():
    torch.manual_seed(0)
    out = decode(model, story, 16, lambda x, rule=rule: pick_sample(rule(x)))
    print(f"{name}: {tokenizer.decode(out[0, story.shape[1] :])!r}")

# %% [markdown]
# With the temperature last, the cut is made on the model's own distribution, and a high
# temperature does much less harm: that is llama.cpp's choice. With the temperature first, as
# in `transformers`, the cut sees the heated distribution and keeps 20 times as many tokens.
#
# ## Questions
#
# 1. `top_p=0.9` and `min_p=0.05` together. Does their order matter?
# 2. Min-p compares probabilities. Show that it can be written with logits alone.
# 3. A program says "temperature 1.5, top-p 0.95" and gives sense in one engine, nonsense in
#    another. What do you look up first?
#
# <details><summary>Answers</summary>
#
# 1. Yes: min-p first takes mass away, so what is left grows, and top-p may keep fewer. Top-p
#    first changes nothing for min-p, which compares tokens with the best one alone.
# 2. p < min_p · p_max means logit < logit_max + ln(min_p): a fixed distance below the best.
# 3. The order: whether the temperature comes before or after the cut.
#
# </details>
#
# ## In the wild
#
# | rule | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | top-p | `top_p` | `top_p` | `top_p` | `top_p` | `--top-p` (0.95) |
# | min-p | none | `min_p` | `min_p` | `min_p` | `--min-p` (0.05) |
# | typical | none | `typical_p` | none | none | `--typical` |
# | eta | none | `eta_cutoff` | none | none | none |
# | top-nσ | none | none | none | none | `--top-nsigma` |
# | XTC | none | none | none | none | `--xtc-probability`, `--xtc-threshold` |
# | Mirostat | none | none | none | none | `--mirostat` |
# | temperature | not published | first | first | first | last |
#
# The same name is not always the same rule. In llama.cpp top-nσ with `n = 0` is off; by the
# definition above it keeps the largest logit alone. And of tokens that are exactly equal, as
# many as are needed stay here. In `transformers` typical sampling keeps all that tie with the
# last one, and top-p keeps other ones of them:

# %% tags=["nbval-check-output"]
from transformers import TopPLogitsWarper, TypicalLogitsWarper

four = torch.zeros(1, 4)
theirs = {
    "top-p 0.5": (top_p_filter, TopPLogitsWarper),
    "typical 0.5": (typical_filter, TypicalLogitsWarper),
}
for name, (mine, processor) in theirs.items():
    there = processor(0.5)(None, four)
    print(f"{name:11}: ours keeps {kept(mine(four, 0.5))} of 4, theirs {kept(there)}")
    print(
        f"{'':13}theirs are tokens {(there[0] > -torch.inf).nonzero()[:, 0].tolist()}"
    )

# %%
for dtype in (torch.float32, torch.bfloat16):
    print(dtype, flat.to(dtype).unique().numel(), "different logits of 49,152 tokens")

# %% [markdown]
# In bfloat16 such ties are the rule: twenty tokens share a logit, on average.
#
# ## To read
#
# - Holtzman et al.: *The Curious Case of Neural Text Degeneration*, ICLR 2020,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751). Top-p.
# - Nguyen et al.: *Turning Up the Heat: Min-p Sampling*, ICLR 2025,
#   [arXiv:2407.01082](https://arxiv.org/abs/2407.01082), and its critique, Schaeffer et al.,
#   [arXiv:2506.13681](https://arxiv.org/abs/2506.13681).
# - Meister et al.: *Locally Typical Sampling*, TACL 2023,
#   [arXiv:2202.00666](https://arxiv.org/abs/2202.00666).
# - Hewitt, Manning, Liang: *Truncation Sampling as Language Model Desmoothing*, 2022,
#   [arXiv:2210.15191](https://arxiv.org/abs/2210.15191). Eta.
# - Tang et al.: *Top-nσ*, ACL 2025,
#   [arXiv:2411.07641](https://arxiv.org/abs/2411.07641).
# - Basu et al.: *Mirostat*, ICLR 2021,
#   [arXiv:2007.14966](https://arxiv.org/abs/2007.14966).
