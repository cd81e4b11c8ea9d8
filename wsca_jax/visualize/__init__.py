"""Figures of what a trained model looks at and decides, and a page that shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from wsca_jax import inside
from wsca_jax.assembly import Split
from wsca_jax.engine.storage import storage_errors, write_atomically
from wsca_jax.errors import WscaError
from wsca_jax.evaluate import Trained
from wsca_jax.inside import OnObject
from wsca_jax.visualize import figures
from wsca_jax.visualize.drawing import STYLE
from wsca_jax.visualize.gather import Averages, Examples, gather_averages, gather_examples
from wsca_jax.visualize.page import Facts, Section, render

PAGE, RECORD = "figures.html", "figures.json"
LEVEL_EXAMPLES = 2  # examples whose pyramid is drawn


def visualize(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "validation",
    checkpoint: Literal["latest", "best"] = "latest",
    examples: int = 8,
    average_over: int = 512,
    output: Path | None = None,
) -> Path:
    """Draws what a run's checkpoint attends to and decides, with nothing but its workdir and the data.

    Args:
      workdir: a run's folder. It may still be training.
      data_dir: a folder of the same schema; None for the run's own data.
      split: which of its splits.
      checkpoint: the newest, or the one with the best validation metric.
      examples: how many of the split's first examples are drawn.
      average_over: how many of them the averages run over.
      output: folder for the figures; None for `workdir`/figures.

    Returns:
      The page, `output`/figures.html. Beside it stand its pictures and figures.json with the numbers.

    Raises:
      WscaError, DataError: each with one line for the user.
    """
    for name, count in (("examples", examples), ("average_over", average_over)):
        if count < 1:
            raise WscaError(f"--{name} is {count}; expected at least 1")
    trained = inside.load(workdir, data_dir=data_dir, split=split, checkpoint=checkpoint)
    shown, averages = gather_examples(trained, examples), gather_averages(trained, average_over)
    output = workdir / "figures" if output is None else output
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    pictures = [_save(output, name, figure) for name, figure in _of_examples(trained, shown)]
    sections = [
        section._replace(pictures=[_save(output, name, figure) for name, figure in drawn])
        for section, drawn in _of_modules(trained, shown, averages)
    ]
    facts = Facts(str(workdir), trained.step, split)
    left_out = missing(trained)
    text = render(facts, trained.source.schema, shown, averages, pictures, sections, left_out)
    names = [*pictures, *(name for section in sections for name in section.pictures)]
    record = to_json(facts, trained, averages) | {"pictures": names, "left_out": left_out}
    with storage_errors(output):
        write_atomically(output / PAGE, text)
        write_atomically(output / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")
    _tell(averages, output / PAGE)
    return output / PAGE


def _tell(averages: Averages, page: Path) -> None:
    for name, found in (
        ("attribute maps", averages.attributes_on_object),
        ("group attention", averages.groups_on_object),
    ):
        if found is not None:
            print(f"{name}: {found.overall:.2f} times uniform on the object, {found.others:.2f} on others")
    print(f"Figures: {page}")


Drawn = tuple[str, Figure]


def _of_examples(trained: Trained, shown: Examples) -> Iterator[Drawn]:
    for number in range(len(shown.image)):
        with rc_context(STYLE):
            yield f"example_{number:02d}.png", figures.attention(shown, number, trained.source.schema)


def _of_modules(
    trained: Trained, shown: Examples, averages: Averages
) -> Iterator[tuple[Section, list[Drawn]]]:
    """A section for each module that the model has, with its figures."""
    schema, config = trained.source.schema, trained.run.config
    with rc_context(STYLE):
        if averages.attributes_on_object is not None and averages.groups_on_object is not None:
            note = (
                "Share of the attention on the objects that carry an attribute, over their share of the "
                "image; 1 is what uniform attention has. Last, the same on objects that do not carry it."
            )
            drawn = figures.on_object(averages.attributes_on_object, averages.groups_on_object, schema)
            yield Section("Attention on the object", note), [("on_object.png", drawn)]
        if shown.gates is not None and averages.graph is not None:
            note = (
                "Left, the tokens of the level below in the colours of the parents they are merged into. "
                "Then where each group looks on each level, and how much of it its gate lets in."
            )
            drawn_levels = [
                (f"levels_{number:02d}.png", figures.levels(shown, number, schema))
                for number in range(min(LEVEL_EXAMPLES, len(shown.image)))
            ]
            yield Section("Levels of the pyramid", note), drawn_levels
            note = "Means over examples. A low gate shuts out a level whose evidence all groups share."
            yield Section("Groups and levels", note), [("graph.png", figures.graph(averages.graph, schema))]
        if shown.bands is not None:
            note = (
                "The image is split at a learned cutoff; each group weighs both bands' features by frequency."
            )
            look = {"mean": config.augment.mean, "std": config.augment.std}
            drawn = figures.bands(shown, schema, **look, initial_cutoff=config.model.frequency.initial_cutoff)
            yield Section("Frequency bands", note), [("bands.png", drawn)]
        if averages.routing is not None:
            note = (
                "How examples spread over the router's experts and clusters, and which attributes draw which."
            )
            yield Section("Routing", note), [("routing.png", figures.routing(averages.routing, schema))]


def missing(trained: Trained) -> dict[str, str]:
    """{part of the page: why it is not there}."""
    model: Any = trained.run.method.model
    needs = {
        "maps of groups and attributes, attention on the object": "encoder",
        "levels of the pyramid, gates and graph": "decomposer",
        "frequency bands": "frequency",
        "routing": "router",
    }
    found = {
        part: f"This model was trained without model.{module}."
        for part, module in needs.items()
        if getattr(model, module) is None
    }
    if model.encoder is not None and trained.source.schema.name != "scenes":
        found["attention on the object"] = "Only rendered scenes say where each attribute's object is."
    return found


def to_json(facts: Facts, trained: Trained, averages: Averages) -> dict[str, Any]:
    """The numbers of the figures, as plain values; what is not defined (NaN) becomes None."""
    schema, routing, graph = trained.source.schema, averages.routing, averages.graph
    record: dict[str, Any] = facts._asdict() | {"averaged_over": averages.examples}
    if averages.attributes_on_object is not None and averages.groups_on_object is not None:
        record["attention_on_object"] = {
            "attribute_maps": _on_object(averages.attributes_on_object, schema.groups),
            "group_attention": _on_object(averages.groups_on_object, schema.groups),
        }
    if routing is not None:
        record["routing"] = {
            "load": routing.load.tolist(),
            "entropy": routing.entropy,
            "clusters": routing.clusters.tolist(),
        }
    if graph is not None:
        record["graph"] = {"groups": list(schema.groups), "edges": graph.edges.tolist()}
        record["gates"] = graph.gates.tolist()
    return record


def _on_object(found: OnObject, groups: tuple[str, ...]) -> Mapping[str, Any]:
    return {
        "overall": _or_none(found.overall),
        "groups": {name: _or_none(value) for name, value in zip(groups, found.groups, strict=True)},
        "other_objects": _or_none(found.others),
        "entries": found.entries,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _save(output: Path, name: str, figure: Figure) -> str:
    with storage_errors(output), rc_context(STYLE):
        figure.savefig(output / name, metadata={"Software": None})
    return name
