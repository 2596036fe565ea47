"""
Start a vLLM server for --use_vllm, in an environment that has vLLM.

    make vllm-server
    python -m trainers.vllm_server --model_name_or_path Qwen/Qwen2.5-7B-Instruct --max_loras 16 --tensor-parallel-size 2

What is no option of this script is passed on to vLLM's server.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from seal_hf.generation.vllm_adapters import server_rank
from seal_hf.models.embedded import EMBEDDED_MODELS, embedded_model_path
from seal_hf.models.loading import default_dtype


@dataclass
class ServerArguments:
    """The model, and the adapters that the server is to have room for."""

    model_name_or_path: str = field(
        default="embedded", metadata={"help": "The model, by the name that the trainer gets."}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "Data type of the model, the same as in the trainer, whose default it has."}
    )
    lora_r: int = field(
        default=64, metadata={"help": "Rank of the policy adapter; 0 where there is none, as in the app."}
    )
    inner_lora_r: int = field(default=32, metadata={"help": "Rank of the inner adapters."})
    max_loras: int = field(default=4, metadata={"help": "Adapters in one batch."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to serve on. Who reaches it can load adapters."})
    port: int = field(default=8000, metadata={"help": "Port."})


def server_command(args: ServerArguments, has_gpu: bool, others: Sequence[str] = ()) -> list[str]:
    """The command that starts the server, with the options that are not of this script."""
    name = path = args.model_name_or_path
    if (embedded := EMBEDDED_MODELS.get(name)) is not None:
        name, path = embedded.model_id, str(embedded_model_path(name))
    options = {
        "--model": path,
        "--served-model-name": name,
        "--host": args.host,
        "--port": args.port,
        "--dtype": args.dtype or _default_dtype(has_gpu),
        "--max-loras": args.max_loras,
        "--max-lora-rank": server_rank(args.lora_r + args.inner_lora_r),
        "--generation-config": "vllm",
    }
    # vLLM 0.32 on a CPU: compiled is slower, and more memory is refused beside other programs.
    on_cpu = [] if has_gpu else ["--enforce-eager", "--gpu-memory-utilization", "0.3"]
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora"),
        *(str(part) for option in options.items() for part in option),
        *on_cpu,
        *others,
    ]


def _default_dtype(has_gpu: bool) -> str:
    return str(default_dtype(torch.device("cuda" if has_gpu else "cpu"))).removeprefix("torch.")


def server_environment(has_gpu: bool) -> Mapping[str, str]:
    """The environment variables of the server."""
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    if not has_gpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
        openmp = Path(sys.prefix, "lib", "libiomp5.so")
        if openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
    return {**environment, **os.environ}


if __name__ == "__main__":
    arguments, rest = HfArgumentParser(ServerArguments).parse_args_into_dataclasses(return_remaining_strings=True)
    if importlib.util.find_spec("vllm") is None:
        sys.exit("error: vLLM is not installed here; run `make vllm-server`, or see docs/vllm.md.")
    has_gpu = torch.cuda.is_available()
    try:
        command = server_command(arguments, has_gpu, rest)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    os.execve(command[0], command, server_environment(has_gpu))
