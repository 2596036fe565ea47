"""How the page is served: to its own visitors, and to no page of another site."""

from collections.abc import Sequence

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body_limit import SmallRequests
from .languages import i18n
from .page import CSS, THEME
from .work.origins import is_foreign


_ONLY_READ = ("GET", "HEAD", "OPTIONS")
_FOREIGN = (
    "This request comes from a page of another site ({origin}), and only the app's own page and programs may use the app: "
    "open the app itself. If it is behind a proxy, let the proxy pass the Host header on."
)


class OwnPagesOnly:
    """
    ASGI middleware that refuses what pages of other sites ask for, and keeps them from showing the page in a frame.

    Gradio 6.31 lets pages of every origin in, unless the host that they ask for is called localhost, 127.0.0.1 or 0.0.0.0, and
    then those of every local port. Browsers send an origin with each request that does something.

    Parameters:
        app (`ASGIApp`):
            The app inside.
        on_space (`bool`):
            Whether this is a Space, which Hugging Face shows in a frame.
    """

    def __init__(self, app: ASGIApp, on_space: bool):
        self._app, self._on_space = app, on_space
        ancestors = "'self' https://huggingface.co" if on_space else "'self'"
        self._policy = f"frame-ancestors {ancestors}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if scope["method"] not in _ONLY_READ and is_foreign(headers, self._on_space):
            refusal = JSONResponse({"detail": _FOREIGN.format(origin=headers["origin"])}, 403)
            return await refusal(scope, receive, send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("Content-Security-Policy", self._policy)
            await send(message)

        await self._app(scope, receive, send_with_policy)


def launch(
    page: gr.Blocks,
    *,
    on_space: bool,
    host: str = "127.0.0.1",
    middleware: Sequence[Middleware] = (),
    **options: object,
) -> tuple:
    """
    Serve the page.

    Args:
        page (`gr.Blocks`):
            What [`build_page`] returned.
        on_space (`bool`):
            Whether this is a Space.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            The address to serve on.
        middleware (`Sequence[Middleware]`, *optional*, defaults to none):
            What else a request goes through before it reaches Gradio.
        options:
            Passed on to `gr.Blocks.launch`.

    Returns:
        `tuple`: What `gr.Blocks.launch` returns.
    """
    return page.launch(
        # Gradio makes its own address of it, in which an IPv6 address has brackets.
        server_name=f"[{host}]" if ":" in host and not host.startswith("[") else host,
        ssr_mode=False,
        # Gradio would ask the page whether it answers within seconds, and end the app on a busy machine or behind a proxy of the
        # environment, with the advice to share it.
        _frontend=False,
        run_history=False,
        show_error=False,
        theme=THEME,
        css=CSS,
        i18n=i18n(),
        app_kwargs={
            "middleware": [Middleware(OwnPagesOnly, on_space=on_space), Middleware(SmallRequests), *middleware]
        },
        **options,
    )
