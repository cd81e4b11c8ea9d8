"""What `wsca bench step` found, as text for a terminal."""

from __future__ import annotations

import statistics

from input_pipeline.cores import available_cores
from wsca_jax.bench import modules
from wsca_jax.bench.figures import (
    LOADER,
    PUBLISHED_H200,
    STEP,
    Measured,
    of_published,
    one_after_the_other,
    ours,
    over_torch,
    slower_over_both,
    utilisation,
)
from wsca_jax.bench.peaks import PEAKS
from wsca_jax.bench.turns import median
from wsca_jax.inspection.text import format_bytes
from wsca_jax.report.tables import format_table
from wsca_jax.writers import format_share

BUSY = "Other work on a CPU slows PyTorch's threads more than ours: they wait for each other. Measure alone."


def format_measured(measured: Measured) -> str:
    """All that was found, as text for a terminal."""
    parts = [
        _header(measured),
        _speeds(measured),
        _together(measured),
        _costs(measured),
        _beside_torch(measured),
        _published(measured),
        "" if measured.modules is None else modules.format_modules(measured.modules, measured.settings.clock),
    ]
    return "\n\n".join(part for part in parts if part)


def _header(measured: Measured) -> str:
    model, device, settings = measured.model, measured.device, measured.settings
    return (
        f"{measured.spec}: ResNet-{model.depth}, width {model.width}, {model.size} px, {model.dtype}, "
        f"batches of {measured.batch_size}\n{device.count} x {device.kind} ({device.platform}), "
        f"{available_cores()} cores, load {measured.load:.1f}; medians of {settings.rounds} turns of "
        f"{settings.steps} steps"
    )


def _speeds(measured: Measured) -> str:
    rows = [
        (
            name,
            f"{measured.rate(name):,.1f}",
            f"{1e3 * median(measured.seconds, name, 'wall') / measured.settings.steps:.1f}",
        )
        for name in measured.seconds
    ]
    return format_table(("", "images/s", "ms / batch"), rows)


def _together(measured: Measured) -> str:
    """What the loop loses against the slower of its parts."""
    if not measured.has_data:
        return "Left out: the loader and end to end; they read data, give --data_dir."
    slower = "loader" if measured.rate(LOADER) < measured.rate(STEP) else "step"
    text = (
        f"The slower of the two, the {slower}, over end to end: {slower_over_both(measured.seconds):.2f} "
        "(1: nothing is lost by doing both).\n"
        f"End to end waited for data {format_share(statistics.median(measured.data_waits))} of the time."
    )
    if measured.device.platform != "cpu":
        return text
    return (
        f"{text}\nHere both want the same cores: one after the other would take "
        f"{1 / one_after_the_other(measured.seconds):.2f} times as long as end to end."
    )


def _costs(measured: Measured) -> str:
    seen = "not counted here" if measured.seen is None else format_bytes(measured.seen)
    rows = [
        ("lowering", f"{measured.lowering:.1f} s"),
        ("compiling, without the persistent cache", f"{measured.compiling:.1f} s"),
        ("memory on each device, as the compiler planned it", format_bytes(measured.planned)),
        ("most that a device counted since the process began", seen),
        ("multiply-adds of one image's forward pass", f"{measured.multiply_adds / 1e6:,.0f} M"),
    ]
    share = utilisation(measured)
    if share is not None:
        peak = PEAKS[measured.device.kind]
        of = f"of {peak.matrix_rate / 1e12:g} TFLOP/s ({peak.source})"
        rows.append((f"model FLOPs utilisation of the step alone, {of}", format_share(share)))
    return format_table(("step", ""), rows)


def _beside_torch(measured: Measured) -> str:
    times = over_torch(measured)
    if times is None:
        return ""
    way = "torch.compile" if measured.settings.torch_compiled else "eager"
    note = f"\n{BUSY}" if measured.device.platform == "cpu" else ""
    precision = "autocast to bfloat16" if measured.model.dtype == "bfloat16" else "float32"
    return (
        f"PyTorch {measured.torch}: channels last, {way}, {precision}; the same batch, model without "
        "modules, loss,\naugmentation, clipping, AdamW and average. "
        f"Ours ({ours(measured.seconds)}) is {times:.2f} times as fast.{note}"
    )


def _published(measured: Measured) -> str:
    """Beside the published ResNet-50, on the card that it was published for."""
    share = of_published(measured)
    if share is None:
        return ""
    figure = f"{PUBLISHED_H200:,} images/s of an H200 in MLPerf Training v4.0 (ResNet-50)"
    return f"{ours(measured.seconds)}: {share:.2f} of the {figure}."
