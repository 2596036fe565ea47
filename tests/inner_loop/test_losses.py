"""The loss at the labelled tokens, against autograd over the whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.operators import Operators
from seal_hf.inner_loop import losses as packed_loss
from seal_hf.inner_loop.losses import ChunkedCrossEntropy, chunk_size


GIB = 2**30


@pytest.fixture
def cuda(monkeypatch):
    """What is made in the block that it gives is on a GPU with so much free memory, without values."""

    def gpu(free_memory):
        monkeypatch.setattr(packed_loss, "free_memory", lambda device: free_memory)
        return FakeTensorMode()

    return gpu


def fake_head(vocabulary: int, dtype: torch.dtype = torch.bfloat16, bias: bool = False) -> nn.Linear:
    head = nn.Linear(64, vocabulary, bias=bias, device="meta")
    for name, parameter in list(head.named_parameters()):
        fake = torch.empty(parameter.shape, dtype=dtype, device="cuda:0")
        setattr(head, name, nn.Parameter(fake, requires_grad=False))
    return head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunks", [1, 4])
def test_chunked_cross_entropy(monkeypatch, chunks, bias):
    head = nn.Linear(6, 50, bias=bias).requires_grad_(False)
    monkeypatch.setattr(packed_loss, "_WIDE_LOGITS", 50 * (12 // chunks))
    hidden = (20 * torch.randn(11, 6)).requires_grad_()  # some logits so far apart that probabilities vanish
    labels, shares = torch.randint(50, (11,)), torch.rand(11)
    losses = ChunkedCrossEntropy(head)(hidden, None, labels)
    (grad,) = torch.autograd.grad((losses * shares).sum(), hidden)
    expected = F.cross_entropy(head(hidden), labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, torch.autograd.grad((expected * shares).sum(), hidden)[0], rtol=1e-4, atol=1e-5)
    assert losses.isfinite().all() and losses.max() > 20


@pytest.mark.parametrize("size", [1, 2, 5, 10, 11, 64])
def test_chunks_change_nothing(monkeypatch, size):
    head = nn.Linear(6, 50, bias=False).requires_grad_(False)
    hidden, labels, shares = torch.randn(11, 6).requires_grad_(), torch.randint(50, (11,)), torch.rand(11)
    found = []
    for chunk in (11, size):
        monkeypatch.setattr(packed_loss, "_WIDE_LOGITS", 50 * chunk)
        loss = ChunkedCrossEntropy(head)
        assert len(loss.logits) == chunk
        losses = loss(hidden, None, labels)
        found.append((losses.detach(), torch.autograd.grad((losses * shares).sum(), hidden)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_chunks_on_the_cpu():
    for vocabulary in (50, 49152, 2**26):
        for dtype, num_logits in ((torch.bfloat16, 2**23), (torch.float32, 2**25)):
            head = nn.Linear(1, vocabulary, bias=False, dtype=dtype)
            assert chunk_size(head) == max(1, num_logits // vocabulary)


@pytest.mark.parametrize(
    ("free_memory", "vocabulary", "dtype", "expected"),
    [
        (70 * GIB, 151936, torch.bfloat16, 883),  # 2**27 logits
        (70 * GIB, 49152, torch.float16, 2730),
        (70 * GIB, 32000, torch.float16, 4096),  # labels
        (8 * GIB, 151936, torch.bfloat16, 353),  # half a GiB, 10 bytes each
        (8 * GIB, 151936, torch.float32, 441),  # 8 bytes each
        (0, 151936, torch.bfloat16, 55),  # as on the CPU
    ],
)
def test_chunks_on_cuda(cuda, free_memory, vocabulary, dtype, expected):
    with cuda(free_memory):
        head = fake_head(vocabulary, dtype)
        assert chunk_size(head) == expected
        loss = ChunkedCrossEntropy(head)
        held = [loss.wide_logits, loss.probabilities]
        if dtype != torch.float32:
            held.append(loss.logits)
        assert all(part.shape == (expected, vocabulary) and part.is_cuda for part in held)
        num_bytes = sum(part.numel() * part.element_size() for part in held)
    assert num_bytes <= max(free_memory / 16, 10 * 2**23)


@pytest.mark.parametrize("bias", [False, True])
def test_the_host_does_not_wait_for_the_loss(monkeypatch, bias):
    """Where the host asked for a value of a tensor without values, this would fail."""
    monkeypatch.setattr(packed_loss, "_LOGITS", 1000 * 4)
    head = nn.Linear(64, 1000, bias=bias, dtype=torch.bfloat16, device="meta").requires_grad_(False)
    hidden = torch.empty(10, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    labels = torch.empty(10, dtype=torch.int64, device="meta")
    with Operators() as operators:
        losses = ChunkedCrossEntropy(head)(hidden, None, labels)
        (grad,) = torch.autograd.grad(losses.sum(), hidden)
    assert (losses.shape, losses.dtype) == ((10,), torch.float32)
    assert (grad.shape, grad.dtype) == ((10, 64), torch.bfloat16)
    assert operators.names.count("mm") == 2 * 3  # chunks of at most 4
    assert not {"_local_scalar_dense", "nonzero", "equal"} & set(operators.names)
