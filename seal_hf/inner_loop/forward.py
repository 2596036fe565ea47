"""
The forward and backward pass of a bank's step over a frozen model.

A [`PackedBatch`] goes through the model as one row where the model allows it, which is found out by trying. Models whose
layers mix tokens in other ways than plain causal attention get one padded batch per block instead: padding is on the
right, under a causal mask no real token sees it, so no mask is needed.
"""

import inspect
import logging
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn

from ..adapters.layout import LoraLayout
from ..models.access import activation_dtype, attention_set, head_input_changed, unwrap
from ..models.architecture import linear_modules, see_all_tokens
from .attention import PACKED_ATTENTION, PackedAttention, UnsupportedAttention
from .blocks import Batch
from .checkpointing import checkpointed_layers
from .lora import ChoiceOfTokens, LoraParameters, has_grouped_products, lora_added
from .losses import cross_entropy
from .packing import PackedBatch
from .passes import PassPlan
from .update import TrainingSequence


logger = logging.getLogger(__name__)


class TrainingForward:
    """
    Forward and backward passes of adapters over a frozen model in evaluation mode.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The model. It is run on a few tokens to find out what it allows.
        layout (`LoraLayout`):
            The adapted modules.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the layers compute their activations again in the backward pass, which takes a third more time and
            little memory.

    Attributes:
        packs (`bool`):
            Whether all blocks go through the model as one row.
        apart (`bool`):
            Whether each adapter has a pass of its own.
        plan (`PassPlan`):
            How the adapters of a step are shared out to passes and blocks.
        loss (`Callable`):
            The loss at the labelled tokens (see `seal_hf.inner_loop.losses`).
    """

    def __init__(self, model: nn.Module, layout: LoraLayout, gradient_checkpointing: bool = False):
        self.model, self.layout, self.gradient_checkpointing = model, layout, gradient_checkpointing
        self.base = unwrap(model)
        self.device = self.base.get_input_embeddings().weight.device
        self.grouped = has_grouped_products(layout, activation_dtype(model), self.device)
        self.modules = linear_modules(model)
        with torch.no_grad():
            self.loss = cross_entropy(self._plain_head())
            self.packs, attends_by_block = self._can_pack()
        # Modules of single experts see a choice of tokens, of which it is not known whose they are.
        self.apart = not see_all_tokens([module.name for module in layout.modules])
        self.plan = PassPlan(
            model,
            layout,
            packs=self.packs,
            grouped=self.grouped,
            attends_by_block=attends_by_block,
            checkpointed=gradient_checkpointing,
        )

    def backward(self, parameters: LoraParameters, batches: Sequence[Sequence[Batch]], first: int = 0) -> torch.Tensor:
        """
        One forward and backward pass, which writes the gradients of the matrices.

        Args:
            parameters (`LoraParameters`):
                The matrices of the adapters, in the order of their batches.
            batches (`Sequence[Sequence[Sequence[TrainingSequence]]]`):
                For each block its adapters' sequences.
            first (`int`, *optional*, defaults to `0`):
                Place of the first of these adapters among the parameters.

        Returns:
            `torch.Tensor` of shape `(K,)`: the loss of each adapter, the mean over its labels.

        Raises:
            ValueError: No gradient reaches the adapters, or the output embedding gets other states than the tokens'.
        """
        if not self.apart:
            try:
                return self._backward(parameters, batches, first)
            except ChoiceOfTokens as error:
                logger.info("%s; adapters are trained one after the other.", error)
                self.apart = True
        alone = [batch for block in batches for batch in block]
        losses = [self._backward(parameters, [[batch]], first + place) for place, batch in enumerate(alone)]
        return torch.cat(losses)

    def _backward(self, parameters: LoraParameters, batches: Sequence[Sequence[Batch]], first: int) -> torch.Tensor:
        packed = PackedBatch(batches, self.device, self.plan.part_costs)
        grouped = self.grouped and not self.apart and len(packed.blocks) > 1  # one block is fewer launches
        loras = parameters.by_module(first, packed.num_adapters, () if grouped else packed.blocks)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(lora_added(self.modules, loras, packed, self.layout.scaling))
            if self.packs:
                stack.enter_context(attention_set(self.base, PACKED_ATTENTION))
            if self.gradient_checkpointing:
                stack.enter_context(checkpointed_layers(self.base, parameters.anchor))
            token_losses = self._losses(packed) * packed.shares
            if not token_losses.requires_grad:
                raise ValueError(
                    f"No gradient reaches the adapters of {type(self.base).__name__}, whose layers are differentiated in a way "
                    "of their own; use another model."
                )
            # The adapters do not meet in any product, so the gradient of the sum is each adapter's own.
            token_losses.sum().backward()
        for lora in loras.values():
            lora.zero_if_unused()
        losses = torch.zeros(packed.num_adapters, device=self.device)
        return losses.index_add_(0, packed.owners, token_losses.detach())

    def _losses(self, packed: PackedBatch) -> torch.Tensor:
        """The loss at each label, `(M,)`, in nats, fp32."""
        hidden = []

        def select(states: torch.Tensor) -> torch.Tensor:
            if states.shape[:-1].numel() != packed.num_tokens:
                raise ValueError(
                    f"The output embedding of {type(self.base).__name__} gets other states than one for each token, so that it "
                    "cannot be trained here; use another model."
                )
            labelled = states.flatten(0, 1).index_select(0, packed.positions)
            hidden.append(labelled)
            return labelled if self.loss.takes_logits else labelled[:0]

        with head_input_changed(self.base, select):
            logits = self._logits(packed)
        return self.loss(hidden[0], logits, packed.labels)

    def _logits(self, packed: PackedBatch) -> torch.Tensor:
        if self.packs:
            return self._packed_logits(packed, PackedAttention(packed.blocks, packed.sequence_ends))
        return self.base(input_ids=packed.input_ids.view(-1, packed.blocks[0].lengths[0]), use_cache=False).logits

    def _packed_logits(self, packed: PackedBatch, attention: PackedAttention) -> torch.Tensor:
        return self.base(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            use_cache=False,
            packed_attention=attention,
        ).logits

    def _plain_head(self) -> nn.Linear | None:
        head, outputs = self.base.get_output_embeddings(), []
        handle = head.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            logits = self.base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device)).logits
        finally:
            handle.remove()
        return head if type(head) is nn.Linear and logits is outputs[0] else None

    def _can_pack(self) -> tuple[bool, bool]:
        """Whether sequences in one row give the logits that they give alone, and whether they attend block by block."""
        config = self.base.config.get_text_config()
        parameters = inspect.signature(self.base.forward).parameters
        takes_options = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        if not (getattr(self.base, "_supports_attention_backend", False) and takes_options):
            return False, False
        if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
            return False, False
        vocabulary = self.base.get_input_embeddings().weight.shape[0]
        sequences = [
            TrainingSequence(tuple((first + 7 * i) % vocabulary for i in range(length)))
            for first, length in ((5, 12), (3, 9))
        ]
        packed = PackedBatch([[[sequence]] for sequence in sequences], self.device)
        attention = PackedAttention(packed.blocks, packed.sequence_ends)
        try:
            with attention_set(self.base, PACKED_ATTENTION):
                logits = self._packed_logits(packed, attention)[0]
        except UnsupportedAttention as error:
            logger.debug("%s", error)
            return False, False
        if getattr(config, "sliding_window", None) is not None and attention.windows == {None}:
            return False, False  # the window is in a mask that packed attention does not see
        alone = torch.cat(
            [
                self.base(input_ids=packed.input_ids[None, block.tokens], use_cache=False).logits[0]
                for block in packed.blocks
            ]
        )
        error = (logits - alone).float().abs().mean() / alone.float().std()
        return bool(error < torch.finfo(alone.dtype).eps ** 0.5), attention.by_block
