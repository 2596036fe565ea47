"""
Record the web app: drives the page in headless chromium as a person would, and writes an animated WebP and three pictures.

    python benchmarks/record_app.py --model_name_or_path embedded               # into .github/
    python benchmarks/record_app.py --model_name_or_path embedded-tiny --output_dir /tmp/pictures

Whatever a model takes, the recording has the same length: each part of the story is played faster or slower, and a clock tells
the seconds that it really took. Needs the extras app and test, and a chromium.
"""

import argparse
import io
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, sync_playwright
from transformers.utils import logging as transformers_logging

from seal_hf import SelfAdaptingLM
from seal_hf.webui.page import build_page
from seal_hf.webui.server import launch
from seal_hf.webui.work.training_runs import TrainingRuns
from seal_hf.webui.work.workbench import Workbench


PICTURES = Path(__file__).resolve().parents[1] / ".github"
RECORDING = "app-recording.webp"
# How long each part of the story takes in the recording, in seconds.
PARTS = {"passage": 2.0, "writing": 5.0, "learning": 8.0, "asking": 5.0}
FRAMES_PER_SECOND = 4
LARGEST = 3_000_000  # bytes of the recording
_QUALITIES = (75, 60, 45, 30, 20, 10)  # of WebP, the first that is small enough
_VIEWPORT = {"width": 1280, "height": 900}
_WIDTH = 960  # pixels of the recording
_INTERVAL = 0.25  # seconds between two frames
_PATIENCE = 1800  # seconds for one part


@dataclass(frozen=True)
class Frame:
    """
    One picture of the page.

    Parameters:
        part (`str`):
            The part of the story, one of `PARTS`.
        seconds (`float`):
            When it was taken, since the part began.
        picture (`bytes`):
            A PNG file.
    """

    part: str
    seconds: float
    picture: bytes


@contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """The address of the page with a model, as its user's own machine serves it."""
    workbench = Workbench(SelfAdaptingLM.from_pretrained(model), folder / "sessions")
    runs = TrainingRuns(workbench.jobs, folder / "runs", None, model)
    page = build_page(workbench, runs, may_push=False, on_space=False)
    _, url, _ = launch(page, on_space=False, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield url
    finally:
        page.close(verbose=False)


def take_frames(page: Page, part: str, is_done: Callable[[], bool], status: str, top: str = "body") -> list[Frame]:
    """
    Frames until a part of the story is done, with the element `top` at the top of the window as far as the page is long enough.

    Raises:
        RuntimeError: The page shows an error in the element `status`, or the part takes too long.
    """
    frames, start, has_ended = [], time.monotonic(), False
    while True:
        page.locator(top).evaluate("element => element.scrollIntoView()")
        seconds = time.monotonic() - start
        frames.append(Frame(part, seconds, page.screenshot()))
        if has_ended:
            return frames
        has_ended = is_done()  # the page may still be drawing what comes with it
        if (said := page.locator(status).inner_text()).startswith("⚠️") or seconds > _PATIENCE:
            raise RuntimeError(f"The part “{part}” did not end after {seconds:.0f} s. The page says: {said}")
        time.sleep(1.0 if has_ended else _INTERVAL)


def act(page: Page, url: str, folder: Path) -> list[Frame]:
    """Teach the page its first example and ask about it. Writes the pictures on the way, and returns the frames."""
    page.goto(url)
    page.wait_for_function("document.querySelector('#write')?.disabled === false")
    frames = [Frame("passage", 0.0, page.screenshot())]
    page.locator("#example-0").click()
    page.wait_for_function("document.querySelector('#passage textarea').value.length > 0")
    frames.append(Frame("passage", 0.5, page.screenshot()))

    page.locator("#write").click()
    is_written = page.locator("#learn-together").is_visible
    frames += (writing := take_frames(page, "writing", is_written, "#write-status"))
    (folder / "app-watching.png").write_bytes(writing[len(writing) // 2].picture)

    question = page.locator("#watched input, #watched textarea").input_value()
    page.locator("#learn-together").click()
    is_learned = page.locator("#ask-next").is_visible
    frames += take_frames(page, "learning", is_learned, "#learn-status", "#learning")
    (folder / "app-applying.png").write_bytes(page.locator("#learning").screenshot())

    page.locator("#ask-next").click()
    page.locator("#question input, #question textarea").fill(question)
    page.locator("#ask").click()
    is_answered = lambda: "answered without the passage" in page.locator("#ask-status").inner_text()  # noqa: E731
    frames += (asking := take_frames(page, "asking", is_answered, "#ask-status"))
    (folder / "app-asking.png").write_bytes(asking[-1].picture)
    return frames


def chosen_frames(frames: Sequence[Frame]) -> list[Frame]:
    """
    The frames of the recording, one for each moment of it: those of a part are as far apart in time as its length wants, the last
    one is there, and where there are fewer than wanted some are there again.
    """
    chosen = []
    for part, length in PARTS.items():
        own = [frame for frame in frames if frame.part == part]
        count = round(length * FRAMES_PER_SECOND)
        moments = [own[-1].seconds * number / (count - 1) for number in range(count)]
        chosen += [min(own, key=lambda frame, at=moment: abs(frame.seconds - at)) for moment in moments]
    return chosen


def drawn(frame: Frame) -> Image.Image:
    """A frame in the recording's size, with its part and its seconds in a corner."""
    picture = Image.open(io.BytesIO(frame.picture)).convert("RGB")
    height = round(picture.height * _WIDTH / picture.width)
    picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    text, font, pen = f"{frame.part} · {frame.seconds:.0f} s", ImageFont.load_default(18), ImageDraw.Draw(picture)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    corner = (_WIDTH - right - 24, height - bottom - 20)
    box = (corner[0] - 10, corner[1] - 6, corner[0] + right + 10, corner[1] + bottom + 8)
    pen.rounded_rectangle(box, 8, fill="#0f766e")
    pen.text(corner, text, font=font, fill="white")
    return picture


def write_recording(frames: Sequence[Frame], path: Path, largest: int = LARGEST) -> int:
    """
    Write an animated WebP that plays over and over, in the best quality that is small enough.

    Returns:
        `int`: its size in bytes.

    Raises:
        ValueError: It would be larger than `largest` in any quality.
    """
    shown, durations = [], []
    for frame in frames:
        if shown and shown[-1] == frame:
            durations[-1] += 1000 // FRAMES_PER_SECOND
        else:
            shown.append(frame)
            durations.append(1000 // FRAMES_PER_SECOND)
    first, *others = map(drawn, shown)
    for quality in _QUALITIES:
        content = io.BytesIO()
        options = {"duration": durations, "loop": 0, "quality": quality, "method": 4}
        first.save(content, format="WEBP", save_all=True, append_images=others, **options)
        if content.tell() <= largest:
            path.write_bytes(content.getvalue())
            return content.tell()
    raise ValueError(
        f"The recording has {content.tell():,} bytes in the lowest quality, more than {largest:,}: shorten PARTS, or lower "
        "FRAMES_PER_SECOND."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="embedded", help="As of app.py.")
    parser.add_argument("--output_dir", type=Path, default=PICTURES, help="Where the pictures go. Default: .github/")
    parser.add_argument(
        "--chromium",
        default=shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"),
        help="The browser. Default: that of this machine, or else playwright's own.",
    )
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("seal_hf").setLevel(logging.ERROR)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        with served(args.model_name_or_path, Path(folder)) as url:
            page = browser.new_page(viewport=_VIEWPORT)
            page.set_default_timeout(1000 * _PATIENCE)
            frames = act(page, url, args.output_dir)
            browser.close()
    size = write_recording(chosen_frames(frames), args.output_dir / RECORDING)
    for part in PARTS:
        print(f"{part}: {max(frame.seconds for frame in frames if frame.part == part):.0f} s")
    print(f"{args.output_dir / RECORDING}: {size / 1e6:.2f} MB, {sum(PARTS.values()):.0f} s")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
