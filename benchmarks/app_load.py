"""
Measure the web app: how long a person waits for the first word, for the first right answer to the watched question and for a
whole learning, and many who ask at once.

    python benchmarks/app_load.py                 # embedded-tiny, 16 sessions; writes app_load.json
    python benchmarks/app_load.py --model_name_or_path embedded --output app_load_05b.json
    python benchmarks/app_load.py --sessions 4
"""

import argparse
import json
import logging
import re
import shlex
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import gradio_client
import httpx2
from inputs import FOLDER
from machine import describe_machine, versions
from transformers import TextIteratorStreamer
from transformers.utils import logging as transformers_logging

from seal_hf import Adapter, InnerLoopConfig, SelfAdaptingLM
from seal_hf.domains import load_demo_passages
from seal_hf.webui.page import build_page
from seal_hf.webui.tabs.learning_texts import first_right
from seal_hf.webui.tabs.passage_panel import NAMES
from seal_hf.webui.work import sharing
from seal_hf.webui.work.adapter_zip import save_zip
from seal_hf.webui.work.jobs import DONE, Job, JobLog
from seal_hf.webui.work.limits import SHARED
from seal_hf.webui.work.settings import PRESETS, SMALL_MODEL, preset_for
from seal_hf.webui.work.training_runs import TrainingRuns
from seal_hf.webui.work.workbench import Workbench


REPETITIONS = 5
# What the page says with the first text; of a model that is quicker than its updates all of the text comes at once.
_WRITTEN = re.compile(r"Writing all at once … [1-9]|Edit the self-edits if you like")


def plain_first_word(lm: SelfAdaptingLM, example: dict) -> float:
    """Seconds until plain `generate` has streamed something of one self-edit."""
    tokenizer = lm.processing_class
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"do_sample": True, "temperature": SMALL_MODEL.temperature, "top_p": SMALL_MODEL.top_p}
    start = time.perf_counter()
    inputs = tokenizer.apply_chat_template(
        lm.domain.prompt(example), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    arguments = {**inputs, **options, "min_new_tokens": 16, "max_new_tokens": 16, "streamer": streamer}
    thread = threading.Thread(target=lm.model.generate, kwargs=arguments)
    thread.start()
    next(part for part in streamer if part.strip())
    seconds = time.perf_counter() - start
    thread.join()
    return seconds


def app_first_word(url: str, fn_index: int, example: dict, num_generations: int) -> float:
    """Seconds from the click until the page has been sent something of the self-edits, as a browser gets it."""
    values = {**vars(SMALL_MODEL), "num_generations": num_generations, "max_completion_length": 16}
    questions = {"headers": ["Question", "Answer"], "data": [], "metadata": None}
    data = [None, "", example["title"], example["context"], questions, *(values[name] for name in NAMES)]
    session_hash = f"bench{time.perf_counter_ns()}"
    start = time.perf_counter()
    body = {"data": data, "fn_index": fn_index, "session_hash": session_hash}
    httpx2.post(f"{url}gradio_api/queue/join", json=body).raise_for_status()
    first = None
    parameters = {"session_hash": session_hash}
    with httpx2.stream("GET", f"{url}gradio_api/queue/data", params=parameters, timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            message = json.loads(line.removeprefix("data: "))
            if first is None and _WRITTEN.search(json.dumps(message.get("output"), ensure_ascii=False)):
                first = time.perf_counter() - start
            if message["msg"] == "process_completed":
                if first is None:
                    raise RuntimeError(f"The page was sent no self-edit: {line[:500]}")
                return first
    raise RuntimeError("The connection ended before the writing did.")


def events_of(workbench: Workbench, job: Job) -> list[dict]:
    """All events of a job, when it has ended."""
    workbench.jobs.wait(job)
    log = JobLog(job)
    events = log.read()
    if log.state != DONE:
        raise RuntimeError(f"The job {job.kind} ended as {log.state}: {log.error}")
    return events


def learning_times(workbench: Workbench, example: dict) -> dict[str, object]:
    """
    A passage with its first question watched is learned from all self-edits together, with the settings that the page offers for
    the model: seconds from the click, as many times as `REPETITIONS`, each with a seed of its own.

    Returns:
        `dict[str, object]`: the seconds until the watched question was answered right and stayed so (`None` where it never was), until
            the training had ended and until the graded answers were there; and what was learned.
    """
    session, settings = workbench.sessions.open(), PRESETS[preset_for(workbench.lm, SHARED)]
    questions, found = example["questions"], {"first_right": [], "trained": [], "whole": [], "steps": [], "tokens": []}
    events_of(workbench, workbench.propose(session, example["title"], example["context"], questions, settings))
    chosen = [number for number, draft in enumerate(session.drafts) if draft.use]
    for seed in range(REPETITIONS):
        start = time.time()
        job = workbench.adapt(
            session,
            chosen,
            replace(settings, seed=seed),
            questions,
            together=True,
            watched=questions[0]["question"],
        )
        events = events_of(workbench, job)
        seen = [event for event in events if event["event"] == "watched"]
        steps = [event for event in events if event["event"] == "step"]
        right = first_right(seen, 0)
        answered = next((event["time"] for event in seen if event["step"] == right), None)
        found["first_right"].append(None if answered is None else answered - start)
        found["trained"].append(steps[-1]["time"] - start)
        found["whole"].append(events[-1]["time"] - start)
        found["steps"].append(steps[-1]["num_steps"])
        found["tokens"].append(steps[-1]["num_tokens"])
    return {**found, "self_edits": len(chosen), "base_is_right": seen[0]["verdicts"]["0"]}


def trained_adapters(lm: SelfAdaptingLM, examples: list[dict]) -> list[Adapter]:
    """An adapter for each passage; two epochs are enough for answers that differ."""
    return lm.adapt([lm.domain.passage_only(example) for example in examples])


def ask_at_once(url: str, files: list[Path], examples: list[dict]) -> list[dict]:
    """Every session loads its adapter; then all ask at the same moment. Returns answer, error and seconds of each."""
    together = threading.Barrier(len(files))
    results: list[dict] = [{} for _ in files]

    def visit(place: int) -> None:
        client = gradio_client.Client(url, verbose=False)
        session = client.predict("", "", gradio_client.handle_file(str(files[place])), api_name="/load_adapter")
        question = examples[place]["questions"][0]["question"]
        together.wait()
        start = time.perf_counter()
        try:
            results[place] = client.predict(session["session"], question, api_name="/ask")
        except Exception as error:  # what a person would have seen; the table counts it
            results[place] = {"error": str(error)}
        results[place]["seconds"] = time.perf_counter() - start

    threads = [threading.Thread(target=visit, args=(place,)) for place in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def measure(model: str, num_sessions: int, folder: Path) -> dict[str, object]:
    """All raw figures."""
    base = SelfAdaptingLM.from_pretrained(model, inner_config=InnerLoopConfig(num_train_epochs=2))
    examples = [*load_demo_passages("train"), *load_demo_passages("test")][:num_sessions]
    workbench = Workbench(base, folder / "sessions", limits=SHARED)
    runs = TrainingRuns(workbench.jobs, folder / "runs", None, base.base_model_id)
    page = build_page(workbench, runs, may_push=False, on_space=False)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
    fn_index = next(key for key, one in page.fns.items() if getattr(one.fn, "__name__", None) == "on_write")

    lm = SMALL_MODEL.lm(base)
    plain, app = [], {1: [], 4: []}
    plain_first_word(lm, examples[0])
    app_first_word(url, fn_index, examples[0], 1)
    for _ in range(REPETITIONS):
        plain.append(plain_first_word(lm, examples[0]))
        for num_generations, seconds in app.items():
            seconds.append(app_first_word(url, fn_index, examples[0], num_generations))

    learning = learning_times(workbench, examples[0])
    adapters = trained_adapters(base, examples)
    files, expected, alone = [], [], []
    for place, (adapter, example) in enumerate(zip(adapters, examples, strict=True)):
        session = workbench.sessions.open()
        file = folder / f"adapter-{place}.zip"
        save_zip(adapter, file)
        kept = sharing.load_adapter(base, session, file)
        files.append(kept.file)
        start = time.perf_counter()
        # The title has come with the adapter.
        prompts = base.domain.questions({"title": kept.title, "context": "", "questions": example["questions"][:1]})
        expected.append(base.answer_prompts(prompts * 2, [None, adapter]))
        alone.append(time.perf_counter() - start)
    start = time.perf_counter()
    results = ask_at_once(url, files, examples)
    wall = time.perf_counter() - start
    page.close()
    right = sum(
        [result.get("base"), result.get("adapted")] == pair for result, pair in zip(results, expected, strict=True)
    )
    return {
        "first_word": {"plain": plain, **{f"app, {number} self-edits": seconds for number, seconds in app.items()}},
        "learning": learning,
        "sessions": num_sessions,
        "right_answers": right,
        "errors": [result["error"] for result in results if "error" in result],
        "seconds_of_each": sorted(result["seconds"] for result in results),
        "seconds_alone": alone,
        "seconds_with_loading": wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=16, help="How many ask at once, 1 to 24.")
    parser.add_argument(
        "--model_name_or_path", default="embedded-tiny", help="As of app.py: 'embedded' is the app's own model."
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "app_load.json", help="Where the raw figures go.")
    args = parser.parse_args()
    if not 1 <= args.sessions <= 24:
        sys.exit(f"error: --sessions {args.sessions} must be from 1 to 24, for as many passages there are.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("seal_hf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args.model_name_or_path, args.sessions, Path(folder))
    head = {"command": shlex.join(["python", *sys.argv]), "model": args.model_name_or_path}
    head |= {"machine": describe_machine(), "versions": versions()}
    args.output.write_text(json.dumps({**head, **results}, indent=2) + "\n", encoding="utf-8")
    plain = statistics.median(results["first_word"]["plain"])
    for name, seconds in results["first_word"].items():
        median = statistics.median(seconds)
        print(
            f"first word, {name}: {median:.2f} s [{min(seconds):.2f}, {max(seconds):.2f}], {median / plain:.2f} x plain"
        )
    for name, what in (("first_right", "first right answer"), ("trained", "trained"), ("whole", "learned and graded")):
        known = [seconds for seconds in results["learning"][name] if seconds is not None]
        shown = f"{statistics.median(known):.1f} s [{min(known):.1f}, {max(known):.1f}]" if known else "never"
        print(f"from the click, {what}: {shown}, n = {len(known)} of {REPETITIONS}")
    seconds, alone = results["seconds_of_each"], sum(results["seconds_alone"])
    print(
        f"{args.sessions} sessions ask at once: {results['right_answers']} right, {len(results['errors'])} errors; "
        f"median {statistics.median(seconds):.1f} s, longest {seconds[-1]:.1f} s; one after another without the app "
        f"{alone:.1f} s ({seconds[-1] / alone:.2f} x)"
    )


if __name__ == "__main__":
    main()
