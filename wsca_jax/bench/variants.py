"""A configuration with other modules and losses than its own: the rows of `wsca bench step --modules`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from wsca_jax import config as configs

MODULES = ("frequency", "encoder", "router", "decomposer")
SECTIONS = (*MODULES, "alignment", "text")


class Variant(NamedTuple):
    """A row: which modules and losses it has."""

    modules: tuple[str, ...] = ()
    cmdl: bool = False
    cal: bool = False
    dynamic_weights: bool = False
    text: bool = False


BASELINE, LIGHT, FULL = "baseline", "all but CMDL, CAL, dynamic weights", "everything"
ROWS = {
    BASELINE: Variant(),
    **{f"{name} alone": Variant((name,)) for name in MODULES},
    "encoder + CMDL": Variant(("encoder",), cmdl=True),
    "encoder + CAL": Variant(("encoder",), cal=True),
    LIGHT: Variant(MODULES),
    FULL: Variant(MODULES, cmdl=True, cal=True, dynamic_weights=True),
    "everything, with text": Variant(MODULES, cmdl=True, cal=True, dynamic_weights=True, text=True),
}


class Request(NamedTuple):
    """A configuration as the command line asks for it.

    Attributes:
      spec: config file and variant.
      overrides: `--config.key=value`.
      data_dir: folder of the data set, or None.
    """

    spec: str
    overrides: Sequence[str] = ()
    data_dir: Path | None = None

    def load(self, more: Sequence[str] = ()) -> ConfigDict:
        """The configuration, with further overrides; raises ConfigError."""
        return configs.load(self.spec, [*self.overrides, *more], self.data_dir)


def configure(request: Request, variant: Variant) -> ConfigDict:
    """The configuration of a row.

    A module that the row has keeps its section of the configuration, or takes its default one.

    Raises:
      ConfigError: one line, for a key or a value that does not exist.
    """
    base = configs.load(request.spec, (), request.data_dir)
    asked = (*variant.modules, *["alignment"] * variant.cal, *["text"] * variant.text)
    absent = [f"--config.model.{name}" for name in SECTIONS if name not in asked]
    missing = [f"--config.model.{name}" for name in asked if base.model[name] is None]
    fitting = [word for word in request.overrides if not word.partition("=")[0].startswith(tuple(absent))]
    sections = [f"{key}=None" for key in absent] + [f"{key}=default" for key in missing]
    fitted = request._replace(overrides=[*sections, *fitting])
    return fitted.load(_losses(base, variant))


def _losses(base: ConfigDict, variant: Variant) -> list[str]:
    """What a row sets beside its sections."""
    kind = base.loss.balancing.kind
    dynamic = "trend" if kind == "none" else kind
    captions = "phrases" if base.data.text.captions == "none" else base.data.text.captions
    return [
        f"--config.data.text.captions={captions if variant.text else 'none'}",
        f"--config.loss.balancing.kind={dynamic if variant.dynamic_weights else 'none'}",
        *([] if variant.cmdl else ["--config.loss.weights.cmdl=0.0"]),
        *([] if variant.text else ["--config.model.phrase_prototypes=False"]),
    ]


def is_baseline(config: ConfigDict) -> bool:
    """Whether a configuration has no modules, so that its step is the baseline's."""
    return (
        all(config.model[name] is None for name in SECTIONS)
        and config.data.text.captions == "none"
        and config.loss.balancing.kind == "none"
    )
