"""How large a request may be."""

import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


# The longest passage with eight self-edits of that length fits, in any script.
LARGEST_REQUEST = 3_000_000  # bytes
_MOST_PARTS = 100_000  # commas and brackets; Gradio visits each value of a request, and a passage has far fewer commas
_UPLOAD = re.compile(r"(/gradio_api)?/upload/?")  # files, whose size Gradio limits itself
_REFUSAL = (
    f"This request has more than {LARGEST_REQUEST:,} bytes or too many values: send shorter texts and lists, or upload a file "
    "where one is taken."
)


class SmallRequests:
    """
    ASGI middleware that refuses large requests, before the text in them is read.

    Gradio reads a request on the event loop, where all visitors wait for it, and limits uploaded files only.

    Parameters:
        app (`ASGIApp`):
            The app inside.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_body = scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
        if not has_body or _UPLOAD.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the caller has left
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > LARGEST_REQUEST or sum(map(body.count, (b",", b"[", b"{"))) > _MOST_PARTS:
                return await JSONResponse({"detail": _REFUSAL}, 413)(scope, receive, send)
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)
