"""What a user did, told from what a run did and from bugs."""

from __future__ import annotations

from experiments.config import ConfigError


def exit_code(error: Exception) -> int | None:
    """2 for a user's mistake, 1 for a run that failed, None for a bug, which keeps its trace."""
    if isinstance(error, ConfigError):  # answered at once: the imports below take a moment
        return 2
    from data.examples import DataError
    from experiments.runs import RunError
    from experiments.table import ReportError
    from train.checkpoint import CheckpointError, SaveError
    from train.chips import TopologyError
    from train.durations import DurationError
    from train.logging import LoggingError, NonFiniteError
    from train.processes import ProcessError
    from train.sharding import DeviceError
    from train.tasks.task import SettingError
    from train.weights import WeightsError

    if isinstance(error, NonFiniteError | SaveError):
        return 1
    mistakes = (
        DataError, RunError, ReportError, CheckpointError, DurationError,
        LoggingError, SettingError, DeviceError, TopologyError, WeightsError, ProcessError,
    )  # fmt: skip
    return 2 if isinstance(error, mistakes) else None
