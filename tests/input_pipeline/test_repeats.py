"""Images in two splits, found in little memory, against sets; and progress where nobody looks."""

import hashlib
import io
import sys
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import progress
from input_pipeline.storage.repeats import Repeats

IMAGES = st.lists(st.tuples(st.sampled_from(["train", "validation", "test"]), st.integers(0, 12)))


@given(IMAGES)
def test_an_image_is_named_beside_the_first_one_like_it_where_that_is_of_another_split(images):
    repeats, first, expected = Repeats(), {}, []
    for number, (split, content) in enumerate(images):
        key = f"é{number}.jpg"
        repeats.add(split, key, hashlib.sha256(bytes([content])).digest())
        there, other = first.setdefault(content, (split, key))
        if there != split:
            expected.append(f"{key} in {split} is the same image as {other} in {there}")
    assert [*repeats.between_splits()] == expected


def test_digests_that_end_in_zeros_or_differ_late_are_told_apart():
    repeats = Repeats()
    for number, digest in enumerate((bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\1" + bytes(15))):
        repeats.add("train" if number < 3 else "test", str(number), digest)
    assert [*repeats.between_splits()] == ["3 in test is the same image as 2 in train"]


def test_where_nobody_looks_long_work_says_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    for number in progress.over_images("Verifying train", 20_000, iter(range(20_000))):
        if number % 1000 == 999:
            time.sleep(0.02)
    lines = [line.strip() for line in said.getvalue().split("\n") if line.strip()]
    assert 2 <= len(lines) <= 12
    assert all(line.startswith("Verifying train: ") and "of 20,000 images" in line for line in lines)
    assert "20,000 of 20,000" in lines[-1]


def test_where_nobody_looks_short_work_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    assert [*progress.over_images("Preparing", 3, iter("abc"))] == ["a", "b", "c"]
    assert said.getvalue() == ""
    assert np.isclose(progress.EVERY, 30)
