"""Checks of lesson 10. Oracles: cases worked by hand, enumeration, exact fractions,
`generate`, id for id, and the exact kernel of a Markov chain."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import ScriptedModel, Watched, random_gpt2, random_llama

sample_many = exercise("sample_many")
pass_at_k = exercise("pass_at_k")
vote = exercise("vote")
early_stop_vote = exercise("early_stop_vote")
sequence_logprob = exercise("sequence_logprob")
self_certainty = exercise("self_certainty")
best_of_n = exercise("best_of_n")
mbr = exercise("mbr")
power_sample = exercise("power_sample")

INF, NAN = float("inf"), float("nan")
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


def a_pair(got, call):
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return two values, not {len(got)}"
    return got


# --- sample_many ----------------------------------------------------------------------


class Script:
    """A pick that gives the tokens it was told to, a list of rows at each step."""

    def __init__(self, *steps):
        self.steps, self.seen = list(steps), []

    def __call__(self, logits):
        expect.returned(logits, torch.Tensor, "what `pick` was given")
        self.seen.append(logits.clone())
        step = len(self.seen) - 1
        assert step < len(self.steps), (
            f"`pick` was called {step + 1} times, where {len(self.steps)} calls do"
        )
        tokens = torch.tensor(self.steps[step])[:, None]
        assert logits.shape[0] == len(tokens), (
            f"`pick` was given {logits.shape[0]} rows of logits at step {step}, not "
            f"{len(tokens)}: one call of it draws for all n rows"
        )
        return tokens


def prompt(*tokens):
    return torch.tensor([tokens or (5, 17, 40, 8)])


def sampled(logits):
    return torch.multinomial(logits.softmax(-1), 1)


ENDS = (2, 30, 31, 32, 33, 34)


def why_other_ids(got, oracle, seq):
    """What to look at where ids differ first from those of an oracle padded with 0."""
    if not isinstance(got, torch.Tensor) or got.dim() != 2 or len(got) != len(oracle):
        return ""
    width = min(got.shape[1], oracle.shape[1])
    differ = (got[:, :width] != oracle[:, :width]).nonzero().tolist()
    if not differ:
        return ""
    row, place = min(differ, key=lambda at: at[1])
    if place < seq:
        return "The prompt stands in front of each answer."
    ended = torch.isin(oracle[:, seq:place], torch.tensor(ENDS)).any(1)
    if ended[row]:
        return f"Row {row} has finished: pad_id from there on."
    if got[row, place] == 0:
        return f"Row {row} has not finished: there is no EOS among its new tokens."
    if place == seq and row and len(got[:, place].unique()) == 1:
        return "n rows draw n first tokens: make the rows before the first pick."
    return "One call of pick for all n rows at each step, finished ones included."


@MODELS
@pytest.mark.parametrize("n", [1, 3, 16])
def test_the_ids_are_those_of_generate_for_the_same_seed(sample_many, make, n):
    for seed in range(2):
        model, ids = make(seed=seed, eos_token_id=list(ENDS)), prompt()
        torch.manual_seed(seed)
        oracle = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=9,
            pad_token_id=0,
        )
        torch.manual_seed(seed)
        got = sample_many(model, ids, n, 9, sampled, list(ENDS), 0)
        call = f"sample_many of a random model, n={n}, seed {seed}"
        hint = why_other_ids(got, oracle, ids.shape[1])
        expect.same_ids(got, oracle, call, hint=hint)
        expect.tensor(got, oracle.shape, call, torch.int64)


@MODELS
def test_the_prompt_runs_once_as_one_row(sample_many, make):
    model = Watched(make(eos_token_id=None))
    sample_many(model, prompt(), 8, 5, sampled, [], 0)
    call = "sample_many of 4 ids, n=8, 5 new tokens,"
    expect.returned(model.shapes, list, call)
    wanted = [(1, 4), *[(8, 1)] * 4]
    hint = ""
    if model.shapes[:1] == [(8, 4)]:
        hint = " The prompt is the same in all rows: run one, then repeat its cache."
    elif (8, 5) in model.shapes or (8, 6) in model.shapes:
        hint = " After the prompt the model is given new tokens only."
    elif model.shapes[:5] == wanted:
        hint = " Nobody asks for what comes after the last token."
    assert model.shapes == wanted, (
        f"{call} should call the model with ids of the shapes {wanted}, not "
        f"{expect.show(model.shapes)}.{hint}"
    )
    assert not model.grad, f"{call} should call the model in torch.no_grad()"


@MODELS
def test_pick_gets_the_logits_of_each_row_in_float32(sample_many, make):
    for dtype in (torch.float32, torch.bfloat16):
        model, ids = make(eos_token_id=None).to(dtype), prompt()
        pick = Script([7, 8, 9], [10, 11, 12], [13, 14, 15])
        got = sample_many(model, ids, 3, 3, pick, [], 0)
        call = f"sample_many of a {dtype} model whose pick gives 7 8 9, 10 11 12, ..."
        rows = [[5, 17, 40, 8, *new] for new in ((7, 10, 13), (8, 11, 14), (9, 12, 15))]
        expect.same_ids(got, torch.tensor(rows), call)
        slow = model.float() if dtype == torch.float32 else model
        for step, seen in enumerate(pick.seen):
            expect.tensor(seen, (3, 97), "what `pick` is given", torch.float32)
            with torch.no_grad():
                oracle = slow(torch.tensor(rows)[:, : 4 + step]).logits[:, -1]
            hint = "Row i goes on with its own tokens and its own cache."
            expect.same(
                seen,
                oracle.float(),
                f"what `pick` is given at step {step}",
                hint,
                1e-3 if dtype == torch.float32 else 0.2,
            )


def test_a_row_that_has_finished_gets_the_pad_id(sample_many):
    model, ids = random_llama(), prompt(5, 2, 3)  # 2 in the prompt ends nothing
    pick = Script([7, 2, 9], [10, 11, 33], [2, 12, 14], [1, 1, 1], [1, 1, 1])
    got = sample_many(model, ids, 3, 5, pick, [2, 33], 50)
    call = "sample_many with eos_ids [2, 33], pad_id 50, whose pick gives 7 2 9, ..."
    wanted = [[5, 2, 3, 7, 10, 2], [5, 2, 3, 2, 50, 50], [5, 2, 3, 9, 33, 50]]
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (3, 3):
        hint = "The EOS in the prompt ends nothing."
    expect.same_ids(got, torch.tensor(wanted), call, hint=hint)


def test_an_eos_may_be_the_pad_id(sample_many):
    pick = Script([2, 7, 8], [1, 9, 2], [1, 10, 1], [1, 11, 1])
    got = sample_many(random_llama(), prompt(9), 3, 4, pick, [2], 2)
    call = "sample_many with eos_ids [2] and pad_id 2"
    wanted = [[9, 2, 2, 2, 2], [9, 7, 9, 10, 11], [9, 8, 2, 2, 2]]
    hint = "A row that is padded has not ended again: go on while one is left."
    expect.same_ids(got, torch.tensor(wanted), call, hint=hint)
    pick = Script([0, 3], [4, 2], [2, 1])
    got = sample_many(random_llama(), prompt(9), 2, 4, pick, [2], 0)
    call = "sample_many with pad_id 0, whose first row draws a 0"
    wanted = [[9, 0, 4, 2], [9, 3, 2, 0]]
    hint = "The pad id ends nothing when it is drawn."
    expect.same_ids(got, torch.tensor(wanted), call, hint=hint)


def test_all_rows_that_end_at_once_are_one_step(sample_many):
    pick = Script([2, 2])
    got = sample_many(random_llama(), prompt(9), 2, 5, pick, [2], 0)
    call = "sample_many whose rows both end at once"
    expect.same_ids(got, torch.tensor([[9, 2], [9, 2]]), call)


def test_no_eos_and_no_steps(sample_many):
    pick = Script([2, 3], [0, 1])
    got = sample_many(random_llama(), prompt(9), 2, 2, pick, [], 0)
    call = "sample_many without eos_ids"
    expect.same_ids(got, torch.tensor([[9, 2, 0], [9, 3, 1]]), call)
    got = sample_many(random_llama(), prompt(9, 4), 3, 0, Script(), [2], 0)
    call = "sample_many with max_new_tokens=0"
    expect.same_ids(got, torch.tensor([[9, 4]] * 3), call)


def test_sampling_none_is_refused_and_the_prompt_stays(sample_many):
    for n in (0, -1):
        expect.rejects(
            ValueError,
            lambda n=n: sample_many(random_llama(), prompt(), n, 2, sampled, [2], 0),
            f"sample_many with n={n}",
        )
    ids = prompt()
    with expect.unchanged(ids=ids):
        got = sample_many(random_llama(), ids, 1, 2, sampled, [], 0)
        with torch.inference_mode():  # the answer may come from there
            got.fill_(3)


# --- pass_at_k ------------------------------------------------------------------------


def misled(n, c, k, got):
    """What a common mistake would give, if that is what came back."""
    if not isinstance(got, float):
        return ""
    if abs(got - (1 - (1 - c / n) ** k)) < 1e-9:
        return (
            "1 - (1 - c/n) ** k draws with replacement: one right sample can be drawn "
            "twice, and so it is too low."
        )
    if abs(got - math.comb(n - c, k) / math.comb(n, k)) < 1e-9:
        return "That is the probability that all k are wrong."
    return ""


@pytest.mark.parametrize(
    ("n", "c", "k", "wanted"),
    [(4, 1, 2, 0.5), (4, 3, 2, 1.0), (4, 2, 2, 5 / 6), (10, 3, 1, 0.3), (4, 1, 4, 1.0)],
)
def test_pass_at_k_worked_by_hand(pass_at_k, n, c, k, wanted):
    got = pass_at_k(n, c, k)
    call = f"pass_at_k({n}, {c}, {k})"
    expect.value(got, wanted, call, misled(n, c, k, got), 1e-9)
    expect.returned(got, float, call)


def test_none_right_is_0_and_all_right_is_1(pass_at_k):
    for n, k in ((1, 1), (5, 1), (5, 3), (5, 5), (200, 100)):
        for c, wanted in ((0, 0.0), (n, 1.0)):
            call = f"pass_at_k({n}, {c}, {k})"
            expect.value(pass_at_k(n, c, k), wanted, call, tolerance=1e-9)


def test_pass_at_k_counts_all_draws(pass_at_k):
    for n in (5, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            share = sum(min(draw) < c for draw in draws) / len(draws)
            got = pass_at_k(n, c, k)
            call = f"pass_at_k({n}, {c}, {k})"
            expect.value(got, share, call, misled(n, c, k, got), 1e-9)


@pytest.mark.parametrize(
    ("n", "c", "k"), [(2000, 3, 1000), (5000, 1, 1), (3000, 1500, 4), (1500, 20, 700)]
)
def test_pass_at_k_is_precise_for_many_samples(pass_at_k, n, c, k):
    none = Fraction(1)
    for i in range(k):
        none *= Fraction(n - c - i, n - i)
    hint = "A factorial of 170 is the last one that fits a float."
    call = f"pass_at_k({n}, {c}, {k})"
    expect.value(pass_at_k(n, c, k), float(1 - none), call, hint, 1e-9)


@pytest.mark.parametrize(
    ("n", "c", "k"),
    [(4, 1, 5), (4, 4, 5), (4, 0, 5), (4, 1, 0), (4, 1, -1), (4, 5, 2), (4, -1, 2)],
)
def test_what_makes_no_sense_is_refused(pass_at_k, n, c, k):
    call = f"pass_at_k({n}, {c}, {k})"
    if k > n:
        call += ": of fewer than k samples nothing can be said; it"
    expect.rejects(ValueError, lambda: pass_at_k(n, c, k), call)


# --- vote -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["12", "11", None, "12"], "12"),
        (["a"], "a"),
        (["a", "b", "b", "c"], "b"),
        (["a", "b", "b", "c", "c", "c", "d"], "c"),  # 3 of 7: the most, not over half
        ([None, None, "a"], "a"),
        (["", "", "a"], ""),
        (["a ", "a ", "a", "A"], "a "),
        (["None", "None", "a"], "None"),
    ],
)
def test_the_vote_worked_by_hand(vote, answers, wanted):
    answers = list(answers)  # a case is the same for every answer
    with expect.unchanged("make a new list", answers=answers):
        got = vote(answers)
    hint = ""
    if answers.count(None) > 1 and got is None:
        hint = "None is no answer: it does not count."
    elif wanted == "" and got != "":
        hint = "An empty text is an answer."
    call = f"vote({answers})"
    assert got is not None, f"{call} should give {wanted!r}, not None. {hint}"
    expect.value(got, wanted, call, hint)


@pytest.mark.parametrize(
    "answers",
    [["12", "11"], ["a", "b", "b", "a"], ["a", "b", "c"], ["a", "a", "b", None, "b"]],
)
def test_a_tie_is_no_decision(vote, answers):
    for order in set(itertools.permutations(answers)):
        got = vote(list(order))
        assert got is None, (
            f"vote({list(order)}) is a tie: it should give None, not {expect.show(got)}"
        )


def test_a_tie_below_the_first_place_is_none(vote):
    got = vote(["a", "b", "c", "c"])
    assert got == "c", (
        f"vote(['a', 'b', 'c', 'c']) should give 'c', not {expect.show(got)}: a and b "
        "tie, but c has more"
    )


def test_no_vote_gives_none(vote):
    for answers in ([], [None], [None, None, None]):
        got = vote(list(answers))
        assert got is None, f"vote({answers}) should give None, not {expect.show(got)}"


def test_the_largest_sum_of_weights_wins(vote):
    for answers, weights, wanted in (
        (["12", "11"], [1.0, 3.0], "11"),
        (["a", "a", "b"], [1.0, 1.0, 1.5], "a"),
        (["a", "a", "b"], [1.0, 1.0, 2.5], "b"),
        (["a", None, "b"], [1.0, 9.0, 2.0], "b"),
        ([None, "a", "b"], [0.0, 5.0, 2.0], "a"),
        (["a", "b"], [0.0, 0.25], "b"),
        (["a", "b"], [1e-30, 1e-31], "a"),
        (["a", "b"], [1.0, 1.0 + 1e-12], "b"),
        (["a", "b"], [2, 1], "a"),
    ):
        call = f"vote({answers}, weights={weights})"
        with expect.unchanged(answers=answers, weights=weights):
            got = vote(answers, weights)
        assert got is not None, f"{call} should give {wanted!r}, not None"
        expect.value(got, wanted, call)


def test_weights_that_tie_give_none_in_every_order(vote):
    pairs = [("a", 0.1), ("a", 0.2), ("a", 0.3), ("b", 0.6)]
    for order in itertools.permutations(pairs):
        answers, weights = map(list, zip(*order, strict=True))
        got = vote(answers, weights)
        assert got is None, (
            f"vote({answers}, {weights}) is a tie: it should give None, not {got!r}. "
            "0.1 + 0.2 + 0.3 depends on the order of the additions: math.fsum does not"
        )


def test_answers_that_weigh_nothing_have_no_vote(vote):
    for answers, weights in ((["a"], [0.0]), (["a", "b", "a"], [0.0, 0.0, 0.0])):
        got = vote(answers, weights)
        call = f"vote({answers}, {weights})"
        assert got is None, f"{call} should give None, not {expect.show(got)}"


def test_the_order_of_samples_makes_no_difference(vote):
    pairs = [("a", 0.7), ("b", 0.1), (None, 5.0), ("b", 0.7), ("c", 0.4)]
    for order in itertools.permutations(pairs):
        answers, weights = map(list, zip(*order, strict=True))
        expect.value(vote(answers, weights), "b", f"vote({answers}, {weights})")


def test_weights_that_make_no_sense_are_refused(vote):
    for answers, weights in (
        (["a", "b"], [1.0]),
        (["a"], [1.0, 1.0]),
        (["a", None], [1.0]),
        (["a"], []),
        (["a", "b"], [1.0, -1.0]),
        (["a", "b"], [1.0, NAN]),
        (["a", None], [1.0, -1.0]),
        ([None, "b"], [NAN, 1.0]),
    ):
        call = f"vote({answers}, weights={weights})"
        expect.rejects(ValueError, lambda a=answers, w=weights: vote(a, w), call)


# --- early_stop_vote ------------------------------------------------------------------


class Drawn:
    """An iterator that counts how often it was asked."""

    def __init__(self, answers):
        self.left, self.asked = list(answers), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.asked += 1
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


def result_of(answers):
    """The vote, slowly."""
    given = [a for a in answers if a is not None]
    first = [a for a in set(given) if given.count(a) == max(map(given.count, given))]
    return first[0] if len(first) == 1 else None


def is_settled(read, n, letters=("a", "b", "new")):
    """Whether all ways to go on have one result: the promise, word for word."""
    left = n - len(read)
    rests = itertools.combinations_with_replacement((*letters, None), left)
    return len({result_of([*read, *rest]) for rest in rests}) == 1


def told(answers, n):
    return f"early_stop_vote(iter({answers}), {n})"


@pytest.mark.parametrize(
    ("answers", "n", "wanted"),
    [
        (["a", "a", "a", "b"], 4, ("a", 3)),
        (["a", "a", None, "b"], 4, ("a", 3)),
        (["a", "b", "a", "b"], 4, (None, 4)),
        (["a", "b", "a", None], 4, ("a", 4)),
        (["a", "a", "a", "a", "a", "b", "b", "b"], 8, ("a", 5)),
        (["a", "a", "b", "b", "b"], 5, ("b", 5)),
        (["a"], 1, ("a", 1)),
        ([None, None], 2, (None, 2)),
        (["", "", "b"], 3, ("", 2)),
    ],
)
def test_stopping_worked_by_hand(early_stop_vote, answers, n, wanted):
    source = Drawn(answers)
    got = early_stop_vote(source, n)
    call = told(answers, n)
    result, used = a_pair(got, call)
    hint = ""
    if (result, used) != wanted and isinstance(used, int):
        if used < wanted[1]:
            hint = " The answers that are left can still change it, or make a tie."
        elif used > wanted[1]:
            hint = " No later answer can change it by then."
        if wanted[0] == "" != result:
            hint = " An empty text is an answer."
    assert (result, used) == wanted, f"{call} should give {wanted}, not {got}.{hint}"
    assert source.asked == used, (
        f"{call} read {source.asked} answers, where {used} are needed. Look whether it "
        "is settled before you ask for one more"
    )


def test_it_stops_exactly_when_nothing_can_change_the_result(early_stop_vote):
    for n in (1, 2, 3, 4, 5):
        for answers in itertools.product(("a", "b", None), repeat=n):
            needed = next(
                k for k in range(n + 1) if is_settled(answers[:k], n) or k == n
            )
            source = Drawn(answers)
            result, used = a_pair(early_stop_vote(source, n), told(list(answers), n))
            wanted = (result_of(answers), needed)
            assert (result, used) == wanted, (
                f"{told(list(answers), n)} should give {wanted}, not {(result, used)}"
            )
            assert source.asked == used, (
                f"{told(list(answers), n)} asked for {source.asked} answers"
            )


def test_of_three_answers_the_second_best_counts(early_stop_vote):
    for answers, n, wanted in (
        (["c", "a", "b", "a", "a", "b", "c"], 7, ("a", 7)),
        (["a", "b", "c", "a", "a", "a", "c"], 7, ("a", 6)),
        (["b", "c", "d", "a", "a", "a", "a", "d"], 8, ("a", 7)),
        (["a", "b", "c", "d", "e"], 5, (None, 5)),
    ):
        source = Drawn(answers)
        got = a_pair(early_stop_vote(source, n), told(answers, n))
        assert tuple(got) == wanted, (
            f"{told(answers, n)} should give {wanted}, not {got}"
        )
        assert source.asked == wanted[1], f"{told(answers, n)} asked {source.asked}"


def test_no_more_than_n_are_read(early_stop_vote):
    source = Drawn(["a", "b"] * 5)
    got = tuple(a_pair(early_stop_vote(source, 4), "early_stop_vote of ten, n=4"))
    assert got == (None, 4), f"of ten answers with n=4 it should give (None, 4): {got}"
    assert source.asked == 4, f"with n=4 it asked for {source.asked} answers"
    source = Drawn(["a"])
    got = tuple(a_pair(early_stop_vote(source, 0), "early_stop_vote with n=0"))
    assert got == (None, 0), f"early_stop_vote with n=0 should give (None, 0): {got}"
    assert source.asked == 0, "with n=0 nothing is read"


def test_answers_that_end_early_have_no_later_ones(early_stop_vote):
    for answers, wanted in (
        (["a", "b", "a"], ("a", 3)),
        (["a", "b"], (None, 2)),
        ([], (None, 0)),
        ([None], (None, 1)),
    ):
        got = a_pair(early_stop_vote(iter(answers), 10), told(answers, 10))
        assert tuple(got) == wanted, (
            f"{told(answers, 10)} should give {wanted}, not {got}: there are no later "
            "answers"
        )


def test_a_generator_draws_no_sample_too_many(early_stop_vote):
    drawn = []

    def draws():
        for answer in "xxxyyyy":
            drawn.append(answer)
            yield answer

    got = a_pair(early_stop_vote(draws(), 5), "early_stop_vote of a generator")
    assert tuple(got) == ("x", 3), (
        f"x, x, x with n=5 should give ('x', 3), not {expect.show(got)}"
    )
    assert drawn == ["x"] * 3, f"the generator had to draw {drawn}: three are enough"


def test_a_negative_n_is_refused(early_stop_vote):
    expect.rejects(ValueError, lambda: early_stop_vote(iter(["a"]), -1), "n=-1")


# --- sequence_logprob -----------------------------------------------------------------

# Row i: the probabilities of what comes behind token i.
TABLE = [[0.5, 0.5, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0]]
TABLE += [[0.25, 0.25, 0.25, 0.25]]


def scripted():
    return ScriptedModel(lambda ids: torch.tensor(TABLE).log()[ids], vocab_size=4)


def ones(ids):
    return torch.ones_like(ids)


@pytest.mark.parametrize(
    ("start", "wanted"), [(1, math.log(0.36)), (2, math.log(0.9)), (3, 0.0)]
)
def test_logprobs_worked_by_hand(sequence_logprob, start, wanted):
    ids = torch.tensor([[2, 1, 1]])
    got = sequence_logprob(scripted(), ids, ones(ids), start)
    call = f"sequence_logprob of [[2, 1, 1]], start={start},"
    hint = ""
    if isinstance(got, torch.Tensor) and got.numel() == 1 and start == 1:
        if abs(got.item() - math.log(0.36) / 2) < 1e-4:
            hint = "The sum, not the mean."
        elif abs(got.item() - math.log(0.9)) < 1e-4:
            hint = "The token in column `start` counts."
        elif abs(got.item() - math.log(0.9) * 2) < 1e-4:
            hint = "The logits at a place belong to the token behind it."
        elif abs(got.item() - 0.36) < 1e-4:
            hint = "That is the probability: its logarithm is asked for."
    expect.same(got, [wanted], call, hint, 1e-5)
    expect.tensor(got, (1,), call, torch.float32)


def slow_logprob(model, tokens, start):
    """Without padding, token by token."""
    total = 0.0
    for place in range(start, len(tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:place]])).logits[0, -1].double()
        total += logits.log_softmax(-1)[tokens[place]].item()
    return total


@MODELS
def test_padding_on_both_sides_does_not_count(sequence_logprob, make):
    model = make()
    prompts = [[5, 17, 40], [61], [9, 8]]
    texts = [[33, 34, 2], [7, 2], [12]]  # 2 is the EOS; padding is 2, too, and then 0
    for pad in (2, 0):
        rows, masks = [], []
        for before, after in zip(prompts, texts, strict=True):
            left, right = 3 - len(before), 3 - len(after)
            rows.append([pad] * left + before + after + [pad] * right)
            masks.append([0] * left + [1] * (6 - left - right) + [0] * right)
        ids, mask = torch.tensor(rows), torch.tensor(masks)
        wanted = [
            slow_logprob(model, before + after, len(before))
            for before, after in zip(prompts, texts, strict=True)
        ]
        with expect.unchanged(ids=ids, mask=mask):
            got = sequence_logprob(model, ids, mask, 3)
        call = f"sequence_logprob of three rows padded with {pad} on both sides,"
        expect.tensor(got, (3,), call)
        hint = ""
        without_eos = slow_logprob(model, prompts[0] + texts[0][:2], 3)
        if abs(got[0].item() - without_eos) < 1e-3:
            hint = "The EOS counts where its mask is 1."
        elif abs(got[0].item() - wanted[0]) < 1e-3:
            hint = "Row 0, which has no padding, is right: see mask and positions."
        expect.same(got, wanted, call, hint, 1e-3)


def test_one_row_is_judged_as_in_a_batch(sequence_logprob):
    model = random_gpt2()
    for tokens, start in (([5, 17, 40, 8, 9], 2), ([60, 61], 1), ([3] * 12, 11)):
        ids = torch.tensor([tokens])
        call = f"sequence_logprob of {tokens}, start={start},"
        wanted = slow_logprob(model, tokens, start)
        expect.same(
            sequence_logprob(model, ids, ones(ids), start), [wanted], call, "", 1e-3
        )


def test_a_padding_token_may_be_impossible(sequence_logprob):
    ids, mask = torch.tensor([[2, 1, 3], [2, 0, 1]]), torch.tensor([[1, 1, 0], [1] * 3])
    got = sequence_logprob(scripted(), ids, mask, 1)
    hint = ""
    if isinstance(got, torch.Tensor) and not got.isfinite().all():
        hint = "0 times -inf is nan, and -inf plus anything is -inf: mask first."
    call = "sequence_logprob of [[2, 1, padding], [2, 0, 1]], start=1,"
    wanted = [math.log(0.4), math.log(0.6 * 0.5)]
    expect.same(got, wanted, call, hint, 1e-5)


def test_an_impossible_text_has_minus_infinity(sequence_logprob):
    ids = torch.tensor([[2, 3, 1]])
    got = sequence_logprob(scripted(), ids, ones(ids), 1)
    expect.same(got, [-INF], "sequence_logprob of a text with a token of probability 0")


def test_a_row_without_an_answer_has_0(sequence_logprob):
    ids, mask = torch.tensor([[2, 0, 0], [2, 1, 0]]), torch.tensor([[1, 0, 0], [1] * 3])
    got = sequence_logprob(scripted(), ids, mask, 1)
    call = "sequence_logprob where row 0 is a prompt and padding,"
    expect.same(got, [0.0, math.log(0.4 * 0.1)], call, "", 1e-5)


def test_likely_tokens_of_large_logits_do_not_overflow(sequence_logprob):
    logits = torch.tensor([300.0, 0.0, -300.0])
    for dtype in (torch.float32, torch.float16):

        def script(ids, dtype=dtype):
            return logits.to(dtype).expand(*ids.shape, 3).clone()

        model, ids = ScriptedModel(script, vocab_size=3), torch.tensor([[0, 0, 2]])
        got = sequence_logprob(model, ids, ones(ids), 1)
        hint = "log_softmax, not the log of a softmax, which is 0 here."
        call = f"sequence_logprob with {dtype} logits 300, 0, -300,"
        expect.same(got, [-600.0], call, hint, 1e-3)


def test_half_precision_logits_are_judged_in_float32(sequence_logprob):
    def script(ids):
        return torch.linspace(0, 4, 64).bfloat16().expand(*ids.shape, 64).clone()

    model = ScriptedModel(script, vocab_size=64)
    ids = torch.tensor([[3, *range(0, 60, 5)]])
    row = torch.linspace(0, 4, 64).bfloat16().double().log_softmax(-1)
    wanted = row[list(range(0, 60, 5))].sum().item()
    got = sequence_logprob(model, ids, ones(ids), 1)
    call = "sequence_logprob with bfloat16 logits,"
    expect.same(got, torch.tensor([wanted]).float(), call, "float() first.", 1e-3)
    expect.tensor(got, (1,), call, torch.float32)


def test_the_model_is_called_once_without_gradients(sequence_logprob):
    model, ids = scripted(), torch.tensor([[3, 2, 1, 1], [3, 3, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    sequence_logprob(model, ids, mask, 2)
    assert len(model.calls) == 1, (
        f"sequence_logprob of a batch called the model {len(model.calls)} times: one "
        "call serves all rows and places"
    )
    call = model.calls[0]
    assert not call.grad_enabled, "sequence_logprob should use torch.no_grad()"
    hint = "The model was not given which places are padding."
    assert call.attention_mask is not None, f"attention_mask is missing: {hint}"
    told = "the positions that the model is given"
    assert call.position_ids is not None, f"position_ids are missing: {hint}"
    real = call.position_ids[1, 1:]
    expect.same(real, [0, 1, 2], f"{told} for the three tokens of row 1")


def test_a_start_without_a_token_before_it_is_refused(sequence_logprob):
    ids = torch.tensor([[2, 1, 1]])
    for start in (0, -1, 4):
        expect.rejects(
            ValueError,
            lambda start=start: sequence_logprob(scripted(), ids, ones(ids), start),
            f"sequence_logprob of 3 ids, start={start},",
        )


# --- self_certainty -------------------------------------------------------------------


def of(*probabilities):
    """Logits (1, new, vocab): for each place the logarithms of these, moved by 7."""
    return torch.tensor([probabilities]).log() + 7


def confused(got, *probabilities):
    """Which other number came back, if it is one."""
    if not (isinstance(got, torch.Tensor) and got.numel() == 1):
        return ""
    p = torch.tensor(probabilities)
    entropy = -(p * p.log()).sum(-1)
    vocab = math.log(p.shape[-1])
    forward = -vocab - p.log().mean(-1)
    for value, said in (
        ((vocab - entropy).mean(), "That is KL(p, uniform): ln V minus the entropy."),
        (entropy.mean(), "That is the entropy."),
        (-forward.mean(), "The sign: surer is larger."),
        (forward.mean() / math.log(2), "That is in bits: nats are asked for."),
        (forward.mean() + vocab, "That lacks ln(1/V): two equal tokens should give 0."),
        (forward.sum(), "The mean over places, not the sum."),
        (forward.mean() * p.shape[-1], "1/V in front of the sum: the mean over V."),
    ):
        if abs(got.item() - value.item()) < 1e-4 and len(p) <= 2:
            return said
    return ""


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([[0.9, 0.1]], -0.5 * math.log(0.36)),
        ([[0.5, 0.5]], 0.0),
        ([[0.9, 0.1], [0.5, 0.5]], -0.25 * math.log(0.36)),
        ([[0.9, 0.1], [0.2, 0.8]], -0.25 * math.log(0.36 * 0.64)),
        ([[0.7, 0.1, 0.1, 0.1]], -math.log(4) - math.log(0.7 * 0.001) / 4),
    ],
)
def test_certainty_worked_by_hand(self_certainty, places, wanted):
    got = self_certainty(of(*places))
    call = f"self_certainty of the probabilities {places}"
    expect.same(got, [wanted], call, confused(got, *places), 1e-5)


def test_certainty_agrees_with_the_formula(self_certainty):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 5, 11, generator=generator)
    p = logits.double().softmax(-1)
    wanted = []
    for row in p.tolist():
        places = [sum(math.log((1 / 11) / x) / 11 for x in place) for place in row]
        wanted.append(sum(places) / 5)
    with expect.unchanged(logits=logits):
        got = self_certainty(logits)
    call = "self_certainty of logits (3, 5, 11)"
    expect.tensor(got, (3,), call, torch.float32)
    expect.same(got, wanted, call, "", 1e-4)


def test_a_token_that_is_too_rare_for_float32_has_a_logarithm(self_certainty):
    logits = torch.tensor([[[0.0, -200.0]], [[0.0, -20.0]]])
    got = self_certainty(logits)
    hint = "log_softmax, not the log of a softmax."
    wanted = [100 - math.log(2), 10 - math.log(2)]
    expect.same(got, wanted, "self_certainty of [[[0, -200]], [[0, -20]]]", hint, 1e-3)


def test_a_token_that_was_removed_makes_it_infinite(self_certainty):
    logits = torch.tensor([[[0.0, -INF, 1.0]], [[0.0, 0.0, 0.0]]])
    got = self_certainty(logits)
    call = "self_certainty of [[[0, -inf, 1]], [[0, 0, 0]]]"
    expect.same(got, [INF, 0.0], call, "", 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_certainty_of_other_dtypes_is_float32(self_certainty, dtype):
    generator = torch.Generator().manual_seed(1)
    logits = (10 + 3 * torch.randn(2, 3, 500, generator=generator)).to(dtype)
    p = logits.double().log_softmax(-1)
    wanted = (-math.log(500) - p.mean(-1)).mean(-1).float()
    got = self_certainty(logits)
    call = f"self_certainty of {dtype} logits"
    expect.tensor(got, (2,), call, torch.float32)
    expect.same(got, wanted, call, "", 1e-3)


# --- best_of_n ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([-2.5, -0.5, -1.0], 1),
        ([NAN, -3.0, -1.0], 2),
        ([3.0], 0),
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([1.0, NAN, 3.0, NAN], 2),
        ([3.0, NAN, 1.0], 0),
        ([NAN, NAN, -5.0], 2),
        ([-INF, NAN, -INF], 0),
        ([NAN, -INF], 1),
        ([-1.0, INF, 5.0], 1),
        ([0.0, -0.5], 0),
        ([2, 7, 7], 1),
        ([1.0, 1.0 + 1e-15], 1),
    ],
)
def test_the_best_worked_by_hand(best_of_n, scores, wanted):
    call = f"best_of_n({scores})"  # all digits: some are nearly equal
    got = best_of_n(list(scores))
    hint = ""
    if isinstance(got, int) and 0 <= got < len(scores):
        if math.isnan(scores[got]):
            hint = "A score that is NaN is never taken."
        elif scores[got] == scores[wanted]:
            hint = "Of equal ones the first."
    expect.value(got, wanted, call, hint)


def test_best_of_n_leaves_the_scores_alone(best_of_n):
    scores = [1.0, 4.0, 2.0]
    with expect.unchanged("sorted makes a new list", scores=scores):
        best_of_n(scores)


def test_without_a_score_there_is_no_best(best_of_n):
    for scores in ([], [NAN], [NAN, NAN]):
        call = f"best_of_n({expect.show(scores)})"
        expect.rejects(ValueError, lambda s=scores: best_of_n(s), call)


# --- mbr ------------------------------------------------------------------------------


def of_mine(candidate, other):
    """The share of the candidate's letters that the other text has."""
    return sum(letter in other for letter in candidate) / len(candidate)


def of_the_others(candidate, other):
    return of_mine(other, candidate)


def equal(candidate, other):
    return float(candidate == other)


@pytest.mark.parametrize(
    ("candidates", "utility", "wanted"),
    [
        (["ab", "a", "b"], of_mine, 0),
        (["b", "a", "c", "a"], equal, 1),  # with equality it is the vote
        (["ab", "a", "a"], of_mine, 1),
        (["ab", "a", "a"], of_the_others, 0),
        (["b", "ab", "a"], of_the_others, 1),
        (["b", "a"], equal, 0),
        (["b"], equal, 0),
        (["28", "3", "29", "31"], lambda a, b: -abs(int(a) - int(b)), 0),
        (["9", "1", "5", "7"], lambda a, b: -abs(int(a) - int(b)), 2),
    ],
)
def test_mbr_worked_by_hand(mbr, candidates, utility, wanted):
    candidates = list(candidates)  # a case is the same for every answer
    name = getattr(utility, "__name__", "").replace("<lambda>", "-|a - b|")
    with expect.unchanged(candidates=candidates):
        got = mbr(candidates, utility)
    hint = ""
    if utility is equal and len(candidates) == 4 and got == 0:
        hint = "Itself is the place, not the text: the two a's speak for each other."
    elif utility in (of_mine, of_the_others) and len(set(candidates)) < 3:
        hint = "utility(candidate, other): the order of its arguments matters."
    call = f"mbr({candidates}, {name})"
    expect.value(got, wanted, call, hint)


def table_of(rows):
    """A utility that reads a table, and counts."""
    calls = []

    def utility(candidate, other):
        calls.append((candidate, other))
        return rows[int(candidate)][int(other)]

    return utility, calls


def test_a_candidate_is_not_compared_with_itself(mbr):
    utility, calls = table_of([[100.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 2.0, 9.0]])
    got = mbr(["0", "1", "2"], utility)
    hint = "What a candidate is worth to itself says nothing of the others."
    call = "mbr of three with utilities [[100, 1, 1], [3, 0, 0], [0, 2, 9]]"
    expect.value(got, 1, call, hint)
    assert len(calls) <= 6, f"{call} called the utility {len(calls)} times, not 6"


def test_a_single_candidate_needs_no_utility(mbr):
    utility, calls = table_of([[1.0]])
    expect.value(mbr(["0"], utility), 0, "mbr of a single candidate")
    assert not calls, (
        f"mbr of a single candidate called the utility {len(calls)} times: n * (n - 1) "
        "is 0 for it"
    )


def test_a_little_more_utility_wins(mbr):
    utility, _ = table_of([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5 + 1e-12], [0.5, 0.5, 0.0]])
    hint = "Sums are compared as they are, not rounded."
    call = "mbr with sums of utility 1, 1 + 1e-12, 1"
    expect.value(mbr(["0", "1", "2"], utility), 1, call, hint)


def test_a_second_copy_is_another_sample(mbr):
    utility, _ = table_of([[1.0, 0.0, 0.0], [0.0, 0.5, 0.75], [0.0, 0.75, 0.5]])
    got = mbr(["0", "1", "0", "2"], utility)  # 0: 1 + 0 + 0, 1 and 2: 0.75
    call = "mbr(['0', '1', '0', '2']), where the 0s are worth 1 to each other"
    hint = "Itself is the place, not the text: the two copies speak for each other."
    expect.value(got, 0, call, hint)


def test_the_sum_is_over_the_others_for_each_candidate(mbr):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        n = 2 + seed % 5
        rows = torch.randint(0, 64, (n, n), generator=generator) / 8  # exact in floats
        sums = [sum(rows[i, j].item() for j in range(n) if j != i) for i in range(n)]
        utility, calls = table_of(rows.tolist())
        got = mbr([str(i) for i in range(n)], utility)
        call = f"mbr of {n} candidates with sums of utility {sums}"
        expect.value(got, sums.index(max(sums)), call)
        assert len(calls) <= n * (n - 1), (
            f"{call} called the utility {len(calls)} times, where {n * (n - 1)} do"
        )


def test_utilities_may_be_negative_and_equal(mbr):
    call = "mbr of three whose utilities are all -1"
    expect.value(mbr(["a", "b", "c"], lambda a, b: -1.0), 0, call, "The first of them.")
    utility, _ = table_of([[0.0, -4.0, -4.0], [-3.0, 0.0, -1.0], [-2.0, -3.0, 0.0]])
    call = "mbr with sums of utility -8, -4, -5"
    expect.value(mbr(["0", "1", "2"], utility), 1, call)


def test_equal_texts_have_equal_sums(mbr):
    # Copies have the same utilities in another order: rounding must not choose the
    # second of them.
    worth = {"b": 0.1, "c": 0.2, "d": 0.3, "e": 0.7, "a": 1.0}

    def utility(candidate, other):
        return worth[other] if candidate == "a" else 0.0

    for order in itertools.permutations("bcde"):
        candidates = ["a", *order[:2], "a", *order[2:], "a"]
        call = f"mbr({candidates})"
        hint = "All the a's have the same sum, with math.fsum: the first of them."
        expect.value(mbr(candidates, utility), 0, call, hint)


def test_no_candidate_is_refused(mbr):
    expect.rejects(ValueError, lambda: mbr([], equal), "mbr([], utility)")


# --- power_sample ---------------------------------------------------------------------

ALARM = 1e-8  # how often one comparison below may fail a right answer


def bounds(n, p, alarm=ALARM):
    """(low, high): a count of n draws with probability p is outside with a probability
    below `alarm`, by the exact binomial distribution."""
    if p in (0.0, 1.0):
        return n * int(p), n * int(p)
    log_ways = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        for k in range(n + 1)
    ]
    chance = [
        math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))
        for k, ways in enumerate(log_ways)
    ]
    low, below = 0, chance[0]
    while below < alarm / 2:
        low += 1
        below += chance[low]
    high, above = n, chance[n]
    while above < alarm / 2:
        high -= 1
        above += chance[high]
    return low, high


X, Y = (0,), (1,)
DRAWS = 1500


def only(y, forward=0.0, backward=0.0):
    """A proposal that is always y."""
    return lambda x, generator: (y, forward, backward)


@pytest.mark.parametrize(
    ("p_x", "p_y", "alpha", "q_xy", "q_yx", "wanted"),
    [
        (0.5, 0.25, 2.0, 0.5, 0.5, 0.25),
        (0.5, 0.25, 1.0, 0.5, 0.5, 0.5),
        (0.5, 0.25, 2.0, 0.2, 0.6, 0.75),
        (0.5, 0.25, 0.0, 0.5, 0.5, 1.0),
        (0.5, 0.25, 0.5, 0.5, 0.25, 0.5**1.5),
        (0.25, 0.5, 3.0, 0.8, 0.05, 0.5),
        (0.25, 0.5, 3.0, 0.5, 0.5, 1.0),
        (0.125, 0.5, 1.0, 1e-12, 1.0, 1.0),
    ],
)
def test_acceptance_worked_by_hand(
    power_sample, seed, p_x, p_y, alpha, q_xy, q_yx, wanted
):
    """1,500 first steps; q_xy is q(y | x). Fails a right answer once in 1e8 times."""
    logprob = {X: math.log(p_x), Y: math.log(p_y)}.get
    propose = only(Y, math.log(q_xy), math.log(q_yx))
    generator = torch.Generator().manual_seed(seed)
    moved = 0
    for _ in range(DRAWS):
        got = power_sample(logprob, propose, X, alpha, 1, generator)
        assert got in (X, Y), f"power_sample gave {expect.show(got)}, neither x nor y"
        moved += got == Y
    low, high = bounds(DRAWS, wanted)
    hint = ""
    if (q_xy, q_yx) == (0.2, 0.6) and not low <= moved <= high:
        for share, said in (
            (0.25, "q(x|y) / q(y|x), which is 3 here, belongs to the ratio."),
            (0.25 / 3, "The ratio of the proposals is upside down: q(x|y) is above."),
        ):
            low_, high_ = bounds(DRAWS, share)
            hint = f" {said}" if low_ <= moved <= high_ else hint
    assert low <= moved <= high, (
        f"p(x) = {p_x}, p(y) = {p_y}, alpha = {alpha}, q(y|x) = {q_xy}, q(x|y) = "
        f"{q_yx}: y should be accepted {wanted:.1%} of the time, not "
        f"{moved / DRAWS:.1%}.{hint}"
    )


def test_each_step_draws_a_number_of_its_own(power_sample, seed):
    """1,500 walks of two steps. Fails a right answer once in 1e8 times."""
    logprob = {X: math.log(0.5), Y: math.log(0.25)}.get

    def other(x, generator):
        return (Y if x == X else X), 0.0, 0.0

    generator = torch.Generator().manual_seed(seed)
    found = [power_sample(logprob, other, X, 2.0, 2, generator) for _ in range(DRAWS)]
    # To y and, surely, back; or not to y, then to y: 3/4 of 1/4.
    low, high = bounds(DRAWS, 0.75 * 0.25)
    assert low <= found.count(Y) <= high, (
        "p(x) = 0.5, p(y) = 0.25, alpha = 2, each proposed from the other: after two "
        f"steps from x the walk should stand at y 18.8% of the time, not "
        f"{found.count(Y) / DRAWS:.1%}. Each step draws a number of its own"
    )


def test_an_impossible_text_is_never_accepted(power_sample):
    logprob = {X: math.log(0.5), Y: -INF}.get
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        got = power_sample(logprob, only(Y), X, 2.0, 3, generator)
        assert got == X, "a text with log-probability -inf was accepted"


def test_very_likely_texts_are_no_error(power_sample):
    logprob = {X: -3000.0, Y: -10.0}.get
    generator = torch.Generator().manual_seed(0)
    got = power_sample(logprob, only(Y), X, 4.0, 1, generator)
    hint = "exp(11960) is no float: the ratio is at most 1, its logarithm at most 0."
    assert got == Y, f"from ln p = -3000 to -10 every step is accepted. {hint}"


def test_no_steps_stay_at_the_start(power_sample):
    start = (3, 1, 2)
    got = power_sample(
        {start: -1.0}.get, only(Y), start, 2.0, 0, torch.Generator().manual_seed(0)
    )
    assert got == start, f"with steps=0 it should give {start}, not {expect.show(got)}"


def test_each_step_goes_on_from_where_the_walk_stands(power_sample):
    """Proposals are accepted or not for sure; the next one must come from there."""
    logprob = {(0,): -5.0, (1,): -4.0, (2,): -INF, (3,): -3.0, (4,): -2.0}
    script = iter([(1,), (2,), (3,), (2,), (4,)])
    stood, judged, generator = [], [], torch.Generator().manual_seed(0)

    def propose(x, given):
        assert given is generator, "propose should be given the generator"
        stood.append(x)
        y = next(script, None)
        assert y is not None, (
            "steps=5, but power_sample proposed more than 5 times: a step in which the "
            "walk stays counts"
        )
        return y, -1.0, -1.0

    def counted(x):
        judged.append(x)
        return logprob[x]

    got = power_sample(counted, propose, (0,), 2.0, 5, generator)
    call = "power_sample with proposals 1, 2, 3, 2, 4 from 0, where 2 is impossible,"
    assert stood == [(0,), (1,), (1,), (3,), (3,)], (
        f"{call} should propose from 0, 1, 1, 3, 3, not {expect.show(stood)}"
    )
    assert got == (4,), f"{call} should end at (4,), not {expect.show(got)}"
    assert len(judged) <= 6, (
        f"{call} called logprob {len(judged)} times, where 6 do: once for the start "
        "and once for each proposal"
    )


def test_all_chance_comes_from_the_generator(power_sample):
    logprob = {X: math.log(0.5), Y: math.log(0.3)}.get

    def propose(x, generator):
        return (Y if x == X else X), 0.0, 0.0

    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(7)
        walk = [power_sample(logprob, propose, X, 2.0, 3, generator) for _ in range(40)]
        found.append(walk)
        assert torch.equal(torch.get_rng_state(), before), (
            "power_sample drew from torch's global generator, not from the one given"
        )
    assert found[0] == found[1], "the same generator should give the same walk"
    assert len(set(found[0])) == 2, "40 calls with one generator all end alike"


# Two tokens from three, all nine texts; what comes second depends on what is first.
FIRST = [0.5, 0.3, 0.2]
SECOND = [[0.4, 0.3, 0.3], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6]]
TEXTS = list(itertools.product(range(3), repeat=2))
P = {(a, b): FIRST[a] * SECOND[a][b] for a, b in TEXTS}


def suffix_again(x, generator):
    """Draw the text again from a random place on, as the model draws."""
    place = int(torch.randint(2, (), generator=generator))
    new, forward, backward = list(x[:place]), 0.0, 0.0
    for i in range(place, 2):
        row = FIRST if i == 0 else SECOND[new[0]]
        old = FIRST if i == 0 else SECOND[x[0]]
        u, token = torch.rand((), generator=generator).item(), 0
        while token < 2 and u >= sum(row[: token + 1]):
            token += 1
        new.append(token)
        forward += math.log(row[token])
        backward += math.log(old[x[i]])
    return tuple(new), forward, backward


def kernel(alpha):
    """(9, 9): the exact probabilities of one step with `suffix_again`."""
    table = torch.zeros(9, 9, dtype=torch.float64)
    for a, x in enumerate(TEXTS):
        for b, y in enumerate(TEXTS):
            for place in (0, 1):
                if x[:place] != y[:place]:
                    continue
                q_xy = P[y] if place == 0 else SECOND[x[0]][y[1]]
                q_yx = P[x] if place == 0 else SECOND[y[0]][x[1]]
                ratio = (P[y] / P[x]) ** alpha * q_yx / q_xy
                table[a, b] += 0.5 * q_xy * min(1.0, ratio)
        table[a, a] += 1 - table[a].sum()
    return table


@pytest.mark.parametrize("alpha", [3.0, 1.0])
def test_texts_are_drawn_from_p_to_the_power_of_alpha(power_sample, seed, alpha):
    """600 walks of 16 steps, nine counts. Fails a right answer once in 1e7 times."""
    steps, walks = 16, 600
    after = torch.linalg.matrix_power(kernel(alpha), steps)[8]
    power = torch.tensor([P[x] ** alpha for x in TEXTS], dtype=torch.float64)
    target = power / power.sum()
    generator = torch.Generator().manual_seed(seed)
    logprob = {x: math.log(p) for x, p in P.items()}.get
    found = [
        power_sample(logprob, suffix_again, (2, 2), alpha, steps, generator)
        for _ in range(walks)
    ]
    for x, p, goal in zip(TEXTS, after.tolist(), target.tolist(), strict=True):
        low, high = bounds(walks, p)
        count = found.count(x)
        assert low <= count <= high, (
            f"alpha = {alpha}: after {steps} steps the text {x} should come {p:.1%} of "
            f"the time (p ** alpha says {goal:.1%}), not {count / walks:.1%}"
        )
