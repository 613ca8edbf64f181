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
_STREAMED_CHOICE = _object(
    ("logprobs",),
    index=INTEGER,
    delta=_object(("role", "content"), role={"const": "assistant"}, content=TEXT),
    logprobs=_LOGPROBS,
    finish_reason={"enum": [None, "stop", "length"]},
)
CHUNK = _object(
    ("usage",),
    id=TEXT,
    object={"const": "chat.completion.chunk"},
    created=INTEGER,
    model=TEXT,
    choices=_list(_STREAMED_CHOICE),
    usage={"anyOf": [_USAGE, NOTHING]},
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
# An event of a stream: a chunk, what failed when the stream had begun, or its end.
EVENT = _object(
    ("event",),
    event={"const": "message"},  # its type, where nothing is said of it
    data={
        "anyOf": [
            {"const": "[DONE]"},
            {
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [CHUNK, ERROR]},
            },
        ]
    },
)
# Each route's answer.
ANSWERS = {
    "/v1/models": {"application/json": {"schema": MODELS}},
    "/v1/models/{model}": {"application/json": {"schema": MODEL}},
    "/v1/chat/completions": {
        "application/json": {"schema": COMPLETION},
        "text/event-stream": {"itemSchema": EVENT},  # OpenAPI 3.2, as FastAPI does
    },
}


def describe(app: FastAPI, model: str) -> None:
    """Make /openapi.json say what `app`, which serves `model`, takes and gives."""
    schema = get_openapi(
        title=app.title, version="1", routes=app.routes, description=app.description
    )
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            error = {"application/json": {"schema": ERROR}}
            for parameter in operation.get("parameters", ()):
                parameter["schema"]["enum"] = [model]  # there is no other parameter
            operation["responses"] = {
                "200": {"description": "the answer", "content": ANSWERS[path]},
                "4XX": {"description": "what is wrong", "content": error},
                "5XX": {"description": "what failed", "content": error},
            }
    schemas = schema["components"]["schemas"]
    for name in [name for name in schemas if "ValidationError" in name]:
        del schemas[name]  # FastAPI's own errors; ours have the API's shape
    request = schemas["ChatRequest"]
    request["properties"]["model"]["enum"] = [model]
    request["properties"]["logit_bias"]["propertyNames"] = {
        "pattern": "^(0|[1-9][0-9]{0,8})$"
    }
    for name in set(request["properties"]) - set(request["required"]):
        allowed = request["properties"][name]
        if NOTHING not in allowed.get("anyOf", ()):
            request["properties"][name] = {"anyOf": [allowed, NOTHING]}
    app.openapi = lambda: schema
