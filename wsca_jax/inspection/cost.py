"""What a configuration's modules cost: its dry run beside that of the same configuration without them."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from wsca_jax import config as configs
from wsca_jax.inspection.multiply_adds import roll_up
from wsca_jax.inspection.record import Inspection
from wsca_jax.methods import METHODS

TRUNK = ("trunk",)


class Cost(NamedTuple):
    """One line of the comparison.

    Attributes:
      name: of what.
      multiply_adds: in the forward pass of one image.
      memory: bytes on each device in a training step; None for what is no training step.
    """

    name: str
    multiply_adds: int
    memory: int | None


def without_modules(config: ConfigDict) -> ConfigDict:
    """The configuration with every optional section left out, and no text, which nothing would read."""
    sections = [f"--config.{key}=None" for key in METHODS[config.method].OPTIONAL]
    plain = config.copy_and_resolve_references()
    return configs.apply_overrides(plain, [*sections, "--config.data.text.captions=none"])


def compare(found: Inspection, plain: Inspection) -> tuple[Cost, ...]:
    """The trunk, the configuration without modules, and as it is: without text and, where it reads any, with.

    Args:
      found: the configuration's dry run.
      plain: that of `without_modules`.
    """
    trunk = roll_up(plain.multiply_adds, 1).get(TRUNK)
    costs = [Cost("trunk", trunk, None)] if trunk else []
    costs.append(_cost("without modules", plain))
    if found.without_text is None:
        return (*costs, _cost("this configuration", found))
    text = next(array.shape[1] for array in found.batch if array.path == "tokens")
    without = Cost("this configuration, without text", sum(found.without_text.values()), None)
    return (*costs, without, _cost(f"this configuration, {text} text tokens", found))


def _cost(name: str, found: Inspection) -> Cost:
    return Cost(name, sum(found.multiply_adds.values()), sum(found.memory.values()))
