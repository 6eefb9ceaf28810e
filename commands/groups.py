"""Flags that several commands share. jax is not imported to read them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from opsin.commands import runtime
from opsin.commands.values import Count, Folder, Index, Seed, number, one_of, whole
from opsin.config import catalogue
from opsin.config.tree import at, check, children, override, parse_all
from opsin.errors import ConfigError

if TYPE_CHECKING:
    from opsin.commands.runs import Options
    from opsin.train.experiment import Experiment

PLATFORMS = ("cpu", "cuda", "tpu")
SAMPLERS = ("ancestral", "ddim", "dpm++2m", "heun", "langevin", "predictor-corrector")


@dataclass(frozen=True)
class Runtime:
    """Where it runs.

    Attributes:
        platform: default: the best available
        devices: number of CPU devices to fake
        deterministic: bit-for-bit reproducible on a GPU, but slower
        memory_fraction: share of the GPU's memory to reserve
        cache: directory of compiled programs
    """

    platform: Annotated[str | None, one_of(*PLATFORMS)] = None
    devices: Annotated[int | None, whole(1, 512)] = None
    deterministic: bool = False
    memory_fraction: Annotated[float | None, number(0, 1, "a share")] = None
    cache: Folder[Path | None] = None

    def set_up(self, *, alone: bool = True) -> None:
        """Sets up the runtime; jax may be imported from then on.

        Args:
            alone: False if jax must not start yet, because this process has to join others first:
                call ``require`` after that.

        Raises:
            ConfigError: if options exclude each other, or the platform is not there.
        """
        runtime.set_up(runtime.Runtime(**vars(self)))
        if alone:
            self.require()

    def require(self) -> None:
        """Starts jax on the requested platform, if there is one."""
        if self.platform:
            runtime.require(self.platform)


@dataclass(frozen=True)
class Output:
    """What is written and shown.

    Attributes:
        workdir: parent of the directories of runs
        quiet: no progress bar
        tensorboard: also write event files
        wandb: also log to Weights & Biases
    """

    workdir: Folder[Path] = Path("runs")
    quiet: bool = False
    tensorboard: bool = False
    wandb: bool = False

    def options(self) -> Options:
        """The same for ``execute``."""
        from opsin.commands.runs import Options

        return Options(
            workdir=self.workdir,
            progress=not self.quiet,
            tensorboard=self.tensorboard,
            wandb=self.wandb,
        )


@dataclass(frozen=True)
class Images:
    """How images are made.

    A diffusion model samples as the run was configured, unless options say otherwise. Most samplers
    evaluate the network once a step, heun and predictor-corrector twice, langevin once for each
    correction; guidance doubles the work. dpm++2m and heun need 10 to 20 steps, ddim 50, ancestral
    100 or more; langevin is for score networks.

    Attributes:
        label: of all images; without it, opsin sample takes the classes in turn
        seed: of all images
        weights: default: the moving average, if there is one
        sampler: how noise is removed
        steps: of the sampler
        guidance: towards the class: 1 is none, 3 is strong
    """

    label: Annotated[Index[int | None], arg(name="class")] = None
    seed: Seed[int] = 0
    weights: Annotated[Literal["ema", "raw"] | None, one_of("ema", "raw")] = None
    sampler: Annotated[str | None, one_of(*SAMPLERS)] = None
    steps: Count[int | None] = None
    guidance: Annotated[float | None, number(-1e6, 1e6, "a number")] = None


@dataclass(frozen=True)
class Features:
    """Which features of which images.

    Attributes:
        layer: what goes into the network's head, or what the head gives
        split: of the data
        seed: of all random draws
    """

    layer: Literal["features", "head"] = "features"
    split: str = "test"
    seed: Seed[int] = 0


def named(typed: str, overrides: tuple[str, ...]) -> tuple[str, Any, Experiment, dict[str, Any]]:
    """The name of an experiment, its module, its configuration, and the overrides still to come.

    Among those is what follows from them: ``num_classes`` of other data. One line a change that
    nobody typed in full goes to the screen.

    Args:
        typed: a name, or a file.
        overrides: as they were typed.

    Raises:
        ConfigError: if there is none of that name, a field of it does not take its value, or an
            override cannot be read.
        DataError: if other data cannot be opened.
    """
    name, module = catalogue.opened(typed)
    experiment, changes = module.config(), parse_all(overrides)
    from opsin.config.classes import classes_of_data
    from opsin.train.experiment import Experiment

    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise ConfigError(f"{typed}: config() gives an Experiment, not {kind}")
    check(experiment)
    followed = classes_of_data(experiment, changes)
    for path, count in followed.items():
        print(f"{path}={count}, as the data have", file=sys.stderr)
    changes |= followed
    functions = [path for path, value in changes.items() if callable(value)]
    changed = override(experiment, changes) if functions else experiment
    for path in functions:
        made = at(changed, path)
        if made is not changes[path]:
            print(f"{path} is {_in_one_line(made)}", file=sys.stderr)
    return name, module, experiment, changes


def _in_one_line(made: Any) -> str:
    """An object that was made of a class, or a function with options, by those that are plain."""
    plain = {n: x for n, x in children(made).items() if isinstance(x, int | float | str | tuple)}
    name = made.func.__name__ if isinstance(made, partial) else type(made).__name__
    return f"{name}({', '.join(f'{n}={x!r}' for n, x in plain.items())})"
