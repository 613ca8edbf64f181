"""How fast the course's decoders are, as a multiple of `model.generate` in float32.

    python start.py bench                     the whole table: about ten minutes
    python start.py bench --rounds 3 --new 32 a shorter one
    python start.py bench --only generate 4-bit --threads 1

Each variant runs in a process of its own, one at a time, in rounds whose order is
reversed every other time: so what else the machine does hits all of them alike, and
only ratios of one run are compared. Seconds a token are those of the steps after the
prefill; a variant's number is the median over all rounds, its spread the slowest and
the fastest round. Every greedy text must be that of `generate`, or the last column says
where it differs first.

llama.cpp is measured where `llama_cpp` can be imported. It needs a compiler and is no
requirement of the course.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

VARIANTS = {
    "generate": "model.generate, float32",
    "f32": "our kernels, float32",
    "by-hand": "lesson 14's step, compiled, 4-bit blocks",
    "4-bit": "our kernels, 4-bit blocks",
    "llama-q4": "llama.cpp, the same 4-bit file",
}
BATCHES = (8, 32)
PROMPT = 64
TEXT = (
    "The lighthouse at the end of the long grey harbour wall had been dark for eleven "
    "years when the town council, after many arguments about money and one about "
    "seagulls, decided to light it again. Nobody could find the key. The last keeper "
    "had moved inland to live with his daughter, and he wrote back on a postcard with "
    "a picture of a cow: the key hangs where it always hung. So a small party of "
    "people went out at low tide with torches and a ladder. "
)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python start.py bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=128, help="new tokens a round")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=[])
    parser.add_argument("--worker", choices=["read", *VARIANTS], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.new < 2 or options.threads < 1:
        parser.error("rounds and threads must be 1 or more, new 2 or more")
    if options.worker:
        serve(options.worker, options.threads)
        return
    names = [n for n in VARIANTS if not options.only or n in options.only]
    if "generate" not in names:
        names.insert(0, "generate")
    if "llama-q4" in names and not importable("llama_cpp"):
        names.remove("llama-q4")
        print("llama_cpp cannot be imported: llama.cpp is left out")
    with Workers(["read", *names], options.threads) as workers:
        print(machine(options.threads))
        report(measure(workers, names, options), options)


# --- measuring ------------------------------------------------------------------------


def measure(workers, names, options) -> dict:
    """name -> a result for each round; "read" -> bytes a second; "busy" -> shares."""
    jobs = {(name, 1): {"batch": 1, "new": options.new} for name in names}
    for batch in BATCHES:
        for name in ("generate", "4-bit"):
            if name in names:
                jobs[name, batch] = {"batch": batch, "new": max(2, options.new // 5)}
    results = {job: [] for job in jobs}
    results["read"], results["load"] = [], []
    for number in range(options.rounds):
        results["load"].append(load_average())
        results["read"].append(workers.ask("read", {}))
        order = list(jobs)[:: 1 if number % 2 == 0 else -1]
        for job in order:
            results[job].append(workers.ask(job[0], jobs[job]))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return results


class Workers:
    """A process for each variant; only the one that is asked works."""

    def __init__(self, names, threads):
        self.processes = {}
        for name in names:
            command = [sys.executable, "-m", "course.making.bench"]
            command += ["--worker", name, "--threads", str(threads)]
            environment = dict.fromkeys(
                ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads)
            )
            self.processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._answer(name)  # loaded and compiled
            print(f"{name} is ready", file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def ask(self, name, job):
        process = self.processes[name]
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return self._answer(name)

    def _answer(self, name):
        line = self.processes[name].stdout.readline()
        if not line:
            sys.exit(f"the process for {name} ended: its message is above")
        return json.loads(line)


# --- what a worker does ---------------------------------------------------------------


def serve(name: str, threads: int):
    """Answer jobs, a JSON line each, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run = {
        "read": reader,
        "generate": transformers,
        "f32": lambda t: kernels(t, "f32"),
        "4-bit": lambda t: kernels(t, "4-bit"),
        "by-hand": by_hand,
        "llama-q4": llama,
    }[name](threads)
    print("null", file=answers, flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


def prompts(batch: int) -> list[list[int]]:
    """Prompts of PROMPT tokens; the first is always the same."""
    from transformers import AutoTokenizer

    from tiny_models.weights import default_model

    ids = AutoTokenizer.from_pretrained(default_model())(TEXT * 8)["input_ids"]
    return [ids[i * 3 : i * 3 + PROMPT] for i in range(batch)]


def timed(steps) -> dict:
    """Run an iterator of tokens: the tokens, and the seconds of each step after the
    first, which is the prefill."""
    tokens, times, start = [], [], time.perf_counter()
    for token in steps:
        tokens.append(token)
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return {"tokens": tokens, "prefill": times[0], "steps": times[1:]}


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
        for _ in range(5):
            start = time.perf_counter()
            read(a)
            times.append(time.perf_counter() - start)
        return a.nbytes / min(times)

    return run


def transformers(threads):
    import torch
    from transformers import DynamicCache
    from transformers.generation.streamers import BaseStreamer

    from tiny_models import load
    from tiny_models.weights import NAME

    torch.set_num_threads(threads)
    model, _ = load(NAME)
    model = model.cpu()

    class Stamps(BaseStreamer):
        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    def generate(ids, new):
        x, stamps, start = torch.tensor(ids), Stamps(), time.perf_counter()
        out = model.generate(
            x,
            attention_mask=torch.ones_like(x),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            streamer=stamps,
        )
        times = stamps.times[1:]  # the first is the prompt itself
        return {
            "tokens": out[0, x.shape[1] :].tolist(),
            "prefill": times[0] - start,
            "steps": [b - a for a, b in zip(times, times[1:], strict=False)],
        }

    @torch.inference_mode()
    def batch(ids, new):
        x, cache = torch.tensor(ids), DynamicCache(config=model.config)
        for _ in range(new):
            out = model(x, past_key_values=cache, use_cache=True, logits_to_keep=1)
            x = out.logits[:, -1].argmax(-1, keepdim=True)
            yield x[0].item()

    def run(job):
        ids = prompts(job["batch"])
        if len(ids) == 1:
            return generate(ids, job["new"])
        return timed(batch(ids, job["new"]))

    run({"batch": 1, "new": 4})
    return run


def kernels(threads, kind):
    import numpy as np

    from tiny_models import gguf_path, load
    from tiny_models.kernels import Decoder, read_gguf, read_model
    from tiny_models.weights import NAME

    weights = (
        read_gguf(gguf_path()) if kind == "4-bit" else read_model(load(NAME)[0].cpu())
    )
    decoder = Decoder(weights, threads=threads, slots=max(BATCHES))

    def tokens(ids, new):
        x = np.array([decoder.prefill(p, slot=i) for i, p in enumerate(ids)])
        yield int(x[0])
        slots = np.arange(len(ids))
        for n in range(new - 1):
            x = decoder(x, np.full(len(ids), PROMPT + n), slots)
            yield int(x[0])

    def run(job):
        return timed(tokens(prompts(job["batch"]), job["new"]))

    for batch in (1, *BATCHES):
        run({"batch": batch, "new": 3})
    return run


def by_hand(threads):
    """Lesson 14's own step: its cells up to the 4-bit step, without figures."""
    import contextlib
    import io

    import nbformat
    import torch

    from course.paths import SOLUTIONS
    from tiny_models.kernels import new_cache

    source = SOLUTIONS / "14_as_fast_as_memory_allows.ipynb"
    space, wanted = {"__name__": "lesson"}, "by hand, compiled, 4 bits"
    torch.set_num_threads(1)
    for cell in nbformat.read(source, as_version=4).cells:
        if cell.cell_type != "code" or "check" in cell.metadata.get("tags", ()):
            continue
        code = without_measuring(cell.source)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "lesson 14", "exec"), space)
        if wanted in cell.source:
            break
    step, bits = space["step_by_hand"], space["bits"]

    def tokens(ids, new):
        cache = new_cache(bits, PROMPT + new)
        for token in ids:
            logits = step(bits, token, cache)
        for n in range(new):
            token = int(logits.argmax())
            yield token
            if n + 1 < new:
                logits = step(bits, token, cache)

    def run(job):
        return timed(tokens(prompts(1)[0], job["new"]))

    run({"new": 3})
    return run


def without_measuring(source: str) -> str:
    """A cell of lesson 14, without what takes time and defines nothing."""
    slow = ("reference = generate()", "rate = {}", "def perplexity_of", "large = ")
    if any(words in source for words in slow):
        keep = (
            "weights = read_model",
            "shared_matvec = ",
            "compiled = ",
            "parallel = ",
        )
        kept = [line for line in source.splitlines() if line.startswith(keep)]
        return "\n".join(kept)
    lines = [x for x in source.splitlines() if not x.lstrip().startswith("measure(")]
    text = "\n".join(lines)
    if text.rstrip().endswith("NumbaPerformanceWarning)"):
        text += "\n    pass"
    return text


def llama(threads):
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
        yield token
        for n in range(new - 1):  # the bare call: Llama.sample takes longer
            model._batch.set_batch([token], len(ids) + n, False)
            model._ctx.decode(model._batch)
            token = best()
            yield token

    def run(job):
        return timed(tokens(prompts(1)[0], job["new"]))

    run({"new": 3})
    return run


# --- the table ------------------------------------------------------------------------


def report(results: dict, options):
    """Print the table, from what `measure` returns."""
    read = statistics.median(results["read"])
    spread = f"{min(results['read']) / 1e9:.1f} to {max(results['read']) / 1e9:.1f}"
    print(f"read limit {read / 1e9:.1f} GB/s (rounds {spread})")
    load = ", ".join(f"{x:.1f}" for x in results["load"])
    print(f"load average before each round: {load}")
    print(f"prompt {PROMPT}, {options.new} new tokens, {options.rounds} rounds\n")
    print(
        f"{'what':42} {'batch':>5} {'tokens/s':>9} {'rounds':>15} "
        f"{'x generate':>10} {'of limit':>8}  same tokens"
    )
    for (name, batch), rounds in (x for x in results.items() if len(x[0]) == 2):
        base = results["generate", batch]
        speed, low, high = speeds(rounds, batch)
        ratio = speed / speeds(base, batch)[0]
        size = bytes_read(name)
        share = (
            f"{size * speed / batch / read:8.0%}" if size and batch == 1 else " " * 8
        )
        title = VARIANTS[name]
        if batch > 1 and name == "generate":
            title = "transformers, one batch, float32"
        print(
            f"{title:42} {batch:5} {speed:9.1f} {f'{low:.1f}-{high:.1f}':>15} "
            f"{ratio:10.2f} {share}  {agreement(rounds, base)}"
        )
    if ("llama-q4", 1) in results:
        own, theirs = (speeds(results[n, 1], 1)[0] for n in ("4-bit", "llama-q4"))
        print(f"\nour 4-bit kernels are {own / theirs:.2f} times as fast as llama.cpp")


def speeds(rounds, batch) -> tuple[float, float, float]:
    """Tokens a second: over all steps the median, and of the slowest and the fastest
    round."""
    each = [batch / statistics.median(r["steps"]) for r in rounds]
    every = [seconds for r in rounds for seconds in r["steps"]]
    return batch / statistics.median(every), min(each), max(each)


def agreement(rounds, base) -> str:
    """How many tokens agree with those of the first row of `base`, in all rounds."""
    wanted = base[0]["tokens"]
    same = [
        next((n for n, x in enumerate(wanted) if r["tokens"][n] != x), len(wanted))
        for r in rounds
    ]
    return f"{min(same)}/{len(wanted)}"


def bytes_read(name) -> float:
    """Of the weights, for a token."""
    matrices, head = 106_168_320, 49_152 * 576  # SmolLM2-135M
    if name in ("4-bit", "by-hand", "llama-q4"):
        # d and m are float32 in lesson 14's tiles, for numba
        body, top = (24, 36) if name == "by-hand" else (20, 34)
        return (matrices * body + head * top) / 32
    return 4.0 * (matrices + head)


def machine(threads) -> str:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [x.split(":", 1)[1].strip() for x in file if "model name" in x]
        name = models[0] if models else name
    python = platform.python_version()
    return (
        f"{name}, {processors()} processors, {threads} threads, {platform.system()}, "
        f"Python {python}"
    )


def processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


if __name__ == "__main__":
    main()
