"""What the server says of itself at /openapi.json: true enough to be tested against."""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

NUMBER, TEXT = {"type": "number"}, {"type": "string"}
INTEGER, NOTHING = {"type": "integer", "minimum": 0}, {"type": "null"}


def _object(optional: tuple[str, ...] = (), **properties) -> dict:
    """A JSON schema: an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: dict) -> dict:
    return {"type": "array", "items": items}


_TOKEN = {
    "token": TEXT,
    "logprob": NUMBER,
    "bytes": _list({"type": "integer", "minimum": 0, "maximum": 255}),
}
_LOGPROBS = _object(
    content=_list(_object(**_TOKEN, top_logprobs=_list(_object(**_TOKEN))))
)
_CHOICE = _object(
    ("logprobs",),
    index=INTEGER,
    message=_object(role={"const": "assistant"}, content=TEXT),
    logprobs=_LOGPROBS,
    finish_reason={"enum": ["stop", "length"]},
)
_USAGE = _object(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER)
COMPLETION = _object(
    id=TEXT,
    object={"const": "chat.completion"},
    created=INTEGER,
    model=TEXT,
    choices=_list(_CHOICE),
    usage=_USAGE,
)
MODEL = _object(id=TEXT, object={"const": "model"}, created=INTEGER, owned_by=TEXT)
MODELS = _object(object={"const": "list"}, data=_list(MODEL))
ERROR = _object(
    error=_object(
        message=TEXT,
        type={"enum": ["invalid_request_error", "server_error"]},
        param={"anyOf": [TEXT, NOTHING]},
        code={"anyOf": [TEXT, NOTHING]},
    )
)
# Each route's answer, and what a stream is.
ANSWERS = {
    "/v1/models": {"application/json": MODELS},
    "/v1/models/{model}": {"application/json": MODEL},
    "/v1/chat/completions": {
        "application/json": COMPLETION,
        "text/event-stream": TEXT,
    },
}


def describe(app: FastAPI, model: str) -> None:
    """Make /openapi.json say what `app`, which serves `model`, takes and gives."""
    schema = get_openapi(
        title=app.title, version="1", routes=app.routes, description=app.description
    )
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            content = {k: {"schema": v} for k, v in ANSWERS[path].items()}
            error = {"application/json": {"schema": ERROR}}
            operation["responses"] = {
                "200": {"description": "the answer", "content": content},
                "4XX": {"description": "what is wrong", "content": error},
                "5XX": {"description": "what failed", "content": error},
            }
    schemas = schema["components"]["schemas"]
    for name in [name for name in schemas if "ValidationError" in name]:
        del schemas[name]  # FastAPI's own errors; ours have the API's shape
    request = schemas["ChatRequest"]
    request["properties"]["model"]["enum"] = [model]
    for name in set(request["properties"]) - set(request["required"]):
        allowed = request["properties"][name]
        if NOTHING not in allowed.get("anyOf", ()):
            request["properties"][name] = {"anyOf": [allowed, NOTHING]}
    app.openapi = lambda: schema
