"""Headers, rows of groups and schema.yaml: right ones make the schema, wrong ones are one line."""

import re

import pytest
from edits import DEPTHS, complaint, edited
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.errors import DataError
from input_pipeline.folder.attributes import is_group_row, make_schema, read_group_row, read_header

HEADER = ["split", " path ", "red", "light_blue", "caption", "round", "class"]
SCHEMA = """
name: toys
groups:
  shape: [round]
  colour: [light_blue, red]
phrases: {red: painted red}
exclusive_groups: [colour]
hue_sensitive: true
"""


@pytest.fixture
def columns():
    return read_header("t.csv, line 1", HEADER)


def described(tmp_path, columns, text, row_groups=None):
    (tmp_path / "schema.yaml").write_text(text)
    return make_schema(columns, row_groups, tmp_path / "schema.yaml")


def test_the_header_sorts_the_columns(columns):
    assert columns.attribute_names == ("red", "light_blue", "round")
    assert columns.attributes == (2, 3, 5)
    assert (columns.path, columns.split, columns.caption, columns.class_name) == (1, 0, 4, 6)
    assert read_header("", ["path", "a"])[2:] == (None, None, None, (1,))


def test_without_a_word_about_groups_there_is_one(columns, tmp_path):
    schema = make_schema(columns, None, tmp_path / "schema.yaml")
    assert (schema.name, schema.groups, schema.group_of) == ("folder", ("attributes",), (0, 0, 0))
    assert schema.phrases == ("red", "light blue", "round")
    assert schema.hue_sensitive  # "red"
    assert not schema.side_sensitive


@pytest.mark.parametrize(
    ("names", "said", "hue", "side"),
    [
        (["redundant", "bright", "upright"], "", False, False),
        (["Black_Hair", "white"], "", False, False),
        (["LightBlue"], "", True, False),
        (["facing-left"], "", False, True),
        (["a"], "phrases: {a: a blond person on the right}", True, True),
        (["red", "left"], "hue_sensitive: false\nside_sensitive: false", False, False),
        (["a"], "hue_sensitive: true\nside_sensitive: true", True, True),
    ],
)
def test_hue_and_sides_are_told_by_the_file_or_by_the_words(tmp_path, names, said, hue, side):
    schema = described(tmp_path, read_header("", ["path", *names]), said)
    assert (schema.hue_sensitive, schema.side_sensitive) == (hue, side)


def test_a_row_of_groups(columns, tmp_path):
    cells = ["", " Group", "colour", "colour ", "", "shape", ""]
    assert is_group_row(columns, cells)
    assert not is_group_row(columns, ["train", "group.jpg", *cells[2:]])
    groups = read_group_row("t.csv, line 2", columns, cells)
    assert groups == {"colour": ("red", "light_blue"), "shape": ("round",)}
    schema = described(tmp_path, columns, "exclusive_groups: [shape]", groups)
    assert (schema.groups, schema.group_of) == (("colour", "shape"), (0, 0, 1))
    assert schema.exclusive_groups == ("shape",)


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        (["", "group", "colour", "", "", "shape", ""], "line 2: attribute 'light_blue' has no group"),
        (["x", "group", "a", "a", "", "a", ""], "line 2: 'split' is no attribute"),
        (["", "group", "a"], "line 2: expected 7 cells as in the header, found 3"),
    ],
)
def test_a_faulty_row_of_groups(columns, cells, match):
    with pytest.raises(DataError, match=match):
        read_group_row("t.csv, line 2", columns, cells)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (["image_path", "split", "red"], "if 'image_path' is that column, call it 'path'"),
        (["file", "x", "red"], "if 'file' is that column, call it 'path'"),
        (["path", "split", "caption"], "found only path, split, caption"),
        (["path", "red", "x", "red"], "columns 2 and 4 are both called 'red'"),
        (["", "path", "red"], "column 1 has no name"),
        (["path", "re\nd"], r"column 2, 're\\nd', has a character nobody sees"),
        (["path", "Split", "red"], "column 'Split': write 'split'"),
    ],
)
def test_a_faulty_header(header, match):
    with pytest.raises(DataError, match=match) as caught:
        read_header("t.csv, line 1", header)
    assert str(caught.value).startswith("t.csv, line 1: ")
    assert "\n" not in str(caught.value)


def test_schema_yaml(columns, tmp_path):
    schema = described(tmp_path, columns, SCHEMA)
    assert (schema.name, schema.attributes) == ("toys", ("red", "light_blue", "round"))
    assert (schema.groups, schema.group_of) == (("shape", "colour"), (1, 1, 0))
    assert schema.phrases == ("painted red", "light blue", "round")
    assert (schema.exclusive_groups, schema.hue_sensitive) == (("colour",), True)
    assert described(tmp_path, columns, "# nothing\n").name == "folder"
    assert described(tmp_path, columns, "name:\ngroups:\nhue_sensitive: False").name == "folder"


def test_names_stay_what_they_are_where_yaml_has_a_type_for_them(tmp_path):
    columns = read_header("", ["path", "no", "5", "2020-01-01"])
    schema = described(tmp_path, columns, "groups: {on: [no, 5], 1.0: [2020-01-01], empty: []}")
    assert (schema.groups, schema.group_of) == (("on", "1.0", "empty"), (0, 0, 1))


FAULTS = {
    "unknown key": ("name: a\ngroup: {}", "line 2: there is no setting 'group'; did you mean 'groups'"),
    "far from any": ("zzz: 1", "line 1: there is no setting 'zzz'; there are 'name', 'groups'"),
    "unknown attribute": (
        "groups:\n  g: [red, round, light_blu]",
        "line 2: there is no attribute 'light_blu'; did you mean 'light_blue'",
    ),
    "in two groups": (
        "groups:\n  g: [red, round, light_blue]\n  h: [red]",
        "line 3: attribute 'red' is in 'g' already",
    ),
    "left out": ("groups:\n  g: [red]", "line 2: in no group: 'light_blue', 'round'"),
    "a phrase for nothing": ("phrases: {rde: x}", "line 1: there is no attribute 'rde'; did you mean 'red'"),
    "no such group": ("exclusive_groups: [a]", "no group 'a'; there are 'attributes'"),
    "not a boolean": ("hue_sensitive: maybe", "line 1: hue_sensitive must be true or false, found 'maybe'"),
    "a list": ("- name", "line 1: expected the file to be .* found a list"),
    "text for groups": ("groups: red", "line 1: expected groups to be .* found 'red'"),
    "text for a list": ("groups: {g: red}", r"expected 'g' to be a list \[..\], found 'red'"),
    "a list for text": ("name: [a]", "expected name to be text, found a list"),
    "a key twice": ("phrases:\n  red: a\n  red: b", "line 3: 'red' stands here a second time"),
    "not YAML": ("name: a\n  b: c", "line 2: not YAML"),
    "a control character": ("name: a\n# \x01", "line 2: not YAML"),
    "an impossible escape": ('name: "\\UFFFFFFFF"', "not YAML"),
    "an object": ("!!python/object/apply:os.system [exit 1]", "line 1: expected the file to be"),
    "itself": ("groups: &a {g: *a}", "expected 'g' to be a list"),
    "too deep": ("groups: " + "[" * 5000, "line 1 or below: not YAML"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_schema_yaml(columns, tmp_path, fault):
    text, match = FAULTS[fault]
    with pytest.raises(DataError, match=match) as caught:
        described(tmp_path, columns, text)
    assert str(caught.value).startswith(f"{tmp_path / 'schema.yaml'}, line ")
    assert "\n" not in str(caught.value)


def test_groups_have_one_place(columns, tmp_path):
    with pytest.raises(DataError, match="line 4: the table has a row of groups too"):
        described(tmp_path, columns, SCHEMA, {"g": ("red", "light_blue", "round")})


def test_bytes_that_are_no_text(columns, tmp_path):
    (tmp_path / "schema.yaml").write_bytes(b"name: a\nphrases: {red: \xff}")
    with pytest.raises(DataError, match="line 2: expected UTF-8"):
        make_schema(columns, None, tmp_path / "schema.yaml")


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_change_to_schema_yaml_reads_or_is_one_line(tmp_path, examples):
    columns, path = read_header("", HEADER), tmp_path / "schema.yaml"

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(edited(SCHEMA.encode()), st.text(YAML).map(str.encode)))
    def check(text):
        path.write_bytes(text)
        message = complaint(make_schema, columns, None, path)
        if message is not None:
            number = re.match(rf"{re.escape(str(path))}, line (\d+)", message)
            assert number, message
            assert 1 <= int(number[1]) <= 1 + len(text.decode("utf-8", "replace").splitlines())

    check()


# Characters that mean something in YAML.
YAML = "[]{}:&*!-#|>%@`,\n\t\"' redx0\x00é"
