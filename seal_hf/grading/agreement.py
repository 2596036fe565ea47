"""How far the local grader agrees with the verdicts stored in a run."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from .choosing import scored_apart
from .judge import require_verdicts
from .lexical import LexicalGrader


@dataclass(frozen=True)
class Choice:
    """
    What choosing the best self-edit of a passage gains, in mean stored reward over passages.

    The reward of a repeat is scored with the self-edit that the other repeats choose, the first of equals; the figures are
    means over the repeats. Where the same draws choose and score, the best of several looks better by chance alone.

    Parameters:
        num_repeats (`int`):
            The repeats of each self-edit, at least two.
        mean_reward (`float`):
            Of all self-edits: what a blind choice gets.
        stored (`float`):
            Of the self-edit that the stored verdicts on the other repeats choose.
        local (`float`):
            Of the one that the grader chooses by the other repeats.
        stored_same_draws (`float`):
            Of the best self-edit by the very rewards that score it; biased upwards.
    """

    num_repeats: int
    mean_reward: float
    stored: float
    local: float
    stored_same_draws: float


@dataclass(frozen=True)
class Comparison:
    """
    How a grader compares with the verdicts stored in a run.

    Parameters:
        adapter_agreement, baseline_agreement, agreement (`float`):
            Share of adapted answers, of base answers, and of both that get the stored verdict.
        num_adapter, num_baseline (`int`):
            Number of these answers. A run repeats the base answers with every self-edit; they count once.
        stricter, laxer (`int`):
            Number of answers that are right by the stored verdict alone, and by the grader alone.
        mentioned (`int`):
            Number of answers that are wrong to the grader but mention the gold answer later.
        mentioned_accepted (`int`):
            How many of them the stored verdicts call right.
        choice ([`Choice`] or `None`):
            What choosing the best self-edit gains; `None` with a single self-edit or repeat, where nothing can be chosen
            and scored apart.
    """

    adapter_agreement: float
    num_adapter: int
    baseline_agreement: float
    num_baseline: int
    agreement: float
    stricter: int
    laxer: int
    mentioned: int
    mentioned_accepted: int
    choice: Choice | None


def compare(passages: Sequence[dict], grader: LexicalGrader) -> Comparison:
    """
    Compare a grader with the verdicts stored in a run.

    Args:
        passages (`Sequence[dict]`):
            Passages as [`load_run`] returns them.
        grader ([`LexicalGrader`]):
            The grader.

    Returns:
        [`Comparison`]: The figures.

    Raises:
        [`GradingIncomplete`]: If the grader leaves an answer without a verdict.
    """
    # For each kind of answer: the stored verdicts, the grader's, and whether the answer mentions the gold answer at all.
    outcomes: dict[str, list[tuple[bool, bool, bool]]] = {"adapter": [], "baseline": []}
    rewards: list[list[dict[int, tuple[float, float]]]] = []
    for passage in passages:
        own = []
        for number, edit in enumerate(passage["completions"]):
            rows = edit["questions"]
            graded = _outcomes(grader, rows, "adapter")
            outcomes["adapter"] += graded
            own.append(_rewards(rows, graded))
            if number == 0:
                rows = [row for row in rows if row["rep"] == rows[0]["rep"]]
                outcomes["baseline"] += _outcomes(grader, rows, "baseline")
        rewards.append(own)
    both = outcomes["adapter"] + outcomes["baseline"]
    mentioned = [stored for stored, verdict, mentions in both if mentions and not verdict]
    return Comparison(
        adapter_agreement=_agreement(outcomes["adapter"]),
        num_adapter=len(outcomes["adapter"]),
        baseline_agreement=_agreement(outcomes["baseline"]),
        num_baseline=len(outcomes["baseline"]),
        agreement=_agreement(both),
        stricter=sum(stored and not verdict for stored, verdict, _ in both),
        laxer=sum(verdict and not stored for stored, verdict, _ in both),
        mentioned=len(mentioned),
        mentioned_accepted=sum(mentioned),
        choice=_choice(rewards),
    )


def _outcomes(grader: LexicalGrader, rows: Sequence[dict], kind: str) -> list[tuple[bool, bool, bool]]:
    columns = [[row[name] for row in rows] for name in ("question", "answer", f"{kind}_answer")]
    stored = [row[f"{kind}_correct"] for row in rows]
    return list(zip(stored, require_verdicts(grader.grade(*columns)), grader.mentions(*columns), strict=True))


def _agreement(outcomes: Sequence[tuple[bool, bool, bool]]) -> float:
    return fmean(stored == verdict for stored, verdict, _ in outcomes)


def _rewards(rows: Sequence[dict], graded: Sequence[tuple[bool, bool, bool]]) -> dict[int, tuple[float, float]]:
    """By repeat the share of answers that are right by the stored verdicts, and by the grader's."""
    by_repeat: dict[int, list[tuple[bool, bool, bool]]] = {}
    for row, outcome in zip(rows, graded, strict=True):
        by_repeat.setdefault(row["rep"], []).append(outcome)
    return {
        repeat: (fmean(stored for stored, _, _ in own), fmean(verdict for _, verdict, _ in own))
        for repeat, own in by_repeat.items()
    }


def _choice(rewards: Sequence[Sequence[dict[int, tuple[float, float]]]]) -> Choice | None:
    """Choose the best self-edit of each passage by all repeats but one, and score it with that one."""
    repeats = sorted({repeat for own in rewards for edit in own for repeat in edit})
    if len(repeats) < 2 or any(sorted(edit) != repeats for own in rewards for edit in own):
        return None
    if all(len(own) < 2 for own in rewards):
        return None

    stored, local = (
        [[[edit[repeat][place] for repeat in repeats] for edit in own] for own in rewards] for place in (0, 1)
    )
    return Choice(
        num_repeats=len(repeats),
        mean_reward=fmean(fmean(map(fmean, own)) for own in stored),
        stored=fmean(fmean(scored_apart(own, own)) for own in stored),
        local=fmean(fmean(scored_apart(*both)) for both in zip(local, stored, strict=True)),
        stored_same_draws=fmean(max(map(fmean, own)) for own in stored),
    )


def load_run(path: str | Path, passages: slice = slice(None)) -> list[dict]:
    """
    Read passages of a run in the paper's format, `{"articles": [{"completions": [{"questions"}]}]}`.

    Args:
        path (`str` or `Path`):
            The JSON file.
        passages (`slice`, *optional*, defaults to all):
            Which passages to keep.

    Returns:
        `list[dict]`: The passages.

    Raises:
        ValueError: The file is missing, is not such a run, or holds no verdicts.
    """
    try:
        articles = json.loads(Path(path).read_text(encoding="utf-8"))["articles"][passages]
        edits = [edit for article in articles for edit in article["completions"]]
        rows = [row for edit in edits for row in edit["questions"]]
        texts = [row[name] for row in rows for name in ("question", "answer", "adapter_answer", "baseline_answer")]
        verdicts = [row[name] for row in rows for name in ("adapter_correct", "baseline_correct")]
        repeats = [row["rep"] for row in rows]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give the path of a stored run.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is not a stored run ({type(error).__name__}: {error}); give a JSON file with `articles`, their "
            "`completions` and graded `questions`."
        ) from error
    if not edits:
        raise ValueError(f"{path} has no self-edits in the part asked for; widen `--passages`.")
    graded = all(edit["questions"] for edit in edits) and all(isinstance(verdict, bool) for verdict in verdicts)
    if not graded or not all(article["completions"] for article in articles):
        raise ValueError(f"{path} has self-edits without graded questions; give a run stored with its verdicts.")
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(repeat, int) for repeat in repeats):
        raise ValueError(f"{path} is not a stored run: answers must be text and repeats numbers; store it again.")
    return articles


def _parse_slice(text: str) -> slice:
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STOP, such as 0:25")
    return slice(*(int(bound) if bound else None for bound in match.groups()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Report on stored runs; `python -m seal_hf.grading --help` states the options."""
    parser = argparse.ArgumentParser(
        prog="python -m seal_hf.grading", description="Compare the local grader with the verdicts stored in runs."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="stored run with a verdict for every answer")
    parser.add_argument(
        "--passages", type=_parse_slice, default=slice(None), metavar="START:STOP", help="part of the passages"
    )
    options = parser.parse_args(arguments)
    for run in options.runs:
        try:
            passages = load_run(run, options.passages)
            result = compare(passages, LexicalGrader())
        except ValueError as error:
            parser.error(str(error))
        sys.stdout.write(f"{run}: {len(passages)} passages\n{_report(result)}")


def _report(result: Comparison) -> str:
    num_answers = result.num_adapter + result.num_baseline
    lines = [
        f"agreement          {result.agreement:.3f}  n = {num_answers}",
        f"  adapted answers  {result.adapter_agreement:.3f}  n = {result.num_adapter}",
        f"  base answers     {result.baseline_agreement:.3f}  n = {result.num_baseline}",
        f"right by the stored verdict alone {result.stricter}, by the local grader alone {result.laxer}",
        f"gold answer mentioned later, which counts as wrong: {result.mentioned}, of them right by the stored verdict "
        f"{result.mentioned_accepted}",
    ]
    if result.choice is None:
        lines.append("choosing a self-edit: not shown; what one repeat chooses cannot be scored by another")
    else:
        choice = result.choice
        lines += [
            f"choosing a self-edit by {choice.num_repeats - 1} of {choice.num_repeats} repeats, scored by the other one: "
            f"mean reward over passages of all {choice.mean_reward:.3f}, stored choice {choice.stored:.3f}, local choice {choice.local:.3f}",
            f"chosen and scored by the same repeats, which looks better by chance: stored choice {choice.stored_same_draws:.3f}",
        ]
    return "".join(f"  {line}\n" for line in lines)
