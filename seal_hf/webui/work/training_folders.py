"""Where training runs are on disk: `run_001`, `run_002` and so on, in a folder for each session."""

import hashlib
from pathlib import Path

from .training_records import CONFIG_NAME


class RunFolders:
    """
    The folders of all sessions' runs.

    Parameters:
        path (`Path`):
            Where they are made.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()

    def of(self, owner: str) -> Path:
        """The folder of a session's runs, which may not exist."""
        # The session's id is a secret, which a folder's name must not tell.
        return self.path / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def runs(self, owner: str) -> list[Path]:
        """The session's runs, oldest first."""
        return sorted(file.parent for file in self.of(owner).glob(f"run_*/{CONFIG_NAME}"))

    def make(self, owner: str) -> Path:
        """A new folder for a run, so that the results of an earlier one stay."""
        # Also those that an app that was killed has left without a file.
        number = max(map(run_number, self.of(owner).glob("run_*")), default=0) + 1
        folder = self.of(owner) / f"run_{number:03d}"
        # Closed to others, also where the folder around them is not.
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        return folder


def run_number(folder: Path) -> int:
    """The number of a session's run, from 1, by its folder."""
    return int(folder.name.removeprefix("run_"))
