"""
RMSNorm with frozen weights and a backward pass of its own.

The usual module leaves the backward pass to autograd, which takes a dozen passes over fp32 copies of the activations and
keeps them; written out it is a third of that. On CUDA torch has a kernel for either pass, in place of 17 launches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..models.transfers import to_host


# Since torch 2.9; before that the operator of this name is that of another device.
_HAS_KERNELS = hasattr(torch.ops.aten, "_fused_rms_norm_backward")


class _RMSNorm(torch.autograd.Function):
    """Zhang and Sennrich (2019), in fp32 inside, as transformers' Llama does it."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, scale, weight)
        return weight * (wide * scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        hidden, scale, weight = ctx.saved_tensors
        normed = hidden.float() * scale
        grad_normed = (grad * weight).float()
        mean = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.addcmul(normed, mean, value=-1).mul_(scale).to(hidden.dtype), None, None


# Of each norm that was looked at: for which dtype, and whether it computes what the written-out one does.
_known: WeakKeyDictionary[nn.Module, tuple[torch.dtype, bool]] = WeakKeyDictionary()


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """
    Let a model's RMSNorm modules use the written-out backward pass, on CUDA torch's kernels, inside the block.

    Only those that compute exactly the same on random input are changed; there are variants. Where gradients are kept, those
    whose weights are trained are left alone.
    """
    changed = [
        module for module in _plain_norms(model) if not (torch.is_grad_enabled() and module.weight.requires_grad)
    ]
    # A block may be in another one: adapters are asked while they are trained.
    are_changed = ["forward" in vars(module) for module in changed]
    for module in changed:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module, stays in zip(changed, are_changed, strict=True):
            if not stays:
                del module.forward


def _forward(module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    if hidden_states.device.type == "cuda" and hidden_states.dtype == weight.dtype and _HAS_KERNELS:
        # It rounds once, at its end, and so is up to a unit in the last place of bf16 from the module.
        return torch._fused_rms_norm(hidden_states, weight.shape, weight, module.variance_epsilon)[0]
    return _written_out(module, hidden_states)


def _written_out(module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return _RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)


def _plain_norms(model: nn.Module) -> list[nn.Module]:
    """
    The norms that compute what the written-out one does.

    Each is looked at once; the host waits for the device once for all that are new.
    """
    candidates = [module for module in model.modules() if _may_be_plain(module)]
    new = [module for module in candidates if _known.get(module, (None,))[0] != module.weight.dtype]
    if new:
        with torch.no_grad():
            equal = [_equals_written_out(module) for module in new]
        found = to_host(torch.stack([flag.to(equal[0].device, non_blocking=True) for flag in equal]))
        _known.update({module: (module.weight.dtype, flag) for module, flag in zip(new, found, strict=True)})
    return [module for module in candidates if _known[module][1]]


def _may_be_plain(module: nn.Module) -> bool:
    is_named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return is_named and "forward" not in vars(module)


def _equals_written_out(module: nn.Module) -> torch.Tensor:
    """A boolean on the module's device."""
    weight = module.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    sample = torch.randn((4, *weight.shape), generator=generator, dtype=weight.dtype, device=weight.device)
    usual, written_out = module(sample), _written_out(module, sample)
    if (usual.shape, usual.dtype) != (written_out.shape, written_out.dtype):
        return torch.zeros((), dtype=torch.bool, device=weight.device)
    return (usual == written_out).all()
