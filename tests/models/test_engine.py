"""The engine: each request's ids are those of generate, whoever else is there; and no
block is lost, held twice or held by nobody, whatever happens in whatever order."""

import functools
import random

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from test_server import byte_level_tokenizer

from tiny_models import load, random_gpt2, random_llama
from tiny_models.engine import (
    BlockAllocator,
    Engine,
    OutOfBlocks,
    PrefixCache,
    Sampling,
)
from tiny_models.engine.compiled import KernelRunner
from tiny_models.engine.guessing import ngram_draft
from tiny_models.engine.invariants import broken
from tiny_models.engine.memory import Row, groups
from tiny_models.engine.scheduler import share_budget
from tiny_models.kernels import read_model, weights_of
from tiny_models.weights import NAME

torch.set_num_threads(1)

TOKENIZER = byte_level_tokenizer()
MODEL = random_llama(vocab_size=len(TOKENIZER), eos_token_id=[2, 40, 41, 42])
GPT2 = random_gpt2(vocab_size=len(TOKENIZER))


def engine_of(
    model=MODEL, blocks=40, block_size=4, token_budget=16, max_batch=4, kernels=False
):
    return Engine(
        model,
        TOKENIZER,
        blocks=blocks,
        block_size=block_size,
        token_budget=token_budget,
        max_batch=max_batch,
        kernels=kernels,
    )


@functools.cache
def alone(prompt, max_tokens, seed=None, model=MODEL):
    """What generate says: the oracle. Greedy without a seed."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False}
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
            options = {"do_sample": True, "top_k": 0}
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=max_tokens, **options
        )
    return tuple(out[0, len(prompt) :].tolist())


def sampling(max_tokens, seed=None, n=1, **options):
    options = {"temperature": 0.0 if seed is None else 1.0} | options
    return Sampling(max_tokens, seed=seed, n=n, **options)


def prompt_of(length, seed=0):
    generator = random.Random(seed)
    return tuple(generator.randrange(3, len(TOKENIZER)) for _ in range(length))


def finish(engine, got=None, steps=2000):
    """Step until idle; returns the tokens of each answer."""
    got = {} if got is None else got
    for _ in range(steps):
        if engine.idle:
            return got
        for output in engine.step():
            got.setdefault((output.request_id, output.choice), []).append(output.token)
        assert not broken(engine)
    raise AssertionError(f"not idle after {steps} steps")


def run_plan(engine, plan):
    """The rest of a step that has been scheduled."""
    engine.scheduler.schedule = lambda: plan
    try:
        return engine.step()
    finally:
        del engine.scheduler.schedule


# --- whatever happens, in whatever order ---

START = prompt_of(20, seed=1)  # prompts that begin alike
PROMPTS = st.one_of(
    st.integers(1, 20).map(lambda n: START[:n]),
    st.builds(
        lambda n, m, seed: START[:n] + prompt_of(m, seed),
        st.integers(0, 17),
        st.integers(1, 9),
        st.integers(0, 3),
    ),
)


@functools.cache
def greedy_after(ids):
    with torch.no_grad():
        return int(MODEL(torch.tensor([ids])).logits[0, -1].argmax())


def half_right(ids, most):
    """Guesses of which the first are right for a greedy request, and the rest wrong."""
    found = []
    for n in range(most):
        token = greedy_after((*ids, *found))
        wrong = n and (len(ids) + n) % 4 == 0
        found.append(token + 1 if wrong and token + 1 < len(TOKENIZER) else token)
    return found


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, steps and cancellations at random, with a cache that may be small."""

    @initialize(
        blocks=st.integers(8, 40),
        budget=st.integers(4, 20),
        batch=st.integers(1, 4),
        size=st.sampled_from([4, 5, 16]),
    )
    def start(self, blocks, budget, batch, size):
        self.engine = engine_of(MODEL, blocks, size, budget, batch)
        self.engine.draft = half_right
        self.asked, self.got, self.ended = {}, {}, set()

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 8),
        seed=st.none() | st.integers(0, 3),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        guesses=st.sampled_from([0, 2, 9]),
    )
    def add(self, prompt, max_tokens, seed, n, guesses):
        wanted = sampling(max_tokens, seed, n, guesses=guesses)
        needed = -(-(len(prompt) + max_tokens - 1) // self.engine.allocator.size)
        if needed > self.engine.allocator.number:
            with pytest.raises(ValueError, match="blocks"):
                self.engine.add(prompt, wanted)
        else:
            self.asked[self.engine.add(prompt, wanted)] = (prompt, max_tokens, seed, n)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.cancel(request_id)
        self.asked.pop(request_id)

    @rule(times=st.integers(1, 6))
    def step(self, times):
        for _ in range(times):
            for output in self.engine.step():
                key = output.request_id, output.choice
                assert output.request_id in self.asked, "an output of a cancelled one"
                assert key not in self.ended, "an output after the last"
                self.got.setdefault(key, []).append(output.token)
                if output.finish_reason is not None:
                    self.ended.add(key)
            assert not broken(self.engine)

    @invariant()
    def nothing_is_broken(self):
        if hasattr(self, "engine"):
            assert not broken(self.engine)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        finish(self.engine, self.got)
        for request_id, (prompt, max_tokens, seed, n) in self.asked.items():
            for choice in range(n):
                own_seed = None if seed is None else seed + choice
                oracle = alone(prompt, max_tokens, own_seed)
                assert tuple(self.got[request_id, choice]) == oracle
        allocator, cache = self.engine.allocator, self.engine.prefix_cache
        assert allocator.free + cache.cached == allocator.number
        while cache.evict():
            pass
        assert allocator.free == allocator.number


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class OnKernels(AnyOrder):
    """The same on the kernels, whose blocks are larger."""

    @initialize(
        blocks=st.integers(3, 9),
        budget=st.integers(4, 40),
        batch=st.integers(1, 4),
        size=st.sampled_from([16, 32]),
    )
    def start(self, blocks, budget, batch, size):
        self.engine = engine_of(MODEL, blocks, size, budget, batch, kernels=True)
        self.engine.draft = half_right
        self.asked, self.got, self.ended = {}, {}, set()


TestOnKernels = OnKernels.TestCase
TestOnKernels.settings = settings(TestAnyOrder.settings, max_examples=25)


# --- one by one ---


@pytest.mark.parametrize("model", [MODEL, GPT2], ids=["llama", "gpt2"])
def test_ids_are_those_of_generate_whoever_else_is_there(model):
    engine, asked, got = engine_of(model), {}, {}
    for i in range(12):
        seed = i if i % 2 else None
        prompt = prompt_of(1 + 3 * i, seed=i)
        asked[engine.add(prompt, sampling(9, seed))] = alone(prompt, 9, seed, model)
        for output in engine.step() if i % 3 else ():
            got.setdefault((output.request_id, 0), []).append(output.token)
    finish(engine, got)
    assert {key[0]: tuple(ids) for key, ids in got.items()} == asked


def test_requests_that_decode_share_one_pass_of_the_model():
    widths = []

    class Watched:
        def __call__(self, **inputs):
            widths.append(tuple(inputs["input_ids"].shape))
            return MODEL(**inputs)

        def __getattr__(self, name):
            return getattr(MODEL, name)

    engine = engine_of(Watched())
    for seed in range(4):
        engine.add(prompt_of(3, seed), sampling(5, seed, logit_bias={2: -100.0}))
    while not engine.idle:
        engine.step()
    assert widths[0] == (4, 3)
    assert set(widths[1:]) <= {(rows, 1) for rows in range(1, 5)}
    assert widths[1] == (4, 1)


def test_a_step_has_no_more_tokens_than_the_budget():
    engine = engine_of(token_budget=8, max_batch=8)
    for seed in range(7):
        engine.add(prompt_of(5 * seed + 1, seed), sampling(6, seed))
    while not engine.idle:
        plan = engine.scheduler.schedule()
        assert sum(tokens for _, tokens in plan.work) <= 8
        run_plan(engine, plan)


def test_a_scheduler_divides_by_its_own_share_budget():
    engine = engine_of(token_budget=8, max_batch=8)

    def first_come(left, budget):
        return [min(one, max(0, budget - sum(left[:i]))) for i, one in enumerate(left)]

    engine.scheduler.share_budget = first_come
    for length in (6, 5):
        engine.add(prompt_of(length, length), sampling(1))
    assert [tokens for _, tokens in engine.scheduler.schedule().work] == [6, 2]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = engine_of(blocks=80, token_budget=16)
    engine.add(prompt_of(200), sampling(1))
    engine.step()
    short = engine.add(prompt_of(6, 1), sampling(1))
    steps = 0
    while not any(output.request_id == short for output in engine.step()):
        steps += 1
    assert steps < 5


def test_a_long_prompt_does_not_stop_those_that_decode():
    engine = engine_of(blocks=80, token_budget=16)
    first = engine.add(prompt_of(3), sampling(30, 1, logit_bias={2: -100.0}))
    engine.step()
    engine.add(prompt_of(200), sampling(1))
    for _ in range(20):
        assert [output.request_id for output in engine.step()] == [first]


def test_a_known_beginning_is_not_computed_again():
    engine, prompt = engine_of(), prompt_of(13)
    finish_one = engine.add(prompt, sampling(1))
    finish(engine)
    engine.add(prompt, sampling(1))
    (work,) = engine.scheduler.schedule().work
    assert finish_one == 0
    assert work[1] == 1  # 12 of 13 tokens are in three full blocks

    engine = engine_of()
    engine.add(prompt[:12], sampling(1))
    finish(engine)
    engine.add(prompt[:12], sampling(1))
    (work,) = engine.scheduler.schedule().work
    assert work[1] == 4  # the last token has to be computed, and so its block


def test_an_answer_is_a_known_beginning_of_the_next_turn():
    engine, prompt = engine_of(), prompt_of(6)
    answer = finish(
        engine, {(engine.add(prompt, sampling(7, logit_bias={2: -99.0})), 0): []}
    )
    ((_, ids),) = answer.items()
    assert len(ids) == 7
    engine.add([*prompt, *ids, 5, 6], sampling(1))
    (work,) = engine.scheduler.schedule().work
    assert work[1] == 15 - 12


def test_a_preempted_request_goes_on_where_it_was():
    engine = engine_of(blocks=6, token_budget=16, max_batch=4)
    prompts = [prompt_of(6, seed) for seed in range(4)]
    for seed, prompt in enumerate(prompts):
        engine.add(prompt, sampling(14, seed, logit_bias={2: 0.0}))
    got = finish(engine)
    assert engine.scheduler.preemptions
    for seed, prompt in enumerate(prompts):
        assert tuple(got[seed, 0]) == alone(prompt, 14, seed)


def test_preemption_does_not_thrash():
    """Between two stops of a request it gets at least one token."""
    engine = engine_of(blocks=10, block_size=2, token_budget=16, max_batch=8)
    for seed in range(8):
        engine.add(prompt_of(4, seed), sampling(16, seed))
    tokens, stopped_at = {}, {}
    while not engine.idle:
        running = list(engine.scheduler.running)
        outputs = engine.step()
        for request in running:
            if request in engine.scheduler.waiting:
                assert tokens.get(request.id, 0) > stopped_at.get(request.id, -1)
                stopped_at[request.id] = tokens.get(request.id, 0)
        for output in outputs:
            tokens[output.request_id] = tokens.get(output.request_id, 0) + 1
    assert engine.scheduler.preemptions


def test_n_answers_read_the_prompt_once_and_copy_a_block_before_they_write():
    engine, prompt = engine_of(), prompt_of(6)
    engine.add(prompt, sampling(4, 7, n=3))
    plan = engine.scheduler.schedule()
    assert [tokens for _, tokens in plan.work] == [6]
    run_plan(engine, plan)
    assert engine.allocator.references(engine.scheduler.running[0].blocks[1]) == 3
    plan = engine.scheduler.schedule()
    assert len(plan.copies) == 2
    last = {request.blocks[1] for request, _ in plan.work}
    assert len(last) == 3
    run_plan(engine, plan)
    assert not broken(engine)


def test_a_request_that_could_never_end_is_refused():
    engine = engine_of(blocks=3, block_size=4)
    engine.add(prompt_of(5), sampling(8))  # 12 tokens are run
    with pytest.raises(ValueError, match="4 blocks of 4, but there are 3"):
        engine.add(prompt_of(5), sampling(9))
    for bad in (sampling(0), sampling(1, n=0)):
        with pytest.raises(ValueError, match="1 or more"):
            engine.add(prompt_of(5), bad)
    with pytest.raises(ValueError, match="1 or more"):
        engine.add([], sampling(1))
    with pytest.raises(ValueError, match="max_batch"):
        engine_of(token_budget=3, max_batch=4)


def test_a_failed_pass_can_be_tried_again():
    failures = iter([RuntimeError("out of memory")])

    class Failing:
        def __call__(self, **inputs):
            for error in failures:
                raise error
            return MODEL(**inputs)

        def __getattr__(self, name):
            return getattr(MODEL, name)

    engine, prompt = engine_of(Failing()), prompt_of(6)
    engine.add(prompt, sampling(5))
    with pytest.raises(RuntimeError, match="memory"):
        engine.step()
    assert not broken(engine)
    assert tuple(finish(engine)[0, 0]) == alone(prompt, 5)


# --- guesses ---


@pytest.mark.parametrize("seed", [None, 6])
@pytest.mark.parametrize("kernels", [False, True])
def test_guesses_that_are_right_save_steps_and_no_guess_changes_an_id(kernels, seed):
    prompt, other = prompt_of(10, 3), prompt_of(9, 4)
    wanted, steps = alone(prompt, 30, seed), {}
    assert len(wanted) == 30
    for name, draft in (
        ("right", lambda ids, most: list(wanted[len(ids) - 10 :])),
        ("wrong", lambda ids, most: [7] * most),
        ("none", lambda ids, most: []),
    ):
        engine = engine_of(block_size=16, token_budget=8, kernels=kernels)
        engine.draft = draft
        one = engine.add(prompt, sampling(30, seed, guesses=6))
        two = engine.add(other, sampling(30))
        got, steps[name] = {one: [], two: []}, 0
        while not engine.idle:
            steps[name] += len(got[one]) < 30
            for output in engine.step():
                got[output.request_id].append(output.token)
            assert not broken(engine)
        assert tuple(got[one]) == wanted
        assert tuple(got[two]) == alone(other, 30)
    assert steps["wrong"] == steps["none"] > 30
    assert steps["right"] < 12


def test_a_guess_takes_no_block_no_budget_and_no_token_from_anybody():
    widths = []
    engine = engine_of(blocks=8, block_size=4, token_budget=7)
    engine.draft = lambda ids, most: [3] * 50  # more than it was asked for
    run = engine._runner.run
    engine._runner.run = lambda rows: (
        widths.append([len(r.ids) for r in rows]) or run(rows)
    )
    asked = [(prompt_of(3, seed), 7) for seed in range(3)]
    ids = [engine.add(p, sampling(n, guesses=9)) for p, n in asked]
    got = finish(engine)
    for i, (prompt, most) in zip(ids, asked, strict=True):
        assert tuple(got[i, 0]) == alone(prompt, most)
    assert max(map(sum, widths)) <= 7
    assert max(map(max, widths)) == 4, "as far as the block goes"
    assert engine.scheduler.preemptions == 0


def test_what_followed_the_longest_run_that_was_seen_is_guessed():
    for ids, most, wanted in (
        ([1, 2, 3, 9, 1, 2, 3], 2, [9, 1]),
        ([1, 2, 8, 0, 1, 2, 9, 4, 1, 2], 3, [9, 4, 1]),  # the last time counts
        ([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2], 1, [7]),  # three before two
        ([1, 2, 3], 4, []),
        ([4, 4, 4], 4, [4]),
        ([4], 4, []),
        ([], 4, []),
    ):
        assert ngram_draft(ids, most) == wanted, ids


# --- on the kernels ---


def logits_of(*runs):
    """The logits of the last of some runs of rows, on the kernels."""
    runner = KernelRunner(read_model(MODEL), 8, 16, 64)
    for rows in runs:
        found = [x if x is None else x.clone() for x in runner.run(rows)]
    return found


def test_logits_are_those_of_the_model_and_the_same_bits_in_any_company():
    prompt, other = prompt_of(40, 1), prompt_of(24, 2)
    (alone,) = logits_of([Row(prompt, 0, [5, 1, 3], wanted=True)])
    theirs = MODEL(torch.tensor([prompt])).logits[0, -1]
    assert torch.allclose(alone, theirs, atol=1e-5)
    # Cut into pieces, beside another one, in other blocks
    got = logits_of(
        [Row(prompt[:7], 0, [2, 0, 7], False), Row(other[:9], 0, [4, 6], False)],
        [Row(other[9:23], 9, [4, 6], True), Row(prompt[7:33], 7, [2, 0, 7], False)],
        [Row(prompt[33:], 33, [2, 0, 7], True), Row(other[23:], 23, [4, 6], True)],
    )
    assert torch.equal(got[0], alone)
    (own,) = logits_of([Row(other, 0, [0, 1], wanted=True)])
    assert torch.equal(got[1], own)


def test_a_block_is_copied_with_all_that_is_in_it():
    runner, prompt = KernelRunner(read_model(MODEL), 4, 16, 64), prompt_of(20)
    runner.run([Row(prompt[:19], 0, [0, 1], wanted=False)])
    runner.copy(1, 3)
    (first,) = (x.clone() for x in runner.run([Row(prompt[19:], 19, [0, 1], True)]))
    (second,) = runner.run([Row(prompt[19:], 19, [0, 3], True)])
    assert torch.equal(first, second)


def test_what_the_kernels_do_not_know_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="gpt2"):
        engine_of(GPT2, block_size=16, kernels=True)
    with pytest.raises(ValueError, match="16 must divide the size of a block"):
        engine_of(block_size=24, kernels=True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row([5, len(TOKENIZER)], 0, [0], True), "ids must be from 0 to"),
        (Row([-1], 0, [0], True), "ids must be from 0 to"),
        (Row([5, 6], 15, [0], True), "17 tokens do not fit into blocks"),
        (Row([5], 0, [4], True), "there are 4 blocks"),
        (Row([5], 0, [-1], True), "there are 4 blocks"),
        (Row([5] * 9, 0, [0], True), "a call takes 8 tokens, not 9"),
    ],
)
def test_no_row_lets_compiled_code_leave_its_arrays(row, said):
    runner = KernelRunner(read_model(MODEL), 4, 16, 8)
    with pytest.raises(ValueError, match=said):
        runner.run([row])


def test_the_courses_model_runs_on_its_four_bits_and_gives_the_ids_of_generate():
    model, tokenizer = load(NAME)
    engine = Engine(model, tokenizer, blocks=40, token_budget=40, kernels=True)
    texts = ("The capital of France is", "Once upon a time", "def add(a, b):")
    prompts = [tuple(tokenizer(text).input_ids) for text in texts]
    got = {(engine.add(one, sampling(12)), 0): [] for one in prompts}
    assert [tuple(ids) for ids in finish(engine, got).values()] == [
        alone(prompt, 12, model=model) for prompt in prompts
    ]
    assert type(engine._runner._forward._parts.qkv).__name__ == "Q4_1"
    weight = model.model.layers[17].mlp.up_proj.weight.data
    weight[100, 200] = weight[100, 200].nextafter(weight.new_tensor(9.0))
    assert type(weights_of(model).qkv).__name__ == "F32", "another model by now"


# --- blocks ---


def test_blocks_are_counted():
    allocator = BlockAllocator(2, 4)
    one, two = allocator.take(), allocator.take()
    assert {one, two} == {0, 1}
    with pytest.raises(OutOfBlocks):
        allocator.take()
    allocator.share(one)
    allocator.give_back(one)
    assert (allocator.free, allocator.references(one)) == (0, 1)
    allocator.give_back(one)
    assert (allocator.free, allocator.references(one)) == (1, 0)
    for wrong in (allocator.give_back, allocator.share):
        with pytest.raises(ValueError, match="free"):
            wrong(one)
    assert [allocator.needed(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_hash_that_lies_is_not_believed():
    allocator = BlockAllocator(8, 2)
    cache = PrefixCache(allocator, hash=lambda _: 7)
    block = allocator.take()
    cache.register(None, (1, 2), block)
    assert cache.match([3, 4, 5]) == []
    assert [entry.block for entry in cache.match([1, 2, 5])] == [block]


def test_the_same_tokens_behind_other_tokens_are_another_block():
    allocator = BlockAllocator(8, 2)
    cache = PrefixCache(allocator)
    a = cache.register(None, (1, 2), allocator.take())
    cache.register(a, (5, 6), allocator.take())
    b = cache.register(None, (3, 4), allocator.take())
    assert cache.match([3, 4, 5, 6, 9]) == [b]
    assert len(cache.match([1, 2, 5, 6, 9])) == 2


def test_what_was_used_last_is_evicted_last_and_a_beginning_after_its_end():
    allocator = BlockAllocator(3, 2)
    cache = PrefixCache(allocator)
    a = cache.register(None, (1, 2), allocator.take())
    b = cache.register(a, (3, 4), allocator.take())
    c = cache.register(None, (5, 6), allocator.take())
    cache.touch([a, b])
    for entry in (a, b, c):
        allocator.give_back(entry.block)
    gone = []
    while cache.evict():
        gone += [e for e in (a, b, c) if e.block not in cache.blocks and e not in gone]
    assert gone == [c, b, a]
    assert allocator.free == 3


def test_a_block_in_use_is_not_evicted():
    allocator = BlockAllocator(2, 2)
    cache = PrefixCache(allocator)
    cache.register(None, (1, 2), allocator.take())
    assert not cache.evict()
    assert cache.cached == 0


def test_rows_are_put_together_where_that_pads_with_few_positions():
    assert groups([1, 1, 1, 64, 1]) == [[0, 1, 2, 4], [3]]
    assert groups([20, 1]) == [[1, 0]]
    assert groups([64, 64]) == [[0, 1]]
    assert groups([1, 34]) == [[0], [1]]
    assert groups([1, 33]) == [[0, 1]]


@pytest.mark.parametrize(
    ("left", "budget", "wanted"),
    [
        ([9, 9], 6, [3, 3]),
        ([2, 9], 6, [2, 4]),
        ([9, 2, 1], 9, [6, 2, 1]),
        ([3, 1], 9, [3, 1]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([], 4, []),
    ],
)
def test_a_budget_is_shared_and_none_of_it_is_lost(left, budget, wanted):
    assert share_budget(left, budget) == wanted
