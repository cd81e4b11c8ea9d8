"""Shares of a run's time, by hand."""

import math

from wsca_jax.timing import DataWait, Stopwatch


def test_data_wait_is_of_the_time_since_it_was_last_asked_for():
    clock = Stopwatch(("data_wait", "step", "evaluation"))
    clock.seconds |= {"data_wait": 5.0, "step": 5.0}
    waiting = DataWait(clock)
    assert math.isnan(waiting.since_last())  # what was before does not count
    clock.seconds |= {"data_wait": 6.0, "step": 8.0, "evaluation": 100.0}
    assert waiting.since_last() == 0.25
    clock.seconds["step"] += 1.0
    assert waiting.since_last() == 0.0
