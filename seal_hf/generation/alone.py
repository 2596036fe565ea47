"""
Generation one prompt at a time, by transformers' own `generate`: for models that cannot be run in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from ..models.attention_kernels import without_cudnn
from ..models.transfers import to_device


# Gives a token for each row of the logits `(R, V)`: on their device, and on the host.
Choice = Callable[[torch.Tensor], tuple[torch.Tensor, list[int]]]


class _Chosen(LogitsProcessor):
    """Leaves `generate` no other token than the one that is chosen."""

    def __init__(self, choose: Choice):
        self.choose = choose

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, _ = self.choose(scores)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


class _AfterToken(StoppingCriteria):
    def __init__(self, add: Callable[[int], bool]):
        self.add = add

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.tensor([self.add(input_ids[0, -1].item())], device=input_ids.device)


def write_alone(
    model: PreTrainedModel, prompt: Sequence[int], limit: int, pad_id: int, choose: Choice, add: Callable[[int], bool]
) -> None:
    """
    Continue one prompt.

    Args:
        model (`PreTrainedModel`):
            The causal LM, in evaluation mode, with the prompt's adapter attached.
        prompt (`Sequence[int]`):
            Its token ids.
        limit (`int`):
            Most new tokens.
        pad_id (`int`):
            A token for padding, of which there is none.
        choose (`Callable`):
            Gives the next token for logits `(1, V)`, such as [`Greedy`].
        add (`Callable[[int], bool]`):
            Takes each new token, and returns whether to stop.
    """
    ids = to_device([list(prompt)], model.device)
    config = GenerationConfig(do_sample=False, max_new_tokens=limit, pad_token_id=pad_id)
    with _own_settings_aside(model), torch.no_grad(), without_cudnn():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=[_Chosen(choose)],
            stopping_criteria=[_AfterToken(add)],
        )


@contextmanager
def _own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's generation config inside the block; `generate` takes from it what it is not told."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
