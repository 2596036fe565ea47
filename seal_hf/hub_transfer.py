"""What goes to the Hugging Face Hub and comes from it."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
from huggingface_hub import CommitInfo, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .hub_errors import CONFLICTS, HubError, explaining_hub_errors


logger = logging.getLogger(__name__)

# A commit that another one overtook is made again, after these waits in seconds.
_CONFLICT_WAITS = (0.5, 1.0, 2.0, 4.0)
# What a folder may hold beside the files to upload.
_NEVER_UPLOADED = ["*.partial", "**/*.partial", "*.partial/**", "**/*.partial/**", ".cache/**"]


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
    """The Hub's client with this token, or the one saved by `hf auth login`."""
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
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
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


def download(
    repo_id: str,
    patterns: Sequence[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | None = None,
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
        token (`str`, *optional*):
            Defaults to the one saved by `hf auth login`.

    Returns:
        `tuple[Path, str]`: the folder, in the cache, and the commit.

    Raises:
        HubError: No such repository or revision, one that this token may not see, or no Hub.
    """
    with explaining_hub_errors(f"The download of {repo_id}", repo_id):
        try:
            # snapshot_download would take a copy from the cache, however old, also where the Hub refuses.
            hub_api(token).repo_info(repo_id, revision=revision, repo_type=repo_type)
        except (httpx2.TransportError, OfflineModeIsEnabled) as error:
            logger.warning(
                "The Hub cannot be reached (%s); looking for %s in the cache.", type(error).__name__, repo_id
            )
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=list(patterns),
                token=clean_token(token),
            )
        )
    return folder, os.path.basename(folder)
