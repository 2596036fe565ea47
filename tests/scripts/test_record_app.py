"""The recording of the app: which frames it has, and its file."""

import io
import sys
from importlib import import_module

import pytest
from PIL import Image

from helpers.folders import BENCHMARKS


@pytest.fixture(scope="module")
def record_app():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("record_app")
    sys.modules.pop("record_app")


def picture(colour, size=(64, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def frames(record_app):
    """Ten minutes of writing, and parts of one or two frames."""
    writing = [record_app.Frame("writing", float(second), picture((second % 256, 0, 0))) for second in range(601)]
    others = [record_app.Frame(part, 0.5, picture("white")) for part in ("passage", "learning", "asking")]
    return [*others, *writing]


def test_the_recording_is_as_long_for_a_slow_model_as_for_a_fast_one(record_app, frames):
    chosen = record_app.chosen_frames(frames)
    assert len(chosen) == record_app.FRAMES_PER_SECOND * sum(record_app.PARTS.values()) == 80
    writing = [frame.seconds for frame in chosen if frame.part == "writing"]
    assert len(writing) == 20 and (writing[0], writing[-1]) == (0, 600)
    steps = [later - earlier for earlier, later in zip(writing, writing[1:], strict=False)]
    assert set(steps) <= {31.0, 32.0}
    assert [frame.part for frame in chosen] == sorted(
        (frame.part for frame in chosen), key=list(record_app.PARTS).index
    )


def test_it_is_one_file_of_twenty_seconds_that_is_small_enough(record_app, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(record_app, "_WIDTH", 160)  # wide enough for the clock
    chosen, file = record_app.chosen_frames(frames), tmp_path / "recording.webp"
    size = record_app.write_recording(chosen, file)
    assert size == file.stat().st_size <= record_app.LARGEST
    with Image.open(file) as recording:
        # Three parts of one frame each, and twenty frames of writing.
        assert (recording.is_animated, recording.n_frames, recording.size) == (True, 23, (160, 120))
        durations = []
        for number in range(recording.n_frames):
            recording.seek(number)
            recording.load()
            durations.append(recording.info["duration"])
    assert sum(durations) == 20_000 and durations[0] == 2000
    smaller = record_app.write_recording(chosen, file, largest=size - 1)
    assert smaller < size
    with pytest.raises(ValueError, match="in the lowest quality, more than 100: shorten PARTS"):
        record_app.write_recording(chosen, tmp_path / "none.webp", largest=100)
    assert not (tmp_path / "none.webp").exists()


def test_the_clock_tells_the_time_that_it_really_took(record_app):
    frame = record_app.Frame("writing", 42.0, picture("white", (1280, 900)))
    drawn, later = record_app.drawn(frame), record_app.drawn(record_app.Frame("writing", 43.0, frame.picture))
    assert drawn.size == (960, 675) and drawn.getpixel((0, 0)) == (255, 255, 255)
    differs = [
        drawn.getpixel(place) != later.getpixel(place)
        for place in ((x, y) for x in range(960) for y in range(600, 675))
    ]
    assert any(differs)
