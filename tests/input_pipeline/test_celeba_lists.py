"""CelebA's text lists, whatever has happened to them: read, or one line names the file and the line."""

import re
import shutil

import pytest
from edits import DEPTHS, complaint, edited, first_change
from hypothesis import given, settings
from official_files import OfficialCeleba

from input_pipeline.celeba import files as celeba_files

LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt")
# A file that lacks a line has none to name.
NO_LINE = ("has no line here", "is listed but not there", "expected a count, a header and a line per image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    official = OfficialCeleba(tmp_path_factory.mktemp("celeba"), {"0": 2, "1": 1, "2": 1})
    folder = official.write()
    people = "".join(f"{key} {number}\n" for key, number in zip(official.keys, (7, 2880, 7, 12), strict=True))
    (folder / "identity_CelebA.txt").write_text(people)
    return folder


def test_people_are_classes_in_the_order_of_their_numbers(folder):
    classes = celeba_files.open_official(folder).classes
    assert classes.names == ("7", "12", "2880")
    assert classes.of.tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize("examples", DEPTHS)
@pytest.mark.parametrize("name", LISTS)
def test_any_edit_of_a_list_is_read_or_named(folder, tmp_path, name, examples):
    copy = shutil.copytree(folder, tmp_path / "copy")
    valid = (folder / name).read_bytes()
    where = rf"{re.escape(str(copy))}/({'|'.join(LISTS)}|img_align_celeba\.zip)"

    @settings(max_examples=examples, deadline=None)
    @given(edited(valid))
    def check(data):
        (copy / name).write_bytes(data)
        message = complaint(celeba_files.open_official, copy)
        if message is not None:
            assert re.match(where, message)
            number = re.match(rf"{re.escape(str(copy / name))}, line (\d+): ", message)
            assert number or any(reason in message for reason in NO_LINE), message
            counted = "line 1: the count says" in message or "expected a count" in message
            first = 1 if counted else first_change(valid, data)
            assert number is None or first <= int(number[1]) <= 1 + data.count(b"\n") + data.count(b"\r")

    check()


@pytest.mark.parametrize(
    ("name", "line", "text", "match"),
    [
        (LISTS[0], 4, b"00000\xff2.jpg", r"line 4: expected plain text, found bytes that are none"),
        (LISTS[1], 2, b"000002.jpg 0\xff", r"line 2: expected plain text"),
        (
            LISTS[2],
            3,
            b"000003.jpg x",
            r"line 3: expected an image name and a person's number, found '000003",
        ),
        (LISTS[2], 3, b"000003.jpg " + b"9" * 5000, r"line 3: expected an image name and a person's number"),
        (LISTS[2], 3, "000003.jpg \u0661".encode(), r"line 3: expected an image name and a person's number"),
    ],
)
def test_the_line_that_is_named_is_the_wrong_one(folder, tmp_path, name, line, text, match):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / name).read_bytes().split(b"\n")
    lines[line - 1] = text
    (copy / name).write_bytes(b"\n".join(lines))
    assert re.search(match, complaint(celeba_files.open_official, copy))
