"""Reads torchvision and timm ResNet checkpoints into our variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from wsca_jax.errors import WscaError

Variables = Mapping[str, Any]
Tensors = dict[str, np.ndarray]

CLASSIFIER = ("fc.weight", "fc.bias")
_COUNTER = ".num_batches_tracked"
_STATISTICS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class PretrainedError(WscaError):
    """A checkpoint that does not fit the network. One line: file, expected, found, what to do."""


def load_resnet(path: str | Path, variables: Variables, *, skip_classifier: bool = True) -> Variables:
    """Replaces a `ResNet`'s parameters and batch statistics by a checkpoint's.

    Args:
      path: a `.safetensors` file, or a `.pth` / `.pt` / `.bin` file written by `torch.save` (read with
        `weights_only=True`, which runs no code of the file; needs PyTorch). Tensors are named as
        torchvision and timm name them, bare or under "state_dict".
      variables: what `ResNet.init` gave (its "params" and "batch_stats"); arrays or ShapeDtypeStructs.
      skip_classifier: leave out the checkpoint's `fc`, which a trunk has no place for. Where False,
        its presence is an error.

    Returns:
      Variables of the same structure, float32.

    Raises:
      PretrainedError: the file cannot be read, or tensors are missing, unexpected or of another shape.
    """
    path = Path(path)
    tensors = {name: x for name, x in _read(path).items() if not name.endswith(_COUNTER)}
    if skip_classifier:
        tensors = {name: x for name, x in tensors.items() if name not in CLASSIFIER}
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    names = [torchvision_name(tuple(key.key for key in keys)) for keys, _ in leaves]
    _check_names(path, names, tensors)
    values = [
        _fitted(path, name, tensors[name], leaf.shape) for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, values)


def torchvision_name(path: tuple[str, ...]) -> str:
    """("params", "c2", "block0", "unit1", "conv", "kernel") -> "layer1.0.conv1.weight"."""
    *modules, kind, leaf = path[1:]
    suffix = "weight" if kind == "conv" else _STATISTICS[leaf]
    if modules == ["stem"]:
        return f"{'conv1' if kind == 'conv' else 'bn1'}.{suffix}"
    stage, block, unit = modules
    prefix = f"layer{int(stage[1:]) - 1}.{block.removeprefix('block')}"
    if unit == "shortcut":
        return f"{prefix}.downsample.{0 if kind == 'conv' else 1}.{suffix}"
    return f"{prefix}.{'conv' if kind == 'conv' else 'bn'}{unit.removeprefix('unit')}.{suffix}"


def _fitted(path: Path, name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """The tensor in our layout: kernels from OIHW to HWIO."""
    tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    if tensor.shape != shape:
        raise PretrainedError(
            f"{path}: {name} has shape {tensor.shape} (in our axis order), expected {shape}; "
            "the checkpoint is of another width or stem: choose the trunk's options to match it"
        )
    return jnp.asarray(tensor, jnp.float32)


def _check_names(path: Path, expected: list[str], found: Tensors) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = sorted(found.keys() - set(expected))
    if missing or unexpected:
        raise PretrainedError(
            f"{path}: expected {len(expected)} tensors of this ResNet; {_summary('missing', missing)}; "
            f"{_summary('unexpected', unexpected)}; choose the depth the checkpoint was made for"
        )


def _summary(word: str, names: list[str]) -> str:
    if not names:
        return f"none {word}"
    return f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _read(path: Path) -> Tensors:
    if not path.is_file():
        raise PretrainedError(f"{path}: no such file; give a .safetensors or .pth file with ResNet weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_torch(path)
    raise PretrainedError(f"{path}: expected a .safetensors or .pth file, found {path.suffix!r}")


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return {name: np.asarray(x) for name, x in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(
            f"{path}: not a readable safetensors file ({_line(error)}); fetch it again"
        ) from error


def _read_torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(
            f"{path}: reading .pth files needs PyTorch; pip install 'wsca-jax[torch]', or use .safetensors"
        ) from error
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its zip, pickle and storage readers raise
        raise PretrainedError(f"{path}: not a weights-only PyTorch file ({_line(error)})") from error
    record = record.get("state_dict", record) if isinstance(record, Mapping) else record
    if not isinstance(record, Mapping) or not all(isinstance(x, torch.Tensor) for x in record.values()):
        raise PretrainedError(f"{path}: expected a dictionary of tensors, found {type(record).__name__}")
    return {name: x.float().numpy() for name, x in record.items()}


def _line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]
