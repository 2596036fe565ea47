"""Two passages with two stored self-edits each, a tiny model, and what a protocol does with them by hand."""

from dataclasses import replace

import pytest
from peft import LoraConfig

from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.grading import gold_answers
from seal_hf.inner_loop.update import InnerUpdate, tokenize_self_edit
from seal_hf.records.journal import Journal
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig
from seal_hf.self_edit import SelfEdit


EXAMPLES = [
    {"title": "Bees", "context": "Ann keeps bees.", "questions": [{"question": "Who?", "answer": "a"}]},
    {
        "title": "Owls",
        "context": "Bob has owls.",
        "questions": [{"question": "What owls?", "answer": "e"}, {"question": "Where?", "answer": "o"}],
    },
]
ROWS = [{"context": one["context"], "completions": [f"{one['title']}.", f"Of {one['title']}."]} for one in EXAMPLES]
CONFIG = RolloutConfig(max_completion_length=8, max_answer_length=6, adapters_per_bank=4, disable_tqdm=True)
OPTIONS = {"config": CONFIG, "self_edits": ROWS, "num_generations": 2}


class Contains:
    def grade(self, questions, golds, answers):
        return [any(one in answer for one in gold_answers(gold)) for gold, answer in zip(golds, answers, strict=True)]


class Domain(KnowledgeDomain):
    """Without what is asked besides, which takes time."""

    def retention_example(self):
        return None

    def recitation_prompt(self, example):
        return None


def tiny_lm(model=None):
    return SelfAdaptingLM(
        model or tiny_llama(initializer_range=0.3),
        tiny_tokenizer(),
        domain=Domain("rewrite", grader=Contains()),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        inner_config=InnerLoopConfig(learning_rate=5e-2, num_train_epochs=2),
    )


def answers(lm, place, adapter=None):
    prompts = lm.domain.questions(EXAMPLES[place])
    return lm.answer_prompts(prompts, [adapter] * len(prompts), max_answer_length=6)


def update_of(lm, *self_edits):
    """All that these self-edits train on, as one update."""
    updates = [tokenize_self_edit(one, lm.processing_class, lm.inner_config) for one in self_edits]
    return InnerUpdate(tuple(one for update in updates for one in update.sequences), lm.inner_config)


def stored(lm, place) -> list[SelfEdit]:
    return [lm.domain.parse(text, EXAMPLES[place]) for text in ROWS[place]["completions"]]


def scored(folder):
    """The journal by condition, example and self-edit, without what depends on the clock or is rounding."""
    records = Journal(folder / "evaluation").scored(0)
    for one in records:
        for repeat in one.repeats:
            repeat["kl"] = repeat["kl"] and round(repeat["kl"], 4)
    return {(one.condition, one.example, one.edit): replace(one, seconds=0.0) for one in records}


def interrupted_after(number, monkeypatch, call):
    """Let a call end with an interrupt after so many banks; without it where it has no more."""
    run_bank, done = Rollout._run_bank, []

    def counted(self, *args):
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(1)
        return run_bank(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "_run_bank", counted)
        with pytest.raises(KeyboardInterrupt):
            call()
