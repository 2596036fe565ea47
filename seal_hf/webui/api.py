"""The endpoints for programs, which are also the MCP tools."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from ..hub.errors import RepositoryExists
from .tabs.shared import follow, keep_shown_files
from .work import added_questions, inputs, policies, sharing
from .work.errors import explain
from .work.jobs import DONE, FAILED, STOPPED, Job
from .work.session_items import Draft
from .work.sessions import Session
from .work.settings import MAX_SELF_EDITS, PRESETS, Settings, preset_for
from .work.shelf_work import ASKING
from .work.training_runs import TrainingRuns
from .work.workbench import Workbench


BASE_MODEL = "base model"  # what writes self-edits where no policy does


def build_api(workbench: Workbench, runs: TrainingRuns, *, may_push: bool, on_space: bool) -> None:
    """
    Add the endpoints to the page that is being built. None of their widgets is visible.

    Args:
        workbench ([`Workbench`]):
            Does the work.
        runs ([`TrainingRuns`]):
            The outer loop.
        may_push, on_space (`bool`):
            As in [`build_adapters_tab`].
    """

    # The docstrings of the endpoints have the form that Gradio's MCP server reads: a line for each argument.

    async def propose(
        title: str, passage: str, num_generations: int = 4, prompt_style: str = "", seed: int = 0, session: str = ""
    ) -> dict:
        """
        Let the model write self-edits: its own finetuning data about a passage.

        Args:
            title: Title of the passage; may be empty.
            passage: The text to learn.
            num_generations: Number of self-edits, 1 to 8.
            prompt_style: How they are asked for: rewrite, implications, self-qa and others; empty for what fits the model.
            seed: The same seed gives the same self-edits.
            session: The "session" of an earlier answer, to continue it; empty for a new one.

        Returns:
            The session's id, a secret that the other tools need; the self-edits; for each the questions that it asks, with the
            answers that the model has found, or null; who has written them: the base model, or a policy (see use_policy); and
            under "left_out" the names and numbers of the passage that none of them asks for.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            preset = PRESETS[preset_for(workbench.lm, workbench.limits)]
            values = {"num_generations": num_generations, "seed": seed}
            settings = Settings.of(**{**vars(preset), **values, "prompt_style": prompt_style or preset.prompt_style})
            before = current.drafts
            events = await finish(workbench, lambda: workbench.propose(current, title, passage, [], settings))
            if current.drafts is before and not any(event.get("state") == DONE for event in events):
                raise ValueError("The writing was stopped before there was a self-edit: propose again.")
            return {
                "session": current.id,
                "self_edits": [draft.written for draft in current.drafts],
                "questions": [draft.pairs for draft in current.drafts],
                "written_by": current.written_by or BASE_MODEL,
                "left_out": left_out(current),
            }

    async def add_question(session: str, fact: str) -> dict:
        """
        Let the model write a question about a name or number of the passage, answer it, and append both to a self-edit.

        Args:
            session: The session of propose.
            fact: The name or number, such as one of "left_out".

        Returns:
            The question with its answer, null where the model finds none that the passage bears out; the number of the self-edit
            that has it now, from 0; and the names and numbers that no question asks for.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            events = await finish(workbench, lambda: added_questions.add_question(workbench, current, fact))
            added = next(event for event in events if event["event"] == "added")
            return {"pair": added["pair"], "self_edit": added["place"], "left_out": left_out(current)}

    def left_out(current: Session) -> list[str]:
        return inputs.missing_facts(current.example, current.drafts)[0] if current.example else []

    async def adapt(
        session: str,
        self_edits: list[str] = [],  # noqa: B006
        questions: list[dict] = [],  # noqa: B006
        together: bool | None = None,
        watched: str | None = None,
        stops_early: bool | None = None,
    ) -> dict:
        """
        Train an adapter on each self-edit, side by side, and keep the one that answers questions about the passage best; or one
        on all self-edits.

        Args:
            session: The session of propose.
            self_edits: Texts to learn instead of the proposed self-edits, 8 at most; empty to learn those.
            questions: Objects with "question" and "answer" (a text, a number or a list) that decide; empty for the model's own.
            together: Whether one adapter learns all self-edits rather than one each.
            watched: A question to ask the adapters while they learn; empty for none. Its answer is known where it is one of the
                questions.
            stops_early: Whether learning ends once the answer to it stays; left out, it does.

        Returns:
            The adapters with their rewards (the share of right answers), which of them is best, the questions, the id of the
            book on the shelf, null where it could not be put there, and the steps that were done and planned. One with a
            "best_of" above 1 was chosen by these questions, so its reward tends to be too high by chance. "recitation" is what one text
            for all questions would earn, "recited" the share of answers that recite.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            if len(self_edits) > MAX_SELF_EDITS:
                raise ValueError(f"{len(self_edits)} self-edits were given: give {MAX_SELF_EDITS} at most.")
            drafts = [Draft(str(text)) for text in self_edits] or current.drafts
            chosen = [number for number, draft in enumerate(drafts) if draft.use]
            settings = Settings(**current.settings) if current.settings else Settings()
            events = await finish(
                workbench,
                lambda: workbench.adapt(
                    current,
                    chosen,
                    settings,
                    inputs.questions_from_items(questions),
                    drafts,
                    together=bool(together),
                    watched=watched or "",
                    stops_early=stops_early is not False,
                ),
            )
            learned = next((event for event in events if event["event"] == "learned"), None)
            if learned is None:
                raise ValueError("The training was stopped before its first step, so nothing was learned.")
            steps = [event for event in events if event["event"] == "step"]
            return {
                "adapters": [_described(current, adapter_id) for adapter_id in learned["adapters"]],
                "best": learned["adapters"][learned["best"]],
                "questions": learned.get("questions", []),
                "num_steps": steps[-1]["step"],
                "num_steps_planned": steps[-1]["num_steps"],
                "book": next((event["book"] for event in events if event["event"] == "shelved"), None),
            }

    async def use_policy(session: str, round: int = 0) -> dict:
        """
        Let the policy that a training run of the session has trained write its self-edits from now on. The base model learns and
        answers as before, and other sessions keep their own writers.

        Args:
            session: The session of the page where the run was started.
            round: The round of the run, from 1, after which the policy is taken; 0 for the last one that has a policy.

        Returns:
            Who writes now.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            if isinstance(round, bool) or not isinstance(round, int) or round < 0:
                raise ValueError(
                    f"round={round!r:.50} is not the number of a round: give 1 or more, or 0 for the last."
                )
            policy = await asyncio.to_thread(policies.use_policy, runs, current, round)
            return {"written_by": policy.name}

    async def use_base_model(session: str) -> dict:
        """
        Let the base model write the session's self-edits again.

        Args:
            session: The session of propose or use_policy.

        Returns:
            Who writes now.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            policies.use_base_model(current)
            return {"written_by": BASE_MODEL}

    async def ask(session: str, question: str, adapter: str = "") -> dict:
        """
        Let the base model and the adapted one answer a question without the passage.

        Args:
            session: The session of propose or load_adapter.
            question: The question.
            adapter: Id of one of the session's adapters; empty for the chosen one.

        Returns:
            Both answers.
        """
        with errors_for_callers():
            current = await asyncio.to_thread(workbench.sessions.open, session)
            events = await finish(workbench, lambda: workbench.ask(current, question, adapter or None))
            answered = next(event for event in events if event["event"] == "answered")
            return {"base": answered["base"][0], "adapted": answered["adapted"][0]}

    # An argument may be left out of a call where its default is `None`.
    def load_adapter(
        request: gr.Request, session: str | None = None, repo_id: str | None = None, file: str | None = None
    ) -> dict:
        """
        Load a LoRA adapter of this base model, from the Hugging Face Hub or from a zip file.

        Args:
            session: An earlier session; empty for a new one.
            repo_id: Its repository, such as user/name; empty if a file is given.
            file: A zip file of a PEFT adapter; left out if a repository is given.

        Returns:
            The session's id and the adapter.
        """
        with errors_for_callers():
            current = workbench.sessions.open(session)
            token = sharing.load_token(on_space, may_push, None, dict(request.headers))
            kept = sharing.load_adapter(workbench.lm, current, Path(file) if file else repo_id or "", token)
            return {"session": current.id, "adapter": _described(current, kept.id)}

    def download_adapter(session: str, adapter: str) -> str:
        """
        Return an adapter of the session as a zip file in PEFT's format.

        Args:
            session: The session.
            adapter: Id of one of its adapters; empty for the chosen one.

        Returns:
            The file.
        """
        with errors_for_callers():
            return str(workbench.sessions.open(session).adapter(adapter or None).file)

    def push_adapter(session: str, adapter: str, name: str, private: bool, overwrite: str, request: gr.Request) -> str:
        """
        Upload an adapter to the Hugging Face Hub, into the caller's own account.

        Args:
            session: The session.
            adapter: Id of one of its adapters; empty for the chosen one.
            name: Name of the repository, without the account.
            private: Whether only the account sees it.
            overwrite: Full name (account/name) of an existing repository whose files may be replaced; empty for a new one.

        Returns:
            The repository's address.
        """
        with errors_for_callers():
            token = sharing.push_token(False, None, dict(request.headers))
            return push(session, adapter, name, private, overwrite, token)

    def push_adapter_of_visitor(
        session: str,
        adapter: str,
        name: str,
        private: bool,
        overwrite: str,
        oauth: gr.OAuthToken | None,
        request: gr.Request,
    ) -> str:
        with errors_for_callers():
            token = sharing.push_token(True, oauth and oauth.token, dict(request.headers))
            return push(session, adapter, name, private, overwrite, token)

    def push(session: str, adapter: str, name: str, private: bool, overwrite: str, token: str) -> str:
        current = workbench.sessions.open(session)
        options = {"private": private, "publish_passage": False, "token": token, "overwrite": overwrite}
        try:
            return sharing.push(workbench.lm, current, adapter or None, name, **options)
        except RepositoryExists as error:
            raise ValueError(
                f"{error.repo_id} exists already, and nothing was uploaded: give another name, or "
                f"overwrite={error.repo_id} to replace its files."
            ) from error

    push_adapter_of_visitor.__doc__ = push_adapter.__doc__

    for endpoint in (propose, add_question, adapt, use_policy, use_base_model, ask):
        gr.api(endpoint, concurrency_limit=None)
    # Files go through components, which accept uploaded files only.
    with gr.Row(visible=False):
        session, name, file, found, zipped = gr.Textbox(), gr.Textbox(), gr.File(), gr.JSON(), gr.File()
        repository, private, overwrite, address = gr.Textbox(), gr.Checkbox(True), gr.Textbox(""), gr.Textbox()
        keep_shown_files(zipped)
        load, download, upload = gr.Button(), gr.Button(), gr.Button()
    load.click(load_adapter, [session, name, file], found, api_name="load_adapter", concurrency_limit=4)
    download.click(download_adapter, [session, name], zipped, api_name="download_adapter", concurrency_limit=4)
    if may_push:
        upload.click(
            push_adapter_of_visitor if on_space else push_adapter,
            [session, name, repository, private, overwrite],
            address,
            api_name="push_adapter",
            concurrency_limit=4,
        )


@contextmanager
def errors_for_callers() -> Iterator[None]:
    """Raises errors with a message for the caller as Gradio's own, since Gradio hides the text of all others."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(explain(error), print_exception=False) from error


async def finish(workbench: Workbench, start: Callable[[], Job]) -> list[dict]:
    """All events of a job, when it has ended. It is started in a thread, since checks of long texts take a while."""
    found, job = [], await asyncio.to_thread(start)
    async for latest, events in follow(workbench, job, is_program=True):
        log = latest
        found += events
    if log.state == FAILED:
        raise ValueError(log.error)
    if log.state == STOPPED and job.kind in ("ask", ASKING, added_questions.ADDING):
        raise ValueError(log.error or "The job was stopped.")
    return found


def _described(current: Session, adapter_id: str) -> dict:
    kept = current.adapter(adapter_id)
    return {
        "id": kept.id,
        "name": kept.name,
        "reward": kept.reward,
        "base_reward": kept.base_reward,
        "best_of": kept.best_of,
        "recitation": kept.recitation,
        "recited": kept.recited,
        "num_questions": kept.num_questions,
        "own_questions": kept.own_questions,
        "bytes": kept.num_bytes,
    }
