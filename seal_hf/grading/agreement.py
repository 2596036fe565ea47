"""How far the local grader agrees with the verdicts stored in a run."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from .judge import require_verdicts
from .lexical import LexicalGrader


@dataclass(frozen=True)
class Comparison:
    """
    How a grader compares with the verdicts stored in a run.

    Parameters:
        adapter_agreement, baseline_agreement, agreement (`float`):
            Share of adapted answers, of base answers, and of both that get the stored verdict.
        num_adapter, num_baseline (`int`):
            Number of these answers. A run repeats the base answers with every self-edit; they count once.
        mean_reward, stored_choice, chosen (`float`):
            Mean stored reward over passages of all self-edits, of the one that the stored verdicts choose, and of the
            one that the grader chooses: the best of the passage, the first of equals.
    """

    adapter_agreement: float
    num_adapter: int
    baseline_agreement: float
    num_baseline: int
    agreement: float
    mean_reward: float
    stored_choice: float
    chosen: float

    @property
    def captured_share(self) -> float | None:
        """Share of the gain from choosing that the grader's choice keeps; `None` where there is nothing to gain."""
        gain = self.stored_choice - self.mean_reward
        return (self.chosen - self.mean_reward) / gain if gain > 0 else None


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

    def verdicts_on(rows: Sequence[dict], kind: str) -> list[bool]:
        columns = ([row[name] for row in rows] for name in ("question", "answer", f"{kind}_answer"))
        return require_verdicts(grader.grade(*columns))

    agrees: dict[str, list[bool]] = {"adapter": [], "baseline": []}
    means, stored_choices, choices = [], [], []
    for passage in passages:
        rewards, grades = [], []
        for number, edit in enumerate(passage["completions"]):
            rows = edit["questions"]
            verdicts = verdicts_on(rows, "adapter")
            rewards.append(edit["stats"]["adapter_mean"])
            grades.append(fmean(verdicts))
            agrees["adapter"] += [v == row["adapter_correct"] for v, row in zip(verdicts, rows, strict=True)]
            if number == 0:
                rows = [row for row in rows if row["rep"] == rows[0]["rep"]]
                verdicts = verdicts_on(rows, "baseline")
                agrees["baseline"] += [v == row["baseline_correct"] for v, row in zip(verdicts, rows, strict=True)]
        means.append(fmean(rewards))
        stored_choices.append(max(rewards))
        choices.append(rewards[grades.index(max(grades))])
    return Comparison(
        adapter_agreement=fmean(agrees["adapter"]),
        num_adapter=len(agrees["adapter"]),
        baseline_agreement=fmean(agrees["baseline"]),
        num_baseline=len(agrees["baseline"]),
        agreement=fmean(agrees["adapter"] + agrees["baseline"]),
        mean_reward=fmean(means),
        stored_choice=fmean(stored_choices),
        chosen=fmean(choices),
    )


def load_run(path: str | Path, passages: slice = slice(None)) -> list[dict]:
    """
    Read passages of a run in the paper's format, `{"articles": [{"completions": [{"stats", "questions"}]}]}`.

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
        numbers = [edit["stats"]["adapter_mean"] for edit in edits] + [row["rep"] for row in rows]
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
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError(f"{path} is not a stored run: answers must be text and rewards numbers; store it again.")
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
        captured = "none to capture" if result.captured_share is None else f"{result.captured_share:.3f}"
        sys.stdout.write(
            f"{run}: {len(passages)} passages\n"
            f"  agreement          {result.agreement:.3f}  n = {result.num_adapter + result.num_baseline}\n"
            f"    adapted answers  {result.adapter_agreement:.3f}  n = {result.num_adapter}\n"
            f"    base answers     {result.baseline_agreement:.3f}  n = {result.num_baseline}\n"
            f"  captured share     {captured}  (mean reward: all {result.mean_reward:.3f}, "
            f"stored choice {result.stored_choice:.3f}, local choice {result.chosen:.3f})\n"
        )
