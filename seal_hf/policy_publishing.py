"""What leaves a run: the policy in a folder or on the Hub, with its card."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import upload_folder

from .journal import SELF_EDITS
from .loading import base_facts
from .model_card import AdapterCard, with_base_license, write_model_card
from .policy import write_policy
from .run_report import evaluations, results_table


class PolicyPublishing:
    """The part of [`SEALTrainer`] that saves and uploads its policy; in place of `transformers.Trainer`'s."""

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

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, token: str | None = None, **kwargs
    ) -> str | None:
        """
        Upload the policy, the tokenizer and the card to `args.hub_model_id`; the run's records stay here.

        Parameters:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait for the upload.
            token (`str`, *optional*):
                Defaults to `args.hub_token`, or the one saved by `hf auth login`.

        Returns:
            `str`: URL of the commit, in the first process.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        folder = tempfile.mkdtemp()
        try:
            self.save_model(folder)
            result = upload_folder(
                repo_id=self.hub_model_id,
                folder_path=folder,
                commit_message=commit_message,
                token=token or self.args.hub_token,
                run_as_future=not blocking,
                revision=kwargs.get("revision", self.args.hub_revision),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if blocking:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            result.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        return result

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
        names = ("num_generations", "num_evaluations", "repeat_schedule", "reward", "keep_best", "min_reward")
        names += ("temperature", "num_rounds")
        names += ("inner_learning_rate", "inner_num_train_epochs", "learning_rate", "num_train_epochs", "seed")
        measured = evaluations(self._folder.evaluation)
        accuracies = dict(measured[0].accuracies) if measured else {}
        if len(measured) > 1:
            accuracies.pop(SELF_EDITS)
            accuracies[f"{SELF_EDITS} before training"] = measured[0].accuracies[SELF_EDITS]
            accuracies[f"{SELF_EDITS} after round {measured[-1].round}"] = measured[-1].accuracies[SELF_EDITS]
        settings = {name: getattr(self.args, name) for name in names}
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
