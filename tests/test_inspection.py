"""The dry run: multiply-adds by hand and against the published figure, memory by hand, tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax import config
from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.errors import WscaError
from wsca_jax.inspection import abstract_layout, cost, format_inspection, inspect, inspect_run, memory
from wsca_jax.inspection.multiply_adds import multiply_adds, roll_up
from wsca_jax.inspection.record import _arrays as record_arrays
from wsca_jax.inspection.text import format_bytes, format_costs
from wsca_jax.losses.composite import Term
from wsca_jax.methods.base import Method
from wsca_jax.models.resnet import ResNet

SCENES = str(Path(__file__).resolve().parent.parent / "configs" / "scenes.py")


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def count(module: nn.Module, *inputs) -> dict:
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return multiply_adds(module.apply, variables, *inputs)


# Multiply-adds.


class SmallCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, padding=1, name="first")(x))  # 16 x 16 -> 8 x 8
        x = nn.relu(
            nn.Conv(12, (5, 3), padding="VALID", feature_group_count=4, name="grouped")(x)
        )  # -> 4 x 6
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def test_small_network_by_hand():
    found = count(SmallCNN(), shape(2, 16, 16, 3))
    assert found == {
        ("first",): 2 * 8 * 8 * 8 * (3 * 3 * 3),
        ("grouped",): 2 * 4 * 6 * 12 * (5 * 3 * 8 // 4),
        ("head",): 2 * 12 * 10,
    }


class ResNet50(nn.Module):
    lowering: str | None = None

    @nn.compact
    def __call__(self, image):
        stages = ResNet(50, dtype=jnp.float32, lowering=self.lowering, name="trunk")(image, train=False)
        return nn.Dense(1000, name="classifier")(stages.c5.mean((1, 2)))


@pytest.mark.parametrize("lowering", [None, "native", "patches"])
def test_resnet50_has_the_published_cost_in_every_lowering(lowering):
    """4.09 G for v1.5 at 224 px, as torchvision's documentation of resnet50 says."""
    found = count(ResNet50(lowering), shape(1, 224, 224, 3))
    assert sum(found.values()) == 4_089_184_256
    stages = roll_up(found, 2)
    assert list(stages) == [*(("trunk", name) for name in ("stem", "c2", "c3", "c4", "c5")), ("classifier",)]
    assert stages["trunk", "stem"] == 112 * 112 * 64 * 7 * 7 * 3
    assert stages["classifier",] == 2048 * 1000


class Nested(nn.Module):
    """What flows through a program besides plain layers; everything is 4 x 4."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(4, name="rematerialised")(x)
        scanned = nn.scan(Turn, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scanned(name="scanned")(x, None)
        x = jax.jit(lambda x: x @ x)(x)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x)
        x = self.method(x)
        return jnp.einsum("ab,cb->ac", x, x)

    def method(self, x):
        return jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ x, x)


class Turn(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="dense")(x), None


def test_loops_branches_and_nested_programs():
    one = 4 * 4 * 4
    assert count(Nested(), shape(4, 4)) == {
        ("rematerialised",): one,
        ("scanned", "dense"): 3 * one,
        (): one + 2 * one + one + one,  # jit, the costlier branch, one turn of the while loop, einsum
    }


def test_per_device_programs_count_for_every_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    product = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert multiply_adds(product, shape(16, 5), shape(5, 7)) == {(): 16 * 5 * 7}


def test_batched_products_by_hand():
    assert multiply_adds(lambda a, b: jnp.einsum("gij,gjk->gik", a, b), shape(3, 4, 5), shape(3, 5, 6)) == {
        (): 3 * 4 * 5 * 6
    }


def test_deeper_modules_are_added_up():
    counts = {("a", "b", "c"): 1, ("a", "b"): 2, ("a", "d"): 4, ("e",): 8}
    assert roll_up(counts, 2) == {("a", "b"): 3, ("a", "d"): 4, ("e",): 8}
    assert roll_up(counts, 1) == {("a",): 7, ("e",): 8}
    assert roll_up(counts, 0) == {(): 15}


# A run small enough for hand computation.

SCHEMA = AttributeSchema.from_groups("toy", ("a", "b", "c", "d"), {"all": (0, 1, 2, 3)})


@flax.struct.dataclass
class Outputs:
    logits: jax.Array


class Perceptron(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image, tokens=None, *, train):
        x = image.reshape(len(image), -1)
        x = nn.relu(nn.Dense(16, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Outputs(nn.Dense(4, name="head")(x))


def forward(model, variables, teacher, batch, step, train, rngs):
    outputs = model.apply({"params": variables["params"]}, batch.image, train=train, rngs=rngs)
    return outputs, variables["batch_stats"]


def as_float(batch, key):
    return batch._replace(image=batch.image.astype(jnp.float32))


def make_method(frozen=(), dropout=0.0) -> Method:
    terms = (Term("classification", lambda outputs, batch, step: outputs.logits.mean(), weight=2.0),)
    return Method("toy", SCHEMA, Perceptron(dropout), forward, as_float, terms, frozen=tuple(frozen))


def make_batch(examples=8) -> AttributeBatch:
    return AttributeBatch(
        image=shape(examples, 2, 2, 3, dtype=np.uint8),
        labels=shape(examples, 4, dtype=np.uint8),
        known=shape(examples, 4, dtype=np.bool_),
        weight=shape(examples),
        index=shape(examples, dtype=np.int32),
    )


def inspect_toy(frozen=(), layout=None, accumulate=1, dropout=0.0, **options):
    method = make_method(frozen, dropout)
    optimizer = make_optimizer(OptimizerOptions(**{"weight_decay": 0.1} | options), 100, method.frozen)
    return inspect_run(
        method, optimizer, make_batch(), layout or abstract_layout(1, 1), accumulate=accumulate
    )


PARAMETERS = 12 * 16 + 16 + 16 * 4 + 4


def test_run_by_hand():
    found = inspect_toy()
    assert {p.path: (p.shape, p.size, p.decayed, p.frozen) for p in found.parameters} == {
        "head/bias": ((4,), 4, False, False),
        "head/kernel": ((16, 4), 64, True, False),
        "hidden/bias": ((16,), 16, False, False),
        "hidden/kernel": ((12, 16), 192, True, False),
    }
    assert [(a.path, a.shape, a.dtype) for a in found.outputs] == [("logits", (8, 4), "float32")]
    assert [(a.path, a.bytes) for a in found.batch] == [
        ("image", 8 * 12),
        ("labels", 8 * 4),
        ("known", 8 * 4),
        ("weight", 8 * 4),
        ("index", 8 * 4),
    ]
    assert found.multiply_adds == {("hidden",): 12 * 16, ("head",): 16 * 4}  # of one image
    assert found.terms[0] == dataclasses.replace(
        found.terms[0], name="classification", weight=2.0, exact=False
    )
    assert all((term.weight, term.exact) == (0.0, None) for term in found.terms[1:])


def test_memory_by_hand():
    found = inspect_toy(ema_decay=0.9).memory
    assert found == {
        "parameters": 4 * PARAMETERS,
        "batch statistics": 0,
        "optimiser state": 2 * 4 * PARAMETERS + 2 * 4,  # Adam's moments and two step counters
        "average (EMA)": 4 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
        "gathered parameters": 0,
        "batch": 8 * (12 + 4 + 4 + 4 + 4),
        "activations": 8 * (4 * 12 + 16 + 4 * 16),  # pixels, the ReLU's mask, hidden units
    }


def test_random_masks_are_activations():
    more = inspect_toy(dropout=0.5).memory["activations"] - inspect_toy().memory["activations"]
    assert more == 8 * 16  # one byte for each hidden unit


def test_what_is_frozen_has_no_slots_gradients_or_activations():
    found = inspect_toy(frozen=("hidden/.*",))
    assert found.frozen == {"hidden/.*": 12 * 16 + 16}
    assert [p.path for p in found.parameters if p.frozen] == ["hidden/bias", "hidden/kernel"]
    assert not any(p.decayed for p in found.parameters if p.frozen)
    assert found.memory["parameters"] == 4 * PARAMETERS
    assert found.memory["gradients"] == 4 * (64 + 4)
    assert found.memory["optimiser state"] == 2 * 4 * (64 + 4) + 2 * 4
    assert found.memory["activations"] == 8 * 4 * 16  # the head's input alone


def test_memory_falls_with_devices_and_microbatches():
    alone, spread = inspect_toy().memory, inspect_toy(layout=abstract_layout(4, 2)).memory
    assert spread["activations"] == alone["activations"] // 8
    assert spread["batch"] == alone["batch"] // 8
    assert spread["parameters"] == alone["parameters"]  # too small to be worth gathering
    halves = inspect_toy(accumulate=2).memory
    assert halves["activations"] == alone["activations"] // 2
    assert halves["gradients of a microbatch"] == alone["gradients"]


def test_fsdp_spreads_large_parameters_and_gathers_them_whole():
    layout = dataclasses.replace(abstract_layout(2, 4), shard_from=100)
    found = inspect_toy(layout=layout).memory
    large = 12 * 16
    assert found["parameters"] == 4 * (PARAMETERS - large + large // 4)
    assert found["gathered parameters"] == 4 * large


def test_state_bytes_are_those_of_the_real_state():
    method = make_method()
    optimizer = make_optimizer(OptimizerOptions(ema_decay=0.9), 100)
    layout = abstract_layout(1, 1)
    batch = make_batch()
    found = memory.per_device(
        method, optimizer, states.abstract(method, optimizer, batch, seed=0, layout=layout), batch, layout
    )
    real = jax.jit(lambda: states._initial(method, optimizer, batch, 0))()
    expected = {"parameters": real.params, "optimiser state": real.opt_state, "average (EMA)": real.ema}
    assert {k: found[k] for k in expected} == {
        k: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for k, tree in expected.items()
    }


def test_without_weight_decay_nothing_is_decayed():
    assert not any(p.decayed for p in inspect_toy(weight_decay=0.0).parameters)


def test_the_memory_of_a_compiled_step_by_hand():
    """What comes in, what goes out to a place of its own, and the product in between."""

    def step(state, batch):
        return state + jnp.sort(batch @ batch.T)[0].sum(), batch.sum(0)  # a sort is not fused away

    compiled = jax.jit(step, donate_argnums=0).lower(shape(100), shape(300, 50)).compile()
    found = memory.compiled_bytes(compiled)
    held = 4 * (100 + 300 * 50 + 50)
    assert held + 4 * 300 * 300 <= found <= held + 4 * 300 * 300 + 4096


# What the modules cost.


def test_costs_are_ratios_to_the_trunk_and_to_the_run_without_modules():
    plain = dataclasses.replace(
        inspect_toy(), multiply_adds={("trunk", "a"): 60, ("trunk",): 40, ("head",): 20}
    )
    plain = dataclasses.replace(plain, memory={"parameters": 1024, "batch": 1024})
    text = jax.ShapeDtypeStruct((8, 32), np.int32)
    found = dataclasses.replace(
        plain,
        batch=record_arrays(make_batch()._replace(tokens=text)),
        multiply_adds={("trunk",): 100, ("encoder",): 150},
        without_text={("trunk",): 100, ("encoder",): 50},
        memory={"parameters": 5120},
    )
    assert cost.compare(found, plain) == (
        ("trunk", 100, None),
        ("without modules", 120, 2048),
        ("this configuration, without text", 150, None),
        ("this configuration, 32 text tokens", 250, 5120),
    )
    rows = [line.split()[-6:] for line in format_costs(cost.compare(found, plain)).splitlines()[4:]]
    assert [row[-1] for row in rows] == ["-", "1.00", "-", "2.50"]
    assert rows[3] == ["0.00", "M", "2.50", "5.0", "KiB", "2.50"]
    assert [name for name, *_ in cost.compare(plain, plain)][2] == "this configuration"


@pytest.mark.slow
def test_a_configuration_with_modules_is_set_beside_the_one_without():
    width = "--config.model.hidden_size=256"
    modules = [f"--config.model.{name}=default" for name in ("encoder", "text")]
    sizes = [f"--config.model.{key}=2" for key in ("encoder.depth", "encoder.num_heads", "text.num_heads")]
    overrides = [width, *modules, *sizes, "--config.data.text.captions=phrases"]
    settings = config.load(f"{SCENES}:tiny", overrides)
    assert cost.without_modules(settings) == config.load(f"{SCENES}:tiny", [width])
    assert settings.model.encoder.depth == 2  # and is itself left as it is
    text = inspect(settings, depth=0)
    begin = text.index("Cost of the modules")
    trunk, plain, without, with_text = (line.split() for line in text[begin:].splitlines()[4:])
    assert trunk[0] == "trunk"
    counts = [float(row[row.index("M") - 1]) for row in (trunk, plain, without, with_text)]
    assert counts == sorted(set(counts))
    assert float(plain[-1]) == 1 < float(with_text[-1])


# What cannot run.


def test_a_pattern_that_freezes_nothing_is_an_error():
    with pytest.raises(WscaError, match=r"'hiden/\.\*' matches none"):
        inspect_toy(frozen=("hiden/.*",))


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(WscaError, match="8 examples does not divide over 3 devices"):
        inspect_toy(layout=abstract_layout(3, 1))


@pytest.mark.parametrize(("data", "fsdp"), [(0, 1), (-2, 1), (1, 0)])
def test_a_mesh_that_cannot_be_is_an_error(data, fsdp):
    with pytest.raises(WscaError, match="expected 1 or more"):
        abstract_layout(data, fsdp)


def test_all_devices_are_taken_where_none_are_named():
    assert dict(abstract_layout(-1, 2).mesh.shape) == {"data": 4, "fsdp": 2}


# Text.


def test_inspecting_a_configuration_prints_every_table():
    overrides = ["--config.frozen=('trunk/stem/.*',)", "--config.mesh.data=16"]  # more devices than there are
    text = inspect(config.load(f"{SCENES}:tiny", overrides), depth=1)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--config.mesh.data 16" in lines
    assert "image [16, 32, 32, 3] uint8 48.0 KiB" in lines
    assert any(line.startswith("trunk/... ") for line in lines)
    assert "trunk/stem/.* 1,192" in lines  # 7 x 7 x 3 x 8 and two vectors of 8
    assert "logits [16, 36] float32 2.2 KiB" in lines
    assert any(line.startswith("classification 1 ") for line in lines)
    assert "pseudo 0 not computed" in lines
    assert "Memory of a training step, on each of 16 devices (data 16 x fsdp 1)" in lines


def test_parameter_tables_add_up_at_every_depth():
    found = inspect_toy()
    for depth in (0, 1, 2):
        lines = format_inspection(found, depth).splitlines()
        begin = next(i for i, line in enumerate(lines) if line.startswith("Parameters, to depth"))
        table = lines[begin + 4 : lines.index("Frozen", begin) - 1]
        *rows, _, total = [line.split() for line in table]
        assert total[3] == f"{PARAMETERS}"
        assert len(rows) == (1, 4, 4)[depth]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (512, "512 B"),
        (1536, "1.5 KiB"),
        (46379920, "44.2 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**50, "1048576.0 GiB"),
    ],
)
def test_bytes_read_well(size, text):
    assert format_bytes(size) == text
