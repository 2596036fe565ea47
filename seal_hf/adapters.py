"""
One trained LoRA adapter, apart from the model, and its files in PEFT's format.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCardData
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .lora_layout import LoraLayout, lora_layout


WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_CARD = """---
{metadata}
---

# {repo_id}

A LoRA adapter that teaches [{base}](https://huggingface.co/{base}) one self-edit
([SEAL](https://huggingface.co/papers/2506.10943)).{policy}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{repo_id}")
```
"""
_CARD_POLICY = " It was trained on top of a policy adapter, whose ranks are part of this one."


@dataclass(frozen=True, eq=False)
class Adapter:
    """
    One trained LoRA adapter, apart from the model.

    Parameters:
        layout (`LoraLayout`):
            The adapted modules, rank and scaling.
        weights (`torch.Tensor` of shape `(num_parameters,)`, fp32, CPU):
            All LoRA matrices, in the layout's order.
        base_model_id (`str`):
            The base model's Hub id (or path).
        policy (`Adapter`, *optional*):
            The policy adapter that this inner adapter was trained on top of. Saved files hold both, so that they fit the
            base model alone.
        training (`Mapping[str, object]`, *optional*):
            How it was trained: hyperparameters, seed, number of steps and tokens, losses.
    """

    layout: LoraLayout
    weights: torch.Tensor
    base_model_id: str
    policy: "Adapter | None" = None
    training: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_peft_model(cls, model: PeftModel, base_model_id: str) -> "Adapter":
        """Take the active adapter of a `PeftModel`, such as the policy that the outer SFT trains."""
        layout = lora_layout(model, model.active_peft_config, trained=True)
        # Embedding layers are not LoRA's; looking for them would ask the Hub.
        state_dict = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
        source = f"the adapter {model.active_adapter!r}"
        return cls(layout, layout.weights_from_state_dict(state_dict, source), base_model_id)

    @classmethod
    def from_pretrained(cls, path: str | Path, model: nn.Module, base_model_id: str) -> "Adapter":
        """
        Load a PEFT LoRA adapter from a folder or a zip of one (safetensors only). The model is not changed.

        Parameters:
            path (`str` or `Path`):
                A folder with `adapter_config.json` and `adapter_model.safetensors`, or a zip file of such a folder.
            model (`PreTrainedModel`):
                The base model that it shall be used on.
            base_model_id (`str`):
                The model's identity, compared with the one the adapter names.

        Raises:
            FileNotFoundError: No such folder, or no adapter in it.
            ValueError: An adapter for another base or of other shapes, a pickle in place of safetensors, not a LoRA
                adapter, or a model that carries a policy adapter.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"There is no adapter at {path}; give a folder or a zip file of a PEFT adapter.")
        if path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                _extract_adapter(path, Path(folder))
                return cls._from_folder(Path(folder), str(path), model, base_model_id)
        return cls._from_folder(path, str(path), model, base_model_id)

    @classmethod
    def _from_folder(cls, folder: Path, source: str, model: nn.Module, base_model_id: str) -> "Adapter":
        if isinstance(model, PeftModel):
            raise ValueError(
                f"{source} is an adapter for a plain base model, but this model carries a policy adapter; load the base."
            )
        config_file, weights_file = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        if not config_file.is_file():
            raise FileNotFoundError(
                f"{source} has no {CONFIG_NAME}, so it is not a PEFT adapter; give the folder that holds it."
            )
        if not weights_file.is_file():
            if pickles := [file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]:
                raise ValueError(
                    f"{source} holds {pickles[0]}, a pickle, which can run code when it is loaded; save the adapter as "
                    f"safetensors ({WEIGHTS_NAME})."
                )
            raise FileNotFoundError(f"{source} has no {WEIGHTS_NAME}; save the adapter again as safetensors.")
        try:
            fields = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{source}: {CONFIG_NAME} is not valid JSON ({error}); save the adapter again."
            ) from error
        if not isinstance(fields, dict):
            raise ValueError(f"{source}: {CONFIG_NAME} is not a JSON object; save the adapter again.")
        if fields.get("peft_type") != "LORA":
            raise ValueError(f"{source} is a {fields.get('peft_type')} adapter; only LoRA adapters can be loaded.")
        named_base = fields.get("base_model_name_or_path")
        if named_base != base_model_id:
            raise ValueError(
                f"{source} adapts {named_base}, but the loaded base model is {base_model_id}; load {named_base} to use it."
            )
        config = LoraConfig.from_pretrained(str(folder))
        layout = lora_layout(model, config, trained=True)
        try:
            state_dict = load_file(weights_file)
        except SafetensorError as error:
            raise ValueError(
                f"{source}: {WEIGHTS_NAME} is not a safetensors file ({error}); save the adapter again."
            ) from error
        return cls(layout, layout.weights_from_state_dict(state_dict, source), base_model_id)

    def on_base(self) -> "Adapter":
        """
        The same adapter as one on the plain base model: with a policy parent, the ranks are concatenated.

        The sum of two low-rank products is one product of the stacked matrices, so this is exact, and nothing is merged
        into (possibly quantized) base weights. A module that only one of the two adapts gets zeros for the other's
        ranks, which keeps one rank for all modules.
        """
        if self.policy is None:
            return self
        parts = [self.policy.layout, self.layout]
        modules = {module.name: module for layout in parts for module in layout.modules}
        r = sum(layout.r for layout in parts)
        # One common scaling stays in lora_alpha; different ones move into B.
        shared = parts[0].scaling == parts[1].scaling
        layout = LoraLayout(
            modules=tuple(modules.values()),
            r=r,
            lora_alpha=parts[0].scaling * r if shared else r,
            target_modules=tuple(sorted({*parts[0].target_modules, *parts[1].target_modules})),
        )
        weights = torch.zeros(layout.num_parameters)
        stacked = layout.views(weights)
        offset = 0
        for adapter in (self.policy, self):
            end = offset + adapter.layout.r
            factor = 1.0 if shared else adapter.layout.scaling
            for name, (lora_a, lora_b) in adapter.layout.views(adapter.weights).items():
                stacked[name][0][offset:end] = lora_a
                stacked[name][1][:, offset:end] = lora_b * factor
            offset = end
        return Adapter(layout, weights, self.base_model_id, training=self.training)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """
        Write a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) that `PeftModel.from_pretrained` loads.

        Returns:
            `Path`: the folder.
        """
        adapter = self.on_base()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(adapter.layout.state_dict(adapter.weights), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        alpha = adapter.layout.lora_alpha
        LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=adapter.base_model_id,
            r=adapter.layout.r,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            use_rslora=adapter.layout.use_rslora,
            target_modules=list(adapter.layout.target_modules),
            inference_mode=True,
        ).save_pretrained(str(folder))
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload adapter",
    ) -> str:
        """
        Upload the adapter as a PEFT repository with a model card.

        Parameters:
            repo_id (`str`):
                `"user/name"`; created where it does not exist.
            private (`bool`, *optional*):
                Visibility of a new repository. Defaults to the owner's setting.
            token (`str`, *optional*):
                Defaults to the one saved by `hf auth login`.
            commit_message (`str`, *optional*, defaults to `"Upload adapter"`):
                Message of the commit.

        Returns:
            `str`: the repository's URL.

        Raises:
            ValueError: The base model is not a Hub id, so that the card could not name it.
            huggingface_hub.errors.HfHubHTTPError: The Hub refused the upload.
        """
        if Path(self.base_model_id).exists():
            raise ValueError(
                f"The base model {self.base_model_id} is a local folder, which a card on the Hub cannot name; load the "
                "base by its Hub id, or pass base_model_id=... to SelfAdaptingLM."
            )
        card = ModelCardData(
            base_model=self.base_model_id,
            library_name="peft",
            pipeline_tag="text-generation",
            tags=["seal", "lora", f"base_model:adapter:{self.base_model_id}"],
        )
        api = HfApi(token=token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").write_text(
                _CARD.format(
                    metadata=card.to_yaml(),
                    base=self.base_model_id,
                    repo_id=url.repo_id,
                    policy="" if self.policy is None else _CARD_POLICY,
                ),
                encoding="utf-8",
            )
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=commit_message)
        return str(url)


def _extract_adapter(archive: Path, folder: Path) -> None:
    """Write the files that lie beside the archive's only `adapter_config.json` into `folder`, flat."""
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{archive} is neither a folder nor a zip file; give a PEFT adapter as one of the two.")
    with zipfile.ZipFile(archive) as files:
        configs = [name for name in files.namelist() if name.rsplit("/", 1)[-1] == CONFIG_NAME]
        if len(configs) != 1:
            raise ValueError(f"{archive} holds {len(configs)} files named {CONFIG_NAME}; a zip must hold one adapter.")
        parent = configs[0][: -len(CONFIG_NAME)]
        for name in files.namelist():
            # Only plain names directly beside the config: a path in an archive never decides where a file is written.
            base_name = name[len(parent) :]
            if not name.startswith(parent) or base_name in {"", ".", ".."} or "/" in base_name or "\\" in base_name:
                continue
            try:
                content = files.read(name)
            except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
                raise ValueError(f"{archive} is damaged or encrypted ({error}); make the zip file again.") from error
            (folder / base_name).write_bytes(content)
