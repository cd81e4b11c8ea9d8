"""ResNet v1.5 (He et al. 2016, arXiv:1512.03385; the stride of a bottleneck on its 3x3), NHWC."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.convolution import Lowering
from wsca_jax.models.layers import BatchNorm, Conv, add_relu, max_pool

# Blocks in each of the four stages. 26 is timm's resnet26: bottlenecks, two to a stage.
BLOCKS = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Stages(NamedTuple):
    """Feature maps of a trunk, finest first; usually 4, 8, 16 and 32 pixels a position.

    Attributes:
      c2, c3, c4, c5: [B, h, w, C] in the compute dtype.
    """

    c2: Float[Array, "B h2 w2 C2"]
    c3: Float[Array, "B h3 w3 C3"]
    c4: Float[Array, "B h4 w4 C4"]
    c5: Float[Array, "B h5 w5 C5"]


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, and ReLU where `relu`.

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      stride: step.
      relu: whether a ReLU follows.
      zero_init: whether the normalisation's scale starts at 0.
      dtype: compute dtype.
      lowering: see `Conv`.
      norm_parts: see `ResNet`.
    """

    features: int
    kernel: int
    stride: int = 1
    relu: bool = True
    zero_init: bool = False
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None
    norm_parts: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, weight: Float32[Array, "B"] | None
    ) -> Float[Array, "B h w features"]:
        size, strides = (self.kernel, self.kernel), (self.stride, self.stride)
        x = Conv(self.features, size, strides, dtype=self.dtype, lowering=self.lowering, name="conv")(x)
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        norm = BatchNorm(dtype=self.dtype, scale_init=scale_init, parts=self.norm_parts, name="norm")
        x = norm(x, train=train, weight=weight)
        return nn.relu(x) if self.relu else x


class Block(nn.Module):
    """A residual block: two 3x3 units, or 1x1, 3x3, 1x1 units with a fourfold output (`bottleneck`).

    Attributes:
      width: channels of the inner convolutions.
      stride: step of the block.
      bottleneck: which of the two forms.
      zero_init: whether the last normalisation's scale starts at 0, the block as the identity.
      dtype: compute dtype.
      lowering: see `Conv`.
      norm_parts: see `ResNet`.
    """

    width: int
    stride: int
    bottleneck: bool
    zero_init: bool = False
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None
    norm_parts: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool, weight: Float32[Array, "B"] | None
    ) -> Float[Array, "B h w D"]:
        unit = functools.partial(
            ConvNorm, dtype=self.dtype, lowering=self.lowering, norm_parts=self.norm_parts
        )
        out = self.width * (4 if self.bottleneck else 1)
        last = functools.partial(unit, out, relu=False, zero_init=self.zero_init)
        if self.bottleneck:
            units = [
                unit(self.width, 1, name="unit1"),
                unit(self.width, 3, self.stride, name="unit2"),
                last(1, name="unit3"),
            ]
        else:
            units = [unit(self.width, 3, self.stride, name="unit1"), last(3, name="unit2")]
        y = x
        for module in units:
            y = module(y, train=train, weight=weight)
        if self.stride != 1 or x.shape[-1] != out:
            x = unit(out, 1, self.stride, relu=False, name="shortcut")(x, train=train, weight=weight)
        return add_relu(x, y)


class Stage(nn.Module):
    """Residual blocks `block0`, `block1`, ...; the first takes the stride.

    Attributes: see `Block`, and
      remat: whether the backward pass computes what lies inside each block again, instead of keeping it.
    """

    blocks: int
    width: int
    stride: int
    bottleneck: bool
    zero_init: bool = False
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None
    norm_parts: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, weight: Float32[Array, "B"] | None
    ) -> Float[Array, "B h w D"]:
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # 2: train
        for i in range(self.blocks):
            x = block(
                self.width,
                self.stride if i == 0 else 1,
                self.bottleneck,
                self.zero_init,
                self.dtype,
                self.lowering,
                self.norm_parts,
                name=f"block{i}",
            )(x, train, weight)
        return x


class ResNet(nn.Module):
    """ResNet-18, -26 or -50 without its classifier.

    Parameters are named `stem/conv/kernel`, `stem/norm/scale`, `c2/block0/unit1/conv/kernel`,
    `c2/block0/shortcut/norm/bias`, ...: the stage's name is the name of its output.

    Attributes:
      depth: 18 (two 3x3 to a block), 26 or 50 (bottlenecks).
      width: channels of the first stage's inner convolutions; 64 is the published network.
      stem_kernel, stem_stride: side and step of the first convolution; 3 and 1 suit images of 32-64 px.
      max_pool: whether the stem ends in a 3x3 max pooling of stride 2.
      last_stride: step of the last stage; 1 keeps c5 at c4's grid.
      zero_init: whether each block starts as the identity (Goyal et al. 2017, arXiv:1706.02677).
      dtype: compute dtype; parameters and batch statistics are float32.
      lowering: see `Conv`.
      norm_parts: equal parts of a batch with statistics of their own; see `BatchNorm`.
      remat: the stages, such as ("c2", "c3"), of whose blocks only the inputs are kept for the backward pass,
        which computes the rest again: less memory, more time (Chen et al. 2016, arXiv:1604.06174).
    """

    depth: int = 50
    width: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    max_pool: bool = True
    last_stride: int = 2
    zero_init: bool = False
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None
    norm_parts: int = 1
    remat: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in BLOCKS:
            raise ValueError(f"ResNet: depth is {self.depth}, expected one of {', '.join(map(str, BLOCKS))}")
        unknown = set(self.remat) - set(Stages._fields)
        if unknown:
            found, known = ", ".join(sorted(unknown)), ", ".join(Stages._fields)
            raise ValueError(f"ResNet: remat names {found}, expected stages out of {known}")

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], *, train: bool, weight: Float32[Array, "B"] | None = None
    ) -> Stages:
        """Computes the feature maps.

        Args:
          image: normalised images.
          train: whether batch statistics are the batch's own (and `batch_stats` is updated) or the stored.
          weight: the examples' weights in the batch statistics; 0 leaves one out, None counts all.
        """
        unit = functools.partial(
            ConvNorm, dtype=self.dtype, lowering=self.lowering, norm_parts=self.norm_parts
        )
        stem = unit(self.width, self.stem_kernel, self.stem_stride, name="stem")
        x = stem(image, train=train, weight=weight)
        if self.max_pool:
            x = max_pool(x)
        stages = []
        strides = (1, 2, 2, self.last_stride)
        for i, (blocks, stride) in enumerate(zip(BLOCKS[self.depth], strides, strict=True)):
            x = self._stage(i, blocks, stride)(x, train=train, weight=weight)
            stages.append(x)
        return Stages(*stages)

    def _stage(self, i: int, blocks: int, stride: int) -> Stage:
        name = Stages._fields[i]
        return Stage(
            blocks,
            self.width * 2**i,
            stride,
            bottleneck=self.depth != 18,
            zero_init=self.zero_init,
            dtype=self.dtype,
            lowering=self.lowering,
            norm_parts=self.norm_parts,
            remat=name in self.remat,
            name=name,
        )
