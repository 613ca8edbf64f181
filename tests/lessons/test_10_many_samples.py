"""Checks of lesson 10. Oracles: cases worked by hand, enumeration, exact fractions,
`generate`, id for id, and the exact kernel of a Markov chain."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import ScriptedModel, random_gpt2, random_llama

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


class Watched:
    """A model that records what it was given."""

    def __init__(self, model):
        self.model, self.shapes, self.grad = model, [], False

    def __call__(self, input_ids, **options):
        self.shapes.append(tuple(input_ids.shape))
        self.grad |= torch.is_grad_enabled()
        return self.model(input_ids, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)


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


@MODELS
@pytest.mark.parametrize("n", [1, 3, 16])
def test_the_ids_are_those_of_generate_for_the_same_seed(sample_many, make, n):
    for seed in range(2):
        model, ids = make(seed=seed, eos_token_id=[2, 30, 31, 32, 33, 34]), prompt()
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
        got = sample_many(model, ids, n, 9, sampled, [2, 30, 31, 32, 33, 34], 0)
        call = f"sample_many of a random model, n={n}, seed {seed}"
        hint = "One call of pick for all n rows at each step, finished ones included."
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
    ],
)
def test_the_vote_worked_by_hand(vote, answers, wanted):
    got = vote(list(answers))
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
    call = "vote(['a', 'b', 'c', 'c'])"
    expect.value(vote(["a", "b", "c", "c"]), "c", call, "a and b tie, but c has more.")


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
