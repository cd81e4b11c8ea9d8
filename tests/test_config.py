"""Configurations: files say what differs, the command line is typed, typos name the right key."""

import runpy
from pathlib import Path

import pytest

from input_pipeline import scenes
from wsca_jax import assembly
from wsca_jax import config as config_lib
from wsca_jax.config import ConfigError
from wsca_jax.sweep import load as load_sweep

SCENES = "configs/scenes.py:tiny"


@pytest.fixture
def config_file(tmp_path):
    def write(body: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(f"def get_config(variant=''):\n    return {body}\n")
        return str(path)

    return write


def test_file_changes_defaults_and_command_line_changes_file():
    config = config_lib.load(SCENES, ["--config.optimizer.learning_rate=5e-4", "--config.train.epochs=3"])
    assert config.optimizer.learning_rate == 5e-4
    assert config.train.epochs == 3.0
    assert isinstance(config.train.epochs, float)
    assert config.model.trunk.depth == 18
    assert config.optimizer.clip_norm == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.optimizer.learning_rte=1",
            "unknown config key 'optimizer.learning_rte'.*optimizer.learning_rate",
        ),
        ("--config.trian.epochs=1", "unknown config key 'trian.epochs'; did you mean --config.train.epochs"),
        ("--config.distortion.erase=0.2", "distortion is None, so .*; add --config.distortion=default"),
        ("--config.train.batch_size=many", "many"),
        ("--config.train.batch_size=1.5", "1.5"),
    ],
)
def test_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.load(SCENES, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "{'data': {'name': 'scenes'}, 'optimiser': {}}",
            "unknown key 'optimiser'; did you mean 'optimizer'",
        ),
        (
            "{'data': {'name': 'scenes'}, 'model': {'trunk': {'dept': 18}}}",
            "'model.trunk.dept'; did you mean 'depth'",
        ),
        (
            "{'data': {'name': 'scenes'}, 'loss': {'weights': {'clasification': 1.0}}}",
            "did you mean 'classification'",
        ),
        (
            "{'data': {'name': 'scene'}}",
            "data.name: 'scene' is not known; choose one of .*folder, scenes",
        ),
        ("{'method': 'magic', 'data': {'name': 'scenes'}}", "method: 'magic' is not known"),
        ("{'data': {'name': 'scenes'}, 'train': 3}", "train is a section"),
        ("{'data': {'name': 'scenes'}, 'train': {'batch_size': 'x'}}", "train.batch_size"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_wrong_file_is_one_clear_line(config_file, body, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.load(config_file(body))
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_variant_name_the_right_ones():
    with pytest.raises(ConfigError, match=r"no config file configs/scene.py; did you mean configs/scenes.py"):
        config_lib.load("configs/scene.py")
    with pytest.raises(ConfigError, match="choose one of quickstart"):
        config_lib.load("configs/scenes.py:huge")


def test_captions_are_off_unless_a_config_asks_for_them():
    config = config_lib.load(SCENES)
    assert config.data.text.to_dict() == {"captions": "none", "length": 32, "vocabulary": 512}
    assert not config.evaluation.captions
    asked = config_lib.load(
        SCENES, ["--config.data.text.captions=source", "--config.evaluation.captions=true"]
    )
    # What the model reads in training is the run's; what it reads in evaluation may change.
    assert config_lib.difference(config, asked) == ["data.text.captions: 'none' -> 'source'"]


def test_a_run_recorded_before_there_were_captions_has_none():
    record = config_lib.to_json(config_lib.load(SCENES))
    del record["data"]["text"], record["evaluation"]["captions"]
    assert config_lib.from_json(record, "run.json").data.text.captions == "none"


def test_json_round_trip_keeps_values_and_types():
    config = config_lib.load(SCENES, ["--config.frozen=('trunk/.*',)"])
    again = config_lib.from_json(config_lib.to_json(config), "run.json")
    assert config_lib.flat(again) == config_lib.flat(config)
    assert config_lib.difference(config, again) == []


def test_difference_shows_what_changes_meaning_and_nothing_else():
    stored = config_lib.load(SCENES)
    given = config_lib.load(
        SCENES, ["--config.train.log_every=7", "--config.seed=3", "--config.evaluation.batch_size=8"]
    )
    assert config_lib.difference(stored, given) == ["seed: 0 -> 3"]


def test_a_module_is_left_out_until_it_is_asked_for():
    assert config_lib.load(SCENES).model.router is None
    on = config_lib.load(SCENES, ["--config.model.router=default", "--config.model.router.experts=5"])
    assert on.model.router.experts == 5
    assert on.model.router.clusters > 0
    again = config_lib.from_json(config_lib.to_json(on), "run.json")
    assert config_lib.difference(on, again) == []
    off = config_lib.load("configs/celeba.py:laptop", ["--config.model.router=None"])
    assert off.model.router is None
    assert off.model.encoder.depth == 1
    record = config_lib.to_json(config_lib.load(SCENES))
    del record["model"]["router"]  # as a run was recorded before there was one
    assert config_lib.from_json(record, "run.json").model.router is None


def test_a_module_s_section_takes_none_default_or_its_own_keys():
    with pytest.raises(ConfigError, match=r"expected --config.model.router=None or default, found '3'"):
        config_lib.load(SCENES, ["--config.model.router=3"])
    with pytest.raises(ConfigError, match=r"model\.router"):
        config_lib.load(SCENES, ["--config.model.router=default", "--config.model.router.expert=5"])


def shipped():
    """Every variant of every file in configs/."""
    for path in sorted((Path(__file__).parent.parent / "configs").glob("*.py")):
        variants = runpy.run_path(str(path))["VARIANTS"]
        yield from (f"{path}:{name}" for name in variants)


@pytest.mark.parametrize("spec", [*shipped()], ids=lambda spec: Path(spec).name)
def test_shipped_configs_make_a_method(spec):
    """Nothing is compiled. A folder says itself what its labels mean: those of Scenes stand for them."""
    config = config_lib.load(spec)
    assert config.is_locked
    name = config.data.name
    schema = scenes.SCHEMA if name == "folder" else assembly.data_schema(config)
    assert assembly.build(config, schema, 10_000).method.terms


def test_celeba_s_comparison_is_of_modules_and_what_only_they_are_taught():
    """The trunk, the data, the optimiser and the regularisation of both are the same."""
    base, full = (
        config_lib.flat(config_lib.load(f"configs/celeba.py:{name}"))
        for name in ("laptop_baseline", "laptop")
    )
    changed = {key for key in base.keys() | full.keys() if base.get(key, "none") != full.get(key, "none")}
    modules = ("frequency", "encoder", "router", "decomposer", "alignment")
    assert {key for key in changed if not key.startswith(tuple(f"model.{name}" for name in modules))} == {
        "loss.balancing.kind",
        "loss.start_fraction",
        "loss.accept.warmup_steps",
        "loss.accept.ramp_steps",
        "loss.held_out.fraction",
    }


@pytest.mark.parametrize(("variant", "rows", "width"), [("ablation", 10, 16), ("wider", 4, 24)])
def test_every_row_of_celeba_s_sweeps_is_a_configuration(variant, rows, width):
    sweep = load_sweep(f"configs/sweeps/celeba.py:{variant}")
    found = [config_lib.load(row.base, row.arguments) for row in sweep.rows]
    assert len(found) == rows
    assert {config.model.trunk.width for config in found} == {width}
    assert {row.reference for row in sweep.rows} <= {row.name for row in sweep.rows}
