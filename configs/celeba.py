"""CelebA: 40 attributes of faces in eight groups.

    wsca train --config configs/celeba.py:small --data_dir D --workdir W
    wsca train --config configs/celeba.py:small --data_dir D --workdir W \\
        --config.weak_labels.known_fraction=0.1

small: ResNet-18 from scratch, 64 px, 15 epochs. Last step, validation, mean of seeds 0, 1, 2:
    all labels: mAP 0.656 (0.663, 0.653, 0.651), mean accuracy 0.885 (0.887, 0.884, 0.884); chance mAP 0.232
    10 % of the labels: mAP 0.541 (0.542, 0.536, 0.543), mean accuracy 0.859 (0.858, 0.858, 0.861)
    cost: 7 minutes on 2 CPU cores, at the 260 images a second seen while nothing else ran
modules: the same with every module; its worth is not measured yet. A step takes 2.4 times small's on 2 cores.
full: ResNet-50, 224 px, 30 epochs, bfloat16, for an accelerator. Not measured yet.

The figures are of a subset: 7,025 training and 995 validation images of 89x109 pixels, identities apart, all
of them from the official training partition. They do not compare with published CelebA figures.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.data = {"name": "celeba"}
    VARIANTS[variant](config)
    return config


def small(config: ConfigDict) -> None:
    """A laptop. The random crop is mild: hats, neckties and earrings lie at the edge of the image."""
    config.data.images = {"size": 64, "crop_scale": (0.75, 1.0), "crop_ratio": (0.9, 1.1)}
    config.model = {"hidden_size": 256, "dtype": "float32", "trunk": {"depth": 18}}
    config.augment = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0}
    config.optimizer = {
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    }
    config.train = {"batch_size": 64, "epochs": 15.0}


def full(config: ConfigDict) -> None:
    """An accelerator; with torchvision or timm weights, --config.model.pretrained=resnet50.safetensors."""
    config.data.images = {"size": 224, "crop_scale": (0.75, 1.0), "crop_ratio": (0.9, 1.1)}
    config.data.threads = 16
    config.optimizer = {
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "ema_decay": 0.999,
    }
    config.train = {"batch_size": 256, "epochs": 30.0}


def modules(config: ConfigDict) -> None:
    """`small` with every module, on tokens of the trunk's third stage (8x8 at 64 px)."""
    small(config)
    config.model.token_stage = "c3"
    config.model.attr_dim = 64
    config.model.tokens = {"grid": 8}
    config.model.frequency = {"width": 12}
    config.model.encoder = {"depth": 2, "num_heads": 4}
    config.model.router = {"experts": 4}
    config.model.decomposer = {"width": 64, "num_heads": 2}
    config.model.alignment = {"initial_scale": 10.0}
    config.loss = {"balancing": {"kind": "trend"}}
    config.loss.accept = {"warmup_steps": 330, "ramp_steps": 660}


VARIANTS = {"small": small, "modules": modules, "full": full}
