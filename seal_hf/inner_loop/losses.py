"""
The loss at the labelled tokens.

A loss is called with what the output embedding gets and gives: `loss(hidden, logits, labels)`, of shapes `(M, d)`, `(M, V)`
and `(M,)`, returns the loss of each label, `(M,)`, fp32. One with `takes_logits = False` gets no logits, so that the model
never computes them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..models.memory import free_memory


# Logits held at once. Every chunk reads the output embedding twice, so large chunks make the matrix products faster: on a CPU
# until they outgrow its caches in bf16, and beyond that in fp32, where products take longer; on CUDA until a chunk has some
# hundred labels, as a GPU does some hundred operations for each byte that it reads.
_LOGITS, _WIDE_LOGITS, _CUDA_LOGITS = 2**23, 2**25, 2**27
_CUDA_LABELS = 4096  # more gain nothing, however small the vocabulary
# Most that they take on CUDA of the memory that is free, which is there for activations above all. Held of each logit are
# two fp32 numbers, and in half precision itself, 8 or 10 bytes: 2**27 logits take 1.25 GiB in bf16.
_MEMORY_SHARE = 1 / 16


def cross_entropy(head: nn.Linear | None) -> "ChunkedCrossEntropy | LogitsCrossEntropy":
    """
    The cross entropy for a model.

    Args:
        head (`nn.Linear`, *optional*):
            Its output embedding, where the model does nothing to the logits after it.
    """
    return LogitsCrossEntropy() if head is None else ChunkedCrossEntropy(head)


class LogitsCrossEntropy:
    """Cross entropy of the logits that the model gives, for models that change them after their output embedding."""

    takes_logits = True

    def __call__(self, hidden: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="none")


class ChunkedCrossEntropy:
    """
    Cross entropy after a frozen output embedding, for gradients of its input alone, in chunks, so that the logits of a
    large vocabulary are never held all at once.

    The buffers are kept: to be given a vocabulary's worth of new memory in every step costs more than the arithmetic.

    Parameters:
        head (`nn.Linear`):
            The output embedding, `d` to `V` features.
    """

    takes_logits = False

    def __init__(self, head: nn.Linear):
        self.head = head
        size = chunk_size(head)
        self.logits = torch.empty(size, head.out_features, dtype=head.weight.dtype, device=head.weight.device)
        self.probabilities = torch.empty_like(self.logits, dtype=torch.float32)
        is_wide = self.logits.dtype == torch.float32
        self.wide_logits = self.logits if is_wide else torch.empty_like(self.probabilities)

    def __call__(self, hidden: torch.Tensor, logits: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        return _CrossEntropy.apply(hidden, labels, self)

    def chunk(self, hidden: torch.Tensor, labels: torch.Tensor, grad_hidden: torch.Tensor) -> torch.Tensor:
        """The losses `(C, 1)` of at most as many labels as the buffers hold; the gradient goes into `grad_hidden`."""
        count, weight, bias = len(labels), self.head.weight, self.head.bias
        logits, wide, probabilities = (part[:count] for part in (self.logits, self.wide_logits, self.probabilities))
        torch.mm(hidden, weight.mT, out=logits)
        if bias is not None:
            logits += bias
        wide.copy_(logits)  # nothing where they are one
        torch.softmax(wide, -1, out=probabilities)
        # log of the sum of exponentials, by the greatest probability, which is never 0
        normalizer = wide.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        losses = normalizer - wide.gather(-1, labels[:, None])
        probabilities.scatter_add_(-1, labels[:, None], torch.full_like(losses, -1.0))
        torch.mm(logits.copy_(probabilities), weight, out=grad_hidden)
        return losses


def chunk_size(head: nn.Linear) -> int:
    """The labels whose logits are held at once: what makes the products fast, and on CUDA what the memory allows."""
    dtype, device = head.weight.dtype, head.weight.device
    if device.type == "cuda":
        bytes_per_logit = 8 if dtype == torch.float32 else 10
        fitting = int(free_memory(device) * _MEMORY_SHARE) // bytes_per_logit
        num_logits = max(_LOGITS, min(fitting, _CUDA_LOGITS, _CUDA_LABELS * head.out_features))
    else:
        num_logits = _WIDE_LOGITS if dtype == torch.float32 else _LOGITS
    return max(1, num_logits // head.out_features)


class _CrossEntropy(torch.autograd.Function):
    """The gradient of a chunk is computed in the forward pass, while its logits are there."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, labels: torch.Tensor, loss: ChunkedCrossEntropy) -> torch.Tensor:
        losses, grad_hidden = [], torch.empty_like(hidden)
        size = len(loss.logits)
        for start in range(0, len(labels), size):
            chunk = slice(start, start + size)
            losses.append(loss.chunk(hidden[chunk], labels[chunk], grad_hidden[chunk]))
        ctx.save_for_backward(grad_hidden)
        return torch.cat(losses).squeeze(-1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (grad_hidden,) = ctx.saved_tensors
        return (grad_hidden * grad[:, None]).to(grad_hidden.dtype), None, None
