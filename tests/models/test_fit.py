"""A model that is larger than the free memory is told of before it is loaded."""

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny_models import save_tiny_model, tiny_llama
from seal_hf.models import fit
from seal_hf.models.fit import DoesNotFit, check_fits
from seal_hf.models.loading import load_causal_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tiny_llama().save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


NUM_WEIGHTS = sum(parameter.numel() for parameter in tiny_llama().parameters())
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_weights_are_counted_by_their_files(monkeypatch, request, kind):
    path = str(request.getfixturevalue(kind))
    monkeypatch.setattr(fit, "free_memory", lambda device: 4 * NUM_WEIGHTS)
    check_fits(path, "main", torch.float32, is_quantized=False, device=CPU)
    monkeypatch.setattr(fit, "free_memory", lambda device: 4 * NUM_WEIGHTS - 1)
    check_fits(path, "main", torch.bfloat16, is_quantized=False, device=CPU)
    with pytest.raises(DoesNotFit, match=r"B parameters, which take .* GB as float32.*load_in_4bit=True it takes"):
        check_fits(path, "main", torch.float32, is_quantized=False, device=CPU)
    with pytest.raises(DoesNotFit, match=r"; with dtype='bfloat16' it takes about .* GB, with load_in_4bit"):
        check_fits(path, "main", torch.float32, is_quantized=False, device=CPU)
    monkeypatch.setattr(fit, "free_memory", lambda device: 2 * NUM_WEIGHTS - 1)
    with pytest.raises(DoesNotFit, match=r"GB free; with load_in_4bit"):
        check_fits(path, "main", torch.float32, is_quantized=False, device=CPU)


def test_smaller_model_is_the_remedy_where_four_bits_are_too_many(monkeypatch, folder):
    monkeypatch.setattr(fit, "free_memory", lambda device: NUM_WEIGHTS // 2)
    for is_quantized, form in ((False, "as float32"), (True, "in 4 bits")):
        with pytest.raises(DoesNotFit, match=f"{form}.*take one of at most 0.0B parameters"):
            check_fits(str(folder), "main", torch.float32, is_quantized=is_quantized, device=CPU)


def test_nothing_is_said_of_a_model_that_is_quantized_already(monkeypatch, tmp_path):
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path)
    save_file({"packed": torch.zeros(10_000, dtype=torch.int32)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(fit, "free_memory", lambda device: 5_000)
    check_fits(str(tmp_path), "main", torch.bfloat16, is_quantized=False, device=CPU)


def test_nothing_is_loaded_of_a_model_that_does_not_fit(monkeypatch, folder):
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    monkeypatch.setattr("seal_hf.models.loading.AutoModelForCausalLM.from_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(OSError, match="but cpu has 0.0 GB free"):
        load_causal_lm(folder, device="cpu")
