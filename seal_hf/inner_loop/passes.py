"""How the adapters of a step are shared out to forward passes and to blocks of like sequences, by what a device is good at."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..adapters.layout import LoraLayout
from ..models.access import unwrap
from ..models.architecture import linear_modules, linear_sizes
from ..models.memory import activation_bytes_per_token, free_memory
from .blocks import ONE_PART, Batch, PartCosts, cut_into_blocks, padded_sizes, share_out


# On a CPU: what one more block costs besides its tokens, in tokens, and one more forward and backward pass. Measured.
_BLOCK_COST, _PASS_COST = 24, 64
# On a CPU: what one more part of a block costs that attends by itself, in tokens. By estimate: a third of a block.
_PART_COST = 8
# Tokens of one pass on a CPU; with more, the activations outgrow its caches.
_PASS_TOKENS = 1024
# On a GPU more tokens than these keep it no busier, and their activations get this share of the free memory. The rest is
# left to what a pass holds for a moment, and to the error of the estimate.
_GPU_PASS_TOKENS, _MEMORY_SHARE = 16384, 0.7
# What a launch costs a GPU, in weights times tokens: the 5 us until a small kernel is through are the time in which a GPU at
# 125 TFLOP/s, a good rate for an A100, multiplies 1.6e8 weights with a token forward and backward (4 operations each).
_LAUNCH_PRODUCTS = 5e-6 * 125e12 / 4
# Launches that one more block takes: two products forward and four backward in each adapted module, and in each layer whose
# attention goes by block its products, copies and softmax. One more pass takes all launches of a layer, about as many.
_LORA_LAUNCHES, _ATTENTION_LAUNCHES, _LAYER_LAUNCHES = 6, 20, 100
# Launches in each adapted module that grouped products take more than one block does, since they neither scale nor add up.
_GROUPED_LAUNCHES = 5


def pass_tokens(device: torch.device) -> int:
    """About how many tokens a pass has at most (see [`share_out`]), where the memory holds them."""
    return _PASS_TOKENS if device.type == "cpu" else _GPU_PASS_TOKENS


class PassPlan:
    """
    What a pass and a block may hold, and what they cost.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The model, on its device, with as much memory free as there is when it is trained on.
        layout (`LoraLayout`):
            The adapted modules.
        packs (`bool`):
            Whether blocks go through the model together, as one row.
        grouped (`bool`):
            Whether grouped products take the adapters of all blocks at once.
        attends_by_block (`bool`):
            Whether attention goes block by block.
        checkpointed (`bool`):
            Whether the layers keep nothing but their inputs for the backward pass.

    Attributes:
        part_costs ([`PartCosts`]):
            What the parts of a block cost. One call of flash attention takes sequences of any lengths, but none that share a
            prefix, and a model that is not packed takes sequences of one length.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: LoraLayout,
        *,
        packs: bool,
        grouped: bool,
        attends_by_block: bool,
        checkpointed: bool,
    ):
        self.packs = packs
        # Then more blocks than one cost nothing.
        self.by_adapter = packs and grouped and not attends_by_block
        device = model.get_input_embeddings().weight.device
        if device.type == "cpu":
            self.block_cost, self.pass_cost, part_cost = _BLOCK_COST, _PASS_COST, _PART_COST
            self.most_tokens = pass_tokens(device) if packs else None
        else:
            num_layers = unwrap(model).config.get_text_config().num_hidden_layers
            per_launch = _LAUNCH_PRODUCTS / _num_weights(model)
            lora = _LORA_LAUNCHES * len(layout.modules)
            attention = _ATTENTION_LAUNCHES * num_layers
            self.block_cost = round((lora * (not grouped) + attention * attends_by_block) * per_launch)
            self.grouped_cost = round(_GROUPED_LAUNCHES * len(layout.modules) * per_launch)
            self.pass_cost = round((lora + _LAYER_LAUNCHES * num_layers) * per_launch)
            part_cost = round(attention * per_launch)
            room = int(free_memory(device) * _MEMORY_SHARE) // activation_bytes_per_token(model, checkpointed)
            self.most_tokens = max(1, min(pass_tokens(device), room))
        self.part_costs = ONE_PART
        if packs:
            self.part_costs = PartCosts(part_cost, part_cost) if attends_by_block else PartCosts(length=0)

    def cut(self, batches: Mapping[int, Batch]) -> list[list[list[int]]]:
        """
        Share the adapters of a step out to passes and blocks.

        Args:
            batches (`Mapping[int, Sequence[TrainingSequence]]`):
                What each adapter trains on.

        Returns:
            `list[list[list[int]]]`: for each forward pass its blocks, for each block its adapters.
        """
        if self.by_adapter:
            together, apart = [list(batches)], [[adapter] for adapter in batches]
            padding = self._num_tokens(together, batches) - self._num_tokens(apart, batches)
            blocks = together if padding <= self.grouped_cost else apart
        else:
            block_cost = self.block_cost if self.packs else self.pass_cost
            blocks = cut_into_blocks(batches, block_cost, self.part_costs)
        passes = [blocks]
        if self.most_tokens is not None:
            passes = share_out(batches, blocks, self.most_tokens, self.part_costs)
        return passes if self.packs else [[block] for own in passes for block in own]

    def _num_tokens(self, blocks: Sequence[Sequence[int]], batches: Mapping[int, Batch]) -> int:
        """Tokens of blocks, padding included."""
        sizes = padded_sizes(batches, blocks, self.part_costs)
        return sum(len(block) * size for block, size in zip(blocks, sizes, strict=True))


def _num_weights(model: nn.Module) -> int:
    """Of the linear layers, which do nearly all the arithmetic."""
    return sum(math.prod(linear_sizes(module)) for module in linear_modules(model).values())
