"""One answer in the making, and what an engine says of it."""

from dataclasses import dataclass, field
from enum import Enum

from tiny_models.engine.blocks import Entry
from tiny_models.engine.sampling import Sampler, Sampling
from tiny_models.engine.text import Writer


class State(Enum):
    WAITING = "waiting"  # holds no block
    RUNNING = "running"
    FINISHED = "finished"  # holds no block, and never will


@dataclass(eq=False)
class Request:
    """One answer to one prompt.

    id: of the request. choice: which of its answers. ids: the prompt, then what has
    been sampled. computed: of how many of the ids the keys and values are written.
    blocks: where, in order. chain: the entries of its full blocks in the prefix cache.
    """

    id: int
    choice: int
    ids: list[int]
    sampling: Sampling
    sampler: Sampler
    writer: Writer
    prompt_tokens: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    chain: list[Entry] = field(default_factory=list)
    state: State = State.WAITING
    finish_reason: str | None = None

    @property
    def left(self) -> int:
        """How many tokens have to run before the next one can be sampled."""
        return len(self.ids) - self.computed

    @property
    def order(self) -> tuple[int, int]:
        """Who came first."""
        return self.id, self.choice


@dataclass(frozen=True)
class Output:
    """What one step did for one answer: a token, and the text that became certain.

    logprobs: items of the API's `logprobs.content`, of the tokens whose text is out.
    finish_reason: "stop" or "length" with the answer's last Output, else None.
    """

    request_id: int
    choice: int
    token: int
    text: str
    logprobs: list[dict]
    finish_reason: str | None
