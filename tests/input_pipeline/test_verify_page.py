"""`wsca verify --output`: a page in one file, of bounded size, the same every time, with the right labels."""

import base64
import dataclasses
import html
import re

import cv2
import numpy as np
import pytest
from official_files import OfficialCeleba
from test_cli import expect_one_line, official, run  # noqa: F401

from input_pipeline import celeba, folder
from input_pipeline.images import Box, decode, image_shape
from input_pipeline.storage import verify
from input_pipeline.storage.reencode import thumbnail
from wsca_jax.errors import ExitCode
from wsca_jax.report import data_page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    files = OfficialCeleba(tmp_path_factory.mktemp("data") / "official", {"0": 60, "1": 3})
    return files, celeba.verify(files.write(), celeba.Options())


def thumbnails(page):
    return [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]


def example(page, key):
    return next(part for part in page.split('<div class="example card">') if f"<b>{key}</b>" in part)


def chips(part):
    return re.findall(r"<span>(.*?)</span>", part)


def test_the_command_writes_one_file_that_loads_nothing(official, tmp_path, capsys):  # noqa: F811
    where = ("--data", "celeba", "--data_dir", official)
    assert run("verify", *where, "--output", tmp_path / "page") == ExitCode.DONE
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["verify.html"]
    assert str(tmp_path / "page" / "verify.html") in capsys.readouterr().out
    page = (tmp_path / "page" / "verify.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/jpeg;base64,|#)", page)
    assert "http" not in page
    assert len(thumbnails(page)) == 12


def test_examples_are_spread_over_a_split_and_bounded(made):
    report = made[1]
    shown = [[example.key for example in split.shown] for split in report.splits]
    assert [len(keys) for keys in shown] == [verify.SHOWN, 3]
    assert shown[0][0] == "000001.jpg"
    assert shown[0][-1] == "000060.jpg"
    steps = np.diff([int(key[:6]) for key in shown[0]])
    assert set(steps) <= {2, 3}


def test_the_same_folder_gives_the_same_page_whether_prepared_or_not(made, tmp_path):
    files, report = made
    folder = celeba.prepare(files.folder, tmp_path / "prepared")
    again = celeba.verify(folder, celeba.Options())
    pages = [data_page.render(report), data_page.render(again)]
    assert pages[0].replace(str(report.path), "") == pages[1].replace(str(again.path), "")


def test_an_example_shows_its_own_picture_and_its_present_attributes(made):
    files, report = made
    page = data_page.render(report)
    for key in ("000001.jpg", "000061.jpg"):
        row = files.keys.index(key)
        expected = [
            name.replace("_", " ") for name in np.array(celeba.SCHEMA.attributes)[files.labels[row] > 0]
        ]
        part = example(page, key)
        assert chips(part) == expected
        assert f"{40 - len(expected)} absent" in part
        (small,) = thumbnails(part)
        difference = np.abs(decode(small).astype(int) - decode(files.images[key]))
        assert difference.mean() < 6.0


def test_unknown_labels_are_said_to_be_unknown():
    labels, known = np.array([1, 0, 0], np.uint8), np.array([True, True, False])
    shown = verify.Shown(
        "a<b", thumbnail(cv2.imencode(".jpg", np.zeros((4, 4, 3)))[1].tobytes()), labels, known, None
    )
    part = data_page._example(shown, ("red", "round", "odd_one"))
    assert chips(part) == ["red"]
    assert "1 absent · 1 unknown" in part
    assert "<p>odd one</p>" in part
    assert "<b>a&lt;b</b>" in part


def test_rates_of_every_attribute_and_split_stand_in_the_table(made):
    files, report = made
    page = data_page.render(report)
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition('id="attributes"')[2])[1:]
    assert len(rows) == 40
    for a, row in enumerate(rows):
        values = [float(value) for value in re.findall(r'data-value="([\d.]+)">', row)]
        expected = [files.labels[:60, a].mean(), 1.0, files.labels[60:, a].mean(), 1.0]
        np.testing.assert_allclose(values, expected)
        assert html.escape(celeba.SCHEMA.attributes[a]) in row


def test_problems_and_repeated_images_are_listed_and_counted(tmp_path):
    files = OfficialCeleba(tmp_path / "official", {"0": 4, "1": 2})
    files.images["000002.jpg"] = files.images["000002.jpg"][:-40]
    files.images["000006.jpg"] = files.images["000001.jpg"]
    report = celeba.verify(files.write(), celeba.Options())
    written = data_page.write(tmp_path / "page", report)
    page = written.read_text("utf-8")
    assert "3 of them readable" in page
    (problem,) = re.findall(r"<h2>Problems</h2>.*?<li>(.*?)</li>", page)
    assert "000002.jpg" in problem
    (repeated,) = re.findall(r"<h2>Images in two splits</h2>.*?<li>(.*?)</li>", page)
    assert repeated == "000006.jpg in validation is the same image as 000001.jpg in train"
    assert (written.parent / data_page.REPEATED_FILE).read_text("utf-8").splitlines() == [repeated]


def test_of_images_in_two_splits_the_first_are_printed_and_the_rest_counted(made):
    _, report = made
    lines = tuple(f"{i}.jpg in test is the same image as {i}.jpg in train" for i in range(1234))
    printed = str(dataclasses.replace(report, repeated=lines)).splitlines()
    assert sum(" is the same image as " in line for line in printed) == verify.PRINTED
    assert "... 1,234 images stand in two splits (with --output all are listed)" in printed


def test_a_long_list_of_problems_is_cut_and_counted():
    text = data_page._lines("Problems", [f"line {i}" for i in range(1234)])
    assert text.count("<li>") == data_page.LISTED + 1
    assert "and 1,034 more" in text


def test_the_labelled_object_is_framed():
    image = cv2.imencode(".jpg", np.zeros((40, 80, 3)))[1].tobytes()
    labels = np.ones(1, np.uint8), np.ones(1, bool)
    shown = verify._show(verify.Seen("bird", labels, image, Box(10, 20, 20, 100)))
    assert shown.box == (0.25, 0.25, 0.5, 0.75)  # what sticks out is cut off
    assert "top:25.0%;left:25.0%;height:50.0%;width:75.0%" in data_page._picture(shown)


@pytest.mark.parametrize(
    ("shape", "expected"), [((300, 200), (128, 85)), ((20, 30), (20, 30)), ((1, 500), (1, 128))]
)
def test_thumbnails_are_small(shape, expected):
    image = cv2.imencode(".png", np.zeros((*shape, 3), np.uint8))[1].tobytes()
    assert image_shape(thumbnail(image)) == expected


def test_the_sum_of_a_split_tells_data_apart(tmp_path):
    files = OfficialCeleba(tmp_path / "official", {"0": 4, "1": 2})
    first = [split.content for split in celeba.verify(files.write(), celeba.Options()).splits]
    again = celeba.verify(celeba.prepare(files.folder, tmp_path / "prepared"), celeba.Options())
    assert [split.content for split in again.splits] == first
    assert re.search(rf"^SHA-256 +{first[0]} +{first[1]}$", str(again), re.MULTILINE)
    files.labels[0, 7] ^= 1
    other = [split.content for split in celeba.verify(files.write(), celeba.Options()).splits]
    files.images["000006.jpg"] = files.images["000005.jpg"]
    third = [split.content for split in celeba.verify(files.write(), celeba.Options()).splits]
    assert [a == b for a, b in zip(first, other, strict=True)] == [False, True]
    assert [a == b for a, b in zip(other, third, strict=True)] == [True, False]


def test_what_has_no_known_label_has_no_rate(tmp_path):
    (tmp_path / "attributes.csv").write_text("path,split,red,round\na.png,train,1,\n")
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    lines = str(folder.verify(tmp_path, folder.Options())).splitlines()
    assert [line.split() for line in lines if line.startswith("r")][:2] == [
        ["red", "100.0", "100.0"],
        ["round", "-", "0.0"],
    ]


def test_a_folder_that_cannot_be_written(official, tmp_path, capsys):  # noqa: F811
    (tmp_path / "file").write_text("")
    where = ("--data", "celeba", "--data_dir", official, "--output", tmp_path / "file")
    expect_one_line(capsys, run("verify", *where), str(tmp_path / "file"), "--output")
