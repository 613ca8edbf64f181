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
# them in four ways, and say with a number when none of the four helps.**
#
# You write: `sample_many`, `sequence_logprob`, `self_certainty`, `pass_at_k`, `vote`,
# `early_stop_vote`, `best_of_n`, `mbr` and `power_sample`. About 160 minutes. Builds on
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
import functools
import random
import time
from dataclasses import dataclass

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()
pad = tokenizer.pad_token_id

# %% [markdown]
# ## 1. Many answers to one question
#
# One answer is one draw. Two draws may disagree, and then there is something to choose from.
# A prompt that shows the form makes answers short, and easy to compare:

# %%
SUM = "2 + 3 = 5\n11 + 4 = 15\n8 + 12 = 20\n{} ="
# An answer ends with its line: each token with a line end in it counts as an EOS.
words = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
ends = [i for i, word in enumerate(words) if "\n" in word]
ends.append(tokenizer.eos_token_id)


def ids_of(text):
    return tokenizer(text, return_tensors="pt").input_ids.to(model.device)


def line_of(new_ids):
    """The first line of an answer, without spaces around it."""
    text = tokenizer.decode(new_ids, skip_special_tokens=True)
    return text.split("\n")[0].strip()


ids = ids_of(SUM.format("7 + 5"))
options = {"do_sample": True, "top_k": 0, "max_new_tokens": 4}
options |= {"eos_token_id": ends, "pad_token_id": pad}
torch.manual_seed(0)
out = model.generate(ids, num_return_sequences=8, **options)
print([line_of(row) for row in out[:, ids.shape[1] :]])

# %% [markdown]
# Some are right. `num_return_sequences` is the `n` of the API. `generate` does it in the
# simplest way: it copies the prompt eight times, and runs all eight copies.
#
# **Predict:** the prompt has 33 tokens, an answer about 3. Of the places that `generate`
# computes for 8 answers, how many are needed?

# %% [markdown]
# ### Exercise 10.1 · `sample_many`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 16 lines
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

    ids: (1, seq) int64, without padding. pick: (n, vocab) float32 -> (n, 1), called
    once a step. The model is called without gradients, once for each new token: with
    the prompt as one row, then with (n, 1). Returns (n, seq + new) int64, new at most
    max_new_tokens: a row that has finished gets pad_id, and when all have, the loop
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
# The proof on the real model, and the price:

# %%
n, took = 16, {}
torch.manual_seed(1)
start = time.perf_counter()
mine = sample_many(model, ids, n, 4, pick_sample, ends, pad)
took["sample_many"] = time.perf_counter() - start
torch.manual_seed(1)
start = time.perf_counter()
theirs = model.generate(ids, num_return_sequences=n, **options)
took["generate"] = time.perf_counter() - start
print("the same ids:", torch.equal(mine, theirs))
for name, seconds in took.items():
    print(f"{name:12} {seconds:.2f} s")

# %% [markdown]
# For 8 answers of 3 tokens `generate` computes 8 · 33 places of prompt, of which 33 are
# needed, and 8 · 2 places of answers. Serving engines share a prefill, too, and without a
# copy: all rows point to the same blocks of memory (lesson 07).
#
# ## 2. What the model thinks of an answer
#
# The model knows how probable it found what it wrote. That will be one way to choose.

# %% [markdown]
# ### Exercise 10.2 · `sequence_logprob`
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
    """The log-probability of each row's tokens from column start on.

    ids: (batch, seq) int64. mask: (batch, seq) int64, 0 on padding, left or right;
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
# Two answers to a sum that the model finds hard. **Predict:** is the right one likelier?

# %%
for answer in ("48", "52"):
    start = ids_of(SUM.format("31 + 17")).shape[1]
    ids = ids_of(SUM.format("31 + 17") + f" {answer}\n")
    logprob = sequence_logprob(model, ids, torch.ones_like(ids), start).item()
    print(f"31 + 17 = {answer}   ln p = {logprob:.2f}   p = {math.exp(logprob):.3f}")

# %% [markdown]
# No: keep this sum in mind. More samples will show the wrong answer more often.
#
# A sum of logarithms falls with each token, so it favours short texts (lesson 09). And it says
# how likely *this* text is, not how sure the model was on the way. *Self-certainty* (Kang,
# Zhao and Song, 2025) looks at the whole distribution of each place: how far is it from one in
# which all tokens are equally likely?

# %% [markdown]
# ### Exercise 10.3 · `self_certainty`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 3 lines
#
# Let p be the distribution of the next token over a vocabulary of V tokens, and u the uniform
# one, which gives each token 1/V. Compute the Kullback–Leibler divergence KL(u ‖ p) =
# Σ 1/V · ln((1/V) / p), with the sum over the vocabulary, of each place, and the mean over
# places: in nats, larger for surer. (KL(p ‖ u) is another number: ln V minus the entropy.)
#
# By hand: two tokens with the probabilities 0.9 and 0.1: ½ ln(0.5 / 0.9) + ½ ln(0.5 / 0.1) =
# -½ ln 0.36 = 0.511. Two equal ones: 0. A text with both distributions, one at each of two
# places: 0.255.
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
# **Predict:** of 1,000 tokens, one distribution gives a single token 96%, the other tosses a coin
# between two. Which has the larger self-certainty?

# %% tags=["nbval-check-output"]
single, coin = torch.zeros(1, 1, 1000), torch.zeros(1, 1, 1000)
single[..., 0] = 10.0
coin[..., :2] = 20.0
for name, logits in (("single", single), ("coin", coin)):
    best, sure = logits.softmax(-1).max().item(), self_certainty(logits).item()
    print(f"{name:6} best token {best:.2f}   self-certainty {sure:.1f}")

# %% [markdown]
# The coin. Each of the 1,000 tokens counts alike, so what decides is how impossible the 998
# others are, not whether the best one is likely. Remember that for section 5.
#
# Both numbers come for free while a sample is drawn: `pick` sees the logits. So the samples of
# this lesson are drawn once, here: three kinds of tasks, 20 questions, 24 samples each. A
# sample that does not end within 5 tokens has no answer.

# %%
SUMS = "7 + 5: 12, 8 + 9: 17, 12 + 15: 27, 23 + 6: 29, 14 + 8: 22, "
SUMS += "31 + 17: 48, 9 + 6: 15, 25 + 25: 50, 45 + 12: 57, 33 + 9: 42"
FACTS = "Italy: Rome, Australia: Canberra, Canada: Ottawa, Egypt: Cairo, "
FACTS += "Kenya: Nairobi, Turkey: Ankara"
FORMAT = "nineteen: 19, forty-six: 46, eighty-eight: 88, ninety: 90"
TASKS = {  # the prompt, and questions with their right answers
    "sums": (SUM, SUMS),
    "facts": ("France: Paris\nJapan: Tokyo\n{}:", FACTS),
    "format": ("seven: 7\ntwenty-one: 21\nfifty-eight: 58\n{}:", FORMAT),
}
N, NEW = 24, 5


# %%
@dataclass
class Sample:
    text: str
    answer: str | None  # the text, if it has ended
    logprob: float
    certainty: float


# %%
def samples_of(prompt):
    """N samples, with what the model thought of them while they were drawn."""
    logprobs, certainties = [], []

    def pick(logits):
        token = pick_sample(logits)
        logprobs.append(logits.log_softmax(-1).gather(-1, token)[:, 0].tolist())
        certainties.append(self_certainty(logits[:, None]).tolist())
        return token

    ids = ids_of(prompt)
    out = sample_many(model, ids, N, NEW, pick, ends, pad)[:, ids.shape[1] :]
    samples = []
    for i, row in enumerate(out.tolist()):
        length = next((k for k, x in enumerate(row, 1) if x in ends), len(row))
        ended, text = row[length - 1] in ends, line_of(row[:length])
        logprob = sum(step[i] for step in logprobs[:length])
        certainty = sum(step[i] for step in certainties[:length]) / length
        samples.append(Sample(text, text if ended else None, logprob, certainty))
    return samples


# %%
questions = [  # (kind, question, right answer)
    (kind, *pair.split(": "))
    for kind, (_, pairs) in TASKS.items()
    for pair in pairs.split(", ")
]
torch.manual_seed(0)
drawn = {q: samples_of(TASKS[kind][0].format(q)) for kind, q, _ in questions}
for kind, q, right in questions:
    counts = Counter(sample.answer for sample in drawn[q])
    most = ", ".join(f"{a} ×{k}" for a, k in counts.most_common(3))
    print(f"{kind:7} {q:12} {right:9} right: {counts[right]:2}   most: {most}")

# %% [markdown]
# (`None` stands for those that did not end.) Some questions are answered well, some hardly
# ever, and some are answered wrong with conviction.
#
# ## 3. Is a right one among them?
#
# The first question is not which answer to take, but whether a right one was drawn at all.
# *pass@k* is the probability that at least one of k samples is right. Nobody draws k samples
# again and again to measure it: draw n once, count the c right ones, and compute what k of
# those n would have given.
#
# **Predict:** 4 samples, 1 of them right. What is pass@2?

# %% [markdown]
# ### Exercise 10.4 · `pass_at_k`
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
# integers are, and is 0 for k above n. Divide the two integers with <code>/</code>: the
# quotient fits a float, the two numbers may not.</details>


# %% tags=["exercise"]
def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n samples, drawn at once, hold one of c right ones.

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
# Two ways to get it wrong. `1 - (1 - c/n) ** k` draws with replacement, and is too low. And some
# count the samples of all problems as if they were of one: **predict** pass@10 for two
# problems with 20 samples each, of which 20 and 0 are right.

# %% tags=["nbval-check-output"]
for c in (1, 2, 5):
    biased = 1 - (1 - c / 20) ** 10
    print(
        f"20 samples, {c} right: pass@10 {pass_at_k(20, c, 10):.3f}, not {biased:.3f}"
    )
each = [pass_at_k(20, c, 10) for c in (20, 0)]
print("two problems:", sum(each) / 2, "  40 samples, 20 right:", end=" ")
print(f"{pass_at_k(40, 20, 10):.4f}")

# %% [markdown]
# One problem is always solved and one never: 0.5. Whoever counts all samples together finds
# nearly 1. pass@k is computed for each problem, and then averaged.
#
# ## 4. Let the samples vote
#
# In practice nobody says which sample is right. *Self-consistency* (Wang et al., 2023) takes
# the answer that most samples give: there are many ways to be wrong, and they seldom agree.

# %% [markdown]
# ### Exercise 10.5 · `vote`
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

    None among the answers does not count, nor does an answer whose sum is 0. Returns
    None for a tie and where there is no vote. The order makes no difference: sums are
    those of math.fsum. Raises ValueError unless there is one weight for each answer
    (those that are None included), and for a negative weight or NaN.
    """
    ### BEGIN SOLUTION
    if weights is None:
        weights = [1.0] * len(answers)
    if not all(weight >= 0 for weight in weights):  # NaN is not, either
        raise ValueError("a weight must be 0 or more")
    votes = {answer: [] for answer in answers if answer is not None}
    for answer, weight in zip(answers, weights, strict=True):  # or a ValueError
        if answer is not None:
            votes[answer].append(weight)
    sums = {answer: math.fsum(its) for answer, its in votes.items()}
    most = max(sums.values(), default=0.0)
    first = [answer for answer in sums if sums[answer] == most]
    return first[0] if most > 0 and len(first) == 1 else None
    ### END SOLUTION


# %% tags=["check"]
check(vote)

# %%
for kind in TASKS:
    mine = [(q, right) for k, q, right in questions if k == kind]
    one = [sum(s.answer == right for s in drawn[q]) / N for q, right in mine]
    voted = [vote([s.answer for s in drawn[q]]) for q, _ in mine]
    won = [v == right for v, (_, right) in zip(voted, mine, strict=True)]
    lost = [f"{q}: {v}" for v, (q, _), w in zip(voted, mine, won, strict=True) if not w]
    print(f"{kind:7} one sample {sum(one) / len(one):.2f}", end="   ")
    print(f"vote of {N} {sum(won) / len(won):.2f}   lost: {', '.join(lost)}")

# %% [markdown]
# A vote makes the likely answer certain. Where the right one is the likeliest, that wins much.
# Where a wrong one is, such as 52 for 31 + 17, more samples make it *worse* than one, which
# is at least sometimes right. Votes cure chance, not error.

# %% [markdown]
# ### Exercise 10.6 · `early_stop_vote`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 13 lines
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
    even into a tie. Nothing is read beyond that, nor beyond n. An iterator that ends
    early has no later answers. Raises ValueError for a negative n.
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
# What does it save? The votes above, with samples that come one by one:

# %%
used = {q: early_stop_vote((s.answer for s in drawn[q]), N) for _, q, _ in questions}
same = all(used[q][0] == vote([s.answer for s in drawn[q]]) for q in used)
print("the same results:", same)
print(f"samples drawn: {sum(k for _, k in used.values())} of {N * len(used)}")
print("at least, at most:", min(used.values(), key=lambda x: x[1]), end=" ")
print(max(used.values(), key=lambda x: x[1]))

# %% [markdown]
# The result is the same, and some samples are saved. It stops only when *certain*: papers on
# adaptive voting stop when it is likely, and save more (Aggarwal et al., 2023: up to 7.9 times
# fewer samples).
#
# ## 5. Judges, and a judge that is wrong
#
# A vote needs answers that can be equal. A *judge* gives each text a number, and the text with
# the largest one is taken.

# %% [markdown]
# ### Exercise 10.7 · `best_of_n`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 2 lines
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
    return max(places, key=lambda i: scores[i])  # of nothing: a ValueError
    ### END SOLUTION


# %% tags=["check"]
check(best_of_n)

# %% [markdown]
# Two judges: the text's own log-probability, and self-certainty. (A third one, which knows the
# right answer, is called the *oracle*. It finds one whenever there is one: pass@n.)


# %%
def chosen(q, judge):
    samples = drawn[q]
    return samples[best_of_n([judge(s) for s in samples])]


judges = {
    "log-probability": lambda s: s.logprob,
    "self-certainty": lambda s: s.certainty,
}
for name, judge in judges.items():
    for kind in TASKS:
        mine = [(q, right) for k, q, right in questions if k == kind]
        won = sum(chosen(q, judge).answer == right for q, right in mine)
        print(f"{name:16} {kind:7} best of {N}: {won} of {len(mine)}")
taken = [(q, chosen(q, judges["self-certainty"]).text) for _, q, _ in questions[:5]]
print("self-certainty takes:", ", ".join(f"{q} = {text}" for q, text in taken))
won = 0
for _, q, right in questions:
    weights = [math.exp(s.logprob) for s in drawn[q]]
    won += vote([s.answer for s in drawn[q]], weights) == right
print(f"vote, weighted with the probability: {won} of {len(questions)}")

# %% [markdown]
# In our run the text's own probability finds 14 of 20 right answers, and self-certainty 3, fewer
# than single samples do: here, too, the 49,000 tokens that nobody would draw decide. It was
# proposed for reasoning texts of large models, which are long. A judge has to be tried on
# the task at hand. (The last line weighs each vote with the probability of its text: `vote` has
# weights.)
#
# Now a judge that is *wrong*. Someone has seen sums that were too small, and made a
# rule of it: of two numbers, the larger one is better. With n samples out of 24, the chance that
# the best of n is the one at rank i can be computed exactly, as in `pass_at_k`: the n - 1
# others come from those below it.
#
# **Predict:** how does the accuracy on sums go with n?


# %%
def best_of_subset(N, n):
    """For each rank, best first: the chance that it is the best of n out of N."""
    return [math.comb(N - 1 - i, n - 1) / math.comb(N, n) for i in range(N)]


def size(sample):
    """The judge: a larger number is better, and what is no number is worst."""
    digits = (sample.answer or "").isdecimal()
    return math.log10(1 + int(sample.answer)) if digits else 0.0


sums = [(q, right) for kind, q, right in questions if kind == "sums"]
numbers = [(s, int(right)) for q, right in sums for s in drawn[q] if size(s)]
wrong = [int(s.answer) < right for s, right in numbers if int(s.answer) != right]
print(f"of {len(wrong)} wrong numbers {sum(wrong)} are too small")

# %%
ns = [1, 2, 3, 4, 6, 8, 12, 16, 24]
liked, correct = [], []
for n in ns:
    chances, score, hits = best_of_subset(N, n), 0.0, 0.0
    for q, right in sums:
        ranked = sorted(drawn[q], key=size, reverse=True)
        score += sum(c * size(s) for c, s in zip(chances, ranked, strict=True))
        hits += sum(
            c for c, s in zip(chances, ranked, strict=True) if s.answer == right
        )
    liked.append(score / len(sums))
    correct.append(hits / len(sums))
print("right:", [f"{n}: {x:.2f}" for n, x in zip(ns, correct, strict=True)])

# %% [markdown]
# How far does choosing move the texts away from the model? The Kullback–Leibler divergence
# between the best of n and one sample is at most ln n - (n - 1)/n. Many papers say "is". With
# few different texts, equal ones among the n make it less (Beirami et al., 2024). Here
# is one question, its 24 samples taken for the model's distribution:


# %%
def divergence(p, n):
    """KL(best of n, one draw). p: the probabilities, that of the worst text first."""
    kl, below = 0.0, 0.0
    for share in p:
        new = min(below + share, 1.0) ** n - below**n
        kl += new * math.log(new / share) if new else 0.0
        below += share
    return kl


def bound(n):
    return math.log(n) - (n - 1) / n


# %%
counts = Counter(round(size(s), 6) for s in drawn["33 + 9"])
p = [counts[x] / N for x in sorted(counts)]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3))
left.plot(ns, correct, "o-", color=figures.RED, label="right (share of sums)")
top = liked[-1] or 1.0
left.plot(ns, [x / top for x in liked], "s-", label="the judge's score, of its best")
left.set(
    xscale="log", xlabel="n", ylim=(0, 1.05), title="A judge that likes large numbers"
)
left.legend(loc="lower left", fontsize=8)
right.plot(
    ns, [bound(n) for n in ns], "--", color=figures.GREY, label="ln n - (n - 1)/n"
)
right.plot(ns, [divergence(p, n) for n in ns], "o-", label="sizes of 33 + 9")
uniform = [1 / 1000] * 1000
right.plot(ns, [divergence(uniform, n) for n in ns], "x", label="1,000 equally likely")
right.set(
    xscale="log", xlabel="n", ylabel="KL in nats", title="A bound, not an equality"
)
right.legend(loc="upper left", fontsize=8)
for ax in (left, right):
    ax.set_xticks(ns, ns)
    ax.minorticks_off()
plt.show()

# %% [markdown]
# The judge's own score only rises. The share of right answers rises a little at first, from 0.48
# to 0.54 at n = 2, since half of the wrong numbers are indeed too small; then it falls, to 0.30 at
# n = 24. That is *reward hacking*, and nobody trained anything: choosing alone finds the texts on
# which the judge errs, the better the more there are to choose from. The judge's score cannot
# show it.
#
# On the right the bound holds with (nearly) equality for a thousand different texts. With the
# few sizes of one question the divergence stays below it: two equal texts are no choice.
#
# ## 6. The answer that agrees with the others
#
# A vote sees equal or not equal. But long texts are never equal, and 28 is nearer to 29 than 3
# is. *Minimum Bayes risk* (MBR) decoding says what being near is worth, a *utility*, and takes
# the sample that is worth most on average, if the truth is what another sample says.

# %% [markdown]
# ### Exercise 10.8 · `mbr`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 4 lines
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

    utility(candidate, other), called at most n * (n - 1) times, need not be symmetric.
    Of equal ones the first; a single candidate is place 0. Raises ValueError for no
    candidates.
    """
    ### BEGIN SOLUTION

    def total(i):
        others = candidates[:i] + candidates[i + 1 :]
        return math.fsum(utility(candidates[i], other) for other in others)

    return max(range(len(candidates)), key=total)  # of nothing: a ValueError
    ### END SOLUTION


# %% tags=["check"]
check(mbr)

# %% [markdown]
# With equality as the utility MBR is the vote. Other utilities choose other answers from the
# same samples. Here is the vote beside two of them: the letters that two texts share, and the
# distance of two numbers. **Predict** what the distance prefers.


# %%
@functools.cache
def shared(candidate, other):
    """The F1 of the characters that two texts share."""
    both = (Counter(candidate) & Counter(other)).total()
    return 2 * both / max(len(candidate) + len(other), 1)


def near(candidate, other):
    return -abs(int(candidate) - int(other))


for q, right in sums:
    texts = [s.answer for s in drawn[q] if (s.answer or "").isdecimal()]
    if texts:
        one, two = (texts[mbr(texts, utility)] for utility in (shared, near))
        print(f"{q:8} = {right}   vote {vote(texts)}   shared {one}   near {two}")

# %% [markdown]
# The sample with the smallest mean distance to the others is their median. A vote takes the
# most frequent one. Which is better depends on the errors: MBR is as good as its utility.
#
# ## 7. Accuracy against n
#
# All ways at once. For each n: draw n of the 24 samples at random, choose, look whether the
# choice is right; again and again, averaged over draws and questions. The oracle is `pass_at_k`.
#
# **Predict** the order of the curves at n = 24. Does each of them rise from n = 1 to n = 2?


# %%
def voted(samples):
    return vote([s.answer for s in samples])


def agreed(samples):
    return samples[mbr([s.text for s in samples], shared)].answer


def likeliest(samples):
    return samples[best_of_n([s.logprob for s in samples])].answer


def surest(samples):
    return samples[best_of_n([s.certainty for s in samples])].answer


ways = {"vote": voted, "MBR": agreed, "best log-probability": likeliest}
ways["best self-certainty"] = surest

# %%
sizes, dice = [1, 2, 4, 8, 16, 24], random.Random(0)
subsets = {n: [dice.sample(range(N), n) for _ in range(40)] for n in sizes}
subsets |= {1: [[i] for i in range(N)], N: [[*range(N)]]}  # all there are


def accuracy(way, q, right, n):
    """How often the choice from n of the samples is right."""
    found = [way([drawn[q][i] for i in subset]) for subset in subsets[n]]
    return sum(answer == right for answer in found) / len(found)


# %%
# (questions, sizes) for each way
results = {
    name: torch.tensor(
        [[accuracy(way, q, right, n) for n in sizes] for _, q, right in questions]
    )
    for name, way in ways.items()
}
hits = [sum(s.answer == right for s in drawn[q]) for _, q, right in questions]
results["oracle (pass@n)"] = torch.tensor(
    [[pass_at_k(N, c, n) for n in sizes] for c in hits]
)

# %% [markdown]
# Twenty questions are few. The bootstrap of lesson 08 draws twenty of them with replacement,
# again and again, and gives each mean an interval. (The *questions* are drawn anew. Whoever
# draws the samples of one question with replacement measures something else, and too low.)


# %%
def interval(values, draws=2000):
    """The mean of each column, and what 95% of the means of new rows lie between."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[picks].mean(1)  # (draws, columns)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0)
    return values.mean(0), low, high


# %%
fig, ax = plt.subplots(figsize=(7.5, 3.6))
colours = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.RED, figures.GREY)
for (name, values), colour in zip(results.items(), colours, strict=True):
    mean, low, high = interval(values)
    ax.plot(sizes, mean, "o-", label=name, color=colour)
    if name in ("vote", "oracle (pass@n)"):
        ax.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
ax.set(xscale="log", xlabel="samples n", ylabel="share right", ylim=(0, 1))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
for name, values in results.items():
    mean = values.mean(0)
    gain = interval(values[:, -1:] - values[:, :1])
    print(f"{name:21} n=1 {mean[0]:.2f}   n=24 {mean[-1]:.2f}", end="   ")
    print(f"gain {gain[0].item():+.2f} [{gain[1].item():+.2f}, {gain[2].item():+.2f}]")

# %% [markdown]
# What the figure and the numbers say, in our run (the bands are the intervals of the vote and of
# the oracle):
#
# - Vote, MBR and the likeliest of n gain between 0.23 and 0.28, with intervals well above 0. 20
#   questions cannot tell which of the three is best. They differ in what they cost: the
#   likeliest of 4 is where the vote is at 16.
# - Two votes are *worse* than one sample (0.33, not 0.42): where two disagree there is no
#   decision.
# - The oracle rises on: among 24 samples there is a right one for 85% of the questions, and the
#   vote finds 65%. A good judge could win what lies between.
# - Self-certainty as a judge *loses* 0.27 of 0.42.
#
# And where more samples do not help: the vote of 24 loses seven questions. For three of them
# (45 + 12, 33 + 9 and Australia) no sample is right, and no judge can help. For the four others
# one sample is right now and then, and the vote of 24 is wrong.
#
# ## 8. Drawing from pᵅ
#
# Best of n by log-probability ends at the likeliest text, and likelier need not be better
# (lessons 08 and 09). Between sampling and search lies the *power distribution*: draw whole
# texts, each in proportion to p(text)ᵅ. Is that not temperature 1/α?
#
# A toy that can be enumerated: the first token is A (0.6) or B (0.4). Behind A four tokens are
# equally likely, behind B there is one. **Predict** the probability of B at temperature ¼, and
# under p⁴.

# %% tags=["nbval-check-output"]
toy = {(0, k): 0.6 / 4 for k in range(4)} | {(1, 0): 0.4}  # text -> probability
alpha = 4
total = sum(p**alpha for p in toy.values())
power = {text: p**alpha / total for text, p in toy.items()}
a, b = 0.6**alpha / (0.6**alpha + 0.4**alpha), 0.4**alpha / (0.6**alpha + 0.4**alpha)
cold = {(0, k): a / 4 for k in range(4)} | {(1, 0): b}  # the four stay equally likely
print(f"B: sampling {toy[1, 0]:.2f}, temperature 1/4 {cold[1, 0]:.2f}", end=", ")
print(f"power 4 {power[1, 0]:.2f}")

# %% [markdown]
# A low temperature looks one token ahead: A is likelier than B, so it takes A even more often.
# The power distribution looks at whole texts: the one behind B has 0.4, none behind A more than
# 0.15.

# %% [markdown]
# ### Exercise 10.9 · `power_sample`
#
# difficulty ★★★ · importance ★★☆ · 25 min · our answer: 8 lines
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

    logprob(x): ln p(x); -inf for a text that cannot be. start has a probability above
    0. propose(x, generator): (y, ln q(y|x), ln q(x|y)). All random numbers come from
    the generator. logprob is called once for start and once for each proposal.
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
# On the toy, with fresh texts from p as proposals, 1,000 walks of 15 steps. If the walk does
# what it promises, its bars are those of p⁴:


# %%
def fresh(x, generator):
    """A new text, drawn from p, whatever x is."""
    place = torch.multinomial(torch.tensor([*toy.values()]), 1, generator=generator)
    y = [*toy][int(place)]
    return y, math.log(toy[y]), math.log(toy[x])


generator = torch.Generator().manual_seed(0)
walks = Counter(
    power_sample(lambda x: math.log(toy[x]), fresh, (0, 0), alpha, 15, generator)
    for _ in range(1000)
)
columns = {"p": toy, "temperature 1/4": cold, "p⁴, enumerated": power}
columns["p⁴, walks"] = {text: walks[text] / 1000 for text in toy}

# %%
fig, ax = plt.subplots(figsize=(7.5, 2.8))
for i, (name, column) in enumerate(columns.items()):
    ax.bar([k + 0.2 * i for k in range(5)], column.values(), 0.2, label=name)
ax.set_xticks([k + 0.3 for k in range(5)], ["A 0", "A 1", "A 2", "A 3", "B 0"])
ax.set(ylabel="probability", ylim=(0, 1))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# And with the model: our 24 samples of a question were drawn from p, so a random one of them is
# such a proposal. What does raising α do to the share of right answers?


# %%
def walk_over(samples, alpha, generator, steps=24):
    def logprob(x):
        return samples[x[0]].logprob

    def propose(x, generator):
        y = (int(torch.randint(N, (), generator=generator)),)
        return y, logprob(y), logprob(x)

    start = (int(torch.randint(N, (), generator=generator)),)
    x = power_sample(logprob, propose, start, alpha, steps, generator)
    return samples[x[0]].answer


generator = torch.Generator().manual_seed(0)
for alpha in (1.0, 2.0, 4.0):
    share = [
        sum(walk_over(drawn[q], alpha, generator) == right for _ in range(25)) / 25
        for _, q, right in questions
    ]
    print(f"alpha {alpha:.0f}: right {sum(share) / len(share):.2f}")

# %% [markdown]
# With α = 1 the walk accepts every proposal, and that is plain sampling. With α = 4 it is nearly
# as often right as the best of 24 by log-probability, and still a draw. (The walk sees 24 texts
# only. Karan and Du, 2025, draw a text again from a random place on instead, as the check does.)
#
# ## Questions
#
# 1. A question has the right answer with probability 0.3 and one wrong answer with 0.4. What do
#    pass@n and the vote tend to as n grows?
# 2. Why does `early_stop_vote` never stop early with a tie?
# 3. Best of n by log-probability with n → ∞: which decoder is that?
# 4. `power_sample` with `alpha=1`, and a proposal drawn from p: how often is it accepted?
#
# <details><summary>Answers</summary>
#
# 1. pass@n to 1, the vote to 0: it finds the likeliest answer, which is wrong.
# 2. With one answer left, one of those that tie may still get it.
# 3. Exact search for the likeliest text (lesson 09), with all that is wrong with it.
# 4. Always: the ratio is p(y)/p(x) · p(x)/p(y) = 1.
#
# </details>
#
# ## In the wild
#
# | | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | n samples | `n` | `num_return_sequences` | `n`, at most 16,384 | `n`, discouraged | `n_cmpl` or `n`, at most the slots |
# | what the model thought of them | `logprobs` | `output_logits` | `logprobs` | `return_logprob` | `n_probs` |
# | best of n | none | none | `best_of` in old versions | none | none |
#
# SGLang's documentation advises to send the prompt several times instead of `n`; its prefix cache
# (lesson 07) then shares the prefill. vLLM once had `best_of`: so many samples were drawn, and the
# top `n` of them returned. Current versions have no such parameter.
#
# ## To read
#
# - Chen et al.: *Evaluating Large Language Models Trained on Code*, 2021,
#   [arXiv:2107.03374](https://arxiv.org/abs/2107.03374). pass@k.
# - Wang et al.: *Self-Consistency Improves Chain of Thought Reasoning in Language Models*, ICLR
#   2023, [arXiv:2203.11171](https://arxiv.org/abs/2203.11171).
# - Aggarwal et al.: *Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and
#   Coding with LLMs*, EMNLP 2023,
#   [arXiv:2305.11860](https://arxiv.org/abs/2305.11860). When to stop a vote.
# - Kang, Zhao, Song: *Scalable Best-of-N Selection for Large Language Models via
#   Self-Certainty*, 2025, [arXiv:2502.18581](https://arxiv.org/abs/2502.18581).
# - Beirami et al.: *Theoretical guarantees on the best-of-n alignment policy*, 2024,
#   [arXiv:2401.01879](https://arxiv.org/abs/2401.01879). The bound.
# - Eikema, Aziz: *Is MAP Decoding All You Need?*, COLING 2020,
#   [arXiv:2005.10283](https://arxiv.org/abs/2005.10283). Why MBR.
# - Karan, Du: *Reasoning with Sampling: Your Base Model is Smarter Than You Think*, 2025,
#   [arXiv:2510.14901](https://arxiv.org/abs/2510.14901). Power sampling.
