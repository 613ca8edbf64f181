"""Checks of lesson 16. Oracles: cases worked by hand, transformers' watermark, its
detector and its SynthID processor, `generate` with a `WatermarkingConfig`, id for id,
torch.multinomial after the same seed, and tournaments played out in exact fractions."""

import hashlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from transformers import (
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
    WatermarkLogitsProcessor,
)

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import random_gpt2, random_llama

green_ids = exercise("green_ids")
Watermark = exercise("Watermark")
z_score = exercise("z_score")
detect = exercise("detect")
p_value = exercise("p_value")
gumbel_pick = exercise("gumbel_pick")
gumbel_score = exercise("gumbel_score")
tournament = exercise("tournament")

INF, NAN = float("inf"), float("nan")
KEY = 15485863
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


class Undisturbed:
    """The global generator is, at the end of the block, where it was before."""

    def __init__(self, call):
        self.call = call

    def __enter__(self):
        torch.rand(3)  # a generator that was just seeded looks the same seeded again
        self.before = torch.get_rng_state()

    def __exit__(self, kind, *_):
        same = torch.equal(self.before, torch.get_rng_state())
        assert kind or same, (
            f"{self.call} moved torch's global generator: what others draw after it "
            "must not depend on it"
        )


# --- green_ids ------------------------------------------------------------------------


def their_greens(previous, key, vocab, gamma):
    """transformers' green list behind `previous`, in its order."""
    theirs = WatermarkLogitsProcessor(vocab, "cpu", gamma, 2.0, key)
    return theirs._get_greenlist_ids(torch.tensor([previous]))


def lean(previous, key, vocab, gamma):
    """The same in torch alone; transformers' class makes a table of a million first."""
    generator = torch.Generator().manual_seed(key * previous % (2**64 - 1))
    return torch.randperm(vocab, generator=generator)[: int(vocab * gamma)]


def green_hint(got, previous, key, vocab, gamma):
    """What came back instead, where it is one thing only."""

    def shuffled(seed):
        generator = torch.Generator().manual_seed(seed % 2**64)
        return torch.randperm(vocab, generator=generator)

    size = int(vocab * gamma)
    if size in (0, vocab) or got.dtype != torch.int64 or got.shape != (size,):
        return ""
    if torch.equal(got, shuffled(key * previous)[vocab - size :]):
        return "Those are the last of the shuffled ids; the first are green."
    if torch.equal(got, shuffled(key + previous)[:size]):
        return "The seed is the product of key and previous id."
    wanted = lean(previous, key, vocab, gamma)
    if torch.equal(got.sort().values, wanted.sort().values):
        return "The right ids in another order: leave them as the shuffle has them."
    return ""


@pytest.mark.parametrize(
    ("previous", "key", "vocab", "gamma", "wanted"),
    [
        (3, 7, 10, 0.25, [3, 7]),
        (3, 7, 10, 0.5, [3, 7, 2, 5, 4]),
        (1, 21, 10, 0.3, [3, 7, 2]),
        (7, 3, 10, 0.1, [3]),
    ],
)
def test_green_ids_behind_a_small_seed(green_ids, previous, key, vocab, gamma, wanted):
    """The first of torch.randperm(10) after the seed 21, written down."""
    got = green_ids(previous, key, vocab, gamma)
    call = f"green_ids({previous}, {key}, {vocab}, {gamma})"
    expect.tensor(got, (len(wanted),), call, torch.int64)
    expect.same(got, wanted, call, green_hint(got, previous, key, vocab, gamma))


@pytest.mark.parametrize(
    ("previous", "key"), [(0, KEY), (1, KEY), (49151, KEY), (40, 3), (123, 2**62 - 57)]
)
def test_green_ids_are_those_of_transformers(green_ids, previous, key):
    oracle = WatermarkLogitsProcessor(97, "cpu", 0.25, 2.0, key)
    for vocab, gamma in ((97, 0.25), (1000, 0.5), (97, 0.01), (50, 0.999)):
        oracle.vocab_size, oracle.greenlist_size = vocab, int(vocab * gamma)
        wanted = oracle._get_greenlist_ids(torch.tensor([previous]))
        call = f"green_ids({previous}, {key}, {vocab}, {gamma})"
        fits = "The remainder by 2**64 - 1 fits."
        with expect.hinting(fits, RuntimeError, ValueError, says="verflow"):
            got = green_ids(previous, key, vocab, gamma)
        expect.tensor(got, wanted.shape, call, torch.int64)
        expect.same(got, wanted, call, green_hint(got, previous, key, vocab, gamma))


def test_a_green_list_needs_no_other_draws(green_ids):
    call = "green_ids(3, 7, 10, 0.25)"
    with Undisturbed(call):
        first = green_ids(3, 7, 10, 0.25)
    torch.rand(3)
    again = green_ids(3, 7, 10, 0.25)
    hint = "Seed a generator of your own each time."
    expect.same(again, first, f"{call} for the second time", hint)


def test_a_share_of_nothing_or_of_all_is_refused(green_ids):
    for gamma in (0, 1, 0.0, 1.0, -0.25, 1.5):
        call = f"green_ids(3, 7, 10, {gamma})"
        expect.rejects(ValueError, lambda gamma=gamma: green_ids(3, 7, 10, gamma), call)


# --- Watermark ------------------------------------------------------------------------


def mark_hint(changed, gamma, key):
    """What a common mistake would mark, if that and nothing else was changed: the
    ids are 3, 9 and 5, of twelve."""
    for wrong, said in (
        (lean(3, key, 12, gamma), "Those are green behind the first id; the last one"),
        (
            lean(9, key, 12, gamma),
            "Those are green behind the last but one id; the last",
        ),
    ):
        if changed == set(wrong.tolist()):
            return f"{said} counts."
    if changed == set(range(12)) - set(lean(5, key, 12, gamma).tolist()):
        return "Those are the red ones."
    others = [(share, of) for share in (0.25, 0.5) for of in (11, 12, KEY)]
    for share, of in others:
        if changed == set(lean(5, of, 12, share).tolist()) and share != gamma:
            return f"Those are the green ones with gamma={share}."
        if changed == set(lean(5, of, 12, share).tolist()):
            return f"Those are the green ones with key={of}."
    return ""


@pytest.mark.parametrize(
    ("bias", "gamma", "key"),
    [(2.0, 0.25, 11), (0.5, 0.25, 11), (-1.0, 0.5, 11), (2.0, 0.25, 12)],
)
def test_the_bias_is_added_to_green_logits_alone(Watermark, bias, gamma, key):
    before = Watermark(bias=1.0, gamma=gamma, key=13)
    before(torch.tensor([[3, 9, 5]]), torch.zeros(1, 12))  # has a list of its own
    greens = set(lean(5, key, 12, gamma).tolist())
    scores = torch.arange(12.0)[None]
    ids = torch.tensor([[3, 9, 5]])
    with expect.unchanged("add to scores.clone()", scores=scores, ids=ids):
        got = Watermark(bias=bias, gamma=gamma, key=key)(ids, scores)
    wanted = [[float(i) + bias * (i in greens) for i in range(12)]]
    call = f"Watermark({bias}, {gamma}, {key}) of ids [[3, 9, 5]] and logits 0, ..., 11"
    hint = ""
    if isinstance(got, torch.Tensor) and got.shape == (1, 12):
        changed = set((got - scores)[0].nonzero().flatten().tolist())
        if changed == set(lean(5, 13, 12, gamma).tolist()):
            hint = "Those are green with the key of a Watermark made before this one."
        elif changed != greens:
            hint = mark_hint(changed, gamma, key)
    expect.same(got, wanted, call, hint)


def test_the_arguments_are_bias_and_gamma_and_key_in_that_order(Watermark):
    ids, scores = torch.tensor([[5]]), torch.zeros(1, 20)
    wanted = torch.zeros(1, 20)
    wanted[0, lean(5, 11, 20, 0.75)] = 0.5
    call = "Watermark(0.5, 0.75, 11) of id 5 and 20 zeros"
    hint = "The bias comes first, then gamma, then the key."
    with expect.hinting(hint, Exception):
        got = Watermark(0.5, 0.75, 11)(ids, scores)
    expect.same(got, wanted, call, hint)


def test_each_row_has_its_own_list(Watermark):
    ids = torch.tensor([[5, 1], [1, 5], [7, 7], [5, 1]])
    scores = torch.zeros(4, 97)
    got = Watermark(bias=2.0, gamma=0.25, key=KEY)(ids, scores)
    wanted = torch.zeros(4, 97)
    for row, last in enumerate((1, 5, 7, 1)):
        wanted[row, lean(last, KEY, 97, 0.25)] = 2.0
    call = "Watermark(2.0) of rows that end in 1, 5, 7 and 1"
    expect.same(got, wanted, call, "Row i has the list behind its own last id.")


def test_what_a_filter_removed_stays_removed(Watermark):
    scores = torch.zeros(1, 20)
    scores[0, ::2] = -INF
    got = Watermark(bias=3.0, gamma=0.5, key=5)(torch.tensor([[4]]), scores)
    wanted = scores.clone()
    wanted[0, lean(4, 5, 20, 0.5)] += 3.0
    expect.same(got, wanted, "Watermark(3.0) of logits of which half are -inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_stays(Watermark, dtype):
    scores = torch.ones(2, 20, dtype=dtype)
    got = Watermark(bias=2.0, gamma=0.25, key=5)(torch.tensor([[4], [5]]), scores)
    wanted = torch.ones(2, 20, dtype=dtype)
    for row, last in enumerate((4, 5)):
        wanted[row, lean(last, 5, 20, 0.25)] += 2.0
    call = f"Watermark of {dtype} logits"
    expect.tensor(got, (2, 20), call, dtype)
    expect.same(got, wanted, call)


def test_without_arguments_it_is_that_of_transformers(Watermark):
    ids, scores = torch.tensor([[3, 8], [9, 2]]), torch.zeros(2, 300)
    wanted = WatermarkLogitsProcessor(300, "cpu")(ids, scores)
    expect.same(Watermark()(ids, scores), wanted, "Watermark() of zeros")


@MODELS
@pytest.mark.parametrize("sampled", [False, True])
def test_generate_writes_what_its_own_watermark_writes(Watermark, make, sampled):
    mark = Watermark(bias=3.0, gamma=0.25, key=KEY)
    assert isinstance(mark, LogitsProcessor), "Watermark should be a LogitsProcessor"
    config = WatermarkingConfig(bias=3.0, greenlist_ratio=0.25, hashing_key=KEY)
    ids = torch.tensor([[5, 17, 40], [5, 9, 61], [1, 2, 3]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10}
    options |= {"do_sample": sampled, "pad_token_id": 0}
    options |= {"top_k": 0} if sampled else {}
    for seed in range(2):
        model, made = make(seed=seed, eos_token_id=None), []
        for how in (
            {"watermarking_config": config},
            {"logits_processor": LogitsProcessorList([mark])},
        ):
            torch.manual_seed(seed)
            made.append(model.generate(ids, **options, **how))
        call = f"generate with your Watermark as a processor, do_sample={sampled},"
        hint = "The list changes at each step, with the last id."
        expect.same_ids(made[1], made[0], call, hint=hint)


def test_marking_draws_nothing(Watermark):
    mark = Watermark(bias=2.0, gamma=0.25, key=3)
    with Undisturbed("Watermark"):
        mark(torch.tensor([[4], [5]]), torch.zeros(2, 20))


# --- z_score --------------------------------------------------------------------------

EXACT = 1e-5  # float32 is good enough for a z or a p


@pytest.mark.parametrize(
    ("green", "total", "gamma", "wanted"),
    [
        (6, 12, 0.25, 2.0),
        (1, 3, 0.25, 1 / 3),
        (3, 12, 0.25, 0.0),
        (0, 12, 0.25, -2.0),
        (12, 12, 0.25, 6.0),
        (30, 100, 0.2, 2.5),
        (60, 100, 0.5, 2.0),
        (1, 1, 0.5, 1.0),
        (0, 1, 0.5, -1.0),
        (75, 100, 0.9, -5.0),
        (9, 9, 0.1, 9.0),
    ],
)
def test_z_worked_by_hand(z_score, green, total, gamma, wanted):
    got = z_score(green, total, gamma)
    call, hint = f"z_score({green}, {total}, {gamma})", ""
    if isinstance(got, float) and wanted and got not in (INF, -INF):
        spread = math.sqrt(total * gamma * (1 - gamma))
        for off, said in (
            (spread, "That is divided by the variance: take its square root."),
            (1 / spread, "That is the difference, not in standard deviations."),
            (-1, "The sign: more green than expected is positive."),
        ):
            if spread != 1 and abs(got * off - wanted) < EXACT:
                hint = said
        if wanted < 0 and abs(got + wanted) < EXACT:
            hint = "Fewer green than expected is a negative z."
        if abs(got - (green - gamma * total) / math.sqrt(total * gamma)) < EXACT:
            hint = "The variance has a factor 1 - gamma, too."
        if abs(got - (green - int(gamma * total)) / spread) < EXACT < abs(got - wanted):
            hint = "gamma * total need not be whole: do not round it."
    expect.value(got, wanted, call, hint, EXACT)
    expect.returned(got, float, call)


@pytest.mark.parametrize(
    ("green", "total", "gamma"),
    [
        (0, 0, 0.25),
        (0, -1, 0.25),
        (-1, 5, 0.25),
        (6, 5, 0.25),
        (2, 5, 0.0),
        (2, 5, 1.0),
        (2, 5, -0.5),
        (2, 5, 1.5),
    ],
)
def test_no_score_where_there_is_nothing_to_score(z_score, green, total, gamma):
    call = f"z_score({green}, {total}, {gamma})"
    expect.rejects(ValueError, lambda: z_score(green, total, gamma), call)


# --- detect ---------------------------------------------------------------------------


def counted(pairs, key, vocab, gamma):
    """(green, all) of these pairs"""
    greens = [b in lean(a, key, vocab, gamma).tolist() for a, b in pairs]
    return sum(greens), len(greens)


def as_z(green, total, gamma):
    return (green - gamma * total) / math.sqrt(total * gamma * (1 - gamma))


def detect_hint(got, text, key, vocab, gamma, prompt, once):
    """What a common mistake would give, if that and nothing else came back."""
    if not isinstance(got, float):
        return ""
    answer = text[prompt:]
    pairs = list(itertools.pairwise(answer))
    with_prompt = list(itertools.pairwise(text))
    right = set(pairs) if once else pairs
    wanted = as_z(*counted(right, key, vocab, gamma), gamma)
    mistakes = [
        (set(with_prompt) if once else with_prompt, "The prompt does not count."),
        (pairs if once else set(pairs), ONCE if once else "Here every pair counts."),
    ]
    if prompt:
        edge = list(itertools.pairwise(text[prompt - 1 :]))
        said = "The answer's first token is not scored: its context is the prompt's."
        mistakes.append((set(edge) if once else edge, said))
    mistakes.append(([(b, a) for a, b in right], "(a, b) is green if b is, behind a."))
    if once:
        said = "A pair is both ids: behind another id the same one is another coin."
        mistakes.append(({b: (a, b) for a, b in pairs}.values(), said))
        mistakes.append(({b: (a, b) for a, b in reversed(pairs)}.values(), said))
    z = as_z(*counted(right, key, vocab, 0.25), 0.25) if right else None
    if z is not None and abs(z - got) < EXACT < abs(z - wanted):
        return "That is the z with gamma=0.25."
    for wrong, said in mistakes:
        z = as_z(*counted(wrong, key, vocab, gamma), gamma) if wrong else None
        if z is not None and abs(z - got) < EXACT < abs(z - wanted):
            return said
    return ""


ONCE = "The same pair is the same coin: count it once."


def test_pairs_worked_by_hand(detect):
    """With the key 7, of ten ids 3 and 7 are green behind 3, 0 and 3 behind 7, 2 and
    3 behind 9: the seeds are 21, 49 and 63."""
    for text, prompt, once, wanted in (
        ([3, 7], 0, True, as_z(1, 1, 0.25)),
        ([3, 9], 0, True, as_z(0, 1, 0.25)),
        ([3, 3, 3, 3, 3], 0, True, as_z(1, 1, 0.25)),
        ([3, 3, 3, 3, 3], 0, False, as_z(4, 4, 0.25)),
        ([3, 3, 3, 3, 9], 0, True, as_z(1, 2, 0.25)),
        ([3, 3, 3, 3, 9], 0, False, as_z(3, 4, 0.25)),
        ([7, 0, 7, 0, 7], 0, True, as_z(1, 2, 0.25)),
        ([7, 0, 7, 0, 7], 0, False, as_z(2, 4, 0.25)),
        ([7, 3, 9, 3, 7, 3], 0, True, as_z(3, 4, 0.25)),
        ([3, 7, 3, 9], 2, True, as_z(0, 1, 0.25)),
        ([9, 3, 3, 7], 1, True, as_z(2, 2, 0.25)),
    ):
        got = detect(torch.tensor([text]), 7, 10, 0.25, prompt, once)
        call = f"detect({[text]}, 7, 10, 0.25, {prompt}, ignore_repeated={once})"
        hint = detect_hint(got, text, 7, 10, 0.25, prompt, once)
        expect.value(got, wanted, call, hint, EXACT)
        expect.returned(got, float, call)


TEXTS = [
    (seed, prompt, once)
    for seed, prompt in ((0, 0), (1, 3), (2, 6))
    for once in (True, False)
]


@pytest.mark.parametrize(("seed", "prompt", "once"), TEXTS)
def test_z_is_that_of_transformers_detector(detect, seed, prompt, once):
    generator = torch.Generator().manual_seed(seed)
    config = LlamaConfig(vocab_size=60, bos_token_id=59)
    marking = WatermarkingConfig(greenlist_ratio=0.4, hashing_key=1234567)
    theirs = WatermarkDetector(config, "cpu", marking, ignore_repeated_ngrams=once)
    for vocab, length in ((5, 30), (55, 40), (8, 12)):
        ids = torch.randint(vocab, (1, length), generator=generator)
        wanted = theirs(ids[:, prompt:], return_dict=True).z_score.item()
        with expect.unchanged(ids=ids):
            got = detect(ids, 1234567, 60, 0.4, prompt, once)
        call = f"detect of {length} ids below {vocab}, prompt_length={prompt}, "
        call += f"ignore_repeated={once},"
        hint = detect_hint(got, ids[0].tolist(), 1234567, 60, 0.4, prompt, once)
        expect.value(got, float(wanted), call, hint, EXACT)


def test_repeated_pairs_are_ignored_by_default_and_a_text_may_be_flat(detect):
    ids = torch.tensor([3, 3, 3, 3, 9])
    call = "detect(tensor([3, 3, 3, 3, 9]), 7, 10, 0.25, 0)"
    got = detect(ids, 7, 10, 0.25, 0)
    hint = detect_hint(got, ids.tolist(), 7, 10, 0.25, 0, True)
    expect.value(got, as_z(1, 2, 0.25), call, hint, EXACT)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ([3, 7, 9], 2),
        ([3, 7, 9], 3),
        ([3, 7, 9], 5),
        ([3], 0),
        ([], 0),
        ([3, 3, 3, 3], -2),
    ],
)
def test_without_a_pair_there_is_no_score(detect, text, prompt):
    call = f"detect of {len(text)} ids with prompt_length={prompt}"
    ids = torch.tensor([text], dtype=torch.int64)
    expect.rejects(ValueError, lambda: detect(ids, 7, 10, 0.25, prompt), call)


def test_detection_draws_nothing(detect):
    with Undisturbed("detect"):
        detect(torch.tensor([[3, 7, 9, 1]]), 7, 10, 0.25, 0)


# --- p_value --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "null", "wanted"),
    [
        (2.5, [1, 5, 2, 3], 0.6),
        (9, [1, 3, 2, 5], 0.2),
        (3, [1, 3, 2, 5], 0.6),
        (0, [1, 3, 2, 5], 1.0),
        (5, [1, 3, 2, 5], 0.4),
        (2.5, [], 1.0),
        (-1.0, [-2.0, -1.0, -1.0, -1.0, -3.0, 0.0, -4.0], 0.625),
        (3.0, [2.999, 3.001], 2 / 3),
        (INF, [INF, 0.0, -INF], 0.5),
        (0.25, [0.5] * 9, 1.0),
        (0.5, [0.25] * 99, 0.01),
    ],
)
def test_p_worked_by_hand(p_value, score, null, wanted):
    call = f"p_value({score}, {expect.show(null)})"
    null, hint = list(null), ""
    with expect.unchanged("count, or sort a copy", null_scores=null):
        got = p_value(score, null)
    if null and isinstance(got, float):
        n = len(null)
        ties = sum(x == score for x in null)
        each = set(null)
        if abs(got - (1 + sum(x >= score for x in each)) / (1 + len(each))) < EXACT:
            hint = "Equal scores are those of different texts: each counts."
        elif ties and abs(got - (wanted - ties / (n + 1))) < EXACT:
            hint = "A score that is equal did as well: it counts."
        elif abs(got - (wanted * (n + 1) - 1) / n) < EXACT:
            hint = "The text itself counts, too, above and below the line."
        elif abs(got - (1 + sum(x <= score for x in null)) / (n + 1)) < EXACT:
            hint = "Larger scores are more of a mark: count those that reach it."
    expect.value(got, wanted, call, hint, EXACT)
    expect.returned(got, float, call)


def test_the_order_of_other_scores_makes_no_difference(p_value):
    null = [0.5, 2.0, 2.0, 1.0]
    for order in set(itertools.permutations(null)):
        call = f"p_value(2.0, {list(order)})"
        expect.value(p_value(2.0, list(order)), 0.6, call, tolerance=EXACT)


def test_nan_is_no_score(p_value):
    for score, null in ((NAN, [1.0]), (1.0, [2.0, NAN]), (NAN, [])):
        call = f"p_value({score}, {null})"
        expect.rejects(ValueError, lambda s=score, x=null: p_value(s, x), call)


# --- gumbel_pick ----------------------------------------------------------------------


def seed_of(key, context):
    """As the first cell of the lesson has it."""
    text = f"{key}: {' '.join(map(str, context))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def race(logits, context, key):
    """What torch.multinomial draws for one row after the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key, context))
        return torch.multinomial(logits.softmax(-1)[None], 1)[0, 0].item()


def some_logits(rows, vocab, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator)


def pick_hint(got, logits, context, key):
    """What a common mistake picks, if that and nothing else came back."""
    p, rows = logits.softmax(-1), context.tolist()
    draws = torch.tensor([draws_of(seen, key, p.shape[-1]) for seen in rows])
    flat = context.flatten().tolist()

    def by(contexts):
        pairs = zip(logits, contexts, strict=True)
        return torch.tensor([[race(row, seen, key)] for row, seen in pairs])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key, rows[0]))
        once = torch.multinomial(p, 1)
    greatest = "Those are the largest logits: divide probabilities by the draws."
    for wrong, said in (
        (logits.argmax(-1, keepdim=True), greatest),
        ((p / draws).argmin(-1, keepdim=True), "The largest p/E wins."),
        (once, "Seed anew for each row, with that row's own context."),
        (by([flat] * len(rows)), "The context of a row is that row's ids alone."),
        (
            by([x[-1:] for x in rows]),
            "All ids of the context make the seed, not the last alone.",
        ),
        (
            by([x[::-1] for x in rows]),
            "The ids of the context as they stand, oldest first.",
        ),
    ):
        if torch.equal(got.cpu(), wrong):
            return said
    return ""


@pytest.mark.parametrize("width", [1, 3, 6])
def test_the_token_is_that_of_multinomial_after_the_seed(gumbel_pick, width):
    for seed in range(4):
        logits = some_logits(5, 97, seed)
        generator = torch.Generator().manual_seed(seed)
        context = torch.randint(97, (5, width), generator=generator)
        with expect.unchanged(logits=logits, context=context):
            got = gumbel_pick(logits, context, 42 + seed)
        call = (
            f"gumbel_pick of 5 rows with contexts {context.tolist()}, key {42 + seed}"
        )
        expect.tensor(got, (5, 1), call, torch.int64)
        wanted = [
            [race(row, seen, 42 + seed)]
            for row, seen in zip(logits, context.tolist(), strict=True)
        ]
        right = got.tolist() == wanted
        hint = "" if right else pick_hint(got, logits, context, 42 + seed)
        expect.same_ids(got, torch.tensor(wanted), call, hint=hint)


def test_a_row_does_not_depend_on_its_neighbours(gumbel_pick):
    logits, context = some_logits(4, 60), torch.tensor([[1, 2], [3, 4], [1, 2], [9, 9]])
    logits[2] = logits[0]
    together = gumbel_pick(logits, context, 7)
    call = "gumbel_pick, a row"
    for row in range(4):
        alone = gumbel_pick(logits[row : row + 1], context[row : row + 1], 7)
        assert together[row].tolist() == alone[0].tolist(), (
            f"{call} alone gives {alone[0].item()}, as row {row} of 4 "
            f"{together[row].item()}: seed anew for each row, from its own context"
        )
    assert together[0].item() == together[2].item(), (
        "gumbel_pick: two rows with the same logits and the same context should get "
        "the same token"
    )


def test_the_context_fixes_the_draws_and_not_the_token(gumbel_pick):
    context = torch.tensor([[4, 2]])
    hint = "The same context has the same draws: the probabilities are others."
    for seed in range(4):
        logits = some_logits(1, 60, seed)
        got = gumbel_pick(logits, context, 7)
        wanted = torch.tensor([[race(logits[0], [4, 2], 7)]])
        call = f"gumbel_pick with key 7, context [4, 2] and logits of seed {seed}"
        expect.same_ids(got, wanted, call, hint=hint)


def test_the_pick_leaves_the_global_generator_alone(gumbel_pick):
    call = "gumbel_pick"
    with Undisturbed(call):
        first = gumbel_pick(some_logits(2, 60), torch.tensor([[1], [2]]), 7)
    torch.rand(5)
    again = gumbel_pick(some_logits(2, 60), torch.tensor([[1], [2]]), 7)
    expect.same_ids(again, first, "gumbel_pick for the second time")


def test_what_has_no_probability_is_never_picked(gumbel_pick):
    logits = torch.full((1, 40), -INF)
    logits[0, [3, 30]] = torch.tensor([0.0, 1.0])
    for key in range(20):
        got = gumbel_pick(logits, torch.tensor([[5]]), key)
        assert got.item() in (3, 30), (
            f"gumbel_pick of logits of which all but 3 and 30 are -inf gave "
            f"{got.item()}"
        )
        wanted = torch.tensor([[race(logits[0], [5], key)]])
        expect.same_ids(got, wanted, f"gumbel_pick with key {key}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_draws_are_float32_whatever_the_logits_are(gumbel_pick, dtype):
    """Among 3,000 contexts those where the two fastest are so close that bfloat16
    cannot tell them apart, and takes the first."""
    logits = some_logits(1, 20).to(dtype)
    close = []
    for n in range(3000):
        fast = logits[0].float().softmax(-1) / torch.tensor(draws_of([n], 3, 20))
        best = fast.topk(2)
        if best.values[0] < 1.002 * best.values[1] and best.indices.diff() < 0:
            close.append(n)
    rows = logits.expand(len(close), -1)
    got = gumbel_pick(rows, torch.tensor(close)[:, None], 3)
    wanted = [[race(logits[0].float(), [n], 3)] for n in close]
    hint = "logits.float() first: the race is run in float32."
    call = f"gumbel_pick of {dtype} logits"
    expect.same_ids(got, torch.tensor(wanted), call, hint=hint)


def test_over_many_keys_a_token_comes_as_often_as_its_probability(gumbel_pick):
    """The keys are fixed, and with them the counts: no false alarm."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    keys = range(600)
    got = [gumbel_pick(logits, torch.tensor([[8]]), key).item() for key in keys]
    counts = [got.count(token) for token in range(3)]
    wanted = [0, 0, 0]
    for key in keys:
        wanted[race(logits[0], [8], key)] += 1
    call = "the counts of gumbel_pick of probabilities ½, ¼, ¼ over 600 keys"
    expect.value(counts, wanted, call)


# --- gumbel_score ---------------------------------------------------------------------


def draws_of(context, key, vocab):
    generator = torch.Generator().manual_seed(seed_of(key, context))
    return torch.empty(vocab).exponential_(generator=generator).tolist()


def slow_score(text, key, width, vocab, once=True):
    """The mean over windows, place by place, in Python's floats."""
    windows = [text[i : i + width + 1] for i in range(len(text) - width)]
    if once:
        windows = [list(w) for w in {tuple(w) for w in windows}]
    each = []
    for window in windows:
        draw = draws_of(window[:width], key, vocab)[window[width]]
        each.append(-math.log(-math.expm1(-draw)))
    return sum(each) / len(each)


def test_scores_worked_by_hand(gumbel_score):
    """The draws of the key 5 behind the ids 1 and 2, of four tokens, and what they
    score. (The draws may differ between builds of torch.)"""
    behind = {i: [round(e, 6) for e in draws_of([i], 5, 4)] for i in (1, 2)}
    for text in ([1, 0], [1, 3], [1, 2, 2], [2, 1, 1, 3]):
        draws = [behind[a][b] for a, b in itertools.pairwise(text)]
        wanted = sum(-math.log(1 - math.exp(-e)) for e in draws) / len(draws)
        got = gumbel_score(torch.tensor([text]), 5, 1, 4)
        call = f"gumbel_score({[text]}, 5, width=1, vocab_size=4), draws {draws},"
        expect.value(got, wanted, call, score_hint(got, draws, wanted), 1e-4)
        expect.returned(got, float, call)


def score_hint(got, draws, wanted):
    """What a common mistake makes of these draws."""
    if not isinstance(got, float):
        return ""
    n = len(draws)
    for wrong, said in (
        (sum(draws) / n, "That is the mean of the draws: they are small with a mark."),
        (-sum(draws) / n, "That is minus the mean of the draws."),
        (sum(-math.log(-math.expm1(-e)) for e in draws), "The mean, not the sum."),
        (
            -math.log(-math.expm1(-sum(draws) / n)),
            "The mean of the scores, not the score of the mean.",
        ),
    ):
        if abs(got - wrong) < 1e-4 < abs(wrong - wanted):
            return said
    return ""


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_the_score_is_the_mean_over_all_places(gumbel_score, width):
    for seed, vocab in ((0, 30), (1, 97)):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(vocab, generator=generator)[None, :24]  # no repetition
        with expect.unchanged(ids=ids):
            got = gumbel_score(ids, 11, width, vocab)
        wanted = slow_score(ids[0].tolist(), 11, width, vocab)
        call = f"gumbel_score of 24 ids, key 11, width {width}, vocab_size {vocab},"
        hint = "The draws are those behind the width ids before, oldest first."
        expect.value(got, wanted, call, hint, 1e-4)


def test_a_window_that_comes_again_counts_once(gumbel_score):
    for text, width in (([4, 9, 4, 9, 4, 9, 2], 1), ([4, 9, 4, 9, 4, 9, 2], 2)):
        got = gumbel_score(torch.tensor([text]), 3, width, 12)
        wanted, hint = slow_score(text, 3, width, 12), ""
        every = slow_score(text, 3, width, 12, once=False)
        places = len(text) - width
        different = len({tuple(text[i : i + width + 1]) for i in range(places)})
        if isinstance(got, float) and abs(got - every) < 1e-4:
            hint = "The same token behind the same ids is no news: count it once."
        elif isinstance(got, float) and abs(got * places / different - wanted) < 1e-4:
            hint = f"The mean is that of the {different} different windows."
        call = f"gumbel_score({[text]}, 3, width={width}, vocab_size=12)"
        expect.value(got, wanted, call, hint, 1e-4)


def test_another_token_behind_the_same_ids_counts(gumbel_score):
    text = [4, 9, 4, 2, 4, 7]
    got = gumbel_score(torch.tensor([text]), 3, 1, 12)
    call = f"gumbel_score({[text]}, 3, width=1, vocab_size=12)"
    hint = "A window is the context and the token: 9, 2 and 7 behind 4 are three."
    expect.value(got, slow_score(text, 3, 1, 12), call, hint, 1e-4)


def test_a_flat_text_is_a_text(gumbel_score):
    ids = torch.tensor([4, 9, 1])
    got = gumbel_score(ids, 3, 1, 12)
    expect.value(got, slow_score([4, 9, 1], 3, 1, 12), "gumbel_score", tolerance=1e-4)


def test_what_the_race_wrote_scores_high(gumbel_score):
    """200 tokens drawn from 50 equally likely ones. The draws are fixed by the key."""
    text, key = [1, 2], 8
    for _ in range(200):
        draws = draws_of(text[-2:], key, 50)
        text.append(draws.index(min(draws)))
    ids = torch.tensor([text])
    marked, other = (gumbel_score(ids, k, 2, 50) for k in (key, key + 1))
    for got, wanted, name in ((marked, key, "its key"), (other, key + 1, "another")):
        call = f"gumbel_score of 200 marked tokens with {name}"
        expect.value(got, slow_score(text, wanted, 2, 50), call, tolerance=1e-4)


def test_a_tiny_draw_has_a_finite_score(gumbel_score):
    """Among 49,152 draws the smallest is below 2e-7 with one key in a hundred."""
    for key in range(3000):
        draws = torch.tensor(draws_of([1], key, 49152))
        token, draw = draws.argmin().item(), draws.min().item()
        if draw < 2e-7:
            break
    got = gumbel_score(torch.tensor([[1, token]]), key, 1, 49152)
    call = f"gumbel_score of a token with a draw of {draw:.2g}"
    hint = "1 - e**-E has no digits left there in float32: expm1, or float64."
    expect.value(got, -math.log(-math.expm1(-draw)), call, hint, 1e-3)


def test_a_text_without_a_place_to_score_is_refused(gumbel_score):
    for text, width in (
        ([1, 2], 2),
        ([1, 2], 3),
        ([1], 1),
        ([1, 2, 3], 0),
        ([1, 2], -1),
    ):
        call = f"gumbel_score of {len(text)} ids, width={width}"
        ids = torch.tensor([text])
        expect.rejects(
            ValueError, lambda ids=ids, w=width: gumbel_score(ids, 3, w, 12), call
        )


def test_scoring_draws_nothing_from_the_global_generator(gumbel_score):
    with Undisturbed("gumbel_score"):
        gumbel_score(torch.tensor([[1, 2, 3]]), 3, 1, 12)


# --- tournament -----------------------------------------------------------------------


def played(p, g):
    """The winner's distribution: all draws, all matches, in exact fractions."""
    if not g:
        return list(p)
    before = played(p, g[:-1])
    after = [Fraction(0)] * len(p)
    for a, b in itertools.product(range(len(p)), repeat=2):
        chance = before[a] * before[b]
        if g[-1][a] == g[-1][b]:
            after[a] += chance / 2
            after[b] += chance / 2
        else:
            after[a if g[-1][a] else b] += chance
    return after


@pytest.mark.parametrize(
    ("p", "g", "wanted"),
    [
        ([0.5, 0.25, 0.25], [[0, 1, 0]], [0.375, 0.4375, 0.1875]),
        ([0.5, 0.25, 0.25], [[1, 0, 0]], [0.75, 0.125, 0.125]),
        ([0.5, 0.25, 0.25], [[1, 1, 1]], [0.5, 0.25, 0.25]),
        ([0.5, 0.25, 0.25], [[0, 0, 0]], [0.5, 0.25, 0.25]),
        ([0.5, 0.5], [[1, 0], [0, 1]], [0.5625, 0.4375]),
        ([1.0, 0.0], [[0, 1]], [1.0, 0.0]),
    ],
)
def test_tournaments_worked_by_hand(tournament, p, g, wanted):
    probs, g_values = torch.tensor(p, dtype=torch.float64), torch.tensor(g)
    with expect.unchanged("make a new tensor", probs=probs, g=g_values):
        got = tournament(probs, g_values)
    call = f"tournament({p}, {g})"
    expect.tensor(got, (len(p),), call, torch.float64)
    hint = ""
    if abs(got.sum().item() - 1) > 1e-6:
        hint = f"It sums to {got.sum().item():.6g}."
    elif len(g) == 1 and torch.allclose(got, flipped(probs, g_values)):
        hint = (
            "A token with g = 1 wins against one with g = 0, not the other way round."
        )
    elif len(g) > 1 and torch.allclose(got, from_the_end(probs, g_values)):
        hint = "The layers in order: the first row of g is the first."
    expect.same(got, torch.tensor(wanted, dtype=torch.float64), call, hint, 1e-9)


def flipped(p, g):
    return p * (2 - g[0] - (p * (1 - g[0])).sum())


def from_the_end(p, g):
    for row in g.flip(0):
        p = p * (1 + row - (p * row).sum())
    return p


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_the_winners_are_those_of_all_matches_played_out(tournament, layers):
    generator = torch.Generator().manual_seed(layers)
    p = [Fraction(n, 32) for n in (16, 8, 4, 3, 1)]
    g = torch.randint(2, (layers, 5), generator=generator)
    wanted = [float(x) for x in played(p, g.tolist())]
    probs = torch.tensor([float(x) for x in p], dtype=torch.float64)
    got = tournament(probs, g)
    call = f"tournament({probs.tolist()}, {g.tolist()})"
    hint = ""
    if got.shape == (5,) and torch.allclose(got, from_the_end(probs, g)):
        hint = "The layers in order: the first row of g is the first."
    elif layers > 1 and got.shape == (5,):
        first = (probs * g).sum(-1)  # of each layer, but all from the first p
        if torch.allclose(got, probs * (1 + g - first[:, None]).prod(0)):
            hint = "m is that of the layer's own p."
    expect.same(got, torch.tensor(wanted, dtype=torch.float64), call, hint, 1e-9)


def test_a_layer_is_that_of_transformers(tournament):
    theirs = SynthIDTextWatermarkLogitsProcessor(
        ngram_len=3,
        keys=[1, 2],
        sampling_table_size=256,
        sampling_table_seed=0,
        context_history_size=8,
        device=torch.device("cpu"),
    )
    for layers in (1, 4, 30):
        scores = some_logits(1, 97, layers) * 3
        generator = torch.Generator().manual_seed(layers)
        g = torch.randint(2, (layers, 97), generator=generator)
        wanted = theirs.update_scores(scores, g.T[None]).exp()[0]
        got = tournament(scores[0].softmax(-1), g)
        call = f"tournament of 97 tokens, {layers} layers"
        expect.tensor(got, (97,), call, torch.float32)
        total, hint = got.sum().item(), ""
        if not abs(total - 1) < 1e-3:
            hint = f"It sums to {total:.3g}: rounding may add up from layer to layer."
        expect.same(got, wanted, call, hint, 1e-5)


def test_over_all_g_the_mean_is_p(tournament):
    """What the key averages out to: no distortion, over all keys."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    total = torch.zeros_like(p)
    for row in itertools.product((0, 1), repeat=4):
        total += tournament(p, torch.tensor([row]))
    call = "the mean of tournament(p, g) over all 16 g of one layer"
    expect.same(total / 16, p, call, "", 1e-9)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_g_may_have_any_dtype(tournament, dtype):
    for kind in (torch.float32, torch.float64):
        probs = torch.tensor([0.5, 0.25, 0.25], dtype=kind)
        g = torch.tensor([[0, 1, 0]]).to(dtype)
        got = tournament(probs, g)
        call = f"tournament of {kind} probabilities and {dtype} g"
        expect.tensor(got, (3,), call, kind)
        wanted = torch.tensor([0.375, 0.4375, 0.1875], dtype=kind)
        expect.same(got, wanted, call, "", 1e-6)


def test_no_probability_is_below_0(tournament):
    """In floats the mass of all tokens is not exactly 1."""
    probs, g = torch.zeros(49), torch.ones(1, 49)
    g[:, 48] = 0
    probs[:48] = some_logits(1, 48, 3)[0].softmax(-1) * (1 + 2e-6)
    probs[48] = 1e-6
    got = tournament(probs, g)
    call = "tournament where m comes out as 1.000002: the smallest probability"
    expect.tensor(got, (49,), call, torch.float32)
    lowest = got.min().item()
    assert lowest >= 0, f"{call} should be 0, not {lowest:.2g}: no probability is below"


def test_what_the_model_never_draws_never_wins(tournament):
    probs = torch.tensor([0.75, 0.25, 0.0, 0.0])
    got = tournament(probs, torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0]]))
    call = (
        "the last two of tournament([0.75, 0.25, 0, 0], [[0, 1, 1, 0], [1, 0, 1, 0]])"
    )
    hint = "Who has no probability does not play."
    expect.same(got[2:], [0.0, 0.0], call, hint)


def test_no_layer_changes_nothing(tournament):
    probs = torch.tensor([0.5, 0.25, 0.25])
    got = tournament(probs, torch.zeros(0, 3))
    expect.same(got, [0.5, 0.25, 0.25], "tournament without layers")
    expect.a_copy(got, probs, "tournament without layers")


def test_g_is_0_or_1(tournament):
    probs = torch.tensor([0.5, 0.25, 0.25])
    for bad in ([[0.0, 0.5, 1.0]], [[0, 2, 1]], [[0, -1, 1]], [[0.0, NAN, 1.0]]):
        call = f"tournament with g = {bad}"
        expect.rejects(
            ValueError, lambda bad=bad: tournament(probs, torch.tensor(bad)), call
        )
