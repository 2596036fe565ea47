"""The scores of a stage's self-edits by the rubric, recorded before anything is trained."""

from collections.abc import Mapping, Sequence

from ..domains.base import SELF_EDITS
from ..grading import RubricJudge
from ..grading.rubric import REPLY_BEGINS, parse_scores, rubric_prompt
from ..records.schema import Proposal, RubricScores
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import Prompt
from .processes import Processes, in_shared_batches
from .stage import Stage


# Self-edits that are scored in one batch.
_PER_BATCH = 32
_MAX_REPLY_TOKENS = 64


def rubric_scores(
    lm: SelfAdaptingLM,
    processes: Processes,
    stage: Stage,
    proposals: Sequence[Proposal],
    judge: RubricJudge | None,
) -> dict[tuple[int, int], Mapping[str, float] | None]:
    """
    Let a judge score the well-formed self-edits, unless the scores are on disk; each process does a share of them.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain. Without a judge it is the base model that scores, without the policy, so that the policy
            does not change how it is judged.
        processes ([`Processes`]):
            The processes of the run.
        stage ([`Stage`]):
            The stage.
        proposals (`Sequence[Proposal]`):
            Its proposals.
        judge ([`RubricJudge`], *optional*):
            A judge.

    Returns:
        `dict[tuple[int, int], Mapping[str, float] | None]`: the scores by example and self-edit; `None` where the reply could not
            be read.

    Raises:
        JudgeRefused: The judge refuses the key, or does not know the model.
    """
    scored = processes.on_main(stage.journal.rubric, stage.round)
    if scored is None:
        judged = [one for one in proposals if one.condition == SELF_EDITS and one.well_formed]

        def score(batch: Sequence[Proposal]) -> list[RubricScores]:
            texts = [lm.domain.content(stage.data.examples[one.example]) for one in batch]
            notes = [one.completion for one in batch]
            found = _scored_by_base(lm, texts, notes) if judge is None else judge.score(texts, notes)
            return [RubricScores(one.example, one.edit, scores) for one, scores in zip(batch, found, strict=True)]

        scored = in_shared_batches(processes, lm.model, judged, _PER_BATCH, score)
        processes.on_main(stage.journal.write_rubric, stage.round, scored)
    return {(one.example, one.edit): one.scores for one in scored}


def _scored_by_base(lm: SelfAdaptingLM, texts: Sequence[str], notes: Sequence[str]) -> list[dict[str, float] | None]:
    is_chat = bool(lm.processing_class.chat_template)
    prompts = [_begun(rubric_prompt(text, own), is_chat) for text, own in zip(texts, notes, strict=True)]
    replies = lm.ask_base(prompts, _MAX_REPLY_TOKENS)
    return [parse_scores(f"{REPLY_BEGINS}{reply}") for reply in replies]


def _begun(prompt: str, is_chat: bool) -> Prompt:
    """A prompt with the beginning of the reply, without which a small model may write something else."""
    if not is_chat:
        return f"{prompt}\n\n{REPLY_BEGINS}"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": REPLY_BEGINS}]
