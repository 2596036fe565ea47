"""
Which of torch's attention kernels may be used.

torch has several behind `scaled_dot_product_attention` and from 2.11 on takes cuDNN's first on Hopper GPUs. That one builds a
plan for every new shape, and decoding has a new shape at every token; and its backward pass can give NaN under a mask
(pytorch issue 196678, in TRL 7181). The others, flash, memory-efficient and plain, have neither fault.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp


_lock = threading.Lock()
_num_inside = 0
_enabled_outside = True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """
    Keep attention from cuDNN inside the block; torch's other kernels stay as they are, as does all on the CPU.

    A kernel is chosen in the forward pass, so the backward pass may be outside, unless it computes the forward pass again.
    The choice is one for the whole process: it is restored when the last of the blocks that are open ends, in whichever
    thread.
    """
    global _num_inside, _enabled_outside
    with _lock:
        if not _num_inside:
            _enabled_outside = cudnn_sdp_enabled()
            enable_cudnn_sdp(False)
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if not _num_inside:
                enable_cudnn_sdp(_enabled_outside)
