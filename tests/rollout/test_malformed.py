"""Self-edits and baselines that cannot be trained on: what is said of them."""

import logging

import pytest
from peft import LoraConfig

from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import Condition
from seal_hf.records.journal import Journal
from seal_hf.rollout.examples import ExampleSet
from seal_hf.rollout.processes import Processes
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig, Stage
from seal_hf.self_edit import SelfEdit, TrainingExample


class Overriding(KnowledgeDomain):
    """Sets the training as it is told."""

    overrides = {"lr": 1e-3}

    def parse(self, completion, example):
        examples = self.passage_only(example).examples
        return SelfEdit(self.prompt(example), completion, examples, overrides=self.overrides)


def propose(folder, domain, baselines=()):
    lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), domain=domain, peft_config=LoraConfig(r=2))
    config = RolloutConfig(max_completion_length=4, adapters_per_bank=4, disable_tqdm=True)
    data = ExampleSet.of(tiny_examples(2), "data")
    stage = Stage("s", Journal(folder), 0, data, 1, (5,), 2, baselines=tuple(baselines))
    return Rollout(lm, config, Processes(folder)).propose(stage)


def warnings_of(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING and "malformed" in one.msg]


def test_why_self_edits_are_malformed_is_said_once(tmp_path, caplog):
    domain = Overriding("{context}", grader=HashGrader(), chat=False)
    assert not any(one.well_formed for one in propose(tmp_path, domain))
    (message,) = warnings_of(caplog)
    assert message.startswith("Self-edit 0 of example 0 is malformed: ") and "lr" in message


def test_nothing_is_said_of_a_self_edit_without_training_examples(tmp_path, caplog):
    domain = Overriding("{context}", grader=HashGrader(), chat=False)
    domain.passage_only = lambda example: SelfEdit("", "", ())
    assert not any(one.well_formed for one in propose(tmp_path, domain)) and warnings_of(caplog) == []


def test_a_baseline_that_cannot_be_trained_is_an_error(tmp_path):
    domain = KnowledgeDomain("{context}", grader=HashGrader(), chat=False)
    empty = Condition("empty", domain.questions, lambda example: SelfEdit("", "", (TrainingExample("", "a"),)))
    with pytest.raises(
        ValueError, match="The baseline 'empty' cannot be trained on example 0: A self-edit has no seq"
    ):
        propose(tmp_path, domain, [empty])
    assert Journal(tmp_path).proposals(0) is None
