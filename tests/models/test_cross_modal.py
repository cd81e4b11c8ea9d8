"""Cross-modal encoder: held against PyTorch, blind to padding, whole with and without text."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wsca_jax.models.cross_modal import CrossModalBlock, CrossModalEncoder, TextTokens, grid_positions
from wsca_jax.models.text import TextTower

HIDDEN, HEADS, GROUPS, ATTR, LENGTH = 8, 2, 3, 4, 5
IDS = np.int32([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0], [0, 0, 0, 0, 0], [7, 0, 0, 0, 0]])


def make_encoder(text=True, groups=GROUPS, **settings):
    tower = TextTower(10, LENGTH, HIDDEN, depth=1, num_heads=HEADS, dtype=jnp.float32) if text else None
    settings = {"depth": 2, "num_heads": HEADS, "dtype": jnp.float32, **settings}
    return CrossModalEncoder(groups, HIDDEN, ATTR, text=tower, **settings)


def seeded(init):
    """Random parameters of the shapes that `init` declares: biases and scales count too."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), jax.eval_shape(init))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    return normal(4, 2, 3, HIDDEN)


@pytest.fixture(scope="module")
def encoder(tokens):
    module = make_encoder()
    variables = seeded(lambda: module.init(jax.random.key(0), tokens, IDS, train=False))
    return module, variables, jax.jit(lambda t, ids: module.apply(variables, t, ids, train=False))


@pytest.fixture(scope="module")
def gradients(encoder, tokens):
    """Text ids -> the gradient of a weighted sum of the output tokens, by parameter path."""
    module, variables, _ = encoder
    weights = normal(*tokens.shape, seed=3)
    gradient = jax.jit(
        jax.grad(lambda v, ids: jnp.sum(weights * module.apply(v, tokens, ids, train=False).tokens))
    )
    return lambda ids: flatten_dict(gradient(variables, ids)["params"], sep="/")


def block_in_pytorch(torch, p, visual, text, present):
    """One block as a person would write it, for one example; `present` selects the words to read."""
    functional = torch.nn.functional

    def norm(x, p):
        return functional.layer_norm(x, (HIDDEN,), p["scale"], p["bias"], eps=1e-6)

    def attention(x, memory, p):
        query = torch.einsum("td,dhc->htc", x, p["query"]["kernel"]) + p["query"]["bias"][:, None]
        key, value = (torch.einsum("td,dhc->htc", memory, p[name]["kernel"]) for name in ("key", "value"))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return torch.einsum("htc,hcd->td", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def within(x, p):
        return x + attention(norm(x, p["norm"]), norm(x, p["norm"]), p["attention"])

    def feed_forward(x, p):
        hidden = norm(x, p["norm"]) @ p["expand"]["kernel"] + p["expand"]["bias"]
        hidden = functional.gelu(hidden, approximate="tanh")
        return x + hidden @ p["contract"]["kernel"] + p["contract"]["bias"]

    text = text[present]
    visual = within(visual, p["visual_attention"])
    if len(text):
        text = within(text, p["text_attention"])
        seen, read = norm(visual, p["visual_norm"]), norm(text, p["text_norm"])
        visual = visual + attention(seen, read, p["visual_from_text"])
        text = text + attention(read, seen, p["text_from_visual"])
        text = feed_forward(text, p["text_ffn"])
    return feed_forward(visual, p["visual_ffn"]), text


def test_a_block_is_equal_to_pytorch():
    torch = pytest.importorskip("torch")
    block = CrossModalBlock(HEADS, ffn_ratio=1.5, dtype=jnp.float32)
    visual = normal(4, 6, HIDDEN, seed=2)
    text = TextTokens(normal(4, LENGTH, HIDDEN, seed=3), IDS != 0)
    variables = seeded(lambda: block.init(jax.random.key(0), visual, text, train=False))
    seen, read = jax.jit(lambda v: block.apply(v, visual, text, train=False))(variables)
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), variables["params"])
    assert p["visual_ffn"]["expand"]["kernel"].shape == (HIDDEN, 12)
    for row in range(4):
        arrays = (torch.tensor(np.asarray(x[row])) for x in (visual, text.tokens, text.present))
        expected_seen, expected_read = block_in_pytorch(torch, p, *arrays)
        np.testing.assert_allclose(seen[row], expected_seen, atol=1e-5)
        np.testing.assert_allclose(read.tokens[row][IDS[row] != 0], expected_read, atol=1e-5)


class TestText:
    def test_an_empty_text_is_exactly_no_text(self, encoder, tokens):
        """Row 2 has none. Nobody else's text and nothing in its own padding changes a bit of it."""
        _, _, apply = encoder
        mixed, none = apply(tokens, IDS), apply(tokens, np.zeros_like(IDS))
        for name in ("tokens", "branches", "values", "attention"):
            np.testing.assert_array_equal(getattr(mixed, name)[2], getattr(none, name)[2])
        assert np.abs(mixed.tokens[0] - none.tokens[0]).max() > 1e-2

    def test_empty_texts_are_the_program_without_text(self, encoder, tokens):
        _, _, apply = encoder
        empty, none = apply(tokens, np.zeros_like(IDS)), apply(tokens, None)
        for name in ("tokens", "branches", "values", "attention"):
            np.testing.assert_allclose(getattr(empty, name), getattr(none, name), atol=1e-6, rtol=1e-6)
        assert none.text is None
        np.testing.assert_array_equal(empty.text, 0)

    def test_the_same_holds_in_training(self, tokens):
        """Text leaves the random draws of the visual path alone."""
        module = make_encoder(depth=1)
        variables = seeded(lambda: module.init(jax.random.key(0), tokens, train=False))
        rngs = {"dropout": jax.random.key(1)}
        apply = jax.jit(lambda ids: module.apply(variables, tokens, ids, train=True, rngs=rngs).tokens)
        np.testing.assert_allclose(apply(np.zeros_like(IDS)), apply(None), atol=1e-5)

    def test_gradients_are_finite_where_all_is_padding(self, gradients):
        values = gradients(np.zeros_like(IDS))
        for path, leaf in values.items():
            assert np.all(np.isfinite(leaf)), path
        for path in ("block_0/visual_from_text/out/bias", "text/embedding/embedding"):
            np.testing.assert_array_equal(values[path], 0)

    def test_whole_texts_are_dropped_at_the_given_rate_in_training_only(self):
        module = make_encoder(depth=1, text_dropout=0.25, dropout=0.0)
        module = module.clone(text=module.text.clone(depth=0, dropout=0.0))
        tokens, ids = np.ones((512, 1, 1, HIDDEN), np.float32), np.ones((512, LENGTH), np.int32)
        variables = seeded(lambda: module.init(jax.random.key(0), tokens, train=False))
        rngs = {"dropout": jax.random.key(5)}
        train, evaluate = (
            jax.jit(lambda ids, t=t: module.apply(variables, tokens, ids, train=t, rngs=rngs).tokens)
            for t in (True, False)
        )
        alone = evaluate(np.zeros_like(ids))
        dropped = np.abs(train(ids) - alone).max((1, 2, 3)) < 1e-5
        assert dropped.mean() == pytest.approx(0.25, abs=0.06)
        assert np.abs(evaluate(ids) - alone).max((1, 2, 3)).min() > 1e-3

    def test_pooled_text_knows_nothing_of_the_image_and_equals_a_phrase(self, encoder, tokens):
        module, variables, apply = encoder
        phrases = jax.jit(lambda ids: module.apply(variables, ids, train=False, method="encode_phrases"))(IDS)
        np.testing.assert_allclose(apply(tokens, IDS).text, phrases, atol=1e-6)
        np.testing.assert_array_equal(apply(tokens, IDS).text, apply(2 * tokens, IDS).text)


class TestParameters:
    def test_without_a_tower_there_is_nothing_about_text(self, tokens):
        module = make_encoder(text=False)
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, IDS, train=False))
        assert not [path for path in flatten_dict(variables["params"], sep="/") if "text" in path]
        with pytest.raises(ValueError, match="need a text tower"):
            module.apply({}, IDS, train=False, method="encode_phrases")

    def test_they_exist_whether_or_not_init_sees_a_text(self, encoder, tokens):
        module, variables, _ = encoder
        without = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, None, train=False))
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda x: x.shape, without)

    def test_the_last_block_leaves_the_text_alone_and_no_key_has_a_bias(self, encoder):
        _, variables, _ = encoder
        paths = set(flatten_dict(variables["params"], sep="/"))
        sublayers = {tuple(path.split("/")[:2]) for path in paths}
        updates = {"text_attention", "text_from_visual", "text_ffn"}
        assert {name for block, name in sublayers if block == "block_0"} >= updates
        assert not {name for block, name in sublayers if block == "block_1"} & updates
        assert not [path for path in paths if path.endswith("key/bias")]

    def test_every_one_has_a_gradient(self, gradients):
        for path, leaf in gradients(IDS).items():
            assert np.linalg.norm(leaf) > 1e-3, path


def test_images_of_a_batch_do_not_see_each_other(encoder, tokens):
    _, _, apply = encoder
    order = np.array([2, 0, 3, 1])
    permuted, result = apply(tokens[order], IDS[order]), apply(tokens, IDS)
    for one, other in zip(permuted, result, strict=True):
        np.testing.assert_allclose(one, other[order], atol=1e-5)


def test_attention_maps_sum_to_one_on_the_grid(encoder, tokens):
    _, _, apply = encoder
    attention = apply(tokens, IDS).attention
    assert attention.shape == (4, GROUPS, 2, 3)
    np.testing.assert_allclose(attention.sum((2, 3)), 1.0, rtol=1e-6)


def test_tokens_know_where_they_are(encoder, tokens):
    """Without positions a shuffled image would give shuffled tokens."""
    _, _, apply = encoder
    shuffled = apply(tokens[:, :, ::-1], None).tokens[:, :, ::-1]
    assert np.abs(shuffled - apply(tokens, None).tokens).max() > 1e-2


def test_positions_are_distinct_and_belong_to_the_image_not_to_the_grid():
    coarse, fine = grid_positions(3, 3, 32), grid_positions(9, 9, 32)
    np.testing.assert_allclose(fine[1::3, 1::3], coarse, atol=1e-6)
    codes = grid_positions(7, 7, 32).reshape(49, 32)
    distances = np.linalg.norm(codes[:, None] - codes, axis=-1) + 10 * np.eye(49)
    assert distances.min() > 0.5


def test_a_fresh_encoder_still_carries_its_input(tokens):
    """At initialisation all updates together are smaller than what they are added to."""
    module = make_encoder(text=False, depth=2)
    result, _ = jax.jit(lambda: module.init_with_output(jax.random.key(0), tokens, train=False))()
    start = tokens + grid_positions(2, 3, HIDDEN)
    assert np.corrcoef(start.ravel(), np.ravel(result.tokens))[0, 1] > 0.6


def test_the_program_does_not_grow_with_the_groups(tokens):
    def operations(groups):
        module = make_encoder(groups=groups)
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, train=False))
        apply = jax.make_jaxpr(lambda v: module.apply(v, tokens, IDS, train=False))
        return str(apply(variables)).count("\n")

    assert operations(2) == operations(8)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does_without_gathering_the_batch():
    module = make_encoder(depth=1)
    arguments = normal(16, 2, 3, HIDDEN), np.tile(IDS, (4, 1))
    variables = seeded(lambda: module.init(jax.random.key(0), *arguments, train=False))

    def loss(v, tokens, ids):
        result = module.apply(v, tokens, ids, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(jnp.sin(result.tokens)) + jnp.sum(result.branches**2), result

    step = jax.grad(loss, has_aux=True)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    sharded = jax.jit(step, in_shardings=(copies, rows, rows)).lower(variables, *arguments).compile()
    assert not re.findall(r" (all-gather|all-to-all|collective-permute)\(", sharded.as_text())
    spread = sharded(jax.device_put(variables, copies), *jax.device_put(arguments, rows))
    whole = jax.jit(step)(variables, *arguments)
    for one, other in zip(jax.tree.leaves(spread), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


def test_bfloat16_compute_keeps_parameters_and_maps_in_float32(tokens):
    module = CrossModalEncoder(GROUPS, HIDDEN, ATTR, depth=1, num_heads=HEADS, text=TextTower(10, 5, HIDDEN))
    result, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), tokens, IDS, train=False)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert result.attention.dtype == jnp.float32
    assert result.tokens.dtype == result.branches.dtype == result.text.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "hidden_size is 8; expected a multiple of num_heads, 3"),
        ({"depth": 0}, "depth is 0; expected at least 1"),
        ({"text_dropout": 1.0}, "text_dropout is 1.0; expected 0 <= rate < 1"),
        ({"hidden_size": 6}, "hidden_size is 6; expected a multiple of 4"),
        ({"hidden_size": 16}, "text.width is 8; expected hidden_size, 16"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_encoder().clone(**settings)
