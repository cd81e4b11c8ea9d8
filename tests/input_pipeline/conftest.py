"""Fixtures of the ground floor."""

import pytest
from official_files import OfficialCeleba


@pytest.fixture
def official(tmp_path):
    """Six training, three validation and two test images, not written yet."""
    return OfficialCeleba(tmp_path / "official", {"0": 6, "1": 3, "2": 2})
