"""What stands between the network and the routes."""

import asyncio

from starlette.exceptions import HTTPException

from tiny_models.server.errors import error_response, shutting_down

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
