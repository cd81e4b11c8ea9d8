"""What the labels mean: the attributes of a data set, their groups and their phrases."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any


class SchemaError(ValueError):
    """An attribute schema that contradicts itself, or two that had to be the same and are not."""


@dataclasses.dataclass(frozen=True)
class AttributeSchema:
    """The A attributes of a data set, partitioned into G named groups.

    Attributes:
      name: the data set's name.
      attributes: A attribute names, in the order of the label vector.
      groups: G group names, in the order of branches and reports.
      group_of: for each attribute, the position of its group in `groups`.
      phrases: for each attribute, a natural-language phrase ("wearing a hat").
      hue_sensitive: whether a label depends on hue, so that hue jitter would make it wrong.
      side_sensitive: whether a label depends on what is left and what is right, so that mirroring the image
        would make it wrong.
      exclusive_groups: names of groups of which at most one attribute is present.
    """

    name: str
    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    group_of: tuple[int, ...]
    phrases: tuple[str, ...]
    hue_sensitive: bool = False
    exclusive_groups: tuple[str, ...] = ()
    side_sensitive: bool = False

    def __post_init__(self) -> None:
        if len(set(self.attributes)) != len(self.attributes):
            repeated = sorted({a for a in self.attributes if self.attributes.count(a) > 1})
            raise SchemaError(f"schema {self.name!r}: attribute names repeat: {', '.join(repeated)}")
        if len(set(self.groups)) != len(self.groups):
            raise SchemaError(f"schema {self.name!r}: group names repeat: {self.groups}")
        for field in ("group_of", "phrases"):
            if len(getattr(self, field)) != self.num_attributes:
                raise SchemaError(
                    f"schema {self.name!r}: {field} has {len(getattr(self, field))} entries, "
                    f"expected one for each of the {self.num_attributes} attributes"
                )
        if any(not 0 <= g < self.num_groups for g in self.group_of):
            raise SchemaError(f"schema {self.name!r}: group_of must lie in 0..{self.num_groups - 1}")
        unknown = set(self.exclusive_groups) - set(self.groups)
        if unknown:
            raise SchemaError(f"schema {self.name!r}: exclusive groups {sorted(unknown)} are not groups")

    @classmethod
    def from_groups(
        cls, name: str, attributes: tuple[str, ...], groups: Mapping[str, tuple[int, ...]], **fields: Any
    ) -> AttributeSchema:
        """Builds a schema from {group name: attribute positions}; each attribute stands in exactly one.

        Phrases default to the attribute's name in words.
        """
        members = [i for positions in groups.values() for i in positions]
        if sorted(members) != list(range(len(attributes))):
            raise SchemaError(
                f"schema {name!r}: the groups must hold each of the {len(attributes)} attributes exactly once"
            )
        group_of = {i: g for g, positions in enumerate(groups.values()) for i in positions}
        phrases = tuple(a.replace("_", " ").replace("::", " ").lower() for a in attributes)
        return cls(
            name=name,
            attributes=attributes,
            groups=tuple(groups),
            group_of=tuple(group_of[i] for i in range(len(attributes))),
            **({"phrases": phrases} | fields),
        )

    @property
    def num_attributes(self) -> int:
        return len(self.attributes)

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """For each group, the positions of its attributes in the label vector (may be empty)."""
        return tuple(
            tuple(i for i, g in enumerate(self.group_of) if g == group) for group in range(self.num_groups)
        )

    @property
    def families(self) -> dict[str, tuple[int, ...]]:
        """{what stands before "::" in an attribute's name: positions}, for reports; empty where none has it.

        CUB-200-2011 names its attributes so ("has_bill_shape::dagger"); a name without it is its own family.
        """
        if not any("::" in name for name in self.attributes):
            return {}
        found: dict[str, tuple[int, ...]] = {}
        for i, name in enumerate(self.attributes):
            family = name.partition("::")[0]
            found[family] = (*found.get(family, ()), i)
        return found

    def to_json(self) -> dict[str, Any]:
        """A record of plain lists and strings from which `from_json` rebuilds the schema."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AttributeSchema:
        """Rebuilds what `to_json` wrote. Raises SchemaError for anything else."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            schema = cls(**fields)
        except (TypeError, AttributeError) as error:
            raise SchemaError(f"not an attribute schema: {error}") from error
        schema._check_types()
        return schema

    def _check_types(self) -> None:
        """Holds what came from a file against the annotations: no constructor does."""
        names = (self.attributes, self.groups, self.phrases, self.exclusive_groups)
        lists = all(isinstance(values, tuple) for values in (*names, self.group_of))
        if not (
            lists
            and all(isinstance(name, str) for name in (self.name, *itertools.chain(*names)))
            and all(type(group) is int for group in self.group_of)
            and isinstance(self.hue_sensitive, bool)
            and isinstance(self.side_sensitive, bool)
        ):
            raise SchemaError("not an attribute schema: expected lists of names, of phrases and of positions")

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when names, order or grouping change."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]
