"""Training runs of the app that are written by hand, as `trainers/knowledge.py` leaves them."""

import json
from dataclasses import asdict, replace

import torch

from helpers.adapters import random_adapter
from helpers.reported_runs import EVALUATIONS, write_evaluations
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import SELF_EDITS
from seal_hf.records.journal import Journal, Proposal, ScoredSelfEdit, SelectedSelfEdit
from seal_hf.self_edit import TrainingExample
from seal_hf.webui.work import inputs
from seal_hf.webui.work.settings import TrainingSettings
from seal_hf.webui.work.training_records import CONFIG_NAME, dataset_of, read_config


SETTINGS = TrainingSettings(num_train_passages=2, num_rounds=2, num_generations=2)


def write_finished_run(runs, owner, lm, *, num_policies=2, settings=SETTINGS, **config):
    """
    A run of a session in which two self-edits were written about one passage in each round, and the second was kept.

    Args:
        runs ([`TrainingRuns`]):
            Where the run is to be found.
        owner (`str`):
            The session.
        lm ([`SelfAdaptingLM`]):
            The model, for which each policy has random weights of its own.
        num_policies (`int`, *optional*, defaults to `2`):
            The number of rounds that have ended.
        settings ([`TrainingSettings`], *optional*):
            The settings of the run.
        config (`object`):
            Other entries of its YAML file.

    Returns:
        `Path`: the folder of the run.
    """
    folder = runs.folders.make(owner)
    text = settings.config(lm.base_model_id, str(folder / "run"))
    (folder / CONFIG_NAME).write_text(
        text + "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    )
    passages = inputs.training_passages(*dataset_of(read_config(folder)))
    journal = Journal(folder / "run")
    for round_index in range(settings.num_rounds):
        proposals = [_proposal(round_index, edit, passages[round_index]) for edit in range(2)]
        journal.write_proposals(round_index, proposals)
        fields = [
            {name: value for name, value in asdict(one).items() if name in ScoredSelfEdit.__annotations__}
            for one in proposals
        ]
        scored = [
            ScoredSelfEdit(**one, repeats=[], reward=(1 + edit) / 4, base_reward=0.0, seconds=1.0)
            for edit, one in enumerate(fields)
        ]
        journal.write_scored(round_index, scored)
        kept = scored[1]
        journal.write_selected(
            round_index, [SelectedSelfEdit(kept.prompt, kept.completion, kept.example_id, kept.edit, kept.reward)]
        )
    write_evaluations(folder / "run", EVALUATIONS[: num_policies + 1])
    for round_index in range(num_policies):
        policy = random_adapter(lm.model, seed=round_index, target_modules="all-linear")
        policy = replace(
            policy, base_model_id=lm.base_model_id, device_weights=5 * policy.device_weights.to(torch.float32)
        )
        policy.save_pretrained(folder / "run" / "policy" / f"round_{round_index:03d}")
        if round_index == settings.num_rounds - 1:
            policy.save_pretrained(folder / "run")
    return folder


def _proposal(round_index, edit, passage):
    domain = KnowledgeDomain("questions-by-fact", chat=False, training_format="prompt_completion")
    pairs = [(f"Which is number {number}?", f"answer {edit}.{number}") for number in range(1, 3 + 12 * edit)]
    (known,) = domain.passage_only(passage).examples
    prompts = domain.ask([question for question, _ in pairs], passage["title"])
    examples = [TrainingExample(prompt, answer) for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    return Proposal(
        round=round_index,
        condition=SELF_EDITS,
        example=round_index,
        example_id=str(round_index),
        edit=edit,
        prompt=domain.prompt(passage),
        completion="\n".join(question for question, _ in pairs),
        completion_tokens=9,
        well_formed=True,
        tokens=30,
        banks=[0],
        tool_examples=[asdict(one) for one in (known, *examples)],
    )
