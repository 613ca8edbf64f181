# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 18 · Beyond one machine
#
# **After this lesson your decoder works through a file of prompts on all cores of a machine,
# or of many, loses no row when one of them dies, and a model too large for one is split over
# several.**
#
# You write: `waste`, `batches`, `Decoder`, `decode_file`, `split_columns`, `split_rows` and
# `parallel_mlp`. About 130 minutes. Builds on lessons 05 and 07: `decode_cached` and
# `eos_token_ids` come along in the first cell.

# %% tags=["setup"]
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch.nn import functional

from course import carry
from course.kit import scale
from tiny_models import load

decode_cached = carry("decode_cached")
eos_token_ids = carry("eos_token_ids")
pick_greedy = carry("pick_greedy")
BATCH = 8  # rows that are decoded together

# %%
import random
import tempfile
import time

import matplotlib.pyplot as plt

from course import check
from course.kit import figures
from course.kit.measures import human_texts
from course.kit.processes import Processes

model, tokenizer = load()
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# So far somebody waited for each answer. Often nobody does: a data set is to be labelled, ten
# thousand answers are to be graded, texts are to be made for training. This is *offline* or
# *batch* inference. What counts is rows per second and that no row is lost; how long a single
# row takes does not matter. That leaves a freedom which a server does not have: all prompts
# are known beforehand.
#
# ## 1. Padding
#
# Sixteen prompts, most of them short and some long, as in most files:

# %%
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Who wrote Hamlet?",
    "Translate to French: good morning",
    "What is 7 times 8?",
    "Give a synonym of quick.",
    "Is a whale a fish?",
    "Name a planet.",
    "What do bees make?",
)
SENTENCES = [text.split(". ")[0] for text in human_texts()]
LONG = ["Say in one sentence what this is about: " + text for text in SENTENCES[:6]]
asked = [*QUESTIONS, *LONG]
random.Random(3).shuffle(asked)


# %% tags=["nbval-check-output"]
def chat(text):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


prompts = [chat(text) for text in asked]
lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
print(lengths)

# %% [markdown]
# Lesson 05 decoded a batch with padding on the left. The model computes something at each
# position of padding, too, and nobody wants it. **Predict:** in batches of four, in the order
# above, which share of all positions is padding?

# %% [markdown]
# ### Exercise 18.1 · `waste`
#
# difficulty ★☆☆ · importance ★★☆ · 8 min · our answer: 7 lines
#
# The share of positions that are padding, when rows of these lengths are put into batches, as
# they come, and each batch is padded to its longest row. The last batch may have fewer rows.
#
# By hand: `waste([3, 1, 2, 2], 2)`. The batches are 3 1 and 2 2. They have 2 · 3 and 2 · 2
# positions, 10 together; 8 of them are tokens, 2 are padding: `0.2`. With a batch size of 3
# they are 3 1 2 and 2: 9 and 2 positions, so 3 of 11.
#
# <details><summary>Hint 1</summary>Count all positions: for each batch, the number of its rows
# times its longest. What is not a token is padding.</details>
# <details><summary>Hint 2</summary><code>range(0, len(lengths), batch_size)</code> gives the
# starts of the batches. Where there is no position, nothing is wasted.</details>


# %% tags=["exercise"]
def waste(lengths: list[int], batch_size: int) -> float:
    """The share of positions that are padding, from 0.0 to below 1.0.

    lengths: tokens of each row, in the order in which rows are put into batches; left
    unchanged. Without any position: 0.0. Raises ValueError for a batch_size below 1.
    """
    ### BEGIN SOLUTION
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    positions = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        positions += len(batch) * max(batch)
    return 1 - sum(lengths) / positions if positions else 0.0
    ### END SOLUTION


# %% tags=["check"]
check(waste)

# %% tags=["nbval-check-output"]
for name, order in (("as they come", lengths), ("by length", sorted(lengths))):
    print(f"{name:12}: {waste(order, 4):.0%} of the positions are padding")

# %% [markdown]
# Sorted by length, rows of a batch are nearly as long as each other. The order of the file
# must come back in the end, so we sort *keys*, not rows: a row's number, by which its answer
# is found again.

# %% [markdown]
# ### Exercise 18.2 · `batches`
#
# difficulty ★☆☆ · importance ★★☆ · 8 min · our answer: 4 lines
#
# Put prompts into batches by their length, shortest first; those of equal length stay in
# their order. Return the keys of each batch, not the prompts: the key of a prompt is its
# place in the list. The last batch has what is left.
#
# By hand: `batches(["ccc", "a", "bb", "dd"], 3)`. By length: a (key 1), bb (2), dd (3), ccc
# (0). So it is `[[1, 2, 3], [0]]`.
#
# <details><summary>Hint 1</summary><code>sorted</code> keeps the order of what is equal. It
# can sort <code>range(len(prompts))</code> with a <code>key</code>.</details>
# <details><summary>Hint 2</summary>Then cut the list of keys as in <code>waste</code>.</details>


# %% tags=["exercise"]
def batches(prompts: list, batch_size: int) -> list[list[int]]:
    """The keys of each batch, shortest prompts first.

    prompts: texts, or lists of ids; the length is what `len` says. Left unchanged.
    Each of the keys 0 to len(prompts) - 1 is in one batch. Without prompts: [].
    Raises ValueError for a batch_size below 1.
    """
    ### BEGIN SOLUTION
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    keys = sorted(range(len(prompts)), key=lambda key: len(prompts[key]))
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]
    ### END SOLUTION


# %% tags=["check"]
check(batches)

# %%
as_they_come = [list(range(n, n + 4)) for n in range(0, len(prompts), 4)]
ids = tokenizer(prompts).input_ids
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for ax, title, groups in (
    (axes[0], "as they come", as_they_come),
    (axes[1], "by length", batches(ids, 4)),
):
    for n, group in enumerate(groups):
        rows = [4 * n + i + n / 2 for i in range(len(group))]
        wide = max(lengths[key] for key in group)
        own = [lengths[key] for key in group]
        padding = [wide - length for length in own]
        ax.barh(rows, padding, color=figures.YELLOW, label="padding" if not n else "")
        label = "tokens" if not n else ""
        ax.barh(rows, own, left=padding, color=figures.BLUE, label=label)
    ax.set(title=title, xlabel="positions", yticks=[])
axes[0].invert_yaxis()  # and with it the other's, since they share it
axes[0].set_ylabel("rows, in batches of four")
axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()


# %%
def work(groups):
    """Seconds of the processor's work on the prompts; what else runs is not counted."""
    start = time.process_time()
    for group in groups:
        made = tokenizer(
            [prompts[key] for key in group], return_tensors="pt", padding=True
        )
        made = made.to(model.device)
        with torch.no_grad():
            model(**made, logits_to_keep=1)
    return time.process_time() - start


work(as_they_come[:1])  # the first pass of a program is slower
share = work(batches(ids, 4)) / work(as_they_come)
print(f"read by length, the prompts take {share:.2f} of the work")

# %% [markdown]
# That is for the prompts. Answers are padded, too: a row that has its EOS waits for the
# longest of its batch, and nobody knows beforehand which that is. Lesson 17's answer, rows
# that join and leave at any step, holds here as well: a large file is best sent to an engine
# that has many rows in flight.
#
# ## 2. One copy of the model
#
# Whatever spreads the work over processes, each of them needs a copy of the model. It must be
# loaded there, once, and then serve batch after batch. Ray calls such an object an *actor*: a
# class, of which each process makes one object, and calls it with batches. A batch comes as
# columns, as in a table: a dict from names to arrays of equal length.

# %% [markdown]
# ### Exercise 18.3 · `Decoder`
#
# difficulty ★★☆ · importance ★★★ · 20 min · our answer: 16 lines
#
# A class whose objects decode batches. Load in `__init__`, once; decode greedily in
# `__call__`. Every column that comes in goes out unchanged, above all the key, and two are
# added: `ids`, the new ids of each row as a list, up to its EOS (with it) and without padding,
# and `text`, the same in words, without special tokens.
#
# By hand: EOS is 2. The rows of a batch were continued with 5 7 2 and 8 2 and padding: `ids`
# is `[[5, 7, 2], [8, 2]]`.
#
# `decode_cached(model, ids, mask, max_new_tokens, pick_greedy, eos_ids, pad_id)`, from lesson
# 07, does the work. It returns prompts and new ids.
#
# <details><summary>Hint 1</summary>The object may be made in another process, on another
# machine. So it must not use the notebook's <code>model</code>: call
# <code>loader</code>.</details>
# <details><summary>Hint 2</summary><code>tokenizer(list(batch["prompt"]), padding=True,
# return_tensors="pt")</code> gives ids and mask, padded on the left with
# <code>tokenizer.pad_token_id</code>. <code>.to(model.device)</code> takes both to where the
# model is. New ids begin at <code>ids.shape[1]</code>, the same for all rows.</details>
# <details><summary>Hint 3</summary>Cut at the first id that is one of
# <code>eos_token_ids(model)</code>. Do not look for padding: the pad token may be the EOS
# itself, and another id where it is not.</details>
# <details><summary>Hint 4</summary><code>{**batch, "ids": ..., "text": ...}</code> is a new
# dict with all old columns.</details>


# %% tags=["exercise"]
class Decoder:
    """A copy of the model that continues batches of prompts, greedily.

    loader: called without arguments, gives (model, tokenizer); called once.
    max_new_tokens: for each row.
    """

    def __init__(self, loader: Callable = load, max_new_tokens: int = 8):
        ### BEGIN SOLUTION
        self.model, self.tokenizer = loader()
        self.max_new_tokens = max_new_tokens
        ### END SOLUTION

    def __call__(self, batch: dict[str, numpy.ndarray]) -> dict:
        """The columns of batch, and "ids" and "text".

        batch: columns of equal length, among them "prompt" (texts, none of them empty);
        left unchanged. "ids": a list of each row's new ids, to its first EOS. "text":
        those ids, decoded without special tokens.
        """
        ### BEGIN SOLUTION
        model, tokenizer = self.model, self.tokenizer
        made = tokenizer(list(batch["prompt"]), padding=True, return_tensors="pt")
        made = made.to(model.device)
        ids, mask, eos_ids = made.input_ids, made.attention_mask, eos_token_ids(model)
        whole = decode_cached(
            *(model, ids, mask, self.max_new_tokens),
            *(pick_greedy, eos_ids, tokenizer.pad_token_id),
        )
        rows = []
        for row in whole[:, ids.shape[1] :].tolist():
            ends = [n for n, token in enumerate(row) if token in eos_ids]
            rows.append(row[: ends[0] + 1] if ends else row)
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return {**batch, "ids": rows, "text": texts}
        ### END SOLUTION


# %% tags=["check"]
check(Decoder)

# %% tags=["nbval-check-output"]
decoder = Decoder(lambda: (model, tokenizer))
some = {"key": ["a", "b"], "prompt": prompts[4:6]}
some = {name: numpy.array(column, dtype=object) for name, column in some.items()}
for column, values in decoder(some).items():
    if column != "prompt":
        print(f"{column:5}", list(values))

# %% [markdown]
# ## 3. One process a core
#
# A machine has several cores. PyTorch spreads each operation over all of them, and they wait
# for each other after each. Or every core gets a process of its own, with a copy of the model
# and a part of the rows. **Predict:** eight rows, and two processes with one thread each
# instead of one. Is that twice as fast?
#
# `Processes` starts Python processes with a thread each. (Python's own `ProcessPoolExecutor`
# does the work; but it can only send functions that stand in a module, and a notebook's do
# not. So they are sent by value, with `cloudpickle`, which Ray uses, too.)


# %%
def decode_alone(prompts):
    """For a process of its own: the new ids, and seconds to load and to decode."""
    start = time.perf_counter()
    decoder = Decoder(max_new_tokens=5)
    ready = time.perf_counter()
    ids = [None] * len(prompts)
    for group in batches(prompts, 4):
        made = decoder({"prompt": [prompts[key] for key in group]})
        for key, row in zip(group, made["ids"], strict=True):
            ids[key] = row
    return ids, ready - start, time.perf_counter() - ready


start = time.perf_counter()
cores = Processes(2)
started = time.perf_counter() - start

# %%
eight = prompts[:8]
one = cores.run(decode_alone, [(eight,)])
two = cores.run(decode_alone, [(eight[::2],), (eight[1::2],)])
together = [row for pair in zip(two[0][0], two[1][0], strict=True) for row in pair]
took = max(seconds for _, _, seconds in two)
print("the same ids:", together == one[0][0])
print(f"two processes decode {one[0][2] / took:.1f} times as fast as one")
print(f"starting took {(started + two[0][1]) / took:.1f} times as long as decoding")

# %% [markdown]
# The ids are the same. Twice as fast it is at best: each process reads all weights for itself,
# over the same way to the memory, and the memory holds them twice. The rows are dealt out by
# turns here; if one process had all long ones, the other would wait for it at the end.
#
# The price that is the same everywhere is the start: a process that decodes for a second and
# starts for ten is a bad deal. Batch jobs have few, long-lived workers.
#
# ## 4. A file
#
# A job of ten hours meets what a cell of ten seconds does not: a machine is restarted, the
# disk is full, somebody closes the laptop. So the rows that are done must be on disk, and the
# same command, given again, must do the rest, and no more. What can go wrong?
#
# - The last line of the file was being written when the power went: half a line is no row,
#   and what is appended to it is none, either.
# - A file with some of the rows looks like a file with all of them. So nothing has the final
#   name before it is complete.
# - The prompts have been changed since. An answer to another prompt is no answer, even if the
#   key is the same.

# %% [markdown]
# ### Exercise 18.4 · `decode_file`
#
# difficulty ★★★ · importance ★★★ · 35 min · our answer: 51 lines
#
# Read prompts from one file and write the answers to another, as JSON lines. A line of
# `source` is `{"key": "q7", "prompt": "..."}`, with a key of its own (all keys of a file are
# texts, or all are whole numbers); empty lines do not count. A line of `target` is
# `{"key": "q7", "prompt": "...", "ids": [...], "text": "..."}`, in the order of `source`.
#
# - While it runs, each answer is appended to `target` + `.part` as soon as it is there. At the
#   end all answers get the name `target`, at once (`os.replace`), and the part goes.
# - What is answered already, in the part or in the target, for the same key **and** the same
#   prompt, is not decoded again. If all are, no model is loaded. Half a line does not count.
# - With `workers=0` this process decodes, with one `Decoder`, batch by batch, as `batches` puts
#   them together, with `BATCH` rows.
# - With more, Ray does, on the cluster at `address`. `scale.start(address)` gives the module
#   `ray`, started, or raises where it is not installed. Each worker is a `Decoder`, which gets
#   `options`.
#
# By hand: the source has the keys a, b, c. The part has the answer to b and half a line. a and
# c are decoded. The target has the lines a, b, c.
#
# With Ray, a pipeline is a *dataset* and what is done to its batches:
#
# ```python
# rows = ray.data.from_items(rows).map_batches(
#     Decoder,
#     fn_constructor_kwargs=options,
#     batch_size=BATCH,
#     compute=ray.data.ActorPoolStrategy(size=workers),
#     num_cpus=0.5,
# ).iter_rows()
# ```
#
# Nothing runs before `iter_rows` is iterated; then rows come as they are done. `num_cpus=0.5`
# is what each actor reserves. With the usual 1, two actors on two cores leave nothing for the
# task that reads the data, and all wait for ever.
#
# <details><summary>Hint 1</summary>Four steps: read what is asked; read what is answered; for
# the rest, append row by row and <code>flush</code>; write the whole under another name, and
# replace.</details>
# <details><summary>Hint 2</summary>Whole lines end in a line end:
# <code>path.read_bytes().splitlines(keepends=True)</code>. Cut the part to them
# (<code>os.truncate</code>) before you append. (The <code>splitlines</code> of a text, not of
# bytes, also cuts at characters that may stand within a prompt.)</details>
# <details><summary>Hint 3</summary>A generator can do the work of this process:
# <code>for group in batches(...)</code>, call the decoder with columns, <code>yield</code> a
# dict for each row. Then both ways give rows.</details>
# <details><summary>Hint 4</summary>Keep answers in a dict from key to row. It brings the order
# back: go through the source once more.</details>


# %% tags=["exercise"]
def decode_file(
    source: str | Path,
    target: str | Path,
    address: str | None = None,
    workers: int = 2,
    **options,
) -> None:
    """Answer each prompt of source in target; after a break, go on where it stopped.

    source, target: JSON lines, see above; both in UTF-8. address: of a Ray cluster;
    None starts one of this machine. workers: how many Decoders; 0 means one in this
    process, without Ray. options: for Decoder.
    Raises ValueError, before anything is decoded or written, where a key comes twice.
    """
    ### BEGIN SOLUTION
    part = Path(f"{target}.part")
    lines = Path(source).read_bytes().splitlines()
    rows = [json.loads(line) for line in lines if line]
    asked = {row["key"]: row for row in rows}
    if len(asked) < len(rows):
        raise ValueError(f"{source} has a key twice")

    # 1. What is answered already
    answered = {}
    for path in (Path(target), part):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        answered |= {row["key"]: row for row in map(json.loads, whole)}
        if path == part and lines:
            os.truncate(part, sum(map(len, whole)))
    left = [
        {"key": key, "prompt": row["prompt"]}
        for key, row in asked.items()
        if answered.get(key, {}).get("prompt") != row["prompt"]
    ]

    # 2. The rest, shortest first
    def decoded_here():
        decoder = Decoder(**options)
        for group in groups:
            made = decoder(
                {
                    name: numpy.array([left[n][name] for n in group], dtype=object)
                    for name in ("key", "prompt")
                }
            )
            for values in zip(*made.values(), strict=True):
                yield dict(zip(made, values, strict=True))

    def decoded_by_ray():
        ray = scale.start(address)
        data = ray.data.from_items([left[n] for group in groups for n in group])
        return data.map_batches(
            Decoder,
            fn_constructor_kwargs=options,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.5,
        ).iter_rows()

    groups = batches([row["prompt"] for row in left], BATCH)
    if left:
        with part.open("a", encoding="utf-8") as file:
            for row in decoded_by_ray() if workers else decoded_here():
                answered[row["key"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()

    # 3. All of them, in the order of the source
    new = Path(f"{target}.new")
    lines = [json.dumps(answered[key]) + "\n" for key in asked]
    new.write_text("".join(lines), encoding="utf-8")
    os.replace(new, target)
    part.unlink(missing_ok=True)
    ### END SOLUTION


# %% tags=["check"]
check(decode_file)

# %% [markdown]
# The sixteen prompts as a file. In the first run the power fails after ten steps.

# %% tags=["nbval-check-output"]
source, target = folder / "prompts.jsonl", folder / "answers.jsonl"
rows = [{"key": f"q{n}", "prompt": prompt} for n, prompt in enumerate(prompts)]
source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
steps = []


def power_fails(*_):
    steps.append(1)
    if len(steps) == 10:
        raise RuntimeError("the power fails")


hook = model.register_forward_pre_hook(power_fails)
for _ in range(2):
    try:
        decode_file(source, target, workers=0, loader=lambda: (model, tokenizer))
    except RuntimeError as error:
        print(error)
    there = [path.name for path in sorted(folder.glob("answers*"))]
    print(f"{len(steps)} steps, then there is {there}")
hook.remove()

# %% tags=["nbval-check-output"]
for line in target.read_text(encoding="utf-8").splitlines()[:4]:
    row = json.loads(line)
    print(row["key"], repr(row["text"]))

# %% [markdown]
# A batch in which the power fails is decoded again: the price is at most a batch for each
# worker. Smaller batches make less to repeat, and larger ones are faster.
#
# ## 5. Workers that Ray starts
#
# The same function, and two workers. Ray starts processes, moves rows to them, and starts them
# again when they die. Without Ray these cells say so in a sentence, and the lesson goes on.
# (`python start.py scale` installs it, about 600 MB.)

# %%
if scale.has_ray():
    ray = scale.start()
    start = time.perf_counter()
    decode_file(source, folder / "two.jsonl", workers=2)
    run = time.perf_counter() - start
    alone = target.read_bytes()
    same = (folder / "two.jsonl").read_bytes() == alone
    print("two workers: the same bytes as one process?", same)
    print(
        f"it took {run / took:.0f} times as long as the processes of section 3 decoded"
    )

# %% [markdown]
# For sixteen rows that is all start and no work: Ray starts its own processes, and each worker
# imports `torch` and loads a model. In a long run it is the other way round.
#
# Rows arrive as they are done, and a slow batch comes late: the order of a dataset is not
# kept unless one asks for it (`execution_options.preserve_order`), and then all wait for the
# slow one. We did not ask. The key knows.
#
# **Predict:** a worker dies in the middle of a batch, as one does that runs out of memory.
# Which rows are lost, and which come twice?


# %%
def fragile(witness=folder / "died"):
    """A model whose process dies at its third call: the first process that has it."""
    model, tokenizer = load()
    calls = []

    def die(*_):
        calls.append(1)
        if len(calls) == 3 and not witness.exists():
            witness.touch()
            os._exit(1)

    model.register_forward_pre_hook(die)
    return model, tokenizer


if scale.has_ray():
    decode_file(source, folder / "fragile.jsonl", loader=fragile)
    same = (folder / "fragile.jsonl").read_bytes() == alone
    print("a worker died:", (folder / "died").exists(), "- the same bytes:", same)

# %% [markdown]
# None and none. Ray knows which batch a worker had, starts another worker, and gives it the
# batch again. A batch counts when it comes back, whole. (A row on which *every* worker dies is
# another matter: it is tried for ever. `max_restarts` and `max_task_retries` set a bound.)
#
# What if the program that gives the orders dies, the *driver*? Then all of its workers go,
# too. That is what the part file is for: the next run reads it.
#
# **Many machines.** On one of them, `ray start --head`; on the others, `ray start
# --address=HOST:6379`. Each needs the same Python, the course, and the model. Then the line
# above with one argument more, in a program on one of them, runs on all:
#
# ```python
# decode_file(source, target, address="HOST:6379", workers=64)
# ```
#
# (Ray also has addresses for programs elsewhere, `ray://HOST:10001`. Ray Data, as of 2.60,
# fails with them.)
#
# Who reaches a cluster can run anything on it, so let it ask for a token: `ray get-auth-token
# --generate` makes one in `~/.ray/auth_token`. Copy that file to each machine before you start
# Ray there. (A cluster of one machine, as above, makes one by itself.)
#
# ## 6. Or send requests
#
# A worker need not have the model. It can be a client, of the server of lesson 17 or of any
# other, and the engine there does the batching. Then the job is: many requests at once, not
# more than the server takes, and a second try where one fails. Ray Data has a processor for
# that. Here it drives the course's server, through a door that fails at every fifth request:

# %%
from course.kit.flaky import Flaky
from tiny_models import serve

if scale.has_ray():
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    name = model.config._name_or_path

    def as_request(row):
        messages = [{"role": "user", "content": row["prompt"]}]
        payload = {
            "model": name,
            "messages": messages,
            "max_tokens": 8,
            "temperature": 0,
        }
        return {"key": row["key"], "payload": payload}

    def as_row(row):
        choice = row["http_response"]["choices"][0]
        return {"key": row["key"], "text": choice["message"]["content"]}


# %%
if scale.has_ray():
    with (
        serve(model, tokenizer, name=name) as server,
        Flaky(server.base_url, 5) as door,
    ):
        processor = build_processor(
            HttpRequestProcessorConfig(
                url=door.base_url + "/chat/completions",
                batch_size=4,
                concurrency=1,
                max_retries=5,
                base_retry_wait_time_in_s=0.1,
            ),
            preprocess=as_request,
            postprocess=as_row,
        )
        rows = [{"key": f"q{n}", "prompt": text} for n, text in enumerate(asked)]
        got = {
            row["key"]: row for row in processor(ray.data.from_items(rows)).take_all()
        }
    wanted = [json.loads(line) for line in alone.decode().splitlines()]
    same = [got[row["key"]]["text"] == row["text"] for row in wanted]
    print(f"{door.failed} of {door.asked} requests failed; {len(got)} answers,")
    print(f"{sum(same)} of them the same text as above")
    ray.shutdown()

# %% [markdown]
# Temperature 0 makes a second try harmless. With sampling it is harmless only if the request
# has a seed, made from its key: else the answer depends on how often the network failed.
#
# ## 7. A model that is too large
#
# All this copies the model. One of 70 billion parameters needs 140 GB in bfloat16, which is
# more than one device has. So its matrices are split: *tensor parallelism*. Each of n devices
# holds a part of every matrix, all get the same input, and they exchange numbers in each layer.
# How to split so that they exchange little?
#
# The MLP of a Llama is `(silu(x @ gate) * (x @ up)) @ down`. Papers write a matrix so that x
# stands before it: `gate` and `up` are (hidden, inner), `down` is (inner, hidden). **Predict:**
# two devices. Cut `gate` by its columns, or by its rows? What must be exchanged then before
# `silu` can be computed?
#
# By columns: each device computes some of the inner values, all of each. `silu` and the
# product look at each value alone, so nothing is exchanged. By rows: each device would have a
# part of the *sum* for every inner value, and `silu(a) + silu(b)` is not `silu(a + b)`.
#
# A device that has some inner values needs exactly those rows of `down`. What comes out is one
# summand of the result, as large as x. The only exchange is the sum.

# %% [markdown]
# ### Exercise 18.5 · `split_columns`
#
# difficulty ★☆☆ · importance ★★☆ · 6 min · our answer: 3 lines
#
# Cut a matrix into blocks of columns, from left to right, all of the same width. Each block is
# a tensor of its own that holds no more memory than it needs: a view would keep the whole
# matrix alive, and nothing would be saved.
#
# By hand: `split_columns([[1, 2, 3, 4], [5, 6, 7, 8]], 2)`, with a tensor in place of the
# list, gives `[[1, 2], [5, 6]]` and `[[3, 4], [7, 8]]`. Into 3 it cannot be cut: an error.
#
# <details><summary>Hint 1</summary><code>matrix.chunk(shards, dim=...)</code> gives views. It
# also gives unequal ones, without a word, so look at the width before.</details>
# <details><summary>Hint 2</summary><code>clone()</code> makes a tensor of its own.
# <code>contiguous()</code> does not where a view happens to be contiguous.</details>


# %% tags=["exercise"]
def split_columns(matrix: torch.Tensor, shards: int) -> list[torch.Tensor]:
    """Blocks of columns, (rows, columns / shards) each, with memory of their own.

    matrix: (rows, columns), left unchanged. Raises ValueError where shards is below 1
    or does not divide the number of columns.
    """
    ### BEGIN SOLUTION
    if shards < 1 or matrix.shape[1] % shards:
        raise ValueError(f"{matrix.shape[1]} columns cannot be cut into {shards}")
    return [block.clone() for block in matrix.chunk(shards, dim=1)]
    ### END SOLUTION


# %% tags=["check"]
check(split_columns)

# %% [markdown]
# ### Exercise 18.6 · `split_rows`
#
# difficulty ★☆☆ · importance ★★☆ · 4 min · our answer: 3 lines
#
# The same with rows, from top to bottom.
#
# By hand: the matrix above, cut in 2, gives `[[1, 2, 3, 4]]` and `[[5, 6, 7, 8]]`.
#
# <details><summary>Hint 1</summary>Rows are dimension 0. Here a chunk is contiguous, and a
# view all the same.</details>


# %% tags=["exercise"]
def split_rows(matrix: torch.Tensor, shards: int) -> list[torch.Tensor]:
    """Blocks of rows, (rows / shards, columns) each, with memory of their own.

    matrix: (rows, columns), left unchanged. Raises ValueError where shards is below 1
    or does not divide the number of rows.
    """
    ### BEGIN SOLUTION
    if shards < 1 or matrix.shape[0] % shards:
        raise ValueError(f"{matrix.shape[0]} rows cannot be cut into {shards}")
    return [block.clone() for block in matrix.chunk(shards, dim=0)]
    ### END SOLUTION


# %% tags=["check"]
check(split_rows)

# %% [markdown]
# ### Exercise 18.7 · `parallel_mlp`
#
# difficulty ★★☆ · importance ★★★ · 15 min · our answer: 4 lines
#
# What each process of a group runs: its part of the MLP, and the exchange. `shards` are this
# process's blocks of `gate`, `up` and `down`. All processes get the same x, call this function
# at the same time, and all get the whole result.
#
# `dist.all_reduce(tensor, group=group)` adds up the tensors of all processes of the group and
# puts the sum into each of them, in place. (Its default, `group=None`, means all processes that
# there are.) Exchange once, and no more than a tensor of x's shape.
#
# By hand: hidden size 1, two processes, x is 1. Process 0 has gate 0, up 5 and down 1: its part
# is silu(0) · 5 · 1 = 0. Process 1 has gate 2, up 1 and down 1: silu(2) = 1.7616. Both return
# 0 + 1.7616.
#
# <details><summary>Hint 1</summary><code>functional.silu(x @ gate) * (x @ up)</code> are this
# process's inner values.</details>
# <details><summary>Hint 2</summary>After <code>@ down</code> each process has a summand, of x's
# shape. That is what is summed.</details>


# %% tags=["exercise"]
def parallel_mlp(
    x: torch.Tensor,
    shards: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """The MLP of a Llama, (silu(x @ gate) * (x @ up)) @ down, split over a group.

    x: (..., hidden), the same in all processes; left unchanged. shards: this process's
    gate and up, (hidden, part of inner), and down, (part of inner, hidden).
    Returns the whole result, (..., hidden), in every process.
    """
    ### BEGIN SOLUTION
    gate, up, down = shards
    summand = (functional.silu(x @ gate) * (x @ up)) @ down
    dist.all_reduce(summand, group=group)
    return summand
    ### END SOLUTION


# %% tags=["check"]
check(parallel_mlp)

# %% [markdown]
# Now the real model in the two processes of section 3, each with half of all MLPs. One thing
# to watch: `torch` stores a `Linear` transposed, (out, in), and computes `x @ weight.T`.


# %%
def decode_split(ids, new):
    """For a process of a group: new ids, the first logits, bytes of the MLPs held."""
    rank, number = dist.get_rank(), dist.get_world_size()
    model = load()[0].cpu()  # where gloo adds up
    held = 0
    for mlp in [part for part in model.modules() if hasattr(part, "gate_proj")]:
        gate, up, down = (
            getattr(mlp, name).weight.detach().T
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        shards = (
            split_columns(gate, number)[rank],
            split_columns(up, number)[rank],
            split_rows(down, number)[rank],
        )
        held += sum(shard.untyped_storage().nbytes() for shard in shards)
        del mlp.gate_proj, mlp.up_proj, mlp.down_proj
        mlp.forward = lambda x, own=shards: parallel_mlp(x, own, dist.group.WORLD)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    whole = decode_cached(
        *(model, ids, torch.ones_like(ids), new, pick_greedy),
        *(eos_token_ids(model), 0),
    )
    return whole[0, ids.shape[1] :].tolist(), logits, held


# %% tags=["nbval-check-output"]
question = tokenizer(chat("Name three colours."), return_tensors="pt").input_ids
parts = cores.run(decode_split, [(question, 5)] * 2)
cores.close()
here = question.to(model.device)
with torch.no_grad():
    logits = model(here).logits[0, -1].cpu()
whole = model.generate(
    here, attention_mask=torch.ones_like(here), max_new_tokens=5, do_sample=False
)
wanted = whole[0, question.shape[1] :].tolist()
print("the same ids as generate:", [ids == wanted for ids, _, _ in parts])
close = [torch.allclose(part, logits, atol=1e-3) for _, part, _ in parts]
print("the same logits, to 0.001:", close)
print("megabytes of MLP in each:", [held // 2**20 for _, _, held in parts])

# %% [markdown]
# Each process holds half of the MLPs, and the ids are the same. The logits agree up to
# rounding: sums were taken in another order. Attention is split by heads in the same way
# (queries, keys and values by columns, the output by rows), with one more sum in each layer.
#
# The sums are small, a vector for each token, but there are two in each layer, and all devices
# wait for each of them. So tensor parallelism stays within a machine, where links are fast;
# between machines whole layers are passed on (*pipeline parallelism*), or the model is copied
# (*data parallelism*, sections 3 to 5).
#
# ## Questions
#
# 1. Some sort prompts longest first. What speaks for it?
# 2. Rows are to be sampled, not decoded greedily. What must be done so that a run gives the
#    same rows with one worker, with sixteen, and after a break?
# 3. A file has 100,000 rows with the same instruction before each text. What does sorting by
#    length lose, which another order would gain?
# 4. Why may `gate` not be cut by rows and `down` by columns?
#
# <details><summary>Answers</summary>
#
# 1. If a batch is too large for the memory, that shows at once and not at the end. And the last
#    batches, for which the workers wait, are short ones.
# 2. Each row needs a generator of its own, with a seed made from its key. A worker's generator
#    would depend on which rows it happened to get.
# 3. What begins alike can share keys and values (lesson 17): rows with the same beginning should
#    come one after the other. BlendServe looks for an order that serves both.
# 4. Each device would have summands of every inner value: a sum would be needed before `silu`,
#    of inner size, which is larger than x. And the result would be in parts, to be gathered.
#
# </details>
#
# ## In the wild
#
# The same knobs, in the order in which this course met them. An empty cell: we found none.
#
# | here | vLLM | SGLang | TensorRT-LLM | llama.cpp's server | OpenAI's chat API |
# |---|---|---|---|---|---|
# | `max_new_tokens` | `max_tokens` | `max_new_tokens` | `max_tokens` | `n_predict` | `max_completion_tokens` |
# | `temperature` | `temperature` | `temperature` | `temperature` | `temperature` | `temperature` |
# | `seed` | `seed` | `sampling_seed` | `seed` | `seed` | `seed` |
# | `top_k`, 0 is off | `top_k`, 0 or -1 | `top_k`, -1 | `top_k`, 0 | `top_k` | |
# | `eos_ids` | `stop_token_ids` | `stop_token_ids` | `end_id`, `stop_token_ids` | | |
# | go on after EOS | `ignore_eos` | `ignore_eos` | `ignore_eos` | `ignore_eos` | |
# | `min_new_tokens` | `min_tokens` | `min_new_tokens` | `min_tokens` | | |
# | `stop_strings` | `stop` | `stop`, `stop_regex` | `stop` | `stop` | `stop` |
#
# ### Filters, penalties, and how many
#
# | here | vLLM | SGLang | TensorRT-LLM | llama.cpp's server | OpenAI's chat API |
# |---|---|---|---|---|---|
# | `top_p` | `top_p` | `top_p` | `top_p` | `top_p` | `top_p` |
# | `min_p` | `min_p` | `min_p` | `min_p` | `min_p` | |
# | `repetition_penalty` | `repetition_penalty` | `repetition_penalty` | `repetition_penalty` | `repeat_penalty` | |
# | `presence` | `presence_penalty` | `presence_penalty` | `presence_penalty` | `presence_penalty` | `presence_penalty` |
# | `frequency` | `frequency_penalty` | `frequency_penalty` | `frequency_penalty` | `frequency_penalty` | `frequency_penalty` |
# | a bias for tokens | `logit_bias` | `logit_bias` | `embedding_bias` | `logit_bias` | `logit_bias` |
# | `n` | `n` | `n` | `n` | `n_cmpl` | `n` |
# | logprobs | `logprobs` | `top_logprobs_num` | `logprobs` | `n_probs` | `logprobs`, `top_logprobs` |
# | `pattern`, schema | `structured_outputs` | `regex`, `json_schema`, `ebnf` | `guided_decoding` | `json_schema`, `grammar` | `response_format` |
# | `max_batch` | `max_num_seqs` | `--max-running-requests` | `max_batch_size` | `--parallel` | |
# | `shards` | `tensor_parallel_size` | `--tp-size` | `tensor_parallel_size` | `--split-mode tensor` (experimental) | |
#
# The names are nearly the same, and what happens without them is not: vLLM stops after 16
# tokens, TensorRT-LLM after 32, SGLang after 128, llama.cpp never. vLLM and SGLang then sample
# at temperature 1 from the whole vocabulary, llama.cpp at 0.8 with `top_k` 40, `top_p` 0.95 and
# `min_p` 0.05, and TensorRT-LLM takes the best token. Who compares engines sets all of them.
#
# `ray.data.llm` has the pipeline of section 5 with vLLM or SGLang in the place of our decoder
# (on GPUs). vLLM calls the two cuts of section 7 `ColumnParallelLinear` and
# `RowParallelLinear`.
#
# ## To read
#
# - Moritz et al.: *Ray*, OSDI 2018,
#   [arXiv:1712.05889](https://arxiv.org/abs/1712.05889). Tasks and actors.
# - Luan et al.: *The Streaming Batch Model for Efficient and Fault-Tolerant Heterogeneous
#   Execution*, 2025, [arXiv:2501.12407](https://arxiv.org/abs/2501.12407). How Ray Data runs.
# - Shoeybi et al.: *Megatron-LM*, 2019,
#   [arXiv:1909.08053](https://arxiv.org/abs/1909.08053). The two cuts, and one sum.
# - Zhao et al.: *BlendServe*, 2024, [arXiv:2411.16102](https://arxiv.org/abs/2411.16102). An
#   order of requests for offline work.
