"""A small outer loop on a tiny random model, run in this process or as a command for tests that kill or share it."""

import hashlib

from peft import LoraConfig
from tiny_models import tiny_llama, tiny_tokenizer

from seal_hf import SEALConfig, SEALTrainer
from seal_hf.domains import KnowledgeDomain


class HashGrader:
    """Verdicts that depend on every character of an answer, so that a random model's rewards differ."""

    def grade(self, questions, golds, answers):
        return [hashlib.sha256(answer.encode()).digest()[0] % 2 == 0 for answer in answers]


def tiny_examples(number: int, first: int = 0) -> list[dict]:
    return [
        {
            "title": f"T{i}",
            "context": f"The {i} cats sat {'very ' * (i % 3)}still.",
            "questions": [{"question": f"What {j}?", "answer": "cats"} for j in range(3)],
        }
        for i in range(first, first + number)
    ]


def tiny_config(output_dir, **overrides) -> SEALConfig:
    options = {
        "num_generations": 3,
        "temperature": 1.5,
        "max_completion_length": 12,
        "inner_num_train_epochs": 2,
        "inner_lora_r": 2,
        "inner_target_modules": ["all-linear"],
        "inner_learning_rate": 1e-2,
        "adapters_per_batch": 4,
        "num_evaluations": 2,
        "max_answer_length": 6,
        "learning_rate": 1e-2,
        "sft_batch_size": 2,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": [],
        "seed": 3,
    }
    return SEALConfig(str(output_dir), **{**options, **overrides})


def tiny_trainer(output_dir, *, model=None, domain=None, num_train=4, num_eval=3, callbacks=None, **overrides):
    domain = domain or KnowledgeDomain("{title}: {context}", grader=HashGrader(), chat=False)
    return SEALTrainer(
        model=model or tiny_llama(),
        args=tiny_config(output_dir, **overrides),
        domain=domain,
        train_dataset=tiny_examples(num_train),
        eval_dataset=tiny_examples(num_eval, first=100) if num_eval else None,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        callbacks=callbacks,
    )
