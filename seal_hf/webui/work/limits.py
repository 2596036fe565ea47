"""What one visitor, or one session, may take of the device, which all visitors share."""

import math
import threading
import time
from dataclasses import dataclass, replace

from ..languages import Message


HOUR = 3600.0
MAX_JOBS = 3  # of one session that have not ended
MAX_FOLLOWERS = 16  # pages and programs that follow one job
# On ZeroGPU, a visitor's call takes no more of the GPU: half of what a visitor without an account has in a day.
GPU_SECONDS = 60
GPU_SPARE_SECONDS = 10  # of these, to save what a job has learned
_QUOTAS = "https://huggingface.co/docs/hub/spaces-zerogpu#usage-tiers"


@dataclass(frozen=True)
class Limits:
    """
    The limits of each visitor.

    Parameters:
        is_shared (`bool`):
            Whether others than the user of this machine reach the page. What they leave behind is deleted with their
            session, and they see no path of this machine.
        job_steps, job_tokens (`float`):
            Of the training of one job: its steps, which are batches of one self-edit, and its tokens, both in all epochs of
            all self-edits.
        job_seconds (`float`):
            How long a job may run.
        hour_seconds (`float`):
            How long a visitor's jobs may run in an hour.
        hour_tokens (`float`):
            Tokens of all trainings that a visitor starts in an hour, in all epochs of all self-edits.
        visitor_sessions, visitor_jobs (`float`):
            How many sessions a visitor may have at a time, and how many jobs that have not ended.
        unattended_seconds (`float`):
            How long jobs and training runs go on while nobody has the page open.
        run_lessons (`float`):
            Size of a training run: its self-edits, with those of the evaluations, times the epochs of the inner loop.
        run_seconds (`float`):
            How long a visitor's training runs may take in four times this time.
        gpu_seconds (`float`, *optional*):
            On ZeroGPU, how long a job may have the GPU. Defaults to no limit.
    """

    is_shared: bool
    job_steps: float
    job_tokens: float
    job_seconds: float
    hour_seconds: float
    hour_tokens: float
    visitor_sessions: float
    visitor_jobs: float
    unattended_seconds: float
    run_lessons: float
    run_seconds: float
    gpu_seconds: float = math.inf

    @property
    def is_zero_gpu(self) -> bool:
        """Whether each job gets a GPU for its own time alone (ZeroGPU)."""
        return self.gpu_seconds < math.inf

    def check_steps(self, num_steps: int, remedy: str) -> None:
        """
        Raises:
            ValueError: A training has more steps than one job may have. `remedy` says what to do.
        """
        if num_steps > self.job_steps:
            raise ValueError(Message("limits.steps", num_steps=num_steps, most=self.job_steps, remedy=remedy))

    def check_tokens(self, num_tokens: int, remedy: str) -> None:
        """
        Raises:
            ValueError: A training has more tokens than one job may have. `remedy` says what to do.
        """
        if num_tokens > self.job_tokens:
            raise ValueError(Message("limits.tokens", num_tokens=num_tokens, most=self.job_tokens, remedy=remedy))

    def say(self) -> str:
        """The limits of jobs for the page, in a sentence; empty where there are none."""
        if not self.is_shared:
            return ""
        if self.is_zero_gpu:
            return Message(
                "limits.zero_gpu",
                seconds=self.gpu_seconds,
                num_steps=self.job_steps,
                num_tokens=self.job_tokens,
                most_seconds=self.gpu_seconds - GPU_SPARE_SECONDS,
                quotas=_QUOTAS,
                unattended=minutes(self.unattended_seconds),
            )
        return Message(
            "limits.jobs",
            time=minutes(self.job_seconds),
            num_steps=self.job_steps,
            num_tokens=self.job_tokens,
            hour=minutes(self.hour_seconds),
            hour_tokens=self.hour_tokens,
            num_pages=self.visitor_sessions,
            unattended=minutes(self.unattended_seconds),
        )

    def say_of_runs(self) -> str:
        """The limits of training runs for the page, in a sentence; empty where there are none."""
        if not self.is_shared:
            return ""
        return Message(
            "limits.runs",
            time=minutes(self.run_seconds),
            window=minutes(4 * self.run_seconds),
            most=self.run_lessons,
            unattended=minutes(self.unattended_seconds),
        )


# A day, so that a training may run overnight while the browser is closed.
OWN_MACHINE = Limits(
    is_shared=False,
    job_steps=math.inf,
    job_tokens=math.inf,
    job_seconds=math.inf,
    hour_seconds=math.inf,
    hour_tokens=math.inf,
    visitor_sessions=math.inf,
    visitor_jobs=math.inf,
    unattended_seconds=24 * HOUR,
    run_lessons=math.inf,
    run_seconds=math.inf,
)
# Eight self-edits of the longest kind fit, with the epochs of any preset.
SHARED = Limits(
    is_shared=True,
    job_steps=10_000,
    job_tokens=500_000,
    job_seconds=600,
    hour_seconds=1800,
    hour_tokens=2_000_000,
    visitor_sessions=16,
    visitor_jobs=8,
    unattended_seconds=600,
    run_lessons=1000,
    run_seconds=1800,
)
# A step of a bank of some adapters takes about 0.1 to 0.2 s on a large GPU (benchmarks/gpu-h100.md), so that these steps take 20
# to 40 s; the rest is for the questions. How much a visitor has in a day is ZeroGPU's to count.
ZERO_GPU = replace(
    SHARED, job_steps=200, job_tokens=200_000, hour_seconds=math.inf, hour_tokens=math.inf, gpu_seconds=GPU_SECONDS
)


class Usage:
    """
    How much each visitor had of late, such as seconds of the device.

    Parameters:
        window (`float`):
            How long a use counts, in seconds.
    """

    def __init__(self, window: float):
        self.window = window
        self._uses: dict[str, list[tuple[float, float]]] = {}
        self._lock = threading.Lock()

    def add(self, visitor: str, amount: float) -> None:
        """Count a use that ends now."""
        with self._lock:
            self._forget_old()
            self._uses.setdefault(visitor, []).append((time.monotonic(), amount))

    def total(self, visitor: str) -> float:
        """The sum of the visitor's uses that still count."""
        with self._lock:
            self._forget_old()
            return sum(amount for _, amount in self._uses.get(visitor, ()))

    def next_free(self, visitor: str) -> float:
        """When the visitor's oldest use stops to count, in seconds from now."""
        with self._lock:
            ended = min((when for when, _ in self._uses.get(visitor, ())), default=time.monotonic() - self.window)
        return max(0.0, ended + self.window - time.monotonic())

    def _forget_old(self) -> None:
        since = time.monotonic() - self.window
        recent = {visitor: [use for use in uses if use[0] > since] for visitor, uses in self._uses.items()}
        self._uses = {visitor: uses for visitor, uses in recent.items() if uses}


def minutes(seconds: float) -> Message:
    """A time for people: `"1 minute"`, `"10 minutes"`, `"2 hours"`."""
    if seconds >= 2 * HOUR:
        return Message("time.hours", count=round(seconds / HOUR))
    return Message("time.minutes", count=max(1, math.ceil(seconds / 60)))
