"""The decomposer's geometry by hand, its arithmetic against NumPy loops, and its promises as a module."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wsca_jax.losses import hierarchy
from wsca_jax.models.decomposer import HierarchicalDecomposer
from wsca_jax.models.windows import grid_pyramid, neighbour_weights, window_offsets

D, ATTR, C = 6, 5, 8  # tokens', branches' and inner width
GRIDS = [(7, 7), (8, 8), (6, 6), (4, 4), (2, 2), (1, 1), (5, 3), (1, 4)]


def build(groups=3, **settings):
    settings = {"width": C, "num_heads": 2, "dtype": jnp.float32} | settings
    return HierarchicalDecomposer(groups, ATTR, D, **settings)


def jit(function):
    """Compiles without optimising: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, tokens, branches):
    return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), tokens, branches)


@functools.cache
def setting(grid=(7, 7), branched=True):
    """A module, random parameters (biases and scales included), tokens and branches of two images."""
    module, rng = build(), np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    tokens, branches = normal(2, *grid, D), normal(2, 3, ATTR) if branched else None
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            (path[-1].key == "scale")
            + normal(*leaf.shape) / np.sqrt(max(leaf.shape[0], 8)).astype(np.float32)
        ),
        shapes(module, tokens, branches),
    )
    return module, variables, tokens, branches


@functools.cache
def compiled(module, train=False):
    return jit(functools.partial(module.apply, train=train))


def run(module, variables, tokens, branches):
    return compiled(module)(variables, tokens, branches)


def number(row, column, columns=7):
    return row * columns + column


class TestGeometry:
    @pytest.mark.parametrize(
        ("grid", "expected"),
        [
            ((7, 7), [(7, 7), (4, 4), (2, 2)]),
            ((8, 8), [(8, 8), (4, 4), (2, 2)]),
            ((6, 6), [(6, 6), (3, 3), (2, 2)]),
            ((4, 4), [(4, 4), (2, 2)]),
            ((5, 3), [(5, 3), (3, 2), (2, 2)]),
            ((2, 2), [(2, 2)]),
            ((1, 1), [(1, 1)]),
        ],
    )
    def test_grids_halve_down_to_two_by_two(self, grid, expected):
        assert list(grid_pyramid(grid)) == expected

    def test_neighbours_of_seven_by_seven_by_hand(self):
        weights = neighbour_weights((4, 4), (7, 7)).reshape(4, 4, 7, 7)
        # Child centres in units of parents, less 1/2: -3/14, 5/14, 13/14, 3/2, 29/14, 37/14, 45/14.
        axis = np.zeros((4, 7))
        axis[0, :3] = 11 / 14, 9 / 14, 1 / 14
        axis[1, 1:4] = 5 / 14, 13 / 14, 1 / 2
        axis[2, 3:6] = 1 / 2, 13 / 14, 5 / 14
        axis[3, 4:] = 1 / 14, 9 / 14, 11 / 14
        np.testing.assert_allclose(weights, np.einsum("pk,ql->pqkl", axis, axis), atol=1e-7)
        assert (weights > 0).sum((0, 1)).max() == 4

    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    def test_every_child_has_a_parent_and_every_parent_a_child(self, grid):
        for below, above in itertools.pairwise(grid_pyramid(grid)):
            neighbour = neighbour_weights(above, below) > 0
            assert neighbour.any(0).all()
            assert neighbour.any(1).all()
            assert neighbour.sum(0).max() <= 4

    def test_tokens_at_opposite_edges_share_no_parent(self):
        neighbour = neighbour_weights((4, 4), (7, 7)) > 0
        assert not (neighbour[:, number(1, 6)] & neighbour[:, number(2, 0)]).any()
        assert (neighbour[:, number(1, 5)] & neighbour[:, number(2, 6)]).any()

    def test_windows_of_seven_by_seven_by_hand(self):
        inside, offset = window_offsets((7, 7), 3)
        assert not inside[number(1, 6), number(2, 0)]
        assert not inside[number(2, 0), number(1, 6)]
        for token, expected in {
            (0, 0): [(0, 0), (0, 1), (1, 0), (1, 1)],
            (1, 6): [(0, 5), (0, 6), (1, 5), (1, 6), (2, 5), (2, 6)],
            (3, 2): [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)],
        }.items():
            seen = {divmod(int(n), 7) for n in np.flatnonzero(inside[number(*token)])}
            assert seen == set(expected)
        # Steps are numbered row by row: 0 is up left, 4 stays, 5 is right, 6 is down left.
        assert offset[number(3, 2), number(2, 1)] == 0
        assert offset[number(3, 2), number(3, 3)] == 5
        assert offset[number(3, 2), number(4, 1)] == 6
        assert (np.diag(offset) == 4).all()

    def test_without_a_window_every_token_sees_every_other(self):
        inside, offset = window_offsets((2, 3), None)
        assert inside.all()
        assert sorted(set(offset.reshape(-1))) == list(range(3 * 5))

    def test_attention_at_the_finest_level_stays_in_the_window(self):
        module, variables, tokens, branches = setting()

        def corner(tokens):
            return module.apply(variables, tokens, branches, train=False).levels[0].bottom_up[0, 2, 0].sum()

        seen = np.abs(jit(jax.grad(corner))(tokens)[0]).max(-1) > 0
        expected = np.zeros((7, 7), bool)
        expected[1:4, 0:2] = True
        np.testing.assert_array_equal(seen, expected)


class Reference:
    """The equations once more, token by token in NumPy."""

    def __init__(self, params, heads=2, window=3):
        self.params, self.heads, self.window = jax.tree.map(np.float64, params), heads, window

    def dense(self, p, x):
        return x @ p["kernel"] + p.get("bias", 0)

    def norm(self, p, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    def gelu(self, x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def softmax(self, x):
        return np.exp(x - x.max()) / np.exp(x - x.max()).sum()

    def attend(self, p, queries, keys, allowed, bias):
        """`allowed(i, j)` and `bias(head, i, j)` are functions of token numbers."""
        q, k, v = (self.dense(p[n], x) for n, x in (("query", queries), ("key", keys), ("value", keys)))
        size = q.shape[-1] // self.heads
        out, maps = np.zeros((len(q), C)), np.zeros((self.heads, len(q), len(k)))
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(q)):
                seen = [j for j in range(len(k)) if allowed(i, j)]
                logits = [q[i, part] @ k[j, part] / math.sqrt(size) + bias(head, i, j) for j in seen]
                maps[head, i, seen] = self.softmax(np.array(logits))
                out[i, part] = maps[head, i] @ v[:, part]
        return self.dense(p["output"], out), maps

    def block(self, p, x, grid, window):
        reach = window // 2 if window else max(grid)
        down, right = min(reach, grid[0] - 1), min(reach, grid[1] - 1)

        def step(i, j):
            return j // grid[1] - i // grid[1], j % grid[1] - i % grid[1]

        def allowed(i, j):
            return all(abs(s) <= reach for s in step(i, j))

        def bias(head, i, j):
            table = p["relative_bias"].reshape(self.heads, 2 * down + 1, 2 * right + 1)
            return table[head, step(i, j)[0] + down, step(i, j)[1] + right]

        normal = self.norm(p["attention_norm"], x)
        x = x + self.attend(p["attention"], normal, normal, allowed, bias)[0]
        hidden = self.gelu(self.dense(p["hidden"], self.norm(p["hidden_norm"], x)))
        return x + self.dense(p["output"], hidden)

    def merge(self, p, x, below, above):
        normal = self.norm(p["norm"], x)
        prior = np.zeros((above[0] * above[1], len(x)))
        for parent, child in np.ndindex(prior.shape):
            for side, q, k in (
                (0, parent // above[1], child // below[1]),
                (1, parent % above[1], child % below[1]),
            ):
                distance = abs((k + 0.5) * above[side] / below[side] - (q + 0.5))
                factor = max(0.0, 1.0 - distance)
                prior[parent, child] = factor if side == 0 else prior[parent, child] * factor
        seeds = prior / prior.sum(1, keepdims=True) @ normal
        assignment = np.zeros_like(prior)
        for child in range(len(x)):
            near = np.flatnonzero(prior[:, child])
            key = self.dense(p["child"], normal[child])
            logits = [self.dense(p["parent"], seeds[q]) @ key / math.sqrt(C) for q in near]
            assignment[near, child] = self.softmax(np.array(logits) + np.log(prior[near, child]))
        return assignment / assignment.sum(1, keepdims=True) @ x, assignment

    def levels(self, tokens):
        """bottom_up, children, assignment, residual and features, finest first, of one image."""
        p, grids = self.params, grid_pyramid(tokens.shape[:2])
        x = self.dense(p["tokens"], tokens.reshape(-1, D))
        up, children, assignments = [], [None], [None]
        for n, grid in enumerate(grids):
            if n:
                x, assignment = self.merge(p[f"merge_{n}"], x, grids[n - 1], grid)
                children.append(x)
                assignments.append(assignment)
            x = self.block(p[f"block_{n}"], x, grid, None if n == len(grids) - 1 else self.window)
            up.append(x)
        features, residuals = [up[-1]], [None]
        for n in reversed(range(len(grids) - 1)):
            step = p[f"descend_{n}"]
            mix = assignments[n + 1].T @ features[0]
            residuals.insert(0, self.dense(step["residual"], self.norm(step["norm"], mix)))
            features.insert(0, up[n] + residuals[0])
        return features, up, children, assignments, residuals

    def groups(self, features, branches):
        """refined, attention, edges and gates of one image."""
        p = self.params
        nodes, found, looks = self.dense(p["nodes"], branches), [], []
        for n, x in enumerate(features):
            read = p[f"read_{n}"]
            asking, offered = self.norm(read["nodes_norm"], nodes), self.norm(read["tokens_norm"], x)
            y, maps = self.attend(read["attention"], asking, offered, lambda *_: True, lambda *_: 0)
            found.append(y)
            looks.append(maps.mean(0))
        gates = self.gates(p["gate"], nodes, found)
        nodes = nodes + sum(gates[:, n, None] * y for n, y in enumerate(found))
        message, edges = self.messages(p["graph"], nodes)
        hidden = self.gelu(self.dense(p["hidden"], self.norm(p["output_norm"], nodes + message)))
        return branches + self.dense(p["output"], hidden), looks, edges, gates

    def gates(self, p, nodes, found):
        gates = np.zeros((len(nodes), len(found)))
        for g, n in np.ndindex(gates.shape):
            others = np.mean([found[n][o] for o in range(len(nodes)) if o != g], axis=0)
            evidence = self.norm(p["norm"], np.concatenate([nodes[g], found[n][g], others]))
            logit = self.dense(p["output"], self.gelu(self.dense(p["hidden"], evidence)))
            gates[g, n] = 1 / (1 + math.exp(-logit[0] - p["prior"][g, n]))
        return gates

    def messages(self, p, nodes):
        normal, count = self.norm(p["norm"], nodes), len(nodes)
        edges, message = np.ones((count, count)), np.zeros_like(nodes)
        for i in range(count):
            for j in range(count):
                if i != j:
                    form = normal[i] @ p["form"]["kernel"] @ normal[j] / math.sqrt(C)
                    edges[i, j] = 1 / (1 + math.exp(-form))
            mean = sum(edges[i, j] * normal[j] for j in range(count)) / count
            message[i] = self.dense(p["message"], mean)
        return message, edges


class TestAgainstNumPy:
    @pytest.fixture(scope="class")
    @classmethod
    def both(cls):
        module, variables, tokens, branches = setting((5, 3))
        reference = Reference(variables["params"])
        return run(module, variables, tokens, branches), reference, np.float64(tokens), np.float64(branches)

    @pytest.mark.parametrize(
        "field", ["features", "bottom_up", "children", "assignment", "residual"], ids=lambda name: name
    )
    def test_levels(self, both, field):
        outputs, reference, tokens, _ = both
        index = ["features", "bottom_up", "children", "assignment", "residual"].index(field)
        compared = 0
        for image in range(len(tokens)):
            for level, expected in zip(outputs.levels, reference.levels(tokens[image])[index], strict=True):
                actual = getattr(level, field)
                assert (actual is None) == (expected is None)
                if expected is not None:
                    actual = np.asarray(actual[image]).reshape(expected.shape)
                    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)
                    compared += 1
        assert compared >= 4

    def test_groups(self, both):
        outputs, reference, tokens, branches = both
        for image in range(len(tokens)):
            features = reference.levels(tokens[image])[0]
            refined, looks, edges, gates = reference.groups(features, branches[image])
            np.testing.assert_allclose(outputs.refined[image], refined, rtol=1e-4, atol=5e-5)
            np.testing.assert_allclose(outputs.edges[image], edges, atol=1e-5)
            np.testing.assert_allclose(outputs.gates[image], gates, atol=1e-5)
            for level, expected in zip(outputs.levels, looks, strict=True):
                np.testing.assert_allclose(level.attention[image].reshape(3, -1), expected, atol=1e-5)


class TestDistributions:
    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    @pytest.mark.parametrize("branched", [True, False])
    def test_shapes_on_every_grid(self, grid, branched):
        module, tokens = build(), jnp.zeros((2, *grid, D))
        branches = jnp.zeros((2, 3, ATTR)) if branched else None
        variables = shapes(module, tokens, branches)
        outputs = jax.eval_shape(functools.partial(module.apply, train=False), variables, tokens, branches)
        grids = grid_pyramid(grid)
        assert outputs.refined.shape == (2, 3, ATTR)
        assert outputs.edges.shape == (2, 3, 3)
        assert outputs.gates.shape == (2, 3, len(grids))
        for n, (level, (h, w)) in enumerate(zip(outputs.levels, grids, strict=True)):
            assert level.features.shape == level.bottom_up.shape == (2, h, w, C)
            assert level.attention.shape == (2, 3, h, w)
            assert (level.residual is None) == (n == len(grids) - 1)
            assert (level.assignment is None) == (level.children is None) == (n == 0)

    @pytest.mark.parametrize("grid", [(7, 7), (1, 1)], ids=str)
    def test_attention_and_assignment_are_distributions(self, grid):
        outputs = run(*setting(grid))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))
        for level in outputs.levels:
            np.testing.assert_allclose(level.attention.sum((2, 3)), 1, rtol=1e-5)
        for below, level in itertools.pairwise(outputs.levels):
            np.testing.assert_allclose(level.assignment.sum(1), 1, rtol=1e-5)
            beyond = neighbour_weights(level.features.shape[1:3], below.features.shape[1:3]) == 0
            assert (np.asarray(level.assignment)[:, beyond] == 0).all()

    def test_edges_lie_between_zero_and_one_with_a_full_edge_to_oneself(self):
        edges = np.asarray(run(*setting()).edges)
        own = np.eye(3, dtype=bool)
        assert (edges[:, own] == 1).all()
        assert ((edges[:, ~own] > 0) & (edges[:, ~own] < 1)).all()

    def test_bfloat16_keeps_distributions_in_float32(self):
        _, variables, *inputs = setting()
        exact = run(build(), variables, *inputs)
        rounded = run(build(dtype=jnp.bfloat16), variables, *(x.astype(jnp.bfloat16) for x in inputs))
        assert rounded.refined.dtype == rounded.levels[0].features.dtype == jnp.bfloat16
        for array in (
            rounded.edges,
            rounded.gates,
            rounded.levels[1].assignment,
            rounded.levels[0].attention,
        ):
            assert array.dtype == jnp.float32
        difference = np.abs(np.float32(rounded.refined) - exact.refined).mean()
        assert difference < 0.05 * np.abs(exact.refined).mean()


def losses(outputs, weight):
    columns = {
        field: [getattr(level, field) for level in outputs.levels] for field in outputs.levels[0]._fields
    }
    pyramid = (columns[name] for name in ("features", "bottom_up", "children", "residual"))
    return hierarchy.hierarchy(*pyramid, weight) + hierarchy.graph(outputs.edges, weight)


class TestGradients:
    @pytest.mark.parametrize(
        ("grid", "groups", "branched"),
        [pytest.param((4, 3), 3, False, marks=pytest.mark.slow), ((2, 2), 1, True), ((1, 1), 2, True)],
        ids=str,
    )
    def test_classification_alone_reaches_every_fresh_parameter(self, grid, groups, branched):
        module, rng = build(groups), np.random.default_rng(2)
        tokens = rng.standard_normal((2, *grid, D), np.float32)
        towards = rng.standard_normal((2, groups, ATTR), np.float32)
        branches = towards[::-1] if branched else None

        def loss(variables):
            return jnp.sum(towards * module.apply(variables, tokens, branches, train=False).refined)

        init = functools.partial(module.init, train=False)
        gradient = jit(jax.grad(loss))(jit(init)(jax.random.key(0), tokens, branches))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)

    @pytest.mark.slow
    def test_the_losses_alone_reach_the_pyramid_and_the_graph(self):
        module, variables, tokens, branches = setting()

        def loss(variables):
            return losses(module.apply(variables, tokens, branches, train=False), jnp.ones(2))

        gradient = jit(jax.grad(loss))(variables)["params"]
        for name in ("tokens", "block_0", "merge_1", "block_1", "merge_2", "block_2", "graph"):
            assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient[name])) > 1e-5, name


class TestModule:
    def test_permuting_images_permutes_the_outputs(self):
        module, variables, tokens, branches = setting()
        straight = run(module, variables, tokens, branches)
        permuted = run(module, variables, tokens[::-1], branches[::-1])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[::-1], b, rtol=1e-5, atol=1e-6), straight, permuted
        )

    def test_evaluation_repeats_and_training_has_noise(self):
        module, variables, tokens, branches = setting()
        first, second = (run(module, variables, tokens, branches).refined for _ in range(2))
        np.testing.assert_array_equal(first, second)
        rngs = {"dropout": jax.random.key(0)}
        noisy = compiled(module, train=True)(variables, tokens, branches, rngs=rngs).refined
        assert np.abs(noisy - first).max() > 1e-3

    @staticmethod
    def operations(module, grid):
        groups = module.num_groups
        inputs = jnp.zeros((2, *grid, D)), jnp.zeros((2, groups, ATTR))
        variables = shapes(module, *inputs)
        jaxpr = jax.make_jaxpr(functools.partial(module.apply, train=False))(variables, *inputs)
        return str(jaxpr).count(" = ")

    def test_the_program_does_not_grow_with_groups_or_windows(self):
        base = self.operations(build(2), (7, 7))
        assert base > 100
        assert self.operations(build(9), (7, 7)) == base
        assert self.operations(build(2), (8, 8)) == base
        assert self.operations(build(2, window=5), (7, 7)) == base

    def test_a_sharded_batch_gives_the_same_and_stays_sharded(self):
        module, variables, *inputs = setting()
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        single = run(module, variables, *inputs).refined
        spread = run(module, variables, *(jax.device_put(np.repeat(x, 4, axis=0), rows) for x in inputs))
        np.testing.assert_allclose(spread.refined, np.repeat(single, 4, axis=0), rtol=1e-4, atol=1e-5)
        assert spread.refined.sharding.is_equivalent_to(rows, 3)

    @pytest.mark.parametrize("settings", [{"window": 4}, {"window": 1}, {"num_heads": 3}], ids=str)
    def test_settings_that_cannot_be_are_named(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            build(**settings)

    def test_inputs_of_the_wrong_width_are_named(self):
        tokens, branches = jnp.zeros((1, 2, 2, D)), jnp.zeros((1, 3, ATTR))
        with pytest.raises(ValueError, match="tokens are 7 wide; expected 6"):
            build().init(jax.random.key(0), jnp.zeros((1, 2, 2, 7)), branches, train=False)
        with pytest.raises(ValueError, match="branches"):
            build(groups=4).init(jax.random.key(0), tokens, branches, train=False)
