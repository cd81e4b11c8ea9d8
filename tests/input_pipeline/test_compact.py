"""Compact strings are a sequence like any other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.storage.compact import CompactStrings, OptionalStrings


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])))))
def test_what_is_added_comes_back(parts):
    strings = CompactStrings()
    for part in parts:
        strings.extend(part)
    expected = [string for part in parts for string in part]
    assert list(strings) == expected
    assert len(strings) == len(expected)
    assert strings[1:-1] == expected[1:-1]
    assert list(OptionalStrings(strings)) == [string or None for string in expected]
    assert strings.has_text == any(expected)


def test_positions_count_from_either_end_and_stop_there():
    strings = CompactStrings(["é", "", "xyz"])
    assert (strings[0], strings[-1], strings[-3]) == ("é", "xyz", "é")
    for outside in (3, -4):
        with pytest.raises(IndexError):
            strings[outside]
    assert OptionalStrings(strings)[1:] == [None, "xyz"]


def test_names_take_the_bytes_they_have_and_eight_each():
    strings = CompactStrings(f"{i:06d}.jpg" for i in range(1000))
    assert strings.nbytes == 1000 * (10 + 8) + 8
