"""An engine that answers many requests at once, on any model of `transformers`.

    engine = Engine(model, tokenizer, blocks=256)
    request_id = engine.add(prompt_ids, Sampling(max_tokens=20, temperature=0))
    while not engine.idle:
        for output in engine.step():
            print(output.request_id, output.text)

A step has three parts: `scheduler` says who runs, `memory` runs the model, and what it
said goes through `sampling` and `text`. `blocks` counts who holds which part of memory.
"""

from tiny_models.engine.blocks import BlockAllocator, Entry, OutOfBlocks, PrefixCache
from tiny_models.engine.engine import Engine
from tiny_models.engine.request import Output, Request, State
from tiny_models.engine.sampling import Sampling
from tiny_models.engine.scheduler import Plan, Scheduler

__all__ = [
    "BlockAllocator",
    "Engine",
    "Entry",
    "OutOfBlocks",
    "Output",
    "Plan",
    "PrefixCache",
    "Request",
    "Sampling",
    "Scheduler",
    "State",
]
