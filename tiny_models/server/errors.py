"""What went wrong, in a sentence and in the API's shape."""

import json
from typing import Any

from fastapi.responses import Response

from tiny_models.server.request import ChatRequest, Message, StreamOptions


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


def error_response(error: APIError) -> Response:
    # In ASCII, since what it quotes from the request may be no valid Unicode.
    body = json.dumps(error.body)
    return Response(body, status_code=error.status, media_type="application/json")


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
    return text if len(text) <= 80 else text[:77] + "..."


def explain(problem: dict) -> APIError:
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
            f"'{path}' is {shown(problem['input'])}, but this server has no such "
            f"field here. It has: {', '.join(fields)}.",
            param=path,
            code="unknown_parameter",
        )
    if kind == "model_attributes_type":  # an item of messages that is no object
        allowed = 'an object such as {"role": "user", "content": "Hi"}'
    return APIError(
        f"'{path}' is {shown(problem['input'])}, but must be {allowed}.",
        param=path,
        code="invalid_value",
    )
