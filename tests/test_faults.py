"""Faults of a whole run that have no place elsewhere, made to happen on the real command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PATIENCE, ROOT, log, printed, wait_for

from wsca_jax.errors import ExitCode

pytestmark = pytest.mark.slow

TRAIN = ("train", "--config=configs/scenes.py:tiny", "--config.train.log_every=1", "--workdir")


def start(workdir: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    line = [sys.executable, str(ROOT / "tests" / "small_wsca.py"), *TRAIN, str(workdir), *arguments]
    with printed(workdir).open("w") as file:
        return subprocess.Popen(
            line,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def test_a_run_that_diverges_names_its_last_examples_and_keeps_its_checkpoints(tmp_path):
    workdir = tmp_path / "run"
    process = start(
        workdir, "--config.optimizer.learning_rate=1e30", "--config.train.stop_after_non_finite=3"
    )
    assert process.wait(PATIENCE) == ExitCode.DIVERGED, printed(workdir).read_text()
    dumped = json.loads((workdir / "diverged.json").read_text())
    assert len(dumped["examples"]) == 16
    assert len({*dumped["examples"]}) == 16
    assert "3 steps in a row were not finite" in printed(workdir).read_text().splitlines()[-1]
    last = [row["values"]["skipped"] for row in log(workdir) if row["kind"] == "train"][-1]
    assert last == 3


def test_a_second_sigterm_ends_a_run_at_once(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, WSCA_PAUSE="300")
    wait_for(process, workdir, lambda: "compiling first" in printed(workdir).read_text())
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
