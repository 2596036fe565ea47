"""What a policy's self-edits are worth: in a round, about training examples, and in an evaluation, about held-out ones."""

from dataclasses import dataclass

from ..domains import Domain
from ..records.instructions import archive_up_to, best_instructions
from ..records.journal import Journal
from ..records.report import Evaluation, evaluations
from ..records.run_folder import RunFolder
from ..records.schema import ScoredSelfEdit
from ..rollout.examples import ExampleSet
from ..rollout.processes import Processes
from ..rollout.rollout import Rollout
from .seal_config import SEALConfig
from .stages import evaluation_stage, longest_instructions, showing, training_stage


@dataclass(frozen=True)
class Scoring:
    """
    Lets the policy write self-edits, and trains and asks their adapters. What is scored is on disk at once.

    Parameters:
        args ([`SEALConfig`]):
            The run's settings.
        run ([`RunFolder`]):
            The run's folder.
        processes ([`Processes`]):
            The processes of the run.
        rollout, eval_rollout ([`Rollout`]):
            The engine of the rounds, and that of evaluations.
    """

    args: SEALConfig
    run: RunFolder
    processes: Processes
    rollout: Rollout
    eval_rollout: Rollout

    def score_round(self, train: ExampleSet, round_index: int) -> list[ScoredSelfEdit] | None:
        """
        Score a round's self-edits.

        Args:
            train ([`ExampleSet`]):
                The training set.
            round_index (`int`):
                The round, from 0.

        Returns:
            `list[ScoredSelfEdit]`, or `None` where a callback ended the run.
        """
        data = showing(self._domain, train, self._instructions(round_index))
        stage = training_stage(self.args, self._domain, self.run.journal, data, round_index)
        return self.rollout.score(stage, self.rollout.propose(stage))

    def evaluate(self, journal: Journal, data: ExampleSet, num_rounds: int, num_fitted: int) -> Evaluation | None:
        """
        Evaluate the policy.

        Args:
            journal ([`Journal`]):
                Where the records go.
            data ([`ExampleSet`]):
                The examples.
            num_rounds (`int`):
                The rounds that the policy was trained for, by which records are told apart.
            num_fitted (`int`):
                The rounds whose instructions the policy is shown.

        Returns:
            [`Evaluation`], or `None` where a callback ended the run.

        Raises:
            GradingIncomplete: An answer could not be graded.
        """
        domain = self.eval_rollout.lm.domain
        data = showing(domain, data, self._instructions(num_fitted))
        stage = evaluation_stage(self.args, domain, journal, data, num_rounds)
        if self.eval_rollout.score(stage, self.eval_rollout.propose(stage)) is None:
            return None
        return self.processes.on_main(evaluations, journal)[num_rounds]

    def archive_instructions(self, round_index: int) -> None:
        """Write what the instructions of all rounds up to one paid, where self-edits have them."""
        if self._writes_instructions:
            self.processes.on_main(archive_up_to, self.run.journal, round_index, self._domain.instruction, True)

    @property
    def _domain(self) -> Domain:
        return self.rollout.lm.domain

    @property
    def _writes_instructions(self) -> bool:
        return bool(longest_instructions(self._domain, 1))

    def _instructions(self, num_rounds: int) -> list[str]:
        """The best instructions of so many rounds, which the policy is shown in the next."""
        if num_rounds == 0 or not self._writes_instructions:
            return []
        archive = self.processes.on_main(archive_up_to, self.run.journal, num_rounds - 1, self._domain.instruction)
        return best_instructions(archive, self.args.num_instructions_shown)
