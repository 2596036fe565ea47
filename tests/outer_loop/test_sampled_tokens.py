"""The outer SFT trains on the very tokens that were sampled, for prompts with every kind of ending in both forms."""

import pytest
from transformers import AutoTokenizer

from helpers.observing import observed, read
from helpers.outer_loop import HashGrader, tiny_config, tiny_examples
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SEALTrainer
from seal_hf.domains import KnowledgeDomain
from seal_hf.generation.transformers_generation import TransformersGenerator
from seal_hf.models.chat_template import with_fixed_template
from seal_hf.models.encoding import encode_prompt


pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def tokenizer(embedded_path):
    return AutoTokenizer.from_pretrained(embedded_path)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("style", ["implications", "rewrite", "self-qa", "questions", "questions-by-fact", "none"])
def test_sampled_and_trained_tokens_are_equal(tokenizer, style, chat, tmp_path, monkeypatch):
    model = tiny_llama(vocab_size=len(tokenizer))
    end_ids = set(range(0, len(tokenizer), 5))  # so that a random model ends some of its texts, and not all
    model.generation_config.eos_token_id = sorted(end_ids)
    options = {"num_rounds": 1, "num_generations": 6, "max_completion_length": 5, "inner_num_train_epochs": 1}
    trainer = SEALTrainer(
        model=model,
        args=tiny_config(tmp_path, num_repeats=1, keep_best=None, adapters_per_bank=12, **options),
        # A random model writes no questions.
        domain=KnowledgeDomain(style, grader=HashGrader(), chat=chat, answers_questions=False),
        train_dataset=tiny_examples(2),
        processing_class=tokenizer,
    )
    sampled, write = {}, TransformersGenerator._write

    def noted(self, prompts, adapters, stacked, sampling, pad_id, writing, batch):
        yield from write(self, prompts, adapters, stacked, sampling, pad_id, writing, batch)
        if sampling is not None:
            texts = writing.finish()
            sampled.update({(*prompts[place], *texts[place].token_ids): texts[place] for place in batch})

    monkeypatch.setattr(TransformersGenerator, "_write", noted)
    _, (rows,), _ = observed(trainer)
    kept = {edit["completion"] for edit in read(tmp_path / "selected" / "round_000.jsonl")}
    assert rows == sorted(ids for ids, one in sampled.items() if one.text in kept)
    assert len(rows) >= 4
    for ids, one in sampled.items():
        assert [token in end_ids for token in one.token_ids] == [False] * (one.num_tokens - 1) + [one.finished]
        assert ids[-1] == one.token_ids[-1]
    assert {one.finished for one in sampled.values()} == {True, False}
    proposals = read(tmp_path / "proposals" / "round_000.jsonl")
    assert {(one["completion"], one["finished"], *one["completion_ids"]) for one in proposals} == {
        (one.text, one.finished, *one.token_ids) for one in sampled.values()
    }


def test_arguments_of_the_template_are_in_what_is_sampled_and_trained(tmp_path):
    tokenizer, arguments = tiny_tokenizer(), {"enable_thinking": False}
    tokenizer.chat_template = "{{ messages[0]['content'] }}[assistant] {% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    options = {
        "num_rounds": 1,
        "num_generations": 2,
        "inner_num_train_epochs": 1,
        "max_completion_length": 5,
        "num_train_epochs": 1,
        "min_reward": 0.0,
    }
    domain = KnowledgeDomain("rewrite", grader=HashGrader(), chat=True)
    trainer = SEALTrainer(
        model=tiny_llama(),
        args=tiny_config(tmp_path, num_repeats=1, keep_best=None, chat_template_kwargs=arguments, **options),
        domain=domain,
        train_dataset=tiny_examples(1),
        processing_class=tokenizer,
    )
    _, (rows,), _ = observed(trainer)
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    sampled_from = with_fixed_template(tokenizer, arguments)
    selected = [(edit["prompt"], edit["completion_ids"]) for edit in read(tmp_path / "selected" / "round_000.jsonl")]
    assert rows == sorted((*encode_prompt(sampled_from, prompt), *ids) for prompt, ids in selected) != []
    assert all("[assistant] " in tokenizer.decode(row) and "<think>" not in tokenizer.decode(row) for row in rows)
