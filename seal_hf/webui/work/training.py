"""
The outer loop beside the page: `trainers/knowledge.py` as a process of its own, the very command that the page shows.

A run outlives the page, its crash never touches the app, and what the page shows is read from what the run has on disk.
"""

import atexit
import hashlib
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from ...adapters.files import WEIGHTS_NAME
from ...domains import load_demo_passages, load_passages
from ...records.journal import Journal
from ...records.report import Evaluation, evaluations
from .inputs import check_file_size
from .jobs import DONE, FAILED, RUNNING, STOPPED, JobRefused, Jobs
from .training_process import TrainingProcess, decode, failure
from .training_records import Candidate, candidates, phase, titles
from .training_settings import TrainingSettings


CONFIG_NAME, LOG_NAME = "config.yaml", "log.txt"
_GRACE = 20  # seconds that a run has to end by itself
_LOG_LINES = 30
_READS = 5  # times that a run's files are read again because one went meanwhile


@dataclass(frozen=True)
class TrainingSnapshot:
    """
    How far a run is.

    Parameters:
        state (`str`):
            `"running"`, `"done"`, `"stopped"` or `"failed"`.
        is_paused (`bool`):
            Whether somebody's job has the device.
        phase (`str`):
            What it does, in words.
        folder (`Path`):
            Where the run is.
        candidates (`list[Candidate]`):
            All self-edits so far.
        evaluations (`list[Evaluation]`):
            Of the policy on held-out passages.
        error (`str`, *optional*):
            Why it failed.
        log (`str`):
            The last lines that it wrote.
    """

    state: str
    is_paused: bool
    phase: str
    folder: Path
    candidates: list[Candidate]
    evaluations: list[Evaluation]
    error: str | None
    log: str


class TrainingRuns:
    """
    One run a session, and one at a time.

    Parameters:
        jobs ([`Jobs`]):
            Whose work pauses a run.
        folder (`Path`):
            Where the runs are.
        script (`Path`, *optional*):
            `trainers/knowledge.py`; nothing can be started without.
        model_name_or_path (`str`):
            As the app got it.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether the app's model is quantized.
    """

    def __init__(
        self,
        jobs: Jobs,
        folder: Path,
        script: Path | None,
        model_name_or_path: str,
        load_in_4bit: bool = False,
    ):
        self._jobs, self._folder, self._script = jobs, folder.absolute(), script
        self._model, self._load_in_4bit = model_name_or_path, load_in_4bit
        self._runs: dict[str, TrainingProcess] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def page_secret(self) -> str:
        """What the pages' memory of their session is encrypted with; kept, so that a page finds its run after a restart."""
        file = self._folder / "page-secret"
        if not file.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(16), encoding="ascii")
        return file.read_text(encoding="ascii")

    @property
    def can_start(self) -> bool:
        """Whether runs can be started here."""
        return self._script is not None and hasattr(signal, "SIGSTOP")

    def config(self, settings: TrainingSettings, output_dir: Path | str, dataset: str = "demo") -> dict[str, object]:
        """What the YAML file of a run holds."""
        values = asdict(settings)
        evaluated = bool(values["num_eval_passages"])
        if not evaluated:
            del values["num_eval_passages"]
        own = dataset != "demo"
        return {
            "model_name_or_path": self._model,
            **({"load_in_4bit": True} if self._load_in_4bit else {}),
            "output_dir": str(output_dir),
            "dataset_name": dataset,
            **({} if own else {"dataset_train_split": "train"}),
            **({"eval_dataset_name": "demo"} if evaluated and own else {}),
            **({"dataset_test_split": "test"} if evaluated else {}),
            **values,
            "inner_target_modules": ["all-linear"],
            "num_repeats": 1,
            # One passage after another, so that there is something to see.
            "adapters_per_bank": settings.num_generations,
            "sft_batch_size": 4,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def yaml(self, settings: TrainingSettings, dataset: str = "demo") -> str:
        """The YAML file for the same run elsewhere."""
        return yaml.safe_dump(self.config(settings, "outputs/seal", dataset), sort_keys=False, allow_unicode=True)

    def settings(self, owner: str) -> TrainingSettings | None:
        """Those of the session's run; `None` where there is none."""
        if not (folders := self._folders(owner)):
            return None
        config = yaml.safe_load((folders[-1] / CONFIG_NAME).read_text(encoding="utf-8"))
        # A run without evaluations does not name their number.
        return TrainingSettings(**{one.name: config.get(one.name, 0) for one in fields(TrainingSettings)})

    def start(self, owner: str, settings: TrainingSettings, dataset_file: Path | None = None) -> None:
        """
        Start a run, which becomes the session's current one.

        Parameters:
            owner (`str`):
                The session.
            settings ([`TrainingSettings`]):
                The run.
            dataset_file (`Path`, *optional*):
                Passages with questions, as JSON or JSONL. Defaults to the demo passages.

        Raises:
            ValueError: A file that holds no passages, or too few of them.
            JobRefused: A run is under way, or none can be started here.
        """
        self._require_script()
        with self._lock:
            if self.is_running(owner):
                return
            dataset = "demo"
            num_passages = len(load_demo_passages("train"))
            if dataset_file is not None:
                check_file_size(dataset_file)
                try:
                    num_passages = len(load_passages(dataset_file))
                except RecursionError as error:
                    raise ValueError(f"{dataset_file.name} is nested too deeply: give rows of passages.") from error
                except ValueError as error:
                    # The folder of an upload says nothing to who made it.
                    raise ValueError(str(error).replace(f"{dataset_file.parent}/", "")) from error
            if settings.num_train_passages > num_passages:
                raise ValueError(
                    f"There are {num_passages} passages, but {settings.num_train_passages} are to be learned from: "
                    "lower the number or give more."
                )
            # A new one each time: what an earlier run has worked out stays.
            folder = self._folder_of(owner) / f"run_{len(self._folders(owner)) + 1:03d}"
            folder.mkdir(parents=True)
            try:
                if dataset_file is not None:
                    dataset = str(folder / f"passages{dataset_file.suffix}")
                    shutil.copyfile(dataset_file, dataset)
                config = self.config(settings, folder / "run", dataset)
                text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
                (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
                self._launch(owner, folder)
            except BaseException:
                shutil.rmtree(folder)
                raise

    def resume(self, owner: str) -> None:
        """
        Go on with the session's run where it ended.

        Raises:
            JobRefused: There is none, or another run is under way.
        """
        self._require_script()
        with self._lock:
            if self.is_running(owner):
                return
            if not (folders := self._folders(owner)):
                raise JobRefused("There is no run to go on with: start one.")
            self._launch(owner, folders[-1])

    def stop(self, owner: str) -> None:
        """Ask the session's run to end; what it has worked out stays. A second time nothing more happens."""
        run = self._runs.get(owner)
        if run is None or run.is_stopped or run.process is None or run.process.poll() is not None:
            return
        run.is_stopped = True
        run.end(signal.SIGTERM)
        timer = threading.Timer(_GRACE, run.end, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """End all runs, which can be resumed; their processes would outlive this one."""
        for run in list(self._runs.values()):
            run.end(signal.SIGTERM)

    def snapshot(self, owner: str) -> TrainingSnapshot | None:
        """How far the session's run is; `None` where there is none."""
        if not (folders := self._folders(owner)):
            return None
        for _ in range(_READS):
            # The trainer removes a round's banks once it is scored: the second time there is the round.
            with suppress(FileNotFoundError):
                return self._snapshot(owner, folders[-1])
        return self._snapshot(owner, folders[-1])

    def _snapshot(self, owner: str, folder: Path) -> TrainingSnapshot:
        config = yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        run, output_dir = self._runs.get(owner), folder / "run"
        state = self._state(run, output_dir)
        log = (folder / LOG_NAME).read_bytes() if (folder / LOG_NAME).is_file() else b""
        found = evaluations(Journal(output_dir / "evaluation"))
        return TrainingSnapshot(
            state=state,
            is_paused=run is not None and run.is_paused,
            phase=phase(config, output_dir, len(found)),
            folder=folder,
            candidates=candidates(Journal(output_dir), config, titles(config)),
            evaluations=found,
            error=failure(run.process.returncode, decode(log[run.log_start :])) if state == FAILED else None,
            log="\n".join(decode(log).splitlines()[-_LOG_LINES:]),
        )

    def _state(self, run: TrainingProcess | None, output_dir: Path) -> str:
        if run is None:  # of an app that ran before; what a run saves last tells whether it was done
            return DONE if (output_dir / WEIGHTS_NAME).is_file() else STOPPED
        code = run.process.poll()
        if code is None:
            return RUNNING
        if code == 0:  # also where it was told to stop a moment too late
            return DONE
        return STOPPED if run.is_stopped else FAILED

    def _require_script(self) -> None:
        if not self.can_start:
            raise JobRefused(
                "A run cannot be started here: copy the file and the command below, and start it on your own machine."
            )

    def _folder_of(self, owner: str) -> Path:
        # The session's id is a secret, which no folder's name should tell.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def _folders(self, owner: str) -> list[Path]:
        """The session's runs, the last one last."""
        return sorted(file.parent for file in self._folder_of(owner).glob(f"run_*/{CONFIG_NAME}"))

    def is_running(self, owner: str) -> bool:
        """Whether the session's run is under way."""
        run = self._runs.get(owner)
        return run is not None and run.process is not None and run.process.poll() is None

    def _launch(self, owner: str, folder: Path) -> None:
        run = TrainingProcess()
        started = threading.Event()
        refused: list[Exception] = []

        def serve() -> None:
            try:
                with self._jobs.background(run):
                    with (folder / LOG_NAME).open("ab") as log:
                        run.log_start = log.tell()
                        process = subprocess.Popen(
                            [
                                sys.executable,
                                str(self._script),
                                "--config",
                                str(folder / CONFIG_NAME),
                                "--resume_from_checkpoint",
                                "true",
                            ],
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            stdin=subprocess.DEVNULL,
                            start_new_session=True,
                        )
                    run.begin(process)
                    started.set()
                    run.process.wait()
            except (JobRefused, OSError) as error:
                refused.append(error)
            finally:
                started.set()

        threading.Thread(target=serve, name="training run", daemon=True).start()
        started.wait()
        if refused:
            raise refused[0]
        self._runs[owner] = run
