"""What step 3 says and draws of a training: its loss, the watched question, and how it has ended."""

from collections.abc import Sequence

import pandas as pd

from ..languages import of_data, say, told
from ..work.sessions import Session
from .shared import MARKS, duration, escape, percent


def loss_table(steps: list[dict], names: list[str], seen: Sequence[dict] = ()) -> pd.DataFrame:
    """
    The loss of each self-edit at each step, and a line upwards where the watched question was first answered right and stayed
    so. A long training is thinned out to about 150 steps.
    """
    stride = max(1, len(steps) // 150)
    lines = [
        {"step": step["step"], "loss": loss, "self-edit": names[int(adapter)]}
        for step in [*steps[::stride], steps[-1]]
        for adapter, loss in step["losses"].items()
    ]
    highest = max(line["loss"] for line in lines)
    for adapter, name in enumerate(names):
        if (step := first_right(seen, adapter)) is not None:
            label = say("learn.answers_right", name=name)
            lines += [{"step": step, "loss": height, "self-edit": label} for height in (0.0, highest)]
    return pd.DataFrame(lines)


def loss_title(names: Sequence[str], seen: Sequence[dict]) -> str:
    """The title of the plot, with the steps since which the watched question has been answered right."""
    since = {name: first_right(seen, adapter) for adapter, name in enumerate(names)}
    right = [say("learn.right_since", name=name, step=step) for name, step in since.items() if step is not None]
    return say("learn.loss_and_right", since=", ".join(right)) if right else say("learn.loss")


def loss_axes() -> dict[str, str]:
    """What the axes and colours of the plot are, as `gr.LinePlot` takes it."""
    return {
        "x_title": say("learn.step_axis"),
        "y_title": say("learn.loss_axis"),
        "color_title": say("common.self_edit_column"),
    }


def first_right(seen: Sequence[dict], adapter: int) -> int | None:
    """The step since which an adapter has answered the watched question right; `None` where the last answer was not."""
    found = None
    for event in seen:
        if event["step"] and event["verdicts"] and str(adapter) in event["verdicts"]:
            is_right = event["verdicts"][str(adapter)]
            found = (found or event["step"]) if is_right else None
    return found


def watched_table(seen: list[dict], names: list[str]) -> list[list[str]]:
    """What the base model and each adapter answer to the watched question, and how likely they find the right answer."""
    latest = {adapter: event for event in seen[1:] for adapter in event["answers"]}
    lines = [(say("common.base_model"), seen[0], "0")]
    lines += [
        (say("learn.at_step", name=names[int(adapter)], step=event["step"]), event, adapter)
        for adapter, event in latest.items()
    ]
    return [
        [
            label,
            MARKS[(event["verdicts"] or {}).get(adapter)] + event["answers"][adapter],
            percent((event["probabilities"] or {}).get(adapter)),
        ]
        for label, event, adapter in lines
    ]


def rewards_table(event: dict, names: Sequence[str]) -> list[list[str]]:
    """The rewards of the base model and of each adapter. Only of several one is the best."""
    right = [sum(map(bool, one)) for one in event["verdicts"]]
    count = len(event["questions"])
    best = event["best"] + 1 if len(names) > 1 else None
    return [
        [
            say("learn.together_of", names=name) if " + " in name else name,
            say("common.part", part=right[index], all=count),
            percent(right[index] / count),
            percent(event["recited"][index]),
            say("learn.best") if index == best else "",
        ]
        for index, name in enumerate([say("common.base_model"), *names])
    ]


def answers_headers(names: Sequence[str]) -> list[str]:
    """The columns of the graded answers: those of the base model and of the adapter of these names that is asked."""
    adapter = say("learn.best_adapter") if len(names) > 1 else say("common.adapter")
    return [say("common.question_and_answer"), say("common.base_model"), adapter]


def training_text(step: dict) -> str:
    """The progress of the training, in a sentence."""
    left = step["seconds"] / step["step"] * (step["num_steps"] - step["step"])
    return say(
        "learn.progress",
        step=step["step"],
        num_steps=step["num_steps"],
        speed=step["num_tokens"] / max(step["seconds"], 1e-3),
        left=duration(left),
    )


def settled_text(event: dict | None) -> str:
    """How many steps an early end has saved, as a sentence before others; empty where there was none."""
    if event is None:
        return ""
    saved = event["num_steps"] - event["step"]
    return say("learn.settled", count=saved, step=event["step"], num_steps=event["num_steps"]) + " "


def learned_text(current: Session, event: dict | None) -> str:
    """The result of the training, in a sentence."""
    kept = current.adapters.get(event["adapters"][event["best"]]) if event else None
    if kept is None:  # it has been deleted
        return say("learn.learned")
    if kept.reward is None:
        return say("learn.learned_without_score")
    is_best = kept.best_of > 1
    sentences = [
        say("learn.learned_in", time=duration(kept.seconds)),
        say(
            f"learn.result_{'best' if is_best else 'only'}_{'own' if kept.own_questions else 'yours'}",
            reward=percent(kept.reward),
            base=percent(kept.base_reward),
        ),
        *([say("learn.chosen_by_these", best_of=kept.best_of)] if is_best else ()),
        say("learn.one_text", share=percent(kept.recitation)),
        say("learn.ask_it"),
    ]
    return " ".join(sentences)


def diverged_text(event: dict | None) -> str:
    """Which self-edits were not learned, as a sentence after others; empty where all were."""
    if event is None or not event["diverged"]:
        return ""
    return " " + say("learn.diverged", names=", ".join(event["diverged"]))


def stopped_text(steps: list[dict]) -> str:
    """What is left when the training was stopped, in a sentence."""
    if not steps:
        return say("learn.stopped_at_once")
    return say("learn.stopped_after", step=steps[-1]["step"])


def shelved_text(event: dict | None) -> str:
    """Whether what was learned is on the shelf, as a sentence after others; empty where it is not to be there."""
    if event is None:
        return ""
    if event["error"]:
        return f" {say('learn.not_shelved', error=escape(told(of_data(event['error']))))}"
    return f" {say('learn.shelved') if event['book'] else say('learn.other_book_stays')}"
