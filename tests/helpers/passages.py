"""Two short passages with questions, one of them without a title."""

BEES = {
    "title": "Ann's bees",
    "context": "Ann keeps bees in Vell.\n",
    "questions": [
        {"question": "Who keeps bees?", "answer": "Ann"},
        {"question": "Where are the bees?", "answer": "Vell"},
    ],
}
MOTHS = {"title": "", "context": "Moths like lamps.", "questions": [{"question": "What is liked?", "answer": "lamps"}]}
