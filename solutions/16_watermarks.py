# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16 · Watermarks
#
# **After this lesson you can mark generated text in three ways, find the mark with a number
# that means something, and say what the number does not mean.**
#
# You write: `green_ids`, `Watermark`, `z_score`, `detect`, `p_value`, `gumbel_pick`,
# `gumbel_score` and `tournament`. About 150 minutes. Builds on lesson 03: its exponential race
# comes along in the first cell.

# %% tags=["setup"]
import hashlib
import math
from collections import Counter

import torch
from transformers import LogitsProcessor

from course import carry

multinomial_from_scratch = carry("multinomial_from_scratch")


def seed_of(key: int, context: list[int]) -> int:
    """A seed for torch that depends on the key and on all ids of the context."""
    text = f"{key}: {' '.join(str(i) for i in context)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# %%
import matplotlib.pyplot as plt
from transformers import (
    LogitsProcessorList,
    WatermarkDetector,
    WatermarkingConfig,
)

from course import check
from course.kit import figures
from course.kit.measures import Surprisal, human_texts
from tiny_models import load

model, tokenizer = load()
VOCAB = model.config.vocab_size

# %% [markdown]
# ## 1. A secret list
#
# A *watermark* in a text is a pattern in the choice of its tokens. Readers do not see it. Whoever
# has the *key* can compute how well a text fits the pattern, without the model.
#
# Why now? Article 50(2) of the EU's AI Act (Regulation 2024/1689) asks providers of generative
# systems to mark what they generate in a machine-readable format, so that it can be detected.
# Secondary sources (we have not read the official journal) say that it applies since 2 August
# 2026, and from 2 December 2026 to systems that were on the market before. Watermarks are one
# way to do it. This is a lesson on how they work, not on what the law asks of you.
#
# The first watermark is a list (Kirchenbauer et al., 2023; "KGW" in papers). At each step a
# share γ of the vocabulary is *green*, the rest is red. Which tokens are green depends on the key
# and on the token before: both seed a random number generator, which shuffles the vocabulary.

# %% [markdown]
# ### Exercise 16.1 · `green_ids`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 5 lines
#
# The green ids behind a token, as `transformers` computes them with its "left hash": the seed is
# the key times the previous id, modulo 2⁶⁴ - 1; a generator with that seed shuffles the
# vocabulary (`torch.randperm`); the first `int(vocab_size * gamma)` of the shuffled ids are
# green.
#
# By hand: key 7, previous id 3: the seed is 21. Of 10 ids, with `gamma=0.25`, 2 are green: the
# first two of `torch.randperm(10)` from a generator with seed 21, which are 3 and 7.
#
# Use a generator of your own, on the CPU: nothing else may draw from it, and it may not draw
# from the global one.
#
# <details><summary>Hint 1</summary><code>torch.Generator().manual_seed(seed)</code> makes a
# generator and seeds it, and <code>torch.randperm</code> takes a
# <code>generator</code>.</details>
# <details><summary>Hint 2</summary>Python's integers do not overflow, so the product and its
# remainder are exact. <code>int()</code> rounds towards 0.</details>


# %% tags=["exercise"]
def green_ids(
    previous_id: int, key: int, vocab_size: int, gamma: float
) -> torch.Tensor:
    """The ids that are green behind previous_id, as transformers' left hash has them.

    Returns (int(vocab_size * gamma),) int64 on the CPU, in the order of the shuffle.
    Leaves the global generator alone. Raises ValueError unless 0 < gamma < 1.
    """
    ### BEGIN SOLUTION
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
    seed = key * previous_id % (2**64 - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * gamma)]
    ### END SOLUTION


# %% tags=["check"]
check(green_ids)

# %% [markdown]
# What may come behind "Once upon a time there was a"? The five likeliest tokens, under two keys.
# **Predict:** how many of five are green if γ is ¼? And does "the same token" mean "the same
# colour" behind another word?

# %%
KEY, GAMMA = 15485863, 0.25  # the defaults of transformers


def colours(text, key, best=5):
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    with torch.no_grad():
        top = model(ids).logits[0, -1].topk(best).indices.tolist()
    green = set(green_ids(ids[0, -1].item(), key, VOCAB, GAMMA).tolist())
    words = [figures.token_label(tokenizer, i) for i in top]
    return "  ".join(
        w.upper() if i in green else w for i, w in zip(top, words, strict=True)
    )


for text in ("Once upon a time there was a", "The king had a very"):
    for key in (KEY, 99):
        print(f"{text:29} key {key:8}: {colours(text, key)}")

# %% [markdown]
# (Green ones in capitals.) On average one of four, and each pair of key and previous token has
# a list of its own.
#
# How secret is the key? torch's generator on the CPU takes a seed of 64 bits, and uses 32 of
# them:

# %% tags=["nbval-check-output"]
same = torch.equal(
    green_ids(1000, KEY, VOCAB, GAMMA), green_ids(1000, KEY + 2**32, VOCAB, GAMMA)
)
print("two keys that are 2**32 apart make the same list:", same)
zero = torch.equal(green_ids(0, KEY, VOCAB, GAMMA), green_ids(0, 99, VOCAB, GAMMA))
print("behind token 0 every key makes the same list:", zero)

# %% [markdown]
# So there are at most 2³² different keys, few enough to try them all. (And `transformers` has the
# default key in its documentation.) Real systems use a cryptographic hash; we shall, too, in
# section 6.
#
# And the device matters. `transformers` makes its generator on the model's device. A generator
# on a GPU is another algorithm and makes other lists from the same seed: a text that was written
# on a GPU must be checked with `device="cuda"`, which its documentation asks for. Ours is on the
# CPU wherever the model is, so its mark can be found on any machine.
#
# ## 2. Leaning towards green
#
# The mark itself is a small push: add a *bias* to the logits of green tokens before the token is
# chosen. Where one token is much likelier than all others, it wins, green or red. Where several
# are about as likely, a green one wins.

# %% [markdown]
# ### Exercise 16.2 · `Watermark`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 9 lines
#
# A logits processor, as `TopK` in lesson 04: `generate` calls it with all ids so far and with
# the logits of the next token. Add `bias` to the logits of the tokens that are green behind the
# *last* id of the row. Each row has its own last id, so its own list.
#
# By hand: the logits are `[0.0, 0.0, 0.0, 0.0]`, the bias is 2, and the tokens 1 and 3 are green
# behind the last id: `[0.0, 2.0, 0.0, 2.0]`. A token that a filter has removed (-inf) stays
# removed.
#
# <details><summary>Hint 1</summary>The vocabulary is as large as a row of the logits. (Not as
# <code>len(tokenizer)</code>: some models have more logits than tokens, and a shuffle of another
# length is another shuffle.)</details>
# <details><summary>Hint 2</summary>A loop over rows is fine, and so is
# <code>new[row, green] += bias</code> on a clone. On a GPU the ids have to go there
# first: <code>green.to(scores.device)</code>.</details>


# %% tags=["exercise"]
class Watermark(LogitsProcessor):
    """Adds bias to the logits of the tokens that are green behind a row's last id."""

    def __init__(self, bias: float = 2.0, gamma: float = 0.25, key: int = 15485863):
        ### BEGIN SOLUTION
        self.bias, self.gamma, self.key = bias, gamma, key
        ### END SOLUTION

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        """input_ids: (batch, seq). scores: (batch, vocab). Returns a new tensor of
        the same shape and dtype."""
        ### BEGIN SOLUTION
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1].tolist()):
            green = green_ids(previous, self.key, scores.shape[-1], self.gamma)
            new[row, green.to(scores.device)] += self.bias
        return new
        ### END SOLUTION


# %% tags=["check"]
check(Watermark)

# %% [markdown]
# Token for token what `transformers` writes? **Predict:** in which of these four lines will the
# two differ? (Its own watermark comes with `watermarking_config`; ours goes in as any processor.)

# %%
ids = tokenizer("Once upon a time there was a", return_tensors="pt").to(model.device)
start = ids.input_ids.shape[1]
theirs = WatermarkingConfig(bias=2.0, greenlist_ratio=GAMMA, hashing_key=KEY)
settings = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0},
    "temperature 0.5": {"do_sample": True, "top_k": 0, "temperature": 0.5},
    "top-k 5": {"do_sample": True, "top_k": 5},
}
for name, options in settings.items():
    made = []
    for mark in (
        {"logits_processor": LogitsProcessorList([Watermark(2.0, GAMMA, KEY)])},
        {"watermarking_config": theirs},
    ):
        torch.manual_seed(0)
        options |= {"max_new_tokens": 12, "pad_token_id": tokenizer.pad_token_id}
        made.append(model.generate(**ids, **options, **mark)[0, start:])
    print(f"{name:16} the same: {torch.equal(*made)}   {tokenizer.decode(made[0])!r}")

# %% [markdown]
# The last two. `transformers` adds its bias *after* the temperature and all filters, while a
# processor of yours runs *before* them (lesson 06: the order matters). Before a temperature of
# 0.5 a bias of 2 counts as 4. Before top-k it lifts green tokens into the top k; behind it, it
# can only choose among those that are left. Neither is wrong; both make a mark that
# the same detector finds. They are not the same strength, though.
#
# ## 3. Counting green
#
# The detector has the text and the key. It needs neither the model nor the prompt. It looks at
# each token: is it green behind the one before?
#
# A text that knows nothing of the key is green by chance, with probability γ at each token: of n
# tokens, γn on average, with a variance of γ(1 - γ)n. The *z-score* says how many standard
# deviations more than that there are.

# %% [markdown]
# ### Exercise 16.3 · `z_score`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 6 lines
#
# z = (green - γ · total) / √(total · γ · (1 - γ)).
#
# By hand: 6 of 12 tokens are green, γ = ¼. By chance there would be 3, and the standard deviation
# is √(12 · ¼ · ¾) = 1.5: z = (6 - 3) / 1.5 = 2. With 3 green it is 0, and with 0 green it is -2.
#
# <details><summary>Hint 1</summary>The sign stays: fewer green than expected is a negative
# z.</details>
# <details><summary>Hint 2</summary>Of no tokens there is no score: a
# <code>ValueError</code>, before the division by 0.</details>


# %% tags=["exercise"]
def z_score(green: int, total: int, gamma: float) -> float:
    """How many standard deviations more tokens are green than chance would have.

    Raises ValueError unless 0 < gamma < 1, total is 1 or more, and 0 <= green <= total.
    """
    ### BEGIN SOLUTION
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
    if not 0 <= green <= total or total < 1:
        raise ValueError(f"{green} green of {total} tokens: no score")
    return (green - gamma * total) / math.sqrt(total * gamma * (1 - gamma))
    ### END SOLUTION


# %% tags=["check"]
check(z_score)

# %% [markdown]
# ### Exercise 16.4 · `detect`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 12 lines
#
# The z-score of a text. Three rules make it honest:
#
# - **The prompt does not count.** Nobody marked it. So leave the first `prompt_length` ids out,
#   altogether: the first token of the answer is the context of the second, and is not scored
#   itself. (Who finds a text has no prompt.)
# - **A pair counts once.** Whether a token is green depends on it and the one before. If
#   the pair "in the" is green, it is green each time. That is one coin, not many. With
#   `ignore_repeated=False` every occurrence counts.
# - **Nothing to score is an error**: an answer of one token has no pair.
#
# By hand: the prompt has 2 ids, the text is `[9, 4, 1, 2, 1, 2, 1]`. Of the answer `[1, 2, 1, 2,
# 1]` the pairs are (1, 2), (2, 1), (1, 2), (2, 1). If only 2 behind 1 is green: 1 of 2, or 2 of 4
# with `ignore_repeated=False`.
#
# <details><summary>Hint 1</summary><code>zip(answer, answer[1:])</code> gives the pairs, a
# <code>set</code> keeps each once.</details>
# <details><summary>Hint 2</summary>A pair (a, b) is green if b is in
# <code>green_ids(a, ...)</code>. Ask a set or a tensor, not a list of 12,000 ids; ask once
# for each pair.</details>


# %% tags=["exercise"]
def detect(
    ids: torch.Tensor,
    key: int,
    vocab_size: int,
    gamma: float,
    prompt_length: int,
    ignore_repeated: bool = True,
) -> float:
    """The z-score of one text behind its prompt, as transformers' WatermarkDetector has
    it for the answer alone.

    ids: (1, seq) or (seq,) int64. Scored are the pairs of neighbours among
    ids[prompt_length:], each different pair once, or with ignore_repeated=False as
    often as it occurs. Raises ValueError for a negative prompt_length, and if there is
    no pair.
    """
    ### BEGIN SOLUTION
    if prompt_length < 0:
        raise ValueError(f"prompt_length must be 0 or more, got {prompt_length}")
    answer = ids.flatten().tolist()[prompt_length:]
    pairs = Counter(zip(answer, answer[1:], strict=False))
    if ignore_repeated:
        pairs = Counter(pairs.keys())
    green = 0
    for (previous, token), times in pairs.items():
        if token in green_ids(previous, key, vocab_size, gamma):
            green += times
    return z_score(green, pairs.total(), gamma)  # of no pair: a ValueError
    ### END SOLUTION


# %% tags=["check"]
check(detect)

# %% [markdown]
# Is it `transformers`' number? And what does a marked text look like? The eight prompts are
# beginnings of texts that people wrote (lesson 08), 24 tokens each. Several *rules* write at
# once, in one batch, and `Surprisal` notes how likely the model itself found each token.

# %%
PROMPT, NEW = 24, 50
rows = [tokenizer(text).input_ids[: PROMPT + NEW] for text in human_texts()]
human = torch.tensor(rows, device=model.device)  # (8, PROMPT + NEW)
prompts = human[:, :PROMPT]


def written(rules, ids=prompts, new=NEW, watch=None):
    """{name: the texts `ids`, continued under its rule}, all in one batch, sampled.

    A rule makes other logits of (ids, logits). `watch` sees both first.
    """

    def each(ids, logits):
        if watch:
            watch(ids, logits)
        logits = logits.clone()
        logits[:, model.config.eos_token_id] = float("-inf")  # all are `new` long
        parts = zip(rules, ids.chunk(len(rules)), logits.chunk(len(rules)), strict=True)
        return torch.cat([rules[name](i, x) for name, i, x in parts])

    torch.manual_seed(0)
    batch = ids.repeat(len(rules), 1)
    out = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=new,
        do_sample=True,
        top_k=0,
        pad_token_id=0,  # nothing is padded
        logits_processor=LogitsProcessorList([each]),
    )
    return dict(zip(rules, out.chunk(len(rules)), strict=True))


# %%
def plain(ids, logits):
    return logits


rules = {"plain": plain} | {
    f"bias {bias}": Watermark(bias, GAMMA, KEY) for bias in (1, 2, 4)
}
watch = Surprisal()
texts = {"human": human} | written(rules, watch=watch)
noted = watch.of(torch.cat([texts[name] for name in rules])).chunk(len(rules))
perplexity = {
    name: math.exp(x.mean().item()) for name, x in zip(rules, noted, strict=True)
}

# %%
theirs = WatermarkDetector(
    model.config,
    model.device.type,
    WatermarkingConfig(bias=2.0, greenlist_ratio=GAMMA, hashing_key=KEY),
    ignore_repeated_ngrams=True,
)
scores = {
    name: [detect(row, KEY, VOCAB, GAMMA, PROMPT) for row in texts[name]]
    for name in texts
}
for name, mine in scores.items():
    z = theirs(texts[name][:, PROMPT:], return_dict=True).z_score
    gap = max(abs(a - b) for a, b in zip(mine, z, strict=True))
    shown = " ".join(f"{x:4.1f}" for x in mine)
    print(f"{name:7} z: {shown}   as WatermarkDetector: {gap < 1e-6}")

# %% [markdown]
# One text without a mark, and its twin with one. Green tokens are dark:


# %%
def strip(ax, row, per_row=10):
    answer = row[PROMPT - 1 : PROMPT + 30].tolist()
    pairs = list(zip(answer, answer[1:], strict=False))
    green = [b in green_ids(a, KEY, VOCAB, GAMMA) for a, b in pairs]
    labels = [figures.token_label(tokenizer, b) for _, b in pairs]
    figures.token_strip(ax, labels, [float(x) for x in green], per_row, "Greens", "", 1)


fig, axes = plt.subplots(2, 1, figsize=(8.4, 3.4))
for ax, name in zip(axes, ("plain", "bias 2"), strict=True):
    strip(ax, texts[name][6])
    ax.set_title(f"{name}: z = {scores[name][6]:.1f} over {NEW} tokens")
plt.show()

# %% [markdown]
# ## 4. What chance does
#
# Is a z of 2 much? If the score of unmarked texts follows the normal distribution, one text in 44
# has a z above 2. That is a claim about texts without a mark, so test it on such texts: a
# thousand random ones, on a vocabulary of 500 so that it is quick. Then a thousand that repeat
# themselves, as models like to do: ten random tokens, five times.
#
# **Predict:** does repetition move the mean of z, or its spread?

# %%
generator = torch.Generator().manual_seed(0)
fresh = torch.randint(1, 500, (1000, 50), generator=generator)
loops = torch.randint(1, 500, (1000, 10), generator=generator).repeat(1, 5)
null = {
    "random tokens": [detect(row, 7, 500, 0.25, 0) for row in fresh],
    "loops, each pair once": [detect(row, 7, 500, 0.25, 0) for row in loops],
    "loops, all pairs": [detect(row, 7, 500, 0.25, 0, False) for row in loops],
}
for name, z in null.items():
    z = torch.tensor(z)
    above = (z > 2).float().mean()
    print(f"{name:22} mean {z.mean():5.2f}   sd {z.std():.2f}   above 2: {above:.1%}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.5), sharex=True, sharey=True)
grid = torch.linspace(-6, 7, 200)
for ax, (name, z) in zip(axes, null.items(), strict=True):
    ax.hist(z, bins=[x / 2 - 6.25 for x in range(28)], density=True, color=figures.SKY)
    ax.plot(grid, (-(grid**2) / 2).exp() / math.sqrt(2 * math.pi), color=figures.BLACK)
    ax.set(title=name, xlabel="z of unmarked texts")
axes[0].set_ylabel("density")
plt.show()

# %% [markdown]
# TEXT.
#
# The reliable way to a probability does not need the normal distribution at all: compare the
# score with scores of texts that have no mark for certain. The share of them that reaches it is
# the *p-value*: how often does chance do as well?

# %% [markdown]
# ### Exercise 16.5 · `p_value`
#
# difficulty ★☆☆ · importance ★★★ · 10 min · our answer: 4 lines
#
# The p-value of a score, given the scores of n texts without a mark: (1 + how many of them are as
# large or larger) / (1 + n).
#
# The 1 stands for the text itself: if it has no mark, it is one more of them, and it is as large
# as itself. So p is never 0. From 99 texts nobody can know of one in a million.
#
# By hand: the score 3, and `[1, 3, 2, 5]`: two of the four reach it, p = (1 + 2) / (1 + 4) = 0.6.
# With a score of 9: 1/5 = 0.2. Without any other score: 1, since nothing is known.
#
# <details><summary>Hint 1</summary>A score that is equal counts: it did as well.</details>
# <details><summary>Hint 2</summary>NaN is larger than nothing, and so it would be counted as
# small, in silence. Raise a <code>ValueError</code> instead, for it in either
# place.</details>


# %% tags=["exercise"]
def p_value(score: float, null_scores: list[float]) -> float:
    """How often chance scores as high: (1 + those that reach score) / (1 + all).

    A larger score is more of a mark. null_scores: those of unmarked texts, in any
    order. Raises ValueError for NaN, in either.
    """
    ### BEGIN SOLUTION
    if any(math.isnan(x) for x in [score, *null_scores]):
        raise ValueError("a score is NaN")
    reached = sum(x >= score for x in null_scores)
    return (1 + reached) / (1 + len(null_scores))
    ### END SOLUTION


# %% tags=["check"]
check(p_value)

# %% [markdown]
# Where do unmarked texts come from? The best ones are the text itself, scored with *other* keys:
# it has their mark for certain not, and has the same length and the same repetitions. Three texts,
# 99 other keys:

# %%
others = range(1, 100)
loop = prompts[:1, :10].repeat(1, 5)
for name, row, once in (
    ("bias 2", texts["bias 2"][6, PROMPT:], True),
    ("human", human[6, PROMPT:], True),
    ("a loop", loop, False),
):
    z = detect(row, KEY, VOCAB, GAMMA, 0, once)
    p = p_value(z, [detect(row, key, VOCAB, GAMMA, 0, once) for key in others])
    print(f"{name:7} z {z:5.2f}   p from z {math.erfc(z / 2**0.5) / 2:.4f}   p {p:.2f}")

# %% [markdown]
# TEXT
#
# ## 5. What it costs, and how long it takes

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3))
lengths = [5, 10, 20, 30, 40, 50]
edits = torch.rand(8, NEW, generator=generator) < 0.3
edited = texts["bias 2"].clone()
edited[:, PROMPT:][edits] = texts["plain"][:, PROMPT:][edits]
texts["30% replaced"] = edited
for name in ("bias 2", "30% replaced", "plain", "human"):
    z = torch.tensor(
        [
            [detect(row[: PROMPT + n], KEY, VOCAB, GAMMA, PROMPT) for n in lengths]
            for row in texts[name]
        ]
    )
    left.plot(lengths, z.mean(0), "o-", label=name)
    left.fill_between(lengths, z.amin(0), z.amax(0), alpha=0.1)
left.set(xlabel="tokens of the answer", ylabel="z (mean, least to largest of 8)")
left.legend()
names = list(rules)
mean_z = [sum(scores[name]) / 8 for name in names]
right.plot(mean_z, [perplexity[name] for name in names], "o-")
for name, x in zip(names, mean_z, strict=True):
    right.annotate(name, (x, perplexity[name]))
right.set(xlabel="mean z of 50 tokens", ylabel="perplexity")
plt.show()

# %% [markdown]
# ## 6. A mark that costs nothing, at one token
#
# TEXT

# %% [markdown]
# ### Exercise 16.6 · `gumbel_pick`
#
# difficulty ★★★ · importance ★★★ · 20 min · our answer: 7 lines
#
# Lesson 03's race, with keyed random numbers: for each row seed torch's generator with
# `seed_of(key, context)`, where `context` is that row's list of last ids, and let
# `multinomial_from_scratch` draw from the softmax of the row's logits. (`seed_of` stands in the
# first cell. It hashes the key and all ids together.)
#
# By hand: the probabilities are 0.2 and 0.8, and the exponential draws that belong to this
# key and context are 0.1 and 0.5: 0.2 / 0.1 = 2 beats 0.8 / 0.5 = 1.6. Token 0, now and whenever
# the key, the context and the probabilities are these.
#
# - A row's token depends on its own context and logits alone, not on its neighbours in the batch.
# - The global generator is afterwards as it was before: other draws must not become
#   predictable.
# - The draws are made on the CPU in float32, wherever the logits are: the detector
#   has to find the same numbers again.
#
# <details><summary>Hint 1</summary>Row by row. A row as a batch of one is
# <code>logits[i : i + 1]</code>, and <code>.float().cpu()</code> brings it where it
# belongs.</details>
# <details><summary>Hint 2</summary><code>with torch.random.fork_rng(devices=[]):</code> puts the
# global generator back when the block ends. Inside it seed it:
# <code>torch.default_generator.manual_seed(seed)</code>. (<code>torch.manual_seed</code> seeds
# those of all GPUs, too, and they stay so.)</details>
# <details><summary>Hint 3</summary><code>context[i].tolist()</code> is the list of ints that
# <code>seed_of</code> takes.</details>


# %% tags=["exercise"]
def gumbel_pick(logits: torch.Tensor, context: torch.Tensor, key: int) -> torch.Tensor:
    """Draw a token for each row, by the exponential race with keyed random numbers.

    logits: (batch, vocab), any float dtype. context: (batch, width) int64, the last ids
    of each row. Returns (batch, 1) int64, on the device of the logits. The draws of a
    row: float32, on the CPU, after torch.manual_seed(seed_of(key, its context)). Leaves
    the global generator as it was.
    """
    ### BEGIN SOLUTION
    picked = []
    for row, seen in zip(logits.float().cpu(), context.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(key, seen))
            picked.append(multinomial_from_scratch(row.softmax(-1)[None]))
    return torch.cat(picked).to(logits.device)
    ### END SOLUTION


# %% tags=["check"]
check(gumbel_pick)

# %% [markdown]
# ### Exercise 16.7 · `gumbel_score`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 13 lines
#
# The detector of that mark. For each place with `width` ids before it, make the draws again
# that belong to those ids, and look at the draw E of the token that stands there. Its score is
# -ln(1 - e^(-E)), and the score of the text is the mean.
#
# Why: the race takes the largest p/E, so winners have small E. For a text that knows nothing of
# the key, e^(-E) is uniform between 0 and 1, and the score is 1 on average. With the mark it is
# more.
#
# By hand: E = ln 2 gives -ln(1 - ½) = 0.693. E = 0.1 gives -ln(1 - 0.905) = 2.35. A text with
# these two: 1.52.
#
# As in `detect`, a repetition is no news: the same token behind the same `width` ids counts once.
#
# <details><summary>Hint 1</summary>All windows of width + 1 ids, each once: a
# <code>set</code> of tuples.</details>
# <details><summary>Hint 2</summary>The same numbers as in <code>gumbel_pick</code>:
# <code>torch.empty(vocab_size).exponential_(generator=...)</code>, from a generator with
# the seed <code>seed_of(key, context)</code>.</details>
# <details><summary>Hint 3</summary>E may be tiny, and then 1 - e^(-E) has few digits left in float32:
# <code>-math.expm1(-e)</code> is precise.</details>


# %% tags=["exercise"]
def gumbel_score(ids: torch.Tensor, key: int, width: int, vocab_size: int) -> float:
    """How well a text fits the keyed races: 1 on average without the mark, else more.

    ids: (1, seq) or (seq,) int64, the text without its prompt. Each different window of
    width + 1 ids counts once. Raises ValueError for a width below 1, and if the text
    has no more than width ids.
    """
    ### BEGIN SOLUTION
    text = ids.flatten().tolist()
    if not 1 <= width < len(text):
        raise ValueError(f"nothing to score in {len(text)} ids with width {width}")
    windows = {tuple(text[end - width : end + 1]) for end in range(width, len(text))}
    total = 0.0
    for *context, token in sorted(windows):
        generator = torch.Generator().manual_seed(seed_of(key, context))
        draws = torch.empty(vocab_size).exponential_(generator=generator)
        total -= math.log(-math.expm1(-draws[token].item()))
    return total / len(windows)
    ### END SOLUTION


# %% tags=["check"]
check(gumbel_score)

# %% [markdown]
# ## 7. A tournament
#
# TEXT

# %% [markdown]
# ### Exercise 16.8 · `tournament`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 6 lines
#
# What a tournament does to the probabilities. In one layer two tokens are drawn from p, and the
# one with the larger g wins (g is 0 or 1); if both have the same g, a fair coin decides. Work
# out the winner's distribution: with m = Σ p·g, the share of p that has g = 1, a token with g =
# 1 wins with p · (2 - m), and one with g = 0 with p · (1 - m). The winners' distribution is what
# the next layer draws from, with the next row of g.
#
# By hand: p = (½, ¼, ¼) and g = (0, 1, 0), so m = ¼. Token 1 wins with ¼ · 1.75 = 0.4375: it
# fails only if neither draw is token 1, 1 - 0.75². Token 0: ½ · ¾ = 0.375. Token 2: 0.1875.
#
# <details><summary>Hint 1</summary>Both cases in one: p · (1 + g - m).</details>
# <details><summary>Hint 2</summary>m belongs to the p of its own layer: compute it anew
# for each row of g, in order.</details>


# %% tags=["exercise"]
def tournament(probs: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The distribution of the winner, after a layer for each row of g, from first to last.

    probs: (vocab,) float32 or float64, sums to 1. g: (layers, vocab), 0 or 1, of any
    dtype, bool included. Returns a new (vocab,) of the dtype of probs; without layers,
    a copy. Raises ValueError for other values in g.
    """
    ### BEGIN SOLUTION
    if not ((g == 0) | (g == 1)).all():
        raise ValueError("g must be 0 or 1")
    winner = probs.clone()
    for layer in g.to(probs.dtype):
        winner = winner * (1 + layer - (winner * layer).sum())
    return winner
    ### END SOLUTION


# %% tags=["check"]
check(tournament)
