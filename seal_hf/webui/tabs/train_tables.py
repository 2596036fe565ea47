"""What the tab Train shows of a run, as tables and points of its plots."""

from collections.abc import Sequence

import pandas as pd

from ...domains.base import SELF_EDITS
from ...records.plot import condition_colors
from ...records.report import Evaluation, of_every_policy
from ..work.training_records import Candidate
from .shared import RECITED, percent


_MOST_PAIRS = 12  # questions of a self-edit in the table; the run's files have all of them
_LONGEST_TEXT = 300  # characters of a self-edit, or of a question with its answer
# In the plot of the held-out passages.
_RECITATION = "one recitation earns"
_DASH = 0.08  # where a line ends that has no second point yet, in rounds
# By Okabe and Ito, which colour-blind people can tell apart.
COLORS = {"kept": "#0072b2", "rejected": "#c24e00", "not selected yet": "#94a3b8"}


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


def accuracy_points(found: list[Evaluation]) -> pd.DataFrame:
    """
    The accuracy of each condition on held-out passages after each round, the self-edits first. What was measured once has the same
    after all rounds. What one recitation of the adapters that learned self-edits earns is there, too.
    """
    lines: dict[str, list[tuple[float, float]]] = {SELF_EDITS: []}
    for evaluation in found:
        values = {name: one.value for name, one in evaluation.accuracies.items()}
        if SELF_EDITS in evaluation.recitations:
            values[_RECITATION] = evaluation.recitations[SELF_EDITS].value
        for name, value in values.items():
            lines.setdefault(name, []).append((evaluation.round, value))
    of_policies = {*of_every_policy(found), _RECITATION}
    for name, line in lines.items():
        if len(line) == 1:  # of a line with one end nothing is drawn
            line.append((_DASH if name in of_policies else max(1, found[-1].round), line[0][1]))
    points = [(place, value, name) for name, line in lines.items() for place, value in line]
    return pd.DataFrame(points, columns=["round", "accuracy", "answered by"])


def accuracy_colors(found: list[Evaluation]) -> dict[str, str]:
    """The colour of each line of [`accuracy_points`], as in the run's own plot."""
    names = [name for name in (found[0].accuracies if found else ()) if name != SELF_EDITS]
    colors = condition_colors(names)
    return {name: colors[name] for name in (SELF_EDITS, *names)} | {_RECITATION: colors["recitation"]}


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
    measured_again = of_every_policy(found)
    lines = []
    for evaluation in found:
        when = f"after round {evaluation.round}" if evaluation.round else "before training"
        for name, accuracy in evaluation.accuracies.items():
            label = f"{name}, {when}" if name in measured_again else name
            recited = evaluation.recited.get(name)
            lines.append([label, str(accuracy), percent(recited and recited.value)])
            if name in evaluation.recitations:
                lines.append([f"recitation, {label}", str(evaluation.recitations[name]), ""])
    return lines


def edits_label(found: Sequence[tuple[Candidate, object]], candidates: Sequence[Candidate]) -> str:
    """Of which round the table is, and how many of its self-edits are kept."""
    if not found:
        return "Self-edits"
    number = found[0][0].round
    kept = [one.kept for one in candidates if one.round == number]
    more = f", of which the first {len(found)} are shown" * (len(found) < len(kept))
    selected = "not selected yet" if None in kept else f"{sum(kept)} kept"
    return f"Self-edits of round {number}: {len(kept)}, {selected}{more}"


def edits_table(found: Sequence[tuple[Candidate, Sequence[tuple[str, str]]]]) -> list[list[str]]:
    """Self-edits with their rewards, and the questions and answers that they train on, or their text where there are none."""
    kept = {True: ", kept", False: ", rejected", None: ""}
    return [
        [
            f"{candidate.passage}, #{candidate.number}\n{percent(candidate.reward)}{kept[candidate.kept]}",
            _pairs_text(pairs) if pairs else _shortened(candidate.text),
        ]
        for candidate, pairs in found
    ]


def _pairs_text(pairs: Sequence[tuple[str, str]]) -> str:
    lines = [_shortened(f"{question} → {answer}") for question, answer in pairs[:_MOST_PAIRS]]
    return "\n".join([*lines, f"… and {len(pairs) - _MOST_PAIRS} more"] if len(pairs) > _MOST_PAIRS else lines)


def _shortened(text: str) -> str:
    return text[:_LONGEST_TEXT] + " …" * (len(text) > _LONGEST_TEXT)
