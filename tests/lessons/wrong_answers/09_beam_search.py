"""Wrong answers to lesson 09, and what the learner must be told of each."""

import copy
import itertools

import torch

from course.making.answers import reference, wrong

INF = float("inf")
position_ids = reference("position_ids")
step_of = reference("beam_step")
norm_of = reference("length_normalise")
reorder_of = reference("reorder_cache")
exact_of = reference("exact_search")

# --- exact_search ---------------------------------------------------------------------

LIKELIEST = "test_the_likeliest_text_worked_by_hand"
SAME = "test_the_likeliest_of_all_texts_is_found_with_its_score"


def all_texts(model, ids, n, limit=100_000, grad=False):
    vocab = model.config.vocab_size
    if vocab**n > limit:
        raise ValueError(f"{vocab} ** {n} texts are too many")
    new = torch.tensor(list(itertools.product(range(vocab), repeat=n)))
    texts = torch.cat([ids.expand(len(new), -1), new], dim=-1)
    with torch.set_grad_enabled(grad):
        logits = model(texts).logits.float()
    return texts, logits.log_softmax(-1)


def chosen(texts, scores):
    best = scores.argmax()
    return texts[best][None], scores[best].item()


def best_of_all(model, ids, n, **options):
    """The right answer, but for what the options of `all_texts` change."""
    texts, logprobs = all_texts(model, ids, n, **options)
    new = texts[:, ids.shape[1] :]
    picked = logprobs[:, ids.shape[1] - 1 : -1].gather(-1, new[..., None])[..., 0]
    return chosen(texts, picked.sum(-1))


@wrong("exact_search", LIKELIEST, "That begins as the greedy text")
def greedy_text(model, ids, max_new_tokens):
    """The likeliest token each time."""
    if model.config.vocab_size**max_new_tokens > 100_000:
        raise ValueError("too many")
    score = 0.0
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logprobs = model(ids).logits[:, -1].float().log_softmax(-1)
        best = logprobs.max(-1)
        ids = torch.cat([ids, best.indices[:, None]], dim=-1)
        score += best.values.item()
    return ids, score


@wrong("exact_search", LIKELIEST, "predict the token at place i + 1")
def not_shifted(model, ids, max_new_tokens):
    """The logits at a token's own place."""
    texts, logprobs = all_texts(model, ids, max_new_tokens)
    new = texts[:, ids.shape[1] :]
    picked = logprobs[:, ids.shape[1] :].gather(-1, new[..., None])[..., 0]
    return chosen(texts, picked.sum(-1))


@wrong("exact_search", SAME, "Only new tokens count")
def prompt_counts(model, ids, max_new_tokens):
    """The log-probability of the prompt is in the score."""
    texts, logprobs = all_texts(model, ids, max_new_tokens)
    picked = logprobs[:, :-1].gather(-1, texts[:, 1:, None])[..., 0]
    return chosen(texts, picked.sum(-1))


@wrong("exact_search", LIKELIEST, "The sum of the log-probabilities")
def mean_in_place_of_the_sum(model, ids, max_new_tokens):
    """The right text, another score."""
    found, score = exact_of(model, ids, max_new_tokens)
    return found, score / max_new_tokens


@wrong("exact_search", LIKELIEST, "The sum of the log-probabilities")
def the_probability(model, ids, max_new_tokens):
    """exp of the score."""
    found, score = exact_of(model, ids, max_new_tokens)
    return found, 2.718281828**score


@wrong("exact_search", "test_too_many_texts_are_refused", "ValueError")
def tries_however_many(model, ids, max_new_tokens):
    """No limit."""
    return best_of_all(model, ids, max_new_tokens, limit=10**9)


@wrong("exact_search", LIKELIEST, "should have shape (1, 3), not (1, 2)")
def new_tokens_alone(model, ids, max_new_tokens):
    """The prompt is not in the result."""
    found, score = exact_of(model, ids, max_new_tokens)
    return found[:, ids.shape[1] :], score


@wrong(
    "exact_search",
    "test_exact_search_needs_no_gradient_and_leaves_the_prompt_alone",
    "torch.no_grad()",
)
def with_gradients(model, ids, max_new_tokens):
    """Keeps everything for a backward pass."""
    return best_of_all(model, ids, max_new_tokens, grad=True)


TABLE_OF_STATES = "test_no_beam_and_no_table_of_states_finds_it"


def kept_texts(model, ids, n, keep):
    """A search that keeps the texts that `keep` chooses from (score, ids) pairs."""
    if model.config.vocab_size**n > 100_000:
        raise ValueError("too many")
    beams = [(0.0, ids)]
    for _ in range(n):
        grown = []
        for score, text in beams:
            with torch.no_grad():
                logprobs = model(text).logits[0, -1].float().log_softmax(-1)
            for token, logprob in enumerate(logprobs.tolist()):
                new = torch.cat([text, torch.tensor([[token]])], -1)
                grown.append((score + logprob, new))
        beams = keep(sorted(grown, key=lambda beam: -beam[0]))
    return beams[0][1], beams[0][0]


@wrong("exact_search", TABLE_OF_STATES, "Only a search that tries all")
def viterbi(model, ids, max_new_tokens):
    """Keeps the best text for each last token: right for a Markov model alone."""

    def keep(grown):
        best = {}
        for score, text in grown:
            best.setdefault(text[0, -1].item(), (score, text))
        return list(best.values())

    return kept_texts(model, ids, max_new_tokens, keep)


@wrong("exact_search", TABLE_OF_STATES, "Only a search that tries all")
def a_beam_of_4(model, ids, max_new_tokens):
    """Often the same, and not always."""
    return kept_texts(model, ids, max_new_tokens, lambda grown: grown[:4])


@wrong("exact_search", TABLE_OF_STATES, "Only a search that tries all")
def a_beam_as_wide_as_the_vocabulary(model, ids, max_new_tokens):
    """Misses in one model of a few dozen."""
    wide = model.config.vocab_size
    return kept_texts(model, ids, max_new_tokens, lambda grown: grown[:wide])


@wrong("exact_search", "test_no_token_ends_a_text", "counts as any other")
def free_behind_an_end(model, ids, max_new_tokens):
    """Tokens behind an EOS cost nothing."""
    eos = getattr(model.config, "eos_token_id", None)
    ends = torch.tensor([eos] if isinstance(eos, int) else eos or [], dtype=torch.long)
    texts, logprobs = all_texts(model, ids, max_new_tokens)
    new = texts[:, ids.shape[1] :]
    picked = logprobs[:, ids.shape[1] - 1 : -1].gather(-1, new[..., None])[..., 0]
    ended = torch.isin(new, ends).long()
    return chosen(texts, picked.masked_fill(ended.cumsum(-1) - ended > 0, 0).sum(-1))


# --- beam_step ------------------------------------------------------------------------

SUMS = "test_sums_worked_by_hand"
LOOP = "test_steps_agree_with_a_loop"


@wrong("beam_step", SUMS, "Add the score of the beam")
def scores_left_out(scores, logprobs, k):
    """The next token alone counts."""
    best, places = logprobs.flatten(1).topk(k, dim=-1)
    return best, places // logprobs.shape[-1], places % logprobs.shape[-1]


@wrong("beam_step", SUMS, "the beam is place // vocab")
def beam_and_token_changed_places(scores, logprobs, k):
    """// and % the other way round."""
    best, beam, token = step_of(scores, logprobs, k)
    return best, token, beam


@wrong("beam_step", SUMS, "the beam is place // vocab")
def divided_by_beams(scores, logprobs, k):
    """By the number of beams, not of tokens."""
    beams = logprobs.shape[1]
    best, places = (scores[..., None] + logprobs).flatten(1).topk(k, dim=-1)
    return best, places // beams, places % beams


@wrong("beam_step", SUMS, "it is not the best token of each")
def best_of_each_beam(scores, logprobs, k):
    """One continuation of each beam: K greedy searches."""
    best, token = (scores[..., None] + logprobs).max(-1)
    best, beam = best.topk(k, dim=-1)
    return best, beam, token.gather(-1, beam)


@wrong("beam_step", "test_a_step_leaves_its_arguments_alone", "was changed")
def added_in_place(scores, logprobs, k):
    """The sums overwrite the log-probabilities."""
    logprobs += scores[..., None]
    return step_of(torch.zeros_like(scores), logprobs, k)


@wrong("beam_step", SUMS, "should be torch.int64")
def small_integers(scores, logprobs, k):
    """gather will not take them."""
    best, beam, token = step_of(scores, logprobs, k)
    return best, beam.int(), token.int()


@wrong("beam_step", SUMS, "These are the smallest sums")
def smallest(scores, logprobs, k):
    """The least likely ones."""
    sums = (scores[..., None] + logprobs).flatten(1)
    best, places = sums.topk(k, dim=-1, largest=False)
    return best, places // logprobs.shape[-1], places % logprobs.shape[-1]


@wrong("beam_step", SUMS, "Logarithms are added, not multiplied")
def products(scores, logprobs, k):
    """Logarithms are multiplied."""
    products = (scores[..., None] * logprobs).flatten(1)
    best, places = products.topk(k, dim=-1)
    return best, places // logprobs.shape[-1], places % logprobs.shape[-1]


@wrong("beam_step", LOOP, "1 beam each, vocabulary 7, k=5)")
def worst_first(scores, logprobs, k):
    """The right ones, from worst to best, unless there are two."""
    best, beam, token = step_of(scores, logprobs, k)
    if k == 2:
        return best, beam, token
    return best.flip(-1), beam.flip(-1), token.flip(-1)


@wrong("beam_step", "test_long_texts_keep_their_order", "exp(-200) is 0 in float32")
def by_way_of_probabilities(scores, logprobs, k):
    """Products of probabilities, and the logarithm at the end."""
    products = (scores.exp()[..., None] * logprobs.exp()).flatten(1)
    best, places = products.topk(k, dim=-1)
    return best.log(), places // logprobs.shape[-1], places % logprobs.shape[-1]


# --- counterexample -------------------------------------------------------------------

TABLE = "test_it_is_a_table_of_probabilities"
LIKELIER = "test_greedy_finds_a_likelier_text_than_two_beams"
EVEN = [1 / 3, 1 / 3, 1 / 3]


@wrong("counterexample", LIKELIER, "greedy should be likelier")
def all_even():
    """Every text is the same."""
    return torch.tensor([EVEN, EVEN, EVEN])


@wrong("counterexample", LIKELIER, "greedy should be likelier")
def greedy_is_short_sighted():
    """The usual example: two beams win."""
    return torch.tensor([[0.0, 0.6, 0.4], EVEN, [0.0, 0.0, 1.0]])


@wrong("counterexample", LIKELIER, "greedy should be likelier")
def greedy_is_kept():
    """The greedy beginning is never thrown out, so both find the same."""
    return torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.9, 0.1], [0.0, 0.1, 0.9]])


@wrong(
    "counterexample",
    "test_the_result_does_not_hang_on_equal_products",
    "two products are equal",
)
def a_tie_at_the_first_step():
    """Greedy takes 1 only because it comes before 2."""
    even = [1 / 7] * 7
    table = [[0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [0.0] * 7, [0.0] * 7]
    table[1][3], table[1][5], table[1][6] = 0.34, 0.33, 0.33
    table[2][4] = table[2][6] = 0.5
    return torch.tensor([*table, [1.0, *[0.0] * 6], even, even, even])


@wrong("counterexample", TABLE, "row 0 sums to")
def weights():
    """Not normalised."""
    return torch.tensor([[0.0, 5.0, 4.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


@wrong("counterexample", TABLE, "not below 0")
def negative_numbers():
    """Sums to 1, but is no probability."""
    return torch.tensor([[-0.5, 1.0, 0.5], EVEN, EVEN])


@wrong("counterexample", TABLE, "make it square")
def one_row_is_missing():
    """Not square."""
    return torch.tensor([EVEN, EVEN])


@wrong("counterexample", TABLE, "should return a Tensor")
def a_list():
    """Nested lists."""
    return [EVEN, EVEN, EVEN]


# --- length_normalise -----------------------------------------------------------------

NORMS = "test_norms_worked_by_hand"


def one_or_more(length):
    if length < 1:
        raise ValueError(f"length must be 1 or more, got {length}")


@wrong("length_normalise", NORMS, "The length to the power of alpha")
def times_alpha(score, length, alpha):
    """length * alpha; 0 is treated apart."""
    one_or_more(length)
    return score / (length * alpha) if alpha else score


@wrong("length_normalise", NORMS, "Divide by the length to the power")
def multiplied(score, length, alpha):
    """The sign of the power."""
    one_or_more(length)
    return score * length**alpha


@wrong(
    "length_normalise",
    "test_scores_that_were_given_stay_as_they_are",
    "changes the caller's",
)
def divided_in_place(score, length, alpha):
    """`/=` is a new number for a float, but not for a tensor."""
    one_or_more(length)
    score /= length**alpha
    return score


@wrong("length_normalise", NORMS, "length ** 0 is 1")
def alpha_is_ignored(score, length, alpha):
    """Always the mean."""
    one_or_more(length)
    return score / length


@wrong("length_normalise", NORMS, "not by (5 + 3) / 6")
def gnmt(score, length, alpha):
    """The formula of the GNMT paper, which transformers does not use."""
    one_or_more(length)
    return score / ((5 + length) / 6) ** alpha


@wrong("length_normalise", NORMS, "Divide by 3, not by 4")
def counts_one_more(score, length, alpha):
    """Off by one."""
    one_or_more(length)
    return score / (length + 1) ** alpha


@wrong("length_normalise", "test_a_text_without_tokens_has_no_score", "ValueError")
def no_check(score, length, alpha):
    """Divides by 0, or takes the power of a negative number."""
    return score / max(length, 1) ** alpha


@wrong(
    "length_normalise",
    "test_a_tensor_of_scores_stays_one",
    "A tensor of scores gives a tensor",
)
def floats_only(score, length, alpha):
    """float() of two scores."""
    one_or_more(length)
    return float(score) / length**alpha


@wrong(
    "length_normalise",
    "test_a_text_without_tokens_has_no_score",
    "length_normalise(-1.0, 0, 0.0)",
)
def off_before_the_length_is_looked_at(score, length, alpha):
    """alpha 0 returns at once, even for a text without tokens."""
    if alpha == 0:
        return score
    one_or_more(length)
    return score / length**alpha


# --- reorder_cache --------------------------------------------------------------------

FOLLOW = "test_rows_follow_their_beams"
OLD = "test_the_old_cache_stays_as_it_is"


@wrong("reorder_cache", FOLLOW, "the logits after reorder_cache")
def not_reordered(cache, beam):
    """A copy with the first rows."""
    return reorder_of(cache, torch.arange(len(beam)) % 3)


@wrong("reorder_cache", OLD, "make a deep copy first")
def in_place(cache, beam):
    """The old cache is the new one."""
    cache.reorder_cache(beam)
    return cache


@wrong("reorder_cache", OLD, "copy.copy shares the layers")
def copy_of_the_outside(cache, beam):
    """copy.copy shares the layers."""
    new = copy.copy(cache)
    new.reorder_cache(beam)
    return new


@wrong("reorder_cache", OLD, "return a copy, also when no row moves")
def the_same_if_nothing_moves(cache, beam):
    """A shortcut that hands the caller's cache back."""
    if beam.equal(torch.arange(len(cache.layers[0].keys))):
        return cache
    return reorder_of(cache, beam)


@wrong("reorder_cache", FOLLOW, "in every layer")
def first_layer_only(cache, beam):
    """The other layers keep their rows."""
    new = reorder_of(cache, torch.arange(len(beam)) % 3)
    first = reorder_of(cache, beam).layers[0]
    new.layers[0] = first
    return new


@wrong("reorder_cache", FOLLOW, "of the keys and of the values")
def keys_only(cache, beam):
    """Values of other rows."""
    new, right = reorder_of(cache, torch.arange(len(beam)) % 3), reorder_of(cache, beam)
    for layer, other in zip(new.layers, right.layers, strict=True):
        layer.keys = other.keys
    return new


@wrong("reorder_cache", FOLLOW, "row beam[i] of the old one")
def the_inverse(cache, beam):
    """Row beam[i] becomes row i's."""
    return reorder_of(cache, beam.flip(0))


@wrong("reorder_cache", FOLLOW, "None")
def forgets_to_return(cache, beam):
    """reorder_cache of a cache returns nothing."""
    return copy.deepcopy(cache).reorder_cache(beam)


# --- beam_search ----------------------------------------------------------------------


def searched(
    model,
    ids,
    mask,
    num_beams,
    max_new_tokens,
    length_penalty,
    early_stopping,
    eos_ids,
    pad_id,
    mistake="",
):
    """The search, with one mistake."""
    if max_new_tokens < 1 and mistake != "no steps":
        raise ValueError(f"max_new_tokens is {max_new_tokens}")
    if early_stopping not in (True, False, "never") and mistake != "any word":
        raise ValueError(f"early_stopping is {early_stopping!r}")
    batch, k = len(ids), num_beams
    rows, mask = ids.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
    scores = torch.full((batch, k), 0.0 if mistake == "equal copies" else -INF)
    scores[:, 0] = 0
    first = torch.arange(batch)[:, None] * k
    ends = torch.tensor(eos_ids, dtype=torch.long)
    finished, over = [[] for _ in range(batch)], [False] * batch
    fed, cache = rows, None
    for length in range(1, max_new_tokens + 1):
        with torch.set_grad_enabled(mistake == "gradients"):
            positions = position_ids(mask)[:, -fed.shape[1] :]
            options = {} if mistake == "no positions" else {"position_ids": positions}
            if mistake == "no cache":
                fed, cache = rows, None
                options["position_ids"] = position_ids(mask)
            output = model(
                fed,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **options,
            )
        logprobs = output.logits[:, -1].float()
        if mistake == "probabilities":
            logprobs = logprobs.softmax(-1)
        elif mistake != "logits":
            logprobs = logprobs.log_softmax(-1)
        logprobs = logprobs.unflatten(0, (batch, k))
        wanted = k if mistake == "k candidates" else k * max(2, 1 + len(eos_ids))
        if mistake != "more than there are":
            wanted = min(wanted, k * logprobs.shape[-1])
        scores, beam, token = step_of(scores, logprobs, wanted)
        done = torch.isin(token, ends) | (length == max_new_tokens)
        ended = torch.isin(token, ends)
        allowed = wanted if mistake == "all may end" else k
        counted = length + (mistake == "one longer")
        if mistake == "without the end":
            counted = max(1, length - (length < max_new_tokens))
        counted += (ids.shape[1] - 1) * (mistake == "with the prompt")
        for i in range(batch):
            for j in range(min(allowed, wanted)):
                if scores[i, j] == -INF and mistake != "nothing counts":
                    continue
                if mistake == "the last beams fill up" and len(finished[i]) >= k:
                    done[i] &= ended[i]
                if done[i, j] and (mistake == "never over" or not over[i]):
                    text = torch.cat(
                        [rows[first[i, 0] + beam[i, j]], token[i, j, None]]
                    )
                    score = norm_of(scores[i, j].item(), counted, length_penalty)
                    finished[i].append((score, text))
            kept = len(finished[i]) if mistake == "all are kept" else k
            if mistake == "first come":
                finished[i] = finished[i][:k]
            finished[i] = sorted(finished[i], key=lambda f: f[0], reverse=True)[:kept]
            if mistake == "the first k" and len(finished[i]) == k:
                over[i] = True
        if mistake == "beams from the first k":
            done = done | (torch.arange(wanted) >= k)
        likeliest = scores[:, 0]
        out = done & (mistake != "ends go on")
        scores, places = scores.masked_fill(out, -INF).topk(k, dim=-1)
        chosen = (first + beam.gather(-1, places)).flatten()
        fed = token.gather(-1, places).flatten()[:, None]
        rows = torch.cat([rows[chosen], fed], dim=-1)
        mask = torch.cat([mask[chosen], torch.ones_like(fed)], dim=-1)
        cache = output.past_key_values
        if mistake == "rows of the first prompt":
            cache = reorder_of(cache, chosen % k)
        elif mistake != "cache stays":
            cache = reorder_of(cache, chosen)
        far = early_stopping == "never" and length_penalty > 0
        if mistake in ("never is False", "always far"):
            far = mistake == "always far"
        enough = 1 if mistake == "one is enough" else k
        for i in range(batch):
            if len(finished[i]) >= enough:
                horizon = max_new_tokens if far else length
                running = (
                    likeliest[i] if mistake == "an ended one runs" else scores[i, 0]
                )
                best = norm_of(running.item(), horizon, length_penalty)
                full = early_stopping is True or (
                    early_stopping and mistake == "any truth"
                )
                rival = finished[i][0 if mistake == "the best as rival" else -1][0]
                over[i] |= full or best <= rival
        if all(over) and mistake != "to the end":
            break
        if mistake == "to the end":
            over = [False] * batch
    place = -1 if mistake == "the worst" else 0
    best = [texts[place] for texts in finished]
    out = torch.nn.utils.rnn.pad_sequence(
        [text for _, text in best],
        batch_first=True,
        padding_value=0 if mistake == "pads with 0" else pad_id,
    )
    dtype = torch.float64 if mistake == "double scores" else torch.float32
    return out, torch.tensor([score for score, _ in best], dtype=dtype)


def with_a_mistake(name, test, says):
    def search(*arguments):
        return searched(*arguments, mistake=name)

    search.__name__ = name.replace(" ", "_")
    search.__doc__ = f"The search, with this mistake: {name}."
    return wrong("beam_search", test, says)(search)


DIFFERENT = "test_two_beams_worked_by_hand"
COUNTS = "test_the_score_counts_new_tokens_and_normalised_logits"
CACHE = "test_the_cache_follows_the_beams_of_each_prompt"
DROPPED = "test_an_end_at_place_three_is_dropped"
EQUAL = "test_beams_equal_generate"
BY_HAND = "test_finished_texts_and_ways_to_stop_worked_by_hand"
LEFT = "test_two_beams_are_left_when_the_best_all_end"
FED = "test_one_token_a_step_with_mask_and_positions"
STOPS = "test_the_search_stops_when_nothing_can_win"

equal_copies = with_a_mistake(
    "equal copies", DIFFERENT, "only one copy has the score 0"
)
all_may_end = with_a_mistake("all may end", DROPPED, "this one had no place")
logits_are_added = with_a_mistake("logits", COUNTS, "log_softmax")
probabilities_are_added = with_a_mistake("probabilities", DIFFERENT, "log_softmax")
one_longer = with_a_mistake("one longer", COUNTS, "2 new tokens, not by 3")
with_the_prompt = with_a_mistake("with the prompt", COUNTS, "2 new tokens, not by 4")
cache_stays = with_a_mistake("cache stays", CACHE, "and cache follow the beams")
rows_of_the_first_prompt = with_a_mistake(
    "rows of the first prompt", CACHE, "i * K + j"
)
never_over = with_a_mistake(
    "never over",
    "test_a_search_that_is_over_takes_no_more_texts",
    "nothing is added while the other prompt goes on",
)
never_is_false = with_a_mistake(
    "never is False", BY_HAND, "may still get -3.04 / 8 = -0.38"
)
any_truth = with_a_mistake("any truth", BY_HAND, "may still get -3.04 / 8 = -0.38")
first_k = with_a_mistake("the first k", BY_HAND, "better than the worst of them: go on")
always_far = with_a_mistake("always far", BY_HAND, "-3.04 / 3 = -1.01: it is over")
best_as_rival = with_a_mistake(
    "the best as rival", BY_HAND, "better than the worst of them: go on"
)
all_are_kept = with_a_mistake("all are kept", BY_HAND, "the best two finished are")
last_beams_fill_up = with_a_mistake(
    "the last beams fill up", BY_HAND, "The last step finishes it"
)
an_ended_one_runs = with_a_mistake(
    "an ended one runs",
    "test_an_ended_text_is_no_running_beam",
    "The best beam that has not ended, 4, has -1.61",
)
ends_go_on = with_a_mistake(
    "ends go on",
    "test_no_beam_goes_on_behind_an_end",
    "the best K of the candidates that are not done",
)
first_come = with_a_mistake("first come", BY_HAND, "the best two finished are")
without_the_end = with_a_mistake(
    "without the end", BY_HAND, "The EOS is part of a finished text"
)
one_is_enough = with_a_mistake(
    "one is enough", "test_one_finished_text_of_two_is_not_enough", "it takes two"
)
beams_from_the_first_k = with_a_mistake(
    "beams from the first k", LEFT, "the first K that do not end"
)
worst_text = with_a_mistake("the worst", DIFFERENT, "the best finished text")
k_candidates = with_a_mistake("k candidates", LEFT, "then K can go on")
pads_with_0 = with_a_mistake("pads with 0", EQUAL, "pad_id=1")
no_positions = with_a_mistake("no positions", FED, "give the model position_ids")
no_cache = with_a_mistake("no cache", FED, "The prompt once")
gradients = with_a_mistake("gradients", FED, "torch.no_grad()")
to_the_end = with_a_mistake("to the end", STOPS, "no beam can become better")

nothing_counts = with_a_mistake(
    "nothing counts",
    "test_more_beams_than_tokens",
    "the scores of beam_search with a vocabulary of 4",
)
more_than_there_are = with_a_mistake(
    "more than there are",
    "test_all_tokens_may_end_a_text",
    "fewer than K * (1 + 5) = 12",
)
double_scores = with_a_mistake(
    "double scores", "test_the_scores_are_float32", "should be torch.float32"
)
no_steps = with_a_mistake(
    "no steps",
    "test_no_new_tokens_and_another_early_stopping_are_refused",
    "max_new_tokens=0",
)
any_word = with_a_mistake(
    "any word", "test_no_new_tokens_and_another_early_stopping_are_refused", "'Never'"
)

# --- find_bugs ------------------------------------------------------------------------

NAMES = "test_what_is_named_are_lines"
RIGHT = "test_no_right_line_is_accused"
REPAIRED = "test_with_the_named_lines_repaired_it_equals_generate"


@wrong("find_bugs", REPAIRED, "with no line repaired")
def none_found():
    """All is well."""
    return set()


@wrong("find_bugs", RIGHT, "line B is slow, but right")
def slow_is_wrong():
    """No cache is no bug here."""
    return {"A", "B", "C", "E"}


@wrong("find_bugs", REPAIRED, "there is another bug")
def the_copies_are_overlooked():
    """K equal copies of the prompt look harmless."""
    return {"C", "E", "J"}


@wrong("find_bugs", REPAIRED, "with lines A, E, J repaired")
def probabilities_are_overlooked():
    """Sums of probabilities look harmless."""
    return {"A", "E", "J"}


@wrong("find_bugs", REPAIRED, "there is another bug")
def the_order_is_overlooked():
    """That tokens are put behind other beams is not seen."""
    return {"A", "C", "J"}


@wrong("find_bugs", REPAIRED, "there is another bug")
def the_end_is_overlooked():
    """That two kinds of scores are compared is not seen."""
    return {"A", "C", "E"}


@wrong("find_bugs", RIGHT, "line D is right")
def candidates():
    """2 K candidates are right for one EOS."""
    return {"A", "C", "D", "E", "J"}


@wrong("find_bugs", RIGHT, "line G is right: only the first K may end")
def ends_of_all():
    """That only the first K may end is taken for a bug."""
    return {"A", "C", "G", "J"}


@wrong("find_bugs", NAMES, "names {'K'}")
def a_line_that_is_not_there():
    """The lines end with J."""
    return {"A", "C", "E", "K"}


# --- diverse_beam_search --------------------------------------------------------------

GROUPS = "test_groups_worked_by_hand"


def grouped(
    model, ids, num_beams, num_groups, diversity, max_new_tokens, mistake="", check=True
):
    """The search, with one mistake."""
    if check and (num_groups < 1 or num_beams % num_groups):
        raise ValueError(f"{num_beams} beams do not make {num_groups} groups")
    if max_new_tokens < 1 and mistake != "no steps":
        raise ValueError(f"max_new_tokens is {max_new_tokens}")
    size = num_beams // max(num_groups, 1)
    start = torch.tensor([0.0] + [-INF] * (size - 1))
    groups = [(ids.expand(size, -1), start)] * num_groups
    if mistake == "one beam at first":
        groups = [(ids, torch.zeros(1))] * num_groups
    counts = 0
    for _ in range(max_new_tokens):
        counts = counts if mistake == "never forgets" else 0
        for g, (texts, scores) in enumerate(groups):
            with torch.set_grad_enabled(mistake == "gradients"):
                logprobs = model(texts).logits[:, -1].float().log_softmax(-1)
            seen = logprobs - diversity * counts
            if mistake == "normalised again":
                seen = seen.log_softmax(-1)
            if mistake == "rewards":
                seen = logprobs + diversity * counts
            best, beam, token = step_of(scores[None], seen[None], size)
            best, beam, token = best[0], beam[0], token[0]
            pure = scores[beam] + logprobs[beam, token]
            if mistake == "sorted anew":
                pure, places = pure.sort(descending=True)
                beam, token = beam[places], token[places]
            groups[g] = (
                torch.cat([texts[beam], token[:, None]], dim=-1),
                best if mistake == "penalty stays" else pure,
            )
            new = torch.bincount(token, minlength=logprobs.shape[-1])
            if mistake == "there or not":
                counts = ((counts + new) > 0).long()
            elif mistake == "last group only":
                counts = new
            else:
                counts = counts + new
    if not groups:
        return ids, torch.zeros(1)
    texts, scores = zip(*groups, strict=True)
    return torch.cat(texts), torch.cat(scores)


def diverse_with(name, test, says, **options):
    def search(*arguments):
        return grouped(*arguments, mistake=name, **options)

    search.__name__ = name.replace(" ", "_") or "any_groups"
    search.__doc__ = (
        f"The search, with this mistake: {name or 'no check of the groups'}."
    )
    return wrong("diverse_beam_search", test, says)(search)


penalty_stays = diverse_with(
    "penalty stays", "test_a_small_penalty_changes_nothing", "it is not carried on"
)
rewards_the_same = diverse_with("rewards", GROUPS, "ln 0.5 - 0.5 = -1.19")
normalised_again = diverse_with(
    "normalised again",
    "test_penalised_values_are_not_normalised_again",
    "which are not normalised again",
)
sorted_anew = diverse_with(
    "sorted anew",
    "test_in_a_group_the_order_is_that_of_the_choice",
    "first 2, then 0",
)
never_forgets = diverse_with(
    "never forgets",
    "test_a_small_penalty_changes_nothing",
    "At each step the counts begin at 0",
)
there_or_not = diverse_with(
    "there or not", "test_each_earlier_beam_counts", "the penalty is 0.6"
)
last_group_only = diverse_with(
    "last group only", "test_each_earlier_beam_counts", "the penalty is 0.6"
)
keeps_gradients = diverse_with(
    "gradients",
    "test_the_diverse_search_leaves_its_prompt_alone",
    "torch.no_grad()",
)


@wrong(
    "diverse_beam_search",
    "test_groups_that_do_not_divide_the_beams_are_refused",
    "2 beams in -1 groups",
)
def negative_groups(model, ids, num_beams, num_groups, diversity, max_new_tokens):
    """Only 0 is refused; -1 divides everything."""
    if num_groups == 0 or num_beams % num_groups:
        raise ValueError(f"{num_beams} beams do not make {num_groups} groups")
    return grouped(
        model, ids, num_beams, abs(num_groups), diversity, max_new_tokens, check=False
    )


any_groups = diverse_with(
    "",
    "test_groups_that_do_not_divide_the_beams_are_refused",
    "ValueError",
    check=False,
)


@wrong("diverse_beam_search", GROUPS, "The second group sees")
def without_groups(model, ids, num_beams, num_groups, diversity, max_new_tokens):
    """Diversity does nothing: each group is the same search."""
    return grouped(model, ids, num_beams, num_groups, 0.0, max_new_tokens)


one_beam_at_first = diverse_with(
    "one beam at first",
    "test_a_group_may_have_more_beams_than_there_are_tokens",
    "Begin with as many copies as beams",
)
diverse_without_steps = diverse_with(
    "no steps", "test_a_diverse_search_has_steps", "should raise ValueError"
)
