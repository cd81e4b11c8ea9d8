"""The whole model: trunk, tokens, optional modules in their sockets, group heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from wsca_jax.models.alignment import AlignmentHead
from wsca_jax.models.captions import CaptionPairs
from wsca_jax.models.cross_modal import Encoding
from wsca_jax.models.decomposer import Decomposition
from wsca_jax.models.frequency import Frequency
from wsca_jax.models.resnet import Stages
from wsca_jax.models.router import Routing


class PseudoLabels(NamedTuple):
    """What the averaged teacher says of a batch; no gradient passes through it.

    Attributes:
      probability: float32 [B, A] in [0, 1], the voted probability of each attribute.
      quality: float32 [B, A] in [0, 1], how sure the teacher is that rounding the vote is right.
      accepted: bool [B, A], the unknown entries that take their pseudo label at this step.
    """

    probability: Float32[Array, "B A"]
    quality: Float32[Array, "B A"]
    accepted: Bool[Array, "B A"]


class Outputs(NamedTuple):
    """Everything a forward pass knows; jit drops what nobody reads.

    Attention maps are one for each group, in `encoding`. An attribute's map needs a derivative of its logit:
    `models.maps`.

    Attributes:
      logits: float32 [B, A], the prediction; see `weigh_sides`.
      classifiers: {name: float32 [B, A]}, the logits of each classifier. Each is trained by itself.
      tokens: [B, h, w, d], as the heads' pooling sees them.
      pooled: [B, d], the mean token after the router.
      stages: the trunk's feature maps.
      groups: [B, G, a], the group features that disentanglement and alignment work on, normalised over the
        batch: the encoder's branches, or the decomposer's nodes where there is no encoder; None without
        either.
      frequency, encoding, routing, decomposition, alignment: what the module in each socket returned, or
        None.
      captions: images and captions in one space; None without a text.
      log_variances: float32 [terms], learned by uncertainty weighting, or None.
      pseudo: the teacher's pseudo labels, in training with a router; None otherwise.
    """

    logits: Float32[Array, "B A"]
    classifiers: Mapping[str, Float32[Array, "B A"]]
    tokens: Float[Array, "B h w d"]
    pooled: Float[Array, "B d"]
    stages: Stages
    groups: Float[Array, "B G a"] | None = None
    frequency: Frequency | None = None
    encoding: Encoding | None = None
    routing: Routing | None = None
    decomposition: Decomposition | None = None
    alignment: AlignmentHead | None = None
    captions: CaptionPairs | None = None
    log_variances: Float32[Array, "T"] | None = None
    pseudo: PseudoLabels | None = None


class WSCA(nn.Module):
    """Weakly supervised, disentangled cross-modal attribute recognition.

    The baseline is trunk, tokens and heads. Each further field is a socket: None leaves its parameters and
    its computation out, and nothing else changes.

    A prediction has two sides: what a linear classifier reads from the trunk's mean feature, and what tokens
    and modules make of the trunk's stages. Each classifier learns by itself, and how much of the tokens'
    gradient reaches the trunk is a choice: of a sum of logits that is trained as one, the side that learns
    faster leaves the other nothing to learn.

    Attributes:
      trunk: (image, weight, train) -> `Stages`.
      tokens: (feature maps, weight, train) -> tokens [B, h, w, d].
      heads: (pooled, refined or None, {name: features} for linear classifiers, weight, train) -> {name:
        logits [B, A]}.
      branch_norm: ([B, G, a], weight, train) -> group features without what all images share; needed with
        an encoder or a decomposer.
      token_gradient: how much of the tokens' gradient reaches the trunk, in [0, 1]; all of it without a
        linear path, where the trunk has no other.
      token_share: how much the tokens' side counts in the prediction, in [0, 1]; without a linear path it is
        all there is.
      linear_path: whether each attribute also has linear classifiers of the trunk's mean feature, its group's
        refined feature and its group's description of the frequency bands, those of them that there are.
      token_stage: the trunk's stage that the tokens come from ("c3", "c4" or "c5").
      top_down: whether the stages after it add what they know to each token.
      frequency: (image, train) -> `Frequency`, of which the model reads `token` and `groups`.
      fusion: (tokens [B, h, w, d], frequency token [B, 1, d], train) -> tokens.
      encoder: (tokens, token ids of texts or None, train) -> `Encoding`, of which the model reads `tokens`
        and `branches`, with captions also `text` and `unread`.
      router: (pooled [B, d], train) -> `Routing`, of which the model reads `pooled`; also `votes`, see
        `WSCA.votes`.
      decomposer: (tokens, branches or None, train) -> `Decomposition`, of which the model reads `refined`.
      alignment: (phrase features or None, train) -> what contrastive alignment learns beside the features.
      captions: (pooled [B, d], mean text token [B, d], unread [B], train) -> what image-text alignment
        compares.
      phrases: token ids of each attribute's phrase, [A, T], from which the encoder's text tower makes the
        prototypes of alignment; None lets alignment learn them.
      uncertain_terms: how many loss terms learn a log-variance as their weight; 0 for none.
    """

    trunk: nn.Module
    tokens: nn.Module
    heads: nn.Module
    branch_norm: nn.Module | None = None
    token_gradient: float = 0.0
    token_share: float = 0.25
    linear_path: bool = True
    token_stage: str = "c5"
    top_down: bool = False
    frequency: nn.Module | None = None
    fusion: nn.Module | None = None
    encoder: nn.Module | None = None
    router: nn.Module | None = None
    decomposer: nn.Module | None = None
    alignment: nn.Module | None = None
    captions: nn.Module | None = None
    phrases: tuple[tuple[int, ...], ...] | None = None
    uncertain_terms: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.frequency is None) != (self.fusion is None):
            raise ValueError("WSCA: frequency and fusion come together: set both, or neither")
        if self.alignment is not None and self.encoder is None and self.decomposer is None:
            raise ValueError("WSCA: alignment needs group features: set encoder or decomposer as well")
        if self.branch_norm is None and (self.encoder is not None or self.decomposer is not None):
            raise ValueError("WSCA: encoder and decomposer need branch_norm")
        for name in ("token_gradient", "token_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"WSCA: {name} is {getattr(self, name)}; expected a number from 0 to 1")

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        text: Int32[Array, "B T"] | None = None,
        *,
        weight: Float32[Array, "B"] | None = None,
        train: bool,
    ) -> Outputs:
        stages = self.trunk(image, weight=weight, train=train)
        tokens = self.tokens(*self._token_stages(stages), weight=weight, train=train)
        frequency = encoding = routing = decomposition = branches = None
        if self.frequency is not None and self.fusion is not None:
            frequency = self.frequency(image, train=train)
            tokens = self.fusion(tokens, frequency.token, train=train)
        if self.encoder is not None:
            encoding = self.encoder(tokens, text, train=train)
            tokens, branches = encoding.tokens, self._centre(encoding.branches, weight, train)
        pooled = jnp.mean(tokens, axis=(1, 2))
        captions = self._compare_captions(pooled, encoding, train)
        if self.router is not None:
            routing = self.router(pooled, train=train)
            pooled = routing.pooled
        groups = refined = branches
        if self.decomposer is not None:
            decomposition = self.decomposer(tokens, branches, train=train)
            refined = decomposition.refined
            groups = self._centre(refined, weight, train) if branches is None else branches
        linear = self._linear_features(stages, refined, frequency)
        classifiers = self.heads(pooled, refined, linear, weight=weight, train=train)
        return Outputs(
            weigh_sides(classifiers, self.token_share),
            classifiers,
            tokens,
            pooled,
            stages,
            groups=groups,
            frequency=frequency,
            encoding=encoding,
            routing=routing,
            decomposition=decomposition,
            alignment=self._align(train),
            captions=captions,
            log_variances=self._log_variances(),
        )

    def logits_from_branches(
        self, branches: Float[Array, "B G a"], outputs: Outputs
    ) -> Float32[Array, "B A"]:
        """What the logits would be, in evaluation, had the encoder returned these branches.

        Args:
          branches: before their normalisation, as in `Encoding.branches`.
          outputs: all else.
        """
        decomposer, heads = self.decomposer, self.heads
        refined = self._centre(branches, None, train=False)
        if decomposer is not None:
            refined = decomposer(outputs.tokens, refined, train=False).refined
        linear = self._linear_features(outputs.stages, refined, outputs.frequency)
        return weigh_sides(heads(outputs.pooled, refined, linear, train=False), self.token_share)

    def votes(self, features: Float[Array, "B d"]) -> tuple[Float32[Array, "B A"], Float32[Array, "B A"]]:
        """Logits of votes and of their quality, on router features of another copy of the model."""
        router: Any = self.router
        return router.votes(features)

    def _centre(
        self, branches: Float[Array, "B G a"], weight: Float32[Array, "B"] | None, train: bool
    ) -> Float[Array, "B G a"]:
        norm: Any = self.branch_norm
        return norm(branches, weight=weight, train=train)

    def _linear_features(
        self, stages: Stages, refined: Float[Array, "B G a"] | None, frequency: Frequency | None
    ) -> dict[str, Array]:
        if not self.linear_path:
            return {}
        found = {"trunk": jnp.mean(stages.c5, axis=(1, 2))}
        if refined is not None:
            found["refined"] = refined
        if frequency is not None:
            found["frequency"] = frequency.groups
        return found

    def _token_stages(self, stages: Stages) -> tuple[Array, ...]:
        first = Stages._fields.index(self.token_stage)
        found = stages[first:] if self.top_down else (stages[first],)
        share = self.token_gradient if self.linear_path else 1.0
        return tuple(scale_gradient(stage, share) for stage in found)

    def _align(self, train: bool) -> AlignmentHead | None:
        if self.alignment is None:
            return None
        if self.phrases is None:
            return self.alignment(None, train=train)
        encoder: Any = self.encoder
        ids = jnp.asarray(self.phrases, jnp.int32)
        return self.alignment(encoder.encode_phrases(ids, train=train), train=train)

    def _compare_captions(
        self, pooled: Float[Array, "B d"], encoding: Encoding | None, train: bool
    ) -> CaptionPairs | None:
        if self.captions is None or encoding is None or encoding.text is None:
            return None
        return self.captions(pooled, encoding.text, encoding.unread, train=train)

    def _log_variances(self) -> Float32[Array, "T"] | None:
        if not self.uncertain_terms:
            return None
        return self.param("log_variances", nn.initializers.zeros, (self.uncertain_terms,), jnp.float32)


def weigh_sides(
    classifiers: Mapping[str, Float32[Array, "*shape"]], token_share: float
) -> Float32[Array, "*shape"]:
    """The weighted mean of both sides: the trunk's linear classifier, and the mean of all the others.

    Args:
      classifiers: by name, each one's logits or its loss.
      token_share: the others' weight, in [0, 1].
    """
    tokens = jnp.mean(jnp.stack([x for name, x in classifiers.items() if name != "trunk"]), axis=0)
    if "trunk" not in classifiers:
        return tokens
    return (1 - token_share) * classifiers["trunk"] + token_share * tokens


def scale_gradient(x: Array, scale: float) -> Array:
    """x itself; its gradient times `scale`."""
    if scale == 1.0:
        return x
    stopped = lax.stop_gradient(x)
    return stopped if scale == 0.0 else stopped + scale * (x - stopped)
