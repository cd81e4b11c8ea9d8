"""What a file may claim: every cap is documented, and the user's to change."""

import dataclasses
from pathlib import Path

import pytest

from input_pipeline import images
from input_pipeline.untrusted import archives, unpickling
from input_pipeline.untrusted.bounded import from_environment

DOCUMENT = Path(__file__).parents[2] / "docs" / "input-pipeline.md"
LIMITS = {
    "WSCA_ARCHIVE": archives.Limits,
    "WSCA_PICKLE": unpickling.Limits,
    "WSCA_IMAGE": images.Limits,
}
CAPS = [(prefix, field.name) for prefix, kind in LIMITS.items() for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("prefix", "field"), CAPS)
def test_every_cap_is_read_from_its_documented_variable(monkeypatch, prefix, field):
    kind, variable = LIMITS[prefix], f"{prefix}_{field.upper()}"
    monkeypatch.setenv(variable, "12345")
    assert from_environment(kind, prefix) == dataclasses.replace(kind(), **{field: 12345})
    assert f"`{variable}`" in DOCUMENT.read_text("utf-8")
