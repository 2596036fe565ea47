"""What goes to the Hugging Face Hub and comes from it."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import httpx2
from huggingface_hub import CommitInfo, HfApi, constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from .errors import HubError, RepositoryExists, explaining_hub_errors


logger = logging.getLogger(__name__)

# Seconds for which a Hub that has the request may be silent. huggingface_hub has a limit for downloads only.
_SILENCE = httpx2.Timeout(100.0)
# The same for a look at a repository, which huggingface_hub does not limit unless it is told to.
LOOK_UP_SECONDS = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository on the Hub (`"user/name"`, or `"name"`) and is no path of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def hub_api(token: str | bool | None = None) -> HfApi:
    """
    The Hub's client with this token, or the one saved by `hf auth login`. It gives up on a Hub that falls silent, unless
    `huggingface_hub.set_client_factory` has set other limits.
    """
    token = token.strip() if isinstance(token, str) else token  # a copied token often has white space around it
    if token and len(str(token).split()) > 1:
        raise HubError("The access token has white space in it; copy it again.", is_refusal=True)
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = _SILENCE
    return HfApi(token=token)


def made_repo(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    space_sdk: str | None = None,
    exist_ok: bool = True,
    token: str | None = None,
) -> str:
    """
    A repository's name with its namespace; it is made where there is none.

    Raises:
        RepositoryExists: There is one, and not `exist_ok`.
        HubError: The repository is public and `private` is set.
    """
    api = hub_api(token)
    try:
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=exist_ok)
    except HfHubHTTPError as error:
        if exist_ok or error.response is None or error.response.status_code != 409:
            raise
        raise RepositoryExists(repo_id) from error
    if private and not api.repo_info(url.repo_id, repo_type=repo_type, timeout=LOOK_UP_SECONDS).private:
        raise HubError(
            f"{url.repo_id} exists and is public, but private=True was asked for; make it private in its settings "
            f"({url}/settings) or give another name. Nothing was uploaded.",
            is_refusal=True,
        )
    return url.repo_id


def with_namespace(repo_id: str, token: str | None = None, action: str = "The upload to") -> str:
    """A repository's name with its namespace, which defaults to the token's own; `action` is what an error says has failed."""
    if "/" in repo_id:
        return repo_id
    with explaining_hub_errors(f"{action} {repo_id}", repo_id):
        return f"{hub_api(token).whoami()['name']}/{repo_id}"


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    repo_type: str = "model",
    private: bool | None = None,
    space_sdk: str | None = None,
    revision: str | None = None,
    delete_patterns: Sequence[str] = (),
    exist_ok: bool = True,
    safe: str = "",
    token: str | None = None,
) -> CommitInfo:
    """
    Upload a folder as `HfApi.upload_folder` does, into a repository and a branch that are made where there are none.

    `private` is the visibility of a new repository, by default the owner's setting. `exist_ok` is whether the repository may
    exist already. `safe` is a sentence on where the work is, for the message of an error.

    Raises:
        RepositoryExists: The repository exists, and not `exist_ok`. Nothing was uploaded.
        HubError: The Hub refused or could not be reached, or the repository is public and `private` is set.
    """
    with explaining_hub_errors(f"The upload to {repo_id}", repo_id, safe):
        api = hub_api(token)
        repo_id = made_repo(
            repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=exist_ok, token=token
        )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            repo_type=repo_type,
            revision=revision,
            delete_patterns=list(delete_patterns) or None,
        )


def download(
    repo_id: str,
    patterns: Sequence[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[Path, str]:
    """
    Files of a repository at one commit, from the Hub or, where it cannot be reached, from the cache.

    The token `False` is for somebody who may see public files only; the cache, which may hold others, is then not used.

    Returns:
        `tuple[Path, str]`: the folder, in the cache, and the commit.

    Raises:
        HubError: No such repository or revision, one that this token may not see, or the Hub could not be reached.
    """
    where = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision}
    with explaining_hub_errors(f"The download of {repo_id}", repo_id):
        api = hub_api(token)
        try:
            # snapshot_download would take a copy from the cache, however old, also where the Hub refuses.
            api.repo_info(**where, timeout=LOOK_UP_SECONDS)
        except (httpx2.TransportError, OfflineModeIsEnabled) as unreachable:
            if token is False:
                raise
            cause = type(unreachable).__name__
            logger.warning("The Hub cannot be reached (%s); looking for %s in the cache.", cause, repo_id)
            try:
                folder = api.snapshot_download(**where, allow_patterns=list(patterns), local_files_only=True)
            except LocalEntryNotFoundError:
                raise unreachable from None
        else:
            folder = api.snapshot_download(**where, allow_patterns=list(patterns))
    return Path(folder), Path(folder).name


class Snapshot:
    """
    The files of a repository at one commit, from the Hub or, where it cannot be reached, from the cache. Each is fetched when
    it is needed, and only if it is small enough.

    Parameters:
        repo_id (`str`):
            The repository of a model.
        revision (`str`, *optional*):
            Branch, tag or commit. Defaults to `main`.
        token (`str` or `bool`, *optional*):
            As for [`download`].
        cache_dir (`Path`, *optional*):
            Where the files are put. Defaults to the Hub's cache.

    Attributes:
        commit (`str`, *optional*):
            The commit; of a Hub that cannot be reached it is known after the first file.

    Raises:
        HubError: No such repository or revision, one that this token may not see, or the Hub could not be reached.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
    ):
        self.repo_id, self.commit = repo_id, None
        # Of the first file; all others are of its commit. The cache then knows which commit the revision is.
        self._revision, self._cache_dir = revision, cache_dir
        self._unreachable: Exception | None = None
        with self._explaining():
            self._api = hub_api(token)
            try:
                # What is in the cache may not be taken where the Hub refuses. All else that the Hub tells can be long.
                self.commit = self._api.repo_info(
                    repo_id, revision=revision, timeout=LOOK_UP_SECONDS, expand=["sha"]
                ).sha
            except (httpx2.TransportError, OfflineModeIsEnabled) as error:
                if token is False:
                    raise
                logger.warning(
                    "The Hub cannot be reached (%s); looking for %s in the cache.", type(error).__name__, repo_id
                )
                self._unreachable = error

    def fetch(self, name: str, largest: int) -> Path | None:
        """
        A file of the repository; `None` where it has none of this name.

        Raises:
            HubError: The Hub refused or could not be reached.
            ValueError: The file is larger than `largest` bytes. It is not fetched then.
        """
        with self._explaining():
            where = {"repo_id": self.repo_id, "filename": name, "cache_dir": self._cache_dir}
            if self._unreachable is not None:
                return self._cached(name, where)
            try:
                found = self._api.hf_hub_download(**where, revision=self._revision, dry_run=True)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return None
            if found.file_size is None or found.file_size > largest:
                raise ValueError(too_large(f"{self.repo_id}@{found.commit_hash}", name, found.file_size, largest))
            return self._found(name, self._api.hf_hub_download(**where, revision=self._revision))

    def _found(self, name: str, file: str) -> Path:
        self.commit = self._revision = Path(file).parents[name.count("/")].name
        return Path(file)

    def _cached(self, name: str, where: dict[str, object]) -> Path | None:
        try:
            file = self._api.hf_hub_download(**where, revision=self._revision, local_files_only=True)
        except LocalEntryNotFoundError:
            if self.commit is None:
                raise self._unreachable from None
            return None
        return self._found(name, file)

    def names(self, folder: str) -> list[str]:
        """Some names of files in a folder of the repository: of the first thousand of its entries."""
        with self._explaining():
            tree = self._api.list_repo_tree(self.repo_id, folder.strip("/") or None, revision=self.commit)
            try:
                return [entry.path for entry in islice(tree, 1000)]
            except EntryNotFoundError:
                return []

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining_hub_errors(f"The download of {self.repo_id}", self.repo_id)


def too_large(source: str, name: str, size: int | None, largest: int) -> str:
    """What is said of a file that is not read because of its size in bytes."""
    has = "is of unknown size" if size is None else f"has {size / 1e6:,.1f} MB"
    return (
        f"{source}: {name} {has}, but for this base model and configuration it has at most {largest / 1e6:,.1f} MB; save the "
        "adapter again without anything else, or load the base model that it was trained on."
    )


def list_adapters(base_model_id: str, *, author: str | None = None, token: str | None = None) -> list[str]:
    """
    The adapters of seal-hf on the Hub for a base model, by the tags of their cards.

    Args:
        base_model_id (`str`):
            The base model's Hub id.
        author (`str`, *optional*):
            Only adapters of this user or organization.
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`. Private ones are listed for users who may see them.

    Returns:
        `list[str]`: repositories, as `load_adapter` takes them.

    Raises:
        HubError: The Hub refused the token, or could not be reached.
    """
    with explaining_hub_errors(f"The list of adapters for {base_model_id}", base_model_id):
        found = hub_api(token).list_models(filter=["seal", f"base_model:adapter:{base_model_id}"], author=author)
        return [model.id for model in found]
