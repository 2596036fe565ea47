"""Finds the passage that a question is about, by the words that both hold."""

from collections.abc import Sequence


class Retriever:
    """
    BM25 over texts (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) with bm25s, in the variant of Lucene.

    Words are compared in lower case and whole, without common English ones; so texts in scripts without spaces are not told
    apart.

    Parameters:
        texts (`Sequence[str]`):
            What is searched.

    Raises:
        ValueError: There is no text.

    Example:

    ```python
    >>> Retriever(["Ann keeps bees in Vell.", "Bob counts moths at Orr."]).find(["Who counts moths?", "Why?"])
    [1, None]

    ```
    """

    def __init__(self, texts: Sequence[str]):
        if not texts:
            raise ValueError("A retriever needs texts to search; give at least one.")
        import bm25s  # it takes half a second

        self._index = bm25s.BM25()
        self._is_searchable = any(_tokens(texts))
        if self._is_searchable:
            self._index.index(_tokens(texts), show_progress=False)

    def find(self, queries: Sequence[str]) -> list[int | None]:
        """
        The place of the best text for each query; `None` where no text has a word of it. Of equals the first.

        Args:
            queries (`Sequence[str]`):
                What to look for.
        """
        return [self._best(tokens) for tokens in _tokens(queries)]

    def _best(self, tokens: list[str]) -> int | None:
        if not tokens or not self._is_searchable:
            return None
        scores = self._index.get_scores(tokens)
        return int(scores.argmax()) if scores.max() > 0 else None


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
