"""What leaves a run: the policy in a folder or on the Hub, with its card; and a pushed run that comes back."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy

from ..hub.errors import HubError, explaining_hub_errors
from ..hub.model_card import AdapterCard, with_base_license, write_model_card
from ..hub.transfer import download, hub_api, made_repo, upload, with_namespace
from ..models.loading import base_facts
from ..records.files import RUN_FILE
from ..records.report import evaluations, of_every_policy
from ..records.run_folder import LAST_CHECKPOINT, RUN_FILES, STAGED_PREFIX, RunFolder, link_tree
from ..records.samples import save_samples
from ..records.tables import results_table
from .policy import write_policy
from .seal_config import SEALConfig


logger = logging.getLogger(__name__)

# Seconds between attempts to push the last state.
_RETRY_WAITS = (2.0, 10.0, 30.0)
# Seconds after which no further attempt is begun: a Hub that is silent takes minutes to fail each.
_PATIENCE = 300.0
# Fields of the configuration that the card names.
_SETTINGS = (
    *("num_generations", "num_repeats", "keep_best", "min_reward", "temperature", "num_rounds"),
    *("inner_learning_rate", "inner_num_train_epochs", "learning_rate", "num_train_epochs", "seed"),
)


@dataclass(eq=False, repr=False)
class Publisher:
    """
    Saves a run's policy and uploads it: one push at a time, in the background, of the state at the time of the call.

    With `args.push_to_hub`, `hub_strategy` says what is pushed: with `"end"` only what [`~SEALTrainer.push_to_hub`] is
    called for; with `"every_save"` (the default) policy, tokenizer and card after every round, evaluation included, and at
    the end; with `"checkpoint"` also the run's records, under `last-checkpoint/`, from which
    `train(resume_from_checkpoint="last-checkpoint")` continues elsewhere; with `"all_checkpoints"` also every round's
    policy, as `round_001/` and so on.

    `require_latest` raises where the output directory holds a later policy than the model, and `on_push` is called when a
    push begins. `failed_push` says why the last state is not on the Hub, and what to do.
    """

    args: SEALConfig
    run: RunFolder
    model: PeftModel
    processing_class: PreTrainedTokenizerBase
    base_model_id: str
    require_latest: Callable[[], None]
    on_push: Callable[[], object]
    failed_push: str | None = field(default=None, init=False)
    _latest: tuple[Future, Path] | None = field(default=None, init=False)

    def __post_init__(self):
        self._one_at_a_time = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.repo_id = self.args.hub_model_id or self.run.path.absolute().name

    def save(self, folder: Path, **card: object) -> None:
        """Save the policy as a PEFT adapter, with the tokenizer and a card, which takes `card` as [`write_card`] does."""
        self.require_latest()
        write_policy(self.model, folder)
        self.processing_class.save_pretrained(folder)
        self.write_card(folder, **card)

    def write_card(
        self,
        folder: Path,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> None:
        """Write the policy's model card, with the run's settings and results."""
        measured = evaluations(self.run.evaluation)
        measured_again = of_every_policy(measured) if len(measured) > 1 else ()
        accuracies, recited = {}, {}
        for one in (*measured[:1], *measured[1:][-1:]):
            when = f" after round {one.round}" if one.round else " before training"
            names = {name: f"{name}{when * (name in measured_again)}" for name in one.accuracies}
            accuracies |= {names[name]: own for name, own in one.accuracies.items()}
            accuracies |= {f"recitation, {names[name]}": own for name, own in one.recitations.items()}
            recited |= {names[name]: own for name, own in one.recited.items()}
        card = AdapterCard(
            accuracies=accuracies,
            recited=recited,
            dataset=dataset_name,
            tags=[tags] if isinstance(tags, str) else tags or (),
        )
        if self.args.push_to_hub:
            card = with_base_license(card, self.base_model_id, self.args.hub_token)
        policy = self.model.active_peft_config
        settings = {"dataset": dataset_name, "r": policy.r, "lora_alpha": policy.lora_alpha}
        settings |= {name: getattr(self.args, name) for name in _SETTINGS}
        write_model_card(
            folder,
            model_name or self.repo_id,
            self.base_model_id,
            settings | base_facts(self.model),
            card,
            is_policy=True,
            results=results_table(self.run.path),
        )

    def open_repo(self, token: str | None = None) -> str:
        """The repository with its namespace, made where there is none; for [`~SEALTrainer.init_hf_repo`]."""
        token = token or self.args.hub_token
        try:
            with explaining_hub_errors(f"The check of {self.repo_id}", self.repo_id, "Nothing was trained."):
                self.repo_id = made_repo(self.repo_id, private=self.args.hub_private_repo, token=token)
                hub_api(token).auth_check(self.repo_id, write=True)
        except HubError as error:
            if error.is_refusal:
                raise
            logger.warning("%s Training starts anyway, and pushes are tried later.", error)
        return self.repo_id

    def push(
        self, commit_message: str, token: str | None = None, revision: str | None = None, **card: object
    ) -> "Future[str]":
        """
        Upload the policy as it is now, as soon as the push that is under way is done. Then `failed_push` is void.

        Returns:
            `Future`: URL of the commit; cancelled where a later push, which holds all that this one has, took its place.
        """
        staged = self._stage(**card)
        if self._latest is not None and self._latest[0].cancel():  # it was waiting
            shutil.rmtree(self._latest[1], ignore_errors=True)
        future = self._one_at_a_time.submit(
            self._upload,
            staged,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )
        self._latest = future, staged
        return future

    def push_round(self, round_number: int) -> None:
        """Push the state after a round's fit and evaluation; a failure is a warning."""
        if not self._pushes_rounds or round_number < self.run.num_policies():
            return  # a resumed run passes by rounds that it has
        self.on_push()
        try:
            future = self.push(f"Training in progress, round {round_number}")
        except Exception as error:  # a full disk, or whatever it is
            logger.warning("The policy was not pushed: %s. Training continues, and the push is tried again.", error)
        else:
            future.add_done_callback(_warn_of_failure)

    def push_end(self) -> None:
        """Push the run's last state, or say loudly that it is not on the Hub, in `failed_push`."""
        if not self._pushes_rounds:
            return
        self.on_push()
        logger.info(
            "Waiting for the push of the run's last state to %s. Ctrl+C, pressed twice, ends the wait: everything is in %s, and "
            "resume_from_checkpoint=True pushes it later.",
            self.repo_id,
            self.args.output_dir,
        )
        last_begin = time.monotonic() + _PATIENCE
        for wait in (*_RETRY_WAITS, None):
            try:
                self.push("End of training").result()
                return
            except Exception as error:  # whatever it is, the run itself has ended well
                if wait is None or getattr(error, "is_refusal", False) or time.monotonic() + wait > last_begin:
                    self.failed_push = (
                        f"The policy is not on the Hub as {self.repo_id}. {error} Call trainer.push_to_hub() later, or "
                        "start the run again with resume_from_checkpoint=True, which pushes at its end."
                    )
                    logger.error(self.failed_push)
                    return
                logger.warning("%s It is tried again in %g s.", error, wait)
                time.sleep(wait)

    def fetch_last_checkpoint(self) -> None:
        """
        Bring the run that `hub_strategy="checkpoint"` pushed to the output directory, where that holds none.

        Raises:
            ValueError: No `hub_model_id`, or no run in the repository.
            HubError: The repository cannot be read.
        """
        if self.run.holds_a_run():
            logger.info("%s holds a run already, which continues from there.", self.run.path)
            return
        if self.args.hub_model_id is None:
            raise ValueError(
                f"resume_from_checkpoint={LAST_CHECKPOINT!r} needs hub_model_id; give the repository that the run was pushed to."
            )
        repo_id = with_namespace(self.args.hub_model_id, self.args.hub_token, "The download of")
        files = [f"{LAST_CHECKPOINT}/{pattern}" for pattern in RUN_FILES]
        folder, commit = download(repo_id, files, revision=self.args.hub_revision, token=self.args.hub_token)
        if not (folder / LAST_CHECKPOINT / RUN_FILE).is_file():
            raise ValueError(
                f"{repo_id} has no {LAST_CHECKPOINT}/{RUN_FILE} at {commit}, so there is no run to resume; only "
                'hub_strategy="checkpoint" pushes one.'
            )
        self.run.copy_from(folder / LAST_CHECKPOINT)
        for number in range(len(self.run.journal.scored_rounds())):
            save_samples(self.run.path, number)
        logger.info("The run of %s at %s is now in %s.", repo_id, commit, self.run.path)

    @property
    def _pushes_rounds(self) -> bool:
        return self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END

    def _stage(self, **card: object) -> Path:
        """A folder beside the run's files with all that a push uploads, as it is now."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=STAGED_PREFIX, dir=self.run.path))
        try:
            self.save(staged, **card)
            if self.args.hub_strategy == HubStrategy.CHECKPOINT:
                self.run.link_to(staged / LAST_CHECKPOINT)
            elif self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
                for number in range(self.run.num_policies()):
                    link_tree(self.run.policy(number), staged / f"round_{number + 1:03d}")
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _upload(self, staged: Path, **options: str | None) -> str:
        """The work of a push, in its thread."""
        # Banks' files make room for their round's.
        outdated = [f"{LAST_CHECKPOINT}/*"] if (staged / LAST_CHECKPOINT).is_dir() else ()
        options |= {"private": self.args.hub_private_repo, "delete_patterns": outdated}
        try:
            commit = upload(staged, self.repo_id, safe=f"Everything is in {self.args.output_dir}.", **options)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self.failed_push = None
        return commit.commit_url


def _warn_of_failure(push: Future) -> None:
    if not push.cancelled() and (error := push.exception()) is not None:
        logger.warning("%s Training continues, and the push is tried again.", error)
