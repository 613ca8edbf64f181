"""Wrong answers to lesson 18, and what the learner must be told of each."""

import json
import os
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch.nn import functional

from course.kit import scale
from course.making.answers import reference, wrong
from tiny_models import load

waste_of = reference("waste")
batches_of = reference("batches")
Decoder = reference("Decoder")
columns_of = reference("split_columns")
rows_of = reference("split_rows")
mlp_of = reference("parallel_mlp")

# --- waste ----------------------------------------------------------------------------

HAND = "test_waste_worked_by_hand"


@wrong("waste", HAND, "That is the share of tokens")
def share_of_tokens(lengths, batch_size):
    """What is used, not what is wasted."""
    return 1 - waste_of(lengths, batch_size)


@wrong("waste", HAND, "padded to its own longest")
def last_batch_filled_up(lengths, batch_size):
    """Empty rows fill the last batch."""
    full = -(-len(lengths) // batch_size) * batch_size if batch_size > 0 else 0
    if batch_size < 1:
        raise ValueError("batch_size")
    rows = [*lengths, *[0] * (full - len(lengths))]
    return waste_of(rows, batch_size)


@wrong("waste", HAND, "not 0.333333")
def padded_to_the_longest_of_all(lengths, batch_size):
    """One length for all batches."""
    positions = len(lengths) * max(lengths)
    return 1 - sum(lengths) / positions


@wrong("waste", HAND, "do not sort them")
def of_sorted_rows(lengths, batch_size):
    """Sorts first."""
    return waste_of(sorted(lengths), batch_size)


@wrong("waste", HAND, "should give 0.2, not 0.25")
def padding_for_a_token(lengths, batch_size):
    """Padding divided by tokens."""
    used = 1 - waste_of(lengths, batch_size)
    return (1 - used) / used


@wrong("waste", "test_without_a_position_nothing_is_wasted", "ZeroDivisionError")
def divides_by_zero(lengths, batch_size):
    """Nothing to divide by."""
    if batch_size < 1:
        raise ValueError("batch_size")
    groups = [lengths[n : n + batch_size] for n in range(0, len(lengths), batch_size)]
    positions = sum(len(group) * max(group) for group in groups)
    return (positions - sum(lengths)) / positions


@wrong("waste", "test_waste_needs_a_batch_size_of_one_or_more", "should raise")
def zero_means_one_batch(lengths, batch_size):
    """0 is taken as: all."""
    return waste_of(lengths, batch_size if batch_size > 0 else max(len(lengths), 1))


@wrong(
    "waste", "test_waste_is_padding_over_positions_for_random_lengths", "should give"
)
def mean_of_the_batches(lengths, batch_size):
    """Each batch counts as much as any other."""
    if batch_size < 1:
        raise ValueError("batch_size")
    groups = [lengths[n : n + batch_size] for n in range(0, len(lengths), batch_size)]
    shares = [waste_of(group, batch_size) for group in groups]
    return sum(shares) / len(shares) if shares else 0.0


@wrong("waste", "test_waste_is_padding_over_positions_for_random_lengths", "changed")
def sorts_in_place(lengths, batch_size):
    """Leaves the rows of the caller in another order."""
    share = waste_of(lengths, batch_size)
    lengths.sort()
    return share


# --- batches --------------------------------------------------------------------------

HAND = "test_batches_worked_by_hand"


@wrong("batches", HAND, "Return the keys")
def the_prompts_themselves(prompts, batch_size):
    """Prompts, sorted; nobody knows where they were."""
    return [
        [prompts[key] for key in group] for group in batches_of(prompts, batch_size)
    ]


@wrong("batches", HAND, "Shortest first")
def longest_first(prompts, batch_size):
    """The other way round."""
    keys = [key for group in batches_of(prompts, batch_size) for key in group][::-1]
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]


@wrong("batches", HAND, "should give [[1, 2, 3], [0]]")
def in_the_order_of_the_list(prompts, batch_size):
    """Not sorted at all."""
    if batch_size < 1:
        raise ValueError("batch_size")
    keys = list(range(len(prompts)))
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]


@wrong("batches", "test_prompts_of_equal_length_stay_in_their_order", "stably")
def by_length_and_text(prompts, batch_size):
    """Equal lengths are sorted by their text."""
    if batch_size < 1:
        raise ValueError("batch_size")
    keys = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), prompts[n]))
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]


@wrong("batches", "test_prompts_of_equal_length_stay_in_their_order", "stably")
def equal_ones_backwards(prompts, batch_size):
    """Sorted backwards and turned: equal ones turn, too."""
    if batch_size < 1:
        raise ValueError("batch_size")
    keys = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))[::-1]
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]


@wrong("batches", "test_equal_prompts_have_keys_of_their_own", "list.index")
def found_by_index(prompts, batch_size):
    """Sorts prompts, and looks for where they were."""
    if batch_size < 1:
        raise ValueError("batch_size")
    keys = [prompts.index(prompt) for prompt in sorted(prompts, key=len)]
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)]


@wrong("batches", "test_every_key_is_in_one_batch_and_lengths_never_fall", "once")
def drops_the_last(prompts, batch_size):
    """Only full batches."""
    groups = batches_of(prompts, batch_size)
    return [group for group in groups if len(group) == batch_size]


@wrong(
    "batches",
    "test_no_prompts_make_no_batch_and_a_size_of_zero_is_an_error",
    "batches([], 3) should give []",
)
def an_empty_batch(prompts, batch_size):
    """One batch without rows."""
    return batches_of(prompts, batch_size) or [[]]


@wrong(
    "batches",
    "test_no_prompts_make_no_batch_and_a_size_of_zero_is_an_error",
    "should raise ValueError",
)
def a_negative_size_gives_nothing(prompts, batch_size):
    """range with a negative step is empty."""
    keys = [key for group in batches_of(prompts, 1) for key in group]
    return [keys[n : n + batch_size] for n in range(0, len(keys), batch_size or -1)]


@wrong("batches", "test_every_key_is_in_one_batch_and_lengths_never_fall", "changed")
def sorts_the_prompts_of_the_caller(prompts, batch_size):
    """list.sort in place."""
    groups = batches_of(prompts, batch_size)
    prompts.sort(key=len)
    return groups


# --- Decoder --------------------------------------------------------------------------

ROWS = "test_each_row_gets_the_ids_that_generate_gives_it_alone"
KEPT = {}


@wrong("Decoder", ROWS, "cut each row behind its first EOS")
class Padded(Decoder):
    """Rows as long as the longest of the batch."""

    def __call__(self, batch):
        made = super().__call__(batch)
        wide = max(map(len, made["ids"]))
        return {**made, "ids": [row + [0] * (wide - len(row)) for row in made["ids"]]}


@wrong("Decoder", ROWS, "The EOS itself belongs to the row")
class WithoutEos(Decoder):
    """Cut before the EOS."""

    def __call__(self, batch):
        made = super().__call__(batch)
        ends = (2, 63, 64, 72, 121, 131, 204)
        rows = [row[:-1] if row[-1] in ends else row for row in made["ids"]]
        return {**made, "ids": rows}


@wrong("Decoder", ROWS, "The prompt, or its padding")
class WithPrompt(Decoder):
    """All of what the model has read and written."""

    def __call__(self, batch):
        made = super().__call__(batch)
        ids = self.tokenizer(list(batch["prompt"]), padding=True).input_ids
        rows = [a + b for a, b in zip(ids, made["ids"], strict=True)]
        return {**made, "ids": rows}


@wrong("Decoder", ROWS, "the ids of row")
class PaddedOnTheRight(Decoder):
    """New ids follow padding."""

    def __init__(self, loader=load, max_new_tokens=8):
        super().__init__(loader, max_new_tokens)
        self.tokenizer.padding_side = "right"


@wrong("Decoder", "test_text_is_the_ids_without_special_tokens", "Special tokens")
class SpecialsInTheText(Decoder):
    """decode as it comes."""

    def __call__(self, batch):
        made = super().__call__(batch)
        return {**made, "text": [self.tokenizer.decode(row) for row in made["ids"]]}


@wrong("Decoder", "test_every_column_that_comes_in_goes_out", "the column key came in")
class WithoutKey(Decoder):
    """What comes out has lost what it belongs to."""

    def __call__(self, batch):
        made = super().__call__(batch)
        return {name: made[name] for name in ("prompt", "ids", "text")}


@wrong("Decoder", "test_every_column_that_comes_in_goes_out", "label")
class KeyAndPromptAlone(Decoder):
    """Other columns are forgotten."""

    def __call__(self, batch):
        made = super().__call__(batch)
        return {name: made[name] for name in ("key", "prompt", "ids", "text")}


@wrong("Decoder", "test_every_column_that_comes_in_goes_out", "was given has")
class IntoTheBatch(Decoder):
    """Writes into what it was given."""

    def __call__(self, batch):
        batch.update(super().__call__(batch))
        return dict(batch)


@wrong("Decoder", "test_every_column_that_comes_in_goes_out", "of numbers")
class KeysAsTexts(Decoder):
    """A key that is a number becomes a text."""

    def __call__(self, batch):
        made = super().__call__(batch)
        return {**made, "key": [str(key) for key in batch["key"]]}


@wrong("Decoder", "test_text_is_the_ids_without_special_tokens", "White space")
class StripsTheText(Decoder):
    """Makes texts neat."""

    def __call__(self, batch):
        made = super().__call__(batch)
        return {**made, "text": [text.strip() for text in made["text"]]}


@wrong(
    "Decoder", "test_the_model_is_loaded_once_and_by_its_own_loader", "to the object"
)
class OneForTheClass(Decoder):
    """The class keeps the first model for all."""

    def __init__(self, loader=load, max_new_tokens=8):
        made = loader()
        self.model, self.tokenizer = KEPT.setdefault("first", made)
        self.max_new_tokens = max_new_tokens


@wrong("Decoder", "test_the_model_is_loaded_once_and_by_its_own_loader", "called their")
class LoadsForEachBatch(Decoder):
    """Loads where it decodes."""

    def __init__(self, loader=load, max_new_tokens=8):
        self.loader, self.max_new_tokens = loader, max_new_tokens

    def __call__(self, batch):
        self.model, self.tokenizer = self.loader()
        return super().__call__(batch)


@wrong("Decoder", "test_pad_token_and_eos_may_be_the_same", "The EOS itself")
class CutAtPadding(Decoder):
    """What is padding goes, and with it an EOS of the same id."""

    def __call__(self, batch):
        made = super().__call__(batch)
        pad = self.tokenizer.pad_token_id
        rows = [[one for one in row if one != pad] for row in made["ids"]]
        return {**made, "ids": rows}


@wrong(
    "Decoder",
    "test_max_new_tokens_is_for_each_row_and_a_batch_may_have_one",
    "max_new_tokens=3",
)
class ItsOwnNumber(Decoder):
    """Does not look at max_new_tokens."""

    def __init__(self, loader=load, max_new_tokens=8):
        super().__init__(loader, 10)


BALLAST = torch.arange(1_000_000.0)


@wrong("Decoder", "test_a_decoder_class_can_be_sent_to_another_process", "takes")
class WithTheNotebooksModel(Decoder):
    """Refers to a large thing of the notebook."""

    def __call__(self, batch):
        BALLAST.sum()
        return super().__call__(batch)


# --- decode_file ----------------------------------------------------------------------


def file_answer(
    read=None, whole_lines=True, look=("target", "part"), same_prompt=True, **ways
):
    """decode_file with one thing done in another way."""

    def decode_file(source, target, address=None, workers=2, **options):
        part = Path(f"{target}.part")
        rows = read(source) if read else read_rows(source)
        asked = {row["key"]: row for row in rows}
        if len(asked) < len(rows) and not ways.get("twice"):
            raise ValueError("a key comes twice")
        answered = {}
        kind = ways.get("key", lambda key: key)
        for name in look:
            path = {"target": Path(target), "part": part}[name]
            for line in path.read_bytes().split(b"\n") if path.exists() else ():
                try:
                    row = json.loads(line)
                    answered[kind(row["key"])] = row
                except ValueError:
                    pass
        if whole_lines and part.exists():
            data = part.read_bytes()
            os.truncate(part, data.rfind(b"\n") + 1)
        left = [
            row
            for row in asked.values()
            if row["key"] not in answered
            or (same_prompt and answered[row["key"]]["prompt"] != row["prompt"])
        ]
        order = batches_of([row["prompt"] for row in left], ways.get("size", 8))
        if ways.get("unsorted"):
            order = [
                list(range(n, min(n + 8, len(left)))) for n in range(0, len(left), 8)
            ]
        if ways.get("write_first"):
            Path(target).touch()
        decoder = None
        if ways.get("eager"):
            decoder = Decoder(**options)  # noqa: F841
        late = []
        for group in order:
            if decoder is None or ways.get("each"):
                decoder = Decoder(**({} if ways.get("plain") else options))
            batch = {name: [left[n][name] for n in group] for name in ("key", "prompt")}
            made = decoder(batch)
            for values in zip(*made.values(), strict=True):
                row = dict(zip(made, values, strict=True))
                answered[row["key"]] = row
                late.append(json.dumps(row) + "\n")
            if not ways.get("late"):
                with part.open("a", encoding="utf-8") as file:
                    file.write("".join(late))
                late = []
        (ways.get("finish") or finish)(target, part, asked, answered)

    return decode_file


def read_rows(source):
    lines = Path(source).read_bytes().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def finish(target, part, asked, answered):
    new = Path(f"{target}.new")
    new.write_text("".join(json.dumps(answered[key]) + "\n" for key in asked))
    os.replace(new, target)
    part.unlink(missing_ok=True)


def planted(name, why, by, says, **ways):
    function = file_answer(**ways)
    function.__name__, function.__doc__ = name, why
    return wrong("decode_file", by, says)(function)


def in_another_order(target, part, asked, answered):
    finish(target, part, answered, answered)


def writes_the_target(target, part, asked, answered):
    with open(target, "w") as file:
        for key in asked:
            file.write(json.dumps(answered[key]) + "\n")
    part.unlink(missing_ok=True)


def part_goes_first(target, part, asked, answered):
    part.unlink(missing_ok=True)
    finish(target, part, asked, answered)


def part_stays(target, part, asked, answered):
    new = Path(f"{target}.new")
    new.write_text("".join(json.dumps(answered[key]) + "\n" for key in asked))
    os.replace(new, target)


HERE = file_answer()
FILE = "test_a_file_worked_by_hand"
BREAK = "test_a_break_loses_nothing_that_was_done_and_repeats_none"
AT_ONCE = "test_the_final_name_is_given_at_once_and_before_the_part_goes"

from_the_start = planted(
    *("from_the_start", "Reads no part.", FILE, "What is in the part is answered"),
    look=("target",),
)
order_of_the_answers = planted(
    "order_of_the_answers",
    "The order in which answers came.",
    "test_target_is_in_the_order_of_source_whatever_its_lengths",
    "The order should be that of the source",
    finish=in_another_order,
)
in_order_of_the_file = planted(
    "in_order_of_the_file",
    "Batches as the rows come.",
    *("test_batches_are_by_length_and_full", "shortest first"),
    unsorted=True,
)
batches_of_four = planted(
    "batches_of_four",
    "A batch size of its own.",
    *("test_batches_are_by_length_and_full", "batches of [8, 8, 4] rows"),
    size=4,
)
a_decoder_for_each_batch = planted(
    "a_decoder_for_each_batch",
    "Loads a model for each batch.",
    *("test_one_decoder_gets_the_options_and_batches_of_columns", "One is enough"),
    each=True,
)
options_are_lost = planted(
    "options_are_lost",
    "Decoder() with its own defaults.",
    *("test_one_decoder_gets_the_options_and_batches_of_columns", "should get"),
    plain=True,
)
name_given_before = planted(
    *("name_given_before", "The target is made first.", BREAK, "final name"),
    write_first=True,
)
written_at_the_end = planted(
    *("written_at_the_end", "Keeps all answers in memory.", BREAK, "there is no"),
    late=True,
)
appended_to_half_a_line = planted(
    "appended_to_half_a_line",
    "The half line stays, and the next answer is written behind it.",
    "test_half_a_line_does_no_harm_however_often_it_breaks",
    "still a line of its own",
    whole_lines=False,
)
loads_before_it_looks = planted(
    "loads_before_it_looks",
    "A Decoder is made in any case.",
    *("test_nothing_is_loaded_when_all_is_answered", "only if something is left"),
    eager=True,
)
believes_the_key = planted(
    "believes_the_key",
    "A key that is known is answered, whatever its prompt is now.",
    *("test_an_answer_to_another_prompt_is_none", "to another prompt"),
    same_prompt=False,
)
does_not_see_the_target = planted(
    "does_not_see_the_target",
    "A file that is done is done again.",
    *("test_nothing_is_loaded_when_all_is_answered", "out.jsonl: a Decoder is made"),
    look=("part",),
)
old_answers_win = planted(
    "old_answers_win",
    "The target is read after the part.",
    *("test_a_newer_answer_in_the_part_counts", "nothing should be decoded"),
    look=("part", "target"),
)
straight_into_the_target = planted(
    *("straight_into_the_target", "No other name.", AT_ONCE, "use os.replace"),
    finish=writes_the_target,
)
removes_the_part_first = planted(
    *("removes_the_part_first", "unlink, then replace.", AT_ONCE, "the part is gone"),
    finish=part_goes_first,
)
leaves_the_part = planted(
    *("leaves_the_part", "Nobody clears up.", FILE, "should be gone"),
    finish=part_stays,
)
last_of_two_keys = planted(
    "last_of_two_keys",
    "A dict keeps the last.",
    "test_a_key_that_comes_twice_is_an_error_before_anything_is_done",
    "should raise ValueError",
    twice=True,
)


def lines_of_text(source):
    text = Path(source).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


cuts_at_any_separator = planted(
    "cuts_at_any_separator",
    "str.splitlines cuts at U+2028, too.",
    *("test_any_text_may_stand_in_a_prompt", "cuts at more than line ends"),
    read=lines_of_text,
)


def text_of_part(source):
    part = Path(str(source).replace("in.", "out.") + ".part")
    if part.exists():
        part.read_text(encoding="utf-8")
    return read_rows(source)


half_a_character = planted(
    "half_a_character",
    "Decodes the part before it looks for whole lines.",
    "test_half_a_line_does_no_harm_however_often_it_breaks",
    "UnicodeDecodeError",
    read=text_of_part,
)


keys_become_texts = planted(
    "keys_become_texts",
    "Looks for the answer to a number as if it were a text.",
    "test_a_key_may_be_a_number",
    "are numbers",
    key=str,
)


@wrong("decode_file", "test_with_workers_it_is_ray_that_decodes", "should raise")
def never_by_workers(source, target, address=None, workers=2, **options):
    """workers is ignored."""
    return HERE(source, target, address, 0, **options)


@wrong("decode_file", "test_with_workers_it_is_ray_that_decodes", "'there:6379'")
def on_this_machine_alone(source, target, address=None, workers=2, **options):
    """address is ignored."""
    if workers:
        scale.start()
    return HERE(source, target, None, 0, **options)


@wrong("decode_file", "test_a_key_may_be_a_number", "TypeError")
def keys_of_numpy(source, target, address=None, workers=2, **options):
    """Keys come back as numpy's, which are no JSON."""
    rows = read_rows(source)
    for row in rows:
        key = numpy.array([row["key"]])[0]
        json.dumps(key)
    return HERE(source, target, address, workers, **options)


if scale.is_installed():

    @wrong(
        "decode_file",
        "test_two_workers_one_of_which_dies_give_what_one_process_gives",
        "the keys",
    )
    def takes_the_order_of_arrival(source, target, address=None, workers=2, **options):
        """Believes that rows come back as they went."""
        rows = read_rows(source)
        ray = scale.start(address)
        data = ray.data.from_items(sorted(rows, key=lambda row: len(row["prompt"])))
        made = data.map_batches(
            Decoder,
            fn_constructor_kwargs=options,
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.5,
        )
        lines = [json.dumps(row) + "\n" for row in made.iter_rows()]
        Path(target).write_text("".join(lines))


# --- split_columns and split_rows -----------------------------------------------------

HAND = "test_columns_worked_by_hand"
OWN = "test_blocks_of_columns_have_memory_of_their_own"


@wrong("split_columns", HAND, "Those are rows")
def cuts_rows(matrix, shards):
    """dim=0."""
    return [block.clone() for block in matrix.chunk(shards, dim=0)]


@wrong("split_columns", HAND, "neighbours")
def every_other_column(matrix, shards):
    """Dealt out in turn."""
    return [matrix[:, n::shards].clone() for n in range(shards)]


@wrong("split_columns", OWN, "A view keeps the whole matrix alive")
def views_of_columns(matrix, shards):
    """chunk alone."""
    return list(matrix.chunk(shards, dim=1))


@wrong("split_columns", OWN, "A view keeps the whole matrix alive")
def contiguous_columns(matrix, shards):
    """contiguous copies only what is not contiguous."""
    return [block.contiguous() for block in matrix.chunk(shards, dim=1)]


@wrong("split_columns", "test_columns_that_cannot_be_cut_are_an_error", "should raise")
def unequal_columns(matrix, shards):
    """chunk makes the last one narrower."""
    return [block.clone() for block in matrix.chunk(max(shards, 1), dim=1)]


@wrong("split_columns", OWN, "the matrix is torch.bfloat16")
def columns_as_float32(matrix, shards):
    """Another dtype on the way."""
    return [block.float() for block in columns_of(matrix, shards)]


@wrong("split_columns", HAND, "should give 2 blocks")
def columns_of_that_width(matrix, shards):
    """split takes a width, not a number."""
    return [block.clone() for block in matrix.split(1, dim=1)]


HAND = "test_rows_worked_by_hand"
OWN = "test_blocks_of_rows_have_memory_of_their_own"


@wrong("split_rows", HAND, "Those are columns")
def cuts_columns(matrix, shards):
    """dim=1."""
    return [block.clone() for block in matrix.chunk(shards, dim=1)]


@wrong("split_rows", HAND, "neighbours")
def every_other_row(matrix, shards):
    """Dealt out in turn."""
    return [matrix[n::shards].clone() for n in range(shards)]


@wrong("split_rows", OWN, "A view keeps the whole matrix alive")
def views_of_rows(matrix, shards):
    """chunk alone."""
    return list(matrix.chunk(shards, dim=0))


@wrong("split_rows", OWN, "A view keeps the whole matrix alive")
def contiguous_rows(matrix, shards):
    """Rows are contiguous already: nothing is copied."""
    return [block.contiguous() for block in matrix.chunk(shards, dim=0)]


@wrong("split_rows", "test_rows_that_cannot_be_cut_are_an_error", "should raise")
def unequal_rows(matrix, shards):
    """tensor_split makes unequal ones."""
    return [block.clone() for block in matrix.tensor_split(max(shards, 1))]


@wrong("split_rows", "test_rows_that_cannot_be_cut_are_an_error", "should raise")
def drops_what_is_left(matrix, shards):
    """Whole division, and the rest is lost."""
    size = len(matrix) // max(shards, 1)
    return [matrix[n * size : (n + 1) * size].clone() for n in range(max(shards, 1))]


# --- parallel_mlp ---------------------------------------------------------------------

HAND = "test_an_mlp_worked_by_hand"
WHOLE = "test_all_members_get_what_the_whole_mlp_gives"


def summand_of(x, shards):
    gate, up, down = shards
    return (functional.silu(x @ gate) * (x @ up)) @ down


@wrong("parallel_mlp", HAND, "sum them over the group")
def its_part_alone(x, shards, group):
    """No exchange."""
    return summand_of(x, shards)


@wrong("parallel_mlp", HAND, "not averaged")
def averaged(x, shards, group):
    """As gradients are."""
    return mlp_of(x, shards, group) / dist.get_world_size(group)


@wrong("parallel_mlp", HAND, "Give all_reduce the group that you got")
def the_group_of_all(x, shards, group):
    """Does not say which group."""
    summand = summand_of(x, shards)
    dist.all_reduce(summand)
    return summand


@wrong("parallel_mlp", HAND, "returned None")
def what_all_reduce_returns(x, shards, group):
    """all_reduce works in place, and returns nothing."""
    return dist.all_reduce(summand_of(x, shards), group=group)


@wrong("parallel_mlp", WHOLE, "silu is for gate alone")
def silu_of_the_product(x, shards, group):
    """silu after the product."""
    gate, up, down = shards
    summand = functional.silu((x @ gate) * (x @ up)) @ down
    dist.all_reduce(summand, group=group)
    return summand


@wrong("parallel_mlp", WHOLE, "silu is for gate alone")
def gate_and_up_changed(x, shards, group):
    """up goes through silu."""
    gate, up, down = shards
    return mlp_of(x, (up, gate, down), group)


@wrong("parallel_mlp", WHOLE, "sum after down")
def sums_the_inner_values(x, shards, group):
    """Exchanges before down."""
    gate, up, down = shards
    inner = functional.silu(x @ gate) * (x @ up)
    dist.all_reduce(inner, group=group)
    return inner @ down


@wrong("parallel_mlp", WHOLE, "changed x, or a shard, in place")
def writes_into_x(x, shards, group):
    """The result takes x's place."""
    x.copy_(summand_of(x, shards))
    dist.all_reduce(x, group=group)
    return x


@wrong(
    "parallel_mlp",
    "test_one_exchange_as_large_as_x_is_enough",
    "The inner values need not be exchanged",
)
def gathers_the_inner_values(x, shards, group):
    """Right, with far more on the wire."""
    gate, up, down = shards
    inner = functional.silu(x @ gate) * (x @ up)
    number = dist.get_world_size(group)
    every = [torch.empty_like(inner) for _ in range(number)]
    dist.all_gather(every, inner.contiguous(), group=group)
    rows = [torch.empty_like(down) for _ in range(number)]
    dist.all_gather(rows, down.contiguous(), group=group)
    return torch.cat(every, -1) @ torch.cat(rows)


@wrong("parallel_mlp", WHOLE, "should be torch.float64")
def always_float32(x, shards, group):
    """Sums in float32 whatever x is."""
    return mlp_of(x.float(), [one.float() for one in shards], group)
