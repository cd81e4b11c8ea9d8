"""What can be said about a scene: its spatial relations, a true sentence, and false ones of its words."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from input_pipeline.scenes.records import (
    Appearance,
    Factors,
    HardNegative,
    Predicate,
    Relation,
    SceneObject,
    Swap,
)
from input_pipeline.scenes.vocabulary import Arrangement, Background, Lighting, Size

LEFT_GAP = 0.08  # between the objects' centres, as a fraction of the image
FRONT_GAP = 0.35  # between their distances from the camera, in world units

_SIZE_WORDS = {Size.SMALL: "small", Size.MEDIUM: "medium-sized", Size.LARGE: "large"}
_BACKGROUND_WORDS = {
    Background.WOODEN_FLOOR: "on a wooden floor",
    Background.LAWN: "on a lawn",
    Background.TILED_FLOOR: "on a tiled floor",
    Background.SAND: "on sand",
}
_LIGHT_WORDS = {
    Lighting.BRIGHT: "in bright light",
    Lighting.SOFT: "in soft light",
    Lighting.DIM: "in dim light",
}
_RELATION_WORDS = {
    Predicate.ON_TOP_OF: "on top of",
    Predicate.TOUCHING: "touching",
    Predicate.LEFT_OF: "to the left of",
    Predicate.IN_FRONT_OF: "in front of",
}

# With the schema's phrases, every word of a caption: what a vocabulary is made of.
SENTENCES = (
    *_SIZE_WORDS.values(),
    *_RELATION_WORDS.values(),
    *_BACKGROUND_WORDS.values(),
    *_LIGHT_WORDS.values(),
    "and with a",
)

Description = tuple[Size, Appearance]  # all that a caption says about an object


def relations(factors: Factors) -> tuple[Relation, ...]:
    """Every spatial relation that holds, contact first."""
    return (*_contact(factors), *_directions(factors.objects))


def _contact(factors: Factors) -> tuple[Relation, ...]:
    if factors.arrangement is Arrangement.STACKED:
        return (Relation(1, Predicate.ON_TOP_OF, 0),)
    if factors.arrangement is Arrangement.TOUCHING:
        return (Relation(0, Predicate.TOUCHING, 1),)
    return ()


def _directions(objects: Sequence[SceneObject]) -> Iterator[Relation]:
    for i, j in itertools.permutations(range(len(objects)), 2):
        first, second = objects[i].place, objects[j].place
        if _middle(objects[i]) + LEFT_GAP < _middle(objects[j]):
            yield Relation(i, Predicate.LEFT_OF, j)
        if first.z + FRONT_GAP < second.z:
            yield Relation(i, Predicate.IN_FRONT_OF, j)


def _middle(item: SceneObject) -> float:
    return (item.place.box.left + item.place.box.right) / 2


def describe(description: Description) -> str:
    """A noun phrase: "a large striped red metal cube"."""
    size, look = description
    return f"a {_SIZE_WORDS[size]} {look.texture} {look.colour} {look.material} {look.shape}"


def caption(factors: Factors) -> str:
    """One true sentence that names every object, a relation of the first two, the ground and the light."""
    return _sentence(factors, _descriptions(factors))


def _descriptions(factors: Factors) -> tuple[Description, ...]:
    return tuple((item.place.size, item.look) for item in factors.objects)


def _sentence(factors: Factors, descriptions: Sequence[Description]) -> str:
    phrases = [describe(description) for description in descriptions]
    related = [r for r in relations(factors) if {r.subject, r.target} == {0, 1}]
    if related:
        first = related[0]
        subject = f"{phrases[first.subject]} {_RELATION_WORDS[first.predicate]} {phrases[first.target]}"
    else:
        subject = " and ".join(phrases[:2])
    others = f", with {' and '.join(phrases[2:])}," if len(phrases) > 2 else ""
    text = f"{subject}{others} {_BACKGROUND_WORDS[factors.background]} {_LIGHT_WORDS[factors.light.kind]}."
    return text[0].upper() + text[1:]


def hard_negatives(factors: Factors) -> tuple[HardNegative, ...]:
    """Every false caption that differs from the true one by one word swapped between two objects.

    Swapping the colours of two objects that are otherwise alike only renames them: left out.
    """
    truth = _descriptions(factors)
    return tuple(
        HardNegative(_sentence(factors, swapped), swap, (i, j))
        for i, j in itertools.combinations(range(len(truth)), 2)
        for swap in Swap
        if Counter(swapped := _swapped(truth, swap, i, j)) != Counter(truth)
    )


def _swapped(descriptions: Sequence[Description], swap: Swap, i: int, j: int) -> tuple[Description, ...]:
    exchanged = list(descriptions)
    (size_i, look_i), (size_j, look_j) = exchanged[i], exchanged[j]
    if swap is Swap.SIZE:
        exchanged[i], exchanged[j] = (size_j, look_i), (size_i, look_j)
    else:
        exchanged[i] = size_i, dataclasses.replace(look_i, **{swap: getattr(look_j, swap)})
        exchanged[j] = size_j, dataclasses.replace(look_j, **{swap: getattr(look_i, swap)})
    return tuple(exchanged)
