"""What each variant does with a job, in a process of its own.

    python -m course.making.benchmarks.decoders NAME THREADS

A job is {"prompts": lists of ids, "new": how many tokens, "lookup": by prompt lookup}.
The answer: {"tokens": of the first prompt, "seconds": in all, "prefill": until the
first token, "steps": seconds of each step after it}. "read" answers bytes a second.
"""

import functools
import statistics
import sys
import time

from course.making.benchmarks.processes import answer

SLOTS = 32  # sequences at once, at most


def timed(steps) -> dict:
    """The answer for an iterator that gives the tokens of each call of the model, the
    first of them those of the prefill."""
    tokens, times, start = [], [], time.perf_counter()
    for few in steps:
        tokens += few
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return {
        "tokens": tokens,
        "seconds": sum(times),
        "prefill": times[0],
        "steps": times[1:],
    }


def reader(threads):
    """Bytes a second: a sum over an array that no cache holds."""
    import numba
    import numpy as np

    @numba.njit(parallel=True, fastmath=True, nogil=True)
    def read(a):
        out = np.empty(len(a), np.float32)
        for i in numba.prange(len(a)):
            total = np.float32(0)
            for j in range(a.shape[1]):
                total += a[i, j]
            out[i] = total
        return out

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    a = np.ones((64, 1 << 20), np.float32)
    read(a)

    def run(job):
        times = []
        for _ in range(9):
            start = time.perf_counter()
            read(a)
            times.append(time.perf_counter() - start)
        return a.nbytes / statistics.median(sorted(times)[:3])

    return run


def transformers(threads):
    """`generate`, and for a batch the model's own calls, without padding."""
    import torch
    from transformers import DynamicCache
    from transformers.generation.streamers import BaseStreamer

    from tiny_models import load
    from tiny_models.weights import NAME

    torch.set_num_threads(threads)
    model, _ = load(NAME)
    model = model.cpu()
    # No text ends early: min_new_tokens would ban an EOS that the others write.
    model.generation_config.eos_token_id = None

    class Stamps(BaseStreamer):
        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    def generate(ids, new, lookup):
        x, stamps, start = torch.tensor(ids), Stamps(), time.perf_counter()
        options = {"prompt_lookup_num_tokens": 10} if lookup else {"streamer": stamps}
        out = model.generate(
            x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=new,
            do_sample=False,
            **options,
        )
        seconds = time.perf_counter() - start
        times = [*stamps.times[1:], start + seconds]  # the first is the prompt itself
        return {
            "tokens": out[0, x.shape[1] :].tolist(),
            "seconds": seconds,
            "prefill": times[0] - start,
            "steps": [b - a for a, b in zip(times[:-1], times[1:-1], strict=False)],
        }

    @torch.inference_mode()
    def batch(ids, new):
        x, cache = torch.tensor(ids), DynamicCache(config=model.config)
        for _ in range(new):
            out = model(x, past_key_values=cache, use_cache=True, logits_to_keep=1)
            x = out.logits[:, -1].argmax(-1, keepdim=True)
            yield [x[0].item()]

    def run(job):
        if len(job["prompts"]) == 1:
            return generate(job["prompts"], job["new"], job.get("lookup"))
        return timed(batch(job["prompts"], job["new"]))

    run({"prompts": [[1, 2, 3, 4]], "new": 4})
    return run


def kernels(threads, kind):
    """The decoder of tiny_models.kernels, reading the file's blocks or float32."""
    import numpy as np

    from tiny_models import gguf_path, load
    from tiny_models.kernels import (
        Decoder,
        generate_with_lookup,
        read_gguf,
        read_model,
    )
    from tiny_models.weights import NAME

    if kind == "4-bit":
        weights = read_gguf(gguf_path())
    else:
        weights = read_model(load(NAME)[0].cpu())
    decoder = Decoder(weights, threads=threads, slots=SLOTS)

    def tokens(ids, new):
        x = np.array([decoder.prefill(p, slot=i) for i, p in enumerate(ids)])
        yield [int(x[0])]
        slots, place = np.arange(len(ids)), len(ids[0])
        for n in range(new - 1):
            x = decoder(x, np.full(len(ids), place + n), slots)
            yield [int(x[0])]

    def run(job):
        if job.get("lookup"):
            # Its calls differ in length: only the whole is of interest
            return timed(
                generate_with_lookup(decoder, ids, job["new"])[0]
                for ids in job["prompts"]
            )
        return timed(tokens(job["prompts"], job["new"]))

    for batch in (1, 2, 4, 8) if kind == "4-bit" else (1,):  # compiles
        run({"prompts": [[1, 2, 3, 4, 5]] * batch, "new": 3})
    return run


def by_hand(threads):
    """Lesson 14's own step."""
    import numba
    import torch

    from course.making.benchmarks.lesson import step_and_weights
    from tiny_models.kernels import new_cache

    torch.set_num_threads(1)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    step, weights = step_and_weights()

    def tokens(ids, new):
        cache = new_cache(weights, len(ids) + new)
        for token in ids:
            logits = step(weights, token, cache)
        for n in range(new):
            token = int(logits.argmax())
            yield [token]
            if n + 1 < new:
                logits = step(weights, token, cache)

    def run(job):
        return timed(tokens(job["prompts"][0], job["new"]))

    run({"prompts": [[1, 2]], "new": 2})
    return run


def llama(threads):
    """llama.cpp, where `llama_cpp` can be imported."""
    import numpy as np
    from llama_cpp import Llama

    from tiny_models import gguf_path

    model = Llama(
        str(gguf_path()),
        n_ctx=1024,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocab = model.n_vocab()

    def best():
        logits = model._ctx.get_logits()
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    def tokens(ids, new):
        model.reset()
        model.eval(ids)
        token = best()
        yield [token]
        for n in range(new - 1):  # the bare call: Llama.sample takes longer
            model._batch.set_batch([token], len(ids) + n, False)
            model._ctx.decode(model._batch)
            token = best()
            yield [token]

    def run(job):
        return timed(tokens(job["prompts"][0], job["new"]))

    run({"prompts": [[1, 2]], "new": 3})
    return run


MADE_BY = {
    "read": reader,
    "generate": transformers,
    "f32": functools.partial(kernels, kind="f32"),
    "by-hand": by_hand,
    "4-bit": functools.partial(kernels, kind="4-bit"),
    "llama-q4": llama,
}

if __name__ == "__main__":
    answer(functools.partial(MADE_BY[sys.argv[1]], int(sys.argv[2])))
