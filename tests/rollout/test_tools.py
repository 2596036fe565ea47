"""Self-edits that ask their domain's tool: what is recorded of it, read again, trained on and logged."""

from statistics import fmean

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import AskingDomain, tiny_trainer
from seal_hf.inner_loop.update import InnerLoopConfig, tokenize_self_edit
from seal_hf.self_edit import SelfEdit, TrainingExample


pytestmark = pytest.mark.usefixtures("without_pictures")
OPTIONS = {"num_train": 2, "num_eval": 2, "num_generations": 6, "num_repeats": 1, "num_rounds": 1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = tiny_trainer(tmp_path_factory.mktemp("run"), domain=AskingDomain(), **OPTIONS)
    trainer.train()
    return trainer


def folder_of(trainer):
    return trainer._folder.path


def test_what_a_tool_comes_to_is_recorded_and_trained_on(unbroken):
    proposals = read(folder_of(unbroken) / "proposals" / "round_000.jsonl")
    domain = AskingDomain()
    with_tool = [one for one in proposals if one["tool_examples"] is not None]
    assert 0 < len(with_tool) < len(proposals)
    num_emptied = 0
    for one in proposals:
        example = unbroken._train.examples[one["example"]]
        parsed = domain.parse(one["completion"], example)
        asks = parsed is not None and bool(parsed.calls)
        assert asks == (one in with_tool) == (one["metrics"] is not None)
        examples = parsed.examples if parsed is not None else ()
        if one in with_tool:
            examples = tuple(TrainingExample(**pair) for pair in one["tool_examples"])
            assert one["metrics"]["answers"] == 1
        if not examples:
            num_emptied += one in with_tool
            assert not one["well_formed"] and one["banks"] == [] and one["tokens"] == 0
            continue
        update = tokenize_self_edit(
            SelfEdit("", "", examples), unbroken.processing_class, InnerLoopConfig(num_train_epochs=2)
        )
        assert one["tokens"] == 2 * sum(len(sequence.input_ids) for sequence in update.sequences)
    assert 0 < num_emptied < len(with_tool)
    # The tool's own example comes first, in chat form.
    kept = next(one for one in with_tool if one["well_formed"])
    assert kept["tool_examples"][0]["prompt"] == [{"role": "user", "content": "é"}]
    scored = read(folder_of(unbroken) / "journal" / "round_000.jsonl")
    assert [one["metrics"] for one in scored] == [one["metrics"] for one in proposals]
    assert "tool_examples" not in scored[0]
    trained = {(one["example"], one["edit"]): one["tokens"] for one in proposals}
    assert [one["tokens"] for one in scored] == [trained[one["example"], one["edit"]] for one in scored]


def test_a_stage_asks_once_for_all_that_call(unbroken):
    evaluations, rounds = [], []
    for folder, found in (("evaluation/", evaluations), ("", rounds)):
        for path in sorted(folder_of(unbroken).glob(f"{folder}proposals/*.jsonl")):
            found.append([one["completion"] for one in read(path) if one["tool_examples"] is not None])
    expected = [own for own in (evaluations[0], rounds[0], evaluations[1]) if own]
    assert [[completion for _, completion in own] for own in unbroken.domain.asked] == expected
    assert len(rounds[0]) > 1


def test_metrics_of_the_round_and_of_an_evaluation(unbroken):
    (log,) = [entry for entry in unbroken.state.log_history if "self_edits/valid_ratio" in entry]
    proposals = read(folder_of(unbroken) / "proposals" / "round_000.jsonl")
    coverage = [one["metrics"]["coverage"] for one in proposals if one["metrics"]]
    assert log["self_edits/coverage"] == pytest.approx(fmean(coverage)) and log["self_edits/answers"] == 1
    for number in range(2):
        name = f"round_{number:03d}.jsonl"
        proposals = read(folder_of(unbroken) / "evaluation" / "proposals" / name)
        coverage = [one["metrics"]["coverage"] for one in proposals if one["metrics"]]
        (entry,) = [
            one
            for one in unbroken.state.log_history
            if one.get("round") == number and "eval_runtime" not in one and "eval_self_edits_accuracy" in one
        ]
        assert entry.get("eval_self_edits_coverage") == (pytest.approx(fmean(coverage)) if coverage else None)


@pytest.mark.parametrize("event", ["on_substep_end", "on_step_end"])
def test_a_resumed_run_does_not_ask_again(unbroken, tmp_path, event):
    # After the first bank of the round, with those of the evaluation before it, or after its scoring.
    first = len(list(read(folder_of(unbroken) / "evaluation" / "proposals" / "round_000.jsonl")))
    number = {"on_substep_end": first + 1, "on_step_end": 1}[event]
    domain = AskingDomain()
    tiny_trainer(tmp_path / "run", domain=domain, callbacks=[Act(event, number, stop)], **OPTIONS).train()
    num_asked = len(domain.asked)
    assert domain.asked == unbroken.domain.asked[:num_asked]
    resumed = AskingDomain()
    tiny_trainer(tmp_path / "run", domain=resumed, **OPTIONS).train(resume_from_checkpoint=True)
    assert domain.asked + resumed.asked == unbroken.domain.asked
    assert records(tmp_path / "run") == records(folder_of(unbroken))


def test_a_domain_without_a_tool_records_none(reference):
    for path in reference.folder.rglob("proposals/*.jsonl"):
        assert all(one["tool_examples"] is None and one["metrics"] is None for one in read(path))
