"""How a pipeline runs: configuration, the ordered list of steps, the plan, the run folder. Knows no mathematics."""

import os

# Must be set before torch is imported. OpenMP threads that wait for each other spin, by default so long that a training step
# becomes ten times slower when another process uses the cores too. Spinning for less costs nothing on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["Pipeline"]


def __getattr__(name: str) -> object:
    if name == "Pipeline":   # late: the text of --help needs nothing of what it imports
        from pipeline.runner import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
