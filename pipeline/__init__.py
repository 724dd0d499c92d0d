"""How a pipeline runs: configuration, the ordered list of steps, the plan, the run folder. Knows no mathematics."""

import os

# Must be set before torch is imported. OpenMP threads that wait for each other spin, by default so long that a training step
# becomes ten times slower when another process uses the cores too. Spinning for less costs nothing on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from pipeline.runner import Pipeline  # noqa: E402

__all__ = ["Pipeline"]
