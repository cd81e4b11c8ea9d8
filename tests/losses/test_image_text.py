"""Image-text alignment: against PyTorch and by hand, and what no example without a caption may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses.image_text import image_text

SCALE, BIAS = jnp.float32(4.0), jnp.float32(-1.0)


def features(rows=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(rows, width)).astype(np.float32) for _ in range(2))


def loss(image, text, has_text=None, weight=None, scale=SCALE, bias=BIAS):
    rows = len(image)
    has_text = np.ones(rows, bool) if has_text is None else np.array(has_text, bool)
    weight = np.ones(rows, np.float32) if weight is None else np.array(weight, np.float32)
    return jax.jit(image_text)(image, text, has_text, weight, scale=scale, bias=bias)


def softplus(x):
    return np.log1p(np.exp(x))


def test_two_examples_by_hand():
    """Own captions at cosine 1 and 0, the others' at 0 and -1."""
    image = np.array([[2.0, 0.0], [0.0, 3.0]], np.float32)
    text = np.array([[5.0, 0.0], [-1.0, 0.0]], np.float32)
    own = (softplus(-(4 - 1)) + softplus(-(0 - 1))) / 2
    others = (softplus(-4 - 1) + softplus(0 - 1)) / 2
    np.testing.assert_allclose(loss(image, text), own + others, rtol=1e-5)


def test_value_and_gradients_are_torch_s():
    torch = pytest.importorskip("torch")
    image, text = features(8)
    weight = np.array([1, 0.5, 1, 1, 0, 1, 0.25, 1], np.float32)
    has_text = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    inputs = [torch.tensor(x, requires_grad=True) for x in (image, text, np.float32(4), np.float32(-1))]
    a, b, t, c = inputs
    logits = t * torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T + c
    own = torch.eye(8, dtype=torch.bool)
    entry = -torch.nn.functional.logsigmoid(torch.where(own, logits, -logits))
    w = torch.tensor(weight * has_text)
    pairs = torch.where(own, torch.zeros(()), w[:, None] * w)
    expected = (entry.diagonal() * w).sum() / w.sum() + (entry * pairs).sum() / pairs.sum()
    expected.backward()
    value, gradients = jax.value_and_grad(
        lambda a, b, t, c: image_text(a, b, has_text, weight, scale=t, bias=c), argnums=(0, 1, 2, 3)
    )(image, text, SCALE, BIAS)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for found, reference in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(found, reference.grad, rtol=2e-4, atol=1e-6)


def test_examples_without_a_caption_and_padding_are_not_there():
    image, text = features()
    expected = loss(image[:4], text[:4])
    image[4:], text[4:] = np.nan, np.inf
    without = {"has_text": [1, 1, 1, 1, 0, 1], "weight": [1, 1, 1, 1, 1, 0]}
    np.testing.assert_allclose(loss(image, text, **without), expected, rtol=1e-6)
    gradients = jax.grad(lambda a, b: loss(a, b, **without), argnums=(0, 1))(image, text)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[4:].any()


@pytest.mark.parametrize("captions", [0, 1])
def test_no_pair_is_no_loss_and_no_nan(captions):
    image, text = np.zeros((2, 6, 5), np.float32)
    has_text = np.arange(6) < captions
    value, gradient = jax.value_and_grad(lambda a: loss(a, text, has_text))(image)
    np.testing.assert_allclose(value, captions * softplus(1.0), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_order_and_length_of_the_vectors_do_not_matter():
    image, text = features()
    order = np.random.default_rng(1).permutation(6)
    expected = loss(image, text)
    np.testing.assert_allclose(loss(image[order], text[order]), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(3 * image, 10 * text), expected, rtol=1e-5)
    assert loss(image, text[::-1]) != pytest.approx(float(expected), rel=1e-3)


def test_low_precision_features_are_scored_in_float32():
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in features())
    low, high = loss(image, text), loss(image.astype(jnp.float32), text.astype(jnp.float32))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-6)


def test_the_best_score_is_how_much_likelier_an_image_makes_a_caption():
    """Three kinds of image, two captions, of which kind 2 has either: true of others, and no mistake."""
    kinds = np.repeat([0, 1, 2, 2], 16)
    said = np.repeat([0, 1, 0, 1], 16)
    rng = np.random.default_rng(0)
    parameters = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4), (2, 4))]
    ones = np.ones(64, np.float32)

    def objective(parameters):
        image, text = parameters
        scores = {"scale": jnp.float32(5.0), "bias": jnp.float32(0.0)}
        return image_text(image[kinds], text[said], ones > 0, ones, **scores)

    step = jax.jit(lambda p: [x - 0.3 * g for x, g in zip(p, jax.grad(objective)(p), strict=True)])
    for _ in range(300):
        parameters = step(parameters)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.asarray, parameters))
    score = 5 * image @ text.T
    own = np.array([[16, 0], [0, 16], [16, 16]]) / 64
    others = (np.array([[16], [16], [32]]) * [32, 32] - 64 * own) / (64 * 63)
    finite = own > 0  # where a caption never comes, the best score is as low as can be
    np.testing.assert_allclose(score[finite], np.log(own[finite] / others[finite]), atol=0.02)
    assert score[~finite].max() < -3


def test_features_must_fit():
    with pytest.raises(ValueError, match="found shapes"):
        image_text(jnp.ones((3, 4)), jnp.ones((3, 5)), jnp.ones(3, bool), jnp.ones(3), scale=SCALE, bias=BIAS)
