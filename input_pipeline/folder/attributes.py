"""The schema of a user's own table: what its header, its row of groups and `schema.yaml` say.

The header names the columns. `path`, `split`, `caption` and `class` mean what they say, every other column is
an attribute. A second row whose path cell is `group` gives each attribute its group:

  path,split,blond,bald,round
  group,,hair,hair,face

`schema.yaml` beside the table may say the same and more; every key may be left out:

  name: pets                        # "folder" without it
  groups: {hair: [blond, bald], face: [round]}
  phrases: {round: with a round face}
  exclusive_groups: [hair]          # at most one attribute of each is present
  hue_sensitive: true               # a label depends on hue: no hue jitter
  side_sensitive: true              # a label depends on left and right: no mirrored images

Attributes without groups are one group, "attributes". A phrase defaults to the attribute's name in words.
Left out, `hue_sensitive` is true where a name or phrase has a word such as "red", and `side_sensitive` where
one has "left" or "right": images are then augmented less, and no label is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml

from input_pipeline.errors import DataError
from input_pipeline.schema import AttributeSchema

DESCRIPTION_FILE = "schema.yaml"
RESERVED = ("path", "split", "caption", "class")
SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_NAME = "folder"
DEFAULT_GROUP = "attributes"

_KEYS = ("name", "groups", "phrases", "exclusive_groups", "hue_sensitive", "side_sensitive")
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that tell of hue, and of sides. Black, white and grey stay what they are when hue turns.
_HUES = _words(
    """
    red reddish orange yellow yellowish green greenish blue bluish purple violet pink brown brownish cyan
    magenta turquoise teal maroon crimson scarlet beige cream tan gold golden blond blonde ginger auburn
    bronze copper navy lilac lavender indigo olive khaki color colour colored coloured colorful colourful
    """
)
_SIDES = _words("left right leftward rightward leftwards rightwards clockwise anticlockwise")
_BOOLEANS = MappingProxyType({"true": True, "false": False})

Groups = Mapping[str, tuple[str, ...]]


class Columns(NamedTuple):
    """Where in a row what stands.

    Attributes:
      names: the whole header, stripped.
      path: position of the column of image names.
      split, caption, class_name: positions of the other columns that are no attributes; None where absent.
      attributes: A positions, in the header's order.
    """

    names: tuple[str, ...]
    path: int
    split: int | None
    caption: int | None
    class_name: int | None
    attributes: tuple[int, ...]

    @property
    def attribute_names(self) -> tuple[str, ...]:
        return tuple(self.names[i] for i in self.attributes)


@dataclasses.dataclass(frozen=True)
class Description:
    """What `schema.yaml` says, checked against the table."""

    name: str = DEFAULT_NAME
    groups: Groups | None = None
    phrases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclusive_groups: tuple[str, ...] = ()
    hue_sensitive: bool | None = None
    side_sensitive: bool | None = None


def read_header(place: str, cells: Iterable[str]) -> Columns:
    """Sorts the columns of a header.

    Args:
      place: the table and the header's line, for messages.
      cells: the header as it stands.

    Raises:
      DataError: no `path`, no attribute, or a name that is empty, repeated or not plain text.
    """
    names = tuple(cell.strip() for cell in cells)
    _check_names(place, names)
    at = {name: position for position, name in enumerate(names)}
    attributes = tuple(position for name, position in at.items() if name not in RESERVED)
    if not attributes:
        raise DataError(
            f"{place}: expected a column for each attribute, found only {', '.join(names)}; "
            "add one, with 1, 0 or nothing in each row"
        )
    return Columns(names, at["path"], at.get("split"), at.get("caption"), at.get("class"), attributes)


def _check_names(place: str, names: tuple[str, ...]) -> None:
    if image := next((name for name in names if name.lower().endswith(SUFFIXES)), None):
        raise DataError(
            f"{place}: expected a header such as path,split,red,round, found {_short(image)}; "
            "write one above the images"
        )
    first: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"{place}: column {position} has no name; name it or remove it (pandas: to_csv(index=False))"
            )
        if not name.isprintable():
            raise DataError(f"{place}: the name of column {position}, {name!r}, has a character nobody sees")
        if name in first:
            raise DataError(f"{place}: columns {first[name]} and {position} are both called {name!r}")
        if name not in RESERVED and name.lower() in RESERVED:
            raise DataError(f"{place}: column {name!r}: write {name.lower()!r} in small letters")
        first[name] = position
    if "path" not in first:
        raise DataError(
            f"{place}: expected a column 'path' with the images' names, found {_listed(names)}; "
            f"{_likely_path(names)}"
        )


def _likely_path(names: tuple[str, ...]) -> str:
    """What to do where no column is called `path`: another name may have been meant for it."""
    hints = ("path", "file", "image", "img", "name")
    likely = [n for hint in hints for n in names if hint in n.lower()]
    return f"if {likely[0]!r} is that column, call it 'path'" if likely else "add it"


def is_group_row(columns: Columns, cells: list[str]) -> bool:
    """Whether a row, the first below the header, gives groups rather than an image."""
    return len(cells) > columns.path and cells[columns.path].strip().lower() == "group"


def read_group_row(place: str, columns: Columns, cells: list[str]) -> Groups:
    """{group: its attributes}, both in the header's order.

    Raises:
      DataError: an attribute without a group, or a group where there is no attribute.
    """
    if len(cells) != len(columns.names):
        raise DataError(f"{place}: expected {len(columns.names)} cells as in the header, found {len(cells)}")
    groups: dict[str, tuple[str, ...]] = {}
    for position, (name, cell) in enumerate(zip(columns.names, map(str.strip, cells), strict=True)):
        if position in columns.attributes:
            if not cell:
                raise DataError(f"{place}: attribute {name!r} has no group; every attribute needs one")
            groups[cell] = (*groups.get(cell, ()), name)
        elif cell and position != columns.path:
            raise DataError(f"{place}: {name!r} is no attribute and has no group; leave its cell empty")
    return groups


def make_schema(columns: Columns, row_groups: Groups | None, description: Path) -> AttributeSchema:
    """The schema of a table.

    Args:
      columns: of its header.
      row_groups: of its row of groups, where it has one.
      description: `schema.yaml`, which need not be there.

    Raises:
      DataError: a `schema.yaml` that cannot be read or contradicts the table. Names the line.
    """
    attributes = columns.attribute_names
    said = read_description(description, attributes, row_groups) if description.exists() else Description()
    groups = said.groups or row_groups or {DEFAULT_GROUP: attributes}
    position = {name: i for i, name in enumerate(attributes)}
    schema = AttributeSchema.from_groups(
        said.name,
        attributes,
        {group: tuple(position[name] for name in members) for group, members in groups.items()},
        exclusive_groups=said.exclusive_groups,
    )
    defaults = zip(attributes, schema.phrases, strict=True)
    phrases = tuple(said.phrases.get(name, phrase) for name, phrase in defaults)
    words = {word.lower() for text in (*attributes, *phrases) for word in _WORD.findall(text)}
    return dataclasses.replace(
        schema,
        phrases=phrases,
        hue_sensitive=bool(words & _HUES) if said.hue_sensitive is None else said.hue_sensitive,
        side_sensitive=bool(words & _SIDES) if said.side_sensitive is None else said.side_sensitive,
    )


def read_description(path: Path, attributes: tuple[str, ...], row_groups: Groups | None) -> Description:
    """Reads `schema.yaml`. Raises DataError naming the line; see `make_schema`."""
    root = _compose(path)
    settings = {} if root is None else _entries(path, root, "the file")
    for key, (key_node, _) in settings.items():
        _check_known(path, key_node, "setting", key, _KEYS)
    nodes = {key: node for key, (_, node) in settings.items() if not node.tag.endswith(":null")}
    groups = None
    if "groups" in nodes:
        if row_groups is not None:
            raise _wrong(path, nodes["groups"], "the table has a row of groups too; remove one of the two")
        groups = _read_groups(path, nodes["groups"], attributes)
    known_groups = tuple(groups or row_groups or {DEFAULT_GROUP: attributes})
    return Description(
        _text(path, nodes["name"], "name") if "name" in nodes else DEFAULT_NAME,
        groups,
        _read_phrases(path, nodes["phrases"], attributes) if "phrases" in nodes else {},
        _read_exclusive(path, nodes["exclusive_groups"], known_groups) if "exclusive_groups" in nodes else (),
        *(
            _read_boolean(path, nodes[key], key) if key in nodes else None
            for key in ("hue_sensitive", "side_sensitive")
        ),
    )


def _read_groups(path: Path, node: yaml.Node, attributes: tuple[str, ...]) -> Groups:
    group_of: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for group, (_, members) in _entries(path, node, "groups").items():
        items = _items(path, members, group)
        groups[group] = tuple(_text(path, item, "an attribute") for item in items)
        for name, member in zip(groups[group], items, strict=True):
            _check_known(path, member, "attribute", name, attributes)
            if name in group_of:
                raise _wrong(
                    path, member, f"attribute {name!r} is in {group_of[name]!r} already; keep it in one group"
                )
            group_of[name] = group
    if left_out := [name for name in attributes if name not in group_of]:
        raise _wrong(path, node, f"in no group: {_listed(left_out)}; every attribute needs one")
    return groups


def _read_phrases(path: Path, node: yaml.Node, attributes: tuple[str, ...]) -> dict[str, str]:
    phrases = {}
    for name, (key_node, phrase) in _entries(path, node, "phrases").items():
        _check_known(path, key_node, "attribute", name, attributes)
        phrases[name] = _text(path, phrase, f"the phrase of {name!r}")
    return phrases


def _read_exclusive(path: Path, node: yaml.Node, groups: tuple[str, ...]) -> tuple[str, ...]:
    names = []
    for member in _items(path, node, "exclusive_groups"):
        names.append(_text(path, member, "a group"))
        _check_known(path, member, "group", names[-1], groups)
    return tuple(dict.fromkeys(names))


def _read_boolean(path: Path, node: yaml.Node, key: str) -> bool:
    text = _text(path, node, key)
    if text.lower() not in _BOOLEANS:
        raise _wrong(path, node, f"{key} must be true or false, found {_short(text)}")
    return _BOOLEANS[text.lower()]


def _compose(path: Path) -> yaml.Node | None:
    """The file as nodes, which know their lines. Names stay text: YAML takes a bare `no` or `5` for more."""
    try:
        text = path.read_text("utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise DataError(f"{path}, line {line}: not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DataError(f"{path}, line {line}: not YAML: {error.reason}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: expected UTF-8 text; save the file as UTF-8") from error
    except (RecursionError, ValueError, OverflowError) as error:  # brackets too deep, an escape out of range
        raise DataError(f"{path}, line 1 or below: not YAML: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _entries(path: Path, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """{key: (the key's node, the value's)} of a mapping, each key once."""
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(path, node, f"expected {what} to be `name: value` entries, found {_kind(node)}")
    entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value in node.value:
        key = _text(path, key_node, "a key")
        if key in entries:
            raise _wrong(path, key_node, f"{_short(key)} stands here a second time; keep one")
        entries[key] = (key_node, value)
    return entries


def _items(path: Path, node: yaml.Node, what: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong(path, node, f"expected {_short(what)} to be a list [..], found {_kind(node)}")
    return node.value


def _text(path: Path, node: yaml.Node, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(path, node, f"expected {what} to be text, found {_kind(node)}")
    text = node.value.strip()
    if not text.isprintable() or not text:
        raise _wrong(path, node, f"expected {what} to be one line of text, found {_short(node.value)}")
    return text


def _kind(node: yaml.Node) -> str:
    return {"mapping": "`name: value` entries", "sequence": "a list"}.get(node.id, _short(str(node.value)))


def _check_known(path: Path, node: yaml.Node, what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise _wrong(path, node, f"there is no {what} {_short(name)}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the nearest right one or, if none is near, all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {_listed(names)}"


def _listed(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_short, names[:most])) + more


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _wrong(path: Path, node: yaml.Node, message: str) -> DataError:
    return DataError(f"{path}, line {node.start_mark.line + 1}: {message}")
