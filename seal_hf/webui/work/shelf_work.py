"""The work of the tab Shelf on the device: ask everything that was taught. Its jobs are those of the [`Workbench`]."""

from typing import Any

from ..languages import Message
from . import device_work, inputs
from .jobs import Job, JobRefused
from .pace import WRITTEN_PER_SECOND
from .sessions import Session
from .shelves import EVERYTHING, Choice
from .workbench import Workbench


ASKING = "ask-shelf"  # kind of job


def ask_shelf(workbench: Workbench, session: Session, question: object, who: str = EVERYTHING) -> Job:
    """
    Ask the passage that a question fits, or the base model where none does, without the passage in view.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session ([`Session`]):
            The session, whose shelf is asked.
        question (`str`):
            The question.
        who (`str`, *optional*, defaults to [`EVERYTHING`]):
            As in [`Shelves.choose`].

    Raises:
        ValueError: The question has no words, or is too long.
        JobRefused: There is no such book, it cannot be asked, the session asks its shelf something else at the moment, or too
            many jobs are waiting.
    """
    question = inputs.checked_question(workbench.lm, question)
    choice = workbench.shelves.choose(session, question, who)
    route = choice.route if choice.is_asked else None
    title = route.passage.title if route is not None else ""
    folder = route.book.adapter_folder(route.passage) if route is not None else None
    example = inputs.example_of(title, "", [{"question": question}])

    def work(job: Job) -> None:
        if folder is not None and not folder.is_dir():
            raise JobRefused(Message("shelf.gone_meanwhile"))
        job.emit("asked", question=question, choice=described_choice(choice))
        (answer,) = workbench.run(device_work.answer_with, job, example, folder)
        job.emit("answered", answer=answer)

    key = [question, who, str(folder)]
    return workbench.submit(session, ASKING, key, work, 3 + device_work.LONGEST_ANSWER / WRITTEN_PER_SECOND, "answer")


def described_choice(choice: Choice) -> dict[str, Any]:
    """
    Who answers, in plain data: the `title` of the book that does, its `book` id and the number of its `passage`, of
    `num_passages`; all `None` for the base model. `nearest` is the title of the book that the question fits best, with the
    `score` and the `threshold` from which it is asked.
    """
    route = choice.route
    asked = {"book": None, "title": None, "passage": None, "num_passages": None}
    if choice.is_asked and route is not None:
        numbers = {"passage": route.number, "num_passages": len(route.book.passages)}
        asked = {"book": route.book.id, "title": route.book.title, **numbers}
    return {
        **asked,
        "is_chosen": choice.is_chosen,
        "nearest": route.book.title if route is not None else None,
        "score": round(route.score, 3) if route is not None else None,
        "threshold": route.threshold if route is not None else None,
    }
