"""Progress of a command: a bar on a terminal, a line for each stage elsewhere, on the standard error."""

import os
import sys

from tqdm.auto import tqdm


class Progress:
    """
    Shows stages of work. Call it with a stage, how much of it is done and how much there is, 0 where that is not known.

    Used as a context manager, which removes the bar.
    """

    def __init__(self):
        self._is_terminal = sys.stderr.isatty()
        self._stage = ""
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._close()
            self._stage = stage
            if self._is_terminal:
                self._bar = tqdm(desc=stage, leave=False, bar_format="{desc}{bar:24} {n_fmt} [{elapsed}]")
            else:
                print(f"{stage} ...", file=sys.stderr, flush=True)
        if self._bar is not None:
            if total and self._bar.total != total:
                self._bar.total = total
            self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def quiet_libraries() -> None:
    """Keep other libraries from drawing bars of their own and from notes that ask for nothing."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()  # the Hub's, too
    logging.set_verbosity_error()
