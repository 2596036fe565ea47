"""
The files of the paper authors' code (https://github.com/Continual-Intelligence/SEAL): what a run of theirs holds, summed up as
they do it, and a run of this project in the same form.

A *query run* is their record of one evaluation or one round: for each passage its completions, and for each completion and repeat
the answers of the base model and of the adapted one with their verdicts. [`seal_hf.domains.stored_self_edits`] reads the
self-edits of such a file, of their datasets with `completions`, and of the pairs that they finetune on.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Protocol

from ...grading import gold_answers
from ..base import BASE, SELF_EDITS


class Scored(Protocol):
    """What is read of a scored self-edit (see [`seal_hf.records.schema.ScoredSelfEdit`])."""

    condition: str
    example: int
    edit: int
    prompt: str | list[dict]
    completion: str
    repeats: list[dict]


def overall(articles: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """
    The `overall` block of a query run, from its passages.

    Means over passages are of the means over completions, and standard deviations are those of samples. What needs two values is
    0 where there is one.

    Args:
        articles (`Sequence[Mapping[str, Any]]`):
            The `articles` of a query run, with the `stats` of every completion.

    Returns:
        `dict[str, float]`: rounded to four decimals, as it is stored.
    """
    stats = [[one["stats"] for one in article["completions"]] for article in articles]
    base = [fmean(one["baseline_mean"] for one in own) for own in stats]
    adapted = [[one["adapter_mean"] for one in own] for own in stats]
    means = [fmean(own) for own in adapted]
    within = [one["adapter_std"] for own in stats for one in own]
    values = {
        "baseline_mean_accuracy": fmean(base),
        "baseline_std_of_article_means": _std(base),
        "adapter_mean_accuracy": fmean(means),
        "adapter_std_of_article_means": _std(means),
        "mean_adapter_std_over_completions": fmean(map(_std, adapted)),
        "mean_adapter_std_within_completions": fmean(within),
        "mean_gain": fmean(one["gain_mean"] for own in stats for one in own),
    }
    return {name: round(value, 4) for name, value in values.items()}


def _std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def query_run(examples: Sequence[Mapping[str, Any]], scored: Iterable[Scored], **settings: Any) -> dict[str, Any]:
    """
    An evaluation of this project as a query run.

    A malformed self-edit counts as in an evaluation: with the answers of the base model. Of several gold answers the first is
    stored, as in their data. A prompt in chat form is stored as the text of its messages.

    Args:
        examples (`Sequence[Mapping[str, Any]]`):
            The passages.
        scored (`Iterable[Scored]`):
            The evaluation's records, of self-edits and of the base model; others are left out.
        **settings:
            What is to be stored besides, such as `model` and `dataset`.

    Raises:
        ValueError: The records hold no self-edits.
    """
    base, edits = {}, defaultdict(list)
    for one in scored:
        if one.condition == BASE:
            base[one.example] = one.repeats[0]
        elif one.condition == SELF_EDITS:
            edits[one.example].append(one)
    if not edits:
        raise ValueError("The records hold no self-edits; give those of an evaluation with self-edits.")
    articles = []
    for place, own in sorted(edits.items()):
        example = examples[place]
        completions = [_completion(example, one, base[place]) for one in sorted(own, key=lambda one: one.edit)]
        article = {"title": example.get("title") or "", "context": example["context"], "prompt": _plain(own[0].prompt)}
        articles.append({"stats": _article_stats(completions), **article, "completions": completions})
    return {
        "overall": overall(articles),
        **settings,
        "n_articles": len(articles),
        "k_completions": max(map(len, edits.values())),
        "eval_times": max(len(one.repeats) for own in edits.values() for one in own) or 1,
        "articles": articles,
    }


def _completion(example: Mapping[str, Any], edit: Scored, base: Mapping[str, Any]) -> dict[str, Any]:
    repeats = edit.repeats or [base]
    rewards = [fmean(repeat["verdicts"]) for repeat in repeats]
    base_reward = fmean(base["verdicts"])
    questions = [
        {
            "rep": number,
            "question": item["question"],
            "answer": (gold_answers(item["answer"]) or ("",))[0],
            "baseline_answer": base["answers"][i],
            "adapter_answer": repeat["answers"][i],
            "baseline_correct": base["verdicts"][i],
            "adapter_correct": repeat["verdicts"][i],
        }
        for number, repeat in enumerate(repeats)
        for i, item in enumerate(example["questions"])
    ]
    stats = {
        "baseline_mean": base_reward,
        "baseline_std": 0.0,
        "adapter_mean": fmean(rewards),
        "adapter_std": _std(rewards),
        "gain_mean": fmean(rewards) - base_reward,
    }
    return {"text": edit.completion, "stats": stats, "questions": questions}


def _article_stats(completions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    stats = [one["stats"] for one in completions]
    means = [one["adapter_mean"] for one in stats]
    values = {
        "baseline_accuracy": fmean(one["baseline_mean"] for one in stats),
        "adapter_mean_accuracy": fmean(means),
        "adapter_std_over_completions": _std(means),
        "mean_adapter_std_within_completions": fmean(one["adapter_std"] for one in stats),
        "mean_gain": fmean(one["gain_mean"] for one in stats),
    }
    return {name: round(value, 4) for name, value in values.items()}


def _plain(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
