"""Rendered scenes: coloured, textured objects of several materials; nothing to download.

wsca train --config configs/scenes.py:quickstart --workdir runs/scenes
"""

from ml_collections import ConfigDict


def get_config(variant: str = "quickstart") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.data = {"name": "scenes", "images": {"size": 64}, "options": {"size": 64}}
    config.model = {"hidden_size": 256, "attr_dim": 128, "dtype": "float32"}
    config.model.trunk = {"depth": 18, "width": 32}
    config.augment = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    config.optimizer = {
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    }
    config.train = {"batch_size": 64, "epochs": 6.0}
    VARIANTS[variant](config)
    return config


def quickstart(config: ConfigDict) -> None:
    """Minutes on a laptop."""


def tiny(config: ConfigDict) -> None:
    """Seconds; for tests of the whole system, not for results."""
    images = {"train_images": 96, "validation_images": 40, "test_images": 40}
    config.data = {"name": "scenes", "images": {"size": 32}, "options": {"size": 32, **images}}
    config.model.update({"hidden_size": 16, "attr_dim": 8})
    config.model.trunk.width = 8
    config.train = {"batch_size": 16, "epochs": 2.0, "log_every": 2}
    config.evaluation = {"batch_size": 32}


VARIANTS = {"quickstart": quickstart, "tiny": tiny}
