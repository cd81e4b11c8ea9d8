"""The baseline's training step in PyTorch, as a contender in a process of its own.

Of its own, so that neither engine's threads, allocator or libraries stand in the other's way. That process
imports no jax; this module is what it begins with.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from wsca_jax import allocator
from wsca_jax.errors import WscaError

BEFORE = 3  # steps that are taken first, of which the first compiles


class Shape(NamedTuple):
    """The model's sizes; names as in the configuration's section `model`.

    Attributes:
      trunk: arguments of `torch_resnet.ReferenceResNet`, `depth` and `width` included.
      group_of: for each attribute, the number of its group among those that have attributes.
    """

    trunk: dict[str, Any]
    group_of: tuple[int, ...]
    hidden_size: int
    attr_dim: int
    token_stage: str
    top_down: bool
    token_gradient: float
    linear_path: bool
    grid: int
    token_dropout: float
    head_dropout: float


class Jitter(NamedTuple):
    """How images are augmented; see `wsca_jax.augment.Options`."""

    flip_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


class Recipe(NamedTuple):
    """What PyTorch trains, in plain values.

    Attributes:
      model: sizes of the model.
      jitter: augmentation.
      learning_rate, weight_decay, betas, eps: of AdamW.
      clip_norm, ema_decay: 0 for none.
      bfloat16: whether to compute under autocast; otherwise in float32.
      device: "cpu" or "cuda".
      compiled: whether torch.compile makes the step, or PyTorch runs it eagerly.
    """

    model: Shape
    jitter: Jitter
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_norm: float
    ema_decay: float
    bfloat16: bool
    device: str
    compiled: bool


class Batch(NamedTuple):
    """What both engines train on."""

    image: UInt8[np.ndarray, "B H W 3"]
    labels: UInt8[np.ndarray, "B A"]
    known: Bool[np.ndarray, "B A"]


def check(recipe: Recipe) -> None:
    """Raises WscaError where PyTorch cannot run this, or cannot compile it."""
    if importlib.util.find_spec("torch") is None:
        raise WscaError("--against torch: PyTorch is not installed; pip install 'wsca-jax[torch]'")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if recipe.compiled and recipe.device == "cpu" and shutil.which(compiler) is None:
        raise WscaError(
            f"--against torch: torch.compile needs a C++ compiler on the CPU, found no {compiler}; install "
            "one, name it in CXX, or add --torch_eager"
        )


@contextlib.contextmanager
def contender(recipe: Recipe, batch: Batch, steps: int) -> Iterator[Callable[[], None]]:
    """A turn of so many steps, ready to be taken in turn.

    Raises:
      WscaError: PyTorch is missing, finds no GPU, or cannot compile the step.
    """
    check(recipe)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_prepare, (recipe, batch))
        yield lambda: pool.apply(_take, (steps,))


def version() -> str:
    """PyTorch's version, without importing it."""
    return importlib.metadata.version("torch")


_step: Callable[[int], None] | None = None  # of the process that runs PyTorch


def _prepare(recipe: Recipe, batch: Batch) -> None:
    global _step
    allocator.keep_freed_memory()  # as ours
    import torch

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise WscaError(
            f"--against torch: PyTorch {torch.__version__} finds no GPU, JAX does; install PyTorch for CUDA"
        )
    _step = training_step(recipe, batch)
    try:
        _step(BEFORE)
    except Exception as error:
        if not recipe.compiled:
            raise
        said = " ".join(str(error).split())[:200]
        raise WscaError(
            f"--against torch: torch.compile failed ({type(error).__name__}: {said}); add --torch_eager to "
            "compare with PyTorch eager"
        ) from None


def _take(steps: int) -> None:
    assert _step is not None
    _step(steps)


def training_step(recipe: Recipe, batch: Batch) -> Callable[[int], None]:
    """Takes this many steps on the batch and waits for the last."""
    import torch

    from wsca_jax.bench.torch_baseline import Baseline
    from wsca_jax.bench.torch_recipe import augment, masked_loss

    torch.manual_seed(0)
    # As XLA does: on a batch that is learnt by heart, squared gradients become so small that CPUs are slow
    # with them. Threads that begin later inherit it.
    torch.set_flush_denormal(True)
    if recipe.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, as JAX's default there
    place: dict[str, Any] = {"device": recipe.device, "memory_format": torch.channels_last}
    model = Baseline(recipe.model).to(**place).train()
    image, labels, known = (torch.from_numpy(x).to(recipe.device) for x in batch)
    parameters = list(model.parameters())
    averaged = [x.detach() for x in (*parameters, *model.buffers()) if x.is_floating_point()]
    average = [x.clone() for x in averaged]
    optimizer = torch.optim.AdamW(
        parameters,
        recipe.learning_rate,
        recipe.betas,
        recipe.eps,
        recipe.weight_decay,
        fused=True,
    )

    def loss(image: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        x = augment(image, recipe.jitter)
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(x)
        return torch.stack([masked_loss(each, labels, known) for each in logits]).mean()

    forward = torch.compile(loss) if recipe.compiled else loss

    def take(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            forward(image, labels, known).backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            if recipe.ema_decay:
                torch._foreach_lerp_(average, averaged, 1 - recipe.ema_decay)
        if recipe.device == "cuda":
            torch.cuda.synchronize()

    return take
