"""Step 1: the passage, questions about it, and the settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr

from ...domains import PROMPT_STYLES, load_demo_passages
from ...domains.files import TEXT_FILE_TYPES
from ..work import inputs
from ..work.errors import explain
from ..work.settings import GPU_PRESET, MAX_SELF_EDITS, PAPER, PRESETS, RANGES, Settings, preset_for
from ..work.workbench import Workbench
from .shared import escape


STYLES = {
    "rewrite": "Rewrite it several times",
    "implications": "List what follows from it",
    "implications-long": "List what follows, at length",
    "implications-very-long": "List what follows, at great length",
    "self-qa": "Questions with answers",
    "questions": "Questions that it answers from the passage",
    "questions-by-sentence": "Questions about each sentence that it answers",
    "questions-by-fact": "Facts with their questions",
    "questions-and-rewrite": "Questions that it answers, and a rewrite",
    "instruction": "By an instruction that it writes first",
    "none": "No instruction",
}
_FORMATS = {
    "prompt_completion": "In the form in which one asks",
    "language_modeling": "As raw text behind the title",
}
# In the order of the page.
_ADVANCED = (
    "temperature", "top_p", "max_completion_length", "seed",
    "learning_rate", "num_train_epochs", "batch_size", "lora_r", "lora_alpha",
)  # fmt: skip
NAMES = ("num_generations", "prompt_style", *_ADVANCED, "target_modules", "training_format")


@dataclass
class PassagePanel:
    """The widgets whose values other parts of the page need. `settings` are in the order of `NAMES`."""

    title: gr.Textbox
    passage: gr.Textbox
    questions: gr.Dataframe
    settings: list[gr.components.Component]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """Title, passage, questions and settings."""
        return [self.title, self.passage, self.questions, *self.settings]


def read_settings(values: Sequence[object]) -> Settings:
    """
    The settings from the values of [`PassagePanel`]'s `settings`.

    Raises:
        ValueError: A value is out of its range.
    """
    return Settings.of(**dict(zip(NAMES, values, strict=True)))


def build_passage_panel(workbench: Workbench) -> PassagePanel:
    """Lay out the panel where this is called."""
    examples = load_demo_passages("train")[:3] + load_demo_passages("other_languages")[:1]
    preset = preset_for(workbench.lm, workbench.limits)
    chosen = PRESETS[preset]

    gr.Markdown("### 1 · Passage", elem_classes="step")
    with gr.Row(elem_classes="examples"):
        example_buttons = [
            gr.Button(inputs.title_of(example), size="sm", min_width=100, elem_id=f"example-{index}")
            for index, example in enumerate(examples)
        ]
    title = gr.Textbox(label="Title", placeholder="What it is about", max_length=inputs.LONGEST_TITLE, elem_id="title")
    passage = gr.Textbox(
        label="Text", lines=9, max_lines=16, placeholder="Paste a text to learn, in any language", elem_id="passage"
    )
    count = gr.Markdown(_count_text(workbench, "", "", chosen), elem_id="token-count", elem_classes="quiet")
    with gr.Accordion("Questions with answers (optional)", open=False, elem_id="questions-panel"):
        gr.Markdown(
            "The reward of a self-edit is the share of these questions that the adapted model answers right. If there are "
            "none, the model writes some itself. Several right answers are parted by “|”.",
            elem_classes="quiet",
        )
        questions = gr.Dataframe(
            headers=["Question", "Answer"],
            datatype="str",
            type="array",
            column_count=2,
            row_count=1,
            wrap=True,
            interactive=True,
            show_label=False,
            elem_id="questions",
        )
        upload = gr.UploadButton("Load from a file", size="sm", file_types=list(TEXT_FILE_TYPES))
        upload_status = gr.Markdown(elem_classes="quiet")
    with gr.Row():
        num_generations = gr.Slider(
            1, MAX_SELF_EDITS, value=chosen.num_generations, step=1, label="Self-edits", min_width=140,
            elem_id="number",
        )  # fmt: skip
        prompt_style = gr.Dropdown(
            [(STYLES[style], style) for style in PROMPT_STYLES],
            value=chosen.prompt_style,
            label="The model is asked to",
            min_width=200,
        )
    with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
        offered = [name for name in PRESETS if name != GPU_PRESET or workbench.limits.is_zero_gpu]
        presets = gr.Radio(offered, value=preset, label="Preset", elem_id="preset")
        with gr.Row():
            advanced = [
                gr.Number(
                    value=getattr(chosen, name),
                    label=RANGES[name][0],
                    info=f"Paper: {getattr(PAPER, name)}"
                    if name != "seed"
                    else "The same seed gives the same self-edits",
                    minimum=RANGES[name][1],
                    maximum=RANGES[name][2],
                    precision=0 if isinstance(RANGES[name][1], int) else None,
                    step=1 if isinstance(RANGES[name][1], int) else 0.0001,
                    min_width=140,
                )
                for name in _ADVANCED
            ]
        target_modules = gr.Dropdown(
            [("The model's default", ""), ("All linear layers", "all-linear")],
            value=chosen.target_modules,
            label="Adapted modules",
            info="Paper: the model's default",
        )
        training_format = gr.Dropdown(
            [(label, name) for name, label in _FORMATS.items()],
            value=chosen.training_format,
            label="What is written is learned",
            info="Paper: as raw text",
        )
    settings = [num_generations, prompt_style, *advanced, target_modules, training_format]

    def fill(index: int) -> tuple[str, str, list[list[str]]]:
        example = examples[index]
        return inputs.title_of(example), inputs.passage_of(example), inputs.table_of(example["questions"])

    for index, button in enumerate(example_buttons):
        button.click(
            lambda index=index: fill(index), outputs=[title, passage, questions], api_visibility="private", queue=False
        )
    presets.change(
        lambda name: [getattr(PRESETS[name], field) for field in NAMES],
        presets,
        settings,
        api_visibility="private",
        queue=False,
    )
    upload.upload(lambda file: _read_upload(file), upload, [questions, upload_status], api_visibility="private")
    longest = settings[NAMES.index("max_completion_length")]
    gr.on(
        [passage.change, title.change, longest.change],
        lambda title, passage, longest: _count_text(
            workbench, title, passage, Settings(**{**asdict(chosen), "max_completion_length": int(longest or 16)})
        ),
        [title, passage, longest],
        count,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
    )
    return PassagePanel(title, passage, questions, settings)


def _count_text(workbench: Workbench, title: str, passage: str, settings: Settings) -> str:
    if len(title or "") > 4 * inputs.LONGEST_TITLE:
        return f"⚠️ The title has {len(title):,} characters: shorten it to {inputs.LONGEST_TITLE}."
    most = inputs.max_tokens(workbench.lm, inputs.clean(title), settings)
    if len(passage or "") > inputs.LONGEST_PASSAGE:
        return f"⚠️ {len(passage):,} characters: shorten it to {most:,} tokens, a few pages."
    num_tokens = inputs.count_tokens(workbench.lm, inputs.clean(passage))
    return f"{'⚠️ ' * (num_tokens > most)}{num_tokens:,} of {most:,} tokens"


def _read_upload(file: str) -> tuple[object, str]:
    try:
        found, num_unanswerable = inputs.questions_from_file(Path(file))
    except (ValueError, OSError) as error:
        return gr.skip(), f"⚠️ {escape(explain(error))}"
    left_out = f" {num_unanswerable} others have no answer and are left out." * (num_unanswerable > 0)
    return inputs.table_of(found), f"{len(found)} questions.{left_out}"
