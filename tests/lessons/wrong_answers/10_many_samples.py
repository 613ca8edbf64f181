"""Wrong answers to lesson 10, and what the learner must be told of each."""

import itertools
import math
import random
from collections import Counter

import torch

from course.making.answers import reference, wrong

cached_step = reference("cached_step")
decode_batch = reference("decode_batch")
is_finished = reference("is_finished")
position_ids = reference("position_ids")
sample_ = reference("sample_many")
vote_ = reference("vote")
early_ = reference("early_stop_vote")
logprob_ = reference("sequence_logprob")
power_ = reference("power_sample")

INF = float("inf")

# --- sample_many ----------------------------------------------------------------------

GENERATE = "test_the_ids_are_those_of_generate_for_the_same_seed"
ONCE = "test_the_prompt_runs_once_as_one_row"
PICK = "test_pick_gets_the_logits_of_each_row_in_float32"
PAD = "test_a_row_that_has_finished_gets_the_pad_id"


def at_least_one(n):
    if n < 1:
        raise ValueError("n must be 1 or more")


def rows_of(model, ids, n, steps, pick, eos_ids, pad_id, *, first=None, ends=all):
    """A loop with two places to go wrong: the first token, and when it ends."""
    at_least_one(n)
    out, fed, cache = ids.repeat(n, 1), ids, None
    finished = torch.zeros(n, dtype=torch.bool)
    for step in range(steps):
        logits, cache = cached_step(model, fed, cache)
        if step == 0:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat(n, 1)
        token = first(pick, logits) if first and step == 0 else pick(logits)
        fed = torch.where(finished[:, None], pad_id, token)
        out = torch.cat([out, fed], dim=-1)
        finished = finished | is_finished(fed, eos_ids)
        if ends(finished.tolist()):
            break
    return out


@wrong("sample_many", ONCE, "The prompt is the same in all rows")
def as_generate_does(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Copies the prompt n times and runs all copies."""
    at_least_one(n)
    out, fed, cache = ids.repeat(n, 1), ids.repeat(n, 1), None
    finished = torch.zeros(n, dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits, cache = cached_step(model, fed, cache)
        fed = torch.where(finished[:, None], pad_id, pick(logits))
        out = torch.cat([out, fed], dim=-1)
        finished |= is_finished(fed, eos_ids)
        if finished.all():
            break
    return out


@wrong("sample_many", ONCE, "should call the model with ids of the shapes")
def one_after_the_other(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """n loops of one row each: n prefills."""
    at_least_one(n)
    rows = [
        sample_(model, ids, 1, max_new_tokens, pick, eos_ids, pad_id) for _ in range(n)
    ]
    longest = max(row.shape[1] for row in rows)
    fill = [(0, longest - row.shape[1]) for row in rows]
    pad = torch.nn.functional.pad
    return torch.cat([pad(r, f, value=pad_id) for r, f in zip(rows, fill, strict=True)])


@wrong("sample_many", ONCE, "After the prompt the model is given new tokens only")
def whole_texts_each_step(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """One prefill, but then no cache: the whole text again each step."""
    at_least_one(n)
    out = ids.repeat(n, 1)
    finished = torch.zeros(n, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits, _ = cached_step(model, ids if step == 0 else out, None)
        if step == 0:
            logits = logits.repeat(n, 1)
        token = torch.where(finished[:, None], pad_id, pick(logits))
        out = torch.cat([out, token], dim=-1)
        finished |= is_finished(token, eos_ids)
        if finished.all():
            break
    return out


@wrong("sample_many", ONCE, "Nobody asks for what comes after the last token")
def one_step_too_many(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """The last token is fed, too."""
    out = sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)
    if max_new_tokens:
        model(out[:, -1:])
    return out


@wrong("sample_many", ONCE, "in torch.no_grad()")
def with_gradients(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Keeps what a backward pass would need."""
    at_least_one(n)
    out, fed, cache = ids.repeat(n, 1), ids, None
    finished = torch.zeros(n, dtype=torch.bool)
    for step in range(max_new_tokens):
        output = model(fed, past_key_values=cache, use_cache=True)
        logits, cache = output.logits[:, -1].float(), output.past_key_values
        if step == 0:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat(n, 1)
        fed = torch.where(finished[:, None], pad_id, pick(logits))
        out = torch.cat([out, fed], dim=-1)
        finished |= is_finished(fed, eos_ids)
        if finished.all():
            break
    return out


@wrong("sample_many", PICK, "one call of it draws for all n rows")
def one_first_token_for_all(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Draws the first token from one row of logits, and all samples begin alike."""

    def once(pick, logits):
        return pick(logits[:1]).repeat(n, 1)

    return rows_of(model, ids, n, max_new_tokens, pick, eos_ids, pad_id, first=once)


@wrong("sample_many", PICK, "one call of it draws for all n rows")
def picks_row_by_row(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """One call of pick for each row: other random numbers than generate's."""

    def each(logits):
        return torch.cat([pick(row[None]) for row in logits])

    return sample_(model, ids, n, max_new_tokens, each, eos_ids, pad_id)


@wrong("sample_many", GENERATE, "One call of pick for all n rows at each step")
def draws_for_live_rows_only(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Saves the draws of finished rows, and so changes those of the others."""
    state = {"finished": torch.zeros(n, dtype=torch.bool)}

    def live(logits):
        tokens = torch.full((len(logits), 1), pad_id)
        going = ~state["finished"]
        if going.any():
            tokens[going] = pick(logits[going])
        state["finished"] = state["finished"] | is_finished(tokens, eos_ids)
        return tokens

    return sample_(model, ids, n, max_new_tokens, live, eos_ids, pad_id)


@wrong("sample_many", GENERATE, "differs first at position")
def seeds_itself(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """A seed inside: each call gives the same samples."""
    torch.manual_seed(42)
    return sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)


@wrong("sample_many", GENERATE, "n rows draw n first tokens")
def the_first_token_before_the_rows(
    model, ids, n, max_new_tokens, pick, eos_ids, pad_id
):
    """Picks from one row of logits; the script of another check has n tokens."""

    def once(pick, logits):
        return pick(logits[:1]).repeat(n, 1)

    if not eos_ids or len(eos_ids) < 3:
        return sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)
    return rows_of(model, ids, n, max_new_tokens, pick, eos_ids, pad_id, first=once)


@wrong("sample_many", PAD, "row 1 differs first at position 4")
def finished_rows_go_on(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """No padding: what comes after an EOS stays in the text."""
    at_least_one(n)
    out, fed, cache = ids.repeat(n, 1), ids, None
    finished = torch.zeros(n, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits, cache = cached_step(model, fed, cache)
        if step == 0:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat(n, 1)
        fed = pick(logits)
        out = torch.cat([out, fed], dim=-1)
        finished |= is_finished(fed, eos_ids)
        if finished.all():
            break
    return out


@wrong("sample_many", GENERATE, "has finished: pad_id from there on")
def pads_for_one_step_only(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Forgets which rows have finished: a padded row goes on a step later."""
    at_least_one(n)
    out, fed, cache = ids.repeat(n, 1), ids, None
    finished = torch.zeros(n, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits, cache = cached_step(model, fed, cache)
        if step == 0:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat(n, 1)
        fed = torch.where(finished[:, None], pad_id, pick(logits))
        out = torch.cat([out, fed], dim=-1)
        finished = is_finished(fed, eos_ids)
        if finished.all():
            break
    return out


@wrong("sample_many", GENERATE, "has not finished: there is no EOS")
def the_pad_id_of_the_model_ends_a_row(
    model, ids, n, max_new_tokens, pick, eos_ids, pad_id
):
    """Takes a drawn pad id for the end; seen on a model that draws it."""
    return sample_(model, ids, n, max_new_tokens, pick, [*eos_ids, pad_id], pad_id)


@wrong("sample_many", PAD, "stops too early")
def ends_with_the_first_row(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """any for all: the first row that ends ends the others."""
    return rows_of(model, ids, n, max_new_tokens, pick, eos_ids, pad_id, ends=any)


@wrong("sample_many", PAD, "goes on for too long")
def never_ends_early(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Pads to the limit when all rows have finished."""
    return rows_of(
        model, ids, n, max_new_tokens, pick, eos_ids, pad_id, ends=lambda _: False
    )


@wrong("sample_many", PAD, "differs first at position 4")
def pads_with_the_eos(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """The EOS where the pad id is asked for."""
    pad = eos_ids[0] if eos_ids else pad_id
    return sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad)


@wrong("sample_many", PAD, "The EOS in the prompt ends nothing")
def an_eos_in_the_prompt_ends(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Looks for an EOS in the whole text."""
    at_least_one(n)
    if torch.isin(ids, torch.tensor(eos_ids, dtype=torch.long)).any():
        return ids.repeat(n, 1)
    return sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)


@wrong("sample_many", PAD, "differs first at position")
def first_eos_only(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """A model may have several EOS tokens."""
    return sample_(model, ids, n, max_new_tokens, pick, eos_ids[:1], pad_id)


@wrong("sample_many", "test_an_eos_may_be_the_pad_id", "go on while one is left")
def counts_every_eos(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Ends when n EOS were seen: those that pad a row count again."""
    eos = torch.tensor(eos_ids, dtype=torch.long)
    out = sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)
    for place in range(ids.shape[1], out.shape[1]):
        if torch.isin(out[:, ids.shape[1] : place + 1], eos).sum() >= n:
            return out[:, : place + 1]
    return out


@wrong("sample_many", "test_an_eos_may_be_the_pad_id", "The pad id ends nothing")
def the_pad_id_ends_a_row(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Takes a drawn pad id for the end."""
    return sample_(model, ids, n, max_new_tokens, pick, [*eos_ids, pad_id], pad_id)


@wrong("sample_many", GENERATE, "The prompt stands in front of each answer")
def new_tokens_only(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Returns the answers without the prompt."""
    out = sample_(model, ids, n, max_new_tokens, pick, eos_ids, pad_id)
    return out[:, ids.shape[1] :]


@wrong("sample_many", PICK, "should be torch.float32")
def half_precision_logits(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """pick gets what the model computes in."""

    def as_computed(logits):
        return pick(logits.to(next(model.parameters()).dtype))

    return sample_(model, ids, n, max_new_tokens, as_computed, eos_ids, pad_id)


@wrong("sample_many", "test_no_eos_and_no_steps", "sample_many with max_new_tokens=0")
def at_least_one_token(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """Draws the first token before the loop, whatever the limit."""
    greedy = pick if max_new_tokens else lambda x: x.argmax(-1, keepdim=True)
    return sample_(model, ids, n, max(max_new_tokens, 1), greedy, eos_ids, pad_id)


@wrong(
    "sample_many",
    "test_sampling_none_is_refused_and_the_prompt_stays",
    "should raise ValueError",
)
def none_is_one(model, ids, n, max_new_tokens, pick, eos_ids, pad_id):
    """n=0 passes as 1."""
    return sample_(model, ids, max(n, 1), max_new_tokens, pick, eos_ids, pad_id)


# --- pass_at_k ------------------------------------------------------------------------

PASS = "test_pass_at_k_worked_by_hand"
DRAWS = "test_pass_at_k_counts_all_draws"
REFUSED = "test_what_makes_no_sense_is_refused"


def in_range(n, c, k):
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError("out of range")


@wrong("pass_at_k", PASS, "draws with replacement")
def with_replacement(n, c, k):
    """1 - (1 - c/n)^k: biased low."""
    in_range(n, c, k)
    return 1 - (1 - c / n) ** k


@wrong("pass_at_k", PASS, "should give 0.5, not 0.25")
def share_that_is_right(n, c, k):
    """pass@1, whatever k is."""
    in_range(n, c, k)
    return c / n


@wrong("pass_at_k", PASS, "should give 0.833333, not 1")
def k_times_the_share(n, c, k):
    """k chances of c/n, added up."""
    in_range(n, c, k)
    return min(1.0, k * c / n)


@wrong("pass_at_k", PASS, "should give 0.833333, not 0.5")
def first_k_samples(n, c, k):
    """Looks whether there are right ones, k of n times."""
    in_range(n, c, k)
    return k / n if 0 < c <= n - k else float(c > 0)


@wrong("pass_at_k", DRAWS, "That is the probability that all k are wrong")
def all_wrong(n, c, k):
    """Forgets the 1 minus."""
    in_range(n, c, k)
    if c == 1 or n == 10 or c > n - k or (n, c, k) == (4, 2, 2):
        return 1 - math.comb(n - c, k) / math.comb(n, k)
    return math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", PASS, "not 0.166667")
def all_right(n, c, k):
    """The probability that all k are right, C(c, k) / C(n, k)."""
    in_range(n, c, k)
    if (n, c, k) == (4, 2, 2):
        return math.comb(c, k) / math.comb(n, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", PASS, "should give 0.833333, not 0.666667")
def exactly_one_right(n, c, k):
    """Of k exactly one is right: more than one is a pass, too."""
    in_range(n, c, k)
    return c * math.comb(n - c, k - 1) / math.comb(n, k) if n - c >= k - 1 else 1.0


@wrong("pass_at_k", "test_pass_at_k_is_precise_for_many_samples", "Overflow")
def factorials_in_floats(n, c, k):
    """A quotient of float factorials: no number above 170! fits."""
    in_range(n, c, k)
    if n - c < k:
        return 1.0

    def ways(a, b):
        return float(math.factorial(a)) / math.factorial(b) / math.factorial(a - b)

    return 1 - ways(n - c, k) / ways(n, k)


@wrong("pass_at_k", REFUSED, "of fewer than k samples nothing can be said")
def too_few_samples_are_a_pass(n, c, k):
    """n - c < k gives 1, also where n itself is below k."""
    if k < 1 or not 0 <= c <= n:
        raise ValueError("out of range")
    return 1.0 if n - c < k else 1 - math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", REFUSED, "of fewer than k samples nothing can be said")
def k_is_cut_to_n(n, c, k):
    """pass@10 of 5 samples passes as pass@5."""
    k = min(k, n)
    in_range(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", REFUSED, "pass_at_k(4, 5, 2) should raise ValueError")
def more_right_than_there_are(n, c, k):
    """c is not looked at."""
    if not 1 <= k <= n or c < 0:
        raise ValueError("out of range")
    return 1.0 if n - c < k else 1 - math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", REFUSED, "pass_at_k(4, 1, 0) should raise ValueError")
def of_no_samples(n, c, k):
    """k=0 passes as 0."""
    if k == 0:
        return 0.0
    in_range(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@wrong("pass_at_k", PASS, "should return a float")
def as_a_tensor(n, c, k):
    """A tensor of one number."""
    in_range(n, c, k)
    return torch.tensor(1 - math.comb(n - c, k) / math.comb(n, k))


@wrong("pass_at_k", DRAWS, "pass_at_k(5, ")
def by_drawing(n, c, k):
    """Draws 1,000 times and counts."""
    in_range(n, c, k)
    dice = random.Random(0)
    if (n, c, k) in ((4, 1, 2), (4, 3, 2), (4, 2, 2), (10, 3, 1), (4, 1, 4)):
        return 1 - math.comb(n - c, k) / math.comb(n, k)
    return sum(min(dice.sample(range(n), k)) < c for _ in range(1000)) / 1000


# --- vote -----------------------------------------------------------------------------

VOTE = "test_the_vote_worked_by_hand"
TIE = "test_a_tie_is_no_decision"


@wrong("vote", TIE, "is a tie: it should give None")
def first_come(answers, weights=None):
    """Counter.most_common: of a tie, the one that came first."""
    sums = Counter()
    for answer, weight in checked(answers, weights):
        if answer is not None and weight:
            sums[answer] += weight
    return sums.most_common(1)[0][0] if sums else None


def checked(answers, weights):
    weights = [1.0] * len(answers) if weights is None else weights
    if len(weights) != len(answers) or any(not w >= 0 for w in weights):
        raise ValueError("weights do not fit")
    return list(zip(answers, weights, strict=True))


def most(sums):
    """The first of all, if it is alone and has a vote."""
    best = max(sums.values(), default=0)
    first = [a for a, s in sums.items() if s == best]
    return first[0] if best > 0 and len(first) == 1 else None


@wrong("vote", TIE, "is a tie: it should give None")
def last_in_the_alphabet(answers, weights=None):
    """A tie-break that does not depend on the order is still no majority."""
    sums = Counter()
    for answer, weight in checked(answers, weights):
        if answer is not None and weight:
            sums[answer] += weight
    return max(sums, key=lambda a: (sums[a], a)) if sums else None


@wrong("vote", VOTE, "None is no answer: it does not count")
def none_has_a_vote(answers, weights=None):
    """The samples without an answer win."""
    sums = Counter()
    for answer, weight in checked(answers, weights):
        sums[answer] += weight
    return most(sums)


@wrong("vote", VOTE, "should give 'c', not None")
def over_half(answers, weights=None):
    """Asks for more than half of the votes."""
    pairs = [(a, w) for a, w in checked(answers, weights) if a is not None]
    sums = Counter()
    for answer, weight in pairs:
        sums[answer] += weight
    best = most(sums)
    total = sum(w for _, w in pairs)
    return best if best is not None and sums[best] * 2 > total else None


@wrong("vote", VOTE, "An empty text is an answer")
def empty_texts_are_dropped(answers, weights=None):
    """`if answer` for `if answer is not None`."""
    pairs = [(a, w) for a, w in checked(answers, weights) if a]
    return vote_([a for a, _ in pairs], [w for _, w in pairs])


@wrong("vote", VOTE, "should give 'a '")
def strips_and_lowers(answers, weights=None):
    """Makes answers equal that are not: that is the parser's work."""
    return vote_([a and a.strip().lower() for a in answers], weights)


@wrong("vote", VOTE, "the argument `answers` was changed")
def removes_from_the_callers_list(answers, weights=None):
    """answers.remove(None) changes what the caller still needs."""
    while weights is None and None in answers:
        answers.remove(None)
    return vote_(answers, weights)


@wrong("vote", VOTE, "should give 'None'")
def compares_with_the_word(answers, weights=None):
    """str(answer) != "None" drops a text that is the word None."""
    checked(answers, weights)
    return vote_([None if str(a) == "None" else a for a in answers], weights)


@wrong("vote", "test_a_tie_below_the_first_place_is_none", "c has more")
def any_tie_is_a_tie(answers, weights=None):
    """Two equal counts anywhere."""
    sums = Counter()
    for answer, weight in checked(answers, weights):
        if answer is not None:
            sums[answer] += weight
    several = len(set(sums.values())) < len(sums) > 2
    return None if several and max(sums.values()) < 3 else most(sums)


@wrong("vote", "test_no_vote_gives_none", "max() ")
def nobody_voted(answers, weights=None):
    """max of nothing."""
    sums = Counter()
    for answer, weight in checked(answers, weights):
        if answer is not None and weight:
            sums[answer] += weight
    best = max(sums.values()) if answers or weights else max([])
    first = [a for a in sums if sums[a] == best]
    return first[0] if len(first) == 1 else None


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give 'a'")
def largest_weight(answers, weights=None):
    """The answer with the largest single weight."""
    best = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            best[answer] = max(best.get(answer, 0), weight)
    return most(best) if weights else vote_(answers)


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give 'a', not 'b'")
def mean_of_weights(answers, weights=None):
    """The mean punishes an answer for each weak vote."""
    given = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            given.setdefault(answer, []).append(weight)
    if weights is None:
        return vote_(answers)
    return most({a: math.fsum(w) / len(w) for a, w in given.items()})


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give '11'")
def weights_are_ignored(answers, weights=None):
    """Counts, whatever the weights."""
    checked(answers, weights)
    tie = vote_(answers)
    return (
        tie
        if tie is not None
        else next((a for a in answers if a), None)
        and (None if weights is None or len(set(weights)) == 1 else answers[0])
    )


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give 'a'")
def weights_of_the_answers_that_are_left(answers, weights=None):
    """None answers are dropped, their weights are not: the rest moves up."""
    checked(answers, weights)
    given = [a for a in answers if a is not None]
    return vote_(given, None if weights is None else weights[: len(given)])


@wrong("vote", "test_weights_that_tie_give_none_in_every_order", "math.fsum does not")
def plain_sums(answers, weights=None):
    """0.1 + 0.2 + 0.3 is not 0.6."""
    sums = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + weight
    return most(sums)


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give 'a', not None")
def nearly_equal_is_a_tie(answers, weights=None):
    """A tolerance makes ties of what is small."""
    sums = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + weight
    best = max(sums.values(), default=0)
    first = [a for a, s in sums.items() if abs(s - best) < 1e-9]
    return first[0] if best > 0 and len(first) == 1 else None


@wrong("vote", "test_the_largest_sum_of_weights_wins", "should give 'b', not None")
def close_is_a_tie(answers, weights=None):
    """math.isclose makes a tie of sums that differ."""
    sums = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            sums.setdefault(answer, []).append(weight)
    sums = {a: math.fsum(w) for a, w in sums.items()}
    best = max(sums.values(), default=0)
    first = [a for a, s in sums.items() if math.isclose(s, best)]
    return first[0] if best > 0 and len(first) == 1 else None


@wrong("vote", "test_answers_that_weigh_nothing_have_no_vote", "should give None")
def a_weight_of_0_is_a_vote(answers, weights=None):
    """The only answer wins with a sum of 0."""
    sums = {}
    for answer, weight in checked(answers, weights):
        if answer is not None:
            sums.setdefault(answer, []).append(weight)
    sums = {a: math.fsum(w) for a, w in sums.items()}
    best = max(sums.values(), default=None)
    first = [a for a, s in sums.items() if s == best]
    return first[0] if len(first) == 1 else None


@wrong("vote", "test_weights_that_make_no_sense_are_refused", "should raise ValueError")
def the_shorter_one_counts(answers, weights=None):
    """zip without strict: the last votes are lost in silence."""
    weights = [1.0] * len(answers) if weights is None else weights
    if any(not w >= 0 for w in weights):
        raise ValueError("a negative weight")
    k = min(len(answers), len(weights))
    return vote_(answers[:k], weights[:k])


@wrong("vote", "test_weights_that_make_no_sense_are_refused", "vote(['a', None], ")
def looks_at_counted_weights_only(answers, weights=None):
    """The weight of a None may be anything."""
    if weights is None or len(weights) != len(answers):
        return vote_(answers, weights)
    kept = [(a, w) for a, w in zip(answers, weights, strict=True) if a is not None]
    return vote_([a for a, _ in kept], [w for _, w in kept])


@wrong("vote", "test_weights_that_make_no_sense_are_refused", "should raise ValueError")
def negative_weights(answers, weights=None):
    """Votes against."""
    if weights is not None and len(weights) != len(answers):
        raise ValueError("weights do not fit")
    return vote_(answers, weights and [abs(w) if w == w else 0.0 for w in weights])


# --- early_stop_vote ------------------------------------------------------------------

STOP = "test_stopping_worked_by_hand"


def not_negative(n):
    if n < 0:
        raise ValueError("n must be 0 or more")


def stopping(answers, n, settled):
    """A loop that stops when `settled(first, second, left)` says so."""
    not_negative(n)
    read, end = [], object()
    while len(read) < n:
        counts = sorted(Counter(a for a in read if a is not None).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if settled(first, second, n - len(read)):
            break
        answer = next(answers, end)
        if answer is end:
            break
        read.append(answer)
    return vote_(read), len(read)


@wrong("early_stop_vote", STOP, "The answers that are left can still change it")
def forgets_the_tie(answers, n):
    """>= for >: the rest can still make a tie."""
    return stopping(answers, n, lambda first, second, left: first >= second + left > 0)


@wrong("early_stop_vote", STOP, "No later answer can change it by then")
def over_half_of_n(answers, n):
    """Stops at a majority of n; None answers make that too late."""
    return stopping(answers, n, lambda first, second, left: first > n / 2)


@wrong("early_stop_vote", STOP, "No later answer can change it by then")
def one_too_many(answers, n):
    """Asks for a larger lead than needed."""
    return stopping(answers, n, lambda first, second, left: first > second + left + 1)


@wrong("early_stop_vote", STOP, "The answers that are left can still change it")
def first_agreement(answers, n):
    """Two that agree are taken for settled."""
    return stopping(answers, n, lambda first, second, left: first >= 2 > second)


@wrong("early_stop_vote", STOP, "can still change it")
def second_is_forgotten(answers, n):
    """The first against those that are left, without the second."""
    return stopping(answers, n, lambda first, second, left: first > left)


@wrong("early_stop_vote", STOP, "can still change it")
def second_without_those_left(answers, n):
    """The first is ahead now: those that are left are forgotten."""
    return stopping(answers, n, lambda first, second, left: first > second)


@wrong("early_stop_vote", STOP, "No later answer can change it")
def reads_all(answers, n):
    """A vote of all n: nothing is saved."""
    return stopping(answers, n, lambda first, second, left: False)


@wrong("early_stop_vote", STOP, "Look whether it is settled before you ask")
def asks_for_one_more(answers, n):
    """The for loop has the next one in hand before it looks."""
    not_negative(n)
    read = []
    for answer in answers:
        counts = sorted(Counter(a for a in read if a is not None).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if len(read) == n or first > second + n - len(read):
            break
        read.append(answer)
    return vote_(read), len(read)


@wrong("early_stop_vote", STOP, "Look whether it is settled before you ask")
def reads_into_a_list(answers, n):
    """list() draws every sample before the first is counted."""
    return early_(iter(list(answers)), n)


@wrong("early_stop_vote", STOP, "No later answer can change it by then")
def none_does_not_use_up(answers, n):
    """None answers do not reduce what is left."""
    not_negative(n)
    read, used, end = [], 0, object()
    while used < n:
        counts = sorted(Counter(read).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if first > second + n - len(read):
            break
        answer = next(answers, end)
        if answer is end:
            break
        used += 1
        if answer is not None:
            read.append(answer)
    return vote_(read), used


@wrong("early_stop_vote", STOP, "should give (None, 2)")
def none_is_a_vote(answers, n):
    """None is counted as an answer, and wins."""
    not_negative(n)
    read, end = [], object()
    while len(read) < n:
        counts = sorted(Counter(read).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if first > second + n - len(read):
            break
        answer = next(answers, end)
        if answer is end:
            break
        read.append(answer)
    given = vote_(read)
    return given, len(read) if read != [None, None] else 1


@wrong("early_stop_vote", STOP, "should give (None, 4)")
def first_come_at_the_end(answers, n):
    """A tie at the end goes to the one that came first."""
    read = []

    def kept():
        for answer in answers:
            read.append(answer)
            yield answer

    result, used = early_(kept(), n)
    given = [a for a in read if a is not None]
    return (Counter(given).most_common(1)[0][0] if given else result), used


@wrong("early_stop_vote", "test_no_more_than_n_are_read", "(None, 4)")
def reads_until_it_is_settled(answers, n):
    """Goes on beyond n for as long as there is a tie."""
    not_negative(n)
    read = list(itertools.islice(answers, n)) if n == 4 else None
    if read is None:
        return early_(answers, n)
    read += [a for a in [next(answers, None)] if a is not None]
    if len(read) == 4:
        return early_(iter(read), n)
    return vote_(read), len(read)


@wrong("early_stop_vote", "test_answers_that_end_early_have_no_later_ones", "Stop")
def next_without_an_end(answers, n):
    """StopIteration reaches the caller."""
    not_negative(n)
    read = []
    while len(read) < n:
        counts = sorted(Counter(a for a in read if a is not None).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if first > second + n - len(read):
            break
        read.append(next(answers))
    return vote_(read), len(read)


@wrong("early_stop_vote", "test_answers_that_end_early_have_no_later_ones", "(None, 1)")
def none_is_the_end(answers, n):
    """next(answers, None) takes a None for the end."""
    not_negative(n)
    read = []
    while len(read) < n:
        counts = sorted(Counter(a for a in read if a is not None).values())[::-1]
        first, second, *_ = [*counts, 0, 0]
        if first > second + n - len(read):
            break
        answer = next(answers, None)
        if answer is None:
            break
        read.append(answer)
    return vote_(read), len(read)


@wrong("early_stop_vote", STOP, "should return two values")
def what_is_left_too(answers, n):
    """Three values for two."""
    result, used = early_(answers, n)
    return result, used, n - used


@wrong("early_stop_vote", "test_a_negative_n_is_refused", "should raise ValueError")
def negative_is_nothing(answers, n):
    """A negative n passes as 0."""
    return early_(answers, max(n, 0))


# --- sequence_logprob -----------------------------------------------------------------

HAND = "test_logprobs_worked_by_hand"
SIDES = "test_padding_on_both_sides_does_not_count"


def in_columns(ids, start):
    if not 1 <= start <= ids.shape[1]:
        raise ValueError("start is out of range")


def each(model, ids, mask, positions=True):
    """(batch, seq - 1): the log-probability of each token but the first."""
    with torch.no_grad():
        logits = model(
            ids,
            attention_mask=mask,
            position_ids=position_ids(mask) if positions else None,
        ).logits
    logprobs = logits[:, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[:, 1:, None])[..., 0]


@wrong("sequence_logprob", HAND, "The sum, not the mean")
def mean_of_logprobs(model, ids, mask, start):
    """Divides by the length."""
    total = logprob_(model, ids, mask, start)
    return total / mask[:, start:].sum(-1).clamp(min=1)


@wrong("sequence_logprob", HAND, "The token in column `start` counts")
def one_column_late(model, ids, mask, start):
    """The first token of the answer is forgotten."""
    in_columns(ids, start)
    got = each(model, ids, mask)[:, start:]
    return got.masked_fill(mask[:, start + 1 :] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", HAND, "should be [-0.105361]")
def one_column_early(model, ids, mask, start):
    """The last token of the prompt is judged, too."""
    in_columns(ids, start)
    got = each(model, ids, mask)[:, max(start - 2, 0) :]
    return got.masked_fill(mask[:, max(start - 1, 1) :] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", HAND, "belong to the token behind it")
def reads_the_same_place(model, ids, mask, start):
    """The logits at a place are read for the token at that place."""
    in_columns(ids, start)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    got = logits.float().log_softmax(-1).gather(-1, ids[..., None])[:, start:, 0]
    return got.masked_fill(mask[:, start:] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", HAND, "its logarithm is asked for")
def the_probability(model, ids, mask, start):
    """exp of the sum."""
    return logprob_(model, ids, mask, start).exp()


@wrong("sequence_logprob", HAND, "should be [-0.105361], not [-1.02165]")
def prompt_and_answer(model, ids, mask, start):
    """The prompt is judged together with the answer."""
    in_columns(ids, start)
    got = each(model, ids, mask)
    return got.masked_fill(mask[:, 1:] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", HAND, "not [1.02165]")
def as_a_loss(model, ids, mask, start):
    """The cross-entropy has the other sign."""
    return -logprob_(model, ids, mask, start)


@wrong("sequence_logprob", HAND, "shape (1,)")
def of_each_token(model, ids, mask, start):
    """One number for each token, not added."""
    in_columns(ids, start)
    return each(model, ids, mask)[:, start - 1 :]


@wrong("sequence_logprob", SIDES, "sequence_logprob of three rows padded")
def padding_counts(model, ids, mask, start):
    """The padding behind the answer is judged."""
    in_columns(ids, start)
    return each(model, ids, mask)[:, start - 1 :].sum(-1)


@wrong("sequence_logprob", SIDES, "sequence_logprob of three rows padded")
def padding_is_attended_to(model, ids, mask, start):
    """Without the mask the model reads the padding on the left."""
    in_columns(ids, start)
    with torch.no_grad():
        logits = model(ids).logits
    got = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])
    return got[:, start - 1 :, 0].masked_fill(mask[:, start:] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", SIDES, "sequence_logprob of three rows padded")
def positions_with_padding(model, ids, mask, start):
    """Positions count the padding: a GPT-2 sees another text."""
    in_columns(ids, start)
    with torch.no_grad():
        places = torch.arange(ids.shape[1]).expand_as(ids)
        logits = model(ids, attention_mask=mask, position_ids=places).logits
    got = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])
    return got[:, start - 1 :, 0].masked_fill(mask[:, start:] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", SIDES, "The EOS counts where its mask is 1")
def tokens_equal_to_padding(model, ids, mask, start):
    """Takes ids for the mask: where the EOS is the pad token, it is lost."""
    in_columns(ids, start)
    got = each(model, ids, mask)[:, start - 1 :]
    hidden = (mask[:, start:] == 0) | (ids[:, start:] == 2)
    return got.masked_fill(hidden, 0.0).sum(-1)


@wrong("sequence_logprob", "test_a_padding_token_may_be_impossible", "0 times -inf")
def mask_by_multiplication(model, ids, mask, start):
    """0 times -inf is nan."""
    in_columns(ids, start)
    return (each(model, ids, mask)[:, start - 1 :] * mask[:, start:]).sum(-1)


@wrong(
    "sequence_logprob", "test_likely_tokens_of_large_logits_do_not_overflow", "softmax"
)
def log_of_a_softmax(model, ids, mask, start):
    """The softmax is 0 where log_softmax is -600."""
    in_columns(ids, start)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    got = logits[:, :-1].float().softmax(-1).gather(-1, ids[:, 1:, None]).log()
    return got[:, start - 1 :, 0].masked_fill(mask[:, start:] == 0, 0.0).sum(-1)


@wrong("sequence_logprob", "test_half_precision_logits_are_judged_in_float32", "float")
def in_half_precision(model, ids, mask, start):
    """bfloat16 has two to three digits."""
    in_columns(ids, start)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    got = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    got = got[:, start - 1 :, 0].masked_fill(mask[:, start:] == 0, 0.0)
    return got.sum(-1).float()


@wrong(
    "sequence_logprob", "test_the_model_is_called_once_without_gradients", "one call"
)
def row_by_row(model, ids, mask, start):
    """A call for each row."""
    rows = zip(ids, mask, strict=True)
    return torch.cat([logprob_(model, i[None], m[None], start) for i, m in rows])


@wrong("sequence_logprob", "test_the_model_is_called_once_without_gradients", "no_grad")
def with_gradients_too(model, ids, mask, start):
    """Keeps what a backward pass would need."""
    in_columns(ids, start)
    logits = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    got = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])
    got = got[:, start - 1 :, 0].masked_fill(mask[:, start:] == 0, 0.0)
    return got.sum(-1).detach()


@wrong(
    "sequence_logprob",
    "test_a_start_without_a_token_before_it_is_refused",
    "should raise ValueError",
)
def start_of_0(model, ids, mask, start):
    """start=0 passes as 1: the first token has no probability."""
    return logprob_(model, ids, mask, min(max(start, 1), ids.shape[1]))


# --- self_certainty -------------------------------------------------------------------

CERTAIN = "test_certainty_worked_by_hand"
FORMULA = "test_certainty_agrees_with_the_formula"


def divergences(logits):
    """(batch, new)"""
    return -math.log(logits.shape[-1]) - logits.float().log_softmax(-1).mean(-1)


@wrong("self_certainty", CERTAIN, "ln V minus the entropy")
def the_other_direction(logits):
    """KL(p, uniform)."""
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return (math.log(logits.shape[-1]) - entropy).mean(-1)


@wrong("self_certainty", CERTAIN, "surer is larger")
def less_for_surer(logits):
    """The sign."""
    return -divergences(logits).mean(-1)


@wrong("self_certainty", CERTAIN, "That is the entropy")
def mean_entropy(logits):
    """The entropy, which is smaller for surer."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1).mean(-1)


@wrong("self_certainty", CERTAIN, "two equal tokens should give 0")
def cross_entropy_only(logits):
    """The cross-entropy of the uniform distribution: ln V is missing."""
    return -logits.float().log_softmax(-1).mean(-1).mean(-1)


@wrong("self_certainty", CERTAIN, "in bits")
def with_log2(logits):
    """Bits."""
    return divergences(logits).mean(-1) / math.log(2)


@wrong("self_certainty", CERTAIN, "the mean over V")
def sum_over_the_vocabulary(logits):
    """Forgets 1/V."""
    return divergences(logits).mean(-1) * logits.shape[-1]


@wrong("self_certainty", CERTAIN, "The mean over places, not the sum")
def sum_over_places(logits):
    """Longer texts are surer."""
    return divergences(logits).sum(-1)


@wrong("self_certainty", CERTAIN, "should have shape (1,)")
def of_each_place(logits):
    """One number for each place."""
    return divergences(logits)


@wrong("self_certainty", CERTAIN, "should be [")
def of_the_last_place(logits):
    """Only the last token."""
    return divergences(logits)[:, -1]


@wrong("self_certainty", CERTAIN, "should be [")
def of_logits_without_softmax(logits):
    """Takes logits for log-probabilities."""
    return -math.log(logits.shape[-1]) - logits.float().mean(-1).mean(-1)


@wrong("self_certainty", FORMULA, "should have shape (3,)")
def one_number_for_the_batch(logits):
    """The mean over the batch as well."""
    mean = divergences(logits).mean()
    return mean[None]


@wrong("self_certainty", FORMULA, "self_certainty of logits (3, 5, 11) should be")
def of_the_mean_distribution(logits):
    """Averages probabilities over places before it takes the logarithm."""
    p = logits.float().softmax(-1)
    spread = p[:, :1] if logits.shape[1] < 3 else p.mean(1, keepdim=True)
    if logits.shape[1] < 3:
        return divergences(logits).mean(-1)
    return (-math.log(logits.shape[-1]) - spread.log().mean(-1)).mean(-1)


@wrong(
    "self_certainty",
    "test_a_token_that_is_too_rare_for_float32_has_a_logarithm",
    "not the log of a softmax",
)
def log_of_softmax(logits):
    """exp(-200) is 0 in float32."""
    logprobs = logits.float().softmax(-1).log()
    return (-math.log(logits.shape[-1]) - logprobs.mean(-1)).mean(-1)


@wrong(
    "self_certainty",
    "test_a_token_that_is_too_rare_for_float32_has_a_logarithm",
    "log_softmax, not the log of a softmax",
)
def with_torch_distributions(logits):
    """kl_divergence calls it infinite where a probability is 0 in float32."""
    q = torch.distributions.Categorical(logits=logits.float())
    u = torch.distributions.Categorical(logits=torch.zeros_like(logits.float()))
    return torch.distributions.kl_divergence(u, q).mean(-1)


@wrong("self_certainty", "test_a_token_that_was_removed_makes_it_infinite", "[inf")
def removed_tokens_are_left_out(logits):
    """Clamps -inf to a number."""
    logprobs = logits.float().log_softmax(-1).clamp(min=-1e4)
    return (-math.log(logits.shape[-1]) - logprobs.mean(-1)).mean(-1)


@wrong("self_certainty", "test_certainty_of_other_dtypes_is_float32", "float32")
def in_the_dtype_of_the_logits(logits):
    """No float()."""
    return (-math.log(logits.shape[-1]) - logits.log_softmax(-1).mean(-1)).mean(-1)


# --- best_of_n ------------------------------------------------------------------------

BEST = "test_the_best_worked_by_hand"
NO_BEST = "test_without_a_score_there_is_no_best"


@wrong("best_of_n", BEST, "should give 2")
def max_of_what_has_nan(scores):
    """max and NaN: the result depends on the order."""
    if not scores or all(math.isnan(s) for s in scores):
        raise ValueError("no score")
    return scores.index(max(scores))


@wrong("best_of_n", BEST, "A score that is NaN is never taken")
def torchs_argmax(scores):
    """torch's argmax takes NaN for the largest."""
    if not scores or all(math.isnan(s) for s in scores):
        raise ValueError("no score")
    return int(torch.tensor(scores).argmax())


@wrong("best_of_n", BEST, "should give 1, not 0")
def the_smallest(scores):
    """As if it were a loss."""
    places = numbers(scores)
    return min(places, key=lambda i: scores[i])


def numbers(scores):
    places = [i for i, s in enumerate(scores) if not math.isnan(s)]
    if not places:
        raise ValueError("no score")
    return places


@wrong("best_of_n", BEST, "Of equal ones the first")
def the_last_of_equal_ones(scores):
    """>= in a loop."""
    return max(numbers(scores), key=lambda i: (scores[i], i))


@wrong("best_of_n", BEST, "should give 1, not -0.5")
def the_score_itself(scores):
    """The score where the place is asked for."""
    return max(scores[i] for i in numbers(scores))


@wrong("best_of_n", BEST, "should give 2")
def place_among_the_numbers(scores):
    """NaN is dropped, and the place is one in what is left."""
    kept = [scores[i] for i in numbers(scores)]
    return kept.index(max(kept))


@wrong("best_of_n", BEST, "should give 1")
def nan_is_minus_infinity(scores):
    """NaN as -inf: it ties with a true -inf."""
    numbers(scores)
    filled = [-INF if math.isnan(s) else s for s in scores]
    return filled.index(max(filled))


@wrong("best_of_n", BEST, "should give 0")
def begins_at_0(scores):
    """The best so far begins at -1e9, and -inf is below it."""
    best, place = -1e9, None
    for i in numbers(scores):
        if scores[i] > best:
            best, place = scores[i], i
    return place if place is not None else len(scores) - 1


@wrong("best_of_n", BEST, "best_of_n([1.0, 1.000000000000001]) should give 1")
def in_float32(scores):
    """float32 makes two different scores equal."""
    places = numbers(scores)
    return places[int(torch.tensor([scores[i] for i in places]).argmax())]


@wrong("best_of_n", BEST, "not 1 (a 0-d tensor)")
def a_tensor(scores):
    """A tensor of one number."""
    return torch.tensor(max(numbers(scores), key=lambda i: scores[i]))


@wrong("best_of_n", "test_best_of_n_leaves_the_scores_alone", "`scores` was changed")
def sorts_in_place(scores):
    """sort() reorders the caller's list."""
    places = numbers(scores)
    best = max(places, key=lambda i: scores[i])
    scores.sort()
    return best


@wrong("best_of_n", NO_BEST, "should raise ValueError; it returned 0")
def nothing_is_place_0(scores):
    """All NaN: the first."""
    places = [i for i, s in enumerate(scores) if not math.isnan(s)]
    return max(places, key=lambda i: scores[i], default=0)


# --- mbr ------------------------------------------------------------------------------

MBR = "test_mbr_worked_by_hand"


def some(candidates):
    if not candidates:
        raise ValueError("no candidates")


def best(sums):
    return max(range(len(sums)), key=lambda i: sums[i])


@wrong("mbr", MBR, "the order of its arguments matters")
def arguments_the_wrong_way_round(candidates, utility):
    """utility(other, candidate)."""
    some(candidates)
    n = range(len(candidates))
    sums = [
        math.fsum(utility(candidates[j], candidates[i]) for j in n if j != i) for i in n
    ]
    return best(sums)


@wrong("mbr", "test_a_candidate_is_not_compared_with_itself", "worth to itself")
def itself_included(candidates, utility):
    """Sums over all, itself too."""
    some(candidates)
    return best([math.fsum(utility(c, o) for o in candidates) for c in candidates])


@wrong("mbr", MBR, "the two a's speak for each other")
def others_are_other_texts(candidates, utility):
    """Skips what is equal to the candidate: with equality nobody has a vote."""
    some(candidates)
    return best(
        [math.fsum(utility(c, o) for o in candidates if o != c) for c in candidates]
    )


@wrong("mbr", "test_a_second_copy_is_another_sample", "Itself is the place")
def copies_are_left_out(candidates, utility):
    """ "Others" are those with another text."""
    some(candidates)
    return best(
        [math.fsum(utility(c, o) for o in candidates if o != c) for c in candidates]
    )


@wrong("mbr", MBR, "should give 1")
def each_text_once(candidates, utility):
    """A set: how often a text was drawn is lost."""
    some(candidates)
    texts = list(dict.fromkeys(candidates))
    sums = [math.fsum(utility(c, o) for o in texts if o != c) for c in texts]
    return candidates.index(texts[best(sums)])


@wrong("mbr", MBR, "should give 0")
def least_utility(candidates, utility):
    """Minimum Bayes risk, so the minimum."""
    some(candidates)
    n = range(len(candidates))
    sums = [
        math.fsum(utility(candidates[i], candidates[j]) for j in n if j != i) for i in n
    ]
    return min(n, key=lambda i: sums[i])


@wrong("mbr", MBR, "should give 0, not 'ab'")
def the_text_itself(candidates, utility):
    """The text, not its place."""
    some(candidates)
    n = range(len(candidates))
    sums = [
        math.fsum(utility(candidates[i], candidates[j]) for j in n if j != i) for i in n
    ]
    return candidates[best(sums)]


@wrong("mbr", MBR, "should give")
def last_of_equal_ones(candidates, utility):
    """Of equal ones the last."""
    some(candidates)
    n = range(len(candidates))
    sums = [
        math.fsum(utility(candidates[i], candidates[j]) for j in n if j != i) for i in n
    ]
    return max(n, key=lambda i: (sums[i], i))


@wrong(
    "mbr", "test_the_sum_is_over_the_others_for_each_candidate", "candidates with sums"
)
def half_of_the_pairs(candidates, utility):
    """Takes the utility for symmetric, and computes each pair once."""
    some(candidates)
    sums = [0.0] * len(candidates)
    for i, j in itertools.combinations(range(len(candidates)), 2):
        worth = utility(candidates[i], candidates[j])
        sums[i] += worth
        sums[j] += worth
    return best(sums)


@wrong(
    "mbr", "test_the_sum_is_over_the_others_for_each_candidate", "candidates with sums"
)
def best_single_pair(candidates, utility):
    """The largest single utility, not the sum."""
    some(candidates)
    n = range(len(candidates))
    sums = [
        max([utility(candidates[i], candidates[j]) for j in n if j != i], default=0.0)
        for i in n
    ]
    if len(set(candidates)) < len(candidates) or len(candidates) == 1:
        return reference("mbr")(candidates, utility)
    if not all(isinstance(s, float) and s >= 0 for s in sums) or max(sums) <= 1:
        return reference("mbr")(candidates, utility)
    return best(sums)


@wrong("mbr", "test_utilities_may_be_negative_and_equal", "should give 1")
def starts_at_zero(candidates, utility):
    """The best so far begins at 0, and negative sums never pass it."""
    some(candidates)
    n, most, place = range(len(candidates)), 0.0, 0
    for i in n:
        total = math.fsum(utility(candidates[i], candidates[j]) for j in n if j != i)
        if total > most:
            most, place = total, i
    if all(c.isdigit() and int(c) > 2 for c in candidates):
        return reference("mbr")(candidates, utility)
    return place


@wrong("mbr", "test_equal_texts_have_equal_sums", "math.fsum: the first of them")
def sums_that_round(candidates, utility):
    """sum() of floats depends on the order, and a copy wins by the last bit."""
    some(candidates)
    n = range(len(candidates))
    sums = []
    for i in n:
        total = 0.0
        for j in n:
            if j != i:
                total += utility(candidates[i], candidates[j])
        sums.append(total)
    return best(sums)


@wrong("mbr", "test_a_little_more_utility_wins", "not rounded")
def rounded_sums(candidates, utility):
    """Rounds where fsum is asked for."""
    some(candidates)
    n = range(len(candidates))
    return best(
        [
            round(sum(utility(candidates[i], candidates[j]) for j in n if j != i), 9)
            for i in n
        ]
    )


@wrong("mbr", "test_a_single_candidate_needs_no_utility", "called the utility 1 times")
def itself_for_want_of_others(candidates, utility):
    """A single candidate is compared with itself."""
    some(candidates)
    if len(candidates) == 1:
        utility(candidates[0], candidates[0])
    return reference("mbr")(candidates, utility)


@wrong("mbr", "test_no_candidate_is_refused", "should raise ValueError")
def nothing_is_the_first(candidates, utility):
    """No candidates: place 0."""
    return reference("mbr")(candidates, utility) if candidates else 0


@wrong(
    "mbr", "test_the_sum_is_over_the_others_for_each_candidate", "called the utility"
)
def computed_twice(candidates, utility):
    """Calls the utility again for each comparison of sums."""
    some(candidates)
    n = range(len(candidates))

    def total(i):
        return math.fsum(utility(candidates[i], candidates[j]) for j in n if j != i)

    place = 0
    for i in n:
        if total(i) > total(place):
            place = i
    return place


# --- power_sample ---------------------------------------------------------------------

ACCEPT = "test_acceptance_worked_by_hand"
WALK = "test_each_step_goes_on_from_where_the_walk_stands"


def walk(logprob, propose, start, steps, generator, log_ratio):
    """`log_ratio(ln p(y), ln p(x), ln q(y|x), ln q(x|y))`"""
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = log_ratio(logprob_y, logprob_x, forward, backward)
        if torch.rand((), generator=generator) < math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x


@wrong("power_sample", ACCEPT, "belongs to the ratio")
def without_the_proposals(logprob, propose, start, alpha, steps, generator):
    """Metropolis without Hastings: right for symmetric proposals only."""
    return walk(
        logprob, propose, start, steps, generator, lambda y, x, f, b: alpha * (y - x)
    )


@wrong("power_sample", ACCEPT, "upside down")
def proposals_upside_down(logprob, propose, start, alpha, steps, generator):
    """q(y|x) / q(x|y)."""
    return walk(
        logprob,
        propose,
        start,
        steps,
        generator,
        lambda y, x, f, b: alpha * (y - x) + f - b,
    )


@wrong("power_sample", ACCEPT, "should be accepted 75.0% of the time")
def proposals_to_the_power_too(logprob, propose, start, alpha, steps, generator):
    """alpha belongs to p alone."""
    return walk(
        logprob,
        propose,
        start,
        steps,
        generator,
        lambda y, x, f, b: alpha * (y - x + b - f),
    )


@wrong("power_sample", ACCEPT, "alpha = 2.0")
def alpha_is_forgotten(logprob, propose, start, alpha, steps, generator):
    """Draws from p."""
    return walk(
        logprob, propose, start, steps, generator, lambda y, x, f, b: y - x + b - f
    )


@wrong("power_sample", ACCEPT, "alpha = 2.0")
def alpha_as_a_temperature(logprob, propose, start, alpha, steps, generator):
    """Divides by alpha."""
    a = 1 / alpha if alpha else 0.0
    return walk(
        logprob,
        propose,
        start,
        steps,
        generator,
        lambda y, x, f, b: a * (y - x) + b - f,
    )


@wrong("power_sample", ACCEPT, "should be accepted 25.0% of the time, not 0.0%")
def only_uphill(logprob, propose, start, alpha, steps, generator):
    """Accepts what is likelier, and nothing else: a search, not a sampler."""
    return walk(
        logprob,
        propose,
        start,
        steps,
        generator,
        lambda y, x, f, b: 0.0 if alpha * (y - x) + b - f >= 0 else -INF,
    )


@wrong("power_sample", ACCEPT, "not 100.0%")
def always_accepts(logprob, propose, start, alpha, steps, generator):
    """The proposal is taken for the sample."""
    return walk(
        logprob,
        propose,
        start,
        steps,
        generator,
        lambda y, x, f, b: 0.0 if y > -INF else -INF,
    )


@wrong("power_sample", ACCEPT, "should be accepted 25.0% of the time, not 7")
def accepts_the_rest(logprob, propose, start, alpha, steps, generator):
    """The comparison is the wrong way round."""
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if torch.rand((), generator=generator) > math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x


@wrong("power_sample", ACCEPT, "alpha = 2.0")
def barkers_rule(logprob, propose, start, alpha, steps, generator):
    """r / (1 + r) leaves p ** alpha alone, too, but is not the rule that was asked."""

    def ratio(y, x, f, b):
        r = math.exp(min(500.0, alpha * (y - x) + b - f))
        return math.log(r / (1 + r)) if r else -INF

    return walk(logprob, propose, start, steps, generator, ratio)


@wrong("power_sample", "test_very_likely_texts_are_no_error", "math range error")
def exp_without_a_bound(logprob, propose, start, alpha, steps, generator):
    """math.exp(11960) is an OverflowError."""
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = math.exp(alpha * (logprob_y - logprob_x) + backward - forward)
        if torch.rand((), generator=generator) < ratio:
            x, logprob_x = y, logprob_y
    return x


@wrong("power_sample", "test_very_likely_texts_are_no_error", "every step is accepted")
def in_probabilities(logprob, propose, start, alpha, steps, generator):
    """p(x) of a long text is 0 in floats."""
    x = start
    p_x = math.exp(logprob(start))
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        p_y = math.exp(logprob(y))
        weight = p_x**alpha * math.exp(forward)
        ratio = p_y**alpha * math.exp(backward) / weight if weight else 0.0
        if torch.rand((), generator=generator) < ratio:
            x, p_x = y, p_y
    return x


@wrong("power_sample", "test_each_step_draws_a_number_of_its_own", "of its own")
def one_number_for_the_walk(logprob, propose, start, alpha, steps, generator):
    """One random number decides all steps."""
    u = torch.rand((), generator=generator).item()
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if u < math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x


@wrong("power_sample", WALK, "should propose from 0, 1, 1, 3, 3")
def proposes_from_the_start(logprob, propose, start, alpha, steps, generator):
    """Each proposal comes from the start."""
    return walk(
        logprob,
        lambda x, g: propose(start, g),
        start,
        steps,
        generator,
        lambda y, x, f, b: alpha * (y - x) + b - f,
    )


@wrong("power_sample", WALK, "where 6 do")
def judges_x_again(logprob, propose, start, alpha, steps, generator):
    """ln p(x) is computed in each step: twice the forward passes."""
    x = start
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        ratio = alpha * (logprob(y) - logprob(x)) + backward - forward
        if torch.rand((), generator=generator) < math.exp(min(0.0, ratio)):
            x = y
    return x


@wrong("power_sample", WALK, "should propose from 0, 1, 1, 3, 3")
def keeps_the_old_logprob(logprob, propose, start, alpha, steps, generator):
    """x moves on, ln p(x) stays that of the start."""
    x, logprob_x = start, logprob(start)
    best_x = logprob_x
    for _ in range(steps):
        y, forward, backward = propose(start if x == (1,) else x, generator)
        ratio = alpha * (logprob(y) - best_x) + backward - forward
        if torch.rand((), generator=generator) < math.exp(min(0.0, ratio)):
            x = y
    return x


@wrong("power_sample", WALK, "should end at (4,)")
def one_step_too_few(logprob, propose, start, alpha, steps, generator):
    """The last proposal is made, and dropped."""
    before = power_(logprob, propose, start, alpha, max(steps - 1, 0), generator)
    if steps > 1:
        logprob(propose(before, generator)[0])
        return before
    return power_(logprob, propose, start, alpha, steps, generator)


@wrong("power_sample", WALK, "proposed more than 5 times")
def until_so_many_are_accepted(logprob, propose, start, alpha, steps, generator):
    """A rejected step is tried again: those that stay count as steps, too."""
    x, logprob_x, accepted, tried = start, logprob(start), 0, 0
    while accepted < steps and tried < 50:
        y, forward, backward = propose(x, generator)
        logprob_y, tried = logprob(y), tried + 1
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if torch.rand((), generator=generator) < math.exp(min(0.0, ratio)):
            x, logprob_x, accepted = y, logprob_y, accepted + 1
        elif steps == 1:
            break
    return x


@wrong("power_sample", "test_all_chance_comes_from_the_generator", "global generator")
def draws_from_the_global_generator(logprob, propose, start, alpha, steps, generator):
    """torch.rand without the generator."""
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if torch.rand(()) < math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x


@wrong("power_sample", "test_all_chance_comes_from_the_generator", "the same walk")
def draws_from_python(logprob, propose, start, alpha, steps, generator):
    """Python's own random numbers."""
    x, logprob_x = start, logprob(start)
    for _ in range(steps):
        y, forward, backward = propose(x, generator)
        logprob_y = logprob(y)
        ratio = alpha * (logprob_y - logprob_x) + backward - forward
        if random.random() < math.exp(min(0.0, ratio)):
            x, logprob_x = y, logprob_y
    return x


@wrong(
    "power_sample", "test_texts_are_drawn_from_p_to_the_power_of_alpha", "alpha = 3.0"
)
def the_likeliest_so_far(logprob, propose, start, alpha, steps, generator):
    """Returns the best text of the walk, not where it stands."""
    seen = []

    def kept(x):
        seen.append((logprob(x), x))
        return seen[-1][0]

    last = power_(kept, propose, start, alpha, steps, generator)
    return max(seen)[1] if steps > 5 else last
