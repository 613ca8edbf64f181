"""Right answers to lesson 07 in another style: each must pass all checks."""

import copy
import math

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import DynamicCache

from course.making.answers import reference, right

cached_step = reference("cached_step")
is_finished = reference("is_finished")
counted = reference("position_ids")


@right("attention_with_cache")
def through_torchs_attention(q, k_new, v_new, cache=None):
    """scaled_dot_product_attention with a mask."""
    k, v = k_new, v_new
    if cache is not None:
        k, v = (torch.cat(pair, 2) for pair in zip(cache, (k_new, v_new), strict=True))
    old = k.shape[2] - q.shape[2]
    may = torch.arange(k.shape[2]) <= torch.arange(old, k.shape[2])[:, None]
    return scaled_dot_product_attention(q, k, v, attn_mask=may), (k, v)


@right("attention_with_cache")
def position_by_position(q, k_new, v_new, cache=None):
    """A loop over new positions, each of which sees all that is there by then."""
    k, v = cache if cache is not None else (k_new[:, :, :0], v_new[:, :, :0])
    outputs = []
    for n in range(q.shape[2]):
        k = torch.cat([k, k_new[:, :, n : n + 1]], dim=2)
        v = torch.cat([v, v_new[:, :, n : n + 1]], dim=2)
        scores = (k.float() * q[:, :, n : n + 1].float()).sum(-1)
        weights = (scores / math.sqrt(q.shape[-1])).softmax(-1)
        outputs.append((weights[..., None] * v.float()).sum(2))
    return torch.stack(outputs, dim=2).to(q.dtype), (k, v)


@right("attention_with_cache")
def with_einsum_in_float64(q, k_new, v_new, cache=None):
    """einsum in double precision; a list as the cache."""
    old_k, old_v = cache or (k_new[..., :0, :], v_new[..., :0, :])
    k, v = torch.cat([old_k, k_new], -2), torch.cat([old_v, v_new], -2)
    scores = torch.einsum("bhnd,bhtd->bhnt", q.double(), k.double())
    future = torch.full(scores.shape[-2:], -math.inf).triu(old_k.shape[-2] + 1)
    weights = (scores / q.shape[-1] ** 0.5 + future).softmax(-1)
    return torch.einsum("bhnt,bhtd->bhnd", weights, v.double()).to(q.dtype), [k, v]


@right("cached_step")
def with_a_cache_of_its_own(model, token, cache):
    """Makes the cache itself."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.inference_mode():
        logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
    return logits.select(1, -1).to(torch.float32), cache


@right("cached_step")
def on_a_copy(model, token, cache):
    """Leaves the given cache as it was."""
    with torch.no_grad():
        out = model(token, past_key_values=copy.deepcopy(cache), use_cache=True)
    return out.logits[:, -1, :].float(), out.past_key_values


@right("cached_step")
@torch.no_grad()
def with_a_mask(model, token, cache):
    """Says the mask of cache and new tokens."""
    old = 0 if cache is None else cache.get_seq_length()
    mask = torch.ones(token.shape[0], old + token.shape[1], dtype=torch.long)
    out = model(token, attention_mask=mask, past_key_values=cache, use_cache=True)
    return out["logits"][:, -1].float(), out["past_key_values"]


@right("position_ids")
def in_python(mask):
    """A list for each row."""
    return torch.tensor(
        [
            [max(sum(row[: n + 1]) - 1, 0) for n in range(len(row))]
            for row in mask.tolist()
        ]
    )


@right("position_ids")
def columns_less_padding(mask):
    """The column minus the padding of the row."""
    padding = (mask == 0).sum(-1, keepdim=True)
    return (torch.arange(mask.shape[1]) - padding).clamp(min=0)


@right("position_ids")
def with_where(mask):
    """where in place of clamp."""
    places = torch.cumsum(mask.long(), dim=1)
    return torch.where(places > 0, places - 1, places)


@right("decode_cached")
def prefill_first(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """The prefill before the loop, the step at its end."""

    def step(fed, mask, cache):
        with torch.no_grad():
            out = model(
                fed,
                attention_mask=mask,
                position_ids=counted(mask)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        return out.logits[:, -1].float(), out.past_key_values

    logits, cache = step(ids, mask, None)
    done = torch.zeros(len(ids), 1, dtype=torch.bool)
    for n in range(max_new_tokens):
        token = pick(logits).masked_fill(done, pad_id)
        ids, mask = torch.hstack([ids, token]), pad(mask, (0, 1), value=1)
        done = done | is_finished(token, eos_ids)[:, None]
        if done.all() or n == max_new_tokens - 1:
            break
        logits, cache = step(token, mask, cache)
    return ids


@right("decode_cached")
def positions_counted_on(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """The position of a new token is the number of real tokens before it."""
    places, fed, cache = counted(mask), ids, DynamicCache(config=model.config)
    real = mask.sum(-1, keepdim=True)
    columns, live = [ids], torch.ones(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = model(
                input_ids=fed,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        fed = torch.where(live[:, None], pick(logits.float()), pad_id)
        columns.append(fed)
        places, real = real, real + 1
        mask = torch.cat([mask, torch.ones_like(fed)], 1)
        live = live & ~is_finished(fed, eos_ids)
        if not live.any():
            break
    return torch.cat(columns, 1).clone()


@right("decode_cached")
def by_columns_of_one_tensor(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Room for all tokens and their mask is made once."""
    batch, start = ids.shape
    out = torch.full((batch, start + max_new_tokens), pad_id)
    seen = torch.ones_like(out)
    out[:, :start], seen[:, :start] = ids, mask
    places, cache, end = counted(seen), None, start
    done = torch.zeros(batch, dtype=torch.bool)
    first = 0
    while end < start + max_new_tokens and not done.all():
        with torch.no_grad():
            output = model(
                out[:, first:end],
                attention_mask=seen[:, :end],
                position_ids=places[:, first:end],
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        token = pick(output.logits[:, -1].float())[:, 0]
        out[~done, end] = token[~done]
        done = done | is_finished(out[:, end : end + 1], eos_ids)
        first, end = end, end + 1
    return out[:, :end]


def checked(cache, n):
    if n < 0 or n > cache.get_seq_length():
        raise ValueError(f"cannot remove {n} of {cache.get_seq_length()}")


@right("decode_cached")
def lesson_5_with_a_model_that_remembers(model, ids, mask, *rest):
    """decode_batch is the loop, and a stand-in for the model feeds what is new."""
    cache = DynamicCache()

    class Remembers:
        def __getattr__(self, name):
            return getattr(model, name)

        def __call__(self, input_ids, attention_mask, **_):
            start = cache.get_seq_length()
            return model(
                input_ids[:, start:],
                attention_mask=attention_mask,
                position_ids=counted(attention_mask)[:, start:],
                past_key_values=cache,
                use_cache=True,
            )

    return reference("decode_batch")(Remembers(), ids, mask, *rest)


@right("rollback")
def layer_by_layer(cache, n):
    """Slices keys and values of each layer."""
    checked(cache, n)
    shorter = copy.deepcopy(cache)
    end = cache.get_seq_length() - n
    for layer in shorter.layers:
        layer.keys = layer.keys[:, :, :end].clone()
        layer.values = layer.values[:, :, :end].clone()
    return shorter


@right("rollback")
def into_a_new_cache(cache, n):
    """Fills a new cache with what stays."""
    checked(cache, n)
    end = cache.get_seq_length() - n
    shorter = DynamicCache()
    for number, layer in enumerate(cache.layers):
        shorter.update(layer.keys[:, :, :end], layer.values[:, :, :end], number)
    return copy.deepcopy(shorter)


@right("rollback")
def one_at_a_time(cache, n):
    """crop(-1), n times."""
    checked(cache, n)
    shorter = copy.deepcopy(cache)
    for _ in range(n):
        shorter.crop(-1)
    return shorter


@right("reuse_prefix")
def with_deepcopy(model, prefix_ids, suffixes):
    """A comprehension over copies."""
    cache = cached_step(model, prefix_ids, None)[1]
    return [cached_step(model, s, copy.deepcopy(cache))[0] for s in suffixes]


@right("reuse_prefix")
def with_crop(model, prefix_ids, suffixes):
    """One cache, which is cut back after each suffix."""
    _, cache = cached_step(model, prefix_ids, None)
    found = []
    for suffix in suffixes:
        logits, cache = cached_step(model, suffix, cache)
        cache.crop(-suffix.shape[1])
        found.append(logits)
    return found


@right("reuse_prefix")
def a_batch_for_each_length(model, prefix_ids, suffixes):
    """Suffixes of one length are one batch, on a repeated cache."""
    _, prefix = cached_step(model, prefix_ids, None)
    logits = [None] * len(suffixes)
    for width in {suffix.shape[1] for suffix in suffixes}:
        places = [n for n, suffix in enumerate(suffixes) if suffix.shape[1] == width]
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(places))
        rows, _ = cached_step(model, torch.cat([suffixes[n] for n in places]), cache)
        for n, row in zip(places, rows.split(1), strict=True):
            logits[n] = row
    return logits


@right("reuse_prefix")
def model_called_directly(model, prefix_ids, suffixes):
    """Without cached_step."""
    with torch.no_grad():
        prefix = model(prefix_ids, use_cache=True).past_key_values
        outputs = [
            model(suffix, past_key_values=copy.deepcopy(prefix), use_cache=True)
            for suffix in suffixes
        ]
    return [output.logits[:, -1].float() for output in outputs]


def shape_of(config):
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


@right("cache_bytes")
def from_an_empty_tensor(config, batch, seq, dtype):
    """Asks a tensor without memory."""
    kv_heads, dim = shape_of(config)
    one = torch.empty(batch, kv_heads, seq, dim, dtype=dtype, device="meta")
    return 2 * one.nbytes * config.num_hidden_layers


@right("cache_bytes")
def of_the_text_model(config, batch, seq, dtype):
    """get_text_config: what a model of text and images needs."""
    config = config.get_text_config()
    kv_heads, dim = shape_of(config)
    return 2 * config.num_hidden_layers * batch * kv_heads * seq * dim * dtype.itemsize


@right("cache_bytes")
def bits_by_eight(config, batch, seq, dtype):
    """finfo knows the bits."""
    kv_heads, dim = shape_of(config)
    numbers = math.prod((2, config.num_hidden_layers, kv_heads, dim, batch, seq))
    return numbers * torch.finfo(dtype).bits // 8


@right("cache_bytes")
def layer_by_layer_sum(config, batch, seq, dtype):
    """A sum over layers, and over keys and values."""
    kv_heads, dim = shape_of(config)
    size = torch.zeros((), dtype=dtype).element_size()
    return sum(
        batch * kv_heads * seq * dim * size
        for _ in range(config.num_hidden_layers)
        for _ in ("keys", "values")
    )
