"""CelebA's 40 attributes, their eight groups and their phrases."""

from __future__ import annotations

from types import MappingProxyType

from input_pipeline.schema import AttributeSchema

# In the official order: the label vector follows it. The phrase completes "a photo of a person ...".
_PHRASES = MappingProxyType(
    {
        "5_o_Clock_Shadow": "with a five o'clock shadow",
        "Arched_Eyebrows": "with arched eyebrows",
        "Attractive": "with an attractive face",
        "Bags_Under_Eyes": "with bags under the eyes",
        "Bald": "with a bald head",
        "Bangs": "with bangs over the forehead",
        "Big_Lips": "with big lips",
        "Big_Nose": "with a big nose",
        "Black_Hair": "with black hair",
        "Blond_Hair": "with blond hair",
        "Blurry": "in a blurry picture",
        "Brown_Hair": "with brown hair",
        "Bushy_Eyebrows": "with bushy eyebrows",
        "Chubby": "with a chubby face",
        "Double_Chin": "with a double chin",
        "Eyeglasses": "wearing eyeglasses",
        "Goatee": "with a goatee",
        "Gray_Hair": "with gray hair",
        "Heavy_Makeup": "wearing heavy makeup",
        "High_Cheekbones": "with high cheekbones",
        "Male": "who is a man",
        "Mouth_Slightly_Open": "with the mouth slightly open",
        "Mustache": "with a mustache",
        "Narrow_Eyes": "with narrow eyes",
        "No_Beard": "without a beard",
        "Oval_Face": "with an oval face",
        "Pale_Skin": "with pale skin",
        "Pointy_Nose": "with a pointy nose",
        "Receding_Hairline": "with a receding hairline",
        "Rosy_Cheeks": "with rosy cheeks",
        "Sideburns": "with sideburns",
        "Smiling": "who is smiling",
        "Straight_Hair": "with straight hair",
        "Wavy_Hair": "with wavy hair",
        "Wearing_Earrings": "wearing earrings",
        "Wearing_Hat": "wearing a hat",
        "Wearing_Lipstick": "wearing lipstick",
        "Wearing_Necklace": "wearing a necklace",
        "Wearing_Necktie": "wearing a necktie",
        "Young": "who is young",
    }
)

SCHEMA = AttributeSchema.from_groups(
    "celeba",
    tuple(_PHRASES),
    {
        "hair_style": (4, 5, 8, 9, 11, 17, 28, 32, 33),
        "facial_features": (1, 3, 6, 7, 12, 13, 14, 19, 23, 25, 26, 27, 29),
        "makeup": (18, 36, 37),
        "accessories": (15, 34, 35, 38),
        "expression": (21, 31),
        "demographics": (20, 39),
        "facial_hair": (0, 16, 22, 24, 30),
        "quality": (2, 10),
    },
    phrases=tuple(f"a person {phrase}" for phrase in _PHRASES.values()),
)
