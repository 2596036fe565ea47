"""A small Hugging Face Hub on 127.0.0.1, spoken to over real HTTP, with faults that tests can order.

Models, datasets and Spaces can be pushed, listed and loaded with `huggingface_hub`, large files by LFS. Every request is
kept in `Hub.log`, without its body, and what the Hub itself stumbled over in `Hub.errors`.
"""

import json
import re
import threading
from contextlib import suppress
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
    authorization: str | None
    status: int | None = None


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


class Handler(BaseHTTPRequestHandler):
    """A request, the only one of its connection."""

    hub: "Hub"
    wbufsize = -1  # an answer in one packet

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            super().handle()

    def answer(self) -> None:
        """Record the request, and send what the Hub makes of it; after `None` the connection is closed."""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.record = Record(self.command, url.path, self.headers["authorization"])
        self.hub.log.append(self.record)
        if (answer := self.hub.answer_to(self)) is None:
            return
        data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.record.status = answer.status
        self.send_response(answer.status)
        for name, text in {"Content-Length": str(len(data)), **answer.headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = answer


class Hub:
    """The server and all that it holds."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
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
            self.listener = Listener(("127.0.0.1", self.port), type("Handler", (Handler,), {"hub": self}))
            threading.Thread(target=self.listener.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Take the Hub down: connections to its port are refused until `start`, which finds all repositories again."""
        if self.listener is not None:
            self.listener.shutdown()
            self.listener.server_close()
        self.listener = None

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

    def answer_to(self, request: Handler) -> Answer | None:
        """Let a request's fault happen, or have it answered by its route."""
        if (fault := self._fault_of(request.record)) is not None and fault.status is None:
            if fault.is_over is not None:
                fault.is_over.wait()
            return None
        request.sent = request.rfile.read(int(request.headers.get("content-length", 0)))
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
