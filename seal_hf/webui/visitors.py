"""Who a visitor is, where others reach the app. What one visitor may take is counted by this, not by sessions, of which
anybody can have many."""

import ipaddress

from gradio.context import LocalContext
from starlette.datastructures import Headers
from starlette.types import Scope

from .work.origins import is_local


_BEHIND_A_PROXY = "behind a proxy"


def current_visitor(on_space: bool) -> str:
    """
    The visitor whose request an event handler works on, as [`visitor_of`] names them; empty outside of handlers.

    Args:
        on_space (`bool`):
            As in [`visitor_of`].
    """
    # What Gradio passes to handlers that ask for it. Any handler may open a session.
    request = LocalContext.request.get(None)
    return visitor_of(request.request.scope, on_space) if request is not None else ""


def current_is_local() -> bool:
    """Whether the request that an event handler works on is by the user of this machine (see [`is_local`]); so outside of handlers."""
    request = LocalContext.request.get(None)
    return request is None or is_local(Headers(scope=request.request.scope))


def visitor_of(scope: Scope, on_space: bool) -> str:
    """
    A name for whoever makes a request: on a Space the user who has signed in, else the client's address, of IPv6 its network
    of 64 bits. People behind one address have one name.

    `X-Forwarded-For` is believed on a Space alone, where the proxy writes the last address. Elsewhere everybody whose request
    has it is one visitor: uvicorn takes the client's address from it where a proxy on this machine passes it on, and anybody
    can write anything into it.

    Args:
        scope (`Scope`):
            The request's ASGI scope.
        on_space (`bool`):
            Whether this is a Space.
    """
    forwarded = Headers(scope=scope).getlist("x-forwarded-for")
    if on_space and (user := _signed_in(scope)):
        return f"user {user}"
    if forwarded and not on_space:
        return _BEHIND_A_PROXY
    for host in reversed(",".join(forwarded).split(",")):
        address = _address(host)
        if address is not None and address.is_global:  # others are of proxies inside
            return _network(address)
    address = _address((scope.get("client") or ("",))[0])
    return "unknown" if address is None else _network(address)


def _signed_in(scope: Scope) -> str | None:
    return scope.get("session", {}).get("oauth_info", {}).get("userinfo", {}).get("preferred_username")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(address) if address.version == 4 else str(ipaddress.IPv6Network((int(address), 64), strict=False))
