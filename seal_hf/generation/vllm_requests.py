"""What a call asks of vLLM: the requests that begin its texts, or go on with them, and many at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import Any, TypeVar

from .base import Sampling, draw_seed
from .vllm_client import VLLMClient
from .writing import Writing


# Requests of one adapter at a time; the server has its own limit for a batch.
_REQUESTS = 256
# What a model's generation_config.json would set on the server, and no other backend heeds.
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

_Job = TypeVar("_Job")
Put = Callable[[tuple[int, list[int]]], None]


class Texts:
    """
    The texts of one call, as far as vLLM has sent them.

    Parameters:
        prompts (`Sequence[list[int]]`):
            Token ids of the prompts.
        sampling ([`Sampling`], *optional*):
            How to sample; greedy where absent.
        writing ([`Writing`]):
            Has the longest texts, the tokens that end them, and the event that stops them.

    Attributes:
        cancelled (`threading.Event`):
            Set where nothing more is to be written, though the caller did not stop it.
    """

    def __init__(self, prompts: Sequence[list[int]], sampling: Sampling | None, writing: Writing):
        self.prompts, self.sampling = prompts, sampling
        self.limits, self.eos_ids, self._stop = writing.limits, writing.eos_ids, writing.stop
        self.written: list[list[int]] = [[] for _ in prompts]
        self.cancelled = threading.Event()

    def is_stopped(self) -> bool:
        """Whether nothing more is to be written."""
        return self.cancelled.is_set() or self._stop is not None and self._stop.is_set()

    def write(self, client: VLLMClient, model: str, places: Sequence[int], put: Put) -> None:
        """
        Write the texts at some places to their end, from where they were left.

        Args:
            client ([`VLLMClient`]):
                The server.
            model (`str`):
                Its name for the model or adapter.
            places (`Sequence[int]`):
                Which ones.
            put (`Callable[[tuple[int, list[int]]], None]`):
                Told the place and the tokens that are new, from several threads.

        Raises:
            VLLMServerGone: The server does not answer any more.
            VLLMRefusal: It does not take a request.
        """

        def follow(together: Sequence[int]) -> None:
            if self.is_stopped():
                return
            with closing(client.complete(self._request(model, together))) as answer:
                for number, tokens in answer:
                    self.written[together[number]] += tokens
                    put((together[number], tokens))
                    if self.is_stopped():
                        return

        requests = self._requests(places)
        if len(requests) == 1:
            follow(requests[0])
        elif requests:
            with ThreadPoolExecutor(min(len(requests), _REQUESTS)) as pool:
                for future in [pool.submit(follow, together) for together in requests]:
                    future.result()

    def _requests(self, places: Sequence[int]) -> list[list[int]]:
        """The texts that are not done, by request: a seed is of a request, and so is the longest completion."""
        going = [place for place in places if not self._is_done(place)]
        if self.sampling is not None:
            return [[place] for place in going]
        by_length: dict[int, list[int]] = {}
        for place in going:
            by_length.setdefault(self._room(place), []).append(place)
        return list(by_length.values())

    def _request(self, model: str, places: Sequence[int]) -> dict[str, Any]:
        prompts = [self.prompts[place] + self.written[place] for place in places]
        return {"model": model, "prompt": prompts, **self.options(places[0])}

    def options(self, place: int) -> dict[str, Any]:
        """How to go on with a text, and with others of the same length where they are greedy: vLLM's sampling parameters."""
        options = {"max_tokens": self._room(place), "stop_token_ids": sorted(self.eos_ids), **_NEUTRAL}
        if self.sampling is None:
            return {**options, "temperature": 0.0, "top_p": 1.0}
        seed, num_written = self.sampling.seeds[place], len(self.written[place])
        return {
            **options,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            # vLLM draws from the beginning of a seed's stream.
            "seed": draw_seed(seed, num_written) if num_written else seed,
        }

    def _room(self, place: int) -> int:
        return self.limits[place] - len(self.written[place])

    def _is_done(self, place: int) -> bool:
        written = self.written[place]
        return self._room(place) <= 0 or bool(written) and written[-1] in self.eos_ids


def side_by_side(
    work: Callable[[_Job, Put], None],
    jobs: Sequence[_Job],
    num_workers: int,
    writing: Writing,
    cancelled: threading.Event,
) -> None:
    """
    Do jobs that write texts, so many at a time, and report what they write from this thread.

    Args:
        work (`Callable[[Job, Put], None]`):
            Does one job, in a thread of its own.
        jobs (`Sequence`):
            What it is given.
        num_workers (`int`):
            How many at a time.
        writing ([`Writing`]):
            Takes the tokens.
        cancelled (`threading.Event`):
            Set where the jobs are to end early: `writing` was stopped, one of them failed, or this thread did.

    Raises:
        Exception: The error of the first job that failed, once all have ended.
    """
    if not jobs:
        return
    events: SimpleQueue[Future | tuple[int, list[int]]] = SimpleQueue()
    error = None
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for job in jobs:
                pool.submit(work, job, events.put).add_done_callback(events.put)
            num_running = len(jobs)
            while num_running:
                event = events.get()
                if isinstance(event, Future):
                    num_running -= 1
                    error = error or event.exception()
                elif not cancelled.is_set():
                    place, tokens = event
                    for token in tokens:
                        writing.add(place, token)
                    writing.report([place])
                if error is not None or writing.is_stopped:
                    cancelled.set()
        except BaseException:
            cancelled.set()
            raise
    if error is not None:
        raise error
