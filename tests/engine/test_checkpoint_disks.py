"""Checkpoints on disks that fail: not writable, full, or left half written by a killed save."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_states import at_step
from tiny_method import make_layout

from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.errors import OutOfDiskError, WscaError


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WscaError, match=r"file/run/checkpoints: cannot be written \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "run")


def test_too_little_space_is_seen_before_anything_is_written(run, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(run, 1))
        checkpoints.wait()
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2**20, 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(
            OutOfDiskError,
            match=r"checkpoints: a save needs \d+ bytes, 1048576 are free; "
            r"step 2 \(\d+ bytes\) was not saved, the last good step is 1",
        ):
            checkpoints.save(at_step(run, 2))
        assert checkpoints.restore_latest(run.abstract).step == 1


PROGRAM = """
    import dataclasses, os, resource, signal, sys
    sys.path[:0] = {paths}
    import jax, numpy as np
    from pathlib import Path
    from wsca_jax.engine.checkpoint import Checkpoints
    from wsca_jax.engine.state import TrainState
    from wsca_jax.errors import OutOfDiskError

    def state(step, size):
        zero = np.int32(0)
        noise = np.random.default_rng(step).random(size).astype(np.float32)  # does not compress
        return jax.device_put(TrainState(np.int32(step), {{"w": noise}}, {{}}, (), {{}}, None, zero, zero))

    workdir = Path(sys.argv[1])
"""


def start(program, workdir, **options):
    root = Path(__file__).resolve().parents[2]
    source = textwrap.dedent(PROGRAM).format(paths=[str(root)]) + textwrap.dedent(program)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", source, str(workdir)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def target(size):
    layout = make_layout()
    spec = {"params": {"w": jax.ShapeDtypeStruct((size,), np.float32)}}
    return layout.abstract(spec)


def test_a_disk_that_fills_up_while_saving(tmp_path):
    """The system refuses to write more: the error says so at once, and the step before is intact."""
    program = """
        checkpoints = Checkpoints(workdir)
        checkpoints.save(state(1, 1000))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        checkpoints.save(state(2, 1_000_000))
        for _ in range(600):
            try:
                checkpoints.check()
            except OutOfDiskError as error:
                print(error)
                checkpoints.save(state(3, 1000))  # something smaller still fits
                checkpoints.close()
                sys.exit(error.exit_code)
            signal.sigtimedwait([], 0.1)
    """
    process = start(program, tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, err.decode()[-2000:]
    assert f"{tmp_path}/checkpoints: the disk is full" in out.decode()
    assert "orbax" not in err.decode()  # hundreds of lines of tracebacks would bury the one
    assert "step 2 (5048588 bytes) was not saved, the last good step is 1" in out.decode()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(target(1000)).step == 3
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


def test_what_a_save_left_is_removed_while_its_threads_still_come_and_go(tmp_path):
    """Files vanish and appear between listing a folder and removing it, as locks of a failed save do."""
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    for number in range(200):
        (left / f"file-{number}").touch()
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            for number in range(200):
                with contextlib.suppress(OSError):
                    (left / f"lock-{number}").touch()
            for path in left.glob("*"):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        Checkpoints(tmp_path).close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_killed_while_saving(tmp_path):
    """SIGKILL at random moments of endless saves: what is restored is always whole, and rubbish is gone."""
    program = """
        checkpoints = Checkpoints(workdir)
        first = (checkpoints.steps() or [0])[-1] + 1
        for step in range(first, first + 10_000):
            checkpoints.save(state(step, 100_000))
            print(step, flush=True)
    """
    chance = random.Random(0)
    last = 0
    for _ in range(4):
        process = start(program, tmp_path)
        for _ in range(chance.randint(1, 5)):
            begun = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.05))  # somewhere in the save that has begun, or in the next one
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore_latest(target(100_000))
            assert not list((tmp_path / "checkpoints").glob("*.*"))
        if restored is None:
            assert begun == 1
            continue
        expected = np.random.default_rng(restored.step).random(100_000).astype(np.float32)
        np.testing.assert_array_equal(restored.state["params"]["w"], expected)
        assert restored.step >= max(last, begun - 1)  # a save begins only once the one before is complete
        last = restored.step
    assert last > 0
    assert not (tmp_path / "quarantine").exists()


def test_killed_between_the_state_and_its_checksums(saved, workdir, run, caplog):
    """Also for the very first save: the run then starts over instead of calling its checkpoints damaged."""
    (workdir / "checkpoints" / "30" / "manifest.json").unlink()
    (workdir / "checkpoints" / "30.saving").touch()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(run.abstract).step == 20
    assert "its save never finished" in caplog.text
    assert not (workdir / "quarantine").exists()
    shutil.rmtree(workdir / "checkpoints" / "10")
    (workdir / "checkpoints" / "20" / "manifest.json").unlink()
    (workdir / "checkpoints" / "20.saving").touch()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(run.abstract) is None


def test_a_killed_save_that_had_finished_is_kept(workdir, run):
    (workdir / "checkpoints" / "30.saving").touch()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(run.abstract).step == 30
    assert not list((workdir / "checkpoints").glob("*.saving"))


def test_an_unrelated_failure_of_a_save_surfaces_and_leaves_nothing(run, tmp_path, monkeypatch):
    from wsca_jax.engine import manifest

    def fail(folder):
        raise OSError(errno.EIO, "Input/output error")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(run, 1))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", fail)
            checkpoints.save(at_step(run, 2))
            with pytest.raises(WscaError, match=r"cannot be written \(Input/output error\)"):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(at_step(run, 3))
    assert checkpoints.steps() == [1, 3]
