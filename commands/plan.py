"""``opsin plan``."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Suppress, arg

from opsin.commands import runtime
from opsin.commands.groups import named
from opsin.commands.values import Axes, Count, Name, NewFile, Overrides
from opsin.config.tree import override
from opsin.data.files import check_new
from opsin.errors import ConfigError


def plan(
    name: Name,
    overrides: Overrides = (),
    /,
    *,
    topology: Annotated[str, arg(metavar="CHIP:SHAPE")],
    parallelism: Axes[dict[str, int] | None] = None,
    global_batch: Count[int | None] = None,
    sweep: bool = False,
    out: NewFile[Path | None] = None,
    words: Suppress[tuple[str, ...]] = (),
) -> int:
    """Compiles the training step for devices that are not here, and predicts its speed.

    Args:
        topology: such as v5e:16x16 or cpu:8
        parallelism: the mesh, such as data=16,fsdp=16
        global_batch: images in a step, over all devices
        sweep: also try other batches and meshes
        out: default: plans/NAME-TOPOLOGY.json
        words: the command, for the record
    """
    if out and out.suffix != ".json":  # the Markdown lies beside it
        raise ConfigError(f"--out {out}: give a name that ends in .json")
    if out:
        check_new([out.with_suffix(".md")], "choose another place with --out")
    from opsin.planning.chips import Topology

    devices = Topology.parse(topology)
    here = devices.chip.name == "cpu"
    fake = devices.size if here else None
    runtime.set_up(
        runtime.Runtime(platform="cpu", devices=fake, cached=False, tpu_compiler=not here)
    )
    name, module, base, changes = named(name, overrides)
    from opsin.planning import planner as planning

    experiment = override(base, changes | planning.arrangement(parallelism or {}, global_batch))
    examples = planning.examples_of(module, experiment)
    planner = planning.Planner(experiment, examples, devices, partial(print, file=sys.stderr))
    setting = planner.setting({})
    swept = planner.sweep() if sweep else []
    output = out or Path("plans") / f"{name}-{topology.replace(':', '-')}.json"
    command = shlex.join(["opsin", *words])
    print(planning.write(output, name, command, planner, setting, swept))
    print(output)
    if setting.plan.fits:
        return 0
    nearest = planner.nearest(setting.plan)
    way_out = f"this does: {nearest.arguments}" if nearest else "nor does any setting near it"
    print(f"opsin: the step does not fit on {devices}; {way_out}", file=sys.stderr)
    return 1
