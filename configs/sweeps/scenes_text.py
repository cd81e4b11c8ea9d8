"""Whether captions in training help a model that is then shown images alone.

    wsca sweep --sweep configs/sweeps/scenes_text.py --workdir runs/scenes_text

full: every label known and the scenes' own sentences, and one label in ten and sentences of those; each
    beside the same run without text. Six rows, three seeds. Found so far: sentences do not help
    (docs/modules.md).
tiny: the same rows, seconds for each run; the figures mean nothing.
"""

TINY = {
    "data.options.train_images": 64,
    "data.options.validation_images": 64,
    "data.images.size": 32,
    "data.options.size": 32,
    "model.trunk.width": 8,
    "train.epochs": 1.0,
}


def get_sweep(variant: str = "full") -> dict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]()


def full() -> dict:
    sentences = {"base": "configs/scenes.py:sentences"}
    return {
        "base": "configs/scenes.py:sentences_off",
        "reference": "all-labels",
        "seeds": (0, 1, 2),
        "rows": {
            "all-labels": {"description": "no text"},
            "all-labels-text": {**sentences, "description": "sentences that say more than labels"},
            "all-labels-rare-text": {
                **sentences,
                "model.encoder.text_dropout": 0.9,
                "description": "read by the image in one of ten cases, not in five",
            },
            "all-labels-phrases": {
                **sentences,
                "model.phrase_prototypes": True,
                "description": "prototypes from the attributes' phrases",
            },
            "tenth": {
                "base": "configs/scenes.py:captions_off",
                "reference": "tenth",
                "description": "one label in ten, no text",
            },
            "tenth-text": {
                "base": "configs/scenes.py:captions",
                "reference": "tenth",
                "description": "sentences of the known labels",
            },
        },
    }


def tiny() -> dict:
    sweep = full()
    rows = {name: {**row, **TINY} for name, row in sweep["rows"].items()}
    return {**sweep, "seeds": (0,), "rows": rows}


VARIANTS = {"full": full, "tiny": tiny}
