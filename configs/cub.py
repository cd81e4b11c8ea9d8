"""CUB-200-2011: 312 attributes of birds in three groups, learnt from labels of species.

wsca train --config configs/cub.py:small --data_dir D --workdir W
"""

from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.data = {"name": "cub", "options": {"crop": True, "split": "class_disjoint"}}
    config.weak_labels = {"class_level": True}
    config.augment = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.0}
    VARIANTS[variant](config)
    return config


def small(config: ConfigDict) -> None:
    """A laptop. Half the trunk's width: 1,068 images teach a wider one nothing more."""
    config.data.images = {"size": 96, "crop_scale": (0.5, 1.0), "crop_ratio": (0.75, 1.33)}
    config.model = {"hidden_size": 256, "dtype": "float32", "trunk": {"depth": 18, "width": 32}}
    config.optimizer = {
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    }
    config.train = {"batch_size": 32, "epochs": 12.0}
    config.evaluation = {"every_epochs": 4.0}
    config.checkpoint = {"every_epochs": 4.0}


def small_official(config: ConfigDict) -> None:
    """`small` on the official split, where every species is in training and in testing."""
    small(config)
    config.data.options.split = "official"


def baseline(config: ConfigDict) -> None:
    """An accelerator; with torchvision or timm weights, --config.model.pretrained=resnet50.safetensors."""
    config.data.images = {"size": 224, "crop_scale": (0.5, 1.0), "crop_ratio": (0.75, 1.33)}
    config.data.threads = 16
    config.optimizer = {
        "learning_rate": 3e-4,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.999,
    }
    config.train = {"batch_size": 64, "epochs": 60.0}


def full(config: ConfigDict) -> None:
    """`baseline` with every module, and weights that follow the losses' trends."""
    baseline(config)
    config.model = {name: {} for name in ("frequency", "encoder", "router", "decomposer", "alignment")}
    config.loss = {"balancing": {"kind": "trend"}}


VARIANTS = {"small": small, "small_official": small_official, "baseline": baseline, "full": full}
