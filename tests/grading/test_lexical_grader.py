import pytest

from seal_hf.grading import LexicalGrader
from seal_hf.grading.words import normalize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Quick, BROWN fox's den!", ["quick", "brown", "fox", "den"]),
        ("A", ["a"]),
        ("Vitamin A and a dog", ["vitamin", "a", "and", "dog"]),
        ("H₂O, C++, B-", ["h2o", "cplusplus", "bminus"]),
        ("They can't, cannot", ["they", "can", "not", "can", "not"]),
        # signs, powers, fractions, Roman numerals, units
        ("−5 °C to -$300", ["-5", "celsius", "to", "dollars", "-300"]),
        ("minus twenty-five", ["-25"]),
        ("1918-1938, F-16", ["1918", "1938", "f16"]),
        ("10³, 3², 1e6, 5 × 10^3", ["1000", "9", "1000000", "5000"]),
        ("½, 2½, two thirds", ["50", "percent", "2.5", "66.67", "percent"]),
        ("Henry VIII, World War I", ["henry", "8", "world", "war", "1"]),
        ("I am X", ["i", "am", "x"]),
        ("007, 3.1.2, 3:1", ["007", "3.1.2", "3:1"]),
        ("1 234 567", ["1234567"]),
        ("1" + "0" * 5000, ["inf"]),
        ("", []),
        ("!?", []),
        ("Café Åse Straße", ["cafe", "ase", "strasse"]),
        ("cafe\u0301", ["cafe"]),
        ("U.S. Army etc.", ["us", "army", "etc"]),
        ("volt-amperes (var)", ["volt", "amperes", "var"]),
        # numbers
        ("1,000", ["1000"]),
        ("1\u202f000\u00a0000", ["1000000"]),
        ("one thousand", ["1000"]),
        ("1.5 million", ["1500000"]),
        ("1,5 billion", ["1500000000"]),
        ("a hundred", ["100"]),
        ("two hundred and five", ["205"]),
        ("two hundred fifty thousand", ["250000"]),
        ("bread and butter", ["bread", "and", "butter"]),
        ("twenty-five", ["25"]),
        ("twenty and five", ["20", "and", "5"]),
        ("five six", ["5", "6"]),
        ("one" + " million" * 60, ["inf"]),
        ("zero", ["0"]),
        ("42%", ["42", "percent"]),
        ("forty-two per cent", ["42", "percent"]),
        ("3.50 metres.", ["3.5", "metres"]),
        ("the 3rd", ["3"]),
        ("third", ["3"]),
        ("twentieth", ["20"]),
        ("twenty-first century", ["21", "century"]),
        ("the 1970s", ["1970"]),
        ("1918–1938", ["1918", "1938"]),
        ("٣", ["3"]),
        # scripts whose letters and marks must stay
        ("日本が、１９４９年", ["日本が", "1949", "年"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Йод", ["йод"]),
        ("使用Java编程", ["使用", "java", "编程"]),
        ("ภาษาไทย", ["ภาษาไทย"]),
        ("서울에서", ["서울에서"]),
    ],
)
def test_normalize(text, tokens):
    assert list(normalize(text)) == tokens


@pytest.mark.parametrize(
    ("question", "gold", "answer", "verdict"),
    [
        # empty, case, accents, containment on token boundaries
        ("Who ran?", "Ann", "", False),
        ("Who ran?", "Ann", " \n", False),
        ("Who ran?", "Ann", "It was ANN.", True),
        ("Who ran?", "Ann", "Annabel ran.", False),
        ("Where?", "São Paulo", "in sao paulo", True),
        ("Which symbol?", "€", "The € sign", True),
        ("Which symbol?", "€", "The $ sign", False),
        # more than half of the gold answer's letters
        ("Who led?", "Greg Nickels", "Mayor Nickels", True),
        ("Who led?", "Greg Nickels", "Greg", False),
        ("What grew?", "blue moss", "Moss grew.", False),  # exactly half
        # inflections, and words that only begin alike
        ("Why?", "the similarities", "because of their similarity", True),
        ("What rose?", "hormone production", "hormonal products", True),
        ("Which country?", "Austria", "Australia", False),
        ("Which pet?", "cat", "catalogue", False),
        # words of the question carry nothing, unless they are all there is
        ("Which house is it?", "red house", "The blue house.", False),
        ("Which house is it?", "red house", "The red one.", True),
        ("Is it the house or the barn?", "the house", "The house.", True),
        # numbers
        ("How many ships?", "12", "Twelve.", True),
        ("How many ships?", "twelve", "There were 12 ships.", True),
        ("How many ships?", "12", "120", False),
        ("How many?", "1,000", "about 1000", True),
        ("How many?", "1.5 million", "1,500,000 people", True),
        ("What share?", "42%", "42 percent", True),
        ("What share?", "42%", "24 percent", False),
        ("Which century?", "13th century", "the thirteenth century", True),
        ("How many fell?", "5,000 men", "5,000 soldiers", True),
        ("How much?", "€45 billion in loans", "45 billion euros", True),
        ("When?", "7 October 1999", "7 October 1999", True),
        ("When?", "7 October 1999", "October 1999", False),
        ("When?", "7 October", "7 May", False),
        ("Who won?", "first emperor", "1 horse", False),
        # yes and no
        ("Is it open?", "Yes", "Yes, it is.", True),
        ("Is it open?", "No", "Yes, there is no lock.", False),
        ("Is it open?", "no", "It has no lock.", True),
        ("Is it open?", "Yes", "It is.", True),
        # other languages
        ("¿Quién lo construyó?", "Doña Inés Quiroga", "Lo construyó Ines Quiroga.", True),
        ("Wo steht er?", "in Köln", "Er steht in Koln.", True),
        ("Кто?", "Анна Каренина", "Это была Анна Каренина.", True),
        ("Кто?", "Анна", "Это был Иван.", False),
        ("首都是哪里?", "北京", "中国的首都是北京市。", True),
        ("首都是哪里?", "北京", "首都是上海。", False),
        ("哪一年?", "1949年", "成立于1949年10月", True),
        ("何が?", "かき", "かぎです", False),
        ("수도는?", "서울", "서울입니다", True),
        ("राजधानी?", "दिल्ली", "यह दिल्ली है", True),
        ("أين؟", "القاهرة", "في القاهرة", True),
    ],
)
def test_lexical_verdict(question, gold, answer, verdict):
    assert LexicalGrader().grade([question], [gold], [answer]) == [verdict]


def test_lexical_grader_keeps_order():
    verdicts = LexicalGrader().grade(["Who?"] * 3, ["Ann", "Ben", "Cy"], ["Ann", "Ann", "Cy"])
    assert verdicts == [True, False, True]
    assert LexicalGrader().grade([], [], []) == []


def test_lengths_must_match():
    with pytest.raises(ValueError, match="`questions`, `golds` and `answers` must have the same length.* 1, 2 and 1"):
        LexicalGrader().grade(["Who?"], ["Ann", "Ben"], ["Ann"])


def test_empty_gold_is_named():
    with pytest.raises(ValueError, match="The gold answer to 'Who\\?' is empty"):
        LexicalGrader().grade(["Who?"], ["  "], ["Ann"])
