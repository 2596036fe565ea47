"""Runs that do less work for the same choice: repeats for the leaders, and likelihoods in place of answers."""

import json
import signal
from collections import Counter
from statistics import fmean
from types import SimpleNamespace

import psutil
import pytest
from helpers.observing import Act, Recorder, records, stop
from helpers.outer_loop import HashGrader, in_child, noted_trials, results, run, tiny_trainer, unscored
from helpers.processes import TORCHRUN, assert_same_results, assert_shared, launch

from seal_hf.domains import KnowledgeDomain
from seal_hf.records.journal import BASE, PASSAGE_ONLY, SELF_EDITS, Journal
from seal_hf.records.plot import save_plot
from seal_hf.records.report import results_table


pytestmark = pytest.mark.usefixtures("without_pictures")

# Four self-edits, of which two get a second and a third repeat.
HALVING = {"num_train": 3, "num_eval": 1, "num_rounds": 1, "num_generations": 4, "num_evaluations": 3}
HALVING |= {"adapters_per_batch": 4, "repeat_schedule": "halving"}
LIKELIHOOD = {**HALVING, "reward": "likelihood"}


def halving_trainer(output_dir, **options):
    return tiny_trainer(output_dir, **{**HALVING, **options})


def finished_run(output_dir, **options):
    recorder = Recorder()
    trainer = halving_trainer(output_dir, callbacks=[recorder], **options)
    trainer.train()
    journal = Journal(output_dir)
    return SimpleNamespace(
        folder=output_dir,
        records=records(output_dir),
        proposals=journal.proposals(0),
        scored=journal.scored(0),
        selected=journal.selected(0),
        num_banks=recorder.count("substep_end"),
        trainer=trainer,
    )


@pytest.fixture(scope="module")
def halving(tmp_path_factory, without_pictures):
    return finished_run(tmp_path_factory.mktemp("halving") / "run")


@pytest.fixture(scope="module")
def likelihood(tmp_path_factory, without_pictures):
    return finished_run(tmp_path_factory.mktemp("likelihood") / "run", reward="likelihood")


@pytest.fixture(params=["accuracy", "likelihood"])
def one(request, halving, likelihood):
    return {"accuracy": halving, "likelihood": likelihood}[request.param]


def standings(edits, repeat):
    """An example's self-edits that have this repeat, the best first, by their rewards up to it."""
    own = [edit for edit in edits if len(edit.repeats) > repeat]
    return sorted(own, key=lambda edit: (-fmean(one["reward"] for one in edit.repeats[: repeat + 1]), edit.edit))


def test_the_leaders_have_all_repeats_and_the_best_of_them_is_kept(one):
    assert [len(proposal.banks) for proposal in one.proposals] == [int(edit.well_formed) for edit in one.scored]
    for example in range(3):
        edits = [edit for edit in one.scored if edit.example == example]
        assert all(edit.well_formed for edit in edits)
        assert sorted(len(edit.repeats) for edit in edits) == [1, 1, 3, 3]
        assert {edit.edit for edit in standings(edits, 1)} == {edit.edit for edit in standings(edits, 0)[:2]}
        best = standings(edits, 2)[0]
        assert (one.selected[example].edit, one.selected[example].reward) == (best.edit, best.reward)
        assert best.reward == pytest.approx(fmean(repeat["reward"] for repeat in best.repeats))


def test_repeats_are_those_of_a_run_that_has_all(one, tmp_path):
    full = finished_run(tmp_path / "full", repeat_schedule="all", reward=one.trainer.args.reward)
    assert [len(edit.repeats) for edit in full.scored] == [3] * 12
    for less, more in zip(one.scored, full.scored, strict=True):
        assert len(less.repeats) in (1, 3)
        for repeat, other in zip(less.repeats, more.repeats[: len(less.repeats)], strict=True):
            assert (repeat["answers"], repeat["verdicts"], repeat["seed"]) == (
                other["answers"],
                other["verdicts"],
                other["seed"],
            )
            assert repeat["reward"] == pytest.approx(other["reward"], abs=1e-5)
    assert sum(edit.tokens for edit in one.scored) < 0.7 * sum(edit.tokens for edit in full.scored)


def test_evaluations_answer_as_ever(one):
    evaluation = Journal(one.folder / "evaluation").scored(0)
    assert {edit.condition for edit in evaluation} >= {BASE, PASSAGE_ONLY, SELF_EDITS}
    for edit in evaluation:
        (repeat,) = edit.repeats
        assert len(repeat["answers"]) == 3 and repeat["reward"] in (0.0, 1 / 3, 2 / 3, 1.0)
        assert "log_likelihoods" not in repeat


def test_likelihoods_are_recorded_in_place_of_answers(likelihood):
    lm, train = likelihood.trainer.lm, likelihood.trainer._train.examples
    for edit in likelihood.scored:
        for repeat in edit.repeats:
            assert (repeat["answers"], repeat["verdicts"]) == ([], [])
            assert len(repeat["log_likelihoods"]) == 3
            assert repeat["reward"] < 0 and repeat["reward"] == pytest.approx(fmean(repeat["log_likelihoods"]))
    # The base reward is that of the policy as it was, whose B is zero: the base model's.
    with lm.model.disable_adapter():
        for edit in likelihood.scored:
            domain, example = lm.domain, train[edit.example]
            values = lm.answer_log_likelihoods(domain.questions(example), domain.gold_answers(example))
            assert edit.base_reward == pytest.approx(fmean(values), abs=1e-5)
    assert len({edit.reward for edit in likelihood.scored}) == len(likelihood.scored)  # no ties


def hash_of(text):
    return HashGrader().grade(None, None, [text])[0]


class SomeMalformed(KnowledgeDomain):
    """Every second self-edit of an example is malformed, and all of the last example's."""

    def __init__(self):
        super().__init__("{title}: {context}", grader=HashGrader(), chat=False)

    def parse(self, completion, example):
        return None if example["title"] == "T2" or hash_of(completion) else super().parse(completion, example)


@pytest.mark.parametrize("reward", ["accuracy", "likelihood"])
def test_malformed_self_edits_have_no_part_in_it(tmp_path, reward):
    found = finished_run(tmp_path, domain=SomeMalformed(), reward=reward, num_eval=0, num_generations=6)
    by_example = [[edit for edit in found.scored if edit.example == example] for example in range(3)]
    assert 0 < sum(edit.well_formed for edit in found.scored) < 18
    for edits in by_example:
        trained = [edit for edit in edits if edit.well_formed]
        counts = Counter(len(edit.repeats) for edit in trained)
        leaders = min(len(trained), max(2, (len(trained) + 1) // 2))
        assert counts[2] + counts[3] == leaders and counts[3] == min(2, leaders)
        for edit in edits:
            if not edit.well_formed:
                assert edit.repeats == [] and edit.reward == (edit.base_reward if reward == "likelihood" else 0.0)
    assert {edit.example_id for edit in found.selected} == {
        str(i) for i in range(3) if any(e.well_formed for e in by_example[i])
    }
    assert "2" not in {edit.example_id for edit in found.selected}


def test_a_domain_without_gold_answers_is_refused_at_once(tmp_path):
    class NoGold(KnowledgeDomain):
        def gold_answers(self, example):
            raise NotImplementedError

    domain = NoGold("{context}", grader=HashGrader(), chat=False)
    with pytest.raises(ValueError, match="^reward='likelihood' needs the gold answers, which NoGold does not give"):
        halving_trainer(tmp_path / "run", domain=domain, reward="likelihood")
    assert not (tmp_path / "run").exists()
    halving_trainer(tmp_path / "run", domain=domain)


@pytest.mark.parametrize("gold", [lambda example: [[example["solution"]]], lambda example: [[7]] * 3])
def test_gold_answers_that_are_no_texts_are_named(tmp_path, gold):
    class OwnGold(KnowledgeDomain):
        def gold_answers(self, example):
            return gold(example)

    with pytest.raises(ValueError, match="^train_dataset: example 0 has (no 'solution'|3 questions, but not a gold)"):
        halving_trainer(tmp_path / "run", domain=OwnGold("{context}", chat=False), reward="likelihood")


@pytest.mark.parametrize("num_banks", range(1, 9))
def test_a_run_that_was_ended_after_any_bank_goes_on(one, tmp_path, num_banks):
    options = {"reward": one.trainer.args.reward}
    # Evaluation before the round: two banks.
    assert one.num_banks == 2 + (3 + 1) + 2 + 2 + 1
    ended = Recorder()
    halving_trainer(tmp_path, callbacks=[ended, Act("on_substep_end", 2 + num_banks, stop)], **options).train()
    assert ended.count("substep_end") == 2 + num_banks
    left = Recorder()
    halving_trainer(tmp_path, callbacks=[left], **options).train(resume_from_checkpoint=True)
    assert left.count("substep_end") == one.num_banks - 2 - num_banks
    assert records(tmp_path) == one.records


def test_the_size_of_the_banks_is_chosen_once(tmp_path, monkeypatch):
    def free(num_bytes):
        return lambda: SimpleNamespace(available=num_bytes)

    options = {"adapters_per_batch": None, "num_eval": 0}
    monkeypatch.setattr(psutil, "virtual_memory", free(1_800_000))
    expected = finished_run(tmp_path / "unbroken", **options)
    first = Counter(proposal.banks[0] for proposal in expected.proposals)
    assert 2 <= max(first.values()) <= 6
    for number in range(1, len(first) + 3):
        folder = tmp_path / str(number)
        monkeypatch.setattr(psutil, "virtual_memory", free(1_800_000))
        halving_trainer(folder, callbacks=[Act("on_substep_end", number, stop)], **options).train()
        monkeypatch.setattr(psutil, "virtual_memory", free(10**12))
        left = Recorder()
        halving_trainer(folder, callbacks=[left], **options).train(resume_from_checkpoint=True)
        assert left.count("substep_end") == expected.num_banks - number
        assert records(folder) == expected.records


def test_a_bank_that_is_not_the_one_asked_for_is_run_again(halving, tmp_path):
    halving_trainer(tmp_path, callbacks=[Act("on_substep_end", 2 + 5, stop)]).train()
    folder = tmp_path / "journal" / "round_000"
    names = sorted(file.name for file in folder.iterdir())
    (folder / names[0]).write_bytes((folder / names[-1]).read_bytes())
    left = Recorder()
    halving_trainer(tmp_path, callbacks=[left]).train(resume_from_checkpoint=True)
    assert left.count("substep_end") == halving.num_banks - 2 - 5 + 1
    assert records(tmp_path) == halving.records


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Of each option, an unbroken run in a process of its own."""
    found = {}
    for options in (HALVING, LIKELIHOOD):
        folder = tmp_path_factory.mktemp("unbroken")
        code = in_child(folder / "log", run, folder / "run", record=folder / "record", options=options)
        assert code == 0, (folder / "log").read_text()
        trials = noted_trials(folder / "record")
        found[options.get("reward", "accuracy")] = SimpleNamespace(trials=trials, results=results(folder / "run"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "num_banks"), [(HALVING, 6), (HALVING, 7), (HALVING, 8), (LIKELIHOOD, 6), (LIKELIHOOD, 9)]
)
def test_a_run_that_was_killed_in_a_later_repeat_goes_on(unbroken, tmp_path, options, num_banks):
    expected = unbroken[options.get("reward", "accuracy")]
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    killed = in_child(log, run, output_dir, die_after_banks=num_banks, options=options)
    assert killed == -signal.SIGKILL, log.read_text()
    missing = unscored(output_dir, expected.trials)
    assert 0 < len(missing) < len(expected.trials)
    assert in_child(log, run, output_dir, resume=True, record=record, options=options) == 0, log.read_text()
    assert noted_trials(record) == missing
    assert results(output_dir) == expected.results


@pytest.mark.slow
@pytest.mark.parametrize("options", [HALVING, LIKELIHOOD], ids=["halving", "likelihood"])
def test_two_processes_come_to_what_one_comes_to(unbroken, tmp_path, options):
    expected = unbroken[options.get("reward", "accuracy")]
    output_dir, record = tmp_path / "run", tmp_path / "record"
    done = launch(TORCHRUN, output_dir, "--record", record, "--options", json.dumps(options))
    assert done.returncode == 0, done.stderr
    assert_shared(record)
    assert sorted(noted_trials(record)) == sorted(expected.trials)
    assert_same_results(output_dir, expected.results)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(unbroken, tmp_path):
    expected = unbroken["accuracy"]
    output_dir, record, log = tmp_path / "run", tmp_path / "record", tmp_path / "log"
    options = ("--options", json.dumps(HALVING), "--die_rank", 1, "--die_after_banks", 4)
    assert launch(TORCHRUN, output_dir, "--record", record, *options).returncode != 0
    missing = unscored(output_dir, expected.trials)
    assert 0 < len(missing) < len(expected.trials)
    resumed = tmp_path / "resumed"
    assert in_child(log, run, output_dir, resume=True, record=resumed, options=HALVING) == 0, log.read_text()
    assert sorted(noted_trials(resumed)) == sorted(missing)
    assert_same_results(output_dir, expected.results)


def test_what_is_said_of_likelihoods_is_true(likelihood, halving, monkeypatch):
    table = results_table(likelihood.folder)
    assert "Rewards are the mean log-likelihood of the gold answers, in nats per token." in table
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    rewards = [edit.reward for edit in likelihood.scored]
    best = fmean(edit.reward for edit in likelihood.selected)
    assert cells[:4] == ["1", "12", "12", "3"]
    assert cells[4:6] == [f"{fmean(rewards):.3f}", f"{best:.3f}"]
    assert float(cells[6]) == pytest.approx(fmean(edit.base_reward for edit in likelihood.scored), abs=5e-4)
    assert "%" not in table.split("Evaluation on")[0] and "%" in table.split("Evaluation on")[1]
    assert "nats" not in results_table(halving.folder)
    likelihood.trainer.create_model_card("likelihood")
    card = (likelihood.folder / "README.md").read_text()
    assert "- reward: likelihood\n" in card and "- repeat_schedule: halving\n" in card and table.strip() in card
    (likelihood.folder / "README.md").unlink()


def test_the_picture_of_likelihoods_has_no_percents(likelihood, monkeypatch):
    from matplotlib.figure import Figure

    texts = []
    savefig = Figure.savefig

    def looked_at(figure, *args, **kwargs):
        figure.canvas.draw()
        axes = figure.axes[0]
        texts.append([axes.get_title(loc="left")] + [label.get_text() for label in axes.get_yticklabels()])
        texts.append([text.get_text() for text in axes.texts])
        texts.append(axes.get_ylim())
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", looked_at)
    save_plot(likelihood.folder).unlink()
    labels, names, (low, high) = texts
    assert labels[0] == "Log-likelihood of gold answers, nats per token"
    assert not any("%" in text for text in labels + names)
    rewards = [edit.reward for edit in likelihood.scored]
    assert low < min(rewards) <= max(rewards) < high < 0.5
    assert f"best of 4: {fmean(edit.reward for edit in likelihood.selected):.3f}" in names
