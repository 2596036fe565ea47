"""
Self-edits that set their training: a line in which the policy says how an adapter is trained on what it wrote.

SEAL's self-edits may choose the optimizer's settings along with the data (abstract). Here they may set three of them, and the
reward tells the policy what its choice was worth.
"""

import re
from itertools import cycle

from .templates import PASSAGE_HEADING, read_prompt_file, split_cue


# The least and the greatest value that a self-edit may set, by the names of `InnerLoopConfig`'s fields; prompts/training.txt
# tells the policy. Not far above 2e-3 training diverges. The memory of a step grows with its batch.
BOUNDS = {"num_train_epochs": (1, 20), "learning_rate": (1e-5, 2e-3), "batch_size": (1, 16)}
_WORDS = {"num_train_epochs": "epochs?", "learning_rate": "learning[ _]rate", "batch_size": "batch[ _]size"}
_METRICS = {
    "num_train_epochs": "training_epochs",
    "learning_rate": "training_rate",
    "batch_size": "training_batch",
}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
# A list's marker may come first: "3. Training: 6 epochs".
_LINE = re.compile(
    rf"\s*(?:[-•]\s*|\d+[.)]\s*)?training\s*:(?P<settings>.*(?:{'|'.join(_WORDS.values())}).*)", re.IGNORECASE
)
_SETTINGS = {
    name: re.compile(rf"{_NUMBER}\s*{words}|{words}[\s:=]*{_NUMBER}", re.IGNORECASE) for name, words in _WORDS.items()
}


def ask_for_training(template: str) -> str:
    """
    A prompt template that also asks for the line.

    The sentence follows the style's instruction, and in examples the line comes first: small models that are asked for it behind
    the passage write it alone, and at the end of a long text they forget it. A template without "Passage:" as a heading asks
    behind the passage all the same.
    """
    asked, *lines = read_prompt_file("training").splitlines()
    asked = f"{asked}\n{lines[0]}"
    body, cue = split_cue(template)
    if PASSAGE_HEADING not in template:
        return f"{body.rstrip()}\n\n{asked}\n{cue}"
    instruction, *examples, passage = template.split(PASSAGE_HEADING)
    label = f"\n\n{cue.strip()}\n"  # such as "Questions:", below which the answer begins
    examples = [
        example.replace(label, f"{label}{line}\n", 1) for example, line in zip(examples, cycle(lines), strict=False)
    ]
    return PASSAGE_HEADING.join([f"{instruction}\n{asked}", *examples, passage])


def split_training_settings(completion: str) -> tuple[str, dict[str, float]]:
    """
    Split what the policy wrote into its text and what it sets of its training.

    Lines such as `Training: 6 epochs, learning rate 5e-4, batch size 8` are taken out wherever they stand; of two values the
    later one holds. What is out of [`BOUNDS`] becomes the bound: a policy that asks for 50 epochs gets the 20 that are nearest
    to it, and learns what these are worth. What is missing or cannot be read is left to the run's settings.

    Args:
        completion (`str`):
            What the policy wrote.

    Returns:
        `tuple[str, dict[str, float]]`: the completion without such lines, and the settings by the names of
            [`InnerLoopConfig`]'s fields.

    Example:

    ```python
    >>> split_training_settings("Bees hum.\\nTraining: 50 epochs, learning rate 5e-4")
    ('Bees hum.\\n', {'num_train_epochs': 20, 'learning_rate': 0.0005})

    ```
    """
    kept, settings = [], {}
    for line in completion.splitlines(keepends=True):
        if found := _LINE.fullmatch(re.sub("[*_`]{2}|[*`]", "", line.rstrip())):
            settings |= _read_settings(found["settings"])
        else:
            kept.append(line)
    return "".join(kept), settings


def training_metrics(settings: dict[str, float]) -> dict[str, float]:
    """What a self-edit set, to log: whether it set anything (`sets_training`), and each value."""
    values = {_METRICS[name]: float(value) for name, value in settings.items()}
    return {"sets_training": float(bool(settings)), **values}


def _read_settings(text: str) -> dict[str, float]:
    settings = {}
    # A comma without a space may be that of "0,0005", which is no number here.
    for part in re.split(r"[,;]\s+|\s+and\s+", text.strip().rstrip(".")):
        for name, pattern in _SETTINGS.items():
            if found := pattern.fullmatch(part.strip()):
                least, greatest = BOUNDS[name]
                value = min(max(float(found[1] or found[2]), least), greatest)
                if isinstance(least, float):
                    settings[name] = value
                elif float(value).is_integer():  # there are no 2.5 epochs
                    settings[name] = int(value)
    return settings
