"""The files of a run: whole or absent, read back as they were, and refused rather than misread."""

import errno
import json
import logging
import math
import os

import pytest

from seal_hf.domains.base import SELF_EDITS
from seal_hf.records import files
from seal_hf.records.files import SCHEMA_VERSION, read_records, write_records, write_text
from seal_hf.records.journal import Journal
from seal_hf.records.schema import Proposal, ScoredSelfEdit, SelectedSelfEdit, TrialResult


# Every separator that str.splitlines() knows, quotes and characters outside the basic plane.
HARD_TEXT = 'One\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\neight\r\nnine\rten "\\n" \U0001f9ad é世\x00'
CHAT = [{"role": "system", "content": HARD_TEXT}, {"role": "user", "content": "Write."}]
REPEATS = [{"seed": 2**62, "reward": 0.1, "answers": [HARD_TEXT, ""], "verdicts": [True, None], "loss": 0.7}]
PROPOSALS = [
    Proposal(3, SELF_EDITS, 0, "id é", 0, CHAT, HARD_TEXT, 7, True, 120, [0, 4], True, [9, 2]),
    Proposal(3, SELF_EDITS, 1, "1", 2, HARD_TEXT, "", 0, False, 0, []),
    Proposal(
        *(3, SELF_EDITS, 1, "1", 3, HARD_TEXT, HARD_TEXT, 9, True, 80, [1, 5], False, [4]),
        tool_examples=[{"prompt": CHAT, "completion": HARD_TEXT}, {"prompt": "", "completion": "é"}],
        metrics={"questions": 3, "coverage": 1 / 3},
    ),
]
RESULTS = [
    TrialResult(SELF_EDITS, 0, 0, 1, 2**62, 0.1 + 0.2, [HARD_TEXT, ""], [True, None], 1e-17, 60, 0.25),
    TrialResult("base", 1, 0, 0, 5, None, [], [], None, 0, 0.0),
]
SCORED = [
    ScoredSelfEdit(3, SELF_EDITS, 0, "id é", 0, CHAT, HARD_TEXT, 7, True, REPEATS, 1 / 3, 0.25, 120, 0.5),
    ScoredSelfEdit(3, SELF_EDITS, 1, "1", 2, HARD_TEXT, "", 0, False, [], None, None, 0, 0.0),
    ScoredSelfEdit(
        3, SELF_EDITS, 1, "1", 3, HARD_TEXT, "", 0, False, [], 0.0, None, 0, 0.0, metrics={"coverage": 0.5}
    ),
]
SELECTED = [SelectedSelfEdit(CHAT, HARD_TEXT, "id é", 0, 1 / 3), SelectedSelfEdit(HARD_TEXT, "x", "1", 2, 1.0)]
# Kind of record: file, writing, reading, what is there.
KINDS = {
    "proposals": ("proposals/round_003.jsonl", "write_proposals", "proposals", PROPOSALS),
    "banks": ("journal/round_003/bank_0012.jsonl", "write_bank", "banks", RESULTS),
    "scored": ("journal/round_003.jsonl", "write_scored", "scored", SCORED),
    "selected": ("selected/round_003.jsonl", "write_selected", "selected", SELECTED),
}


class Kind:
    """One kind of record in a journal of its own."""

    def __init__(self, name, folder):
        path, self._write, self._read, self.records = KINDS[name]
        self.journal, self.file, self.is_bank = Journal(folder), folder / path, name == "banks"

    def write(self, records=None):
        arguments = (3, 12) if self.is_bank else (3,)
        getattr(self.journal, self._write)(*arguments, self.records if records is None else records)

    def read(self):
        found = getattr(self.journal, self._read)(3)
        return found[12] if self.is_bank else found


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    return Kind(request.param, tmp_path)


def test_round_trip(kind):
    kind.write()
    assert kind.read() == kind.records
    assert [type(record) for record in kind.read()] == [type(record) for record in kind.records]


def test_every_line_is_json_with_the_schema_version(kind):
    kind.write()
    lines = kind.file.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(kind.records)
    for line, record in zip(lines, kind.records, strict=True):
        assert json.loads(line) == {"schema_version": SCHEMA_VERSION, **vars(record)}


def test_a_record_is_readable_as_it_is_and_not_escaped(kind):
    kind.write()
    assert "世" in kind.file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "record"), [("proposals", PROPOSALS[1]), ("scored", SCORED[1]), ("selected", SELECTED[1])]
)
def test_records_of_the_first_schema_are_read(tmp_path, kind, record):
    own = Kind(kind, tmp_path)
    later = ("finished", "completion_ids", "tool_examples", "metrics", "same_as")
    known = {name: value for name, value in vars(record).items() if name not in later}
    own.file.parent.mkdir(parents=True)
    own.file.write_text(json.dumps({"schema_version": 1, **known}) + "\n")
    assert own.read() == [record]
    assert own.read()[0].completion_ids is None


def test_no_records_are_not_the_same_as_no_file(kind):
    kind.write([])
    assert kind.file.read_bytes() == b""
    assert kind.read() == []


def test_nothing_is_there_at_first(tmp_path):
    journal = Journal(tmp_path / "none")
    assert [journal.proposals(0), journal.scored(0), journal.selected(0)] == [None, None, None]
    assert journal.banks(0) == {}
    assert not (tmp_path / "none").exists()


def test_rounds_do_not_meet(tmp_path):
    journal = Journal(tmp_path)
    journal.write_selected(0, SELECTED)
    journal.write_selected(1, SELECTED[:1])
    journal.write_bank(0, 0, RESULTS)
    assert (journal.selected(0), journal.selected(1), journal.selected(2)) == (SELECTED, SELECTED[:1], None)
    assert (journal.banks(0), journal.banks(1)) == ({0: RESULTS}, {})


def test_scored_rounds_end_at_the_first_gap(tmp_path):
    journal = Journal(tmp_path)
    assert journal.scored_rounds() == []
    for round_index in (0, 1, 3):
        journal.write_scored(round_index, SCORED[: round_index + 1])
    assert journal.scored_rounds() == [SCORED[:1], SCORED[:2]]


def test_not_a_number_survives(tmp_path):
    write_records(tmp_path / "file", [{"loss": math.nan}, {"loss": math.inf}])
    first, second = read_records(tmp_path / "file")
    assert math.isnan(first["loss"]) and second == {"loss": math.inf}


def test_a_newer_schema_is_refused_and_left_alone(kind):
    kind.write()
    content = kind.file.read_text().replace(
        f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}', 1
    )
    kind.file.write_text(content)
    with pytest.raises(ValueError) as refusal:
        kind.read()
    assert str(refusal.value) == (
        f"{kind.file} was written by a newer seal-hf (schema {SCHEMA_VERSION + 1}, this one reads up to {SCHEMA_VERSION}); upgrade "
        "with `pip install --upgrade seal-hf`, or give another output_dir."
    )
    assert kind.file.read_text() == content


@pytest.mark.parametrize("num_bytes_lost", [1, 2, 25])
def test_a_last_line_without_its_end_is_dropped_with_a_warning(kind, caplog, num_bytes_lost):
    kind.write()
    kind.file.write_bytes(kind.file.read_bytes()[:-num_bytes_lost])
    with caplog.at_level(logging.WARNING, logger="seal_hf.records.journal"):
        assert kind.read() == kind.records[:-1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind.file}: the last line has no end and is dropped."
    ]


def test_a_file_cut_at_any_byte_gives_its_whole_lines(tmp_path):
    file = tmp_path / "file"
    write_records(file, [{"text": "é"}, {"text": "\U0001f9ad\u2028"}])
    whole = file.read_bytes()
    lengths = []
    for end in range(len(whole) + 1):
        file.write_bytes(whole[:end])
        lengths.append(len(read_records(file)))
    first_line = whole.index(b"\n") + 1
    assert lengths == [0] * first_line + [1] * (len(whole) - first_line) + [2]


def test_an_entire_file_is_read_without_a_warning(kind, caplog):
    kind.write()
    kind.read()
    assert caplog.records == []


@pytest.mark.parametrize("damage", ["", "{", '{"a": 1}', "[1]", "3", "null", '"text"'])
def test_a_damaged_line_is_named(kind, damage):
    kind.write(kind.records * 2)
    lines = kind.file.read_text().split("\n")
    lines[2] = damage
    kind.file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="restore it") as refusal:
        kind.read()
    assert str(refusal.value).startswith(f"{kind.file}, line 3, is not a record of seal-hf (")


def test_a_line_of_damaged_bytes_is_named(tmp_path):
    file = tmp_path / "file"
    write_records(file, [{"text": "plain"}, {"text": "damaged"}, {"text": "plain"}])
    file.write_bytes(file.read_bytes().replace(b"damaged", b"dam\xffged"))
    with pytest.raises(ValueError, match="line 2, is not a record of seal-hf .*restore it"):
        read_records(file)


@pytest.mark.parametrize("version", ["null", '"2"'])
def test_a_damaged_schema_version_is_named(tmp_path, version):
    file = tmp_path / "file"
    file.write_text(f'{{"schema_version": {version}}}\n')
    with pytest.raises(ValueError, match="line 1, is not a record of seal-hf .*restore it"):
        read_records(file)


@pytest.mark.parametrize("change", [{"surplus": 1}, {"example_id": None, "other": 2}])
def test_records_of_another_kind_are_refused(tmp_path, change):
    write_records(tmp_path / "selected" / "round_000.jsonl", [{**vars(SELECTED[0]), **change}])
    with pytest.raises(ValueError, match="does not hold records of seal-hf .*restore it"):
        Journal(tmp_path).selected(0)


def test_banks_of_one_round_are_forgotten(tmp_path):
    journal = Journal(tmp_path)
    for round_index in (2, 3):
        journal.write_bank(round_index, 0, RESULTS)
        journal.write_bank(round_index, 1, RESULTS)
    journal.write_scored(3, SCORED)
    assert set(journal.banks(3)) == {0, 1}
    journal.forget_banks(3)
    assert (journal.banks(3), journal.scored(3)) == ({}, SCORED)
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["round_002", "round_003.jsonl"]
    assert set(journal.banks(2)) == {0, 1}


def test_banks_stay_where_scored_cannot_be_written(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.write_bank(0, 0, RESULTS)
    fail(monkeypatch, "fsync", errno.ENOSPC)
    with pytest.raises(OSError):
        journal.write_scored(0, SCORED)
    assert journal.banks(0) == {0: RESULTS}


def test_banks_are_found_by_number_and_unfinished_ones_are_not(tmp_path):
    journal = Journal(tmp_path)
    for bank in (10, 2, 10000, 0):
        journal.write_bank(0, bank, RESULTS[: bank % 3])
    folder = tmp_path / "journal" / "round_000"
    (folder / "bank_0003.jsonl.partial").write_text('{"schema_version": 1')
    (folder / "notes.txt").write_text("mine")
    (folder / "bank_0004.jsonl.bak").write_text("mine")
    found = journal.banks(0)
    assert list(found) == [0, 2, 10, 10000]
    assert {bank: len(results) for bank, results in found.items()} == {0: 0, 2: 2, 10: 1, 10000: 1}


def fail(monkeypatch, function, number):
    """Let a function of `os`, as the journal calls it, fail as a full disk or a closed folder does."""

    def failing(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, function, failing)


@pytest.mark.parametrize(("function", "number"), [("fsync", errno.ENOSPC), ("replace", errno.EACCES)])
def test_a_failed_write_leaves_the_former_file(kind, monkeypatch, function, number):
    kind.write()
    former = kind.file.read_bytes()
    fail(monkeypatch, function, number)
    with pytest.raises(OSError) as error:
        kind.write(kind.records[:1])
    assert error.value.errno == number
    assert error.value.strerror == (
        f"{kind.file} could not be written ({os.strerror(number)}); make room or give another output_dir, then resume with "
        "resume_from_checkpoint=True. What was written before is safe"
    )
    assert kind.file.read_bytes() == former
    assert kind.read() == kind.records


def test_a_failed_first_write_leaves_nothing_to_be_read(kind, monkeypatch):
    fail(monkeypatch, "fsync", errno.ENOSPC)
    with pytest.raises(OSError):
        kind.write()
    assert not kind.file.exists()
    monkeypatch.undo()
    kind.write()  # over whatever was left beside it
    assert kind.read() == kind.records
    assert [path.name for path in kind.file.parent.iterdir()] == [kind.file.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="could not be written .*give another output_dir") as error:
        Journal(tmp_path / "taken").write_selected(0, SELECTED)
    assert str(tmp_path / "taken" / "selected" / "round_000.jsonl") in str(error.value)


def test_a_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(("synced", os.fstat(descriptor).st_size))
        real_sync(descriptor)

    def replace(source, target):
        events.append(("named", target.name, source.parent == target.parent))
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_text(tmp_path / "new" / "file", "text é")
    assert events[:2] == [("synced", 7), ("named", "file", True)]
    assert (tmp_path / "new" / "file").read_text(encoding="utf-8") == "text é"
