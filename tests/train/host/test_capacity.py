"""What does not fit into memory is refused in one line, before it is allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opsin.config.tree import override
from opsin.train.host import capacity
from opsin.train.loop import fit
from opsin.train.sharding import DeviceError
from tests.train.conftest import make_tiny


@pytest.fixture
def of_a_megabyte(monkeypatch):
    monkeypatch.setattr(capacity, "memory_of", lambda device: 10**6)


def laid_out(shape, spec, dtype=jnp.float32):
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def images(n):
    return {"image": jax.ShapeDtypeStruct((n, 10, 10, 1), jnp.uint8)}


def test_a_state_counts_by_what_a_device_holds_of_it(of_a_megabyte):
    capacity.check_state([laid_out((250_000,), ())])  # a megabyte to the byte
    with pytest.raises(DeviceError, match=r"moments and averages would take 0\.001 GB.*fsdp=N"):
        capacity.check_state([laid_out((250_004,), ())])
    capacity.check_state([laid_out((1_000_000,), ("fsdp",))])  # a quarter each
    with pytest.raises(DeviceError):
        capacity.check_state([laid_out((1_000_000,), ("fsdp",)), laid_out((1,), ())])


def test_the_share_of_a_batch_must_fit_a_device(of_a_megabyte):
    capacity.check_images(images(3), 20_000, 2, "data.batch")
    with pytest.raises(DeviceError, match=r"one batch of images.*a smaller data\.batch"):
        capacity.check_images(images(3), 20_002, 2, "data.batch")


def test_batches_of_training_and_evaluation_are_looked_at_before_the_run(of_a_megabyte, tmp_path):
    for field in ("data.batch", "data.eval_batch"):
        experiment = override(make_tiny(), {field: 10**5, "parallel.data": 1})
        with pytest.raises(DeviceError, match=rf"one batch of images.*a smaller {field}"):
            fit(experiment, tmp_path / "run", config={}, progress=False)


def test_a_step_counts_by_what_it_keeps_in_between(of_a_megabyte):
    def compiled(n):
        # Sorted, for a sum alone would be fused and hold nothing.
        work = jax.jit(lambda x: jnp.sort(jnp.outer(x, x).ravel())[0])
        return work.lower(jax.ShapeDtypeStruct((n,), jnp.float32)).compile()

    capacity.check_step(compiled(100))
    with pytest.raises(DeviceError, match=r"a training step would take .*loop\.accumulate=N"):
        capacity.check_step(compiled(1000))
    capacity.check_step(lambda *arguments: None)  # pmap says nothing


def test_a_cpu_has_the_memory_of_its_machine_shared_by_its_devices():
    (first, *_) = jax.local_devices()
    there = capacity.memory_of(first)
    assert 10**7 < there * jax.local_device_count() < 10**14
