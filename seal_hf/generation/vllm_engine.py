"""An engine of vLLM that belongs to this process, and the adapters in it."""

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

from ..adapters.adapter import Adapter
from .vllm_adapters import LoadedAdapters, rank_with_policy, shared_folder
from .vllm_client import RUN_KEEPS
from .vllm_process import end_with, engine_environment


logger = logging.getLogger(__name__)

# Adapters in one batch, as of the server that trainers/vllm_server.py starts.
MAX_LORAS = 4
# Seconds after which it is seen whether an engine that has not answered still lives.
_POLL_SECONDS = 1.0


class VLLMEngineEnded(ChildProcessError):
    """The engine's process has ended, or broke a text off."""


@dataclass(frozen=True)
class VLLMColocateConfig:
    """
    An engine of vLLM in the trainer's process, by the names that TRL gives its options.

    Parameters:
        gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the card's memory that the engine takes for weights and cache, or of the machine's on a CPU; above 0, at
            most 1.
        enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Whether the engine gives its memory on the card back between calls: its weights wait in the machine's memory. Off
            where vLLM has no sleep mode, such as on a CPU, with a warning.

    Raises:
        ValueError: A share out of its range.
    """

    gpu_memory_utilization: float = 0.3
    enable_sleep_mode: bool = False

    def __post_init__(self):
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"vllm_gpu_memory_utilization={self.gpu_memory_utilization} must be above 0 and at most 1."
            )


def installed_version() -> str:
    """
    The version of the installed vLLM.

    Raises:
        ImportError: There is none.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "vllm_mode='colocate' needs vLLM in the trainer's environment; run `pip install 'seal-hf[vllm]'`, or for a "
            "CPU see docs/vllm.md."
        )
    # vLLM reads these when it is imported, and hands them on to its engine.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import __version__

    return __version__


class VLLMEngine:
    """
    An engine of vLLM for this process alone, without tensor parallelism.

    vLLM runs it in a process of its own, which ends with this one: it binds threads, sets seeds and makes a group of
    `torch.distributed`, and none of it reaches the trainer.

    Parameters:
        model (`str`):
            Folder or Hub id that it loads the base model from.
        revision (`str`, *optional*):
            Commit on the Hub.
        dtype (`torch.dtype`):
            Dtype of weights and activations.
        device (`torch.device`):
            Where the trainer has its model: a GPU by its index, or the CPU.
        max_lora_rank (`int`):
            Greatest rank of an adapter, one that vLLM takes (see [`server_rank`]).
        config ([`VLLMColocateConfig`]):
            Memory and sleep mode.

    Attributes:
        context_length (`int`):
            Most tokens of a prompt with its completion: of the model, or what there is memory for.

    Raises:
        ValueError: It could not be started.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        dtype: torch.dtype,
        device: torch.device,
        max_lora_rank: int,
        config: VLLMColocateConfig,
    ):
        from vllm import LLM
        from vllm.platforms import current_platform
        from vllm.v1.engine.exceptions import EngineDeadError

        self._ended: type[Exception] = EngineDeadError
        self._sleeps = config.enable_sleep_mode and current_platform.is_sleep_mode_available()
        if config.enable_sleep_mode and not self._sleeps:
            logger.warning("vllm_enable_sleep_mode is off: vLLM has no sleep mode on %s.", device.type)
        on_cpu, before = device.type == "cpu", set(psutil.Process().children())
        try:
            with engine_environment(device):
                self._llm = LLM(
                    model,
                    revision=revision,
                    dtype=str(dtype).removeprefix("torch."),
                    skip_tokenizer_init=True,
                    max_model_len=-1,
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    enable_sleep_mode=self._sleeps,
                    enforce_eager=on_cpu,  # compiled is slower there
                    generation_config="vllm",
                    enable_lora=True,
                    max_loras=MAX_LORAS,
                    max_lora_rank=max_lora_rank,
                )
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(
                f"vLLM could not start an engine in this process with {model}, whose log is above ({error}); where memory is "
                f"short, change vllm_gpu_memory_utilization={config.gpu_memory_utilization}, and where the model has no folder, "
                "save it first."
            ) from error
        self._processes = set(psutil.Process().children()) - before
        end_with(self, self._processes)
        self._engine = self._llm.llm_engine
        self.context_length: int = self._engine.model_config.max_model_len
        self._loras: dict[str, Any] = {}
        self._numbers, self._going = count(1), {}
        self.sleep()

    def add(self, place: int, prompt: list[int], options: Mapping[str, Any], adapter: str | None) -> None:
        """
        Begin a text.

        Args:
            place (`int`):
                What [`step`] calls it.
            prompt (`list[int]`):
                The prompt's token ids.
            options (`Mapping[str, Any]`):
                vLLM's sampling parameters.
            adapter (`str`, *optional*):
                The name that it was loaded under; the base model where absent.

        Raises:
            VLLMEngineEnded: The engine has ended.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**options, detokenize=False, output_kind=RequestOutputKind.DELTA)
        number = str(next(self._numbers))
        lora = None if adapter is None else self._loras[adapter]
        self._ask(self._engine.add_request, number, {"prompt_token_ids": prompt}, params, lora_request=lora)
        self._going[number] = place

    def step(self) -> list[tuple[int, Sequence[int], bool]]:
        """
        Go on with the texts that were begun.

        Returns:
            `list[tuple[int, Sequence[int], bool]]`: for texts with something new their place, the new tokens, and whether they
                are done.

        Raises:
            VLLMEngineEnded: The engine has ended, or broke a text off.
        """
        news = []
        for output in self._ask(self._engine.step):
            (text,) = output.outputs
            place = self._going[output.request_id]
            if output.finished:
                del self._going[output.request_id]
                if text.finish_reason not in ("stop", "length"):
                    raise VLLMEngineEnded(f"The vLLM engine broke a text off ({text.finish_reason}). {RUN_KEEPS}")
            news.append((place, text.token_ids, output.finished))
        return news

    def abort(self) -> None:
        """Leave the texts that are not done."""
        numbers, self._going = list(self._going), {}
        if numbers:
            self._ask(self._engine.abort_request, numbers)

    def log_probs(self, token_ids: list[int]) -> list[float]:
        """The log-probability that the base model gives each token after the first, in nats."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (output,) = self._ask(self._llm.generate, [{"prompt_token_ids": token_ids}], params, use_tqdm=False)
        found = output.prompt_logprobs
        return [entry[token].logprob for token, entry in zip(token_ids[1:], found[1:], strict=True)]

    def load_adapter(self, name: str, path: str) -> None:
        """
        Load an adapter from a PEFT folder.

        Raises:
            VLLMEngineEnded: The engine has ended.
            RuntimeError: vLLM does not take it; with its reason.
        """
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(name, next(self._numbers), path)
        try:
            self._ask(self._engine.add_lora, lora)
        except VLLMEngineEnded:
            raise
        except Exception as error:  # what its process raised comes as a plain Exception
            raise RuntimeError(str(error)) from error
        self._loras[name] = lora

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; nothing happens where the engine has ended, since it forgets them then."""
        lora = self._loras.pop(name)
        try:
            self._ask(self._engine.remove_lora, lora.lora_int_id)
        except VLLMEngineEnded as error:
            logger.debug("The adapter %s was not unloaded: %s", name, error)

    def wake(self) -> None:
        """Take the memory again that [`sleep`] gave back."""
        if self._sleeps:
            self._ask(self._llm.wake_up)

    def sleep(self) -> None:
        """Give the memory on the card back, where sleep mode is on."""
        if self._sleeps:
            self._ask(self._llm.sleep, level=1)

    def _ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """
        What a call of the engine gives.

        vLLM 0.32 waits for ever where the engine's process was killed, so the call has a thread that can be left behind.
        """
        answer: Future[Any] = Future()

        def work() -> None:
            try:
                answer.set_result(call(*args, **options))
            except Exception as error:
                answer.set_exception(error)

        if self._is_alive():
            threading.Thread(target=work, daemon=True).start()
        while self._is_alive() and not wait([answer], timeout=_POLL_SECONDS).done:
            pass
        if not answer.done() or isinstance(answer.exception(), self._ended):
            raise VLLMEngineEnded(f"The vLLM engine of this process has ended; see its log above. {RUN_KEEPS}")
        return answer.result()

    def _is_alive(self) -> bool:
        return all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in self._processes)


class EngineAdapters(LoadedAdapters):
    """
    Adapters in the engine of this process.

    Parameters:
        engine ([`VLLMEngine`]):
            The engine.
        dtype (`torch.dtype`):
            Dtype of the weights that it is given.
        folder (`Path`, *optional*):
            In which this process takes a folder for itself. Defaults to [`shared_folder`].

    Raises:
        ValueError: The folder is another user's.
        OSError: It cannot be written.
    """

    def __init__(self, engine: VLLMEngine, dtype: torch.dtype, folder: Path | None = None):
        self.engine = engine
        for number in count():  # the first that no process that lives has
            super().__init__(dtype, (folder or shared_folder()).absolute() / f"engine-{number}")
            self._make_folder()
            self._lock = FileLock(self.folder / "process.lock")
            try:
                self._lock.acquire(timeout=0)
                break
            except Timeout:
                continue
        self._remove_files()

    def _load(self, name: str, path: Path, adapter: Adapter) -> None:
        try:
            self.engine.load_adapter(name, str(path))
        except RuntimeError as error:
            r, rank = rank_with_policy(adapter)
            raise ValueError(
                f"The vLLM engine of this process does not take an adapter of rank {rank}: {error}; it was started for the "
                "ranks of the policy and of peft_config."
            ) from error

    def _unload(self, name: str) -> None:
        self.engine.unload_adapter(name)
