"""What leaves a run: the policy in a folder or on the Hub, with its card, and what comes back to go on with."""

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from transformers.trainer_utils import HubStrategy

from ..hub.errors import HubError
from ..hub.model_card import AdapterCard, with_base_license, write_model_card
from ..hub.transfer import download, require_writable, upload
from ..models.loading import base_facts
from ..records.journal import RUN_FILE, SELF_EDITS
from ..records.report import evaluations, results_table, save_samples
from ..records.run_folder import LAST_CHECKPOINT, RUN_FILES, STAGED_PREFIX, link_tree
from .policy import write_policy
from .policy_pushes import BackgroundPushes


logger = logging.getLogger(__name__)

# Seconds between attempts to push the last state.
_RETRY_WAITS = (2.0, 10.0, 30.0)
# Seconds after which no further attempt is begun: a Hub that is silent takes minutes to fail each.
_PATIENCE = 300.0


class PolicyPublishing:
    """
    The part of [`SEALTrainer`] that saves and uploads its policy; in place of `transformers.Trainer`'s.

    With `push_to_hub`, `hub_strategy` says what is pushed: with `"end"` only what `push_to_hub()` is called for; with
    `"every_save"` (the default) policy, tokenizer and card after every round, evaluation included, and at the end; with
    `"checkpoint"` also the run's records, under `last-checkpoint/`, with which `train(
    resume_from_checkpoint="last-checkpoint")` goes on elsewhere; with `"all_checkpoints"` also every round's policy, as
    `round_001/` and so on.

    Attributes:
        failed_push (`str`, *optional*):
            Why the state at the end of `train` is not on the Hub, and what to do; `None` where it is, or need not be.
    """

    failed_push: str | None = None
    _pushes: BackgroundPushes | None = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the policy as a PEFT adapter, with the tokenizer and a model card.

        Parameters:
            output_dir (`str`, *optional*):
                Where to. Defaults to `args.output_dir`.

        Raises:
            ValueError: The output directory holds a later policy than this trainer.
        """
        if self.is_world_process_zero():
            self._require_latest_policy()
            folder = Path(output_dir or self.args.output_dir)
            write_policy(self.model, folder)
            self.processing_class.save_pretrained(folder)
            self._write_card(folder)

    def init_hf_repo(self, token: str | None = None) -> None:
        """
        Make the repository `args.hub_model_id` where there is none; what pushes of the run need, before it starts.

        A Hub that cannot be reached does not keep the run from starting: its pushes are tried all the same.

        Raises:
            HubError: The Hub refuses the token, its right to write or the name, or the repository is public where
                `args.hub_private_repo` is set.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or self._folder.path.absolute().name
        try:
            self.hub_model_id = require_writable(
                name,
                private=self.args.hub_private_repo,
                token=token or self.args.hub_token,
                safe="Nothing was trained.",
            )
        except HubError as error:
            if error.is_refusal:
                raise
            self.hub_model_id = name
            logger.warning("%s Training starts all the same, and pushes are tried as it goes on.", error)

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

        Parameters:
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
        if self.hub_model_id is None:  # without args.push_to_hub; the upload makes the repository
            self.hub_model_id = self.args.hub_model_id or self._folder.path.absolute().name
        self.callback_handler.on_push_begin(self.args, self.state, self.control)

        def upload_state(staged: Path) -> str:
            url = self._upload(staged, commit_message, token, revision)
            self.failed_push = None
            return url

        staged = self._stage()
        self._write_card(staged, model_name, dataset_name, [tags] if isinstance(tags, str) else tags or [])
        future = self._background_pushes().push(staged, upload_state)
        return future.result() if blocking else future

    def _push_round(self) -> None:
        """Push what there is after a round's fit and evaluation, in the background."""
        if not self._pushes_rounds() or self._rounds_fitted < self._folder.num_policies():
            return  # a resumed run passes by rounds that it has
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            staged = self._stage()
        except Exception as error:  # a full disk, or whatever it is
            logger.warning("The policy was not pushed: %s. Training goes on, and it is tried again.", error)
            return
        message = f"Training in progress, round {self._rounds_fitted}"

        def upload_round(staged: Path) -> str:
            try:
                return self._upload(staged, message)
            except Exception as error:
                logger.warning("%s Training goes on, and it is tried again.", error)
                raise

        self._background_pushes().push(staged, upload_round)

    def _background_pushes(self) -> BackgroundPushes:
        if self._pushes is None:
            self._pushes = BackgroundPushes()
        return self._pushes

    def _push_end(self) -> None:
        """Bring the run's last state to the Hub, or tell loudly that it is not there, in `failed_push`."""
        if not self._pushes_rounds():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        logger.info(
            "Waiting for the push of the run's last state to %s. Ctrl+C ends the wait: everything is in %s, and "
            "resume_from_checkpoint=True pushes it later.",
            self.hub_model_id,
            self.args.output_dir,
        )
        last_begin = time.monotonic() + _PATIENCE
        for wait in (*_RETRY_WAITS, None):
            try:
                # In the thread, whose uploads of earlier rounds give way to this one, and do not keep Ctrl+C waiting.
                self._background_pushes().push(self._stage(), self._upload).result()
                self.failed_push = None
                return
            except Exception as error:  # whatever it is, the run itself has ended well
                if wait is None or getattr(error, "is_refusal", False) or time.monotonic() + wait > last_begin:
                    self.failed_push = (
                        f"The policy is not on the Hub as {self.hub_model_id}. {error} Call trainer.push_to_hub() later, "
                        "or start the run again with resume_from_checkpoint=True, which pushes at its end."
                    )
                    logger.error(self.failed_push)
                    return
                logger.warning("%s It is tried again in %g s.", error, wait)
                time.sleep(wait)

    def _pushes_rounds(self) -> bool:
        return self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END and self.is_world_process_zero()

    def _upload(
        self,
        staged: Path,
        commit_message: str | None = "End of training",
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        commit = upload(
            staged,
            self.hub_model_id,
            commit_message=commit_message or "Upload policy",
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
            # Banks' files make room for their round's.
            delete_patterns=[f"{LAST_CHECKPOINT}/*"] if (staged / LAST_CHECKPOINT).is_dir() else (),
            safe=f"Everything is in {self.args.output_dir}.",
            token=token or self.args.hub_token,
        )
        return commit.commit_url

    def _stage(self) -> Path:
        """A folder beside the run's files with all that a push uploads, as it is now."""
        self._folder.path.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=STAGED_PREFIX, dir=self._folder.path))
        try:
            self.save_model(str(staged))
            if self.args.hub_strategy == HubStrategy.CHECKPOINT:
                self._folder.link_to(staged / LAST_CHECKPOINT)
            elif self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
                for number in range(self._folder.num_policies()):
                    link_tree(self._folder.policy(number), staged / f"round_{number + 1:03d}")
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _fetch_last_checkpoint(self) -> None:
        """
        Bring the run that `hub_strategy="checkpoint"` pushed to the output directory, where that holds none.

        Raises:
            ValueError: No `hub_model_id`, or no run in the repository.
            HubError: The repository cannot be read.
        """
        if self._folder.holds_a_run():
            logger.info("%s holds a run already, which goes on from there.", self._folder.path)
            return
        repo_id = self.args.hub_model_id
        if repo_id is None:
            raise ValueError(
                f"resume_from_checkpoint={LAST_CHECKPOINT!r} needs hub_model_id, the repository it is in."
            )
        files = [f"{LAST_CHECKPOINT}/{pattern}" for pattern in RUN_FILES]
        folder, commit = download(repo_id, files, revision=self.args.hub_revision, token=self.args.hub_token)
        if not (folder / LAST_CHECKPOINT / RUN_FILE).is_file():
            raise ValueError(
                f"{repo_id} has no {LAST_CHECKPOINT}/{RUN_FILE} at {commit}, so there is no run to go on with; only "
                'hub_strategy="checkpoint" pushes one.'
            )
        self._folder.copy_from(folder / LAST_CHECKPOINT)
        for number in range(len(self._folder.journal.scored_rounds())):
            save_samples(self._folder.path, number)
        logger.info("The run of %s at %s is now in %s.", repo_id, commit, self._folder.path)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the policy's model card to `args.output_dir`.

        Parameters:
            model_name (`str`, *optional*):
                Defaults to `args.hub_model_id`, or the output directory's name.
            dataset_name (`str`, *optional*):
                Named in the card.
            tags (`str` or `list[str]`, *optional*):
                Added to the card's.
        """
        if self.is_world_process_zero():
            own_tags = [tags] if isinstance(tags, str) else tags or []
            self._write_card(self._folder.path, model_name, dataset_name, own_tags)

    def _write_card(
        self, folder: Path, model_name: str | None = None, dataset_name: str | None = None, tags: Sequence[str] = ()
    ) -> None:
        names = ("num_generations", "num_repeats", "keep_best", "min_reward")
        names += ("temperature", "num_rounds")
        names += ("inner_learning_rate", "inner_num_train_epochs", "learning_rate", "num_train_epochs", "seed")
        measured = evaluations(self._folder.evaluation)
        accuracies = dict(measured[0].accuracies) if measured else {}
        if len(measured) > 1:
            accuracies.pop(SELF_EDITS)
            accuracies[f"{SELF_EDITS} before training"] = measured[0].accuracies[SELF_EDITS]
            accuracies[f"{SELF_EDITS} after round {measured[-1].round}"] = measured[-1].accuracies[SELF_EDITS]
        policy = self.model.active_peft_config
        settings = {"r": policy.r, "lora_alpha": policy.lora_alpha}
        settings |= {name: getattr(self.args, name) for name in names}
        card = AdapterCard(accuracies=accuracies, dataset=dataset_name, tags=tags)
        if self.args.push_to_hub:
            card = with_base_license(card, self.base_model_id, self.args.hub_token)
        write_model_card(
            folder,
            model_name or self.hub_model_id or self.args.hub_model_id or self._folder.path.name,
            self.base_model_id,
            {"dataset": dataset_name, **settings, **base_facts(self.model)},
            card,
            is_policy=True,
            results=results_table(self._folder.path),
        )
