"""A real Slurm of one node for the tests of this folder, started by `slurm_local.sh`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm_local.sh"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> dict[str, str]:
    """The environment in which sbatch, srun and squeue find it; skips where it cannot be installed."""
    if os.getuid() != 0:
        pytest.skip("a Slurm for the tests is installed and started by root only")
    if not shutil.which("slurmctld"):
        if not shutil.which("apt-get"):
            pytest.skip("no Slurm here, and no apt-get to install it")
        installed = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"Slurm cannot be installed here: {installed.stderr.strip().splitlines()[-1:]}")
    environment = {**os.environ, "SLURM_LOCAL_DIR": str(tmp_path_factory.mktemp("slurm")), "OMP_NUM_THREADS": "1"}
    started = subprocess.run([SCRIPT, "start"], env=environment, capture_output=True, text=True, timeout=60)
    assert started.returncode == 0, started.stderr
    yield {**environment, "SLURM_CONF": f"{environment['SLURM_LOCAL_DIR']}/slurm.conf"}
    subprocess.run([SCRIPT, "stop"], env=environment, timeout=60)
