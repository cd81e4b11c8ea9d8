"""Reading compiled programs: text by hand, and real ones of eight CPU devices against numbers by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from wsca_jax.compilation import hlo, traffic
from wsca_jax.compilation.collectives import Collective, collectives, group_size
from wsca_jax.compilation.hlo import HloArray
from wsca_jax.engine.sharding import Layout, make_mesh

# A loop of five turns as a TPU's compiler writes it, a fusion, an asynchronous gather, vector memory S(1).
TPU_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p.0: bf16[64,128], p.1: s32[]) -> bf16[8,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = bf16[8,128]{1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={8,128}
}

%condition (state: (s32[], f32[16,128])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %again = pred[]{:T(512)} compare(%turn, %limit), direction=LT
}

%body (state.1: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %state.1 = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %x = f32[16,128]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %reduced = f32[16,128]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) tuple(%turn.1, %reduced)
}

ENTRY %main (w: bf16[64,128], n: s32[], y: f32[16,128]) -> (bf16[64,128], f32[16,128]) {
  %w = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %y = f32[16,128]{1,0:T(8,128)} parameter(2)
  %part = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %n), kind=kLoop, calls=%fused
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) all-gather-start(%part), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  %gathered = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather-done(%start)
  %first = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) tuple(%n, %y)
  %loop = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) while(%first), condition=%condition, body=%body
  %z = f32[16,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %results = (bf16[64,128]{1,0:T(8,128)(2,1)}, f32[16,128]{1,0:T(8,128)}) tuple(%gathered, %z)
}
"""  # noqa: E501


def test_instructions_of_a_program_by_hand():
    program = hlo.parse(TPU_PROGRAM)
    assert program.entry == "main"
    assert list(program.computations) == ["add", "fused", "condition", "body", "main"]
    main = program.computations["main"]
    assert main["part"].called == {"calls": ("fused",)}
    assert main["part"].results == (HloArray("bf16", (8, 128), space=1),)
    assert main["start"].operation == "all-gather-start"
    assert main["start"].operands == ("part",)
    assert main["start"].results == (HloArray("bf16", (8, 128), 1), HloArray("bf16", (64, 128)))
    assert main.root.name == "results"


def test_what_runs_and_how_often():
    """The loop's body runs five times, what is fused once; what a reduction applies to pairs, not."""
    times = {i.name: n for _, i, n in hlo.parse(TPU_PROGRAM).executed()}
    assert (times["loop"], times["reduced"], times["slice"]) == (1, 5, 1)
    assert "sum" not in times
    unfused = {i.name for _, i, _ in hlo.parse(TPU_PROGRAM).executed(into_fusions=False)}
    assert times.keys() - unfused == {"p.0", "p.1", "slice"}


def test_a_limit_that_the_compiler_notes_comes_first():
    noted = TPU_PROGRAM.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{}}'
    )
    assert {i.name: n for _, i, n in hlo.parse(noted).executed()}["reduced"] == 7


def test_collectives_by_hand():
    reduced, gathered = 16 * 128 * 4, 64 * 128 * 2
    assert collectives(hlo.parse(TPU_PROGRAM), 8) == (
        Collective("all-reduce", 5, 5 * reduced, 5 * 2 * reduced * 3 // 4),
        Collective("all-gather", 1, gathered, gathered * 7 // 8),
    )


def test_bytes_moved_by_hand():
    """A fused slice reads what it returns, into vector memory; a gather writes all; loops count turns."""
    sliced, gathered, reduced, compared = 8 * 128 * 2, 64 * 128 * 2, 16 * 128 * 4, 4 + 4 + 1
    moved = sliced + 4 + gathered + 5 * (2 * reduced + compared)
    assert traffic.bytes_moved(hlo.parse(TPU_PROGRAM)) == moved


SLICE_IN_THE_BACKGROUND = """\
%wrapped (p: bf16[32,56]) -> bf16[8,56] {
  %p = bf16[32,56]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %slice = bf16[8,56]{1,0:T(8,128)(2,1)S(1)} slice(%p), slice={[0:8], [0:56]}
}

ENTRY %main (x: bf16[32,56]) -> bf16[8,56] {
  %x = bf16[32,56]{1,0:T(8,128)(2,1)} parameter(0)
  %slice-start = ((bf16[32,56]{1,0:T(8,128)(2,1)}), bf16[8,56]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) OPERATION
  ROOT %slice-done = bf16[8,56]{1,0:T(8,128)(2,1)S(1)} DONE(%slice-start)
}
"""


@pytest.mark.parametrize(
    ("operation", "done"),
    [
        ("slice-start(%x), slice={[0:8], [0:56]}", "slice-done"),  # as jax prints it
        ("async-start(%x), calls=%wrapped", "async-done"),  # as libtpu does
    ],
)
def test_a_slice_in_the_background_reads_what_it_returns(operation, done):
    program = SLICE_IN_THE_BACKGROUND.replace("OPERATION", operation).replace("DONE", done)
    assert traffic.bytes_moved(hlo.parse(program)) == 8 * 56 * 2


def test_a_collective_that_is_spread_over_fusions_counts_once():
    """As a TPU's compiler does to hide it: the same channel, in one fusion after another."""
    lines = TPU_PROGRAM.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  %start = "))
    again = [lines[place].replace("%start", f"%step.{n}") for n in range(3)]
    spread = hlo.parse("\n".join([*lines[:place], *again, *lines[place:]]))
    assert sum(i.operation == "all-gather-start" for _, i, _ in spread.executed()) == 4
    assert collectives(spread, 8) == collectives(hlo.parse(TPU_PROGRAM), 8)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, use_global_device_ids=true", 4),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b','c'}", 8),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", 2),
        ("replica_groups={}", 8),
        ("channel_id=3", 8),
    ],
)
def test_groups_in_every_notation(attributes, size):
    assert group_size(attributes, 8) == size


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f32", 4), ("bf16", 2), ("pred", 1), ("u8", 1), ("f8e4m3fn", 1), ("s4", 0.5), ("c64", 8)],
)
def test_element_sizes(dtype, size):
    assert HloArray(dtype, (2, 4)).bytes == 8 * size


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty")


# Real programs.


def test_collectives_of_a_real_program():
    """Gradients of x w over 2 x 4 devices: w gathered over fsdp, its gradient reduced over all."""
    layout = Layout(make_mesh(2, 4), shard_from=1)
    w, x = jax.ShapeDtypeStruct((24, 16), jnp.float32), jax.ShapeDtypeStruct((40, 24), jnp.float32)

    def gradient(w, x):
        return layout.scatter(jax.grad(lambda w: jnp.square(x @ layout.gather(w)).sum())(w))

    spread = layout.sharding(w.shape)
    assert spread.spec == PartitionSpec("fsdp")
    step = jax.jit(gradient, in_shardings=(spread, layout.batch), out_shardings=spread)
    program = hlo.parse(step.lower(w, x).compile().as_text())
    size = 24 * 16 * 4
    assert collectives(program, 8) == (
        Collective("all-reduce", 1, size, 2 * size * 7 // 8),
        Collective("all-gather", 1, size, size * 3 // 4),
    )


def test_a_real_loop_counts_its_turns():
    layout = Layout(make_mesh(8, 1))

    def turns(x):
        def body(total, _):
            centred = x - (x + total).mean(0)
            return total + jnp.square(centred).sum(0), None

        return jax.lax.scan(body, jnp.zeros(x.shape[1]), None, length=6)[0]

    step = jax.jit(turns, in_shardings=(layout.batch,), out_shardings=layout.replicated)
    text = step.lower(jax.ShapeDtypeStruct((16, 12), jnp.float32)).compile().as_text()
    assert " while(" in text
    found = collectives(hlo.parse(text), 8)
    assert found == (Collective("all-reduce", 12, 12 * 12 * 4, 2 * 12 * 12 * 4 * 7 // 8),)


def test_bytes_moved_of_a_real_program():
    """A sort moves its array twice, and so does what follows: nothing of it fuses on the CPU."""
    step = jax.jit(lambda x: jax.lax.sort(x, is_stable=False))
    text = step.lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile().as_text()
    moved = traffic.bytes_moved(hlo.parse(text))
    assert moved in (2 * 4000, 4 * 4000), text  # with or without a copy of the argument first
