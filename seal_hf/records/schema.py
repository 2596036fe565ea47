"""What a line of each file of a run holds (see [`seal_hf.records.journal`])."""

from dataclasses import dataclass

from ..grading.rewards import ACCURACY


@dataclass(frozen=True)
class Proposal:
    """
    One thing to be trained on and asked about, and the banks that do it.

    Parameters:
        round (`int`):
            Round, from 0.
        condition (`str`):
            `"self-edits"` for what the policy wrote, or the name of a baseline (see [`Condition`]).
        example (`int`):
            Place of the example in its dataset.
        example_id (`str`):
            The example's own id, or its place.
        edit (`int`):
            Which of the example's self-edits.
        prompt (`str` or `list[dict]`):
            What the policy saw.
        completion (`str`):
            What it wrote.
        completion_tokens (`int`):
            Length of that, in tokens.
        well_formed (`bool`):
            Whether it can be trained on.
        tokens (`int`):
            Tokens that one inner update trains on, all epochs together.
        banks (`list[int]`):
            The bank of each repeat; empty when it is malformed, or the same as another.
        finished (`bool`, *optional*):
            Whether the policy ended it itself; `False` where it, or one of its drafts or parts, was cut off at the longest
            length. `None` in records of schema 1, which did not note it.
        completion_ids (`list[int]`, *optional*):
            The tokens that were sampled, with the end token where it is finished: what the outer SFT trains on. Of several drafts
            or parts the tokenizer's; what a tool kept of them always has the end token. `None` in records of schema 1.
        tool_examples (`list[dict]`, *optional*):
            What came of the tool that it called: the fields of every [`TrainingExample`]. `None` where it called
            none, so that its training examples are read from the completion.
        metrics (`dict[str, float]`, *optional*):
            What is told of it (see [`SelfEdit`]); `None` where that is nothing.
        same_as (`int`, *optional*):
            Which earlier self-edit of the example trains on exactly the same, in the same way: what that one is worth, this one is.
        written_tokens (`float`, *optional*):
            Tokens that were written for it, all drafts and parts together, with its share of what a tool let the model write
            for all self-edits of its batch of generation. `None` where that is `completion_tokens`.
        unfinished_parts (`list[int]`, *optional*):
            Of several texts about parts of the example (see [`Domain.parts`]) the places of those that were cut off. `None` where
            that is none.
    """

    round: int
    condition: str
    example: int
    example_id: str
    edit: int
    prompt: str | list[dict]
    completion: str
    completion_tokens: int
    well_formed: bool
    tokens: int
    banks: list[int]
    finished: bool | None = None
    completion_ids: list[int] | None = None
    tool_examples: list[dict] | None = None
    metrics: dict[str, float] | None = None
    same_as: int | None = None
    written_tokens: float | None = None
    unfinished_parts: list[int] | None = None


@dataclass(frozen=True)
class TrialResult:
    """
    What one adapter (or the model, without an adapter) answered about one example, and what that was worth.

    Parameters:
        condition, edit:
            As in [`Proposal`].
        example (`int`):
            Place of the example that was asked about.
        repeat (`int`):
            Which of the independent inner updates.
        seed (`int`):
            Seed of the adapter's initial weights and order.
        reward (`float`, *optional*):
            Share of the verdicts that are right, among those that are not `None`; `None` when all are.
        answers (`list[str]`):
            An answer to each question.
        verdicts (`list[bool | None]`):
            The verdict on each answer, or one on all.
        loss (`float`, *optional*):
            Mean training loss of the last epoch, in nats per token.
        tokens (`int`):
            Tokens trained on.
        seconds (`float`):
            This adapter's share of its bank's training time, by tokens.
        recited (`list[bool]`, *optional*):
            Whether each answer recites what was learned (see [`Domain.recited`]); `None` where the domain does not tell.
        recitation (`dict`, *optional*):
            What was said to [`Domain.recitation_prompt`] and how it was graded as the answer to every question: `answer` and
            `verdicts`; `None` where it was not asked.
        short (`list[bool]`, *optional*):
            Whether each answer is short (see [`Domain.short`]); `None` where the domain does not tell.
        retention (`dict`, *optional*):
            What was said to the questions of [`Domain.retention_example`]: `answers` and `verdicts`. `None` where they were not
            asked: without an adapter they are asked of the base model once, in the trial of the first example.
        kl (`float`, *optional*):
            KL(base || adapted) at the tokens of these answers, the mean over tokens, in nats per token; `None` where nothing is
            adapted, in training, and where it is not finite.
        unlabelled (`dict[str, dict]`, *optional*):
            For each reward without labels that an adapter earns (see [`seal_hf.grading.rewards`]) what was said to its questions:
            `answers` and `verdicts`. `None` where there is no such reward.
    """

    condition: str
    example: int
    edit: int
    repeat: int
    seed: int
    reward: float | None
    answers: list[str]
    verdicts: list[bool | None]
    loss: float | None
    tokens: int
    seconds: float
    recited: list[bool] | None = None
    recitation: dict | None = None
    short: list[bool] | None = None
    retention: dict | None = None
    kl: float | None = None
    unlabelled: dict[str, dict] | None = None

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from the other results of a round."""
        return self.condition, self.example, self.edit, self.repeat


@dataclass(frozen=True)
class ScoredSelfEdit:
    """
    One self-edit with its reward.

    Parameters:
        round, condition, example, example_id, edit, prompt, completion, completion_tokens, well_formed, finished,
        completion_ids, metrics, written_tokens, unfinished_parts:
            As in [`Proposal`].
        repeats (`list[dict]`):
            For each independent inner update its `seed`, `reward`, `answers`, `verdicts` and `loss`; in an evaluation
            also `recited`, `recitation`, `short`, `retention` and `kl`, as in [`TrialResult`]. With other rewards than the labelled
            one also `rewards`, each of them, of which `reward` is the weighted sum, and `unlabelled`.
        reward (`float`, *optional*):
            Mean reward of the repeats, `None` when no answer could be graded. 0 when it is malformed. Without repeats, where no
            reward needs an adapter, the weighted sum of the rewards.
        base_reward (`float`, *optional*):
            Labelled reward of the policy without an inner adapter on the same questions.
        tokens (`int`):
            Tokens trained on, all repeats together.
        seconds (`float`):
            Training time, all repeats together.
        rewards (`dict[str, float | None]`, *optional*):
            Each reward by its name, the mean over the repeats; `None` where the labelled one is the only one.
        rubric (`dict[str, float]`, *optional*):
            The scores by the rubric, from 1 to 5; `None` where it was not asked for, or could not be scored.
    """

    round: int
    condition: str
    example: int
    example_id: str
    edit: int
    prompt: str | list[dict]
    completion: str
    completion_tokens: int
    well_formed: bool
    repeats: list[dict]
    reward: float | None
    base_reward: float | None
    tokens: int
    seconds: float
    finished: bool | None = None
    completion_ids: list[int] | None = None
    metrics: dict[str, float] | None = None
    written_tokens: float | None = None
    rewards: dict[str, float | None] | None = None
    rubric: dict[str, float] | None = None
    unfinished_parts: list[int] | None = None

    @property
    def accuracy(self) -> float | None:
        """The labelled reward; `None` where it is not known."""
        return self.reward if self.rewards is None else self.rewards.get(ACCURACY)


@dataclass(frozen=True)
class RewardQuestions:
    """
    What an adapter is asked for a reward without labels.

    Parameters:
        reward (`str`):
            The name of the reward.
        example, edit:
            As in [`Proposal`].
        asked (`dict`, *optional*):
            An example of the domain; `None` where there is nothing to ask.
    """

    reward: str
    example: int
    edit: int
    asked: dict | None


@dataclass(frozen=True)
class RubricScores:
    """
    A judge's scores of a self-edit.

    Parameters:
        example, edit:
            As in [`Proposal`].
        scores (`dict[str, float]`, *optional*):
            From 1 to 5, by criterion; `None` where it could not be scored.
    """

    example: int
    edit: int
    scores: dict[str, float] | None


@dataclass(frozen=True)
class SelectedSelfEdit:
    """
    One self-edit that the outer SFT learns from.

    Parameters:
        prompt, completion, example_id, edit, reward, completion_ids, unfinished_parts:
            As in [`ScoredSelfEdit`].
    """

    prompt: str | list[dict]
    completion: str
    example_id: str
    edit: int
    reward: float
    completion_ids: list[int] | None = None
    unfinished_parts: list[int] | None = None


def rank(edit: ScoredSelfEdit) -> tuple[float, bool, int]:
    """
    A key that sorts an example's graded self-edits, the best first. Of equal rewards one that was cut off comes after those
    that the policy ended; the first of equals comes before the others.
    """
    return -rounded(edit.reward), edit.finished is False, edit.edit


def rounded(reward: float) -> float:
    """A reward for comparisons: means of repeats that add up to the same can differ by rounding."""
    return round(reward, 9)
