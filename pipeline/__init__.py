"""How a pipeline runs: configuration, the ordered list of steps, the plan and the run folder. Contains no mathematics."""

import os

# Must be set before torch is imported. Waiting OpenMP threads spin. With the default spin count, a training step becomes ten
# times slower when another process uses the same cores. A lower count costs nothing on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["Pipeline", "load_network"]


def __getattr__(name: str) -> object:
    if name == "Pipeline":   # imported here because --help does not need it
        from pipeline.runner import Pipeline

        return Pipeline
    if name == "load_network":
        from pipeline.segmentation import load_network

        return load_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
