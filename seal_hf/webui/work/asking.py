"""Questions to the base and the adapted model at the same time, without the passage, and the grades of their answers."""

from collections.abc import Callable, Mapping, Sequence

from ...domains import Domain
from ...domains.knowledge.passages import load_retention_questions, unanswered_question
from ...grading import LexicalGrader
from ...rollout.rewards import mean
from ..languages import Message
from . import device_work, inputs
from .jobs import Job
from .session_items import KeptAdapter
from .sessions import Session


_LONGEST_HISTORY = 50  # questions


def ask_both(
    job: Job,
    session: Session,
    kind: str,
    examples: Sequence[Mapping],
    kept: KeptAdapter,
    *,
    run: Callable,
    domain: Domain,
) -> None:
    """
    Let both models answer. A question of the kind `"ask"` joins the history of the session, others are graded.

    Args:
        job ([`Job`]):
            Where to report the progress and the answers.
        session ([`Session`]):
            The session.
        kind (`str`):
            `"ask"`, `"score"` or `"probe"`.
        examples (`Sequence[Mapping]`):
            The questions, with the titles that they name.
        kept ([`KeptAdapter`]):
            The adapter.
        run (`Callable`):
            [`Workbench.run`].
        domain ([`Domain`]):
            Tells which answers recite the passage.

    Raises:
        ValueError: The adapter was deleted while the job waited.
    """
    if kept.id not in session.adapters:
        raise ValueError(Message("ask.deleted", adapter=kept.name))
    questions = [item for example in examples for item in example["questions"]]
    job.emit("asked", questions=questions, adapter=kept.name)
    base, adapted = run(device_work.answer, job, examples, kept.file)
    verdicts = recited = None
    if kind != "ask" and not job.stop.is_set():
        verdicts = [_graded(questions, answers) for answers in (base, adapted)]
        about = inputs.example_of(kept.title, kept.passage)
        recited = [mean(domain.recited(about, answers)) for answers in (base, adapted)]
    if kind == "ask" and not job.stop.is_set():
        session.asked = [*session.asked, (questions[0]["question"], base[0], adapted[0])][-_LONGEST_HISTORY:]
    best_of = 1 if kept.own_questions else kept.best_of  # by questions of the visitor
    job.emit("answered", base=base, adapted=adapted, verdicts=verdicts, recited=recited, best_of=best_of)


def probing_examples(kept: KeptAdapter) -> list[dict]:
    """Questions that have nothing to do with an adapter's passage, and one about its topic that it does not answer."""
    examples = [inputs.example_of("", "", load_retention_questions())]
    if question := unanswered_question(inputs.example_of(kept.title, kept.passage)):
        examples.append(inputs.example_of(kept.title, "", [{"question": question}]))
    return examples


def _graded(questions: Sequence[Mapping], answers: Sequence[str]) -> list[bool | None]:
    """The verdict on each answer; `None` where the right answer is not known."""
    known = [place for place, item in enumerate(questions) if "answer" in item]
    columns = ([questions[place]["question"] for place in known], [questions[place]["answer"] for place in known])
    verdicts = dict(zip(known, LexicalGrader().grade(*columns, [answers[place] for place in known]), strict=True))
    return [verdicts.get(place) for place in range(len(questions))]
