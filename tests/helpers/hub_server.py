"""A small Hugging Face Hub on 127.0.0.1, spoken to over real HTTP, with faults that tests can order.

Models, datasets and Spaces can be pushed, listed and loaded with `huggingface_hub`, large files by LFS. Every request is
kept in `Hub.log`, without its body, and what the Hub itself stumbled over in `Hub.errors`.
"""

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_repos import LFS_FILES, OTHER, READER, TESTER, USERS, File, Repo, User
from helpers.hub_routes import ROUTES, TYPES, Answer, refusal


__all__ = ["OTHER", "READER", "TESTER", "Hub", "Repo"]


@dataclass
class Record:
    """A request as it arrived, and the status that it was answered with (`None`: closed before any answer)."""

    method: str
    path: str
    headers: dict[str, str]
    status: int | None = None

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Fault:
    """
    What happens to requests of this method in whose path the pattern is found, `times` times (`None`: always): this status,
    or the connection is closed, with `is_over` only then.
    """

    method: str
    path: str
    times: int | None = None
    status: int | None = None
    is_over: threading.Event | None = None


class Listener(ThreadingHTTPServer):
    allow_reuse_port = True  # conftest.py keeps hold of the port
    daemon_threads = True

    def __init__(self, port: int, log: list[Record], answer: Callable[["Handler"], Answer | None]):
        super().__init__(("127.0.0.1", port), Handler)
        self.log, self.answer, self.connections = log, answer, set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            disconnect(connection)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has gone, or the Hub has hung up
            self.close_connection = True

    def answer(self) -> None:
        """Record the request, and send what the server makes of it; `None` closes the connection."""
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.record = Record(self.command, self.url.path, {name.lower(): text for name, text in self.headers.items()})
        self.server.log.append(self.record)
        answer = self.server.answer(self)
        if answer is None:
            self.close_connection = True
            return disconnect(self.connection)
        self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    @property
    def body(self) -> bytes:
        if "content-length" in self.headers:
            return self.rfile.read(int(self.headers["content-length"]))
        data = b""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return data

    def send(self, answer: Answer) -> None:
        data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.record.status = answer.status
        self.send_response(answer.status)
        for name, text in {"Content-Length": str(len(data)), **answer.headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()


def disconnect(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


class Hub:
    """The server and all that it holds."""

    def __init__(self, port: int = 0):
        self.port = port
        self.listener: Listener | None = None
        self.faults: list[Fault] = []
        self.log: list[Record] = []
        self.clear()

    def clear(self) -> None:
        """Back to no repositories, an empty log and no faults."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploaded: dict[str, bytes] = {}
        self.log.clear()
        self.errors: list[Exception] = []
        self.reset_faults()

    def start(self) -> None:
        if self.listener is None:
            self.listener = Listener(self.port, self.log, self._answer)
            self.port = self.listener.server_port

    def stop(self) -> None:
        """Take the Hub down: connections to its port are refused until `start`, which finds all repositories again."""
        if self.listener is not None:
            self.listener.stop()
        self.listener = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Faults

    def reset_faults(self) -> None:
        for fault in self.faults:
            if fault.is_over is not None:
                fault.is_over.set()
        self.faults = []

    def answer(self, status: int, path: str = "", method: str = ".*", times: int | None = None) -> None:
        """Answer matching requests with this status."""
        self.faults.append(Fault(method, path, times, status))

    def hang_up(self, path: str, method: str = ".*", times: int | None = None) -> None:
        """Close the connection of matching requests before anything is done."""
        self.faults.append(Fault(method, path, times))

    def fall_silent(self, path: str = "", method: str = ".*") -> None:
        """Take matching requests and do not answer them."""
        self.faults.append(Fault(method, path, is_over=threading.Event()))

    def _fault_of(self, record: Record) -> Fault | None:
        for fault in self.faults:
            if fault.times != 0 and re.fullmatch(fault.method, record.method) and re.search(fault.path, record.path):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    # For tests, to prepare and to look at

    def add_repo(self, repo: Repo, files: dict[str, bytes] | None = None) -> Repo:
        """Put a repository there without a request, with `files` in its first commit."""
        content = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
        stored = {path: File(data, bool(LFS_FILES.search(path))) for path, data in content.items()}
        repo.commit("main", "initial commit", stored)
        self.repos[repo.type, repo.id] = repo
        return repo

    def repo(self, repo_id: str, type: str = "model") -> Repo:
        return self.repos[type, repo_id]

    def files(self, repo_id: str, type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The bytes of all files at a revision, by their paths."""
        return {path: file.data for path, file in self.repo(repo_id, type).at(revision).files.items()}

    def titles(self, repo_id: str, type: str = "model") -> list[str]:
        """The titles of all commits, the first one first."""
        return [commit.title for commit in self.repo(repo_id, type).commits.values()]

    def requests(self, path: str = "", method: str = ".*") -> list[Record]:
        """The records of the requests of this method in whose path the pattern is found."""
        return [entry for entry in self.log if re.fullmatch(method, entry.method) and re.search(path, entry.path)]

    # Answers

    def _answer(self, request: Handler) -> Answer | None:
        """Let a request's fault happen, or have it answered by its route."""
        if (fault := self._fault_of(request.record)) is not None and fault.status is None:
            if fault.is_over is not None:
                fault.is_over.wait()
            return None
        request.sent = request.body
        if fault is not None:
            return refusal(fault.status, "ordered by a test")
        try:
            return self._routed(request)
        except Answer as early:
            return early
        except Exception as error:
            self.errors.append(error)
            raise

    def _routed(self, request: Handler) -> Answer:
        for method, pattern, needs, route in ROUTES:
            if (found := re.fullmatch(pattern, request.record.path)) and request.command in method:
                names = found.groupdict()
                if needs is not None:
                    repo_type = TYPES.get(names.pop("kind") or "models")
                    names["repo"] = self._opened(request, repo_type, names.pop("id"), needs)
                if "revision" in names:
                    names["revision"] = unquote(names["revision"] or "main")
                    if names["repo"].at(names["revision"]) is None:
                        raise refusal(404, f"Invalid rev id: {names['revision']}", "RevisionNotFound")
                made = route(self, request, **names)
                return made if isinstance(made, Answer) else Answer(made)
        raise refusal(404, "Not Found")

    def user(self, request: Handler) -> User | None:
        token = (request.record.authorization or "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def signed_in(self, request: Handler) -> User:
        if (user := self.user(request)) is None:
            raise refusal(401, "Invalid username or password.")
        return user

    def _opened(self, request: Handler, repo_type: str | None, repo_id: str, to: str) -> Repo:
        """The repository, for a request that wants to `see` it, to `read` its files or to `write`."""
        user, repo = self.user(request), self.repos.get((repo_type, repo_id))
        owns = user is not None and user.name == repo_id.split("/")[0]
        if repo is None or (repo.private and not owns):
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if to == "write" and not (owns and user.role == "write"):
            raise refusal(403 if user else 401, "You don't have the required permissions")
        if to == "read" and repo.gated and not owns:
            raise refusal(403 if user else 401, f"Access to {repo_id} is restricted.", "GatedRepo")
        return repo
