"""What is really done, to compare with a plan."""

import pytest

from seal_hf import SelfAdaptingLM
from seal_hf.generation.base import TextGenerator
from seal_hf.rollout.planning import Counts


def count_work(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts to which all work is added from now on: prompts, adapters and what they train on."""
    counts = Counts()
    adapt, finetune, answer_groups = SelfAdaptingLM.adapt, SelfAdaptingLM.finetune, SelfAdaptingLM.answer_groups
    sample = TextGenerator.sample

    def counted_adapt(self, *args, **options):
        adapters = adapt(self, *args, **options)
        counts.adapters += len(adapters)
        counts.tokens += sum(adapter.training["num_tokens"] for adapter in adapters)
        counts.adapters_per_bank = max(counts.adapters_per_bank, len(adapters))
        return adapters

    def counted_finetune(self, *args, **options):
        finetuned, training = finetune(self, *args, **options)
        counts.adapters, counts.tokens = counts.adapters + 1, counts.tokens + training["num_tokens"]
        counts.adapters_per_bank = 1
        return finetuned, training

    def counted_answers(self, groups, *args, **options):
        counts.prompts_to_answer += sum(map(len, groups))
        return answer_groups(self, groups, *args, **options)

    def counted_sample(self, prompts, *args, **options):
        counts.prompts_to_write += len(prompts)
        return sample(self, prompts, *args, **options)

    monkeypatch.setattr(SelfAdaptingLM, "adapt", counted_adapt)
    monkeypatch.setattr(SelfAdaptingLM, "finetune", counted_finetune)
    monkeypatch.setattr(SelfAdaptingLM, "answer_groups", counted_answers)
    monkeypatch.setattr(TextGenerator, "sample", counted_sample)
    return counts
