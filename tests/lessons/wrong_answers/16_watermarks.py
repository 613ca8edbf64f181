"""Wrong answers to lesson 16, and what the learner must be told of each."""

import itertools
import math

import torch
from transformers import LogitsProcessor

from course.making.answers import reference, wrong

green_ids = reference("green_ids")
Watermark = reference("Watermark")
z_score = reference("z_score")
detect = reference("detect")
p_value = reference("p_value")
gumbel_pick = reference("gumbel_pick")
gumbel_score = reference("gumbel_score")
tournament = reference("tournament")
multinomial_from_scratch = reference("multinomial_from_scratch")
seed_of = gumbel_pick.__globals__["seed_of"]

# --- green_ids ------------------------------------------------------------------------

SMALL = "test_green_ids_behind_a_small_seed"
THEIRS = "test_green_ids_are_those_of_transformers"
ALONE = "test_a_green_list_needs_no_other_draws"


def shuffled(seed, vocab_size):
    generator = torch.Generator().manual_seed(seed % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator)


def checked(gamma):
    if not 0 < gamma < 1:
        raise ValueError(gamma)


@wrong("green_ids", SMALL, "the first are green")
def the_last_ones(previous_id, key, vocab_size, gamma):
    """Takes the ids from the end of the shuffle."""
    checked(gamma)
    ids = shuffled(key * previous_id, vocab_size)
    return ids[vocab_size - int(vocab_size * gamma) :]


@wrong("green_ids", SMALL, "The seed is the product")
def the_sum_as_seed(previous_id, key, vocab_size, gamma):
    """Adds the key."""
    checked(gamma)
    return shuffled(key + previous_id, vocab_size)[: int(vocab_size * gamma)]


@wrong("green_ids", SMALL, "in another order")
def sorted_ids(previous_id, key, vocab_size, gamma):
    """Sorts what it found."""
    checked(gamma)
    ids = shuffled(key * previous_id, vocab_size)[: int(vocab_size * gamma)]
    return ids.sort().values


@wrong("green_ids", SMALL, "should have shape (2,)")
def rounded_up(previous_id, key, vocab_size, gamma):
    """Rounds the number of green ids up."""
    checked(gamma)
    ids = shuffled(key * previous_id, vocab_size)
    return ids[: math.ceil(vocab_size * gamma)]


@wrong("green_ids", SMALL, "should return a Tensor")
def a_list_of_ids(previous_id, key, vocab_size, gamma):
    """Makes a list."""
    return green_ids(previous_id, key, vocab_size, gamma).tolist()


@wrong("green_ids", SMALL, "should have shape")
def a_mask(previous_id, key, vocab_size, gamma):
    """A mask over the vocabulary."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[green_ids(previous_id, key, vocab_size, gamma)] = True
    return mask


@wrong("green_ids", THEIRS, "The remainder by 2**64 - 1 fits")
def without_a_remainder(previous_id, key, vocab_size, gamma):
    """A large product is no seed."""
    checked(gamma)
    generator = torch.Generator().manual_seed(key * previous_id)
    ids = torch.randperm(vocab_size, generator=generator)
    return ids[: int(vocab_size * gamma)]


@wrong("green_ids", THEIRS, "should be")
def another_remainder(previous_id, key, vocab_size, gamma):
    """The remainder by 2 ** 64."""
    checked(gamma)
    generator = torch.Generator().manual_seed(key * previous_id % 2**64)
    ids = torch.randperm(vocab_size, generator=generator)
    return ids[: int(vocab_size * gamma)]


@wrong("green_ids", ALONE, "moved torch's global generator")
def the_global_generator(previous_id, key, vocab_size, gamma):
    """Seeds everybody's generator."""
    checked(gamma)
    torch.manual_seed(key * previous_id % (2**64 - 1))
    return torch.randperm(vocab_size)[: int(vocab_size * gamma)]


ONE_FOR_ALL = torch.Generator().manual_seed(21)


@wrong("green_ids", ALONE, "Seed a generator of your own each time")
def seeded_once(previous_id, key, vocab_size, gamma):
    """One generator that goes on and on."""
    checked(gamma)
    ids = torch.randperm(vocab_size, generator=ONE_FOR_ALL)
    return ids[: int(vocab_size * gamma)]


@wrong("green_ids", "test_a_share_of_nothing_or_of_all_is_refused", "ValueError")
def any_share(previous_id, key, vocab_size, gamma):
    """Takes a share of 0, or of all."""
    ids = shuffled(key * previous_id, vocab_size)
    return ids[: int(vocab_size * gamma)]


# --- Watermark ------------------------------------------------------------------------

ADDED = "test_the_bias_is_added_to_green_logits_alone"
ROWS = "test_each_row_has_its_own_list"


class Marking(LogitsProcessor):
    def __init__(self, bias=2.0, gamma=0.25, key=15485863):
        self.bias, self.gamma, self.key = bias, gamma, key

    def greens(self, previous, scores):
        return green_ids(int(previous), self.key, scores.shape[-1], self.gamma)


@wrong("Watermark", ADDED, "the argument `scores` was changed")
class InPlace(Marking):
    """Adds to the logits that it was given."""

    def __call__(self, input_ids, scores):
        for row, previous in enumerate(input_ids[:, -1]):
            scores[row, self.greens(previous, scores)] += self.bias
        return scores


@wrong("Watermark", ADDED, "green behind the first id")
class FirstId(Marking):
    """Looks at the first id."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, 0]):
            new[row, self.greens(previous, scores)] += self.bias
        return new


@wrong("Watermark", ADDED, "green behind the last but one id")
class LastButOne(Marking):
    """One id too early."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -2:][:, 0]):
            new[row, self.greens(previous, scores)] += self.bias
        return new


@wrong("Watermark", ADDED, "Those are the red ones")
class Red(Marking):
    """Marks the others."""

    def __call__(self, input_ids, scores):
        new = scores + self.bias
        for row, previous in enumerate(input_ids[:, -1]):
            new[row, self.greens(previous, scores)] -= self.bias
        return new


@wrong("Watermark", ADDED, "should be")
class Times(Marking):
    """Multiplies."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1]):
            new[row, self.greens(previous, scores)] *= self.bias
        return new


@wrong("Watermark", ROWS, "Row i has the list behind its own last id")
class OneList(Marking):
    """The list of row 0 for all."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        new[:, self.greens(input_ids[0, -1], scores)] += self.bias
        return new


@wrong("Watermark", "test_what_a_filter_removed_stays_removed", "should be")
class Assigned(Marking):
    """Writes -inf up to a finite number."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1]):
            green = self.greens(previous, scores)
            new[row, green] = new[row, green].clamp(min=-1e4) + self.bias
        return new


@wrong("Watermark", "test_the_dtype_stays", "should be torch.float16")
class AsFloat(Marking):
    """Goes to float32."""

    def __call__(self, input_ids, scores):
        new = (
            scores.float().clone() if scores.dtype != torch.float64 else scores.clone()
        )
        for row, previous in enumerate(input_ids[:, -1]):
            new[row, self.greens(previous, scores)] += self.bias
        return new


@wrong("Watermark", "test_without_arguments_it_is_that_of_transformers", "should be")
class Half(Marking):
    """Half of all ids are green by default."""

    def __init__(self, bias=2.0, gamma=0.5, key=15485863):
        super().__init__(bias, gamma, key)

    def __call__(self, input_ids, scores):
        return Watermark(self.bias, self.gamma, self.key)(input_ids, scores)


@wrong(
    "Watermark",
    "test_generate_writes_what_its_own_watermark_writes",
    "The list changes at each step",
)
class Remembering(Marking):
    """Makes its lists once, at the first step."""

    lists = None

    def __call__(self, input_ids, scores):
        if self.lists is None or len(self.lists) != len(scores):
            self.lists = [self.greens(x, scores) for x in input_ids[:, -1]]
        new = scores.clone()
        for row, green in enumerate(self.lists):
            new[row, green] += self.bias
        return new


@wrong(
    "Watermark",
    "test_generate_writes_what_its_own_watermark_writes",
    "should be a LogitsProcessor",
)
class NoProcessor:
    """Inherits from nothing."""

    def __init__(self, bias=2.0, gamma=0.25, key=15485863):
        self.mark = Watermark(bias, gamma, key)

    def __call__(self, input_ids, scores):
        return self.mark(input_ids, scores)


@wrong("Watermark", "test_marking_draws_nothing", "moved torch's global generator")
class Seeding(Marking):
    """Shuffles with everybody's generator."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1].tolist()):
            torch.manual_seed(self.key * previous % (2**64 - 1))
            ids = torch.randperm(scores.shape[-1])
            new[row, ids[: int(scores.shape[-1] * self.gamma)]] += self.bias
        return new


MADE = {}


@wrong("Watermark", ADDED, "with the key of a Watermark made before")
class OneTableForAll(Marking):
    """Keeps green lists by last id, for all keys."""

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1].tolist()):
            if previous not in MADE:
                MADE[previous] = self.greens(previous, scores)
            new[row, MADE[previous]] += self.bias
        return new


@wrong("Watermark", ADDED, "green ones with gamma=0.25")
class AQuarter(Marking):
    """Forgets its gamma."""

    def greens(self, previous, scores):
        return green_ids(int(previous), self.key, scores.shape[-1], 0.25)

    def __call__(self, input_ids, scores):
        new = scores.clone()
        for row, previous in enumerate(input_ids[:, -1]):
            new[row, self.greens(previous, scores)] += self.bias
        return new


@wrong(
    "Watermark",
    "test_the_arguments_are_bias_and_gamma_and_key_in_that_order",
    "The bias comes first",
)
class GammaFirst(Watermark):
    """Takes gamma before the bias."""

    def __init__(self, gamma=0.25, bias=2.0, key=15485863):
        super().__init__(bias, gamma, key)


# --- z_score --------------------------------------------------------------------------

Z = "test_z_worked_by_hand"


def sensible(green, total, gamma):
    if not 0 < gamma < 1 or total < 1 or not 0 <= green <= total:
        raise ValueError("no score")


@wrong("z_score", Z, "take its square root")
def by_the_variance(green, total, gamma):
    """Divides by the variance."""
    sensible(green, total, gamma)
    return (green - gamma * total) / (total * gamma * (1 - gamma))


@wrong("z_score", Z, "not in standard deviations")
def the_difference(green, total, gamma):
    """Only subtracts."""
    sensible(green, total, gamma)
    return green - gamma * total


@wrong("z_score", Z, "Fewer green than expected is a negative z")
def without_a_sign(green, total, gamma):
    """How far from chance, whichever way."""
    return abs(z_score(green, total, gamma))


@wrong("z_score", Z, "a factor 1 - gamma")
def as_poisson(green, total, gamma):
    """The variance of rare events."""
    sensible(green, total, gamma)
    return (green - gamma * total) / math.sqrt(total * gamma)


@wrong("z_score", Z, "more green than expected is positive")
def the_other_sign(green, total, gamma):
    """Expected minus seen."""
    return -z_score(green, total, gamma)


@wrong("z_score", Z, "need not be whole")
def whole_expectation(green, total, gamma):
    """Rounds the expected number down."""
    sensible(green, total, gamma)
    return (green - int(gamma * total)) / math.sqrt(total * gamma * (1 - gamma))


@wrong("z_score", Z, "should give")
def two_decimals(green, total, gamma):
    """Rounds what it returns."""
    return round(z_score(green, total, gamma), 2)


@wrong("z_score", Z, "should return a float")
def as_a_tensor(green, total, gamma):
    """A tensor."""
    return torch.tensor(z_score(green, total, gamma))


NOTHING = "test_no_score_where_there_is_nothing_to_score"


@wrong("z_score", NOTHING, "z_score(0, 0, 0.25) should raise ValueError")
def nothing_is_zero(green, total, gamma):
    """No tokens, no deviation."""
    return 0.0 if total == 0 else z_score(green, total, gamma)


@wrong("z_score", NOTHING, "should raise ValueError")
def trusting(green, total, gamma):
    """Believes its arguments."""
    if total < 1:
        raise ValueError(total)
    return (green - gamma * total) / math.sqrt(abs(total * gamma * (1 - gamma)))


# --- detect ---------------------------------------------------------------------------

PAIRS = "test_pairs_worked_by_hand"
DETECTOR = "test_z_is_that_of_transformers_detector"


def scored(pairs, key, vocab_size, gamma):
    pairs = list(pairs)
    green = sum(b in green_ids(a, key, vocab_size, gamma) for a, b in pairs)
    return z_score(int(green), len(pairs), gamma)


def answer_of(ids, prompt_length):
    if prompt_length < 0:
        raise ValueError(prompt_length)
    return ids.flatten().tolist()[prompt_length:]


def pairs_of(text):
    return list(zip(text, text[1:], strict=False))


@wrong("detect", PAIRS, "The prompt does not count")
def with_the_prompt(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Scores all that it was given."""
    pairs = pairs_of(ids.flatten().tolist())
    pairs = set(pairs) if ignore_repeated else pairs
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", PAIRS, "The answer's first token is not scored")
def from_the_prompts_last(
    ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True
):
    """The prompt's last id is the context of the answer's first."""
    pairs = pairs_of(answer_of(ids, max(prompt_length - 1, 0)))
    pairs = set(pairs) if ignore_repeated else pairs
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", PAIRS, "count it once")
def every_pair(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Counts repetitions, whatever it was told."""
    return scored(pairs_of(answer_of(ids, prompt_length)), key, vocab_size, gamma)


@wrong("detect", PAIRS, "Here every pair counts")
def always_once(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Counts once, whatever it was told."""
    pairs = set(pairs_of(answer_of(ids, prompt_length)))
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", DETECTOR, "(a, b) is green if b is, behind a")
def backwards(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Asks whether the earlier one is green behind the later one."""
    pairs = [(b, a) for a, b in pairs_of(answer_of(ids, prompt_length))]
    pairs = set(pairs) if ignore_repeated else pairs
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", DETECTOR, "should give")
def each_token_once(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Takes repeated tokens for repeated pairs."""
    seen, pairs = set(), []
    for a, b in pairs_of(answer_of(ids, prompt_length)):
        if b not in seen or not ignore_repeated:
            pairs.append((a, b))
        seen.add(b)
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", DETECTOR, "should give")
def once_in_the_count_of_greens(
    ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True
):
    """Counts green pairs once, and the total with repetitions."""
    pairs = pairs_of(answer_of(ids, prompt_length))
    unique = set(pairs) if ignore_repeated else pairs
    green = sum(b in green_ids(a, key, vocab_size, gamma) for a, b in unique)
    return z_score(int(green), len(pairs), gamma)


@wrong(
    "detect",
    "test_repeated_pairs_are_ignored_by_default_and_a_text_may_be_flat",
    "count it once",
)
def not_by_default(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=False):
    """Another default."""
    return detect(ids, key, vocab_size, gamma, prompt_length, ignore_repeated)


@wrong("detect", "test_without_a_pair_there_is_no_score", "should raise ValueError")
def zero_for_nothing(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """No pair, no z."""
    if ids.numel() - prompt_length < 2:
        return 0.0
    return detect(ids, key, vocab_size, gamma, prompt_length, ignore_repeated)


@wrong(
    "detect", "test_without_a_pair_there_is_no_score", "prompt_length=-2 should raise"
)
def from_behind(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """A negative length slices from behind."""
    pairs = pairs_of(ids.flatten().tolist()[min(prompt_length, 0) - 2 :])
    if prompt_length >= 0:
        return detect(ids, key, vocab_size, gamma, prompt_length, ignore_repeated)
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", PAIRS, "behind another id the same one is another coin")
def each_second_id_once(
    ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True
):
    """A token that comes again does not count, behind whatever."""
    pairs = pairs_of(answer_of(ids, prompt_length))
    if ignore_repeated:
        pairs = {b: (a, b) for a, b in pairs}.values()
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", PAIRS, "count it once")
def repeated_neighbours(
    ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True
):
    """Drops a pair only where the pair before is the same."""
    pairs = pairs_of(answer_of(ids, prompt_length))
    if ignore_repeated:
        pairs = [pair for pair, _ in itertools.groupby(pairs)]
    return scored(pairs, key, vocab_size, gamma)


@wrong("detect", DETECTOR, "That is the z with gamma=0.25")
def a_quarter(ids, key, vocab_size, gamma, prompt_length, ignore_repeated=True):
    """Forgets its gamma."""
    return detect(ids, key, vocab_size, 0.25, prompt_length, ignore_repeated)


# --- p_value --------------------------------------------------------------------------

P = "test_p_worked_by_hand"


def no_nan(*scores):
    if any(x != x for x in scores):
        raise ValueError("NaN")


@wrong("p_value", P, "A score that is equal did as well")
def only_larger(score, null_scores):
    """Ties do not count."""
    no_nan(score, *null_scores)
    return (1 + sum(x > score for x in null_scores)) / (1 + len(null_scores))


@wrong("p_value", P, "The text itself counts, too")
def a_plain_share(score, null_scores):
    """May be 0."""
    no_nan(score, *null_scores)
    if not null_scores:
        return 1.0
    return sum(x >= score for x in null_scores) / len(null_scores)


@wrong("p_value", P, "Larger scores are more of a mark")
def the_other_tail(score, null_scores):
    """Counts those below."""
    no_nan(score, *null_scores)
    return (1 + sum(x <= score for x in null_scores)) / (1 + len(null_scores))


@wrong("p_value", P, "should give")
def one_minus(score, null_scores):
    """What detectors call confidence."""
    return 1 - p_value(score, null_scores)


@wrong("p_value", P, "the argument `null_scores` was changed")
def sorts_in_place(score, null_scores):
    """Sorts the caller's list."""
    no_nan(score, *null_scores)
    null_scores.sort(reverse=True)
    reached = sum(x >= score for x in null_scores)
    return (1 + reached) / (1 + len(null_scores))


@wrong("p_value", P, "should give")
def both_sides(score, null_scores):
    """Two-sided, as for a score that may be too small as well."""
    return p_value(abs(score), [abs(x) for x in null_scores])


@wrong("p_value", "test_the_order_of_other_scores_makes_no_difference", "should give")
def takes_it_for_sorted(score, null_scores):
    """Stops at the first that is smaller."""
    no_nan(score, *null_scores)
    reached = 0
    for x in null_scores:
        if x < score:
            break
        reached += 1
    return (1 + reached) / (1 + len(null_scores))


@wrong("p_value", "test_nan_is_no_score", "should raise ValueError")
def nan_is_small(score, null_scores):
    """A comparison with NaN is false."""
    return (1 + sum(x >= score for x in null_scores)) / (1 + len(null_scores))


@wrong("p_value", P, "Equal scores are those of different texts")
def different_scores(score, null_scores):
    """Counts each score once."""
    return p_value(score, list(set(null_scores)))


@wrong("p_value", P, "should give")
def roughly_as_large(score, null_scores):
    """Compares with a hundredth to spare."""
    return p_value(score - 0.01, null_scores)


# --- gumbel_pick ----------------------------------------------------------------------

MULTINOMIAL = "test_the_token_is_that_of_multinomial_after_the_seed"
NEIGHBOURS = "test_a_row_does_not_depend_on_its_neighbours"


def drawn(row, seed):
    generator = torch.Generator().manual_seed(seed)
    p = row.float().softmax(-1)
    return p / torch.empty_like(p).exponential_(generator=generator)


@wrong("gumbel_pick", MULTINOMIAL, "not the last alone")
def the_last_id_alone(logits, context, key):
    """The context is one id."""
    return gumbel_pick(logits, context[:, -1:], key)


@wrong("gumbel_pick", MULTINOMIAL, "Those are the largest logits")
def greedy(logits, context, key):
    """No draw."""
    return logits.argmax(-1, keepdim=True)


@wrong("gumbel_pick", MULTINOMIAL, "differs first")
def from_logits(logits, context, key):
    """Races with logits in place of probabilities."""
    picked = []
    for row, seen in zip(logits, context.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed_of(key, seen))
        e = torch.empty(len(row)).exponential_(generator=generator)
        picked.append((row / e).argmax())
    return torch.stack(picked)[:, None]


@wrong("gumbel_pick", MULTINOMIAL, "The largest p/E wins")
def the_smallest(logits, context, key):
    """The slowest one wins."""
    picked = [
        drawn(row, seed_of(key, seen)).argmin()
        for row, seen in zip(logits, context.tolist(), strict=True)
    ]
    return torch.stack(picked)[:, None]


@wrong("gumbel_pick", MULTINOMIAL, "Seed anew for each row")
def seeded_by_the_first_row(logits, context, key):
    """Rows go on with row 0's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key, context[0].tolist()))
        rows = [multinomial_from_scratch(row.softmax(-1)[None]) for row in logits]
    return torch.cat(rows)


@wrong("gumbel_pick", MULTINOMIAL, "that row's ids alone")
def the_context_of_all_rows(logits, context, key):
    """Hashes the whole batch's context."""
    flat = context.flatten()
    return gumbel_pick(logits, flat.expand(len(logits), -1), key)


@wrong("gumbel_pick", MULTINOMIAL, "oldest first")
def newest_first(logits, context, key):
    """Hashes the context from its end."""
    return gumbel_pick(logits, context.flip(-1), key)


@wrong("gumbel_pick", MULTINOMIAL, "differs first")
def four_ids_at_most(logits, context, key):
    """Cuts a wide context."""
    return gumbel_pick(logits, context[:, -4:], key)


PICKED = {}


@wrong(
    "gumbel_pick",
    "test_the_context_fixes_the_draws_and_not_the_token",
    "the probabilities are others",
)
def one_token_for_each_context(logits, context, key):
    """Keeps the token that a context had once."""
    picked = []
    for row, seen in zip(logits, context, strict=True):
        place = (key, *seen.tolist())
        if place not in PICKED:
            PICKED[place] = gumbel_pick(row[None], seen[None], key)
        picked.append(PICKED[place])
    return torch.cat(picked)


@wrong(
    "gumbel_pick",
    "test_the_pick_leaves_the_global_generator_alone",
    "moved torch's global generator",
)
def back_to_the_seed(logits, context, key):
    """Goes back to where the global generator was seeded, not to where it was."""
    seed = torch.initial_seed()
    picked = gumbel_pick(logits, context, key)
    torch.manual_seed(seed)
    return picked


@wrong("gumbel_pick", MULTINOMIAL, "should have shape (5, 1)")
def flat(logits, context, key):
    """One dimension."""
    return gumbel_pick(logits, context, key)[:, 0]


@wrong("gumbel_pick", NEIGHBOURS, "seed anew for each row")
def one_seed_for_the_batch(logits, context, key):
    """Seeds once, with row 0's context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key, context[0].tolist()))
        return multinomial_from_scratch(logits.float().softmax(-1))


@wrong(
    "gumbel_pick",
    "test_the_pick_leaves_the_global_generator_alone",
    "moved torch's global generator",
)
def seeds_everybody(logits, context, key):
    """Leaves the global generator seeded with the key."""
    picked = []
    for row, seen in zip(logits.float(), context.tolist(), strict=True):
        torch.manual_seed(seed_of(key, seen))
        picked.append(multinomial_from_scratch(row.softmax(-1)[None]))
    return torch.cat(picked)


@wrong(
    "gumbel_pick", "test_the_draws_are_float32_whatever_the_logits_are", "differs first"
)
def in_the_logits_dtype(logits, context, key):
    """Races in the dtype that came."""
    picked = []
    for row, seen in zip(logits, context.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(key, seen))
            picked.append(multinomial_from_scratch(row.softmax(-1)[None]))
    return torch.cat(picked)


@wrong(
    "gumbel_pick",
    "test_over_many_keys_a_token_comes_as_often_as_its_probability",
    "the counts of gumbel_pick",
)
def the_same_with_every_key(logits, context, key):
    """Forgets the key."""
    return gumbel_pick(logits, context, 0)


# --- gumbel_score ---------------------------------------------------------------------

HAND = "test_scores_worked_by_hand"
MEAN = "test_the_score_is_the_mean_over_all_places"
AGAIN = "test_a_window_that_comes_again_counts_once"


def draws(ids, key, width, vocab_size, once=True):
    """The draw of each window's token."""
    text = ids.flatten().tolist()
    if not 1 <= width < len(text):
        raise ValueError("nothing to score")
    windows = [tuple(text[i : i + width + 1]) for i in range(len(text) - width)]
    found = []
    for *context, token in dict.fromkeys(windows) if once else windows:
        generator = torch.Generator().manual_seed(seed_of(key, context))
        e = torch.empty(vocab_size).exponential_(generator=generator)
        found.append(e[token].item())
    return found


def score_of(e):
    return -math.log(-math.expm1(-e))


@wrong("gumbel_score", HAND, "The mean, not the sum")
def the_sum(ids, key, width, vocab_size):
    """Grows with the length."""
    return sum(score_of(e) for e in draws(ids, key, width, vocab_size))


@wrong("gumbel_score", HAND, "That is the mean of the draws")
def the_mean_draw(ids, key, width, vocab_size):
    """E itself."""
    found = draws(ids, key, width, vocab_size)
    return sum(found) / len(found)


@wrong("gumbel_score", HAND, "That is minus the mean of the draws")
def minus_the_draw(ids, key, width, vocab_size):
    """ln of e^(-E)."""
    found = draws(ids, key, width, vocab_size)
    return -sum(found) / len(found)


@wrong("gumbel_score", HAND, "not the score of the mean")
def the_score_of_the_mean(ids, key, width, vocab_size):
    """Averages too early."""
    found = draws(ids, key, width, vocab_size)
    return score_of(sum(found) / len(found))


@wrong("gumbel_score", HAND, "should return a float")
def a_score_tensor(ids, key, width, vocab_size):
    """A tensor."""
    return torch.tensor(gumbel_score(ids, key, width, vocab_size))


@wrong("gumbel_score", MEAN, "oldest first")
def context_reversed(ids, key, width, vocab_size):
    """The newest id first."""
    text = ids.flatten().tolist()
    if not 1 <= width < len(text):
        raise ValueError("nothing to score")
    windows = {tuple(text[i : i + width + 1]) for i in range(len(text) - width)}
    total = 0.0
    for *context, token in windows:
        generator = torch.Generator().manual_seed(seed_of(key, context[::-1]))
        e = torch.empty(vocab_size).exponential_(generator=generator)
        total += score_of(e[token].item())
    return total / len(windows)


@wrong("gumbel_score", MEAN, "should give")
def not_the_last_place(ids, key, width, vocab_size):
    """One place too few."""
    text = ids.flatten()
    if not 1 <= width < len(text):
        raise ValueError("nothing to score")
    short = text[:-1] if len(text) > width + 1 else text
    return gumbel_score(short, key, width, vocab_size)


@wrong("gumbel_score", AGAIN, "is no news: count it once")
def every_window(ids, key, width, vocab_size):
    """Counts repetitions."""
    found = draws(ids, key, width, vocab_size, once=False)
    return sum(map(score_of, found)) / len(found)


@wrong("gumbel_score", AGAIN, "The mean is that of the 3 different windows")
def over_all_places(ids, key, width, vocab_size):
    """Adds different windows, and divides by all."""
    places = ids.numel() - width
    found = draws(ids, key, width, vocab_size)
    return sum(score_of(e) for e in found) / places


@wrong("gumbel_score", "test_another_token_behind_the_same_ids_counts", "are three")
def each_context_once(ids, key, width, vocab_size):
    """Drops a window if its context was there before."""
    text = ids.flatten().tolist()
    if not 1 <= width < len(text):
        raise ValueError("nothing to score")
    found = {}
    for i in range(len(text) - width):
        context = tuple(text[i : i + width])
        if context not in found:
            one = torch.tensor(text[i : i + width + 1])
            found[context] = gumbel_score(one, key, width, vocab_size)
    return sum(found.values()) / len(found)


@wrong("gumbel_score", "test_a_tiny_draw_has_a_finite_score", "has no digits left")
def in_float32(ids, key, width, vocab_size):
    """1 - e^(-E) in float32."""
    e = torch.tensor(draws(ids, key, width, vocab_size))
    return -(1 - (-e).exp()).log().mean().item()


@wrong(
    "gumbel_score",
    "test_a_text_without_a_place_to_score_is_refused",
    "should raise ValueError",
)
def nothing_scores_1(ids, key, width, vocab_size):
    """What chance would score."""
    if ids.numel() <= width:
        return 1.0
    return gumbel_score(ids, key, width, vocab_size)


@wrong(
    "gumbel_score",
    "test_scoring_draws_nothing_from_the_global_generator",
    "moved torch's global generator",
)
def seeds_the_global_one(ids, key, width, vocab_size):
    """Draws from the global generator."""
    torch.manual_seed(key)
    return gumbel_score(ids, key, width, vocab_size)


# --- tournament -----------------------------------------------------------------------

BY_HAND = "test_tournaments_worked_by_hand"
PLAYED = "test_the_winners_are_those_of_all_matches_played_out"


def zeros_and_ones(g):
    if not ((g == 0) | (g == 1)).all():
        raise ValueError("g")


@wrong("tournament", BY_HAND, "A token with g = 1 wins")
def zeros_win(probs, g):
    """The smaller g goes on."""
    zeros_and_ones(g)
    return tournament(probs, 1 - g.int())


@wrong("tournament", BY_HAND, "It sums to")
def doubled(probs, g):
    """p times 1 + g, not renormalised."""
    zeros_and_ones(g)
    for layer in g.to(probs.dtype):
        probs = probs * (1 + layer)
    return probs


@wrong("tournament", BY_HAND, "should be")
def renormalised(probs, g):
    """p times 1 + g, renormalised: a bias, not a tournament."""
    zeros_and_ones(g)
    for layer in g.to(probs.dtype):
        probs = probs * (1 + layer)
        probs = probs / probs.sum()
    return probs.clone()


@wrong("tournament", BY_HAND, "The layers in order")
def from_the_last_layer(probs, g):
    """The last row first."""
    return tournament(probs, g.flip(0))


@wrong("tournament", PLAYED, "m is that of the layer's own p")
def the_first_m(probs, g):
    """m of all layers from the first p."""
    zeros_and_ones(g)
    masses = (g.to(probs.dtype) * probs).sum(-1)
    new = probs.clone()
    for layer, m in zip(g.to(probs.dtype), masses, strict=True):
        new = new * (1 + layer - m)
    return new.clamp(min=0)


@wrong("tournament", BY_HAND, "the argument `probs` was changed")
def in_place(probs, g):
    """Multiplies what it was given."""
    zeros_and_ones(g)
    for layer in g.to(probs.dtype):
        probs *= (1 + layer - (probs * layer).sum()).clamp(min=0)
    return probs


@wrong("tournament", "test_a_layer_is_that_of_transformers", "torch.float32")
def always_double(probs, g):
    """Returns float64."""
    return tournament(probs.double(), g)


@wrong("tournament", "test_no_probability_is_below_0", "no probability is below")
def below_zero(probs, g):
    """1 - m may be below 0."""
    zeros_and_ones(g)
    new = probs.clone()
    for layer in g.to(probs.dtype):
        new = new * (1 + layer - (new * layer).sum())
    return new


@wrong("tournament", "test_what_the_model_never_draws_never_wins", "does not play")
def a_floor_for_all(probs, g):
    """Nobody is below 1e-9."""
    return tournament(probs, g).clamp(min=1e-9)


@wrong("tournament", "test_a_layer_is_that_of_transformers", "rounding may add up")
def all_matches_in_floats(probs, g):
    """The sum of p squares in each layer, with what rounding did to it."""
    zeros_and_ones(g)
    new = probs.clone()
    for layer in g.int():
        wins = (layer[:, None] > layer).to(probs.dtype)
        wins += (layer[:, None] == layer).to(probs.dtype) / 2
        new = 2 * new * (wins @ new)
    return new


@wrong("tournament", "test_over_all_g_the_mean_is_p", "the mean of tournament")
def a_plain_bias(probs, g):
    """e to the power of g: on average over g that is not p."""
    zeros_and_ones(g)
    new = probs.clone()
    for layer in g.to(probs.dtype):
        new = new * layer.exp()
        new = new / new.sum()
    return new


@wrong("tournament", "test_g_may_have_any_dtype", "TypeError")
def not_for_bool(probs, g):
    """1 - g of a bool tensor is an error."""
    if g.dtype == torch.bool:
        raise TypeError("not for bool")
    return tournament(probs, g)


@wrong("tournament", "test_no_layer_changes_nothing", "returned the argument itself")
def the_same_tensor(probs, g):
    """Without layers there is nothing to copy."""
    return probs if len(g) == 0 else tournament(probs, g)


@wrong("tournament", "test_g_is_0_or_1", "should raise ValueError")
def any_g(probs, g):
    """Any number for g."""
    new = probs.clone()
    for layer in g.to(probs.dtype):
        new = new * (1 + layer - (new * layer).sum())
    return new.clamp(min=0)
