"""What goes to the Hugging Face Hub and comes from it."""

import logging
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from .errors import CONFLICTS, HubError, explaining_hub_errors


logger = logging.getLogger(__name__)

# A commit that another one overtook is made again, after these waits in seconds.
_CONFLICT_WAITS = (0.5, 1.0, 2.0, 4.0)
# What a folder may hold beside the files to upload.
_NEVER_UPLOADED = ["*.partial", "**/*.partial", "*.partial/**", "**/*.partial/**", ".cache/**"]
# What git would not take goes to the Hub apart from the commit: binary files, or from this size in bytes.
_LARGE_SIZE = 5_000_000
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


def clean_token(token: str | None) -> str | None:
    """
    A token without the white space around it, which a copied one often has.

    Raises:
        HubError: It has white space inside, so that it is none.
    """
    cleaned = token.strip() if token else token
    if cleaned and len(cleaned.split()) > 1:
        raise HubError("The access token has white space in it; copy it again.", is_refusal=True)
    return cleaned


def hub_api(token: str | None = None) -> HfApi:
    """
    The Hub's client with this token, or the one saved by `hf auth login`.

    It gives up on a Hub that falls silent, unless `huggingface_hub.set_client_factory` has set other limits.
    """
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = _SILENCE
    return HfApi(token=clean_token(token))


def require_writable(repo_id: str, *, private: bool | None = None, token: str | None = None, safe: str = "") -> str:
    """
    Make a model repository where there is none, and make sure that this token may write to it.

    Parameters:
        repo_id, private, token, safe:
            As for [`upload`].

    Returns:
        `str`: the repository with its namespace.

    Raises:
        HubError: The Hub refused or could not be reached, or the repository is public and `private` is set.
    """
    with explaining_hub_errors(f"The check of {repo_id}", repo_id, safe):
        api = hub_api(token)
        repo_id = _repository_to_write(api, repo_id, "model", private)
        api.auth_check(repo_id, write=True)
    return repo_id


def _repository_to_write(
    api: HfApi, repo_id: str, repo_type: str, private: bool | None, space_sdk: str | None = None
) -> str:
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type, timeout=LOOK_UP_SECONDS).private:
        raise HubError(
            f"{url.repo_id} is there already and is public, but private=True was asked for; make it private in its "
            f"settings ({url}/settings) or give another name. Nothing was uploaded.",
            is_refusal=True,
        )
    return url.repo_id


def with_namespace(repo_id: str, token: str | None = None) -> str:
    """
    A repository's name with its namespace, the token's own where it has none.

    Raises:
        HubError: No valid token, or no Hub.
    """
    if "/" in repo_id:
        return repo_id
    with explaining_hub_errors(f"The upload to {repo_id}", repo_id):
        return f"{hub_api(token).whoami()['name']}/{repo_id}"


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    path_in_repo: str | None = None,
    delete_patterns: Sequence[str] = (),
    space_sdk: str | None = None,
    safe: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """
    Upload a folder as one commit, into a repository that is made where there is none.

    A commit that another process overtakes is made again on top of that one.

    Parameters:
        folder (`str` or `Path`):
            What is uploaded.
        repo_id (`str`):
            `"user/name"`, or `"name"` in the token's own namespace.
        commit_message (`str`):
            First line of the commit's message.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*):
            Visibility. Defaults to the owner's setting for a new repository; of one that is there, nothing is changed.
        revision (`str`, *optional*):
            The branch, made where there is none. Defaults to `main`.
        path_in_repo (`str`, *optional*):
            Where to in the repository. Defaults to its top.
        delete_patterns (`Sequence[str]`, *optional*):
            Files of the repository that go away with this commit, if they are not uploaded.
        space_sdk (`str`, *optional*):
            Of a new Space.
        safe (`str`, *optional*):
            A sentence on where the work is, for the message of an error. Defaults to one that names `folder`.
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`.

    Returns:
        `CommitInfo`: the commit, with its `oid` and URL.

    Raises:
        HubError: The Hub refused or could not be reached, or the repository is public and `private` is set.
    """
    safe = f"Everything is still in {folder}." if safe is None else safe
    with explaining_hub_errors(f"The upload to {repo_id}", repo_id, safe):
        api = hub_api(token)
        repo_id = _repository_to_write(api, repo_id, repo_type, private, space_sdk)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
            _upload_large_files(api, Path(folder), repo_id, repo_type, revision, path_in_repo)
        for wait in (*_CONFLICT_WAITS, None):
            try:
                return api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    path_in_repo=path_in_repo,
                    commit_message=commit_message,
                    repo_type=repo_type,
                    revision=revision,
                    ignore_patterns=_NEVER_UPLOADED,
                    delete_patterns=list(delete_patterns) or None,
                )
            except HfHubHTTPError as error:
                if wait is None or error.response.status_code not in CONFLICTS:
                    raise
                time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _upload_large_files(
    api: HfApi, folder: Path, repo_id: str, repo_type: str, revision: str | None, path_in_repo: str | None
) -> None:
    """
    Upload a folder's large files over LFS, one after another in this thread; the commit that follows finds them there.

    huggingface_hub 2.4 sends several at once from a pool whose threads keep the program from ending for as long as the Hub
    does not answer. Over Xet it has no such pool.
    """
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for name in filter_repo_objects(sorted(names), ignore_patterns=_NEVER_UPLOADED):
        if _is_large(folder / name):
            operation = CommitOperationAdd(f"{path_in_repo}/{name}" if path_in_repo else name, folder / name)
            api.preupload_lfs_files(repo_id, [operation], repo_type=repo_type, revision=revision, num_threads=1)


def _is_large(file: Path) -> bool:
    with file.open("rb") as opened:
        # Git tells by a zero byte among the first 8000 that a file is binary.
        return file.stat().st_size >= _LARGE_SIZE or b"\0" in opened.read(8000)


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

    Parameters:
        repo_id (`str`):
            The repository.
        patterns (`Sequence[str]`):
            Of the files' paths in it.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        revision (`str`, *optional*):
            A branch, tag or commit. Defaults to `main`.
        token (`str` or `False`, *optional*):
            Defaults to the one saved by `hf auth login`. `False` is for somebody who may see public files only, and gets
            none from the cache, which may hold others.

    Returns:
        `tuple[Path, str]`: the folder, in the cache, and the commit.

    Raises:
        HubError: No such repository or revision, one that this token may not see, or no Hub.
    """
    options = {
        "repo_type": repo_type,
        "revision": revision,
        "allow_patterns": list(patterns),
        "token": clean_token(token),
    }
    with explaining_hub_errors(f"The download of {repo_id}", repo_id):
        try:
            # snapshot_download would take a copy from the cache, however old, also where the Hub refuses.
            hub_api(token).repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=LOOK_UP_SECONDS)
        except (httpx2.TransportError, OfflineModeIsEnabled) as unreachable:
            if token is False:
                raise
            logger.warning(
                "The Hub cannot be reached (%s); looking for %s in the cache.", type(unreachable).__name__, repo_id
            )
            try:
                folder = snapshot_download(repo_id, local_files_only=True, **options)
            except LocalEntryNotFoundError:
                raise unreachable from None
        else:
            folder = snapshot_download(repo_id, **options)
    return Path(folder), os.path.basename(folder)
