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
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)


# The token of a sign-in on a Space, hf_oauth_..., has dots and dashes in it.
_TOKEN = re.compile(r"(?<=Bearer )[^\s'\"]+|hf_[\w.-]*\w")
_UNREACHABLE = (httpx2.TransportError, XetDownloadError, ConnectionError, TimeoutError)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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


class RepositoryExists(HubError):
    """
    There is a repository where a new one was to be made.

    Attributes:
        repo_id (`str`):
            Its full name.
    """

    def __init__(self, repo_id: str, safe: str = ""):
        super().__init__(
            f"{repo_id} exists already; give another name, or allow its files to be replaced with exist_ok=True. Nothing was "
            f"uploaded.{safe}",
            is_refusal=True,
        )
        self.repo_id = repo_id


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
        HubError: The Hub refused, or could not be reached, or the disk is full.
    """
    safe = f" {safe}" if safe else ""
    try:
        yield
    except RepositoryExists as error:
        raise RepositoryExists(error.repo_id, safe) from error.__cause__
    except HubError as error:
        raise HubError(f"{error}{safe}", error.is_refusal) from error.__cause__
    except Exception as error:
        if (explained := _explain(error, repo_id)) is None:
            raise
        cause, next_step, is_refusal = explained
        # The chain is printed too, and a request that could not be sent quotes its headers.
        origin = error if all(without_tokens(text) == text for text in map(str, _chain(error))) else None
        raise HubError(without_tokens(f"{action} failed: {cause}; {next_step}.{safe}"), is_refusal) from origin


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(error: BaseException, repo_id: str) -> tuple[str, str, bool] | None:
    """Cause, next step, and whether it is a refusal; `None` for an error that has nothing to do with the Hub."""
    url, later = f"{constants.ENDPOINT}/{repo_id}", "try again later"
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    not_found = f"there is no repository {repo_id} that this token may see"
    unreachable = f"the Hub ({constants.ENDPOINT}) could not be reached ({said})"
    for kind, *explained in (  # a class before its parent
        (GatedRepoError, f"{repo_id} is gated", f"ask for access at {url}, and {_LOG_IN}", True),
        (RepositoryNotFoundError, not_found, f"check the name, and {_LOG_IN}", True),
        (RevisionNotFoundError, f"{repo_id} has no such revision", f"choose one of {url}/commits/main", True),
        (LocalTokenNotFoundError, "there is no access token", _LOG_IN, True),
        (HFValidationError, said, 'give the repository as "user/name"', True),
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set", "unset it", False),
        (_UNREACHABLE, unreachable, later, False),
    ):
        if isinstance(error, kind):
            return tuple(explained)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status, detail = error.response.status_code, (error.server_message or "").strip().rstrip(".")
        answer = f"the Hub answered {status}" + (f" ({detail})" if detail else "")
        if status == 401:
            return f"{answer}: the token is missing, wrong or has expired", _LOG_IN, True
        if status == 403:
            next_step = "use a token that may write, and a name in a namespace that is yours"
            return f"{answer}: this token may not write to {repo_id}", next_step, True
        # With a 409 or 412 another commit came first.
        if status in (409, 412, 429) or status >= 500:
            return answer, later, False
        return answer, "fix the reported problem and try again", True
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", "make room, or set HF_HOME to a larger disk", False
    if "CAS Client Error" in str(error):  # Xet's storage has no error of its own
        return unreachable, later, False
    # An upload of one file that failed, or a file that is not in the cache either: the cause says more.
    return _explain(error.__cause__, repo_id) if error.__cause__ is not None else None
