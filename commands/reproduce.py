"""``opsin reproduce``."""

from __future__ import annotations

from pathlib import Path

from opsin.commands.endings import after_signal
from opsin.commands.groups import Runtime
from opsin.commands.values import Count, Folder, Name, Seed


def reproduce(
    name: Name,
    /,
    *,
    rows: Count[int] = 1,
    seed: Seed[int] = 0,
    workdir: Folder[Path] = Path("runs/reproduced"),
    results: Folder[Path] = Path("results"),
    quiet: bool = False,
    runtime: Runtime,
) -> int:
    """Trains rows of a table again, and compares each metric with the spread over seeds.

    What it finds goes into results/reproduced.jsonl and .md, in the place of the same row; it exits
    with 1 if a metric is outside its interval.

    Args:
        rows: how many, drawn at random
        seed: that draws them
        workdir: where its runs go, COMMIT/NAME/ID; a finished one of the same commit is only read
        results: where the tables are
        quiet: no progress bar
    """
    runtime.set_up()
    from opsin.commands.reproducing import compared, drawn, train
    from opsin.commands.runs import Options
    from opsin.data.files import writing
    from opsin.report.reproduction import NAME, add, check, lines_of

    check(results)  # a damaged file there is told before an hour of training
    outside = compared_metrics = 0
    for chosen in drawn(name, results, rows, seed):
        print(f"{chosen.name}, {chosen.row.arm}, seed {chosen.row.seed}", flush=True)
        outcome = train(chosen, Options(workdir=workdir, progress=not quiet))
        if outcome.finished:
            found = compared(chosen, outcome.directory)
            with writing(results, "choose another place with --results"):
                add(results, found)
            print("\n".join(lines_of(found)), flush=True)
            outside += len(found.outside())
            compared_metrics += len(found.metrics)
        if outcome.signal is not None:
            print("stopped; the same command resumes from there")
            return after_signal(outcome)
    print(f"{compared_metrics - outside} of {compared_metrics} metrics within")
    print(results / f"{NAME}.md")
    return 1 if outside else 0
