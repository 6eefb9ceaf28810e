"""Texts of compiled programs: what is exchanged and moved, counted as often as it runs."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from opsin.planning.hlo import Collective, Program, collectives, parse
from opsin.planning.traffic import bytes_accessed

TPU = (Path(__file__).parent / "hlo" / "tpu.txt").read_text()


def mesh(*shape: int) -> Mesh:
    devices = np.asarray(jax.devices()).reshape(shape)
    return Mesh(devices, ("data", "fsdp")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def compiled(function: Any, *shapes: Any) -> Program:
    return parse(jax.jit(function).lower(*shapes).compile().as_text())


# A text as the compiler for TPUs writes it.


def test_a_collective_in_pieces_counts_once_and_a_loop_as_often_as_it_runs():
    assert collectives(parse(TPU)) == (
        # Two fusions share its channel; bfloat16.
        Collective("all-gather", 256 * 1024 * 2, devices=16, times=24, asynchronous=True),
        Collective("all-gather", 256 * 4 * 64 * 2, devices=16, times=24, asynchronous=True),
        # An all-reduce in a computation of this name, over one of two axes of a transposed mesh.
        Collective("reduce-scatter", 256 * 1024 * 2, devices=4),
        Collective("all-reduce", 4 + 40 + 4, devices=16),  # several arrays
        Collective("all-to-all", 16 * 2 * 1024 * 2, devices=8),  # a part of an axis
        # The result of the start is what goes in, what comes out, and flags.
        Collective("collective-permute", 40, devices=16, asynchronous=True),
    )


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 3 * 2 * 0.75 * 1000),
        ("all-gather", 3 * 0.75 * 1000),
        ("reduce-scatter", 3 * 0.75 * 1000),
        ("all-to-all", 3 * 0.75 * 1000),
        ("collective-permute", 3 * 1000),
    ],
)
def test_what_a_ring_sends(kind, sent):
    assert Collective(kind, 1000, devices=4, times=3).sent == sent


def test_one_device_sends_nothing_to_itself():
    assert Collective("all-reduce", 1000, devices=1).sent == 0


MEMORY = """HloModule jit_f

%body (p: (s32[], f32[24,8,8], f32[8,8])) -> (s32[], f32[24,8,8], f32[8,8]) {
  %p = (s32[], f32[24,8,8], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = f32[24,8,8]{2,1,0} get-tuple-element(%p), index=1
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=2
  %sliced = f32[8,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%slicing
  %y = f32[8,8]{1,0:S(1)} dot(%x, %sliced), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %stored = f32[24,8,8]{2,1,0} fusion(%w, %y, %i), kind=kLoop, calls=%storing
  ROOT %out = (s32[], f32[24,8,8], f32[8,8]) tuple(%i, %stored, %x)
}

%slicing (w.1: f32[24,8,8], i.1: s32[]) -> f32[8,8] {
  %w.1 = f32[24,8,8]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,8,8]{2,1,0} dynamic-slice(%w.1, %i.1, %zero.1, %zero.1)
  ROOT %bitcast.1 = f32[8,8]{1,0} bitcast(%slice.1)
}

%storing (w.2: f32[24,8,8], y.2: f32[8,8], i.2: s32[]) -> f32[24,8,8] {
  %w.2 = f32[24,8,8]{2,1,0} parameter(0)
  %y.2 = f32[8,8]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %update.2 = f32[1,8,8]{2,1,0} bitcast(%y.2)
  ROOT %updated.2 = f32[24,8,8]{2,1,0} dynamic-update-slice(%w.2, %update.2, %i.2, %zero.2, %zero.2)
}

%condition (p.3: (s32[], f32[24,8,8], f32[8,8])) -> pred[] {
  %p.3 = (s32[], f32[24,8,8], f32[8,8]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %end.3 = s32[] constant(24)
  ROOT %less.3 = pred[] compare(%i.3, %end.3), direction=LT
}

ENTRY %main (a: (s32[], f32[24,8,8], f32[8,8])) -> (s32[], f32[24,8,8], f32[8,8]) {
  %a = (s32[], f32[24,8,8], f32[8,8]) parameter(0)
  ROOT %loop = (s32[], f32[24,8,8], f32[8,8]) while(%a), condition=%condition, body=%body
}
"""


# The compiler for TPUs writes fusions inside fusions.
NESTED = """
%outer_slicing (w.4: f32[24,8,8], i.4: s32[]) -> f32[8,8] {
  %w.4 = f32[24,8,8]{2,1,0} parameter(0)
  %i.4 = s32[] parameter(1)
  ROOT %inner.4 = f32[8,8]{1,0} fusion(%w.4, %i.4), kind=kLoop, calls=%slicing
}

%outer_storing (w.5: f32[24,8,8], y.5: f32[8,8], i.5: s32[]) -> f32[24,8,8] {
  %w.5 = f32[24,8,8]{2,1,0} parameter(0)
  %y.5 = f32[8,8]{1,0} parameter(1)
  %i.5 = s32[] parameter(2)
  ROOT %inner.5 = f32[24,8,8]{2,1,0} fusion(%w.5, %y.5, %i.5), kind=kLoop, calls=%storing
}
"""


@pytest.mark.parametrize("nested", [False, True])
def test_of_slices_in_a_loop_each_counts_alone_and_what_stays_on_the_chip_not_at_all(nested):
    text = MEMORY
    if nested:
        text = text.replace("calls=%", "calls=%outer_").replace(
            "\n%condition", NESTED + "\n%condition"
        )
    matrix, index = 8 * 8 * 4, 4
    sliced = matrix + index + matrix  # reads a slice and an index, writes the slice
    product = matrix + matrix  # what comes out stays on the chip
    stored = index + matrix  # and is written from there, in place
    assert bytes_accessed(parse(text)) == 24 * (sliced + product + stored)


@pytest.mark.parametrize(
    ("body", "moved"),
    [
        # What is handed through a fusion inside is read whole, and what is made is written.
        (
            """%same.2 = f32[64]{0} fusion(%x.2), kind=kLoop, calls=%same
  ROOT %negated.2 = f32[64]{0} negate(%same.2)""",
            64 + 64,
        ),
        (
            """%negated.2 = f32[8,8]{1,0} negate(%x.2)
  ROOT %same.2 = f32[64]{0} fusion(%negated.2), kind=kLoop, calls=%same""",
            64 + 64,
        ),
        # An update is in place only where it is what comes out.
        (
            """%i.2 = s32[] constant(0)
  %row.2 = f32[1,8]{1,0} constant({...})
  %updated.2 = f32[8,8]{1,0} dynamic-update-slice(%x.2, %row.2, %i.2, %i.2)
  ROOT %negated.2 = f32[64]{0} negate(%updated.2)""",
            64 + 64,
        ),
    ],
)
def test_a_fusion_reads_and_writes_what_its_inside_does(body: str, moved: int):
    text = f"""HloModule jit_f

%same (x.1: f32[8,8]) -> f32[64] {{
  %x.1 = f32[8,8]{{1,0}} parameter(0)
  ROOT %bitcast.1 = f32[64]{{0}} bitcast(%x.1)
}}

%outer (x.2: f32[8,8]) -> f32[64] {{
  %x.2 = f32[8,8]{{1,0}} parameter(0)
  {body}
}}

ENTRY %main (x: f32[8,8]) -> f32[64] {{
  %x = f32[8,8]{{1,0}} parameter(0)
  ROOT %y = f32[64]{{0}} fusion(%x), kind=kLoop, calls=%outer
}}
"""
    assert bytes_accessed(parse(text)) == 4 * moved


# Programs that are compiled here.


def test_data_parallel_gradients_are_reduced_once():
    devices = mesh(8)

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(x @ params["kernel"] + params["bias"]))

    whole, rows = NamedSharding(devices, P()), NamedSharding(devices, P("data"))
    params = {
        "kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=whole),
        "bias": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=whole),
    }
    images = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    reduce = partial(jax.jit, out_shardings=whole)
    reduced = reduce(jax.grad(loss)).lower(params, images).compile()
    found = collectives(parse(reduced.as_text()))
    assert {(c.kind, c.devices, c.times) for c in found} == {("all-reduce", 8, 1)}
    assert sum(c.bytes for c in found) == (16 * 4 + 4) * 4


def test_every_kind_in_a_loop_and_outside():
    devices = mesh(2, 4)

    def exchange(x: Any, w: Any) -> Any:  # [8, 32] and [3, 8, 32] of each device
        def layer(x: Any, w: Any) -> Any:
            full = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)  # [32, 32]
            return jnp.tanh(x @ full), None

        x, _ = jax.lax.scan(layer, x, w)
        y = jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True)
        y = jax.lax.ppermute(y, "data", [(0, 1), (1, 0)])
        z = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
        return y.reshape(x.shape) + z.sum(), jax.lax.psum(x, ("data", "fsdp"))

    rows, columns = P(("data", "fsdp")), P(None, "fsdp")
    mapped = jax.shard_map(
        exchange,
        mesh=devices,
        in_specs=(rows, columns),
        out_specs=(rows, P()),
        check_vma=False,
    )
    program = compiled(
        mapped,
        jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(devices, rows)),
        jax.ShapeDtypeStruct((3, 32, 32), jnp.float32, sharding=NamedSharding(devices, columns)),
    )
    found = {(c.kind, c.bytes, c.devices, c.times) for c in collectives(program)}
    activations = 8 * 32 * 4
    assert found == {
        ("all-gather", 32 * 32 * 4, 4, 3),
        ("all-to-all", activations, 4, 1),
        ("collective-permute", activations, 8, 1),
        ("reduce-scatter", activations, 4, 1),
        ("all-reduce", activations, 8, 1),
    }


def test_a_product_moves_its_factors_and_itself():
    program = compiled(
        jnp.matmul,
        jax.ShapeDtypeStruct((64, 128), jnp.float32),
        jax.ShapeDtypeStruct((128, 32), jnp.float32),
    )
    assert bytes_accessed(program) == (64 * 128 + 128 * 32 + 64 * 32) * 4


def test_without_a_loop_it_is_the_count_of_xla():
    def network(w: Any, x: Any) -> Any:
        for layer in range(w.shape[0]):
            x = jnp.tanh(x @ w[layer])
        return x.sum()

    shapes = (2, 64, 64), (32, 64)
    made = jax.jit(jax.grad(network)).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    program = made.compile()
    analysis: Any = program.cost_analysis()
    assert bytes_accessed(parse(program.as_text())) == analysis["bytes accessed"]


def test_twice_the_layers_of_a_scan_move_twice_as_much():
    def moved(layers: int) -> int:
        def network(x: Any, w: Any) -> Any:
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

        program = compiled(
            network,
            jax.ShapeDtypeStruct((32, 64), jnp.float32),
            jax.ShapeDtypeStruct((layers, 64, 64), jnp.float32),
        )
        return bytes_accessed(program)

    more, most = moved(8) - moved(4), moved(16) - moved(8)
    assert most == 2 * more
    assert more >= 4 * 64 * 64 * 4  # the weights of four layers at least
