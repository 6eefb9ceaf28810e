"""The speed of single convolutions and their gradients: ours, the stock one of JAX and PyTorch's.

    python -m opsin.benchmarks.convolutions

The shapes are those of the networks here. Writes ``results/convolutions.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax

from opsin.benchmarks import tables
from opsin.benchmarks.race import add_options, take_turns
from opsin.benchmarks.worker import Prepared, Worker
from opsin.models.layers import convolve
from opsin.train.compiler import compiler_options
from opsin.train.host.accounting import matmul_peak


@dataclass(frozen=True)
class Convolution:
    """Square images, a square kernel."""

    batch: int
    size: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1

    @property
    def result(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        """Of the result, and of each of its two gradients."""
        pixels = self.batch * self.result**2
        return 2 * pixels * self.kernel**2 * self.inputs * self.outputs

    def arrays(self) -> list[np.ndarray]:
        """Images [B, H, W, C], kernel [K, K, C, D] and a gradient of the result [B, H', W', D]."""
        shapes = (
            (self.batch, self.size, self.size, self.inputs),
            (self.kernel, self.kernel, self.inputs, self.outputs),
            (self.batch, self.result, self.result, self.outputs),
        )
        generator = np.random.default_rng(0)
        return [generator.standard_normal(shape, np.float32) for shape in shapes]

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return (
            f"{self.kernel}x{self.kernel}{stride}, {self.inputs} to {self.outputs}, "
            f"{self.batch} of {self.size}x{self.size}"
        )


SHAPES = {
    "LeNet-5": [
        Convolution(128, 32, 1, 6, kernel=5, padding=0),
        Convolution(128, 14, 6, 16, kernel=5, padding=0),
        Convolution(128, 5, 16, 120, kernel=5, padding=0),
    ],
    "ResNet-20": [
        Convolution(64, 32, 3, 16),
        Convolution(64, 32, 16, 16),
        Convolution(64, 32, 16, 32, stride=2),
        Convolution(64, 16, 32, 32),
        Convolution(64, 16, 32, 64, stride=2),
        Convolution(64, 8, 64, 64),
    ],
    "ResNet-18": [
        Convolution(64, 32, 3, 64),
        Convolution(64, 32, 64, 64),
        Convolution(64, 32, 64, 128, stride=2),
        Convolution(64, 32, 64, 128, kernel=1, stride=2, padding=0),
        Convolution(64, 16, 128, 128),
        Convolution(64, 16, 128, 256, stride=2),
        Convolution(64, 8, 256, 256),
        Convolution(64, 8, 256, 512, stride=2),
        Convolution(64, 4, 512, 512),
    ],
    "ViT": [Convolution(64, 32, 3, 384, kernel=4, stride=4, padding=0)],
    "U-Net": [
        Convolution(4, 128, 16, 16),
        Convolution(4, 64, 32, 32),
        Convolution(4, 32, 64, 64),
        Convolution(4, 16, 128, 128),
        Convolution(4, 8, 256, 256),
    ],
    "DDPM U-Net": [
        Convolution(32, 32, 128, 128),
        Convolution(32, 16, 256, 256),
        Convolution(32, 8, 256, 256),
    ],
}
CONVOLUTIONS = {str(shape): shape for shapes in SHAPES.values() for shape in shapes}
PHASES = ("forward", "input gradient", "weight gradient")
JAX = {
    "opsin": "opsin.benchmarks.convolutions:prepare_opsin",
    "stock": "opsin.benchmarks.convolutions:prepare_stock",
}
TORCH = {"pytorch": "opsin.benchmarks.torch_peer:prepare_convolution"}
LEGEND = """\
GFLOP/s in float32, counted as 2·B·H'·W'·K²·C·D for the result and for each gradient. Medians of
runs by turns. PyTorch has the memory layout that is faster for it."""


def prepare_opsin(name: str, phase: str) -> Prepared:
    """The convolution of ``models/``."""
    return _prepare_jax(convolve, name, phase, compiler_options("cpu"))


def prepare_stock(name: str, phase: str) -> Prepared:
    """The convolution that JAX ships."""
    return _prepare_jax(lax.conv_general_dilated, name, phase, None)


def _prepare_jax(
    convolution: Callable[..., Any], name: str, phase: str, options: dict[str, Any] | None
) -> Prepared:
    shape = CONVOLUTIONS[name]

    def forward(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(
            images,
            kernel,
            (shape.stride, shape.stride),
            [(shape.padding, shape.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @partial(jax.jit, compiler_options=options)
    def compute(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        if phase == "forward":
            return forward(images, kernel)
        if phase == "input gradient":
            return jax.vjp(lambda images: forward(images, kernel), images)[1](gradient)
        return jax.vjp(lambda kernel: forward(images, kernel), kernel)[1](gradient)

    arrays = jax.device_put(shape.arrays())

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(compute(*arrays))

    return Prepared(run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Times every convolution, and writes the files after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    add_options(parser, runs=5, seconds=0.1)
    options = parser.parse_args(arguments)
    peers = JAX | (TORCH if tables.has_torch() else {})
    jax.config.update("jax_platforms", "cpu")
    origin = tables.origin("python -m opsin.benchmarks.convolutions", arguments, matmul_peak())
    rows: list[dict[str, Any]] = []
    lines = [["network", "convolution", "what", *peers]]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(path)) for path in peers.values()]
        for network in options.networks:
            for shape, phase in itertools.product(SHAPES[network], PHASES):
                times = take_turns(
                    workers, str(shape), phase, runs=options.runs, seconds=options.seconds
                )
                rates = [shape.flops / time.median / 1e9 for time in times]
                rows += [
                    {"network": network, "convolution": str(shape), "what": phase, "peer": peer}
                    | {"milliseconds": time.median * 1e3, "gflops": rate}
                    for peer, time, rate in zip(peers, times, rates, strict=True)
                ]
                lines.append([network, str(shape), phase, *map(tables.number, rates)])
                print("  ".join(lines[-1]), flush=True)
                page = tables.page("Convolutions, one by one", LEGEND, lines, origin)
                tables.write(options.output / "convolutions", rows, page)
    print(options.output / "convolutions.md")


if __name__ == "__main__":
    main()
