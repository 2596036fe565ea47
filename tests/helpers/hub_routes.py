"""The routes of the test Hub: what `huggingface_hub` 2.4 asks for when it pushes, lists and loads."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

import yaml
from huggingface_hub import ModelCard

from helpers.hub_repos import LFS_FILES, File, Repo


TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
REPO = r"/api/(?P<kind>\w+)/(?P<id>[^/]+/[^/]+)"
GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
# Methods, pattern of the path, what the request wants with the repository (`None`: it names none), function.
ROUTES: list[tuple[str, str, str | None, Callable]] = []


@dataclass
class Answer(Exception):
    """An answer; raised where it ends a route early. `huggingface_hub` chooses its exceptions by the headers."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Answer({"error": message}, status, headers)


def route(methods: str, pattern: str, needs: str | None = None) -> Callable:
    def add(function: Callable) -> Callable:
        ROUTES.append((methods, pattern, needs, function))
        return function

    return add


# Users, cards, and repositories as a whole


@route("GET", "/api/whoami-v2")
def whoami(hub, request):
    user = hub.signed_in(request)
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
    return {"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": auth}


@route("POST", "/api/validate-yaml")
def validate_card(hub, request):
    try:
        ModelCard(json.loads(request.sent)["content"])
    except (ValueError, yaml.YAMLError) as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create(hub, request):
    user, sent = hub.signed_in(request), json.loads(request.sent)
    type, repo_id = sent.get("type") or "model", f"{sent.get('organization') or user.name}/{sent['name']}"
    if user.role != "write" or not repo_id.startswith(f"{user.name}/"):
        raise refusal(403, f"You don't have the rights to create a {type} under this namespace")
    url = f"{hub.url}/{'' if type == 'model' else type + 's/'}{repo_id}"
    if (type, repo_id) in hub.repos:
        return Answer({"error": f"You already created this {type} repo", "url": url}, 409)
    hub.add_repo(Repo(repo_id, type, private=sent.get("visibility") == "private", sdk=sent.get("sdk")))
    return {"url": url, "id": repo_id, "name": repo_id}


@route("GET", "/api/(?P<kind>models|datasets|spaces)")
def list_repos(hub, request, kind):
    user, wanted = hub.user(request), set(request.query.get("filter", ()))
    repos = [repo for (type, _), repo in hub.repos.items() if type == TYPES[kind]]
    found = [repo.described("main") for repo in repos if not repo.private or (user and user.name == repo.owner)]
    authors = request.query.get("author")
    return [repo for repo in found if wanted <= set(repo["tags"]) and (not authors or repo["author"] in authors)]


@route("GET", REPO + "/auth-check/write", "write")
def check_right_to_write(hub, request, repo):
    return {}


# One repository at a revision


@route("GET", f"{REPO}(?:/revision/{REVISION})?", "see")
def repo_info(hub, request, repo, revision):
    return repo.described(revision)


@route("GET", f"{REPO}/tree/{REVISION}(?P<path>/.*)?", "see")
def tree(hub, request, repo, revision, path):
    start = unquote(path or "").strip("/") + "/"
    start, is_recursive, found = start.lstrip("/"), request.query["recursive"] == ["true"], {}
    for name, file in sorted(repo.at(revision).files.items()):
        folder, is_below, _ = name.removeprefix(start).partition("/")
        if name.startswith(start) and is_below and not is_recursive:
            found[folder] = {"type": "directory", "path": start + folder, "oid": "0" * 40, "size": 0}
        elif name.startswith(start):
            found[name] = {"type": "file", "path": name, **file.listed()}
    if start and not found:
        raise refusal(404, "Path does not exist", "EntryNotFound")
    return list(found.values())


# Pushes


@route("POST", f"{REPO}/branch/(?P<branch>[^/]+)", "write")
def create_branch(hub, request, repo, branch):
    if branch in repo.branches:
        raise refusal(409, f"Reference {branch} already exists")
    repo.branches[unquote(branch)] = repo.branches["main"]


@route("POST", f"{REPO}/preupload/{REVISION}", "write")
def preupload(hub, request, repo, revision):
    def way(path, sample, size):
        is_lfs = bool(LFS_FILES.search(path)) or b"\0" in base64.b64decode(sample)
        file = repo.at(revision).files.get(path)
        known = {"oid": file.sha256 if file.is_lfs else file.oid} if file else {}
        return {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, **known}

    return {"files": [way(file["path"], file["sample"], file["size"]) for file in json.loads(request.sent)["files"]]}


@route("POST", GIT + r"\.git/info/lfs/objects/batch", "write")
def lfs_batch(hub, request, repo):
    def wanted(oid, size):
        upload = {"actions": {"upload": {"href": f"{hub.url}/_lfs/{oid}"}}}
        return {"oid": oid, "size": size, **({} if oid in hub.uploaded else upload)}

    objects = json.loads(request.sent)["objects"]
    return {"transfer": "basic", "objects": [wanted(item["oid"], item["size"]) for item in objects]}


@route("PUT", "/_lfs/(?P<oid>.*)")
def lfs_upload(hub, request, oid):
    if sha256(request.sent).hexdigest() != oid:
        raise refusal(400, "The sha256 is another one")
    hub.uploaded[oid] = request.sent


@route("POST", f"{REPO}/commit/{REVISION}", "write")
def commit(hub, request, repo, revision):
    header, *changes = [json.loads(line) for line in request.sent.splitlines() if line.strip()]
    files = dict(repo.at(revision).files)
    for change in changes:
        key, value = change["key"], change["value"]
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
        elif key == "lfsFile":
            files[value["path"]] = File(hub.uploaded[value["oid"]], is_lfs=True)
        elif key == "deletedFile":
            files.pop(value["path"], None)
        else:
            raise refusal(400, f"This Hub knows no {key}")
    made = repo.commit(revision, header["value"]["summary"], files)
    kind = "" if repo.type == "model" else f"{repo.type}s/"
    return {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{kind}{repo.id}/commit/{made.oid}"}


# Downloads


@route("GET HEAD", f"{GIT}/resolve/{REVISION}/(?P<path>.+)", "read")
def resolve(hub, request, repo, revision, path):
    commit = repo.at(revision)
    headers = {"X-Repo-Commit": commit.oid}
    if (file := commit.files.get(unquote(path))) is None:
        raise Answer(None, 404, {**headers, "X-Error-Message": "Entry not found", "X-Error-Code": "EntryNotFound"})
    headers["ETag"] = f'"{file.sha256 if file.is_lfs else file.oid}"'
    if file.is_lfs:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(file.data))}
    return Answer(file.data, 200, headers)
