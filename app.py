"""
Paste a passage, watch the model write self-edits, let it learn them, and compare the answers of base and adapted model.

    python app.py
    python app.py --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --load_in_4bit
"""

import argparse
import contextlib
import logging
import os
import sys
from functools import partial
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  ZeroGPU's package, which has to be imported before torch

from starlette.middleware import Middleware

import seal_hf
from seal_hf import SelfAdaptingLM
from seal_hf.adapters.layout import lora_layout
from seal_hf.adapters.policy import default_policy_config
from seal_hf.generation.vllm_options import VLLM_MODES, vllm_arguments
from seal_hf.models.chat_template import json_object
from seal_hf.models.embedded import EMBEDDED, EMBEDDED_MODELS
from seal_hf.shelf.shelf import default_folder
from seal_hf.webui.page import build_page
from seal_hf.webui.server import launch
from seal_hf.webui.upload_limit import BoundedUploads
from seal_hf.webui.visitors import visitor_of
from seal_hf.webui.work.limits import OWN_MACHINE, SHARED, ZERO_GPU
from seal_hf.webui.work.origins import LOOPBACK
from seal_hf.webui.work.private_folder import exit_on_signals, private_folder
from seal_hf.webui.work.training_runs import TrainingRuns
from seal_hf.webui.work.workbench import Workbench


logger = logging.getLogger("seal_hf.app")

ON_SPACE = bool(os.environ.get("SPACE_ID"))
TRAINER = Path(__file__).parent / "trainers" / "knowledge.py"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument(
        "--model_name_or_path",
        default=os.environ.get("SEAL_MODEL") or (EMBEDDED_MODELS[EMBEDDED].model_id if ON_SPACE else EMBEDDED),
        help="Hub id or folder of a causal LM, 'embedded' for a small one (0.5B parameters), or 'embedded-tiny' (135M). "
        "A Space takes it from SEAL_MODEL.",
    )
    parser.add_argument(
        "--load_in_4bit",
        action=argparse.BooleanOptionalAction,
        help="Quantize the base to NF4 (QLoRA). Default: on CUDA where bitsandbytes is installed.",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        help="What the chat template is given in all prompts, in JSON: '{\"enable_thinking\": false}'.",
    )
    parser.add_argument("--use_vllm", action="store_true", help="Let vLLM write self-edits and answers.")
    parser.add_argument(
        "--vllm_mode",
        default="server",
        choices=VLLM_MODES,
        help="Where vLLM runs: 'server', or 'colocate' for an engine of the app, on its device.",
    )
    parser.add_argument(
        "--vllm_server_base_url", default="http://127.0.0.1:8000", help="The vLLM server, which has the base model."
    )
    parser.add_argument(
        "--vllm_gpu_memory_utilization",
        type=float,
        default=0.3,
        help="With 'colocate': share of the device's memory that vLLM takes.",
    )
    parser.add_argument(
        "--vllm_enable_sleep_mode",
        action="store_true",
        help="With 'colocate': give vLLM's memory back between its calls. CUDA only.",
    )
    parser.add_argument("--host", default="0.0.0.0" if ON_SPACE else "127.0.0.1", help="Address to serve on.")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT") or 7860), help="Port.")
    parser.add_argument("--share", action="store_true", help="Make a public link. Nobody can push to the Hub then.")
    parser.add_argument("--mcp", action="store_true", help="Offer the endpoints as MCP tools. Needs the extra mcp.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="Folder for training runs. Default: outputs/app, or a "
        "private one, which goes with the app, where others reach it.",
    )
    parser.add_argument(
        "--shelf",
        type=Path,
        help="Folder of the books that stay on this machine, where nobody else reaches the app. Default: that of the command seal.",
    )
    args = parser.parse_args()
    if not 0 < args.port < 65536:
        parser.error(f"--port {args.port} must be from 1 to 65535")
    return args


def load(args: argparse.Namespace) -> SelfAdaptingLM:
    """The model that all visitors share. ZeroGPU wants it on CUDA before the first call."""
    try:
        return SelfAdaptingLM.from_pretrained(
            args.model_name_or_path,
            load_in_4bit=args.load_in_4bit,
            chat_template_kwargs=json_object(args.chat_template_kwargs),
            **vllm_arguments(args),
        )
    except (ValueError, OSError) as error:
        if args.model_name_or_path not in EMBEDDED_MODELS:
            error.add_note("`python app.py --model_name_or_path embedded` runs on a small model, which needs no Hub.")
        raise


def main(args: argparse.Namespace) -> None:
    exit_on_signals()
    is_private = not ON_SPACE and args.host in LOOPBACK and not args.share
    if args.shelf and not is_private:
        raise ValueError(
            f"--shelf {args.shelf} is for a page that you alone reach: leave it out, or serve 127.0.0.1 without --share."
        )
    lm = load(args)
    logger.info("%s is served by %s", lm.base_model_id, Path(seal_hf.__file__).parent)
    with private_folder() as folder:
        is_zero_gpu = bool(os.environ.get("SPACES_ZERO_GPU"))
        limits = OWN_MACHINE if is_private else ZERO_GPU if is_zero_gpu else SHARED
        workbench = Workbench(
            lm,
            folder,
            # ZeroGPU gives each call its own process with a GPU.
            num_workers=8 if is_zero_gpu else 1,
            limits=limits,
            shelf=(args.shelf or default_folder()) if is_private else None,
        )
        # What others leave is removed with all other files, where nothing else is asked for.
        runs_folder = Path("outputs/app") if is_private else folder.parents[1] / "runs"
        runs = TrainingRuns(
            workbench.jobs,
            args.output_dir or runs_folder,
            TRAINER if TRAINER.is_file() else None,
            args.model_name_or_path,
            bool(getattr(lm.model, "is_loaded_in_4bit", False)),
            chat_template_kwargs=json_object(args.chat_template_kwargs),
            limits=limits,
            sessions=None if is_private else workbench.sessions,
            policy_bytes=lora_layout(lm.model, default_policy_config(), trained=True).num_bytes,
        )
        visitor = None if is_private else partial(visitor_of, on_space=ON_SPACE)
        may_push = ON_SPACE or is_private
        page = build_page(workbench, runs, may_push=may_push, on_space=ON_SPACE)
        try:
            launch(
                page,
                on_space=ON_SPACE,
                host=args.host,
                middleware=[Middleware(BoundedUploads, folder=folder.parent, sessions=folder, visitor=visitor)],
                server_port=args.port,
                share=args.share,
                mcp_server=args.mcp,
                max_file_size="512mb",
                footer_links=["gradio"],
            )
        finally:
            # What still ran would write files into the folder while it is removed.
            page.close(verbose=False)
            workbench.jobs.close(2)
            runs.close()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    try:
        main(parse_arguments())
    except (ValueError, OSError, ImportError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
