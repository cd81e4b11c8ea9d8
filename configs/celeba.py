"""CelebA."""

from ml_collections import ConfigDict


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.data = {"name": "celeba", "images": {"size": 224}}
    VARIANTS[variant](config)
    return config


def full(config: ConfigDict) -> None:
    """ResNet-50 at 224 px."""


def small(config: ConfigDict) -> None:
    """ResNet-18 at 64 px."""
    config.data.images = {"size": 64, "crop_scale": (0.75, 1.0), "crop_ratio": (0.9, 1.1)}
    config.model = {"hidden_size": 256, "dtype": "float32", "trunk": {"depth": 18}}
    config.augment = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0}
    config.optimizer = {
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    }
    config.train = {"batch_size": 64, "epochs": 15.0}


VARIANTS = {"full": full, "small": small}
