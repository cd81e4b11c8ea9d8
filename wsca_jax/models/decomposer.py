"""Hierarchical decomposition: a pyramid of tokens, read by one node per attribute group."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.windows import (
    Attention,
    Grid,
    WindowBlock,
    flatten,
    grid_of,
    grid_pyramid,
    neighbour_weights,
)

# What is added to the branches starts small, so that the heads first see them much as they were.
_SMALL = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")


class Level(NamedTuple):
    """One level of the pyramid, P tokens on a grid h x w, above a level of C tokens.

    Attributes:
      features: [B, h, w, c], bottom_up + residual.
      bottom_up: [B, h, w, c], before anything came down from above.
      children: [B, h, w, c], the mean of the level below under `assignment`, from which `bottom_up` was
        computed; None at the finest level.
      assignment: float32 [B, P, C] in [0, 1], how much each token of the level below belongs to each token
        here: sums to 1 over P, 0 beyond the neighbours; None at the finest level.
      residual: [B, h, w, c], what the level above added; None at the top.
      attention: float32 [B, G, h, w], where each group looks on this level: sums to 1 over h x w.
    """

    features: Float[Array, "B h w c"]
    bottom_up: Float[Array, "B h w c"]
    children: Float[Array, "B h w c"] | None
    assignment: Float32[Array, "B P C"] | None
    residual: Float[Array, "B h w c"] | None
    attention: Float32[Array, "B G h w"]


class Decomposition(NamedTuple):
    """What the decomposer knows.

    Attributes:
      refined: [B, G, a], group features.
      levels: L levels, finest first.
      edges: float32 [B, G, G], how much group i (row) listens to group j, in (0, 1); 1 on the diagonal.
      gates: float32 [B, G, L] in (0, 1), how much each level contributes to each group.
    """

    refined: Float[Array, "B G a"]
    levels: tuple[Level, ...]
    edges: Float32[Array, "B G G"]
    gates: Float32[Array, "B G L"]


class HierarchicalDecomposer(nn.Module):
    """Refines group features by what each group finds on the levels of a token pyramid.

    Bottom-up, a child k belongs to its neighbour parents p by

        A[p, k] = softmax_p(q_k . s_p / sqrt(c) + log b[p, k])

    where b are the weights of bilinear interpolation (0 for all but the nearest two per axis) and s_p the
    key of the children's mean under b: with no content to go by, assignment is interpolation. A parent is
    the mean of its children under A, through a transformer block with attention inside 2-D windows, over
    the whole grid at the top. Top-down, features_l = bottom_up_l + Dense(LN(A^T features_{l+1})).

    Then each group's node attends to every level and adds what it finds there, gated; passes messages to the
    other nodes along learned edges; and adds the outcome to its branch.

    Attributes:
      num_groups: G, one node per group.
      attr_dim: width a of group features.
      hidden_size: width d of the tokens.
      width: inner width c of levels and nodes; a multiple of num_heads.
      num_heads: heads of every attention.
      window: odd side, at least 3, of the attention's windows below the top level.
      dropout: rate inside the blocks and on what is added to the branches, in training.
      dtype: dtype of the matrix products; softmaxes, gates, edges and assignments are float32.

    References:
      Jampani et al., Superpixel Sampling Networks, 2018, https://arxiv.org/abs/1807.10174 (soft assignment to
      neighbouring cells). Kipf & Welling, 2017, https://arxiv.org/abs/1609.02907 (messages with self-loops).
    """

    num_groups: int
    attr_dim: int
    hidden_size: int
    width: int = 128
    num_heads: int = 4
    window: int = 3
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"decomposer: window is {self.window}; expected an odd number from 3 on")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"decomposer: width is {self.width}; expected a multiple of num_heads = {self.num_heads}"
            )

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B h w d"],
        branches: Float[Array, "B G a"] | None = None,
        *,
        train: bool,
    ) -> Decomposition:
        """Decomposes; without `branches` the nodes start from learned queries.

        Raises:
          ValueError: tokens or branches do not have the widths the module was built for.
        """
        if branches is None:
            branches = self._queries(len(tokens))
        self._check(tokens, branches)
        merged = self._bottom_up(tokens, train)
        features, residuals = self._top_down(merged)
        nodes = nn.Dense(self.width, dtype=self.dtype, name="nodes")(branches)
        found, attention = self._read(nodes, features)
        gates = Gate(self.width, self.dtype, name="gate")(nodes, found)
        nodes = nodes + jnp.einsum("bgl,bglc->bgc", gates.astype(self.dtype), found)
        message, edges = Graph(self.dtype, name="graph")(nodes)
        refined = branches + self._added(nodes + message, train)
        levels = tuple(
            Level(x, *level, residual, looks)
            for x, level, residual, looks in zip(features, merged, residuals, attention, strict=True)
        )
        return Decomposition(refined, levels, edges, gates)

    def _check(self, tokens: Array, branches: Array) -> None:
        if tokens.shape[-1] != self.hidden_size:
            raise ValueError(f"decomposer: tokens are {tokens.shape[-1]} wide; expected {self.hidden_size}")
        if branches.shape[1:] != (self.num_groups, self.attr_dim):
            expected = (self.num_groups, self.attr_dim)
            raise ValueError(f"decomposer: branches are {branches.shape[1:]} per image; expected {expected}")

    def _queries(self, batch: int) -> Float[Array, "B G a"]:
        shape = (self.num_groups, self.attr_dim)
        queries = self.param("queries", nn.initializers.normal(0.02), shape, jnp.float32)
        return jnp.broadcast_to(queries.astype(self.dtype), (batch, *shape))

    def _bottom_up(self, tokens: Float[Array, "B h w d"], train: bool) -> list[Merged]:
        x = nn.Dense(self.width, dtype=self.dtype, name="tokens")(tokens)
        *below, top = grid_pyramid(grid_of(tokens))
        merged = []
        for number, grid in enumerate([*below, top]):
            children = assignment = None
            if number > 0:
                children, assignment = Merge(self.dtype, name=f"merge_{number}")(x, grid)
                x = children
            window = None if grid == top else self.window
            block = WindowBlock(self.num_heads, window, self.dropout, self.dtype, name=f"block_{number}")
            x = block(x, train=train)
            merged.append(Merged(x, children, assignment))
        return merged

    def _top_down(self, merged: list[Merged]) -> tuple[list[Array], list[Array | None]]:
        """Every level's features, and what the level above added to them; finest first."""
        features = [merged[-1].bottom_up]
        residuals: list[Array | None] = [None]
        for number in reversed(range(len(merged) - 1)):
            below, assignment = merged[number].bottom_up, merged[number + 1].assignment
            assert assignment is not None  # only the finest level has none
            residual = Descend(self.dtype, name=f"descend_{number}")(features[-1], assignment, below.shape)
            residuals.append(residual)
            features.append(below + residual)
        return features[::-1], residuals[::-1]

    def _read(
        self, nodes: Float[Array, "B G c"], features: list[Float[Array, "B h w c"]]
    ) -> tuple[Float[Array, "B G L c"], list[Float32[Array, "B G h w"]]]:
        """What each node finds on each level, and where it looks."""
        found, attention = [], []
        for number, x in enumerate(features):
            y, looks = Read(self.num_heads, self.dtype, name=f"read_{number}")(nodes, x)
            found.append(y)
            attention.append(looks)
        return jnp.stack(found, axis=2), attention

    def _added(self, nodes: Float[Array, "B G c"], train: bool) -> Float[Array, "B G a"]:
        x = nn.LayerNorm(dtype=self.dtype, name="output_norm")(nodes)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="hidden")(x))
        # No bias: whoever reads group features takes away what they have in common in all images.
        output = nn.Dense(self.attr_dim, False, dtype=self.dtype, kernel_init=_SMALL, name="output")
        x = output(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Merged(NamedTuple):
    """A level on the way up: the first fields of `Level` behind its features."""

    bottom_up: Float[Array, "B h w c"]
    children: Float[Array, "B h w c"] | None
    assignment: Float32[Array, "B P C"] | None


class Merge(nn.Module):
    """Soft assignment of children to neighbouring parents, and each parent's mean of its children.

    Attributes:
      dtype: dtype of the matrix products; the assignment is float32.
    """

    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w c"], parents: Grid
    ) -> tuple[Float[Array, "B H W c"], Float32[Array, "B P C"]]:
        """Returns the means on the parents' grid and the assignment."""
        width, flat = x.shape[-1], flatten(x)
        weights = neighbour_weights(parents, grid_of(x))
        normal = nn.LayerNorm(dtype=self.dtype, name="norm")(flat)
        seeds = jnp.einsum("pk,bkc->bpc", _rows(jnp.asarray(weights)).astype(self.dtype), normal)
        # No biases: the parents' would leave the softmax over parents as it is.
        child = nn.Dense(width, use_bias=False, dtype=self.dtype, name="child")(normal)
        parent = nn.Dense(width, use_bias=False, dtype=self.dtype, name="parent")(seeds)
        logits = jnp.einsum("bpc,bkc->bpk", parent, child, preferred_element_type=jnp.float32)
        with np.errstate(divide="ignore"):
            prior = np.log(weights)
        assignment = jax.nn.softmax(logits / np.sqrt(width) + prior, axis=1)
        means = jnp.einsum("bpk,bkc->bpc", _rows(assignment).astype(self.dtype), flat)
        return means.reshape(len(x), *parents, width), assignment


def _rows(weights: Float[Array, "... P C"]) -> Float[Array, "... P C"]:
    """Makes rows sum to 1, or to almost nothing where a parent's children all prefer another."""
    return weights / (weights.sum(-1, keepdims=True) + 1e-6)


class Descend(nn.Module):
    """What parents pass down: Dense(LN(A^T parents)), each child's mix of its parents.

    Attributes:
      dtype: dtype of the matrix products.
    """

    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        parents: Float[Array, "B H W c"],
        assignment: Float32[Array, "B P C"],
        shape: tuple[int, ...],
    ) -> Float[Array, "B h w c"]:
        """Returns the children's residual in the given `shape`."""
        mix = jnp.einsum("bpk,bpc->bkc", assignment.astype(self.dtype), flatten(parents))
        mix = nn.LayerNorm(dtype=self.dtype, name="norm")(mix)
        return nn.Dense(shape[-1], dtype=self.dtype, name="residual")(mix).reshape(shape)


class Read(nn.Module):
    """Each node attends to the tokens of a level.

    Attributes:
      num_heads: heads of the attention.
      dtype: dtype of the matrix products; the attention is float32.
    """

    num_heads: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, nodes: Float[Array, "B G c"], x: Float[Array, "B h w c"]
    ) -> tuple[Float[Array, "B G c"], Float32[Array, "B G h w"]]:
        """Returns what each node finds, and where it looks, averaged over heads."""
        offered = flatten(nn.LayerNorm(dtype=self.dtype, name="tokens_norm")(x))
        if grid_of(x) != (1, 1):  # a single token is found whatever is asked
            nodes = nn.LayerNorm(dtype=self.dtype, name="nodes_norm")(nodes)
        found, attention = Attention(self.num_heads, self.dtype, name="attention")(nodes, offered)
        return found, attention.mean(axis=1).reshape(*nodes.shape[:2], *grid_of(x))


class Gate(nn.Module):
    """How much each level contributes to each group, float32 [B, G, L] in (0, 1).

    sigmoid(Dense(gelu(Dense(LN [node, found, others]))) + prior), the prior learned per group and level.
    `others` is what the other groups found on that level on average: evidence that all groups share speaks
    of the scene they occur in together rather than of the group's own attributes, and only a gate that sees
    both can tell such a spurious correlation.

    Attributes:
      width: of the hidden layer.
      dtype: dtype of the matrix products.
    """

    width: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, nodes: Float[Array, "B G c"], found: Float[Array, "B G L c"]
    ) -> Float32[Array, "B G L"]:
        groups = nodes.shape[1]
        others = (found.sum(axis=1, keepdims=True) - found) / max(groups - 1, 1)
        nodes = jnp.broadcast_to(nodes[:, :, None], found.shape)
        evidence = jnp.concatenate([nodes, found, others], axis=-1)
        evidence = nn.LayerNorm(dtype=self.dtype, name="norm")(evidence)
        hidden = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="hidden")(evidence))
        logits = nn.Dense(1, use_bias=False, dtype=self.dtype, name="output")(hidden)[..., 0]
        prior = self.param("prior", nn.initializers.zeros, logits.shape[1:], jnp.float32)
        return nn.sigmoid(logits.astype(jnp.float32) + prior)


class Graph(nn.Module):
    """One round of messages between group nodes.

    With n = LN(node): e_ij = sigmoid(n_i W n_j / sqrt(c)), e_ii = 1, and group i receives
    Dense(sum_j e_ij n_j / G). Dividing by the number of groups and not by the row's sum lets an edge add what
    it brings without taking from the node's own share: where it does take, all edges close whatever the
    others have to say. A single group has no edge to learn.

    Attributes:
      dtype: dtype of the matrix products; edges are float32.
    """

    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, nodes: Float[Array, "B G c"]) -> tuple[Float[Array, "B G c"], Float32[Array, "B G G"]]:
        """Returns each node's message and the edges."""
        normal = nn.LayerNorm(dtype=self.dtype, name="norm")(nodes)
        edges = self._edges(normal)
        shares = (edges / nodes.shape[1]).astype(self.dtype)
        received = jnp.einsum("bij,bjc->bic", shares, normal)
        return nn.Dense(nodes.shape[-1], dtype=self.dtype, name="message")(received), edges

    def _edges(self, normal: Float[Array, "B G c"]) -> Float32[Array, "B G G"]:
        batch, groups, width = normal.shape
        if groups == 1:
            return jnp.ones((batch, 1, 1), jnp.float32)
        form = nn.Dense(width, use_bias=False, dtype=self.dtype, name="form")(normal)
        logits = jnp.einsum("bic,bjc->bij", form, normal, preferred_element_type=jnp.float32)
        return jnp.where(np.eye(groups, dtype=bool), 1.0, nn.sigmoid(logits / np.sqrt(width)))
