"""One run on several hosts: its processes find each other, and none is left waiting for one that is gone.

Addresses come from flags, or from SLURM, Open MPI, a TPU slice or an indexed Kubernetes job, as jax finds
them. A process that ends with an error says so to the others, and all end with its exit code. One that is
killed says nothing: jax's coordination service misses its heartbeats and aborts the others (exit code 134).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src import clusters  # what jax itself asks; it has no public door

from wsca_jax.engine import hosts
from wsca_jax.errors import Ending, ExitCode, Preempted, WscaError

# Seconds. A process counts as lost after LOST_AFTER without a heartbeat.
JOIN_WITHIN, LOST_AFTER = 300, 60
_LISTEN_EVERY, _GRACE, _LEAVE_WITHIN, _SURE_AFTER = 1.0, 5.0, 15.0, LOST_AFTER + 30.0

_FAULTS, _LEFT = "wsca/faults", "wsca/left"


class Place(NamedTuple):
    """This process among those of its run, as flags give it.

    Attributes:
      coordinator: HOST:PORT of process 0, which must be free there.
      processes: how many there are.
      process: which one this is, from 0.
    """

    coordinator: str
    processes: int
    process: int


Explain = Callable[[BaseException], Ending]


def place(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
    """This process's place from flags; None where there are none.

    Raises:
      WscaError: one of them is missing, or they make no sense.
    """
    if coordinator is None and processes is None and process is None:
        return None
    if coordinator is None or processes is None or process is None:
        raise WscaError("--coordinator, --processes and --process belong together; give all of them or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise WscaError(f"--coordinator is {coordinator!r}; expected HOST:PORT of process 0")
    if processes < 1 or not 0 <= process < processes:
        raise WscaError(
            f"--process is {process} of --processes {processes}; expected a number from 0 to "
            "--processes - 1, another one on each host"
        )
    return Place(coordinator, processes, process)


@contextlib.contextmanager
def joined(place: Place | None, explain: Explain) -> Iterator[None]:
    """Within it this process is one of its run's; alone, where neither flags nor the cluster say otherwise.

    Enter it before jax is used. An error that ends one process of several does not come out of it: the others
    are told, and the process exits; an orderly goodbye would wait for them for ever.

    Args:
      place: from flags; None to ask the cluster, if there is one.
      explain: how the process ends after an error.

    Raises:
      WscaError: jax cannot make sense of the place.
    """
    if not _join(place):
        yield
        return
    watch = _Watch(explain)
    try:
        yield
    except Preempted:  # all of them, after the same step
        watch.part()
        raise
    except BaseException as error:
        watch.leave(error)
    watch.part()


def _join(place: Place | None) -> bool:
    """Whether this process is now one of several."""
    if place is None:
        if _cluster_size() == 1:
            return False
        _initialize("the cluster's own addresses")
        return True
    if place.processes == 1:
        return False
    _initialize(
        f"--coordinator {place.coordinator}",
        coordinator_address=place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        cluster_detection_method="deactivate",
    )
    return True


def _cluster_size() -> int:
    """How many processes the surrounding cluster started together; 1 outside of one."""
    with warnings.catch_warnings():
        if not _in_indexed_job():
            warnings.simplefilter("ignore")  # jax warns in any pod, also in one that stands alone
        found = next((kind for kind in clusters.ClusterEnv._cluster_types if _is_here(kind)), None)
    return 1 if found is None else found.get_process_count()


def _is_here(kind: type[clusters.ClusterEnv]) -> bool:
    if kind.opt_in_only_method or (kind is clusters.K8sCluster and not _in_indexed_job()):
        return False
    return kind.is_env_present()


def _in_indexed_job() -> bool:
    return "JOB_COMPLETION_INDEX" in os.environ


def _initialize(where: str, **options: Any) -> None:
    # Its listener would take SIGTERM from us, and the second SIGTERM from everyone.
    jax.config.update("jax_enable_preemption_service", False)
    alone = Ending(
        ExitCode.BAD_INPUT,
        f"{where}: the processes of this run did not all meet within {JOIN_WITHIN} s; start the same command "
        "once on each host",
    )
    # Where they do not come jax aborts, in many lines; it waits longer than we do.
    limit = threading.Timer(JOIN_WITHIN, _exit, [alone])
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=2 * JOIN_WITHIN, heartbeat_timeout_seconds=LOST_AFTER, **options
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WscaError(f"{where}: {reason}; start the same command once on each host") from error
    finally:
        limit.cancel()


class _Watch:
    """Hears of others' faults while the main thread works or waits, and ends this process with their code.

    The main thread may be inside a collective that never returns, so the end comes from a thread of its own.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._heard: Ending | None = None
        self._told, self._leaving, self._stopped = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._listen, name="faults", daemon=True)
        self._thread.start()

    def part(self) -> None:
        """Waits until all have come to the orderly end of the run, and lets go of them."""
        hosts.wait_for_all("end")
        self._stopped.set()
        self._thread.join()
        jax.distributed.shutdown()

    def leave(self, error: BaseException) -> NoReturn:
        """Ends this process after an error: its own, or what another's end has brought about here."""
        self._leaving.set()
        if isinstance(error, jax.errors.JaxRuntimeError):
            self._wait_for_word(error)
        if self._heard is not None and not isinstance(error, WscaError):
            _end(self._heard)
        ending = self._explain(error)
        if ending.line is None:
            traceback.print_exception(error)
        _announce(ending)
        _end(ending)

    def _wait_for_word(self, error: Exception) -> None:
        """A computation fails when another process is gone: waits for what it said, or to be aborted."""
        reason = str(error).strip().partition("\n")[0]
        print(f"a computation failed ({reason}); waiting for word from other processes", file=sys.stderr)
        self._told.wait(_SURE_AFTER)

    def _listen(self) -> None:
        while not self._stopped.wait(_LISTEN_EVERY):
            try:
                faults = hosts.client().key_value_dir_get(_FAULTS)
            except jax.errors.JaxRuntimeError:
                return  # the service is gone, and jax about to abort
            if faults := [fault for fault in faults if fault[0] != _own_key(_FAULTS)]:
                return self._hear(*faults[0])

    def _hear(self, key: str, fault: str) -> None:
        number, (code, _, line) = key.rpartition("/")[2], fault.partition(" ")
        line = f"process {number} of {jax.process_count()} ended the run: {line}"
        self._heard = Ending(ExitCode(int(code)), line)
        self._told.set()
        if not self._leaving.wait(_GRACE):
            _end(self._heard)


def _own_key(folder: str) -> str:
    return f"{folder}/{jax.process_index()}"


def _announce(ending: Ending) -> None:
    line = ending.line or "a fault of ours; that process printed a traceback"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody is there to hear it
        hosts.client().key_value_set(_own_key(_FAULTS), f"{int(ending.code)} {line}")


def _end(ending: Ending) -> NoReturn:
    """Exits without waiting for anything but, in the process that the others talk through, for them."""
    _say(ending)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        hosts.client().key_value_set(_own_key(_LEFT), "")
        if hosts.is_lead():
            _wait_until_left()
    os._exit(ending.code)


def _exit(ending: Ending) -> NoReturn:
    _say(ending)
    os._exit(ending.code)


def _say(ending: Ending) -> None:
    if ending.line is not None:
        print(f"wsca: {ending.line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


def _wait_until_left() -> None:
    """Waits for the others to go. One that still is on its way out when the service ends would be aborted."""
    limit = time.monotonic() + _LEAVE_WITHIN
    while time.monotonic() < limit and len(hosts.client().key_value_dir_get(_LEFT)) < jax.process_count():
        time.sleep(_LISTEN_EVERY / 10)
    time.sleep(_LISTEN_EVERY)
