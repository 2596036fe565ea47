"""What self-edits are compared with in an evaluation, as options."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain
from seal_hf.domains.base import SELF_EDITS
from seal_hf.domains.knowledge.retrieval import RETRIEVAL, retrieval_condition
from seal_hf.domains.knowledge.rivals import ActiveReadingDomain, EntiGraphDomain, SPADomain, WrittenTextsDomain
from seal_hf.evaluation.conditions import ComparedCondition, check_names, with_skill, with_writer
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
        names = iter(self.condition_names())
        for style in self.compare_styles:
            yield ComparedCondition(next(names), lm.with_domain(self._in_style(style, grader)))
        for policy in self.compare_policies:
            yield ComparedCondition(next(names), with_writer(lm, lm.load_adapter(policy)))
        for model in self.compare_models:
            own = replace(self, model_name_or_path=model, use_vllm=False)
            yield ComparedCondition(next(names), lm, writer=own.load(grader))
        for source in self.compare_self_edits:
            yield ComparedCondition(next(names), lm, self_edits=load_stored_self_edits(source))
        for method in self.compare_methods:
            if method == ROUTED:
                yield ComparedCondition(next(names), lm, shares_self_edits=True, is_routed=True)
            elif method == RETRIEVAL:
                yield ComparedCondition(next(names), lm, baseline=retrieval_condition(lm.domain, examples))
            else:
                yield ComparedCondition(next(names), lm.with_domain(self._rival(METHODS[method], grader)))
        if self.skill_vector:
            adapters = [lm.load_adapter(source) for source in self.skill_vector]
            yield ComparedCondition(next(names), with_skill(lm, *adapters, factor=self.skill_vector_factor))

    def condition_names(self) -> list[str]:
        """The names of the conditions, in their order."""
        return [
            *(f"self-edits, {style}" for style in self.compare_styles),
            *(f"self-edits by {writer}" for writer in (*self.compare_policies, *self.compare_models)),
            *(f"self-edits of {source}" for source in self.compare_self_edits),
            *("self-edits, routed" if method == ROUTED else method for method in self.compare_methods),
            *(["skill vector"] if self.skill_vector else []),
        ]

    def check_conditions(self, more: Iterable[str] = ()) -> None:
        """
        Check before a model is loaded what can be known of the conditions by then.

        Args:
            more (`Iterable[str]`, *optional*):
                Names of further conditions that the protocol has.

        Raises:
            ValueError: Two of one name, or a style or method that is impossible with the other options.
            FileNotFoundError: The file of a style does not exist.
        """
        check_names([*more, *self.condition_names()], [SELF_EDITS, *(one.name for one in self.domain().conditions)])
        for style in self.compare_styles:
            self._in_style(style, None)
        for method in self.compare_methods:
            if method in METHODS:
                self._rival(METHODS[method], None)

    def _in_style(self, style: str, grader: JudgeGrader | None) -> KnowledgeDomain:
        return replace(self, prompt_style=style).domain(grader)

    def _rival(self, domain_class: type[WrittenTextsDomain], grader: JudgeGrader | None) -> WrittenTextsDomain:
        return domain_class(
            grader=grader,
            chat=self.chat,
            answer_prompt=self.answer_prompt,
            training_format=self.training_format,
            num_passages=self.num_passages_per_epoch,
        )
