"""A user's folder of images: right tables arrive intact, wrong ones are one line that says where and what."""

import csv
import logging
import os
import re

import numpy as np
import pytest
from edits import DEPTHS, complaint, edited, first_change
from hypothesis import given, settings
from hypothesis import strategies as st
from official_folder import CELL, OfficialFolder, table_text

from input_pipeline.errors import DataError
from input_pipeline.folder import table as folder_table
from input_pipeline.folder.attributes import read_header
from input_pipeline.folder.files import open_official
from input_pipeline.folder.rows import SPLITS, Wrong, convert
from input_pipeline.folder.table import read_head, read_table

CODES = [[1, 0, 2], [0, 1, 2], [2, 2, 1], [1, 1, 1], [0, 0, 0]]


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return OfficialFolder(tmp_path / "mine")


def assert_intact(mine, official):
    assert list(official.keys) == list(mine.images)
    np.testing.assert_array_equal(official.codes, CODES)
    assert official.codes.dtype == np.uint8
    assert {name: rows.tolist() for name, rows in official.splits.items()} == {
        "train": [0, 1],
        "validation": [2, 4],
        "test": [3],
    }
    for row, key in enumerate(official.keys):
        assert official.read_image(row) == mine.images[key]
    assert official.schema.attributes == ("red", "round", "light_blue")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_every_dialect(mine, delimiter, line_end, bom):
    quoting = csv.QUOTE_ALL if bom else csv.QUOTE_MINIMAL
    folder = mine.write(delimiter=delimiter, line_end=line_end, bom=bom, quoting=quoting)
    official = open_official(folder)
    assert_intact(mine, official)
    assert (official.classes, official.boxes, official.captions) == (None, None, None)
    assert (official.origin, official.schema.groups) == (folder, ("attributes",))


def test_captions_classes_and_groups(mine):
    mine.header[2:2] = ["caption", "class"]
    mine.group_row = ["group", "", "", "", "hue", "form", "hue"]
    captions = ["a, b", "", " two\nlines ", '"x"', ""]
    for row, caption, name in zip(mine.rows, captions, "zebra", strict=True):
        row[2:2] = [caption, name]
    official = open_official(mine.write())
    assert_intact(mine, official)
    assert list(official.captions) == ["a, b", None, "two\nlines", '"x"', None]
    assert official.classes.names == ("a", "b", "e", "r", "z")
    assert official.classes.of.tolist() == [4, 2, 1, 3, 0]
    assert (official.classes.of.dtype, official.classes.rates) == (np.int32, None)
    assert official.schema.groups == ("hue", "form")


def test_captions_that_are_all_empty_are_none(mine):
    mine.header.append("caption")
    mine.rows = [[*row, " "] for row in mine.rows]
    assert open_official(mine.write()).captions is None


def test_blank_lines_spaces_and_other_spellings_are_harmless(mine):
    lines = table_text([mine.header, *mine.rows]).decode().splitlines()
    lines[1] = "./a.jpg , Train ,1 , 0,  "
    lines[3] = lines[3].replace("er/", "er//")
    text = "\n\n" + "\n,,,,\n  \n".join(lines)
    assert_intact(mine, open_official(mine.write(table=text.encode())))


def test_schema_yaml_is_read(mine):
    mine.schema = "name: toys\ngroups: {b: [round], a: [red, light_blue]}"
    assert open_official(mine.write()).schema.groups == ("b", "a")
    (mine.folder / "schema.yaml").rename(mine.folder / "schema.yml")
    with pytest.raises(DataError, match=r"schema\.yml: call it schema\.yaml"):
        open_official(mine.folder)


def test_without_splits_a_path_has_its_own(tmp_path):
    rows = [["path", "a"], *([f"{i}.jpg", "1"] for i in range(2000))]
    (tmp_path / "t.csv").write_bytes(table_text(rows))
    first = splits_of(tmp_path / "t.csv")
    shares = np.bincount(list(first.values())) / 2000
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)
    (tmp_path / "t.csv").write_bytes(table_text([rows[0], *rows[:1000:-1]]))
    again = splits_of(tmp_path / "t.csv")
    assert again == {key: first[key] for key in again}
    assert [SPLITS[first[f"{i}.jpg"]] for i in range(3)] == EXPECTED_SPLITS


# Pinned: an image must not change its split from one version to the next.
EXPECTED_SPLITS = ["test", "train", "test"]


def splits_of(path):
    table = read_table(path, read_head(path))
    return dict(zip(table.keys, table.splits.tolist(), strict=True))


def test_which_table(mine):
    mine.write(name="mine.CSV")
    (mine.folder / "._mine.csv").write_text("")
    assert_intact(mine, open_official(mine.folder))
    (mine.folder / "other.csv").write_text("")
    with pytest.raises(DataError, match=r"found mine\.CSV, other\.csv; call the right one attributes\.csv"):
        open_official(mine.folder)
    mine.write(name="labels.csv")
    assert_intact(mine, open_official(mine.folder))
    mine.write(name="attributes.csv")
    with pytest.raises(DataError, match=r"found attributes\.csv, labels\.csv"):
        open_official(mine.folder)


def test_no_table_and_no_folder(tmp_path):
    with pytest.raises(DataError, match="found no CSV; write one with a header"):
        open_official(tmp_path)
    with pytest.raises(DataError, match="check --data_dir"):
        open_official(tmp_path / "absent")


def longer_but_no_later(path):
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, (1, 1))


def test_the_fingerprint_notices_every_change(mine):
    seen = {open_official(mine.write()).fingerprint}
    os.utime(mine.folder / "a.jpg", (1, 1))
    for change in (
        lambda: None,
        lambda: os.utime(mine.folder / "b.png", (1, 1)),
        lambda: longer_but_no_later(mine.folder / "b.png"),
        lambda: (mine.folder / "attributes.csv").write_bytes(table_text([mine.header, *mine.rows[::-1]])),
        lambda: (mine.folder / "schema.yaml").write_text("name: a"),
    ):
        change()
        before = len(seen)
        seen.add(open_official(mine.folder).fingerprint)
        assert len(seen) == before + 1
    (mine.folder / "not_listed.jpg").write_bytes(b"")
    assert open_official(mine.folder).fingerprint in seen


def test_an_attribute_nobody_labelled_is_a_warning(mine, caplog):
    with caplog.at_level(logging.WARNING):
        assert_intact(mine, open_official(mine.write()))
    (record,) = caplog.records
    assert re.search(r"attributes\.csv: no training image has a label for 'light_blue';", record.getMessage())


def test_links_may_lead_about_in_the_folder_and_not_out_of_it(mine, tmp_path):
    folder = mine.write()
    (folder / "deep").rename(folder / "elsewhere")
    (folder / "deep").symlink_to("elsewhere", target_is_directory=True)
    (folder / "elsewhere" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "a.jpg").rename(folder / "real.jpg")
    (folder / "a.jpg").symlink_to("real.jpg")
    assert_intact(mine, open_official(folder))
    (folder / "elsewhere").rename(tmp_path / "outside")
    (folder / "deep").unlink()
    (folder / "deep").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(DataError, match=r"line 4: 'deep/er/c\.jpeg' leads out of .* by a link, to .*outside"):
        open_official(folder)


def test_missing_images_are_counted_and_the_first_is_named(mine):
    folder = mine.write()
    (folder / "b.png").rename(folder / "B.PNG")
    (folder / "deep" / "f.JPG").unlink()
    match = r"line 3: there is no image .*/b\.png; did you mean 'B\.PNG'\? \(2 of 5 images are missing\)"
    with pytest.raises(DataError, match=match):
        open_official(folder)


HEADER = "path,split,red,round\n"
FAULTS = {
    "nothing": ("", "line 1: expected a header"),
    "no rows": ("\n" + HEADER, "line 2: no image has a row"),
    "a word": (HEADER + "a.jpg,train,1,maybe\n", "line 2: column 'round': .* found 'maybe'; leave the cell"),
    "yes and no": (
        HEADER + "a.jpg,train,1,\nb.png,test,1,yes\nc.png,test,1,No\n",
        "line 3: column 'round': expected 1, 0 or nothing .* found 'yes'; write 0 for No, 1 for yes",
    ),
    "-1 and 1": (HEADER + "a.jpg,train,1,1\nb.png,test,-1,1\n", "line 3: column 'red'.*; write 0 for -1"),
    "-1, 0 and 1": (HEADER + "a.jpg,train,0,1\nb.png,test,-1,1\n", "line 3: .* may mean absent or unknown"),
    "floats": (HEADER + "a.jpg,train,0.0,1\nb.png,test,1.0,1\n", "line 2: .*write 0 for 0.0, 1 for 1.0"),
    "two": (HEADER + "a.jpg,train,0,2\n", "line 2: column 'round'.* found '2'"),
    "another digit": (HEADER + "a.jpg,train,0,\u0661\n", "line 2: column 'round'.* found '\u0661'"),
    "two in a cell": (HEADER + 'a.jpg,train,"1\n1",1\n', r"line 2: column 'red'.* found '1\\n1'"),
    "a cell lost": (HEADER + "a.jpg,train,1\n", "line 2: expected 4 cells as in the header, found 3"),
    "a cell too many": (HEADER + "a.jpg,train,1,1,\n", "line 2: expected 4 cells as in the header, found 5"),
    "twice": (
        HEADER + "a.jpg,test,1,1\nb.png,test,1,1\n\n./a.jpg,test,0,1\n",
        r"line 5: 'a\.jpg' has a row on line 2 already",
    ),
    "twice, two of them": (
        HEADER + "a.jpg,test,1,1\nb.png,test,1,1\nb.png,test,1,1\na.jpg,test,0,1\n",
        r"line 4: 'b\.png' has a row on line 3 already",
    ),
    "an odd split further down": (
        HEADER + "a.jpg,train,1,1\nb.png,tarin,1,1\n",
        "line 3: there is no split 'tarin'",
    ),
    "paths alone": ("path\na.jpg\n", "line 1: expected a column for each attribute, found only path"),
    "an odd split": (HEADER + "a.jpg,tarin,1,1\n", "line 2: there is no split 'tarin'; did you mean 'train'"),
    "no split": (HEADER + "a.jpg,,1,1\n", "line 2: there is no split ''; there are 'train', 'validation'"),
    "no path": (HEADER + ",train,1,1\n", "line 2: the path '' is empty"),
    "absolute": (HEADER + "/a.jpg,train,1,1\n", "line 2: the path .* is absolute"),
    "a drive": (HEADER + "C:/a.jpg,train,1,1\n", "line 2: the path .* is absolute"),
    "upwards": (HEADER + "x/../../a.jpg,train,1,1\n", "line 2: the path .* leads out of the folder"),
    "backslashes": (HEADER + "x\\a.jpg,train,1,1\n", "line 2: the path .* write forward slashes"),
    "a line break": (
        HEADER + '"a\n.jpg",train,1,1\n',
        r"line 2: the path 'a\\n\.jpg' has a tab, a line break",
    ),
    "what Python calls a line break": (
        HEADER + "a.jpg,train,1,1\nb\v.png,train,1,1\n",
        r"line 3: the path 'b\\x0b\.png' has a tab, a line break",
    ),
    "another kind": (HEADER + "a.gif,train,1,1\n", r"line 2: the path 'a\.gif' is no \.jpg, .* convert"),
    "a line further down": (
        'path,red,caption\na.jpg,1,"one\n\ntwo"\n\nb.png,x,\n',
        "line 6: column 'red'",
    ),
    "no class": ("path,red,class\na.jpg,1,\n", "line 2: the class is empty"),
    "an open quote": (
        HEADER + 'a.jpg,train,1,1\n"b.png,test,1,1\n',
        "line 3: the row that begins here is no",
    ),
    "two delimiters": ("x,path,y;path\n", "a column 'path' both by commas and by semicolons"),
    "no column path": (
        "image;split;red\n",
        "line 1: expected a column 'path' .* found 'image', 'split', 'red'",
    ),
    "not UTF-8": (
        (HEADER + "a.jpg,train,1,1\n\u00e9.jpg,test,1,1\n").encode("latin-1"),
        "line 3: expected UTF-8",
    ),
    "UTF-16": (HEADER.encode("utf-16"), "line 1: expected UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table(mine, fault):
    text, match = FAULTS[fault]
    folder = mine.write(table=text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=match) as caught:
        open_official(folder)
    assert str(caught.value).startswith(f"{folder / 'attributes.csv'}, line ")
    assert "\n" not in str(caught.value)


def test_a_fault_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_table, "_BLOCK", 3)
    rows = [["path", "a"], *([f"{i}.jpg", "1"] for i in range(8)), ["8.jpg", "x"], ["4.jpg", "0"]]
    for last, match in ((9, None), (10, "line 10: column 'a'"), (11, "line 10: column 'a'")):
        (tmp_path / "t.csv").write_bytes(table_text(rows[:last]))
        if match is None:
            assert len(read_table(tmp_path / "t.csv", read_head(tmp_path / "t.csv")).keys) == 8
            continue
        with pytest.raises(DataError, match=match):
            read_table(tmp_path / "t.csv", read_head(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_bytes(table_text([*rows[:9], rows[10]]))
    with pytest.raises(DataError, match=r"line 10: '4\.jpg' has a row on line 6 already"):
        read_table(tmp_path / "t.csv", read_head(tmp_path / "t.csv"))


PATHS = {
    **{"a//b.jpg": "a/b.jpg", "./b.jpg": "b.jpg", "a/./b.jpg": "a/b.jpg", "a/.b.jpg": "a/.b.jpg"},
    **{"B.JPG": "B.JPG", "ab:c.jpg": "ab:c.jpg", "é.png": "é.png"},
    **dict.fromkeys(("a\\b.jpg", "a\0.jpg", "a\tb.jpg", "a\nb.jpg", "a\rb.jpg", "/b.jpg", "C:/b.jpg")),
    **dict.fromkeys(("../b.jpg", "a/../b.jpg", "b.gif", "b", "")),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("beside", [[], ["c.jpg"]], ids=["alone", "beside another"])
def test_paths_in_normal_form(path, beside):
    """An odd one is found among many that are not."""
    rows, columns = [[key, "1"] for key in (*beside, path)], read_header("", ["path", "a"])
    if PATHS[path] is None:
        with pytest.raises(Wrong):
            convert(rows, columns)
    else:
        assert convert(rows, columns).keys == [*beside, PATHS[path]]


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
CAPTION = st.text(st.sampled_from("ab,;\t\"'é\n ")).map(str.strip)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_table_comes_back(tmp_path_factory, data):
    names = data.draw(
        st.lists(TEXT.filter(lambda s: s.lower() not in OTHERS), min_size=1, max_size=4, unique=True)
    )
    codes = data.draw(
        st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=len(names), max_size=len(names)), min_size=1)
    )
    captions = data.draw(st.lists(CAPTION, min_size=len(codes), max_size=len(codes)))
    rows = [
        [f"{i}, é.jpg", *map(CELL.get, row), caption]
        for i, (row, caption) in enumerate(zip(codes, captions, strict=True))
    ]
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(
        table_text(
            [["path", *names, "caption"], *rows],
            data.draw(st.sampled_from(",;\t")),
            data.draw(st.sampled_from(["\n", "\r\n"])),
            data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
            data.draw(st.booleans()),
        )
    )
    head = read_head(path)
    table = read_table(path, head)
    assert head.columns.attribute_names == tuple(names)
    np.testing.assert_array_equal(table.codes, codes)
    assert list(table.keys) == [row[0] for row in rows]
    assert list(table.captions or [None] * len(codes)) == [caption or None for caption in captions]


OTHERS = ("path", "split", "caption", "class")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    mine = OfficialFolder(tmp_path_factory.mktemp("changed"))
    mine.header.append("caption")
    mine.group_row = ["group", "", "hue", "form", "hue", ""]
    mine.rows = [[*row, "one,\ntwo"] for row in mine.rows]
    mine.write()
    return mine.folder, (mine.folder / "attributes.csv").read_bytes()


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_change_reads_or_is_one_line_that_says_where(changed, examples):
    folder, text = changed
    path = folder / "attributes.csv"

    def read():
        official = open_official(folder)
        assert official.codes.shape == (len(official.keys), official.schema.num_attributes)
        assert sum(map(len, official.splits.values())) == len(official.keys)

    @settings(max_examples=examples, deadline=None)
    @given(edited(text))
    def check(table):
        path.write_bytes(table)
        message = complaint(read)
        if message is not None:
            number = re.match(rf"{re.escape(str(path))}, line (\d+)", message)
            assert number, message
            assert first_change(text, table) <= int(number[1]) <= 1 + table.count(b"\n") + table.count(b"\r")

    check()
