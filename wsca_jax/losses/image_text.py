"""Image-text alignment: an image agrees with what is said of it, and less with what is said of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from wsca_jax.losses.directions import counted, unit

Scalar = Float32[Array, ""]


def image_text(
    image: Float[Array, "B k"],
    text: Float[Array, "B k"],
    has_text: Bool[Array, "B"],
    weight: Float[Array, "B"],
    *,
    scale: Scalar,
    bias: Scalar,
) -> Scalar:
    """Pulls every image to its own caption and off the captions of the other images of the global batch.

    With s_ij = scale cos(image_i, text_j) + bias and w the weights, 0 without a caption:

        sum_i w_i softplus(-s_ii) / sum_i w_i  +  sum_{i != j} w_i w_j softplus(s_ij) / sum_{i != j} w_i w_j

    This is the sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343), which treats every pair alone, so
    that images and captions need no softmax over each other. There a batch's pairs are summed, and a bias of
    -10 makes up for the many that do not belong together; here both kinds are averaged apart, as in
    contrastive alignment, and a bias near 0 will do. A caption that is true of another image too is no
    mistake: the best s_ij is log p(caption_j | image_i) / p(caption_j), whatever else the caption is true of.

    `image` must not have read the text, or nothing is left to learn.

    Args:
      image: features of the images, any float dtype.
      text: features of the captions, of any length, any float dtype.
      has_text: whether there is a caption. Without one an example is in no pair, whatever its features hold.
      weight: each example's weight in [0, 1]; 0 for padding.
      scale, bias: of the score; learned.

    Returns:
      A float32 scalar, at least 0. A kind of which there is no pair adds 0.

    Raises:
      ValueError: image and text features have different shapes.
    """
    if image.shape != text.shape:
        raise ValueError(f"image and text features must fit, found shapes {image.shape} and {text.shape}")
    weight = jnp.where(has_text, weight.astype(jnp.float32), 0.0)
    image, text = unit(counted(image, weight)), unit(counted(text, weight))
    # Accelerators otherwise round the operands of float32 products to 10 bits or fewer.
    score = scale * jnp.matmul(image, text.T, precision=lax.Precision.HIGHEST) + bias
    others = weight[:, None] * weight * (1.0 - jnp.eye(len(weight)))
    return _mean(jax.nn.softplus(-jnp.diagonal(score)), weight) + _mean(jax.nn.softplus(score), others)


def _mean(values: Float32[Array, "..."], weight: Float32[Array, "..."]) -> Scalar:
    total = weight.sum()
    return (values * weight).sum() / jnp.where(total > 0.0, total, 1.0)
