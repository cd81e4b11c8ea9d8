"""What the modules are worth on CelebA, all of them and each of them.

    wsca sweep --sweep configs/sweeps/celeba.py --data_dir D --workdir runs/celeba_ablation
    wsca sweep --sweep configs/sweeps/celeba.py:wider --data_dir D --workdir runs/celeba_wider

ablation: at 10 % of the labels the baseline, every module, and every module less one part; at all labels the
    baseline and every module. Ten rows, three seeds; about nine hours of one core (AMD EPYC, a slow one).
    Found: no module is shown to help or to hurt. mAP at 10 % of the labels 0.515 with all of them and 0.516
    without, at all labels 0.625 and 0.621 (docs/modules.md).
wider: baseline and every module with a trunk of width 24 instead of 16. Four rows, three seeds; 70 minutes of
    one core (AMD EPYC, a fast one).
    Found: the same. At 10 % of the labels 0.535 and 0.537, at all labels 0.636 and 0.637.
"""

TENTH = {"weak_labels.known_fraction": 0.1}
LESS = {
    "frequency": ("AFANet", {"model.frequency": None}),
    "decomposer": ("WINNER", {"model.decomposer": None}),
    "router": ("MAVD", {"model.router": None}),
    "cmdl": ("CMDL", {"loss.weights.cmdl": 0.0}),
    "cal": ("CAL", {"model.alignment": None}),
    "dynamic": ("dynamic weights", {"loss.balancing.kind": "none"}),
}


def get_sweep(variant: str = "ablation") -> dict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]()


def ablation() -> dict:
    baseline = {"base": "configs/celeba.py:laptop_baseline"}
    less = {
        f"full-minus-{name}": {**TENTH, **change, "reference": "full", "description": f"without {words}"}
        for name, (words, change) in LESS.items()
    }
    return {
        "base": "configs/celeba.py:laptop",
        "reference": "baseline",
        "seeds": (0, 1, 2),
        "rows": {
            "baseline": {**baseline, **TENTH, "description": "10 % of the labels, no modules"},
            "full": {**TENTH, "description": "every module"},
            **less,
            "all-baseline": {
                **baseline,
                "reference": "all-baseline",
                "description": "all labels",
            },
            "all-full": {"reference": "all-baseline", "description": "every module"},
        },
    }


def wider() -> dict:
    sweep = ablation()
    kept = ("baseline", "full", "all-baseline", "all-full")
    rows = {name: {**sweep["rows"][name], "model.trunk.width": 24} for name in kept}
    return {**sweep, "rows": rows}


VARIANTS = {"ablation": ablation, "wider": wider}
