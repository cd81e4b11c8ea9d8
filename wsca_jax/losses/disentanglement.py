"""Light disentanglement (CMDL): the features of different groups should not tell of each other.

Arrays in, one float32 scalar out. Every statistic runs over the global batch, in float32 and weighed by
example; an example of weight 0 touches nothing, whatever its features hold. Every group's features are first
divided by their own root mean square, so that nothing can be gained by shrinking or growing them: the norms
of whatever reads them would undo that anyway.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Key

from wsca_jax.losses.directions import counted

Scalar = Float32[Array, ""]
Measure = Literal["correlation", "hsic_linear", "hsic_rbf"]
Kernel = Literal["linear", "rbf"]

# Smallest variance that counts, of features of unit root mean square: below it lies bfloat16's rounding.
_VARIANCE = 1e-5
# Smallest mean square of a group's features that is still scaled up to 1.
_MEAN_SQUARE = 1e-8
# Smallest self-criterion that pairs are divided by; of standardised features it is 1e-2 (rbf) or 1 (linear).
_CRITERION = 1e-6
# Matrix products of statistics: accelerators otherwise round float32 operands to 10 bits or fewer.
_EXACT = lax.Precision.HIGHEST


def cmdl(
    branches: Float[Array, "B G a"],
    weight: Float[Array, "B"],
    projection: Float32[Array, "G a k"],
    *,
    measure: Measure = "correlation",
    variance: float = 0.1,
    sparsity: float = 0.005,
    floor: float = 0.5,
) -> Scalar:
    """Dependence between groups + variance * variance floor + sparsity * L1.

    Args:
      branches: features of every group, any float dtype.
      weight: each example's weight in [0, 1]; 0 for padding.
      projection: from `projections`, best with a new key each step.
      measure: dependence by `cross_correlation` or by `hsic` with that kernel.
      variance: factor of `variance_floor`.
      sparsity: factor of `absolute_mean`.
      floor: as in `variance_floor`.

    Returns:
      A float32 scalar, at least 0; 0 for fewer than two examples. Parts with factor 0 are not computed.

    Raises:
      ValueError: an unknown measure, a negative factor, or a floor outside (0, 1).
    """
    for name, factor in (("variance", variance), ("sparsity", sparsity)):
        if factor < 0.0:
            raise ValueError(f"{name} must be at least 0, found {factor}")
    total = _dependence(branches, weight, projection, measure)
    if variance:
        total = total + variance * variance_floor(branches, weight, floor=floor)
    if sparsity:
        total = total + sparsity * absolute_mean(branches, weight)
    return total


def projections(key: Key[Array, ""], groups: int, dim: int, width: int = 8) -> Float32[Array, "G a k"]:
    """One random subspace of `width` dimensions for every group, with orthonormal columns.

    Keys derived from the step show, over many steps, every direction to the loss, at a few columns' cost.

    Args:
      key: where the randomness comes from.
      groups: number of groups G.
      dim: width a of a group's features.
      width: columns k; at most `dim` are drawn.

    Raises:
      ValueError: width is below 1.
    """
    if width < 1:
        raise ValueError(f"width of the projections must be at least 1, found {width}")
    return jax.random.orthogonal(key, dim, (groups,), jnp.float32, m=min(width, dim))


def cross_correlation(
    branches: Float[Array, "B G a"], weight: Float[Array, "B"], projection: Float32[Array, "G a k"]
) -> Scalar:
    """Squared correlation between the groups beyond what chance explains, averaged over pairs of groups.

    With z_g the group's projected features, standardised over the batch, and R_gh = corr(z_g, z_h) [k, k]:

        mean over g != h of max(mean(R_gh^2) - 1 / (n - 1), 0)

    1 / (n - 1) is the expected square of the correlation of n independent pairs. n is the effective number
    of examples (sum w)^2 / sum w^2 (Kish), which is their count where weights are 0 or 1.

    Args:
      branches, weight, projection: as in `cmdl`.

    Returns:
      A float32 scalar in [0, 1]; 0 for fewer than two examples or groups.
    """
    branches, weight = counted(branches, weight), weight.astype(jnp.float32)
    z = _standardised(branches, weight, projection)
    correlation = jnp.einsum("bgk,bhl->gkhl", z * _share(weight)[:, None, None], z, precision=_EXACT)
    chance = 1.0 / jnp.maximum(_effective_count(weight) - 1.0, 1.0)
    excess = jnp.maximum(jnp.mean(correlation**2, axis=(1, 3)) - chance, 0.0)
    return jnp.where(_has_two(weight), _mean_over_pairs(excess), 0.0)


def hsic(
    branches: Float[Array, "B G a"],
    weight: Float[Array, "B"],
    projection: Float32[Array, "G a k"],
    *,
    kernel: Kernel = "rbf",
) -> Scalar:
    """Normalised unbiased Hilbert-Schmidt independence criterion, averaged over pairs of groups.

        mean over g != h of max(HSIC(g, h), 0) / sqrt(HSIC(g, g) HSIC(h, h))

    The kernels act on the projected, standardised features z: z.z' (linear), or exp(-|z - z'|^2 / 2k) (rbf),
    whose bandwidth needs no median because the mean squared distance of standardised features is 2k. Here an
    example counts in full if its weight is above 0 (the weights still enter the standardisation).

    Args:
      branches, weight, projection: as in `cmdl`.
      kernel: "linear" or "rbf"; the linear one sees correlation only.

    Returns:
      A float32 scalar, at least 0 and about 0 for independent groups; 0 for fewer than four examples.

    Raises:
      ValueError: an unknown kernel.

    References:
      Song et al., Feature Selection via Dependence Maximization, 2012, JMLR 13, equation 5
      Kornblith et al., Similarity of Neural Network Representations Revisited, 2019 (the normalisation),
      https://arxiv.org/abs/1905.00414
    """
    branches, weight = counted(branches, weight), weight.astype(jnp.float32)
    kernels = _kernels(_standardised(branches, weight, projection), kernel)
    criterion = unbiased_hsic(kernels, weight > 0.0)
    norm = lax.rsqrt(jnp.maximum(jnp.diagonal(criterion), _CRITERION))
    return _mean_over_pairs(jnp.maximum(criterion, 0.0) * norm[:, None] * norm)


def unbiased_hsic(kernels: Float32[Array, "G B B"], counts: Bool[Array, "B"]) -> Float32[Array, "G G"]:
    """The unbiased HSIC of every pair of kernel matrices, over the examples that count.

    With K, L the matrices without their diagonals and n examples:

        (tr(K L) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'K L1) / (n (n - 3))

    Returns:
      [G, G], of expectation 0 where independent, so possibly below 0; all 0 where n < 4.
    """
    n = counts.sum().astype(jnp.float32)
    safe = jnp.maximum(n, 4.0)
    pairs = counts[:, None] & counts & ~jnp.eye(len(counts), dtype=bool)
    kernels = jnp.where(pairs, kernels, 0.0)
    # Removing the mean leaves the estimator as it is and spares float32 a difference of large numbers.
    mean = kernels.sum((1, 2)) / (safe * (safe - 1.0))
    kernels = jnp.where(pairs, kernels - mean[:, None, None], 0.0)
    rows = kernels.sum(2)
    total = rows.sum(1)
    trace = jnp.einsum("gij,hij->gh", kernels, kernels, precision=_EXACT)
    cross = jnp.einsum("gi,hi->gh", rows, rows, precision=_EXACT)
    whole = total[:, None] * total / ((safe - 1.0) * (safe - 2.0))
    criterion = (trace + whole - 2.0 / (safe - 2.0) * cross) / (safe * (safe - 3.0))
    return jnp.where(n >= 4.0, criterion, 0.0)


def variance_floor(
    branches: Float[Array, "B G a"], weight: Float[Array, "B"], *, floor: float = 0.5
) -> Scalar:
    """mean over groups and dimensions of max(floor - std, 0), against collapse.

    std is a dimension's standard deviation over the batch in units of its group's root mean square. In these
    units features without a common part have std 1 on average and collapsed ones 0: a floor of 1/2 asks
    every dimension to carry at least a quarter of its even share of the power, and costs healthy features
    nothing. (A floor on raw features would fix their scale as well, which is nobody's business here.)

    Args:
      branches, weight: as in `cmdl`.
      floor: in (0, 1).

    Returns:
      A float32 scalar in [0, floor]; 0 for fewer than two examples.

    Raises:
      ValueError: floor lies outside (0, 1).
    """
    if not 0.0 < floor < 1.0:
        raise ValueError(f"floor must lie in (0, 1), found {floor}")
    branches, weight = counted(branches, weight), weight.astype(jnp.float32)
    deviation = jnp.sqrt(_centred(_unit_power(branches, weight), weight)[1] + _VARIANCE)
    return jnp.where(_has_two(weight), jnp.mean(jnp.maximum(floor - deviation, 0.0)), 0.0)


def absolute_mean(branches: Float[Array, "B G a"], weight: Float[Array, "B"]) -> Scalar:
    """L1 of the features in units of their group's root mean square: small where few entries carry them.

    Returns:
      A float32 scalar in [0, 1], about 0.8 for Gaussian features; 0 for fewer than two examples.
    """
    branches, weight = counted(branches, weight), weight.astype(jnp.float32)
    absolute = jnp.abs(_unit_power(branches, weight)).mean((1, 2))
    return jnp.where(_has_two(weight), (absolute * _share(weight)).sum(), 0.0)


def _dependence(branches: Array, weight: Array, projection: Array, measure: Measure) -> Scalar:
    if measure == "correlation":
        return cross_correlation(branches, weight, projection)
    if measure == "hsic_linear":
        return hsic(branches, weight, projection, kernel="linear")
    if measure == "hsic_rbf":
        return hsic(branches, weight, projection, kernel="rbf")
    raise ValueError(f'measure must be "correlation", "hsic_linear" or "hsic_rbf", found {measure!r}')


def _kernels(z: Float32[Array, "B G k"], kernel: Kernel) -> Float32[Array, "G B B"]:
    """The kernel matrix of every group."""
    products = jnp.einsum("igk,jgk->gij", z, z, precision=_EXACT)
    if kernel == "linear":
        return products
    if kernel != "rbf":
        raise ValueError(f'kernel must be "linear" or "rbf", found {kernel!r}')
    squares = (z**2).sum(-1).T
    distances = squares[:, :, None] + squares[:, None, :] - 2.0 * products
    return jnp.exp(-jnp.maximum(distances, 0.0) / (2.0 * z.shape[-1]))


def _share(weight: Float32[Array, "B"]) -> Float32[Array, "B"]:
    """Weights that sum to 1, or to 0 where there are none."""
    total = weight.sum()
    return weight / jnp.where(total > 0.0, total, 1.0)


def _effective_count(weight: Float32[Array, "B"]) -> Scalar:
    square = (weight**2).sum()
    return weight.sum() ** 2 / jnp.where(square > 0.0, square, 1.0)


def _has_two(weight: Float32[Array, "B"]) -> Bool[Array, ""]:
    return _effective_count(weight) > 2.0 - 1e-3  # two equal weights may round to a little below 2


def _unit_power(branches: Float32[Array, "B G a"], weight: Float32[Array, "B"]) -> Float32[Array, "B G a"]:
    """Every group's features divided by their root mean square over examples and dimensions."""
    square = ((branches**2).mean(-1) * _share(weight)[:, None]).sum(0)
    return branches * lax.rsqrt(square + _MEAN_SQUARE)[:, None]


def _centred(
    x: Float32[Array, "B G k"], weight: Float32[Array, "B"]
) -> tuple[Float32[Array, "B G k"], Float32[Array, "G k"]]:
    """Features without their mean over the batch, and their biased variance."""
    share = _share(weight)[:, None, None]
    x = x - (x * share).sum(0)
    return x, (x**2 * share).sum(0)


def _standardised(
    branches: Float32[Array, "B G a"], weight: Float32[Array, "B"], projection: Float32[Array, "G a k"]
) -> Float32[Array, "B G k"]:
    """Projected features of mean 0 and variance 1 over the batch; 0 where they do not vary."""
    projected = jnp.einsum("bga,gak->bgk", _unit_power(branches, weight), projection, precision=_EXACT)
    z, variance = _centred(projected, weight)
    return z * lax.rsqrt(variance + _VARIANCE)


def _mean_over_pairs(values: Float32[Array, "G G"]) -> Scalar:
    """The mean off the diagonal; 0 for a single group."""
    groups = len(values)
    others = jnp.where(jnp.eye(groups, dtype=bool), 0.0, values)
    return others.sum() / max(groups * (groups - 1), 1)
