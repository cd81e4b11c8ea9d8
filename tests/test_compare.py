"""Predictions that an evaluation leaves, and the command that compares models by them."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from wsca_jax import cli
from wsca_jax.compare import Spread, compare, compare_predictions, describe, spread
from wsca_jax.errors import ExitCode, WscaError
from wsca_jax.evaluations import predictions_path, read_figures, read_predictions, write_evaluation
from wsca_jax.metrics import Predictions, bootstrap
from wsca_jax.metrics.bootstrap import Interval


def predictions(seed: int, signal: float, rows: int = 150) -> Predictions:
    labels = (np.random.default_rng(0).random((rows, 4)) < 0.3).astype(np.uint8)
    logits = signal * labels + np.random.default_rng(seed).normal(size=labels.shape)
    return Predictions(
        logits.astype(np.float32),
        labels,
        np.random.default_rng(1).random(labels.shape) < 0.9,
        np.ones(rows, np.float32),
        np.arange(rows, dtype=np.int32),
    )


@pytest.fixture
def evaluated(tmp_path):
    """Two runs of a weak and two of a strong model, evaluated."""
    found = {}
    for name, signal in (("weak", 0.5), ("strong", 2.0)):
        for seed in (1, 2):
            run = tmp_path / f"{name}_{seed}"
            run.mkdir()
            found[run] = predictions(seed, signal)
            write_evaluation(run, "validation", {"step": 3}, found[run])
    return found


def mean_ap(run: Predictions) -> float:
    columns = [
        average_precision_score(run.labels[run.known[:, a], a], run.logits[run.known[:, a], a])
        for a in range(4)
    ]
    return float(np.mean(columns))


def test_predictions_come_back_bit_for_bit(evaluated):
    for run, expected in evaluated.items():
        found = read_predictions(run)
        for name in Predictions._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert read_figures(run) == {"step": 3}
        assert not list(run.glob("*.partial"))


def test_figures_never_stand_beside_predictions_of_another_evaluation(evaluated, monkeypatch):
    """Killed between the two files: neither the old figures nor half a file are left."""
    run = next(iter(evaluated))
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(run, "validation", {"step": 4}, predictions(5, 1.0))
    assert read_figures(run) is None
    np.testing.assert_array_equal(read_predictions(run).logits, evaluated[run].logits)


def test_a_damaged_or_missing_file_is_one_line(evaluated, tmp_path):
    run = next(iter(evaluated))
    with pytest.raises(WscaError, match=r"first run wsca evaluate --workdir .* --split test"):
        read_predictions(run, "test")
    path = predictions_path(run, "validation")
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"PK not an archive"):
        path.write_bytes(damaged)
        with pytest.raises(WscaError, match="not the predictions of an evaluation"):
            read_predictions(run)
    assert read_figures(tmp_path) is None


def test_compare_prints_both_means_the_interval_and_the_verdict(evaluated, capsys):
    weak, strong = list(evaluated)[:2], list(evaluated)[2:]
    words = ["compare", "--first", *map(str, weak), "--second", *map(str, strong)]
    assert cli.main(words) == ExitCode.DONE
    text = capsys.readouterr().out
    runs = list(evaluated.values())
    expected = bootstrap.compare(runs[:2], runs[2:])
    maps = [mean_ap(run) for run in runs]
    assert expected.difference == pytest.approx((maps[2] + maps[3] - maps[0] - maps[1]) / 2)
    assert f"{np.mean(maps[2:]):.3f} ± {np.std(maps[2:], ddof=1):.3f}" in text
    line = text.splitlines()[-1]
    assert line == (
        f"second - first, 150 examples of validation: {expected.difference:+.4f}, "
        f"95 % interval [{expected.low:+.4f}, {expected.high:+.4f}]: helps"
    )
    assert compare(strong, weak).verdict == "hurts"


def test_runs_of_other_images_or_labels_are_refused(evaluated):
    run = next(iter(evaluated.values()))
    for other in (
        run._replace(labels=1 - run.labels),
        run._replace(index=run.index + 1),
        Predictions(*(column[:-1] for column in run)),
        run._replace(labels=run.labels[:, :3], known=run.known[:, :3], logits=run.logits[:, :3]),
    ):
        with pytest.raises(WscaError, match="different examples or labels"):
            compare_predictions([run], [other])


def test_what_is_not_known_may_differ(evaluated):
    run = next(iter(evaluated.values()))
    other = run._replace(labels=np.where(run.known, run.labels, 1 - run.labels))
    assert compare_predictions([run], [other]).difference == 0


def test_compare_on_the_command_line_answers_bad_input(tmp_path, capsys):
    words = ["compare", "--first", str(tmp_path), "--second", str(tmp_path)]
    assert cli.main(words) == ExitCode.BAD_INPUT
    assert "run wsca evaluate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "--first", str(tmp_path), "--second"])
    assert stopped.value.code == 2


def test_spread_by_hand():
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert str(spread([0.5, 0.6])) == "0.550 ± 0.071"
    assert str(spread([0.5])) == "0.500"
    assert str(spread([])) == "-"
    assert math.isnan(spread([0.5, math.nan]).mean)


def test_an_interval_in_words():
    assert describe(Interval(0.01234, -0.001, 0.03)) == "+0.0123, 95 % interval [-0.0010, +0.0300]: undecided"
