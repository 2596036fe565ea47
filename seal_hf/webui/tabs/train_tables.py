"""What the tab Train shows of a run, as tables and points of its plots."""

from collections.abc import Sequence

import pandas as pd

from ...domains.base import BASE, SELF_EDITS
from ...domains.knowledge.domain import IN_CONTEXT, PASSAGE_ONLY
from ...grading.intervals import Accuracy
from ...records.plot import condition_colors
from ...records.report import Evaluation, of_every_policy
from ..languages import say, told
from ..work.training_records import Candidate
from .shared import RECITED, percent


_MOST_PAIRS = 12  # questions of a self-edit in the table; the run's files have all of them
_LONGEST_TEXT = 300  # characters of a self-edit, or of a question with its answer
# In the plot of the held-out passages.
_DASH = 0.08  # where a line ends that has no second point yet, in rounds
# The kinds of self-edits, and their colours by Okabe and Ito, which colour-blind people can tell apart.
_KINDS = {True: "train.kept", False: "train.rejected", None: "train.not_selected"}
_COLORS = {"train.kept": "#0072b2", "train.rejected": "#c24e00", "train.not_selected": "#94a3b8"}
# Conditions of the page's runs, which have these names in the records. Others are shown by their names.
_CONDITIONS = {
    BASE: "condition.base",
    IN_CONTEXT: "condition.in_context",
    PASSAGE_ONLY: "condition.passage_only",
    SELF_EDITS: "condition.self_edits",
}


def condition_name(name: str) -> str:
    """What the page calls a condition."""
    return say(_CONDITIONS[name]) if name in _CONDITIONS else name


def reward_colors() -> dict[str, str]:
    """The colour of each kind of [`reward_points`]."""
    return {say(key): color for key, color in _COLORS.items()}


def any_reward(candidates: list[Candidate]) -> bool:
    """Whether there is something to plot."""
    return any(candidate.reward is not None for candidate in candidates)


def reward_points(candidates: list[Candidate]) -> pd.DataFrame:
    """The rewards of all scored self-edits. The first entries, one of each kind, have no reward and are not drawn."""
    names = {kept: say(key) for kept, key in _KINDS.items()}
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
                say("common.part", part=len(rewards), all=len(members)),
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
    recitation = say("train.recitation_earns")
    lines: dict[str, list[tuple[float, float]]] = {SELF_EDITS: []}
    for evaluation in found:
        values = {name: one.value for name, one in evaluation.accuracies.items()}
        if SELF_EDITS in evaluation.recitations:
            values[recitation] = evaluation.recitations[SELF_EDITS].value
        for name, value in values.items():
            lines.setdefault(name, []).append((evaluation.round, value))
    of_policies = {*of_every_policy(found), recitation}
    for name, line in lines.items():
        if len(line) == 1:  # of a line with one end nothing is drawn
            line.append((_DASH if name in of_policies else max(1, found[-1].round), line[0][1]))
    points = [(place, value, condition_name(name)) for name, line in lines.items() for place, value in line]
    return pd.DataFrame(points, columns=["round", "accuracy", "answered by"])


def accuracy_colors(found: list[Evaluation]) -> dict[str, str]:
    """The colour of each line of [`accuracy_points`], as in the run's own plot."""
    names = [name for name in (found[0].accuracies if found else ()) if name != SELF_EDITS]
    colors = condition_colors(names)
    own = {condition_name(name): colors[name] for name in (SELF_EDITS, *names)}
    return own | {say("train.recitation_earns"): colors["recitation"]}


def held_out_label(found: list[Evaluation]) -> str:
    """How many passages and questions the policy is evaluated on."""
    if not found:
        return say("train.held_out")
    size = found[0].accuracies[SELF_EDITS]
    of_them = say("train.held_out_of", number=size.num_passages, num_questions=size.num_questions)
    meanings = [told(RECITED), *([say("train.recitation_means")] if any(one.recitations for one in found) else [])]
    return " ".join([of_them, *meanings])


def held_out_table(found: list[Evaluation]) -> list[list[str]]:
    """
    The accuracy of each condition on held-out passages with the share of answers that recite, and what one recitation earns as
    the answer to all questions.
    """
    measured_again = of_every_policy(found)
    lines = []
    for evaluation in found:
        number = evaluation.round
        when = say("train.after_round", number=number) if number else say("train.before_training")
        for name, accuracy in evaluation.accuracies.items():
            label = condition_name(name)
            if name in measured_again:
                label = f"{label}, {when}"
            recited = evaluation.recited.get(name)
            lines.append([label, _interval(accuracy), percent(recited and recited.value)])
            if name in evaluation.recitations:
                lines.append([say("train.recitation_of", name=label), _interval(evaluation.recitations[name]), ""])
    return lines


def _interval(found: Accuracy) -> str:
    return say("train.interval", value=100 * found.value, low=100 * found.low, high=100 * found.high)


def edits_label(found: Sequence[tuple[Candidate, object]], candidates: Sequence[Candidate]) -> str:
    """Of which round the table is, and how many of its self-edits are kept."""
    if not found:
        return say("train.self_edits")
    number = found[0][0].round
    kept = [one.kept for one in candidates if one.round == number]
    selected = say("train.not_selected") if None in kept else say("train.num_kept", number=sum(kept))
    label = f"{say('train.self_edits_of', round=number, number=len(kept))}, {selected}"
    return f"{label}, {say('train.first_shown', number=len(found))}" if len(found) < len(kept) else label


def edits_table(found: Sequence[tuple[Candidate, Sequence[tuple[str, str]]]]) -> list[list[str]]:
    """Self-edits with their rewards, and the questions and answers that they train on, or their text where there are none."""
    kept = {True: f", {say('train.kept')}", False: f", {say('train.rejected')}", None: ""}
    return [
        [
            f"{candidate.passage}, #{candidate.number}\n{percent(candidate.reward)}{kept[candidate.kept]}",
            _pairs_text(pairs) if pairs else _shortened(candidate.text),
        ]
        for candidate, pairs in found
    ]


def _pairs_text(pairs: Sequence[tuple[str, str]]) -> str:
    lines = [_shortened(f"{question} → {answer}") for question, answer in pairs[:_MOST_PAIRS]]
    if len(pairs) > _MOST_PAIRS:
        lines.append(say("train.more_pairs", number=len(pairs) - _MOST_PAIRS))
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return text[:_LONGEST_TEXT] + " …" * (len(text) > _LONGEST_TEXT)
