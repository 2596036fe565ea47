"""What goes to the Hugging Face Hub and comes from it, with errors that name what failed and what to do."""

import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import CommitInfo, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

# A commit that another one overtook is made again, after these waits in seconds.
_CONFLICT_WAITS = (0.5, 1.0, 2.0, 4.0)
_CONFLICTS = (409, 412)
_TOKEN = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+")
# What a folder may hold beside the files to upload.
_NEVER_UPLOADED = ["*.partial", "**/*.partial", "*.partial/**", "**/*.partial/**", ".cache/**"]


class HubError(OSError):
    """
    The Hub refused, or could not be reached; the message says what to do.

    Attributes:
        is_refusal (`bool`):
            Whether the Hub refused (a token, a right, a name), so that trying again as it is cannot help.
    """

    def __init__(self, message: str, is_refusal: bool = False):
        super().__init__(message)
        self.is_refusal = is_refusal


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository on the Hub (`"user/name"`, or `"name"`) and is no path of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def without_tokens(text: str) -> str:
    """The text with every access token that it shows taken out."""
    return _TOKEN.sub("hf_***", text)


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


@contextmanager
def explaining_hub_errors(action: str, repo_id: str, safe: str = "") -> Iterator[None]:
    """
    Give errors of the Hub inside the block a message with the cause and the next step, and without tokens.

    Parameters:
        action (`str`):
            What was tried, as in `"The upload to me/name"`, the subject of "failed".
        repo_id (`str`):
            The repository.
        safe (`str`, *optional*):
            A sentence on where the work is, put last.

    Raises:
        HubError: The Hub refused, or could not be reached.
        OSError: The disk is full.
    """
    try:
        yield
    except HubError as error:
        if safe and safe not in str(error):
            raise HubError(f"{error} {safe}", error.is_refusal) from None
        raise
    except Exception as error:
        explained = _explain(error, repo_id)
        if explained is None:
            raise
        cause, remedy, is_refusal = explained
        message = f"{action} failed: {cause}; {remedy}.{f' {safe}' if safe else ''}"
        # The chain of causes is printed too, and a request that could not be sent quotes its headers.
        origin = error if without_tokens(_chain(error)) == _chain(error) else None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, message) from origin
        raise HubError(without_tokens(message), is_refusal) from origin


def _chain(error: BaseException | None) -> str:
    """The texts of an error and of all that led to it."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _explain(error: Exception, repo_id: str) -> tuple[str, str, bool] | None:
    """Cause, next step, and whether it is a refusal; `None` for an error that has nothing to do with the Hub."""
    url = f"{constants.ENDPOINT}/{repo_id}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    # What stands behind an upload of one file that failed, and a file that is not in the cache either.
    if isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        if (behind := _explain(error.__cause__, repo_id)) is not None:
            return behind
    # Subclasses first: a gated repository is one that was not found, too.
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated", f"ask for access at {url}, and {log_in} of the account that has it", True
    if isinstance(error, RepositoryNotFoundError):
        cause = f"there is no repository {repo_id} that this token may see"
        return cause, f"check the name, and {log_in} of an account that may see it where it is private", True
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision", f"choose one of {url}/commits/main", True
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no access token", log_in, True
    if isinstance(error, HFValidationError):
        return str(error).rstrip("."), 'give the repository as "user/name"', True
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it", False
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _explain_status(error, repo_id, log_in)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", "make room, or set HF_HOME to a larger disk", False
    unreachable = (httpx2.TransportError, LocalEntryNotFoundError, XetDownloadError, ConnectionError, TimeoutError)
    # Xet's storage has no error of its own.
    if isinstance(error, unreachable) or isinstance(error, RuntimeError) and "CAS Client Error" in str(error):
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"the Hub ({constants.ENDPOINT}) could not be reached ({reason.rstrip('.')})", "try again later", False
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} lacks a file", f"look at {url}/tree/main", True
    return None


def _explain_status(error: HfHubHTTPError, repo_id: str, log_in: str) -> tuple[str, str, bool]:
    status, said = error.response.status_code, (error.server_message or "").strip().rstrip(".")
    answer = f"the Hub answered {status}" + (f" ({said})" if said else "")
    if status == 401:
        return f"{answer}: the token is missing, wrong or has expired", log_in, True
    if status == 403:
        remedy = "use a token that may write, and a name in a namespace that is yours"
        return f"{answer}: this token may not write to {repo_id}", remedy, True
    if status in _CONFLICTS:
        return f"{answer}: others kept changing {repo_id}", "try again when they are done", False
    if status == 429 or status >= 500:
        return answer, "try again later", False
    return answer, "mend what it names and try again", True


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
                if wait is None or error.response.status_code not in _CONFLICTS:
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
