"""The kernels of lesson 14. Oracles: the gguf library's dequantised weights, the model
in float32 and in float64, generate."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from test_tiny_models import write_gguf
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tiny_models import gguf_path, load, random_gpt2, random_llama, weights
from tiny_models.kernels import (
    Decoder,
    NotSupported,
    generate_with_lookup,
    lookup,
    read_gguf,
    read_model,
)
from tiny_models.kernels import forward as decoding
from tiny_models.kernels.matrices import matmul, pack, padded

torch.set_num_threads(1)
IDS = [5, 17, 40, 8, 9, 60, 33, 21, 11, 3, 70, 71, 72]
PATHS = pytest.mark.parametrize("plain", [False, True], ids=["vectors", "plain"])
KINDS = pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F32"])
# Sizes that are no multiples of anything; one head a key-value head; many of them.
SIZES = pytest.mark.parametrize(
    "config",
    [
        {},
        {"vocab_size": 101, "hidden_size": 36, "intermediate_size": 50, "head_dim": 10},
        {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24},
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def model():
    return random_llama(eos_token_id=None)


def all_logits(decoder, ids, cut):
    out = []
    for start in range(0, len(ids), cut):
        part = ids[start : start + cut]
        decoder(part, np.arange(start, start + len(part)))
        out.append(decoder.logits.copy())
    return np.concatenate(out)


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def greedy(model, ids, new, **options):
    ids = torch.tensor([ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        **options,
    )
    return out[0, ids.shape[1] :].tolist()


# --- matrices -------------------------------------------------------------------------


def matrix_of(kind, layers=2, rows=45, columns=96):
    """(as the file holds it, its float32 weights by the gguf library)"""
    values = np.random.default_rng(0).normal(0, 1, (layers, rows, columns))
    values = values.astype(np.float32)
    if kind == "F32":
        return values, values
    kind = gguf.GGMLQuantizationType[kind]
    raw = np.stack([gguf.quantize(layer, kind) for layer in values])
    return raw, np.stack([gguf.dequantize(layer, kind) for layer in raw])


def multiplied(w, layer, x, like, rows):
    """x times the layer's matrix, by two `threads` one after the other."""
    room = np.zeros((len(x) + 8, x.shape[1]), np.float32)
    room[: len(x)] = x
    out = np.zeros((len(x) + 8, padded(rows)), np.float32)
    for me in range(2):
        matmul(me, 2, w, layer, room[: len(x)], like, out[: len(x)])
    return out[: len(x), :rows]


@KINDS
@pytest.mark.parametrize("like", [(), (0,), (0,) * 4], ids=["plain", "1", "4"])
def test_weights_are_bit_for_bit_those_of_the_float32_model(kind, like):
    raw, wanted = matrix_of(kind)
    w = pack(raw, kind)
    unit = np.eye(96, dtype=np.float32)  # picks one column: the sum is that weight
    for layer in range(2):
        got = multiplied(w, layer, unit, like, 45)
        assert np.array_equal(got.T, wanted[layer])


@KINDS
@pytest.mark.parametrize("like", [(), (0,), (0,) * 4], ids=["plain", "1", "4"])
def test_products_are_those_of_float64(kind, like):
    raw, w64 = matrix_of(kind)
    x = np.random.default_rng(1).normal(0, 1, (6, 96)).astype(np.float32)
    got = multiplied(pack(raw, kind), 1, x, like, 45)
    assert np.allclose(got, x.astype(np.float64) @ w64[1].T, rtol=0, atol=2e-5)


@KINDS
def test_a_product_does_not_depend_on_what_is_computed_beside_it(kind):
    raw, _ = matrix_of(kind)
    w = pack(raw, kind)
    x = np.random.default_rng(2).normal(0, 1, (5, 96)).astype(np.float32)
    alone = np.concatenate([multiplied(w, 0, row[None], (0,), 45) for row in x])
    for wide in (2, 4, 8):
        assert np.array_equal(multiplied(w, 0, x, (0,) * wide, 45), alone)


def test_a_kind_of_matrix_that_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="know Q4_1, Q8_0 and F32, not Q6_K"):
        pack(np.zeros((1, 2, 32), np.uint8), "Q6_K")


# --- a whole model --------------------------------------------------------------------


@PATHS
@SIZES
def test_logits_are_those_of_the_model(config, plain):
    model = random_llama(eos_token_id=None, **config)
    decoder = Decoder(read_model(model), plain=plain)
    ids = [n % model.config.vocab_size for n in IDS * 3]
    got, exact = all_logits(decoder, ids, 13), theirs(model.double(), ids)
    assert np.allclose(got, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


@PATHS
def test_logits_are_the_same_bits_however_a_text_is_cut(model, plain):
    ids = IDS * 5
    wanted = all_logits(Decoder(read_model(model), plain=plain), ids, 64)
    for threads in (1, 2):
        for cut in (1, 2, 3, 4, 5, 8, 33):
            decoder = Decoder(read_model(model), threads=threads, plain=plain)
            assert np.array_equal(all_logits(decoder, ids, cut), wanted), (threads, cut)


@PATHS
def test_vectors_and_plain_loops_agree(model, plain):
    ids = IDS * 5
    got = all_logits(Decoder(read_model(model), plain=plain), ids, 16)
    other = all_logits(Decoder(read_model(model), plain=not plain), ids, 16)
    assert np.allclose(got, other, rtol=0, atol=1e-5 * np.abs(other).max())


@PATHS
def test_greedy_ids_are_those_of_generate(model, plain):
    decoder = Decoder(read_model(model), plain=plain, tokens=8)
    for ids in (IDS, IDS[:1], IDS * 3, [96, 0, 1, 2]):
        assert decoder.generate(ids, 40) == greedy(model, ids, 40)
    free = decoder.generate(IDS, 20)
    end = free[7]
    stopped = decoder.generate(IDS, 20, [end])
    assert stopped == free[: free.index(end) + 1]
    assert stopped == greedy(model, IDS, 20, eos_token_id=end)
    assert decoder.generate(IDS, 0) == []
    assert decoder.generate(IDS, 1) == free[:1]


def test_sequences_in_one_call_do_not_see_each_other(model):
    alone = Decoder(read_model(model), tokens=16)
    texts = [IDS, IDS[3:8], IDS[::-1]]
    wanted = []
    for ids in texts:
        alone.prefill(ids)
        alone([50], [len(ids)])
        wanted.append(alone.logits[0].copy())
    decoder = Decoder(read_model(model), slots=4, tokens=16)
    for slot, ids in enumerate(texts):
        decoder.prefill(ids, slot=slot + 1)
    decoder([50] * 3, [len(ids) for ids in texts], [1, 2, 3])
    assert np.array_equal(decoder.logits, np.stack(wanted))


def test_a_sequence_can_be_rolled_back(model):
    decoder = Decoder(read_model(model))
    decoder.prefill(IDS)
    decoder([50, 51, 52], [13, 14, 15])
    decoder([60, 61], [13, 14])
    got = decoder.logits.copy()
    fresh = Decoder(read_model(model))
    assert np.array_equal(got, all_logits(fresh, [*IDS, 60, 61], 15)[-2:])
    with pytest.raises(ValueError, match="place 16 .* does not follow its 15 tokens"):
        decoder([50], [16])  # what stood there belonged to the other text


def test_only_the_logits_that_are_asked_for_are_computed(model):
    decoder = Decoder(read_model(model))
    whole = all_logits(decoder, IDS, 64)
    best = decoder(IDS, np.arange(13), first=10)
    assert np.array_equal(decoder.logits, whole[10:])
    assert best.tolist() == whole[10:].argmax(-1).tolist()
    assert decoder(IDS, np.arange(13), first=13).tolist() == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (([97], [0]), "ids must be from 0 to 96"),
        (([-1], [0]), "ids must be from 0 to 96"),
        (([], []), "1 to 8 tokens, not 0"),
        (([1] * 9, range(9)), "1 to 8 tokens, not 9"),
        (([1, 2], [0]), r"should be \(tokens,\)"),
        (([[1]], [[0]]), r"should be \(tokens,\)"),
        (([1], [20]), "has room for 20 tokens"),
        (([1], [-1]), "has room for 20 tokens"),
        (([1], [0], [2]), "2 sequences, no slot 2"),
        (([1], [0], [-1]), "2 sequences, no slot -1"),
        (([1], [3]), "does not follow its 2 tokens"),
        (([1, 2], [2, 2]), "does not follow its 3 tokens"),
        (([1, 2], [2, 4]), "does not follow its 3 tokens"),
        (([1], [2], None, 2), "first must be from 0 to 1"),
        (([1], [2], None, -1), "first must be from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(model, call, said):
    decoder = Decoder(read_model(model), slots=2, positions=20, tokens=8)
    decoder([5, 17], [0, 1])
    with pytest.raises(ValueError, match=said):
        decoder(*call)
    decoder([40], [2])
    assert np.allclose(decoder.logits[0], theirs(model, [5, 17, 40])[-1], atol=1e-4)


@pytest.mark.parametrize("name", ["threads", "slots", "positions", "tokens"])
def test_a_decoder_has_at_least_one_of_each(model, name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        Decoder(read_model(model), **{name: 0})


# --- prompt lookup --------------------------------------------------------------------


@pytest.mark.parametrize("ids", [IDS, IDS[:1], IDS * 3, [7] * 20, [5, 17, 40] * 4])
def test_lookup_gives_the_tokens_of_generate_in_no_more_calls(model, ids):
    decoder = Decoder(read_model(model))
    for new in (0, 1, 2, 3, 9, 60):
        got, calls = generate_with_lookup(decoder, ids, new)
        assert got == greedy(model, ids, new) if new else got == []
        assert calls <= max(0, new - 1)
    end = got[30]
    stopped, _ = generate_with_lookup(decoder, ids, 60, [end])
    assert stopped == got[: got.index(end) + 1]


def test_a_text_that_repeats_itself_takes_fewer_calls():
    # Without its layers a model knows the last token alone: it ends in a circle
    circling = random_llama(eos_token_id=None)
    for layer in circling.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    new, calls = generate_with_lookup(Decoder(read_model(circling)), IDS, 400)
    assert new == greedy(circling, IDS, 400)
    assert calls < 97 + 300 / 8 + 30


def test_a_guess_is_what_followed_the_longest_run_that_was_seen():
    text = lookup.Lookup([1, 2, 3, 9, 8, 7, 2, 3, 5, 6, 1, 2, 3])
    assert text.guess() == [9, 8, 7][: len(text.guess())]
    assert len(text.guess()) >= 1
    assert text.guess(0) == []
    assert lookup.Lookup([1, 2, 3, 4]).guess() == []
    assert lookup.Lookup().guess() == []
    latest = lookup.Lookup([1, 2, 7, 1, 2, 8, 1, 2])
    assert latest.guess()[:1] == [8]


def test_the_number_of_guesses_follows_how_often_they_were_right():
    def told(right):
        text = lookup.Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2)
        lengths = []
        for n in range(20):
            lengths.append(len(text.guess()))
            text.extend([1, 2, 3, 4, 5, 6, 7, 8, 9] if right else [100 + n])
            text.extend([] if right else [1, 2, 3, 4, 5, 6, 7, 8, 9])
        return lengths

    assert told(right=True)[0] > 0
    assert told(right=True)[-1] == 7
    assert told(right=False)[-1] == 0


def test_guesses_come_back_when_a_text_begins_to_repeat_itself():
    again = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    text = lookup.Lookup(again)
    for n in range(20):
        text.extend(again)
        text.guess()
        text.extend([100 + n])
    text.extend(again)
    assert text.guess() == []
    for token in again * 6:  # it is looked at although nothing is guessed
        text.extend([token])
        text.guess()
    assert len(text.guess()) == 7


def test_the_best_number_of_guesses_is_that_with_the_most_tokens_for_the_time():
    # A call of 2, 4, 8 costs 1.2, 1.8, 2.9 of one. Always right: 8 / 2.9 is best
    assert lookup.best_length(1.0, 7) == 7
    assert lookup.best_length(1.0, 3) == 3  # 4 / 1.8
    assert lookup.best_length(0.0, 7) == 0
    assert lookup.best_length(0.1, 7) == 0  # 1.1 / 1.2
    assert lookup.best_length(0.5, 1) == 1  # 1.5 / 1.2
    assert lookup.best_length(0.9, 0) == 0


def test_lookup_needs_a_decoder_with_room_for_its_calls(model):
    with pytest.raises(ValueError, match="room for 8 tokens"):
        generate_with_lookup(Decoder(read_model(model), tokens=7), IDS, 5)


# --- threads --------------------------------------------------------------------------


def two_threads(model, monkeypatch):
    monkeypatch.setattr(decoding, "_processors", lambda: 2)
    return Decoder(read_model(model), threads=2)


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_thread_that_dies_does_not_keep_the_others_waiting(
    model, monkeypatch, dies, error
):
    decoder = two_threads(model, monkeypatch)
    wanted = decoder.generate(IDS, 5)
    real, began = decoding.step, threading.Event()

    def step(me, *arguments):
        if me == dies:
            began.wait(5)  # the other one waits at the barrier by now
            raise error
        began.set()
        real(me, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "step", step)
        with pytest.raises(error):
            decoder([1], [13])
    assert decoder.generate(IDS, 5) == wanted


def test_two_python_threads_may_share_a_decoder(model):
    decoder = Decoder(read_model(model), slots=2)
    wanted = [greedy(model, IDS, 12), greedy(model, IDS[::-1], 12)]
    got = [[], []]

    def run(slot, ids):
        token = decoder.prefill(ids, slot)
        for place in range(len(ids), len(ids) + 12):
            got[slot].append(token)
            token = int(decoder([token], [place], [slot])[0])

    work = [threading.Thread(target=run, args=x) for x in ((0, IDS), (1, IDS[::-1]))]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(60)
    # `prefill` and the call return what their own call computed
    assert got == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own(model, monkeypatch):
    decoder = two_threads(model, monkeypatch)
    wanted = decoder.generate(IDS, 5)
    child = os.fork()
    if child == 0:
        os._exit(0 if decoder.generate(IDS, 5) == wanted else 1)
    watch = threading.Timer(60, os.kill, (child, 9))
    watch.start()
    _, status = os.waitpid(child, 0)
    watch.cancel()
    assert status == 0


# --- other processors -----------------------------------------------------------------

ELSEWHERE = """
import torch
from tiny_models import random_llama
from tiny_models.kernels import Decoder, read_model, vectors
model = random_llama(eos_token_id=None)
ids = [5, 17, 40, 8, 9, 60, 33, 21, 11]
print(vectors.N, vectors.AVAILABLE)
print(Decoder(read_model(model)).generate(ids, 20))
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="needs an x86 processor")
@pytest.mark.parametrize(
    ("name", "features", "wanted"),
    [
        ("haswell", "+avx,+avx2,+fma,+f16c", "8 True"),
        ("generic", "+sse2", "8 False"),
    ],
)
def test_older_processors_give_the_same_tokens(model, name, features, wanted, tmp_path):
    if not sys.platform.startswith(("linux", "win")) or "avx2" not in _cpu():
        pytest.skip("needs an x86 processor with AVX2")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=Path(__file__).resolve().parents[2],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": name,
            "NUMBA_CPU_FEATURES": features,
            "COURSE_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids = [5, 17, 40, 8, 9, 60, 33, 21, 11]
    said = [x for x in done.stdout.splitlines() if "Compiling" not in x]
    assert said == [wanted, str(greedy(model, ids, 20))]


def _cpu():
    from llvmlite import binding

    return [name for name, yes in binding.get_host_cpu_features().items() if yes]


def test_a_cache_folder_that_cannot_be_written_costs_time_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE.replace("(read_model(model))", "(read_model(model), plain=True)"),
        ],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "COURSE_CACHE": str(tmp_path / "file" / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- reading --------------------------------------------------------------------------


@PATHS
def test_a_gguf_file_gives_the_logits_of_transformers_reading_it(tmp_path, plain):
    write_gguf(tmp_path / "small.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="small.gguf", dtype=torch.float32
    ).eval()
    decoder = Decoder(read_gguf(tmp_path / "small.gguf"), plain=plain)
    got, wanted = all_logits(decoder, IDS * 3, 64), theirs(model, IDS * 3)
    assert np.allclose(got, wanted, rtol=0, atol=1e-4)


def test_another_model_is_an_error_that_says_what_is_known():
    with pytest.raises(NotSupported, match="know Llama models .* this is a gpt2"):
        read_model(random_gpt2())
    biased = LlamaForCausalLM(
        LlamaConfig(**random_llama(attention_bias=True).config.to_dict())
    )
    with pytest.raises(NotSupported, match="biases"):
        read_model(biased)
    scaled = random_llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    )
    with pytest.raises(NotSupported, match="scales them"):
        read_model(scaled)


# --- the course's own model -----------------------------------------------------------

PROMPTS = [
    "Explain how a refrigerator works, step by step.",
    "Write a Python function that checks whether a number is prime.",
    "List the planets of the solar system.",
]


@pytest.fixture(scope="module")
def real():
    model, tokenizer = load(weights.NAME)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for text in PROMPTS
    ]
    return model.cpu(), [*prompts, tokenizer("Once upon a time")["input_ids"]]


@pytest.fixture(scope="module")
def four_bits():
    return read_gguf(gguf_path())


def test_four_bits_give_the_tokens_of_generate(real, four_bits):
    model, prompts = real
    decoder = Decoder(four_bits)
    for ids in prompts:
        wanted = greedy(model, ids, 24, min_new_tokens=24)
        new, place = [decoder.prefill(ids)], len(ids)
        while len(new) < 24:
            new.append(int(decoder(new[-1:], [place])[0]))
            place += 1
        assert new == wanted


@PATHS
def test_four_bits_are_as_near_to_float64_as_transformers(real, four_bits, plain):
    model, prompts = real
    ids = prompts[0] + prompts[1]
    there = theirs(model, ids)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        exact = model.double()(torch.tensor([ids])).logits[0].numpy()
    model.float().load_state_dict(state)
    got = all_logits(Decoder(four_bits, plain=plain), ids, 64)
    assert np.abs(got - exact).max() <= 2 * np.abs(there - exact).max()


def test_four_bits_give_the_same_bits_however_a_text_is_cut(real, four_bits):
    ids = real[1][0] + real[1][1]
    wanted = all_logits(Decoder(four_bits), ids, 64)
    for threads, cut in ((2, 1), (2, 2), (2, 3), (2, 7), (1, 33)):
        decoder = Decoder(four_bits, threads=threads)
        assert np.array_equal(all_logits(decoder, ids, cut), wanted), (threads, cut)
