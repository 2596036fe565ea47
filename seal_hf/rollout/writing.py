"""The self-edits of a stage as the policy or somebody else writes them, with what came of the tools that they call."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..generation.base import Generation
from ..generation.parts import joined_drafts, split_parts
from ..generation.thoughts import after_thought
from ..models.access import policy_in_activation_dtype
from ..models.chat_template import end_of_turn
from ..models.control_tokens import encode_text
from ..self_adapting_lm import SelfAdaptingLM
from ..self_edit import Prompt, SelfEdit
from .examples import completion_room
from .processes import Processes, in_shared_batches
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
        num_tokens (`float`, *optional*):
            Tokens that were written for it, as `written_tokens` of a [`Proposal`].
    """

    generation: Generation
    self_edit: SelfEdit | None
    called: bool = False
    num_tokens: float | None = None


def examples_per_batch(prompts_per_example: int) -> int:
    """How many examples are written about in one batch of generation; the batches are dealt out to the processes in turn."""
    return max(1, _PROMPTS_PER_BATCH // prompts_per_example)


def write_self_edits(
    lm: SelfAdaptingLM,
    config: RolloutConfig,
    processes: Processes,
    stage: Stage,
    writer: SelfAdaptingLM | None = None,
) -> list[list[Written]]:
    """
    Let the policy, or another model, write self-edits about every example of a stage, unless the stage brings them, and carry
    out what they ask of their domain's tool.

    Batches are cut by the examples, and each process does a share of them. The tool is asked once about all self-edits of a
    batch. Of several drafts, or about several parts of an example, what the tool keeps stands for what was written, with the
    tokens that the tokenizer makes of it.

    Returns:
        `list[list[Written]]`: for each example of the stage its self-edits, in every process.
    """
    if not stage.num_generations:
        return [[] for _ in stage.places]
    writer = writer or lm
    num_completions = stage.num_generations * config.num_drafts
    most_parts = max((len(lm.domain.parts(stage.data.examples[place])) for place in stage.places), default=1)
    per_batch = examples_per_batch(num_completions * most_parts)

    def write(places: Sequence[int]) -> list[list[Written]]:
        examples = [stage.data.examples[place] for place in places]
        if stage.completions is None:
            generations = _generated(lm, writer, config, num_completions, stage.seed, places, examples)
        else:
            generations = [
                [
                    as_written(lm.processing_class, after_thought(text), lm.domain.prompt(example))
                    for text in stage.completions[place]
                ]
                for place, example in zip(places, examples, strict=True)
            ]
        return _carried_out(lm, examples, generations, config.num_drafts if stage.completions is None else None)

    hidden = config.disable_tqdm or not processes.is_main
    bar = tqdm(
        total=len(stage.places), desc=f"{stage.name}: self-edits", unit=" examples", leave=False, disable=hidden
    )

    def on_batch(num_examples: int) -> None:
        # The other processes are taken to be as far.
        bar.update(min(processes.count * num_examples, bar.total - bar.n))

    with bar, policy_in_activation_dtype(lm.model):
        return in_shared_batches(processes, lm.model, stage.places, per_batch, write, on_batch)


def as_written(
    processing_class: PreTrainedTokenizerBase, completion: str, prompt: Prompt, finished: bool = True
) -> Generation:
    """A text as if the policy had written it after this prompt, and had ended it or been cut off, without an end token."""
    token_ids = encode_text(processing_class, completion, add_special_tokens=False)
    end = processing_class.eos_token_id if isinstance(prompt, str) else end_of_turn(processing_class)
    if finished and end is not None:
        token_ids = [*token_ids, end]
    return Generation(completion, len(token_ids), finished, tuple(token_ids))


def _generated(
    lm: SelfAdaptingLM,
    writer: SelfAdaptingLM,
    config: RolloutConfig,
    num_completions: int,
    seed: int,
    places: Sequence[int],
    examples: Sequence[Mapping],
) -> list[list[Generation]]:
    """What the writer writes about each example, in the tokens of `lm`."""
    generations = writer.write_batch(
        examples,
        num_completions,
        temperature=config.temperature,
        top_p=config.top_p,
        max_completion_length=[completion_room(writer, example, config.max_completion_length) for example in examples],
        seed=seed,
        numbers=places,
    )
    if writer is lm:
        return generations
    return [[_of_another(lm, one, example) for one in own] for own, example in zip(generations, examples, strict=True)]


def _of_another(lm: SelfAdaptingLM, generation: Generation, example: Mapping) -> Generation:
    """What another model wrote, in the tokens of this one."""
    prompt = lm.domain.prompt(lm.domain.parts(example)[0])
    own = as_written(lm.processing_class, generation.text, prompt, generation.finished)
    return replace(own, unfinished_parts=generation.unfinished_parts)


def _carried_out(
    lm: SelfAdaptingLM,
    examples: Sequence[Mapping],
    generations: Sequence[Sequence[Generation]],
    num_drafts: int | None,
) -> list[list[Written]]:
    """
    The drafts of each example as self-edits of so many, after a tool has been asked about those that call it; what somebody else
    wrote (`None`) stays as it is.
    """
    size = num_drafts or 1
    drafts = [[own[first : first + size] for first in range(0, len(own), size)] for own in generations]
    repeated = [example for example, own in zip(examples, drafts, strict=True) for _ in own]
    num_parts = [len(lm.domain.parts(example)) for example in repeated]
    joined = [
        joined_drafts(own, number)
        for own, number in zip((own for group in drafts for own in group), num_parts, strict=True)
    ]
    parsed = [lm.domain.parse(one.text, example) for one, example in zip(joined, repeated, strict=True)]
    by_tool: list[int] = []
    done = lm.carry_out(parsed, repeated, on_written=by_tool.append)
    calling = [before is not None and bool(before.calls) for before in parsed]
    share = sum(by_tool) / max(1, sum(calling))
    written = []
    for one, example, number, called, self_edit in zip(joined, repeated, num_parts, calling, done, strict=True):
        num_tokens = one.num_tokens + share * called
        if num_drafts is not None and (num_drafts > 1 or number > 1):
            one = _as_one(lm, one, example, number, self_edit and self_edit.kept)
        written.append(Written(one, self_edit, called, None if num_tokens == one.num_tokens else num_tokens))
    remaining = iter(written)
    return [[next(remaining) for _ in own] for own in drafts]


def _as_one(lm: SelfAdaptingLM, joined: Generation, example: Mapping, num_parts: int, kept: str | None) -> Generation:
    """
    Drafts or parts that are joined, or in their place what a tool kept of them, in the tokens that the tokenizer makes of it. What
    is kept is whole, also where the policy was cut off.
    """
    if kept and num_parts > 1 and len(split_parts(kept)) != num_parts:
        raise ValueError(
            f"{type(lm.domain).__name__}.carry_out() kept {len(split_parts(kept))} texts of a self-edit about {num_parts} "
            "parts; keep a text for each part, joined by lines of `---`."
        )
    prompt = lm.domain.prompt(lm.domain.parts(example)[0])
    if kept:
        return replace(as_written(lm.processing_class, kept, prompt), finished=joined.finished)
    whole = as_written(lm.processing_class, joined.text, prompt, joined.finished)
    return replace(whole, unfinished_parts=joined.unfinished_parts if num_parts > 1 else ())
