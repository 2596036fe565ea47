"""
Evaluation protocols of the paper, without outer training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..domains import KnowledgeDomain
from ..grading import require_verdicts
from ..grading.intervals import Accuracy, Difference, accuracy, paired_difference
from ..records.journal import BASE, CONDITIONS, IN_CONTEXT, PASSAGE_ONLY, SELF_EDITS
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit


@dataclass(frozen=True)
class PassageResult:
    """
    What one passage gave under every condition.

    Parameters:
        title (`str`):
            The passage's title.
        self_edits (`tuple[SelfEdit, ...]`):
            The self-edits that were adapted to.
        answers (`Mapping[str, list[list[str]]]`):
            For each condition its runs (one; for the self-edits one per self-edit), and in each run an answer per
            question.
        verdicts (`Mapping[str, list[list[bool]]]`):
            The grader's verdicts on these answers.
    """

    title: str
    self_edits: tuple[SelfEdit, ...]
    answers: Mapping[str, list[list[str]]]
    verdicts: Mapping[str, list[list[bool]]]


def single_passage(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    *,
    num_generations: int = 1,
    passages_per_bank: int = 4,
    temperature: float = 1.0,
    top_p: float = 0.95,
    max_completion_length: int = 512,
    max_answer_length: int = 64,
    seed: int = 0,
    start: int = 0,
) -> Iterator[PassageResult]:
    """
    The paper's single-passage protocol (SEAL, section 4.2): adapt to one passage, ask about it with no passage in view.

    For each passage the model writes self-edits. An adapter for each of them and one for the passage alone are trained
    together in one bank, for a few passages at once, and the questions of all conditions are answered in one batch.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model, with a [`KnowledgeDomain`].
        examples (`Sequence[Mapping]`):
            Passages with questions.
        num_generations (`int`, *optional*, defaults to `1`):
            Self-edits per passage; malformed ones are left out.
        passages_per_bank (`int`, *optional*, defaults to `4`):
            Passages whose adapters are trained together.
        temperature, top_p, max_completion_length:
            As in [`SelfAdaptingLM.propose`].
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling, initialization and order.
        start (`int`, *optional*, defaults to `0`):
            Passages that are already known, from an earlier run. With a multiple of `passages_per_bank` the others come
            out as in one run.

    Yields:
        [`PassageResult`]: one per example from `start` on, as soon as its bank is done.

    Raises:
        GradingIncomplete: The grader could not grade an answer.
        TypeError: The model's domain is not a [`KnowledgeDomain`].
    """
    domain = lm.domain
    if not isinstance(domain, KnowledgeDomain):
        raise TypeError(f"single_passage needs a KnowledgeDomain, not a {type(domain).__name__}.")
    for first in range(start, len(examples), passages_per_bank):
        chunk = examples[first : first + passages_per_bank]
        proposed = lm.propose_batch(
            chunk,
            num_generations,
            temperature=temperature,
            top_p=top_p,
            max_completion_length=max_completion_length,
            seed=seed,
            first_example=first,
        )
        self_edits = [[edit for edit in edits if edit is not None] for edits in proposed]
        adapters = iter(
            lm.adapt(
                [
                    edit
                    for example, edits in zip(chunk, self_edits, strict=True)
                    for edit in (domain.passage_only(example), *edits)
                ],
                seed=seed,
            )
        )
        runs = []  # (place of the example, condition, prompts, adapter)
        for place, (example, edits) in enumerate(zip(chunk, self_edits, strict=True)):
            closed_book = domain.questions(example)
            runs += [
                (place, BASE, closed_book, None),
                (place, IN_CONTEXT, domain.questions_in_context(example), None),
                (place, PASSAGE_ONLY, closed_book, next(adapters)),
                *((place, SELF_EDITS, closed_book, next(adapters)) for _ in edits),
            ]
        flat = iter(
            lm.answer_prompts(
                [prompt for _, _, prompts, _ in runs for prompt in prompts],
                [adapter for _, _, prompts, adapter in runs for _ in prompts],
                max_answer_length=max_answer_length,
            )
        )
        answers = [[next(flat) for _ in prompts] for _, _, prompts, _ in runs]
        verdicts = [require_verdicts(run) for run in domain.grade([chunk[place] for place, *_ in runs], answers)]
        graded = list(zip(runs, answers, verdicts, strict=True))
        for place, (example, edits) in enumerate(zip(chunk, self_edits, strict=True)):
            own = [(run[1], *outcome) for run, *outcome in graded if run[0] == place]
            yield PassageResult(
                title=example.get("title") or "",
                self_edits=tuple(edits),
                answers={name: [one for condition, one, _ in own if condition == name] for name in CONDITIONS},
                verdicts={name: [one for condition, _, one in own if condition == name] for name in CONDITIONS},
            )


@dataclass(frozen=True)
class Summary:
    """
    Accuracies and differences over all passages.

    Parameters:
        accuracies (`dict[str, Accuracy]`):
            Of each condition.
        differences (`dict[str, Difference]`):
            Self-edits minus each other condition, paired by passage.
        num_self_edits (`int`):
            Self-edits in all.
    """

    accuracies: dict[str, Accuracy]
    differences: dict[str, Difference]
    num_self_edits: int


def summarize(results: Sequence[PassageResult]) -> Summary:
    """
    Accuracy of every condition and the paired differences.

    A passage's accuracy with self-edits is the mean over its self-edits, so it is what one self-edit gives on average.
    A passage none of whose self-edits was well-formed counts as answered by the base model: nothing was learned.

    Raises:
        ValueError: No results.
    """
    shares = {condition: [] for condition in CONDITIONS}  # of right answers, per passage and question
    for result in results:
        for condition in CONDITIONS:
            runs = result.verdicts[condition] or result.verdicts[BASE]
            shares[condition].append([sum(verdicts) / len(runs) for verdicts in zip(*runs, strict=True)])
    return Summary(
        accuracies={condition: accuracy(passages) for condition, passages in shares.items()},
        differences={
            condition: paired_difference(shares[condition], shares[SELF_EDITS])
            for condition in CONDITIONS
            if condition != SELF_EDITS
        },
        num_self_edits=sum(len(result.self_edits) for result in results),
    )
