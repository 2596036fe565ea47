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
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ...adapters.sources import WEIGHTS_NAME
from ...records.journal import Journal
from ...records.report import evaluations
from . import inputs, quota
from .errors import without_folders
from .jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused, Jobs
from .limits import OWN_MACHINE, Limits, Usage, minutes
from .sessions import Policy, Sessions
from .settings import TrainingSettings
from .training_process import GRACE, TrainingProcess
from .training_records import (
    CONFIG_NAME,
    TrainingSnapshot,
    candidates,
    dataset_of,
    failure,
    phase,
    policy_rounds,
    read_config,
)


LOG_NAME = "log.txt"
_LOG_LINES = 30
_RECORDS_BYTES = 20_000_000  # of a run, beside its policies
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
        sessions ([`Sessions`], *optional*):
            The sessions, where others reach the page: a run counts as files of its session, and its time as its visitor's.
        policy_bytes (`int`, *optional*, defaults to `0`):
            Size of a policy adapter, of which a run saves one for each round and one at its end.
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
        sessions: Sessions | None = None,
        policy_bytes: int = 0,
    ):
        self.limits, self._usage = limits, Usage(4 * limits.run_seconds)
        self._jobs, self._folder, self._script = jobs, folder.absolute(), script
        self._model, self._load_in_4bit = model_name_or_path, load_in_4bit
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
            # Closed to others, also where the folder around them is not.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
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
        quota.forget(self._folder_of(owner))

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
        if not (folders := self._folders(owner)):
            return None
        for _ in range(_READS):
            # The trainer removes the files of a round's banks when it writes the file of the whole round.
            with suppress(FileNotFoundError):
                return self._snapshot(owner, folders[-1])
        return self._snapshot(owner, folders[-1])

    def _snapshot(self, owner: str, folder: Path) -> TrainingSnapshot:
        config = read_config(folder)
        run, output_dir = self._runs.get(owner), folder / "run"
        state = self._state(run, output_dir)
        log = (folder / LOG_NAME).read_bytes() if (folder / LOG_NAME).is_file() else b""
        found = evaluations(Journal(output_dir / "evaluation"))
        names = [inputs.name_of(example) for example in inputs.training_passages(*dataset_of(config))]
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
            policies=policy_rounds(output_dir),
            error=error,
            log=last_lines,
        )

    def policy(self, owner: str, round_number: int = 0) -> Policy:
        """
        A policy that the session's run has trained, for the app's own model.

        Args:
            owner (`str`):
                The session.
            round_number (`int`, *optional*, defaults to `0`):
                The round, from 1, after which it is taken; 0 for the last one that has a policy.

        Raises:
            JobRefused: There is none, or it was trained for another model or for another student than the app has.
        """
        folders = self._folders(owner)
        rounds = policy_rounds(folders[-1] / "run") if folders else []
        if not rounds:
            raise JobRefused(
                "There is no policy yet: start a training run, which has one as soon as its first round has ended."
            )
        number = round_number or rounds[-1]
        if number not in rounds:
            raise JobRefused(
                f"There is no policy after round {number}: choose one of round {', '.join(map(str, rounds))}."
            )
        config = read_config(folders[-1])
        if (model := config["model_name_or_path"]) != self._model:
            raise JobRefused(
                f"The run has trained a policy of {_shown(model)}, but this app has {_shown(self._model)}: start it with that model, "
                "or train a policy of this one."
            )
        if (student := config.get("student", "policy")) != "base":
            raise JobRefused(
                f"In this run the policy has learned and answered, too (student: {student}), but here the base model does, which all "
                "share: train a policy with student: base, or use this one in a program, with SelfAdaptingLM.from_pretrained(policy=...)."
            )
        folder = folders[-1] / "run" / "policy" / f"round_{number - 1:03d}"
        return Policy(_number(folders), number, str(config["prompt_style"]), folder)

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

    def _visitor_of(self, owner: str) -> str:
        return owner if self._sessions is None else self._sessions.visitor_of(owner)

    def _require_time(self, owner: str) -> None:
        visitor = self._visitor_of(owner)
        if self._usage.total(visitor) >= self.limits.run_seconds:
            raise JobRefused(
                f"Your runs have taken {minutes(self.limits.run_seconds)}, which is what a visitor has in "
                f"{minutes(self._usage.window)}: try again in {minutes(self._usage.next_free(visitor))}, or start the run on your own "
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
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TMPDIR": tempfile.gettempdir(),  # which the app has set, not the environment
        }

        def serve() -> None:
            try:
                with self._jobs.background(run), self._room(owner, folder):
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
                        run.wait()
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
        quota.count_with(session.folder, self._folder_of(owner))
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


def _number(folders: Sequence[Path]) -> int:
    """The number of the last run."""
    return int(folders[-1].name.removeprefix("run_")) if folders else 0


def _shown(model: str) -> str:
    """A model's name without the folder that it may be in."""
    return Path(model).name if Path(model).is_absolute() else model


def _decode(log: bytes) -> str:
    return log.decode("utf-8", errors="replace")  # the last character may be cut
