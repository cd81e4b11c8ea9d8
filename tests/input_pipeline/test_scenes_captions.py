"""What is said about scenes: true captions, false hard negatives, relations that the masks bear out."""

import re
from collections import Counter

import numpy as np

from input_pipeline import scenes
from input_pipeline.scenes import captions
from input_pipeline.scenes.records import Predicate
from input_pipeline.scenes.rendering import render
from input_pipeline.scenes.vocabulary import Arrangement
from input_pipeline.text import caption_from_phrases

WORLD = scenes.open_split(None, "train", scenes.Options())
FACTORS = [WORLD.factors(i) for i in range(300)]
PHRASE = re.compile(r"a (small|medium-sized|large) (\w+) (\w+) (\w+) (\w+)")


def told(caption):
    """The objects a caption speaks of, read back from its words."""
    return Counter(
        (size.split("-")[0], texture, colour, material, shape)
        for size, texture, colour, material, shape in PHRASE.findall(caption.lower())
    )


def true_objects(factors):
    return Counter(
        (
            i.place.size.value,
            i.look.texture.value,
            i.look.colour.value,
            i.look.material.value,
            i.look.shape.value,
        )
        for i in factors.objects
    )


def test_captions_name_every_object():
    for factors in FACTORS:
        assert told(captions.caption(factors)) == true_objects(factors)


def test_captions_name_ground_and_light():
    for factors in FACTORS:
        caption = captions.caption(factors)
        assert factors.background.value.split("_")[0] in caption
        assert factors.light.kind.value.replace("_", " ") in caption
        assert caption[0].isupper()
        assert caption.endswith(".")


def test_hard_negatives_are_false_and_made_of_the_same_words():
    for factors in FACTORS:
        caption = captions.caption(factors)
        for negative in captions.hard_negatives(factors):
            assert Counter(negative.caption.lower().split()) == Counter(caption.lower().split())
            assert told(negative.caption) != true_objects(factors)
            difference = true_objects(factors) - told(negative.caption)
            assert difference.total() == 2


def test_hard_negatives_exist_wherever_two_objects_differ_enough():
    several = [f for f in FACTORS if len(f.objects) > 1]
    assert np.mean([bool(captions.hard_negatives(f)) for f in several]) > 0.95
    assert all(captions.hard_negatives(f) == () for f in FACTORS if len(f.objects) == 1)
    assert {n.swap for f in FACTORS for n in captions.hard_negatives(f)} == set(captions.Swap)


def test_relations_hold_in_the_picture():
    pairs = [f for f in FACTORS if len(f.objects) == 2 and f.arrangement is not Arrangement.STACKED][:40]
    checked = Counter()
    for factors in pairs:
        rows, columns = zip(*(np.nonzero(mask) for mask in render(factors, 64).masks), strict=True)
        for relation in captions.relations(factors):
            subject, target = relation.subject, relation.target
            if relation.predicate is Predicate.LEFT_OF:
                assert columns[subject].mean() < columns[target].mean()
            if relation.predicate is Predicate.IN_FRONT_OF:
                assert rows[subject].max() > rows[target].max()
            checked[relation.predicate] += 1
    assert min(checked[p] for p in (Predicate.LEFT_OF, Predicate.IN_FRONT_OF, Predicate.TOUCHING)) > 3


def test_relations_contradict_nothing():
    for factors in FACTORS:
        found = {(r.subject, r.predicate, r.target) for r in captions.relations(factors)}
        assert not any((target, predicate, subject) in found for subject, predicate, target in found)
        contact = {p for _, p, _ in found} & {Predicate.TOUCHING, Predicate.ON_TOP_OF}
        assert bool(contact) == (factors.arrangement is not Arrangement.APART)


def test_beside_noisy_labels_the_caption_tells_what_the_labels_do():
    """Otherwise it would show which of them are wrong."""
    noisy = scenes.open_split(None, "train", scenes.Options(size=16, label_noise=0.2))
    for index in range(20):
        example = noisy[index]
        assert example.caption == caption_from_phrases(scenes.SCHEMA, example.labels, example.known)
        assert noisy.scene(index).caption == WORLD.scene(index).caption  # the record keeps the truth
    exact = scenes.open_split(None, "test", noisy.options)
    assert exact[0].caption == exact.scene(0).caption


def test_scene_record_is_the_same_scene_as_the_example():
    scene, example = WORLD.scene(2), WORLD[2]
    np.testing.assert_array_equal(scene.image, example.image)
    np.testing.assert_array_equal(scene.labels, example.labels)
    assert scene.caption == example.caption
    assert len(scene.masks) == len(scene.factors.objects)
