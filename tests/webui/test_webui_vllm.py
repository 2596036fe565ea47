"""The app on a model whose texts a vLLM server writes: all that it writes comes from there."""

import pytest
from peft import LoraConfig

from helpers.adapters import BASE_ID
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.vllm_server import served
from helpers.web_page import QUESTIONS, QUICK, learned, written
from seal_hf import SelfAdaptingLM
from seal_hf.generation import vllm_adapters
from seal_hf.webui.work.workbench import Workbench


@pytest.fixture
def server():
    with served(tiny_llama(), tiny_tokenizer(), BASE_ID) as server:
        yield server


def test_self_edits_and_answers_come_from_the_server(tmp_path, monkeypatch, server):
    monkeypatch.setattr(vllm_adapters, "_SHARED_MEMORY", tmp_path)
    options = {"base_model_id": BASE_ID, "peft_config": LoraConfig(r=QUICK.lora_r)}
    served_lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), vllm_server_base_url=server.url, **options)
    own_lm = SelfAdaptingLM(tiny_llama(), tiny_tokenizer(), **options)
    results = []
    for lm in (served_lm, own_lm):
        server.log.clear()
        bench = Workbench(lm, tmp_path / f"sessions{len(results)}")
        session = bench.sessions.open()
        written(bench, session)
        texts, num_written = [draft.written for draft in session.drafts], len(server.names("begin"))
        answers = learned(bench, session, questions=QUESTIONS)["answers"]
        results.append((texts, answers, num_written > 0, len(server.names("begin")) > num_written))
    (texts, answers, *asked), (own_texts, own_answers, *own_asked) = results
    assert (texts, answers) == (own_texts, own_answers)
    assert (asked, own_asked) == ([True, True], [False, False])
    assert server.adapters == {}
