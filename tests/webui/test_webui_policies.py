"""A trained policy as the writer of one session's self-edits."""

from dataclasses import replace

import pytest
import torch

from helpers.finished_runs import SETTINGS, write_finished_run
from helpers.web_page import PASSAGE, QUICK, finish, learned, written
from seal_hf.webui.tabs.writer_lines import writer_text
from seal_hf.webui.work import device, quota
from seal_hf.webui.work.jobs import FAILED, JobRefused
from seal_hf.webui.work.policies import use_base_model, use_policy
from seal_hf.webui.work.training_runs import TrainingRuns


@pytest.fixture
def runs(bench, tmp_path):
    return TrainingRuns(bench.jobs, tmp_path / "runs", None, bench.lm.base_model_id)


def texts(session):
    return [draft.written for draft in session.drafts]


def test_only_the_session_that_chose_a_policy_has_it(bench, session, runs, lm):
    folder = write_finished_run(runs, session.id, lm)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    written(bench, session)
    by_base = texts(session)
    assert session.written_by == ""
    policy = use_policy(runs, session)
    assert (policy.name, policy.round) == ("the policy of run 1, round 2", 2)
    other = bench.sessions.open()
    written(bench, session)
    written(bench, other)
    assert session.written_by == policy.name and other.written_by == ""
    assert texts(session) != by_base and texts(other) == by_base

    # What it writes is what the library's policy writes.
    expected = QUICK.lm(lm)
    expected.writer = lm.load_adapter(folder / "run" / "policy" / "round_001")
    (generations,) = expected.write_batch([session.example], QUICK.num_generations, **QUICK.sampling())
    assert texts(session) == [one.text.strip() for one in generations]

    use_policy(runs, session, 1)
    assert not policy.folder.exists() and session.writer.round == 1
    by_second = texts(session)
    written(bench, session)
    assert texts(session) not in (by_base, by_second)
    use_base_model(session)
    use_base_model(session)  # the same click twice
    written(bench, session)
    assert (texts(session), session.written_by, session.writer) == (by_base, "", None)
    assert not any((session.folder / "policies").iterdir())
    after = lm.model.state_dict()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_the_base_model_learns_and_answers(bench, session, runs, lm):
    written(bench, session)
    use_policy_of = write_finished_run(runs, session.id, lm)
    plain = learned(bench, session, [0])
    use_policy(runs, session)
    with_policy = learned(bench, session, [0])
    assert with_policy["answers"] == plain["answers"] and use_policy_of.is_dir()
    first, second = (lm.load_adapter(session.adapter(one["adapters"][0]).file) for one in (plain, with_policy))
    assert torch.equal(first.weights, second.weights)


def test_a_policy_outlives_its_run(bench, session, runs, lm):
    write_finished_run(runs, session.id, lm)
    use_policy(runs, session)
    runs.forget(session.id)
    written(bench, session)
    assert session.written_by == "the policy of run 1, round 2"
    device.free_memory()
    written(bench, session, replace(QUICK, seed=1))  # it is read again


def test_a_policy_that_cannot_be_used_is_refused_in_a_sentence(session, runs, lm, monkeypatch):
    with pytest.raises(JobRefused, match="There is no policy yet: start a training run"):
        use_policy(runs, session)
    write_finished_run(runs, session.id, lm, num_policies=0)
    with pytest.raises(JobRefused, match="There is no policy yet"):
        use_policy(runs, session)
    write_finished_run(runs, session.id, lm, num_policies=1)
    with pytest.raises(JobRefused, match="There is no policy after round 2: choose one of round 1"):
        use_policy(runs, session, 2)
    write_finished_run(runs, session.id, lm, model_name_or_path="someone/other")
    with pytest.raises(JobRefused, match="policy of someone/other, but this app has tester/tiny: start it with"):
        use_policy(runs, session)
    write_finished_run(runs, session.id, lm, student="policy")
    with pytest.raises(JobRefused, match=r"\(student: policy\), but here the base model does"):
        use_policy(runs, session)
    write_finished_run(runs, session.id, lm)
    monkeypatch.setattr(quota, "SESSION_BYTES", 1000)
    with pytest.raises(JobRefused, match="There is no room for"):
        use_policy(runs, session)
    assert session.writer is None and not (session.folder / "policies").exists()


def test_a_policy_for_which_there_is_no_memory_fails_its_job_alone(bench, session, runs, lm, monkeypatch):
    write_finished_run(runs, session.id, lm)
    use_policy(runs, session)
    device.free_memory()
    monkeypatch.setattr(quota, "has_memory", lambda num_bytes: False)
    log, _ = finish(bench, bench.propose(session, "", PASSAGE, [], QUICK))
    assert log.state == FAILED and "has no memory for an adapter" in log.error
    written(bench, bench.sessions.open())  # the base model still writes


def test_a_job_that_waits_while_its_policy_is_given_up_says_so(bench, session, runs, lm, gate):
    write_finished_run(runs, session.id, lm)
    use_policy(runs, session)
    bench.submit(bench.sessions.open(), "ask", [], lambda job: gate.wait(60), 1, "answer")
    job = bench.propose(session, "", PASSAGE, [], QUICK)
    use_base_model(session)
    gate.set()
    log, _ = finish(bench, job)
    assert log.state == FAILED and "no longer written by the policy of run 1, round 2" in log.error


def test_the_page_says_who_writes(session, runs, lm):
    assert writer_text(None) == writer_text(session) == "Self-edits are written by: **base model**"
    write_finished_run(runs, session.id, lm, settings=replace(SETTINGS, prompt_style="rewrite"))
    use_policy(runs, session, 1)
    assert writer_text(session) == (
        "Self-edits are written by: **the policy of run 1, round 1**, trained to write “Rewrite it several times”. The base model "
        "learns and answers."
    )
