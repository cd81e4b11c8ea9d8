"""The page of figures: what it holds of a model with every module, what it leaves out of one with none."""

import json
import re

import cv2
import numpy as np
import pytest
from trained_scenes import build

from wsca_jax import cli, inside
from wsca_jax.errors import ExitCode
from wsca_jax.visualize.drawing import spotlight

MODULES = ("frequency", "encoder", "text", "router", "decomposer", "alignment")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`wsca visualize` on a model that was built, not trained: what a workdir would be restored to."""

    def visualize(without=(), *arguments):
        monkeypatch.setattr(inside, "load", lambda workdir, **_: build(without))
        folder = tmp_path / "figures"
        small = ("--examples", "2", "--average_over", "8", "--output", str(folder))
        code = cli.main(["visualize", "--workdir", str(tmp_path), *small, *arguments])
        return code, folder

    return visualize


def pictures(folder):
    """The pictures that the page shows, each of which is there and is more than a blank sheet."""
    shown = re.findall(r'<img src="([^"]+)"', (folder / "figures.html").read_text("utf-8"))
    for name in shown:
        assert cv2.imread(str(folder / name)).std() > 5, name
    assert sorted(shown) == sorted(path.name for path in folder.glob("*.png"))
    return shown


@pytest.mark.slow
def test_a_model_with_every_module(run, capsys):
    code, folder = run()
    assert code == ExitCode.DONE
    expected = ["example_00.png", "example_01.png", "on_object.png", "levels_00.png", "levels_01.png"]
    assert pictures(folder) == [*expected, "graph.png", "bands.png", "routing.png"]
    record = json.loads((folder / "figures.json").read_text())
    found = record["attention_on_object"]["attribute_maps"]
    assert found["overall"] > 0
    assert found["groups"]["other"] is None
    assert len(record["routing"]["load"]) == 3
    assert record["left_out"] == {}
    page = (folder / "figures.html").read_text("utf-8")
    assert f"{found['overall']:.1f}\N{MULTIPLICATION SIGN} uniform" in page
    assert "Left out" not in page
    assert "http" not in page  # it loads nothing
    assert str(folder / "figures.html") in capsys.readouterr().out


def test_a_baseline_says_in_one_line_each_what_it_does_not_have(run):
    code, folder = run(MODULES)
    assert code == ExitCode.DONE
    assert pictures(folder) == ["example_00.png", "example_01.png"]
    page = (folder / "figures.html").read_text("utf-8")
    left_out = json.loads((folder / "figures.json").read_text())["left_out"]
    assert len(left_out) == page.count("Left out: ") == 4
    for module in ("encoder", "decomposer", "frequency", "router"):
        assert f"without model.{module}" in page


def test_a_wrong_number_is_one_line(tmp_path, capsys):
    assert cli.main(["visualize", "--workdir", str(tmp_path), "--examples", "0"]) == ExitCode.BAD_INPUT
    assert "wsca: --examples is 0; expected at least 1" in capsys.readouterr().err


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["visualize", "--workdir", str(tmp_path)]) == ExitCode.BAD_INPUT
    assert "run.json does not exist" in capsys.readouterr().err


def test_a_spotlight_keeps_what_is_looked_at_and_fades_the_rest():
    image = np.zeros((8, 8, 3), np.uint8)
    image[...] = (200, 30, 30)
    weights = np.zeros((2, 2))
    weights[0, 0] = 0.3
    lit = spotlight(image, weights)
    np.testing.assert_array_equal(lit[0, 0], image[0, 0])
    assert np.ptp(lit[-1, -1]) == 0  # grey
    np.testing.assert_array_equal(spotlight(image, np.ones((2, 2))), image)
    assert np.ptp(spotlight(image, np.zeros((2, 2))), -1).max() == 0
