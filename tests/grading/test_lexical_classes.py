"""
What the local grader must tell apart, by class of error: a question, its gold answer, an answer, and whether it is right.
"""

import json
from statistics import fmean

import pytest

from helpers.folders import SHARED_DATA
from seal_hf.domains import load_demo_passages
from seal_hf.grading import LexicalGrader


PAIRS = {
    "signs": [
        ("What did he owe?", "-£45", "£45", False),
        ("How cold was the lake bed?", "−12 °C", "minus 12 degrees Celsius", True),
        ("How cold was it?", "minus eight degrees", "eight degrees", False),
        ("What was the charge?", "-2", "2", False),
        ("What was the gain?", "3.5", "-3.5", False),
    ],
    "deciding letters": [
        ("Which hepatitis was it?", "hepatitis B", "hepatitis C", False),
        ("Which team won?", "Team D", "Team D won the cup.", True),
        ("Which blood group?", "group O", "group A", False),
        ("Which key is it in?", "E", "It is in E.", True),
        ("Which hall?", "Hall F", "Hall G", False),
    ],
    "marks": [
        ("Which language is it written in?", "C#", "C", False),
        ("Which mark did she get?", "A-", "A+", False),
        ("Which blood type?", "O+", "O-", False),
        ("Which language?", "C++", "It was written in C++.", True),
    ],
    "roman": [
        ("Which emperor?", "Napoleon III", "Napoleon I", False),
        ("Which king?", "George VI", "George the Sixth", True),
        ("Which queen?", "Elizabeth II", "Elizabeth I", False),
        ("Which act?", "Act IV", "Act 4", True),
        ("Which pope?", "Pius IX", "Pius XI", False),
    ],
    "eras": [
        ("When was it built?", "120 BC", "AD 120", False),
        ("When was it built?", "300 BCE", "300 BC", True),
        ("When did he die?", "AD 64", "64 BC", False),
        ("When?", "79 AD", "in 79 CE", True),
    ],
    "polarity": [
        ("What was the finding?", "not safe", "It was safe.", False),
        ("Is it lawful?", "unlawful", "lawful", False),
        ("Could it swim?", "could not swim", "It could swim.", False),
        ("What happened to prices?", "fell", "They rose.", False),
        ("What happened to prices?", "declined", "They fell.", True),
        ("Where is it?", "Lisbon", "It is not in Lisbon.", False),
        ("Which side?", "north of the river", "south of the river", False),
        ("When?", "after the flood", "before the flood", False),
    ],
    "yes no": [
        ("Is it open?", "no", "Nobody knows whether it is open.", False),
        ("Is it open?", "yes", "Yep, all day.", True),
        ("Does it bite?", "no", "It never bites.", True),
        ("Does it bite?", "yes", "It does not bite.", False),
        ("Did it sink?", "yes", "It did.", True),
        ("Is Eva a spy?", "yes", "Eva is a spy.", True),
        ("Is Eva a spy?", "yes", "Eva is a nun.", False),
        ("Did it sink?", "no", "The short answer is no.", True),
    ],
    "near names": [
        ("Who?", "Robert", "Roberta", False),
        ("Who?", "Carl", "Carla", False),
        ("Which country?", "Mali", "Malawi", False),
        ("Which country?", "Iran", "Iraq", False),
        ("Which compound?", "propane", "propanol", False),
        ("Which compound?", "sulfite", "sulfide", False),
        ("Which town?", "Hamburg", "Homburg", False),
        ("Which country?", "Guinea", "Guyana", False),
        ("Which people?", "Norwegians", "Norwegian", True),
        ("Who?", "Erik", "Erika", False),
    ],
    "units": [
        ("How far?", "12 km", "12 miles", False),
        ("How long?", "40 minutes", "40 hours", False),
        ("How heavy?", "2 kg", "2000 g", True),
        ("How heavy?", "3 tonnes", "3 kg", False),
        ("How much?", "15 percent", "15 euros", False),
        ("How tall?", "6 feet", "6 metres", False),
        ("How long did it last?", "2 years", "24 months", True),
        ("How much?", "€20", "20 euros", True),
        ("How much?", "€20", "$20", False),
    ],
    "compound": [
        ("When?", "the 5th century BC", "the 5th century AD", False),
        ("Which bus?", "line 7B", "line 7A", False),
        ("How many?", "3 dozen", "36", True),
        ("How much?", "5 litres", "5 gallons", False),
        ("How long?", "90 minutes", "1.5 hours", True),
    ],
    "dates": [
        ("When?", "14 July 1789", "07/14/1789", True),
        ("When?", "14 July 1789", "1789-07-14", True),
        ("When?", "14 July 1789", "14 June 1789", False),
        ("When?", "August 1902", "Aug. 1902", True),
        ("Which day?", "Thursday", "Thu", True),
        ("When?", "12 May 1999", "12 June 1999", False),
        ("When?", "the 17th century", "in the 1600s", True),
    ],
    "times": [
        ("When does it start?", "6 pm", "6 am", False),
        ("When?", "4:45", "quarter to five", True),
        ("When?", "8:15 a.m.", "8:15 p.m.", False),
        ("When?", "2:30 pm", "14:30", True),
        ("What time?", "3 o'clock", "3:00", True),
    ],
    "numbers": [
        ("How many?", "2.5 million", "2,500,000", True),
        ("How many?", "5bn", "5 billion", True),
        ("How many?", "2e3", "2000", True),
        ("What is it?", "4³", "64", True),
        ("What is it?", "10⁵", "105", False),
        ("How much?", "a quarter of it", "25 %", True),
        ("How much?", "two thirds", "66.67%", True),
        ("How many?", "12.500", "12,500", True),
        ("How many?", "12 500", "12500", True),
        ("Which code?", "0049", "49", False),
        ("Which release?", "2.4.1", "2.41", False),
        ("What ratio?", "2:5", "5:2", False),
        ("How many people?", "9,430", "about 9,400 people", True),
        ("How many people?", "9,430", "about 5,400 people", False),
    ],
    "number words": [
        ("Combien?", "vingt", "20", True),
        ("¿Cuántos?", "trece", "13", True),
        ("Wie viele?", "achtzehn", "18", True),
        ("Quanti?", "sette", "8", False),
        ("Сколько?", "девять", "9", True),
    ],
    "scripts": [
        ("متى؟", "١٩٥٢", "1952", True),
        ("कब?", "१९४७", "1947", True),
        ("什么时候?", "五月", "六月", False),
        ("どこ?", "京都", "京都市", True),
        ("어디?", "부산", "부산에서", True),
        ("Где?", "Казань", "в Казани", True),
        ("哪里?", "上海", "北京", False),
    ],
    "acronyms": [
        ("Which body?", "European Space Agency", "ESA", True),
        ("Which body?", "FBI", "Federal Bureau of Investigation", True),
        ("Which country?", "United Kingdom", "UK", True),
        ("Which body?", "European Space Agency", "EPA", False),
    ],
    "coordinates": [
        ("Where?", "12° S", "12° N", False),
        ("Which longitude?", "30° E", "30° W", False),
        ("Which latitude?", "45° N", "45 degrees north", True),
    ],
    "lists": [
        ("Which colours?", "green and white", "green and black", False),
        ("Which metals?", "zinc and lead", "lead and zinc", True),
        ("Which grains?", "rye and oats", "rye and corn", False),
    ],
    "spelling": [
        ("What is it?", "centre", "center", True),
        ("What is it?", "honour", "honor", True),
        ("What?", "organised", "organized", True),
    ],
    "symbols": [
        ("Which formula?", "CO₂", "CO2", True),
        ("Which formula?", "CO2", "CO", False),
        ("Which symbol?", "÷", "×", False),
    ],
}
RECITED_WORDS = 48  # about as many as the 64 tokens of the longest answer


@pytest.mark.parametrize("kind", PAIRS)
def test_a_class_of_pairs(kind):
    questions, golds, answers, right = zip(*PAIRS[kind], strict=True)
    verdicts = LexicalGrader().grade(questions, golds, answers)
    assert [row for row, verdict in zip(PAIRS[kind], verdicts, strict=True) if verdict is not row[-1]] == []


@pytest.mark.parametrize("num_words", [6, 10, 12, 13, 16, 22, 30, RECITED_WORDS, 64])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_constant_recitation_earns_next_to_nothing(split, num_words):
    rewards, mentioned = [], []
    for passage in load_demo_passages(split):
        questions = [item["question"] for item in passage["questions"]]
        golds = [item["answer"] for item in passage["questions"]]
        recited = [" ".join(passage["context"].split()[:num_words])] * len(questions)
        rewards.append(fmean(LexicalGrader().grade(questions, golds, recited)))
        mentioned.append(fmean(LexicalGrader().mentions(questions, golds, recited)))
    assert fmean(rewards) <= 0.2
    assert fmean(mentioned) > 0.35 or num_words < RECITED_WORDS


def test_every_demo_answer_is_right():
    for split in ("train", "test", "other_languages"):
        for passage in load_demo_passages(split):
            questions = [item["question"] for item in passage["questions"]]
            golds = [item["answer"] for item in passage["questions"]]
            others = golds[1:] + golds[:1]
            assert LexicalGrader().grade(questions, golds, golds) == [True] * len(golds)
            assert not any(LexicalGrader().grade(questions, golds, others))


HAND_JUDGED = SHARED_DATA.parent.parent / "cases" / "grader_pairs.jsonl"


@pytest.mark.shared_data
@pytest.mark.skipif(not HAND_JUDGED.is_file(), reason="the hand-judged pairs are absent")
def test_hand_judged_pairs():
    rows = [json.loads(line) for line in HAND_JUDGED.read_text(encoding="utf-8").splitlines()]
    columns = ([row[name] for row in rows] for name in ("question", "gold", "answer"))
    verdicts = LexicalGrader().grade(*columns)
    wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is not row["right"]]
    assert len(rows) == 94
    assert wrong == []
