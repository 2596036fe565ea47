"""Completions that self-edits are parsed from: of many examples in common batches, of an example in parts side by side."""

import threading
from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..domains.base import Domain
from .base import Generation, TextGenerator
from .parts import JoinedParts
from .thoughts import without_thoughts


def write_completions(
    generator: TextGenerator,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    examples: Sequence[Mapping],
    num_generations: int,
    *,
    temperature: float,
    top_p: float,
    max_completion_length: int | Sequence[int],
    seed: int,
    numbers: Sequence[int] | None = None,
    writer: Adapter | None = None,
    on_text: Callable[[list[str]], bool | None] | None = None,
    stop: threading.Event | None = None,
) -> list[list[Generation]]:
    """
    Sample completions of the domain's prompts, for many examples in common batches.

    Args:
        generator ([`TextGenerator`]):
            Writes them.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        domain ([`Domain`]):
            Makes the prompts.
        examples (`Sequence[Mapping]`):
            Examples of the domain.
        num_generations (`int`):
            Completions for each.
        temperature, top_p, on_text, stop:
            As in [`SelfAdaptingLM.propose`].
        max_completion_length (`int` or `Sequence[int]`):
            Longest completion, in tokens: of all examples, or of each. Of an example in several parts (see
            [`Domain.parts`]) the longest about a part.
        seed (`int`):
            Completion `i` of the example with the number `e` is drawn from the stream of `(seed, e, i)`.
        numbers (`Sequence[int]`, *optional*):
            The number of each example, such as its place in a larger set. Defaults to 0, 1, 2 and so on.
        writer ([`Adapter`], *optional*):
            An adapter that writes.

    Returns:
        `list[list[Generation]]`: `num_generations` for each example. The text of one is what follows its thought, and
        empty where the thought never closes; its tokens are all that were written.

    Raises:
        ValueError: `num_generations` below 1, an empty passage, or one that does not fit the model's context.
    """
    if num_generations < 1:
        raise ValueError(f"num_generations={num_generations} must be at least 1.")
    is_one = isinstance(max_completion_length, int)
    limits = [max_completion_length] * len(examples) if is_one else max_completion_length
    if limits and min(limits) < 1:
        raise ValueError(f"max_completion_length={min(limits)} must be at least 1.")
    numbers = range(len(examples)) if numbers is None else numbers
    parts = [domain.parts(example) for example in examples]
    places = [(e, i) for e in range(len(examples)) for i in range(num_generations)]
    joined = JoinedParts([len(parts[e]) for e, _ in places], on_text)
    prompts = [domain.prompt(part) for e, _ in places for part in parts[e]]
    generations = generator.sample(
        prompts,
        # The stream of a part has its number, where there are several.
        [
            (seed, numbers[e], i, *([part] if len(parts[e]) > 1 else []))
            for e, i in places
            for part in range(len(parts[e]))
        ],
        adapters=writer and [writer] * len(prompts),
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=[limits[e] for e, _ in places for _ in parts[e]],
        on_text=None if on_text is None else joined.on_text,
        stop=stop,
    )
    written = iter(joined.join(without_thoughts(generations, prompts, tokenizer)))
    return [[next(written) for _ in range(num_generations)] for _ in examples]
