"""All that the HTTP side knows of an engine."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from tiny_models.engine import Sampling


@dataclass(frozen=True)
class Step:
    """What an engine has done for an answer since the last Step.

    choice: for which choice. tokens: how many tokens were sampled; 0 says only that the
    engine is still at work, so that a hang-up can be noticed. text: what has become
    certain. logprobs: items of the API's `logprobs.content`, of the tokens whose text
    is out. finish_reason: "stop" or "length" with the choice's last Step.
    """

    choice: int = 0
    tokens: int = 0
    text: str = ""
    logprobs: list[dict] = field(default_factory=list)
    finish_reason: str | None = None


class Engine(Protocol):
    """Messages in, text out. All is called from one event loop, for many answers; stop
    and close once more each time that the server is closed.

    name: the model's id for clients. context: the most tokens of prompt and answer.
    vocab_size: token ids are below it. Any method may raise APIError, which becomes the
    client's answer; any other error becomes a 500.
    """

    name: str
    context: int
    vocab_size: int

    async def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The messages (role, content, perhaps name) through the chat template."""
        ...

    def answer(self, prompt_ids: list[int], sampling: Sampling) -> AsyncIterator[Step]:
        """The sampling's n choices, until all have finished.

        An async generator: the client has gone when it is closed, or cancelled where
        it awaits. It need not run ahead of its reader.
        """
        ...

    async def metrics(self) -> str:
        """What the engine does, in Prometheus' text format."""
        ...

    def stop(self) -> None:
        """From now on every answer, begun or not, ends with `shutting_down()`. Called
        from any thread, returns at once."""
        ...

    def close(self) -> None:
        """Wait for the last bit of work and free what is held."""
        ...
