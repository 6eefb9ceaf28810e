"""What may be typed behind ``opsin``. Nothing here imports jax."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

RESULTS = Path("results")
SAMPLERS = ("ancestral", "ddim", "dpm++2m", "heun", "langevin", "predictor-corrector")

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"opsin: {message}: see {self.prog} --help\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _processes(text: str) -> int | None:
    """A number, or None for ``auto``."""
    return None if text == "auto" else _positive(text)


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, counted from 0")
    return int(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, as in 10.0.0.1:7777")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not first:last, two steps counted from 1, as in 10:12"
        )
    return int(first), int(last)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _parallelism(text: str) -> dict[str, int]:
    axes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not axis.isidentifier() or not size.removeprefix("-").isdecimal() or axis in axes:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not axes with their sizes, as in data=16,fsdp=16"
            )
        axes[axis] = int(size)
    return axes


def make_parser(run: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of all commands; the options that it gives hold the function of theirs."""
    parser = _Parser(
        prog="opsin", description="Computer-vision research: define, sweep, run, report."
    )
    parser.set_defaults(trace=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shared = _Parser(add_help=False)
    shared.add_argument("--trace", action="store_true", help="show the trace of an error")

    runtime = _Parser(add_help=False, parents=[shared])
    group = runtime.add_argument_group("runtime")
    group.add_argument("--platform", choices=("cpu", "cuda", "tpu"), help="default: the best")
    group.add_argument("--devices", type=_positive, metavar="N", help="fake N devices on the CPU")
    group.add_argument("--deterministic", action="store_true", help="same bits on a GPU, slower")
    group.add_argument("--memory-fraction", type=_share, metavar="F", help="GPU memory to reserve")
    group.add_argument("--cache", type=Path, help="place of compiled programs")

    training = _Parser(add_help=False)
    group = training.add_argument_group("output")
    group.add_argument("--workdir", type=Path, default=Path("runs"), help="default: runs")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--tensorboard", action="store_true", help="also write event files")
    group.add_argument("--wandb", action="store_true", help="also log to Weights & Biases")

    command = commands.add_parser("list", help="every experiment with its claim", parents=[shared])
    command.set_defaults(command=run["list"])

    command = commands.add_parser("run", help="train one", parents=[runtime, training])
    _add_name_and_overrides(command)
    command.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    command.add_argument(
        "--profile", type=_steps, metavar="A:B", help="trace the steps A to B (whole dispatches)"
    )
    group = command.add_argument_group(
        "several processes",
        "One command on each machine, the same but for --process; see docs/pods.md. Under srun and "
        "on GKE's TPUs they find one another by themselves, and by --processes auto also elsewhere "
        "that jax knows its way.",
    )
    group.add_argument("--coordinator", type=_address, metavar="HOST:PORT", help="of process 0")
    group.add_argument("--processes", type=_processes, default=1, metavar="N", help="or auto")
    group.add_argument("--process", type=_index, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--timeout", type=_seconds, default=100.0, metavar="SECONDS",
        help="how long the others may take to come, or be silent; default: 100",
    )  # fmt: skip
    command.set_defaults(command=run["run"])

    command = commands.add_parser("sweep", help="run an ablation", parents=[runtime, training])
    _add_name_and_overrides(command)
    command.add_argument("--seeds", type=_positive, metavar="N", help="default: those of its table")
    command.add_argument("--index", type=int, default=0, metavar="I", help="this machine's share")
    command.add_argument("--of", type=_positive, default=1, metavar="N", help="number of shares")
    command.add_argument("--dry-run", action="store_true", help="only list the runs")
    command.set_defaults(command=run["sweep"])

    command = commands.add_parser(
        "plan", help="compile for devices that are not here, and predict", parents=[shared]
    )
    _add_name_and_overrides(command)
    command.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="such as v5e:16x16 or cpu:8"
    )
    command.add_argument(
        "--parallelism", type=_parallelism, default={}, metavar="AXIS=N,…",
        help="the mesh, such as data=16,fsdp=16",
    )  # fmt: skip
    command.add_argument("--global-batch", type=_positive, metavar="N", help="images of a step")
    command.add_argument("--sweep", action="store_true", help="also other batches and meshes")
    command.add_argument(
        "--out", type=Path, metavar="JSON", help="default: plans/NAME-TOPOLOGY.json"
    )
    command.set_defaults(command=run["plan"])

    command = commands.add_parser("report", help="write tables and figures", parents=[shared])
    command.add_argument("name", nargs="?", metavar="NAME", help="default: all of results/")
    command.add_argument("--workdir", type=Path, default=Path("runs"), help="default: runs")
    command.add_argument("--results", type=Path, default=RESULTS, help="default: results")
    command.add_argument("--readme", type=Path, default=Path("README.md"), help="its table")
    command.add_argument("--check", action="store_true", help="compare, change nothing")
    command.set_defaults(command=run["report"])

    command = commands.add_parser("inspect", help="draw training batches", parents=[runtime])
    _add_name_and_overrides(command)
    command.add_argument("--batches", type=_positive, default=1, metavar="N", help="default: 1")
    command.add_argument("--output", type=Path, metavar="PNG", help="default: NAME_batch.png")
    command.set_defaults(command=run["inspect"])

    command = commands.add_parser("predict", help="ask a run about images", parents=[runtime])
    command.add_argument("run", type=Path, metavar="RUN", help="its directory, runs/NAME/ID")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument(
        "--output", type=Path, default=Path("predictions"), help="default: predictions"
    )
    command.set_defaults(command=run["predict"])

    images = _Parser(add_help=False, parents=[runtime])
    images.add_argument("run", type=Path, metavar="RUN", help="its directory, runs/NAME/ID")
    images.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    images.add_argument(
        "--weights", choices=("ema", "raw"), help="default: the moving average, if there is one"
    )
    group = images.add_argument_group(
        "diffusion",
        "default: as the run was configured. A step asks the network once, of heun and "
        "predictor-corrector twice, of langevin once a correction; guidance doubles the work. "
        "dpm++2m and heun need 10 to 20 steps, ddim 50, ancestral 100 and more; langevin is for "
        "networks of scores.",
    )
    group.add_argument("--sampler", choices=SAMPLERS, help="how noise is taken away")
    group.add_argument("--steps", type=_positive, metavar="N", help="of the sampler")
    group.add_argument("--guidance", type=float, metavar="G", help="1 is without, 3 is much")

    command = commands.add_parser("sample", help="images that a run makes", parents=[images])
    command.add_argument("--class", type=int, dest="label", metavar="C", help="default: in turn")
    command.add_argument("--n", type=_positive, default=64, metavar="N", help="default: 64")
    command.add_argument("--path", action="store_true", help="also how they come out of noise")
    command.add_argument("--output", type=Path, default=Path("samples"), help="default: samples")
    command.set_defaults(command=run["sample"])

    command = commands.add_parser(
        "inpaint",
        help="fill in the rest of an image by a diffusion model",
        parents=[images],
        epilog="In place of a sampler that remembers its steps, as dpm++2m, stand 100 steps of "
        "ancestral, each done --resamplings times.",
    )
    command.add_argument("--class", type=int, dest="label", metavar="C", help="default: none")
    command.add_argument("image", type=Path, metavar="IMAGE", help="of the size that the run makes")
    command.add_argument("mask", type=Path, metavar="MASK", help="white where to fill in")
    command.add_argument("--n", type=_positive, default=8, metavar="N", help="default: 8")
    command.add_argument(
        "--resamplings", type=_positive, default=10, metavar="R", help="of each step; default: 10"
    )
    command.add_argument(
        "--output", type=Path, default=Path("inpainted"), help="default: inpainted"
    )
    command.set_defaults(command=run["inpaint"])

    command = commands.add_parser(
        "evaluate",
        help="measure a run again, or in another way; nothing trains",
        parents=[runtime],
        epilog="Without a name: the metrics of all splits and what the experiment measures as it "
        "stands. Each goes to RUN/evaluations, where opsin report finds it.",
    )
    command.add_argument("run", type=Path, metavar="RUN", help="its directory, runs/NAME/ID")
    command.add_argument(
        "overrides", nargs="*", metavar="MEASUREMENT [path=value …]",
        help="such as SampleQuality samples=2000, or Probe untrained=True",
    )  # fmt: skip
    command.set_defaults(command=run["evaluate"])

    command = commands.add_parser(
        "embed", help="features of images, and a map of them", parents=[runtime]
    )
    command.add_argument("run", type=Path, metavar="RUN", help="its directory, runs/NAME/ID")
    command.add_argument(
        "--layer",
        choices=("features", "head"),
        default="features",
        help="what goes into the network's head (default), or what it gives",
    )
    command.add_argument("--split", default="test", metavar="S", help="default: test")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    command.add_argument(
        "data", nargs="?", metavar="DATA", help="such as folder:PATH; default: the run's own"
    )
    command.add_argument(
        "--n", type=_positive, default=2000, metavar="N", help="images, at most; default: 2000"
    )
    command.add_argument("--output", type=Path, help="default: RUN/embedding")
    command.set_defaults(command=run["embed"])

    command = commands.add_parser(
        "export", help="save the weights of a run as safetensors", parents=[runtime]
    )
    command.add_argument("run", type=Path, metavar="RUN", help="its directory, runs/NAME/ID")
    command.add_argument("output", type=Path, metavar="FILE", help="such as lenet.safetensors")
    command.set_defaults(command=run["export"])
    return parser


def _add_name_and_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of an experiment, see opsin list")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="e.g. data.batch=64")
