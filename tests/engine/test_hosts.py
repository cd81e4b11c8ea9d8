"""What several processes agree on: two real ones, found by jax in SLURM's environment, share a checkpoint."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wsca_jax.engine import hosts
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.sharding import make_mesh
from wsca_jax.engine.state import TrainState
from wsca_jax.errors import WscaError

ROOT = Path(__file__).resolve().parents[2]

# Two processes of two devices; "spread" lies in quarters over all of them, "copied" on each.
PROCESS = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from wsca_jax import cli, cluster
from wsca_jax.engine import hosts
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.sharding import AXES, Layout, make_mesh
from wsca_jax.engine.state import TrainState
from wsca_jax.errors import WscaError

def make_state(step):
    def fill(spec):
        values = np.arange(8, dtype=np.float32) + step
        return jax.make_array_from_callback((8,), NamedSharding(mesh, spec), lambda at: values[at])
    number = jax.device_put(np.int32(step), NamedSharding(mesh, PartitionSpec()))
    params = {"spread": fill(PartitionSpec(AXES)), "copied": fill(PartitionSpec())}
    return TrainState(number, params, {}, (), {}, None, number, number)

with cluster.joined(None, cli.explain):
    me, mesh = jax.process_index(), make_mesh()
    assert jax.process_count() == 2 and jax.device_count() == 4
    assert hosts.tell("me", lambda: me) == 0
    assert hosts.gather("me", me) == [0, 1]
    vote = hosts.Vote(Layout(mesh), 2)
    assert [vote.any(me == 1 and call == 1) for call in range(5)] == [False, False, False, True, False]
    with Checkpoints(Path(sys.argv[1]), best_metric="m") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), {"m": float(-step)})
        checkpoints.wait()
        restored = checkpoints.restore_latest(jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0)))
        assert restored.step == 3
    print(jax.device_get(restored.state.params["copied"])[0])
    hosts.check_same({"the seed": me})
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[subprocess.CompletedProcess]]:
    """(workdir, what the two processes left)."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    common = (
        os.environ
        | slurm
        | {
            "JAX_COORDINATOR_PORT": port,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(workdir)],
            env=common | {"SLURM_PROCID": number, "SLURM_LOCALID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        printed = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return workdir, [
        subprocess.CompletedProcess([], process.returncode, *text)
        for process, text in zip(processes, printed, strict=True)
    ]


def test_what_differs_ends_both_with_one_line(two):
    _, (lead, other) = two
    assert [lead.returncode, other.returncode] == [2, 2], lead.stderr + other.stderr
    assert [process.stdout.split()[-1] for process in (lead, other)] == ["3.0", "3.0"]
    [mine] = [line for line in other.stderr.splitlines() if line.startswith("wsca: ")]
    [heard] = [line for line in lead.stderr.splitlines() if line.startswith("wsca: ")]
    assert "the seed is 1 in process 1 and 0 in process 0" in mine
    assert heard == f"wsca: process 1 of 2 ended the run: {mine.removeprefix('wsca: ')}"


def test_one_process_of_other_devices_restores_what_two_saved(two):
    workdir, _ = two
    everywhere = NamedSharding(make_mesh(fsdp=8), PartitionSpec(("data", "fsdp")))
    array = jax.ShapeDtypeStruct((8,), "float32", sharding=everywhere)
    number = jax.ShapeDtypeStruct((), "int32", sharding=NamedSharding(everywhere.mesh, PartitionSpec()))
    target = TrainState(number, {"spread": array, "copied": array}, {}, (), {}, None, number, number)
    with Checkpoints(workdir, best_metric="m") as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]  # two latest, one best
        latest, best = checkpoints.restore_latest(target), checkpoints.restore_best(target)
    for restored, step in ((latest, 3), (best, 1)):
        assert restored.step == step
        for value in restored.state.params.values():
            np.testing.assert_array_equal(value, np.arange(8) + step)


def test_alone_nothing_is_asked_of_anyone():
    assert hosts.tell("x", lambda: {"a": (1,)}) == {"a": (1,)}
    assert hosts.gather("x", 5) == [5]
    hosts.check_same({"anything": 1})
    with hosts.lead_first("x"):
        assert hosts.is_lead()
    assert hosts.client() is None


def test_the_error_of_the_leading_process_is_its_own():
    def fail():
        raise WscaError("no")

    with pytest.raises(WscaError, match="no"):
        hosts.tell("x", fail)
