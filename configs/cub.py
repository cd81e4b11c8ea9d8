"""CUB-200-2011: 312 attributes of birds in three groups, learnt from labels of species; see docs/data/cub.md.

    wsca train --config configs/cub.py:small --data_dir D --workdir W
    wsca evaluate --workdir W --split test

On a laptop:

small: ResNet-18 of half width from scratch, 96 px, 12 epochs, each image cut to its bird. Half of the species
    are for training, a quarter for validation, a quarter for testing: measured is whether attributes are
    recognised in species never seen.
small_official: the same on the official split, where every species is in training: species are recognised,
    and their attributes with them.

Last step, test images, seed 0. In brackets a plain PyTorch ResNet-18 of the same width on the same batches
(AdamW, one-cycle, flips), by
    python benchmarks/torch_reference.py --config configs/cub.py:small --data_dir D --split test

                    test images, species  chance mAP  mAP            mean accuracy  macro F1
    small           592, 13 unseen        0.216       0.379 (0.378)  0.944 (0.945)  0.239 (0.227)
    small_official  695, 50 seen          0.141       0.574 (0.523)  0.970 (0.968)  0.413 (0.373)

    To call everything absent has a mean accuracy of 0.944 and 0.939. So on unseen species attributes are
    ranked better than by chance, and decided no better than that.
    Before a prediction had two sides (docs/modules.md) it was 0.381 and 0.603; without the cut to the bird
    (--config.data.options.crop=False) small_official then had mAP 0.473 and macro F1 0.299.
    cost: 6 minutes each, 1 of them to compile, PyTorch 3 and 6, on one core, at 50 to 60 images a second

The figures are of the classes 001 to 050, images of at most 160 pixels, without labels of single images. So
the truth is the classes' rates (present from 0.6, absent up to 0.4, unknown between), in evaluation, too, and
mAP is of the attributes that some species of the split has: 81 of 312 for small, 135 for small_official. With
image_attribute_labels.txt evaluation sees each image's own labels, and other figures come of it.

On an accelerator, none of them measured yet:

baseline: ResNet-50, 224 px, 60 epochs, bfloat16, no modules.
full: the same with every module.
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
