"""What a completion of the policy is split into: the paper's rules for training texts."""

import re


def split_completion(completion: str, split_newlines: bool = True) -> list[str]:
    """
    Split what the policy wrote into training texts by the paper's rules.

    Args:
        completion (`str`):
            What the policy wrote.
        split_newlines (`bool`, *optional*, defaults to `True`):
            Whether questions with answers and, in any other completion, lines become texts of their own. Otherwise
            the completion is split at `---` only.

    Returns:
        `list[str]`: The texts, in their order. Empty when the completion holds nothing but whitespace and hyphens.

    Example:

    ```python
    >>> split_completion("Here is a list:\\n1. Ann keeps bees.\\n2. Bees make honey.")
    ['1. Ann keeps bees.', '2. Bees make honey.']
    >>> split_completion("Who keeps bees?\\nAnswer: Ann\\nQuestion 2: What do they make?\\nAnswer: honey")
    ['Question 1: Who keeps bees?\\nAnswer: Ann', 'Question 2: What do they make?\\nAnswer: honey']
    >>> split_completion("Ann keeps bees.\\nThey hum.\\n---\\nBees make honey.", split_newlines=False)
    ['Ann keeps bees.\\nThey hum.', 'Bees make honey.']

    ```
    """
    if not completion.replace("-", "").strip():
        return []
    if split_newlines and re.search(r"Question\s+\d+:", completion) and re.search(r"Answer\s*:", completion):
        pairs = re.split(r"\n(?=Question\s+\d+:)", completion.strip())
        if not pairs[0].startswith("Question"):
            # The plain self-qa prompt ends in this label, so that the completion begins after it.
            pairs[0] = f"Question 1: {pairs[0].strip()}"
        return pairs
    segments = [segment.strip() for segment in completion.split("---") if segment.strip()]
    if not split_newlines:
        return segments
    lines = [line.strip() for segment in segments for line in segment.splitlines() if line.strip()]
    # A first line such as "Sure, here is a list:" teaches nothing.
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines
