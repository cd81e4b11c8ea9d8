"""Compiled training steps as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from wsca_jax.compilation.chips import CHIPS, Chip
from wsca_jax.compilation.record import CompiledStep, Cost
from wsca_jax.compilation.roofline import ASSUMPTIONS
from wsca_jax.inspection.text import format_bytes
from wsca_jax.report.tables import format_table

TABLE = (
    "configuration",
    "topology",
    "devices",
    "batch per device",
    "memory",
    "sent",
    "compute",
    "HBM",
    "links",
    "step",
    "bound by",
    "efficiency",
    "images/s",
)
UNREADABLE = "Bytes moved, collectives and times are not known: it compiles, but its program cannot be read"


def format_step(step: CompiledStep) -> str:
    """Everything that was found about one step, under a title."""
    title = f"{step.config} on {step.topology}: {step.batch_size:,} examples, {_mesh(step)}"
    sections = [title, format_fit(step)]
    if step.memory:
        sections.append(_memory(step))
    if step.cost:
        sections += [_cost(step.cost), _collectives(step.cost)]
    if step.unreadable:
        sections.append(f"{UNREADABLE} ({step.unreadable})")
    if step.estimate:
        sections.append(_estimate(step))
    return "\n\n".join(sections)


def format_fit(step: CompiledStep) -> str:
    """Whether the step fits, and the largest batch that does where somebody asked."""
    chip = _chip(step)
    if step.shortage:
        needed, has = format_bytes(step.shortage.needed), format_bytes(step.shortage.available)
        answer = f"Does not fit: needs {needed} on each device, has {has}."
    elif step.memory and chip:
        total = step.memory.total
        answer = (
            f"Fits: needs {format_bytes(total)} on each chip, of {format_bytes(chip.hbm_bytes)} "
            f"({100 * total / chip.hbm_bytes:.0f} %)."
        )
    else:
        answer = f"Needs {format_bytes(step.memory.total if step.memory else 0)} on each device."
    if step.largest_batch is None:
        return answer
    return f"{answer}\nLargest batch that fits: {step.largest_batch:,} examples on each device."


def format_steps(steps: Sequence[CompiledStep]) -> str:
    """A line for each step, and what the estimates assume where there are any."""
    table = format_table(TABLE, [_row(step) for step in steps], left=(0, 1, 10))
    if not any(step.estimate for step in steps):
        return table
    chips = [chip for chip in CHIPS.values() if any(_chip(step) is chip for step in steps)]
    return "\n\n".join([table, ASSUMPTIONS, "\n".join(_peaks(chip) for chip in chips)])


def _row(step: CompiledStep) -> tuple[str, ...]:
    memory = (
        f"{format_bytes(step.shortage.needed)}: does not fit"
        if step.shortage
        else format_bytes(step.memory.total if step.memory else 0)
    )
    sent = _bytes_or_dash(step.cost.bytes_sent if step.cost else None)
    return (
        step.config,
        step.topology,
        f"{step.devices:,}",
        f"{step.per_device:,}",
        memory,
        sent,
        *_times(step),
    )


def _times(step: CompiledStep) -> tuple[str, ...]:
    if step.estimate is None or step.images_per_second is None:
        return ("-",) * 7
    return (
        *(f"{1e3 * seconds:.2f} ms" for seconds in step.estimate),
        f"{1e3 * step.estimate.step:.2f} ms",
        step.estimate.bound,
        f"{100 * step.estimate.efficiency:.0f} %",
        f"{step.images_per_second:,.0f}",
    )


def _memory(step: CompiledStep) -> str:
    assert step.memory
    rows = [
        ("arguments (state and batch)", format_bytes(step.memory.arguments)),
        ("results", format_bytes(step.memory.outputs)),
        ("of them in the place of arguments (donated)", f"-{format_bytes(step.memory.aliased)}"),
        ("temporaries", format_bytes(step.memory.temporaries)),
        ("code", format_bytes(step.memory.code)),
        ("total", format_bytes(step.memory.total)),
    ]
    return "Memory on each device\n\n" + format_table(("what", "size"), rows, rule_before_last=True)


def _cost(cost: Cost) -> str:
    rows = [
        ("multiply-adds of the model", f"{cost.multiply_adds / 1e9:,.2f} G"),
        ("bytes moved to and from memory", _bytes_or_dash(cost.bytes_moved)),
        ("operations of the model per byte", "-" if cost.intensity is None else f"{cost.intensity:.1f}"),
        ("bytes sent to other devices", _bytes_or_dash(cost.bytes_sent)),
    ]
    return "Cost of a step, on each device\n\n" + format_table(("what", "how much"), rows)


def _collectives(cost: Cost) -> str:
    if not cost.collectives:
        return "Collectives: none" if cost.collectives == () else "Collectives: -"
    rows = [
        (found.kind, f"{found.count:,}", format_bytes(found.bytes), format_bytes(found.sent))
        for found in cost.collectives
    ]
    header = ("collectives", "count", "bytes on each device", "sent by each device")
    return format_table(header, rows)


def _bytes_or_dash(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)


def _estimate(step: CompiledStep) -> str:
    assert step.estimate
    compute, memory, links, whole, bound, efficiency, images = _times(step)
    rows = [
        ("matrix work", compute),
        ("memory traffic", memory),
        ("traffic between chips", links),
        ("step, at least", f"{whole}, bound by {bound}"),
        ("model FLOPs utilisation, at most", efficiency),
        ("images a second, at most", images),
    ]
    return "Estimate at published peaks\n\n" + format_table(("what", "how much"), rows)


def _peaks(chip: Chip) -> str:
    return (
        f"{chip.name}: {chip.matrix_rate / 1e12:g} TFLOP/s in bf16, {format_bytes(chip.hbm_bytes)} of HBM at "
        f"{chip.hbm_rate / 1e9:g} GB/s, links {chip.link_rate / 1e9:g} GB/s each way ({chip.source})"
    )


def _chip(step: CompiledStep) -> Chip | None:
    return CHIPS.get(step.topology.partition(":")[0])


def _mesh(step: CompiledStep) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
    return f"{step.devices:,} devices ({axes})"
