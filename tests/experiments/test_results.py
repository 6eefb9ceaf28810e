"""What is committed in results/ is of the experiments as they stand."""

from pathlib import Path

import pytest

from opsin.config import catalogue
from opsin.config.identity import evaluation_id
from opsin.config.sweep import expand
from opsin.config.table import Key
from opsin.report.reproduction import tables
from opsin.report.rows import read_rows

FOLDER = Path(__file__).parents[2] / "results"
RESULTS = [FOLDER / f"{name}.jsonl" for name in tables(FOLDER)]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_run_is_one_of_the_sweep_by_its_id(path: Path):
    module = catalogue.find(path.stem)
    planned = {
        (run.arm, run.seed): Key(run.id, run.measurement, evaluation_id(run.experiment))
        for run in expand(module.config(), catalogue.arms(module), module.TABLE.seeds)
    }
    assert {(row.arm, row.seed): row.key() for row in read_rows(path)} == planned
