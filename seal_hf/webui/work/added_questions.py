"""A question about a name or number that a passage has and no pair asks for. Its jobs are those of the [`Workbench`]."""

from dataclasses import replace

from ..languages import Message
from . import device_work, inputs
from .jobs import Job, JobRefused
from .pace import WRITTEN_PER_SECOND
from .self_edit_inputs import MAX_PAIRS
from .sessions import Session
from .settings import Settings
from .workbench import Workbench


ADDING = "add-question"  # kind of job
_TOKENS = 150  # of a question and of its readings, as they are written one after another


def add_question(workbench: Workbench, session: Session, fact: object) -> Job:
    """
    Let the model write and answer a question about a name or number of the passage, and append the pair to the first self-edit in
    use that has pairs.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        session ([`Session`]):
            The session.
        fact (`str`):
            The name or number.

    Raises:
        ValueError: The passage has no such name or number.
        JobRefused: There are no self-edits with pairs, there is no room for another pair, the session asks about something else
            at the moment, or too many jobs are waiting.
    """
    example = session.example
    if example is None or (place := place_for_pair(session)) is None:
        raise JobRefused(Message("adding.no_questions"))
    facts, _ = inputs.missing_facts(example, ())  # all
    if fact not in facts:
        raise ValueError(Message("adding.no_fact", fact=str(fact)[:100]))
    num_pairs = len(session.drafts[place].pairs)
    if num_pairs >= MAX_PAIRS:
        raise JobRefused(Message("adding.too_many", number=place + 1, num_questions=num_pairs, most=MAX_PAIRS))

    def work(job: Job) -> None:
        job.emit("asking_about", fact=fact)
        pair = workbench.run(device_work.add_question, job, example, fact, Settings(**session.settings))
        if job.stop.is_set():
            return
        # Other self-edits may have been written meanwhile.
        place = place_for_pair(session) if session.example is example else None
        if pair is not None and place is not None:
            draft = session.drafts[place]
            session.drafts[place] = replace(draft, pairs=[*draft.pairs, pair])
        job.emit("added", fact=fact, pair=pair, place=place)

    return workbench.submit(session, ADDING, [example, fact], work, _TOKENS / WRITTEN_PER_SECOND, "write")


def place_for_pair(session: Session) -> int | None:
    """The number of the self-edit that another pair goes to, from 0; `None` where none has pairs."""
    places = [place for place, draft in enumerate(session.drafts) if draft.pairs is not None]
    return min(places, key=lambda place: (not session.drafts[place].use, place), default=None)
