# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Knowing when to stop
#
# **After this lesson your decoder stops where it should, for one text and for a batch, it
# streams whole characters, and it gives the same tokens as `generate`.**
#
# You write: `eos_token_ids`, `is_finished`, `suppress_eos`, `decode_batch`,
# `stream_tokens`, `stop_at`, and then you repair the `CustomDecoder` that tutorials
# show. About 90 minutes. Builds on lessons 03 and 04.

# %% tags=["setup"]
from collections.abc import Callable, Iterable, Iterator

import torch

from course import carry

top_k_filter = carry("top_k_filter")

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

from course import check, figures
from tiny_models import load

model, tokenizer = load()
decode = carry("decode")
pick_greedy = carry("pick_greedy")
pick_sample = carry("pick_sample")

# %% [markdown]
# ## 1. The end of a text
#
# Lesson 03's loop adds as many tokens as you ask for. Ask a question with a short answer,
# and look at the tokens that a user never sees.


# %% tags=["nbval-check-output"]
def prompt_of(question):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt"
    ).to(model.device)


prompt = prompt_of("What is the capital of France?")
ids = prompt["input_ids"]
out = decode(model, ids, 20, pick_greedy)
print(tokenizer.decode(out[0, ids.shape[1] :]))

# %% [markdown]
# The answer is over after its first sentence. The model says so, with a token that means
# "end of sequence", EOS for short. A loop that does not listen goes on and makes up the
# next turn of the conversation.
#
# Which token is it? `model.generation_config.eos_token_id` knows. It may be one id, a list
# of ids (Llama 3 has several: end of turn, end of text) or `None`.

# %% [markdown]
# ### Exercise 05.1 · `eos_token_ids`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 4 lines
#
# The EOS ids of a model, always as a list.
#
# By hand: `2` gives `[2]`; `[2, 7]` gives `[2, 7]`; `None` gives `[]`.
#
# <details><summary>Hint 1</summary>The tokenizer has an EOS, too. It is one token only,
# and not always the one that the model was tuned to end its turn with.</details>
# <details><summary>Hint 2</summary><code>isinstance(found, int)</code> tells the single
# id from the list. Mind that id 0 counts as false.</details>


# %% tags=["exercise"]
def eos_token_ids(model) -> list[int]:
    """The ids that end a text, from `model.generation_config.eos_token_id`.

    Returns a list of ints, empty where the model has no EOS.
    """
    ### BEGIN SOLUTION
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return [found] if isinstance(found, int) else list(found)
    ### END SOLUTION


# %% tags=["check"]
check(eos_token_ids)

# %% [markdown]
# So stop when an EOS is among the ids. **Predict:** how many tokens will a loop generate
# that asks `eos in ids` after each step?

# %% tags=["nbval-check-output"]
eos_ids = eos_token_ids(model)
print("EOS ids:", eos_ids, [tokenizer.decode(i) for i in eos_ids])
print("EOS in the prompt:", int(torch.isin(ids, torch.tensor(eos_ids)).sum()), "times")
print(tokenizer.decode(ids[0]))

# %% [markdown]
# One. This chat template closes each message with the EOS token, so the prompt is full of
# them. Only the *new* tokens count.

# %% [markdown]
# ### Exercise 05.2 · `is_finished`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 2 lines
#
# For each row: is there an EOS among its new tokens?
#
# By hand: new tokens `[[5], [2], [7]]` with `eos_ids=[2, 7]` give `[False, True, True]`.
#
# <details><summary>Hint 1</summary><code>torch.isin(tokens, list_as_tensor)</code> compares
# with several ids at once.</details>
# <details><summary>Hint 2</summary>One answer for each row, shape (batch,):
# <code>any</code> over the last dimension only.</details>


# %% tags=["exercise"]
def is_finished(new_tokens: torch.Tensor, eos_ids: list[int]) -> torch.Tensor:
    """Which rows hold an EOS among their new tokens.

    new_tokens: (batch, n) int64, generated tokens without the prompt; n is 1 for the
    tokens of one step. eos_ids may be empty. Returns (batch,) bool.
    """
    ### BEGIN SOLUTION
    eos = torch.tensor(eos_ids, dtype=torch.long, device=new_tokens.device)
    return torch.isin(new_tokens, eos).any(dim=-1)
    ### END SOLUTION


# %% tags=["check"]
check(is_finished)

# %% [markdown]
# ## 2. Not yet
#
# Sometimes a text must not end too early: `min_new_tokens` forbids EOS for the first
# tokens. How do you forbid a token? As in lesson 04, before the softmax.

# %% [markdown]
# ### Exercise 05.3 · `suppress_eos`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 4 lines
#
# By hand: logits `[[1., 2., 3.]]`, `eos_ids=[2]`, `min_new_tokens=4`. With 3 new tokens so
# far the row becomes `[[1., 2., -inf]]`: the fourth must not be EOS. With 4 so far it stays
# as it is.
#
# <details><summary>Hint 1</summary>Index the columns with the list of ids. All the columns
# at once, in all rows.</details>
# <details><summary>Hint 2</summary>Is it <code>&lt;</code> or <code>&lt;=</code>? The case
# worked by hand decides.</details>


# %% tags=["exercise"]
def suppress_eos(
    logits: torch.Tensor, eos_ids: list[int], new_so_far: int, min_new_tokens: int
) -> torch.Tensor:
    """Set the logits of all EOS ids to -inf while fewer than `min_new_tokens` tokens
    have been generated.

    logits: (batch, vocab) float. new_so_far: tokens generated before this step.
    Returns a new tensor of the same shape and dtype.
    """
    ### BEGIN SOLUTION
    logits = logits.clone()
    if new_so_far < min_new_tokens:
        logits[:, eos_ids] = float("-inf")
    return logits
    ### END SOLUTION


# %% tags=["check"]
check(suppress_eos)

# %% [markdown]
# **Predict:** the answer above has about ten tokens. What comes after it, if EOS is
# forbidden for 30?

# %% tags=["nbval-check-output"]
out = model.generate(**prompt, max_new_tokens=40, min_new_tokens=30, do_sample=False)
print(tokenizer.decode(out[0, ids.shape[1] :]))

# %% [markdown]
# The first sentence is the same, word for word. Forbidding EOS does not make the model take
# a different way from the start; it makes a finished answer go on.
#
# ## 3. Several texts at once
#
# A batch must be a rectangle, so short prompts are padded, on the left: the next token
# has to follow the text, not the padding. What does our loop do with such a batch?

# %% tags=["nbval-check-output"]
texts = ["The capital of France is", "Roses are red,\nviolets are blue,\nand I am"]
batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
print(batch["attention_mask"].tolist())
alone = tokenizer(texts[0], return_tensors="pt").input_ids.to(model.device)
padded = decode(model, batch["input_ids"], 8, pick_greedy)[0, -8:]
print("alone: ", repr(tokenizer.decode(decode(model, alone, 8, pick_greedy)[0, -8:])))
print("padded:", repr(tokenizer.decode(padded)))

# %% [markdown]
# The same prompt, other text. The model reads the padding as if it were text. It has to
# be told twice which tokens are real:
#
# - the `attention_mask`, 1 for text and 0 for padding, so that nobody attends to padding;
# - the `position_ids`, so that the first real token is at position 0, wherever it stands.
#
# The second is easily forgotten, since many models do not mind: with rotary embeddings
# (Llama, and this model) only the *distance* between tokens matters. GPT-2 does mind.

# %% [markdown]
# ### Exercise 05.4 · `decode_batch`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 15 lines
#
# Lesson 03's loop for a left-padded batch. At each step: call the model with the mask and
# the positions; pick; give `pad_id` to rows that have finished before; append the tokens,
# and a column of ones to the mask. Stop when all rows have finished, or after
# `max_new_tokens`.
#
# By hand: mask `[[0, 0, 1, 1]]` has positions `[[0, 0, 0, 1]]` (those of the padding do
# not matter). If row 0 picks `5, 2, 6` and row 1 picks `3, 4, 2`, with `eos_ids=[2]` and
# `pad_id=0`, the new columns are `[[5, 2, 0], [3, 4, 2]]`, and there is no fourth step.
#
# Rows that have finished stay in the batch: the model still computes them, and `pick`
# still draws for them. Wasteful, but `generate` does the same, so the same seed gives the
# same tokens.
#
# <details><summary>Hint 1</summary>Positions count the ones of the mask:
# <code>mask.cumsum(-1) - 1</code>, and no position may be negative.</details>
# <details><summary>Hint 2</summary>Keep a bool tensor <code>finished</code> (batch,). A row
# gets padding if it was finished <em>before</em> this step: its EOS itself belongs to the
# text.</details>
# <details><summary>Hint 3</summary><code>token = torch.where(finished[:, None], pad_id,
# token)</code>, then <code>finished |= is_finished(token, eos_ids)</code>. If the pad token
# is also an EOS, that order does no harm.</details>


# %% tags=["exercise"]
def decode_batch(
    model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
    eos_ids: list[int],
    pad_id: int,
) -> torch.Tensor:
    """Continue a left-padded batch until each row has its EOS.

    model: called as model(ids, attention_mask=..., position_ids=...).
    ids, mask: (batch, seq) int64, left unchanged; mask is 0 on padding.
    pick: maps logits (batch, vocab) to the next tokens (batch, 1).
    Returns (batch, seq + new) int64 with new <= max_new_tokens: prompt and new tokens,
    each row filled up with pad_id after its EOS.
    """
    ### BEGIN SOLUTION
    finished = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        # 1. The logits after the last position
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (batch, seq)
        with torch.no_grad():
            output = model(ids, attention_mask=mask, position_ids=positions)
        # 2. A token for each row; padding for those that finished before
        token = pick(output.logits[:, -1].float())  # (batch, 1)
        token = torch.where(finished[:, None], pad_id, token)
        # 3. Append
        ids = torch.cat([ids, token], dim=-1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        # 4. Stop?
        finished = finished | is_finished(token, eos_ids)
        if finished.all():
            break
    return ids
    ### END SOLUTION


# %% tags=["check"]
check(decode_batch)

# %% [markdown]
# The proof: a padded batch of three questions, and each of them alone.

# %% tags=["nbval-check-output"]
questions = ["Name a colour.", "What is 2 + 2?", "Who wrote the play Romeo and Juliet?"]
chats = [[{"role": "user", "content": q}] for q in questions]
batch = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, return_tensors="pt"
).to(model.device)
pad = tokenizer.pad_token_id
width = batch["input_ids"].shape[1]
new = 24
mine = decode_batch(model, *batch.values(), new, pick_greedy, eos_ids, pad)
theirs = model.generate(**batch, max_new_tokens=new, do_sample=False, pad_token_id=pad)
print("same tokens as generate:", torch.equal(mine, theirs))
for row in mine[:, width:]:
    print(repr(tokenizer.decode(row, skip_special_tokens=True)))

# %%
prompt_part = batch["attention_mask"].cpu()  # 0 padding, 1 prompt
tokens = mine[:, width:].cpu()
ends = torch.isin(tokens, torch.tensor(eos_ids)).int()
after_eos = ends.cumsum(-1) - ends > 0
chart = torch.cat([prompt_part, torch.where(after_eos, 3, 2)], dim=-1)
fig, ax = plt.subplots(figsize=(8, 2))
colours = ListedColormap(["white", figures.SKY, figures.BLUE, figures.ORANGE])
ax.pcolormesh(chart, cmap=colours, vmin=0, vmax=3, edgecolors="white", linewidth=0.5)
ax.set(yticks=[0.5, 1.5, 2.5], yticklabels=questions, xlabel="position")
ax.invert_yaxis()
for name, colour in zip(("prompt", "new", "wasted"), colours.colors[1:], strict=True):
    ax.plot([], [], "s", color=colour, label=name, markersize=8)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# White is padding on the left, orange is work for rows that had finished: the batch is as
# slow as its longest answer. Real servers fill those places with the next request
# (*continuous batching*), which is the subject of lesson 17.
#
# ## 4. Half a character
#
# Users want to read while the model writes. So decode each token and print it. **Predict**
# what this prints:

# %% tags=["nbval-check-output"]
cafe = tokenizer("A café in 東京 🙂!").input_ids
print("".join(tokenizer.decode([i]) for i in cafe))
print([tokenizer.decode([i]) for i in cafe])

# %% [markdown]
# Tokens of this vocabulary are strings of *bytes*. In UTF-8 a character has up to four
# bytes, and a rare character is cut into several tokens. A piece of a character decodes to
# `�` (U+FFFD), the sign for bytes that are no text. Wait for the rest.

# %% [markdown]
# ### Exercise 05.5 · `stream_tokens`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 10 lines
#
# Turn tokens, as they come, into pieces of text, as early as possible but never half a
# character. Joined, the pieces are `tokenizer.decode` of all the tokens, without special
# tokens. The tokens come from a loop that is still running: do not ask for the next one
# before you have handed out what you have.
#
# By hand, with one token for each byte: `é` is the bytes `C3 A9`, so the tokens of
# `"né!"` arrive as `n`, `C3`, `A9`, `!`, and the pieces are `"n"`, `"é"`, `"!"`. If the
# tokens end after `C3`, the last piece is `"�"`: what is there has to come out.
#
# <details><summary>Hint 1</summary>Do not decode one token: decode all tokens so far, and
# hand out what is new since the last piece.</details>
# <details><summary>Hint 2</summary>While the decoded text ends in
# <code>"\ufffd"</code>, wait: the next token may complete the character.</details>
# <details><summary>Hint 3</summary>After the last token hand out the rest. Empty pieces
# help nobody.</details>


# %% tags=["exercise"]
def stream_tokens(tokenizer, token_ids: Iterable[int]) -> Iterator[str]:
    """Decode tokens one by one into pieces of text, never half a character.

    token_ids: new tokens as they are generated. Special tokens give no text.
    Yields non-empty strings; joined, they are
    `tokenizer.decode(list(token_ids), skip_special_tokens=True)`.
    """
    ### BEGIN SOLUTION
    ids, sent = [], 0
    for token in token_ids:
        ids.append(int(token))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if len(text) > sent and not text.endswith("\ufffd"):
            yield text[sent:]
            sent = len(text)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if len(text) > sent:
        yield text[sent:]
    ### END SOLUTION


# %% tags=["check"]
check(stream_tokens)

# %% tags=["nbval-check-output"]
print(list(stream_tokens(tokenizer, cafe)))

# %% [markdown]
# Decoding everything again for each token is quadratic. For long texts, engines decode
# only a window that starts at a safe place; the pieces are the same.
#
# ## 5. Stop strings
#
# EOS is the model's way to stop. A *stop string* is the user's: stop at the first blank
# line, or where the next question begins. The text is searched, not the tokens.
# **Predict:** the stop string is `"\n\n"`. The stream below contains it. Does a test of
# each piece find it?

# %% tags=["nbval-check-output"]
poem = "Roses are red.\n\nViolets are blue."
pieces = list(stream_tokens(tokenizer, tokenizer(poem).input_ids))
print(pieces)
print("in one of the pieces:", any(".\n\n" in piece for piece in pieces))

# %% [markdown]
# The stop string `".\n\n"` lies across several pieces. The cure is to hold text back: what
# could be the *beginning* of a stop string must wait for the next piece. But no more than
# that, or the reader waits for nothing.

# %% [markdown]
# ### Exercise 05.6 · `stop_at`
#
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 15 lines
#
# Pass pieces on until a stop string is complete; what stands before it is the last thing
# handed out. Hold back what may be the beginning of a stop string, and nothing else. After
# a stop, do not ask for another piece: the model need not generate it.
#
# By hand, with the stop string `"END"`: the pieces `"a"`, `"bE"`, `"N"`, `"x"` come out as
# `"a"`, `"b"`, `"ENx"`; the pieces `"a"`, `"bE"`, `"ND"`, `"x"` come out as `"a"`, `"b"`.
# If the pieces end while something is held back, hand it out.
#
# With several stop strings, the one that is complete first counts; of two that end at the
# same character, the longer one.
#
# <details><summary>Hint 1</summary>Keep one string, <code>held</code>. Add the piece to it.
# Is there a stop string in it? If not, how long is its longest end that is a beginning of a
# stop string?</details>
# <details><summary>Hint 2</summary>Adding one character at a time makes "complete first"
# easy: after each, ask <code>held.endswith(stop)</code>.</details>
# <details><summary>Hint 3</summary>To find how much to hold, try all lengths below that of
# the longest stop string: does <code>stop.startswith(held[-n:])</code> hold for
# any?</details>


# %% tags=["exercise"]
def stop_at(pieces: Iterable[str], stop_strings: list[str]) -> Iterator[str]:
    """Pass on pieces of text up to the first stop string, which is left out.

    Yields non-empty strings and holds back no more than could begin a stop string.
    Raises ValueError for an empty stop string (when the first piece is asked for).
    """
    ### BEGIN SOLUTION
    if "" in stop_strings:
        raise ValueError("a stop string must not be empty: every text begins with it")
    held = ""
    for piece in pieces:
        for character in piece:
            held += character
            complete = [stop for stop in stop_strings if held.endswith(stop)]
            if complete:
                text = held[: -len(max(complete, key=len))]
                if text:
                    yield text
                return
        safe = len(held)
        for start in range(len(held)):
            if any(stop.startswith(held[start:]) for stop in stop_strings):
                safe = start
                break
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held
    ### END SOLUTION


# %% tags=["check"]
check(stop_at)

# %% [markdown]
# Put your parts in a row: tokens to pieces, pieces to a text that stops.

# %% tags=["nbval-check-output"]
print(list(stop_at(stream_tokens(tokenizer, tokenizer(poem).input_ids), [".\n\n"])))

# %% [markdown]
# ## 6. The bug hunt
#
# This decoder, or one like it, is in many tutorials. It is short, it runs, and on a good
# day it gives the right answer.

# %%
from transformers import GenerationMixin


class CustomDecoder(GenerationMixin):
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def generate(self, input_ids, max_length=100, do_sample=True, top_k=50, **kwargs):
        ids = input_ids.clone()
        for _ in range(max_length - input_ids.size(1)):
            with torch.no_grad():
                logits = self.model(ids).logits[:, -1, :]
            if top_k is not None:
                smallest = torch.topk(logits, top_k).values[:, -1].unsqueeze(-1)
                logits = torch.where(logits < smallest, -float("inf"), logits)
            if do_sample:
                token = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            else:
                token = torch.argmax(logits, dim=-1, keepdim=True)
            ids = torch.cat([ids, token], dim=-1)
            if token.item() == self.tokenizer.eos_token_id:
                break
        return ids


# %% [markdown]
# The good day: one prompt, float32, its own defaults.

# %% tags=["nbval-check-output"]
ids = prompt["input_ids"]
decoder = CustomDecoder(model, tokenizer)
limit = ids.shape[1] + 12
for do_sample in (False, True):
    torch.manual_seed(0)
    mine = decoder.generate(ids, max_length=limit, do_sample=do_sample)
    torch.manual_seed(0)
    theirs = model.generate(**prompt, max_length=limit, do_sample=do_sample)
    print(f"do_sample={do_sample}:", torch.equal(mine, theirs))

# %% [markdown]
# **Predict.** Read the class again. What will go wrong with a batch? With
# `max_new_tokens=5`? With `temperature=0.1`? With a model whose vocabulary has 40 tokens?
# Write your list down. Then let the tests look: they compare it with `model.generate` on
# tiny random models. (The checks of the last exercise, below, expect the arguments of
# `model.generate`; here we only want their report.)

# %% tags=["nbval-check-output"]
from course.checking import NotPassed

try:
    check(CustomDecoder)
except NotPassed as report:
    print(report)

# %% [markdown]
# And one thing that no comparison shows. The class inherits from `GenerationMixin`, which
# looks like the proper way to make a decoder. But that class is made to be mixed into a
# *model*. What a user gets from it here:

# %% tags=["nbval-check-output"]
try:
    decoder.compute_transition_scores(ids, (torch.zeros(1, 10),))
except Exception as error:
    print(type(error).__name__, error)

# %% [markdown]
# ### Exercise 05.7 · `CustomDecoder`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 25 lines
#
# Repair it. The result must equal `model.generate`, id for id, for the arguments that it
# has: greedy and sampled, one prompt or a left-padded batch, EOS ids as the model has
# them, `top_k` of 0, 1, 50 and above the vocabulary. The defaults are those of `generate`.
# Take the parts that you have written.
#
# - `attention_mask=None` means that all tokens are real.
# - The pad id is `model.generation_config.pad_token_id`, or the first EOS id.
# - `max_new_tokens` below 1, ids that are not (batch, seq), and when sampling a
#   `temperature` of 0 or less or a negative `top_k` are a `ValueError` at once.
# - An argument that it does not know is an error, not ignored.
#
# By hand: a model that says 6 and then its EOS 2, `generate([[3, 5]], max_new_tokens=9)`
# gives `[[3, 5, 6, 2]]`.
#
# <details><summary>Hint 1</summary>Make a <code>pick</code> function out of
# <code>do_sample</code>, <code>temperature</code> and <code>top_k</code>; the rest is
# <code>decode_batch</code>.</details>
# <details><summary>Hint 2</summary>Greedy needs no temperature and no top-k: neither
# changes the largest logit, and a filter that is not run cannot crash.</details>
# <details><summary>Hint 3</summary>Without <code>**kwargs</code> in the signature Python
# itself refuses what it does not know. Check the values before the first step, so that
# nothing is computed for a call that must fail.</details>


# %% tags=["exercise"]
class CustomDecoder:
    """A decoder for causal language models, equal to `model.generate`."""

    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
    ) -> torch.Tensor:
        """input_ids, attention_mask: (batch, seq) int64, padded on the left.

        Returns (batch, seq + new) int64. Uses torch's global random generator.
        Raises ValueError for arguments that make no sense.
        """
        ### BEGIN SOLUTION
        # 1. Refuse what makes no sense
        if input_ids.dim() != 2:
            raise ValueError(
                f"input_ids should be (batch, seq), not {tuple(input_ids.shape)}"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        if do_sample and temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if do_sample and top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {top_k}")
        # 2. What the model says about ends and padding
        eos_ids = eos_token_ids(self.model)
        pad_id = self.model.generation_config.pad_token_id
        if pad_id is None:
            pad_id = eos_ids[0] if eos_ids else 0
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)

        # 3. How to pick, and the loop
        def pick(logits):
            if not do_sample:
                return logits.argmax(dim=-1, keepdim=True)
            filtered = top_k_filter(logits / temperature, top_k)
            return torch.multinomial(filtered.softmax(-1), num_samples=1)

        return decode_batch(
            self.model,
            input_ids,
            attention_mask,
            max_new_tokens,
            pick,
            eos_ids,
            pad_id,
        )
        ### END SOLUTION


# %% tags=["check"]
check(CustomDecoder)

# %% [markdown]
# ## 7. Four ways to ask, one answer
#
# The course so far, in one cell. The same question with the same seed: through the API,
# streamed and not; through `generate`; through your own decoder, with your own streaming.

# %%
from openai import OpenAI

from tiny_models import serve

messages = [{"role": "user", "content": "Name three things to see in Paris."}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt"
).to(model.device)
start = prompt["input_ids"].shape[1]
decoder = CustomDecoder(model, tokenizer)


def ask_api(client, server, stream, temperature, seed):
    answer = client.chat.completions.create(
        model=server.model,
        messages=messages,
        max_tokens=16,
        temperature=temperature,
        seed=seed,
        stream=stream,
        extra_body={"top_k": 50},
    )
    if not stream:
        return answer.choices[0].message.content
    deltas = [chunk.choices[0].delta.content for chunk in answer if chunk.choices]
    return "".join(delta or "" for delta in deltas)


# %% tags=["nbval-check-output"]
with serve(model, tokenizer) as server:
    client = OpenAI(base_url=server.base_url, api_key="none")
    for temperature, seed in ((0, 0), (0.9, 0), (0.9, 1), (0.9, 2)):
        options = {"max_new_tokens": 16, "do_sample": temperature > 0, "top_k": 50}
        if temperature:
            options["temperature"] = temperature
        texts = [ask_api(client, server, s, temperature, seed) for s in (False, True)]
        for run in (model.generate, decoder.generate):
            torch.manual_seed(seed)
            new = run(**prompt, **options)[0, start:]
            texts.append("".join(stream_tokens(tokenizer, new)))
        kind = f"sampled, seed {seed}" if temperature else "greedy"
        print(f"{kind}: all four equal: {len(set(texts)) == 1}  {texts[0]!r}")

# %% [markdown]
# From here on there is no magic left in those API parameters: each is a few lines that you
# have written. What is missing is speed (lesson 07) and better ways to choose (lesson 06).
#
# ## Questions
#
# 1. In a batch of two, row 0 ends after 3 tokens, row 1 after 300. How many times is the
#    model called, and how many row-steps are wasted?
# 2. SmolLM2 uses the same token for EOS and for padding. Why can nobody find out the
#    attention mask from the ids alone then?
# 3. A stop string is `"\n"`, and the token that was just generated decodes to `".\n\n"`.
#    Which text does the user get? Which tokens were generated?
#
# <details><summary>Answers</summary>
#
# 1. 300 times; row 0 is computed 297 times for nothing.
# 2. The EOS tokens that close the messages of a chat look like padding. Only who did the
#    padding knows.
# 3. The text up to and with the full stop. The whole token was generated, and is paid for:
#    `usage` counts tokens, not characters.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | llama.cpp |
# |---|---|---|---|---|
# | most new tokens | `max_completion_tokens` (older: `max_tokens`) | `max_new_tokens` | `max_tokens` | `n_predict` |
# | fewest | none | `min_new_tokens` | `min_tokens` | none |
# | stop strings | `stop`, up to 4 | `stop_strings` and `tokenizer` | `stop` | `stop` |
# | the stop string is | left out | kept | left out | left out |
# | more EOS ids | none | `eos_token_id=[...]` | `stop_token_ids` | none |
#
# ## To read
#
# - The Hugging Face documentation of
#   [generation](https://huggingface.co/docs/transformers/llm_tutorial), with a list of its
#   own common mistakes.
# - Yu et al.: *Orca: A Distributed Serving System for Transformer-Based Generative Models*,
#   OSDI 2022. What to do about the orange squares.
