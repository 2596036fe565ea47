"""The loss at the labelled tokens, against autograd over the whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seal_hf.inner_loop import losses as packed_loss
from seal_hf.inner_loop.losses import ChunkedCrossEntropy


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunks", [1, 4])
def test_chunked_cross_entropy(monkeypatch, chunks, bias):
    head = nn.Linear(6, 50, bias=bias).requires_grad_(False)
    monkeypatch.setattr(packed_loss, "_LOGITS", 50 * (12 // chunks))
    hidden = (20 * torch.randn(11, 6)).requires_grad_()  # some logits so far apart that probabilities vanish
    labels, shares = torch.randint(50, (11,)), torch.rand(11)
    losses = ChunkedCrossEntropy(head)(hidden, None, labels)
    (grad,) = torch.autograd.grad((losses * shares).sum(), hidden)
    expected = F.cross_entropy(head(hidden), labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, torch.autograd.grad((expected * shares).sum(), hidden)[0], rtol=1e-4, atol=1e-5)
    assert losses.isfinite().all() and losses.max() > 20
