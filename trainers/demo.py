"""
Watch a language model teach itself one passage.

    python -m trainers.demo
    python -m trainers.demo --passage notes.txt --title "Lighthouses" --questions "Who built it?" "When?"
"""

import logging
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from seal_hf import Adapter, SelfAdaptingLM, SelfEdit
from seal_hf.domains import load_demo_passages
from seal_hf.domains.knowledge.own_questions import own_questions
from seal_hf.grading import show_gold_answers
from seal_hf.inner_loop.training import InnerStep
from seal_hf.rollout.rewards import Asked, ask_and_grade
from trainers.arguments import AdaptationArguments


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


def read_example(args: DemoArguments) -> dict:
    """The passage with its questions. Only questions of a demo passage have a gold answer, by which they are graded."""
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


def show(title: str, text: str) -> None:
    """Print a heading and a text of many lines."""
    print(f"\n--- {title} ---")
    for line in text.strip().splitlines():
        print(textwrap.fill(line, 100))


def propose(lm: SelfAdaptingLM, example: dict, args: DemoArguments) -> list[SelfEdit]:
    """Sample the self-edits, all at once, and show the first while it is written."""
    print(f"\nWriting {args.num_generations} self-edits at once. The first, as it is written:\n")
    written = ""
    start = time.perf_counter()

    def on_text(new_texts: list[str]) -> None:
        nonlocal written
        written += new_texts[0]
        print(new_texts[0], end="", flush=True)

    self_edits = lm.propose(
        example,
        args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        on_text=on_text,
    )
    print()
    for i, edit in enumerate(self_edits, start=1):
        # The first is in view already, unless it was malformed.
        if i > 1 or edit.completion != written:
            show(f"self-edit {i}", edit.completion)
    print(f"\n{len(self_edits)} self-edits in {time.perf_counter() - start:.0f} s\n")
    return self_edits


def adapt(lm: SelfAdaptingLM, self_edits: list[SelfEdit], seed: int) -> list[Adapter]:
    """Train all adapters together, with their losses in view."""
    latest = {}  # also of adapters that are done
    with tqdm(desc=f"training {len(self_edits)} adapters", unit="step") as bar:

        def on_step(step: InnerStep) -> None:
            latest.update(step.losses)
            losses = " ".join(f"{loss:.2f}" for _, loss in sorted(latest.items()))
            bar.total = step.num_steps
            bar.set_postfix_str(f"loss {losses}, {step.num_tokens / step.seconds:.0f} tokens/s", refresh=False)
            bar.update(step.step - bar.n)

        return lm.adapt(self_edits, seed=seed, on_step=on_step)


def show_answers(lm: SelfAdaptingLM, example: dict, adapters: list[Adapter]) -> None:
    """Ask the base and every adapter the same questions, and print the answers of the base and of the best adapter."""
    questions, prompts = example["questions"], lm.domain.questions(example)
    models = [None, *adapters]
    is_graded = all("answer" in item for item in questions)
    if is_graded:
        graded = ask_and_grade(lm, [Asked(model, example, prompts) for model in models], _LONGEST_ANSWER)
        answers = [own.answers for own in graded]
        rewards = [sum(map(bool, own.verdicts)) for own in graded]
        best = 1 + max(range(len(adapters)), key=lambda i: rewards[i + 1])
    else:
        answers, best = lm.answer_groups([prompts] * len(models), models, max_answer_length=_LONGEST_ANSWER), 1
    print("\n--- answers, the passage not in view ---")
    for i, item in enumerate(questions):
        print(f"\n{item['question']}" + (f"  [{show_gold_answers(item['answer'])}]" if is_graded else ""))
        for model, name in ((0, "base model"), (best, f"after self-edit {best}")):
            verdict = ("right: " if graded[model].verdicts[i] else "wrong: ") if is_graded else ""
            print(
                textwrap.fill(
                    f"{name}: {verdict}{answers[model][i]}", 100, initial_indent="  ", subsequent_indent="    "
                )
            )
    if is_graded:
        after = ", ".join(map(str, rewards[1:]))
        print(f"\nRight of {len(questions)} questions: base model {rewards[0]}; after each self-edit: {after}.")
        print(
            'One text for all questions, what it says to "Tell me about" the topic, would be right for '
            f"{sum(graded[best].recitation['verdicts'])}."
        )
        tied = ", the first of several," if rewards[1:].count(rewards[best]) > 1 else ""
        print(
            f"Self-edit {best}{tied} has the greatest reward; SEAL's outer loop would teach the model to write such ones."
        )


def main(args: DemoArguments) -> None:
    example = read_example(args)
    show(f"passage: {example['title']}", example["context"])
    lm = args.load()
    if not example["questions"]:
        example["questions"] = own_questions(lm, example)
        if example["questions"]:
            print("\nThe model wrote the questions and the answers that count as right.")
        else:
            print("\nThe model found no question that it can answer from the passage, so nothing is graded.")
            example["questions"] = [{"question": f"What do you know about {example['title'] or 'the passage'}?"}]
    self_edits = propose(lm, example, args)
    if not self_edits:
        raise ValueError("The model wrote no usable self-edit; try another --seed or --prompt_style.")
    adapters = adapt(lm, self_edits, args.seed)
    show_answers(lm, example, adapters)


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
