"""
Asks adapters while they are trained, so that one sees their answers change.

What is asked takes a bounded share of the time: after a step the adapters are asked again when enough of it has been spent on
training since.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.policy import carried_policy
from ..grading import gold_answers
from ..inner_loop.training import InnerStep
from ..self_adapting_lm import SelfAdaptingLM


@dataclass(frozen=True)
class WatchedAnswers:
    """
    What adapters in training answer after a step.

    Parameters:
        answers (`dict[int, str]`):
            The greedy answer of each adapter that took part in the step; before the first step of the base model alone, as 0.
        verdicts (`dict[int, bool | None]`, *optional*):
            Whether each of them is right; `None` where no gold answer is known.
        probabilities (`dict[int, float | None]`, *optional*):
            How likely each adapter finds the likeliest gold answer: the geometric mean over its tokens.
    """

    answers: dict[int, str]
    verdicts: dict[int, bool | None] | None = None
    probabilities: dict[int, float | None] | None = None


class QuestionWatch:
    """
    Asks adapters one question while they are trained.

    Args:
        lm ([`SelfAdaptingLM`]):
            The model that trains them.
        example (`Mapping`):
            An example with one question, and the gold answer where one is known.
        max_share (`float`, *optional*, defaults to `0.1`):
            The share of the time since the start that asking may take; one time more than that it is asked at the end.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        stop (`threading.Event`, *optional*):
            Ends an answer that is being written, once set.

    Raises:
        ValueError: The example has not one question.

    Example:

    ```python
    watch = QuestionWatch(lm, {"title": "Bees", "context": "", "questions": [{"question": "Who keeps bees?"}]})
    lm.adapt(self_edit, on_step=lambda step: print(step.step, watch.ask(step)))
    ```
    """

    def __init__(
        self,
        lm: SelfAdaptingLM,
        example: Mapping[str, Any],
        *,
        max_share: float = 0.1,
        max_answer_length: int = 64,
        stop: threading.Event | None = None,
    ):
        self.lm, self.example, self.max_share = lm, example, max_share
        self.max_answer_length, self.stop = max_answer_length, stop
        prompts = lm.domain.questions(example)
        if len(prompts) != 1:
            raise ValueError(
                f"One question can be watched, but the example has {len(prompts)}; give an example with one."
            )
        (self.prompt,) = prompts
        self.golds = gold_answers(example["questions"][0].get("answer"))
        self.seconds = 0.0
        self._last = 0.0

    def ask(self, step: InnerStep) -> WatchedAnswers | None:
        """
        Ask the adapters that took part in a step, unless it is too early for it.

        Args:
            step ([`InnerStep`]):
                The step, as `on_step` of [`SelfAdaptingLM.adapt`] has it.

        Returns:
            [`WatchedAnswers`], *optional*: `None` where it is too early.
        """
        is_last = step.step == step.num_steps
        if not is_last and self.seconds + self._last > self.max_share * step.seconds:
            return None
        policy = carried_policy(self.lm.model, self.lm.base_model_id)
        seen = self._timed(
            {
                number: Adapter(step.layout, weights, self.lm.base_model_id, policy=policy)
                for number, weights in step.weights.items()
            }
        )
        self.seconds += self._last
        return seen

    def ask_base(self) -> WatchedAnswers:
        """Ask the model without an inner adapter, before the training; it tells how long an answer takes."""
        return self._timed({0: None})

    def _timed(self, adapters: Mapping[int, Adapter | None]) -> WatchedAnswers:
        start = time.perf_counter()
        seen = self._ask(adapters)
        self._last = time.perf_counter() - start
        return seen

    def _ask(self, adapters: Mapping[int, Adapter | None]) -> WatchedAnswers:
        prompts, asked = [self.prompt] * len(adapters), list(adapters.values())
        answers = self.lm.answer_prompts(prompts, asked, max_answer_length=self.max_answer_length, stop=self.stop)
        verdicts = probabilities = None
        if self.golds:
            graded = self.lm.domain.grade([self.example] * len(answers), [[answer] for answer in answers])
            verdicts = dict(zip(adapters, (verdict for (verdict,) in graded), strict=True))
            likely = self.lm.generator.answer_log_likelihoods(prompts, [list(self.golds)] * len(prompts), asked)
            found = (None if one is None else math.exp(one) for one in likely)
            probabilities = dict(zip(adapters, found, strict=True))
        return WatchedAnswers(dict(zip(adapters, answers, strict=True)), verdicts, probabilities)


@dataclass
class _Watched:
    """What is known of one adapter in training: its last losses and answers, and whether it has settled."""

    losses: deque[float]
    answers: deque[str]
    is_settled: bool = False


class AnswerStays:
    """
    Ends a training early, once the answers to the watched question stay as they are. Passed as `stop` to
    [`SelfAdaptingLM.adapt`].

    An adapter has settled when the mean loss of its last steps, a tenth of all and about an epoch, is at most `max_loss`, and

    - its last answer is right by the gold answer, which it finds likely by `min_probability` or more, or
    - its last `num_looks` answers are one and the same.

    It counts as settled no longer when a later look finds otherwise. The training ends when all adapters have settled or are
    through. The loss counts in both cases, since one answer may be right long before the rest is learned. The falling learning rate is
    cut where it is: its last, smallest steps are missing, so that what was learned may be a little less sure than after all of them.

    Args:
        num_adapters (`int`):
            How many adapters are trained.
        min_probability (`float`, *optional*, defaults to `0.8`):
            Least probability of the gold answer: the geometric mean over its tokens.
        num_looks (`int`, *optional*, defaults to `3`):
            How many equal answers in a row are enough.
        max_loss (`float`, *optional*, defaults to `0.1`):
            Greatest mean loss, in nats per token.
        stop (`threading.Event`, *optional*):
            Ends the training as well, once set.

    Raises:
        ValueError: A number that is out of its range.

    Example:

    ```python
    watch, stays = QuestionWatch(lm, example), AnswerStays(num_adapters=1)
    lm.adapt(self_edit, on_step=lambda step: stays.look(step, watch.ask(step)), stop=stays)
    ```
    """

    def __init__(
        self,
        num_adapters: int,
        *,
        min_probability: float = 0.8,
        num_looks: int = 3,
        max_loss: float = 0.1,
        stop: threading.Event | None = None,
    ):
        if not 0 <= min_probability <= 1:
            raise ValueError(f"min_probability={min_probability!r} must be from 0 to 1.")
        for name, value in (("num_adapters", num_adapters), ("num_looks", num_looks)):
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1.")
        if not max_loss >= 0:
            raise ValueError(f"max_loss={max_loss!r} must be 0 or more.")
        self.num_adapters, self.min_probability = num_adapters, min_probability
        self.num_looks, self.max_loss, self.stop = num_looks, max_loss, stop
        self._adapters: dict[int, _Watched] = {}
        self._last_step = 0
        self.has_settled = False

    def look(self, step: InnerStep, seen: WatchedAnswers | None) -> None:
        """
        Take note of a step, and of the answers after it.

        Args:
            step ([`InnerStep`]):
                The step, as `on_step` of [`SelfAdaptingLM.adapt`] has it.
            seen ([`WatchedAnswers`], *optional*):
                What [`QuestionWatch.ask`] gave for it.
        """
        if step.step <= self._last_step:  # a bank ran out of memory: it is trained anew, in halves
            self._adapters = {adapter: own for adapter, own in self._adapters.items() if adapter < min(step.losses)}
        self._last_step = step.step
        num_losses = math.ceil(step.num_steps / 10)
        for adapter, loss in step.losses.items():
            new = _Watched(deque(maxlen=num_losses), deque(maxlen=self.num_looks))
            own = self._adapters.setdefault(adapter, new)
            own.losses.append(loss)
            if seen is not None and adapter in seen.answers:
                own.answers.append(seen.answers[adapter])
                own.is_settled = self._settled(own, adapter, seen)
        others = (own.is_settled for adapter, own in self._adapters.items() if adapter in step.losses)
        is_whole = len(self._adapters) == self.num_adapters
        # After the last step there is nothing to end.
        self.has_settled = is_whole and all(others) and step.step < step.num_steps

    def is_set(self) -> bool:
        """Whether the training is to end."""
        return self.has_settled or (self.stop is not None and self.stop.is_set())

    def _settled(self, own: _Watched, adapter: int, seen: WatchedAnswers) -> bool:
        if sum(own.losses) / len(own.losses) > self.max_loss:
            return False
        if len(own.answers) == self.num_looks and len(set(own.answers)) == 1:
            return True
        is_right = (seen.verdicts or {}).get(adapter)
        return bool(is_right) and ((seen.probabilities or {}).get(adapter) or 0.0) >= self.min_probability
