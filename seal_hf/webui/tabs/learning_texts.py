"""What step 3 says and draws of a training: its loss, the watched question, and how it has ended."""

from collections.abc import Sequence

import pandas as pd

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
            label = f"{name} answers right"
            lines += [{"step": step, "loss": height, "self-edit": label} for height in (0.0, highest)]
    return pd.DataFrame(lines)


def loss_title(names: list[str], seen: Sequence[dict]) -> str:
    """The title of the plot, with the steps since which the watched question has been answered right."""
    since = {name: first_right(seen, adapter) for adapter, name in enumerate(names)}
    told = [f"{name} since step {step}" for name, step in since.items() if step is not None]
    return f"Training loss. The watched question is answered right: {', '.join(told)}" if told else "Training loss"


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
    lines = [("Base model", seen[0], "0")]
    lines += [
        (f"Self-edit {names[int(adapter)]}, step {event['step']}", event, adapter) for adapter, event in latest.items()
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
    return [
        [
            f"{name}, together" if " + " in name else name,
            f"{right[index]} of {count}",
            percent(right[index] / count),
            percent(event["recited"][index]),
            "best" * (len(names) > 1 and index == event["best"] + 1),
        ]
        for index, name in enumerate(["Base model", *names])
    ]


def answers_headers(names: Sequence[str]) -> list[str]:
    """The columns of the graded answers: those of the base model and of the adapter of these names that is asked."""
    return ["Question → right answer", "Base model", "Best adapter" if len(names) > 1 else "Adapter"]


def training_text(step: dict) -> str:
    """The progress of the training, in a sentence."""
    left = step["seconds"] / step["step"] * (step["num_steps"] - step["step"])
    return (
        f"Step {step['step']} of {step['num_steps']} · {step['num_tokens'] / max(step['seconds'], 1e-3):,.0f} tokens/s · "
        f"about {duration(left)} left"
    )


def settled_text(event: dict | None) -> str:
    """How many steps an early end has saved, as a sentence before others; empty where there was none."""
    if event is None:
        return ""
    saved = event["num_steps"] - event["step"]
    return (
        f"Ended after step {event['step']} of {event['num_steps']}, since the watched answer stays: {saved} step{'s' * (saved > 1)} "
        "saved. "
    )


def learned_text(current: Session, event: dict | None) -> str:
    """The result of the training, in a sentence."""
    kept = current.adapters.get(event["adapters"][event["best"]]) if event else None
    if kept is None:  # it has been deleted
        return "Learned."
    if kept.reward is None:
        return "Learned. There was no question to score it with. **Ask it something** under Ask."
    origin = "the model's own questions" if kept.own_questions else "your questions"
    best = "best " * (kept.best_of > 1)
    chosen = (
        f"It was chosen as the best of {kept.best_of} by these very questions, so its share tends to be too high by chance: ask others, too. "
    ) * (kept.best_of > 1)
    return (
        f"Learned in {duration(kept.seconds)}. Without the passage, the {best}adapter answers **{percent(kept.reward)}** of "
        f"{origin} right, the base model {percent(kept.base_reward)}. {chosen}One text for all of them, what it says to “Tell me about” "
        f"the topic, would be right for {percent(kept.recitation)}. **Ask it something** under Ask."
    )


def stopped_text(steps: list[dict]) -> str:
    """What is left when the training was stopped, in a sentence."""
    if not steps:
        return "Stopped before the first step: nothing was learned."
    return f"Stopped after step {steps[-1]['step']}. The adapters are kept as they were then, without a reward."


def shelved_text(event: dict | None) -> str:
    """Whether what was learned is on the shelf, as a sentence after others; empty where it is not to be there."""
    if event is None:
        return ""
    if event["error"]:
        return f" It is not on the shelf: {escape(event['error'])}"
    return (
        " It is a book on the **Shelf**."
        if event["book"]
        else " The book of this passage on the **Shelf** stays as it was."
    )
