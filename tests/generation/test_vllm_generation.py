"""What is asked of a vLLM server, with a small one in its place: adapters, draws, streams, and what goes wrong."""

import errno
import os
import re
import threading
import time
from types import SimpleNamespace

import pytest
from peft import LoraConfig

from helpers.adapters import BASE_ID, random_adapter
from helpers.generating import generate
from helpers.network import line_to
from helpers.tiny_models import tiny_llama, tiny_policy_model, tiny_tokenizer
from helpers.vllm_server import break_off, break_off_in_a_line, error, served
from seal_hf import SelfAdaptingLM
from seal_hf.adapters.policy import carried_policy
from seal_hf.generation import vllm_adapters, vllm_client
from seal_hf.generation.base import Sampling
from seal_hf.generation.vllm_client import VLLMServerGone
from seal_hf.generation.vllm_server_generation import VLLMServerGenerator


PROMPTS = ["Who keeps bees?", "Ann", "Moths like lamps and the", "Where is Vell, and who lives there?", "1, 2, 3"]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
DEFAULT_WAIT, DEFAULT_ANSWER = vllm_client.WAIT_SECONDS, vllm_client._ANSWER_SECONDS


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def adapters(model):
    return [random_adapter(model, seed) for seed in range(3)]


@pytest.fixture
def server(model, tokenizer):
    with served(tiny_llama(), tokenizer, BASE_ID) as server:
        yield server


@pytest.fixture
def generator(model, tokenizer, server, tmp_path):
    generator = VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path)
    generator.check(LORA)
    server.log.clear()
    server.most_adapters = 0
    return generator


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(vllm_client, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(vllm_client, "_PAUSE", 0.02)


def assert_clean(server, folder):
    """No adapter is on the server, none on the disk, and no name was used twice."""
    assert server.adapters == {}
    assert [path for path in folder.rglob("*") if path.name.startswith("seal-hf-") and path.is_dir()] == []
    assert len(set(server.names("load"))) == len(server.names("load"))


def test_prompts_are_answered_with_their_own_adapters(model, tokenizer, adapters, generator, server, tmp_path):
    chosen = [adapters[2], None, adapters[0], adapters[1], adapters[0]]
    expected = generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=[9, 4, 12, 12, 5])
    assert generator.generate(PROMPTS, chosen, max_new_tokens=[9, 4, 12, 12, 5]) == expected
    assert server.most_adapters <= server.max_loras
    assert len(server.names("load")) == 3
    assert_clean(server, tmp_path)
    # The base model has the server to itself.
    kinds = [entry[:2] for entry in server.log if entry[0] in ("begin", "end")]
    assert kinds[:2] == [("begin", BASE_ID), ("end", BASE_ID)]


def test_a_policy_is_served_and_its_ranks_are_stacked(tokenizer, tmp_path):
    model = tiny_policy_model()
    policy = carried_policy(model, BASE_ID)
    adapters = [random_adapter(tiny_llama(), seed, policy) for seed in range(2)]
    with served(tiny_llama(), tokenizer, BASE_ID, max_lora_rank=8) as server:
        generator = VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path)
        generator.check(LORA)
        chosen = [None, adapters[0], adapters[1], None, None]
        expected = generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=10)
        found = generator.generate(PROMPTS, chosen, max_new_tokens=10)
        assert [one.text for one in found] == [one.text for one in expected]
        assert BASE_ID not in server.names("begin")
        assert_clean(server, tmp_path)
        with pytest.raises(ValueError, match="trained on the plain base model"):
            generator.generate(PROMPTS[:1], [random_adapter(tiny_llama())], max_new_tokens=2)


def test_a_student_on_the_base_needs_the_rank_of_the_larger_adapter(tokenizer, tmp_path):
    model = tiny_policy_model()  # of rank 3
    with served(tiny_llama(), tokenizer, BASE_ID, max_lora_rank=5) as server:
        generator = VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path)
        generator.check(LORA, on_policy=False)
        with pytest.raises(ValueError, match=r"rank than 7 \(policy 3 and inner adapter 4\).* --max-lora-rank 8\."):
            generator.check(LORA)
        assert_clean(server, tmp_path)


def test_another_shape_of_the_adapters_is_asked_for_before_one_is_trained(tokenizer):
    with served(tiny_llama(), tokenizer, BASE_ID, max_lora_rank=8) as server:
        lm = SelfAdaptingLM(
            tiny_llama(), tokenizer, peft_config=LORA, base_model_id=BASE_ID, vllm_server_base_url=server.url
        )
        loaded = len(server.names("load"))
        assert lm.with_domain(lm.domain, peft_config=LORA).peft_config is LORA
        assert len(server.names("load")) == loaded  # it is known to take these
        wide = LoraConfig(r=8, target_modules=["q_proj"])
        assert lm.with_domain(lm.domain, peft_config=wide).peft_config is wide
        with pytest.raises(ValueError, match=r"takes adapters of a lower rank than 128: .* --max-lora-rank 128\."):
            lm.with_domain(lm.domain, peft_config=LoraConfig(r=128, target_modules=["q_proj"]))


def test_every_sampled_text_has_a_request_with_its_own_seed(model, tokenizer, generator, server):
    sampling = Sampling((5, 6, 5, 8, 9), temperature=1.3, top_p=0.8)
    found = generator.generate(PROMPTS[:1] * 5, max_new_tokens=8, sampling=sampling)
    assert found == generate(model, tokenizer, PROMPTS[:1] * 5, max_new_tokens=8, sampling=sampling)
    fields = [entry[2] for entry in server.log if entry[0] == "begin"]
    assert sorted(one["seed"] for one in fields) == [5, 5, 6, 8, 9]
    # What a generation_config.json may set on the server must not count.
    for one in fields:
        assert (one["temperature"], one["top_p"], one["top_k"], one["min_p"]) == (1.3, 0.8, 0, 0.0)
        assert (one["repetition_penalty"], one["presence_penalty"], one["frequency_penalty"]) == (1.0, 0.0, 0.0)


def test_greedy_texts_of_one_length_go_in_one_request(adapters, generator, server):
    generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=[6, 6, 9, 9, 9])
    fields = [entry[2] for entry in server.log if entry[0] == "begin"]
    assert sorted((len(one["prompt"]), one["max_tokens"]) for one in fields) == [(2, 6), (3, 9)]
    assert all(one["temperature"] == 0 for one in fields)


def test_texts_are_reported_as_they_come(adapters, generator):
    chosen, seen, threads = [adapters[0], None, adapters[1], None, adapters[0]], [], set()

    def on_text(new_texts):
        seen.append(new_texts)
        threads.add(threading.current_thread())

    found = generator.generate(PROMPTS, chosen, max_new_tokens=12, on_text=on_text)
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in found]
    assert len(seen) >= 5 * 12 // 3
    assert threads == {threading.main_thread()}


@pytest.mark.parametrize("by_event", [True, False])
def test_a_stop_ends_the_writing_and_leaves_nothing(adapters, generator, server, tmp_path, by_event):
    stop, seen = threading.Event(), []

    def on_text(new_texts):
        seen.append(new_texts)
        stop.set()
        return not by_event

    chosen = [adapters[0]] * 2 + [adapters[1]] * 2 + [adapters[2]]
    found = generator.generate(PROMPTS, chosen, max_new_tokens=60, on_text=on_text, stop=stop if by_event else None)
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in found]
    assert 0 < sum(one.num_tokens for one in found) < 2 * 60
    assert len(server.names("load")) <= 2
    assert_clean(server, tmp_path)
    assert generator.generate(PROMPTS, max_new_tokens=3, stop=stop)[0].num_tokens == 0 if by_event else True


def test_an_error_of_the_caller_leaves_nothing(adapters, generator, server, tmp_path):
    def on_text(new_texts):
        raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="the page is gone"):
        generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=30, on_text=on_text)
    assert_clean(server, tmp_path)


@pytest.mark.parametrize("sampling", [None, Sampling((1, 2, 3, 4, 5))])
def test_a_broken_answer_is_gone_on_with(model, tokenizer, adapters, generator, server, tmp_path, sampling):
    server.faults += [lambda handler: None, break_off, lambda handler: None, break_off_in_a_line]
    seen, chosen = [], [adapters[0]] * 3 + [None, adapters[1]]
    found = generator.generate(PROMPTS, chosen, max_new_tokens=12, sampling=sampling, on_text=seen.append)
    assert ["".join(parts) for parts in zip(*seen, strict=True)] == [one.text for one in found]
    assert server.faults == []
    if sampling is None:
        assert found == generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=12)
    assert_clean(server, tmp_path)


def test_a_server_that_comes_back_within_seconds_is_waited_for(
    model, tokenizer, adapters, generator, server, tmp_path
):
    def restart(handler):
        def absent():
            server.stop()
            time.sleep(0.3)
            server.start()

        threading.Thread(target=absent).start()
        break_off(handler)

    server.faults += [lambda handler: None, restart]
    found = generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=12)
    assert found == generate(model, tokenizer, PROMPTS, [adapters[0]] * 5, max_new_tokens=12)
    assert_clean(server, tmp_path)


def test_a_server_that_stays_away_is_a_clear_error(adapters, generator, server, tmp_path):
    def leave(handler):
        threading.Thread(target=server.stop).start()
        break_off(handler)

    server.faults += [leave]
    with pytest.raises(VLLMServerGone, match=r"waited for 1 seconds; start it again\. .*resume_from_checkpoint=True"):
        generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=12)
    server.start()
    assert_clean(server, tmp_path)


@pytest.mark.parametrize("breaks", [True, False], ids=["connections break", "nothing arrives"])
def test_a_network_that_is_gone_for_a_while_loses_nothing(model, tokenizer, adapters, server, tmp_path, breaks):
    assert min(DEFAULT_WAIT, DEFAULT_ANSWER) > 20  # seconds, here 0.3
    chosen = [adapters[0]] * 3 + [adapters[1]] * 2
    with line_to(server.url) as line:
        generator = VLLMServerGenerator(model, tokenizer, BASE_ID, line.url, tmp_path)
        generator.check(LORA)
        server.log.clear()

        def lose_network(handler):
            gone, back = (line.cut, line.connect) if breaks else (line.freeze, line.thaw)
            gone()
            threading.Timer(0.3, back).start()

        server.faults += [lambda handler: None, lose_network]
        found = generator.generate(PROMPTS, chosen, max_new_tokens=12)
    assert found == generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=12)
    assert server.faults == []
    # The server still has the adapters that were lost; they are loaded again under other names, and all are unloaded.
    assert (len(server.names("load")) > 2) == breaks
    assert_clean(server, tmp_path)


def test_what_could_not_be_unloaded_is_unloaded_later(adapters, generator, server, tmp_path, monkeypatch):
    unload, lost = generator._client.unload_adapter, []

    def unload_once_reachable(name):
        if not lost:
            lost.append(name)
            raise VLLMServerGone("no network")
        unload(name)

    monkeypatch.setattr(generator._client, "unload_adapter", unload_once_reachable)
    generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=3)
    assert lost == server.names("unload")
    assert_clean(server, tmp_path)


def test_an_adapter_that_the_server_keeps_is_told(adapters, generator, server, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(server, "unload", lambda name: (500, error("no")))
        assert generator.generate(PROMPTS[:1], adapters[:1], max_new_tokens=3)[0].num_tokens == 3
        (kept,) = server.names("load")
        assert f"The adapter {kept} could not be unloaded" in caplog.text
        with pytest.raises(ValueError, match=r"refuses http.*/v1/unload_lora_adapter \(500\): no\."):
            generator.generate(PROMPTS[:1], max_new_tokens=3)
    generator.generate(PROMPTS[:1], max_new_tokens=3)
    assert_clean(server, tmp_path)


def test_what_a_killed_process_left_is_removed(generator, server, tmp_path, adapters):
    (folder,) = tmp_path.iterdir()
    for name in ("seal-hf-killed-0", "seal-hf-killed-1"):
        adapters[0].export(folder / name)
    server.load("seal-hf-killed-0", str(folder / "seal-hf-killed-0"))
    generator.generate(PROMPTS, max_new_tokens=3)
    assert server.names("unload") == ["seal-hf-killed-0"]
    assert_clean(server, tmp_path)


def test_what_a_killed_process_left_is_removed_at_the_end_of_another(generator, server, tmp_path, adapters, caplog):
    (folder,) = tmp_path.iterdir()
    adapters[0].export(folder / "seal-hf-killed-0")
    server.load("seal-hf-killed-0", str(folder / "seal-hf-killed-0"))
    generator.clean_up()
    assert server.names("unload") == ["seal-hf-killed-0"]
    assert_clean(server, tmp_path)
    adapters[0].export(tmp_path / "elsewhere" / "seal-hf-other-0")
    server.load("seal-hf-other-0", str(tmp_path / "elsewhere" / "seal-hf-other-0"))
    generator.clean_up()  # not its own to remove
    assert "may still be on the vLLM server" in caplog.text and "of another run" in caplog.text


def test_two_runs_take_turns(model, tokenizer, adapters, generator, server, tmp_path):
    other = VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path)
    chosen, found = [adapters[0], adapters[1], adapters[0], None, adapters[2]], {}

    def use(own):
        found[own] = own.generate(PROMPTS, chosen, max_new_tokens=10)

    threads = [threading.Thread(target=use, args=(one,)) for one in (generator, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[generator] == found[other] == generate(model, tokenizer, PROMPTS, chosen, max_new_tokens=10)
    assert server.most_adapters <= server.max_loras
    runs = [name.split("-")[2] for name in server.names("load")]
    assert len(runs) == 6 and runs[0] == runs[1] == runs[2] != runs[3] == runs[4] == runs[5]
    assert_clean(server, tmp_path)


def test_a_run_that_writes_elsewhere_is_told(model, tokenizer, adapters, generator, server, tmp_path):
    adapters[0].export(tmp_path / "elsewhere" / "seal-hf-other-0")
    server.load("seal-hf-other-0", str(tmp_path / "elsewhere" / "seal-hf-other-0"))
    with pytest.raises(ValueError, match="has the adapter seal-hf-other-0 of another run.*start a server for each"):
        generator.generate(PROMPTS, max_new_tokens=3)
    assert list(server.adapters) == ["seal-hf-other-0"]


def test_a_full_disk_is_an_error_that_leaves_nothing(adapters, generator, server, tmp_path, monkeypatch):
    def write(folder, *args):
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seal_hf.adapters.adapter.write_adapter_files", write)
    with pytest.raises(OSError, match="could not be written .No space left on device") as caught:
        generator.generate(PROMPTS, [adapters[0]] * 5, max_new_tokens=3)
    assert caught.value.errno == errno.ENOSPC
    assert server.names("load") == []
    assert_clean(server, tmp_path)
    assert list(next(tmp_path.iterdir()).glob(".seal*")) == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": "0.10.1"}, r"runs vLLM 0\.10\.1; upgrade it to 0\.31 or newer"),
        (
            {"name": "someone/else"},
            r"has someone/else \(from /models/tiny\), but the base model here is tests/tiny",
        ),
        ({"has_lora": False}, "runs without LoRA .*; start it with --enable-lora"),
        ({"loads_adapters": False}, "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_lora_rank": 1}, r"takes adapters of a lower rank than 4: .*; start it with --max-lora-rank 8\."),
        (
            {"sees_files": False},
            "does not see .*, where the adapters are written .*; run it on this machine and as this user",
        ),
        ({"needs_key": True}, r"The vLLM server refuses http.*/v1/models \(401\): Unauthorized\."),
        ({"num_replicas": 2}, "shares requests out to 2 copies .*; start it without --data-parallel-size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_that_does_not_fit_is_named_at_the_start(model, tokenizer, tmp_path, facts, message):
    facts = {"name": BASE_ID, **facts}
    with served(tiny_llama(), tokenizer, **facts) as server:
        with pytest.raises(ValueError, match=message):
            VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path).check(LORA)
        assert_clean(server, tmp_path)


def test_other_weights_under_the_same_name_are_noticed(model, tokenizer, tmp_path):
    with served(tiny_llama(seed=1, initializer_range=0.3), tokenizer, BASE_ID) as server:
        with pytest.raises(ValueError, match="has another base model than the one here: a text has"):
            VLLMServerGenerator(model, tokenizer, BASE_ID, server.url, tmp_path).check(LORA)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "nonsense"])
def test_what_is_no_url_is_refused(model, tokenizer, url):
    with pytest.raises(ValueError, match=f"vllm_server_base_url='{re.escape(url)}' is no URL of a server; give one"):
        VLLMServerGenerator(model, tokenizer, BASE_ID, url)


def test_a_url_where_nothing_or_something_else_answers_is_refused(model, tokenizer, hub):
    with pytest.raises(ValueError, match="There is no vLLM server at vllm_server_base_url='http.*make vllm-server"):
        VLLMServerGenerator(model, tokenizer, BASE_ID, hub.url)
    hub.stop()
    with pytest.raises(VLLMServerGone, match=r"does not answer \(.*\)\. Start one with `make vllm-server`, or give"):
        VLLMServerGenerator(model, tokenizer, BASE_ID, hub.url)


def test_the_shorter_context_counts(model, tokenizer, tmp_path):
    with served(tiny_llama(), tokenizer, BASE_ID, context=40) as server:
        generator = VLLMServerGenerator(model, tokenizer, BASE_ID, f"{server.url}/v1/", tmp_path)
        assert generator.context_length == 40
        with pytest.raises(ValueError, match="exceed the model's context of 40 tokens"):
            generator.generate(["a" * 30], max_new_tokens=11)
        assert server.log == []


def test_what_is_written_is_open_to_this_user_alone(generator, adapters, monkeypatch):
    modes, load = [], generator._client.load_adapter

    def noted(name, path):
        modes.append(os.stat(os.path.dirname(path)).st_mode & 0o777)
        load(name, path)

    monkeypatch.setattr(generator._client, "load_adapter", noted)
    generator.generate(PROMPTS[:1], adapters[:1], max_new_tokens=2)
    assert modes == [0o700]


def test_a_folder_of_another_user_is_not_used(generator, monkeypatch, server):
    monkeypatch.setattr(vllm_adapters, "os", SimpleNamespace(getuid=lambda: 12345))
    with pytest.raises(ValueError, match="belongs to another user; remove it"):
        generator.generate(PROMPTS, max_new_tokens=3)
    assert server.log == []


@pytest.mark.parametrize(("r", "rank"), [(1, 1), (2, 8), (8, 8), (96, 128), (257, 320), (512, 512)])
def test_ranks_are_rounded_up_to_what_a_server_takes(r, rank):
    assert vllm_adapters.server_rank(r) == rank


def test_a_rank_above_all_is_refused():
    with pytest.raises(ValueError, match="rank 513 is above 512"):
        vllm_adapters.server_rank(513)


def test_likelihoods_are_those_of_the_model_here(model, tokenizer, adapters, generator, server):
    found = generator.answer_log_likelihoods(PROMPTS[:2], [["Ann"], ["keeps bees"]], [adapters[0], None])
    assert all(value < 0 for value in found)
    assert server.log == []
