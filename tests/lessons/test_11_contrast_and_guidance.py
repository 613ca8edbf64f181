"""Checks of lesson 11. Oracles: cases worked by hand, sums over plain floats,
`generate`, transformers' own processors, and the reductions to greedy decoding."""

import math

import pytest
import torch
from transformers import MinPLogitsWarper
from transformers.generation.logits_process import (
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import Watched, random_gpt2, random_llama

guide = exercise("guide")
cfg_decode = exercise("cfg_decode")
context_aware = exercise("context_aware")
plausible = exercise("plausible")
contrastive = exercise("contrastive")
proxy_tune = exercise("proxy_tune")
js_divergence = exercise("js_divergence")
dola = exercise("dola")
contrastive_search_pick = exercise("contrastive_search_pick")

INF = float("inf")
LN2 = math.log(2)
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def logits_of(*rows):
    """Logits of rows of probabilities. Each row has a constant of its own on top, as
    logits may have."""
    shift = torch.arange(len(rows))[:, None] * 3.0 - 2.0
    return torch.tensor(rows).log() + shift


def random_logits(*shape, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * spread


def line_by_hand(a, b, c, weight, keep=None):
    """The distribution of a + weight * (b - c), row by row, in plain floats."""
    rows = []
    for n, (x, y, z) in enumerate(zip(a.tolist(), b.tolist(), c.tolist(), strict=True)):
        scores = [i + weight * (j - k) for i, j, k in zip(x, y, z, strict=True)]
        # A constant for each row (what log_softmax subtracts) changes no distribution.
        if keep is not None:
            scores = [
                s if k else -INF for s, k in zip(scores, keep[n].tolist(), strict=True)
            ]
        top = max(scores)
        parts = [math.exp(s - top) for s in scores]
        rows.append([part / math.fsum(parts) for part in parts])
    return torch.tensor(rows, dtype=torch.float64)


def distribution(got, wanted, call, hint="", tolerance=1e-5):
    """The softmax of scores is the wanted one: a constant for a row is free."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    expect.tensor(got, wanted.shape, call, torch.float32)
    bad = got.isnan()
    assert not bad.any(), (
        f"{call} has nan at {bad.nonzero()[0].tolist()}: inf - inf, or 0 times inf"
    )
    what = f"the softmax of {call}"
    expect.same(got.double().softmax(-1), wanted, what, hint, tolerance)


def lines_of_probabilities(a, b, c, weight):
    """The mistake of a line through probabilities, and its logarithm."""
    line = a.exp() + weight * (b.exp() - c.exp())
    hint = "In log-probabilities, not in probabilities: they would become negative."
    return [(line, hint), (line.clamp(min=1e-20).log(), hint)]


def first_that_fits(got, cases, tolerance=1e-4):
    """The hint of the first (softmax of scores, hint) that is what came back."""
    if not isinstance(got, torch.Tensor) or not got.is_floating_point():
        return ""
    for scores, hint in cases:
        if scores.shape == got.shape and torch.allclose(
            got.double().softmax(-1), scores.double().softmax(-1), atol=tolerance
        ):
            return hint
    return ""


# --- guide ----------------------------------------------------------------------------

CONVENTION = "That is the other convention, cond + scale * (cond - uncond)."


def misguided(got, cond, uncond, scale):
    """What a common mistake would give, if that is what came back."""
    c, u = cond.float().log_softmax(-1), uncond.float().log_softmax(-1)
    cases = [
        (c + scale * (c - u), CONVENTION),
        (c + scale * (u - c), "cond and uncond have changed places."),
        *lines_of_probabilities(u, c, u, scale),
    ]
    if not isinstance(got, torch.Tensor) or got.shape != c.shape:
        return ""
    right = u + scale * (c - u)
    if torch.allclose(got.float(), right.softmax(-1), atol=1e-4):
        return "Scores are asked for, not their softmax."
    if torch.allclose(got.float(), right.log_softmax(-1), atol=1e-4):
        return "The scores are not normalised again."
    if torch.allclose(got.float().softmax(-1), right.softmax(-1), atol=1e-5):
        return "The same distribution, but log_softmax comes first in both."
    return first_that_fits(got, cases)


def test_guidance_worked_by_hand(guide):
    cond, uncond = logits_of([0.6, 0.4], [0.5, 0.5]), logits_of([0.8, 0.2], [0.5, 0.5])
    got = guide(cond, uncond, 2)
    call = "guide of cond 0.6, 0.4 and uncond 0.8, 0.2 with scale 2, and a second row,"
    wanted = [[math.log(0.45), math.log(0.8)], [-LN2, -LN2]]
    expect.same(got, wanted, call, misguided(got, cond, uncond, 2), 1e-5)
    expect.tensor(got, (2, 2), call, torch.float32)


def test_scale_1_is_with_the_condition_and_0_is_without(guide):
    cond, uncond = logits_of([0.7, 0.1, 0.2]), logits_of([0.25, 0.5, 0.25])
    for scale, wanted in ((1, [0.7, 0.1, 0.2]), (0, [0.25, 0.5, 0.25])):
        got = guide(cond, uncond, scale)
        call = f"guide of cond 0.7, 0.1, 0.2 and uncond 0.25, 0.5, 0.25, scale {scale},"
        hint = misguided(got, cond, uncond, scale)
        expect.same(got, torch.tensor([wanted]).log(), call, hint, 1e-5)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.5, 2, 7.5])
def test_guidance_agrees_with_transformers(guide, scale):
    cond, uncond = random_logits(3, 40), random_logits(3, 40, seed=1)

    def model(*_, **__):
        return type("Out", (), {"logits": uncond[:, None], "get": lambda *_: None})()

    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)
    oracle = processor(torch.zeros(3, 1, dtype=torch.long), cond)
    got = guide(cond, uncond, scale)
    call = f"guide of random logits (3, 40) with scale {scale}"
    expect.same(got, oracle, call, misguided(got, cond, uncond, scale), 1e-4)


def test_guidance_of_a_row_does_not_depend_on_the_others(guide):
    cond, uncond = random_logits(4, 9, seed=2), random_logits(4, 9, seed=3)
    whole = guide(cond, uncond, 3.0)
    for row in range(4):
        alone = guide(cond[row : row + 1], uncond[row : row + 1], 3.0)
        call = f"guide of four rows: row {row}"
        expect.same(whole[row], alone[0], f"{call}, as it is alone,", "", 1e-4)


@HALVES
def test_half_precision_is_guided_in_float32(guide, dtype):
    cond, uncond = (
        random_logits(2, 50).to(dtype),
        random_logits(2, 50, seed=1).to(dtype),
    )
    got = guide(cond, uncond, 4.0)
    call = f"guide of {dtype} logits"
    expect.tensor(got, (2, 50), call, torch.float32)
    c, u = cond.double().log_softmax(-1), uncond.double().log_softmax(-1)
    hint = "Make float32 of them before the log_softmax."
    expect.same(got, (u + 4 * (c - u)).float(), call, hint, 1e-3)


def test_guidance_leaves_its_arguments_alone(guide):
    cond, uncond = random_logits(2, 5), random_logits(2, 5, seed=1)
    for scale in (0, 1, 2.5):
        with expect.unchanged("make new tensors", cond=cond, uncond=uncond):
            guide(cond, uncond, scale).fill_(0.0)


# --- cfg_decode -----------------------------------------------------------------------


class Script:
    """A pick that gives the tokens that it was told to, and records the scores."""

    def __init__(self, *tokens):
        self.tokens, self.seen = list(tokens), []

    def __call__(self, scores):
        expect.tensor(scores, (1, 97), "what `pick` is given", torch.float32)
        self.seen.append(scores.clone())
        assert len(self.seen) <= len(self.tokens), (
            f"`pick` was called {len(self.seen)} times, where {len(self.tokens)} calls "
            "do: once for each new token"
        )
        return torch.tensor([[self.tokens[len(self.seen) - 1]]])


def greedy(scores):
    return scores.argmax(-1, keepdim=True)


def sampled(scores):
    return torch.multinomial(scores.softmax(-1), 1)


def prompt():
    return torch.tensor([[5, 17, 40, 8]])


def negative_prompt():
    return torch.tensor([[61, 9]])


def generated(model, ids, negative, scale, new, **options):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        negative_prompt_ids=negative,
        guidance_scale=scale,
        max_new_tokens=new,
        pad_token_id=0,
        **options,
    )


@MODELS
@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_greedy_guidance_gives_the_ids_of_generate(cfg_decode, make, scale):
    model = make(eos_token_id=None)
    for ids, negative in (
        (prompt(), negative_prompt()),
        (negative_prompt(), prompt()[:, -1:]),
    ):
        oracle = generated(model, ids, negative, scale, 8, do_sample=False)
        got = cfg_decode(model, ids, negative, scale, 8, greedy, [])
        call = (
            f"cfg_decode of {ids.tolist()}, negative_ids {negative.tolist()}, "
            f"scale {scale}"
        )
        hint = "Each text has a cache of its own; both get the new token."
        expect.same_ids(got, oracle, call, hint=hint)
        expect.tensor(got, oracle.shape, call, torch.int64)


@MODELS
def test_the_same_seed_gives_the_ids_of_generate(cfg_decode, make):
    model = make(eos_token_id=[2, 30, 31, 32])
    for seed in range(2):
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0}
        oracle = generated(model, prompt(), negative_prompt(), 1.5, 9, **options)
        torch.manual_seed(seed)
        got = cfg_decode(
            model, prompt(), negative_prompt(), 1.5, 9, sampled, [2, 30, 31, 32]
        )
        call = f"cfg_decode with a pick that samples, seed {seed}"
        expect.same_ids(got, oracle, call, hint=ends_elsewhere(got, oracle))


def ends_elsewhere(got, oracle):
    """What is wrong where all tokens agree but the number of them."""
    length = min(got.shape[-1], oracle.shape[-1])
    if got.shape == oracle.shape or not torch.equal(
        got[:, :length], oracle[:, :length]
    ):
        return "One call of pick for each new token, which both texts get."
    return "Each of `eos_ids` ends the text, and is appended."


def guided_by_both(model, cond):
    """What one cache for both texts would give."""
    with torch.no_grad():
        logits = model(torch.cat([prompt(), negative_prompt()], -1)).logits[:, -1]
    uncond = logits.double().log_softmax(-1)
    return uncond + 2.5 * (cond - uncond)


@MODELS
def test_pick_gets_the_guided_scores_of_both_whole_texts(cfg_decode, make):
    model, pick = make(eos_token_id=None), Script(7, 60, 33, 12)
    got = cfg_decode(model, prompt(), negative_prompt(), 2.5, 4, pick, [])
    call = "cfg_decode whose pick gives 7, 60, 33, 12"
    expect.same_ids(got, torch.tensor([[5, 17, 40, 8, 7, 60, 33, 12]]), call)
    assert len(pick.seen) == 4, f"{call} called pick {len(pick.seen)} times, not 4"
    texts = {
        "the prompt": prompt()[0].tolist(),
        "the negative one": negative_prompt()[0].tolist(),
    }
    for step, token in enumerate(pick.tokens):
        with torch.no_grad():
            c, u = (
                model(torch.tensor([text])).logits[:, -1].double().log_softmax(-1)
                for text in texts.values()
            )
        seen = pick.seen[step].double()
        wanted = u + 2.5 * (c - u)
        hint = ""
        if torch.allclose(seen.softmax(-1), (c + 2.5 * (c - u)).softmax(-1), atol=1e-3):
            hint = CONVENTION
        elif step and torch.allclose(seen.softmax(-1), c.softmax(-1), atol=1e-3):
            hint = "That is the plain model, without guidance."
        elif not step and torch.allclose(
            seen.softmax(-1), guided_by_both(model, c).softmax(-1), atol=1e-3
        ):
            hint = "Each text has a cache of its own: the second has read the first."
        elif step:
            hint = "The new tokens belong to both texts, each with a cache of its own."
        where = f"{call}: the softmax of what `pick` is given at step {step}"
        expect.same(seen.softmax(-1), wanted.softmax(-1), where, hint, 1e-3)
        where = f"{call}: what `pick` is given at step {step}"
        hint = "The same distribution, but the scores are those of `guide`."
        expect.same(seen, wanted, where, hint, 1e-3)
        for text in texts.values():
            text.append(token)


@MODELS
def test_each_text_is_fed_once(cfg_decode, make):
    model = Watched(make(eos_token_id=None))
    negative = torch.tensor([[61, 9, 3, 4]])  # as long as the prompt
    cfg_decode(model, prompt(), negative, 2.0, 5, Script(7, 8, 9, 10, 11), [])
    call = "cfg_decode of two prompts of 4 ids, 5 new tokens,"
    fed = sum(rows * columns for rows, columns in model.shapes)
    hint = ""
    if any(columns > 4 for _, columns in model.shapes):
        hint = " After the prompt the model is given the new token only."
    elif len(model.shapes) > 10 or fed > 16:
        hint = " Nobody asks for what comes after the last token."
    enough = len(model.shapes) <= 10 and fed <= 16
    assert enough, (
        f"{call} should call the model at most 10 times with 16 tokens in all, not "
        f"{len(model.shapes)} times with {fed}: shapes {expect.show(model.shapes)}."
        f"{hint}"
    )
    assert not model.grad, f"{call} should call the model in torch.no_grad()"


def test_scale_1_is_plain_decoding(cfg_decode):
    model = random_llama(eos_token_id=None)
    oracle = model.generate(
        prompt(),
        attention_mask=torch.ones_like(prompt()),
        do_sample=False,
        max_new_tokens=7,
    )
    got = cfg_decode(model, prompt(), negative_prompt(), 1.0, 7, greedy, [])
    expect.same_ids(got, oracle, "cfg_decode with scale 1, of greedy decoding,")


def test_an_eos_ends_the_text_and_stays_in_it(cfg_decode):
    ids = torch.tensor([[5, 2, 33, 8]])  # an EOS in a prompt ends nothing
    model = random_llama(eos_token_id=None)
    for eos_ids, tokens, wanted in (
        ([2], (7, 2, 9), [7, 2]),
        ([2, 33], (7, 8, 33, 9), [7, 8, 33]),
        ([2, 33], (7, 2, 33, 9), [7, 2]),
        ([33], (2, 33, 9), [2, 33]),
        ([7], (7, 1, 1), [7]),
        ([], (2, 33, 0), [2, 33, 0]),
    ):
        got = cfg_decode(
            model, ids, negative_prompt(), 2.0, len(tokens), Script(*tokens), eos_ids
        )
        call = f"cfg_decode with eos_ids {eos_ids}, whose pick gives {tokens}"
        hint = ""
        if isinstance(got, torch.Tensor) and got.shape == (1, 4) and wanted:
            hint = "The EOS in the prompt ends nothing."
        expect.same_ids(got, torch.tensor([[5, 2, 33, 8, *wanted]]), call, hint=hint)


def test_no_new_tokens_are_the_prompt(cfg_decode):
    got = cfg_decode(random_llama(), prompt(), negative_prompt(), 2.0, 0, Script(), [2])
    expect.same_ids(got, prompt(), "cfg_decode with max_new_tokens=0")


def test_pick_gets_float32_of_a_half_precision_model(cfg_decode):
    model = random_llama(eos_token_id=None).to(torch.bfloat16)
    got = cfg_decode(model, prompt(), negative_prompt(), 2.0, 2, Script(7, 8), [])
    call = "cfg_decode of a bfloat16 model"
    expect.same_ids(got, torch.tensor([[5, 17, 40, 8, 7, 8]]), call)


def test_both_prompts_stay_as_they_are(cfg_decode):
    ids, negative = prompt(), negative_prompt()
    with expect.unchanged("make a new tensor", ids=ids, negative_ids=negative):
        cfg_decode(random_llama(), ids, negative, 2.0, 2, Script(7, 8), [])


# --- context_aware --------------------------------------------------------------------


def mistrusted(got, a, b, weight):
    a, b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    cases = [
        (b + weight * (a - b), "A weight of 0 is the model with the context."),
        (
            a + weight * (b - a),
            "with and without have changed places, or the weight starts elsewhere: "
            "0 is the model with the context.",
        ),
        (a + (1 + weight) * (b - a), "with and without have changed places."),
        (a - weight * b, "1 + weight times the first, minus weight times the second."),
        *lines_of_probabilities(a, a, b, weight),
    ]
    return first_that_fits(got, cases)


def test_trust_in_the_context_worked_by_hand(context_aware):
    a, b = logits_of([0.6, 0.4]), logits_of([0.8, 0.2])
    twice = [0.3375 / 1.9375, 1.6 / 1.9375]  # 0.6³ / 0.8² against 0.4³ / 0.2²
    for weight, wanted in ((1, [0.36, 0.64]), (0, [0.6, 0.4]), (2, twice)):
        got = context_aware(a, b, weight)
        call = f"context_aware of 0.6, 0.4 and 0.8, 0.2 with weight {weight}"
        distribution(got, [wanted], call, mistrusted(got, a, b, weight))


@pytest.mark.parametrize("weight", [-1.0, 0, 0.5, 3])
def test_trust_in_the_context_is_the_formula(context_aware, weight):
    a, b = random_logits(3, 30), random_logits(3, 30, seed=1)
    got = context_aware(a, b, weight)
    call = f"context_aware of random logits with weight {weight}"
    wanted = line_by_hand(a, a, b, weight)
    distribution(got, wanted, call, mistrusted(got, a, b, weight))


def test_a_weight_of_0_has_the_best_token_of_the_context(context_aware):
    a, b = random_logits(5, 60, seed=4), random_logits(5, 60, seed=5)
    got = context_aware(a, b, 0)
    expect.tensor(got, (5, 60), "context_aware with weight 0", torch.float32)
    expect.same(got.argmax(-1), a.argmax(-1), "the best tokens of context_aware, 0,")


@HALVES
def test_half_precision_is_trusted_in_float32(context_aware, dtype):
    a, b = random_logits(2, 50).to(dtype), random_logits(2, 50, seed=1).to(dtype)
    with expect.unchanged("make new tensors", with_context=a, without=b):
        got = context_aware(a, b, 3.0)
    call = f"context_aware of {dtype} logits"
    hint = "Make float32 of them before the log_softmax."
    distribution(got, line_by_hand(a, a, b, 3.0), call, hint, 1e-4)


def test_trust_in_the_context_leaves_its_arguments_alone(context_aware):
    a, b = random_logits(2, 9, seed=1), random_logits(2, 9, seed=2)
    with expect.unchanged("make new tensors", with_context=a, without=b):
        for weight in (-1.0, 0, 0.5):
            context_aware(a, b, weight).fill_(0.0)


# --- plausible ------------------------------------------------------------------------


def a_mask(got, wanted, call, hint=""):
    expect.tensor(got, (len(wanted), len(wanted[0])), call)
    assert got.dtype == torch.bool, f"{call} should be a mask (bool), not {got.dtype}"
    assert got.tolist() == wanted, (
        f"{call} should be {wanted}, not {got.tolist()}. {hint}".rstrip()
    )


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (0.25, [True, True, False]),
        (0.1, [True] * 3),
        (0.6, [True, False, False]),
        (0, [True] * 3),
        (1, [True, False, False]),
    ],
)
def test_the_plausible_ones_worked_by_hand(plausible, alpha, wanted):
    got = plausible(logits_of([0.6, 0.3, 0.1]), alpha)
    call = f"plausible of the probabilities 0.6, 0.3, 0.1 with alpha={alpha}"
    hint = f"The floor is alpha times the largest probability: {alpha * 0.6:g}."
    if isinstance(got, torch.Tensor) and got.tolist() == [[not x for x in wanted]]:
        hint = "True stands for tokens that are plausible."
    a_mask(got, [wanted], call, hint)


def test_each_row_has_a_likeliest_token_of_its_own(plausible):
    logits = logits_of([0.25, 0.25, 0.25, 0.25], [0.9, 0.04, 0.03, 0.03])
    call = "plausible of a flat and a peaked row with alpha=0.3"
    hint = "Each row has a floor of its own."
    a_mask(plausible(logits, 0.3), [[True] * 4, [True] + [False] * 3], call, hint)


def test_what_ties_with_the_likeliest_is_plausible(plausible):
    logits = torch.tensor([[1.0, 1.0, 0.0], [-3.0, 2.0, 2.0]])
    call = "plausible([[1, 1, 0], [-3, 2, 2]], 1)"
    hint = "At least alpha times: what is at the floor stays."
    a_mask(plausible(logits, 1), [[True, True, False], [False, True, True]], call, hint)


def test_with_alpha_0_all_are_plausible(plausible):
    logits = torch.tensor([[0.0, -300.0, -INF]])
    call = "plausible([[0, -300, -inf]], 0)"
    hint = "Nothing is below 0 times the largest."
    a_mask(plausible(logits, 0), [[True] * 3], call, hint)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_plausible_ones_are_what_min_p_keeps(plausible, alpha):
    logits = random_logits(4, 200, seed=3)
    wanted = MinPLogitsWarper(alpha)(None, logits) > -INF
    got = plausible(logits, alpha)
    call = f"plausible of random logits (4, 200) with alpha={alpha}"
    expect.tensor(got, (4, 200), call)
    differ = (got != wanted).sum().item()
    assert not differ, f"{call}: {differ} of 800 tokens differ from what min-p keeps"


@HALVES
def test_plausible_of_half_precision_is_judged_in_float32(plausible, dtype):
    logits = random_logits(2, 20, seed=6).to(dtype)
    p = logits.double().softmax(-1)
    share = p / p.amax(-1, keepdim=True)
    for token in range(20):  # a little below its share, and a little above
        for alpha in (share[0, token].item() * x for x in (1 - 3e-4, 1 + 3e-4)):
            if alpha > 1:
                continue
            got = plausible(logits, alpha)
            call = f"plausible of {dtype} logits with alpha={alpha:.5f}"
            expect.tensor(got, (2, 20), call, torch.bool)
            assert torch.equal(got, share >= alpha), (
                f"{call}: {(got != (share >= alpha)).sum().item()} of 40 tokens are "
                "wrong. Make float32 of them before the softmax."
            )


def test_an_alpha_outside_0_to_1_is_refused(plausible):
    for alpha in (-0.1, 1.5):
        call = f"plausible(logits, {alpha})"
        expect.rejects(
            ValueError, lambda a=alpha: plausible(torch.zeros(1, 3), a), call
        )


def test_the_logits_of_plausible_stay_as_they_are(plausible):
    logits = random_logits(2, 6)
    with expect.unchanged(logits=logits):
        plausible(logits, 0.3)


# --- contrastive ----------------------------------------------------------------------


def contrasted_wrong(got, expert, amateur, alpha, beta):
    e, a = expert.float().log_softmax(-1), amateur.float().log_softmax(-1)

    def masked(scores, by):
        p = by.softmax(-1)
        return scores.masked_fill(p < alpha * p.amax(-1, keepdim=True), -INF)

    right = e + beta * (e - a)
    unlikely = e.softmax(-1) < alpha * e.softmax(-1).amax(-1, keepdim=True)
    cases = [
        (right, "Tokens that are not plausible get -inf."),
        (
            right.masked_fill(~unlikely, -INF),
            "The plausible ones got -inf, and the others their scores: ~ turns a mask.",
        ),
        (masked(right, a), "Plausible for the expert, not for the amateur."),
        (masked(right, right), "The mask looks at the expert, not at the contrast."),
        (masked(e - a, e), "expert - amateur alone forgets the expert itself."),
        (masked(e - beta * a, e), "expert + beta * (expert - amateur)."),
        (masked(e + beta * (a - e), e), "expert and amateur have changed places."),
        (
            masked(e + (1 + beta) * (a - e), e),
            "expert and amateur have changed places.",
        ),
        (masked(a + beta * (e - a), e), "beta starts at the expert: 0 is the expert."),
        (
            right.masked_fill(masked(right, e).isinf(), 0.0),
            "-inf, not 0, is the score of a token that must not be taken.",
        ),
    ]
    return first_that_fits(got, cases)


def test_contrast_worked_by_hand(contrastive):
    expert, amateur = logits_of([0.6, 0.3, 0.1]), logits_of([0.8, 0.1, 0.1])
    for beta, wanted in ((1, [1 / 3, 2 / 3, 0]), (0, [2 / 3, 1 / 3, 0])):
        got = contrastive(expert, amateur, 0.25, beta)
        call = (
            "contrastive of 0.6, 0.3, 0.1 and 0.8, 0.1, 0.1 with alpha=0.25, "
            f"beta={beta}"
        )
        hint = contrasted_wrong(got, expert, amateur, 0.25, beta)
        distribution(got, [wanted], call, hint)
        assert got[0, 2] == -INF, f"{call} has {got[0, 2]:g} at [0, 2], not -inf"


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.5), (0.02, 3.0), (0.5, 1), (0, 1)])
def test_contrast_is_the_formula_for_plausible_tokens(contrastive, alpha, beta):
    expert, amateur = random_logits(4, 40, seed=7), random_logits(4, 40, seed=8)
    p = expert.double().softmax(-1)
    keep = p >= alpha * p.amax(-1, keepdim=True)
    got = contrastive(expert, amateur, alpha, beta)
    call = f"contrastive of random logits with alpha={alpha}, beta={beta}"
    hint = contrasted_wrong(got, expert, amateur, alpha, beta)
    wanted = line_by_hand(expert, expert, amateur, beta, keep)
    distribution(got, wanted, call, hint)
    assert torch.equal(got > -INF, keep), f"{call} should be -inf where not plausible"


def test_a_beta_of_0_has_the_best_token_of_the_expert(contrastive):
    expert, amateur = random_logits(5, 60, seed=4), random_logits(5, 60, seed=5)
    got = contrastive(expert, amateur, 0.1, 0)
    expect.tensor(got, (5, 60), "contrastive with beta=0", torch.float32)
    expect.same(got.argmax(-1), expert.argmax(-1), "the best tokens with beta=0")


def test_what_only_the_amateur_finds_impossible_is_not_taken(contrastive):
    expert = logits_of([0.5, 0.499, 0.001])
    amateur = torch.tensor([[0.0, 0.0, -INF]])
    got = contrastive(expert, amateur, 0.1, 1.0)
    call = "contrastive where the amateur gives -inf to an implausible token"
    hint = "It is -inf, whatever the amateur says: mask last."
    wanted = [[0.25 / 0.499001, 0.249001 / 0.499001, 0.0]]
    distribution(got, wanted, call, hint)


def test_the_alpha_of_a_contrast_is_checked(contrastive):
    logits = torch.zeros(1, 3)
    for alpha in (-0.1, 1.5):
        call = f"contrastive with alpha={alpha}"
        expect.rejects(
            ValueError, lambda a=alpha: contrastive(logits, logits, a, 1.0), call
        )


@HALVES
def test_half_precision_is_contrasted_in_float32(contrastive, dtype):
    expert = random_logits(2, 50, seed=1).to(dtype)
    amateur = random_logits(2, 50, seed=2).to(dtype)
    with expect.unchanged("make new tensors", expert=expert, amateur=amateur):
        got = contrastive(expert, amateur, 0, 3.0)
    call = f"contrastive of {dtype} logits with alpha=0"
    hint = "Make float32 of them before the log_softmax."
    wanted = line_by_hand(expert, expert, amateur, 3.0)
    distribution(got, wanted, call, hint, 1e-4)


def test_a_contrast_leaves_its_arguments_alone(contrastive):
    expert, amateur = random_logits(2, 9, seed=1), random_logits(2, 9, seed=2)
    with expect.unchanged("make new tensors", expert=expert, amateur=amateur):
        contrastive(expert, amateur, 0.5, 0.0).fill_(0.0)


# --- proxy_tune -----------------------------------------------------------------------


def mistuned(got, base, tuned, untuned, weight):
    b, t, u = (x.float().log_softmax(-1) for x in (base, tuned, untuned))
    cases = [
        (b + weight * (u - t), "tuned and untuned have changed places."),
        (u + weight * (t - b), "What is moved is the base model."),
        (t + weight * (b - u), "What is moved is the base model."),
        (b + weight * (t - b), "What tuning did is tuned - untuned, both small."),
        (b + (t - u), "The difference is weighted."),
        (weight * (b + t - u), "The weight is that of the difference alone."),
        *lines_of_probabilities(b, t, u, weight),
    ]
    return first_that_fits(got, cases)


def test_tuning_by_proxy_worked_by_hand(proxy_tune):
    base, tuned = logits_of([0.5, 0.5]), logits_of([0.6, 0.4])
    untuned = logits_of([0.2, 0.8])
    for weight, wanted in (
        (1, [6 / 7, 1 / 7]),
        (2, [36 / 37, 1 / 37]),
        (0, [0.5, 0.5]),
    ):
        got = proxy_tune(base, tuned, untuned, weight)
        call = (
            f"proxy_tune of base 0.5, 0.5, tuned 0.6, 0.4, untuned 0.2, 0.8, {weight}"
        )
        distribution(got, [wanted], call, mistuned(got, base, tuned, untuned, weight))


@pytest.mark.parametrize("weight", [-0.5, 0.3, 1, 2.5])
def test_tuning_by_proxy_is_the_formula(proxy_tune, weight):
    base, tuned, untuned = (random_logits(3, 30, seed=s) for s in (1, 2, 3))
    got = proxy_tune(base, tuned, untuned, weight=weight)
    call = f"proxy_tune of random logits with weight={weight}"
    hint = mistuned(got, base, tuned, untuned, weight)
    distribution(got, line_by_hand(base, tuned, untuned, weight), call, hint)


def test_the_weight_is_1_if_none_is_given(proxy_tune):
    base, tuned, untuned = (random_logits(2, 20, seed=s) for s in (4, 5, 6))
    call = "proxy_tune without a weight"
    distribution(
        proxy_tune(base, tuned, untuned), line_by_hand(base, tuned, untuned, 1), call
    )


def test_proxies_that_agree_change_nothing(proxy_tune):
    base, small = random_logits(2, 20, seed=7), random_logits(2, 20, seed=8)
    call = "proxy_tune where tuned and untuned are equal"
    wanted = base.double().softmax(-1)
    distribution(proxy_tune(base, small, small.clone(), 3.0), wanted, call)


@HALVES
def test_half_precision_is_tuned_in_float32(proxy_tune, dtype):
    base, tuned, untuned = (random_logits(2, 50, seed=s).to(dtype) for s in (1, 2, 3))
    with expect.unchanged("make new tensors", base=base, tuned=tuned, untuned=untuned):
        got = proxy_tune(base, tuned, untuned, 2.0)
    call = f"proxy_tune of {dtype} logits"
    hint = "Make float32 of them before the log_softmax."
    distribution(got, line_by_hand(base, tuned, untuned, 2.0), call, hint, 1e-4)


def test_tuning_leaves_its_arguments_alone(proxy_tune):
    base, tuned, untuned = (random_logits(2, 9, seed=s) for s in (1, 2, 3))
    with expect.unchanged("make new tensors", base=base, tuned=tuned, untuned=untuned):
        proxy_tune(base, tuned, untuned, 0.0).fill_(0.0)


# --- js_divergence --------------------------------------------------------------------


def kl_by_hand(p, q):
    return math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def js_by_hand(p_logits, q_logits):
    """Row by row, in plain floats."""
    found = []
    p_rows, q_rows = (x.double().softmax(-1).tolist() for x in (p_logits, q_logits))
    for p, q in zip(p_rows, q_rows, strict=True):
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        found.append((kl_by_hand(p, m) + kl_by_hand(q, m)) / 2)
    return found


def misjudged(got, p_logits, q_logits):
    if not isinstance(got, torch.Tensor) or got.shape != p_logits.shape[:1]:
        return ""
    p, q = p_logits.double().softmax(-1), q_logits.double().softmax(-1)
    m = (p + q) / 2

    def kl(a, b):
        return torch.special.xlogy(a, a / b).sum(-1)

    if got.isnan().any():
        right, there = torch.tensor(js_by_hand(p_logits, q_logits)), ~got.isnan()
        if torch.allclose(got[there], right[there], atol=1e-4):
            return "0 times ln 0 is nan in floats: such a token adds nothing."
        return ""
    right, hints = (kl(p, m) + kl(q, m)) / 2, []
    for other, hint in (
        ((kl(m, p) + kl(m, q)) / 2, "That is KL(m ‖ p): the arguments are exchanged."),
        (kl(p, q), "That is KL(p ‖ q), which is not symmetric."),
        ((kl(p, q) + kl(q, p)) / 2, "KL to the mean m, not from one to the other."),
        (2 * right, "The mean of the two divergences, not their sum."),
        (kl(p, m), "That is one half of it: KL(q ‖ m) is missing."),
        (right / LN2, "In nats, not in bits."),
        (right.sqrt(), "That is its square root, the distance."),
        (right / p.shape[-1], "A sum over the vocabulary, not a mean."),
    ):
        if torch.allclose(got.double(), other, atol=1e-4):
            hints.append(hint)  # where rows are infinite two mistakes can look alike
    return " Or: ".join(hints)


def test_divergence_worked_by_hand(js_divergence):
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]).log() + 2.0
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]).log() - 1.0
    got = js_divergence(p, q)
    call = "js_divergence of 1, 0 and ½, ½; of equal rows; of 1, 0 and 0, 1,"
    expect.tensor(got, (3,), call, torch.float32)
    wanted = [math.log(4 / 3) / 2 + (math.log(2 / 3) + LN2) / 4, 0.0, LN2]
    expect.same(got, wanted, call, misjudged(got, p, q), 1e-5)


def test_divergence_agrees_with_plain_floats(js_divergence):
    p, q = random_logits(4, 60, seed=1), random_logits(4, 60, seed=2, spread=3.0)
    got = js_divergence(p, q)
    call = "js_divergence of random logits (4, 60)"
    expect.same(got, js_by_hand(p, q), call, misjudged(got, p, q), 1e-5)


def test_divergence_is_symmetric(js_divergence):
    p, q = random_logits(3, 20, seed=3), random_logits(3, 20, seed=4, spread=5.0)
    one, other = js_divergence(p, q), js_divergence(q, p)
    call = "js_divergence with its arguments exchanged"
    expect.same(other, one, call, misjudged(one, p, q), 1e-5)


def test_divergence_is_never_infinite(js_divergence):
    p = torch.tensor([[300.0, 0.0, 0.0], [0.0, -INF, 0.0], [40.0, 0.0, -INF]])
    q = torch.tensor([[0.0, 300.0, 0.0], [-INF, 0.0, -INF], [40.0, 0.0, 0.0]])
    got = js_divergence(p, q)
    call = "js_divergence of rows with logits of 300 and of -inf"
    expect.same(got, [LN2, LN2, 0.0], call, misjudged(got, p, q), 1e-5)


def test_a_token_of_probability_0_in_both_adds_nothing(js_divergence):
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.75, 0.0]]).log()
    got = js_divergence(p, q)
    call = "js_divergence of ½, ½, 0 and ¼, ¾, 0"
    wanted = js_by_hand(p[:, :2], q[:, :2])
    expect.same(got, wanted, call, misjudged(got, p, q), 1e-5)


@HALVES
def test_divergence_of_half_precision_is_in_float32(js_divergence, dtype):
    p, q = random_logits(2, 500, seed=5).to(dtype), random_logits(2, 500).to(dtype)
    with expect.unchanged("make new tensors", p_logits=p, q_logits=q):
        got = js_divergence(p, q)
    call = f"js_divergence of {dtype} logits"
    expect.tensor(got, (2,), call, torch.float32)
    hint = "Make float32 of them before the softmax."
    expect.same(got, js_by_hand(p, q), call, hint, 1e-5)


def test_the_logits_of_a_divergence_stay_as_they_are(js_divergence):
    p, q = random_logits(2, 9, seed=5), random_logits(2, 9)
    with expect.unchanged("make new tensors", p_logits=p, q_logits=q):
        js_divergence(p, q)


# --- dola -----------------------------------------------------------------------------


def dola_by_hand(final, early, alpha, choose=js_by_hand):
    """(distribution, chosen layers), row by row."""
    far = [choose(final, layer) for layer in early]
    chosen = [
        max(range(len(early)), key=lambda n: far[n][row]) for row in range(len(final))
    ]
    p = final.double().softmax(-1)
    keep = p >= alpha * p.amax(-1, keepdim=True)
    amateur = torch.stack([early[layer][row] for row, layer in enumerate(chosen)])
    zero = torch.zeros_like(final)
    return line_by_hand(zero, final, amateur, 1, keep), chosen


def mean_over_rows(final, layer):
    far = js_by_hand(final, layer)
    return [math.fsum(far)] * len(far)


def wrong_way_round(final, layer):
    p, q = final.double().softmax(-1), layer.double().softmax(-1)
    m = (p + q) / 2
    return [
        kl_by_hand(z, x) + kl_by_hand(z, y)
        for x, y, z in zip(p.tolist(), q.tolist(), m.tolist(), strict=True)
    ]


def nearest(final, layer):
    return [-x for x in js_by_hand(final, layer)]


def mischosen(got, final, early, alpha):
    right, layers = dola_by_hand(final, early, alpha)
    cases = [
        (
            dola_by_hand(final, early, alpha, choose)[0].log(),
            hint,
        )
        for choose, hint in (
            (mean_over_rows, "Each row has a layer of its own."),
            (
                wrong_way_round,
                "KL(p ‖ m), not KL(m ‖ p), chooses the layer; nor does KL(p ‖ q).",
            ),
            (nearest, "The layer that differs most."),
        )
    ]
    everything = dola_by_hand(final, early, 0)[0].log()
    cases.append((everything, "Tokens that are not plausible get -inf."))
    keep = right > 0
    amateur = torch.stack([early[layer][row] for row, layer in enumerate(layers)])
    by_early = amateur.double().softmax(-1)
    by_early = by_early < alpha * by_early.amax(-1, keepdim=True)
    cases += [
        (
            everything.masked_fill(by_early, -INF),
            "Plausible for the final layer, not for the early one.",
        ),
        ((-everything).masked_fill(~keep, -INF), "final minus early, not the reverse."),
        (
            (everything + final.double().log_softmax(-1)).masked_fill(~keep, -INF),
            "The final layer is counted twice: there is no a here, only b - c.",
        ),
    ]
    cases = [
        (s, h) for s, h in cases if not torch.allclose(s.softmax(-1), right, atol=1e-4)
    ]
    return first_that_fits(got, cases)


def contrasts(dola, final, early, alpha, call):
    wanted, chosen = dola_by_hand(final, early, alpha)
    got = dola(final, early, alpha)
    hint = mischosen(got, final, early, alpha) or f"The layers are {chosen}."
    distribution(got, wanted, call, hint)
    keep = wanted > 0
    assert torch.equal(got > -INF, keep), f"{call} should be -inf where not plausible"


def test_layers_worked_by_hand(dola):
    final = logits_of([0.5, 0.25, 0.25])
    early = torch.stack([logits_of([0.5, 0.25, 0.25]), logits_of([0.25, 0.5, 0.25])])
    for alpha, wanted in ((0.1, [4 / 7, 1 / 7, 2 / 7]), (0.8, [1.0, 0.0, 0.0])):
        got = dola(final, early, alpha)
        call = f"dola of final ½, ¼, ¼, layers ½, ¼, ¼ and ¼, ½, ¼ with alpha={alpha}"
        distribution(got, [wanted], call, mischosen(got, final, early, alpha))


def test_each_row_has_a_layer_of_its_own(dola):
    final = logits_of([0.7, 0.2, 0.1], [0.1, 0.2, 0.7])
    near, far = [0.6, 0.25, 0.15], [0.1, 0.1, 0.8]
    early = torch.stack(
        [logits_of(near, [0.8, 0.1, 0.1]), logits_of(far, [0.15, 0.25, 0.6])]
    )
    contrasts(
        dola, final, early, 0.01, "dola where row 0 needs layer 1 and row 1 layer 0"
    )


def test_the_layer_is_that_of_the_jensen_shannon_divergence(dola):
    final = logits_of([0.9, 0.1])
    early = torch.stack([logits_of([0.3, 0.7]), logits_of([1 - 1e-7, 1e-7])])
    call = "dola of final 0.9, 0.1 with layers 0.3, 0.7 and 0.9999999, 0.0000001"
    contrasts(dola, final, early, 0, call)


def test_of_layers_that_differ_alike_the_first_is_taken(dola):
    final = logits_of([0.5, 0.5])
    early = torch.stack([logits_of([0.5, 0.5])] + [logits_of([0.2, 0.8])] * 2)
    early[2] = early[1].flip(-1)  # as far, on the other side
    got = dola(final, early, 0)
    call = "dola with two layers that differ alike, 0.2, 0.8 and 0.8, 0.2,"
    distribution(got, [[0.8, 0.2]], call, "Of equal ones the first.")


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_layers_agree_with_plain_floats(dola, layers):
    final, early = random_logits(4, 30, seed=1), random_logits(layers, 4, 30, seed=2)
    for alpha in (0, 0.1):
        call = f"dola of {layers} random layers, alpha={alpha}"
        contrasts(dola, final, early, alpha, call)


def test_plausible_means_plausible_for_the_final_layer(dola):
    final = logits_of([0.55, 0.44, 0.01])
    early = torch.stack([logits_of([0.9, 0.05, 0.05]), logits_of([0.6, 0.2, 0.2])])
    contrasts(dola, final, early, 0.1, "dola of final 0.55, 0.44, 0.01 with alpha=0.1")
    final, early = logits_of([0.6, 0.399, 0.001]), logits_of([0.7, 0.3, 0.0])[None]
    call = "dola where a layer gives -inf to an implausible token"
    got = dola(final, early, 0.1)
    wanted = torch.tensor([[0.6 / 0.7, 0.399 / 0.3, 0.0]])
    distribution(got, wanted / wanted.sum(), call, "It is -inf: mask last.")


def test_the_alpha_of_layers_is_checked(dola):
    for alpha in (-0.1, 1.5):
        call = f"dola with alpha={alpha}"
        expect.rejects(
            ValueError,
            lambda a=alpha: dola(torch.zeros(1, 3), torch.zeros(2, 1, 3), a),
            call,
        )


@HALVES
def test_layers_of_half_precision_are_contrasted_in_float32(dola, dtype):
    final = random_logits(2, 50, seed=3).to(dtype)
    early = random_logits(3, 2, 50, seed=4).to(dtype)
    with expect.unchanged("make new tensors", final=final, early=early):
        got = dola(final, early, 0)
    wanted, _ = dola_by_hand(final, early, 0)
    hint = "Make float32 of them before the log_softmax."
    distribution(got, wanted, f"dola of {dtype} logits", hint, 1e-4)


def test_layers_stay_as_they_are(dola):
    final, early = random_logits(2, 9, seed=3), random_logits(3, 2, 9, seed=4)
    with expect.unchanged("make new tensors", final=final, early=early):
        dola(final, early, 0.5).fill_(0.0)


# --- contrastive_search_pick ----------------------------------------------------------


def picked_by_hand(probs, candidates, past, k, alpha):
    """(ids, scores), pair by pair."""
    ids, scores = [], []
    for row in range(len(probs)):
        order = sorted(range(probs.shape[1]), key=lambda v, r=row: -probs[r, v].item())
        its = []
        for place, token in enumerate(order[:k]):
            state = candidates[row, place]
            cosines = [
                math.fsum(
                    x * y for x, y in zip(state.tolist(), h.tolist(), strict=True)
                )
                / math.dist(state.tolist(), [0.0] * len(state))
                / math.dist(h.tolist(), [0.0] * len(h))
                for h in past[row]
            ]
            its.append((1 - alpha) * probs[row, token].item() - alpha * max(cosines))
        ids.append([order[its.index(max(its))]])
        scores.append(its)
    return torch.tensor(ids), scores


def picks(pick, probs, candidates, past, k, alpha, call, hint=""):
    wanted, scores = picked_by_hand(probs, candidates, past, k, alpha)
    got = pick(probs, candidates, past, k, alpha)
    expect.tensor(got, wanted.shape, call)
    assert got.dtype == torch.int64, f"{call} should be ids (int64), not {got.dtype}"
    row = (got != wanted).any(-1).nonzero()
    if len(row):
        n = row[0].item()
        given, right = got[n].item(), wanted[n].item()
        place = sorted(probs[n].tolist(), reverse=True).index(probs[n, right].item())
        if given == place != right:
            hint = "That is its place among the candidates, not the token."
        shown = expect.show([round(x, 3) for x in scores[n]])
        raise AssertionError(
            f"{call}: row {n} should be token {right}, not {given}. The candidates' "
            f"scores are {shown}. {hint}".rstrip()
        )


def states(*rows):
    return torch.tensor([rows], dtype=torch.float32)


@pytest.mark.parametrize(("alpha", "wanted"), [(0.5, 1), (0.1, 0), (0, 0), (1.0, 1)])
def test_a_pick_worked_by_hand(contrastive_search_pick, alpha, wanted):
    probs = torch.tensor([[0.6, 0.3, 0.1]])
    call = f"contrastive_search_pick of 0.6, 0.3, 0.1, k=2, alpha={alpha},"
    args = (probs, states([2, 0], [0, 1]), states([1, 0]), 2, alpha)
    picks(contrastive_search_pick, *args, call)
    expect.same(contrastive_search_pick(*args), [[wanted]], call)


def test_candidates_stand_in_the_order_of_their_probability(contrastive_search_pick):
    probs = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]])
    near, far = [1.0, 0.0], [0.0, 1.0]
    for place, token in enumerate((4, 3, 1)):
        candidates = states(*(far if n == place else near for n in range(3)))
        call = (
            f"contrastive_search_pick where candidate {place}, token {token}, is new,"
        )
        picks(contrastive_search_pick, probs, candidates, states(near), 3, 0.9, call)


def test_the_nearest_place_of_the_past_counts(contrastive_search_pick):
    probs = torch.tensor([[0.5, 0.5 - 1e-3]])
    # Candidate 0 equals one place and is far from three; 1 is a little near to all.
    past = states([1, 0], [0, 1], [0, 1], [0, 1])
    candidates = states([1, 0], [0.6, 0.8])
    hint = "The largest similarity counts, not the mean or the last."
    call = "contrastive_search_pick where one place of the past equals candidate 0,"
    picks(contrastive_search_pick, probs, candidates, past, 2, 0.5, call, hint)
    past = states([0, 1], [1, 0], [0.6, 0.8])  # it equals the last place but one
    candidates = states([1, 0], [-1, 0.1])
    picks(contrastive_search_pick, probs, candidates, past, 2, 0.5, call, hint)


def test_the_length_of_a_state_makes_no_difference(contrastive_search_pick):
    probs = torch.tensor([[0.5, 0.5 - 1e-3]])
    candidates, past = states([100, 100], [0.1, 0.0]), states([0.0, 300.0])
    hint = "A cosine: the product of vectors of length 1."
    call = "contrastive_search_pick of long and short states,"
    picks(contrastive_search_pick, probs, candidates, past, 2, 0.3, call, hint)
    candidates, past = states([0.1, 0.0], [100, -100]), states([0.01, 0.0])
    picks(contrastive_search_pick, probs, candidates, past, 2, 0.3, call, hint)


def test_states_that_point_away_win(contrastive_search_pick):
    probs = torch.tensor([[0.5, 0.4]])
    candidates, past = states([0, 1], [-1, 0]), states([1, 0])
    hint = "A negative cosine is a bonus, not a penalty."
    call = "contrastive_search_pick where candidate 1 points away from the past,"
    picks(contrastive_search_pick, probs, candidates, past, 2, 0.5, call, hint)


def test_alpha_0_and_one_candidate_are_greedy(contrastive_search_pick):
    probs = random_logits(4, 12, seed=1).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    for k, alpha in ((5, 0), (1, 0.6), (1, 1.0)):
        candidates = torch.randn(4, k, 6, generator=generator)
        past = torch.randn(4, 7, 6, generator=generator)
        got = contrastive_search_pick(probs, candidates, past, k, alpha)
        call = f"contrastive_search_pick with k={k}, alpha={alpha}, of greedy picks,"
        expect.same(got, probs.argmax(-1, keepdim=True), call)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6, 0.9])
def test_picks_agree_with_plain_floats(contrastive_search_pick, alpha):
    generator = torch.Generator().manual_seed(1)
    probs = random_logits(16, 20, seed=3).softmax(-1)
    candidates = torch.randn(16, 4, 5, generator=generator)
    past = torch.randn(16, 6, 5, generator=generator)
    call = f"contrastive_search_pick of 16 random rows, k=4, alpha={alpha},"
    picks(contrastive_search_pick, probs, candidates, past, 4, alpha, call)


def test_of_equal_scores_the_likelier_token_is_taken(contrastive_search_pick):
    probs = torch.tensor([[0.25, 0.5, 0.25]])
    candidates, past = states([1, 0], [0, 1], [1, 0]), states([0, 1], [1, 0])
    args = (probs, candidates, past, 3, 1.0)  # alpha 1: all have -1
    call = "contrastive_search_pick with alpha=1 where all candidates have cosine 1,"
    expect.same(
        contrastive_search_pick(*args), [[1]], call, "Of equal scores the first."
    )


def test_k_is_the_number_of_candidates(contrastive_search_pick):
    probs = torch.tensor([[0.6, 0.3, 0.1]])
    for k in (1, 3):
        call = f"contrastive_search_pick of two candidates with k={k}"
        expect.rejects(
            ValueError,
            lambda k=k: contrastive_search_pick(
                probs, states([2, 0], [0, 1]), states([1, 0]), k, 0.5
            ),
            call,
        )


def test_a_pick_leaves_its_arguments_alone(contrastive_search_pick):
    probs = torch.tensor([[0.6, 0.3, 0.1]])
    candidates, past = states([2, 0], [0, 1]), states([3, 0])
    with expect.unchanged(
        "make new tensors", probs=probs, candidate_states=candidates, past_states=past
    ):
        contrastive_search_pick(probs, candidates, past, 2, 0.5)
