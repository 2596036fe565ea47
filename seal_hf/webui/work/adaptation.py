"""What a job of [`Workbench.adapt`] learns: checked before it is accepted, trained on the device, and kept by the session."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...adapters.layout import lora_layout
from ...models.encoding import encode_prompt
from ...self_adapting_lm import SelfAdaptingLM
from ...self_edit import SelfEdit
from ..languages import Message, as_data
from . import device_work, inputs, quota
from .errors import explain
from .jobs import Job, JobRefused
from .limits import Limits
from .self_edit_inputs import checked_self_edits
from .session_items import Draft, KeptAdapter, Policy
from .sessions import Session
from .settings import Settings
from .shelves import Shelves


NUM_OWN_QUESTIONS = 5
_FEWER = Message("learn.fewer")


@dataclass(frozen=True)
class Adaptation:
    """
    The training of one or several adapters, ready to begin.

    Parameters:
        session ([`Session`]):
            The session that gets the adapters.
        example (`dict`):
            The passage with the visitor's questions.
        drafts (`list[Draft]`):
            All self-edits of the session, as the visitor has edited them.
        self_edits (`list[SelfEdit]`):
            The chosen ones.
        settings ([`Settings`]):
            How to train.
        together (`bool`):
            Whether one adapter learns all of them.
        watched (`dict`, *optional*):
            An example with the question that the adapters are asked while they are trained.
        stops_early (`bool`):
            Whether the training ends once the answers to it stay.
        labels (`list[str]`):
            What the page calls each adapter: the numbers of its self-edits, from 1.
        names (`list[str]`):
            The adapters' names in the session.
        targets (`list[tuple[str, Path]]`):
            The adapters' ids and zip files.
        writer ([`Policy`], *optional*):
            The policy that asks what a self-edit has left out.
        num_tokens (`int`):
            Tokens that are trained on, in all epochs, and that are read to answer questions, at most.
        num_bytes (`int`):
            Room on the disk for what is written.
    """

    session: Session
    example: dict
    drafts: list[Draft]
    self_edits: list[SelfEdit]
    settings: Settings
    together: bool
    watched: dict | None
    stops_early: bool
    labels: list[str]
    names: list[str]
    targets: list[tuple[str, Path]]
    writer: Policy | None
    num_tokens: int
    num_bytes: int

    @property
    def key(self) -> list:
        """What tells two of them apart, in plain data."""
        return [
            self.example,
            [edit.completion for edit in self.self_edits],
            asdict(self.settings),
            self.together,
            self.watched,
            self.stops_early,
        ]

    def learn(self, job: Job, *, run: Callable, shelves: Shelves) -> None:
        """
        Train the adapters, give them to the session and put the best one on its shelf.

        Args:
            job ([`Job`]):
                Where to report the progress.
            run (`Callable`):
                [`Workbench.run`].
            shelves ([`Shelves`]):
                The shelves of the sessions.

        Raises:
            Exception: The error of the training. The adapters that were saved before it stay.
        """
        session, writer = self.session, self.writer
        question = self.watched["questions"][0] if self.watched else None
        job.emit("learning", names=self.labels, watched=question)
        files = [file for _, file in self.targets]
        with quota.room(session.folder, self.num_bytes):
            try:
                result = run(
                    device_work.learn,
                    job,
                    self.example,
                    self.self_edits,
                    self.settings,
                    files,
                    NUM_OWN_QUESTIONS,
                    together=self.together,
                    watched=self.watched,
                    writer=writer.folder if writer is not None and writer.folder.is_dir() else None,
                    stops_early=self.stops_early,
                )
            except BaseException:
                # The adapters that were saved before the error stay, without a reward.
                saved = [index for index, file in enumerate(files) if file.is_file()]
                self._keep(job, {"seconds": None, "trained": saved})
                raise
            best = self._keep(job, result)
            if best is not None:
                self._put_on_shelf(job, shelves, best, result)

    def _keep(self, job: Job, result: dict) -> int | None:
        """
        Give the session its new adapters, which are those that are trained.

        Returns:
            `int`, *optional*: which of them is the best one; `None` where there is none.
        """
        if not (places := result["trained"]):
            return None
        verdicts = result.get("verdicts")
        rewards = [sum(one) / len(one) for one in verdicts] if verdicts else None
        best = max(range(len(places)), key=lambda index: rewards[index + 1]) if rewards else 0
        for index, place in enumerate(places):
            adapter_id, file = self.targets[place]
            kept = KeptAdapter(
                adapter_id,
                self.names[place],
                file,
                title=inputs.title_of(self.example),
                passage=inputs.passage_of(self.example),
                reward=rewards[index + 1] if rewards else None,
                base_reward=rewards[0] if rewards else None,
                best_of=len(places) if rewards and rewards[index + 1] == max(rewards[1:]) else 1,
                recitation=result["recitations"][index + 1] if rewards else None,
                recited=result["recited"][index + 1] if rewards else None,
                base_recited=result["recited"][0] if rewards else None,
                num_questions=len(verdicts[0]) if verdicts else 0,
                own_questions=result.get("own", False),
                seconds=result["seconds"],
            )
            self.session.keep(kept, choose=index == best)
        graded = (
            {key: result[key] for key in ("questions", "own", "answers", "verdicts", "recited")} if rewards else {}
        )
        job.emit(
            "learned",
            adapters=[self.targets[place][0] for place in places],
            names=[self.labels[place] for place in places],
            diverged=[self.labels[place] for place in result.get("diverged", ())],
            best=best,
            **graded,
        )
        return best

    def _put_on_shelf(self, job: Job, shelves: Shelves, best: int, result: dict) -> None:
        """Make a book of the best adapter. Where that fails, the adapter stays, and the page says why there is no book."""
        pairs, loss, is_whole = (result[key][best] for key in ("pairs", "losses", "is_whole"))
        try:
            kept = self.session.adapter(self.targets[result["trained"][best]][0])
            book = shelves.put(self.session, kept, self.example, pairs, loss, is_whole=is_whole)
        except (OSError, ValueError) as error:
            job.emit("shelved", book=None, error=as_data(explain(error)))
            return
        job.emit("shelved", book=book.id if book else None, error=None)


def checked_adaptation(
    base: SelfAdaptingLM,
    limits: Limits,
    session: Session,
    chosen: Sequence[int],
    settings: Settings,
    questions: Sequence[Mapping],
    drafts: Sequence[Draft] | None,
    *,
    together: bool,
    watched: str,
    stops_early: bool,
) -> Adaptation:
    """
    What a visitor asks for, unless it cannot be learned.

    Args:
        base ([`SelfAdaptingLM`]):
            The model.
        limits ([`Limits`]):
            How large a training may be.
        session, chosen, settings, questions, drafts, together, watched, stops_early:
            As in [`Workbench.adapt`].

    Raises:
        ValueError: No self-edit is chosen, one is empty or has too long a text, the training would be too long, or the watched
            question is.
        JobRefused: The session has no self-edit, too many adapters or no room for more.
    """
    if session.example is None:
        raise JobRefused(Message("learn.no_self_edit"))
    # How a self-edit is read follows from how it was asked for.
    settings = replace(settings, prompt_style=session.settings["prompt_style"])
    lm = settings.lm(base)
    # One more is the folder that becomes the zip file of one, and later the book.
    num_adapters = 1 if together else len(chosen)
    num_bytes = (1 + num_adapters) * (lora_layout(lm.model, lm.peft_config).num_bytes + quota.FILE_BYTES)
    quota.require(session.folder, num_bytes)
    example = {**session.example, "questions": [dict(item) for item in questions]}
    drafts = session.drafts if drafts is None else list(drafts)
    self_edits = checked_self_edits(lm, example, drafts, chosen)
    session.require_room(num_adapters)
    num_added = [lm.domain.num_left_out(edit, example) for edit in self_edits]
    limits.check_steps(_num_steps(settings, self_edits, num_added), _FEWER)
    labels = [str(number + 1) for number in chosen]
    if together:
        labels = [" + ".join(labels)]
    names = [f"{inputs.name_of(example)} · self-edit {label}" for label in labels]
    watched_example = _watched(base, example, watched)
    for number, edit in zip(chosen, self_edits, strict=True):
        _check_lengths(lm, Message("common.self_edit", number=number + 1), edit)
    num_tokens = sum(
        _num_tokens(lm, example, edit, added, settings) for edit, added in zip(self_edits, num_added, strict=True)
    )
    limits.check_tokens(num_tokens, _FEWER)
    return Adaptation(
        session,
        example,
        drafts,
        self_edits,
        settings,
        together=together,
        watched=watched_example,
        stops_early=stops_early,
        labels=labels,
        names=names,
        targets=[session.new_file(name) for name in names],
        writer=session.writer,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
    )


def _watched(lm: SelfAdaptingLM, example: Mapping, question: str) -> dict | None:
    """
    The watched question as an example of its own, with its answers where they are known.

    Raises:
        ValueError: It has no words, or is too long.
    """
    if not (question or "").strip():
        return None
    question = inputs.checked_question(lm, question)
    known = [item for item in example["questions"] if item["question"].casefold() == question.casefold()]
    return inputs.example_of(inputs.title_of(example), "", known[:1] or [{"question": question}])


def _num_steps(settings: Settings, self_edits: Sequence[SelfEdit], num_added: Sequence[int]) -> int:
    """Steps of the training, in all epochs of all self-edits, to which so many questions may be added each."""
    # Each question that the model is to answer becomes one more example.
    sizes = [len(edit.examples) + len(edit.calls) + added for edit, added in zip(self_edits, num_added, strict=True)]
    return settings.num_train_epochs * sum(-(-size // settings.batch_size) for size in sizes)


def _check_lengths(lm: SelfAdaptingLM, name: str, self_edit: SelfEdit) -> None:
    """
    Raises:
        ValueError: A text is longer than what is trained on as a whole.
    """
    most = inputs.longest_sequence(lm)
    for one in self_edit.examples:
        if (count := inputs.sequence_length(lm, one)) > most:
            text = f"{one.completion[:40].strip()} …"
            raise ValueError(Message("inputs.long_text", name=name, text=text, count=count, most=most))


def _num_tokens(lm: SelfAdaptingLM, example: Mapping, self_edit: SelfEdit, num_added: int, settings: Settings) -> int:
    """Tokens that a self-edit trains on in all epochs, and that are read to answer its questions and those added, at most."""
    trained = sum(inputs.sequence_length(lm, one) for one in self_edit.examples)
    if not self_edit.calls:
        return settings.num_train_epochs * trained
    title, tokenizer = inputs.title_of(example), lm.processing_class
    asked = [len(encode_prompt(tokenizer, prompt)) for prompt in lm.domain.ask(self_edit.calls, title)]
    # What is left out is asked for in lines like these.
    asked += [max(asked)] * num_added
    trained += sum(asked) + len(asked) * device_work.LONGEST_ANSWER
    return settings.num_train_epochs * trained + len(asked) * inputs.count_tokens(lm, inputs.passage_of(example))
