"""How fast the course's decoders are, as a multiple of `model.generate` in float32.

    python start.py bench                     all of it: about six minutes
    python start.py bench --quick             about one minute
    python start.py bench --only 4-bit        this variant and generate
    python start.py bench --same              no times: are all tokens generate's?
    python start.py bench --picture           no times: take README.md's figure from
                                              lesson 14 as it was last built

Each variant runs in a process of its own, one at a time, in rounds whose order is
reversed every other time: so what else the machine does hits all of them alike, and
only ratios of one run are compared. A number is the median over all rounds, beside it
the slowest and the fastest round. Every greedy text must be that of `generate`, or the
last column says where it differs first. The share of the limit is what the weights of a
token would take at the rate at which the same run could read memory.

llama.cpp is measured where `llama_cpp` can be imported. It needs a compiler and is no
requirement of the course.
"""

import argparse
import sys

from course.making.benchmarks import lesson, machine, prompts, table
from course.making.benchmarks.processes import Failed, Workers

WORKER = "course.making.benchmarks.decoders"
BATCHES = (8, 32)
BATCHED = ("generate", "4-bit")
TEXTS = (("generate", False), ("generate", True), ("4-bit", False), ("4-bit", True))


def main(arguments=None) -> int:
    """Run one command line. Returns the exit code."""
    options = parsed(arguments)
    if options.picture:
        lesson.PICTURE.write_bytes(lesson.figure())
        return 0
    names = [n for n in table.NAMES if not options.only or n in options.only]
    if "generate" not in names:
        names.insert(0, "generate")
    if "llama-q4" in names and not machine.importable("llama_cpp"):
        names.remove("llama-q4")
        print("llama_cpp cannot be imported: llama.cpp is left out")
    print(machine.described(options.threads), flush=True)
    try:
        if options.same:
            return same(names, options)
        with Workers(["read", *names], options.threads, WORKER) as workers:
            results = measure(workers, jobs(names, options), options.rounds)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.rounds} rounds")
    table.print_read(results)
    table.print_decode(results, options.new)
    table.print_texts(results, options.new)
    return 0


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python start.py bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128, help="new tokens a round")
    parser.add_argument("--threads", type=int, default=machine.processors())
    parser.add_argument("--only", nargs="+", choices=list(table.NAMES), default=[])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 32 tokens")
    parser.add_argument("--same", action="store_true", help="compare 16 texts")
    parser.add_argument("--picture", action="store_true", help="for README.md")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.new = 2, 32
    if options.rounds < 1 or options.new < 2 or options.threads < 1:
        parser.error("rounds and threads must be 1 or more, new 2 or more")
    return options


def jobs(names, options) -> dict:
    """{key: job} for what can be measured with these variants."""
    encode = prompts.tokenizer()
    one = prompts.windows(encode, 1)
    found = {("decode", n, 1): {"prompts": one, "new": options.new} for n in names}
    few = max(2, options.new // 5)
    for batch in BATCHES:
        texts = prompts.windows(encode, batch)
        for name in BATCHED:
            if name in names:
                found["decode", name, batch] = {"prompts": texts, "new": few}
    for kind, text in prompts.KINDS.items():
        for name, lookup in TEXTS:
            if name in names and "4-bit" in names:
                found["text", kind, name, lookup] = {
                    "prompts": [prompts.chat(encode, text)],
                    "new": options.new,
                    "lookup": lookup,
                }
    return found


def measure(workers, jobs: dict, rounds: int) -> dict:
    """{key: an answer for each round}; "read": bytes a second, "load": the averages.

    Whole texts take long: they are measured in every other round. The order is such
    that theirs is reversed every other time, too.
    """
    results = {"read": [], "load": [], **{key: [] for key in jobs}}
    for number in range(rounds):
        results["load"].append(machine.load_average())
        results["read"].append(workers.ask("read", {}))
        order = list(jobs)[:: 1 if number % 4 in (0, 3) else -1]
        for key in order:
            if key[0] == "text" and number % 2:
                continue
            name = key[2] if key[0] == "text" else key[1]
            results[key].append(workers.ask(name, jobs[key]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return results


def same(names, options) -> int:
    """Sixteen texts by every variant, and by prompt lookup. 0 if all of ours are
    generate's, to the last token."""
    texts, wrong = prompts.sixteen(prompts.tokenizer()), 0
    found = {}
    variants = [(n, False) for n in names]
    variants += [(n, True) for n in ("f32", "4-bit") if n in names]
    with Workers(names, options.threads, WORKER) as workers:
        for name, lookup in variants:
            for n, ids in enumerate(texts):
                job = {"prompts": [ids], "new": options.new, "lookup": lookup}
                found[name, lookup, n] = workers.ask(name, job)["tokens"]
    for name, lookup in variants[1:]:
        equal = []
        for n in range(len(texts)):
            wanted = found["generate", False, n]
            equal.append(table.first_difference(found[name, lookup, n], wanted))
        whole = sum(x == options.new for x in equal)
        title = table.NAMES[name] + (", prompt lookup" if lookup else "")
        print(f"{title:46} {whole} of {len(texts)} texts of {options.new} tokens equal")
        if whole < len(texts):
            print(f"    the first difference of each: {equal}")
            wrong += name != "llama-q4"
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
