"""Checkpoints: bit-equal onto any devices, damage of every kind noticed, the step before it used."""

import dataclasses
import logging
import os
import random
import shutil
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from saved_states import at_step
from tiny_method import Run, assert_bit_equal, make_batch, make_layout, make_method

from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.errors import DamagedCheckpointError, WscaError


def test_training_goes_on_before_storage_begins_and_the_saved_step_stays_what_it_was(tmp_path, monkeypatch):
    run, go_on, begun = Run(layout=make_layout(2, 4), ema_decay=0.9), threading.Event(), []
    store = ocp.CheckpointManager.save

    def store_late(*arguments, **options):
        begun.append(go_on.wait(60))
        return store(*arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", store_late)
    run.step(make_batch(0))
    expected = jax.tree.map(lambda x: np.array(x, copy=True), run.state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
        for number in range(1, 4):  # each takes the state before it for its own memory
            assert run.step(make_batch(number)).finite
        assert not begun
        go_on.set()
        restored = checkpoints.restore_latest(run.abstract)
    assert begun == [True]
    assert restored.step == 1
    assert_bit_equal(restored.state, expected)


def step_files(workdir, step):
    return sorted(p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())


def flip_bit(path, chance):
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1), (2, 2), (1, 8)])
def test_a_state_of_eight_devices_restores_bit_equal_onto_others(saved, data, fsdp):
    workdir, states = saved
    here = Run(layout=make_layout(data, fsdp), ema_decay=0.9)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(here.abstract)
    assert restored.step == 30
    assert restored.metrics == {"mAP": pytest.approx(1 / 30)}
    assert_bit_equal(restored.state, states[30])
    assert jax.tree.structure(restored.state) == jax.tree.structure(here.state)
    jax.tree.map(
        lambda x, spec: np.testing.assert_equal(x.sharding, spec.sharding), restored.state, here.abstract
    )
    here.state = restored.state
    assert here.step(make_batch(1)).finite


def test_the_best_step_is_the_one_with_the_best_metric(saved, run):
    workdir, states = saved
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_best(run.abstract)
    assert restored.step == 10
    assert_bit_equal(restored.state, states[10])


def test_some_fields_can_be_read_alone(saved, run):
    workdir, states = saved
    target = {"ema": run.abstract.ema, "step": run.abstract.step}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(target)
    assert_bit_equal(restored.state, {"ema": states[30].ema, "step": states[30].step})


def test_the_latest_and_the_best_are_kept(run, tmp_path):
    with Checkpoints(tmp_path, keep_latest=2, keep_best=1) as checkpoints:
        for step, score in ((1, 0.2), (2, 0.9), (3, float("nan")), (4, 0.5), (5, None), (6, 0.1)):
            checkpoints.save(at_step(run, step), None if score is None else {"mAP": score})
    assert checkpoints.steps() == [2, 5, 6]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
    with Checkpoints(tmp_path) as checkpoints:  # a restarted run knows the best one as well
        checkpoints.save(at_step(run, 7), {"mAP": 0.3})
        assert checkpoints.restore_best(run.abstract).step == 2
    assert checkpoints.steps() == [2, 6, 7]


def test_a_saved_state_does_not_change_when_training_goes_on(tmp_path):
    """The save runs in the background while its arrays are donated to the next steps."""
    run = Run(layout=make_layout(2, 4), ema_decay=0.9)
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(4):
            run.step(make_batch(number))
            expected = run.host()
            checkpoints.save(run.state)
            run.step(make_batch(number))
            assert_bit_equal(checkpoints.restore_latest(run.abstract).state, expected)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole = Run(make_method(dropout=0.3), make_layout(2, 2), ema_decay=0.9)
    for number in range(2):
        whole.step(make_batch(number))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(whole.state)
    expected = [float(whole.step(make_batch(number)).loss) for number in (2, 3)]
    resumed = Run(make_method(dropout=0.3), make_layout(2, 2), ema_decay=0.9)
    with Checkpoints(tmp_path) as checkpoints:
        resumed.state = checkpoints.restore_latest(resumed.abstract).state
    assert [float(resumed.step(make_batch(number)).loss) for number in (2, 3)] == expected
    assert_bit_equal(resumed.state, whole.state)


def test_a_fresh_workdir_has_nothing_to_restore(run, tmp_path):
    with Checkpoints(tmp_path / "new" / "run") as checkpoints:
        assert checkpoints.restore_latest(run.abstract) is None
        assert checkpoints.restore_best(run.abstract) is None


def test_saving_a_step_twice_keeps_the_first(run, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(run, 1), {"mAP": 0.5})
        checkpoints.save(at_step(run, 1))
        assert checkpoints.restore_latest(run.abstract).metrics == {"mAP": 0.5}


# Damage


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "add"])
def test_a_damaged_step_is_quarantined_and_the_one_before_restored(saved, workdir, run, caplog, fault, seed):
    chance = random.Random(f"{fault} {seed}")
    files = [path for path in step_files(workdir, 30) if path.stat().st_size]
    victim = chance.choice(files)
    if fault == "flip":
        flip_bit(victim, chance)
    elif fault == "truncate":
        os.truncate(victim, chance.randrange(victim.stat().st_size))
    elif fault == "remove":
        victim.unlink()
    else:
        (victim.parent / "another").write_bytes(b"1")
    with caplog.at_level(logging.WARNING), Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore_latest(run.abstract)
    assert restored.step == 20
    assert_bit_equal(restored.state, saved[1][20])
    assert (workdir / "quarantine" / "30").is_dir()
    assert checkpoints.steps() == [10, 20]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("wsca_jax")]
    assert len(lines) == 1
    assert "checkpoints/30 is not trusted" in lines[0]
    assert "quarantine/30" in lines[0]


def test_the_run_goes_on_from_the_step_before_and_saves_that_step_anew(workdir, run):
    flip_bit(step_files(workdir, 30)[-1], random.Random(0))
    for _ in range(2):
        with Checkpoints(workdir, keep_latest=3) as checkpoints:
            restored = checkpoints.restore_latest(run.abstract)
            checkpoints.save(dataclasses.replace(restored.state, step=restored.state.step * 0 + 30))
        assert checkpoints.steps() == [10, 20, 30]
    flip_bit(step_files(workdir, 30)[-1], random.Random(1))
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(run.abstract).step == 20
    assert sorted(p.name for p in (workdir / "quarantine").iterdir()) == ["30", "30-1"]


def test_damage_found_while_saves_go_on(workdir, run):
    """The best step is damaged under a living run: the next best is read, and saving still works."""
    with Checkpoints(workdir, keep_latest=3) as checkpoints:
        checkpoints.save(at_step(run, 40))
        checkpoints.wait()
        flip_bit(step_files(workdir, 10)[0], random.Random(0))
        assert checkpoints.restore_best(run.abstract).step == 20
        checkpoints.save(at_step(run, 50))
    assert checkpoints.steps() == [20, 30, 40, 50]


def test_half_a_copy_is_not_a_checkpoint(saved, workdir, run):
    """Copied without its manifest, or cut short, under the name of a newer step."""
    source = workdir / "checkpoints" / "30"
    files = step_files(workdir, 30)
    for number, kept in (
        (40, files[: len(files) // 2]),
        (50, [p for p in files if p.name != "manifest.json"]),
    ):
        for path in kept:
            copy = workdir / "checkpoints" / str(number) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore_latest(run.abstract)
    assert restored.step == 30
    assert_bit_equal(restored.state, saved[1][30])
    assert sorted(p.name for p in (workdir / "quarantine").iterdir()) == ["40", "50"]


def test_when_no_step_is_good_nothing_is_restored_however_often_it_is_tried(workdir, run):
    for step in (10, 20, 30):
        flip_bit(step_files(workdir, step)[-1], random.Random(step))
    for _ in range(2):
        with (
            Checkpoints(workdir) as checkpoints,
            pytest.raises(DamagedCheckpointError, match=r"no checkpoint passes its checksums .*10, 20, 30"),
        ):
            checkpoints.restore_latest(run.abstract)


def test_a_reader_moves_nothing(workdir, run):
    flip_bit(step_files(workdir, 30)[-1], random.Random(0))
    (workdir / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "50").mkdir()
    (workdir / "checkpoints" / "50.saving").touch()  # a trainer is at it
    before = sorted(workdir.rglob("*"))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
        assert checkpoints.restore_latest(run.abstract).step == 20
        with pytest.raises(ValueError, match="read-only"):
            checkpoints.save(run.state)
    assert sorted(workdir.rglob("*")) == before


# A checkpoint of something else


def test_a_state_of_another_shape_is_refused(workdir, run):
    def refused(target, message):
        with Checkpoints(workdir) as checkpoints, pytest.raises(WscaError, match=message):
            checkpoints.restore_latest(target)

    frozen = Run(make_method(frozen=("head/.*",)), ema_decay=0.9)
    refused(frozen.abstract, "opt_state/1/0/mu/head/bias is in the checkpoint and not in the model")
    refused(Run().abstract, "ema/.* is in the checkpoint and not in the model")
    biased = Run(make_method(batch_norm=False)).abstract.params
    refused({"params": biased}, "params/trunk/bias is missing")
    wide = dataclasses.replace(
        run.abstract,
        params=jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), run.abstract.params),
    )
    refused(wide, r"params/head/bias is float32\[8\], expected float32\[8,2\]")
    assert not (workdir / "quarantine").exists()


def test_the_best_metric_must_be_there(run, tmp_path):
    with (
        Checkpoints(tmp_path, best_metric="f1") as checkpoints,
        pytest.raises(WscaError, match="expected one of loss"),
    ):
        checkpoints.save(run.state, {"loss": 1.0})


@pytest.mark.parametrize("options", [{"keep_latest": 1}, {"keep_best": -1}])
def test_impossible_retention_is_refused(tmp_path, options):
    with pytest.raises(WscaError, match=next(iter(options))):
        Checkpoints(tmp_path, **options)
