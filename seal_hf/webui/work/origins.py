"""Where a request comes from: the page itself, a page of another site, or somebody behind a proxy."""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit


# What `--host` may be for a page that only this machine reaches.
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_OF_A_PROXY = ("forwarded", "x-forwarded-", "x-real-ip", "via")


def is_foreign(headers: Mapping[str, str], on_space: bool) -> bool:
    """
    Whether a page of another site makes a request.

    A browser says in `Origin` whose page it is. A program says nothing.

    Args:
        headers (`Mapping[str, str]`):
            The request's headers by their names in lower case.
        on_space (`bool`):
            Whether this is a Space, whose hosts are in `SPACE_HOST`. Elsewhere the page's host is the one that was asked for,
            with its port.
    """
    origin = headers.get("origin")
    if origin is None:
        return False
    if on_space:
        hosts = os.environ.get("SPACE_HOST", "").split(",")
        return origin.lower() not in {f"https://{host.strip().lower()}" for host in hosts if host.strip()}
    # The scheme may differ: a proxy may add TLS. Who may use a token is asked more strictly.
    return urlsplit(origin.lower()).netloc != headers.get("host", "").lower()


def is_local(headers: Mapping[str, str]) -> bool:
    """
    Whether a request is by the user of this machine: it names this machine, came through no proxy, and is made by the app's
    own page or by a program. A request from another site that reaches this machine names that site.

    Args:
        headers (`Mapping[str, str]`):
            As in [`is_foreign`].
    """
    host = headers.get("host", "").lower()
    if not _LOCAL_HOST.fullmatch(host) or any(name.lower().startswith(_OF_A_PROXY) for name in headers):
        return False
    return headers.get("origin", f"http://{host}").lower() == f"http://{host}"
