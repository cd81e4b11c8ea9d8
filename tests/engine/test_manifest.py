"""The manifest: every change to every file is seen."""

import json

import pytest

from wsca_jax.engine import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "array").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "state" / "empty").touch()
    (tmp_path / "metadata").write_text("{}")
    manifest.write(tmp_path)
    return tmp_path


def test_an_untouched_folder_is_undamaged(folder):
    assert manifest.damage(folder) is None
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert [file["path"] for file in listed] == ["metadata", "state/d/array", "state/empty"]
    # sha256sum of two bytes "{}", computed outside this project.
    assert listed[0]["sha256"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_each_kind_of_damage_is_named(folder):
    array = folder / "state" / "d" / "array"
    good = array.read_bytes()
    array.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert manifest.damage(folder) == "state/d/array is not what was written: its SHA-256 differs"
    array.write_bytes(good[:-1])
    assert manifest.damage(folder) == "state/d/array holds 5119 bytes, expected 5120"
    array.unlink()
    assert manifest.damage(folder) == "state/d/array is missing"
    array.write_bytes(good)
    assert manifest.damage(folder) is None
    (folder / "state" / "stray").touch()
    assert manifest.damage(folder) == "state/stray is not in its manifest"


def test_the_manifest_itself_can_be_damaged(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert "manifest.json cannot be read" in manifest.damage(folder)
    path.write_text(text.replace('"format_version": 1', '"format_version": 2'))
    assert "format version 2, expected 1" in manifest.damage(folder)
    path.unlink()
    assert "has no manifest.json" in manifest.damage(folder)


def test_any_flipped_bit_of_the_manifest_is_seen_or_harmless(folder):
    """A flip in blank space or in the name of the listing's order changes nothing that is relied on."""
    path = folder / "manifest.json"
    good = path.read_bytes()
    unseen = []
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        if manifest.damage(folder) is None:
            unseen.append(good[position : position + 1])
    assert not unseen
