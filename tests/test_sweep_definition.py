"""Sweeps: what a file may say."""

import re
from pathlib import Path

import pytest
from sweep_files import example, writer

from wsca_jax import cli, config
from wsca_jax.config import ConfigError
from wsca_jax.errors import ExitCode
from wsca_jax.sweep import definition

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def sweep_file(tmp_path):
    return writer(tmp_path)


def test_rows_know_their_base_their_reference_and_what_differs():
    sweep = definition.parse(example(), "mine.py")
    assert [row.name for row in sweep.rows] == ["plain", "wide", "wide-tenth"]
    assert sweep.row("wide").description == "twice the width"
    assert sweep.row("wide-tenth").arguments == [
        "--config.model.hidden_size=32",
        "--config.weak_labels.known_fraction=0.1",
    ]
    blocks = {reference: [row.name for row in rows] for reference, rows in sweep.blocks.items()}
    assert blocks == {"plain": ["plain", "wide"], "wide": ["wide", "wide-tenth"]}


def test_overrides_mean_what_they_mean_on_the_command_line():
    values = {
        "model.router": "default",
        "model.router.experts": 3,
        "optimizer.weight_decay": 0.0,
        "frozen": ("trunk/.*",),
        "evaluation.captions": True,
        "loss.balancing.kind": "trend",
    }
    row = definition.parse(example(rows={"plain": values}), "mine.py").rows[0]
    resolved = config.load(row.base, row.arguments)
    assert {key: config.flat(resolved)[key] for key in values if key != "model.router"} == {
        key: value for key, value in values.items() if key != "model.router"
    }
    gone = definition.parse(example(rows={"plain": {**values, "model.router": None}}), "mine.py").rows[0]
    with pytest.raises(ConfigError, match=r"model\.router\.experts"):
        config.load(gone.base, gone.arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "there are no rows"),
        ({"seeds": ()}, "expected distinct whole numbers"),
        ({"seeds": (1, 1)}, "expected distinct whole numbers"),
        ({"seeds": 3}, "expected distinct whole numbers"),
        ({"reference": "plane"}, "compared with 'plane', which is no row; there are: plain"),
        ({"reference": None}, "row 'plain' needs a 'reference'"),
        ({"row": {}}, "unknown key 'row'; a sweep has base, reference, seeds, rows"),
        ({"rows": {"a/b": {}}}, "row 'a/b' would not make a folder"),
        ({"rows": {"plain": None}}, "row 'plain' is None"),
        ({"rows": {"plain": {"seed": 3}}}, "row 'plain' sets seed"),
        ({"rows": {"plain": {"model.trunk": {"depth": 18}}}}, "'model.trunk.name': value"),
        ({"rows": {"plain": {"optimizer.learning_rat": 1}}}, "did you mean --config.optimizer.learning_rate"),
        (
            {"rows": {"plain": {"model.router.experts": 8}}},
            r"model.router is None, so there is no model.router.experts",
        ),
        ({"rows": {"plain": {"loss.classification": "hinge"}}}, "row 'plain': config: .*hinge"),
        ({"base": "configs/scene.py"}, "row 'plain': no config file configs/scene.py; did you mean"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_anything_starts(sweep_file, tmp_path, capsys, changes, message):
    spec = sweep_file(example(**changes))
    code = cli.main(["sweep", "--sweep", spec, "--workdir", str(tmp_path / "w")])
    lines = capsys.readouterr().err.splitlines()
    assert code == ExitCode.BAD_INPUT
    assert len(lines) == 1
    assert lines[0].startswith(f"wsca: {spec}")
    assert re.search(message, lines[0])
    assert not list(tmp_path.glob("w/*/"))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"no sweep file .*scene.py; did you mean .*scenes.py"):
        definition.load("configs/sweeps/scene.py")
    with pytest.raises(ConfigError, match="variant 'huge': ValueError: choose one of tiny"):
        definition.load("configs/sweeps/scenes.py:huge")
    with pytest.raises(ConfigError, match="defines no get_sweep"):
        definition.load("configs/scenes.py")
    (tmp_path / "list.py").write_text("def get_sweep(variant=''):\n    return []\n")
    with pytest.raises(ConfigError, match="returned a list, expected a dict"):
        definition.load(str(tmp_path / "list.py"))


def test_an_unknown_row_in_only_names_the_nearest(sweep_file, tmp_path, capsys):
    words = ["sweep", "--sweep", sweep_file(example()), "--workdir", str(tmp_path / "w"), "--only", "wid"]
    assert cli.main(words) == ExitCode.BAD_INPUT
    assert "no row 'wid'; did you mean 'wide'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_shipped_sweeps_resolve(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for row in definition.load(str(path)).rows:
        assert config.load(row.base, row.arguments).is_locked
