"""The routes: which request gets which answer."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tiny_models.server.answers import Answer
from tiny_models.server.errors import (
    APIError,
    error_response,
    explain,
    internal_error,
    shortened,
    shown,
)
from tiny_models.server.guards import BodyLimit, LocalHostsOnly, OneForm, RequestIds
from tiny_models.server.interface import Engine
from tiny_models.server.openapi import describe
from tiny_models.server.request import ChatRequest
from tiny_models.server.sampling import conversation, sampling

METRICS = "text/plain; version=0.0.4"  # Prometheus' text format
ROUTES = "GET /v1/models, GET /v1/models/{model}, POST /v1/chat/completions"
# Other ways of the API to ask a model, and how clients are told not to go them.
INSTEAD = {
    "/v1/responses": "Make the client use chat completions: openai "
    "client.chat.completions.create, LangChain use_responses_api=False, OpenAI Agents "
    'set_default_openai_api("chat_completions"), AI SDK createOpenAICompatible or '
    "provider.chat(model), pydantic-ai OpenAIChatModel, Inspect "
    "-M responses_api=false.",
    "/v1/completions": "Make the client use chat completions: openai "
    "client.chat.completions.create, LangChain ChatOpenAI, LlamaIndex "
    "is_chat_model=True, lm-eval --model local-chat-completions "
    "--apply_chat_template, guidellm's chat completions, Continue "
    "useLegacyCompletionsEndpoint: false.",
    "/v1/embeddings": "It has no embeddings: choose another provider for them.",
}


def build_app(
    engine: Engine, *, local: bool = True, defaults: dict[str, float] | None = None
):
    """The ASGI application.

    local: refuse requests for other hosts than loopback. defaults: the values of
    temperature and top_p for requests that give none.
    """
    app = FastAPI(
        title="Token by Token: a local OpenAI-compatible server",
        # FastAPI's pages load scripts from elsewhere; /openapi.json says the same.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(OneForm)
    if local:
        app.add_middleware(LocalHostsOnly)
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

    async def hello() -> Response:
        line = f"{engine.name} answers at /v1/chat/completions. Base URL: .../v1\n"
        return PlainTextResponse(line)

    for path in ("/", "/v1", "/health"):
        app.add_api_route(path, hello, methods=["GET", "HEAD"], include_in_schema=False)

    async def metrics() -> Response:
        return PlainTextResponse(await engine.metrics(), media_type=METRICS)

    app.add_api_route("/metrics", metrics, methods=["GET"], include_in_schema=False)

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
        wanted = sampling(chat, engine, len(prompt_ids), defaults or {})
        steps = engine.answer(prompt_ids, wanted)
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
        return error_response(explain(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message, code = str(error.detail), None
        if error.status_code in (404, 405):
            path = request.url.path
            message = (
                f"There is no {request.method} {shortened(path)} here. This server "
                f"has: {ROUTES}. {INSTEAD.get(path, '')}"
            ).rstrip()
            code = "unknown_url"
        elif error.status_code == 400:  # FastAPI keeps the reason to itself
            message = f"The body cannot be read: {error.__cause__ or message}."
        failed = APIError(message, status=error.status_code, code=code)
        return error_response(failed, error.headers)  # with Allow, if it is a 405

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        return error_response(internal_error(error))

    describe(app, engine.name)
    return RequestIds(app)
