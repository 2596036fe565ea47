"""The files of the paper authors' code, small ones of the same layout by hand, and the stored ones where they are."""

import json
from types import SimpleNamespace

import pytest

from helpers.folders import SHARED_DATA
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import BASE, SELF_EDITS
from seal_hf.domains.knowledge.reference_files import overall, query_run
from seal_hf.domains.stored_self_edits import stored_completions
from seal_hf.hub.stored_self_edits import load_stored_self_edits
from seal_hf.outer_loop.selection import select_self_edits
from seal_hf.records.schema import ScoredSelfEdit


EXAMPLES = [
    {
        "title": "Bees",
        "context": "Ann keeps bees.",
        "questions": [{"question": "Who?", "answer": ["Ann", "Anne"]}, {"question": "What?", "answer": "bees"}],
    },
    {"title": "Owls", "context": "Cleo paints owls.", "questions": [{"question": "Who?", "answer": "Cleo"}]},
]


def record(condition, example, edit, *verdicts, completion=""):
    repeats = [{"answers": [f"{edit} {i}" for i in range(len(own))], "verdicts": own} for own in verdicts]
    prompt = [{"role": "user", "content": f"Passage:\n{EXAMPLES[example]['context']}"}]
    return SimpleNamespace(
        condition=condition, example=example, edit=edit, prompt=prompt, completion=completion, repeats=repeats
    )


SCORED = [
    record(BASE, 0, 0, [True, False]),
    record(BASE, 1, 0, [False]),
    record("passage only", 0, 0, [True, True]),
    record(SELF_EDITS, 0, 1, [True, True], [True, False], completion="Second."),
    record(SELF_EDITS, 0, 0, [True, True], [False, True], completion="First."),
    record(SELF_EDITS, 1, 0, completion=" "),  # malformed
    record(SELF_EDITS, 1, 1, [True], [False], completion="Owls."),
]


@pytest.fixture
def run():
    return query_run(EXAMPLES, SCORED, model="tiny")


def test_an_evaluation_as_a_query_run(run):
    assert [run[name] for name in ("model", "n_articles", "k_completions", "eval_times")] == ["tiny", 2, 2, 2]
    bees, owls = run["articles"]
    assert [one["text"] for one in bees["completions"]] == ["First.", "Second."]
    assert bees["prompt"] == "Passage:\nAnn keeps bees."
    assert bees["completions"][0]["questions"][2] == {
        "rep": 1,
        "question": "Who?",
        "answer": "Ann",
        "baseline_answer": "0 0",
        "adapter_answer": "0 0",
        "baseline_correct": True,
        "adapter_correct": False,
    }
    assert bees["completions"][0]["stats"] == pytest.approx(
        {"baseline_mean": 0.5, "baseline_std": 0, "adapter_mean": 0.75, "adapter_std": 0.125**0.5, "gain_mean": 0.25}
    )
    malformed, other = (one["stats"] for one in owls["completions"])
    assert (malformed["adapter_mean"], malformed["gain_mean"], other["adapter_mean"]) == (0, 0, 0.5)


def test_the_summary_by_hand(run):
    # Passages: base 1/2 and 0; adapted 3/4 (twice) and (0 + 1/2) / 2.
    assert (
        run["overall"]
        == overall(run["articles"])
        == {
            "baseline_mean_accuracy": 0.25,
            "baseline_std_of_article_means": 0.3536,
            "adapter_mean_accuracy": 0.5,
            "adapter_std_of_article_means": 0.3536,
            "mean_adapter_std_over_completions": 0.1768,
            "mean_adapter_std_within_completions": round((2 * 0.125**0.5 + 0.5**0.5) / 4, 4),
            "mean_gain": 0.25,
        }
    )
    assert overall(run["articles"][:1])["adapter_std_of_article_means"] == 0.0


def selected(articles):
    """What this project's outer loop keeps of a query run, as the pairs that theirs finetunes on."""
    scored = [
        ScoredSelfEdit(
            round=0,
            condition=SELF_EDITS,
            example=place,
            example_id=str(place),
            edit=edit,
            prompt=article["prompt"],
            completion=one["text"],
            completion_tokens=1,
            well_formed=True,
            repeats=[],
            reward=one["stats"]["adapter_mean"],
            base_reward=None,
            tokens=1,
            seconds=0.0,
        )
        for place, article in enumerate(articles)
        for edit, one in enumerate(article["completions"])
    ]
    return [{"prompt": one.prompt, "completion": one.completion} for one in select_self_edits(scored)]


def test_the_first_of_the_best_is_selected(run):
    assert selected(run["articles"]) == [
        {"prompt": "Passage:\nAnn keeps bees.", "completion": "First."},
        {"prompt": "Passage:\nCleo paints owls.", "completion": "Owls."},
    ]


def test_self_edits_are_read_from_each_of_their_files(run, tmp_path):
    dataset = [{**one, "completions": [own["text"] for own in one["completions"]]} for one in run["articles"]]
    files = {
        "run.json": (json.dumps(run), 2),
        "dataset.json": (json.dumps(dataset), 2),
        "sft.jsonl": ("".join(json.dumps(pair) + "\n" for pair in selected(run["articles"])), 1),
    }
    for name, (text, number) in files.items():
        (tmp_path / name).write_text(text)
        rows = load_stored_self_edits(tmp_path / name)
        found = stored_completions(KnowledgeDomain("rewrite", chat=False), EXAMPLES, ["0", "1"], rows, number)
        expected = [("First.", "Second."), (" ", "Owls.")] if number == 2 else [("First.",), ("Owls.",)]
        assert found == expected, name


def test_without_self_edits_there_is_no_query_run():
    with pytest.raises(ValueError, match="hold no self-edits"):
        query_run(EXAMPLES, SCORED[:3])


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the paper authors' stored runs are absent")
def test_the_stored_runs_have_our_summary_and_our_selection():
    for name in ("rank_iter0", "rank_iter1", "eval_base"):
        stored = json.loads((SHARED_DATA / f"{name}.json").read_text())
        assert overall(stored["articles"]) == stored["overall"]
        if name != "eval_base":
            lines = (SHARED_DATA / f"sft_best1of5_{name[5:]}.jsonl").read_text().splitlines()
            assert selected(stored["articles"]) == list(map(json.loads, lines))
