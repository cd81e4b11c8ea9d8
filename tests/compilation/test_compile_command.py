"""`wsca compile`, as a person runs it: CPU devices stand for a pod."""

import dataclasses
import importlib.util
import json
import re
from types import SimpleNamespace

import jax
import pytest
from methods.tiny_model import TinyTrunk

from wsca_jax import assembly, cli, compilation
from wsca_jax.compilation import topologies
from wsca_jax.compilation.chips import CHIPS
from wsca_jax.compilation.program import Unreadable, program_text
from wsca_jax.compilation.record import CompiledStep, Shortage
from wsca_jax.compilation.text import format_step, format_steps
from wsca_jax.errors import ExitCode

TINY = "configs/scenes.py:tiny"


def run(*arguments) -> int:
    return cli.main(["compile", *map(str, arguments)])


def expect_one_line(capsys, code: int, *parts: str) -> None:
    assert code == ExitCode.BAD_INPUT
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wsca: ")]
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def linear_trunk(monkeypatch):
    """Four linear layers for a trunk: they compile in no time."""
    build = assembly.build_method

    def with_linear_trunk(*arguments):
        method = build(*arguments)
        return dataclasses.replace(method, model=method.model.clone(trunk=TinyTrunk()))

    monkeypatch.setattr(assembly, "build_method", with_linear_trunk)


@pytest.mark.slow
@pytest.mark.usefixtures("linear_trunk")
def test_a_tiny_step_for_two_topologies(tmp_path, capsys):
    """Twice the devices at the same batch on each: the same share of the state, and more to send."""
    found, programs = tmp_path / "found.json", tmp_path / "programs"
    code = run(
        *("--config", TINY, "--topology", "cpu:2", "cpu:4", "--batch_per_device", 4),
        *("--json", found, "--programs", programs),
    )
    assert code == ExitCode.DONE
    two, four = json.loads(found.read_text())
    assert [step["batch_size"] for step in (two, four)] == [8, 16]
    assert two["mesh"] == {"data": 2, "fsdp": 1}
    for step in (two, four):
        assert step["memory"]["aliased"] > 0.9 * step["memory"]["outputs"]
        assert [c["kind"] for c in step["cost"]["collectives"]] == ["all-reduce"]
        assert step["estimate"] is None
    assert two["cost"]["multiply_adds"] == four["cost"]["multiply_adds"] > 0
    halves = two["cost"]["collectives"][0], four["cost"]["collectives"][0]
    assert halves[0]["sent"] / halves[0]["bytes"] == pytest.approx(2 * 1 / 2, rel=0.01)
    assert halves[1]["sent"] / halves[1]["bytes"] == pytest.approx(2 * 3 / 4, rel=0.01)
    assert {path.name for path in programs.iterdir()} == {
        "scenes.py-tiny-cpu-2.hlo",
        "scenes.py-tiny-cpu-4.hlo",
    }
    text = capsys.readouterr().out
    assert re.search(rf"^{TINY} +cpu:4 +4 +4 ", text, re.MULTILINE)


REFUSED = "INTERNAL: RET_CHECK failure: Async update expects one operand\n  in CreateFromProto"


@pytest.fixture
def jax_cannot_print(monkeypatch):
    """As jax does where its own XLA refuses a program that another version's compiler made."""

    def refuse(self):
        raise jax.errors.JaxRuntimeError(REFUSED)

    monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("linear_trunk", "jax_cannot_print")
def test_a_program_that_cannot_be_read_is_reported_as_far_as_it_is_known(tmp_path, capsys):
    found, programs = tmp_path / "found.json", tmp_path / "programs"
    code = run("--config", TINY, "--topology", "cpu:2", "--json", found, "--programs", programs)
    assert code == ExitCode.DONE
    (step,) = json.loads(found.read_text())
    assert step["memory"]["total"] > 0
    assert step["cost"]["multiply_adds"] > 0
    assert [step["cost"][key] for key in ("bytes_moved", "bytes_sent", "collectives")] == [None] * 3
    assert step["unreadable"] == " ".join(REFUSED.split())
    assert not programs.exists()
    text = capsys.readouterr().out
    assert re.search(r"^Bytes moved, collectives .* not known: .*RET_CHECK.*one operand", text, re.MULTILINE)
    assert re.search(r"^multiply-adds of the model +[\d.]+ G", text, re.MULTILINE)
    assert re.search(rf"^{TINY} +cpu:2 +2 +\d+ +[\d.]+ KiB +- ", text, re.MULTILINE)


@pytest.mark.usefixtures("jax_cannot_print")
def test_the_compiler_s_own_text_comes_first(tmp_path):
    compiled = jax.jit(lambda x: x + 1).lower(1.0).compile()
    assert isinstance(program_text(compiled, tmp_path), Unreadable)
    (tmp_path / "module_0000.jit_step.after_optimizations-buffer-assignment.txt").write_text("another")
    (tmp_path / "module_0000.jit_step.after_optimizations.txt").write_text("HloModule")
    assert program_text(compiled, tmp_path) == "HloModule"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5e", ("'v5e'", "expected CHIP:SIZES", "v5e:16x16")),
        ("v9:2x2", ("'v9:2x2'", "chips are v4, v5e, v5p, v6e, or cpu")),
        ("v5e:32x32", ("1,024 chips", "largest slice of v5e has 256")),
        ("cpu:0", ("a number of CPU devices",)),
        ("cpu:2x4", ("a number of CPU devices",)),
        ("cpu:99", ("JAX has started with 8 CPU devices",)),
    ],
)
def test_topologies_that_cannot_be(name, parts, capsys):
    expect_one_line(capsys, run("--config", TINY, "--topology", name), *parts)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        topologies.importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    code = run("--config", TINY, "--topology", "v5e:2x4")
    expect_one_line(capsys, code, "v5e:2x4", "libtpu", "pip install '.[tpu]'")


def test_a_batch_that_does_not_divide(capsys):
    code = run("--config", TINY, "--topology", "cpu:8", "--config.train.batch_size=12")
    expect_one_line(capsys, code, "12 examples does not divide over 8 devices", "a multiple of 8")


def test_cpu_devices_have_no_largest_batch(capsys):
    expect_one_line(
        capsys, run("--config", TINY, "--topology", "cpu:8", "--largest_batch"), "--largest_batch"
    )


TOO_LARGE = CompiledStep(
    config="big",
    topology="v5e:2x4",
    devices=8,
    mesh={"data": 8, "fsdp": 1},
    batch_size=8192,
    accumulate=1,
    seconds=1.0,
    memory=None,
    shortage=Shortage(20 * 2**30, 15 * 2**30),
    cost=None,
    estimate=None,
    largest_batch=384,
)


def test_the_largest_batch_splits_into_microbatches(monkeypatch):
    """A chip that holds 200 examples, without its compiler: three microbatches of 64."""
    asked = []

    def lower(settings, topology):
        asked.append((settings.train.batch_size, settings.evaluation.batch_size))
        return SimpleNamespace(step=settings.train.batch_size // 8)

    monkeypatch.setattr(compilation, "lower", lower)
    monkeypatch.setattr(compilation, "compile_or_shortage", lambda n: Shortage(n, 200) if n > 200 else n)
    step = dataclasses.replace(TOO_LARGE, batch_size=8 * 768, accumulate=3)
    request = compilation.Request([TINY], ["--config.train.accumulate=3"], ["v5e:2x4"], 768, True)
    topology = topologies.Topology("v5e:2x4", tuple(jax.devices()), CHIPS["v5e"])
    found = compilation._with_largest_batch(step, request, TINY, topology)
    assert found.largest_batch == 3 * 64
    assert asked == [(8 * n, 8 * n) for n in (384, 192, 288)]


def test_a_step_that_does_not_fit_is_an_answer():
    step = TOO_LARGE
    text = format_step(step)
    assert "Does not fit: needs 20.0 GiB on each device, has 15.0 GiB." in text
    assert "Largest batch that fits: 384 examples on each device." in text
    assert re.search(r"^big +v5e:2x4 +8 +1,024 +20.0 GiB: does not fit", format_steps([step]), re.MULTILINE)
    assert json.loads(json.dumps(compilation.to_json(step)))["shortage"]["needed"] == 20 * 2**30


def test_help_says_what_a_topology_is(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert "v5e:16x16" in capsys.readouterr().out
