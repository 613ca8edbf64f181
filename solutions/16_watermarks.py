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
# comes along in the first cell, and lesson 05's `eos_token_ids`.

# %% tags=["setup"]
import hashlib
import math
from collections import Counter

import torch
from transformers import LogitsProcessor

from course import carry

eos_token_ids = carry("eos_token_ids")
multinomial_from_scratch = carry("multinomial_from_scratch")


def seed_of(key: int, context: list[int]) -> int:
    """A seed for torch that depends on the key and on all ids of the context."""
    text = f"{key}: {' '.join(str(i) for i in context)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# %%
import matplotlib.pyplot as plt
from transformers import (
    LogitsProcessorList,
    SynthIDTextWatermarkLogitsProcessor,
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
# Why now? According to secondary sources (we have not read the official journal), Article 50(2) of
# the EU's AI Act, Regulation 2024/1689, asks providers of generative systems to mark their
# output in a machine-readable format, so that it can be detected; it applies since 2 August 2026,
# and from 2 December 2026 to systems that were on the market before. A watermark is one way to
# mark text. This lesson is about how it works, not about what the law asks of you.
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
# What may come behind "Once upon a time there was a"? The five likeliest tokens, behind that "a" and
# behind two other words, under two keys. **Predict:** how many of five are green if γ is ¼? And
# does "the same token" mean "the same colour" behind another word?

# %%
KEY, GAMMA = 15485863, 0.25  # the defaults of transformers


story = tokenizer("Once upon a time there was a", return_tensors="pt").input_ids
with torch.no_grad():
    best = model(story.to(model.device)).logits[0, -1].topk(5).indices.tolist()


def colours(word, key):
    """The five, in capitals where they are green behind this word."""
    previous = tokenizer(word).input_ids[-1]
    green = set(green_ids(previous, key, VOCAB, GAMMA).tolist())
    words = [figures.token_label(tokenizer, i) for i in best]
    return "  ".join(
        w.upper() if i in green else w for i, w in zip(best, words, strict=True)
    )


for word in (" a", " the", " very"):
    for key in (KEY, 99):
        print(f"behind {word!r:7}  key {key:8}: {colours(word, key)}")

# %% [markdown]
# (Green ones in capitals.) Each pair of key and previous token has a list of its own, and in it a
# token may have another colour. Of the whole vocabulary exactly a quarter is green each time; of
# five tokens it may be none, or three.
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
# So of all keys below 2⁴⁸ only 2³² are different, few enough to try them all. (And the default of
# `transformers` stands in its documentation.) A cryptographic hash of key and ids is better; we
# take one in section 6.
#
# And the device matters. `transformers` makes its generator on the model's device. A generator
# on a GPU is another algorithm, and makes other lists from the same seed. (We tried one: of the
# green ids of the CPU a quarter is green there, too, as of any ids.) So a text that was written
# on a GPU must be checked with `device="cuda"`, as the documentation says. Ours is on the
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
# Token for token what `transformers` writes? **Predict:** in which of these three lines will the
# two differ? (Its own watermark comes with `watermarking_config`; ours goes in as any processor.)

# %%
prompt = tokenizer("Once upon a time there was a", return_tensors="pt").to(model.device)
start = prompt.input_ids.shape[1]
config = WatermarkingConfig(bias=2.0, greenlist_ratio=GAMMA, hashing_key=KEY)
hows = (
    {"logits_processor": LogitsProcessorList([Watermark(2.0, GAMMA, KEY)])},
    {"watermarking_config": config},
)
for name, options in {
    "plain sampling": {"top_k": 0},
    "temperature 0.5": {"top_k": 0, "temperature": 0.5},
    "top-k 3": {"top_k": 3},
}.items():
    options |= {"do_sample": True, "max_new_tokens": 5, "pad_token_id": 0}
    made = []
    for how in hows:
        torch.manual_seed(7)
        made.append(model.generate(**prompt, **options, **how)[0, start:])
    print(f"{name:16} the same: {torch.equal(*made)}", end="   ")
    print(" | ".join(repr(tokenizer.decode(new)) for new in made))

# %% [markdown]
# The last two. `transformers` adds its bias *after* the temperature and all filters, while a
# processor of yours runs *before* them (lesson 06: the order matters). Before a temperature of
# 0.5 a bias of 2 counts as 4. Before top-k it lifts green tokens into the top k; behind it, it
# can only choose among those that are left. Neither is wrong, and the same detector finds both.
# They are not the same strength, though.
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
# Is it `transformers`' number? For that we need texts. The eight prompts are beginnings of what
# people wrote (lesson 08), 24 tokens each. Several *rules* write at once, in one batch.

# %%
PROMPT, NEW = 24, 36
rows = [tokenizer(text).input_ids[: PROMPT + NEW] for text in human_texts()]
human = torch.tensor(rows, device=model.device)  # (8, PROMPT + NEW)
prompts = human[:, :PROMPT]


# %%
def written(rules, new=NEW, watch=None):
    """{name: the prompts, continued under its rule}, all in one batch, sampled.

    A rule makes other logits of (ids, logits). `watch` sees ids, logits and the others.
    """

    def each(ids, logits):
        logits = logits.clone()
        logits[:, eos_token_ids(model)] = float("-inf")  # all are `new` tokens long
        ids_of, logits_of = ids.chunk(len(rules)), logits.chunk(len(rules))
        parts = zip(rules.values(), ids_of, logits_of, strict=True)
        changed = torch.cat([rule(i, x) for rule, i, x in parts])
        if watch:
            watch(ids, logits, changed)
        return changed

    torch.manual_seed(0)
    batch = prompts.repeat(len(rules), 1)
    mask = torch.ones_like(batch)
    options = {"max_new_tokens": new, "do_sample": True, "top_k": 0}
    options |= {"pad_token_id": 0}  # nothing is padded
    options |= {"logits_processor": LogitsProcessorList([each])}
    out = model.generate(batch, attention_mask=mask, **options)
    return dict(zip(rules, out.chunk(len(rules)), strict=True))


# %% [markdown]
# Without a mark, and with three strengths of it. On the way we note what sections 5 and 8 need: the
# surprisal of each token for the model itself, and what the bias does to the distribution at each
# step, from p to q.


# %%
def plain(ids, logits):
    return logits


surprisal, seen = Surprisal(), []


def watch(ids, logits, changed):
    surprisal(ids, logits)
    surprise = -logits.log_softmax(-1).clamp(min=-1e9)  # (0 times infinity is nan)
    p, q = (-surprise).exp(), changed.log_softmax(-1).exp()
    cost = (q - p) * surprise
    measures = {
        "entropy": p * surprise,  # of what the model wants, in nats
        "green": q * (changed > logits),  # the probability of a green token
        "cost": cost,  # by how much the bias raises the expected surprisal
        "overlap": torch.minimum(p, q),
    }
    seen.append({name: x.sum(-1).cpu() for name, x in measures.items()})


biases = {f"bias {bias}": Watermark(bias, GAMMA, KEY) for bias in (1, 2, 4)}
rules = {"no mark": plain} | biases
texts = {"human": human} | written(rules, watch=watch)

# %%
detector = WatermarkDetector(
    model.config, model.device.type, config, ignore_repeated_ngrams=True
)
scores = {
    name: [detect(row, KEY, VOCAB, GAMMA, PROMPT) for row in texts[name]]
    for name in texts
}
for name, mine in scores.items():
    theirs = detector(texts[name][:, PROMPT:], return_dict=True).z_score
    gap = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    shown = " ".join(f"{x:4.1f}" for x in mine)
    print(f"{name:7} z: {shown}   as WatermarkDetector: {gap < 1e-6}")

# %% [markdown]
# The same number for each text. (On a GPU the last column says False: `transformers` then makes
# other lists.) One text without a mark, and its twin with one; green tokens are dark:


# %%
def strip(ax, row, per_row=10):
    answer = row[PROMPT - 1 : PROMPT + 30].tolist()
    pairs = list(zip(answer, answer[1:], strict=False))
    green = [float(b in green_ids(a, KEY, VOCAB, GAMMA)) for a, b in pairs]
    labels = [figures.token_label(tokenizer, b) for _, b in pairs]
    figures.token_strip(ax, labels, green, per_row, "Greens", vmax=1)


fig, axes = plt.subplots(2, 1, figsize=(8.4, 3.4))
for ax, name in zip(axes, ("no mark", "bias 2"), strict=True):
    strip(ax, texts[name][6])
    ax.set_title(f"{name}: z = {scores[name][6]:.1f} over {NEW - 1} pairs")
for colorbar in fig.axes[2:]:
    colorbar.set_visible(False)  # two colours need no scale
plt.show()

# %% [markdown]
# Now let someone score the prompt, too: MarkLLM, a toolkit with many watermarks, returns prompt and
# answer as one text, and its README passes that on to the detector (issue 65 there).
# **Predict:** what does it do to the z of a marked answer?

# %%
whole = [detect(row, KEY, VOCAB, GAMMA, 0) for row in texts["bias 2"]]
print("the answer alone     ", " ".join(f"{z:4.1f}" for z in scores["bias 2"]))
print("with a prompt of 24  ", " ".join(f"{z:4.1f}" for z in whole))

# %% [markdown]
# Every z falls: the prompt adds pairs that nobody marked. It can go the other way, too: if
# somebody pastes a marked text into the prompt, an answer without a mark is called marked.
#
# ## 4. What chance does
#
# Is a z of 2 much? If the score of unmarked texts follows the normal distribution, one text in 44
# has a z above 2. That is a claim about texts without a mark, so try it on such texts: a
# thousand random ones, on a vocabulary of 500 so that it is quick. Then a thousand that repeat
# themselves, as models like to do: ten random tokens, five times.
#
# **Predict:** does repetition move the mean of z, or its spread?

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
fresh = torch.randint(1, 500, (1000, 50), generator=generator)
loops = torch.randint(1, 500, (1000, 10), generator=generator).repeat(1, 5)
null = {
    "random tokens": [detect(row, 7, 500, GAMMA, 0) for row in fresh],
    "loops, each pair once": [detect(row, 7, 500, GAMMA, 0) for row in loops],
    "loops, every pair": [detect(row, 7, 500, GAMMA, 0, False) for row in loops],
}
for name, z in null.items():
    z = torch.tensor(z)
    share = (z > 2).float().mean()
    print(f"{name:22} mean {z.mean():5.2f}   sd {z.std():.2f}   above 2: {share:.1%}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
grid = torch.linspace(-1, 7, 161)
for name, z in null.items():
    z = torch.tensor(z)
    ax.plot(grid, [(z > x).float().mean() for x in grid], label=name)
normal = torch.special.erfc(grid / 2**0.5) / 2
ax.plot(grid, normal, "--", color=figures.GREY, label="normal distribution")
ax.set(yscale="log", ylim=(1e-3, 1), xlabel="x", ylabel="share of texts with z > x")
ax.legend(loc="upper right")
plt.show()

# %% [markdown]
# The spread. Random tokens follow the normal curve. Where every pair counts, each coin is tossed
# once and counted five times: the standard deviation is √5 times as large, and a fifth of all
# *unmarked* loops has a z above 2. That accuses people whose only fault is that their text
# repeats itself: a table, a poem, code. `transformers` counts every pair unless you ask for
# `ignore_repeated_ngrams=True`.
#
# Counting once mends the spread. With only ten pairs, the normal curve is still a rough guess: z
# moves in steps of 0.7. There is a way to a probability without that curve: compare with scores
# of texts that have no mark for certain. The share that does as well is the *p-value*.

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
# <details><summary>Hint 2</summary>Every comparison with NaN is false, so a NaN would count as
# small, in silence. Raise a <code>ValueError</code> instead, wherever it stands.</details>


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
# Where do unmarked texts come from? A neat source is the text itself, scored with *other* keys: of
# those it has no mark for certain, and its length and its repetitions are the same. A marked text,
# one by a person, and a loop with every pair counted. (Of the eight beginnings, five times their
# first ten tokens, it is the loop with the largest z: an unlucky one.)

# %%
chains = [row[:10].repeat(5) for row in prompts]
unlucky = max(chains, key=lambda row: detect(row, KEY, VOCAB, GAMMA, 0, False))
for name, row, once, keys in (
    ("bias 2", texts["bias 2"][6, PROMPT:], True, range(1, 50)),
    ("human", human[6, PROMPT:], True, range(1, 50)),
    ("a loop", unlucky, False, range(1, 200)),
):
    z = detect(row, KEY, VOCAB, GAMMA, 0, once)
    null_scores = [detect(row, key, VOCAB, GAMMA, 0, once) for key in keys]
    curve = math.erfc(z / 2**0.5) / 2
    print(f"{name:7} z {z:5.2f}   p by the normal curve {curve:.1e}", end="   ")
    print(f"p by {len(keys)} keys {p_value(z, null_scores):.3f}", end="   ")
    print(f"largest of theirs {max(null_scores):.1f}")

# %% [markdown]
# In the marked text none of 49 other keys finds a z near 7. Its p is 0.02, the least that 49 keys
# can say. For the loop the normal curve says 4 in ten million million, and the other keys say 1
# in 100: with one of 199, chance did as well. Where you cannot be sure that the coins are
# independent, toss other coins and look.
#
# ## 5. Length, strength, price
#
# **Predict:** from 9 tokens to 36, how much does z grow? And of a text of which a third was
# replaced, how much of z is left? (Here 30% of the marked answer's tokens are replaced by those
# at the same places of the unmarked one.)

# %%
replaced = torch.rand(8, NEW, generator=generator) < 0.3
edited = texts["bias 2"].clone()
edited[:, PROMPT:][replaced] = texts["no mark"][:, PROMPT:][replaced]
texts["bias 2, 30% replaced"] = edited
lengths = [4, 9, 16, 25, 36]

# %%
growth = {
    name: torch.tensor(
        [
            [detect(row[: PROMPT + n], KEY, VOCAB, GAMMA, PROMPT) for n in lengths]
            for row in texts[name]
        ]
    )
    for name in ("bias 2", "bias 2, 30% replaced", "no mark", "human")
}
for name, z in growth.items():
    shown = "  ".join(f"{n}: {x:.1f}" for n, x in zip(lengths, z.mean(0), strict=True))
    print(f"{name:21} mean z   {shown}")

# %% [markdown]
# What does the mark cost? A text's perplexity is a noisy number with eight texts of 36 tokens. But
# at each step we had both distributions: p, what the model wants, and q, with the bias. So the
# *expected* surprisal under both is known exactly, and the difference is the price of that step.

# %%
noted = surprisal.of(torch.cat([texts[name] for name in rules])).mean(-1)  # (32,)
each = dict(zip(rules, noted.chunk(len(rules)), strict=True))  # one for each text
steps = {
    name: {what: torch.stack([step[what][part] for step in seen]) for what in seen[0]}
    for name, part in zip(rules, torch.arange(32).chunk(len(rules)), strict=True)
}  # name -> measure -> (NEW, 8)
for name in rules:
    cost = steps[name]["cost"].mean(0)  # of each text
    error = cost.std().item() / len(cost) ** 0.5
    print(f"{name:8} perplexity {each[name].mean().exp():4.1f}", end="   ")
    print(f"cost {cost.mean():.2f} nats a token (standard error {error:.2f})")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
for (name, z), style in zip(growth.items(), ("o-", "s-", "^-", "v-"), strict=True):
    left.plot(lengths, z.mean(0), style, label=name)
    if name in ("bias 2", "no mark"):
        colour = left.lines[-1].get_color()
        left.fill_between(lengths, z.amin(0), z.amax(0), color=colour, alpha=0.12)
left.set(xlabel="tokens of the answer", ylabel="z", title="z against length")
left.legend(fontsize=8, loc="upper left")
mean_z = [sum(scores[name]) / 8 for name in rules]
price = [steps[name]["cost"].mean().exp().item() for name in rules]
right.plot(mean_z, price, "o-")
for name, x, y in zip(rules, mean_z, price, strict=True):
    right.annotate(name, (x, y), (-6, 5), textcoords="offset points", ha="right")
right.set(xlim=(-3, 11), ylim=(0.95, 1.7), title="the price of z")
right.set(xlabel=f"mean z of {NEW} tokens", ylabel="perplexity, no mark = 1")
plt.show()

# %% [markdown]
# (The lines are means of eight texts; the shades go from the least to the largest.) z grows about
# as √n, as it must: four times the tokens, twice the z. With 30% replaced about half of it is left,
# since a pair survives if both of its tokens do: 0.7² = 0.49. Without a mark nothing grows.
#
# On the right (e to the power of the cost: the factor of the expected perplexity) the first z are
# cheap. A bias of 1 makes the perplexity 1.04 times as large, a bias of 4 makes it 1.6 times as
# large. `transformers` recommends biases from 0.5 to 2. That the perplexity of our few texts hardly
# moves up to a bias of 2 proves nothing: it is noise.

#
# Where does the mark sit? For each step of the "bias 2" texts, how unsure was the model, and how
# likely was a green token? **Predict** the left end, where the model is nearly sure.

# %%
fig, ax = plt.subplots(figsize=(5.6, 3))
entropy, green = (steps["bias 2"][what].flatten() for what in ("entropy", "green"))
ax.plot(entropy, green, ".", alpha=0.5)
ax.axhline(GAMMA, color=figures.GREY, linestyle="--")
ax.annotate("γ: chance", (7.6, GAMMA + 0.03), ha="right", color=figures.GREY)
ax.set(xlabel="entropy of the step in nats", ylabel="probability of a green token")
ax.set(xlim=(0, None), ylim=(-0.02, 1.02))
plt.show()

# %%
for low, high in ((0, 1), (1, 3), (3, 5), (5, 11)):
    here = (entropy >= low) & (entropy < high)
    print(f"entropy {low} to {high:2}: {here.sum():3} steps", end="   ")
    print(f"green on average with {green[here].mean():.2f}")

# %% [markdown]
# At the left the points lie at 0 and at 1. Where the model is sure of its token the bias changes
# nothing: the key tossed a coin for that token's colour, and chance is all that it is. Only where
# several tokens are about as likely does green win often, with a probability of about 0.7. So z
# grows with entropy rather than with length. A text that could hardly be otherwise, such as a
# quotation, carries little of a mark.
#
# ## 6. A mark in the dice
#
# A bias changes what the model says. Must it? A sampler needs random numbers, and nobody can tell
# random numbers from those that a key and a good hash make (Aaronson, 2022). Draw with *those*: the
# token is one that the model may well have drawn, with its right probability. Whoever has the key
# makes the same numbers again, and sees that the text follows them.
#
# Lesson 03's race is made for it: p/E for each token, with E from Exp(1), and the largest
# wins. In papers it is called the *Gumbel* watermark, after the same race in logarithms.

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
# (Temperature and filters come before, as for any draw.)
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
# The next token of one prompt, drawn five times after each of two seeds, with the key and as usual.
# **Predict:** how many different tokens are there in each line?

# %%
with torch.no_grad():
    logits = model(prompts[:1]).logits[0, -1]
for seed in (1, 2):
    torch.manual_seed(seed)
    keyed = gumbel_pick(logits.repeat(5, 1), prompts[:1, -4:].repeat(5, 1), KEY)
    drawn = multinomial_from_scratch(logits.softmax(-1).repeat(5, 1))
    print("keyed:  ", [tokenizer.decode(i) for i in keyed])
    print("sampled:", [tokenizer.decode(i) for i in drawn])

# %% [markdown]
# The keyed draw has no luck left: the same context gives the same token, whatever the seed. Each
# single token comes with its right probability *over keys*, but the key is fixed. Ask the same
# question twice and you get the same answer; `n` samples are one (lesson 10: no vote, no
# best of n). That is the price here. The wider the context, the rarer it comes again: four ids are
# a common choice.

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
# SynthID-Text (Dathathri et al., Nature 2024) stands between the two. A hash of the context, the
# key and a token gives that token a number g, 0 or 1, in each of several layers. Draw tokens from
# the model, and let them play: in each layer two meet, and the one with the larger g goes on. The
# winner is likely to have many ones. The detector counts ones: half of them without a mark.
#
# Nobody needs to draw 2³⁰ tokens for 30 layers. What the matches do to the distribution can be
# computed.

# %% [markdown]
# ### Exercise 16.8 · `tournament`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 6 lines
#
# What a tournament does to the probabilities. In one layer two tokens are drawn from p, and the
# one with the larger g wins (g is 0 or 1); if both have the same g, a fair coin decides. Let m =
# Σ p·g, the share of p that has g = 1. Then a token with g = 1 wins with p · (2 - m), and one with
# g = 0 with p · (1 - m). The winners' distribution is what the next layer draws from, with the
# next row of g.
#
# By hand: p = (½, ¼, ¼) and g = (0, 1, 0), so m = ¼. Token 1 wins with ¼ · 1.75 = 0.4375: it
# fails only if neither draw is token 1, 1 - 0.75². Token 0: ½ · ¾ = 0.375. Token 2: 0.1875.
#
# <details><summary>Hint 1</summary>Both cases in one: p · (1 + g - m).</details>
# <details><summary>Hint 2</summary>m belongs to the p of its own layer: compute it anew
# for each row of g, in order.</details>
# <details><summary>Hint 3</summary>In floats m may come out as 1.0000001, and then 1 - m is below
# 0. No probability is: <code>.clamp(min=0)</code>.</details>


# %% tags=["exercise"]
def tournament(probs: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The distribution of the winner, after a layer for each row of g, in order.

    probs: (vocab,) float32 or float64, sums to 1. g: (layers, vocab), 0 or 1, of any
    dtype, bool included. Returns a new (vocab,) of the dtype of probs, nowhere below 0;
    without layers, a copy. Raises ValueError for other values in g.
    """
    ### BEGIN SOLUTION
    if not ((g == 0) | (g == 1)).all():
        raise ValueError("g must be 0 or 1")
    winner = probs.clone()
    for layer in g.to(probs.dtype):
        winner = winner * (1 + layer - (winner * layer).sum()).clamp(min=0)
    return winner
    ### END SOLUTION


# %% tags=["check"]
check(tournament)

# %% [markdown]
# All 30 layers of `transformers`' own processor, on the real model, against yours. Its g come from
# its own hash (`compute_ngram_keys`), of the last `ngram_len - 1` ids and the token. **Predict**:
# the likeliest token has a probability of 0.16. What is left of it after 30 layers?

# %%
synthid = SynthIDTextWatermarkLogitsProcessor(
    ngram_len=5,
    keys=list(range(101, 131)),  # one for each layer: 30
    sampling_table_size=2**16,
    sampling_table_seed=0,
    context_history_size=1024,
    device=torch.device("cpu"),
)


def g_of(context, tokens):
    """(layers, tokens): the g of each of these tokens behind the last four ids."""
    context = context[-4:].cpu().expand(len(tokens), -1)
    ngrams = torch.cat([context, tokens.cpu()[:, None]], -1)[None]
    return synthid.sample_g_values(synthid.compute_ngram_keys(ngrams))[0].T


# %%
p = logits.softmax(-1).cpu()
g = g_of(prompts[0], torch.arange(VOCAB))
theirs = synthid.update_scores(logits[None].cpu(), g.T[None])[0].exp()
print(
    "30 layers, as transformers:", torch.allclose(tournament(p, g), theirs, atol=1e-5)
)
print(f"the largest p: {p.max():.2f}, after 30 layers {tournament(p, g).max():.2f}")
for i in p.topk(5).indices.tolist():
    after = " ".join(f"{tournament(p, g[:n])[i]:.3f}" for n in (1, 2, 5, 30))
    print(f"{figures.token_label(tokenizer, i):9} g {g[:5, i].tolist()} ...", end="   ")
    print(f"p {p[i]:.3f}   after 1, 2, 5 and 30 layers: {after}")

# %% [markdown]
# With g = 1 a token gains in that layer, with g = 0 it loses. Of all five likeliest ones less than
# 0.01 is left after 30 layers: another token, with more ones, has most of the probability. For this
# key and this context, that is. Averaged over all g, the distribution is p again (one of the checks
# sums it up), as with the race: a single key prefers, all keys together do not. And `transformers`
# does not mark a context that comes again in the same text.
#
# Both marks on our eight prompts. (The tournament among the 64 likeliest tokens, which is quick.
# SGLang, too, plays it among some candidates only.)


# %%
def race(ids, logits):
    """All probability on the token that the keyed race picks."""
    picked = gumbel_pick(logits, ids[:, -4:], KEY)
    return torch.full_like(logits, float("-inf")).scatter(-1, picked, 0.0)


def played(ids, logits):
    new = torch.full_like(logits, float("-inf"))
    best = logits.topk(64)
    for row, p in enumerate(best.values.softmax(-1).cpu()):
        won = tournament(p, g_of(ids[row], best.indices[row]))
        new[row, best.indices[row]] = won.log().to(logits.device)
    return new


texts |= written({"race": race, "tournament": played}, 20)

# %%


def mean_g(ids):
    """The share of ones in all layers, of the ids behind the first four."""
    return synthid.compute_g_values(ids[None].cpu()).float().mean().item()


def race_score(ids):
    return gumbel_score(ids, KEY, 4, VOCAB)


for name, score in (("race", race_score), ("tournament", mean_g)):
    for kind in (name, "no mark", "human"):
        found = [score(row[PROMPT : PROMPT + 20]) for row in texts[kind]]
        shown = " ".join(f"{x:.2f}" for x in found)
        print(f"{score.__name__:10} of {kind:10}: {shown}")

# %% [markdown]
# Twenty tokens, so 16 windows, and with both marks the lowest score of a marked text is above the
# highest of an unmarked one. Without a mark the scores of the race spread about 1 with a standard
# deviation of 1/√16 = 0.25, and those of the tournament (480 ones or zeros) about ½ with
# √(¼/480) = 0.02. In these units the race leaves about twice as much: nothing else has a part in
# its choice.
#
# (Is perplexity the price here? No: at each step the tokens are right over keys. The price is what
# the keyed draws above show, a fixed answer to a fixed question.)
#
# ## 8. What removes a mark
#
# **Editing.** A token that is replaced takes two pairs with it, so about (1 - s)² of the pairs
# are left if a share s is replaced; section 5 shows it for s = 0.3. With a context of four ids
# a replaced token spoils five windows.
#
# **Paraphrase.** Let the model itself rewrite its marked text, without a mark. **Predict** z
# before and after.

# %%
marked = tokenizer.decode(texts["bias 2"][3, PROMPT:])
ask = f"Rewrite the following text in your own words.\n\n{marked}"
asked = tokenizer.apply_chat_template(
    [{"role": "user", "content": ask}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
).to(model.device)
out = model.generate(**asked, do_sample=False, max_new_tokens=26)
new = out[0, asked.input_ids.shape[1] :]
rewritten = tokenizer.decode(new, skip_special_tokens=True)
for name, text in (("before", marked), ("after", rewritten)):
    again = tokenizer(text, return_tensors="pt").input_ids
    z = detect(again, KEY, VOCAB, GAMMA, 0)
    print(f"{name:6} z {z:4.1f}  {text.strip()!r}")

# %% [markdown]
# A model of 135 million parameters copies more than it rewrites, and where it copies, the mark
# stays. (The text was decoded and encoded again, as a detector in the wild has to: z may
# differ a little from the one above.) What is new has no mark, and what is left of z depends on how
# much is old. (And on the length: 26 tokens have less of a z than 36.) Kirchenbauer et al. (2024)
# report that after strong paraphrases by people their detector needs 800 tokens on average, at a
# false positive rate of 10⁻⁵.
#
# **No choice, no mark.** Section 5 shows it: where the model is nearly sure, the bias does
# not change the token. A quotation or a bare fact carries little of a mark. (And greedy text carries
# nothing of the race, in which nothing is drawn.)
#
# **Speculation** (lesson 13). Its accept rule keeps the target's distribution exactly, and the
# mark of `Watermark` is in that distribution: it stays. But the draft does not know it. A draft
# token is accepted with probability Σ min(p, q). We noted it at each step, for a draft from the
# model itself without the bias (p here) and a target with it (q).

# %%
for name in rules:
    accepted = steps[name]["overlap"].mean().item()
    print(f"{name:8} a draft of the unmarked model is accepted with {accepted:.2f}")

# %% [markdown]
# Without a mark every token of such a draft is accepted. The stronger the mark, the fewer are, and
# the slower it gets (He et al., 2026, study that trade-off). A draft that adds the bias to the
# same green list does not have the problem. The race has another one: an accepted token
# was drawn with the *draft's* random numbers, so it has no mark, unless those are keyed, too. vLLM
# has a "dual key" for that: one for draft tokens, one for the others, and its detector looks for
# both.
#
# ## 9. What the number says
#
# First the detector's own quality. At a threshold, which share of the marked texts is found (*true
# positives*), and which share of the others is accused (*false positives*)? The ROC curve shows
# both for all thresholds. Short texts, since long ones are too easy: pieces of 9 and of 18
# tokens. The unmarked ones are all pieces without this mark: the human's, the model's own,
# and the marked ones scored with four other keys.


# %%
def pieces(name, length, key=KEY):
    """z of all pieces of this length of the answers under that name."""
    return [
        detect(row[at : at + length], key, VOCAB, GAMMA, 0)
        for row in texts[name]
        for at in range(PROMPT, PROMPT + NEW - length + 1, length)
    ]


def roc(marked, unmarked):
    """(false positives, true positives) at each threshold, as shares."""
    marked, unmarked = torch.tensor(marked), torch.tensor(unmarked)
    levels = torch.cat([marked, unmarked, torch.tensor([99.0])]).unique().flip(0)
    rates = [
        [(z >= x).float().mean().item() for x in levels] for z in (unmarked, marked)
    ]
    return rates[0], rates[1]


# %%
fig, ax = plt.subplots(figsize=(4.6, 3.4))
for length, style in ((9, ":"), (18, "-")):
    unmarked = pieces("human", length) + pieces("no mark", length)
    unmarked += [z for key in range(1, 5) for z in pieces("bias 2", length, key)]
    for name, colour in (
        ("bias 1", figures.SKY),
        ("bias 2", figures.BLUE),
        ("bias 2, 30% replaced", figures.RED),
    ):
        false, true = roc(pieces(name, length), unmarked)
        label = f"{name}, {length} tokens"
        ax.plot([0, *false], [0, *true], style, color=colour, label=label)
        allowed = max(t for f, t in zip(false, true, strict=True) if f <= 0.05)
        print(f"{label:32} found {allowed:.2f}", end=" ")
        print(f"where at most 5% of {len(unmarked)} unmarked ones are accused")
ax.set(xlabel="share accused (false positives)", ylabel="share found (true positives)")
ax.legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# Of 18 tokens with a bias of 2 nearly all are found where one unmarked piece in 20 is accused; of 9
# tokens, two thirds. Replace 30%, and a quarter is left, as with a bias of 1. (There are only
# 16 or 32 marked pieces for each line, so a share is known to about ±0.2. And 5% is far too
# much for use; for less, more unmarked texts are needed: with 100 nobody can know of 0.1%.)
#
# Now the sentence that everybody wants to say: "p = 0.01, so with a probability of 99% a machine
# wrote it." `transformers`' detector calls 1 - p its *confidence*, and its *prediction* says whether
# "a text is machine-generated". **Predict:** a detector finds 90% of marked texts and accuses 1%
# of the others. Of a thousand essays ten are marked. One is accused. How likely is it
# marked?


# %% tags=["nbval-check-output"]
def marked_if_accused(found, accused, share):
    """Bayes: P(marked | accused), if a share of all texts is marked."""
    return found * share / (found * share + accused * (1 - share))


for share in (0.5, 0.1, 0.01, 0.001):
    line = [marked_if_accused(0.9, alarm, share) for alarm in (0.05, 0.01, 1e-4)]
    shown = "   ".join(f"{x:.3f}" for x in line)
    print(f"marked: {share:5.1%} of all   accused at 5%, 1%, 0.01%: {shown}")

# %% [markdown]
# 0.476: of the accused, more than half are innocent. The p-value is the probability of such a
# score *if there is no mark*. The question was the probability of a mark, given the score. Between
# the two stands the share of marked texts, which no detector knows.
#
# And three more steps lie between a mark and "a machine wrote it":
#
# - No mark says nothing. Another model, another key, a short text or an edited one has none.
# - A mark says that *this key* was used. A person who asked for a spelling check, or quotes
#   an answer, has it, too; and marks with a fixed list can be learned from many answers, and then
#   forged (Jovanović et al., 2024).
# - Without any mark, one text in a hundred has p < 0.01. Who checks a thousand texts accuses
#   about ten innocent ones; who tries ten keys on each, about a hundred.
#
# ## Questions
#
# 1. γ = ½ or γ = ¼, with the same very large bias (all tokens green): which has the larger z after
#    50 pairs?
# 2. Why is the first token of an answer not scored, although `Watermark` marked it?
# 3. Somebody asks the same question ten times and gets the same answer each time. Which of the
#    three marks may it be?
# 4. A detector is given the key and a text that was decoded and encoded again. What may go
#    wrong?
#
# <details><summary>Answers</summary>
#
# 1. All green: z = (1 - γ)n / √(nγ(1 - γ)) = √(n(1 - γ)/γ): √50 = 7.1 and √150 = 12.2. A smaller
#    γ, since chance explains less.
# 2. Its list depends on the last id of the prompt, which a detector does not have.
# 3. The race. (And nearly so the tournament with many layers; and greedy decoding, with or
#    without a mark.)
# 4. The tokens may be others: "⏎⏎" may come back as one token or as two, a half word at the start
#    as another token. Then its pairs are others, and chance decides.
#
# </details>
#
# ## In the wild
#
# | | `transformers` 5.23 | vLLM | SGLang | TensorRT-LLM | TGI |
# |---|---|---|---|---|---|
# | switched on by | `watermarking_config` | `--watermark-config` | `--enable-watermark` | `WatermarkConfig` | `watermark` in a request |
# | green lists | `greenlist_ratio`, `bias`, `hashing_key` | `sbw`: `sbw_gamma`, `sbw_delta` | none | none | `WATERMARK_GAMMA`, `WATERMARK_DELTA` |
# | race | none | `gumbel` | Aaronson-Gumbel, the default | `gumbel` | none |
# | tournament | `SynthIDTextWatermarkingConfig`: `keys`, `ngram_len` | planned | `synthid` | none | none |
# | ids of context | `context_width`, 1 | `context_width`, 4 | tournament: `ngram_len` - 1 = 4 | `context_width`, 4 | 1 |
# | detector, repeated contexts | every one counts, unless `ignore_repeated_ngrams` | once, unless `deduplicate_contexts=False` | once | | no detector |
#
# (From their documentation and source, read in November 2026; TensorRT-LLM calls its own a
# prototype.) vLLM and SGLang do not mark greedy requests with the race: there is nothing to
# draw. vLLM advises to measure false positives on your own unmarked texts before anything is decided
# by the result. Cohere serves marked versions of some models from its servers in the EU, and says
# that a negative result does not mean that no machine wrote the text. xAI's API names a marked
# response in the header `x-watermark`.
#
# ## To read
#
# - Kirchenbauer et al.: *A Watermark for Large Language Models*, ICML 2023,
#   [arXiv:2301.10226](https://arxiv.org/abs/2301.10226). Green lists, z, and why entropy matters.
# - Kirchenbauer et al.: *On the Reliability of Watermarks for Large Language Models*, ICLR 2024,
#   [arXiv:2306.04634](https://arxiv.org/abs/2306.04634). Edits and paraphrases.
# - Aaronson: [a talk on watermarks](https://simons.berkeley.edu/sites/default/files/2024-10/LLM24-2%20Slides%20-%20Scott%20Aaronson.pdf),
#   of 2024, on the race that he proposed in 2022.
# - Kuditipudi et al.: *Robust Distortion-free Watermarks for Language Models*, 2023,
#   [arXiv:2307.15593](https://arxiv.org/abs/2307.15593).
# - Dathathri et al.: *Scalable watermarking for identifying large language model outputs*, Nature
#   634, 818-823, 2024, [doi:10.1038/s41586-024-08025-4](https://doi.org/10.1038/s41586-024-08025-4).
#   The tournament.
# - Jovanović, Staab, Vechev: *Watermark Stealing in Large Language Models*, ICML 2024,
#   [arXiv:2402.19361](https://arxiv.org/abs/2402.19361).
# - He et al.: *Improving the Trade-off Between Watermark Strength and Speculative Sampling
#   Efficiency for Language Models*, 2026, [arXiv:2602.01428](https://arxiv.org/abs/2602.01428).
# - Phipson, Smyth: *Permutation P-values Should Never Be Zero*, 2010, Statistical Applications in
#   Genetics and Molecular Biology 9. The 1 in `p_value`.
