"""
How a run's rewards without labels rank its self-edits, compared with the labelled reward.

    python -m seal_hf.records.reward_ranking OUTPUT_DIR

The run has to have both: `reward_funcs` with "accuracy" and others. A weight of 0 is enough, so that any run can measure them.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..grading.ranking import Ranking, compare_rankings
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
        `dict[str, Ranking]`: by the name of the reward, the labelled one first, then the others and their weighted sum. A
            self-edit counts where every reward of every repeat is known, an example where two of its self-edits do.

    Raises:
        ValueError: There is no scored round, or the run does not have the labelled reward and another one.
    """
    rounds = Journal(Path(output_dir)).scored_rounds()
    if not rounds:
        raise ValueError(f"{output_dir} has no scored round; give the output directory of a run.")
    names = list(dict.fromkeys(name for scored in rounds for name in reward_names(scored)))
    if ACCURACY not in names or len(names) < 2:
        found = ", ".join(names) or ACCURACY
        raise ValueError(
            f"{output_dir} has the rewards {found}, but 'accuracy' and another one are compared; run it with "
            "--reward_funcs accuracy and others, of which some may have the weight 0."
        )
    by_example: dict[tuple[int, int], list[ScoredSelfEdit]] = defaultdict(list)
    for scored in rounds:
        for edit in scored:
            known = [value for repeat in edit.repeats for value in (repeat["reward"], *repeat["rewards"].values())]
            if edit.well_formed and known and None not in known:
                by_example[edit.round, edit.example].append(edit)
    examples = [own for own in by_example.values() if len(own) > 1]
    values = {
        name: [[[repeat["rewards"][name] for repeat in edit.repeats] for edit in own] for own in examples]
        for name in [ACCURACY, *(name for name in names if name != ACCURACY)]
    }
    values[WEIGHTED_SUM] = [[[repeat["reward"] for repeat in edit.repeats] for edit in own] for own in examples]
    return {name: compare_rankings(own, values[ACCURACY]) for name, own in values.items()}


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
        correlation = one.correlation
        told = (
            "–"
            if correlation is None or name == ACCURACY
            else (f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]")
        )
        share = "–" if one.share is None or name == ACCURACY else f"{100 * one.share:.0f} %"
        if share != "–" and one.share_low is not None:
            share += f" [{100 * one.share_low:.0f}, {100 * one.share_high:.0f}]"
        counts = [0 if found is None else found.num_passages for found in (correlation, one.gain)]
        rows.append([name, told, str(counts[0]), "–" if one.gain is None else str(one.gain), share, str(counts[1])])
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
        prog="python -m seal_hf.records.reward_ranking", description="Rewards without labels against the labelled one."
    )
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", help="output directory of a run with both kinds of rewards"
    )
    options = parser.parse_args(arguments)
    try:
        rankings = reward_rankings(options.output_dir)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(ranking_table(rankings))


if __name__ == "__main__":
    main()
