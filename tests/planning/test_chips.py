"""Topologies that exist, those that do not, and where every number comes from."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from opsin.planning.chips import CHIPS, Chip, Topology, TopologyError

TPUS = [chip for chip in CHIPS.values() if chip.name != "cpu"]


@pytest.mark.parametrize(
    ("text", "shape", "size"),
    [
        ("v4:2x2x1", (2, 2, 1), 4),
        ("v5e:2x4", (2, 4), 8),
        ("v5e:4x4", (4, 4), 16),
        ("v5p:2x2x1", (2, 2, 1), 4),
        ("v6e:16x16", (16, 16), 256),
        ("cpu:8", (8,), 8),
    ],
)
def test_a_topology_is_a_chip_and_a_shape(text, shape, size):
    topology = Topology.parse(text)
    assert topology == Topology(CHIPS[text.partition(":")[0]], shape)
    assert topology.size == size
    assert str(topology) == text


@pytest.mark.parametrize("chip", TPUS, ids=lambda chip: chip.name)
def test_all_slices_of_a_chip_have_names(chip):
    for shape in chip.shapes:
        topology = Topology.parse(f"{chip.name}:{'x'.join(map(str, shape))}")
        assert (topology.shape, topology.size) == (shape, math.prod(shape))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "there is no chip 'v9' to plan for: write one of v4, v5e, v5p, v6e, cpu and a"),
        ("", "there is no chip ''"),
        ("v5e", "there is no topology 'v5e', did you mean v5e:"),
        (
            "v5e:16x17",
            "there is no topology 'v5e:16x17', did you mean v5e:16x16? The slices of v5e",
        ),
        ("v5e:4x4x4", "did you mean v5e:8x8? "),
        ("v5e:3x3", "did you mean v5e:2x4? "),
        ("v5e:32x32", "did you mean v5e:16x16? "),
        ("v5e:4x-4", "did you mean v5e:4x4? "),
        ("v4:2x2", "did you mean v4:2x2x"),
        ("cpu", "'cpu' is no topology: write cpu:N, as in cpu:8"),
        ("cpu:0", "'cpu:0' is no topology"),
        ("cpu:\N{FULLWIDTH DIGIT EIGHT}", "is no topology"),  # of another script
        ("cpu:" + "9" * 5000, "is no topology"),
        ("cpu:99999", "cpu:99999 is more than 512 devices"),
        ("cpu:2x4", "'cpu:2x4' is no topology"),
    ],
)
def test_a_topology_that_does_not_exist_is_answered_with_those_that_do(text, message):
    with pytest.raises(TopologyError) as caught:
        Topology.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chip", TPUS, ids=lambda chip: chip.name)
def test_every_number_of_a_chip_has_a_source(chip):
    described = {"name", "sources", "options"}
    numbers = {field.name for field in dataclasses.fields(Chip)} - described
    assert {name for name in numbers if getattr(chip, name)} == numbers
    assert chip.sources.keys() == numbers
    assert all("cloud.google.com" in text or "arXiv" in text for text in chip.sources.values())


def test_a_cpu_has_no_numbers():
    assert CHIPS["cpu"] == Chip("cpu")


def test_fake_devices_are_those_of_here():
    assert list(Topology.parse("cpu:4").devices()) == jax.devices()[:4]
    with pytest.raises(TopologyError, match="cpu:9 takes 9 devices, and there are 8"):
        Topology.parse("cpu:9").devices()


def test_without_the_compiler_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=r"v5e:4x4 needs .*: pip install -e '\.\[tpu\]'"):
        Topology.parse("v5e:4x4").devices()


RESOLVE = """
import json
from opsin.commands.runtime import Runtime, set_up
set_up(Runtime(platform="cpu", tpu_compiler=True))
from opsin.planning.chips import CHIPS, Topology
found = {}
for chip in CHIPS.values():
    for shape in chip.shapes:
        topology = Topology(chip, shape)
        found[str(topology)] = [len(topology.devices()), topology.devices()[0].platform]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_compiler_knows_every_topology_with_one_device_a_chip():
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE], capture_output=True, text=True, check=True, env=os.environ
    )
    found = json.loads(done.stdout)
    assert len(found) == sum(len(chip.shapes) for chip in TPUS)
    assert found == {text: [Topology.parse(text).size, "tpu"] for text in found}
