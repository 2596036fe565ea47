"""Attention over a packed batch: block by block, and by torch's flash attention, against each sequence on its own."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends.cuda import cudnn_sdp_enabled

from helpers.flash_attention import flash_attention_on_the_cpu
from helpers.operators import Operators
from helpers.tiny_models import tiny_model
from seal_hf.inner_loop import attention as packed_attention
from seal_hf.inner_loop import block_attention
from seal_hf.inner_loop.attention import PackedAttention
from seal_hf.inner_loop.blocks import Block


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BLOCKS = (Block(0, 2, (7, 7), 0), Block(2, 3, (5,), 28))
LENGTHS = [7] * 4 + [5] * 3
ENDS = torch.tensor([0, 7, 14, 21, 28, 33, 38, 43], dtype=torch.int32)


def random_states(heads: int, num_kv: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query, key and value of `BLOCKS`."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, sum(LENGTHS), 8, generator=generator).to(dtype).requires_grad_()
        for count in (heads, num_kv, num_kv)
    ]


def with_gradients(attention: PackedAttention, states: list[torch.Tensor], window: int | None) -> list[torch.Tensor]:
    attended = attention(*states, scale=0.3, window=window)
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1)).to(attended.dtype)
    return [attended.detach(), *torch.autograd.grad((attended * weights).sum(), states)]


def one_after_another(query, key, value, *, scale: float, window: int | None) -> torch.Tensor:
    expected, start = [], 0
    for length in LENGTHS:
        part = [rows[:, :, start : start + length] for rows in (query, key, value)]
        distance = torch.arange(length)[:, None] - torch.arange(length)
        mask = (distance >= 0) & (distance < (window or length))
        alone = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=True)
        expected.append(alone.transpose(1, 2))
        start += length
    return torch.cat(expected, dim=1)


@pytest.fixture
def flash(monkeypatch):
    """Flash attention, taken for CPU tensors: the calls of the operator and of its backward pass."""
    monkeypatch.setattr(packed_attention, "_takes_flash", lambda *args: True)
    with flash_attention_on_the_cpu() as calls:
        yield calls


@pytest.fixture
def fresh():
    """What this machine has is found out anew, and forgotten after the test."""
    packed_attention._has_flash.cache_clear()
    yield
    packed_attention._has_flash.cache_clear()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
def test_block_attention(monkeypatch, heads, long, window):
    if long:
        monkeypatch.setattr(block_attention, "_LONG", 6)  # the second block stays short
    states = random_states(*heads)
    attended, *grads = with_gradients(PackedAttention(BLOCKS, ENDS), states, window)
    expected, *expected_grads = with_gradients(one_after_another, states, window)
    torch.testing.assert_close(attended, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


def test_long_sequences_are_kept_from_cudnn(monkeypatch):
    enabled = []

    def kernel(*args, **options):
        enabled.append(cudnn_sdp_enabled())
        return attend(*args, **options)

    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr(block_attention, "_LONG", 6)
    before = cudnn_sdp_enabled()
    PackedAttention(BLOCKS, ENDS)(*random_states(4, 2), scale=0.3, window=None)
    assert before and enabled == [False]
    assert cudnn_sdp_enabled()


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
def test_flash_attention_equals_that_by_block(flash, heads, window):
    states = random_states(*heads)
    found = with_gradients(PackedAttention(BLOCKS, ENDS), states, window)
    assert len(flash) == 2  # forward and backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "_takes_flash", lambda *args: False)
        expected = with_gradients(PackedAttention(BLOCKS, ENDS), states, window)
    assert len(flash) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_in_half_precision(flash, dtype):
    states = random_states(4, 2, dtype)
    found = with_gradients(PackedAttention(BLOCKS, ENDS), states, 3)
    assert all(part.dtype == dtype for part in found)
    wide = [rows.detach().float().requires_grad_() for rows in states]
    for one, other in zip(found, with_gradients(PackedAttention(BLOCKS, ENDS), wide, 3), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.05)


def test_flash_attention_is_given_views_and_the_ends(flash):
    states, attention = random_states(4, 2), PackedAttention(BLOCKS, ENDS)
    attention(*states, scale=0.3, window=None)
    for call in flash:
        given = [call["query"], call["key"], call["value"]]
        assert [rows.data_ptr() for rows in given] == [rows.data_ptr() for rows in states]
        assert call["cum_seq_q"] is ENDS or call["cum_seq_q"].data_ptr() == ENDS.data_ptr()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_model_gives_the_same_by_flash_attention(flash, kind):
    from seal_hf.models.access import attention_set

    model, ids = tiny_model(kind), torch.arange(4, 47)[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]

    def logits() -> torch.Tensor:
        with torch.no_grad(), attention_set(model, packed_attention.PACKED_ATTENTION):
            return model(
                input_ids=ids, position_ids=positions, use_cache=False, packed_attention=PackedAttention(BLOCKS, ENDS)
            ).logits

    found = logits()
    assert len(flash) == 2  # layers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "_takes_flash", lambda *args: False)
        torch.testing.assert_close(found, logits())


def fake_states(dtype=torch.bfloat16, dim=64, value_dtype=None) -> list[torch.Tensor]:
    """As a model gives them: a view of `(1, N, H, D)`."""
    return [
        torch.empty(1, sum(LENGTHS), heads, dim, dtype=own or dtype, device=CUDA).transpose(1, 2)
        for heads, own in ((8, None), (2, None), (2, value_dtype))
    ]


def fake_ends() -> torch.Tensor:
    return torch.empty(len(ENDS), dtype=torch.int32, device=CUDA)


@pytest.fixture
def ampere(monkeypatch):
    """Fake tensors on an Ampere GPU whose flash attention works."""
    asked = []
    monkeypatch.setattr(packed_attention, "_has_flash", lambda *key: asked.append(key) or True)
    with FakeTensorMode():
        yield asked


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_one_operator_on_cuda(ampere, window):
    states = fake_states()
    with torch.no_grad(), Operators() as operators:
        attended = PackedAttention(BLOCKS, fake_ends())(*states, scale=0.125, window=window)
    assert (attended.shape, attended.dtype, attended.device) == ((1, 43, 8, 64), torch.bfloat16, CUDA)
    assert attended.is_contiguous()
    computing = [func for func in operators.called if not func.is_view and "prim" not in str(func)]
    assert [str(func) for func in computing] == ["aten.empty.memory_format", "aten._flash_attention_forward.default"]
    assert ampere == [(CUDA, torch.bfloat16, 8, 2, 64, window is not None)]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"dim": 68},
        {"dim": 264},
        {"value_dtype": torch.float16},
    ],
    ids=["fp32", "68 features", "264 features", "mixed"],
)
def test_what_flash_attention_does_not_take(ampere, options):
    states = fake_states(**options)
    with torch.no_grad():
        assert not packed_attention._takes_flash(*states, None)
        assert packed_attention._takes_flash(*fake_states(), None)
        apart = [
            torch.empty(1, 64, 43, heads, dtype=torch.bfloat16, device=CUDA).transpose(1, 3) for heads in (8, 2, 2)
        ]
        assert not packed_attention._takes_flash(*apart, None)  # features are not next to each other
    assert len(ampere) == 1


def test_machine_that_has_flash_attention(fresh, flash, caplog):
    assert packed_attention._has_flash(CPU, torch.bfloat16, 4, 2, 8, True)
    assert packed_attention._has_flash(CPU, torch.bfloat16, 4, 2, 8, True)
    assert len(flash) == 2  # one pass, forward and backward
    assert flash[0]["window_size_left"] == 3
    assert not caplog.records


def test_machine_that_lacks_flash_attention(fresh, caplog):
    for _ in range(2):
        assert not packed_attention._has_flash(CPU, torch.bfloat16, 4, 2, 8, False)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "block by block" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_gpu_before_ampere(fresh, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not packed_attention._has_flash(CUDA, torch.float16, 4, 2, 8, False)
    assert not caplog.records


def test_lack_of_memory_is_no_lack_of_flash_attention(fresh, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(packed_attention, "_flash_attention", full)
        with pytest.raises(torch.OutOfMemoryError):
            packed_attention._has_flash(CPU, torch.bfloat16, 4, 2, 8, False)
    with flash_attention_on_the_cpu():
        assert packed_attention._has_flash(CPU, torch.bfloat16, 4, 2, 8, False)
