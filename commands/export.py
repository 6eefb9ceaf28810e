"""``opsin export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from opsin.commands.groups import Runtime
from opsin.commands.values import Allow, NewFile, Run, one_of
from opsin.interchange import DIALECTS


def export(
    run: Run,
    output: NewFile[Path],
    /,
    *,
    names: Annotated[str | None, one_of(*DIALECTS)] = None,
    allow: Allow = (),
    runtime: Runtime,
) -> int:
    """Saves the weights of a run as safetensors, or what it predicts as a program.

    Args:
        output: such as lenet.safetensors; lenet.stablehlo is a program, which jax runs without
            opsin, on CPUs, GPUs and TPUs; lenet.onnx is one for the runtimes of ONNX
        names: those of another library's state_dict, which can load the file then; default: ours
    """
    runtime.set_up()
    from opsin.commands import exporting

    print(f"sha256 {exporting.export(run, output, names=names, allow=allow)}")
    print(output)
    return 0
