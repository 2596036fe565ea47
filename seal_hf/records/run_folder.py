"""The folder of one run: its settings, whether it can be resumed, and the policies that it keeps."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import TrainerState

from .files import (
    RESUME,
    RUN_FILE,
    SCHEMA_VERSION,
    check_schema_version,
    explaining_failed_write,
    remedy_of,
    write_text,
)
from .journal import Journal


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
# The folder of a repository in which a run is pushed whole, under transformers' name.
LAST_CHECKPOINT = "last-checkpoint"
STAGED_PREFIX = ".push-"
# There after a fit that failed, until one succeeds.
_FAILED_FIT_FILE = "failed_fit.json"
# Holds what a copy of a run has not put into place yet. Where it is without a RUN_FILE beside it, a copy was interrupted.
_PARTIAL_COPY = f".{LAST_CHECKPOINT}.partial"
_RUN_FOLDERS = (
    "proposals",
    "rubric",
    "reward_questions",
    "journal",
    "selected",
    "instructions",
    "evaluation",
    "policy",
)
# What belongs to a run, as patterns; every file of it is only ever replaced whole.
RUN_FILES = (
    RUN_FILE,
    STATE_FILE,
    "rewards.png",
    *(f"{folder}/*{suffix}" for folder in _RUN_FOLDERS for suffix in (".json", ".jsonl", ".safetensors")),
)
# Settings that tell the model: a name, and what its weights are.
_NAME, _WEIGHTS = "model", "model.weights"
# What runs of earlier versions do not have, and what they have though nothing depends on it.
_GRADERS = ("domain.grader", "eval_domain.grader")
_LATER = (_WEIGHTS, "writer.weights", *(f"{grader}.endpoint" for grader in _GRADERS))
_FREE = tuple(f"{grader}.max_workers" for grader in _GRADERS)
_STATE_FIELDS = ("global_step", "epoch", "log_history", "best_metric", "stateful_callbacks")


class RunFolder:
    """
    One run's output directory.

    Parameters:
        output_dir (`str` or `Path`):
            The directory.
        settings (`dict[str, Any]`):
            What defines the run: two runs with equal settings compute the same. A flat, JSON-serializable dictionary.
        fit_settings (`Sequence[str]`, *optional*):
            The settings that no record from before a fit depends on. After a fit that failed they may be changed.
        resume (`str`, *optional*):
            How its work is gone on with, for messages. Defaults to how a trainer's is.
    """

    def __init__(
        self,
        output_dir: str | Path,
        settings: Mapping[str, Any],
        fit_settings: Sequence[str] = (),
        resume: str = RESUME,
    ):
        self.path = Path(output_dir)
        self.journal = Journal(self.path, resume)
        self.evaluation = Journal(self.path / "evaluation", resume)
        self._resume = resume
        self._settings, self._fit_settings = dict(settings), frozenset(fit_settings)

    def check_writable(self) -> None:
        """
        Raises:
            OSError: The folder cannot be written, or made.
        """
        existing = self._existing()
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise OSError(f"output_dir={str(self.path)!r} cannot be written, because of {existing}; give another one.")

    def check(self, resume: bool, free_bytes_needed: int) -> None:
        """
        Raises:
            ValueError: The folder holds a run with other settings, one of another version, or, where it is not to be
                resumed, any run.
            OSError: The folder cannot be written, or the disk has too little room.
        """
        run_file = self.path / RUN_FILE
        if run_file.is_file():
            self._check_settings(run_file)
            if not resume and self.journal.proposals(0) is not None:
                raise ValueError(
                    f"{self.path} holds a run with these settings; resume it with resume_from_checkpoint=True, or "
                    "give another output_dir. Nothing was changed."
                )
        elif (self.path / _PARTIAL_COPY).exists():
            raise ValueError(
                f"{self.path} holds half of a run from the Hub; fetch it again with "
                f"resume_from_checkpoint={LAST_CHECKPOINT!r}, or give another output_dir."
            )
        elif any(journal.proposals(0) is not None for journal in (self.journal, self.evaluation)):
            raise ValueError(
                f"{self.path} holds a run, but not its {RUN_FILE}, so that its settings are not known; restore the file, "
                "or give another output_dir."
            )
        self.check_writable()
        free = shutil.disk_usage(self._existing()).free
        if free < free_bytes_needed:
            raise OSError(
                f"The disk of {self.path} has {free / 1e6:.0f} MB left, but the run needs about "
                f"{free_bytes_needed / 1e6:.0f} MB for its policies; make room or give another output_dir."
            )

    def _existing(self) -> Path:
        """The folder, or the nearest one above it that is there."""
        return next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())

    def open(self, resume: bool, free_bytes_needed: int) -> None:
        """Check the folder, and make it this run's."""
        self.check(resume, free_bytes_needed)
        run_file = self.path / RUN_FILE
        record = {"schema_version": SCHEMA_VERSION, "settings": self._settings}
        if run_file.is_file():
            found = json.loads(run_file.read_text(encoding="utf-8"))
            if found["settings"] == self._settings:
                return
            # Changed after a fit that failed: the rounds before it had the former ones.
            former = {name: found["settings"].get(name) for name in self._fit_settings}
            own = {name: value for name, value in former.items() if value != self._settings.get(name)}
            changes = [*found.get("former", []), *([{"rounds_fitted": self.num_policies(), **own}] if own else [])]
            record |= {"former": changes} if changes else {}
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
        write_text(run_file, f"{text}\n", remedy_of(self._resume))

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Keep others from working in the folder, which is made where there is none, for the length of the block; the system ends it
        with the process.

        Raises:
            ValueError: Another one works in it.
            OSError: It cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"Another process is working in {self.path}; wait for its end, or end it, and {self._resume}."
                ) from error
            except OSError as error:
                logger.warning("%s cannot be locked (%s); do not train in it twice at a time.", self.path, error)
            yield
        finally:
            os.close(folder)

    def _check_settings(self, run_file: Path) -> None:
        try:
            record = json.loads(run_file.read_text(encoding="utf-8"))
            version, found = record["schema_version"], record["settings"]
            if not isinstance(version, int) or not isinstance(found, dict):
                raise TypeError("schema_version or settings of another kind")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{run_file} is not a run of seal-hf ({error!r}); give another output_dir, so that nothing is lost."
            ) from error
        check_schema_version(version, run_file)
        if version < SCHEMA_VERSION:
            raise ValueError(
                f"{run_file} was written by an older seal-hf (schema {version}, this one writes {SCHEMA_VERSION}), whose "
                "rewards mean something else; finish the run with that version, or give another output_dir."
            )
        different = sorted(name for name in {*found, *self._settings} if found.get(name) != self._settings.get(name))
        different = [name for name in different if name not in _FREE and (name in found or name not in _LATER)]
        if _NAME in different and _WEIGHTS in found and _WEIGHTS not in different:
            logger.warning(
                "%s was begun with the model %s, and goes on with %s, whose weights are the same.",
                self.path,
                found.get(_NAME),
                self._settings[_NAME],
            )
            different.remove(_NAME)
        if different and not (self._fit_failed() and self._fit_settings.issuperset(different)):
            shown = ", ".join(
                f"{name} ({found.get(name)!r} there, {self._settings.get(name)!r} here)" for name in different[:5]
            )
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"{self.path} holds a run with other settings: {shown}{more}; give another output_dir, or these settings."
            )

    def note_failed_fit(self, round_index: int) -> None:
        """Let the settings of the fits be others when the run is resumed, until a fit has succeeded."""
        write_text(self.path / _FAILED_FIT_FILE, json.dumps({"round": round_index + 1}) + "\n")

    def _fit_failed(self) -> bool:
        return (self.path / _FAILED_FIT_FILE).is_file()

    def policy(self, round_index: int) -> Path:
        """Where the policy after a round's SFT is kept; it is there once it is complete."""
        return self.path / "policy" / f"round_{round_index:03d}"

    def sft(self, round_index: int) -> Path:
        """What is left for a round's SFT by other processes; it is there until the policy is."""
        return self.path / "sft" / f"round_{round_index:03d}"

    def begin_policy(self, round_index: int) -> Path:
        """An empty folder for a policy that is not complete yet."""
        partial = self.policy(round_index).with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish_policy(self, round_index: int) -> None:
        """Sync the files of the folder that was begun, and give it its name."""
        partial = self.policy(round_index).with_suffix(".partial")
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        os.replace(partial, self.policy(round_index))
        (self.path / _FAILED_FIT_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.sft(round_index), ignore_errors=True)

    def save_state(self, state: TrainerState, folder: Path | None = None) -> None:
        """Write the trainer's state: step count, log history, and what its callbacks keep."""
        record = {name: getattr(state, name) for name in _STATE_FIELDS}
        write_text((folder or self.path) / STATE_FILE, json.dumps(record, indent=1) + "\n")

    def holds_a_run(self) -> bool:
        """Whether there is anything of a run, with or without its settings, other than half a copy of one."""
        if (self.path / RUN_FILE).exists():
            return True
        return not (self.path / _PARTIAL_COPY).exists() and any((self.path / name).exists() for name in _RUN_FOLDERS)

    def link_to(self, folder: Path) -> None:
        """A copy of the run as it is now: hard links, since no file of it is ever changed in place."""
        for name in (*_RUN_FOLDERS, RUN_FILE, STATE_FILE, "rewards.png"):
            link_tree(self.path / name, folder / name)

    def copy_from(self, folder: Path) -> None:
        """
        Make a copy of a run's files this folder's, which holds no run. One that was interrupted is made again.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        partial = self.path / _PARTIAL_COPY
        with explaining_failed_write(self.path):
            if partial.exists():
                for name in (*_RUN_FOLDERS, partial.name):
                    if (self.path / name).exists():
                        shutil.rmtree(self.path / name)
            try:
                for file in folder.rglob("*"):
                    name = file.relative_to(folder).as_posix()
                    if file.is_file() and any(fnmatch(name, pattern) for pattern in RUN_FILES):
                        (partial / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, partial / name)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            # The settings come last, so that half of it is no run.
            for path in sorted(partial.iterdir(), key=lambda path: path.name == RUN_FILE):
                os.replace(path, self.path / path.name)
            partial.rmdir()

    def remove_staged(self) -> None:
        """Remove what pushes and copies of a process that was killed have left."""
        for folder in (*self.path.glob(f"{STAGED_PREFIX}*"), self.path / _PARTIAL_COPY):
            shutil.rmtree(folder, ignore_errors=True)

    def num_policies(self) -> int:
        """How many rounds' policies are there."""
        return len([folder for folder in (self.path / "policy").glob("round_???") if folder.is_dir()])

    def require_at_most(self, num_rounds: int) -> None:
        """
        Raises:
            ValueError: The run has more rounds than these.
        """
        if (number := self.num_policies()) > num_rounds:
            raise ValueError(
                f"{self.path} holds {number} rounds, more than num_rounds={num_rounds}; set num_rounds to at least "
                f"{number}, or give another output_dir. The policy of each round is in its folder policy."
            )

    def require_latest(self, num_rounds: int) -> None:
        """
        Raises:
            ValueError: The run has the policy of a later round than this.
        """
        if num_rounds < (number := self.num_policies()):
            raise ValueError(
                f"{self.path} holds the policy of round {number}, this trainer's is that of round {num_rounds}; call "
                "train(resume_from_checkpoint=True) first, which restores it."
            )

    def load_state(self) -> dict[str, Any]:
        """The furthest state on disk: a policy's own is written before the run's."""
        files = [self.path / STATE_FILE, *sorted((self.path / "policy").glob(f"round_???/{STATE_FILE}"))]
        records = []
        for file in filter(Path.is_file, files):
            try:
                records.append(json.loads(file.read_text(encoding="utf-8")))
            except ValueError as error:
                # transformers' own save_state() writes it in place.
                logger.warning("%s is damaged (%s); the log before it is used.", file, error)
        furthest = max(records, key=lambda record: (record["global_step"], len(record["log_history"])), default={})
        # transformers' own save_state() writes more to a file of this name.
        return {name: furthest[name] for name in _STATE_FIELDS if name in furthest}


def link_tree(source: Path, target: Path) -> None:
    """Hard links to a file or to all files of a folder, copies on another file system; none to a half-written one."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    for file in files:
        relative = file.relative_to(source)
        if any(part.endswith(".partial") for part in relative.parts):
            continue
        linked = target / relative
        linked.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, linked)
        except OSError:
            shutil.copy2(file, linked)
