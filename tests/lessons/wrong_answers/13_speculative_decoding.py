"""Wrong answers to lesson 13, and what the learner must be told of each."""

from collections import Counter, defaultdict
from types import FunctionType

import torch

from course.making.answers import reference, wrong

cached_step = reference("cached_step")
verify_greedy = reference("verify_greedy")
residual = reference("residual")
verify_sampled = reference("verify_sampled")
expected_tokens = reference("expected_tokens")
best_k = reference("best_k")
ngram_draft = reference("ngram_draft")
SuffixDraft = reference("SuffixDraft")
AdaptiveLength = reference("AdaptiveLength")

# --- ngram_draft ----------------------------------------------------------------------

LOOKED_UP = "test_drafts_worked_by_hand"


def checked(n, k):
    if n < 1 or k < 0:
        raise ValueError(n, k)


@wrong("ngram_draft", LOOKED_UP, "The first place counts, not the last")
def the_last_place(ids, n, k):
    """Searches from the end."""
    checked(n, k)
    for size in range(min(n, len(ids) - 1), 0, -1):
        for start in reversed(range(len(ids) - size)):
            if ids[start : start + size] == ids[-size:]:
                return ids[start + size : start + size + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "If the last 2 stood nowhere before, try 1")
def only_n_ids(ids, n, k):
    """Does not try fewer than n ids."""
    checked(n, k)
    for start in range(len(ids) - n):
        if ids[start : start + n] == ids[-n:]:
            return ids[start + n : start + n + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "The longest match goes first")
def the_shortest_match_first(ids, n, k):
    """Begins with one id."""
    checked(n, k)
    for size in range(1, min(n, len(ids) - 1) + 1):
        for start in range(len(ids) - size):
            if ids[start : start + size] == ids[-size:]:
                return ids[start + size : start + size + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "should give [9, 5, 7]")
def with_what_matched(ids, n, k):
    """Returns the matched ids, too."""
    checked(n, k)
    for size in range(min(n, len(ids) - 1), 0, -1):
        for start in range(len(ids) - size):
            if ids[start : start + size] == ids[-size:]:
                return ids[start : start + size + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "may overlap the last ids")
def no_overlap(ids, n, k):
    """Looks only where the match does not overlap the last ids."""
    checked(n, k)
    for size in range(min(n, len(ids) - 1), 0, -1):
        for start in range(len(ids) - 2 * size + 1):
            if ids[start : start + size] == ids[-size:]:
                return ids[start + size : start + size + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "The text is shorter than n")
def no_short_texts(ids, n, k):
    """Gives up where the text is shorter than n."""
    checked(n, k)
    return ngram_draft(ids, n, k) if len(ids) > n else []


@wrong("ngram_draft", LOOKED_UP, "As far as the text goes")
def not_up_to_the_end(ids, n, k):
    """Leaves a place out where fewer than k ids follow."""
    checked(n, k)
    got = ngram_draft(ids, n, k)
    return got if len(got) == k else []


@wrong("ngram_draft", LOOKED_UP, "a place counts only if something follows it")
def found_where_it_stands(ids, n, k):
    """One start too many: the last ids are found at their own place."""
    checked(n, k)
    for size in range(min(n, len(ids)), 0, -1):
        for start in range(len(ids) - size + 1):
            if ids[start : start + size] == ids[-size:]:
                return ids[start + size : start + size + k]
    return []


@wrong("ngram_draft", LOOKED_UP, "do not match themselves")
def matches_itself(ids, n, k):
    """Finds the last ids at their own place, where nothing follows."""
    checked(n, k)
    return ngram_draft(ids, n, k) or ids[-1:][:k]


@wrong("ngram_draft", LOOKED_UP, "a list of ints")
def a_tensor_of_ids(ids, n, k):
    """Elements of a tensor."""
    return list(torch.tensor(ngram_draft(ids, n, k)))


@wrong(
    "ngram_draft", "test_a_draft_needs_something_to_match", "should raise ValueError"
)
def no_errors(ids, n, k):
    """0 ids to match give an empty draft."""
    return ngram_draft(ids, n, k) if n > 0 and k >= 0 else []


@wrong("ngram_draft", LOOKED_UP, "Three ids match")
def at_most_two(ids, n, k):
    """Matches two ids at most."""
    checked(n, k)
    return ngram_draft(ids, min(n, 2), k)


@wrong("ngram_draft", "test_drafts_are_those_of_transformers", "of 337 ids")
def a_window(ids, n, k):
    """Searches the last 64 ids only."""
    return ngram_draft(ids[-64:], n, k)


@wrong("ngram_draft", "test_drafts_are_those_of_transformers", "of 337 ids")
def ten_at_most(ids, n, k):
    """A cap that nobody asked for."""
    return ngram_draft(ids, n, min(k, 10))


@wrong(
    "ngram_draft", "test_the_longest_match_wins_however_long", "should give [11, 12]"
)
def four_at_most(ids, n, k):
    """Matches four ids at most."""
    return ngram_draft(ids, min(n, 4), k)


@wrong("ngram_draft", LOOKED_UP, "`ids` was changed")
def appends_to_the_text(ids, n, k):
    """The caller's list grows."""
    draft = ngram_draft(ids, n, k)
    ids.append(0)
    return draft


# --- verify_greedy --------------------------------------------------------------------

GREEDY = "test_greedy_verification_worked_by_hand"
ROWS = "test_there_is_one_row_more_than_draft_tokens"


def fits(draft, logits):
    if len(logits) != len(draft) + 1:
        raise ValueError(len(logits))


def right_ones(draft, best):
    n = 0
    while n < len(draft) and draft[n] == best[n]:
        n += 1
    return n


@wrong("verify_greedy", GREEDY, "The draft is a guess")
def every_draft_token(draft, logits):
    """Returns every draft token."""
    fits(draft, logits)
    return list(draft) or logits.argmax(-1).tolist()


@wrong("verify_greedy", GREEDY, "The first draft token is checked, too")
def first_token_unverified(draft, logits):
    """Accepts the first draft token without looking."""
    fits(draft, logits)
    best = logits.argmax(-1).tolist()
    if not draft:
        return best
    n = 1 + right_ones(draft[1:], best[1:])
    return [*draft[:n], best[n]]


@wrong("verify_greedy", GREEDY, "One token more is certain")
def no_bonus(draft, logits):
    """No token behind the accepted ones."""
    fits(draft, logits)
    return list(draft[: right_ones(draft, logits.argmax(-1).tolist())])


@wrong("verify_greedy", GREEDY, "should give [5, 6, 7, 1]")
def no_bonus_after_all(draft, logits):
    """A correction, but no bonus where all were right."""
    fits(draft, logits)
    best = logits.argmax(-1).tolist()
    return best[: min(right_ones(draft, best) + 1, max(1, len(draft)))]


@wrong("verify_greedy", GREEDY, "The last row follows a rejected token")
def bonus_from_the_last_row(draft, logits):
    """The extra token always comes from the last row."""
    fits(draft, logits)
    best = logits.argmax(-1).tolist()
    return [*draft[: right_ones(draft, best)], best[-1]]


@wrong("verify_greedy", GREEDY, "should give [5, 6, 9]")
def one_row_off(draft, logits):
    """Compares draft token i with row i + 1."""
    fits(draft, logits)
    best = logits.argmax(-1).tolist()
    n = right_ones(draft, best[1:])
    return [*draft[:n], best[n]]


@wrong("verify_greedy", GREEDY, "What comes behind the first wrong token")
def all_that_the_model_says(draft, logits):
    """The best id of each row, whatever the draft."""
    fits(draft, logits)
    return logits.argmax(-1).tolist()


@wrong("verify_greedy", GREEDY, "Stop at the first that differs")
def right_ones_anywhere(draft, logits):
    """Counts the right tokens, also behind a wrong one."""
    fits(draft, logits)
    best = logits.argmax(-1).tolist()
    n = sum(a == b for a, b in zip(draft, best, strict=False))
    return best[: n + 1]


@wrong("verify_greedy", ROWS, "should raise ValueError")
def any_number_of_rows(draft, logits):
    """Does not look at the number of rows."""
    best = logits.argmax(-1).tolist()
    return best[: right_ones(draft[: len(best)], best) + 1]


@wrong("verify_greedy", GREEDY, "a list, not a Tensor")
def a_tensor(draft, logits):
    """A tensor of ids."""
    return torch.tensor(verify_greedy(draft, logits))


@wrong("verify_greedy", "test_logits_may_have_any_float_dtype", "should give [5, 7]")
def float32_only(draft, logits):
    """Verifies in float32 only."""
    got = verify_greedy(draft, logits)
    return got if logits.dtype == torch.float32 else got[:1]


@wrong("verify_greedy", GREEDY, "should give [0, 1, 2, 3, 4, 5")
def eight_at_most(draft, logits):
    """Accepts eight tokens at most."""
    return verify_greedy(draft, logits)[:9]


@wrong("verify_greedy", GREEDY, "should give [5, 6, 9]")
def among_the_best_two(draft, logits):
    """Accepts what is nearly the best."""
    fits(draft, logits)
    best, near = logits.argmax(-1).tolist(), logits.topk(2).indices.tolist()
    n = 0
    while n < len(draft) and (draft[n] in near[n] or draft[n] - best[n] == -2):
        n += 1
    return [*draft[:n], best[n]]


# --- speculate_greedy -----------------------------------------------------------------

TEXT = "test_the_text_does_not_depend_on_the_guesses"
ENDS = "test_an_eos_ends_the_text_wherever_it_is"
LENGTH = "test_never_more_than_max_new_tokens"
ONE_CALL = "test_the_prompt_and_the_first_guess_are_one_call"
STRANGE = "test_ids_of_another_vocabulary_are_never_fed"


def call_model(model, tokens, cache, last, grad=False):
    with torch.set_grad_enabled(grad):
        output = model(
            torch.tensor([tokens]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
    return output.logits[0, -last:].float(), output.past_key_values


def greedy_loop(
    model,
    ids,
    draft,
    max_new_tokens,
    eos_ids,
    verify=verify_greedy,
    crop=lambda rejected: rejected,
    cached=True,
    cut=True,
    known=True,
    eos=lambda kept, guess, eos_ids: next(
        (n + 1 for n, x in enumerate(kept) if x in eos_ids), None
    ),
    prefill=False,
    grad=False,
    every=1,
):
    """The reference, with a place for each mistake."""
    text, end = ids[0].tolist(), ids.shape[1] + max_new_tokens
    cache, held, calls = None, 0, 0
    if prefill and max_new_tokens:
        _, cache = call_model(model, text[:-1], None, 1)
        held, calls = len(text) - 1, 1
    while len(text) < end:
        guess = list(draft(list(text)))
        if cut:
            guess = guess[: end - len(text) - 1]
        if known:
            bad = [not 0 <= x < model.config.vocab_size for x in guess] + [True]
            guess = guess[: bad.index(True)]
        fed = text[held:] + guess
        logits, cache = call_model(model, fed, cache, len(guess) + 1, grad)
        calls += every
        kept = verify(guess, logits)
        cache.crop(-crop(len(guess) - (len(kept) - 1)))
        held = len(text) + len(kept) - 1
        if not cached:
            cache, held = None, 0
        stop = eos(kept, guess, eos_ids)
        text += kept[:stop]
        if stop is not None:
            break
    return torch.tensor([text]), calls


@wrong("speculate_greedy", TEXT, "The guess was kept without asking the model")
def keeps_every_guess(model, ids, draft, max_new_tokens, eos_ids):
    """Every draft token is kept, and the model's last word."""

    def verify(guess, logits):
        return [*guess, logits[-1].argmax(-1).item()]

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, verify)


@wrong("speculate_greedy", TEXT, "differs first at position 6")
def first_guess_unverified(model, ids, draft, max_new_tokens, eos_ids):
    """The first draft token is taken as it is."""

    def verify(guess, logits):
        if not guess:
            return verify_greedy(guess, logits)
        return [guess[0], *verify_greedy(guess[1:], logits[1:])]

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, verify)


@wrong("speculate_greedy", TEXT, "what was rejected must leave")
def cache_not_rolled_back(model, ids, draft, max_new_tokens, eos_ids):
    """Rejected tokens stay in the cache."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, crop=lambda n: 0)


@wrong("speculate_greedy", TEXT, "should take")
def no_token_of_the_models_own(model, ids, draft, max_new_tokens, eos_ids):
    """Where something was accepted, the model's own token is thrown away."""

    def verify(guess, logits):
        kept = verify_greedy(guess, logits)
        return kept[:-1] if len(kept) > 1 else kept

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, verify)


@wrong("speculate_greedy", TEXT, "comes without a cache")
def without_a_cache(model, ids, draft, max_new_tokens, eos_ids):
    """The whole text in each call."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, cached=False)


@wrong("speculate_greedy", TEXT, "differs first at position 7")
def one_too_many_cut(model, ids, draft, max_new_tokens, eos_ids):
    """Cuts one position too many from the cache."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, crop=lambda n: n + 1)


@wrong("speculate_greedy", TEXT, "inside torch.no_grad()")
def with_gradients(model, ids, draft, max_new_tokens, eos_ids):
    """Keeps the activations of each call."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, grad=True)


@wrong("speculate_greedy", TEXT, "the model was called")
def counts_tokens(model, ids, draft, max_new_tokens, eos_ids):
    """`calls` counts new tokens."""
    out, _ = greedy_loop(model, ids, draft, max_new_tokens, eos_ids)
    return out, out.shape[1] - ids.shape[1]


@wrong("speculate_greedy", TEXT, "should return (ids, calls)")
def three_values(model, ids, draft, max_new_tokens, eos_ids):
    """Returns the cache, too."""
    return (*greedy_loop(model, ids, draft, max_new_tokens, eos_ids), None)


@wrong("speculate_greedy", ONE_CALL, "the prompt and the first guess together")
def a_prefill_of_its_own(model, ids, draft, max_new_tokens, eos_ids):
    """One call more, for the prompt alone."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, prefill=True)


@wrong("speculate_greedy", ENDS, "Nothing follows an EOS")
def eos_only_at_the_end(model, ids, draft, max_new_tokens, eos_ids):
    """Looks for an EOS only in the last token of a round."""

    def eos(kept, guess, eos_ids):
        return len(kept) if kept[-1] in eos_ids else None

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, eos=eos)


@wrong("speculate_greedy", ENDS, "Nothing follows an EOS")
def all_of_the_round(model, ids, draft, max_new_tokens, eos_ids):
    """Stops at an EOS, and keeps what was accepted behind it."""

    def eos(kept, guess, eos_ids):
        return len(kept) if set(kept) & set(eos_ids) else None

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, eos=eos)


@wrong("speculate_greedy", ENDS, "goes on for too long")
def eos_never(model, ids, draft, max_new_tokens, eos_ids):
    """No EOS ends the text."""
    return greedy_loop(model, ids, draft, max_new_tokens, [])


@wrong("speculate_greedy", ENDS, "stops too early")
def eos_is_not_kept(model, ids, draft, max_new_tokens, eos_ids):
    """The EOS itself is left out."""

    def eos(kept, guess, eos_ids):
        return next((n for n, x in enumerate(kept) if x in eos_ids), None)

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, eos=eos)


@wrong("speculate_greedy", ENDS, "ends nothing")
def a_rejected_eos_ends(model, ids, draft, max_new_tokens, eos_ids):
    """An EOS in the guess ends the text, accepted or not."""

    def eos(kept, guess, eos_ids):
        if set(guess) & set(eos_ids):
            return len(kept)
        return next((n + 1 for n, x in enumerate(kept) if x in eos_ids), None)

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, eos=eos)


@wrong("speculate_greedy", "test_an_eos_in_the_prompt_ends_nothing", "stops too early")
def eos_of_the_prompt(model, ids, draft, max_new_tokens, eos_ids):
    """An EOS anywhere in the text ends it."""
    prompt = set(ids[0].tolist())

    def eos(kept, guess, eos_ids):
        if prompt & set(eos_ids):
            return 1
        return next((n + 1 for n, x in enumerate(kept) if x in eos_ids), None)

    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, eos=eos)


@wrong("speculate_greedy", LENGTH, "goes on for too long")
def as_long_as_it_gets(model, ids, draft, max_new_tokens, eos_ids):
    """A guess may lead beyond max_new_tokens."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, cut=False)


@wrong("speculate_greedy", LENGTH, "guessed tokens, where")
def cut_afterwards(model, ids, draft, max_new_tokens, eos_ids):
    """The text is cut at the end, and the model fed for nothing."""
    out, calls = greedy_loop(model, ids, draft, max_new_tokens, eos_ids, cut=False)
    return out[:, : ids.shape[1] + max_new_tokens], calls


@wrong("speculate_greedy", LENGTH, "should have shape")
def at_least_one_token(model, ids, draft, max_new_tokens, eos_ids):
    """0 new tokens give one."""
    return greedy_loop(model, ids, draft, max(1, max_new_tokens), eos_ids)


@wrong("speculate_greedy", STRANGE, "Cut a guess at the first id")
def ids_of_another_vocabulary(model, ids, draft, max_new_tokens, eos_ids):
    """Feeds ids that the model does not have."""
    return greedy_loop(model, ids, draft, max_new_tokens, eos_ids, known=False)


@wrong("speculate_greedy", STRANGE, "the calls")
def the_whole_guess_thrown_away(model, ids, draft, max_new_tokens, eos_ids):
    """One strange id, and the good ones before it are lost, too."""

    def wise(text):
        guess = draft(text)
        good = all(0 <= x < model.config.vocab_size for x in guess)
        return guess if good else []

    return greedy_loop(model, ids, wise, max_new_tokens, eos_ids)


@wrong(
    "speculate_greedy",
    "test_the_first_and_the_last_id_of_the_vocabulary_are_good_guesses",
    "0 is an id like others",
)
def id_0_is_no_id(model, ids, draft, max_new_tokens, eos_ids):
    """`if not token` cuts at id 0, too."""

    def wise(text):
        guess = draft(text)
        return guess[: guess.index(0)] if 0 in guess else guess

    return greedy_loop(model, ids, wise, max_new_tokens, eos_ids)


ASKED = "test_the_draft_sees_the_whole_text_once_a_round"


@wrong("speculate_greedy", ASKED, "the text is")
def the_new_text_alone(model, ids, draft, max_new_tokens, eos_ids):
    """The draft does not see the prompt."""
    start = ids.shape[1]
    return greedy_loop(model, ids, lambda t: draft(t[start:]), max_new_tokens, eos_ids)


@wrong("speculate_greedy", ASKED, "a list, not a Tensor")
def a_tensor_for_the_draft(model, ids, draft, max_new_tokens, eos_ids):
    """The draft is given a tensor."""
    return greedy_loop(
        model, ids, lambda t: draft(torch.tensor([t])), max_new_tokens, eos_ids
    )


@wrong("speculate_greedy", ASKED, "the rounds begin behind")
def asks_twice(model, ids, draft, max_new_tokens, eos_ids):
    """`draft(text) if draft(text) else []`"""
    return greedy_loop(
        model, ids, lambda t: draft(t) and draft(t), max_new_tokens, eos_ids
    )


@wrong("speculate_greedy", "test_the_prompt_stays_as_it_was", "`ids` was changed")
def writes_into_the_prompt(model, ids, draft, max_new_tokens, eos_ids):
    """The prompt's last id is overwritten."""
    out = greedy_loop(model, ids, draft, max_new_tokens, eos_ids)
    ids[0, -1] = out[0][0, -1]
    return out


ASSISTED = "test_ids_and_calls_are_those_of_assisted_generation"
LOOKUP = "test_ids_and_calls_are_those_of_prompt_lookup"


@wrong("speculate_greedy", ASSISTED, "where transformers takes")
def never_more_than_one(model, ids, draft, max_new_tokens, eos_ids):
    """Only the first draft token is used."""
    return greedy_loop(model, ids, lambda t: draft(t)[:1], max_new_tokens, eos_ids)


@wrong("speculate_greedy", LOOKUP, "where transformers takes")
def never_speculates(model, ids, draft, max_new_tokens, eos_ids):
    """A plain loop with a cache."""
    return greedy_loop(model, ids, lambda t: draft(t)[:0], max_new_tokens, eos_ids)


def with_another(exercise, name, why, **earlier):
    """Our `exercise`, in a notebook whose earlier exercises are `earlier`."""
    ours = reference(exercise)
    function = FunctionType(ours.__code__, ours.__globals__ | earlier, name)
    function.__doc__ = why
    return function


built_on_too_few_tokens = wrong(
    "speculate_greedy", TEXT, "Your `verify_greedy` does not pass its own check"
)(
    with_another(
        "speculate_greedy",
        "built_on_too_few_tokens",
        "A right loop; verify_greedy accepts one draft token at most.",
        verify_greedy=lambda draft, logits: verify_greedy(draft, logits)[:2],
    )
)


built_on_one_that_believes = wrong(
    "speculate_greedy", TEXT, "Your `verify_greedy` does not pass its own check"
)(
    with_another(
        "speculate_greedy",
        "built_on_one_that_believes",
        "A right loop; verify_greedy accepts every draft token.",
        verify_greedy=lambda draft, logits: [*draft, logits[-1].argmax().item()],
    )
)


# --- residual -------------------------------------------------------------------------

LEFT = "test_residual_worked_by_hand"
NOTHING = "test_nothing_left_gives_p"


@wrong("residual", LEFT, "Divide by the sum: what is left is no distribution")
def not_renormalised(p, q):
    """max(0, p - q) as it is."""
    left = (p - q).clamp(min=0)
    return left if left.sum() > 0 else p.clone()


@wrong("residual", LEFT, "softmax is for logits")
def through_softmax(p, q):
    """softmax instead of a division."""
    return (p - q).clamp(min=0).softmax(-1)


@wrong("residual", LEFT, "clamp, not abs")
def absolute_differences(p, q):
    """|p - q|"""
    left = (p - q).abs()
    return left / left.sum() if left.sum() > 0 else p.clone()


@wrong("residual", LEFT, "p that has something left")
def the_wrong_way_round(p, q):
    """max(0, q - p)"""
    return residual(q, p)


@wrong("residual", LEFT, "q has served a part of p")
def p_itself(p, q):
    """Draws from p again where a token was rejected."""
    return p.clone()


@wrong("residual", LEFT, "should be")
def without_a_clamp(p, q):
    """Negative probabilities stay."""
    return p - q


@wrong("residual", LEFT, "should be")
def all_that_q_excludes(p, q):
    """p where q is 0."""
    left = p * (q == 0)
    return left / left.sum() if left.sum() > 0 else p.clone()


@wrong("residual", NOTHING, "0 / 0 is nan")
def nan_where_nothing_is_left(p, q):
    """0 / 0."""
    left = (p - q).clamp(min=0)
    return left / left.sum()


@wrong("residual", NOTHING, "returned the argument itself")
def the_argument_itself(p, q):
    """Returns p, not a copy."""
    left = (p - q).clamp(min=0)
    return left / left.sum() if left.sum() > 0 else p


@wrong("residual", NOTHING, "should be [0.5, 0.25, 0.25]")
def even_where_nothing_is_left(p, q):
    """A uniform distribution where nothing is left."""
    left = (p - q).clamp(min=0)
    even = torch.ones_like(p) / len(p)
    return left / left.sum() if left.sum() > 0 else even


@wrong("residual", LEFT, "`p` was changed")
def in_place(p, q):
    """p -= q changes the caller's tensor."""
    if torch.equal(p, q):
        return p.clone()
    p -= q
    left = p.clamp(min=0)
    return left / left.sum()


@wrong("residual", LEFT, "torch.float64")
def in_float32(p, q):
    """The dtype of p is lost."""
    return residual(p, q).float()


# --- verify_sampled -------------------------------------------------------------------

CERTAIN = "test_certain_cases_of_verification"
SEED = "test_the_same_seed_gives_the_same_tokens"
SHARES = "test_tokens_come_as_often_as_from_p"
FIT = "test_shapes_have_to_fit"


def accept(
    p,
    q,
    draft,
    generator=None,
    ratio=lambda p, q: p / q,
    rest=residual,
    more=True,
    first=0,
    numbers=True,
    row=lambda n: n,
    check=True,
    last=None,
):
    """The reference, with a place for each mistake."""
    k, vocab = len(draft), p.shape[-1]
    if check and (p.shape != (k + 1, vocab) or q.shape != (k, vocab)):
        raise ValueError(p.shape)
    u = torch.rand(k, generator=generator).tolist() if numbers else []
    n = 0
    while n < k:
        if not numbers:
            u.append(torch.rand(1, generator=generator).item())
        x = draft[n]
        bound = ratio(p[row(n), x], q[n, x]).item()
        if n >= first and not u[n] < bound:
            break
        n += 1
    if n == k and not more:
        return list(draft)
    bonus = p[k] if last is None else last
    rows = bonus if n == k else rest(p[n], q[n])
    return [*draft[:n], torch.multinomial(rows, 1, generator=generator).item()]


@wrong("verify_sampled", CERTAIN, "No draft token is accepted unseen")
def all_accepted(p, q, draft, generator=None):
    """Returns every draft token."""
    fits(draft, p)
    return list(draft) or [p[-1].argmax().item()]


@wrong("verify_sampled", CERTAIN, "p gives token 0 no chance")
def first_one_unverified(p, q, draft, generator=None):
    """The first draft token is accepted unseen."""
    return accept(p, q, draft, generator, first=1)


@wrong("verify_sampled", CERTAIN, "All were accepted: one more")
def no_token_more(p, q, draft, generator=None):
    """No bonus where all were accepted."""
    return accept(p, q, draft, generator, more=not draft)


@wrong("verify_sampled", SEED, "should give")
def ratio_upside_down(p, q, draft, generator=None):
    """min(1, q / p)"""
    return accept(p, q, draft, generator, ratio=lambda p, q: q / p)


@wrong("verify_sampled", SHARES, "should come")
def ratio_upside_down_by_its_shares(p, q, draft, generator=None):
    """min(1, q / p), seen in the counts alone."""
    return accept(p, q, draft, generator, ratio=lambda p, q: q / p)


@wrong("verify_sampled", SHARES, "should come")
def from_p_after_a_rejection(p, q, draft, generator=None):
    """Draws from p, not from the residual."""
    return accept(p, q, draft, generator, rest=lambda p, q: p)


@wrong("verify_sampled", SEED, "should give")
def the_likeliest_after_a_rejection(p, q, draft, generator=None):
    """The residual's best token, drawn from nothing."""

    def best(p, q):
        return torch.nn.functional.one_hot(residual(p, q).argmax(), len(p)).float()

    return accept(p, q, draft, generator, rest=best)


@wrong("verify_sampled", CERTAIN, "should give [1, 2, 3]")
def bonus_from_q(p, q, draft, generator=None):
    """The bonus token is drawn from the draft's last row."""
    return accept(p, q, draft, generator, last=q[-1] if draft else None)


@wrong("verify_sampled", SEED, "should give")
def greedy_bonus(p, q, draft, generator=None):
    """The bonus token is the likeliest."""
    last = torch.nn.functional.one_hot(p[-1].argmax(), p.shape[1]).float()
    return accept(p, q, draft, generator, last=last)


@wrong("verify_sampled", SEED, "whether needed or not, and then one token")
def numbers_as_needed(p, q, draft, generator=None):
    """Draws a number for a draft token only when it is looked at: right, and not what
    the card says."""
    return accept(p, q, draft, generator, numbers=False)


@wrong("verify_sampled", SEED, "should give")
def one_number_for_all(p, q, draft, generator=None):
    """The same random number for each draft token."""
    if not draft:
        return accept(p, q, draft, generator)
    u = torch.rand(len(draft), generator=generator)[0].item()
    n = 0
    while n < len(draft) and u < (p[n, draft[n]] / q[n, draft[n]]).item():
        n += 1
    rows = p[n] if n == len(draft) else residual(p[n], q[n])
    return [*draft[:n], torch.multinomial(rows, 1, generator=generator).item()]


@wrong("verify_sampled", SEED, "it draws from the global one")
def without_the_generator(p, q, draft, generator=None):
    """The generator is not used."""
    return accept(p, q, draft, None)


@wrong("verify_sampled", SEED, "it draws from the global one")
def multinomial_without_the_generator(p, q, draft, generator=None):
    """The generator is used for the numbers alone."""
    k = len(draft)
    fits(draft, p)
    u = torch.rand(k, generator=generator)
    ratio = p[range(k), draft] / q[range(k), draft]
    n = [*(u < ratio).tolist(), False].index(False)
    rows = p[k] if n == k else residual(p[n], q[n])
    return [*draft[:n], torch.multinomial(rows, 1).item()]


@wrong("verify_sampled", CERTAIN, "should give")
def rows_of_p_one_off(p, q, draft, generator=None):
    """Compares draft token i with row i + 1 of p."""
    return accept(p, q, draft, generator, row=lambda n: n + 1)


@wrong("verify_sampled", SEED, "should give")
def accepts_what_p_prefers(p, q, draft, generator=None):
    """Accepts exactly where p is q or more, without chance."""
    return accept(p, q, draft, generator, ratio=lambda p, q: (p >= q).float() * 2)


@wrong("verify_sampled", SEED, "should give")
def accepts_with_p(p, q, draft, generator=None):
    """Accepts with probability p, whatever q: right for a draft without chance only."""
    return accept(p, q, draft, generator, ratio=lambda p, q: p)


@wrong("verify_sampled", CERTAIN, "should give")
def compares_the_likeliest(p, q, draft, generator=None):
    """Greedy verification of a sample."""
    got = verify_greedy(draft, p)
    return got if len(got) > 1 else [p[0].argmin().item()]


@wrong("verify_sampled", FIT, "should raise ValueError")
def any_shapes(p, q, draft, generator=None):
    """Looks at no shapes."""
    return accept(p, q, draft, generator, check=False)


@wrong("verify_sampled", FIT, "q of another vocabulary should raise ValueError")
def any_vocabulary(p, q, draft, generator=None):
    """Does not compare the vocabularies."""
    k = len(draft)
    if len(p) != k + 1 or len(q) != k:
        raise ValueError(k)
    return accept(p, q[:, : p.shape[1]], draft, generator)


@wrong("verify_sampled", SEED, "should give")
def not_renormalised_and_cut(p, q, draft, generator=None):
    """Draws from max(0, p - q) by running through it without dividing by its sum."""
    k = len(draft)
    fits(draft, p)
    u = torch.rand(k, generator=generator)
    ratio = p[range(k), draft] / q[range(k), draft]
    n = [*(u < ratio).tolist(), False].index(False)
    rows = p[k] if n == k else (p[n] - q[n]).clamp(min=0)
    r = torch.rand(1, generator=generator)
    return [*draft[:n], min(int((rows.cumsum(0) < r).sum()), p.shape[1] - 1)]


# --- speculate_sampled ----------------------------------------------------------------

PARITY = "test_the_seed_gives_what_assisted_generation_gives"
FED = "test_both_models_are_fed_what_they_have_not_seen"
LONG = "test_no_sample_is_longer_than_asked_for"


def sampling_loop(
    model,
    draft_model,
    ids,
    k,
    max_new_tokens,
    temperature,
    eos_ids,
    p_of=lambda logits, t: (logits / t).softmax(-1),
    q_of=lambda logits, t: (logits / t).softmax(-1),
    verify=verify_sampled,
    crop=True,
    draft_crop=True,
    cached=True,
    draft_cached=True,
    cut=True,
    stop=True,
    ends="first",
    pick=lambda q: torch.multinomial(q, 1).item(),
    raises=True,
):
    """The reference, with a place for each mistake."""
    if raises and temperature <= 0:
        raise ValueError(temperature)
    if raises and model.config.vocab_size != draft_model.config.vocab_size:
        raise ValueError(model.config.vocab_size)
    text, end = ids[0].tolist(), ids.shape[1] + max_new_tokens
    cache, held, draft_cache, draft_held, calls = None, 0, None, 0, 0
    while len(text) < end:
        guess, q, fed = [], [], text[draft_held:]
        if not draft_cached:
            draft_cache, fed = None, text
        most = min(k, end - len(text) - 1) if cut else k
        while len(guess) < most:
            logits, draft_cache = cached_step(
                draft_model, torch.tensor([fed]), draft_cache
            )
            q.append(q_of(logits[0], temperature))
            guess.append(pick(q[-1]))
            fed = guess[-1:]
            if stop and guess[-1] in eos_ids:
                break
        if not cached:
            cache, held = None, 0
        logits, cache = call_model(model, text[held:] + guess, cache, len(guess) + 1)
        calls += 1
        p = p_of(logits, temperature)
        kept = verify(p, torch.stack(q) if q else p[:0], guess)
        good = len(text) + len(kept) - 1
        if crop:
            cache.crop(-(len(text) + len(guess) - good))
        held = good
        if guess:
            draft_held = min(good, len(text) + len(guess) - 1)
            if draft_crop:
                draft_cache.crop(-(len(text) + len(guess) - 1 - draft_held))
        if ends == "last":
            text += kept
            if kept[-1] in eos_ids:
                break
            continue
        for token in kept:
            text.append(token)
            if ends == "first" and token in eos_ids:
                end = len(text)
                break
    return torch.tensor([text]), calls


@wrong("speculate_sampled", PARITY, "those of p and those of q, by the temperature")
def p_before_the_temperature(m, d, ids, k, new, temperature, eos):
    """The model's probabilities at temperature 1."""
    return sampling_loop(
        m, d, ids, k, new, temperature, eos, p_of=lambda x, t: x.softmax(-1)
    )


@wrong("speculate_sampled", PARITY, "those of p and those of q, by the temperature")
def q_before_the_temperature(m, d, ids, k, new, temperature, eos):
    """The draft's probabilities at temperature 1: lossless, but slower."""
    return sampling_loop(
        m, d, ids, k, new, temperature, eos, q_of=lambda x, t: x.softmax(-1)
    )


@wrong("speculate_sampled", PARITY, "differs first")
def both_before_the_temperature(m, d, ids, k, new, temperature, eos):
    """The temperature is not used."""
    return sampling_loop(m, d, ids, k, new, 1.0 + 0 * temperature, eos)


@wrong(
    "speculate_sampled", "test_without_drafts_it_is_plain_sampling", "temperature 0.5"
)
def no_temperature(m, d, ids, k, new, temperature, eos):
    """The temperature is not used, seen without drafts."""
    return sampling_loop(m, d, ids, k, new, 1.0, eos)


@wrong("speculate_sampled", PARITY, "differs first")
def times_the_temperature(m, d, ids, k, new, temperature, eos):
    """Multiplies by the temperature."""
    return sampling_loop(m, d, ids, k, new, 1 / temperature, eos)


@wrong("speculate_sampled", PARITY, "differs first")
def every_guess_is_kept(m, d, ids, k, new, temperature, eos):
    """Returns every draft token."""

    def verify(p, q, draft):
        return [*draft, torch.multinomial(p[-1], 1).item()]

    return sampling_loop(m, d, ids, k, new, temperature, eos, verify=verify)


@wrong("speculate_sampled", PARITY, "differs first")
def cache_as_it_was(m, d, ids, k, new, temperature, eos):
    """The model's cache keeps what was rejected."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, crop=False)


@wrong("speculate_sampled", PARITY, "The draft model's cache holds")
def draft_cache_as_it_was(m, d, ids, k, new, temperature, eos):
    """The draft model's cache keeps what was rejected."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, draft_crop=False)


@wrong("speculate_sampled", FED, "keep its cache")
def the_model_starts_anew(m, d, ids, k, new, temperature, eos):
    """The model has no cache."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, cached=False)


@wrong("speculate_sampled", FED, "keep its cache, too")
def the_draft_model_starts_anew(m, d, ids, k, new, temperature, eos):
    """The draft model's cache lasts for a round."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, draft_cached=False)


@wrong("speculate_sampled", PARITY, "differs first")
def a_greedy_draft(m, d, ids, k, new, temperature, eos):
    """The draft model takes its best token, and says it drew it."""
    return sampling_loop(
        m, d, ids, k, new, temperature, eos, pick=lambda q: q.argmax().item()
    )


@wrong("speculate_sampled", LONG, "should have shape")
def longer_than_asked(m, d, ids, k, new, temperature, eos):
    """A round may lead beyond max_new_tokens."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, cut=False)


@wrong("speculate_sampled", LONG, "of its tokens can be kept")
def drafts_for_nothing(m, d, ids, k, new, temperature, eos):
    """The text is cut at the end."""
    out, calls = sampling_loop(m, d, ids, k, new, temperature, eos, cut=False)
    return out[:, : ids.shape[1] + new], calls


built_on_the_tempting_rule = wrong(
    "speculate_sampled", PARITY, "Your `verify_sampled` does not pass its own check"
)(
    with_another(
        "speculate_sampled",
        "built_on_the_tempting_rule",
        "A right loop; verify_sampled accepts with p(x), and forgets q.",
        verify_sampled=lambda p, q, draft, generator=None: verify_sampled(
            p, torch.full_like(q, 1.0), draft, generator
        ),
    )
)


EOS_INSIDE = "test_an_eos_ends_a_sample_wherever_it_is"


@wrong("speculate_sampled", EOS_INSIDE, "goes on behind the EOS")
def eos_at_the_end_of_a_round(m, d, ids, k, new, temperature, eos):
    """Looks for an EOS only in the last token of a round."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, ends="last", stop=False)


@wrong("speculate_sampled", EOS_INSIDE, "goes on behind the EOS")
def no_eos(m, d, ids, k, new, temperature, eos):
    """No EOS ends the text."""
    return sampling_loop(m, d, ids, k, new, temperature, [])


@wrong("speculate_sampled", PARITY, "many EOS ids")
def drafts_behind_an_eos(m, d, ids, k, new, temperature, eos):
    """The draft goes on behind an EOS of its own, and draws numbers for nothing."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, stop=False)


@wrong(
    "speculate_sampled",
    "test_models_of_different_vocabularies_do_not_go_together",
    "should raise ValueError",
)
def any_two_models(m, d, ids, k, new, temperature, eos):
    """Draft ids of another vocabulary."""

    def verify(p, q, draft):
        return accept(p, q, draft, check=False)

    return sampling_loop(
        m, d, ids, k, new, temperature, eos, raises=False, verify=verify
    )


@wrong(
    "speculate_sampled",
    "test_models_of_different_vocabularies_do_not_go_together",
    "and k=0 should raise ValueError",
)
def found_by_the_verification(m, d, ids, k, new, temperature, eos):
    """The vocabularies are compared only where something is drafted."""
    return sampling_loop(m, d, ids, k, new, temperature, eos, raises=False)


@wrong("speculate_sampled", "test_a_temperature_is_above_0", "should raise ValueError")
def temperature_0_is_1(m, d, ids, k, new, temperature, eos):
    """Any temperature goes."""
    return sampling_loop(m, d, ids, k, new, temperature or 1.0, eos, raises=False)


@wrong("speculate_sampled", FED, "calls, of the model")
def counts_both_models(m, d, ids, k, new, temperature, eos):
    """`calls` counts those of the draft model, too."""
    out, calls = sampling_loop(m, d, ids, k, new, temperature, eos)
    return out, calls * (k + 1)


# --- expected_tokens, best_k ----------------------------------------------------------

HAND = "test_expected_tokens_worked_by_hand"
BEST = "test_best_k_worked_by_hand"


def in_range(alpha, k):
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(alpha, k)


@wrong("expected_tokens", HAND, "A token counts only if all before it")
def linear(alpha, k):
    """1 + αk"""
    in_range(alpha, k)
    return float(1 + alpha * k)


@wrong("expected_tokens", HAND, "The model itself adds one token")
def without_the_models_own(alpha, k):
    """α + α² + ..."""
    in_range(alpha, k)
    return float(sum(alpha**i for i in range(1, k + 1)))


@wrong("expected_tokens", HAND, "there are k + 1 terms")
def one_term_less(alpha, k):
    """Up to α to the k - 1."""
    in_range(alpha, k)
    return float(sum(alpha**i for i in range(max(1, k))))


@wrong("expected_tokens", HAND, "ZeroDivisionError")
def closed_form_alone(alpha, k):
    """0 / 0 at α = 1."""
    in_range(alpha, k)
    return (1 - alpha ** (k + 1)) / (1 - alpha)


@wrong("expected_tokens", HAND, "should give")
def without_an_end(alpha, k):
    """1 / (1 - α): an endless draft."""
    in_range(alpha, k)
    return 1 / (1 - alpha) if alpha < 1 else float(k + 1)


@wrong("expected_tokens", "test_alpha_is_a_probability", "should raise ValueError")
def any_alpha(alpha, k):
    """Does not look at its arguments."""
    return float(sum(alpha**i for i in range(k + 1)))


@wrong("expected_tokens", HAND, "should be a float")
def a_whole_number(alpha, k):
    """An int where alpha is one."""
    got = expected_tokens(alpha, k)
    return int(got) if got == int(got) else got


@wrong("best_k", BEST, "should give 1, not")
def most_tokens(alpha, cost):
    """The most tokens, whatever the time."""
    in_range(alpha, cost)
    return max(range(65), key=lambda k: expected_tokens(alpha, k))


@wrong("best_k", BEST, "equally good: the smallest")
def at_least_one(alpha, cost):
    """Never says that speculation loses."""
    in_range(alpha, cost)
    return max(range(1, 65), key=lambda k: expected_tokens(alpha, k) / (1 + k * cost))


@wrong("best_k", BEST, "equally good: the smallest")
def the_largest_of_several(alpha, cost):
    """The last of several that are equally good."""
    in_range(alpha, cost)
    speed = [expected_tokens(alpha, k) / (1 + k * cost) for k in range(65)]
    return 64 - speed[::-1].index(max(speed))


@wrong("best_k", BEST, "as many as allowed")
def up_to_63(alpha, cost):
    """One k too few is tried."""
    in_range(alpha, cost)
    return max(range(64), key=lambda k: expected_tokens(alpha, k) / (1 + k * cost))


@wrong("best_k", BEST, "should give")
def without_the_models_step(alpha, cost):
    """The time is that of the draft alone."""
    in_range(alpha, cost)
    if cost == 0:
        return best_k(alpha, cost)
    return max(range(1, 65), key=lambda k: expected_tokens(alpha, k) / (k * cost))


@wrong("best_k", "test_best_k_writes_the_most_tokens_in_the_time", "tokens / time")
def until_it_first_falls_behind(alpha, cost):
    """Goes on while a further token pays for itself: αᵏ > cost."""
    in_range(alpha, cost)
    return next((k for k in range(64) if alpha ** (k + 1) <= cost), 64)


@wrong(
    "best_k", "test_best_k_needs_a_probability_and_a_cost", "should raise ValueError"
)
def any_cost(alpha, cost):
    """A negative cost goes."""
    in_range(alpha, 0)
    return max(
        range(65), key=lambda k: expected_tokens(alpha, k) / max(0.001, 1 + k * cost)
    )


# --- SuffixDraft ----------------------------------------------------------------------

BY_HAND = "test_suffix_drafts_worked_by_hand"
ONCE = "test_a_growing_text_is_counted_once"
BEFORE = "test_texts_of_before_are_remembered"
WHOLE = "test_a_new_text_is_counted_whole"


@wrong("SuffixDraft", ONCE, "Each id is counted once")
class CountsAgain(SuffixDraft):
    """Counts the whole text in each call."""

    def _learn(self, ids):
        self.seen = []
        super()._learn(ids)


@wrong("SuffixDraft", BEFORE, "What was counted in earlier texts stays")
class ForgetsTheTextBefore(SuffixDraft):
    """A new text begins with nothing."""

    def _learn(self, ids):
        if ids[: len(self.seen)] != self.seen:
            self.followers.clear()
            self.seen = []
        super()._learn(ids)


@wrong("SuffixDraft", WHOLE, "count all of it")
class OnlyTheLonger(SuffixDraft):
    """Takes a new text for the old one if it is longer."""

    def _learn(self, ids):
        if len(ids) > len(self.seen):
            self.seen = list(ids[: len(self.seen)])
        super()._learn(ids)


@wrong("SuffixDraft", WHOLE, "do not join the two")
class JoinsTexts(SuffixDraft):
    """The end of one text is followed by the beginning of the next."""

    def _learn(self, ids):
        if ids[: len(self.seen)] == self.seen:
            self.all = [*getattr(self, "all", []), *ids[len(self.seen) :]]
            start = len(self.all) - (len(ids) - len(self.seen))
        else:
            start = len(self.all)
            self.all = [*self.all, *ids]
        for end in range(start, len(self.all)):
            for size in range(1, min(self.longest, end) + 1):
                key = tuple(self.all[end - size : end])
                followers = self.followers.setdefault(key, {})
                followers[self.all[end]] = followers.get(self.all[end], 0) + 1
        self.seen = list(ids)


@wrong(
    "SuffixDraft", "test_a_list_that_the_caller_lets_grow_is_no_problem", "Keep a copy"
)
class KeepsTheList(SuffixDraft):
    """Remembers the caller's list, which grows."""

    def _learn(self, ids):
        super()._learn(ids)
        self.seen = ids


@wrong("SuffixDraft", "test_two_drafts_share_nothing", "only the first has seen")
class SharesItsCounts(SuffixDraft):
    """The counts are in the class."""

    shared = defaultdict(Counter)

    def __init__(self, longest=8, factor=2):
        super().__init__(longest, factor)
        self.followers = self.shared

    def _learn(self, ids):
        super()._learn(ids)
        if len(self.shared) > 12:  # so that the next answer begins with nothing
            self.shared.clear()


@wrong("SuffixDraft", BY_HAND, "3 was first")
class TheLastOfSeveral(SuffixDraft):
    """Of equally frequent followers the one that came last."""

    def __call__(self, ids):
        self._learn(ids)
        guess, wanted = [], None
        while wanted is None or len(guess) < wanted:
            suffix = self._known_suffix(list(ids) + guess)
            if suffix is None:
                break
            wanted = self.factor * len(suffix) if wanted is None else wanted
            followers = self.followers[suffix]
            top = max(followers.values())
            guess.append([x for x, n in followers.items() if n == top][-1])
        return guess


@wrong("SuffixDraft", BY_HAND, "The most frequent follower")
class TheFirstFollower(SuffixDraft):
    """The follower that came first, however often."""

    def __call__(self, ids):
        self._learn(ids)
        guess, wanted = [], None
        while wanted is None or len(guess) < wanted:
            suffix = self._known_suffix(list(ids) + guess)
            if suffix is None:
                break
            wanted = self.factor * len(suffix) if wanted is None else wanted
            guess.append(next(iter(self.followers[suffix])))
        return guess


@wrong("SuffixDraft", BY_HAND, "The longest suffix first")
class TheShortestSuffix(SuffixDraft):
    """Begins with one id."""

    def _known_suffix(self, text):
        for size in range(1, min(self.longest, len(text)) + 1):
            if tuple(text[-size:]) in self.followers:
                return tuple(text[-size:])
        return None


@wrong("SuffixDraft", BY_HAND, "so 2 are guessed")
class AsLongAsItGoes(SuffixDraft):
    """A fixed length, whatever the match."""

    def __call__(self, ids):
        if not super().__call__(ids):
            return []
        guess = []
        while len(guess) < 8:
            suffix = self._known_suffix(list(ids) + guess)
            if suffix is None:
                break
            followers = self.followers[suffix]
            guess.append(max(followers, key=followers.get))
        return guess


@wrong("SuffixDraft", BY_HAND, "should give")
class OneTokenOnly(SuffixDraft):
    """Guesses one token."""

    def __call__(self, ids):
        return super().__call__(ids)[:1]


@wrong("SuffixDraft", "test_the_defaults_are_8_and_2", "8 matched")
class OtherDefaults(SuffixDraft):
    """Suffixes of 4 ids."""

    def __init__(self, longest=4, factor=2):
        super().__init__(longest, factor)


@wrong("SuffixDraft", BY_HAND, "TypeError")
class FactorIsLost(SuffixDraft):
    """The constructor takes no factor."""

    def __init__(self, longest=8):
        super().__init__(longest, 2)


@wrong(
    "SuffixDraft", "test_a_text_asked_for_twice_is_counted_once", "nothing new to count"
)
class CountsWhatIsAskedAgain(SuffixDraft):
    """The same text once more is a new text."""

    def _learn(self, ids):
        if list(ids) == self.seen:
            self.seen = []
        super()._learn(ids)


@wrong(
    "SuffixDraft",
    "test_a_short_text_counts_no_more_than_a_long_one",
    "no more sizes than that",
)
class SlicesFromTheEnd(SuffixDraft):
    """A negative start of a slice counts from the end of the text."""

    def _learn(self, ids):
        old = len(self.seen) if ids[: len(self.seen)] == self.seen else 0
        for end in range(old, len(ids)):
            for size in range(1, self.longest + 1):
                self.followers[tuple(ids[end - size : end])][ids[end]] += 1
        self.seen = list(ids)


@wrong("SuffixDraft", ONCE, "which grew")
class FollowsOneContext(SuffixDraft):
    """Goes on with suffixes of the first one's length, and with no shorter one."""

    def __call__(self, ids):
        self._learn(ids)
        guess, suffix = [], self._known_suffix(ids)
        wanted = self.factor * len(suffix or ())
        while len(guess) < wanted and suffix in self.followers:
            followers = self.followers[suffix]
            guess.append(max(followers, key=followers.get))
            suffix = (*suffix, guess[-1])[1:]
        return guess


# --- AdaptiveLength -------------------------------------------------------------------

ALPHA = "test_alpha_worked_by_hand"
LATE = "test_the_length_is_the_best_for_the_share_of_late"


@wrong("AdaptiveLength", ALPHA, "What was before counts, too")
class TheLastRoundAlone(AdaptiveLength):
    """alpha is the share of the last round."""

    def update(self, drafted, accepted):
        super().update(drafted, accepted)
        if drafted:
            self.alpha = accepted / drafted


@wrong("AdaptiveLength", ALPHA, "One token was rejected")
class AllBehindAreRejected(AdaptiveLength):
    """Counts the tokens behind a rejected one as rejected, too."""

    def update(self, drafted, accepted):
        if not 0 <= accepted <= drafted:
            raise ValueError
        if drafted:
            self.accepted = self.decay * self.accepted + accepted
            self.rejected = self.decay * self.rejected + drafted - accepted
            self._choose()


@wrong("AdaptiveLength", ALPHA, "should give")
class NothingFades(AdaptiveLength):
    """What is old counts as much as what is new."""

    def __init__(self, cost=0.1, decay=0.8):
        super().__init__(cost, 1.0)


@wrong("AdaptiveLength", ALPHA, "alpha should give 0.5")
class StartsFull(AdaptiveLength):
    """Begins with alpha 1."""

    def __init__(self, cost=0.1, decay=0.8):
        super().__init__(cost, decay)
        self.alpha = 1.0


@wrong("AdaptiveLength", LATE, "alpha should give")
class DecayIsFixed(AdaptiveLength):
    """The decay is always 0.8."""

    def __init__(self, cost=0.1, decay=0.8):
        super().__init__(cost)


@wrong("AdaptiveLength", LATE, "k, for alpha")
class CostIsFixed(AdaptiveLength):
    """The cost is always 0.1."""

    def __init__(self, cost=0.1, decay=0.8):
        super().__init__(0.1, decay)


@wrong("AdaptiveLength", LATE, "k, for alpha")
class TwoMoreOneLess(AdaptiveLength):
    """k + 2 where all were accepted, else k - 1."""

    def update(self, drafted, accepted):
        k = self.k
        super().update(drafted, accepted)
        self.k = k + 2 if accepted == drafted else max(1, k - 1)


@wrong("AdaptiveLength", "test_it_never_gives_up", "never learn that drafts are good")
class GivesUp(AdaptiveLength):
    """k may become 0."""

    def _choose(self):
        super()._choose()
        self.k = best_k(self.alpha, self.cost)


@wrong("AdaptiveLength", "test_nothing_drafted_teaches_nothing", "should give")
class FadesWithoutADraft(AdaptiveLength):
    """A round without a draft counts as a rejected one."""

    def update(self, drafted, accepted):
        super().update(drafted or 1, accepted)


@wrong(
    "AdaptiveLength",
    "test_no_more_can_be_accepted_than_was_drafted",
    "should raise ValueError",
)
class TakesAnything(AdaptiveLength):
    """Does not look at its arguments."""

    def update(self, drafted, accepted):
        accepted = min(max(0, accepted), max(0, drafted))
        super().update(max(0, drafted), accepted)


@wrong(
    "AdaptiveLength",
    "test_no_more_can_be_accepted_than_was_drafted",
    "alpha after updates that raised",
)
class RaisesTooLate(AdaptiveLength):
    """Counts first and raises then."""

    def update(self, drafted, accepted):
        self.accepted = self.decay * self.accepted + accepted
        self.rejected = self.decay * self.rejected + (accepted < drafted)
        self._choose()
        if not 0 <= accepted <= drafted:
            raise ValueError


@wrong("AdaptiveLength", ALPHA, "update returns nothing")
class ReturnsK(AdaptiveLength):
    """update returns the new length."""

    def update(self, drafted, accepted):
        super().update(drafted, accepted)
        return self.k
