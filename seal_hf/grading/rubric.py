"""
A reward without an inner update: a language model scores a self-edit by a rubric of length, diversity, quality and correctness.

The paper's proxy reward (SEAL, https://arxiv.org/abs/2506.10943) is such a rubric, with GPT-4.1 as the judge: each of the four
is scored from 1 to 5, and their sum is the reward. The words of the rubric here are this project's.
"""

import logging
import re
from collections.abc import Mapping, Sequence

from .judge_client import Judge, Unreadable


logger = logging.getLogger(__name__)

CRITERIA = ("length", "diversity", "quality", "correctness")
LEAST, GREATEST = 1, 5
RUBRIC_PROMPT = """\
A student will learn the facts of a text from study notes alone, without seeing the text. Score the notes from 1 (worst) to \
5 (best) on each of these:

Length: how much material the notes hold, compared with what the text has to tell.
Diversity: in how many different ways the notes state, ask for or connect what the text says, without repeating themselves.
Quality: whether each note is clear, complete and makes sense to somebody who does not see the text.
Correctness: whether the notes agree with the text, and add nothing that it does not say or imply.

Text:
{text}

Notes:
{notes}

Reply with four lines and nothing else, in this form:
Length: (1 to 5)
Diversity: (1 to 5)
Quality: (1 to 5)
Correctness: (1 to 5)"""
# How a reply begins, for a model whose reply can be begun.
REPLY_BEGINS = "Length:"


def rubric_prompt(text: str, notes: str) -> str:
    """
    What the judge is asked about one self-edit.

    Args:
        text (`str`):
            What is to be learned, such as a passage.
        notes (`str`):
            The self-edit, as the policy wrote it.
    """
    places = {"{text}": text.strip(), "{notes}": notes.strip()}
    # In one pass, so that a place named inside a text is not filled in turn.
    return re.sub(r"\{text\}|\{notes\}", lambda match: places[match.group()], RUBRIC_PROMPT)


def parse_scores(reply: str) -> dict[str, float] | None:
    """
    Read the four scores of a reply; reasoning up to `</think>` does not count.

    Args:
        reply (`str`):
            What the judge wrote.

    Returns:
        `dict[str, float]` or `None`: each of [`CRITERIA`] with a score from 1 to 5; `None` where one is missing or out of
            range.

    Example:

    ```python
    >>> parse_scores("Length: 4\\nDiversity: 2/5\\n**Quality** (1-5): 3\\nCorrectness: 5")
    {'length': 4.0, 'diversity': 2.0, 'quality': 3.0, 'correctness': 5.0}
    >>> parse_scores("Length: 9\\nDiversity: 2\\nQuality: 3\\nCorrectness: 5") is None
    True

    ```
    """
    reply = re.sub(r"\([^)]*\)", "", reply.rpartition("</think>")[2])
    scores = {}
    for name in CRITERIA:
        found = re.search(rf"\b{name}\b[^\n\d]*(\d+(?:\.\d+)?)", reply, re.IGNORECASE)
        if not found or not LEAST <= float(found[1]) <= GREATEST:
            return None
        scores[name] = float(found[1])
    return scores


def rubric_reward(scores: Mapping[str, float]) -> float:
    """
    The sum of the scores, on a scale from 0 (all are 1) to 1 (all are 5).

    Example:

    ```python
    >>> rubric_reward({"length": 1, "diversity": 1, "quality": 5, "correctness": 5})
    0.5

    ```
    """
    return (sum(scores.values()) / len(scores) - LEAST) / (GREATEST - LEAST)


class RubricJudge(Judge):
    """
    Scores self-edits by asking a language model (see [`Judge`] for the parameters and errors).

    Example:

    ```python
    judge = RubricJudge("gpt-4.1", base_url="https://api.openai.com/v1", api_key=key)
    judge.score(["Ann keeps bees."], ["1. Ann is a beekeeper."])
    ```
    """

    def score(self, texts: Sequence[str], notes: Sequence[str]) -> list[dict[str, float] | None]:
        """
        Score self-edits.

        Args:
            texts (`Sequence[str]`):
                For each what is to be learned.
            notes (`Sequence[str]`):
                The self-edits.

        Returns:
            `list[dict[str, float] | None]`: For each its scores (see [`parse_scores`]); `None` where all attempts failed or the
                reply is in another form, with one warning that states the count and the last fault.

        Raises:
            [`JudgeRefused`]: If the endpoint refuses the key, or does not know the model or the path.
        """
        prompts = [rubric_prompt(text, own) for text, own in zip(texts, notes, strict=True)]
        scores = self.ask(prompts, parse_scores, "is not in the form of the rubric")
        faults = [outcome for outcome in scores if isinstance(outcome, Unreadable)]
        if faults:
            logger.warning(
                "%d of %d self-edits could not be scored; the last: %s", len(faults), len(scores), faults[-1]
            )
        return [None if isinstance(outcome, Unreadable) else outcome for outcome in scores]
