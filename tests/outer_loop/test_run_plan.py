"""The plan of a run against what the run then does."""

import pytest

from helpers.counted_work import count_work
from helpers.observing import Act, stop
from helpers.outer_loop import HashGrader, tiny_examples, tiny_trainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.rivals import SPADomain
from seal_hf.rollout.planning import Counts


pytestmark = pytest.mark.usefixtures("without_pictures")
OPTIONS = {"num_train": 2, "num_eval": 2, "num_rounds": 1, "num_generations": 2, "num_repeats": 1}


@pytest.fixture
def done(monkeypatch):
    """Counts what is really done from now on."""
    return count_work(monkeypatch)


@pytest.fixture(autouse=True)
def unprobed(monkeypatch):
    """No probe of the machine, whose work would count."""
    monkeypatch.setattr("seal_hf.outer_loop.plan.expected_seconds", lambda *arguments: 1.0)


class Readable(KnowledgeDomain):
    """The model finds an answer to every question in the passage."""

    def open_book(self, examples, lm):
        return list(map(dict, examples))


@pytest.mark.parametrize("reward_funcs", [["accuracy"], ["accuracy", "self_consistency"]])
def test_a_plan_is_what_is_then_done(done, tmp_path, reward_funcs):
    """With recitations and general questions in evaluations, and the questions of rewards without labels."""
    domain = Readable("{title}: {context}", grader=HashGrader(), chat=False)
    options = {**OPTIONS, "domain": domain, "reward_funcs": reward_funcs}
    trainer = tiny_trainer(tmp_path, **options)
    plan = trainer.plan()
    assert done == Counts()
    trainer.train()
    found = plan.everything
    assert (found.prompts_to_write, found.adapters) == (done.prompts_to_write, done.adapters)
    assert found.prompts_to_answer == done.prompts_to_answer and found.adapters_per_bank == done.adapters_per_bank
    again = tiny_trainer(tmp_path, **options).plan(resume_from_checkpoint=True)
    assert again.everything == Counts() and again.optimizer_steps == [0]


def test_the_plan_of_an_interrupted_run_is_what_is_left(done, tmp_path):
    options = {**OPTIONS, "num_eval": 0, "adapters_per_bank": 1}
    tiny_trainer(tmp_path, **options, callbacks=[Act("on_substep_end", 2, stop)]).train()
    assert done.adapters == 2
    done.__init__()
    trainer = tiny_trainer(tmp_path, **options)
    plan = trainer.plan(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=True)
    # Exactly, since the self-edits are written.
    assert plan.everything == done and done.adapters == 2 and done.tokens > 0
    assert plan.optimizer_steps == [2]


def test_parts_and_the_domain_of_evaluations_are_counted(done, tmp_path):
    """A self-edit about every sentence of a passage, and in evaluations seven texts about the passage."""
    passages = [{**one, "context": "Ann keeps bees. Bob has owls. Cleo paints."} for one in tiny_examples(1)]
    trainer = tiny_trainer(
        tmp_path,
        **OPTIONS,
        domain=KnowledgeDomain("questions-by-fact", grader=HashGrader(), chat=False),
        eval_domain=SPADomain(grader=HashGrader(), chat=False),
        train_dataset=passages,
    )
    plan = trainer.plan()
    trainer.train()
    assert [one.prompts_to_write for one in plan.rounds] == [2 * 3]
    assert [one.prompts_to_write for one in plan.evaluations] == [2 * 7] * 2
    assert plan.everything.prompts_to_write == done.prompts_to_write
