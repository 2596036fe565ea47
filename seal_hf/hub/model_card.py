"""The model card of an adapter or a policy."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import httpx2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..grading.intervals import Accuracy
from ..models.embedded import EMBEDDED_MODELS
from ..records.files import write_text
from .transfer import LOOK_UP_SECONDS, hub_api, is_hub_id


logger = logging.getLogger(__name__)

_MOST_SETTINGS, _LONGEST_SETTING = 100, 2000  # characters
_PLAIN = re.compile(r"[\w .,:;/+()'%=…-]*")
_MARKED = re.compile(r"\b_|_\b|://|\bwww\.", re.IGNORECASE)  # emphasis and addresses
_TEMPLATES = Path(__file__).parent / "templates"
_REMEDY = "make room or give another folder, and save again"


@dataclass(frozen=True)
class AdapterCard:
    """
    What a model card tells beyond what an adapter knows of itself.

    Parameters:
        passage (`str`, *optional*):
            The text that was learned; the card gives its SHA-256.
        publish_passage (`bool`, *optional*, defaults to `False`):
            Whether the card shows the text itself.
        accuracies (`Mapping[str, Accuracy]`, *optional*):
            By what answered, the base model or the adapted one, as `{"base": ..., "adapted": ...}` (see
            `seal_hf.grading.intervals`).
        recited (`Mapping[str, Accuracy]`, *optional*):
            For some of these, the share of the answers that recite (see [`Domain.recited`]).
        dataset (`str`, *optional*):
            Hub id of the dataset that it was measured on.
        license (`str`, *optional*):
            The adapter's licence, as the Hub spells it. Defaults to that of the base model where the Hub tells it.
        tags (`Sequence[str]`, *optional*):
            Added to the card's own.
    """

    passage: str | None = None
    publish_passage: bool = False
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    recited: Mapping[str, Accuracy] = field(default_factory=dict)
    dataset: str | None = None
    license: str | None = None
    tags: Sequence[str] = ()


def with_base_license(card: AdapterCard, base_model_id: str, token: str | None = None) -> AdapterCard:
    """The card with the base model's licence, where it names none: that of an embedded model, or what the Hub tells."""
    if card.license is not None or not is_hub_id(base_model_id):
        return card
    for model in EMBEDDED_MODELS.values():
        if model.model_id == base_model_id:
            return replace(card, license=model.license)
    try:
        base = hub_api(token).model_info(base_model_id, timeout=LOOK_UP_SECONDS).card_data
    # The last two: something else answers in the Hub's place.
    except (OSError, httpx2.HTTPError, KeyError, ValueError) as error:
        logger.info("The licence of %s is not known (%s); the card names none.", base_model_id, type(error).__name__)
        return card
    return replace(card, license=base.license if base is not None else None)


def write_model_card(
    folder: Path,
    name: str,
    base_model_id: str,
    settings: Mapping[str, object],
    card: AdapterCard | None = None,
    *,
    is_policy: bool = False,
    on_policy: bool = False,
    results: str = "",
) -> None:
    """
    Write `README.md`, a model card with metadata of the Hub.

    Args:
        folder (`Path`):
            Where to.
        name (`str`):
            The adapter's repository or name.
        base_model_id (`str`):
            The base model's Hub id, or a path, which the metadata then leave out, since the Hub refuses it.
        settings (`Mapping[str, object]`):
            How it was trained, a line each; without settings that are `None`. They may come from a file of somebody else: what
            Markdown could read as more than a text is shown as code, and what is long is shortened.
        card ([`AdapterCard`], *optional*):
            What else it tells.
        is_policy (`bool`, *optional*, defaults to `False`):
            Whether it is a policy adapter, which writes self-edits.
        on_policy (`bool`, *optional*, defaults to `False`):
            Whether it is an inner adapter that holds the ranks of a policy adapter too.
        results (`str`, *optional*):
            A run's tables, in Markdown.
    """
    card = card or AdapterCard()
    on_hub, passage = is_hub_id(base_model_id), card.passage if card.publish_passage else None
    content = ModelCard.from_template(
        ModelCardData(
            base_model=base_model_id if on_hub else None,
            datasets=[card.dataset] if card.dataset else None,
            library_name="peft",
            license=card.license,
            pipeline_tag="text-generation",
            tags=sorted({"trl", "seal", "lora", *card.tags, *([f"base_model:adapter:{base_model_id}"] * on_hub)}),
            model_name=name if card.accuracies else None,
            eval_results=[
                _eval_result(condition, own, card.recited.get(condition), card.dataset)
                for condition, own in card.accuracies.items()
            ]
            or None,
        ),
        template_path=str(_TEMPLATES / "adapter_card.md.jinja"),
        name=name,
        base_model_id=base_model_id or "base model",
        base_link=_base_link(base_model_id),
        is_policy=is_policy,
        on_policy=on_policy,
        accuracies=card.accuracies,
        recited=card.recited,
        num_passages=max((accuracy.num_passages for accuracy in card.accuracies.values()), default=0),
        results=results.strip(),
        settings={
            _plain(key): _plain(value) for key, value in islice(settings.items(), _MOST_SETTINGS) if value is not None
        },
        passage_hash=None if card.passage is None else hashlib.sha256(card.passage.encode()).hexdigest(),
        passage=passage,
        # Longer than any that the passage has.
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", passage or "")), default=0)),
    )
    write_text(folder / "README.md", f"{str(content).rstrip()}\n", _REMEDY)


def write_book_card(
    folder: Path, name: str, base_model_id: str, title: str, topics: Mapping[str, str], license: str | None = None
) -> None:
    """
    Write `README.md`, the card of several adapters about one text.

    Args:
        folder (`Path`):
            Where to.
        name (`str`):
            The repository, or the name of the folder.
        base_model_id (`str`):
            As in [`write_model_card`].
        title (`str`):
            Title of the text.
        topics (`Mapping[str, str]`):
            For each folder of an adapter the topic of its passage. What Markdown could read as more than a text is shown as
            code, and so is the title.
        license (`str`, *optional*):
            The adapters' licence, as the Hub spells it.
    """
    on_hub = is_hub_id(base_model_id)
    content = ModelCard.from_template(
        ModelCardData(
            base_model=base_model_id if on_hub else None,
            library_name="peft",
            license=license,
            pipeline_tag="text-generation",
            tags=sorted({"trl", "seal", "lora", *([f"base_model:adapter:{base_model_id}"] * on_hub)}),
        ),
        template_path=str(_TEMPLATES / "book_card.md.jinja"),
        name=name,
        base_model_id=base_model_id,
        base_link=_base_link(base_model_id),
        heading=_plain(title),
        topics={adapter: _plain(topic).replace("|", "/") for adapter, topic in topics.items()},
    )
    write_text(folder / "README.md", f"{str(content).rstrip()}\n", _REMEDY)


def _base_link(base_model_id: str) -> str:
    on_hub = is_hub_id(base_model_id)
    return f"[{base_model_id}](https://huggingface.co/{base_model_id})" if on_hub else "its base model"


def _plain(value: object) -> str:
    """A text in one line, in which Markdown finds nothing."""
    text = str(value)
    text = text if len(text) <= _LONGEST_SETTING else f"{text[:_LONGEST_SETTING]} …"
    is_plain = _PLAIN.fullmatch(text) and not _MARKED.search(text)
    # Without line ends and backticks nothing ends the code.
    return text if is_plain else "`{}`".format(" ".join(text.replace("`", "'").split()))


def _eval_result(condition: str, accuracy: Accuracy, recited: Accuracy | None, dataset: str | None) -> EvalResult:
    return EvalResult(
        task_type="question-answering",
        task_name="Questions about passages",
        dataset_type=dataset or "custom",
        dataset_name=dataset or "Questions about the learned passages",
        metric_type="accuracy",
        metric_name=f"accuracy, {condition} (n = {accuracy.num_questions})",
        metric_value=round(accuracy.value, 4),
        metric_args={
            "num_questions": accuracy.num_questions,
            "num_passages": accuracy.num_passages,
            "mean_over": "passages",
            "per_question": round(accuracy.per_question, 4),
            "confidence_interval_95": [round(accuracy.low, 4), round(accuracy.high, 4)],
            **({} if recited is None else {"share_of_answers_that_recite": round(recited.value, 4)}),
        },
    )
