"""
How a run's rewards without labels rank its self-edits, compared with the labelled reward; and how far that agrees with itself.

    python -m seal_hf.records.reward_ranking OUTPUT_DIR

The run needs "accuracy" among its `reward_funcs`, as by default, and to be compared others; a weight of 0 is enough, so that any run
can measure them. How far the labels agree with themselves can be told where it has two repeats or more.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..grading.intervals import Difference
from ..grading.ranking import Ranking, RepeatAgreement, agreement_of_repeats, compare_rankings
from ..grading.rewards import ACCURACY
from .journal import Journal
from .round_metrics import reward_names
from .schema import ScoredSelfEdit
from .tables import markdown


WEIGHTED_SUM = "weighted sum"


def reward_rankings(output_dir: str | Path) -> dict[str, Ranking]:
    """
    Compare the rewards of all rounds of a run with the labelled one.

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.

    Returns:
        `dict[str, Ranking]`: by the name of the reward, the labelled one first, then, where there are any, the others and their
            weighted sum. A self-edit counts where every reward of every repeat is known, an example where two of its self-edits do.

    Raises:
        ValueError: There is no scored round, or the run does not have the labelled reward.
    """
    names, examples = _measured(output_dir)
    values = {name: _values(examples, name) for name in (ACCURACY, *(name for name in names if name != ACCURACY))}
    if len(values) > 1:
        values[WEIGHTED_SUM] = [[[repeat["reward"] for repeat in edit.repeats] for edit in own] for own in examples]
    return {name: compare_rankings(own, values[ACCURACY]) for name, own in values.items()}


def label_agreement(output_dir: str | Path) -> RepeatAgreement:
    """
    Compare the repeats of the labelled reward with each other, over the same self-edits as [`reward_rankings`].

    Args:
        output_dir (`str` or `Path`):
            The run's output directory.

    Raises:
        ValueError: As [`reward_rankings`].
    """
    _, examples = _measured(output_dir)
    return agreement_of_repeats(_values(examples, ACCURACY))


def _measured(output_dir: str | Path) -> tuple[list[str], list[list[ScoredSelfEdit]]]:
    """The names of a run's rewards, and for each example its self-edits of which all of them are known, where these are two."""
    rounds = Journal(Path(output_dir)).scored_rounds()
    if not rounds:
        raise ValueError(f"{output_dir} has no scored round; give the output directory of a run.")
    names = list(dict.fromkeys(name for scored in rounds for name in reward_names(scored))) or [ACCURACY]
    if ACCURACY not in names:
        raise ValueError(
            f"{output_dir} has the rewards {', '.join(names)}, but not 'accuracy', with which others are compared; run it with "
            "'accuracy' among --reward_funcs, which may have the weight 0."
        )
    by_example: dict[tuple[int, int], list[ScoredSelfEdit]] = defaultdict(list)
    for scored in rounds:
        for edit in scored:
            known = [
                value for repeat in edit.repeats for value in (repeat["reward"], *repeat.get("rewards", {}).values())
            ]
            if edit.well_formed and known and None not in known:
                by_example[edit.round, edit.example].append(edit)
    return names, [own for own in by_example.values() if len(own) > 1]


def _values(examples: Sequence[Sequence[ScoredSelfEdit]], name: str) -> list[list[list[float]]]:
    """A reward by example, self-edit and repeat; where it is the only one, it has no name in the records."""
    return [
        [
            [repeat["rewards"][name] if "rewards" in repeat else repeat["reward"] for repeat in edit.repeats]
            for edit in own
        ]
        for own in examples
    ]


def agreement_table(agreement: RepeatAgreement) -> str:
    """How the labelled reward agrees with itself, as Markdown, or a line that it cannot be told."""
    if agreement.gain_kept is None:
        return (
            "The labelled reward cannot be compared with itself: no example has two self-edits with two repeats each. Train with "
            "num_repeats of at least 2.\n"
        )
    note = (
        "The labelled reward, `accuracy`, against itself, by repeats of the same self-edits. Rank correlation: between two repeats. "
        "Gain: points of a repeat that the self-edit chosen by one repeat has over the mean of its example's self-edits, in the "
        "repeat that chose it, and in another. Share kept: the second of the first. A reward that is as noisy as one repeat cannot be "
        "expected to do better."
    )
    correlation = agreement.correlation
    row = [
        str(agreement.num_repeats),
        _shown_correlation(correlation),
        str(0 if correlation is None else correlation.num_passages),
        str(agreement.gain_when_chosen),
        str(agreement.gain_kept),
        _shown_share(agreement.share_kept, agreement.share_low, agreement.share_high),
        str(agreement.gain_kept.num_passages),
    ]
    header = ["repeats", "rank correlation", "examples ranked", "gain where chosen", "gain in another", "share kept"]
    return f"{note}\n\n{markdown([*header, 'examples chosen from'], [row])}\n"


def _shown_correlation(correlation: Difference | None) -> str:
    return "–" if correlation is None else f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"


def _shown_share(share: float | None, low: float | None, high: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.0f} %" if low is None else f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def ranking_table(rankings: dict[str, Ranking]) -> str:
    """The rankings as a Markdown table, with what its columns mean."""
    note = (
        "Each reward against the labelled one, `accuracy`. Rank correlation: Spearman's, over the self-edits of each example, the mean "
        "over the examples in which neither is constant. Gain: points of labelled reward that the self-edit chosen by the reward "
        "has over the mean of its example's self-edits, each repeat scoring what the others choose. Share: of the gain by labels. "
        "All with 95 % intervals over examples."
    )
    rows = []
    for name, one in rankings.items():
        correlation, share = "–", "–"  # of the labelled reward with itself
        if name != ACCURACY:
            correlation = _shown_correlation(one.correlation)
            share = _shown_share(one.share, one.share_low, one.share_high)
        counts = [0 if found is None else found.num_passages for found in (one.correlation, one.gain)]
        rows.append(
            [name, correlation, str(counts[0]), "–" if one.gain is None else str(one.gain), share, str(counts[1])]
        )
    header = [
        "reward",
        "rank correlation",
        "examples ranked",
        "gain of choosing",
        "share of the gain",
        "examples chosen from",
    ]
    return f"{note}\n\n{markdown(header, rows)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a run; `python -m seal_hf.records.reward_ranking --help` states the options."""
    parser = argparse.ArgumentParser(
        prog="python -m seal_hf.records.reward_ranking",
        description="Rewards against the labelled one, and that against itself.",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="output directory of a run with the labelled reward")
    options = parser.parse_args(arguments)
    try:
        rankings, agreement = reward_rankings(options.output_dir), label_agreement(options.output_dir)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{ranking_table(rankings)}\n{agreement_table(agreement)}")


if __name__ == "__main__":
    main()
