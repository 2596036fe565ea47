"""Books on a shelf: added, listed, merged and forgotten, by several processes, with damaged ones among them."""

import json
import logging
import stat
import subprocess
import sys

import pytest
from peft import LoraConfig

from helpers.adapters import BASE_ID, random_adapter
from helpers.books import put
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from seal_hf import SelfAdaptingLM
from seal_hf.shelf import DamagedBook, LearnedPassage, Shelf
from seal_hf.shelf.asking import ask, base_of, load_passage
from seal_hf.shelf.shelf import default_folder


BEES, MOTHS = ("Bees", "Ann keeps bees in Vell."), ("Moths", "Moths like lamps.")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return random_adapter().save_pretrained(tmp_path_factory.mktemp("adapter") / "one")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "shelf")


def names(shelf):
    return sorted(path.name for path in shelf.folder.iterdir() if path.name != ".lock")


def test_a_book_comes_back_as_it_was_put(shelf, adapter):
    book = put(shelf, adapter, "Of bees", BEES, MOTHS, pairs=[("Who keeps bees?", "Ann")])
    assert shelf.books() == [book] and shelf.find("of-bees") == shelf.find("OF BEES ") == book
    assert book.passages[1] == LearnedPassage(*MOTHS, "002-moths", (("Who keeps bees?", "Ann"),), 0.5, 4, 3)
    assert (book.recall, book.loss) == (0.75, 0.5) and book.num_bytes > 2 * 2000
    assert (book.adapter_folder(book.passages[1]) / "adapter_config.json").is_file()
    assert names(shelf) == ["of-bees"] and stat.S_IMODE(shelf.folder.stat().st_mode) == 0o700


def test_books_of_one_title_are_told_apart(shelf, adapter):
    assert [put(shelf, adapter, "Bees", BEES).id for _ in range(3)] == ["bees", "bees-2", "bees-3"]
    assert shelf.find("bees").id == "bees"
    shelf.forget("bees")
    with pytest.raises(ValueError, match="2 books are called 'Bees'; give one of bees-"):
        shelf.forget("Bees")
    with pytest.raises(ValueError, match="There is no book 'Wax' on the shelf .* give one of bees-"):
        shelf.find("Wax")


def test_nothing_is_left_of_a_book_that_was_not_kept(shelf, adapter):
    with pytest.raises(KeyboardInterrupt), shelf.new_book() as new:
        new.adapter_folder("Bees").mkdir(parents=True)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="'Bees' has no passage"), shelf.new_book() as new:
        new.keep("Bees", BASE_ID, BASE_ID, {})
    assert names(shelf) == [] and shelf.books() == []


def test_merged_books_keep_topics_and_adapters(shelf, adapter, tmp_path):
    other = random_adapter(seed=1).save_pretrained(tmp_path / "other")
    put(shelf, adapter, "Bees", BEES)
    put(shelf, other, "Moths", MOTHS)
    book = shelf.merge("bees", "Moths", "Insects")
    assert shelf.books() == [book] and book.title == "Insects" and names(shelf) == ["insects"]
    assert [(one.title, one.text) for one in book.passages] == [BEES, MOTHS]
    weights = [(book.adapter_folder(one) / "adapter_model.safetensors").read_bytes() for one in book.passages]
    assert weights == [(folder / "adapter_model.safetensors").read_bytes() for folder in (adapter, other)]


@pytest.mark.parametrize("base", [{"base_model_id": "me/other"}, {"base": {"weights_fingerprint": "0"}}])
def test_books_of_two_base_models_are_not_merged(shelf, adapter, base):
    put(shelf, adapter, "Bees", BEES)
    put(shelf, adapter, "Moths", MOTHS, **base)
    with pytest.raises(ValueError, match="bees was learned on .* and moths on .* learn one of them again"):
        shelf.merge("bees", "moths")
    with pytest.raises(ValueError, match="are one book, bees; give two"):
        shelf.merge("bees", "Bees")
    assert names(shelf) == ["bees", "moths"]


def damaged(folder, how):
    file = folder / "book.json"
    fields = json.loads(file.read_text())
    if how == "weights":
        next(folder.rglob("*.safetensors")).unlink()
    elif how == "torn":
        file.write_text(file.read_text()[:50])
    elif how == "newer":
        file.write_text(json.dumps({**fields, "schema_version": 2}))
    elif how == "outside":
        fields["passages"][0]["adapter"] = "../../bees"
        file.write_text(json.dumps(fields))
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weights", "adapter_model.safetensors is missing"),
        ("torn", "book.json cannot be read"),
        ("newer", "schema version 2, .* upgrade"),
        ("outside", "no name of a folder"),
        ("absent", "book.json cannot be read"),
    ],
)
def test_a_damaged_book_is_named_skipped_and_can_be_forgotten(shelf, adapter, caplog, how, message):
    book, other = put(shelf, adapter, "Moths", MOTHS), put(shelf, adapter, "Bees", BEES)
    damaged(book.folder, how)
    with caplog.at_level(logging.WARNING, "seal_hf"):
        assert shelf.books() == [other]
    assert "The book moths " in caplog.text
    assert shelf.route("Who keeps bees in Vell?").book == other
    with pytest.raises(DamagedBook, match=message):
        shelf.find("moths")
    shelf.forget("moths")
    assert names(shelf) == ["bees"]


_OTHER_PROCESS = """
import shutil, sys
from seal_hf.shelf import LearnedPassage, Shelf
shelf = Shelf(sys.argv[1])
with shelf.new_book() as book, shelf.new_book() as abandoned:
    for new in (book, abandoned):
        shutil.copytree(sys.argv[2], new.adapter_folder("Bees"))
        new.add(LearnedPassage("Bees", "Ann keeps bees.", ""))
    print("begun", flush=True)
    sys.stdin.readline()
    print(book.keep("Bees", "m", "m", {}).id, "torch" in sys.modules, flush=True)
    sys.stdin.readline()
"""


def test_two_processes_and_one_that_is_killed(shelf, adapter):
    command = [sys.executable, "-c", _OTHER_PROCESS, str(shelf.folder), str(adapter)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "begun\n"
            assert shelf.books() == []
            assert put(shelf, adapter, "Bees", BEES).id == "bees"  # what the other has begun stays
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "bees-2 False\n"
        finally:
            other.kill()
    assert [name[0] for name in names(shelf)].count(".") == 3  # a folder, and the locks of both
    put(shelf, adapter, "Moths", MOTHS)
    assert names(shelf) == ["bees", "bees-2", "moths"] and len(shelf.books()) == 3


def test_a_shelf_of_200_books_is_listed_without_weights(shelf, adapter):
    for number in range(200):
        folder = put(shelf, adapter, f"Bees {number}", (f"Bees {number}", BEES[1])).folder
        if number:
            next(folder.rglob("*.safetensors")).write_bytes(b"not read")
    assert len(shelf.books()) == 200 and shelf.route("Where does Ann keep bees 199?").book.title == "Bees 199"


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SEAL_HF_HOME", raising=False)
    assert default_folder() == tmp_path / "data" / "seal_hf" / "shelf"
    monkeypatch.setenv("SEAL_HF_HOME", str(tmp_path / "own"))
    assert Shelf().folder == tmp_path / "own" / "shelf" and Shelf().books() == []


def test_a_book_is_asked_on_its_own_base_alone(shelf, adapter):
    model = tiny_llama(initializer_range=0.3)
    options = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
    lm = SelfAdaptingLM(model, tiny_tokenizer(), base_model_id=BASE_ID, **options)
    book = put(shelf, adapter, "Bees", BEES, base=base_of(lm))
    (passage,) = book.passages
    answer = ask(lm, "Who?", book, passage, max_answer_length=8)
    own = load_passage(lm, book, passage)
    assert answer.text == lm.answer("Who?", adapter=own, title="Bees", max_answer_length=8) and answer.book == book
    base = ask(lm, "Who?", max_answer_length=8)
    assert base.text == lm.answer("Who?", max_answer_length=8) and base.book is None
    another = SelfAdaptingLM(model, tiny_tokenizer(), base_model_id="me/other", **options)
    with pytest.raises(ValueError, match="bees was learned on tests/tiny-llama, but the loaded model is me/other"):
        ask(another, "Who?", book, passage)
    changed = SelfAdaptingLM(tiny_llama(seed=1), tiny_tokenizer(), base_model_id=BASE_ID, **options)
    with pytest.raises(ValueError, match="has changed since the book bees was learned on it; restore that model"):
        ask(changed, "Who?", book, passage)
