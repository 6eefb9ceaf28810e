import pytest

from tests.drawn import variables


@pytest.fixture(scope="session")
def randomise():
    """A function (module, *inputs) -> variables; see ``tests.drawn``."""
    return lambda module, *inputs: variables(module.init, *inputs)
