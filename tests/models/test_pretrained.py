"""Checkpoints in torchvision's names: what loads, and what each wrong file is told."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from wsca_jax.models.pretrained import PretrainedError, load_resnet, torchvision_name
from wsca_jax.models.resnet import ResNet

sys.path.insert(0, str(Path(__file__).parents[1]))

from seeded_weights import seeded, seeded_variables


def variables_of(depth=18, width=4):
    model = ResNet(depth, width=width)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def tensors_of(variables, features=32):
    """A checkpoint as torchvision would write it, classifier and counters included."""
    tensors = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = torchvision_name(tuple(key.key for key in keys))
        shape = leaf.shape if len(leaf.shape) == 1 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
        tensors[name] = seeded(name, shape)
        if name.endswith("running_mean"):
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.array(7)
    return tensors | {"fc.weight": seeded("fc.weight", (10, features)), "fc.bias": seeded("fc.bias", (10,))}


def assert_loaded(found, variables):
    jax.tree.map(np.testing.assert_array_equal, found, seeded_variables(variables))
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


@pytest.fixture
def checkpoint(tmp_path):
    variables = variables_of()
    path = tmp_path / "resnet18.safetensors"
    save_file(tensors_of(variables), path)
    return path


def rewrite(path, change):
    tensors = tensors_of(variables_of())
    change(tensors)
    save_file(tensors, path)


def test_names_are_torchvision_s():
    torch = pytest.importorskip("torch")
    from wsca_jax.bench.torch_resnet import ReferenceResNet

    assert torch.__version__
    for depth in (18, 26, 50):
        theirs = {n for n in ReferenceResNet(depth, width=4).state_dict() if not n.endswith("_tracked")}
        assert set(tensors_of(variables_of(depth))) - theirs == {
            n for n in tensors_of(variables_of(depth)) if n.endswith("_tracked")
        }
        assert theirs <= set(tensors_of(variables_of(depth)))


def test_loads_safetensors(checkpoint):
    assert_loaded(load_resnet(checkpoint, variables_of()), variables_of())


@pytest.mark.parametrize("wrapped", [False, True])
def test_loads_pth(tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "resnet18.pth"
    state = {name: torch.from_numpy(np.array(x)) for name, x in tensors_of(variables_of()).items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    assert_loaded(load_resnet(path, variables_of()), variables_of())


def test_half_precision_checkpoints_become_float32(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "resnet18.safetensors"
    state = {name: torch.from_numpy(np.array(x)).bfloat16() for name, x in tensors_of(variables_of()).items()}
    save_torch(state, path)
    found = load_resnet(path, variables_of())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), found, seeded_variables(variables_of())
    )


def test_a_pickle_with_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    fired = tmp_path / "fired"

    class Payload:
        def __reduce__(self):
            return Path.touch, (fired,)

    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Payload()}, path)
    with pytest.raises(PretrainedError, match=r"evil\.pth: not a weights-only PyTorch file"):
        load_resnet(path, variables_of())
    assert not fired.exists()


def test_the_classifier_is_an_error_where_it_is_not_skipped(checkpoint):
    with pytest.raises(PretrainedError, match=r"2 unexpected \(fc\.bias, fc\.weight\)"):
        load_resnet(checkpoint, variables_of(), skip_classifier=False)


def test_missing_and_unexpected_tensors_are_named(checkpoint):
    def change(tensors):
        tensors["layer1.0.convolution1.weight"] = tensors.pop("layer1.0.conv1.weight")

    rewrite(checkpoint, change)
    with pytest.raises(PretrainedError) as caught:
        load_resnet(checkpoint, variables_of())
    message = str(caught.value)
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 unexpected (layer1.0.convolution1.weight)" in message
    assert "\n" not in message


def test_another_depth_says_so(checkpoint):
    with pytest.raises(PretrainedError, match="choose the depth the checkpoint was made for"):
        load_resnet(checkpoint, variables_of(50))


def test_another_width_names_tensor_and_shapes(checkpoint):
    with pytest.raises(PretrainedError, match=r"has shape \(.*\).*, expected \("):
        load_resnet(checkpoint, variables_of(width=8))


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(PretrainedError, match="no such file"):
        load_resnet(tmp_path / "absent.safetensors", variables_of())
    for name, message in (
        ("broken.safetensors", "not a readable safetensors file"),
        ("weights.h5", r"expected a \.safetensors or \.pth file"),
    ):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(PretrainedError, match=message):
            load_resnet(tmp_path / name, variables_of())


def test_a_pth_of_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(PretrainedError, match="expected a dictionary of tensors, found list"):
        load_resnet(tmp_path / "list.pth", variables_of())
