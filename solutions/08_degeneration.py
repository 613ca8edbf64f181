# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Degeneration, and how to measure text
#
# **After this lesson you can say why likely text is bad text, prove it with numbers, and
# write every common penalty against repetition.**
#
# You write: `perplexity`, `rep_n`, `repetition_penalty`, `frequency_presence`,
# `no_repeat_ngram`, `dry`, `distinct_n`, `self_bleu` and `mauve_small`. About 180 minutes.
# Builds on lessons 04 to 07: filters, EOS and positions come along in the first cell.

# %% tags=["setup"]
import math
from collections import Counter

import torch

from course import carry
from course.kit.measures import Surprisal, clusters, human_texts

top_k_filter = carry("top_k_filter")
top_p_filter = carry("top_p_filter")
min_p_filter = carry("min_p_filter")
xtc_filter = carry("xtc_filter")
Mirostat = carry("Mirostat")
eos_token_ids = carry("eos_token_ids")
position_ids = carry("position_ids")

# %%
import matplotlib.pyplot as plt
from transformers import LogitsProcessorList

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()

# %% [markdown]
# ## 1. Likely is not good
#
# We need texts that people wrote. The course brings eight paragraphs by eight authors, from
# Adam Smith to Jane Austen (all are in the public domain). Of each we take the first 24
# tokens as the prompt, and the next 64 as what a person wrote after it.

# %%
PROMPT, NEW = 24, 64
rows = [tokenizer(text).input_ids[: PROMPT + NEW] for text in human_texts()]
human = torch.tensor(rows, device=model.device)  # (8, PROMPT + NEW)
prompts = human[:, :PROMPT]
print(human.shape, repr(tokenizer.decode(prompts[1])))

# %% [markdown]
# All decoders of this lesson go on from these prompts, for 64 tokens. Several *rules* (yours,
# later) share a batch, since one batch of 32 costs less than four of 8:


# %%
def written(rules, ids=prompts, new=NEW, watch=None, **options):
    """{name: the texts `ids`, continued under its rule}, all in one batch.

    A rule makes other logits of (ids, logits). At each step `watch` sees both first.
    """

    def each(ids, logits):
        if watch:
            watch(ids, logits)
        logits = logits.clone()
        logits[:, eos_token_ids(model)] = float("-inf")  # all are `new` tokens long
        ids, logits = ids.chunk(len(rules)), logits.chunk(len(rules))
        rows = zip(rules.values(), ids, logits, strict=True)
        return torch.cat([rule(i, x) for rule, i, x in rows])

    torch.manual_seed(0)
    batch = ids.repeat(len(rules), 1)
    out = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=new,
        pad_token_id=0,  # nothing is padded
        logits_processor=LogitsProcessorList([each]),
        **options,
    )
    return dict(zip(rules, out.chunk(len(rules)), strict=True))


# %% [markdown]
# **Predict.** Greedy decoding takes the likeliest token at each step. What does a text of
# nothing but likely tokens look like?


# %%
def plain(ids, logits):
    return logits


texts = {"human": human} | written({"greedy": plain}, do_sample=False)
for row in (1, 6):
    print(repr(tokenizer.decode(texts["greedy"][row])), "\n")

# %% [markdown]
# They circle (all eight repeat something, half of them a lot, as we shall measure). Holtzman
# et al. (2020) called this *degeneration*: the search for likely text finds text that nobody
# would write. To say so with numbers we need two: how likely is a text, and how much does it
# repeat?
#
# *Perplexity* is the exponential of the mean surprisal (lesson 06) of a text's tokens. A
# perplexity of 20 says: on average the model was as unsure as among 20 equally likely
# tokens.

# %% [markdown]
# ### Exercise 08.1 · `perplexity`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 12 lines
#
# Of each row: exp of the mean of -ln p over the tokens that count. A token counts if it
# stands at place `start` of its row or behind it (padding takes places, too), is no padding,
# and has a token before it that is no padding (nothing predicts the first token of a text).
# Each row has such tokens; what does not count changes nothing, even if its probability is 0.
# One call of the model, without gradients, with `attention_mask` and `position_ids`.
#
# By hand: a model gives the tokens of a row, from the second on, the probabilities 0.5,
# 0.25 and 0.5. The mean of -ln p is (0.69 + 1.39 + 0.69) / 3 = 0.92, the perplexity 2.52.
# With `start=2` only 0.25 and 0.5 count: 2.83.
#
# <details><summary>Hint 1</summary>The logits at place i predict the token at place i + 1:
# <code>logits[:, :-1]</code> belong to <code>ids[:, 1:]</code>.</details>
# <details><summary>Hint 2</summary><code>gather</code> the log-probabilities of
# <code>ids[:, 1:, None]</code> in the last dimension.</details>
# <details><summary>Hint 3</summary>What counts, in the same places:
# <code>mask[:, 1:] * mask[:, :-1]</code>, with 0 in the first <code>start - 1</code>
# places. <code>torch.where(counts > 0, surprisal, 0)</code>, not a product: 0 times infinity
# is nan. Then sum and divide row by row.</details>


# %% tags=["exercise"]
def perplexity(
    model, ids: torch.Tensor, mask: torch.Tensor, start: int = 1
) -> torch.Tensor:
    """The perplexity of each row's tokens from place `start` on.

    ids, mask: (batch, seq) int64, mask 0 on padding, on either side. start: 1 or more.
    Returns (batch,) float32. Raises ValueError if start is below 1.
    """
    ### BEGIN SOLUTION
    if start < 1:
        raise ValueError(
            f"nothing predicts the first token: start is {start}, not >= 1"
        )
    with torch.no_grad():
        logits = model(
            ids, attention_mask=mask, position_ids=position_ids(mask)
        ).logits.float()
    logits, ids = logits[:, :-1], ids[:, 1:]  # a place predicts the next one
    picked = logits.gather(-1, ids[..., None])[..., 0]
    surprisal = logits.logsumexp(-1) - picked  # (batch, seq - 1)
    counts = (mask[:, 1:] * mask[:, :-1]).bool()
    counts[:, : start - 1] = False
    total = torch.where(counts, surprisal, 0).sum(-1)  # (batch,)
    return (total / counts.sum(-1)).exp()
    ### END SOLUTION


# %% tags=["check"]
check(perplexity)

# %% [markdown]
# ### Exercise 08.2 · `rep_n`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 6 lines
#
# The share of n-grams that are repetitions: 1 - (different n-grams) / (all n-grams). A text
# shorter than n has none: 0. (A tensor is a `TypeError`: two tensors with the same number are
# different things for a `set`, so nothing would ever seem to repeat.)
#
# By hand: 1 2 1 2 1 has the 2-grams 12, 21, 12, 21. Two of four are different: 0.5.
#
# <details><summary>Hint 1</summary><code>tuple(ids[i : i + n])</code> for all places
# i, and a <code>set</code>.</details>


# %% tags=["exercise"]
def rep_n(ids: list[int], n: int) -> float:
    """The share of repeated n-grams in a text: 0 (none) to nearly 1.

    Raises ValueError if n is below 1, TypeError if ids is a tensor. Welleck et al.,
    2020 ("seq-rep-n").
    """
    ### BEGIN SOLUTION
    if isinstance(ids, torch.Tensor):
        raise TypeError("ids must be a list: ids.tolist() makes one of a tensor")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
    ### END SOLUTION


# %% tags=["check"]
check(rep_n)

# %% [markdown]
# Eight texts are few, so each number comes with an interval: the *bootstrap* draws eight of
# the eight with replacement, again and again, and looks how far the mean moves.


# %%
def interval(values, draws=2000):
    """The mean, and what 95% of the means of resampled values lie between."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[picks].mean(-1)
    return torch.stack([values.mean(), *means.quantile(torch.tensor([0.025, 0.975]))])


measured = {}


def measure(name, surprisal=None):
    """Of the new tokens, mean and interval: perplexity (geometric), and rep-4."""
    ids = texts[name]
    if surprisal is None:
        surprisal = perplexity(model, ids, torch.ones_like(ids), PROMPT).log()
    repeated = torch.tensor([rep_n(row[PROMPT:], 4) for row in ids.tolist()])
    found = interval(surprisal.cpu()).exp().tolist(), interval(repeated).tolist()
    measured[name] = found


def report(name):
    (p, p_low, p_high), (r, r_low, r_high) = measured[name]
    print(f"{name:16} perplexity {p:5.1f} [{p_low:4.1f}, {p_high:5.1f}]", end="   ")
    print(f"rep-4 {r:4.2f} [{r_low:4.2f}, {r_high:4.2f}]")


# %% [markdown]
# **Predict** the order of the four perplexities: a person, greedy, beam search (which looks
# for the likeliest *text*, lesson 09), and plain sampling. Who is nearest to the person?

# %%
texts |= written({"beam 4": plain}, num_beams=4, do_sample=False)
again = written({"sampling": plain, "sampling again": plain}, do_sample=True, top_k=0)
texts["sampling"] = again["sampling"]  # section 6 compares the two
for name in texts:
    measure(name)
    report(name)
each = [f"{rep_n(row[PROMPT:], 4):.2f}" for row in texts["greedy"].tolist()]
print("rep-4 of each greedy text:", *each)

# %% [markdown]
# That is the finding of Holtzman et al., with a model and texts of our own: what people
# write is *not* the likeliest text. Search finds text with less than a tenth of its
# perplexity, which repeats itself. Plain sampling has the perplexity of a person and seldom
# repeats. Is it good text, then?

# %%
print(repr(tokenizer.decode(texts["sampling"][1])))

# %% [markdown]
# Each token is a risk (the tail of lesson 04), and 64 risks do not go well: a number near the
# human one does not make a good text.
#
# ## 2. Why it does not stop
#
# A model has learned that what was said again and again will be said once more. We give it
# one sentence, 20 times.

# %%
sentence = tokenizer(" The old clock in the hall had stopped.").input_ids
COPIES = 20
ids = torch.tensor([sentence * COPIES], device=model.device)
with torch.no_grad():
    logprobs = model(ids).logits.float().log_softmax(-1)[:, :-1]
p = logprobs.gather(-1, ids[:, 1:, None])[0, :, 0].exp().cpu()
p = torch.cat([torch.ones(1), p]).view(COPIES, -1)  # (copy, token of the sentence)
fig, ax = plt.subplots(figsize=(5, 2.6))
ax.plot(range(1, COPIES + 1), p[:, 1:].mean(-1), "o-")  # without first words
ax.set(xlabel="copy of the sentence", ylabel="mean probability", ylim=(0, 1.05))
ax.set_xticks(range(2, COPIES + 1, 2))
plt.show()

# %% [markdown]
# Each copy makes the next one likelier (Xu et al., 2022, call it *self-reinforcement*).
# Does sampling get out? The probability that it says the whole sentence once more is the
# product over its tokens:

# %%
for copy in (2, 3, 5, 10, 20):
    print(f"after {copy - 1:2} copies: {p[copy - 1].prod():.3f}")

# %% [markdown]
# Once a text has said something often enough, even sampling mostly goes on with it. Greedy
# decoding cannot get out at all as soon as each token of it is the likeliest.
#
# ## 3. Penalties
#
# The oldest cure: make tokens that are there already less likely. *CTRL* (Keskar et al.,
# 2019) divides their logits by a number above 1, say 1.2.
#
# **Predict:** a token that is there has the logit -2. What does the division do to it?

# %% tags=["nbval-check-output"]
logits = torch.tensor([3.0, -2.0, 0.0])
print("before ", [f"{p:.3f}" for p in logits.softmax(-1).tolist()])
print("divided", [f"{p:.3f}" for p in (logits / torch.tensor([1, 1.2, 1])).softmax(-1)])

# %% [markdown]
# The second token became *likelier*: -1.67 is more than -2. The formula in the paper has
# this flaw; all programs multiply where the logit is negative.

# %% [markdown]
# ### Exercise 08.3 · `repetition_penalty`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 6 lines
#
# For each token that is in its row's `ids`: a positive logit is divided by the penalty, a
# negative one multiplied. Once, however often the token is there. (`ids` has no padding here;
# a padding token would be punished, too. So in the next exercises.)
#
# By hand: logits 2, -2, 1, ids 0, 1, 0 and a penalty of 2 give 1, -4, 1.
#
# <details><summary>Hint 1</summary><code>gather</code> the logits of the ids, change them,
# <code>scatter</code> them back: for a token that is there twice it writes the same value
# twice.</details>


# %% tags=["exercise"]
def repetition_penalty(
    logits: torch.Tensor, ids: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Make the tokens of `ids` less likely: divide or multiply their logits.

    logits: (batch, vocab) float. ids: (batch, seq) int64, the text with its prompt.
    penalty: above 0; 1 is off, below 1 rewards. Returns a new tensor, same dtype.
    Raises ValueError for penalty 0 or less. Keskar et al., 2019, with the sign mended.
    """
    ### BEGIN SOLUTION
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    seen = logits.gather(-1, ids)  # (batch, seq)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(-1, ids, seen)
    ### END SOLUTION


# %% tags=["check"]
check(repetition_penalty)

# %% [markdown]
# It has another flaw. A softmax does not care if all logits are 5 higher. **Predict:** does
# the penalty?

# %% tags=["nbval-check-output"]
logits, ids = torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([[0]])
for penalty, shift in ((1.0, 0), (1.2, 0), (1.2, 5)):
    p = repetition_penalty(logits + shift, ids, penalty).softmax(-1)
    print(f"penalty {penalty}, shift {shift}:", [f"{x:.3f}" for x in p[0].tolist()])

# %% [markdown]
# So "1.2" means something different for each model, and even for each step. OpenAI's two
# penalties are *subtracted*, which a shift leaves alone: one for each time that a token was
# there (frequency), one for having been there at all (presence). They count the *generated*
# tokens, not the prompt.

# %% [markdown]
# ### Exercise 08.4 · `frequency_presence`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 5 lines
#
# Subtract `frequency` times the count of a token in its row's `ids`, and `presence` if it is
# there at all.
#
# By hand: logits 0, 0, 0, ids 0, 1, 0, frequency 0.5, presence 0.25 give -1.25, -0.75, 0.
#
# <details><summary>Hint 1</summary><code>zeros.scatter_add(-1, ids, ones)</code> counts:
# with zeros of the shape of logits and ones of the shape of ids, both float32, since
# bfloat16 cannot count beyond 256. (<code>scatter</code> alone would write a 1, however often
# a token is there.)</details>


# %% tags=["exercise"]
def frequency_presence(
    logits: torch.Tensor, ids: torch.Tensor, frequency: float, presence: float
) -> torch.Tensor:
    """Subtract frequency * count + presence * (count > 0) from each logit.

    logits: (batch, vocab) float. ids: (batch, seq) int64, generated tokens only; seq
    may be 0. Negative penalties reward. Returns a new tensor of the same dtype.
    OpenAI's API reference.
    """
    ### BEGIN SOLUTION
    counts = torch.zeros_like(logits, dtype=torch.float32)
    ones = torch.ones_like(ids, dtype=torch.float32)
    counts = counts.scatter_add(-1, ids, ones)  # (batch, vocab)
    penalties = frequency * counts + presence * (counts > 0)
    return (logits - penalties).to(logits.dtype)
    ### END SOLUTION


# %% tags=["check"]
check(frequency_presence)

# %% [markdown]
# Both punish single tokens, "the" and the comma, too. What annoys is a repeated *phrase*.
# The hard cure forbids that any n-gram occurs twice.

# %% [markdown]
# ### Exercise 08.5 · `no_repeat_ngram`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 10 lines
#
# Set to -inf what would complete an n-gram that is in `ids` already.
#
# By hand: ids 5 6 7 5 6 and n = 3. The last two tokens are 5 6; they were there before, with
# a 7 behind them: 7 is forbidden. In 5 5 with n = 2 it is 5: the two 5 5 may overlap. With
# n = 1 every token of the text is forbidden.
#
# <details><summary>Hint 1</summary>Row by row, the last <code>n - 1</code> tokens are the
# beginning: <code>begin = row[len(row) - n + 1 :]</code>. (<code>row[-(n - 1) :]</code> is
# the whole row for n = 1.)</details>
# <details><summary>Hint 2</summary>For each place i from 0 to <code>len(row) - n</code>: if
# <code>row[i : i + n - 1] == begin</code>, then <code>row[i + n - 1]</code> is
# forbidden.</details>


# %% tags=["exercise"]
def no_repeat_ngram(logits: torch.Tensor, ids: torch.Tensor, n: int) -> torch.Tensor:
    """Forbid tokens that would complete an n-gram of `ids`.

    logits: (batch, vocab) float. ids: (batch, seq) int64, the text with its prompt.
    Returns a new tensor. Raises ValueError if n is below 1. Paulus et al., 2018.
    """
    ### BEGIN SOLUTION
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        begin = text[len(text) - n + 1 :]
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == begin:
                logits[row, text[i + n - 1]] = float("-inf")
    return logits
    ### END SOLUTION


# %% tags=["check"]
check(no_repeat_ngram)

# %% [markdown]
# A ban does not ask what it forbids: with n = 3, "New York City" may occur once. *DRY*
# ("don't repeat yourself") is the soft version: the longer the repetition that a token would
# go on with, the more it costs, and it grows exponentially.

# %% [markdown]
# ### Exercise 08.6 · `dry`
#
# difficulty ★★★ · importance ★★☆ · 25 min · our answer: 20 lines
#
# For each token t: the *match* is the length of the longest end of `ids` that occurs earlier
# with t behind it. If it is `allowed_length` or more (with t the repetition is one token
# longer), subtract `multiplier * base ** (match - allowed_length)`. The exponent is at most 88 /
# ln(base), so that the power fits in float32 (e⁸⁸ does, e⁸⁹ does not). A multiplier of 0 is
# off.
#
# By hand: ids 1 2 3 1 2. The end "1 2" occurs earlier with a 3 behind it: the match of 3 is
# 2. With `multiplier=1`, `base=2` and `allowed_length=1` its logit falls by 2. In 7 7 7 7 the
# match of 7 is 3: the two places may overlap.
#
# <details><summary>Hint 1</summary>For each earlier place i: walk back from i and from the
# end together while the tokens are equal. The number of steps is the match of the token at
# i + 1.</details>
# <details><summary>Hint 2</summary>Keep the longest match of each token in a dict; subtract
# afterwards.</details>
# <details><summary>Hint 3</summary>The walk: <code>while length <= i and text[i - length]
# == text[-1 - length]: length += 1</code></details>


# %% tags=["exercise"]
def dry(
    logits: torch.Tensor,
    ids: torch.Tensor,
    multiplier: float,
    base: float,
    allowed_length: int,
) -> torch.Tensor:
    """Subtract multiplier * base ** (match - allowed_length) from what would repeat.

    logits: (batch, vocab) float. ids: (batch, seq) int64, the text with its prompt.
    multiplier: 0 or more; 0 is off. base: 1 or more. allowed_length: 1 or more.
    Returns a new tensor. Raises ValueError for other values, also if it is off.
    p-e-w, 2024 (text-generation-webui, pull request 5677), without sequence breakers.
    """
    ### BEGIN SOLUTION
    if multiplier < 0 or base < 1 or allowed_length < 1:
        raise ValueError(
            "multiplier must be >= 0, base >= 1 and allowed_length >= 1, "
            f"got {multiplier}, {base}, {allowed_length}"
        )
    logits = logits.clone()
    if multiplier == 0:
        return logits
    most = 88 / math.log(base) if base > 1 else 0
    for row, text in enumerate(ids.tolist()):
        # 1. The longest match of each token
        longest = {}
        for i in range(len(text) - 1):
            length = 0
            while length <= i and text[i - length] == text[-1 - length]:
                length += 1
            token = text[i + 1]
            longest[token] = max(length, longest.get(token, 0))
        # 2. What it costs
        for token, length in longest.items():
            if length >= allowed_length:
                exponent = min(length - allowed_length, most)
                logits[row, token] -= multiplier * base**exponent
    return logits
    ### END SOLUTION


# %% tags=["check"]
check(dry)

# %% [markdown]
# Without the cap, a match of 1,300 tokens would be an `OverflowError` in Python, and one of 160
# infinite in float32. llama.cpp caps at 88.72 / ln(base), KoboldCpp, too. They also have
# *sequence breakers* (question 3).
#
# `generate` knows the first and the third of the four. It takes the other two as functions
# of `(ids, logits)`, and yours are that already. The logits that a text is written from say
# how likely each of its tokens is, so its perplexity can be had on the way, without another
# look of the model: `Surprisal` notes -ln p at each step. It is the same number:


# %%
def write_and_measure(rules, **options):
    """As `written`, into `texts`; the perplexities are noted on the way."""
    watch = Surprisal()
    made = written(rules, watch=watch, **options)
    noted = watch.of(torch.cat(list(made.values()))).mean(-1).chunk(len(rules))
    texts.update(made)
    for name, surprisal in zip(rules, noted, strict=True):
        measure(name, surprisal)


penalties = {
    "repetition 1.2": lambda ids, x: repetition_penalty(x, ids, 1.2),
    "frequency 0.7": lambda ids, x: frequency_presence(x, ids[:, PROMPT:], 0.7, 0),
    "no 4-gram twice": lambda ids, x: no_repeat_ngram(x, ids, 4),
    "DRY 0.8": lambda ids, x: dry(x, ids, 0.8, 1.75, 2),
}
write_and_measure(penalties, do_sample=False)
for name in ("human", "greedy", *penalties):
    report(name)
(on_the_way, _, _), _ = measured["DRY 0.8"]
measure("DRY 0.8")  # again, with your function
(yours, _, _), _ = measured["DRY 0.8"]
print(f"DRY 0.8: {on_the_way:.4f} on the way, {yours:.4f} with your perplexity")

# %% [markdown]
# All four are greedy, and on average all repeat less. Three of them leave the perplexity near
# that of greedy text. The ban and DRY act only where something is about to be repeated, and a
# frequency penalty of 0.7 is little. How much is a repetition penalty of 1.2?

# %%
with torch.no_grad():
    best = model(prompts).logits[:, -1].amax(-1)
low, high = best.min(), best.max()
print(
    f"the likeliest tokens after the prompts have logits from {low:.0f} to {high:.0f}"
)
print(f"1.2 takes {low - low / 1.2:.1f} to {high - high / 1.2:.1f} from such a logit")

# %% [markdown]
# That is much more than 0.7, and it hits every word of the prompt and of the text: it drives
# the text elsewhere. Two to read, one that still says the same thing twice and one that drifts:

# %%
for name in ("DRY 0.8", "repetition 1.2"):
    print(f"{name}: {tokenizer.decode(texts[name][1, PROMPT:])!r}\n")

# %% [markdown]
# ## 4. Decoders on one plane
#
# **Predict** where min-p, top-p and top-k will lie between greedy and sampling.

# %%
mirostat = Mirostat(3.0)


def nothing_but(token, logits):
    """Logits that leave only `token` (batch, 1): a rule for what picks by itself."""
    return torch.full_like(logits, float("-inf")).scatter(-1, token, 0)


filters = {
    "T 0.7": lambda ids, x: x / 0.7,
    "top-k 40": lambda ids, x: top_k_filter(x, 40),
    "top-p 0.95": lambda ids, x: top_p_filter(x, 0.95),
    "min-p 0.1": lambda ids, x: min_p_filter(x, 0.1),
    "XTC 0.1, 0.5": lambda ids, x: xtc_filter(top_p_filter(x, 0.95), 0.1, 0.5),
    "Mirostat 3": lambda ids, x: nothing_but(mirostat.pick(x), x),
    "T 1.5": lambda ids, x: x / 1.5,
}
write_and_measure(filters, do_sample=True, top_k=0)
nonsense = texts.pop("T 1.5")  # for section 6

# %%
kinds = {"human": figures.BLACK, "greedy": figures.RED, "beam 4": figures.RED}
kinds |= dict.fromkeys(penalties, figures.GREEN)
crowded = ("repetition 1.2", "DRY 0.8", "min-p 0.1", "XTC 0.1, 0.5")
fig, ax = plt.subplots(figsize=(7.5, 4.2))
for number, name in enumerate(texts, 1):
    (x, *x_range), (y, *y_range) = measured[name]
    colour = kinds.get(name, figures.BLUE)
    ax.plot(x_range, [y, y], color=colour, alpha=0.25)
    ax.plot([x, x], y_range, color=colour, alpha=0.25)
    ax.plot(x, y, "o", color=colour, label=f"{number}  {name}")
    place = (4, 4 if number % 2 else -12)  # or the numbers of neighbours would overlap
    place = (-14, place[1]) if name in crowded else place
    ax.annotate(number, (x, y), xytext=place, textcoords="offset points")
ax.set(xscale="log", xlabel="perplexity", ylabel="rep-4", ylim=(-0.03, None))
ax.set_xticks([2, 4, 8, 16, 32], [2, 4, 8, 16, 32])
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Lines are 95% intervals. Orange searches, blue samples, green is greedy with a penalty. From
# left to right: min-p, top-k, top-p, sampling. XTC (no. 13), which removes likely tokens, lies
# to the right of top-p 0.95, on which it works here. (No. 14 aims at 2³ = 8, and comes close.)
# One more line in `filters` puts another filter of lesson 06 there.
#
# Two things are worth remembering. A person is far to the right of all search. And perplexity
# is a dial: a sampler can be set to anything between greedy decoding and plain sampling, so a
# comparison of two samplers at one setting each says little (see Schaeffer et al. in lesson
# 06).
#
# ## 5. Many texts: are they different?
#
# A decoder may write good single texts and always the same one. *Distinct-n* looks at all
# texts together.

# %% [markdown]
# ### Exercise 08.7 · `distinct_n`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 8 lines
#
# The number of different n-grams of words in all texts, divided by the number of all
# n-grams. Words are what `split()` gives. No n-gram reaches from one text into the next.
#
# By hand: "a b" and "a b c" have the 2-grams ab, ab, bc: 2/3.
#
# <details><summary>Hint 1</summary>One list of n-grams for all texts, filled text by
# text.</details>


# %% tags=["exercise"]
def distinct_n(texts: list[str], n: int) -> float:
    """The share of different n-grams of words among all: 0 to 1; 0 if there is none.

    Raises ValueError if n is below 1, TypeError if texts is one string. After Li et
    al., 2016, who divide by the number of words.
    """
    ### BEGIN SOLUTION
    if isinstance(texts, str):
        raise TypeError("texts must be a list: [text] makes one of a string")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    grams = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
    ### END SOLUTION


# %% tags=["check"]
check(distinct_n)

# %% [markdown]
# *Self-BLEU* asks how well each text is covered by the others. BLEU comes from translation
# (Papineni et al., 2002) and compares a text with references: of its n-grams, how many are
# in a reference?

# %% [markdown]
# ### Exercise 08.8 · `self_bleu`
#
# difficulty ★★★ · importance ★★☆ · 30 min · our answer: 24 lines
#
# The mean BLEU of each text with all others as its references. Words are what `split()`
# gives. BLEU of one text:
#
# 1. for n = 1, 2, 3, 4 the precision: matched n-grams / all n-grams of the text. An n-gram
#    that the text has c times matches at most as often as the *one* reference that has it
#    most often;
# 2. the geometric mean of the four; 0 if one of them is 0 or the text has fewer than 4 words;
# 3. times the brevity penalty exp(1 - r / c) if the text is shorter (c words) than the
#    reference nearest in length (r words; of two equally near the shorter one).
#
# By hand: "a b c d" twice: 1. "a a a a b" against "a a b c d": of the five words "a" matches
# twice and "b" once, so the first precision is 3/5.
#
# <details><summary>Hint 1</summary><code>Counter(ngrams)</code> counts;
# <code>a | b</code> of two Counters takes the larger count, <code>a & b</code> the smaller
# one.</details>
# <details><summary>Hint 2</summary>The most that any reference has: the union
# <code>|</code> over the references. The matches: <code>(mine & most).total()</code>, or
# <code>sum((mine & most).values())</code>.</details>
# <details><summary>Hint 3</summary>The nearest length:
# <code>min(lengths, key=lambda r: (abs(r - c), r))</code>.</details>


# %% tags=["exercise"]
def self_bleu(texts: list[str]) -> float:
    """The mean BLEU-4 of each text against all others: 0 (different) to 1 (the same).

    No smoothing. Raises ValueError for fewer than two texts, TypeError if texts is one
    string. Zhu et al., 2018, whose program Texygen smooths (a precision of 0 counts as
    a little more).
    """
    ### BEGIN SOLUTION
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, not one string")
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got {len(texts)}")

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def bleu(words, references):
        # 1. Precisions, as their product
        product = 1.0
        for n in (1, 2, 3, 4):
            mine, most = grams(words, n), Counter()
            for reference in references:
                most |= grams(reference, n)
            product *= sum((mine & most).values()) / max(1, sum(mine.values()))
        # 2. The brevity penalty
        c, lengths = len(words), [len(reference) for reference in references]
        r = min(lengths, key=lambda length: (abs(length - c), length))
        brevity = math.exp(1 - r / c) if 0 < c < r else 1.0
        return brevity * product**0.25

    rows = [text.split() for text in texts]
    scores = [bleu(row, rows[:i] + rows[i + 1 :]) for i, row in enumerate(rows)]
    return sum(scores) / len(scores)
    ### END SOLUTION


# %% tags=["check"]
check(self_bleu)

# %% [markdown]
# Eight continuations of one prompt. **Predict:** at which setting are they most alike?

# %%
story = tokenizer("Once upon a time there was a", return_tensors="pt").to(model.device)
eights = {
    "temperature 0.3": lambda ids, x: x / 0.3,
    "temperature 1.0": plain,
    "top-p 0.9": lambda ids, x: top_p_filter(x, 0.9),
}
eight = story.input_ids.repeat(8, 1)
for name, out in written(eights, eight, 24, do_sample=True, top_k=0).items():
    new = tokenizer.batch_decode(out[:, eight.shape[1] :])
    print(f"{name:15}  distinct-2 {distinct_n(new, 2):.2f}", end="  ")
    print(f"self-BLEU {self_bleu(new):.2f}")

# %% [markdown]
# At the low temperature: there a 2-gram in four is not new, and the others cover some of each
# text. Different texts have a high distinct-n and a low self-BLEU. (Without smoothing one
# missing 4-gram makes the BLEU of a short text 0.) Different is not good, of course: a high
# temperature wins both.
#
# ## 6. Like people, as a whole?
#
# All measures so far look at one property. *MAUVE* (Pillutla et al., 2021) compares two
# *sets* of texts as distributions. Each text becomes a vector of features from a model; the
# vectors of both sets are clustered together; then there are two histograms over clusters, P
# and Q. How alike are they?
#
# Mix them, R = λP + (1 - λ)Q, for all λ from 0 to 1. KL(Q|R) says what Q has that the mixture
# lacks, KL(P|R) what P has. The points exp(-5 KL(Q|R)), exp(-5 KL(P|R)) form a curve, which is
# led to the axes by (1, 0) before its first point and (0, 1) behind its last. MAUVE is the area
# under it: 1 for equal histograms, near 0 for disjoint ones.

# %% [markdown]
# ### Exercise 08.9 · `mauve_small`
#
# difficulty ★★★ · importance ★☆☆ · 25 min · our answer: 17 lines
#
# 1. `clusters(features, k)` takes both sets one behind the other, (n + m, d), and returns the
#    cluster of each, (n + m,), from 0 to k - 1. k is a tenth of the size of the smaller set,
#    rounded (2.5 may become 2 or 3), but at least 2.
# 2. P and Q: the shares of each set's features in each cluster.
# 3. (1, 0), the points of the curve for 101 values of λ from 0 to 1, and (0, 1).
# 4. The area, by trapezoids.
#
# KL(A|B) is the sum of a · ln(a / b) over clusters with a > 0; infinite where b is 0 then.
#
# By hand: disjoint sets have KL(Q|R) = -ln(1 - λ) and KL(P|R) = -ln λ, so the curve is x =
# (1 - λ)⁵, y = λ⁵. The area under it is 1/252.
#
# <details><summary>Hint 1</summary><code>torch.bincount(labels, minlength=k)</code> is a
# histogram. Take float64.</details>
# <details><summary>Hint 2</summary><code>torch.where(a > 0, a * (a / b).log(), 0).sum()</code>
# is KL, and gives inf by itself where b is 0.</details>
# <details><summary>Hint 3</summary>As λ grows, x falls: <code>-torch.trapezoid(y,
# x).item()</code> is the area, without any sorting.</details>


# %% tags=["exercise"]
def mauve_small(p_features: torch.Tensor, q_features: torch.Tensor) -> float:
    """How alike two sets of features are distributed: 0 to 1.

    p_features: (n, d) float. q_features: (m, d) float.
    Pillutla et al., 2021, with c = 5 and 101 mixtures.
    """
    ### BEGIN SOLUTION
    # 1. Clusters of both sets together
    n, m = len(p_features), len(q_features)
    k = max(2, round(min(n, m) / 10))
    labels = clusters(torch.cat([p_features, q_features]), k).cpu()
    # 2. A histogram for each
    p = torch.bincount(labels[:n], minlength=k).double() / n
    q = torch.bincount(labels[n:], minlength=k).double() / m
    # 3. The curve

    def kl(a, b):
        return torch.where(a > 0, a * (a / b).log(), 0).sum(-1)

    weight = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    mixed = weight * p + (1 - weight) * q  # (101, k)
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    x = torch.cat([one, torch.exp(-5 * kl(q, mixed)), zero])
    y = torch.cat([zero, torch.exp(-5 * kl(p, mixed)), one])
    # 4. The area
    return -torch.trapezoid(y, x).item()
    ### END SOLUTION


# %% tags=["check"]
check(mauve_small)


# %% [markdown]
# The features here: the mean of the model's last hidden states over windows of 8 tokens, so
# 64 for each decoder. How much of a value is chance? We have 16 texts of plain sampling. Eight
# of them against the other eight is the same decoder twice. And for comparison a temperature
# that makes nonsense.
#
# **Predict:** will greedy text or sampled text be more like people's?


# %%
def features(ids):
    """(batch * 8, hidden): means of the last hidden states over windows of tokens."""
    with torch.no_grad():
        states = model.base_model(ids).last_hidden_state[:, PROMPT:]
    return states.float().unflatten(1, (-1, 8)).mean(2).flatten(0, 1)


samples = features(torch.cat(list(again.values()))).unflatten(0, (16, 8))
for seed in range(4):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    halves = samples[order].flatten(0, 1).chunk(2)
    print(f"sampling, and sampling  {mauve_small(*halves):.2f}")
people = features(human)
compared = {"sampling": samples[:8].flatten(0, 1)}
compared |= {name: features(texts[name]) for name in ("top-p 0.95", "greedy")}
compared["T 1.5"] = features(nonsense)
for name, found in compared.items():
    print(f"human, {name:13} {mauve_small(people, found):.2f}")

# %% [markdown]
# The same decoder, against itself, gets anything from 0.4 to 0.8: so much is chance with 64
# features. Only the nonsense is far away for certain. Whether people and machine differ cannot
# be told from these numbers, and not even greedy text from sampled text, which perplexity and
# rep-4 tell apart at once. The paper takes 5,000 texts a side; a number from a hundred is worth
# as much as these.
#
# ## Questions
#
# 1. A model's perplexity of its own greedy text is 3, of human text 33. Is it a better model
#    of its own text?
# 2. Why does `repetition_penalty` count the prompt in most programs, and when is that wrong?
# 3. A chat template puts the same tokens around each message. What does DRY make of it, and
#    what are its "sequence breakers" for?
#
# <details><summary>Answers</summary>
#
# 1. No: it means that greedy text is easy to predict for the model that wrote it. To rank
#    models, compare their perplexities of the same text. With one model it says how surprising
#    a text is, not how good.
# 2. Since it was made for continuing a text. It is wrong where the answer must quote the
#    prompt: translation of names, summaries, code.
# 3. It would punish the template's own tokens. A breaker ends every match: by default a line
#    end, a colon, a quotation mark and an asterisk. Here the template's tokens should be
#    breakers, too.
#
# </details>
#
# ## In the wild
#
# | rule | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | repetition | none | `repetition_penalty` | `repetition_penalty` | `repetition_penalty` | `--repeat-penalty` |
# | it counts | – | prompt and answer, if not told otherwise | prompt and answer | the answer | the last `--repeat-last-n` tokens |
# | frequency, presence | `frequency_penalty` `presence_penalty` | none | the same names | the same names | `--frequency-penalty` `--presence-penalty` |
# | no n-gram twice | none | `no_repeat_ngram_size` | none | none | none |
# | DRY | none | none | none yet ([proposed](https://github.com/vllm-project/vllm/pull/50584)) | none | `--dry-multiplier` (base 1.75, allowed length 2) |
#
# OpenAI, vLLM and SGLang count the tokens of the answer for frequency and presence; llama.cpp
# counts the last `--repeat-last-n` tokens, 64 if you say nothing, prompt included.
#
# ## To read
#
# - Holtzman et al.: *The Curious Case of Neural Text Degeneration*, ICLR 2020,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751).
# - Keskar et al.: *CTRL*, 2019, [arXiv:1909.05858](https://arxiv.org/abs/1909.05858).
# - Paulus, Xiong, Socher: *A Deep Reinforced Model for Abstractive Summarization*, ICLR 2018,
#   [arXiv:1705.04304](https://arxiv.org/abs/1705.04304).
# - Welleck et al.: *Neural Text Generation with Unlikelihood Training*, ICLR 2020,
#   [arXiv:1908.04319](https://arxiv.org/abs/1908.04319).
# - Xu et al.: *Learning to Break the Loop*, NeurIPS 2022,
#   [arXiv:2206.02369](https://arxiv.org/abs/2206.02369).
# - Li et al.: *A Diversity-Promoting Objective Function for Neural Conversation Models*,
#   NAACL 2016, [arXiv:1510.03055](https://arxiv.org/abs/1510.03055). Distinct-n.
# - Zhu et al.: *Texygen*, SIGIR 2018, [arXiv:1802.01886](https://arxiv.org/abs/1802.01886).
#   Self-BLEU.
# - Pillutla et al.: *MAUVE*, NeurIPS 2021,
#   [arXiv:2102.01454](https://arxiv.org/abs/2102.01454).
