"""What the page can do, without a widget: write self-edits, learn them, ask, keep. Work on the device becomes a job."""

import hashlib
import json
import logging
import re
import secrets
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from huggingface_hub import get_token

from ...adapters.files import WEIGHTS_NAME
from ...grading import LexicalGrader
from ...grading.intervals import accuracy
from ...hub.errors import HubError
from ...hub.model_card import AdapterCard
from ...hub.transfer import is_hub_id, with_namespace
from ...self_adapting_lm import SelfAdaptingLM
from . import device
from . import inputs as checks
from .explaining import explain
from .jobs import Job, JobRefused, Jobs
from .sessions import Draft, KeptAdapter, Session, Sessions
from .settings import Settings


logger = logging.getLogger(__name__)

NUM_OWN_QUESTIONS = 5
_LONGEST_HISTORY = 50  # questions
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Unrelated questions, to see whether anything else was lost.
PROBES = (
    {"question": "What is the capital of France?", "answer": "Paris"},
    {"question": "What colour is the sky on a clear day?", "answer": "blue"},
    {"question": "How many days are in a week?", "answer": "seven"},
    {"question": "What do bees make?", "answer": "honey"},
    {"question": "Which planet do people live on?", "answer": "Earth"},
)
# Tokens per second on two CPU cores with a small model, written in one text and trained on; the pace that a job kept
# corrects them.
_WRITTEN, _TRAINED = 12.0, 250.0


class Workbench:
    """
    One model and all who use it.

    Parameters:
        lm ([`SelfAdaptingLM`]):
            The model, loaded once.
        folder (`Path`):
            Where sessions keep their files.
        num_workers (`int`, *optional*, defaults to `1`):
            Jobs at a time (see [`Jobs`]).
        keep_seconds (`float`, *optional*, defaults to `3600`):
            How long a session is kept that nobody uses.

    Attributes:
        is_training (`Callable[[str], bool]`):
            Whether a session has a training run under way, so that it is in use.
    """

    def __init__(self, lm: SelfAdaptingLM, folder: Path, *, num_workers: int = 1, keep_seconds: float = 3600):
        self.lm = lm
        self.is_training: Callable[[str], bool] = lambda session_id: False
        self._model = device.hold(lm)
        self.jobs = Jobs(explain, num_workers=num_workers)
        self.sessions = Sessions(
            folder,
            keep_seconds=keep_seconds,
            is_busy=lambda session_id: bool(self.jobs.active(session_id)) or self.is_training(session_id),
            on_forget=self.jobs.forget,
        )
        self._pace_lock = threading.Lock()
        self._pace = {"write": 1.0, "learn": 1.0, "answer": 1.0}
        threading.Thread(target=self._sweep, args=(min(keep_seconds, 600),), name="sweep", daemon=True).start()

    # --- write ---

    def propose(
        self, session: Session, title: str, passage: str, questions: Sequence[Mapping], settings: Settings
    ) -> Job:
        """
        Write self-edits; those of the session are replaced when they are there.

        Raises:
            ValueError: A passage that cannot be learned.
            JobRefused: Others are under way.
        """
        example = checks.checked_example(settings.lm(self.lm), title, passage, questions, settings)

        session.passage = example
        session.shown.pop("adapt", None)  # what was learned of another passage

        def work(job: Job) -> None:
            texts = self._run("write", job, example, settings)
            drafts = [Draft(text, use=checks.has_words(text)) for text in texts]
            if any(draft.use for draft in drafts):
                session.example, session.settings, session.drafts = example, asdict(settings), drafts
            elif not job.stop.is_set():
                raise ValueError("The model wrote nothing that could be learned: try another prompt style or seed.")

        return self._submit(
            session, "propose", [example, asdict(settings)], work, settings.max_completion_length / _WRITTEN, "write"
        )

    def sequences(self, session: Session, text: str) -> list[str]:
        """The training sequences that a self-edit's text will become."""
        if session.example is None or not checks.has_words(text):
            return []
        self_edit = self._session_settings(session).lm(self.lm).domain.parse(checks.clean(text), session.example)
        return [example.prompt + example.completion for example in self_edit.examples] if self_edit else []

    # --- learn ---

    def adapt(self, session: Session, chosen: Sequence[int], settings: Settings, questions: Sequence[Mapping]) -> Job:
        """
        Train an adapter on each of the chosen self-edits and find out which has learned most.

        Parameters:
            chosen (`Sequence[int]`):
                Numbers of the session's drafts, from 0.
            settings ([`Settings`]):
                Hyperparameters.
            questions (`Sequence[Mapping]`):
                The person's questions and answers; the model writes its own where there are none.

        Raises:
            ValueError: No self-edit, or an empty one.
            JobRefused: Others are under way, or too many adapters are kept.
        """
        if session.example is None:
            raise JobRefused("There is no self-edit yet: let the model write some first.")
        lm = settings.lm(self.lm)
        example = {**session.example, "questions": [dict(item) for item in questions]}
        self_edits = checks.checked_self_edits(lm, example, session.drafts, chosen)
        session.require_room(len(self_edits))
        session.passage = example
        targets = [session.new_folder() for _ in self_edits]
        num_tokens = settings.num_train_epochs * sum(
            checks.count_tokens(lm, one.prompt + one.completion) for edit in self_edits for one in edit.examples
        )

        def work(job: Job) -> None:
            job.emit("learning", numbers=[number + 1 for number in chosen])
            folders = [folder for _, folder in targets]
            try:
                result = self._run("learn", job, example, self_edits, settings, folders, NUM_OWN_QUESTIONS)
            except BaseException:
                # What was saved before it went wrong stays, without a reward.
                saved = [place for place, folder in enumerate(folders) if (folder / WEIGHTS_NAME).is_file()]
                numbers, kept = [chosen[place] for place in saved], [targets[place] for place in saved]
                result = {"seconds": None, "has_adapters": bool(saved)}
                self._keep_learned(session, job, example, numbers, kept, result)
                raise
            self._keep_learned(session, job, example, chosen, targets, result)

        inputs = [example, [edit.completion for edit in self_edits], asdict(settings)]
        return self._submit(session, "adapt", inputs, work, num_tokens / _TRAINED + 10, "learn")

    def _keep_learned(
        self,
        session: Session,
        job: Job,
        example: dict,
        chosen: Sequence[int],
        targets: Sequence[tuple[str, Path]],
        result: dict,
    ) -> None:
        if not result["has_adapters"]:
            return
        verdicts = result.get("verdicts")
        rewards = [sum(row) / len(row) for row in verdicts] if verdicts else None
        best = max(range(len(targets)), key=lambda place: rewards[place + 1]) if rewards else 0
        title = example["title"] or f"{example['context'][:40].rstrip()} …"
        for place, (adapter_id, folder) in enumerate(targets):
            kept = KeptAdapter(
                adapter_id,
                f"{title} · self-edit {chosen[place] + 1}",
                folder,
                title=example["title"],
                context=example["context"],
                reward=rewards[place + 1] if rewards else None,
                base_reward=rewards[0] if rewards else None,
                num_questions=len(verdicts[0]) if verdicts else 0,
                own_questions=result.get("own", False),
                seconds=result["seconds"],
            )
            session.keep(kept, choose=place == best)
        job.emit(
            "learned",
            adapters=[adapter_id for adapter_id, _ in targets],
            best=best,
            **({key: result[key] for key in ("questions", "own", "answers", "verdicts")} if rewards else {}),
        )

    # --- ask ---

    def ask(self, session: Session, question: str, adapter_id: str | None = None) -> Job:
        """
        Ask base and adapted model the same, closed-book.

        Raises:
            ValueError: No question, or one that is too long.
            JobRefused: There is no adapter, or others are under way.
        """
        kept = session.adapter(adapter_id)
        return self._answer(session, "ask", [{"question": checks.checked_question(self.lm, question)}], kept)

    def score(self, session: Session, questions: Sequence[Mapping], adapter_id: str | None = None) -> Job:
        """
        Let both answer the person's questions, and grade the answers.

        Raises:
            ValueError: There are no questions.
            JobRefused: There is no adapter, or others are under way.
        """
        kept = session.adapter(adapter_id)
        if not questions:
            raise ValueError("There are no questions yet: write some with their answers in the first step.")
        return self._answer(session, "score", questions, kept)

    def probe(self, session: Session, adapter_id: str | None = None) -> Job:
        """
        Let both answer questions that have nothing to do with the passage.

        Raises:
            JobRefused: There is no adapter, or others are under way.
        """
        return self._answer(session, "probe", PROBES, session.adapter(adapter_id), title="")

    def _answer(
        self,
        session: Session,
        kind: str,
        questions: Sequence[Mapping],
        kept: KeptAdapter,
        title: str | None = None,
    ) -> Job:
        title = kept.title if title is None else title

        def work(job: Job) -> None:
            if kept.id not in session.adapters:
                raise ValueError(f"The adapter “{kept.name}” has been deleted: choose another one under Adapters.")
            job.emit("asked", questions=list(questions), adapter=kept.name)
            base, adapted = self._run("answer", job, questions, title, kept.folder)
            verdicts = None
            if all("answer" in item for item in questions) and not job.stop.is_set():
                grade = LexicalGrader().grade
                texts, golds = zip(*((item["question"], item["answer"]) for item in questions), strict=True)
                verdicts = [grade(list(texts), list(golds), answers) for answers in (base, adapted)]
            if kind == "ask" and not job.stop.is_set():
                session.asked = [*session.asked, (questions[0]["question"], base[0], adapted[0])][-_LONGEST_HISTORY:]
            job.emit("answered", base=base, adapted=adapted, verdicts=verdicts)

        inputs = [list(questions), title, kept.id]
        return self._submit(session, kind, inputs, work, 3 + device.LONGEST_ANSWER / _WRITTEN, "answer")

    # --- keep ---

    def load_adapter(self, session: Session, source: str | Path, token: str | bool | None = None) -> KeptAdapter:
        """
        Add an adapter from an uploaded zip file (`Path`) or from the Hub (`str`).

        Raises:
            ValueError: Not a Hub id, or not a LoRA adapter for this base.
            HubError: The Hub refused or could not be reached.
            OSError: A corrupt file.
        """
        session.require_room(1)
        if isinstance(source, str):
            source = checks.clean(source)
            if not is_hub_id(source):
                raise ValueError(
                    f"“{source[:100]}” is not the id of a repository on the Hub: give one such as user/name."
                )
        try:
            adapter = self.lm.load_adapter(source, token=token)
        except HubError:
            raise
        except (ValueError, FileNotFoundError) as error:
            # The folder of an upload says nothing to who made it.
            folder = f"{source.parent}/" if isinstance(source, Path) else "\0"
            raise ValueError(str(error).replace(folder, "")) from error
        except Exception as error:  # what strangers send may break a reader in ways that nobody foresaw
            logger.warning("An adapter could not be read", exc_info=True)
            name = source.name if isinstance(source, Path) else source
            raise ValueError(f"{name} cannot be read as a LoRA adapter: save it again with PEFT.") from error
        adapter_id, folder = session.new_folder()
        adapter.save_pretrained(folder)
        name = Path(source).stem if isinstance(source, Path) else source
        kept = KeptAdapter(adapter_id, name, folder)
        session.keep(kept, choose=True)
        return kept

    def zip_file(self, session: Session, adapter_id: str | None = None) -> Path:
        """
        An adapter's PEFT folder as a zip file.

        Raises:
            JobRefused: There is no such adapter.
        """
        kept = session.adapter(adapter_id)
        name = re.sub(r"[^A-Za-z0-9]+", "-", kept.name.encode("ascii", "ignore").decode()).strip("-").lower()
        archive = session.folder / "zips" / kept.id / f"{name[:60] or 'adapter'}.zip"
        if not archive.is_file():
            archive.parent.mkdir(parents=True, exist_ok=True)
            # Under another name until it is whole: two may ask at once, and the disk may be full.
            partial = archive.with_suffix(f".{secrets.token_hex(4)}")
            # Weights hardly shrink, and packing them takes seconds.
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as files:
                for file in sorted(kept.folder.iterdir()):
                    files.write(file, file.name)
            partial.replace(archive)
        return archive

    def push(
        self, session: Session, adapter_id: str, name: str, *, private: bool, publish_passage: bool, token: str
    ) -> str:
        """
        Upload an adapter into the account of the token.

        Returns:
            `str`: the repository's address.

        Raises:
            ValueError: An invalid name.
            HubError: The Hub refused or could not be reached; the adapter stays.
        """
        kept = session.adapter(adapter_id)
        name = checks.checked_repo_name(name)
        adapter = self.lm.load_adapter(kept.folder)
        try:
            repo_id = with_namespace(name, token)
            return adapter.push_to_hub(
                repo_id, private=private, token=token, card=_card(kept, publish_passage), keep_failed=False
            )
        except HubError as error:
            cause = str(error).partition(";")[0]
            remedy = "sign in again, or try another name" if error.is_refusal else "try again later"
            raise HubError(
                f"{cause}; {remedy}. The adapter can still be downloaded here.", is_refusal=error.is_refusal
            ) from error

    # --- jobs ---

    def stop(self, session: Session, kind: str) -> bool:
        """Ask the session's job of this kind to end; whether there was one."""
        active = self.jobs.active(session.id, kind)
        for job in active:
            self.jobs.stop(job)
        return bool(active)

    def _submit(
        self, session: Session, kind: str, inputs: object, work: Callable[[Job], None], seconds: float, pace: str
    ) -> Job:
        def timed(job: Job) -> None:
            start = time.monotonic()
            work(job)
            if not job.stop.is_set():
                with self._pace_lock:
                    # Halfway to what it was, so that one slow job does not spoil all estimates.
                    self._pace[pace] = (self._pace[pace] + (time.monotonic() - start) / seconds) / 2

        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        job = self.jobs.submit(
            session.id, kind, key, session.folder / "jobs", timed, seconds=seconds * self._pace[pace]
        )
        session.shown[kind] = job.id
        return job

    def _run(self, name: str, job: Job, *arguments: object) -> object:
        return device.run(job.seconds, self._model, getattr(device, name), job, *arguments)

    def _sweep(self, seconds: float) -> None:
        while True:
            time.sleep(seconds)
            self.sessions.sweep()

    def _session_settings(self, session: Session) -> Settings:
        return Settings(**session.settings)


def is_local(host: str | None) -> bool:
    """Whether a request's `Host` is this machine; a page of another site that found a way here names its own."""
    return (host or "").rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK


def load_token(on_space: bool, may_push: bool, visitors_token: str | None, host: str | None) -> str | bool | None:
    """
    The token that a visitor may load with: on a Space their own or none (`False`), and never that of the Space's owner;
    elsewhere the one saved on this machine (`None`), where only its user reaches the page.
    """
    if on_space:
        return visitors_token or False
    return None if may_push and is_local(host) else False


def push_token(on_space: bool, visitors_token: str | None, host: str | None) -> str:
    """
    The token that a visitor may push with: on a Space their own, and never that of the Space's owner; elsewhere the one
    saved on this machine.

    Raises:
        ValueError: There is none, or the request is not from a page of this machine.
    """
    if on_space:
        if not visitors_token:
            raise ValueError("You are not signed in: use the button “Sign in with Hugging Face” first.")
        return visitors_token
    if not is_local(host):
        raise ValueError("Only a page at 127.0.0.1 or localhost can push with this machine's token: open it there.")
    if not (token := get_token()):
        raise ValueError("There is no access token: log in with `hf auth login`, or set HF_TOKEN.")
    return token


def _card(kept: KeptAdapter, publish_passage: bool) -> AdapterCard:
    accuracies = {}
    if kept.reward is not None and not kept.own_questions:
        for condition, reward in (("base", kept.base_reward), ("adapted", kept.reward)):
            right = round(reward * kept.num_questions)
            # One passage: the questions are what can be resampled.
            accuracies[condition] = replace(
                accuracy([[1.0]] * right + [[0.0]] * (kept.num_questions - right)), num_passages=1
            )
    return AdapterCard(passage=kept.context or None, publish_passage=publish_passage, accuracies=accuracies)
