"""TPUs and how they are connected: the data of plans for devices that are not here.

Nothing here imports jax before devices are requested: the topology decides how the runtime is set
up.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opsin.errors import UserError

GIGA, TERA, GIB = 10**9, 10**12, 2**30

Shape = tuple[int, ...]


class TopologyError(UserError):
    """A topology that does not exist, or cannot be compiled for here."""


@dataclass(frozen=True)
class Chip:
    """One accelerator. None stands for what nobody has published or measured.

    A chip is one device: the two cores of v4 and v5p work as one ("megacore").

    Attributes:
        name: as in ``"v5e"``.
        peak_flops_bf16: FLOP/s of matrix products of bfloat16. Products of float32 run at this
            rate too at JAX's default precision, which rounds their factors.
        hbm_bytes: memory.
        hbm_bandwidth: bytes a second between memory and chip.
        interconnect_bandwidth: bytes a second that a chip sends over all of its links, and
            receives at the same time: half of what is published as bidirectional.
        shapes: of the slices that are offered, in chips.
        sources: field → where its number is published.
        options: of ``jax.experimental.topologies.get_topology_desc``.
    """

    name: str
    peak_flops_bf16: float | None = None
    hbm_bytes: int | None = None
    hbm_bandwidth: float | None = None
    interconnect_bandwidth: float | None = None
    shapes: tuple[Shape, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


_DOCS = "https://cloud.google.com/tpu/docs"
_V4, _V5E, _V5P, _V6E = (f"{_DOCS}/{page}" for page in ("v4", "v5e", "v5p", "v6e"))
_NUMBERS = ("peak_flops_bf16", "hbm_bytes", "hbm_bandwidth", "interconnect_bandwidth", "shapes")
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SOLID = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8),
    (8, 8, 16), (8, 16, 16),
)  # fmt: skip

MOST_DEVICES = 512
"""Of a CPU, as ``--devices`` has them."""
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            peak_flops_bf16=275 * TERA,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=1200 * GIGA,
            interconnect_bandwidth=300 * GIGA,
            shapes=_SOLID,
            # Its page has no interconnect; six links of 50 GB/s are in the paper.
            sources=dict.fromkeys(_NUMBERS, _V4)
            | {"interconnect_bandwidth": "Jouppi et al., 2023, arXiv:2304.01433, Table 4"},
            options={"chip_config_name": "megacore"},
        ),
        Chip(
            name="v5e",
            peak_flops_bf16=197 * TERA,
            hbm_bytes=16 * GIB,
            hbm_bandwidth=819 * GIGA,
            interconnect_bandwidth=200 * GIGA,
            shapes=_FLAT,
            sources=dict.fromkeys(_NUMBERS, _V5E),
        ),
        Chip(
            name="v5p",
            peak_flops_bf16=459 * TERA,
            hbm_bytes=95 * GIB,
            hbm_bandwidth=2765 * GIGA,
            interconnect_bandwidth=600 * GIGA,
            shapes=(*_SOLID, (16, 16, 16), (16, 16, 24)),
            sources=dict.fromkeys(_NUMBERS, _V5P),
        ),
        Chip(
            name="v6e",
            peak_flops_bf16=918 * TERA,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=1600 * GIGA,
            interconnect_bandwidth=400 * GIGA,
            shapes=_FLAT,
            sources=dict.fromkeys(_NUMBERS, _V6E),
        ),
        Chip(name="cpu"),
    )
}
"""Every chip that can be planned for; a CPU, whose fake devices share its cores, has no numbers."""


@dataclass(frozen=True)
class Topology:
    """A slice of chips: ``v5e:4x4``, or ``cpu:8`` for eight fake devices.

    Attributes:
        chip: what it is made of.
        shape: chips along each axis.
    """

    chip: Chip
    shape: Shape

    def __str__(self) -> str:
        return f"{self.chip.name}:{_written(self.shape)}"

    @property
    def size(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @classmethod
    def parse(cls, text: str) -> Topology:
        """The topology that a text names.

        Raises:
            TopologyError: there is none of that name; those that there are, or the nearest.
        """
        name, colon, written = text.partition(":")
        chip = CHIPS.get(name)
        if chip is None:
            raise TopologyError(
                f"there is no chip {name!r} to plan for: write one of {', '.join(CHIPS)} and a "
                "shape, as in v5e:4x4 or cpu:8"
            )
        sides = written.split("x")
        numbers = [int(s) for s in sides if s.isascii() and s.isdecimal() and len(s) < 6]
        shape = tuple(side for side in numbers if side > 0)
        whole = bool(colon) and len(shape) == len(sides)
        if not chip.shapes:
            if not whole or len(shape) != 1:
                raise TopologyError(f"{text[:80]!r} is no topology: write {name}:N, as in {name}:8")
            if shape[0] > MOST_DEVICES:
                raise TopologyError(f"{name}:{shape[0]} is more than {MOST_DEVICES} devices")
        elif shape not in chip.shapes or not whole:
            known = [_written(shape) for shape in chip.shapes]
            if whole:  # nearest in the number of chips
                asked = math.prod(shape)
                distances = {s: abs(math.log(math.prod(s) / asked)) for s in chip.shapes}
                near = _written(min(chip.shapes, key=lambda s: (distances[s], s)))
            else:
                near = difflib.get_close_matches(written, known, n=1, cutoff=0.0)[0]
            raise TopologyError(
                f"there is no topology {text!r}, did you mean {name}:{near}? The slices of {name} "
                f"are {', '.join(known)} ({chip.sources['shapes']})"
            )
        return cls(chip, shape)

    def devices(self) -> Sequence[Any]:
        """Its devices, for a mesh; only CPU devices need to be here.

        Raises:
            TopologyError: without the compiler for TPUs, or with too few fake devices.
        """
        import jax  # once the runtime is set up
        from jax.experimental import topologies

        if self.chip.name == "cpu":
            here = jax.devices("cpu")
            if len(here) < self.size:
                raise TopologyError(f"{self} takes {self.size} devices, and there are {len(here)}")
            return here[: self.size]
        if importlib.util.find_spec("libtpu") is None:
            raise TopologyError(
                f"{self} needs the compiler for TPUs, which is not here and needs no TPU: "
                "pip install -e '.[tpu]'"
            )
        alone = {"chips_per_host_bounds": [1, 1, 1]} if self.size == 1 else {}
        return topologies.get_topology_desc(
            platform="tpu", topology_name=str(self), **self.chip.options, **alone
        ).devices


def _written(shape: Shape) -> str:
    return "x".join(map(str, shape))
