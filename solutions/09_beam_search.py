# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Beam search
#
# **After this lesson you have a beam search that equals `generate`, id for id and score for
# score, and you know when looking for likelier text is a mistake.**
#
# You write: `exact_search`, `beam_step`, `counterexample`, `length_normalise`,
# `reorder_cache`, `beam_search`, `find_bugs` and `diverse_beam_search`. About 180 minutes.
# Builds on lessons 03 and 07: the loop and `position_ids` come along in the first cell.

# %% tags=["setup"]
import copy
import itertools

import torch
from transformers import DynamicCache

from course import carry

decode = carry("decode")
pick_greedy = carry("pick_greedy")
position_ids = carry("position_ids")

# %%
import textwrap

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load, random_llama

model, tokenizer = load()

# %% [markdown]
# ## 1. The likeliest text
#
# Greedy decoding takes the likeliest *token* each time. That need not give the likeliest
# *text*: a first token that looks worse may lead to much better ones. With a vocabulary of 6
# tokens and texts of 4 we can look at all 6⁴ = 1,296 texts and know.

# %% [markdown]
# ### Exercise 09.1 · `exact_search`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 14 lines
#
# Find the likeliest of all continuations with `max_new_tokens` tokens, and its score: the sum
# of the log-probabilities of the new tokens. No token ends a text here. More than 100,000 texts
# are a `ValueError`.
#
# By hand: the prompt is the token 2, which never comes again. Behind it P(0) = 0.6 and P(1) =
# 0.4; behind a 0 both have 0.5; behind a 1 they have 0.1 and 0.9. The texts 00, 01, 10, 11
# have 0.3, 0.3, 0.04, 0.36: the result is 2 1 1, with the score ln 0.36 = -1.02. (Greedy
# begins with 0.)
#
# <details><summary>Hint 1</summary><code>itertools.product(range(vocab), repeat=n)</code>
# gives all continuations; <code>model.config.vocab_size</code> is the number of
# tokens.</details>
# <details><summary>Hint 2</summary>All texts in one batch, behind copies of the prompt. The
# logits at the places from <code>prompt - 1</code> to the last but one predict the new
# tokens.</details>


# %% tags=["exercise"]
def exact_search(
    model, ids: torch.Tensor, max_new_tokens: int
) -> tuple[torch.Tensor, float]:
    """The likeliest continuation of all, found by trying each.

    ids: (1, seq) int64. Returns ids (1, seq + max_new_tokens) and the sum of the new
    tokens' log-probabilities. Raises ValueError if there are over 100,000 texts.
    """
    ### BEGIN SOLUTION
    vocab = model.config.vocab_size
    if vocab**max_new_tokens > 100_000:
        raise ValueError(f"{vocab} ** {max_new_tokens} texts are too many to try")
    new = torch.tensor(list(itertools.product(range(vocab), repeat=max_new_tokens)))
    new = new.to(ids.device)  # (texts, max_new_tokens)
    texts = torch.cat([ids.expand(len(new), -1), new], dim=-1)
    with torch.no_grad():
        logits = model(texts).logits[:, ids.shape[1] - 1 : -1].float()
    logprobs = logits.log_softmax(-1).gather(-1, new[..., None])[..., 0]
    scores = logprobs.sum(-1)  # (texts,)
    best = scores.argmax()
    return texts[best][None], scores[best].item()
    ### END SOLUTION


# %% tags=["check"]
check(exact_search)


# %% [markdown]
# **Predict:** on 20 random models, how often does greedy decoding find the likeliest text?


# %% tags=["nbval-check-output"]
tiny = [random_llama(6, seed=seed, eos_token_id=None) for seed in range(20)]
start = torch.tensor([[1, 2]])
exact = [exact_search(one, start, 4) for one in tiny]
found = 0
for one, (best, _) in zip(tiny, exact, strict=True):
    found += decode(one, start, 4, pick_greedy).equal(best)
print(f"greedy finds the likeliest of 1,296 texts in {found} of 20 models")

# %% [markdown]
# ## 2. Keep more than one
#
# A vocabulary of 49,152 leaves no hope of trying all. *Beam search* keeps the K best
# beginnings (*beams*; K is `num_beams` in `transformers`) instead of one: continue each with
# every token, and keep the K best of all that.

# %% [markdown]
# ### Exercise 09.2 · `beam_step`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 5 lines
#
# `scores` has the score of each beam so far, `logprobs` the log-probability of each token
# behind each beam. Added up that makes beams × vocab sums. Return the k largest of them, and
# for each the beam and the token that it belongs to.
#
# By hand: two beams with the scores -1, -2, three tokens with the logprobs [-3, -1, -1.2] and
# [-0.5, -2.2, -4]: the sums are -4, -2, -2.2 and -2.5, -4.2, -6. k = 2 gives the scores -2,
# -2.2, the beams 0, 0 and the tokens 1, 2: beam 0 is continued twice, and beam 1 dies. With
# k = 3 comes -2.5: beam 1, token 0.
#
# <details><summary>Hint 1</summary><code>flatten(1)</code> the sums, then
# <code>topk</code>.</details>
# <details><summary>Hint 2</summary>A place in the flat list is
# <code>beam * vocab + token</code>: <code>//</code> and <code>%</code> take it
# apart.</details>


# %% tags=["exercise"]
def beam_step(
    scores: torch.Tensor, logprobs: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k best continuations of all beams, the best one first.

    scores: (batch, beams) float. logprobs: (batch, beams, vocab) float.
    Returns scores (batch, k) float, beam and token (batch, k) int64.
    """
    ### BEGIN SOLUTION
    vocab = logprobs.shape[-1]
    sums = (scores[..., None] + logprobs).flatten(1)  # (batch, beams * vocab)
    scores, places = sums.topk(k, dim=-1)
    return scores, places // vocab, places % vocab
    ### END SOLUTION


# %% tags=["check"]
check(beam_step)

# %% [markdown]
# A few lines around it make a search, without an end and without a cache. From the start
# there is one beam; later K.


# %%
def simple_beams(model, ids, k, steps):
    """The k best texts and scores, and of each step (scores, beam, token)."""
    scores, history = torch.zeros(1, 1, device=ids.device), []
    for _ in range(steps):
        with torch.no_grad():
            logprobs = model(ids).logits[:, -1].float().log_softmax(-1)
        scores, beam, token = beam_step(scores, logprobs[None], k)
        ids = torch.cat([ids[beam[0]], token[0, :, None]], dim=-1)
        history.append((scores[0].tolist(), beam[0].tolist(), token[0].tolist()))
    return ids, scores[0], history


# %% tags=["nbval-check-output"]
for k in (1, 2, 3, 6):
    found = 0
    for one, (best, _) in zip(tiny, exact, strict=True):
        found += simple_beams(one, start, k, 4)[0][:1].equal(best)
    print(f"K = {k}: the likeliest of 1,296 texts in {found} of 20 models")
other = random_llama(6, seed=26, eos_token_id=None)
found = simple_beams(other, start, 6, 4)[0][:1].equal(exact_search(other, start, 4)[0])
print("K = 6, one more model:", found)

# %% [markdown]
# One beam is greedy decoding. Six beams are many, but not all: before the last token they hold
# 6 of 216 beginnings, and may miss the right one.
#
# With the real model, three beams and five steps. Each column is a step, the best beam on
# top, with its score so far; a line leads from a token to the ones that continue it. Beams
# without a line to the right died; the orange line leads to the best text that was found.

# %%
ids = tokenizer("The cat sat on the", return_tensors="pt").input_ids.to(model.device)
_, _, history = simple_beams(model, ids, 3, 5)
best, row = set(), 0
for step in range(5, 0, -1):
    best.add((step, row))
    row = history[step - 1][1][row]  # the beam that it continues
fig, ax = plt.subplots(figsize=(7.5, 2.8))
for step, (scores, beams, tokens) in enumerate(history, 1):
    rows = enumerate(zip(scores, beams, tokens, strict=True))
    for row, (score, beam, token) in rows:
        before = (step - 1, -beam if step > 1 else -1)
        colour = figures.RED if (step, row) in best else figures.SKY
        ax.plot([before[0], step], [before[1], -row], color=colour, zorder=0)
        label = f"{figures.token_label(tokenizer, token)}\n{score:.1f}"
        box = {"facecolor": "white", "edgecolor": figures.BLUE, "boxstyle": "round"}
        ax.text(step, -row, label, ha="center", va="center", fontsize=8, bbox=box)
plain = {"facecolor": "white", "edgecolor": "white"}
ax.text(0, -1, "The cat sat\non the", ha="center", va="center", fontsize=8, bbox=plain)
ax.set(xlim=(-0.5, 5.5), ylim=(-2.6, 0.6))
ax.axis("off")
plt.show()

# %% [markdown]
# It begins with the third-best token, which greedy decoding would never have taken.
#
# ## 3. Is it at least never worse than greedy?
#
# Two beams hold more than one. So it is often said that beam search always finds a text that
# is at least as likely as the greedy one. **Predict:** is that true?

# %% [markdown]
# ### Exercise 09.3 · `counterexample`
#
# difficulty ★★★ · importance ★★☆ · 25 min · our answer: 10 lines
#
# It is false. Give a table of probabilities in which two beams find a *less* likely text than
# greedy. Row i has the probabilities of the token that follows token i; the text begins
# behind token 0 and has 3 new tokens. Each row sums to 1; use as many tokens as you like, up
# to 10.
#
# By hand, how the two go: if row 0 is 0, 0.6, 0.4 then greedy takes token 1, and two beams
# hold 1 (0.6) and 2 (0.4). At the next step they compare the products.
#
# <details><summary>Hint 1</summary>The greedy text must be thrown out by the beams at the
# second step, by two continuations of the *other* first token.</details>
# <details><summary>Hint 2</summary>So: token 1 a little likelier than token 2 at first. Behind
# 1 the probability is spread, behind 2 it is on two tokens.</details>
# <details><summary>Hint 3</summary>And at the third step the greedy text goes on with
# probability 1, while the tokens that threw it out go on with everything spread
# evenly.</details>


# %% tags=["exercise"]
def counterexample() -> torch.Tensor:
    """Probabilities (vocab, vocab) for which greedy beats two beams in three steps."""
    ### BEGIN SOLUTION
    even = 1 / 7
    return torch.tensor(
        [
            [0.0, 0.55, 0.45, 0.0, 0.0, 0.0, 0.0],  # 1 is a little likelier than 2
            [0.0, 0.0, 0.0, 0.34, 0.0, 0.33, 0.33],  # behind 1 it is spread
            [0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5],  # behind 2 it is on two tokens
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # the greedy text goes on for certain
            [even] * 7,
            [even] * 7,
            [even] * 7,
        ]
    )
    ### END SOLUTION


# %% tags=["check"]
check(counterexample)

# %% [markdown]
# How often does it happen? In the tiny models, and with the prompt of the figure:

# %% tags=["nbval-check-output"]
lost = 0
for one in tiny:
    (greedy,), (two, _) = (simple_beams(one, start, k, 4)[1] for k in (1, 2))
    lost += bool(two < greedy - 1e-4)
print(f"two beams lose to greedy in {lost} of 20 models")
for steps in (5, 12):
    scores = [simple_beams(model, ids, k, steps)[1][0].item() for k in (1, 2, 3)]
    print(f"{steps} tokens of the cat: K = 1, 2, 3 find", [f"{x:.1f}" for x in scores])

# %% [markdown]
# With 5 tokens more beams find likelier text, with 12 greedy decoding wins. A beam search
# usually finds a text at least as likely as the greedy one, and nothing guarantees it. Section
# 7 has another real case.
#
# ## 4. Texts of different lengths
#
# Each further token makes the sum of log-probabilities more negative. So a search that
# compares sums likes short texts. The usual cure divides by a power of the length.

# %% [markdown]
# ### Exercise 09.4 · `length_normalise`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 3 lines
#
# The score divided by `length ** alpha`. With `alpha=1` that is the mean log-probability of a
# token.
#
# By hand: -6 over 3 tokens with `alpha=1` is -2, with `alpha=0` it stays -6, with `alpha=2`
# it is -0.67.
#
# <details><summary>Hint 1</summary>One line, after the check of <code>length</code>.</details>


# %% tags=["exercise"]
def length_normalise(
    score: float | torch.Tensor, length: int, alpha: float
) -> float | torch.Tensor:
    """score / length ** alpha.

    score: a sum of log-probabilities. length: new tokens, 1 or more.
    alpha: transformers' `length_penalty`; 0 is off.
    Raises ValueError if length is below 1, whatever alpha is.
    """
    ### BEGIN SOLUTION
    if length < 1:
        raise ValueError(f"a text has at least one new token, got length {length}")
    return score / length**alpha
    ### END SOLUTION


# %% tags=["check"]
check(length_normalise)

# %% [markdown]
# **Predict.** `transformers` calls alpha the `length_penalty`. Which texts does a
# `length_penalty` of 2 favour?

# %% tags=["nbval-check-output"]
for alpha in (0.0, 1.0, 2.0):
    short, long = length_normalise(-4.0, 4, alpha), length_normalise(-9.0, 8, alpha)
    print(
        f"{alpha}: short {short:.2f}, long {long:.2f}; the long one {long - short:+.2f}"
    )

# %% [markdown]
# The *long* ones: scores are negative, and dividing a negative number by more brings it
# nearer to 0. A "penalty" above 0 rewards length: at 1 the long text has nearly caught up, at
# 2 it wins.
#
# ## 5. The whole search
#
# The beams are the rows of one batch, and share one cache (lesson 07). When beam 2 dies and
# beam 0 is continued twice, the rows of the cache must follow.

# %% [markdown]
# ### Exercise 09.5 · `reorder_cache`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# A new cache whose row i is row `beam[i]` of the old one, in every layer, for keys and
# values. The old one stays as it is, so that one can go on from it in other ways. There may be
# more or fewer rows than before. A `DynamicCache` has a method `reorder_cache` of its own, but
# that changes the cache in place.
#
# By hand: rows a, b and beam 1, 1, 0 give the rows b, b, a.
#
# <details><summary>Hint 1</summary><code>copy.copy</code> would share the layers:
# <code>copy.deepcopy</code>, then the cache's own method.</details>


# %% tags=["exercise"]
def reorder_cache(cache: DynamicCache, beam: torch.Tensor) -> DynamicCache:
    """The cache of the rows beam[0], beam[1], ...: a copy. beam: (rows,) int64."""
    ### BEGIN SOLUTION
    chosen = copy.deepcopy(cache)
    chosen.reorder_cache(beam)
    return chosen
    ### END SOLUTION


# %% tags=["check"]
check(reorder_cache)

# %% [markdown]
# How does a search end? A continuation with an EOS is finished: it gets its normalised score
# and is put aside, and the beams go on without it. A running beam may still become a better
# text. When may the search stop? `early_stopping` says:
#
# - `True`: as soon as K texts are finished;
# - `False` (the default): when K are finished and the best running beam, scored at its
#   *present* length in new tokens, is no better than the worst of them. That is a guess: with a
#   `length_penalty` above 0 it may have a better score when it is longer;
# - `"never"`: the same, but the running beam is scored at the length that flatters it most:
#   `max_new_tokens` if `length_penalty` is above 0, else the present one.

# %% [markdown]
# ### Exercise 09.6 · `beam_search`
#
# difficulty ★★★ · importance ★★★ · 60 min · our answer: 50 lines
#
# For each step, numbered from 1 (that is also the number of new tokens):
#
# 1. The log-probabilities of all beams. At first these are K copies of the prompt, the first
#    with score 0, the others with -inf, or all beams would stay the same.
# 2. `beam_step` with K · max(2, 1 + number of EOS ids) candidates (all, if there are fewer):
#    K are left even if the best all end. A candidate is the ids of its beam and its token; its
#    score has that token in it, an EOS too.
# 3. A candidate is *done* if its token is an EOS, or at the last step. Of the first K
#    candidates (only these) the done ones join the finished texts of their prompt, with
#    their normalised score, but none with a score of -inf: with more beams than tokens there
#    are some. The best K finished texts are kept.
# 4. Of *all* candidates that are not done the best K are the new beams; ids, mask and cache
#    follow.
# 5. Is the search of a prompt over (see above)? It needs K finished texts for that. Once over
#    it stays over, and takes no more finished texts while the others go on. All over: stop.
#
# The result is the best finished text of each prompt, padded on the right to the longest. The
# model is called as in `decode_cached`: the prompt, then one token a row, with
# `attention_mask`, `position_ids`, `past_key_values` and `use_cache`.
#
# By hand: K = 2, EOS 9, `length_penalty=1`. First step: the candidates 5 (-0.7), 9 (-1.2),
# 7 (-2), 8 (-4). The text 9 is finished with -1.2 / 1; the beams are 5 and 7. Had 9 been
# third, it would have been dropped. Second step: 5 9 (-1.2), 5 4 (-1.8), 7 9 (-2.5), 7 4
# (-3.3). Now 5 9 is finished, with -1.2 / 2 = -0.6, and that makes two. With
# `early_stopping=True` the search ends, with 5 9. With `False` it goes on: the best running
# beam, 5 4, has -1.8 / 2 = -0.9, and the worst finished text -1.2.
#
# <details><summary>Hint 1</summary>Begin with <code>decode_cached</code> of lesson 07: the
# call of the model is the same, with K rows for each prompt
# (<code>repeat_interleave(K, 0)</code>).</details>
# <details><summary>Hint 2</summary>Finished texts in Python: for each prompt a list of
# <code>(score, ids)</code>, sorted, cut to K.</details>
# <details><summary>Hint 3</summary>The new beams: <code>scores.masked_fill(done,
# -inf).topk(K)</code> gives their places among the candidates; <code>gather</code> beam and
# token there. Row of beam j of prompt i in the flat batch: <code>i * K + j</code>.</details>
# <details><summary>Hint 4</summary>A prompt's search is over only if it has K finished texts;
# then if early_stopping is True, or if <code>length_normalise(best running score, horizon,
# length_penalty)</code> is not above the worst of the K. The horizon is the length at which
# the beam is scored: the new tokens so far, or <code>max_new_tokens</code>.</details>


# %% tags=["exercise"]
def beam_search(
    model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float,
    early_stopping: bool | str,
    eos_ids: list[int],
    pad_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best text of a beam search for each prompt, as `generate` finds it.

    ids, mask: (batch, seq) int64, padded on the left, left unchanged.
    early_stopping: True, False or "never". Returns ids (batch, seq + new) with pad_id
    behind the end, new being that of the longest, and scores (batch,) float32.
    Raises ValueError for any other early_stopping, and if max_new_tokens is below 1.
    """
    ### BEGIN SOLUTION
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f'early_stopping is True, False or "never": {early_stopping}')
    # 1. K copies of each prompt, of which at first only one may be continued
    batch, k = len(ids), num_beams
    rows, mask = ids.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
    scores = torch.full((batch, k), float("-inf"), device=ids.device)
    scores[:, 0] = 0
    first = torch.arange(batch, device=ids.device)[:, None] * k  # row of beam 0
    ends = torch.tensor(eos_ids, dtype=torch.long, device=ids.device)
    finished, over = [[] for _ in range(batch)], [False] * batch
    fed, cache = rows, None
    for length in range(1, max_new_tokens + 1):
        # 2. Candidates
        with torch.no_grad():
            output = model(
                fed,
                attention_mask=mask,
                position_ids=position_ids(mask)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        logprobs = output.logits[:, -1].float().log_softmax(-1)
        logprobs = logprobs.unflatten(0, (batch, k))  # (batch, k, vocab)
        wanted = k * min(max(2, 1 + len(eos_ids)), logprobs.shape[-1])
        scores, beam, token = beam_step(scores, logprobs, wanted)
        done = torch.isin(token, ends) | (length == max_new_tokens)
        # 3. Finished texts, of the first K candidates only
        for i in range(batch):
            for j in range(k):
                if done[i, j] and not over[i] and scores[i, j] > float("-inf"):
                    text = torch.cat(
                        [rows[first[i, 0] + beam[i, j]], token[i, j, None]]
                    )
                    score = length_normalise(
                        scores[i, j].item(), length, length_penalty
                    )
                    finished[i].append((score, text))
            finished[i] = sorted(finished[i], key=lambda f: f[0], reverse=True)[:k]
        # 4. The new beams
        scores, places = scores.masked_fill(done, float("-inf")).topk(k, dim=-1)
        chosen = (first + beam.gather(-1, places)).flatten()  # (batch * k,)
        fed = token.gather(-1, places).flatten()[:, None]
        rows = torch.cat([rows[chosen], fed], dim=-1)
        mask = torch.cat([mask[chosen], torch.ones_like(fed)], dim=-1)
        cache = reorder_cache(output.past_key_values, chosen)
        # 5. Can a beam still win?
        far = early_stopping == "never" and length_penalty > 0
        for i in range(batch):
            if len(finished[i]) == k:
                best = scores[i, 0].item()
                best = length_normalise(
                    best, max_new_tokens if far else length, length_penalty
                )
                over[i] |= early_stopping is True or best <= finished[i][-1][0]
        if all(over):
            break
    # 6. The best of each, padded
    best = [texts[0] for texts in finished]
    out = [text for _, text in best]
    out = torch.nn.utils.rnn.pad_sequence(out, batch_first=True, padding_value=pad_id)
    return out, torch.tensor([score for score, _ in best])
    ### END SOLUTION


# %% tags=["check"]
check(beam_search)

# %% [markdown]
# The same as `generate`, with the real model and two prompts of different lengths:

# %% tags=["nbval-check-output"]
tokenizer.padding_side = "left"
questions = ["The capital of France is", "Once upon a time there was a little"]
two = tokenizer(questions, return_tensors="pt", padding=True).to(model.device)
eos = [tokenizer.eos_token_id]
arguments = (two.input_ids, two.attention_mask, 3, 10, 1.0, False, eos, eos[0])
mine, my_scores = beam_search(model, *arguments)
theirs = model.generate(
    **two,
    num_beams=3,
    max_new_tokens=10,
    do_sample=False,
    length_penalty=1.0,
    early_stopping=False,
    eos_token_id=eos,
    pad_token_id=eos[0],
    return_dict_in_generate=True,
    output_scores=True,
)
print("same ids as generate:", mine.equal(theirs.sequences))
apart = (my_scores - theirs.sequences_scores.cpu()).abs().max()
print("scores less than 0.0001 apart:", bool(apart < 1e-4))
for row in mine:
    print(repr(tokenizer.decode(row, skip_special_tokens=True)))

# %% [markdown]
# ## 6. A bug hunt
#
# Here is a beam search for one prompt, with mistakes that are common in blog posts. Four of the
# ten lettered lines are wrong. It runs all the same, and it returns text.


# %%
def from_a_blog(model, ids, k, n, eos_ids):
    ids = ids.repeat(k, 1)
    scores, finished = torch.zeros(1, k, device=ids.device), []  # A
    for length in range(1, n + 1):
        logits = model(ids).logits[:, -1].detach()  # B
        logprobs = logits.softmax(-1)[None]  # C
        scores, beam, token = beam_step(scores, logprobs, 2 * k)  # D
        ids = torch.cat([ids.repeat(2, 1), token[0, :, None]], -1)  # E
        ends = torch.isin(token[0], torch.tensor(eos_ids, device=ids.device))  # F
        for i in ends[:k].nonzero()[:, 0]:  # G
            finished.append((scores[0, i].item() / length, ids[i]))  # H
        keep = (~ends).nonzero()[:k, 0]
        ids, scores = ids[keep], scores[:, keep]  # I
    finished += [(s.item(), row) for s, row in zip(scores[0], ids, strict=True)]  # J
    return max(finished, key=lambda found: found[0])[1]


# %%
ids = tokenizer(questions[0], return_tensors="pt").input_ids.to(model.device)
print("the blog's", repr(tokenizer.decode(from_a_blog(model, ids, 3, 10, eos))))
right, _ = beam_search(model, ids, torch.ones_like(ids), 3, 10, 1.0, "never", eos, 0)
print("yours     ", repr(tokenizer.decode(right[0])))


# %% [markdown]
# ### Exercise 09.7 · `find_bugs`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 1 line
#
# The letters of the four wrong lines. (There is one EOS id, no cache, and the scores are
# divided by the length. That it is slow and never stops early is no bug here.)
#
# By hand: if only line D were wrong, the answer would be `{"D"}`.
#
# <details><summary>Hint 1</summary>What do K equal copies of a prompt with equal scores
# become in the first step?</details>
# <details><summary>Hint 2</summary>What is a sum of probabilities? Which row does the token of
# candidate i belong to?</details>
# <details><summary>Hint 3</summary>At the end, two kinds of scores are compared.</details>


# %% tags=["exercise"]
def find_bugs() -> set[str]:
    """The letters of the four wrong lines of `from_a_blog`."""
    ### BEGIN SOLUTION
    return {"A", "C", "E", "J"}
    ### END SOLUTION


# %% tags=["check"]
check(find_bugs)

# %% [markdown]
# ## 7. More search, better text?
#
# Now that it is right: does it pay? Wider and wider beams, without any length normalisation,
# so that the score is the log-probability of the answer. The cell takes about 20 seconds.
#
# **Predict:** what happens to the log-probability, and what to the length? Do the answers get
# better?


# %%
def asked(question):
    chat = [{"role": "user", "content": question}]
    made = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return made.input_ids.to(model.device)


def search(question, width):
    """The answer, its log-probability and its number of tokens, 64 at most."""
    ids = asked(question)
    out, score = beam_search(
        model, ids, torch.ones_like(ids), width, 64, 0.0, "never", eos, eos[0]
    )
    new = out[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), score.item(), len(new)


# %%
WIDTHS = (1, 2, 4)
QUESTIONS = ("What is the largest planet?", "Suggest a title for a story about a dog.")
results = {}
for question in QUESTIONS:
    print(question)
    for width in WIDTHS:
        text, score, length = search(question, width)
        results[question, width] = score, length
        beams = f"{width} beam{'s' * (width > 1)}"
        said = f"{beams}, {score:.1f}, {length} tokens: {text}"
        said += " (cut off)" if length == 64 else ""
        print(textwrap.fill(said, 88, initial_indent="  ", subsequent_indent="    "))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6))
names = ("log-probability", "new tokens")
for n, (ax, name) in enumerate(zip(axes, names, strict=True)):
    for question in QUESTIONS:
        values = [results[question, width][n] for width in WIDTHS]
        ax.plot(WIDTHS, values, "o-", label=question)
    ax.set(xlabel="beams", ylabel=name, xscale="log")
    ax.set_xticks(WIDTHS, WIDTHS)
    ax.minorticks_off()
axes[0].legend(loc="lower right", fontsize=7)
axes[1].set(ylim=(0, 68))
plt.show()

# %% [markdown]
# Four beams find a title that is far *less* likely than the greedy one: your counterexample,
# in the wild. Otherwise a wider beam finds an answer at least as likely, for these two
# questions. And likelier is shorter: each panel is nearly the other one upside down.
#
# Does it pay? The likeliest planet is a short and tidy answer, and wrong (it is Jupiter, which
# the greedy answer at least mentions). The likeliest title says nothing.
#
# Where does the search for likelier answers end? The shortest answer of all is none: the end
# at once. A third question has longer answers.

# %%
cat = "Give me a name for my cat."
text, *results[cat, 2] = search(cat, 2)
print(textwrap.fill(f"{results[cat, 2][1]} tokens: {text}", 88))
for question in (*QUESTIONS, cat):
    with torch.no_grad():
        logprobs = model(asked(question)).logits[0, -1].float().log_softmax(-1)
    empty = logprobs[eos[0]]
    rank = (logprobs > empty).sum().item() + 1
    best = max(found[0] for (about, _), found in results.items() if about == question)
    print(f"{question:40} best {best:.1f}, empty {empty:.1f}, EOS at place {rank:,}")

# %% [markdown]
# For the cat the *empty* answer is likelier than the one that two beams found: it pays once,
# where 41 tokens pay 41 times. The search has missed it, since at the first step thousands of
# tokens stand before the EOS. Where a good answer is short, as above, something likelier than
# nothing can be found.
#
# Stahlberg and Byrne (2019) searched *exactly* in a translation model, and for more than half
# of the sentences the likeliest translation was the empty one. That beam search gives good
# translations is owed to its errors: it does not find what it looks for. What likely chat and
# likely stories look like was lesson 08.
#
# ## 8. Different beams
#
# Four beams are four texts. **Predict:** in which of 16 new tokens do they differ?

# %%
ids = tokenizer("The cat sat on the", return_tensors="pt").input_ids.to(model.device)
out, scores, _ = simple_beams(model, ids, 4, 16)
for row, score in zip(out, scores.tolist(), strict=True):
    print(f"{score:6.1f} {tokenizer.decode(row[ids.shape[1] :])!r}")

# %% [markdown]
# In the last word: beams descend from one ancestor. *Diverse beam search* divides them into
# groups. The groups take their step one after the other, and a token that an earlier group
# has just chosen costs each later group something.

# %% [markdown]
# ### Exercise 09.8 · `diverse_beam_search`
#
# difficulty ★★★ · importance ★☆☆ · 30 min · our answer: 29 lines
#
# One prompt, no EOS, no cache needed. `num_beams / num_groups` beams in each group; a
# `ValueError` if that does not come out even, or if there is no group. At each step, group
# after group: from the log-probabilities of each token subtract `diversity` times the number
# of beams of earlier groups that have chosen this token at this step; then `beam_step` within
# the group. The penalty decides the choice and the order; the scores that are carried on and
# returned are without it.
#
# By hand: two groups of one beam, and the probabilities 0.5, 0.4, 0.1 for the tokens 0, 1, 2;
# the logarithms are -0.69, -0.92, -2.30. The first group takes 0. With `diversity=0.5` the
# second sees -1.19, -0.92, -2.30 and takes 1, with the score -0.92. With `diversity=0.2` it
# sees -0.89, -0.92, -2.30 and takes 0 as well, with the score -0.69.
#
# <details><summary>Hint 1</summary>One list of (ids, scores) for each group; at first copies
# of the prompt, as in <code>beam_search</code>: a group may have more beams than there are
# tokens.</details>
# <details><summary>Hint 2</summary>Counts of this step: a tensor of zeros
# <code>(vocab,)</code>; after each group <code>counts += torch.bincount(token[0],
# minlength=vocab)</code>.</details>
# <details><summary>Hint 3</summary>The pure score of a choice: <code>scores[0, beam] +
# logprobs[beam, token]</code>, looked up after <code>beam_step</code>.</details>


# %% tags=["exercise"]
def diverse_beam_search(
    model,
    ids: torch.Tensor,
    num_beams: int,
    num_groups: int,
    diversity: float,
    max_new_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All beams of a diverse beam search, group by group, each in beam_step's order.

    ids: (1, seq) int64. Returns ids (num_beams, seq + max_new_tokens) and scores
    (num_beams,), sums of log-probabilities. Raises ValueError if num_groups is below
    1 or does not divide num_beams, or if max_new_tokens is below 1.
    Vijayakumar et al., 2018, with Hamming diversity.
    """
    ### BEGIN SOLUTION
    if num_groups < 1 or num_beams % num_groups:
        raise ValueError(f"{num_beams} beams do not make {num_groups} equal groups")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    size = num_beams // num_groups
    # Copies of the prompt, of which only one may be continued
    start = torch.full((size,), float("-inf"), device=ids.device)
    start[0] = 0
    groups = [(ids.expand(size, -1), start)] * num_groups
    for _ in range(max_new_tokens):
        counts = 0  # of each token among the earlier groups, at this step
        for g, (texts, scores) in enumerate(groups):
            with torch.no_grad():
                logits = model(texts).logits[:, -1].float()
            logprobs = logits.log_softmax(-1)  # (beams, vocab)
            seen = logprobs - diversity * counts
            _, beam, token = beam_step(scores[None], seen[None], size)
            beam, token = beam[0], token[0]  # (size,)
            groups[g] = (
                torch.cat([texts[beam], token[:, None]], dim=-1),
                scores[beam] + logprobs[beam, token],
            )
            counts = counts + torch.bincount(token, minlength=logits.shape[-1])
    texts, scores = zip(*groups, strict=True)
    return torch.cat(texts), torch.cat(scores)
    ### END SOLUTION


# %% tags=["check"]
check(diverse_beam_search)

# %% [markdown]
# **Predict:** four groups of one beam. What do they say without a penalty, what with one?

# %%
for diversity in (0.0, 2.0):
    out, scores = diverse_beam_search(model, ids, 4, 4, diversity, 8)
    print(f"diversity {diversity}")
    for row, score in zip(out, scores.tolist(), strict=True):
        print(f"  {score:6.1f} {tokenizer.decode(row[ids.shape[1] :])!r}")

# %% [markdown]
# Without a penalty four groups of one beam are four times greedy. With it they say different
# things, each less likely than the first. (When `transformers` still had this search, in
# version 4, it carried the penalised scores on, unlike the paper; so its scores differ.)
#
# ## Questions
#
# 1. Beam search with one beam: which decoder is that? And with as many beams as there are
#    texts?
# 2. Why must a candidate with an EOS that stands at place K + 1 be dropped?
# 3. `early_stopping=True` and `length_penalty=2`: what goes wrong?
#
# <details><summary>Answers</summary>
#
# 1. Greedy. With all texts it is exact search.
# 2. K candidates are better. A running text from below place K must still compete at each
#    later step; an end would be put aside for good. A bad text would be finished only because
#    it ended early, and K of such would stop the search.
# 3. The search ends with the first K finished texts, which are short, though the score
#    favours long ones.
#
# </details>
#
# ## In the wild
#
# | | OpenAI chat API | `transformers` | vLLM | SGLang | llama.cpp |
# |---|---|---|---|---|---|
# | beam search | none | `num_beams` | `use_beam_search`, `n` | `beam_width` | none |
# | length | – | `length_penalty` | `length_penalty` | the mean, always | – |
# | when to stop | – | `early_stopping` | at the limit | at the limit | – |
# | diverse | – | moved to the hub in version 5 | none | none | – |
#
# vLLM divides by the length *with* the prompt, `transformers` and SGLang by the new tokens: the
# same `length_penalty` ranks differently. In `transformers` an end counts if it is among the
# first K candidates, in SGLang as long as fewer than K candidates that go on stand before it.
# fairseq, made for translation, forces EOS at the limit, and so its probability is in the
# score; `transformers` takes unfinished texts as they are. SGLang has had beam search since
# July 2026. llama.cpp [removed its own](https://github.com/ggml-org/llama.cpp/pull/7736) in
# 2024, supposing that nobody used it.
#
# ## To read
#
# - Wu et al.: *Google's Neural Machine Translation System*, 2016,
#   [arXiv:1609.08144](https://arxiv.org/abs/1609.08144). Length normalisation.
# - Koehn, Knowles: *Six Challenges for Neural Machine Translation*, 2017,
#   [arXiv:1706.03872](https://arxiv.org/abs/1706.03872). Wider beams, worse translations.
# - Stahlberg, Byrne: *On NMT Search Errors and Model Errors: Cat Got Your Tongue?*, EMNLP
#   2019, [arXiv:1908.10090](https://arxiv.org/abs/1908.10090).
# - Vijayakumar et al.: *Diverse Beam Search*, AAAI 2018,
#   [arXiv:1610.02424](https://arxiv.org/abs/1610.02424).
