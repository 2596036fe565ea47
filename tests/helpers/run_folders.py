"""A run that has begun in a folder, and the settings that define it."""

from peft import LoraConfig

from helpers.outer_loop import HashGrader, tiny_config, tiny_examples
from helpers.tiny_models import tiny_policy_model, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import SELF_EDITS
from seal_hf.outer_loop.run_settings import run_settings
from seal_hf.outer_loop.stages import examples_per_round
from seal_hf.records.run_folder import RunFolder
from seal_hf.records.schema import Proposal


PROPOSAL = Proposal(0, SELF_EDITS, 0, "0", 0, "prompt", "text", 1, True, 8, [0])
POLICY = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


def tiny_settings(
    *,
    policy=None,
    model=None,
    base="tiny",
    domain=KnowledgeDomain,
    style="{title}: {context}",
    chat=False,
    **options,
):
    """The settings of a run; each keyword changes one thing."""
    train = options.pop("train", tiny_examples(3))
    evaluation = options.pop("evaluation", tiny_examples(2, first=100))
    lm = SelfAdaptingLM(
        tiny_policy_model(peft_config=LoraConfig(**{**POLICY, **(policy or {})}), **(model or {})),
        tiny_tokenizer(),
        domain=domain(style, grader=options.pop("grader", HashGrader()), chat=chat),
        base_model_id=base,
    )
    args = tiny_config("any", **options)
    return run_settings(args, lm, train, evaluation, examples_per_round(args, len(train)), lm)


def begun_run(path):
    """A folder with a run in it."""
    folder = RunFolder(path, tiny_settings())
    folder.open(False, 0)
    folder.journal.write_proposals(0, [PROPOSAL])
    return folder


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
