"""Wrong answers to lesson 07, and what the learner must be told of each."""

import copy

import torch

from course.making.answers import reference, wrong

attention_with_cache = reference("attention_with_cache")
cached_step = reference("cached_step")
counted = reference("position_ids")
is_finished = reference("is_finished")
rollback = reference("rollback")
reuse_prefix = reference("reuse_prefix")
cache_bytes = reference("cache_bytes")

# --- attention_with_cache -------------------------------------------------------------

HAND = "test_attention_worked_by_hand"
SPLIT = "test_any_split_gives_the_attention_of_torch"


def attend(q, k, v, mask=True, diagonal=None, scale=True, dim=-1):
    new, total = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5 if scale else 1)
    if mask:
        start = total - new + 1 if diagonal is None else diagonal
        ones = torch.ones(new, total, dtype=torch.bool).triu(start)
        scores = scores.masked_fill(ones, float("-inf"))
    return scores.softmax(dim).nan_to_num() @ v


def grown(k_new, v_new, cache):
    if cache is None:
        return k_new, v_new
    return torch.cat([cache[0], k_new], -2), torch.cat([cache[1], v_new], -2)


@wrong("attention_with_cache", HAND, "The cached value takes part, too")
def cache_not_read(q, k_new, v_new, cache=None):
    """Appends to the cache, and attends to the new positions alone."""
    return attend(q, k_new, v_new), grown(k_new, v_new, cache)


@wrong("attention_with_cache", HAND, "A new position sees itself")
def not_itself(q, k_new, v_new, cache=None):
    """Off by one: a position does not see itself."""
    k, v = grown(k_new, v_new, cache)
    return attend(q, k, v, diagonal=k.shape[-2] - q.shape[-2]), (k, v)


@wrong("attention_with_cache", HAND, "should return (output, cache)")
def cache_not_returned(q, k_new, v_new, cache=None):
    """The grown cache is lost."""
    return attention_with_cache(q, k_new, v_new, cache)[:1]


@wrong("attention_with_cache", HAND, "The new ones stand behind the old ones")
def new_ones_in_front(q, k_new, v_new, cache=None):
    """The new ones are put before the cached ones."""
    if cache is None:
        return attention_with_cache(q, k_new, v_new)
    k = torch.cat([cache[0], k_new], -2)
    v = torch.cat([v_new, cache[1]], -2)
    return attend(q, k, v), (k, v)


@wrong("attention_with_cache", SPLIT, "no later one")
def no_mask(q, k_new, v_new, cache=None):
    """New positions see each other's future."""
    k, v = grown(k_new, v_new, cache)
    return attend(q, k, v, mask=False), (k, v)


@wrong("attention_with_cache", SPLIT, "no later one")
def mask_from_the_corner(q, k_new, v_new, cache=None):
    """The mask of a square: it forgets that the cache stands before."""
    k, v = grown(k_new, v_new, cache)
    if q.shape[-2] == 1:
        return attend(q, k, v), (k, v)
    return attend(q, k, v, diagonal=1), (k, v)


@wrong("attention_with_cache", "test_scores_are_divided_by_the_root_of_d", "q · k / √d")
def not_scaled(q, k_new, v_new, cache=None):
    """The root of d is forgotten."""
    k, v = grown(k_new, v_new, cache)
    return attend(q, k, v, scale=False), (k, v)


LEFT_ALONE = "test_arguments_and_old_cache_are_left_alone"


@wrong("attention_with_cache", LEFT_ALONE, "`cache[0]` was changed")
def into_the_old_cache(q, k_new, v_new, cache=None):
    """Writes into the tensors that were given."""
    out, grown = attention_with_cache(q, k_new, v_new, cache)
    if cache is not None:
        cache[0][..., -1:, :] = k_new[..., :1, :]
    return out, grown


ANY = "test_attention_in_any_dtype"


@wrong("attention_with_cache", ANY, "a score too large for float16")
def scores_in_the_dtype_given(q, k_new, v_new, cache=None):
    """A score above 65,504 is inf in float16."""
    k, v = grown(k_new, v_new, cache)
    start = k.shape[-2] - q.shape[-2] + 1
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(start)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(ones, float("-inf")).softmax(-1) @ v, (k, v)


@wrong("attention_with_cache", ANY, "Mask with -inf, which every dtype has")
def a_large_number_for_infinity(q, k_new, v_new, cache=None):
    """-1e9 does not fit float16."""
    k, v = grown(k_new, v_new, cache)
    start = k.shape[-2] - q.shape[-2] + 1
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(start)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(ones, -1e9).softmax(-1) @ v, (k, v)


@wrong("attention_with_cache", ANY, "should be torch.float16")
def output_becomes_float32(q, k_new, v_new, cache=None):
    """The output has another dtype than the queries."""
    out, cache = attention_with_cache(q, k_new, v_new, cache)
    return out.float(), cache


@wrong("attention_with_cache", "test_no_score_is_too_low_to_be_seen", "Mask with -inf")
def a_large_number_in_float32(q, k_new, v_new, cache=None):
    """-1e9 fits float32, but a score may be lower."""
    k, v = grown(k_new, v_new, cache)
    start = k.shape[-2] - q.shape[-2] + 1
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(start)
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    out = scores.masked_fill(ones, -1e9).softmax(-1) @ v.float()
    return out.to(q.dtype), (k, v)


@wrong("attention_with_cache", LEFT_ALONE, "`q` was changed")
def scales_q_in_place(q, k_new, v_new, cache=None):
    """/= divides the caller's queries, too."""
    out = attention_with_cache(q, k_new, v_new, cache)
    q /= q.shape[-1] ** 0.5
    return out


# --- cached_step ----------------------------------------------------------------------

STEP = "test_a_step_gives_the_logits_of_the_whole_text"
ALONE = "test_the_model_sees_the_new_token_alone"


def run(model, token, cache, grad=False):
    with torch.set_grad_enabled(grad):
        return model(token, past_key_values=cache, use_cache=True)


@wrong("cached_step", STEP, "Is the cache passed on")
def cache_not_passed(model, token, cache):
    """The model starts anew with each token."""
    output = run(model, token, None)
    return output.logits[:, -1].float(), output.past_key_values


@wrong("cached_step", STEP, "take the last place")
def first_of_the_new(model, token, cache):
    """The logits of the first new position."""
    output = run(model, token, cache)
    return output.logits[:, 0].float(), output.past_key_values


@wrong("cached_step", STEP, "call the model with use_cache=True")
def no_cache_asked_for(model, token, cache):
    """use_cache=False: there is no cache to return."""
    with torch.no_grad():
        output = model(token, past_key_values=cache, use_cache=cache is not None)
    return output.logits[:, -1].float(), output.past_key_values


@wrong("cached_step", "test_a_step_is_float32_without_gradients", "torch.float32")
def in_the_models_dtype(model, token, cache):
    """bfloat16 logits."""
    output = run(model, token, cache)
    return output.logits[:, -1], output.past_key_values


@wrong("cached_step", "test_a_step_is_float32_without_gradients", "no_grad")
def with_gradients(model, token, cache):
    """Keeps the activations of each step."""
    output = run(model, token, cache, grad=True)
    return output.logits[:, -1].float(), output.past_key_values


@wrong("cached_step", ALONE, "should be given 4 tokens, then 1")
def token_by_token_prefill(model, token, cache):
    """Feeds the prompt one by one: right, and slow."""
    for n in range(token.shape[1]):
        output = run(model, token[:, n : n + 1], cache)
        cache = output.past_key_values
    return output.logits[:, -1].float(), cache


@wrong(
    "cached_step",
    STEP,
    "should return (logits, cache), not one tensor of shape (2, 97)",
)
def logits_alone(model, token, cache):
    """The cache is not returned."""
    return cached_step(model, token, cache)[0]


@wrong("cached_step", ALONE, "outside torch.no_grad()")
def prefill_with_gradients(model, token, cache):
    """no_grad for the decode steps alone."""
    output = run(model, token, cache, grad=cache is None)
    return output.logits[:, -1].float().detach(), output.past_key_values


@wrong("cached_step", STEP, "Token 5 was not fed")
def only_the_last_behind_a_cache(model, token, cache):
    """Of several tokens behind a cache only the last is fed."""
    return cached_step(model, token if cache is None else token[:, -1:], cache)


@wrong(
    "cached_step",
    "test_a_batch_of_one_stays_a_batch",
    "batch of one text should have shape (1, 97), not (97,)",
)
def a_batch_of_one_is_squeezed(model, token, cache):
    """squeeze() drops the batch, too, where it is 1."""
    logits, cache = cached_step(model, token, cache)
    return logits.squeeze(), cache


# --- position_ids ---------------------------------------------------------------------

PLACES = "test_positions_worked_by_hand"


@wrong("position_ids", PLACES, "No position is negative")
def not_clamped(mask):
    """-1 on padding."""
    return mask.cumsum(-1) - 1


@wrong("position_ids", PLACES, "The first token has position 0")
def from_one(mask):
    """Counts from 1."""
    return mask.cumsum(-1)


@wrong("position_ids", PLACES, "Padding does not count")
def by_column(mask):
    """0, 1, 2, ... for every row."""
    return torch.arange(mask.shape[1]).repeat(len(mask), 1)


@wrong("position_ids", PLACES, "count along each row")
def over_the_batch(mask):
    """cumsum over the rows."""
    return (mask.cumsum(0) - 1).clamp(min=0)


@wrong("position_ids", PLACES, "should be torch.int64")
def as_floats(mask):
    """Positions are indices: integers."""
    return counted(mask).float()


@wrong("position_ids", PLACES, "`mask` was changed")
def in_place(mask):
    """Overwrites the mask."""
    return mask.copy_(counted(mask))


@wrong("position_ids", PLACES, "`mask` was changed")
def running_sum_in_place(mask):
    """cumsum_ writes into the mask; what is returned is right."""
    return (mask.cumsum_(-1) - 1).clamp(min=0)


@wrong("position_ids", PLACES, "should be [[0, 0, 0], [0, 0, 1]]")
def from_the_first_one_on(mask):
    """argmax finds the first 1, and place 0 where there is none."""
    first = mask.argmax(-1, keepdim=True)
    return (torch.arange(mask.shape[1]) - first).clamp(min=0)


@wrong("position_ids", "test_positions_of_a_long_text", "not in 8 bits")
def counts_in_bytes(mask):
    """A sum of uint8 begins again after 255."""
    return (mask.cumsum(-1, dtype=torch.uint8).long() - 1).clamp(min=0)


# --- decode_cached --------------------------------------------------------------------

FEEDS = "test_each_decode_step_feeds_one_token"
SAME = "test_cached_tokens_are_those_of_generate"


def loop(
    model,
    ids,
    mask,
    max_new_tokens,
    pick,
    eos_ids,
    pad_id,
    places=lambda mask, width: counted(mask)[:, -width:],
    shown=lambda mask, width: mask,
    keep=True,
    pad=True,
    extra=0,
    dtype=torch.float32,
    grad=False,
    fresh=None,
):
    """The reference, with its decisions as arguments."""
    finished = torch.zeros(ids.shape[0], dtype=torch.bool)
    fed, out, cache = ids, ids, None
    for step in range(max_new_tokens + extra):
        with torch.set_grad_enabled(grad):
            output = model(
                fed,
                attention_mask=shown(mask, fed.shape[1]),
                position_ids=places(mask, fed.shape[1]),
                past_key_values=cache,
                use_cache=True,
            )
        if step == max_new_tokens:
            break
        cache = output.past_key_values if keep else None
        token = pick(output.logits[:, -1].to(dtype or model.dtype))
        token = torch.where(finished[:, None], pad_id, token) if pad else token
        out = torch.cat([out, token], -1)
        if fresh and (step + 1) % fresh == 0:
            cache = None
        fed = token if cache is not None else out
        mask = torch.cat([mask, torch.ones_like(token)], -1)
        finished = finished | is_finished(token, eos_ids)
        if finished.all():
            break
    return out


@wrong("decode_cached", FEEDS, "should feed 5, 1, 1 and 1")
def without_a_cache(*arguments):
    """decode_batch: right, and each step runs the whole text."""
    return loop(*arguments, keep=False)


@wrong("decode_cached", FEEDS, "should cover cache and new tokens")
def mask_of_the_new_token_alone(*arguments):
    """The mask covers what is fed, not what is cached."""
    return loop(*arguments, shown=lambda mask, width: mask[:, -width:])


@wrong("decode_cached", FEEDS, "given 1 token a row and 6 position_ids")
def positions_of_the_whole_text(*arguments):
    """Positions for all columns, with one token fed."""
    return loop(*arguments, places=lambda mask, width: counted(mask))


@wrong("decode_cached", FEEDS, "count the ones of the whole mask")
def positions_by_column(*arguments):
    """The column is the position: padding counts."""
    return loop(
        *arguments,
        places=lambda mask, width: (
            torch.arange(mask.shape[1] - width, mask.shape[1])
            .expand(len(mask), -1)
            .clone()
        ),
    )


@wrong("decode_cached", FEEDS, "count the ones of the whole mask")
def position_zero_again(*arguments):
    """Counts the new token's own mask: always position 0."""
    return loop(*arguments, places=lambda mask, width: counted(mask[:, -width:]))


@wrong("decode_cached", SAME, "Finished rows get pad_id")
def goes_on_after_the_end(*arguments):
    """Finished rows keep their tokens."""
    return loop(*arguments, pad=False)


LAST = "test_each_new_token_takes_one_call_of_the_model"


@wrong("decode_cached", LAST, "the last token is not fed")
def a_call_too_many(*arguments):
    """Feeds the last token, whose logits nobody needs."""
    return loop(*arguments, extra=1)


@wrong(
    "decode_cached",
    "test_pick_chooses_each_token_from_float32_logits",
    "make it float32",
)
def pick_in_bfloat16(*arguments):
    """The model's own dtype."""
    return loop(*arguments, dtype=None)


@wrong("decode_cached", FEEDS, "outside torch.no_grad()")
def decoding_with_gradients(*arguments):
    """Records gradients through the whole cache."""
    return loop(*arguments, grad=True)


@wrong(
    "decode_cached",
    "test_pick_chooses_each_token_from_float32_logits",
    "for 2 tokens pick should be called 2 times, not 0 times",
)
def always_greedy(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """pick is not used."""
    return loop(
        *(model, ids, mask, max_new_tokens),
        *(lambda logits: logits.argmax(-1, keepdim=True), eos_ids, pad_id),
    )


ENDS = "test_finished_rows_get_the_pad_id_and_an_eos_in_the_prompt_ends_nothing"


@wrong("decode_cached", ENDS, "row 0 differs first at position 7: token 0, expected 7")
def pads_with_zero(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """0 in place of pad_id."""
    return loop(model, ids, mask, max_new_tokens, pick, eos_ids, 0)


@wrong("decode_cached", ENDS, "An EOS in the prompt does not finish a row")
def an_eos_in_the_prompt_counts(
    model, ids, mask, max_new_tokens, pick, eos_ids, pad_id
):
    """Looks for EOS in the whole text."""
    out = loop(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id)
    over = torch.isin(ids, torch.tensor(eos_ids, dtype=torch.long)).any(-1)
    out[over, ids.shape[1] :] = pad_id
    return out


@wrong(
    "decode_cached", "test_no_new_tokens_give_the_prompt", "should have shape (3, 5)"
)
def at_least_one_token(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """The prefill always gives a token."""
    return loop(model, ids, mask, max(max_new_tokens, 1), pick, eos_ids, pad_id)


@wrong(
    "decode_cached", "test_prompt_and_mask_stay", "cumsum without _ makes a new tensor"
)
def positions_in_place(model, ids, mask, *rest):
    """The mask becomes the positions of its tokens."""
    out = loop(model, ids, mask.clone(), *rest)
    mask.cumsum_(-1)
    return out


@wrong("decode_cached", LAST, "fed 12 tokens a row, not 1: the cache holds")
def a_fresh_cache_every_8_tokens(*arguments):
    """Feeds the whole text again from time to time."""
    return loop(*arguments, fresh=8)


# --- rollback -------------------------------------------------------------------------

ELSEWHERE = "test_after_a_rollback_the_text_can_go_on_elsewhere"
AS_IT_WAS = "test_the_given_cache_stays_as_it_was"


def checked(cache, n):
    if not 0 <= n <= cache.get_seq_length():
        raise ValueError(f"n is {n}")


@wrong("rollback", AS_IT_WAS, "work on a deep copy")
def in_place_rollback(cache, n):
    """Crops the cache that was given."""
    checked(cache, n)
    if n:
        cache.crop(-n)
    return cache


@wrong("rollback", AS_IT_WAS, "copy.copy shares the layers")
def shallow_copy(cache, n):
    """copy.copy shares the layers."""
    checked(cache, n)
    shorter = copy.copy(cache)
    if n:
        shorter.crop(-n)
    return shorter


@wrong("rollback", ELSEWHERE, "The last n entries go, not the first")
def the_first_go(cache, n):
    """Removes the beginning of the text."""
    shorter = rollback(cache, n)
    for layer, full in zip(shorter.layers, cache.layers, strict=True):
        layer.keys, layer.values = full.keys[:, :, n:], full.values[:, :, n:]
    return shorter


@wrong("rollback", ELSEWHERE, "should have length 4, not 1")
def keeps_n(cache, n):
    """n is taken for the number that stays."""
    checked(cache, n)
    return rollback(cache, cache.get_seq_length() - n)


@wrong("rollback", ELSEWHERE, "ValueError")
def positive_crop(cache, n):
    """crop takes negative numbers since transformers 5."""
    checked(cache, n)
    shorter = copy.deepcopy(cache)
    if n:
        shorter.crop(n)
    return shorter


@wrong(
    "rollback",
    "test_more_than_there_is_cannot_be_rolled_back",
    "it returned a cache of length",
)
def more_than_there_is(cache, n):
    """Removes what there is, in silence."""
    if n < 0:
        raise ValueError("n is negative")
    return rollback(cache, min(n, cache.get_seq_length()))


@wrong(
    "rollback", "test_all_tokens_can_be_rolled_back", "by 6 should have length 0, not 1"
)
def not_all(cache, n):
    """Keeps at least one token."""
    checked(cache, n)
    return rollback(cache, min(n, cache.get_seq_length() - 1))


# --- reuse_prefix ---------------------------------------------------------------------

PREFIXED = "test_logits_are_those_of_prefix_and_suffix"


@wrong("reuse_prefix", PREFIXED, "Each suffix needs a copy")
def one_cache_for_all(model, prefix_ids, suffixes):
    """The second suffix comes after the first."""
    _, cache = cached_step(model, prefix_ids, None)
    return [cached_step(model, suffix, cache)[0] for suffix in suffixes]


@wrong("reuse_prefix", PREFIXED, "the logits of the suffix alone")
def suffix_alone(model, prefix_ids, suffixes):
    """The prefix is left out."""
    cached_step(model, prefix_ids, None)
    return [cached_step(model, suffix, None)[0] for suffix in suffixes]


@wrong("reuse_prefix", "test_the_prefix_is_computed_once", "need 14 positions")
def prefix_each_time(model, prefix_ids, suffixes):
    """Right, and as slow as without a cache."""
    return [
        cached_step(model, torch.cat([prefix_ids, suffix], -1), None)[0]
        for suffix in suffixes
    ]


@wrong("reuse_prefix", "test_the_prefix_is_computed_once", "need 14 positions")
def prefix_filled_for_each(model, prefix_ids, suffixes):
    """A new cache of the prefix for each suffix."""
    return [
        cached_step(model, suffix, cached_step(model, prefix_ids, None)[1])[0]
        for suffix in suffixes
    ]


@wrong("reuse_prefix", PREFIXED, "should return 4 logits, not 1")
def returns_in_the_loop(model, prefix_ids, suffixes):
    """return inside the loop."""
    return reuse_prefix(model, prefix_ids, suffixes)[:1]


@wrong("reuse_prefix", PREFIXED, "should return a list, not a Tensor")
def one_tensor(model, prefix_ids, suffixes):
    """A tensor, where a list is asked for."""
    return torch.cat(reuse_prefix(model, prefix_ids, suffixes))


@wrong("reuse_prefix", "test_logits_after_a_prefix_are_float32", "torch.float32")
def in_the_dtype_of_the_model(model, prefix_ids, suffixes):
    """bfloat16 logits."""
    return [x.to(model.dtype) for x in reuse_prefix(model, prefix_ids, suffixes)]


@wrong("reuse_prefix", PREFIXED, "These are the logits of suffix 0, [50, 51]")
def known_by_length_and_last_token(model, prefix_ids, suffixes):
    """Suffixes that end alike share their logits."""
    known = {(s.shape[1], s[0, -1].item()): s for s in reversed(suffixes)}
    given = [known[s.shape[1], s[0, -1].item()] for s in suffixes]
    return reuse_prefix(model, prefix_ids, given)


# --- cache_bytes ----------------------------------------------------------------------

BYTES = "test_bytes_worked_by_hand"


@wrong("cache_bytes", BYTES, "It is 2 (keys and values) * 2 * 4 * 8")
def keys_alone(config, batch, seq, dtype):
    """Values need as much as keys."""
    return cache_bytes(config, batch, seq, dtype) // 2


@wrong("cache_bytes", BYTES, "Key-value heads count")
def attention_heads(config, batch, seq, dtype):
    """Counts a pair for each query head."""
    heads, dim = config.num_attention_heads, config.head_dim
    return 2 * config.num_hidden_layers * heads * dim * batch * seq * dtype.itemsize


@wrong("cache_bytes", BYTES, "not 3840. It is 2 (keys and values)")
def numbers_not_bytes(config, batch, seq, dtype):
    """Counts numbers."""
    return cache_bytes(config, batch, seq, dtype) // dtype.itemsize


@wrong("cache_bytes", BYTES, "should give 15360, not 5120")
def one_row(config, batch, seq, dtype):
    """The batch is forgotten."""
    return cache_bytes(config, 1, seq, dtype)


@wrong("cache_bytes", BYTES, "should give 15360, not 7680")
def one_layer(config, batch, seq, dtype):
    """The cache of one layer of two."""
    return cache_bytes(config, batch, seq, dtype) // config.num_hidden_layers


@wrong(
    "cache_bytes",
    "test_bytes_are_those_of_a_real_cache",
    "take num_attention_heads and hidden_size // num_attention_heads",
)
def llama_only(config, batch, seq, dtype):
    """GPT-2 has no num_key_value_heads."""
    heads, dim = config.num_key_value_heads, config.head_dim
    return 2 * config.num_hidden_layers * heads * dim * batch * seq * dtype.itemsize


@wrong("cache_bytes", "test_bytes_are_those_of_a_real_cache", "has 2 bytes")
def always_four_bytes(config, batch, seq, dtype):
    """Every number as float32."""
    return cache_bytes(config, batch, seq, torch.float32)


@wrong(
    "cache_bytes",
    "test_the_size_of_a_head_comes_from_the_query_heads",
    "hidden_size // num_attention_heads numbers, here 8",
)
def head_size_from_key_value_heads(config, batch, seq, dtype):
    """The hidden size is divided among the key-value heads."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    return 2 * layers * heads * head_dim * batch * seq * dtype.itemsize


@wrong(
    "cache_bytes",
    "test_the_size_of_a_head_comes_from_the_query_heads",
    "TypeError",
)
def head_dim_may_be_none(config, batch, seq, dtype):
    """Some configs have a head_dim that is None."""
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    head_dim = getattr(config, "head_dim", config.hidden_size // queries)
    layers = config.num_hidden_layers
    return 2 * layers * heads * head_dim * batch * seq * dtype.itemsize


@wrong("cache_bytes", BYTES, "should give 15360 (an int), not 15360 (a float)")
def a_float(config, batch, seq, dtype):
    """Bits by 8 with a true division."""
    return cache_bytes(config, batch, seq, dtype) * 8 / 8


@wrong("cache_bytes", BYTES, "torch.float64, should give 30720, not 7680")
def four_bytes_or_two(config, batch, seq, dtype):
    """float32 has four bytes, and all others two."""
    known = torch.float32 if dtype == torch.float32 else torch.float16
    return cache_bytes(config, batch, seq, known)


@wrong("cache_bytes", BYTES, "not the config's own")
def the_dtype_of_the_config(config, batch, seq, dtype):
    """The config's dtype comes before the argument."""
    return cache_bytes(config, batch, seq, config.dtype or dtype)
