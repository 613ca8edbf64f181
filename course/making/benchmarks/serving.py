"""What serving many at once brings: one command, one table, all in one run.

    .venv/bin/python -m course.making.benchmarks.serving

For maintainers. On a machine that does nothing else it takes about four minutes. The
variants take turns, round by round, so that their ratios hold where the times do not.
The first line is what the server did before it had an engine: one request at a time, by
`generate`. All others are asked over HTTP by a process of its own, greedily.
"""

import argparse
import statistics
import time
import urllib.request

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from course.making.benchmarks import load as client
from tiny_models import load, serve

STREAMS = (1, 8, 32)
BASE = "generate, one at a time"
LONG = 2000  # tokens of the prompt that is read meanwhile
CLIENTS = 200


def prompt_ids(tokenizer, content: str) -> list[int]:
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def greedy(model, tokenizer, content: str, tokens: int) -> torch.Tensor:
    """The new ids of `generate`."""
    ids = torch.tensor([prompt_ids(tokenizer, content)], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
    )
    return out[0, ids.shape[1] :]


def one_by_one(model, tokenizer, tokens: int) -> float:
    """Tokens a second of `generate` for one request."""
    start = time.perf_counter()
    new = greedy(model, tokenizer, client.about(0), tokens)
    return len(new) / (time.perf_counter() - start)


def all_at_once(model, tokenizer, streams: int, tokens: int) -> float:
    """The same of transformers' `generate_batch`, with memory as the engine has it."""
    prompts = [prompt_ids(tokenizer, client.about(n)) for n in range(streams)]
    options = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
    )
    memory = ContinuousBatchingConfig(
        page_size=16, num_blocks=768, max_batch_tokens=256
    )
    start = time.perf_counter()
    found = model.generate_batch(
        prompts, generation_config=options, continuous_batching_config=memory
    )
    seconds = time.perf_counter() - start
    return sum(len(one.generated_tokens) for one in found.values()) / seconds


def over_http(server, streams: int, tokens: int) -> dict[str, float]:
    options = {"streams": streams, "tokens": tokens}
    return client.summary(client.apart(place(server), "streams", **options))


def place(server) -> str:
    return f"{server.base_url}#{server.model}"


def speeds(model, tokenizer, servers, rounds: int, tokens: int) -> dict[str, list]:
    """{variant: tokens a second of each round}"""
    found: dict[str, list] = {}

    def add(name, value):
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        add(BASE, one_by_one(model, tokenizer, tokens))
        for streams in STREAMS:
            for name, server in servers.items():
                speed = over_http(server, streams, tokens)["tokens_per_second"]
                add(f"{name}, {streams}", speed)
            if streams > 1:
                speed = all_at_once(model, tokenizer, streams, tokens)
                add(f"generate_batch, {streams}", speed)
    return found


def while_reading(server, tokens: int) -> dict[str, float]:
    """Steps until a short request gets its token while a long prompt is read, and the
    times between tokens of eight others meanwhile."""
    options = {"streams": 8, "tokens": tokens, "long": LONG}
    seen = client.apart(place(server), "reading", **options)
    *others, book, short = seen
    until = book["times"][0]
    if not book["sent"] < short["sent"] < short["times"][0] < until:
        raise RuntimeError("the long prompt was read before the short request came")
    # Each of the others gets a token in every step
    steps = max(
        sum(short["sent"] < at <= short["times"][0] for at in one["times"])
        for one in others
    )
    gaps = client.between([one["times"] for one in others], book["sent"], until)
    median, p95 = statistics.median(gaps), gaps[int(len(gaps) * 0.95)]
    return {"steps": steps, "median": median, "p95": p95, "gaps": len(gaps)}


def texts_alone(model, tokenizer) -> list[torch.Tensor]:
    """What a crowd's clients should get: token ids of `generate`, one at a time."""
    return [
        greedy(model, tokenizer, client.about(topic), client.most(16))
        for topic in range(client.TOPICS)
    ]


def hung_up(server, tokenizer, alone, seed: int) -> dict[str, int]:
    """How many of a crowd stayed, how many of them got another text, and how many
    blocks were in use afterwards."""
    seen = client.apart(place(server), "crowd", clients=CLIENTS, seed=seed)
    stayed = [(n, one) for n, one in enumerate(seen) if one["tokens"] is not None]
    wrong = 0
    for n, one in stayed:
        ids = alone[n % client.TOPICS][: client.most(n)]
        wrong += one["text"] != tokenizer.decode(ids, skip_special_tokens=True)
    return {"stayed": len(stayed), "wrong": wrong, "blocks": blocks_used(server)}


def blocks_used(server, seconds: float = 10) -> int:
    """As /metrics says, when all who hung up have been noticed, or time is up."""
    url, until = server.base_url.removesuffix("/v1"), time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{url}/metrics") as page:
            lines = page.read().decode().splitlines()
        (used,) = (x.split()[1] for x in lines if x.startswith("blocks_used "))
        if float(used) == 0 or time.monotonic() > until:
            return int(float(used))
        time.sleep(0.1)


def table(found: dict[str, list]) -> str:
    """Medians of the rounds, and of the ratios to the first line within a round."""
    lines = [f"{'':28}{'tokens/s':>10}{'times':>8}   rounds"]
    for name, values in found.items():
        ratios = [a / b for a, b in zip(values, found[BASE], strict=True)]
        lines.append(
            f"{name:28}{statistics.median(values):10.1f}{statistics.median(ratios):8.1f}"
            f"   {min(ratios):.1f}-{max(ratios):.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    options = parser.parse_args()
    model, tokenizer = load()
    with (
        serve(model, tokenizer) as by_torch,
        serve(model, tokenizer, kernels=True) as on_kernels,
    ):
        servers = {"torch": by_torch, "kernels": on_kernels}
        for server in servers.values():  # compiles, and reads what all prompts share
            for streams in (1, 2, 4, 8):
                over_http(server, streams, 4)
        one_by_one(model, tokenizer, 4)
        rounds = options.rounds, options.tokens
        print(table(speeds(model, tokenizer, servers, *rounds)), flush=True)
        alone = texts_alone(model, tokenizer)
        for n, (name, server) in enumerate(servers.items()):
            found = while_reading(server, 160)
            worse = found["p95"] / found["median"]
            print(
                f"{name}: while {LONG} tokens are read, a short request waits "
                f"{found['steps']} steps; between tokens {found['median']:.3f} s, p95 "
                f"{worse:.1f} times that ({found['gaps']} seen)"
            )
            found = hung_up(server, tokenizer, alone, seed=n)
            print(
                f"{name}: of {CLIENTS} clients {found['stayed']} stayed, "
                f"{found['wrong']} with another text; blocks in use afterwards: "
                f"{found['blocks']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
