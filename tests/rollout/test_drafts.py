"""Self-edits of several drafts about several parts: what is joined, what was cut off, and what the policy is shown of it."""

from dataclasses import replace

import pytest
from peft import LoraConfig

from helpers.outer_loop import HashGrader, tiny_examples
from helpers.tiny_models import EOS_ID, tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.knowledge.rivals import SPA_PROMPTS, ActiveReadingDomain, EntiGraphDomain, SPADomain
from seal_hf.generation.parts import split_parts
from seal_hf.outer_loop.selection import demonstrations
from seal_hf.records.journal import Journal
from seal_hf.records.schema import SelectedSelfEdit
from seal_hf.rollout.examples import ExampleSet
from seal_hf.rollout.processes import Processes
from seal_hf.rollout.rollout import Rollout
from seal_hf.rollout.stage import RolloutConfig, Stage
from seal_hf.self_edit import SelfEdit


LENGTH, NUM_PARTS = 25, len(SPA_PROMPTS)
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_completion_length": LENGTH, "seed": 1}


@pytest.fixture(scope="module")
def lm():
    # A random model ends some of its texts, and not all.
    model = tiny_llama()
    model.generation_config.eos_token_id = [EOS_ID, *range(10, 18)]
    domain = SPADomain(grader=HashGrader(), chat=False)
    return SelfAdaptingLM(model, tiny_tokenizer(), domain=domain, peft_config=LoraConfig(r=2))


def proposed(lm, folder, num_drafts, num_generations=1):
    config = RolloutConfig(
        num_drafts=num_drafts,
        adapters_per_bank=8,
        disable_tqdm=True,
        max_completion_length=LENGTH,
    )
    stage = Stage(
        "s", Journal(folder), 0, ExampleSet.of(tiny_examples(2), "data"), 1, (5,), num_generations, baselines=()
    )
    return Rollout(lm, config, Processes(folder)).propose(stage)


def drafts_of(lm, number):
    return lm.write_batch(tiny_examples(2), number, **SAMPLING)


@pytest.mark.parametrize("num_drafts", [1, 2])
def test_all_texts_of_all_drafts_are_in_a_self_edit(lm, tmp_path, num_drafts):
    proposals, drafts = proposed(lm, tmp_path, num_drafts), drafts_of(lm, num_drafts)
    cut = []
    for one, own in zip(proposals, drafts, strict=True):
        texts = split_parts(one.completion)
        assert texts == [text for draft in own for text in split_parts(draft.text)]
        assert len(texts) == num_drafts * NUM_PARTS
        trained = lm.domain.parse(one.completion, tiny_examples(2)[one.example]).examples
        assert len(trained) == sum(map(bool, texts)) + 1  # with the passage
        cut += [
            number * NUM_PARTS + place in (one.unfinished_parts or ())
            for number in range(num_drafts)
            for place in range(NUM_PARTS)
        ]
        assert one.finished == (not one.unfinished_parts) == all(draft.finished for draft in own)
        assert (one.completion_ids[-1] == EOS_ID) == one.finished
    assert 0 < sum(cut) < len(cut)


@pytest.mark.parametrize("num_drafts", [1, 2])
def test_the_policy_is_shown_every_text_and_no_end_of_one_that_was_cut_off(lm, tmp_path, num_drafts):
    examples = dict(zip("01", tiny_examples(2), strict=True))
    proposals = proposed(lm, tmp_path, num_drafts)
    selected = [
        SelectedSelfEdit(one.prompt, one.completion, one.example_id, 0, 1.0, one.completion_ids, one.unfinished_parts)
        for one in proposals
    ]
    expected = []
    for one in proposals:
        for place, text in enumerate(split_parts(one.completion)):
            part = lm.domain.parts(examples[one.example_id])[place % NUM_PARTS]
            ids = lm.processing_class(text, add_special_tokens=False)["input_ids"]
            ids += [] if place in (one.unfinished_parts or ()) else [EOS_ID]
            expected += [(lm.domain.prompt(part), text, ids)] if text else []
    shown = demonstrations(selected, examples, lm.domain, lm.processing_class)
    assert [(one.prompt, one.completion, one.completion_ids) for one in shown] == expected
    assert {ids[-1] == EOS_ID for *_, ids in expected} == {True, False}


def test_texts_that_do_not_belong_to_the_parts_are_refused(lm):
    edit = SelectedSelfEdit("", "a\n---\nb", "0", 3, 1.0, [1])
    with pytest.raises(ValueError, match="Self-edit 3 of example 0 has 2 texts about 7 parts; train with"):
        demonstrations([edit], {"0": tiny_examples(1)[0]}, lm.domain, lm.processing_class)


class Keeping(KnowledgeDomain):
    """Writes about two halves, and keeps as many texts as it is told."""

    pools_drafts, kept = True, ("x", "y")

    def parts(self, example):
        return tuple({**example, "context": f"{example['context']} {half}"} for half in ("one", "two"))

    def parse(self, completion, example):
        return SelfEdit(self.prompt(example), completion, (), calls=("all",))

    def carry_out(self, self_edits, examples, ask):
        trained = [self.passage_only(example).examples for example in examples]
        return [
            replace(edit, calls=(), examples=own, kept="\n---\n".join(self.kept))
            for edit, own in zip(self_edits, trained, strict=True)
        ]


def test_what_a_tool_kept_is_whole_though_the_policy_was_cut_off(lm, tmp_path):
    other = lm.with_domain(Keeping("{context}", grader=HashGrader(), chat=False))
    proposals = proposed(other, tmp_path, num_drafts=1, num_generations=4)
    assert {one.completion for one in proposals} == {"x\n---\ny"}
    assert all(one.unfinished_parts is None and one.completion_ids[-1] == EOS_ID for one in proposals)
    written = [one.finished for own in other.write_batch(tiny_examples(2), 4, **SAMPLING) for one in own]
    assert [one.finished for one in proposals] == written and False in written
    other.domain.kept = ("x", "y", "z")
    with pytest.raises(ValueError, match=r"Keeping.carry_out\(\) kept 3 texts of a self-edit about 2 parts"):
        proposed(other, tmp_path / "other", num_drafts=1)


def test_separators_within_a_draft_stay(lm, tmp_path, monkeypatch):
    class Pooling(KnowledgeDomain):
        pools_drafts = True

    other = lm.with_domain(Pooling("{context}", split_newlines=False, grader=HashGrader(), chat=False))
    drafts = [replace(one, text=f" a{i}\n---\nb{i} ") for i, one in enumerate(drafts_of(lm, 1)[0] * 2)]
    monkeypatch.setattr(SelfAdaptingLM, "write_batch", lambda *args, **options: [drafts, drafts])
    assert [one.completion for one in proposed(other, tmp_path, num_drafts=2)] == ["a0\n---\nb0\n---\na1\n---\nb1"] * 2


@pytest.mark.parametrize("domain", [ActiveReadingDomain, EntiGraphDomain])
def test_a_list_of_which_so_many_are_taken_has_one_draft(lm, tmp_path, domain):
    with pytest.raises(ValueError, match="num_drafts=2 needs a domain that makes one self-edit of several"):
        proposed(lm.with_domain(domain(grader=HashGrader(), chat=False)), tmp_path, num_drafts=2)
