"""Self-edits of an example that train on exactly the same are trained once, and share what that is worth."""

import hashlib
from unittest import mock

import pytest

from helpers.observing import Act, read, records, stop
from helpers.outer_loop import HashGrader, tiny_trainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.self_adapting_lm import SelfAdaptingLM
from seal_hf.self_edit import SelfEdit, TrainingExample


pytestmark = pytest.mark.usefixtures("without_pictures")
OPTIONS = {"num_train": 2, "num_eval": 2, "num_generations": 5, "num_repeats": 2, "num_rounds": 1}


class TwoKindsDomain(KnowledgeDomain):
    """Whatever is written means one of two texts, and a third of it nothing."""

    def __init__(self):
        super().__init__("{title}: {context}", grader=HashGrader(), chat=False)

    def parse(self, completion, example):
        kind = hashlib.sha256(completion.encode()).digest()[0] % 3
        text = ("", "The cats sat.", "No cats sat.")[kind]
        return SelfEdit("", completion, (TrainingExample("", text),)) if text else None


def trained_by(folder, **options):
    numbers, adapt = [], SelfAdaptingLM.adapt

    def noted(lm, edits, **given):
        numbers.append(len(edits))
        return adapt(lm, edits, **given)

    trainer = tiny_trainer(folder, domain=TwoKindsDomain(), **OPTIONS, **options)
    with mock.patch.object(SelfAdaptingLM, "adapt", noted):
        trainer.train()
    return trainer, sum(numbers)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    return folder, *trained_by(folder)


def test_the_same_is_trained_once(run):
    folder, trainer, num_trained = run
    expected = 0
    for kind, num_repeats in (("", 2), ("evaluation/", 1)):
        for path in sorted((folder / kind / "proposals").glob("*.jsonl")):
            seen = {}
            for one in read(path):
                own = trainer.domain.parse(one["completion"], {}) if one["condition"] == "self-edits" else None
                key = one["example"], own and own.examples, one["condition"]
                first = seen.setdefault(key, one["edit"])
                is_same = one["well_formed"] and first != one["edit"]
                assert one["same_as"] == (first if is_same else None)
                assert len(one["banks"]) == (num_repeats if one["well_formed"] and not is_same else 0)
                expected += len(one["banks"])
    assert num_trained == expected
    assert any(one["same_as"] is not None for one in read(folder / "proposals" / "round_000.jsonl"))


def test_what_it_is_worth_is_shared(run):
    folder, *_ = run
    scored = {(one["example"], one["edit"]): one for one in read(folder / "journal" / "round_000.jsonl")}
    shared = [one for one in read(folder / "proposals" / "round_000.jsonl") if one["same_as"] is not None]
    for one in shared:
        own, first = scored[one["example"], one["edit"]], scored[one["example"], one["same_as"]]
        assert own["repeats"] == first["repeats"] and len(own["repeats"]) == 2
        assert (own["reward"], own["tokens"]) == (first["reward"], first["tokens"])
        assert own["completion"] != first["completion"] or own["completion_ids"] == first["completion_ids"]
        assert "same_as" not in own


def test_a_run_goes_on_with_them(run, tmp_path):
    stopped = tiny_trainer(tmp_path, domain=TwoKindsDomain(), callbacks=[Act("on_substep_end", 3, stop)], **OPTIONS)
    stopped.train()
    resumed = tiny_trainer(tmp_path, domain=TwoKindsDomain(), **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    found, expected = records(tmp_path), records(run[0])
    for name in ("proposals/round_000.jsonl", "journal/round_000.jsonl", "selected/round_000.jsonl"):
        assert found[name] == expected[name]
