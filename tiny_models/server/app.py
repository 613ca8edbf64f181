"""The routes: which request gets which answer."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from tiny_models.server.answers import Answer
from tiny_models.server.errors import (
    APIError,
    error_response,
    explain,
    internal_error,
    shown,
)
from tiny_models.server.guards import BodyLimit
from tiny_models.server.interface import Engine
from tiny_models.server.openapi import describe
from tiny_models.server.request import ChatRequest
from tiny_models.server.sampling import conversation, samplings


def build_app(engine: Engine) -> FastAPI:
    app = FastAPI(title="Token by Token: a local OpenAI-compatible server")
    app.add_middleware(BodyLimit)
    started = int(time.time())

    def model_card() -> dict:
        return {
            "id": engine.name,
            "object": "model",
            "created": started,
            "owned_by": "token-by-token",
        }

    def known_model(name: str) -> None:
        if name != engine.name:
            raise APIError(
                f"The model {shown(name)} does not exist. This server has: "
                f"{shown(engine.name)}.",
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
        prompt_ids = await engine.prompt_ids(conversation(chat))
        steps = engine.answer(prompt_ids, samplings(chat, engine, len(prompt_ids)))
        answer = Answer(request, chat, steps, len(prompt_ids))
        if not chat.stream:
            return await answer.whole()
        return StreamingResponse(
            answer.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    @app.exception_handler(APIError)
    async def api_error(request: Request, error: APIError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(explain(error.errors()[0]))

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
        return error_response(APIError(message, status=error.status_code, code=code))

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        return error_response(internal_error(error))

    describe(app, engine.name)
    return app
