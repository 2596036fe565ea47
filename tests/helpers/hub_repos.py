"""What the test Hub of `hub_server.py` holds: users, repositories, their commits, and what it reads in a card."""

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml


LFS_FILES = re.compile(r"\.(safetensors|bin|pt|parquet)$")
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
CARD = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
NOW = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class User:
    name: str
    token: str
    role: str = "write"


TESTER = User("tester", "hf_SealTesterWriteTokenNeverStored")
READER = User("reader", "hf_SealReaderReadTokenNeverStored", role="read")
OTHER = User("other", "hf_SealOtherWriteTokenNeverStored")
USERS = {user.token: user for user in (TESTER, READER, OTHER)}


@dataclass(frozen=True)
class File:
    data: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The name of the file, or of the pointer to a large one, in git."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def listed(self) -> dict[str, Any]:
        pointer = {"oid": self.sha256, "sha256": self.sha256, "size": len(self.data), "pointerSize": 134}
        return {"size": len(self.data), "oid": self.oid, **({"lfs": pointer} if self.is_lfs else {})}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    sdk: str | None = None

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch or a commit id names."""
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        oid = hashlib.sha1(f"{time.time_ns()} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, self.branches.get(branch), title, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def described(self, revision: str) -> dict[str, Any]:
        commit, card = self.at(revision), {}
        if "README.md" in commit.files:
            text = commit.files["README.md"].data.decode()
            card = card_data(text) if not card_errors(text) else {}
        return {
            "id": self.id,
            "author": self.owner,
            "sha": commit.oid,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "downloads": 0,
            "likes": 0,
            "createdAt": NOW,
            "lastModified": NOW,
            "tags": card_tags(card, commit.files),
            "cardData": card or None,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "sdk": self.sdk,
        }


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
    errors = [
        f'"{key}" with value {value!r} is not valid'
        for key, pattern in (("base_model", MODEL_ID), ("license", LICENSE))
        for value in as_list(card.get(key))
        if not (isinstance(value, str) and pattern.fullmatch(value))
    ]
    for model in as_list(card.get("model-index")):
        for result in model["results"]:
            named = result.get("task", {}).get("type") and {"name", "type"} <= result.get("dataset", {}).keys()
            if not named or any(metric.get("value") is None for metric in result["metrics"]):
                errors.append('"model-index" is malformed')
    return errors


def card_tags(card: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The tags that the Hub gives a repository by its card and the names of its files."""
    tags = as_list(card.get("library_name")) + as_list(card.get("tags"))
    tags += [f"license:{name}" for name in as_list(card.get("license"))]
    for base in as_list(card.get("base_model")):
        tags += [f"base_model:{base}"] + ([f"base_model:adapter:{base}"] if "adapter_config.json" in names else [])
    return list(dict.fromkeys(tags))
