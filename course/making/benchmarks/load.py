"""A load for the server: clients that ask at once, and what each of them sees.

    with serve(model, tokenizer) as server:
        print(summary(apart(server.base_url, "streams", streams=8, tokens=64)))

Runs in a process of its own, needs nothing but the standard library, and does little
for a token: what is measured is the server.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TOPICS = 10  # different prompts of a crowd
LONG = "It was a dark and stormy night, and the rain fell in torrents. "  # 15 tokens


@dataclass
class Seen:
    """What one client saw. times: of each piece of text. sent: when it asked. tokens:
    as the server counts them, None for an answer that did not come to its end."""

    sent: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int | None = None


def apart(base_url: str, kind: str, **options) -> list[dict]:
    """One of KINDS in a process of its own. Returns what each client saw."""
    command = [sys.executable, __file__, base_url, kind, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def summary(seen: list[dict]) -> dict[str, float]:
    """tokens_per_second of all together. first: the median of the seconds to the first
    piece of text. between, between_p95: from one piece of a text to its next."""
    start = min(one["sent"] for one in seen)
    end = max(one["times"][-1] for one in seen)
    gaps = between([one["times"] for one in seen])
    return {
        "tokens_per_second": sum(one["tokens"] for one in seen) / (end - start),
        "first": statistics.median(one["times"][0] - one["sent"] for one in seen),
        "between": statistics.median(gaps),
        "between_p95": gaps[int(len(gaps) * 0.95)],
    }


def between(times: list[list[float]], since=0.0, until=float("inf")) -> list[float]:
    """The seconds from one piece to the next, the shortest first."""
    pairs = [pair for at in times for pair in zip(at, at[1:], strict=False)]
    return sorted(b - a for a, b in pairs if a >= since and b <= until)


# --- kinds of load --------------------------------------------------------------------


async def streams(url: str, streams: int, tokens: int) -> list[Seen]:
    """So many clients that begin together."""
    return await asyncio.gather(
        *(ask(url, about(n), tokens) for n in range(streams)),
    )


async def reading(url: str, streams: int, tokens: int, long: int) -> list[Seen]:
    """Streams; amidst them a prompt of about `long` tokens, the last but one of what is
    returned; while that is read a short one, the last."""
    others = [asyncio.create_task(ask(url, about(n), tokens)) for n in range(streams)]
    await until_seen(others, 1)
    book = asyncio.create_task(ask(url, LONG * (long // 15), 1))
    await until_seen(others, max(len(seen_by(one)) for one in others) + 3)
    short = await ask(url, "Hi", 1)
    return [*await asyncio.gather(*others), await book, short]


async def crowd(url: str, clients: int, seed: int) -> list[Seen]:
    """Clients that come within a second, every other of which hangs up at random."""
    dice = random.Random(seed)

    async def one(n, wait, leaves):
        await asyncio.sleep(wait)
        return await ask(url, about(n % TOPICS), most(n), leaves)

    plans = [
        (n, dice.random(), dice.randrange(8) if n % 2 else None) for n in range(clients)
    ]
    return await asyncio.gather(*(one(*plan) for plan in plans))


KINDS = {"streams": streams, "reading": reading, "crowd": crowd}


def about(n: int) -> str:
    return f"Tell me story number {n}."


def most(n: int) -> int:
    """The most tokens for client n of a crowd."""
    return 8 + n % 17


# --- one client -----------------------------------------------------------------------

_running: dict[asyncio.Task, Seen] = {}


def seen_by(task: asyncio.Task) -> list[float]:
    """When a client that is at it has got text."""
    return _running[task].times if task in _running else []


async def until_seen(tasks: list[asyncio.Task], pieces: int) -> None:
    """Wait until each of them has got so many pieces of text, or has ended."""
    while any(len(seen_by(x)) < pieces and not x.done() for x in tasks):
        await asyncio.sleep(0.001)


async def ask(url: str, content: str, tokens: int, leaves: int | None = None) -> Seen:
    """One greedy stream. leaves: hang up after so many pieces of text."""
    place = urlsplit(url)
    body = {
        "model": place.fragment,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": tokens,
    }
    data = json.dumps(body).encode()
    head = (
        f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    seen = Seen(time.perf_counter())
    _running[asyncio.current_task()] = seen
    try:
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status} {await reader.read()}")
        while leaves is None or len(seen.times) < leaves:
            line = await reader.readline()
            if not line:
                break
            if line.startswith(b"data: {"):
                note(seen, json.loads(line[6:]))
    finally:
        writer.close()
    return seen


def note(seen: Seen, chunk: dict) -> None:
    """What a chunk of the stream says."""
    if "error" in chunk:
        raise RuntimeError(chunk["error"])
    for choice in chunk["choices"]:
        if text := choice["delta"].get("content"):
            seen.times.append(time.perf_counter())
            seen.text += text
    if chunk.get("usage"):
        seen.tokens = chunk["usage"]["completion_tokens"]


if __name__ == "__main__":
    where, kind, options = sys.argv[1:]
    result = asyncio.run(KINDS[kind](where, **json.loads(options)))
    print(json.dumps([vars(one) for one in result]))
