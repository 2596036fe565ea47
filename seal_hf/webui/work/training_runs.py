"""
Runs of the outer loop. Each is a process of its own, `trainers/knowledge.py`, with the command that the page shows.

A run continues when the page is closed, its crash does not affect the app, and the page shows what the run has written to
disk.
"""

import atexit
import hashlib
import hmac
import math
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..languages import Message
from . import inputs, quota
from .job_queue import JobQueue
from .jobs import JobRefused
from .limits import OWN_MACHINE, Limits, Usage, minutes
from .sessions import Sessions
from .settings import TrainingSettings
from .training_folders import RunFolders
from .training_process import GRACE, TrainingProcess, start_script
from .training_progress import read_snapshot
from .training_records import CONFIG_NAME, LOG_NAME, TrainingSnapshot, read_config


_RECORDS_BYTES = 20_000_000  # of a run, beside its policies


class TrainingRuns:
    """
    Starts, stops and resumes training runs. Each session has one current run, and only one run is under way at a time.

    Parameters:
        jobs ([`JobQueue`]):
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
        sessions ([`Sessions`], *optional*):
            The sessions, where others reach the page: a run counts as files of its session, and its time as its visitor's.
        policy_bytes (`int`, *optional*, defaults to `0`):
            Size of a policy adapter, of which a run saves one for each round and one at its end.

    Attributes:
        folders ([`RunFolders`]):
            Where the runs are.
    """

    def __init__(
        self,
        jobs: JobQueue,
        folder: Path,
        script: Path | None,
        model_name_or_path: str,
        load_in_4bit: bool = False,
        chat_template_kwargs: dict[str, object] | None = None,
        *,
        limits: Limits = OWN_MACHINE,
        sessions: Sessions | None = None,
        policy_bytes: int = 0,
    ):
        self.limits, self._usage = limits, Usage(4 * limits.run_seconds)
        self.folders, self.model_name_or_path = RunFolders(folder), model_name_or_path
        self._jobs, self._script, self._load_in_4bit = jobs, script, load_in_4bit
        self._chat_template_kwargs = chat_template_kwargs
        self._sessions, self._policy_bytes = sessions, policy_bytes
        self._runs: dict[str, TrainingProcess] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def page_secret(self, purpose: str) -> str:
        """
        A key of 32 characters for one purpose, which tells nothing of those for others. It follows from a secret on disk, so that a
        page finds its run after a restart.
        """
        file = self.folders.path / "page-secret"
        if not file.is_file():
            self.folders.path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            self.model_name_or_path,
            output_dir,
            dataset,
            load_in_4bit=self._load_in_4bit,
            chat_template_kwargs=self._chat_template_kwargs,
        )

    def settings(self, owner: str) -> TrainingSettings | None:
        """The settings of the session's run; `None` where there is none."""
        folders = self.folders.runs(owner)
        return TrainingSettings.of_config(read_config(folders[-1])) if folders else None

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
            JobRefused: A run is under way, the visitor's runs have taken too long, there is no room on the disk, or none can be
                started here.
        """
        self._require_script()
        self._require_small(settings)
        with self._lock:
            if self.is_running(owner):
                return
            num_passages = inputs.count_passages(dataset_file)
            if settings.num_train_passages > num_passages:
                raise ValueError(Message("runs.few_passages", count=num_passages, wanted=settings.num_train_passages))
            if settings.num_rounds > settings.num_train_passages:
                raise ValueError(
                    Message("runs.many_rounds", rounds=settings.num_rounds, passages=settings.num_train_passages)
                )
            self._require_time(owner)
            earlier, folder = self.folders.runs(owner), self.folders.make(owner)
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
            JobRefused: There is no run, another one is under way, the visitor's runs have taken too long, or there is no room on
                the disk.
            ValueError: The run's settings cannot be read any more.
        """
        self._require_script()
        with self._lock:
            if self.is_running(owner):
                return
            if not (folders := self.folders.runs(owner)):
                raise JobRefused(Message("runs.none_to_resume"))
            self._require_time(owner)
            read_config(folders[-1])  # which its progress needs
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
        shutil.rmtree(self.folders.of(owner), ignore_errors=True)
        quota.forget(self.folders.of(owner))

    def close(self, timeout: float = 5) -> None:
        """
        End all runs, whose processes would outlive this one, and wait for them, for at most `timeout` seconds in all. They can be
        resumed.
        """
        runs, end = list(self._runs.values()), time.monotonic() + timeout
        for run in runs:
            run.end(signal.SIGTERM)
        for run in runs:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(max(0.0, end - time.monotonic()))

    def snapshot(self, owner: str) -> TrainingSnapshot | None:
        """The progress of the session's run; `None` where there is none."""
        if not (folders := self.folders.runs(owner)):
            return None
        return read_snapshot(folders[-1], self._runs.get(owner), self.limits)

    def _require_script(self) -> None:
        if not self.can_start:
            raise JobRefused(Message("runs.cannot_start"))

    def _require_small(self, settings: TrainingSettings) -> None:
        num_evaluated = settings.num_eval_passages * (settings.num_rounds + 1)
        num_self_edits = settings.num_train_passages * settings.num_generations + num_evaluated
        size = num_self_edits * settings.inner_num_train_epochs
        if size > self.limits.run_lessons:
            raise ValueError(
                Message(
                    "runs.too_large",
                    num_self_edits=num_self_edits,
                    epochs=settings.inner_num_train_epochs,
                    size=size,
                    most=self.limits.run_lessons,
                )
            )

    def _visitor_of(self, owner: str) -> str:
        return owner if self._sessions is None else self._sessions.visitor_of(owner)

    def _require_time(self, owner: str) -> None:
        visitor = self._visitor_of(owner)
        if self._usage.total(visitor) >= self.limits.run_seconds:
            raise JobRefused(
                Message(
                    "runs.no_time",
                    most=minutes(self.limits.run_seconds),
                    window=minutes(self._usage.window),
                    wait=minutes(self._usage.next_free(visitor)),
                )
            )

    def is_running(self, owner: str) -> bool:
        """Whether the session's run is under way."""
        run = self._runs.get(owner)
        return run is not None and run.is_running

    def _launch(self, owner: str, folder: Path) -> None:
        run = TrainingProcess()
        started = threading.Event()
        refused: list[Exception] = []

        def serve() -> None:
            try:
                with self._jobs.background(run), self._room(owner, folder):
                    with (folder / LOG_NAME).open("ab") as log:
                        run.log_start = log.tell()
                        process = start_script(self._script, folder / CONFIG_NAME, log)
                    run.begin(process)
                    started.set()
                    with self._timed(owner, run):
                        run.wait()
            except Exception as error:
                if started.is_set():  # nobody waits for it any more
                    raise
                refused.append(error)
            finally:
                started.set()

        threading.Thread(target=serve, name="training run", daemon=True).start()
        started.wait()
        if refused:
            raise refused[0]
        self._runs[owner] = run

    @contextmanager
    def _room(self, owner: str, folder: Path) -> Iterator[None]:
        """
        Reserve what a run writes, where its files count as those of a session.

        Raises:
            JobRefused: There is not enough room.
        """
        session = None if self._sessions is None else self._sessions.find(owner)
        if session is None:
            yield
            return
        quota.count_with(session.folder, self.folders.of(owner))
        num_policies = int(read_config(folder)["num_rounds"]) + 1
        with quota.room(session.folder, num_policies * self._policy_bytes + _RECORDS_BYTES):
            yield

    @contextmanager
    def _timed(self, owner: str, run: TrainingProcess) -> Iterator[None]:
        """Count the time of a run, and end it when the visitor has no more."""
        visitor = self._visitor_of(owner)
        left, timer = self.limits.run_seconds - self._usage.total(visitor), None
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
                self._usage.add(visitor, time.monotonic() - run.began)
