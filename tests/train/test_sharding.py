"""The mesh, the FSDP rule, and what a user can get wrong about devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from train.sharding import DeviceError, Parallel, check_batch, fsdp_spec, make_mesh, state_sharding


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 256, 512), P(None, None, None, "fsdp")),  # the largest axis
        ((512, 512), P(None, "fsdp")),  # of equal ones the last
        ((1024, 510), P("fsdp")),  # 510 does not divide by 8
        ((1001, 1003), P()),  # nothing divides
        ((64,), P()),  # small
        ((), P()),
    ],
)
def test_fsdp_shards_the_largest_axis_that_divides_and_leaves_small_arrays_whole(shape, spec):
    assert fsdp_spec(shape, 8, 2**14) == spec


def test_one_device_shards_nothing():
    assert fsdp_spec((512, 512), 1, 0) == P()


def test_the_mesh_takes_all_devices_or_those_asked_for():
    assert dict(make_mesh(Parallel()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(Parallel(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert make_mesh(Parallel(data=1)).size == 1


def test_every_leaf_of_a_state_follows_from_its_shape():
    mesh = make_mesh(Parallel(data=1, fsdp=8))
    leaves = {
        "params": jnp.zeros((256, 128)),
        "moment": jnp.zeros((256, 128)),
        "step": jnp.int32(0),
    }
    shardings = state_sharding(leaves, mesh, 2**10)
    assert shardings["params"].spec == shardings["moment"].spec == P("fsdp")
    assert shardings["step"].spec == P()


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        (Parallel(data=16), "there are 8"),
        (Parallel(fsdp=3), "does not divide the 8 devices"),
        (Parallel(data=0), "at least 1"),
        (Parallel(fsdp=0), "at least 1"),
    ],
)
def test_impossible_meshes_name_the_field(parallel: Parallel, text: str):
    with pytest.raises(DeviceError, match=text):
        make_mesh(parallel, jax.devices())


def test_a_batch_that_does_not_divide_names_one_that_does():
    mesh = make_mesh(Parallel())
    with pytest.raises(DeviceError, match=r"data.batch=60 .* 8 devices: try data.batch=56"):
        check_batch(60, mesh)
    with pytest.raises(DeviceError, match=r"try data.batch=16"):
        check_batch(8, mesh, parts=2)
    check_batch(64, mesh, parts=4)
