"""
The table of architectures in docs/models.md. To write it anew, which takes some minutes:
`PYTHONPATH=.:tests python -m helpers.architecture_table`.
"""

import logging
import re
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from helpers.architecture_checks import check_texts, check_training
from helpers.architectures import MODEL_TYPES, NOT_BUILT
from helpers.folders import ROOT


TABLE = ROOT / "docs" / "models.md"
_HEAD = "| model type | generates | trains | saved for PEFT | texts | training | why not |"
_ROW = re.compile(r"^\| `(?P<type>[^`]+)` \|.*\|$", re.MULTILINE)


def written_rows() -> dict[str, str]:
    """The rows of the table by model type."""
    return {row["type"]: row[0] for row in _ROW.finditer(TABLE.read_text(encoding="utf-8"))}


def row_of(model_type: str) -> str:
    """What is found of a type, as a row of the table."""
    if model_type in NOT_BUILT:
        return f"| `{model_type}` | | | | | | not tried: {NOT_BUILT[model_type]} |"
    texts = training = ""
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            texts = check_texts(model_type, Path(folder))
            check_texts(model_type, Path(folder), None)
        except Exception as error:  # each is a reason, refusals and faults of transformers alike
            texts, reasons = "", [_reason(error)]
    try:
        training = check_training(model_type)
        check_training(model_type, None)
    except Exception as error:
        training, reasons = "", [*reasons, _reason(error)]
    marks = " | ".join("yes" if is_right else "no" for is_right in (texts, training, texts))
    return f"| `{model_type}` | {marks} | {texts} | {training} | {'; '.join(dict.fromkeys(reasons))} |"


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].replace("|", "/")
    return text if isinstance(error, ValueError | AssertionError) else f"{type(error).__name__}: {text:.120}"


def main() -> None:
    """Write the rows into the document, in place of those that are there."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    begin, _, _ = TABLE.read_text(encoding="utf-8").partition(_HEAD)
    rows = []
    for model_type in MODEL_TYPES:
        rows.append(row_of(model_type))
        print(rows[-1], file=sys.stderr, flush=True)
    lines = [_HEAD, "|---" * 7 + "|", *rows]
    TABLE.write_text(begin + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
