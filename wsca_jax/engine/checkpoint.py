"""Checkpoints of the whole moment: saved in the background, trusted by checksum, restored onto any devices.

What lies where, and which step can be trusted, is `checkpoint_folder`'s to know.

With several processes each writes the arrays it holds, all into one folder that they share. Everything else
is done by the leading one, and what it finds there is told to the others.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from wsca_jax.engine import hosts
from wsca_jax.engine.checkpoint_folder import DELETED, CheckpointFolder
from wsca_jax.engine.fit import check_fit
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.storage import check_space, storage_errors
from wsca_jax.errors import Preempted, WscaError

Target = TypeVar("Target")
_SPARE_BYTES = 2**20  # metadata and file-system overhead beside the arrays
_ABANDON_AFTER = 30  # seconds


class Restored(NamedTuple, Generic[Target]):
    """A step that was read back.

    Attributes:
      state: arrays in the target's structure, placed as the target says.
      step: its number, also the position in the data.
      metrics: those it was saved with; empty where there were none.
    """

    state: Target
    step: int
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one workdir. A context manager; leaving it waits for the last save.

    Args:
      workdir: the run's folder, made where there is none.
      keep_latest: how many of the newest steps stay, at least 2: the newest is trusted only once its
        checksums are written.
      keep_best: how many steps with the best metric stay besides.
      best_metric: the name of that metric; larger is better.
      read_only: for looking at a run that may still be training: nothing is moved, deleted or written.

    Raises:
      WscaError: the workdir cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str = "mAP",
        read_only: bool = False,
    ) -> None:
        if keep_latest < 2:
            raise WscaError(
                f"checkpoint.keep_latest is {keep_latest}; expected 2 or more, because the newest step is "
                "trusted only once its checksums are written"
            )
        if keep_best < 0:
            raise WscaError(f"checkpoint.keep_best is {keep_best}; expected 0 or more")
        self._folder = CheckpointFolder(workdir, read_only=read_only)
        self._keep = (keep_latest, keep_best)
        self._best_metric = best_metric
        self._pending: Future[None] | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        logging.getLogger("absl").addFilter(_not_from_orbax)
        if not read_only:
            hosts.tell("checkpoints", self._folder.prepare)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and hosts.several() and not isinstance(error, Preempted):
            self._abandon()
        else:
            self.close()

    # Saving

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state in the background. Once this returns, the state may be donated.

        A step that is already there is left alone: the same run has the same state at the same step.

        Args:
          state: saved whole, under its step's number.
          metrics: kept beside it; decides whether the step counts among the best.

        Raises:
          OutOfDiskError: too little space is left; or the save before this one ran out of it.
          WscaError: the save before this one failed, or `metrics` lacks the best metric.
        """
        if self._folder.read_only:
            raise ValueError("these checkpoints were opened read-only")
        self.wait()
        step = int(state.step)
        if hosts.tell("is saved", lambda: step in self.steps()):
            return
        if metrics is not None and self._best_metric not in metrics:
            names = ", ".join(sorted(metrics))
            raise WscaError(f"checkpoint.best_metric is {self._best_metric!r}; expected one of {names}")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        detail = f"; step {step} ({needed} bytes) was not saved, {self._folder.last_saved()}"
        check_space(self._folder.path, needed, detail)
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        with self._cleaning_up(detail):
            if hosts.is_lead():
                self._folder.begin(step)
            if hosts.several():
                self._hand_over(step, state, scores)
                self._pending = self._background.submit(self._finish, step, detail)
            else:
                tree = _on_host(state)
                self._pending = self._background.submit(self._write, step, tree, scores, detail)

    def check(self) -> None:
        """Raises what a save in the background has met, without waiting for one that is still running."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save can be trusted; raises what it met."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last save, then lets go of threads; raises what the save met."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._let_go()

    def _abandon(self) -> None:
        """Gives a save under way some time, and leaves the rest as it is: the others may be gone."""
        if self._pending is not None:
            with contextlib.suppress(Exception):  # another error is on its way to the user
                self._pending.result(_ABANDON_AFTER)
        self._background.shutdown(wait=False)

    def _hand_over(self, step: int, tree: Any, scores: dict[str, float]) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(tree),
                metadata=ocp.args.JsonSave({"data_position": step, "metrics": scores}),
            ),
            metrics=scores,
            force=True,  # also where a newer step was once there and is now in quarantine
        )

    def _write(self, step: int, tree: Any, scores: dict[str, float], detail: str) -> None:
        with self._cleaning_up(detail):
            self._hand_over(step, tree, scores)
        self._finish(step, detail)

    def _finish(self, step: int, detail: str) -> None:
        with self._cleaning_up(detail):
            self._manager.wait_until_finished()
            hosts.tell(f"saved {step}", functools.partial(self._folder.seal, step))

    @contextlib.contextmanager
    def _cleaning_up(self, detail: str) -> Iterator[None]:
        """Gives the disk back what a failed save took, and says for the user what happened.

        Where others may still be writing there, the next start does that.
        """
        try:
            with storage_errors(self._folder.path, detail):
                yield
        except Exception:
            if not hosts.several():
                self._let_go()
                self._folder.clean_if_possible()
            raise

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # It reads every step's metrics as it starts, and would stumble over a damaged step.
        hosts.tell("trusted steps", lambda: [step for step in self.steps() if self._folder.is_good(step)])
        latest, best = self._keep
        policies = ocp.checkpoint_managers
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(latest),
                policies.BestN(get_metric_fn=self._rank, n=best, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=self._rank,
            preservation_policy=kept,
            todelete_subdir=DELETED,
            **(_among_several() if hosts.several() else {}),
        )
        writers = {} if hosts.several() else _of_host_arrays()
        return ocp.CheckpointManager(self._folder.path, options=options, **writers)

    def _let_go(self) -> None:
        """Closes the manager, where there is one; the next save makes another that sees what is there now.

        One whose save failed would raise that error again, here and at every later save.
        """
        manager = self.__dict__.pop("_manager", None)
        if manager is not None:
            with contextlib.suppress(Exception):  # raised already, by the wait that was for it
                manager.close()

    def _rank(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self._best_metric, math.nan)
        return -math.inf if math.isnan(value) else value

    # Restoring

    def steps(self) -> list[int]:
        """Saved steps, oldest first. Whether one can be trusted shows when it is restored."""
        return self._folder.steps()

    def restore_latest(self, target: Target) -> Restored[Target] | None:
        """Reads the newest step that passes its checksums.

        A step that does not is moved to quarantine and the one before it is tried; one line says so.

        Args:
          target: a tree of `jax.ShapeDtypeStruct`s with shardings (`state.abstract`), onto any devices; or
            a dict with some of a `TrainState`'s fields ({"params": ...}), to read those alone.

        Returns:
          None where nothing was saved yet.

        Raises:
          DamagedCheckpointError: steps were saved and none can be trusted.
          WscaError: the checkpoint holds other parameters than the target.
        """
        self.wait()
        return self._restore_first(lambda: reversed(self.steps()), target)

    def restore_best(self, target: Target) -> Restored[Target] | None:
        """Reads the step with the best metric that passes its checksums; see `restore_latest`.

        Where no step has metrics, that is the newest.
        """
        self.wait()
        return self._restore_first(self._best_first, target)

    def _best_first(self) -> list[int]:
        metrics = {step: self._folder.metrics(step) for step in self.steps() if self._folder.is_good(step)}
        return sorted(metrics, key=lambda step: (self._rank(metrics[step]), step), reverse=True)

    def _restore_first(
        self, candidates: Callable[[], Iterable[int]], target: Target
    ) -> Restored[Target] | None:
        step = hosts.tell("step to restore", lambda: self._folder.first_good(candidates()))
        self._let_go()  # it has not seen what went to quarantine
        return None if step is None else self._restore(step, target)

    def _restore(self, step: int, target: Target) -> Restored[Target]:
        path = self._folder.path / str(step) / "state"
        reader = ocp.PyTreeCheckpointHandler()
        check_fit(path, reader.metadata(path).tree, target)
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return Restored(reader.restore(path, args=arguments), step, self._folder.metrics(step))


def _among_several() -> dict[str, Any]:
    """Options with which Orbax meets through the coordination service, not through the devices.

    It meets in threads, too, and devices would then take part in an order that differs between processes.
    """
    everyone = set(range(jax.process_count()))
    meet = ocp.multihost.get_barrier_sync_fn(processes=everyone)

    def meet_unless_failed(*, key: str, timeout_ms: int) -> None:
        if (error := sys.exception()) is not None:  # the others will not come to where this one stands
            raise error
        meet(key=key, timeout_ms=timeout_ms)

    return {
        "create": False,  # Orbax makes no folder for named processes
        "multiprocessing_options": ocp.options.MultiprocessingOptions(active_processes=everyone),
        "async_options": ocp.options.AsyncOptions(barrier_sync_fn=meet_unless_failed),
    }


def _on_host(state: TrainState) -> TrainState:
    """The state as NumPy arrays, which outlive a donation of its own.

    On the CPU they are its own memory: while they live, a step that is given the state takes other memory.
    """
    for leaf in jax.tree.leaves(state):
        leaf.copy_to_host_async()
    return jax.tree.map(np.asarray, state)


def _of_host_arrays() -> dict[str, Any]:
    """With which Orbax writes `_on_host`'s arrays as they lie, without another copy.

    It takes a fifth of a millisecond for each array before it begins to write, which is why that is done in
    the background: a state may have thousands.
    """
    arrays = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, arrays))
    return {
        "item_handlers": {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "metadata": ocp.JsonCheckpointHandler(),
        }
    }


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs each error four times over with its traceback, and then raises it: once is enough."""
    return "orbax" not in Path(record.pathname).parts
