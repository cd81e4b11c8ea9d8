"""Schemas say no to contradictions, and survive a trip through JSON."""

import json

import pytest
from edits import DEPTHS, edited_json
from hypothesis import given, settings

from input_pipeline.schema import AttributeSchema, SchemaError

GROUPS = {"colour": (0, 2), "shape": (1,)}


def schema(**fields):
    return AttributeSchema.from_groups("toys", ("red", "round", "light_blue"), GROUPS, **fields)


def test_groups_partition_the_attributes():
    toys = schema()
    assert toys.group_of == (0, 1, 0)
    assert toys.members == ((0, 2), (1,))
    assert toys.phrases == ("red", "round", "light blue")
    assert (toys.num_attributes, toys.num_groups) == (3, 2)


@pytest.mark.parametrize(
    "groups", [{"colour": (0, 2)}, {"colour": (0, 2), "shape": (1, 2)}, {"colour": (0, 1, 2, 3)}]
)
def test_an_attribute_in_no_group_or_in_two_is_refused(groups):
    with pytest.raises(SchemaError, match="exactly once"):
        AttributeSchema.from_groups("toys", ("red", "round", "light_blue"), groups)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attributes": ("red", "red", "blue")}, "repeat: red"),
        ({"groups": ("colour", "colour")}, "group names repeat"),
        ({"phrases": ("red",)}, "phrases has 1 entries"),
        ({"group_of": (0, 1, 2)}, "0..1"),
        ({"exclusive_groups": ("size",)}, "size"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(SchemaError, match=message):
        AttributeSchema(**(schema().to_json() | fields))


def test_json_and_back():
    toys = schema(hue_sensitive=True, exclusive_groups=("shape",))
    assert AttributeSchema.from_json(json.loads(json.dumps(toys.to_json()))) == toys
    with pytest.raises(SchemaError, match="colours"):
        AttributeSchema.from_json(toys.to_json() | {"colours": 3})


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_record_is_a_schema_or_refused(examples):
    @settings(max_examples=examples, deadline=None)
    @given(edited_json([schema(exclusive_groups=("shape",)).to_json()]))
    def check(data):
        for record in json.loads(data):
            try:
                found = AttributeSchema.from_json(record)
            except SchemaError:
                continue
            assert found == AttributeSchema.from_json(json.loads(json.dumps(found.to_json())))
            assert sum(map(len, found.members)) == found.num_attributes
            assert all(isinstance(text, str) for text in (*found.attributes, *found.phrases))

    check()


def test_the_fingerprint_notices_order_names_and_grouping():
    others = [
        AttributeSchema.from_groups("toys", ("round", "red", "light_blue"), GROUPS),
        AttributeSchema.from_groups("toys", ("red", "round", "blue"), GROUPS),
        AttributeSchema.from_groups(
            "toys", ("red", "round", "light_blue"), {"colour": (0,), "shape": (1, 2)}
        ),
    ]
    assert schema().fingerprint == schema().fingerprint
    assert len({schema().fingerprint, *(other.fingerprint for other in others)}) == 4
