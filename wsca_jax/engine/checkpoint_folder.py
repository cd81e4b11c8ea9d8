"""The folder of a run's checkpoints: which steps lie there, which of them can be trusted, what is in the way.

    workdir/checkpoints/<step>/           one step: state, metadata, metrics, manifest.json
    workdir/checkpoints/<step>.saving     that step is being written; left behind by a killed process
    workdir/checkpoints/deleted/          steps on their way out
    workdir/quarantine/<step>             a step that failed its checksums, kept for a person to look at

A save is: marker, state to a temporary folder, rename, checksums, marker away. The step before it stays until
all of that is done, so a process killed at any moment leaves a step that can be trusted.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import orbax.checkpoint as ocp

from wsca_jax.engine import manifest
from wsca_jax.engine.storage import storage_errors
from wsca_jax.errors import DamagedCheckpointError

DELETED = "deleted"
_SAVING = ".saving"
_TRIES_TO_REMOVE = 500  # a hundredth of a second apart
_log = logging.getLogger(__name__)


class CheckpointFolder:
    """The steps of one workdir on disk. Reading states and writing them is for others.

    Args:
      workdir: the run's folder.
      read_only: for looking at a run that may still be training: nothing is moved, deleted or written.

    Attributes:
      path: workdir/checkpoints.
      read_only: as given.
    """

    def __init__(self, workdir: Path, *, read_only: bool) -> None:
        # Absolute, because the storage library writes from other threads and refuses relative paths.
        self.path = Path(workdir).absolute() / "checkpoints"
        self.read_only = read_only
        self._quarantine = Path(workdir).absolute() / "quarantine"

    def prepare(self) -> None:
        """Makes the folder, and removes what killed or failed saves left. Raises WscaError."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._clean()

    def steps(self) -> list[int]:
        """Saved steps, oldest first. Whether one can be trusted is for `is_good` to say."""
        if not self.path.is_dir():
            return []
        names = [path.name for path in self.path.iterdir() if path.name.isdecimal()]
        return sorted(int(name) for name in names if not self._is_unfinished(name))

    def metrics(self, step: int) -> dict[str, float]:
        """Those that a step was saved with."""
        return ocp.JsonCheckpointHandler().restore(self.path / str(step) / "metadata")["metrics"]

    def is_good(self, step: int) -> bool:
        """Whether a step's files are the ones that were written; where not, says so and moves it away."""
        folder = self.path / str(step)
        found = manifest.damage(folder)
        if found is None:
            return True
        if self.read_only:
            _log.warning("checkpoint %s is passed over: %s", folder, found)
            return False
        self._quarantine.mkdir(exist_ok=True)
        place = _free_name(self._quarantine / folder.name)
        folder.rename(place)
        _log.warning("checkpoint %s is not trusted: %s; moved to %s", folder, found, place)
        return False

    def first_good(self, steps: Iterable[int]) -> int | None:
        """The first of these steps that passes its checksums; None where nothing was saved yet.

        Raises:
          DamagedCheckpointError: steps were saved and none can be trusted.
        """
        damaged = []
        for step in steps:
            if self.is_good(step):
                return step
            damaged.append(step)
        quarantined = sorted(path.name for path in self._quarantine.glob("*"))
        if damaged or quarantined:
            raise DamagedCheckpointError(
                f"{self.path}: no checkpoint passes its checksums (damaged: "
                f"{', '.join(quarantined or map(str, damaged))}); bring one back from a copy, "
                f"or remove {self._quarantine} to start over"
            )
        return None

    def last_saved(self) -> str:
        """In words, what there is to fall back on."""
        steps = self.steps()
        return f"the last good step is {steps[-1]}" if steps else "no step was saved before it"

    def begin(self, step: int) -> None:
        """From here on, until it is sealed, a step counts as unfinished."""
        self._marker(step).touch()

    def seal(self, step: int) -> None:
        """All of a step is written: from here on it can be trusted."""
        manifest.write(self.path / str(step))
        self._marker(step).unlink()
        _remove(self.path / DELETED)

    def clean_if_possible(self) -> None:
        """Removes what a failed save left; an error on the way to the user is not hidden by another one."""
        try:
            self._clean()
        except OSError as error:
            _log.warning("%s: the next start removes what the save left (now: %s)", self.path, error)

    def _clean(self) -> None:
        for marker in self.path.glob(f"*{_SAVING}"):
            folder = marker.with_suffix("")
            if folder.is_dir() and self._is_unfinished(folder.name):
                _log.warning("checkpoint %s: its save never finished; removed", folder)
                _remove(folder)
            marker.unlink()
        for left in [p for p in self.path.iterdir() if ocp.utils.TMP_DIR_SUFFIX in p.name]:
            _remove(left)
        _remove(self.path / DELETED)

    def _is_unfinished(self, name: str) -> bool:
        return self._marker(name).exists() and not (self.path / name / manifest.NAME).exists()

    def _marker(self, step: int | str) -> Path:
        return self.path / f"{step}{_SAVING}"


def _remove(folder: Path) -> None:
    """Removes a folder in which threads of a failed save may still make and remove files of their own."""
    for _ in range(_TRIES_TO_REMOVE):
        try:
            return shutil.rmtree(folder)
        except FileNotFoundError:
            if not folder.exists():
                return None
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        time.sleep(0.01)
    return shutil.rmtree(folder)


def _free_name(path: Path) -> Path:
    """`path`, or the first of path-1, path-2, ... that is not taken."""
    taken, number = path, 0
    while taken.exists():
        number += 1
        taken = path.with_name(f"{path.name}-{number}")
    return taken
