"""The text lists of CUB-200-2011, line by line: irregular ones are read, wrong ones are named."""

import numpy as np
import pytest
from edits import DEPTHS, complaint, edited, first_change
from hypothesis import given, settings
from official_cub import label_line, text

from input_pipeline.cub import lists as cub_lists
from input_pipeline.cub.files import Options, decode_labels
from input_pipeline.errors import DataError
from input_pipeline.untrusted.text_lists import Text

# Labels of images.


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("5 1 0 1 0.5", 1),  # absent, not visible
        ("5 1 1 1 0.5", 2),
        ("5 1 0 4 27.7", 7),
        ("5 1 1 3 0  1.509", 6),  # a stray 0 and two blanks before the time
        ("5 1 0 3 0 0 1.509", 5),  # seven columns
        ("5 1 1 2", 4),  # no time
        ("  5\t1 1  4 1.5 ", 8),
    ],
)
def test_irregular_lines(line, code):
    assert cub_lists.read_labels(Text("labels", line.encode()), {5: "a.jpg"}, 1).tolist() == [[code]]


def test_lines_in_any_order_and_ids_with_gaps():
    lines = [label_line(9, 2, 1, 4), label_line(4, 1, 1, 2), label_line(9, 1, 0, 3), label_line(4, 2, 0, 1)]
    codes = cub_lists.read_labels(Text("labels", text(lines)), {9: "b", 4: "a"}, 2)
    assert codes.tolist() == [[5, 8], [4, 1]]  # in the order of the images


def test_every_code_and_what_it_means():
    present, certainty = np.array([0, 1] * 4), np.repeat([1, 2, 3, 4], 2)
    codes = np.append(cub_lists.make_codes(present, certainty), np.uint8(0))
    assert codes.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    for least in (1, 2, 3, 4):
        labels, known = decode_labels(codes, Options(certainty=least))
        assert known.tolist() == [*(certainty >= least), False]
        assert labels.tolist() == [*(present * (certainty >= least)), 0]
        assert (labels.dtype, known.dtype) == (np.uint8, np.bool_)
    assert Options().certainty == 3
    assert decode_labels(codes.reshape(3, 3), Options())[0].shape == (3, 3)


@pytest.mark.parametrize("certainty", [0, 5, 2.5, None])
def test_there_are_four_certainties(certainty):
    with pytest.raises(DataError, match="certainty must be 1"):
        Options(certainty=certainty)


# Boxes.


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ("60.0 27.0 325.0 304.0", [27, 60, 304, 325]),
        ("10.2 20.9 5.0 5.0", [20, 10, 6, 6]),  # 10.2 to 15.2, 20.9 to 25.9
        ("-3.5 -0.2 10.0 4.0", [0, 0, 4, 7]),  # cut at the edges: to 6.5 and 3.8
        ("0 0 1 1", [0, 0, 1, 1]),
    ],
)
def test_boxes_are_whole_pixels_rounded_outward(box, expected):
    boxes = cub_lists.read_boxes(Text("boxes", f"8 {box}\n".encode()), {8: "a.jpg"})
    assert boxes.tolist() == [expected]
    assert boxes.dtype == np.int32


@pytest.mark.parametrize(
    "box", ["1 1 0 5", "1 1 5 -2.0", "-9 1 5 5", "1 1 nan 5", "1 1 inf 5", "1 1 5", "1 1 5 x", "1 1 5 5 5"]
)
def test_boxes_that_are_none(box):
    with pytest.raises(DataError, match=r"boxes, line 2: expected .*found"):
        cub_lists.read_boxes(Text("boxes", f"7 1 1 5 5\n8 {box}\n".encode()), {8: "a", 7: "b"})


# Whatever happens to a list, it is read or one line says what is wrong.

IMAGES = {3: "a/x.jpg", 1: "a/y.jpg", 20: "b/z.jpg"}
PARSERS = {
    "images": ("".join(f"{i} {path}\n" for i, path in IMAGES.items()), cub_lists.read_images),
    "classes": ("1 a\n2 b\n5 c\n", cub_lists.read_classes),
    "splits": ("3 1\n1 0\n20 1\n", lambda t: cub_lists.read_choices(t, "<image_id> <x>", IMAGES, ("0", "1"))),
    "boxes": ("3 1.5 2 3 4\n20 0 0 9.25 9\n1 3 3 1 1\n", lambda t: cub_lists.read_boxes(t, IMAGES)),
    "rates": ("0.0 12.5 100\n33.3 4 5\n", lambda t: cub_lists.read_rates(t, 2, 3)),
    "names": ("1 a\n2 not b\n", lambda t: cub_lists.check_names(t, ("a", "not b"))),
    "labels": (
        "3 1 0 4 1.5\n3 2 1 3 0  2.5\n1 1 0 1 0 0 1\n1 2 1 2 3\n20 1 1 1 1\n20 2 0 2 7\n",
        lambda t: cub_lists.read_labels(t, IMAGES, 2),
    ),
}


@pytest.mark.parametrize("examples", DEPTHS)
@pytest.mark.parametrize("parser", PARSERS)
def test_any_edit_is_read_or_named(parser, examples):
    valid, read = PARSERS[parser]
    assert complaint(read, Text("list.txt", valid.encode())) is None

    @settings(deadline=None, max_examples=examples)
    @given(edited(valid.encode()))
    def check(data):
        message = complaint(read, Text("list.txt", data))
        if message is not None:
            number = int(message.removeprefix("list.txt, line ").split(":")[0])
            beyond = "found 'the end of the file'" in message  # which has a line of its own
            assert first_change(valid.encode(), data) <= number <= data.count(b"\n") + 1 + beyond

    check()
