"""
One trained LoRA adapter, apart from the model, and its files in PEFT's format.
"""

import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..hub.model_card import AdapterCard, with_base_license, write_model_card
from ..hub.transfer import is_hub_id, upload
from ..models.identity import base_fingerprint
from ..models.transfers import brought_to_host
from .files import read_config, read_training, write_adapter_files, written_whole
from .layout import LoraLayout, lora_layout
from .sources import adapter_files
from .stacking import stacked_ranks
from .weights import read_weights


@dataclass(eq=False)
class Adapter:
    """
    One trained LoRA adapter, apart from the model.

    Parameters:
        layout (`LoraLayout`):
            The adapted modules, rank and scaling.
        device_weights (`torch.Tensor` of shape `(num_parameters,)`, fp32):
            All LoRA matrices, in the layout's order, on any device. An adapter that was just trained has a view of its
            bank's weights, so that it can be asked without a copy; it keeps the whole bank in memory until
            [`~Adapter.leave_bank`].
        base_model_id (`str`):
            The base model's Hub id (or path).
        policy (`Adapter`, *optional*):
            The policy adapter that this inner adapter was trained on top of. Saved files hold both, so that they fit the
            base model alone.
        training (`Mapping[str, object]`, *optional*):
            How it was trained: hyperparameters, seed, number of steps and tokens, losses, and on which base (revision,
            quantization).
        source (`str`, *optional*):
            Where it was loaded from; of a repository with its commit, as `me/name@0123abc`.
    """

    layout: LoraLayout
    device_weights: torch.Tensor
    base_model_id: str
    policy: "Adapter | None" = None
    training: Mapping[str, object] = field(default_factory=dict)
    source: str | None = None

    @cached_property
    def weights(self) -> torch.Tensor:
        """All LoRA matrices in the layout's order: shape `(num_parameters,)`, fp32, CPU; taken when first needed."""
        return self.device_weights.to("cpu", torch.float32)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of layout and weights, by which two adapters are compared."""
        digest = hashlib.sha256(repr(self.layout).encode())
        digest.update(self.weights.contiguous().numpy())
        return digest.hexdigest()

    def leave_bank(self) -> None:
        """
        Keep a copy of the own weights alone, on the CPU.

        To be called for an adapter that is kept for long, which would otherwise hold the weights of all adapters that it
        was trained with. A pickled or copied adapter holds its own weights alone in any case.
        """
        self.device_weights = self.weights = self.device_weights.to("cpu", torch.float32, copy=True)

    def __getstate__(self) -> dict[str, object]:
        # torch pickles the whole memory that a view belongs to.
        weights = self.weights.clone()
        return {**vars(self), "device_weights": weights, "weights": weights}

    @classmethod
    def from_peft_model(cls, model: PeftModel, base_model_id: str) -> "Adapter":
        """Take the active adapter of a `PeftModel`, such as the policy that the outer SFT trains."""
        layout = lora_layout(model, model.active_peft_config, trained=True)
        # Embedding layers are not LoRA's; looking for them would ask the Hub.
        state_dict = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
        state_dict = dict(zip(state_dict, brought_to_host(list(state_dict.values())), strict=True))
        source = f"the adapter {model.active_adapter!r}"
        return cls(layout, layout.weights_from_state_dict(state_dict, source), base_model_id)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        model: nn.Module,
        base_model_id: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        max_bytes: int | None = None,
        on_size: Callable[[int], None] | None = None,
    ) -> "Adapter":
        """
        Load a PEFT LoRA adapter (safetensors only). The model is not changed. Nothing is fetched or unpacked that is larger than
        the configuration allows on this model.

        Args:
            source (`str` or `Path`):
                A folder with `adapter_config.json` and `adapter_model.safetensors`, a zip file of such a folder, or a
                repository on the Hub.
            model (`PreTrainedModel`):
                The base model that it will be used on.
            base_model_id (`str`):
                The model's identity, compared with the one the adapter names.
            revision (`str`, *optional*):
                Branch, tag or commit of the repository. Defaults to `main`.
            subfolder (`str`, *optional*):
                Where in the folder or repository the adapter is.
            token (`str` or `bool`, *optional*):
                Defaults to the one saved by `hf auth login`; `False` for public repositories alone.
            cache_dir (`Path`, *optional*):
                Where files of the Hub are put. Defaults to the Hub's cache.
            max_bytes (`int`, *optional*):
                The largest adapter that is taken: bytes of its weights in fp32.
            on_size (`Callable[[int], None]`, *optional*):
                Called with the size of its weights in fp32, in bytes, before any of them is fetched or read, so that room can be
                reserved. What it raises is raised.

        Raises:
            FileNotFoundError: No such folder, or no adapter in it.
            HubError: No such repository, one that the token may not see, or no Hub.
            ValueError: An adapter for another base or of other shapes, a pickle in place of safetensors, not a LoRA
                adapter, one with patterns in place of names or weights that are no finite numbers, one that is too large, or a
                model that carries a policy adapter.
        """
        if isinstance(model, PeftModel):
            raise ValueError(
                f"{source} is an adapter for a plain base model, but this model carries a policy adapter; load the base."
            )
        with adapter_files(source, revision, subfolder, token, cache_dir) as files:
            config = read_config(files, base_model_id, base_fingerprint(model))
            try:
                layout = lora_layout(model, config, trained=True)
            except ValueError as error:
                raise ValueError(f"{files.name}: {error}") from error
            if max_bytes is not None and layout.num_bytes > max_bytes:
                raise ValueError(
                    f"{files.name} is an adapter of rank {layout.r} with {layout.num_bytes / 1e6:,.1f} MB, but there is room for "
                    f"{max(max_bytes, 0) / 1e6:,.1f} MB; delete others, or train it with a lower rank."
                )
            if on_size is not None:
                on_size(layout.num_bytes)
            weights = read_weights(files, layout)
            return cls(layout, weights, base_model_id, training=read_training(files), source=files.name)

    def on_base(self) -> "Adapter":
        """
        The same adapter as one on the plain base model: with a policy parent, the ranks are concatenated (see
        [`stacked_ranks`]).
        """
        if self.policy is None:
            return self
        return self.policy.plus(replace(self, policy=None))

    def plus(self, other: "Adapter", factor: float = 1.0) -> "Adapter":
        """
        The sum of two adapters of one base model, neither of which has a policy parent.

        Args:
            other ([`Adapter`]):
                The adapter that is added; what is told of its training is told of the sum.
            factor (`float`, *optional*, defaults to `1.0`):
                How much of it; below 0 it is taken away.
        """
        layout, weights = stacked_ranks([(self.layout, self.weights, 1.0), (other.layout, other.weights, factor)])
        return Adapter(layout, weights, self.base_model_id, training=other.training)

    def save_pretrained(self, save_directory: str | Path, card: AdapterCard | None = None) -> Path:
        """
        Write a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) that `PeftModel.from_pretrained` loads,
        with a model card and `seal_training.json`, how it was trained.

        Args:
            save_directory (`str` or `Path`):
                Where to.
            card ([`AdapterCard`], *optional*):
                What the card says about the passage and the accuracy.

        Returns:
            `Path`: the folder.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        folder = Path(save_directory)
        self._save(folder, folder.absolute().name, card)
        return folder

    def export(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """
        Write configuration and weights alone, as another engine loads them on the plain base model.

        Args:
            folder (`str` or `Path`):
                Where to.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
                Dtype of the weights.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        adapter = self.on_base()
        with written_whole(Path(folder)) as partial:
            write_adapter_files(partial, *adapter._files(dtype), {})

    def as_policy(self, model: nn.Module) -> PeftModel:
        """
        The base model with this adapter as its policy, in fp32.

        Args:
            model (`PreTrainedModel`):
                The base model that the adapter was loaded for. It is wrapped, not copied.

        Returns:
            `PeftModel`: the model with the frozen adapter.

        Raises:
            ValueError: The model carries a policy already.
        """
        if isinstance(model, PeftModel):
            raise ValueError(
                f"{self.source or 'An adapter'} cannot be the policy of a model that carries one; load the base."
            )
        config, weights = self.on_base()._files()
        # PEFT warns of a base model by another name than its folder's.
        carrying = get_peft_model(model, replace(config, base_model_name_or_path=None))
        carrying.active_peft_config.base_model_name_or_path = self.base_model_id
        set_peft_model_state_dict(carrying, weights)
        return carrying

    def _files(self, dtype: torch.dtype = torch.float32) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
        """PEFT's configuration and weights of an adapter without a policy."""
        alpha = self.layout.lora_alpha
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base_model_id,
            r=self.layout.r,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            use_rslora=self.layout.use_rslora,
            target_modules=list(self.layout.target_modules),
            inference_mode=True,
        )
        return config, self.layout.state_dict(self.weights.to(dtype))

    def _save(self, folder: Path, name: str, card: AdapterCard | None) -> None:
        adapter = self.on_base()
        settings = {
            "r": self.layout.r,
            "lora_alpha": self.layout.lora_alpha,
            "target_modules": ", ".join(self.layout.target_modules),
            **{key: value for key, value in self.training.items() if key != "losses"},
        }
        if self.training.get("losses"):
            settings["last loss"] = f"{self.training['losses'][-1]:.4f}"
        with written_whole(folder) as partial:
            write_adapter_files(partial, *adapter._files(), self.training)
            write_model_card(partial, name, self.base_model_id, settings, card, on_policy=self.policy is not None)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload adapter",
        revision: str | None = None,
        card: AdapterCard | None = None,
        keep_failed: bool = True,
        exist_ok: bool = True,
    ) -> str:
        """
        Upload the adapter as a PEFT repository with a model card.

        Args:
            repo_id (`str`):
                `"user/name"`; created where it does not exist.
            private (`bool`, *optional*):
                Visibility of a new repository. Defaults to the owner's setting.
            token (`str`, *optional*):
                Defaults to the one saved by `hf auth login`.
            commit_message (`str`, *optional*, defaults to `"Upload adapter"`):
                Message of the commit.
            revision (`str`, *optional*):
                The branch, made where there is none. Defaults to `main`.
            card ([`AdapterCard`], *optional*):
                What the card says about the passage and the accuracy.
            keep_failed (`bool`, *optional*, defaults to `True`):
                Whether the adapter stays, where the upload fails, in a folder that the error names; `hf upload` takes it
                from there.
            exist_ok (`bool`, *optional*, defaults to `True`):
                Whether files of a repository that exists already may be replaced.

        Returns:
            `str`: the repository's URL.

        Raises:
            ValueError: The base model is not a Hub id, so that the card could not name it.
            RepositoryExists: The repository exists, and not `exist_ok`. Nothing was uploaded.
            HubError: The Hub refused the upload or could not be reached.
            OSError: The disk is full.
        """
        if not is_hub_id(self.base_model_id):
            raise ValueError(
                f"The base model {self.base_model_id} is a local folder, which a card on the Hub cannot name; load the "
                "base by its Hub id, or pass base_model_id=... to SelfAdaptingLM."
            )
        card = with_base_license(card or AdapterCard(), self.base_model_id, token)
        folder = Path(tempfile.mkdtemp(prefix=f"{repo_id.rsplit('/', 1)[-1]}-"))
        # Not with `repo_id`, which may be what was refused.
        safe = f"The adapter is in {folder}; `hf upload user/name {shlex.quote(str(folder))}` uploads it from there."
        is_kept = False
        try:
            self._save(folder, repo_id, card)
            is_kept = keep_failed
            commit = upload(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                revision=revision,
                exist_ok=exist_ok,
                safe=safe if keep_failed else "",
                token=token,
            )
            is_kept = False
        finally:
            if not is_kept:
                shutil.rmtree(folder, ignore_errors=True)
        return str(commit.repo_url)
