"""The folder that a user's three commands are measured on says of each bird what its species is."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

from input_pipeline import folder
from input_pipeline.cub import SCHEMA

ROOT = Path(__file__).parents[2]


def make(*arguments):
    command = [sys.executable, "benchmarks/cub_as_folder.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_birds_are_labelled_like_their_species(cub, tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "birds"
    done = make("--data_dir", cub.write(), "--output", output)
    assert done.returncode == 0, done.stderr
    with (output / "attributes.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(cub.keys)
    first = next(iter(rows.values()))
    chosen = [SCHEMA.attributes.index(name) for name in first if name not in ("path", "split")]
    rates = np.array([cub.percentages[cub.class_names.index(key.split("/")[0])] for key in cub.keys]) / 100
    known = (rates >= 0.6) | (rates <= 0.4)
    share = ((rates >= 0.6) & known).sum(0) / np.maximum(known.sum(0), 1)
    assert chosen == np.flatnonzero((share >= 0.25) & (share <= 0.75)).tolist() != []
    for key, rate in zip(cub.keys, rates[:, chosen], strict=True):
        cells = [rows[key][SCHEMA.attributes[i]] for i in chosen]
        assert cells == ["1" if r >= 0.6 else "0" if r <= 0.4 else "" for r in rate]
        assert (output / key).read_bytes() == cub.images[key]
    assert len(folder.open_split(output, "test", folder.Options())) > 0


def test_wrong_folders_are_one_line(cub, tmp_path):
    for arguments, said in (
        (("--data_dir", tmp_path / "nothing", "--output", tmp_path / "birds"), "nothing"),
        (("--data_dir", cub.write(), "--output", tmp_path), "already there"),
    ):
        done = make(*arguments)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
