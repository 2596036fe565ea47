"""Where an adapter's files come from: a folder, a zip file or the Hub. None is read before its size is known."""

import io
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from ..hub.errors import HubError
from ..hub.transfer import Snapshot, is_hub_id, too_large


CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# bzip2 and LZMA unpack blocks as a whole, so that a few bytes can take gigabytes of memory.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_LARGEST_LIST = 2**20  # bytes of the list of an archive's files
_PICKLES = (".bin", ".pt", ".pth", ".pkl")


class AdapterFiles(ABC):
    """
    The files of one adapter.

    Parameters:
        name (`str`):
            What messages call it: its path, or its repository with the commit.
    """

    name: str

    @abstractmethod
    def opened(self, file: str, largest: int) -> AbstractContextManager[tuple[BinaryIO, int] | None]:
        """
        A file for reading from its beginning to its end, with its size in bytes; `None` where there is none.

        Raises:
            ValueError: It has more than `largest` bytes, or is in a damaged archive. Nothing of it is read or fetched then.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of what lies beside the adapter's files."""

    def read(self, file: str, largest: int) -> bytes | None:
        """The content of a small file; `None` where there is none. Raises as [`~AdapterFiles.opened`]."""
        with self.opened(file, largest) as found:
            return None if found is None else found[0].read(found[1])

    @contextmanager
    def opened_weights(self, largest: int) -> Iterator[tuple[BinaryIO, int]]:
        """
        The weights, as [`~AdapterFiles.opened`] opens them.

        Raises:
            FileNotFoundError: There are none.
            ValueError: They are a pickle.
        """
        with self.opened(WEIGHTS_NAME, largest) as found:
            if found is not None:
                yield found
                return
        if pickles := [name for name in self.names() if name.endswith(_PICKLES)]:
            raise ValueError(
                f"{self.name} holds {pickles[0]}, a pickle, which can run code when it is loaded; save the adapter as "
                f"safetensors ({WEIGHTS_NAME})."
            )
        raise FileNotFoundError(f"{self.name} has no {WEIGHTS_NAME}; save the adapter again as safetensors.")


class _Folder(AdapterFiles):
    def __init__(self, folder: Path):
        self.name, self._folder = str(folder), folder

    @contextmanager
    def opened(self, file: str, largest: int) -> Iterator[tuple[BinaryIO, int] | None]:
        path = self._folder / file
        if not path.is_file():
            yield None
            return
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > largest:
                raise ValueError(too_large(self.name, file, size, largest))
            yield stream, size

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]


class _Archive(AdapterFiles):
    """The adapter beside the only `adapter_config.json` of a zip file. Nothing is unpacked to the disk."""

    def __init__(self, path: Path, files: zipfile.ZipFile):
        self.name, self._files = str(path), files
        configs = [name for name in files.namelist() if name.rsplit("/", 1)[-1] == CONFIG_NAME]
        if len(configs) != 1:
            raise ValueError(f"{path} holds {len(configs)} files named {CONFIG_NAME}; a zip must hold one adapter.")
        self._parent = configs[0][: -len(CONFIG_NAME)]

    @contextmanager
    def opened(self, file: str, largest: int) -> Iterator[tuple[BinaryIO, int] | None]:
        try:
            info = self._files.getinfo(self._parent + file)
        except KeyError:
            yield None
            return
        if info.compress_type not in _METHODS:
            raise ValueError(
                f"{self.name}: {file} is packed by the method {info.compress_type}; only stored and deflated files are "
                "taken, so make the zip file again."
            )
        # A zip file states how large its files become, and zipfile reads no more of them than that.
        if info.file_size > largest:
            raise ValueError(too_large(self.name, file, info.file_size, largest))
        try:
            stream = self._files.open(info)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, struct.error) as error:
            raise _damaged(self.name, error) from error
        with stream:
            try:
                yield stream, info.file_size
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise _damaged(self.name, error) from error

    def names(self) -> list[str]:
        return [name.removeprefix(self._parent) for name in self._files.namelist()]


class _Opening(io.FileIO):
    """An archive while `zipfile` looks for the list of its files, which it would read whole, however long."""

    is_bounded = True

    def read(self, size: int = -1) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        if self.is_bounded and (rest if size is None or size < 0 else min(size, rest)) > _LARGEST_LIST:
            raise zipfile.BadZipFile("it holds too many files")
        return super().read(size)


@contextmanager
def _archive(path: Path) -> Iterator[_Archive]:
    with _Opening(path) as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"{path} is neither a folder nor a zip file; give a PEFT adapter as one of the two.")
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error, UnicodeError) as error:
            raise _damaged(path, error) from error
        file.is_bounded = False
        with archive:
            yield _Archive(path, archive)


def _damaged(source: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{source} is damaged or encrypted ({error}); make the zip file again.")


class _Repository(AdapterFiles):
    def __init__(self, snapshot: Snapshot, subfolder: str | None):
        self._snapshot = snapshot
        self._subfolder = subfolder.strip("/") if subfolder else ""

    @property
    def name(self) -> str:
        inside = f"/{self._subfolder}" if self._subfolder else ""
        return f"{self._snapshot.repo_id}@{self._snapshot.commit}{inside}"

    @contextmanager
    def opened(self, file: str, largest: int) -> Iterator[tuple[BinaryIO, int] | None]:
        path = self._snapshot.fetch(f"{self._subfolder}/{file}".lstrip("/"), largest)
        if path is None:
            yield None
            return
        with _Folder(path.parent).opened(file, largest) as found:
            yield found

    def names(self) -> list[str]:
        return self._snapshot.names(self._subfolder)


@contextmanager
def adapter_files(
    source: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
) -> Iterator[AdapterFiles]:
    """
    The files of an adapter, for the length of the block.

    Raises:
        FileNotFoundError: No such folder or zip file.
        HubError: No such repository, one that the token may not see, or the Hub could not be reached.
        ValueError: Neither a folder nor a zip file of one adapter, or `revision` for files of this machine.
    """
    path = Path(source)
    if not path.exists() and isinstance(source, str) and is_hub_id(source):
        try:
            yield _Repository(Snapshot(source, revision=revision, token=token, cache_dir=cache_dir), subfolder)
        except HubError as error:
            error.add_note(f"There is no folder or zip file {source} on this machine either.")
            raise
        return
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is for a repository on the Hub, but {source} is on this machine; leave it out."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no adapter at {path}; give a folder or a zip file of a PEFT adapter.")
    if path.is_dir():
        yield _Folder(path / (subfolder or ""))
        return
    if subfolder is not None:
        raise ValueError(f"subfolder={subfolder!r} was given with the zip file {path}, which must hold one adapter.")
    with _archive(path) as files:
        yield files
