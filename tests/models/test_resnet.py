"""ResNet against an independent PyTorch one: by committed figures anywhere, directly where torch is."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.resnet import Block, ResNet

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from seeded_weights import seeded, seeded_image, seeded_variables  # noqa: E402

GOLDENS = json.loads((TESTS / "goldens" / "resnet.json").read_text())


def shapes(model, size=64):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))


def evaluate(model, image):
    variables = seeded_variables(shapes(model))
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)


def logits(stages, classes=10):
    c5 = np.asarray(stages.c5)
    return c5.mean((1, 2)) @ seeded("fc.weight", (classes, c5.shape[-1])).T + seeded("fc.bias", (classes,))


@pytest.mark.parametrize("depth", [18, 26, 50])
def test_golden_figures(depth):
    golden = GOLDENS[str(depth)]
    model = ResNet(depth, width=GOLDENS["width"], dtype=jnp.float32)
    stages = evaluate(model, seeded_image(GOLDENS["batch"], GOLDENS["size"]))
    np.testing.assert_allclose(logits(stages), golden["logits"], atol=1e-4)
    for name, stage in stages._asdict().items():
        shape, mean, square = golden[name]
        assert list(stage.shape) == shape
        stage = np.asarray(stage, np.float64)
        np.testing.assert_allclose([stage.mean(), (stage**2).mean()], [mean, square], rtol=1e-4)


@pytest.mark.parametrize(
    ("depth", "size"), [(18, 64), (26, 64), (50, 64), pytest.param(50, 224, marks=pytest.mark.slow)]
)
def test_logits_equal_pytorch(depth, size):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(TESTS / "goldens"))
    from make_resnet_goldens import seeded_reference

    image = seeded_image(1, size)
    stages = evaluate(ResNet(depth, dtype=jnp.float32), image)
    with torch.no_grad():
        expected = seeded_reference(depth, 64)(torch.from_numpy(image).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits(stages), expected, atol=1e-4)


def test_one_training_pass_equals_pytorch():
    """Loss, running statistics and the gradients of every parameter, from the batch's own statistics."""
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(TESTS / "goldens"))
    from make_resnet_goldens import seeded_reference

    from wsca_jax.models.pretrained import torchvision_name

    model, image = ResNet(18, width=8, dtype=jnp.float32), seeded_image(4, 64)
    variables = seeded_variables(shapes(model))

    def loss(params):
        stages, updated = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            image,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(stages.c5**2) + jnp.mean(stages.c3), updated["batch_stats"]

    (value, statistics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    reference = seeded_reference(18, 8).train()
    stages = reference.stages(torch.from_numpy(image).permute(0, 3, 1, 2))
    expected = (stages[3] ** 2).mean() + stages[1].mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    theirs = {name: p.grad for name, p in reference.named_parameters()} | dict(reference.named_buffers())
    for keys, leaf in jax.tree_util.tree_leaves_with_path({"params": gradients, "batch_stats": statistics}):
        name = torchvision_name(tuple(key.key for key in keys))
        other = theirs[name].numpy()
        other = other.transpose(2, 3, 1, 0) if other.ndim == 4 else other
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4 * np.abs(other).max(), err_msg=name)


def test_native_and_cpu_forms_give_the_same_network():
    image = seeded_image(2, 64)
    found, expected = (
        evaluate(ResNet(26, width=8, dtype=jnp.float32, lowering=form), image) for form in ("cpu", "native")
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_options_for_small_images_keep_the_grid_fine():
    model = ResNet(18, width=4, stem_kernel=3, stem_stride=1, max_pool=False, last_stride=1)
    image = jnp.zeros((2, 32, 32, 3))
    stages = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, train=False)[0])
    assert [s.shape for s in stages] == [(2, 32, 32, 4), (2, 16, 16, 8), (2, 8, 8, 16), (2, 8, 8, 32)]


def test_computes_in_its_dtype_and_keeps_float32_parameters():
    model = ResNet(50, width=4)
    stages, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True)
    )
    assert all(stage.dtype == jnp.bfloat16 for stage in stages)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_parameters_have_stable_names():
    paths = {
        "/".join(key.key for key in keys)
        for keys, _ in jax.tree_util.tree_leaves_with_path(shapes(ResNet(50, width=4))["params"])
    }
    assert {"stem/conv/kernel", "stem/norm/scale", "c2/block0/unit1/conv/kernel"} <= paths
    assert {"c3/block0/shortcut/conv/kernel", "c5/block2/unit3/norm/bias"} <= paths
    assert len(paths) == 159  # torchvision's resnet50 without its fc


def test_rows_of_weight_zero_do_not_reach_the_others():
    model, image = ResNet(18, width=4, dtype=jnp.float32), jnp.asarray(seeded_image(4, 32))
    variables = seeded_variables(shapes(model, 32))
    weight = jnp.asarray([1, 0, 1, 1.0])

    @jax.jit
    def run(image):
        return model.apply(variables, image, train=True, weight=weight, mutable=["batch_stats"])

    stages, updated = run(image)
    other_stages, other_updated = run(image.at[1].set(0))
    kept = np.flatnonzero(weight)
    np.testing.assert_allclose(stages.c5[kept], other_stages.c5[kept], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated, other_updated)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_starts_a_block_as_relu(bottleneck):
    block = Block(4, 1, bottleneck, zero_init=True, dtype=jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 16 if bottleneck else 4)), jnp.float32)
    y, _ = jax.jit(lambda: block.init_with_output(jax.random.key(0), x, train=False, weight=None))()
    np.testing.assert_array_equal(y, jax.nn.relu(x))


@pytest.mark.slow
def test_rematerialised_stages_keep_less_and_compute_the_same():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    settings = {"depth": 26, "width": 8, "dtype": jnp.float32}
    variables = jax.jit(lambda: ResNet(**settings).init(jax.random.key(0), image, train=True))()

    def loss(params, remat):
        collections = {**variables, "params": params}
        model = ResNet(**settings, remat=remat)
        stages, updated = model.apply(collections, image, train=True, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.sin(stage)) for stage in stages), updated

    def kept(*remat):
        """Elements that wait for the backward pass."""
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, remat)[0], p)[1], variables["params"])
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    every = ("c2", "c3", "c4", "c5")
    assert kept() > kept("c5") > kept(*every)
    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    plain, again = grad(variables["params"], ()), grad(variables["params"], every)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), again, plain)


def test_an_unknown_stage_is_an_error():
    with pytest.raises(ValueError, match="remat names c6, expected stages out of c2, c3, c4, c5"):
        ResNet(remat=("c2", "c6"))


def test_an_unknown_depth_is_an_error():
    with pytest.raises(ValueError, match="depth is 34, expected one of 18, 26, 50"):
        ResNet(34)
