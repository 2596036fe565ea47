"""
Watch a language model teach itself one passage.

    python trainers/demo.py
    python trainers/demo.py --passage notes.txt --title "Lighthouses" --questions "Who built it?" "When?"
"""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from arguments import AdaptationArguments
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf import Adapter, SelfAdaptingLM, SelfEdit
from seal_hf.domains import load_demo_passages
from seal_hf.domains.knowledge.own_questions import own_questions
from seal_hf.inner_loop.training import InnerStep


console = Console()


@dataclass
class DemoArguments(AdaptationArguments):
    """A passage and questions about it."""

    passage: str | None = field(default=None, metadata={"help": "Text file to learn; a demo passage where absent."})
    title: str | None = field(
        default=None,
        metadata={"help": "The passage's title. Defaults to the file's name or the demo passage's title."},
    )
    questions: list[str] = field(
        default_factory=list,
        metadata={"help": "Questions to ask; where absent, the demo passage's or the model's own."},
    )
    demo_passage: int = field(default=0, metadata={"help": "Which of the 12 demo passages to learn, from 0."})


def read_example(args: DemoArguments) -> dict:
    """The passage with its questions; questions without a gold answer have none to be graded by."""
    if args.passage is None:
        passages = load_demo_passages("train")
        if not 0 <= args.demo_passage < len(passages):
            raise ValueError(f"--demo_passage {args.demo_passage} must be from 0 to {len(passages) - 1}.")
        example = passages[args.demo_passage]
        questions = [{"question": text} for text in args.questions] or example["questions"]
        return {**example, "title": example["title"] if args.title is None else args.title, "questions": questions}
    path = Path(args.passage)
    if not path.is_file():
        raise FileNotFoundError(f"There is no passage at {path}; give the path of a text file.")
    try:
        context = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it in that encoding.") from error
    if not context:
        raise ValueError(f"{path} is empty; give it some text to learn.")
    title = path.stem if args.title is None else args.title
    return {"title": title, "context": context, "questions": [{"question": text} for text in args.questions]}


def propose(lm: SelfAdaptingLM, example: dict, args: DemoArguments) -> list[SelfEdit]:
    """Sample the self-edits and show them while they are written."""
    texts = [""] * args.num_generations

    def panels() -> Columns:
        # The end of each text, so that the newest words are in view on a terminal of ordinary height.
        return Columns(
            [Panel(Text(text[-600:]), title=f"self-edit {i}", height=14) for i, text in enumerate(texts, start=1)],
            equal=True,
            expand=True,
        )

    start = time.perf_counter()
    with Live(panels(), console=console, refresh_per_second=4, transient=True) as live:

        def on_text(new_texts: list[str]) -> None:
            for i, text in enumerate(new_texts):
                texts[i] += text
            live.update(panels())

        self_edits = lm.propose(
            example,
            args.num_generations,
            temperature=args.temperature,
            top_p=args.top_p,
            max_completion_length=args.max_completion_length,
            seed=args.seed,
            on_text=on_text,
        )
    for i, edit in enumerate(self_edits, start=1):
        console.print(
            Panel(Text(edit.completion.strip()), title=f"self-edit {i}: {len(edit.examples)} training examples")
        )
    console.print(f"{len(self_edits)} self-edits in {time.perf_counter() - start:.0f} s\n")
    return self_edits


def adapt(lm: SelfAdaptingLM, self_edits: list[SelfEdit], seed: int) -> list[Adapter]:
    """Train all adapters together, with their losses in view."""
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn()]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("adapting", loss="", total=None)
        latest = {}  # also of adapters that are done

        def on_step(step: InnerStep) -> None:
            latest.update(step.losses)
            losses = "  ".join(f"{loss:.2f}" for _, loss in sorted(latest.items()))
            speed = step.num_tokens / step.seconds
            progress.update(
                task, completed=step.step, total=step.num_steps, loss=f"loss {losses}  {speed:.0f} tokens/s"
            )

        adapters = lm.adapt(self_edits, seed=seed, on_step=on_step)
    console.print()
    return adapters


def show_answers(lm: SelfAdaptingLM, example: dict, adapters: list[Adapter]) -> None:
    """Ask the base and every adapter the same questions, and print base and best adapter side by side."""
    questions = example["questions"]
    prompts = lm.domain.questions(example)
    models = [None, *adapters]
    flat = iter(lm.answer_prompts(prompts * len(models), [model for model in models for _ in prompts]))
    answers = [[next(flat) for _ in prompts] for _ in models]
    graded = all("answer" in item for item in questions)
    best = 1
    verdicts = None
    if graded:
        verdicts = lm.domain.grade([example] * len(models), answers)
        rewards = [sum(map(bool, run)) for run in verdicts]
        best = 1 + max(range(len(adapters)), key=lambda i: rewards[i + 1])
    table = Table(title="Answers without the passage in view", show_lines=True)
    for name in ("question", *(["gold answer"] if graded else []), "base model", f"after self-edit {best}"):
        table.add_column(name, ratio=1)
    for i, item in enumerate(questions):
        row = [Text(item["question"])] + ([Text(item["answer"])] if graded else [])
        for model in (0, best):
            style = "" if verdicts is None else ("green" if verdicts[model][i] else "red")
            mark = "" if verdicts is None else ("✓ " if verdicts[model][i] else "✗ ")
            row.append(Text(mark + answers[model][i], style=style))
        table.add_row(*row)
    console.print(table)
    if graded:
        console.print(f"Right of {len(questions)} questions: base {rewards[0]}, after each self-edit {rewards[1:]}.")
        tied = ", the first of several," if rewards[1:].count(rewards[best]) > 1 else ""
        console.print(
            f"Self-edit {best}{tied} has the greatest reward; SEAL's outer loop would teach the model to write such ones."
        )


def main(args: DemoArguments) -> None:
    example = read_example(args)
    console.print(Panel(Text(example["context"]), title=f"passage: {example['title']}"))
    with console.status(f"loading {args.model_name_or_path}"):
        lm = args.load()
    if not example["questions"]:
        with console.status("writing questions"):
            example["questions"] = own_questions(lm, example)
        if example["questions"]:
            console.print("The questions and the answers that are held for right are the model's own.\n")
        else:
            console.print("The model found no question that it can answer from the passage, so nothing is graded.\n")
            example["questions"] = [{"question": f"What do you know about {example['title'] or 'the passage'}?"}]
    self_edits = propose(lm, example, args)
    if not self_edits:
        raise ValueError("The model wrote no usable self-edit; try another --seed or --prompt_style.")
    adapters = adapt(lm, self_edits, args.seed)
    show_answers(lm, example, adapters)


if __name__ == "__main__":
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(RichHandler(show_path=False, show_time=False))
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    (arguments,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
