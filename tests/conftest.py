import pytest

from seal_hf.embedded import embedded_model_path


@pytest.fixture(scope="session")
def embedded_path():
    """Folder of the embedded model, prepared once in the cache of the user who runs the tests."""
    return embedded_model_path()
