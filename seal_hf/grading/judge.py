"""A grader that asks a language model, and the handling of answers that could not be graded."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from .golds import check_inputs
from .judge_client import Judge, Unreadable
from .statements import first_statement


logger = logging.getLogger(__name__)

JUDGE_PROMPT = """\
You are marking an examination. Below are a question, the reference answer and a student's answer.

Question: {question}
{references}
Student's answer: {answer}

Does the student's answer state what the reference answer states? Other wording, other units of the same quantity and \
further details are fine as long as nothing contradicts the reference; an answer that is vaguer, evasive or different \
in substance is not. Reply with one word, yes or no."""


# Quoted from the code of the paper's authors, since verdicts can be compared with theirs only where the same is asked:
# https://github.com/Continual-Intelligence/SEAL, knowledge-incorporation/src/utils.py, MIT licence, Copyright (c) 2025 Adam
# Zweiger. The places have this project's names.
PAPER_JUDGE_PROMPT = """\
You are a grading assistant. Your job is to determine whether a student's answer correctly answers the question based solely \
on the provided gold answer. Do not use any outside knowledge. The student answer can include additional information, but it \
must at least fully convey the gold answer and must not contradict it. Ignore style, phrasing, or extra details that do not \
affect correctness. Respond ONLY with 'yes' or 'no'.

Question: {question}
Gold answer: {gold}
Student answer: {answer}
Is the student answer correct based solely on the gold answer? Respond 'yes' or 'no'."""


def _judge_prompt(prompt: str, question: str, golds: Sequence[str], answer: str) -> str:
    """The prompt that asks about one answer. Several gold answers are named together; the paper's has place for one."""
    if prompt == "paper":
        return PAPER_JUDGE_PROMPT.format(question=question, gold=golds[0], answer=answer.strip())
    if len(golds) == 1:
        references = f"Reference answer: {golds[0]}"
    else:
        listed = "\n".join(f"- {gold}" for gold in golds)
        references = f"Reference answers, of which any one is enough:\n{listed}"
    return JUDGE_PROMPT.format(question=question, references=references, answer=first_statement(answer))


class GradingIncomplete(RuntimeError):
    """Some answers could not be graded, so the run stops here; what is already recorded stays valid for resuming."""


def require_verdicts(verdicts: Sequence[bool | None]) -> list[bool]:
    """
    Return the verdicts, or stop when an answer could not be graded.

    Args:
        verdicts (`Sequence[bool | None]`):
            Verdicts of a grader; `None` where an answer could not be graded.

    Returns:
        `list[bool]`: The same verdicts.

    Raises:
        [`GradingIncomplete`]: If any verdict is `None`.

    Example:

    ```python
    >>> require_verdicts([True, False])
    [True, False]

    ```
    """
    missing = sum(verdict is None for verdict in verdicts)
    if missing:
        raise GradingIncomplete(
            f"{missing} of {len(verdicts)} answers could not be graded; they are not counted as wrong. Resume the run "
            "once the judge answers again."
        )
    return list(verdicts)


def parse_verdict(reply: str) -> bool | None:
    """
    Read a judge's reply; reasoning up to `</think>` does not count.

    Args:
        reply (`str`):
            What the judge wrote.

    Returns:
        `bool | None`: What the reply begins with, else the only one of yes and no that it contains, else `None`.

    Example:

    ```python
    >>> parse_verdict("**Yes**, no detail differs."), parse_verdict("The verdict is no."), parse_verdict("Perhaps.")
    (True, False, None)

    ```
    """
    words = re.findall(r"\w+", reply.rpartition("</think>")[2].casefold())
    found = {word for word in words if word in ("yes", "no")}
    if words and words[0] in found:
        return words[0] == "yes"
    return "yes" in found if len(found) == 1 else None


class JudgeGrader(Judge):
    """
    Grades answers by asking a language model (see [`Judge`]).

    What stays ungraded is `None`, with one warning that states the count and the last fault.

    Parameters:
        model (`str`):
            Name of the judge, as the provider or the endpoint knows it.
        prompt (`str`, *optional*, defaults to `"default"`):
            What the judge is asked: `"default"`, whether the answer's first statement is right, or `"paper"` for the
            grading prompt of the paper's code, which shows the whole answer and names the first gold answer only, as the
            paper's data do. The paper's judge is GPT-4.1.
        options:
            Those of [`Judge`].

    Raises:
        ImportError: The extra `judge` is not installed.
        ValueError: There is no such `prompt`, or an option out of its range.
    """

    def __init__(self, model: str, *, prompt: str = "default", **options: Any):
        if prompt not in ("default", "paper"):
            raise ValueError(f"`prompt` must be 'default' or 'paper', but is {prompt!r}.")
        super().__init__(model, **options)
        self.prompt = prompt

    def grade(
        self, questions: Sequence[str], golds: Sequence[str | Sequence[str]], answers: Sequence[str]
    ) -> list[bool | None]:
        """
        Grade answers; the arguments are those of [`LexicalGrader.grade`]. The judge is asked once about an answer, with all
        gold answers of its question that its prompt has place for.

        Returns:
            `list[bool | None]`: One verdict per answer; `None` where all attempts failed or the reply is neither yes
            nor no. An empty answer is wrong without asking the judge.

        Raises:
            ValueError: The three lengths differ, or a question has no gold answer or an empty one.
            [`JudgeRefused`]: If the endpoint refuses the key (HTTP 401, 402, 403) or does not know the model or the path
                (HTTP 404).
        """
        rows = check_inputs(questions, golds, answers)
        asked = [place for place, (_, _, answer) in enumerate(rows) if answer.strip()]
        outcomes: dict[int, bool | Unreadable] = dict.fromkeys(range(len(rows)), False)
        prompts = [_judge_prompt(self.prompt, *rows[place]) for place in asked]
        outcomes |= zip(asked, self.ask(prompts, parse_verdict, "is neither yes nor no"), strict=True)
        faults = [outcome for outcome in outcomes.values() if isinstance(outcome, Unreadable)]
        if faults:
            logger.warning("%d of %d answers could not be graded; the last: %s", len(faults), len(rows), faults[-1])
        return [None if isinstance(outcome, Unreadable) else outcome for outcome in outcomes.values()]
