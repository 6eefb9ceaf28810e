"""What a run leaves in its directory, to compare one that was disturbed with one that was not."""

from pathlib import Path
from typing import Any

from opsin.data.files import read_lines
from opsin.data.records import parse
from tests.train.test_loop import TIMES


def left(run: Path) -> Any:
    """What a run has in the end, without what depends on the clock."""
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    path = run / "checkpoints" / str(steps[-1]) / "metadata" / "metadata"
    metadata: Any = parse(path.read_bytes(), dict[str, Any])
    measured = {
        path.name: parse(path.read_bytes(), dict[str, Any])["metrics"]
        for path in sorted((run / "evaluations").glob("*.json"))
    }
    log = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(run / "metrics.jsonl")
        if "note" not in line  # of code with uncommitted changes
    ]
    kept = [metadata[name] for name in ("digests", "position", "shapes")]
    return [steps, kept, measured, log]


def only(folder: Path) -> Path:
    """The one directory in a folder."""
    (run,) = (path for path in folder.glob("*") if path.is_dir())
    return run
