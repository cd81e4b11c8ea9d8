"""What TPU chips can do at most, as their maker publishes it."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Published peaks of one chip, which is one device to JAX.

    Attributes:
      name: as topologies name it.
      matrix_rate: bfloat16 operations a second; a multiply-add is two.
      hbm_bytes: high-bandwidth memory.
      hbm_rate: bytes a second between that memory and the chip.
      link_rate: bytes a second that all of its links to other chips send together; they receive as much.
      largest: chips in the largest slice there is.
      source: where the figures stand.
      options: what libtpu wants to know besides the name of a topology.
    """

    name: str
    matrix_rate: float
    hbm_bytes: int
    hbm_rate: float
    link_rate: float
    largest: int
    source: str
    options: dict[str, str] = {}  # noqa: RUF012  # a literal, never written to


# Interconnect: the pages give both directions together; half of it leaves the chip. v4's page gives none, so
# there it is six links of 45 GB/s each way: "How to Scale Your Model", chapter 2, table of interconnects
# (https://jax-ml.github.io/scaling-book/tpus). Two cores of a v4 or v5p chip work as one: "megacore".
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            matrix_rate=275e12,
            hbm_bytes=32 * GIB,
            hbm_rate=1200e9,
            link_rate=6 * 45e9,
            largest=4096,
            source="https://cloud.google.com/tpu/docs/v4",
            options={"chip_config_name": "megacore"},
        ),
        Chip(
            "v5e",
            matrix_rate=197e12,
            hbm_bytes=16 * GIB,
            hbm_rate=819e9,
            link_rate=400e9 / 2,
            largest=256,
            source="https://cloud.google.com/tpu/docs/v5e",
        ),
        Chip(
            "v5p",
            matrix_rate=459e12,
            hbm_bytes=95 * GIB,
            hbm_rate=2765e9,
            link_rate=1200e9 / 2,
            largest=6144,
            source="https://cloud.google.com/tpu/docs/v5p",
            options={"chip_config_name": "megacore"},
        ),
        Chip(
            "v6e",
            matrix_rate=918e12,
            hbm_bytes=32 * GIB,
            hbm_rate=1638e9,
            link_rate=800e9 / 2,
            largest=256,
            source="https://cloud.google.com/tpu/docs/v6e",
        ),
    )
}
