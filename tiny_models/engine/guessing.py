"""Guesses: tokens that are run before it is known that they come (lesson 13).

They take only what is left over: places in the block that the request has already, and
what others left of the step's budget. So none has to wait or to stop for a guess.
"""

from dataclasses import replace

import torch

from tiny_models.engine.memory import Row
from tiny_models.engine.request import Request
from tiny_models.engine.scheduler import Plan

RUNS = (3, 2)  # so many tokens are looked up, the longest first


def ngram_draft(ids: list[int], most: int) -> list[int]:
    """Up to `most` tokens that stood behind the last ones where these stood before."""
    for n in RUNS:
        last = ids[-n:]
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - 1] == last[-1] and ids[end - n : end] == last:
                return ids[end : end + most]
    return []


def guesses(plan: Plan, draft, budget: int, size: int) -> list[list[int]]:
    """What each request of the plan guesses, most of them nothing.

    draft: `ngram_draft`, or another with its arguments. budget: tokens in a step. size:
    of a block.
    """
    left, found = budget - sum(tokens for _, tokens in plan.work), []
    for request, _ in plan.work:
        most = min(allowed(request, size), left)
        guess = list(draft(request.ids, most))[:most] if most > 0 else []
        left -= len(guess)
        found.append(guess)
    return found


def allowed(request: Request, size: int) -> int:
    """How many tokens a request may guess."""
    own = len(request.ids) - request.prompt_tokens
    if request.left != 1 or not own:  # its prompt is being read
        return 0
    room = size - 1 - request.computed % size
    return min(request.sampling.guesses, room, request.sampling.max_tokens - own - 1)


def longer(row: Row, guess: list[int]) -> Row:
    """The row with its guess: all logits from the row's own last token on."""
    if not guess:
        return row
    return replace(row, ids=[*row.ids, *guess], wanted=1 + len(guess))


def first(logits: torch.Tensor | None, guess: list[int]) -> torch.Tensor | None:
    """The logits that the row would have had without a guess."""
    return logits[0] if guess else logits
