"""How good a policy is: its self-edits and the baselines on held-out examples."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from ..generation.base import draw_seed
from ..records.journal import Journal
from ..records.plot import save_plot
from ..records.report import Evaluation, evaluations, metrics
from ..rollout.example_checks import check_lengths
from ..rollout.examples import ExampleSet
from ..rollout.rollout import baselines_of
from ..rollout.stage import EVALUATION, Stage


class PolicyEvaluation:
    """The part of [`SEALTrainer`] that evaluates its policy; in place of `transformers.Trainer`'s."""

    def _evaluate_round(self, num_rounds: int) -> bool:
        """Evaluate the policy after so many rounds, if there is something to evaluate on; `False` where it was ended."""
        if self._is_stopped():
            return False
        if self._eval is None:
            return True
        evaluation = self._evaluation(self._folder.evaluation, self._eval, num_rounds)
        if evaluation is None:
            return False
        if self._logged("eval_self_edits_accuracy", num_rounds) is None:
            values = self._log_evaluation(evaluation, "eval", {"round": num_rounds})
            # After the callbacks, as in transformers.Trainer: EarlyStoppingCallback compares with the best before.
            self._determine_best_metric(values, None)
            self._processes.on_main(self._save_evaluation_files)
        return not self._is_stopped()

    def _save_evaluation_files(self) -> None:
        save_plot(self._folder.path)
        self._folder.save_state(self.state)

    def _evaluation(self, journal: Journal, data: ExampleSet, num_rounds: int) -> Evaluation | None:
        """The accuracies of a policy that was trained for `num_rounds`; `None` where a callback ended the evaluation."""
        stage = Stage(
            name=f"evaluation after {num_rounds} rounds" if num_rounds else "evaluation before round 1",
            journal=journal,
            round=num_rounds,
            data=data,
            # The same draws in every round, so that rounds differ by their policies alone.
            seed=draw_seed(self.args.seed, EVALUATION),
            num_generations=self.args.num_eval_generations,
            baselines=baselines_of(self.domain) if num_rounds == 0 else (),
            is_evaluation=True,
        )
        if self._rollout.score(stage, self._rollout.propose(stage)) is None:
            return None
        return self._processes.on_main(evaluations, journal)[num_rounds]

    def _log_evaluation(self, evaluation: Evaluation, prefix: str, labels: dict[str, int]) -> dict[str, float]:
        values = {f"{prefix}_{name}": value for name, value in metrics(evaluation).items()}
        self.log({**labels, **values})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        return values

    def evaluate(
        self,
        eval_dataset: Dataset | Sequence[Mapping] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Accuracy of the policy as it is now: it writes self-edits, adapts to them and answers closed-book.

        Parameters:
            eval_dataset (`datasets.Dataset` or `Sequence[Mapping]`, *optional*):
                Examples. Defaults to the trainer's; what is already on disk for those is not computed again.
            ignore_keys (`list[str]`, *optional*):
                Not used; there for the signature of [`~transformers.Trainer.evaluate`].
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                Prefix of the metrics' names.

        Returns:
            `dict[str, float]`: accuracies with their 95 % intervals and paired differences, shares from 0 to 1; empty where
            a callback ended the evaluation.

        Raises:
            ValueError: There is no evaluation set, or the output directory holds a later policy than this trainer.
            RuntimeError: Called without `eval_dataset` during `train()`, which evaluates after every round itself.
            GradingIncomplete: An answer could not be graded.
        """
        if not self.is_in_train:
            self.control.should_training_stop = False  # a run that a callback ended leaves it set
        if eval_dataset is not None:
            data = ExampleSet.of(eval_dataset, "eval_dataset")
            check_lengths(self.lm, self.args, data, "eval_dataset")
            with tempfile.TemporaryDirectory() as directory:
                # Of these examples there is no earlier evaluation, so the baselines are measured too.
                evaluation = self._evaluation(Journal(Path(directory)), data, 0)
        elif self.is_in_train:
            raise RuntimeError(
                "evaluate() is called during train(), which evaluates after every round; give eval_dataset."
            )
        elif self._eval is not None:
            self._processes.on_main(self._folder.open, True, 0)
            self._processes.on_main(self._require_latest_policy)
            evaluation = self._evaluation(self._folder.evaluation, self._eval, self._rounds_fitted)
        else:
            raise ValueError("There is nothing to evaluate on; give eval_dataset to evaluate() or to SEALTrainer.")
        if evaluation is None:
            return {}
        own = {} if eval_dataset is not None else {"round": self._rounds_fitted}
        return self._log_evaluation(evaluation, metric_key_prefix, own)
