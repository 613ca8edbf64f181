"""Wrong answers to lesson 11, and what the learner must be told of each."""

import math

import torch

from course.making.answers import reference, wrong

cached_step = reference("cached_step")
guide_ = reference("guide")
decode_ = reference("cfg_decode")
plausible_ = reference("plausible")
contrastive_ = reference("contrastive")
js_ = reference("js_divergence")
dola_ = reference("dola")

INF = float("inf")


def logp(x):
    return x.float().log_softmax(-1)


# --- guide ----------------------------------------------------------------------------

BY_HAND = "test_guidance_worked_by_hand"


@wrong("guide", BY_HAND, "the other convention")
def the_other_convention(cond, uncond, scale):
    """Starts at the condition: 0 is off."""
    c, u = logp(cond), logp(uncond)
    return c + scale * (c - u)


@wrong("guide", BY_HAND, "cond and uncond have changed places")
def the_wrong_way(cond, uncond, scale):
    """Guides away from the condition."""
    c, u = logp(cond), logp(uncond)
    return c + scale * (u - c)


@wrong("guide", BY_HAND, "log_softmax comes first in both")
def bare_logits(cond, uncond, scale):
    """No log_softmax: the same distribution, other values."""
    return uncond.float() + scale * (cond.float() - uncond.float())


@wrong("guide", BY_HAND, "not in probabilities")
def a_line_through_probabilities(cond, uncond, scale):
    """Probabilities beyond the two may be negative."""
    c, u = cond.float().softmax(-1), uncond.float().softmax(-1)
    return (u + scale * (c - u)).clamp(min=1e-20).log()


@wrong("guide", BY_HAND, "not normalised again")
def normalised_again(cond, uncond, scale):
    """A third log_softmax."""
    return logp(guide_(cond, uncond, scale))


@wrong("guide", BY_HAND, "not their softmax")
def a_distribution(cond, uncond, scale):
    """Returns probabilities."""
    return guide_(cond, uncond, scale).softmax(-1)


@wrong("guide", "test_half_precision_is_guided_in_float32", "should be torch.float32")
def in_the_dtype_of_the_model(cond, uncond, scale):
    """log_softmax in half precision."""
    c, u = cond.log_softmax(-1), uncond.log_softmax(-1)
    return u + scale * (c - u)


@wrong("guide", "test_half_precision_is_guided_in_float32", "before the log_softmax")
def float32_too_late(cond, uncond, scale):
    """Half precision first, float32 at the end."""
    c, u = cond.log_softmax(-1), uncond.log_softmax(-1)
    return (u + scale * (c - u)).float()


@wrong("guide", "test_guidance_leaves_its_arguments_alone", "was changed")
def in_place(cond, uncond, scale):
    """Writes into what it was given."""
    result = guide_(cond, uncond, scale)
    uncond.copy_(uncond.log_softmax(-1))
    return result


@wrong("guide", BY_HAND, "should be")
def over_the_batch(cond, uncond, scale):
    """log_softmax over the rows."""
    c, u = cond.float().log_softmax(0), uncond.float().log_softmax(0)
    return u + scale * (c - u)


# --- cfg_decode -----------------------------------------------------------------------

GREEDY = "test_greedy_guidance_gives_the_ids_of_generate"
SCORES = "test_pick_gets_the_guided_scores_of_both_whole_texts"
ONCE = "test_each_text_is_fed_once"


def loop(model, ids, negative_ids, scale, new, pick, eos_ids, *, step, fed=None):
    """The loop, with a step to go wrong in: step(state, text, negative) -> scores."""
    out, negative, state = ids, negative_ids, {}
    for _ in range(new):
        token = pick(step(model, state, out, negative, scale))
        out = torch.cat([out, token], -1)
        negative = torch.cat([negative, token if fed is None else fed(token)], -1)
        if token.item() in eos_ids:
            break
    return out


def run(model, state, name, text):
    """A cached step on what `name` has not seen of the text."""
    seen, cache = state.get(name, (0, None))
    logits, cache = cached_step(model, text[:, seen:], cache)
    state[name] = text.shape[1], cache
    return logits


@wrong("cfg_decode", SCORES, "Each text has a cache of its own: the second has read")
def one_cache_for_both(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Both texts write into one cache: the wonky port of exllama issue 129."""
    out, fed, negative_fed, cache = ids, ids, negative_ids, None
    for _ in range(new):
        cond, cache = cached_step(model, fed, cache)
        uncond, cache = cached_step(model, negative_fed, cache)
        token = pick(guide_(cond, uncond, scale))
        out = torch.cat([out, token], -1)
        if token.item() in eos_ids:
            break
        fed = negative_fed = token
    return out


@wrong("cfg_decode", SCORES, "The new tokens belong to both texts")
def a_negative_text_that_stands_still(
    model, ids, negative_ids, scale, new, pick, eos_ids
):
    """The negative prompt is computed once."""
    uncond, _ = cached_step(model, negative_ids, None)

    def step(model, state, text, negative, scale):
        return guide_(run(model, state, "text", text), uncond, scale)

    return loop(model, ids, negative_ids, scale, new, pick, eos_ids, step=step)


@wrong("cfg_decode", SCORES, "The new tokens belong to both texts")
def each_text_goes_its_own_way(model, ids, negative_ids, scale, new, pick, eos_ids):
    """The negative text goes on with its own best token."""

    def step(model, state, text, negative, scale):
        uncond = run(model, state, "negative", negative)
        state["own"] = uncond.argmax(-1, keepdim=True)
        step.own = state["own"]
        return guide_(run(model, state, "text", text), uncond, scale)

    return loop(
        model,
        ids,
        negative_ids,
        scale,
        new,
        pick,
        eos_ids,
        step=step,
        fed=lambda token: step.own,
    )


@wrong("cfg_decode", SCORES, "the other convention")
def guided_too_far(model, ids, negative_ids, scale, new, pick, eos_ids):
    """The scale of the other convention."""
    return decode_(model, ids, negative_ids, scale + 1, new, pick, eos_ids)


@wrong("cfg_decode", SCORES, "without guidance")
def guided_once(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Guides the first token only."""

    def step(model, state, text, negative, scale):
        cond = run(model, state, "text", text)
        uncond = run(model, state, "negative", negative)
        first = text.shape[1] == ids.shape[1]
        return guide_(cond, uncond, scale if first else 1.0)

    return loop(model, ids, negative_ids, scale, new, pick, eos_ids, step=step)


@wrong("cfg_decode", ONCE, "the new token only")
def without_caches(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Both whole texts at each step."""

    def step(model, state, text, negative, scale):
        cond, _ = cached_step(model, text, None)
        uncond, _ = cached_step(model, negative, None)
        return guide_(cond, uncond, scale)

    return loop(model, ids, negative_ids, scale, new, pick, eos_ids, step=step)


@wrong("cfg_decode", ONCE, "Nobody asks for what comes after the last token")
def one_step_too_many(model, ids, negative_ids, scale, new, pick, eos_ids):
    """The last token is fed, too."""
    out = decode_(model, ids, negative_ids, scale, new, pick, eos_ids)
    if new:
        model(out[:, -1:])
    return out


@wrong("cfg_decode", ONCE, "in torch.no_grad()")
def with_gradients(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Keeps what a backward pass would need."""

    def bare(text, past):
        out = model(text, past_key_values=past, use_cache=True)
        return out.logits[:, -1].float().detach(), out.past_key_values

    out, fed, other, caches = ids, ids, negative_ids, [None, None]
    for _ in range(new):
        cond, caches[0] = bare(fed, caches[0])
        uncond, caches[1] = bare(other, caches[1])
        fed = other = pick(guide_(cond, uncond, scale))
        out = torch.cat([out, fed], -1)
        if fed.item() in eos_ids:
            break
    return out


EOS = "test_an_eos_ends_the_text_and_stays_in_it"


@wrong("cfg_decode", EOS, "The EOS in the prompt ends nothing")
def looks_for_an_eos_everywhere(model, ids, negative_ids, scale, new, pick, eos_ids):
    """An EOS in the prompt ends it at once."""
    if any(token in eos_ids for token in ids[0].tolist()):
        return ids
    return decode_(model, ids, negative_ids, scale, new, pick, eos_ids)


@wrong("cfg_decode", EOS, "goes on for too long")
def one_eos(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Knows the first EOS only."""
    return decode_(model, ids, negative_ids, scale, new, pick, eos_ids[:1])


@wrong("cfg_decode", EOS, "stops too early")
def drops_the_eos(model, ids, negative_ids, scale, new, pick, eos_ids):
    """The EOS is cut off."""
    out = decode_(model, ids, negative_ids, scale, new, pick, eos_ids)
    ended = out.shape[1] > ids.shape[1] and out[0, -1].item() in eos_ids
    return out[:, :-1] if ended else out


@wrong("cfg_decode", "test_both_prompts_stay_as_they_are", "was changed")
def writes_into_the_prompt(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Leaves its mark in the prompt."""
    out = decode_(model, ids, negative_ids, scale, new, pick, eos_ids)
    ids[0, -1] = 0
    return out


@wrong("cfg_decode", GREEDY, "differs first at position")
def changed_places(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Guides towards the negative prompt."""

    def step(model, state, text, negative, scale):
        cond = run(model, state, "text", text)
        uncond = run(model, state, "negative", negative)
        return guide_(uncond, cond, scale)

    return loop(model, ids, negative_ids, scale, new, pick, eos_ids, step=step)


@wrong("cfg_decode", SCORES, "the scores are those of `guide`")
def guided_bare_logits(model, ids, negative_ids, scale, new, pick, eos_ids):
    """The formula on bare logits: the same distribution, other values."""

    def step(model, state, text, negative, scale):
        cond = run(model, state, "text", text)
        uncond = run(model, state, "negative", negative)
        return uncond + scale * (cond - uncond)

    return loop(model, ids, negative_ids, scale, new, pick, eos_ids, step=step)


@wrong("cfg_decode", SCORES, "the scores are those of `guide`")
def guided_and_normalised(model, ids, negative_ids, scale, new, pick, eos_ids):
    """A log_softmax between guide and pick."""

    def pick_of_it(scores):
        return pick(scores.log_softmax(-1))

    return decode_(model, ids, negative_ids, scale, new, pick_of_it, eos_ids)


SEED = "test_the_same_seed_gives_the_ids_of_generate"


@wrong("cfg_decode", SEED, "Each of `eos_ids` ends the text, and is appended")
def breaks_before_it_appends(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Looks for the EOS before it appends the token."""
    out, fed, other, one, two = ids, ids, negative_ids, None, None
    for _ in range(new):
        cond, one = cached_step(model, fed, one)
        uncond, two = cached_step(model, other, two)
        fed = other = pick(guide_(cond, uncond, scale))
        if fed.item() in eos_ids:
            break
        out = torch.cat([out, fed], -1)
    return out


@wrong("cfg_decode", SEED, "Each of `eos_ids` ends the text, and is appended")
def knows_the_first_eos(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Compares with eos_ids[0]."""
    return decode_(model, ids, negative_ids, scale, new, pick, eos_ids[:1])


# --- context_aware --------------------------------------------------------------------

TRUST = "test_trust_in_the_context_worked_by_hand"


@wrong("context_aware", TRUST, "A weight of 0 is the model with the context")
def as_guide_does(with_context, without, weight):
    """Takes the weight for a scale: off by one."""
    return guide_(with_context, without, weight)


@wrong("context_aware", TRUST, "with and without have changed places")
def trusts_the_memory(with_context, without, weight):
    """Moves away from the context."""
    a, b = logp(with_context), logp(without)
    return a + weight * (b - a)


@wrong("context_aware", TRUST, "with and without have changed places")
def arguments_exchanged(with_context, without, weight):
    """The right line from the wrong end."""
    return guide_(without, with_context, 1 + weight)


@wrong("context_aware", TRUST, "1 + weight times the first")
def subtracts_only(with_context, without, weight):
    """Forgets to weigh the context, too."""
    return logp(with_context) - weight * logp(without)


@wrong("context_aware", TRUST, "not in probabilities")
def on_probabilities(with_context, without, weight):
    """A line through probabilities."""
    a, b = with_context.float().softmax(-1), without.float().softmax(-1)
    return a + weight * (a - b)


@wrong("context_aware", "test_half_precision_is_trusted_in_float32", "torch.float32")
def trust_in_half_precision(with_context, without, weight):
    """In the dtype of the logits."""
    return with_context + weight * (with_context - without)


@wrong("context_aware", "test_half_precision_is_trusted_in_float32", "before the log")
def trust_in_float32_too_late(with_context, without, weight):
    """Rounds the difference to half precision."""
    return (with_context + weight * (with_context - without)).float()


@wrong("context_aware", TRUST, "the weight starts elsewhere")
def off_by_one_the_other_way(with_context, without, weight):
    """Converts the weight with - 1 instead of + 1."""
    return guide_(with_context, without, weight - 1)


@wrong(
    "context_aware",
    "test_trust_in_the_context_leaves_its_arguments_alone",
    "was changed",
)
def the_context_itself(with_context, without, weight):
    """With weight 0 there is nothing to do, so it returns its argument."""
    if weight == 0:
        return with_context.float()
    return guide_(with_context, without, 1 + weight)


# --- plausible ------------------------------------------------------------------------

MASK = "test_the_plausible_ones_worked_by_hand"


@wrong("plausible", MASK, "alpha times the largest probability")
def an_absolute_floor(logits, alpha):
    """At least alpha, whatever the likeliest has."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    return logits.float().softmax(-1) >= alpha


@wrong("plausible", MASK, "True stands for tokens that are plausible")
def what_is_to_be_removed(logits, alpha):
    """A mask for masked_fill."""
    return ~plausible_(logits, alpha)


@wrong("plausible", "test_each_row_has_a_likeliest_token_of_its_own", "of its own")
def one_floor_for_all(logits, alpha):
    """The largest probability of the batch."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    probs = logits.float().softmax(-1)
    return probs >= alpha * probs.max()


@wrong("plausible", "test_what_ties_with_the_likeliest_is_plausible", "At least")
def above_the_floor(logits, alpha):
    """More than, where at least is asked for."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    probs = logits.float().softmax(-1)
    return probs > alpha * probs.amax(-1, keepdim=True)


@wrong("plausible", MASK, "alpha times the largest probability")
def on_logits(logits, alpha):
    """alpha times the largest logit."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    return logits >= alpha * logits.amax(-1, keepdim=True)


@wrong("plausible", MASK, "should be a mask (bool)")
def filtered(logits, alpha):
    """min_p_filter: logits, not a mask."""
    return logits.float().masked_fill(~plausible_(logits, alpha), -INF)


@wrong(
    "plausible", "test_an_alpha_outside_0_to_1_is_refused", "should raise ValueError"
)
def takes_any_alpha(logits, alpha):
    """No look at alpha."""
    probs = logits.float().softmax(-1)
    return probs >= alpha * probs.amax(-1, keepdim=True)


@wrong("plausible", MASK, "math domain error")
def the_log_of_zero(logits, alpha):
    """math.log(0) is an error."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    return logits >= logits.amax(-1, keepdim=True) + math.log(alpha)


@wrong(
    "plausible",
    "test_plausible_of_half_precision_is_judged_in_float32",
    "Make float32 of them",
)
def softmax_in_half_precision(logits, alpha):
    """The probabilities are rounded."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    probs = logits.softmax(-1)
    return probs >= alpha * probs.amax(-1, keepdim=True)


@wrong("plausible", "test_the_logits_of_plausible_stay_as_they_are", "was changed")
def shifts_the_logits(logits, alpha):
    """Subtracts the largest, in place."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    logits -= logits.amax(-1, keepdim=True)
    return logits.float().exp() >= alpha


# --- contrastive ----------------------------------------------------------------------

CONTRAST = "test_contrast_worked_by_hand"
FORMULA = "test_contrast_is_the_formula_for_plausible_tokens"


def masked(scores, by, alpha):
    return scores.masked_fill(~plausible_(by, alpha), -INF)


@wrong("contrastive", CONTRAST, "Tokens that are not plausible get -inf")
def without_a_mask(expert, amateur, alpha, beta):
    """Promotes what the amateur finds impossible."""
    plausible_(expert, alpha)
    return guide_(expert, amateur, 1 + beta)


@wrong("contrastive", FORMULA, "Plausible for the expert, not for the amateur")
def plausible_for_the_amateur(expert, amateur, alpha, beta):
    """The wrong judge."""
    return masked(guide_(expert, amateur, 1 + beta), amateur, alpha)


@wrong("contrastive", FORMULA, "The mask looks at the expert, not at the contrast")
def plausible_for_the_contrast(expert, amateur, alpha, beta):
    """The mask comes after what it should prevent."""
    scores = guide_(expert, amateur, 1 + beta)
    return masked(scores, scores, alpha)


@wrong("contrastive", FORMULA, "forgets the expert itself")
def the_ratio_alone(expert, amateur, alpha, beta):
    """The form of Li et al., which has no beta."""
    return masked(logp(expert) - logp(amateur), expert, alpha)


@wrong("contrastive", FORMULA, "expert + beta * (expert - amateur)")
def the_amateur_weighted(expert, amateur, alpha, beta):
    """1 + beta is missing."""
    return masked(logp(expert) - beta * logp(amateur), expert, alpha)


@wrong("contrastive", CONTRAST, "expert and amateur have changed places")
def towards_the_amateur(expert, amateur, alpha, beta):
    """The wrong direction."""
    e, a = logp(expert), logp(amateur)
    return masked(e + beta * (a - e), expert, alpha)


@wrong("contrastive", FORMULA, "beta starts at the expert")
def beta_as_a_scale(expert, amateur, alpha, beta):
    """The convention of guide."""
    return masked(guide_(expert, amateur, beta), expert, alpha)


@wrong("contrastive", FORMULA, "-inf, not 0")
def zero_for_the_others(expert, amateur, alpha, beta):
    """0 is a high log-probability."""
    scores = guide_(expert, amateur, 1 + beta)
    return scores * plausible_(expert, alpha)


@wrong("contrastive", "test_what_only_the_amateur_finds_impossible_is_not_taken", "nan")
def masked_first(expert, amateur, alpha, beta):
    """-inf in both, and inf - inf is nan."""
    mask = ~plausible_(expert, alpha)
    e = logp(expert).masked_fill(mask, -INF)
    return e + beta * (e - logp(amateur))


@wrong("contrastive", "test_half_precision_is_contrasted_in_float32", "torch.float32")
def contrast_in_half_precision(expert, amateur, alpha, beta):
    """In the dtype of the logits."""
    e, a = expert.log_softmax(-1), amateur.log_softmax(-1)
    return masked(e + beta * (e - a), expert, alpha)


@wrong("contrastive", "test_the_alpha_of_a_contrast_is_checked", "should raise")
def any_alpha(expert, amateur, alpha, beta):
    """No look at alpha."""
    return masked(guide_(expert, amateur, 1 + beta), expert, min(max(alpha, 0), 1))


@wrong("contrastive", CONTRAST, "~ turns a mask")
def without_the_tilde(expert, amateur, alpha, beta):
    """masked_fill fills where the mask is True."""
    scores = guide_(expert, amateur, 1 + beta)
    return scores.masked_fill(plausible_(expert, alpha), -INF)


@wrong("contrastive", CONTRAST, "expert and amateur have changed places")
def guided_towards_the_amateur(expert, amateur, alpha, beta):
    """guide with its arguments the wrong way round."""
    scores = guide_(amateur, expert, 1 + beta)
    return scores.masked_fill(~plausible_(expert, alpha), -INF)


# --- proxy_tune -----------------------------------------------------------------------

TUNED = "test_tuning_by_proxy_worked_by_hand"
LINE = "test_tuning_by_proxy_is_the_formula"


@wrong("proxy_tune", TUNED, "tuned and untuned have changed places")
def untunes(base, tuned, untuned, weight=1.0):
    """Takes the tuning away."""
    return logp(base) + weight * (logp(untuned) - logp(tuned))


@wrong("proxy_tune", LINE, "What is moved is the base model")
def moves_the_small_one(base, tuned, untuned, weight=1.0):
    """Starts at the untuned model."""
    return logp(untuned) + weight * (logp(tuned) - logp(base))


@wrong("proxy_tune", LINE, "What is moved is the base model")
def starts_at_the_tuned_one(base, tuned, untuned, weight=1.0):
    """Adds the base to the tuned model."""
    return logp(tuned) + weight * (logp(base) - logp(untuned))


@wrong("proxy_tune", LINE, "What tuning did is tuned - untuned")
def towards_the_tuned_one(base, tuned, untuned, weight=1.0):
    """A mixture of two models."""
    return logp(base) + weight * (logp(tuned) - logp(base))


@wrong("proxy_tune", LINE, "The difference is weighted")
def forgets_the_weight(base, tuned, untuned, weight=1.0):
    """weight is not used."""
    return logp(base) + logp(tuned) - logp(untuned)


@wrong("proxy_tune", LINE, "that of the difference alone")
def weighs_everything(base, tuned, untuned, weight=1.0):
    """A temperature on top."""
    return weight * (logp(base) + logp(tuned) - logp(untuned))


@wrong("proxy_tune", TUNED, "not in probabilities")
def adds_probabilities(base, tuned, untuned, weight=1.0):
    """A line through probabilities."""
    b, t, u = (x.float().softmax(-1) for x in (base, tuned, untuned))
    return b + weight * (t - u)


@wrong("proxy_tune", "test_the_weight_is_1_if_none_is_given", "should be")
def another_default(base, tuned, untuned, weight=0.5):
    """Half the tuning."""
    return logp(base) + weight * (logp(tuned) - logp(untuned))


@wrong(
    "proxy_tune", "test_half_precision_is_tuned_in_float32", "before the log_softmax"
)
def tuned_in_half_precision(base, tuned, untuned, weight=1.0):
    """Rounded on the way."""
    return (base + weight * (tuned - untuned)).float()


@wrong("proxy_tune", "test_tuning_leaves_its_arguments_alone", "was changed")
def tunes_in_place(base, tuned, untuned, weight=1.0):
    """base += ..."""
    base += weight * (tuned - untuned)
    return base.float()


# --- js_divergence --------------------------------------------------------------------

JS = "test_divergence_worked_by_hand"
FLOATS = "test_divergence_agrees_with_plain_floats"


def kl(a, b):
    return torch.special.xlogy(a, a / b.clamp(min=1e-38)).sum(-1)


def three(p_logits, q_logits):
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    return p, q, (p + q) / 2


@wrong("js_divergence", FLOATS, "the arguments are exchanged")
def the_wrong_way_round(p_logits, q_logits):
    """kl_div takes the logarithm of the second distribution first: DoLa's code."""
    _, _, m = three(p_logits, q_logits)
    kl_div = torch.nn.functional.kl_div
    parts = [kl_div(logp(x), m, reduction="none").sum(-1) for x in (p_logits, q_logits)]
    return (parts[0] + parts[1]) / 2


@wrong("js_divergence", FLOATS, "which is not symmetric")
def one_kl(p_logits, q_logits):
    """KL from one to the other."""
    p, q, _ = three(p_logits, q_logits)
    return kl(p, q)


@wrong("js_divergence", FLOATS, "KL to the mean m")
def both_kls(p_logits, q_logits):
    """Jeffreys: symmetric, but it may be infinite."""
    p, q, _ = three(p_logits, q_logits)
    return (kl(p, q) + kl(q, p)) / 2


@wrong("js_divergence", JS, "not their sum")
def the_sum(p_logits, q_logits):
    """Twice too much."""
    return 2 * js_(p_logits, q_logits)


@wrong("js_divergence", JS, "one half of it")
def half_of_it(p_logits, q_logits):
    """KL(p, m) alone."""
    p, _, m = three(p_logits, q_logits)
    return kl(p, m)


@wrong("js_divergence", JS, "In nats, not in bits")
def in_bits(p_logits, q_logits):
    """log2."""
    return js_(p_logits, q_logits) / math.log(2)


@wrong("js_divergence", JS, "its square root")
def the_distance(p_logits, q_logits):
    """As scipy's jensenshannon."""
    return js_(p_logits, q_logits).clamp(min=0).sqrt()


@wrong("js_divergence", JS, "A sum over the vocabulary, not a mean")
def mean_over_the_vocabulary(p_logits, q_logits):
    """reduction="mean"."""
    return js_(p_logits, q_logits) / p_logits.shape[-1]


@wrong("js_divergence", JS, "0 times ln 0 is nan")
def zero_times_infinity(p_logits, q_logits):
    """p * log(p / m) where p is 0."""
    p, q, m = three(p_logits, q_logits)
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


@wrong(
    "js_divergence",
    "test_a_token_of_probability_0_in_both_adds_nothing",
    "0 times ln 0 is nan",
)
def zero_by_zero(p_logits, q_logits):
    """xlogy saves p = 0, but not m = 0."""
    p, q, m = three(p_logits, q_logits)
    xlogy = torch.special.xlogy
    return (xlogy(p, p / m).sum(-1) + xlogy(q, q / m).sum(-1)) / 2


@wrong("js_divergence", JS, "should have shape (3,)")
def one_number_for_the_batch(p_logits, q_logits):
    """The mean over rows."""
    return js_(p_logits, q_logits).mean()


@wrong(
    "js_divergence",
    "test_divergence_of_half_precision_is_in_float32",
    "should be torch",
)
def divergence_in_half_precision(p_logits, q_logits):
    """In the dtype of the logits."""
    return js_(p_logits, q_logits).to(p_logits.dtype)


@wrong("js_divergence", JS, "Or: KL to the mean m")
def from_one_to_the_other(p_logits, q_logits):
    """The mean of KL(p, q) and KL(q, p), infinite where one has 0."""
    a, b = logp(p_logits), logp(q_logits)
    return ((a.exp() - b.exp()) * (a - b)).sum(-1) / 2


@wrong("js_divergence", JS, "should be [0.215762, 0, 0.693147], not [16")
def the_mean_of_the_logits(p_logits, q_logits):
    """m from the mean of the logits: no mean of distributions."""
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    m = ((p_logits + q_logits) / 2).float().softmax(-1).clamp(min=1e-30)
    parts = (torch.special.xlogy(x, x / m).sum(-1) for x in (p, q))
    return sum(parts) / 2


# --- dola -----------------------------------------------------------------------------

OWN = "test_each_row_has_a_layer_of_its_own"
LAYERS = "test_layers_agree_with_plain_floats"


def with_layers(final, early, alpha, chosen, scores=None):
    amateur = early[chosen, torch.arange(len(final))]
    scores = logp(final) - logp(amateur) if scores is None else scores
    return masked(scores, final, alpha)


def far_of(final, early):
    return torch.stack([js_(final, layer) for layer in early])


@wrong("dola", OWN, "Each row has a layer of its own")
def one_layer_for_the_batch(final, early, alpha):
    """The mean over the batch chooses, as in transformers' version."""
    layer = far_of(final, early).mean(-1).argmax()
    return masked(logp(final) - logp(early[layer]), final, alpha)


@wrong(
    "dola",
    "test_the_layer_is_that_of_the_jensen_shannon_divergence",
    "chooses the layer",
)
def chosen_the_wrong_way_round(final, early, alpha):
    """KL(m, p), as in DoLa's published code."""
    far = torch.stack([the_wrong_way_round.value(final, layer) for layer in early])
    return with_layers(final, early, alpha, far.argmax(0))


@wrong(
    "dola",
    "test_the_layer_is_that_of_the_jensen_shannon_divergence",
    "nor does KL(p ‖ q)",
)
def chosen_by_one_kl(final, early, alpha):
    """KL from the final layer to the early one."""
    far = torch.stack([one_kl.value(final, layer) for layer in early])
    return with_layers(final, early, alpha, far.argmax(0))


@wrong("dola", OWN, "The layer that differs most")
def the_nearest_layer(final, early, alpha):
    """argmin."""
    return with_layers(final, early, alpha, far_of(final, early).argmin(0))


@wrong("dola", LAYERS, "Tokens that are not plausible get -inf")
def layers_without_a_mask(final, early, alpha):
    """All tokens may be taken."""
    plausible_(final, alpha)
    return dola_(final, early, 0)


@wrong("dola", LAYERS, "Plausible for the final layer")
def plausible_for_the_early_layer(final, early, alpha):
    """The wrong judge."""
    chosen = far_of(final, early).argmax(0)
    amateur = early[chosen, torch.arange(len(final))]
    return masked(logp(final) - logp(amateur), amateur, alpha)


@wrong("dola", "test_layers_worked_by_hand", "should be")
def the_last_early_layer(final, early, alpha):
    """Chooses nothing."""
    far = far_of(final, early)
    return with_layers(final, early, alpha, torch.full_like(far[0], 0).long())


@wrong("dola", LAYERS, "final minus early")
def early_minus_final(final, early, alpha):
    """The wrong sign."""
    chosen = far_of(final, early).argmax(0)
    amateur = early[chosen, torch.arange(len(final))]
    return masked(logp(amateur) - logp(final), final, alpha)


@wrong("dola", LAYERS, "counted twice")
def the_expert_counts_twice(final, early, alpha):
    """The form of contrastive decoding with beta 1."""
    chosen = far_of(final, early).argmax(0)
    amateur = early[chosen, torch.arange(len(final))]
    return contrastive_(final, amateur, alpha, 1.0)


@wrong("dola", "test_of_layers_that_differ_alike_the_first_is_taken", "the first")
def the_last_of_equal_ones(final, early, alpha):
    """>= in a loop."""
    far = far_of(final, early)
    chosen = len(early) - 1 - far.flip(0).argmax(0)
    return with_layers(final, early, alpha, chosen)


@wrong("dola", "test_the_alpha_of_layers_is_checked", "should raise ValueError")
def layers_with_any_alpha(final, early, alpha):
    """No look at alpha."""
    return dola_(final, early, min(max(alpha, 0), 1))


# --- contrastive_search_pick ----------------------------------------------------------

PICK = "test_a_pick_worked_by_hand"
RANDOM = "test_picks_agree_with_plain_floats"
normalize = torch.nn.functional.normalize


def checked(candidates, k):
    if candidates.shape[1] != k:
        raise ValueError("k")


def search(probs, candidates, past, k, alpha, *, near=None, score=None, unit=True):
    checked(candidates, k)
    top = probs.topk(k)
    a, b = (
        (normalize(x, dim=-1) for x in (candidates, past))
        if unit
        else (candidates, past)
    )
    cosines = a @ b.transpose(1, 2)
    penalty = cosines.amax(-1) if near is None else near(cosines)
    scores = (
        (1 - alpha) * top.values - alpha * penalty
        if score is None
        else score(top.values, penalty)
    )
    return top.indices.gather(-1, scores.argmax(-1, keepdim=True))


PLACE = "test_candidates_stand_in_the_order_of_their_probability"


@wrong("contrastive_search_pick", PLACE, "its place among the candidates")
def the_place(probs, candidate_states, past_states, k, alpha):
    """argmax over candidates is no token."""
    checked(candidate_states, k)
    token = search(probs, candidate_states, past_states, k, alpha)
    return (probs.topk(k).indices == token).long().argmax(-1, keepdim=True)


@wrong(
    "contrastive_search_pick",
    "test_the_nearest_place_of_the_past_counts",
    "The largest similarity counts",
)
def the_mean_similarity(probs, candidate_states, past_states, k, alpha):
    """The mean over the past."""
    return search(
        probs, candidate_states, past_states, k, alpha, near=lambda c: c.mean(-1)
    )


@wrong(
    "contrastive_search_pick",
    "test_the_nearest_place_of_the_past_counts",
    "The largest similarity counts",
)
def the_last_place_only(probs, candidate_states, past_states, k, alpha):
    """Compares with the last token."""
    return search(
        probs, candidate_states, past_states, k, alpha, near=lambda c: c[..., -1]
    )


@wrong(
    "contrastive_search_pick",
    "test_the_length_of_a_state_makes_no_difference",
    "A cosine",
)
def the_dot_product(probs, candidate_states, past_states, k, alpha):
    """Long vectors are near to all."""
    return search(probs, candidate_states, past_states, k, alpha, unit=False)


@wrong("contrastive_search_pick", "test_states_that_point_away_win", "is a bonus")
def no_bonus(probs, candidate_states, past_states, k, alpha):
    """A negative cosine counts as 0."""
    return search(
        probs,
        candidate_states,
        past_states,
        k,
        alpha,
        near=lambda c: c.amax(-1).clamp(min=0),
    )


@wrong("contrastive_search_pick", PICK, "should be token 1")
def a_bonus_for_repetition(probs, candidate_states, past_states, k, alpha):
    """Adds the similarity."""
    return search(
        probs,
        candidate_states,
        past_states,
        k,
        alpha,
        score=lambda p, c: (1 - alpha) * p + alpha * c,
    )


@wrong(
    "contrastive_search_pick", "test_picks_agree_with_plain_floats", "should be token"
)
def log_probabilities(probs, candidate_states, past_states, k, alpha):
    """ln p, as in the rest of the lesson."""
    return search(
        probs,
        candidate_states,
        past_states,
        k,
        alpha,
        score=lambda p, c: (1 - alpha) * p.log() - alpha * c,
    )


@wrong(
    "contrastive_search_pick", "test_picks_agree_with_plain_floats", "should be token"
)
def the_whole_probability(probs, candidate_states, past_states, k, alpha):
    """1 - alpha is missing."""
    return search(
        probs,
        candidate_states,
        past_states,
        k,
        alpha,
        score=lambda p, c: p - alpha * c,
    )


@wrong("contrastive_search_pick", "test_k_is_the_number_of_candidates", "should raise")
def any_k(probs, candidate_states, past_states, k, alpha):
    """No look at k."""
    k = candidate_states.shape[1]
    return search(probs, candidate_states, past_states, k, alpha)


@wrong("contrastive_search_pick", PICK, "should have shape (1, 1)")
def without_a_column(probs, candidate_states, past_states, k, alpha):
    """(batch,) ids."""
    return search(probs, candidate_states, past_states, k, alpha)[:, 0]


@wrong(
    "contrastive_search_pick",
    "test_a_pick_leaves_its_arguments_alone",
    "was changed",
)
def normalises_in_place(probs, candidate_states, past_states, k, alpha):
    """/= on the states."""
    checked(candidate_states, k)
    past_states /= past_states.norm(dim=-1, keepdim=True)
    return search(probs, candidate_states, past_states, k, alpha)
