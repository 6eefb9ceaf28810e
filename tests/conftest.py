"""Eight CPU devices for the whole session, fixed before jax is first used."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config: pytest.Config):
    # Compilation is most of the time of fast tests, and a quarter of it is for speed they do not
    # need. Slow ones train.
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of processes that tests start
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key():
    return jax.random.key(0)
