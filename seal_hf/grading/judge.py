"""A grader that asks a language model, and the handling of answers that could not be graded."""

import json
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .golds import check_inputs
from .statements import first_statement


logger = logging.getLogger(__name__)

JUDGE_PROMPT = """\
You are marking an examination. Below are a question, the reference answer and a student's answer.

Question: {question}
{references}
Student's answer: {answer}

Does the student's answer state what the reference answer states? Other wording, other units of the same quantity and \
further details are fine as long as nothing contradicts the reference; an answer that is vaguer, evasive or different \
in substance is not. Reply with one word, yes or no."""


# Quoted from the code of the paper's authors, since verdicts can be compared with theirs only where the same is asked:
# https://github.com/Continual-Intelligence/SEAL, knowledge-incorporation/src/utils.py, MIT licence, Copyright (c) 2025 Adam
# Zweiger. The places have this project's names.
PAPER_JUDGE_PROMPT = """\
You are a grading assistant. Your job is to determine whether a student's answer correctly answers the question based solely \
on the provided gold answer. Do not use any outside knowledge. The student answer can include additional information, but it \
must at least fully convey the gold answer and must not contradict it. Ignore style, phrasing, or extra details that do not \
affect correctness. Respond ONLY with 'yes' or 'no'.

Question: {question}
Gold answer: {gold}
Student answer: {answer}
Is the student answer correct based solely on the gold answer? Respond 'yes' or 'no'."""


def _judge_prompt(prompt: str, question: str, golds: Sequence[str], answer: str) -> str:
    """The prompt that asks about one answer. Several gold answers are named together; the paper's has place for one."""
    if prompt == "paper":
        return PAPER_JUDGE_PROMPT.format(question=question, gold=golds[0], answer=answer.strip())
    if len(golds) == 1:
        references = f"Reference answer: {golds[0]}"
    else:
        listed = "\n".join(f"- {gold}" for gold in golds)
        references = f"Reference answers, of which any one is enough:\n{listed}"
    return JUDGE_PROMPT.format(question=question, references=references, answer=first_statement(answer))


class GradingIncomplete(RuntimeError):
    """Some answers could not be graded, so the run stops here; what is already recorded stays valid for resuming."""


class JudgeRefused(RuntimeError):
    """The judge's endpoint refuses the key, or does not know the model; asking again would not help."""


def require_verdicts(verdicts: Sequence[bool | None]) -> list[bool]:
    """
    Return the verdicts, or stop when an answer could not be graded.

    Args:
        verdicts (`Sequence[bool | None]`):
            Verdicts of a grader; `None` where an answer could not be graded.

    Returns:
        `list[bool]`: The same verdicts.

    Raises:
        [`GradingIncomplete`]: If any verdict is `None`.

    Example:

    ```python
    >>> require_verdicts([True, False])
    [True, False]

    ```
    """
    missing = sum(verdict is None for verdict in verdicts)
    if missing:
        raise GradingIncomplete(
            f"{missing} of {len(verdicts)} answers could not be graded; they are not counted as wrong. Resume the run "
            "once the judge answers again."
        )
    return list(verdicts)


def parse_verdict(reply: str) -> bool | None:
    """
    Read a judge's reply; reasoning up to `</think>` does not count.

    Args:
        reply (`str`):
            What the judge wrote.

    Returns:
        `bool | None`: What the reply begins with, else the only one of yes and no that it contains, else `None`.

    Example:

    ```python
    >>> parse_verdict("**Yes**, no detail differs."), parse_verdict("The verdict is no."), parse_verdict("Perhaps.")
    (True, False, None)

    ```
    """
    words = re.findall(r"\w+", reply.rpartition("</think>")[2].casefold())
    found = {word for word in words if word in ("yes", "no")}
    if words and words[0] in found:
        return words[0] == "yes"
    return "yes" in found if len(found) == 1 else None


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    return isinstance(error, (HTTPError, json.JSONDecodeError))


class JudgeGrader:
    """
    Grades answers by asking a language model, over `huggingface_hub.InferenceClient`.

    Requests go out concurrently, at temperature 0; passing faults (time-outs, broken connections, HTTP 408, 409, 425,
    429 and 5xx) are retried with exponential back-off. What stays ungraded is `None`, with one warning that states the
    count and the last fault. A refused key or a missing model stops at once.

    Parameters:
        model (`str`):
            Name of the judge, as the provider or the endpoint knows it.
        prompt (`str`, *optional*, defaults to `"default"`):
            What the judge is asked: `"default"`, whether the answer's first statement is right, or `"paper"` for the
            grading prompt of the paper's code, which shows the whole answer and names the first gold answer only, as the
            paper's data do. The paper's judge is GPT-4.1.
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
            Number of requests per answer before it stays ungraded.
        initial_wait (`float`, *optional*, defaults to `1.0`):
            Longest wait before the second attempt, in seconds; doubles with each attempt, up to 60.
        timeout (`float`, *optional*, defaults to `60.0`):
            Time to wait for a reply, in seconds.

    Raises:
        ImportError: The extra `judge` is not installed.
        ValueError: There is no such `prompt`, `max_workers` or `max_attempts` is below 1, or `base_url` is not a plain
            http(s) address.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str = "default",
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
                "`JudgeGrader` needs tenacity; install it with `pip install 'seal-hf[judge]'`."
            ) from error
        if prompt not in ("default", "paper"):
            raise ValueError(f"`prompt` must be 'default' or 'paper', but is {prompt!r}.")
        for name, value in (("max_workers", max_workers), ("max_attempts", max_attempts)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {value}.")
        address = urlsplit(base_url or "http://")
        if address.scheme not in ("http", "https") or "@" in address.netloc:
            raise ValueError("`base_url` must be an http(s) address without user or password; pass keys as `api_key`.")
        self.model = model
        self.prompt = prompt
        self.max_workers = max_workers
        self._endpoint = base_url or f"provider {provider or 'auto'}"
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

    def grade(
        self, questions: Sequence[str], golds: Sequence[str | Sequence[str]], answers: Sequence[str]
    ) -> list[bool | None]:
        """
        Grade answers; the arguments are those of [`LexicalGrader.grade`]. The judge is asked once about an answer, with all
        gold answers of its question that its prompt has place for.

        Returns:
            `list[bool | None]`: One verdict per answer; `None` where all attempts failed or the reply is neither yes
            nor no. An empty answer is wrong without asking the judge.

        Raises:
            ValueError: The three lengths differ, or a question has no gold answer or an empty one.
            [`JudgeRefused`]: If the endpoint refuses the key (HTTP 401, 402, 403) or does not know the model or the path
                (HTTP 404).
        """
        rows = check_inputs(questions, golds, answers)
        asked = list(dict.fromkeys(row for row in rows if row[2].strip()))
        with ThreadPoolExecutor(self.max_workers) as executor:
            outcomes = dict(zip(asked, executor.map(self._ask, asked), strict=True))
        verdicts = [outcomes[row] if row in outcomes else False for row in rows]
        faults = [verdict for verdict in verdicts if isinstance(verdict, str)]
        if faults:
            logger.warning("%d of %d answers could not be graded; the last: %s", len(faults), len(rows), faults[-1])
        return [None if isinstance(verdict, str) else verdict for verdict in verdicts]

    def _ask(self, row: tuple[str, tuple[str, ...], str]) -> bool | str:
        """Return the verdict on one answer, or why there is none."""
        messages = [{"role": "user", "content": _judge_prompt(self.prompt, *row)}]
        try:
            output = self._retrying()(self._client.chat_completion, messages, model=self.model, temperature=0.0)
        except (HTTPError, json.JSONDecodeError) as error:
            fault = self._describe(f"{type(error).__name__}: {error}")
            if _status(error) not in (401, 402, 403, 404):
                return fault
        else:
            message = output.choices[0].message if output.choices else None
            reply = (message and message.content) or ""
            verdict = parse_verdict(reply)
            return self._describe(f"the reply {reply!r} is neither yes nor no") if verdict is None else verdict
        # Outside the handler, so that the HTTP error, whose request holds the key, is not chained.
        raise JudgeRefused(
            f"The judge {self.model!r} at {self._endpoint} refused the request; check `api_key`, `model` and "
            f"`provider` or `base_url`. {fault}"
        )

    def _describe(self, text: str) -> str:
        """Shorten a fault to one line without the key, which some endpoints repeat."""
        if self._secret:
            text = text.replace(self._secret, "[key]")
        return " ".join(text.split())[:300]
