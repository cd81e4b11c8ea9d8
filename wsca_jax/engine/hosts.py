"""Several processes of one run: who leads, what the others are told, and when all have come so far.

What depends on a file system, a clock or a signal is looked at by one process and told to the others, or they
would decide apart and wait for each other for ever. Words travel through jax's coordination service, the one
that `jax.distributed.initialize` starts: no device takes part, so that threads may talk, too (only a `Vote`,
once for each step, goes through the devices). With a single process everything here answers at once.

Every process calls the same functions with the same names, and for each name in the same order. A wait has no
limit of its own: a process that is lost or ends with an error ends the others (`wsca_jax.cluster`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its client has no public door; Orbax takes this one, too

from wsca_jax.engine.sharding import Layout
from wsca_jax.errors import WscaError

Value = TypeVar("Value")

_POLL_MS = 500  # between looks, Python hears signals
_turns: collections.defaultdict[str, Iterator[int]] = collections.defaultdict(itertools.count)


def is_lead() -> bool:
    """Whether this is the one process that writes logs, reports and what checkpoints are trusted by."""
    return jax.process_index() == 0


def several() -> bool:
    return jax.process_count() > 1


def client() -> Any:
    """The coordination service, as jax sees it; several processes only."""
    return distributed.global_state.client


def tell(name: str, find: Callable[[], Value]) -> Value:
    """What `find` returns in the leading process, in all of them.

    Args:
      name: of what is told.
      find: called by the leading process alone. What it returns can be written as JSON.
    """
    if not several():
        return find()
    key = _next_key(name)
    if not is_lead():
        return json.loads(_read(key))
    found = find()
    client().key_value_set(key, json.dumps(found))
    return found


def gather(name: str, value: Value) -> list[Value]:
    """Every process's value, in the order of processes. Values can be written as JSON."""
    if not several():
        return [value]
    key = _next_key(name)
    client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_read(f"{key}/{number}")) for number in range(jax.process_count())]


def wait_for_all(name: str) -> None:
    """Returns once every process has come this far."""
    gather(name, None)


def check_same(values: Mapping[str, Any]) -> None:
    """Returns once all processes are known to have the same values.

    Args:
      values: by what to call them to the user. They can be written as JSON.

    Raises:
      WscaError: this process and the leading one do not.
    """
    mine = json.loads(json.dumps(dict(values)))
    theirs = tell("same", lambda: mine)
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise WscaError(
                f"{name} is {mine.get(name)!r} in process {jax.process_index()} and {theirs.get(name)!r} in "
                "process 0; start the same command on the same data on each host"
            )
    wait_for_all("same")


@contextlib.contextmanager
def lead_first(name: str) -> Iterator[None]:
    """Lets the others in when the leading process is through: it prepares what they then find done."""
    if not is_lead():
        tell(name, lambda: None)
    yield
    if is_lead():
        tell(name, lambda: None)


class Vote:
    """Whether any process asks for something, with one answer for all of them after the same step.

    With several processes an answer is some calls old: nobody waits for the others, or for a device that is
    still at work on the step before.
    """

    def __init__(self, layout: Layout, calls_behind: int) -> None:
        """Begins to count calls.

        Args:
          layout: of the run's devices.
          calls_behind: how old an answer is, where there are several processes.
        """
        self._layout, self._behind = layout, calls_behind
        self._pending: collections.deque[jax.Array] = collections.deque()

    def any(self, asks: bool) -> bool:
        """Called after every step, by every process; `asks` says what this one wants."""
        if not several():
            return asks
        mine = np.full(jax.local_device_count(), asks, np.int32)
        self._pending.append(self._most(jax.make_array_from_process_local_data(self._layout.batch, mine)))
        return len(self._pending) > self._behind and bool(self._pending.popleft())

    @functools.cached_property
    def _most(self) -> jax.stages.Wrapped:
        return jax.jit(jnp.max, out_shardings=self._layout.replicated)


def _next_key(name: str) -> str:
    return f"wsca/{name}/{next(_turns[name])}"


def _read(key: str) -> str:
    """A key's value, once it is there."""
    while True:
        try:
            return client().blocking_key_value_get(key, _POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
