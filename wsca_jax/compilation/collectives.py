"""What a compiled program sends from device to device."""

from __future__ import annotations

import dataclasses
import math
import re

from wsca_jax.compilation.hlo import Computation, Instruction, Program

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]*\})")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The operations of one kind in one run of a program.

    Attributes:
      kind: one of `KINDS`.
      count: how many run.
      bytes: that they reduce, or return gathered, or move, on each device.
      sent: bytes that each device sends at least.
    """

    kind: str
    count: int
    bytes: int
    sent: int


def collectives(program: Program, devices: int) -> tuple[Collective, ...]:
    """What a program exchanges, by kind; kinds that it has none of are left out.

    The least that n devices send is what a ring sends, which is optimal (Patarasuk and Yuan 2009, J. Parallel
    Distrib. Comput. 69): for m bytes on each, 2 m (n - 1) / n to reduce them, half as much to reduce and
    scatter them, m (n - 1) to gather them.

    A TPU's compiler spreads one operation over many fusions, to hide it behind them: it stands in each of
    them with the same channel, and counts once.

    Args:
      program: what one device runs.
      devices: that run it.
    """
    found: dict[str, Collective] = {}
    channels: set[str] = set()
    for computation, instruction, times in program.executed():
        kind = instruction.operation.removesuffix("-start")
        channel = _CHANNEL.search(instruction.attributes)
        if kind not in KINDS or (channel and channel[0] in channels):
            continue
        channels |= {channel[0]} if channel else set()
        here = _measure(kind, computation, instruction, devices)
        before = found.get(kind, Collective(kind, 0, 0, 0))
        found[kind] = Collective(
            kind, before.count + times, before.bytes + times * here.bytes, before.sent + times * here.sent
        )
    return tuple(found[kind] for kind in KINDS if kind in found)


def _measure(kind: str, computation: Computation, instruction: Instruction, devices: int) -> Collective:
    held = sum(array.bytes for array in computation.operand_arrays(instruction))
    group = group_size(instruction.attributes, devices)
    others = (group - 1) / group
    sent = {
        "all-reduce": 2 * others * held,
        "reduce-scatter": others * held,
        "all-gather": (group - 1) * held,
        "all-to-all": others * held,
        "ragged-all-to-all": others * held,
    }.get(kind, held)
    return Collective(kind, 1, held * group if kind == "all-gather" else held, math.ceil(sent))


def group_size(attributes: str, devices: int) -> int:
    """How many devices exchange with each other, from an instruction's `replica_groups` in any notation."""
    if listed := _LISTED.search(attributes):
        return len(listed[1].split(","))
    if iota := _IOTA.search(attributes):
        return int(iota[2])
    if mesh := _MESH.search(attributes):
        sizes = {name: int(size) for name, size, _ in _AXIS.findall(mesh[1])}
        return math.prod(int(part) if part else sizes[name] for name, _, part in _AXIS.findall(mesh[2]))
    return devices
