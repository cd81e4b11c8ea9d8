"""Whether modules keep a model from leaning on what only goes together in training.

    wsca sweep --sweep configs/sweeps/scenes_spurious.py --workdir runs/scenes_spurious

full: worst-group accuracy and mAP of baseline and modules, of the modules less each part that is to keep
    attributes apart, and of a baseline trained on scenes where nothing goes together. Seven rows, three
    seeds.
tiny: the same rows, seconds for each run; the figures mean nothing.
"""

INDEPENDENT = {"data.options.material_background": 0.0, "data.options.colour_shape": 0.0}
TINY = {
    "data.options.train_images": 64,
    "data.options.validation_images": 320,
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
    less = {"base": "configs/scenes.py:spurious_modules", "reference": "modules"}
    return {
        "base": "configs/scenes.py:spurious",
        "reference": "baseline",
        "seeds": (0, 1, 2),
        "rows": {
            "baseline": {},
            "independent": {**INDEPENDENT, "description": "nothing goes together in training either"},
            "modules": {"base": "configs/scenes.py:spurious_modules", "description": "every module"},
            "no-cmdl": {**less, "loss.weights.cmdl": 0.0, "description": "groups may depend on each other"},
            "no-cal": {**less, "model.alignment": None, "description": "no contrastive alignment"},
            "no-decomposer": {**less, "model.decomposer": None, "description": "no levels, no graph"},
            "no-frequency": {**less, "model.frequency": None, "description": "no frequency bands"},
        },
    }


def tiny() -> dict:
    sweep = full()
    rows = {name: {**row, **TINY} for name, row in sweep["rows"].items()}
    return {**sweep, "seeds": (0,), "rows": rows}


VARIANTS = {"full": full, "tiny": tiny}
