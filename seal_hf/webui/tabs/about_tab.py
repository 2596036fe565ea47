"""The tab About: what the page runs on, and what to expect from it."""

import platform
from collections.abc import Callable
from importlib import metadata

import gradio as gr
import psutil
import torch

from ...models.access import context_length, unwrap
from ...models.loading import base_facts
from ..languages import Message, laid_out, say
from ..work.workbench import Workbench
from .shared import read_only_table


_VERSIONS = ("seal-hf", "torch", "transformers", "peft", "trl", "accelerate", "gradio", "bitsandbytes")


def facts(workbench: Workbench) -> list[list[str]]:
    """Model, device, memory and versions, each with its name."""
    lm = workbench.lm
    model = unwrap(lm.model)
    device = next(model.parameters()).device
    memory = psutil.virtual_memory()
    how, longest = base_facts(lm.model)["quantization"], context_length(model)
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else say("about.threads", count=torch.get_num_threads())
    lines = [
        [say("about.model"), lm.base_model_id],
        [say("about.parameters"), say("about.millions", number=model.num_parameters() / 1e6)],
        [say("about.data_type"), str(model.dtype).removeprefix("torch.")],
        [say("about.quantization"), say("about.no_quantization") if how == "none" else how],
        [say("about.context"), say("about.tokens", number=longest) if longest else say("about.not_stated")],
        [say("about.device"), name],
        [say("about.memory"), _free(memory.available, memory.total)],
    ]
    if is_gpu:
        lines.append([say("about.gpu_memory"), _free(*torch.cuda.mem_get_info(device))])
    lines.append(["Python", platform.python_version()])
    return lines + [[name, version] for name in _VERSIONS if (version := _version(name))]


def _free(free: float, total: float) -> str:
    return say("about.free", free=free / 2**30, total=total / 2**30)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def build_about_tab(workbench: Workbench) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        workbench ([`Workbench`]):
            Has the model.

    Returns:
        `Callable`: Called with an event, it makes the tab show the state after it.
    """
    is_cpu = next(workbench.lm.model.parameters()).device.type == "cpu"
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown(laid_out("about.machine"), elem_classes="step")
            table = read_only_table([35, 65], elem_id="facts", max_height=700)
        with gr.Column(min_width=320):
            gr.Markdown(laid_out("about.expect"), elem_classes="step")
            gr.Markdown(laid_out("about.on_cpu") if is_cpu else laid_out("about.on_gpu"))
            gr.Markdown(laid_out("about.your_text"), elem_classes="step")
            kept = Message("about.kept_for_all") if workbench.limits.is_shared else Message("about.kept_here")
            gr.Markdown(laid_out("about.privacy", kept=kept))
            gr.Markdown(laid_out("about.method"))

    def attach(event: gr.events.Dependency) -> None:
        event.then(lambda: facts(workbench), outputs=table, api_visibility="private", show_progress="hidden")

    return attach
