"""Checks of lesson 18. Oracles: cases worked by hand, generate, transformers' LlamaMLP,
and real gloo groups, whose processes are threads here.

With Ray installed, one more check of decode_file runs real workers.
"""

import datetime
import functools
import inspect
import itertools
import json
import os
import random
import sys
import threading
from functools import partial

import numpy
import pytest
import torch
import torch.distributed as dist
from numba import cloudpickle
from torch.nn import functional

from course.checks import expect
from course.checks.plugin import exercise
from course.kit import scale
from tiny_models import random_gpt2, random_llama
from tiny_models.toy_tokenizer import toy_tokenizer

waste = exercise("waste")
batches = exercise("batches")
Decoder = exercise("Decoder")
decode_file = exercise("decode_file")
split_columns = exercise("split_columns")
split_rows = exercise("split_rows")
parallel_mlp = exercise("parallel_mlp")

HAS_RAY = scale.is_installed()

# --- waste ----------------------------------------------------------------------------


def test_waste_worked_by_hand(waste):
    for lengths, size, wanted in (
        ([3, 1, 2, 2], 2, 0.2),
        ([3, 1, 2, 2], 3, 3 / 11),
        ([8, 4, 4, 4], 2, 4 / 24),
        ([1, 8, 1, 8], 2, 14 / 32),
    ):
        call, hint = f"waste({lengths}, {size})", ""
        got = waste(list(lengths), size)
        if size == 3 and isinstance(got, float) and abs(got - 7 / 15) < 1e-9:
            hint = "The last batch has one row, and is padded to its own longest."
        if isinstance(got, float) and abs(got - (1 - wanted)) < 1e-9:
            hint = "That is the share of tokens."
        if size == 3 and isinstance(got, float) and abs(got - 1 / 9) < 1e-9:
            hint = "The rows are batched as they come: do not sort them."
        expect.value(got, wanted, call, hint, 1e-9)


@pytest.mark.parametrize(
    ("lengths", "size"), [([5, 5, 5], 2), ([7], 4), ([4, 4, 9, 9, 2], 2), ([3, 9], 1)]
)
def test_rows_as_long_as_their_batch_waste_nothing(waste, lengths, size):
    got = waste(list(lengths), size)
    hint = "The last batch may have fewer rows."
    expect.value(got, 0.0, f"waste({lengths}, {size})", hint)


def test_without_a_position_nothing_is_wasted(waste):
    expect.value(waste([], 4), 0.0, "waste([], 4)")
    expect.value(waste([0, 0, 0], 2), 0.0, "waste([0, 0, 0], 2)")


def test_waste_needs_a_batch_size_of_one_or_more(waste):
    for size in (0, -2):
        expect.rejects(
            ValueError, partial(waste, [1, 2], size), f"waste([1, 2], {size})"
        )
    expect.rejects(ValueError, partial(waste, [], 0), "waste([], 0)")


def test_waste_is_padding_over_positions_for_random_lengths(waste):
    dice = random.Random(0)
    for _ in range(40):
        lengths = [dice.randint(0, 30) for _ in range(dice.randint(1, 20))]
        size = dice.randint(1, 24)
        rows = iter(lengths)
        padded = empty = 0
        while batch := list(itertools.islice(rows, size)):
            padded += len(batch) * max(batch)
            empty += sum(max(batch) - one for one in batch)
        given = list(lengths)
        got = waste(given, size)
        call = f"waste({expect.show(lengths)}, {size})"
        expect.value(got, empty / padded if padded else 0.0, call, "", 1e-9)
        assert given == lengths, f"{call} changed its argument"


# --- batches --------------------------------------------------------------------------


def test_batches_worked_by_hand(batches):
    for prompts, size, wanted in (
        (["ccc", "a", "bb", "dd"], 3, [[1, 2, 3], [0]]),
        (["ccc", "a", "bb", "dd"], 2, [[1, 2], [3, 0]]),
        ([[5, 6, 7], [8], [9, 9]], 1, [[1], [2], [0]]),
        (["b", "a", "c"], 5, [[0, 1, 2]]),
    ):
        got, hint = batches(list(prompts), size), ""
        if got == [[prompts[key] for key in group] for group in wanted]:
            hint = "Return the keys of the prompts, not the prompts."
        elif got == _in_batches([key for group in wanted for key in group][::-1], size):
            hint = "Shortest first."
        expect.value(got, wanted, f"batches({prompts}, {size})", hint)


def test_prompts_of_equal_length_stay_in_their_order(batches):
    prompts = ["zz", "m", "yy", "b", "xx", "a", "ww"]
    hint = "Where lengths are equal, keys rise: sort by length alone, stably."
    got = batches(list(prompts), 3)
    expect.value(got, [[1, 3, 5], [0, 2, 4], [6]], f"batches({prompts}, 3)", hint)


def test_equal_prompts_have_keys_of_their_own(batches):
    got = batches(["same", "a", "same", "same"], 2)
    hint = "Equal prompts are different rows: list.index finds the first alone."
    expect.value(
        got, [[1, 0], [2, 3]], "batches(['same', 'a', 'same', 'same'], 2)", hint
    )


def test_every_key_is_in_one_batch_and_lengths_never_fall(batches):
    dice = random.Random(1)
    for _ in range(30):
        prompts = [[0] * dice.randint(0, 9) for _ in range(dice.randint(1, 25))]
        size, before = dice.randint(1, 7), [list(prompt) for prompt in prompts]
        call = f"batches of {len(prompts)} prompts, {size} in each"
        got = expect.returned(batches(prompts, size), list, call)
        assert prompts == before, f"{call} changed its argument"
        keys = [key for group in got for key in group]
        assert sorted(keys) == list(range(len(prompts))), (
            f"{call}: each of the keys 0 to {len(prompts) - 1} should be there once, "
            f"not {expect.show(keys)}"
        )
        order = [(len(prompts[key]), key) for key in keys]
        assert order == sorted(order), (
            f"{call}: the lengths, with keys, are {expect.show(order)}"
        )
        sizes = [len(group) for group in got]
        full = [size] * (len(prompts) // size)
        assert sizes == full + [len(prompts) % size] * (len(prompts) % size > 0), (
            f"{call}: the batches have {sizes} rows; all but the last should be full"
        )


def test_no_prompts_make_no_batch_and_a_size_of_zero_is_an_error(batches):
    expect.value(batches([], 3), [], "batches([], 3)")
    for size in (0, -1):
        call = f"batches(['a'], {size})"
        expect.rejects(ValueError, partial(batches, ["a"], size), call)


def _in_batches(keys, size):
    return [keys[n : n + size] for n in range(0, len(keys), size)]


# --- Decoder --------------------------------------------------------------------------

TEXTS = ("ab", "hello there", "x", "one two three", "why?", "z z", "0", "??")
NEW = 10


def tiny(make=random_llama, seed=5):
    """A model that ends some of its texts early, and a tokenizer of bytes."""
    tokenizer = toy_tokenizer()
    ends = [2, 63, 64, 72, 121, 131, 204]
    model = make(vocab_size=len(tokenizer), seed=seed, eos_token_id=ends)
    return model, tokenizer


@functools.cache
def of_generate(make=random_llama, seed=5, new=NEW):
    """The new ids of each text, by generate, one text at a time."""
    model, tokenizer = tiny(make, seed)
    found = {}
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
        )
        found[text] = out[0, ids.shape[1] :].tolist()
    ends = [ids for ids in found.values() if len(ids) < new]
    assert 2 <= len(ends) < len(TEXTS), "the oracle needs texts that end early"
    return found


@pytest.fixture
def answered():
    """The first use of generate takes long: not on the learner's time."""
    for make in (random_llama, random_gpt2):
        of_generate(make)
    of_generate(seed=8)


def columns(texts=TEXTS, **more):
    """A batch as Ray hands it over."""
    keys = [f"k{n}" for n in range(len(texts))]
    made = {"key": numpy.array(keys, dtype=object)}
    return made | {"prompt": numpy.array(list(texts), dtype=object), **more}


def listed(column):
    """A column as a list of Python's own values."""
    rows = column.tolist() if hasattr(column, "tolist") else list(column)
    return [row.tolist() if hasattr(row, "tolist") else row for row in rows]


@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_each_row_gets_the_ids_that_generate_gives_it_alone(Decoder, answered, make):
    wanted = of_generate(make)
    decoder = Decoder(loader=partial(tiny, make), max_new_tokens=NEW)
    call = "Decoder(loader, 10)(batch of 8 prompts)"
    made = expect.returned(decoder(columns()), dict, call)
    assert "ids" in made, f"{call} should have a column ids, not only {list(made)}"
    for row in made["ids"]:
        assert isinstance(row, list), (
            f"{call}: each row of ids should be a list, not {type(row).__name__}"
        )
    _same_rows(listed(made["ids"]), [wanted[text] for text in TEXTS], call)


def _same_rows(got, wanted, call):
    assert len(got) == len(wanted), (
        f"{call}: the column ids has {len(got)} rows, the batch {len(wanted)}"
    )
    for n, (mine, right) in enumerate(zip(got, wanted, strict=True)):
        hint = ""
        if list(mine)[: len(right)] == right:
            hint = " It goes on after its end: cut each row behind its first EOS."
        elif list(mine) == right[:-1] and len(right) < NEW:
            hint = " The EOS itself belongs to the row."
        elif len(mine) > len(right) and list(mine)[-len(right) :] == right:
            hint = " The prompt, or its padding, does not belong to it."
        assert list(mine) == right, (
            f"{call}: the ids of row {n} should be {right}, not {list(mine)}.{hint}"
        )
        kinds = {type(token).__name__ for token in mine} - {"int"}
        assert not kinds, f"{call}: ids should be Python's int, not {kinds.pop()}"


def test_text_is_the_ids_without_special_tokens(Decoder, answered):
    _, tokenizer = tiny()
    for seed in (5, 8):  # of the latter, one text ends in a white space
        made = Decoder(loader=partial(tiny, seed=seed), max_new_tokens=NEW)(columns())
        assert "text" in made, f"there should be a column text, not only {list(made)}"
        for text, got in zip(TEXTS, listed(made["text"]), strict=True):
            ids = of_generate(seed=seed)[text]
            wanted = tokenizer.decode([one for one in ids if one > 2])
            hint = "Special tokens do not belong to a text." if "<" in str(got) else ""
            if str(got) == wanted.strip() != wanted:
                hint = "White space is a part of a text, too."
            expect.value(str(got), wanted, f"the text of {text!r}", hint)


def test_every_column_that_comes_in_goes_out(Decoder):
    decoder = Decoder(loader=tiny, max_new_tokens=2)
    batch = columns(("ab", "cd e"), label=numpy.array([7, 8]))
    made = decoder(batch)
    for name, wanted in (
        ("key", ["k0", "k1"]),
        ("prompt", ["ab", "cd e"]),
        ("label", [7, 8]),
    ):
        assert name in made, f"the column {name} came in, and is not in {list(made)}"
        expect.value(listed(made[name]), wanted, f"the column {name}")
    assert sorted(batch) == ["key", "label", "prompt"], (
        f"the batch that was given has the columns {list(batch)} now"
    )
    made = decoder(columns(("ab", "cd e"), key=numpy.array([30, 4])))
    expect.value(listed(made.get("key", [])), [30, 4], "the column key, of numbers")


def test_the_model_is_loaded_once_and_by_its_own_loader(Decoder, answered):
    loads = []

    def counting(seed):
        loads.append(seed)
        return tiny(seed=seed)

    one = Decoder(loader=partial(counting, 5), max_new_tokens=NEW)
    other = Decoder(loader=partial(counting, 8), max_new_tokens=NEW)
    assert sorted(loads) == [5, 8], (
        f"two Decoders called their loaders {len(loads)} times before they were used; "
        "each should once, when it is made"
    )
    hint = " The model belongs to the object, not to the class or the notebook."
    for decoder, seed in ((one, 5), (other, 8), (one, 5)):
        got = listed(decoder(columns(("one two three", "z z")))["ids"])
        wanted = [of_generate(seed=seed)[text] for text in ("one two three", "z z")]
        assert got == wanted, (
            f"of two Decoders with different loaders one gives {expect.show(got)}, and "
            f"with its own model it would be {expect.show(wanted)}.{hint}"
        )
    assert len(loads) == 2, "the loader is called again with each batch"


def test_pad_token_and_eos_may_be_the_same(Decoder, answered):
    def same():
        model, tokenizer = tiny()
        tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer

    got = listed(Decoder(loader=same, max_new_tokens=NEW)(columns())["ids"])
    call = "a Decoder whose pad token is the EOS"
    _same_rows(got, [of_generate()[text] for text in TEXTS], call)


def test_max_new_tokens_is_for_each_row_and_a_batch_may_have_one(Decoder, answered):
    decoder = Decoder(loader=tiny, max_new_tokens=3)
    got = listed(decoder(columns(("one two three",)))["ids"])
    wanted = [of_generate()["one two three"][:3]]
    expect.value(got, wanted, "the ids of a batch of one, with max_new_tokens=3")
    got = listed(Decoder(loader=tiny)(columns(("one two three",)))["ids"])
    wanted = [of_generate()["one two three"][:8]]
    expect.value(got, wanted, "the ids of a batch of one, without max_new_tokens")


def test_a_decoder_class_can_be_sent_to_another_process(Decoder):
    hint = "It should hold nothing of this notebook's model or tokenizer."
    try:
        size = len(cloudpickle.dumps(Decoder))
    except Exception as error:
        raise AssertionError(
            f"Decoder cannot be sent to another process: {error}. {hint}"
        ) from None
    assert size < 2_000_000, f"sent to a process, Decoder takes {size} bytes. {hint}"


# --- decode_file ----------------------------------------------------------------------


class Fake:
    """In the place of Decoder: answers a prompt with its characters, and can fail."""

    made, batches, fails_at, watch = [], [], None, None

    def __init__(self, **options):
        type(self).made.append(options)

    def __call__(self, batch):
        kind = type(self)
        kind.batches.append(listed(batch["prompt"]))
        if kind.watch:
            kind.watch()
        if len(kind.batches) == kind.fails_at:
            raise RuntimeError("the power fails")
        prompts = kind.batches[-1]
        ids = [[ord(character) for character in prompt] for prompt in prompts]
        texts = [prompt.upper() for prompt in prompts]
        return {**batch, "ids": ids, "text": texts}


def answer(key, prompt):
    ids = [ord(character) for character in prompt]
    return {"key": key, "prompt": prompt, "ids": ids, "text": prompt.upper()}


class Bench:
    """A folder with a source, and a decode_file that uses a Fake."""

    def __init__(self, function, folder, monkeypatch):
        self.function, self.folder = function, folder
        self.source, self.target = folder / "in.jsonl", folder / "out.jsonl"
        self.part = folder / "out.jsonl.part"
        self.fake = type("Fake", (Fake,), {"made": [], "batches": []})
        names = getattr(inspect.unwrap(function), "__globals__", {})
        monkeypatch.setitem(names, "Decoder", self.fake)

    def ask(self, *rows, text=None):
        lines = [json.dumps({"key": key, "prompt": prompt}) for key, prompt in rows]
        whole = "".join(f"{line}\n" for line in lines) if text is None else text
        self.source.write_bytes(whole.encode())

    def has(self, path, *rows, cut=b""):
        lines = [json.dumps(answer(*row)).encode() + b"\n" for row in rows]
        path.write_bytes(b"".join(lines) + cut)

    def run(self, fails_at=None, **options):
        """Runs it; the prompts that were decoded, in order."""
        self.fake.batches, self.fake.fails_at, self.fake.made = [], fails_at, []
        try:
            self.function(self.source, self.target, workers=0, **options)
        except RuntimeError as error:
            if not fails_at or "the power fails" not in str(error):
                raise
        else:
            assert not fails_at, (
                f"decode_file returns though the Decoder raises at batch {fails_at}: "
                "an error must reach the caller"
            )
        return [prompt for batch in self.fake.batches for prompt in batch]

    def rows(self, path, call):
        assert path.exists(), f"{call}: there is no {path.name}"
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b"", f"{call}: {path.name} ends in half a line"
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise AssertionError(
                f"{call}: not all lines of {path.name} are JSON: {lines[:3]}"
            ) from None

    def ends_with(self, rows, call):
        """The target is what it should be, and nothing else is left."""
        got, wanted = self.rows(self.target, call), [answer(*row) for row in rows]
        keys = [row.get("key") for row in got]
        right = [row["key"] for row in wanted]
        hint = ""
        if len(set(keys)) < len(keys):
            hint = " A key comes twice."
        elif sorted(map(str, keys)) == sorted(right):
            hint = " The order should be that of the source."
        assert keys == right, (
            f"{call}: {self.target.name} has the keys {expect.show(keys, 24)}, and "
            f"should have {expect.show(right, 24)}.{hint}"
        )
        for mine, one in zip(got, wanted, strict=True):
            assert mine == one, f"{call}: a line should be {one}, not {mine}"
        left = sorted(path.name for path in self.folder.iterdir())
        assert left == ["in.jsonl", "out.jsonl"], (
            f"{call}: at the end the folder has {left}; the part, and what else was "
            "only for the way, should be gone"
        )


@pytest.fixture
def bench(decode_file, tmp_path, monkeypatch):
    return Bench(decode_file, tmp_path, monkeypatch)


MANY = tuple((f"q{n}", "abcdefghij"[: 1 + n * 7 % 10] + str(n)) for n in range(20))
BY_LENGTH = sorted((prompt for _, prompt in MANY), key=len)


def test_a_file_worked_by_hand(decode_file, bench):
    rows = [("a", "one"), ("b", "three"), ("c", "to")]
    bench.ask(*rows)
    bench.has(bench.part, ("b", "three"), cut=b'{"key": "c", "pro')
    got = bench.run()
    call = "decode_file with the answer to b and half a line in the part"
    hint = ""
    if "three" in got:
        hint = " What is in the part is answered."
    elif "to" not in got:
        hint = " Half a line is no answer."
    assert sorted(got) == ["one", "to"], (
        f"{call}: the prompts of a and c should be decoded, not {got}.{hint}"
    )
    bench.ends_with(rows, call)


def test_target_is_in_the_order_of_source_whatever_its_lengths(decode_file, bench):
    bench.ask(*MANY)
    bench.run()
    bench.ends_with(MANY, "decode_file of 20 prompts")


def test_batches_are_by_length_and_full(decode_file, bench):
    bench.ask(*MANY)
    bench.run()
    wanted = _in_batches(BY_LENGTH, 8)
    sizes, right = [len(one) for one in bench.fake.batches], [8, 8, 4]
    assert sizes == right, f"20 prompts: batches of {right} rows, not of {sizes}"
    assert bench.fake.batches == wanted, (
        "20 prompts: the batches should be those of `batches`, shortest first; the "
        f"first is {bench.fake.batches[0]}, and should be {wanted[0]}"
    )


def test_one_decoder_gets_the_options_and_batches_of_columns(decode_file, bench):
    bench.ask(*MANY)
    bench.run(max_new_tokens=3, loader=tiny)
    call = "decode_file(..., workers=0, max_new_tokens=3, loader=tiny)"
    assert len(bench.fake.made) == 1, (
        f"{call} makes {len(bench.fake.made)} Decoders. One is enough for all batches."
    )
    wanted = {"max_new_tokens": 3, "loader": tiny}
    assert bench.fake.made[0] == wanted, (
        f"{call}: Decoder should get max_new_tokens and loader, not "
        f"{sorted(bench.fake.made[0])}"
    )


def test_a_break_loses_nothing_that_was_done_and_repeats_none(decode_file, bench):
    bench.ask(*MANY)
    bench.run(fails_at=2)
    call = "decode_file of 20 prompts, after an error in the second batch"
    hint = " Nothing has the final name before it is complete."
    assert not bench.target.exists(), f"{call}: there is {bench.target.name}.{hint}"
    done = [row["prompt"] for row in bench.rows(bench.part, call)]
    assert sorted(done) == sorted(BY_LENGTH[:8]), (
        f"{call}: out.jsonl.part should have the 8 answers of the first batch, not "
        f"{len(done)}"
    )
    again = bench.run()
    call = "decode_file once more, after an error in the second of three batches"
    twice = sorted(set(again) & set(done))
    assert not twice, f"{call}: {twice[:3]} were answered, and are decoded again"
    assert sorted(again) == sorted(BY_LENGTH[8:]), (
        f"{call}: {len(again)} prompts are decoded, and 12 are left"
    )
    bench.ends_with(MANY, call)


def test_answers_are_on_disk_before_the_next_batch(decode_file, bench):
    bench.ask(*MANY)
    seen = []
    there = bench.part.exists

    def watch():
        seen.append(bench.part.read_bytes().count(b"\n") if there() else 0)

    bench.fake.watch = staticmethod(watch)
    bench.run()
    hint = "Append each answer when it is there, and flush."
    assert seen == [0, 8, 16], (
        "before each of three batches out.jsonl.part should have 0, 8 and 16 lines, "
        f"not {seen}. {hint}"
    )


@pytest.mark.parametrize(
    "cut",
    [b'{"key": "q1', b"{", '{"key": "q1", "prompt": "é'.encode()[:-1]],
    ids=["in a word", "at the beginning", "in a character"],
)
def test_half_a_line_does_no_harm_however_often_it_breaks(decode_file, bench, cut):
    bench.ask(*MANY)
    bench.has(bench.part, MANY[0], MANY[3], cut=cut)
    call = f"decode_file with two answers and {cut!r} in the part"
    first = bench.run(fails_at=2)
    assert MANY[0][1] not in first, f"{call}: an answer in the part is decoded again"
    second = bench.run()
    hint = " Is the first answer that was appended still a line of its own?"
    assert len(second) == 10, (
        f"{call}, after 8 more and an error: 10 prompts are left, and {len(second)} "
        f"are decoded.{hint}"
    )
    bench.ends_with(MANY, call)


def test_nothing_is_loaded_when_all_is_answered(decode_file, bench):
    hint = "Make the Decoder only if something is left."
    for path in (bench.target, bench.part):
        bench.ask(*MANY)
        bench.has(path, *MANY)
        bench.run()
        call = f"decode_file with all answers in {path.name}"
        assert not bench.fake.made, f"{call}: a Decoder is made. {hint}"
        bench.ends_with(MANY, call)
        bench.target.unlink()


def test_an_answer_to_another_prompt_is_none(decode_file, bench):
    bench.ask(("a", "new"), ("b", "old"), ("d", "more"))
    bench.has(bench.target, ("a", "was this"), ("b", "old"), ("c", "gone"))
    got = bench.run()
    call = "decode_file where a has another prompt than in the target, and d is new"
    hint = " The key is known, but the answer is to another prompt."
    assert sorted(got) == ["more", "new"], (
        f"{call}: the prompts of a and d should be decoded, not {got}."
        + (hint if "new" not in got else "")
    )
    bench.ends_with([("a", "new"), ("b", "old"), ("d", "more")], call)


def test_a_newer_answer_in_the_part_counts(decode_file, bench):
    bench.ask(("a", "new"), ("b", "old"))
    bench.has(bench.target, ("a", "was this"), ("b", "old"))
    bench.has(bench.part, ("a", "new"))
    got = bench.run()
    call = "decode_file where the target has an old answer to a, the part a new one"
    assert got == [], f"{call}: nothing should be decoded, not {got}"
    bench.ends_with([("a", "new"), ("b", "old")], call)


def test_an_old_target_stays_whole_until_the_new_one_is_there(decode_file, bench):
    bench.has(bench.target, *MANY[:3])
    before = bench.target.read_bytes()
    bench.ask(*MANY)
    bench.run(fails_at=2)
    call = "decode_file with more prompts than the target has, after an error"
    now = bench.target.read_bytes() if bench.target.exists() else b""
    assert now == before, f"{call}: the old out.jsonl is not what it was"
    got = bench.run()
    assert len(got) == 9, f"{call}, again: 9 are left, and {len(got)} are decoded"
    bench.ends_with(MANY, call)


def test_the_final_name_is_given_at_once_and_before_the_part_goes(
    decode_file, bench, monkeypatch
):
    bench.ask(*MANY)
    seen = []

    def recorded(rename):
        def renamed(old, new, **options):
            if os.fspath(new) == os.fspath(bench.target):
                seen.append(len(bench.rows(bench.folder / os.fspath(old), "replace")))
                raise OSError("the power fails")
            return rename(old, new, **options)

        return renamed

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, recorded(getattr(os, name)))
        try:
            bench.run()
        except OSError as error:
            if "the power fails" not in str(error):
                raise
    call = "decode_file, when it gives the final name"
    assert seen, f"{call}: use os.replace. A file that is being written is not whole."
    assert seen[0] == 20, f"{call}: the file has {seen[0]} lines, and should have 20"
    call = "decode_file, after an error in os.replace"
    assert bench.part.exists(), f"{call}: the part is gone, and with it all answers"
    for path in bench.folder.iterdir():  # what broke may leave a file of any name
        if path not in (bench.source, bench.part):
            path.unlink()
    got = bench.run()
    assert got == [], f"{call}: all was answered, and {len(got)} are decoded again"
    bench.ends_with(MANY, call)


def test_a_key_that_comes_twice_is_an_error_before_anything_is_done(decode_file, bench):
    bench.ask(("a", "one"), ("b", "two"), ("a", "three"))
    call = "decode_file of a source with the key a twice"
    expect.rejects(ValueError, bench.run, call)
    assert not bench.fake.batches, f"{call}: prompts were decoded before"
    left = [path.name for path in bench.folder.iterdir()]
    assert left == ["in.jsonl"], f"{call}: there is {sorted(left)} now"


def test_any_text_may_stand_in_a_prompt(decode_file, bench):
    texts = ("line\u2028end", "next\x85line", "é ü 東京", "tab\tand\nline", 'a "word"')
    rows = [(f"k {n}", text) for n, text in enumerate(texts)]
    lines = [
        json.dumps({"key": key, "prompt": text}, ensure_ascii=False)
        for key, text in rows
    ]
    bench.ask(text="\n".join([*lines[:2], "", *lines[2:], "", ""]))
    with expect.hinting(
        "str.splitlines cuts at more than line ends, and an empty line is no JSON.",
        ValueError,
    ):
        bench.run()
    bench.ends_with(rows, "decode_file of prompts with line separators and accents")


def test_a_key_may_be_a_number(decode_file, bench):
    rows = [(3, "three"), (1, "one"), (20, "twenty")]
    bench.ask(*rows)
    bench.run()
    bench.ends_with(rows, "decode_file of the keys 3, 1 and 20")
    more = [*rows, (4, "four")]
    bench.ask(*more)
    got, call = bench.run(), "decode_file once more, with the key 4 besides 3, 1 and 20"
    hint = "The keys of the target are numbers, as those of the source."
    assert got == ["four"], f"{call}: four should be decoded, not {got}. {hint}"
    bench.ends_with(more, call)


def test_with_workers_it_is_ray_that_decodes(decode_file, bench, monkeypatch):
    asked = []

    def start(address=None):
        asked.append(address)
        raise ModuleNotFoundError(scale.MISSING)

    monkeypatch.setattr(scale, "start", start)
    bench.ask(*MANY)
    for given, wanted in (
        ({}, None),
        ({"workers": 3, "address": "there:6379"}, "there:6379"),
    ):
        call = f"decode_file(source, target, **{given})"
        run = partial(bench.function, bench.source, bench.target, **given)
        with expect.hinting(f"{call} should call scale.start", Exception):
            expect.rejects(ModuleNotFoundError, run, f"{call} without Ray", "Ray")
        assert asked[-1:] == [wanted], (
            f"{call} should call scale.start with the address {wanted!r}, not "
            f"{asked[-1:]}"
        )
        assert not bench.fake.made, f"{call} made a Decoder in this process"


def test_a_source_without_prompts_makes_an_empty_target(decode_file, bench):
    bench.ask(text="")
    bench.run()
    bench.ends_with([], "decode_file of an empty source")
    assert not bench.fake.made, "without prompts no Decoder is needed"


def test_the_source_is_read_only_and_names_may_be_strings(decode_file, bench):
    bench.ask(*MANY[:3])
    before = bench.source.read_bytes()
    got = bench.function(str(bench.source), str(bench.target), workers=0)
    assert got is None, f"decode_file should return None, not {expect.show(got)}"
    assert bench.source.read_bytes() == before, "decode_file changed its source"
    bench.ends_with(MANY[:3], "decode_file with names that are strings")


def test_a_file_gets_the_ids_that_generate_gives(decode_file, answered, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _write(source, TEXTS)
    decode_file(source, target, workers=0, loader=tiny, max_new_tokens=NEW)
    _is_of_generate(target, TEXTS, "decode_file with workers=0 and a tiny model")


def _write(source, texts):
    lines = [
        json.dumps({"key": f"k{n}", "prompt": text}) for n, text in enumerate(texts)
    ]
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _is_of_generate(target, texts, call):
    assert target.exists(), f"{call}: there is no {target.name}"
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    keys, wanted = [row["key"] for row in rows], [f"k{n}" for n in range(len(texts))]
    assert keys == wanted, (
        f"{call}: the target has the keys {expect.show(keys)}, and should have "
        f"{expect.show(wanted)}"
    )
    for text, row in zip(texts, rows, strict=True):
        expect.value(row["ids"], of_generate()[text], f"{call}: the ids of {text!r}")


# --- decode_file, with Ray: not there without it --------------------------------------

RAY_TEXTS = [f"{text} {n}" for n in range(3) for text in TEXTS]


def fragile(witness):
    """The tiny model, in a process that dies at its third call, once."""
    model, tokenizer = tiny()
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 3 and not os.path.exists(witness):
            open(witness, "w").close()
            os._exit(1)

    model.register_forward_pre_hook(hook)
    return model, tokenizer


def of_one_process():
    """(key, ids) of RAY_TEXTS as generate answers them, one at a time."""
    model, tokenizer = tiny()
    rows = []
    for n, text in enumerate(RAY_TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False
        )
        rows.append((f"k{n}", out[0, ids.shape[1] :].tolist()))
    return rows


if HAS_RAY:

    @pytest.mark.limit(280)  # Ray's first start takes its time, as each worker's does
    def test_two_workers_one_of_which_dies_give_what_one_process_gives(
        decode_file, tmp_path
    ):
        ray = scale.start()
        # What stands in this file is sent to workers with its code.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        witness = tmp_path / "died"
        _write(source, RAY_TEXTS)
        loader = partial(fragile, str(witness))
        decode_file(source, target, workers=2, loader=loader, max_new_tokens=NEW)
        call = "decode_file with two workers, one of which dies"
        assert witness.exists(), (
            f"{call}: no worker got as far as its third step; do they decode?"
        )
        assert target.exists(), f"{call}: there is no {target.name}"
        rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
        keys, wanted = [row["key"] for row in rows], of_one_process()
        right = [key for key, _ in wanted]
        assert keys == right, (
            f"{call}: the keys should be {expect.show(right, 24)}, not "
            f"{expect.show(keys, 24)}"
        )
        for row, (key, ids) in zip(rows, wanted, strict=True):
            expect.value(row["ids"], ids, f"{call}: the ids of {key}")


# --- split_columns and split_rows -----------------------------------------------------

HAND = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]


def blocks_of(got, number, call):
    expect.returned(got, (list, tuple), call)
    assert len(got) == number, f"{call} should give {number} blocks, not {len(got)}"
    return got


def has_shape(block, shape, call, hint):
    expect.returned(block, torch.Tensor, call)
    assert tuple(block.shape) == shape, (
        f"{call} should have shape {shape}, not {tuple(block.shape)}. {hint}"
    )


def test_columns_worked_by_hand(split_columns):
    call = "split_columns of [[1, 2, 3, 4], [5, 6, 7, 8]]"
    for shards, wanted in (
        (2, [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]),
        (4, [[[1], [5]], [[2], [6]], [[3], [7]], [[4], [8]]]),
        (1, [HAND]),
    ):
        got = blocks_of(
            split_columns(torch.tensor(HAND), shards), shards, f"{call}, {shards}"
        )
        for n, (one, right) in enumerate(zip(got, wanted, strict=True)):
            hint = ""
            if shards == 2 and tuple(one.shape) == (1, 4):
                hint = "Those are rows. "
            if shards == 2 and one.tolist() == [[1 + n, 3 + n], [5 + n, 7 + n]]:
                hint = "A block's columns are neighbours."
            has_shape(one, (2, 4 // shards), f"{call}, {shards}: block {n}", hint)
            expect.same(one, right, f"{call}, {shards}: block {n}", hint)


def test_rows_worked_by_hand(split_rows):
    call = "split_rows of [[1, 2, 3, 4], [5, 6, 7, 8]]"
    for shards, wanted in ((2, [HAND[:1], HAND[1:]]), (1, [HAND])):
        got = blocks_of(
            split_rows(torch.tensor(HAND), shards), shards, f"{call}, {shards}"
        )
        for n, (one, right) in enumerate(zip(got, wanted, strict=True)):
            hint = ""
            if shards == 2 and tuple(one.shape) == (2, 2):
                hint = "Those are columns. "
            has_shape(one, (2 // shards, 4), f"{call}, {shards}: block {n}", hint)
            expect.same(one, right, f"{call}, {shards}: block {n}", hint)
    six = torch.arange(12.0).view(6, 2)
    got = blocks_of(split_rows(six, 3), 3, "split_rows of 6 rows, 3")
    hint = "A block's rows are neighbours."
    expect.same(got[1], [[4, 5], [6, 7]], "split_rows of 6 rows, 3: block 1", hint)


def own_memory(got, matrix, call):
    hint = "A view keeps the whole matrix alive: clone it."
    for n, block in enumerate(got):
        held = block.untyped_storage().nbytes()
        theirs = matrix.untyped_storage().data_ptr()
        need = block.numel() * block.element_size()
        assert block.untyped_storage().data_ptr() != theirs, (
            f"{call}: block {n} shares the memory of the matrix. {hint}"
        )
        assert held == need, (
            f"{call}: block {n} needs {need} bytes and holds {held}. {hint}"
        )
        assert block.dtype == matrix.dtype, (
            f"{call}: the matrix is {matrix.dtype}, block {n} is {block.dtype}"
        )


def matrices():
    """As they come: of several dtypes, transposed, and part of a larger one."""
    wide = torch.arange(48.0).view(6, 8)
    return {
        "a 6 by 8 matrix": wide,
        "a matrix in bfloat16": wide.bfloat16(),
        "a transposed matrix": torch.arange(48.0).view(8, 6).T,
        "a part of a larger matrix": torch.arange(120.0).view(10, 12)[2:8, 3:11],
    }


@pytest.mark.parametrize("shards", [1, 2])
def test_blocks_of_columns_have_memory_of_their_own(split_columns, shards):
    for name, matrix in matrices().items():
        before, call = matrix.clone(), f"split_columns of {name}, {shards}"
        with expect.unchanged(matrix=matrix):
            got = blocks_of(split_columns(matrix, shards), shards, call)
        own_memory(got, matrix, call)
        whole = torch.cat(list(got), dim=1)
        expect.same(whole, before, f"{call}: all blocks side by side")


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_blocks_of_rows_have_memory_of_their_own(split_rows, shards):
    for name, matrix in matrices().items():
        before, call = matrix.clone(), f"split_rows of {name}, {shards}"
        with expect.unchanged(matrix=matrix):
            got = blocks_of(split_rows(matrix, shards), shards, call)
        own_memory(got, matrix, call)
        whole = torch.cat(list(got), dim=0)
        expect.same(whole, before, f"{call}: all blocks, one upon the other")


def test_columns_that_cannot_be_cut_are_an_error(split_columns):
    _cannot_be_cut(split_columns, "split_columns", torch.zeros(6, 4))


def test_rows_that_cannot_be_cut_are_an_error(split_rows):
    _cannot_be_cut(split_rows, "split_rows", torch.zeros(4, 6))


def _cannot_be_cut(function, name, matrix):
    for shards in (3, 8, 0, -2):
        call = f"{name} of a {matrix.shape[0]} by {matrix.shape[1]} matrix, {shards}"
        expect.rejects(ValueError, partial(function, matrix, shards), call)


# --- parallel_mlp ---------------------------------------------------------------------


def in_a_group(function, given, call):
    """function(*arguments, group) of each member of a group, each in a thread; what
    they return. `given`: the arguments of each."""
    store, number = dist.HashStore(), len(given)
    results, problems = [None] * number, [None] * number
    wait = datetime.timedelta(seconds=3)

    def member(rank):
        group = dist.ProcessGroupGloo(store, rank, number, wait)
        try:
            results[rank] = function(*given[rank], group)
        except BaseException as error:
            problems[rank] = error

    threads = [
        threading.Thread(target=member, args=(rank,), daemon=True)
        for rank in range(number)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(8)
        assert not thread.is_alive(), f"{call}: the processes wait for each other"
    found = [problem for problem in problems if problem is not None]
    if found:
        # The one that waited in vain tells less than the one that did not come.
        raise min(found, key=lambda error: "imed out" in str(error))
    return results


def cut(matrix, number, dim):
    return [piece.clone() for piece in matrix.chunk(number, dim)]


def shards_of(gate, up, down, number):
    return list(
        zip(cut(gate, number, 1), cut(up, number, 1), cut(down, number, 0), strict=True)
    )


def test_an_mlp_worked_by_hand(parallel_mlp):
    x, one = torch.ones(1, 1), torch.ones(1, 1)
    shards = [(0 * one, 5 * one, one), (2 * one, one, one)]
    call = "parallel_mlp of x = 1, in two processes"
    with expect.hinting(
        "Give all_reduce the group that you got: group=group.",
        ValueError,
        says="Default process group",
    ):
        got = in_a_group(parallel_mlp, [(x, own) for own in shards], call)
    part = [round(float(mine), 4) for mine in got if isinstance(mine, torch.Tensor)]
    hint = ""
    if part == [0.0, 1.7616]:
        hint = "Each returns its own summand: sum them over the group."
    elif part == [0.8808, 0.8808]:
        hint = "The summands are added up, not averaged."
    for rank, mine in enumerate(got):
        where = f"{call}: the result of process {rank}"
        expect.same(mine, [[1.761594]], where, hint, 1e-5)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_members_get_what_the_whole_mlp_gives(parallel_mlp, number, dtype):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    generator = torch.Generator().manual_seed(number)
    with torch.random.fork_rng(devices=[]):
        config = LlamaConfig(
            hidden_size=12, intermediate_size=32, num_attention_heads=2
        )
        mlp = LlamaMLP(config).to(dtype)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.normal_(generator=generator)
        x = torch.randn(2, 3, 12, generator=generator, dtype=dtype)
        wanted = mlp(x)
        matrices = [
            one.weight.detach().T for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        ]
    given = [(x.clone(), own) for own in shards_of(*matrices, number)]
    copies = [[x.clone(), *(one.clone() for one in own)] for x, own in given]
    call = f"parallel_mlp of x (2, 3, 12) in a group of {number}"
    got = in_a_group(parallel_mlp, given, call)
    gate, up, down = matrices
    of_up = functional.silu(x @ up) * (x @ gate)
    of_product = functional.silu((x @ gate) * (x @ up))
    of_gate = functional.silu(x @ gate) * (x @ up)
    summed = sum(of_gate.chunk(number, -1))
    for rank, mine in enumerate(got):
        where = f"{call}: the result of process {rank}"
        expect.tensor(mine, (2, 3, 12), where, dtype)
        hint = ""
        inner = (of_up, of_product)
        if any(torch.allclose(mine, one @ down, 1e-3) for one in inner):
            hint = "silu is for gate alone, and before the product."
        elif torch.allclose(mine, summed @ cut(down, number, 0)[rank], 1e-3):
            hint = (
                "Inner values of two processes have nothing in common: sum after down."
            )
        expect.same(mine, wanted, where, hint, 1e-3)
    for (x, own), before in zip(given, copies, strict=True):
        for now, was in zip([x, *own], before, strict=True):
            assert torch.equal(now, was), f"{call} changed x, or a shard, in place"


def test_one_exchange_as_large_as_x_is_enough(parallel_mlp, monkeypatch):
    sent, lock = [], threading.Lock()
    shapes = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    matrices = (torch.ones(4, 64), torch.ones(4, 64), torch.ones(64, 4))

    def counted(name, function):
        def counting(*arguments, **options):
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            tensors += [
                one for one in options.values() if isinstance(one, torch.Tensor)
            ]
            with lock:
                sent.append((name, sum(one.numel() for one in tensors)))
            return function(*arguments, **options)

        return counting

    for name in ("all_reduce", "all_gather", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, counted(name, getattr(dist, name)))
    call = "parallel_mlp of x (2, 3, 4) with 64 inner values, in two processes"
    given = [(shapes.clone(), own) for own in shards_of(*matrices, 2)]
    in_a_group(parallel_mlp, given, call)
    for name, numbers in sent:
        assert numbers <= 24, (
            f"{call}: {name} exchanges {numbers} numbers, and 24 are enough. The inner "
            "values need not be exchanged."
        )
    assert len(sent) <= 2, f"{call}: {len(sent) // 2} exchanges, where one is enough"
