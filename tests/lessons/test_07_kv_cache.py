"""Checks of lesson 07. Oracles: cases worked by hand, torch's own attention, the model
without a cache, generate."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedConfig

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import random_gpt2, random_llama

attention_with_cache = exercise("attention_with_cache")
cached_step = exercise("cached_step")
position_ids = exercise("position_ids")
decode_cached = exercise("decode_cached")
rollback = exercise("rollback")
reuse_prefix = exercise("reuse_prefix")
cache_bytes = exercise("cache_bytes")

MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


# Functions, so that no answer can change what another is tested with.
def text():
    """Two texts of 6 tokens."""
    return torch.tensor([[5, 17, 40, 8, 9, 60], [61, 62, 33, 34, 35, 7]])


def one():
    """A prompt of 4 tokens, and its mask."""
    return torch.tensor([[5, 17, 40, 8]]), torch.ones(1, 4, dtype=torch.long)


def three():
    """Prompts of 2, 5 and 3 tokens, padded on the left with 0, and their mask."""
    ids = torch.tensor([[0, 0, 0, 60, 61], [5, 17, 40, 8, 9], [0, 0, 33, 34, 35]])
    return ids, (ids > 0).long()


BATCHES = pytest.mark.parametrize("batch", [one, three])


def greedy(logits):
    return logits.max(dim=-1, keepdim=True).indices


def sample(logits):
    return torch.multinomial(logits.softmax(-1), 1)


class Watched:
    """A model that records what it was given."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, input_ids, **options):
        past = options.get("past_key_values")
        length = past.get_seq_length() if past is not None else 0
        self.calls.append({**options, "input_ids": input_ids, "length": length})
        self.calls[-1]["grad"] = torch.is_grad_enabled()
        places = options.get("position_ids")
        if places is not None:
            expect.returned(places, torch.Tensor, "the position_ids of a call")
        assert places is None or places.shape[-1] == input_ids.shape[-1], (
            f"the model was given {counted(input_ids.shape[-1], 'token')} a row and "
            f"{places.shape[-1]} position_ids: only the new tokens' positions"
        )
        return self.model(input_ids, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)

    @property
    def widths(self):
        return [call["input_ids"].shape[1] for call in self.calls]


def full_logits(model, ids):
    """The logits after `ids` without any cache: the oracle."""
    with torch.no_grad():
        return model(ids, use_cache=False).logits[:, -1].float()


def filled(model, ids):
    """A cache of `ids`, filled by the model itself."""
    with torch.no_grad():
        return model(ids, use_cache=True).past_key_values


def length_of(cache, call):
    assert cache is not None, (
        f"{call} returned None as the cache: call the model with use_cache=True, and "
        "return the output's past_key_values, not the argument"
    )
    expect.returned(cache, DynamicCache, call)
    return cache.get_seq_length()


# --- attention_with_cache -------------------------------------------------------------


def column(*values):
    """(1, 1, len, 1)"""
    return torch.tensor(values).reshape(1, 1, -1, 1)


def a_pair(got, call):
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (output, cache)"
    out, cache = got
    expect.returned(cache, (tuple, list), f"{call}: the cache")
    assert len(cache) == 2, f"{call}: the cache should be (keys, values)"
    return out, cache


def test_attention_worked_by_hand(attention_with_cache):
    call = "attention_with_cache with one cached key 0, value 10, and a new 0, 20"
    got = attention_with_cache(
        column(0.0), column(0.0), column(20.0), (column(0.0), column(10.0))
    )
    out, (keys, values) = a_pair(got, call)
    hint = ""
    if isinstance(out, torch.Tensor) and out.numel() == 1:
        if out.item() == 20:
            hint = "The cached value takes part, too."
        elif out.item() == 10:
            hint = "A new position sees itself."
    expect.same(out, column(15.0), call, hint, 1e-5)
    expect.same(keys, column(0.0, 0.0), f"{call}: the keys afterwards")
    hint = "The new ones stand behind the old ones."
    expect.same(values, column(10.0, 20.0), f"{call}: the values afterwards", hint)


def test_scores_are_divided_by_the_root_of_d(attention_with_cache):
    unit = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    zero = torch.zeros(1, 1, 1, 4)
    cache = (torch.cat([unit, zero], -2), torch.cat([zero + 1, zero], -2))
    # The new key scores so low that a mask which hides it makes no difference here.
    got = attention_with_cache(2 * unit, -1000 * unit, zero, cache)
    out, _ = a_pair(got, "attention_with_cache")
    weight = torch.tensor([2 / 2.0, 0.0]).softmax(-1)[0]
    call = "the output for q = [2, 0, 0, 0], cached k [1, 0, 0, 0] and 0, v 1 and 0,"
    expect.same(out, weight.expand(1, 1, 1, 4), call, "Scores are q · k / √d.", 1e-5)


@pytest.mark.parametrize("cuts", [[6], [1, 1, 1, 1, 1, 1], [3, 1, 2], [4, 2]])
def test_any_split_gives_the_attention_of_torch(attention_with_cache, cuts):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=generator)
    oracle = scaled_dot_product_attention(q, k, v, is_causal=True)
    cache, outputs, start = None, [], 0
    call = f"attention_with_cache, 6 positions in pieces of {cuts},"
    for size in cuts:
        part = slice(start, start + size)
        got = attention_with_cache(q[:, :, part], k[:, :, part], v[:, :, part], cache)
        out, cache = a_pair(got, call)
        expect.tensor(out, (2, 4, size, 8), call)
        outputs.append(out)
        start += size
    hint = "New position i sees the cache and the new ones up to itself, no later one."
    far = (torch.cat(outputs, 2) - oracle).abs().amax((0, 1, 3))  # (positions,)
    wrong = [n for n, x in enumerate(far.tolist()) if not x < 1e-5]
    assert not wrong, f"{call} differs from torch's attention at {wrong}. {hint}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attention_in_any_dtype(attention_with_cache, dtype):
    """With scores above 65,504, the largest number of float16."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 2, 5, 64, generator=generator)
    q, k, v = (q * 40 + 30).to(dtype), (k * 0.5 + 40).to(dtype), v.to(dtype)
    oracle = scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)), is_causal=True
    )
    name = str(dtype).removeprefix("torch.")
    call = f"attention_with_cache of {name} tensors, three positions after two,"
    try:
        got = attention_with_cache(q[:, :, :2], k[:, :, :2], v[:, :, :2])
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise AssertionError(
            f"{call} raised RuntimeError: {error}. Mask with -inf, which every dtype "
            "has."
        ) from None
    _, cache = a_pair(got, call)
    got = attention_with_cache(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], cache)
    out, (keys, values) = a_pair(got, call)
    expect.tensor(out, (1, 2, 3, 64), call, dtype)
    expect.tensor(keys, (1, 2, 5, 64), f"{call} the keys,", dtype)
    expect.tensor(values, (1, 2, 5, 64), f"{call} the values,", dtype)
    hint = "There is a nan: a score too large for float16?" if out.isnan().any() else ""
    expect.same(out.double(), oracle[:, :, 2:], call, hint, 0.03)


def test_no_score_is_too_low_to_be_seen(attention_with_cache):
    q, k, v = column(1e5, 1e5), column(-1e5, -1e5), column(10.0, 20.0)
    call = "attention_with_cache where all scores are -1e10, values 10 and 20,"
    out, _ = a_pair(attention_with_cache(q, k, v), call)
    hint = "Mask with -inf: a score may be below any other number."
    expect.same(out, column(10.0, 15.0), call, hint, 1e-4)


def test_arguments_and_old_cache_are_left_alone(attention_with_cache):
    old = (column(1.0, 2.0).repeat(1, 1, 1, 4), column(3.0, 4.0).repeat(1, 1, 1, 4))
    q, k, v = (column(x).repeat(1, 1, 1, 4) for x in (0.5, 5.0, 6.0))
    given = {"q": q, "k_new": k, "v_new": v}
    given |= {"cache[0]": old[0], "cache[1]": old[1]}  # its keys and values
    with expect.unchanged("torch.cat, * and / make new tensors", **given):
        got = attention_with_cache(q, k, v, old)
    _, cache = a_pair(got, "attention_with_cache")
    call = "the keys after one new position behind two"
    expect.same(cache[0][..., :1], column(1.0, 2.0, 5.0), call)


# --- cached_step ----------------------------------------------------------------------


def stepped(got, call):
    """(logits, cache)"""
    assert not isinstance(got, torch.Tensor), (
        f"{call} should return (logits, cache), not one tensor of shape "
        f"{tuple(got.shape)}"
    )
    expect.returned(got, (tuple, list), call)
    assert len(got) == 2, f"{call} should return (logits, cache), not {len(got)} values"
    return got


def near(logits, others):
    """Whether these are the logits `others`."""
    if not isinstance(logits, torch.Tensor) or logits.shape != others.shape:
        return False
    return torch.allclose(logits.float(), others, atol=1e-4)


@MODELS
def test_a_step_gives_the_logits_of_the_whole_text(cached_step, make):
    model = make()
    call = "cached_step of three tokens without a cache"
    logits, cache = stepped(cached_step(model, text()[:, :3], None), call)
    hint = ""
    if near(logits, full_logits(model, text()[:, :1])):
        hint = "These are the logits after the first of them: take the last place."
    expect.same(logits, full_logits(model, text()[:, :3]), call, hint, 1e-4)
    length = length_of(cache, call)
    assert length == 3, f"{call}: the cache's length is {length}, not 3"
    for start, end in ((3, 4), (4, 6)):
        which = f"token {end}" if end == start + 1 else f"tokens {start + 1} and {end}"
        call = f"cached_step of {which} with a cache of {start}"
        token = text()[:, start:end]
        logits, cache = stepped(cached_step(model, token, cache), call)
        hint = ""
        if near(logits, full_logits(model, token)):
            hint = "These are the logits of the token alone. Is the cache passed on: "
            hint += "past_key_values=cache?"
        elif near(logits, full_logits(model, text()[:, [0, 1, 2, 3, 5]])):
            hint = "Token 5 was not fed: give the model all of `token`."
        elif near(logits, full_logits(model, text()[:, : start + 1])):
            hint = "These are the logits after the first of them: take the last place."
        expect.same(logits, full_logits(model, text()[:, :end]), call, hint, 1e-4)
        assert length_of(cache, call) == end, (
            f"{call}: the cache's length is {cache.get_seq_length()} afterwards"
        )


def test_the_model_sees_the_new_token_alone(cached_step):
    model = Watched(random_llama())
    got = cached_step(model, text()[:, :4], None)
    _, cache = stepped(got, "cached_step of four tokens without a cache")
    cached_step(model, text()[:, 4:5], cache)
    assert model.widths == [4, 1], (
        f"the model should be given 4 tokens, then 1; it was given {model.widths}"
    )
    assert [call["length"] for call in model.calls] == [0, 4], (
        "the second call should come with a cache of 4 tokens"
    )
    assert not any(call["grad"] for call in model.calls), (
        "the model was called outside torch.no_grad()"
    )


def test_a_batch_of_one_stays_a_batch(cached_step):
    call = "cached_step of a batch of one text"
    logits, _ = stepped(cached_step(random_llama(), text()[:1], None), call)
    expect.tensor(logits, (1, 97), call)


def test_a_step_is_float32_without_gradients(cached_step):
    model = random_llama().to(torch.bfloat16)
    call = "cached_step of a bfloat16 model"
    logits, _ = stepped(cached_step(model, text(), None), call)
    expect.tensor(logits, (2, 97), call, torch.float32)
    assert not logits.requires_grad, "call the model inside `with torch.no_grad():`"


# --- position_ids ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ([[0, 0, 1, 1, 1]], [[0, 0, 0, 1, 2]]),
        ([[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]]),
        ([[0, 0, 0, 1]], [[0, 0, 0, 0]]),
        ([[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 1]]),
    ],
)
def test_positions_worked_by_hand(position_ids, mask, wanted):
    given = torch.tensor(mask)
    with expect.unchanged("cumsum without _ makes a new tensor", mask=given):
        got = position_ids(given)
    call = f"position_ids({mask})"
    expect.tensor(got, given.shape, call, torch.int64)
    hint = ""
    if got.min() < 0:
        hint = "No position is negative: clamp."
    elif torch.equal(got, given.cumsum(-1)):
        hint = "The first token has position 0."
    elif torch.equal(got, torch.arange(given.shape[1]).expand(given.shape)):
        hint = "Padding does not count."
    elif torch.equal(got, (given.cumsum(0) - 1).clamp(min=0)):
        hint = (
            "That counts down the rows of the batch: count along each row, cumsum(-1)."
        )
    expect.same(got, wanted, call, hint)


def test_positions_of_a_long_text(position_ids):
    mask = torch.ones(2, 300, dtype=torch.long)
    mask[0, :10] = 0
    got = position_ids(mask)
    wanted = torch.stack([torch.arange(300) - 10, torch.arange(300)]).clamp(min=0)
    call = "position_ids of 300 columns, 10 of them padding in row 0"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == wanted.shape and got.max() < 256:
        hint = "No position is above 255: count in int64, not in 8 bits."
    expect.same(got, wanted, call, hint)


def test_positions_are_those_that_make_padding_harmless(position_ids):
    model = random_gpt2()
    ids, mask = three()
    with torch.no_grad():
        padded = model(
            ids, attention_mask=mask, position_ids=position_ids(mask)
        ).logits[:, -1]
    for row, start in ((0, 3), (1, 0), (2, 2)):
        alone = full_logits(model, ids[row : row + 1, start:])
        call = f"GPT-2's logits for row {row} of a padded batch, with your positions,"
        expect.same(padded[row : row + 1], alone, call, "", 1e-4)


# --- decode_cached --------------------------------------------------------------------


def test_each_decode_step_feeds_one_token(decode_cached):
    model = Watched(random_llama(eos_token_id=None))
    ids, mask = three()
    decode_cached(model, ids, mask, 4, greedy, [], 0)
    assert model.widths == [5, 1, 1, 1], (
        f"four steps on five columns should feed 5, 1, 1 and 1 tokens a row; they fed "
        f"{model.widths}"
    )
    for step, call in enumerate(model.calls):
        seen = torch.cat([mask, torch.ones(3, step, dtype=torch.long)], dim=-1)
        given = call.get("attention_mask")
        assert given is not None, "the model was given no attention_mask"
        assert torch.equal(given.long(), seen), (
            f"at step {step} the attention_mask should cover cache and new tokens: "
            f"{expect.show(seen)}, not {expect.show(given)}"
        )
        places = call.get("position_ids")
        assert places is not None, "the model was given no position_ids"
        expect.tensor(places, call["input_ids"].shape, f"position_ids at step {step}")
        wanted = (seen.sum(-1) - 1).tolist()
        where = f"at step {step} the new" if step else "in the prompt the last"
        assert places[:, -1].tolist() == wanted, (
            f"{where} tokens of the rows stand at {wanted}, not at "
            f"{places[:, -1].tolist()}: count the ones of the whole mask"
        )
        assert not call["grad"], "the model was called outside torch.no_grad()"


@pytest.mark.parametrize("pad_id", [0, 7])
def test_finished_rows_get_the_pad_id_and_an_eos_in_the_prompt_ends_nothing(
    decode_cached, pad_id
):
    model = random_llama(eos_token_id=None)
    ids, mask = three()
    free = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    eos_ids = [
        free[0, 6].item(),
        8,
        34,
    ]  # 8 and 34 stand in the prompts of rows 1 and 2
    oracle = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
    )
    got = decode_cached(model, ids, mask, 6, greedy, eos_ids, pad_id)
    call = f"decode_cached with EOS {eos_ids} and pad_id {pad_id}"
    expect.returned(got, torch.Tensor, call)
    hint = ""
    if got.dim() == 2 and got.shape[1] > 5 and got[1:, 5].tolist() == [pad_id] * 2:
        hint = "An EOS in the prompt does not finish a row."
    expect.same_ids(got, oracle, call, hint=hint)


def test_no_new_tokens_give_the_prompt(decode_cached):
    ids, mask = three()
    got = decode_cached(random_llama(), ids, mask, 0, greedy, [], 0)
    expect.same_ids(got, three()[0], "decode_cached with max_new_tokens=0")


@MODELS
@BATCHES
@pytest.mark.parametrize("eos_count", [0, 1, 3])
@pytest.mark.parametrize("pick", [greedy, sample])
def test_cached_tokens_are_those_of_generate(
    decode_cached, make, batch, eos_count, pick
):
    model = make()
    ids, mask = batch()
    out = model.generate(
        three()[0], attention_mask=three()[1], max_new_tokens=6, eos_token_id=None
    )
    eos_ids = [out[0, 6].item(), out[1, 8].item(), out[2, 9].item()][:eos_count]
    torch.manual_seed(0)
    oracle = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=pick is sample,
        top_k=0,
        eos_token_id=eos_ids or None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    got = decode_cached(model, ids, mask, 10, pick, eos_ids, 0)
    name = type(model).__name__
    call = f"decode_cached on {name}, batch of {len(ids)}, EOS {eos_ids}"
    expect.same_ids(got, oracle, call, hint=_of_finished(got, oracle, eos_ids))


def _of_finished(got, oracle, eos_ids) -> str:
    """A hint where a row differs after an EOS of its own, and nowhere else."""
    if not isinstance(got, torch.Tensor) or got.shape[:1] != oracle.shape[:1]:
        return ""
    width = min(got.shape[-1], oracle.shape[-1])
    ends = torch.isin(oracle[:, : width - 1], torch.tensor(eos_ids, dtype=torch.long))
    differ = got[:, 1:width] != oracle[:, 1:width]
    if not eos_ids or bool((differ & (ends.cumsum(-1) == 0)).any()):
        return ""
    return "Finished rows get pad_id; the batch stops when all have finished."


def test_each_new_token_takes_one_call_of_the_model(decode_cached):
    model = Watched(random_llama(eos_token_id=None))
    for new in (1, 20):
        model.calls.clear()
        got = decode_cached(model, *one(), new, greedy, [], 0)
        call = f"decode_cached with {new} new token{'s' * (new != 1)}"
        expect.tensor(got, (1, 4 + new), call, torch.int64)
        late = [n for n, width in enumerate(model.widths) if n and width != 1]
        assert not late, (
            f"{call}: call {late[0] + 1} of the model fed "
            f"{counted(model.widths[late[0]], 'token')} a row, not 1: the cache holds "
            "what was before"
        )
        calls = len(model.calls)
        why = ": the last token is not fed" if calls == new + 1 else ""
        assert calls == new, (
            f"{call} needs {new} call{'s' * (new != 1)} of the model, not {calls}{why}"
        )
        fed = model.widths[0]
        assert fed == 4, f"{call}: the first call fed {fed} tokens, not the prompt's 4"


def test_pick_chooses_each_token_from_float32_logits(decode_cached):
    seen = []

    def pick(logits):
        seen.append(logits.dtype)
        return greedy(logits)

    decode_cached(random_llama().to(torch.bfloat16), *one(), 2, pick, [], 0)
    times = counted(len(seen), "time")
    assert len(seen) == 2, f"for 2 tokens pick should be called 2 times, not {times}"
    assert set(seen) == {torch.float32}, f"pick was given {seen[0]}: make it float32"


def test_prompt_and_mask_stay(decode_cached):
    ids, mask = three()
    hint = "append with torch.cat; cumsum without _ makes a new tensor"
    with expect.unchanged(hint, ids=ids, mask=mask):
        decode_cached(random_llama(), ids, mask, 3, greedy, [], 0)


# --- rollback -------------------------------------------------------------------------


@MODELS
@pytest.mark.parametrize("n", [1, 2, 4])
def test_after_a_rollback_the_text_can_go_on_elsewhere(rollback, make, n):
    model = make()
    cache = filled(model, text()[:, :5])
    short = rollback(cache, n)
    call = f"rollback of a cache of 5 by {n}"
    length = length_of(short, call)
    assert length == 5 - n, f"{call} should have length {5 - n}, not {length}"
    kept, first = short.layers[0].keys, cache.layers[0].keys
    wrong_end = kept.shape == first[:, :, n:].shape and torch.equal(
        kept, first[:, :, n:]
    )
    other = torch.tensor([[50], [51]])
    with torch.no_grad():
        got = model(other, past_key_values=short, use_cache=True).logits[:, -1]
    oracle = full_logits(model, torch.cat([text()[:, : 5 - n], other], dim=-1))
    hint = "The last n entries go, not the first." if wrong_end else ""
    expect.same(got, oracle, f"the logits of a step after {call}", hint, 1e-4)


def test_the_given_cache_stays_as_it_was(rollback):
    model = random_llama()
    cache = filled(model, text())
    before = copy.deepcopy(cache)
    for n in (0, 2):
        copied = rollback(cache, n)
        length = length_of(copied, f"rollback(cache, {n})")
        with torch.no_grad():
            model(torch.tensor([[1], [2]]), past_key_values=copied, use_cache=True)
        assert cache.get_seq_length() == 6, (
            f"after rollback(cache, {n}) and a step, the cache that was given has "
            f"length {cache.get_seq_length()}, not 6: work on a deep copy (copy.copy "
            "shares the layers)"
        )
        assert length == 6 - n, f"rollback(cache, {n}) of a cache of 6 has {length}"
        for mine, theirs in zip(cache.layers, before.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys), "the given cache was changed"


class Length:
    """A cache in words: its own lists layers."""

    def __init__(self, cache):
        self.length = cache.get_seq_length()

    def __repr__(self):
        return f"a cache of length {self.length}"


def test_more_than_there_is_cannot_be_rolled_back(rollback):
    cache = filled(random_llama(), text())
    for n in (-1, 7):
        call = f"rollback of a cache of 6 by {n}"

        def rolled(n=n):
            got = rollback(cache, n)
            return Length(got) if isinstance(got, DynamicCache) else got

        expect.rejects(ValueError, rolled, call)


def test_all_tokens_can_be_rolled_back(rollback):
    call = "rollback of a cache of 6 by 6"
    length = length_of(rollback(filled(random_llama(), text()), 6), call)
    assert length == 0, f"{call} should have length 0, not {length}"


# --- reuse_prefix ---------------------------------------------------------------------


def endings():
    """Four suffixes, of 2, 1, 3 and 2 tokens."""
    suffixes = [[50, 51]], [[60]], [[50, 51, 52]], [[60, 51]]
    return [torch.tensor(x) for x in suffixes]


@MODELS
def test_logits_are_those_of_prefix_and_suffix(reuse_prefix, make):
    model = make()
    got = reuse_prefix(model, text()[:1], endings())
    call = "reuse_prefix with four suffixes"
    expect.returned(got, list, call)
    assert len(got) == 4, f"{call} should return 4 logits, not {len(got)}"
    for n, (logits, suffix) in enumerate(zip(got, endings(), strict=True)):
        oracle = full_logits(model, torch.cat([text()[:1], suffix], dim=-1))
        behind = full_logits(
            model, torch.cat([text()[:1], *endings()[: n + 1]], dim=-1)
        )
        expect.tensor(logits, oracle.shape, f"{call}: the logits of suffix {n}")
        hint = ""
        if n and near(logits, behind):
            hint = "These come after all suffixes before. Each suffix needs a copy "
            hint += "of the prefix's cache."
        elif near(logits, full_logits(model, suffix)):
            hint = "These are the logits of the suffix alone."
        for other, before in enumerate(endings()[:n]):
            whole = torch.cat([text()[:1], before], dim=-1)
            if not hint and near(logits, full_logits(model, whole)):
                hint = f"These are the logits of suffix {other}, {before[0].tolist()}."
        said = f"{call}: the logits of suffix {n}, {suffix[0].tolist()},"
        expect.same(logits, oracle, said, hint, 1e-4)


def test_the_prefix_is_computed_once(reuse_prefix):
    model = Watched(random_llama())
    reuse_prefix(model, text()[:1], endings())
    # In all rows: suffixes of one length may be one batch.
    numbers = [call["input_ids"].numel() for call in model.calls]
    assert sum(numbers) == 6 + 2 + 1 + 3 + 2, (
        f"a prefix of 6 and suffixes of 2, 1, 3 and 2 tokens need 14 positions; the "
        f"model computed {sum(numbers)}, in calls of {numbers}"
    )


def test_logits_after_a_prefix_are_float32(reuse_prefix):
    model = random_llama().to(torch.bfloat16)
    call = "reuse_prefix with a bfloat16 model"
    got = expect.returned(reuse_prefix(model, text()[:1], endings()), list, call)
    for logits in got:
        expect.tensor(logits, (1, 97), f"{call}: logits", torch.float32)
        assert not logits.requires_grad, f"{call}: call it inside torch.no_grad()"


def test_no_suffixes_give_no_logits(reuse_prefix):
    expect.value(reuse_prefix(random_llama(), text()[:1], []), [], "with no suffixes")


# --- cache_bytes ----------------------------------------------------------------------


def test_bytes_worked_by_hand(cache_bytes):
    config = PreTrainedConfig(
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=8,
        hidden_size=64,
        dtype=torch.float64,
    )
    got = cache_bytes(config, 3, 10, torch.float32)
    if got == 61440:
        hint = "Key-value heads count, not attention heads."
    elif got == 30720:
        hint = "The dtype is the one given, float32, not the config's own, float64."
    elif isinstance(got, float) and got == 15360:
        hint = ""
    else:
        hint = "It is 2 (keys and values) * 2 * 4 * 8 * 3 * 10 * 4 bytes."
    call = "cache_bytes with 2 layers, 4 key-value heads of 8, batch 3, 10 positions"
    expect.value(got, 15360, call, hint)
    for dtype, wanted in ((torch.float64, 30720), (torch.float8_e4m3fn, 3840)):
        size = f"{dtype.itemsize} byte{'s' * (dtype.itemsize != 1)}"
        hint = f"A number of {dtype} has {size}: dtype.itemsize."
        got = cache_bytes(config, 3, 10, dtype)
        expect.value(got, wanted, f"{call}, {dtype},", hint)


@pytest.mark.parametrize("head_dim", [{}, {"head_dim": None}], ids=["no", "None"])
def test_the_size_of_a_head_comes_from_the_query_heads(cache_bytes, head_dim):
    config = PreTrainedConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        **head_dim,
    )
    call = "cache_bytes with 4 query heads, 2 key-value heads, hidden_size 32"
    call += ", and head_dim None" if head_dim else ", and no head_dim"
    hint = "A head has hidden_size // num_attention_heads numbers, here 8."
    try:
        got = cache_bytes(config, 1, 1, torch.float32)
    except TypeError as error:
        if "NoneType" not in str(error):
            raise
        raise AssertionError(f"{call} raised TypeError: {error}. {hint}") from None
    expect.value(got, 256, call, hint)


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_a_real_cache(cache_bytes, make, dtype):
    model = make().to(dtype)
    cache = filled(model, text())
    oracle = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    call = (
        f"cache_bytes of a tiny {type(model).__name__}, batch 2, 6 positions, {dtype}"
    )
    hint = ""
    if make is random_gpt2:
        hint = "Without num_key_value_heads or head_dim take num_attention_heads and "
        hint += "hidden_size // num_attention_heads."
    try:
        got = cache_bytes(model.config, 2, 6, dtype)
    except AttributeError as error:
        if error.name not in ("num_key_value_heads", "head_dim"):
            raise
        raise AssertionError(f"{call} raised AttributeError: {error}. {hint}") from None
    if isinstance(got, int) and got == 2 * oracle and dtype.itemsize == 2:
        hint = f"A number of {dtype} has {dtype.itemsize} bytes: dtype.itemsize."
    expect.value(got, oracle, call, hint)
