"""``opsin sweep``."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

from opsin.commands.endings import after_signal, exit_code, own_trace
from opsin.commands.groups import Output, Runtime, named
from opsin.commands.values import Count, Index, Name, Overrides, whole
from opsin.config import catalogue
from opsin.data.files import in_shell


def sweep(
    name: Name,
    overrides: Overrides = (),
    /,
    *,
    seeds: Annotated[int | None, whole(1, 10_000)] = None,
    index: Index[int] = 0,
    of: Count[int] = 1,
    dry_run: bool = False,
    output: Output,
    runtime: Runtime,
) -> int:
    """Runs an ablation: every arm under every seed.

    Args:
        seeds: default: as many as its table plans
        index: this machine's share, counted from 0
        of: number of shares
        dry_run: only list the runs
    """
    runtime.set_up()
    asked, (name, module, experiment, changes) = name, named(name, overrides)
    from opsin.commands.runs import directory_of, execute, state_of
    from opsin.config.sweep import expand, share

    wanted = seeds or (module.TABLE.seeds if hasattr(module, "TABLE") else 3)
    planned = expand(experiment, catalogue.arms(module), wanted, changes)
    mine = list(share(planned, index, of))
    failed = []
    for number, run in enumerate(mine, start=1):
        directory = directory_of(name, run.experiment, output.workdir)
        state = state_of(directory, run.experiment)
        print(
            f"[{number}/{len(mine)}] {run.arm}, seed {run.seed}: {directory} ({state})", flush=True
        )
        if dry_run:
            continue
        try:
            outcome = execute(name, run.arm, run.experiment, output.options())
        except (Exception, SystemExit) as error:  # one failed run must not lose the others
            if own := own_trace(error):
                print(own, file=sys.stderr)
            elif exit_code(error) is None:
                traceback.print_exc()
            print(f"  failed: {error}", file=sys.stderr)
            failed.append(run)
            continue
        if outcome.signal is not None:
            print(f"stopped at step {outcome.step}, saved; the same command resumes from there")
            return after_signal(outcome)
    if failed:
        names = ", ".join(f"{run.arm} (seed {run.seed})" for run in failed)
        print(f"opsin: {len(failed)} of {len(mine)} runs failed: {names}", file=sys.stderr)
        return 1
    if not dry_run and hasattr(module, "TABLE"):
        print(f"done; now: opsin report {in_shell(asked)}")
    return 0
