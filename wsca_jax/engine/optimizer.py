"""The optimiser: which parameters it trains and decays, schedule, clipping, and the average it feeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float32, Int32

from wsca_jax.errors import WscaError

Tree = Any

# Parameters that shift, scale or temper, recognised by name where their shape does not tell: a bias for each
# of G groups has two axes. Anything with fewer than two axes is one of them as well.
_UNDECAYED_NAMES = re.compile(r"(.*_)?(bias|scale|temperature)")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The recipe.

    Attributes:
      name: "adamw", or for large batches "lars" or "lamb". Both scale an array's step to the array's norm
        (the trust ratio), but not that of biases, norms and temperatures, which step as in SGD with momentum
        (lars) or Adam (lamb).
      learning_rate: its peak, reached after warm-up, at `base_batch_size`.
      base_batch_size: the batch that the learning rate is meant for; 0 for whatever batch there is.
      batch_scaling: how the rate follows another batch: "linear" (Goyal et al. 2017, arXiv:1706.02677; LARS)
        or "root", with the square root of the ratio (LAMB, AdamW).
      weight_decay: decoupled for adamw and lamb; biases, norms and temperatures are never decayed.
      schedule: after warm-up, "cosine" down to the final value, or "constant".
      warmup_fraction: share of all optimiser steps over which the rate rises linearly from 0.
      warmup_steps: the same as a number of steps; at most one of the two is set.
      final_fraction: the rate at the end of the cosine, as a share of the peak.
      clip_norm: largest global norm of the trained parameters' gradients; 0 for no clipping.
      b1: decay of the first moment; LARS' momentum.
      b2: decay of the second moment (adamw, lamb).
      eps: added to the root of the second moment (adamw, lamb).
      ema_decay: decay of the average of parameters and batch statistics that evaluation uses; 0 for none.
        It warms up as min(ema_decay, (1 + t) / (10 + t)) over optimiser steps t.
      undecayed: regular expressions over parameter paths ("tokens/position"), decayed no more than biases.

    References:
      LARS: You et al., Large Batch Training of Convolutional Networks, 2017,
      https://arxiv.org/abs/1708.03888
      LAMB: You et al., Large Batch Optimization for Deep Learning, 2020, https://arxiv.org/abs/1904.00962
    """

    name: Literal["adamw", "lars", "lamb"] = "adamw"
    learning_rate: float = 1e-4
    base_batch_size: int = 0
    batch_scaling: Literal["linear", "root"] = "linear"
    weight_decay: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.0
    warmup_steps: int = 0
    final_fraction: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    ema_decay: float = 0.0
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.name in ("adamw", "lars", "lamb"), "name", self.name, "adamw, lars or lamb")
        _check(self.schedule in ("cosine", "constant"), "schedule", self.schedule, "cosine or constant")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _check(self.eps > 0, "eps", self.eps, "a number above 0")
        _check(
            self.batch_scaling in ("linear", "root"), "batch_scaling", self.batch_scaling, "linear or root"
        )
        for field in ("weight_decay", "warmup_steps", "clip_norm", "base_batch_size"):
            _check(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")
        for field in ("warmup_fraction", "final_fraction"):
            _check(0 <= getattr(self, field) <= 1, field, getattr(self, field), "a number from 0 to 1")
        for field in ("b1", "b2", "ema_decay"):
            _check(0 <= getattr(self, field) < 1, field, getattr(self, field), "a number from 0 to below 1")
        if self.warmup_steps and self.warmup_fraction:
            raise WscaError("optimizer.warmup_steps and optimizer.warmup_fraction are both set; set one to 0")

    def at_batch_size(self, examples: int) -> OptimizerOptions:
        """The recipe for a global batch of so many examples: its learning rate, scaled by the rule."""
        if not self.base_batch_size:
            return self
        power = 1.0 if self.batch_scaling == "linear" else 0.5
        rate = self.learning_rate * (examples / self.base_batch_size) ** power
        return dataclasses.replace(self, learning_rate=rate, base_batch_size=0)


def _check(right: bool, field: str, found: Any, expected: str) -> None:
    if not right:
        raise WscaError(f"optimizer.{field} is {found!r}; expected {expected}")


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
    """A gradient transformation over the trained parameters. Compared and hashed by identity.

    Attributes:
      tx: clipping, optimiser, weight decay, learning rate.
      schedule: optimiser steps taken -> learning rate of the next one.
      options: the recipe both were built from.
      frozen: regular expressions over the paths of parameters that are not trained.
    """

    tx: optax.GradientTransformation
    schedule: Callable[[Int32[Array, ""]], Float32[Array, ""]]
    options: OptimizerOptions
    frozen: tuple[str, ...] = ()

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """Splits parameters into (trained, frozen): two nested dicts that together hold every path once.

        Raises:
          WscaError: a frozen pattern matches no path, or together they leave nothing to train.
        """
        frozen_paths = matching_paths(params, self.frozen, "frozen")
        flat = flatten_dict(params, sep="/")
        trained = {path: leaf for path, leaf in flat.items() if path not in frozen_paths}
        frozen = {path: leaf for path, leaf in flat.items() if path in frozen_paths}
        if not trained:
            raise WscaError(f"the frozen patterns {list(self.frozen)} leave no parameter to train")
        return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")

    def init(self, params: Tree) -> Tree:
        """Slots for the trained parameters; frozen ones have none."""
        matching_paths(params, self.options.undecayed, "optimizer.undecayed")
        trained, _ = self.split(params)
        return self.tx.init(trained)

    def update(self, gradients: Tree, opt_state: Tree, params: Tree) -> tuple[Tree, Tree]:
        """One optimiser step.

        Args:
          gradients: of the trained parameters, as `split` names them.
          opt_state: from `init` or the step before.
          params: all parameters.

        Returns:
          (all parameters, opt_state); the frozen ones are the very arrays that came in.
        """
        trained, frozen = self.split(params)
        updates, opt_state = self.tx.update(gradients, opt_state, trained)
        return merge(optax.apply_updates(trained, updates), frozen), opt_state

    def average(self, ema: Tree, new: Tree, updates: Int32[Array, ""]) -> Tree:
        """The exponential moving average after optimiser step number `updates` (from 0)."""
        t = updates.astype(jnp.float32)
        decay = jnp.minimum(self.options.ema_decay, (1 + t) / (10 + t))
        # As a difference, so that what does not move (frozen parameters) stays bit-equal.
        return jax.tree.map(lambda e, x: e + (1 - decay) * (x - e), ema, new)


def make_optimizer(options: OptimizerOptions, total_steps: int, frozen: Sequence[str] = ()) -> Optimizer:
    """Builds the optimiser of a run of `total_steps` optimiser steps.

    Raises:
      WscaError: warm-up does not fit into the run.
    """
    schedule = make_schedule(options, total_steps)
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
    return Optimizer(optax.chain(clip, _transform(options, schedule)), schedule, options, tuple(frozen))


def make_schedule(options: OptimizerOptions, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine or constant, as a function of the optimiser steps taken."""
    warmup = options.warmup_steps or round(options.warmup_fraction * total_steps)
    if warmup >= total_steps:
        raise WscaError(
            f"optimizer warm-up takes {warmup} of {total_steps} steps; shorten it or train for longer"
        )
    rest: optax.Schedule = optax.constant_schedule(options.learning_rate)
    if options.schedule == "cosine":
        rest = optax.cosine_decay_schedule(
            options.learning_rate, total_steps - warmup, alpha=options.final_fraction
        )
    if not warmup:
        return rest
    rise = optax.linear_schedule(0.0, options.learning_rate, warmup)
    return optax.join_schedules([rise, rest], [warmup])


def _transform(options: OptimizerOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    def decayed(params: Tree) -> Tree:
        return decay_mask(params, options.undecayed)

    if options.name == "lars":
        return optax.lars(
            schedule,
            options.weight_decay,
            weight_decay_mask=decayed,
            trust_ratio_mask=decayed,
            momentum=options.b1,
        )
    moments = {"b1": options.b1, "b2": options.b2, "eps": options.eps}
    if options.name == "adamw":
        return optax.adamw(schedule, **moments, weight_decay=options.weight_decay, mask=decayed)
    return optax.chain(  # optax.lamb applies the ratio to all: a bias would hardly leave the 0 it begins with
        optax.scale_by_adam(**moments),
        optax.add_decayed_weights(options.weight_decay, mask=decayed),
        optax.masked(optax.scale_by_trust_ratio(), decayed),
        optax.scale_by_learning_rate(schedule),
    )


def decay_mask(params: Tree, undecayed: Sequence[str] = ()) -> Tree:
    """True where weight decay applies: a tree of bools of the parameters' structure."""

    def decays(path: str, leaf: Any) -> bool:
        name = path.rpartition("/")[2]
        excluded = _UNDECAYED_NAMES.fullmatch(name) or any(re.fullmatch(p, path) for p in undecayed)
        return leaf.ndim >= 2 and not excluded

    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: decays(path, leaf) for path, leaf in flat.items()}, sep="/")


def matching_paths(params: Tree, patterns: Sequence[str], setting: str) -> frozenset[str]:
    """The parameter paths ("trunk/conv/kernel") that any pattern matches from end to end.

    Args:
      params: nested dicts of parameters.
      patterns: regular expressions.
      setting: where the patterns were set, for the message.

    Raises:
      WscaError: a pattern is no regular expression or matches no path.
    """
    paths = tuple(flatten_dict(params, sep="/"))
    found: set[str] = set()
    for pattern in patterns:
        try:
            matched = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise WscaError(f"{setting}: {pattern!r} is no regular expression: {error}") from error
        if not matched:
            raise WscaError(
                f"{setting}: pattern {pattern!r} matches none of the {len(paths)} parameter paths, "
                f"such as {', '.join(paths[:: max(1, len(paths) // 4)][:5])}"
            )
        found |= matched
    return frozenset(found)


def merge(*parts: Tree) -> Tree:
    """Joins nested dicts that share no path: the inverse of `Optimizer.split`."""
    joined: dict[str, Any] = {}
    for part in parts:
        joined |= _flat(part)
    return unflatten_dict(joined, sep="/")


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(params, sep="/")
