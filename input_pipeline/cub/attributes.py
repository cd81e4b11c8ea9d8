"""What CUB-200-2011's labels mean: 312 attributes in 28 families, in the official order, grouped by three.

Source: `attributes.txt` of the data set (Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from input_pipeline.schema import AttributeSchema

_COLOURS = (
    *(
        "blue",
        "brown",
        "iridescent",
        "purple",
        "rufous",
        "grey",
        "yellow",
        "olive",
        "green",
        "pink",
        "orange",
    ),
    *("black", "white", "red", "buff"),
)
_EYE_COLOURS = tuple(colour for colour in _COLOURS if colour != "iridescent")
_PATTERNS = ("solid", "spotted", "striped", "multi-colored")

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "has_bill_shape": (
            *("curved_(up_or_down)", "dagger", "hooked", "needle", "hooked_seabird", "spatulate"),
            *("all-purpose", "cone", "specialized"),
        ),
        "has_wing_color": _COLOURS,
        "has_upperparts_color": _COLOURS,
        "has_underparts_color": _COLOURS,
        "has_breast_pattern": _PATTERNS,
        "has_back_color": _COLOURS,
        "has_tail_shape": (
            *("forked_tail", "rounded_tail", "notched_tail", "fan-shaped_tail", "pointed_tail"),
            "squared_tail",
        ),
        "has_upper_tail_color": _COLOURS,
        "has_head_pattern": (
            *("spotted", "malar", "crested", "masked", "unique_pattern", "eyebrow", "eyering", "plain"),
            *("eyeline", "striped", "capped"),
        ),
        "has_breast_color": _COLOURS,
        "has_throat_color": _COLOURS,
        "has_eye_color": _EYE_COLOURS,
        "has_bill_length": ("about_the_same_as_head", "longer_than_head", "shorter_than_head"),
        "has_forehead_color": _COLOURS,
        "has_under_tail_color": _COLOURS,
        "has_nape_color": _COLOURS,
        "has_belly_color": _COLOURS,
        "has_wing_shape": ("rounded-wings", "pointed-wings", "broad-wings", "tapered-wings", "long-wings"),
        "has_size": (
            *("large_(16_-_32_in)", "small_(5_-_9_in)", "very_large_(32_-_72_in)", "medium_(9_-_16_in)"),
            "very_small_(3_-_5_in)",
        ),
        "has_shape": (
            *("upright-perching_water-like", "chicken-like-marsh", "long-legged-like", "duck-like"),
            *("owl-like", "gull-like", "hummingbird-like", "pigeon-like", "tree-clinging-like", "hawk-like"),
            *("sandpiper-like", "upland-ground-like", "swallow-like", "perching-like"),
        ),
        "has_back_pattern": _PATTERNS,
        "has_tail_pattern": _PATTERNS,
        "has_belly_pattern": _PATTERNS,
        "has_primary_color": _COLOURS,
        "has_leg_color": _COLOURS,
        "has_bill_color": _COLOURS,
        "has_crown_color": _COLOURS,
        "has_wing_pattern": _PATTERNS,
    }
)

# How a family's phrases go on after "a bird": {} is the value in words, {a} the same with its article.
_TEMPLATES = MappingProxyType(
    {
        "has_bill_shape": "with {a} bill",
        "has_wing_color": "with {} wings",
        "has_upperparts_color": "with {} upperparts",
        "has_underparts_color": "with {} underparts",
        "has_breast_pattern": "with {a} breast",
        "has_back_color": "with {a} back",
        "has_tail_shape": "with {a}",
        "has_upper_tail_color": "with {a} upper tail",
        "has_head_pattern": "with {a} head",
        "has_breast_color": "with {a} breast",
        "has_throat_color": "with {a} throat",
        "has_eye_color": "with {} eyes",
        "has_bill_length": "with a bill {}",
        "has_forehead_color": "with {a} forehead",
        "has_under_tail_color": "with {a} undertail",
        "has_nape_color": "with {a} nape",
        "has_belly_color": "with {a} belly",
        "has_wing_shape": "with {}",
        "has_size": "that is {}",
        "has_shape": "shaped like {a}",
        "has_back_pattern": "with {a} back",
        "has_tail_pattern": "with {a} tail",
        "has_belly_pattern": "with {a} belly",
        "has_primary_color": "that is mostly {}",
        "has_leg_color": "with {} legs",
        "has_bill_color": "with {a} bill",
        "has_crown_color": "with {a} crown",
        "has_wing_pattern": "with {} wings",
    }
)

# Values whose words, put into their family's phrase, would not be English.
_WORDS = MappingProxyType(
    {
        "curved_(up_or_down)": "curved",
        "dagger": "dagger-shaped",
        "needle": "needle-shaped",
        "cone": "cone-shaped",
        "solid": "solid-colored",
        "about_the_same_as_head": "about as long as its head",
        "longer_than_head": "longer than its head",
        "shorter_than_head": "shorter than its head",
        "large_(16_-_32_in)": "large (16 to 32 inches)",
        "small_(5_-_9_in)": "small (5 to 9 inches)",
        "very_large_(32_-_72_in)": "very large (32 to 72 inches)",
        "medium_(9_-_16_in)": "medium (9 to 16 inches)",
        "very_small_(3_-_5_in)": "very small (3 to 5 inches)",
        "upright-perching_water-like": "water bird that perches upright",
        "chicken-like-marsh": "marsh bird that resembles a chicken",
        "long-legged-like": "long-legged bird",
        "tree-clinging-like": "bird that clings to trees",
        "upland-ground-like": "bird of upland ground",
        "perching-like": "perching bird",
    }
)

# Attributes that need a phrase of their own.
_EXCEPTIONS = MappingProxyType(
    {
        "has_head_pattern::malar": "with a malar stripe",
        "has_head_pattern::unique_pattern": "with a unique pattern on its head",
        "has_head_pattern::eyebrow": "with an eyebrow stripe",
        "has_head_pattern::eyering": "with a ring around its eye",
        "has_head_pattern::eyeline": "with a line through its eye",
    }
)


def _phrase(family: str, value: str) -> str:
    attribute = f"{family}::{value}"
    words = _WORDS.get(value) or value.removesuffix("-like").replace("_", " ").replace("-wings", " wings")
    article = "an" if words[0] in "aeio" else "a"  # no value begins with a sounded u ("unique" takes "a")
    rest = _EXCEPTIONS.get(attribute) or _TEMPLATES[family].format(words, a=f"{article} {words}")
    return f"a bird {rest}"


def _group(family: str) -> str:
    """A pattern says what a surface is like, as a material does; sizes and lengths go with the shapes."""
    kinds = {"color": "colour", "pattern": "material"}
    return kinds.get(family.rpartition("_")[2], "shape")


def _schema() -> AttributeSchema:
    pairs = [(family, value) for family, values in _VALUES.items() for value in values]
    groups = {
        name: tuple(i for i, (family, _) in enumerate(pairs) if _group(family) == name)
        for name in ("colour", "material", "shape")
    }
    return AttributeSchema.from_groups(
        "cub",
        tuple(f"{family}::{value}" for family, value in pairs),
        groups,
        phrases=tuple(_phrase(family, value) for family, value in pairs),
        hue_sensitive=True,
    )


SCHEMA = _schema()
