"""Checks of lesson 09. Oracles: cases worked by hand, slow searches in Python, and
`generate`, id for id and score for score."""

import contextlib
import itertools
import math

import pytest
import torch
from transformers import DynamicCache

from course.checks import expect
from course.checks.plugin import exercise
from course.kit.words import counted
from tiny_models import random_gpt2, random_llama

exact_search = exercise("exact_search")
beam_step = exercise("beam_step")
counterexample = exercise("counterexample")
length_normalise = exercise("length_normalise")
reorder_cache = exercise("reorder_cache")
beam_search = exercise("beam_search")
find_bugs = exercise("find_bugs")
diverse_beam_search = exercise("diverse_beam_search")

INF = float("inf")
PAD = 1
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


class Markov:
    """A model whose next token depends on the last one only: row i of the table."""

    def __init__(self, table):
        self.table = torch.tensor(table)
        self.config = type("Config", (), {"vocab_size": len(table)})()
        self.device, self.calls = torch.device("cpu"), []

    def __call__(self, input_ids, past_key_values=None, **options):
        self.calls.append({**options, "input_ids": input_ids})
        self.calls[-1]["grad"] = torch.is_grad_enabled()
        logits = self.table.log()[input_ids]
        cache = past_key_values or DynamicCache()
        return type("Output", (), {"logits": logits, "past_key_values": cache})()


def a_pair(got, call):
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return two values, not {len(got)}"
    return got


def logprob(model, ids, prompt_len):
    """The sum of the log-probabilities of the new tokens: slow, without a cache."""
    total = 0.0
    for place in range(prompt_len, ids.shape[1]):
        with torch.no_grad():
            logits = model(ids[:, :place]).logits[0, -1].double()
        total += logits.log_softmax(-1)[ids[0, place]].item()
    return total


@contextlib.contextmanager
def few_candidates(call, why):
    """topk of more than there are: said with the call, and what to do."""
    try:
        yield
    except RuntimeError as error:
        if "out of range" not in str(error):
            raise
        raise AssertionError(f"{call} raised RuntimeError ({error}): {why}") from None


def same_score(got, wanted, call, hint=""):
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    expect.value(float(got), wanted, f"the score of {call}", hint, 1e-3)


# --- exact_search ---------------------------------------------------------------------

AFTER_2 = [[0.5, 0.5, 0.0], [0.1, 0.9, 0.0], [0.6, 0.4, 0.0]]


def test_the_likeliest_text_worked_by_hand(exact_search):
    call = "exact_search of the table on the card, 2 new tokens"
    ids, score = a_pair(exact_search(Markov(AFTER_2), torch.tensor([[2]]), 2), call)
    hint = ""
    if isinstance(ids, torch.Tensor) and ids.tolist() in ([[2, 0, 0]], [[2, 0, 1]]):
        hint = "That begins as the greedy text: 0.6 times 0.5 is less than 0.4 times "
        hint += "0.9, the probability of 1 1."
    expect.same(ids, [[2, 1, 1]], call, hint)
    expect.returned(score, float, f"the score of {call}")
    hint = "The sum of the log-probabilities: ln 0.36."
    if abs(float(score) - 2 * math.log(0.9)) < 1e-3:
        hint = "The logits at place i predict the token at place i + 1."
    same_score(score, math.log(0.36), call, hint)


@MODELS
@pytest.mark.parametrize("prompt", [[[1]], [[2, 3, 0, 4]]])
def test_the_likeliest_of_all_texts_is_found_with_its_score(exact_search, make, prompt):
    for seed in range(3):
        model = make(5, seed=seed, eos_token_id=None)
        ids = torch.tensor(prompt)
        oracle = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=25,
            max_new_tokens=3,
            do_sample=False,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        call = f"exact_search of a random model of 5 tokens, prompt {prompt[0]}, 3 new "
        call += "ones"
        found, score = a_pair(exact_search(model, ids, 3), call)
        expect.same_ids(found, oracle.sequences, call)
        hint = "Only new tokens count, and each is predicted by the place before it."
        same_score(score, oracle.sequences_scores.item(), call, hint)


def test_nothing_is_likelier(exact_search):
    model, start = random_llama(4, seed=7, eos_token_id=None), torch.tensor([[1, 2]])
    call = "exact_search with 4 tokens"
    found, score = a_pair(exact_search(model, start, 3), call)
    same_score(score, logprob(model, found, 2), f"{call} and of its ids")
    for new in itertools.product(range(4), repeat=3):
        text = torch.tensor([[1, 2, *new]])
        better = logprob(model, text, 2)
        assert better <= float(score) + 1e-3, (
            f"{call} found {float(score):.3f}, but {new} has {better:.3f}"
        )


def test_no_beam_and_no_table_of_states_finds_it(exact_search):
    # Found by search: a beam of 4 or 6 misses the likeliest text, and so does Viterbi's
    # algorithm, which keeps one text for each last token.
    model, start = random_llama(6, seed=26, eos_token_id=None), torch.tensor([[1, 2]])
    texts = torch.tensor([[1, 2, *t] for t in itertools.product(range(6), repeat=4)])
    with torch.no_grad():
        logprobs = model(texts[:, :-1]).logits[:, 1:].double().log_softmax(-1)
    sums = logprobs.gather(-1, texts[:, 2:, None]).sum((1, 2))
    best = sums.argmax()
    call = "exact_search with 6 tokens, 4 new ones"
    found, score = a_pair(exact_search(model, start.clone(), 4), call)
    hint = "Only a search that tries all 1,296 texts finds it."
    same_score(score, sums[best].item(), call, hint)
    expect.same_ids(found, texts[best][None], call, hint=hint)


def test_no_token_ends_a_text(exact_search):
    # 2 comes first or 0; a search for which 2 ends a text takes it, for ln 0.6.
    table = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.4, 0.0, 0.6]]
    table = [[*row, 0.0] for row in table[:3]] + [[0.4, 0.0, 0.6, 0.0]]
    for eos in (2, [2]):
        model = Markov(table)
        model.config.eos_token_id = eos
        model.generation_config = type("Config", (), {"eos_token_id": eos})()
        call = f"exact_search of a model with eos_token_id {eos}, 2 new tokens"
        _, score = a_pair(exact_search(model, torch.tensor([[3]]), 2), call)
        hint = "The token behind an EOS counts as any other: ln 0.6 + ln 0.5."
        same_score(score, math.log(0.6 * 0.5), call, hint)


def test_too_many_texts_are_refused(exact_search):
    # Few more than the limit, so that an answer without it soon ends, and is told so.
    model = Markov([[1 / 18] * 18] * 18)
    call = "exact_search with 18 tokens, 4 new ones (104,976 texts)"
    expect.rejects(
        ValueError, lambda: exact_search(model, torch.tensor([[5]]), 4), call
    )


def test_up_to_100_000_texts_are_tried(exact_search):
    table = [[0.1] * 10] * 10
    call = "exact_search of 10 ** 5 texts"
    found, score = a_pair(exact_search(Markov(table), torch.tensor([[3]]), 5), call)
    expect.tensor(found, (1, 6), call)
    same_score(score, 5 * math.log(0.1), call)


def test_exact_search_needs_no_gradient_and_leaves_the_prompt_alone(exact_search):
    model, ids = Markov(AFTER_2), torch.tensor([[2, 2]])
    with expect.unchanged(ids=ids):
        exact_search(model, ids, 1)
    wasteful = [call for call in model.calls if call["grad"]]
    assert not wasteful, "exact_search should call the model in torch.no_grad()"


# --- beam_step ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
def test_sums_worked_by_hand(beam_step, k):
    scores = torch.tensor([[-1.0, -2.0]])
    logprobs = torch.tensor([[[-3.0, -1.0, -1.2], [-0.5, -2.2, -4.0]]])
    call = f"beam_step([[-1, -2]], [[[-3, -1, -1.2], [-0.5, -2.2, -4]]], {k})"
    got = beam_step(scores, logprobs, k)
    expect.returned(got, tuple, call)
    assert len(got) == 3, f"{call} should return scores, beam and token"
    first = got[0].flatten().tolist() if isinstance(got[0], torch.Tensor) else []
    hint = ""
    for misled, said in (
        ([-2.0, -2.5], "The largest may continue the same beam: it is not the best "),
        ([-0.5, -1.0], "Add the score of the beam to the log-probabilities."),
        ([-2.2, -2.0], "The best one comes first."),
        ([-2.5, -2.2], "The best one comes first."),
        ([-6.0, -4.2], "These are the smallest sums."),
        ([8.0, 4.4], "Logarithms are added, not multiplied."),
    ):
        if len(first) == k and torch.tensor(first[:2]).allclose(torch.tensor(misled)):
            hint = said + ("token of each." if "same beam" in said else "")
    expect.same(got[0], [[-2.0, -2.2, -2.5][:k]], f"the scores of {call}", hint, 1e-6)
    flat = "A flat place is beam * vocab + token"
    hint = f"{flat}: the beam is place // vocab."
    expect.same(got[1], [[0, 0, 1][:k]], f"the beams of {call}", hint)
    hint = f"{flat}: the token is place % vocab."
    expect.same(got[2], [[1, 2, 0][:k]], f"the tokens of {call}", hint)
    for part, name in ((got[1], "beams"), (got[2], "tokens")):
        expect.tensor(part, (1, k), f"the {name} of {call}", torch.int64)


def test_steps_agree_with_a_loop(beam_step):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        batch, beams, vocab, k = 3, (1, 2, 4)[seed % 3], 7, 5
        scores = -5 * torch.rand(batch, beams, generator=generator)
        logits = torch.randn(batch, beams, vocab, generator=generator)
        logprobs = logits.log_softmax(-1)
        call = f"beam_step ({batch} prompts, {counted(beams, 'beam')} each, vocabulary "
        call += f"{vocab}, k={k})"
        got = beam_step(scores.clone(), logprobs.clone(), k)
        expect.returned(got, tuple, call)
        for row in range(batch):
            sums = [
                (scores[row, b].item() + logprobs[row, b, t].item(), b, t)
                for b in range(beams)
                for t in range(vocab)
            ]
            wanted = sorted(sums, reverse=True)[:k]
            parts = zip(*wanted, strict=True)
            names = zip(("scores", "beams", "tokens"), got, parts, strict=True)
            for name, mine, theirs in names:
                hint = ""
                if (
                    mine[row].tolist() == sorted(mine[row].tolist())
                    and name == "scores"
                ):
                    hint = "The best one comes first."
                said = f"the {name} of prompt {row} of {call}"
                expect.same(mine[row], list(theirs), said, hint, 1e-5)


def test_long_texts_keep_their_order(beam_step):
    # exp(-200) is 0 in float32: the order is lost where probabilities are compared.
    scores = torch.tensor([[-200.0, -201.0]])
    logprobs = torch.tensor([[[-3.0, -1.0, -1.25], [-0.25, -2.5, -4.0]]])
    call = "beam_step([[-200, -201]], [[[-3, -1, -1.25], [-0.25, -2.5, -4]]], 4)"
    got = beam_step(scores, logprobs, 4)
    hint = "Stay with logarithms: exp(-200) is 0 in float32."
    if isinstance(got[0], torch.Tensor) and not got[0].isinf().any():
        hint = ""
    wanted = [[-201.0, -201.25, -201.25, -203.0]]
    expect.same(got[0], wanted, f"the scores of {call}", hint, 1e-4)


def test_a_beam_of_minus_infinity_is_never_continued(beam_step):
    scores = torch.tensor([[0.0, -INF]])
    logprobs = torch.tensor([[[-1.0, -2.0, -3.0], [-0.1, -0.2, -0.3]]])
    call = "beam_step with a second beam of -inf"
    got = beam_step(scores, logprobs, 3)
    expect.same(got[1], [[0, 0, 0]], f"the beams of {call}")


def test_a_step_leaves_its_arguments_alone(beam_step):
    scores, logprobs = -torch.ones(2, 3), torch.randn(2, 3, 5)
    with expect.unchanged(scores=scores, logprobs=logprobs):
        beam_step(scores, logprobs, 4)


# --- counterexample -------------------------------------------------------------------


def best_of(table, width):
    """Probability and tokens of the best text of a search with `width` beams."""
    beams = [(1.0, (0,))]
    for _ in range(3):
        grown = [
            (p * table[text[-1]][token], (*text, token))
            for p, text in beams
            for token in range(len(table))
        ]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return beams[0]


def test_it_is_a_table_of_probabilities(counterexample):
    table = counterexample()
    expect.returned(table, torch.Tensor, "counterexample()")
    shape = tuple(table.shape)
    square = len(shape) == 2 and shape[0] == shape[1] <= 10
    assert square, f"counterexample() has the shape {shape}: make it square, up to 10"
    low, sums = table.min().item(), table.double().sum(-1)
    assert low >= 0, f"a probability is not below 0: {low}"
    for row, total in enumerate(sums.tolist()):
        assert abs(total - 1) < 1e-4, f"row {row} sums to {total:.4f}, not to 1"


def test_greedy_finds_a_likelier_text_than_two_beams(counterexample):
    table = counterexample().double().tolist()
    (greedy, one), (beams, two) = best_of(table, 1), best_of(table, 2)
    found = f"greedy finds {one[1:]} with {greedy:.4f}"
    found += f", two beams {two[1:]} with {beams:.4f}"
    assert greedy > beams + 1e-6, (
        f"{found}: greedy should be likelier. At the second step two other beginnings "
        "must throw out the greedy one, and pay for it at the third."
    )


def test_the_result_does_not_hang_on_equal_products(counterexample):
    table, generator = counterexample().double(), torch.Generator().manual_seed(0)
    won = []
    for _ in range(20):  # so little that only what is equal can change places
        noise = torch.rand(table.shape, generator=generator, dtype=torch.double)
        rows = (table * (1 + 1e-7 * noise)).tolist()
        won.append(best_of(rows, 1)[0] > best_of(rows, 2)[0])
    assert all(won) or not any(won), (
        "two products are equal, and the winner depends on which of them comes first: "
        "take numbers that differ"
    )


# --- length_normalise -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "wanted", "hint"),
    [
        (1.0, -2.0, ""),
        (0.0, -6.0, "length ** 0 is 1."),
        (2.0, -0.66667, "The length to the power of alpha."),
        (-1.0, -18.0, "A negative power multiplies."),
    ],
)
def test_norms_worked_by_hand(length_normalise, alpha, wanted, hint):
    call = f"length_normalise(-6.0, 3, {alpha})"
    got = length_normalise(-6.0, 3, alpha)
    assert not isinstance(got, complex), f"{call} returned a complex number"
    if alpha == 1:
        hint = {
            -18.0: "Divide by the length to the power of alpha.",
            -4.5: "Divide by 3, not by (5 + 3) / 6.",
            -1.5: "Divide by 3, not by 4.",
        }.get(round(float(got), 4), "")
    expect.value(float(got), wanted, call, hint, 1e-4)


def test_a_tensor_of_scores_stays_one(length_normalise):
    call = "length_normalise(tensor([-8, -2]), 4, 0.5)"
    try:
        got = length_normalise(torch.tensor([-8.0, -2.0]), 4, 0.5)
    except (RuntimeError, ValueError) as error:
        if "converted to" not in str(error):
            raise
        raise AssertionError(
            f"{call} raised {type(error).__name__}: {error}. A tensor of scores gives "
            "a tensor: leave out float()"
        ) from None
    expect.same(got, [-4.0, -1.0], call, "", 1e-5)


def test_scores_that_were_given_stay_as_they_are(length_normalise):
    score = torch.tensor([-8.0, -2.0])
    hint = "divide into a new tensor (`/=` changes the caller's)"
    with expect.unchanged(hint, score=score):
        length_normalise(score, 4, 0.5)


def test_the_score_of_one_token_is_its_own(length_normalise):
    got = length_normalise(-3.0, 1, 2.0)
    expect.value(float(got), -3.0, "length_normalise(-3.0, 1, 2.0)", "", 1e-6)


def test_a_text_without_tokens_has_no_score(length_normalise):
    for length, alpha in itertools.product((0, -1), (1.0, 0.0)):
        call = f"length_normalise(-1.0, {length}, {alpha})"
        expect.rejects(
            ValueError, lambda n=length, a=alpha: length_normalise(-1.0, n, a), call
        )


# --- reorder_cache --------------------------------------------------------------------

ROWS = torch.tensor([[5, 17, 40, 8], [61, 62, 33, 34], [9, 11, 12, 13]])


@MODELS
@pytest.mark.parametrize("beam", [[1, 1, 0], [2, 0, 1], [0], [2, 2, 1, 0, 0]])
def test_rows_follow_their_beams(reorder_cache, make, beam):
    model, beam = make(), torch.tensor(beam)
    token = torch.arange(20, 20 + len(beam))[:, None]
    with torch.no_grad():
        cache = model(ROWS, use_cache=True).past_key_values
        oracle = model(torch.cat([ROWS[beam], token], dim=-1)).logits[:, -1]
    call = f"reorder_cache of three rows with beam {beam.tolist()}"
    got = expect.returned(reorder_cache(cache, beam), DynamicCache, call)
    rows = got.layers[0].keys.shape[0]
    assert rows == len(beam), f"{call} has {rows} rows"
    with torch.no_grad():
        logits = model(token, past_key_values=got, use_cache=True).logits[:, -1]
    hint = (
        "Row i of the new cache is row beam[i] of the old one: of the keys and of the "
        "values, in every layer."
    )
    expect.same(logits, oracle, f"the logits after {call}", hint, 1e-3)


@pytest.mark.parametrize("beam", [[2, 2, 0], [0, 1, 2]])
def test_the_old_cache_stays_as_it_is(reorder_cache, beam):
    model = random_llama()
    with torch.no_grad():
        cache = model(ROWS, use_cache=True).past_key_values
    before = [layer.keys.clone() for layer in cache.layers]
    new = reorder_cache(cache, torch.tensor(beam))
    for layer, keys in zip(cache.layers, before, strict=True):
        assert layer.keys.equal(keys), (
            "reorder_cache changed the old cache: make a deep copy first (copy.copy "
            "shares the layers)"
        )
    new.layers[0].keys.zero_()
    new.layers[0].values.zero_()
    assert cache.layers[0].keys.equal(before[0]), (
        f"the result of reorder_cache with beam {beam} shares the memory of the old "
        "cache: return a copy, also when no row moves"
    )


# --- beam_search ----------------------------------------------------------------------


def generated(model, ids, mask, *, beams, new, power, early, eos):
    return model.generate(
        ids,
        attention_mask=mask,
        num_beams=beams,
        max_new_tokens=new,
        do_sample=False,
        length_penalty=power,
        early_stopping=early,
        eos_token_id=eos or None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )


def prompts(seed, batch=2, length=4, vocab=30):
    """A batch padded on the left, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        ids[row, :row], mask[row, :row] = PAD, 0
    return ids, mask


class Remembers(Markov):
    """A Markov model with a real cache: it notes each text that it is asked about."""

    def __init__(self, table):
        super().__init__(table)
        self.texts = []

    def __call__(self, input_ids, past_key_values=None, **options):
        cache = past_key_values or DynamicCache()
        fed = input_ids[:, None, :, None].float()  # (rows, heads, seq, head_dim)
        texts, _ = cache.update(fed, fed.clone(), 0)
        self.texts += texts[:, 0, :, 0].long().tolist()
        return super().__call__(input_ids, past_key_values=cache, **options)


# Greedy takes 1, and then nothing is likely; both best texts begin with 2.
AFTER_0 = [0.0, 0.55, 0.45, 0.0]
TWO_WAYS = [AFTER_0, [0.25] * 4, [0.04, 0.5, 0.0, 0.46], AFTER_0]


def test_two_beams_worked_by_hand(beam_search):
    ids = torch.tensor([[0]])
    call = (
        "beam_search of the prompt 0, K = 2, 2 new tokens (behind 0: P(1) = 0.55, "
        "P(2) = 0.45; behind 1 each token has 0.25; behind 2: P(1) = 0.5, P(3) = 0.46)"
    )
    got, score = a_pair(
        beam_search(
            Markov(TWO_WAYS), ids, torch.ones_like(ids), 2, 2, 0.0, True, [], PAD
        ),
        call,
    )
    hint = ""
    if isinstance(got, torch.Tensor) and got.tolist() == [[0, 2, 3]]:
        hint = "The result is the best finished text."
    elif isinstance(got, torch.Tensor) and got.tolist()[0][1:2] == [1]:
        hint = "At first only one copy has the score 0, the others -inf: or all stay"
        hint += " equal, and the search is greedy."
    expect.same(got, [[0, 2, 1]], call, hint)
    hint = "A sum of log-probabilities (log_softmax): ln 0.45 + ln 0.5."
    same_score(score, math.log(0.45 * 0.5), call, hint)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_score_counts_new_tokens_and_normalised_logits(beam_search, shift):
    model, ids = Markov(TWO_WAYS), torch.tensor([[1, 3, 0]])
    model.table = model.table * math.exp(shift)  # so that logits are no logarithms
    call = "beam_search of a prompt of 3 tokens, 2 new ones, length_penalty 1"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 2, 1.0, True, [], PAD), call
    )
    hint = "It is (ln 0.45 + ln 0.5) / 2."
    if isinstance(score, torch.Tensor) and score.numel() == 1:
        divisor = math.log(0.45 * 0.5) / score.item() if score.item() else 0
        if score.item() > 0:
            hint += " log_softmax makes log-probabilities of the model's logits."
        elif abs(divisor - round(divisor)) < 1e-3:
            hint = "ln 0.45 + ln 0.5 is divided by the 2 new tokens, not by "
            hint += f"{round(divisor)}."
    same_score(score, math.log(0.45 * 0.5) / 2, call, hint)
    expect.same(got, [[1, 3, 0, 2, 1]], call)


def test_the_cache_follows_the_beams_of_each_prompt(beam_search):
    model, ids = Remembers(TWO_WAYS), torch.tensor([[0], [3]])
    beam_search(model, ids, torch.ones_like(ids), 2, 3, 0.0, True, [], PAD)
    seen = sorted(text for text in model.texts if len(text) == 3)
    hint = (
        "Both beams of a prompt go on from its 2: ids, mask and cache follow the beams "
        "that are continued. Row of beam j of prompt i: i * K + j."
    )
    said = "the texts (cache and token) that the model sees at the third step"
    expect.value(seen, [[0, 2, 1], [0, 2, 3], [3, 2, 1], [3, 2, 3]], said, hint)


def test_a_search_that_is_over_takes_no_more_texts(beam_search):
    # After 0 two ends (2, 3) come at once; 1 and an end would be better. 5 goes on.
    even = [1 / 6] * 6
    last = [0.02, 0.02, 0.9, 0.02, 0.02, 0.02]
    model = Markov(
        [[0.1, 0.2, 0.3, 0.25, 0.1, 0.05], last, even, even, last]
        + [[0.2, 0.05, 0.0, 0.0, 0.7, 0.05]]
    )
    ids = torch.tensor([[0], [5]])
    call = "beam_search of two prompts, early_stopping=True, length_penalty 2"
    got, scores = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 3, 2.0, True, [2, 3], PAD),
        call,
    )
    hint = (
        "The first prompt has two finished texts after the first step: its search is "
        "over, and nothing is added while the other prompt goes on."
    )
    same_score(scores[0], math.log(0.3), f"prompt 0, {call}", hint)
    expect.same(got[0, :2], [0, 2], f"prompt 0, {call}", hint)


FIRST = [0.0, 0.0, 0.2, 0.3, 0.5]


def test_an_end_at_place_three_is_dropped(beam_search):
    # After 0: 4 (0.5), 3 (0.3), 2 = EOS (0.2, third). After 3 and 4 no end is near.
    table = [FIRST, [0.2] * 5, [0.2] * 5] + [[0.35, 0.35, 0.01, 0.24, 0.05]] * 2
    model, ids = Markov(table), torch.tensor([[0]])
    call = "beam_search with K = 2, an EOS at the third place, and 2 new tokens"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 2, 0.0, "never", [2], PAD),
        call,
    )
    hint = "Of the candidates only the first K may end: this one had no place."
    wanted = math.log(0.5 * 0.35)  # less than 0.2
    short = isinstance(got, torch.Tensor) and got.tolist()[0][:2] == [0, 2]
    same_score(score, wanted, call, hint if short else "")
    expect.tensor(got, (1, 3), call)


def test_an_end_among_the_first_is_kept(beam_search):
    table = [[0.0, 0.0, 0.4, 0.1, 0.5]] + [[0.2] * 5] * 4
    model, ids = Markov(table), torch.tensor([[0]])
    call = "beam_search with K = 2, an EOS at the second place, length_penalty 0"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 3, 0.0, "never", [2], PAD),
        call,
    )
    hint = "A finished text is put aside and may win in the end: ln 0.4."
    same_score(score, math.log(0.4), call, hint)
    expect.same(got, [[0, 2]], call)


def test_an_ended_text_is_no_running_beam(beam_search):
    # After 0 come the ends 2 and 3, then 4, which a 2 follows nearly for certain.
    even = [1 / 6] * 6
    last = [0.02, 0.02, 0.9, 0.02, 0.02, 0.02]
    model = Markov([[0.0, 0.0, 0.4, 0.3, 0.2, 0.1], even, even, even, last, even])
    ids = torch.tensor([[0]])
    call = "beam_search with K = 2, length_penalty 1, early_stopping=False, EOS 2 and 3"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 3, 1.0, False, [2, 3], PAD),
        call,
    )
    hint = (
        "After step 1 the texts 2 (-0.92) and 3 (-1.20) are finished. The best beam "
        "that has not ended, 4, has -1.61 at its present length, worse than both: it "
        "is over."
    )
    expect.returned(got, torch.Tensor, call)
    expect.value(got.tolist(), [[0, 2]], call, hint)
    same_score(score, math.log(0.4), call, hint)


def test_no_beam_goes_on_behind_an_end(beam_search):
    # After 0: 3 (0.5), 2 = EOS (0.35), 7 (0.15): the end is the second of two places.
    model, ids = Remembers(STOPS), torch.tensor([[0]])
    beam_search(model, ids, torch.ones_like(ids), 2, 3, 1.0, "never", [2], PAD)
    behind = [text for text in model.texts if 2 in text]
    assert not behind, (
        "beam_search with K = 2, 3 new tokens, early_stopping='never' and the EOS 2: "
        f"the model was asked what follows {behind[0]}, which has ended: the new beams "
        "are the best K of the candidates that are not done"
    )


# After 0 comes 3 (or 2, the EOS), after 3 comes 2 (or 4), after 4 comes 2 (or 5); 5 and
# 6 go on with 6 nearly for certain.
STOPS = [
    [0.0, 0.0, 0.35, 0.5, 0.0, 0.0, 0.0, 0.15],
    [1 / 8] * 8,
    [1 / 8] * 8,
    [0.01, 0.01, 0.55, 0.01, 0.4, 0.0, 0.01, 0.01],
    [0.0, 0.0, 0.75, 0.0, 0.0, 0.24, 0.0, 0.01],
    [0.0, 0.0, 0.0, 0.01, 0.0, 0.0, 0.99, 0.0],
    [0.0, 0.0, 0.0, 0.01, 0.0, 0.0, 0.99, 0.0],
    [1 / 8] * 8,
]
AFTER_STEP_2 = (
    "After step 2 the texts 2 (-1.05) and 3 2 (two tokens: -1.29 / 2 = -0.65) are "
    "finished"
)
AFTER_STEP_3 = (
    "After step 3 the best two finished are 3 4 2 (-1.90 / 3 = -0.63) and 3 2 (-0.65)"
)


@pytest.mark.parametrize(
    ("early", "wanted", "p", "why"),
    [
        (True, [3, 2], 0.5 * 0.55, f"{AFTER_STEP_2}: two, so the search is over."),
        (
            False,
            [3, 4, 2],
            0.5 * 0.4 * 0.75,
            f"{AFTER_STEP_2}; the best running beam, 3 4, has -1.61 / 2 = -0.80, which "
            f"is better than the worst of them: go on. {AFTER_STEP_3}; the running "
            "3 4 5 has -3.04 / 3 = -1.01: it is over.",
        ),
        (
            "never",
            [3, 4, 5, 6, 6, 6, 6, 6],
            0.5 * 0.4 * 0.24 * 0.99**5,
            f"{AFTER_STEP_3}; the running 3 4 5 may still get -3.04 / 8 = -0.38, which "
            "is better than the worst of them: go on. The last step finishes it.",
        ),
    ],
)
def test_finished_texts_and_ways_to_stop_worked_by_hand(
    beam_search, early, wanted, p, why
):
    ids = torch.tensor([[0]])
    call = "beam_search with K = 2, 8 new tokens, length_penalty 1 and "
    call += f"early_stopping={early!r}"
    got, score = a_pair(
        beam_search(
            Markov(STOPS), ids, torch.ones_like(ids), 2, 8, 1.0, early, [2], PAD
        ),
        call,
    )
    expect.returned(got, torch.Tensor, call)
    if early is True and got.tolist() == [[0, 2]]:
        why = (
            "The EOS is part of a finished text, of its score and its length: 2 has "
            "-1.05 / 1, 3 2 has -1.29 / 2 = -0.65, the better one."
        )
    expect.value(got.tolist(), [[0, *wanted]], call, why)
    same_score(score, math.log(p) / len(wanted), call)


@pytest.mark.parametrize("early", [True, False, "never"])
def test_one_finished_text_of_two_is_not_enough(beam_search, early):
    # The end at once (0.6), or 3 (0.3) and then the end for certain.
    even = [0.2] * 5
    model = Markov([[0.0, 0.0, 0.6, 0.3, 0.1], even, even, [0.0, 0, 1, 0, 0], even])
    ids = torch.tensor([[0]])
    call = f"beam_search with K = 2, length_penalty 2 and early_stopping={early!r}"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 3, 2.0, early, [2], PAD), call
    )
    hint = (
        "After step 1 one text is finished: with K = 2 it takes two before a search "
        "can be over. 3 2 has ln 0.3 / 2 ** 2 = -0.30, better than ln 0.6 = -0.51."
    )
    expect.returned(got, torch.Tensor, call)
    expect.value(got.tolist(), [[0, 3, 2]], call, hint)
    same_score(score, math.log(0.3) / 4, call, hint)


def test_two_beams_are_left_when_the_best_all_end(beam_search):
    # 2, 3, 4 and 5 are EOS, and the likeliest; a long text has the better score.
    model = Markov([[0.1, 0.08, 0.22, 0.21, 0.2, 0.19]] * 6)
    ids, eos = torch.tensor([[0]]), [2, 3, 4, 5]
    call = "beam_search with K = 2, early_stopping='never', where the four "
    call += "likeliest tokens are EOS ids"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 3, 2.0, "never", eos, PAD),
        call,
    )
    hint = (
        "After the first step the beams are 0 and 1, the first K that do not end, of K "
        "times (1 + the number of EOS ids) candidates: then K can go on. With "
        "length_penalty 2 they may still win, so the search is not over."
    )
    expect.returned(got, torch.Tensor, call)
    expect.value(got.tolist(), [[0, 0, 0, 2]], call, hint)
    same_score(score, math.log(0.1 * 0.1 * 0.22) / 9, call, hint)


def test_never_looks_far_ahead_only_where_length_is_rewarded(beam_search):
    # 3 then 4 then the end (2): likely. Two unlikely ends are finished before.
    even = [1 / 6] * 6
    likely = [[0.005, 0.005, 0.06, 0.9, 0.0, 0.03], [0.01, 0.01, 0.05, 0.0, 0.9, 0.03]]
    last = [0.02, 0.02, 0.9, 0.02, 0.02, 0.02]
    model = Markov([likely[0], even, even, likely[1], last, even])
    ids = torch.tensor([[0]])
    call = "beam_search with early_stopping='never' and length_penalty=-0.5"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 2000, -0.5, "never", [2], PAD),
        call,
    )
    hint = (
        "With a length_penalty below 0 a longer text has a worse score, so a running "
        "beam is scored at its present length: 3 4 has ln 0.81 * 2 ** 0.5 = -0.30, "
        "better than the finished ones, so the search goes on."
    )
    same_score(score, math.log(0.9**3) * 3**0.5, call, hint)
    expect.same(got, [[0, 3, 4, 2]], call, hint)


@MODELS
def test_one_beam_is_greedy(beam_search, make):
    model = make(30)
    ids, mask = prompts(1)
    oracle = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=[7, 9],
        pad_token_id=PAD,
    )
    call = "beam_search with one beam"
    got = beam_search(model, ids, mask, 1, 6, 1.0, True, [7, 9], PAD)
    expect.same_ids(a_pair(got, call)[0], oracle, call)


# Found by search: in each of these the three ways to stop give different texts, or two
# of them do; eos, length_penalty and seed of the model.
CASES = [
    (0, 2, 6, -1.0, (29, 26, 9, 28)),
    (5, 3, 3, -1.0, (29, 18, 23)),
    (1, 4, 6, 0.0, (11, 6, 7)),
    (6, 3, 6, 0.0, (6, 4, 23)),
    (182, 4, 6, 0.5, (19, 26, 11, 17, 12)),
    (212, 4, 5, 0.5, (22, 14, 24, 4, 6, 29)),
    (53, 3, 7, 1.0, (29, 10, 6, 24, 12, 5)),
    (133, 2, 6, 1.0, (18, 4, 12, 17, 22)),
    (14, 2, 4, 2.0, (27, 10, 8)),
    (9, 2, 7, 2.0, (5, 17, 6, 22)),
    (11, 3, 6, 1.0, ()),
    (12, 2, 5, 0.5, (7,)),
]


@MODELS
@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_equal_generate(beam_search, make, early):
    for seed, beams, new, power, ends in CASES:
        eos = [*ends]
        model = make(30, seed=seed % 5)
        ids, mask = prompts(seed, batch=1 + seed % 3)
        how = {"beams": beams, "new": new, "power": power, "early": early, "eos": eos}
        oracle = generated(model, ids, mask, **how)
        call = (
            f"beam_search(num_beams={beams}, max_new_tokens={new}, length_penalty="
            f"{power}, early_stopping={early!r}, eos_ids={eos}, pad_id={PAD})"
        )
        got, scores = a_pair(
            beam_search(model, ids, mask, beams, new, power, early, [*eos], PAD), call
        )
        expect.same_ids(got, oracle.sequences, call)
        said = f"the scores of {call}"
        expect.same(scores, oracle.sequences_scores, said, "", 1e-3)


def test_the_search_stops_when_nothing_can_win(beam_search):
    model = Markov([[0.01, 0.01, 0.49, 0.48, 0.01]] * 5)
    ids = torch.tensor([[0]])
    beam_search(model, ids, torch.ones_like(ids), 2, 30, 0.0, "never", [2, 3], PAD)
    steps = len(model.calls)
    assert steps < 5, (
        f"beam_search took {steps} steps of 30: after the first, two texts are done; "
        "no beam can become better"
    )


def test_one_token_a_step_with_mask_and_positions(beam_search):
    model = Markov([[0.2] * 5] * 5)
    ids, mask = torch.tensor([[PAD, 3, 4]]), torch.tensor([[0, 1, 1]])
    beam_search(model, ids, mask, 2, 3, 1.0, False, [], PAD)
    widths = [call["input_ids"].shape[1] for call in model.calls]
    hint = "The prompt once; then the cache holds what was before."
    expect.value(widths, [3, 1, 1], "the widths that the model was given", hint)
    for step, call in enumerate(model.calls):
        for name, wanted in (
            ("attention_mask", [0, 1, 1] + [1] * step),
            ("position_ids", [0, 0, 1] if step == 0 else [step + 1]),
        ):
            assert name in call, f"beam_search should give the model {name}"
            for row in call[name]:
                expect.same(row, wanted, f"a row of {name} at step {step + 1}")
        assert not call["grad"], "beam_search should run the model in torch.no_grad()"


def test_the_search_leaves_its_arguments_alone(beam_search):
    ids, mask = prompts(3)
    with expect.unchanged(ids=ids, mask=mask):
        beam_search(random_llama(30), ids, mask, 2, 3, 1.0, False, [7], PAD)


def test_more_beams_than_tokens(beam_search):
    for seed, beams, eos in ((0, 8, [2, 3]), (1, 8, [2, 3]), (4, 6, [3]), (5, 5, [])):
        model, ids = random_llama(4, seed=seed), torch.tensor([[1, 2]])
        mask = torch.ones_like(ids)
        how = {"beams": beams, "new": 6, "power": 2.0, "early": True, "eos": eos}
        oracle = generated(model, ids, mask, **how)
        call = (
            f"the scores of beam_search with a vocabulary of 4, {beams} beams, EOS "
            f"{eos}, early_stopping=True"
        )
        got = beam_search(model, ids, mask, beams, 6, 2.0, True, eos, PAD)
        hint = "A candidate with the score -inf is no finished text: it is none at all."
        expect.same(a_pair(got, call)[1], oracle.sequences_scores, call, hint, 1e-3)


def test_all_tokens_may_end_a_text(beam_search):
    # The best two of five are put aside; there are no 2 * (1 + 5) candidates.
    model, ids = Markov([[0.1, 0.2, 0.3, 0.25, 0.15]] * 5), torch.tensor([[0]])
    call = "beam_search with K = 2, where all five tokens are EOS ids"
    why = "there are 10 candidates, fewer than K * (1 + 5) = 12: take all of them"
    with few_candidates(call, why):
        got = beam_search(
            model, ids, torch.ones_like(ids), 2, 3, 0.0, True, [0, 1, 2, 3, 4], PAD
        )
    got, score = a_pair(got, call)
    expect.same(got, [[0, 2]], call)
    same_score(score, math.log(0.3), call)


def test_the_scores_are_float32(beam_search):
    model, (ids, mask) = random_llama(30).double(), prompts(3)
    call = "beam_search of a float64 model with two prompts"
    got = a_pair(beam_search(model, ids, mask, 2, 3, 1.0, False, [7], PAD), call)
    expect.tensor(got[1], (2,), f"the scores of {call}", torch.float32)


def test_one_new_token_is_enough(beam_search):
    model, ids = Markov([[0.1, 0.2, 0.4, 0.3]] * 4), torch.tensor([[0]])
    call = "beam_search with max_new_tokens=1"
    got, score = a_pair(
        beam_search(model, ids, torch.ones_like(ids), 2, 1, 1.0, False, [3], PAD), call
    )
    expect.same(got, [[0, 2]], call)
    same_score(score, math.log(0.4), call)


def test_no_new_tokens_and_another_early_stopping_are_refused(beam_search):
    for new, early in ((0, True), (-1, True), (3, "Never"), (3, None)):
        call = f"beam_search with max_new_tokens={new}, early_stopping={early!r}"
        ids, mask = prompts(3)
        expect.rejects(
            ValueError,
            lambda i=ids, m=mask, n=new, e=early: beam_search(
                random_llama(30), i, m, 2, n, 1.0, e, [7], PAD
            ),
            call,
        )


# --- find_bugs ------------------------------------------------------------------------

WHY = {
    "A": "K copies with equal scores become K times the same text",
    "B": "slow, but right: the logits of the last place",
    "C": "probabilities are added up, where logarithms should be",
    "D": "right: 2 K candidates leave K after one EOS id",
    "E": "the tokens are put behind other beams than those they belong to",
    "F": "right: which candidates end",
    "G": "right: only the first K may end",
    "H": "right: the score by the length, with the text",
    "I": "right: the first K that do not end",
    "J": "the texts that run out of steps are not divided by their length",
}
WRONG_LINES = {"A", "C", "E", "J"}


def lines_of(find_bugs):
    return expect.returned(find_bugs(), (set, frozenset), "find_bugs()")


def test_what_is_named_are_lines(find_bugs):
    strange = lines_of(find_bugs) - set(WHY)
    assert not strange, f"find_bugs() names {strange}: the lines are A to J"


def test_no_right_line_is_accused(find_bugs):
    innocent = sorted(lines_of(find_bugs) & set(WHY) - WRONG_LINES)
    assert not innocent, f"line {innocent[0]} is {WHY[innocent[0]]}"


# The search of the lesson, and its wrong lines as they should be.
SEARCH = """
def search(model, ids, k, n, eos_ids):
    ids = ids.repeat(k, 1)
    scores, finished = {A}, []
    for length in range(1, n + 1):
        logits = model(ids).logits[:, -1].detach()
        logprobs = {C}[None]
        scores, beam, token = beam_step(scores, logprobs, 2 * k)
        ids = torch.cat([{E}, token[0, :, None]], -1)
        ends = torch.isin(token[0], torch.tensor(eos_ids, device=ids.device))
        for i in ends[:k].nonzero()[:, 0]:
            finished.append((scores[0, i].item() / length, ids[i]))
        keep = (~ends).nonzero()[:k, 0]
        ids, scores = ids[keep], scores[:, keep]
    finished += [({J}, row) for s, row in zip(scores[0], ids)]
    return max(finished, key=lambda found: found[0])[1]
"""
AS_FOUND = {
    "A": "torch.zeros(1, k, device=ids.device)",
    "C": "logits.softmax(-1)",
    "E": "ids.repeat(2, 1)",
    "J": "s.item()",
}
REPAIRED = {
    "A": "torch.tensor([[0.0] + [-torch.inf] * (k - 1)])",
    "C": "logits.log_softmax(-1)",
    "E": "ids[beam[0]]",
    "J": "s.item() / n",
}


def flat_step(scores, logprobs, k):
    best, places = (scores[..., None] + logprobs).flatten(1).topk(k)
    return best, places // logprobs.shape[-1], places % logprobs.shape[-1]


def test_with_the_named_lines_repaired_it_equals_generate(find_bugs):
    named = lines_of(find_bugs)
    which = "no line"
    if named:
        which = f"line{'s' * (len(named) > 1)} {', '.join(sorted(named))}"
    lines = {x: (REPAIRED if x in named else AS_FOUND)[x] for x in AS_FOUND}
    names = {"torch": torch, "beam_step": flat_step}
    exec(SEARCH.format(**lines), names)
    for seed in range(8):
        model = random_llama(30, seed=seed)
        ids, mask = prompts(seed, batch=1)
        how = {"beams": 3, "new": 4, "power": 1.0, "early": "never", "eos": [seed + 3]}
        oracle = generated(model, ids, mask, **how).sequences[0].tolist()
        got = names["search"](model, ids, 3, 4, how["eos"]).tolist()
        assert got == oracle, (
            f"with {which} repaired the search finds "
            f"{got[4:]}, generate {oracle[4:]}: there is another bug"
        )


# --- diverse_beam_search --------------------------------------------------------------


def test_groups_worked_by_hand(diverse_beam_search):
    model, ids = Markov([[0.5, 0.4, 0.1]] * 3), torch.tensor([[2]])
    call = "diverse_beam_search of 0.5, 0.4, 0.1, two groups of one beam, diversity 0.5"
    got, scores = a_pair(diverse_beam_search(model, ids, 2, 2, 0.5, 1), call)
    hint = "The second group sees ln 0.5 - 0.5 = -1.19, -0.92 and -2.30, and takes "
    hint += "token 1."
    expect.same(got, [[2, 0], [2, 1]], call, hint)
    hint = "The penalty decides the choice; the score is without it."
    said = f"the scores of {call}"
    expect.same(scores, [math.log(0.5), math.log(0.4)], said, hint, 1e-4)


def test_a_small_penalty_changes_nothing(diverse_beam_search):
    model, ids = Markov([[0.5, 0.4, 0.1]] * 3), torch.tensor([[2]])
    call = "diverse_beam_search of 0.5, 0.4, 0.1 with diversity 0.2"
    got, scores = a_pair(diverse_beam_search(model, ids, 2, 2, 0.2, 2), call)
    hint = "-0.69 - 0.2 is still the largest. At each step the counts begin at 0."
    expect.same(got, [[2, 0, 0], [2, 0, 0]], call, hint)
    hint = "The penalty decides the choice; it is not carried on."
    said = f"the scores of {call}"
    expect.same(scores, [2 * math.log(0.5)] * 2, said, hint, 1e-4)


def test_in_a_group_the_order_is_that_of_the_choice(diverse_beam_search):
    model, ids = Markov([[0.5, 0.3, 0.2]] * 3), torch.tensor([[2]])
    call = "diverse_beam_search of 0.5, 0.3, 0.2, two groups of two, diversity 1"
    got, scores = a_pair(diverse_beam_search(model, ids, 4, 2, 1.0, 1), call)
    hint = "The second group sees -1.69, -2.20, -1.61: first 2, then 0."
    expect.same(got, [[2, 0], [2, 1], [2, 2], [2, 0]], call, hint)
    wanted = [math.log(p) for p in (0.5, 0.3, 0.2, 0.5)]
    expect.same(scores, wanted, f"the scores of {call}", hint, 1e-4)


def test_each_earlier_beam_counts(diverse_beam_search):
    # The third group: 0 was chosen twice before if the second stayed with it.
    model, ids = Markov([[0.5, 0.35, 0.15]] * 3), torch.tensor([[2]])
    call = "diverse_beam_search of 0.5, 0.35, 0.15, three groups, diversity 0.3"
    got, _ = a_pair(diverse_beam_search(model, ids, 3, 3, 0.3, 1), call)
    hint = "Two groups before it chose 0: the penalty is 0.6."
    expect.same(got, [[2, 0], [2, 0], [2, 1]], call, hint)


def test_penalised_values_are_not_normalised_again(diverse_beam_search):
    # The prompt goes on with 0 or 1; 0 goes on with 2 for certain, 1 with 0 or 1.
    table = [[0.0, 0.0, 1.0, 0.0], [0.6, 0.4, 0.0, 0.0], [0.25] * 4]
    model, ids = Markov([*table, [0.55, 0.45, 0.0, 0.0]]), torch.tensor([[3]])
    call = "diverse_beam_search, two groups of two, diversity 1.5, of two tokens"
    got, _ = a_pair(diverse_beam_search(model, ids, 4, 2, 1.5, 2), call)
    hint = (
        "The first group has chosen 0 2 and 1 0. The second sees ln 0.45 + ln 0.4 = "
        "-1.71 for 1 1, and ln 0.55 + 0 - 1.5 = -2.10 for 0 2. The penalty comes off "
        "the log-probabilities, which are not normalised again."
    )
    expect.same(got[2:], [[3, 1, 1], [3, 0, 2]], f"the second group of {call}", hint)


@MODELS
def test_one_group_is_beam_search(diverse_beam_search, make):
    model, ids = make(30, eos_token_id=None), torch.tensor([[5, 17, 4]])
    oracle = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=5,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    call = "diverse_beam_search with 4 beams in one group"
    got, scores = a_pair(diverse_beam_search(model, ids, 4, 1, 3.0, 5), call)
    expect.same_ids(got, oracle.sequences, call)
    expect.same(scores, oracle.sequences_scores, f"the scores of {call}", "", 1e-3)


def slow_diverse(model, prompt, groups, size, diversity, steps):
    """Dicts and sorted lists in place of tensors."""
    beams = [[(0.0, tuple(prompt))] for _ in range(groups)]
    for _ in range(steps):
        chosen = []
        for g in range(groups):
            found = []
            for score, text in beams[g]:
                with torch.no_grad():
                    logits = model(torch.tensor([text])).logits[0, -1]
                for token, logprob in enumerate(logits.log_softmax(-1).tolist()):
                    seen = score + logprob - diversity * chosen.count(token)
                    found.append((seen, score + logprob, (*text, token)))
            best = sorted(found, reverse=True)[:size]
            beams[g] = [(score, text) for _, score, text in best]
            chosen += [text[-1] for _, text in beams[g]]
    return [text for group in beams for _, text in group], [
        score for group in beams for score, _ in group
    ]


@pytest.mark.parametrize(("groups", "size"), [(2, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 5.0])
def test_groups_agree_with_a_slow_search(diverse_beam_search, groups, size, diversity):
    model, prompt = random_llama(20, eos_token_id=None, seed=3), [5, 6]
    texts, scores = slow_diverse(model, prompt, groups, size, diversity, 4)
    call = f"diverse_beam_search with {groups} groups of {size}, diversity {diversity}"
    got, mine = a_pair(
        diverse_beam_search(
            model, torch.tensor([prompt]), groups * size, groups, diversity, 4
        ),
        call,
    )
    expect.same_ids(got, torch.tensor(texts), call)
    expect.same(mine, scores, f"the scores of {call}", "", 1e-3)


def test_groups_that_do_not_divide_the_beams_are_refused(diverse_beam_search):
    model, ids = Markov([[0.5, 0.4, 0.1]] * 3), torch.tensor([[2]])
    for beams, groups in ((4, 3), (2, 0), (2, -1)):
        call = f"diverse_beam_search with {beams} beams in {groups} groups"
        expect.rejects(
            ValueError,
            lambda b=beams, g=groups: diverse_beam_search(model, ids, b, g, 0.5, 1),
            call,
        )


def test_a_group_may_have_more_beams_than_there_are_tokens(diverse_beam_search):
    model, ids = Markov([[0.5, 0.4, 0.1]] * 3), torch.tensor([[2]])
    call = "diverse_beam_search of 0.5, 0.4, 0.1, one group of five, 2 new tokens"
    why = (
        "one copy of the prompt has 3 continuations. Begin with as many copies as "
        "beams, the first with the score 0, the others with -inf"
    )
    with few_candidates(call, why):
        got = diverse_beam_search(model, ids, 5, 1, 0.5, 2)
    got, scores = a_pair(got, call)
    expect.tensor(got, (5, 3), call)
    hint = "At first there are copies of the prompt, of which one may be continued."
    wanted = [math.log(p) for p in (0.25, 0.2, 0.2, 0.16, 0.05)]
    expect.same(scores, wanted, f"the scores of {call}", hint, 1e-4)


def test_a_diverse_search_has_steps(diverse_beam_search):
    model, ids = Markov([[0.5, 0.4, 0.1]] * 3), torch.tensor([[2]])
    for new in (0, -1):
        call = f"diverse_beam_search with max_new_tokens={new}"
        expect.rejects(
            ValueError,
            lambda n=new: diverse_beam_search(model, ids, 2, 2, 0.5, n),
            call,
        )


def test_the_diverse_search_leaves_its_prompt_alone(diverse_beam_search):
    ids = torch.tensor([[2, 1]])
    model = Markov([[0.5, 0.4, 0.1]] * 3)
    with expect.unchanged(ids=ids):
        diverse_beam_search(model, ids, 2, 2, 0.5, 2)
    wasteful = [call for call in model.calls if call["grad"]]
    assert not wasteful, "diverse_beam_search should work in torch.no_grad()"
