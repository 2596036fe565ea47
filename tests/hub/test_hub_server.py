"""What the test Hub refuses, as the Hub does."""

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import BadRequestError


INDEX = """model-index:
- name: adapter
  results:
  - task: {type: question-answering}
    dataset: {name: passages, type: custom}
    metrics: [{type: accuracy, value: 0.5}]
"""


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: mit\nbase_model: [gpt2, some/base]\n" + INDEX, None),
        ("base_model: /home/me/model", "base_model"),
        ("base_model: outputs/run/model", "base_model"),
        ("license: Apache License 2.0", "license"),
        ("tags: [a", "YAML"),
        (INDEX.replace("type: question-answering", ""), "model-index"),
        (INDEX.replace(", value: 0.5", ""), "model-index"),
    ],
)
def test_cards_are_checked(hub, token, metadata, wrong):
    text = f"---\n{metadata}\n---\nText"
    if wrong is None:
        ModelCard(text).validate()
        return
    api = HfApi(token=token)
    api.create_repo("tester/adapter")
    with pytest.raises(ValueError, match=wrong):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="tester/adapter")


def test_a_commit_of_bytes_that_never_came_is_refused(hub, token, monkeypatch):
    api = HfApi(token=token)
    api.create_repo("tester/adapter")
    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", lambda **options: None)
    with pytest.raises(BadRequestError, match="does not exist"):
        api.upload_file(path_or_fileobj=b"\0", path_in_repo="a.bin", repo_id="tester/adapter")
