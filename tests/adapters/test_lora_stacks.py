"""The matrices of many adapters, stacked by module."""

import pytest
import torch
from peft import LoraConfig

from helpers.tiny_models import tiny_llama
from seal_hf.adapters.layout import LoraLayout, LoraStacks, lora_layout


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layout() -> LoraLayout:
    return lora_layout(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))


@pytest.fixture
def weights(layout) -> torch.Tensor:
    return torch.randn(5, layout.num_parameters, generator=torch.Generator().manual_seed(0))


def test_matrices_are_those_of_the_vectors(layout, weights):
    stacks = LoraStacks.of(layout, weights, torch.float32, CPU)
    for chosen in (slice(None), slice(1, 4), torch.tensor([4, 0])):
        found, expected = stacks.matrices(chosen), layout.views(weights[chosen])
        assert list(found) == list(expected) == [module.name for module in layout.modules]
        for name, matrices in found.items():
            for matrix, other in zip(matrices, expected[name], strict=True):
                assert torch.equal(matrix, other)


def test_a_gpu_reads_the_matrices_where_they_are_in_the_vectors(monkeypatch, layout, weights):
    by_module = LoraStacks.of(layout, weights, torch.float32, CPU)
    monkeypatch.setattr("seal_hf.adapters.layout._reads_vectors", lambda device: True)
    stacks = LoraStacks(layout, 7, torch.float32, CPU)
    stacks.write(weights)
    assert by_module.vectors is None and torch.equal(stacks.vectors[:5], weights)
    for chosen in (slice(5), slice(1, 4), torch.tensor([4, 0])):
        for name, matrices in stacks.matrices(chosen).items():
            for matrix, other in zip(matrices, by_module.matrices(chosen)[name], strict=True):
                assert torch.equal(matrix, other)
    lora_a, _ = stacks.matrices(slice(1, 4))[layout.modules[-1].name]
    lora_a.zero_()  # a view
    assert stacks.vectors[1].count_nonzero() == stacks.vectors[0].count_nonzero() - lora_a[0].numel()


def test_matrices_of_neighbours_are_views_that_a_batched_product_reads_as_they_are(layout, weights):
    stacks = LoraStacks.of(layout, weights, torch.bfloat16, CPU)
    for name, (lora_a, lora_b) in stacks.matrices(slice(1, 4)).items():
        assert lora_a.is_contiguous() and lora_b.is_contiguous() and lora_a.dtype == torch.bfloat16
        a_transposed, b_transposed = stacks.matrices(slice(1, 4), transposed=True)[name]
        assert a_transposed.data_ptr() == lora_a.data_ptr() and torch.equal(a_transposed, lora_a.mT)
        assert b_transposed.data_ptr() == lora_b.data_ptr() and torch.equal(b_transposed, lora_b.mT)


def test_segments_are_views_of_one_adapter(layout, weights):
    stacks = LoraStacks(layout, 2, torch.float32, CPU)
    for adapter in range(2):
        for segment, own in zip(stacks.segments_of(adapter), layout.split(weights[adapter]), strict=True):
            segment.copy_(own)
    for name, matrices in stacks.matrices().items():
        for matrix, other in zip(matrices, layout.views(weights[:2])[name], strict=True):
            assert torch.equal(matrix, other)


def test_all_of_a_vector_is_in_one_segment_each(layout):
    ends = [0, *(segment.end for segment in layout.segments)]
    assert [segment.offset for segment in layout.segments] == ends[:-1] and ends[-1] == layout.num_parameters
    assert (
        len({(segment.letter, segment.shape) for segment in layout.segments})
        == len(layout.segments)
        < len(layout.modules)
    )
