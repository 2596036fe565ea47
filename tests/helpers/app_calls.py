"""What programs and pages ask of the app over HTTP, and the cookie of a visitor of a Space."""

import base64
import contextlib
import functools
import hashlib
import json
import secrets
import time
from collections.abc import Iterator

import httpx2


class Refused(Exception):
    """The server refused a call; the text is what it said."""


def client_of(url, **headers) -> httpx2.Client:
    """A client without cookies of its own. There is no TLS, so it needs no certificates, which take long to load."""
    return httpx2.Client(base_url=url, timeout=60, verify=False, headers=headers)


def called(url, name, data, **headers):
    """
    Calls an endpoint as a program does: `called(url, "ask", [session, question], **headers)`.

    Returns what the endpoint returned, as a list. Raises `Refused` with its message, which is `"None"` where Gradio hides it.
    """
    with client_of(url, **headers) as client:
        answer = client.post(f"gradio_api/call/{name}", json={"data": data})
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text}")
        lines = client.get(f"gradio_api/call/{name}/{answer.json()['event_id']}").text.splitlines()
    event, data = [line.partition(": ")[2] for line in lines if line.startswith(("event: ", "data: "))][-2:]
    if event != "complete":
        raise Refused(str((json.loads(data) or {}).get("error")))
    return json.loads(data)


def pressed(url, number, data, *, is_queued=True, page=None, **headers):
    """
    Does what the page does for its handler of this number. Returns the last `{"data": ...}` or `{"error": ...}` of the server.

    `page` is the name of the page that it is done on, by default a new one; a list offers what an earlier event on its page put
    there.
    """
    body = {"data": data, "fn_index": number, "session_hash": page or secrets.token_hex(8)}
    with client_of(url, **headers) as client:
        answer = client.post(f"gradio_api/{'queue/join' if is_queued else 'run/predict'}", json=body)
        if answer.status_code != 200:
            return {"error": answer.text}
        if not is_queued:
            return answer.json()
        lines = client.get("gradio_api/queue/data", params={"session_hash": body["session_hash"]}).text.splitlines()
    messages = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return next(message["output"] for message in messages if message["msg"] == "process_completed")


@functools.cache
def handlers(url) -> dict[str, dict]:
    """What Gradio tells of each of the page's handlers (`id`, `queue`, `inputs`), by its name. It numbers equal names."""
    with client_of(url) as client:
        return {handler["api_name"]: handler for handler in client.get("config").json()["dependencies"]}


def uploaded(url, name, content, **headers) -> dict[str, object]:
    """An uploaded file, as endpoints take it."""
    with client_of(url, **headers) as client:
        answer = client.post("gradio_api/upload", files={"files": (name, content)})
    if answer.status_code != 200:
        raise Refused(f"{answer.status_code} {answer.text}")
    return file_at(answer.json()[0], orig_name=name)


def file_at(path, **fields) -> dict[str, object]:
    """What a program gives as a file at a path."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


def signed_in(token, secret, username="tester") -> str:
    """The cookie that Gradio gives a visitor who has signed in, signed with the secret of a Space."""
    from itsdangerous import TimestampSigner

    info = {
        "access_token": token,
        "scope": "contribute-repos",
        "expires_at": int(time.time()) + 600,
        "userinfo": {"preferred_username": username, "name": username},
    }
    content = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    return f"session={TimestampSigner(key).sign(content).decode()}"


class ToolClient:
    """
    An MCP client over HTTP: JSON-RPC, whose answers come as an event.

    Parameters:
        url (`str`):
            The app's address.
        headers (`str`):
            What is sent with each request.
    """

    def __init__(self, url: str, **headers: str):
        self._client = client_of(url, accept="application/json, text/event-stream", **headers)
        self._count = 0

    def request(self, method: str, **parameters: object) -> dict:
        """The result of a request. Raises `Refused` where the server answers with an error."""
        self._count += 1
        body = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": parameters}
        answer = self._client.post("gradio_api/mcp/", json=body)
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text}")
        line = next(line for line in answer.text.splitlines() if line.startswith("data: "))
        message = json.loads(line.removeprefix("data: "))
        if "error" in message:
            raise Refused(message["error"]["message"])
        return message["result"]

    def notify(self, method: str) -> None:
        self._client.post("gradio_api/mcp/", json={"jsonrpc": "2.0", "method": method}).raise_for_status()

    def tool(self, name: str, **arguments: object) -> str:
        """The text that a tool returns. Raises `Refused` where it fails."""
        result = self.request("tools/call", name=name, arguments=arguments)
        text = result["content"][0]["text"]
        if result.get("isError"):
            raise Refused(text)
        return text


@contextlib.contextmanager
def tools_of(url: str, **headers: str) -> Iterator[ToolClient]:
    """A client of the app's MCP server that has introduced itself."""
    client = ToolClient(url, **headers)
    with client._client:
        about = {"name": "test", "version": "1"}
        client.request("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=about)
        client.notify("notifications/initialized")
        yield client
