"""Jit changes nothing: tests that compile what they test hold operation by operation, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
COMPILED = (
    "ops/test_spectral_norm.py",
    "ops/test_vectors.py",
    "ops/test_upsampling.py",
    "losses/test_adversarial.py",
    "losses/test_diffusion.py",
)


@pytest.mark.proofs
def test_without_jit_the_same_holds():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{file}" for file in COMPILED)],
        cwd=HOUSE,
        env={**os.environ, "JAX_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout
