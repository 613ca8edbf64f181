"""From an engine's steps to the client's answer: whole, or as a stream of events."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tiny_models.server.errors import APIError, internal_error
from tiny_models.server.interface import Step
from tiny_models.server.request import ChatRequest


class _HungUp(Exception):
    """The client has gone: nobody reads the answer."""


class Answer:
    """One answer in the making.

    steps: the engine's async generator. It is closed when the client has gone.
    """

    def __init__(
        self,
        request: Request,
        chat: ChatRequest,
        steps: AsyncIterator[Step],
        prompt_tokens: int,
    ):
        self._request, self._chat, self._engine_steps = request, chat, steps
        self._prompt_tokens, self._completion_tokens = prompt_tokens, 0
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.model,
        }

    async def whole(self) -> Response:
        """The answer in one JSON object."""
        texts = [""] * self._chat.n
        logprobs: list[list[dict]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * len(texts)
        try:
            async for step in self._steps():
                texts[step.choice] += step.text
                logprobs[step.choice] += step.logprobs
                reasons[step.choice] = step.finish_reason
        except _HungUp:
            return Response(status_code=499)  # nobody reads it
        choices = [
            _choice(
                i,
                "message",
                {"role": "assistant", "content": text},
                logprobs[i] if self._chat.logprobs else None,
                reasons[i],
            )
            for i, text in enumerate(texts)
        ]
        return JSONResponse({**self._head, "choices": choices, "usage": self._usage()})

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, one JSON object each, then [DONE]."""
        include_usage = self._chat.include_usage
        head = {**self._head, "object": "chat.completion.chunk"}

        def event(choices: list[dict], usage: dict | None = None) -> str:
            chunk = {**head, "choices": choices}
            return _event({**chunk, "usage": usage} if include_usage else chunk)

        begun = set()
        try:
            async for step in self._steps():
                i = step.choice
                if step.tokens and i not in begun:  # by it clients time the first token
                    begun.add(i)
                    role = {"role": "assistant", "content": ""}
                    yield event([_choice(i, "delta", role, None, None)])
                if step.text or step.logprobs:
                    logprobs = step.logprobs if self._chat.logprobs else None
                    yield event(
                        [_choice(i, "delta", {"content": step.text}, logprobs, None)]
                    )
                if step.finish_reason is not None:
                    yield event([_choice(i, "delta", {}, None, step.finish_reason)])
            if include_usage:
                yield event([], self._usage())
            yield "data: [DONE]\n\n"
        except _HungUp:
            return
        except APIError as error:  # the status line is long out: the error is an event
            yield _event(error.body)
        except Exception as error:
            yield _event(internal_error(error).body)

    async def _steps(self) -> AsyncIterator[Step]:
        """The engine's steps, while somebody listens."""
        async with aclosing(self._engine_steps) as steps:
            if await self._request.is_disconnected():
                raise _HungUp
            async for step in steps:
                self._completion_tokens += step.tokens
                yield step
                if await self._request.is_disconnected():
                    raise _HungUp

    def _usage(self) -> dict:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }


def _choice(
    index: int, key: str, value: dict, logprobs: list | None, finish_reason: str | None
) -> dict:
    """key is "message" or "delta". logprobs stand in it only when asked for."""
    choice: dict = {"index": index, key: value}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return {**choice, "finish_reason": finish_reason}


def _event(data: dict) -> str:
    # ASCII: some readers of lines also split at characters such as U+2028.
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
