"""Where an attribute's evidence lies: each token's share in each attribute's logit."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from wsca_jax.models.wsca import WSCA, Outputs


class Evidence(NamedTuple):
    """What each token says about each attribute by way of the group branches, with its sign.

    Attributes:
      contributions: float32 [B, A, h, w], what each token adds to each logit.
      evidence: float32 [B, A, h, w], how each logit would change if more attention went to this token: what
        it adds beyond what its group reads on average. Sums to 0 over (h, w).
    """

    contributions: Float32[Array, "B A h w"]
    evidence: Float32[Array, "B A h w"]


def evidence(model: WSCA, variables: Any, outputs: Outputs) -> Evidence:
    """Traces every logit back to the tokens that the group branches attended to.

    A branch is a weighted sum of the tokens' values, branch_g = sum_n attention_gn value_gn, so whatever is
    linear in the branches has one exact share for each token, and the attention's scores have a derivative:

        contribution_an = sum_g attention_gn <d logit_a / d branch_g, value_gn>
        evidence_an     = sum_g attention_gn <d logit_a / d branch_g, value_gn - branch_g>
                        = sum_g d logit_a / d score_gn

    Contributions add up; evidence is what to look at. All tokens share a part of their values (the bias, to
    begin with), which lifts or lowers every contribution alike: of an attribute that the branches speak
    against on the whole, what stays positive is a remainder at odd places. In evidence that part cancels.

    Everything between branches and logits is differentiated (their normalisation over the batch, which is
    linear in evaluation, the decomposer where there is one, then the heads), with two decisions:

    - Normalisations keep the scale they have at this input. A plain gradient through LayerNorm knows that
      scaling the input changes nothing, so that gradient times input adds up to 0 over the whole input
      whatever the model believes: what the branches are credited with is charged to the pooled image. With
      the scale held fixed the heads are piecewise linear, and what the tokens add, with the pooled image's,
      the linear path's and the biases' shares, is the logit, exactly (Ali et al., XAI for Transformers:
      Better Explanations through Conservative Propagation, 2022, https://arxiv.org/abs/2202.07304). A
      decomposer's gates and attention are not linear; through it contributions are the first-order share.
    - The sum runs over all groups: with a decomposer, groups read each other along the graph. Without one,
      only the attribute's own group has a gradient.

    Not counted is what reaches the logit on other ways, for which no attention decides which token speaks:
    the pooled image, the trunk's classifier, and the levels of the pyramid (`Level.attention` shows those).
    All contributions have the tokens' share of the prediction as a factor (`WSCA.token_share`).

    Args:
      model: a model with an encoder.
      variables: what `outputs` were computed with.
      outputs: of `model` in evaluation, where nothing drops out.

    Raises:
      ValueError: the model has no encoder, and so no attention over tokens.
    """
    if outputs.encoding is None:
        raise ValueError("attribute maps need the encoder's attention; this model was built without encoder")
    maps, values = outputs.encoding.attention, outputs.encoding.values.astype(jnp.float32)
    attention = maps.reshape(*maps.shape[:2], -1)
    said = jnp.einsum("abgc,bgnc->abgn", logit_gradients(model, variables, outputs), values)
    on_average = jnp.einsum("bgn,abgn->abg", attention, said)[..., None]

    def over_groups(x: Float32[Array, "A B G N"]) -> Float32[Array, "B A h w"]:
        return jnp.einsum("bgn,abgn->ban", attention, x).reshape(len(maps), -1, *maps.shape[2:])

    return Evidence(over_groups(said), over_groups(said - on_average))


def logit_gradients(model: WSCA, variables: Any, outputs: Outputs) -> Float32[Array, "A B G a"]:
    """d logit_a / d branch of every image, normalisations held fixed; all attributes in one batched pass."""

    def logits(branches: Float[Array, "B G a"]) -> Float32[Array, "B A"]:
        with nn.intercept_methods(_hold_statistics):
            found: Any = model.apply(variables, branches, outputs, method=WSCA.logits_from_branches)
        return found

    assert outputs.encoding is not None
    found, pull = jax.vjp(logits, outputs.encoding.branches)

    def of_one(direction: Float32[Array, "A"]) -> Float[Array, "B G a"]:
        return pull(jnp.broadcast_to(direction, found.shape))[0]

    return jax.vmap(of_one)(jnp.eye(found.shape[1], dtype=found.dtype)).astype(jnp.float32)


def positive_maps(signed: Float32[Array, "B A h w"]) -> Float32[Array, "B A h w"]:
    """What speaks for each attribute, as a map that sums to 1; all 0 where nothing does."""
    positive = jnp.maximum(signed, 0.0)
    total = positive.sum((-2, -1), keepdims=True)
    return positive / jnp.where(total > 0, total, 1.0)


def _hold_statistics(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Lets every LayerNorm on the way compute what it computes, with the gradient of a linear layer."""
    module = context.module
    if not isinstance(module, nn.LayerNorm) or context.method_name != "__call__":
        return call(*args, **kwargs)
    result, x = call(*args, **kwargs), args[0].astype(jnp.float32)
    deviation = lax.stop_gradient(jnp.sqrt(x.var(-1, keepdims=True) + module.epsilon))
    linear = (x - x.mean(-1, keepdims=True)) / deviation
    if module.use_scale:
        linear = linear * module.get_variable("params", "scale")
    return lax.stop_gradient(result) + (linear - lax.stop_gradient(linear)).astype(result.dtype)
