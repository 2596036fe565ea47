"""What adapters are asked for the rewards that need no labels, made by the model and recorded before the first adapter is trained."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ..domains.base import SELF_EDITS
from ..generation.base import draw_seed
from ..grading.rewards import OWN_QUESTIONS, SELF_CONSISTENCY
from ..models.access import policy_in_activation_dtype
from ..records.schema import Proposal, RewardQuestions
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .processes import Processes, in_shared_batches
from .stage import Stage


# Examples whose questions the model answers with all in view in one batch.
_EXAMPLES_PER_BATCH = 16


def reward_questions(
    lm: SelfAdaptingLM,
    processes: Processes,
    stage: Stage,
    proposals: Sequence[Proposal],
    self_edit_of: Callable[[Proposal], SelfEdit],
) -> dict[tuple[int, int], dict[str, Mapping]]:
    """
    Let the model make the questions, unless they are on disk; each process does a share of the examples.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain.
        processes ([`Processes`]):
            The processes of the run.
        stage ([`Stage`]):
            The stage.
        proposals (`Sequence[Proposal]`):
            Its proposals.
        self_edit_of (`Callable[[Proposal], SelfEdit]`):
            Returns the self-edit of one that is well-formed, with what its tool gave.

    Returns:
        `dict[tuple[int, int], dict[str, Mapping]]`: by example and self-edit, and by the reward, the example of the domain that the
            adapter of the self-edit is asked about.
    """
    names = [name for name in (OWN_QUESTIONS, SELF_CONSISTENCY) if name in stage.rewards.names]
    if not names:
        return {}
    made = processes.on_main(stage.journal.reward_questions, stage.round)
    if made is None:
        by_example: dict[int, dict[int, Proposal]] = defaultdict(dict)
        for one in proposals:
            if one.condition == SELF_EDITS and one.well_formed:
                by_example[one.example][one.edit] = one

        def make(places: Sequence[int]) -> list[RewardQuestions]:
            known = {place: by_example[place] for place in places if place in by_example}
            return _made(lm, stage, names, known, self_edit_of)

        with policy_in_activation_dtype(lm.model):
            made = in_shared_batches(processes, lm.model, stage.places, _EXAMPLES_PER_BATCH, make)
        processes.on_main(stage.journal.write_reward_questions, stage.round, made)
    asked: dict[tuple[int, int], dict[str, Mapping]] = defaultdict(dict)
    for one in made:
        if one.asked is not None:
            asked[one.example, one.edit][one.reward] = one.asked
    return asked


def _made(
    lm: SelfAdaptingLM,
    stage: Stage,
    names: list[str],
    by_example: Mapping[int, Mapping[int, Proposal]],
    self_edit_of: Callable[[Proposal], SelfEdit],
) -> list[RewardQuestions]:
    """What these rewards ask about the examples at these places, of which the well-formed self-edits are given by number."""
    made = []
    examples = [stage.data.examples[place] for place in by_example]
    if OWN_QUESTIONS in names:
        for (place, proposals), example in zip(by_example.items(), examples, strict=True):
            known = {number: self_edit_of(one) for number, one in proposals.items()}
            edits = [known.get(number) for number in range(stage.num_generations)]
            asked = lm.domain.own_examples(example, edits, lm, draw_seed(stage.seed, place))
            made += [RewardQuestions(OWN_QUESTIONS, place, number, one) for number, one in enumerate(asked)]
    if SELF_CONSISTENCY in names:
        for (place, proposals), one in zip(by_example.items(), lm.domain.open_book(examples, lm), strict=True):
            made += [RewardQuestions(SELF_CONSISTENCY, place, number, one) for number in proposals]
    return made
