"""
A frozen base model of which every process holds a share, while each trains and asks adapters of its own.

FSDP2 shards the weights (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) and gathers them layer by layer.
It gathers in the order in which a module is called, which has to be the same in all processes. Here it is not: they train and
write in banks, steps and texts of different lengths. So before each layer the processes tell each other which one they want,
and all of them gather each layer that one wants. A process that has nothing to do takes part until all are done. The hooks are
on the layers themselves, whatever goes on in them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import distributed, nn
from torch.distributed import DeviceMesh, ProcessGroup
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from .access import checkpointable_layers, policy_parameters, unwrap
from .identity import keep_weights_fingerprint


# What a process tells the others in place of the number of a unit.
_BEGINS, _IS_DONE, _HAS_FAILED = -1, -2, -3

_sharded: WeakKeyDictionary[nn.Module, "_ShardedBase"] = WeakKeyDictionary()


class OtherProcessFailed(RuntimeError):
    """Another process that holds a share of the base has ended its work with an error."""


def shard_base(model: nn.Module, mesh: DeviceMesh, group: ProcessGroup) -> None:
    """
    Keep this process's share of the base's weights alone, in place.

    The matrices of the decoder layers and of the embeddings become DTensors on the mesh's device. Vectors, such as biases and
    the weights of norms, stay whole in every process, as the policy adapter does. No process waits for another here. After it,
    the model is called inside [`gathering`].

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model, whole, with or without a policy adapter, such as on the CPU.
        mesh (`DeviceMesh`):
            The processes, in one dimension.
        group (`ProcessGroup`):
            The same processes on gloo, over which they tell each other what they want.

    Raises:
        ValueError: The model is quantized, has no layers that could be gathered one by one, or layers that share weights.
    """
    base = unwrap(model)
    name = type(base).__name__
    if getattr(base, "is_quantized", False):
        raise ValueError(
            f"shard_base=True cannot shard the quantized weights of {name}; leave the quantization out, or shard_base."
        )
    layers = checkpointable_layers(base)
    if not layers:
        raise ValueError(
            f"{name} has no decoder layers that could be gathered one by one; leave shard_base out for this model."
        )
    whole = {*policy_parameters(model), *(parameter for parameter in base.parameters() if parameter.dim() < 2)}
    keep_weights_fingerprint(model)
    inputs, outputs = base.get_input_embeddings(), base.get_output_embeddings()
    is_tied = outputs.weight is inputs.weight
    parts = [
        [inputs, outputs] if is_tied else [inputs],
        *([layer] for layer in layers),
        *([] if is_tied else [[outputs]]),
    ]
    seen: set[nn.Parameter] = set()
    for modules in parts:
        own = {parameter for module in modules for parameter in module.parameters()} - whole
        if seen & own:
            raise ValueError(
                f"Layers of {name} share weights, so that they cannot be gathered one by one; leave shard_base out."
            )
        seen |= own
    units = [fully_shard(_Unit(modules), mesh=mesh, ignored_params=whole) for modules in parts]
    base.to(mesh.device_type)  # what is whole
    _sharded[base] = _ShardedBase(base, units, parts, group)


@contextmanager
def gathering(model: nn.Module) -> Iterator[None]:
    """
    Let a model that is sharded be called inside the block; nothing for other models.

    All processes come to the block, and each calls the model as often as it needs to, in passes of any kind. At the end of its
    block a process helps to gather what the others need, until all have come to theirs. So inside the block the processes
    share nothing else.

    Raises:
        OtherProcessFailed: Another process left the block with an error.
    """
    base = _sharded.get(unwrap(model))
    if base is None or base.is_open:  # whoever opened it waits for the others
        yield
        return
    with base.open():
        yield


class _Unit(nn.Module):
    """Modules whose weights are gathered together. It is not called, so that FSDP2 does not gather by itself."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)


class _ShardedBase:
    """
    The units of a base model, of which one at a time is whole.

    Parameters:
        base (`PreTrainedModel`):
            The model.
        units (`Sequence[FSDPModule]`):
            What is gathered together. The first one has the input embedding, with which every pass begins.
        parts (`Sequence[Sequence[nn.Module]]`):
            The modules of each unit.
        group (`ProcessGroup`):
            The processes.
    """

    def __init__(
        self, base: PreTrainedModel, units: Sequence[_Unit], parts: Sequence[Sequence[nn.Module]], group: ProcessGroup
    ):
        self.is_open = False
        self._units, self._group = units, group
        self._whole: int | None = None
        self._is_telling = False
        base.get_input_embeddings().register_forward_pre_hook(self._begin_pass)
        for number, modules in enumerate(parts):
            for module in modules:
                module.register_forward_pre_hook(partial(self._before_forward, number))
                module.register_forward_hook(partial(self._before_backward, number))

    @contextmanager
    def open(self) -> Iterator[None]:
        self.is_open = True
        self._is_telling = False
        try:
            yield
            self._release()
            while any(wanted != _IS_DONE for wanted in self._tell(_IS_DONE)):
                pass
        except OtherProcessFailed:
            raise
        except Exception:
            # Not where what failed is the exchange itself, such as when a process was lost.
            if not self._is_telling:
                self._release()
                self._tell(_HAS_FAILED)
            raise
        finally:
            self.is_open = False
            self._release()

    def _begin_pass(self, module: nn.Module, args: tuple) -> None:
        """
        Begin a pass when all begin one that have not ended their work: then a layer is gathered once for all of them.
        """
        self._require_open()
        self._release()
        while any(wanted not in (_BEGINS, _IS_DONE) for wanted in self._tell(_BEGINS)):
            pass

    def _before_forward(self, number: int, module: nn.Module, args: tuple) -> None:
        self._gather(number)

    def _before_backward(self, number: int, module: nn.Module, args: tuple, output: Any) -> None:
        states = output if isinstance(output, torch.Tensor) else output[0]
        if states.requires_grad:
            states.register_hook(lambda grad: self._gather(number))

    def _gather(self, number: int) -> None:
        """Have the weights of one unit whole, and no others. Those of the last one are kept until another one is used."""
        if number == self._whole:
            return
        self._require_open()
        self._release()
        self._tell(number)

    def _release(self) -> None:
        if self._whole is not None:
            self._units[self._whole].reshard()
            self._whole = None

    def _tell(self, wanted: int) -> list[int]:
        """
        Tell the other processes what this one wants, and gather with them each unit that one of them wants.

        Returns:
            `list[int]`: what each process wants; it has got it where that is a unit.
        """
        self._is_telling = True
        own = torch.tensor(wanted)
        found = [torch.empty_like(own) for _ in range(self._group.size())]
        distributed.all_gather(found, own, group=self._group)
        by_rank = [int(one) for one in found]
        try:
            for number in sorted({one for one in by_rank if one >= 0}):
                self._units[number].unshard()
                if number == wanted:
                    self._whole = number
                else:
                    self._units[number].reshard()
        except torch.OutOfMemoryError as error:
            # Not one that is tried again with less: the others have gone on without this process.
            raise RuntimeError(
                "The memory does not hold a layer of the sharded base beside what is trained; lower adapters_per_bank or "
                f"inner_max_length, or share the base with more processes. The cause was: {error}"
            ) from error
        self._is_telling = False
        if _HAS_FAILED in by_rank and wanted != _HAS_FAILED:
            rank = by_rank.index(_HAS_FAILED)
            raise OtherProcessFailed(
                f"Process {rank} of this run has ended its work with an error; its own message says which."
            )
        return by_rank

    def _require_open(self) -> None:
        if not self.is_open:
            raise RuntimeError(
                "The base is sharded, and its weights are gathered by all processes together; call the model inside "
                "`seal_hf.models.sharding.gathering(model)`, in all of them."
            )
