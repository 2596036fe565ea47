"""Talks to a vLLM server: its OpenAI-compatible completions with token ids in and out, and its adapters."""

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2


logger = logging.getLogger(__name__)

# Seconds in which a server that does not answer may come back.
WAIT_SECONDS = 180.0
# Seconds before it is asked again, at first.
_PAUSE = 0.25
# How often what the server was gone from is gone on with.
_TRIES = 4
RUN_KEEPS = "A training run keeps what it has scored, and goes on with resume_from_checkpoint=True."
_CONNECT_SECONDS = 10.0
# The longest answer that is not a completion.
_ANSWER_SECONDS = 120.0
# A completion may take hours.
_NO_LIMIT = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
# A machine that is gone sends nothing: the connection itself is asked every 5 seconds.
_KEEP_ALIVE = [
    (level, option, value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 6),
    )
    if (option := getattr(socket, name, None)) is not None  # not all systems name them so
]


class VLLMServerGone(ConnectionError):
    """The vLLM server does not answer, or lost what it was given."""


class VLLMRefusal(ValueError):
    """
    The server refused a request.

    Attributes:
        status (`int`):
            The HTTP status.
        said (`str`):
            The server's reason.
    """

    def __init__(self, request: str, status: int, said: str):
        super().__init__(f"The vLLM server refuses {request} ({status}): {said}.")
        self.status, self.said = status, said


class ServedModel(NamedTuple):
    """
    A model or adapter that a server offers.

    Parameters:
        name (`str`):
            By which requests choose it.
        path (`str`):
            Where the server loaded it from.
        is_adapter (`bool`):
            Whether it is a LoRA adapter.
        context (`int`, *optional*):
            Most tokens of a prompt with its completion.
    """

    name: str
    path: str
    is_adapter: bool
    context: int | None


class Engine(NamedTuple):
    """
    What a server's metrics say of its engine.

    Parameters:
        num_replicas (`int`):
            Copies of the model that requests are shared out to.
        max_loras (`int`, *optional*):
            Most adapters in one batch; `None` until an adapter was used.
    """

    num_replicas: int
    max_loras: int | None


class VLLMClient:
    """
    A vLLM server by its URL. It can be used by many threads.

    Parameters:
        base_url (`str`):
            Such as `"http://127.0.0.1:8000"`.

    Raises:
        ValueError: No URL of HTTP.
    """

    def __init__(self, base_url: str):
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL:
            url = None
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise ValueError(
                f"vllm_server_base_url={base_url!r} is no URL of a server; give one such as 'http://127.0.0.1:8000'."
            )
        self._http = httpx2.Client(
            base_url=self.base_url,
            timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            transport=httpx2.HTTPTransport(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                socket_options=_KEEP_ALIVE,
            ),
        )

    def version(self) -> str:
        """
        The server's version of vLLM.

        Raises:
            VLLMServerGone: Nothing answers.
            VLLMRefusal: What answers is no vLLM server.
        """
        response = self._request("GET", "/version")
        try:
            return response.json()["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise VLLMRefusal(str(response.url), response.status_code, "it states no version") from error

    def models(self) -> list[ServedModel]:
        """The model, by all its names, and the adapters that are loaded."""
        return [
            ServedModel(one["id"], one.get("root") or "", one.get("parent") is not None, one.get("max_model_len"))
            for one in self._request("GET", "/v1/models").json()["data"]
        ]

    def engine(self) -> Engine:
        """What the server's metrics say of its engine."""
        text = self._request("GET", "/metrics").text
        replicas = {found[1] for found in re.finditer(r'^vllm:num_requests_running\{[^}]*engine="(\d+)"', text, re.M)}
        limits = [
            int(found[1]) for found in re.finditer(r'^vllm:lora_requests_info\{[^}]*max_lora="(\d+)"', text, re.M)
        ]
        return Engine(max(1, len(replicas)), max(limits, default=None))

    def load_adapter(self, name: str, path: str) -> None:
        """
        Have the server load an adapter from a PEFT folder.

        Raises:
            VLLMServerGone: It does not answer.
            VLLMRefusal: It does not take the adapter.
        """
        self._request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> None:
        """
        Have the server forget an adapter; nothing happens where it does not know it.

        Raises:
            VLLMServerGone: It does not answer.
            VLLMRefusal: It keeps the adapter.
        """
        try:
            self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except VLLMRefusal as error:
            if error.status != 404:
                raise

    def complete(self, request: Mapping[str, Any]) -> Iterator[tuple[int, list[int]]]:
        """
        Complete prompts.

        Args:
            request (`Mapping[str, Any]`):
                The fields of a request to `/v1/completions`.

        Yields:
            `tuple[int, list[int]]`: the number of a prompt in the request and its next tokens, as soon as there are some.

        Raises:
            VLLMServerGone: The server does not answer, ends the answer too soon, or does not know the adapter any more.
            VLLMRefusal: It does not take the request.
        """
        body = {**request, "stream": True, "return_token_ids": True}
        with (
            self._explaining(),
            self._http.stream("POST", "/v1/completions", json=body, timeout=_NO_LIMIT) as response,
        ):
            if response.is_error:
                response.read()
                self._raise_for(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if not data:
                    continue
                try:
                    event = json.loads(data)
                except ValueError:  # half a line
                    break
                if "error" in event:
                    raise VLLMServerGone(f"The vLLM server {self.base_url} failed: {_said(event)}.")
                for choice in event["choices"]:
                    if choice.get("finish_reason") not in (None, "stop", "length"):
                        raise VLLMServerGone(
                            f"The vLLM server {self.base_url} broke a text off ({choice['finish_reason']})."
                        )
                    if choice.get("token_ids"):
                        yield choice["index"], choice["token_ids"]
        raise VLLMServerGone(f"The vLLM server {self.base_url} ended its answer too soon.")

    def prompt_log_probs(self, model: str, token_ids: list[int]) -> list[float]:
        """The log-probability that a model gives each token after the first, in nats."""
        body = {"model": model, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        (choice,) = self._request("POST", "/v1/completions", body).json()["choices"]
        found = choice["prompt_logprobs"]
        return [entry[str(token)]["logprob"] for token, entry in zip(token_ids[1:], found[1:], strict=True)]

    def persist(self, work: Callable[[], None], is_stopped: Callable[[], bool]) -> None:
        """
        Do something with the server, and again where it was gone and has come back.

        Args:
            work (`Callable[[], None]`):
                What goes on from where it was left.
            is_stopped (`Callable[[], bool]`):
                Whether it need not be finished.

        Raises:
            VLLMServerGone: The server did not come back, or was gone again and again.
        """
        for attempt in range(_TRIES):
            try:
                work()
                return
            except VLLMServerGone as error:
                if is_stopped():
                    return
                if attempt + 1 == _TRIES:
                    raise VLLMServerGone(
                        f"{error} This was try {_TRIES}; see the server's log, and start it again. {RUN_KEEPS}"
                    ) from error
                logger.warning("%s It is tried again.", error)
            self._wait(is_stopped)

    def _wait(self, is_stopped: Callable[[], bool]) -> None:
        """Wait until the server answers again, or is not waited for any more."""
        end, pause = time.monotonic() + WAIT_SECONDS, _PAUSE
        while not is_stopped():
            try:
                self._request("GET", "/health")
                return
            except (VLLMServerGone, VLLMRefusal) as error:
                if time.monotonic() + pause > end:
                    raise VLLMServerGone(
                        f"{error} It was waited for {WAIT_SECONDS:g} seconds; start it again. {RUN_KEEPS}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        with self._explaining():
            response = self._http.request(method, path, json=body)
        if response.is_error:
            self._raise_for(response)
        return response

    def _raise_for(self, response: httpx2.Response) -> None:
        """Raise what an answer with an error status means."""
        try:
            said = _said(response.json())
        except ValueError:
            said = response.text[:200]
        # For a completion: the engine ended, or the adapter is loaded no more since the server was started again.
        is_lost = response.url.path == "/v1/completions" and response.status_code in (404, 500)
        if is_lost or response.status_code in (502, 503, 504):
            raise VLLMServerGone(f"The vLLM server {self.base_url} answers {response.status_code}: {said}.")
        raise VLLMRefusal(str(response.url), response.status_code, said)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise VLLMServerGone(f"The vLLM server {self.base_url} does not answer ({reason}).") from error


def _said(answer: Any) -> str:
    """What an answer with an error says."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or error)[:500].rstrip(".")
