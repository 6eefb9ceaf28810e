"""``opsin export``."""

from __future__ import annotations

from pathlib import Path

from opsin.commands.groups import Runtime
from opsin.commands.values import Allow, NewFile, Run


def export(
    run: Run,
    output: NewFile[Path],
    /,
    *,
    allow: Allow = (),
    runtime: Runtime,
) -> int:
    """Saves the weights of a run as safetensors.

    Args:
        output: such as lenet.safetensors
    """
    runtime.set_up()
    from opsin.commands import exporting

    print(f"sha256 {exporting.export(run, output, allow=allow)}")
    print(output)
    return 0
