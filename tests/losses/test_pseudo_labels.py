"""Held-out entries, the choice of pseudo labels, what they teach and how they are counted."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses import pseudo_labels

OPEN = {"warmup_steps": 0, "ramp_steps": 0, "threshold_start": 0.0, "threshold_end": 0.0}


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(pseudo_labels.accept, **OPEN | options))


@functools.cache
def over_steps(**options):
    """`accept` at each of several steps."""
    chosen = functools.partial(pseudo_labels.accept, **OPEN | options)
    return jax.jit(jax.vmap(chosen, in_axes=(None,) * 5 + (0,)))


def accept(probability, quality, labels, known, weight=None, step=0, **options):
    weight = np.ones(len(known), np.float32) if weight is None else weight
    quality = np.asarray(quality, np.float32)
    return np.asarray(compiled(**options)(probability, quality, labels, known, weight, np.int32(step)))


class TestHeldOut:
    INDEX = jnp.arange(2000, dtype=jnp.int32)

    def test_the_realised_fraction_is_the_requested_one(self):
        for fraction in (0.1, 0.3):
            chosen = np.asarray(pseudo_labels.held_out(self.INDEX, 40, fraction))
            error = math.sqrt(fraction * (1 - fraction) / chosen.size)
            assert abs(chosen.mean() - fraction) < 4 * error
            # Neither one attribute nor one image is chosen more often than another.
            assert abs(chosen.mean(0) - fraction).max() < 5 * math.sqrt(fraction / len(chosen))
            assert chosen.mean(1).std() == pytest.approx(math.sqrt(fraction * (1 - fraction) / 40), rel=0.1)
        assert len(np.unique(chosen, axis=0)) > 0.99 * len(chosen)  # each image draws for itself
        assert not pseudo_labels.held_out(self.INDEX, 40, 0.0).any()

    def test_an_entry_is_chosen_wherever_its_image_stands(self):
        chosen = jax.jit(functools.partial(pseudo_labels.held_out, num_attributes=7, seed=3))
        whole = np.asarray(chosen(self.INDEX))
        order = np.random.default_rng(0).permutation(2000)[:64]
        np.testing.assert_array_equal(chosen(jnp.asarray(order, jnp.int32)), whole[order])
        fewer = pseudo_labels.held_out(self.INDEX[:64], 3, seed=3)
        np.testing.assert_array_equal(fewer, whole[:64, :3])

    def test_seeds_choose_independently(self):
        first, second = (np.asarray(pseudo_labels.held_out(self.INDEX, 40, 0.3, seed)) for seed in (0, 1))
        assert (first & second).mean() == pytest.approx(0.09, abs=0.005)

    def test_the_choice_never_changes(self):
        """A run that resumes under another version must find the same entries held out."""
        chosen = pseudo_labels.held_out(self.INDEX[:4], 30, 0.1, seed=0)
        assert np.argwhere(chosen).tolist() == [
            [0, 9],
            [0, 10],
            [0, 28],
            [1, 0],
            [1, 1],
            [1, 8],
            [1, 12],
            [1, 19],
            [2, 9],
            [2, 29],
            [3, 4],
            [3, 10],
            [3, 24],
            [3, 25],
        ]

    def test_padding_has_an_answer_too(self):
        assert pseudo_labels.held_out(jnp.full(3, -1, jnp.int32), 5).shape == (3, 5)

    def test_settings_out_of_range_are_named(self):
        with pytest.raises(ValueError, match="fraction"):
            pseudo_labels.held_out(self.INDEX, 4, 1.0)


class TestThreshold:
    @pytest.mark.parametrize(
        ("step", "expected"), [(0, 0.95), (100, 0.95), (150, 0.9), (200, 0.85), (300, 0.75), (999, 0.75)]
    )
    def test_is_linear_after_the_warm_up(self, step, expected):
        value = pseudo_labels.threshold(step, 100, 200, 0.95, 0.75)
        assert float(value) == pytest.approx(expected, rel=1e-6)

    def test_without_a_ramp_it_is_at_its_end_one_step_after_the_warm_up(self):
        assert float(pseudo_labels.threshold(1, 0, 0, 0.9, 0.5)) == pytest.approx(0.5)


class TestPrevalence:
    def test_fixed_numbers(self):
        probability = np.float32([[0.2, 0.9], [0.4, 0.5], [1.0, 1.0]])
        labels = np.uint8([[1, 0], [0, 0], [1, 1]])
        known = np.bool_([[1, 0], [1, 0], [1, 1]])
        weight = np.float32([1.0, 0.5, 0.0])
        # attribute 0: 1 of 1.5 known, mean q (.2 + .2) / 1.5; attribute 1: none known, mean q 1.15 / 1.5
        expected = [(1 + 2 * 0.4 / 1.5) / 3.5, 1.15 / 1.5]
        value = pseudo_labels.prevalence(probability, labels, known, weight, 2.0)
        np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_an_empty_batch_stays_finite(self):
        zeros = np.zeros((2, 3), np.float32)
        value = pseudo_labels.prevalence(zeros, zeros, zeros > 0, np.zeros(2, np.float32), 2.0)
        np.testing.assert_array_equal(value, np.zeros(3))


class TestAccept:
    @staticmethod
    def batch(seed=0, rows=64, attributes=6):
        rng = np.random.default_rng(seed)
        known = rng.random((rows, attributes)) < 0.2
        rate = np.linspace(0.02, 0.7, attributes)
        labels = ((rng.random((rows, attributes)) < rate) & known).astype(np.uint8)
        probability = rng.beta(rate * 3, 3 - rate * 3, (rows, attributes)).astype(np.float32)
        quality = rng.random((rows, attributes)).astype(np.float32)
        weight = (rng.random(rows) < 0.9).astype(np.float32)
        return probability, quality, labels, known, weight

    def test_the_surest_go_first_up_to_the_cap(self):
        # Seven unknown entries of one attribute, three known ones; mean q is 0.6; step 0 rounds down.
        q = np.float32([[0.9, 0.8, 0.7, 0.95, 0.1, 0.3, 0.45, 0.6, 0.6, 0.6]]).T
        q[7:] = (6.0 - q[:7].sum()) / 3
        known = np.bool_([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]).T
        r = np.float32([[0.6, 0.9, 0.8, 0.7, 0.65, 0.95, 0.7, 1.0, 1.0, 1.0]]).T
        labels = np.uint8([[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]).T
        # Prevalence (2 + 7 * 0.6) / 10 = 0.62 of 7 unknown: 4.34 positives, 2.66 negatives.
        accepted = accept(q, r, labels, known, pseudo_counts=7.0)
        np.testing.assert_array_equal(accepted[:, 0], [1, 1, 1, 1, 0, 1, 1, 0, 0, 0])
        # Prevalence (0 + 1 * 0.6) / 4 = 0.15: 1.05 positives, the one of highest r; 5.95 negatives.
        accepted = accept(q, r, np.zeros_like(labels), known, pseudo_counts=1.0)
        np.testing.assert_array_equal(accepted[:, 0], [0, 1, 0, 0, 1, 1, 1, 0, 0, 0])

    def test_equals_a_loop_over_attributes(self):
        for step in (0, 1, 17):
            q, r, labels, known, weight = self.batch(step)
            options = {"threshold_start": 0.3, "threshold_end": 0.3, "pseudo_counts": 4.0}
            expected = np.zeros_like(known)
            for a in range(known.shape[1]):
                rows = [b for b in range(len(known)) if weight[b] > 0 and not known[b, a]]
                sure = weight[:, None].astype(np.float64) * known
                rate = (sure[:, a] @ labels[:, a] + 4 * (weight @ q[:, a]) / weight.sum()) / (
                    sure[:, a].sum() + 4
                )
                dither = ((step * 2654435769 + a * 3242174889) % 2**32) / 2**32
                for positive, share in ((True, rate), (False, 1 - rate)):
                    able = [b for b in rows if r[b, a] > 0.3 and (q[b, a] > 0.5) == positive]
                    able.sort(key=lambda b: -r[b, a])
                    expected[able[: math.floor(share * len(rows) + dither)], a] = True
            np.testing.assert_array_equal(accept(q, r, labels, known, weight, step, **options), expected)

    def test_the_cap_holds_at_every_step_and_on_average(self):
        q, _, labels, known, weight = self.batch()
        q = np.tile(np.linspace(0.05, 0.95, len(q), dtype=np.float32)[:, None], (1, q.shape[1]))
        r = np.full_like(q, 0.99)  # everything wants in; half of it as positive
        unknown = (~known & (weight > 0)[:, None]).sum(0)
        rate = np.asarray(pseudo_labels.prevalence(q, labels, known, weight, 1.0))
        chosen = np.asarray(over_steps(pseudo_counts=1.0)(q, r, labels, known, weight, np.arange(200)))
        for polarity, share in ((q > 0.5, rate), (q <= 0.5, 1 - rate)):
            wanted = ((~known & (weight > 0)[:, None]) & polarity).sum(0)
            counts = (chosen & polarity).sum(1)
            assert np.all(counts < share * unknown + 1)
            capped = wanted > share * unknown + 1
            assert capped.any()
            np.testing.assert_allclose(counts.mean(0)[capped], (share * unknown)[capped], atol=0.03)

    def test_a_rare_attribute_is_not_told_absent_alone(self):
        """0.4 positives expected per batch: two steps in five take one."""
        q = np.float32([[0.9]] + [[0.0]] * 7)
        labels, known, r = np.zeros((8, 1), np.uint8), np.zeros((8, 1), bool), np.full((8, 1), 0.9)
        known[7], q[7] = True, 0.0
        # prevalence (0 + 1 * 0.9 / 8) / 2 of 7 unknown: 0.39
        chosen = over_steps(pseudo_counts=1.0)(q, r, labels, known, np.ones(8), np.arange(40))
        assert np.mean(chosen[:, 0]) == pytest.approx(0.39, abs=0.05)

    def test_known_entries_and_padding_are_never_accepted(self):
        q, r, labels, known, weight = self.batch()
        for step in range(3):
            accepted = accept(q, np.ones_like(r), labels, known, weight, step)
            assert accepted.any()
            assert not accepted[known].any()
            assert not accepted[weight == 0].any()

    def test_padding_rows_and_hidden_labels_change_nothing(self):
        q, r, labels, known, weight = self.batch()
        accepted = accept(q, r, labels, known, weight, 5)
        rows = (weight > 0)[:, None]
        other = self.batch(seed=1)
        moved = [
            np.where(rows, mine, theirs)
            for mine, theirs in zip((q, r, labels, known), other[:4], strict=True)
        ]
        moved[2] = np.where(known & rows, labels, 1 - moved[2])
        np.testing.assert_array_equal(accept(*moved, weight, 5), accepted)

    def test_only_what_is_surer_than_the_threshold(self):
        q, r, labels, known, weight = self.batch()
        r[0] = 0.75
        accepted = accept(q, r, labels, known, weight, threshold_start=0.75, threshold_end=0.75)
        assert r[accepted].min() > 0.75

    def test_nothing_before_the_warm_up_is_over(self):
        arguments = self.batch()
        assert not accept(*arguments, 9, warmup_steps=10).any()
        assert accept(*arguments, 10, warmup_steps=10).any()

    def test_nobody_sure_or_nobody_there_is_nothing(self):
        q, r, labels, known, weight = self.batch()
        assert not accept(q, np.zeros_like(r), labels, known, weight).any()
        assert not accept(q, r, labels, known, np.zeros_like(weight)).any()

    def test_permuting_images_permutes_the_choice(self):
        arguments = self.batch()
        order = np.random.default_rng(1).permutation(64)
        moved = accept(*(array[order] for array in arguments), 3)
        np.testing.assert_array_equal(moved, accept(*arguments, 3)[order])

    def test_the_program_does_not_grow_with_the_batch_or_the_attributes(self):
        def size(rows, attributes):
            traced = jax.make_jaxpr(functools.partial(pseudo_labels.accept, step=3))(
                *self.batch(0, rows, attributes)
            )
            return str(traced).count(" = ")

        assert size(8, 3) == size(64, 40) > 20

    @pytest.mark.parametrize(
        "setting",
        [
            {"warmup_steps": -1},
            {"ramp_steps": -1},
            {"threshold_start": 1.5},
            {"threshold_end": -0.5},
            {"pseudo_counts": 0.0},
        ],
    )
    def test_settings_out_of_range_are_named(self, setting):
        (name,) = setting
        with pytest.raises(ValueError, match=name):
            pseudo_labels.accept(*self.batch(), 0, **setting)


class TestPseudoLabelLoss:
    LOGITS = np.float32([[0.0, 2.0], [-1.0, 5.0], [9.0, 9.0]])
    PROBABILITY = np.float32([[0.75, 0.1], [0.5, 0.5], [0.0, 0.0]])
    QUALITY = np.float32([[0.9, 0.8], [0.6, 0.5], [1.0, 1.0]])
    ACCEPTED = np.bool_([[1, 1], [1, 0], [1, 1]])
    WEIGHT = np.float32([1.0, 0.5, 0.0])

    def test_fixed_numbers(self):
        first, second = math.log(2.0), 2.1269280 - 0.1 * 2.0  # BCE(x, q) = softplus(x) - q x
        third = 0.3132617 + 0.5
        expected = (0.9 * first + 0.8 * second + 0.5 * 0.6 * third) / (1.5 * 2)
        value = pseudo_labels.pseudo_label_loss(
            self.LOGITS, self.PROBABILITY, self.QUALITY, self.ACCEPTED, self.WEIGHT
        )
        assert float(value) == pytest.approx(expected, rel=1e-6)
        assert value.dtype == jnp.float32

    def test_only_logits_of_accepted_entries_learn(self):
        gradients = jax.grad(pseudo_labels.pseudo_label_loss, argnums=(0, 1, 2))(
            self.LOGITS, self.PROBABILITY, self.QUALITY, self.ACCEPTED, self.WEIGHT
        )
        counts = self.ACCEPTED & (self.WEIGHT > 0)[:, None]
        np.testing.assert_array_equal(gradients[0] != 0, counts)
        assert np.all(gradients[1] == 0)
        assert np.all(gradients[2] == 0)

    def test_the_gradient_is_by_hand(self):
        gradient = jax.grad(pseudo_labels.pseudo_label_loss)(
            self.LOGITS, self.PROBABILITY, self.QUALITY, self.ACCEPTED, self.WEIGHT
        )
        assert float(gradient[0, 0]) == pytest.approx(0.9 * (0.5 - 0.75) / 3, rel=1e-6)

    def test_nothing_accepted_is_zero_with_zero_gradient(self):
        for accepted, weight in ((self.ACCEPTED & False, self.WEIGHT), (self.ACCEPTED, 0 * self.WEIGHT)):
            value, gradient = jax.value_and_grad(pseudo_labels.pseudo_label_loss)(
                self.LOGITS, self.PROBABILITY, self.QUALITY, accepted, weight
            )
            assert value == 0.0
            assert np.all(gradient == 0.0)
