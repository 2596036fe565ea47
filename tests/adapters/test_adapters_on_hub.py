"""An adapter on the Hub and back, over real HTTP, and what is said and kept where that fails."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, list_models
from safetensors import SafetensorError
from safetensors.torch import save_file

from helpers.adapters import random_adapter
from helpers.hub_server import OTHER, READER, Repo
from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from seal_hf import Adapter, SelfAdaptingLM, SelfEdit
from seal_hf.adapters.bank import StackedAdapters
from seal_hf.adapters.files import TRAINING_NAME
from seal_hf.adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from seal_hf.grading.intervals import accuracy
from seal_hf.hub import AdapterCard, HubError, RepositoryExists, list_adapters
from seal_hf.self_edit import TrainingExample


BASE, REPO = "tester/tiny-base", "tester/lighthouse"
PASSAGE = "The ``` lighthouse was built in 1874.\nBy Halda Tremmery."
ACCURACIES = {"base": accuracy([[False, False, False]]), "adapted": accuracy([[True, False, True]])}


@pytest.fixture
def base(hub, tmp_path):
    """The tiny base model as a repository, and loaded."""
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    files = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    files["README.md"] = b"---\nlicense: mit\n---\n# A tiny base\n"
    hub.add_repo(Repo(BASE), files)
    return SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), base_model_id=BASE)


@pytest.fixture
def adapter():
    made = random_adapter()
    training = {"learning_rate": 1e-3, "seed": 7, "num_steps": 4, "losses": [2.0, 0.125], "quantization": None}
    return Adapter(made.layout, made.weights, BASE, training=training)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def kept_folder(error: BaseException) -> Path:
    """The folder that a failed push names."""
    folder = str(error).split("The adapter is in ")[1].split(";")[0]
    return Path(folder)


@pytest.mark.slow
def test_push_and_load_in_a_fresh_process(base, adapter, hub, token, tmp_path):
    assert adapter.push_to_hub(REPO, token=token) == f"{hub.url}/{REPO}"
    assert list((tmp_path / "tmp").iterdir()) == []
    script = """
import sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
base, repo, out = sys.argv[1:]
ids = torch.arange(4, 20)[None]
with torch.no_grad():
    models = [PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repo)]
    models.append(AutoPeftModelForCausalLM.from_pretrained(repo))
    models.append(AutoModelForCausalLM.from_pretrained(base))
    models[-1].load_adapter(repo)
    torch.save([model.eval()(ids).logits for model in models], out)
assert "seal_hf" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, BASE, REPO, tmp_path / "logits"], check=True, timeout=120)
    loaded = base.load_adapter(REPO)
    assert torch.equal(loaded.weights, adapter.weights)
    assert loaded.training == adapter.training
    assert loaded.source == f"{REPO}@{HfApi().model_info(REPO).sha}"
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        with StackedAdapters.of(base.model, [loaded]).attach([0]):
            expected = base.model(ids).logits
    for found in torch.load(tmp_path / "logits"):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_card(base, adapter, hub, token):
    hidden = AdapterCard(passage=PASSAGE, accuracies=ACCURACIES, tags=["lighthouses"])
    adapter.push_to_hub(REPO, token=token, card=hidden)
    card = ModelCard.load(REPO)
    card.validate()
    assert (card.data.base_model, card.data.license, card.data.pipeline_tag) == (BASE, "mit", "text-generation")
    assert {"trl", "seal", "lora", "lighthouses", f"base_model:adapter:{BASE}"} == set(card.data.tags)
    assert [(result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ("accuracy, base (n = 3)", 0.0),
        ("accuracy, adapted (n = 3)", 0.6667),
    ]
    assert [
        (result.metric_args["mean_over"], result.metric_args["per_question"]) for result in card.data.eval_results
    ] == [
        ("passages", 0.0),
        ("passages", 0.6667),
    ]
    assert "| adapted | 66.7 % [0.0, 100.0] | 3 |\n" in card.text and "ecited" not in card.content
    assert "- seed: 7\n" in card.text and "- last loss: 0.1250\n" in card.text and "quantization" not in card.text
    assert "Halda" not in card.content
    assert hashlib.sha256(PASSAGE.encode()).hexdigest() in card.text
    assert f'"{REPO}")' in card.text
    assert [model.id for model in list_models(filter=f"base_model:adapter:{BASE}")] == [REPO]
    assert list_adapters(BASE) == list_adapters(BASE, author="tester") == [REPO]
    assert list_adapters(BASE, author="other") == list_adapters("them/other") == []

    recited = {"base": accuracy([[True, True, False]])}
    with_recitation = {**ACCURACIES, "recitation": accuracy([[True, False, False]])}
    adapter.push_to_hub(REPO, token=token, card=AdapterCard(accuracies=with_recitation, recited=recited))
    card = ModelCard.load(REPO)
    table = card.text[card.text.index("| answered by") :].split("\n\n")[0].splitlines()
    assert table == [
        "| answered by | accuracy | questions | recited |",
        "|---|---|---|---|",
        "| base | 0.0 % [0.0, 100.0] | 3 | 66.7 % |",
        "| adapted | 66.7 % [0.0, 100.0] | 3 |  |",
        "| recitation | 33.3 % [0.0, 100.0] | 3 |  |",
    ]
    assert "earned without answering. Recited is the share of answers" in card.text
    shares = [result.metric_args.get("share_of_answers_that_recite") for result in card.data.eval_results]
    assert shares == [0.6667, None, None]

    adapter.push_to_hub(REPO, token=token, card=AdapterCard(passage=PASSAGE, publish_passage=True, license="cc0-1.0"))
    card = ModelCard.load(REPO)
    assert f"````text\n{PASSAGE}\n````" in card.text and card.data.license == "cc0-1.0"
    assert card.data.eval_results is None


def test_card_of_an_adapter_on_a_policy_and_of_what_was_trained(base, hub, token):
    lm = SelfAdaptingLM(tiny_policy_model(), tiny_tokenizer(), base_model_id=BASE)
    trained = lm.adapt(SelfEdit("p", "c", (TrainingExample("", "The lighthouse was built in 1874."),)))
    trained.push_to_hub(REPO, token=token)
    text = ModelCard.load(REPO).text
    assert "on top of a policy adapter" in text
    assert (
        "- r: 32\n" in text
        and "- base_dtype: float32\n- quantization: none\n" in text
        and "- num_train_epochs: 10\n" in text
    )
    loaded = base.load_adapter(REPO)
    assert loaded.layout.r == 32 + 3 and loaded.training["num_steps"] == 10


def test_other_revisions_and_folders(base, adapter, hub, token):
    other = random_adapter(seed=1)
    adapter.push_to_hub(REPO, token=token)
    Adapter(other.layout, other.weights, BASE).push_to_hub(REPO, token=token, revision="second")
    first = HfApi().model_info(REPO).sha
    assert torch.equal(base.load_adapter(REPO).weights, adapter.weights)
    assert torch.equal(base.load_adapter(REPO, revision="second").weights, other.weights)
    adapter_files = hub.files(REPO)
    hub.add_repo(Repo("tester/many"), {f"deep/one/{name}": data for name, data in adapter_files.items()})
    assert torch.equal(base.load_adapter("tester/many", subfolder="deep/one").weights, adapter.weights)
    Adapter(other.layout, other.weights, BASE).push_to_hub(REPO, token=token)
    assert torch.equal(base.load_adapter(REPO).weights, other.weights)
    assert torch.equal(base.load_adapter(REPO, revision=first).weights, adapter.weights)
    with pytest.raises(HubError, match=f"{REPO} has no such revision; choose one of"):
        base.load_adapter(REPO, revision="third")
    with pytest.raises(FileNotFoundError, match=f"{REPO}@{HfApi().model_info(REPO).sha}/deep has no {CONFIG_NAME}"):
        base.load_adapter(REPO, subfolder="deep")


def test_an_adapter_that_does_not_fit_is_refused_before_its_weights_are_fetched(base, adapter, hub, token):
    Adapter(adapter.layout, adapter.weights, "them/other").push_to_hub(REPO, token=token)
    hub.log.clear()
    message = f"{REPO}@.* adapts them/other, but the loaded base model is {BASE}; load them/other"
    with pytest.raises(ValueError, match=message):
        base.load_adapter(REPO)
    assert not hub.requests(WEIGHTS_NAME)

    adapter.push_to_hub(REPO, token=token)
    lm = SelfAdaptingLM(tiny_llama(hidden_size=64), tiny_tokenizer(), base_model_id=BASE)
    with pytest.raises(ValueError, match=rf"{REPO}@.*shape \(4, 32\), but this base model needs \(4, 64\)"):
        lm.load_adapter(REPO)


def test_pickles_and_other_repositories_are_refused(base, adapter, hub, token):
    adapter.push_to_hub(REPO, token=token)
    files = hub.files(REPO)
    weights = files.pop(WEIGHTS_NAME)
    hub.add_repo(Repo("tester/pickled"), {**files, "adapter_model.bin": weights})
    with pytest.raises(ValueError, match="tester/pickled@.* holds adapter_model.bin, a pickle"):
        base.load_adapter("tester/pickled")
    assert not hub.requests("resolve.*adapter_model.bin")
    hub.add_repo(Repo("tester/half"), files)
    with pytest.raises(FileNotFoundError, match=f"tester/half@.* has no {WEIGHTS_NAME}"):
        base.load_adapter("tester/half")
    hub.add_repo(Repo("tester/torn"), {**files, WEIGHTS_NAME: weights[:100]})
    with pytest.raises(ValueError, match="tester/torn@.* is not a safetensors file"):
        base.load_adapter("tester/torn")
    with pytest.raises(FileNotFoundError, match=f"{BASE}@.* has no {CONFIG_NAME}"):
        base.load_adapter(BASE)


PUSH_FAULTS = {
    "bad token": ({"token": "hf_WrongAndSecret"}, "the Hub answered 401 .*log in with `hf auth login`"),
    "no write right": ({"token": READER.token}, "the Hub answered 403 .*use a token that may write"),
    "taken by someone else": ({"token": OTHER.token}, "the Hub answered 403 .*a name in a namespace that is yours"),
    "no token": ({"token": None}, "log in with `hf auth login`, or set HF_TOKEN"),
    "bad name": ({"repo_id": "a/b/c"}, 'give the repository as "user/name"'),
}


@pytest.mark.parametrize("case", PUSH_FAULTS)
def test_refused_pushes_keep_the_adapter(base, adapter, hub, token, case):
    options, message = PUSH_FAULTS[case]
    adapter.push_to_hub(REPO, token=token)
    before = hub.files(REPO)
    with pytest.raises(HubError, match=message) as raised:
        adapter.push_to_hub(**{"repo_id": REPO, **options})
    assert raised.value.is_refusal
    assert hub.files(REPO) == before
    folder = kept_folder(raised.value)
    # Not to the name that was refused.
    assert f"`hf upload user/name {folder}`" in str(raised.value)
    assert torch.equal(base.load_adapter(folder).weights, adapter.weights)
    kept = list(folder.parent.iterdir())
    with pytest.raises(HubError, match=message) as not_kept:
        adapter.push_to_hub(**{"repo_id": REPO, **options}, keep_failed=False)
    assert list(folder.parent.iterdir()) == kept and str(folder.parent) not in str(not_kept.value)
    printed = "".join(traceback.format_exception(raised.value))
    assert not options.get("token") or options["token"] not in printed
    HfApi(token=token).upload_folder(repo_id=REPO, folder_path=folder)  # as the message says
    assert torch.equal(base.load_adapter(REPO).weights, adapter.weights)


def test_private_stays_private(base, adapter, hub, token):
    adapter.push_to_hub(REPO, token=token, private=True)
    assert torch.equal(base.load_adapter(REPO, token=token).weights, adapter.weights)
    # Also where it is in the cache already.
    for other, message in ((False, "there is no repository"), (OTHER.token, "there is no repository")):
        with pytest.raises(HubError, match=message) as raised:
            base.load_adapter(REPO, token=other)
        assert "no folder or zip file" in "".join(raised.value.__notes__)
    adapter.push_to_hub("tester/open", token=token)
    before = hub.files("tester/open")
    with pytest.raises(HubError, match="tester/open exists and is public, but private=True"):
        adapter.push_to_hub("tester/open", token=token, private=True)
    assert hub.files("tester/open") == before


def test_a_repository_that_may_not_exist_is_left_as_it_is(base, adapter, hub, token):
    adapter.push_to_hub(REPO, token=token, exist_ok=False)
    before = hub.files(REPO)
    with pytest.raises(
        RepositoryExists, match=f"{REPO} exists already; .*exist_ok=True.*Nothing was uploaded.*is in "
    ) as found:
        adapter.push_to_hub(REPO, token=token, card=AdapterCard(passage="Bees hum."), exist_ok=False)
    assert found.value.repo_id == REPO and hub.files(REPO) == before
    adapter.push_to_hub(REPO, token=token, card=AdapterCard(passage="Bees hum."))
    assert hub.files(REPO) != before


def test_gated_repositories(base, adapter, hub, token):
    adapter.push_to_hub(REPO, token=token)
    hub.repo(REPO).gated = True
    with pytest.raises(HubError, match=f"{REPO} is gated; ask for access at {hub.url}/{REPO}"):
        base.load_adapter(REPO, token=OTHER.token)
    hub.repo(BASE).gated = True
    with pytest.raises(OSError, match="gated one needs `hf auth login`"):
        SelfAdaptingLM.from_pretrained(BASE)


def test_hub_that_is_down(base, adapter, hub, token):
    adapter.push_to_hub(REPO, token=token)
    loaded = base.load_adapter(REPO)
    hub.stop()
    with pytest.raises(HubError, match=r"the Hub \(http.*\) could not be reached \(.*\); try again later") as raised:
        adapter.push_to_hub(REPO, token=token)
    assert not raised.value.is_refusal
    assert torch.equal(base.load_adapter(kept_folder(raised.value)).weights, adapter.weights)
    assert base.load_adapter(REPO).source == loaded.source  # out of the cache
    with pytest.raises(HubError, match="could not be reached"):
        base.load_adapter(REPO, token=False)  # it may hold what others may not see
    with pytest.raises(HubError, match="could not be reached"):
        base.load_adapter("tester/never-seen")
    hub.start()
    adapter.push_to_hub(REPO, token=token)


def test_hub_that_dies_in_the_middle(base, adapter, hub, token):
    hub.hang_up("^/_lfs/")
    with pytest.raises(HubError, match="could not be reached") as raised:
        adapter.push_to_hub(REPO, token=token)
    assert WEIGHTS_NAME not in hub.files(REPO)
    assert torch.equal(base.load_adapter(kept_folder(raised.value)).weights, adapter.weights)
    hub.reset_faults()
    hub.answer(412, "/commit/")
    with pytest.raises(HubError, match="the Hub answered 412 .*try again later"):
        adapter.push_to_hub(REPO, token=token)
    hub.reset_faults()
    adapter.push_to_hub(REPO, token=token)
    hub.hang_up(f"/resolve/.*{WEIGHTS_NAME}", "GET")
    with pytest.raises(HubError, match="The download of .* could not be reached"):
        base.load_adapter(REPO)
    hub.reset_faults()
    assert torch.equal(base.load_adapter(REPO).weights, adapter.weights)


def test_full_disk(base, adapter, hub, token, tmp_path, monkeypatch):
    def save_half(state_dict, path, metadata=None):
        save_file(state_dict, path, metadata)
        os.truncate(path, 100)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    saved = adapter.save_pretrained(tmp_path / "disk" / "adapter")
    other = random_adapter(seed=1)
    with monkeypatch.context() as full:
        full.setattr("seal_hf.adapters.files.save_file", save_half)
        with pytest.raises(OSError, match=f"{saved} could not be written .*; make room or give another") as raised:
            Adapter(other.layout, other.weights, BASE).save_pretrained(saved)
        assert raised.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="could not be written .*make room"):
            adapter.push_to_hub(REPO, token=token)
    assert torch.equal(base.load_adapter(saved).weights, adapter.weights)
    assert list((tmp_path / "disk").iterdir()) == [saved] and list((tmp_path / "tmp").iterdir()) == []
    adapter.push_to_hub(REPO, token=token)
    assert torch.equal(base.load_adapter(REPO).weights, adapter.weights)


def test_no_token_is_left_anywhere(base, adapter, hub, token, tmp_path, caplog, capfd):
    caplog.set_level("DEBUG")
    adapter.push_to_hub(REPO, token=token)
    adapter.push_to_hub("tester/copied", token=f" {token}\n")
    with pytest.raises(HubError, match="white space in it; copy it again. The adapter is in") as raised:
        adapter.push_to_hub(REPO, token=f"{token} x")
    assert token not in "".join(traceback.format_exception(raised.value))
    assert all(token.encode() not in data for data in hub.files(REPO).values())
    assert token not in caplog.text and token not in "".join(capfd.readouterr())
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or token.encode() not in file.read_bytes(), file


def test_what_is_saved_loads_again(base, adapter, tmp_path):
    folder = adapter.save_pretrained(tmp_path / "lighthouse", AdapterCard(passage=PASSAGE))
    assert ModelCard.load(folder / "README.md").text.lstrip().startswith("# lighthouse\n")
    assert json.loads((folder / TRAINING_NAME).read_text())["losses"] == [2.0, 0.125]
    assert base.load_adapter(folder).training["losses"] == [2.0, 0.125]
    with pytest.raises(ValueError, match="revision='x' is for a repository on the Hub"):
        base.load_adapter(folder, revision="x")
    (folder / TRAINING_NAME).write_text("{")
    with pytest.raises(ValueError, match=f"{TRAINING_NAME} is not valid JSON .*; remove it"):
        base.load_adapter(folder)
