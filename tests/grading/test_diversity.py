"""Distinct n-grams, counted by hand."""

import pytest

from seal_hf.grading.diversity import distinct_ngrams


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["Bees hum.", "bees HUM"], 1, 0.5),
        (["Bees hum.", "bees HUM"], 2, 0.5),
        (["Bees hum. Bees hum."], 2, 2 / 3),  # bees hum, hum bees, bees hum
        (["Bees hum.", "Moths fly."], 2, 1.0),  # none over the end of a text
        (["Bees hum.", "Moths"], 3, None),
        ([], 1, None),
    ],
)
def test_distinct_ngrams(texts, n, share):
    assert distinct_ngrams(texts, n) == (share if share is None else pytest.approx(share))
