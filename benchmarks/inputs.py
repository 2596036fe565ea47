"""
What the benchmark trains on and asks: self-edits that `embedded-tiny` wrote, and the questions of their passages.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seal_hf import InnerLoopConfig, SelfEdit
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.inner_loop.update import InnerUpdate, tokenize_self_edit


FOLDER = Path(__file__).parent
SELF_EDITS = FOLDER / "self_edits.jsonl"
LIST_PROMPT = FOLDER / "list_prompt.txt"


@dataclass(frozen=True)
class Work:
    """
    One self-edit of the benchmark.

    Parameters:
        passage (`int`):
            Place of its passage among the training passages of the demo set.
        edit (`int`):
            Which of the passage's self-edits it is.
        self_edit (`SelfEdit`):
            Its training sequences: a line each, and the passage.
        prompts (`tuple[str | list[dict], ...]`):
            The closed-book questions of the passage.
    """

    passage: int
    edit: int
    self_edit: SelfEdit
    prompts: tuple[str | list[dict], ...]


def load_work(domain: KnowledgeDomain, path: Path = SELF_EDITS) -> list[Work]:
    """The self-edits in the file, the first ones of all passages before the second ones."""
    passages = load_demo_passages("train")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    work = []
    for record in sorted(records, key=lambda record: (record["edit"], record["passage"])):
        example = passages[record["passage"]]
        self_edit = domain.parse(record["completion"], example)
        work.append(Work(record["passage"], record["edit"], self_edit, tuple(domain.questions(example))))
    return work


def updates_of(
    work: Sequence[Work], tokenizer: PreTrainedTokenizerBase, config: InnerLoopConfig | None = None
) -> list[InnerUpdate]:
    """What each self-edit's adapter trains on; the paper's settings unless given."""
    return [tokenize_self_edit(item.self_edit, tokenizer, config or InnerLoopConfig()) for item in work]


def even_bank(work: Sequence[Work], tokenizer: PreTrainedTokenizerBase, num_adapters: int) -> list[Work]:
    """The self-edits of about the median number of steps and tokens; the trainer too puts equals into one bank."""
    updates = updates_of(work, tokenizer)
    order = sorted(range(len(work)), key=lambda i: (updates[i].num_steps, num_tokens(updates[i]), i))
    start = (len(work) - num_adapters) // 2
    return [work[i] for i in sorted(order[start : start + num_adapters])]


def first_epochs(update: InnerUpdate, num_epochs: int) -> InnerUpdate:
    """The update with fewer epochs."""
    return replace(update, config=replace(update.config, num_train_epochs=num_epochs))


def num_tokens(update: InnerUpdate) -> int:
    """Real tokens of the update, all epochs; a sequence counts with its own length and never with padding."""
    return sum(len(sequence.input_ids) for sequence in update.sequences) * update.config.num_train_epochs


def tokens_per_sequence(updates: Sequence[InnerUpdate]) -> float:
    """Mean length of all sequences, in tokens: what a step of batch 1 trains on, on average."""
    return statistics.mean(len(sequence.input_ids) for update in updates for sequence in update.sequences)


def describe(updates: Sequence[InnerUpdate]) -> dict[str, float]:
    """How many sequences there are and how long they are on average, in tokens."""
    lines = [len(sequence.input_ids) for update in updates for sequence in update.sequences[:-1]]
    passages = [len(update.sequences[-1].input_ids) for update in updates]
    return {
        "self_edits": len(updates),
        "lines": len(lines),
        "tokens_per_line": statistics.mean(lines),
        "tokens_per_passage": statistics.mean(passages),
        "tokens_per_sequence": tokens_per_sequence(updates),
        "steps_per_epoch": statistics.mean(update.steps_per_epoch for update in updates),
    }
