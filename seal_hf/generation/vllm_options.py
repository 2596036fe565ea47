"""The options of scripts and trainer for generation by vLLM, which have TRL's names."""

from typing import Any, Protocol

from .vllm_engine import VLLMColocateConfig


VLLM_MODES = ("server", "colocate")


class VLLMOptions(Protocol):
    """What has these options: a trainer's config, or the arguments of a script."""

    use_vllm: bool
    vllm_mode: str
    vllm_server_base_url: str
    vllm_gpu_memory_utilization: float
    vllm_enable_sleep_mode: bool


def vllm_arguments(options: VLLMOptions) -> dict[str, Any]:
    """
    The arguments of [`SelfAdaptingLM`] for these options; none where vLLM is not used.

    Raises:
        ValueError: An unknown mode, or a share of the memory out of its range.
    """
    if options.vllm_mode not in VLLM_MODES:
        raise ValueError(f"vllm_mode={options.vllm_mode!r} must be {' or '.join(map(repr, VLLM_MODES))}.")
    colocate = VLLMColocateConfig(options.vllm_gpu_memory_utilization, options.vllm_enable_sleep_mode)
    if not options.use_vllm:
        return {}
    if options.vllm_mode == "server":
        return {"vllm_server_base_url": options.vllm_server_base_url}
    return {"vllm_colocate": colocate}
