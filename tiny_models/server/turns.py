"""The course's own engine: one model, one thread, answers take turns token by token."""

import asyncio
import copy
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tiny_models.engine import Generation, Prompt, Sampling
from tiny_models.server.errors import APIError, shutting_down
from tiny_models.server.interface import Step

CONTEXT_IF_UNKNOWN = 2048  # tokens, for a model whose config names no limit


class ModelEngine:
    """A model, its tokenizer and the one thread on which they work: an `Engine`.

    Each step of each answer, and each piece of a long prompt, is one job in this
    thread's queue. An answer queues its next step only after the last, so answers take
    turns, token by token, and the model never runs twice at once on behalf of clients.
    """

    def __init__(self, model, tokenizer, name: str | None = None):
        self.name = name or model_name(model)
        self._stopped = False
        self._model = model
        # A tokenizer that encodes in two threads at once fails ("Already borrowed"), so
        # the owner keeps theirs.
        self._tokenizer = copy.deepcopy(tokenizer)
        # Else it warns of a long prompt, to which the client gets an answer anyway.
        self._tokenizer.model_max_length = sys.maxsize
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiny-models-engine")

        config = model.config.get_text_config()
        self.vocab_size = config.vocab_size
        limit = getattr(config, "max_position_embeddings", None)
        self.context = limit or CONTEXT_IF_UNKNOWN

    async def _run(self, function, *args):
        """Call function in the engine's thread."""
        if self._stopped:
            raise shutting_down()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *args)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._stopped = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            ids = await self._run(self._encode, messages)
        except APIError:
            raise
        except Exception as error:  # a template may raise what it likes
            raise APIError(
                f"The model's chat template refused these messages: {error}",
                param="messages",
            ) from error
        if not ids:
            raise APIError(
                "The model's chat template made an empty prompt of these messages.",
                param="messages",
            )
        return ids

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        # To encode megabytes would hold up the other clients, for nothing.
        if len(text) > self.context * self._longest_token:
            raise APIError(
                f"The model's context holds {self.context} tokens. The messages "
                f"take {len(text)} characters, which no {self.context} tokens can "
                "hold. Shorten the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    async def answer(
        self, prompt_ids: list[int], samplings: list[Sampling]
    ) -> AsyncIterator[Step]:
        ids = torch.tensor([prompt_ids], device=self._model.device)  # (1, seq)
        prompt = Prompt(self._model, ids, len(samplings))
        while prompt.logits is None:
            await self._run(prompt.step)
            yield Step()
        generations = [
            Generation(self._model, self._tokenizer, prompt, sampling)
            for sampling in samplings
        ]
        del prompt  # its cache goes when the last choice has gone its own way
        while any(generation.finish_reason is None for generation in generations):
            for index, generation in enumerate(generations):
                if generation.finish_reason is None:
                    text, logprobs = await self._run(generation.step)
                    yield Step(index, 1, text, logprobs, generation.finish_reason)


def model_name(model) -> str:
    name = getattr(model.config, "_name_or_path", "") or model.config.model_type
    # Of a folder the last part is enough, and tells clients nothing about the disk.
    return Path(name).resolve().name if os.path.isdir(name) else name
