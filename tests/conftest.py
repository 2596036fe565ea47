import pytest
import torch

from seal_hf.embedded import embedded_model_path


# Small models on a busy machine are many times slower with two threads than with one, and rounding depends on the number.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_path():
    """Folder of the embedded model, prepared once in the cache of the user who runs the tests."""
    return embedded_model_path()
