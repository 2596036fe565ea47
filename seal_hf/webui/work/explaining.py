"""What is said to a visitor when something fails."""

import logging

import gradio as gr
import torch


logger = logging.getLogger(__name__)


def explain(error: BaseException) -> str:
    """One sentence for the visitor; what nobody foresaw goes to the log."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return (
            "The device is out of memory. Nothing of yours is lost: use fewer self-edits, a shorter passage or a lower "
            "LoRA rank, and try again."
        )
    if isinstance(error, gr.Error):  # of ZeroGPU, or what came through it
        return error.message
    if isinstance(error, ValueError | OSError):
        return str(error)
    logger.error("Failed", exc_info=error)
    return "Something went wrong on our side: try again, and look at the app's log if it stays so."
