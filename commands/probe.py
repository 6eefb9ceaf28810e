"""``opsin probe``."""

from __future__ import annotations

from commands.groups import Features, Runtime
from commands.values import Count, Run


def probe(
    run: Run,
    /,
    *,
    images: Count[int | None] = None,
    neighbours: Count[int] = 200,
    features: Features,
    runtime: Runtime,
) -> int:
    """Says what a linear classifier reads off a run's features.

    Args:
        images: that teach the probe; all, unless it is given
        neighbours: of the classifier by nearest neighbours
    """
    runtime.set_up()
    from experiments import embedding
    from train.final_probe import Probe
    from train.logging import bar

    asked = Probe(
        layers=(features.layer,),
        neighbours=neighbours,
        sgd_epochs=90,
        images=images,
        split=features.split,
        seed=features.seed,
    )
    path, found = embedding.probe(run, asked, bar)
    print(f"{'':<28} {'trained':>9} {'untrained':>9}")
    for name, value in found["trained"].items():
        print(f"{name:<28} {value:>9.4f} {found['untrained'][name]:>9.4f}")
    print(path)
    return 0
