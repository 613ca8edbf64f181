"""Wrong answers to lesson 14, and what the learner must be told of each."""

import numpy as np
import torch
from numba import prange

from course.making.answers import reference, wrong
from tiny_models.kernels import new_cache

rms_norm = reference("rms_norm")
rotate = reference("rotate")
attend = reference("attend")
quantise_int8 = reference("quantise_int8")
unpack_q4_1 = reference("unpack_q4_1")
step_by_hand = reference("step_by_hand")
f4 = np.float32

# --- bytes_per_token ------------------------------------------------------------------

HAND = "test_bytes_worked_by_hand"


def weights_of(config, kv=None, parts=3, head=1, layers=None):
    d = getattr(config, "head_dim", None)
    d = d or config.hidden_size // config.num_attention_heads
    q = config.num_attention_heads * d * config.hidden_size
    kv = (kv or config.num_key_value_heads) * d * config.hidden_size
    one = 2 * q + 2 * kv + parts * config.intermediate_size * config.hidden_size
    layers = config.num_hidden_layers if layers is None else layers
    return layers * one + head * config.vocab_size * config.hidden_size


@wrong("bytes_per_token", HAND, "k and v have fewer rows")
def heads_for_keys_too(config, bits):
    """Takes k and v to be as large as q."""
    return int(weights_of(config, kv=config.num_attention_heads) * bits / 8)


@wrong("bytes_per_token", HAND, "The head reads vocab_size * hidden_size")
def no_head(config, bits):
    """Forgets the head."""
    return int(weights_of(config, head=0) * bits / 8)


@wrong("bytes_per_token", HAND, "of it one row alone")
def embedding_counted(config, bits):
    """Counts the embedding as read."""
    return int(weights_of(config, head=2) * bits / 8)


@wrong("bytes_per_token", HAND, "three matrices")
def two_matrices(config, bits):
    """A feed-forward network of two matrices, as in GPT-2."""
    return int(weights_of(config, parts=2) * bits / 8)


@wrong("bytes_per_token", HAND, "Eight bits are a byte")
def bits_not_bytes(config, bits):
    """Returns bits."""
    return int(weights_of(config) * bits)


@wrong("bytes_per_token", HAND, "736 (an int), not 736 (a float)")
def a_float(config, bits):
    """Returns a float."""
    return weights_of(config) * bits / 8


@wrong("bytes_per_token", "test_every_layer_counts_and_the_head_once", "the head once")
def one_layer(config, bits):
    """Forgets that there are several layers."""
    return int(weights_of(config, layers=1) * bits / 8)


@wrong(
    "bytes_per_token",
    "test_a_head_has_its_own_size_where_the_config_says_so",
    "with head_dim 6",
)
def head_dim_ignored(config, bits):
    """Computes the size of a head where the config states it."""
    d = config.hidden_size // config.num_attention_heads
    plain = dict(vars(config), head_dim=d)
    return int(weights_of(type("Config", (), plain)) * bits / 8)


# --- matvec ---------------------------------------------------------------------------

PRODUCT = "test_a_product_worked_by_hand"


@wrong("matvec", PRODUCT, "Rows times x, not columns")
def columns(weight, x):
    """Multiplies from the other side."""
    return x @ weight


@wrong("matvec", PRODUCT, "should have shape (2,)")
def no_sum(weight, x):
    """Products without the sum."""
    return weight * x


@wrong("matvec", PRODUCT, "should be float32, not float64")
def in_float64(weight, x):
    """np.zeros without a dtype is float64."""
    out = np.zeros(len(weight))
    for i in range(len(weight)):
        for j in range(len(x)):
            out[i] += weight[i, j] * x[j]
    return out


@wrong("matvec", PRODUCT, "returned None")
def no_return(weight, x):
    """Forgets to return."""
    np.dot(weight, x)


@wrong("matvec", "test_products_are_those_of_float64", "should have shape")
def square_only(weight, x):
    """Takes the number of columns for that of rows."""
    out = np.zeros(len(x), f4)
    for i in range(min(weight.shape)):
        out[i] = (weight[i] * x).sum()
    return out


@wrong("matvec", "test_numba_compiles_it", "numba cannot compile it")
def a_generator(weight, x):
    """Right in Python, with what numba does not know."""
    rows = {
        i: sum(a * b for a, b in zip(row, x, strict=True))
        for i, row in enumerate(weight)
    }
    return np.fromiter(rows.values(), f4)


# --- parallel_matvec ------------------------------------------------------------------

SHARED = "test_the_rows_are_shared_by_one_prange"


@wrong("parallel_matvec", SHARED, "does not use prange")
def not_shared(weight, x):
    """`range` again."""
    out = np.empty(len(weight), f4)
    for i in range(len(weight)):
        out[i] = (weight[i] * x).sum()
    return out


@wrong("parallel_matvec", SHARED, "prange was called 3 times")
def inner_shared(weight, x):
    """Shares the inner loop, once a row."""
    out = np.zeros(len(weight), f4)
    for i in range(len(weight)):
        for j in prange(len(x)):
            out[i] += weight[i, j] * x[j]
    return out


@wrong("parallel_matvec", SHARED, "prange was called 4 times")
def both_shared(weight, x):
    """Shares both loops."""
    out = np.zeros(len(weight), f4)
    for i in prange(len(weight)):
        for j in prange(len(x)):
            out[i] += weight[i, j] * x[j]
    return out


@wrong("parallel_matvec", SHARED, "should go over the 3 rows")
def columns_shared(weight, x):
    """Shares the columns: several cores add to the same place."""
    out = np.zeros(len(weight), f4)
    for j in prange(len(x)):
        for i in range(len(weight)):
            out[i] += weight[i, j] * x[j]
    return out


@wrong("parallel_matvec", "test_a_shared_product_worked_by_hand", "should be [12, 34]")
def last_row_left_out(weight, x):
    """The last row is never computed."""
    out = np.zeros(len(weight), f4)
    for i in prange(len(weight) - 1):
        out[i] = (weight[i] * x).sum()
    return out


# --- rms_norm -------------------------------------------------------------------------

NORM = "test_a_norm_worked_by_hand"


@wrong("rms_norm", NORM, "not their sum")
def a_sum(x, weight, eps):
    """The length of the vector, not the mean."""
    return weight * (x / f4(np.sqrt((x * x).sum() + eps)))


@wrong("rms_norm", NORM, "The root of the mean")
def no_root(x, weight, eps):
    """Divides by the mean square."""
    return weight * (x / f4(np.mean(x * x) + max(eps, 1e-30)))


@wrong("rms_norm", NORM, "that is LayerNorm")
def layer_norm(x, weight, eps):
    """Subtracts the mean."""
    return weight * ((x - x.mean()) / f4(np.sqrt(x.var() + eps)))


@wrong("rms_norm", NORM, "was changed")
def in_place(x, weight, eps):
    """Works in the array that was given."""
    x *= f4(1 / np.sqrt(np.mean(x * x) + eps))
    return x * weight


@wrong("rms_norm", NORM, "should be float32, not float64")
def norm_in_float64(x, weight, eps):
    """float64 creeps in."""
    return weight * x / np.float64(np.sqrt(np.mean(x * x) + eps))


@wrong("rms_norm", "test_weights_scale_number_by_number", "should be")
def no_weight(x, weight, eps):
    """The weights are forgotten."""
    return rms_norm(x, np.ones_like(weight), eps)


@wrong("rms_norm", "test_eps_is_added_to_the_mean_of_the_squares", "Under the root")
def eps_outside(x, weight, eps):
    """eps is added to the root."""
    return weight * (x / f4(np.sqrt(np.mean(x * x)) + eps))


# --- rotate ---------------------------------------------------------------------------

QUARTER = "test_a_quarter_turn_worked_by_hand"


def turn(x, cos, sin):
    half = x.shape[1] // 2
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), 1).astype(f4)


def angles(x, position, theta, step=1.0):
    half = x.shape[1] // 2
    angle = position / theta ** (step * np.arange(half) / half)
    return np.cos(angle).astype(f4), np.sin(angle).astype(f4)


@wrong("rotate", QUARTER, "The other way round")
def backwards(q, k, position, theta):
    """The signs of the sines are exchanged."""
    return rotate(q, k, -position, theta)


@wrong("rotate", QUARTER, "k of rotate")
def queries_only(q, k, position, theta):
    """The keys are not turned."""
    return rotate(q, k, position, theta)[0], k.copy()


@wrong("rotate", QUARTER, "was changed")
def turned_in_place(q, k, position, theta):
    """Overwrites its arguments."""
    q[:], k[:] = rotate(q, k, position, theta)
    return q, k


@wrong("rotate", "test_a_pair_is_one_number_of_each_half", "not with its neighbour")
def neighbours(q, k, position, theta):
    """Pairs neighbours, as the paper does and GGUF files for llama.cpp."""
    out = []
    for x in (q, k):
        cos, sin = angles(x, position, theta)
        y = np.empty_like(x)
        y[:, ::2] = x[:, ::2] * cos - x[:, 1::2] * sin
        y[:, 1::2] = x[:, 1::2] * cos + x[:, ::2] * sin
        out.append(y)
    return tuple(out)


@wrong("rotate", "test_a_pair_is_one_number_of_each_half", "should be")
def one_angle(q, k, position, theta):
    """All pairs are turned by the same angle."""
    return tuple(turn(x, *angles(x, position, theta, 0.0)) for x in (q, k))


@wrong("rotate", "test_turns_are_those_of_transformers", "heads of 16 at position")
def half_the_exponent(q, k, position, theta):
    """i / d in place of i / half."""
    return tuple(turn(x, *angles(x, position, theta, 0.5)) for x in (q, k))


@wrong("rotate", "test_position_0_turns_nothing", "at position 0")
def from_one(q, k, position, theta):
    """Counts positions from one."""
    return rotate(q, k, position + 1, theta)


# --- attend ---------------------------------------------------------------------------


def attention(q, keys, values, head=None, scale=None, shift=True):
    group = len(q) // len(keys)
    out = np.empty_like(q)
    for h in range(len(q)):
        g = h // group if head is None else head(h)
        s = keys[g] @ q[h] * (q.shape[1] ** -0.5 if scale is None else scale)
        with np.errstate(all="ignore"):
            e = np.exp(s - s.max() if shift else s)
            out[h] = e @ values[g] / e.sum()
    return out


@wrong("attend", "test_attention_worked_by_hand", "Weights add up to 1")
def not_divided(q, keys, values):
    """The softmax is not divided by its sum."""
    return attention(q, keys, values) * f4(keys.shape[1])


@wrong(
    "attend",
    "test_query_heads_side_by_side_share_a_key_value_head",
    "not h % 2",
)
def heads_in_turn(q, keys, values):
    """Query heads take turns."""
    return attention(q, keys, values, head=lambda h: h % len(keys))


@wrong("attend", "test_query_heads_side_by_side_share_a_key_value_head", "should be")
def the_first_head_alone(q, keys, values):
    """All use the first key-value head."""
    return attention(q, keys, values, head=lambda h: 0)


@wrong("attend", "test_scores_are_divided_by_the_root_of_d", "q · k / √d")
def not_scaled(q, keys, values):
    """The root of d is forgotten."""
    return attention(q, keys, values, scale=1.0)


@wrong("attend", "test_scores_are_divided_by_the_root_of_d", "q · k / √d")
def scaled_by_d(q, keys, values):
    """Divides by d."""
    return attention(q, keys, values, scale=1 / q.shape[1])


@wrong("attend", "test_large_scores_do_no_harm", "Subtract the largest score")
def overflows(q, keys, values):
    """exp of the scores as they are."""
    return attention(q, keys, values, shift=False)


@wrong("attend", "test_attention_is_that_of_torch", "2 positions")
def not_itself(q, keys, values):
    """Leaves the token itself out."""
    if keys.shape[1] == 1:
        return attention(q, keys, values)
    return attention(q, keys[:, :-1], values[:, :-1])


# --- step_by_hand ---------------------------------------------------------------------

LOGITS = "test_logits_are_those_of_the_model"


def a_step(w, token, cache, place=None, copy=True, turn_k=True, own=True, norms="123"):
    s, n = w.shape, int(cache.length[0])
    place = n if place is None else place
    x = w.embed[token].copy() if copy else w.embed[token]

    def norm(x, weight, which):
        return rms_norm(x, weight, s.eps) if which in norms else x

    for layer in range(s.layers):
        h = norm(x, w.norm1[layer], "1")
        qkv = (w.qkv[layer] @ h).reshape(-1, s.head_size)
        k = qkv[s.heads : s.heads + s.kv_heads]
        q, turned = rotate(qkv[: s.heads], k, place, s.theta)
        cache.keys[layer, :, n] = turned if turn_k else k
        cache.values[layer, :, n] = qkv[s.heads + s.kv_heads :]
        end = n + 1 if own or n == 0 else n
        seen = attend(q, cache.keys[layer, :, :end], cache.values[layer, :, :end])
        x += w.o[layer] @ seen.reshape(-1)
        h = w.gate_up[layer] @ norm(x, w.norm2[layer], "2")
        gate, up = np.split(h, 2)
        x += w.down[layer] @ (gate / (1 + np.exp(-gate)) * up)
    cache.length[0] = n + 1
    return w.head[0] @ norm(x, w.norm, "3")


@wrong("step_by_hand", LOGITS, "at position 0")
def no_last_norm(weights, token, cache):
    """The last norm is forgotten."""
    return a_step(weights, token, cache, norms="12")


@wrong("step_by_hand", LOGITS, "at position 0")
def no_second_norm(weights, token, cache):
    """The feed-forward network gets x as it is."""
    return a_step(weights, token, cache, norms="13")


@wrong("step_by_hand", LOGITS, "at position 1")
def always_position_0(weights, token, cache):
    """Every token stands at position 0."""
    return a_step(weights, token, cache, place=0)


@wrong("step_by_hand", LOGITS, "at position 1")
def keys_not_turned(weights, token, cache):
    """Keys are kept as they come."""
    return a_step(weights, token, cache, turn_k=False)


@wrong("step_by_hand", LOGITS, "at position 1")
def only_the_past(weights, token, cache):
    """A token does not see itself."""
    return a_step(weights, token, cache, own=False)


@wrong("step_by_hand", "test_the_cache_grows_by_one_token", "should be 1, not 0")
def length_not_counted(weights, token, cache):
    """The cache's length stays."""
    out = a_step(weights, token, cache)
    cache.length[0] -= 1
    return out


@wrong("step_by_hand", "test_the_weights_stay_as_they_are", "is a view")
def into_the_embedding(weights, token, cache):
    """Adds to the embedding itself."""
    return a_step(weights, token, cache, copy=False)


# --- decode_fast ----------------------------------------------------------------------


def loop(weights, ids, new, eos_ids, keep=True, check_prompt=False, extra=0):
    text = ids[0].tolist()
    cache = new_cache(weights, len(text) + new + 2)
    for token in text:
        logits = step_by_hand(weights, token, cache)
    if check_prompt and text[-1] in eos_ids:
        return torch.tensor([text])
    for _ in range(new + extra):
        token = int(logits.argmax())
        if token in eos_ids and not keep:
            break
        text.append(token)
        if token in eos_ids:
            break
        logits = step_by_hand(weights, token, cache)
    return torch.tensor([text])


TOKENS, ENDS = "test_tokens_are_those_of_generate", "an_eos_token"
KEPT = "test_it_stops_after_an_eos_token_which_is_kept"


@wrong("decode_fast", KEPT, "stops too early")
def eos_dropped(weights, ids, max_new_tokens, eos_ids):
    """The EOS token is left out."""
    return loop(weights, ids, max_new_tokens, eos_ids, keep=False)


@wrong("decode_fast", KEPT, "goes on for too long")
def eos_ignored(weights, ids, max_new_tokens, eos_ids):
    """Never stops early."""
    return loop(weights, ids, max_new_tokens, [])


@wrong("decode_fast", KEPT, "goes on for too long")
def first_eos_only(weights, ids, max_new_tokens, eos_ids):
    """One end, where there may be several."""
    return loop(weights, ids, max_new_tokens, eos_ids[:1])


@wrong("decode_fast", TOKENS, "goes on for too long")
def one_too_many(weights, ids, max_new_tokens, eos_ids):
    """One token too many."""
    return loop(weights, ids, max_new_tokens, eos_ids, extra=1)


@wrong("decode_fast", TOKENS, "The result begins with the prompt")
def new_ones_only(weights, ids, max_new_tokens, eos_ids):
    """Returns the new tokens alone."""
    return loop(weights, ids, max_new_tokens, eos_ids)[:, ids.shape[1] :]


@wrong("decode_fast", TOKENS, "differs first at position")
def last_token_only(weights, ids, max_new_tokens, eos_ids):
    """Of the prompt only the last token is fed."""
    rest = loop(weights, ids[:, -1:], max_new_tokens, eos_ids)
    return torch.cat([ids[:, :-1], rest], dim=-1)


@wrong("decode_fast", "test_the_last_token_is_not_fed", "took 6 steps")
def one_step_too_many(weights, ids, max_new_tokens, eos_ids):
    """Feeds the last token, and throws the logits away."""
    return loop(weights, ids, max_new_tokens, eos_ids)


@wrong("decode_fast", "test_the_last_token_is_not_fed", "stops too early")
def one_is_none(weights, ids, max_new_tokens, eos_ids):
    """Returns the prompt when one token is asked for."""
    return ids if max_new_tokens <= 1 else loop(weights, ids, max_new_tokens, eos_ids)


@wrong("decode_fast", "test_an_eos_token_in_the_prompt_ends_nothing", "too early")
def prompt_ends_it(weights, ids, max_new_tokens, eos_ids):
    """An EOS token in the prompt counts."""
    return loop(weights, ids, max_new_tokens, eos_ids, check_prompt=True)


@wrong("decode_fast", "test_no_new_tokens_are_no_work", "goes on for too long")
def at_least_one(weights, ids, max_new_tokens, eos_ids):
    """Always picks one token."""
    return loop(weights, ids, max(1, max_new_tokens), eos_ids)


# --- quantise_int8 --------------------------------------------------------------------

ROUNDED = "test_rounding_worked_by_hand"


@wrong("quantise_int8", ROUNDED, "astype cuts off")
def cut_off(weight):
    """Rounds towards zero."""
    _, scale = quantise_int8(weight)
    return (weight / scale[:, None]).astype(np.int8), scale


@wrong("quantise_int8", ROUNDED, "Each row has a scale of its own")
def one_scale(weight):
    """One scale for all rows."""
    scale = np.full(len(weight), np.abs(weight).max() / 127, f4)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


@wrong("quantise_int8", ROUNDED, "the scale should be float32 of shape (2,)")
def scale_kept_wide(weight):
    """The scale keeps a second axis."""
    q, scale = quantise_int8(weight)
    return q, scale[:, None]


@wrong("quantise_int8", ROUNDED, "the scale should be")
def scale_upside_down(weight):
    """Returns what it multiplied with."""
    q, scale = quantise_int8(weight)
    return q, 1 / scale


@wrong("quantise_int8", ROUNDED, "the integers should be int8")
def integers_in_float(weight):
    """Rounds, and forgets to convert."""
    q, scale = quantise_int8(weight)
    return q.astype(f4), scale


@wrong("quantise_int8", "test_the_largest_may_be_negative", "largest absolute weight")
def largest_not_absolute(weight):
    """The largest, not the largest absolute weight."""
    largest = weight.max(axis=1)
    scale = np.where(largest == 0, 1, largest / f4(127)).astype(f4)
    return np.clip(np.rint(weight / scale[:, None]), -128, 127).astype(np.int8), scale


@wrong("quantise_int8", "test_a_row_of_zeros_stays_zeros", "0 / 0 is NaN")
def zero_by_zero(weight):
    """A row of zeros gets the scale 0."""
    scale = (np.abs(weight).max(axis=1) / f4(127)).astype(f4)
    with np.errstate(all="ignore"):
        return np.nan_to_num(np.rint(weight / scale[:, None])).astype(np.int8), scale


# --- unpack_q4_1 ----------------------------------------------------------------------

BLOCK = "test_a_block_worked_by_hand"


def unpack(blocks, order=(0, 1), interleave=False, signed=False, dtype=f4):
    split = blocks.reshape(len(blocks), -1, 20)
    d, m = (
        np.ascontiguousarray(split[..., i : i + 2]).view("<f2").astype(dtype)
        for i in (0, 2)
    )
    both = split[..., 4:] & 15, split[..., 4:] >> 4
    both = both[order[0]], both[order[1]]
    numbers = np.concatenate(both, axis=-1)
    if interleave:
        numbers = np.stack(both, axis=-1).reshape(numbers.shape)
    numbers = numbers.astype(dtype) - (8 if signed else 0)
    return (d * numbers + m).reshape(len(blocks), -1).astype(f4)


@wrong("unpack_q4_1", BLOCK, "not its neighbour")
def neighbours_in_a_byte(blocks):
    """The two numbers of a byte are neighbours."""
    return unpack(blocks, interleave=True)


@wrong("unpack_q4_1", BLOCK, "The lower four bits come first")
def upper_first(blocks):
    """The upper bits come first."""
    return unpack(blocks, order=(1, 0))


@wrong("unpack_q4_1", BLOCK, "& 15 keeps the lower one")
def whole_bytes(blocks):
    """The lower number is taken to be the whole byte."""
    split = blocks.reshape(len(blocks), -1, 20)
    out = unpack(blocks).reshape(len(blocks), -1, 32)
    d, m = (np.ascontiguousarray(split[..., i : i + 2]).view("<f2") for i in (0, 2))
    out[..., :16] = d.astype(f4) * split[..., 4:] + m.astype(f4)
    return out.reshape(len(blocks), -1)


@wrong("unpack_q4_1", BLOCK, "should be")
def around_eight(blocks):
    """Numbers from -8 to 7, as in Q4_0."""
    return unpack(blocks, signed=True)


@wrong("unpack_q4_1", "test_each_block_has_its_own_scales", "two rows of two blocks")
def scales_of_the_first_block(blocks):
    """The first block's scales serve the whole row."""
    split = blocks.reshape(len(blocks), -1, 20).copy()
    split[:, :, :4] = split[:, :1, :4]
    return unpack(split.reshape(blocks.shape))


@wrong("unpack_q4_1", BLOCK, "should be float32, not float16")
def in_float16(blocks):
    """The result is float16."""
    return unpack_q4_1(blocks).astype(np.float16)


@wrong("unpack_q4_1", "test_weights_are_bit_for_bit_those_of_gguf", "d * number + m")
def rounded_to_float16(blocks):
    """Computes in float16."""
    return unpack(blocks, dtype=np.float16)


# --- q4_matvec ------------------------------------------------------------------------

ONES = "test_a_block_times_ones_worked_by_hand"


@wrong("q4_matvec", ONES, "m belongs to each of the 32 weights")
def least_once(blocks, x):
    """m is added once a block."""
    split = blocks.reshape(len(blocks), -1, 20).copy()
    m = np.ascontiguousarray(split[..., 2:4]).view("<f2")[..., 0].astype(f4)
    split[..., 2:4] = 0
    flat = unpack_q4_1(split.reshape(blocks.shape))
    return (flat @ x + m.sum(axis=1)).astype(f4)


@wrong("q4_matvec", ONES, "should be")
def no_least(blocks, x):
    """m is forgotten."""
    split = blocks.reshape(len(blocks), -1, 20).copy()
    split[..., 2:4] = 0
    return unpack_q4_1(split.reshape(blocks.shape)) @ x


@wrong("q4_matvec", ONES, "should have shape (1,)")
def not_added(blocks, x):
    """Products without the sum."""
    return unpack_q4_1(blocks) * x


@wrong(
    "q4_matvec",
    "test_lower_and_upper_bits_meet_their_own_numbers",
    "Upper bits go with x[j + 16]",
)
def neighbours_of_x(blocks, x):
    """Upper bits go with the next number of x."""
    return unpack(blocks, interleave=True) @ x


@wrong("q4_matvec", "test_products_of_blocks_are_those_of_float64", "4 rows of 20")
def first_block_only(blocks, x):
    """Only the first block of a row."""
    return unpack_q4_1(np.ascontiguousarray(blocks[:, :20])) @ x[:32]


@wrong("q4_matvec", ONES, "should be float32, not float64")
def product_in_float64(blocks, x):
    """The result is float64."""
    return unpack_q4_1(blocks).astype(np.float64) @ x


@wrong("q4_matvec", "test_the_weights_are_never_all_unpacked", "no array of unpacked")
def all_of_them_first(blocks, x):
    """Unpacks the whole matrix, and multiplies."""
    return unpack_q4_1(blocks) @ x
