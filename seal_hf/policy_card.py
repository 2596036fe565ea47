"""The model card of a trained policy."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from .journal import write_text


_BODY = """# {name}

A LoRA adapter for [{base}](https://huggingface.co/{base}) that was taught by
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
    data = ModelCardData(
        base_model=base_model_id,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=sorted({*tags, "lora", f"base_model:adapter:{base_model_id}"}),
    )
    lines = "\n".join(f"- {key}: {value}" for key, value in settings.items() if value is not None)
    body = _BODY.format(name=name, base=base_model_id, results=results.strip(), settings=lines)
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{body}")
