# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Speculative decoding
#
# **After this lesson your decoder writes several tokens in one call of the model, and the
# text stays the same, token for token.**
#
# You write: `ngram_draft`, `verify_greedy`, `speculate_greedy`, `residual`,
# `verify_sampled`, `speculate_sampled`, `expected_tokens`, `best_k`, `SuffixDraft` and
# `AdaptiveLength`. About 180 minutes. Builds on lesson 07: `cached_step` comes along in
# the first cell.

# %% tags=["setup"]
from collections import Counter, defaultdict
from collections.abc import Callable

import torch

from course import carry

cached_step = carry("cached_step")


def run(model, tokens: list[int], cache, last: int):
    """One call of the model with `tokens` behind what the cache holds.

    Returns the float32 logits of the last `last` positions, (last, vocab), and the
    cache, which then holds `tokens`, too.
    """
    fed = torch.tensor([tokens], device=model.device)
    with torch.no_grad():
        output = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=last)
    return output.logits[0, -last:].float(), output.past_key_values


# %%
import copy
import time

import matplotlib.pyplot as plt
import numpy

from course import check
from course.kit import figures
from tiny_models import load, random_llama

model, tokenizer = load()
EOS = model.generation_config.eos_token_id
NEW = 40


# %%
def chat(text):
    messages = [{"role": "user", "content": text}]
    made = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return made["input_ids"].to(model.device)


def seconds(function):
    start = time.perf_counter()
    got = function()
    return got, time.perf_counter() - start


# %% [markdown]
# ## 1. What a call costs
#
# With a cache each token is one call of the model, and the call of one token reads
# every weight. A call of eight tokens reads the same weights, once. **Predict:** a call
# with one new token takes some time. How much longer does a call with 4 take, with 8,
# with 32?

# %%
text = tokenizer("It was a dark and stormy night. " * 30)["input_ids"]
widths, calls = [1, 2, 4, 8, 16, 32, 64], []
_, cache = run(model, text[:64], None, 1)
for width in widths:
    tries = []
    for _ in range(4):
        (_, cache), took = seconds(
            lambda: run(model, text[64 : 64 + width], cache, width)
        )
        tries.append(took)
        cache.crop(-width)
    calls.append(min(tries))  # what else runs only makes it slower
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(widths, [x / calls[0] for x in calls], "o-", label="measured here")
ax.plot(
    widths[:4], widths[:4], "--", color=figures.GREY, label="one call for each token"
)
ax.set(xlabel="tokens in one call", ylabel="time, one token = 1", ylim=(0, None))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
cost = max(0.0, (calls[3] / calls[0] - 1) / 7)  # a call of 8 against a call of 1
print(f"of the first 8, one more token costs {cost:.2f} of a step")


def steps_of(width):
    """What a call of so many tokens costs, in calls of one: read from the curve."""
    return numpy.interp(width, widths, [x / calls[0] for x in calls])


# %% [markdown]
# The weights are read once, but on a CPU the arithmetic takes its time as well: eight
# tokens cost more than one, and far less than eight calls. (The step from one to two is
# large, probably since `torch` goes from a matrix times a vector to a matrix times a
# matrix.)
#
# Eight tokens in one call is what the *prefill* of a prompt does. For new text there is
# one obstacle: the second token is not known before the first is chosen. **Speculative
# decoding** guesses the next tokens, feeds the guess, and keeps what turns out to be
# right.
#
# Where can a guess come from? Often from the text itself. Who asks for a correction, a
# summary or a change in code gets back much of what they sent.

# %%
STORY = (
    "The lighthouse had been dark for eleven years when the town council decided to "
    "light it again. Nobody could find the key. The last keeper, Mr. Penn, had moved "
    "inland, and he wrote back on a postcard with a picture of a cow: the key hangs "
    "where it always hung."
)
CODE = """def add_item(inventory, name, count):
    if name in inventory:
        inventory[name] += count
    else:
        inventory[name] = count
    return inventory
"""
PROMPTS = {
    "copying": "Repeat the following text exactly, word for word:\n\n" + STORY,
    "code edit": f"Here is some Python code:\n\n{CODE}\nWrite the same code again, but "
    "rename inventory to stock.",
    "summary": "Summarize the following story in a few sentences:\n\n" + STORY,
    "open": "Explain how a refrigerator works, step by step.",
}
prompts = {name: chat(text) for name, text in PROMPTS.items()}

# %% [markdown]
# ### Exercise 13.1 · `ngram_draft`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 7 lines
#
# Guess the next tokens by looking back: take the last `n` ids of the text, find the
# first place where they stood before, and return what followed there, at most `k` ids.
# If they stood nowhere before, try the last `n - 1`, and so on down to one. What
# followed may be fewer than `k` ids, where the text ends, and `[]` if no place is
# found.
#
# By hand: `ngram_draft([7, 8, 9, 5, 7, 8], n=2, k=3)`. The last two ids, 7 8, stood at
# the beginning; 9, 5, 7 followed. With `k=9` it is `[9, 5, 7, 8]`: the text has no
# more. And `ngram_draft([1, 8, 3, 8], n=2, k=2)`: 3 8 stood nowhere before, but 8 did:
# `[3, 8]`.
#
# <details><summary>Hint 1</summary>A place counts only if something follows it. So the
# last ids do not match themselves.</details>
# <details><summary>Hint 2</summary>Two loops: over the sizes <code>n, n - 1, ...,
# 1</code>, and in each over the starts from left to right. The first match ends
# both.</details>
# <details><summary>Hint 3</summary>With <code>size</code> ids from <code>start</code>
# on, what follows begins at <code>start + size</code>, and that is below
# <code>len(ids)</code> for <code>start in range(len(ids) - size)</code>.</details>


# %% tags=["exercise"]
def ngram_draft(ids: list[int], n: int, k: int) -> list[int]:
    """What followed the last ids of the text where they first stood before.

    n: the most ids to match, longest first; k: the most ids to return. A new list,
    empty where nothing matches; `ids` may be empty, and is left unchanged.
    Raises ValueError for n below 1 or k below 0.
    """
    ### BEGIN SOLUTION
    if n < 1 or k < 0:
        raise ValueError(f"n must be 1 or more and k 0 or more, got n={n}, k={k}")
    for size in range(n, 0, -1):
        for start in range(len(ids) - size):
            if ids[start : start + size] == ids[-size:]:
                return ids[start + size : start + size + k]
    return []
    ### END SOLUTION


# %% tags=["check"]
check(ngram_draft)

# %% tags=["nbval-check-output"]
ids = prompts["copying"][0].tolist() + tokenizer(" The last keeper, Mr.")["input_ids"]
print(repr(tokenizer.decode(ngram_draft(ids, 2, 8))))

# %% [markdown]
# A good guess, if the model is going to copy. What if we simply believe it? Below, each
# guess is written down as it is, and the model only fills the gaps. **Predict:** what
# will the text look like?

# %%
ids = prompts["code edit"][0].tolist()
prompt_length = len(ids)
while len(ids) < prompt_length + NEW:
    logits, _ = run(model, ids, None, 1)
    ids.append(logits.argmax().item())
    ids += ngram_draft(ids, 2, 4)  # believed, not verified
print("believed:", repr(tokenizer.decode(ids[prompt_length:])))
own = model.generate(prompts["code edit"], max_new_tokens=NEW, do_sample=False)
print("its own: ", repr(tokenizer.decode(own[0, prompt_length:])))

# %% [markdown]
# Another text. Where a guess was believed, the model lost its say, and the words of the
# prompt come back, whether they fit or not. A guess must be checked, and the check
# needs no call of its own: the call that is fed text and guess gives logits at *each*
# position. So it says what the model itself would have written after the text, after
# the first guessed token, and so on.

# %% [markdown]
# ### Exercise 13.2 · `verify_greedy`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 8 lines
#
# One call of the model on the text and the draft gives a row of logits after the text,
# after the text and one draft token, and so on. Keep the draft tokens that greedy
# decoding would have written, up to the first that it would not, and one token more:
# what the model says at the place where the draft went wrong or, if all were right,
# after the last.
#
# By hand: draft 5, 6, 7; the best ids of the four rows are 5, 6, 9, 1. The first two
# are right, the third is not, the model says 9: `[5, 6, 9]`. The last row follows a
# wrong token and means nothing. With best ids 5, 6, 7, 1 it is `[5, 6, 7, 1]`, four
# tokens for one call.
#
# <details><summary>Hint 1</summary>Row i says what comes <i>before</i> draft token i is
# seen: compare <code>draft[0]</code> with row 0.</details>
# <details><summary>Hint 2</summary>The answer is always <code>best[:accepted +
# 1]</code>, where <code>best</code> is the list of the rows' best ids.</details>


# %% tags=["exercise"]
def verify_greedy(draft: list[int], logits: torch.Tensor) -> list[int]:
    """The accepted tokens of the draft, and one more from the model.

    logits: (len(draft) + 1, vocab), row i after the text and i draft tokens. An id
    outside the vocabulary is never accepted. Returns 1 to len(draft) + 1 ids.
    Raises ValueError where the number of rows is another.
    """
    ### BEGIN SOLUTION
    if len(logits) != len(draft) + 1:
        raise ValueError(
            f"{len(draft)} draft tokens take one row more, not {len(logits)}"
        )
    best = logits.argmax(-1).tolist()
    accepted = 0
    while accepted < len(draft) and draft[accepted] == best[accepted]:
        accepted += 1
    return best[: accepted + 1]
    ### END SOLUTION


# %% tags=["check"]
check(verify_greedy)

# %% tags=["nbval-check-output"]
ids = prompts["copying"][0].tolist()
guess = tokenizer("The lighthouse had been dark since Tuesday")["input_ids"]
logits, _ = run(model, ids + guess, None, len(guess) + 1)
kept = verify_greedy(guess, logits)
print("guessed", [tokenizer.decode([x]) for x in guess])
print("kept   ", [tokenizer.decode([x]) for x in kept])

# %% [markdown]
# One call, and as many tokens as were right, plus one. The last one needs no guess: it
# is what the model says where the guess ended or went wrong. So even a bad guess costs
# no extra call, only a wider one.
#
# ## 2. The loop
#
# Around this goes a loop with a cache. The cache is where it gets delicate: after the
# call it holds the whole guess, the wrong part, too. Lesson 07's rollback is what
# speculation is built on.

# %% [markdown]
# ### Exercise 13.3 · `speculate_greedy`
#
# difficulty ★★★ · importance ★★★ · 30 min · our answer: 18 lines
#
# The greedy loop with drafts. In each round: ask `draft` for a guess, run the model
# once on what it has not seen and the guess, verify, cut the cache back to what was
# kept, append. The first call takes the whole prompt and the first guess together.
# `calls` counts the calls of the model.
#
# Four borders. An EOS among the new tokens ends the text there, whatever was accepted
# behind it. Never feed more guessed tokens than `max_new_tokens` leaves room for: cut
# the guess to one less than what is left, since the model adds one itself. A guess may
# hold an id that the model does not have: cut it there (or drop this id alone: the
# rest is verified all the same). And a guess may be empty: then it is a plain step.
#
# By hand: text of 4 tokens, guess of 3, of which 1 is right. The call feeds 7 tokens
# and keeps 2 new ones (the accepted, and the model's own). The cache holds 7, of which
# 5 are text: cut 2. The next call feeds the model's own token, which it has not seen
# yet, and the new guess.
#
# <details><summary>Hint 1</summary><code>run</code>, from the first cell, is the call:
# <code>logits, cache = run(model, tokens, cache, len(guess) + 1)</code>. Then
# <code>cache.crop(-n)</code> removes the last n positions in place (also for
# 0).</details>
# <details><summary>Hint 2</summary>Keep the text as a list of ids, and the number of
# its ids that the cache holds. What is fed is <code>text[held:] +
# guess</code>.</details>
# <details><summary>Hint 3</summary>After a round with <code>kept</code>,
# <code>len(kept) - 1</code> tokens of the guess were accepted. The last of
# <code>kept</code> is not in the cache.</details>


# %% tags=["exercise"]
def speculate_greedy(
    model,
    ids: torch.Tensor,
    draft: Callable[[list[int]], list[int]],
    max_new_tokens: int,
    eos_ids: list[int],
) -> tuple[torch.Tensor, int]:
    """Greedy decoding with drafts: the tokens of `generate`, in fewer calls.

    ids: (1, seq) int64. draft: given the ids of the text so far, prompt included, the
    ids that may come next. No guess changes the result. The model is called with a
    cache and without gradients; each position of the text is fed once, with at most
    as many guessed tokens as can be kept.
    Returns the ids (1, seq + new) int64, and the number of calls of the model.
    """
    ### BEGIN SOLUTION
    text, end = ids[0].tolist(), ids.shape[1] + max_new_tokens
    cache, held, calls = None, 0, 0
    while len(text) < end:
        # 1. A guess, no longer than what can be kept, of tokens that the model has
        guess = list(draft(list(text)))[: end - len(text) - 1]
        strange = [not 0 <= x < model.config.vocab_size for x in guess] + [True]
        guess = guess[: strange.index(True)]
        # 2. One call for what it has not seen, and the guess
        logits, cache = run(model, text[held:] + guess, cache, len(guess) + 1)
        calls += 1
        kept = verify_greedy(guess, logits)
        # 3. What was rejected leaves the cache
        cache.crop(-(len(guess) - (len(kept) - 1)))
        held = len(text) + len(kept) - 1
        # 4. Append, up to an EOS
        for token in kept:
            text.append(token)
            if token in eos_ids:
                end = len(text)
                break
    return torch.tensor([text], device=ids.device), calls
    ### END SOLUTION


# %% tags=["check"]
check(speculate_greedy)

# %% [markdown]
# The same demo again with your loop, and all four prompts. A little helper keeps a
# record of the rounds: how long the text was, and what was guessed. `generate` can do
# the same (`prompt_lookup_num_tokens`); a hook counts its calls. The second cell runs
# each prompt three times: it may take a minute.


# %%
def recorded(draft):
    """The draft, with a list `rounds` of (length of the text, guess)."""

    def ask(ids):
        guess = draft(ids)
        ask.rounds.append((len(ids), guess))
        return guess

    ask.rounds = []
    return ask


def calls_of_generate(ids, **options):
    counted = []
    hook = model.register_forward_hook(lambda *_: counted.append(1))
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, **options)
    hook.remove()
    return out, len(counted)


def widths_of(rounds, ids):
    """How many tokens each call fed: one of the text, and what fits of the guess."""
    end = ids.shape[1] + NEW
    return [1 + min(len(guess), end - length - 1) for length, guess in rounds]


# %%
plain, rounds, ours = {}, {}, {}
for name, ids in prompts.items():
    (out, steps), plain_time = seconds(lambda: calls_of_generate(ids))
    _, theirs = calls_of_generate(
        ids, prompt_lookup_num_tokens=8, max_matching_ngram_size=2
    )
    draft = recorded(lambda text: ngram_draft(text, 2, 8))
    (got, calls_made), took = seconds(
        lambda: speculate_greedy(model, ids, draft, NEW, [EOS])
    )
    plain[name], rounds[name], ours[name] = (out, plain_time), draft.rounds, calls_made
    fed = widths_of(draft.rounds, ids)
    worth = sum(steps_of(width) for width in fed)
    print(
        f"{name:9} same {torch.equal(got, out)}   calls {steps} -> {calls_made:2} "
        f"(transformers {theirs:2})   {sum(fed) - len(fed):3} guessed: worth "
        f"{worth:2.0f} steps   clock: {plain_time / took:.1f}"
    )

# %% [markdown]
# The same tokens, in all four. The same number of calls as `transformers`. And very
# different gains. "Worth" reckons each call at what section 1 measured for its width
# (and the prompt, which both need, as one token): where the answer is new text, hardly
# a guess is right, each wrong one made its call more expensive, and speculation
# *loses*. ("Clock" is the time of `generate` divided by ours, in one run on a machine
# that may have had other work: take it with caution; the calls are exact.)
#
# Why does the summary gain as much as the copy?

# %% tags=["nbval-check-output"]
for name in ("copying", "summary"):
    new = plain[name][0][0, prompts[name].shape[1] :]
    print(f"{name:9}", repr(tokenizer.decode(new[:16])))

# %% [markdown]
# This small model's summary is a copy. A summary in other words would gain less.
#
# Where in the text do the gains come from?


# %%
fig, axes = plt.subplots(4, 1, figsize=(7, 4.4), sharex=True, sharey=True)
for ax, name in zip(axes, rounds, strict=True):
    start = prompts[name].shape[1]
    ends = [length - start for length, _ in rounds[name]]
    ends.append(plain[name][0].shape[1] - start)
    written = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    ax.bar(ends[:-1], written, width=written, align="edge", edgecolor="white")
    ax.set_title(f"{name}: {ours[name]} calls", fontsize=9)
axes[-1].set_xlabel("new tokens written before the call")
fig.supylabel("tokens written by the call", fontsize=10)
plt.show()

# %% [markdown]
# ## 3. Sampling
#
# With a temperature there is no one right token. Say the model gives the probabilities
# p, and a guess was drawn from some q (a smaller model, for instance). What now? A
# tempting rule: accept token x with probability p(x), and if it is rejected, draw from
# p. **Predict:** are the tokens then distributed as p?

# %% tags=["nbval-check-output"]
p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
torch.manual_seed(0)
guess = torch.multinomial(q, 20_000, replacement=True)
accepted = torch.rand(20_000) < p[guess]
tempting = torch.where(accepted, guess, torch.multinomial(p, 20_000, replacement=True))
print("p       ", [f"{x:.2f}" for x in p.tolist()])
print("tempting", [f"{x:.2f}" for x in tempting.bincount() / 20_000])

# %% [markdown]
# No. What q likes comes too often. The rule of Leviathan et al. and of Chen et al.
# (2023) is exact. Accept x with probability min(1, p(x) / q(x)). Then x is guessed
# *and* accepted with probability q(x) · min(1, p(x) / q(x)) = min(p(x), q(x)): q has
# served this part of p, and no more. What is missing at each x is p(x) − min(p(x),
# q(x)) = max(0, p(x) − q(x)). So that is what a rejection must draw from, the
# *residual*.

# %% [markdown]
# ### Exercise 13.4 · `residual`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 4 lines
#
# What is left of `p` where `q` has been served: max(0, p − q), divided by its sum.
# Where p and q are equal nothing is left (and no token is ever rejected): then return
# `p`.
#
# By hand: p = [0.5, 0.3, 0.2], q = [0.25, 0.25, 0.5]. The differences 0.25, 0.05 and
# −0.3 become 0.25, 0.05 and 0, and divided by 0.3: [5/6, 1/6, 0].
#
# <details><summary>Hint 1</summary><code>(p - q).clamp(min=0)</code></details>


# %% tags=["exercise"]
def residual(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The distribution to draw from where a draft token was rejected.

    p, q: (vocab,) probabilities, of one float dtype. Returns a new (vocab,) of that
    dtype which sums to 1.
    """
    ### BEGIN SOLUTION
    left = (p - q).clamp(min=0)
    if left.sum() == 0:
        return p.clone()
    return left / left.sum()
    ### END SOLUTION


# %% tags=["check"]
check(residual)

# %% [markdown]
# ### Exercise 13.5 · `verify_sampled`
#
# difficulty ★★★ · importance ★★★ · 20 min · our answer: 12 lines
#
# Draft token x, drawn from row i of `q`, is accepted with probability min(1, p(x) /
# q(x)), p being row i of `p`. At the first that is not, draw from the residual of these
# two rows, and stop. If all are accepted, draw one more from the last row of `p`.
#
# Spend random numbers as `transformers` does, so that the same seed gives the same
# tokens: first `torch.rand(k)`, one number for each draft token whether needed or not
# (accepted if it is below p(x) / q(x)); then one `torch.multinomial`. Both take
# `generator=generator`.
#
# By hand: draft 2, q = [[0.25, 0.25, 0.5]], p = [[0.5, 0.3, 0.2], [0, 1, 0]]. The token
# is accepted with probability 0.2 / 0.5 = 0.4; then the second row gives 1: `[2, 1]`.
# Else the answer is one token, 0 with probability 5/6, or 1. In all token 2 comes first
# with 0.5 · 0.4 = 0.2, as in p: that is the point.
#
# <details><summary>Hint 1</summary><code>p[i, x]</code> and <code>q[i, x]</code> for
# all i at once: <code>p[range(k), draft]</code>.</details>
# <details><summary>Hint 2</summary>Count the accepted with a loop as in
# <code>verify_greedy</code>. The rows for the last draw have this count as their
# index.</details>


# %% tags=["exercise"]
def verify_sampled(
    p: torch.Tensor,
    q: torch.Tensor,
    draft: list[int],
    generator: torch.Generator | None = None,
) -> list[int]:
    """The accepted tokens of the draft, and one more: together as if drawn from p.

    p: (k + 1, vocab), the model's probabilities after the text and i draft tokens;
    q: (k, vocab), those that the draft was drawn from: both after temperature and
    filters. draft: k ids; k may be 0. Returns 1 to k + 1 ids.
    Raises ValueError where the shapes do not fit.
    """
    ### BEGIN SOLUTION
    k, vocab = len(draft), p.shape[-1]
    if p.shape != (k + 1, vocab) or q.shape != (k, vocab):
        raise ValueError(f"a draft of {k} does not fit {p.shape} and {q.shape}")
    ratio = p[range(k), draft] / q[range(k), draft]
    numbers = torch.rand(k, generator=generator, device=p.device)
    accept = (numbers < ratio).tolist() + [False]
    accepted = accept.index(False)
    last = p[k] if accepted == k else residual(p[accepted], q[accepted])
    more = torch.multinomial(last, 1, generator=generator).item()
    return [*draft[:accepted], more]
    ### END SOLUTION


# %% tags=["check"]
check(verify_sampled)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
first, accepted = [], 0
for x in torch.multinomial(q, 4000, replacement=True).tolist():
    kept = verify_sampled(torch.stack([p, p]), q[None], [x])
    first.append(kept[0])
    accepted += len(kept) - 1
print("p       ", [f"{x:.2f}" for x in p.tolist()])
print("verified", [f"{x:.2f}" for x in torch.tensor(first).bincount() / 4000])
print(f"accepted {accepted / 4000:.2f} of the guesses")
print(f"Σ min(p, q) = {torch.minimum(p, q).sum():.2f}")

# %% [markdown]
# Two remarks. *p and q are what is really drawn from*, after temperature, top-k and all
# the rest. And a guess that was not drawn at all, like that of `ngram_draft`, is a q
# with a single 1: then the rule says accept with probability p(x), and the residual is
# p without x. (The tempting rule's first half was right for this case; its mistake was
# the second.)
#
# Now the whole loop, with a model that drafts.

# %% [markdown]
# ### Exercise 13.6 · `speculate_sampled`
#
# difficulty ★★★ · importance ★★☆ · 30 min · our answer: 30 lines
#
# The sampling loop with a small model that drafts. In each round the draft model draws
# up to `k` tokens, one by one, each with `torch.multinomial`; it stops at an EOS of its
# own, and at one less than what is left. Then one call of the model, and
# `verify_sampled`. Both models have a cache, and both are cut back. Both logits are
# divided by the temperature first.
#
# By hand: text of 4, k = 2, draft 5, 6. The draft model was fed 4 tokens and then 5;
# nobody asked what comes after 6, so its cache holds 5 tokens. If only 5 is accepted,
# followed by the model's own 9, the draft model's cache fits as it is: it is fed 9
# next. If 6 is accepted, too, followed by 9, it is fed 6, 9. If neither, its cache must
# lose one.
#
# <details><summary>Hint 1</summary><code>cached_step</code> of lesson 07 is a step of
# the draft model.</details>
# <details><summary>Hint 2</summary>The model's part is that of
# <code>speculate_greedy</code>, with <code>verify_sampled</code>.</details>
# <details><summary>Hint 3</summary>Two numbers, <code>held</code> and
# <code>draft_held</code>: how many ids of the text each cache holds.</details>
# <details><summary>Hint 4</summary><code>q</code> of an empty draft has the shape
# <code>(0, vocab)</code>.</details>


# %% tags=["exercise"]
def speculate_sampled(
    model,
    draft_model: torch.nn.Module,
    ids: torch.Tensor,
    k: int,
    max_new_tokens: int,
    temperature: float,
    eos_ids: list[int],
) -> tuple[torch.Tensor, int]:
    """Sampling with a draft model: the same distribution, in fewer calls of the model.

    ids: (1, seq) int64. k: the most tokens of a draft, 0 or more. Random numbers come
    from the global generator, k draws and then those of `verify_sampled` in a round.
    Both models are called with a cache and without gradients; after the first round
    the model is fed at most k + 1 tokens, the draft model at most 2.
    Returns the ids (1, seq + new) int64, and the number of calls of `model`.
    Raises ValueError for a temperature that is not above 0, and where the config's
    vocab_size of the models differs.
    """
    ### BEGIN SOLUTION
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    vocab = model.config.vocab_size
    if vocab != draft_model.config.vocab_size:
        raise ValueError("the two models have different vocabularies")
    text, end = ids[0].tolist(), ids.shape[1] + max_new_tokens
    cache, held, draft_cache, draft_held, calls = None, 0, None, 0, 0
    while len(text) < end:
        # 1. A draft, token by token
        guess, q, fed = [], [], text[draft_held:]
        while len(guess) < min(k, end - len(text) - 1):
            row = torch.tensor([fed], device=ids.device)
            logits, draft_cache = cached_step(draft_model, row, draft_cache)
            q.append((logits[0] / temperature).softmax(-1))
            guess.append(torch.multinomial(q[-1], 1).item())
            fed = guess[-1:]
            if guess[-1] in eos_ids:
                break
        # 2. One call verifies it
        logits, cache = run(model, text[held:] + guess, cache, len(guess) + 1)
        calls += 1
        p = (logits / temperature).softmax(-1)
        kept = verify_sampled(p, torch.stack(q) if q else p[:0], guess)
        # 3. What was rejected leaves both caches. The last guess is not in the draft's.
        good = len(text) + len(kept) - 1
        cache.crop(-(len(text) + len(guess) - good))
        held = good
        if guess:
            draft_held = min(good, len(text) + len(guess) - 1)
            draft_cache.crop(-(len(text) + len(guess) - 1 - draft_held))
        # 4. Append, up to an EOS
        for token in kept:
            text.append(token)
            if token in eos_ids:
                end = len(text)
                break
    return torch.tensor([text], device=ids.device), calls
    ### END SOLUTION


# %% tags=["check"]
check(speculate_sampled)

# %% [markdown]
# The same seed gives what `generate(assistant_model=...)` gives, at temperature 1 (why
# only there: below). As a draft model we take a copy of a tiny random model with noise
# on its weights: nearly as good, and right often.


# %%
def noisy(model, size):
    """A copy with noise of this size on all matrices."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dim() > 1:
                weight += size * torch.randn(weight.shape, generator=generator)
    other.generation_config.num_assistant_tokens = 4  # and never another length:
    other.generation_config.num_assistant_tokens_schedule = "constant"
    other.generation_config.assistant_confidence_threshold = 0.0
    return other


# %%
tiny = random_llama(eos_token_id=None)
tiny.generation_config.pad_token_id = None  # or its mask is guessed from the pad id
start = torch.tensor([[5, 17, 40, 8]])


def assisted(draft_model, temperature):
    """transformers: ids, and calls of the model."""
    counted = []
    hook = tiny.register_forward_hook(lambda *_: counted.append(1))
    torch.manual_seed(0)
    out = tiny.generate(
        start,
        assistant_model=draft_model,
        max_new_tokens=60,
        do_sample=True,
        top_k=0,
        temperature=temperature,
    )
    hook.remove()
    return out, len(counted)


# %% tags=["nbval-check-output"]
draft_model = noisy(tiny, 0.05)
theirs, their_calls = assisted(draft_model, 1.0)
torch.manual_seed(0)
got, calls_made = speculate_sampled(tiny, draft_model, start, 4, 60, 1.0, [])
print("same tokens:", torch.equal(got, theirs), "  calls:", calls_made, their_calls)

# %% [markdown]
# And with a temperature? **Predict:** let the draft model be the model itself. How many
# calls do 60 tokens take, four drafted in a round?

# %% tags=["nbval-check-output"]
same = noisy(tiny, 0.0)
for temperature in (1.0, 0.5):
    _, their_calls = assisted(same, temperature)
    torch.manual_seed(0)
    _, calls_made = speculate_sampled(tiny, same, start, 4, 60, temperature, [])
    print(f"temperature {temperature}: {calls_made} calls, transformers {their_calls}")

# %% [markdown]
# Twelve: all are right, and five tokens a call. In `transformers` 5.23 the draft model
# gets the temperature twice, from its own settings and from the list of processors that
# it is handed. Its q is that of temperature 0.25, so p and q differ although the models
# are the same. We can do the same: divide the draft's logits once more.

# %% tags=["nbval-check-output"]
theirs, their_calls = assisted(same, 0.5)
twice = copy.deepcopy(same)
twice.lm_head.weight = torch.nn.Parameter(twice.lm_head.weight.detach() / 0.5)
torch.manual_seed(0)
got, calls_made = speculate_sampled(tiny, twice, start, 4, 60, 0.5, [])
print("same tokens:", torch.equal(got, theirs), "  calls:", calls_made, their_calls)

# %% [markdown]
# The result is still exact (any q will do), only slower. That is the beauty of the
# rule, and why such a thing goes unnoticed: no test of the distribution can see it.
# Count calls.
#
# ## 4. How long a draft
#
# A longer draft may write more in a call. But a token far down the draft counts only if
# all before it were right.

# %% [markdown]
# ### Exercise 13.7 · `expected_tokens`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 3 lines
#
# Each draft token is accepted with probability α, independently, until the first that
# is not. How many tokens does one call write on average with a draft of k? One for
# certain, a second if the first draft token is right, ...: 1 + α + α² + ... + αᵏ.
#
# By hand: α = 0.5, k = 2: 1 + 0.5 + 0.25 = 1.75. α = 1, k = 4: 5.
#
# <details><summary>Hint 1</summary>The sum itself is fine:
# <code>sum(alpha**i for i in ...)</code>.</details>


# %% tags=["exercise"]
def expected_tokens(alpha: float, k: int) -> float:
    """The mean number of tokens of a call with k draft tokens, a float.

    Raises ValueError for alpha outside 0 to 1, or k below 0.
    """
    ### BEGIN SOLUTION
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"alpha must be 0 to 1, k 0 or more: got {alpha}, {k}")
    return float(sum(alpha**i for i in range(k + 1)))
    ### END SOLUTION


# %% tags=["check"]
check(expected_tokens)

# %% [markdown]
# Does this hold in fact? Measured α and measured tokens a call, for draft models with
# more and less noise, against the curve. The assumption behind the curve, that each
# token is accepted with the same probability whatever came before, is not true of
# texts: the points need not lie on it.


# %%
def share(final: list[int], rounds) -> float:
    """Of the guessed tokens that were judged, the share that was accepted."""
    good = bad = 0
    for length, guess in rounds:
        for n, token in enumerate(guess[: len(final) - length - 1]):
            if final[length + n] != token:
                bad += 1
                break
            good += 1
    return good / max(1, good + bad)


# %%
points = {2: [], 4: [], 8: []}
for k, found in points.items():
    for size in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5):
        weak = noisy(tiny, size)
        torch.manual_seed(0)
        _, calls_made = speculate_sampled(tiny, weak, start, k, 200, 1.0, [])
        with torch.no_grad():
            rows = [m(got).logits[0].softmax(-1) for m in (tiny, weak)]
        alpha = torch.minimum(*rows).sum(-1).mean().item()
        found.append((alpha, 200 / calls_made))
fig, ax = plt.subplots(figsize=(6, 3))
grid = [n / 100 for n in range(101)]
for colour, (k, found) in zip(
    (figures.BLUE, figures.ORANGE, figures.RED), points.items(), strict=True
):
    ax.plot(grid, [expected_tokens(x, k) for x in grid], color=colour, label=f"k = {k}")
    ax.plot(*zip(*found, strict=True), "o", color=colour)
ax.set(xlabel="α = mean of Σ min(p, q)", ylabel="tokens a call")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Nearly: the points lie close to the curves, on either side. A draft that is always
# right comes out a little below, where the last round is cut short by the limit of 200
# tokens. Elsewhere it is the assumption, and chance.

# %% [markdown]
# ### Exercise 13.8 · `best_k`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 3 lines
#
# `cost` is what one more draft token costs, drafted and verified, as a part of a plain
# step. A round with k then takes 1 + k · cost. (We take the cost as a straight line,
# which section 1's curve is only roughly.) Return the k from 0 to 64 that writes
# the most tokens in this time; of several the smallest. 0 means that speculation loses.
#
# By hand: α = 0.5, cost = 0.25. k = 0: 1 token / 1 = 1. k = 1: 1.5 / 1.25 = 1.2. k = 2:
# 1.75 / 1.5 = 1.167. The best is 1.
#
# <details><summary>Hint 1</summary><code>max(range(65), key=...)</code> gives the first
# of several.</details>


# %% tags=["exercise"]
def best_k(alpha: float, cost: float) -> int:
    """The draft length, 0 to 64, with the most tokens for the time.

    Raises ValueError for alpha outside 0 to 1, or a cost below 0.
    """
    ### BEGIN SOLUTION
    if cost < 0:
        raise ValueError(f"cost must be 0 or more, got {cost}")
    return max(range(65), key=lambda k: expected_tokens(alpha, k) / (1 + k * cost))
    ### END SOLUTION


# %% tags=["check"]
check(best_k)

# %% [markdown]
# With what was measured in this notebook: the cost of one more token in a call from
# section 1 (looking up a guess costs next to nothing beside it), and α from the rounds
# of section 2. How much faster this k would be is reckoned by the straight line, and by
# section 1's curve.

# %%
for name, found in rounds.items():
    alpha = share(plain[name][0][0].tolist(), found)
    k = best_k(alpha, cost)
    written = expected_tokens(alpha, k)
    line, curve = written / (1 + k * cost), written / steps_of(1 + k)
    print(
        f"{name:9} α {alpha:.2f}   best k {k:2}   times as fast: {line:.1f} by the "
        f"line, {curve:.1f} by the curve"
    )

# %% [markdown]
# A long draft is best only if α stayed the same in longer drafts: here it was measured
# with drafts of 8 at most.
#
# ## 5. Better drafts
#
# `ngram_draft` takes the first place that matches, sees one text only, and guesses as
# much after one matching id as after five. *Suffix decoding* (Oliaro et al., 2025)
# changes all three: it counts, it remembers, and it trusts a long match more. Think of
# an agent that sends nearly the same request all day.

# %% [markdown]
# ### Exercise 13.9 · `SuffixDraft`
#
# difficulty ★★★ · importance ★★☆ · 25 min · our answer: 24 lines
#
# A draft that remembers all texts it has seen, and how often each token followed which
# ids.
#
# `SuffixDraft(longest=8, factor=2)` makes one; `draft(ids)` then does two things.
#
# 1. *Learn.* Each id of the text follows the 1, 2, ..., `longest` ids before it: count
#    that. `draft` is called again and again while a text grows. If `ids` begins with
#    the ids of the last call, only what is new is counted; if not, a new text has
#    begun, and all of it is.
# 2. *Guess.* Take the longest suffix of the text (at most `longest` ids) that has ever
#    been followed by something, and of what followed it the most frequent id; of
#    several, the one that followed it first. Append it and go on with the longer text.
#    Stop after `factor` × the length of the first suffix (the longer the match, the
#    more we trust it), or when no suffix has a follower.
#
# By hand: `longest=2, factor=1`, the text 1 2 3 1 2 4 1 2 4 1 2. The suffix 1 2 was
# followed by 3 once and by 4 twice: guess 4. Then the suffix 2 4, always followed by 1.
# The first suffix had two ids, so two are enough: `[4, 1]`.
#
# <details><summary>Hint 1</summary>A dictionary from a tuple of ids to a dictionary
# from an id to its count. <code>max(followers, key=followers.get)</code> gives the
# first of several.</details>
# <details><summary>Hint 2</summary>To learn: for each position <code>end</code> that is
# new and each <code>size</code> up to <code>min(longest, end)</code>,
# <code>tuple(ids[end - size : end])</code> was followed by
# <code>ids[end]</code>.</details>
# <details><summary>Hint 3</summary>Keep a copy of the ids of the last call
# (<code>self.seen = list(ids)</code>): the caller's list may grow.</details>


# %% tags=["exercise"]
class SuffixDraft:
    """draft(ids) -> the likely next ids, from all that it has been called with.

    longest: the most ids of a suffix; factor: draft tokens for each id of the first
    suffix. ids: list of ints, left unchanged; the guess is a new list of ints. Two
    drafts share nothing.
    """

    def __init__(self, longest: int = 8, factor: int = 2):
        ### BEGIN SOLUTION
        self.longest, self.factor = longest, factor
        self.followers = defaultdict(Counter)  # of the ids before
        self.seen = []
        ### END SOLUTION

    def __call__(self, ids: list[int]) -> list[int]:
        ### BEGIN SOLUTION
        self._learn(ids)
        guess, wanted = [], None
        while wanted is None or len(guess) < wanted:
            suffix = self._known_suffix(ids + guess)
            if suffix is None:
                break
            if wanted is None:
                wanted = self.factor * len(suffix)
            followers = self.followers[suffix]
            guess.append(max(followers, key=followers.get))
        return guess

    def _learn(self, ids):
        old = len(self.seen) if ids[: len(self.seen)] == self.seen else 0
        for end in range(old, len(ids)):
            for size in range(1, min(self.longest, end) + 1):
                self.followers[tuple(ids[end - size : end])][ids[end]] += 1
        self.seen = list(ids)

    def _known_suffix(self, text):
        sizes = range(min(self.longest, len(text)), 0, -1)
        suffixes = (tuple(text[-size:]) for size in sizes)
        return next((x for x in suffixes if x in self.followers), None)
        ### END SOLUTION


# %% tags=["check"]
check(SuffixDraft)

# %% [markdown]
# The same four prompts. Then twice the open one, which had no use for guesses: with the
# draft that has seen it already.

# %%
for name, ids in prompts.items():
    draft = recorded(SuffixDraft())
    speculate_greedy(model, ids, draft, NEW, [EOS])
    print(f"{name:9}", end="")
    for way, found in (("ngram_draft", rounds[name]), ("suffixes", draft.rounds)):
        fed = widths_of(found, ids)
        print(f"  {way}: {len(fed):2} calls, {sum(fed) - len(fed):3} guessed", end="")
    print()
draft = SuffixDraft()
for turn in ("once", "again"):
    _, calls_made = speculate_greedy(model, prompts["open"], draft, NEW, [EOS])
    print(f"open, {turn}: {calls_made} calls")

# %% [markdown]
# One short text gives it little to count, so on the first four it is not always the
# better one. What it gains is memory: what took 39 calls the first time takes 3 the
# second (wide ones: see section 1). That is no cache of answers: every token is
# verified, and another prompt that goes the same way for a while profits for that
# while.
#
# The length of the draft may follow the text, too.

# %% [markdown]
# ### Exercise 13.10 · `AdaptiveLength`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 14 lines
#
# A draft length that follows the text. It keeps two sums, of accepted and of rejected
# tokens, in which what is older counts less: at each update both are multiplied by
# `decay` (0.8), then `accepted` is added to one, and 1 to the other if a token was
# rejected. Both start at 1. α is the share of the accepted; `k` is `best_k(α, cost)`,
# but at least 1 (without a draft it would never learn better). What comes after a
# rejected token was not judged, and counts nowhere.
#
# By hand: a new one has α = 1 / 2. `update(4, 4)`: the sums are 0.8 + 4 = 4.8 and 0.8,
# α = 6 / 7. Then `update(4, 1)`: 0.8 · 4.8 + 1 = 4.84 and 0.8 · 0.8 + 1 = 1.64, α =
# 0.747. An update with nothing drafted changes nothing.
#
# <details><summary>Hint 1</summary><code>accepted &lt; drafted</code> is one rejected
# token, however many were drafted behind it.</details>


# %% tags=["exercise"]
class AdaptiveLength:
    """A draft length `k`, chosen by `best_k` for the share `alpha` of late.

    cost: as in `best_k`. `alpha` (float) and `k` (int) can be read at any time.
    """

    def __init__(self, cost: float = 0.1, decay: float = 0.8):
        ### BEGIN SOLUTION
        self.cost, self.decay = cost, decay
        self.accepted = self.rejected = 1.0
        self._choose()
        ### END SOLUTION

    def update(self, drafted: int, accepted: int) -> None:
        """Learn from one round.

        Raises ValueError unless accepted is from 0 to drafted.
        """
        ### BEGIN SOLUTION
        if not 0 <= accepted <= drafted:
            raise ValueError(f"accepted {accepted} of {drafted} drafted tokens")
        if drafted == 0:
            return
        self.accepted = self.decay * self.accepted + accepted
        self.rejected = self.decay * self.rejected + (accepted < drafted)
        self._choose()

    def _choose(self):
        self.alpha = self.accepted / (self.accepted + self.rejected)
        self.k = max(1, best_k(self.alpha, self.cost))
        ### END SOLUTION


# %% tags=["check"]
check(AdaptiveLength)

# %% [markdown]
# It needs to hear what became of its drafts. The next call of the draft tells: what was
# guessed last time can be compared with the text that has grown since.


# %%
def adaptive(length, n=2):
    """A draft of ngram_draft, as long as `length` says, that reports to it."""
    last = []

    def draft(ids):
        if last:
            start, guess = last.pop()
            pairs = zip(guess, ids[start:], strict=False)
            right = [a == b for a, b in pairs] + [False]
            length.update(len(guess), min(len(guess), right.index(False)))
        guess = ngram_draft(ids, n, length.k)
        last.append((len(ids), guess))
        draft.lengths.append(length.k)
        return guess

    draft.lengths = []
    return draft


# %%
lengths = {}
for name, ids in prompts.items():
    draft = adaptive(AdaptiveLength(cost))
    asked = recorded(draft)
    got, _ = speculate_greedy(model, ids, asked, NEW, [EOS])
    lengths[name] = draft.lengths
    print(f"{name:9} same tokens {torch.equal(got, plain[name][0])}")
    for way, found in (("k = 8", rounds[name]), ("adaptive", asked.rounds)):
        fed = widths_of(found, ids)
        worth = sum(steps_of(width) for width in fed)
        print(
            f"  {way:8}: {len(fed):2} calls, {sum(fed) - len(fed):3} guessed, "
            f"worth {worth:2.0f} steps"
        )

# %%
fig, ax = plt.subplots(figsize=(7, 2.8))
styles = ("-", "-", "--", "-")  # the second copy lies upon the first
for style, (name, found) in zip(styles, lengths.items(), strict=True):
    ax.plot(range(1, len(found) + 1), found, "o", ls=style, label=name)
ax.set(xlabel="call", ylabel="draft length k", ylim=(0, None))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Where the text is copied the drafts grow, and on open text they shrink: fewer tokens
# are guessed for nothing. Whether that saves time is another question. On a CPU the
# first guessed token is the dear one (section 1), and this rule drafts one at least, so
# the clock may show nothing; a rule that may also choose no draft would help. It costs
# a few calls more, in which the length finds its way; in a text of 40 tokens these
# weigh heavily. No rule wins everywhere: an engine measures on its own traffic. And
# where hardly a guess is right, the best speculation is none.
#
# ## Questions
#
# 1. A draft of 5 tokens, all wrong. What did it cost, in calls and in time?
# 2. Is speculation lossless in bfloat16?
# 3. A server runs 64 texts in one batch. Why does it speculate less than a server with
#    one?
#
# <details><summary>Answers</summary>
#
# 1. No extra call: the model's own token comes out of it as from a plain step. In
#    time, what five more tokens in a call cost (section 1), and the time to draft.
# 2. In theory: the rule is exact. In numbers: a call with six positions sums in another
#    order than a call with one, and lesson 07 showed that in bfloat16 this is enough
#    for two nearly equal tokens to change places. So the text may differ, though
#    neither is the wrong one.
# 3. Its calls are 64 rows wide already, nearer to where arithmetic limits. Each draft
#    token adds up to 64 rows, and rejected ones take time from the other texts.
#
# </details>
#
# ## In the wild
#
# | what | `transformers` | vLLM (`speculative_config`) | SGLang | llama.cpp |
# |---|---|---|---|---|
# | look back in the text | `prompt_lookup_num_tokens` | `"method": "ngram"` | `--speculative-algorithm NGRAM` | `--spec-type ngram-simple` |
# | ids to match, at most | `max_matching_ngram_size` (2) | `prompt_lookup_max` | `--speculative-ngram-max-match-window-size` | |
# | a draft model | `assistant_model` | `"method": "draft_model"` | `--speculative-algorithm STANDALONE` | `--model-draft` |
# | tokens of a draft | `num_assistant_tokens`, of the draft model's settings | `num_speculative_tokens` | `--speculative-num-draft-tokens` | `--spec-draft-n-max` |
# | suffix drafts | | `"method": "suffix"`, and as `factor`: `suffix_decoding_max_spec_factor` | | |
# | length follows the text | `num_assistant_tokens_schedule` | | `--speculative-adaptive` (EAGLE only, with `--speculative-eagle-topk 1`) | |
#
# OpenAI's chat API has `prediction`: a text that the answer will largely repeat, used
# as a draft.
#
# ## To read
#
# - Leviathan, Kalman, Matias: *Fast Inference from Transformers via Speculative
#   Decoding*, ICML 2023, [arXiv:2211.17192](https://arxiv.org/abs/2211.17192). The
#   rule, the proof, the formula.
# - Chen et al.: *Accelerating Large Language Model Decoding with Speculative Sampling*,
#   2023, [arXiv:2302.01318](https://arxiv.org/abs/2302.01318). The same rule, found at
#   the same time.
# - Saxena: *Prompt Lookup Decoding*, 2023,
#   [github.com/apoorvumang/prompt-lookup-decoding](https://github.com/apoorvumang/prompt-lookup-decoding).
# - Oliaro et al.: *SuffixDecoding*, NeurIPS 2025,
#   [arXiv:2411.04975](https://arxiv.org/abs/2411.04975). `SuffixDraft`, with trees.
# - He et al.: *REST: Retrieval-Based Speculative Decoding*, NAACL 2024,
#   [arXiv:2311.08252](https://arxiv.org/abs/2311.08252). Guesses from a store of texts.
# - Cai et al.: *Medusa*, ICML 2024,
#   [arXiv:2401.10774](https://arxiv.org/abs/2401.10774). Further heads on the model
#   itself guess the tokens after the next.
# - Li et al.: *EAGLE*, ICML 2024, [arXiv:2401.15077](https://arxiv.org/abs/2401.15077).
#   A small network drafts from the model's own last hidden states.
