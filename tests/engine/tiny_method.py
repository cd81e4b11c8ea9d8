"""A method small enough to reason about: one hidden layer, optionally batch statistics, dropout and noise."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax.engine import state
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.step import compile_train_step
from wsca_jax.losses import classification
from wsca_jax.losses.balancing import FIXED
from wsca_jax.losses.composite import Term
from wsca_jax.methods.base import Method

ATTRIBUTES = 8
SCHEMA = AttributeSchema.from_groups(
    "tiny", tuple(f"a{i}" for i in range(ATTRIBUTES)), {"first": (0, 1, 2, 3, 4), "second": (5, 6, 7)}
)
SMALL_SHARDS = 8  # shard from this many elements, so that tiny parameters are really spread


@flax.struct.dataclass
class Outputs:
    logits: jax.Array
    log_variances: jax.Array | None = None


class Tiny(nn.Module):
    batch_norm: bool = True
    dropout: float = 0.0
    log_variances: int = 0

    @nn.compact
    def __call__(self, image, tokens=None, *, weight=None, train):
        x = nn.Dense(16, use_bias=not self.batch_norm, name="trunk")(image.reshape(image.shape[0], -1))
        if self.batch_norm:
            mask = None if weight is None else (weight > 0)[:, None]
            x = nn.BatchNorm(momentum=0.9, name="norm")(x, use_running_average=not train, mask=mask)
        x = nn.Dropout(self.dropout)(nn.relu(x), deterministic=not train)
        logits = nn.Dense(ATTRIBUTES, name="head")(x)
        if not self.log_variances:
            return Outputs(logits)
        return Outputs(
            logits, self.param("log_variances", nn.initializers.zeros_init(), (self.log_variances,))
        )


def forward(model, variables, teacher, batch, step, train, rngs):
    if not train:
        return model.apply(variables, batch.image, train=False), variables["batch_stats"]
    outputs, updated = model.apply(
        variables, batch.image, weight=batch.weight, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    return outputs, updated.get("batch_stats", {})


def normalise(batch, key):
    return batch._replace(image=batch.image.astype(jnp.float32) / 255.0)


def noisy(batch, key):
    batch = normalise(batch, key)
    noise = 0.0 if key is None else jax.random.normal(key, batch.image.shape)
    return batch._replace(image=batch.image + 0.1 * noise)


CLASSIFICATION = Term(
    "classification",
    lambda outputs, batch, step: classification.binary_cross_entropy(
        outputs.logits, batch.labels, batch.known, batch.weight
    ),
    weight=1.0,
    count=lambda batch: classification.count(batch.known, batch.weight),
)


def make_method(
    *,
    batch_norm=True,
    dropout=0.0,
    augment=normalise,
    terms=(CLASSIFICATION,),
    frozen=(),
    balancing=FIXED,
):
    log_variances = len(terms) - 1 if balancing.kind == "uncertainty" else 0
    return Method(
        "tiny",
        SCHEMA,
        Tiny(batch_norm, dropout, log_variances),
        forward,
        augment,
        tuple(terms),
        frozen=tuple(frozen),
        balancing=balancing,
    )


def make_batch(number=0, size=32, *, weight=None):
    """A batch with unknown labels, fractional weights and a skipped example."""
    random = np.random.default_rng(number)
    known = random.random((size, ATTRIBUTES)) < 0.7
    weights = random.choice([0.5, 1.0], size).astype(np.float32)
    weights[size // 3] = 0.0
    return AttributeBatch(
        image=random.integers(0, 256, (size, 2, 2, 3)).astype(np.uint8),
        labels=(random.integers(0, 2, (size, ATTRIBUTES)) * known).astype(np.uint8),
        known=known,
        weight=weights if weight is None else np.asarray(weight, np.float32),
        index=np.arange(number * size, (number + 1) * size, dtype=np.int32),
    )


def make_layout(data=1, fsdp=1):
    return Layout(make_mesh(data, fsdp, jax.devices()[: data * fsdp]), shard_from=SMALL_SHARDS)


class Run:
    """State, step and layout of a tiny training run."""

    def __init__(
        self, method=None, layout=None, *, accumulate=1, seed=0, total_steps=100, size=32, **options
    ):
        self.method = method or make_method()
        self.layout = layout or make_layout()
        options = {"learning_rate": 0.05, "weight_decay": 0.01} | options
        self.optimizer = make_optimizer(OptimizerOptions(**options), total_steps, self.method.frozen)
        arguments = (self.method, self.optimizer, make_batch(size=size))
        self.state = state.create(*arguments, seed=seed, layout=self.layout)
        self.abstract = state.abstract(*arguments, seed=seed, layout=self.layout)
        self.compiled = compile_train_step(
            self.method, self.optimizer, self.layout, self.abstract, seed=seed, accumulate=accumulate
        )

    def step(self, batch):
        self.state, report = self.compiled(self.state, self.layout.put_batch(batch))
        return jax.device_get(report)

    def host(self):
        """A copy of the state on the host, safe from donation."""
        return jax.tree.map(lambda x: np.array(x), self.state)


def assert_bit_equal(one, other):
    def compare(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)}: {a} is not {b}"

    jax.tree.map_with_path(compare, one, other)
