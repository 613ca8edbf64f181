"""The keys and values of all blocks, and how a model reads and writes them.

A runner is what an engine calculates with: `run(rows)` and `copy(old, new)`, as here of
`TorchRunner`, and `device`, where its logits are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

PADDING = 32  # computing so many positions for nothing costs as much as a second pass


@dataclass(frozen=True)
class Row:
    """One request's part of a forward pass: ids (the new ones), that stand behind
    `computed` tokens, in `blocks`. wanted: of how many of them, the last ones, the
    logits are; True is 1."""

    ids: Sequence[int]
    computed: int
    blocks: Sequence[int]
    wanted: int


class KeyValueStore:
    """Keys and values of `number` blocks of `size` tokens, for each layer that asks.

    A tensor is (blocks, size, heads, d), as large as the model's heads want it.
    """

    def __init__(self, number: int, size: int):
        self.number, self.size = number, size
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, *like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """like: keys and values, each (batch, heads, new, d)."""
        if index not in self.layers:
            # Zeros, not anything: what is read and masked must be a number.
            self.layers[index] = tuple(
                x.new_zeros(self.number, self.size, x.shape[1], x.shape[3])
                for x in like
            )
        return self.layers[index]

    def copy(self, old: int, new: int) -> None:
        for tensors in self.layers.values():
            for tensor in tensors:
                tensor[new] = tensor[old]


class StepCache:
    """What the model takes for its cache in one forward pass.

    Attention asks it to keep the new keys and values, and for all of them. It writes
    the new ones to their places and collects each row's blocks.
    """

    is_compileable = False

    def __init__(self, store: KeyValueStore, rows: list[Row]):
        self._store, self._rows = store, rows
        self.seen = max(row.computed + len(row.ids) for row in rows)
        width = max(len(row.ids) for row in rows)
        # Where the new ones come from, in (batch * width), and where they go.
        self._source = [
            i * width + n for i, row in enumerate(rows) for n in range(len(row.ids))
        ]
        self._target = [
            row.blocks[position // store.size] * store.size + position % store.size
            for row in rows
            for position in range(row.computed, row.computed + len(row.ids))
        ]
        self._all_new = len(self._source) == len(rows) * width
        most = -(-self.seen // store.size)
        # Padded with any block: the mask hides it.
        self._tables = [
            (list(row.blocks) + [row.blocks[0]] * most)[:most] for row in rows
        ]
        self._places: tuple[torch.Tensor, ...] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: the new ones, (batch, heads, new, d). Returns all of them,
        (batch, heads, seen, d)."""
        if self._places is None:
            lists = self._source, self._target, self._tables
            self._places = tuple(torch.tensor(x, device=keys.device) for x in lists)
        source, target, tables = self._places
        collected = []
        for kept, new in zip(
            self._store.layer(layer_idx, keys, values), (keys, values), strict=True
        ):
            new = new.transpose(1, 2).flatten(0, 1)  # (batch * width, heads, d)
            kept.view(-1, *kept.shape[2:])[target] = (
                new if self._all_new else new[source]
            )
            blocks = kept.index_select(0, tables.flatten())
            rows = blocks.view(len(self._rows), -1, *kept.shape[2:])[:, : self.seen]
            collected.append(rows.transpose(1, 2))
        return tuple(collected)

    # What models ask where they are given no mask; all rows are of one length there.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen - max(len(row.ids) for row in self._rows)

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.seen, 0


class TorchRunner:
    """Any model of `transformers`, by its own forward pass."""

    def __init__(self, model, blocks: int, size: int):
        self._model, self._store = model, KeyValueStore(blocks, size)
        self.device = model.device

    def run(self, rows: list[Row]) -> list[torch.Tensor | None]:
        """The logits of each row that are wanted, float32: (vocab,) of one token,
        (wanted, vocab) of more, None of none. They are valid until the next call."""
        return run(self._model, self._store, rows)

    def copy(self, old: int, new: int) -> None:
        """Block `new` gets what is in block `old`."""
        self._store.copy(old, new)


@torch.no_grad()
def run(model, store: KeyValueStore, rows: list[Row]) -> list[torch.Tensor | None]:
    """Run the rows through the model, in as few passes as padding allows.

    Returns the logits of each row that are wanted, float32: (vocab,) of one token,
    (wanted, vocab) of more, None of none.
    """
    logits: list[torch.Tensor | None] = [None] * len(rows)
    for group in groups([len(row.ids) for row in rows]):
        found = forward(model, store, [rows[i] for i in group])
        for i, one in zip(group, found, strict=True):
            logits[i] = one
    return logits


def groups(widths: list[int]) -> list[list[int]]:
    """The indices of widths, put together where that pads with few positions."""
    made: list[list[int]] = []
    for i in sorted(range(len(widths)), key=lambda i: widths[i]):
        padding = sum(widths[i] - widths[j] for j in made[-1]) if made else PADDING + 1
        if padding > PADDING:
            made.append([i])
        else:
            made[-1].append(i)
    return made


def forward(model, store: KeyValueStore, rows: list[Row]) -> list[torch.Tensor | None]:
    """One pass of the model over rows, padded on the right to the longest."""
    device, width = model.device, max(len(row.ids) for row in rows)
    cache = StepCache(store, rows)
    ids = [list(row.ids) + [0] * (width - len(row.ids)) for row in rows]
    # Padding stands where the last token stands: no position is beyond the context.
    positions = [
        [row.computed + min(n, len(row.ids) - 1) for n in range(width)] for row in rows
    ]
    positions = torch.tensor(positions, device=device)
    asked = [range(len(row.ids) - row.wanted, len(row.ids)) for row in rows]
    last = sorted(set().union(*asked)) or [width - 1]
    keep = 1 if last == [width - 1] else torch.tensor(last, device=device)
    output = model(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=attention_mask(model, rows, positions, cache.seen),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    found = []
    for i, places in enumerate(asked):
        at = [last.index(place) for place in places]
        found.append(output.logits[i, at[0] : at[-1] + 1].float() if at else None)
    return [x[0] if row.wanted == 1 else x for x, row in zip(found, rows, strict=True)]


def attention_mask(
    model, rows: list[Row], positions: torch.Tensor, seen: int
) -> torch.Tensor | dict[str, torch.Tensor] | None:
    """Who may look at whom: (batch, 1, new, seen), True where a new token may.

    None where the model's own causal mask says the same, by faster ways.
    """
    kinds = layer_kinds(model.config)
    alike = len({(row.computed, len(row.ids)) for row in rows}) == 1
    plain = len(rows[0].ids) == 1 or rows[0].computed == 0
    if kinds == {"full_attention"} and alike and plain:
        return None
    behind = positions[:, None, :, None] - torch.arange(seen, device=positions.device)
    masks = {}
    for kind in kinds:
        mask = behind >= 0
        if kind == "sliding_attention":
            mask = mask & (behind < model.config.get_text_config().sliding_window)
        if model.config._attn_implementation == "eager":  # it adds the mask
            low = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, low)
        masks[kind] = mask
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_kinds(config) -> set[str]:
    """Raises ValueError for layers whose memory is not keys and values."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        sliding = getattr(config, "sliding_window", None)
        kinds = {"sliding_attention" if sliding else "full_attention"}
    if strange := kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"this engine keeps keys and values; a model of type {config.model_type} "
            f"has layers of another kind: {', '.join(sorted(strange))}"
        )
    return kinds
