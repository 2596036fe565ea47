"""SEALTrainer's rounds on tiny random models: what it learns, logs, evaluates and calls."""

import re
from statistics import fmean, pstdev

import pytest
import torch

from helpers.observing import equal, policy_of, read, records, saved_policy
from helpers.outer_loop import HashGrader, tiny_examples, tiny_trainer
from helpers.tiny_models import EOS_ID, tiny_tokenizer
from seal_hf.domains.base import SELF_EDITS
from seal_hf.domains.knowledge.domain import PASSAGE_ONLY
from seal_hf.models.access import carries_policy


pytestmark = pytest.mark.usefixtures("without_pictures")


def test_steps_grow_over_the_rounds(run):
    steps = [entry["step"] for entry in run.log]
    # Evaluation; then per round one step of scoring, four of SFT (4 self-edits, 2 a step, 2 epochs), an evaluation.
    assert steps == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert [entry["round"] for entry in run.log] == [0, *[1] * 6, *[2] * 6]
    assert run.trainer.state.max_steps == 10 and run.output.global_step == 10
    scoring = [entry["step"] for entry in run.log if "reward" in entry]
    assert scoring == [1, 6]


@pytest.mark.parametrize("round_index", [0, 1])
def test_logged_rewards_are_those_of_the_journal(run, round_index):
    logged = next(entry for entry in run.log if "reward" in entry and entry["round"] == round_index + 1)
    edits = read(run.folder / "journal" / f"round_{round_index:03d}.jsonl")
    kept = read(run.folder / "selected" / f"round_{round_index:03d}.jsonl")
    assert len(edits) == 12 and len(kept) == 4

    rewards, by_repeat = {}, {}
    for edit in edits:
        assert len(edit["repeats"]) == 2
        by_repeat.setdefault(edit["example_id"], []).append([repeat["reward"] for repeat in edit["repeats"]])
        own = fmean(fmean(repeat["verdicts"]) for repeat in edit["repeats"])
        assert all(
            repeat["verdicts"] == HashGrader().grade(None, None, repeat["answers"]) for repeat in edit["repeats"]
        )
        assert edit["reward"] == pytest.approx(own)
        rewards.setdefault(edit["example_id"], []).append(own)
    everything = [reward for own in rewards.values() for reward in own]
    assert len(set(everything)) > 2  # rewards that differ, or this would say little
    seconds = sum(edit["seconds"] for edit in edits)
    expected = {
        "reward": fmean(everything),
        "reward_std": fmean(pstdev(own) for own in rewards.values()),
        "frac_reward_zero_std": fmean(len({round(one, 9) for one in own}) == 1 for own in rewards.values()),
        # one repeat chooses, the other scores
        "reward/best": fmean(
            max(own, key=lambda edit: edit[chooser])[1 - chooser] for own in by_repeat.values() for chooser in (0, 1)
        ),
        "completions/mean_length": fmean(edit["completion_tokens"] for edit in edits),
        "completions/clipped_ratio": fmean(EOS_ID not in edit["completion_ids"] for edit in edits),
        "completions/min_length": min(edit["completion_tokens"] for edit in edits),
        "completions/max_length": max(edit["completion_tokens"] for edit in edits),
        "self_edits/valid_ratio": fmean(edit["well_formed"] for edit in edits),
        "self_edits/kept_ratio": 4 / 12,
        "inner/loss": fmean(repeat["loss"] for edit in edits for repeat in edit["repeats"]),
        "inner/gain": fmean(edit["reward"] - edit["base_reward"] for edit in edits),
        "inner/tokens_per_second": sum(edit["tokens"] for edit in edits) / seconds,
        "num_examples": 4,
    }
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert set(logged) == {*expected, "round", "step", "epoch", *(f"self_edits/distinct_{n}" for n in (1, 2, 3))}

    best = {example: max(own) for example, own in rewards.items()}
    assert {edit["example_id"]: edit["reward"] for edit in kept} == pytest.approx(best)


def test_train_returns_the_last_round_and_the_mean_loss(run):
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert run.output.training_loss == pytest.approx(fmean(losses))
    assert run.output.metrics == next(entry for entry in run.log if "reward" in entry and entry["round"] == 2)


def test_learning_rate_starts_afresh_in_every_round(run):
    for number in (1, 2):
        fits = [entry for entry in run.log if "loss" in entry and entry["round"] == number]
        assert [entry["learning_rate"] for entry in fits] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
        assert all(set(entry) == {"round", "step", "epoch", "loss", "grad_norm", "learning_rate"} for entry in fits)
        assert all(entry["grad_norm"] > 0 for entry in fits)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_logged_accuracies_are_those_of_the_journal(run, number):
    logged = next(entry for entry in run.log if "eval_self_edits_accuracy" in entry and entry["round"] == number)

    def repeats(which, condition):
        edits = read(run.folder / "evaluation" / "journal" / f"round_{which:03d}.jsonl")
        own = [edit["repeats"][0] for edit in edits if edit["condition"] == condition]
        assert len(own) == 3
        return own

    def accuracy(which, condition):
        return fmean(fmean(repeat["verdicts"]) for repeat in repeats(which, condition))

    def strict(which, condition):
        return fmean(fmean(map(min, one["verdicts"], one["short"])) for one in repeats(which, condition))

    own, own_strict = (of(number, "self-edits") for of in (accuracy, strict))
    expected = {
        "eval_self_edits_strict_accuracy": own_strict,
        "eval_self_edits_accuracy": own,
        "eval_num_passages": 3,
        "eval_num_questions": 9,
    }
    for condition in ("base", "passage in context", "passage only"):
        is_trained = condition == "passage only"  # and so measured with every policy
        name, baseline = condition.replace(" ", "_"), accuracy(number if is_trained else 0, condition)
        strict_baseline = strict(number if is_trained else 0, condition)
        expected[f"eval_gain_over_{name}"] = own - baseline
        expected[f"eval_strict_gain_over_{name}"] = own_strict - strict_baseline
        if number == 0 or is_trained:
            expected |= {f"eval_{name}_accuracy": baseline, f"eval_{name}_strict_accuracy": strict_baseline}
            expected[f"eval_{name}_recited"] = fmean(fmean(one["recited"]) for one in repeats(number, condition))
    for condition in ("base", "passage only", "self-edits")[number > 0 :]:
        name, found = re.sub("[ -]", "_", condition), repeats(number, condition)
        expected[f"eval_{name}_recitation"] = fmean(fmean(one["recitation"]["verdicts"]) for one in found)
        expected[f"eval_{name}_recited"] = fmean(fmean(one["recited"]) for one in found)
        asked = [one["retention"]["verdicts"] for one in found if one["retention"]]
        assert [len(verdicts) for verdicts in asked] == [20] * (1 if condition == "base" else 3)
        expected[f"eval_{name}_retention"] = fmean(map(fmean, asked))
    for earlier in {0, number - 1} if number else ():
        expected[f"eval_gain_over_round_{earlier}"] = own - accuracy(earlier, "self-edits")
        expected[f"eval_strict_gain_over_round_{earlier}"] = own_strict - strict(earlier, "self-edits")
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    estimates = [name for name in expected if "_num_" not in name]
    intervals = {f"{name}_{end}" for name in estimates for end in ("low", "high")}
    # The passages have as many questions each, so that both means are the same.
    per_question = {
        f"{name}_per_question": expected[name] for name in expected if re.search("(?<!strict)_accuracy$", name)
    }
    assert {name: logged[name] for name in per_question} == pytest.approx(per_question)
    edits = read(run.folder / "evaluation" / "journal" / f"round_{number:03d}.jsonl")
    training = {
        f"eval_{re.sub('[ -]', '_', name)}_tokens": fmean(one["tokens"] for one in edits if one["condition"] == name)
        for name in ("passage only", "self-edits")
    }
    for name in ("passage only", "self-edits"):
        training[f"eval_{re.sub('[ -]', '_', name)}_kl"] = fmean(one["kl"] for one in repeats(number, name))
    assert {name: logged[name] for name in training} == pytest.approx(training)
    assert set(logged) == {*expected, *intervals, *per_question, *training, "round", "step", "epoch"}
    assert all(logged[f"{name}_low"] <= logged[name] <= logged[f"{name}_high"] for name in estimates)
    assert run.metrics[number] == {name: value for name, value in logged.items() if name.startswith("eval_")}


def test_policy_goes_on_from_round_to_round(run):
    (start, after_first), (before_second, end) = run.fits
    assert all((value == 0).all() == ("lora_B" in name) for name, value in start.items())
    assert equal(start, {name: run.start[name] for name in start})
    assert equal(before_second, after_first)
    assert equal(end, policy_of(run.trainer.model))
    for one, other in ((start, after_first), (after_first, end)):
        assert not any(torch.equal(one[name], other[name]) for name in one)
    assert equal(saved_policy(run.folder / "policy" / "round_000"), after_first)
    assert equal(saved_policy(run.folder / "policy" / "round_001"), end)


@pytest.mark.parametrize("student", ["policy", "base"])
def test_the_student_is_the_policy_or_the_base(tmp_path, student):
    trainer = tiny_trainer(tmp_path, num_train=2, num_eval=2, num_generations=2, num_repeats=1, student=student)
    trainer.train()
    assert carries_policy(trainer.model)
    answers = [
        {
            (row["example"], row["condition"]): row["repeats"][0]["answers"]
            for row in read(tmp_path / "evaluation" / "journal" / f"round_{index:03d}.jsonl")
            if row["condition"] in (PASSAGE_ONLY, SELF_EDITS)
        }
        for index in (0, 2)
    ]
    own = [{key: found for key, found in rows.items() if key[1] == PASSAGE_ONLY} for rows in answers]
    # What is learned from the passage alone depends on the student; what the policy writes has changed in any case.
    assert len(own[0]) == 2 and (own[0] == own[1]) == (student == "base")
    assert answers[0] != answers[1]


def test_base_is_never_changed(run):
    after = dict(run.trainer.model.named_parameters())
    base = [name for name in run.start if "lora_" not in name]
    assert len(base) > 15
    assert all(torch.equal(after[name], run.start[name]) for name in base)
    trainable = {name for name, value in after.items() if value.requires_grad}
    assert trainable == {name for name in run.start if "lora_" in name}


@pytest.mark.parametrize(("which", "dtype"), [("run", torch.float32), ("bf16_run", torch.bfloat16)])
def test_forward_pass_is_the_same_after_every_round(which, dtype, request):
    own = request.getfixturevalue(which)
    (logits, with_policy, without), *later = own.passes
    assert len(later) == (5 if which == "run" else 2)  # two saves, and evaluations where there are some
    assert logits.dtype == dtype and with_policy > without > 50
    for logits_later, *operations in later:
        assert logits_later.dtype == dtype
        assert torch.equal(logits_later, logits)
        assert operations == [with_policy, without]


def sampled(folder, round_index):
    """The token ids of a round's kept self-edits with their prompts, as they were sampled."""
    kept = [
        (edit["example_id"], edit["edit"]) for edit in read(folder / "selected" / f"round_{round_index:03d}.jsonl")
    ]
    proposals = read(folder / "proposals" / f"round_{round_index:03d}.jsonl")
    return sorted(
        (*tiny_tokenizer()(edit["prompt"])["input_ids"], *edit["completion_ids"])
        for edit in proposals
        if (edit["example_id"], edit["edit"]) in kept
    )


def test_sft_sees_the_self_edits_of_the_round(run):
    for index, rows in enumerate(run.rows):
        assert rows == sampled(run.folder, index)
    assert run.rows[0] != run.rows[1]


def test_sft_sees_the_self_edits_of_all_rounds(bf16_run):
    first, second = (sampled(bf16_run.folder, index) for index in range(2))
    assert len(first) == len(second) == 2
    assert bf16_run.rows == [first, sorted(first + second)]
    # 1 step of scoring and 2 of SFT; then 1 and 4.
    assert bf16_run.trainer.state.global_step == 8


def test_callbacks_see_every_bank_step_save_and_evaluation(run):
    def banks(number, step):
        return [("substep_end", step)] * number

    # Banks of 4. First evaluation: 3 self-edits and 3 passages, and one bank without adapters; later ones without the last.
    # A round: 4 examples x 3 self-edits x 2 repeats, and one bank without adapters.
    expected = [("train_begin", 0), *banks(3, 0), ("evaluate", 0)]
    for first in (0, 5):
        expected += [("epoch_begin", first), *banks(7, first)]
        expected += [("step_end", first + i) for i in range(1, 6)]
        expected += [("save", first + 5), ("epoch_end", first + 5), *banks(2, first + 5), ("evaluate", first + 5)]
    assert run.events == [*expected, ("train_end", 10)]


def test_run_without_evaluation_set(bf16_run):
    assert {name for name, _ in bf16_run.events}.isdisjoint({"evaluate"})
    assert not (bf16_run.folder / "evaluation").exists()
    with pytest.raises(ValueError, match="nothing to evaluate on; give eval_dataset"):
        bf16_run.trainer.evaluate()


def test_evaluate_gives_what_was_logged(run):
    banks, folder = run.recorder.count("substep_end"), records(run.folder)
    values = run.trainer.evaluate()
    assert values == run.metrics[-1]
    assert run.recorder.metrics[-1] == values
    assert run.recorder.count("substep_end") == banks  # it is on disk
    assert records(run.folder) == folder
    renamed = run.trainer.evaluate(metric_key_prefix="validation")
    assert renamed == {name.replace("eval_", "validation_", 1): value for name, value in values.items()}


def test_evaluate_on_other_examples_leaves_the_run_alone(run):
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    policy = policy_of(run.trainer.model)
    values = run.trainer.evaluate(tiny_examples(2, first=50), metric_key_prefix="test")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert equal(policy_of(run.trainer.model), policy)
    conditions = ("base", "passage_in_context", "passage_only", "self_edits")
    assert {name for name in values if name.endswith("accuracy")} == {
        f"test_{name}_{kind}" for name in conditions for kind in ("accuracy", "strict_accuracy")
    }
    assert values["test_num_passages"] == 2 and values["test_num_questions"] == 6
    assert run.trainer.state.log_history[-1].items() >= values.items()
    assert run.trainer.evaluate(tiny_examples(2, first=50), metric_key_prefix="test") == values
