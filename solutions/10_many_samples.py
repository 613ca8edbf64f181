# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Many samples, one answer
#
# **After this lesson you can draw many answers for the price of one prefill, choose one of
# them in five ways, and say when none of the five helps.**
#
# You write: `sample_many`, `pass_at_k`, `vote`, `early_stop_vote`, `sequence_logprob`,
# `self_certainty`, `best_of_n`, `mbr` and `power_sample`. About 150 minutes. Builds on
# lessons 03, 05 and 07: their functions come along in the first cell.

# %% tags=["setup"]
import math
from collections import Counter
from collections.abc import Callable, Iterator

import torch

from course import carry

cached_step = carry("cached_step")
is_finished = carry("is_finished")
pick_sample = carry("pick_sample")
position_ids = carry("position_ids")

# %%
import itertools
import time

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()
pad = tokenizer.pad_token_id
torch.manual_seed(0)

# %% [markdown]
# ## 1. Many answers to one question
#
# One answer is one draw. Two draws may disagree, and then there is something to choose from.
# A prompt that shows the form makes answers short and easy to compare:

# %%
SUM = "Q: What is 2 + 3?\nA: 5\nQ: What is 11 + 4?\nA: 15\nQ: What is {}?\nA:"
# An answer ends with its line: any token with a line end in it counts as an EOS.
words = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
ends = [i for i, word in enumerate(words) if "\n" in word]
ends.append(tokenizer.eos_token_id)


def ids_of(text):
    return tokenizer(text, return_tensors="pt").input_ids.to(model.device)


def line_of(new_ids):
    """The first line of an answer, without spaces around it."""
    text = tokenizer.decode(new_ids, skip_special_tokens=True)
    return text.split("\n")[0].strip()


ids = ids_of(SUM.format("23 + 6"))
out = model.generate(
    ids,
    do_sample=True,
    top_k=0,
    num_return_sequences=8,
    max_new_tokens=4,
    eos_token_id=ends,
    pad_token_id=pad,
)
print([line_of(row) for row in out[:, ids.shape[1] :]])

# %% [markdown]
# Some are right. `num_return_sequences` is the `n` of the API, and `generate` does it in the
# simplest way: it copies the prompt eight times and runs all eight copies.
#
# **Predict:** the prompt has 47 tokens, an answer about 3. Of the work for 8 answers, how
# much is prompt, and how much of that is needed?

# %% [markdown]
# ### Exercise 10.1 · `sample_many`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 18 lines
#
# Continue one prompt `n` times. Run the prompt once, as one row; then make `n` rows of its
# cache and of its logits, and go on with `n` tokens a step. Each step draws for all `n` rows
# in one call of `pick`, also for those that have finished, so that the same seed gives the
# same ids as `generate` with `num_return_sequences=n`.
#
# By hand: a prompt of 100 tokens, `n=8`, 5 new tokens each. The model is called 5 times: with
# 1 row of 100 tokens, then four times with 8 rows of 1 token. (The last token is not fed.) The
# result has the shape (8, 105).
#
# <details><summary>Hint 1</summary>Lesson 07's <code>cached_step(model, fed, cache)</code>
# does a prefill and a step. It is <code>decode_cached</code> without masks: a single prompt
# has no padding.</details>
# <details><summary>Hint 2</summary><code>cache.batch_repeat_interleave(n)</code> makes n rows
# of one, in place; <code>logits.repeat(n, 1)</code> does the same for logits. Both come before
# the first <code>pick</code>: n rows draw n different first tokens.</details>
# <details><summary>Hint 3</summary>As in lesson 05: a row that has finished gets
# <code>pad_id</code>, and the loop ends when all rows have.</details>


# %% tags=["exercise"]
def sample_many(
    model,
    ids: torch.Tensor,
    n: int,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
    eos_ids: list[int],
    pad_id: int,
) -> torch.Tensor:
    """Continue one prompt n times, with one prefill.

    ids: (1, seq) int64, without padding. pick: (n, vocab) float32 -> (n, 1), called once
    a step. The model is called without gradients, once for each new token: with the
    prompt as one row, then with (n, 1). Returns (n, seq + new) int64, where new is at
    most max_new_tokens: a row that has finished gets pad_id, and when all have, the loop
    ends. An EOS in the prompt ends nothing. Raises ValueError for n below 1.
    """
    ### BEGIN SOLUTION
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    out, fed, cache = ids.repeat(n, 1), ids, None
    finished = torch.zeros(n, dtype=torch.bool, device=ids.device)
    for step in range(max_new_tokens):
        logits, cache = cached_step(model, fed, cache)
        if step == 0:  # one row was computed; from here on there are n
            cache.batch_repeat_interleave(n)
            logits = logits.repeat(n, 1)
        token = pick(logits)  # (n, 1)
        fed = torch.where(finished[:, None], pad_id, token)
        out = torch.cat([out, fed], dim=-1)
        finished = finished | is_finished(fed, eos_ids)
        if finished.all():
            break
    return out
    ### END SOLUTION


# %% tags=["check"]
check(sample_many)

# %% [markdown]
# The proof, on the real model, and the price:

# %%
n, took = 16, {}
torch.manual_seed(1)
start = time.perf_counter()
mine = sample_many(model, ids, n, 4, pick_sample, ends, pad)
took["sample_many"] = time.perf_counter() - start
torch.manual_seed(1)
start = time.perf_counter()
theirs = model.generate(
    ids,
    do_sample=True,
    top_k=0,
    num_return_sequences=n,
    max_new_tokens=4,
    eos_token_id=ends,
    pad_token_id=pad,
)
took["generate"] = time.perf_counter() - start
print("the same ids:", torch.equal(mine, theirs))
for name, seconds in took.items():
    print(f"{name:12} {seconds:.2f} s")

# %% [markdown]
# Serving engines share the prefill in the same way, without a copy: rows point to the same
# blocks of memory until they differ (lesson 07's paged cache).
#
# TASKS-AND-SAMPLES
# %% [markdown]
# ## 2. Is a right one among them?
#
# The first question is not which answer to choose, but whether a right one was drawn at all.
# *pass@k* is the probability that at least one of k samples is right. Nobody draws k samples
# again and again to measure it: draw n once, count the c right ones, and compute what k of
# those n would have given.
#
# **Predict:** 4 samples, 1 of them right. What is pass@2?

# %% [markdown]
# ### Exercise 10.2 · `pass_at_k`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 5 lines
#
# Of `n` samples of *one* problem `c` are right. What is the probability that k of them, drawn
# *without* putting any back, hold at least one right one? That is the unbiased estimate of
# pass@k (Chen et al., 2021).
#
# By hand: `n=4, c=1, k=2`. There are 6 pairs, and 3 of them hold the right one: 0.5. With
# `c=3` every pair holds a right one: 1.
#
# With fewer samples than k nothing can be said: `k` above `n` is a `ValueError`, not 1. So are
# `k` below 1, `c` below 0, and `c` above `n`. The result is a float, precise for `n` in the
# thousands, too.
#
# <details><summary>Hint 1</summary>Count the draws that hold <em>no</em> right one: all k come
# from the n - c wrong ones.</details>
# <details><summary>Hint 2</summary><code>math.comb(n, k)</code> is exact for any n, as Python's
# integers are, and is 0 for k above n. Divide first: the quotient fits a float, the two numbers
# may not.</details>


# %% tags=["exercise"]
def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n samples, without replacement, hold one of c right ones.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    ### BEGIN SOLUTION
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to n = {n}, got {k}")
    if not 0 <= c <= n:
        raise ValueError(f"c must be from 0 to n = {n}, got {c}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
    ### END SOLUTION


# %% tags=["check"]
check(pass_at_k)

# %% [markdown]
# PASS-DEMO

# %% [markdown]
# ## 3. Let the samples vote
#
# In practice nobody tells which sample is right. *Self-consistency* (Wang et al., 2023) takes
# the answer that most samples give: there are many ways to be wrong, and they seldom agree.

# %% [markdown]
# ### Exercise 10.3 · `vote`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 12 lines
#
# The answer with the most votes. A sample may have no answer, `None` (the text ended too soon,
# or does not have the right form): it does not count. A *tie* for the first place is no
# decision: `None`. A rule such as "the first of them" would make the result depend on the order
# of the samples, and that is chance.
#
# By hand: `["12", "11", None, "12"]` gives `"12"`; `["12", "11"]` gives `None`, and so does
# `[None, None, None]`. With `weights=[1.0, 3.0]` the vote `["12", "11"]` gives `"11"`.
#
# With weights, the largest sum wins. In floats `0.1 + 0.2 + 0.3` depends on the order, so add
# with `math.fsum`, which does not. An answer whose sum is 0 has no vote. An empty text is an
# answer like any other.
#
# <details><summary>Hint 1</summary>Collect a list of weights for each answer, then one
# <code>math.fsum</code> for each. Without weights each vote weighs 1.</details>
# <details><summary>Hint 2</summary>Find the largest sum, then all answers that have it. Is it
# exactly one?</details>


# %% tags=["exercise"]
def vote(answers: list[str | None], weights: list[float] | None = None) -> str | None:
    """The answer with the most votes, or with the largest sum of weights.

    None among the answers does not count, nor does an answer whose sum is 0. Returns None
    for a tie and where there is no vote. The order makes no difference: sums are those of
    math.fsum. Raises ValueError unless there is one weight for each answer (those that are
    None included), and for a negative weight or NaN.
    """
    ### BEGIN SOLUTION
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers):
        raise ValueError(f"{len(weights)} weights for {len(answers)} answers")
    if not all(weight >= 0 for weight in weights):  # NaN is not, either
        raise ValueError("a weight must be 0 or more")
    votes = {answer: [] for answer in answers if answer is not None}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes[answer].append(weight)
    sums = {answer: math.fsum(its) for answer, its in votes.items()}
    most = max(sums.values(), default=0.0)
    first = [answer for answer in sums if sums[answer] == most]
    return first[0] if most > 0 and len(first) == 1 else None
    ### END SOLUTION


# %% tags=["check"]
check(vote)

# %% [markdown]
# VOTE-DEMO

# %% [markdown]
# ### Exercise 10.4 · `early_stop_vote`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 14 lines
#
# Samples cost money. If 5 of at most 8 have come and all say "12", the other 3 cannot change
# the result. Read answers one by one, and stop as soon as *no* later answers can change it,
# and not earlier. A tie would change it, too: its result is `None`.
#
# By hand, with `n=4`: `"a", "a"` is not settled, since two of `"b"` would make a tie. `"a", "a",
# "a"` is: `("a", 3)`. After `"a", "a", None` one answer is left, which cannot catch up: `("a",
# 3)`. After `"a", "b", "a"` the last may make a tie: read it.
#
# `answers` may be a generator that draws a sample each time it is asked: do not ask for one
# more than you need. If it ends before `n`, there are no later answers, and the vote of those
# that came is the result.
#
# <details><summary>Hint 1</summary>The best that can happen to the second: all that are left
# go to it.</details>
# <details><summary>Hint 2</summary>Settled means: the first has more votes than the second and
# all that are left together. The second may be an answer that nobody has given yet, with 0
# votes.</details>
# <details><summary>Hint 3</summary><code>next(answers, END)</code> with an object of your own
# tells the end from a <code>None</code>. Look whether it is settled <em>before</em> you
# ask.</details>


# %% tags=["exercise"]
def early_stop_vote(answers: Iterator[str | None], n: int) -> tuple[str | None, int]:
    """The result of `vote` on at most n answers, and how many of them were read.

    Reads one by one and stops exactly when no later answers can change the result, not
    even into a tie. Nothing is read beyond that, nor beyond n. An iterator that ends early
    has no later answers. Raises ValueError for a negative n.
    """
    ### BEGIN SOLUTION
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    end, read = object(), []
    while len(read) < n:
        counts = Counter(answer for answer in read if answer is not None)
        first, second, *_ = [*sorted(counts.values(), reverse=True), 0, 0]
        if first > second + n - len(read):
            break
        answer = next(answers, end)
        if answer is end:
            break
        read.append(answer)
    return vote(read), len(read)
    ### END SOLUTION


# %% tags=["check"]
check(early_stop_vote)

# %% [markdown]
# EARLY-DEMO

# %% [markdown]
# ## 4. Judges
#
# A vote needs answers that can be equal. A *judge* gives each text a number, and the text
# with the largest one is taken: *best of n*. The judge at hand is the model itself, which
# knows how probable it found what it wrote.

# %% [markdown]
# ### Exercise 10.5 · `sequence_logprob`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 12 lines
#
# The log-probability of the tokens from column `start` on, given all that stands before them:
# the sum, for each row, in one call of the model. Where the mask is 0 there is padding, on the
# left or on the right, which does not count. Everything else does, an EOS too.
#
# By hand: behind a 2 comes 1 with probability 0.4, behind a 1 comes 1 with 0.9. The ids `[[2,
# 1, 1]]` with `start=1` have ln 0.4 + ln 0.9 = ln 0.36; with `start=2`, ln 0.9.
#
# <details><summary>Hint 1</summary>Lesson 02's <code>token_logprobs</code> has the core: the
# logits at a place belong to the token behind it.</details>
# <details><summary>Hint 2</summary>With padding on the left the model needs
# <code>attention_mask=mask</code> and <code>position_ids=position_ids(mask)</code>.</details>
# <details><summary>Hint 3</summary>A padding token may have the log-probability -inf, and 0
# times -inf is nan: <code>masked_fill(mask == 0, 0.0)</code>.</details>
# <details><summary>Hint 4</summary>49,152 logits for each place of a long prompt take much
# memory. <code>logits_to_keep=m</code> makes the model compute those of the last m places
# only: one more than there are tokens to judge.</details>


# %% tags=["exercise"]
def sequence_logprob(
    model, ids: torch.Tensor, mask: torch.Tensor, start: int
) -> torch.Tensor:
    """The log-probability of each row's tokens from column start on, given those before.

    ids: (batch, seq) int64. mask: (batch, seq) int64, 0 on padding, on the left or right;
    each row has a token before start. The model is called once, without gradients, with
    attention_mask and position_ids. Returns (batch,) float32, the sums in nats; 0 for a
    row that has no token there. Raises ValueError unless 1 <= start <= seq.
    """
    ### BEGIN SOLUTION
    if not 1 <= start <= ids.shape[1]:
        raise ValueError(f"start must be from 1 to {ids.shape[1]}, got {start}")
    with torch.no_grad():
        logits = model(
            ids,
            attention_mask=mask,
            position_ids=position_ids(mask),
            logits_to_keep=ids.shape[1] - start + 1,
        ).logits
    logprobs = logits[:, :-1].float().log_softmax(-1)  # (batch, new, vocab)
    logprobs = logprobs.gather(-1, ids[:, start:, None])[..., 0]  # (batch, new)
    return logprobs.masked_fill(mask[:, start:] == 0, 0.0).sum(-1)
    ### END SOLUTION


# %% tags=["check"]
check(sequence_logprob)

# %% [markdown]
# A sum of logarithms falls with each token, so it favours short texts (lesson 09). And it says
# how likely *this* text is, not how sure the model was at each step. *Self-certainty* (Kang,
# Zhao and Song, 2025) looks at whole distributions: how far is each from one in which all
# tokens are equally likely?

# %% [markdown]
# ### Exercise 10.6 · `self_certainty`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 3 lines
#
# The Kullback–Leibler divergence *from uniform*, KL(u ‖ p) = Σ 1/V · ln((1/V) / p), of each
# place, and the mean over places: in nats, larger for surer. (KL(p ‖ u) is another number: ln V
# minus the entropy.)
#
# By hand: two tokens with the probabilities 0.8 and 0.2: ½ ln(0.5 / 0.8) + ½ ln(0.5 / 0.2) =
# -½ ln 0.64 = 0.223. Two equal ones: 0. A text with both distributions, one at each of two
# places: 0.112.
#
# Give it raw logits: a token with probability 0, as filters make it, makes the number
# infinite.
#
# <details><summary>Hint 1</summary>Take the formula apart: ln(1/V) is a constant, and the rest
# is the mean of -ln p over the vocabulary.</details>
# <details><summary>Hint 2</summary><code>log_softmax</code>, not the log of a softmax: the
# probability of a rare token may be 0 in float32, its logarithm is not -inf.</details>


# %% tags=["exercise"]
def self_certainty(logits: torch.Tensor) -> torch.Tensor:
    """The mean over places of KL(uniform, p), in nats: larger where the model is surer.

    logits: (batch, new, vocab) of any float dtype, new of 1 or more. Returns (batch,)
    float32. A logit of -inf makes it inf.
    """
    ### BEGIN SOLUTION
    logprobs = logits.float().log_softmax(-1)  # (batch, new, vocab)
    divergence = -math.log(logits.shape[-1]) - logprobs.mean(-1)  # (batch, new)
    return divergence.mean(-1)
    ### END SOLUTION


# %% tags=["check"]
check(self_certainty)

# %% [markdown]
# ### Exercise 10.7 · `best_of_n`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 4 lines
#
# Which of n samples has the largest score? Of equal ones, the first. A judge that fails gives
# NaN: such a sample is never taken. If there is no score, or nothing but NaN, there is no best
# one: a `ValueError`.
#
# By hand: `[-2.5, -0.5, -1.0]` gives 1; `[nan, -3.0, -1.0]` gives 2.
#
# <details><summary>Hint 1</summary>Every comparison with NaN is false. What does
# <code>max</code> make of <code>[nan, 1.0]</code>, and of <code>[1.0,
# nan]</code>?</details>


# %% tags=["exercise"]
def best_of_n(scores: list[float]) -> int:
    """The place of the largest score; of equal ones the first. NaN is never taken.

    Raises ValueError if there is no score, or none that is a number.
    """
    ### BEGIN SOLUTION
    places = [i for i, score in enumerate(scores) if not math.isnan(score)]
    if not places:
        raise ValueError("there is no score to choose by")
    return max(places, key=lambda i: scores[i])
    ### END SOLUTION


# %% tags=["check"]
check(best_of_n)

# %% [markdown]
# JUDGE-DEMO

# %% [markdown]
# ## 6. The answer that agrees with the others
#
# A vote sees equal or not equal. With long texts no two are equal, and with numbers 28 is
# nearer to 29 than 3 is. *Minimum Bayes risk* (MBR) decoding says what being near is worth, a
# *utility*, and takes the sample which is worth most on average if the truth is as the other
# samples say.

# %% [markdown]
# ### Exercise 10.8 · `mbr`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 8 lines
#
# The place of the candidate with the largest expected utility: `utility(candidate, other)`,
# over all the other candidates, not itself. A text that was drawn twice counts twice: that is
# how samples say what is probable. Of equal ones the first.
#
# By hand: the utility is the share of the candidate's letters that the other text has.
# `["ab", "a", "b"]` have ½ + ½ = 1, 1 + 0 = 1 and 1 + 0 = 1: the first, place 0. With
# `["ab", "a", "a"]` they have 1, 2 and 2: place 1. The order of the two arguments matters: with
# the share of the *other's* letters, "ab" has 1 + 1 = 2, and "a" has ½ + 1.
#
# A utility may be slow (in practice it is often a neural network): no more than n · (n - 1)
# calls. Add with `math.fsum`, so that equal texts have equal sums.
#
# <details><summary>Hint 1</summary>"Itself" is the place, not the text: a second copy of a text
# is another sample.</details>
# <details><summary>Hint 2</summary><code>max</code> with a <code>key</code> calls it once for
# each item, and gives the first of equal ones.</details>


# %% tags=["exercise"]
def mbr(candidates: list[str], utility: Callable[[str, str], float]) -> int:
    """The place of the candidate with the largest mean utility against all the others.

    utility(candidate, other), called at most n * (n - 1) times, need not be symmetric. Of
    equal ones the first; a single candidate is place 0. Raises ValueError for no
    candidates.
    """
    ### BEGIN SOLUTION
    if not candidates:
        raise ValueError("there is no candidate to choose")

    def total(i):
        others = candidates[:i] + candidates[i + 1 :]
        return math.fsum(utility(candidates[i], other) for other in others)

    return max(range(len(candidates)), key=total)
    ### END SOLUTION


# %% tags=["check"]
check(mbr)

# %% [markdown]
# MBR-DEMO

# %% [markdown]
# ## 8. Drawing from pᵅ
#
# Best of n with the model's own probability ends at the likeliest text, and likelier need not
# be better (lessons 08 and 09). Between sampling and search lies the *power distribution*: draw
# whole texts with a probability in proportion to p(text)ᵅ. Is that not temperature 1/α?
#
# POWER-TOY

# %% [markdown]
# ### Exercise 10.9 · `power_sample`
#
# difficulty ★★★ · importance ★★☆ · 25 min · our answer: 10 lines
#
# Nobody can sum p(text)ᵅ over all texts. The method of Metropolis and Hastings needs no sum. It
# walks from text to text: from x, a *proposal* y is drawn from some q(y | x), and accepted with
# the probability
#
# min(1, p(y)ᵅ / p(x)ᵅ · q(x | y) / q(y | x)).
#
# If it is not accepted, the walk stays at x for this step. In the long run each text is visited
# as often as p(text)ᵅ says. The second factor pays back what the proposal itself prefers.
#
# `propose(x, generator)` gives y, ln q(y | x) and ln q(x | y), in this order; `logprob(x)` is
# ln p(x). Return where the walk stands after `steps` proposals.
#
# By hand: p(x) = 0.5, p(y) = 0.25, α = 2. A symmetric proposal is accepted with (0.25 / 0.5)² =
# ¼. If q(y | x) = 0.2 and q(x | y) = 0.6, with ¼ · 3 = ¾.
#
# <details><summary>Hint 1</summary>Stay in logarithms: ln of the ratio is alpha times a
# difference of <code>logprob</code>, plus ln q(x | y), minus ln q(y | x).</details>
# <details><summary>Hint 2</summary>Accept if <code>torch.rand((), generator=generator)</code> is
# below the ratio. <code>math.exp</code> of a large number is an error: <code>min(0.0,
# ...)</code> before it.</details>
# <details><summary>Hint 3</summary>Keep the log-probability of x. Each call of
# <code>logprob</code> may be a forward pass of a model.</details>


# %% tags=["exercise"]
def power_sample(
    logprob: Callable[[tuple[int, ...]], float],
    propose: Callable,
    start: tuple[int, ...],
    alpha: float,
    steps: int,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """A text after `steps` Metropolis–Hastings steps from start, for p ** alpha.

    logprob(x): ln p(x); -inf for a text that cannot be. start has a probability above 0.
    propose(x, generator): (y, ln q(y|x), ln q(x|y)). All random numbers come from the
    generator. logprob is called once for start and once for each proposal.
    """
    ### BEGIN SOLUTION
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if torch.rand((), generator=generator) < math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x
    ### END SOLUTION


# %% tags=["check"]
check(power_sample)

# %% [markdown]
# POWER-DEMO
