"""``opsin evaluate``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Runtime
from opsin.commands.values import Allow, Run


def evaluate(
    run: Run,
    overrides: Annotated[tuple[str, ...], arg(metavar="MEASUREMENT [path=value …]")] = (),
    /,
    *,
    allow: Allow = (),
    runtime: Runtime,
) -> int:
    """Measures a trained run again, or in another way; nothing trains.

    Without a name: the metrics of all splits and the measurements of the experiment in its present
    form. Results go to RUN/evaluations, where opsin report finds them.

    Args:
        overrides: such as SampleQuality samples=2000, or Probe untrained=True
    """
    runtime.set_up()
    from opsin.commands.evaluating import evaluate_run
    from opsin.train.logging import bar

    for each in evaluate_run(run, overrides, bar, allow=allow):
        print(each.name)
        for name, value in each.metrics.items():
            print(f"  {name:<32} {value:.4f}")
        print(each.path, flush=True)
    return 0
