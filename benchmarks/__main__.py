"""Steps of Opsin beside those of plain Flax and PyTorch, on the CPU: same network, same batch.

    make bench
    python -m opsin.benchmarks --cases lenet5 vit --runs 9

Each peer has a process of its own. They run by turns, and the ratio is taken of neighbours, so that
a machine that is slow for a while is so for both. Writes ``results/benchmarks.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from opsin.benchmarks import tables
from opsin.benchmarks.cases import CASES
from opsin.benchmarks.race import Ratio, Times, add_options, take_turns
from opsin.benchmarks.worker import PeerError, Worker
from opsin.train.host.accounting import matmul_peak

OPSIN = "opsin.benchmarks.opsin_peer:prepare"
FLAX = {"flax": "opsin.benchmarks.flax_peer:prepare"}
TORCH = {
    "pytorch": "opsin.benchmarks.torch_peer:prepare",
    "torch.compile": "opsin.benchmarks.torch_peer:prepare_compiled",
}
PHASES = ("training", "inference")
LEGEND = """\
Times are medians. A ratio is the peer's time over Opsin's, of runs that follow each other: above 1
Opsin is faster; the range is that of all pairs. Everything is float32. Opsin takes the step that
`opsin run` takes, on images that live in memory as bytes; the peers get a finished batch. Flax is
the same network with linen's own convolutions, pooling and norms and unrolled blocks, in the loop
of Flax's examples, without XLA's options and the memory setting of a run. PyTorch is eager, with a
fused optimiser, in the memory layout that is faster here; torch.compile, which measures that for
itself, takes the layout in which eager is faster.
FLOPs are those of matrix products and convolutions as the network asks for them; the peak is that
of a product of two matrices in JAX, measured just before; a convolution can exceed it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Races the cases that are asked for, and writes the files after each."""
    parser = argparse.ArgumentParser(prog="python -m opsin.benchmarks", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    add_options(parser, runs=15, seconds=0.35)
    options = parser.parse_args(arguments)
    peers = FLAX | (TORCH if tables.has_torch() else {})
    jax.config.update("jax_platforms", "cpu")
    peak = matmul_peak()
    origin = tables.origin("python -m opsin.benchmarks", arguments, peak)
    rows: list[dict[str, Any]] = []
    for name in options.cases:
        duels = race(name, peers, runs=options.runs, seconds=options.seconds)
        rows += [row | {"versions": origin["versions"]} for row in rows_of(name, duels, peak)]
        tables.write(options.output / "benchmarks", rows, page(rows, origin))
    print(options.output / "benchmarks.md")


def race(
    name: str, peers: Mapping[str, str], *, runs: int, seconds: float
) -> dict[tuple[str, str], tuple[Times, Times]]:
    """(phase, peer) → what Opsin and the peer took; a peer that cannot run is said and left out.

    Args:
        name: of the case.
        peers: name → its ``Prepare``.
        runs: timed runs of each.
        seconds: length of a run.
    """
    duels = {}
    with Worker(OPSIN) as opsin:
        for peer, path in peers.items():
            with Worker(path) as rival:
                for phase in PHASES:
                    print(f"{CASES[name].title}, {phase}, {peer}: ", end="", flush=True)
                    opsin.run(name, phase, 1)  # what fails here is no fault of the peer
                    try:
                        ours, theirs = take_turns(
                            [opsin, rival], name, phase, runs=runs, seconds=seconds
                        )
                    except PeerError as error:
                        print(f"left out: {error}", flush=True)
                        continue
                    same = ours.about["parameters"] == theirs.about["parameters"]
                    assert same, f"{peer} runs another network"
                    ratio = Ratio.of(ours.seconds, theirs.seconds)
                    print(f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", flush=True)
                    duels[phase, peer] = ours, theirs
    return duels


def rows_of(
    name: str, duels: Mapping[tuple[str, str], tuple[Times, Times]], peak: float
) -> list[dict[str, Any]]:
    """Rows of one case: in each phase Opsin, then its peers. ``peak`` is FLOP/s of the machine."""
    case, rows = CASES[name], []
    for phase in PHASES:
        pairs = {peer: pair for (when, peer), pair in duels.items() if when == phase}
        if not pairs:
            continue
        about = next(iter(pairs.values()))[0].about
        own = Times([time for ours, _ in pairs.values() for time in ours.seconds], about)
        for peer, (ours, theirs) in {"opsin": (own, own), **pairs}.items():
            ratio = None if theirs is own else Ratio.of(ours.seconds, theirs.seconds)
            flops = about["flops"] / theirs.median
            rows.append(
                {
                    "case": name,
                    "phase": phase,
                    "peer": peer,
                    "layout": theirs.about.get("layout"),
                    "batch": case.batch,
                    "parameters": theirs.about["parameters"],
                    "runs": len(theirs.seconds),
                    "milliseconds": theirs.median * 1e3,
                    "images_per_second": case.batch / theirs.median,
                    "gflops": flops / 1e9,
                    "peak_fraction": flops / peak,
                    "ratio": ratio and ratio.median,
                    "ratio_low": ratio and ratio.low,
                    "ratio_high": ratio and ratio.high,
                    "target": case.targets.get(peer) if phase == "training" else None,
                }
            )
    return rows


def page(rows: Sequence[Mapping[str, Any]], origin: Mapping[str, str]) -> str:
    """The table for people."""
    header = ["network", "phase", "peer", "ms", "images/s", "GFLOP/s", "of the peak"]
    lines = [[*header, "ratio (range)", "target"]]
    for row in rows:
        ratio = target = ""
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        if row["target"] is not None:
            verdict = "met" if row["ratio"] >= row["target"] else "missed"
            target = f"{row['target']:.2f}, {verdict}"
        layout = f", {row['layout']}" if row["layout"] else ""
        lines.append(
            [
                f"{CASES[row['case']].title}, batch {row['batch']}",
                row["phase"],
                f"{row['peer']}{layout}",
                *(tables.number(row[name]) for name in ("milliseconds", "images_per_second")),
                tables.number(row["gflops"]),
                f"{row['peak_fraction']:.1%}",
                ratio,
                target,
            ]
        )
    return tables.page("Speed beside its peers", LEGEND, lines, origin)


if __name__ == "__main__":
    main()
