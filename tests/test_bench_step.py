"""`wsca bench step`: its arithmetic by hand, its contenders against plain loops, its options and errors.

How fast anything is is not tested.
"""

import contextlib
import itertools
import json
import threading

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_cli import expect_one_line, run

from wsca_jax import assembly, config
from wsca_jax.bench import figures, modules, step, text, torch_step, turns
from wsca_jax.bench.figures import (
    END_TO_END,
    LOADER,
    OURS_BASELINE,
    STEP,
    TORCH,
    Device,
    Measured,
    Model,
    Settings,
)
from wsca_jax.bench.loop import end_to_end, loader
from wsca_jax.bench.prepared import Prepared, noise, without_cache
from wsca_jax.bench.variants import BASELINE, FULL, LIGHT, ROWS, Request, configure, is_baseline
from wsca_jax.errors import ExitCode

TINY = "configs/scenes.py:tiny"
NARROW = "--config.model.trunk.width=4"


def taken(*wall):
    return {"wall": list(wall), "cpu": list(wall)}


def measured(seconds, **changes):
    """Turns of 4 steps of 10 images, on an H200 unless something else is said."""
    values = {
        "spec": "c.py",
        "model": Model(50, 64, 224, "bfloat16"),
        "device": Device(1, "NVIDIA H200", "gpu"),
        "batch_size": 10,
        "settings": Settings(steps=4, rounds=3),
        "seconds": seconds,
        "data_waits": [0.5, 0.1, 0.2],
        "lowering": 1.0,
        "compiling": 2.0,
        "planned": 2**20,
        "seen": None,
        "multiply_adds": 10**9,
        "modules": None,
        "load": 0.0,
    }
    return Measured(**(values | changes))


ALL_THREE = {STEP: taken(2.0, 4.0, 2.0), LOADER: taken(1.0, 5.0, 1.0), END_TO_END: taken(3.0, 6.0, 2.0)}


def test_both_together_by_hand():
    assert figures.slower_over_both(ALL_THREE) == 1.2  # of 3/2, 6/5 and 2/2: within a round, then the median
    assert figures.one_after_the_other(ALL_THREE) == pytest.approx(2 / 3)  # of 3/3, 6/9 and 2/3
    found = measured(ALL_THREE, device=Device(1, "cpu", "cpu"))
    assert found.rate(STEP) == 20.0
    words = text.format_measured(found)
    assert "The slower of the two, the step, over end to end: 1.20" in words
    assert "waited for data 20.0 % of the time" in words
    assert "would take 1.50 times as long" in words
    assert "would take" not in text.format_measured(measured(ALL_THREE))
    row = next(line for line in words.splitlines() if line.startswith(LOADER))
    assert row.removeprefix(LOADER).split() == ["40.0", "250.0"]


def test_without_data_it_says_what_was_left_out():
    words = text.format_measured(measured({STEP: taken(1.0)}))
    assert "Left out: the loader and end to end" in words
    assert "over end to end" not in words


def test_utilisation_by_hand():
    """6 operations for each multiply-add of the forward pass, 1e9 an image, 40 images in 2 s."""
    found = measured({STEP: taken(2.0)})
    assert figures.utilisation(found) == pytest.approx(6e9 * 20 / 989.5e12)
    four = measured({STEP: taken(2.0)}, device=Device(4, "TPU v5 lite", "tpu"))
    assert figures.utilisation(four) == pytest.approx(6e9 * 20 / (4 * 197e12))
    for changes in ({"device": Device(1, "cpu", "cpu")}, {"model": Model(50, 64, 224, "float32")}):
        assert figures.utilisation(measured({STEP: taken(2.0)}, **changes)) is None


def test_beside_pytorch_and_the_published_figure_by_hand():
    """With modules our baseline stands beside PyTorch; without, the step itself is the baseline."""
    seconds = {STEP: taken(0.01), TORCH: taken(0.012)}
    assert figures.over_torch(measured(seconds)) == pytest.approx(1.2)
    assert figures.of_published(measured(seconds)) == pytest.approx(4000 / 7940)
    seconds[OURS_BASELINE] = taken(0.008)
    assert figures.over_torch(measured(seconds)) == pytest.approx(1.5)
    assert figures.of_published(measured(seconds)) == pytest.approx(5000 / 7940)
    assert figures.over_torch(measured({STEP: taken(1.0)})) is None
    others = {"model": Model(50, 64, 224, "float32")}, {"device": Device(1, "NVIDIA H100 80GB HBM3", "gpu")}
    for changes in others:
        assert figures.of_published(measured(seconds, **changes)) is None
    words = text.format_measured(measured(seconds, torch="2.13.0"))
    assert "1.50 times as fast" in words
    assert "PyTorch 2.13.0: channels last" in words
    assert "0.63 of the 7,940 images/s" in words
    assert json.loads(json.dumps(figures.to_json(measured(seconds))))["over_torch"] == pytest.approx(1.5)


def test_the_modules_table_by_hand():
    class Cost:
        def __init__(self, multiply_adds, size):
            self.multiply_adds, self.bytes = multiply_adds, size

    costs = {BASELINE: Cost(10**8, 2**20), LIGHT: Cost(2 * 10**8, 3 * 2**20), FULL: Cost(10**8, 2**20)}
    seconds = {BASELINE: taken(0.2), LIGHT: taken(0.3), FULL: taken(0.4)}
    words = modules.format_modules(modules.Modules(costs, seconds, steps=2))
    row = next(line for line in words.splitlines() if line.startswith(LIGHT))
    expected = ["150.0", "1.500", "200", "M", "2.00", "3.0", "MiB", "3.00"]
    assert row.removeprefix(LIGHT).split() == expected
    assert "cost 25.0 % of a step" in words


def test_what_a_turn_needs_is_ready_before_and_put_away_after_it():
    order = []

    @contextlib.contextmanager
    def around():
        order.append("(")
        yield
        order.append(")")

    work = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    turns.take_turns(work, rounds=2, warm_up=1, around={"b": around})
    assert "".join(order) == "a(b)a(b)a(b)"


def test_rows_have_the_modules_they_name():
    request = Request(
        "configs/celeba.py:laptop", ("--config.model.router.experts=7", "--config.train.batch_size=8")
    )
    assert not is_baseline(request.load())
    baseline = configure(request, ROWS[BASELINE])
    assert is_baseline(baseline)
    assert baseline.model.trunk == request.load().model.trunk
    router = configure(request, ROWS["router alone"])
    assert router.model.router.experts == 7
    assert router.model.encoder is None
    assert router.loss.weights.cmdl == 0.0
    assert router.train.batch_size == 8
    text_row = configure(request, ROWS["everything, with text"])
    assert text_row.data.text.captions == "phrases"
    assert text_row.model.encoder.num_heads == 4  # the configuration's own, not the default
    assert text_row.model.text is not None
    assert text_row.loss.balancing.kind == "trend"


@pytest.fixture(scope="module")
def tiny():
    return config.load(TINY, [NARROW, "--config.data.threads=1"])


@pytest.fixture(scope="module")
def source(tiny):
    return assembly.open_source(tiny, "train")


@pytest.fixture(scope="module")
def compiled(tiny, source):
    """The step, and its first state on the host: taking a step gives the state's memory away."""
    prepared = Prepared(assembly.build(tiny, source.schema, len(source)), cached=True)
    return prepared, jax.device_get(prepared.state)


@pytest.fixture
def restart(compiled):
    """Puts the first state back, and returns the step."""

    def again():
        prepared, first = compiled
        prepared.state = jax.device_put(first, prepared.run.layout.shardings(first))
        return prepared

    return again


@pytest.fixture
def prepared(restart):
    return restart()


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_a_turn_takes_its_steps(prepared):
    before = prepared.batch
    prepared.taking(3)()
    assert int(prepared.state.step) == 3
    assert int(prepared.state.skipped) == 0
    same(prepared.batch, before)
    assert prepared.bytes > sum(x.nbytes for x in jax.tree.leaves(prepared.state.params))
    assert prepared.lowering > 0
    assert prepared.compiling > 0


def test_noise_is_a_batch_of_the_spec(tiny, source):
    spec = assembly.batch_spec(tiny, source.schema, 64)
    batch = noise(spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
        lambda x: (x.shape, x.dtype), spec
    )
    assert batch.image.std() > 60
    assert 0.05 < batch.known.mean() < 0.15
    assert not batch.labels[~batch.known].any()


@pytest.mark.slow
def test_end_to_end_is_training(prepared, restart, source, tiny, tmp_path):
    """Its state is that of plain steps on the run's own batches; each turn reads on; no thread is left."""
    threads = threading.active_count()
    with end_to_end(prepared, source, 2, tmp_path) as loop:
        assert loop.lead == 4
        for _ in range(2):
            with loop.open():
                loop.turn()
        assert len(loop.data_waits) == 2
        assert all(0 <= share <= 1 for share in loop.data_waits)
    assert int(prepared.state.step) == 12
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 12 // tiny.train.log_every
    found, again = jax.device_get(prepared.state.params), restart()
    batches = assembly.train_batches(tiny, again.run.text, source, 0)
    for batch in itertools.islice(batches, 12):
        again.state, _ = again.compiled(again.state, again.run.layout.put_batch(batch))
    batches.close()
    same(found, again.state.params)
    assert threading.active_count() <= threads


@pytest.mark.slow
def test_the_loader_takes_its_steps_and_does_nothing_with_them(prepared, source, monkeypatch):
    taken = []
    original = assembly.train_batches

    def watched(*arguments):
        for batch in original(*arguments):
            taken.append(batch.index.tolist())
            yield batch

    monkeypatch.setattr(assembly, "train_batches", watched)
    stream = loader(prepared, source, 3)
    for turn in (1, 2):
        with stream.open():
            assert len(taken) == 11 * turn - 7  # the lead
            stream.turn()
            assert len(taken) == 11 * turn - 4
        assert len(taken) == 11 * turn  # what is left of a turn is made after it, and again before the next
    assert int(prepared.state.step) == 0
    batches = original(prepared.run.config, prepared.run.text, source, 0)
    expected = [batch.index.tolist() for batch in itertools.islice(batches, 18)]
    assert taken == expected[:11] + expected[7:]
    batches.close()


def test_compiling_is_measured_without_the_persistent_cache(tmp_path):
    """A cache that would keep everything gets nothing inside, and something outside again."""
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}

    def compile_something(number):
        jax.jit(lambda x: x * number).lower(np.ones(3)).compile()
        return len(list(tmp_path.iterdir()))

    try:
        for key, value in zip(keys, (str(tmp_path), 0.0), strict=True):
            jax.config.update(key, value)
        compilation_cache.reset_cache()
        kept = compile_something(2.0)
        assert kept > 0
        with without_cache():
            assert compile_something(3.0) == kept
        assert compile_something(5.0) > kept
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()


SHORT = ("--steps", 1, "--rounds", 1)


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path, capsys):
    pytest.importorskip("torch")
    out, row = tmp_path / "step.json", "router alone"
    words = ("--config", TINY, NARROW, *SHORT, "--batch_size", 8, "--modules", row, "--json", out)
    assert run("bench", "step", *words, "--against", "torch", "--torch_eager") == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "ResNet-18, width 4, 32 px, float32, batches of 8" in printed
    for part in (row, "compiling", "eager, float32", "times as fast"):
        assert part in printed, part
    found = json.loads(out.read_text())
    assert set(found["seconds"]) == {STEP, LOADER, END_TO_END, TORCH}
    assert found["images_per_second"][STEP] == pytest.approx(8 / found["seconds"][STEP]["wall"][0])
    assert set(found["modules"]) == {BASELINE, row}
    assert found["modules"][BASELINE]["multiply_adds"] == found["multiply_adds"]
    assert found["modules"][row]["multiply_adds"] > found["multiply_adds"]


def test_files_are_read_where_a_folder_is_given(tiny):
    assert step.open_source(config.load("configs/celeba.py:small")) is None
    assert len(step.open_source(tiny)) == tiny.data.options.train_images


@pytest.mark.slow
def test_the_command_beside_compiled_pytorch(capsys):
    """A configuration with a module brings its baseline along, for PyTorch to stand beside."""
    pytest.importorskip("torch")
    words = ("--config", TINY, NARROW, *SHORT, "--config.model.dtype=bfloat16", "--against", "torch")
    assert run("bench", "step", *words, "--config.model.router=default") == ExitCode.DONE
    printed = capsys.readouterr().out
    for part in ("torch.compile, autocast to bfloat16", OURS_BASELINE, TORCH):
        assert part in printed, part


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    words = ("bench", "step", "--config", TINY, *SHORT)
    expect_one_line(capsys, run(*words, "--modules", "rooter"), "rooter", "router alone")
    expect_one_line(capsys, run(*words, "--config.optimiser.name=lamb"), "optimizer.name")
    expect_one_line(capsys, run(*words, "--batch_size", 7), "7 examples", "8 devices")
    celeba = ("bench", "step", "--config", "configs/celeba.py:small", "--data_dir", tmp_path / "nowhere")
    expect_one_line(capsys, run(*celeba), "nowhere")
    beside = (*words, "--against", "torch")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch_step.importlib.util, "find_spec", lambda name: object())
    expect_one_line(capsys, run(*beside), "no-such-compiler", "--torch_eager")
    monkeypatch.setattr(torch_step.importlib.util, "find_spec", lambda name: None)
    expect_one_line(capsys, run(*beside), "PyTorch is not installed", "pip install")
