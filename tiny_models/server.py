"""An OpenAI-compatible server for a model that is already in memory.

    with serve(model, tokenizer) as server:
        client = OpenAI(base_url=server.base_url, api_key="unused")

It follows the Chat Completions API, https://platform.openai.com/docs/api-reference/chat,
plus top_k. What it does not know it refuses: no field is ever ignored. It applies what
the request says and nothing else; sampling defaults in a model's generation_config do
not count. Choice i of a request with seed s is the text of

    torch.manual_seed(s + i)
    model.generate(..., do_sample=True, temperature=..., top_p=..., top_k=...)

`python -m tiny_models.server` serves the course's model until Ctrl-C.
"""

import argparse
import asyncio
import atexit
import copy
import errno
import json
import os
import socket
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from starlette.exceptions import HTTPException

from tiny_models.engine import Generation, Sampling
from tiny_models.openapi import describe

MAX_BODY = 4 * 1024 * 1024  # bytes
MAX_CHOICES = 8
CONTEXT_IF_UNKNOWN = 2048  # tokens, for a model whose config names no limit


# --- the request ---


class Strict(BaseModel):
    """An object of the request: no field but these, and no type but theirs."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_is_enough(cls, data: Any) -> Any:
        # To explain each of a hundred thousand would hold up the other clients.
        if not isinstance(data, dict):
            return data
        first = next((k for k in data if k not in cls.model_fields), None)
        return {k: v for k, v in data.items() if k in cls.model_fields or k == first}


def _whole_number(number: Any) -> Any:
    """JSON has one kind of number: 1.0 is 1."""
    whole = isinstance(number, float) and number.is_integer()
    return int(number) if whole else number


WHOLE = BeforeValidator(_whole_number)


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _content_text(content: Any) -> Any:
    """A list of text parts is the same as its text."""
    if isinstance(content, str):
        content.encode()  # half a surrogate pair is valid JSON, but no text
        return content
    if not isinstance(content, list):
        return content  # pydantic says no
    for part in content:
        if not (
            isinstance(part, dict)
            and part.keys() == {"type", "text"}
            and part["type"] == "text"
            and isinstance(part["text"], str)
        ):
            raise ValueError("not a text part")
    return _content_text("".join(part["text"] for part in content))


# What the API's answers may hold besides their text. An answer is sent back with the
# next question, and the openai client's model_dump() writes these as null.
ANSWER_FIELDS = {"refusal", "annotations", "audio", "function_call", "tool_calls"}


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description='"system", "developer", "user" or "assistant"'
    )
    content: Annotated[
        str, BeforeValidator(_content_text, json_schema_input_type=str | list[TextPart])
    ] = Field(
        description='a string, or a list of {"type": "text", "text": "..."} parts'
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            k: v for k, v in data.items() if v is not None or k not in ANSWER_FIELDS
        }


class StreamOptions(Strict):
    include_usage: bool = Field(False, description="true or false")


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


NonEmpty = Annotated[str, Field(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
_check_bias = TypeAdapter(Bias, config=Strict.model_config).validate_python


def _first_wrong_bias(biases: Any) -> Any:
    """Of wrong numbers the first, for the reason that Strict gives; else all."""
    if not isinstance(biases, dict):
        return biases
    for token, bias in biases.items():
        try:
            _check_bias(bias)
        except ValidationError:
            return {token: bias}
    return biases


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions. null means the default.

    A field's description says what is allowed; error messages quote it.
    """

    model: str = Field(description="the id of a model, a string")
    messages: list[Message] = Field(
        min_length=1,
        fail_fast=True,
        description='a list with at least one {"role": "...", "content": "..."}',
    )
    stream: bool = Field(False, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object: {"include_usage": true}'
    )
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="an integer of 1 or more"
    )
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="an integer of 1 or more"
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="a number from 0 (greedy) to 2"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="a number above 0 and at most 1 (off)"
    )
    top_k: Annotated[int, WHOLE] = Field(
        0, ge=0, description="an integer of 0 (off) or more"
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = Field(
        None, description="an integer of at most 64 bits"
    )
    stop: Annotated[
        list[NonEmpty],
        BeforeValidator(
            _stop_list,
            json_schema_input_type=NonEmpty
            | Annotated[list[NonEmpty], Field(max_length=4)],
        ),
    ] = Field([], max_length=4, description="a non-empty string or a list of up to 4")
    n: Annotated[int, WHOLE] = Field(
        1, ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}"
    )
    logprobs: bool = Field(False, description="true or false")
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="an integer from 0 to 20"
    )
    logit_bias: Annotated[
        dict[str, Bias],
        BeforeValidator(_first_wrong_bias, json_schema_input_type=dict[str, Bias]),
    ] = Field(
        {},
        description="an object that gives token ids (as strings) numbers "
        "from -100 to 100",
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2"
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        optional = {k for k, f in cls.model_fields.items() if not f.is_required()}
        return {k: v for k, v in data.items() if v is not None or k not in optional}


# --- errors, in the API's shape ---


class APIError(Exception):
    """An error for the client: becomes {"error": {message, type, param, code}}."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }


def _error_response(error: APIError) -> Response:
    # In ASCII, since what it quotes from the request may be no valid Unicode.
    body = json.dumps(error.body)
    return Response(body, status_code=error.status, media_type="application/json")


def _internal_error(error: BaseException) -> APIError:
    return APIError(
        f"The server failed: {type(error).__name__}: {error}",
        status=500,
        code="internal_error",
    )


def _shutting_down() -> APIError:
    return APIError("The server is shutting down.", status=503, code="shutting_down")


def _shown(value: Any) -> str:
    """A value from the request as JSON, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deep"
    return text if len(text) <= 80 else text[:77] + "..."


def _explain(problem: dict) -> APIError:
    """One of pydantic's errors in a sentence: which field, what came, what may come."""
    kind, loc = problem["type"], problem["loc"][1:]
    if kind == "json_invalid":
        return APIError(
            f"The body is not valid JSON: {problem['ctx']['error']}.",
            code="invalid_json",
        )

    # Follow the location down the models, to the innermost field that is described.
    fields, path, allowed = ChatRequest.model_fields, "", None
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
            continue
        path += f".{step}" if path else str(step)
        if step in fields:
            allowed = fields[step].description
            fields = {"messages": Message, "stream_options": StreamOptions}.get(step)
            fields = fields.model_fields if fields else {}

    path = path if len(path) <= 80 else path[:77] + "..."
    if not path:
        return APIError(
            "The body must be a JSON object such as "
            '{"model": "...", "messages": [{"role": "user", "content": "Hi"}]}, '
            "sent with the header Content-Type: application/json."
        )
    if kind == "missing":
        return APIError(
            f"'{path}' is missing. It must be {allowed}.",
            param=path,
            code="missing_required_parameter",
        )
    if kind == "extra_forbidden":
        return APIError(
            f"'{path}' is {_shown(problem['input'])}, but this server has no such "
            f"field here. It has: {', '.join(fields)}.",
            param=path,
            code="unknown_parameter",
        )
    if kind == "model_attributes_type":  # an item of messages that is no object
        allowed = 'an object such as {"role": "user", "content": "Hi"}'
    return APIError(
        f"'{path}' is {_shown(problem['input'])}, but must be {allowed}.",
        param=path,
        code="invalid_value",
    )


# --- the routes ---


class Engine:
    """A model, its tokenizer and the one thread on which they work.

    Each step of each answer is one job in this thread's queue. An answer queues its
    next step only after the last, so answers take turns, token by token, and the model
    never runs twice at once on behalf of clients.
    """

    def __init__(self, model, tokenizer, name: str):
        self.name = name
        self.created = int(time.time())
        self.closing = False
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

    async def run(self, function, *args):
        """Call function in the engine's thread."""
        if self.closing:
            raise _shutting_down()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        self.closing = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def prompt_ids(self, messages: list[Message]) -> torch.Tensor:
        """LongTensor (1, seq): the messages through the chat template."""
        # Templates know "system"; "developer" is the API's newer name for it.
        conversation = [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.content,
            }
            for message in messages
        ]

        def encode() -> torch.Tensor:
            text = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
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
            return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")[
                "input_ids"
            ].to(self._model.device)

        try:
            ids = await self.run(encode)
        except APIError:
            raise
        except Exception as error:  # a template may raise what it likes
            raise APIError(
                f"The model's chat template refused these messages: {error}",
                param="messages",
            ) from error
        if ids.shape[1] == 0:
            raise APIError(
                "The model's chat template made an empty prompt of these messages.",
                param="messages",
            )
        return ids

    def start(self, prompt_ids: torch.Tensor, sampling: Sampling) -> Generation:
        return Generation(self._model, self._tokenizer, prompt_ids, sampling)


def _sampling(chat: ChatRequest, engine: Engine, prompt_tokens: int) -> list[Sampling]:
    """One Sampling a choice. Raises APIError where fields contradict each other or the
    model; a field alone has been checked by then."""
    wanted = [
        name
        for name in ("max_tokens", "max_completion_tokens")
        if getattr(chat, name) is not None
    ]
    if len(wanted) == 2 and chat.max_tokens != chat.max_completion_tokens:
        raise APIError(
            f"'max_tokens' is {chat.max_tokens} and 'max_completion_tokens' is "
            f"{chat.max_completion_tokens}: they mean the same; give one of them.",
            param="max_tokens",
            code="invalid_value",
        )
    if chat.top_logprobs is not None and not chat.logprobs:
        raise APIError(
            f"'top_logprobs' is {chat.top_logprobs}, but needs 'logprobs' to be true.",
            param="top_logprobs",
            code="invalid_value",
        )
    if chat.stream_options is not None and not chat.stream:
        raise APIError(
            "'stream_options' needs 'stream' to be true.",
            param="stream_options",
            code="invalid_value",
        )
    for token in chat.logit_bias:
        known = token.isascii() and token.isdecimal() and len(token) <= 9
        if not known or int(token) >= engine.vocab_size or str(int(token)) != token:
            raise APIError(
                f"'logit_bias' has the key {_shown(token)}, but a key must be a token "
                f"id of this model: an integer from 0 to {engine.vocab_size - 1}, "
                "as a string.",
                param="logit_bias",
                code="invalid_value",
            )

    left = engine.context - prompt_tokens
    max_tokens = getattr(chat, wanted[0]) if wanted else left
    if left < 1 or max_tokens > left:
        asked = f" and '{wanted[0]}' asks for {max_tokens} more" if wanted else ""
        raise APIError(
            f"The model's context holds {engine.context} tokens, the last of them for "
            f"the answer. The messages take {prompt_tokens}{asked}. "
            "Shorten the messages or the answer.",
            param=wanted[0] if wanted and left >= 1 else "messages",
            code="context_length_exceeded",
        )
    return [
        Sampling(
            max_tokens=max_tokens,
            temperature=chat.temperature,
            top_p=chat.top_p,
            top_k=chat.top_k,
            seed=None if chat.seed is None else chat.seed + i,
            stop=tuple(chat.stop),
            top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
            logit_bias={int(token): bias for token, bias in chat.logit_bias.items()},
            frequency_penalty=chat.frequency_penalty,
            presence_penalty=chat.presence_penalty,
        )
        for i in range(chat.n)
    ]


class _HungUp(Exception):
    """The client has gone: nobody reads the answer."""


async def _steps(
    request: Request, engine: Engine, generations: list[Generation]
) -> AsyncIterator[tuple[int, str, list[dict]]]:
    """Grow all choices in turns. Yields (choice, new text, logprobs) for each token."""
    while any(generation.finish_reason is None for generation in generations):
        for index, generation in enumerate(generations):
            if generation.finish_reason is None:
                if await request.is_disconnected():
                    raise _HungUp
                text, logprobs = await engine.run(generation.step)
                yield index, text, logprobs


def _usage(prompt_tokens: int, generations: list[Generation]) -> dict:
    completion = sum(generation.completion_tokens for generation in generations)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
    }


def _choice(
    index: int, key: str, value: dict, logprobs: list | None, finish_reason: str | None
) -> dict:
    """key is "message" or "delta". logprobs stand in it only when asked for."""
    choice: dict = {"index": index, key: value}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return {**choice, "finish_reason": finish_reason}


async def _complete(
    request: Request,
    engine: Engine,
    chat: ChatRequest,
    generations: list[Generation],
    prompt_tokens: int,
) -> Response:
    """The whole answer in one JSON object."""
    texts = [""] * chat.n
    logprobs: list[list[dict]] = [[] for _ in range(chat.n)]
    async for index, text, entries in _steps(request, engine, generations):
        texts[index] += text
        logprobs[index] += entries
    choices = [
        _choice(
            i,
            "message",
            {"role": "assistant", "content": texts[i]},
            logprobs[i] if chat.logprobs else None,
            generation.finish_reason,
        )
        for i, generation in enumerate(generations)
    ]
    return JSONResponse(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": engine.name,
            "choices": choices,
            "usage": _usage(prompt_tokens, generations),
        }
    )


def _event(data: dict) -> str:
    # ASCII: some readers of lines also split at characters such as U+2028.
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _stream(
    request: Request,
    engine: Engine,
    chat: ChatRequest,
    generations: list[Generation],
    prompt_tokens: int,
) -> AsyncIterator[str]:
    """The answer as server-sent events, one JSON object each, then [DONE]."""
    include_usage = (
        chat.stream_options is not None and chat.stream_options.include_usage
    )
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": engine.name,
    }

    def event(choices: list[dict], usage: dict | None = None) -> str:
        chunk = {**head, "choices": choices}
        return _event({**chunk, "usage": usage} if include_usage else chunk)

    try:
        for i in range(chat.n):
            role = {"role": "assistant", "content": ""}
            yield event([_choice(i, "delta", role, None, None)])
        async for i, text, entries in _steps(request, engine, generations):
            if text or entries:
                logprobs = entries if chat.logprobs else None
                yield event([_choice(i, "delta", {"content": text}, logprobs, None)])
            reason = generations[i].finish_reason
            if reason is not None:
                yield event([_choice(i, "delta", {}, None, reason)])
        if include_usage:
            yield event([], _usage(prompt_tokens, generations))
        yield "data: [DONE]\n\n"
    except _HungUp:
        return
    except APIError as error:  # the status line is long out: the error is an event
        yield _event(error.body)
    except Exception as error:
        yield _event(_internal_error(error).body)


def build_app(engine: Engine) -> FastAPI:
    app = FastAPI(title="Token by Token: a local OpenAI-compatible server")
    app.add_middleware(BodyLimit)

    def model_card() -> dict:
        return {
            "id": engine.name,
            "object": "model",
            "created": engine.created,
            "owned_by": "token-by-token",
        }

    def known_model(name: str) -> None:
        if name != engine.name:
            raise APIError(
                f"The model {_shown(name)} does not exist. This server has: "
                f"{_shown(engine.name)}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {"object": "list", "data": [model_card()]}

    @app.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict:
        known_model(model)
        return model_card()

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, chat: ChatRequest) -> Response:
        known_model(chat.model)
        prompt_ids = await engine.prompt_ids(chat.messages)
        prompt_tokens = prompt_ids.shape[1]
        generations = [
            engine.start(prompt_ids, sampling)
            for sampling in _sampling(chat, engine, prompt_tokens)
        ]
        answer = (request, engine, chat, generations, prompt_tokens)
        if chat.stream:
            return StreamingResponse(
                _stream(*answer),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        try:
            return await _complete(*answer)
        except _HungUp:
            return Response(status_code=499)  # nobody reads it

    @app.exception_handler(APIError)
    async def api_error(request: Request, error: APIError) -> Response:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _error_response(_explain(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message, code = str(error.detail), None
        if error.status_code in (404, 405):
            message = (
                f"There is no {request.method} {request.url.path} here. This server "
                "has: GET /v1/models, GET /v1/models/{model}, "
                "POST /v1/chat/completions."
            )
            code = "unknown_url"
        elif error.status_code == 400:  # FastAPI keeps the reason to itself
            message = f"The body cannot be read: {error.__cause__ or message}."
        return _error_response(APIError(message, status=error.status_code, code=code))

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        return _error_response(_internal_error(error))

    describe(app, engine.name)
    return app


class BodyLimit:
    """Answers 413 to a body of more than MAX_BODY bytes, without keeping it, and 503 to
    one that has not come when the server has waited for it long enough and closes.

    Starlette has a middleware for the first; its answer is plain text, which clients of
    this API cannot read.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size, answered = 0, False

        async def answer(message):
            nonlocal answered
            answered = True
            await send(message)

        async def limited():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size <= MAX_BODY:
                return message
            # Let the client finish: most read no answer before they have sent all.
            while message.get("more_body") and size <= 16 * MAX_BODY:
                message = await receive()
                size += len(message.get("body", b""))
            raise HTTPException(
                413, f"The body is too large: at most {MAX_BODY} bytes are allowed."
            )

        try:
            await self.app(scope, limited, answer)
        except asyncio.CancelledError:  # by uvicorn, when it closes
            if answered:
                raise
            await _error_response(_shutting_down())(scope, receive, send)


# --- the server ---


class Server:
    """A running server; `serve` makes one. Use as a context manager, or `close()` it.

    base_url: for the client, "http://127.0.0.1:PORT/v1". port: the port. model: the id.
    """

    def __init__(self, engine: Engine, listener: socket.socket):
        host, self.port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        self.base_url = f"http://{host}:{self.port}/v1"
        self.model = engine.name
        self._engine = engine
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                build_app(engine),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_level="critical",
                access_log=False,
                timeout_graceful_shutdown=5,
            )
        )
        # A daemon, so that a kernel or script that forgets close() can end.
        self._thread = threading.Thread(
            target=asyncio.run,
            args=(self._serve(listener),),
            name="tiny-models-server",
            daemon=True,
        )
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._uvicorn.started:
            self._engine.close()
            raise RuntimeError("the server's thread ended before it could serve")
        atexit.register(self.close)

    async def _serve(self, listener: socket.socket) -> None:
        await self._uvicorn.serve([listener])
        # Clients that never read what was sent to them: let go of their sockets.
        await asyncio.sleep(0)
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def close(self) -> None:
        """Stop. Answers in the making end with an error that says so; a client that
        neither sends nor reads is given five seconds."""
        atexit.unregister(self.close)
        self._engine.closing = True
        self._uvicorn.should_exit = True
        self._thread.join()
        self._engine.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.running else ", closed"
        return f"Server({self.base_url}, model={self.model!r}{state})"


def serve(
    model, tokenizer, *, name: str | None = None, host: str = "127.0.0.1", port: int = 0
) -> Server:
    """Serve a loaded model over HTTP, from a thread of this process.

    name: the model's id for clients; by default the model's own name.
    port: 0 takes any free one. Raises OSError if the address cannot be had.
    The model is shared, not copied. The tokenizer is copied: a chat template set
    afterwards does not count. Where the environment names a proxy, `host` is added to
    NO_PROXY.
    """
    _reach_without_proxy(host)
    listener = _listen(host, port)
    try:
        return Server(Engine(model, tokenizer, name or _model_name(model)), listener)
    except BaseException:
        listener.close()
        raise


def _reach_without_proxy(host: str) -> None:
    """A proxy cannot reach this machine's loopback, and httpx would ask it to."""
    if not urllib.request.getproxies():
        return
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [h for h in os.environ.get(name, "").split(",") if h]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host]))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: from here on clients can connect, and nobody else has it."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, but must be from 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = (
                f"port {port} on {host} is in use: close the server that has it, "
                "or choose another port (0 takes any free one)"
            )
        else:
            reason = f"cannot serve on {host} port {port}: {error.strerror or error}"
        raise OSError(error.errno, reason) from error


def _model_name(model) -> str:
    name = getattr(model.config, "_name_or_path", "") or model.config.model_type
    # Of a folder the last part is enough, and tells clients nothing about the disk.
    return Path(name).resolve().name if os.path.isdir(name) else name


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tiny_models.server",
        description="Serve a model with an OpenAI-compatible API until Ctrl-C.",
    )
    parser.add_argument(
        "--model", help="a hub id or a folder (default: $COURSE_MODEL, or the course's)"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    from tiny_models.loading import load
    from tiny_models.weights import ModelNotAvailable

    try:
        model, tokenizer = load(options.model)
        with serve(model, tokenizer, host=options.host, port=options.port) as server:
            print(f"{server.model} at {server.base_url} (Ctrl-C stops)", flush=True)
            while server.running:
                time.sleep(0.2)
    except KeyboardInterrupt:
        print()
    except (ModelNotAvailable, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
