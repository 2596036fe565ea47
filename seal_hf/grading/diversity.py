"""How much texts repeat each other."""

from collections.abc import Sequence

from .words import normalize


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """
    The share of n-grams that are distinct, of all n-grams of some texts together (distinct-n; Li et al. 2016,
    https://arxiv.org/abs/1510.03055).

    It falls as texts grow longer, so that it compares texts of about the same length, and as many of them.

    Args:
        texts (`Sequence[str]`):
            Texts, in any language. An n-gram lies within one of them; words are compared without case and marks.
        n (`int`):
            Words of an n-gram, at least 1.

    Returns:
        `float`, *optional*: from above 0, the same words again and again, to 1; `None` where no text has so many words.

    Example:

    ```python
    >>> distinct_ngrams(["Ann keeps bees.", "Ann keeps hens."], 1), distinct_ngrams(["Ann keeps bees."], 4)
    (0.6666666666666666, None)

    ```
    """
    words = [normalize(text) for text in texts]
    ngrams = [own[start : start + n] for own in words for start in range(len(own) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None
