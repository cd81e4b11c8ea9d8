"""The whole system on the real command line: train, kill, resume, evaluate, and what it leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import random_kills
from runs import PATIENCE, ROOT, assert_same_run, log, overall, printed, wait_for

TINY = (
    "--config=configs/scenes.py:tiny",
    "--config.train.epochs=8",
    "--config.checkpoint.every_epochs=0.5",
)
EVERY_STEP = "--config.train.log_every=1"
LAST_STEP = 48


def command(*arguments: str, devices: int = 1) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {
        "JAX_LOG_COMPILES": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
    }
    return [sys.executable, "-m", "wsca_jax.cli", *arguments], environment


def wsca(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    line, environment = command(*arguments, devices=devices)
    return subprocess.run(
        line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def start(workdir: Path, *arguments: str) -> subprocess.Popen:
    """Begins to train in the background; what it prints goes to a file, because a full pipe would stop it."""
    line, environment = command("train", *arguments, "--workdir", str(workdir))
    with printed(workdir).open("w") as file:
        return subprocess.Popen(line, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


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
    assert report["data_wait"] == pytest.approx(
        report["timings"]["data_wait"] / (report["timings"]["data_wait"] + report["timings"]["step"])
    )
    history = json.loads((whole / "training_history.json").read_text())
    assert all(0 <= row["time"]["data_wait"] < 1 for row in history["train"])
    assert [row["step"] for row in history["validation"]] == list(range(6, LAST_STEP + 1, 6))
    assert "<html" in (whole / "report.html").read_text()
    assert list((whole / "tensorboard").iterdir())
    assert {"45", "48"} <= set(os.listdir(whole / "checkpoints"))


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
        figures[devices] = overall(whole / "evaluation_test.json")["mAP"]
    assert figures[1] == pytest.approx(figures[4], abs=1e-5)


def test_evaluation_of_the_last_step_equals_training_s_own(whole):
    done = wsca("evaluate", "--workdir", str(whole))
    assert done.returncode == 0, done.stderr
    again = json.loads((whole / "evaluation_validation.json").read_text())["results"]
    assert again == json.loads((whole / "training_report.json").read_text())["results"]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, *TINY)
    try:
        wait_for(process, workdir, (workdir / "checkpoints" / "6" / "manifest.json").exists)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = wsca("train", *TINY, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stderr
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_a_run_whose_newest_step_is_damaged_says_so_and_goes_on_from_the_one_before(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    step = workdir / "checkpoints" / str(LAST_STEP)
    largest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    resumed = wsca("train", *TINY, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert f"checkpoints/{LAST_STEP} is not trusted" in resumed.stderr
    assert "resuming after step 45" in resumed.stderr
    assert (workdir / "quarantine" / str(LAST_STEP)).is_dir()
    assert_same_run(workdir, whole)


@pytest.fixture(scope="module")
def whole_in_detail(tmp_path_factory) -> Path:
    """An uninterrupted run that logs every step, so that its log shows which step is done."""
    workdir = tmp_path_factory.mktemp("whole") / "detail"
    done = wsca("train", *TINY, EVERY_STEP, "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 5, 9, 14, 20, 27, 33, 40, 44])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(whole_in_detail, tmp_path, step):
    workdir = tmp_path / "run"
    process = start(workdir, *TINY, EVERY_STEP)
    lines = workdir / "metrics.jsonl"
    try:
        wait_for(process, workdir, lambda: lines.exists() and f'"step": {step}, ' in lines.read_text())
    finally:
        process.kill()
    process.wait()
    resumed = wsca("train", *TINY, EVERY_STEP, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(workdir, whole_in_detail)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path):
    struck, runs = random_kills.kill_at_random(tmp_path, kills=6, seed=1)
    assert struck.total() == 6
    assert runs >= 1


@pytest.mark.slow
def test_sigterm_saves_answers_75_and_loses_nothing(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, *TINY)
    wait_for(process, workdir, lambda: (workdir / "metrics.jsonl").exists() and log(workdir))
    process.terminate()
    code = process.wait(timeout=PATIENCE)
    assert code == 75, printed(workdir).read_text()
    assert "SIGTERM: saved step" in printed(workdir).read_text()
    resumed = wsca("train", *TINY, "--workdir", str(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_pseudo_labels_are_judged_on_hidden_labels_while_training(tmp_path):
    few = ("--config.weak_labels.known_fraction=0.5", "--config.evaluation.hidden_labels=40")
    router = ("--config.model.router=default", "--config.optimizer.ema_decay=0.9")
    accept = ("--config.loss.accept.warmup_steps=2", "--config.loss.accept.threshold_start=0.5")
    command = ("train", "--config=configs/scenes.py:tiny", "--workdir", str(tmp_path), *few, *router, *accept)
    done = wsca(*command)
    assert done.returncode == 0, done.stderr
    assert "hidden labels of training images, mAP" in done.stdout + done.stderr
    rows = [row["values"] for row in log(tmp_path) if row["kind"] == "hidden"]
    assert len(rows) == 2
    for row in rows:
        assert 0.3 < row["vote_accuracy"] <= 1
        assert 0 <= row["quality_ece"] <= 1
        assert 0 < row["confident_fraction"] <= 1
        assert 0 < row["accepted_fraction"] <= row["confident_fraction"]
        assert 0.3 < row["accepted_accuracy"] <= 1
    assert "Votes that are right, on the hidden labels" in (tmp_path / "report.html").read_text()


def test_another_configuration_in_the_same_workdir_is_refused(whole):
    done = wsca("train", *TINY, "--config.seed=1", "--workdir", str(whole))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("wsca: ")]
    assert len(lines) == 1
    assert "seed: 0 -> 1" in lines[0]
