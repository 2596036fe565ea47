"""The self-edits of a stage as the policy or somebody else writes them, with what came of the tools that they call."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..generation.base import Generation
from ..models.access import policy_in_activation_dtype
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import SelfEdit
from .examples import completion_room
from .processes import Processes
from .stage import RolloutConfig, Stage


# Prompts of one batch of generation.
_PROMPTS_PER_BATCH = 64


class Written(NamedTuple):
    """
    One self-edit.

    Parameters:
        generation ([`Generation`]):
            What was written.
        self_edit ([`SelfEdit`], *optional*):
            What it stands for; `None` where it is malformed.
        called (`bool`, *optional*, defaults to `False`):
            Whether it called a tool, which has been asked.
    """

    generation: Generation
    self_edit: SelfEdit | None
    called: bool = False


def write_self_edits(
    lm: SelfAdaptingLM, config: RolloutConfig, processes: Processes, stage: Stage
) -> list[list[Written]]:
    """
    Let the policy write self-edits about every example of a stage, unless the stage brings them, and carry out what they ask
    of their domain's tool.

    Batches are cut by the examples, and each process does a share of them. The tool is asked once about all self-edits of a
    batch.

    Returns:
        `list[list[Written]]`: for each example of the stage its self-edits, in every process.
    """
    per_batch = max(1, _PROMPTS_PER_BATCH // stage.num_generations)
    starts = range(0, len(stage.places), per_batch)
    own = {}
    with policy_in_activation_dtype(lm.model):
        for first in starts[processes.index :: processes.count]:
            places = stage.places[first : first + per_batch]
            examples = [stage.data.examples[place] for place in places]
            if stage.completions is None:
                generations = lm.write_batch(
                    examples,
                    stage.num_generations,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    max_completion_length=[
                        completion_room(lm, example, config.max_completion_length) for example in examples
                    ],
                    seed=stage.seed,
                    numbers=places,
                )
            else:
                generations = [[_as_written(lm, text) for text in stage.completions[place]] for place in places]
            own[first] = _carried_out(lm, examples, generations)
    batches: dict[int, list[list[Written]]] = {}
    for written in processes.gather(own):
        batches.update(written)
    return [written for first in starts for written in batches[first]]


def _as_written(lm: SelfAdaptingLM, completion: str) -> Generation:
    """A completion that somebody else wrote as if the policy had written and ended it."""
    tokenizer = lm.processing_class
    token_ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        token_ids = [*token_ids, tokenizer.eos_token_id]
    return Generation(completion, len(token_ids), True, tuple(token_ids))


def _carried_out(
    lm: SelfAdaptingLM, examples: Sequence[Mapping], generations: Sequence[Sequence[Generation]]
) -> list[list[Written]]:
    """Completions of each example as self-edits, after a tool has been asked about those that call it."""
    pairs = [(one, example) for example, own in zip(examples, generations, strict=True) for one in own]
    parsed = [lm.domain.parse(one.text, example) for one, example in pairs]
    done = lm.carry_out(parsed, [example for _, example in pairs])
    written = (
        Written(generation, self_edit, called=before is not None and bool(before.calls))
        for (generation, _), before, self_edit in zip(pairs, parsed, done, strict=True)
    )
    return [[next(written) for _ in own] for own in generations]
