"""The 204 attributes of COCO Attributes: their order, their groups, and how each is said.

Tables to be read and corrected. The names and their order are the published ones (Patterson and Hays, "COCO
Attributes: Attributes for People, Animals, and Objects", ECCV 2016); groups and phrases are ours.
"""

from __future__ import annotations

import itertools
from types import MappingProxyType

from input_pipeline.schema import AttributeSchema


def _names(text: str) -> tuple[str, ...]:
    """Names out of a paragraph in which commas part them."""
    return tuple(" ".join(name.split()) for name in text.split(","))


# The order of the published vectors: the label vector follows it.
ATTRIBUTES = _names(
    """
    standing, sitting, laying, walking, watching / looking, eating, waiting, moving, playing,
    sleeping, working, running, hiding, riding, drinking, swimming, smiling, jumping, flying,
    traveling, enjoying, thinking, loving, holding, feeding, talking, floating, skiing, hunting,
    listening, hanging, grazing, skating, leaning, smelling / sniffing, socializing, stretching,
    driving, cooking, learning, following, surfing, reading, climbing, bending, fishing, cuddling,
    smelling, panting, participating, racing, serving, crouching, reaching, landing, hiking, waving,
    spectating, exercising, carrying, snowboarding, vacationing, shopping, catching, laughing,
    celebrating, angry, happy, unhappy, hungry, friendly, sleepy, lazy, dry, alone / lonely, dirty,
    urban, busy, healthy, shiny, thirsty, comfortable / cozy, sporty, fancy, empty, furry, toy,
    messy / cluttered, sneaky, hairy, tasty / delicious, bulky, frisky, fluffy, fuzzy, whole, full,
    closed, open, on, off, small, large, long, short, appetizing, filling, curious, old, young,
    adult, calm, cold, cool, warm, hot, clean, wet, tired, playful, peaceful, useful, joyful, sad,
    scared, bored, excited, anxious, annoyed, confused, modern, cute / adorable, new, fake, wild,
    natural, plastic, soft, hard, athletic, perched, professional, spotted, male, female, curled,
    flat, striped, fresh, metal / metallic, sleek, fast, round, simple, unused / inactive, safe,
    covered, leashed, compact, adventurous, smooth, rural, domestic, dull, decorative,
    antique / vintage, captive, strong, vertical, horizontal, solid, cheap, casual, expensive,
    functional, wood / wooden, cloth, ceramic, leather, stuffed, elegant, tame, parked, cooked,
    curved, public, serious, commercial, worn, portable, competitive, organized, dangerous, digital,
    electric / electrical, plain, trendy, saucy, glazed, heavy, crumpled / wrinkled, thin, exotic,
    family-friendly
    """
)

# What an attribute is about. No name is a hue: "colour" holds the patterns that differences in colour make.
# "texture" is what a surface looks or feels like; "size" includes weight. Whatever is done, felt, meant or
# thought of an object, and every state that is not its surface, is "other".
_NAMED = MappingProxyType(
    {
        "colour": _names("spotted, striped, plain"),
        "material": _names(
            """
            natural, plastic, metal / metallic, solid, wood / wooden, cloth, ceramic, leather, stuffed
            """
        ),
        "shape": _names("curled, flat, round, sleek, vertical, horizontal, curved"),
        "texture": _names(
            """
            dry, dirty, shiny, furry, hairy, fluffy, fuzzy, clean, wet, soft, hard, smooth, worn, glazed,
            crumpled / wrinkled
            """
        ),
        "size": _names("bulky, small, large, long, short, compact, heavy, thin"),
    }
)
GROUPS = MappingProxyType(
    {**_NAMED, "other": tuple(name for name in ATTRIBUTES if name not in itertools.chain(*_NAMED.values()))}
)

# Completes "an object that is ..." where the name alone does not: "a toy", "made of wood".
_SAID = MappingProxyType(
    {
        "laying": "lying down",
        "holding": "holding something",
        "feeding": "feeding someone",
        "carrying": "carrying something",
        "catching": "catching something",
        "following": "following someone",
        "enjoying": "enjoying itself",
        "toy": "a toy",
        "adult": "an adult",
        "on": "switched on",
        "off": "switched off",
        "plastic": "made of plastic",
        "metal / metallic": "made of metal",
        "wood / wooden": "made of wood",
        "cloth": "made of cloth",
        "ceramic": "made of ceramic",
        "leather": "made of leather",
        "saucy": "covered in sauce",
    }
)


def _phrase(name: str) -> str:
    """ "an object that is cute or adorable": the object may be a person, an animal, food or a thing."""
    return f"an object that is {_SAID.get(name, name.replace(' / ', ' or '))}"


SCHEMA = AttributeSchema.from_groups(
    "coco_attributes",
    ATTRIBUTES,
    {group: tuple(map(ATTRIBUTES.index, names)) for group, names in GROUPS.items()},
    phrases=tuple(map(_phrase, ATTRIBUTES)),
)
