"""
Paste a passage, watch the model write self-edits and learn one of them, then ask base and adapted model side by side.

    python app.py
    python app.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --port 7861

On a Space the environment variable SEAL_MODEL names the model.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import spaces  # of ZeroGPU, which has to come before torch
except ImportError:
    spaces = None

import gradio as gr
import pandas as pd
import torch
from huggingface_hub import get_token, whoami
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig

import seal_hf
from seal_hf import Adapter, InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.embedded import EMBEDDED, EMBEDDED_MODEL_ID
from seal_hf.generation import context_length, encode_prompt
from seal_hf.hub_errors import HubError, explaining_hub_errors


logger = logging.getLogger("seal_hf.app")

ON_SPACE = bool(os.environ.get("SPACE_ID"))
ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The defaults of trainers/arguments.py, which a Space does not have.
PROMPT_STYLE = "rewrite"
LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
INNER_LOOP = {"learning_rate": 1e-3, "num_train_epochs": 20}
SAMPLING = {"temperature": 0.3, "top_p": 0.95, "max_completion_length": 256, "seed": 0}

MOST_SELF_EDITS = 4
LONGEST_TITLE = 200  # characters
LONGEST_QUESTION = 256  # tokens
REFRESH = 0.3  # seconds between two states of the page
KEEP = 3600  # seconds that an adapter nobody uses stays on disk

lm: SelfAdaptingLM | None = None
device_lock = threading.Lock()
adapter_folder = tempfile.TemporaryDirectory(prefix="seal-adapters-")


def load(model_name_or_path: str, load_in_4bit: bool | None = None) -> None:
    """Load the model that all visitors share. ZeroGPU wants it on CUDA before the first call."""
    global lm
    lm = SelfAdaptingLM.from_pretrained(
        model_name_or_path,
        load_in_4bit=load_in_4bit,
        device="cuda" if torch.cuda.is_available() else None,
        domain=KnowledgeDomain(PROMPT_STYLE),
        peft_config=LoraConfig(**LORA),
        inner_config=InnerLoopConfig(**INNER_LOOP),
    )


# --- work on the device ---------------------------------------------------------------------------------------------


@dataclass
class Study:
    """How far a passage is learned; pickled on its way from a GPU worker."""

    texts: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    num_steps: int = 0
    file: str | None = None  # the adapter as a zip, once it is trained
    error: str | None = None


def on_gpu(duration: int | Callable) -> Callable:
    """`spaces.GPU` where there is one. Arguments and results of what it decorates are pickled."""
    return spaces.GPU(duration=duration) if spaces else lambda function: function


def study_seconds(example: dict, num_generations: int) -> int:
    """
    The time that ZeroGPU reserves for [`study`], in seconds.

    A visitor who is not signed in has two minutes a day, and is refused when more are asked for; shorter requests wait
    less. The rates (tokens per second written and trained on) are guesses on the safe side.
    """
    longest = SAMPLING["max_completion_length"]
    written = longest * num_generations
    trained = (count_tokens(example["context"]) + longest) * INNER_LOOP["num_train_epochs"]
    return int(min(max(10 + written / 80 + trained / 500, 30), 120))


@on_gpu(study_seconds)
def study(example: dict, num_generations: int) -> Iterator[Study]:
    """Write self-edits and train an adapter on the first, which leaves as a file."""
    progress = Study([""] * num_generations)
    stop = threading.Event()

    def on_text(new_texts: list[str]) -> None:
        progress.texts = [text + new for text, new in zip(progress.texts, new_texts, strict=True)]

    def on_step(step) -> None:
        progress.losses.append(step.losses[0])
        progress.num_steps = step.num_steps

    def work() -> None:
        try:
            self_edits = lm.propose(example, num_generations, on_text=on_text, stop=stop, **SAMPLING)
            if not self_edits:
                raise ValueError("The model wrote no usable self-edit; try a passage of whole sentences.")
            progress.texts = [edit.completion.strip() for edit in self_edits]
            if not stop.is_set():
                adapter = lm.adapt(self_edits[0], on_step=on_step, stop=stop)
            if not stop.is_set():
                progress.file = save_zip(adapter)
        except Exception as error:
            progress.error = explain(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(REFRESH)
            if thread.is_alive():
                yield replace(progress, losses=list(progress.losses))
        yield progress
    finally:  # also when the visitor leaves
        stop.set()
        thread.join()


@on_gpu(30)
def answer(question: str, title: str, file: str) -> tuple[str, str]:
    """Closed-book answers of the base and of the adapted model."""
    prompts = lm.domain.questions({"title": title, "context": "", "questions": [{"question": question}]})
    base, adapted = lm.answer_prompts(prompts * 2, [None, lm.load_adapter(file)])
    return base, adapted


def save_zip(adapter: Adapter) -> str:
    folder = Path(tempfile.mkdtemp(dir=adapter_folder.name))
    adapter.save_pretrained(folder / "adapter")
    archive = shutil.make_archive(str(folder / "seal-adapter"), "zip", folder / "adapter")
    shutil.rmtree(folder / "adapter")
    return archive


# --- checks, errors and turns ---------------------------------------------------------------------------------------


def count_tokens(text: str) -> int:
    return len(lm.processing_class(text, add_special_tokens=False)["input_ids"])


def checked_example(title: str, passage: str) -> dict:
    """The passage as an example, or an error with the next step."""
    example = {"title": (title or "").strip(), "context": (passage or "").strip()}
    if not example["context"]:
        raise gr.Error("There is no passage yet: paste a text to learn.")
    if len(example["title"]) > LONGEST_TITLE:
        raise gr.Error(f"The title has {len(example['title'])} characters: shorten it to {LONGEST_TITLE}.")
    num_tokens = count_tokens(example["context"])
    around = len(encode_prompt(lm.processing_class, lm.domain.prompt(example))) - num_tokens
    room = (context_length(lm.model) or sys.maxsize) - around - SAMPLING["max_completion_length"]
    most = min(room, lm.inner_config.max_length - count_tokens(example["title"]) - 8)
    if num_tokens > most:
        raise gr.Error(
            f"The passage has {num_tokens} tokens, but this model can learn at most {most} at a time: shorten it."
        )
    return example


def explain(error: Exception) -> str:
    """One sentence for the visitor; what nobody foresaw goes to the log."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "The device is out of memory: try a shorter passage or fewer self-edits."
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    logger.error("Failed", exc_info=error)
    return "Something went wrong on our side: try again, and look at the log if it stays so."


@contextmanager
def for_visitors() -> Iterator[None]:
    """Errors as sentences on the page."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(explain(error)) from error


def turn():
    """One visitor at a time on a device of our own; ZeroGPU gives each call a process with a GPU."""
    return nullcontext() if ON_ZERO_GPU else device_lock


def adapter_file(learned: dict | None) -> str:
    """The file of the session's adapter, or an error with the next step."""
    if learned is None or not Path(learned["file"]).is_file():
        raise gr.Error("There is no adapter yet: learn a passage first.")
    return learned["file"]


def forget(learned: dict | None) -> None:
    if learned is not None:
        shutil.rmtree(Path(learned["file"]).parent, ignore_errors=True)


# --- what the page calls --------------------------------------------------------------------------------------------


def learn(title: str, passage: str, num_generations: int) -> Iterator[Study]:
    """Write self-edits for a passage and learn the first of them."""
    example = checked_example(title, passage)
    if not 1 <= num_generations <= MOST_SELF_EDITS:
        raise gr.Error(f"Choose from 1 to {MOST_SELF_EDITS} self-edits.")
    yield Study([""] * int(num_generations))  # while others have the device
    with for_visitors(), turn():
        for progress in study(example, int(num_generations)):
            if progress.error is not None:
                raise gr.Error(progress.error)
            yield progress


def ask(question: str, learned: dict | None) -> tuple[str, str]:
    file = adapter_file(learned)
    if not (question or "").strip():
        raise gr.Error("There is no question yet: type one.")
    if (num_tokens := count_tokens(question)) > LONGEST_QUESTION:
        raise gr.Error(f"The question has {num_tokens} tokens: shorten it to {LONGEST_QUESTION}.")
    with for_visitors(), turn():
        return answer(question.strip(), learned["title"], file)


def push(learned: dict | None, name: str, private: bool, token: str) -> str:
    """Upload the adapter into the account of the token, which is never another's than the visitor's."""
    file = adapter_file(learned)
    name = (name or "").strip()
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not name or "/" in name:
        raise gr.Error(
            "Give a name of letters, digits, '-', '_' and '.', such as lighthouse-adapter, without the account."
        )
    with for_visitors():
        try:
            with explaining_hub_errors(f"The upload of {name}", name, "The adapter can still be downloaded here."):
                repo_id = f"{whoami(token=token)['name']}/{name}"
                url = lm.load_adapter(file).push_to_hub(repo_id, private=private, token=token)
        except HubError as error:
            if not ON_SPACE:
                raise
            cause = str(error).partition(";")[0]
            raise gr.Error(
                f"{cause}; sign in again, or try another name. The adapter can still be downloaded here."
            ) from error
    return f"The adapter is at [{url}]({url})."


def push_as_visitor(learned: dict | None, name: str, private: bool, oauth: gr.OAuthToken | None) -> str:
    # Without this, the token of the Space's owner would be the default.
    if oauth is None or not oauth.token:
        raise gr.Error("You are not signed in: use the button “Sign in with Hugging Face” first.")
    return push(learned, name, private, oauth.token)


def push_locally(learned: dict | None, name: str, private: bool) -> str:
    token = get_token()
    if not token:
        raise gr.Error("There is no access token: log in with `hf auth login`, or set HF_TOKEN.")
    return push(learned, name, private, token)


# --- the page -------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Teach a language model a passage

It rewrites the passage in its own words (*self-edits*), trains a small adapter on the first of them in a minute or so,
and then answers your questions **without seeing the passage**. This is [SEAL](https://huggingface.co/papers/2506.10943)
with {model}.
"""
CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
#introduction {max-width: 48rem}
"""


def build_page(may_push: bool) -> gr.Blocks:
    example = load_demo_passages("train")[0]
    with gr.Blocks(
        title="Teach a language model a passage", fill_width=True, delete_cache=(600, KEEP), analytics_enabled=False
    ) as page:
        gr.Markdown(INTRODUCTION.format(model=lm.base_model_id), elem_id="introduction")
        session = gr.State(None, time_to_live=KEEP, delete_callback=forget)
        with gr.Row():
            with gr.Column(min_width=320):
                title = gr.Textbox(label="Title", placeholder="What the passage is about", max_length=LONGEST_TITLE)
                passage = gr.Textbox(label="Passage", lines=10, max_lines=18, placeholder="Paste a text")
                number = gr.Slider(1, MOST_SELF_EDITS, value=2, step=1, label="Self-edits")
                with gr.Row():
                    fill = gr.Button("Example", min_width=100)
                    learn_button = gr.Button("Learn it", variant="primary", min_width=100, elem_id="learn")
                    stop = gr.Button("Stop", min_width=80)
            with gr.Column(min_width=320):
                status = gr.Markdown("Paste a passage, or take the example.", elem_id="status")
                texts = [
                    gr.Textbox(label=f"Self-edit {i + 1}", lines=4, max_lines=8, visible=i == 0, interactive=False)
                    for i in range(MOST_SELF_EDITS)
                ]
                plot = gr.LinePlot(x="step", y="loss", title="Training loss", height=200, visible=False)
        question = gr.Textbox(
            label="Question", placeholder="Ask about the passage", submit_btn="Ask", elem_id="question"
        )
        with gr.Row():
            base = gr.Textbox(label="Base model", lines=2, interactive=False, min_width=280, elem_id="base")
            adapted = gr.Textbox(label="After learning", lines=2, interactive=False, min_width=280, elem_id="adapted")
        with gr.Accordion("Keep the adapter", open=False):
            download = gr.DownloadButton("Download the adapter", interactive=False)
            if ON_SPACE:
                gr.LoginButton()
            if may_push:
                name = gr.Textbox("seal-adapter", label="Name on the Hub, in your account")
                private = gr.Checkbox(True, label="Private")
                push_button = gr.Button("Push to the Hub")
                pushed = gr.Markdown()
        if ON_SPACE:
            gr.DuplicateButton()

        def on_learn(title_text: str, passage_text: str, num_generations: int, learned: dict | None) -> Iterator[dict]:
            try:
                for progress in learn(title_text, passage_text, num_generations):
                    update = {
                        status: "Waiting for the device ..." if not any(progress.texts) else "Writing self-edits ..."
                    }
                    for i, text in enumerate(texts):
                        visible = i < max(1, len(progress.texts))
                        update[text] = gr.update(value=progress.texts[i] if visible else "", visible=visible)
                    if progress.losses:
                        losses = {"step": range(1, len(progress.losses) + 1), "loss": progress.losses}
                        update[plot] = gr.update(value=pd.DataFrame(losses), visible=True)
                        update[status] = (
                            f"Training on self-edit 1: step {len(progress.losses)} of {progress.num_steps} ..."
                        )
                    if progress.file is not None:
                        update[session] = {"title": (title_text or "").strip(), "file": progress.file}
                        update[status] = f"Learned in {progress.num_steps} steps. **Ask it something below.**"
                        update[download] = gr.update(value=progress.file, interactive=True)
                        forget(learned)
                    yield update
            except gr.Error:
                yield {status: "Nothing was learned."}
                raise

        fill.click(
            lambda: (example["title"], example["context"], example["questions"][0]["question"]),
            outputs=[title, passage, question],
            api_visibility="private",
        )
        outputs = [status, plot, *texts, session, download]
        learning = learn_button.click(
            on_learn, [title, passage, number, session], outputs, api_name="learn", show_progress="hidden"
        )
        stop.click(lambda: "Stopped.", outputs=status, cancels=learning, api_visibility="private")
        question.submit(ask, [question, session], [base, adapted], api_name="ask")
        if may_push:
            push_button.click(
                push_as_visitor if ON_SPACE else push_locally, [session, name, private], pushed, api_name="push"
            )
    return page.queue(max_size=20, default_concurrency_limit=8 if ON_ZERO_GPU else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument(
        "--model_name_or_path",
        default=os.environ.get("SEAL_MODEL") or (EMBEDDED_MODEL_ID if ON_SPACE else EMBEDDED),
        help="Hub id or folder of a causal LM, or 'embedded' for the small one.",
    )
    parser.add_argument("--load_in_4bit", action="store_true", default=None, help="Quantize the base to NF4 (QLoRA).")
    parser.add_argument("--host", default="0.0.0.0" if ON_SPACE else "127.0.0.1", help="Address to serve on.")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT") or 7860), help="Port.")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    try:
        load(args.model_name_or_path, args.load_in_4bit)
        logger.info("%s is served by %s", lm.base_model_id, Path(seal_hf.__file__).parent)
        build_page(may_push=ON_SPACE or args.host in LOOPBACK).launch(
            server_name=args.host,
            server_port=args.port,
            share=False,
            ssr_mode=False,
            run_history=False,
            show_error=False,
            max_file_size="1mb",
            footer_links=["gradio"],
            theme=gr.themes.Default(),
            css=CSS,
        )
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
