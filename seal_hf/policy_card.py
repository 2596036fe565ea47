"""The model card of a trained policy."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .journal import write_text


_BODY = """# {name}

A LoRA adapter for {link} that was taught by
[SEAL](https://huggingface.co/papers/2506.10943) to write its own finetuning data: self-edits, from which a model learns a
passage. `seal-hf` trained it with `SEALTrainer`.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
```

## Results

{results}

## Training

{settings}
"""


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def write_policy_card(
    folder: Path, name: str, base_model_id: str, results: str, settings: Mapping[str, object], tags: list[str]
) -> None:
    """
    Write `README.md`, a model card with metadata of the Hub.

    Parameters:
        folder (`Path`):
            Where to.
        name (`str`):
            The adapter's repository or name.
        base_model_id (`str`):
            The base model's Hub id.
        results (`str`):
            The run's table, in Markdown.
        settings (`Mapping[str, object]`):
            The run's settings, one line each.
        tags (`list[str]`):
            Tags of the Hub.
    """
    on_hub = _is_hub_id(base_model_id)
    data = ModelCardData(
        # The Hub refuses a card that names a folder.
        base_model=base_model_id if on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=sorted({*tags, "lora", *([f"base_model:adapter:{base_model_id}"] if on_hub else [])}),
    )
    link = f"[{base_model_id}](https://huggingface.co/{base_model_id})" if on_hub else "its base model"
    lines = "\n".join(f"- {key}: {value}" for key, value in settings.items() if value is not None)
    body = _BODY.format(
        name=name, base=base_model_id or "base model", link=link, results=results.strip(), settings=lines
    )
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{body}")
