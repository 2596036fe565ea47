"""The tab Train, step 6: the outer loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr
import pandas as pd

from ...domains.base import SELF_EDITS
from ...domains.files import TEXT_FILE_TYPES
from ...records.report import Evaluation
from ..work.errors import explain
from ..work.jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused
from ..work.sessions import Sessions
from ..work.settings import TRAINING_RANGES, TrainingSettings, as_number
from ..work.training_records import Candidate, TrainingSnapshot
from ..work.training_runs import TrainingRuns
from .passage_panel import STYLES
from .shared import RECITED, escape, percent, read_only_table


_LONGEST_TEXT = 300  # characters of a self-edit in the table; the run's files have the whole text
_REFRESH = 1.0  # seconds between two updates of the page
_EMPTY = (
    "The model learns to **write better self-edits**. Each round has passages that no earlier one had. For each of them the "
    "model writes several self-edits, learns each one, scores it with the passage's questions, and is then trained on the "
    "best. Press **Start**: with the demo passages a run takes some minutes."
)
_SHOWN = ("num_train_passages", "num_eval_passages", "num_rounds", "num_generations")
_FOLDED = (
    "temperature",
    "max_completion_length",
    "inner_num_train_epochs",
    "inner_batch_size",
    "inner_learning_rate",
    "num_train_epochs",
    "seed",
)
# The colours of the run's own plot, by Okabe and Ito, which colour-blind people can tell apart.
_COLORS = {"kept": "#0072b2", "rejected": "#c24e00", "not selected yet": "#94a3b8"}
_NO_SESSION = "⚠️ The page's session has ended: load the page again."
_COMMAND = "accelerate launch -m trainers.knowledge --config config.yaml --resume_from_checkpoint true"


def build_train_tab(
    runs: TrainingRuns, sessions: Sessions, session: gr.BrowserState
) -> Callable[[gr.events.Dependency], None]:
    """
    Lay out the tab where this is called.

    Args:
        runs ([`TrainingRuns`]):
            Does the work.
        sessions ([`Sessions`]):
            The sessions, to which the runs belong.
        session (`gr.BrowserState`):
            Id of the visitor's session.

    Returns:
        `Callable`: Called with an event, it makes the page show the session's run after it.
    """
    defaults = TrainingSettings()
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=320):
            gr.Markdown("### 6 · Train the model to write", elem_classes="step")
            if limits := runs.limits.say_of_runs():
                gr.Markdown(limits, elem_id="train-limits", elem_classes="quiet")
            upload = gr.File(
                label="Your passages (JSON, JSONL, CSV) or the demo's",
                file_types=list(TEXT_FILE_TYPES), height=150, elem_id="train-file",
            )  # fmt: skip
            with gr.Row():
                numbers = {name: _number(name, defaults) for name in _SHOWN}
            style = gr.Dropdown(
                [(label, name) for name, label in STYLES.items()],
                value=defaults.prompt_style,
                label="The model is asked to",
            )
            with gr.Accordion("Advanced settings", open=False), gr.Row():
                numbers |= {name: _number(name, defaults) for name in _FOLDED}
            with gr.Row():
                start = gr.Button("Start", variant="primary", elem_id="train-start", min_width=90)
                stop = gr.Button("Stop", interactive=False, elem_id="train-stop", min_width=80)
                resume = gr.Button("Resume", interactive=False, elem_id="train-resume", min_width=90)
            with gr.Accordion("The same run on another machine", open=False, elem_id="train-command"):
                # No line numbers: they are misplaced, since the box is laid out while it is folded.
                code = {"interactive": False, "wrap_lines": True, "show_line_numbers": False}
                gr.Code(_COMMAND, language="shell", label="Command, in a clone of the project", lines=3, **code)
                config = gr.Code(
                    runs.yaml(defaults), language="yaml", label="config.yaml", elem_id="train-yaml", **code
                )
        with gr.Column(scale=7, min_width=320):
            gr.Markdown("### The run", elem_classes="step")
            status = gr.Markdown(_EMPTY, elem_id="train-status", elem_classes="status")
            plot = gr.ScatterPlot(
                x="number", y="reward", color="self-edit", color_map=_COLORS, height=260, y_lim=[-0.05, 1.05],
                title="Reward of every self-edit", x_title="self-edit",
                y_title="share of right answers", visible=False, elem_id="train-plot",
            )  # fmt: skip
            means = read_only_table(
                ["Round", "Scored", "Mean", "Best", "Kept"], [24, 24, 18, 17, 17],
                label="Rewards by round, each on passages of its own. Best: since a self-edit is learned once here, the same "
                "answers choose and score it, so it is partly luck",
                elem_id="train-rounds", visible=False,
            )  # fmt: skip
            held_out = read_only_table(
                ["Answered by", "Accuracy [95 %]", "Recited"], [44, 38, 18],
                label="Held-out passages", elem_id="train-held-out", visible=False,
            )  # fmt: skip
            # Few columns, so that words are not broken on a phone.
            edits = read_only_table(
                ["Written for", "Reward", "Self-edit"], [29, 24, 47],
                elem_id="train-edits", label="Self-edits, newest round first", visible=False,
            )  # fmt: skip
            with gr.Accordion("Log", open=False):
                log = gr.Textbox(show_label=False, lines=10, max_lines=10, interactive=False, elem_id="train-log")

    settings = [style, *numbers.values()]

    def owner_of(session_id: str) -> str | None:
        # Only an id that a page has was given out. One that anybody can guess, such as an empty one, has no run.
        found = sessions.find(session_id)
        return found.id if found else None

    def read(values: tuple) -> TrainingSettings:
        chosen = dict(zip(["prompt_style", *numbers], values, strict=True))
        return TrainingSettings(**{name: as_number(value) for name, value in chosen.items()})

    async def watch(session_id: str) -> AsyncIterator[dict]:
        while True:
            owner = owner_of(session_id)
            snapshot = owner and await asyncio.to_thread(runs.snapshot, owner)
            if not snapshot:
                yield {start: gr.update(interactive=True)}
                return
            yield show(snapshot)
            if snapshot.state != RUNNING:
                return
            await asyncio.sleep(_REFRESH)

    def show(snapshot: TrainingSnapshot) -> dict:
        running = snapshot.state == RUNNING
        scored = any_reward(snapshot.candidates)
        return {
            status: status_text(snapshot, shows_folder=not runs.limits.is_shared),
            start: gr.update(interactive=not running),
            stop: gr.update(interactive=running),
            resume: gr.update(interactive=snapshot.state in (STOPPED, FAILED)),
            plot: gr.update(
                value=reward_points(snapshot.candidates), x_lim=[0, len(snapshot.candidates) + 1], visible=scored
            ),
            means: gr.update(value=rounds_table(snapshot.candidates), visible=scored),
            held_out: gr.update(
                value=held_out_table(snapshot.evaluations),
                label=held_out_label(snapshot.evaluations),
                visible=bool(snapshot.evaluations),
            ),
            edits: gr.update(value=edits_table(snapshot.candidates), visible=bool(snapshot.candidates)),
            log: snapshot.log,
        }

    async def on_start(session_id: str, file: str | None, *values: object) -> AsyncIterator[dict]:
        if (owner := owner_of(session_id)) is None:
            yield {status: _NO_SESSION}
            return
        yield {start: gr.update(interactive=False), status: "Starting …"}
        try:
            await asyncio.to_thread(runs.start, owner, read(values), Path(file) if file else None)
        except (ValueError, OSError) as error:
            yield {start: gr.update(interactive=True), status: f"⚠️ {escape(explain(error))}"}
            return
        async for shown in watch(session_id):
            yield shown

    async def on_resume(session_id: str) -> AsyncIterator[dict]:
        if (owner := owner_of(session_id)) is None:
            yield {status: _NO_SESSION}
            return
        try:
            await asyncio.to_thread(runs.resume, owner)
        except (JobRefused, OSError) as error:
            yield {status: f"⚠️ {escape(explain(error))}"}
            return
        async for shown in watch(session_id):
            yield shown

    def on_stop(session_id: str) -> dict:
        if (owner := owner_of(session_id)) is None:
            return {status: _NO_SESSION}
        runs.stop(owner)
        return {stop: gr.update(interactive=False), status: "Stopping …"}

    def restore(session_id: str) -> list[object]:
        owner = owner_of(session_id)
        chosen = runs.settings(owner) if owner else None
        return [gr.skip() if chosen is None else getattr(chosen, name) for name in ("prompt_style", *numbers)]

    def show_config(file: str | None, *values: object) -> str:
        try:
            return runs.yaml(read(values), Path(file).name if file else "demo")
        except ValueError as error:
            return f"# {error}"

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    shown = [status, start, stop, resume, plot, means, held_out, edits, log]
    start.click(on_start, [session, upload, *settings], shown, trigger_mode="once", **shared)
    resume.click(on_resume, session, shown, trigger_mode="once", **shared)
    stop.click(on_stop, session, [stop, status], api_visibility="private", queue=False)
    gr.on(
        [widget.change for widget in (upload, *settings)],
        show_config,
        [upload, *settings],
        config,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
    )

    def attach(event: gr.events.Dependency) -> None:
        event.then(restore, session, settings, api_visibility="private", show_progress="hidden", queue=False)
        event.then(watch, session, shown, **shared)

    return attach


def _number(name: str, defaults: TrainingSettings) -> gr.Number:
    label, least, most = TRAINING_RANGES[name]
    return gr.Number(
        value=getattr(defaults, name),
        label=label,
        minimum=least,
        maximum=most,
        precision=0 if isinstance(least, int) else None,
        min_width=160,
        elem_id=f"train-{name}",
    )


def status_text(snapshot: TrainingSnapshot, *, shows_folder: bool = True) -> str:
    """
    The progress of the run, in a sentence.

    Args:
        snapshot ([`TrainingSnapshot`]):
            The progress.
        shows_folder (`bool`, *optional*, defaults to `True`):
            Whether the visitor may know where the run is on this machine.
    """
    if snapshot.state == FAILED:
        return f"⚠️ {escape(snapshot.error or '')} The results so far are on disk, and **Resume** continues from them."
    if snapshot.state == STOPPED:
        return f"Stopped. {snapshot.phase}. {escape(snapshot.error) + ' ' if snapshot.error else ''}**Resume** continues from there."
    if snapshot.state == DONE and not shows_folder:
        return f"{snapshot.phase}."
    if snapshot.state == DONE:
        return f"{snapshot.phase}. The policy adapter, the journal and the plot are in `{snapshot.folder / 'run'}`."
    return f"{snapshot.phase}{' (paused while a visitor uses the device)' * snapshot.is_paused} …"


def any_reward(candidates: list[Candidate]) -> bool:
    """Whether there is something to plot."""
    return any(candidate.reward is not None for candidate in candidates)


def reward_points(candidates: list[Candidate]) -> pd.DataFrame:
    """The rewards of all scored self-edits. The first entries, one of each kind, have no reward and are not drawn."""
    names = {True: "kept", False: "rejected", None: "not selected yet"}
    # Gradio's plot draws only the kinds that its first data contain, with or without a color_map.
    kinds = [{"number": 0, "reward": None, "self-edit": name} for name in names.values()]
    points = [
        {"number": number, "reward": candidate.reward, "self-edit": names[candidate.kept]}
        for number, candidate in enumerate(candidates, 1)
        if candidate.reward is not None
    ]
    return pd.DataFrame(kinds + points, columns=["number", "reward", "self-edit"])


def rounds_table(candidates: list[Candidate]) -> list[list[str]]:
    """A line for each round."""
    lines = []
    for number in sorted({candidate.round for candidate in candidates}):
        members = [candidate for candidate in candidates if candidate.round == number]
        rewards = [candidate.reward for candidate in members if candidate.reward is not None]
        best: dict[str, float] = {}
        for candidate in members:
            if candidate.reward is not None:
                best[candidate.passage] = max(best.get(candidate.passage, 0.0), candidate.reward)
        lines.append(
            [
                str(number),
                f"{len(rewards)} of {len(members)}",
                percent(sum(rewards) / len(rewards) if rewards else None),
                percent(sum(best.values()) / len(best) if best else None),
                "–" if members[0].kept is None else str(sum(bool(candidate.kept) for candidate in members)),
            ]
        )
    return lines


def held_out_label(found: list[Evaluation]) -> str:
    """How many passages and questions the policy is evaluated on."""
    if not found:
        return "Held-out passages"
    size = found[0].accuracies[SELF_EDITS]
    return f"Held-out passages: {size.num_passages}, with {size.num_questions} questions. Means over the passages. {RECITED}"


def held_out_table(found: list[Evaluation]) -> list[list[str]]:
    """
    The accuracy of each condition on held-out passages with the share of answers that recite, and what one recitation earns as
    the answer to all questions.
    """
    of_every_policy = {SELF_EDITS, *(name for evaluation in found[1:] for name in evaluation.accuracies)}
    lines = []
    for evaluation in found:
        when = f"after round {evaluation.round}" if evaluation.round else "before training"
        for name, accuracy in evaluation.accuracies.items():
            label = f"{name}, {when}" if name in of_every_policy else name
            recited = evaluation.recited.get(name)
            lines.append([label, str(accuracy), percent(recited and recited.value)])
            if name in evaluation.recitations:
                lines.append([f"recitation, {label}", str(evaluation.recitations[name]), ""])
    return lines


def edits_table(candidates: list[Candidate]) -> list[list[str]]:
    """All self-edits, the newest round first."""
    kept = {True: ", kept", False: ", rejected", None: ""}
    return [
        [
            f"Round {candidate.round}, #{candidate.number}: {candidate.passage}",
            f"{percent(candidate.reward)}{kept[candidate.kept]}",
            candidate.text[:_LONGEST_TEXT] + " …" * (len(candidate.text) > _LONGEST_TEXT),
        ]
        for candidate in sorted(candidates, key=lambda candidate: -candidate.round)
    ]
