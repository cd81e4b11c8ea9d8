"""The chip table, the roofline's arithmetic, the search for a batch, the compiler's complaints."""

import pytest

from wsca_jax.compilation.chips import CHIPS, GIB, Chip
from wsca_jax.compilation.largest import largest
from wsca_jax.compilation.record import Shortage
from wsca_jax.compilation.roofline import estimate
from wsca_jax.compilation.step import read_shortage

TOY = Chip("toy", matrix_rate=100.0, hbm_bytes=GIB, hbm_rate=10.0, link_rate=2.0, largest=4, source="none")


@pytest.mark.parametrize(
    ("multiply_adds", "moved", "sent", "bound", "seconds", "efficiency"),
    [
        (200, 30, 4, "compute", 4.0, 1.0),
        (50, 50, 4, "memory", 5.0, 0.2),
        (50, 30, 16, "links", 8.0, 0.125),
        (0, 0, 1, "links", 0.5, 0.0),
    ],
)
def test_a_step_takes_what_the_slowest_part_takes(multiply_adds, moved, sent, bound, seconds, efficiency):
    found = estimate(TOY, multiply_adds, moved, sent)
    assert (found.bound, found.step, found.efficiency) == (bound, seconds, efficiency)


def test_published_balances():
    """Operations per byte at which a chip's arithmetic and its memory take equally long."""
    balance = {name: round(chip.matrix_rate / chip.hbm_rate) for name, chip in CHIPS.items()}
    assert balance == {"v4": 229, "v5e": 241, "v5p": 166, "v6e": 560}


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 6, 7, 100, 383, 384, 400, 512, 10**9])
@pytest.mark.parametrize("start", [1, 32, 48, 256])
def test_the_largest_batch_is_found_to_a_third(limit, start):
    tried = []

    def fits(size):
        assert size not in tried
        tried.append(size)
        return size <= limit

    found = largest(fits, start, limit=1024)
    grid = sorted({0, *(2**k for k in range(11)), *(3 * 2**k for k in range(9))})
    assert found == max(size for size in grid if size <= limit)
    assert len(tried) <= 13


@pytest.mark.parametrize(
    ("message", "shortage"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(18.09G) exceeds available HBM (15.75G).",
            Shortage(round(18.09 * GIB), round(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 32.14G of 15.48G hbm. Exceeded hbm capacity by 16.66G.",
            Shortage(round(32.14 * GIB), round(15.48 * GIB)),
        ),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_complaints_about_memory_carry_numbers(message, shortage):
    assert read_shortage(message) == shortage
