"""Random ResNet weights that PyTorch and we draw alike: each tensor's from its own name, by NumPy alone."""

from __future__ import annotations

import zlib

import numpy as np

from wsca_jax.models.pretrained import Variables, torchvision_name


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor called `name` in torchvision's layout, float32; statistics and affine parts non-trivial."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2.0, shape).astype(np.float32)
    if len(shape) == 1:
        centre = 1.0 if name.endswith("weight") else 0.0
        return (centre + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def seeded_image(batch: int, size: int) -> np.ndarray:
    """Images [batch, size, size, 3], standard normal."""
    return np.random.default_rng(size).standard_normal((batch, size, size, 3)).astype(np.float32)


def seeded_variables(variables: Variables) -> Variables:
    """Our variables (arrays or their shapes), filled with the seeded tensors."""
    import jax

    def fill(keys: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = torchvision_name(tuple(key.key for key in keys))
        if len(leaf.shape) != 4:
            return seeded(name, leaf.shape)
        h, w, i, o = leaf.shape
        return seeded(name, (o, i, h, w)).transpose(2, 3, 1, 0)

    return jax.tree_util.tree_map_with_path(fill, variables)
