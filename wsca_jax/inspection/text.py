"""A dry run's findings as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from wsca_jax.inspection.cost import Cost
from wsca_jax.inspection.multiply_adds import Path, roll_up
from wsca_jax.inspection.record import ArrayInfo, Inspection, Parameter
from wsca_jax.report.tables import format_table

MEMORY_NOTE = (
    "Activations are what the backward pass asks for; the compiler fuses or recomputes some of them,\n"
    "and adds buffers of its own."
)


COSTS_TITLE = "Cost of the modules: one image's forward pass, and a training step's memory on each device"


def format_inspection(inspection: Inspection, depth: int) -> str:
    """All tables, one below the other.

    Args:
      inspection: what to show.
      depth: levels of modules in the tables; what lies deeper is added up.
    """
    sections = {
        "Batch, over all devices": _arrays(inspection.batch),
        f"Parameters, to depth {depth}": _parameters(inspection.parameters, depth),
        "Frozen": _frozen(inspection),
        "Outputs": _arrays(inspection.outputs),
        "Loss terms": _terms(inspection),
        f"Multiply-adds of one image's forward pass, to depth {depth}": _multiply_adds(
            inspection.multiply_adds, depth
        ),
        f"Memory of a training step, on each of {_mesh(inspection)}": _memory(inspection),
    }
    return "\n\n".join(f"{title}\n\n{body}" for title, body in sections.items())


def format_costs(costs: Sequence[Cost]) -> str:
    """Each cost, and its ratio to the first one listed, under a title."""
    work, memory = costs[0], next(cost for cost in costs if cost.memory)
    header = ("what", "multiply-adds", f"x {work.name}", "memory", f"x {memory.name}")
    rows = [
        (
            cost.name,
            f"{cost.multiply_adds / 1e6:,.2f} M",
            f"{cost.multiply_adds / work.multiply_adds:.2f}",
            format_bytes(cost.memory) if cost.memory else "-",
            f"{cost.memory / memory.memory:.2f}" if cost.memory and memory.memory else "-",
        )
        for cost in costs
    ]
    return f"{COSTS_TITLE}\n\n{format_table(header, rows)}"


def _arrays(arrays: Iterable[ArrayInfo]) -> str:
    rows = [(a.path, _shape(a.shape), a.dtype, format_bytes(a.bytes)) for a in arrays]
    return format_table(("name", "shape", "dtype", "size"), rows, left=(0, 1, 2))


def _parameters(parameters: Sequence[Parameter], depth: int) -> str:
    """A line for each parameter, or for all those of a module that lies deeper than `depth`."""
    groups: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(_cut(parameter.path, depth), []).append(parameter)
    header = ("parameter", "shape", "parameters", "decayed", "frozen", "size")
    rows = [(name, *_group(members)) for name, members in groups.items()]
    total = ("total", *_group(parameters))
    return format_table(header, [*rows, total], left=(0, 1), rule_before_last=True)


def _cut(path: str, depth: int) -> str:
    parts = path.split("/")
    return path if len(parts) <= depth + 1 else "/".join(parts[:depth]) + "/..."


def _group(members: Sequence[Parameter]) -> tuple[str, ...]:
    one = len(members) == 1
    return (
        f"{_shape(members[0].shape)} {members[0].dtype}" if one else f"{len(members)} arrays",
        f"{sum(p.size for p in members):,}",
        f"{sum(p.size for p in members if p.decayed):,}",
        f"{sum(p.size for p in members if p.frozen):,}",
        format_bytes(sum(p.bytes for p in members)),
    )


def _frozen(inspection: Inspection) -> str:
    if not inspection.frozen:
        return "nothing"
    rows = [(pattern, f"{count:,}") for pattern, count in inspection.frozen.items()]
    return format_table(("pattern", "parameters"), rows)


def _terms(inspection: Inspection) -> str:
    accumulation = {True: "as the large batch", False: "one microbatch at a time", None: "not computed"}
    rows = [(t.name, f"{t.weight:g}", accumulation[t.exact]) for t in inspection.terms]
    return format_table(("term", "weight", "under gradient accumulation"), rows, left=(0, 2))


def _multiply_adds(counts: dict[Path, int], depth: int) -> str:
    total = sum(counts.values())
    rows = [
        ("/".join(path) or "(outermost module)", *_share(count, total))
        for path, count in roll_up(counts, depth).items()
    ]
    return format_table(
        ("module", "multiply-adds", "share"), [*rows, ("total", *_share(total, total))], rule_before_last=True
    )


def _share(count: int, total: int) -> tuple[str, str]:
    return f"{count / 1e6:,.2f} M", f"{100 * count / max(total, 1):.1f} %"


def _memory(inspection: Inspection) -> str:
    rows = [(purpose, format_bytes(size)) for purpose, size in inspection.memory.items() if size]
    total = ("total", format_bytes(sum(inspection.memory.values())))
    return f"{format_table(('what', 'size'), [*rows, total], rule_before_last=True)}\n\n{MEMORY_NOTE}"


def _mesh(inspection: Inspection) -> str:
    devices = math.prod(inspection.mesh.values())
    axes = " x ".join(f"{axis} {size}" for axis, size in inspection.mesh.items())
    return f"{devices} device{'s' if devices > 1 else ''} ({axes})"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def format_bytes(count: int) -> str:
    """ "512 B", "1.5 KiB", "44.2 MiB", "3.1 GiB"."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"
