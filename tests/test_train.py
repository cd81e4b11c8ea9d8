"""The whole system on the real command line: train, kill, resume, evaluate, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Seconds between starting a process and its first step: imports and a compilation, on a busy machine.
PATIENCE = 400
TINY = ("--config", "configs/scenes.py:tiny", "--config.checkpoint.every_epochs=0.5")
EVERY_STEP = "--config.train.log_every=1"
LAST_STEP = 12


def command(*arguments: str, devices: int = 1) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {
        "JAX_LOG_COMPILES": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return [sys.executable, "-m", "wsca_jax.cli", *arguments], environment


def wsca(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    line, environment = command(*arguments, devices=devices)
    return subprocess.run(
        line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def start(*arguments: str) -> subprocess.Popen:
    line, environment = command(*arguments)
    return subprocess.Popen(
        line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def log(workdir: Path) -> list[dict]:
    """Rows of the log without what the clock decides."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "kind", "values")} for row in rows]


def wait_for(process: subprocess.Popen, happened) -> None:
    begun = time.monotonic()
    while not happened():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.01)


def arrays(workdir: Path, step: int = LAST_STEP) -> dict[str, np.ndarray]:
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    path = workdir / "checkpoints" / str(step) / "state"
    metadata = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {str(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_run(workdir: Path, whole: Path) -> None:
    """Every array of the last state and every logged value, bit for bit."""
    assert log(workdir) == log(whole)
    found, expected = arrays(workdir), arrays(whole)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = wsca("train", *TINY, "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    (workdir / "stderr").write_text(done.stderr)
    return workdir


def test_a_run_leaves_what_it_promises(whole):
    report = json.loads((whole / "training_report.json").read_text())
    assert {"compile", "data_wait", "step", "checkpoint", "evaluation", "total"} <= report["timings"].keys()
    assert len(report["results"]["attributes"]) == 36
    assert report["steps"] == {"first": 0, "last": LAST_STEP}
    assert report["config"]["model"]["trunk"]["depth"] == 18
    history = json.loads((whole / "training_history.json").read_text())
    assert [row["step"] for row in history["validation"]] == [6, 12]
    assert "<html" in (whole / "report.html").read_text()
    assert list((whole / "tensorboard").iterdir())
    assert sorted(os.listdir(whole / "checkpoints")) == ["12", "6", "9"]


def test_a_run_compiles_each_function_once(whole):
    compiled = re.findall(r"Compiling jit\((\w+)\)", (whole / "stderr").read_text())
    assert compiled.count("train_step") == 1
    assert compiled.count("eval_step") == 1


def test_evaluate_needs_the_workdir_alone_and_any_number_of_devices(whole):
    figures = {}
    for devices in (1, 4):
        done = wsca("evaluate", "--workdir", str(whole), "--split", "test", devices=devices)
        assert done.returncode == 0, done.stderr
        assert "colour" in done.stdout
        figures[devices] = json.loads((whole / "evaluation_test.json").read_text())["results"]["overall"][
            "mAP"
        ]
    assert figures[1] == pytest.approx(figures[4], abs=1e-5)


def test_evaluation_of_the_last_step_equals_training_s_own(whole):
    done = wsca("evaluate", "--workdir", str(whole))
    assert done.returncode == 0, done.stderr
    again = json.loads((whole / "evaluation_validation.json").read_text())["results"]
    assert again == json.loads((whole / "training_report.json").read_text())["results"]


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start("train", *TINY, "--workdir", str(workdir))
    try:
        wait_for(process, (workdir / "checkpoints" / "6" / "manifest.json").exists)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = wsca("train", *TINY, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stderr
    assert_same_run(workdir, whole)


@pytest.fixture(scope="module")
def whole_in_detail(tmp_path_factory) -> Path:
    """An uninterrupted run that logs every step, so that its log shows which step is done."""
    workdir = tmp_path_factory.mktemp("whole") / "detail"
    done = wsca("train", *TINY, EVERY_STEP, "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, LAST_STEP))
def test_killed_at_any_step_and_resumed_equals_uninterrupted(whole_in_detail, tmp_path, step):
    workdir = tmp_path / "run"
    process = start("train", *TINY, EVERY_STEP, "--workdir", str(workdir))
    lines = workdir / "metrics.jsonl"
    try:
        wait_for(process, lambda: lines.exists() and f'"step": {step}, ' in lines.read_text())
    finally:
        process.kill()
    process.wait()
    resumed = wsca("train", *TINY, EVERY_STEP, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(workdir, whole_in_detail)


def test_sigterm_saves_answers_75_and_loses_nothing(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start("train", *TINY, "--workdir", str(workdir))
    wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and log(workdir))
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        pytest.fail(f"the run ended before the signal came:\n{output}")
    assert process.returncode == 75, output
    assert "SIGTERM: saved step" in output
    resumed = wsca("train", *TINY, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(workdir, whole)


def test_another_configuration_in_the_same_workdir_is_refused(whole):
    done = wsca("train", *TINY, "--config.seed=1", "--workdir", str(whole))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("wsca: ")]
    assert len(lines) == 1
    assert "seed: 0 -> 1" in lines[0]
