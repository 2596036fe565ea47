"""Learn a text, and keep what was learned as a book."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from peft import LoraConfig

from ..adapters.adapter import Adapter
from ..domains import KnowledgeDomain
from ..domains.files import is_unicode
from ..domains.knowledge.documents import DocumentPart, split_document
from ..hub.model_card import AdapterCard
from ..inner_loop.training import InnerStep
from ..inner_loop.update import InnerLoopConfig
from ..models.embedded import EMBEDDED_MODELS
from ..models.identity import canonical_name
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit, joined_self_edits
from .asking import base_of
from .book import Book, LearnedPassage
from .shelf import Shelf


logger = logging.getLogger(__name__)

PASSAGES_PER_BANK = 4
_MOST_ASKED = 8  # learned questions of each passage
_LONGEST_ANSWER = 48  # tokens
# What tells progress: the stage, how much of it is done, and of how much, which is 0 where that is not known.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WritingSettings:
    """
    How self-edits are written. The defaults are those that small models were measured with (docs/trials.md).

    Parameters:
        num_generations, temperature, top_p, max_completion_length, seed:
            As in [`SelfAdaptingLM.propose`]. The seed is that of the training too.
    """

    num_generations: int = 2
    temperature: float = 0.7
    top_p: float = 0.95
    max_completion_length: int = 300
    seed: int = 0


def learner(model: str, **options: object) -> SelfAdaptingLM:
    """
    Load a model with what small models were measured to learn best with: questions about every fact, which the model answers
    itself, and adapters of rank 32 on all linear layers (see docs/trials.md).

    Args:
        model (`str`):
            A Hub id, a folder or the name of an embedded model.
        options:
            Passed on to [`SelfAdaptingLM.from_pretrained`], which states the errors.
    """
    return SelfAdaptingLM.from_pretrained(
        model,
        domain=KnowledgeDomain("questions-by-fact", training_format="prompt_completion"),
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
        inner_config=InnerLoopConfig(num_train_epochs=8, batch_size=16),
        **options,
    )


def learn(
    lm: SelfAdaptingLM,
    shelf: Shelf,
    text: str,
    title: str,
    *,
    model: str | None = None,
    settings: WritingSettings | None = None,
    on_progress: OnProgress | None = None,
) -> Book:
    """
    Learn a text and put it on the shelf: for each of its passages an adapter, trained on all self-edits about it together.

    Passages are learned in banks of four. Where no self-edit about a passage can be used, its adapter learns the passage alone,
    with a warning.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model, as [`learner`] loads it.
        shelf ([`Shelf`]):
            Where the book goes.
        text (`str`):
            The text, which is cut into passages (see [`split_document`]).
        title (`str`):
            Its title, which questions will name as their topic; a passage under a heading has that too.
        model (`str`, *optional*):
            What the model was loaded by. Defaults to its base's id.
        settings ([`WritingSettings`], *optional*):
            How self-edits are written.
        on_progress (`Callable[[str, int, int], None]`, *optional*):
            Called with a stage, how much of it is done and how much there is, 0 where that is not known.

    Returns:
        [`Book`]: the book. Nothing is kept of one that an error or an interrupt has ended.

    Raises:
        ValueError: The text has no words, the title is empty or has half a character in it, or a passage does not fit the
            model's context.
        OSError: The disk is full, or the shelf cannot be written.
    """
    title = " ".join(title.split())
    parts = split_document(text)
    if not title or not is_unicode(title):
        raise ValueError(f"The title {title!r} cannot be used; say in whole characters what the text is about.")
    if not parts:
        raise ValueError("There are no words to learn; give a text of whole sentences.")
    settings, tell = settings or WritingSettings(), on_progress or (lambda stage, done, total: None)
    examples = [{"title": _topic(title, part), "context": part.text} for part in parts]
    with shelf.new_book() as book:
        for first in range(0, len(examples), PASSAGES_PER_BANK):
            bank = examples[first : first + PASSAGES_PER_BANK]
            where = f" (passages {first + 1} to {first + len(bank)} of {len(examples)})" if len(examples) > 1 else ""
            for passage, adapter in _learned(
                lm, bank, first, settings, lambda *told, at=where: tell(told[0] + at, *told[1:])
            ):
                adapter.save_pretrained(book.adapter_folder(passage.title), AdapterCard(passage=passage.text))
                book.add(passage)
        return book.keep(title, canonical_name(model or name_to_load(lm.base_model_id)), lm.base_model_id, base_of(lm))


def name_to_load(base_model_id: str) -> str:
    """What a base model is loaded by: the name of an embedded one, which needs no Hub."""
    return next((name for name, one in EMBEDDED_MODELS.items() if one.model_id == base_model_id), base_model_id)


def _topic(title: str, part: DocumentPart) -> str:
    return f"{title}: {part.heading}" if part.heading and part.heading.casefold() != title.casefold() else title


def _learned(
    lm: SelfAdaptingLM, examples: Sequence[dict], first: int, settings: WritingSettings, tell: OnProgress
) -> Iterator[tuple[LearnedPassage, Adapter]]:
    """The passages of one bank with their adapters."""
    self_edits = _written(lm, examples, first, settings, tell)

    def on_step(step: InnerStep) -> None:
        tell("training", step.step, step.num_steps)

    tell("training", 0, 0)
    adapters = lm.adapt(self_edits, seed=settings.seed, on_step=on_step)
    tell("asking", 0, 0)
    pairs = [lm.domain.learned_pairs(edit) for edit in self_edits]
    asked = [
        {**example, "questions": [{"question": question, "answer": answer} for question, answer in own[:_MOST_ASKED]]}
        for example, own in zip(examples, pairs, strict=True)
    ]
    answers = lm.answer_groups(
        [lm.domain.questions(example) for example in asked], adapters, max_answer_length=_LONGEST_ANSWER
    )
    verdicts = lm.domain.grade(asked, answers)
    for example, own, adapter, right in zip(examples, pairs, adapters, verdicts, strict=True):
        losses = adapter.training["losses"]
        yield (
            LearnedPassage(
                title=example["title"],
                text=example["context"],
                adapter="",
                pairs=tuple(own),
                loss=round(losses[-1], 4),
                num_asked=len(right),
                num_right=sum(map(bool, right)),
            ),
            adapter,
        )


def _written(
    lm: SelfAdaptingLM, examples: Sequence[dict], first: int, settings: WritingSettings, tell: OnProgress
) -> list[SelfEdit]:
    """For each passage one self-edit of all that were written about it."""
    num_letters = 0

    def on_text(new_texts: list[str]) -> None:
        nonlocal num_letters
        num_letters += sum(map(len, new_texts))
        tell("writing", num_letters, 0)

    tell("writing", 0, 0)
    written = lm.write_batch(
        examples,
        settings.num_generations,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_completion_length=settings.max_completion_length,
        seed=settings.seed,
        numbers=range(first, first + len(examples)),
        on_text=on_text,
    )
    tell("answering", 0, 0)
    every = [example for example in examples for _ in range(settings.num_generations)]
    parsed = [
        lm.domain.parse(one.text, example) for own, example in zip(written, examples, strict=True) for one in own
    ]
    done = iter(lm.carry_out(parsed, every))
    joined = []
    for example in examples:
        drafts = [next(done) for _ in range(settings.num_generations)]
        usable = [edit for edit in drafts if edit is not None and edit.examples]
        if usable:
            joined.append(joined_self_edits(usable))
        else:
            logger.warning("No question about %r could be used; the passage alone is learned.", example["title"])
            joined.append(lm.domain.passage_only(example))
    return joined
