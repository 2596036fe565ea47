"""
Runs of the outer loop. Each is a process of its own, `trainers/knowledge.py`, with the command that the page shows.

A run continues when the page is closed, its crash does not affect the app, and the page shows what the run has written to
disk.
"""

import atexit
import hashlib
import hmac
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from ...adapters.sources import WEIGHTS_NAME
from ...records.journal import Journal
from ...records.report import evaluations
from . import inputs
from .jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused, Jobs
from .limits import OWN_MACHINE, Limits, Usage, minutes
from .settings import SHUFFLE_SEED, TrainingSettings
from .training_process import GRACE, TrainingProcess
from .training_records import TrainingSnapshot, candidates, failure, phase, without_folders


CONFIG_NAME, LOG_NAME = "config.yaml", "log.txt"
_LOG_LINES = 30
_READS = 5  # attempts to read a run's files, some of which may disappear meanwhile


class TrainingRuns:
    """
    Starts, stops and resumes training runs. Each session has one current run, and only one run is under way at a time.

    Parameters:
        jobs ([`Jobs`]):
            The visitors' jobs, which pause a run.
        folder (`Path`):
            Where the runs are.
        script (`Path`, *optional*):
            `trainers/knowledge.py`. No run can be started without it.
        model_name_or_path (`str`):
            The base model.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether the base model is quantized.
        chat_template_kwargs (`dict[str, object]`, *optional*):
            What the chat template is given.
        limits ([`Limits`], *optional*):
            How large and long a visitor's runs may be. Defaults to the limits of the user of this machine.
    """

    def __init__(
        self,
        jobs: Jobs,
        folder: Path,
        script: Path | None,
        model_name_or_path: str,
        load_in_4bit: bool = False,
        chat_template_kwargs: dict[str, object] | None = None,
        *,
        limits: Limits = OWN_MACHINE,
    ):
        self.limits, self._usage = limits, Usage(4 * limits.run_seconds)
        self._jobs, self._folder, self._script = jobs, folder.absolute(), script
        self._model, self._load_in_4bit = model_name_or_path, load_in_4bit
        self._chat_template_kwargs = chat_template_kwargs
        self._runs: dict[str, TrainingProcess] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def page_secret(self, purpose: str) -> str:
        """
        A key of 32 characters for one purpose, which tells nothing of those for others. It follows from a secret on disk, so that a
        page finds its run after a restart.
        """
        file = self._folder / "page-secret"
        if not file.is_file():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(16), encoding="ascii")
        return hmac.new(file.read_bytes(), purpose.encode(), hashlib.sha256).hexdigest()[:32]

    @property
    def can_start(self) -> bool:
        """Whether runs can be started here."""
        return self._script is not None and hasattr(signal, "SIGSTOP")

    def yaml(self, settings: TrainingSettings, dataset: str = "demo") -> str:
        """The YAML file for the same run on another machine."""
        return self._config(settings, "outputs/seal", dataset)

    def _config(self, settings: TrainingSettings, output_dir: str, dataset: str) -> str:
        return settings.config(
            self._model,
            output_dir,
            dataset,
            load_in_4bit=self._load_in_4bit,
            chat_template_kwargs=self._chat_template_kwargs,
        )

    def settings(self, owner: str) -> TrainingSettings | None:
        """The settings of the session's run; `None` where there is none."""
        folders = self._folders(owner)
        return TrainingSettings.of_config(_read_config(folders[-1])) if folders else None

    def start(self, owner: str, settings: TrainingSettings, dataset_file: Path | None = None) -> None:
        """
        Start a run, which becomes the session's current one.

        Args:
            owner (`str`):
                The session.
            settings ([`TrainingSettings`]):
                What the run does.
            dataset_file (`Path`, *optional*):
                Passages with questions, in a file that [`load_passages`] reads. Defaults to the demo passages.

        Raises:
            ValueError: The file has no passages, or too few of them, or the run would be too large.
            JobRefused: A run is under way, the session's runs have taken too long, or none can be started here.
        """
        self._require_script()
        self._require_small(settings)
        with self._lock:
            if self.is_running(owner):
                return
            num_passages = inputs.count_passages(dataset_file)
            if settings.num_train_passages > num_passages:
                raise ValueError(
                    f"There are {num_passages} passages, but {settings.num_train_passages} are to be learned from: "
                    "lower the number or give more."
                )
            if settings.num_rounds > settings.num_train_passages:
                raise ValueError(
                    f"{settings.num_rounds} rounds, each on passages that no earlier one had, need as many passages, but "
                    f"{settings.num_train_passages} are to be learned from: lower the rounds or raise the passages."
                )
            self._require_time(owner)
            # A new folder each time, so that the results of an earlier run stay.
            earlier = self._folders(owner)
            folder = self._folder_of(owner) / f"run_{_number(earlier) + 1:03d}"
            folder.mkdir(parents=True)
            try:
                dataset = "demo"
                if dataset_file is not None:
                    dataset = str(folder / f"passages{dataset_file.suffix}")
                    shutil.copyfile(dataset_file, dataset)
                config = self._config(settings, str(folder / "run"), dataset)
                (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
                self._launch(owner, folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
            # A stranger sees the last run only.
            for gone in earlier if self.limits.is_shared else ():
                shutil.rmtree(gone, ignore_errors=True)

    def resume(self, owner: str) -> None:
        """
        Continue the session's run where it ended.

        Raises:
            JobRefused: There is no run, another one is under way, or the session's runs have taken too long.
        """
        self._require_script()
        with self._lock:
            if self.is_running(owner):
                return
            if not (folders := self._folders(owner)):
                raise JobRefused("There is no run to resume: start one.")
            self._require_time(owner)
            self._launch(owner, folders[-1])

    def stop(self, owner: str) -> None:
        """Ask the session's run to end. Its results so far stay. A second call does nothing."""
        if (run := self._runs.get(owner)) is not None:
            run.stop()

    def forget(self, owner: str) -> None:
        """End the session's run and delete all that its runs have written."""
        self.stop(owner)
        if (run := self._runs.pop(owner, None)) is not None and run.process is not None:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(GRACE + 5)
        shutil.rmtree(self._folder_of(owner), ignore_errors=True)

    def close(self) -> None:
        """End all runs, whose processes would outlive this one. They can be resumed."""
        for run in list(self._runs.values()):
            run.end(signal.SIGTERM)

    def snapshot(self, owner: str) -> TrainingSnapshot | None:
        """The progress of the session's run; `None` where there is none."""
        if not (folders := self._folders(owner)):
            return None
        for _ in range(_READS):
            # The trainer removes the files of a round's banks when it writes the file of the whole round.
            with suppress(FileNotFoundError):
                return self._snapshot(owner, folders[-1])
        return self._snapshot(owner, folders[-1])

    def _snapshot(self, owner: str, folder: Path) -> TrainingSnapshot:
        config = _read_config(folder)
        run, output_dir = self._runs.get(owner), folder / "run"
        state = self._state(run, output_dir)
        log = (folder / LOG_NAME).read_bytes() if (folder / LOG_NAME).is_file() else b""
        found = evaluations(Journal(output_dir / "evaluation"))
        names = inputs.passage_names(str(config["dataset_name"]), int(config.get("shuffle_seed", SHUFFLE_SEED)))
        error = failure(run.process.returncode, _decode(log[run.log_start :])) if state == FAILED else None
        if state == STOPPED and run is not None and run.is_overdue:
            error = f"A visitor's runs are ended after {minutes(self.limits.run_seconds)} here."
        last_lines = "\n".join(_decode(log).splitlines()[-_LOG_LINES:])
        if self.limits.is_shared:
            error, last_lines = error and without_folders(error), without_folders(last_lines)
        return TrainingSnapshot(
            state=state,
            is_paused=run is not None and run.is_paused,
            phase=phase(config, output_dir, len(found)),
            folder=folder,
            candidates=candidates(Journal(output_dir), int(config["num_rounds"]), names),
            evaluations=found,
            error=error,
            log=last_lines,
        )

    def _state(self, run: TrainingProcess | None, output_dir: Path) -> str:
        if run is None:  # started before the app was; the file that a run saves last tells whether it is done
            return DONE if (output_dir / WEIGHTS_NAME).is_file() else STOPPED
        code = run.process.poll()
        if code is None:
            return RUNNING
        if code == 0:  # also where the request to stop came too late
            return DONE
        return STOPPED if run.is_stopped else FAILED

    def _require_script(self) -> None:
        if not self.can_start:
            raise JobRefused(
                "A run cannot be started here: copy the file and the command below, and start it on your own machine."
            )

    def _require_small(self, settings: TrainingSettings) -> None:
        num_evaluated = settings.num_eval_passages * (settings.num_rounds + 1)
        num_self_edits = settings.num_train_passages * settings.num_generations + num_evaluated
        size = num_self_edits * settings.inner_num_train_epochs
        if size > self.limits.run_lessons:
            raise ValueError(
                f"This run learns {num_self_edits:,} self-edits with those of the evaluations, times {settings.inner_num_train_epochs} "
                f"epochs is {size:,}, and {self.limits.run_lessons:,.0f} is the limit here: choose fewer passages, self-edits, rounds or "
                "epochs, or start the run on your own machine."
            )

    def _require_time(self, owner: str) -> None:
        if self._usage.total(owner) >= self.limits.run_seconds:
            raise JobRefused(
                f"Your runs have taken {minutes(self.limits.run_seconds)}, which is what a visitor has in "
                f"{minutes(self._usage.window)}: try again in {minutes(self._usage.next_free(owner))}, or start the run on your own "
                "machine."
            )

    def _folder_of(self, owner: str) -> Path:
        # The session's id is a secret, which a folder's name must not tell.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def _folders(self, owner: str) -> list[Path]:
        """The session's runs, oldest first."""
        return sorted(file.parent for file in self._folder_of(owner).glob(f"run_*/{CONFIG_NAME}"))

    def is_running(self, owner: str) -> bool:
        """Whether the session's run is under way."""
        run = self._runs.get(owner)
        return run is not None and run.is_running

    def _launch(self, owner: str, folder: Path) -> None:
        run = TrainingProcess()
        started = threading.Event()
        refused: list[Exception] = []
        command = [sys.executable, str(self._script), "--config", str(folder / CONFIG_NAME)]
        command += ["--resume_from_checkpoint", "true"]
        # The script imports its neighbours as `trainers.arguments`, from whatever folder the app was started in.
        paths = [str(self._script.absolute().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

        def serve() -> None:
            try:
                with self._jobs.background(run):
                    with (folder / LOG_NAME).open("ab") as log:
                        run.log_start = log.tell()
                        process = subprocess.Popen(
                            command,
                            env=environment,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            stdin=subprocess.DEVNULL,
                            start_new_session=True,
                        )
                    run.begin(process)
                    started.set()
                    with self._timed(owner, run):
                        process.wait()
            except (JobRefused, OSError) as error:
                refused.append(error)
            finally:
                started.set()

        threading.Thread(target=serve, name="training run", daemon=True).start()
        started.wait()
        if refused:
            raise refused[0]
        self._runs[owner] = run

    @contextmanager
    def _timed(self, owner: str, run: TrainingProcess) -> Iterator[None]:
        """Count the time of a run, and end it when the owner has no more."""
        left, timer = self.limits.run_seconds - self._usage.total(owner), None
        if left < math.inf:

            def end() -> None:
                run.is_overdue = True
                run.stop()

            timer = threading.Timer(max(0.0, left), end)
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
                self._usage.add(owner, time.monotonic() - run.began)


def _number(folders: Sequence[Path]) -> int:
    """The number of the last run."""
    return int(folders[-1].name.removeprefix("run_")) if folders else 0


def _read_config(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))


def _decode(log: bytes) -> str:
    return log.decode("utf-8", errors="replace")  # the last character may be cut
