"""What went wrong, in a sentence and in the API's shape."""

import json
from typing import Any

from fastapi.responses import Response

from tiny_models.server.idle import IDLE, IDLE_IN_MESSAGE, IDLE_IN_STREAM_OPTIONS
from tiny_models.server.request import (
    ChatRequest,
    JSONSchema,
    Message,
    ResponseFormat,
    StreamOptions,
)

# The objects in a request: at which key, their model, which fields ask for nothing.
OBJECTS = {
    None: (ChatRequest, IDLE),
    "messages": (Message, IDLE_IN_MESSAGE),
    "stream_options": (StreamOptions, IDLE_IN_STREAM_OPTIONS),
    "response_format": (ResponseFormat, {}),
    "json_schema": (JSONSchema, {}),
}


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


def error_response(error: APIError, headers: dict | None = None) -> Response:
    # In ASCII, since what it quotes from the request may be no valid Unicode.
    return Response(
        json.dumps(error.body),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


def internal_error(error: BaseException) -> APIError:
    return APIError(
        f"The server failed: {type(error).__name__}: {error}",
        status=500,
        code="internal_error",
    )


def shutting_down() -> APIError:
    return APIError("The server is shutting down.", status=503, code="shutting_down")


def shown(value: Any) -> str:
    """A value from the request as JSON, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deep"
    return shortened(text)


def shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def explain(problems: list[dict], body: Any) -> APIError:
    """The first of pydantic's errors in a sentence: which field, what came, what may
    come. First are causes: an answer to a tool's call is wrong because of `tools`."""
    rank = {name: place for place, name in enumerate(IDLE)}
    first = min(
        problems, key=lambda p: rank.get(next(iter(p["loc"][1:]), ""), len(rank))
    )
    return _explain_one(first, body)


def _explain_one(problem: dict, body: Any) -> APIError:
    kind, loc = problem["type"], problem["loc"][1:]
    if kind == "json_invalid":
        return APIError(
            f"The body is not valid JSON: {problem['ctx']['error']}.",
            code="invalid_json",
        )
    if not loc:
        return APIError(
            "The body must be a JSON object such as "
            '{"model": "...", "messages": [{"role": "user", "content": "Hi"}]}, '
            "sent with the header Content-Type: application/json."
        )

    # Follow the location down the objects, to the innermost field that is described.
    (model, idle), path, allowed, value = OBJECTS[None], "", None, body
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        if model is None or isinstance(step, int):
            value = value[step] if isinstance(value, (list, dict)) else value
            continue
        value = value.get(step)
        if step in idle:
            path = shortened(path)
            return APIError(
                f"'{path}' is {shown(value)}, but {idle[step].why}.",
                param=path,
                code="unsupported_parameter",
            )
        fields = {field.alias or k: field for k, field in model.model_fields.items()}
        if step in fields:
            allowed = fields[step].description
            model, idle = OBJECTS.get(step, (None, {}))
    path = shortened(path)
    if kind == "missing":
        return APIError(
            f"'{path}' is missing. It must be {allowed}.",
            param=path,
            code="missing_required_parameter",
        )
    if kind == "extra_forbidden":
        known = [f.alias or k for k, f in model.model_fields.items() if k not in idle]
        return APIError(
            f"'{path}' is {shown(problem['input'])}, but this server has no such "
            f"field here. It has: {', '.join(known)}.",
            param=path,
            code="unknown_parameter",
        )
    if kind == "model_attributes_type":  # an item of messages that is no object
        allowed = 'an object such as {"role": "user", "content": "Hi"}'
    if path == "stop[0]" and body["stop"] == "":
        path, allowed = "stop", "a string of one character or more: leave it out"
    return APIError(
        f"'{path}' is {shown(problem['input'])}, but must be {allowed}.",
        param=path,
        code="invalid_value",
    )
