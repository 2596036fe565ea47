"""
Self-edits that begin with the instruction under which they restate a passage.

The prompts of the other styles are fixed: they say how a passage is to be restated. Here the policy writes that itself, in the
first line, and then follows it. Which instructions paid is known from the rewards, and the best ones are shown to the policy in
later rounds, as in the search for prompts by a model that sees the scored ones (Yang et al. 2023, OPRO,
https://arxiv.org/abs/2309.03409). Only the restatement is trained on.
"""

import re
from collections.abc import Sequence


MAX_CHARACTERS = 240  # of an instruction that is kept and shown
INSTRUCTIONS_PLACE = "{instructions}"
_LABEL = re.compile(r"^\W*instruction\W*:\W*", re.IGNORECASE)
_SHOWN = "Instructions that have worked well for other passages, the best first; use one of them, change one, or write another:"


def split_instruction(completion: str) -> tuple[str, str]:
    """
    Split what the policy wrote into the instruction, its first line, and the restatement.

    Args:
        completion (`str`):
            What the policy wrote.

    Returns:
        `tuple[str, str]`: the instruction, of at most [`MAX_CHARACTERS`], and the rest; both may be empty.

    Example:

    ```python
    >>> split_instruction("**Instruction:** Be  brief.\\nBees hum.\\nThey sting.")
    ('Be brief.', 'Bees hum.\\nThey sting.')

    ```
    """
    first, _, rest = completion.strip().partition("\n")
    return " ".join(_LABEL.sub("", first).split())[:MAX_CHARACTERS], rest.strip()


def shown_instructions(instructions: Sequence[str]) -> str:
    """
    What a prompt shows of instructions; nothing where there are none.

    Example:

    ```python
    >>> shown_instructions(["Be brief."]).splitlines()[1:], shown_instructions([])
    (['- Be brief.'], '')

    ```
    """
    return "\n".join([_SHOWN, *(f"- {one}" for one in instructions)]) if instructions else ""
