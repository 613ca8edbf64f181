# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · Constrained decoding
#
# **After this lesson you can force any format that a regular expression or a JSON schema
# describes, by the means that make it fast in a server, and you know what that does to the
# distribution.**
#
# You write: `choice_mask`, `accepts_empty`, `derive`, `Automaton`, `token_mask`, `TokenTrie`,
# `constrained_decode`, `schema_to_regex`, `forced_bytes` and `true_conditional`.
# About 180 minutes. Builds on lesson 07: its `cached_step` comes along in the first cell.

# %% tags=["setup"]
import itertools
import json
import re
from collections.abc import Callable, Hashable

import torch

from course import carry
from tiny_models.grammar import EMPTY, NOTHING, either, many, parse, show, then
from tiny_models.grammar import Either, Empty, Many, Nothing, OneOf, Regex, Then
from tiny_models.grammar import token_bytes

cached_step = carry("cached_step")
pick_greedy = carry("pick_greedy")

# %%
import textwrap
import time

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import ScriptedModel, load

model, tokenizer = load()
eos_id = tokenizer.eos_token_id


def chat(question):
    """The ids (1, seq) of a chat prompt."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return prompt.input_ids.to(model.device)


# %% [markdown]
# ## 1. A list of choices
#
# A program asks a model to sort texts into three drawers.

# %% tags=["nbval-check-output"]
reviews = (
    "The battery died after two days.",
    "I bought a second one for my sister.",
    "It arrived on Tuesday.",
)
question = "Is this review positive, negative or neutral? Answer with one word.\n\n"
for review in reviews:
    ids = chat(question + review)
    out = model.generate(ids, max_new_tokens=12, do_sample=False)
    print(repr(tokenizer.decode(out[0, ids.shape[1] :])))

# %% [markdown]
# A program cannot use that. Asking more firmly helps sometimes. Something else helps always:
# take away every token that leads elsewhere. At each step the logits of tokens that are not
# allowed become `-inf`, as in lesson 04; what is allowed depends on the text so far.

# %% [markdown]
# ### Exercise 12.1 · `choice_mask`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 6 lines
#
# The choices are lists of token ids. `new_ids` are the tokens since the prompt. A token is
# allowed if it continues one of the choices that begin with `new_ids`. The end of text is
# allowed exactly where `new_ids` is a whole choice. Where no choice fits, nothing is allowed.
#
# By hand: choices `[[5, 7], [5, 7, 2], [6]]`, EOS 0, vocabulary 8. After `[]` the tokens 5 and
# 6 are allowed; after `[5]` it is 7; after `[5, 7]` both 2 and EOS; after `[6]` EOS; after
# `[7]` nothing.
#
# <details><summary>Hint 1</summary>A choice fits if <code>choice[: len(new_ids)] ==
# new_ids</code>.</details>
# <details><summary>Hint 2</summary>What comes next in it is
# <code>choice[len(new_ids)]</code>, or EOS where there is no such place.</details>


# %% tags=["exercise"]
def choice_mask(
    choices: list[list[int]], new_ids: list[int], eos_id: int, vocab_size: int
) -> torch.Tensor:
    """The tokens that may come next, so that the text becomes one of the choices.

    choices: token ids, without EOS. new_ids: the tokens so far, without the prompt.
    Returns (vocab_size,) bool, True where a token is allowed.
    """
    ### BEGIN SOLUTION
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        if choice[:n] == new_ids:
            mask[choice[n] if n < len(choice) else eos_id] = True
    return mask
    ### END SOLUTION


# %% tags=["check"]
check(choice_mask)


# %% tags=["nbval-check-output"]
def choose(ids, words):
    """The word that greedy decoding takes, of these."""
    choices = [tokenizer(word).input_ids for word in words]
    cache, fed, new = None, ids, []
    while eos_id not in new:
        logits, cache = cached_step(model, fed, cache)
        mask = choice_mask(choices, new, eos_id, logits.shape[-1]).to(logits.device)
        fed = pick_greedy(logits.masked_fill(~mask, float("-inf")))
        new.append(fed.item())
    return tokenizer.decode(new[:-1])


for review in reviews:
    print(choose(chat(question + review), ["positive", "negative", "neutral"]), review)

# %% [markdown]
# The format is right each time. Whether the answer is right is another question: the mask
# knows nothing about reviews.
#
# ## 2. A regular expression
#
# A list will not do for "a number", "a date", "a name in quotes": there are too many of them. A
# regular expression describes them all. To use one for decoding we have to know, after each
# part of a text, what may come next. The *derivative* (Brzozowski, 1964) answers that: the
# derivative of a regex by a byte is a regex for the *rest*, of all texts that begin with that
# byte. After `a`, the regex `ab*|ca` leaves `b*`.
#
# We work on bytes, not on characters: `é` is the two bytes C3 A9. A token of this model may be
# half a character, as section 3 shows. The course gives you `parse`, which turns a pattern into
# a small tree. There are six kinds of node:
#
# | node | matches |
# |---|---|
# | `NOTHING`, of the class `Nothing` | no text at all |
# | `EMPTY`, of the class `Empty` | the empty text only |
# | `OneOf(bytes)` | one byte of a set |
# | `Then(first, second)` | a text of `first`, then one of `second` |
# | `Either(options)` | a text of one of the options, a set of trees |
# | `Many(inner)` | any number of texts of `inner`, also none |

# %% tags=["nbval-check-output"]
print(parse("ab*"))
for pattern in ("ab*|ca", "a?b", "a{2,3}", "é", r"\d+", "[^é]"):
    print(f"{pattern:8} {show(parse(pattern))}")

# %% [markdown]
# `show` writes a tree as a pattern again: ε is `EMPTY`. The last line is long since "any
# character but é" has to be said in bytes.
#
# Trees are built with `then`, `either` and `many`, in small letters. They make the nodes, and
# keep them small:

# %% tags=["nbval-check-output"]
a, b = parse("a"), parse("b")
for tree in (then(a, b), then(EMPTY, a), either(a, b), either(a, a, NOTHING), many(a)):
    print(show(tree))
print(isinstance(then(a, NOTHING), Nothing))  # what cannot match is seen to be nothing

# %% [markdown]
# ### Exercise 12.2 · `accepts_empty`
#
# difficulty ★☆☆ · importance ★★☆ · 10 min · our answer: 5 lines
#
# Does the regex match the empty text? (If so, the text may end here.)
#
# By hand: `a*` yes; `ab*` no, an `a` is missing; `a*b*` yes; `a|b*` yes, by its second
# option; `a|b` no.
#
# <details><summary>Hint 1</summary>One question for each kind of node:
# <code>isinstance(regex, Then)</code> and so on.</details>
# <details><summary>Hint 2</summary><code>Then</code> matches the empty text if both parts
# do; <code>Either</code> if any option does.</details>


# %% tags=["exercise"]
def accepts_empty(regex: Regex) -> bool:
    """Whether the regex matches the empty text."""
    ### BEGIN SOLUTION
    if isinstance(regex, Then):
        return accepts_empty(regex.first) and accepts_empty(regex.second)
    if isinstance(regex, Either):
        return any(accepts_empty(option) for option in regex.options)
    return isinstance(regex, (Empty, Many))
    ### END SOLUTION


# %% tags=["check"]
check(accepts_empty)

# %% [markdown]
# ### Exercise 12.3 · `derive`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 12 lines
#
# The derivative: a regex for what may follow `byte`, which is a number from 0 to 255. Build it
# with `then` and `either`, in small letters: `then(NOTHING, x)` is `NOTHING`, `then(EMPTY, x)`
# is `x`, and `either(x, x, NOTHING)` is `x`.
#
# By hand, with the byte `a`: `a` leaves ε. `b` leaves ∅ (`NOTHING`). `ab` leaves `b`. `ab|ac`
# leaves `b|c`. `(ab)*` leaves `b(ab)*`. `a*ab` leaves `a*ab|b`: the `a` was one of `a*`, or
# `a*` was empty and it was the `a` behind it.
#
# <details><summary>Hint 1</summary>Again one rule for each kind of node. What is left of
# <code>OneOf</code>, if the byte is in its set, and if not?</details>
# <details><summary>Hint 2</summary>Of <code>Many(inner)</code>: what is left of
# <code>inner</code>, and then the same <code>Many</code> again.</details>
# <details><summary>Hint 3</summary>Of <code>Then</code>: what is left of the first part, and
# then the second. And if the first part may be empty, either that or what is left of the
# second.</details>


# %% tags=["exercise"]
def derive(regex: Regex, byte: int) -> Regex:
    """The regex of what may follow `byte`: it matches t where `regex` matches byte + t.

    byte: 0 to 255. NOTHING, where no text of `regex` begins with this byte.
    """
    ### BEGIN SOLUTION
    if isinstance(regex, OneOf):
        return EMPTY if byte in regex.bytes else NOTHING
    if isinstance(regex, Either):
        return either(*[derive(option, byte) for option in regex.options])
    if isinstance(regex, Many):
        return then(derive(regex.inner, byte), regex)
    if isinstance(regex, Then):
        rest = then(derive(regex.first, byte), regex.second)
        if accepts_empty(regex.first):
            rest = either(rest, derive(regex.second, byte))
        return rest
    return NOTHING
    ### END SOLUTION


# %% tags=["check"]
check(derive)

# %% tags=["nbval-check-output"]
regex = parse("(cat|cow)s?")
for byte in b"cows":
    regex = derive(regex, byte)
    print(chr(byte), " leaves ", show(regex), "  may end:", accepts_empty(regex))

# %% [markdown]
# That is a whole matcher: derive by each byte, and ask at the end whether the rest may be
# empty. Seen from above it is an *automaton*: the regexes are its states, the bytes lead from
# one to another. A regex has only finitely many derivatives (if equal ones are seen to be
# equal, which is what `then`, `either` and `many` are for), so we can remember them.

# %% [markdown]
# ### Exercise 12.4 · `Automaton`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 12 lines
#
# `start` is the state before the first byte. `step(state, byte)` gives the next one, or
# `None` where no accepted text goes on that way: a *dead* state. `accepting(state)` says
# whether the text may end. What a state is, is your affair; it must be hashable, and not
# `None`. No step is computed twice, also not one that ends in `None`.
#
# By hand, `Automaton("ab?")`: from the start, `a` leads to a state that accepts, and `b` to
# `None`. From there `b` leads to a state that accepts, and from that all bytes lead to `None`.
#
# <details><summary>Hint 1</summary>Take the regexes as states. A derivative that is equal
# to <code>NOTHING</code> is dead. (No other one is: <code>then</code> and
# <code>either</code> see to that.)</details>
# <details><summary>Hint 2</summary>A dictionary from <code>(state, byte)</code> to what
# came out.</details>


# %% tags=["exercise"]
class Automaton:
    """Reads a text byte by byte, and knows at each place what may follow."""

    def __init__(self, pattern: str):
        """pattern: as for `parse`. `start` is the state before the first byte."""
        ### BEGIN SOLUTION
        self.start = parse(pattern)
        self.known = {}  # (state, byte): the next state
        ### END SOLUTION

    def step(self, state: Hashable, byte: int) -> Hashable | None:
        """The state after `byte`; None if no accepted text goes on with it."""
        ### BEGIN SOLUTION
        key = (state, byte)
        if key not in self.known:
            after = derive(state, byte)
            self.known[key] = None if after == NOTHING else after
        return self.known[key]
        ### END SOLUTION

    def accepting(self, state: Hashable) -> bool:
        """Whether the text may end in this state."""
        ### BEGIN SOLUTION
        return accepts_empty(state)
        ### END SOLUTION


# %% tags=["check"]
check(Automaton)

# %% [markdown]
# ## 3. From bytes to tokens
#
# The automaton reads bytes. The model writes tokens. A token is a string of bytes, and has no
# respect for anybody's borders:

# %% tags=["nbval-check-output"]
vocabulary = token_bytes(tokenizer)  # the bytes of each token; b"" for special ones
print(len(vocabulary), "tokens, of", sum(map(len, vocabulary)), "bytes")
for text in ('{"city": "Zürich"}', "37.50 €, 日本"):
    print([vocabulary[i] for i in tokenizer(text).input_ids])

# %% [markdown]
# `"}` is one token here: it ends a string and an object. A character may be two tokens or
# three. So a token is allowed where the automaton can read *all* its bytes.

# %% [markdown]
# ### Exercise 12.5 · `token_mask`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 9 lines
#
# Which tokens may come next? A token is allowed if the automaton reads all its bytes, from
# `state` on, without dying; it need not arrive at an accepting state. A token without bytes
# (a special one) is never allowed. EOS is allowed exactly where the state accepts, whatever its
# bytes are.
#
# By hand: pattern `ab?`, vocabulary `[b"a", b"b", b"ab", b"abb", b"", b"</s>"]`, EOS 5. At the
# start `a` and `ab` are allowed: `[1, 0, 1, 0, 0, 0]`. After `a` it is `b` and EOS:
# `[0, 1, 0, 0, 0, 1]`.
#
# An automaton here is anything with `start`, `step` and `accepting`. The checks bring their
# own.
#
# <details><summary>Hint 1</summary>For each token: begin at <code>state</code>, step by
# step, and stop at the first <code>None</code>.</details>
# <details><summary>Hint 2</summary>Set EOS last.</details>


# %% tags=["exercise"]
def token_mask(
    automaton: "Automaton", state: Hashable, vocabulary: list[bytes], eos_id: int
) -> torch.Tensor:
    """The tokens that may come next.

    state: of the automaton. vocabulary: the bytes of each token. Returns (vocab,) bool.
    """
    ### BEGIN SOLUTION
    mask = torch.zeros(len(vocabulary), dtype=torch.bool)
    for i, token in enumerate(vocabulary):
        after = state if token else None
        for byte in token:
            after = automaton.step(after, byte)
            if after is None:
                break
        mask[i] = after is not None
    mask[eos_id] = automaton.accepting(state)
    return mask
    ### END SOLUTION


# %% tags=["check"]
check(token_mask)


# %%
def after(automaton, text, state=None):
    """The state behind a text."""
    state = automaton.start if state is None else state
    for byte in text.encode() if isinstance(text, str) else text:
        state = automaton.step(state, byte)
    return state


# %% tags=["nbval-check-output"]
price = Automaton(r"\d+\.\d\d €")
for text in ("", "37", "37.5", "37.50", "37.50 "):
    mask = token_mask(price, after(price, text), vocabulary, eos_id)
    allowed = [vocabulary[i] for i in mask.nonzero()[:, 0].tolist()]
    print(f"{text!r:9} {len(allowed):3} tokens: {allowed[:6]}")

# %% [markdown]
# After `37.50 ` the sign € may come as one token, or begin with one that is a part of it.
#
# Here is the whole automaton of a smaller pattern: its states, the bytes that lead from one to
# another, and beside each state, in red, the mask there. A token of several bytes jumps over
# states.


# %%
def graph(automaton):
    """The states, the depth of each, and {(from, to): bytes}."""
    states, depth, edges = [automaton.start], [0], {}
    for start, state in enumerate(states):
        for byte in range(256):
            to = automaton.step(state, byte)
            if to is None:
                continue
            if to not in states:
                states.append(to)
                depth.append(depth[start] + 1)
            edges.setdefault((start, states.index(to)), []).append(byte)
    return states, depth, edges


def spread(depth):
    """(x, y) of each state: those of one depth in one column."""
    places = []
    for n, column in enumerate(depth):
        above = depth[:n].count(column)
        places.append((column, (depth.count(column) - 1) / 2 - above))
    return places


# %%
animals = Automaton("(cat|cow|crow)s?")
states, depth, edges = graph(animals)
places = spread(depth)
fig, ax = plt.subplots(figsize=(9, 4.2))
for state, (x, y) in zip(states, places, strict=True):
    accepts = animals.accepting(state)
    mask = token_mask(animals, state, vocabulary, eos_id)
    tokens = [vocabulary[i].decode() for i in mask.nonzero()[:, 0] if i != eos_id]
    tokens = sorted(tokens, key=len) + ["EOS"] * accepts
    width = 2.8 if accepts else 0.8
    ax.scatter(x, y, s=380, color=figures.SKY, edgecolors="black", linewidths=width)
    told = textwrap.fill(" ".join(tokens), 10)
    side = {"xytext": (0, -14 if y < 0 else 14), "va": "top" if y < 0 else "bottom"}
    ax.annotate(
        told, (x, y), color=figures.RED, ha="center", textcoords="offset points", **side
    )
for (start, end), some in edges.items():
    (x, y), (to_x, to_y) = places[start], places[end]
    arrow = {"arrowstyle": "-|>", "shrinkA": 11, "shrinkB": 11}
    ax.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
    middle = (0.5 * (x + to_x), 0.5 * (y + to_y))
    text = " ".join(map(chr, some))
    ax.annotate(text, middle, ha="center", va="center", backgroundcolor="white")
ax.set(xlim=(-0.5, 4.5), ylim=(-1.5, 1.5))
ax.axis("off")
plt.show()

# %% [markdown]
# A thick border is a state that accepts. `cow` and `crow` share what comes behind their `o`:
# equal derivatives are one state.
#
# ## 4. Fast
#
# A mask like that is needed for every token of every text. How long does it take?

# %%
quoted = Automaton(r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"')  # a string of JSON
state = after(quoted, '"Z')
start = time.perf_counter()
mask = token_mask(quoted, state, vocabulary, eos_id)
print(f"{mask.sum()} tokens allowed, {time.perf_counter() - start:.3f} s")

# %% [markdown]
# A model on a GPU writes a token in 0.01 s or less. Two things make the mask fast:
#
# - Tokens share beginnings: ` the`, ` then`, ` there`. In a *trie* (a tree of bytes) each
#   beginning is one path, and is walked once. Where a path dies, all that is behind it does.
# - The same states come again and again. Each mask is computed once.

# %% [markdown]
# ### Exercise 12.6 · `TokenTrie`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 21 lines
#
# `TokenTrie(vocabulary)` is built once. `mask(automaton, state)` is the mask of `token_mask`,
# but for EOS: the trie does not know which token that is. Here EOS has no bytes, and so is not
# allowed, like every token without bytes. Each path of bytes takes one `step`, and a path that
# died is not followed. A state that was seen before, with the same automaton, takes no step at
# all. Each call returns a tensor of its own.
#
# By hand: pattern `ab?`, vocabulary `[b"a", b"b", b"ab", b"abb", b"ba"]`. From the start the
# trie asks for `a`, `b`, `ab`, `abb`: four steps. `b` is dead, so it does not ask for `ba`. The
# mask is `[1, 0, 1, 0, 0]`.
#
# <details><summary>Hint 1</summary>A node is a pair: a dictionary from a byte to the node
# behind it, and the list of the tokens that end here. (Two tokens may have the same
# bytes.)</details>
# <details><summary>Hint 2</summary><code>children.setdefault(byte, ({}, []))</code> goes to
# the next node, and makes it where there is none.</details>
# <details><summary>Hint 3</summary>Walk with a stack of pairs (node, state), beginning with
# the root. Collect the ids in a list, and set the mask once at the end: setting one element of
# a tensor takes longer than a hundred steps.</details>


# %% tags=["exercise"]
class TokenTrie:
    """The vocabulary as a tree of bytes, for fast masks."""

    def __init__(self, vocabulary: list[bytes]):
        """vocabulary: the bytes of each token; b"" is never allowed."""
        ### BEGIN SOLUTION
        self.size = len(vocabulary)
        self.root = ({}, [])  # (children, the tokens that end here)
        self.known = {}  # (automaton, state): its mask
        for i, token in enumerate(vocabulary):
            children, ids = self.root
            for byte in token:
                children, ids = children.setdefault(byte, ({}, []))
            if token:
                ids.append(i)
        ### END SOLUTION

    def mask(self, automaton: "Automaton", state: Hashable) -> torch.Tensor:
        """The tokens whose bytes the automaton reads from `state` on: (vocab,) bool."""
        ### BEGIN SOLUTION
        key = (automaton, state)
        if key not in self.known:
            allowed, stack = [], [(self.root, state)]
            while stack:
                (children, ids), state = stack.pop()
                allowed += ids
                for byte, child in children.items():
                    following = automaton.step(state, byte)
                    if following is not None:
                        stack.append((child, following))
            mask = torch.zeros(self.size, dtype=torch.bool)
            mask[torch.tensor(allowed, dtype=torch.long)] = True
            self.known[key] = mask
        return self.known[key].clone()
        ### END SOLUTION


# %% tags=["check"]
check(TokenTrie)

# %%
start = time.perf_counter()
trie = TokenTrie(vocabulary)
print(f"building the trie       {time.perf_counter() - start:8.3f} s, once")
for visit in ("first visit of a state", "second visit"):
    start = time.perf_counter()
    fast = trie.mask(quoted, state)
    print(f"{visit:23} {1000 * (time.perf_counter() - start):8.3f} ms")
fast[eos_id] = quoted.accepting(state)
print("the same mask:", fast.equal(mask))

# %% [markdown]
# The first visit may still take longer than a token: here nearly every token fits, so nearly
# every path is walked, in Python. The libraries of servers do the same in Rust or C++.
#
# ## 5. The loop
#
# What is left is the loop of lesson 07, with a mask in it and a state beside it. Three things
# can end it:
#
# - EOS was picked. It is allowed only where the text is complete: this text is *finished*.
# - The budget is used up. The text may be cut in the middle.
# - Nothing is allowed, a *dead end*: the automaton could go on, but no token has the bytes.
#   (This model has no token with the byte F1, say. Some rare characters cannot be written.)

# %% [markdown]
# ### Exercise 12.7 · `constrained_decode`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 15 lines
#
# Decode one row under an automaton. EOS belongs to the result, as in `generate`. `pick` gets
# all logits of the model, float32 `(1, vocab)`, with `-inf` for what is not allowed. Some models
# have a few more logits than there are tokens (padding, to a round number): they stay in their
# places, and are never allowed. `pick` returns a token, `(1, 1)`. An EOS in the prompt ends
# nothing.
# As in lesson 07, n new tokens take n calls of the model, and a dead end takes none.
#
# By hand: pattern `ab?`, tokens `a` 0, `b` 1, EOS 2, greedy; the model always likes `b` best,
# then `a`. The first token is `a`, since `b` is not allowed, then comes `b`, then EOS: `[0, 1,
# 2]`, finished. With two new tokens it is `[0, 1]`, not finished: the text could end there, but
# the model was not asked.
#
# <details><summary>Hint 1</summary>A trie before the loop. In it: mask, logits, pick, append;
# then EOS or the bytes of the token.</details>
# <details><summary>Hint 2</summary><code>mask[eos_id] = automaton.accepting(state)</code>. If
# nothing is left in the mask, return.</details>
# <details><summary>Hint 3</summary><code>logits[:, len(vocabulary):] = -inf</code> for the
# padding, and <code>masked_fill</code> for the rest.</details>


# %% tags=["exercise"]
def constrained_decode(
    model,
    ids: torch.Tensor,
    automaton: "Automaton",
    vocabulary: list[bytes],
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
    eos_id: int,
) -> tuple[torch.Tensor, bool]:
    """Continue a text so that the new part is one that the automaton accepts.

    ids: (1, seq) int64, the prompt, which the automaton does not read.
    vocabulary: the bytes of each token. Returns ids (1, seq + new), and whether the
    text ended by itself, with EOS. False at the end of the budget and in a dead end.
    """
    ### BEGIN SOLUTION
    trie, state = TokenTrie(vocabulary), automaton.start
    fed, cache = ids, None
    for _ in range(max_new_tokens):
        mask = trie.mask(automaton, state)
        mask[eos_id] = automaton.accepting(state)
        if not mask.any():
            return ids, False
        logits, cache = cached_step(model, fed, cache)
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[0, : len(mask)] = mask
        fed = pick(logits.masked_fill(~allowed, float("-inf")))
        ids = torch.cat([ids, fed], dim=-1)
        if fed.item() == eos_id:
            return ids, True
        for byte in vocabulary[fed.item()]:
            state = automaton.step(state, byte)
    return ids, False
    ### END SOLUTION


# %% tags=["check"]
check(constrained_decode)

# %% [markdown]
# The proof: `generate` takes a function that says what is allowed, `prefix_allowed_tokens_fn`.
# We give it the mask of the slow `token_mask`, and compare.

# %% tags=["nbval-check-output"]
ids = chat("When did the first human land on the moon? Answer with the date.")
moon = Automaton(r"(19|20)\d\d-[01]\d-[0-3]\d")


def allowed_tokens(row, so_far):
    new = b"".join(vocabulary[i] for i in so_far[ids.shape[1] :])
    mask = token_mask(moon, after(moon, new), vocabulary, eos_id)
    return mask.nonzero()[:, 0].tolist()


options = {"max_new_tokens": 12, "do_sample": False}
theirs = model.generate(ids, prefix_allowed_tokens_fn=allowed_tokens, **options)
mine, finished = constrained_decode(
    model, ids, moon, vocabulary, 12, pick_greedy, eos_id
)
print(torch.equal(mine, theirs), finished, tokenizer.decode(mine[0, ids.shape[1] :]))

# %% [markdown]
# The same tokens, and a date in form only: there is no month 19. The mask guarantees what the
# pattern says, and no more. Such months can be ruled out with a better pattern, a wrong day
# cannot.
#
# ## 6. A JSON schema
#
# Programs talk in JSON, and a *JSON schema* says which JSON is wanted. For a large part of the
# language a regex is enough. (Not for nesting without end: a regex cannot count brackets. For
# that one needs a grammar and a stack.)

# %% [markdown]
# The simple values are given, as patterns:

# %% tags=["setup"]
INTEGER = "-?(0|[1-9][0-9]*)"
SIMPLE = {
    "null": "null",
    "boolean": "(true|false)",
    "integer": INTEGER,
    "number": INTEGER + r"(\.[0-9]+)?([eE][-+]?[0-9]+)?",
}
# A character in a string: itself, or \" \\ \/ \b \f \n \r \t, or \u0000 to \u001f.
CHARACTER = r'([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u00[01][0-9a-f])'
KEYWORDS = {"const", "enum", "anyOf", "type", "properties", "items"}
KEYWORDS |= {"minLength", "maxLength", "minItems", "maxItems"}
KEYWORDS |= {"required", "additionalProperties"}
KEYWORDS |= {"title", "description", "default", "examples", "$schema"}

# %% [markdown]
# ### Exercise 12.8 · `schema_to_regex`
#
# difficulty ★★★ · importance ★★★ · 30 min · our answer: 37 lines
#
# A pattern for the JSON of a schema, written as `json.dumps(value, ensure_ascii=False)` writes
# it: one space behind each `,` and `:`, and no other outside strings.
#
# | schema | text |
# |---|---|
# | `const` | that value |
# | `enum` | one of the values |
# | `anyOf` | what one of the schemas says |
# | `type`: one of `SIMPLE` | see above |
# | `type: string` | quotes, `CHARACTER`s; `minLength`, `maxLength` count characters |
# | `type: array` | `items` is a schema; `minItems`, `maxItems` |
# | `type: object` | all `properties`, in their order; an object without any is `{}` |
# | a list of types | as the one or the other |
#
# `required` and `additionalProperties` change nothing: every property is written, and no
# other. Nor do `title`, `description`, `default`, `examples` and `$schema`. Beside `const`,
# `enum` and `anyOf` (in this order, if there are several) no other of the `KEYWORDS` is looked
# at.
#
# Raise `ValueError` for what a schema may say and we would not obey: a keyword that is not in
# `KEYWORDS` (and name it), a `type` that is missing or unknown, an array without `items`, a
# `required` property that is not in `properties`. So, too, for what no text can fulfil: an
# empty `enum`, `anyOf` or list of types, or a least number above the most.
#
# By hand: `{"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2}` could become
# `\[((1|"a")(, (1|"a")){0,1})?\]`.
#
# <details><summary>Hint 1</summary>A function that calls itself: the pattern of an array is
# made from the pattern of its items.</details>
# <details><summary>Hint 2</summary><code>re.escape(json.dumps(value,
# ensure_ascii=False))</code> is the pattern of a value, and of a property's
# name. A choice needs brackets around it.</details>
# <details><summary>Hint 3</summary>Braces in an f-string are doubled:
# <code>f"x{{{least},{most}}}"</code> is <code>x{0,3}</code>. Without an upper limit it is
# <code>x{0,}</code>.</details>
# <details><summary>Hint 4</summary>An array of at least one item: one item, then
# <code>(, item)</code> at least <code>minItems - 1</code> times. With
# <code>minItems</code> 0 all of it may be missing. <code>maxItems</code> 0 is a case of its
# own.</details>


# %% tags=["exercise"]
def schema_to_regex(schema: dict) -> str:
    """A pattern that matches JSON texts that are valid under the schema.

    It matches json.dumps(value, ensure_ascii=False) of each valid value whose objects
    have all properties of the schema, in that order, and no others.
    Raises ValueError for what is not supported, and for what no text can fulfil.
    """
    ### BEGIN SOLUTION
    for keyword in schema:
        if keyword not in KEYWORDS:
            raise ValueError(f"the keyword {keyword!r} is not supported")
    if "const" in schema:
        return re.escape(json.dumps(schema["const"], ensure_ascii=False))
    kind, options = schema.get("type"), None
    if "enum" in schema:
        options = [{"const": value} for value in schema["enum"]]
    elif "anyOf" in schema:
        options = schema["anyOf"]
    elif isinstance(kind, list):
        options = [{**schema, "type": one} for one in kind]
    if options is not None:
        if not options:
            raise ValueError("there is nothing to choose from")
        return "(" + "|".join(schema_to_regex(option) for option in options) + ")"
    if kind in SIMPLE:
        return SIMPLE[kind]
    if kind == "object":
        properties, fields = schema.get("properties", {}), []
        for name in schema.get("required", []):
            if name not in properties:
                raise ValueError(f"{name!r} is required, but not among the properties")
        for name, inner in properties.items():
            key = schema_to_regex({"const": name})
            fields.append(f"{key}: {schema_to_regex(inner)}")
        return r"\{" + ", ".join(fields) + r"\}"
    if kind not in ("string", "array") or (kind == "array" and "items" not in schema):
        raise ValueError(
            f"a schema needs a type that is known, an array items: {schema}"
        )
    what = "Length" if kind == "string" else "Items"
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", "")
    if most != "" and most < least:
        raise ValueError(f"min{what} {least} is above max{what} {most}")
    if kind == "string":
        return f'"{CHARACTER}{{{least},{most}}}"'
    if most == 0:
        return r"\[\]"
    item = schema_to_regex(schema["items"])
    items = f"{item}(, {item}){{{max(least - 1, 0)},{most and most - 1}}}"
    return rf"\[{items}\]" if least else rf"\[({items})?\]"
    ### END SOLUTION


# %% tags=["check"]
check(schema_to_regex)

# %%
schema = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "country": {"type": "string"},
        "capital": {"type": "boolean"},
    },
}
print(schema_to_regex(schema))


# %% tags=["nbval-check-output"]
def about(city):
    keys = "Use the keys city, country and capital, which is true or false."
    return chat(f"Describe {city} as a JSON object. {keys}")


def both_ways(city, budget=48):
    """The new tokens, free and constrained, and whether the second text finished."""
    ids = about(city)
    free = model.generate(ids, max_new_tokens=budget, do_sample=False)
    forced, finished = constrained_decode(
        model, ids, automaton, vocabulary, budget, pick_greedy, eos_id
    )
    start = ids.shape[1]
    return free[0, start:].tolist(), forced[0, start:].tolist(), finished


automaton = Automaton(schema_to_regex(schema))
free, forced, finished = both_ways("Paris")
print(tokenizer.decode(free))
print(finished, tokenizer.decode(forced))

# %% [markdown]
# "Guaranteed valid JSON", say the advertisements. **Predict:** is it also valid with
# `max_new_tokens=20`? Three cities, both ways, each text cut after so many tokens:


# %%
def is_valid(new):
    """Whether the JSON object in these tokens is one that the schema allows."""
    text = tokenizer.decode(new, skip_special_tokens=True)
    found = re.search(r"\{.*\}", text, re.DOTALL)  # what stands around it is forgiven
    try:
        value = json.loads(found[0]) if found else None
    except ValueError:
        return False
    if not isinstance(value, dict) or list(value) != list(schema["properties"]):
        return False
    return [type(x) for x in value.values()] == [str, str, bool]


texts = {"free": [free], "constrained": [forced]}
for city in ("Tokyo", "Cairo"):
    free, forced, _ = both_ways(city)
    texts["free"].append(free)
    texts["constrained"].append(forced)

# %%
budgets = range(1, 49)
fig, ax = plt.subplots(figsize=(6.5, 2.8))
for name, colour in (("free", figures.RED), ("constrained", figures.BLUE)):
    valid = [sum(is_valid(new[:n]) for new in texts[name]) for n in budgets]
    ax.step(budgets, valid, where="post", label=name, color=colour)
ax.set(xlabel="max_new_tokens", ylabel="valid, of 3", yticks=range(4))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# A mask cannot make a text fit into a budget. What is cut is not valid, whichever way it was
# written. (Of the free ones none is valid at any length: in the one about Paris, above, the
# capital is a name, not true or false.) So look at `finished`. An API says it by another name:
# `finish_reason` is `length` there, not `stop`.
#
# ## 7. What is forced
#
# In `{"city": "` the model has no choice. Why ask it? *Jump-forward* decoding appends such a
# text without a model call for each token.

# %% [markdown]
# ### Exercise 12.9 · `forced_bytes`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 8 lines
#
# The bytes that must follow, one behind the other: as long as the text may not end here, and
# exactly one byte leads on.
#
# By hand: pattern `ab(c|d)e`. From the start `ab` is forced. After `abc` it is `e`. Pattern
# `ab?`: from the start `a`, and then nothing, since the text may end there.
#
# <details><summary>Hint 1</summary>Try all 256 bytes.</details>


# %% tags=["exercise"]
def forced_bytes(automaton: "Automaton", state: Hashable) -> bytes:
    """The bytes that every accepted text has next, up to the first choice.

    An end that is possible is a choice, too.
    """
    ### BEGIN SOLUTION
    forced = []
    while not automaton.accepting(state):
        possible = [x for x in range(256) if automaton.step(state, x) is not None]
        if len(possible) != 1:
            break
        forced += possible
        state = automaton.step(state, possible[0])
    return bytes(forced)
    ### END SOLUTION


# %% tags=["check"]
check(forced_bytes)

# %% tags=["nbval-check-output"]
text = json.dumps({"city": "Paris", "country": "France", "capital": True})
state, told = automaton.start, []
for byte in text.encode():
    told.append("^" if forced_bytes(automaton, state) else " ")
    state = automaton.step(state, byte)
print(text)
print("".join(told), f"\n{told.count('^')} of {len(told)} bytes are forced")

# %% [markdown]
# More than half of the text is free of charge: the forced part goes through the model in one
# call, like a prompt. But the model wants tokens, not bytes. **Predict:** is it enough to call
# the tokenizer on the forced text?

# %% tags=["nbval-check-output"]
yes_or_no = schema_to_regex(
    {"type": "object", "properties": {"answer": {"type": "boolean"}}}
)
answer = Automaton(yes_or_no)
forced = forced_bytes(answer, answer.start).decode()
whole = tokenizer(forced, return_tensors="pt").input_ids.to(model.device)
print("forced:", repr(forced), [vocabulary[i] for i in whole[0]])
print("usual: ", [vocabulary[i] for i in tokenizer('{"answer": true}').input_ids])

# %% [markdown]
# The forced text ends with a space. By itself it is a token. In the texts that the model has
# learned from it is the beginning of another one, ` true`. We have built a sequence of tokens
# that hardly occurs there, and the model does not know how to go on: here is the probability
# that it gives to all that the mask allows, and what it says.

# %% tags=["nbval-check-output"]
question = ' Answer as JSON, {"answer": true} or {"answer": false}.'
for asked in ("Is the whale a fish?", "Is 15 a prime number?", "Is Lyon in France?"):
    print(asked)
    for name, part in (
        ("all forced tokens", whole),
        ("all but the last", whole[:, :-1]),
    ):
        text = torch.cat([chat(asked + question), part], dim=-1)
        chances = cached_step(model, text, None)[0][0].softmax(-1).cpu()
        state = after(answer, b"".join(vocabulary[i] for i in part[0]))
        allowed = token_mask(answer, state, vocabulary, eos_id).nonzero()[:, 0].tolist()
        kept = sum(chances[i].item() for i in allowed)
        true = sum(chances[i].item() for i in allowed if b"t" in vocabulary[i])
        print(f"  {name:18} mass allowed {kept:.3f}   of it `true` {true / kept:.2f}")

# %% [markdown]
# After the first way nearly nothing of what the model wants is allowed: the mask picks among
# leftovers. The cure: give back the last token of the forced text, and let the mask force its
# bytes. Then ` true` as a whole is possible, and the probabilities are those of a text as
# usual. (In general so many tokens are given back as could still join with what follows. For
# prompts the same cure is called *token healing*.)
#
# ## 8. Endless white space
#
# JSON allows spaces and line ends between its parts. It is tempting to allow what the standard
# allows. **Predict:** what will a model write that was asked for a poem, and may only write
# `{"lines": ` and a number, with white space wherever it likes?


# %%
def with_space(pattern, space):
    """A pattern of `schema_to_regex` with other white space between the parts."""
    for part in (r"\{", ": ", ", "):
        pattern = pattern.replace(part, part.strip() + space)
    return pattern.replace(r"\}", space + r"\}")


lines = {"type": "object", "properties": {"lines": {"type": "integer"}}}
poem = chat("Write a poem about the sea.")

# %% tags=["nbval-check-output"]
for name, space in (("any", r"[ \n\t]*"), ("two at most", r"[ \n\t]{0,2}")):
    loose = Automaton(with_space(schema_to_regex(lines), space))
    out, finished = constrained_decode(
        model, poem, loose, vocabulary, 40, pick_greedy, eos_id
    )
    print(f"{name:12} {finished!s:6} {tokenizer.decode(out[0, poem.shape[1] :])!r}")

# %% [markdown]
# The model wants to write a poem. No token of a poem is allowed. Of what is allowed, a line end
# is likeliest, and after twenty of them one more is likelier still (lesson 08). Nothing forces it
# to close the bracket. It would go on to the end of any budget. OpenAI's own documentation
# warns of this "unending stream of whitespace".
#
# The cure is a bound: `{0,2}`, or no choice at all, as in our `schema_to_regex`. The same can
# happen wherever a pattern has a `*`: digits of an integer, characters of a string. `maxLength`
# is a bound, too. And the mask is no substitute for the prompt: tell the model which format
# you want.
#
# ## 9. What the mask does to the distribution
#
# The mask removes what is not allowed and shares out its probability among the rest, at each
# step. That looks like the model's own distribution, given the format. **Predict:** the model
# writes `0` with probability 0.1 and `1` with 0.9, whatever came before. The format is four
# digits that begin with `0`, or `1000`. How often should `1000` come? And how often does it,
# under the mask?

# %% [markdown]
# ### Exercise 12.10 · `true_conditional`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 18 lines
#
# On a vocabulary so small that all texts can be tried: the probability of each text of
# exactly `length` tokens, *given that the automaton accepts it*. That is the model's own
# probability of the text, divided by the sum over all accepted texts. A token without bytes
# stands in no text; it keeps its share of the model's softmax. If no text is accepted, raise
# `ValueError`.
#
# By hand: tokens `a` and `b`; P(a) = 0.75 at each place, whatever came before. Pattern
# `aa|ba`: the texts have 0.5625 and 0.1875, together 0.75. The result is `{(0, 0): 0.75,
# (1, 0): 0.25}`.
#
# <details><summary>Hint 1</summary>As <code>exact_search</code> of lesson 09:
# <code>itertools.product</code>, all texts in one batch, the log-probabilities of the new
# tokens.</details>
# <details><summary>Hint 2</summary>Choose the accepted ones first, by their bytes. Then a
# softmax over their log-probabilities divides by the sum.</details>


# %% tags=["exercise"]
def true_conditional(
    model,
    ids: torch.Tensor,
    automaton: "Automaton",
    vocabulary: list[bytes],
    length: int,
) -> dict[tuple[int, ...], float]:
    """P(text | the automaton accepts it), over the texts of `length` tokens.

    ids: (1, seq) int64, the prompt. Returns {token ids: probability}, accepted texts
    only; the probabilities sum to 1. No EOS is asked for behind the text.
    Raises ValueError if no text of that length is accepted.
    """
    ### BEGIN SOLUTION
    found = []
    tokens = [i for i, token in enumerate(vocabulary) if token]
    for text in itertools.product(tokens, repeat=length):
        state = automaton.start
        for byte in b"".join(vocabulary[i] for i in text):
            state = automaton.step(state, byte)
            if state is None:
                break
        if state is not None and automaton.accepting(state):
            found.append(text)
    if not found:
        raise ValueError(f"no text of {length} tokens is accepted")
    new = torch.tensor(found, device=ids.device)  # (texts, length)
    with torch.no_grad():
        logits = model(torch.cat([ids.expand(len(new), -1), new], dim=-1)).logits
    logprobs = logits[:, ids.shape[1] - 1 : -1].double().log_softmax(-1)
    scores = logprobs.gather(-1, new[..., None]).sum((1, 2))  # (texts,)
    return dict(zip(found, scores.softmax(0).tolist(), strict=True))
    ### END SOLUTION


# %% tags=["check"]
check(true_conditional)

# %% [markdown]
# Here is the example, with the true probabilities and those under the mask.

# %% tags=["nbval-check-output"]
toy = ScriptedModel(lambda ids: torch.tensor([0.1, 0.9]).log().expand(*ids.shape, 2))
digits, start = [b"0", b"1", b""], torch.tensor([[0]])  # the last is EOS, not used
odd = Automaton("0[01]{3}|1000")
true = true_conditional(toy, start, odd, digits, 4)


def masked_chance(text):
    """The probability of a text where the mask is applied at each step; its weight."""
    state, chance, weight = odd.start, 1.0, 1.0
    for token in text:
        chances = toy(start).logits[0, -1].softmax(-1)
        kept = chances[token_mask(odd, state, digits, 2)[:2]].sum().item()
        chance *= chances[token].item() / kept
        weight *= kept
        state = after(odd, digits[token], state)
    return chance, weight


print("text   true   masked")
for text, chance in true.items():
    written = "".join(map(str, text))
    print(f"{written}  {chance:6.3f}  {masked_chance(text)[0]:6.3f}")

# %% [markdown]
# `1000` should come 9 times in 1,000, and comes 9 times in 10. At the first step both digits are
# allowed, and the mask changes nothing: `1` is taken as usual. Only then it turns out that the
# rest has to be `000`, which the model finds absurd. The mask does not look ahead; the true
# conditional does.
#
# The cure is in the numbers that the mask throws away. At each step, note the probability of
# all that is allowed (the *kept mass*). Their product over a text is its *weight*. The
# probability under the mask, times the weight, is the model's own probability of the text. Two
# ways to use it:
#
# - Accept a text with a probability of its weight, otherwise begin anew: *rejection
#   sampling*. What is accepted has the true distribution.
# - Keep all texts, and count each by its weight (*importance weights*).

# %%
generator = torch.Generator().manual_seed(0)
texts = list(true)
masked = torch.tensor([masked_chance(text)[0] for text in texts])
weights = torch.tensor([masked_chance(text)[1] for text in texts])
drawn = torch.multinomial(masked, 20_000, replacement=True, generator=generator)
luck = torch.rand(len(drawn), generator=generator)
accepted = drawn[luck < weights[drawn]].bincount(minlength=len(texts))
print(f"accepted: {accepted.sum()} of {len(drawn)} texts")

fig, ax = plt.subplots(figsize=(7.5, 2.8))
bars = (
    (
        "the model's own, given the format",
        torch.tensor(list(true.values())),
        figures.BLUE,
    ),
    ("with the mask", masked, figures.RED),
    ("with the mask, and rejection", accepted / accepted.sum(), figures.GREEN),
)
for n, (name, heights, colour) in enumerate(bars):
    places = torch.arange(len(texts)) + 0.27 * (n - 1)
    ax.bar(places, heights, width=0.25, label=name, color=colour)
ax.set_xticks(range(len(texts)), ["".join(map(str, text)) for text in texts])
ax.set(ylabel="probability", ylim=(0, 1))
ax.legend(loc="upper center")
plt.show()

# %% [markdown]
# Nine of ten texts are thrown away: no way is free that asks for what the model itself
# rarely does. Where prompt and format fit, the weights are near 1, and there is little to
# mend. That is one more reason to tell the model which format you want.
#
# ## Questions
#
# 1. A token is allowed where the automaton reads all its bytes. Why must it not end in an
#    accepting state?
# 2. Constrained, greedy, and the text is finished. Is it the text that the model finds likeliest
#    among all that the format allows?
# 3. A server has 100 clients with 100 schemas. What can they share of what you have written?
#
# <details><summary>Answers</summary>
#
# 1. Most tokens are parts: after `{"ci` nothing is complete, and yet it is a good beginning. It
#    is enough that the text can still become complete, which is what "not dead" means.
# 2. No. Greedy decoding takes the best token at each step, with a mask or without (lesson 09), and
#    the mask does not look ahead either (section 9).
# 3. The trie, since it depends on the vocabulary alone. An automaton and its masks belong to a
#    schema; clients with the same schema share those, too.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM (`structured_outputs`) | SGLang | llama.cpp's server |
# |---|---|---|---|---|---|
# | choices | an `enum` in a schema | `prefix_allowed_tokens_fn` | `choice` | `regex` | `grammar` |
# | regular expression | none | the same | `regex` | `regex` | `grammar` |
# | JSON schema | `response_format` | the same | `json` | `json_schema` | `json_schema` |
# | grammar | none | the same | `grammar` | `ebnf` | `grammar` (GBNF) |
# | white space | not published | yours to decide | `whitespace_pattern` | set for the server | fixed |
#
# SGLang's server is told when it starts, by `--constrained-json-whitespace-pattern` or
# `--constrained-json-disable-any-whitespace`, depending on the engine. llama.cpp's grammar
# bounds it: one space, or one or two line ends with up to 20 spaces or tabs, or none.
#
# vLLM's names before 0.12 were `guided_json`, `guided_regex` and so on. The engines behind are
# libraries: XGrammar, llguidance (derivatives and a trie, as here), Outlines.
#
# ## To read
#
# - Brzozowski: *Derivatives of Regular Expressions*, Journal of the ACM, 1964.
# - Willard, Louf: *Efficient Guided Generation for Large Language Models*, 2023,
#   [arXiv:2307.09702](https://arxiv.org/abs/2307.09702). From a regex to masks.
# - Dong et al.: *XGrammar*, 2024, [arXiv:2411.15100](https://arxiv.org/abs/2411.15100). Grammars
#   that can count brackets.
# - Park et al.: *Grammar-Aligned Decoding*, NeurIPS 2024,
#   [arXiv:2405.21047](https://arxiv.org/abs/2405.21047). The distortion of section 9.
# - Lipkin et al.: *Fast Controlled Generation from Language Models with Adaptive Weighted
#   Rejection Sampling*, COLM 2025, [arXiv:2504.05410](https://arxiv.org/abs/2504.05410). Weights
#   without the full mask.
# - llguidance's notes on [forced tokens](https://github.com/guidance-ai/llguidance/blob/main/docs/fast_forward.md).
