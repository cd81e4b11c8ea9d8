"""CAL against explicit loops, hand-computed numbers, and the properties it is chosen for."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxprs import operations

from wsca_jax.losses.alignment import cal, pair_alignment, prototype_alignment

GROUP_OF = (0, 2, 0, 2, 2)  # group 1 has no attributes
SCORE = {"scale": np.float32(5.0), "bias": np.float32(-1.0)}
PAIRS = jax.jit(jax.value_and_grad(pair_alignment), static_argnames=("group_of", "block_size"))
PROTOTYPES = jax.jit(jax.value_and_grad(prototype_alignment, argnums=(0, 1)), static_argnames="group_of")


def softplus(x):
    return math.log1p(math.exp(x))


def batch(seed=0, rows=16, known_fraction=0.6):
    """Features, labels, known mask and fractional weights, one of which is 0."""
    rng = np.random.default_rng(seed)
    known = rng.random((rows, len(GROUP_OF))) < known_fraction
    labels = ((rng.random(known.shape) < 0.4) & known).astype(np.uint8)
    weight = rng.uniform(0.2, 1.0, rows).astype(np.float32)
    weight[rows // 2] = 0.0
    return rng.normal(size=(rows, 3, 6)).astype(np.float32), labels, known, weight


def pseudo(seed=1, rows=16, fraction=0.5):
    rng = np.random.default_rng(seed)
    shape = (rows, len(GROUP_OF))
    return {
        "probability": rng.random(shape).astype(np.float32),
        "accepted": rng.random(shape) < fraction,
    }


def pairs(branches, labels, known, weight, group_of=GROUP_OF, **options):
    return PAIRS(branches, labels, known, weight, group_of=group_of, **(SCORE | options))


def prototypes(branches, labels, known, weight, vectors, group_of=GROUP_OF):
    return PROTOTYPES(branches, vectors, labels, known, weight, group_of=group_of, **SCORE)


def cosine(x, y):
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def two_means(terms):
    """Of (score, pull, push, coverage): the means of coverage * softplus(-+score) by pull and push, added."""
    total = 0.0
    for sign, column in ((-1.0, 1), (1.0, 2)):
        weight = sum(term[column] for term in terms)
        if weight:
            total += sum(term[column] * term[3] * softplus(sign * term[0]) for term in terms) / weight
    return total


def jaccard(i, j, members, labels, known, mass):
    """The weighted Jaccard similarity of two examples, None without evidence; and its coverage."""
    shared = union = decided = 0.0
    for c in members:
        if known[i, c] and known[j, c]:
            decided += mass[c]
            union += mass[c] * (labels[i, c] or labels[j, c])
            shared += mass[c] * (labels[i, c] and labels[j, c])
    return (shared / union, decided / sum(mass[c] for c in members)) if union else None


def looped_pairs(branches, labels, known, weight, probability=None, accepted=None):
    mass = []
    for c in range(labels.shape[1]):
        count = sum(weight[i] for i in range(len(weight)) if known[i, c])
        positive = sum(weight[i] for i in range(len(weight)) if known[i, c] and labels[i, c])
        mass.append(-math.log((positive + 1) / (count + 2)))
    terms = []
    for group in range(branches.shape[1]):
        members = [c for c, g in enumerate(GROUP_OF) if g == group]
        for i in range(len(weight)):
            for j in range(len(weight)):
                if i == j:
                    continue
                if probability is None:
                    found = jaccard(i, j, members, labels, known, mass)
                else:
                    filled = np.where(known, labels, probability > 0.5)
                    found = jaccard(i, j, members, filled, known | accepted, mass)
                if found is None:
                    continue
                similarity, coverage = found
                score = 5.0 * cosine(branches[i, group], branches[j, group]) - 1.0
                pair = weight[i] * weight[j]
                terms.append((score, pair * similarity, pair * (1 - similarity), coverage))
    return two_means(terms)


class TestPairs:
    def test_by_hand(self):
        # One group, attributes a (2 of 3 known have it) and b (1 of 3): masses -log(3/5) and -log(2/5).
        labels, known = np.uint8([[1, 1], [1, 0], [0, 0]]), np.ones((3, 2), bool)
        branches = np.float32([[1, 0], [1, 0], [0, 1]])[:, None]
        a, b = -math.log(3 / 5), -math.log(2 / 5)
        alike = a / (a + b)  # examples 0 and 1 share a, not b; the others share nothing
        near, far = 5.0 - 1.0, 0.0 - 1.0
        pushed = ((1 - alike) * softplus(near) + 2 * softplus(far)) / (1 - alike + 2)
        value, _ = pairs(branches, labels, known, np.ones(3, np.float32), (0, 0))
        assert float(value) == pytest.approx(softplus(-near) + pushed, rel=1e-5)

    def test_equals_a_loop_over_pairs(self):
        arrays = batch()
        assert float(pairs(*arrays)[0]) == pytest.approx(looped_pairs(*arrays), rel=1e-5)

    def test_little_evidence_pulls_little(self):
        # Both examples have attribute a; whether they share b, c and d, as rare as a, nobody knows.
        labels, known = np.uint8([[1, 0, 0, 0]] * 2), np.bool_([[1, 0, 0, 0]] * 2)
        branches, weight = np.float32([[[1, 0]], [[0, 1]]]), np.ones(2, np.float32)
        some, by_some = pairs(branches, labels, known, weight, (0, 0, 0, 0))
        alone, by_alone = pairs(branches, labels[:, :1], known[:, :1], weight, (0,))
        # After one of each kind added, a's prevalence is 3/4 and an unseen attribute's 1/2.
        share = math.log(4 / 3) / (math.log(4 / 3) + 3 * math.log(2))
        assert float(alone) == pytest.approx(softplus(1.0), rel=1e-5)
        assert float(some) == pytest.approx(share * softplus(1.0), rel=1e-5)
        np.testing.assert_allclose(by_some, share * by_alone, rtol=1e-4, atol=1e-7)

    def test_pseudo_labels_complete_what_is_known(self):
        arrays, guesses = batch(known_fraction=0.3), pseudo()
        value = float(pairs(*arrays, **guesses)[0])
        assert value == pytest.approx(looped_pairs(*arrays, **guesses), rel=1e-5)
        assert value != pytest.approx(looped_pairs(*arrays), rel=1e-3)

    def test_no_accepted_pseudo_label_changes_nothing(self):
        arrays = batch(known_fraction=0.3)
        with_none, without = pairs(*arrays, **pseudo(fraction=0.0)), pairs(*arrays)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), with_none, without)

    def test_pseudo_labels_never_overrule_known_ones(self):
        arrays = batch(known_fraction=1.1)
        accepted = np.ones(arrays[2].shape, bool)
        wrong = pairs(*arrays, probability=np.float32(1 - arrays[1]), accepted=accepted)[0]
        right = pairs(*arrays, probability=np.float32(arrays[1]), accepted=accepted)[0]
        assert wrong == right

    def test_shared_absences_say_nothing(self):
        branches, _, known, weight = batch(known_fraction=1.1)
        value, gradient = pairs(branches, np.zeros(known.shape, np.uint8), known, weight)
        assert value == 0.0
        assert (gradient == 0.0).all()

    @pytest.mark.parametrize("block_size", [1, 5, 8])
    def test_blocks_change_nothing(self, block_size):
        arrays, guesses = batch(2), pseudo(3)
        whole = pairs(*arrays, **guesses)
        blocked = pairs(*arrays, **guesses, block_size=block_size)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), blocked, whole)

    def test_blocks_bound_the_memory(self):
        def memory(block_size):
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in batch(rows=512)]
            program = PAIRS.lower(*shapes, group_of=GROUP_OF, block_size=block_size, **SCORE)
            return program.compile().memory_analysis().temp_size_in_bytes

        assert memory(32) < 0.25 * memory(512)

    def test_training_brings_examples_with_equal_attributes_together(self):
        branches, labels, known, _ = batch(4, rows=24, known_fraction=1.1)
        labels[:] = 0
        labels[:8, 0], labels[8:16, 2] = 1, 1

        def descend(_, x):
            arguments = (labels, known, np.ones(24, np.float32))
            return x - 2.0 * jax.grad(pair_alignment)(x, *arguments, group_of=GROUP_OF, **SCORE)

        after = np.asarray(jax.jit(lambda x: jax.lax.fori_loop(0, 1000, descend, x))(branches))
        assert np.isfinite(after).all()
        assert min(cosine(after[0, 0], after[i, 0]) for i in range(1, 8)) > 0.9
        assert max(cosine(after[0, 0], after[i, 0]) for i in range(8, 24)) < 0.3
        np.testing.assert_array_equal(after[:, 1:], branches[:, 1:])


class TestPrototypes:
    def test_by_hand(self):
        branches = np.float32([[3, 0], [0, 2]])[:, None]
        vectors = np.float32([[1, 0], [0, -4]])
        labels, known = np.uint8([[1, 0], [0, 0]]), np.bool_([[1, 1], [0, 1]])
        # present: (0, 0) at cos 1; absent: (0, 1) at cos 0 and (1, 1) at cos -1; (1, 0) is unknown.
        expected = softplus(-4.0) + (softplus(-1.0) + 0.5 * softplus(-6.0)) / 1.5
        value, _ = prototypes(branches, labels, known, np.float32([1.0, 0.5]), vectors, (0, 0))
        assert float(value) == pytest.approx(expected, rel=1e-5)

    def test_equals_a_loop_over_entries(self):
        branches, labels, known, weight = batch(5)
        vectors = np.random.default_rng(6).normal(size=(5, 6)).astype(np.float32)
        terms = []
        for i, c in zip(*np.nonzero(known), strict=True):
            score = 5.0 * cosine(branches[i, GROUP_OF[c]], vectors[c]) - 1.0
            terms.append((score, weight[i] * labels[i, c], weight[i] * (1 - labels[i, c]), 1.0))
        value, _ = prototypes(branches, labels, known, weight, vectors)
        assert float(value) == pytest.approx(two_means(terms), rel=1e-5)

    def test_an_attribute_moves_its_own_group_only(self):
        branches, labels, known, weight = batch(7, known_fraction=1.1)
        known[:, 1:] = False
        _, (by_feature, by_prototype) = prototypes(
            branches, labels, known, weight, np.ones((5, 6), np.float32)
        )
        assert np.abs(by_feature[:, 0]).max() > 0.0
        assert (by_feature[:, 1:] == 0.0).all()
        assert (by_prototype[1:] == 0.0).all()


def both(branches, labels, known, weight, head, **options):
    """`cal` with all that is learned in one tree."""
    return cal(branches, labels, known, weight, group_of=GROUP_OF, **head, **options)


EVERYTHING = jax.jit(jax.value_and_grad(both, argnums=(0, 4)), static_argnames="block_size")


def head(seed=8):
    vectors = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    numbers = {"pair_scale": 5.0, "pair_bias": -1.0, "prototype_scale": 4.0, "prototype_bias": 0.5}
    return {"prototypes": vectors} | {name: np.float32(number) for name, number in numbers.items()}


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


class TestProperties:
    def test_factors_compose_the_parts(self):
        arrays, learned = batch(9), head()
        value = jax.jit(functools.partial(both, pair_factor=0.3, prototype_factor=2.0))(*arrays, learned)
        score = {"scale": learned["prototype_scale"], "bias": learned["prototype_bias"]}
        by_prototype, _ = PROTOTYPES(
            arrays[0], learned["prototypes"], *arrays[1:], group_of=GROUP_OF, **score
        )
        np.testing.assert_allclose(value, 0.3 * pairs(*arrays)[0] + 2.0 * by_prototype, rtol=1e-5)

    def test_a_factor_of_zero_is_not_computed(self):
        def program(**factors):
            return str(jax.make_jaxpr(functools.partial(both, **factors))(*batch(), head()))

        assert "dot_general" not in program(pair_factor=0.0, prototype_factor=0.0)
        assert program(prototype_factor=0.0).count("dot_general") < program().count("dot_general")

    def test_everything_learned_has_a_gradient(self):
        _, gradients = EVERYTHING(*batch(10), head())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            assert np.abs(leaf).max() > 1e-4, path

    def test_hidden_labels_change_nothing(self):
        branches, labels, known, weight = batch(11)
        flipped = np.where(known, labels, 1 - labels).astype(np.uint8)
        before, after = (
            EVERYTHING(branches, y, known, weight, head(), **pseudo()) for y in (labels, flipped)
        )
        jax.tree.map(np.testing.assert_array_equal, before, after)

    def test_examples_of_weight_zero_touch_nothing(self):
        branches, labels, known, weight = batch(12)
        weight[11:] = 0.0
        whole = EVERYTHING(branches, labels, known, weight, head(), **pseudo())
        branches[11:], labels[11:], known[11:] = np.nan, 1, True
        value, gradients = EVERYTHING(branches, labels, known, weight, head(), **pseudo())
        jax.tree.map(np.testing.assert_array_equal, (value, gradients), whole)
        assert (gradients[0][11:] == 0.0).all()
        short = [x[:11] for x in (np.nan_to_num(branches), labels, known, weight)]
        guesses = {name: x[:11] for name, x in pseudo().items()}
        np.testing.assert_allclose(value, jax.jit(both)(*short, head(), **guesses), rtol=1e-5)

    @pytest.mark.parametrize("case", ["no positive", "nothing known", "no weight", "zero features", "huge"])
    def test_poor_batches_are_finite_with_their_gradients(self, case):
        branches, labels, known, weight = batch(13)
        if case == "no positive":
            labels[:] = 0
        elif case == "nothing known":
            known[:], labels[:] = False, 0
        elif case == "no weight":
            weight[:] = 0.0
        else:
            branches *= {"zero features": 0.0, "huge": 1e12}[case]
        value, gradients = EVERYTHING(branches, labels, known, weight, head(), **pseudo(fraction=0.0))
        assert_finite((value, gradients))
        if case in ("nothing known", "no weight"):
            assert value == 0.0
            assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradients))

    def test_a_batch_of_one(self):
        value, gradients = EVERYTHING(*(x[:1] for x in batch(14)), head())
        assert_finite((value, gradients))

    def test_extreme_scores_are_finite(self):
        learned = head() | {"pair_scale": np.float32(1e4), "prototype_scale": np.float32(1e4)}
        assert_finite(EVERYTHING(*batch(15), learned, **pseudo()))

    def test_products_are_exact_float32_whatever_the_features_are(self):
        for operation in program(GROUP_OF, 3, jnp.bfloat16):
            if operation.primitive.name == "dot_general" and operation.params["precision"] is not None:
                assert operation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
            if operation.primitive.name == "dot_general":
                assert all(operand.aval.dtype == jnp.float32 for operand in operation.invars)

    def test_operations_do_not_grow_with_the_groups(self):
        few, many = len(program((0, 0, 1, 1, 1), 2)), len(program((6, 1, 3, 3, 0), 7))
        assert few == many

    @pytest.mark.parametrize("block_size", [1024, 8])
    def test_a_batch_over_eight_devices_gives_the_same(self, block_size):
        arrays, guesses = batch(16, rows=32), pseudo(rows=32)
        expected = EVERYTHING(*arrays, head(), **guesses, block_size=block_size)
        rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
        placed, placed_guesses = jax.device_put((arrays, guesses), rows)
        sharded = EVERYTHING(*placed, head(), **placed_guesses, block_size=block_size)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), sharded, expected)


def program(group_of, groups, dtype=jnp.float32):
    """The operations of the loss and its gradient, in blocks and with pseudo labels."""
    _, labels, known, weight = batch()
    function = functools.partial(cal, group_of=group_of, block_size=4, **head(), **pseudo())
    jaxpr = jax.make_jaxpr(jax.grad(function))(jnp.ones((16, groups, 6), dtype), labels, known, weight)
    return list(operations(jaxpr.jaxpr))


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"group_of": (0, 1)}, "the group of 5 attributes, found 2"),
            ({"group_of": (0, 1, 2, 3, 0)}, r"must lie in \[0, 3\), found 3"),
            ({"pair_factor": -1.0}, r"pair_factor must be at least 0, found -1\.0"),
            ({"prototype_factor": -1.0}, r"prototype_factor must be at least 0, found -1\.0"),
            ({"block_size": 0}, "block_size must be at least 1, found 0"),
            ({"probability": np.ones((16, 5), np.float32)}, "both probability and accepted"),
        ],
    )
    def test_wrong_settings_are_named(self, setting, message):
        with pytest.raises(ValueError, match=message):
            cal(*batch(), **({"group_of": GROUP_OF} | head() | setting))
