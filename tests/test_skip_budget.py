"""Training on a shard that is really damaged: an error, or within the budget a counted row of weight 0."""

import json

import pytest
from test_cli import expect_one_line, official, run  # noqa: F401

from input_pipeline import celeba
from input_pipeline.errors import CorruptRecordError
from wsca_jax.errors import ExitCode

TINY = (
    "--config.data.images.size=16",
    "--config.model.trunk.width=8",
    "--config.model.hidden_size=8",
    "--config.train.batch_size=8",
    "--config.train.epochs=1",
    "--config.evaluation.batch_size=8",
)


def broken(shards) -> int:
    """How many training records cannot be read."""
    source = celeba.open_split(shards, "train", celeba.Options())
    count = 0
    for index in range(len(source)):
        try:
            source[index]
        except CorruptRecordError:
            count += 1
    return count


@pytest.fixture
def damaged(official, tmp_path):  # noqa: F811
    """Shards of which one training record cannot be read."""
    shards = celeba.prepare(official, tmp_path / "shards")
    (shard,) = shards.glob("*train.array_record*")
    whole = shard.read_bytes()
    shard.chmod(0o644)
    for position in range(1000, len(whole), 251):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        if broken(shards) == 1:
            return shards
    raise AssertionError("no bit of the shard belongs to one record")


@pytest.mark.slow
def test_a_damaged_record_is_an_error_or_within_the_budget_a_counted_skip(damaged, tmp_path, capsys):
    train = ("train", "--config", "configs/celeba.py:small", "--data_dir", damaged, *TINY)
    code = run(*train, "--workdir", tmp_path / "strict")
    expect_one_line(capsys, code, "train.array_record", "record", "damaged")
    assert run(*train, "--workdir", tmp_path / "run", "--config.data.skip_budget=1") == ExitCode.DONE
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["skipped"]["examples"] == 1
    more_epochs = ("--config.data.skip_budget=1", "--config.train.epochs=3")
    code = run(*train, "--workdir", tmp_path / "over", *more_epochs)
    expect_one_line(capsys, code, "could not be read", "data.skip_budget allows 1", "wsca verify")
