"""The least time a training step can take on a chip, by the roofline model.

Williams, Waterman and Patterson 2009, Communications of the ACM 52(4): a program is held up by whichever it
needs longest for: arithmetic, memory or, here as a third roof, the links between chips.
"""

from __future__ import annotations

from typing import NamedTuple

from wsca_jax.compilation.chips import Chip

# Forward, and backward to the inputs and to the weights of every product.
PASSES = 3

ASSUMPTIONS = """\
Lower bounds at published peaks, as if all that can overlap did: matrix work, three times that of the forward
pass, at the bf16 rate; what the program's instructions read and write, at the full rate of HBM; what a ring
of chips must send, over all links of a chip at once. No latency, no host, no input pipeline."""


class Estimate(NamedTuple):
    """Seconds that one step needs at least, for each of three things that can go on at once.

    Attributes:
      compute: matrix work.
      memory: traffic between the chip and its memory.
      links: traffic between chips.
    """

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        """What holds the step up: "compute", "memory" or "links"."""
        return self._fields[self.index(self.step)]

    @property
    def efficiency(self) -> float:
        """Model FLOPs utilisation: the part of the step in which the matrix units would be busy."""
        return self.compute / self.step


def estimate(chip: Chip, multiply_adds: float, bytes_moved: float, bytes_sent: float) -> Estimate:
    """What one chip's share of a step takes: its multiply-adds, its HBM traffic, what it sends."""
    return Estimate(
        2 * multiply_adds / chip.matrix_rate, bytes_moved / chip.hbm_rate, bytes_sent / chip.link_rate
    )
