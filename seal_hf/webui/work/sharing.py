"""Adapters that come from elsewhere or go there: zip files, the Hub, and the token that a visitor may use."""

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from huggingface_hub import get_token

from ...adapters.adapter import Adapter
from ...grading.intervals import Accuracy, accuracy
from ...hub.errors import HubError, RepositoryExists
from ...hub.model_card import AdapterCard
from ...hub.transfer import is_hub_id, with_namespace
from ...self_adapting_lm import SelfAdaptingLM, topic_of
from ..languages import Message
from . import quota
from .adapter_zip import save_zip
from .inputs import checked_repo_name, clean
from .origins import is_foreign, is_local
from .session_items import KeptAdapter
from .sessions import Session


logger = logging.getLogger(__name__)


def load_adapter(
    lm: SelfAdaptingLM, session: Session, source: str | Path, token: str | bool | None = None
) -> KeptAdapter:
    """
    Add an adapter to a session, which becomes the chosen one.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        session ([`Session`]):
            The session.
        source (`str` or `Path`):
            A repository on the Hub (`str`), or an uploaded zip file (`Path`), which is removed.
        token (`str` or `bool`, *optional*):
            As [`load_token`] returns it.

    Raises:
        ValueError: `source` is not a Hub id, not a LoRA adapter for this base model, or larger than there is room for.
        JobRefused: The session has too many adapters, or there is no room.
        HubError: The Hub refused or could not be reached.
        OSError: The file is damaged.
    """
    name = source.stem if isinstance(source, Path) else clean(source)
    adapter_id, file = session.new_file(name)
    try:
        session.require_room(1)
        with ExitStack() as reserved:
            adapter = _loaded(lm, session, source, token, reserved)
            save_zip(adapter, file)
    finally:
        if isinstance(source, Path):
            source.unlink(missing_ok=True)
    kept = KeptAdapter(adapter_id, name, file, title=topic_of(adapter))
    session.keep(kept, choose=True)
    return kept


def _loaded(
    lm: SelfAdaptingLM, session: Session, source: str | Path, token: str | bool | None, reserved: ExitStack
) -> Adapter:
    """The adapter. What it takes on the disk and in memory is reserved in `reserved` before. Raises as [`load_adapter`]."""
    if isinstance(source, str):
        source = clean(source)
        if not is_hub_id(source):
            raise ValueError(Message("sharing.no_hub_id", name=source[:100]))
    # A folder and its zip file, while it is packed, and what is fetched.
    num_copies = 3 if isinstance(source, str) else 2

    def on_size(num_bytes: int) -> None:
        reserved.enter_context(quota.room(session.folder, num_copies * (num_bytes + quota.FILE_BYTES)))
        reserved.enter_context(quota.memory(num_bytes))

    try:
        with tempfile.TemporaryDirectory() as folder:
            # What somebody else names does not stay in this machine's cache, which has no limit.
            cache_dir = None if token is None else Path(folder)
            most = quota.free_bytes(session.folder) // num_copies - quota.FILE_BYTES
            return lm.load_adapter(source, token=token, cache_dir=cache_dir, max_bytes=most, on_size=on_size)
    except (HubError, ValueError):
        raise
    except FileNotFoundError as error:  # it says what is missing in the folder or file
        raise ValueError(str(error)) from error
    except Exception as error:  # a file from a stranger may break a reader in any way
        logger.warning("An adapter could not be read", exc_info=True)
        name = source.name if isinstance(source, Path) else source
        raise ValueError(Message("sharing.unreadable", name=name)) from error


def push(
    lm: SelfAdaptingLM,
    session: Session,
    adapter_id: str | None,
    name: object,
    *,
    private: bool,
    publish_passage: bool,
    token: str,
    overwrite: object = "",
) -> str:
    """
    Upload an adapter into the account of the token.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        session ([`Session`]):
            The session.
        adapter_id (`str`, *optional*):
            The adapter; `None` for the chosen one.
        name (`str`):
            Name of the repository, without the account.
        private (`bool`):
            Whether only the account sees it.
        publish_passage (`bool`):
            Whether the card shows the passage.
        token (`str`):
            As [`push_token`] returns it.
        overwrite (`str`, *optional*, defaults to `""`):
            Full name of an existing repository whose files may be replaced.

    Returns:
        `str`: The repository's address.

    Raises:
        ValueError: `name` is not valid.
        JobRefused: There is no such adapter, or no room for a copy of it.
        RepositoryExists: The repository exists, and `overwrite` does not name it. Nothing was uploaded.
        HubError: The Hub refused or could not be reached; the session keeps the adapter.
    """
    kept = session.adapter(adapter_id)
    name = checked_repo_name(name)
    try:
        # What is uploaded is a folder, for a moment.
        with quota.room(session.folder, kept.num_bytes + quota.FILE_BYTES), quota.memory(kept.num_bytes):
            repo_id = with_namespace(name, token)
            return lm.load_adapter(kept.file).push_to_hub(
                repo_id,
                private=private,
                token=token,
                card=_card(kept, publish_passage),
                keep_failed=False,
                exist_ok=clean(overwrite) == repo_id,
            )
    except RepositoryExists:
        raise
    except HubError as error:
        cause = str(error).partition(";")[0]
        said = Message("sharing.refused", cause=cause) if error.is_refusal else Message("sharing.failed", cause=cause)
        raise HubError(said, is_refusal=error.is_refusal) from error


def _card(kept: KeptAdapter, publish_passage: bool) -> AdapterCard:
    def estimate(share: float) -> Accuracy:
        right = round(share * kept.num_questions)
        # Of one passage only the questions can be the sample.
        return replace(accuracy([[1.0]] * right + [[0.0]] * (kept.num_questions - right)), num_passages=1)

    rewards, recited = {}, {}
    if kept.reward is not None and not kept.own_questions:
        chosen = f", the best of {kept.best_of} by these questions, so likely too high by chance" * (kept.best_of > 1)
        adapted = f"adapted{chosen}"
        rewards = {"base": kept.base_reward, adapted: kept.reward, "recitation": kept.recitation}
        recited = {"base": kept.base_recited, adapted: kept.recited}
    return AdapterCard(
        passage=kept.passage or None,
        publish_passage=publish_passage,
        accuracies={condition: estimate(share) for condition, share in rewards.items()},
        recited={condition: estimate(share) for condition, share in recited.items()},
    )


def load_token(
    on_space: bool, may_push: bool, visitors_token: str | None, headers: Mapping[str, str]
) -> str | bool | None:
    """
    The token that a visitor may load with.

    Args:
        on_space (`bool`):
            Whether this is a Space.
        may_push (`bool`):
            Whether only the user of this machine reaches the page.
        visitors_token (`str`, *optional*):
            The token of a visitor who has signed in.
        headers (`Mapping[str, str]`):
            The request's headers by their names in lower case.

    Returns:
        `str`, `bool` or `None`: On a Space the visitor's own token or none (`False`), and never that of the Space's owner.
        Elsewhere the one saved on this machine (`None`) where only its user reaches the page, or none (`False`). None for a
        page of another site.
    """
    if on_space:
        return False if is_foreign(headers, on_space) else visitors_token or False
    return None if may_push and is_local(headers) else False


def push_token(on_space: bool, visitors_token: str | None, headers: Mapping[str, str]) -> str:
    """
    The token that a visitor may push with: on a Space their own, and never that of the Space's owner; elsewhere the one
    saved on this machine.

    Args:
        on_space, visitors_token, headers:
            As in [`load_token`].

    Raises:
        ValueError: There is no token, or the request is not from the app's own page or, elsewhere than on a Space, not from
            this machine.
    """
    if on_space:
        if is_foreign(headers, on_space):
            raise ValueError(Message("sharing.foreign_page"))
        if not visitors_token:
            raise ValueError(Message("sharing.not_signed_in"))
        return visitors_token
    if not is_local(headers):
        raise ValueError(Message("sharing.not_local"))
    if not (token := get_token()):
        raise ValueError(Message("sharing.no_token"))
    return token
