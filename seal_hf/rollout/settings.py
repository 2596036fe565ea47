"""What decides the results of a rollout besides its options: the model, its policy adapter, the domain and the examples."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from ..adapters.layout import lora_layout
from ..generation.vllm_generation import VLLMGenerator
from ..models.access import unwrap
from ..models.identity import canonical_name, weights_fingerprint
from ..self_adapting_lm import SelfAdaptingLM


def describe(
    lm: SelfAdaptingLM, datasets: Mapping[str, Sequence[Mapping] | None], options: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Describe a run, so that two runs with equal descriptions compute the same.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model and the domain, which is taken by its class, its plain attributes and the prompts that it makes.
        datasets (`Mapping[str, Sequence[Mapping] | None]`):
            The examples by their dataset's name.
        options (`Mapping[str, Any]`):
            The run's own options.

    Returns:
        `dict[str, Any]`: flat and JSON-serializable.
    """
    config = unwrap(lm.model).config
    quantization = getattr(config, "quantization_config", None)
    settings = {
        **options,
        "model": canonical_name(lm.base_model_id),
        "model.weights": weights_fingerprint(lm.model),
        "model.dtype": lm.model.get_input_embeddings().weight.dtype,
        "model.revision": getattr(config, "_commit_hash", None),
        "model.quantization": quantization.to_dict() if quantization is not None else None,
        "domain": type(lm.domain).__qualname__,
    }
    if isinstance(lm.generator, VLLMGenerator):  # named only then, so that older runs can be resumed
        settings["use_vllm"] = True
    if isinstance(lm.model, PeftModel):
        policy = lm.model.active_peft_config
        names = ("r", "lora_alpha", "lora_dropout", "use_rslora")
        settings |= {f"peft.{name}": getattr(policy, name) for name in names}
        settings["peft.target_modules"] = lora_layout(lm.model, policy, trained=True).target_modules
        settings["student"] = lm.student
        settings["initial_policy"] = _policy_fingerprint(lm.model)
    settings |= {f"domain.{name}": value for name, value in _plain_attributes(lm.domain).items()}
    grader = getattr(lm.domain, "grader", None)
    settings |= {f"domain.grader.{name}": value for name, value in _plain_attributes(grader).items()}
    for name, examples in datasets.items():
        if examples is not None:
            shown = [[example, lm.domain.prompt(example), lm.domain.questions(example)] for example in examples]
            settings[name] = f"{len(examples)} examples, {fingerprint(shown)}"
    if datasets.get("eval_dataset") is not None and (general := lm.domain.retention_example()) is not None:
        questions = lm.domain.questions(general)
        settings["retention"] = f"{len(questions)} questions, {fingerprint([general, questions])}"
    # As it reads when it comes back from the file.
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def _plain_attributes(owner: object) -> dict[str, Any]:
    """Public attributes that are plain values, others by their class; none that may be a secret."""
    attributes = getattr(owner, "__dict__", {})
    return {
        name: value if value is None or isinstance(value, str | int | float) else type(value).__qualname__
        for name, value in attributes.items()
        if not name.startswith("_") and "key" not in name and "token" not in name
    }


def _policy_fingerprint(model: nn.Module) -> str:
    """A hash of the `B` matrices, which are zero in a new policy, whatever drew its `A`."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint(value: object) -> str:
    """A hash of a JSON-serializable value."""
    return hashlib.sha256(json.dumps(value, default=str, sort_keys=True).encode()).hexdigest()[:16]
