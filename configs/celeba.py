"""CelebA: 40 attributes of faces in eight groups.

    wsca train --config configs/celeba.py:small --data_dir D --workdir W
    wsca train --config configs/celeba.py:small --data_dir D --workdir W \\
        --config.weak_labels.known_fraction=0.1

On a laptop:

small: ResNet-18 from scratch, 64 px, 15 epochs. Last step, validation:
    all labels, seed 0: mAP 0.657, mean accuracy 0.887; chance mAP 0.232
    cost: 48 minutes on one core (AMD EPYC) at 36 images a second, the loader on the same core; 0.3 % of step
    time is spent waiting for data
    Before a prediction had two sides (docs/modules.md), seeds 0, 1, 2: all labels 0.663, 0.653, 0.651; 10 %
    of the labels 0.542, 0.536, 0.543, mean accuracy 0.858, 0.858, 0.861
laptop_baseline: the trunk of the ablation: a quarter as wide, 48 px, no max pooling, 6x6 tokens, 12 epochs.
    10 % of the labels: mAP 0.516 (0.522, 0.517, 0.509); all: 0.621 (0.620, 0.623, 0.621)
laptop: the same with every module, which have not been shown to help (docs/modules.md).
    10 % of the labels: mAP 0.515 (0.519, 0.511, 0.515); all: 0.625 (0.626, 0.627, 0.622)
    `configs/sweeps/celeba.py` measures what all and each of them are worth.
    With `--config.model.trunk.width=24`, 10 % of the labels: 0.537 without and 0.535 with modules; all: 0.637
    and 0.636

On an accelerator (`--config configs/celeba.py:full`). No score and no time of them has been measured; what
`wsca inspect` says before the first step, memory as planned for one device:

baseline: ResNet-50, 224 px, 30 epochs, bfloat16, no modules. 28 M parameters, 4.17 G multiply-adds for an
    image; 11.9 GiB at its batch of 256.
full: the same with every module: d 768, six layers. 64 M parameters, 5.84 G multiply-adds; 18.0 GiB.
paper: AdamW at 1e-4, classification first, then the modules' own losses. The model of `full`; 5.5 GiB at its
    batch of 64.
large_batch: a pod: LAMB, batch 4096, 90 epochs. The model of `full`. Its dry run: docs/scaling.md.
large_batch_lars: the same with LARS.

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


def laptop_baseline(config: ConfigDict) -> None:
    """Tokens of 8 pixels a side, from the third stage, that the fourth one informs."""
    small(config)
    config.data.images.size = 48
    config.model.update({"hidden_size": 64, "attr_dim": 32, "token_stage": "c4", "top_down": True})
    config.model.trunk.update({"width": 16, "max_pool": False})
    config.model.tokens = {"grid": 6}
    config.evaluation = {"every_epochs": 3.0}
    config.checkpoint = {"every_epochs": 3.0}
    config.train.epochs = 12.0


def laptop(config: ConfigDict) -> None:
    """`laptop_baseline` with every module, at sizes for a laptop.

    Classification comes first, the other losses in the fourth epoch, pseudo labels in the sixth.
    """
    laptop_baseline(config)
    config.model.frequency = {"width": 8}
    config.model.encoder = {"depth": 1, "num_heads": 4}
    config.model.router = {"experts": 4}
    config.model.decomposer = {"width": 32, "num_heads": 2}
    config.model.alignment = {}
    config.loss = {"balancing": {"kind": "trend"}}
    config.loss.start_fraction = 0.3
    config.loss.accept = {"warmup_steps": 220, "ramp_steps": 220}  # from there on; of 1,320 steps in all
    config.loss.held_out = {"fraction": 0.05}  # each label counts; 1,400 judge quality


def baseline(config: ConfigDict) -> None:
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


def full(config: ConfigDict) -> None:
    """`baseline` with every module; a step takes about 1.5 times as long (docs/modules.md)."""
    baseline(config)
    every_module(config)


def paper(config: ConfigDict) -> None:
    """ResNet-50, 224 px; batch, epochs and where the second stage begins are ours."""
    every_module(config)
    config.data.images = {"size": 224}
    config.data.threads = 16
    config.augment = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    config.optimizer = {
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "warmup_fraction": 0.1,
        "ema_decay": 0.999,
    }
    config.loss.start_fraction = 0.3
    config.train = {"batch_size": 64, "epochs": 30.0}


def large_batch(config: ConfigDict) -> None:
    """A pod, with LAMB. The rate and its rule are ResNet-50's (You et al. 2020, arXiv:1904.00962)."""
    full(config)
    config.optimizer = {
        "name": "lamb",
        "learning_rate": 0.04,
        "base_batch_size": 32768,
        "batch_scaling": "root",
        "weight_decay": 1e-4,
        "warmup_fraction": 2.5 / 90,
        "eps": 1e-6,
        "ema_decay": 0.99,
    }
    config.loss.accept = {"warmup_steps": 400, "ramp_steps": 800}
    config.train = {"batch_size": 4096, "epochs": 90.0}


def large_batch_lars(config: ConfigDict) -> None:
    """`large_batch` with LARS: rate, rule and warm-up of Chen et al. 2020 (SimCLR, arXiv:2002.05709)."""
    large_batch(config)
    config.optimizer = {
        "name": "lars",
        "learning_rate": 0.3,
        "base_batch_size": 256,
        "batch_scaling": "linear",
        "weight_decay": 1e-6,
        "warmup_fraction": 10 / 90,
        "ema_decay": 0.99,
    }


def every_module(config: ConfigDict) -> None:
    """All modules at their default sizes, with weights that follow the losses' trends."""
    config.model = {name: {} for name in ("frequency", "encoder", "router", "decomposer", "alignment")}
    config.loss = {"balancing": {"kind": "trend"}}


VARIANTS = {
    "small": small,
    "laptop_baseline": laptop_baseline,
    "laptop": laptop,
    "baseline": baseline,
    "full": full,
    "paper": paper,
    "large_batch": large_batch,
    "large_batch_lars": large_batch_lars,
}
