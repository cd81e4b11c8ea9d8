"""A run's record: JSON only, whole or not there, and never taken for another run's."""

import dataclasses
import json

import pytest
from tiny_method import SCHEMA

from wsca_jax.engine.record import has_run_record, read_run_record, write_run_record
from wsca_jax.errors import WscaError

CONFIG = {"seed": 0, "optimizer": {"learning_rate": 1e-4, "undecayed": ["a/.*"]}, "name": None}


@pytest.fixture
def workdir(tmp_path):
    write_run_record(tmp_path / "run", CONFIG, SCHEMA, ("zebra", "the"))
    return tmp_path / "run"


def test_a_record_comes_back_as_it_was(workdir):
    record = read_run_record(workdir, SCHEMA)
    assert record.config == CONFIG
    assert record.schema == SCHEMA
    assert record.words == ("zebra", "the")
    assert [path.name for path in workdir.iterdir()] == ["run.json"]
    assert set(json.loads((workdir / "run.json").read_text())) == {
        "format_version",
        "config",
        "schema",
        "words",
    }


def test_a_record_written_before_there_were_words_has_none(workdir):
    record = json.loads((workdir / "run.json").read_text())
    del record["words"]
    (workdir / "run.json").write_text(json.dumps(record))
    assert read_run_record(workdir).words == ()


def test_writing_again_replaces_it(workdir):
    write_run_record(workdir, CONFIG | {"seed": 1}, SCHEMA)
    assert read_run_record(workdir).config["seed"] == 1


def test_no_record(tmp_path):
    assert not has_run_record(tmp_path)
    with pytest.raises(WscaError, match=r"run\.json does not exist; expected the workdir of a run"):
        read_run_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "predicts the 8 attributes of 'tiny', the data has the 8 of 'other'"),
        (
            {"attributes": ("b", *SCHEMA.attributes[1:])},
            "attribute 0 of schema 'tiny' was 'a0', the data has 'b'",
        ),
        ({"group_of": (1, *SCHEMA.group_of[1:])}, "schema 'tiny' has changed in group_of"),
    ],
)
def test_another_schema_is_refused(workdir, change, message):
    with pytest.raises(WscaError, match=message):
        read_run_record(workdir, dataclasses.replace(SCHEMA, **change))


def test_a_newer_format_is_refused(workdir):
    path = workdir / "run.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(WscaError, match="format version 2, this wsca reads up to 1; update wsca"):
        read_run_record(workdir)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format_version": 1}',
        '{"format_version": 1, "config": {}, "schema": 3}',
        '{"format_version": 1, "config": {}, "schema": {"name": "x"}}',
    ],
)
def test_a_damaged_record_is_named(workdir, text):
    (workdir / "run.json").write_text(text)
    with pytest.raises(WscaError, match=r"run\.json: not the record of a run"):
        read_run_record(workdir)


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WscaError, match=r"file/run: cannot be written \(Not a directory\)"):
        write_run_record(tmp_path / "file" / "run", CONFIG, SCHEMA)


def test_what_is_no_json_never_reaches_the_disk(workdir):
    with pytest.raises(TypeError):
        write_run_record(workdir, {"seed": object()}, SCHEMA)
    assert read_run_record(workdir).config == CONFIG
