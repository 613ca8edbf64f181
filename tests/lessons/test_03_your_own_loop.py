"""Checks of lesson 03. Oracles: cases worked by hand, generate, torch.multinomial."""

import math

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import ScriptedModel, random_gpt2, random_llama

next_token_logits = exercise("next_token_logits")
pick_greedy = exercise("pick_greedy")
decode = exercise("decode")
pick_sample = exercise("pick_sample")
multinomial_from_scratch = exercise("multinomial_from_scratch")


# New for each call: an answer that changes it must not spoil the next test.
def prompts():
    return torch.tensor([[5, 17, 40], [60, 61, 62]])


def random_logits(batch=4, vocab=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vocab, generator=generator) * 3


def greedy(logits):
    """Ours, so that a check of `decode` depends on `decode` alone."""
    return logits.max(dim=-1, keepdim=True).indices


class Recorder:
    """A pick function that keeps what it was given."""

    def __init__(self, tokens):
        self.tokens, self.seen = tokens, []

    def __call__(self, logits):
        self.seen.append(logits.clone())
        step = len(self.seen) - 1
        return torch.tensor([[row[step]] for row in self.tokens])


def says_the_same(draw) -> bool:
    """Whether `draw()` gives the same under two seeds."""
    drawn = []
    for seed in (100, 101):
        torch.manual_seed(seed)
        drawn.append(draw())
    return torch.equal(*drawn)


LEAVE_SEED = "It draws the same with another seed: leave the seed to the caller."


# --- next_token_logits ----------------------------------------------------------------


def test_the_logits_of_the_last_position(next_token_logits):
    def by_position(ids):
        return torch.tensor([[[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]])

    got = next_token_logits(ScriptedModel(by_position), torch.tensor([[0, 1]]))
    hint = ""
    if isinstance(got, torch.Tensor) and got.tolist() == [[9.0, 8.0, 7.0]]:
        hint = "The last position holds the prediction for the next token: index -1."
    call = "next_token_logits with a model that returns [[[9, 8, 7], [1, 2, 3]]]"
    expect.same(got, [[1.0, 2.0, 3.0]], call, hint)


@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_agrees_with_the_logits_that_generate_reports(next_token_logits, make):
    model = make()
    report = model.generate(
        prompts(),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    call = "next_token_logits of two rows"
    got = next_token_logits(model, prompts())
    expect.same(got, report.logits[0], call, tolerance=1e-4)


def test_records_no_gradients(next_token_logits):
    got = next_token_logits(random_llama(), prompts())
    expect.tensor(got, (2, 97), "next_token_logits")
    assert not got.requires_grad, (
        "the result carries gradients, which keep every step's activations in memory: "
        "call the model inside `with torch.no_grad():`"
    )


def test_leaves_gradients_on_for_the_caller(next_token_logits):
    next_token_logits(random_llama(), prompts())
    assert torch.is_grad_enabled(), (
        "after the call gradients were off for the whole program: use "
        "`with torch.no_grad():` around the model's call"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_returns_float32_whatever_the_model_computes_in(next_token_logits, dtype):
    got = next_token_logits(random_llama().to(dtype), prompts())
    call = f"next_token_logits of a {dtype} model"
    expect.tensor(got, (2, 97), call, torch.float32)


def test_calls_the_model_once_with_the_ids(next_token_logits):
    model = ScriptedModel.of_tokens([[5, 6], [4, 3]], vocab_size=10)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with expect.unchanged(ids=ids):
        next_token_logits(model, ids)
    assert len(model.calls) == 1, f"the model was called {len(model.calls)} times"
    assert not model.calls[0].grad_enabled, (
        "the model was called with gradients on, which keeps all its activations in "
        "memory: `with torch.no_grad():` belongs around the call"
    )
    assert torch.equal(model.calls[0].input_ids, ids), (
        f"the model was given {expect.show(model.calls[0].input_ids)}, not the ids "
        f"{expect.show(ids)}"
    )


# --- pick_greedy ----------------------------------------------------------------------


def test_the_largest_logit_of_each_row(pick_greedy):
    logits = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])
    with expect.unchanged(logits=logits):
        got = pick_greedy(logits)
    call = "pick_greedy([[1, 5, 2], [7, 0, 3]])"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (2,):
        hint = " Keep the dimension: keepdim=True."
    expect.returned(got, torch.Tensor, call)
    assert got.shape == (2, 1), (
        f"{call} should have shape (2, 1), not {tuple(got.shape)}.{hint}"
    )
    assert got.tolist() != [[5.0], [7.0]], (
        f"{call} should be [[1], [0]], not [[5], [7]]: these are the logits; their "
        "places are asked for"
    )
    expect.tensor(got, (2, 1), call, torch.int64)
    expect.same_ids(got, torch.tensor([[1], [0]]), call)


def test_greedy_picks_for_batches_and_negative_logits(pick_greedy):
    logits = random_logits(batch=3) - 50
    got = expect.tensor(pick_greedy(logits), (3, 1), "pick_greedy", torch.int64)
    for row in range(3):
        values, token = logits[row].tolist(), got[row].item()
        best = max(range(200), key=values.__getitem__)
        assert token == best, (
            f"pick_greedy of 3 rows of logits below 0, row {row}: token {token}, whose "
            f"logit is {values[token]:.1f}, expected {best}, whose logit is "
            f"{values[best]:.1f}."
        )


def test_greedy_is_the_first_step_of_generate(pick_greedy):
    model = random_llama(eos_token_id=None)
    oracle = model.generate(
        prompts(), attention_mask=torch.ones(2, 3, dtype=torch.long), max_new_tokens=1
    )
    with torch.no_grad():
        logits = model(prompts()).logits[:, -1]
    got = pick_greedy(logits)
    expect.tensor(got, (2, 1), "pick_greedy of two rows", torch.int64)
    expect.same_ids(got, oracle[:, -1:], "pick_greedy of a random model's logits")


def test_greedy_of_large_logits_and_of_near_ties(pick_greedy):
    """1e-9 apart, two logits still differ; their float32 probabilities do not."""
    rows = [[100.0, 200.0, 150.0]] + [[0.0, 0.0, 1e-9], [0.0, 1e-9, 0.0]] * 10
    got = pick_greedy(torch.tensor(rows))
    wanted = torch.tensor([[1]] + [[2], [1]] * 10)
    call = "pick_greedy([[100, 200, 150], [0, 0, 1e-9], [0, 1e-9, 0], ...])"
    hint = "Compare the logits themselves: exp overflows, and softmax rounds."
    expect.same_ids(got, wanted, call, hint=hint)


def test_of_tied_logits_greedy_picks_one(pick_greedy):
    got = pick_greedy(torch.tensor([[1.0, 5.0, 5.0], [0.0, 0.0, 0.0]]))
    call = "pick_greedy([[1, 5, 5], [0, 0, 0]])"
    expect.tensor(got, (2, 1), call, torch.int64)
    assert got[0].item() in (1, 2), (
        f"{call} picked {got[0].item()} in row 0, not 1 or 2"
    )
    assert got[1].item() in (0, 1, 2), f"{call} picked {got[1].item()} in row 1"


# --- decode ---------------------------------------------------------------------------


def test_adds_the_picked_tokens_to_the_prompt(decode):
    model = ScriptedModel.of_tokens([[6, 7, 8]], vocab_size=10)
    got = decode(model, torch.tensor([[3, 5]]), 2, greedy)
    call = "decode([[3, 5]], max_new_tokens=2) with a model that says 6, then 7,"
    alone = isinstance(got, torch.Tensor) and got.tolist() == [[6, 7]]
    hint = "The prompt belongs to the result: (batch, seq + new)." if alone else ""
    expect.same_ids(got, torch.tensor([[3, 5, 6, 7]]), call, hint=hint)
    assert len(model.calls) == 2, (
        f"the model was called {len(model.calls)} times, where 2 calls are enough: "
        "what comes after the last token is never used"
    )


def test_each_step_sees_all_tokens_so_far(decode):
    model = ScriptedModel.of_tokens([[6, 7, 8]], vocab_size=10)
    decode(model, torch.tensor([[3, 5]]), 3, greedy)
    seen = [call.input_ids.tolist() for call in model.calls]
    wanted = [[[3, 5]], [[3, 5, 6]], [[3, 5, 6, 7]]]
    hint = ""
    if seen == [[[3, 5]], [[6]], [[7]]]:
        hint = " The new token alone is not enough: each step needs all tokens so far."
    elif seen == [[[3, 5]]] * 3:
        hint = " Is the new token part of the next step's ids?"
    one_by_one = ", then ".join(map(str, wanted))
    assert seen[: len(wanted)] == wanted, (
        f"the model should see {one_by_one}; it saw "
        f"{', '.join(map(expect.show, seen))}.{hint}"
    )
    assert len(seen) == 3, f"3 new tokens need 3 calls of the model, not {len(seen)}"


def test_uses_the_pick_that_it_is_given(decode):
    pick = Recorder([[4, 9], [2, 3]])
    model = ScriptedModel.of_tokens([[6, 7], [1, 1]], vocab_size=10)
    got = decode(model, torch.tensor([[3, 5], [8, 8]]), 2, pick)
    call = "decode with a pick that says 4, 9 for row 0 and 2, 3 for row 1,"
    expect.same_ids(got, torch.tensor([[3, 5, 4, 9], [8, 8, 2, 3]]), call)
    shapes = [tuple(logits.shape) for logits in pick.seen]
    assert shapes == [(2, 10), (2, 10)], (
        f"pick should be called once a step with logits of shape (batch, vocab) = "
        f"(2, 10); it was given {shapes}"
    )
    said = torch.zeros(2, 10)
    said[0, 6] = said[1, 1] = 5.0
    hint = "Hand it the model's logits as they are: how to use them is up to pick."
    if torch.allclose(pick.seen[0].float(), said.log_softmax(-1), atol=1e-4):
        hint = "These are log-probabilities. " + hint
    expect.same(pick.seen[0], said, "what pick is given at the first step", hint)


def test_no_token_is_special_to_the_loop(decode):
    """A prompt of 45 tokens, many of them 0; then tokens that repeat, and EOS."""
    new = [9, 9, 0, 0, 2, 9]
    model = ScriptedModel.of_tokens([new], vocab_size=10)
    prompt = [0, 0, *range(1, 10), *[0] * 20, *range(9), *[2] * 4, 9]
    got = decode(model, torch.tensor([prompt]), 6, greedy)
    call = "decode of a prompt of 45 tokens with a model that says 9, 9, 0, 0, 2, 9,"
    expect.same_ids(got, torch.tensor([prompt + new]), call)
    seen = [call.input_ids.shape[-1] for call in model.calls]
    assert seen == list(range(45, 51)), (
        f"the model should see 45, 46, ... 50 tokens, all so far; it saw {seen}"
    )


@pytest.mark.parametrize("new", [1, 12])
@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_greedy_tokens_are_those_of_generate(decode, make, new):
    model = make(eos_token_id=None)
    oracle = model.generate(
        prompts(),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
    )

    def logits_at(row, position):
        return model(oracle[:, :position]).logits[row, -1]

    with torch.no_grad():
        got = decode(model, prompts(), new, greedy)
        # How close a call it was matters for new tokens only.
        begins = isinstance(got, torch.Tensor) and got[:, :3].equal(prompts())
        call = f"decode with {new} new tokens"
        expect.same_ids(got, oracle, call, logits_at if begins else None)


def test_sampled_tokens_are_those_of_generate_for_the_same_seed(decode):
    model = random_llama(eos_token_id=None)

    def sample(logits):
        return torch.multinomial(logits.softmax(-1), 1)

    for seed in range(3):
        torch.manual_seed(seed)
        oracle = model.generate(
            prompts(),
            attention_mask=torch.ones(2, 3, dtype=torch.long),
            max_new_tokens=8,
            do_sample=True,
            top_k=0,
        )
        torch.manual_seed(seed)
        got = decode(model, prompts(), 8, sample)
        call = f"decode, sampled with seed {seed},"
        hint = ""
        if not torch.equal(got, oracle) and says_the_same(
            lambda: decode(model, prompts(), 8, sample)
        ):
            hint = LEAVE_SEED
        expect.same_ids(got, oracle, call, hint=hint)


def test_no_new_tokens_means_the_prompt(decode):
    model = ScriptedModel.of_tokens([[6]], vocab_size=10)
    got = decode(model, torch.tensor([[3, 5]]), 0, greedy)
    call = "decode with max_new_tokens=0"
    expect.same_ids(got, torch.tensor([[3, 5]]), call)
    assert not model.calls, f"{call} called the model, whose logits nobody needs"


def test_leaves_the_prompt_alone(decode):
    ids = torch.tensor([[3, 5]])
    with expect.unchanged("append with torch.cat, which makes a new tensor", ids=ids):
        decode(ScriptedModel.of_tokens([[6, 7]], vocab_size=10), ids, 2, greedy)


# --- pick_sample ----------------------------------------------------------------------


@pytest.mark.draws(false_alarm=6.5e-9, smallest_error=0.08)
def test_draws_as_often_as_worked_by_hand(pick_sample, seed):
    """4,000 draws with p = 0.75 and p = 0.9, which may be 6 standard deviations off."""
    for temperature, p, wrong in ((1.0, 0.75, 0.5), (0.5, 0.9, 0.634)):
        rows = torch.tensor([[0.0, math.log(3)]]).expand(4000, 2).clone()
        torch.manual_seed(seed)
        got = pick_sample(rows, temperature)
        expect.tensor(got, (4000, 1), "pick_sample of 4,000 rows", torch.int64)
        share = (got == 1).double().mean().item()
        hint = ""
        if temperature == 0.5 and abs(share - wrong) < 0.05:
            hint = " Multiplied by the temperature, where it should be divided?"
        if temperature == 0.5 and abs(share - 0.75) < 0.03:
            hint = (
                " Is the temperature used at all? Dividing the probabilities does "
                "nothing: multinomial rescales them."
            )
        assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / 4000), (
            f"logits [0, ln 3], temperature {temperature}: token 1 should be drawn "
            f"{p:.0%} of the time, not {share:.1%}.{hint}"
        )


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_draws_what_generate_draws_for_the_same_seed(pick_sample, temperature):
    model = random_llama(eos_token_id=None)
    for seed in range(5):
        torch.manual_seed(seed)
        oracle = model.generate(
            prompts(),
            attention_mask=torch.ones(2, 3, dtype=torch.long),
            max_new_tokens=1,
            do_sample=True,
            top_k=0,
            temperature=temperature,
        )[:, -1:]
        with torch.no_grad():
            logits = model(prompts()).logits[:, -1]
        torch.manual_seed(seed)
        got = pick_sample(logits.clone(), temperature)
        call = f"pick_sample at temperature {temperature}, seed {seed},"
        expect.tensor(got, (2, 1), call, torch.int64)
        hint = "Divide, softmax, then one torch.multinomial for the whole batch, and "
        hint += "nothing else: no filter."
        if says_the_same(lambda: pick_sample(random_logits(batch=50))):
            hint = LEAVE_SEED
        expect.same_ids(got, oracle, call, hint=hint)


def test_the_default_temperature_is_1(pick_sample):
    logits = random_logits(batch=50)
    torch.manual_seed(0)
    got = pick_sample(logits.clone())
    torch.manual_seed(0)
    oracle = torch.multinomial(logits.softmax(-1), 1)
    expect.same_ids(got, oracle, "pick_sample(logits) without a temperature")


def test_a_temperature_of_0_or_below_is_refused(pick_sample):
    for temperature in (0, 0.0, -0.5, math.nan):
        expect.rejects(
            ValueError,
            lambda t=temperature: pick_sample(torch.tensor([[1.0, 2.0]]), t),
            f"temperature={temperature}",
        )


@pytest.mark.parametrize("temperature", [1e-3, 1e-4])
def test_a_cold_sample_is_the_likeliest_token(pick_sample, temperature):
    """100 apart after the division: another token comes once in 10 ** 43 draws."""
    rows = torch.tensor([[0.0, 0.1, -0.1], [50.0, 49.9, 30.0]]).repeat(50, 1)
    torch.manual_seed(0)
    hint = "The rows are [0, 0.1, -0.1] and [50, 49.9, 30], and their probabilities "
    hint += "hold inf or nan: softmax of the logits avoids it."
    with expect.hinting(hint, RuntimeError, says="inf"):
        got = pick_sample(rows.clone(), temperature)
    call = "pick_sample of 100 rows, [0, 0.1, -0.1] and [50, 49.9, 30] in turn, "
    call += f"temperature {temperature}"
    hint = "Divide the logits as they are by the temperature as it is, however small."
    expect.same_ids(got, torch.tensor([[1], [0]]).repeat(50, 1), call, hint=hint)


def test_a_second_draw_goes_on_where_the_first_ended(pick_sample):
    logits = random_logits(batch=20)
    torch.manual_seed(0)
    oracle = [torch.multinomial(logits.softmax(-1), 1) for _ in range(2)]
    torch.manual_seed(0)
    got = [pick_sample(logits.clone()) for _ in range(2)]
    hint = "Leave the generator where multinomial leaves it."
    expect.same_ids(got[0], oracle[0], "the first pick_sample(logits)")
    expect.same_ids(got[1], oracle[1], "the second pick_sample(logits)", hint=hint)


@pytest.mark.draws(false_alarm=0.0, smallest_error=0.03)
def test_never_draws_a_removed_token(pick_sample, seed):
    torch.manual_seed(seed)
    logits = torch.full((500, 4), float("-inf"))
    logits[:, 2] = 1.0
    hint = "Each row is [-inf, -inf, 1, -inf]: softmax makes a 0 of -inf, where "
    hint += "-inf - -inf is nan."
    with expect.hinting(hint, RuntimeError, says="inf"):
        got = pick_sample(logits, 0.7)
    expect.tensor(got, (500, 1), "pick_sample", torch.int64)
    assert (got == 2).all(), "a token with logit -inf was drawn"


def test_sampling_leaves_its_input_alone(pick_sample):
    logits = random_logits()
    hint = "`logits /= temperature` changes it, `logits / temperature` does not"
    with expect.unchanged(hint, logits=logits):
        pick_sample(logits, 0.5)


# --- multinomial_from_scratch ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_what_torch_multinomial_draws(multinomial_from_scratch, dtype):
    for seed in range(20):
        logits = random_logits(batch=3, vocab=50, seed=seed).to(dtype)
        if seed % 2:  # some tokens have no probability, as after a filter
            logits[:, ::3] = -float("inf")
        probs = logits.softmax(-1)
        torch.manual_seed(seed)
        oracle = torch.multinomial(probs, num_samples=1)
        torch.manual_seed(seed)
        got = multinomial_from_scratch(probs.clone())
        call = f"multinomial_from_scratch of {dtype} probabilities, seed {seed},"
        expect.tensor(got, (3, 1), call, torch.int64)
        expect.same_ids(got, oracle, call, hint=misread_race(got, probs, seed))


def misread_race(got, probs, seed):
    """What a wrong winner is, where we can tell."""

    def draws(*shape):
        torch.manual_seed(seed)
        return torch.empty(shape, dtype=probs.dtype).exponential_()

    noise, alive = draws(*probs.shape), torch.zeros_like(probs)
    alive[probs > 0] = probs[probs > 0] / draws(int((probs > 0).sum()))
    readings = [
        ("That is the smallest p/E: the largest wins.", (probs / noise).argmin(-1)),
        (
            "That is the largest p times E: p/E is asked for.",
            (probs * noise).argmax(-1),
        ),
        ("That is the smallest E: are the probabilities used?", noise.argmin(-1)),
        (
            "Each row needs its own draws: (batch, vocab) of them.",
            (probs / draws(probs.shape[-1])).argmax(-1),
        ),
        ("A token of probability 0 has its draw, too.", alive.argmax(-1)),
    ]
    for says, winner in readings:
        if torch.equal(got[:, 0], winner):
            return says
    return (
        "One .exponential_() draw for each token of each row; the largest p/E wins. "
        "Other ways to draw Exp(1) use other random numbers."
    )


@pytest.mark.draws(false_alarm=0.0, smallest_error=0.03)
def test_never_draws_what_has_probability_0(multinomial_from_scratch, seed):
    torch.manual_seed(seed)
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).repeat(500, 1)
    got = multinomial_from_scratch(probs)
    expect.tensor(got, (500, 1), "multinomial_from_scratch", torch.int64)
    assert ((got == 1) | (got == 3)).all(), "a token of probability 0 was drawn"


def test_leaves_the_generator_where_multinomial_does(multinomial_from_scratch):
    probs = random_logits(batch=2, vocab=30).softmax(-1)
    torch.manual_seed(3)
    torch.multinomial(probs, 1)
    oracle = torch.rand(1)
    torch.manual_seed(3)
    multinomial_from_scratch(probs.clone())
    assert torch.equal(torch.rand(1), oracle), (
        "the generator stands elsewhere afterwards, so a second draw would differ: use "
        "exactly batch x vocab random numbers"
    )


def test_is_not_torch_multinomial_itself(multinomial_from_scratch, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("write the race yourself, without multinomial")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", refused)
        patch.setattr(torch.Tensor, "multinomial", refused)
        multinomial_from_scratch(torch.tensor([[0.3, 0.7]]))


def test_the_race_leaves_its_input_alone(multinomial_from_scratch):
    probs = torch.tensor([[0.3, 0.7]])
    with expect.unchanged("probs.exponential_() overwrites probs", probs=probs):
        multinomial_from_scratch(probs)
