"""The 312 attributes of CUB-200-2011: their official order, their families, and how they read."""

import pytest

from input_pipeline.cub.attributes import SCHEMA


def test_the_schema_has_the_official_names_in_their_order():
    assert SCHEMA.num_attributes == 312
    expected = {
        1: "has_bill_shape::curved_(up_or_down)",
        10: "has_wing_color::blue",
        24: "has_wing_color::buff",
        55: "has_breast_pattern::solid",
        79: "has_tail_shape::squared_tail",
        105: "has_head_pattern::capped",
        138: "has_eye_color::purple",
        150: "has_bill_length::about_the_same_as_head",
        217: "has_wing_shape::long-wings",
        222: "has_size::very_small_(3_-_5_in)",
        236: "has_shape::perching-like",
        263: "has_primary_color::buff",
        294: "has_crown_color::blue",
        312: "has_wing_pattern::multi-colored",
    }
    assert {number: SCHEMA.attributes[number - 1] for number in expected} == expected


def test_families_and_groups():
    families = SCHEMA.families
    assert len(families) == 28
    assert [i for positions in families.values() for i in positions] == list(range(312))
    for family, positions in families.items():
        assert {SCHEMA.attributes[i].split("::")[0] for i in positions} == {family}
    groups = dict(zip(SCHEMA.groups, SCHEMA.members, strict=True))
    assert {name: len(members) for name, members in groups.items()} == {
        "colour": 239,
        "material": 31,
        "shape": 42,
    }
    assert {*families["has_eye_color"]} <= {*groups["colour"]}
    assert {*families["has_head_pattern"]} <= {*groups["material"]}
    assert {*families["has_size"], *families["has_bill_length"]} <= {*groups["shape"]}
    assert SCHEMA.hue_sensitive


@pytest.mark.parametrize(
    ("attribute", "phrase"),
    [
        ("has_bill_shape::curved_(up_or_down)", "a bird with a curved bill"),
        ("has_bill_shape::all-purpose", "a bird with an all-purpose bill"),
        ("has_wing_color::blue", "a bird with blue wings"),
        ("has_back_color::orange", "a bird with an orange back"),
        ("has_primary_color::grey", "a bird that is mostly grey"),
        ("has_tail_shape::forked_tail", "a bird with a forked tail"),
        ("has_wing_shape::long-wings", "a bird with long wings"),
        ("has_shape::owl-like", "a bird shaped like an owl"),
        ("has_size::very_small_(3_-_5_in)", "a bird that is very small (3 to 5 inches)"),
        ("has_head_pattern::unique_pattern", "a bird with a unique pattern on its head"),
        ("has_head_pattern::striped", "a bird with a striped head"),
    ],
)
def test_phrases_read_well(attribute, phrase):
    assert SCHEMA.phrases[SCHEMA.attributes.index(attribute)] == phrase


def test_phrases_are_all_different_and_none_is_left_raw():
    assert len(set(SCHEMA.phrases)) == 312
    for phrase in SCHEMA.phrases:
        assert phrase.startswith("a bird ")
        assert not set(phrase) & set("_:{}")
