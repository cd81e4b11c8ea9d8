"""Devices to compile for: slices of TPU pods that are not here, or CPU devices."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from wsca_jax.compilation.chips import CHIPS, Chip
from wsca_jax.errors import WscaError

# libtpu reads these where it is loaded. They keep it from asking a cloud's metadata server for the machine's
# own chips, and from locking them: no chip of this machine is needed.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
EXAMPLES = "such as v5e:2x4, v5e:16x16, v5p:8x8x16 or cpu:8"
NAME = re.compile(r"(?P<chip>\w+):(?P<sizes>\d+(x\d+){0,2})")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a program is to run.

    Attributes:
      name: as it was asked for.
      devices: all of them; they compile and cannot compute, but for CPU devices.
      chip: what each is; None for CPU devices, of which nothing is published.
    """

    name: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None


def open_topologies(names: Sequence[str]) -> tuple[Topology, ...]:
    """Topologies by name: "CHIP:SIZES", as clouds name slices, or "cpu:COUNT".

    Call it before JAX starts its devices: it makes as many CPU devices as are asked for, and no others.

    Raises:
      WscaError: there is no such chip or slice, or libtpu is not installed.
    """
    parsed = [_parse(name) for name in names]
    with contextlib.suppress(RuntimeError):  # the devices have started: those that there are must do
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max([1, *(n for chip, n in parsed if chip is None)]))
    return tuple(_open(name, chip, count) for name, (chip, count) in zip(names, parsed, strict=True))


def _parse(name: str) -> tuple[Chip | None, int]:
    """The chip and how many; raises WscaError."""
    match = NAME.fullmatch(name)
    if not match:
        raise WscaError(f"--topology {name!r}: expected CHIP:SIZES, {EXAMPLES}")
    count = 1
    for size in match["sizes"].split("x"):
        count *= int(size)
    if match["chip"] == "cpu":
        if count < 1 or "x" in match["sizes"]:
            raise WscaError(f"--topology {name!r}: expected a number of CPU devices, such as cpu:8")
        return None, count
    chip = CHIPS.get(match["chip"])
    if chip is None:
        raise WscaError(f"--topology {name!r}: chips are {', '.join(CHIPS)}, or cpu; {EXAMPLES}")
    if count > chip.largest:
        raise WscaError(
            f"--topology {name!r}: these are {count:,} chips; the largest slice of {chip.name} has "
            f"{chip.largest:,}"
        )
    return chip, count


def _open(name: str, chip: Chip | None, count: int) -> Topology:
    if chip is None:
        devices = jax.devices("cpu")
        if len(devices) < count:
            raise WscaError(f"--topology {name!r}: JAX has started with {len(devices)} CPU devices")
        return Topology(name, tuple(devices[:count]), None)
    if importlib.util.find_spec("libtpu") is None:
        raise WscaError(f"--topology {name!r} needs libtpu, which is not installed; pip install '.[tpu]'")
    for key, value in LIBTPU.items():
        os.environ.setdefault(key, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **chip.options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise WscaError(f"--topology {name!r}: there is no such slice: {' '.join(reason.split())}") from error
    return Topology(name, tuple(found.devices), chip)
