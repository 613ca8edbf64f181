"""Right answers to lesson 18 in another style: each must pass all checks."""

import collections
import json
import os
import tempfile
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch.nn import functional

from course.kit import scale
from course.making.answers import reference, right
from tiny_models import load

batches = reference("batches")
Ours = reference("Decoder")
Decoder = Ours
decode_batch = reference("decode_batch")

# --- waste ----------------------------------------------------------------------------


@right("waste")
def with_an_iterator(lengths, batch_size):
    """Takes rows from an iterator, and counts padding alone."""
    if batch_size <= 0:
        raise ValueError(batch_size)
    rows, padding, tokens = iter(lengths), 0, 0
    while group := list(islice(rows, batch_size)):
        padding += sum(max(group) - one for one in group)
        tokens += sum(group)
    return padding / (padding + tokens) if padding + tokens else 0.0


@right("waste")
def with_fractions(lengths, batch_size):
    """Exact, and a float at the end."""
    if batch_size < 1:
        raise ValueError("at least one row")
    wide = [
        max(lengths[n - n % batch_size : n - n % batch_size + batch_size])
        for n in range(len(lengths))
    ]
    return float(1 - Fraction(sum(lengths), sum(wide))) if any(wide) else 0.0


@right("waste")
def with_torch_padding(lengths, batch_size):
    """Pads the lengths to whole batches, and looks at the real rows only."""
    if batch_size < 1:
        raise ValueError("at least one row")
    if not sum(lengths):
        return 0.0
    all_rows = torch.tensor(lengths)
    positions = sum(len(part) * int(part.max()) for part in all_rows.split(batch_size))
    return (positions - sum(lengths)) / positions


# --- batches --------------------------------------------------------------------------


@right("batches")
def with_enumerate(prompts, batch_size):
    """Sorts pairs of length and key."""
    if batch_size < 1:
        raise ValueError("at least one row")
    pairs = sorted((len(prompt), key) for key, prompt in enumerate(prompts))
    made = []
    for n, (_, key) in enumerate(pairs):
        if n % batch_size == 0:
            made.append([])
        made[-1].append(key)
    return made


@right("batches")
def by_counting(prompts, batch_size):
    """A list of keys for each length."""
    if batch_size < 1:
        raise ValueError("at least one row")
    of_length = collections.defaultdict(list)
    for key, prompt in enumerate(prompts):
        of_length[len(prompt)].append(key)
    keys = iter([key for length in sorted(of_length) for key in of_length[length]])
    return list(iter(lambda: list(islice(keys, batch_size)), []))


@right("batches")
def with_numpy(prompts, batch_size):
    """A stable argsort."""
    if batch_size < 1:
        raise ValueError("at least one row")
    order = numpy.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
    return [order[n : n + batch_size] for n in range(0, len(order), batch_size)]


# --- Decoder --------------------------------------------------------------------------


@right("Decoder")
class ByGenerate:
    """transformers' generate does the work; columns are numpy arrays."""

    def __init__(self, loader=load, max_new_tokens=8):
        self.model, self.tokenizer = loader()
        self.new = max_new_tokens

    def __call__(self, batch):
        texts = [str(text) for text in batch["prompt"]]
        made = self.tokenizer(texts, padding="longest", return_tensors="pt")
        pad = self.tokenizer.pad_token_id
        out = self.model.generate(
            **{name: made[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=self.new,
            do_sample=False,
            pad_token_id=pad,
        )
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        ids = numpy.empty(len(texts), dtype=object)
        for n, row in enumerate(out[:, made["input_ids"].shape[1] :].tolist()):
            stop = next((i for i, one in enumerate(row) if one in ends), len(row))
            ids[n] = row[: stop + 1]
        decode = self.tokenizer.decode
        text = numpy.array([decode(row, skip_special_tokens=True) for row in ids])
        return dict(batch) | {"ids": ids, "text": text}


@right("Decoder")
class RowByRow:
    """Each row alone: no padding at all."""

    def __init__(self, loader=load, max_new_tokens=8):
        self.loaded, self.new = loader(), max_new_tokens

    def __call__(self, batch):
        model, tokenizer = self.loaded
        known = model.generation_config.eos_token_id
        ends, made = known if isinstance(known, list) else [known], []
        for prompt in batch["prompt"]:
            ids = tokenizer(str(prompt), return_tensors="pt").input_ids
            pick = lambda logits: logits.argmax(-1, keepdim=True)  # noqa: E731
            whole = decode_batch(
                model, ids, torch.ones_like(ids), self.new, pick, ends, 0
            )
            made.append(whole[0, ids.shape[1] :].tolist())
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        return {**batch, "ids": made, "text": texts}


@right("Decoder")
class Inherited(Ours):
    """Lengths instead of a cut; keyword arguments only."""

    def __init__(self, *, loader=load, max_new_tokens=8):
        super().__init__(loader=loader, max_new_tokens=max_new_tokens)

    def __call__(self, batch):
        made = super().__call__({"prompt": list(batch["prompt"])})
        out = {name: values for name, values in batch.items()}
        out.update(text=tuple(made["text"]), ids=tuple(made["ids"]))
        return out


# --- decode_file ----------------------------------------------------------------------


def rows_of(left, address, workers, options):
    """The answers to `left`, as they come."""
    order = [left[n] for one in batches([x["prompt"] for x in left], 8) for n in one]
    if workers:
        ray = scale.start(address)
        data = ray.data.from_items(order, override_num_blocks=-(-len(order) // 8))
        data = data.map_batches(
            Decoder,
            fn_constructor_kwargs=options,
            batch_size=8,
            concurrency=workers,
            num_cpus=0.25,
        )
        for made in data.iter_batches(batch_size=None):
            yield from unzipped(made)
        return
    decoder = Decoder(**options)
    for n in range(0, len(order), 8):
        group = order[n : n + 8]
        columns = {name: [row[name] for row in group] for name in ("key", "prompt")}
        yield from unzipped(decoder(columns))


def unzipped(columns):
    names = ("key", "prompt", "ids", "text")
    for key, prompt, ids, text in zip(*(columns[x] for x in names), strict=True):
        ids = [int(one) for one in ids]
        yield {"key": key, "prompt": str(prompt), "ids": ids, "text": str(text)}


def parsed(path):
    """The lines of a file that are JSON; others are left out."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


@right("decode_file")
def a_line_end_before_each(source, target, address=None, workers=2, **options):
    """Each answer in the part begins with a line end; what is no JSON is left out."""
    prompts = {}
    for row in parsed(source):
        if row["key"] in prompts:
            raise ValueError(f"{row['key']} comes twice")
        prompts[row["key"]] = row["prompt"]
    part, known = f"{target}.part", {}
    for path in (target, part):
        for row in parsed(path):
            if prompts.get(row["key"]) == row["prompt"]:
                known[row["key"]] = row
    left = [
        {"key": key, "prompt": prompt}
        for key, prompt in prompts.items()
        if key not in known
    ]
    if left:
        with open(part, "ab", buffering=0) as file:
            if file.tell():
                file.write(b"\n")
            for row in rows_of(left, address, workers, options):
                known[row["key"]] = row
                file.write(json.dumps(row).encode() + b"\n")

    with tempfile.NamedTemporaryFile("w", dir=Path(target).parent, delete=False) as new:
        for key in prompts:
            print(json.dumps(known[key]), file=new)
    os.replace(new.name, target)
    if os.path.exists(part):
        os.remove(part)


@right("decode_file")
def rewrites_the_part(source, target, address=None, workers=2, **options):
    """The part is written anew, from what was read, when it begins."""
    lines = Path(source).read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    keys = [row["key"] for row in rows]
    if len(set(keys)) != len(keys):
        raise ValueError("keys must differ")
    source_prompts = dict(zip(keys, [row["prompt"] for row in rows], strict=True))
    part = Path(target).with_name(Path(target).name + ".part")
    done = {}
    for path in (Path(target), part):
        for row in parsed(path):
            if source_prompts.get(row["key"]) == row["prompt"]:
                done[row["key"]] = row
    left = [row for row in rows if row["key"] not in done]
    if left:
        fresh = Path(f"{part}.fresh")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in done.values()))
        fresh.replace(part)
        with part.open("a") as file:
            for row in rows_of(left, address, workers, options):
                done[row["key"]] = row
                file.write(json.dumps(row, ensure_ascii=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
    whole = Path(f"{target}.whole")
    whole.write_text("".join(json.dumps(done[key]) + "\n" for key in keys))
    whole.rename(target)
    part.unlink(missing_ok=True)


@right("decode_file")
def the_part_becomes_the_target(source, target, address=None, workers=2, **options):
    """At the end the part itself is put in order, and takes the name."""
    source, target = Path(source), Path(target)
    part = Path(str(target) + ".part")
    asked = [json.loads(x) for x in source.read_bytes().splitlines() if x.strip()]
    counts = collections.Counter(row["key"] for row in asked)
    if any(number > 1 for number in counts.values()):
        raise ValueError(f"twice: {[key for key in counts if counts[key] > 1]}")
    if part.exists():
        data = part.read_bytes()
        with part.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    done = {
        (row["key"], row["prompt"]): row
        for path in (target, part)
        for row in parsed(path)
    }
    left = [row for row in asked if (row["key"], row["prompt"]) not in done]
    for row in rows_of(left, address, workers, options) if left else ():
        done[row["key"], row["prompt"]] = row
        with part.open("a") as file:
            file.write(json.dumps(row) + "\n")
    ordered = part.with_suffix(".ordered")
    with ordered.open("w") as file:
        for row in asked:
            file.write(json.dumps(done[row["key"], row["prompt"]]) + "\n")
    os.rename(ordered, target)
    if part.exists():
        part.unlink()


# --- split_columns and split_rows -----------------------------------------------------


@right("split_columns")
def by_slices(matrix, shards):
    """Slices, copied."""
    if shards <= 0 or matrix.size(1) % shards != 0:
        raise ValueError("not evenly")
    size = matrix.size(1) // shards
    return [matrix[:, n * size :][:, :size].contiguous().clone() for n in range(shards)]


@right("split_columns")
def by_reshaping(matrix, shards):
    """One reshape; each block is then copied."""
    if shards < 1 or matrix.shape[-1] % shards:
        raise ValueError("not evenly")
    apart = matrix.reshape(len(matrix), shards, -1).transpose(0, 1)
    return tuple(torch.empty_like(one).copy_(one) for one in apart)


@right("split_columns")
def by_index_select(matrix, shards):
    """index_select always copies."""
    if shards < 1 or matrix.shape[1] % shards:
        raise ValueError("not evenly")
    places = torch.arange(matrix.shape[1]).view(shards, -1)
    return [matrix.index_select(1, own) for own in places]


@right("split_rows")
def by_row_slices(matrix, shards):
    """Slices, copied."""
    if shards <= 0 or len(matrix) % shards:
        raise ValueError("not evenly")
    size = len(matrix) // shards
    starts = range(0, len(matrix), size)
    return [torch.clone(matrix[start : start + size]) for start in starts]


@right("split_rows")
def by_view(matrix, shards):
    """unflatten, and a new tensor of each."""
    if shards < 1 or matrix.shape[0] % shards:
        raise ValueError("not evenly")
    return [one.detach().clone() for one in matrix.unflatten(0, (shards, -1))]


@right("split_rows")
def by_stacking_rows(matrix, shards):
    """Row by row."""
    if shards < 1 or matrix.shape[0] % shards:
        raise ValueError("not evenly")
    size = matrix.shape[0] // shards
    rows = list(matrix)
    return [torch.stack(rows[n * size : (n + 1) * size]) for n in range(shards)]


# --- parallel_mlp ---------------------------------------------------------------------


def summand_of(x, shards):
    gate, up, down = shards
    return torch.matmul(functional.silu(torch.matmul(x, gate)) * x.matmul(up), down)


@right("parallel_mlp")
def by_gathering_summands(x, shards, group):
    """all_gather, and a sum."""
    own = summand_of(x, shards).contiguous()
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return torch.stack(every).sum(0)


@right("parallel_mlp")
def without_waiting(x, shards, group):
    """all_reduce in the background, then wait."""
    own = summand_of(x, shards)
    work = dist.all_reduce(own, op=dist.ReduceOp.SUM, group=group, async_op=True)
    work.wait()
    return own


@right("parallel_mlp")
def by_hand(x, shards, group):
    """silu by its formula, flat rows, and linear with the matrices turned."""
    flat = x.flatten(0, -2)
    gate = functional.linear(flat, shards[0].T)
    inner = gate * torch.sigmoid(gate) * functional.linear(flat, shards[1].T)
    own = functional.linear(inner, shards[2].T).view_as(x).clone()
    dist.all_reduce(own, group=group)
    return own
