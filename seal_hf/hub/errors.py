"""What is said when the Hugging Face Hub refuses or cannot be reached: the cause, the next step, and no token."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
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


# Statuses of a commit that another one overtook.
CONFLICTS = (409, 412)
# The token of a sign-in on a Space, hf_oauth_..., has dots and dashes in it.
_TOKEN = re.compile(r"(?<=Bearer )[^\s'\"]+|hf_[\w.-]*\w")


class HubError(OSError):
    """
    The Hub refused, or could not be reached; the message says what to do.

    Attributes:
        is_refusal (`bool`):
            Whether the Hub refused (a token, a right, a name), so that trying again without a change cannot help.
    """

    def __init__(self, message: str, is_refusal: bool = False):
        super().__init__(message)
        self.is_refusal = is_refusal


def without_tokens(text: str) -> str:
    """The text with every access token in it replaced."""
    return _TOKEN.sub("hf_***", text)


@contextmanager
def explaining_hub_errors(action: str, repo_id: str, safe: str = "") -> Iterator[None]:
    """
    Give errors of the Hub inside the block a message with the cause and the next step, and without tokens.

    Args:
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
        if (explained := _explain(error, repo_id)) is None:
            raise
        cause, next_step, is_refusal = explained
        message = f"{action} failed: {cause}; {next_step}.{f' {safe}' if safe else ''}"
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
    url, log_in = f"{constants.ENDPOINT}/{repo_id}", "log in with `hf auth login`, or set HF_TOKEN"
    # An upload of one file that failed, or a file that is not in the cache either: its cause says more.
    if isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        if (explained := _explain(error.__cause__, repo_id)) is not None:
            return explained
    if isinstance(error, GatedRepoError):  # before its parent, a repository that was not found
        return f"{repo_id} is gated", f"ask for access at {url}, and {log_in} of the account that has it", True
    if isinstance(error, RepositoryNotFoundError):
        next_step = f"check the name, and {log_in} of an account that may see it where it is private"
        return f"there is no repository {repo_id} that this token may see", next_step, True
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision", f"choose one of {url}/commits/main", True
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no access token", log_in, True
    if isinstance(error, HFValidationError):
        return str(error).rstrip("."), 'give the repository as "user/name"', True
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it", False
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status, said = error.response.status_code, (error.server_message or "").strip().rstrip(".")
        answer = f"the Hub answered {status}" + (f" ({said})" if said else "")
        if status == 401:
            return f"{answer}: the token is missing, wrong or has expired", log_in, True
        if status == 403:
            next_step = "use a token that may write, and a name in a namespace that is yours"
            return f"{answer}: this token may not write to {repo_id}", next_step, True
        if status in CONFLICTS:
            return f"{answer}: others kept changing {repo_id}", "try again when they are done", False
        if status == 429 or status >= 500:
            return answer, "try again later", False
        return answer, "fix the reported problem and try again", True
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", "make room, or set HF_HOME to a larger disk", False
    unreachable = (httpx2.TransportError, LocalEntryNotFoundError, XetDownloadError, ConnectionError, TimeoutError)
    # Xet's storage has no error of its own.
    if isinstance(error, unreachable) or isinstance(error, RuntimeError) and "CAS Client Error" in str(error):
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"the Hub ({constants.ENDPOINT}) could not be reached ({reason})", "try again later", False
    return None
