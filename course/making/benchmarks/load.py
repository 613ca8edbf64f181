"""A load for the server: so many streams at once, and what each of them sees.

    with serve(model, tokenizer) as server:
        print(run(server.base_url, server.model, streams=8, tokens=64))

For maintainers. Ratios of two runs one after the other, on a machine that does nothing
else, say something; times alone say little.
"""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class Result:
    """tokens_per_second: of all streams together. first: the median of the seconds to
    the first token. between, between_p95: seconds from one token to the next."""

    tokens_per_second: float
    first: float
    between: float
    between_p95: float


def run(base_url: str, model: str, streams: int, tokens: int) -> Result:
    """Ask for `tokens` tokens in each of `streams` streams that begin together."""
    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        asked = [
            pool.submit(one_stream, base_url, model, n, tokens) for n in range(streams)
        ]
        times = [stream.result() for stream in asked]
    seconds = time.perf_counter() - start
    gaps = sorted(
        b - a for at in times for a, b in zip(at, at[1:], strict=False) if b > a
    )
    return Result(
        tokens_per_second=sum(map(len, times)) / seconds,
        first=statistics.median(at[0] for at in times) - start,
        between=statistics.median(gaps),
        between_p95=gaps[int(len(gaps) * 0.95)],
    )


def one_stream(base_url: str, model: str, seed: int, tokens: int) -> list[float]:
    """When each chunk of text came. Seeded, and long enough: logprobs make a chunk of
    every token, also of one that is half a character."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me story number {seed}."}],
        "stream": True,
        "max_tokens": tokens,
        "seed": seed,
        "logprobs": True,
    }
    times = []
    url = f"{base_url}/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=600) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                said = (choice.get("logprobs") or {}).get("content") or []
                times += [time.perf_counter()] * len(said)
    return times
