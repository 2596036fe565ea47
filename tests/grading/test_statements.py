import pytest

from seal_hf.grading.statements import MAX_WORDS, first_statement, is_short, num_words


MORE = " After that many other things were said about it, one after another, which nobody had asked for and nobody will read."


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ("The light was built by Halda Tremmery.", "It is tall."),
        # stops inside a sentence
        ("Dr. Ann of the U.S. Navy kept 1.5 million bees.", "They hummed."),
        ("J. R. Molloway and St. Brannoc met Mr. Ulvick Jr. at 7:30 p.m. on Dec. 3.", "The sea was calm."),
        ("It weighed approx. 3 kg, i.e. little.", "Nobody minded."),
        ("Er starb am 3. März 1874 in Köln.", "Danach kam niemand."),
        ("The verse is Ps. 31:5 of the book.", "It is old."),
        ("See No. 5 on p. 12 by Ulvick et al. 1998.", "Then go."),
        # stops that end one after all
        ("It was sold in the U.S.", "The price was high."),
        ("There were 12.", "The others had left."),
        ("It holds vitamin C.", "It helps."),
        ('He said "Go."', "Then he left."),
        ("It was lit!", "Then it went out."),
        # scripts
        ("蜜蜂住在维尔。", "它们嗡嗡叫。它们住在那里，已经有很多年了，没有人知道为什么它们来到这里，也没有人问。"),
        ("यह दिल्ली में है।", "फिर वे सब लोग वहाँ से चले गए और बहुत दिनों तक लौटकर नहीं आए और किसी ने नहीं पूछा।"),
        ("هو في القاهرة؟ نعم، هو في القاهرة.", "ثم ذهب الجميع."),
        # lines and lists
        ("The light was built by Halda Tremmery", "\n\nIt is tall."),
        ("The metals are:\n1. copper.\n2. tin.", "\n\nThey melt."),
        ("- copper\n- tin", "\nThey melt."),
        ("1. Copper was used.", "2. Tin was not."),
        (
            "The keeper of the light on the black reef nine miles off the coast was the\nengineer Tremmery.",
            "It is tall.",
        ),
        # what says nothing yet
        ("Sure! It is Vell.", "It is a town."),
        ("**Answer:**\nVell.", "It is a town."),
    ],
)
def test_the_first_sentence(first, rest):
    text = f"{first} {rest}" if not rest.startswith("\n") else first + rest
    found = first_statement(text + MORE)
    assert found.startswith("نعم") if first.startswith("هو") else found == first


def test_a_question_is_no_statement():
    assert first_statement(f"Who built it? Halda Tremmery.{MORE}") == "Halda Tremmery."


def test_a_short_answer_counts_whole():
    assert first_statement("It was sold. The price was 12 florins.") == "It was sold. The price was 12 florins."
    assert first_statement(" Vell\n") == "Vell"
    assert first_statement("") == first_statement(" \n") == ""


def test_text_without_a_stop_is_cut():
    assert first_statement("word " * 100) == ("word " * MAX_WORDS).strip()
    assert first_statement("蜂" * 200) == "蜂" * (2 * MAX_WORDS)


def test_a_short_answer_has_twelve_words_or_three_times_those_of_the_gold_answer():
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    assert is_short(" ".join(words), ["one"]) and not is_short(" ".join([*words, "thirteen"]), ["one"])
    five, fifteen = " ".join(words[:5]), " ".join([*words, *words[:3]])
    assert is_short(fifteen, ["one", five]) and is_short(fifteen, [five, "one"])
    assert not is_short(f"{fifteen} sixteen", [five])
    assert is_short("", ["one"])


def test_two_letters_of_a_script_without_spaces_count_as_a_word():
    assert num_words("東京都 Tokyo is") == 3.5
    assert is_short("東" * 24, ["京"]) and not is_short("東" * 25, ["京"])
