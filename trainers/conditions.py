"""What self-edits are compared with in an evaluation, as options."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seal_hf import SelfAdaptingLM
from seal_hf.domains.knowledge.retrieval import RETRIEVAL, retrieval_condition
from seal_hf.domains.knowledge.rivals import ActiveReadingDomain, EntiGraphDomain, SPADomain, WrittenTextsDomain
from seal_hf.evaluation.conditions import ComparedCondition, with_skill, with_writer
from seal_hf.grading import JudgeGrader
from seal_hf.hub.stored_self_edits import load_stored_self_edits
from trainers.arguments import AdaptationArguments


ROUTED = "routed"
METHODS: dict[str, type[WrittenTextsDomain]] = {
    "SPA": SPADomain,
    "Active Reading": ActiveReadingDomain,
    "EntiGraph": EntiGraphDomain,
}


@dataclass
class ConditionArguments(AdaptationArguments):
    """Further conditions, each a row of the table. Any of them may be added to a finished evaluation."""

    compare_styles: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompt styles whose self-edits are compared with those of --prompt_style."},
    )
    compare_policies: list[str] = field(
        default_factory=list,
        metadata={"help": "Policies that write self-edits for the base model: folders, or repositories on the Hub."},
    )
    compare_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Other models that write self-edits for this one; one is loaded at a time."},
    )
    compare_self_edits: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or datasets of self-edits that somebody else wrote, as for --self_edits."},
    )
    compare_methods: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Other methods: '{RETRIEVAL}', '{ROUTED}' (an adapter for each passage, chosen by the question), 'SPA', "
            "'Active Reading' or 'EntiGraph'."
        },
    )
    skill_vector: list[str] = field(
        default_factory=list,
        metadata={
            "help": "An adapter whose weights are added to those of every self-edit, and, if a second is given, without the "
            "second's: the model after and before reinforcement learning (PaST)."
        },
    )
    skill_vector_factor: float = field(default=1.0, metadata={"help": "How much of the skill vector is added."})

    def __post_init__(self):
        known = (RETRIEVAL, ROUTED, *METHODS)
        if unknown := set(self.compare_methods) - set(known):
            raise ValueError(f"--compare_methods: {sorted(unknown)[0]!r} is none of {', '.join(map(repr, known))}.")
        if len(self.skill_vector) > 2:
            raise ValueError(f"--skill_vector takes one or two adapters, not {len(self.skill_vector)}.")

    def conditions(
        self, lm: SelfAdaptingLM, examples: Sequence[Mapping], grader: JudgeGrader | None
    ) -> Iterator[ComparedCondition]:
        """The conditions, of which each loads what it needs when it is due."""
        for style in self.compare_styles:
            own = replace(self, prompt_style=style).domain(grader)
            yield ComparedCondition(f"self-edits, {style}", lm.with_domain(own))
        for policy in self.compare_policies:
            yield ComparedCondition(f"self-edits by {policy}", with_writer(lm, lm.load_adapter(policy)))
        for model in self.compare_models:
            own = replace(self, model_name_or_path=model, use_vllm=False)
            yield ComparedCondition(f"self-edits by {model}", lm, writer=own.load(grader))
        for source in self.compare_self_edits:
            yield ComparedCondition(f"self-edits of {source}", lm, self_edits=load_stored_self_edits(source))
        for method in self.compare_methods:
            if method == ROUTED:
                yield ComparedCondition("self-edits, routed", lm, shares_self_edits=True, is_routed=True)
            elif method == RETRIEVAL:
                yield ComparedCondition(method, lm, baseline=retrieval_condition(lm.domain, examples))
            else:
                yield ComparedCondition(method, lm.with_domain(self._rival(METHODS[method], grader)))
        if self.skill_vector:
            adapters = [lm.load_adapter(source) for source in self.skill_vector]
            yield ComparedCondition("skill vector", with_skill(lm, *adapters, factor=self.skill_vector_factor))

    def _rival(self, domain_class: type[WrittenTextsDomain], grader: JudgeGrader | None) -> WrittenTextsDomain:
        return domain_class(
            grader=grader,
            chat=self.chat,
            answer_prompt=self.answer_prompt,
            training_format=self.training_format,
            num_passages=self.num_passages_per_epoch,
        )
