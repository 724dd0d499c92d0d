"""How a pipeline runs: configuration, the ordered list of steps, the plan, the run folder. Knows no mathematics."""

from pipeline.runner import Pipeline

__all__ = ["Pipeline"]
