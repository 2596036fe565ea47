"""The tab About: what the page runs on, and what to expect from it."""

import platform
from collections.abc import Callable
from importlib import metadata

import gradio as gr
import psutil
import torch

from ...models.access import context_length, unwrap
from ...models.loading import base_facts
from ..work.workbench import Workbench
from .shared import read_only_table


_VERSIONS = ("seal-hf", "torch", "transformers", "peft", "trl", "accelerate", "gradio", "bitsandbytes")
_ON_CPU = """
**This is a CPU.** A model of some hundred million parameters writes, learns and answers in a minute or two. It shows how
the method works, from start to end. It does not reach the paper's figures: they come from a model of seven billion
parameters on a GPU, whose self-edits are true to the passage. A small model invents facts in its self-edits, and learns
them as well.
"""
_ON_GPU = """
**This is a GPU.** With a model of some billion parameters self-edits are mostly true to the passage. The 4-bit base
(QLoRA) needs about a quarter of the memory.
"""
_PRIVACY = """
Your passage, ARC task, self-edits, adapters and answers belong to your session alone. They are deleted from this machine when you
have not used the page for an hour, or when the app ends: download what you want to keep. {kept} Nothing leaves this machine
unless you push an adapter.
"""
_KEPT = {
    False: "What you teach stays on this machine as a book on the Shelf until you forget it, unless you come through a proxy; "
    "runs of the tab Train stay in the app's output folder.",
    True: "So are your books on the Shelf and your runs of the tab Train.",  # where others reach the page
}


def facts(workbench: Workbench) -> list[list[str]]:
    """Model, device, memory and versions, each with its name."""
    lm = workbench.lm
    model = unwrap(lm.model)
    device = next(model.parameters()).device
    memory = psutil.virtual_memory()
    base = base_facts(lm.model)
    lines = [
        ["Model", lm.base_model_id],
        ["Parameters", f"{model.num_parameters() / 1e6:,.0f} million"],
        ["Data type", str(model.dtype).removeprefix("torch.")],
        ["Quantization", str(base.get("quantization") or "none")],
        ["Context", f"{context_length(model) or 'not stated'} tokens"],
        ["Device", torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"],
        ["Memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"],
    ]  # fmt: skip
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        lines.append(["GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"])
    lines.append(["Python", platform.python_version()])
    return lines + [[name, version] for name in _VERSIONS if (version := _version(name))]


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
            gr.Markdown("### This machine", elem_classes="step")
            table = read_only_table(["", ""], [35, 65], elem_id="facts", max_height=700)
        with gr.Column(min_width=320):
            gr.Markdown("### What to expect", elem_classes="step")
            gr.Markdown(_ON_CPU if is_cpu else _ON_GPU)
            gr.Markdown("### Your text", elem_classes="step")
            gr.Markdown(_PRIVACY.format(kept=_KEPT[workbench.limits.is_shared]))
            gr.Markdown(
                "The method is that of [Self-Adapting Language Models](https://huggingface.co/papers/2506.10943) "
                "(Zweiger, Pari et al.)."
            )

    def attach(event: gr.events.Dependency) -> None:
        event.then(lambda: facts(workbench), outputs=table, api_visibility="private", show_progress="hidden")

    return attach
