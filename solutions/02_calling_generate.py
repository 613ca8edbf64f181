# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Calling generate
#
# **After this lesson you can do with `model.generate` whatever the API did, see the logits,
# scores and attention weights that an API hides, and prove that both give the same text.**
#
# You write: `build_prompt`, `new_text`, `reply`, `reply_batch`, `token_logprobs` and
# `attention_map`. About 75 minutes. Builds on lesson 01 as far as knowing what a chat
# message is.

# %% tags=["setup"]
import torch
from transformers import BatchEncoding

# %%
import os
import tempfile
import warnings

import matplotlib.pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from course import check
from course.kit import figures
from tiny_models import load, random_llama

logging.set_verbosity_error()
logging.disable_progress_bar()

# %% [markdown]
# ## 1. A model and a tokenizer
#
# An open model is a folder with two things in it: the weights, and the tokenizer that cuts
# text into the tokens the weights were trained on. Two classes of `transformers` load them.
# **Predict:** the same weights in half the precision need how much of the memory?

# %% tags=["nbval-check-output"]
from tiny_models.weights import default_model

source = os.environ.get("COURSE_MODEL") or default_model()
tokenizer = AutoTokenizer.from_pretrained(source)
for dtype in (torch.float32, torch.bfloat16):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map="auto")
    size = model.get_memory_footprint() / 1e6
    print(f"{dtype}: {size:.0f} MB, {model.num_parameters() / 1e6:.0f} M parameters")

# %% [markdown]
# Half. `dtype` is the number format, and `device_map="auto"` puts the weights on a GPU if
# there is one, else on the CPU. **Predict:** which format without a `dtype`? Here are tiny
# random weights, saved in bfloat16:

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    random_llama().to(torch.bfloat16).save_pretrained(folder)
    print(AutoModelForCausalLM.from_pretrained(folder).dtype)

# %% [markdown]
# The format of the file. Before transformers 5 it was float32, and old tutorials count on
# that. Say which one you mean.
#
# The course's own `load()` does the same with settings that suit proofs: float32, since
# bfloat16 has so few digits that many logits tie (lesson 04 counts them), and padding on
# the left, which section 4 explains.

# %%
model, tokenizer = load()

# %% [markdown]
# ## 2. A chat is one long string
#
# The API took a list of messages. A model takes token ids, nothing else. In between stands
# the *chat template*, which came with the tokenizer. Here is what it makes of a question:

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "What is the capital of France?"}]
print(tokenizer.apply_chat_template(messages, tokenize=False))

# %% [markdown]
# Roles are markers in the text. (This template also adds a system message if you give
# none.) **Predict:** the model continues *this* string. What does it write first?

# %% tags=["nbval-check-output"]
prompt = tokenizer.apply_chat_template(messages, return_tensors="pt").to(model.device)
out = model.generate(**prompt, max_new_tokens=14, do_sample=False)
print(repr(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])))

# %% [markdown]
# The head of its own message, before it answers: the string ends where a new message may
# begin, and nobody has said whose turn it is. `add_generation_prompt=True` says it.

# %% [markdown]
# ### Exercise 02.1 · `build_prompt`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 6 lines
#
# Messages to the input of `generate`: token ids and attention mask, as tensors with a batch
# dimension, ready for the model's own turn.
#
# By hand: with a template that writes `<role>content</s>` for a message and `<assistant>`
# as the generation prompt, `[{"role": "user", "content": "hi"}]` becomes the ids of
# `<user>hi</s><assistant>`, shape `(1, seq)`, and a mask of as many ones.
#
# Let the template call the tokenizer, too. A tokenizer that puts a special token before
# every text would put it before the finished string once more.
#
# <details><summary>Hint 1</summary><code>tokenizer.apply_chat_template</code> does it all;
# three of its arguments matter.</details>
# <details><summary>Hint 2</summary><code>return_tensors="pt"</code> for tensors,
# <code>return_dict=True</code> for ids and mask together.</details>


# %% tags=["exercise"]
def build_prompt(tokenizer, messages: list[dict]) -> BatchEncoding:
    """The chat template's token ids for `messages`, with the generation prompt.

    messages: dicts with "role" and "content", left unchanged.
    Returns a BatchEncoding with input_ids and attention_mask, (1, seq) int64.
    """
    ### BEGIN SOLUTION
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ### END SOLUTION


# %% tags=["check"]
check(build_prompt)

# %% [markdown]
# Try it. **Predict:** `generate` stops at the model's EOS token, the end of the answer.
# How many of those are in the prompt?

# %% tags=["nbval-check-output"]
prompt = build_prompt(tokenizer, messages).to(model.device)
eos = tokenizer.eos_token_id
print("EOS in the prompt:", int((prompt["input_ids"] == eos).sum()))
out = model.generate(**prompt, max_new_tokens=14, do_sample=False)
print(tokenizer.decode(out[0]))

# %% [markdown]
# Two: this template ends every message with EOS, written `<|im_end|>`. They did not stop
# `generate`, which looks for it among the new tokens only.
#
# Note the `**prompt`. Many tutorials pass the prompt as it is:

# %% tags=["nbval-check-output"]
try:
    model.generate(prompt, max_new_tokens=14, do_sample=False)
except AttributeError as error:
    print("AttributeError:", repr(str(error)))

# %% [markdown]
# An error without a message. Since transformers 5 `apply_chat_template` returns a
# `BatchEncoding`, a dictionary of ids and mask; before, it returned the ids alone.
#
# Back to the output above. The answer is there, but so is the whole prompt: `generate`
# returns both. And there are the special tokens, which no user should see.

# %% [markdown]
# ### Exercise 02.2 · `new_text`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 2 lines
#
# The text that was generated, without the prompt and without special tokens.
#
# By hand: `input_ids` are the tokens of `"ab"`, `output_ids` those of `"abcd"` and an EOS.
# The new text is `"cd"`.
#
# <details><summary>Hint 1</summary>Cut the ids, not the text: a decoded prompt need not
# have the length of the string that you put in.</details>
# <details><summary>Hint 2</summary><code>output_ids[0, n:]</code>, where n is the number
# of tokens of the prompt; <code>skip_special_tokens=True</code>.</details>


# %% tags=["exercise"]
def new_text(tokenizer, input_ids: torch.Tensor, output_ids: torch.Tensor) -> str:
    """The text that `generate` added.

    input_ids: (1, seq), the prompt. output_ids: (1, seq + new), what generate returned.
    """
    ### BEGIN SOLUTION
    new = output_ids[0, input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)
    ### END SOLUTION


# %% tags=["check"]
check(new_text)

# %% [markdown]
# ## 3. One answer
#
# `generate` has over 70 parameters. Begin with the one that goes wrong most often: the
# length. Tutorials write `max_length=20`. **Predict** what you get for it.

# %% tags=["nbval-check-output"]
try:
    model.generate(**prompt, max_length=20, do_sample=False)
except ValueError as error:
    print(error)

# %% [markdown]
# `max_length` counts the prompt. Here the prompt is longer than that, so nothing fits; with
# a limit slightly above, a longer question would leave room for a shorter answer.
# `max_new_tokens` counts what you mean. And with neither:

# %% tags=["nbval-check-output"]
story = [{"role": "user", "content": "Tell me a long story."}]
ids = build_prompt(tokenizer, story)["input_ids"].to(model.device)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    out = model.generate(ids, attention_mask=torch.ones_like(ids))
print(out.shape[1] - ids.shape[1], "new tokens:", new_text(tokenizer, ids, out))

# %% [markdown]
# Twenty new tokens, and a warning, which we have hidden here.

# %% [markdown]
# ### Exercise 02.3 · `reply`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 3 lines
#
# Lesson 01's `ask` for a model of your own: messages in, text out. Everything in
# `generation` goes to `generate` as it is. The model may be on another device (a GPU): its
# prompt must be there, too.
#
# By hand: a model that goes on with the tokens of `"yes"` and then EOS gives `"yes"`.
#
# <details><summary>Hint 1</summary>The three steps are above: prompt, generate, new
# text.</details>
# <details><summary>Hint 2</summary>The prompt has to be on the model's device:
# <code>.to(model.device)</code>. Pass ids <em>and</em> mask: <code>**prompt</code>.
# </details>


# %% tags=["exercise"]
def reply(model, tokenizer, messages: list[dict], **generation) -> str:
    """The model's answer to a conversation.

    generation: keyword arguments for `model.generate`, such as max_new_tokens.
    """
    ### BEGIN SOLUTION
    prompt = build_prompt(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    return new_text(tokenizer, prompt["input_ids"], output)
    ### END SOLUTION


# %% tags=["check"]
check(reply)

# %% tags=["nbval-check-output"]
print("greedy: ", reply(model, tokenizer, story, max_new_tokens=14, do_sample=False))
for seed in range(2):
    torch.manual_seed(seed)
    text = reply(model, tokenizer, story, max_new_tokens=14, do_sample=True)
    print(f"seed {seed}: ", text)

# %% [markdown]
# `do_sample=False` always takes the likeliest token; `do_sample=True` draws. **Predict:**
# draws from how many tokens? The vocabulary has 49,152. `output_scores=True` shows what
# `generate` really drew from: a removed token has the score `-inf`.

# %% tags=["nbval-check-output"]
for options in ({}, {"top_k": None}, {"top_k": 0}):
    result = model.generate(
        **prompt,
        max_new_tokens=1,
        do_sample=True,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )
    finite = [int((x > -torch.inf).sum()) for x in (result.logits[0], result.scores[0])]
    print(f"{options!s:16} logits: {finite[0]} tokens   scores: {finite[1]}")

# %% [markdown]
# Fifty. `logits` are the model's own numbers, one for each token of the vocabulary; `scores`
# are what is left of them after everything that was switched on, and a `top_k` of 50 is on
# unless you switch it off.
# **Predict:** does `None` switch it off in a `GenerationConfig`, too?

# %% tags=["nbval-check-output"]
for top_k in (None, 0):
    config = GenerationConfig(
        max_new_tokens=1,
        do_sample=True,
        top_k=top_k,
        return_dict_in_generate=True,
        output_scores=True,
    )
    result = model.generate(**prompt, generation_config=config)
    print(f"top_k={top_k}:", int((result.scores[0] > -torch.inf).sum()), "tokens")

# %% [markdown]
# It does not. Who compares "plain sampling" with something else must write `top_k=0`, which
# means off everywhere. Lesson 04 is about this cut.
#
# ## 4. Many answers at once
#
# A batch has to be a rectangle: shorter prompts are filled up with a *padding token*, and the
# *attention mask* has a 1 for each token to be read and a 0 for padding. **Predict:** on which
# side should the padding stand? Here are both, the default of `transformers` first.

# %% tags=["nbval-check-output"]
chats = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Name a colour."}],
]
for side in ("right", "left"):
    batch = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": side},
    ).to(model.device)
    out = model.generate(**batch, max_new_tokens=12, do_sample=False)
    print(side, tokenizer.decode(out[:, batch["input_ids"].shape[1] :]))

# %% [markdown]
# On the right, the second question gets no answer: `generate` continues the last column,
# and padding stands there. On the left, every prompt ends in the last column. (This model
# pads with its EOS: the `<|im_end|>`s behind the shorter answer are filling.)

# %% [markdown]
# ### Exercise 02.4 · `reply_batch`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 11 lines
#
# As `reply`, for several conversations in one call of `generate`. It must work with a
# tokenizer that pads on the right by default, and leave that tokenizer as it was, also if
# something fails or is interrupted (Ctrl-C).
#
# By hand: two conversations whose prompts have 10 and 13 tokens make a batch of shape
# `(2, 13)`. The first row of the mask begins with three zeros.
#
# <details><summary>Hint 1</summary><code>apply_chat_template</code> takes a list of
# conversations, and <code>padding=True</code>. The cell above has the rest.</details>
# <details><summary>Hint 2</summary>With padding on the left all prompts end in the same
# column, so the new tokens begin in the same column, too.</details>
# <details><summary>Hint 3</summary><code>tokenizer.decode</code> of a 2-dimensional tensor
# gives a list of strings.</details>


# %% tags=["exercise"]
def reply_batch(
    model, tokenizer, conversations: list[list[dict]], **generation
) -> list[str]:
    """The model's answers to several conversations, from one call of `generate`.

    conversations: a list of lists of messages. generation: as for `reply`.
    Returns one text for each conversation, in order.
    """
    ### BEGIN SOLUTION
    prompts = tokenizer.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    ).to(model.device)
    output = model.generate(**prompts, **generation)
    new = output[:, prompts["input_ids"].shape[1] :]  # (batch, new)
    return tokenizer.decode(new, skip_special_tokens=True)
    ### END SOLUTION


# %% tags=["check"]
check(reply_batch)

# %% tags=["nbval-check-output"]
options = {"max_new_tokens": 12, "do_sample": False}
together = reply_batch(model, tokenizer, chats, **options)
alone = [reply(model, tokenizer, chat, **options) for chat in chats]
print(together)
print("same answers as one by one:", together == alone)

# %% [markdown]
# ## 5. How sure was it?
#
# The logits say more than which token won. The log-probability of each token of a text,
# given what stands before it, tells where the model was surprised. Nothing has to be
# generated for that: one call gives the predictions at *all* positions.

# %% [markdown]
# ### Exercise 02.5 · `token_logprobs`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 4 lines
#
# For each token but the first: its log-probability, given the tokens before it, in float32
# whatever the model computes in.
#
# By hand: `ids = [[0, 1]]` and a model whose logits at the first position are
# `[ln 1, ln 3]`. Token 1 had the probability 3/4, so the answer is `[[ln 0.75]]`, about
# `-0.288`, of shape `(1, 1)`. The logits at the last position are not needed.
#
# <details><summary>Hint 1</summary>The logits at position t predict the token at position
# t + 1. Which positions of the logits, which of the ids?</details>
# <details><summary>Hint 2</summary><code>log_softmax(-1)</code> over the vocabulary, then
# <code>gather</code> the entry of the token that really came:
# <code>.gather(-1, ids[:, 1:, None])</code>.</details>


# %% tags=["exercise"]
def token_logprobs(model, ids: torch.Tensor) -> torch.Tensor:
    """The log-probability (natural log) of each token, given those before it.

    ids: (batch, seq) int64, without padding. Returns (batch, seq - 1) float32, without
    gradients; entry t belongs to the token ids[:, t + 1].
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()  # (batch, seq - 1, vocab)
    logprobs = logits.log_softmax(dim=-1)
    return logprobs.gather(-1, ids[:, 1:, None])[..., 0]  # (batch, seq - 1)
    ### END SOLUTION


# %% tags=["check"]
check(token_logprobs)

# %% [markdown]
# The *surprisal* of a token is minus its log-probability. **Predict:** in the text below,
# which token surprises most in the first sentence, and which in the second?

# %%
sentence = "The quick brown fox jumps over the lazy dog."
text = f"{sentence} {sentence.replace('dog', 'cat')}"
ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
surprisal = [0.0, *(-token_logprobs(model, ids)[0]).tolist()]
tokens = [figures.token_label(tokenizer, i) for i in ids[0]]
labels = [f"{t}\n{s:.1f}" for t, s in zip(tokens, surprisal, strict=True)]
fig, ax = plt.subplots(figsize=(8, 1.8))
figures.token_strip(ax, labels, surprisal, per_row=10, label="surprisal (nats)")
plt.show()

# %% [markdown]
# "quick" could have been anything. The second time nearly every word is cheaper, the saying
# being there to look up, and one word costs far more: the one that changed. (The first token
# has no prediction; its box shows 0. ␣ is a space.)
#
# ## 6. Where did it look?
#
# Each layer mixes information between positions, weighted by *attention*. The weights can
# be had, with a catch. **Predict** what this prints:

# %% tags=["nbval-check-output"]
with torch.no_grad():
    out = model(ids, output_attentions=True)
print("layers:", model.config.num_hidden_layers, "  attentions:", out.attentions)

# %% [markdown]
# Nothing. The default, `sdpa`, is one fused operation that hands out its result and not the
# weights. `model.set_attn_implementation("eager")` switches to the plain formula, step by
# step, which has them.

# %% [markdown]
# ### Exercise 02.6 · `attention_map`
#
# difficulty ★★☆ · importance ★★☆ · 15 min · our answer: 8 lines
#
# The attention weights of one layer for the first row of `ids`: how much each position
# (rows) looks at each position (columns), for each head. Afterwards the model must be as it
# was, even if something failed or was interrupted (Ctrl-C).
#
# By hand: for one token there is only one place to look: every head gives `[[1.0]]`. For
# two, the first row is `[1.0, 0.0]`, since nobody sees the future.
#
# <details><summary>Hint 1</summary>With <code>output_attentions=True</code>,
# <code>attentions</code> is a tuple with a tensor (batch, heads, seq, seq) for each
# layer.</details>
# <details><summary>Hint 2</summary><code>model.config._attn_implementation</code> is what
# is set now. Put it back in a <code>finally</code>.</details>


# %% tags=["exercise"]
def attention_map(model, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """The attention weights of one layer.

    ids: (batch, seq) int64; the first row is used. layer: 0 is the first.
    Returns (heads, seq, seq) float, without gradients; [h, i, j] is how much position i
    attends to position j. The model's attention implementation is unchanged afterwards.
    """
    ### BEGIN SOLUTION
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model(ids[:1], output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    return output.attentions[layer][0]
    ### END SOLUTION


# %% tags=["check"]
check(attention_map)

# %% [markdown]
# "brown" cost a lot the first time and nothing the second. One way to know it: find the
# same word earlier in the text, and attend to what came after it. Is there a head that does
# this? Rank all heads by how much they look from each word of the second sentence to the word
# that followed the same word in the first.

# %% tags=["nbval-check-output"]
maps = torch.stack(
    [attention_map(model, ids, n) for n in range(model.config.num_hidden_layers)]
)  # (layers, heads, seq, seq)
period = ids.shape[1] // 2
looks = maps.diagonal(offset=1 - period, dim1=-2, dim2=-1)  # (layers, heads, places)
looking_back = looks[..., 1:].mean(-1)  # the first place is in the first sentence
layer, head = divmod(looking_back.argmax().item(), maps.shape[1])
print(f"layer {layer}, head {head}: {looking_back[layer, head]:.2f} of its attention")
print(f"all heads on average: {looking_back.mean():.2f}")

# %%
fig, ax = plt.subplots(figsize=(6.2, 5.2))
image = ax.imshow(maps[layer, head].cpu(), vmin=0, vmax=1)
ax.set_xticks(range(len(tokens)), tokens, rotation=90)
ax.set_yticks(range(len(tokens)), tokens)
ax.set(title=f"layer {layer}, head {head}: rows look at columns")
fig.colorbar(image, label="attention")
plt.show()

# %% [markdown]
# The bright diagonal in the lower left is that head at work: about half of its attention goes
# from a word of the second sentence to the word *after* the same word in the first. Such heads
# are called *induction heads* (Olsson et al., 2022). The bright first column is an *attention
# sink*: much of the attention goes to the first token, whatever it says (Xiao et al., 2024).
#
# ## 7. The API and `generate` agree
#
# The local API server runs the same model. So the same question with the same seed must
# give the same text. One thing has to be said on one side: the API of lesson 01 has no
# top-k, so `generate` must not use its own.

# %% tags=["nbval-check-output"]
from openai import OpenAI

from tiny_models import serve

with serve(model, tokenizer) as server:
    client = OpenAI(base_url=server.base_url, api_key="none")
    for temperature, seed in ((0, 0), (0.8, 0), (0.8, 1), (0.8, 2)):
        answer = client.chat.completions.create(
            model=server.model,
            messages=story,
            max_tokens=14,
            temperature=temperature,
            seed=seed,
        )
        options = {"do_sample": False}
        if temperature:
            options = {"do_sample": True, "temperature": temperature, "top_k": 0}
        torch.manual_seed(seed)
        mine = reply(model, tokenizer, story, max_new_tokens=14, **options)
        print(answer.choices[0].message.content == mine, repr(mine))

# %% [markdown]
# This API is `generate` behind HTTP: `max_tokens` is `max_new_tokens`, `temperature=0` is
# `do_sample=False`, and `seed` is `torch.manual_seed`. Other servers have loops of their own.
# In the next lesson you take `generate` itself apart.
#
# ## Questions
#
# 1. `top_k=None` in a `GenerationConfig` still samples from 50 tokens, as an argument of
#    `generate` from all. Why might that be?
# 2. A text of 100 tokens has a mean surprisal of 3 nats. What is its perplexity?
# 3. You ask for `max_new_tokens=50` and get 12 tokens in one row of a batch, and 50 in
#    another. What do the other 38 places of the first row hold?
#
# <details><summary>Answers</summary>
#
# 1. In a config `None` means "not set", so the default of 50 is filled in later. As an
#    argument it overrides the default.
# 2. `exp(3)`, about 20: as unsure as if it had had to choose between 20 equally likely
#    tokens at each step.
# 3. The pad token: `generate` fills up rows that have finished.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | llama.cpp |
# |---|---|---|---|---|
# | most new tokens | `max_completion_tokens` | `max_new_tokens` | `max_tokens` | `n_predict` |
# | greedy | `temperature: 0` | `do_sample=False` | `temperature=0` | `temperature: 0` |
# | several answers | `n` | `num_return_sequences` | `n` | `n_cmpl` |
# | log-probabilities | `logprobs`, `top_logprobs` | `output_logits`, `output_scores` | `logprobs` | `n_probs` |
# | attention weights | no | `output_attentions` | no | no |
#
# ## To read
#
# - Wolf et al.: *Transformers: State-of-the-Art Natural Language Processing*, EMNLP 2020,
#   [arXiv:1910.03771](https://arxiv.org/abs/1910.03771). The library.
# - Olsson et al.: *In-context Learning and Induction Heads*, 2022,
#   [arXiv:2209.11895](https://arxiv.org/abs/2209.11895). The heads of section 6.
# - Xiao et al.: *Efficient Streaming Language Models with Attention Sinks*, ICLR 2024,
#   [arXiv:2309.17453](https://arxiv.org/abs/2309.17453). Its bright first column.
