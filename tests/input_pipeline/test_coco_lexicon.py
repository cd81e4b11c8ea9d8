"""The 204 attributes of COCO Attributes, sorted by hand, and what their votes mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.coco_attributes.files import Options, decode_labels
from input_pipeline.coco_attributes.lexicon import ATTRIBUTES, GROUPS, SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.schema import AttributeSchema


def test_each_name_stands_in_one_group():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 204
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(ATTRIBUTES)
    assert SCHEMA.groups == ("colour", "material", "shape", "texture", "size", "other")
    assert (ATTRIBUTES[0], ATTRIBUTES[75], ATTRIBUTES[203]) == ("standing", "dirty", "family-friendly")
    assert SCHEMA.groups[SCHEMA.group_of[ATTRIBUTES.index("furry")]] == "texture"


def test_phrases_read_well():
    said = dict(zip(ATTRIBUTES, SCHEMA.phrases, strict=True))
    assert said["furry"] == "an object that is furry"
    assert said["cute / adorable"] == "an object that is cute or adorable"
    assert said["wood / wooden"] == "an object that is made of wood"
    assert said["on"] == "an object that is switched on"
    assert len(set(SCHEMA.phrases)) == 204
    assert not any("/" in phrase or "  " in phrase for phrase in SCHEMA.phrases)


def test_a_schema_may_have_an_empty_group():
    schema = AttributeSchema.from_groups("any", ("round",), {"colour": (), "shape": (0,)})
    assert schema.members == ((), (0,))


# Codes and labels.


def test_shares_become_codes_and_codes_labels():
    codes = np.array([[0, 84, 85, 126, 127, 169, 254, 255]], np.uint8)
    labels, known = decode_labels(codes, Options())
    np.testing.assert_array_equal(labels, [[0, 0, 0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(known, [[True] * 7 + [False]])
    # Thirds are 85 and 169 of 254: a limit of a third or two is met by a vote of exactly that.
    labels, known = decode_labels(codes, Options(positive=2 / 3, negative=1 / 3))
    np.testing.assert_array_equal(labels, [[0, 0, 0, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(known, [[True, True, False, False, False, True, True, False]])
    assert labels.dtype == np.uint8
    assert known.dtype == np.bool_


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted).filter(lambda limits: limits[1] > 0),
)
def test_labels_are_zero_where_unknown_and_grow_with_the_votes(codes, limits):
    labels, known = decode_labels(np.array(codes, np.uint8), Options(limits[1], limits[0]))
    assert labels.max() <= 1
    assert not labels[~known].any()
    voted = sorted((code, label) for code, label in zip(codes, labels, strict=True) if code != 255)
    assert [label for _, label in voted] == sorted(label for _, label in voted)
    assert not known[np.array(codes) == 255].any()


@pytest.mark.parametrize(
    "limits", [(0.0, 0.0), (1.1, 0.5), (0.5, 0.6), (0.5, -0.1), (float("nan"), 0.5), (0.5, float("nan"))]
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(DataError, match="negative <= positive"):
        Options(*limits)
