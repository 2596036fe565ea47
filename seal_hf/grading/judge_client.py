"""A language model that judges, asked over `huggingface_hub.InferenceClient`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError


Read = TypeVar("Read")


class JudgeRefused(RuntimeError):
    """The judge's endpoint refuses the key, or does not know the model; asking again would not help."""


class Unreadable(str):
    """Why there is no judgement: all attempts failed, or the reply is in no form that can be read."""


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    return isinstance(error, (HTTPError, json.JSONDecodeError))


class Judge:
    """
    A language model that judges texts.

    Requests go out concurrently, at temperature 0; passing faults (time-outs, broken connections, HTTP 408, 409, 425,
    429 and 5xx) are retried with exponential back-off. A refused key or a missing model stops at once.

    Parameters:
        model (`str`):
            Name of the judge, as the provider or the endpoint knows it.
        provider (`str`, *optional*):
            Inference provider of the Hub, chosen automatically when absent; not used with `base_url`.
        base_url (`str`, *optional*):
            Any OpenAI-compatible endpoint, such as `"http://localhost:8000/v1"`.
        api_key (`str`, *optional*):
            Key for the endpoint or the provider. Without it, providers get the saved Hugging Face token and a
            `base_url` gets none.
        max_workers (`int`, *optional*, defaults to `8`):
            Number of concurrent requests.
        max_attempts (`int`, *optional*, defaults to `5`):
            Number of requests per text before it stays without a judgement.
        initial_wait (`float`, *optional*, defaults to `1.0`):
            Longest wait before the second attempt, in seconds; doubles with each attempt, up to 60.
        timeout (`float`, *optional*, defaults to `60.0`):
            Time to wait for a reply, in seconds.

    Raises:
        ImportError: The extra `judge` is not installed.
        ValueError: `max_workers` or `max_attempts` is below 1, or `base_url` is not a plain http(s) address.
    """

    def __init__(
        self,
        model: str,
        *,
        provider: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        max_workers: int = 8,
        max_attempts: int = 5,
        initial_wait: float = 1.0,
        timeout: float = 60.0,
    ):
        try:
            import tenacity
        except ImportError as error:
            raise ImportError(
                f"`{type(self).__name__}` needs tenacity; install it with `pip install 'seal-hf[judge]'`."
            ) from error
        for name, value in (("max_workers", max_workers), ("max_attempts", max_attempts)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {value}.")
        address = urlsplit(base_url or "http://")
        if address.scheme not in ("http", "https") or "@" in address.netloc:
            raise ValueError("`base_url` must be an http(s) address without user or password; pass keys as `api_key`.")
        self.model = model
        # Public is what decides the results. An address may be private, so that a digest stands for it.
        self.endpoint = f"provider {provider or 'auto'}"
        self._endpoint = base_url or self.endpoint
        if base_url:
            self.endpoint = f"address {hashlib.sha256(base_url.encode()).hexdigest()[:16]}"
        self._max_workers = max_workers
        self._secret = api_key or (None if base_url else get_token())
        # An empty key would make the client send the saved Hugging Face token to any address.
        self._client = InferenceClient(
            model=base_url or None, provider=provider, api_key=api_key or (base_url and "none"), timeout=timeout
        )
        self._retrying = partial(
            tenacity.Retrying,
            stop=tenacity.stop_after_attempt(max_attempts),
            wait=tenacity.wait_random_exponential(multiplier=initial_wait, max=60),
            retry=tenacity.retry_if_exception(_is_transient),
            reraise=True,
        )

    def ask(
        self, prompts: Sequence[str], read: Callable[[str], Read | None], unreadable: str
    ) -> list[Read | Unreadable]:
        """
        Ask the judge, once for equal prompts.

        Args:
            prompts (`Sequence[str]`):
                What it is asked, each as a user's message.
            read (`Callable[[str], Read | None]`):
                Reads a reply; `None` where it cannot be read.
            unreadable (`str`):
                What is said of a reply that cannot be read, such as `"is neither yes nor no"`.

        Returns:
            `list[Read | Unreadable]`: what was read of each reply, or why there is nothing.

        Raises:
            [`JudgeRefused`]: If the endpoint refuses the key (HTTP 401, 402, 403) or does not know the model or the path
                (HTTP 404).
        """
        distinct = list(dict.fromkeys(prompts))
        with ThreadPoolExecutor(self._max_workers) as executor:
            outcomes = executor.map(lambda prompt: self._ask(prompt, read, unreadable), distinct)
            found = dict(zip(distinct, outcomes, strict=True))
        return [found[prompt] for prompt in prompts]

    def _ask(self, prompt: str, read: Callable[[str], Read | None], unreadable: str) -> Read | Unreadable:
        messages = [{"role": "user", "content": prompt}]
        try:
            output = self._retrying()(self._client.chat_completion, messages, model=self.model, temperature=0.0)
        except (HTTPError, json.JSONDecodeError) as error:
            fault = self._describe(f"{type(error).__name__}: {error}")
            if _status(error) not in (401, 402, 403, 404):
                return fault
        else:
            message = output.choices[0].message if output.choices else None
            reply = (message and message.content) or ""
            found = read(reply)
            return self._describe(f"the reply {reply!r} {unreadable}") if found is None else found
        # Outside the handler, so that the HTTP error, whose request holds the key, is not chained.
        raise JudgeRefused(
            f"The judge {self.model!r} at {self._endpoint} refused the request; check `api_key`, `model` and "
            f"`provider` or `base_url`. {fault}"
        )

    def _describe(self, text: str) -> Unreadable:
        """Shorten a fault to one line without the key, which some endpoints repeat."""
        if self._secret:
            text = text.replace(self._secret, "[key]")
        return Unreadable(" ".join(text.split())[:300])
