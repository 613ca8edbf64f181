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
# show. About 120 minutes; the end of section 3 is a good place for a break. Builds on
# lessons 03 and 04.

# %% tags=["setup"]
from collections.abc import Callable, Iterable, Iterator

import torch

from course import carry

top_k_filter = carry("top_k_filter")
pick_greedy = carry("pick_greedy")
pick_sample = carry("pick_sample")

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

from course import check
from course.kit import figures
from tiny_models import load

model, tokenizer = load()
decode = carry("decode")

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
# "end of sequence", EOS for short. A loop that does not listen goes on and begins turns of
# the conversation that nobody has taken.
#
# Which token is it? `model.generation_config.eos_token_id` knows. It may be one id, a list
# of ids (Llama 3 has several: end of turn, end of text) or `None`.

# %% [markdown]
# ### Exercise 05.1 · `eos_token_ids`
#
# difficulty ★☆☆ · importance ★★☆ · 5 min · our answer: 4 lines
#
# The EOS ids of a model, always as a list, in the model's order.
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
at_eos = torch.isin(ids, torch.tensor(eos_ids, device=ids.device))
print("EOS in the prompt:", int(at_eos.sum()), "times")
print(tokenizer.decode(ids[0]))

# %% [markdown]
# It would stop after one. This chat template closes each message with the EOS token, so the
# prompt holds some already. Only the *new* tokens count.

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
# Set the logits of all EOS ids to `-inf` while fewer than `min_new_tokens` tokens have been
# generated. Return a new tensor in any case.
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
# **Predict:** the answer above has seven tokens and EOS. What comes after it, if EOS is
# forbidden for 30?

# %% tags=["nbval-check-output"]
calls = iter(range(30))


def pick_not_yet(logits):
    return pick_greedy(suppress_eos(logits, eos_ids, next(calls), 30))


out = decode(model, ids, 30, pick_not_yet)
theirs = model.generate(**prompt, max_new_tokens=30, min_new_tokens=30, do_sample=False)
print("same tokens as generate:", torch.equal(out, theirs))
print(tokenizer.decode(out[0, ids.shape[1] :]))

# %% [markdown]
# The first sentence is the same, word for word: in greedy decoding nothing changes until EOS
# would have won. From there on a finished answer has to go on.
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
# The same prompt, a different text. The model reads the padding as if it were text. Two
# things have to be told:
#
# - the `attention_mask`, 1 for text and 0 for padding, so that no token attends to padding;
# - the `position_ids`, so that the first real token is at position 0, wherever it stands.
#
# The second is easily forgotten, since many models do not mind. **Predict:** two tiny models
# with random weights get a padded prompt with its mask, once with positions that count the
# padding, once with the right ones. Whose logits differ?

# %% tags=["nbval-check-output"]
from tiny_models import random_gpt2, random_llama

padded_ids = torch.tensor([[0, 0, 0, 5, 17, 40]])
mask = torch.tensor([[0, 0, 0, 1, 1, 1]])
for tiny in (random_llama(), random_gpt2()):
    naive = tiny(padded_ids, attention_mask=mask, position_ids=torch.arange(6)[None])
    right = torch.tensor([[0, 0, 0, 0, 1, 2]])
    good = tiny(padded_ids, attention_mask=mask, position_ids=right)
    difference = (naive.logits - good.logits)[:, -1].abs().max().item()
    print(f"{type(tiny).__name__}: logits differ by {difference:.3f}")

# %% [markdown]
# A Llama has rotary embeddings, for which only the *distance* between tokens matters (our
# chat model is one). GPT-2 has an embedding for each position. Give the positions always, and
# your decoder works for both.

# %% [markdown]
# ### Exercise 05.4 · `decode_batch`
#
# difficulty ★★★ · importance ★★★ · 25 min · our answer: 15 lines
#
# Lesson 03's loop for a left-padded batch. At each step: call the model with the mask and
# the positions; pick from the float32 logits; give `pad_id` to rows that have finished
# before; append the tokens, and a column of ones to the mask. Stop when all rows have finished, or after
# `max_new_tokens`.
#
# By hand: mask `[[0, 0, 1, 1]]` has positions `[[0, 0, 0, 1]]` (those of the padding do
# not matter). If row 0 picks `5, 2, 6` and row 1 picks `3, 4, 2`, with `eos_ids=[2]` and
# `pad_id=0`, the new columns are `[[5, 2, 0], [3, 4, 2]]`, and there is no fourth step.
#
# Rows that have finished stay in the batch: the model still computes them, and `pick`
# still draws for them. Wasteful, but `generate` does the same, and the rows share one stream
# of random numbers (lesson 03), so only then does the same seed give the same tokens.
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
# The padded prompt from above, mended, and the proof on a batch of three questions. (The
# last answer is cut off after 12 tokens.)

# %% tags=["nbval-check-output"]
out = decode_batch(
    model, batch["input_ids"], batch["attention_mask"], 8, pick_greedy, eos_ids, 0
)
print("padded:", repr(tokenizer.decode(out[0, -8:])))

questions = [
    "What is the capital of France?",
    "What is 2 + 2?",
    "Who wrote the play Romeo and Juliet?",
]
chats = [[{"role": "user", "content": q}] for q in questions]
batch = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, return_tensors="pt"
).to(model.device)
pad = tokenizer.pad_token_id
width = batch["input_ids"].shape[1]
new = 12
mine = decode_batch(
    model, batch["input_ids"], batch["attention_mask"], new, pick_greedy, eos_ids, pad
)
theirs = model.generate(**batch, max_new_tokens=new, do_sample=False, pad_token_id=pad)
print("same tokens as generate:", torch.equal(mine, theirs))
for row in mine[:, width:]:
    print(repr(tokenizer.decode(row)))

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
# (Each prompt includes the system message.) White is padding on the left, orange is work for rows that had finished: the batch is as
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
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 15 lines
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
# <details><summary>Hint 2</summary>Where the decoded text ends in <code>"\ufffd"</code>, keep
# that sign back: the next token may complete the character. Those before it are
# final.</details>
# <details><summary>Hint 3</summary>After the last token hand out the rest. Empty pieces
# help nobody.</details>


# %% tags=["exercise"]
def stream_tokens(tokenizer, token_ids: Iterable[int]) -> Iterator[str]:
    """Decode tokens one by one into pieces of text, never half a character.

    tokenizer: byte level, as this model's.
    token_ids: new tokens as they are generated. Special tokens give no text.
    Yields non-empty strings; joined, they are
    `tokenizer.decode(list(token_ids), skip_special_tokens=True)`.
    """
    ### BEGIN SOLUTION
    ids, sent, special = [], 0, set(tokenizer.all_special_ids)
    for token in map(int, token_ids):
        if token in special:
            continue
        ids.append(token)
        # SentencePiece's byte tokens, <0xC3>: a run of them is certain at its end only
        if str(tokenizer.convert_ids_to_tokens(token)).startswith("<0x"):
            continue
        text = tokenizer.decode(ids, skip_special_tokens=True)
        ready = len(text) - text.endswith("\ufffd")
        if ready > sent:
            yield text[sent:ready]
            sent = ready
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
# only a window, for instance from the last piece on; the pieces are the same.
#
# Other vocabularies (SentencePiece's, as in Llama 2) have a token for each byte, `<0xC3>`, for
# characters that they do not know. They decode a *run* of those as a whole: one byte in it
# that is no text makes `�` of all of them. Our answer holds such a run back until it ends.
#
# ## 5. Stop strings
#
# EOS is the model's way to stop. A *stop string* is the user's: stop at the first blank
# line, or where the next question begins. The text is searched, not the tokens.
# **Predict:** the stop string is `".\n\n"`. The stream below contains it. Does a test of
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
# difficulty ★★★ · importance ★★☆ · 20 min · our answer: 20 lines
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
    Raises ValueError for an empty stop string, at the latest when the first piece is
    asked for.
    """
    ### BEGIN SOLUTION
    if isinstance(stop_strings, str):
        raise TypeError(f"stop_strings should be a list, as [{stop_strings!r}]")
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
# `generate` has stop strings, too. **Predict** from the outputs so far: does its text end
# before the stop string, or after it?

# %% tags=["nbval-check-output"]
out = model.generate(
    **prompt,
    max_new_tokens=20,
    do_sample=False,
    stop_strings=["is Pa"],
    tokenizer=tokenizer,
)
new = out[0, ids.shape[1] :]
print("generate:", repr(tokenizer.decode(new)))
print("yours:   ", repr("".join(stop_at(stream_tokens(tokenizer, new), ["is Pa"]))))

# %% [markdown]
# `generate` stops with the *token* that completes the stop string, and keeps it: you get the
# stop string and whatever else was in its last token. The API, like you, hands out the text
# before it.

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
# `max_new_tokens=5`? With `temperature=0.01`? With a model whose vocabulary has 40 tokens,
# or that has two EOS ids? Write your list down, then run the experiments. They use tiny
# random models, so the tokens mean nothing.

# %% tags=["nbval-check-output"]
tiny = random_llama(vocab_size=97, eos_token_id=None)
one, two = torch.tensor([[5, 17, 40]]), torch.tensor([[5, 17, 40], [60, 61, 62]])
ends = random_llama(vocab_size=97, eos_token_id=list(range(50)))
experiments = {
    "a batch of two": (tiny, two, {}),
    "max_new_tokens=5": (tiny, one, {"max_new_tokens": 5}),
    "temperature=0.01": (tiny, one, {"temperature": 0.01}),
    "temprature=0.01, misspelled": (tiny, one, {"temprature": 0.01}),
    "top_k=0, which is off": (tiny, one, {"top_k": 0}),
    "a vocabulary of 40": (random_llama(vocab_size=40), one % 40, {}),
    "EOS ids 0 to 49": (ends, one, {}),
    "a prompt of 120 tokens": (tiny, one.repeat(1, 40), {}),
}
for name, (tiny_model, tiny_ids, options) in experiments.items():
    torch.manual_seed(0)
    try:
        out = CustomDecoder(tiny_model, tokenizer).generate(tiny_ids, **options)
        told = f"{out.shape[1] - tiny_ids.shape[1]} new: {out[0, -5:].tolist()}"
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:50]}"
    print(f"{name:28} {told}")

# %% [markdown]
# Eight experiments, and the five that raise nothing are the worst:
#
# - three crash: `.item()` wants a single row, and `topk` takes neither 0 nor more than there
#   is;
# - `**kwargs` swallows what it does not know: the limit, the temperature, and your spelling
#   mistakes. All three give the same 83 tokens;
# - it asks the tokenizer for *one* EOS id. Here the model has fifty of its own, and `generate`
#   would stop much sooner;
# - `max_length` counts the prompt: a long one leaves room for nothing, and no error says so.
#
# It also knows no attention mask and no positions; section 3 showed what that does to a
# padded batch.
#
# And one thing that no comparison shows. The class inherits from `GenerationMixin`, which
# looks like the proper way to make a decoder. But that class is made to be mixed into a
# *model*. It hands down dozens of methods that need `self.config`; here is one of them:

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
# Repair it. The result must equal `model.generate`, id for id, greedy and sampled, for one
# prompt or a left-padded batch. Take the parts that you have written.
#
# | what | rule |
# |---|---|
# | defaults | those of `generate`: greedy, 20 new tokens, `top_k` 50 when sampling |
# | `attention_mask=None` | all tokens are real, whatever their ids |
# | EOS ids | those of the model |
# | pad id | `model.generation_config.pad_token_id`, else the first EOS id; without either any id will do, since no row finishes |
# | `max_new_tokens` below 1; ids that are not (batch, seq) | `ValueError`, before the model is called |
# | when sampling: `temperature` not above 0 (NaN is not), `top_k` negative | the same |
# | greedy | `temperature` and `top_k` do not matter |
# | an argument that it does not know | an error |
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
        if do_sample and not temperature > 0:  # NaN is not above 0 either
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
        max_tokens=10,
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
    for temperature, seed in ((0, 0), (0.9, 1)):
        options = {"max_new_tokens": 10, "do_sample": temperature > 0, "top_k": 50}
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
# There is no magic left in the parameters that this cell used: each is a few lines that you
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
# In vLLM `min_tokens` holds back stop strings, too: one that is complete before so many tokens
# does not end the text. `min_new_tokens` forbids EOS and nothing else, as your `suppress_eos`.
#
# ## To read
#
# - The Hugging Face documentation of
#   [generation](https://huggingface.co/docs/transformers/llm_tutorial), with a list of its
#   own common mistakes.
# - Yu et al.: *Orca: A Distributed Serving System for Transformer-Based Generative Models*,
#   OSDI 2022. What to do about the orange squares.
