# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Calling a model
#
# **After this lesson you can talk to any chat API, streamed or not, with the `openai` client
# or with plain HTTP, and say what comes over the wire.**
#
# You write: `ask`, `stream_text`, `read_sse`, `continue_chat` and `top_alternatives`. About
# 60 minutes. You need Python; PyTorch comes in with lesson 02.
#
# How the lessons work: read, and where it says **Predict**, decide before you run the cell.
# An *exercise* is a cell with `raise NotImplementedError`: replace that line, run the cell,
# then run the check below it. Hints unfold one by one. The same checks run in a terminal, on
# the saved notebook: `python start.py check 01`. Our own answers are in `solutions/`.
#
# What a check says: *not written yet* or *to do*, in red or yellow, is how it should look
# before you start. ✗ names what is wrong. **✓ means that every test of the exercise passed.**
# Stuck? Go on with the next cell that interests you. A later lesson takes your function
# with `carry("ask")` if it passes its checks, and ours if not.

# %% tags=["setup"]
import json
import math
from collections.abc import Iterable, Iterator

from openai import OpenAI

# %% [markdown]
# The API is a real one, on your own machine: `serve` starts a server that speaks the protocol
# of OpenAI's chat API, with a small chat model behind it. (The first time, `load` fetches
# the model. That takes a minute.) To use a commercial provider instead, set
# `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL` before you start Jupyter; the code
# below stays the same, the texts will be better, and the proofs of later lessons need the
# local model.

# %%
import os
import re

import httpx
import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from tiny_models import load, serve

if os.environ.get("OPENAI_BASE_URL"):
    if not os.environ.get("OPENAI_MODEL"):
        raise RuntimeError(
            "OPENAI_BASE_URL is set and OPENAI_MODEL is not: set it to the name of "
            "one of the provider's models, and restart the kernel."
        )
    client, model = OpenAI(), os.environ["OPENAI_MODEL"]
else:
    local_model, tokenizer = load()
    server = serve(local_model, tokenizer)
    client, model = OpenAI(base_url=server.base_url, api_key="none"), server.model

# %% [markdown]
# ## 1. One question
#
# A model reads and writes *tokens*: pieces of text, often a word with the space before it.
# A request is a list of *messages*, each with a *role*: `user` for the human, `assistant` for
# the model, `system` for instructions that stand above both.

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "What is the capital of France?"}]
response = client.chat.completions.create(model=model, messages=messages, temperature=0)
print(type(response).__name__, "with", len(response.choices), "choice")
print(response.choices[0].message)
print("finish reason:", response.choices[0].finish_reason)
usage = response.usage
print(usage.prompt_tokens, "tokens in,", usage.completion_tokens, "tokens out")

# %% [markdown]
# (Why so many tokens in? The server writes the roles into the text, too, and a system
# message of its own: lesson 02 looks at what the model really reads.) The text of the answer
# is some way down in the response. You will want it often.

# %% [markdown]
# ### Exercise 01.1 · `ask`
#
# difficulty ★☆☆ · importance ★★★ · 5 min · our answer: 4 lines
#
# Send the messages and return the text of the first choice. Everything in `options` goes to
# the API as it is, and nothing else does; the messages are left as they are.
#
# By hand: if the API answers `{"choices": [{"message": {"role": "assistant", "content":
# "Hi!"}, ...}], ...}`, then `ask` returns `"Hi!"`.
#
# <details><summary>Hint 1</summary>The call is in the cell above.</details>
# <details><summary>Hint 2</summary><code>**options</code> in a call hands all keyword
# arguments on.</details>


# %% tags=["exercise"]
def ask(client: OpenAI, model: str, messages: list[dict], **options) -> str:
    """The text of the model's answer.

    options: further fields of the request, such as temperature, seed, stop and
    max_completion_tokens.
    """
    ### BEGIN SOLUTION
    response = client.chat.completions.create(model=model, messages=messages, **options)
    return response.choices[0].message.content or ""  # null where there is no text
    ### END SOLUTION


# %% tags=["check"]
check(ask)

# %% [markdown]
# Now to what goes in. First the roles: the same question under different instructions.

# %% tags=["nbval-check-output"]
for system in ("You are a pirate.", "Answer in French.", "Answer with one word."):
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "How are you today?"},
    ]
    options = {"temperature": 0, "max_completion_tokens": 16}
    print(system, "->", ask(client, model, messages, **options))

# %% [markdown]
# The system message pulls the answer its way. It is text like any other, though, not a rule:
# this small model's French is poor, and it forgets the "one word".
#
# Then the options. **Predict:** `max_completion_tokens` of 4, 10 and 20. Does the model plan
# a shorter answer if it is given less room? (The field was called `max_tokens` once. Ours
# takes both names; some providers refuse the old one, some servers know no other.)

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "Explain why the sky is blue."}]
for limit in (4, 10, 20):
    response = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_completion_tokens=limit
    )
    choice = response.choices[0]
    print(limit, choice.finish_reason, repr(choice.message.content))

# %% [markdown]
# No. It writes the same text, and the server stops asking it for tokens. The *finish reason*
# tells: `length` means cut, `stop` means that the model had finished, or that a *stop string*
# came up. Stop strings are yours to choose; the text ends before them.

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "Count from one to five."}]
for stop in (None, ["4"], ["\n"]):
    response = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_completion_tokens=30,
        stop=stop,
    )
    choice = response.choices[0]
    print(stop, choice.finish_reason, repr(choice.message.content))

# %% [markdown]
# `temperature` sets how much is left to chance: at 0 the likeliest token always wins, at 1
# tokens are drawn with the model's own probabilities. **Predict** which of these five answers
# are equal.

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "Name an animal."}]
for temperature, seed in ((0, 0), (0, 1), (1, 0), (1, 0), (1, 1)):
    options = {"temperature": temperature, "seed": seed, "max_completion_tokens": 12}
    print(f"T={temperature} seed={seed}", ask(client, model, messages, **options))

# %% [markdown]
# At temperature 0 the seed does not matter. At 1, the same seed gives the same text. (Ours
# keeps that promise; commercial providers call it "best effort", since their batches and
# machines change. What a seed is, you will see in lesson 03.)
#
# ## 2. As it is written
#
# A long answer takes a while. With `stream=True` the API sends what it has, chunk by chunk.

# %% tags=["nbval-check-output"]
messages = [{"role": "user", "content": "What is the capital of France?"}]
stream = client.chat.completions.create(
    model=model,
    messages=messages,
    temperature=0,
    max_completion_tokens=30,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        text = choice.delta.content if choice.delta else None
        print(repr(text), "| finish reason:", choice.finish_reason)
    if not chunk.choices:
        print("no choices | usage:", chunk.usage.total_tokens, "tokens")

# %% [markdown]
# The first chunk announces the role and has no text; the one with the finish reason has
# `None`; the last one, with the usage, has no choice at all. Code that takes
# `chunk.choices[0].delta.content` for granted raises an IndexError on the last, and cannot
# join the `None`. With `n=2` the chunks of two answers come mixed, told apart by
# `choice.index`.

# %% [markdown]
# ### Exercise 01.2 · `stream_text`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 6 lines
#
# The pieces of text, each as soon as it is there, and nothing else. As in `ask`, the request
# has what is in `options`, and besides that only what it takes to get a stream. Of several
# answers (`n=2`) the first is meant, as there.
#
# By hand: chunks with the contents `""`, `"Pa"`, `None`, `"ris"` and one without choices
# come out as `"Pa"`, `"ris"`.
#
# <details><summary>Hint 1</summary>A function with <code>yield</code> is a generator: it
# hands out a value and waits until the next one is asked for.</details>
# <details><summary>Hint 2</summary>Three things to skip: chunks with empty
# <code>choices</code>, choices whose <code>index</code> is not 0, and contents that are
# <code>None</code> or empty.</details>


# %% tags=["exercise"]
def stream_text(
    client: OpenAI, model: str, messages: list[dict], **options
) -> Iterator[str]:
    """The model's answer in pieces, as they arrive.

    Yields non-empty strings; joined, they are what `ask` returns for the same request.
    """
    ### BEGIN SOLUTION
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, **options
    )
    for chunk in stream:
        for choice in chunk.choices:
            # Some providers send a null for a delta that has nothing in it.
            if choice.index == 0 and choice.delta and choice.delta.content:
                yield choice.delta.content
    ### END SOLUTION


# %% tags=["check"]
check(stream_text)

# %% tags=["nbval-check-output"]
options = {"temperature": 0, "max_completion_tokens": 30}
pieces = list(stream_text(client, model, messages, **options))
print(pieces)
print("same text:", "".join(pieces) == ask(client, model, messages, **options))

# %% [markdown]
# Out there streams are less tidy: some providers send a chunk whose `delta` is null. Our
# answer in `solutions/` is ready for it.

# %% [markdown]
# ## 3. Without the client
#
# The client library is a convenience. Underneath is one HTTP request, which every language
# can send:

# %% tags=["nbval-check-output"]
url = f"{str(client.base_url).rstrip('/')}/chat/completions"
headers = {"Authorization": f"Bearer {client.api_key}"}
body = {"model": model, "messages": messages, **options}
answer = httpx.post(url, json=body, headers=headers, timeout=120)
print(answer.status_code, answer.headers["content-type"])
print(answer.json()["choices"][0]["message"])

# %% [markdown]
# And streamed? **Predict** what the body looks like: one JSON document, or several?

# %% tags=["nbval-check-output"]
body = {**body, "stream": True, "max_completion_tokens": 2}
with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
    print(answer.headers["content-type"])
    for line in answer.iter_lines():
        print(re.sub(r'"id".*"choices"', '... "choices"', line))

# %% [markdown]
# (We have shortened the lines.) The format is older than chat models: *server-sent events*,
# SSE. It is text in lines:
#
# - a line `data: ...` carries a part of an event; a blank line ends the event;
# - an event with several `data` lines stands for their contents, joined by line ends;
# - one space after the colon is not part of the value, and need not be there;
# - a line that begins with a colon is a comment (servers send them to keep a connection
#   open), and other fields, such as `event:` or `id:`, may occur.
#
# Chat APIs put a JSON document in each event and end the stream with the event `[DONE]`, which
# is not JSON.

# %% [markdown]
# ### Exercise 01.3 · `read_sse`
#
# difficulty ★★★ · importance ★★☆ · 15 min · our answer: 12 lines
#
# Turn the lines of a stream into the JSON documents of its events, one at a time, up to
# `[DONE]`. You have `json.loads`. An event that no blank line ends is dropped.
#
# By hand: the lines `: ping`, `data: {"a": 1}`, *(blank)*, `data:{"b": 2}`, *(blank)*,
# `data: [DONE]`, *(blank)* give `{"a": 1}` and `{"b": 2}`.
#
# <details><summary>Hint 1</summary>Collect the data lines in a list. At a blank line the
# event is complete: join, decode, start a new list. (A blank line with no data before it is
# no event.)</details>
# <details><summary>Hint 2</summary><code>line.partition(":")</code> splits a line into field
# name and value; a comment has an empty field name. <code>value.removeprefix(" ")</code>
# takes away one space.</details>


# %% tags=["exercise"]
def read_sse(lines: Iterable[str]) -> Iterator[dict]:
    """The JSON documents of a stream of server-sent events, up to the event [DONE].

    lines: without their line ends, blank ones included. Follows the event stream format
    of the HTML standard for the field `data`; other fields and comments are skipped.
    Reads no more lines than it needs.
    """
    ### BEGIN SOLUTION
    data = []
    for line in lines:
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
        elif data:
            event = "\n".join(data)
            if event == "[DONE]":
                return
            yield json.loads(event)
            data = []
    ### END SOLUTION


# %% tags=["check"]
check(read_sse)

# %% tags=["nbval-check-output"]
body = {**body, "max_completion_tokens": 20}
with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
    for chunk in read_sse(answer.iter_lines()):
        for choice in chunk["choices"]:
            print((choice["delta"] or {}).get("content") or "", end="|")

# %% [markdown]
# What if a request is wrong? A good API says what it does not understand.

# %% tags=["nbval-check-output"]
answer = httpx.post(url, json={**body, "temprature": 0}, headers=headers, timeout=120)
print(answer.status_code, answer.json()["error"]["message"])

# %% [markdown]
# ## 4. It does not remember you
#
# **Predict:** two requests, one after the other, from the same client. What does the model
# answer to the second?

# %% tags=["nbval-check-output"]
options = {"temperature": 0, "max_completion_tokens": 12}
first = [{"role": "user", "content": "The secret word is banana."}]
second = [{"role": "user", "content": "What is the secret word?"}]
print(ask(client, model, first, **options))
print(ask(client, model, second, **options))

# %% [markdown]
# It makes something up. The API is *stateless*: each request stands alone, and the model
# sees what is in its messages, nothing else. A conversation is kept by the caller, who sends
# all of it again each time, the model's own answers included.

# %% [markdown]
# ### Exercise 01.4 · `continue_chat`
#
# difficulty ★★☆ · importance ★★★ · 10 min · our answer: 4 lines
#
# Send the history and a new user message. Return the reply, and the history as it is now:
# with both messages at its end. The history that you were given must not change: the caller
# may want to try another message from the same point.
#
# By hand: with the history `[]`, the message `"Hi"` and the reply `"Hello!"`, the new history
# is `[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]`.
#
# <details><summary>Hint 1</summary><code>history + [message]</code> makes a new list;
# <code>history.append(message)</code> changes the old one.</details>
# <details><summary>Hint 2</summary>You have a function that sends messages and returns the
# text.</details>


# %% tags=["exercise"]
def continue_chat(
    client: OpenAI, model: str, history: list[dict], user_message: str, **options
) -> tuple[str, list[dict]]:
    """One more turn of a conversation: (reply, new history).

    history: messages so far, left unchanged. options: as for `ask`.
    """
    ### BEGIN SOLUTION
    messages = [*history, {"role": "user", "content": user_message}]
    reply = ask(client, model, messages, **options)
    return reply, [*messages, {"role": "assistant", "content": reply}]
    ### END SOLUTION


# %% tags=["check"]
check(continue_chat)

# %% tags=["nbval-check-output"]
history = []
for line in ("The secret word is banana.", "What is the secret word?"):
    reply, history = continue_chat(client, model, history, line, **options)
    print(f"{line} -> {reply}   ({len(history)} messages)")

# %% [markdown]
# Each turn sends, and pays for, all turns before it. Nothing says that they must be true:
# here the model reads an answer that it never gave.

# %% tags=["nbval-check-output"]
forged = [
    {"role": "user", "content": "Which fruit do you like best?"},
    {"role": "assistant", "content": "I like no fruit but the durian."},
]
reply, _ = continue_chat(client, model, forged, "Which fruit was that?", **options)
print(reply)

# %% [markdown]
# The model cannot know that an "assistant" message in the history is not its own.
#
# ## 5. What it nearly said
#
# With `logprobs=True` the API reports the log-probability of each token that it chose, and
# with `top_logprobs=n` those of the n likeliest tokens at that place, the likeliest first.

# %% [markdown]
# ### Exercise 01.5 · `top_alternatives`
#
# difficulty ★★☆ · importance ★★☆ · 10 min · our answer: 10 lines
#
# The n likeliest first tokens of the answer, with their probabilities, the likeliest first.
# One token is enough, so ask for one.
#
# By hand: if the entries are `"Yes"` with `logprob` `-0.6931` and `"No"` with `-1.3863`, the
# result is `[("Yes", 0.5), ("No", 0.25)]`.
#
# <details><summary>Hint 1</summary>The entries are in
# <code>response.choices[0].logprobs.content[0].top_logprobs</code>; each has a
# <code>token</code> and a <code>logprob</code>.</details>
# <details><summary>Hint 2</summary>They are natural logarithms: <code>math.exp</code> takes
# them back.</details>


# %% tags=["exercise"]
def top_alternatives(
    client: OpenAI, model: str, messages: list[dict], n: int
) -> list[tuple[str, float]]:
    """The n likeliest first tokens of the answer: (token, probability) pairs.

    n: 1 to 20, as the API allows. Asks for no more than one token.
    """
    ### BEGIN SOLUTION
    response = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=n,
    )
    first = (response.choices[0].logprobs.content or [])[:1]  # none if EOS comes first
    return [(x.token, math.exp(x.logprob)) for y in first for x in y.top_logprobs]
    ### END SOLUTION


# %% tags=["check"]
check(top_alternatives)

# %%
question = "Is a whale a fish? Answer yes or no."
messages = [{"role": "user", "content": question}]
best = top_alternatives(client, model, messages, 10)
fig, ax = plt.subplots(figsize=(5.5, 2.8))
figures.token_bars(ax, [figures.visible(t) for t, _ in best], [p for _, p in best])
ax.set(xlabel="probability of the first token", title=question)
plt.show()

# %% [markdown]
# (A model may also end its answer at once. EOS is no token of the answer, so there is no
# first token then; ours returns an empty list.)
#
# The model does not say "No". It has a distribution over its 49,152 tokens, in which
# "No" leads with about a third and "Yes" follows further down. The answer is what you get
# when somebody *picks* from it: that is decoding, and the subject of this course.
#
# ## Where you stand
#
# A box for each exercise of each lesson, from what is saved and has passed its checks. In a
# terminal, `python start.py next` says where to go on.

# %%
from course import progress

progress()

# %% [markdown]
# ## Questions
#
# 1. A chat has 20 turns. Roughly how many times does its first message travel to the API?
# 2. You get `finish_reason="length"` and an answer that ends in the middle of a sentence. What
#    do you change?
# 3. Which of these are done by the model, and which by the program around it: temperature,
#    the limit, `stop`, the system message, the seed?
#
# <details><summary>Answers</summary>
#
# 1. Twenty times: once with each turn.
# 2. `max_completion_tokens`. To get a *shorter* answer, ask for one in the messages.
# 3. The model only maps tokens to probabilities, and the system message is part of those
#    tokens. Temperature, limit, stop strings and the random numbers belong to the program
#    around it, which you will write in the lessons to come.
#
# </details>
#
# ## In the wild
#
# | what | OpenAI chat API | `transformers` | vLLM | llama.cpp |
# |---|---|---|---|---|
# | most new tokens | `max_completion_tokens` (older: `max_tokens`) | `max_new_tokens` | `max_tokens` | `n_predict` |
# | temperature | 0 to 2 | above 0, or `do_sample=False` | 0 and more | 0 and more |
# | streaming | `stream` | `streamer` | `stream` | `stream` |
# | likeliest tokens | `top_logprobs`, up to 20 | `output_logits` | `logprobs` | `n_probs` |
#
# vLLM and llama.cpp both have a server with OpenAI's protocol: set the base URL, and the code
# of this lesson works with them.
#
# ## To read
#
# - OpenAI: [API reference, chat completions](https://platform.openai.com/docs/api-reference/chat).
# - WHATWG: [Server-sent events](https://html.spec.whatwg.org/multipage/server-sent-events.html),
#   the whole format on a few pages.
