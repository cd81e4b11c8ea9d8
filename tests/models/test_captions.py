"""Images and captions in one space: two projections, a scale and a bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses.image_text import image_text
from wsca_jax.models.captions import CaptionAlignment

MODULE = CaptionAlignment(width=4, dtype=jnp.float32)
RNG = np.random.default_rng(0)
POOLED, TEXT = RNG.normal(size=(2, 5, 6)).astype(np.float32)
UNREAD = np.array([True, True, False, True, False])
PARAMS = {
    "temperature": np.float32(np.log(3.0)),
    "bias": np.float32(-0.7),
    "image": {"kernel": RNG.normal(size=(6, 4)).astype(np.float32)},
    "caption": {"kernel": RNG.normal(size=(6, 4)).astype(np.float32)},
}


def test_its_loss_equals_numpy_s():
    """Each unread caption with its own image, and with those of the other unread ones."""
    pairs = MODULE.apply({"params": PARAMS}, POOLED, TEXT, UNREAD, train=True)
    np.testing.assert_array_equal(pairs.unread, UNREAD)
    image, caption = (x @ PARAMS[side]["kernel"] for x, side in ((POOLED, "image"), (TEXT, "caption")))
    np.testing.assert_allclose(pairs.image, image, atol=1e-5)
    np.testing.assert_allclose(pairs.caption, caption, atol=1e-5)
    image, caption = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, caption))
    score = (3.0 * image @ caption.T - 0.7)[UNREAD][:, UNREAD]
    own = np.eye(len(score), dtype=bool)
    expected = np.logaddexp(0, -score[own]).mean() + np.logaddexp(0, score[~own]).mean()
    found = image_text(*pairs[:3], np.ones(5, np.float32), scale=pairs.scale, bias=pairs.bias)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_score_begins_with_the_initial_scale_and_no_bias_in_training_as_in_evaluation():
    start = jax.jit(lambda: MODULE.init(jax.random.key(0), POOLED, TEXT, UNREAD, train=False))()
    jax.tree.map(lambda x, like: np.testing.assert_equal(x.shape, like.shape), start["params"], PARAMS)
    trains, evaluates = (MODULE.apply(start, POOLED, TEXT, UNREAD, train=train) for train in (True, False))
    jax.tree.map(np.testing.assert_array_equal, trains, evaluates)
    assert (float(trains.scale), float(trains.bias)) == (pytest.approx(10.0), 0.0)
