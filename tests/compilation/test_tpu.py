"""The training step as a TPU's compiler makes it, for a slice of a pod that is not here. Needs libtpu."""

import importlib.util
import json
import re

import jax
import pytest

from wsca_jax import cli
from wsca_jax.compilation import hlo, program
from wsca_jax.errors import ExitCode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
    ),
]
TINY = ("--config", "configs/scenes.py:tiny", "--config.model.dtype=bfloat16")
EVERY_MODULE = [
    f"--config.model.{module}=default"
    for module in ("frequency", "encoder", "router", "decomposer", "alignment")
]


def compiled(folder, *arguments) -> tuple[dict, list[str]]:
    """What `wsca compile` writes: (the record, the programs)."""
    found = folder / "found.json"
    code = cli.main(["compile", *TINY, *arguments, "--json", str(found), "--programs", str(folder)])
    assert code == ExitCode.DONE
    (record,) = json.loads(found.read_text())
    return record, [path.read_text() for path in folder.glob("*.hlo")]


def place(instruction: hlo.Instruction) -> str:
    """Where in our code it comes from; "" for what the compiler adds."""
    found = re.search('op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def test_a_step_for_eight_chips(tmp_path, capsys):
    """It fits, its state is donated, sums are all that is exchanged, convolutions are in bfloat16."""
    record, (text,) = compiled(tmp_path, "--topology", "v5e:2x4", "--batch_per_device", "8")
    assert "Fits: needs" in capsys.readouterr().out
    assert record["memory"]["aliased"] > 0.99 * record["memory"]["outputs"]
    assert [found["kind"] for found in record["cost"]["collectives"]] == ["all-reduce"]
    assert 0 < record["estimate"]["efficiency"] <= 1
    convolutions = [
        computation.operand_arrays(instruction)
        for computation, instruction, _ in hlo.parse(text).executed()
        if instruction.operation == "convolution" and "conv_general_dilated" in instruction.attributes
    ]
    assert len(convolutions) > 50
    assert {array.dtype for operands in convolutions for array in operands} == {"bf16"}


# Not multiplied in bfloat16, by the place in our code that XLA notes: transforms of the frequency branch,
# the router's gate, clusters and quality, gradients of what softmaxes and gates return in float32.
IN_FLOAT32 = re.compile(r"/(frequency|router)[/.]|transpose\(jvp\(WSCA\)\).*->(bhqk|bpk|bij)/dot_general")


def test_matrix_work_of_every_module_is_in_bfloat16(tmp_path):
    """But for the named parts of the model and the losses' correlations."""
    slice_ = ("--topology", "v5e:2x4", "--batch_per_device", "8")
    record, (text,) = compiled(tmp_path, *EVERY_MODULE, *slice_)
    assert record["memory"]["aliased"] > 0.99 * record["memory"]["outputs"]
    kinds = {found["kind"] for found in record["cost"]["collectives"]}
    assert kinds <= {"all-reduce", "all-gather", "all-to-all"}
    products = [
        (place(instruction), {array.dtype for array in computation.operand_arrays(instruction)})
        for computation, instruction, _ in hlo.parse(text).executed()
        if instruction.operation in ("convolution", "dot")
    ]
    wider = {name for name, dtypes in products if dtypes != {"bf16"}}
    assert len(products) > 300
    assert wider
    assert [name for name in wider if ("WSCA" in name or not name) and not IN_FLOAT32.search(name)] == []


def test_the_compiler_s_text_says_what_jax_s_does(tmp_path, monkeypatch):
    """The same bytes and the same collectives, found where they are looked for."""
    batch = ("--topology", "v5e:2x4", "--batch_per_device", "8")

    def refuse(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    with monkeypatch.context() as patched:
        patched.setattr(jax.stages.Compiled, "as_text", refuse)
        found, (text,) = compiled(tmp_path, *batch)
    assert text.startswith("HloModule")
    assert found["unreadable"] is None
    monkeypatch.setattr(program, "WRITTEN", "no such file")
    expected, _ = compiled(tmp_path, *batch)
    assert found["cost"] == expected["cost"]
    assert found["estimate"] == expected["estimate"]


def test_a_batch_too_large_is_an_answer(tmp_path, capsys):
    record, programs = compiled(tmp_path, "--topology", "v5e:2x4", "--batch_per_device", str(2**20))
    assert record["shortage"]["needed"] > record["shortage"]["available"] > 15 * 2**30
    assert record["memory"] is None
    assert not programs
    assert "Does not fit: needs " in capsys.readouterr().out


def test_a_slice_that_there_is_not(capsys):
    assert cli.main(["compile", *TINY, "--topology", "v5e:3x3"]) == ExitCode.BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wsca: ")]
    assert "'v5e:3x3': there is no such slice" in line
