import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses import classification

# Three examples, four attributes; the last example is padding and one entry of each other row is unknown.
LOGITS = np.float32([[0.0, 2.0, -1.0, 3.0], [-3.0, 0.5, 4.0, -0.25], [9.0, -9.0, 9.0, -9.0]])
LABELS = np.uint8([[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]])
KNOWN = np.bool_([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1]])
WEIGHT = np.float32([1.0, 0.5, 0.0])

ENTRYWISE = {
    "binary_cross_entropy": classification.binary_cross_entropy,
    "focal": functools.partial(classification.focal, gamma=2.0, alpha=0.25),
    "focal with a small exponent": functools.partial(classification.focal, gamma=0.5),
    "asymmetric": classification.asymmetric,
    "asymmetric with small exponents": functools.partial(
        classification.asymmetric, gamma_positive=0.5, gamma_negative=0.5
    ),
    "asymmetric without margin": functools.partial(classification.asymmetric, margin=0.0),
}
EVERY = ENTRYWISE | {"softmax_cross_entropy": classification.softmax_cross_entropy}

entrywise = pytest.mark.parametrize("loss", ENTRYWISE.values(), ids=ENTRYWISE.keys())
every = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY.keys())


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss))


def value_and_gradient(loss, logits, *arrays):
    return jax.tree.map(np.asarray, compiled(loss)(logits, *arrays))


def all_known(logits, labels):
    """Arguments of a loss where every entry is known and every example counts in full."""
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels)
    return logits, labels, np.ones(labels.shape, bool), np.ones(len(labels), np.float32)


def one(loss, logit, label):
    """The loss of a single known entry."""
    value, _ = value_and_gradient(loss, *all_known([[logit]], np.uint8([[label]])))
    return value


def random_batch(rng, rows=16, attributes=7):
    logits = rng.normal(0.0, 3.0, (rows, attributes)).astype(np.float32)
    known = rng.random((rows, attributes)) < 0.6
    labels = ((rng.random((rows, attributes)) < 0.3) & known).astype(np.uint8)
    return logits, labels, known, rng.random(rows).astype(np.float32)


class TestFixedNumbers:
    @pytest.mark.parametrize(
        ("logit", "label", "expected"),
        [(0.0, 1, math.log(2.0)), (2.0, 1, 0.1269280), (2.0, 0, 2.1269280), (-30.0, 1, 30.0)],
    )
    def test_binary_cross_entropy(self, logit, label, expected):
        assert one(classification.binary_cross_entropy, logit, label) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize(
        ("logit", "label", "expected"),
        [(0.0, 1, 0.25 * 0.25 * math.log(2.0)), (2.0, 0, 0.75 * 0.8807971**2 * 2.1269280)],
    )
    def test_focal(self, logit, label, expected):
        loss = functools.partial(classification.focal, gamma=2.0, alpha=0.25)
        assert one(loss, logit, label) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize(
        ("logit", "label", "expected"),
        [
            (0.0, 1, 0.5 * math.log(2.0)),  # (1 - p)^1 log p
            (0.0, 0, -(0.45**4) * math.log(0.55)),  # p_m = 0.45
            (-4.0, 0, 0.0),  # p = 0.018 lies below the margin
        ],
    )
    def test_asymmetric(self, logit, label, expected):
        assert one(classification.asymmetric, logit, label) == pytest.approx(expected, rel=1e-6)

    def test_the_mean_runs_over_known_entries_by_weight(self):
        # known: weight 1: softplus(0), softplus(2), softplus(-1); weight 1/2: softplus(-3, -0.5, 0.25)
        first = math.log(2.0) + 2.1269280 + 0.3132617
        second = 0.0485874 + 0.4740770 + 0.8259394
        value, _ = value_and_gradient(classification.binary_cross_entropy, LOGITS, LABELS, KNOWN, WEIGHT)
        assert float(value) == pytest.approx((first + second / 2.0) / 4.5, rel=1e-6)
        assert float(classification.count(KNOWN, WEIGHT)) == 4.5

    def test_softmax_cross_entropy(self):
        logits = np.log(np.float32([[2.0, 3.0, 4.0]] * 4))  # with "none", probabilities .2 .3 .4 .1
        labels = np.uint8([[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
        known = np.bool_([[0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
        weight = np.ones(4, np.float32)
        expected = -math.log(0.3) - math.log(0.1) - math.log(0.2 + 0.3 + 0.1)
        value, _ = value_and_gradient(classification.softmax_cross_entropy, logits, labels, known, weight)
        assert float(value) == pytest.approx(expected / 3.0, rel=1e-6)
        assert float(classification.count_rows(known, weight)) == 3.0

    def test_softmax_of_one_attribute_is_binary_cross_entropy(self):
        batch = random_batch(np.random.default_rng(0), attributes=1)
        softmax = value_and_gradient(classification.softmax_cross_entropy, *batch)
        binary = value_and_gradient(classification.binary_cross_entropy, *batch)
        np.testing.assert_allclose(softmax[0], binary[0], rtol=1e-6)
        np.testing.assert_allclose(softmax[1], binary[1], rtol=1e-5, atol=1e-9)


class TestProperties:
    @entrywise
    def test_unknown_entries_get_no_gradient_and_known_ones_do(self, loss):
        _, gradient = value_and_gradient(loss, LOGITS, LABELS, KNOWN, WEIGHT)
        counts = KNOWN & (WEIGHT > 0.0)[:, None]
        assert np.all(gradient[~counts] == 0.0)
        positive = (LABELS == 1) | (LOGITS > -2.0)  # ASL lets easy negatives go
        assert np.all(gradient[counts & positive] != 0.0)

    @every
    def test_nothing_known_is_zero_with_zero_gradient(self, loss):
        for known, weight in ((np.zeros_like(KNOWN), WEIGHT), (KNOWN, np.zeros_like(WEIGHT))):
            value, gradient = value_and_gradient(loss, LOGITS, LABELS, known, weight)
            assert value == 0.0
            assert np.all(gradient == 0.0)

    @every
    def test_hidden_labels_change_nothing(self, loss):
        flipped = np.where(KNOWN, LABELS, 1 - LABELS)
        before = value_and_gradient(loss, LOGITS, LABELS, KNOWN, WEIGHT)
        after = value_and_gradient(loss, LOGITS, flipped, KNOWN, WEIGHT)
        jax.tree.map(np.testing.assert_array_equal, before, after)

    @every
    def test_padding_rows_change_nothing(self, loss):
        whole = value_and_gradient(loss, LOGITS, LABELS, KNOWN, WEIGHT)
        cut = value_and_gradient(loss, LOGITS[:2], LABELS[:2], KNOWN[:2], WEIGHT[:2])
        np.testing.assert_allclose(whole[0], cut[0], rtol=1e-6)
        np.testing.assert_allclose(whole[1][:2], cut[1], rtol=1e-6)

    @every
    def test_extreme_logits_stay_finite(self, loss):
        logits = [[-1e4, -90.0, 90.0, 1e4]] * 2
        labels = np.uint8([[0, 0, 0, 0], [1, 1, 1, 1]])
        value, gradient = value_and_gradient(loss, *all_known(logits, labels))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))

    @every
    def test_bfloat16_logits_are_scored_in_float32(self, loss):
        rounded = (LOGITS / 3.0).astype(jnp.bfloat16)
        value, _ = value_and_gradient(loss, rounded, LABELS, KNOWN, WEIGHT)
        exact, _ = value_and_gradient(loss, rounded.astype(np.float32), LABELS, KNOWN, WEIGHT)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, exact, rtol=1e-6)

    @every
    def test_counts_put_microbatches_together(self, loss):
        batch = random_batch(np.random.default_rng(1))
        count = (
            classification.count_rows
            if loss is classification.softmax_cross_entropy
            else classification.count
        )
        parts = [tuple(array[rows] for array in batch) for rows in (slice(0, 8), slice(8, 16))]
        counts = [count(known, weight) for _, _, known, weight in parts]
        values = [value_and_gradient(loss, *part)[0] for part in parts]
        whole, _ = value_and_gradient(loss, *batch)
        np.testing.assert_allclose(np.average(values, weights=counts), whole, rtol=1e-5)

    def test_focal_and_asymmetric_without_focus_are_binary_cross_entropy(self):
        batch = random_batch(np.random.default_rng(2))
        expected, _ = value_and_gradient(classification.binary_cross_entropy, *batch)
        unfocused = (
            functools.partial(classification.focal, gamma=0.0),
            functools.partial(classification.asymmetric, gamma_positive=0.0, gamma_negative=0.0, margin=0.0),
        )
        for loss in unfocused:
            np.testing.assert_allclose(value_and_gradient(loss, *batch)[0], expected, rtol=1e-6)

    def test_probabilities_are_targets_too(self):
        # Cross-entropy against a probability q has its minimum at p = q.
        q = np.float32([[0.3]])
        _, gradient = value_and_gradient(
            classification.binary_cross_entropy, *all_known(np.log(q / (1.0 - q)), q)
        )
        np.testing.assert_allclose(gradient, 0.0, atol=1e-7)

    def test_an_exclusive_positive_speaks_for_its_group(self):
        logits, labels, known, weight = all_known(np.zeros((1, 3)), np.uint8([[1, 0, 0]]))
        only_first = known & (labels == 1)
        _, gradient = value_and_gradient(
            classification.softmax_cross_entropy, logits, labels, only_first, weight
        )
        np.testing.assert_allclose(gradient, [[-0.75, 0.25, 0.25]], rtol=1e-6)

    def test_two_noisy_positives_in_an_exclusive_group_are_either_of_them(self):
        arguments = all_known(np.zeros((1, 3)), np.uint8([[1, 1, 0]]))
        value, _ = value_and_gradient(classification.softmax_cross_entropy, *arguments)
        assert float(value) == pytest.approx(math.log(2.0), rel=1e-6)

    def test_exclusive_groups_are_questions_among_the_others(self):
        """Attributes 0 and 4 by themselves; 1, 2, 3 are one group, 5 and 6 another."""
        logits, labels, known, weight = random_batch(np.random.default_rng(7), attributes=7)
        exclusive = np.array([[1, 2, 3], [5, 6, -1]])
        loss = functools.partial(
            classification.of_questions, classification.binary_cross_entropy, exclusive=exclusive
        )
        value, gradient = value_and_gradient(loss, logits, labels, known, weight)
        parts = [([0, 4], classification.binary_cross_entropy, classification.count)] + [
            (group, classification.softmax_cross_entropy, classification.count_rows)
            for group in ([1, 2, 3], [5, 6])
        ]
        found = [
            (
                group,
                *value_and_gradient(loss, *(x[:, group] for x in (logits, labels, known)), weight),
                float(count(known[:, group], weight)),
            )
            for group, loss, count in parts
        ]
        total = sum(count for *_, count in found)
        assert float(classification.count_questions(known, weight, exclusive)) == pytest.approx(total)
        assert value == pytest.approx(sum(v * count for _, v, _, count in found) / total, rel=1e-5)
        for group, _, expected, count in found:
            np.testing.assert_allclose(gradient[:, group], expected * count / total, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize(
        ("loss", "setting"),
        [
            (classification.focal, {"gamma": -1.0}),
            (classification.focal, {"alpha": 1.0}),
            (classification.asymmetric, {"gamma_negative": -0.5}),
            (classification.asymmetric, {"margin": 1.0}),
        ],
    )
    def test_settings_out_of_range_are_named(self, loss, setting):
        (name,) = setting
        with pytest.raises(ValueError, match=name):
            loss(LOGITS, LABELS, KNOWN, WEIGHT, **setting)


class TestAgainstPyTorch:
    """Independent statements of the losses, autograd included."""

    @staticmethod
    def check(loss, reference, rtol=1e-5):
        torch = pytest.importorskip("torch")
        batch = random_batch(np.random.default_rng(3), rows=32)
        value, gradient = value_and_gradient(loss, *batch)
        logits, labels, known, weight = (torch.tensor(array) for array in batch)
        logits.requires_grad_(True)
        per_entry = reference(torch, logits, labels.float())
        entry_weight = known * weight[:, None]
        expected = (per_entry * entry_weight).sum() / entry_weight.sum()
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=rtol)
        np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-4, atol=1e-8)

    def test_binary_cross_entropy(self):
        def reference(torch, x, y):
            return torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")

        self.check(classification.binary_cross_entropy, reference)

    def test_focal(self):
        def reference(torch, x, y):
            p = torch.sigmoid(x)
            cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
            p_t = p * y + (1 - p) * (1 - y)
            return (0.25 * y + 0.75 * (1 - y)) * cross_entropy * (1 - p_t) ** 1.5

        self.check(functools.partial(classification.focal, gamma=1.5, alpha=0.25), reference)

    @pytest.mark.parametrize("margin", [0.0, 0.05])
    def test_asymmetric(self, margin):
        def reference(torch, x, y):  # the paper's published code, gradient through the focusing factor on
            p, not_p = torch.sigmoid(x), (1 - torch.sigmoid(x) + margin).clamp(max=1)
            log_likelihood = y * torch.log(p.clamp(min=1e-8)) + (1 - y) * torch.log(not_p.clamp(min=1e-8))
            p_t = p * y + not_p * (1 - y)
            return -log_likelihood * torch.pow(1 - p_t, 1.0 * y + 4.0 * (1 - y))

        self.check(functools.partial(classification.asymmetric, margin=margin), reference, rtol=1e-4)

    def test_softmax_cross_entropy(self):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(4)
        logits = rng.normal(0.0, 2.0, (16, 5)).astype(np.float32)
        answer = rng.integers(0, 6, 16)  # 5 is "none of them"
        labels = np.eye(6, dtype=np.uint8)[answer, :5]
        value, gradient = value_and_gradient(classification.softmax_cross_entropy, *all_known(logits, labels))
        x = torch.tensor(logits, requires_grad=True)
        padded = torch.cat([x, torch.zeros(16, 1)], dim=1)
        expected = torch.nn.functional.cross_entropy(padded, torch.tensor(answer))
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
        np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-8)
