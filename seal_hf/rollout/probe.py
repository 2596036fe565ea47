"""How fast this machine trains and writes, by a few steps whose results are thrown away."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..domains.base import Condition
from ..inner_loop.training import InnerStep
from ..models.access import policy_in_activation_dtype
from ..models.sharding import gathering
from ..self_adapting_lm import SelfAdaptingLM


_STEPS = 4
_TOKENS = 8


@dataclass(frozen=True)
class Pace:
    """
    What work takes on this machine.

    Parameters:
        tokens_per_second (`float`):
            Tokens that a bank trains on in a second.
        prompt_seconds, token_seconds (`float`):
            What a prompt and a written token take in a batch.
    """

    tokens_per_second: float
    prompt_seconds: float
    token_seconds: float

    def seconds(self, num_trained: float, num_prompts: int, num_written: float) -> float:
        """The expected time for tokens that are trained on, prompts, and tokens that are written."""
        trained = num_trained / self.tokens_per_second
        return trained + num_prompts * self.prompt_seconds + num_written * self.token_seconds


def measure_pace(lm: SelfAdaptingLM, condition: Condition, examples: Sequence[Mapping], num_adapters: int) -> Pace:
    """
    Train a bank for a few steps, and write a few tokens.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model.
        condition ([`Condition`]):
            A baseline that trains; what it trains on for these examples is trained on.
        examples (`Sequence[Mapping]`):
            Examples of the domain, at least one.
        num_adapters (`int`):
            Adapters in the bank.
    """
    batch = [examples[i % len(examples)] for i in range(num_adapters)]
    marks: list[tuple[int, float]] = []
    stop = threading.Event()

    def on_step(step: InnerStep) -> None:
        if step.step == 1:  # again, where the memory ran out before
            marks.clear()
        marks.append((step.num_tokens, step.seconds))
        if step.step >= _STEPS:
            stop.set()

    def writing_seconds(num_tokens: int) -> float:
        start = time.perf_counter()
        lm.write_batch(batch, 1, temperature=1.0, top_p=1.0, max_completion_length=num_tokens, seed=0)
        return time.perf_counter() - start

    with policy_in_activation_dtype(lm.model), gathering(lm.model):
        lm.adapt([condition.self_edit(example) for example in batch], on_step=on_step, stop=stop)
        one, more = writing_seconds(1), writing_seconds(1 + _TOKENS)
    # The first step is slower, since memory is taken for the first time; it counts only where there is no other.
    (first_tokens, first_seconds), (tokens, seconds) = marks[0] if len(marks) > 1 else (0, 0.0), marks[-1]
    return Pace(
        tokens_per_second=(tokens - first_tokens) / (seconds - first_seconds),
        prompt_seconds=one / len(batch),
        token_seconds=max(more - one, 0.0) / _TOKENS / len(batch),
    )
