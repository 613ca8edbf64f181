"""Checks of lesson 14. Oracles: cases worked by hand, float64, transformers' model, the
gguf library, generate.

An answer may be a plain Python function or one that numba has compiled.
"""

import inspect
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from numba import njit
from numba.core.errors import NumbaError
from transformers import LlamaForCausalLM  # noqa: F401, seconds: not in a check's limit

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import random_llama
from tiny_models.kernels import as_they_are, new_cache, read_model

bytes_per_token = exercise("bytes_per_token")
matvec = exercise("matvec")
parallel_matvec = exercise("parallel_matvec")
rms_norm = exercise("rms_norm")
rotate = exercise("rotate")
attend = exercise("attend")
step_by_hand = exercise("step_by_hand")
decode_fast = exercise("decode_fast")
quantise_int8 = exercise("quantise_int8")
unpack_q4_1 = exercise("unpack_q4_1")
q4_matvec = exercise("q4_matvec")

TEXT = [5, 17, 40, 8, 9]


def array(*values):
    return np.array(values, np.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def same(got, wanted, call, hint="", tolerance=1e-5, dtype=np.float32):
    """`got` is a numpy array of this dtype, near `wanted`."""
    expect.returned(got, np.ndarray, call)
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape, (
        f"{call} should have shape {wanted.shape}, not {got.shape}"
    )
    assert got.dtype == dtype, (
        f"{call} should be {np.dtype(dtype).name}, not {got.dtype.name}"
    )
    # Tensors of one dtype: the message shows the numbers that differ.
    pair = (torch.from_numpy(np.array(x, np.float64)) for x in (got, wanted))
    expect.same(*pair, call, hint, tolerance)


def unchanged(hint="make a new array", **arrays):
    return expect.unchanged(hint, **{k: torch.from_numpy(v) for k, v in arrays.items()})


# --- bytes_per_token ------------------------------------------------------------------


class Config:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def small(**more):
    fields = {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 10,
    }
    return Config(**fields | more)


@pytest.mark.parametrize(("bits", "wanted"), [(32, 736), (5, 115), (6.0, 138)])
def test_bytes_worked_by_hand(bytes_per_token, bits, wanted):
    got = bytes_per_token(small(), bits)
    hint = ""
    if bits == 32:
        hints = {
            800: "k and v have fewer rows: num_key_value_heads * d.",
            576: "The head reads vocab_size * hidden_size weights.",
            896: "The embedding is not read: of it one row alone.",
            608: "gate, up and down: three matrices.",
            5888: "Eight bits are a byte.",
            23552: "Eight bits are a byte.",
        }
        hint = hints.get(got, "")
    expect.value(got, wanted, f"bytes_per_token of the card's model, {bits} bits", hint)


def test_every_layer_counts_and_the_head_once(bytes_per_token):
    got = bytes_per_token(small(num_hidden_layers=3), 32)
    hint = "The layers are read one after the other; the head once."
    expect.value(got, 4 * (3 * 144 + 40), "bytes_per_token with three layers", hint)


@pytest.mark.parametrize("head_dim", [None, 2, 6])
def test_a_head_has_its_own_size_where_the_config_says_so(bytes_per_token, head_dim):
    d = head_dim or 2
    wanted = 4 * (2 * 2 * d * 4 + 2 * d * 4 + 96 + 40)
    call = f"bytes_per_token with head_dim {head_dim}, hidden_size 4, 2 heads"
    expect.value(bytes_per_token(small(head_dim=head_dim), 32), wanted, call)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_the_models_matrices(bytes_per_token, tied):
    model = random_llama(tie_word_embeddings=tied, num_hidden_layers=3)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    wanted = sum(m.weight.numel() for m in linear) * 4
    call = "bytes_per_token of a tiny Llama in float32"
    expect.value(bytes_per_token(model.config, 32), wanted, call)


# --- matvec, parallel_matvec ----------------------------------------------------------


def check_by_hand(function, name):
    weight, x = np.array([[1, 2], [3, 4]], np.float32), array(10, 1)
    call = f"{name}([[1, 2], [3, 4]], [10, 1])"
    with unchanged(weight=weight, x=x):
        got = function(weight, x)
    hint = ""
    if isinstance(got, np.ndarray) and got.tolist() == [13, 24]:
        hint = "Rows times x, not columns."
    same(got, array(12, 34), call, hint)


def check_against_float64(function, name):
    for rows, columns in ((5, 12), (1, 7), (6, 1)):
        weight, x = random(rows, columns), random(columns, seed=1)
        wanted = weight.astype(np.float64) @ x
        call = f"{name} with a matrix ({rows}, {columns})"
        same(function(weight, x), wanted, call, tolerance=1e-4)
        slow = weight[::-1]  # rows need not follow each other in memory
        same(function(slow, x), wanted[::-1], f"{call}, its rows reversed,", "", 1e-4)


def test_a_product_worked_by_hand(matvec):
    check_by_hand(matvec, "matvec")


def test_products_are_those_of_float64(matvec):
    check_against_float64(matvec, "matvec")


def test_numba_compiles_it(matvec):
    # Without decorators of Python, which numba does not know
    python = inspect.unwrap(matvec)
    compiled = python if hasattr(python, "py_func") else njit(python)
    try:
        got = compiled(np.array([[1, 2], [3, 4]], np.float32), array(10, 1))
    except NumbaError as error:
        lines = [x.strip() for x in str(error).splitlines() if x.strip()]
        raise AssertionError(
            f"numba cannot compile it: {' '.join(lines[1:3])[:200]}. Use loops over "
            "range, numbers and arrays."
        ) from None
    same(got, array(12, 34), "matvec, compiled by numba,")


def test_a_shared_product_worked_by_hand(parallel_matvec):
    check_by_hand(parallel_matvec, "parallel_matvec")


def test_shared_products_are_those_of_float64(parallel_matvec):
    check_against_float64(parallel_matvec, "parallel_matvec")


def test_the_rows_are_shared_by_one_prange(parallel_matvec):
    function = inspect.unwrap(parallel_matvec)
    function = getattr(function, "py_func", function)
    names, calls = function.__globals__, []
    assert "prange" in function.__code__.co_names, (
        "parallel_matvec does not use prange: only a loop over prange is shared"
    )

    def watched(*bounds):
        calls.append(bounds)
        return range(*bounds)

    before = names.get("prange")
    names["prange"] = watched
    try:
        function(random(3, 5), random(5))
    finally:
        names["prange"] = before
    if not calls:
        return  # numba.prange: it cannot be watched
    assert len(calls) == 1, (
        f"prange was called {len(calls)} times for a matrix of 3 rows and 5 columns. "
        "Share the outer loop, once: each sharing has its price."
    )
    assert range(*calls[0]) == range(3), (
        f"prange{calls[0]} should go over the 3 rows of the matrix (3, 5)"
    )


# --- rms_norm -------------------------------------------------------------------------


def test_a_norm_worked_by_hand(rms_norm):
    x, weight = array(3, 4), array(1, 1)
    with unchanged(x=x, weight=weight):
        got = rms_norm(x, weight, 0.0)
    hint = ""
    if isinstance(got, np.ndarray) and got.shape == (2,):
        if abs(got[0] - 0.6) < 1e-4:
            hint = "The mean of the squares, not their sum."
        elif abs(got[0] - 3 / 12.5) < 1e-4:
            hint = "The root of the mean."
        elif abs(got[0] + 1) < 1e-4:
            hint = "No mean is subtracted: that is LayerNorm."
    wanted = np.array([3, 4]) / 12.5**0.5
    same(got, wanted, "rms_norm([3, 4], [1, 1], 0)", hint)


def test_weights_scale_number_by_number(rms_norm):
    got = rms_norm(array(3, 4), array(2, -1), 0.0)
    wanted = np.array([6, -4]) / 12.5**0.5
    same(got, wanted, "rms_norm([3, 4], [2, -1], 0)")


def test_eps_is_added_to_the_mean_of_the_squares(rms_norm):
    got = rms_norm(array(0, 0), array(1, 1), 1e-5)
    same(got, array(0, 0), "rms_norm of zeros with eps 1e-5")
    got = rms_norm(array(1, 1), array(1, 1), 3.0)
    hint = "Under the root: √(mean + eps)."
    same(got, array(0.5, 0.5), "rms_norm([1, 1], [1, 1], 3)", hint)


def test_norms_are_those_of_torch(rms_norm):
    x, weight = random(32), random(32, seed=1)
    wanted = torch.nn.functional.rms_norm(
        torch.from_numpy(x).double(), (32,), torch.from_numpy(weight).double(), 1e-6
    )
    same(rms_norm(x, weight, 1e-6), wanted.numpy(), "rms_norm of 32 numbers")


# --- rotate ---------------------------------------------------------------------------


def turned(got, call):
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (q, k)"
    return got


def test_a_quarter_turn_worked_by_hand(rotate):
    q, k = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    call = "rotate(q=[[1, 0]], k=[[0, 1]], position π/2)"
    with unchanged(q=q, k=k):
        got_q, got_k = turned(rotate(q, k, np.pi / 2, 10000.0), call)
    hint = ""
    if isinstance(got_q, np.ndarray) and got_q.shape == (1, 2) and got_q[0, 1] < -0.9:
        hint = "The other way round: a cos − b sin, b cos + a sin."
    same(got_q, [[0, 1]], f"q of {call}", hint)
    same(got_k, [[-1, 0]], f"k of {call}")


def test_position_0_turns_nothing(rotate):
    q, k = random(4, 8), random(2, 8, seed=1)
    got_q, got_k = turned(rotate(q, k, 0, 100.0), "rotate at position 0")
    same(got_q, q, "q of rotate at position 0")
    same(got_k, k, "k of rotate at position 0")


def test_a_pair_is_one_number_of_each_half(rotate):
    q = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    got, _ = turned(rotate(q, q[:1].copy(), 1, 16.0), "rotate")
    c, s, slow = np.cos(1), np.sin(1), 1 / 4  # angles 1 and 1 / 16^(1/2)
    wanted = [[c, 0, s, 0], [0, np.cos(slow), 0, np.sin(slow)]]
    hint = ""
    if isinstance(got, np.ndarray) and got.shape == (2, 4) and abs(got[0, 1]) > 0.1:
        hint = "Number i pairs with number i + half, not with its neighbour."
    call = "rotate(q=[[1, 0, 0, 0], [0, 1, 0, 0]], position 1, theta 16): q"
    same(got, wanted, call, hint)


@pytest.mark.parametrize("position", [1, 7, 200])
def test_turns_are_those_of_transformers(rotate, position):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = random(6, 16), random(2, 16, seed=1)
    angle = position / 10000.0 ** (torch.arange(0, 16, 2).double() / 16)
    angles = torch.cat([angle, angle])[None, None]
    wide = (torch.from_numpy(x).double()[None, :, None] for x in (q, k))
    wanted = apply_rotary_pos_emb(*wide, angles.cos(), angles.sin())
    call = f"rotate of 6 and 2 heads of 16 at position {position}"
    got = turned(rotate(q, k, position, 10000.0), call)
    for one, oracle in zip(got, wanted, strict=True):
        same(one, oracle[0, :, 0].numpy(), call, tolerance=1e-4)


# --- attend ---------------------------------------------------------------------------


def test_attention_worked_by_hand(attend):
    keys = np.array([[[5], [7]]], np.float32)
    values = np.array([[[10], [20]]], np.float32)
    q = np.zeros((1, 1), np.float32)
    with unchanged(q=q, keys=keys, values=values):
        got = attend(q, keys, values)
    call = "attend with query 0, keys 5 and 7, values 10 and 20"
    same(got, [[15]], call, "Weights add up to 1.")


def test_query_heads_side_by_side_share_a_key_value_head(attend):
    values = np.array([[[1]], [[2]]], np.float32)
    q, keys = np.zeros((4, 1), np.float32), np.zeros((2, 1, 1), np.float32)
    got = attend(q, keys, values)
    hint = ""
    if isinstance(got, np.ndarray) and got.ravel().tolist() == [1, 2, 1, 2]:
        hint = "Head h uses key-value head h // 2, not h % 2."
    call = "attend with 4 heads, and key-value heads of the values 1 and 2,"
    same(got, [[1], [1], [2], [2]], call, hint)


def test_scores_are_divided_by_the_root_of_d(attend):
    q = np.array([[2, 0, 0, 0]], np.float32)
    keys = np.array([[[1, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
    values = np.array([[[1, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
    share = 1 / (1 + np.exp(-1))  # scores 2 / √4 and 0
    call = "attend with q = [2, 0, 0, 0], keys [1, 0, 0, 0] and 0,"
    same(attend(q, keys, values), [[share, 0, 0, 0]], call, "Scores are q · k / √d.")


def test_large_scores_do_no_harm(attend):
    q, keys = np.full((1, 1), 1000, np.float32), np.array([[[1], [0]]], np.float32)
    values = np.array([[[3], [5]]], np.float32)
    call = "attend with scores of 1000 and 0"
    hint = "Subtract the largest score before exp."
    same(attend(q, keys, values), [[3]], call, hint)
    same(attend(-q, keys, values), [[5]], "attend with scores of -1000 and 0", hint)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_attention_is_that_of_torch(attend, length):
    q = random(6, 8)
    k, v = random(2, length, 8, seed=1), random(2, length, 8, seed=2)
    wide = [torch.from_numpy(x).double()[None] for x in (q[:, None], k, v)]
    oracle = torch.nn.functional.scaled_dot_product_attention(*wide, enable_gqa=True)
    call = f"attend with 6 heads, 2 key-value heads, {length} positions"
    same(attend(q, k, v), oracle[0, :, 0].numpy(), call, tolerance=1e-4)


# --- step_by_hand ---------------------------------------------------------------------

LLAMAS = pytest.mark.parametrize(
    "config",
    [{}, {"head_dim": 6, "rms_norm_eps": 0.1}, {"num_key_value_heads": 1}],
    ids=["small", "heads of 6", "one key-value head"],
)


def llama(config):
    """(model, its arrays). Norms of ones would hide a norm that is left out."""
    model = random_llama(eos_token_id=None, **config)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data = 1 + 0.3 * torch.randn(weight.shape, generator=generator)
    return model, read_model(model, pack=as_they_are)


def full_logits(model, text):
    with torch.no_grad():
        return model(torch.tensor([text]), use_cache=False).logits[0].numpy()


@LLAMAS
def test_logits_are_those_of_the_model(step_by_hand, config):
    model, weights = llama(config)
    wanted, cache = full_logits(model, TEXT), new_cache(weights, 8)
    for n, token in enumerate(TEXT):
        got = step_by_hand(weights, token, cache)
        call = f"step_by_hand at position {n}"
        same(got, wanted[n], call, tolerance=1e-3)


def test_the_cache_grows_by_one_token(step_by_hand):
    model, weights = llama({})
    cache = new_cache(weights, 4)
    for n, token in enumerate(TEXT[:3]):
        before = cache.keys.copy()
        step_by_hand(weights, token, cache)
        assert cache.length[0] == n + 1, (
            f"after {n + 1} steps cache.length[0] should be {n + 1}, not "
            f"{cache.length[0]}"
        )
        rest = [i for i in range(4) if i != n]
        assert np.array_equal(cache.keys[:, :, rest], before[:, :, rest]), (
            f"a step at position {n} should write position {n} of the keys alone"
        )
    with torch.no_grad():
        layers = model(torch.tensor([TEXT[:3]]), use_cache=True).past_key_values.layers
    for name, mine in (("keys", cache.keys), ("values", cache.values)):
        oracle = np.stack([getattr(layer, name)[0].numpy() for layer in layers])
        same(mine[:, :, :3], oracle, f"cache.{name} after three steps", "", 1e-3)


def test_the_weights_stay_as_they_are(step_by_hand):
    _, weights = llama({})
    arrays = {n: v for n, v in weights._asdict().items() if n != "shape"}
    hint = "weights.embed[token] is a view: copy it before you add to it"
    with unchanged(hint, **arrays):
        step_by_hand(weights, 5, new_cache(weights, 2))


def test_two_texts_have_caches_of_their_own(step_by_hand):
    model, weights = llama({})
    one, other = new_cache(weights, 4), new_cache(weights, 4)
    step_by_hand(weights, 5, one)
    step_by_hand(weights, 60, other)
    got = step_by_hand(weights, 17, one)
    call = "step_by_hand of a text, after a step of another text,"
    same(got, full_logits(model, [5, 17])[-1], call, tolerance=1e-3)


# --- decode_fast ----------------------------------------------------------------------


def generated(model, ids, new, eos=None):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )


@pytest.mark.parametrize("prompt", [TEXT, [60]])
def test_tokens_are_those_of_generate(decode_fast, prompt):
    model, weights = llama({})
    ids = torch.tensor([prompt])
    with expect.unchanged("append to a copy", ids=ids):
        got = decode_fast(weights, ids, 8, [])
    call = f"decode_fast with a prompt of {len(prompt)}"
    oracle = generated(model, ids, 8)

    def logits_at(row, step):
        return torch.from_numpy(full_logits(model, oracle[0, :step].tolist())[-1])

    whole = isinstance(got, torch.Tensor) and got.dim() == 2
    if whole and torch.equal(got[:, : len(prompt)], ids):
        expect.same_ids(got, oracle, call, logits_at)
    expect.same_ids(got, oracle, call, hint="The result begins with the prompt.")


def test_it_stops_after_an_eos_token_which_is_kept(decode_fast):
    model, weights = llama({})
    ids = torch.tensor([TEXT])
    free = generated(model, ids, 8)[0].tolist()
    for ends in ([free[7]], [96, free[6], free[9]]):
        got = decode_fast(weights, ids, 8, ends)
        call = f"decode_fast with eos_ids {ends}"
        expect.same_ids(got, generated(model, ids, 8, ends), call)


def test_an_eos_token_in_the_prompt_ends_nothing(decode_fast):
    model, weights = llama({})
    ids = torch.tensor([TEXT])
    got = decode_fast(weights, ids, 3, [TEXT[-1]])
    call = "decode_fast with a prompt that ends in an EOS token"
    expect.same_ids(got, generated(model, ids, 3, [TEXT[-1]]), call)


class Watched(np.ndarray):
    """An embedding that notes which rows are read, by Python (not by compiled code)."""

    def __getitem__(self, at):
        self.read.append(at)
        return np.asarray(self)[at]


@pytest.mark.parametrize("new", [1, 3])
def test_the_last_token_is_not_fed(decode_fast, new):
    model, weights = llama({})
    embed = weights.embed.view(Watched)
    embed.read = []
    ids = torch.tensor([TEXT])
    got = decode_fast(weights._replace(embed=embed), ids, new, [])
    call = f"decode_fast with a prompt of 5 and max_new_tokens {new}"
    expect.same_ids(got, generated(model, ids, new), call)
    steps, wanted = len(embed.read), len(TEXT) + new - 1
    assert steps in (0, wanted), (
        f"{call} took {steps} steps (the embedding was read as often), expected "
        f"{wanted}: the last token is not fed, since nobody asks what follows it"
    )


def test_no_new_tokens_are_no_work(decode_fast):
    _, weights = llama({})
    got = decode_fast(weights, torch.tensor([TEXT]), 0, [])
    expect.same_ids(got, torch.tensor([TEXT]), "decode_fast with max_new_tokens 0")


# --- quantise_int8 --------------------------------------------------------------------


def quantised(got, shape, call):
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (integers, scale)"
    q, scale = got
    for value, name, kind, wanted in (
        (q, "the integers", np.int8, shape),
        (scale, "the scale", np.float32, shape[:1]),
    ):
        expect.returned(value, np.ndarray, f"{call}: {name}")
        assert (value.dtype, value.shape) == (kind, wanted), (
            f"{call}: {name} should be {np.dtype(kind).name} of shape {wanted}, not "
            f"{value.dtype.name} of shape {value.shape}"
        )
    return q, scale


def test_rounding_worked_by_hand(quantise_int8):
    weight = np.array([[1.0, -0.5, 0.25], [0.25, 2.0, 0.0]], np.float32)
    call = "quantise_int8([[1, -0.5, 0.25], [0.25, 2, 0]])"
    with unchanged(weight=weight):
        q, scale = quantised(quantise_int8(weight), (2, 3), call)
    hint = ""
    if q.tolist() == [[127, -63, 31], [15, 127, 0]]:
        hint = "Round to the nearest: astype cuts off."
    elif q[0].tolist() == [64, -32, 16]:
        hint = "Each row has a scale of its own."
    same(scale, [1 / 127, 2 / 127], f"{call}: the scale", hint, 1e-7)
    same(q, [[127, -64, 32], [16, 127, 0]], f"{call}: the integers", hint, 0, np.int8)


def test_the_largest_may_be_negative(quantise_int8):
    weight = np.array([[-4.0, 1.0]], np.float32)
    call = "quantise_int8([[-4, 1]])"
    q, scale = quantised(quantise_int8(weight), (1, 2), call)
    hint = "The largest absolute weight decides."
    same(scale, [4 / 127], f"{call}: the scale", hint, 1e-7)
    same(q, [[-127, 32]], f"{call}: the integers", hint, 0, np.int8)


def test_a_row_of_zeros_stays_zeros(quantise_int8):
    weight = np.array([[0.0, 0.0], [1.0, -1.0]], np.float32)
    call = "quantise_int8([[0, 0], [1, -1]])"
    q, scale = quantised(quantise_int8(weight), (2, 2), call)
    hint = "A row of zeros has the scale 1: 0 / 0 is NaN."
    same(scale, [1, 1 / 127], f"{call}: the scale", hint, 1e-7)
    same(q, [[0, 0], [127, -127]], f"{call}: the integers", hint, 0, np.int8)


def test_weights_come_back_within_half_a_step(quantise_int8):
    weight = random(20, 64) * np.logspace(-3, 2, 20, dtype=np.float32)[:, None]
    call = "quantise_int8 of 20 rows of very different size"
    q, scale = quantised(quantise_int8(weight), (20, 64), call)
    error = np.abs(q * scale[:, None].astype(np.float64) - weight) / scale[:, None]
    assert error.max() <= 0.5 + 1e-3, (
        f"{call}: integers times scale are up to {error.max():.2f} steps from the "
        "weights, not within half a step"
    )
    assert (np.abs(q.astype(int)).max(axis=1) == 127).all(), (
        f"{call}: the largest of each row should become 127 or -127"
    )


# --- unpack_q4_1 ----------------------------------------------------------------------


def block(d, m, numbers):
    """20 bytes, put together as the card says."""
    packed = [numbers[j] | numbers[j + 16] << 4 for j in range(16)]
    scales = np.array([d, m], "<f2").view(np.uint8)
    return np.concatenate([scales, np.array(packed, np.uint8)])


CARD = block(0.5, -1, [15] + [0] * 15 + [2] + [0] * 15)


def test_a_block_worked_by_hand(unpack_q4_1):
    wanted = np.full((1, 32), -1.0)
    wanted[0, 0], wanted[0, 16] = 6.5, 0.0
    with unchanged(blocks=CARD[None]):
        got = unpack_q4_1(CARD[None])
    hint = ""
    if isinstance(got, np.ndarray) and got.shape == (1, 32):
        if got[0, 1] == 0:
            hint = "The upper four bits of a byte are number j + 16, not its neighbour."
        elif got[0, 0] == 0 and got[0, 16] == 6.5:
            hint = "The lower four bits come first."
        elif got[0, 0] == 0.5 * 0x2F - 1:
            hint = "A byte holds two numbers: & 15 keeps the lower one."
    call = "unpack_q4_1 of the card's block"
    same(got, wanted, call, hint, 0)


def test_each_block_has_its_own_scales(unpack_q4_1):
    numbers = list(range(16)) * 2
    parts = [block(d, m, numbers) for d, m in ((1, 0), (0.25, -2), (-0.5, 8), (0, 3))]
    blocks = np.stack([np.concatenate(parts[:2]), np.concatenate(parts[2:])])
    n = np.array(numbers, np.float64)
    wanted = [np.concatenate([n, n / 4 - 2]), np.concatenate([8 - n / 2, n * 0 + 3])]
    call = "unpack_q4_1 of two rows of two blocks"
    same(unpack_q4_1(blocks), np.stack(wanted), call, tolerance=0)


def test_bytes_are_one_row(unpack_q4_1):
    call = "unpack_q4_1 of 40 bytes"
    got = unpack_q4_1(CARD.tobytes() * 2)
    expect.returned(got, np.ndarray, call)
    wanted = np.full((1, 64), -1.0)
    wanted[0, [0, 32]], wanted[0, [16, 48]] = 6.5, 0
    same(got, wanted, call, tolerance=0)


def test_weights_are_bit_for_bit_those_of_gguf(unpack_q4_1):
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = gguf.quantize(random(5, 96), kind)
    call = "unpack_q4_1 of (5, 60) bytes, quantised by the gguf library,"
    got = unpack_q4_1(blocks)
    same(got, gguf.dequantize(blocks, kind), call, "float32: d * number + m.", 0)


# --- q4_matvec ------------------------------------------------------------------------


def test_a_block_times_ones_worked_by_hand(q4_matvec):
    x = np.ones(32, np.float32)
    with unchanged(blocks=CARD[None], x=x):
        got = q4_matvec(CARD[None], x)
    hint = ""
    if isinstance(got, np.ndarray) and got.shape == (1,) and abs(got[0] - 7.5) < 1e-4:
        hint = "m belongs to each of the 32 weights."
    call = "q4_matvec of the card's block and 32 ones"
    same(got, [-23.5], call, hint)


def test_lower_and_upper_bits_meet_their_own_numbers(q4_matvec):
    x = np.zeros(32, np.float32)
    x[[0, 16]] = 1, 10
    call = "q4_matvec of the card's block and x with x[0] = 1, x[16] = 10"
    same(q4_matvec(CARD[None], x), [6.5], call, "Upper bits go with x[j + 16].")


def test_products_of_blocks_are_those_of_float64(q4_matvec):
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = gguf.quantize(random(4, 640), kind)
    blocks[1, :4] = np.array([6e-6, -3e-7], "<f2").view(np.uint8)  # tiny scales
    x = random(640, seed=1)
    wanted = gguf.dequantize(blocks, kind).astype(np.float64) @ x
    call = "q4_matvec of 4 rows of 20 blocks"
    same(q4_matvec(blocks, x), wanted, call, tolerance=1e-4)


def test_the_weights_are_never_all_unpacked(q4_matvec):
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = gguf.quantize(random(64, 256), kind)  # 64 KB, if they were float32
    x = random(256, seed=1)
    q4_matvec(blocks[:1], x)  # what is made once does not count
    tracemalloc.start()
    try:
        q4_matvec(blocks, x)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 32_000, (
        f"q4_matvec of 64 rows of 8 blocks should make no array of unpacked weights, "
        f"which are 65,536 bytes in float32; it took {most:,} bytes at a time"
    )
