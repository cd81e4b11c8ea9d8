"""How a process finds its place among several, without starting any."""

import warnings

import pytest

from wsca_jax import cluster
from wsca_jax.errors import WscaError


def test_place_from_flags():
    assert cluster.place(None, None, None) is None
    assert cluster.place("host:1234", 2, 1) == cluster.Place("host:1234", 2, 1)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("host:1234", 2, None), "--process belong together"),
        ((None, 2, 0), "belong together"),
        (("host", 2, 0), "expected HOST:PORT"),
        (("host:port", 2, 0), "expected HOST:PORT"),
        (("host:1", 2, 2), "--process is 2 of --processes 2"),
        (("host:1", 2, -1), "--process is -1"),
        (("host:1", 0, 0), "--processes 0"),
    ],
)
def test_flags_that_make_no_sense(flags, part):
    with pytest.raises(WscaError, match=part):
        cluster.place(*flags)


def never(error):
    raise AssertionError(error)


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "nowhere",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize("environment", [{}, SLURM, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
def test_alone_no_service_is_started_and_nothing_is_said(monkeypatch, environment):
    """jax is at work already in this process: `jax.distributed.initialize` would raise."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (None, cluster.Place("host:1", 1, 0)):
            with cluster.joined(place, never):
                pass


def test_alone_an_error_comes_out_as_it_is():
    with pytest.raises(KeyError), cluster.joined(None, never):
        raise KeyError
