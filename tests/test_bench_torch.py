"""The PyTorch baseline beside `wsca bench step`: it computes what ours computes, or refuses."""

import jax
import numpy as np
import pytest

from wsca_jax import assembly, augment, config
from wsca_jax.bench import against_torch, torch_step
from wsca_jax.bench.figures import Device
from wsca_jax.bench.prepared import noise
from wsca_jax.errors import WscaError
from wsca_jax.models.heads import GroupHeads
from wsca_jax.models.tokens import VisualTokens

TINY = "configs/scenes.py:tiny"
LAPTOP = "configs/celeba.py:laptop_baseline"


@pytest.mark.parametrize("spec", [TINY, LAPTOP, "configs/celeba.py:baseline"])
def test_pytorch_has_the_parameters_that_we_have(spec):
    """Array by array, by size: trunk, tokens (with a top-down path, too), heads, linear path."""
    torch = pytest.importorskip("torch")
    from wsca_jax.bench.torch_baseline import Baseline

    chosen = config.load(spec)
    schema = assembly.data_schema(chosen)
    method = assembly.build_method(chosen, schema)
    batch = assembly.batch_spec(chosen, schema, 2)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), noise(batch)))["params"]
    theirs = Baseline(against_torch.shape(chosen, schema))
    assert sorted(x.numel() for x in theirs.parameters()) == sorted(x.size for x in jax.tree.leaves(shapes))
    assert theirs.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 2, schema.num_attributes)


@pytest.mark.parametrize(("linear_path", "learns"), [(True, False), (False, True)])
def test_pytorch_s_trunk_hears_of_the_tokens_where_ours_does(linear_path, learns):
    torch = pytest.importorskip("torch")
    from wsca_jax.bench.torch_baseline import Baseline

    chosen = config.load(TINY, [f"--config.model.linear_path={linear_path}"])
    theirs = Baseline(against_torch.shape(chosen, assembly.data_schema(chosen)))
    theirs(torch.rand(4, 3, 32, 32))[0].square().sum().backward()  # the groups' classifiers
    reached = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in theirs.trunk.parameters()]
    assert any(reached) == learns


def test_pytorch_s_tokens_and_heads_compute_what_ours_compute():
    torch = pytest.importorskip("torch")
    from wsca_jax.bench import torch_baseline

    groups = (0, 1, 1, 0, 2)
    shape = torch_step.Shape({}, groups, 8, 6, "c4", True, 0.0, True, 3, 0.0, 0.0)
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(2, n, n, c)).astype(np.float32) for n, c in ((7, 5), (4, 9))]
    ours = {
        "tokens": VisualTokens(8, grid=3, dtype="float32"),
        "heads": GroupHeads(groups, 8, 6, dtype="float32"),
    }
    theirs = {
        "tokens": torch_baseline.Tokens(shape, [3, 4, 5, 9]).eval(),
        "heads": torch_baseline.GroupHeads(shape).eval(),
    }

    def moved(variables):
        """With running statistics other than 0 and 1."""
        found = jax.tree.map(
            lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), variables["batch_stats"]
        )
        return {**variables, "batch_stats": found}

    tokens = moved(ours["tokens"].init(jax.random.key(0), *stages, train=False))
    pooled = rng.normal(size=(2, 8)).astype(np.float32)
    heads = moved(ours["heads"].init(jax.random.key(1), pooled, train=False))

    def give(module, params, statistics):
        """Ours to the module of theirs; PyTorch's kernels lie the other way round."""
        state = module.state_dict()
        for name, array in statistics["centre"].get("norm", statistics["centre"]).items():
            state[f"centre.running_{name}"] = torch.tensor(np.asarray(array))
        for name, value in params.items():
            if not isinstance(value, dict):
                state[name] = torch.tensor(np.asarray(value))
                continue
            for key, array in value.get("norm", value).items():
                array = torch.tensor(np.asarray(array))
                array = array.T if key == "kernel" else array
                module_name = name.replace("above_", "above.")
                target = f"{module_name}.{'bias' if key == 'bias' else 'weight'}"
                state[target] = array.reshape(state[target].shape)
        module.load_state_dict(state)

    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), tokens["params"])
    give(theirs["tokens"], params, tokens["batch_stats"])
    tokens = {**tokens, "params": params}
    expected = ours["tokens"].apply(tokens, *stages, train=False)
    images = [None, None, *(torch.tensor(x).permute(0, 3, 1, 2) for x in stages)]
    found = theirs["tokens"](images).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), heads["params"])
    give(theirs["heads"], params, heads["batch_stats"])
    expected = ours["heads"].apply({**heads, "params": params}, pooled, train=False)["groups"]
    np.testing.assert_allclose(theirs["heads"](torch.tensor(pooled)).detach().numpy(), expected, atol=1e-5)


def test_pytorch_turns_hues_as_we_do():
    torch = pytest.importorskip("torch")
    from wsca_jax.bench.torch_recipe import turn_hue

    rng = np.random.default_rng(0)
    image, by = rng.random((4, 5, 5, 3), np.float32), rng.uniform(-0.5, 0.5, (4, 1, 1, 1)).astype(np.float32)
    image[0, 0] = 0.5  # grey
    found = turn_hue(torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(by)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.numpy(), augment.adjust_hue(image, by), atol=1e-5)


def test_what_pytorch_is_not_compared_with():
    def refused(device, *overrides):
        chosen = config.load(TINY, overrides)
        with pytest.raises(WscaError, match=r"--against torch: ") as caught:
            against_torch.recipe(chosen, assembly.data_schema(chosen), device, compiled=True)
        return str(caught.value)

    cpu = Device(8, "cpu", "cpu")
    assert "lamb" in refused(cpu, "--config.optimizer.name=lamb")
    assert "focal" in refused(cpu, "--config.loss.classification=focal")
    assert "accumulate" in refused(cpu, "--config.train.accumulate=2")
    assert "remat" in refused(cpu, "--config.model.trunk.remat=('c2',)")
    assert "tpu" in refused(Device(1, "TPU v4", "tpu"))
    assert "CUDA_VISIBLE_DEVICES" in refused(Device(2, "NVIDIA H200", "gpu"))
