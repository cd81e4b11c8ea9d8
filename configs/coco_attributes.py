"""COCO Attributes: 204 attributes of objects, in six groups; see docs/data/coco_attributes.md.

    wsca prepare --data coco_attributes --data_dir D --output P --resize 256
    wsca train --config configs/coco_attributes.py:baseline --data_dir P --workdir W

An image is one object with its surroundings, 16 pixels of 224 on each side (data.options.context); labels are
votes, parted at a half (data.options.positive, negative).

On an accelerator:

baseline: ResNet-50, 224 px, 20 epochs, bfloat16, no modules.
full: the same with every module.

On a laptop:

small: ResNet-18 from scratch, 64 px, 10 epochs.

None of them is measured: the data was not at hand.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "baseline") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.data = {"name": "coco_attributes"}
    VARIANTS[variant](config)
    return config


def baseline(config: ConfigDict) -> None:
    """An accelerator; with torchvision or timm weights, --config.model.pretrained=resnet50.safetensors."""
    config.data.images = {"size": 224, "crop_scale": (0.6, 1.0), "crop_ratio": (0.8, 1.25)}
    config.data.threads = 16
    config.augment = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
    config.optimizer = {
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.999,
    }
    config.train = {"batch_size": 256, "epochs": 20.0}


def full(config: ConfigDict) -> None:
    """`baseline` with every module, at their default sizes."""
    baseline(config)
    config.model = {name: {} for name in ("frequency", "encoder", "router", "decomposer", "alignment")}
    config.loss = {"balancing": {"kind": "trend"}}


def small(config: ConfigDict) -> None:
    """A laptop."""
    config.data.images = {"size": 64, "crop_scale": (0.6, 1.0), "crop_ratio": (0.8, 1.25)}
    config.model = {"hidden_size": 256, "dtype": "float32", "trunk": {"depth": 18}}
    config.augment = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0}
    config.optimizer = {
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    }
    config.train = {"batch_size": 64, "epochs": 10.0}


VARIANTS = {"baseline": baseline, "full": full, "small": small}
