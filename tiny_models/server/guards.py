"""What stands between the network and the routes."""

import asyncio
import ipaddress
import uuid

from starlette.exceptions import HTTPException

from tiny_models.server.errors import APIError, error_response, shown, shutting_down

MAX_BODY = 4 * 1024 * 1024  # bytes


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
            await error_response(shutting_down())(scope, receive, send)


def header(scope, name: bytes) -> str:
    """The first header of this name, or ""."""
    values = (value for key, value in scope["headers"] if key == name)
    return next(values, b"").decode("latin-1")


def is_local_name(host: str) -> bool:
    """Does this Host header name this machine's loopback: localhost, 127.x or [::1],
    with any port? So does none at all, which no browser sends."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or not port.isdecimal():
        name = host.strip().lower()
    if name in ("", "localhost", "[::1]"):
        return True
    try:  # not by its first letters: 127.0.0.1.example.org is anybody's
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


class LocalHostsOnly:
    """Answers 403 to a request that names another host than this machine's loopback.

    A web page can have its own name resolved to 127.0.0.1 once it is loaded (DNS
    rebinding). To the browser this server is then of the page's own origin; but the
    Host header has the page's name.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and not is_local_name(header(scope, b"host")):
            error = APIError(
                f"The Host header is {shown(header(scope, b'host'))}, but this server "
                "is for this machine alone: use localhost, 127.0.0.1 or [::1] in the "
                "URL, or start it with --host 0.0.0.0 to serve the network.",
                status=403,
                code="host_not_allowed",
            )
            await error_response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class OneForm:
    """A path with a slash at its end is the path without."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self.app(scope, receive, send)


class RequestIds:
    """Gives each answer the header x-request-id: the client's own, or a new one."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        usable = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
        number = given if usable else f"req_{uuid.uuid4().hex}"

        async def named(message):
            if message["type"] == "http.response.start":
                own = (b"x-request-id", number.encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            await send(message)

        await self.app(scope, receive, named)
