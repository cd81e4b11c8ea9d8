"""What devices can do at most, by the names that JAX calls them."""

from __future__ import annotations

from typing import NamedTuple

from wsca_jax.compilation.chips import CHIPS


class Peak(NamedTuple):
    """A published peak: dense bfloat16 operations a second, a multiply-add being two, and where it stands."""

    matrix_rate: float
    source: str


# TPU chips are one device each. v5p calls itself v5; lite stands for e.
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}

# The pages give 1,979 TFLOPS "with sparsity"; dense is half of it. Other forms of these cards (PCIe, NVL) are
# slower and have other names.
_HOPPER = 1979e12 / 2

PEAKS = {
    **{kind: Peak(CHIPS[chip].matrix_rate, CHIPS[chip].source) for kind, chip in _TPUS.items()},
    "NVIDIA H100 80GB HBM3": Peak(_HOPPER, "https://www.nvidia.com/en-us/data-center/h100/"),
    "NVIDIA H200": Peak(_HOPPER, "https://www.nvidia.com/en-us/data-center/h200/"),
}
