"""Text tower: held against PyTorch; padding is never read; phrases pool to one vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.text import TextTower

WIDTH, HEADS = 8, 2
IDS = np.int32([[3, 1, 4, 1], [5, 9, 0, 0], [0, 0, 0, 0]])


@pytest.fixture(scope="module")
def tower():
    module = TextTower(10, 6, WIDTH, depth=2, num_heads=HEADS, dropout=0.3, dtype=jnp.float32)
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS, train=False))
    variables = jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), shapes)
    return module, variables, jax.jit(lambda v, ids: module.apply(v, ids, train=False))


def test_equal_to_pytorch(tower):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    _, variables, apply = tower
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), variables["params"])

    def norm(x, p):
        return functional.layer_norm(x, (WIDTH,), p["scale"], p["bias"], eps=1e-6)

    for row, count in ((0, 4), (1, 2)):  # each text by itself, without its padding
        x = p["embedding"]["embedding"][torch.tensor(IDS[row, :count])] + p["position"][:count]
        for layer in range(2):
            q = p[f"attention_{layer}"]
            n, a = norm(x, q["norm"]), q["attention"]
            query = torch.einsum("td,dhc->htc", n, a["query"]["kernel"]) + a["query"]["bias"][:, None]
            key, value = (torch.einsum("td,dhc->htc", n, a[name]["kernel"]) for name in ("key", "value"))
            mixed = functional.scaled_dot_product_attention(query, key, value)
            x = x + torch.einsum("htc,hcd->td", mixed, a["out"]["kernel"]) + a["out"]["bias"]
            q = p[f"ffn_{layer}"]
            hidden = norm(x, q["norm"]) @ q["expand"]["kernel"] + q["expand"]["bias"]
            hidden = functional.gelu(hidden, approximate="tanh")
            x = x + hidden @ q["contract"]["kernel"] + q["contract"]["bias"]
        expected = norm(x, p["norm"])
        np.testing.assert_allclose(apply(variables, IDS).tokens[row, :count], expected, atol=1e-5)


def test_presence_is_what_is_not_padding(tower):
    _, variables, apply = tower
    np.testing.assert_array_equal(apply(variables, IDS).present, IDS != 0)


def test_more_padding_changes_nothing(tower):
    module, variables, _ = tower
    pool = jax.jit(lambda ids: module.apply(variables, ids, train=False, method="pool"))
    padded = np.pad(IDS, [(0, 0), (0, 2)])
    np.testing.assert_allclose(pool(padded), pool(IDS), atol=1e-6)


def test_a_phrase_is_the_mean_of_its_tokens_and_none_is_zero(tower):
    module, variables, apply = tower
    pooled = jax.jit(lambda ids: module.apply(variables, ids, train=False, method="pool"))(IDS)
    tokens = np.asarray(apply(variables, IDS).tokens)
    expected = np.stack([tokens[0].mean(0), tokens[1, :2].mean(0), np.zeros(WIDTH)])
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_every_parameter_has_a_finite_gradient_even_beside_empty_texts(tower):
    module, variables, _ = tower
    weights = np.random.default_rng(2).normal(size=(3, WIDTH))

    def loss(v):
        return jnp.sum(weights * module.apply(v, IDS, train=False, method="pool"))

    gradients = jax.jit(jax.grad(loss))(variables)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        assert np.abs(leaf).max() > 1e-4, path
    np.testing.assert_array_equal(gradients["embedding"]["embedding"][0], 0)


def test_a_text_beyond_the_length_is_refused(tower):
    module, variables, _ = tower
    with pytest.raises(ValueError, match="7 tokens; expected at most 6"):
        module.apply(variables, np.ones((1, 7), np.int32), train=False)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width is 10; expected a multiple of num_heads, 4"):
        TextTower(10, 6, 10, num_heads=4)
