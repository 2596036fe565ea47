"""Adapters that vLLM uses: written where it sees them, loaded, and removed again."""

import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..adapters.adapter import Adapter
from .vllm_client import VLLMClient, VLLMRefusal, VLLMServerGone


logger = logging.getLogger(__name__)

# What a server takes as --max-lora-rank.
SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
PREFIX = "seal-hf-"
# Seconds that a process takes at its own end to remove what another one has left: launchers wait for 30 before they kill it.
_LAST_SECONDS = 5.0
_SHARED_MEMORY = Path("/dev/shm")


def shared_folder() -> Path:
    """Where this user's adapters are written for vLLM: in shared memory, or in the folder for temporary files."""
    shared = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return shared / f"{PREFIX}{os.getuid()}"


def server_rank(r: int) -> int:
    """
    The least `--max-lora-rank` of a server that takes adapters of this rank.

    Raises:
        ValueError: There is none.

    Example:

    ```python
    >>> server_rank(64 + 32)
    128

    ```
    """
    for rank in SERVER_RANKS:
        if rank >= r:
            return rank
    raise ValueError(
        f"An adapter of rank {r} is above {SERVER_RANKS[-1]}, the greatest that vLLM takes; lower the ranks of policy and "
        "inner adapters, or leave use_vllm off."
    )


def rank_with_policy(adapter: Adapter) -> tuple[int, str]:
    """The rank that an adapter is loaded with, and in words what it is made of."""
    own, policy = adapter.layout.r, adapter.policy.layout.r if adapter.policy is not None else 0
    r = own + policy
    return r, f"{r} (policy {policy} and inner adapter {own})" if policy else f"{r}"


class LoadedAdapters(ABC):
    """
    Adapters that vLLM uses for the length of one block.

    Each is exported in PEFT's format and loaded under a name that is never used again, since vLLM keys what it keeps by the
    name.

    Parameters:
        dtype (`torch.dtype`):
            Dtype of the weights that it is given.
        folder (`Path`):
            Where they are written.
    """

    def __init__(self, dtype: torch.dtype, folder: Path):
        self.dtype, self.folder = dtype, folder
        self._run, self._numbers = uuid.uuid4().hex[:12], count()

    @contextmanager
    def loaded(self, adapter: Adapter) -> Iterator[str]:
        """
        An adapter that vLLM has inside the block: its name there. It stands for the plain base model, with the ranks of its
        policy and its own.

        Raises:
            ValueError: vLLM does not take it, for a reason that the message names.
            OSError: The adapter could not be written, or vLLM is gone.
        """
        name = f"{PREFIX}{self._run}-{next(self._numbers)}"
        path = self.folder / name
        try:
            adapter.export(path, self.dtype)
            self._load(name, path, adapter)
            try:
                yield name
            finally:
                self._unload(name)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @abstractmethod
    def _load(self, name: str, path: Path, adapter: Adapter) -> None:
        """Have vLLM load an adapter from its folder."""

    @abstractmethod
    def _unload(self, name: str) -> None:
        """Have vLLM forget an adapter."""

    def _make_folder(self) -> None:
        """
        Make the folder, open to this user alone.

        Raises:
            ValueError: It is another user's.
            OSError: It cannot be written.
        """
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise ValueError(f"{folder}, where adapters are written for vLLM, belongs to another user; remove it.")

    def _remove_files(self) -> None:
        """Remove what a process that was killed has left in the folder."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


class ServedAdapters(LoadedAdapters):
    """
    Adapters on a vLLM server.

    One process at a time has the server's turn, whether it is of the same run or of another, so that prompts with and without
    an adapter never meet in one batch: on a CPU, vLLM 0.32 gives the latter somebody's adapter.

    Parameters:
        client ([`VLLMClient`]):
            The server.
        dtype (`torch.dtype`):
            Dtype of the weights that it is given.
        folder (`Path`, *optional*):
            Where adapters are written, the same for all processes that use the server. Defaults to [`shared_folder`].
    """

    def __init__(self, client: VLLMClient, dtype: torch.dtype, folder: Path | None = None):
        server = hashlib.sha256(client.base_url.encode()).hexdigest()[:16]
        super().__init__(dtype, (folder or shared_folder()).absolute() / server)
        self.client = client
        self._left: list[str] = []

    @contextmanager
    def turn(self, is_stopped: Callable[[], bool]) -> Iterator[bool]:
        """
        Have the server alone inside the block, after those who have it now; what a process that was killed has left is
        removed first. Gives `False` where the waiting was stopped.

        Raises:
            ValueError: The server also has adapters of a run that writes to another folder, or the folder is another user's.
            VLLMServerGone: It does not answer.
            OSError: The folder cannot be written.
        """
        self._make_folder()
        lock, is_told = FileLock(self.folder / "turn.lock"), False
        while True:
            if is_stopped():
                yield False
                return
            try:
                lock.acquire(timeout=0.5)
                break
            except Timeout:
                if not is_told:
                    logger.info("Another process uses the vLLM server %s; waiting for its turn.", self.client.base_url)
                is_told = True
        try:
            self.client.persist(self._remove_left, is_stopped)
            yield not is_stopped()
        finally:
            self._unload_left()
            lock.release()

    def remove_left(self) -> None:
        """Remove what another process that was killed has left, at the end of this one, unless that takes long."""
        end = time.monotonic() + _LAST_SECONDS
        try:
            with self.turn(lambda: time.monotonic() > end):
                pass
        except (VLLMServerGone, ValueError, OSError) as error:
            logger.warning("Adapters of a process that was killed may still be on the vLLM server: %s", error)

    def _remove_left(self) -> None:
        """Remove all adapters that are in the folder or were loaded from it, while none is used."""
        self._remove_files()
        for model in self.client.models():
            if not (model.is_adapter and model.name.startswith(PREFIX)):
                continue
            if Path(model.path).parent != self.folder:
                raise ValueError(
                    f"The vLLM server {self.client.base_url} has the adapter {model.name} of another run, from {model.path}; "
                    "start a server for each, or unload the adapter where that run has ended."
                )
            self.client.unload_adapter(model.name)

    def _load(self, name: str, path: Path, adapter: Adapter) -> None:
        self._unload_left()
        try:
            self.client.load_adapter(name, str(path))
        except VLLMRefusal as error:
            raise self._explained(error, adapter, path) from error
        except VLLMServerGone:  # which may have loaded it all the same
            self._left.append(name)
            raise

    def _unload_left(self) -> None:
        """Unload what could not be unloaded when it was done with."""
        left, self._left = self._left, []
        for name in left:
            self._unload(name)

    def _unload(self, name: str) -> None:
        try:
            self.client.unload_adapter(name)
        except (VLLMServerGone, VLLMRefusal) as error:  # it forgets them when it ends
            logger.warning("The adapter %s could not be unloaded: %s", name, error)
            self._left.append(name)

    def _explained(self, error: VLLMRefusal, adapter: Adapter, path: Path) -> ValueError | VLLMServerGone:
        """What the server means when it does not load an adapter, and what to do."""
        server, said = f"The vLLM server {self.client.base_url}", error.said
        r, rank = rank_with_policy(adapter)
        if "max_lora_rank" in said:
            return ValueError(
                f"{server} takes adapters of a lower rank than {rank}: {said}; start it with --max-lora-rank "
                f"{server_rank(r)}."
            )
        if "not enabled" in said or "enable-lora" in said:
            return ValueError(f"{server} runs without LoRA ({said}); start it with --enable-lora.")
        if "No adapter found" in said or str(path) in said:
            return ValueError(
                f"{server} does not see {path}, where the adapters are written ({said}); run it on this machine and as this user, "
                f"with this machine's {path.parent.parent.parent}."
            )
        if error.status == 404:
            return ValueError(
                f"{server} does not load adapters while it runs; start it with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
            )
        message = f"{server} does not take an adapter of rank {rank}: {said}."
        # An engine that has ended is told by an error of the server, too.
        return VLLMServerGone(message) if error.status >= 500 else ValueError(message)
