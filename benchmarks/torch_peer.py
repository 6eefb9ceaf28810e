"""PyTorch, eager and compiled, in whichever memory layout is faster here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import grad

from opsin.benchmarks.cases import ALPHA, CASES, SIGMA, Case
from opsin.benchmarks.convolutions import CONVOLUTIONS
from opsin.benchmarks.torch_models import NETWORKS
from opsin.benchmarks.worker import Prepared
from opsin.train.methods import sgd

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {"memory_format": torch.contiguous_format},
    "channels last": {"memory_format": torch.channels_last},
}


def prepare(name: str, phase: str) -> Prepared:
    """A case of ``CASES`` in ``"training"`` or ``"inference"``, eager."""
    networks = {layout: NETWORKS[name]() for layout in LAYOUTS}
    runs = {layout: start(CASES[name], networks[layout], phase, layout) for layout in LAYOUTS}
    layout = fastest(runs)
    parameters = sum(parameter.numel() for parameter in networks[layout].parameters())
    about = {"parameters": parameters, "layout": layout, "threads": torch.get_num_threads()}
    return Prepared(runs[layout], about)


def prepare_compiled(name: str, phase: str) -> Prepared:
    """The same under ``torch.compile``, in the layout that is faster without."""
    about = prepare(name, phase).about
    run = start(CASES[name], NETWORKS[name](), phase, about["layout"], wrap=torch.compile)
    run(2)
    return Prepared(run, about)


def prepare_convolution(name: str, phase: str) -> Prepared:
    """One of ``CONVOLUTIONS`` in ``"forward"``, ``"input gradient"`` or ``"weight gradient"``."""
    shape = CONVOLUTIONS[name]
    orders = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)

    def start(layout: dict[str, Any]) -> Callable[[int], None]:
        images, kernel, gradient = (
            torch.from_numpy(array).permute(order).contiguous(**layout)
            for array, order in zip(shape.arrays(), orders, strict=True)
        )
        options: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding}
        compute = {
            "forward": lambda: F.conv2d(images, kernel, **options),
            "input gradient": lambda: grad.conv2d_input(images.shape, kernel, gradient, **options),
            "weight gradient": lambda: grad.conv2d_weight(
                images, kernel.shape, gradient, **options
            ),
        }[phase]

        def run(steps: int) -> None:
            for _ in range(steps):
                compute()

        return run

    runs = {name: start(layout) for name, layout in LAYOUTS.items()}
    return Prepared(runs[fastest(runs)])


def start(
    case: Case,
    network: nn.Module,
    phase: str,
    layout: str,
    *,
    wrap: Callable[[nn.Module], Any] = lambda network: network,
) -> Callable[[int], None]:
    """``run(steps)`` of a network on one batch in a memory layout."""
    images, labels = (torch.from_numpy(array) for array in case.batch_on_host())
    images = images.permute(0, 3, 1, 2).contiguous(**LAYOUTS[layout])
    labels = labels.long()
    network = network.to(**LAYOUTS[layout]).train(phase == "training")
    forward, optimizer = wrap(network), make_optimizer(case, network)

    told = [torch.from_numpy(array) for array in case.told()]
    alpha, sigma = (torch.from_numpy(level) for level in (ALPHA, SIGMA))

    def denoise(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            times = torch.randint(1, len(ALPHA), (len(images),))
            noise = torch.randn_like(images)
            level = [each[times, None, None, None] for each in (alpha, sigma)]
            noisy = level[0] * (2 * images - 1) + level[1] * noise
            F.mse_loss(forward(noisy, times.float()), noise).backward()
            optimizer.step()

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            logits = forward(images)
            loss = F.cross_entropy(logits, labels)
            (logits.argmax(1) == labels).float().mean()  # the other loops measure it too
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def infer(steps: int) -> None:
        for _ in range(steps):
            forward(images, *told)

    learn = denoise if case.denoises else train
    return learn if phase == "training" else infer


def make_optimizer(case: Case, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the case, which decays kernels only, in PyTorch's fastest form."""
    kernels, others = [], []
    for name, parameter in network.named_parameters():
        is_kernel = name.endswith("weight") and parameter.ndim > 1
        (kernels if is_kernel else others).append(parameter)
    options = case.optimizer
    groups = [
        {"params": kernels, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if options.method is sgd:
        return torch.optim.SGD(
            groups, options.learning_rate, momentum=0.9, nesterov=True, fused=True
        )
    return torch.optim.AdamW(groups, options.learning_rate, fused=True)


def fastest(runs: Mapping[str, Callable[[int], object]]) -> str:
    """The name of the run whose best step of seven, after one to warm up, takes the least time."""
    best = dict.fromkeys(runs, float("inf"))
    for repeat in range(8):
        for name, run in runs.items():
            began = time.perf_counter()
            run(1)
            if repeat > 0:
                best[name] = min(best[name], time.perf_counter() - began)
    return min(best, key=best.__getitem__)
