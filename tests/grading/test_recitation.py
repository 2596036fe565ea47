import pytest

from seal_hf.grading.recitation import recited


PASSAGE = (
    "The lamp of Orrin Bay was lit in March 1874 by Edda Quill, who had carried the oil from the harbour in two pails."
)
COPIED = "It was lit in March 1874 by Edda Quill, who had carried the oil"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Edda Quill.", "In 1874.", "Two pails."], [False, False, False]),
        # one text for two questions, whatever its case and punctuation
        (["Edda Quill.", "In 1874.", "edda quill"], [True, False, True]),
        # 12 words in a row, and 11
        (["Yes, " + " ".join(PASSAGE.split()[4:16])], [True]),
        (["Yes, " + " ".join(PASSAGE.split()[4:15])], [False]),
        (["IT WAS LIT IN MARCH 1874, BY EDDA QUILL; WHO HAD CARRIED THE OIL"], [True]),
        # as many words of it in another order
        ([" ".join(PASSAGE.split()[::-1])], [False]),
        # nothing said is nothing recited
        (["", "", " "], [False, False, False]),
        ([], []),
    ],
)
def test_recited(answers, expected):
    assert recited(PASSAGE, answers) == expected


def test_scripts_without_spaces_count_by_characters():
    passage = "灯台は一八七四年三月にエダ・クイルが港から運んだ油で初めて灯された。"
    assert recited(passage, [passage[3:30]]) == [True]
    assert recited(passage, [passage[3:14]]) == [False]


def test_words_of_several_scripts_may_be_mixed():
    assert recited("", ["Ann"]) == [False]
    assert recited(PASSAGE, [f"東京: {COPIED}"]) == [True]
