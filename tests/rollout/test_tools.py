"""Self-edits that ask their domain's tool: what is recorded of it, read again, trained on and logged."""

from dataclasses import replace
from statistics import fmean
from unittest import mock

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import AskingDomain, tiny_trainer
from seal_hf.inner_loop.update import InnerLoopConfig, tokenize_self_edit
from seal_hf.outer_loop.outer_sft import fit_policy
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


def proposals_of(trainer):
    return list(read(folder_of(trainer) / "proposals" / "round_000.jsonl"))


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


class PoolingDomain(AskingDomain):
    """Keeps the letters of what called its tool."""

    pools_drafts = True

    def carry_out(self, self_edits, examples, ask):
        done = super().carry_out(self_edits, examples, ask)
        return [replace(edit, kept="".join(filter(str.isalpha, edit.completion))) for edit in done]


def test_a_self_edit_of_several_drafts(unbroken, tmp_path):
    options = {**OPTIONS, "num_generations": 3, "num_drafts": 2, "num_eval_drafts": 1}
    trainer = tiny_trainer(tmp_path / "run", domain=PoolingDomain(), **options)
    trainer.train()
    drafts = {(one["example"], one["edit"]): one["completion"] for one in proposals_of(unbroken)}
    pooled, domain = proposals_of(trainer), AskingDomain()
    assert len(pooled) == 2 * 3
    assert {one["tool_examples"] is None for one in pooled} == {True, False}
    finished = {}
    for one in pooled:
        # The same streams of random numbers as without drafts, two by two.
        text = "\n---\n".join(drafts[one["example"], 2 * one["edit"] + i].strip() for i in range(2))
        edit = domain.parse(text, trainer._train.examples[one["example"]])
        called = edit is not None and bool(edit.calls)
        assert called == (one["tool_examples"] is not None)
        assert one["completion"] == ("".join(filter(str.isalpha, text)) or text if called else text)
        ids = trainer.processing_class(one["completion"], add_special_tokens=False)["input_ids"]
        finished[one["example"], one["edit"]] = one["finished"]
        is_whole = one["finished"] or one["completion"] != text
        assert one["completion_ids"] == [*ids, *([trainer.processing_class.eos_token_id] if is_whole else [])]
    ended = {(one["example"], one["edit"]): one["finished"] for one in proposals_of(unbroken)}
    assert finished == {(i, j): ended[i, 2 * j] and ended[i, 2 * j + 1] for i, j in finished}
    (log,) = [entry for entry in trainer.state.log_history if "completions/clipped_ratio" in entry]
    assert log["completions/clipped_ratio"] == fmean(not one for one in finished.values()) > 0
    chosen = read(folder_of(trainer) / "selected" / "round_000.jsonl")
    assert {one["completion"] for one in chosen} <= {one["completion"] for one in pooled}
    # Before the first fit the policy is the same, and an evaluation has its own number of drafts.
    before, single = (
        [one["completion"] for one in read(folder_of(run) / "evaluation" / "proposals" / "round_000.jsonl")]
        for run in (trainer, unbroken)
    )
    assert before == single


class PartedDomain(PoolingDomain):
    """Writes about two halves of every passage, and keeps the letters that were written about each."""

    def parts(self, example):
        return tuple({**example, "context": f"{example['context']} {half}"} for half in ("one", "two"))

    def carry_out(self, self_edits, examples, ask):
        done = super().carry_out(self_edits, examples, ask)
        texts = [["".join(filter(str.isalpha, text)) for text in edit.completion.split("\n---\n")] for edit in done]
        return [
            replace(edit, kept="\n---\n".join(["".join(own[::2]), "".join(own[1::2])]))
            for edit, own in zip(done, texts, strict=True)
        ]


@pytest.mark.parametrize("num_drafts", [1, 2])
def test_a_self_edit_about_several_parts(tmp_path, num_drafts):
    fitted = []

    def fit(model, processing_class, selected, *args, **options):
        fitted.extend(selected)
        return fit_policy(model, processing_class, selected, *args, **options)

    domain = PartedDomain()
    trainer = tiny_trainer(tmp_path / "run", domain=domain, **OPTIONS, num_drafts=num_drafts)
    with mock.patch("seal_hf.outer_loop.seal_trainer.fit_policy", fit):
        trainer.train()
    pooled = proposals_of(trainer)
    assert {one["tool_examples"] is None for one in pooled} == {True, False} and len(pooled) == 2 * 6
    assert all(
        one["completion"].count("\n---\n") == 1 for one in pooled if one["well_formed"] and one["tool_examples"]
    )
    chosen = read(folder_of(trainer) / "selected" / "round_000.jsonl")
    rows = [
        (domain.prompt(domain.parts(trainer._train.examples[int(one["example_id"])])[place % 2]), text)
        for one in chosen
        for place, text in enumerate(one["completion"].split("\n---\n"))
        if text
    ]
    # Of what the tool kept one text for each part, and else one of each draft.
    assert {one["completion"].count("\n---\n") for one in pooled} == {1, 2 * num_drafts - 1}
    assert len(rows) > len(chosen) and [(edit.prompt, edit.completion) for edit in fitted] == rows
    end = trainer.processing_class.eos_token_id
    cut = {
        text
        for one in chosen
        for place, text in enumerate(one["completion"].split("\n---\n"))
        if place in (one["unfinished_parts"] or ())
    }
    assert cut and all(edit.completion_ids.count(end) == (edit.completion not in cut) for edit in fitted)
    # Parts are drawn from streams of their own.
    (first,) = trainer.lm.write_batch(
        trainer._train.examples[:1], 1, temperature=1.5, top_p=0.95, max_completion_length=12, seed=5
    )
    texts = first[0].text.split("\n---\n")
    assert len(texts) == 2 and texts[0] != texts[1]


def test_drafts_need_a_domain_that_pools_them(tmp_path):
    with pytest.raises(
        ValueError, match="num_drafts=2 needs a domain that makes one self-edit of several completions"
    ):
        tiny_trainer(tmp_path / "run", domain=AskingDomain(), **OPTIONS, num_drafts=2)


def test_a_domain_without_a_tool_records_none(reference):
    for path in reference.folder.rglob("proposals/*.jsonl"):
        assert all(one["tool_examples"] is None and one["metrics"] is None for one in read(path))
