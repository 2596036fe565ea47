"""What the test Hub of `hub_server.py` holds: users, repositories and their commits."""

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from huggingface_hub import ModelCard


LFS_FILES = re.compile(r"\.(safetensors|bin|pt|parquet)$")


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
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def described(self, revision: str) -> dict[str, Any]:
        commit, card = self.at(revision), {}
        if "README.md" in commit.files:
            card = ModelCard(commit.files["README.md"].data.decode()).data.to_dict()
        return {
            "id": self.id,
            "author": self.owner,
            "sha": commit.oid,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "tags": card_tags(card, commit.files),
            "cardData": card or None,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "sdk": self.sdk,
        }


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def card_tags(card: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The tags that the Hub gives a repository by its card and the names of its files."""
    tags = as_list(card.get("library_name")) + as_list(card.get("tags"))
    tags += [f"license:{name}" for name in as_list(card.get("license"))]
    for base in as_list(card.get("base_model")):
        tags += [f"base_model:{base}"] + ([f"base_model:adapter:{base}"] if "adapter_config.json" in names else [])
    return list(dict.fromkeys(tags))
