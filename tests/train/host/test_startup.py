"""The clock of a start."""

import jax.numpy as jnp
import pytest

from opsin.train.host.startup import StartUp


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time: set it."""
    times = [100.0]
    monkeypatch.setattr("opsin.train.host.startup.time.monotonic", lambda: times[0])
    return times


def test_parts_follow_one_another_and_add_up(now):
    clock = StartUp(began=98.5)
    now[0] = 102.0
    clock.lap("data")
    now[0] = 105.5
    assert clock.finish(jnp.zeros(()))
    now[0] = 200.0
    assert not clock.finish(jnp.zeros(()))  # of later steps there is nothing to say
    assert clock.seconds == {"imports": 1.5, "data": 2.0, "first step": 3.5}
    assert clock.line() == "ready in 7.0 s: imports 1.5, data 2.0, first step 3.5"


def test_a_line_names_the_longest_parts(now):
    clock = StartUp()
    for part, seconds in enumerate((5.0, 1.0, 20.0, 3.0, 0.5, 4.0)):
        now[0] += seconds
        clock.lap(f"part {part}")
    assert clock.line() == "ready in 33.5 s: part 0 5.0, part 2 20.0, part 3 3.0, part 5 4.0"


def test_a_start_from_within_python_has_no_imports(now):
    clock = StartUp()
    now[0] = 101.0
    clock.lap("data")
    assert clock.seconds == {"data": 1.0}
