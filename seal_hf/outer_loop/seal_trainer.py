"""
The outer loop of SEAL: a language model learns to write the self-edits from which it learns best.

Deviations from the paper and its reference implementation:

- The policy is one LoRA adapter that every round trains further, in place of weights that are merged after each.
- All adapters of a bank are trained at once, and all repeats' adapters of one bank share their seed.
- Answers are graded without a key, by the domain's grader.
- A completion without any text is malformed and never learned from; its reward is 0.
- The order of the outer SFT is drawn per round and does not depend on the number of processes.
- It trains on the tokens that were sampled: a self-edit that was cut off is learned without an end token. The longest has
  2048 tokens, or what the model's context leaves.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import NoReturn, TypeVar

from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    DefaultFlowCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer_utils import TrainOutput
from trl.trainer.base_trainer import _BaseTrainer

from ..domains import Domain
from ..grading import RubricJudge
from ..records.journal import Journal
from ..records.plot import save_plot
from ..records.report import Evaluation, metrics
from ..records.round_metrics import round_metrics
from ..records.run_folder import RunFolder
from ..records.samples import save_samples
from ..records.schema import ScoredSelfEdit, SelectedSelfEdit
from ..rollout.examples import ExampleSet
from ..rollout.processes import Processes
from ..rollout.rollout import Rollout
from .callback_states import restore_callbacks, with_callbacks
from .outer_sft import PolicyNotFinite, fit_policy, optimizer_steps, parts_per_example
from .plan import RunPlan, plan_run
from .policy import bytes_of_policies, keep_policy, read_policy, restore_policy, undone_on_error
from .preparation import check_launch, model_source, prepare_lm, resumes_from_hub
from .publishing import Publisher
from .run_data import RunData, checked_evaluation_set
from .run_settings import FIT_SETTINGS, run_settings
from .scoring import Scoring
from .seal_config import SEALConfig
from .selection import demonstrations, select_self_edits, warn_of_little
from .separate_sft import leave_sft
from .stages import examples_per_round, sft_seed


logger = logging.getLogger(__name__)


_Found = TypeVar("_Found")
# A key of every evaluation's entry in the log.
_EVALUATED = "eval_self_edits_accuracy"


class _RunStopped(Exception):
    """A callback ended the run, or it waits for an SFT; what was computed is on disk."""


class SEALTrainer(_BaseTrainer):
    """
    Trains a policy to write self-edits (SEAL, section 3.1), round by round: propose, adapt and score, select, fit.

    Everything computed is on disk in `args.output_dir` at once (see `seal_hf.records.journal`), and `train(
    resume_from_checkpoint=True)` continues a run from where it ended, however that was, with any number of processes.

    Callbacks see one step for each round's scoring and one for each optimizer step of the outer SFT, `on_substep_end`
    after every bank, `on_evaluate` after every evaluation and `on_save` after every fit; `should_training_stop` ends the
    run after the bank or step that is under way.

    Parameters:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            The base model: a Hub id, a folder, `"embedded"`, `"embedded-tiny"`, or a loaded one. A `PeftModel` brings its policy adapter.
        args ([`SEALConfig`], *optional*):
            The configuration. Defaults to the paper's, with an output directory named after the model.
        domain ([`Domain`], *optional*):
            What is learned. Defaults to a [`KnowledgeDomain`]. `trainer.domain` is the form of it that suits the tokenizer
            (see [`Domain.for_model`]).
        eval_domain ([`Domain`], *optional*):
            The domain of evaluations, such as one whose tool adds nothing to what the policy writes, so that they tell what
            the policy has learned from a tool that does. Defaults to `domain`.
        train_dataset (`datasets.Dataset` or `Sequence[Mapping]`):
            Examples of the domain.
        eval_dataset (`datasets.Dataset` or `Sequence[Mapping]`, *optional*):
            Held-out examples, evaluated before the first round and after each.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. Defaults to the model's.
        peft_config (`LoraConfig`, *optional*):
            The policy adapter. Defaults to the paper's: rank 64, alpha 128, all linear layers.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            For a model that is loaded by name.
        callbacks (`list[TrainerCallback]`, *optional*):
            Added to the default ones.
        rubric_judge ([`RubricJudge`], *optional*):
            Who scores self-edits where `args.reward_funcs` has `"rubric"`. Defaults to the base model itself.

    Raises:
        ValueError: A `PeftModel` together with `peft_config` or with another adapter than a plain LoRA, examples that do
            not fit the model's context, ids that are not unique, a launch with FSDP or DeepSpeed, several GPUs in one process,
            `separate_sft` with a model that is not given by its name, or `shard_base` with a quantized one or in one process.
        OSError: The output directory cannot be written, or the model cannot be loaded.
        TypeError: A dataset that cannot be indexed.

    Example:

    ```python
    trainer = SEALTrainer(
        model="embedded",
        args=SEALConfig("outputs/seal", num_generations=3, num_repeats=1),
        domain=KnowledgeDomain("rewrite"),
        train_dataset=load_demo_passages("train")[:4],
        eval_dataset=load_demo_passages("test")[:4],
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["trl", "seal"]
    _name = "SEAL"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SEALConfig | None = None,
        domain: Domain | None = None,
        train_dataset: Dataset | Sequence[Mapping] | None = None,
        eval_dataset: Dataset | Sequence[Mapping] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        eval_domain: Domain | None = None,
        rubric_judge: RubricJudge | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = SEALConfig(f"{Path(name).name or 'model'}-SEAL")

        self._model_source = model_source(model, args, quantization_config)
        self._processes = Processes(Path(args.output_dir), timeout=args.ddp_timeout)
        given = (model, args, processing_class, peft_config, quantization_config, domain)
        self.lm, own_processing_class = prepare_lm(*given, self._processes)
        self._eval_lm = self.lm if eval_domain is None else self.lm.with_domain(eval_domain)
        model, self.domain, self.base_model_id = self.lm.model, self.lm.domain, self.lm.base_model_id

        data = RunData.checked(self.lm, self._eval_lm, args, train_dataset, eval_dataset)
        self._train, self._eval = data.train, data.evaluation
        num_left_out = len(data.train) - data.num_to_draw_from
        if num_left_out and PartialState().is_main_process:
            logger.warning(
                "%d of %d training examples have the same content as an earlier one and are left out, so that no round trains "
                "on what another one has had; put all questions about a passage into one example.",
                num_left_out,
                len(data.train),
            )
        per_round = examples_per_round(args, data.num_to_draw_from)  # raises where there are too few
        eval_examples = None if self._eval is None else self._eval.examples
        settings = run_settings(
            args, self.lm, self._train.examples, eval_examples, per_round, self._eval_lm, rubric_judge
        )
        self._folder = RunFolder(args.output_dir, settings, FIT_SETTINGS)
        self._folder.check_writable()
        self._publisher = Publisher(
            args,
            self._folder,
            model,
            own_processing_class,
            self.base_model_id,
            require_latest=lambda: self._folder.require_latest(self._rounds_fitted),
            on_push=lambda: self.callback_handler.on_push_begin(self.args, self.state, self.control),
        )

        super().__init__(
            model=model,
            args=args,
            train_dataset=self._train.examples,
            eval_dataset=eval_examples,
            processing_class=self.lm.processing_class,
            callbacks=callbacks,
        )
        check_launch(args, self.is_fsdp_enabled or self.is_deepspeed_enabled)
        # It decides when to log, save and evaluate by step counts, and ends the run at a number that is not known ahead.
        self.remove_callback(DefaultFlowCallback)
        self._examples_per_round = per_round
        self._rounds_fitted = 0
        self._waits_for_sft = False
        self._rollout = Rollout(
            self.lm, args.rollout_config(), self._processes, self._after_bank, rubric_judge=rubric_judge
        )
        eval_rollout = self._rollout
        if eval_domain is not None or args.eval_rollout_config() != args.rollout_config():
            eval_rollout = Rollout(self._eval_lm, args.eval_rollout_config(), self._processes, self._after_bank)
        self._scoring = Scoring(args, self._folder, self._processes, self._rollout, eval_rollout)

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """
        Run all rounds; with `separate_sft`, as far as the next SFT that other processes have to do (see `waits_for_sft`).

        Args:
            resume_from_checkpoint (`bool` or `str`, *optional*):
                `True`, or the output directory, to resume the run that is there (a new one starts where there is
                none). `"last-checkpoint"`: to resume the run that `hub_strategy="checkpoint"` pushed to `hub_model_id`, where
                the output directory holds none.

        Returns:
            `TrainOutput`: the step count, the mean SFT loss and the last round's metrics.

        Raises:
            ValueError: The output directory holds another run, one that is not to be resumed, or one that another process
                is training.
            OSError: It cannot be written, or is full; what was computed before is on disk.
            PolicyNotFinite: A fit came to values that are not finite. What was computed before is on disk, and the run can
                be resumed with other settings of the SFT.
            ProcessEnded: Another process has ended.
        """
        from_hub = resumes_from_hub(resume_from_checkpoint, self.args)
        self.is_in_train, self._waits_for_sft = True, False
        try:
            with self._processes.explaining_termination(self.lm.generator.clean_up), ExitStack() as held:
                if from_hub:
                    self._processes.on_main(self._publisher.fetch_last_checkpoint)
                self._open(bool(resume_from_checkpoint), held)
                self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
                with suppress(_RunStopped):
                    self._evaluate_round(0)
                    for round_index in range(self.args.num_rounds):
                        scored = self._propose_and_score(round_index)
                        selected = self._select(round_index, scored)
                        self._fit(round_index, selected)
                        self._evaluate_round(round_index + 1)
                        self._push_round(round_index)
                if not self._waits_for_sft:
                    self._processes.on_main(self._publisher.push_end)
                self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        finally:
            self.is_in_train = False
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        last_round = next((entry for entry in reversed(self.state.log_history) if "num_examples" in entry), {})
        return TrainOutput(self.state.global_step, sum(losses) / len(losses) if losses else 0.0, dict(last_round))

    def evaluate(
        self,
        eval_dataset: Dataset | Sequence[Mapping] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Accuracy of the policy as it is now: it writes self-edits, adapts to them and answers closed-book.

        Args:
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
            ValueError: There is no evaluation set, or the output directory holds another run, a later policy than this trainer, or
                a run that another process is training or evaluating.
            RuntimeError: Called without `eval_dataset` during `train()`, which evaluates after every round itself.
            GradingIncomplete: An answer could not be graded.
        """
        if not self.is_in_train:
            self.control.should_training_stop = False  # a run that a callback ended leaves it set
        if eval_dataset is None and self.is_in_train:
            raise RuntimeError(
                "evaluate() is called during train(), which evaluates after every round; give eval_dataset."
            )
        if eval_dataset is None and self._eval is None:
            raise ValueError("There is nothing to evaluate on; give eval_dataset to evaluate() or to SEALTrainer.")
        try:
            if eval_dataset is not None:
                data = checked_evaluation_set(self._eval_lm, self.args, eval_dataset)
                with tempfile.TemporaryDirectory() as directory:
                    # There is no earlier evaluation of these examples, so the baselines are measured too.
                    evaluation = self._evaluation(Journal(Path(directory)), data, 0)
            else:
                with ExitStack() as held:
                    self._hold(True, 0, held)
                    self._processes.on_main(self._folder.require_latest, self._rounds_fitted)
                    evaluation = self._evaluation(self._folder.evaluation, self._eval, self._rounds_fitted)
        except _RunStopped:
            return {}
        own = {} if eval_dataset is not None else {"round": self._rounds_fitted}
        return self._log_evaluation(evaluation, metric_key_prefix, own)

    def plan(self, resume_from_checkpoint: bool | None = None) -> RunPlan:
        """
        Check everything that `train` checks and count what it will do, without training.

        Args:
            resume_from_checkpoint (`bool`, *optional*):
                As for [`~SEALTrainer.train`].

        Returns:
            [`RunPlan`]: counts and the expected time of what is left to be done; `print` it.
        """
        needed = bytes_of_policies(self.model, self.args, self._folder)
        self._processes.on_main(self._folder.check, bool(resume_from_checkpoint), needed)
        self._processes.on_main(self._folder.require_at_most, self.args.num_rounds)
        return plan_run(self._scoring, self._train, self._eval)

    @property
    def waits_for_sft(self) -> bool:
        """Whether `train` ended at an SFT that is left to other processes (`separate_sft`)."""
        return self._waits_for_sft

    @property
    def failed_push(self) -> str | None:
        """Why the state at the end of `train` is not on the Hub, and what to do; `None` where it is, or need not be."""
        return self._publisher.failed_push

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the policy as a PEFT adapter, with the tokenizer and a model card, by default in `args.output_dir`.

        Raises:
            ValueError: The output directory holds a later policy than this trainer.
        """
        if self.is_world_process_zero():
            self._publisher.save(Path(output_dir or self.args.output_dir))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the policy's model card to `args.output_dir`. Its name defaults to `args.hub_model_id`, or the directory's.
        """
        if self.is_world_process_zero():
            self._publisher.write_card(self._folder.path, model_name, dataset_name, tags)

    def init_hf_repo(self, token: str | None = None) -> None:
        """
        Make the repository `args.hub_model_id` where there is none; what pushes of the run need, before it starts.

        A Hub that cannot be reached does not keep the run from starting: its pushes are tried anyway.

        Raises:
            HubError: The Hub refuses the token, its right to write or the name, or the repository is public where
                `args.hub_private_repo` is set.
        """
        if self.is_world_process_zero():
            self.hub_model_id = self._publisher.open_repo(token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> str | Future | None:
        """
        Upload the policy, the tokenizer and the card to `args.hub_model_id`, and with `hub_strategy="checkpoint"` the run's
        records.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait for the upload.
            token (`str`, *optional*):
                Defaults to `args.hub_token`, or the one saved by `hf auth login`.
            revision (`str`, *optional*):
                The branch. Defaults to `args.hub_revision`, or `main`.
            model_name, dataset_name, tags (*optional*):
                For the card, as for [`~SEALTrainer.create_model_card`].

        Returns:
            `str`: URL of the commit, in the first process; or a `Future` of it, which is cancelled where a later push took
            its place.

        Raises:
            HubError: The Hub refused or could not be reached; everything is in the output directory.
        """
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        card = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        self.hub_model_id = self._publisher.repo_id
        future = self._publisher.push(commit_message or "Upload policy", token, revision, **card)
        return future.result() if blocking else future

    def _open(self, resume: bool, held: ExitStack) -> None:
        """Make the output directory this run's, as long as it is held, and restore its state."""
        self._hold(resume, bytes_of_policies(self.model, self.args, self._folder), held)
        self._processes.on_main(self._folder.require_at_most, self.args.num_rounds)
        self._processes.on_main(self._folder.remove_staged)
        if resume:
            for name, value in self._processes.on_main(self._folder.load_state).items():
                setattr(self.state, name, value)
            if self.args.restore_callback_states_from_checkpoint:
                restore_callbacks(self.state, self.callback_handler.callbacks)
        self.state.max_steps = self.args.num_rounds + sum(
            optimizer_steps(self._examples_per_round, self.args, parts_per_example(self.domain, self._train.examples))
        )
        self.state.num_train_epochs = self.args.num_rounds

    def _hold(self, resume: bool, free_bytes_needed: int, held: ExitStack) -> None:
        """Make the output directory this run's; nothing is written where another process holds it."""
        self._processes.on_main(self._folder.check, resume, free_bytes_needed)
        self._processes.on_main(lambda: held.enter_context(self._folder.held()))
        self._processes.on_main(self._folder.open, resume, free_bytes_needed)

    def _state_to_save(self) -> TrainerState:
        return with_callbacks(self.state, self.callback_handler.callbacks)

    def _propose_and_score(self, round_index: int) -> list[ScoredSelfEdit]:
        """Let the policy write a round's self-edits, and train and ask their adapters."""
        self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        self._end_if_stopped()
        return _unless_stopped(self._scoring.score_round(self._train, round_index))

    def _select(self, round_index: int, scored: Sequence[ScoredSelfEdit]) -> list[SelectedSelfEdit]:
        """Choose what is learned, and log the round's rewards."""
        journal = self._folder.journal
        selected = self._processes.on_main(journal.selected, round_index)
        if selected is None:
            selected = select_self_edits(
                scored,
                keep_best=self.args.keep_best,
                min_reward=self.args.min_reward,
                drop_zero_std=self.args.drop_zero_std,
            )
            self._processes.on_main(journal.write_selected, round_index, selected)
            self._scoring.archive_instructions(round_index)
        self._log_round(round_index, scored, selected)
        self._end_if_stopped()
        return selected

    def _log_round(
        self, round_index: int, scored: Sequence[ScoredSelfEdit], selected: Sequence[SelectedSelfEdit]
    ) -> None:
        """Log a round's rewards, unless a resumed run has done so."""
        values = {"round": round_index + 1, **round_metrics(scored, selected)}
        logged = self._logged("num_examples", round_index + 1)
        if logged is not None and values.items() <= logged.items():
            return
        if self.is_world_process_zero():
            warn_of_little(round_index + 1, scored, selected, self._folder.path)
        if logged is None:
            self.state.global_step += 1
        else:  # its files were removed, and it was scored again
            self.state.log_history.remove(logged)
        self.state.epoch = float(round_index)
        self.log(values)
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._processes.on_main(self._save_round_files, round_index)

    def _save_round_files(self, round_index: int) -> None:
        save_samples(self._folder.path, round_index)
        save_plot(self._folder.path)
        self._folder.save_state(self._state_to_save())

    def _fit(self, round_index: int, selected: list[SelectedSelfEdit]) -> None:
        """Bring the policy to where the round's SFT leaves it."""
        folder = self._folder.policy(round_index)
        if weights := self._processes.on_main(read_policy, folder):
            restore_policy(self.model, weights)
            self._rounds_fitted = round_index + 1
        else:
            selected = self._demonstrations(round_index, selected)
            if selected and self.args.separate_sft:
                self._leave_sft(round_index, selected)
            try:
                with undone_on_error(self.model, self.state):
                    self._fit_and_keep(round_index, selected)
            except PolicyNotFinite:
                self._processes.on_main(self._folder.note_failed_fit, round_index)
                raise
            self._rounds_fitted = round_index + 1
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)

    def _demonstrations(self, round_index: int, selected: Sequence[SelectedSelfEdit]) -> list[SelectedSelfEdit]:
        """What the policy learns from: what was selected in this round, or with `sft_on="all"` in all so far."""
        if self.args.sft_on == "all":
            journal = self._folder.journal
            earlier = self._processes.on_main(lambda: list(map(journal.selected, range(round_index))))
            selected = [*chain.from_iterable(earlier), *selected]
        examples = dict(zip(self._train.ids, self._train.examples, strict=True))
        return demonstrations(selected, examples, self.domain, self.processing_class)

    def _leave_sft(self, round_index: int, selected: Sequence[SelectedSelfEdit]) -> NoReturn:
        """Leave a round's SFT to other processes, and end."""
        self._processes.on_main(
            lambda: leave_sft(
                self._folder,
                round_index,
                selected,
                source=self._model_source,
                policy=self.model,
                processing_class=self.processing_class,
                args=self.args,
                seed=sft_seed(self.args, round_index),
                state=self._state_to_save(),
            )
        )
        self._waits_for_sft = True
        raise _RunStopped

    def _fit_and_keep(self, round_index: int, selected: list[SelectedSelfEdit]) -> None:
        """Train the policy on what was selected, if anything was, and write it."""
        folder = self._folder.policy(round_index)
        if selected and not fit_policy(
            self.model,
            self.processing_class,
            selected,
            self.args,
            seed=sft_seed(self.args, round_index),
            output_dir=folder.with_suffix(".partial"),
            on_step=self._after_sft_step,
            on_log=lambda logs: self.log({"round": round_index + 1, **logs}),
        ):
            raise _RunStopped
        self.state.epoch = float(round_index + 1)
        self._processes.on_main(keep_policy, self.model, self._folder, round_index, self._state_to_save())

    def _evaluate_round(self, num_rounds: int) -> None:
        """Evaluate the policy after so many rounds, where there is something to evaluate on."""
        self._end_if_stopped()
        if self._eval is None:
            return
        evaluation = self._evaluation(self._folder.evaluation, self._eval, num_rounds)
        logged = self._logged(_EVALUATED, num_rounds)
        if logged is None or not _prefixed("eval", evaluation).items() <= logged.items():
            if logged is not None:  # its files were removed, and it was computed again
                self.state.log_history.remove(logged)
                self.state.best_metric = None
                for entry in self.state.log_history:
                    if _EVALUATED in entry:
                        self._determine_best_metric(entry, None)
            values = self._log_evaluation(evaluation, "eval", {"round": num_rounds})
            # After the callbacks, as in transformers.Trainer: EarlyStoppingCallback compares with the best before.
            self._determine_best_metric(values, None)
            self._processes.on_main(self._save_evaluation_files)
        self._end_if_stopped()

    def _evaluation(self, journal: Journal, data: ExampleSet, num_rounds: int) -> Evaluation:
        """The accuracies of a policy that was trained for `num_rounds`."""
        return _unless_stopped(self._scoring.evaluate(journal, data, num_rounds, self._rounds_fitted))

    def _log_evaluation(self, evaluation: Evaluation, prefix: str, labels: dict[str, int]) -> dict[str, float]:
        values = _prefixed(prefix, evaluation)
        self.log({**labels, **values})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        return values

    def _save_evaluation_files(self) -> None:
        save_plot(self._folder.path)
        self._folder.save_state(self._state_to_save())

    def _push_round(self, round_index: int) -> None:
        if round_index + 1 < self.args.num_rounds:
            self._processes.on_main(self._publisher.push_round, self._rounds_fitted)

    def _logged(self, key: str, round_number: int) -> dict[str, float] | None:
        """The entry of a round in the log that has this key."""
        entries = (entry for entry in self.state.log_history if key in entry and entry.get("round") == round_number)
        return next(entries, None)

    def _after_bank(self) -> bool:
        self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        return self.control.should_training_stop

    def _after_sft_step(self) -> bool:
        self.state.global_step += 1
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        return self._is_stopped()

    def _end_if_stopped(self) -> None:
        if self._is_stopped():
            raise _RunStopped

    def _is_stopped(self) -> bool:
        """Whether a callback has ended the run, in any process."""
        return self._processes.any(self.control.should_training_stop)


def _prefixed(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's metrics by the names under which they are logged."""
    return {f"{prefix}_{name}": value for name, value in metrics(evaluation).items()}


def _unless_stopped(found: _Found | None) -> _Found:
    """What was found, unless a callback ended the run before it was."""
    if found is None:
        raise _RunStopped
    return found
