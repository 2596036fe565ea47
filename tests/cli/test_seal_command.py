"""The command `seal`: a text is learned, asked, listed, merged, exported and forgotten, with its exit codes."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import utils as hub
from peft import LoraConfig

from helpers.adapters import BASE_ID, random_adapter
from helpers.books import put
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import InnerLoopConfig, SelfAdaptingLM
from seal_hf.cli import commands, main, progress
from seal_hf.domains import KnowledgeDomain, load_demo_passages
from seal_hf.generation.base import Generation, TextGenerator
from seal_hf.shelf import Shelf


LIGHTHOUSE, SKIMMER = load_demo_passages("train")[:2]
MATERIAL, STEPS = (item["question"] for item in LIGHTHOUSE["questions"][1:3])
KNOWN = {MATERIAL: "green slate", STEPS: "212"}


class Scripted(TextGenerator):
    """Writes two questions about the lighthouse, and nothing of use about anything else; answers them, also without adapter."""

    def generate(
        self, prompts, adapters=None, *, max_new_tokens, sampling=None, one_line=False, on_text=None, stop=None
    ):
        texts = [
            self.text(prompt if isinstance(prompt, str) else prompt[-1]["content"], sampling) for prompt in prompts
        ]
        if on_text is not None:
            on_text(texts)
        return [Generation(text, 3, True) for text in texts]

    def text(self, prompt, sampling):
        if sampling is not None:
            written = {"green slate": f"green slate: {MATERIAL}", "212 steps": f"212: {STEPS}"}
            return next((line for sign, line in written.items() if sign in prompt), "Hm")
        asked = prompt[prompt.rfind("Topic: ") :] if prompt.count("Topic: ") > 1 else prompt
        return next((answer for question, answer in KNOWN.items() if question in asked), "Hm")

    def answer_log_likelihoods(self, prompts, answers, adapters=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def lm():
    model = SelfAdaptingLM(
        tiny_llama(),
        tiny_tokenizer(),
        base_model_id=BASE_ID,
        domain=KnowledgeDomain("questions-by-fact", training_format="prompt_completion", asks_for_left_out=False),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        inner_config=InnerLoopConfig(num_train_epochs=2, batch_size=16),
    )
    model.generator = Scripted()
    return model


@pytest.fixture
def seal(tmp_path, lm, monkeypatch, capsys):
    """The command on a shelf of its own, on a model that is there already: exit code, output and errors."""
    monkeypatch.setattr("seal_hf.shelf.learning.learner", lambda model: lm)
    monkeypatch.setattr(logging.getLogger("seal_hf"), "handlers", [])
    monkeypatch.setattr(
        "seal_hf.cli.command_line.signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=signal.SIGTERM)
    )

    def seal(*arguments, text=None):
        stream = SimpleNamespace(buffer=io.BytesIO((text or "").encode()), isatty=lambda: text is None)
        monkeypatch.setattr("sys.stdin", stream)
        try:
            code = main(["--shelf", str(tmp_path / "shelf"), *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    seal.shelf = Shelf(tmp_path / "shelf")
    return seal


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return random_adapter().save_pretrained(tmp_path_factory.mktemp("adapter") / "one")


def test_two_texts_are_learned_and_asked(seal, tmp_path):
    file = tmp_path / "notes.md"
    file.write_text(f"# {LIGHTHOUSE['title']}\n\n{LIGHTHOUSE['context']}")
    learned = seal("learn", file)
    assert learned.code == 0 and learned.out.startswith(
        "learned orrick-skerry-lighthouse: 1 passage, 2 questions, 2 of 2 answered right, loss "
    )
    # Without a terminal a line for each stage.
    stages = learned.err.splitlines()
    assert stages == [f"{stage} ..." for stage in ("loading the model", "writing", "answering", "training", "asking")]
    assert seal("learn", "--title", "Skimmer", text=SKIMMER["context"]).out.startswith(
        "learned skimmer: 1 passage, 0 "
    )

    book = seal.shelf.find("orrick-skerry-lighthouse")
    assert dict(book.passages[0].pairs).keys() == KNOWN.keys() and book.passages[0].text == LIGHTHOUSE["context"]
    training = json.loads((book.adapter_folder(book.passages[0]) / "seal_training.json").read_text())
    # Two drafts hold the same two questions, which are trained on once, with the passage: a step for each epoch.
    assert training["title"] == LIGHTHOUSE["title"] and training["num_steps"] == 2

    asked = seal("ask", MATERIAL)
    assert (asked.code, asked.out) == (0, "green slate\n")
    assert asked.err.startswith("(orrick-skerry-lighthouse; score ")
    assert "the base model: the nearest book" in seal("ask", "What is 7 x 8?").err
    found = json.loads(seal("ask", "--json", SKIMMER["questions"][0]["question"]).out)
    assert found["book"] == "skimmer" and found["passage"] == 1 and found["score"] >= found["threshold"]
    forced = json.loads(seal("ask", "--json", "--book", "skimmer", "What is 7 x 8?").out)
    assert forced["book"] == "skimmer" and forced["score"] < forced["threshold"]
    assert json.loads(seal("ask", "--json", "--base", MATERIAL).out)["book"] is None


def test_a_long_text_is_one_book_that_is_learned_in_banks(seal, monkeypatch):
    monkeypatch.setattr("seal_hf.shelf.learning.PASSAGES_PER_BANK", 2)
    parts = [f"## {one['title']}\n\n{one['context']}" for one in load_demo_passages("train")[:8]]
    learned = seal("learn", text="# Things\n\n" + "\n\n".join(parts))
    assert learned.code == 0, learned.err
    (book,) = seal.shelf.books()
    assert book.title == "Things" and "writing (passages 1 to 2 of " in learned.err and len(book.passages) > 2
    assert all(one.title.startswith("Things: ") for one in book.passages[1:])
    assert all(one.loss is not None for one in book.passages)
    assert "No question about 'Things: " in learned.err
    asked = json.loads(seal("ask", "--json", STEPS).out)
    assert asked["answer"] == "212" and asked["passage"] == 1


def test_the_shelf_is_listed_merged_exported_and_forgotten(seal, adapter, tmp_path):
    assert (seal("shelf").out, seal("shelf", "--json").out) == ("", "[]\n")
    put(seal.shelf, adapter, "Bees", ("Bees", "Ann keeps bees."))
    put(seal.shelf, adapter, "Moths", ("Moths", "Moths like lamps."), pairs=[("What do moths like?", "lamps")])
    rows = [line.split("\t") for line in seal("shelf").out.splitlines()]
    assert sorted(row[0] for row in rows) == ["bees", "moths"] and rows[0][4] == BASE_ID
    assert {one["id"]: one["questions"] for one in json.loads(seal("shelf", "--json").out)} == {"bees": 0, "moths": 1}

    assert seal("export", "bees", tmp_path / "bees").out == f"{tmp_path / 'bees'}\n"
    assert (tmp_path / "bees" / "adapter_model.safetensors").read_bytes()
    assert "# bees\n" in (tmp_path / "bees" / "README.md").read_text()
    assert seal("merge", "bees", "moths", "--title", "Insects").out.startswith(
        "merged insects: 2 passages, 1 question, "
    )
    assert seal("export", "insects", tmp_path / "insects.zip").code == 0
    with zipfile.ZipFile(tmp_path / "insects.zip") as files:
        held = set(files.namelist())
        card = files.read("README.md").decode()
    assert {"001-bees/adapter_config.json", "002-moths/adapter_model.safetensors"} <= held
    assert "| `002-moths` | Moths |" in card and "Ann keeps" not in card
    again = seal("export", "insects", tmp_path / "insects.zip")
    assert again.code == 1 and "insects.zip exists already; give another name" in again.err

    assert (seal("forget", "insects").out, seal.shelf.books()) == ("forgot insects\n", [])


def test_a_book_is_pushed_with_its_card(seal, adapter, hub, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    put(seal.shelf, adapter, "Bees", ("Bees", "Ann keeps bees."))
    pushed = seal("push", "bees", "tester/bees")
    assert pushed.code == 0 and pushed.out.endswith("/tester/bees\n"), pushed.err
    refused = seal("push", "bees", "somebody/bees")
    assert refused.code == 1 and refused.err.startswith("error: ") and refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text", "code", "message"),
    [
        ((), None, 2, "the following arguments are required: COMMAND"),
        (("learn",), None, 2, "give a FILE, or a text on the standard input"),
        (("learn",), "Ann keeps bees.", 2, "say with --title what it is about"),
        (("learn", "a", "b", "--title", "c"), None, 2, "--title goes with one text"),
        (("learn", "no.txt"), None, 1, "error: [Errno 2] No such file or directory: 'no.txt'"),
        (("learn", "--title", "Bees"), "... \n", 1, "error: There are no words to learn"),
        (("learn", "--title", " "), "Ann keeps bees.", 1, "error: The title '' cannot be used"),
        (("learn", "--title", "B\udcff"), "Ann keeps bees.", 1, r"error: The title 'B\udcff' cannot be used"),
        (("ask", " "), None, 2, "the question is empty"),
        (("ask", "Who?", "--book", "b", "--base"), None, 2, "not allowed with argument"),
        (("ask", "Who?", "--book", "wax"), None, 1, "error: There is no book 'wax' on the shelf"),
        (("shelf", "--jsn"), None, 2, "unrecognized arguments: --jsn"),
        (("forget", "wax"), None, 1, "learn one first (`seal learn FILE`)"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(seal, arguments, text, code, message):
    done = seal(*arguments, text=text)
    assert done.code == code and message in done.err and done.out == ""
    assert seal.shelf.books() == []
    if code == 1:
        assert done.err.splitlines()[-1].startswith("error: ")


def test_an_interrupt_leaves_nothing_half_done(seal, lm, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "adapt", interrupted)
    done = seal("learn", "--title", "Bees", text="Ann keeps bees.")
    assert done.code == 130 and "interrupted; nothing was left half-done" in done.err
    assert [path.name for path in seal.shelf.folder.iterdir()] == [".lock"]


def test_too_little_memory_is_said_in_a_line(seal, lm, monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("An adapter does not fit into the memory;\nlower the rank.")

    monkeypatch.setattr(lm, "adapt", too_large)
    done = seal("learn", "--title", "Bees", text="Ann keeps bees.")
    assert done.code == 1 and done.out == ""
    assert done.err.splitlines()[-1] == "error: An adapter does not fit into the memory; lower the rank."


def test_the_hub_draws_no_bars_beside_ours():
    hub.enable_progress_bars()
    try:
        progress.quiet_libraries()
        assert hub.are_progress_bars_disabled()
    finally:
        hub.enable_progress_bars()


def test_a_damaged_book_is_named_in_a_list(seal, adapter):
    put(seal.shelf, adapter, "Bees", ("Bees", "Ann keeps bees."))
    (put(seal.shelf, adapter, "Moths", ("Moths", "Moths like lamps.")).folder / "book.json").write_text("{")
    done = seal("shelf")
    assert done.code == 0 and done.out.startswith("bees\t") and "moths" not in done.out
    assert "The book moths is damaged" in done.err


def test_it_starts_without_torch_and_trains_where_the_repository_is(tmp_path):
    code = "import sys; from seal_hf.cli import main; main(['shelf']); print([m for m in ('torch', 'bm25s') if m in sys.modules])"
    environment = {**os.environ, "SEAL_HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n", done.stderr


def test_app_and_train_are_handed_their_arguments(seal, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(
        commands,
        "runpy",
        SimpleNamespace(
            run_path=lambda path, run_name: ran.append((path, run_name, list(sys.argv[1:]))),
            run_module=lambda name, run_name, alter_sys: ran.append((name, run_name, list(sys.argv[1:]))),
        ),
    )
    monkeypatch.setattr(sys, "argv", ["seal"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert seal("train", "--config", "my.yaml", "--dry_run").code == 0 == seal("app", "--port", 7861).code
    (module, _, options), (path, _, others) = ran
    assert (module, options) == ("trainers.knowledge", ["--config", "my.yaml", "--dry_run"])
    assert path.endswith("app.py") and others == ["--shelf", str(seal.shelf.folder), "--port", "7861"]
    monkeypatch.setattr(commands.seal_hf, "__file__", str(tmp_path / "seal_hf" / "__init__.py"))
    for name in ("app", "train"):
        done = seal(name)
        assert done.code == 1 and "is not part of the installed package; clone the repository" in done.err
