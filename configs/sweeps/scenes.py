"""What two simple choices are worth on rendered scenes: an example of a sweep.

    wsca sweep --sweep configs/sweeps/scenes.py:tiny --workdir runs/sweep

tiny: seconds for each of its runs; the figures mean nothing.
labels: what more labels are worth, and the width at each number of labels: four rows, each beside the one it
    differs from in one thing.
"""


def get_sweep(variant: str = "tiny") -> dict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]()


def tiny() -> dict:
    return {
        "base": "configs/scenes.py:tiny",
        "reference": "baseline",
        "seeds": (0, 1),
        "rows": {
            "baseline": {},
            "no-decay": {"description": "no weight decay", "optimizer.weight_decay": 0.0},
        },
    }


def labels() -> dict:
    tenth, wide = {"weak_labels.known_fraction": 0.1}, {"model.hidden_size": 512}
    return {
        "base": "configs/scenes.py:quickstart",
        "reference": "all-labels",
        "seeds": (0, 1, 2),
        "rows": {
            "all-labels": {},
            "all-labels-wide": {**wide, "description": "twice the width"},
            "tenth": {**tenth, "description": "one label in ten"},
            "tenth-wide": {**tenth, **wide, "reference": "tenth", "description": "of these, twice the width"},
        },
    }


VARIANTS = {"tiny": tiny, "labels": labels}
