"""What the test Hub of `hub_server.py` holds: users, repositories, their commits, and what it reads in a card."""

import hashlib
import re
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml


LFS_FILES = re.compile(r"\.(safetensors|bin|pt|pth|parquet|zip|npz)$|tfevents")
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
CARD = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


@dataclass(frozen=True)
class User:
    name: str
    token: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


TESTER = User("tester", "hf_SealTesterWriteTokenNeverStored", orgs=("seal-org",))
READER = User("reader", "hf_SealReaderReadTokenNeverStored", role="read")
OTHER = User("other", "hf_SealOtherWriteTokenNeverStored")
USERS = {user.token: user for user in (TESTER, READER, OTHER)}


@dataclass(frozen=True)
class File:
    """A file of a commit; its bytes lie in the Hub's folder under `sha256`."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    def listed(self) -> dict[str, Any]:
        pointer = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return {"size": self.size, "oid": self.oid, "blobId": self.oid, **({"lfs": pointer} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository. `readers` are the users whom a gated one lets in; the last four fields are those of a Space."""

    id: str
    type: str = "model"
    private: bool = False
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)
    created: str = field(default_factory=lambda: timestamp())
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    sdk: str | None = None
    hardware: str = "cpu-basic"
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit id names."""
        commit = self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, branch: str, title: str, author: str, files: dict[str, File]) -> Commit:
        oid = hashlib.sha1(f"{time.time_ns()} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, self.branches.get(branch), title, author, timestamp(), files)
        self.branches[branch] = oid
        return self.commits[oid]

    def runtime(self) -> dict[str, Any]:
        hardware = {"current": self.hardware, "requested": self.hardware}
        return {"stage": "RUNNING", "hardware": hardware, "gcTimeout": None, "replicas": {"requested": 1}}


class HubError(Exception):
    """An answer other than success, with the headers from which `huggingface_hub` chooses its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_data(text: str) -> dict[str, Any]:
    """The YAML at the top of a README. A `yaml.YAMLError` says what is wrong with it."""
    block = CARD.match(text)
    return (yaml.safe_load(block[1]) if block else None) or {}


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def card_errors(text: str) -> list[str]:
    """What the Hub says against a README's metadata."""
    try:
        card = card_data(text)
    except yaml.YAMLError as error:
        return [f"YAML metadata: {error}"]
    if not isinstance(card, dict):
        return ["YAML metadata must be a mapping"]
    errors = [
        f'"{key}" with value {value!r} is not valid'
        for key, pattern in (("base_model", MODEL_ID), ("license", LICENSE))
        for value in as_list(card.get(key))
        if not (isinstance(value, str) and pattern.fullmatch(value))
    ]
    if "model-index" in card and not is_model_index(card["model-index"]):
        errors.append('"model-index" is malformed')
    return errors


def is_model_index(index: Any) -> bool:
    """Whether this is `[{name, results: [{task: {type}, dataset: {name, type}, metrics: [{type, value}]}]}]`."""

    def has(value: Any, *keys: str) -> bool:
        return isinstance(value, dict) and all(value.get(key) is not None for key in keys)

    def is_result(result: Any) -> bool:
        return (
            has(result, "task", "dataset", "metrics")
            and has(result["task"], "type")
            and has(result["dataset"], "name", "type")
            and isinstance(result["metrics"], list)
            and all(has(metric, "type", "value") for metric in result["metrics"])
        )

    return isinstance(index, list) and all(
        has(model, "name", "results") and isinstance(model["results"], list) and all(map(is_result, model["results"]))
        for model in index
    )


def card_tags(card: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The tags that the Hub gives a repository by its card and the names of its files."""
    tags = as_list(card.get("library_name")) + as_list(card.get("tags"))
    tags += [f"dataset:{name}" for name in as_list(card.get("datasets"))]
    tags += [f"license:{name}" for name in as_list(card.get("license"))]
    for base in as_list(card.get("base_model")):
        tags += [f"base_model:{base}"] + ([f"base_model:adapter:{base}"] if "adapter_config.json" in names else [])
    return list(dict.fromkeys(tags))


def xet_hashes(shard: bytes) -> dict[str, str]:
    """The Xet hash of each file that a shard of `hf_xet` describes, by the file's sha256.

    After a head of 48 bytes a shard has blocks of 48-byte rows, one block per file: the file's Xet hash with flags and
    the number of its segments, the segments, as many rows again if they are verified (flag 31), and one row that begins
    with the sha256 (flag 30). A hash of only ones ends them.
    """
    row, found, at = 48, {}, 48
    while shard[at : at + 32] != b"\xff" * 32:
        xet_hash, flags, segments = struct.unpack_from("<32sII", shard, at)
        at += row + row * segments * (2 if flags >> 31 & 1 else 1)
        if flags >> 30 & 1:
            found[_hex(shard[at : at + 32])] = _hex(xet_hash)
            at += row
    return found


def _hex(hash: bytes) -> str:
    # hf_xet writes a hash as four little-endian numbers.
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))
