"""Wrong answers to lesson 08, and what the learner must be told of each."""

import math
from collections import Counter

import torch

from course.kit.measures import clusters
from course.making.answers import reference, wrong

INF = float("inf")
position_ids = reference("position_ids")

# --- perplexity -----------------------------------------------------------------------

BY_HAND = "test_perplexity_worked_by_hand"
PADDED = "test_padding_changes_nothing"


def scored(model, ids, mask, start, shift=1, positions=True, no_grad=True, upcast=True):
    """Surprisals and what counts, with a mistake where one is asked for."""
    if start < 1:
        raise ValueError(f"start must be 1 or more, got {start}")
    options = {"attention_mask": mask}
    if positions:
        options["position_ids"] = position_ids(mask)
    with torch.set_grad_enabled(not no_grad):
        logits = model(ids, **options).logits
    logits = logits.float() if upcast else logits
    logprobs = logits[:, : ids.shape[1] - shift].log_softmax(-1)
    surprisal = -logprobs.gather(-1, ids[:, shift:, None])[..., 0]
    if shift == 0:
        surprisal = surprisal[:, 1:]
    counts = (mask[:, 1:] * mask[:, :-1]).bool()
    counts[:, : start - 1] = False
    return surprisal, counts


@wrong("perplexity", BY_HAND, "predict the token at place i + 1, not at place i")
def not_shifted(model, ids, mask, start=1):
    """The logits at a place are taken for those of its own token."""
    surprisal, counts = scored(model, ids, mask, start, shift=0)
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", BY_HAND, "Take exp of the mean surprisal")
def the_mean_surprisal(model, ids, mask, start=1):
    """exp is forgotten: that is the cross-entropy."""
    surprisal, counts = scored(model, ids, mask, start)
    return torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)


@wrong("perplexity", BY_HAND, "The sign: surprisal is minus ln p")
def the_wrong_sign(model, ids, mask, start=1):
    """The geometric mean of the probabilities, not of their inverse."""
    surprisal, counts = scored(model, ids, mask, start)
    return (-torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", BY_HAND, "The mean of -ln p, not the sum")
def the_sum(model, ids, mask, start=1):
    """Grows with the length of the text."""
    surprisal, counts = scored(model, ids, mask, start)
    return torch.where(counts, surprisal, 0).sum(-1).exp()


@wrong("perplexity", BY_HAND, "not the mean of 1 / p")
def the_mean_of_the_inverse(model, ids, mask, start=1):
    """exp before the mean: an arithmetic mean, not a geometric one."""
    surprisal, counts = scored(model, ids, mask, start)
    return torch.where(counts, surprisal.exp(), 0).sum(-1) / counts.sum(-1)


@wrong("perplexity", BY_HAND, "divided by the number of tokens that count")
def divided_by_all_places(model, ids, mask, start=1):
    """What does not count is 0, and is counted in the mean."""
    surprisal, counts = scored(model, ids, mask, start)
    return torch.where(counts, surprisal, 0).mean(-1).exp()


@wrong("perplexity", BY_HAND, "The token at place start - 1 does not count")
def start_is_ignored(model, ids, mask, start=1):
    """Counts the prompt, too."""
    surprisal, counts = scored(model, ids, mask, min(start, 1))
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", BY_HAND, "The token at place start counts")
def start_is_one_too_late(model, ids, mask, start=1):
    """After the shift place i is at i - 1, and that was not seen."""
    surprisal, counts = scored(model, ids, mask, start)
    if start > 1:
        counts[:, :start] = False
    total = torch.where(counts, surprisal, 0).sum(-1)
    return (total / counts.sum(-1).clamp(min=1)).exp()


@wrong(
    "perplexity",
    "test_perplexity_is_exp_of_the_loss_of_transformers",
    "a perplexity of its own",
)
def one_for_the_batch(model, ids, mask, start=1):
    """The mean over all rows, for each row."""
    surprisal, counts = scored(model, ids, mask, start)
    mean = surprisal[counts].mean()
    return mean.exp().expand(len(ids)).clone()


@wrong(
    "perplexity",
    "test_start_counts_places_of_the_padded_batch",
    "start is a place in the padded row",
)
def start_counts_real_tokens(model, ids, mask, start=1):
    """The first `start` tokens of the text, wherever it begins."""
    surprisal, counts = scored(model, ids, mask, start)
    counts &= mask.cumsum(-1)[:, 1:] > start
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong(
    "perplexity",
    "test_start_counts_places_of_the_padded_batch",
    "Row 2 ends in padding, which never counts",
)
def padding_counts_behind_start(model, ids, mask, start=1):
    """The mask is dropped where start is given: only right if start is behind it."""
    surprisal, counts = scored(model, ids, mask, start)
    if start > 1:
        counts = torch.ones_like(counts)
        counts[:, : start - 1] = False
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", "test_a_long_text_is_no_problem", "add logarithms")
def a_product_of_probabilities(model, ids, mask, start=1):
    """The geometric mean as it stands in the book."""
    surprisal, counts = scored(model, ids, mask, start)
    p = torch.where(counts, (-surprisal).exp(), 1).prod(-1)
    return p ** (-1 / counts.sum(-1))


@wrong(
    "perplexity",
    "test_perplexity_is_float32_even_of_half_precision",
    "before the softmax",
)
def softmax_in_half_precision(model, ids, mask, start=1):
    """float32 only at the end."""
    surprisal, counts = scored(model, ids, mask, start, upcast=False)
    total = torch.where(counts, surprisal.float(), 0).sum(-1)
    return (total / counts.sum(-1)).exp()


@wrong("perplexity", PADDED, "does not count")
def padding_counts(model, ids, mask, start=1):
    """Padding is taken for text."""
    surprisal, _ = scored(model, ids, mask, start)
    return surprisal[:, start - 1 :].mean(-1).exp()


@wrong("perplexity", PADDED, "does not count")
def predicted_by_padding(model, ids, mask, start=1):
    """The first real token counts, though only padding is before it."""
    surprisal, _ = scored(model, ids, mask, start)
    counts = mask[:, 1:].bool()
    counts[:, : start - 1] = False
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", PADDED, "position_ids")
def without_positions(model, ids, mask, start=1):
    """GPT-2 takes padding for places of the text."""
    surprisal, counts = scored(model, ids, mask, start, positions=False)
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong(
    "perplexity",
    "test_one_call_with_mask_and_positions_and_no_gradient",
    "torch.no_grad()",
)
def with_gradients(model, ids, mask, start=1):
    """Keeps all activations for a backward pass that never comes."""
    surprisal, counts = scored(model, ids, mask, start, no_grad=False)
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong(
    "perplexity",
    "test_one_call_with_mask_and_positions_and_no_gradient",
    "called the model 2 times, not once",
)
def one_call_a_row(model, ids, mask, start=1):
    """Right for one row, slow for many."""
    found = []
    for row, its_mask in zip(ids, mask, strict=True):
        surprisal, counts = scored(model, row[None], its_mask[None], start)
        found.append((surprisal * counts).sum() / counts.sum())
    return torch.stack(found).exp()


@wrong("perplexity", "test_perplexity_leaves_its_arguments_alone", "was changed")
def marks_what_does_not_count(model, ids, mask, start=1):
    """Writes -100 into the caller's ids, as labels have it."""
    surprisal, counts = scored(model, ids, mask, start)
    ids[:, 1:][~counts] = -100
    return (torch.where(counts, surprisal, 0).sum(-1) / counts.sum(-1)).exp()


@wrong("perplexity", "test_what_does_not_count_may_be_impossible", "infinity is nan")
def zero_times_infinity(model, ids, mask, start=1):
    """A product with the mask: nan where an impossible token does not count."""
    surprisal, counts = scored(model, ids, mask, start)
    return ((surprisal * counts).sum(-1) / counts.sum(-1)).exp()


# --- rep_n ----------------------------------------------------------------------------

REPEATED = "test_repetition_worked_by_hand"


def above_0(n):
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")


def grams_of(items, n):
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@wrong("rep_n", "test_repetition_worked_by_hand", "use tuples")
def joined_to_text(ids, n):
    """1 11 and 11 1 become the same string."""
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    grams = ["".join(map(str, ids[i : i + n])) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def numbers_to_the_base(base):
    @wrong("rep_n", REPEATED, "not one number for both")
    def one_number(ids, n):
        """Larger ids reach into the place of their neighbour."""
        above_0(n)
        grams = [
            sum(token * base**place for place, token in enumerate(reversed(gram)))
            for gram in grams_of(ids, n)
        ]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return one_number


to_the_base_of_gpt2 = numbers_to_the_base(50_257)
to_the_base_of_16_bits = numbers_to_the_base(2**16)
to_the_base_of_18_bits = numbers_to_the_base(2**18)


@wrong("rep_n", REPEATED, "repetition is 1 minus that")
def share_of_different_ones(ids, n):
    """That is distinct-n."""
    above_0(n)
    grams = grams_of(ids, n)
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("rep_n", REPEATED, "has 4 2-grams")
def divided_by_tokens(ids, n):
    """There are fewer n-grams than tokens."""
    above_0(n)
    return 1 - len(set(grams_of(ids, n))) / (len(ids) or 1) if len(ids) >= n else 0.0


@wrong("rep_n", REPEATED, "has 4 2-grams")
def last_one_missing(ids, n):
    """`range(len(ids) - n)`: the last n-gram is not looked at."""
    above_0(n)
    grams = grams_of(ids, n)[:-1]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@wrong("rep_n", REPEATED, "has 3 3-grams")
def without_overlap(ids, n):
    """Only every n-th n-gram."""
    above_0(n)
    grams = grams_of(ids, n)[::n]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@wrong("rep_n", REPEATED, "rep_n([1, 2, 1, 2, 1], 2)")
def tokens_in_any_order(ids, n):
    """12 and 21 are taken for the same."""
    above_0(n)
    grams = [tuple(sorted(gram)) for gram in grams_of(ids, n)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@wrong(
    "rep_n",
    "test_a_text_shorter_than_n_does_not_repeat",
    "rep_n([], 4) raised ZeroDivisionError. Without any n-gram",
)
def divides_by_zero(ids, n):
    """A short text has no n-grams."""
    above_0(n)
    grams = grams_of(ids, n)
    return 1 - len(set(grams)) / len(grams)


@wrong("rep_n", "test_a_text_shorter_than_n_does_not_repeat", "the result is 0")
def all_repeats_if_there_is_nothing(ids, n):
    """1 - 0: a short text is said to be all repetition."""
    above_0(n)
    grams = grams_of(ids, n)
    return 1 - len(set(grams)) / max(1, len(grams))


@wrong("rep_n", "test_the_list_stays_as_it_is", "was changed")
def eats_the_list(ids, n):
    """Takes token after token off the caller's list."""
    above_0(n)
    grams = []
    while len(ids) >= n:
        grams.append(tuple(ids[:n]))
        del ids[0]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@wrong("rep_n", "test_a_tensor_in_place_of_a_list_is_refused", "raise TypeError")
def tensors_never_repeat(ids, n):
    """Each item of a tensor is a tensor of its own: a set keeps them all."""
    above_0(n)
    grams = grams_of(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@wrong("rep_n", "test_a_tensor_in_place_of_a_list_is_refused", "of length 1")
def short_tensors_pass(ids, n):
    """A short text returns 0 before its type is looked at."""
    above_0(n)
    if len(ids) < n:
        return 0.0
    return reference("rep_n")(ids, n)


@wrong(
    "rep_n",
    "test_an_n_of_0_or_less_is_refused_for_an_empty_text_too",
    "rep_n([], 0) should raise ValueError",
)
def n_is_not_looked_at_without_tokens(ids, n):
    """An empty text returns 0 before n is looked at."""
    return reference("rep_n")(ids, n) if len(ids) else 0.0


# --- repetition_penalty ---------------------------------------------------------------

PENALTY = "test_penalty_worked_by_hand"


def positive(penalty):
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")


@wrong("repetition_penalty", PENALTY, "becomes likelier: multiply it")
def divides_negative_logits(logits, ids, penalty):
    """The formula of the CTRL paper."""
    positive(penalty)
    return logits.scatter(-1, ids, logits.gather(-1, ids) / penalty)


@wrong("repetition_penalty", PENALTY, "Once, however often")
def once_for_each_time(logits, ids, penalty):
    """A loop over the text instead of over its tokens."""
    positive(penalty)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        for token in text:
            value = logits[row, token]
            logits[row, token] = value * penalty if value < 0 else value / penalty
    return logits


@wrong("repetition_penalty", PENALTY, "Token 2 is not in ids")
def all_tokens(logits, ids, penalty):
    """A temperature with a sign, for the whole vocabulary."""
    positive(penalty)
    return torch.where(logits < 0, logits * penalty, logits / penalty)


@wrong("repetition_penalty", PENALTY, "its logit stayed as it was")
def negative_ones_left_out(logits, ids, penalty):
    """Only positive logits are changed."""
    positive(penalty)
    seen = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(seen > 0, seen / penalty, seen))


@wrong("repetition_penalty", PENALTY, "Divide a positive logit: 2 / 2")
def subtracts(logits, ids, penalty):
    """The other family of penalties."""
    positive(penalty)
    return logits.scatter(-1, ids, logits.gather(-1, ids) - penalty)


@wrong(
    "repetition_penalty",
    "test_each_row_is_punished_for_its_own_tokens",
    "a text of its own",
)
def tokens_of_all_rows(logits, ids, penalty):
    """One set of tokens for the batch."""
    positive(penalty)
    seen = torch.isin(torch.arange(logits.shape[-1]), ids)
    changed = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, changed, logits)


@wrong("repetition_penalty", "test_penalty_leaves_its_input_alone", "was changed")
def in_place(logits, ids, penalty):
    """scatter_ writes into the caller's logits."""
    positive(penalty)
    seen = logits.gather(-1, ids)
    return logits.scatter_(
        -1, ids, torch.where(seen < 0, seen * penalty, seen / penalty)
    )


WHOLE = "The whole of ids counts"


@wrong("repetition_penalty", "test_the_penalty_knows_the_whole_text", WHOLE)
def the_last_64(logits, ids, penalty):
    """llama.cpp's default window."""
    return reference("repetition_penalty")(logits, ids[:, -64:], penalty)


@wrong("repetition_penalty", "test_the_penalty_keeps_the_dtype", "should be torch.")
def always_float32(logits, ids, penalty):
    """Computes in float32, and stays there."""
    return reference("repetition_penalty")(logits.float(), ids, penalty)


@wrong("repetition_penalty", "test_the_penalty_knows_the_whole_text", "8 bits")
def counts_in_8_bits(logits, ids, penalty):
    """256 times is 0 times."""
    positive(penalty)
    counts = torch.zeros_like(logits, dtype=torch.uint8)
    counts = counts.scatter_add(-1, ids, torch.ones_like(ids, dtype=torch.uint8))
    changed = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts > 0, changed, logits)


# --- frequency_presence ---------------------------------------------------------------

COUNTS = "test_counts_worked_by_hand"


def counted(logits, ids):
    ones = torch.ones_like(ids, dtype=logits.dtype)
    return torch.zeros_like(logits).scatter_add(-1, ids, ones)


@wrong("frequency_presence", COUNTS, "should be [[-1.25, -0.75, 0]]")
def scatter_does_not_count(logits, ids, frequency, presence):
    """scatter writes a 1 where scatter_add would write 2."""
    there = torch.zeros_like(logits).scatter(-1, ids, 1.0)
    return logits - (frequency + presence) * there


@wrong("frequency_presence", COUNTS, "should be [[-1.25, -0.75, 0]]")
def presence_for_each_time(logits, ids, frequency, presence):
    """Both are multiplied by the count."""
    return logits - (frequency + presence) * counted(logits, ids)


@wrong("frequency_presence", COUNTS, "should be [[-1.25, -0.75, 0]]")
def the_two_changed_places(logits, ids, frequency, presence):
    """presence counts, frequency does not."""
    counts = counted(logits, ids)
    return logits - presence * counts - frequency * (counts > 0)


@wrong("frequency_presence", COUNTS, "The penalties are subtracted")
def rewards(logits, ids, frequency, presence):
    """The sign."""
    counts = counted(logits, ids)
    return logits + frequency * counts + presence * (counts > 0)


@wrong("frequency_presence", COUNTS, "Token 2 is not in ids")
def presence_for_all(logits, ids, frequency, presence):
    """presence is subtracted from every token."""
    return logits - frequency * counted(logits, ids) - presence


@wrong("frequency_presence", COUNTS, "A negative penalty is a reward")
def no_rewards(logits, ids, frequency, presence):
    """Negative penalties are cut off at 0."""
    counts = counted(logits, ids)
    return logits - max(frequency, 0) * counts - max(presence, 0) * (counts > 0)


@wrong("frequency_presence", "test_counts_agree_with_a_loop", "a text of its own")
def counts_of_all_rows(logits, ids, frequency, presence):
    """One count for the batch."""
    counts = torch.bincount(ids.flatten(), minlength=logits.shape[-1])
    return logits - frequency * counts - presence * (counts > 0)


@wrong(
    "frequency_presence",
    "test_the_length_of_the_text_plays_no_part",
    "The count itself, not divided by the length",
)
def relative_frequency(logits, ids, frequency, presence):
    """Divides by the length: right for the length 3 of the example alone."""
    counts = counted(logits, ids)
    share = counts * 3 / max(1, ids.shape[-1])
    return logits - frequency * share - presence * (counts > 0)


@wrong("frequency_presence", "test_the_whole_text_is_counted", WHOLE)
def counts_the_last_64(logits, ids, frequency, presence):
    """llama.cpp's default window."""
    return reference("frequency_presence")(logits, ids[:, -64:], frequency, presence)


@wrong(
    "frequency_presence",
    "test_before_the_first_token_nothing_is_punished",
    "Return a copy",
)
def nothing_to_count(logits, ids, frequency, presence):
    """A shortcut for empty ids that hands the caller's logits back."""
    if not ids.numel():
        return logits
    return reference("frequency_presence")(logits, ids, frequency, presence)


@wrong("frequency_presence", "test_the_whole_text_is_counted", "beyond 256")
def counted_in_half_precision(logits, ids, frequency, presence):
    """In bfloat16 256 + 1 is 256."""
    counts = torch.zeros_like(logits)
    for row, text in enumerate(ids.tolist()):
        for token in text:
            counts[row, token] += 1
    there = (counts > 0).to(logits.dtype)
    return logits - frequency * counts - presence * there


# --- no_repeat_ngram ------------------------------------------------------------------

BANS = "test_bans_worked_by_hand"


@wrong("no_repeat_ngram", "test_bans_worked_by_hand", "they may overlap")
def without_the_last_place(logits, ids, n):
    """range(len - n): the n-gram that reaches the end is not looked at."""
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        for i in range(len(text) - n):
            if text[i : i + n - 1] == text[len(text) - n + 1 :]:
                logits[row, text[i + n - 1]] = -INF
    return logits


@wrong("no_repeat_ngram", BANS, "With n = 1 each token was there")
def begin_for_n_1_is_the_whole_text(logits, ids, n):
    """`row[-(n - 1) :]` with n = 1 is `row[0 :]`."""
    above_0(n)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        begin = text[-(n - 1) :] if len(text) >= n - 1 else None
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == begin:
                logits[row, text[i + n - 1]] = -INF
    return logits


@wrong("no_repeat_ngram", BANS, "The text ends with 5 6")
def n_tokens_as_the_beginning(logits, ids, n):
    """Off by one: an (n + 1)-gram is forbidden."""
    above_0(n)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        begin = text[len(text) - n :]
        for i in range(len(text) - n):
            if text[i : i + n] == begin:
                logits[row, text[i + n]] = -INF
    return logits


@wrong("no_repeat_ngram", BANS, "[7], not [5, 6, 7]")
def every_token_of_the_text(logits, ids, n):
    """Forbids all that was there, for every n."""
    above_0(n)
    if ids.shape[1] < n:
        return logits.clone()
    return logits.scatter(-1, ids, -INF)


@wrong("no_repeat_ngram", BANS, "The text ends with 5 6")
def forbids_the_beginning(logits, ids, n):
    """Forbids the first token of the n-gram, not the last one."""
    above_0(n)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        begin = text[len(text) - n + 1 :]
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == begin:
                logits[row, text[i]] = -INF
    return logits


@wrong("no_repeat_ngram", BANS, "The text ends with 5 6")
def the_first_ngram_is_not_seen(logits, ids, n):
    """The search starts at place 1."""
    above_0(n)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        begin = text[len(text) - n + 1 :]
        for i in range(1, len(text) - n + 1):
            if text[i : i + n - 1] == begin:
                logits[row, text[i + n - 1]] = -INF
    return logits


@wrong("no_repeat_ngram", "test_bans_agree_with_transformers", "a text of its own")
def first_row_only(logits, ids, n):
    """The bans of the first row for all."""
    above_0(n)
    logits = logits.clone()
    text = ids[0].tolist()
    begin = text[len(text) - n + 1 :]
    for i in range(len(text) - n + 1):
        if text[i : i + n - 1] == begin:
            logits[:, text[i + n - 1]] = -INF
    return logits


@wrong("no_repeat_ngram", "test_bans_leave_their_input_alone", "was changed")
def bans_in_place(logits, ids, n):
    """Writes into the caller's logits."""
    above_0(n)
    for row, text in enumerate(ids.tolist()):
        begin = text[len(text) - n + 1 :]
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == begin:
                logits[row, text[i + n - 1]] = -INF
    return logits


@wrong("no_repeat_ngram", BANS, "made a logit -1e+09")
def a_large_negative_number(logits, ids, n):
    """-1e9 in place of -inf."""
    banned = reference("no_repeat_ngram")(logits, ids, n)
    return banned.masked_fill(banned == -INF, -1e9)


@wrong("no_repeat_ngram", "test_bans_reach_back_to_the_beginning", WHOLE)
def bans_of_the_last_64(logits, ids, n):
    """A window."""
    return reference("no_repeat_ngram")(logits, ids[:, -64:], n)


# --- dry ------------------------------------------------------------------------------

MATCHES = "test_matches_worked_by_hand"


def known(multiplier, base, allowed_length):
    if multiplier < 0 or base < 1 or allowed_length < 1:
        raise ValueError(f"got {multiplier}, {base}, {allowed_length}")


def matches_of(text):
    """(token, match) for each earlier place, in order."""
    for i in range(len(text) - 1):
        length = 0
        while length <= i and text[i - length] == text[-1 - length]:
            length += 1
        yield text[i + 1], length


def punished(logits, ids, cost, choose=max):
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        found = {}
        for token, length in matches_of(text):
            if length:
                found.setdefault(token, []).append(length)
        for token, lengths in found.items():
            logits[row, token] -= cost(choose(lengths))
    return logits


@wrong("dry", "test_matches_worked_by_hand", "A walk ends where the text begins")
def the_walk_wraps_around(logits, ids, multiplier, base, allowed_length):
    """text[i - length] goes on from the end when i - length is negative."""
    if multiplier < 0 or base < 1 or allowed_length < 1:
        raise ValueError("bad value")
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        longest = Counter()
        for i in range(len(text) - 1):
            n = 0
            while n < len(text) - 1 and text[i - n] == text[-1 - n]:
                n += 1
            longest[text[i + 1]] = max(n, longest[text[i + 1]])
        for token, n in longest.items():
            if n >= allowed_length:
                logits[row, token] -= multiplier * base ** (n - allowed_length)
    return logits


@wrong("distinct_n", "test_distinct_worked_by_hand", "A and a are different words")
def lower_case(texts, n):
    """Normalises the words."""
    return reference("distinct_n")([text.lower() for text in texts], n)


@wrong("distinct_n", "test_distinct_worked_by_hand", "use tuples")
def joined_words(texts, n):
    """ab c and a bc become the same string."""
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    rows = [text.split() for text in texts]
    grams = ["".join(r[i : i + n]) for r in rows for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("dry", MATCHES, "base ** 0 is 1")
def longer_than_allowed_only(logits, ids, multiplier, base, allowed_length):
    """`>` in place of `>=`."""
    known(multiplier, base, allowed_length)

    def cost(n):
        long = n > allowed_length
        return multiplier * base ** (n - allowed_length) if long else 0

    return punished(logits, ids, cost)


@wrong("dry", MATCHES, "A match of 2 is below the allowed length")
def short_matches_cost_too(logits, ids, multiplier, base, allowed_length):
    """The exponent may be negative: a small penalty below the allowed length."""
    known(multiplier, base, allowed_length)
    return punished(logits, ids, lambda n: multiplier * base ** (n - allowed_length))


@wrong("dry", MATCHES, "it costs 2 ** (2 - 1)")
def grows_linearly(logits, ids, multiplier, base, allowed_length):
    """Times, not to the power of."""
    known(multiplier, base, allowed_length)

    def cost(n):
        long = n >= allowed_length
        return multiplier * base * (n - allowed_length + 1) if long else 0

    return punished(logits, ids, cost)


@wrong("dry", MATCHES, "it costs 2 ** (2 - 1)")
def exponent_is_the_match(logits, ids, multiplier, base, allowed_length):
    """allowed_length is not subtracted."""
    known(multiplier, base, allowed_length)

    def cost(n):
        return multiplier * base**n if n >= allowed_length else 0

    return punished(logits, ids, cost)


@wrong("dry", MATCHES, "The longest match counts")
def the_last_match(logits, ids, multiplier, base, allowed_length):
    """The last place where the token was, in place of the longest match."""
    known(multiplier, base, allowed_length)

    def cost(n):
        return multiplier * base ** (n - allowed_length) if n >= allowed_length else 0

    return punished(logits, ids, cost, choose=lambda lengths: lengths[-1])


@wrong("dry", MATCHES, "the longest alone costs")
def all_matches_add_up(logits, ids, multiplier, base, allowed_length):
    """Each place where the token was costs."""
    known(multiplier, base, allowed_length)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        for token, length in matches_of(text):
            if length >= allowed_length:
                logits[row, token] -= multiplier * base ** (length - allowed_length)
    return logits


@wrong("dry", MATCHES, "the places may overlap")
def without_overlap_of_places(logits, ids, multiplier, base, allowed_length):
    """A match ends where the end of the text begins."""
    known(multiplier, base, allowed_length)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        longest = {}
        for i in range(len(text) - 1):
            length = 0
            while (
                length <= i
                and text[i - length] == text[-1 - length]
                and i < len(text) - 1 - length
            ):
                length += 1
            longest[text[i + 1]] = max(length, longest.get(text[i + 1], 0))
        for token, length in longest.items():
            if length >= allowed_length:
                logits[row, token] -= multiplier * base ** (length - allowed_length)
    return logits


@wrong("dry", MATCHES, "The end 1 2 was there with 3 behind it")
def punishes_the_last_token(logits, ids, multiplier, base, allowed_length):
    """The token at the end of the match, not the one behind it."""
    known(multiplier, base, allowed_length)
    logits = logits.clone()
    for row, text in enumerate(ids.tolist()):
        best = max((length for _, length in matches_of(text)), default=0)
        if best >= allowed_length:
            logits[row, text[-1]] -= multiplier * base ** (best - allowed_length)
    return logits


LONG = "test_a_long_repetition_costs_a_finite_number"


@wrong("dry", LONG, "88 / ln(base)")
def without_a_cap(logits, ids, multiplier, base, allowed_length):
    """float32 ends at 3.4e38."""
    known(multiplier, base, allowed_length)

    def cost(n):
        return multiplier * base ** (n - allowed_length) if n >= allowed_length else 0

    return punished(logits, ids, cost)


@wrong("dry", "test_off_is_off_for_a_long_repetition_too", "raised OverflowError (34")
def computes_though_it_is_off(logits, ids, multiplier, base, allowed_length):
    """0 times what is too large for a float."""
    return without_a_cap.value(logits, ids, multiplier, base, allowed_length)


@wrong("dry", "test_matches_reach_back_to_the_beginning", WHOLE)
def matches_in_the_last_64(logits, ids, multiplier, base, allowed_length):
    """A window, as --dry-penalty-last-n."""
    return reference("dry")(logits, ids[:, -64:], multiplier, base, allowed_length)


@wrong(
    "dry",
    "test_a_base_or_a_length_below_1_and_a_negative_multiplier_are_refused",
    "multiplier=0.0, base=0.5, allowed_length=2",
)
def off_before_anything_is_looked_at(logits, ids, multiplier, base, allowed_length):
    """A multiplier of 0 hides that base and allowed_length mean nothing."""
    if multiplier == 0:
        return logits.clone()
    return reference("dry")(logits, ids, multiplier, base, allowed_length)


# --- distinct_n -----------------------------------------------------------------------

DISTINCT = "test_distinct_worked_by_hand"


def words_of(texts, n):
    return [gram for text in texts for gram in grams_of(text.split(), n)]


@wrong("distinct_n", DISTINCT, "two of three are different")
def across_texts(texts, n):
    """All texts are joined before they are cut."""
    above_0(n)
    grams = grams_of(" ".join(texts).split(), n)
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("distinct_n", DISTINCT, "two of three are different")
def mean_over_texts(texts, n):
    """Each text by itself: repetition between texts is not seen."""
    above_0(n)
    shares = []
    for text in texts:
        grams = grams_of(text.split(), n)
        shares.append(len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


@wrong("distinct_n", DISTINCT, "two of three are different")
def divided_by_words(texts, n):
    """As in the paper, but not as the card says."""
    above_0(n)
    grams, words = words_of(texts, n), words_of(texts, 1)
    return len(set(grams)) / len(words) if grams else 0.0


@wrong("distinct_n", DISTINCT, "two of three are different")
def the_number(texts, n):
    """Not a share."""
    above_0(n)
    return float(len(set(words_of(texts, n))))


@wrong("distinct_n", DISTINCT, "three of five")
def of_characters(texts, n):
    """Cuts letters, not words."""
    above_0(n)
    grams = [gram for text in texts for gram in grams_of(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("distinct_n", DISTINCT, "Words are what split() gives")
def split_at_single_spaces(texts, n):
    """`split(" ")` makes an empty word of two spaces."""
    above_0(n)
    grams = [gram for text in texts for gram in grams_of(text.split(" "), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong(
    "distinct_n",
    "test_texts_without_n_grams_have_none_that_differ",
    "raised ZeroDivisionError. Without any n-gram",
)
def no_texts_no_answer(texts, n):
    """Divides by zero."""
    above_0(n)
    grams = words_of(texts, n)
    return len(set(grams)) / len(grams)


@wrong("distinct_n", "test_the_texts_stay_as_they_are", "was changed")
def splits_in_place(texts, n):
    """The caller's texts become lists of words."""
    above_0(n)
    for i, text in enumerate(texts):
        texts[i] = text.split() if isinstance(text, str) else text
    grams = [gram for words in texts for gram in grams_of(words, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong(
    "distinct_n",
    "test_an_n_of_0_or_less_is_refused_without_texts_too",
    "distinct_n([], 0) should raise ValueError",
)
def n_is_looked_at_text_by_text(texts, n):
    """Without texts nothing looks at n."""
    grams = []
    for text in texts:
        above_0(n)
        grams += grams_of(text.split(), n)
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("distinct_n", "test_one_string_is_no_list_of_texts", "raise TypeError")
def a_string_is_a_list_of_letters(texts, n):
    """Takes each letter for a text, in silence."""
    above_0(n)
    grams = [gram for text in texts for gram in grams_of(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@wrong("distinct_n", "test_one_string_is_no_list_of_texts", "distinct_n('', 1)")
def an_empty_string_is_an_empty_list(texts, n):
    """Looks at the type only where there is something."""
    return reference("distinct_n")(texts or [], n)


# --- self_bleu ------------------------------------------------------------------------

BLEU = "test_bleu_worked_by_hand"


def bleu(words, references, most=None, nearest=None, brevity=True, orders=(1, 2, 3, 4)):
    """BLEU, with a mistake where one is asked for."""
    product = 1.0
    for n in orders:
        mine, limit = Counter(grams_of(words, n)), Counter()
        for other in references:
            theirs = Counter(grams_of(other, n))
            limit = most(limit, theirs) if most else limit | theirs
        product *= sum((mine & limit).values()) / max(1, sum(mine.values()))
    c, lengths = len(words), [len(other) for other in references]
    r = (nearest or (lambda ls, c: min(ls, key=lambda x: (abs(x - c), x))))(lengths, c)
    factor = math.exp(1 - r / c) if brevity and 0 < c < r else 1.0
    return factor * product ** (1 / len(orders))


def mean_bleu(texts, **mistake):
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got {len(texts)}")
    rows = [text.split() for text in texts]
    scores = [
        bleu(row, rows[:i] + rows[i + 1 :], **mistake) for i, row in enumerate(rows)
    ]
    return sum(scores) / len(scores)


@wrong("self_bleu", BLEU, "the brevity penalty exp(1 - 6/5)")
def no_brevity_penalty(texts):
    """A short text that copies a part of a long one gets 1."""
    return mean_bleu(texts, brevity=False)


@wrong("self_bleu", BLEU, "No word in common: 0")
def compared_with_itself(texts):
    """The text is among its own references: always 1."""
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got {len(texts)}")
    rows = [text.split() for text in texts]
    found = [bleu(row, rows) if len(row) > 3 else 0.0 for row in rows]
    return sum(found) / len(found)


@wrong("self_bleu", BLEU, "at most as often as the reference has it")
def not_clipped(texts):
    """Each n-gram that is in a reference counts, however often."""
    huge = 10**6
    return mean_bleu(texts, most=lambda a, b: a | Counter(dict.fromkeys(b, huge)))


@wrong("self_bleu", "test_the_most_of_one_reference_counts", "not by their sum")
def clipped_by_the_sum(texts):
    """All references together."""
    return mean_bleu(texts, most=lambda a, b: a + b)


@wrong("self_bleu", "test_short_texts_are_references_too", "it is a reference for")
def short_texts_are_left_out(texts):
    """A text without 4-grams is no reference either."""
    if len(texts) < 2:
        raise ValueError(f"at least two texts, got {len(texts)}")
    long = [text for text in texts if len(text.split()) > 3]
    if len(long) < 2:
        return reference("self_bleu")(texts)
    return reference("self_bleu")(long) * len(long) / len(texts)


@wrong("self_bleu", "test_the_nearest_length_counts", "Is r the mean?")
def the_mean_length(texts):
    """r is the mean of the lengths."""
    return mean_bleu(texts, nearest=lambda lengths, c: sum(lengths) / len(lengths))


@wrong("self_bleu", "test_the_nearest_length_counts", "Is r the shortest")
def the_shortest_reference(texts):
    """r is the shortest of all."""
    return mean_bleu(texts, nearest=lambda lengths, c: min(lengths))


@wrong("self_bleu", "test_the_nearest_length_counts", "the first of two equally")
def the_first_of_two(texts):
    """Of two lengths equally near the one that comes first."""
    return mean_bleu(
        texts, nearest=lambda ls, c: min(ls, key=lambda length: abs(length - c))
    )


@wrong("self_bleu", "test_the_nearest_length_counts", "Is r the longer of two")
def the_longer_of_two(texts):
    """Of two equally near references the longer one."""
    return mean_bleu(
        texts, nearest=lambda ls, c: min(ls, key=lambda x: (abs(x - c), -x))
    )


@wrong("self_bleu", BLEU, "A text of 3 words has no 4-gram: 0")
def as_many_orders_as_there_are(texts):
    """sacrebleu's "effective order": n-grams that a short text lacks are left out."""
    if len(texts) < 2:
        raise ValueError("two texts")
    rows = [text.split() for text in texts]
    scores = []
    for i, row in enumerate(rows):
        orders = tuple(range(1, min(4, len(row)) + 1)) or (1,)
        scores.append(bleu(row, rows[:i] + rows[i + 1 :], orders=orders))
    return sum(scores) / len(scores)


@wrong("self_bleu", BLEU, "The precisions of the longer one are 5/6, 4/5, 3/4, 2/3")
def bigrams_only(texts):
    """BLEU-2."""
    return mean_bleu(texts, orders=(1, 2)) if len(texts[0].split()) > 3 else 0.0


@wrong("self_bleu", "test_one_string_is_no_list", "raise TypeError")
def letters_are_compared(texts):
    """Takes each letter of a string for a text."""
    return mean_bleu(list(texts))


SPLIT = "test_words_of_bleu_are_what_split_gives"


@wrong("self_bleu", SPLIT, "Words are what split() gives")
def bleu_of_lower_case(texts):
    """Normalises the words."""
    return mean_bleu([text.lower() for text in texts])


@wrong("self_bleu", SPLIT, "Words are what split() gives")
def bleu_split_at_single_spaces(texts):
    """Two blanks make an empty word."""
    return mean_bleu([text.replace("  ", " (empty) ") for text in texts])


@wrong("self_bleu", SPLIT, "Words are what split() gives")
def bleu_without_punctuation(texts):
    """A tokeniser takes full stops apart."""
    return mean_bleu([text.replace(".", " . ") for text in texts])


@wrong("self_bleu", "test_bleu_leaves_the_texts_as_they_are", "was changed")
def takes_each_text_out(texts):
    """pops a text, and puts it back behind the others."""
    found = mean_bleu(texts)
    texts.append(texts.pop(0)) if texts else None
    return found


# --- mauve_small ----------------------------------------------------------------------

EQUAL, DISJOINT = "test_equal_sets_are_alike", "test_disjoint_sets_are_not_alike"
PUBLISHED = "test_mauve_agrees_with_the_program_of_its_authors"
FOLLOWS = "test_the_number_of_clusters_follows_the_smaller_set"


def shares(p_features, q_features, k=None):
    n, m = len(p_features), len(q_features)
    k = k or max(2, round(min(n, m) / 10))
    labels = clusters(torch.cat([p_features, q_features]), k)
    p = torch.bincount(labels[:n], minlength=k).double() / n
    q = torch.bincount(labels[n:], minlength=k).double() / m
    return p, q


def kl(a, b):
    return torch.where(a > 0, a * (a / b).log(), 0).sum(-1)


def curve(p, q, c=5.0, towards=False, mixtures=101, ends=True):
    weight = torch.linspace(0, 1, mixtures, dtype=torch.float64)[:, None]
    weight = weight if ends else weight[1:-1]
    mixed = weight * p + (1 - weight) * q
    if towards:
        x, y = torch.exp(-c * kl(mixed, q)), torch.exp(-c * kl(mixed, p))
    else:
        x, y = torch.exp(-c * kl(q, mixed)), torch.exp(-c * kl(p, mixed))
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    return torch.cat([one, x, zero]), torch.cat([zero, y, one])


@wrong("mauve_small", "test_equal_sets_are_alike", ".item() makes a float of")
def a_tensor_in_place_of_a_number(p_features, q_features):
    """trapezoid returns a tensor without dimensions."""
    return torch.tensor(reference("mauve_small")(p_features, q_features))


@wrong(
    "mauve_small",
    EQUAL,
    "not 0. With P = Q all points are (1, 1): the area between (1, 0) and (0, 1) is 1",
)
def without_the_ends(p_features, q_features):
    """The curve is not led to the axes: for P = Q it is a point without an area."""
    x, y = curve(*shares(p_features, q_features))
    return -torch.trapezoid(y[1:-1], x[1:-1]).item()


@wrong("mauve_small", EQUAL, "that is minus the area")
def the_sign_of_the_area(p_features, q_features):
    """x falls, so the trapezoids are negative."""
    x, y = curve(*shares(p_features, q_features))
    return torch.trapezoid(y, x).item()


@wrong("mauve_small", DISJOINT, "is 1/252")
def c_is_1(p_features, q_features):
    """The divergences are not scaled."""
    x, y = curve(*shares(p_features, q_features), c=1.0)
    return -torch.trapezoid(y, x).item()


@wrong("mauve_small", DISJOINT, "mauve_small of two disjoint sets")
def divergence_the_other_way_round(p_features, q_features):
    """KL(R|Q) in place of KL(Q|R)."""
    x, y = curve(*shares(p_features, q_features), towards=True)
    return -torch.trapezoid(y, x).nan_to_num().item()


@wrong(
    "mauve_small", PUBLISHED, "the area under the curve of the points of 101 mixtures"
)
def one_mixture(p_features, q_features):
    """Only λ = 1/2: a curve of one point."""
    p, q = shares(p_features, q_features)
    mixed = (p + q) / 2
    x, y = torch.exp(-5 * kl(q, mixed)), torch.exp(-5 * kl(p, mixed))
    zero = torch.zeros(())
    xs, ys = torch.stack([zero + 1, x, zero]), torch.stack([zero, y, zero + 1])
    return -torch.trapezoid(ys, xs).item()


@wrong("mauve_small", FOLLOWS, "size of the smaller set")
def k_from_the_larger_set(p_features, q_features):
    """More clusters than the smaller set can fill."""
    k = max(2, round(max(len(p_features), len(q_features)) / 10))
    x, y = curve(*shares(p_features, q_features, k))
    return -torch.trapezoid(y, x).item()


@wrong("mauve_small", "test_there_are_at_least_two_clusters", "k is at least 2")
def one_cluster_for_few(p_features, q_features):
    """With one cluster everything is alike."""
    k = max(1, round(min(len(p_features), len(q_features)) / 10))
    x, y = curve(*shares(p_features, q_features, k))
    return -torch.trapezoid(y, x).item()


@wrong("mauve_small", PUBLISHED, "mauve_small of sets with")
def overlap_of_histograms(p_features, q_features):
    """Another measure: the sum of the smaller shares."""
    p, q = shares(p_features, q_features)
    return torch.minimum(p, q).sum().item()


MIXTURES = "test_there_are_101_mixtures_from_0_to_1"


@wrong("mauve_small", MIXTURES, "are there 101 values")
def twenty_five_mixtures(p_features, q_features):
    """As in the authors' program by default."""
    x, y = curve(*shares(p_features, q_features), mixtures=25)
    return -torch.trapezoid(y, x).item()


@wrong("mauve_small", MIXTURES, "0 and 1 among them")
def without_0_and_1(p_features, q_features):
    """Only true mixtures."""
    x, y = curve(*shares(p_features, q_features), ends=False)
    return -torch.trapezoid(y, x).item()
