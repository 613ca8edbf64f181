"""Wrong answers to lesson 03, and what the learner must be told of each."""

import torch

from course.making.answers import reference, wrong

SEEN = "test_each_step_sees_all_tokens_so_far"
ADDS = "test_adds_the_picked_tokens_to_the_prompt"
OFTEN = "test_draws_as_often_as_worked_by_hand"
SEED = "test_draws_what_generate_draws_for_the_same_seed"
RACE = "test_draws_what_torch_multinomial_draws"


# --- next_token_logits ----------------------------------------------------------------

LAST = "test_the_logits_of_the_last_position"


@wrong("next_token_logits", LAST, "index -1")
def first_position(model, ids):
    """Position 0 predicts the second token, not the next one."""
    with torch.no_grad():
        return model(ids).logits[:, 0].float()


@wrong("next_token_logits", LAST, "should have shape (1, 3), not (1, 1, 3)")
def a_slice_keeps_the_position(model, ids):
    """-1: is a slice, so the dimension of positions stays."""
    with torch.no_grad():
        return model(ids).logits[:, -1:].float()


@wrong("next_token_logits", LAST, "should have shape (1, 3), not (1, 2, 3)")
def logits_of_all_positions(model, ids):
    """All positions, where the last is asked for."""
    with torch.no_grad():
        return model(ids).logits.float()


@wrong("next_token_logits", LAST, "should be [[1, 2, 3]], not [[0.09")
def probabilities(model, ids):
    """Softmax is a later step."""
    with torch.no_grad():
        return model(ids).logits[:, -1].float().softmax(-1)


@wrong("next_token_logits", "test_records_no_gradients", "carries gradients")
def gradients_recorded(model, ids):
    """Without no_grad each step keeps all its activations."""
    return model(ids).logits[:, -1].float()


@wrong("next_token_logits", "test_calls_the_model_once_with_the_ids", "gradients on")
def detached_too_late(model, ids):
    """detach() cuts the result off, after the model has recorded everything."""
    return model(ids).logits[:, -1].float().detach()


@wrong("next_token_logits", "test_leaves_gradients_on_for_the_caller", "were off")
def gradients_off_for_all(model, ids):
    """set_grad_enabled(False) is for the whole program, not for this call."""
    torch.set_grad_enabled(False)
    return model(ids).logits[:, -1].float()


@wrong(
    "next_token_logits",
    "test_returns_float32_whatever_the_model_computes_in",
    "float32",
)
def the_dtype_of_the_model(model, ids):
    """bfloat16 logits have three digits: ties and wrong probabilities."""
    with torch.no_grad():
        return model(ids).logits[:, -1]


@wrong("next_token_logits", "test_calls_the_model_once_with_the_ids", "called 2 times")
def two_calls(model, ids):
    """A second call for the shape costs as much as the first."""
    with torch.no_grad():
        length = model(ids).logits.shape[1]
        return model(ids).logits[:, length - 1].float()


@wrong("next_token_logits", "test_calls_the_model_once_with_the_ids", "not the ids")
def last_token_only(model, ids):
    """The model sees one token and no context."""
    with torch.no_grad():
        return model(ids[:, -1:]).logits[:, -1].float()


# --- pick_greedy ----------------------------------------------------------------------

LARGEST = "test_the_largest_logit_of_each_row"


@wrong("pick_greedy", LARGEST, "Keep the dimension: keepdim=True")
def keepdim_forgotten(logits):
    """(batch,) cannot be put behind (batch, seq)."""
    return logits.argmax(dim=-1)


@wrong("pick_greedy", LARGEST, "should have shape (2, 1), not (1, 3)")
def over_the_batch(logits):
    """dim=0 compares the rows of a batch with each other."""
    return logits.argmax(dim=0, keepdim=True)


@wrong("pick_greedy", LARGEST, "should have shape (2, 1), not (1, 1)")
def one_for_the_whole_batch(logits):
    """Without dim the batch counts as one long row."""
    return logits.argmax().reshape(1, 1)


@wrong("pick_greedy", LARGEST, "these are the logits; their places are asked for")
def the_logit_itself(logits):
    """The largest value, where its place is asked for."""
    return logits.max(dim=-1, keepdim=True).values


@wrong("pick_greedy", LARGEST, "differs first")
def the_smallest(logits):
    """argmin."""
    return logits.argmin(dim=-1, keepdim=True)


@wrong(
    "pick_greedy",
    "test_greedy_picks_for_batches_and_negative_logits",
    "pick_greedy of 3 rows of logits below 0, row 0: token",
)
def largest_magnitude(logits):
    """abs() makes a very unlikely token win."""
    return logits.abs().argmax(dim=-1, keepdim=True)


@wrong("pick_greedy", LARGEST, "differs first")
def row_0_for_all(logits):
    """The first row's token for every row."""
    return logits[:1].argmax(-1, keepdim=True).expand(len(logits), 1)


# --- decode ---------------------------------------------------------------------------


def loop(model, ids, steps, pick):
    for _ in range(steps):
        with torch.no_grad():
            logits = model(ids).logits[:, -1].float()
        ids = torch.cat([ids, pick(logits)], dim=-1)
    return ids


@wrong("decode", ADDS, "The prompt belongs to the result")
def new_tokens_only(model, ids, max_new_tokens, pick):
    """The prompt is left out of the result."""
    return loop(model, ids, max_new_tokens, pick)[:, ids.shape[1] :]


@wrong("decode", ADDS, "stops too early")
def max_length_in_disguise(model, ids, max_new_tokens, pick):
    """Counts the prompt, as max_length does."""
    return loop(model, ids, max(max_new_tokens - ids.shape[1] + 1, 0), pick)


@wrong(
    "decode",
    ADDS,
    "should have shape (1, 4), not (1, 5). The tokens that both have agree; yours goes",
)
def one_token_too_many(model, ids, max_new_tokens, pick):
    """Off by one: range(n + 1)."""
    return loop(model, ids, max_new_tokens + 1, pick)


@wrong("decode", ADDS, "stops too early")
def one_token_too_few(model, ids, max_new_tokens, pick):
    """Off by one: range(1, n)."""
    return loop(model, ids, max_new_tokens - 1, pick)


@wrong("decode", SEEN, "Is the new token part of the next step's ids?")
def always_the_prompt(model, ids, max_new_tokens, pick):
    """The model is asked the same question again and again."""
    out = ids
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(ids).logits[:, -1]
        out = torch.cat([out, pick(logits)], dim=-1)
    return out


@wrong("decode", SEEN, "The new token alone is not enough: each step needs")
def only_the_new_token(model, ids, max_new_tokens, pick):
    """Feeds the last token alone, as one may with a KV cache only."""
    out, step = ids, ids
    for _ in range(max_new_tokens):
        with torch.no_grad():
            step = pick(model(step).logits[:, -1])
        out = torch.cat([out, step], dim=-1)
    return out


@wrong("decode", SEEN, "3 calls are enough")
def a_call_at_the_end(model, ids, max_new_tokens, pick):
    """Computes the logits of the next step before it asks whether there is one."""
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, pick(logits)], dim=-1)
            logits = model(ids).logits[:, -1]
    return ids


@wrong("decode", "test_uses_the_pick_that_it_is_given", "differs first")
def greedy_whatever_was_asked(model, ids, max_new_tokens, pick):
    """Ignores `pick`."""
    return loop(model, ids, max_new_tokens, lambda x: x.argmax(-1, keepdim=True))


@wrong("decode", "test_uses_the_pick_that_it_is_given", "(batch, vocab)")
def pick_gets_every_position(model, ids, max_new_tokens, pick):
    """Hands pick the logits of all positions."""
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = pick(model(ids).logits)
        ids = torch.cat([ids, token.reshape(len(ids), -1)[:, -1:]], dim=-1)
    return ids


@wrong(
    "decode",
    "test_sampled_tokens_are_those_of_generate_for_the_same_seed",
    "It draws the same with another seed: leave the seed",
)
def seeds_by_itself(model, ids, max_new_tokens, pick):
    """A manual_seed inside makes all texts alike."""
    torch.manual_seed(0)
    return loop(model, ids, max_new_tokens, pick)


@wrong("decode", "test_greedy_tokens_are_those_of_generate", "stops too early")
def stops_at_token_2(model, ids, max_new_tokens, pick):
    """Ends a text at some token, which nobody asked for."""
    for _ in range(max_new_tokens):
        ids = loop(model, ids, 1, pick)
        if (ids[:, -1] % 2 == 0).all():
            break
    return ids


@wrong("decode", "test_leaves_the_prompt_alone", "`ids` was changed")
def into_the_prompt(model, ids, max_new_tokens, pick):
    """resize_ makes room in the caller's own tensor."""
    out = loop(model, ids, max_new_tokens, pick)
    return ids.resize_(out.shape).copy_(out)


# --- pick_sample ----------------------------------------------------------------------


def positive(temperature):
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature


@wrong("pick_sample", OFTEN, "Multiplied by the temperature")
def multiplied(logits, temperature=1.0):
    """Times T, where it should be divided by T."""
    return torch.multinomial((logits * positive(temperature)).softmax(-1), 1)


@wrong("pick_sample", OFTEN, "multinomial rescales them")
def after_the_softmax(logits, temperature=1.0):
    """A factor on all probabilities is lost when they are normalised."""
    return torch.multinomial(logits.softmax(-1) / positive(temperature), 1)


@wrong("pick_sample", OFTEN, "Is the temperature used at all?")
def without_temperature(logits, temperature=1.0):
    """The argument is not used."""
    positive(temperature)
    return torch.multinomial(logits.softmax(-1), 1)


@wrong("pick_sample", OFTEN, "should be drawn 75% of the time, not 100")
def no_draw(logits, temperature=1.0):
    """argmax of the probabilities: greedy."""
    return (logits / positive(temperature)).argmax(-1, keepdim=True)


@wrong("pick_sample", OFTEN, "should have shape (4000, 1)")
def flat_tokens(logits, temperature=1.0):
    """(batch,) tokens."""
    return torch.multinomial((logits / positive(temperature)).softmax(-1), 1)[:, 0]


@wrong("pick_sample", SEED, "one torch.multinomial for the whole batch")
def row_by_row(logits, temperature=1.0):
    """A draw for each row, last row first, uses the random numbers in another order."""
    probabilities = (logits / positive(temperature)).softmax(-1)
    rows = [torch.multinomial(p, 1) for p in probabilities.flip(0)]
    return torch.stack(rows[::-1])


@wrong("pick_sample", SEED, "It draws the same with another seed: leave the seed")
def seed_inside(logits, temperature=1.0):
    """With a seed of its own every draw is the same."""
    torch.manual_seed(0)
    return torch.multinomial((logits / positive(temperature)).softmax(-1), 1)


@wrong("pick_sample", SEED, "and nothing else: no filter")
def a_hidden_top_k(logits, temperature=1.0):
    """Keeps 10 tokens, as if that were a part of sampling."""
    lowest = logits.topk(min(10, logits.shape[-1])).values[:, -1:]
    kept = logits.masked_fill(logits < lowest, float("-inf"))
    return torch.multinomial((kept / positive(temperature)).softmax(-1), 1)


@wrong("pick_sample", "test_the_default_temperature_is_1", "without a temperature")
def default_of_0_7(logits, temperature=0.7):
    """Another default."""
    return torch.multinomial((logits / positive(temperature)).softmax(-1), 1)


@wrong("pick_sample", "test_a_temperature_of_0_or_below_is_refused", "temperature=0")
def zero_is_greedy(logits, temperature=1.0):
    """Takes 0 for greedy, in silence."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / positive(temperature)).softmax(-1), 1)


@wrong("pick_sample", "test_sampling_leaves_its_input_alone", "`logits` was changed")
def divided_in_place(logits, temperature=1.0):
    """`/=` changes the caller's logits."""
    logits /= positive(temperature)
    return torch.multinomial(logits.softmax(-1), 1)


@wrong(
    "pick_sample",
    "test_never_draws_a_removed_token",
    "Each row is [-inf, -inf, 1, -inf]: softmax makes a 0 of -inf",
)
def subtracting_the_mean(logits, temperature=1.0):
    """-inf minus -inf is nan, and a nan has no probability."""
    centred = logits - logits.mean(-1, keepdim=True)
    return torch.multinomial((centred / positive(temperature)).softmax(-1), 1)


# --- multinomial_from_scratch ---------------------------------------------------------


@wrong("multinomial_from_scratch", RACE, "use other random numbers")
def minus_log_of_uniform(probs):
    """-log(rand) is exponential, too, but from other random numbers."""
    return (probs / -torch.rand_like(probs).log()).argmax(-1, keepdim=True)


@wrong("multinomial_from_scratch", RACE, "Each row needs its own draws: (batch, vocab)")
def one_race_for_all_rows(probs):
    """(vocab,) draws, shared by all rows."""
    noise = torch.empty(probs.shape[-1], dtype=probs.dtype).exponential_()
    return (probs / noise).argmax(-1, keepdim=True)


@wrong("multinomial_from_scratch", RACE, "That is the smallest p/E: the largest wins")
def the_last_to_finish(probs):
    """argmin of p/E: the slowest wins."""
    noise = torch.empty_like(probs).exponential_()
    return (probs / noise).argmin(-1, keepdim=True)


@wrong("multinomial_from_scratch", RACE, "That is the largest p times E")
def times_instead_of_divided(probs):
    """p times E."""
    noise = torch.empty_like(probs).exponential_()
    return (probs * noise).argmax(-1, keepdim=True)


@wrong(
    "multinomial_from_scratch",
    RACE,
    "That is the smallest E: are the probabilities used?",
)
def probabilities_ignored(probs):
    """The smallest E wins, whatever the probabilities."""
    return torch.empty_like(probs).exponential_().argmin(-1, keepdim=True)


@wrong("multinomial_from_scratch", RACE, "use other random numbers")
def inverse_of_the_cumulative_sum(probs):
    """One uniform number for each row: right on average, with other tokens."""
    u = torch.rand(len(probs), 1, dtype=probs.dtype) * probs.sum(-1, keepdim=True)
    return (probs.cumsum(-1) < u).sum(-1, keepdim=True).clamp(max=probs.shape[-1] - 1)


@wrong("multinomial_from_scratch", RACE, "use other random numbers")
def gumbel(probs):
    """The Gumbel trick is the same race in logarithms, from uniform numbers."""
    noise = -(-torch.rand_like(probs).log()).log()
    return (probs.log() + noise).argmax(-1, keepdim=True)


@wrong(
    "multinomial_from_scratch",
    "test_draws_what_torch_multinomial_draws",
    "should have shape (3, 1)",
)
def race_without_keepdim(probs):
    """(batch,) tokens."""
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


@wrong("multinomial_from_scratch", "test_is_not_torch_multinomial_itself", "the race")
def the_library_itself(probs):
    """Calls what should be written."""
    return torch.multinomial(probs, 1)


@wrong("multinomial_from_scratch", "test_the_race_leaves_its_input_alone", "overwrites")
def noise_into_the_input(probs):
    """probs.exponential_() overwrites the probabilities."""
    before = probs.clone()
    return (before / probs.exponential_()).argmax(-1, keepdim=True)


@wrong(
    "multinomial_from_scratch",
    "test_leaves_the_generator_where_multinomial_does",
    "batch x vocab",
)
def a_draw_too_many(probs):
    """Draws once more than needed, so that all later draws differ."""
    winner = (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)
    torch.rand(1)
    return winner


# --- what only rare data show ---------------------------------------------------------

ANY_TOKEN = "test_no_token_is_special_to_the_loop"
NEAR = "test_greedy_of_large_logits_and_of_near_ties"
COLD = "test_a_cold_sample_is_the_likeliest_token"
next_token_logits = reference("next_token_logits")


@wrong(
    "next_token_logits",
    "test_returns_float32_whatever_the_model_computes_in",
    "not torch.float64",
)
def only_half_precision_is_converted(model, ids):
    """A float64 model's logits stay float64."""
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return logits.float() if half else logits


@wrong("pick_greedy", NEAR, "exp overflows")
def argmax_of_exp(logits):
    """The exponentials of 100 and of 200 are both inf."""
    return logits.exp().argmax(-1, keepdim=True)


@wrong("pick_greedy", NEAR, "softmax rounds")
def argmax_of_probabilities(logits):
    """Nearly equal logits have the same float32 probability."""
    return logits.softmax(-1).argmax(-1, keepdim=True)


@wrong(
    "pick_greedy", "test_of_tied_logits_greedy_picks_one", "should have shape (2, 1)"
)
def places_of_the_maximum(logits):
    """A tie gives two places for one row."""
    return (logits == logits.amax(-1, keepdim=True)).nonzero()[:, 1:]


@wrong("decode", ANY_TOKEN, "all so far")
def window_of_32(model, ids, max_new_tokens, pick):
    """The model sees the last 32 tokens only."""
    for _ in range(max_new_tokens):
        token = pick(next_token_logits(model, ids[:, -32:]))
        ids = torch.cat([ids, token], dim=-1)
    return ids


@wrong("decode", ANY_TOKEN, "stops too early")
def zeros_are_padding(model, ids, max_new_tokens, pick):
    """Counts the tokens that are not 0 to know when there are enough."""
    goal = int((ids[0] != 0).sum()) + max_new_tokens
    while ids.shape[1] < goal:
        ids = torch.cat([ids, pick(next_token_logits(model, ids))], dim=-1)
    return ids


@wrong("decode", ANY_TOKEN, "stops too early")
def stops_at_repetition(model, ids, max_new_tokens, pick):
    """Takes a repeated token for a dead loop."""
    for _ in range(max_new_tokens):
        token = pick(next_token_logits(model, ids))
        repeated = bool((token == ids[:, -1:]).all())
        ids = torch.cat([ids, token], dim=-1)
        if repeated:
            break
    return ids


@wrong(
    "decode",
    "test_uses_the_pick_that_it_is_given",
    "These are log-probabilities. Hand it the model's logits",
)
def log_probabilities_to_pick(model, ids, max_new_tokens, pick):
    """Greedy and sampling do not notice; a pick that reads the logits does."""
    for _ in range(max_new_tokens):
        token = pick(next_token_logits(model, ids).log_softmax(-1))
        ids = torch.cat([ids, token], dim=-1)
    return ids


@wrong("pick_sample", "test_a_temperature_of_0_or_below_is_refused", "temperature=nan")
def nan_is_not_below_0(logits, temperature=1.0):
    """NaN is not <= 0, so it passes."""
    if temperature <= 0:
        raise ValueError("temperature")
    return torch.multinomial((logits / temperature).softmax(-1), 1)


@wrong(
    "pick_sample",
    "test_a_second_draw_goes_on_where_the_first_ended",
    "where multinomial leaves it",
)
def generator_put_back(logits, temperature=1.0):
    """fork_rng puts the generator back: every call draws the same."""
    if not temperature > 0:
        raise ValueError("temperature")
    with torch.random.fork_rng():
        return torch.multinomial((logits / temperature).softmax(-1), 1)


@wrong("pick_sample", COLD, "by the temperature as it is, however small")
def temperature_clamped(logits, temperature=1.0):
    """Raises temperatures below 0.1 to 0.1."""
    if not temperature > 0:
        raise ValueError("temperature")
    return torch.multinomial((logits / max(temperature, 0.1)).softmax(-1), 1)


@wrong("pick_sample", COLD, "hold inf or nan: softmax of the logits avoids it")
def exp_without_the_shift(logits, temperature=1.0):
    """A cold temperature makes inf / inf."""
    if not temperature > 0:
        raise ValueError("temperature")
    weights = torch.exp(logits / temperature)
    return torch.multinomial(weights / weights.sum(-1, keepdim=True), 1)


@wrong("multinomial_from_scratch", RACE, "A token of probability 0 has its draw, too")
def no_draw_for_probability_0(probs):
    """Draws only for the tokens that have a probability."""
    scores, alive = torch.zeros_like(probs), probs > 0
    scores[alive] = probs[alive] / torch.empty_like(probs[alive]).exponential_()
    return scores.argmax(-1, keepdim=True)
