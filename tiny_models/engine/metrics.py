"""What an engine does, as numbers that Prometheus can read."""

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from tiny_models.engine.engine import Engine
from tiny_models.engine.request import Output

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts what it is told, and asks the engine for the rest.

    Times are measured where the engine's steps are: the way to a client comes on top.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter):
        self._engine, self._clock = engine, clock
        self._since: dict[
            tuple[int, int], float
        ] = {}  # (request id, choice): last token
        self._asked: dict[int, float] = {}
        self._registry = CollectorRegistry()
        new = {"registry": self._registry}
        self._prompt = Counter("prompt_tokens", "Tokens of prompts", **new)
        self._tokens = Counter("generation_tokens", "Tokens sampled", **new)
        self._ended = Counter(
            "requests", "Answers, by how they ended", ["reason"], **new
        )
        self._first = Histogram(
            "time_to_first_token_seconds",
            "From the request to its first token",
            buckets=SECONDS,
            **new,
        )
        self._between = Histogram(
            "inter_token_latency_seconds",
            "From one token of an answer to its next",
            buckets=SECONDS,
            **new,
        )
        scheduler, cache = engine.scheduler, engine.prefix_cache
        allocator = engine.allocator
        used = allocator.number
        for name, told, value in (
            (
                "requests_waiting",
                "Answers in the queue",
                lambda: len(scheduler.waiting),
            ),
            ("requests_running", "Answers that run", lambda: len(scheduler.running)),
            ("preemptions", "Answers stopped so far", lambda: scheduler.preemptions),
            ("blocks_free", "Blocks that hold nothing", lambda: allocator.free),
            ("blocks_cached", "Blocks kept to be found", lambda: cache.cached),
            (
                "blocks_used",
                "Blocks of answers that run",
                lambda: used - allocator.free - cache.cached,
            ),
        ):
            Gauge(name, told, **new).set_function(value)

    def asked(self, request_id: int, prompt_tokens: int) -> None:
        """A request has come."""
        self._asked[request_id] = self._clock()
        self._prompt.inc(prompt_tokens)

    def gave(self, outputs: list[Output]) -> None:
        """A step is done."""
        now = self._clock()
        self._tokens.inc(len(outputs))
        for output in outputs:
            answer = output.request_id, output.choice
            if (before := self._since.get(answer)) is not None:
                self._between.observe(now - before)
            elif output.request_id in self._asked:
                self._first.observe(now - self._asked[output.request_id])
            self._since[answer] = now
            if output.finish_reason is not None:
                self._ended.labels(output.finish_reason).inc()

    def forgot(self, request_id: int) -> None:
        """A request has ended, or its client has gone."""
        self._asked.pop(request_id, None)
        for answer in [key for key in self._since if key[0] == request_id]:
            del self._since[answer]

    def text(self) -> str:
        """The numbers in Prometheus' text format."""
        return generate_latest(self._registry).decode()
