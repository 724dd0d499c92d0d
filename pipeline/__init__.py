"""How a pipeline runs: configuration, the ordered list of steps, the plan, the run folder. Knows no mathematics."""

import os

# Must be set before torch is imported. OpenMP threads that wait for each other spin by default; where another process uses
# the cores too, that made a training step of ResNet-18 forty times slower (4.2 s against 0.11 s, two threads, two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pipeline.runner import Pipeline  # noqa: E402

__all__ = ["Pipeline"]
