"""
Watch a language model teach itself one passage.

    python -m trainers.demo
    python -m trainers.demo --passage notes.txt --title "Lighthouses" --questions "Who built it?" "When?"
"""

import logging
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf import Adapter, SelfAdaptingLM, SelfEdit
from seal_hf.domains import load_demo_passages
from seal_hf.domains.files import read_text
from seal_hf.domains.knowledge.own_questions import own_questions
from seal_hf.domains.knowledge.passages import load_retention_questions, unanswered_question
from seal_hf.grading import show_gold_answers
from seal_hf.inner_loop.training import InnerStep
from seal_hf.self_edit import joined_self_edits
from trainers.arguments import AdaptationArguments


_WIDTH = 100  # characters of a line
_COLUMNS = (34, 31, 31)  # of the table of answers, with two spaces between
_CELL_LINES = 3
_LONGEST_ANSWER = 64  # tokens


@dataclass
class DemoArguments(AdaptationArguments):
    """A passage and questions about it."""

    passage: str | None = field(default=None, metadata={"help": "Text file to learn. Default: a demo passage."})
    title: str | None = field(
        default=None,
        metadata={"help": "Title of the passage. Default: the name of the file, or the title of the demo passage."},
    )
    questions: list[str] = field(
        default_factory=list,
        metadata={"help": "Questions to ask. Default: those of the demo passage, or the model writes some."},
    )
    demo_passage: int = field(default=0, metadata={"help": "Which of the 36 demo passages to learn, from 0."})
    union: bool = field(
        default=False,
        metadata={"help": "Train one adapter on all self-edits together rather than one on each."},
    )


def read_example(args: DemoArguments) -> dict:
    """The passage with its questions. Only questions of a demo passage have a gold answer, by which they are graded."""
    if not all(text.strip() for text in args.questions):
        raise ValueError("A question of --questions is empty; give it some text.")
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
    context = read_text(path).strip()
    if not context:
        raise ValueError(f"{path} is empty; give it some text to learn.")
    title = path.stem if args.title is None else args.title
    return {"title": title, "context": context, "questions": [{"question": text} for text in args.questions]}


def other_examples(example: Mapping) -> dict[str, dict]:
    """What is asked besides, by headings of the table: what the passage does not tell, and something else."""
    others = {}
    if question := unanswered_question(example):
        others["not in the passage: what it should not claim to know"] = {
            **example,
            "questions": [{"question": question}],
        }
    general = {"title": "", "context": "", "questions": load_retention_questions()[:1]}
    return {**others, "about something else: what it should not have changed": general}


def heading(text: str) -> None:
    print(f"\n--- {text} ---")


def lines_of(text: str) -> list[str]:
    """The lines of a self-edit, which are shown in another order where its parts are written at once."""
    return [line for line in text.splitlines() if line.strip("- ")]


def show_lines(text: str) -> None:
    """Print a text of many lines."""
    for line in lines_of(text):
        print(textwrap.fill(line, _WIDTH))


def show_row(*cells: str) -> None:
    """Print a row of the table, each cell in a column of fixed width, after an empty line."""
    columns = [
        textwrap.wrap(cell, width, max_lines=_CELL_LINES, placeholder=" ...")
        for cell, width in zip(cells, _COLUMNS, strict=False)
    ]
    print()
    for line in zip_longest(*columns, fillvalue=""):
        print("  ".join(f"{part:{width}}" for part, width in zip(line, _COLUMNS, strict=False)).rstrip())


def is_graded(example: Mapping) -> bool:
    return all("answer" in item for item in example["questions"])


def ask(
    lm: SelfAdaptingLM, examples: Sequence[Mapping], models: Sequence[Adapter | None]
) -> list[list[list[tuple[str, bool | None]]]]:
    """The answers of each model to the questions of each example, with their verdicts where there are gold answers."""
    prompts = [lm.domain.questions(example) for example in examples]
    answers = lm.answer_groups(
        prompts * len(models), [model for model in models for _ in prompts], max_answer_length=_LONGEST_ANSWER
    )
    verdicts = [
        lm.domain.grade([example], [own])[0] if is_graded(example) else [None] * len(own)
        for example, own in zip([*examples] * len(models), answers, strict=True)
    ]
    told = [list(zip(*own, strict=True)) for own in zip(answers, verdicts, strict=True)]
    return [told[start : start + len(examples)] for start in range(0, len(told), len(examples))]


def show_answers(examples: Mapping[str, Mapping], answers: Mapping[str, Sequence]) -> None:
    """Print a table of the questions of all examples, which go by their headings, and the answers of all models."""
    show_row("question", *answers)
    print("  ".join("-" * width for width in _COLUMNS[: 1 + len(answers)]))
    for place, (name, example) in enumerate(examples.items()):
        if name:
            print(f"\n({name})")
        for number, item in enumerate(example["questions"]):
            question = item["question"] + (f" [{show_gold_answers(item['answer'])}]" if "answer" in item else "")
            told = [own[place][number] for own in answers.values()]
            verdicts = {True: "right: ", False: "wrong: ", None: ""}
            show_row(question, *(verdicts[verdict] + answer for answer, verdict in told))


def write(lm: SelfAdaptingLM, example: dict, args: DemoArguments) -> dict[str, SelfEdit]:
    """Sample the self-edits, show the first while it is written, and carry out what they ask of the tool; by their names."""
    print(f"{args.num_generations} self-edits are written at once. The first, as it is written:\n")
    start = time.perf_counter()
    shown = ""

    def on_text(new_texts: list[str]) -> None:
        nonlocal shown
        shown += new_texts[0]
        print(new_texts[0], end="", flush=True)

    (written,) = lm.write_batch(
        [example],
        args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        on_text=on_text,
    )
    print()
    for number, generation in enumerate(written, start=1):
        # The first is in view already, unless it was malformed.
        if number > 1 or sorted(lines_of(generation.text)) != sorted(lines_of(shown)):
            heading(f"self-edit {number}")
            show_lines(generation.text)
    print(f"\n{sum(one.num_tokens for one in written)} tokens in {time.perf_counter() - start:.0f} s")
    parsed = [lm.domain.parse(generation.text, example) for generation in written]
    self_edits = parsed
    if any(edit is not None and edit.calls for edit in parsed):
        heading("the same model answers these questions, with the passage in view")
        self_edits = lm.carry_out(parsed, [example] * len(parsed))
        for number, (call, edit) in enumerate(zip(parsed, self_edits, strict=True), start=1):
            if edit is not None:
                show_answered(lm, example, call.calls, edit, number)
    usable = {
        f"self-edit {number}": edit
        for number, edit in enumerate(self_edits, start=1)
        if edit is not None and edit.examples
    }
    if not usable:
        raise ValueError("The model wrote no usable self-edit; try another --seed or --prompt_style.")
    if len(usable) < len(written):
        print(f"\n{len(written) - len(usable)} of {len(written)} self-edits cannot be used and are left out.")
    return usable


def show_answered(lm: SelfAdaptingLM, example: Mapping, questions: Sequence[str], edit: SelfEdit, number: int) -> None:
    """Print what is trained on of a self-edit besides the passage, and in a line what became of its questions."""
    if not questions:
        print(f"\nself-edit {number} asks nothing, and is learned as it is.")
        return
    print(f"\nself-edit {number}:")
    for one in edit.examples:
        if example["context"] not in one.completion:
            told = f"{lm.domain.question_of(one.prompt, example['title']) or ''} {one.completion}".strip()
            print(textwrap.fill(told, _WIDTH, initial_indent="  ", subsequent_indent="    "))
    metrics = edit.metrics
    counts = {name.removeprefix("dropped_"): count for name, count in metrics.items() if "dropped_" in name}
    dropped = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    line = f"{metrics['questions_kept']} of {metrics['questions']} questions kept; dropped: {dropped or 'none'}."
    if "coverage" in metrics:
        line += f" The answers hold {metrics['coverage']:.0%} of the passage's names and numbers."
    print(textwrap.fill(line, _WIDTH))


def adapt(lm: SelfAdaptingLM, self_edits: Sequence[SelfEdit], seed: int) -> list[Adapter]:
    """Train all adapters together, with their losses in view."""
    latest = {}  # also of adapters that are done
    with tqdm(desc=f"training {len(self_edits)} adapter{'s' * (len(self_edits) > 1)}", unit="step") as bar:

        def on_step(step: InnerStep) -> None:
            latest.update(step.losses)
            losses = " ".join(f"{loss:.2f}" for _, loss in sorted(latest.items()))
            bar.total = step.num_steps
            bar.set_postfix_str(f"loss {losses}, {step.num_tokens / step.seconds:.0f} tokens/s", refresh=False)
            bar.update(step.step - bar.n)

        return lm.adapt(self_edits, seed=seed, on_step=on_step)


def show_rewards(lm: SelfAdaptingLM, example: Mapping, answers: Mapping[str, Sequence], adapter: Adapter) -> None:
    """Print how many answers of each model are right and short, and what a recitation of the adapter would earn."""
    counts = []
    for name, (own, *_) in answers.items():
        is_short = lm.domain.short(example, [answer for answer, _ in own])
        num_short = sum(bool(verdict) and short for (_, verdict), short in zip(own, is_short, strict=True))
        counts.append(f"{name} {num_right(own)} ({num_short})")
    num_questions = len(example["questions"])
    print(
        f"\nRight of {num_questions} questions, in brackets those with a short answer:\n  "
        + "\n  ".join(counts)
        + "\n"
    )
    (told,) = lm.answer_prompts([lm.domain.recitation_prompt(example)], [adapter], max_answer_length=_LONGEST_ANSWER)
    (verdicts,) = lm.domain.grade([example], [[told] * num_questions])
    print(
        'One text for all questions, what it says to "Tell me about" the topic, would be right for '
        f"{sum(map(bool, verdicts))}."
    )


def num_right(answers: Sequence[tuple[str, bool | None]]) -> int:
    return sum(bool(verdict) for _, verdict in answers)


def main(args: DemoArguments) -> None:
    start = time.perf_counter()
    example = read_example(args)
    heading(f"1. the passage: {example['title']}")
    show_lines(example["context"])
    lm = args.load()
    if not example["questions"]:
        example["questions"] = own_questions(lm, example)
        if example["questions"]:
            print("\nThe model wrote the questions and the answers that count as right.")
        else:
            print("\nThe model found no question that it can answer from the passage, so nothing is graded.")
            example["questions"] = [{"question": f"What do you know about {example['title'] or 'the passage'}?"}]
    asked = {"": example, **other_examples(example)}
    examples = list(asked.values())
    print("\nWhat the model answers before it learns; the passage is never in view when it is asked:")
    (base,) = ask(lm, examples, [None])
    show_answers(asked, {"base model": base})

    heading("2. a first lesson: the passage alone")
    (from_passage,) = adapt(lm, [lm.domain.passage_only(example)], args.seed)
    first = {**example, "questions": example["questions"][:1]}
    (told,) = ask(lm, [first], [from_passage])
    show_answers({"": first}, {"base model": base, "after the passage": told})
    print(f"\n{time.perf_counter() - start:.0f} s since the start")

    heading("3. self-edits: what the model writes to teach itself")
    self_edits = write(lm, example, args)

    heading("4. learning")
    if args.union:
        self_edits = {"the self-edits": joined_self_edits(list(self_edits.values()))}
    print(f"Examples to learn: {', '.join(str(len(edit.examples)) for edit in self_edits.values())}")
    names, adapters = list(self_edits), adapt(lm, list(self_edits.values()), args.seed)

    heading("5. answers, the passage not in view")
    told, *after = ask(lm, examples, [from_passage, *adapters])
    best = max(range(len(after)), key=lambda place: num_right(after[place][0]))
    show_answers(asked, {"base model": base, f"after {names[best]}": after[best]})
    if is_graded(example):
        answers = {"base model": base, "the passage alone": told, **dict(zip(names, after, strict=True))}
        show_rewards(lm, example, answers, adapters[best])
        if len(adapters) > 1:
            rewards = [num_right(own) for own, *_ in after]
            tied = ", the first of several," if rewards.count(max(rewards)) > 1 else ""
            print(
                f"{names[best].capitalize()}{tied} has the greatest reward; SEAL's outer loop would teach the model to write "
                "such ones.\nIt was chosen by the answers above, so that part of its lead is luck."
            )
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    # The library's own lines only; other libraries print theirs themselves.
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    (arguments,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
