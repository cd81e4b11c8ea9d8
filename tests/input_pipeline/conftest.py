"""Fixtures of the ground floor."""

import pytest
from official_coco import OfficialCoco
from official_cub import OfficialCub
from official_files import OfficialCeleba


@pytest.fixture
def official(tmp_path):
    """Six training, three validation and two test images, not written yet."""
    return OfficialCeleba(tmp_path / "official", {"0": 6, "1": 3, "2": 2})


@pytest.fixture
def cub(tmp_path):
    """Seven images of CUB-200-2011, not written yet."""
    return OfficialCub(tmp_path / "cub")


@pytest.fixture
def coco(tmp_path):
    """Eight objects of COCO Attributes, not written yet."""
    return OfficialCoco(tmp_path / "official")
