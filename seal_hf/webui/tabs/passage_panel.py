"""Step 1: the passage, questions about it, and the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData

from ...domains import PROMPT_STYLES, TRAINING_FORMATS, load_demo_passages
from ...domains.files import TEXT_FILE_TYPES
from ..languages import laid_out, say
from ..work import inputs
from ..work.errors import explain
from ..work.settings import GPU_PRESET, MAX_SELF_EDITS, PAPER, PRESETS, RANGES, Settings, preset_for
from ..work.workbench import Workbench
from .shared import table_of, warning


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

    gr.Markdown(laid_out("passage.heading"), elem_classes="step")
    with gr.Row(elem_classes="examples"):
        example_buttons = [
            gr.Button(inputs.title_of(example), size="sm", min_width=100, elem_id=f"example-{index}")
            for index, example in enumerate(examples)
        ]
    title = gr.Textbox(
        label=laid_out("passage.title"),
        placeholder=laid_out("passage.title_hint"),
        max_length=inputs.LONGEST_TITLE,
        elem_id="title",
    )
    passage = gr.Textbox(
        label=laid_out("passage.text"),
        lines=9,
        max_lines=16,
        placeholder=laid_out("passage.text_hint"),
        elem_id="passage",
    )
    most = inputs.max_tokens(chosen.lm(workbench.lm), "", chosen)
    count = gr.Markdown(
        laid_out("passage.tokens", mark="", count=0, most=most), elem_id="token-count", elem_classes="quiet"
    )
    with gr.Accordion(laid_out("passage.questions"), open=False, elem_id="questions-panel"):
        gr.Markdown(laid_out("passage.questions_hint"), elem_classes="quiet")
        questions = gr.Dataframe(
            headers=["", ""],
            datatype="str",
            type="array",
            column_count=2,
            row_count=1,
            wrap=True,
            interactive=True,
            show_label=False,
            elem_id="questions",
        )
        upload = gr.UploadButton(laid_out("passage.upload"), size="sm", file_types=list(TEXT_FILE_TYPES))
        upload_status = gr.Markdown(elem_classes="quiet")
    with gr.Row():
        num_generations = gr.Slider(
            1, MAX_SELF_EDITS, value=chosen.num_generations, step=1, min_width=140,
            label=laid_out(RANGES["num_generations"][0]), elem_id="number",
        )  # fmt: skip
        prompt_style = gr.Dropdown(
            style_choices(),
            value=chosen.prompt_style,
            label=laid_out("passage.style"),
            min_width=200,
        )
    with gr.Accordion(laid_out("common.advanced"), open=False, elem_id="advanced"):
        offered = [name for name in PRESETS if name != GPU_PRESET or workbench.limits.is_zero_gpu]
        presets = gr.Radio(
            [(laid_out(name), name) for name in offered],
            value=preset,
            label=laid_out("passage.preset"),
            elem_id="preset",
        )
        with gr.Row():
            advanced = [
                gr.Number(
                    value=getattr(chosen, name),
                    label=laid_out(RANGES[name][0]),
                    info=laid_out("passage.seed_info")
                    if name == "seed"
                    else laid_out("passage.paper_info", value=getattr(PAPER, name)),
                    minimum=RANGES[name][1],
                    maximum=RANGES[name][2],
                    precision=0 if isinstance(RANGES[name][1], int) else None,
                    step=1 if isinstance(RANGES[name][1], int) else 0.0001,
                    min_width=140,
                )
                for name in _ADVANCED
            ]
        target_modules = gr.Dropdown(
            [(laid_out("passage.modules_default"), ""), (laid_out("passage.modules_linear"), "all-linear")],
            value=chosen.target_modules,
            label=laid_out("passage.modules"),
            info=laid_out("passage.modules_info"),
        )
        training_format = gr.Dropdown(
            [(laid_out(f"format.{name}"), name) for name in TRAINING_FORMATS],
            value=chosen.training_format,
            label=laid_out("passage.format"),
            info=laid_out("passage.format_info"),
        )
    settings = [num_generations, prompt_style, *advanced, target_modules, training_format]

    def fill(index: int) -> tuple[str, str, dict]:
        example = examples[index]
        return inputs.title_of(example), inputs.passage_of(example), questions_table(example["questions"])

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


def style_choices() -> list[tuple[I18nData, str]]:
    """The prompt styles, each after its label."""
    return [(laid_out(f"style.{style}"), style) for style in PROMPT_STYLES]


def questions_table(questions: Sequence[Mapping]) -> dict:
    """Questions as the value of the page's table; a line to fill in where there are none."""
    return pairs_table(inputs.table_of(questions))


def pairs_table(pairs: Sequence[Sequence[str]]) -> dict:
    """Questions with their answers as the value of a table; a line to fill in where there are none."""
    return table_of(("common.question", "common.answer"), pairs or [["", ""]])


def _count_text(workbench: Workbench, title: str, passage: str, settings: Settings) -> str:
    if len(title or "") > 4 * inputs.LONGEST_TITLE:
        return f"⚠️ {say('inputs.long_title', count=len(title), most=inputs.LONGEST_TITLE)}"
    most = inputs.max_tokens(settings.lm(workbench.lm), inputs.clean(title), settings)
    if len(passage or "") > inputs.LONGEST_PASSAGE:
        return f"⚠️ {say('passage.long_text', count=len(passage), most=most)}"
    num_tokens = inputs.count_tokens(workbench.lm, inputs.clean(passage))
    return say("passage.tokens", mark="⚠️ " * (num_tokens > most), count=num_tokens, most=most)


def _read_upload(file: str) -> tuple[object, str]:
    try:
        found, num_unanswerable = inputs.questions_from_file(Path(file))
    except (ValueError, OSError) as error:
        return gr.skip(), warning(explain(error))
    loaded = say("passage.loaded", count=len(found))
    if num_unanswerable:
        loaded += f" {say('passage.left_out', count=num_unanswerable)}"
    return questions_table(found), loaded
