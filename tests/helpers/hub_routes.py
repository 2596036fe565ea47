"""The routes of the test Hub: what `huggingface_hub` 2.4 asks for when it pushes, lists and loads."""

import base64
import hashlib
import json
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, unquote

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from helpers.hub_repos import LFS_FILES, Commit, File, HubError, Repo, card_data, card_errors, card_tags, git_oid


if TYPE_CHECKING:
    from helpers.hub_server import Hub

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = 10 * 2**20


def hub_app(hub: "Hub") -> FastAPI:
    """The routes. They get paths as they were sent, so a slash in the name of a branch is `%2F` still."""
    app = FastAPI(openapi_url=None)

    @app.exception_handler(HubError)
    async def refuse(request: Request, error: HubError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status, error.headers)

    # What the routes of a repository are given

    async def opened(request: Request, owner: str, name: str, kind: str = "models") -> Repo:
        return hub.open(request, TYPES.get(kind), f"{owner}/{name}")

    async def opened_to_read(request: Request, owner: str, name: str, kind: str = "models") -> Repo:
        return hub.open(request, TYPES.get(kind), f"{owner}/{name}", to="read")

    async def opened_to_write(request: Request, owner: str, name: str, kind: str = "models") -> Repo:
        return hub.open(request, TYPES.get(kind), f"{owner}/{name}", to="write")

    async def unquoted_revision(revision: str = "main") -> str:
        return unquote(revision)

    async def sent_json(request: Request) -> Any:
        return json.loads(await request.body() or b"{}")

    Seen = Annotated[Repo, Depends(opened)]
    Readable = Annotated[Repo, Depends(opened_to_read)]
    Writable = Annotated[Repo, Depends(opened_to_write)]
    Revision = Annotated[str, Depends(unquoted_revision)]
    Sent = Annotated[Any, Depends(sent_json)]
    repo_path = "/api/{kind}/{owner}/{name}"

    # Users, cards, and repositories as a whole

    @app.get("/api/whoami-v2")
    async def whoami(request: Request):
        user = hub.signed_in(request)
        access = {"displayName": "test", "role": user.role}
        orgs = [{"type": "org", "name": name} for name in user.orgs]
        auth = {"type": "access_token", "accessToken": access}
        return {"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}

    @app.post("/api/validate-yaml")
    async def validate_card(sent: Sent):
        errors = [{"message": message} for message in card_errors(sent["content"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    @app.post("/api/repos/create")
    async def create(request: Request, sent: Sent):
        user, type = hub.signed_in(request), sent.get("type") or "model"
        repo_id = f"{sent.get('organization') or user.name}/{sent['name']}"
        if user.role != "write" or not user.owns(repo_id):
            raise HubError(403, f"You don't have the rights to create a {type} under this namespace")
        url = f"{hub.url}/{'' if type == 'model' else type + 's/'}{repo_id}"
        if (type, repo_id) in hub.repos:
            return JSONResponse({"error": f"You already created this {type} repo", "url": url}, 409)
        repo = hub.add_repo(Repo(repo_id, type, private=sent.get("visibility") == "private", sdk=sent.get("sdk")))
        repo.hardware = sent.get("hardware") or repo.hardware
        repo.secrets = {secret["key"]: secret["value"] for secret in sent.get("secrets", [])}
        repo.variables = {variable["key"]: variable["value"] for variable in sent.get("variables", [])}
        return {"url": url, "id": repo_id, "name": repo_id}

    @app.delete("/api/repos/delete")
    async def delete(request: Request, sent: Sent):
        type, owner = sent.get("type") or "model", sent.get("organization") or hub.signed_in(request).name
        repo = hub.open(request, type, f"{owner}/{sent['name']}", to="write")
        del hub.repos[repo.type, repo.id]

    @app.get(repo_path + "/auth-check/write")
    async def check_right_to_write(repo: Writable):
        return {}

    @app.put(repo_path + "/settings")
    async def settings(repo: Writable, sent: Sent):
        repo.private = sent["visibility"] == "private" if "visibility" in sent else repo.private
        repo.gated = sent.get("gated", repo.gated)
        return {"private": repo.private, "gated": repo.gated}

    @app.get("/api/{kind}")
    async def list_repos(request: Request, kind: str):
        if kind not in TYPES:  # as huggingface_hub with telemetry asks for /api/agent-harnesses
            raise HubError(404, "Not Found")
        user, query = hub.user(request), request.query_params
        rows = [
            described(repo, repo.at("main"))
            for (type, repo_id), repo in hub.repos.items()
            if type == TYPES[kind] and (not repo.private or (user is not None and user.owns(repo_id)))
        ]
        wanted_tags = set(query.getlist("filter"))
        rows = [
            row
            for row in rows
            if wanted_tags <= set(row["tags"])
            and query.get("author", row["author"]) == row["author"]
            and query.get("search", "").lower() in row["id"].lower()
        ]
        first, number = int(query.get("cursor", 0)), int(query.get("limit", 1000))
        following = request.url.include_query_params(cursor=first + number)
        more = {"Link": f'<{following}>; rel="next"'} if first + number < len(rows) else {}
        return JSONResponse(rows[first : first + number], headers=more)

    # One repository at a revision

    def described(repo: Repo, commit: Commit, with_sizes: bool = False) -> dict[str, Any]:
        card = {}
        if "README.md" in commit.files:
            text = hub.blob(commit.files["README.md"].sha256).read_text(encoding="utf-8")
            card = card_data(text) if not card_errors(text) else {}
        files = sorted(commit.files.items())
        of_space = {"sdk": repo.sdk, "runtime": repo.runtime()} if repo.type == "space" else {}
        return {
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": repo.created,
            "lastModified": commit.date,
            "tags": card_tags(card, commit.files),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card or None,
            "siblings": [{"rfilename": path, **(file.listed() if with_sizes else {})} for path, file in files],
            **of_space,
        }

    def entry(path: str, file: File | None) -> dict[str, Any]:
        if file is None:
            return {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
        xet = {"xetHash": hub.xet_hashes[file.sha256]} if file.sha256 in hub.xet_hashes else {}
        return {"type": "file", "path": path, **file.listed(), **xet}

    @app.get(repo_path)
    @app.get(repo_path + "/revision/{revision}")
    async def repo_info(request: Request, repo: Seen, revision: Revision):
        return described(repo, repo.at(revision), "blobs" in request.query_params)

    @app.get(repo_path + "/tree/{revision}")
    @app.get(repo_path + "/tree/{revision}/{path:path}")
    async def tree(repo: Seen, revision: Revision, path: str = "", recursive: bool = False):
        start = f"{unquote(path).strip('/')}/" if path else ""
        found: dict[str, File | None] = {}
        for name, file in sorted(repo.at(revision).files.items()):
            below = name.removeprefix(start).split("/") if name.startswith(start) else []
            for depth in range(1, (len(below) if recursive else min(1, len(below))) + 1):
                found[start + "/".join(below[:depth])] = file if depth == len(below) else None
        if start and not found:
            raise HubError(404, "Path does not exist", "EntryNotFound")
        return [entry(name, file) for name, file in found.items()]

    @app.post(repo_path + "/paths-info/{revision}")
    async def paths_info(request: Request, repo: Seen, revision: Revision):
        files = repo.at(revision).files
        paths = parse_qs((await request.body()).decode()).get("paths", [])
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
        return [entry(path, files.get(path)) for path in paths if path in files or path in folders]

    @app.get(repo_path + "/commits/{revision}")
    async def commits(repo: Seen, revision: Revision):
        commit, rows = repo.at(revision), []
        while commit:
            row = {"id": commit.oid, "title": commit.title, "message": "", "date": commit.date}
            rows.append(row | {"authors": [{"user": commit.author}]})
            commit = repo.commits.get(commit.parent)
        return rows

    # Branches and tags

    @app.get(repo_path + "/refs")
    async def refs(repo: Seen):
        def listed(folder: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}

    def add_reference(names: dict[str, str], name: str, oid: str) -> dict[str, Any]:
        if name in names:
            raise HubError(409, f"Reference {name} already exists")
        names[name] = oid
        return {}

    def remove_reference(names: dict[str, str], name: str) -> None:
        if names.pop(name, None) is None:
            raise HubError(404, f"Reference {name} does not exist", "RevisionNotFound")

    @app.post(repo_path + "/branch/{revision}")
    async def create_branch(repo: Writable, revision: Revision, sent: Sent):
        return add_reference(repo.branches, revision, repo.at(sent.get("startingPoint") or "main").oid)

    @app.delete(repo_path + "/branch/{revision}")
    async def delete_branch(repo: Writable, revision: Revision):
        remove_reference(repo.branches, revision)

    @app.post(repo_path + "/tag/{revision}")
    async def create_tag(repo: Writable, revision: Revision, sent: Sent):
        return add_reference(repo.tags, sent["tag"], repo.at(revision).oid)

    @app.delete(repo_path + "/tag/{revision}")
    async def delete_tag(repo: Writable, revision: Revision):
        remove_reference(repo.tags, revision)

    # Pushes

    @app.post(repo_path + "/preupload/{revision}")
    async def preupload(repo: Writable, revision: Revision, sent: Sent):
        present = repo.at(revision).files

        def way(path: str, size: int, sample: bytes) -> dict[str, Any]:
            lfs = bool(LFS_FILES.search(path)) or size > LARGE or b"\0" in sample
            file = present.get(path)
            known = {"oid": file.sha256 if file.lfs else file.oid} if file else {}
            return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known}

        return {"files": [way(f["path"], f["size"], base64.b64decode(f["sample"])) for f in sent["files"]]}

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    @app.post("/{kind}/{owner}/{name}.git/info/lfs/objects/batch")
    async def lfs_batch(repo: Writable, sent: Sent):
        def wanted(oid: str, size: int) -> dict[str, Any]:
            upload = {"actions": {"upload": {"href": f"{hub.url}/_lfs/{oid}"}}}
            return {"oid": oid, "size": size, **({} if hub.blob(oid).exists() else upload)}

        return {"transfer": "basic", "objects": [wanted(item["oid"], item["size"]) for item in sent["objects"]]}

    @app.put("/_lfs/{oid}")
    async def lfs_upload(request: Request, oid: str):
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, "The sha256 is another one")
        hub.store(data)
        return Response()

    @app.post(repo_path + "/commit/{revision}")
    async def commit(request: Request, repo: Writable, revision: Revision):
        header, *changes = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        parent, header = repo.at(revision), header["value"]
        if not parent.oid.startswith(header.get("parentCommit") or ""):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for change in changes:
            key, value = change["key"], change["value"]
            if key == "file":
                files[value["path"]] = hub.store(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = hub.lfs_file(value["oid"])
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
            else:
                raise HubError(400, f"This Hub knows no {key}")
        made = repo.commit(revision, header["summary"], hub.signed_in(request).name, files)
        folder = "" if repo.type == "model" else f"{repo.type}s/"
        return {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{folder}{repo.id}/commit/{made.oid}"}

    # Downloads

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(repo: Readable, revision: Revision, path: str):
        commit = repo.at(revision)
        file = commit.files.get(unquote(path))
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{file.sha256 if file.lfs else file.oid}"'
        if file.lfs:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(file.size)}
        if hub.xet_folder and file.sha256 in hub.xet_hashes:
            refresh = f"{hub.url}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": hub.xet_hashes[file.sha256], "X-Xet-Refresh-Route": refresh}
        if file.lfs and hub.redirects:
            return RedirectResponse(f"http://localhost:{hub.storage.port}/{file.sha256}", 302, headers)
        return FileResponse(hub.blob(file.sha256), headers=headers)

    def xet_token() -> JSONResponse:
        if hub.xet_folder is None:
            raise HubError(404, "This Hub has no Xet storage now")
        # Under the 60 seconds for which huggingface_hub would remember the address, which a fault may change.
        address, expiry = hub.xet_address, int(time.time()) + 45
        token = {"casUrl": address, "accessToken": "xet", "exp": expiry}
        headers = {
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expiry),
        }
        return JSONResponse(token, headers=headers)

    @app.get(repo_path + "/xet-read-token/{revision}")
    async def xet_read_token(repo: Readable):
        return xet_token()

    @app.get(repo_path + "/xet-write-token/{revision}")
    async def xet_write_token(repo: Writable):
        return xet_token()

    # Spaces

    @app.get("/api/spaces/{owner}/{name}/runtime")
    async def space_runtime(request: Request, owner: str, name: str):
        return hub.open(request, "space", f"{owner}/{name}").runtime()

    @app.post(repo_path + "/hardware")
    async def request_hardware(repo: Writable, sent: Sent):
        repo.hardware = sent["flavor"]
        return repo.runtime()

    def variables_of(repo: Repo) -> dict[str, Any]:
        return {key: {"key": key, "value": value} for key, value in repo.variables.items()}

    @app.get(repo_path + "/variables")
    async def list_variables(repo: Writable):
        return variables_of(repo)

    @app.post(repo_path + "/variables")
    async def add_variable(repo: Writable, sent: Sent):
        repo.variables[sent["key"]] = sent["value"]
        return variables_of(repo)

    @app.get(repo_path + "/secrets")
    async def list_secrets(repo: Writable):
        return {key: {"key": key} for key in repo.secrets}

    @app.post(repo_path + "/secrets")
    async def add_secret(repo: Writable, sent: Sent):
        repo.secrets[sent["key"]] = sent["value"]
        return {}

    return app
