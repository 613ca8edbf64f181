"""From seconds to the table: each ratio from the same run, with its spread."""

import statistics

from course.making.benchmarks import prompts

NAMES = {
    "generate": "model.generate, float32",
    "f32": "our kernels, float32",
    "by-hand": "lesson 14's step, 4-bit blocks",
    "4-bit": "our kernels, 4-bit blocks",
    "llama-q4": "llama.cpp, the same 4-bit file",
}
WHAT = 40  # columns of the first column


def print_read(results: dict):
    rates = [rate / 1e9 for rate in results["read"]]
    spread = f"{min(rates):.1f} to {max(rates):.1f}"
    print(f"read limit {statistics.median(rates):.1f} GB/s (rounds {spread})")
    loads = ", ".join(f"{x:.1f}" for x in results["load"])
    print(f"load average before each round: {loads}")


def print_decode(results: dict, new: int):
    """Rows of results["decode", name, batch]: a list of answers, one a round."""
    read = statistics.median(results["read"])
    print(
        f"\nDecoding: prompts of {prompts.LENGTH} tokens, {new} new, without prefill\n"
    )
    print(
        f"{'what':{WHAT}} {'batch':>5} {'tokens/s':>9} {'rounds':>15} "
        f"{'x generate':>10} {'of limit':>8}  same tokens"
    )
    for key, rounds in results.items():
        if key[0] != "decode":
            continue
        _, name, batch = key
        base = results["decode", "generate", batch]
        speed, low, high = speeds(rounds, batch)
        ratio = speed / speeds(base, batch)[0]
        share = ""
        if batch == 1:
            share = f"{bytes_read(name) * speed / read:.0%}"
        title = NAMES[name]
        if batch > 1 and name == "generate":
            title = "transformers, one batch, float32"
        print(
            f"{title:{WHAT}} {batch:5} {speed:9.1f} {f'{low:.1f}-{high:.1f}':>15} "
            f"{ratio:10.2f} {share:>8}  {agreement(rounds, base)}"
        )
    if ("decode", "llama-q4", 1) in results:
        theirs = speeds(results["decode", "llama-q4", 1], 1)[0]
        for name in ("4-bit", "by-hand"):
            if ("decode", name, 1) in results:
                own = speeds(results["decode", name, 1], 1)[0]
                print(f"{NAMES[name]}: {own / theirs:.2f} times as fast as llama.cpp")


def print_texts(results: dict, new: int):
    """Rows of results["text", kind, name, lookup]: a list of answers, one a round."""
    rows = [key for key in results if key[0] == "text"]
    if not rows:
        return
    print(f"\nWhole answers: {new} new tokens, prefill included\n")
    print(
        f"{'what':{WHAT}} {'prompt':>10} {'tokens/s':>9} {'rounds':>15} "
        f"{'x generate':>10}  same tokens"
    )
    for key in rows:
        _, kind, name, lookup = key
        base = results["text", kind, "generate", False]
        speed, low, high = overall(results[key])
        ratio = speed / overall(base)[0]
        title = NAMES[name] + (", lookup" if lookup else "")
        print(
            f"{title[:WHAT]:{WHAT}} {kind:>10} {speed:9.1f} "
            f"{f'{low:.1f}-{high:.1f}':>15} {ratio:10.2f}  "
            f"{agreement(results[key], base)}"
        )


def speeds(rounds, batch) -> tuple[float, float, float]:
    """Tokens a second: over all steps the median, and of the slowest and the fastest
    round."""
    each = [batch / statistics.median(r["steps"]) for r in rounds]
    every = [seconds for r in rounds for seconds in r["steps"]]
    return batch / statistics.median(every), min(each), max(each)


def overall(rounds) -> tuple[float, float, float]:
    """Tokens a second of whole answers: of the median round, the slowest, the
    fastest."""
    each = [len(r["tokens"]) / r["seconds"] for r in rounds]
    return statistics.median(each), min(each), max(each)


def agreement(rounds, base) -> str:
    """How many tokens agree with those of the first row of `base`, in all rounds."""
    wanted = base[0]["tokens"]
    return f"{min(first_difference(r['tokens'], wanted) for r in rounds)}/{len(wanted)}"


def first_difference(tokens: list[int], wanted: list[int]) -> int:
    """The first place where two texts differ; the length of `wanted` if none."""
    for n, token in enumerate(wanted):
        if n >= len(tokens) or tokens[n] != token:
            return n
    return len(wanted)


def bytes_read(name: str) -> float:
    """Of the weights, for a token."""
    matrices, head = 106_168_320, 49_152 * 576  # SmolLM2-135M
    if name in ("4-bit", "by-hand", "llama-q4"):
        # d and m are float32 in lesson 14's tiles, for numba
        body, top = (24, 36) if name == "by-hand" else (20, 34)
        return (matrices * body + head * top) / 32
    return 4.0 * (matrices + head)
