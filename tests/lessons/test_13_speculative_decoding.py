"""Checks of lesson 13. Oracles: cases worked by hand, a scripted model that knows what
its cache holds, transformers' prompt lookup and assisted generation (the same ids, the
same number of calls), exact fractions, and counts with a stated false-alarm rate."""

import copy
import inspect
import itertools
import math
from fractions import Fraction

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import random_gpt2, random_llama

ngram_draft = exercise("ngram_draft")
verify_greedy = exercise("verify_greedy")
speculate_greedy = exercise("speculate_greedy")
residual = exercise("residual")
verify_sampled = exercise("verify_sampled")
speculate_sampled = exercise("speculate_sampled")
expected_tokens = exercise("expected_tokens")
best_k = exercise("best_k")
SuffixDraft = exercise("SuffixDraft")
AdaptiveLength = exercise("AdaptiveLength")

MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


def a_list(got, call) -> list[int]:
    """`got`, if it is a list of ints."""
    expect.returned(got, list, call)
    for x in got:
        assert type(x) is int, f"{call}: a list of ints, not of {type(x).__name__}"
    return got


def counted(model, function):
    """(what function() returns, how often the model ran)"""
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        return function(), len(calls)
    finally:
        hook.remove()


def both(got, call):
    """(ids, calls)"""
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return (ids, calls), not {len(got)} values"
    ids, calls = got
    expect.returned(ids, torch.Tensor, f"{call}: the ids")
    assert type(calls) is int, (
        f"{call}: calls should be an int, not {expect.show(calls)}"
    )
    return ids, calls


class Knowing:
    """A model with a cache that really holds ids, so that what comes back depends on
    all that it holds.

    best(text: tuple of ids) -> the id with the highest logit behind it. `fed` and
    `held` have, for each call, the ids fed and the ids that the cache held before.
    """

    def __init__(self, best, vocab_size=50):
        self.best, self.fed, self.held, self.grad = best, [], [], False
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = LlamaConfig(vocab_size=vocab_size, num_hidden_layers=1)
        self.training = False

    def __call__(self, input_ids=None, past_key_values=None, **options):
        self.grad = self.grad or torch.is_grad_enabled()
        expect.tensor(input_ids, (1, input_ids.shape[-1]), "the ids given to the model")
        cache = DynamicCache() if past_key_values is None else past_key_values
        new = input_ids[0].tolist()
        if any(not 0 <= x < self.config.vocab_size for x in new):
            raise IndexError(f"the model has no id {max(new, key=abs)}")
        old = []
        if cache.get_seq_length():
            old = cache.layers[0].keys.flatten().long().tolist()
        self.held.append(old)
        self.fed.append(new)
        kept = input_ids.double()[:, None, :, None]
        cache.update(kept, kept.clone(), 0)
        keep = options.get("logits_to_keep", 0) or len(new)
        logits = torch.zeros(1, keep, self.config.vocab_size)
        for row in range(keep):
            end = len(old) + len(new) - keep + row + 1
            logits[0, row, self.best(tuple((old + new)[:end]))] = 9.0
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def parameters(self):
        return iter([torch.nn.Parameter(torch.zeros(1))])

    def eval(self):
        return self


def of_text(text, vocab_size=50):
    """A Knowing model that writes `text`; behind any other beginning it writes 49."""
    text = tuple(text)

    def best(prefix):
        on = prefix == text[: len(prefix)] and len(prefix) < len(text)
        return text[len(prefix)] if on else 49

    return Knowing(best, vocab_size)


# --- ngram_draft ----------------------------------------------------------------------

NOWHERE = (
    "If the last 2 stood nowhere before, try 1. (The last ids match themselves, too: a "
    "place counts only if something follows it.)"
)


@pytest.mark.parametrize(
    ("ids", "n", "k", "wanted", "hint"),
    [
        ([7, 8, 9, 5, 7, 8], 2, 3, [9, 5, 7], ""),
        ([7, 8, 9, 5, 7, 8], 2, 9, [9, 5, 7, 8], "As far as the text goes."),
        ([1, 8, 3, 8], 2, 2, [3, 8], NOWHERE),
        ([1, 2, 3], 2, 2, [], "Nothing matches: the last ids do not match themselves."),
        ([4, 1, 9, 4, 2, 4], 1, 1, [1], "The first place counts, not the last."),
        ([1, 9, 5, 1, 6, 2, 5, 1], 2, 1, [6], "The longest match goes first."),
        ([3, 3, 3, 3], 2, 5, [3, 3], "The first place may overlap the last ids."),
        ([3, 3, 3], 2, 5, [3], "The first place may overlap the last ids."),
        ([5, 5], 3, 4, [5], "The text is shorter than n: begin with what there is."),
        ([1, 2, 3, 4, 1, 2, 3], 3, 1, [4], "Three ids match here."),
        ([9, 2, 3, 8, 1, 2, 3, 4, 1, 2, 3], 3, 2, [4, 1], "Three ids match at 4."),
        ([7, 8, 9, 7, 8], 2, 0, [], "k is 0."),
        ([6], 2, 3, [], ""),
        ([], 2, 3, [], ""),
    ],
)
def test_drafts_worked_by_hand(ngram_draft, ids, n, k, wanted, hint):
    call, ids = f"ngram_draft({ids}, n={n}, k={k})", list(ids)
    with expect.unchanged("slices are copies", ids=ids):
        got = ngram_draft(ids, n, k)
    expect.value(a_list(got, call), wanted, call, hint)


def looked_up(ids, n, k):
    """transformers' candidates for the same text."""
    from transformers.generation.candidate_generator import (
        PromptLookupCandidateGenerator,
    )

    theirs = PromptLookupCandidateGenerator(
        num_output_tokens=k, max_matching_ngram_size=n, max_length=10_000
    )
    got, _ = theirs.get_candidates(torch.tensor([ids]))
    return got[0, len(ids) :].tolist()


def test_drafts_are_those_of_transformers(ngram_draft):
    generator = torch.Generator().manual_seed(0)
    for vocab in (2, 3, 6, 12):
        for length in (2, 3, 5, 9, 20, 40):
            ids = torch.randint(vocab, (length,), generator=generator).tolist()
            for n, k in ((1, 2), (2, 10), (3, 4), (5, 1)):
                call = f"ngram_draft({ids}, n={n}, k={k})"
                got = a_list(ngram_draft(list(ids), n, k), call)
                expect.value(got, looked_up(ids, n, k), call)
    ids = torch.randint(3, (300,), generator=generator).tolist()
    ids = [*range(50, 80), *ids, *range(50, 57)]
    for n, k in ((2, 40), (7, 12), (20, 30)):
        call = f"ngram_draft of 337 ids, n={n}, k={k},"
        got = a_list(ngram_draft(list(ids), n, k), call)
        expect.value(got, looked_up(ids, n, k), call)


def test_the_longest_match_wins_however_long(ngram_draft):
    """Five ids match earlier than six do, and one earlier than five."""
    ids = [6, 1, 9, 2, 3, 4, 5, 6, 10, 9, 1, 2, 3, 4, 5, 6, 11, 12, 8, 1, 2, 3, 4, 5, 6]
    for n, wanted in ((7, [11, 12]), (6, [11, 12]), (5, [10, 9]), (1, [1, 9])):
        call = f"ngram_draft({ids}, n={n}, k=2)"
        expect.value(a_list(ngram_draft(list(ids), n, 2), call), wanted, call)


def test_a_draft_needs_something_to_match(ngram_draft):
    for n, k in ((0, 3), (-1, 3), (2, -1)):
        call = f"ngram_draft([1, 2, 1], n={n}, k={k})"
        expect.rejects(ValueError, lambda n=n, k=k: ngram_draft([1, 2, 1], n, k), call)


# --- verify_greedy --------------------------------------------------------------------


def rows(best, vocab=20, dtype=torch.float32):
    """Logits whose best ids are `best`; the second best is another in each row."""
    logits = torch.zeros(len(best), vocab, dtype=dtype)
    for n, x in enumerate(best):
        logits[n, x], logits[n, (x + 3) % vocab] = 5.0, 4.0
    return logits


@pytest.mark.parametrize(
    ("draft", "best", "wanted"),
    [
        ([5, 6, 7], [5, 6, 9, 1], [5, 6, 9]),
        ([5, 6, 7], [5, 6, 7, 1], [5, 6, 7, 1]),
        ([5, 6, 7], [4, 6, 7, 1], [4]),
        ([5, 6, 7], [5, 3, 7, 1], [5, 3]),
        ([5], [6, 1], [6]),
        ([5], [5, 1], [5, 1]),
        ([5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5]),
        ([], [8], [8]),
        ([5, 99], [5, 6, 7], [5, 6]),
        (list(range(18)), list(range(19)), list(range(19))),
        ([-1, 19], [19, 19, 3], [19]),
    ],
)
def test_greedy_verification_worked_by_hand(verify_greedy, draft, best, wanted):
    logits, draft = rows(best), list(draft)
    with expect.unchanged("compare, do not write", draft=draft, logits=logits):
        got = verify_greedy(draft, logits)
    call = f"verify_greedy({draft}) where the rows' best ids are {best}"
    got, hint = a_list(got, call), ""
    right = sum(1 for _ in zip(draft, best, strict=False))
    right = next((i for i in range(right) if draft[i] != best[i]), right)
    if got == draft[:right] and got != wanted:
        hint = (
            "One token more is certain: what the model says behind the accepted ones."
        )
    elif draft and got == draft and right < len(draft):
        hint = "The draft is a guess: row i says which token belongs in place i."
    elif got == [*draft[:right], best[-1]] and right < len(draft):
        hint = "The last row follows a rejected token. Take the row of the rejection."
    elif got == best and right < len(draft):
        hint = "What comes behind the first wrong token follows a wrong text."
    elif got == best[: 1 + sum(a == b for a, b in zip(draft, best, strict=False))]:
        hint = "Stop at the first that differs: what follows it counts no more."
    elif draft and got[:1] == draft[:1] and draft[0] != best[0]:
        hint = "The first draft token is checked, too: by row 0."
    expect.value(got, wanted, call, hint)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_may_have_any_float_dtype(verify_greedy, dtype):
    got = verify_greedy([5, 6], rows([5, 7, 2], dtype=dtype))
    expect.value(a_list(got, "verify_greedy"), [5, 7], f"verify_greedy of {dtype} rows")


def test_there_is_one_row_more_than_draft_tokens(verify_greedy):
    for draft, best in (([5, 6], [5, 6]), ([5], [5, 6, 7]), ([], [5, 6])):
        call = f"verify_greedy of {len(draft)} draft tokens and {len(best)} rows"
        expect.rejects(
            ValueError, lambda d=draft, b=best: verify_greedy(d, rows(b)), call
        )


# --- speculate_greedy -----------------------------------------------------------------


def prompt():
    return torch.tensor([[5, 17, 40, 8, 5, 17]])


WRITTEN = [20, 21, 22, 23, 24, 25, 26, 27]  # what the scripted model adds to `prompt`


def scripted(guesses, new=8, eos_ids=(), written=WRITTEN, vocab_size=50):
    """(model, draft, arguments, wanted ids): the draft gives `guesses` in turn."""
    model = of_text(prompt()[0].tolist() + list(written), vocab_size)
    left, asked = [list(guess) for guess in guesses], []

    def draft(ids):
        asked.append(copy.copy(ids))  # as it was: the caller's list may grow
        return left.pop(0) if left else []

    draft.asked = asked
    wanted = prompt()[0].tolist()
    for x in written[:new]:
        wanted.append(x)
        if x in eos_ids:
            break
    return model, draft, (new, list(eos_ids)), torch.tensor([wanted])


def walked(model, call):
    """Each call is fed what the cache does not hold, and the cache holds nothing else
    than the text."""
    assert not model.grad, f"{call}: call the model inside torch.no_grad()"
    text = tuple(prompt()[0].tolist() + WRITTEN)
    for n, (held, fed) in enumerate(zip(model.held, model.fed, strict=True)):
        assert tuple(held) == text[: len(held)], (
            f"{call}: at call {n + 1} the cache holds {held}, and the text is "
            f"{list(text[: len(held)])}: what was rejected must leave the cache"
        )
        if n:
            assert held, f"{call}: call {n + 1} comes without a cache"
        begin = prompt().shape[1] if n == 0 else 1
        same = tuple(fed[:begin]) == text[len(held) : len(held) + begin]
        assert same or not fed, (
            f"{call}: call {n + 1} is fed {fed} behind {held}; the text there is "
            f"{list(text[len(held) : len(held) + begin])}"
        )


CASES = {
    "the first guess is wrong": ([[9, 21, 22]], [[9, 21, 22]], 8),
    "the second is wrong": ([[20, 9, 22]], [[20, 9, 22]], 7),
    "the last is wrong": ([[20, 21, 9]], [[20, 21, 9]], 6),
    "all are right": ([[20, 21, 22]], [[20, 21, 22]], 5),
    "all are right, twice": (
        [[20, 21, 22], [24, 25, 26]],
        [[20, 21, 22], [24, 25, 26]],
        2,
    ),
    "right ones behind a wrong one": ([[20, 9, 22, 23]], [[20, 9, 22, 23]], 7),
    "wrong, then right": (
        [[9], [21, 22], [9, 9], [25]],
        [[9], [21, 22], [9, 9], [25]],
        5,
    ),
    "no guess at all": ([], [], 8),
    "nothing, then a guess": ([[], [21, 22]], [[], [21, 22]], 6),
    "one guess": ([[20]], [[20]], 7),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_does_not_depend_on_the_guesses(speculate_greedy, case):
    guesses, _, calls = CASES[case]
    model, draft, options, wanted = scripted(guesses)
    call = f"speculate_greedy where the guesses are {guesses} and the text {WRITTEN}"
    got, ours = both(speculate_greedy(model, prompt(), draft, *options), call)
    earlier = _of_the_verifier(speculate_greedy, "verify_greedy", _verifies_greedily)
    hint = earlier or _of_the_text(model, got, wanted, guesses)
    expect.same_ids(got, wanted, call, hint=hint)
    walked(model, call)
    assert ours == len(model.fed), (
        f"{call}: calls is {ours}, and the model was called {len(model.fed)} times"
    )
    assert ours == calls, (
        f"{call} should take {calls} calls of the model, not {ours}. {earlier}".rstrip()
    )


def _of_the_verifier(function, name, passes):
    """A hint where the earlier exercise `name`, that `function` calls, is wrong."""
    function = inspect.unwrap(function)
    earlier = getattr(function, "__globals__", {}).get(name)
    called = name in getattr(getattr(function, "__code__", None), "co_names", ())
    if earlier is None or not called or passes(earlier):
        return ""
    return f"Your `{name}` does not pass its own check: mend that first."


def _verifies_greedily(verify):
    try:
        return (
            verify([5, 6, 7], rows([5, 6, 9, 1])) == [5, 6, 9]
            and verify([5, 6, 7], rows([4, 6, 7, 1])) == [4]
            and verify([5, 6], rows([5, 6, 1])) == [5, 6, 1]
            and verify([], rows([8])) == [8]
        )
    except Exception:  # whatever a learner's function may raise
        return False


def _of_the_text(model, got, wanted, guesses):
    """A hint where an answer kept a guess that the model would not have written."""
    if got.dim() != 2 or got.shape[0] != 1:
        return ""
    new = got[0, prompt().shape[1] :].tolist()
    first = guesses[0] if guesses else []
    if first and new[: len(first)] == first != WRITTEN[: len(first)]:
        return "The guess was kept without asking the model."
    for held in model.held[1:]:
        text = prompt()[0].tolist() + WRITTEN
        if held != text[: len(held)]:
            return (
                f"The cache held {held} before a call: what was rejected must leave it."
            )
    return ""


def test_the_prompt_and_the_first_guess_are_one_call(speculate_greedy):
    model, draft, options, _ = scripted([[20, 21], [23, 9]], new=6)
    speculate_greedy(model, prompt(), draft, *options)
    call = "speculate_greedy, guesses [20, 21] and then [23, 9]: the tokens fed"
    wanted = [[*prompt()[0].tolist(), 20, 21], [22, 23, 9], [24]]
    hint = ""
    if model.fed and len(model.fed[0]) <= prompt().shape[1]:
        hint = "The first call takes the prompt and the first guess together."
    elif len(model.fed) == 3 and len(model.fed[2]) > 1:
        hint = "Feed what the cache does not hold."
    expect.value(model.fed, wanted, call, hint)


@pytest.mark.parametrize(
    ("guesses", "eos_ids", "calls"),
    [
        ([], [22], 3),
        ([[20, 21, 22, 23, 24]], [22], 1),
        ([[20, 21, 22, 23, 24]], [23, 22], 1),
        ([[20, 21]], [22], 1),
        ([[20, 21, 22]], [22], 1),
        ([[20, 21, 22]], [20], 1),
        ([[20, 9]], [9], 7),
        ([[9]], [20], 1),
        ([[20, 21, 9, 22]], [22], 1),
    ],
)
def test_an_eos_ends_the_text_wherever_it_is(speculate_greedy, guesses, eos_ids, calls):
    model, draft, options, wanted = scripted(guesses, eos_ids=eos_ids)
    call = f"speculate_greedy, guesses {guesses}, text {WRITTEN}, EOS {eos_ids}"
    got, ours = both(speculate_greedy(model, prompt(), draft, *options), call)
    hint = "Nothing follows an EOS, even if it was accepted in the middle of a guess."
    if 9 in eos_ids:
        hint = "A guess that was rejected is no token of the text, and ends nothing."
    expect.same_ids(got, wanted, call, hint=hint)
    assert ours == calls, f"{call} should take {calls} call(s), not {ours}"


def test_an_eos_in_the_prompt_ends_nothing(speculate_greedy):
    model, draft, options, wanted = scripted([[20, 21]], eos_ids=[17])
    got, _ = both(
        speculate_greedy(model, prompt(), draft, *options), "speculate_greedy"
    )
    expect.same_ids(got, wanted, "speculate_greedy where the prompt holds the EOS 17")


@pytest.mark.parametrize("new", [0, 1, 2, 3, 4])
def test_never_more_than_max_new_tokens(speculate_greedy, new):
    model, draft, options, wanted = scripted([WRITTEN[:6]], new=new)
    call = f"speculate_greedy with max_new_tokens={new} and a guess of 6"
    got, calls = both(speculate_greedy(model, prompt(), draft, *options), call)
    expect.same_ids(got, wanted, call)
    expect.tensor(got, wanted.shape, call, torch.int64)
    expect.value(calls, int(new > 0), f"{call}: the calls")
    for fed in model.fed:
        extra = len(fed) - prompt().shape[1]
        assert extra <= new - 1, (
            f"{call}: the model was fed {extra} guessed tokens, where {new - 1} can be "
            "kept beside its own"
        )


@pytest.mark.parametrize("strange", [50, 49_000, -1])
def test_ids_of_another_vocabulary_are_never_fed(speculate_greedy, strange):
    guesses = [[20, strange, 22], [strange], [23, strange]]
    model, draft, options, wanted = scripted(guesses)
    call = f"speculate_greedy with a vocabulary of 50, guesses {guesses}"
    try:
        got, calls = both(speculate_greedy(model, prompt(), draft, *options), call)
    except IndexError as error:
        raise AssertionError(
            f"{call}: {error}. Cut a guess at the first id from outside 0 to 49."
        ) from None
    expect.same_ids(got, wanted, call)
    expect.value(calls, 6, f"{call}: the calls")


def test_the_first_and_the_last_id_of_the_vocabulary_are_good_guesses(speculate_greedy):
    written = [0, 49, 49, 0, 0, 20, 21, 22]
    model, draft, options, wanted = scripted([written[:5]], written=written)
    call = f"speculate_greedy, vocabulary of 50, guess {written[:5]}, text {written}"
    got, calls = both(speculate_greedy(model, prompt(), draft, *options), call)
    expect.same_ids(got, wanted, call)
    hint = "0 is an id like others, and 49 the last of 50."
    expect.value(calls, 3, f"{call}: the calls", hint)


def test_the_draft_sees_the_whole_text_once_a_round(speculate_greedy):
    model, draft, options, wanted = scripted([[20, 21], [9], []], new=6)
    speculate_greedy(model, prompt(), draft, *options)
    text = wanted[0].tolist()
    for ids in draft.asked:
        a_list(ids, "what the draft is given")
        assert ids == text[: len(ids)], f"the draft was given {ids}; the text is {text}"
    lengths = [len(ids) for ids in draft.asked if len(ids) < len(text) - 1]
    assert lengths == [6, 9, 10], (
        f"the draft was asked behind {lengths} ids; the rounds begin behind 6, 9 and 10"
    )


def test_the_prompt_stays_as_it_was(speculate_greedy):
    model, draft, options, _ = scripted([[20, 21]])
    ids = prompt()
    with expect.unchanged("append to a list of your own", ids=ids):
        speculate_greedy(model, ids, draft, *options)


def repeated():
    return torch.tensor([[5, 17, 40, 8, 61, 5, 17, 40, 8, 61, 5, 17]])


def copying(make):
    """A model that repeats itself, as one that copies does: it hardly attends."""
    model = make(seed=2 if make is random_llama else 0, eos_token_id=None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.mul_(0.05)
            if "attn.c_proj" in name or "wpe" in name:
                weight.mul_(0.15)
    model.generation_config.pad_token_id = None
    return model


@MODELS
@pytest.mark.parametrize(("n", "k"), [(2, 3), (3, 10), (1, 1)])
@pytest.mark.parametrize("ends", [False, True])
def test_ids_and_calls_are_those_of_prompt_lookup(speculate_greedy, make, n, k, ends):
    model, start = copying(make), repeated().shape[1]
    plain = model.generate(repeated(), max_new_tokens=30, do_sample=False)
    new = plain[0, start:].tolist()
    eos = [next(x for i, x in enumerate(new) if i >= 20 and x not in new[:i])]
    eos = eos if ends else []
    oracle, calls = counted(
        model,
        lambda: model.generate(
            repeated(),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=eos or None,
            prompt_lookup_num_tokens=k,
            max_matching_ngram_size=n,
        ),
    )
    assert torch.equal(oracle, plain[:, : oracle.shape[1]]), "the oracle is greedy"
    assert calls < 0.9 * (oracle.shape[1] - start), "or nothing would be seen here"
    call = f"speculate_greedy on {type(model).__name__}, n={n}, k={k}, EOS {eos}"
    got, ours = both(
        speculate_greedy(model, repeated(), lambda t: looked_up(t, n, k), 30, eos), call
    )
    expect.same_ids(got, oracle, call)
    assert ours == calls, f"{call}: {ours} calls, where transformers takes {calls}"


@MODELS
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.5])
def test_ids_and_calls_are_those_of_assisted_generation(speculate_greedy, make, noise):
    model, draft_model = make(eos_token_id=None), noisy(make(eos_token_id=None), noise)
    model.generation_config.pad_token_id = None
    oracle, calls = counted(
        model,
        lambda: model.generate(
            prompt(),
            max_new_tokens=20,
            do_sample=False,
            assistant_model=assistant(draft_model, 4),
        ),
    )

    def draft(ids):
        text = torch.tensor([ids])
        for _ in range(4):
            with torch.no_grad():
                best = draft_model(text, use_cache=False).logits[:, -1:].argmax(-1)
            text = torch.cat([text, best], dim=-1)
        return text[0, len(ids) :].tolist()

    got, ours = both(
        speculate_greedy(model, prompt(), draft, 20, []),
        call := f"speculate_greedy on {type(model).__name__} with a draft model",
    )
    expect.same_ids(got, oracle, call)
    assert ours == calls, f"{call}: {ours} calls, where transformers takes {calls}"


def noisy(model, size, seed=1):
    """A copy with noise on its weights: a draft model that is often right."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dim() > 1:
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    return other


def assistant(model, k):
    """The model, set so that transformers does not change the length of its drafts."""
    model.generation_config.num_assistant_tokens = k
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


# --- residual -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "wanted"),
    [
        ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]),
        ([0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [5 / 6, 1 / 6, 0.0]),
        ([0.5, 0.375, 0.125], [0.25, 0.25, 0.5], [2 / 3, 1 / 3, 0.0]),
        ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        ([0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [5 / 7, 0.0, 2 / 7]),
        ([0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]),
    ],
)
def test_residual_worked_by_hand(residual, p, q, wanted):
    p, q, wanted = torch.tensor([p, q, wanted], dtype=torch.float64)
    with expect.unchanged("p - q is a new tensor", p=p, q=q):
        got = residual(p, q)
    call = f"residual({expect.show(p)}, {expect.show(q)})"
    expect.tensor(got, (3,), call, torch.float64)
    left, hint = torch.clamp(p - q, min=0), ""
    if torch.allclose(got, left):
        hint = "Divide by the sum: what is left is no distribution yet."
    elif torch.allclose(got, left.softmax(-1)):
        hint = "Divide by the sum. softmax is for logits: it gives 0 a chance."
    elif torch.allclose(got, (p - q).abs() / (p - q).abs().sum()):
        hint = "Where q is above p there is nothing left: clamp, not abs."
    elif torch.allclose(got, (q - p).clamp(min=0) / (q - p).clamp(min=0).sum()):
        hint = "It is p that has something left, where q is below it: p - q."
    elif torch.allclose(got, p):
        hint = "q has served a part of p: what is left is p - q, where that is above 0."
    expect.same(got, wanted, call, hint, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_left_gives_p(residual, dtype):
    for values in ([0.5, 0.25, 0.25], [0.0, 1.0, 0.0]):
        p = torch.tensor(values, dtype=dtype)
        got = residual(p, p.clone())
        call = f"residual(p, p) of p = {values}"
        expect.tensor(got, (3,), call, dtype)
        hint = "0 / 0 is nan." if got.isnan().any() else ""
        expect.same(got, p, call, hint)
        expect.a_copy(got, p, call)


def test_the_residual_sums_to_1_and_never_favours_what_q_favours(residual):
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 8.0):
        p, q = (torch.randn(2, 500, generator=generator) * scale).softmax(-1)
        got = residual(p, q)
        expect.tensor(got, (500,), "residual of 500 probabilities", torch.float32)
        total = got.double().sum().item()
        assert abs(total - 1) < 1e-4, f"residual(p, q) should sum to 1, not {total:.6g}"
        assert (got[q >= p] == 0).all(), "where q is p or more, nothing is left: 0"
        ratio = (got / (p - q))[p - q > 1e-5]
        spread = (ratio.max() / ratio.min()).item()
        assert spread < 1.01, "all that is left grows by the same factor"


# --- verify_sampled -------------------------------------------------------------------


def one_hot(*ids, vocab=4):
    return torch.eye(vocab)[list(ids)] if ids else torch.zeros(0, vocab)


def half():
    """The example of the card, of exactly representable numbers."""
    q = torch.tensor([[0.25, 0.25, 0.5]])
    return torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]), q


@pytest.mark.parametrize(
    ("p", "q", "draft", "wanted", "hint"),
    [
        (
            (1, 2, 3),
            (1, 2),
            [1, 2],
            [1, 2, 3],
            "All accepted: one more from the last row.",
        ),
        (
            (1, 2, 3),
            (0, 2),
            [0, 2],
            [1],
            "p gives token 0 no chance: rejected at once.",
        ),
        (
            (1, 2, 3),
            (1, 0),
            [1, 0],
            [1, 2],
            "The second is rejected, the first is kept.",
        ),
        ((0, 0, 0), (0, 0), [0, 0], [0, 0, 0], ""),
        ((3,), (), [], [3], "Nothing drafted: one token from p."),
        (
            (2, 1),
            (3,),
            [3],
            [2],
            "Draw from the residual of row 0, where it was rejected.",
        ),
    ],
)
def test_certain_cases_of_verification(verify_sampled, p, q, draft, wanted, hint):
    p_rows, q_rows, draft = one_hot(*p), one_hot(*q), list(draft)
    call = f"verify_sampled of draft {draft}, where p is sure of {p} and q of {q}"
    for seed in range(3):
        torch.manual_seed(seed)
        with expect.unchanged(p=p_rows, q=q_rows, draft=draft):
            got = verify_sampled(p_rows, q_rows, draft)
        told = hint
        if draft and got == draft and got != wanted:
            told = "No draft token is accepted unseen: compare p and q at it."
            if p[: len(q)] == q:
                told = "All were accepted: one more, from the last row of p."
        expect.value(a_list(got, call), wanted, call, told)


def by_the_book(p, q, draft, generator):
    """Algorithm 1 of Leviathan et al., in plain Python numbers."""
    numbers = torch.rand(len(draft), generator=generator).tolist()
    out = []
    for n, x in enumerate(draft):
        if not numbers[n] < p[n, x].item() / q[n, x].item():
            left = [
                max(0.0, a - b)
                for a, b in zip(p[n].tolist(), q[n].tolist(), strict=True)
            ]
            last = torch.tensor([a / sum(left) for a in left])
            return [*out, torch.multinomial(last, 1, generator=generator).item()]
        out.append(x)
    return [*out, torch.multinomial(p[-1], 1, generator=generator).item()]


def random_case(k, seed, vocab=6, peaked=1.5):
    generator = torch.Generator().manual_seed(seed)
    p = (peaked * torch.randn(k + 1, vocab, generator=generator)).softmax(-1)
    q = (peaked * torch.randn(k, vocab, generator=generator)).softmax(-1)
    q = 0.5 * q + 0.5 * p[:k]
    draft = torch.multinomial(q, 1, generator=generator)[:, 0].tolist() if k else []
    return p, q, draft


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_the_same_seed_gives_the_same_tokens(verify_sampled, k):
    lengths = set()
    for seed in range(60):
        p, q, draft = random_case(k, seed)
        wanted = by_the_book(p, q, draft, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        before = torch.get_rng_state()
        got = verify_sampled(p, q, draft, generator)
        call = f"verify_sampled of {k} draft tokens {draft} with seed {seed}"
        assert torch.equal(torch.get_rng_state(), before), (
            f"{call}: a generator is given, and it draws from the global one"
        )
        hint = f"First torch.rand({k}), then one torch.multinomial."
        expect.value(a_list(got, call), wanted, call, hint)
        after = torch.Generator().manual_seed(seed)
        by_the_book(p, q, draft, after)
        assert torch.equal(generator.get_state(), after.get_state()), (
            f"{call} should draw {k} numbers with torch.rand, whether needed or not, "
            "and then one token"
        )
        lengths.add(len(wanted))
    assert len(lengths) == k + 1, "these seeds should bring up all lengths"


def test_without_a_generator_it_draws_from_the_global_one(verify_sampled):
    for seed in range(20):
        p, q, draft = random_case(3, seed)
        wanted = by_the_book(p, q, draft, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        got = verify_sampled(p, q, draft)
        call = f"verify_sampled without a generator, after torch.manual_seed({seed}),"
        expect.value(a_list(got, call), wanted, call)


# 3,000 draws of a token with probability 1/4 or 1/2 are 6 standard deviations off with
# a probability below 1e-8 (2,000 the same); the test looks at 12 shares.
@pytest.mark.parametrize("greedy_draft", [False, True])
def test_tokens_come_as_often_as_from_p(verify_sampled, greedy_draft):
    """The first token as from row 0 of p, whoever drafts; the second as from row 1."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]])
    q = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
    if greedy_draft:
        q = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(7)
    drafts = torch.stack(
        [torch.multinomial(row, 3000, True, generator=generator) for row in q], dim=1
    ).tolist()
    first, second = [0] * 3, [0] * 3
    for draft in drafts:
        got = verify_sampled(p, q, draft, generator)
        first[got[0]] += 1
        if len(got) > 1:
            second[got[1]] += 1
    for counts, row in ((first, p[0]), (second, p[1])):
        total = sum(counts)
        for token, share in enumerate(row.tolist()):
            allowed = 6 * math.sqrt(share * (1 - share) / total)
            seen = counts[token] / total
            assert abs(seen - share) < allowed, (
                f"3,000 runs of verify_sampled, p = {expect.show(row)}: token {token} "
                f"should come {share:.0%} of the time, not {seen:.1%}"
            )


def test_what_a_filter_cut_never_comes(verify_sampled):
    """p and q after top-k: many zeros, at different places."""
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]])
    q = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        draft = torch.multinomial(q[0], 1, generator=generator).tolist()
        got = verify_sampled(p, q, draft, generator)
        call = f"verify_sampled of draft {draft}, p = [0.5, 0.5, 0, 0] and then"
        call += " [0, 0.5, 0.5, 0], q = [0, 0.5, 0.5, 0]"
        a_list(got, call)
        assert got[0] in (0, 1), f"{call}: {got} begins with a token that p excludes"
        if draft == [1]:
            assert got in ([1, 1], [1, 2]), (
                f"{call} should give [1, 1] or [1, 2], not {got}: p(1) is q(1), so it "
                "is accepted, and one more is drawn from the last row of p"
            )
        else:
            assert got == [0], f"{call} should give [0], all that is left, not {got}"


def test_shapes_have_to_fit(verify_sampled):
    p, q = half()
    wider = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    for what, options in {
        "p without the row for one more": (p[:1], q, [2]),
        "q with a row too many": (p, torch.cat([q, q]), [2]),
        "a draft longer than q": (p, q, [2, 1]),
        "a draft shorter than q": (p, q, []),
        "q of another vocabulary": (p, wider, [2]),
    }.items():
        call = f"verify_sampled with {what}"
        expect.rejects(ValueError, lambda o=options: verify_sampled(*o), call)


# --- speculate_sampled ----------------------------------------------------------------


def colder(model, temperature):
    """A copy whose logits are divided by the temperature, a power of 2: exactly."""
    other = copy.deepcopy(model)
    head = other.lm_head.weight.detach() / temperature
    other.lm_head.weight = torch.nn.Parameter(head)
    return other


def _of_the_sample(speculate_sampled, model, draft_model):
    """What is wrong where a sample is not that of the oracle."""

    def verifies(verify):
        p, q, draft = random_case(3, 0)
        try:
            return all(
                verify(p, q, draft, torch.Generator().manual_seed(seed))
                == by_the_book(p, q, draft, torch.Generator().manual_seed(seed))
                for seed in range(20)
            )
        except Exception:  # whatever a learner's function may raise
            return False

    earlier = _of_the_verifier(speculate_sampled, "verify_sampled", verifies)
    if earlier:
        return earlier
    log = []
    seen = Seen(model, log), Seen(draft_model, log)
    turns = [id(seen[1]), id(seen[0])]
    torch.manual_seed(0)
    speculate_sampled(*seen, prompt(), 3, 20, 1.0, [])
    for before, after in itertools.pairwise(log):
        if [before[0], after[0]] == turns and before[1] > after[1] - 1:
            return (
                f"The draft model's cache holds {before[1]} ids where the text and the "
                f"draft, but for its last token, are {after[1] - 1}: cut it back, too."
            )
    calls = {}
    for temperature in (1.0, 0.5):
        torch.manual_seed(0)
        _, calls[temperature] = speculate_sampled(
            model, model, prompt(), 3, 20, temperature, []
        )
    if calls[1.0] == 5 < calls[0.5]:
        return (
            "With the model as its own draft, 20 tokens take 5 calls at temperature 1 "
            f"and {calls[0.5]} at 0.5: divide both logits, those of p and those of q, "
            "by the temperature."
        )
    return "Draws in order: the draft's, then those of verify_sampled."


@MODELS
@pytest.mark.parametrize(("temperature", "k"), [(1.0, 1), (1.0, 4), (0.5, 3), (2.0, 3)])
def test_the_seed_gives_what_assisted_generation_gives(
    speculate_sampled, make, temperature, k
):
    """transformers divides the draft model's logits by the temperature twice. So the
    logits of its models are divided here, and it samples at temperature 1."""
    model = make(eos_token_id=None)
    draft_model = noisy(model, 0.1)
    theirs = colder(model, temperature)
    theirs.generation_config.pad_token_id = None
    helper = assistant(colder(draft_model, temperature), k)
    for seed, eos in ((0, []), (1, list(range(3, 40, 3))), (2, list(range(40, 97, 5)))):

        def assisted(eos=eos):
            return theirs.generate(
                prompt(),
                max_new_tokens=16,
                do_sample=True,
                top_k=0,
                eos_token_id=eos or None,
                assistant_model=helper,
            )

        torch.manual_seed(seed)
        oracle, calls = counted(theirs, assisted)
        torch.manual_seed(seed)
        call = f"speculate_sampled on {type(model).__name__}, k={k}, temperature "
        call += f"{temperature}, seed {seed}" + (", many EOS ids" if eos else "")
        got, ours = both(
            speculate_sampled(model, draft_model, prompt(), k, 16, temperature, eos),
            call,
        )
        hint = ""
        if not torch.equal(got, oracle):
            hint = _of_the_sample(speculate_sampled, model, draft_model)
        expect.same_ids(got, oracle, call, hint=hint)
        assert ours == calls, f"{call}: {ours} calls, where transformers takes {calls}"


@MODELS
def test_without_drafts_it_is_plain_sampling(speculate_sampled, make):
    model = make(eos_token_id=None)
    for temperature in (1.0, 0.5):
        torch.manual_seed(3)
        oracle = model.generate(
            prompt(),
            max_new_tokens=12,
            do_sample=True,
            top_k=0,
            temperature=temperature,
            pad_token_id=0,
        )
        torch.manual_seed(3)
        call = f"speculate_sampled with k=0 and temperature {temperature}"
        got, calls = both(
            speculate_sampled(model, model, prompt(), 0, 12, temperature, []), call
        )
        expect.same_ids(got, oracle, call)
        expect.value(calls, 12, f"{call}: the calls")


class Seen:
    """A model that records what it is fed and what the cache holds. Models with one
    `log` record there, in order, (their id, what the cache holds after the call)."""

    def __init__(self, model, log=None):
        self.model, self.widths, self.lengths, self.grad = model, [], [], False
        self.log = [] if log is None else log

    def __call__(self, input_ids=None, past_key_values=None, **options):
        self.grad = self.grad or torch.is_grad_enabled()
        held = past_key_values.get_seq_length() if past_key_values is not None else 0
        self.widths.append(input_ids.shape[1])
        self.lengths.append(held)
        self.log.append((id(self), held + input_ids.shape[1]))
        return self.model(input_ids, past_key_values=past_key_values, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_both_models_are_fed_what_they_have_not_seen(speculate_sampled, noise):
    target = random_llama(eos_token_id=None)
    model, draft_model = Seen(target), Seen(noisy(target, noise))
    torch.manual_seed(0)
    call = "speculate_sampled with k=3"
    got, calls = both(
        speculate_sampled(model, draft_model, prompt(), 3, 20, 1.0, []), call
    )
    expect.tensor(got, (1, 26), call, torch.int64)
    expect.value(calls, len(model.widths), f"{call}: calls, of the model")
    grad = model.grad or draft_model.grad
    assert not grad, f"{call}: call both models inside torch.no_grad()"
    first, wide = model.widths[0], max(model.widths[1:], default=0)
    assert first == 6 + 3, f"{call}: the first call should feed 6 + 3 ids, not {first}"
    assert wide <= 4, (
        f"{call}: the model is fed {wide} ids in a later call, where 4 are enough (one "
        "it has not seen, and the draft): keep its cache"
    )
    assert draft_model.widths[0] == 6, (
        f"{call}: the draft model's first call takes 6 ids"
    )
    wide = max(draft_model.widths[1:])
    assert wide <= 2, (
        f"{call}: the draft model is fed {wide} ids in a later call, where 2 are "
        "enough: keep its cache, too"
    )
    if noise == 0.0:
        assert calls == 5, (
            f"{call}: a draft model equal to the model is always right, so 20 tokens "
            f"take 5 calls, not {calls}. Are p and q made in the same way?"
        )


@pytest.mark.parametrize("new", [0, 1, 2, 5])
def test_no_sample_is_longer_than_asked_for(speculate_sampled, new):
    target = random_llama(eos_token_id=None)
    model, draft_model = Seen(target), Seen(target)
    call = f"speculate_sampled with k=8 and max_new_tokens={new}"
    torch.manual_seed(0)
    got, calls = both(
        speculate_sampled(model, draft_model, prompt(), 8, new, 1.0, []), call
    )
    expect.tensor(got, (1, 6 + new), call, torch.int64)
    expect.value(calls, int(new > 0), f"{call}: the calls")
    assert len(draft_model.widths) <= max(0, new - 1), (
        f"{call}: the draft model ran {len(draft_model.widths)} times, and at most "
        f"{max(0, new - 1)} of its tokens can be kept"
    )


def test_an_eos_ends_a_sample_wherever_it_is(speculate_sampled):
    """A draft equal to the model: all is accepted, so an EOS is often in the middle."""
    model = random_llama(eos_token_id=None)
    eos = list(range(0, 97, 4))
    inside = 0
    for seed in range(8):
        torch.manual_seed(seed)
        got, _ = both(
            speculate_sampled(model, model, prompt(), 6, 20, 1.0, eos),
            call := f"speculate_sampled with 25 EOS ids, seed {seed}",
        )
        expect.tensor(got, (1, got.shape[-1]), call, torch.int64)
        new = got[0, 6:].tolist()
        ends = [n for n, x in enumerate(new) if x in eos]
        assert ends[:1] in ([len(new) - 1], []), (
            f"{call}: {new} goes on behind the EOS {new[ends[0]]}"
        )
        assert ends or len(new) == 20, f"{call}: {new} ends without an EOS"
        inside += 0 < len(new) % 7 < 7 and len(new) < 20
    assert inside, "these seeds should bring up an EOS inside a draft"


def test_models_of_different_vocabularies_do_not_go_together(speculate_sampled):
    model = random_llama(eos_token_id=None)
    for other in (96, 98):
        draft_model = random_llama(vocab_size=other, eos_token_id=None)
        call = f"speculate_sampled with vocabularies of 97 and {other}"
        expect.rejects(
            ValueError,
            lambda d=draft_model: speculate_sampled(model, d, prompt(), 3, 8, 1.0, []),
            call,
        )
        expect.rejects(
            ValueError,
            lambda d=draft_model: speculate_sampled(model, d, prompt(), 0, 1, 1.0, []),
            f"{call}, and k=0",
        )


def test_a_temperature_is_above_0(speculate_sampled):
    model = random_llama(eos_token_id=None)
    for temperature in (0.0, -1.0):
        call = f"speculate_sampled at temperature {temperature}"
        expect.rejects(
            ValueError,
            lambda t=temperature: speculate_sampled(
                model, model, prompt(), 3, 8, t, []
            ),
            call,
        )


def test_the_prompt_of_a_sample_stays_as_it_was(speculate_sampled):
    model, ids = random_llama(eos_token_id=None), prompt()
    with expect.unchanged("append to a list of your own", ids=ids):
        speculate_sampled(model, model, ids, 3, 6, 1.0, [])


# --- expected_tokens, best_k ----------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "k", "wanted"),
    [
        (0.5, 2, 1.75),
        (0.5, 0, 1.0),
        (0.5, 1, 1.5),
        (1.0, 4, 5.0),
        (0.0, 4, 1.0),
        (0.0, 0, 1.0),
        (0.75, 3, 2.734375),
        (0.9, 40, (1 - 0.9**41) / 0.1),
    ],
)
def test_expected_tokens_worked_by_hand(expected_tokens, alpha, k, wanted):
    got = expected_tokens(alpha, k)
    hint = ""
    if isinstance(got, float) and abs(got - (1 + alpha * k)) < 1e-9:
        hint = "A token counts only if all before it were accepted: α, α², ..."
    elif isinstance(got, float) and abs(got - (wanted - 1)) < 1e-9:
        hint = "The model itself adds one token, for certain."
    elif isinstance(got, float) and abs(got - (wanted - alpha**k)) < 1e-9 and k:
        hint = "The sum ends with αᵏ: there are k + 1 terms."
    call = f"expected_tokens({alpha}, {k})"
    expect.value(got, wanted, call, hint, 1e-9)
    assert isinstance(got, float), f"{call} should be a float, not {got!r}"


def test_expected_tokens_are_the_mean_over_all_outcomes(expected_tokens):
    for alpha in (0.25, 0.6, 0.95):
        for k in (1, 3, 7):
            mean = sum((n + 1) * alpha**n * (1 - alpha) for n in range(k))
            mean += (k + 1) * alpha**k
            expect.value(
                expected_tokens(alpha, k),
                mean,
                f"expected_tokens({alpha}, {k})",
                "",
                1e-9,
            )


def test_alpha_is_a_probability(expected_tokens):
    for alpha, k in ((-0.1, 2), (1.1, 2), (0.5, -1)):
        call = f"expected_tokens({alpha}, {k})"
        expect.rejects(ValueError, lambda a=alpha, k=k: expected_tokens(a, k), call)


@pytest.mark.parametrize(
    ("alpha", "cost", "wanted", "hint"),
    [
        (0.5, 0.25, 1, ""),
        (0.5, 0.5, 0, "k = 0 and k = 1 are equally good: the smallest."),
        (0.25, 0.25, 0, "k = 0 and k = 1 are equally good: the smallest."),
        (0.0, 0.125, 0, "No draft is ever right: 0."),
        (0.5, 1.0, 0, "Each draft token costs as much as a step: 0."),
        (
            1.0,
            0.125,
            64,
            "All are right, and cost less than a step: as many as allowed.",
        ),
        (1.0, 1.0, 0, "All are equally good: the smallest."),
        (1.0, 2.0, 0, ""),
        (1.0, 0.0, 64, ""),
        (0.0, 0.0, 0, "All are equally good: the smallest."),
    ],
)
def test_best_k_worked_by_hand(best_k, alpha, cost, wanted, hint):
    call = f"best_k({alpha}, {cost})"
    expect.value(best_k(alpha, cost), wanted, call, hint)


def test_best_k_writes_the_most_tokens_in_the_time(best_k):
    for alpha in (Fraction(1, 8), Fraction(1, 2), Fraction(7, 10), Fraction(19, 20)):
        for cost in (
            Fraction(1, 100),
            Fraction(1, 20),
            Fraction(3, 10),
            Fraction(2, 3),
        ):
            speed = [
                sum(alpha**i for i in range(k + 1)) / (1 + k * cost) for k in range(65)
            ]
            wanted = speed.index(max(speed))
            call = f"best_k({float(alpha)}, {float(cost):.4g})"
            hint = "tokens / time, with a time of 1 + k · cost."
            expect.value(best_k(float(alpha), float(cost)), wanted, call, hint)


def test_best_k_needs_a_probability_and_a_cost(best_k):
    for alpha, cost in ((-0.1, 0.1), (1.1, 0.1), (0.5, -0.1)):
        call = f"best_k({alpha}, {cost})"
        expect.rejects(ValueError, lambda a=alpha, c=cost: best_k(a, c), call)


# --- SuffixDraft ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longest", "factor", "ids", "wanted", "hint"),
    [
        (2, 1, [1, 2, 3, 1, 2, 4, 1, 2, 4, 1, 2], [4, 1], ""),
        (1, 1, [1, 2, 3, 1, 2, 4, 1, 2, 4, 1, 2], [4], "The most frequent follower."),
        (2, 1, [1, 2, 3, 1, 2, 4, 1, 2], [3, 1], "3 and 4 once each: 3 was first."),
        (2, 1, [9, 1, 2, 5, 8, 2, 6, 2, 6, 1, 2], [5, 8], "The longest suffix first."),
        (2, 2, [7, 8, 9, 7, 8], [9, 7, 8, 9], "The guess may go on where it began."),
        (8, 1, [7, 8, 9, 7, 8], [9, 7], "The match has 2 ids, so 2 are guessed."),
        (8, 3, [1, 5, 6, 2, 5], [6, 2, 5], "The match has 1 id; 3 times that."),
        (3, 2, [4, 4], [4, 4], "4 was followed by 4."),
        (8, 2, [1, 2, 3], [], "3 was never followed by anything."),
        (8, 2, [1], [], ""),
        (8, 2, [], [], ""),
        (1, 4, [1, 2, 1, 3, 1, 3, 1], [3, 1, 3, 1], ""),
    ],
)
def test_suffix_drafts_worked_by_hand(SuffixDraft, longest, factor, ids, wanted, hint):  # noqa: N803
    draft, ids = SuffixDraft(longest=longest, factor=factor), list(ids)
    with expect.unchanged("make lists of your own", ids=ids):
        got = draft(ids)
    call = f"SuffixDraft(longest={longest}, factor={factor})({ids})"
    expect.value(a_list(got, call), wanted, call, hint)


def test_the_defaults_are_8_and_2(SuffixDraft):  # noqa: N803
    text = [*range(10), *range(10)]
    got = SuffixDraft()(text)
    call = "SuffixDraft()([0, ..., 9, 0, ..., 9])"
    expect.value(
        a_list(got, call), [*range(10), *range(6)], call, "8 matched, times 2."
    )


class Slowly:
    """The same rules from all texts at once, without any memory between calls."""

    def __init__(self, longest, factor):
        self.longest, self.factor = longest, factor
        self.texts = [[]]

    def followers(self, suffix):
        """The ids behind each place of `suffix` in all texts, in the order learned."""
        found = []
        for text in self.texts:
            for end in range(len(suffix), len(text)):
                if text[end - len(suffix) : end] == suffix:
                    found.append(text[end])
        return found

    def __call__(self, ids):
        if ids[: len(self.texts[-1])] == self.texts[-1]:
            self.texts[-1] = list(ids)
        else:
            self.texts.append(list(ids))
        text, wanted = list(ids), None
        while wanted is None or len(text) - len(ids) < wanted:
            sizes = range(min(self.longest, len(text)), 0, -1)
            found = [(n, self.followers(text[-n:])) for n in sizes]
            found = [pair for pair in found if pair[1]]
            if not found:
                break
            if wanted is None:
                wanted = self.factor * found[0][0]
            text.append(max(found[0][1], key=found[0][1].count))
        return text[len(ids) :]


def test_a_growing_text_is_counted_once(SuffixDraft):  # noqa: N803
    generator = torch.Generator().manual_seed(0)
    for longest, factor in ((1, 3), (3, 2), (6, 1)):
        draft, oracle = SuffixDraft(longest, factor), Slowly(longest, factor)
        text = torch.randint(4, (60,), generator=generator).tolist()
        end = 5
        while end <= len(text):
            got = draft(text[:end])
            call = f"SuffixDraft({longest}, {factor}) behind {text[:end]}, which grew"
            hint = "Each id is counted once, in the call in which it is new."
            expect.value(a_list(got, call), oracle(text[:end]), call, hint)
            again = draft(text[:end])  # where nothing is new, nothing is counted
            expect.value(again, got, f"{call}, asked again,", hint)
            end += 1 + end % 4


def test_a_text_asked_for_twice_is_counted_once(SuffixDraft):  # noqa: N803
    draft = SuffixDraft(2, 1)
    for _ in range(5):
        draft([1, 2, 8, 8])
    for text in ([1, 3, 9, 9], [5, 1, 3, 7, 7]):
        draft(text)
    call = "SuffixDraft(2, 1) behind [6, 1], after 1 2 8 8 in five calls, 1 3 9 9 and"
    call += " 5 1 3 7 7,"
    hint = "Asked again for the same text there is nothing new to count."
    expect.value(a_list(draft([6, 1]), call), [3], call, hint)


def test_a_short_text_counts_no_more_than_a_long_one(SuffixDraft):  # noqa: N803
    draft = SuffixDraft(8, 1)
    for text in (
        [1, 2],
        [4, 5, 6, 7, 8, 9, 0, 6, 1, 3],
        [5, 6, 7, 8, 9, 0, 6, 4, 1, 3],
    ):
        draft(text)
    call = "SuffixDraft(8, 1) behind [44, 1], where 1 was followed by 2 once, and by 3 "
    call += "twice,"
    hint = (
        "Before the id at place `end` there are `end` ids, so no more sizes than that."
    )
    expect.value(a_list(draft([44, 1]), call), [3], call, hint)


def test_texts_of_before_are_remembered(SuffixDraft):  # noqa: N803
    draft = SuffixDraft(longest=2, factor=1)
    for text in ([1, 2, 3], [1, 2, 3, 4, 5], [6, 2, 7], [6, 2, 7, 8]):
        draft(list(text))
    call = "SuffixDraft(2, 1) behind [9, 1, 2], after the texts 1 2 3 4 5 and 6 2 7 8,"
    hint = "What was counted in earlier texts stays."
    expect.value(a_list(draft([9, 1, 2]), call), [3, 4], call, hint)
    call = "and then behind [9, 6, 2]"
    expect.value(a_list(draft([9, 6, 2]), call), [7, 8], call, hint)


def test_a_new_text_is_counted_whole(SuffixDraft):  # noqa: N803
    draft, oracle = SuffixDraft(3, 2), Slowly(3, 2)
    texts = [[1, 2, 3, 1, 2], [1, 2, 4, 1, 2], [1, 2, 4], [5, 1, 2, 4, 5, 1, 2], [1, 2]]
    texts += [[7, 8, 9, 7], [8, 1]]
    for text in texts:
        call = f"SuffixDraft(3, 2) behind {text}, the next of the texts {texts}"
        got = draft(list(text))
        hint = "A text that does not begin with the last one is new: count all of it, "
        hint += "and do not join the two."
        expect.value(a_list(got, call), oracle(text), call, hint)


def test_a_list_that_the_caller_lets_grow_is_no_problem(SuffixDraft):  # noqa: N803
    draft, text = SuffixDraft(2, 1), [1, 2, 3, 1]
    expect.value(a_list(draft(text), "a draft"), [2], "SuffixDraft(2, 1)([1, 2, 3, 1])")
    text += [2, 5, 1, 2, 5, 1, 2]
    call = "and behind the same list, grown to [1, 2, 3, 1, 2, 5, 1, 2, 5, 1, 2],"
    hint = "Keep a copy of the ids of the last call: the list itself has grown."
    expect.value(a_list(draft(text), call), [5, 1], call, hint)


def test_two_drafts_share_nothing(SuffixDraft):  # noqa: N803
    one, other = SuffixDraft(), SuffixDraft()
    one([1, 2, 3, 1])
    call = "a second SuffixDraft() behind [5, 1], where only the first has seen 1 2 3"
    expect.value(a_list(other([5, 1]), call), [], call)


# --- AdaptiveLength -------------------------------------------------------------------


def alpha_of(length, call):
    alpha = length.alpha
    assert isinstance(alpha, float), f"{call}: alpha should be a float, not {alpha!r}"
    return alpha


def fastest(alpha, cost):
    """The best draft length of 1 to 64, by exact fractions of alpha and cost."""
    alpha, cost, total, speed = Fraction(alpha), Fraction(cost), Fraction(1), []
    power = Fraction(1)
    for k in range(1, 65):
        power *= alpha
        total += power
        speed.append(total / (1 + k * cost))
    return 1 + speed.index(max(speed))


def test_alpha_worked_by_hand(AdaptiveLength):  # noqa: N803
    length = AdaptiveLength()
    call = "AdaptiveLength()"
    expect.value(alpha_of(length, call), 0.5, f"{call}: alpha", "1 of 2.", 1e-9)
    for drafted, accepted, wanted in ((4, 4, 4.8 / 5.6), (4, 1, 4.84 / 6.48)):
        call += f" after update({drafted}, {accepted})"
        returned = length.update(drafted, accepted)
        assert returned is None, (
            f"{call}: update returns nothing, it changes the object"
        )
        got, hint = alpha_of(length, call), ""
        if abs(got - accepted / drafted) < 1e-9:
            hint = (
                "What was before counts, too, if less: alpha is the share of two sums."
            )
        elif drafted > accepted and abs(got - 4.84 / (4.84 + 0.64 + 3)) < 1e-9:
            hint = "One token was rejected. Those behind it were not judged."
        expect.value(got, wanted, f"{call}: alpha", hint, 1e-9)


@pytest.mark.parametrize("options", [{}, {"cost": 0.3}, {"decay": 0.5}, {"cost": 0.02}])
def test_the_length_is_the_best_for_the_share_of_late(AdaptiveLength, options):  # noqa: N803
    length = AdaptiveLength(**options)
    cost, decay = options.get("cost", 0.1), options.get("decay", 0.8)
    good = bad = 1.0
    call = f"AdaptiveLength({', '.join(f'{k}={v}' for k, v in options.items())})"
    rounds = [
        (3, 3),
        (5, 5),
        (9, 9),
        (9, 2),
        (4, 0),
        (3, 0),
        (0, 0),
        (2, 0),
        (1, 1),
        (6, 5),
    ]
    for drafted, accepted in [(0, 0), *rounds]:
        length.update(drafted, accepted)
        if drafted:
            good = decay * good + accepted
            bad = decay * bad + (1 if accepted < drafted else 0)
        call += f".update({drafted}, {accepted})"
        alpha = good / (good + bad)
        expect.value(alpha_of(length, call), alpha, f"{call}: alpha", "", 1e-9)
        assert type(length.k) is int, f"{call}: k should be an int, not {length.k!r}"
        expect.value(
            length.k, fastest(alpha, cost), f"{call}: k, for alpha {alpha:.3f}"
        )


def test_it_never_gives_up(AdaptiveLength):  # noqa: N803
    length = AdaptiveLength(cost=0.5)
    for _ in range(30):
        length.update(1, 0)
    call = "AdaptiveLength(cost=0.5) after 30 rejected drafts: k"
    hint = "Without a draft it would never learn that drafts are good again."
    expect.value(length.k, 1, call, hint)
    for _ in range(6):
        length.update(8, 8)
    assert length.k > 3, (
        f"after 30 rejected drafts and six times 8 of 8, k should be above 3, not "
        f"{length.k}"
    )


def test_nothing_drafted_teaches_nothing(AdaptiveLength):  # noqa: N803
    length = AdaptiveLength()
    length.update(4, 3)
    before = length.alpha, length.k
    for _ in range(5):
        length.update(0, 0)
    call = "alpha and k after update(4, 3) and five times update(0, 0)"
    expect.value((length.alpha, length.k), before, call)


def test_no_more_can_be_accepted_than_was_drafted(AdaptiveLength):  # noqa: N803
    length = AdaptiveLength()
    for drafted, accepted in ((3, 4), (3, -1), (0, 1), (-1, -1)):
        call = f"AdaptiveLength().update({drafted}, {accepted})"
        expect.rejects(
            ValueError, lambda d=drafted, a=accepted: length.update(d, a), call
        )
    expect.value(
        alpha_of(length, call), 0.5, "alpha after updates that raised", "", 1e-9
    )


def test_two_lengths_share_nothing(AdaptiveLength):  # noqa: N803
    one, other = AdaptiveLength(), AdaptiveLength()
    one.update(9, 9)
    expect.value(other.alpha, 0.5, "alpha of a second AdaptiveLength()", "", 1e-9)
