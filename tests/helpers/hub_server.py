"""A small Hugging Face Hub on 127.0.0.1, spoken to over real HTTP, with faults that tests can order.

Models, datasets and Spaces can be pushed, listed and loaded with `huggingface_hub`, by LFS and by Xet. There is no Xet
server: given a `local://` address `hf_xet` keeps its chunks in that folder by itself, and the Hub takes committed files
from there. `hub_repos.py` has what it holds and `hub_routes.py` how it answers. Every request is kept in `Hub.log`,
without its body, and what the Hub itself stumbled over in `Hub.errors`.
"""

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256 as hash_of
from pathlib import Path

import uvicorn
from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse
from helpers.hub_repos import LFS_FILES, OTHER, READER, TESTER, USERS, File, HubError, Repo, User, git_oid, xet_hashes
from helpers.hub_routes import hub_app


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
    """What happens to requests of this method in whose path the pattern is found, `times` times (`None`: always)."""

    kind: str
    method: str
    path: str
    times: int | None
    status: int = 500


class BodyCut(Exception):
    """Ends an answer early: uvicorn closes the connection when an application stops before the last byte."""


class Listener:
    """An ASGI application on 127.0.0.1, in a thread of its own. The port of the first start is kept for later ones."""

    def __init__(self, app: Callable, port: int = 0):
        self.app = app
        self.port = port
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        if self.thread is not None:
            return
        listening = socket.socket()
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):  # the second because conftest.py keeps hold of the port
            if hasattr(socket, option):
                listening.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        options = {"interface": "asgi3", "lifespan": "off", "ws": "none", "proxy_headers": False}
        config = uvicorn.Config(self.app, log_level="critical", **options)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        if self.thread is not None:
            self.server.should_exit = self.server.force_exit = True
            self.thread.join(10)
            self.thread = None


class Hub:
    """The server and all that it holds. `folder` takes the files' bytes."""

    def __init__(self, folder: Path, port: int = 0):
        self.folder = folder
        self.routes = hub_app(self)
        self.listener = Listener(self._serve, port)
        self.storage = Listener(self._serve_storage)
        self.clear()

    def clear(self) -> None:
        """Back to no repositories, empty logs, no faults and no Xet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for blob in self.folder.iterdir():
            blob.unlink()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[Record] = []
        self.errors: list[Exception] = []
        self.storage_log: list[Record] = []
        self.xet_folder: Path | None = None
        self.xet_hashes: dict[str, str] = {}
        self.reset_faults()

    def start(self) -> None:
        self.listener.start()

    def stop(self) -> None:
        """Take the Hub down: connections to its port are refused until `start`, which finds all repositories again."""
        self.listener.stop()
        self.storage.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}"

    def use_xet(self, folder: Path | None) -> None:
        """Offer Xet with this folder as its storage (`None`: no longer). A client decides by itself whether to use it."""
        self.xet_folder = folder

    @property
    def xet_address(self) -> str:
        return "http://127.0.0.1:9" if self.xet_is_down else f"local://{self.xet_folder}"

    # Faults

    def reset_faults(self) -> None:
        self.faults: list[Fault] = []
        self.redirects = False
        self.xet_is_down = False

    def answer(self, status: int, path: str = "", method: str = ".*", times: int | None = None) -> None:
        """Answer matching requests with this status."""
        self.faults.append(Fault("answer", method, path, times, status))

    def cut_download(self, path: str = "/resolve/", times: int | None = 1) -> None:
        """Send the first half of the body of matching GET requests, then close the connection."""
        self.faults.append(Fault("cut download", "GET", path, times))

    def cut_upload(self, path: str = "^/_lfs/", method: str = "PUT|POST", times: int | None = 1) -> None:
        """Close the connection after the first part of the body of matching requests, before anything is done."""
        self.faults.append(Fault("cut upload", method, path, times))

    def lose_answer(self, path: str, method: str = "PUT|POST", times: int | None = 1) -> None:
        """Do what matching requests ask, then close the connection without an answer."""
        self.faults.append(Fault("lose answer", method, path, times))

    def fall_silent(self, path: str = "", method: str = ".*", times: int | None = None) -> None:
        """Take matching requests and never answer them."""
        self.faults.append(Fault("silence", method, path, times))

    def redirect_downloads(self) -> None:
        """Send downloads of LFS files on to http://localhost at another port; `storage_log` has what arrives there."""
        self.storage.start()
        self.redirects = True

    def break_xet(self) -> None:
        """Give the address of a Xet storage that is down."""
        self.xet_is_down = True

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
        stored = {path: self.store(data, lfs=bool(LFS_FILES.search(path))) for path, data in content.items()}
        repo.commit("main", "initial commit", repo.id.split("/")[0], stored)
        self.repos[repo.type, repo.id] = repo
        return repo

    def repo(self, repo_id: str, type: str = "model") -> Repo:
        return self.repos[type, repo_id]

    def files(self, repo_id: str, type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The bytes of all files at a revision, by their paths."""
        files = self.repo(repo_id, type).at(revision).files
        return {path: self.blob(file.sha256).read_bytes() for path, file in files.items()}

    def requests(self, path: str = "", method: str = ".*") -> list[Record]:
        """The records of the requests of this method in whose path the pattern is found."""
        return [entry for entry in self.log if re.fullmatch(method, entry.method) and re.search(path, entry.path)]

    # Bytes

    def blob(self, sha256: str) -> Path:
        return self.folder / sha256

    def store(self, data: bytes, lfs: bool = False) -> File:
        sha256 = hash_of(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return self.lfs_file(sha256) if lfs else File(sha256, len(data), git_oid(data), lfs=False)

    def lfs_file(self, sha256: str) -> File:
        """A large file whose bytes were uploaded before."""
        blob = self.blob(sha256)
        if not blob.exists() and self.xet_folder:
            self._fetch_from_xet(sha256)
        if not blob.exists():
            raise HubError(400, "LFS pointer pointed to a file that does not exist")
        size = blob.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(sha256, size, git_oid(pointer.encode()), lfs=True)

    def _fetch_from_xet(self, sha256: str) -> None:
        import hf_xet

        for shard in self.xet_folder.glob("xet/xorbs/shards/*.mdb"):
            self.xet_hashes |= xet_hashes(shard.read_bytes())
        if sha256 in self.xet_hashes:
            storage = {"endpoint": f"local://{self.xet_folder}", "token": "xet"}
            expiry = int(time.time()) + 3600
            with hf_xet.XetSession().new_file_download_group(**storage, token_expiry_unix_secs=expiry) as group:
                group.start_download_file(hf_xet.XetFileInfo(self.xet_hashes[sha256], None), str(self.blob(sha256)))

    # Who may do what

    def user(self, request: Request) -> User | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def signed_in(self, request: Request) -> User:
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def open(self, request: Request, type: str | None, repo_id: str, to: str = "see") -> Repo:
        """The repository, for a request that wants to `see` it, to `read` its files or to `write`."""
        user, repo = self.user(request), self.repos.get((type, repo_id))
        owns = user is not None and user.owns(repo_id)
        if repo is None or (repo.private and not owns):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if to == "write" and not (owns and user.role == "write"):
            raise HubError(403 if user else 401, "You don't have the required permissions")
        if to == "read" and repo.gated and not owns and (user is None or user.name not in repo.readers):
            raise HubError(403 if user else 401, f"Access to {type} {repo_id} is restricted.", "GatedRepo")
        return repo

    # The two ASGI applications

    async def _serve(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Record a request, then let its fault happen or have it answered by the routes."""
        record = recorded(scope, self.log)
        fault = self._fault_of(record)
        kind = fault.kind if fault else None
        unsent = float("inf")

        async def send_on(message: dict) -> None:
            nonlocal unsent
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if kind == "cut download":
                    unsent = int(dict(message["headers"])[b"content-length"]) // 2
            body = message.get("body", b"")
            if len(body) > unsent:
                await send({**message, "body": body[:unsent], "more_body": True})
                raise BodyCut
            unsent -= len(body)
            await send(message)

        async def send_nothing(message: dict) -> None:
            pass

        if kind == "answer":
            message = "ordered by a test"
            refusal = JSONResponse({"error": message}, fault.status, {"X-Error-Message": message})
            await refusal(scope, receive, send_on)
        elif kind == "cut upload":
            await receive()
            hang_up(receive)
        elif kind == "silence":
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            try:
                asked = scope | {"path": record.path}
                await self.routes(asked, receive, send_nothing if kind == "lose answer" else send_on)
            except BodyCut:
                return
            except Exception as error:
                self.errors.append(error)
                raise
            if kind == "lose answer":
                hang_up(receive)

    async def _serve_storage(self, scope: dict, receive: Callable, send: Callable) -> None:
        """The other host that downloads are redirected to."""
        recorded(scope, self.storage_log).status = 200
        await FileResponse(self.blob(scope["path"].strip("/")))(scope, receive, send)


def recorded(scope: dict, log: list[Record]) -> Record:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    record = Record(scope["method"], scope["raw_path"].decode(), headers)
    log.append(record)
    return record


def hang_up(receive: Callable) -> None:
    """Close the connection without an answer. ASGI has no word for it, so this reaches for uvicorn's own object."""
    receive.__self__.transport.abort()
